//! RAID 5 over equal segments of up to 24 disks: addressing, parity, degraded reads, and the
//! superblocks that say which disks belong, new ones in the place of lost ones among them.
//!
//! Invariants: in every written row the XOR over the segment's members is zero; a row is written once
//! between two uses of its segment, but for repair with identical bytes; a disk that failed a write
//! or a flush is excluded by a superblock generation that is durable on all others before anything
//! that it missed is acknowledged. What the blocks mean, and their checksums, belong to `store`.

pub mod disks;
pub mod fuzzing;
pub mod geometry;
pub mod parity;
pub mod replacement;
pub mod superblock;

mod election;
mod membership;

pub use disks::{Array, ArrayError, DiskState, DiskStatus};
pub use election::{FormatOptions, OpenError, OpenReport, pool_of};
pub use geometry::{Geometry, MemberSet, Place, SegmentIndex, Slot};
pub use replacement::ReplaceError;
