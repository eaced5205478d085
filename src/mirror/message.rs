//! What the two ends of a mirror stream say to each other.
//!
//! A connection carries the volumes whose primary its sender is; of each volume it carries one *stream*
//! after the other. A stream belongs to one epoch, and everything that is said names it, so that nothing
//! late counts for a newer one. The writes of a stream form a chain: each names the version of the one
//! before it, so that a replica takes them in order, once and without a gap. Their versions are those of
//! the epoch in which the volume gave them, which may be older than the stream's.

use bytes::Bytes;

use super::coverage::Coverage;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::store::interface::{BlockWrite, Changes, SnapshotEntry, StoreError};

/// A stream of one volume: streams of a newer epoch are newer, and within an epoch its only primary counts
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// Epoch in which its primary serves the volume.
    pub epoch: u32,
    /// Number in the epoch.
    pub number: u64,
}

/// From the primary of a volume to its replica.
#[derive(Clone, Debug)]
pub enum ToReplica {
    /// Before anything else of the stream: what older streams of the volume say is over.
    Begin {
        /// Volume that is spoken of.
        volume: VolumeId,
        /// The new stream.
        stream: StreamId,
    },
    /// The chain begins with a gap, which a resync fills: from here on the replica has not everything up
    /// to its latest version.
    Join {
        /// Volume that is spoken of.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
    },
    /// Behind `Join`, before the first write: which snapshots the replica is to have of those behind `after` (of all,
    /// without it) through `through` (all, without it), whether they are older than what it has or newer.
    Snapshots {
        /// Volume that is spoken of.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// The newest snapshot that an earlier message of the stream was about.
        after: Option<Version>,
        /// The newest that this one is about.
        through: Option<Version>,
        /// The snapshots, ascending.
        list: Vec<SnapshotEntry>,
    },
    /// One append of the primary.
    Write {
        /// Volume that is written.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// Version of all its blocks.
        version: Version,
        /// Version of the write before it in the chain; the replica's own latest at the first one.
        previous: Version,
        /// The changes. Their checksums are those that the primary computed over the host's data.
        writes: Vec<BlockWrite>,
    },
    /// What blocks are after the latest write of the chain, whatever the replica has there.
    Copy {
        /// Volume that is copied.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// Number of the copy in the stream.
        number: u64,
        /// Version of the latest write of the chain, of the stream's epoch.
        version: Version,
        /// The blocks.
        writes: Vec<BlockWrite>,
    },
    /// What blocks are in the view at a snapshot, whatever the replica has there.
    History {
        /// Volume that is copied.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// Number of the copy in the stream.
        number: u64,
        /// Version of the snapshot.
        version: Version,
        /// The blocks.
        writes: Vec<BlockWrite>,
    },
    /// Asks what the replica has that a version does not cover.
    Report {
        /// Volume that is asked about.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// The version.
        since: Version,
        /// The snapshot in whose view it is asked about; none for what it has now.
        at: Option<Version>,
        /// First block.
        from: BlockAddress,
    },
    /// Every block before this one is what it is at the primary: all copies of them have been answered.
    Passed {
        /// Volume that is copied.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// The first block of which this is not said.
        cursor: BlockAddress,
    },
    /// Every block is what it is at the primary.
    Finish {
        /// Volume that was copied.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
    },
    /// Both replicas have everything through this version, for good.
    Settled {
        /// Volume that is spoken of.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// The version.
        version: Version,
    },
    /// Asks for a block that the primary's disks can't give back.
    Fetch {
        /// Volume of the block.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// Names the question in the answer.
        number: u64,
        /// The block.
        address: BlockAddress,
    },
    /// What a block is that the replica has said to be damaged: an append of it, as a copy.
    Mend {
        /// Volume of the block.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// Version of the latest write of the chain.
        version: Version,
        /// The block.
        writes: Vec<BlockWrite>,
    },
}

impl ToReplica {
    /// Which volume and stream it belongs to.
    #[must_use]
    pub fn belongs_to(&self) -> (VolumeId, StreamId) {
        match self {
            Self::Begin { volume, stream }
            | Self::Join { volume, stream }
            | Self::Snapshots { volume, stream, .. }
            | Self::History { volume, stream, .. }
            | Self::Write { volume, stream, .. }
            | Self::Copy { volume, stream, .. }
            | Self::Report { volume, stream, .. }
            | Self::Passed { volume, stream, .. }
            | Self::Finish { volume, stream }
            | Self::Fetch { volume, stream, .. }
            | Self::Mend { volume, stream, .. }
            | Self::Settled { volume, stream, .. } => (*volume, *stream),
        }
    }

    /// What it writes over what the volume is now.
    #[must_use]
    pub(super) fn newest_writes(&self) -> &[BlockWrite] {
        match self {
            Self::Write { writes, .. } | Self::Copy { writes, .. } | Self::Mend { writes, .. } => writes,
            _ => &[],
        }
    }
}

/// From the replica to the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromReplica {
    /// The epoch is promised, durably, and writes of older streams have ended: the chain may go on.
    Ready {
        /// Volume of the `Begin`.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// The latest version that is durable here: where the chain goes on.
        durable: Version,
        /// Of which blocks everything through a version is here.
        coverage: Coverage,
    },
    /// This write of the chain, and every one before it, is on stable media.
    Durable {
        /// Volume of the writes.
        volume: VolumeId,
        /// Their stream.
        stream: StreamId,
        /// Version of the latest of them.
        version: Version,
    },
    /// A copy is on stable media.
    Copied {
        /// Volume of the copy.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// Its number.
        number: u64,
    },
    /// The replica's snapshots are those of the source: the answer to the last part of the list.
    Reconciled {
        /// Volume that is spoken of.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// Of which blocks everything through a version is here, snapshots that it covers included.
        coverage: Coverage,
    },
    /// What the replica has that the version asked about does not cover.
    Reported {
        /// Volume asked about.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// First block asked about.
        from: BlockAddress,
        /// What there is, and from where to ask on.
        changes: Changes,
    },
    /// The end of the resync is on record: the replica has everything up to its latest version.
    Whole {
        /// Volume that was copied.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
    },
    /// Nothing of that epoch is taken any more: a newer one was promised.
    Fenced {
        /// Volume of what was refused.
        volume: VolumeId,
        /// The stream that is over.
        stream: StreamId,
        /// The newer epoch.
        promised: u32,
    },
    /// The replica cannot go on: its store failed, or the chain does not fit what it has.
    Failed {
        /// Volume that is affected.
        volume: VolumeId,
        /// The stream that ends here.
        stream: StreamId,
        /// Why.
        reason: ReplicaFailure,
    },
    /// What a block is here.
    Fetched {
        /// Volume of the block.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// Number of the question.
        number: u64,
        /// Its 4096 bytes, verified; none when the disks here can't give it either.
        block: Option<Bytes>,
    },
    /// The disks here can't give a block back.
    Damaged {
        /// Volume of the block.
        volume: VolumeId,
        /// Its stream.
        stream: StreamId,
        /// The block.
        address: BlockAddress,
    },
}

impl FromReplica {
    /// Which volume and stream it belongs to.
    #[must_use]
    pub fn belongs_to(&self) -> (VolumeId, StreamId) {
        match self {
            Self::Ready { volume, stream, .. }
            | Self::Durable { volume, stream, .. }
            | Self::Copied { volume, stream, .. }
            | Self::Reconciled { volume, stream, .. }
            | Self::Reported { volume, stream, .. }
            | Self::Whole { volume, stream }
            | Self::Fenced { volume, stream, .. }
            | Self::Fetched { volume, stream, .. }
            | Self::Damaged { volume, stream, .. }
            | Self::Failed { volume, stream, .. } => (*volume, *stream),
        }
    }
}

/// Why a stream ends. The replica has to be brought up to date before it counts again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaFailure {
    /// Its store did not take a write.
    #[error("the replica's store: {0}")]
    Store(#[from] StoreError),
    /// A write does not follow what the replica has: something was lost on one side.
    #[error("a write that follows version {expected:?} came to a replica at version {found:?}")]
    Gap {
        /// What the write follows.
        expected: Version,
        /// What the replica has.
        found: Version,
    },
    /// The promise, or how far the resync is, could not be made durable.
    #[error("the replica cannot keep its records")]
    Records,
    /// A message that no primary sends at this point.
    #[error("the other side does not keep to the protocol of the mirror")]
    Protocol,
}

/// Bytes that the blocks of an append take in memory and on the wire, about.
#[must_use]
pub fn size_of_writes(writes: &[BlockWrite]) -> u64 {
    let size = |write: &BlockWrite| match write {
        BlockWrite::Data { data, .. } => data.len() as u64 + PER_CHANGE_BYTES,
        BlockWrite::Snapshot { record } => record.len() as u64 + PER_CHANGE_BYTES,
        BlockWrite::Hole { .. } | BlockWrite::SnapshotDropped { .. } => PER_CHANGE_BYTES,
    };
    PER_CHANGE_BYTES + writes.iter().map(size).sum::<u64>()
}

const PER_CHANGE_BYTES: u64 = 64;
