//! Random runs of the store in the simulator; `SEED=n` replays one, `SEEDS=n` runs more.

use gemel::sim::store_world::{Report, run};

#[test]
fn random_seeds_lose_nothing() {
    if let Some(seed) = number("SEED") {
        println!("{:#?}", run(seed).unwrap());
        return;
    }
    let seeds = number("SEEDS").unwrap_or(300);
    let first = number("FIRST").unwrap_or(1);
    let mut total = Report::default();
    let mut failures = Vec::new();
    for seed in first..first + seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        match outcome.unwrap_or_else(|_| Err(format!("seed {seed}: panicked"))) {
            Ok(report) => add(&mut total, &report),
            Err(problem) => {
                println!("{problem}\n  replay: SEED={seed} cargo test --test store_sim");
                failures.push(seed);
            }
        }
    }
    println!("{total:#?}");
    println!("sim: {seeds} seeds, {} failed", failures.len());
    assert!(failures.is_empty(), "failing seeds: {failures:?}");
    for (name, count) in [
        ("crashes", total.crashes),
        ("clean stops", total.clean_stops),
        ("disks lost", total.disks_lost),
        ("rebuilt blocks", total.rebuilt_blocks),
        ("moved blocks", total.moved_blocks),
        ("checkpoints", total.checkpoints),
        ("kept unproven batches", total.kept_unproven),
    ] {
        assert!(count > 0, "no run ever met: {name}");
    }
}

#[test]
fn a_seed_run_twice_gives_the_same_trace() {
    for seed in 1..6 {
        assert_eq!(run(seed).unwrap(), run(seed).unwrap());
    }
}

fn add(total: &mut Report, report: &Report) {
    total.writes += report.writes;
    total.reads += report.reads;
    total.crashes += report.crashes;
    total.clean_stops += report.clean_stops;
    total.disks_lost += report.disks_lost;
    total.rebuilt_blocks += report.rebuilt_blocks;
    total.moved_blocks += report.moved_blocks;
    total.checkpoints += report.checkpoints;
    total.kept_unproven += report.kept_unproven;
    total.discarded_batches += report.discarded_batches;
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
