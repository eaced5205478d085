//! What hosts may see, sector by sector, and who may serve.
//!
//! Each write has a number of its own, and each sector that it writes says which write, which volume and which
//! sector it is; so a read of a sector is a read of that number (zero where there is no data). In the end the history
//! of each sector has to be linearizable. A command without an answer may take effect once or never, and not later
//! than one of these (I15, I16):
//! - the next turn of service of its volume begins, wherever: what is in doubt is settled before;
//! - the loss of its nexus, or its abort, has been acknowledged;
//! - PREEMPT AND ABORT against its host was answered GOOD.
//!
//! A command that has never reached a device has no effect at all.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::room::Life;
use super::snapshots::Snapshots;
use super::{Cluster, NAMES, VOLUMES, micros};
use crate::base::runtime::Runtime;
use crate::base::units::VolumeId;
use crate::cluster::state::Command;
use crate::cluster::state::volume::Transition;
use crate::mirror::FromReplica;
use crate::sim::linearizability::{Action, Event, first_contradiction};

/// Everything that hosts did.
#[derive(Default)]
pub(super) struct Oracle {
    now: Cell<u64>,
    operations: RefCell<Vec<Rc<Operation>>>,
    /// When each turn of service of each volume began.
    services: RefCell<BTreeMap<VolumeId, Vec<u64>>>,
    executing: RefCell<Option<Rc<Operation>>>,
    /// By node and volume: the newest epoch that it has promised, as others may know.
    promised: RefCell<BTreeMap<(usize, VolumeId), u32>>,
    /// Which life has served an epoch of a volume.
    served: RefCell<BTreeMap<(VolumeId, u32), u64>>,
}

/// One command of a host.
#[derive(Debug)]
pub(super) struct Operation {
    /// The number of the command, and what its writes leave behind.
    pub number: u64,
    pub host: usize,
    pub node: usize,
    pub volume: VolumeId,
    pub first: u64,
    pub count: u64,
    pub kind: Kind,
    called: u64,
    /// The turn of service in which it has reached the device; zero while it has not.
    turn: Cell<u64>,
    /// How often it is in the device now.
    pub uses: Cell<u64>,
    /// From when on it can't take effect any more.
    limit: Cell<u64>,
    /// Its end was acknowledged by the node that it was sent to.
    is_over: Cell<bool>,
    pub has_arrived: Cell<bool>,
    pub had_conflict: Cell<bool>,
    pub outcome: RefCell<Outcome>,
}

/// What happened to a sector, and of which commands that is: of none, what snapshots have shown.
type History<'a> = (Vec<Event>, Vec<Option<&'a Operation>>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Unmap,
    /// COMPARE AND WRITE with what each sector is to be.
    Exchange(Vec<u64>),
    /// Nothing about sectors.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nobody knows.
    Open,
    /// GOOD, then.
    Good(u64),
    /// GOOD, with these values.
    Read(u64, Vec<u64>),
    /// The first sector that differs, of those that were compared.
    Differs(u64, usize),
}

impl Oracle {
    pub(super) fn tick(&self) -> u64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    pub(super) fn begin(
        &self,
        host: usize,
        node: usize,
        volume: VolumeId,
        range: (u64, u64),
        kind: Kind,
    ) -> Rc<Operation> {
        let mut operations = self.operations.borrow_mut();
        let operation = Rc::new(Operation {
            number: operations.len() as u64 + 1,
            host,
            node,
            volume,
            first: range.0,
            count: range.1,
            kind,
            called: self.tick(),
            turn: Cell::new(0),
            uses: Cell::new(0),
            limit: Cell::new(u64::MAX),
            is_over: Cell::default(),
            has_arrived: Cell::default(),
            had_conflict: Cell::default(),
            outcome: RefCell::new(Outcome::Open),
        });
        operations.push(operation.clone());
        operation
    }

    pub(super) fn end(&self, operation: &Operation, outcome: impl FnOnce(u64) -> Outcome) {
        *operation.outcome.borrow_mut() = outcome(self.tick());
    }

    /// From now on the command can't take effect.
    pub(super) fn rule_out(&self, operation: &Operation) {
        operation.limit.set(operation.limit.get().min(self.tick()));
    }

    /// Commands without an answer that fit.
    pub(super) fn open(&self, fits: impl Fn(&Operation) -> bool) -> Vec<Rc<Operation>> {
        let operations = self.operations.borrow();
        let open = operations.iter().filter(|operation| *operation.outcome.borrow() == Outcome::Open);
        open.filter(|operation| fits(operation)).cloned().collect()
    }

    /// A node lets hosts in: the number of this turn of service.
    pub(super) fn begin_service(&self, volume: VolumeId) -> u64 {
        let now = self.tick();
        let mut services = self.services.borrow_mut();
        let of_volume = services.entry(volume).or_default();
        of_volume.push(now);
        of_volume.len() as u64
    }

    pub(super) fn turn(&self, volume: VolumeId) -> u64 {
        self.services.borrow().get(&volume).map_or(0, |services| services.len() as u64)
    }

    /// When the turn of service after this one began.
    pub(super) fn end_of_turn(&self, volume: VolumeId, turn: u64) -> u64 {
        let services = self.services.borrow();
        let next = services.get(&volume).and_then(|services| services.get(turn as usize));
        next.copied().unwrap_or(u64::MAX)
    }

    /// The newest epoch that a node has promised, as others may know.
    pub(super) fn promised_by(&self, node: usize, volume: VolumeId) -> u32 {
        self.promised.borrow().get(&(node, volume)).copied().unwrap_or(0)
    }

    /// The command whose execution is being polled.
    pub(super) fn executing(&self) -> Option<Rc<Operation>> {
        self.executing.borrow().clone()
    }

    pub(super) fn set_executing(&self, operation: Option<Rc<Operation>>) {
        *self.executing.borrow_mut() = operation;
    }

    /// Looks at the histories of all sectors.
    pub(super) fn check(&self, snapshots: &Snapshots) -> Result<(), String> {
        let operations = self.operations.borrow();
        let mut sectors: BTreeMap<(VolumeId, u64), History<'_>> = BTreeMap::new();
        for operation in operations.iter() {
            for index in 0..operation.count {
                if let Some(event) = self.event(operation, index as usize) {
                    let sector = sectors.entry((operation.volume, operation.first + index)).or_default();
                    sector.0.push(event);
                    sector.1.push(Some(operation));
                }
            }
        }
        for (volume, sector, event) in snapshots.events(|volume, turn| self.end_of_turn(volume, turn)) {
            let sector = sectors.entry((volume, sector)).or_default();
            sector.0.push(event);
            sector.1.push(None);
        }
        for ((volume, sector), (events, of)) in &sectors {
            if let Some(index) = first_contradiction(0, events) {
                let (event, operation) = (&events[index], of[index]);
                let near = |other: &&Event| {
                    other.ended + 4000 > event.called && other.called < event.ended.min(event.called + 4000)
                };
                let mut near: Vec<_> = events.iter().filter(near).collect();
                near.sort_by_key(|event| event.called);
                return Err(format!(
                    "sector {sector} of volume {} is no register: {event:?} of {operation:?} contradicts {near:#?}",
                    volume.0
                ));
            }
        }
        Ok(())
    }

    /// What a command means for one of its sectors.
    fn event(&self, operation: &Operation, index: usize) -> Option<Event> {
        let Operation { number, called, .. } = *operation;
        let outcome = operation.outcome.borrow();
        let certain = |ended, action| Some(Event { called, ended, action, is_optional: false });
        let action = match &operation.kind {
            Kind::Write => Action::Write(number),
            Kind::Unmap => Action::Write(0),
            Kind::Exchange(from) => Action::Exchange { from: from[index], to: number },
            Kind::Read => {
                return match &*outcome {
                    Outcome::Read(ended, values) => certain(*ended, Action::Read(values[index])),
                    _ => None,
                };
            }
            Kind::Other => return None,
        };
        match (&*outcome, &operation.kind) {
            (Outcome::Good(ended), _) => certain(*ended, action),
            (Outcome::Differs(ended, at), Kind::Exchange(from)) => match index.cmp(at) {
                std::cmp::Ordering::Less => certain(*ended, Action::Read(from[index])),
                std::cmp::Ordering::Equal => certain(*ended, Action::Differs(from[index])),
                std::cmp::Ordering::Greater => None,
            },
            _ if operation.turn.get() == 0 => None,
            _ => {
                let end_of_turn = self.end_of_turn(operation.volume, operation.turn.get());
                let ended = end_of_turn.min(operation.limit.get()).max(called + 1);
                Some(Event { called, ended, action, is_optional: true })
            }
        }
    }
}

impl Operation {
    pub(super) fn is_in_turn(&self, turn: u64) -> bool {
        self.turn.get() == turn
    }
}

impl Cluster {
    /// A node answers a stream: that promises the epoch of the stream, and no older one is answered from then on, not
    /// even by a later life (I6).
    pub(super) fn check_promise(&self, node: usize, answer: &FromReplica) {
        let (volume, stream) = answer.belongs_to();
        let mut promised = self.oracle.promised.borrow_mut();
        let known = promised.entry((node, volume)).or_default();
        let takes = matches!(
            answer,
            FromReplica::Ready { .. } | FromReplica::Durable { .. } | FromReplica::Copied { .. }
        );
        if takes && stream.epoch < *known {
            let problem = format!("{} has promised epoch {known} and answers {answer:?} (I6)", NAMES[node]);
            drop(promised);
            return self.fail(problem);
        }
        if matches!(answer, FromReplica::Ready { .. }) {
            *known = stream.epoch;
        }
        if matches!(answer, FromReplica::Fenced { .. }) {
            self.meet("streams fenced");
        }
    }

    /// A node proposes itself in the place of the primary: it has promised the epoch.
    pub(super) fn note_promise(&self, node: usize, command: &Command) {
        if let Command::BeginEpoch { volume, expected_epoch, transition: Transition::TakeOver, .. } = command
        {
            let mut promised = self.oracle.promised.borrow_mut();
            let known = promised.entry((node, *volume)).or_default();
            *known = (*known).max(expected_epoch + 1);
        }
    }

    /// A life lets hosts in, or begins a stream, in an epoch: no other one ever does in the same (I8).
    pub(super) fn check_epoch(&self, life: &Life, volume: VolumeId, epoch: u32) {
        let mut served = self.oracle.served.borrow_mut();
        let first = *served.entry((volume, epoch)).or_insert(life.number);
        drop(served);
        if first != life.number {
            let node = NAMES[life.index];
            self.fail(format!(
                "{node} serves epoch {epoch} of volume {}, as another life has (I8)",
                volume.0
            ));
        }
    }

    /// The node has acknowledged that a command is over: nothing of it follows (I16).
    pub(super) fn acknowledge_end(&self, operation: &Operation) {
        operation.is_over.set(true);
        self.oracle.rule_out(operation);
        if operation.uses.get() > 0 {
            self.fail(format!(
                "a command is in the device after its end was acknowledged (I16): {operation:?}"
            ));
        }
    }

    /// A command reaches the device of a turn of service.
    pub(super) fn begin_use(&self, operation: &Operation, volume: VolumeId, turn: u64) {
        operation.uses.set(operation.uses.get() + 1);
        if operation.turn.get() == 0 {
            operation.turn.set(turn);
        } else if operation.turn.get() != turn {
            self.fail(format!("a command uses two devices, one after the other: {operation:?}"));
        }
        if operation.is_over.get() {
            self.fail(format!(
                "a command reaches the medium after its end was acknowledged (I16): {operation:?}"
            ));
        }
        if turn == self.oracle.turn(volume) {
            self.check_fence(operation);
        }
    }
}

/// Looks that one node at most may serve a volume (I5).
pub(super) async fn watch(cluster: Rc<Cluster>) {
    loop {
        cluster.clock.sleep(micros(100 + cluster.random.below(900))).await;
        for volume in VOLUMES {
            let serving: Vec<_> =
                (0..2).filter(|node| cluster.serves(*node, volume)).map(|node| NAMES[node]).collect();
            if serving.len() > 1 {
                cluster.fail(format!("both {serving:?} may serve volume {} (I5)", volume.0));
            }
        }
    }
}
