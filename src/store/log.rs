//! The log's state: what waits, what is on its way, and how the next batch is built.
//!
//! Everything here is bookkeeping without input or output; `writer` moves the bytes. Batches are
//! numbered without gaps and acknowledged in that order. Foreground writes and the cleaner's moves
//! go to different heads (so that hot and cold data part), yet form one chain.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use futures::channel::oneshot;

use crate::array::geometry::{StripeLayout, data_columns};
use crate::array::superblock::{LogKey, Uuid};
use crate::array::{MemberSet, Place, SegmentIndex};
use crate::base::checksum::Crc32;
use crate::base::mutant::{self, Mutant};
use crate::base::units::BLOCK_SIZE;

use super::batch::{
    BatchHeader, BatchKind, Entry, HEADS, HeadRecord, MAX_ENTRIES, SegmentUse, block_place, height,
};
use super::interface::StoreError;
use super::root::{HeadPosition, LogPosition};
use super::segments::{SegmentState, SegmentTable};

/// The head that foreground writes go to.
pub(super) const FOREGROUND: usize = 0;
/// The head that the cleaner's moves go to.
pub(super) const CLEANING: usize = 1;

/// Most payload blocks of a batch: 1 MiB bounds how long a small write waits behind a large one.
pub(super) const MAX_BATCH_BLOCKS: usize = 256;

/// The log.
pub(super) struct Log {
    /// The pool, and the key of its headers.
    identity: (Uuid, LogKey),
    pub(super) incarnation: u64,
    pub(super) next_number: u64,
    previous: Crc32,
    /// Every batch up to here is on stable media, and settled.
    pub(super) durable: u64,
    /// Acknowledged-through of the newest batch built.
    proven: u64,
    /// Highest batch number with an acknowledged statement in it.
    acknowledged: u64,
    heads: [Head; HEADS],
    queues: [VecDeque<Pending>; HEADS],
    pub(super) in_flight: VecDeque<InFlight>,
}

/// An open end of the log.
#[derive(Clone, Copy, Default)]
struct Head {
    current: Option<OpenSegment>,
    next: Option<SegmentUse>,
    /// Whether a batch or the superblock names `next`, so that replay would find it.
    next_is_recorded: bool,
}

#[derive(Clone, Copy)]
struct OpenSegment {
    segment_use: SegmentUse,
    members: MemberSet,
    row: u32,
}

/// Statements that wait for a batch, all acknowledged together.
pub(super) struct Pending {
    pub(super) items: VecDeque<Item>,
    pub(super) tracker: Rc<Tracker>,
}

/// One statement on its way.
pub(super) struct Item {
    pub(super) entry: Entry,
    /// The payload block, if the entry has one: [`BLOCK_SIZE`] bytes, block-aligned.
    pub(super) payload: Option<Bytes>,
    /// Whether space was reserved for it as a block that had none.
    pub(super) is_new_block: bool,
}

/// Follows an append until all batches that hold parts of it are durable.
pub(super) struct Tracker {
    /// Parts that are in a batch or still wait.
    parts: Cell<usize>,
    done: RefCell<Option<oneshot::Sender<Result<(), StoreError>>>>,
}

impl Tracker {
    /// A tracker and what completes with it.
    pub(super) fn new() -> (Rc<Self>, oneshot::Receiver<Result<(), StoreError>>) {
        let (sender, receiver) = oneshot::channel();
        (Rc::new(Self { parts: Cell::new(1), done: RefCell::new(Some(sender)) }), receiver)
    }

    /// One part is settled; the last one completes the append.
    pub(super) fn part_settled(&self) {
        self.parts.set(self.parts.get() - 1);
        if self.parts.get() == 0 {
            self.complete(Ok(()));
        }
    }

    /// Completes the append with `result`, unless it was completed before.
    pub(super) fn complete(&self, result: Result<(), StoreError>) {
        if let Some(sender) = self.done.borrow_mut().take() {
            // Nobody waits any more when the caller dropped its future: the append stands all the same.
            let _ = sender.send(result);
        }
    }
}

/// A batch between its building and its settling.
pub(super) struct InFlight {
    pub(super) number: u64,
    pub(super) written: bool,
    pub(super) items: Vec<Settling>,
    pub(super) trackers: Vec<Rc<Tracker>>,
    head: usize,
}

/// A statement that takes effect when its batch is durable.
pub(super) struct Settling {
    pub(super) entry: Entry,
    pub(super) place: Option<Place>,
    /// A record; the payload of blocks is not needed any more.
    pub(super) payload: Option<Bytes>,
    pub(super) is_new_block: bool,
}

/// A batch to be written.
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) segment: SegmentIndex,
    pub(super) first_row: u32,
    pub(super) layout: StripeLayout,
    pub(super) columns: Vec<Vec<Bytes>>,
}

/// What building a batch may take from the pool.
pub(super) struct Supply<'a> {
    pub(super) segments: &'a mut SegmentTable,
    pub(super) rows: u32,
    /// Disks for segments that are opened now.
    pub(super) members: MemberSet,
    /// Disks that work now; a segment over others is sealed.
    pub(super) live: MemberSet,
    /// Segments that are to be sealed as soon as the next one is named: a disk joined that lacks what is in them.
    pub(super) is_left: &'a dyn Fn(SegmentIndex) -> bool,
    /// Free segments that each head has to leave for others.
    pub(super) keep_free: [usize; HEADS],
}

impl Log {
    /// A log that goes on at `position`.
    pub(super) fn new(identity: (Uuid, LogKey), position: &LogPosition, segments: &SegmentTable) -> Self {
        let head = |head: &HeadPosition| {
            let current = head.current.map(|segment_use| OpenSegment {
                segment_use,
                members: segments.get(segment_use.segment).members,
                row: head.row,
            });
            Head { current, next: head.next, next_is_recorded: true }
        };
        Self {
            identity,
            incarnation: position.incarnation,
            next_number: position.last_number + 1,
            previous: position.last_checksum,
            durable: position.last_number,
            proven: position.last_number,
            acknowledged: 0,
            heads: [head(&position.heads[0]), head(&position.heads[1])],
            queues: Default::default(),
            in_flight: VecDeque::new(),
        }
    }

    /// Where the log stands behind the last batch built.
    pub(super) fn position(&self) -> LogPosition {
        let head = |head: &Head| HeadPosition {
            current: head.current.map(|open| open.segment_use),
            row: head.current.map_or(0, |open| open.row),
            next: head.next,
        };
        LogPosition {
            incarnation: self.incarnation,
            last_number: self.next_number - 1,
            last_checksum: self.previous,
            heads: [head(&self.heads[0]), head(&self.heads[1])],
        }
    }

    /// Puts an append behind those that wait.
    pub(super) fn enqueue(&mut self, head: usize, pending: Pending) {
        self.queues[head].push_back(pending);
    }

    /// Whether nothing waits and nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.queues.iter().all(VecDeque::is_empty)
    }

    /// Whether an acknowledged batch is not yet proven to be one by a later batch.
    pub(super) fn needs_seal(&self) -> bool {
        self.proven < self.acknowledged
    }

    /// Whether the next batch of `head` should start now: at once when nothing is being written, else
    /// when enough waits to be worth an overlap.
    pub(super) fn should_start(&self, head: usize, max_in_flight: usize) -> bool {
        if self.queues[head].is_empty() {
            return false;
        }
        let own = self.in_flight.iter().filter(|batch| batch.head == head);
        if head == CLEANING {
            return own.count() == 0;
        }
        let writing = own.clone().filter(|batch| !batch.written).count();
        writing == 0 || (own.count() < max_in_flight && self.waiting_blocks(head) >= OVERLAP_BLOCKS)
    }

    fn waiting_blocks(&self, head: usize) -> usize {
        let mut blocks = 0;
        for pending in &self.queues[head] {
            blocks += pending.items.len();
            if blocks >= OVERLAP_BLOCKS {
                break;
            }
        }
        blocks
    }

    /// Fails all that waits or is on its way.
    pub(super) fn fail_everything(&mut self, error: &StoreError) {
        let waiting = self.queues.iter_mut().flat_map(|queue| queue.drain(..)).map(|pending| pending.tracker);
        let flying = self.in_flight.drain(..).flat_map(|batch| batch.trackers);
        waiting.chain(flying).for_each(|tracker| tracker.complete(Err(error.clone())));
    }

    /// The statements of the oldest batch on its way, when its number is at most `through`: they take
    /// effect now, and [`Log::finish_settling`] ends that.
    pub(super) fn begin_settling(&mut self, through: u64) -> Option<Vec<Settling>> {
        let oldest = self.in_flight.front_mut().filter(|batch| batch.number <= through)?;
        Some(std::mem::take(&mut oldest.items))
    }

    /// Takes the oldest batch off, as durable: who is to be told. Nobody, when all has failed meanwhile.
    pub(super) fn finish_settling(&mut self) -> Vec<Rc<Tracker>> {
        let Some(batch) = self.in_flight.pop_front() else { return Vec::new() };
        assert_eq!(batch.number, self.durable + 1, "batches settle in order");
        self.durable = batch.number;
        if !batch.trackers.is_empty() {
            self.acknowledged = batch.number;
        }
        batch.trackers
    }

    /// Last batch of the unbroken run of written ones.
    pub(super) fn written_through(&self) -> u64 {
        let mut unbroken = self.in_flight.iter().take_while(|batch| batch.written);
        if mutant::is(Mutant::AcknowledgeOutOfOrder) {
            let newest = self.in_flight.iter().rfind(|batch| batch.written);
            return newest.map_or(self.durable, |batch| batch.number);
        }
        unbroken.by_ref().last().map_or(self.durable, |batch| batch.number)
    }

    /// Builds the next batch of `head` from what waits; with nothing waiting, an empty one that only
    /// proves what came before. `None` when there is no segment to put it in.
    pub(super) fn build(&mut self, head: usize, supply: &mut Supply<'_>) -> Option<Batch> {
        let (open, rows) = self.room(head, supply)?;
        let columns = data_columns(open.members);
        let (items, trackers) = self.take_items(head, rows, columns);
        let (entries, payloads, flags) = split_items(items);
        let records = record_payloads(&entries, &payloads);
        let payload_count = payloads.iter().flatten().count();
        let batch_height = height(entries.len(), payload_count, columns) as u32;
        let number = self.next_number;
        let layout = StripeLayout::new(open.members, number);
        let header = BatchHeader {
            kind: BatchKind::Log,
            pool: self.identity.0,
            key: self.identity.1,
            incarnation: self.incarnation,
            number,
            place: open.segment_use,
            first_row: open.row,
            height: batch_height,
            members: open.members,
            previous: self.previous,
            acknowledged_through: self.durable,
            heads: self.head_records(),
            entries,
        };
        let (header_bytes, checksum) = header.encode();
        let segment = open.segment_use.segment;
        let columns = lay_out(&header_bytes, payloads, columns, batch_height as usize);
        let items = place_items(header, flags, records);
        self.in_flight.push_back(InFlight { number, written: false, items, trackers, head });
        self.next_number += 1;
        self.previous = checksum;
        self.proven = self.durable;
        self.heads[head].current = Some(OpenSegment { row: open.row + batch_height, ..open });
        self.heads.iter_mut().for_each(|head| head.next_is_recorded = true);
        supply.segments.get_mut(segment).last_batch = number;
        Some(Batch { number, segment, first_row: open.row, layout, columns })
    }

    /// The segment that `head` writes to next and how many rows a batch may take in it. A segment
    /// that has too little room, or a disk that left, is sealed and the next one opened.
    fn room(&mut self, head: usize, supply: &mut Supply<'_>) -> Option<(OpenSegment, u32)> {
        loop {
            self.name_next(head, supply);
            let next_is_named = self.heads[head].next.is_some();
            if let Some(open) = self.heads[head].current {
                let lost = open.members.difference(supply.live);
                let wanted = supply.members == open.members || !self.heads[head].next_is_recorded;
                let is_left = self.heads[head].next_is_recorded && (supply.is_left)(open.segment_use.segment);
                let usable = !(is_left && next_is_named)
                    && (lost == MemberSet::EMPTY || (wanted && lost.width() == 1));
                let left = supply.rows - open.row;
                // The last row is kept for the batch that names the next segment.
                let rows = if next_is_named { left } else { left.saturating_sub(1) };
                if usable && rows > 0 {
                    return Some((open, rows));
                }
                if !next_is_named || !self.heads[head].next_is_recorded {
                    return None;
                }
                supply.segments.get_mut(open.segment_use.segment).state = SegmentState::Sealed;
            }
            let segment_use = self.heads[head].next.take()?;
            let info = supply.segments.get_mut(segment_use.segment);
            info.members = supply.members;
            self.heads[head].current = Some(OpenSegment { segment_use, members: supply.members, row: 0 });
        }
    }

    /// Takes a free segment as the next of `head`, where there is none yet.
    fn name_next(&mut self, head: usize, supply: &mut Supply<'_>) {
        if self.heads[head].next.is_none() && supply.segments.free_count() > supply.keep_free[head] {
            self.heads[head].next = supply.segments.take(SegmentState::Open, supply.members);
            self.heads[head].next_is_recorded = false;
        }
    }

    /// Takes the statements for a batch of at most `rows` rows.
    fn take_items(&mut self, head: usize, rows: u32, columns: usize) -> (Vec<Item>, Vec<Rc<Tracker>>) {
        let (mut items, mut trackers) = (Vec::new(), Vec::new());
        let mut payload = 0;
        while let Some(pending) = self.queues[head].front_mut() {
            let tracker = pending.tracker.clone();
            let before = items.len();
            while let Some(item) = pending.items.front() {
                let more = payload + usize::from(item.payload.is_some());
                let fits = height(items.len() + 1, more, columns) <= rows as usize;
                if !fits || more > MAX_BATCH_BLOCKS || items.len() >= MAX_ENTRIES {
                    break;
                }
                payload = more;
                items.extend(pending.items.pop_front());
            }
            if pending.items.is_empty() {
                self.queues[head].pop_front();
                trackers.push(tracker);
            } else {
                if items.len() > before {
                    tracker.parts.set(tracker.parts.get() + 1);
                    trackers.push(tracker);
                }
                break;
            }
        }
        (items, trackers)
    }

    fn head_records(&self) -> [HeadRecord; HEADS] {
        let record = |head: &Head| HeadRecord {
            current: head.current.map(|open| open.segment_use),
            next: head.next.filter(|_| !mutant::is(Mutant::NextSegmentNotNamed)),
        };
        [record(&self.heads[0]), record(&self.heads[1])]
    }
}

fn split_items(items: Vec<Item>) -> (Vec<Entry>, Vec<Option<Bytes>>, Vec<bool>) {
    let mut entries = Vec::with_capacity(items.len());
    let mut payloads = Vec::with_capacity(items.len());
    let mut flags = Vec::with_capacity(items.len());
    for item in items {
        entries.push(item.entry);
        payloads.push(item.payload);
        flags.push(item.is_new_block);
    }
    (entries, payloads, flags)
}

/// Distributes header and payload over the data columns, filled up with zeros.
pub(super) fn lay_out(
    header: &[u8],
    payloads: Vec<Option<Bytes>>,
    columns: usize,
    height: usize,
) -> Vec<Vec<Bytes>> {
    let header = crate::base::buffer::AlignedBuf::copy_of(header).freeze();
    let header_blocks =
        (0..header.len() / BLOCK_SIZE).map(|n| header.slice(n * BLOCK_SIZE..(n + 1) * BLOCK_SIZE));
    let zeros = std::iter::repeat_with(zero_block);
    let mut blocks = header_blocks.chain(payloads.into_iter().flatten()).chain(zeros);
    (0..columns).map(|_| blocks.by_ref().take(height).collect()).collect()
}

/// The payloads that settling needs: those of records, by entry position.
fn record_payloads(entries: &[Entry], payloads: &[Option<Bytes>]) -> Vec<(usize, Bytes)> {
    let records = entries.iter().zip(payloads).enumerate().filter(|(_, (entry, _))| entry.has_record());
    records.filter_map(|(position, (_, payload))| Some((position, payload.clone()?))).collect()
}

fn place_items(header: BatchHeader, flags: Vec<bool>, mut records: Vec<(usize, Bytes)>) -> Vec<Settling> {
    let (layout, segment) = (header.layout(), header.place.segment);
    let (first_row, height) = (header.first_row, header.height);
    let mut position = header.header_blocks();
    let settle = |(index, (entry, is_new_block)): (usize, (Entry, bool))| {
        let place = entry.has_payload().then(|| block_place(layout, segment, first_row, height, position));
        position += usize::from(place.is_some());
        let record = records.iter().position(|(at, _)| *at == index);
        let payload = record.map(|record| records.swap_remove(record).1);
        Settling { entry, place, payload, is_new_block }
    };
    header.entries.into_iter().zip(flags).enumerate().map(settle).collect()
}

/// A block of zeros, shared.
pub(super) fn zero_block() -> Bytes {
    static ZEROS: ZeroBlock = ZeroBlock([0; BLOCK_SIZE]);
    Bytes::from_static(&ZEROS.0)
}

#[repr(align(4096))]
struct ZeroBlock([u8; BLOCK_SIZE]);

/// Blocks that make a batch worth starting while another one is being written.
const OVERLAP_BLOCKS: usize = 64;
