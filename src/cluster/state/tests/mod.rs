//! The control state against its rules: each command by itself, and random logs.

mod access;
mod clones;
mod epochs;
mod formats;
mod random;
mod users;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use super::access::{AllowedInitiator, ChapCredentials, ChapSecret};
use super::node::KeyRefused;
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
fn nodes_and_the_witness_are_described() {
    let mut machine = Machine::with_nodes(&["a"]);
    let description = |address: &str, bytes: usize| Description {
        addresses: vec![address.to_owned()],
        room: "basement".to_owned(),
        key: KeyFingerprint(vec![3; bytes]),
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

#[test]
fn a_machine_that_was_removed_or_replaced_is_refused() {
    let mut machine = Machine::with_nodes(&["a", "b"]);
    let key = |byte| KeyFingerprint(vec![byte; 32]);
    let b: NodeName = "b".parse().unwrap();
    let set = |node: Option<&NodeName>, byte, is_first| Command::SetKey {
        node: node.cloned(),
        key: key(byte),
        is_first,
    };
    assert_eq!(machine.state.check_key(Some(&b), &key(1)), Ok(()), "whoever comes first");
    machine.must(set(Some(&b), 1, true));
    assert_eq!(machine.apply(set(Some(&b), 2, true)), Ok(Outcome::Unchanged));
    assert_eq!(machine.state.check_key(Some(&b), &key(2)), Err(KeyRefused::Other));
    // Another machine has joined in its place, and asks again.
    machine.must(set(Some(&b), 2, false));
    assert_eq!(machine.apply(set(Some(&b), 2, false)), Ok(Outcome::Unchanged));
    assert_eq!(machine.state.check_key(Some(&b), &key(2)), Ok(()));
    assert_eq!(machine.state.check_key(Some(&b), &key(1)), Err(KeyRefused::Void));
    assert_eq!(machine.apply(set(Some(&b), 1, false)), Err(Rejection::VoidKey));
    machine.must(Command::RemoveNode { name: b.clone() });
    assert_eq!(machine.state.check_key(Some(&b), &key(2)), Err(KeyRefused::Void));
    assert_eq!(machine.apply(set(None, 3, true)), Ok(Outcome::Unchanged));
    machine.must(Command::SetWitness { description: Description::default() });
    machine.must(set(None, 3, true));
    assert_eq!(machine.state.check_key(None, &key(4)), Err(KeyRefused::Other));
    machine.must(Command::RemoveWitness {});
    assert_eq!(machine.state.check_key(None, &key(3)), Err(KeyRefused::Void));
    assert_eq!(machine.apply(Command::RemoveWitness {}), Ok(Outcome::Unchanged));
    assert_eq!(machine.apply(set(Some(&b), 5, true)), Err(Rejection::NoSuchNode(b)));
}
