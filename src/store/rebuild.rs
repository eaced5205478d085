//! Rebuilding: what a disk that took the place of another one lacks is reconstructed from the others, segment by
//! segment, while the pool serves.
//!
//! Only segments in use whose stripes run over the disk are copied. Nothing changes in a segment meanwhile: it is
//! sealed and settled, or it is a checkpoint that is complete; an open one is left by its head first. A segment
//! counts as proven in memory when its column is written, and durably when that was flushed and the cursor in the
//! superblock has passed it; so a restart does a few segments again and never trusts one that is not there.
//!
//! What the batch headers tell of a segment is held against their checksums. A block that is wrong on another disk
//! can't be told from parity's part in it: its row is written as the others give it, so that parity is right again, and
//! the block is reported; reading it stays an error, never wrong data.
//!
//! Left to others: that the disk joined and what is read of it meanwhile (`array::replacement`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures::future::select;

use crate::array::superblock::{RebuildRecord, Uuid};
use crate::array::{ArrayError, MemberSet, SegmentIndex, Slot, parity};
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::event::{Event, Severity};
use crate::base::mutant::{self, Mutant};
use crate::base::runtime::Instant;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};

use super::batch::{BatchHeader, HEADS};
use super::image::SegmentImage;
use super::log::{Pending, Tracker};
use super::map::{Map, MapValue};
use super::pool::Store;
use super::segments::{Segment, SegmentState};
use super::shared::{Shared, add};

/// How much of the disks' time rebuilding takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RebuildPriority {
    /// A fifth.
    Low,
    /// Two thirds: redundancy first, and hosts are served well enough.
    #[default]
    Normal,
    /// All.
    High,
}

/// How far rebuilding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildProgress {
    /// The disk.
    pub slot: Slot,
    /// Segments to be done in this run, and of them done.
    pub segments: (u64, u64),
    /// Bytes written to the disk a second.
    pub bytes_per_second: u64,
    /// Time that the rest takes at that rate; none while nothing can be said.
    pub remaining: Option<Duration>,
}

/// What the store keeps of rebuilding, and of blocks that are known to be damaged.
#[derive(Default)]
pub(super) struct Healing {
    priority: Cell<RebuildPriority>,
    run: Cell<Option<Run>>,
    /// Blocks that parity could not give back when somebody looked, for the peer to be asked.
    pub(super) damaged: RefCell<BTreeSet<(VolumeId, BlockAddress)>>,
}

#[derive(Clone, Copy)]
struct Run {
    slot: Slot,
    total: u64,
    since: Instant,
}

/// What became of an attempt at one segment.
enum Outcome {
    Done,
    /// It is still being written to.
    NotYet,
    /// The disk or the array is gone, or the store was stopped.
    Ended,
}

impl Store {
    /// Takes a disk out of service that still works, for a spare to take its place: what it has is read until that one
    /// has it too.
    ///
    /// # Errors
    /// When the pool can't do without the disk, or no spare waits. Nothing has changed then.
    pub async fn retire_disk(&self, slot: Slot, reason: &str) -> Result<(), ArrayError> {
        let shared = self.shared();
        // No checkpoint is half written, and nothing is given back.
        let _no_release = shared.checkpointing.lock().await;
        let durable = shared.log.borrow().durable;
        let has: Vec<bool> = {
            let contents = shared.contents.borrow();
            let has = |(index, segment): (SegmentIndex, &Segment)| match segment.state {
                SegmentState::Sealed => segment.last_batch <= durable,
                SegmentState::Checkpoint => true,
                SegmentState::Table => !shared.is_table_begun(index),
                SegmentState::Open | SegmentState::Free => false,
            };
            contents.segments.iter().map(has).collect()
        };
        shared.array.retire(slot, reason, |segment| has[segment.index()]).await
    }

    /// How far rebuilding is, while there is any.
    #[must_use]
    pub fn rebuild_progress(&self) -> Option<RebuildProgress> {
        let shared = self.shared();
        let rebuild = shared.array.rebuild()?;
        let run = shared.healing.run.get().filter(|run| run.slot == rebuild.slot);
        let left = shared.array.unproven_count() as u64;
        let Some(run) = run else {
            return Some(RebuildProgress {
                slot: rebuild.slot,
                segments: (left, 0),
                bytes_per_second: 0,
                remaining: None,
            });
        };
        let done = run.total.saturating_sub(left);
        let elapsed = shared.runtime.now().since(run.since).as_secs_f64().max(0.001);
        let segment_bytes = u64::from(shared.array.geometry().rows) * BLOCK_SIZE as u64;
        let remaining = (done > 0).then(|| Duration::from_secs_f64(elapsed * left as f64 / done as f64));
        let bytes_per_second = ((done * segment_bytes) as f64 / elapsed) as u64;
        Some(RebuildProgress { slot: rebuild.slot, segments: (run.total, done), bytes_per_second, remaining })
    }

    /// Sets how much of the disks' time rebuilding takes.
    pub fn set_rebuild_priority(&self, priority: RebuildPriority) {
        self.shared().healing.priority.set(priority);
    }

    /// Blocks that somebody found damaged beyond parity since this was asked last.
    #[must_use]
    pub fn take_damaged(&self) -> Vec<(VolumeId, BlockAddress)> {
        std::mem::take(&mut *self.shared().healing.damaged.borrow_mut()).into_iter().collect()
    }
}

/// Starts the task.
pub(super) fn start(shared: &Rc<Shared>) {
    shared.runtime.spawn(Box::pin(run(shared.clone())));
}

/// A recovery reads what it can verify, wherever it lies. Behind it, only what is proven counts: to be called before
/// anything is served.
pub(super) fn resume(shared: &Shared) {
    if let Some(rebuild) = shared.array.rebuild() {
        mark_unproven(shared, &rebuild);
    }
}

async fn run(shared: Rc<Shared>) {
    let changed = shared.array.changed().clone();
    loop {
        let change = changed.wait();
        if shared.stopped.get() || shared.array.is_offline() {
            return;
        }
        match shared.array.rebuild() {
            Some(rebuild) => {
                rebuild_disk(&shared, rebuild).await;
                shared.healing.run.set(None);
                shared.runtime.sleep(RETRY).await;
            }
            None => change.await,
        }
    }
}

fn mark_unproven(shared: &Shared, rebuild: &RebuildRecord) {
    let contents = shared.contents.borrow();
    // What a head will open next is still empty: it will be written to all disks.
    let next = shared.log.borrow().position().heads.map(|head| head.next.map(|next| next.segment));
    let before = if mutant::is(Mutant::RebuildForgetsGeneration) && rebuild.before_generation != u64::MAX {
        0
    } else {
        rebuild.before_generation
    };
    shared.array.set_unproven(|index| {
        let segment = contents.segments.get(index);
        segment.state != SegmentState::Free
            && segment.generation < before
            && index.0 >= rebuild.cursor
            && !next.contains(&Some(index))
    });
}

/// Rebuilds the disk from where that was left, to the end or until it can't go on.
async fn rebuild_disk(shared: &Rc<Shared>, mut rebuild: RebuildRecord) {
    let Some(disk) = shared.array.rebuilding_disk() else { return };
    let (slot, this) = (rebuild.slot, (rebuild.slot, disk));
    if rebuild.before_generation == u64::MAX {
        mark_unproven(shared, &rebuild);
        // What is opened from now on has the disk.
        rebuild.before_generation = shared.contents.borrow().segments.next_generation();
        if shared.array.commit_rebuild(disk, rebuild).await.is_err() {
            return;
        }
    }
    let total = shared.array.unproven_count() as u64;
    shared.healing.run.set(Some(Run { slot, total, since: shared.runtime.now() }));
    let mut unsaved = 0;
    while let Some(first) = shared.array.next_unproven(SegmentIndex(0)) {
        let (mut from, mut is_waiting) = (first, false);
        while let Some(segment) = shared.array.next_unproven(from) {
            let began = shared.runtime.now();
            match rebuild_segment(shared, this, segment).await {
                Outcome::Done => shared.array.proven(segment),
                Outcome::NotYet => is_waiting = true,
                Outcome::Ended => return,
            }
            from = SegmentIndex(segment.0 + 1);
            unsaved += 1;
            if unsaved >= SAVE_AFTER_SEGMENTS {
                unsaved = 0;
                if save(shared, disk, &mut rebuild).await.is_err() {
                    return;
                }
            }
            pause(shared, shared.runtime.now().since(began)).await;
        }
        if is_waiting {
            leave_open_segments(shared, disk).await;
        }
    }
    let flushed = shared.array.flush().await;
    if flushed.is_ok() && is_there(shared, disk) && shared.array.finish_rebuild(slot, disk).await.is_ok() {
        (shared.events)(Event {
            severity: Severity::Info,
            kind: "disk-rebuilt",
            message: format!(
                "disk {} is rebuilt: all data has its full redundancy again, and any one disk may fail",
                slot.0
            ),
        });
    }
}

/// Whether this very disk is still being rebuilt: when it fails, another one may come to its place at once.
fn is_there(shared: &Shared, disk: Uuid) -> bool {
    !shared.stopped.get() && !shared.array.is_offline() && shared.array.rebuilding_disk() == Some(disk)
}

/// Makes durable what is proven so far.
async fn save(shared: &Shared, disk: Uuid, rebuild: &mut RebuildRecord) -> Result<(), ()> {
    let count = shared.array.geometry().segment_count;
    let ahead = if mutant::is(Mutant::RebuildCountedTooEarly) { 8 } else { 0 };
    let cursor = shared.array.next_unproven(SegmentIndex(0)).map_or(count, |segment| segment.0);
    rebuild.cursor = (cursor + ahead).min(count);
    shared.array.flush().await.map_err(drop)?;
    if !is_there(shared, disk) {
        return Err(());
    }
    shared.array.commit_rebuild(disk, *rebuild).await.map_err(drop)
}

async fn pause(shared: &Shared, worked: Duration) {
    let pause = match shared.healing.priority.get() {
        RebuildPriority::High => return,
        RebuildPriority::Normal => worked / 2,
        RebuildPriority::Low => worked * 4,
    };
    shared.runtime.sleep(pause.min(LONGEST_PAUSE)).await;
}

/// Has the heads of the log go on in segments that were opened with the disk there.
async fn leave_open_segments(shared: &Rc<Shared>, disk: Uuid) {
    for head in 0..HEADS {
        let current = shared.log.borrow().position().heads[head].current;
        let is_left = current.is_none_or(|open| !shared.array.is_unproven(open.segment));
        if is_left || !is_there(shared, disk) {
            continue;
        }
        let (tracker, done) = Tracker::new();
        shared.log.borrow_mut().enqueue(head, Pending { items: Default::default(), tracker });
        shared.work.notify();
        // It may have to wait for room; what is proven meanwhile is not to wait for it.
        select(done, shared.runtime.sleep(LONGEST_PAUSE)).await;
    }
    shared.runtime.sleep(RETRY).await;
}

async fn rebuild_segment(shared: &Rc<Shared>, this: (Slot, Uuid), index: SegmentIndex) -> Outcome {
    let (slot, disk) = this;
    // Nothing is given back, and no checkpoint is written, while this is held.
    let _no_release = shared.checkpointing.lock().await;
    if !is_there(shared, disk) {
        return Outcome::Ended;
    }
    let info = *shared.contents.borrow().segments.get(index);
    let heads = shared.log.borrow().position().heads;
    let is_current = heads.iter().any(|head| head.current.is_some_and(|open| open.segment == index));
    match info.state {
        SegmentState::Free => return Outcome::Done,
        _ if !info.members.contains(slot) => return Outcome::Done,
        // It is the next of a head, and still empty.
        SegmentState::Open if !is_current || mutant::is(Mutant::RebuildSkipsOpenSegment) => {
            return Outcome::Done;
        }
        SegmentState::Open if !mutant::is(Mutant::RebuildFromUnproven) => return Outcome::NotYet,
        SegmentState::Sealed if info.last_batch > shared.log.borrow().durable => return Outcome::NotYet,
        SegmentState::Table if mutant::is(Mutant::TableNotRebuilt) => return Outcome::Done,
        SegmentState::Table if shared.is_table_begun(index) => return Outcome::NotYet,
        SegmentState::Open | SegmentState::Sealed | SegmentState::Checkpoint | SegmentState::Table => {}
    }
    let Ok(image) = SegmentImage::read(&shared.array, index).await else { return Outcome::Ended };
    let mut column = reconstruct(shared, &image, info.members, slot);
    if shared.array.has_predecessor(slot, index) {
        keep_what_was_there(&image, &info, slot, &mut column);
    }
    report_damage(shared, &image, index, &info, (slot, &column)).await;
    let data = column.freeze();
    for first in (0..shared.array.geometry().rows).step_by(CHUNK_ROWS) {
        let rows = (shared.array.geometry().rows - first).min(CHUNK_ROWS as u32);
        let (from, to) = (first as usize * BLOCK_SIZE, (first + rows) as usize * BLOCK_SIZE);
        if !shared.array.write_rebuilt(this, index, first, data.slice(from..to)).await {
            return Outcome::Ended;
        }
    }
    add(&shared.statistics.rebuilt_segments, 1);
    Outcome::Done
}

/// The column of `slot` as the other members give it. Rows that one of them does not give are zeros: nothing can be
/// said of them.
fn reconstruct(shared: &Shared, image: &SegmentImage, members: MemberSet, slot: Slot) -> AlignedBuf {
    let rows = shared.array.geometry().rows;
    let mut column = AlignedBuf::zeroed(rows as usize * BLOCK_SIZE);
    for (row, target) in (0..rows).zip(column.chunks_mut(BLOCK_SIZE)) {
        let others = members.without(slot).iter().map(|other| image.raw(other, row, 1));
        match others.collect::<Option<Vec<_>>>() {
            Some(blocks) => blocks.iter().for_each(|block| parity::xor_into(target, block)),
            None => target.fill(0),
        }
    }
    column
}

/// The disk that was there before is still read. Where another one does not give its part of a row, or has it wrong, the
/// old one's block is kept instead of what follows from that.
fn keep_what_was_there(image: &SegmentImage, info: &Segment, slot: Slot, column: &mut AlignedBuf) {
    let block = |row: u32| row as usize * BLOCK_SIZE..(row as usize + 1) * BLOCK_SIZE;
    let others = info.members.without(slot);
    let rows = (column.len() / BLOCK_SIZE) as u32;
    let is_given = |row: u32| others.iter().all(|other| image.raw(other, row, 1).is_some());
    let mut suspect: BTreeSet<u32> = (0..rows).filter(|row| !is_given(*row)).collect();
    let accept =
        |header: &BatchHeader| header.place.generation == info.generation && header.number <= info.last_batch;
    let batches = image.batches(&[info.members], accept);
    for (entry, place) in batches.iter().flat_map(BatchHeader::entries_with_places) {
        let (Some(place), Some(checksum)) = (place, entry.payload_checksum()) else { continue };
        let found = match place.slot() {
            own if own == slot => Crc32::of(&column[block(place.row())]),
            other => match image.raw(other, place.row(), 1) {
                Some(raw) => Crc32::of(&raw),
                None => continue,
            },
        };
        if found != checksum {
            suspect.insert(place.row());
        }
    }
    for row in suspect {
        if let Some(kept) = image.raw(slot, row, 1) {
            column[block(row)].copy_from_slice(&kept);
        }
    }
}

/// Reports live blocks of the segment that are damaged on the disks that are there, or behind a damaged row.
async fn report_damage(
    shared: &Rc<Shared>,
    image: &SegmentImage,
    index: SegmentIndex,
    info: &Segment,
    (slot, column): (Slot, &AlignedBuf),
) {
    let accept =
        |header: &BatchHeader| header.place.generation == info.generation && header.number <= info.last_batch;
    let mut damaged = Vec::new();
    for header in image.batches(&[info.members], accept) {
        for (entry, place) in header.entries_with_places() {
            let (Some(place), Some(checksum)) = (place, entry.payload_checksum()) else { continue };
            let row = place.row() as usize * BLOCK_SIZE;
            let is_good = match place.slot() {
                own if own == slot => Crc32::of(&column[row..row + BLOCK_SIZE]) == checksum,
                // What the disk that was there before has helps to give it back.
                other => image.verified(info.members, other, place.row(), checksum).is_some(),
            };
            if !is_good && is_live(shared, entry.volume, entry.address, entry.version, place).await {
                damaged.push((entry.volume, entry.address));
            }
        }
    }
    let Some((volume, address)) = damaged.first() else { return };
    (shared.events)(Event {
        severity: Severity::Critical,
        kind: "rebuild-damage",
        message: format!(
            "{} blocks in segment {} can't be rebuilt: another disk has them wrong or does not give them; the first is \
             block {} of volume {}. All others are whole. They come from the other node if there is one, else they are \
             to be restored from a backup",
            damaged.len(),
            index.0,
            address.0,
            volume.0
        ),
    });
    note_damaged(shared, damaged);
}

/// Whether the map refers to this place.
pub(super) async fn is_live(
    shared: &Shared,
    volume: VolumeId,
    address: BlockAddress,
    version: Version,
    place: crate::array::Place,
) -> bool {
    let lookup = shared.contents.borrow().map.look_up_version(volume, address, version);
    let live = lookup.await.ok().flatten();
    live.is_some_and(|live| matches!(live.value, MapValue::Data { place: at, .. } if at == place))
}

/// Keeps blocks for the peer to be asked; more than are kept are found again by the next scrub.
pub(super) fn note_damaged(shared: &Shared, blocks: impl IntoIterator<Item = (VolumeId, BlockAddress)>) {
    let mut damaged = shared.healing.damaged.borrow_mut();
    for block in blocks {
        if damaged.len() < MOST_DAMAGED {
            damaged.insert(block);
        }
    }
}

/// Progress is made durable after so many segments.
const SAVE_AFTER_SEGMENTS: u32 = 8;
/// Rows written at a time: 1 MiB.
const CHUNK_ROWS: usize = 256;
const RETRY: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const MOST_DAMAGED: usize = 1 << 16;
