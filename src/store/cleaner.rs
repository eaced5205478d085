//! Cleaning: what still counts in the emptiest segments moves together, so that whole segments come
//! free; and checkpoints, which make them so.
//!
//! Moves keep version and checksum; the checksum is verified on the way, never made anew from
//! unverified data. A block that nothing can give back moves as *lost*, so that it stays an error
//! and never becomes silence. Moves are sorted by address, which puts neighbours together again.

use std::rc::Rc;

use futures::future::join_all;

use crate::array::{MemberSet, Place, SegmentIndex};
use crate::base::checksum::Crc32;
use crate::base::event::{Event, Severity};
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BlockAddress, VolumeId};

use super::batch::{BatchHeader, BatchKind, Content, Entry};
use super::checkpoint;
use super::compaction;
use super::image::SegmentImage;
use super::interface::StoreError;
use super::log::{CLEANING, FOREGROUND, Item, Pending, Tracker};
use super::map::{Map, MapEntry, MapValue};
use super::rebuild::note_damaged;
use super::segments::{Segment, SegmentState};
use super::shared::{CLEANER_SEGMENTS, Shared, add};

/// Starts the task.
pub(super) fn start(shared: &Rc<Shared>) {
    shared.runtime.spawn(Box::pin(run(shared.clone())));
}

async fn run(shared: Rc<Shared>) {
    loop {
        let progress = shared.progress.wait();
        if shared.stopped.get() {
            return;
        }
        let did_something = match next_task(&shared) {
            Some(Task::Checkpoint) => checkpoint::write(&shared).await.is_ok(),
            Some(Task::Clean(victims)) => clean(&shared, victims).await,
            None => false,
        };
        if !did_something {
            let is_in_need = shared.stalled.get() && !shared.log.borrow().is_idle();
            if !(is_in_need && shared.want_full_merge(&shared.contents.borrow())) {
                report_if_stuck(&shared);
            }
            progress.await;
        }
    }
}

/// By the space accounting (see `USABLE_PERCENT`) there is always something to gain while writes wait, if not
/// now, then when the reads have ended that are in emptied segments: no new ones begin there, and each is
/// bounded by what a disk may take. Should it be wrong, nobody must wait in silence.
fn report_if_stuck(shared: &Shared) {
    let waits = {
        let log = shared.log.borrow();
        log.in_flight.is_empty() && !log.is_idle() && shared.stalled.get()
    };
    let (has_room, comes_free) = {
        let contents = shared.contents.borrow();
        let has_room = contents.segments.free_count() > shared.keep_free()[FOREGROUND];
        (has_room, contents.segments.iter().any(|(_, segment)| segment.is_empty() && segment.readers > 0))
    };
    let serves = !shared.stopped.get() && !shared.array.is_offline();
    let is_stuck = waits && !has_room && !comes_free && serves;
    if is_stuck && shared.merges.has_failed.get() {
        compaction::give_up(shared);
        return;
    }
    if is_stuck && !shared.reported_stuck.replace(true) {
        (shared.events)(Event {
            severity: Severity::Critical,
            kind: "pool-stuck",
            message: "writes wait for space that cleaning cannot gain, though the pool counts as not full. Nothing \
                      acknowledged is lost, and reads go on. Restart this node; if that does not help, move \
                      volumes away"
                .to_owned(),
        });
    }
}

enum Task {
    Checkpoint,
    Clean(Vec<SegmentIndex>),
}

/// What should be done next for space, if anything.
fn next_task(shared: &Shared) -> Option<Task> {
    if shared.log_bytes.get() >= shared.options.checkpoint_log_bytes {
        return Some(Task::Checkpoint);
    }
    let keep_free = shared.keep_free()[0];
    let contents = shared.contents.borrow();
    let retired = match contents.tree() {
        Some(map) if map.tree().memtables() > 0 => return Some(Task::Checkpoint),
        Some(map) => map.tree().retired_tables(),
        None => 0,
    };
    // Merges wait for what they have given up to come free.
    if retired > 0 && contents.segments.table_count() * 4 > shared.table_segments() * 3 {
        return Some(Task::Checkpoint);
    }
    let total = contents.segments.count();
    let free = contents.segments.free_count();
    let low = keep_free + CLEANER_SEGMENTS + total / 64;
    if free >= low {
        return None;
    }
    let durable = shared.log.borrow().durable;
    // What a checkpoint now would free.
    let empty =
        |segment: &Segment| segment.is_empty() && segment.last_batch <= durable && segment.readers == 0;
    let releasable = contents.segments.iter().filter(|(_, segment)| empty(segment)).count() + retired;
    // A checkpoint gives back what is empty and costs the whole map: it has to be worth it, or nothing
    // else is left to do. (tests/store_sim_amplification.rs shows what these shares cost.)
    let worthwhile = (total / 32).max(2 * shared.checkpoint_segments());
    if releasable >= worthwhile || (releasable > 0 && free <= keep_free) {
        return Some(Task::Checkpoint);
    }
    let victims = choose_victims(&contents.segments.iter().collect::<Vec<_>>(), durable, shared);
    if victims.is_empty() {
        return (releasable > 0).then_some(Task::Checkpoint);
    }
    Some(Task::Clean(victims))
}

/// The emptiest segments whose live blocks fill at most [`VICTIM_SEGMENTS`] less one, so that
/// cleaning them gains at least a segment; none when cleaning would gain nothing.
fn choose_victims(segments: &[(SegmentIndex, &Segment)], durable: u64, shared: &Shared) -> Vec<SegmentIndex> {
    let geometry = shared.array.geometry();
    let mut candidates: Vec<(u64, SegmentIndex)> = segments
        .iter()
        .filter(|(_, segment)| segment.state == SegmentState::Sealed && segment.last_batch <= durable)
        .filter(|(_, segment)| !segment.is_empty() && !segment.is_unknown)
        .map(|(index, segment)| (u64::from(segment.live_blocks), *index))
        .collect();
    // By what has to be moved, not by the share of it: every victim gives back one segment, and what
    // is moved takes the same room whatever the width of the segment that it came from.
    candidates.sort_unstable();
    // What is moved goes to segments over these disks, which may be more than those that work.
    let members = match mutant::is(Mutant::CleanForWorkingDisks) {
        true => shared.array.live(),
        false => shared.members_for_writing(),
    };
    let output = geometry.data_blocks(members) * 95 / 100;
    let (mut victims, mut live_sum) = (Vec::new(), 0);
    for (live, segment) in candidates.into_iter().take(VICTIM_SEGMENTS) {
        if !victims.is_empty() && live_sum + live > output {
            break;
        }
        live_sum += live;
        victims.push(segment);
    }
    let gains = (victims.len() as u64 * output).saturating_sub(live_sum) > output / 50;
    if gains { victims } else { Vec::new() }
}

/// Moves what lives in `victims`. Returns whether anything changed.
async fn clean(shared: &Rc<Shared>, victims: Vec<SegmentIndex>) -> bool {
    let mut moves: Vec<Item> = Vec::new();
    for segment in &victims {
        match collect(shared, *segment).await {
            Ok(found) => moves.extend(found),
            Err(StoreError::Offline) => return false,
            // A part of the map can't be read: what it says of stays where it is.
            Err(_) => {
                shared.contents.borrow_mut().segments.get_mut(*segment).is_unknown = true;
                return true;
            }
        }
    }
    let given_up = moves.iter().filter(|item| item.entry.content == Content::Lost);
    note_damaged(shared, given_up.map(|item| (item.entry.volume, item.entry.address)));
    moves.sort_by_key(|item| (item.entry.volume, item.entry.address, item.entry.version));
    add(&shared.statistics.moved_blocks, moves.len() as u64);
    let (tracker, done) = Tracker::new();
    shared.log.borrow_mut().enqueue(CLEANING, Pending { items: moves.into(), tracker });
    shared.work.notify();
    // The map will give up what was there, when it comes to it.
    let empty = || {
        let mut contents = shared.contents.borrow_mut();
        let victims = victims.iter().filter(|_| shared.has_tree);
        victims.for_each(|victim| contents.segments.get_mut(*victim).is_emptied = true);
    };
    if mutant::is(Mutant::EmptiedBeforeMoved) {
        empty();
    }
    let moved = matches!(done.await, Ok(Ok(())));
    if moved {
        empty();
        add(&shared.statistics.cleaned_segments, victims.len() as u64);
    }
    moved
}

/// The live blocks of a segment, verified, as moves.
async fn collect(shared: &Rc<Shared>, segment: SegmentIndex) -> Result<Vec<Item>, StoreError> {
    let (generation, members, last_batch) = {
        let contents = shared.contents.borrow();
        let info = contents.segments.get(segment);
        (info.generation, info.members, info.last_batch)
    };
    let image = SegmentImage::read(&shared.array, segment).await.map_err(|_| StoreError::Offline)?;
    let memberships: [MemberSet; 2] = [members, shared.array.live()];
    // Behind the last batch may lie one that a recovery discarded.
    let accept = |header: &BatchHeader| {
        header.kind == BatchKind::Log && header.place.generation == generation && header.number <= last_batch
    };
    let batches = image.batches(&memberships, accept);
    let mut moves = Vec::new();
    let entries = batches.iter().flat_map(BatchHeader::entries_with_places);
    let blocks: Vec<(&Entry, Place)> = entries.filter_map(|(entry, place)| Some((entry, place?))).collect();
    for some in blocks.chunks(LOOKUPS_AT_A_TIME) {
        let lookups = some.iter().map(|(entry, place)| live_at(shared, entry, *place));
        for ((entry, _), live) in some.iter().zip(join_all(lookups).await) {
            let Some((live, is_older)) = live? else { continue };
            add(&shared.statistics.moved_older_blocks, u64::from(is_older));
            moves.push(move_of(&image, members, entry.volume, entry.address, live));
        }
    }
    let is_all = match shared.has_tree {
        // What is counted there may be less than what is live, never more than what the batches hold.
        true => batches.last().is_some_and(|last| last.number >= last_batch),
        false => moves.len() as u64 == u64::from(shared.contents.borrow().segments.get(segment).live_blocks),
    };
    if !is_all {
        // A header is damaged beyond parity: the map still knows what lies in the segment.
        let inside = shared.contents.borrow().map.entries_in(segment);
        let inside = inside.await?.into_iter();
        moves =
            inside.map(|(volume, address, live)| move_of(&image, members, volume, address, live)).collect();
    }
    Ok(moves)
}

/// What the map has of a block in this place, and whether it is not the newest of its address.
async fn live_at(
    shared: &Shared,
    entry: &Entry,
    place: Place,
) -> Result<Option<(MapEntry, bool)>, StoreError> {
    let (volume, address, version) = (entry.volume, entry.address, entry.version);
    let lookup = shared.contents.borrow().map.look_up_version(volume, address, version);
    let live =
        lookup.await?.filter(|live| matches!(live.value, MapValue::Data { place: at, .. } if at == place));
    let Some(live) = live else { return Ok(None) };
    let next = shared.contents.borrow().map.next_version(volume, address, version);
    Ok(Some((live, next.await?.is_some())))
}

/// The statement that moves a live block, or that gives it up when nothing can give it back.
fn move_of(
    image: &SegmentImage,
    members: MemberSet,
    volume: VolumeId,
    address: BlockAddress,
    live: MapEntry,
) -> Item {
    let mut entry = Entry { volume, address, version: live.version, content: Content::Lost };
    let mut payload = None;
    if let MapValue::Data { place, checksum } = live.value {
        let plain = checksum.bind(&entry.identity());
        payload = image.verified(members, place.slot(), place.row(), plain);
        let raw = image.raw(place.slot(), place.row(), 1).filter(|_| mutant::is(Mutant::MoveUnverified));
        if let Some(raw) = raw {
            entry.content = Content::Moved { checksum: Crc32::of(&raw).bind(&entry.identity()) };
            payload = Some(raw);
        } else if payload.is_some() {
            entry.content = Content::Moved { checksum };
        }
    }
    Item { entry, payload, is_new_block: false }
}

/// Most segments that are cleaned together: what is read at a time, in segments.
const VICTIM_SEGMENTS: usize = 6;
const LOOKUPS_AT_A_TIME: usize = 64;
