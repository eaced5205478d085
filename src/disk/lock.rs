//! The lock that keeps a second daemon off a disk.
//!
//! A BSD lock (flock) on the very opening that carries the input and output: it is free again only
//! when the last reference to that opening has left the kernel, so whoever gets it next also waits
//! out what a killed process had in flight. Block devices are claimed with `O_EXCL` besides (see
//! `device`), because one device can have several names. Advisory: it stops those who ask.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// Locks `file` for this opening alone, waiting at most `patience` for another holder to leave.
///
/// # Errors
/// [`LockError`].
pub(super) fn lock(file: &File, patience: Duration) -> Result<(), LockError> {
    let attempt = || loop {
        // SAFETY: no memory is passed, and the descriptor is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    while_busy(libc::EWOULDBLOCK, patience, attempt).map_err(|error| match error.raw_os_error() {
        Some(libc::EWOULDBLOCK) => LockError::Held { holder: holder_of(file) },
        _ => LockError::System(error),
    })
}

/// Repeats `attempt` while it fails with `busy`, for about `patience`; then gives its last result.
pub(super) fn while_busy<T>(
    busy: i32,
    patience: Duration,
    mut attempt: impl FnMut() -> std::io::Result<T>,
) -> std::io::Result<T> {
    let mut waited = Duration::ZERO;
    loop {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(busy) && waited < patience => {
                std::thread::sleep(RETRY_INTERVAL);
                waited += RETRY_INTERVAL;
            }
            result => return result,
        }
    }
}

/// Why a disk could not be locked.
pub(super) enum LockError {
    /// Another opening holds the lock.
    Held {
        /// Who that seems to be, as far as the system tells.
        holder: Option<String>,
    },
    /// The file system has no locks, or fails.
    System(std::io::Error),
}

/// The process that /proc/locks names for `file`. Only for messages: it may be gone by now.
fn holder_of(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let inode = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"
    let process = locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&inode.as_str()))
            .then(|| fields[4].to_owned())
    })?;
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(format!("process {process} {}", name.trim()).trim_end().to_owned())
}

/// How often a held lock is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
