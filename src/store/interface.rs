//! What volumes ask of a store of versioned blocks. The local store implements it; so can a mirrored
//! one, which is why volumes name only this.
//!
//! Guarantees: an append completes when it, and every append before it, is on stable media; a read
//! returns the newest settled version of each block, never one that an append has not completed for;
//! appends settle by version, whatever order they complete in.

use std::future::Future;

use bytes::Bytes;

use crate::base::checksum::Crc32;
use crate::base::units::{BlockAddress, Version, VolumeId};

/// A store of versioned 4 KiB blocks.
#[allow(async_fn_in_trait)] // single-threaded by design: no Send bound is wanted
pub trait BlockStore {
    /// Appends `writes` under `version`, which is not older than what was appended to the volume before;
    /// equal to it only in a copy of what that version left in these blocks. The position in the log is taken when this is called, not
    /// when the future is first polled; a dropped future does not take the append back.
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
    /// store remembers them. Looks at a bounded part of the volume at a time.
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
}
