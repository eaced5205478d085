//! What the node has done lately, for plots: a bounded memory of regular looks.
//!
//! Two rings: a look every ten seconds for an hour, and the mean of five minutes for thirty days. Kept in memory, some
//! 600 KiB at most; a node that restarts begins anew.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::control::{Control, now_ms};
use super::engine::EngineReport;
use crate::volume::statistics::OperationKind;

/// Time between two looks.
pub const LOOK: Duration = Duration::from_secs(10);
/// Looks that are kept.
const FINE: usize = 360;
/// Looks that make a coarse sample.
const LOOKS_A_COARSE: usize = 30;
/// Coarse samples that are kept: thirty days.
const COARSE: usize = 8640;
/// Upper bounds of latencies, as powers of two of nanoseconds.
const LATENCIES: std::ops::RangeInclusive<u32> = 14..=35;
/// What is plotted of reads and of writes.
const KINDS: [OperationKind; 2] = [OperationKind::Read, OperationKind::Write];

/// What happened in some time, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Sample {
    /// Its end, in milliseconds since 1970.
    pub time_ms: u64,
    /// Reads and writes a second.
    pub operations: [f64; 2],
    /// Bytes read and written a second.
    pub bytes: [f64; 2],
    /// 99 of 100 reads, and writes, took at most this, in microseconds; 0 without any.
    pub latency_us: [f64; 2],
    /// Share of the pool in use, from 0 to 1.
    pub pool_use: f64,
}

/// The memory.
#[derive(Default)]
pub struct History {
    // A lock because pages are made by tasks that may move between threads; held for copies only.
    rings: Mutex<Rings>,
}

#[derive(Default)]
struct Rings {
    before: Option<(u64, Totals)>,
    fine: VecDeque<Sample>,
    pending: Vec<Sample>,
    coarse: VecDeque<Sample>,
}

/// Sums since the start, of reads and of writes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Totals {
    operations: [u64; 2],
    bytes: [u64; 2],
    /// Operations that took at most each of the bounds.
    at_most: [Vec<u64>; 2],
}

impl History {
    /// Looks at the node for ever.
    pub async fn run(self: Arc<Self>, control: Arc<Control>) {
        loop {
            if let Ok(report) = control.report().await {
                self.add(now_ms(), &report);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Samples of the last hour, and of the last thirty days, oldest first.
    #[must_use]
    pub fn samples(&self) -> (Vec<Sample>, Vec<Sample>) {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        (rings.fine.iter().copied().collect(), rings.coarse.iter().copied().collect())
    }

    fn add(&self, now_ms: u64, report: &EngineReport) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let totals = Totals::of(report);
        if let Some((before_ms, before)) = rings.before.replace((now_ms, totals.clone())) {
            let seconds = now_ms.saturating_sub(before_ms) as f64 / 1000.0;
            if seconds > 0.0 {
                let pool_use = report.pool.used_bytes as f64 / report.pool.capacity_bytes.max(1) as f64;
                rings.push(Sample { time_ms: now_ms, pool_use, ..totals.since(&before, seconds) });
            }
        }
    }
}

impl Rings {
    fn push(&mut self, sample: Sample) {
        keep(&mut self.fine, sample, FINE);
        self.pending.push(sample);
        if self.pending.len() == LOOKS_A_COARSE {
            keep(&mut self.coarse, mean(&self.pending), COARSE);
            self.pending.clear();
        }
    }
}

impl Totals {
    fn of(report: &EngineReport) -> Self {
        let mut totals = Self { at_most: KINDS.map(|_| vec![0; LATENCIES.count()]), ..Self::default() };
        for volume in &report.volumes {
            for (index, kind) in KINDS.into_iter().enumerate() {
                let done = volume.statistics.of(kind);
                totals.operations[index] += done.latency_ns.count();
                totals.bytes[index] += done.bytes;
                for (sum, exponent) in totals.at_most[index].iter_mut().zip(LATENCIES) {
                    *sum += done.latency_ns.count_at_most((1 << exponent) - 1);
                }
            }
        }
        totals
    }

    /// What was done since, in so many seconds. Volumes that have left take their sums with them: then it is nothing.
    fn since(&self, before: &Self, seconds: f64) -> Sample {
        let mut sample = Sample::default();
        for index in 0..KINDS.len() {
            let count = self.operations[index].saturating_sub(before.operations[index]);
            sample.operations[index] = count as f64 / seconds;
            sample.bytes[index] = self.bytes[index].saturating_sub(before.bytes[index]) as f64 / seconds;
            let most = self.at_most[index]
                .iter()
                .zip(&before.at_most[index])
                .zip(LATENCIES)
                .find(|((now, before), _)| count > 0 && now.saturating_sub(**before) * 100 >= count * 99);
            sample.latency_us[index] = most.map_or(0.0, |(_, exponent)| (1u64 << exponent) as f64 / 1000.0);
        }
        sample
    }
}

fn keep(ring: &mut VecDeque<Sample>, sample: Sample, most: usize) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(sample);
}

/// The mean of rates, the greatest of latencies, the last of the pool's use.
fn mean(samples: &[Sample]) -> Sample {
    let count = samples.len().max(1) as f64;
    let mut mean = samples.last().copied().unwrap_or_default();
    for index in 0..KINDS.len() {
        mean.operations[index] = samples.iter().map(|sample| sample.operations[index]).sum::<f64>() / count;
        mean.bytes[index] = samples.iter().map(|sample| sample.bytes[index]).sum::<f64>() / count;
        mean.latency_us[index] = samples.iter().map(|sample| sample.latency_us[index]).fold(0.0, f64::max);
    }
    mean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::VolumeId;
    use crate::daemon::engine::VolumeReport;
    use crate::volume::statistics::VolumeStatistics;

    fn report(latencies_us: &[u64]) -> EngineReport {
        let mut statistics = VolumeStatistics::default();
        latencies_us
            .iter()
            .for_each(|us| statistics.record(OperationKind::Write, 4096, Duration::from_micros(*us), false));
        let volume = VolumeReport {
            id: VolumeId(1),
            name: "v".to_owned(),
            sessions: 0,
            commands: 0,
            used_bytes: 0,
            snapshots: 0,
            snapshot_bytes: 0,
            rollback: None,
            part: None,
            statistics,
        };
        let mut report = EngineReport { volumes: vec![volume], ..EngineReport::default() };
        (report.pool.used_bytes, report.pool.capacity_bytes) = (1, 4);
        report
    }

    #[test]
    fn rates_and_latencies_are_those_between_two_looks() {
        let history = History::default();
        let mut latencies = vec![100; 50];
        history.add(1000, &report(&latencies));
        latencies.extend([300; 100]);
        history.add(11_000, &report(&latencies));
        let (fine, coarse) = history.samples();
        assert_eq!((fine.len(), coarse.len()), (1, 0));
        assert_eq!((fine[0].operations, fine[0].bytes), ([0.0, 10.0], [0.0, 40_960.0]));
        // The least power of two of nanoseconds above 300 us.
        assert_eq!((fine[0].latency_us, fine[0].pool_use), ([0.0, 524.288], 0.25));
    }

    #[test]
    fn both_rings_are_bounded_and_a_volume_that_leaves_counts_as_nothing() {
        let history = History::default();
        for look in 0..20_000 {
            history.add(look * 10_000, &report(if look % 2 == 0 { &[100] } else { &[] }));
        }
        let (fine, coarse) = history.samples();
        assert_eq!((fine.len(), coarse.len()), (FINE, 19_999 / LOOKS_A_COARSE));
        assert!(fine.iter().all(|sample| sample.operations[1] <= 0.1));
    }
}
