//! Random lives of a pair, and proof that they find bugs: each seeded bug of the mirror by some seed.
//!
//! `SEEDS=n` says how many seeds there are, `MUTANT=Name` takes one mutant.

use super::super::mutant::{self, Mutant};
use super::world::{Totals, run};
use super::{by_hand, healing, pair, snapshots};
use crate::sim::mutant_search::{self as search, Found};

fn seeds(default: u64) -> u64 {
    search::seeds().unwrap_or(default)
}

#[test]
fn random_lives_of_a_pair_lose_nothing() {
    let mut all = Totals::default();
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds(300) {
        let (totals, _) = run(seed).unwrap_or_else(|problem| panic!("{problem}"));
        all.writes += totals.writes;
        all.reads += totals.reads;
        all.crashes += totals.crashes;
        all.breaks += totals.breaks;
        all.take_overs += totals.take_overs;
        all.moves += totals.moves;
        all.epochs += totals.epochs;
        all.resyncs += totals.resyncs;
        all.broken_resyncs += totals.broken_resyncs;
        all.copied_blocks += totals.copied_blocks;
        all.take_overs_behind += totals.take_overs_behind;
        all.snapshots += totals.snapshots;
        all.views += totals.views;
    }
    println!("{all:?}");
    let rare = [all.crashes, all.breaks, all.take_overs, all.moves, all.resyncs, all.broken_resyncs];
    assert!(all.snapshots > 100 && all.views > 100, "{all:?}");
    assert!(rare.iter().all(|count| *count > 5), "{all:?}");
}

#[test]
fn a_life_is_the_same_twice() {
    for seed in 0..3 {
        assert_eq!(run(seed).unwrap().1, run(seed).unwrap().1);
    }
}

#[test]
fn every_mutant_is_found() {
    // Those about rollbacks are found by the lives of the whole cluster: volumes roll back, mirrors do not.
    let is_elsewhere =
        |mutant: &Mutant| matches!(mutant, Mutant::RollbackInFlightShown | Mutant::KeptStateInRollback);
    let mutants: Vec<Mutant> = Mutant::ALL.into_iter().filter(|mutant| !is_elsewhere(mutant)).collect();
    search::all_are_found("mirror", &mutants, |mutant| find(mutant, seeds(1500)));
}

/// What finds `mutant`. Those that real stores in one log make harmless
/// are looked for by tests of their own.
fn find(mutant: Mutant, seeds: u64) -> Option<Found> {
    let directed = match mutant {
        Mutant::OldConfirmationCounts => {
            Some(pair::a_confirmation_of_the_epoch_before_does_not_complete_an_append as fn())
        }
        Mutant::OldStreamAnswers => Some(by_hand::answers_of_an_older_stream_do_not_count as fn()),
        Mutant::OldStreamWrites => Some(by_hand::writes_of_an_older_stream_are_not_taken as fn()),
        Mutant::ReplicaUnprepared => Some(pair::two_full_nodes_take_overwrites as fn()),
        Mutant::HealStale => Some(healing::an_append_meanwhile_is_never_undone as fn()),
        Mutant::NoFence => Some(pair::a_newer_promise_fences_the_old_primary as fn()),
        Mutant::CursorBeforeCopies => {
            Some(by_hand::the_cursor_does_not_pass_a_copy_without_an_answer as fn())
        }
        Mutant::KeptStateDroppedEarly => {
            Some(snapshots::the_last_consistent_state_is_kept_until_the_end as fn())
        }
        Mutant::SnapshotNotReconciled | Mutant::HistoryStageSkipped | Mutant::VoidLeftInHistory => {
            Some(snapshots::a_replica_that_was_away_gets_the_history as fn())
        }
        Mutant::HoleNotRestated => {
            Some(snapshots::a_hole_over_nothing_hides_history_that_is_put_below_it as fn())
        }
        Mutant::VoidDropCounts => {
            Some(snapshots::what_only_a_snapshot_showed_comes_back_when_its_dropping_is_void as fn())
        }
        _ => None,
    };
    let live = |seed| run(seed).map(drop);
    match directed {
        Some(test) => mutant::with(mutant, || Found::by_test(test)),
        None => Found::by_seed(0..=seeds, |seed| mutant::with(mutant, || live(seed)), live),
    }
}
