//! What the node has done lately, for plots: a bounded memory of regular looks.
//!
//! Two rings: a look every ten seconds for an hour, and the mean of five minutes for thirty days; some 600 KiB of memory at most. The
//! second one is also in a file of the state directory, a line a sample, so that a restart does not end it. The file has at most
//! twice as many lines as the ring has samples; what is lost or damaged of it is missing in a plot, and nothing else.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::control::{Control, now_ms};
use super::engine::EngineReport;
use crate::peer::authority::write_public;
use crate::volume::statistics::OperationKind;

/// Time between two looks.
pub const LOOK: Duration = Duration::from_secs(10);
/// Looks that are kept.
const FINE: usize = 360;
/// Looks that make a coarse sample.
const LOOKS_A_COARSE: usize = 30;
/// Coarse samples that are kept: thirty days.
const COARSE: usize = 8640;
/// The same as time.
const KEPT_MS: u64 = COARSE as u64 * LOOKS_A_COARSE as u64 * LOOK.as_secs() * 1000;
/// Name of the file.
const NAME: &str = "history.jsonl";
/// Upper bounds of latencies, as powers of two of nanoseconds.
const LATENCIES: std::ops::RangeInclusive<u32> = 14..=35;
/// What is plotted of reads and of writes.
const KINDS: [OperationKind; 2] = [OperationKind::Read, OperationKind::Write];

/// What happened in some time, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
pub struct History {
    // A lock because pages are made by tasks that may move between threads; held for copies only.
    rings: Mutex<Rings>,
    file: PathBuf,
}

#[derive(Default)]
struct Rings {
    before: Option<(u64, Totals)>,
    fine: VecDeque<Sample>,
    pending: Vec<Sample>,
    coarse: VecDeque<Sample>,
    /// Lines of the file.
    lines: usize,
}

/// What has to be done to the file.
enum Keep {
    Append(Sample),
    /// It has grown too long.
    Rewrite(Vec<Sample>),
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
    /// Goes on with what the state directory has of it.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        let file = state_dir.join(NAME);
        let rings = Mutex::new(Rings::load(&file, now_ms()));
        Self { rings, file }
    }

    /// Looks at the node for ever.
    pub async fn run(self: Arc<Self>, control: Arc<Control>) {
        loop {
            if let Ok(report) = control.report().await
                && let Some(keep) = self.add(now_ms(), &report)
            {
                let file = self.file.clone();
                let kept = tokio::task::spawn_blocking(move || keep.carry_out(&file)).await;
                if let Ok(Err(error)) = kept {
                    tracing::warn!(%error, "what the plots show is not kept");
                }
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

    fn add(&self, now_ms: u64, report: &EngineReport) -> Option<Keep> {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let totals = Totals::of(report);
        let (before_ms, before) = rings.before.replace((now_ms, totals.clone()))?;
        let seconds = now_ms.saturating_sub(before_ms) as f64 / 1000.0;
        if seconds <= 0.0 {
            return None;
        }
        let pool_use = report.pool.used_bytes as f64 / report.pool.capacity_bytes.max(1) as f64;
        rings.push(Sample { time_ms: now_ms, pool_use, ..totals.since(&before, seconds) })
    }
}

impl Rings {
    /// What the file has. Lines that can't be read are skipped; what is older than the ring, or later than now, as a clock was put
    /// back, is left out.
    fn load(file: &Path, now_ms: u64) -> Self {
        let text = std::fs::read(file).unwrap_or_default();
        let mut rings = Self::default();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            rings.lines += 1;
            let Ok(sample) = serde_json::from_slice::<Sample>(line) else { continue };
            let last_ms = rings.coarse.back().map_or(0, |last: &Sample| last.time_ms);
            let is_kept = sample.time_ms > last_ms && sample.time_ms <= now_ms;
            if is_kept && now_ms - sample.time_ms <= KEPT_MS {
                keep(&mut rings.coarse, sample, COARSE);
            }
        }
        rings
    }

    fn push(&mut self, sample: Sample) -> Option<Keep> {
        keep(&mut self.fine, sample, FINE);
        self.pending.push(sample);
        if self.pending.len() < LOOKS_A_COARSE {
            return None;
        }
        let sample = mean(&self.pending);
        keep(&mut self.coarse, sample, COARSE);
        self.pending.clear();
        self.lines += 1;
        if self.lines <= 2 * COARSE {
            return Some(Keep::Append(sample));
        }
        self.lines = self.coarse.len();
        Some(Keep::Rewrite(self.coarse.iter().copied().collect()))
    }
}

impl Keep {
    fn carry_out(self, file: &Path) -> std::io::Result<()> {
        match self {
            // The line break comes first: what a crash has cut off spoils no line but its own.
            Self::Append(sample) => {
                let line = format!("\n{}", serde_json::to_string(&sample)?);
                std::fs::File::options().create(true).append(true).open(file)?.write_all(line.as_bytes())
            }
            Self::Rewrite(samples) => {
                let mut lines = String::new();
                for sample in samples {
                    lines.push('\n');
                    lines.push_str(&serde_json::to_string(&sample)?);
                }
                write_public(file, &lines).map_err(std::io::Error::other)
            }
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
        let place = tempfile::tempdir().unwrap();
        let history = History::open(place.path());
        let mut latencies = vec![100; 50];
        assert!(history.add(1000, &report(&latencies)).is_none());
        latencies.extend([300; 100]);
        assert!(history.add(11_000, &report(&latencies)).is_none());
        let (fine, coarse) = history.samples();
        assert_eq!((fine.len(), coarse.len()), (1, 0));
        assert_eq!((fine[0].operations, fine[0].bytes), ([0.0, 10.0], [0.0, 40_960.0]));
        // The least power of two of nanoseconds above 300 us.
        assert_eq!((fine[0].latency_us, fine[0].pool_use), ([0.0, 524.288], 0.25));
    }

    #[test]
    fn both_rings_are_bounded_and_a_volume_that_leaves_counts_as_nothing() {
        let place = tempfile::tempdir().unwrap();
        let history = History::open(place.path());
        for look in 0..20_000 {
            let _ = history.add(look * 10_000, &report(if look % 2 == 0 { &[100] } else { &[] }));
        }
        let (fine, coarse) = history.samples();
        assert_eq!((fine.len(), coarse.len()), (FINE, 19_999 / LOOKS_A_COARSE));
        assert!(fine.iter().all(|sample| sample.operations[1] <= 0.1));
    }

    #[test]
    fn a_restart_goes_on_with_what_was_kept_and_the_file_is_bounded() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join(NAME);
        let now_ms = 100 * KEPT_MS;
        let sample = |time_ms| Sample { time_ms, pool_use: 0.5, ..Sample::default() };
        let day_ms = 24 * 3600 * 1000;
        let times = [now_ms - KEPT_MS - 1, now_ms - day_ms, now_ms - 2 * day_ms, now_ms - 1, now_ms + day_ms];
        times.into_iter().for_each(|time_ms| Keep::Append(sample(time_ms)).carry_out(&file).unwrap());
        // A crash in the middle of a line, and another sample after it.
        let mut text = std::fs::read_to_string(&file).unwrap();
        text.push_str("\n{\"time_ms\":17");
        std::fs::write(&file, text).unwrap();
        Keep::Append(sample(now_ms)).carry_out(&file).unwrap();
        let mut rings = Rings::load(&file, now_ms);
        let kept: Vec<u64> = rings.coarse.iter().map(|sample| sample.time_ms).collect();
        assert_eq!((kept, rings.lines), (vec![now_ms - day_ms, now_ms - 1, now_ms], 7));
        assert_eq!(rings.coarse[0], sample(now_ms - day_ms));

        for look in 0..2 * COARSE * LOOKS_A_COARSE {
            if let Some(keep) = rings.push(sample(now_ms + look as u64)) {
                keep.carry_out(&file).unwrap();
            }
        }
        let lines = std::fs::read_to_string(&file).unwrap().lines().filter(|line| !line.is_empty()).count();
        assert!(lines <= 2 * COARSE && lines == rings.lines, "{lines}");
    }
}
