//! Random logs of commands that meet each other's effects.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::cluster::state::alert::{AlertTarget, Channel, Level};

/// A command from small pools, so that commands meet each other's effects.
fn alert(url: &str) -> AlertTarget {
    let channel = Channel::Webhook { url: url.to_owned(), token: None };
    AlertTarget { channel, least: Level::Warning, repeat_hours: 1, summary_minute: None }
}

fn any_command(random: &mut ChaCha8Rng) -> Command {
    let volume = |random: &mut ChaCha8Rng| ["x", "y", "z"].choose(random).unwrap().parse().unwrap();
    let node =
        |random: &mut ChaCha8Rng| -> NodeName { ["a", "b", "c"].choose(random).unwrap().parse().unwrap() };
    let initiator = |random: &mut ChaCha8Rng| {
        ["eui.0123456789abcdef", "iqn.2026-01.org:h"].choose(random).unwrap().to_string()
    };
    let size =
        |random: &mut ChaCha8Rng| random.random_range(200..300) * 4096 + u64::from(random.random_bool(0.1));
    let secret = |random: &mut ChaCha8Rng| format!("secret number {}", random.random_range(0..4));
    match random.random_range(0..18) {
        16 | 17 => Command::CloneVolume {
            name: volume(random),
            origin: VolumeId(random.random_range(0..20)),
            expected_epoch: random.random_range(0..3),
            snapshot: Watermark { epoch: random.random_range(0..2), sequence: random.random_range(0..3) },
            snapshot_name: ["monday", "a b"].choose(random).unwrap().to_string(),
            created_unix_ms: random.next_u64(),
        },
        14 => Command::SetAlert {
            name: ["mail", "pager"].choose(random).unwrap().parse().unwrap(),
            target: alert(["http://pager", "pager"].choose(random).unwrap()),
        },
        15 => Command::RemoveAlert { name: ["mail", "pager"].choose(random).unwrap().parse().unwrap() },
        0 => Command::CreateCluster {
            name: "demo".parse().unwrap(),
            uuid: ClusterUuid([random.random_range(0..2); 16]),
            created_unix_ms: 0,
        },
        1 => Command::AddNode { name: node(random) },
        2 => Command::RemoveNode { name: node(random) },
        3 | 4 => Command::CreateVolume {
            name: volume(random),
            size_bytes: size(random),
            sector: *[SectorSize::Native4096, SectorSize::Native512].choose(random).unwrap(),
            redundancy: if random.random() { Redundancy::Local } else { Redundancy::Mirrored },
            primary: node(random),
            created_unix_ms: random.next_u64(),
        },
        5 => Command::ResizeVolume {
            name: volume(random),
            size_bytes: size(random),
            may_shrink: random.random(),
        },
        6 => Command::DeleteVolume { name: volume(random), force: random.random(), deleted_unix_ms: 1 },
        7 => Command::VolumePurged { volume: VolumeId(random.random_range(0..20)), node: node(random) },
        8 | 9 => Command::BeginEpoch {
            volume: VolumeId(random.random_range(0..20)),
            expected_epoch: random.random_range(0..3),
            transition: *[
                Transition::Restart,
                Transition::Shrink,
                Transition::Expand,
                Transition::TakeOver,
                Transition::Move,
                Transition::Yield,
            ]
            .choose(random)
            .unwrap(),
            primary: node(random),
            in_sync: (0..random.random_range(0..3)).map(|_| node(random)).collect(),
            first_sequence: random.random_range(0..5),
            reason: String::new(),
        },
        10 => Command::AllowInitiator {
            volume: volume(random),
            initiator: if random.random() {
                AllowedInitiator::Everyone
            } else {
                initiator(random).parse().unwrap()
            },
        },
        11 => {
            Command::DenyInitiator { volume: volume(random), initiator: initiator(random).parse().unwrap() }
        }
        12 => {
            let mutual = random.random_bool(0.5).then(|| secret(random));
            chap(&initiator(random), &secret(random), mutual.as_deref())
        }
        _ => Command::SaveReservations {
            volume: VolumeId(random.random_range(0..20)),
            epoch: random.random_range(0..3),
            expected_revision: if random.random() { None } else { Some(random.random_range(0..3)) },
            registration_count: random.random_range(0..2),
            encoded: vec![1; random.random_range(0..5)],
        },
    }
}

/// `Machine::apply` checks the invariants, and that rejected commands change nothing.
#[test]
fn random_logs_keep_every_invariant_and_replay_to_the_same_bytes() {
    let (mut accepted, mut rejected) = (0, 0);
    for seed in 0..200 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut machine = Machine::with_nodes(&["a", "b"]);
        let mut given = BTreeSet::new();
        let mut epochs: BTreeMap<VolumeId, u32> = BTreeMap::new();
        for _ in 0..150 {
            let result = machine.apply(any_command(&mut random));
            if result.is_ok() {
                accepted += 1
            } else {
                rejected += 1
            }
            if let Ok(Outcome::VolumeCreated { id }) = result {
                assert!(given.insert(id), "number {id:?} given twice");
            }
            for record in machine.state.volumes() {
                let before = epochs.insert(record.id, record.epoch).unwrap_or(0);
                assert!(record.epoch == before || record.epoch == before + 1);
            }
        }
        let encoded = machine.state.encode();
        let log = serde_json::to_vec(&machine.log).unwrap();
        let log: Vec<Command> = serde_json::from_slice(&log).unwrap();
        assert_eq!(log, machine.log);
        let mut replayed = ControlState::new();
        for (index, command) in (1..).zip(log) {
            // Rejected again where it was rejected before.
            let _ = replayed.apply(index, command);
        }
        assert_eq!(replayed.encode(), encoded);
        assert_eq!(ControlState::decode(&encoded).unwrap(), machine.state);
    }
    assert!(accepted > 3000 && rejected > 3000, "{accepted} accepted, {rejected} rejected");
}
