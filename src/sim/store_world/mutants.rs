//! Proof that the simulator finds bugs: each seeded bug of the store has to be found by some seed.
//!
//! `MUTANT=Name` takes one of them, `SEEDS=n` says how many seeds each may take. Without either, only
//! those run that are found quickly: continuous integration has a minute for this. Some need a map that is too
//! large for a simulated pool: for them it is the model of the store's state (`store/tests`) that has to show them.

use std::panic::{catch_unwind, set_hook, take_hook};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Theme, run_theme};
use crate::base::mutant::{Mutant, with};
use crate::store::tests::versions;

#[test]
fn every_mutant_is_found() {
    let seeds: Option<u64> = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let only = std::env::var("MUTANT").ok();
    let wanted = |mutant: &Mutant| match &only {
        Some(name) => format!("{mutant:?}") == *name,
        None => seeds.is_some() || !SLOW.contains(mutant),
    };
    let mutants: Vec<Mutant> = Mutant::ALL.into_iter().filter(wanted).collect();
    assert!(!mutants.is_empty(), "no such mutant: {only:?}");
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    // A mutant's own assertions panic: that is a way of being found, and no news.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let work = || {
        while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
            match find(*mutant, seeds.unwrap_or(QUICK_SEEDS)) {
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
    println!("mutants: {} run, {} not found", mutants.len(), missed.len());
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// The first seed that finds `mutant`, and what it said.
fn find(mutant: Mutant, seeds: u64) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let work = || match mutant {
            Mutant::SnapshotsBeforeMapInCheckpoint | Mutant::HoleForgottenUnderLateWrite => {
                versions::run(seed, &mut versions::Met::default());
                Ok(())
            }
            _ => run_theme(seed, theme_for(mutant)).map(drop),
        };
        let outcome = catch_unwind(|| with(mutant, work));
        let verdict = match outcome {
            Ok(Ok(())) => return None,
            Ok(Err(problem)) => problem,
            Err(panic) => {
                let message = panic.downcast_ref::<String>().cloned();
                let message = message.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                format!("assertion: {}", message.unwrap_or_default())
            }
        };
        Some((seed, verdict.chars().take(160).collect()))
    })
}

/// The search keeps to the theme that meets a mistake soonest.
fn theme_for(mutant: Mutant) -> Theme {
    match mutant {
        Mutant::ReadBeforeWrite => Theme::WritesOnly,
        Mutant::NoSpaceFailsDisk => Theme::NoSpaceUnderDisks,
        Mutant::ReconstructUnverified => Theme::TwoFaults,
        Mutant::SealOmitted
        | Mutant::SealNeedsRoom
        | Mutant::AcceptOldIncarnation
        | Mutant::KeepIncarnation => Theme::LostBatch,
        Mutant::RebuildCountedTooEarly
        | Mutant::RebuildFromUnproven
        | Mutant::RebuildSkipsOpenSegment
        | Mutant::RebuildForgetsGeneration
        | Mutant::RebuildingCountsAsWhole
        | Mutant::ScrubNotFlushed
        | Mutant::SpareTwice => Theme::Healing,
        Mutant::ScrubRepairsFromGarbage => Theme::TwoFaults,
        Mutant::ReservationLeaks | Mutant::OverwriteNeedsSpace | Mutant::ReleaseUnderReaders => {
            Theme::FullPool
        }
        Mutant::ElectLowestGeneration
        | Mutant::UseStaleDisk
        | Mutant::RetryFailedFlush
        | Mutant::ReadUnverified
        | Mutant::ReconstructWithoutOneMember
        | Mutant::MoveUnverified
        | Mutant::CleanForWorkingDisks
        | Mutant::DiscardedBatchCounts
        | Mutant::AcknowledgeBeforeExclusion => Theme::OneFault,
        _ => Theme::NoFault,
    }
}

/// Those that take more seeds than that.
const SLOW: [Mutant; 6] = [
    Mutant::AcknowledgeBeforeExclusion,
    Mutant::AcknowledgeOutOfOrder,
    Mutant::SuperblockByGeneration,
    Mutant::AcceptOldIncarnation,
    Mutant::KeepIncarnation,
    Mutant::TailNotFlushed,
];

/// Most seeds for a mutant when time is short.
const QUICK_SEEDS: u64 = 200;
