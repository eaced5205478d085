//! How disks conduct themselves in the pool: how many of their blocks had to be rebuilt, and how long they take, by comparison
//! with the others.
//!
//! What a disk is blamed for is far beyond what a healthy one does, and the others do not: load makes all disks slow, and
//! all of them have the same load.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::daemon::engine::{DiskReport, DiskState};

/// What is known of the disks.
#[derive(Default)]
pub(super) struct Conduct {
    /// By identity.
    disks: BTreeMap<String, Record>,
}

#[derive(Default)]
struct Record {
    /// Errors since the start, as they were at times of the last day.
    errors: VecDeque<(Instant, u64)>,
    /// Operations and their time, at the last look.
    operations: (u64, Duration),
    /// Looks in a row in which it was much slower than the others, or was not after it had been.
    slow: u32,
    well: u32,
    /// What it was blamed for last: time for an operation, its own and the others'.
    slowness: Option<(Duration, Duration)>,
}

impl Conduct {
    /// Takes note of how the disks are, and says which ones are not to be trusted and why, by path.
    pub(super) fn observe(&mut self, now: Instant, disks: &[DiskReport]) -> BTreeMap<String, String> {
        let members: Vec<&DiskReport> = disks.iter().filter(|disk| disk.state == DiskState::Ok).collect();
        self.disks.retain(|id, _| members.iter().any(|disk| disk.id == *id));
        let lately: Vec<Option<Duration>> = members
            .iter()
            .map(|disk| self.disks.entry(disk.id.clone()).or_default().note(now, disk))
            .collect();
        let mut blamed = BTreeMap::new();
        for (index, disk) in members.iter().enumerate() {
            let others = lately.iter().enumerate().filter(|(other, _)| *other != index);
            let others = median(others.filter_map(|(_, time)| *time).collect());
            let Some(record) = self.disks.get_mut(&disk.id) else { continue };
            if let (Some(own), Some(others)) = (lately[index], others) {
                record.compare(own, others);
            }
            if let Some(reason) = record.blame() {
                blamed.insert(disk.path.clone(), reason);
            }
        }
        blamed
    }

    /// Whether a disk is blamed for being slow.
    pub(super) fn is_slow(&self, disk: &DiskReport) -> bool {
        self.disks.get(&disk.id).is_some_and(|record| record.slowness.is_some())
    }
}

impl Record {
    /// Takes the figures of a look; the time that an operation took on average since the last one, if there were enough.
    fn note(&mut self, now: Instant, disk: &DiskReport) -> Option<Duration> {
        let errors = disk.errors[0];
        if self.errors.back().is_some_and(|(_, before)| *before > errors) {
            self.errors.clear(); // counted anew
        }
        while self.errors.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.errors.pop_front();
        }
        // The newest one is replaced until it is old enough to stay.
        let last = self.errors.len().checked_sub(2).and_then(|before| self.errors.get(before));
        if last.is_some_and(|(at, _)| now.duration_since(*at) < STEP) {
            self.errors.pop_back();
        }
        self.errors.push_back((now, errors));
        let (count, busy) = disk.operations;
        let (count_before, busy_before) = std::mem::replace(&mut self.operations, disk.operations);
        let count = u32::try_from(count.checked_sub(count_before)?).ok()?;
        let busy = busy.checked_sub(busy_before)?;
        (count >= FEWEST_OPERATIONS).then(|| busy / count)
    }

    fn compare(&mut self, own: Duration, others: Duration) {
        if own >= SLOW && own >= others * TIMES_SLOWER {
            (self.slow, self.well) = (self.slow + 1, 0);
            if self.slow >= LOOKS_TO_BLAME {
                self.slowness = Some((own, others));
            }
        } else {
            (self.slow, self.well) = (0, self.well + 1);
            if self.well >= LOOKS_TO_ACQUIT {
                self.slowness = None;
            }
        }
    }

    fn blame(&self) -> Option<String> {
        let errors = match (self.errors.front(), self.errors.back()) {
            (Some((_, first)), Some((_, last))) => last - first,
            _ => 0,
        };
        if errors >= MANY_ERRORS {
            return Some(format!("within a day {errors} of its blocks could not be read or were wrong"));
        }
        let (own, others) = self.slowness?;
        let (own, others) = (own.as_secs_f64() * 1e3, others.as_secs_f64() * 1e3);
        Some(format!("it is slow: {own:.0} ms for a read or write, the other disks {others:.1} ms"))
    }
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// How long errors count.
const WINDOW: Duration = Duration::from_secs(24 * 3600);
/// How far apart the counts of errors are that are kept.
const STEP: Duration = Duration::from_secs(600);
/// More in a day than a disk has that is well: makers promise less than one in 10^14 bits that are read.
const MANY_ERRORS: u64 = 100;
/// Fewer between two looks say nothing.
const FEWEST_OPERATIONS: u32 = 20;
/// Whoever is faster is not slow.
const SLOW: Duration = Duration::from_millis(50);
const TIMES_SLOWER: u32 = 8;
const LOOKS_TO_BLAME: u32 = 30;
const LOOKS_TO_ACQUIT: u32 = 360;

#[cfg(test)]
mod tests {
    use super::super::BETWEEN_LOOKS;
    use super::*;

    struct Pool {
        now: Instant,
        conduct: Conduct,
        disks: Vec<DiskReport>,
    }

    impl Pool {
        fn new() -> Self {
            let disk = |n: u64| DiskReport {
                id: format!("id{n}"),
                path: format!("disk{n}"),
                ..DiskReport::default()
            };
            Self { now: Instant::now(), conduct: Conduct::default(), disks: (0..3).map(disk).collect() }
        }

        /// Until the next look the disks took so many milliseconds for each of so many operations.
        fn look(&mut self, count: u64, millis: [u64; 3]) -> Vec<String> {
            self.now += BETWEEN_LOOKS;
            for (disk, millis) in self.disks.iter_mut().zip(millis) {
                disk.operations.0 += count;
                disk.operations.1 += Duration::from_millis(millis * count);
            }
            self.conduct.observe(self.now, &self.disks).into_values().collect()
        }
    }

    #[test]
    fn a_disk_that_alone_is_slow_for_minutes_is_blamed_and_acquitted() {
        let mut pool = Pool::new();
        let (well, slow) = ([5, 5, 5], [5, 400, 5]);
        for _ in 0..29 {
            assert!(pool.look(100, slow).is_empty());
        }
        assert!(pool.look(100, well).is_empty());
        for _ in 0..29 {
            assert!(pool.look(100, slow).is_empty());
        }
        let blamed = "it is slow: 400 ms for a read or write, the other disks 5.0 ms";
        assert_eq!(pool.look(100, slow), [blamed]);
        assert!(pool.conduct.is_slow(&pool.disks[1]) && !pool.conduct.is_slow(&pool.disks[0]));
        assert_eq!(pool.look(10, well), [blamed], "too little to tell");
        for _ in 0..359 {
            assert_eq!(pool.look(100, well), [blamed]);
        }
        assert!(pool.look(100, well).is_empty());
    }

    #[test]
    fn load_makes_nobody_slow() {
        let mut pool = Pool::new();
        for _ in 0..100 {
            assert!(pool.look(1000, [400, 380, 600]).is_empty());
            assert!(pool.look(1000, [1, 40, 1]).is_empty(), "it is fast enough");
        }
    }

    #[test]
    fn errors_count_for_a_day() {
        let mut pool = Pool::new();
        let minutes = |pool: &mut Pool, count: u64| (0..6 * count).map(|_| pool.look(0, [0; 3])).last();
        pool.disks[2].errors[0] = 70;
        assert_eq!(minutes(&mut pool, 10), Some(vec![]), "they were there at the start");
        pool.disks[2].errors[0] = 170;
        let blamed = "within a day 100 of its blocks could not be read or were wrong";
        assert_eq!(minutes(&mut pool, 1), Some(vec![blamed.to_owned()]));
        assert_eq!(minutes(&mut pool, 23 * 60), Some(vec![blamed.to_owned()]));
        assert_eq!(minutes(&mut pool, 2 * 60), Some(vec![]));
        assert!(pool.conduct.disks["id2"].errors.len() < 200, "bounded");
        // Another disk is in its place.
        pool.disks[2].errors[0] = 0;
        assert_eq!(minutes(&mut pool, 1), Some(vec![]));
    }
}
