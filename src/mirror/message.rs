//! What the two ends of a mirror stream say to each other.
//!
//! A stream carries the volumes whose primary its sender is. What is sent of one volume forms a chain:
//! each write names the version of the one before it, so that a replica takes them in order, once and
//! without a gap, also when the stream broke in between or the replica was restarted.

use crate::base::units::{Version, VolumeId};
use crate::store::interface::{BlockWrite, StoreError};

/// From the primary of a volume to its replica.
#[derive(Clone, Debug)]
pub enum ToReplica {
    /// The stream is new, or the epoch: before anything else of the volume.
    Begin {
        /// Volume that is spoken of.
        volume: VolumeId,
        /// Epoch in which its primary serves it.
        epoch: u32,
    },
    /// One append of the primary, or a copy of blocks that the replica lacks.
    Write {
        /// Volume that is written.
        volume: VolumeId,
        /// Version of all its blocks; its epoch is the one of the last `Begin`.
        version: Version,
        /// Version of the write before it in the chain; the replica's own latest at the first one.
        previous: Version,
        /// The changes. Their checksums are those that the primary computed over the host's data.
        writes: Vec<BlockWrite>,
    },
}

/// From the replica to the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromReplica {
    /// The epoch is promised, durably, and writes of older ones have ended: the chain may go on.
    Ready {
        /// Volume of the `Begin`.
        volume: VolumeId,
        /// Its epoch.
        epoch: u32,
        /// The latest version that is durable here: where the chain goes on.
        durable: Version,
    },
    /// This write of the chain, and every one before it, is on stable media.
    Durable {
        /// Volume of the writes.
        volume: VolumeId,
        /// Version of the latest of them.
        version: Version,
    },
    /// Nothing of that epoch is taken any more: a newer one was promised.
    Fenced {
        /// Volume of what was refused.
        volume: VolumeId,
        /// The newer epoch.
        promised: u32,
    },
    /// The replica cannot go on: its store failed, or the chain does not fit what it has.
    Failed {
        /// Volume that is affected.
        volume: VolumeId,
        /// Epoch of the chain that ends here.
        epoch: u32,
        /// Why.
        reason: ReplicaFailure,
    },
}

/// Why a replica ends a chain. It has to be brought up to date before it counts again.
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
    /// The promise could not be made durable.
    #[error("the replica cannot record the epoch")]
    Promise,
}
