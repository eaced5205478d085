//! Scrubbing: every block of a segment is held against its checksum, and every row against its parity, on all
//! disks, whether anybody reads them or not.
//!
//! Guarantees: only bytes that have passed a checksum are written, and parity of such bytes; nothing is written where
//! more is wrong than parity covers; what is reported as repaired is on stable media. What was never written (a phantom write) or lies where something else should
//! (a misdirected one) fails the checksum that is bound to its identity, or parity.
//!
//! Left to others: which segment is scrubbed when, and what becomes of blocks that parity can't give back.

use std::rc::Rc;

use bytes::Bytes;

use crate::array::geometry::StripeLayout;
use crate::array::{MemberSet, Place, SegmentIndex, Slot, parity};
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BLOCK_SIZE, BlockAddress, VolumeId};

use super::batch::{BatchHeader, BatchKind, Entry};
use super::image::SegmentImage;
use super::interface::StoreError;
use super::map::lsm::is_intact;
use super::map::{Map, MapValue};
use super::pool::Store;
use super::read::read_verified;
use super::rebuild::{is_live, note_damaged};
use super::segments::{Segment, SegmentState};
use super::shared::{Shared, add};

/// What scrubbing found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Blocks that were held against a checksum or parity.
    pub checked_blocks: u64,
    /// Blocks that were wrong or unreadable, parity included.
    pub found: u64,
    /// Of them, those that were written again as they should be, on stable media.
    pub repaired: u64,
    /// Live blocks that parity can't give back.
    pub unrecoverable: Vec<(VolumeId, BlockAddress)>,
    /// Something of the log or of a checkpoint is beyond parity: a restart may need it, until there is a new checkpoint.
    pub needs_checkpoint: bool,
}

impl ScrubReport {
    /// Adds what was found elsewhere.
    pub fn add(&mut self, other: Self) {
        self.checked_blocks += other.checked_blocks;
        self.found += other.found;
        self.repaired += other.repaired;
        self.unrecoverable.extend(other.unrecoverable);
        self.needs_checkpoint |= other.needs_checkpoint;
    }
}

impl Store {
    /// Scrubs one segment; one that is not in use is passed over.
    ///
    /// # Errors
    /// When the pool is offline.
    pub async fn scrub_segment(&self, segment: SegmentIndex) -> Result<ScrubReport, StoreError> {
        scrub_segment(self.shared_handle(), segment).await
    }

    /// Writes a checkpoint, so that a restart needs nothing of what was in the log before.
    ///
    /// # Errors
    /// When the pool is offline, or has no room for it.
    pub async fn renew_checkpoint(&self) -> Result<(), StoreError> {
        super::checkpoint::write(self.shared_handle()).await
    }
}

/// What is known of one block of a row.
enum Found {
    Good(Bytes),
    Wrong,
    /// Its disk is not there, or does not have it yet: nothing is wrong with that.
    Absent,
}

async fn scrub_segment(shared: &Rc<Shared>, index: SegmentIndex) -> Result<ScrubReport, StoreError> {
    // Nothing is given back while this is held, and no checkpoint changes.
    let _no_release = shared.checkpointing.lock().await;
    let info = *shared.contents.borrow().segments.get(index);
    let mut report = ScrubReport::default();
    if info.state == SegmentState::Free {
        return Ok(report);
    }
    let through = shared.log.borrow().durable.min(info.last_batch);
    let image = SegmentImage::read(&shared.array, index).await.map_err(|_| StoreError::Offline)?;
    if info.state == SegmentState::Table {
        scrub_table(shared, &image, index, &mut report).await;
        return finish(shared, report).await;
    }
    let is_checkpoint = info.state == SegmentState::Checkpoint;
    let accept = |header: &BatchHeader| {
        header.place.generation == info.generation
            && match header.kind {
                BatchKind::Checkpoint => is_checkpoint,
                BatchKind::Log => !is_checkpoint && header.number <= through,
            }
    };
    let memberships: [MemberSet; 2] = [info.members, shared.array.live()];
    let mut live_blocks = 0;
    let before = report.found - report.repaired;
    let mut last_batch = 0;
    for header in image.batches(&memberships, accept) {
        last_batch = header.number;
        live_blocks += Batch::new(shared, &image, &header).scrub(&mut report).await;
    }
    let is_cut_short = !is_checkpoint && last_batch < through;
    report.needs_checkpoint = is_cut_short || report.found - report.repaired > before;
    let is_missing = if shared.has_tree { is_cut_short } else { live_blocks < info.live_blocks };
    if !is_checkpoint && is_missing {
        scrub_by_map(shared, &image, index, &info, &mut report).await?;
    }
    finish(shared, report).await
}

async fn finish(shared: &Shared, report: ScrubReport) -> Result<ScrubReport, StoreError> {
    // A repair that is only in a disk's cache is lost with the power, and what was wrong comes back.
    if report.repaired > 0 && !mutant::is(Mutant::ScrubNotFlushed) {
        shared.array.flush().await.map_err(|_| StoreError::Offline)?;
    }
    if shared.array.is_offline() {
        return Err(StoreError::Offline);
    }
    add(&shared.statistics.scrubbed_blocks, report.checked_blocks);
    note_damaged(shared, report.unrecoverable.iter().copied());
    Ok(report)
}

/// A table of the map: its blocks know what they are. One that is beyond parity makes lookups fail that need it; what
/// it says is not known.
async fn scrub_table(
    shared: &Rc<Shared>,
    image: &SegmentImage,
    index: SegmentIndex,
    report: &mut ScrubReport,
) {
    let stripes = match shared.contents.borrow().tree() {
        Some(map) => map.tables().stripes_in(index),
        None => None,
    };
    // Without stripes it is being written.
    let Some((table, stripes)) = stripes else { return };
    let mut lost = Vec::new();
    for stripe in stripes {
        let rows = Rows { shared, image, segment: index, layout: stripe.layout };
        for row in 0..stripe.height {
            let is_right = |column: usize, block: &Bytes| match stripe.block_at(column as u32, row) {
                Some(number) => is_intact(table, number, block),
                None => block.iter().all(|byte| *byte == 0),
            };
            rows.scrub(stripe.first_row + row, is_right, report, &mut lost).await;
        }
    }
}

/// A header is damaged beyond parity: the map still knows what lies in the segment.
async fn scrub_by_map(
    shared: &Rc<Shared>,
    image: &SegmentImage,
    index: SegmentIndex,
    info: &Segment,
    report: &mut ScrubReport,
) -> Result<(), StoreError> {
    // The image may lack what came into the segment since it was read, or was on its way then.
    let is_being_filled = || {
        let last_batch = shared.contents.borrow().segments.get(index).last_batch;
        last_batch != info.last_batch || shared.log.borrow().durable < last_batch
    };
    let inside = shared.contents.borrow().map.entries_in(index);
    for (volume, address, live) in inside.await? {
        let MapValue::Data { place, checksum } = live.value else { continue };
        let identity = crate::base::units::BlockIdentity { volume, address, version: live.version };
        let plain = checksum.bind(&identity);
        report.checked_blocks += 1;
        let (slot, row) = (place.slot(), place.row());
        if image.raw(slot, row, 1).is_some_and(|raw| Crc32::of(&raw) == plain) {
            continue;
        }
        match image.verified(info.members, slot, row, plain) {
            Some(block) => repair(shared, report, place, block).await,
            None if is_being_filled() => {}
            // It may have been written, or repaired, since the segment was read.
            None if read_verified(&shared.array, info.members, place, plain).await.is_some() => {}
            None if report.unrecoverable.contains(&(volume, address)) => {}
            None => {
                report.found += 1;
                report.unrecoverable.push((volume, address));
            }
        }
    }
    Ok(())
}

async fn repair(shared: &Shared, report: &mut ScrubReport, place: Place, block: Bytes) {
    report.found += 1;
    if shared.array.live().contains(place.slot()) {
        shared.array.note_read_error(place.slot());
        shared.array.repair_rows(place.segment(), place.slot(), place.row(), block).await;
        report.repaired += 1;
    }
}

/// One batch of a segment.
struct Batch<'a> {
    shared: &'a Rc<Shared>,
    image: &'a SegmentImage,
    header: &'a BatchHeader,
    /// What `Crc32::of` the blocks of the data columns must be, in the order of the stripe.
    checksums: Vec<Crc32>,
}

impl<'a> Batch<'a> {
    fn new(shared: &'a Rc<Shared>, image: &'a SegmentImage, header: &'a BatchHeader) -> Self {
        let (bytes, _) = header.encode();
        let of_header = bytes.chunks(BLOCK_SIZE).map(Crc32::of);
        let of_payload = header.entries.iter().filter_map(Entry::payload_checksum);
        let of_rest = std::iter::repeat(Crc32::of(&[0; BLOCK_SIZE]));
        let blocks = header.layout().data_columns() * header.height as usize;
        let checksums = of_header.chain(of_payload).chain(of_rest).take(blocks).collect();
        Self { shared, image, header, checksums }
    }

    /// Returns how many live blocks it holds.
    async fn scrub(&self, report: &mut ScrubReport) -> u32 {
        let mut lost = Vec::new();
        let (layout, segment) = (self.header.layout(), self.header.place.segment);
        let rows = Rows { shared: self.shared, image: self.image, segment, layout };
        let height = self.header.height as usize;
        for row in 0..height {
            let is_right =
                |column: usize, block: &Bytes| Crc32::of(block) == self.checksums[column * height + row];
            rows.scrub(self.header.first_row + row as u32, is_right, report, &mut lost).await;
        }
        let mut live_blocks = 0;
        for (entry, place) in self.header.entries_with_places() {
            let Some(place) = place else { continue };
            if is_live(self.shared, entry.volume, entry.address, entry.version, place).await {
                live_blocks += 1;
                if lost.contains(&place) {
                    report.unrecoverable.push((entry.volume, entry.address));
                }
            }
        }
        live_blocks
    }
}

/// Rows of a stripe.
struct Rows<'a> {
    shared: &'a Rc<Shared>,
    image: &'a SegmentImage,
    segment: SegmentIndex,
    layout: StripeLayout,
}

impl Rows<'_> {
    /// Scrubs a row, where `is_right` says of a column's block whether it is what it should be. Places that nothing
    /// gives back go to `lost`.
    async fn scrub(
        &self,
        row: u32,
        is_right: impl Fn(usize, &Bytes) -> bool,
        report: &mut ScrubReport,
        lost: &mut Vec<Place>,
    ) {
        let layout = self.layout;
        let at = |slot: Slot| Place::of_row(self.segment, slot, row);
        let columns = layout.data_columns();
        let found: Vec<Found> = (0..columns)
            .map(|column| self.find(at(layout.data_slot(column)), |block| is_right(column, block)))
            .collect();
        report.checked_blocks += columns as u64;
        let bad: Vec<usize> =
            (0..columns).filter(|column| !matches!(found[*column], Found::Good(_))).collect();
        let good = found.iter().filter_map(|found| match found {
            Found::Good(block) => Some(block),
            _ => None,
        });
        let mut sum = AlignedBuf::zeroed(BLOCK_SIZE);
        good.for_each(|block| parity::xor_into(&mut sum, block));
        match (bad.as_slice(), layout.parity_slot()) {
            ([], None) => {}
            ([], Some(slot)) => {
                report.checked_blocks += 1;
                if matches!(self.find(at(slot), |block| *block == sum[..]), Found::Wrong) {
                    repair(self.shared, report, at(slot), sum.freeze()).await;
                }
            }
            ([column], Some(slot)) => {
                let place = at(layout.data_slot(*column));
                let parity = self.image.raw(slot, row, 1);
                if let Some(parity) = &parity {
                    parity::xor_into(&mut sum, parity);
                }
                let sum = sum.freeze();
                let is_right = parity.is_some()
                    && (is_right(*column, &sum) || mutant::is(Mutant::ScrubRepairsFromGarbage));
                match (is_right, &found[*column]) {
                    (true, Found::Wrong) => repair(self.shared, report, place, sum).await,
                    (true, _) => {}
                    (false, _) => {
                        report.found += 1;
                        lost.push(place);
                    }
                }
            }
            (several, _) => {
                report.found += several.len() as u64;
                lost.extend(several.iter().map(|column| at(layout.data_slot(*column))));
            }
        }
    }

    fn find(&self, place: Place, is_right: impl Fn(&Bytes) -> bool) -> Found {
        let array = &self.shared.array;
        match self.image.raw(place.slot(), place.row(), 1) {
            Some(block) if is_right(&block) => Found::Good(block),
            None if array.lacks_column(place.slot(), place.segment()) => Found::Absent,
            // What a disk that was retired has wrong is not copied to the one in its place.
            _ if array.has_predecessor(place.slot(), place.segment()) => Found::Absent,
            _ => Found::Wrong,
        }
    }
}
