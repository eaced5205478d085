//! One disk: a block device or a file, behind a trait that production and simulation share.
//!
//! Guarantees: a buffer belongs to the operation until it completes; a completed flush covers every
//! write that completed before the flush was asked for; errors are reported once and never retried.
//! Left to others: redundancy, checksums, and what an error means for the disk's future (`array`).
//!
//! `open` and `file` find, lock and describe a disk; `engine` carries its operations, over io_uring
//! (`uring`) or threads (`threads`). The simulated disk is `crate::sim::disk`.

mod device;
pub mod engine;
pub mod file;
mod lock;
pub mod open;
mod request;
pub mod threads;
pub mod uring;

pub use engine::{Engine, EnginePreference};
pub use open::{OpenError, OpenOptions, open};

use bytes::Bytes;
use futures::future::LocalBoxFuture;

use crate::base::buffer::AlignedBuf;
use crate::base::units::BLOCK_SIZE;

/// Outcome of a disk operation, to be awaited on the thread that asked for it.
pub type DiskFuture<T> = LocalBoxFuture<'static, Result<T, DiskError>>;

/// A random-access device. Offsets, lengths and memory are multiples of 4096 bytes; operations run
/// concurrently and complete in any order; a dropped future does not cancel its operation.
pub trait Disk {
    /// What is known of the device since it was opened.
    fn properties(&self) -> &DiskProperties;
    /// Fills the whole of `buffer` from `offset` on.
    fn read(&self, offset: u64, buffer: AlignedBuf) -> DiskFuture<AlignedBuf>;
    /// Writes the pieces of `data` one after the other from `offset` on. Completion says nothing
    /// about the medium; [`Disk::flush`] does.
    fn write(&self, offset: u64, data: Vec<Bytes>) -> DiskFuture<()>;
    /// Puts on stable media every write that completed before this call, on this disk and on all
    /// disks with the same [`DiskProperties::flush_group`].
    fn flush(&self) -> DiskFuture<()>;
    /// Tells the device that `length` bytes from `offset` on are unused. What they read as
    /// afterwards is unspecified; a device that cannot do this succeeds without doing it.
    fn discard(&self, offset: u64, length: u64) -> DiskFuture<()>;
}

/// Facts of an open disk.
#[derive(Clone, Debug)]
pub struct DiskProperties {
    /// Where it was opened, for messages.
    pub path: String,
    /// Usable size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Disks with an equal value share a backing device: one flush covers all of them. `None` when
    /// the disk must be flushed by itself.
    pub flush_group: Option<u64>,
}

/// A disk operation that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} of {length} bytes at {offset} on {path}: {kind}")]
pub struct DiskError {
    /// What went wrong.
    pub kind: DiskErrorKind,
    /// What was being done.
    pub operation: Operation,
    /// Disk, as in [`DiskProperties::path`].
    pub path: String,
    /// Byte offset of the operation.
    pub offset: u64,
    /// Bytes of the operation.
    pub length: u64,
}

/// Matchable cause of a [`DiskError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskErrorKind {
    /// The device reported an input or output error; the number is the errno.
    #[error("input/output error (errno {0})")]
    Io(i32),
    /// The file system under a file disk is full: a full pool, not a broken disk.
    #[error("no space left under the file")]
    NoSpace,
    /// The device is gone.
    #[error("the device is gone")]
    Gone,
    /// Fewer bytes than asked for: the file was truncated.
    #[error("the file is shorter than the disk")]
    Short,
}

/// The operations of a [`Disk`], for errors and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Disk::read`].
    Read,
    /// [`Disk::write`].
    Write,
    /// [`Disk::flush`].
    Flush,
    /// [`Disk::discard`].
    Discard,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        })
    }
}

/// Checks what every caller of a [`Disk`] has promised about an operation.
pub(crate) fn assert_transfer(properties: &DiskProperties, offset: u64, length: u64) {
    let block = BLOCK_SIZE as u64;
    assert!(
        offset.is_multiple_of(block) && length.is_multiple_of(block) && length > 0,
        "{length} bytes at {offset} of {}: not whole blocks",
        properties.path,
    );
    assert!(
        offset.checked_add(length).is_some_and(|end| end <= properties.size_bytes),
        "{length} bytes at {offset} of {}: behind the end at {}",
        properties.path,
        properties.size_bytes,
    );
}
