//! The snapshots of one volume, as the log has stated them so far.

use bytes::Bytes;

use crate::base::units::Version;

use super::interface::{MAX_SNAPSHOTS, SnapshotEntry, rollback_of};
use crate::base::mutant::{self, Mutant};

/// Snapshots in the order of their versions.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshots {
    /// Ascending.
    versions: Vec<Version>,
    /// Those of `versions`, in the same order.
    records: Vec<Bytes>,
    /// Appended, and not settled yet.
    pending: Vec<Version>,
    /// Whose drop was appended, and is not settled yet.
    dropping: Vec<Version>,
    record_bytes: u64,
    /// Those that are rollbacks, as far as they are settled.
    rollbacks: Vec<Rollback>,
}

/// What a volume shows otherwise than it has it: of blocks whose newest entry lies behind `to`, through `mark`, what they
/// were at `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rollback {
    /// The snapshot that says so.
    pub(super) mark: Version,
    /// The one that is shown.
    pub(super) to: Version,
}

impl Rollback {
    /// Whether a block whose newest entry has this version is shown as it was.
    pub(super) fn returns(&self, newest: Version) -> bool {
        newest > self.to && (newest <= self.mark || mutant::is(Mutant::RollbackReturnsLaterWrites))
    }
}

impl Snapshots {
    /// The rollback that is under way.
    pub(super) fn rollback(&self) -> Option<Rollback> {
        let newest = self.rollbacks.last().filter(|_| !mutant::is(Mutant::RollbackNotShown))?;
        // Without what it names there is nothing that could be shown.
        Some(*newest).filter(|rollback| self.contains(rollback.to))
    }

    /// Their versions, ascending.
    pub(super) fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// All of them, ascending.
    pub(super) fn entries(&self) -> impl Iterator<Item = SnapshotEntry> {
        let all = self.versions.iter().zip(&self.records);
        all.map(|(version, record)| SnapshotEntry { version: *version, record: record.clone() })
    }

    pub(super) fn contains(&self, snapshot: Version) -> bool {
        self.versions.binary_search(&snapshot).is_ok()
    }

    /// Whether there is room for another one.
    pub(super) fn has_room(&self) -> bool {
        self.versions.len() + self.pending.len() < MAX_SNAPSHOTS
    }

    /// One was appended: what is admitted behind it is counted as if it were there.
    pub(super) fn announce(&mut self, snapshot: Version) {
        self.pending.push(snapshot);
    }

    /// The drop of one was appended.
    pub(super) fn announce_drop(&mut self, snapshot: Version) {
        self.dropping.push(snapshot);
    }

    /// Whether one is there to stay, as far as anybody has said.
    pub(super) fn stays(&self, snapshot: Version) -> bool {
        self.contains(snapshot) && !self.dropping.contains(&snapshot)
    }

    /// The newest, appended ones included.
    pub(super) fn newest(&self) -> Option<Version> {
        self.versions.last().max(self.pending.iter().max()).copied()
    }

    /// One is settled; of equal ones the last counts.
    pub(super) fn insert(&mut self, snapshot: Version, record: Bytes) {
        self.pending.retain(|pending| *pending != snapshot);
        self.record_bytes += record.len() as u64;
        self.rollbacks.retain(|rollback| rollback.mark != snapshot);
        if let Some((to, _)) = rollback_of(&record) {
            self.rollbacks.push(Rollback { mark: snapshot, to });
            self.rollbacks.sort_unstable_by_key(|rollback| rollback.mark);
        }
        match self.versions.binary_search(&snapshot) {
            Ok(index) => {
                let replaced = std::mem::replace(&mut self.records[index], record);
                self.record_bytes -= replaced.len() as u64;
            }
            Err(index) => {
                self.versions.insert(index, snapshot);
                self.records.insert(index, record);
            }
        }
    }

    /// One is dropped. Whether it was there.
    pub(super) fn remove(&mut self, snapshot: Version) -> bool {
        self.dropping.retain(|dropping| *dropping != snapshot);
        let Ok(index) = self.versions.binary_search(&snapshot) else { return false };
        self.rollbacks.retain(|rollback| rollback.mark != snapshot);
        self.versions.remove(index);
        self.record_bytes -= self.records.remove(index).len() as u64;
        true
    }

    /// About how many bytes a checkpoint needs for them.
    pub(super) fn saved_bytes(&self) -> u64 {
        self.record_bytes + self.versions.len() as u64 * SAVED_HEAD_BYTES
    }
}

/// Bytes of a saved snapshot besides its record: tag, volume, version, length.
const SAVED_HEAD_BYTES: u64 = 1 + 4 + 12 + 2;
