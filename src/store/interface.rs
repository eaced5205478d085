//! What volumes ask of a store of versioned blocks. The local store implements it; so can a mirrored
//! one, which is why volumes name only this.
//!
//! Guarantees: an append completes when it, and every append before it, is on stable media; a read
//! returns the newest settled version of each block, never one that an append has not completed for;
//! appends settle by version, whatever order they complete in.
//!
//! A snapshot is a statement of the volume's history like a write, with a version of its own. The *view at* a
//! version shows of each block the newest entry that is not newer than it. The view at a snapshot stays as it
//! is until the snapshot is dropped, whatever is written meanwhile ([`SnapshotStore`]).
//!
//! A *rollback* is a snapshot R whose record names an older one, T ([`rollback_record`]). While both are there, the volume
//! as it is now shows of each block whose newest entry is newer than T, and not newer than R, what the view at T shows:
//! [`BlockStore::read`] and [`BlockStore::allocation`] do. Nothing else knows of it: entries, views and what has changed are
//! what they are. Who rolls a volume back appends what those blocks show, as ordinary writes, and then drops R.

use std::future::Future;

use bytes::Bytes;

use crate::base::checksum::Crc32;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};

/// A store of versioned 4 KiB blocks.
#[allow(async_fn_in_trait)] // single-threaded by design: no Send bound is wanted
pub trait BlockStore {
    /// Appends `writes` under `version`, which is not older than what was appended to the volume before;
    /// equal to it only in a copy of what that version left in these blocks. The position in the log is taken
    /// when this is called, not when the future is first polled; a dropped future does not take the append
    /// back.
    ///
    /// The taking and the dropping of a snapshot are writes in this respect: each is alone in its append and
    /// has the volume's next version, which names the snapshot from then on.
    ///
    /// # Errors
    /// At once when the store does not take it; then nothing of it is written. What was taken fails
    /// only with the whole store ([`StoreError::Offline`]).
    fn start_append(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError>;
    /// To be awaited before an append of `writes`, while nobody else changes these blocks: finds out which of them have
    /// space already, where the store would have to refuse the append because it does not know. Has nothing to do
    /// while there is space.
    async fn prepare(&self, volume: VolumeId, writes: &[BlockWrite]);
    /// [`BlockStore::start_append`] for callers who need not tell when it failed.
    fn append(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let started = self.start_append(volume, version, writes);
        async move { started?.await }
    }
    /// Reads `count` blocks from `address` on; holes are zeros. Every block has passed its checksum.
    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError>;
    /// Runs of mapped and unmapped blocks from `address` on, at most `count` blocks and `limit` runs.
    async fn allocation(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError>;
    /// Waits until every append that was called before this is on stable media.
    async fn flush(&self) -> Result<(), StoreError>;
}

/// A store that tells what has changed since a version: what a replica that was away is brought up to
/// date from.
#[allow(async_fn_in_trait)] // single-threaded by design: no Send bound is wanted
pub trait ChangeLog {
    /// Runs of blocks, in address order from `from` on, whose newest settled version `since` does not
    /// cover ([`Version::is_covered_by`]); at most `limit` of them. Holes are among them as long as the
    /// store remembers them. Looks at a bounded part of the volume at a time. Of a clone only what was written to
    /// itself: what it was made of does not change.
    ///
    /// # Errors
    /// When the store is offline or has no such volume.
    async fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError>;
}

/// A store that keeps what a volume was.
#[allow(async_fn_in_trait)] // single-threaded by design: no Send bound is wanted
pub trait SnapshotStore: BlockStore {
    /// The settled snapshots of a volume, ascending.
    ///
    /// # Errors
    /// When there is no such volume.
    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotEntry>, StoreError>;
    /// [`BlockStore::read`] in the view at the snapshot `at`.
    ///
    /// # Errors
    /// [`StoreError::NoSuchSnapshot`] when there is none, or none any more.
    async fn read_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError>;
    /// [`BlockStore::allocation`] in the view at the snapshot `at`.
    ///
    /// # Errors
    /// As [`SnapshotStore::read_at`].
    async fn allocation_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError>;
    /// [`ChangeLog::changed_since`] in the view at the snapshot `at`: runs of blocks whose entry in that view
    /// `since` does not cover, with the versions that the view shows, holes among them as long as they are
    /// remembered. With the version of an older snapshot as `since`, it is what changed between the two. With
    /// [`Version::GREATEST`] as `at`, the volume is looked at as it is now.
    ///
    /// # Errors
    /// As [`SnapshotStore::read_at`].
    async fn changed_between(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError>;
    /// [`BlockStore::start_append`] for history: `version` may be older than what was appended before. Data and
    /// holes take their place by version: the view at `version`, and later ones up to the block's next entry,
    /// show them, newer entries stay as they are. An entry that no view of a snapshot and not the newest view
    /// shows is not kept, so a snapshot is taken (here, at exactly its version) before what it is to show.
    ///
    /// A hole over a block in which nothing was ever written leaves no trace, and one that everybody has passed
    /// and that shadows nothing is forgotten. So data that is older than such a hole would come to light: who
    /// appends history of blocks goes from snapshot to snapshot, oldest first, says what they are in each, and in
    /// the end, under the newest version, what they are now.
    ///
    /// # Errors
    /// As [`BlockStore::start_append`].
    fn start_append_at(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError>;
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// The version under which it was taken; names it in its volume.
    pub version: Version,
    /// What whoever took it wrote down about it.
    pub record: Bytes,
}

/// The record of a rollback to the snapshot `to`, with whatever else is to be written down about it.
#[must_use]
pub fn rollback_record(to: Version, about: &[u8]) -> Vec<u8> {
    let mut record = vec![ROLLBACK];
    record.extend(to.epoch.to_le_bytes());
    record.extend(to.sequence.to_le_bytes());
    record.extend(about);
    record
}

/// The snapshot to which a record says that the volume is rolled back, and what else it says; none when it is that of an
/// ordinary snapshot.
#[must_use]
pub fn rollback_of(record: &[u8]) -> Option<(Version, &[u8])> {
    let (head, about) = record.split_first_chunk::<13>()?;
    let [ROLLBACK, e0, e1, e2, e3, sequence @ ..] = *head else { return None };
    let to = Version { epoch: u32::from_le_bytes([e0, e1, e2, e3]), sequence: u64::from_le_bytes(sequence) };
    Some((to, about))
}

/// First byte of the record of a rollback.
const ROLLBACK: u8 = 2;

/// Most bytes of a snapshot's record.
pub const MAX_SNAPSHOT_RECORD_BYTES: usize = BLOCK_SIZE;

/// Most volumes behind a clone: the one that it was made of, what that one was made of, and so on.
pub const MAX_ANCESTORS: usize = 8;

/// Most snapshots of a volume.
pub const MAX_SNAPSHOTS: usize = 4096;

/// Whether an entry of a block is shown by the view at some snapshot: from its own version on, and before the
/// block's next entry. `snapshots` ascend.
#[must_use]
pub fn is_shown(snapshots: &[Version], entry: Version, next: Version) -> bool {
    let first = snapshots.partition_point(|snapshot| *snapshot < entry);
    snapshots.get(first).is_some_and(|snapshot| *snapshot < next)
}

/// A part of what has changed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Changes {
    /// The changed blocks, ascending.
    pub runs: Vec<ChangedRun>,
    /// Where to go on; `None` when there is nothing behind the runs.
    pub next: Option<BlockAddress>,
}

/// Consecutive blocks of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRun {
    /// First block.
    pub address: BlockAddress,
    /// Number of blocks, at least one.
    pub count: u64,
    /// Their version.
    pub version: Version,
    /// Whether they hold data; else they are holes.
    pub is_mapped: bool,
}

impl ChangedRun {
    /// The block behind the last one.
    #[must_use]
    pub fn end(&self) -> BlockAddress {
        self.address.offset(self.count)
    }
}

impl Changes {
    /// Adds a block, to the last run where it continues it. False when that would be more runs than
    /// `limit`; then this is where to go on.
    pub fn push(&mut self, address: BlockAddress, version: Version, is_mapped: bool, limit: usize) -> bool {
        if let Some(last) = self.runs.last_mut()
            && (last.end(), last.version, last.is_mapped) == (address, version, is_mapped)
        {
            last.count += 1;
            return true;
        }
        if self.runs.len() >= limit {
            self.next = Some(address);
            return false;
        }
        self.runs.push(ChangedRun { address, count: 1, version, is_mapped });
        true
    }
}

/// One change of an append.
#[derive(Clone, Debug)]
pub enum BlockWrite {
    /// New contents of one block.
    Data {
        /// Where.
        address: BlockAddress,
        /// 4096 bytes, block-aligned in memory (else the store copies them).
        data: Bytes,
        /// `Crc32::of(data)`, not yet bound to an identity.
        checksum: Crc32,
    },
    /// A range that reads as zeros from now on and takes no space.
    Hole {
        /// First block.
        address: BlockAddress,
        /// Number of blocks.
        count: u64,
    },
    /// From now on the view at the append's version is kept.
    Snapshot {
        /// At most [`MAX_SNAPSHOT_RECORD_BYTES`], opaque to the store: a name, a time.
        record: Bytes,
    },
    /// The snapshot of this version is not needed any more. Without effect when there is none.
    SnapshotDropped {
        /// Its version.
        snapshot: Version,
    },
}

/// Consecutive blocks of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// First block.
    pub address: BlockAddress,
    /// Number of blocks.
    pub count: u64,
    /// Whether they hold data.
    pub mapped: bool,
}

/// Why a store could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space for new blocks; nothing of the append was written.
    #[error("the pool is out of space")]
    OutOfSpace,
    /// The block at this address can be read from no disk and rebuilt from no parity.
    #[error("volume {} block {} is unrecoverable", volume.0, address.0)]
    Medium {
        /// Volume of the block.
        volume: VolumeId,
        /// Address of the block.
        address: BlockAddress,
    },
    /// Too many disks are gone, or the pool was taken offline.
    #[error("the pool is offline")]
    Offline,
    /// There is no such volume in the store.
    #[error("volume {} is not in the pool", .0.0)]
    NoSuchVolume(VolumeId),
    /// The volume has no such snapshot, or has it no more.
    #[error("volume {} has no snapshot {}.{}", volume.0, snapshot.epoch, snapshot.sequence)]
    NoSuchSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The version that names no snapshot.
        snapshot: Version,
    },
    /// The volume has as many snapshots as a volume may have; nothing of the append was written.
    #[error("volume {} has {MAX_SNAPSHOTS} snapshots, which is the most that a volume may have", .0.0)]
    TooManySnapshots(VolumeId),
    /// The volume, or its snapshot, is what a clone is made of; nothing of it was dropped.
    #[error("volume {} is a clone of volume {}, which needs it", clone.0, volume.0)]
    HasClones {
        /// The volume.
        volume: VolumeId,
        /// A clone of it.
        clone: VolumeId,
    },
    /// Clones of clones go so far and no further.
    #[error("volume {} has {MAX_ANCESTORS} volumes behind it, which is the most that there may be", .0.0)]
    LineageTooLong(VolumeId),
}
