//! Random runs of the store in the simulator; `SEED=n` replays one, `SEEDS=n` runs more, `FIRST=n`
//! begins elsewhere. `make sim` ends in `sim: N seeds, M failed`.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use gemel::sim::store_world::{Report, TREE_SEEDS, Theme, run, run_theme};

#[test]
fn random_seeds_lose_nothing() {
    if let Some(seed) = number("SEED") {
        let outcome = catch_unwind(|| run(seed)).unwrap_or_else(|_| Err("panicked".to_owned()));
        summarize(1, usize::from(outcome.is_err()));
        println!("{:#?}", outcome.expect("the seed passes"));
        return;
    }
    let seeds = number("SEEDS").unwrap_or(CI_SEEDS);
    let first = number("FIRST").unwrap_or(1);
    let (totals, failures) = run_all(first..first + seeds);
    for (name, count) in &totals {
        println!("{count:>10} {name}");
    }
    if seeds >= CI_SEEDS {
        for (name, count) in &totals {
            assert!(*count > 0, "no run ever met: {name}");
        }
    }
    summarize(seeds, failures.len());
    assert!(failures.is_empty(), "failing seeds: {failures:?}");
}

/// The same worlds with maps that are kept on the disks.
#[test]
fn random_seeds_lose_nothing_with_the_map_on_the_disks() {
    if number("SEED").or(number("FIRST")).is_some() {
        return; // one run is asked for: the other test does it
    }
    let seeds = number("SEEDS").unwrap_or(CI_TREE_SEEDS);
    let (_, failures) = run_all(TREE_SEEDS..TREE_SEEDS + seeds);
    println!("sim: {seeds} seeds with the map on the disks, {} failed", failures.len());
    assert!(failures.is_empty(), "failing seeds: {failures:?}");
}

#[test]
fn a_seed_run_twice_gives_the_same_trace() {
    for (seed, theme) in (1..).zip(Theme::ALL) {
        for seed in [seed, TREE_SEEDS + seed] {
            assert_eq!(run_theme(seed, theme).unwrap(), run_theme(seed, theme).unwrap(), "{theme:?}");
        }
    }
}

/// Runs seeds on two threads, each seed a world of its own; sums what they met.
fn run_all(seeds: std::ops::Range<u64>) -> (Vec<(&'static str, u64)>, Vec<u64>) {
    let next = AtomicU64::new(seeds.start);
    let totals = Mutex::new(Report::default().counts().to_vec());
    let failures = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = catch_unwind(|| run(seed));
            match outcome.unwrap_or_else(|_| Err(format!("seed {seed} ({:?}): panicked", Theme::of(seed)))) {
                Ok(report) => {
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    for (total, (_, count)) in totals.iter_mut().zip(report.counts()) {
                        total.1 += count;
                    }
                }
                Err(problem) => {
                    println!("{problem}\n  replay: make sim SEED={seed}");
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.sort_unstable();
    (totals.into_inner().unwrap_or_else(PoisonError::into_inner), failures)
}

/// The line that a run ends in: printed, and left for `make sim`, whose last line it is.
fn summarize(seeds: u64, failed: usize) {
    let line = format!("sim: {seeds} seeds, {failed} failed\n");
    print!("{line}");
    let place = concat!(env!("CARGO_TARGET_TMPDIR"), "/sim-summary");
    std::fs::write(place, line).expect("target/tmp is the tests' own");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Seeds of a run without `SEEDS`: what continuous integration has time for.
const CI_SEEDS: u64 = 2000;
/// Of these, more on top.
const CI_TREE_SEEDS: u64 = 400;
