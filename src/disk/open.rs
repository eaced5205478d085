//! Opening a disk: what the path is, direct I/O, the lock, the size, the flush group.
//!
//! Guarantees: what is opened is a block device or a regular file, is locked for this opening alone,
//! and nothing of it has been changed. Block devices are opened for direct I/O always; files where
//! their file system can, else through the page cache with a warning.
//! Left to others: whether what is on the disk is ours (superblocks: `array`).

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::engine::{Engine, OpenDisk};
use super::lock::{LockError, lock, while_busy};
use super::request::{DiscardMethod, OpenFile};
use super::{Disk, DiskProperties, device, file};
use crate::base::units::BLOCK_SIZE;

/// Opens the block device or file at `path` and locks it until the disk is dropped and its last
/// operation has left the kernel.
///
/// # Errors
/// [`OpenError`], whose text says what to do.
pub fn open(engine: &Engine, path: &Path, options: &OpenOptions) -> Result<Rc<dyn Disk>, OpenError> {
    let error = |reason| OpenError { path: path.to_owned(), reason };
    let opened = Opened::new(path, options).map_err(error)?;
    let properties = DiskProperties {
        path: path.display().to_string(),
        size_bytes: opened.size_bytes,
        flush_group: opened.flush_group,
    };
    let file = OpenFile { file: opened.file, discard: opened.discard };
    Ok(Rc::new(OpenDisk::new(engine, file, properties)))
}

/// How to open a disk.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// How long to wait for another holder of the lock to leave: one that was killed still has its
    /// operations in the kernel for a moment.
    pub lock_patience: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { lock_patience: Duration::from_secs(2) }
    }
}

/// A disk that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct OpenError {
    /// Path that was to be opened.
    pub path: PathBuf,
    /// Why not.
    pub reason: OpenRefusal,
}

/// Matchable cause of an [`OpenError`].
#[derive(Debug, thiserror::Error)]
pub enum OpenRefusal {
    /// Nothing is there.
    #[error("no such disk; check the path, or create a file disk first")]
    NotFound,
    /// Neither a block device nor a regular file.
    #[error("is a {what}; a disk is a block device or a regular file")]
    NotADisk {
        /// What it is.
        what: &'static str,
    },
    /// Another process has it.
    #[error("in use{}; stop that one first: two users would destroy each other's data", by(.holder))]
    InUse {
        /// Who, as far as the system tells.
        holder: Option<String>,
    },
    /// The device is mounted or claimed.
    #[error("in use: mounted, part of another volume or claimed by another process; free it first")]
    Claimed,
    /// Not one whole block.
    #[error("has {size_bytes} bytes; a disk has at least {BLOCK_SIZE}")]
    TooSmall {
        /// Size found.
        size_bytes: u64,
    },
    /// Sectors larger than a block.
    #[error("has sectors of {sector_bytes} bytes; at most {BLOCK_SIZE} are supported")]
    SectorSize {
        /// Size found.
        sector_bytes: u32,
    },
    /// The system refused.
    #[error("{action} failed: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

struct Opened {
    file: File,
    size_bytes: u64,
    flush_group: Option<u64>,
    discard: DiscardMethod,
}

impl Opened {
    fn new(path: &Path, options: &OpenOptions) -> Result<Self, OpenRefusal> {
        // Looked at before it is opened, since opening a tape or a pipe has effects.
        let kind = Kind::of(&std::fs::metadata(path).map_err(system("looking at it"))?)?;
        let (file, direct) = open_file(path, kind, options.lock_patience)?;
        let metadata = file.metadata().map_err(system("looking at it"))?;
        if Kind::of(&metadata)? != kind {
            return Err(OpenRefusal::NotADisk { what: "path that changes while it is opened" });
        }
        lock(&file, options.lock_patience).map_err(|error| match error {
            LockError::Held { holder } => OpenRefusal::InUse { holder },
            LockError::System(source) => OpenRefusal::System { action: "locking", source },
        })?;
        match kind {
            Kind::BlockDevice => Self::block_device(file),
            Kind::File => Self::file(path, file, direct, metadata.size()),
        }
    }

    fn block_device(file: File) -> Result<Self, OpenRefusal> {
        let sector_bytes = device::sector_bytes(&file).map_err(system("asking for its sector size"))?;
        if sector_bytes as usize > BLOCK_SIZE {
            return Err(OpenRefusal::SectorSize { sector_bytes });
        }
        let size_bytes = usable(device::size_bytes(&file).map_err(system("asking for its size"))?)?;
        let flush_group = Some(device::flush_group(&file).map_err(system("looking at it"))?);
        Ok(Self { file, size_bytes, flush_group, discard: DiscardMethod::BlockDiscard })
    }

    fn file(path: &Path, file: File, direct: bool, size_bytes: u64) -> Result<Self, OpenRefusal> {
        let size_bytes = usable(size_bytes)?;
        let flush_group = if direct {
            file::flush_group(&file, size_bytes).map_err(system("looking at its extents"))?
        } else {
            tracing::warn!(path = %path.display(), "no direct I/O on this file system: disk goes through the page cache");
            None
        };
        let discard = if flush_group.is_some() { DiscardMethod::None } else { DiscardMethod::PunchHole };
        Ok(Self { file, size_bytes, flush_group, discard })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    BlockDevice,
    File,
}

impl Kind {
    fn of(metadata: &Metadata) -> Result<Self, OpenRefusal> {
        let kind = metadata.file_type();
        let what = match kind {
            kind if kind.is_file() => return Ok(Self::File),
            kind if kind.is_block_device() => return Ok(Self::BlockDevice),
            kind if kind.is_dir() => "directory",
            kind if kind.is_char_device() => "character device",
            kind if kind.is_fifo() => "pipe",
            kind if kind.is_socket() => "socket",
            _ => "file of an unknown kind",
        };
        Err(OpenRefusal::NotADisk { what })
    }
}

/// Opens with direct I/O, waiting for a killed process's claim to a device to end; a file whose file system refuses that, without. Says which.
fn open_file(path: &Path, kind: Kind, patience: Duration) -> Result<(File, bool), OpenRefusal> {
    let claim = if kind == Kind::BlockDevice { device::OPEN_FLAGS } else { 0 };
    let open = |flags| File::options().read(true).write(true).custom_flags(flags).open(path);
    match while_busy(libc::EBUSY, patience, || open(libc::O_DIRECT | claim)) {
        Ok(file) => Ok((file, true)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINVAL) if kind == Kind::File => Ok((open(0).map_err(system("opening"))?, false)),
            Some(libc::EBUSY) => Err(OpenRefusal::Claimed),
            _ => Err(system("opening")(error)),
        },
    }
}

fn usable(size_bytes: u64) -> Result<u64, OpenRefusal> {
    match size_bytes / BLOCK_SIZE as u64 * BLOCK_SIZE as u64 {
        0 => Err(OpenRefusal::TooSmall { size_bytes }),
        usable => Ok(usable),
    }
}

fn system(action: &'static str) -> impl Fn(io::Error) -> OpenRefusal {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => OpenRefusal::NotFound,
        _ => OpenRefusal::System { action, source },
    }
}

fn by(holder: &Option<String>) -> String {
    holder.as_ref().map(|holder| format!(" by {holder}")).unwrap_or_default()
}
