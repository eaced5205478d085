//! The store: a log of full stripes with a map from (volume, address, version) to place.
//!
//! Invariants: an append is acknowledged when its batch and all batches before it are on stable
//! media; recovery gives back every acknowledged append, or refuses to open the pool; every block
//! that is read has passed a checksum bound to (volume, address, version); a segment is reused only
//! when a durable checkpoint refers to nothing in it.
//!
//! Left to others: versions and locks (`volume`), redundancy and disks (`array`).

pub mod batch;
pub mod fuzzing;
pub mod interface;
pub mod map;
pub mod root;
pub mod segments;
pub mod space;

mod audit;
mod changes;
mod checkpoint;
mod checkpoint_codec;
mod cleaner;
mod compaction;
mod image;
mod log;
mod pool;
mod read;
mod rebuild;
mod recovery;
mod rollback;
mod scrub;
mod shared;
mod snapshots;
mod tables;
mod views;
mod writer;

pub use pool::{PoolError, PoolUsage, Store};
pub use rebuild::{RebuildPriority, RebuildProgress};
pub use recovery::{RecoveryError, RecoveryReport};
pub use scrub::ScrubReport;
pub use shared::{DEFAULT_MAP_MEMORY_BYTES, Statistics, StoreOptions};

#[cfg(test)]
pub(crate) mod tests;
