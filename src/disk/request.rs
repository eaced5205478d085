//! One operation on its way through an engine: what it does, how far it has come, what its end means.
//!
//! Invariant: the memory of an operation is owned by its [`Work`] from the start to the end, so
//! neither a dropped future nor a late kernel can meet freed memory. Short transfers go on where
//! they stopped; interrupted ones start again; everything else is final and is reported once.

use std::os::fd::RawFd;

use bytes::Bytes;

use super::DiskErrorKind;
use crate::base::buffer::AlignedBuf;

/// What an operation does, with its memory.
pub(super) enum Work {
    /// Fill `buffer` from `offset` on.
    Read { offset: u64, buffer: AlignedBuf, done: usize, stalls: u32 },
    /// Write `pieces` from `offset` on.
    Write { offset: u64, pieces: Vec<Bytes>, length: u64, done: u64, stalls: u32 },
    /// Put completed writes on stable media.
    Flush,
    /// Forget a range.
    Discard { offset: u64, length: u64 },
}

impl Work {
    pub(super) fn read(offset: u64, buffer: AlignedBuf) -> Self {
        Self::Read { offset, buffer, done: 0, stalls: 0 }
    }

    pub(super) fn write(offset: u64, pieces: Vec<Bytes>) -> Self {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self::Write { offset, pieces, length, done: 0, stalls: 0 }
    }

    /// Where the rest of a transfer goes on.
    pub(super) fn position(&self) -> u64 {
        match self {
            Self::Read { offset, done, .. } => offset + *done as u64,
            Self::Write { offset, done, .. } => offset + done,
            Self::Discard { offset, .. } => *offset,
            Self::Flush => 0,
        }
    }

    /// Lists the memory of the rest of a transfer in `segments`: adjacent pieces as one, at most as
    /// many segments as one system call takes. The list points into `self` and is good for as long
    /// as `self` lives, wherever it is moved to: pieces and buffers live on the heap.
    pub(super) fn segments(&mut self, segments: &mut Vec<libc::iovec>) {
        segments.clear();
        match self {
            Self::Read { buffer, done, .. } => {
                let rest = &mut buffer[*done..];
                let length = rest.len().min(LONGEST_TRANSFER);
                segments.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: length });
            }
            Self::Write { pieces, done, .. } => {
                let mut skip = *done;
                let mut total = 0;
                for piece in pieces.iter() {
                    let Ok(skipped) = usize::try_from(skip.min(piece.len() as u64)) else { break };
                    skip -= skipped as u64;
                    let rest = &piece[skipped..];
                    if !rest.is_empty() && !push_segment(segments, rest, &mut total) {
                        break;
                    }
                }
            }
            Self::Flush | Self::Discard { .. } => {}
        }
    }

    /// Takes the result of a system call, bytes or errno, and says whether another is needed.
    pub(super) fn advance(&mut self, result: Result<usize, i32>) -> Progress {
        let moved = match result {
            Ok(moved) => moved,
            Err(libc::EINTR) => return Progress::Again,
            // The kernel had not started; it may lack memory for the moment.
            Err(libc::EAGAIN) if self.may_try_again() => return Progress::Again,
            Err(errno) => return self.failed(errno),
        };
        match self {
            Self::Read { buffer, done, .. } => {
                // Direct transfers go on at sector boundaries only; an odd end is the end of the file.
                let whole = whole_sectors(moved);
                *done += whole;
                match whole {
                    _ if *done >= buffer.len() => Progress::Done(Ok(())),
                    0 => Progress::Done(Err(DiskErrorKind::Short)),
                    _ => Progress::Again,
                }
            }
            Self::Write { length, done, .. } => {
                let whole = whole_sectors(moved) as u64;
                *done += whole;
                match whole {
                    _ if *done >= *length => Progress::Done(Ok(())),
                    0 => Progress::Done(Err(DiskErrorKind::Io(libc::EIO))),
                    _ => Progress::Again,
                }
            }
            Self::Flush | Self::Discard { .. } => Progress::Done(Ok(())),
        }
    }

    /// What is given back to the one who asked.
    pub(super) fn finish(self, outcome: Result<(), DiskErrorKind>) -> Finished {
        match self {
            Self::Read { buffer, .. } => Finished { buffer: Some(buffer), outcome },
            _ => Finished { buffer: None, outcome },
        }
    }

    fn may_try_again(&mut self) -> bool {
        match self {
            Self::Read { stalls, .. } | Self::Write { stalls, .. } => {
                *stalls += 1;
                *stalls <= MOST_STALLS
            }
            Self::Flush | Self::Discard { .. } => false,
        }
    }

    fn failed(&self, errno: i32) -> Progress {
        Progress::Done(match (self, errno) {
            // Not every device or file system can: allowed by the trait.
            (Self::Discard { .. }, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL) => Ok(()),
            (_, libc::ENOSPC | libc::EDQUOT) => Err(DiskErrorKind::NoSpace),
            (_, libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM) => Err(DiskErrorKind::Gone),
            (_, errno) => Err(DiskErrorKind::Io(errno)),
        })
    }
}

/// Whether an operation is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Another system call is needed.
    Again,
    /// It is over.
    Done(Result<(), DiskErrorKind>),
}

/// The end of an operation.
pub(super) struct Finished {
    /// The buffer of a read, filled if `outcome` is good.
    pub(super) buffer: Option<AlignedBuf>,
    pub(super) outcome: Result<(), DiskErrorKind>,
}

/// An open block device or regular file, as both engines use it. Its lock is tied to this opening
/// and is released when the last operation on it has left the kernel.
pub(super) struct OpenFile {
    pub(super) file: std::fs::File,
    pub(super) discard: DiscardMethod,
}

impl OpenFile {
    pub(super) fn descriptor(&self) -> RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.file)
    }
}

/// How a range is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiscardMethod {
    /// Not at all: a fully written file must stay so (see `file`).
    None,
    /// A hole in a file.
    PunchHole,
    /// An ioctl of the block device, which blocks.
    BlockDiscard,
}

fn push_segment(segments: &mut Vec<libc::iovec>, piece: &[u8], total: &mut usize) -> bool {
    let length = piece.len().min(LONGEST_TRANSFER - *total);
    if length == 0 {
        return false;
    }
    let start = piece.as_ptr().cast_mut();
    *total += length;
    let is_full = segments.len() == MOST_SEGMENTS;
    match segments.last_mut() {
        Some(last) if last.iov_base.addr() + last.iov_len == start.addr() => last.iov_len += length,
        _ if is_full => return false,
        _ => segments.push(libc::iovec { iov_base: start.cast(), iov_len: length }),
    }
    length == piece.len()
}

fn whole_sectors(bytes: usize) -> usize {
    bytes / SECTOR_BYTES * SECTOR_BYTES
}

/// The kernel takes at most this many segments in one call (UIO_MAXIOV).
const MOST_SEGMENTS: usize = 1024;

/// Bytes of one system call: below the kernel's own limit of 2 GiB less a page.
const LONGEST_TRANSFER: usize = 1 << 30;

/// The smallest unit in which direct transfers stop and go on.
const SECTOR_BYTES: usize = 512;

/// How often the kernel may say that it could not start a transfer.
const MOST_STALLS: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(work: &mut Work) -> Vec<usize> {
        let mut segments = Vec::new();
        work.segments(&mut segments);
        segments.iter().map(|segment| segment.iov_len).collect()
    }

    #[test]
    fn adjacent_pieces_become_one_segment_and_short_writes_go_on() {
        let memory = AlignedBuf::zeroed(8 * 4096).freeze();
        let other = AlignedBuf::zeroed(4096).freeze();
        let pieces = vec![memory.slice(..4096), memory.slice(4096..12288), other, memory.slice(12288..)];
        let mut work = Work::write(1 << 20, pieces);
        assert_eq!(lengths(&mut work), [12288, 4096, 20480]);
        assert_eq!(work.advance(Ok(13000)), Progress::Again);
        assert_eq!(work.position(), (1 << 20) + 12800);
        assert_eq!(lengths(&mut work), [4096 - 512, 20480]);
        assert_eq!(work.advance(Ok(0)), Progress::Done(Err(DiskErrorKind::Io(libc::EIO))));
    }

    #[test]
    fn no_call_takes_more_segments_than_the_kernel() {
        let memory = AlignedBuf::zeroed(2 * 4096).freeze();
        // Every second page, so that no two are adjacent.
        let mut work = Work::write(0, vec![memory.slice(..4096); 1500]);
        assert_eq!(lengths(&mut work).len(), 1024);
        assert_eq!(work.advance(Ok(1024 * 4096)), Progress::Again);
        assert_eq!(lengths(&mut work).len(), 1500 - 1024);
        assert_eq!(work.advance(Ok((1500 - 1024) * 4096)), Progress::Done(Ok(())));
    }

    #[test]
    fn results_are_final_unless_the_kernel_had_not_started() {
        let read = || Work::read(0, AlignedBuf::zeroed(8192));
        assert_eq!(read().advance(Err(libc::EINTR)), Progress::Again);
        assert_eq!(read().advance(Err(libc::EIO)), Progress::Done(Err(DiskErrorKind::Io(libc::EIO))));
        assert_eq!(read().advance(Err(libc::ENODEV)), Progress::Done(Err(DiskErrorKind::Gone)));
        assert_eq!(read().advance(Ok(100)), Progress::Done(Err(DiskErrorKind::Short)));
        let mut truncated = read();
        assert_eq!(truncated.advance(Ok(4096)), Progress::Again);
        assert_eq!(truncated.advance(Ok(0)), Progress::Done(Err(DiskErrorKind::Short)));
        let mut starved = read();
        let tries = (0..).take_while(|_| starved.advance(Err(libc::EAGAIN)) == Progress::Again).count();
        assert_eq!(tries, MOST_STALLS as usize);
        assert_eq!(
            Work::Flush.advance(Err(libc::EAGAIN)),
            Progress::Done(Err(DiskErrorKind::Io(libc::EAGAIN)))
        );
        let mut full = Work::write(0, vec![]);
        assert_eq!(full.advance(Err(libc::ENOSPC)), Progress::Done(Err(DiskErrorKind::NoSpace)));
        let mut discard = Work::Discard { offset: 0, length: 4096 };
        assert_eq!(discard.advance(Err(libc::EOPNOTSUPP)), Progress::Done(Ok(())));
    }
}
