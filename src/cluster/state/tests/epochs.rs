//! Epochs: who may begin which, what they make of the history, and what is known to have been acknowledged.

use super::super::history::{CommonPoint, KeptThrough};
use super::*;

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
    assert_eq!((machine.record("x").started_in, machine.record("x").certified_through()), (3, Some(10)));
    assert_eq!(machine.apply(epoch(1, 3, Start, "a", &["a", "b"])), bad, "consumed");
    machine.must(epoch(1, 3, Transition::Shrink, "b", &["b"]));
    assert_eq!((machine.record("x").started_in, machine.record("x").certified_through()), (3, None));
    assert_eq!(machine.apply(epoch(1, 4, Start, "b", &["b"])), bad);
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
