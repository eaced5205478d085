//! How much may be on its way to the replica at a time: the sender's credits.
//!
//! What was sent takes its place until the replica has answered it, so the queue of a stream and the
//! replica's memory hold at most a window. One message always fits an empty window.

use std::collections::VecDeque;

use crate::base::runtime::Instant;
use crate::base::units::Version;

/// Appends that were sent and not answered.
pub(super) struct Window {
    waiting: VecDeque<(Version, u64, Instant)>,
    bytes: u64,
    limits: WindowLimits,
}

/// What a volume may have on its way over a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Bytes of appends.
    pub append_bytes: u64,
    /// Number of appends.
    pub appends: usize,
    /// Bytes of copies.
    pub copy_bytes: u64,
}

impl Default for WindowLimits {
    fn default() -> Self {
        // Twice what two gigabytes a second have in flight over two milliseconds.
        Self { append_bytes: 8 << 20, appends: 2048, copy_bytes: 4 << 20 }
    }
}

impl Window {
    pub(super) fn new(limits: WindowLimits) -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, limits }
    }

    pub(super) fn limits(&self) -> WindowLimits {
        self.limits
    }

    /// Whether one more may be sent: the last one may go beyond the limit in bytes.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < self.limits.append_bytes && self.waiting.len() < self.limits.appends
    }

    pub(super) fn sent(&mut self, version: Version, bytes: u64, since: Instant) {
        self.waiting.push_back((version, bytes, since));
        self.bytes += bytes;
    }

    pub(super) fn answered(&mut self, through: Version) {
        while let Some((_, bytes, _)) = self.waiting.front().filter(|(version, ..)| *version <= through) {
            self.bytes -= bytes;
            self.waiting.pop_front();
        }
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }

    /// Since when the oldest one waits.
    pub(super) fn unanswered_since(&self) -> Option<Instant> {
        self.waiting.front().map(|(_, _, since)| *since)
    }
}
