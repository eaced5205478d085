//! What is particular to block devices: their size, their sectors, and which of them share a cache.
//!
//! Guarantees: [`OPEN_FLAGS`] claims the device for this opening (`O_EXCL` without `O_CREAT`), which
//! the kernel refuses while it is mounted or claimed under any of its names. Partitions of one disk
//! share its cache, so they share a flush group.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Flags for opening a block device, besides those common to all disks.
pub(super) const OPEN_FLAGS: i32 = libc::O_EXCL;

/// `_IO(0x12, 119)`: discards the byte range given as two 64-bit numbers (linux/fs.h).
pub(super) const BLKDISCARD: libc::Ioctl = 0x1277;

/// Bytes in the device.
pub(super) fn size_bytes(device: &File) -> std::io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the ioctl writes one 64-bit number.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut size) };
    if result == 0 { Ok(size) } else { Err(std::io::Error::last_os_error()) }
}

/// Bytes in a logical sector, the unit of direct transfers.
pub(super) fn sector_bytes(device: &File) -> std::io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the ioctl writes one int.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::BLKSSZGET, &raw mut size) };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    u32::try_from(size).map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))
}

/// The device's flush group: its own number, or its parent's if it is a partition.
pub(super) fn flush_group(device: &File) -> std::io::Result<u64> {
    let own = device.metadata()?.rdev();
    Ok(parent_of(own).unwrap_or(own))
}

/// The whole disk of a partition, as the system describes it; none for a whole disk.
fn parent_of(device: u64) -> Option<u64> {
    let entry = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    if !std::path::Path::new(&entry).join("partition").exists() {
        return None;
    }
    // The entry is a link to .../block/DISK/PARTITION.
    let numbers = std::fs::read_to_string(std::fs::canonicalize(entry).ok()?.parent()?.join("dev")).ok()?;
    let (major, minor) = numbers.trim().split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// `_IOR(0x12, 114, size_t)`: size of a block device in bytes (linux/fs.h).
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
