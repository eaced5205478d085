//! A member of the quorum at work, as `peer::quorum` runs it: its clock, its log on a file that a power failure
//! cuts, its ticks, what it says to the rest of its machine.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;

use super::room::Life;
use super::{Cluster, WITNESS, micros, name};
use crate::base::runtime::Runtime;
use crate::base::signal::Signal;
use crate::cluster::lease::{LeaseTerms, StoreHealth};
use crate::cluster::quorum::message::Message;
use crate::cluster::quorum::{Effect, Lease, PeerInfo, ProposalError, Quorum, SeatKind, Setup, View};
use crate::cluster::raft::MemberId;
use crate::cluster::raft::log::{Identity, LogError, Medium, Recovered, recover};
use crate::cluster::raft::member::Timing;
use crate::cluster::state::{ClusterUuid, Command, ControlState, Outcome};
use crate::sim::executor::World;
use crate::sim::random::Random;

/// A tick of consensus: a tenth of a second.
const TICK: Duration = micros_const(1000);
/// How many nanoseconds here are a millisecond of the cluster.
const NANOS_A_MILLI: u64 = 10_000;
const CLUSTER: [u8; 16] = [7; 16];

const fn micros_const(count: u64) -> Duration {
    Duration::from_micros(count)
}

/// The file of a member's log.
#[derive(Clone)]
pub(super) struct File {
    state: Rc<RefCell<FileState>>,
    random: Rc<Random>,
}

#[derive(Default)]
struct FileState {
    bytes: Vec<u8>,
    synced: usize,
    /// Fails from now on.
    is_broken: bool,
}

impl File {
    pub(super) fn new(random: &Random) -> Self {
        Self { state: Rc::default(), random: Rc::new(random.fork()) }
    }

    /// Of what was not synced, a first part is kept, and its last sector may be torn.
    pub(super) fn lose_power(&self) {
        let state = &mut *self.state.borrow_mut();
        let unsynced = state.bytes.len() - state.synced;
        let kept = state.synced + self.random.index(unsynced + 1);
        state.bytes.truncate(kept);
        if kept > state.synced && self.random.below(4) == 0 {
            let torn = state.synced + self.random.index(kept - state.synced);
            state.bytes[torn] ^= 0xa5;
        }
        state.synced = state.bytes.len();
    }

    /// Nothing that was not synced will be kept.
    pub(super) fn forget_unsynced(&self) {
        let state = &mut *self.state.borrow_mut();
        state.bytes.truncate(state.synced);
    }

    /// All of it, as a snapshot of a virtual machine keeps it.
    pub(super) fn contents(&self) -> Vec<u8> {
        self.state.borrow().bytes.clone()
    }

    pub(super) fn put_back(&self, bytes: Vec<u8>) {
        let synced = bytes.len();
        *self.state.borrow_mut() = FileState { bytes, synced, is_broken: false };
    }
}

impl Medium for File {
    fn read(&mut self) -> Result<Vec<u8>, LogError> {
        Ok(self.state.borrow().bytes.clone())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let state = &mut *self.state.borrow_mut();
        if state.is_broken {
            return Err(LogError::Medium("broken".to_owned()));
        }
        state.bytes.extend(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        let state = &mut *self.state.borrow_mut();
        state.synced = state.bytes.len();
        Ok(())
    }

    fn replace(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let is_broken = self.state.borrow().is_broken;
        *self.state.borrow_mut() = FileState { bytes: bytes.to_vec(), synced: bytes.len(), is_broken };
        Ok(())
    }
}

/// The clock of a machine: it drifts within the bounds, and starts anywhere.
pub(super) struct Clock {
    /// Parts in a thousand.
    rate: i64,
    offset_ms: u64,
}

impl Clock {
    pub(super) fn new(random: &Random) -> Self {
        Self { rate: random.below(19) as i64 - 9, offset_ms: 1000 + random.below(1 << 30) }
    }

    fn now_ms(&self, world: &World) -> u64 {
        let nanos = world.now().0 as i64;
        self.offset_ms + (nanos + nanos / 1000 * self.rate) as u64 / NANOS_A_MILLI
    }
}

/// What goes over a link.
pub(super) enum Frame {
    /// A message of the quorum.
    Message(Vec<u8>),
    /// The sender's store is like this.
    Ping(StoreHealth),
}

const PING_TICKS: u32 = 3;

type Answer = Result<Outcome, ProposalError>;

/// One life of a member.
pub(super) struct Member {
    index: usize,
    /// Its random number, under which it proposes.
    pub life: u64,
    cluster: Rc<Cluster>,
    world: Rc<World>,
    quorum: RefCell<Quorum<File>>,
    lease: Cell<Lease>,
    state: RefCell<Arc<ControlState>>,
    /// The state, the lease or a link is another one.
    pub changed: Signal,
    /// How the node's store is, and those of the others as was last heard.
    pub store: Cell<StoreHealth>,
    pub peer_stores: [Cell<StoreHealth>; 3],
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<Answer>>>,
    is_linked: [Cell<bool>; 3],
}

impl Member {
    /// Goes on with its log, or begins a new life: the first one of the first node founds the cluster.
    pub(super) fn start(cluster: &Rc<Cluster>, index: usize, world: &Rc<World>) -> Result<Rc<Self>, String> {
        let room = &cluster.rooms[index];
        let timing = Timing { election_ticks: 10 + 3 * index, heartbeat_ticks: 2 };
        let identity = || Identity { member: MemberId(cluster.random.next().max(1)), cluster: CLUSTER };
        let newest_format = cluster.network.newest_format(index);
        use crate::cluster::raft::member::Member as Consensus;
        let opened = match recover(room.file.clone()) {
            Ok(Recovered::Whole(log, image)) => Consensus::open(log, image, timing),
            Ok(Recovered::Blank(medium)) if index == 0 && !room.was_started.get() => Consensus::found(
                medium,
                identity(),
                super::NAMES[0],
                &founding_state(newest_format).encode(),
                timing,
            ),
            Ok(Recovered::Blank(medium)) => Consensus::join(medium, identity(), timing),
            Err(error) => return Err(format!("the log of {}: {error}", super::NAMES[index])),
        };
        let member = opened.map_err(|error| format!("the log of {}: {error}", super::NAMES[index]))?;
        room.was_started.set(true);
        let life = cluster.random.next();
        let setup =
            Setup { name: name(index), kind: kind(index), life, terms: LeaseTerms::LAN, newest_format };
        let now_ms = room.clock.now_ms(world);
        let quorum = Quorum::new(member, setup, now_ms);
        let state = RefCell::new(quorum.state().clone());
        let member = Rc::new(Self {
            index,
            life,
            cluster: cluster.clone(),
            world: world.clone(),
            quorum: RefCell::new(quorum),
            lease: Cell::default(),
            state,
            changed: Signal::default(),
            store: Cell::default(),
            peer_stores: Default::default(),
            waiting: RefCell::default(),
            is_linked: Default::default(),
        });
        member.take_effects();
        world.spawn(Box::pin(member.clone().run()));
        Ok(member)
    }

    async fn run(self: Rc<Self>) {
        self.world.sleep(micros(self.cluster.random.below(1000))).await;
        let (mut told, mut next_ping) = (StoreHealth::Well, 0);
        loop {
            let (now_ms, store) = (self.now_ms(), self.store.get());
            {
                let mut quorum = self.quorum.borrow_mut();
                quorum.set_store_health(store == StoreHealth::Well);
                quorum.handle_tick(now_ms);
            }
            self.take_effects();
            next_ping = (next_ping + 1) % PING_TICKS;
            if next_ping == 0 || store != told {
                told = store;
                for other in (0..3).filter(|other| *other != self.index) {
                    self.send(other, Frame::Ping(store));
                }
            }
            self.world.sleep(TICK).await;
        }
    }

    /// The present by this machine's clock, in milliseconds of the cluster.
    pub(super) fn now_ms(&self) -> u64 {
        self.cluster.rooms[self.index].clock.now_ms(&self.world)
    }

    pub(super) fn has_lease(&self, seen_index: u64) -> bool {
        self.lease.get().is_held(self.now_ms(), seen_index)
    }

    pub(super) fn state(&self) -> Arc<ControlState> {
        self.state.borrow().clone()
    }

    pub(super) fn view(&self) -> View {
        self.quorum.borrow().view()
    }

    pub(super) fn info(&self) -> PeerInfo {
        let newest_format = self.cluster.network.newest_format(self.index);
        PeerInfo { member: self.view().member, kind: kind(self.index), newest_format }
    }

    pub(super) fn is_linked_to(&self, other: usize) -> bool {
        self.is_linked[other].get()
    }

    pub(super) fn set_peer(&self, other: usize, info: Option<PeerInfo>) {
        if !self.is_linked[other].replace(info.is_some()) {
            self.peer_stores[other].set(StoreHealth::Well);
        }
        self.quorum.borrow_mut().handle_peer(name(other), info);
        self.take_effects();
        self.changed.notify();
    }

    pub(super) fn handle_frame(&self, from: usize, frame: Frame) {
        let message = match frame {
            Frame::Message(bytes) => Message::decode(&bytes),
            Frame::Ping(store) => {
                self.peer_stores[from].set(store);
                return self.changed.notify();
            }
        };
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                return self.cluster.fail(format!("a message of the quorum cannot be read: {error}"));
            }
        };
        let now_ms = self.now_ms();
        let taken = self.quorum.borrow_mut().handle_message(now_ms, &name(from), message);
        if let Err(error) = taken {
            self.cluster.fail(format!("a message of consensus cannot be read: {error}"));
        }
        self.take_effects();
    }

    /// What came of a proposal is told when this life lasts so long.
    pub(super) fn propose(&self, command: Command) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let now_ms = self.now_ms();
        let number = self.quorum.borrow_mut().propose(now_ms, &command);
        self.waiting.borrow_mut().insert(number, sender);
        self.take_effects();
        receiver
    }

    pub(super) fn give_back(&self) {
        let now_ms = self.now_ms();
        self.quorum.borrow_mut().give_back(now_ms);
        self.take_effects();
    }

    pub(super) fn replace_member(&self, seat: usize) {
        self.quorum.borrow_mut().replace_member(name(seat));
        self.take_effects();
    }

    fn send(&self, to: usize, frame: Frame) {
        // Its machine is not known yet while it starts; nobody is linked then.
        let life = self.cluster.life(self.index);
        if let Some(life) = life.filter(|life| Rc::ptr_eq(&life.world, &self.world)) {
            self.cluster.network.send(&life, to, frame);
        }
    }

    fn take_effects(&self) {
        loop {
            let effect = self.quorum.borrow_mut().poll_effect();
            match effect {
                None => break,
                Some(Effect::Send { to, message }) => {
                    self.send(super::member_named(&to), Frame::Message(message.encode()));
                }
                Some(Effect::StateChanged(state)) => {
                    self.cluster.saw(self.index, &state);
                    *self.state.borrow_mut() = state;
                    self.changed.notify();
                }
                Some(Effect::LeaseChanged(lease)) => {
                    self.lease.set(lease);
                    self.changed.notify();
                }
                Some(Effect::Decided { number, result }) => {
                    if matches!(result, Err(ProposalError::Unknown)) {
                        self.cluster.meet("proposals of unknown fate");
                    }
                    if let Some(waiting) = self.waiting.borrow_mut().remove(&number) {
                        // Who proposes an epoch does not wait.
                        let _ = waiting.send(result);
                    }
                }
            }
        }
        if let Some(failure) = self.quorum.borrow().view().failure {
            self.cluster.tell(|| format!("{} takes no part: {failure}", super::NAMES[self.index]));
        }
    }
}

impl Life {
    /// Proposes what the data asks for, which lies in a queue for a moment.
    pub(super) async fn propose(self: Rc<Self>, command: Command) -> Option<Answer> {
        let cluster = &self.cluster;
        let mut delay = micros(cluster.random.below(cluster.setting.handling));
        let is_watched =
            matches!(&command, Command::BeginEpoch { volume, .. } if *volume == super::VOLUMES[0]);
        if matches!(command, Command::BeginEpoch { .. }) {
            let of_first = if is_watched { cluster.hold_next_of_first[self.index].take() } else { None };
            if let Some(held) = of_first.or_else(|| cluster.hold_next_proposal[self.index].take()) {
                delay = held;
            } else if !cluster.setting.is_orderly && cluster.random.below(25) == 0 {
                cluster.meet("late proposals");
                delay = micros(cluster.random.below(120_000));
            }
        }
        self.world.sleep(delay).await;
        cluster.tell(|| format!("{} proposes {command:?}", super::NAMES[self.index]));
        let decided = self.member.propose(command.clone());
        if is_watched && self.index == 0 {
            for (from, to) in cluster.cut_after_proposal.take() {
                cluster.set_passes(*from, *to, false);
            }
        }
        let decided = decided.await.ok();
        if let Some(Err(error)) = &decided {
            cluster.tell(|| format!("{}: {error:?} of {command:?}", super::NAMES[self.index]));
        }
        decided
    }
}

fn kind(index: usize) -> SeatKind {
    if index == WITNESS { SeatKind::Witness } else { SeatKind::Node }
}

fn founding_state(format: u32) -> ControlState {
    let uuid = ClusterUuid(CLUSTER);
    let create = Command::CreateCluster { name: "demo".parse().unwrap(), uuid, created_unix_ms: 1 };
    ControlState::in_format(format).beginning_with([create]).unwrap()
}
