//! Counters of a logical unit, for metrics.

use std::cell::Cell;

/// Counters of a logical unit since its start.
#[derive(Debug, Default)]
pub struct Statistics {
    /// READ commands that moved data.
    pub reads: Cell<u64>,
    /// Bytes that they read.
    pub read_bytes: Cell<u64>,
    /// WRITE commands that moved data.
    pub writes: Cell<u64>,
    /// Bytes that they wrote.
    pub written_bytes: Cell<u64>,
    /// Ranges released or filled by UNMAP and WRITE SAME.
    pub unmaps: Cell<u64>,
    /// Bytes in these ranges.
    pub unmapped_bytes: Cell<u64>,
}

impl Statistics {
    pub(super) fn count_read(&self, bytes: usize) {
        self.reads.set(self.reads.get() + 1);
        self.read_bytes.set(self.read_bytes.get() + bytes as u64);
    }

    pub(super) fn count_unmap(&self, bytes: u64) {
        self.unmaps.set(self.unmaps.get() + 1);
        self.unmapped_bytes.set(self.unmapped_bytes.get() + bytes);
    }

    pub(super) fn count_write(&self, bytes: usize) {
        self.writes.set(self.writes.get() + 1);
        self.written_bytes.set(self.written_bytes.get() + bytes as u64);
    }
}
