//! Roles of two nodes over the real control state, with proposals that commit late, twice, or never.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::base::units::VolumeId;
use crate::cluster::state::volume::{Redundancy, SectorSize};
use crate::cluster::state::{ClusterUuid, Command, ControlState};

const NAMES: [&str; 2] = ["a", "b"];
const ALL: [Transition; 7] = [
    Transition::Restart,
    Transition::Shrink,
    Transition::Expand,
    Transition::TakeOver,
    Transition::Move,
    Transition::Stop,
    Transition::Start,
];
const READY: Circumstances = Circumstances { is_drained: true, is_peer_complete: true };

struct World {
    state: ControlState,
    roles: [Role; 2],
    open: Vec<Proposed>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { state: ControlState::new(), roles: NAMES.map(role), open: Vec::new() };
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
        world
    }

    fn apply(&mut self, command: Command) -> bool {
        self.state.apply(self.state.applied_index() + 1, command).is_ok()
    }

    fn record(&self) -> VolumeRecord {
        self.state.volume_by_id(VolumeId(1)).unwrap().clone()
    }

    fn propose(&mut self, node: usize, transition: Transition) -> bool {
        let proposed = self.roles[node].propose(transition, &name(1 - node), READY);
        self.open.extend(proposed.clone());
        proposed.is_some()
    }

    fn commit(&mut self, proposed: Proposed) -> bool {
        let first_sequence = u64::from(proposed.expected_epoch) * 10;
        let Proposed { expected_epoch, transition, primary, in_sync } = proposed;
        let volume = VolumeId(1);
        self.apply(Command::BeginEpoch {
            volume,
            expected_epoch,
            transition,
            primary,
            in_sync,
            first_sequence,
            reason: String::new(),
        })
    }

    fn learn(&mut self, node: usize) -> Turn {
        let record = self.record();
        self.roles[node].handle_record(&record)
    }
}

fn name(node: usize) -> NodeName {
    NAMES[node].parse().unwrap()
}

fn role(name: &str) -> Role {
    Role::new(name.parse().unwrap())
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
    world.roles[0] = role("a");
    assert_eq!(world.learn(0), Turn::Follow { epoch: 3 });
    assert!(!world.roles[0].may_serve(true) && !world.roles[0].may_acknowledge(HERE));
}

#[test]
fn random_lives_never_have_two_servers() {
    let (mut alone, mut moved, mut started) = (0, 0, 0);
    for seed in 0..400 {
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
                        assert!(before.in_sync.contains(&proposed.primary), "seed {seed}: I3");
                        moved += u32::from(proposed.transition == Transition::Move);
                        started += u32::from(proposed.transition == Transition::Start);
                    }
                }
                6..9 => {
                    let was_known = world.roles[node].view.is_some();
                    let turn = world.learn(node);
                    let begins = matches!(turn, Turn::Begin { .. } | Turn::Continue { .. });
                    assert!(!begins || was_known, "seed {seed}: I8");
                }
                _ if random.random_ratio(1, 4) => world.roles[node] = role(NAMES[node]),
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
    assert!(alone > 1000 && moved > 50 && started > 20, "{alone} alone, {moved} moved, {started} started");
}
