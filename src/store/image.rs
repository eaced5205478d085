//! A segment read as a whole, for those who walk its batches: recovery, the cleaner, checkpoints.
//!
//! Blocks that a disk does not give, or that fail their checksum, are rebuilt from the row's parity.

use bytes::Bytes;
use futures::future::join_all;

use crate::array::superblock::{LogKey, Uuid};
use crate::array::{Array, ArrayError, Geometry, MemberSet, SegmentIndex, Slot, parity};
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::mutant::{self, Mutant};
use crate::base::units::BLOCK_SIZE;

use super::batch::BatchHeader;

/// The columns of one segment.
pub(super) struct SegmentImage {
    segment: SegmentIndex,
    /// The pool, and the key of its headers: nothing else passes for one.
    identity: (Uuid, LogKey),
    geometry: Geometry,
    columns: Vec<Option<Column>>,
}

struct Column {
    data: Bytes,
    /// Rows that could not be read.
    unreadable: Vec<u32>,
}

impl SegmentImage {
    /// Reads all columns that disks give.
    pub(super) async fn read(array: &Array, segment: SegmentIndex) -> Result<Self, ArrayError> {
        let geometry = array.geometry();
        let read = geometry.all_slots().iter().map(|slot| read_column(array, segment, slot, geometry.rows));
        let columns = join_all(read).await;
        if array.is_offline() {
            return Err(ArrayError::Offline);
        }
        let identity = (array.pool(), array.log_key());
        Ok(Self { segment, identity, geometry, columns })
    }

    /// `count` rows of a column as the disk gave them.
    pub(super) fn raw(&self, slot: Slot, row: u32, count: u32) -> Option<Bytes> {
        let column = self.columns.get(slot.index())?.as_ref()?;
        let readable = !column.unreadable.iter().any(|bad| (row..row + count).contains(bad));
        let range = row as usize * BLOCK_SIZE..(row + count) as usize * BLOCK_SIZE;
        (readable && row + count <= self.geometry.rows).then(|| column.data.slice(range))
    }

    /// `count` rows of a column as the other members give them.
    fn rebuilt(&self, members: MemberSet, slot: Slot, row: u32, count: u32) -> Option<Bytes> {
        let mut sum: Option<AlignedBuf> = None;
        if !members.contains(slot) {
            return None;
        }
        for other in members.without(slot).iter() {
            let column = self.raw(other, row, count)?;
            match &mut sum {
                None => sum = Some(AlignedBuf::copy_of(&column)),
                Some(sum) => parity::xor_into(sum, &column),
            }
        }
        sum.map(AlignedBuf::freeze)
    }

    /// A block whose checksum is `checksum`: as read, else rebuilt.
    pub(super) fn verified(
        &self,
        members: MemberSet,
        slot: Slot,
        row: u32,
        checksum: Crc32,
    ) -> Option<Bytes> {
        let matches = |block: &Bytes| Crc32::of(block) == checksum;
        let raw = self.raw(slot, row, 1).filter(matches);
        raw.or_else(|| self.rebuilt(members, slot, row, 1).filter(matches))
    }

    /// The batch header that begins in `row`, if there is one that `accept` accepts; looked for on
    /// every disk, and behind parity over any of `memberships`.
    pub(super) fn header_at(
        &self,
        row: u32,
        memberships: &[MemberSet],
        accept: impl Fn(&BatchHeader) -> bool,
    ) -> Option<(BatchHeader, Crc32)> {
        if row >= self.geometry.rows {
            return None;
        }
        let slots = || (0..self.columns.len() as u8).map(Slot);
        let check = |slot: Slot, found: Option<(BatchHeader, Crc32)>| {
            found.filter(|(header, _)| {
                self.is_own(header)
                    && header.is_within(&self.geometry)
                    && header.place.segment == self.segment
                    && header.first_row == row
                    && header.layout().data_slot(0) == slot
                    && accept(header)
            })
        };
        let direct =
            slots().find_map(|slot| check(slot, decode(row, |first, count| self.raw(slot, first, count))));
        direct.or_else(|| {
            memberships.iter().find_map(|members| {
                members.iter().find_map(|slot| {
                    check(slot, decode(row, |first, count| self.rebuilt(*members, slot, first, count)))
                })
            })
        })
    }

    fn is_own(&self, header: &BatchHeader) -> bool {
        let key = if mutant::is(Mutant::HeaderWithoutKey) { self.identity.1 } else { header.key };
        (header.pool, key) == self.identity
    }

    /// Every readable header in the segment, wherever it begins, chained or not.
    pub(super) fn stray_headers(&self) -> impl Iterator<Item = BatchHeader> {
        (0..self.geometry.rows).flat_map(move |row| {
            let slots = (0..self.columns.len() as u8).map(Slot);
            slots.filter_map(move |slot| {
                let found = decode(row, |first, count| self.raw(slot, first, count));
                found.map(|found| found.0).filter(|header| self.is_own(header))
            })
        })
    }

    /// The batches from the segment's start on, as far as `accept` accepts their headers.
    pub(super) fn batches(
        &self,
        memberships: &[MemberSet],
        accept: impl Fn(&BatchHeader) -> bool,
    ) -> Vec<BatchHeader> {
        let mut batches = Vec::new();
        let mut row = 0;
        while let Some((header, _)) = self.header_at(row, memberships, &accept) {
            row += header.height;
            batches.push(header);
        }
        batches
    }
}

/// What the disks of a segment may be of which nobody can tell: all of them, or all but the one that was not there when it
/// was opened. That one may be back since, and another one be missing now.
pub(super) fn memberships(array: &Array) -> Vec<MemberSet> {
    let all = array.geometry().all_slots();
    let mut found = vec![all, array.live()];
    if mutant::is(Mutant::CheckpointOfOtherDisks) {
        return found;
    }
    found.extend(all.iter().map(|slot| all.without(slot)).filter(|members| *members != array.live()));
    found
}

/// The readable header at the top of a segment, if there is one.
pub(super) async fn first_header(
    array: &Array,
    segment: SegmentIndex,
) -> Result<Option<BatchHeader>, ArrayError> {
    let geometry = array.geometry();
    let top = |slot, count| async move { array.read_rows(segment, slot, 0, count).await.ok() };
    for slot in geometry.all_slots().iter() {
        let Some(first) = top(slot, 1).await else { continue };
        let Some(blocks) = BatchHeader::peek_blocks(&first) else { continue };
        let Some(whole) = top(slot, (blocks as u32).min(geometry.rows)).await else { continue };
        let found = BatchHeader::decode(&whole).ok().map(|(header, _)| header);
        let own = |header: &BatchHeader| {
            (header.pool, header.key) == (array.pool(), array.log_key()) && header.place.segment == segment
        };
        if let Some(header) = found.filter(own) {
            return Ok(Some(header));
        }
    }
    if array.is_offline() { Err(ArrayError::Offline) } else { Ok(None) }
}

/// Reads a header through `rows`: its first block says how many blocks it takes.
fn decode(row: u32, rows: impl Fn(u32, u32) -> Option<Bytes>) -> Option<(BatchHeader, Crc32)> {
    let first = rows(row, 1)?;
    let blocks = BatchHeader::peek_blocks(&first)?;
    let whole = if blocks == 1 { first } else { rows(row, blocks as u32)? };
    BatchHeader::decode(&whole).ok()
}

/// Reads one column: at once, and row by row when that fails.
async fn read_column(array: &Array, segment: SegmentIndex, slot: Slot, rows: u32) -> Option<Column> {
    if let Ok(data) = array.read_rows(segment, slot, 0, rows).await {
        return Some(Column { data: data.freeze(), unreadable: Vec::new() });
    }
    if array.lacks_column(slot, segment) {
        return None;
    }
    let mut data = AlignedBuf::zeroed(rows as usize * BLOCK_SIZE);
    let mut unreadable = Vec::new();
    for row in 0..rows {
        match array.read_rows(segment, slot, row, 1).await {
            Ok(block) => data[row as usize * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(&block),
            Err(_) => unreadable.push(row),
        }
    }
    Some(Column { data: data.freeze(), unreadable })
}
