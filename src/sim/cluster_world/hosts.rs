//! Hosts: initiators with a session on each node, which read and write through whichever path serves, give up
//! what hangs, come again, and reserve.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{Either, select};

use super::command::{self, compare_and_write, read, unmap, write};
use super::oracle::{Kind, Operation, Outcome};
use super::reservations::{Action, Answer, Entry};
use super::room::Life;
use super::unit::{Unit, target_port};
use super::{Cluster, VOLUMES, micros};
use crate::base::runtime::Runtime;
use crate::base::signal::Signal;
use crate::base::units::VolumeId;
use crate::scsi::command::{Command, Response};
use crate::scsi::identity::{InitiatorPort, Nexus, NexusId};
use crate::scsi::task_set::TaskAttribute;

pub(super) const HOSTS: usize = 3;
/// Commands that a host has open at a time, on one volume.
const DEPTH: usize = 2;
/// Parts of a volume that are used, in blocks of eight sectors: first, and how many.
pub(super) const USED: [(u64, u64); 2] = [(0, 12), (1500, 12)];

const UNIT_ATTENTION: u8 = 6;
const MEDIUM_ERROR: u8 = 3;

/// All hosts.
pub(super) struct Hosts {
    is_ending: Rc<Cell<bool>>,
    working: Rc<Cell<usize>>,
}

/// One host on one volume.
pub(super) struct Host {
    cluster: Rc<Cluster>,
    index: usize,
    pub volume: VolumeId,
    sessions: [RefCell<Option<Rc<Session>>>; 2],
    /// The key that it has registered last.
    key: Cell<u64>,
    /// Commands that were answered GOOD.
    pub answered: Cell<u64>,
    /// How long it waits, when that is not left to chance.
    pub patience: Cell<Option<Duration>>,
}

/// A session of a host with a node.
struct Session {
    life: Rc<Life>,
    unit: Rc<Unit>,
    nexus: NexusId,
    /// The host has left it.
    is_left: Cell<bool>,
    open: RefCell<BTreeMap<u64, Rc<Operation>>>,
    /// The node has acknowledged its end.
    is_over: Cell<bool>,
    over: Signal,
}

impl Hosts {
    pub(super) fn start(cluster: &Rc<Cluster>) -> Self {
        let (is_ending, working) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        for index in 0..HOSTS {
            for volume in VOLUMES {
                let host = Host::new(cluster, index, volume);
                for _ in 0..DEPTH {
                    working.set(working.get() + 1);
                    let (host, is_ending, working) = (host.clone(), is_ending.clone(), working.clone());
                    cluster.clock.spawn(Box::pin(async move {
                        while !is_ending.get() {
                            host.cluster.clock.sleep(micros(host.cluster.random.below(1500))).await;
                            host.do_something().await;
                        }
                        working.set(working.get() - 1);
                    }));
                }
            }
        }
        Self { is_ending, working }
    }

    /// Starts something else that ends with the hosts.
    pub(super) fn beside(&self, start: impl FnOnce(&Rc<Cell<bool>>, &Rc<Cell<usize>>)) {
        start(&self.is_ending, &self.working);
    }

    /// Lets them end what they do. Whether all have ended.
    pub(super) fn stop(&self) -> bool {
        self.is_ending.set(true);
        self.working.get() == 0
    }
}

impl Host {
    pub(super) fn new(cluster: &Rc<Cluster>, index: usize, volume: VolumeId) -> Rc<Self> {
        Rc::new(Self {
            cluster: cluster.clone(),
            index,
            volume,
            sessions: Default::default(),
            key: Cell::new(0),
            answered: Cell::new(0),
            patience: Cell::default(),
        })
    }

    /// The path that serves, as far as this host knows; now and then another one.
    fn choose_node(&self) -> usize {
        let random = &self.cluster.random;
        match self.cluster.server(self.volume).filter(|_| random.below(8) > 0) {
            Some(node) => node,
            None => random.index(2),
        }
    }

    async fn do_something(self: &Rc<Self>) {
        let random = &self.cluster.random;
        let node = self.choose_node();
        let (first_block, blocks) = USED[usize::from(random.below(4) == 0)];
        // Some blocks are wanted by all.
        let blocks = if random.below(3) == 0 { 3 } else { blocks };
        let block = random.below(blocks - 1);
        let (first, count) = match random.below(3) {
            0 => (block * 8 + random.below(8), 1 + random.below(8)),
            _ => (block * 8, 8 * (1 + random.below(2).min(blocks - block - 1))),
        };
        let range = (first_block * 8 + first, count);
        match random.below(40) {
            0..12 => drop(self.read(node, range).await),
            12..15 => drop(self.exchange(node, (range.0, range.1.min(4))).await),
            15..18 => drop(self.unmap(node, range).await),
            18 if self.volume == VOLUMES[1] => self.change_reservations(node).await,
            19 if random.below(6) == 0 => self.leave(node),
            _ => drop(self.write(node, range).await),
        }
    }

    /// Reads; the numbers that the sectors show, if they were read.
    pub(super) async fn read(self: &Rc<Self>, node: usize, range: (u64, u64)) -> Option<Vec<u64>> {
        let operation = self.begin(node, range, Kind::Read);
        let response = self.send(&operation, read(range.0, range.1)).await?;
        if !command::is_good(&response) {
            return None;
        }
        let data = response.data_in.concat();
        match command::numbers_in(self.volume, range.0, &data) {
            Ok(numbers) if numbers.len() as u64 == range.1 => {
                self.cluster.meet("reads");
                self.answered.set(self.answered.get() + 1);
                self.cluster.oracle.end(&operation, |now| Outcome::Read(now, numbers.clone()));
                Some(numbers)
            }
            Ok(_) => {
                self.cluster.fail(format!("a read is short: {operation:?}"));
                None
            }
            Err(problem) => {
                self.cluster.fail(format!("volume {}: {problem}", self.volume.0));
                None
            }
        }
    }

    /// Writes. Whether that was acknowledged.
    pub(super) async fn write(self: &Rc<Self>, node: usize, range: (u64, u64)) -> bool {
        let operation = self.begin(node, range, Kind::Write);
        let command = write(self.volume, operation.number, range.0, range.1);
        let is_good = self.change(&operation, command, "writes").await;
        if !is_good && self.has_conflict(&operation) && self.cluster.random.below(4) == 0 {
            self.cluster.meet("reservation conflicts");
            self.register(node).await;
        }
        is_good
    }

    pub(super) async fn unmap(self: &Rc<Self>, node: usize, range: (u64, u64)) -> bool {
        let operation = self.begin(node, range, Kind::Unmap);
        self.change(&operation, unmap(range.0, range.1), "unmaps").await
    }

    /// COMPARE AND WRITE with what is read before.
    pub(super) async fn exchange(self: &Rc<Self>, node: usize, range: (u64, u64)) -> bool {
        let Some(mut from) = self.read(node, range).await else { return false };
        if self.cluster.random.below(10) == 0 {
            from[0] += 1; // nobody has written this
        }
        let operation = self.begin(node, range, Kind::Exchange(from.clone()));
        let command = compare_and_write(self.volume, &from, operation.number, range.0);
        self.change(&operation, command, "exchanges").await
    }

    async fn change(
        self: &Rc<Self>,
        operation: &Rc<Operation>,
        command: Command,
        what: &'static str,
    ) -> bool {
        let Some(response) = self.send(operation, command).await else { return false };
        let is_good = command::is_good(&response);
        if is_good {
            self.cluster.meet(what);
            self.answered.set(self.answered.get() + 1);
            self.cluster.oracle.end(operation, Outcome::Good);
        } else if let (Some(at), Kind::Exchange(_)) = (command::miscompare(&response), &operation.kind) {
            self.cluster.meet("miscompares");
            self.cluster.oracle.end(operation, |now| Outcome::Differs(now, at));
        } else if command::is_conflict(&response) {
            operation.had_conflict.set(true);
        }
        is_good
    }

    fn has_conflict(&self, operation: &Operation) -> bool {
        operation.had_conflict.get()
    }

    fn begin(&self, node: usize, range: (u64, u64), kind: Kind) -> Rc<Operation> {
        self.cluster.oracle.begin(self.index, node, self.volume, range, kind)
    }

    // Reservations.

    async fn change_reservations(self: &Rc<Self>, node: usize) {
        let random = &self.cluster.random;
        let key = self.key.get();
        match random.below(16) {
            0..3 => self.register(node).await,
            3..7 => drop(self.reserve(node, command::RESERVE, Action::Reserve(key), 0).await),
            7 => drop(self.reserve(node, command::RELEASE, Action::Release(key), 0).await),
            8 if random.below(3) == 0 => {
                drop(self.reserve(node, command::CLEAR, Action::Clear(key), 0).await);
            }
            9 => {
                self.reserve(node, command::REGISTER_AND_IGNORE, Action::Unregister, 0).await;
            }
            10..14 => self.preempt(node).await,
            _ => {
                self.read_keys(node).await;
                self.read_reservation(node).await;
            }
        }
    }

    pub(super) async fn register(self: &Rc<Self>, node: usize) {
        let key = self.cluster.reservations.new_key(self.index);
        self.key.set(key);
        self.reserve(node, command::REGISTER_AND_IGNORE, Action::Register(key), key).await;
    }

    pub(super) async fn take_reservation(self: &Rc<Self>, node: usize) -> bool {
        let key = self.key.get();
        self.reserve(node, command::RESERVE, Action::Reserve(key), 0).await == Some(Answer::Good)
    }

    pub(super) async fn preempt(self: &Rc<Self>, node: usize) {
        let keys = self.read_keys(node).await.unwrap_or_default();
        let others: Vec<u64> = keys.into_iter().filter(|key| key >> 32 != self.index as u64 + 1).collect();
        if others.is_empty() {
            return;
        }
        let victim = others[self.cluster.random.index(others.len())];
        self.preempt_key(node, victim).await;
    }

    /// PREEMPT AND ABORT; whether it was answered GOOD.
    pub(super) async fn preempt_key(self: &Rc<Self>, node: usize, victim: u64) -> bool {
        let Some(preempt) = self.begin_preempt(node, victim).await else { return false };
        self.look_at_fence(node, &preempt).await;
        true
    }

    /// PREEMPT AND ABORT, when it was answered GOOD.
    pub(super) async fn begin_preempt(self: &Rc<Self>, node: usize, victim: u64) -> Option<Rc<Entry>> {
        let action = Action::Preempt(self.key.get(), victim);
        let entry = self.cluster.begin_reservation(self.volume, self.index, node, action);
        let command = command::reserve_out(command::PREEMPT_AND_ABORT, self.key.get(), victim);
        let answer = self.reserve_with(node, command).await;
        let is_good = answer == Some(Answer::Good);
        self.cluster.end_reservation(self.volume, &entry, answer);
        is_good.then(|| {
            self.cluster.meet("preemptions");
            entry
        })
    }

    /// Sees who holds the reservation behind a PREEMPT AND ABORT: its key.
    pub(super) async fn look_at_fence(self: &Rc<Self>, node: usize, preempt: &Entry) -> Option<u64> {
        let holder = self.read_reservation(node).await.and_then(|keys| keys.first().copied())?;
        self.cluster.fence(self.volume, preempt, holder);
        Some(holder)
    }

    pub(super) async fn read_keys(self: &Rc<Self>, node: usize) -> Option<Vec<u64>> {
        self.read_reservations(node, Action::ReadKeys, command::read_keys(), 8).await
    }

    pub(super) async fn read_reservation(self: &Rc<Self>, node: usize) -> Option<Vec<u64>> {
        self.read_reservations(node, Action::ReadReservation, command::read_reservation(), 16).await
    }

    async fn read_reservations(
        self: &Rc<Self>,
        node: usize,
        action: Action,
        command: Command,
        entry_bytes: usize,
    ) -> Option<Vec<u64>> {
        let entry = self.cluster.begin_reservation(self.volume, self.index, node, action);
        let operation = self.begin(node, (0, 0), Kind::Other);
        let response = self.send(&operation, command).await;
        let keys = response
            .filter(command::is_good)
            .map(|response| command::keys_in(&response.data_in.concat(), entry_bytes));
        self.cluster.end_reservation(self.volume, &entry, keys.clone().map(Answer::Keys));
        keys
    }

    async fn reserve(self: &Rc<Self>, node: usize, code: u8, action: Action, new_key: u64) -> Option<Answer> {
        let entry = self.cluster.begin_reservation(self.volume, self.index, node, action);
        let answer = self.reserve_with(node, command::reserve_out(code, self.key.get(), new_key)).await;
        self.cluster.end_reservation(self.volume, &entry, answer.clone());
        self.cluster.tell(|| format!("host {} {action:?}: {answer:?}", self.index));
        if answer == Some(Answer::Good) {
            self.cluster.meet("reservation changes");
        }
        answer
    }

    async fn reserve_with(self: &Rc<Self>, node: usize, command: Command) -> Option<Answer> {
        let operation = self.begin(node, (0, 0), Kind::Other);
        let response = self.send(&operation, command).await?;
        match () {
            () if command::is_good(&response) => Some(Answer::Good),
            () if command::is_conflict(&response) => Some(Answer::Conflict),
            () => None,
        }
    }

    // Sessions.

    /// The session with a node: logs in when there is none.
    async fn session(self: &Rc<Self>, node: usize) -> Option<Rc<Session>> {
        let life = self.cluster.life(node)?;
        let known = self.sessions[node].borrow().clone();
        let is_usable = |session: &&Rc<Session>| session.life.number == life.number && !session.is_left.get();
        if let Some(session) = known.as_ref().filter(is_usable) {
            return Some(session.clone());
        }
        let before = known.filter(|session| session.life.number == life.number);
        let unit = life.data()?.faces.borrow().get(&self.volume).map(|face| face.unit.clone())?;
        let (sender, logged_in) = oneshot::channel();
        let (name, index, volume) =
            (format!("iqn.2007-10.test:host-{}", self.index), self.index as u8, self.volume);
        let at = life.clone();
        life.world.spawn(Box::pin(async move {
            // A session is reinstated when what the old one had begun is over.
            if let Some(before) = before {
                before.leave();
                before.over.until(|| before.is_over.get()).await;
            }
            let initiator = InitiatorPort { name, isid: [0x80, 0, 0, volume.0 as u8, 0, index] };
            let nexus = unit.attach(Nexus { initiator, target_port: target_port(node) });
            let _ = sender.send(Rc::new(Session {
                life: at,
                unit,
                nexus,
                is_left: Cell::default(),
                open: RefCell::default(),
                is_over: Cell::default(),
                over: Signal::default(),
            }));
        }));
        let ended = select(life.ended.wait(), self.cluster.clock.sleep(micros(30_000)));
        let session = match select(logged_in, ended).await {
            Either::Left((session, _)) => session.ok()?,
            Either::Right(_) => return None,
        };
        let other = self.sessions[node].borrow().clone();
        match other {
            // Another command of this host was quicker.
            Some(other) if other.life.number == life.number && !other.is_left.get() => {
                session.leave();
                Some(other)
            }
            _ => {
                *self.sessions[node].borrow_mut() = Some(session.clone());
                Some(session)
            }
        }
    }

    /// Loses the session with a node.
    pub(super) fn leave(&self, node: usize) {
        if let Some(session) = &*self.sessions[node].borrow() {
            self.cluster.meet("sessions lost");
            session.leave();
        }
    }

    /// Sends a command, again after unit attentions. None without an answer.
    async fn send(self: &Rc<Self>, operation: &Rc<Operation>, command: Command) -> Option<Response> {
        for _ in 0..8 {
            let response = self.send_once(operation, command.clone()).await?;
            match command::sense(&response) {
                Some((UNIT_ATTENTION, _)) => {}
                Some((MEDIUM_ERROR, _)) => {
                    self.cluster.fail(format!("a host gets an error of the medium: {operation:?}"));
                    return None;
                }
                _ => return Some(response),
            }
        }
        None
    }

    /// Waits for an answer as long as a host does.
    async fn send_once(self: &Rc<Self>, operation: &Rc<Operation>, command: Command) -> Option<Response> {
        let node = operation.node;
        let session = self.session(node).await?;
        let answer = session.clone().submit(operation, command);
        let patience = self.patience.get().unwrap_or(micros(20_000 + self.cluster.random.below(60_000)));
        let patience = self.cluster.clock.sleep(patience);
        let given_up = select(session.life.ended.wait(), patience);
        match select(answer, given_up).await {
            // What comes over a session that the host has left is not heard.
            Either::Left((answer, _)) => answer.ok().filter(|_| !session.is_left.get()),
            Either::Right((Either::Left(_), _)) => None,
            Either::Right((Either::Right(_), answer)) => {
                drop(answer);
                self.give_up(&session, operation).await;
                None
            }
        }
    }

    /// Aborts a command that hangs, or leaves the session.
    async fn give_up(&self, session: &Rc<Session>, operation: &Rc<Operation>) {
        if self.cluster.random.coin() {
            self.cluster.meet("sessions left");
            return session.leave();
        }
        self.cluster.meet("commands aborted");
        let patience = self.cluster.clock.sleep(micros(20_000));
        if let Either::Right(_) = select(session.clone().abort(operation), patience).await {
            session.leave();
        }
    }
}

impl Session {
    fn delay(&self) -> Duration {
        micros(10 + self.life.cluster.random.below(60))
    }

    fn submit(self: Rc<Self>, operation: &Rc<Operation>, command: Command) -> oneshot::Receiver<Response> {
        let (sender, answer) = oneshot::channel();
        let operation = operation.clone();
        self.open.borrow_mut().insert(operation.number, operation.clone());
        let world = self.life.world.clone();
        world.spawn(Box::pin(async move {
            self.life.world.sleep(self.delay()).await;
            operation.has_arrived.set(true);
            let response = self.execute(&operation, command).await;
            self.life.world.sleep(self.delay()).await;
            self.open.borrow_mut().remove(&operation.number);
            if let Some(response) = response {
                // The host may wait no more.
                let _ = sender.send(response);
            }
        }));
        answer
    }

    async fn execute(&self, operation: &Rc<Operation>, command: Command) -> Option<Response> {
        let oracle = &self.life.cluster.oracle;
        let random = &self.life.cluster.random;
        let attribute = match random.below(60) {
            0 => TaskAttribute::Ordered,
            1 => TaskAttribute::HeadOfQueue,
            _ => TaskAttribute::Simple,
        };
        let task = match self.unit.admit(self.nexus, operation.number, attribute) {
            Ok(task) => task,
            Err(response) => return Some(response),
        };
        // Its data is still on its way.
        if random.below(8) == 0 {
            self.life.world.sleep(micros(random.below(500))).await;
        }
        let mut execution = Box::pin(self.unit.execute(task, command));
        poll_fn(|context| {
            oracle.set_executing(Some(operation.clone()));
            let polled = execution.as_mut().poll(context);
            oracle.set_executing(None);
            polled
        })
        .await
    }

    /// ABORT TASK, until it is answered.
    fn abort(self: Rc<Self>, operation: &Rc<Operation>) -> oneshot::Receiver<()> {
        let (sender, answer) = oneshot::channel();
        let operation = operation.clone();
        let world = self.life.world.clone();
        world.spawn(Box::pin(async move {
            self.life.world.sleep(self.delay()).await;
            while !operation.has_arrived.get() {
                self.life.world.sleep(micros(20)).await;
            }
            if let Some(drain) = self.unit.abort_task(self.nexus, operation.number) {
                drain.wait().await;
            }
            self.life.cluster.acknowledge_end(&operation);
            let _ = sender.send(());
        }));
        answer
    }

    /// The host is gone: the node finds out, and ends what the host had begun.
    fn leave(self: &Rc<Self>) {
        if self.is_left.replace(true) {
            return;
        }
        let session = self.clone();
        self.life.world.spawn(Box::pin(async move {
            session.life.world.sleep(session.delay()).await;
            session.unit.detach(session.nexus).wait().await;
            let open: Vec<_> = session.open.borrow().values().cloned().collect();
            open.iter().for_each(|operation| session.life.cluster.acknowledge_end(operation));
            session.is_over.set(true);
            session.over.notify();
        }));
    }
}
