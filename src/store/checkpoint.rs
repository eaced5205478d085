//! Checkpoints: the segment table, the volumes and the map, written to segments of their own.
//!
//! A checkpoint says that replay begins behind batch P. A map that keeps tables on disk first writes what was settled
//! to one; then the table is as of one moment with its manifest. Of a map in memory the pages are taken
//! while the log goes on, so some are newer, which replay from P puts right since applying statements
//! again changes nothing; the volumes and their snapshots are taken last. So a version that a page has for a
//! snapshot has that snapshot behind it, unless it was dropped meanwhile: then nothing of it is left when
//! replay is done. It counts when the superblock generation that names it is durable; only
//! then are the segments free that were empty at P and end before it, and those of the checkpoint
//! before.

use std::rc::Rc;

use bytes::Bytes;

use crate::array::geometry::{StripeLayout, data_columns};
use crate::array::{Array, MemberSet, SegmentIndex};
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};

use super::batch::{BatchHeader, BatchKind, Content, Entry, HEADS, HeadRecord, SegmentUse, height};
pub(super) use super::checkpoint_codec::SEGMENT_BYTES;
use super::checkpoint_codec::{Decoder, encode_end, encode_table, encode_volumes};
use super::image::{SegmentImage, memberships};
use super::interface::StoreError;
use super::log::{MAX_BATCH_BLOCKS, lay_out};
use super::map::lsm::TreeOptions;
use super::map::{Map, SavePosition};
use super::root::{CheckpointReference, Root};
use super::segments::SegmentState;
use super::shared::{Contents, Shared, VolumeState, add};
use super::tables::PoolTables;

/// Writes a checkpoint of what is settled, and frees what only the earlier one needed.
pub(super) async fn write(shared: &Rc<Shared>) -> Result<(), StoreError> {
    let _one_at_a_time = shared.checkpointing.lock().await;
    let position = shared.log.borrow().position();
    let log_bytes = shared.log_bytes.get();
    let reached = || shared.log.borrow().durable >= position.last_number || shared.stopped.get();
    shared.progress.until(reached).await;
    if shared.stopped.get() && shared.log.borrow().durable < position.last_number {
        return Err(StoreError::Offline);
    }
    let (releasable, passed) = {
        let mut contents = shared.contents.borrow_mut();
        let releasable = releasable_segments(&contents, position.last_number);
        contents.volumes.values_mut().for_each(VolumeState::begin_checkpoint);
        let passed: Vec<_> = contents.volumes.iter().map(|(id, volume)| (*id, volume.newest)).collect();
        if let Some(map) = contents.tree() {
            map.tree().freeze();
        }
        (releasable, passed)
    };
    let early = mutant::is(Mutant::SegmentsBeforeTablesInCheckpoint)
        .then(|| encode_table(&shared.contents.borrow(), &releasable));
    flush_map(shared).await?;
    let (head, retired) = encode_head(shared, &releasable, early);
    let mut releasable = if mutant::is(Mutant::ReuseBeforeCheckpoint) {
        release(shared, releasable, &[]).await;
        Vec::new()
    } else {
        releasable
    };
    let mut writer = CheckpointWriter::new(shared.clone());
    let written = write_contents(shared, &mut writer, head).await;
    let reference = match written {
        Ok(reference) => reference,
        Err(error) => {
            writer.give_back();
            return Err(error);
        }
    };
    shared.array.flush().await.map_err(|_| StoreError::Offline)?;
    let late = mutant::is(Mutant::CheckpointPositionAfterMap);
    let position = if late { shared.log.borrow().position() } else { position };
    let root = Root { checkpoint: Some(reference), replay: Some(position), joints: Vec::new() };
    shared.array.commit(root.encode()).await.map_err(|_| StoreError::Offline)?;
    *shared.root.borrow_mut() = root;
    shared.log_bytes.set(shared.log_bytes.get() - log_bytes);
    for (volume, newest) in passed {
        if let Some(volume) = shared.contents.borrow_mut().volumes.get_mut(&volume) {
            volume.passed = newest;
        }
    }
    add(&shared.statistics.checkpoints, 1);
    if let Some(map) = shared.contents.borrow().tree() {
        let retired = match mutant::is(Mutant::TablesFreedTooEarly) {
            true => map.tables().retire(map.tree().take_retired()),
            false => retired,
        };
        releasable.extend(map.tables().forget_retired(retired));
    }
    release(shared, releasable, &writer.used).await;
    Ok(())
}

/// Segments that nothing refers to and whose last batch is behind the start of replay, and those of
/// the checkpoint that is being replaced.
fn releasable_segments(contents: &Contents, replay_from: u64) -> Vec<SegmentIndex> {
    let releasable = |segment: &super::segments::Segment| match segment.state {
        SegmentState::Sealed => segment.is_empty() && segment.last_batch <= replay_from,
        SegmentState::Checkpoint => true,
        SegmentState::Free | SegmentState::Open | SegmentState::Table => false,
    };
    contents.segments.iter().filter(|(_, segment)| releasable(segment)).map(|(index, _)| index).collect()
}

/// What was settled up to now goes to tables of the map, where it has any.
async fn flush_map(shared: &Rc<Shared>) -> Result<(), StoreError> {
    loop {
        let flushing = match shared.contents.borrow().tree() {
            Some(map) => map.tree().flush(),
            None => return Ok(()),
        };
        let Some(turn) = flushing.await? else { return Ok(()) };
        shared.contents.borrow_mut().apply_turn(&turn);
    }
}

/// What of the stream has to be as of one moment: the segments with what is counted in them, and the tables of the
/// map. Also how many tables the map had given up by then.
fn encode_head(shared: &Shared, releasable: &[SegmentIndex], early: Option<Vec<u8>>) -> (Head, usize) {
    let mut contents = shared.contents.borrow_mut();
    let mut bytes = early.unwrap_or_else(|| encode_table(&contents, releasable));
    let mut retired = 0;
    if let Some(map) = contents.tree() {
        retired = map.tables().retire(map.tree().take_retired());
        map.tables().save(&map.tree().tables(), &mut bytes);
    }
    let next = save_piece(shared, &mut contents, SavePosition::START, &mut bytes);
    (Head { bytes, next }, retired)
}

/// The beginning of a stream, and where the map goes on.
struct Head {
    bytes: Vec<u8>,
    next: Option<SavePosition>,
}

fn save_piece(
    shared: &Shared,
    contents: &mut Contents,
    from: SavePosition,
    piece: &mut Vec<u8>,
) -> Option<SavePosition> {
    let Contents { map, volumes, .. } = contents;
    let may_forget = |id: VolumeId, hole: Version| {
        // What the checkpoint before had: replay reaches no older version of these blocks.
        volumes.get(&id).is_some_and(|volume| volume.is_passed(hole)) && shared.may_forget_hole(id, hole)
    };
    map.save(from, may_forget, piece)
}

async fn write_contents(
    shared: &Rc<Shared>,
    writer: &mut CheckpointWriter,
    head: Head,
) -> Result<CheckpointReference, StoreError> {
    writer.put(&head.bytes).await?;
    let (mut next, mut piece) = (head.next, Vec::new());
    while let Some(from) = next {
        piece.clear();
        next = save_piece(shared, &mut shared.contents.borrow_mut(), from, &mut piece);
        writer.put(&piece).await?;
    }
    piece.clear();
    encode_volumes(&mut piece, &shared.contents.borrow());
    encode_end(&mut piece);
    writer.put(&piece).await?;
    writer.finish().await
}

async fn release(shared: &Rc<Shared>, releasable: Vec<SegmentIndex>, used: &[SegmentUse]) {
    for segment in releasable {
        let is_new = used.iter().any(|used| used.segment == segment);
        let free = {
            let contents = shared.contents.borrow();
            let info = contents.segments.get(segment);
            info.readers == 0 && !is_new
        };
        if !free {
            continue; // a read is in it: the next checkpoint frees it
        }
        if shared.options.discard {
            shared.array.discard_segment(segment).await;
        }
        shared.contents.borrow_mut().segments.release(segment);
        shared.array.proven(segment);
    }
    shared.work.notify();
    shared.progress.notify();
}

/// Cuts the byte stream of a checkpoint into batches.
struct CheckpointWriter {
    shared: Rc<Shared>,
    identity: u64,
    pending: Vec<u8>,
    blocks_written: u64,
    number: u64,
    previous: Crc32,
    first: Option<SegmentUse>,
    current: Option<(SegmentUse, MemberSet, u32)>,
    next: Option<SegmentUse>,
    used: Vec<SegmentUse>,
}

impl CheckpointWriter {
    fn new(shared: Rc<Shared>) -> Self {
        let identity = shared.contents.borrow().segments.next_generation();
        Self {
            shared,
            identity,
            pending: Vec::new(),
            blocks_written: 0,
            number: 0,
            previous: Crc32(0),
            first: None,
            current: None,
            next: None,
            used: Vec::new(),
        }
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.pending.extend_from_slice(bytes);
        while self.pending.len() >= MAX_BATCH_BLOCKS * BLOCK_SIZE {
            self.write_batch().await?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<CheckpointReference, StoreError> {
        while !self.pending.is_empty() {
            self.write_batch().await?;
        }
        if let Some(unused) = self.next.take() {
            self.used.retain(|used| *used != unused);
            self.shared.contents.borrow_mut().segments.release(unused.segment);
        }
        let Some(first) = self.first else { return Err(StoreError::Offline) };
        Ok(CheckpointReference { identity: self.identity, first, batches: self.number })
    }

    /// Frees what was taken, when the checkpoint could not be completed.
    fn give_back(&mut self) {
        let mut contents = self.shared.contents.borrow_mut();
        self.used.drain(..).for_each(|used| contents.segments.release(used.segment));
    }

    async fn write_batch(&mut self) -> Result<(), StoreError> {
        let rows = self.shared.array.geometry().rows;
        let (place, members, first_row) = self.room(rows)?;
        let columns = data_columns(members);
        let mut count = self.pending.len().div_ceil(BLOCK_SIZE).min(MAX_BATCH_BLOCKS);
        while height(count, count, columns) > (rows - first_row) as usize {
            count -= 1;
        }
        let payloads = self.take_blocks(count);
        let entries: Vec<Entry> = payloads.iter().map(|block| self.page_entry(block)).collect();
        let batch_height = height(count, count, columns) as u32;
        let mut heads = [HeadRecord::default(); HEADS];
        heads[0] = HeadRecord { current: Some(place), next: self.next };
        let header = BatchHeader {
            kind: BatchKind::Checkpoint,
            pool: self.shared.array.pool(),
            key: self.shared.array.log_key(),
            incarnation: self.identity,
            number: self.number,
            place,
            first_row,
            height: batch_height,
            members,
            previous: self.previous,
            acknowledged_through: 0,
            heads,
            entries,
        };
        let (bytes, checksum) = header.encode();
        let payloads = payloads.into_iter().map(Some).collect();
        let stripe = lay_out(&bytes, payloads, columns, batch_height as usize);
        let layout = StripeLayout::new(members, self.number);
        add(&self.shared.statistics.checkpoint_blocks, u64::from(batch_height) * columns as u64);
        let written = self.shared.array.write_stripe(place.segment, first_row, layout, stripe).await;
        written.map_err(|_| StoreError::Offline)?;
        self.number += 1;
        self.previous = checksum;
        self.current = Some((place, members, first_row + batch_height));
        Ok(())
    }

    /// A segment with room for at least a block.
    fn room(&mut self, rows: u32) -> Result<(SegmentUse, MemberSet, u32), StoreError> {
        if self.shared.array.is_offline() {
            return Err(StoreError::Offline); // there may be no disk left to lay a stripe over
        }
        if let Some(current) = self
            .current
            .filter(|(_, members, row)| height(1, 1, data_columns(*members)) <= (rows - row) as usize)
        {
            return Ok(current);
        }
        let members = self.shared.members_for_writing();
        let mut take = || {
            let mut contents = self.shared.contents.borrow_mut();
            let taken =
                contents.segments.take(SegmentState::Checkpoint, members).ok_or(StoreError::OutOfSpace)?;
            self.used.push(taken);
            Ok::<_, StoreError>(taken)
        };
        let place = match self.next.take() {
            Some(next) => next,
            None => take()?,
        };
        self.next = Some(take()?);
        self.shared.contents.borrow_mut().segments.get_mut(place.segment).members = members;
        self.first.get_or_insert(place);
        Ok((place, members, 0))
    }

    fn take_blocks(&mut self, count: usize) -> Vec<Bytes> {
        let length = self.pending.len().min(count * BLOCK_SIZE);
        let mut buffer = AlignedBuf::zeroed(count * BLOCK_SIZE);
        buffer[..length].copy_from_slice(&self.pending[..length]);
        self.pending.drain(..length);
        let bytes = buffer.freeze();
        (0..count).map(|n| bytes.slice(n * BLOCK_SIZE..(n + 1) * BLOCK_SIZE)).collect()
    }

    fn page_entry(&mut self, block: &Bytes) -> Entry {
        let address = BlockAddress(self.blocks_written);
        self.blocks_written += 1;
        let content = Content::Page { checksum: Crc32::of(block) };
        Entry { volume: VolumeId(0), address, version: Version::default(), content }
    }
}

/// Why a checkpoint could not be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LoadError {
    #[error("batch {batch} of the checkpoint is damaged beyond what parity can give back")]
    Damaged { batch: u64 },
    #[error("the array is offline")]
    Offline,
}

/// Reads a checkpoint, and marks the segments that it lies in.
pub(super) async fn load(
    array: &Array,
    reference: &CheckpointReference,
    tables: &PoolTables,
    options: &TreeOptions,
) -> Result<Contents, LoadError> {
    let tree = Some((tables.clone(), options.clone()));
    let mut decoder = Decoder::new(array.geometry(), tree);
    let mut used = Vec::new();
    let mut next = Some(reference.first);
    let mut number = 0;
    while number < reference.batches {
        let damaged = LoadError::Damaged { batch: number };
        let place = next.take().ok_or(damaged)?;
        let image = SegmentImage::read(array, place.segment).await.map_err(|_| LoadError::Offline)?;
        let accept = |header: &BatchHeader| {
            header.kind == BatchKind::Checkpoint
                && header.incarnation == reference.identity
                && header.place == place
        };
        let batches = image.batches(&memberships(array), accept);
        // The table is older than what the checkpoint itself lies in.
        let members = batches.first().map_or(array.geometry().all_slots(), |header| header.members);
        used.push((place, members));
        for header in batches {
            if header.number != number || number == reference.batches {
                break;
            }
            let damaged = LoadError::Damaged { batch: number };
            for (entry, block_place) in header.entries_with_places() {
                let (Some(at), Some(checksum)) = (block_place, entry.payload_checksum()) else { continue };
                let block = image.verified(header.members, at.slot(), at.row(), checksum).ok_or(damaged)?;
                decoder.feed(&block).map_err(|_| damaged)?;
            }
            number += 1;
            next = header.heads[0].next;
        }
        if next.is_none() && number < reference.batches {
            return Err(LoadError::Damaged { batch: number });
        }
    }
    let mut contents = decoder.finish().ok_or(LoadError::Damaged { batch: number })?;
    for (place, members) in used {
        contents.segments.observe(place, members, 0);
        contents.segments.get_mut(place.segment).state = SegmentState::Checkpoint;
    }
    Ok(contents)
}
