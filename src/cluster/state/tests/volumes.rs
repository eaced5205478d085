//! Volumes: their sizes, numbers, and how they go.

use super::*;
use crate::cluster::state::limits::VolumeLimits;

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
fn limits_are_such_that_hosts_live_with_them() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let set = |name: &str, iops, bytes_per_second| Command::SetVolumeLimits {
        volume: name.parse().unwrap(),
        limits: VolumeLimits { iops, bytes_per_second, ..VolumeLimits::default() },
    };
    assert_eq!(machine.apply(set("x", 500, 0)), Ok(Outcome::Changed));
    assert_eq!(machine.apply(set("x", 500, 0)), Ok(Outcome::Unchanged));
    for (iops, bytes) in [(1, 0), (0, 4096)] {
        assert!(matches!(machine.apply(set("x", iops, bytes)), Err(Rejection::BadLimit { .. })));
    }
    assert_eq!(machine.record("x").limits, VolumeLimits { iops: 500, ..VolumeLimits::default() });
    let limits = VolumeLimits { quota_bytes: 1 << 20, reserved_bytes: 1 << 21, ..VolumeLimits::default() };
    let refused = machine.apply(Command::SetVolumeLimits { volume: "x".parse().unwrap(), limits });
    assert_eq!(refused, Err(Rejection::QuotaBelowReservation));
    assert_eq!(machine.apply(set("x", 0, 0)), Ok(Outcome::Changed));
    assert!(matches!(machine.apply(set("y", 500, 0)), Err(Rejection::NoSuchVolume(_))));
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
        expected_revision: None,
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
fn a_save_of_reservations_that_comes_late_changes_nothing() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let save = |expected_revision, byte| Command::SaveReservations {
        volume: VolumeId(1),
        epoch: 0,
        expected_revision,
        registration_count: 1,
        encoded: vec![byte],
    };
    // What came of the first is not learned, so the second is made from the same state. It commits before.
    let (first, second) = (save(Some(0), 1), save(Some(0), 2));
    assert_eq!(machine.apply(second), Ok(Outcome::ReservationsSaved { revision: 1 }));
    let late = machine.apply(first);
    assert!(matches!(late, Err(Rejection::StaleReservations { expected: 0, current: 1, .. })));
    assert_eq!(machine.record("x").reservations.encoded, [2]);
    machine.must(save(Some(1), 3));
    // Entries of older programs do not say what they expect.
    machine.must(save(None, 4));
    let old = r#"{"save_reservations":{"volume":1,"epoch":0,"registration_count":1,"encoded":"05"}}"#;
    machine.must(serde_json::from_str(old).unwrap());
    assert_eq!(machine.record("x").reservations.revision, 4);
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
