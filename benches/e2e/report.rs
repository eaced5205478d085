//! Medians of the rounds, and how they stand to the goals.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::case::{CASES, Case};
use crate::load::Measurement;
use crate::pair::{LOCAL, MIRRORED};

/// All measurements of a run.
#[derive(Default)]
pub struct Report {
    measurements: BTreeMap<(&'static str, String), Vec<Measurement>>,
    has_head: bool,
}

/// What gemeld has to reach: at least, or for CPU at most, `ratio` times `peer`.
struct Goal {
    case: &'static str,
    peer: &'static str,
    ratio: f64,
}

/// RAID-5 over four files, written through and flushed, against tgtd on one plain file of the same disk.
const GOALS: &[Goal] = &[
    Goal { case: "random-write-32", peer: "tgtd-cache", ratio: 1.2 },
    Goal { case: "random-write-32", peer: "tgtd-direct", ratio: 1.2 },
    Goal { case: "random-write-32", peer: "tgtd-sync", ratio: 10.0 },
    Goal { case: "random-write-1", peer: "tgtd-direct", ratio: 0.5 },
    Goal { case: "random-read-32", peer: "tgtd-direct", ratio: 1.4 },
    Goal { case: "random-read-1", peer: "tgtd-direct", ratio: 1.3 },
    Goal { case: "read-1m", peer: "tgtd-direct", ratio: 1.5 },
    Goal { case: "write-1m", peer: "tgtd-direct", ratio: 1.5 },
];
/// What a mirrored volume has to reach of a local one's rate, with both nodes on one disk and two processors.
const MIRROR_CASE: &str = "random-write-32";
const MIRROR_GOAL: f64 = 0.4;
/// What it may add to the latency at depth 1 beside a round trip of the stream.
const MIRROR_LATENCY_CASE: &str = "random-write-1";
const MIRROR_LATENCY_GOAL: Duration = Duration::from_micros(150);
/// CPU time an I/O, of tgtd's with O_DIRECT, in the cases at depth 32.
const CPU_GOAL: f64 = 0.6;
const CPU_CASES: &[&str] = &["random-read-32", "random-write-32"];

/// Targets whose disk traffic the kernel does when it likes, not for an operation: it isn't shown.
const PAGE_CACHE: &[&str] = &["tgtd-cache", "tgtd-sync"];

impl Report {
    pub fn add(&mut self, case: &Case, target: &str, measurement: Measurement) {
        self.measurements.entry((case.name, target.to_owned())).or_default().push(measurement);
    }

    /// One line a target.
    pub fn print(&mut self, case: &Case) {
        if !std::mem::replace(&mut self.has_head, true) {
            println!(
                "{:<17} {:<13} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>10}",
                "case", "target", "IOPS", "MB/s", "mean us", "p99 us", "CPU us/IO", "read B/IO", "write B/IO"
            );
        }
        for ((_, target), rounds) in self.measurements.iter().filter(|((name, _), _)| *name == case.name) {
            let per_second = median(rounds.iter().map(Measurement::per_second));
            let microseconds = |of: fn(&Measurement) -> f64| median(rounds.iter().map(of)) / 1000.0;
            let moved = |of: fn(&Measurement) -> u64| match PAGE_CACHE.contains(&target.as_str()) {
                true => "-".to_owned(),
                false => format!(
                    "{:.0}",
                    median(rounds.iter().map(|round| of(round) as f64 / round.operations as f64))
                ),
            };
            println!(
                "{:<17} {:<13} {:>8.0} {:>8.0} {:>9.0} {:>9.0} {:>9.1} {:>9} {:>10}",
                case.name,
                target,
                per_second,
                per_second * f64::from(case.block_bytes) / 1e6,
                microseconds(|round| round.latency_ns.mean()),
                microseconds(|round| round.latency_ns.value_at_quantile(0.99) as f64),
                median(rounds.iter().map(Measurement::cpu_us)),
                moved(|round| round.usage.disk_read_bytes),
                moved(|round| round.usage.disk_write_bytes),
            );
        }
    }

    /// Each goal whose case and peer were measured.
    pub fn print_goals(&self) {
        for goal in GOALS {
            let (Some(own), Some(peer)) = (self.rate(goal.case, "gemeld"), self.rate(goal.case, goal.peer))
            else {
                continue;
            };
            let ratio = own / peer;
            let verdict = if ratio >= goal.ratio { "reached" } else { "MISSED" };
            println!(
                "goal {:<17} {ratio:>6.2}x {:<13} of at least {}x: {verdict}",
                goal.case, goal.peer, goal.ratio
            );
        }
        for case in CPU_CASES {
            let (Some(own), Some(peer)) = (self.cpu(case, "gemeld"), self.cpu(case, "tgtd-direct")) else {
                continue;
            };
            let verdict = if own / peer <= CPU_GOAL { "reached" } else { "MISSED" };
            println!(
                "goal {case:<17} {:>6.2}x CPU of tgtd-direct an I/O, at most {CPU_GOAL}x: {verdict}",
                own / peer
            );
        }
    }

    /// Whether a mirrored volume was measured beside a local one.
    pub fn has_mirror(&self) -> bool {
        CASES
            .iter()
            .any(|case| self.rounds(case.name, MIRRORED).is_some() && self.rounds(case.name, LOCAL).is_some())
    }

    /// What the mirror costs: for each case both rates, their ratio, and what the mirror adds to the latency.
    pub fn print_mirror(&self, round_trip: Duration) {
        println!("a round trip of the mirror's stream takes {} us", round_trip.as_micros());
        let most_added = (round_trip + MIRROR_LATENCY_GOAL).as_secs_f64() * 1e6;
        for case in CASES {
            let (Some(mirrored), Some(local)) =
                (self.rounds(case.name, MIRRORED), self.rounds(case.name, LOCAL))
            else {
                continue;
            };
            // Round by round, so that what slows both down does not count.
            let pairs = || mirrored.iter().zip(local);
            let ratio = median(pairs().map(|(mirrored, local)| mirrored.per_second() / local.per_second()));
            let added =
                median(pairs().map(|(mirrored, local)| {
                    (mirrored.latency_ns.mean() - local.latency_ns.mean()) / 1000.0
                }));
            let verdict = match case.name {
                MIRROR_CASE if ratio >= MIRROR_GOAL => format!(", of at least {MIRROR_GOAL}x: reached"),
                MIRROR_CASE => format!(", of at least {MIRROR_GOAL}x: MISSED"),
                MIRROR_LATENCY_CASE if added <= most_added => {
                    format!(", of at most {most_added:+.0} us: reached")
                }
                MIRROR_LATENCY_CASE => format!(", of at most {most_added:+.0} us: MISSED"),
                _ => String::new(),
            };
            let rate = |rounds: &[Measurement]| median(rounds.iter().map(Measurement::per_second));
            println!(
                "mirrored/local {:<17} {:>8.0} / {:>8.0} IOPS: {ratio:>5.2}x, {added:>+7.0} us{verdict}",
                case.name,
                rate(mirrored),
                rate(local)
            );
        }
    }

    fn rounds(&self, case: &str, target: &str) -> Option<&Vec<Measurement>> {
        let case = CASES.iter().find(|known| known.name == case)?.name;
        self.measurements.get(&(case, target.to_owned()))
    }

    fn rate(&self, case: &str, target: &str) -> Option<f64> {
        Some(median(self.rounds(case, target)?.iter().map(Measurement::per_second)))
    }

    fn cpu(&self, case: &str, target: &str) -> Option<f64> {
        Some(median(self.rounds(case, target)?.iter().map(Measurement::cpu_us)))
    }
}

impl Measurement {
    /// CPU time of the target an operation, in microseconds.
    fn cpu_us(&self) -> f64 {
        self.usage.cpu_ns as f64 / 1000.0 / self.operations as f64
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
