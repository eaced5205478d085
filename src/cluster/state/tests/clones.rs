//! Clones: what may be cloned, and what stays as long as they do.

use super::*;
use crate::base::units::Version;
use crate::store::interface::MAX_ANCESTORS;

fn clone(name: &str, origin: u32, expected_epoch: u32) -> Command {
    Command::CloneVolume {
        name: name.parse().unwrap(),
        origin: VolumeId(origin),
        expected_epoch,
        snapshot: Watermark { epoch: 1, sequence: 7 },
        snapshot_name: "monday".to_owned(),
        created_unix_ms: 5,
    }
}

fn machine() -> Machine {
    let mut machine = Machine::with_nodes(&["a", "b"]);
    machine.must(create("x", 1 << 30, Redundancy::Mirrored, "b"));
    machine.must(epoch(1, 0, Transition::Restart, "b", &["a", "b"]));
    machine
}

#[test]
fn a_clone_is_where_its_origin_is_in_sync() {
    let mut machine = machine();
    assert_eq!(machine.must(clone("both", 1, 1)), Outcome::VolumeCreated { id: VolumeId(2) });
    machine.must(epoch(1, 1, Transition::Shrink, "b", &["b"]));
    let stale = Rejection::StaleEpoch { volume: "x".parse().unwrap(), expected: 1, current: 2 };
    assert_eq!(machine.apply(clone("late", 1, 1)), Err(stale));
    machine.must(clone("one", 1, 2));
    for (name, in_sync) in [("both", 2), ("one", 1)] {
        let record = machine.record(name);
        assert_eq!((record.primary.as_str(), record.in_sync.len(), record.epoch), ("b", in_sync, 0));
        assert_eq!((record.size_bytes, record.redundancy), (1 << 30, Redundancy::Mirrored));
        let origin = record.origin.as_ref().unwrap();
        assert_eq!((origin.volume, origin.version()), (VolumeId(1), Version { epoch: 1, sequence: 7 }));
    }
    assert_eq!(machine.apply(clone("one", 1, 2)), Err(Rejection::VolumeExists("one".parse().unwrap())));
    assert_eq!(machine.apply(clone("none", 9, 0)), Err(Rejection::NoSuchVolumeId(VolumeId(9))));
    let mut bad = clone("bad", 1, 2);
    if let Command::CloneVolume { snapshot_name, .. } = &mut bad {
        *snapshot_name = "a@b".to_owned();
    }
    assert_eq!(machine.apply(bad), Err(Rejection::BadSnapshotName));
}

#[test]
fn what_a_clone_is_made_of_stays_as_long_as_it_does() {
    let mut machine = machine();
    machine.must(clone("c", 1, 1));
    let (origin, at) = (VolumeId(1), Version { epoch: 1, sequence: 7 });
    let keeper = |machine: &Machine| {
        machine.state.clone_of_snapshot(origin, at).map(|(name, is_gone)| (name.to_string(), is_gone))
    };
    assert_eq!(keeper(&machine), Some(("c".to_owned(), false)));
    assert_eq!(machine.state.clone_of_snapshot(origin, Version { epoch: 1, sequence: 8 }), None);
    let (volume, name) = ("x".parse().unwrap(), "c".parse().unwrap());
    assert_eq!(machine.apply(delete("x", true)), Err(Rejection::HasClones { volume, clone: name }));
    machine.must(delete("c", false));
    assert_eq!(keeper(&machine), Some(("c".to_owned(), true)));
    for node in ["a", "b"] {
        assert!(keeper(&machine).is_some());
        machine.must(Command::VolumePurged { volume: VolumeId(2), node: node.parse().unwrap() });
    }
    assert_eq!(keeper(&machine), None);
    machine.must(delete("x", false));
}

#[test]
fn clones_of_clones_go_so_far() {
    let mut machine = machine();
    for depth in 1..=MAX_ANCESTORS as u32 {
        let (of, expected) = (depth, u32::from(depth == 1));
        machine.must(clone(&format!("c{depth}"), of, expected));
    }
    let last = MAX_ANCESTORS as u32 + 1;
    let refused = machine.apply(clone("more", last, 0));
    assert!(matches!(refused, Err(Rejection::LineageTooLong { limit: MAX_ANCESTORS, .. })), "{refused:?}");
}
