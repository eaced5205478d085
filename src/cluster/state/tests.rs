//! The control state against its rules: each command by itself, and random logs.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::access::{AllowedInitiator, ChapCredentials, ChapSecret};
use super::history::{CommonPoint, KeptThrough};
use super::volume::{
    LARGEST_VOLUME_BYTES, Redundancy, SMALLEST_VOLUME_BYTES, SectorSize, Transition, Watermark,
};
use super::*;

/// A state and the log that made it.
struct Machine {
    state: ControlState,
    log: Vec<Command>,
}

impl Machine {
    fn empty() -> Self {
        Self { state: ControlState::new(), log: Vec::new() }
    }

    fn with_nodes(nodes: &[&str]) -> Self {
        let mut machine = Self::empty();
        let uuid = ClusterUuid([7; 16]);
        machine.must(Command::CreateCluster { name: "demo".parse().unwrap(), uuid, created_unix_ms: 1 });
        for node in nodes {
            machine.must(Command::AddNode { name: node.parse().unwrap() });
        }
        machine
    }

    fn apply(&mut self, command: Command) -> Result<Outcome, Rejection> {
        let before = self.state.clone();
        let index = before.applied_index + 1;
        self.log.push(command.clone());
        let result = self.state.apply(index, command);
        let mut without_index = self.state.clone();
        without_index.applied_index = before.applied_index;
        match &result {
            Err(_) | Ok(Outcome::Unchanged | Outcome::OpenToEveryone { is_new: false }) => {
                assert_eq!(without_index, before);
            }
            Ok(_) => assert_ne!(without_index, before),
        }
        assert_eq!(self.state.flaw(), None);
        result
    }

    fn must(&mut self, command: Command) -> Outcome {
        self.apply(command).unwrap()
    }

    fn record(&self, name: &str) -> &VolumeRecord {
        self.state.volume(&name.parse().unwrap()).unwrap()
    }
}

fn create(name: &str, size_bytes: u64, redundancy: Redundancy, primary: &str) -> Command {
    Command::CreateVolume {
        name: name.parse().unwrap(),
        size_bytes,
        sector: SectorSize::Emulated512,
        redundancy,
        primary: primary.parse().unwrap(),
        created_unix_ms: 5,
    }
}

fn delete(name: &str, force: bool) -> Command {
    Command::DeleteVolume { name: name.parse().unwrap(), force, deleted_unix_ms: 9 }
}

fn resize(name: &str, size_bytes: u64, may_shrink: bool) -> Command {
    Command::ResizeVolume { name: name.parse().unwrap(), size_bytes, may_shrink }
}

fn epoch(
    volume: u32,
    expected_epoch: u32,
    transition: Transition,
    primary: &str,
    in_sync: &[&str],
) -> Command {
    Command::BeginEpoch {
        volume: VolumeId(volume),
        expected_epoch,
        transition,
        primary: primary.parse().unwrap(),
        in_sync: in_sync.iter().map(|node| node.parse().unwrap()).collect(),
        first_sequence: u64::from(expected_epoch) * 10 + 1,
        reason: String::new(),
    }
}

fn chap(initiator: &str, incoming: &str, mutual: Option<&str>) -> Command {
    let credentials = |user: &str, secret: &str| ChapCredentials {
        user: user.to_owned(),
        secret: ChapSecret::new(secret.to_owned()),
    };
    Command::SetChap {
        initiator: initiator.parse().unwrap(),
        incoming: credentials("host", incoming),
        mutual: mutual.map(|secret| credentials("array", secret)),
    }
}

#[test]
fn nothing_comes_before_the_cluster_and_only_one_is_created() {
    let mut machine = Machine::empty();
    assert_eq!(machine.apply(Command::AddNode { name: "a".parse().unwrap() }), Err(Rejection::NoCluster));
    assert_eq!(machine.state.applied_index(), 1, "a rejected entry counts as applied");
    let command = |name: &str| Command::CreateCluster {
        name: name.parse().unwrap(),
        uuid: ClusterUuid([1; 16]),
        created_unix_ms: 1,
    };
    assert_eq!(machine.apply(command("demo")), Ok(Outcome::Changed));
    assert_eq!(machine.apply(command("demo")), Ok(Outcome::Unchanged));
    assert!(matches!(machine.apply(command("other")), Err(Rejection::ClusterExists { .. })));
    let target = machine.state.target_name(&"vm-1".parse().unwrap());
    assert_eq!(target.as_deref(), Some("iqn.2026-11.io.gemel:demo:vm-1"));
}

#[test]
fn entries_are_applied_once() {
    let mut machine = Machine::with_nodes(&["a"]);
    let again = machine.state.apply(2, delete("x", false));
    assert_eq!(again, Err(Rejection::AlreadyApplied { index: 2, applied_index: 2 }));
    assert!(machine.state.apply(9, create("x", 1 << 30, Redundancy::Local, "a")).is_ok());
    assert_eq!(machine.state.applied_index(), 9);
}

#[test]
fn sizes_have_limits_and_shrinking_must_be_asked_for() {
    let mut machine = Machine::with_nodes(&["a"]);
    for size_bytes in
        [0, SMALLEST_VOLUME_BYTES - 4096, (1 << 30) + 512, LARGEST_VOLUME_BYTES + 4096, u64::MAX]
    {
        let refused = machine.apply(create("x", size_bytes, Redundancy::Local, "a"));
        assert_eq!(refused, Err(Rejection::BadSize { size_bytes }));
    }
    machine.must(create("x", SMALLEST_VOLUME_BYTES, Redundancy::Local, "a"));
    machine.must(resize("x", LARGEST_VOLUME_BYTES, false));
    assert_eq!(machine.apply(resize("x", LARGEST_VOLUME_BYTES, false)), Ok(Outcome::Unchanged));
    assert_eq!(
        machine.apply(resize("x", 1 << 30, false)),
        Err(Rejection::WouldShrink {
            volume: "x".parse().unwrap(),
            from_bytes: LARGEST_VOLUME_BYTES,
            to_bytes: 1 << 30
        })
    );
    assert_eq!(machine.apply(resize("x", 1 << 30, true)), Ok(Outcome::Changed));
    assert_eq!(machine.record("x").size_bytes, 1 << 30);
    assert!(matches!(machine.apply(resize("y", 1 << 30, true)), Err(Rejection::NoSuchVolume(_))));
}

#[test]
fn numbers_of_volumes_are_never_given_twice() {
    let mut machine = Machine::with_nodes(&["a"]);
    let created = |id| Ok(Outcome::VolumeCreated { id: VolumeId(id) });
    assert_eq!(machine.apply(create("x", 1 << 30, Redundancy::Local, "a")), created(1));
    let twice = machine.apply(create("x", 1 << 30, Redundancy::Local, "a"));
    assert_eq!(twice, Err(Rejection::VolumeExists("x".parse().unwrap())));
    machine.must(delete("x", false));
    assert_eq!(machine.apply(create("x", 1 << 30, Redundancy::Local, "a")), created(2));
    machine.must(Command::VolumePurged { volume: VolumeId(1), node: "a".parse().unwrap() });
    machine.must(delete("x", false));
    assert_eq!(machine.apply(create("x", 1 << 30, Redundancy::Local, "a")), created(3));
}

#[test]
fn a_deleted_volume_is_remembered_until_every_node_has_purged_it() {
    let mut machine = Machine::with_nodes(&["a", "b"]);
    machine.must(create("x", 1 << 30, Redundancy::Mirrored, "a"));
    assert_eq!(machine.must(delete("x", false)), Outcome::VolumeDeleted { id: VolumeId(1) });
    let purged = |node: &str| Command::VolumePurged { volume: VolumeId(1), node: node.parse().unwrap() };
    assert_eq!(machine.apply(purged("b")), Ok(Outcome::Changed));
    assert_eq!(machine.apply(purged("b")), Ok(Outcome::Unchanged));
    assert_eq!(machine.state.tombstones().count(), 1);
    machine.must(Command::RemoveNode { name: "a".parse().unwrap() });
    assert_eq!(machine.state.tombstones().count(), 0, "a removed node has nothing to purge");
}

#[test]
fn a_reserved_volume_is_deleted_by_force_only() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let save = |epoch, registration_count, length| Command::SaveReservations {
        volume: VolumeId(1),
        epoch,
        registration_count,
        encoded: vec![9; length],
    };
    assert_eq!(machine.apply(save(0, 2, 10)), Ok(Outcome::ReservationsSaved { revision: 1 }));
    machine.must(epoch(1, 0, Transition::Restart, "a", &["a"]));
    assert!(matches!(machine.apply(save(0, 0, 0)), Err(Rejection::StaleEpoch { current: 1, .. })));
    assert!(matches!(machine.apply(save(1, 0, 2 << 20)), Err(Rejection::ReservationsTooLarge { .. })));
    let refused = machine.apply(delete("x", false));
    assert_eq!(
        refused,
        Err(Rejection::VolumeReserved { volume: "x".parse().unwrap(), registration_count: 2 })
    );
    let mut forced = Machine { state: machine.state.clone(), log: Vec::new() };
    forced.must(delete("x", true));
    machine.must(save(1, 0, 0));
    assert_eq!(machine.record("x").reservations.revision, 2);
    machine.must(delete("x", false));
}

#[test]
fn epochs_are_compared_and_swapped() {
    use Transition::{Expand, Move, Restart, Shrink, TakeOver};
    let mut machine = Machine::with_nodes(&["a", "b"]);
    machine.must(create("x", 1 << 30, Redundancy::Mirrored, "a"));
    let bad = Err(Rejection::BadTransition { volume: "x".parse().unwrap() });
    assert_eq!(machine.must(epoch(1, 0, Restart, "a", &["a", "b"])), Outcome::EpochBegun { epoch: 1 });
    // Shrink and take-over race for one epoch: exactly one wins.
    let mut other = Machine { state: machine.state.clone(), log: Vec::new() };
    machine.must(epoch(1, 1, Shrink, "a", &["a"]));
    let late = machine.apply(epoch(1, 1, TakeOver, "b", &["b"]));
    assert!(matches!(late, Err(Rejection::StaleEpoch { expected: 1, current: 2, .. })));
    other.must(epoch(1, 1, TakeOver, "b", &["b"]));
    assert!(matches!(other.apply(epoch(1, 1, Shrink, "a", &["a"])), Err(Rejection::StaleEpoch { .. })));
    assert_eq!(other.record("x").primary.as_str(), "b");

    // The node left behind can't serve, however it is put.
    for transition in [TakeOver, Move, Restart, Shrink, Expand] {
        let refused = machine.apply(epoch(1, 2, transition, "b", &["b"]));
        assert!(matches!(refused, Err(Rejection::NotInSync { .. })));
    }
    assert_eq!(machine.apply(epoch(1, 2, Restart, "a", &["a", "b"])), bad, "only Expand enlarges");
    machine.must(epoch(1, 2, Expand, "a", &["a", "b"]));
    assert_eq!(machine.apply(epoch(1, 3, TakeOver, "b", &["a", "b"])), bad, "a take-over stands alone");
    assert_eq!(machine.apply(epoch(1, 3, Move, "b", &["b"])), bad);
    assert_eq!(machine.apply(epoch(1, 3, Shrink, "a", &["b"])), bad, "a primary is in its own set");
    assert_eq!(machine.apply(epoch(1, 3, Shrink, "a", &["a", "b"])), bad);
    assert!(matches!(machine.apply(epoch(1, 3, Shrink, "a", &["a", "c"])), Err(Rejection::NoSuchNode(_))));
    machine.must(epoch(1, 3, Move, "b", &["a", "b"]));
    assert_eq!(machine.record("x").epoch_starts, BTreeMap::from([(1, 1), (2, 11), (3, 21), (4, 31)]));
}

#[test]
fn sequence_numbers_of_epochs_never_go_back() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let begin = |expected_epoch, first_sequence| Command::BeginEpoch {
        volume: VolumeId(1),
        expected_epoch,
        transition: Transition::Restart,
        primary: "a".parse().unwrap(),
        in_sync: BTreeSet::from(["a".parse().unwrap()]),
        first_sequence,
        reason: String::new(),
    };
    machine.must(begin(0, 100));
    machine.must(begin(1, 100));
    let refused = machine.apply(begin(2, 99));
    assert!(matches!(refused, Err(Rejection::SequenceWentBack { previous: 100, .. })));
    (2..1100).for_each(|epoch| {
        machine.must(begin(epoch, 100 + u64::from(epoch)));
    });
    assert_eq!(machine.record("x").epoch_starts.len(), 1024);
    assert!(machine.record("x").epoch_starts.contains_key(&1100));
}

#[test]
fn nodes_in_use_stay_and_portal_groups_are_their_own() {
    let mut machine = Machine::with_nodes(&["a"]);
    let mirrored = create("x", 1 << 30, Redundancy::Mirrored, "a");
    assert_eq!(machine.apply(mirrored.clone()), Err(Rejection::NeedsTwoNodes { node_count: 1 }));
    machine.must(Command::AddNode { name: "b".parse().unwrap() });
    let third = machine.apply(Command::AddNode { name: "c".parse().unwrap() });
    assert!(matches!(third, Err(Rejection::LimitReached { what: "nodes", .. })));
    machine.must(mirrored);
    let remove = |name: &str| Command::RemoveNode { name: name.parse().unwrap() };
    assert!(matches!(machine.apply(remove("b")), Err(Rejection::NodeInUse { .. })));
    machine.must(delete("x", false));
    machine.must(remove("a"));
    assert_eq!(machine.apply(remove("a")), Ok(Outcome::Unchanged));
    machine.must(Command::AddNode { name: "c".parse().unwrap() });
    let tags: Vec<_> =
        machine.state.nodes().map(|(name, node)| (name.as_str(), node.portal_group_tag)).collect();
    assert_eq!(tags, [("b", 2), ("c", 1)]);
    let nowhere = machine.apply(create("y", 1 << 30, Redundancy::Local, "a"));
    assert_eq!(nowhere, Err(Rejection::NoSuchNode("a".parse().unwrap())));
}

#[test]
fn access_is_by_list_and_everyone_is_said_aloud() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let volume: VolumeName = "x".parse().unwrap();
    let (friend, stranger) =
        ("iqn.2026-01.org:friend".parse().unwrap(), "iqn.2026-01.org:stranger".parse().unwrap());
    let allow = |initiator: &str| Command::AllowInitiator {
        volume: "x".parse().unwrap(),
        initiator: initiator.parse().unwrap(),
    };
    let deny = |initiator: &str| Command::DenyInitiator {
        volume: "x".parse().unwrap(),
        initiator: initiator.parse().unwrap(),
    };
    assert!(!machine.state.may_access(&volume, &friend), "nobody at first");
    assert_eq!(machine.apply(allow("iqn.2026-01.ORG:friend")), Ok(Outcome::Changed));
    assert_eq!(machine.apply(allow("iqn.2026-01.org:friend")), Ok(Outcome::Unchanged));
    assert!(machine.state.may_access(&volume, &friend) && !machine.state.may_access(&volume, &stranger));
    assert_eq!(machine.apply(allow("*")), Ok(Outcome::OpenToEveryone { is_new: true }));
    assert_eq!(machine.apply(allow("*")), Ok(Outcome::OpenToEveryone { is_new: false }));
    assert!(machine.state.may_access(&volume, &stranger));
    assert_eq!(machine.apply(deny("*")), Ok(Outcome::Changed));
    assert_eq!(machine.apply(deny("*")), Ok(Outcome::Unchanged));
    assert!(machine.state.may_access(&volume, &friend) && !machine.state.may_access(&volume, &stranger));
    machine.must(delete("x", false));
    assert!(!machine.state.may_access(&volume, &friend));
}

#[test]
fn chap_secrets_are_long_enough_one_way_only_and_hidden() {
    let mut machine = Machine::with_nodes(&["a"]);
    let (host, other) = ("iqn.2026-01.org:host", "iqn.2026-01.org:other");
    for length in [0, 11, 256] {
        let refused = machine.apply(chap(host, &"s".repeat(length), None));
        assert_eq!(refused, Err(Rejection::SecretLength { length_bytes: length }));
        let refused = machine.apply(chap(host, "long enough 1", Some(&"s".repeat(length))));
        assert_eq!(refused, Err(Rejection::SecretLength { length_bytes: length }));
    }
    let reused = |initiator: &str| Err(Rejection::SecretReused { initiator: initiator.parse().unwrap() });
    assert_eq!(machine.apply(chap(host, "long enough 1", Some("long enough 1"))), reused(host));
    let command = chap(host, "long enough 1", Some("long enough 2"));
    assert!(!format!("{command:?}").contains("long enough"));
    assert_eq!(machine.apply(command.clone()), Ok(Outcome::Changed));
    assert_eq!(machine.apply(command), Ok(Outcome::Unchanged));
    assert!(!format!("{:?}", machine.state).contains("long enough"));
    // Neither direction may borrow the other's secret from another initiator.
    assert_eq!(machine.apply(chap(other, "long enough 2", None)), reused(other));
    assert_eq!(machine.apply(chap(other, "long enough 3", Some("long enough 1"))), reused(other));
    machine.must(chap(other, "long enough 1", Some("long enough 2")));
    let mut bad_user = chap(host, "long enough 4", None);
    if let Command::SetChap { incoming, .. } = &mut bad_user {
        incoming.user = "two words".to_owned();
    }
    assert_eq!(machine.apply(bad_user), Err(Rejection::BadUserName));
    let clear = Command::ClearChap { initiator: host.parse().unwrap() };
    assert_eq!(machine.apply(clear.clone()), Ok(Outcome::Changed));
    assert_eq!(machine.apply(clear), Ok(Outcome::Unchanged));
}

#[test]
fn settings_have_ranges() {
    let mut machine = Machine::with_nodes(&[]);
    let change = |space_warning_percent| Command::ChangeSettings {
        settings: Settings { space_warning_percent, ..Settings::default() },
    };
    assert_eq!(machine.apply(change(80)), Ok(Outcome::Unchanged));
    assert_eq!(machine.apply(change(70)), Ok(Outcome::Changed));
    for percent in [0, 100] {
        assert!(matches!(machine.apply(change(percent)), Err(Rejection::BadSetting { .. })));
    }
}

#[test]
fn damaged_and_newer_states_are_refused() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let text = String::from_utf8(machine.state.encode()).unwrap();
    let decode = |text: &str| ControlState::decode(text.as_bytes());
    assert_eq!(decode(&text).unwrap(), machine.state);
    let newer = text.replace("\"format\":3", "\"format\":4");
    assert!(matches!(decode(&newer), Err(DecodeError::Newer { format: 4 })));
    assert!(matches!(decode(&text[..text.len() - 1]), Err(DecodeError::Malformed { .. })));
    for (good, bad) in
        [("\"name\":\"x\"", "\"name\":\"X\""), ("\"sector\":512", "\"sector\":520"), ("07070707", "0707070")]
    {
        assert!(matches!(decode(&text.replace(good, bad)), Err(DecodeError::Malformed { .. })), "{bad}");
    }
    for (good, bad) in [
        ("\"in_sync\":[\"a\"]", "\"in_sync\":[]"),
        ("\"last_volume_id\":1", "\"last_volume_id\":0"),
        ("\"size_bytes\":1073741824", "\"size_bytes\":5"),
        ("\"epoch\":0", "\"epoch\":4"),
    ] {
        assert!(text.contains(good), "{good} in {text}");
        assert!(matches!(decode(&text.replace(good, bad)), Err(DecodeError::Inconsistent { .. })), "{bad}");
    }
}

#[test]
fn sector_sizes_are_written_as_bytes_or_by_name() {
    for (sector, text) in [
        (SectorSize::Emulated512, "512"),
        (SectorSize::Native512, "\"512n\""),
        (SectorSize::Native4096, "4096"),
    ] {
        assert_eq!(serde_json::to_string(&sector).unwrap(), text);
        assert_eq!(serde_json::from_str::<SectorSize>(text).unwrap(), sector);
        assert_eq!(SectorSize::new(sector.bytes(), sector.physical_bytes()), Ok(sector));
    }
    assert!(SectorSize::new(4096, 512).is_err());
}

#[test]
fn format_1_is_still_read() {
    let log: Vec<Command> = serde_json::from_str(include_str!("fixtures/commands-1.json")).unwrap();
    let mut state = ControlState::new();
    for (index, command) in (1..).zip(log) {
        state.apply(index, command).unwrap();
    }
    // Format 1 did not say why an epoch began.
    state.volumes.values_mut().for_each(|record| record.began_by = None);
    let fixture = include_bytes!("fixtures/state-1.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state);
}

#[test]
fn format_2_is_still_read() {
    let log: Vec<Command> = serde_json::from_str(include_str!("fixtures/commands-2.json")).unwrap();
    let mut state = ControlState::new();
    for (index, command) in (1..).zip(log) {
        state.apply(index, command).unwrap();
    }
    // Format 2 kept no reasons, and missed what a force had given up.
    state.volumes.values_mut().for_each(|record| {
        record.reason.clear();
        record.watermark = Watermark { epoch: 4, sequence: 33 };
    });
    let fixture = include_bytes!("fixtures/state-2.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state);
}

#[test]
fn format_3_is_still_read() {
    let log: Vec<Command> = serde_json::from_str(include_str!("fixtures/commands-3.json")).unwrap();
    let mut state = ControlState::new();
    for (index, command) in (1..).zip(log) {
        state.apply(index, command).unwrap();
    }
    let fixture = include_bytes!("fixtures/state-3.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state, "{}", String::from_utf8_lossy(&state.encode()));
}

#[test]
fn a_certificate_starts_either_node_once() {
    use Transition::{Restart, Start, Stop};
    let mut machine = Machine::with_nodes(&["a", "b"]);
    machine.must(create("x", 1 << 30, Redundancy::Mirrored, "a"));
    machine.must(epoch(1, 0, Restart, "a", &["a", "b"]));
    let bad = Err(Rejection::BadTransition { volume: "x".parse().unwrap() });
    assert!(!machine.record("x").is_settled(), "what a restart finds may be in doubt");
    assert_eq!(machine.apply(epoch(1, 1, Start, "b", &["a", "b"])), bad, "without a certificate");
    machine.must(epoch(1, 1, Stop, "a", &["a", "b"]));
    assert!(machine.record("x").is_certified());
    machine.must(epoch(1, 2, Start, "b", &["a", "b"]));
    assert!(machine.record("x").is_settled() && !machine.record("x").is_certified());
    assert_eq!(machine.apply(epoch(1, 3, Start, "a", &["a", "b"])), bad, "consumed");
    machine.must(epoch(1, 3, Transition::Shrink, "b", &["b"]));
    assert_eq!(machine.apply(epoch(1, 4, Stop, "b", &["b"])), bad, "one replica is no certificate for two");
}

#[test]
fn a_force_is_a_fork_of_the_history() {
    use Transition::{Force, Restart, Shrink};
    let kept = |epoch, sequence| KeptThrough { epoch, sequence };
    let force = |expected_epoch, primary: &str, kept_through| Command::ForcePrimary {
        volume: VolumeId(1),
        expected_epoch,
        primary: primary.parse().unwrap(),
        kept_through,
        forced_unix_ms: 9,
    };
    let mut machine = Machine::with_nodes(&["a", "b"]);
    machine.must(create("x", 1 << 30, Redundancy::Mirrored, "a"));
    machine.must(epoch(1, 0, Restart, "a", &["a", "b"]));
    let bad = Err(Rejection::BadTransition { volume: "x".parse().unwrap() });
    assert_eq!(machine.apply(force(1, "b", kept(1, 5))), bad, "a member takes over without force");
    machine.must(epoch(1, 1, Shrink, "a", &["a"]));
    machine.must(epoch(1, 2, Restart, "a", &["a"]));
    // Epochs began at 1, 11 and 21. B was left behind at (1, 7).
    assert!(matches!(machine.apply(epoch(1, 3, Force, "b", &["b"])), Err(Rejection::NotInSync { .. })));
    assert!(matches!(machine.apply(force(2, "b", kept(1, 7))), Err(Rejection::StaleEpoch { .. })));
    assert_eq!(machine.apply(force(3, "b", kept(4, 7))), bad, "from an epoch that has not been");
    assert_eq!(machine.must(force(3, "b", kept(1, 7))), Outcome::EpochBegun { epoch: 4 });
    let record = machine.record("x");
    assert_eq!((record.primary.as_str(), record.in_sync.len(), record.is_settled()), ("b", 1, true));
    // A comes back with what was given up: acknowledged versions of two whole epochs too.
    for (newest, expected) in [
        (kept(1, 7), CommonPoint::Everything),
        (kept(1, 8), CommonPoint::Through(kept(1, 7))),
        (kept(2, 11), CommonPoint::Through(kept(1, 7))),
        (kept(3, 99), CommonPoint::Through(kept(1, 7))),
        (kept(4, 21), CommonPoint::Everything),
    ] {
        assert_eq!(record.common_point(newest), expected, "{newest:?}");
    }
}

#[test]
fn a_replica_that_was_away_gives_up_what_nobody_else_has() {
    let mut machine = Machine::with_nodes(&["a", "b"]);
    machine.must(create("x", 1 << 30, Redundancy::Mirrored, "a"));
    machine.must(epoch(1, 0, Transition::Restart, "a", &["a", "b"]));
    machine.must(epoch(1, 1, Transition::TakeOver, "b", &["b"]));
    machine.must(epoch(1, 2, Transition::Expand, "b", &["a", "b"]));
    let record = machine.record("x");
    let point = |epoch, sequence| record.common_point(KeptThrough { epoch, sequence });
    assert_eq!(point(1, 10), CommonPoint::Everything);
    assert_eq!(point(1, 14), CommonPoint::Through(KeptThrough { epoch: 1, sequence: 10 }));
    assert_eq!(point(3, 14), CommonPoint::Everything);
    for expected_epoch in 3..1200 {
        machine.must(epoch(1, expected_epoch, Transition::Restart, "b", &["a", "b"]));
    }
    let kept = KeptThrough { epoch: 3, sequence: 25 };
    assert_eq!(machine.record("x").common_point(kept), CommonPoint::Unknown);
}

#[test]
fn a_take_over_in_the_middle_of_a_settling_gives_up_what_was_in_flight_before() {
    let mut machine = Machine::with_nodes(&["a", "b"]);
    machine.must(create("x", 1 << 30, Redundancy::Mirrored, "a"));
    machine.must(epoch(1, 0, Transition::Restart, "a", &["a", "b"]));
    // "a" restarts at (1, 10) with writes that "b", at (1, 8), has not got.
    machine.must(epoch(1, 1, Transition::Restart, "a", &["a", "b"]));
    machine.must(Command::BeginEpoch {
        volume: VolumeId(1),
        expected_epoch: 2,
        transition: Transition::TakeOver,
        primary: "b".parse().unwrap(),
        in_sync: BTreeSet::from(["b".parse().unwrap()]),
        first_sequence: 9,
        reason: String::new(),
    });
    let record = machine.record("x");
    assert_eq!(record.epoch_starts[&3], 11, "numbers that were given are not given again");
    let point = |epoch, sequence| record.common_point(KeptThrough { epoch, sequence });
    assert_eq!(point(1, 10), CommonPoint::Through(KeptThrough { epoch: 1, sequence: 8 }));
    assert_eq!(point(2, 12), CommonPoint::Through(KeptThrough { epoch: 2, sequence: 8 }));
    assert_eq!(point(1, 8), CommonPoint::Everything);
    assert_eq!(point(3, 30), CommonPoint::Everything);
}

#[test]
fn watermarks_only_grow_and_belong_to_their_epoch() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    machine.must(epoch(1, 0, Transition::Restart, "a", &["a"]));
    let record = |epoch, sequence| Command::RecordWatermarks {
        watermarks: BTreeMap::from([
            (VolumeId(1), Watermark { epoch, sequence }),
            (VolumeId(7), Watermark { epoch, sequence }),
        ]),
    };
    machine.must(record(1, 20));
    assert_eq!(machine.apply(record(1, 19)), Ok(Outcome::Unchanged));
    assert_eq!(machine.apply(record(2, 30)), Ok(Outcome::Unchanged), "of an epoch that has not begun");
    machine.must(epoch(1, 1, Transition::Restart, "a", &["a"]));
    // A primary goes on into an epoch with writes of the one before in flight.
    machine.must(record(1, 40));
    machine.must(record(2, 41));
    assert_eq!(machine.record("x").watermark, Watermark { epoch: 2, sequence: 41 });
    // What an operator has given up does not come back.
    machine.must(epoch(1, 2, Transition::Restart, "a", &["a"]));
    machine
        .state
        .volumes
        .get_mut(&VolumeId(1))
        .unwrap()
        .forks
        .insert(3, KeptThrough { epoch: 2, sequence: 30 });
    assert_eq!(machine.apply(record(2, 42)), Ok(Outcome::Unchanged));
}

#[test]
fn nodes_and_the_witness_are_described() {
    let mut machine = Machine::with_nodes(&["a"]);
    let description = |address: &str, bytes: usize| Description {
        addresses: vec![address.to_owned()],
        room: "basement".to_owned(),
        certificate_sha256: vec![3; bytes],
    };
    let describe =
        |name: &str, description| Command::DescribeNode { name: name.parse().unwrap(), description };
    machine.must(describe("a", description("10.0.0.1:3261", 32)));
    let again = machine.apply(describe("a", description("10.0.0.1:3261", 32)));
    assert_eq!(again, Ok(Outcome::Unchanged));
    for bad in [description("", 32), description("a\nb", 32), description("a:1", 31)] {
        assert_eq!(machine.apply(describe("a", bad.clone())), Err(Rejection::BadDescription));
        let command = Command::SetWitness { description: bad };
        assert_eq!(machine.apply(command), Err(Rejection::BadDescription));
    }
    let unknown = machine.apply(describe("c", description("x:1", 0)));
    assert!(matches!(unknown, Err(Rejection::NoSuchNode(_))));
    machine.must(Command::SetWitness { description: description("w:3261", 32) });
    assert_eq!(machine.state.witness().unwrap().room, "basement");
}

/// A command from small pools, so that commands meet each other's effects.
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
    match random.random_range(0..14) {
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
