//! Roles of two nodes over the real control state, with proposals that commit late, twice, or never, and processes that
//! begin with an older state than the one before them knew.

use std::collections::BTreeMap;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::base::units::VolumeId;
use crate::cluster::state::volume::{Redundancy, SectorSize};
use crate::cluster::state::{ClusterUuid, Command, ControlState};

const NAMES: [&str; 2] = ["a", "b"];
const ALL: [Transition; 8] = [
    Transition::Restart,
    Transition::Shrink,
    Transition::Expand,
    Transition::TakeOver,
    Transition::Move,
    Transition::Yield,
    Transition::Stop,
    Transition::Start,
];
const READY: Circumstances = Circumstances { is_drained: true, is_peer_complete: true };

struct World {
    state: ControlState,
    roles: [Role; 2],
    /// Each with the life that proposed it.
    open: Vec<(u64, Proposed)>,
    /// Of all epochs.
    records: Vec<VolumeRecord>,
    /// What each node has promised durably.
    promised: [u32; 2],
    lives: u64,
    /// Which life of which node has served an epoch.
    served: BTreeMap<u32, (usize, u64)>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            state: ControlState::new(),
            roles: [role("a", 1), role("b", 2)],
            open: Vec::new(),
            records: Vec::new(),
            promised: [0; 2],
            lives: 2,
            served: BTreeMap::new(),
        };
        world.apply(Command::CreateCluster {
            name: "demo".parse().unwrap(),
            uuid: ClusterUuid([1; 16]),
            created_unix_ms: 0,
        });
        for name in NAMES {
            world.apply(Command::AddNode { name: name.parse().unwrap() });
        }
        world.apply(Command::CreateVolume {
            name: "x".parse().unwrap(),
            size_bytes: 1 << 30,
            sector: SectorSize::Emulated512,
            redundancy: Redundancy::Mirrored,
            primary: "a".parse().unwrap(),
            created_unix_ms: 0,
        });
        world.records.push(world.record());
        world
    }

    fn apply(&mut self, command: Command) -> bool {
        self.state.apply(self.state.applied_index() + 1, command).is_ok()
    }

    fn record(&self) -> VolumeRecord {
        self.state.volume_by_id(VolumeId(1)).unwrap().clone()
    }

    fn propose(&mut self, node: usize, transition: Transition) -> bool {
        let life = self.roles[node].life;
        let Some(proposed) = self.roles[node].propose(transition, &name(1 - node), READY) else {
            return false;
        };
        if proposed.primary == name(node) && self.roles[node].serving.is_none() {
            // Who is to serve has promised that before.
            self.promised[node] = self.promised[node].max(proposed.expected_epoch + 1);
        }
        self.open.push((life, proposed));
        true
    }

    fn commit(&mut self, (life, proposed): (u64, Proposed)) -> bool {
        let first_sequence = u64::from(proposed.expected_epoch) * 10;
        let Proposed { expected_epoch, transition, primary, in_sync } = proposed;
        let begin = Command::BeginEpoch {
            volume: VolumeId(1),
            expected_epoch,
            transition,
            primary,
            in_sync,
            first_sequence,
            reason: String::new(),
        };
        let is_applied = self.state.apply_proposed(self.state.applied_index() + 1, life, begin).is_ok();
        if is_applied {
            self.records.push(self.record());
        }
        is_applied
    }

    fn learn(&mut self, node: usize) -> Turn {
        self.learn_epoch(node, self.records.len() - 1, true)
    }

    /// Takes the record of an epoch. A primary that goes on may fall over before its promise is saved.
    fn learn_epoch(&mut self, node: usize, epoch: usize, is_saved: bool) -> Turn {
        let turn = self.roles[node].handle_record(&self.records[epoch]);
        if let Turn::Begin { epoch, .. } | Turn::Continue { epoch } = turn {
            let life = self.roles[node].life;
            let first = *self.served.entry(epoch).or_insert((node, life));
            assert_eq!(first, (node, life), "epoch {epoch} is served twice (I8)");
        }
        let promised = match turn {
            Turn::Stay => 0,
            Turn::Continue { .. } if !is_saved => 0,
            Turn::Begin { epoch, .. } | Turn::Continue { epoch } | Turn::Follow { epoch } => epoch,
        };
        self.promised[node] = self.promised[node].max(promised);
        turn
    }

    fn restart(&mut self, node: usize) {
        self.lives += 1;
        self.roles[node] = Role::new(name(node), self.lives, self.promised[node]);
    }
}

fn name(node: usize) -> NodeName {
    NAMES[node].parse().unwrap()
}

fn role(name: &str, life: u64) -> Role {
    Role::new(name.parse().unwrap(), life, 0)
}

const HERE: Durable = Durable { is_local: true, at_peer_in_epoch: None };

#[test]
fn a_life_of_a_volume() {
    let mut world = World::new();
    assert_eq!(world.learn(0), Turn::Follow { epoch: 0 });
    assert!(world.propose(0, Transition::Restart) && !world.roles[0].may_serve(true));
    let first = world.open[0].clone();
    assert!(world.commit(first));
    assert_eq!(world.learn(0), Turn::Begin { epoch: 1, is_settled: false });
    assert_eq!(world.learn(1), Turn::Follow { epoch: 1 });
    assert!(world.roles[0].may_serve(true) && !world.roles[0].may_serve(false));
    let at_both = |epoch| Durable { is_local: true, at_peer_in_epoch: Some(epoch) };
    assert!(world.roles[0].may_acknowledge(at_both(1)) && !world.roles[0].may_acknowledge(at_both(0)));
    // The peer is gone. A proposal is not enough; the committed set is.
    assert!(world.propose(0, Transition::Shrink) && !world.roles[0].may_acknowledge(HERE));
    let shrink = world.open[1].clone();
    assert!(world.commit(shrink));
    assert_eq!(world.learn(0), Turn::Continue { epoch: 2 });
    assert!(world.roles[0].may_acknowledge(HERE) && world.roles[0].may_serve(false));
    // It returns: from the proposal on, both are needed, and a lease.
    assert!(world.learn(1) == Turn::Follow { epoch: 2 } && !world.propose(1, Transition::TakeOver));
    assert!(world.propose(0, Transition::Expand));
    assert!(!world.roles[0].may_acknowledge(HERE) && !world.roles[0].may_serve(false));
    // That proposal hangs; another one for the same epoch settles it.
    assert!(world.propose(0, Transition::Restart));
    let (expand, restart) = (world.open[2].clone(), world.open[3].clone());
    assert!(world.commit(restart) && !world.commit(expand));
    assert_eq!(world.learn(0), Turn::Continue { epoch: 3 });
    assert!(world.roles[0].may_acknowledge(HERE));
    // After a restart the old epoch is not served again.
    world.restart(0);
    assert_eq!(world.learn(0), Turn::Follow { epoch: 3 });
    assert!(!world.roles[0].may_serve(true) && !world.roles[0].may_acknowledge(HERE));
}

#[test]
fn random_lives_never_have_two_servers() {
    let (alone, moved, started) = live(1000);
    assert!(alone > 1000 && moved > 50 && started > 15, "{alone} alone, {moved} moved, {started} started");
}

/// So many random lives: how often a node was alone, a volume moved, and one started from its certificate.
fn live(seeds: u64) -> (u32, u32, u32) {
    let (mut alone, mut moved, mut started) = (0, 0, 0);
    for seed in 0..seeds {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::new();
        for _ in 0..200 {
            let node = random.random_range(0..2);
            match random.random_range(0..10) {
                0..4 => {
                    world.propose(node, *ALL.choose(&mut random).unwrap());
                }
                4..6 if !world.open.is_empty() => {
                    let chosen = random.random_range(0..world.open.len());
                    let before = world.record();
                    let proposed = world.open[chosen].clone();
                    if world.commit(proposed.clone()) {
                        let (_, proposed) = proposed;
                        assert!(before.in_sync.contains(&proposed.primary), "seed {seed}: I3");
                        moved += u32::from(proposed.transition == Transition::Move);
                        started += u32::from(proposed.transition == Transition::Start);
                    }
                }
                6..9 => {
                    // Now and then one that is not the newest.
                    let newest = world.records.len() - 1;
                    let back = if random.random_ratio(1, 3) { random.random_range(0..3) } else { 0 };
                    let is_saved = random.random_ratio(1, 2);
                    world.learn_epoch(node, newest.saturating_sub(back), is_saved);
                }
                _ if random.random_ratio(1, 2) => world.restart(node),
                _ => {}
            }
            let [a, b] = &world.roles;
            let is_shared = a.serving().is_some() && a.serving() == b.serving();
            assert!(!is_shared, "seed {seed}: I4");
            for (node, role) in world.roles.iter().enumerate().filter(|(_, role)| role.may_serve(false)) {
                alone += 1;
                let record = world.record();
                assert_eq!(record.in_sync, BTreeSet::from([name(node)]), "seed {seed}: I5");
                assert!(role.may_acknowledge(HERE));
            }
            for role in world.roles.iter().filter(|role| role.may_acknowledge(HERE)) {
                let members = world.record().in_sync;
                assert_eq!(members, BTreeSet::from([role.own.clone()]), "seed {seed}: I2");
            }
        }
    }
    (alone, moved, started)
}

/// A process ends and the next one knows an older state; then it learns of the epoch that the first one has served.
#[test]
fn an_epoch_is_served_by_one_life() {
    // It was proposed by both lives, in the same words.
    let mut world = World::new();
    world.learn(0);
    assert!(world.propose(0, Transition::Restart));
    let first = world.open[0].clone();
    assert!(world.commit(first));
    assert_eq!(world.learn(0), Turn::Begin { epoch: 1, is_settled: false });
    world.restart(0);
    assert_eq!(world.learn_epoch(0, 0, true), Turn::Follow { epoch: 0 });
    assert!(world.propose(0, Transition::Restart));
    assert_eq!(world.open[0].1, world.open[1].1);
    assert_eq!(world.learn(0), Turn::Follow { epoch: 1 });
    // It goes on with one of its own.
    assert!(world.propose(0, Transition::Restart));
    let own = world.open[2].clone();
    assert!(world.commit(own));
    assert_eq!(world.learn(0), Turn::Begin { epoch: 2, is_settled: false });

    // It was handed over to the first life.
    assert_eq!(world.learn(1), Turn::Follow { epoch: 2 });
    assert!(world.propose(0, Transition::Move));
    let moved = world.open[3].clone();
    assert!(world.commit(moved));
    assert_eq!(world.learn(1), Turn::Begin { epoch: 3, is_settled: true });
    world.restart(1);
    assert_eq!(world.learn_epoch(1, 2, true), Turn::Follow { epoch: 2 });
    assert_eq!(world.learn(1), Turn::Follow { epoch: 3 });
}

#[test]
fn lives_that_take_an_epoch_of_earlier_ones_are_found() {
    live(1000);
    for mutant in [Mutant::ForeignEpochTaken, Mutant::HandedOverTwice] {
        let found = mutant::with(mutant, || std::panic::catch_unwind(|| live(1000)).is_err());
        assert!(found, "{mutant:?} is not found");
    }
}
