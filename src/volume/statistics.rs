//! What a volume has done: operations, bytes, errors and latencies by kind.

use std::time::Duration;

use crate::base::histogram::Histogram;

/// Kinds of operation told apart in statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Reads.
    Read,
    /// Writes of data.
    Write,
    /// Writes of one repeated block.
    WriteSame,
    /// Compare-and-write, whatever the comparison said.
    CompareAndWrite,
    /// Unmapping.
    Unmap,
    /// Flushes.
    Flush,
}

impl OperationKind {
    /// Every kind, in the order of declaration.
    pub const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::WriteSame, Self::CompareAndWrite, Self::Unmap, Self::Flush];

    /// The kind in metrics and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteSame => "write_same",
            Self::CompareAndWrite => "compare_and_write",
            Self::Unmap => "unmap",
            Self::Flush => "flush",
        }
    }
}

/// Totals of one volume since it was opened.
#[derive(Clone, Debug, Default)]
pub struct VolumeStatistics {
    kinds: [OperationStatistics; OperationKind::ALL.len()],
}

impl VolumeStatistics {
    /// Totals of one kind of operation.
    #[must_use]
    pub fn of(&self, kind: OperationKind) -> &OperationStatistics {
        &self.kinds[kind as usize]
    }

    pub(crate) fn record(&mut self, kind: OperationKind, bytes: u64, latency: Duration, failed: bool) {
        let totals = &mut self.kinds[kind as usize];
        totals.operations += 1;
        if failed {
            totals.errors += 1;
        } else {
            totals.bytes += bytes;
        }
        totals.latency_ns.record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Totals of one kind of operation.
#[derive(Clone, Debug, Default)]
pub struct OperationStatistics {
    /// Operations that ended, the failed ones included.
    pub operations: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Bytes of those that did not fail.
    pub bytes: u64,
    /// From the call to the completion, in nanoseconds.
    pub latency_ns: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart() {
        let mut statistics = VolumeStatistics::default();
        for (index, kind) in OperationKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            statistics.record(kind, 512, Duration::from_micros(index as u64), false);
        }
        statistics.record(OperationKind::Unmap, 4096, Duration::from_micros(9), true);
        let unmap = statistics.of(OperationKind::Unmap);
        assert_eq!((unmap.operations, unmap.errors, unmap.bytes), (2, 1, 512));
        assert_eq!(unmap.latency_ns.maximum(), 9000);
        assert_eq!(statistics.of(OperationKind::Flush).operations, 1);
    }
}
