//! What is around the two nodes: consensus and leases as one machine that commits late, twice or never, and the
//! connections between the nodes.
//!
//! Consensus has a majority while a node reaches it (the witness and one node are enough). A lease lasts from
//! asking; a proposal that takes the place of a primary commits only when that primary's lease is over, and none
//! is granted to it meanwhile.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::clients::{Clients, Oracle};
use super::site::{Life, Site};
use crate::base::runtime::{Instant, Runtime};
use crate::base::units::VolumeId;
use crate::cluster::name::NodeName;
use crate::cluster::state::volume::{Redundancy, SectorSize, Transition, VolumeRecord};
use crate::cluster::state::{ClusterUuid, Command, ControlState};
use crate::sim::executor::{Executor, World};
use crate::sim::random::Random;

pub(super) const NAMES: [&str; 2] = ["a", "b"];
/// Time is in hundredths: a run has many epochs.
pub(super) const LEASE: Duration = Duration::from_millis(20);
const RENEWAL: Duration = Duration::from_millis(3);

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub writes: u64,
    pub reads: u64,
    pub crashes: u64,
    pub cuts: u64,
    pub isolations: u64,
    pub pauses: u64,
    pub failed_disks: u64,
    pub unmaps: u64,
    pub observations: u64,
    pub hand_overs: u64,
    pub epochs: u64,
    pub take_overs: u64,
    pub shrinks: u64,
    pub expansions: u64,
    pub moves: u64,
    pub late_commits: u64,
    pub served_by_second: u64,
}

pub(super) struct Cluster {
    pub random: Random,
    pub clock: Rc<World>,
    pub sites: [Site; 2],
    pub oracle: Oracle,
    control: RefCell<ControlState>,
    /// By node: the end of its lease as voters know it, and how many depositions of it wait.
    bound_until: [Cell<Instant>; 2],
    deposing: [Cell<u32>; 2],
    pub reaches_control: [Cell<bool>; 2],
    /// Whether what consensus and leases say arrives.
    pub hears_control: [Cell<bool>; 2],
    pub is_link_up: Cell<bool>,
    /// How much longer than the true one a lease is by its holder's clock, in parts of a thousand.
    drift: [i64; 2],
    /// Proposals neither get lost nor come late by chance.
    pub is_orderly: Cell<bool>,
    /// How long the next proposal for the first volume takes to commit.
    pub next_commit: Cell<Option<Duration>>,
    problem: RefCell<Option<String>>,
    history: RefCell<Vec<String>>,
    totals: Cell<Totals>,
}

pub(super) fn name(node: usize) -> NodeName {
    NAMES[node].parse().unwrap()
}

pub(super) fn micros(count: u64) -> Duration {
    Duration::from_micros(count)
}

/// The volumes, the home of each on another node.
pub(super) const VOLUMES: [VolumeId; 2] = [VolumeId(1), VolumeId(2)];

impl Cluster {
    pub(super) fn new(executor: &Executor, random: &Random, size_bytes: u64) -> Rc<Self> {
        let mut control = ControlState::new();
        let mut apply = |command| control.apply(control.applied_index() + 1, command).map(|_| ()).unwrap();
        let uuid = ClusterUuid([1; 16]);
        apply(Command::CreateCluster { name: "demo".parse().unwrap(), uuid, created_unix_ms: 0 });
        NAMES.iter().for_each(|name| apply(Command::AddNode { name: name.parse().unwrap() }));
        for (home, volume) in ["x", "y"].into_iter().enumerate() {
            apply(Command::CreateVolume {
                name: volume.parse().unwrap(),
                size_bytes,
                sector: SectorSize::Emulated512,
                redundancy: Redundancy::Mirrored,
                primary: name(home),
                created_unix_ms: 0,
            });
        }
        let cluster = Rc::new(Self {
            random: random.fork(),
            clock: executor.world("control"),
            sites: [Site::new(0, random), Site::new(1, random)],
            oracle: Oracle::default(),
            control: RefCell::new(control),
            bound_until: Default::default(),
            deposing: Default::default(),
            reaches_control: [Cell::new(true), Cell::new(true)],
            hears_control: [Cell::new(true), Cell::new(true)],
            is_link_up: Cell::new(true),
            drift: std::array::from_fn(|_| random.below(21) as i64 - 10),
            is_orderly: Cell::new(false),
            next_commit: Cell::new(None),
            problem: RefCell::default(),
            history: RefCell::default(),
            totals: Cell::default(),
        });
        cluster.clock.spawn(Box::pin(cluster.clone().renew_leases()));
        cluster
    }

    pub(super) fn record(&self, volume: VolumeId) -> VolumeRecord {
        self.control.borrow().volume_by_id(volume).unwrap().clone()
    }

    pub(super) fn state(&self) -> ControlState {
        self.control.borrow().clone()
    }

    // Leases.

    async fn renew_leases(self: Rc<Self>) {
        loop {
            self.clock.sleep(RENEWAL).await;
            for node in 0..2 {
                if !self.reaches_control[node].get() || self.deposing[node].get() > 0 {
                    continue;
                }
                let well = |life: &Rc<Life>| !life.world.is_paused() && !life.store.is_offline();
                if let Some(life) = self.sites[node].life().filter(well) {
                    let asked = self.clock.now();
                    let lease = LEASE.as_nanos() as u64;
                    // Voters wait for two clocks' drift of one percent.
                    self.bound_until[node].set(Instant(asked.0 + lease + lease / 49));
                    let held = lease.saturating_add_signed(self.drift[node] * (lease / 1000) as i64);
                    if !self.hears_control[node].get() {
                        continue;
                    }
                    let index = self.control.borrow().applied_index();
                    let delay = micros(self.random.below(3000));
                    let clock = self.clock.clone();
                    self.clock.spawn(Box::pin(async move {
                        clock.sleep(delay).await;
                        life.lease_until.set(Instant(asked.0 + held).max(life.lease_until.get()));
                        life.lease_from.set(index);
                        life.node.look_again();
                    }));
                }
            }
        }
    }

    // Consensus.

    /// A command of a node: it is lost, or committed at once, late, or when a lease is over.
    pub(super) fn propose(self: &Rc<Self>, proposer: usize, command: Command) {
        let cluster = self.clone();
        self.clock.spawn(Box::pin(async move {
            cluster.clock.sleep(micros(100 + cluster.random.below(900))).await;
            let by_chance = |parts| !cluster.is_orderly.get() && cluster.random.below(parts) == 0;
            if !cluster.reaches_control[proposer].get() || by_chance(30) {
                return;
            }
            let is_awaited = matches!(&command, Command::BeginEpoch { volume, .. } if *volume == VOLUMES[0]);
            if let Some(delay) = is_awaited.then(|| cluster.next_commit.take()).flatten() {
                cluster.clock.sleep(delay).await;
            } else if by_chance(12) {
                cluster.note(|totals| totals.late_commits += 1);
                cluster.clock.sleep(micros(cluster.random.below(120_000))).await;
            }
            cluster.decide(command).await;
        }));
    }

    async fn decide(self: &Rc<Self>, command: Command) {
        let Command::BeginEpoch { volume, transition, expected_epoch, .. } = &command else {
            return self.commit(command);
        };
        let (volume, transition, expected) = (*volume, *transition, *expected_epoch);
        if transition == Transition::TakeOver {
            let deposed = usize::from(self.record(volume).primary == name(1));
            self.deposing[deposed].set(self.deposing[deposed].get() + 1);
            while self.clock.now() <= self.bound_until[deposed].get() {
                self.clock.sleep(micros(500)).await;
            }
            self.commit(command);
            self.deposing[deposed].set(self.deposing[deposed].get() - 1);
        } else {
            self.commit(command);
        }
        let record = self.record(volume);
        if record.epoch == expected + 1 && record.began_by == Some(transition) {
            self.note(|totals| match transition {
                Transition::TakeOver => totals.take_overs += 1,
                Transition::Shrink => totals.shrinks += 1,
                Transition::Expand => totals.expansions += 1,
                Transition::Move => totals.moves += 1,
                _ => {}
            });
        }
    }

    fn commit(self: &Rc<Self>, command: Command) {
        let text = format!("{command:?}");
        let mut control = self.control.borrow_mut();
        let index = control.applied_index() + 1;
        let is_applied = control.apply(index, command).is_ok();
        drop(control);
        self.tell(|| format!("commit {index} {is_applied} {text}"));
        self.note(|totals| totals.epochs += u64::from(is_applied));
        // A lease is for those who have seen what was decided before it, rejected or not.
        (0..2).for_each(|node| self.publish(node));
    }

    /// Brings the present state to a node, after a while.
    pub(super) fn publish(self: &Rc<Self>, node: usize) {
        let cluster = self.clone();
        self.clock.spawn(Box::pin(async move {
            cluster.clock.sleep(micros(cluster.random.below(2000))).await;
            let Some(life) = cluster.sites[node].life().filter(|_| cluster.hears_control[node].get()) else {
                return;
            };
            let state = cluster.state();
            if state.applied_index() > life.seen_index.get() {
                life.seen_index.set(state.applied_index());
                life.node.handle_state(&state);
                life.node.look_again();
            }
        }));
    }

    // Faults.

    pub(super) fn set_link(self: &Rc<Self>, is_up: bool) {
        if self.is_link_up.replace(is_up) == is_up {
            return;
        }
        self.tell(|| format!("link {is_up}"));
        if is_up {
            self.connect();
        } else {
            self.note(|totals| totals.cuts += 1);
            self.sites.iter().for_each(|site| site.disconnect(self.random.coin()));
        }
    }

    pub(super) fn set_control(self: &Rc<Self>, node: usize, is_there: bool) {
        self.set_control_ways(node, is_there, is_there);
    }

    /// Whether a node's messages to the others arrive, and theirs to it.
    pub(super) fn set_control_ways(self: &Rc<Self>, node: usize, reaches: bool, hears: bool) {
        let was = (self.reaches_control[node].replace(reaches), self.hears_control[node].replace(hears));
        if was != (reaches, hears) {
            self.tell(|| format!("{node} reaches control: {reaches}, hears it: {hears}"));
            self.note(|totals| totals.isolations += u64::from(!reaches || !hears));
            self.publish(node);
        }
    }

    /// A node stands still, or goes on.
    pub(super) fn set_paused(&self, node: usize, is_paused: bool) {
        let Some(life) = self.sites[node].life().filter(|life| life.world.is_paused() != is_paused) else {
            return;
        };
        self.tell(|| format!("{node} is paused: {is_paused}"));
        self.note(|totals| totals.pauses += u64::from(is_paused));
        if is_paused { life.world.pause() } else { life.world.resume() }
    }

    /// Connects both directions, where both nodes live.
    pub(super) fn connect(self: &Rc<Self>) {
        let lives = [self.sites[0].life(), self.sites[1].life()];
        if let ([Some(a), Some(b)], true) = (lives, self.is_link_up.get()) {
            a.connect_to(&b);
            b.connect_to(&a);
        }
    }

    pub(super) async fn crash(self: &Rc<Self>, node: usize) {
        if self.sites[node].life().is_some() {
            self.tell(|| format!("{node} crashes"));
            self.note(|totals| totals.crashes += 1);
            self.sites[node].crash();
            self.sites[1 - node].disconnect(true);
        }
    }

    pub(super) async fn start(
        self: &Rc<Self>,
        executor: &Executor,
        node: usize,
        is_new: bool,
    ) -> Result<(), String> {
        if self.sites[node].life().is_none() {
            Site::start(self, executor, node, is_new).await?;
            self.publish(node);
            self.connect();
        }
        Ok(())
    }

    // What is noted.

    pub(super) fn fail(&self, problem: String) {
        self.problem.borrow_mut().get_or_insert(problem);
    }

    pub(super) fn check(&self) -> Result<(), String> {
        self.problem.take().map_or(Ok(()), Err)
    }

    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        let now = self.clock.now().0 / 1000;
        let line = format!("{now:>9} {}", what());
        if std::env::var("LIVE").is_ok() {
            println!("{line}");
        }
        self.history.borrow_mut().push(line);
    }

    pub(super) fn print_history(&self) {
        self.history.borrow().iter().for_each(|line| println!("{line}"));
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Totals)) {
        let mut totals = self.totals.get();
        change(&mut totals);
        self.totals.set(totals);
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals.get()
    }

    pub(super) fn clients(self: &Rc<Self>) -> Clients {
        Clients::start(self)
    }
}
