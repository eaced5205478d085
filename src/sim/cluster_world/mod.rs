//! The whole cluster in one process, on one thread, by one seed: two nodes with their disks, stores, mirrors, drivers
//! and logical units, the witness, the real consensus of all three with its logs on simulated files, the network
//! between them, their clocks, and hosts that use both nodes.
//!
//! Time runs a hundred times faster than on a local network: a millisecond of the cluster is ten microseconds
//! here. Nothing in the world tells the product's code what to do but what tells it in production: messages,
//! connections that come and go, ticks, disks, commands. What `daemon` and `peer` do around that code is here in
//! small: [`member`] (the thread of the quorum), [`network`] (links and mirror connections), [`room`] (a machine),
//! [`unit`] (logical units that get and lose their device).
//!
//! Oracles: [`oracle`] (each sector's history is linearizable, and no write takes effect after it was over; who
//! serves), [`reservations`] (those of hosts), [`snapshots`] (one cut, which stays), and in the end everything heals by itself, is served, and both
//! replicas are equal.

mod command;
mod hosts;
mod member;
mod mutants;

mod network;
mod oracle;
mod planned;
mod reservations;
mod room;
mod runs;
mod scenarios;
mod snapshots;

mod unit;
mod upgrade;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use self::network::Network;
use self::oracle::Oracle;
use self::reservations::Reservations;
use self::room::{Life, Room};
use self::snapshots::Snapshots;
use crate::base::runtime::Runtime;
use crate::base::units::VolumeId;
use crate::cluster::name::NodeName;
use crate::cluster::state::volume::{Redundancy, SectorSize, Transition, VolumeRecord};
use crate::cluster::state::{Command, ControlState};
use crate::sim::executor::{Executor, World};
use crate::sim::random::Random;

/// The members: two nodes and the witness.
const NAMES: [&str; 3] = ["a", "b", "w"];
const WITNESS: usize = 2;
/// The volumes, the home of each on another node.
const VOLUMES: [VolumeId; 2] = [VolumeId(1), VolumeId(2)];
const SIZE_BYTES: u64 = 12 << 20;

fn name(member: usize) -> NodeName {
    NAMES[member].parse().unwrap()
}

fn member_named(name: &NodeName) -> usize {
    NAMES.iter().position(|known| *known == name.as_str()).unwrap()
}

fn micros(count: u64) -> Duration {
    Duration::from_micros(count)
}

/// What is so in a whole run.
#[derive(Clone, Copy, Debug)]
struct Setting {
    /// Nothing goes wrong by chance, so that a scenario is what it says.
    is_orderly: bool,
    /// Volumes are rolled back now and then.
    rolls_back: bool,
    /// Clones are made of snapshots.
    has_clones: bool,
    /// All members begin with an older release, and are brought to the present one now and then.
    is_upgraded: bool,
    /// Longest that a message takes, in microseconds.
    latency: u64,
    /// Longest that the thread of the data takes to see what the thread of the quorum says, in microseconds.
    handling: u64,
}

/// Everything around the machines, and what is known of a run.
struct Cluster {
    executor: Rc<Executor>,
    random: Random,
    /// What never crashes: hosts, the network, whoever does the damage.
    clock: Rc<World>,
    rooms: [Room; 3],
    network: Network,
    oracle: Oracle,
    reservations: Reservations,
    snapshots: Snapshots,
    setting: Setting,
    /// How long what this node proposes next lies in its own queue.
    hold_next_proposal: [Cell<Option<Duration>>; 2],
    /// The same for what it proposes next for the first volume.
    hold_next_of_first: [Cell<Option<Duration>>; 2],
    /// How long this node's data takes to see the next control state.
    hold_next_state: [Cell<Option<Duration>>; 2],
    /// How long this node takes to save the next promise for the first volume.
    hold_next_promise: [Cell<Option<Duration>>; 2],
    /// What is cut off, from whom to whom, when the first node has proposed a change of the first volume's epoch.
    cut_after_proposal: Cell<&'static [(usize, usize)]>,
    /// Records by volume and epoch, as anybody has applied them.
    records: RefCell<BTreeMap<(VolumeId, u32), VolumeRecord>>,
    newest_state: RefCell<ControlState>,
    lives: Cell<u64>,
    problem: RefCell<Option<String>>,
    history: RefCell<Vec<String>>,
    met: RefCell<BTreeMap<&'static str, u64>>,
}

impl Cluster {
    /// Three machines that are switched off.
    fn new(seed: u64, is_orderly: bool) -> Rc<Self> {
        let executor = Rc::new(Executor::new(seed));
        let random = Random::new(seed ^ 0x9a12);
        let setting = Setting {
            is_orderly,
            rolls_back: seed.is_multiple_of(4),
            has_clones: !is_orderly && seed % 4 == 1,
            is_upgraded: !is_orderly && seed % 5 == 3,
            latency: if is_orderly { 60 } else { [30, 100, 100, 500][random.index(4)] },
            handling: if is_orderly { 50 } else { [20, 200, 2000][random.index(3)] },
        };
        let cluster = Rc::new(Self {
            clock: executor.world("around"),
            executor,
            rooms: std::array::from_fn(|member| Room::new(member, &random)),
            network: Network::default(),
            oracle: Oracle::default(),
            reservations: Reservations::default(),
            snapshots: Snapshots::default(),
            setting,
            random,
            hold_next_proposal: Default::default(),
            hold_next_of_first: Default::default(),
            hold_next_state: Default::default(),
            hold_next_promise: Default::default(),
            cut_after_proposal: Cell::default(),
            records: RefCell::default(),
            newest_state: RefCell::new(ControlState::new()),
            lives: Cell::new(0),
            problem: RefCell::default(),
            history: RefCell::default(),
            met: RefCell::default(),
        });
        if cluster.setting.is_upgraded {
            (0..3).for_each(|member| cluster.network.install(member, upgrade::older_release()));
        }
        cluster.clock.spawn(Box::pin(network::keep(cluster.clone())));
        cluster.clock.spawn(Box::pin(oracle::watch(cluster.clone())));
        cluster
    }

    /// Switches all machines on for the first time, founds the cluster and makes the volumes.
    async fn found(self: &Rc<Self>) -> Result<(), String> {
        for member in 0..3 {
            self.start(member)?;
        }
        let is_seated = |member: usize| {
            self.life(member).is_some_and(|life| {
                let view = life.member.view();
                view.voters.len() == 3 && view.is_voter()
            })
        };
        let is_named = || {
            let state = self.newest_state.borrow();
            state.nodes().count() == 2 && state.witness().is_some()
        };
        self.until("all are seated", 2000, || (0..3).all(is_seated) && is_named()).await?;
        for (home, volume) in ["x", "y"].into_iter().enumerate() {
            let create = Command::CreateVolume {
                name: volume.parse().unwrap(),
                size_bytes: SIZE_BYTES,
                sector: SectorSize::Emulated512,
                redundancy: Redundancy::Mirrored,
                primary: name(home),
                // Whatever the wall clock says, and wherever it jumps: nothing depends on it.
                created_unix_ms: self.random.next() >> 20,
            };
            let life = self.life(0).ok_or("nobody")?;
            drop(life.member.propose(create));
        }
        let is_served = |volume: &VolumeId| self.server(*volume).is_some();
        self.until("volumes are served", 2000, || VOLUMES.iter().all(is_served)).await
    }

    /// Waits, so many milliseconds at most.
    async fn until(&self, what: &str, millis: u64, condition: impl Fn() -> bool) -> Result<(), String> {
        for _ in 0..millis * 4 {
            if condition() {
                return Ok(());
            }
            self.clock.sleep(micros(250)).await;
            self.check()?;
        }
        let show = |volume: &VolumeId| self.record(*volume).map(|record| describe(&record));
        Err(format!("in vain until {what}: {:?}", VOLUMES.each_ref().map(show)))
    }

    // Machines.

    fn life(&self, member: usize) -> Option<Rc<Life>> {
        self.rooms[member].life()
    }

    fn start(self: &Rc<Self>, member: usize) -> Result<(), String> {
        if self.life(member).is_some() {
            return Ok(());
        }
        self.tell(|| format!("{} starts", NAMES[member]));
        Life::start(self, member)
    }

    /// The power fails, with what was not on stable media.
    fn crash(&self, member: usize) {
        if self.rooms[member].end(room::End::PowerFails) {
            self.tell(|| format!("{} loses its power", NAMES[member]));
            self.meet("power failures");
        }
    }

    /// The power fails, and of the log of consensus nothing is left that was not synced.
    fn crash_hard(&self, member: usize) {
        self.rooms[member].file.forget_unsynced();
        self.crash(member);
    }

    /// The process is killed; the machine lives.
    fn kill(&self, member: usize) {
        if self.rooms[member].end(room::End::Killed) {
            self.tell(|| format!("{} is killed", NAMES[member]));
            self.meet("kills");
        }
    }

    /// A machine stands still, or goes on.
    fn set_paused(&self, member: usize, is_paused: bool) {
        let life = self.life(member).filter(|life| life.world.is_paused() != is_paused);
        let Some(life) = life else { return };
        self.tell(|| format!("{} is paused: {is_paused}", NAMES[member]));
        if is_paused {
            self.meet("pauses");
            life.paused_since.set(Some(self.clock.now()));
            life.world.pause();
        } else {
            life.paused_since.set(None);
            life.world.resume();
        }
    }

    /// Cuts a node or the witness off from the others, in one direction or in both.
    fn set_isolated(&self, member: usize, sends: bool, hears: bool) {
        for other in (0..3).filter(|other| *other != member) {
            self.set_passes(member, other, sends);
            self.set_passes(other, member, hears);
        }
    }

    /// Whether what one member sends arrives at the other.
    fn set_passes(&self, from: usize, to: usize, passes: bool) {
        if self.network.set_passes(from, to, passes) != passes {
            self.tell(|| format!("from {} to {} passes: {passes}", NAMES[from], NAMES[to]));
            if !passes {
                self.meet("cuts");
            }
        }
    }

    fn set_link(&self, one: usize, other: usize, is_up: bool) {
        self.set_passes(one, other, is_up);
        self.set_passes(other, one, is_up);
    }

    fn mend_network(&self) {
        for member in 0..3 {
            self.set_isolated(member, true, true);
        }
    }

    // What is so.

    /// The newest record of a volume that anybody has applied.
    fn record(&self, volume: VolumeId) -> Option<VolumeRecord> {
        self.newest_state.borrow().volume_by_id(volume).cloned()
    }

    fn in_sync(&self, volume: VolumeId) -> usize {
        self.record(volume).map_or(0, |record| record.in_sync.len())
    }

    /// The node that serves a volume.
    fn server(&self, volume: VolumeId) -> Option<usize> {
        (0..2).find(|node| self.serves(*node, volume))
    }

    fn serves(&self, node: usize, volume: VolumeId) -> bool {
        self.life(node).and_then(|life| life.data()).is_some_and(|data| data.node.may_serve(volume))
    }

    /// Somebody has applied this state.
    fn saw(&self, member: usize, state: &ControlState) {
        for record in state.volumes() {
            let key = (record.id, record.epoch);
            let mut records = self.records.borrow_mut();
            match records.get(&key) {
                Some(known) => {
                    let is_equal = (&known.primary, &known.in_sync) == (&record.primary, &record.in_sync);
                    if !is_equal {
                        drop(records);
                        return self.fail(format!("two records of one epoch: {} (I4)", describe(record)));
                    }
                }
                None => {
                    self.meet(match record.began_by {
                        Some(Transition::TakeOver) => "take-overs",
                        Some(Transition::Shrink) => "shrinks",
                        Some(Transition::Expand) => "expansions",
                        Some(Transition::Move) => "moves",
                        Some(Transition::Restart) => "restarts",
                        Some(Transition::Stop) => "stops of volumes",
                        Some(Transition::Start) => "starts from a certificate",
                        _ => "other epochs",
                    });
                    self.tell(|| format!("{} applies {}", NAMES[member], describe(record)));
                    records.insert(key, record.clone());
                }
            }
        }
        if state.applied_index() > self.newest_state.borrow().applied_index() {
            *self.newest_state.borrow_mut() = state.clone();
        }
    }

    // What is noted.

    fn fail(&self, problem: String) {
        self.tell(|| format!("PROBLEM {problem}"));
        self.problem.borrow_mut().get_or_insert(problem);
    }

    fn check(&self) -> Result<(), String> {
        self.problem.borrow().clone().map_or(Ok(()), Err)
    }

    fn meet(&self, what: &'static str) {
        *self.met.borrow_mut().entry(what).or_insert(0) += 1;
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if !is_told() {
            return;
        }
        let now = self.clock.now().0 / 1000;
        let line = format!("{now:>9} {}", what());
        if std::env::var("LIVE").is_ok() {
            println!("{line}");
        }
        self.history.borrow_mut().push(line);
    }

    /// Ends everything: machines and the cluster hold each other.
    fn end(&self) {
        for room in &self.rooms {
            room.end(room::End::PowerFails);
        }
        self.clock.crash();
        self.network.clear();
    }
}

fn describe(record: &VolumeRecord) -> String {
    let in_sync: Vec<_> = record.in_sync.iter().map(NodeName::as_str).collect();
    let (id, epoch, began_by) = (record.id.0, record.epoch, record.began_by);
    format!("epoch {epoch} of volume {id} by {began_by:?}: {} in {in_sync:?}", record.primary)
}

/// Whether what happens is kept for whoever looks into a seed: `HISTORY=1` prints it for a seed that fails, `LIVE=1` as
/// it comes.
fn is_told() -> bool {
    thread_local! {
        static IS_TOLD: bool = std::env::var("HISTORY").is_ok() || std::env::var("LIVE").is_ok();
    }
    IS_TOLD.with(|is_told| *is_told)
}
