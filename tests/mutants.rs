//! Proof that the simulator finds bugs: each seeded bug of the store has to be found by some seed.
//!
//! `MUTANT=Name` takes one of them, `SEEDS=n` bounds the search. Without `SEEDS` only those are run
//! that are known to be found quickly: continuous integration has two minutes for this.

use std::panic::{catch_unwind, set_hook, take_hook};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use gemel::base::mutant::{Mutant, with};
use gemel::sim::store_world::{Theme, run_theme};

#[test]
fn every_mutant_is_found() {
    let full = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let only = std::env::var("MUTANT").ok();
    let wanted = |mutant: &Mutant| match &only {
        Some(name) => format!("{mutant:?}") == *name,
        None => full.is_some() || !SLOW.contains(mutant),
    };
    let mutants: Vec<Mutant> = Mutant::ALL.into_iter().filter(wanted).collect();
    assert!(!mutants.is_empty(), "no such mutant: {only:?}");
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    // A mutant's own assertions panic: that is a way of being found, and no news.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let work = || {
        while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
            match find(*mutant, full.unwrap_or(QUICK_SEEDS)) {
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
        let theme = theme_for(mutant).unwrap_or(Theme::of(seed));
        let outcome = catch_unwind(|| with(mutant, || run_theme(seed, theme)));
        let verdict = match outcome {
            Ok(Ok(_)) => return None,
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

/// Where only one theme of run can meet a mistake, the search keeps to it.
fn theme_for(mutant: Mutant) -> Option<Theme> {
    match mutant {
        Mutant::ReadBeforeWrite => Some(Theme::WritesOnly),
        Mutant::NoSpaceFailsDisk => Some(Theme::NoSpaceUnderDisks),
        Mutant::ReconstructUnverified => Some(Theme::TwoFaults),
        Mutant::SealOmitted => Some(Theme::LostBatch),
        Mutant::ReservationLeaks | Mutant::OverwriteNeedsSpace => Some(Theme::FullPool),
        Mutant::ElectLowestGeneration
        | Mutant::UseStaleDisk
        | Mutant::RetryFailedFlush
        | Mutant::ReadUnverified
        | Mutant::ReconstructWithoutOneMember
        | Mutant::MoveUnverified
        | Mutant::AcknowledgeBeforeExclusion
        | Mutant::TailNotRepaired
        | Mutant::ReleaseUnderReaders => Some(Theme::OneFault),
        _ => None,
    }
}

/// Those that take more seeds than that.
const SLOW: [Mutant; 8] = [
    Mutant::MoveUnverified,
    Mutant::AcknowledgeOutOfOrder,
    Mutant::SuperblockNotFlushed,
    Mutant::SuperblockByGeneration,
    Mutant::TailNotRepaired,
    Mutant::TailNotFlushed,
    Mutant::ReleaseUnderReaders,
    Mutant::ReuseBeforeCheckpoint,
];

/// Most seeds for a mutant when time is short.
const QUICK_SEEDS: u64 = 60;
