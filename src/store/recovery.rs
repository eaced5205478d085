//! Recovery: what the log says after the last checkpoint, up to the first batch that is not whole.
//!
//! The chain is followed batch by batch. Where it ends, the torn end of a crash is told from damage:
//! a batch that a later one calls acknowledged and that can't be found is damage, and the pool is not
//! opened without it. Batches that nothing proves acknowledged are kept only when every block of them
//! can be verified or rebuilt; then they are repaired and flushed. A joint in the superblock, durable
//! before the pool serves, ends the old incarnation there: what was discarded stays discarded.

use bytes::Bytes;
use futures::future::join_all;

use crate::array::{Array, ArrayError, MemberSet, Slot, parity};
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::mutant::{self, Mutant};
use crate::base::units::BLOCK_SIZE;

use super::batch::{BatchHeader, BatchKind, Content, SegmentUse};
use super::checkpoint::{self, LoadError};
use super::image::{SegmentImage, memberships};
use super::map::lsm::{TableId, TreeOptions};
use super::map::{MemoryMap, StoreMap};
use super::root::{LogPosition, Root};
use super::segments::{Segment, SegmentState, SegmentTable};
use super::shared::{Contents, StoreOptions};
use super::tables::PoolTables;

/// What recovery found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// Batches read after the checkpoint.
    pub replayed_batches: u64,
    /// Batches at the end that were kept though nothing proved them acknowledged.
    pub kept_unproven: u64,
    /// Batches at the end that were not whole, or behind one that was not.
    pub discarded_batches: u64,
}

/// Why a pool can't be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Disks went away meanwhile.
    #[error("the array went offline during recovery")]
    Offline,
    /// The store's root in the superblock is not of this release's format.
    #[error("the superblock's root is not in this release's format")]
    Root,
    /// The checkpoint can't be read.
    #[error("the checkpoint is damaged beyond what parity can give back; restore this node from its peer")]
    Checkpoint,
    /// A batch is missing that was acknowledged to hosts.
    #[error(
        "batch {number} of the log was acknowledged and can't be read any more; opening the pool would lose writes. \
         Bring back a missing disk, or restore this node from its peer"
    )]
    AcknowledgedBatchLost {
        /// Number of the batch.
        number: u64,
    },
    /// The log went on behind a recovery that no readable superblock tells of.
    #[error(
        "the newest superblocks can't be read: the log goes on behind what the readable ones know, and opening the \
         pool would lose writes. Bring back a missing disk, or restore this node from its peer"
    )]
    StaleSuperblock,
    /// The map points at a segment that is not in use.
    #[error("the map is inconsistent; restore this node from its peer")]
    Inconsistent,
    /// The pool has no room for even the log's first segments.
    #[error("the pool is too small")]
    TooSmall,
}

/// A recovered pool: contents, and where the log goes on under a new incarnation.
pub(super) struct Recovered {
    pub(super) contents: Contents,
    pub(super) root: Root,
    pub(super) position: LogPosition,
    pub(super) report: RecoveryReport,
}

/// Recovers the contents of the pool on `array`. Nothing of the new incarnation is durable yet.
pub(super) async fn recover(array: &Array, options: &StoreOptions) -> Result<Recovered, RecoveryError> {
    let mut recovered = recover_as_it_is(array, options).await?;
    let contents = &mut recovered.contents;
    if keeps_tree(array, options) {
        contents.grow_tree(PoolTables::new(array.clone()), tree_options(array, options));
    }
    if let Some(map) = contents.tree() {
        // No recovery before had this incarnation, so no table has these numbers.
        map.tree().number_tables_from(TableId(recovered.position.incarnation << 32));
    }
    Ok(recovered)
}

/// Whether a pool of this size keeps its map on its disks.
fn keeps_tree(array: &Array, options: &StoreOptions) -> bool {
    let geometry = array.geometry();
    let blocks = geometry.data_blocks(geometry.all_slots()) * u64::from(geometry.segment_count);
    blocks * MemoryMap::BLOCK_BYTES > options.map_memory_bytes
}

/// What tables are made with: each fits a segment.
fn tree_options(array: &Array, options: &StoreOptions) -> TreeOptions {
    let geometry = array.geometry();
    let segment_blocks = geometry.data_blocks(geometry.all_slots()) as u32;
    // The footer is at most a twelfth.
    let table_blocks = (segment_blocks * 7 / 8).clamp(1, options.tree.table_blocks);
    TreeOptions { table_blocks, ..options.tree.clone() }
}

async fn recover_as_it_is(array: &Array, options: &StoreOptions) -> Result<Recovered, RecoveryError> {
    let within = |root: &Root| root.is_within(&array.geometry());
    let root = Root::decode(&array.root()).filter(within).ok_or(RecoveryError::Root)?;
    let mut contents = match &root.checkpoint {
        Some(reference) => {
            let tables = PoolTables::new(array.clone());
            let loading = checkpoint::load(array, reference, &tables, &tree_options(array, options)).await;
            loading.map_err(|error| match error {
                LoadError::Damaged { .. } => RecoveryError::Checkpoint,
                LoadError::Offline => RecoveryError::Offline,
            })?
        }
        None => Contents::blank(SegmentTable::new(&array.geometry())),
    };
    if contents.tree().is_some() {
        contents.segments.go_on_counting();
    }
    let Some(start) = root.replay else { return first_opening(array, contents, root) };
    let mut walk = Walk::new(array, start, &root.joints);
    walk.observe_heads(&mut contents.segments, &start);
    walk.follow(&mut contents.segments).await?;
    let (kept, report) = walk.keep_whole().await?;
    for header in walk.headers.drain(..).take(kept) {
        apply(array, &mut contents, &header).await?;
    }
    let mut position = walk.positions[kept];
    position.incarnation = walk.newest_incarnation + u64::from(!mutant::is(Mutant::KeepIncarnation));
    finish(&mut contents, &position)?;
    // What was kept may be in a disk's cache only, left there by a process that was killed.
    if !mutant::is(Mutant::TailNotFlushed) {
        array.flush().await.map_err(offline)?;
    }
    Ok(Recovered { contents, root, position, report })
}

/// The very first opening: both heads get their segments.
fn first_opening(array: &Array, mut contents: Contents, root: Root) -> Result<Recovered, RecoveryError> {
    let mut position =
        LogPosition { incarnation: 1, last_number: 0, last_checksum: Crc32(0), heads: Default::default() };
    for head in &mut position.heads {
        for segment in [&mut head.current, &mut head.next] {
            *segment = contents.segments.take(SegmentState::Open, array.live());
            segment.ok_or(RecoveryError::TooSmall)?;
        }
    }
    Ok(Recovered { contents, root, position, report: RecoveryReport::default() })
}

/// Sets states and counts right behind the replay.
fn finish(contents: &mut Contents, position: &LogPosition) -> Result<(), RecoveryError> {
    for head in &position.heads {
        for segment in [head.current, head.next].into_iter().flatten() {
            contents.segments.get_mut(segment.segment).state = SegmentState::Open;
        }
    }
    // What was discarded does not count: else a segment that it filled would look as if the log had
    // still to get there, and never come free in a pool whose log waits for room.
    if !mutant::is(Mutant::DiscardedBatchCounts) {
        contents.segments.end_at(position.last_number);
    }
    contents.give_up_unshown();
    match &contents.map {
        StoreMap::Tree(_) => contents.segments.end_replay(),
        StoreMap::Memory(map) => {
            if contents.segments.recount(map.places()).is_some() {
                return Err(RecoveryError::Inconsistent);
            }
        }
    }
    Ok(())
}

/// Follows the chain of batches.
struct Walk<'a> {
    array: &'a Array,
    joints: &'a [LogPosition],
    /// Batches in the chain, and the position before the first and behind each.
    headers: Vec<BatchHeader>,
    positions: Vec<LogPosition>,
    images: Vec<(u32, SegmentImage)>,
    /// Highest batch number that is proven to have been acknowledged.
    proven: u64,
    newest_incarnation: u64,
}

impl<'a> Walk<'a> {
    fn new(array: &'a Array, start: LogPosition, joints: &'a [LogPosition]) -> Self {
        let last_joint = joints.last().unwrap_or(&start);
        Self {
            array,
            joints,
            headers: Vec::new(),
            positions: vec![start],
            images: Vec::new(),
            // Recovery kept and flushed everything up to its joint.
            proven: last_joint.last_number,
            newest_incarnation: last_joint.incarnation,
        }
    }

    fn position(&self) -> LogPosition {
        self.positions[self.positions.len() - 1]
    }

    /// Marks the segments that the heads of a position name as in use.
    fn observe_heads(&self, segments: &mut SegmentTable, position: &LogPosition) {
        for segment_use in position.heads.iter().flat_map(|head| [head.current, head.next]).flatten() {
            let known = *segments.get(segment_use.segment);
            let same = known.generation == segment_use.generation && known.members != MemberSet::EMPTY;
            let members = if same { known.members } else { self.array.live() };
            let last_batch = if same { known.last_batch } else { 0 };
            segments.observe(segment_use, members, last_batch);
        }
    }

    /// Collects the chain's headers to its end, and the highest acknowledged-through.
    async fn follow(&mut self, segments: &mut SegmentTable) -> Result<(), RecoveryError> {
        let mut joints = self.joints.iter().peekable();
        loop {
            while let Some(joint) = joints.next_if(|joint| joint.last_number == self.position().last_number) {
                if joint.last_checksum != self.position().last_checksum {
                    return Err(RecoveryError::AcknowledgedBatchLost { number: joint.last_number });
                }
                self.observe_heads(segments, joint);
                let behind = self.positions.len() - 1;
                self.positions[behind] = *joint;
            }
            let Some((header, checksum)) = self.next_header().await? else { break };
            self.proven = self.proven.max(header.acknowledged_through);
            let position = advance(&self.position(), &header, checksum);
            segments.observe(header.place, header.members, header.number);
            for next in position.heads.iter().filter_map(|head| head.next) {
                if segments.get(next.segment).generation != next.generation {
                    segments.observe(next, self.array.live(), 0);
                }
            }
            self.headers.push(header);
            self.positions.push(position);
        }
        self.look_beyond(segments).await?;
        let last = self.position().last_number;
        if joints.peek().is_some() || self.proven > last {
            return Err(RecoveryError::AcknowledgedBatchLost { number: last + 1 });
        }
        Ok(())
    }

    /// The header of the batch that follows the chain so far: at the row that a head has reached, or
    /// at the start of the segment that it named next.
    async fn next_header(&mut self) -> Result<Option<(BatchHeader, Crc32)>, RecoveryError> {
        let position = self.position();
        let candidates = position.heads.iter().flat_map(|head| {
            let current = head.current.map(|segment_use| (segment_use, head.row));
            [current, head.next.map(|segment_use| (segment_use, 0))]
        });
        let memberships = memberships(self.array);
        for (segment_use, row) in candidates.flatten() {
            let array = self.array;
            let image = image_of(array, &mut self.images, segment_use.segment.0).await?;
            let accept = |header: &BatchHeader| {
                header.kind == BatchKind::Log
                    && header.place == segment_use
                    && (header.incarnation == position.incarnation
                        || mutant::is(Mutant::AcceptOldIncarnation))
                    && header.number == position.last_number + 1
                    && header.previous == position.last_checksum
            };
            if let Some(found) = image.header_at(row, &memberships, accept) {
                self.forget_images(&position);
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Looks behind the end of the chain for proof that more had been acknowledged, or that the log
    /// went on in an incarnation that the superblock does not know: in the segments that the heads name
    /// there, and in those that headers found behind the end name in turn. The batch that is missing may
    /// alone have named the segment that it filled up to the end of: where a head has no next one, every
    /// segment that was free may be it.
    async fn look_beyond(&mut self, segments: &SegmentTable) -> Result<(), RecoveryError> {
        let position = self.position();
        let mut named: Vec<SegmentUse> =
            position.heads.iter().flat_map(|head| [head.current, head.next]).flatten().collect();
        if position.heads.iter().any(|head| head.next.is_none()) {
            // A checkpoint that names tables is as of a later moment than replay begins at: then segments are in use
            // in it that the chain has not come to.
            let may_be = |info: &Segment| match info.state {
                SegmentState::Free => true,
                SegmentState::Sealed => info.last_batch == 0 || info.last_batch > position.last_number,
                SegmentState::Open | SegmentState::Checkpoint | SegmentState::Table => false,
            };
            for (segment, _) in segments.iter().filter(|(_, info)| may_be(info)) {
                let first = super::image::first_header(self.array, segment).await.map_err(offline)?;
                named.extend(first.map(|header| header.place));
            }
        }
        let mut looked_at = 0;
        while let Some(segment_use) = named.get(looked_at).copied() {
            looked_at += 1;
            let image = image_of(self.array, &mut self.images, segment_use.segment.0).await?;
            for header in image.stray_headers() {
                let is_beyond = header.kind == BatchKind::Log
                    && header.number > position.last_number
                    && header.place == segment_use;
                if is_beyond && header.incarnation > position.incarnation {
                    return Err(RecoveryError::StaleSuperblock);
                }
                if is_beyond && header.incarnation == position.incarnation {
                    self.proven = self.proven.max(header.acknowledged_through);
                    let further = header.heads.iter().flat_map(|head| [head.current, head.next]).flatten();
                    named.extend(further.filter(|further| !named.contains(further)).collect::<Vec<_>>());
                }
            }
        }
        Ok(())
    }

    /// Drops images that no head names any more.
    fn forget_images(&mut self, position: &LogPosition) {
        let named: Vec<u32> = position
            .heads
            .iter()
            .flat_map(|head| [head.current, head.next])
            .flatten()
            .map(|segment_use| segment_use.segment.0)
            .collect();
        self.images.retain(|(segment, _)| named.contains(segment));
    }

    /// How many batches of the chain are kept: all that are proven, and after them those that are
    /// whole, which are repaired where they were not intact.
    async fn keep_whole(&mut self) -> Result<(usize, RecoveryReport), RecoveryError> {
        let mut report = RecoveryReport::default();
        let mut kept = self.headers.iter().take_while(|header| header.number <= self.proven).count();
        while let Some(header) = self.headers.get(kept) {
            if !make_whole(self.array, header).await? && !mutant::is(Mutant::ReplayPastBrokenBatch) {
                break;
            }
            report.kept_unproven += 1;
            kept += 1;
        }
        report.replayed_batches = kept as u64;
        report.discarded_batches = (self.headers.len() - kept) as u64;
        Ok((kept, report))
    }
}

async fn image_of<'i>(
    array: &Array,
    images: &'i mut Vec<(u32, SegmentImage)>,
    segment: u32,
) -> Result<&'i SegmentImage, RecoveryError> {
    let known = images.iter().position(|(known, _)| *known == segment);
    let index = match known {
        Some(index) => index,
        None => {
            let index = crate::array::SegmentIndex(segment);
            images.push((segment, SegmentImage::read(array, index).await.map_err(offline)?));
            images.len() - 1
        }
    };
    Ok(&images[index].1)
}

/// The position behind `header`, which follows `position`.
fn advance(position: &LogPosition, header: &BatchHeader, checksum: Crc32) -> LogPosition {
    let mut heads = position.heads;
    for (head, record) in heads.iter_mut().zip(&header.heads) {
        if head.current != record.current {
            head.current = record.current;
            head.row = 0;
        }
        if head.current == Some(header.place) {
            head.row = header.first_row + header.height;
        }
        head.next = record.next;
    }
    LogPosition { last_number: header.number, last_checksum: checksum, heads, ..*position }
}

/// Whether every block of the batch can be verified or rebuilt. What was missing or wrong is written
/// again, so that the batch is as redundant as if it had never been in doubt; the caller flushes.
async fn make_whole(array: &Array, header: &BatchHeader) -> Result<bool, RecoveryError> {
    let (segment, row, height) = (header.place.segment, header.first_row, header.height);
    let read = |slot| async move { (slot, array.read_rows(segment, slot, row, height).await.ok()) };
    let raw: Vec<(Slot, Option<AlignedBuf>)> = join_all(header.members.iter().map(read)).await;
    if array.is_offline() {
        return Err(RecoveryError::Offline);
    }
    let block = |slot: Slot, row: usize| -> Option<&[u8]> {
        let column = raw.iter().find(|(other, _)| *other == slot)?.1.as_ref()?;
        Some(&column[row * BLOCK_SIZE..(row + 1) * BLOCK_SIZE])
    };
    let rebuilt = |slot: Slot, row: usize| -> Option<Vec<u8>> {
        let mut sum = vec![0; BLOCK_SIZE];
        for other in header.members.without(slot).iter() {
            parity::xor_into(&mut sum, block(other, row)?);
        }
        Some(sum)
    };
    let Some(columns) = whole_columns(header, block, rebuilt) else { return Ok(false) };
    for (slot, found) in &raw {
        let expected = expected_column(header, *slot, &columns);
        if found.as_deref() != Some(&expected[..]) && !mutant::is(Mutant::TailNotRepaired) {
            array.repair_rows(segment, *slot, row, expected).await;
        }
    }
    Ok(true)
}

/// The data columns, verified block by block; `None` when one can't be had.
fn whole_columns<'b>(
    header: &BatchHeader,
    block: impl Fn(Slot, usize) -> Option<&'b [u8]>,
    rebuilt: impl Fn(Slot, usize) -> Option<Vec<u8>>,
) -> Option<Vec<Vec<Bytes>>> {
    let layout = header.layout();
    let (header_bytes, _) = header.encode();
    let header_checksums = header_bytes.chunks(BLOCK_SIZE).map(Crc32::of);
    let payload_checksums = header.entries.iter().filter_map(super::batch::Entry::payload_checksum);
    let zeros = std::iter::repeat(Crc32::of(&[0; BLOCK_SIZE]));
    let mut checksums = header_checksums.chain(payload_checksums).chain(zeros);
    let mut columns = Vec::with_capacity(layout.data_columns());
    for column in 0..layout.data_columns() {
        let slot = layout.data_slot(column);
        let mut blocks = Vec::with_capacity(header.height as usize);
        for row in 0..header.height as usize {
            let checksum = checksums.next()?;
            let raw = block(slot, row).filter(|block| Crc32::of(block) == checksum);
            let good = match raw {
                Some(good) => AlignedBuf::copy_of(good),
                None => {
                    AlignedBuf::copy_of(&rebuilt(slot, row).filter(|block| Crc32::of(block) == checksum)?)
                }
            };
            blocks.push(good.freeze());
        }
        columns.push(blocks);
    }
    Some(columns)
}

/// What the disk in `slot` should hold of a batch with these data columns.
fn expected_column(header: &BatchHeader, slot: Slot, columns: &[Vec<Bytes>]) -> Bytes {
    let layout = header.layout();
    let mut buffer = AlignedBuf::zeroed(header.height as usize * BLOCK_SIZE);
    match (0..columns.len()).find(|column| layout.data_slot(*column) == slot) {
        Some(column) => {
            for (target, block) in buffer.chunks_mut(BLOCK_SIZE).zip(&columns[column]) {
                target.copy_from_slice(block);
            }
        }
        None => parity::of_columns(&mut buffer, columns),
    }
    buffer.freeze()
}

/// Applies a kept batch.
async fn apply(array: &Array, contents: &mut Contents, header: &BatchHeader) -> Result<(), RecoveryError> {
    for (entry, place) in header.entries_with_places() {
        let mut payload = None;
        if let (true, Some(checksum), Some(place)) = (entry.has_record(), entry.payload_checksum(), place) {
            let lost = RecoveryError::AcknowledgedBatchLost { number: header.number };
            let read = super::read::read_verified(array, header.members, place, checksum).await;
            payload = Some(read.ok_or(lost)?);
        }
        let forgotten = match entry.content {
            Content::Hole { .. } => mutant::is(Mutant::HoleForgottenAtReplay),
            Content::VolumeDropped => mutant::is(Mutant::DropForgottenAtReplay),
            Content::Snapshot { .. } => mutant::is(Mutant::SnapshotForgottenAtReplay),
            _ => false,
        };
        let mut rest = (!forgotten).then(|| entry.clone());
        while let Some(entry) = rest {
            rest = contents.apply(&entry, place, payload.as_ref());
        }
    }
    Ok(())
}

fn offline(_: ArrayError) -> RecoveryError {
    RecoveryError::Offline
}
