//! Random lives of a pair, and proof that they find bugs: each seeded bug of the mirror by some seed.
//!
//! `SEEDS=n` says how many seeds there are, `MUTANT=Name` takes one mutant.

use std::any::Any;
use std::panic::{catch_unwind, set_hook, take_hook};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::mutant::{self, Mutant};
use super::world::{Totals, run};
use super::{by_hand, healing, pair, snapshots};

fn seeds(default: u64) -> u64 {
    std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
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
    let only = std::env::var("MUTANT").ok();
    // Those about rollbacks are found by the lives of the whole cluster: volumes roll back, mirrors do not.
    let is_elsewhere =
        |mutant: &Mutant| matches!(mutant, Mutant::RollbackInFlightShown | Mutant::KeptStateInRollback);
    let wanted = |mutant: &Mutant| {
        !is_elsewhere(mutant) && only.as_ref().is_none_or(|name| format!("{mutant:?}") == *name)
    };
    let mutants: Vec<Mutant> = Mutant::ALL.into_iter().filter(wanted).collect();
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    // A mutant's own assertions panic: that is a way of being found, and no news.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let work = || {
        while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
            match find(*mutant, seeds(1500)) {
                Some((seed, verdict)) => println!("mutant {mutant:?}: found by seed {seed} ({verdict})"),
                None => {
                    println!("mutant {mutant:?}: NOT FOUND");
                    missed.lock().unwrap().push(*mutant);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    set_hook(hook);
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// The first seed that finds `mutant`, and what it said. Those that real stores in one log make harmless
/// are looked for by tests of their own.
fn find(mutant: Mutant, seeds: u64) -> Option<(u64, String)> {
    let directed = match mutant {
        Mutant::OldConfirmationCounts => {
            Some(pair::a_confirmation_of_the_epoch_before_does_not_complete_an_append as fn())
        }
        Mutant::OldStreamAnswers => Some(by_hand::answers_of_an_older_stream_do_not_count as fn()),
        Mutant::OldStreamWrites => Some(by_hand::writes_of_an_older_stream_are_not_taken as fn()),
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
    let found = mutant::with(mutant, || match directed {
        Some(test) => catch_unwind(test).err().map(|panic| (0, message(panic))),
        None => (0..seeds).find_map(|seed| match catch_unwind(|| run(seed)) {
            Ok(Ok(_)) => None,
            Ok(Err(problem)) => Some((seed, problem)),
            Err(panic) => Some((seed, message(panic))),
        }),
    });
    found.map(|(seed, verdict)| (seed, verdict.chars().take(160).collect()))
}

fn message(panic: Box<dyn Any + Send>) -> String {
    let message = panic.downcast_ref::<String>().cloned();
    let message = message.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    format!("assertion: {}", message.unwrap_or_default())
}
