//! Two nodes with real stores on simulated disks, a stream that delays, breaks and delivers late, the real
//! control state, crashes of either side, take-overs, moves, epochs that change under load; and an oracle.
//!
//! Each client has blocks of its own and one operation on them at a time, so a block is its last
//! acknowledged value or one that was in flight when its server went, and stays what it was read as. In the
//! end the two stores are equal, block by block, in all snapshots (`snapshots`) and now.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};

use super::super::mutant::{self, Mutant};
use super::super::*;
use crate::array::superblock::{LogKey, Uuid};
use crate::array::{Array, FormatOptions};
use crate::base::buffer::{AlignedBuf, BufferPool};
use crate::base::runtime::{LocalBoxFuture, Runtime};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::cluster::name::NodeName;
use crate::cluster::state::history::CommonPoint;
use crate::cluster::state::volume::{Redundancy, SectorSize, Transition, VolumeRecord};
use crate::cluster::state::{ClusterUuid, Command, ControlState};
use crate::disk::Disk;
use crate::sim::disk::SimulatedDisk;
use crate::sim::executor::{Executor, World};
use crate::sim::medium::SimulatedMedium;
use crate::sim::random::Random;
use crate::store::interface::{BlockStore, ChangeLog};
use crate::store::{Store, StoreOptions};
use crate::volume::device::{BlockDevice, DeviceGeometry};
use crate::volume::{Volume, VolumeParameters, VolumeServices};

mod client;
mod node;
mod snapshots;

use self::node::{Life, Node, Primary, newest_in};

const VOLUME: VolumeId = VolumeId(1);
const NAMES: [&str; 2] = ["a", "b"];
const CLIENTS: u64 = 5;
/// Blocks of a client, and how far apart clients are.
const BLOCKS: u64 = 24;
const APART: u64 = 3000;

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) writes: u64,
    pub(super) reads: u64,
    pub(super) crashes: u64,
    pub(super) breaks: u64,
    pub(super) take_overs: u64,
    pub(super) moves: u64,
    pub(super) epochs: u64,
    pub(super) resyncs: u64,
    pub(super) broken_resyncs: u64,
    pub(super) copied_blocks: u64,
    pub(super) take_overs_behind: u64,
    pub(super) snapshots: u64,
    pub(super) views: u64,
}

struct Cluster {
    control: RefCell<ControlState>,
    sites: [Site; 2],
    /// By client and block: what it may be.
    oracle: RefCell<Vec<Vec<u64>>>,
    /// By client and block: the value of a write without an answer.
    in_flight: RefCell<Vec<Option<u64>>>,
    snapshots: RefCell<Vec<snapshots::Known>>,
    turns: Cell<u64>,
    /// No connection comes up.
    is_cut: Cell<bool>,
    random: Random,
    next_stamp: Cell<u64>,
    is_ending: Cell<bool>,
    problem: RefCell<Option<String>>,
    /// What happened, for whoever looks into a seed: printed when `HISTORY` is set.
    history: RefCell<Vec<String>>,
    totals: Cell<Totals>,
}

struct Site {
    media: Vec<Rc<SimulatedMedium>>,
    /// Durable.
    promised: Cell<u32>,
    life: RefCell<Option<Rc<Life>>>,
}

fn micros(count: u64) -> Duration {
    Duration::from_micros(count)
}

fn name(node: usize) -> NodeName {
    NAMES[node].parse().unwrap()
}

/// Runs one seed.
pub(super) fn run(seed: u64) -> Result<(Totals, u64), String> {
    let executor = Executor::new(seed);
    let random = Random::new(seed ^ 0x3177);
    let cluster = Cluster::new(&random);
    let outcome = executor.block_on(cluster.clone().live(&executor));
    let outcome = outcome.map_err(|stuck| format!("seed {seed}: {stuck}"))?;
    let outcome = cluster.problem.take().map_or(outcome, Err);
    if outcome.is_err() && std::env::var("HISTORY").is_ok() {
        cluster.history.borrow().iter().for_each(|line| println!("{line}"));
    }
    outcome.map_err(|problem| format!("seed {seed}: {problem}"))?;
    for site in &cluster.sites {
        // Lives and the cluster hold each other.
        if let Some(life) = site.life.take() {
            life.primary.take();
            life.replicas.take();
        }
    }
    Ok((cluster.totals.get(), executor.trace_hash()))
}

impl Cluster {
    fn new(random: &Random) -> Rc<Self> {
        let site = |node: usize| Site {
            media: (0..2)
                .map(|disk| SimulatedMedium::new(&format!("{node}{disk}"), 17 << 20, random.next()))
                .collect(),
            promised: Cell::new(0),
            life: RefCell::default(),
        };
        let mut control = ControlState::new();
        let mut apply = |command| control.apply(control.applied_index() + 1, command).map(|_| ()).unwrap();
        let uuid = ClusterUuid([1; 16]);
        apply(Command::CreateCluster { name: "demo".parse().unwrap(), uuid, created_unix_ms: 0 });
        NAMES.iter().for_each(|name| apply(Command::AddNode { name: name.parse().unwrap() }));
        apply(Command::CreateVolume {
            name: "x".parse().unwrap(),
            size_bytes: CLIENTS * APART * BLOCK_SIZE as u64,
            sector: SectorSize::Emulated512,
            redundancy: Redundancy::Mirrored,
            primary: name(0),
            created_unix_ms: 0,
        });
        Rc::new(Self {
            control: RefCell::new(control),
            sites: [site(0), site(1)],
            oracle: RefCell::new(vec![vec![0]; (CLIENTS * BLOCKS) as usize]),
            in_flight: RefCell::new(vec![None; (CLIENTS * BLOCKS) as usize]),
            snapshots: RefCell::default(),
            turns: Cell::default(),
            is_cut: Cell::new(false),
            random: random.fork(),
            next_stamp: Cell::new(1),
            is_ending: Cell::new(false),
            problem: RefCell::default(),
            history: RefCell::default(),
            totals: Cell::default(),
        })
    }

    async fn live(self: Rc<Self>, executor: &Executor) -> Result<(), String> {
        let clock = executor.world("clock");
        for node in 0..2 {
            self.start(executor, node, true).await?;
        }
        for _ in 0..10 + self.random.below(10) {
            self.tend().await;
            clock.sleep(micros(self.random.below(12_000))).await;
            self.tend().await;
            match self.random.below(11) {
                0..3 => self.break_wire(),
                3..5 => self.crash(executor, self.random.index(2)).await,
                5 => self.take_over().await,
                6 => self.take_over_from_a_new_epoch(&clock).await,
                7 => self.hand_over().await,
                8 => self.both_crash(executor).await?,
                9 => self.take_over_from_a_new_epoch(&clock).await,
                _ => {}
            }
            for node in 0..2 {
                if self.life(node).is_none() && self.random.below(3) > 0 {
                    self.start(executor, node, false).await?;
                }
            }
            if let Some(problem) = self.problem.take() {
                return Err(problem);
            }
        }
        self.heal(executor, &clock).await
    }

    /// Faults are over: both nodes come back, get equal, and hold what was acknowledged.
    async fn heal(self: &Rc<Self>, executor: &Executor, clock: &World) -> Result<(), String> {
        for node in 0..2 {
            if self.life(node).is_none() {
                self.start(executor, node, false).await?;
            }
        }
        for turn in 0.. {
            self.tend().await;
            clock.sleep(micros(3000)).await;
            if let Some(problem) = self.problem.take() {
                return Err(problem);
            }
            if self.record().in_sync.len() == 2 && self.serving().is_some() {
                break;
            }
            if turn > 2000 {
                return Err(format!("does not heal: {:?}", self.record()));
            }
        }
        self.is_ending.set(true);
        let mut settled = 0;
        for turn in 0.. {
            self.tend().await;
            clock.sleep(micros(3000)).await;
            let is_quiet = self.record().in_sync.len() == 2
                && self.serving().is_some_and(|p| p.volume.in_flight_count() == 0 && p.mirror.is_level());
            settled = if is_quiet { settled + 1 } else { 0 };
            if settled == 3 {
                break;
            }
            if turn > 2000 {
                return Err(format!("does not get quiet: {:?}", self.record()));
            }
        }
        let serving = self.serving().ok_or("nobody serves")?;
        for index in 0..(CLIENTS * BLOCKS) as usize {
            serving.check_read(index, 1).await;
        }
        serving.check_all_views().await;
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        self.compare().await
    }

    /// I24.
    async fn compare(&self) -> Result<(), String> {
        let stores = [0, 1].map(|node| self.life(node).map(|life| life.store.clone()));
        let [Some(one), Some(other)] = stores else { return Err("a node is gone".to_owned()) };
        self.compare_snapshots(&one, &other).await?;
        for client in 0..CLIENTS {
            let address = BlockAddress(client * APART);
            let read = async |store: &Store| {
                let pieces = store.read(VOLUME, address, BLOCKS).await.map_err(|error| error.to_string())?;
                let runs = store.allocation(VOLUME, address, APART, 10_000).await;
                Ok::<_, String>((pieces.concat(), runs.map_err(|error| error.to_string())?))
            };
            let (one, other) = (read(&one).await?, read(&other).await?);
            if one.0 != other.0 {
                let block =
                    one.0.chunks(BLOCK_SIZE).zip(other.0.chunks(BLOCK_SIZE)).position(|(a, b)| a != b);
                let at = address.offset(block.unwrap_or(0) as u64);
                let versions = [0, 1].map(|node| self.life(node).map(|life| life.store.clone()));
                for store in versions.into_iter().flatten() {
                    let changes = store.changed_since(VOLUME, Version::default(), at, 1).await;
                    self.tell(|| format!("{at:?}: {changes:?}"));
                }
                return Err(format!("the replicas differ, client {client}, block {block:?}"));
            }
            if one.1 != other.1 {
                return Err(format!("what is mapped differs: {:?} and {:?}", one.1, other.1));
            }
        }
        Ok(())
    }

    fn record(&self) -> VolumeRecord {
        self.control.borrow().volume_by_id(VOLUME).unwrap().clone()
    }

    /// The epoch that has begun, if it has.
    fn commit(
        &self,
        expected_epoch: u32,
        transition: Transition,
        primary: usize,
        both: bool,
        first_sequence: u64,
    ) -> Option<u32> {
        let in_sync =
            if both { BTreeSet::from(NAMES.map(|n| n.parse().unwrap())) } else { [name(primary)].into() };
        let begin = Command::BeginEpoch {
            volume: VOLUME,
            expected_epoch,
            transition,
            primary: name(primary),
            in_sync,
            first_sequence,
            reason: String::new(),
        };
        let mut control = self.control.borrow_mut();
        let index = control.applied_index() + 1;
        let previous = control.volume_by_id(VOLUME)?.epoch_starts.values().next_back().copied();
        control.apply(index, begin).ok()?;
        self.tell(|| {
            format!("{transition:?} {primary} {both} from {first_sequence} -> {}", expected_epoch + 1)
        });
        self.note(|totals| {
            totals.epochs += 1;
            totals.take_overs_behind += u64::from(Some(first_sequence) < previous);
        });
        Some(expected_epoch + 1)
    }

    fn life(&self, node: usize) -> Option<Rc<Life>> {
        self.sites[node].life.borrow().clone()
    }

    fn primary(&self, node: usize) -> Option<Rc<Primary>> {
        self.life(node)?.primary.borrow().clone().filter(|primary| !primary.is_stopped.get())
    }

    fn serving(&self) -> Option<Rc<Primary>> {
        (0..2).find_map(|node| self.primary(node)).filter(|primary| primary.is_serving.get())
    }

    fn note(&self, change: impl FnOnce(&mut Totals)) {
        let mut totals = self.totals.get();
        change(&mut totals);
        self.totals.set(totals);
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        self.history.borrow_mut().push(what());
    }

    fn fail(&self, problem: String) {
        self.problem.borrow_mut().get_or_insert(problem);
    }

    async fn start(self: &Rc<Self>, executor: &Executor, node: usize, is_new: bool) -> Result<(), String> {
        let world = executor.world(NAMES[node]);
        let disks = |world: &Rc<World>| -> Vec<Rc<dyn Disk>> {
            let open = |medium| -> Rc<dyn Disk> { SimulatedDisk::open(medium, world.clone()) };
            self.sites[node].media.iter().map(open).collect()
        };
        if is_new {
            let options = FormatOptions { segment_bytes: Some(1 << 17), overwrite_foreign: false };
            let uuid = Uuid([node as u8 + 1; 16]);
            let formatted = Array::format(&disks(&world), &options, uuid, LogKey([7; 16])).await;
            formatted.map_err(|error| format!("format: {error}"))?;
        }
        let sink = Rc::new(|_| {});
        let opened = Array::open(disks(&world), world.clone(), BufferPool::new(1 << 20), sink.clone()).await;
        let (array, _) = opened.map_err(|error| format!("open: {error}"))?;
        let forget_holes_through = match mutant::is(Mutant::HolesForgotten) {
            true => StoreOptions::default().forget_holes_through,
            false => Version::default(),
        };
        let options =
            StoreOptions { checkpoint_log_bytes: 1 << 18, forget_holes_through, ..StoreOptions::default() };
        let opened = Store::open(array, world.clone(), options, sink).await;
        let (store, _) = opened.map_err(|error| format!("open: {error}"))?;
        if is_new {
            let created = store.put_volume(VOLUME, Version::default(), &Coverage::Whole.encode()).await;
            created.map_err(|error| error.to_string())?;
        }
        let store = Rc::new(store);
        let life = Rc::new(Life {
            cluster: self.clone(),
            node,
            world: world.clone(),
            store: store.clone(),
            replicas: RefCell::default(),
            promised: Cell::new(self.sites[node].promised.get()),
            recovered: newest_in(&store),
            record_number: Cell::new(executor.now().0),
            primary: RefCell::default(),
        });
        let (fence, records) = (Rc::new(Node(life.clone())), Rc::new(Node(life.clone())));
        *life.replicas.borrow_mut() = Some(Replicas::new(store, fence, records, world));
        self.tell(|| format!("{node} starts at {:?}, {:?}", life.held(), life.coverage_of_replica()));
        *self.sites[node].life.borrow_mut() = Some(life);
        Ok(())
    }

    async fn crash(&self, executor: &Executor, node: usize) {
        let Some(life) = self.sites[node].life.take() else { return };
        self.note(|totals| totals.crashes += 1);
        self.tell(|| format!("{node} crashes"));
        executor.trace(node as u64);
        life.world.crash();
        if let Some(primary) = &*life.primary.borrow() {
            self.end_turn(primary.turn);
        }
        self.sites[node].media.iter().for_each(|medium| medium.crash());
        life.primary.take();
        life.replicas.take();
        if let Some(peer) = self.primary(1 - node) {
            peer.break_wire(true);
        }
    }

    fn break_wire(&self) {
        for primary in (0..2).filter_map(|node| self.primary(node)) {
            self.note(|totals| totals.breaks += 1);
            primary.break_wire(self.random.coin());
        }
    }

    /// Whoever the record names serves, in a new epoch if it did not until now.
    async fn tend(self: &Rc<Self>) {
        for node in 0..2 {
            let record = self.record();
            let Some(life) = self.life(node).filter(|_| record.primary == name(node)) else { continue };
            if self.primary(node).is_some() {
                continue;
            }
            life.drain().await;
            let Ok(held) = life.end_replica(record.epoch + 1).await else { continue };
            let first = held.whole_through.sequence + 1;
            let both = record.in_sync.len() == 2;
            if let Some(epoch) = self.commit(record.epoch, Transition::Restart, node, both, first) {
                Primary::begin(&life, epoch, held, both);
            }
        }
    }

    /// The other node takes over, if it is in the set.
    async fn take_over(self: &Rc<Self>) {
        let record = self.record();
        let deposed = usize::from(record.primary == name(1));
        let Some(life) = self.life(1 - deposed).filter(|_| record.in_sync.len() == 2) else { return };
        if let Some(old) = self.primary(deposed) {
            old.stop(); // its lease is over
        }
        let Ok(held) = life.end_replica(record.epoch + 1).await else { return };
        let first = held.whole_through.sequence + 1;
        let taken = self.commit(record.epoch, Transition::TakeOver, life.node, false, first);
        if let Some(epoch) = taken {
            self.note(|totals| totals.take_overs += 1);
            assert_eq!(life.recorded(), Coverage::Whole, "it was in the set");
            Primary::begin(&life, epoch, held, false);
        }
    }

    /// At times the replica returns alone and takes over, being in the set.
    async fn both_crash(self: &Rc<Self>, executor: &Executor) -> Result<(), String> {
        let replica = usize::from(self.record().primary == name(0));
        self.crash(executor, 0).await;
        self.crash(executor, 1).await;
        if self.random.below(3) > 0 {
            self.start(executor, replica, false).await?;
            self.take_over().await;
        }
        Ok(())
    }

    /// A primary begins an epoch with writes in flight that do not reach the other node, which takes over.
    async fn take_over_from_a_new_epoch(self: &Rc<Self>, clock: &World) {
        self.is_cut.set(true);
        self.break_wire();
        clock.sleep(micros(self.random.below(600))).await;
        let record = self.record();
        let old = self.serving().filter(|old| record.in_sync.len() == 2 && record.epoch == old.epoch.get());
        if let Some(old) = old {
            old.change(Transition::Restart, true).await;
            clock.sleep(micros(self.random.below(1500))).await;
            self.take_over().await;
        }
        self.is_cut.set(false);
    }

    /// A planned move.
    async fn hand_over(self: &Rc<Self>) {
        let record = self.record();
        let from = usize::from(record.primary == name(1));
        let (Some(old), Some(life)) = (self.primary(from), self.life(1 - from)) else { return };
        if record.in_sync.len() < 2 || record.epoch != old.epoch.get() {
            return;
        }
        old.is_moving.set(true);
        let drained = old.volume.close();
        let patience = old.life.world.sleep(micros(20_000));
        let is_drained = matches!(
            futures::future::select(Box::pin(drained), patience).await,
            futures::future::Either::Left(_)
        );
        let is_level = is_drained && old.mirror.is_level() && !old.is_stopped.get();
        let first = old.volume.latest_version().sequence + 1;
        old.stop();
        if !is_level {
            return;
        }
        let Ok(held) = life.end_replica(record.epoch + 1).await else { return };
        if let Some(epoch) = self.commit(record.epoch, Transition::Move, life.node, true, first) {
            self.note(|totals| totals.moves += 1);
            Primary::begin(&life, epoch, held, true);
        }
    }
}
