//! A machine in its room: what outlives it (disks, the log's file, promises, the clock), and its present life.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::member::{Clock, File, Member};
use super::unit::Face;
use super::{Cluster, NAMES, VOLUMES, WITNESS, micros, name, network};
use crate::array::superblock::{LogKey, Uuid};
use crate::array::{Array, FormatOptions};
use crate::base::buffer::BufferPool;
use crate::base::runtime::{Instant, LocalBoxFuture, Runtime};
use crate::base::signal::Signal;
use crate::base::units::{Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::cluster::state::volume::{Transition, VolumeRecord};
use crate::cluster::state::{Command, ControlState};
use crate::disk::{Disk, Operation};
use crate::mirror::{Coverage, Records};
use crate::pair::{Node, NodeServices, Patience, Surroundings};
use crate::sim::disk::SimulatedDisk;
use crate::sim::executor::World;
use crate::sim::fault::{Effect, Fault};
use crate::sim::medium::SimulatedMedium;
use crate::sim::random::Random;
use crate::store::{Store, StoreOptions};

const DISKS: usize = 3;
const DISK_BYTES: u64 = 33 << 20;

/// What outlives a machine.
pub(super) struct Room {
    pub media: Vec<Rc<SimulatedMedium>>,
    pub file: File,
    pub clock: Clock,
    pub was_started: Cell<bool>,
    /// Disks have a pool.
    is_formatted: Cell<bool>,
    has_disks: Cell<bool>,
    stalled_until: Cell<Instant>,
    promised: RefCell<BTreeMap<VolumeId, u32>>,
    life: RefCell<Option<Rc<Life>>>,
}

/// How the life of a machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    PowerFails,
    Killed,
}

/// One life of a machine.
pub(super) struct Life {
    /// No other one has it.
    pub number: u64,
    pub index: usize,
    pub cluster: Rc<Cluster>,
    pub world: Rc<World>,
    pub member: Rc<Member>,
    data: RefCell<Option<Rc<Data>>>,
    pub paused_since: Cell<Option<Instant>>,
    pub ended: Signal,
}

/// The data of a node: its pool, its part in the volumes, what hosts see of them.
pub(super) struct Data {
    pub cluster: Rc<Cluster>,
    life: Weak<Life>,
    pub store: Rc<Store>,
    pub node: Node<Store>,
    /// Through which index of the control state the parts know it.
    pub seen_index: Rc<Cell<u64>>,
    pub faces: Rc<RefCell<BTreeMap<VolumeId, Face>>>,
    /// The node is about to stop: its store counts as gone.
    pub is_leaving: Cell<bool>,
    has_given_back: Cell<bool>,
    /// Something in the state could not be presented yet.
    pub is_awaiting: Cell<bool>,
    /// Volumes with which the node is in sync by the state, and that its disks do not have.
    lost: RefCell<BTreeSet<VolumeId>>,
}

impl Room {
    pub(super) fn new(member: usize, random: &Random) -> Self {
        let medium =
            |disk| SimulatedMedium::new(&format!("{}{disk}", NAMES[member]), DISK_BYTES, random.next());
        Self {
            media: if member == WITNESS { Vec::new() } else { (0..DISKS).map(medium).collect() },
            file: File::new(random),
            clock: Clock::new(random),
            was_started: Cell::new(false),
            is_formatted: Cell::new(false),
            has_disks: Cell::new(true),
            stalled_until: Cell::default(),
            promised: RefCell::default(),
            life: RefCell::default(),
        }
    }

    pub(super) fn life(&self) -> Option<Rc<Life>> {
        self.life.borrow().clone()
    }

    /// Whether there was a life to end.
    pub(super) fn end(&self, how: End) -> bool {
        let Some(life) = self.life.take() else { return false };
        life.world.crash();
        for medium in &self.media {
            match how {
                End::PowerFails => medium.crash(),
                End::Killed => medium.lose_user(),
            }
        }
        if how == End::PowerFails {
            self.file.lose_power();
        }
        life.data.take();
        life.ended.notify();
        true
    }

    /// The disks confirm what they do not keep from now on, or keep again what they confirm.
    pub(super) fn set_lying(&self, are_lying: bool) {
        for medium in &self.media {
            medium.clear_faults();
            if are_lying {
                medium.inject(Fault::always(Operation::Write, Effect::Phantom));
            }
        }
    }

    /// All disks stand still for a while: a grey failure.
    pub(super) fn stall(&self, until: Instant) {
        self.stalled_until.set(until);
        self.media.iter().for_each(|medium| medium.stall_until(until));
    }

    pub(super) fn stalled_until(&self) -> Instant {
        self.stalled_until.get()
    }

    /// Whether all disks of the node are there.
    pub(super) fn has_disks(&self) -> bool {
        self.has_disks.get()
    }

    /// All disks of the node go away, or come back.
    pub(super) fn set_disks(&self, are_there: bool) {
        self.has_disks.set(are_there);
        for medium in &self.media {
            if are_there { medium.reappear() } else { medium.disappear(false) }
        }
    }

    /// New, empty disks take the place of all that there were.
    pub(super) fn replace_disks(&self) {
        assert!(self.life().is_none(), "the machine is on");
        for medium in &self.media {
            medium.truncate(0);
            medium.clear_faults();
        }
        self.is_formatted.set(false);
    }

    async fn open_store(&self, world: &Rc<World>, index: usize) -> Result<Store, String> {
        let disks = || -> Vec<Rc<dyn Disk>> {
            let open = |medium| -> Rc<dyn Disk> { SimulatedDisk::open(medium, world.clone()) };
            self.media.iter().map(open).collect()
        };
        if !self.is_formatted.get() {
            let options = FormatOptions { segment_bytes: Some(1 << 20), overwrite_foreign: true };
            let uuid = Uuid([index as u8 + 1; 16]);
            let formatted = Array::format(&disks(), &options, uuid, LogKey([7; 16])).await;
            formatted.map_err(|error| format!("format: {error}"))?;
        }
        let sink = Rc::new(|_| {});
        let opened = Array::open(disks(), world.clone(), BufferPool::new(1 << 20), sink.clone()).await;
        let (array, _) = opened.map_err(|error| format!("open: {error}"))?;
        let options = StoreOptions {
            checkpoint_log_bytes: 1 << 18,
            forget_holes_through: Version::default(),
            ..StoreOptions::default()
        };
        let opened = Store::open(array, world.clone(), options, sink).await;
        let (store, _) = opened.map_err(|error| format!("open: {error}"))?;
        self.is_formatted.set(true);
        Ok(store)
    }
}

/// A hundredth of the second for which a disk may complete nothing.
const LONGEST_SILENCE: Duration = Duration::from_millis(10);

/// A hundredth of the second between two records of what was acknowledged.
const WATERMARK_PERIOD: Duration = Duration::from_millis(10);

/// A hundredth of what a local network gets.
const PATIENCE: Patience = Patience {
    replica: hundredth(Patience::LAN.replica),
    primary: hundredth(Patience::LAN.primary),
    home: hundredth(Patience::LAN.home),
    hand_over: hundredth(Patience::LAN.hand_over),
    proposal: hundredth(Patience::LAN.proposal),
    settled: hundredth(Patience::LAN.settled),
    tick: hundredth(Patience::LAN.tick),
};

const fn hundredth(of: Duration) -> Duration {
    Duration::from_nanos(of.as_nanos() as u64 / 100)
}

impl Life {
    pub(super) fn start(cluster: &Rc<Cluster>, index: usize) -> Result<(), String> {
        let room = &cluster.rooms[index];
        let world = cluster.executor.world(NAMES[index]);
        let member = Member::start(cluster, index, &world)?;
        cluster.lives.set(cluster.lives.get() + 1);
        let life = Rc::new(Self {
            number: cluster.lives.get(),
            index,
            cluster: cluster.clone(),
            world: world.clone(),
            member,
            data: RefCell::default(),
            paused_since: Cell::default(),
            ended: Signal::default(),
        });
        *room.life.borrow_mut() = Some(life.clone());
        if index != WITNESS {
            world.spawn(Box::pin(async move {
                if let Err(error) = Data::start(&life).await {
                    life.cluster.tell(|| format!("{}: {error}", NAMES[index]));
                    life.cluster.meet("pools that could not be opened");
                    life.member.store.set(StoreHealth::Gone);
                }
            }));
        }
        Ok(())
    }

    pub(super) fn data(&self) -> Option<Rc<Data>> {
        self.data.borrow().clone()
    }
}

impl Data {
    async fn start(life: &Rc<Life>) -> Result<(), String> {
        let (cluster, index) = (life.cluster.clone(), life.index);
        let store = Rc::new(cluster.rooms[index].open_store(&life.world, index).await?);
        let seen_index = Rc::new(Cell::new(0));
        let faces: Rc<RefCell<BTreeMap<VolumeId, Face>>> = Rc::default();
        let newest = {
            let store = store.clone();
            move |id| store.newest(id).unwrap_or_default()
        };
        let node = Node::new(NodeServices {
            own: name(index),
            peer: name(1 - index),
            life: life.member.life,
            store: store.clone(),
            records: Rc::new(Kept { store: store.clone() }),
            newest: Box::new(newest),
            runtime: life.world.clone(),
            buffers: BufferPool::new(1 << 20),
            surroundings: Rc::new(Around { life: Rc::downgrade(life), seen_index: seen_index.clone() }),
            hosts: Rc::new(super::unit::Presented { life: Rc::downgrade(life), faces: faces.clone() }),
            patience: PATIENCE,
        });
        let data = Rc::new(Self {
            cluster: cluster.clone(),
            life: Rc::downgrade(life),
            store,
            node,
            seen_index,
            faces,
            is_leaving: Cell::default(),
            has_given_back: Cell::default(),
            is_awaiting: Cell::default(),
            lost: RefCell::default(),
        });
        *life.data.borrow_mut() = Some(data.clone());
        life.world.spawn(Box::pin(network::call(data.clone())));
        life.world.spawn(Box::pin(data.follow()));
        Ok(())
    }

    /// The life that it belongs to; for tasks of it, which end with it.
    pub(super) fn life(&self) -> Rc<Life> {
        self.life.upgrade().expect("a task of a life outlives it")
    }

    /// Follows the control state, the lease and the reachability of the peer.
    async fn follow(self: Rc<Self>) {
        let life = self.life();
        let mut told_at = life.world.now();
        loop {
            let changed = life.member.changed.wait();
            let mut delay = micros(self.cluster.random.below(self.cluster.setting.handling));
            if life.member.state().applied_index() > self.seen_index.get() {
                delay = self.cluster.hold_next_state[life.index].take().unwrap_or(delay);
            }
            life.world.sleep(delay).await;
            let state = life.member.state();
            if state.applied_index() > self.seen_index.get() || self.is_awaiting.get() {
                self.take_state(&state).await;
            }
            self.tell_health();
            self.node.look_again();
            if life.world.now().since(told_at) >= WATERMARK_PERIOD {
                told_at = life.world.now();
                let watermarks = self.node.watermarks();
                if !watermarks.is_empty() {
                    drop(life.member.propose(Command::RecordWatermarks { watermarks }));
                }
            }
            futures::future::select(changed, life.world.sleep(PATIENCE.tick)).await;
        }
    }

    /// Tells everybody how the store is. When it is gone the lease is given back.
    pub(super) fn tell_health(&self) {
        let is_ending = self.is_leaving.get() || self.store.is_offline();
        let health = if is_ending || !self.lost.borrow().is_empty() {
            StoreHealth::Gone
        } else if self.store.array().stalled_for() >= LONGEST_SILENCE {
            StoreHealth::Stuck
        } else {
            StoreHealth::Well
        };
        let member = &self.life().member;
        let before = member.store.replace(health);
        if is_ending && !self.has_given_back.replace(true) {
            member.give_back();
        }
        if health != before {
            self.cluster.tell(|| format!("the store of {} is {health:?}", NAMES[self.life().index]));
        }
    }

    /// Makes a volume known to the pool. What is new to a pool that joins an older volume lacks everything; a clone is made
    /// where that of which it is made is whole.
    pub(super) async fn create_replica(
        &self,
        state: &ControlState,
        record: &VolumeRecord,
    ) -> Result<(), String> {
        let is_decreed = self.store.newest(record.id).is_some() && record.began_by == Some(Transition::Force);
        let created = self.create(state, record).await;
        let is_whole = Kept { store: self.store.clone() }.coverage(record.id) == Coverage::Whole;
        if !is_whole && !is_decreed && record.in_sync.contains(&name(self.life().index)) {
            self.cluster.meet("volumes that the disks have not any more");
            self.lost.borrow_mut().insert(record.id);
        }
        created
    }

    /// What was lost is no matter any more once the other node goes on without this one.
    pub(super) fn forget_lost(&self, state: &ControlState) {
        let own = name(self.life().index);
        let is_in_sync =
            |id: &VolumeId| state.volume_by_id(*id).is_some_and(|record| record.in_sync.contains(&own));
        self.lost.borrow_mut().retain(is_in_sync);
    }

    async fn create(&self, state: &ControlState, record: &VolumeRecord) -> Result<(), String> {
        if self.store.newest(record.id).is_some() {
            return Ok(());
        }
        let life = self.life();
        let own = name(life.index);
        let is_promised = self.cluster.rooms[life.index].promised.borrow().contains_key(&record.id);
        let is_new = !is_promised && record.in_sync.contains(&own) && record.epoch <= 1;
        let coverage = if is_new { Coverage::Whole } else { Coverage::through(Version::default()) };
        let (version, coverage) = (Version::default(), coverage.encode());
        let created = match &record.origin {
            None => self.store.put_volume(record.id, version, &coverage).await,
            Some(origin) => {
                let kept = Kept { store: self.store.clone() };
                let is_member = |of: &VolumeRecord| of.in_sync.contains(&own);
                let is_whole = state.volume_by_id(origin.volume).is_some_and(is_member)
                    && kept.coverage(origin.volume) == Coverage::Whole;
                if !is_whole {
                    return Err("what it is a clone of is not up to date on this node".to_owned());
                }
                self.cluster.meet("clones made");
                self.store.clone_volume(record.id, version, &coverage, origin.volume, origin.version()).await
            }
        };
        created.map_err(|error| error.to_string())
    }
}

/// The cluster as a node's data sees it.
struct Around {
    life: Weak<Life>,
    seen_index: Rc<Cell<u64>>,
}

impl Surroundings for Around {
    fn propose(&self, command: Command) {
        if let Some(life) = self.life.upgrade() {
            life.cluster.note_promise(life.index, &command);
            life.world.clone().spawn(Box::pin(async move { drop(life.propose(command).await) }));
        }
    }

    fn has_lease(&self) -> bool {
        let has_lease = |life: Rc<Life>| {
            life.member.store.get() != StoreHealth::Gone && life.member.has_lease(self.seen_index.get())
        };
        self.life.upgrade().is_some_and(has_lease)
    }

    fn is_peer_alive(&self) -> bool {
        self.life.upgrade().is_some_and(|life| life.member.is_linked_to(1 - life.index))
    }

    fn stores(&self) -> (StoreHealth, StoreHealth) {
        let Some(life) = self.life.upgrade() else { return Default::default() };
        (life.member.store.get(), life.member.peer_stores[1 - life.index].get())
    }

    fn peer_trouble(&self) -> String {
        "is away".to_owned()
    }

    fn promised(&self, volume: VolumeId) -> u32 {
        let Some(life) = self.life.upgrade() else { return u32::MAX };
        life.cluster.rooms[life.index].promised.borrow().get(&volume).copied().unwrap_or(0)
    }

    fn save_promise(&self, volume: VolumeId, epoch: u32) -> LocalBoxFuture<'static, bool> {
        let life = self.life.upgrade();
        Box::pin(async move {
            let Some(life) = life else { return false };
            let at_random = micros(life.world.random() % 300);
            let held =
                if volume == VOLUMES[0] { life.cluster.hold_next_promise[life.index].take() } else { None };
            life.world.sleep(held.unwrap_or(at_random)).await;
            let mut promised = life.cluster.rooms[life.index].promised.borrow_mut();
            let saved = promised.entry(volume).or_insert(0);
            *saved = epoch.max(*saved);
            true
        })
    }

    fn event(&self, _volume: &VolumeRecord, message: String) {
        if let Some(life) = self.life.upgrade() {
            life.cluster.tell(|| format!("{} says: {message}", NAMES[life.index]));
        }
    }
}

/// What a replica keeps in its store.
struct Kept {
    store: Rc<Store>,
}

impl Records for Kept {
    fn coverage(&self, volume: VolumeId) -> Coverage {
        let record = self.store.volume_record(volume);
        let coverage = record.and_then(|(record, _)| Coverage::decode(&record));
        coverage.unwrap_or_else(|| Coverage::through(Version::default()))
    }

    fn save_coverage(&self, volume: VolumeId, coverage: Coverage) -> LocalBoxFuture<'static, bool> {
        let (store, known) = (self.store.clone(), self.store.volume_record(volume));
        Box::pin(async move {
            let Some((_, before)) = known else { return false };
            let version = Version { sequence: before.sequence + 1, ..before };
            store.put_volume(volume, version, &coverage.encode()).await.is_ok()
        })
    }

    fn settled(&self, volume: VolumeId, version: Version) {
        self.store.keep_holes_after(volume, version);
    }

    fn unix_ms(&self) -> u64 {
        1
    }
}
