//! The model of persistent reservations (write exclusive, registrants only) as hosts see them.
//!
//! Each PERSISTENT RESERVE command is a step on what is registered and who holds the reservation; the history of a
//! volume has to be linearizable, over every change of the serving node. And who was preempted, and has not asked to be
//! registered again, never writes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::Cluster;
use super::oracle::{Operation, Outcome};
use crate::base::units::VolumeId;
use crate::sim::linearizability::{Event, Step, first_contradiction};

#[derive(Default)]
pub(super) struct Reservations {
    histories: RefCell<BTreeMap<VolumeId, Vec<Rc<Entry>>>>,
    /// Hosts that can't write.
    fenced: RefCell<BTreeSet<(VolumeId, usize)>>,
    next_key: Cell<u64>,
}

/// One command, from its call on.
#[derive(Debug)]
pub(super) struct Entry {
    host: usize,
    node: usize,
    action: Action,
    called: u64,
    /// When it was answered, and how.
    answer: RefCell<Option<(u64, Answer)>>,
    /// The turn of service in which it was given up.
    given_up_in: Cell<Option<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Register(u64),
    Unregister,
    Reserve(u64),
    Release(u64),
    Clear(u64),
    Preempt(u64, u64),
    ReadKeys,
    ReadReservation,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Good,
    Conflict,
    Keys(Vec<u64>),
}

/// What is registered, by host, and who holds the reservation: host and node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    keys: BTreeMap<usize, u64>,
    holder: Option<(usize, usize)>,
}

#[derive(Clone, Debug)]
struct Taken {
    host: usize,
    node: usize,
    action: Action,
    answer: Answer,
}

impl Step for Taken {
    type State = State;

    fn apply(&self, state: &State) -> Option<State> {
        let after = match (&self.answer, self.action) {
            (Answer::Keys(keys), Action::ReadKeys) => {
                let mut present: Vec<u64> = state.keys.values().copied().collect();
                present.sort_unstable();
                return (*keys == present).then(|| state.clone());
            }
            (Answer::Keys(keys), Action::ReadReservation) => {
                let holder = state.holder.map(|(host, _)| state.keys[&host]);
                return (keys.first() == holder.as_ref()).then(|| state.clone());
            }
            _ => state.after(self.host, self.node, self.action),
        };
        match (after, &self.answer) {
            (Some(after), Answer::Good) => Some(after),
            (None, Answer::Conflict) => Some(state.clone()),
            _ => None,
        }
    }
}

impl State {
    /// None when it conflicts.
    fn after(&self, host: usize, node: usize, action: Action) -> Option<Self> {
        let mut after = self.clone();
        let has = |key: u64| self.keys.get(&host) == Some(&key);
        match action {
            Action::Register(key) => {
                after.keys.insert(host, key);
            }
            Action::Unregister => {
                after.keys.remove(&host);
                after.holder = after.holder.filter(|(holder, _)| *holder != host && !after.keys.is_empty());
            }
            Action::Reserve(key) => {
                let is_free = self.holder.is_none_or(|holder| holder == (host, node));
                (has(key) && is_free).then(|| after.holder = Some((host, node)))?;
            }
            Action::Release(key) => {
                has(key).then_some(())?;
                after.holder = after.holder.filter(|holder| *holder != (host, node));
            }
            Action::Clear(key) => has(key).then(|| after = Self::default())?,
            Action::Preempt(key, victim) => {
                let victims: Vec<usize> =
                    self.keys.iter().filter(|(_, key)| **key == victim).map(|(host, _)| *host).collect();
                (has(key) && !victims.is_empty()).then_some(())?;
                let takes = self.holder.is_some_and(|(holder, _)| victims.contains(&holder));
                after.keys.retain(|host, _| !victims.contains(host));
                if takes {
                    after.holder = Some((host, node));
                }
            }
            Action::ReadKeys | Action::ReadReservation => {}
        }
        Some(after)
    }
}

impl Reservations {
    /// A key that names its host.
    pub(super) fn new_key(&self, host: usize) -> u64 {
        self.next_key.set(self.next_key.get() + 1);
        (host as u64 + 1) << 32 | self.next_key.get()
    }

    fn entries(&self, volume: VolumeId) -> Vec<Rc<Entry>> {
        self.histories.borrow().get(&volume).cloned().unwrap_or_default()
    }
}

fn host_of(key: u64) -> usize {
    (key >> 32) as usize - 1
}

impl Action {
    /// Whether it may let a host write that could not.
    fn lets_write(self, action_host: usize, host: usize) -> bool {
        match self {
            Self::Register(_) => action_host == host,
            Self::Unregister | Self::Release(_) | Self::Clear(_) => true,
            _ => false,
        }
    }
}

impl Cluster {
    pub(super) fn begin_reservation(
        &self,
        volume: VolumeId,
        host: usize,
        node: usize,
        action: Action,
    ) -> Rc<Entry> {
        let entry = Rc::new(Entry {
            host,
            node,
            action,
            called: self.oracle.tick(),
            answer: RefCell::default(),
            given_up_in: Cell::default(),
        });
        self.reservations.histories.borrow_mut().entry(volume).or_default().push(entry.clone());
        let mut fenced = self.reservations.fenced.borrow_mut();
        fenced.retain(|(of, fenced)| *of != volume || !action.lets_write(host, *fenced));
        entry
    }

    /// It was answered; or nobody knows what came of it.
    pub(super) fn end_reservation(&self, volume: VolumeId, entry: &Entry, answer: Option<Answer>) {
        match answer {
            Some(answer) => *entry.answer.borrow_mut() = Some((self.oracle.tick(), answer)),
            None => entry.given_up_in.set(Some(self.oracle.turn(volume))),
        }
    }

    /// A host was preempted by `preempt`, and somebody has seen since that the reservation is held by another one: its
    /// writes are over, and none comes any more until it asks to be registered.
    ///
    /// Unless the reservation that was seen may be that of a command which has no answer yet. While there is none, a host
    /// that is not registered may write, also after it was preempted; and when a reservation takes effect for commands
    /// that are in the task set already is left to the target by SPC-4 (section 5.13.1): what says that it is established
    /// is that the command which makes it has ended with GOOD. I17 wants the drain before GOOD, not before PERSISTENT
    /// RESERVE IN shows what is in force for new commands.
    pub(super) fn fence(&self, volume: VolumeId, preempt: &Entry, holder: u64) {
        let Action::Preempt(_, victim) = preempt.action else { return };
        let host = host_of(victim);
        let may_undo = |entry: &Rc<Entry>| {
            let is_over = match (&*entry.answer.borrow(), entry.given_up_in.get()) {
                (Some((ended, _)), _) => *ended < preempt.called,
                (None, Some(turn)) => self.oracle.end_of_turn(volume, turn) < preempt.called,
                (None, None) => false,
            };
            !is_over && entry.action.lets_write(entry.host, host)
        };
        let entries = self.reservations.entries(volume);
        if host_of(holder) == host || entries.iter().any(may_undo) {
            return;
        }
        let may_be_draining = |entry: &Rc<Entry>| {
            let is_answered = match entry.given_up_in.get() {
                None => entry.answer.borrow().is_some(),
                Some(turn) => turn < self.oracle.turn(volume),
            };
            let takes =
                matches!(entry.action, Action::Reserve(key) | Action::Preempt(key, _) if key == holder);
            takes && !is_answered
        };
        if entries.iter().any(may_be_draining) {
            return self.meet("reservations seen before they were answered");
        }
        self.meet("hosts fenced");
        self.reservations.fenced.borrow_mut().insert((volume, host));
        for operation in self.oracle.open(|operation| operation.volume == volume && operation.host == host) {
            if operation.uses.get() > 0 && operation.is_in_turn(self.oracle.turn(volume)) {
                self.fail(format!("a preempted host's command is not over (I17): {operation:?}"));
            }
            self.oracle.rule_out(&operation);
        }
    }

    pub(super) fn check_fence(&self, operation: &Operation) {
        if self.reservations.fenced.borrow().contains(&(operation.volume, operation.host)) {
            self.fail(format!("a preempted host writes: {operation:?}"));
        }
        debug_assert_ne!(*operation.outcome.borrow(), Outcome::Good(0));
    }

    /// Looks at the histories of all volumes.
    pub(super) fn check_reservations(&self) -> Result<(), String> {
        for (volume, entries) in self.reservations.histories.borrow().iter() {
            let event = |entry: &Rc<Entry>| {
                let Entry { host, node, action, called, .. } = **entry;
                let taken = |answer| Taken { host, node, action, answer };
                match (&*entry.answer.borrow(), action) {
                    (Some((ended, answer)), _) => Some(Event {
                        called,
                        ended: *ended,
                        action: taken(answer.clone()),
                        is_optional: false,
                    }),
                    (None, Action::ReadKeys | Action::ReadReservation) => None,
                    (None, _) => {
                        let turn = entry.given_up_in.get().unwrap_or(self.oracle.turn(*volume));
                        let ended = self.oracle.end_of_turn(*volume, turn);
                        Some(Event { called, ended, action: taken(Answer::Good), is_optional: true })
                    }
                }
            };
            let events: Vec<Event<Taken>> = entries.iter().filter_map(event).collect();
            if let Some(index) = first_contradiction(State::default(), &events) {
                let mut before: Vec<_> =
                    events.iter().filter(|event| event.called <= events[index].ended).collect();
                before.sort_by_key(|event| event.called);
                let near = &before[before.len().saturating_sub(24)..];
                return Err(format!("reservations of volume {} contradict each other: {near:#?}", volume.0));
            }
        }
        Ok(())
    }
}
