//! Units and identities: what a number counts is part of its type.

use serde::{Deserialize, Serialize};

/// Bytes in a block, the unit of the map, of checksums and of thin provisioning.
pub const BLOCK_SIZE: usize = 4096;

/// Number of a volume inside a cluster. Never reused after the volume's deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(pub u32);

/// Address of a 4 KiB block inside a volume: byte offset divided by [`BLOCK_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BlockAddress(pub u64);

impl BlockAddress {
    /// The address `count` blocks further on.
    #[must_use]
    pub fn offset(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

/// When a block was written: epoch first, then the volume's sequence number; compared in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Version {
    /// Epoch of the configuration under which the write was accepted.
    pub epoch: u32,
    /// Sequence number that the volume's primary gave to the write.
    pub sequence: u64,
}

impl Version {
    /// Not older than any other.
    pub const GREATEST: Self = Self { epoch: u32::MAX, sequence: u64::MAX };

    /// Whether a replica that has everything through `point` has this. Sequence numbers grow along a
    /// volume's whole history, so a version of an older epoch with a greater number than the point's is
    /// *not* covered: it was given away beside the history, though it compares as less.
    #[must_use]
    pub fn is_covered_by(self, point: Self) -> bool {
        self.epoch <= point.epoch && self.sequence <= point.sequence
    }

    /// The point that covers everything before this.
    #[must_use]
    pub fn before(self) -> Self {
        Self { epoch: self.epoch, sequence: self.sequence.saturating_sub(1) }
    }

    /// The newest point that both cover.
    #[must_use]
    pub fn common_with(self, other: Self) -> Self {
        Self { epoch: self.epoch.min(other.epoch), sequence: self.sequence.min(other.sequence) }
    }
}

/// What a block's checksum is bound to: the volume, address and version of its first writing.
/// Copies made by cleaning, cloning or copying keep the identity of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockIdentity {
    /// Volume that the block was first written to.
    pub volume: VolumeId,
    /// Address that it was first written at.
    pub address: BlockAddress,
    /// Version that it was first written with.
    pub version: Version,
}
