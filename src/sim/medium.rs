//! What a simulated disk is made of: the medium, which survives, and the cache above it, which a
//! crash tears.
//!
//! A page (4096 bytes) is on the medium, or in one or more unflushed versions in the cache, oldest
//! first; reads see the newest. Invariants: a flush makes stable exactly the writes that had
//! completed when it was asked for (and what they overwrote is gone for good); at a crash each
//! 512-byte sector of each other write, completed or in flight, is kept or dropped independently,
//! never in an order that undoes a flushed write; a page that was being written may be
//! unreadable until it is written again. Left to `sim::disk`: time and operations.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::fault::{Counters, Fault, FaultList, Strike};
use super::random::Random;
use crate::base::runtime::Instant;
use crate::base::signal::Signal;
use crate::disk::Operation;

/// The part of a simulated disk that outlives worlds: stable pages, cache, faults, counters.
pub struct SimulatedMedium {
    name: String,
    size_bytes: u64,
    group: Rc<FlushGroup>,
    pub(super) random: Random,
    state: RefCell<State>,
    pub(super) counters: Cell<Counters>,
}

impl SimulatedMedium {
    /// An empty medium of `size_bytes` (rounded down to pages), alone in its flush group.
    #[must_use]
    pub fn new(name: &str, size_bytes: u64, seed: u64) -> Rc<Self> {
        Self::in_group(name, size_bytes, seed, &FlushGroup::alone())
    }

    /// An empty medium that shares its backing device, and so its flushes, with others.
    #[must_use]
    pub fn in_group(name: &str, size_bytes: u64, seed: u64, group: &Rc<FlushGroup>) -> Rc<Self> {
        let medium = Rc::new(Self {
            name: name.to_owned(),
            size_bytes: size_bytes / PAGE_BYTES * PAGE_BYTES,
            group: group.clone(),
            random: Random::new(seed),
            state: RefCell::new(State::default()),
            counters: Cell::new(Counters::default()),
        });
        group.members.borrow_mut().push(Rc::downgrade(&medium));
        medium
    }

    /// Name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size in bytes, a multiple of 4096.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What was done and met so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.get()
    }

    /// Lets `fault` wait for its operation.
    pub fn inject(&self, fault: Fault) {
        self.state.borrow_mut().faults.inject(fault);
    }

    /// Takes back all injected faults. Damage already done to pages stays.
    pub fn clear_faults(&self) {
        self.state.borrow_mut().faults.clear();
    }

    /// Whether an injected fault may still strike.
    #[must_use]
    pub fn has_faults(&self) -> bool {
        !self.state.borrow().faults.is_empty()
    }

    /// Latent sector errors: the pages that `range` touches can't be read until they are rewritten.
    pub fn make_unreadable(&self, range: Range<u64>) {
        self.damage(range, |page| page.condition = Condition::Unreadable);
    }

    /// Bit rot: flips a random bit in each page that `range` touches.
    pub fn rot(&self, range: Range<u64>) {
        self.damage(range, |page| {
            let bit = self.random.index(page.bytes.len() * 8);
            page.bytes[bit / 8] ^= 1 << (bit % 8);
            page.condition = Condition::Rotten;
        });
    }

    /// Every operation that would complete before `until` completes then.
    pub fn stall_until(&self, until: Instant) {
        self.state.borrow_mut().stalled_until = until;
    }

    /// The disk disappears: operations, also those in flight, fail as gone. With `lose_cache` its
    /// power failed too, with the effect of a crash on unflushed writes.
    pub fn disappear(&self, lose_cache: bool) {
        let mut state = self.state.borrow_mut();
        state.gone = true;
        state.absences += 1;
        drop(state);
        if lose_cache {
            self.tear(500_000);
        }
    }

    /// The disk is back, with what its medium holds.
    pub fn reappear(&self) {
        self.state.borrow_mut().gone = false;
    }

    /// The file system under the disk has room for `bytes` of pages that were ever written and not
    /// discarded; none takes the limit away.
    pub fn limit_space(&self, bytes: Option<u64>) {
        self.state.borrow_mut().space_limit_pages = bytes.map(|bytes| bytes / PAGE_BYTES);
    }

    /// The file under the disk ends at `bytes`: what was behind is lost, and reads there are short
    /// until something is written there or behind.
    pub fn truncate(&self, bytes: u64) {
        let state = &mut *self.state.borrow_mut();
        let end = bytes / PAGE_BYTES;
        state.stable.split_off(&end);
        state.cache.split_off(&end);
        state.allocated.split_off(&end);
        state.end_page = Some(end);
    }

    /// The power fails: operations in flight vanish, unflushed sectors are kept or dropped at random,
    /// and open handles are dead. Tasks are the business of the world, which crashes first.
    pub fn crash(&self) {
        // One crash keeps nearly all, another nearly nothing: extremes find other bugs than halves.
        let keep_per_million = [20_000, 250_000, 500_000, 750_000, 980_000][self.random.index(5)];
        self.crash_keeping(keep_per_million);
    }

    /// As [`SimulatedMedium::crash`], with the chance that an unflushed sector is kept.
    pub fn crash_keeping(&self, per_million: u32) {
        self.tear(per_million);
        self.state.borrow_mut().generation += 1;
        self.count(|counters| counters.crashes += 1);
    }

    /// The process that used the disk is killed while the power stays: its handles are dead, each
    /// operation in flight is done or not, and the cache goes on holding what was not flushed.
    pub fn lose_user(&self) {
        let state = &mut *self.state.borrow_mut();
        for (number, write) in std::mem::take(&mut state.in_flight) {
            if self.random.coin() {
                state.apply(number, write);
            }
        }
        // Whatever the cache holds is complete as far as a later flush is concerned.
        for version in state.cache.values().flatten().filter(|version| version.completed.get().is_none()) {
            version.completed.set(Some(state.completions));
        }
        state.generation += 1;
    }

    /// Notified whenever a write that touches `range` becomes visible, from now on; one range at a
    /// time.
    #[must_use]
    pub fn watch(&self, range: Range<u64>) -> Signal {
        let signal = Signal::default();
        self.state.borrow_mut().watched = Some((pages_of(&range), signal.clone()));
        signal
    }

    /// Bytes that reads see, for inspection in tests: no faults, no time.
    #[must_use]
    pub fn peek(&self, range: Range<u64>) -> Vec<u8> {
        let state = self.state.borrow();
        let mut bytes = Vec::new();
        for page in pages_of(&range) {
            match state.visible(page) {
                Some(page) => bytes.extend_from_slice(&page.bytes),
                None => bytes.resize(bytes.len() + PAGE, 0),
            }
        }
        let skipped = usize::try_from(range.start % PAGE_BYTES).expect("less than a page");
        let length = usize::try_from(range.end - range.start).expect("fits memory");
        bytes[skipped..skipped + length].to_vec()
    }

    /// Writes to cache that no flush has covered yet, in pages.
    #[must_use]
    pub fn unflushed_pages(&self) -> usize {
        self.state.borrow().cache.values().map(Vec::len).sum()
    }

    pub(super) fn group(&self) -> &Rc<FlushGroup> {
        &self.group
    }

    pub(super) fn generation(&self) -> u64 {
        self.state.borrow().generation
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state.borrow().gone
    }

    pub(super) fn absences(&self) -> u64 {
        self.state.borrow().absences
    }

    pub(super) fn stalled_until(&self) -> Instant {
        self.state.borrow().stalled_until
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    pub(super) fn strike(&self, operation: Operation, range: &Range<u64>) -> Strike {
        let strike = self.state.borrow_mut().faults.strike(operation, range, &self.random);
        if strike.stall > Duration::ZERO {
            self.count(|counters| counters.stalls += 1);
        }
        strike
    }

    /// Copies what is visible from `offset` on into `buffer`.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadFault> {
        let state = self.state.borrow();
        let mut rotten = false;
        for (page, target) in (offset / PAGE_BYTES..).zip(buffer.chunks_mut(PAGE)) {
            if state.end_page.is_some_and(|end| page >= end) {
                return Err(ReadFault::Short);
            }
            match state.visible(page) {
                None => target.fill(0),
                Some(page) if page.condition == Condition::Unreadable => return Err(ReadFault::Unreadable),
                Some(page) => {
                    rotten |= page.condition == Condition::Rotten;
                    target.copy_from_slice(&page.bytes);
                }
            }
        }
        if rotten {
            self.count(|counters| counters.rotten_reads += 1);
        }
        Ok(())
    }

    /// Reserves space for a write; false when the file system under the disk is full.
    pub(super) fn allocate(&self, range: &Range<u64>) -> bool {
        let state = &mut *self.state.borrow_mut();
        if let Some(limit) = state.space_limit_pages {
            let new = pages_of(range).filter(|page| !state.allocated.contains(page)).count();
            if (state.allocated.len() + new) as u64 > limit {
                return false;
            }
        }
        state.allocated.extend(pages_of(range));
        true
    }

    /// Registers a write that was submitted: from now on a crash may find any part of it on the medium.
    pub(super) fn submit_write(&self, offset: u64, pages: Vec<Rc<Page>>) -> WriteTicket {
        let state = &mut *self.state.borrow_mut();
        let number = state.next_write;
        state.next_write += 1;
        let completed = Rc::new(Cell::new(None));
        state
            .in_flight
            .insert(number, Write { first_page: offset / PAGE_BYTES, pages, completed: completed.clone() });
        WriteTicket { number, completed }
    }

    /// Lets a submitted write become visible. It is not complete yet: no flush covers it.
    pub(super) fn apply_write(&self, ticket: &WriteTicket) {
        let state = &mut *self.state.borrow_mut();
        let Some(write) = state.in_flight.remove(&ticket.number) else { return };
        if let Some((watched, signal)) = &state.watched {
            let end = write.first_page + write.pages.len() as u64;
            if write.first_page < watched.end && watched.start < end {
                signal.notify();
            }
        }
        state.apply(ticket.number, write);
    }

    /// Completes an applied write: flushes asked for from now on cover it.
    pub(super) fn complete_write(&self, ticket: &WriteTicket) {
        let state = &mut *self.state.borrow_mut();
        state.completions += 1;
        ticket.completed.set(Some(state.completions));
    }

    /// How many writes have completed: what a flush asked for now must cover.
    pub(super) fn completion_mark(&self) -> u64 {
        self.state.borrow().completions
    }

    /// Makes every write that completed up to `mark` stable.
    pub(super) fn flush(&self, mark: u64) {
        let state = &mut *self.state.borrow_mut();
        state.drain_covered(mark, |stable, number, version| stable.set(number, version));
    }

    /// A flush that failed: each page version that it would have covered is stable, or lost at once.
    pub(super) fn flush_in_vain(&self, mark: u64) {
        let state = &mut *self.state.borrow_mut();
        state.drain_covered(mark, |stable, number, version| {
            if self.random.coin() {
                stable.set(number, version);
            }
        });
    }

    /// Forgets `range`: each page reads as zeros or as before, and takes no space.
    pub(super) fn discard(&self, range: &Range<u64>) {
        let state = &mut *self.state.borrow_mut();
        for number in pages_of(range) {
            state.allocated.remove(&number);
            if self.random.coin() {
                state.cache.remove(&number);
                state.stable.pages.remove(&number);
            }
        }
    }

    fn damage(&self, range: Range<u64>, change: impl Fn(&mut Page)) {
        let state = &mut *self.state.borrow_mut();
        for number in pages_of(&range) {
            // Stable and newest cached version, so that the damage outlives a flush and a crash.
            let stable = state.stable.pages.entry(number).or_insert_with(Page::zeros);
            change(Rc::make_mut(stable));
            if let Some(version) = state.cache.get_mut(&number).and_then(|versions| versions.last_mut()) {
                change(Rc::make_mut(&mut version.page));
            }
        }
    }

    /// Decides for each sector of each unflushed write whether the medium has it.
    fn tear(&self, keep_per_million: u32) {
        let state = &mut *self.state.borrow_mut();
        self.count(|counters| counters.crash_in_flight += state.in_flight.len() as u64);
        let mut in_flight: Vec<_> = std::mem::take(&mut state.in_flight).into_iter().collect();
        self.random.shuffle(&mut in_flight);
        for (number, write) in in_flight {
            state.apply(number, write);
        }
        let mut fates = BTreeMap::new();
        for (number, versions) in std::mem::take(&mut state.cache) {
            for version in versions {
                let fate = *fates.entry(version.write).or_insert_with(|| match self.random.below(5) {
                    0 => Fate::Whole(self.random.chance(keep_per_million)),
                    1 => Fate::Pages,
                    2 => Fate::Spoiled,
                    _ => Fate::Sectors,
                });
                let sectors = match fate {
                    Fate::Whole(kept) => u8::from(kept) * u8::MAX,
                    Fate::Pages => u8::from(self.random.chance(keep_per_million)) * u8::MAX,
                    Fate::Spoiled if self.random.chance(keep_per_million) => u8::MAX,
                    Fate::Spoiled => {
                        self.count(|counters| counters.crash_spoiled_pages += 1);
                        state.stable.spoil(number);
                        continue;
                    }
                    Fate::Sectors => (0..8).fold(0, |mask, sector| {
                        mask | u8::from(self.random.chance(keep_per_million)) << sector
                    }),
                };
                self.count(|counters| match sectors {
                    0 => counters.crash_dropped_pages += 1,
                    u8::MAX => counters.crash_kept_pages += 1,
                    _ => counters.crash_torn_pages += 1,
                });
                state.stable.set_sectors(number, &version.page, sectors);
            }
        }
    }
}

/// Disks on one backing device: a flush of one makes the completed writes of all stable.
#[derive(Default)]
pub struct FlushGroup {
    /// The value of [`crate::disk::DiskProperties::flush_group`]; none for a disk by itself.
    number: Option<u64>,
    members: RefCell<Vec<Weak<SimulatedMedium>>>,
}

impl FlushGroup {
    /// A group that media may join; `number` tells it apart from other groups.
    #[must_use]
    pub fn shared(number: u64) -> Rc<Self> {
        Rc::new(Self { number: Some(number), members: RefCell::default() })
    }

    pub(super) fn number(&self) -> Option<u64> {
        self.number
    }

    /// The media of the group that still exist.
    pub(super) fn members(&self) -> Vec<Rc<SimulatedMedium>> {
        self.members.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    fn alone() -> Rc<Self> {
        Rc::new(Self::default())
    }
}

/// A page of a write, or of the medium.
#[derive(Clone)]
pub(super) struct Page {
    bytes: [u8; PAGE],
    condition: Condition,
}

impl Page {
    /// A good page that holds `bytes`, 4096 of them.
    pub(super) fn of(bytes: &[u8]) -> Rc<Self> {
        let mut page = Self { bytes: [0; PAGE], condition: Condition::Good };
        page.bytes.copy_from_slice(bytes);
        Rc::new(page)
    }

    fn zeros() -> Rc<Self> {
        Rc::new(Self { bytes: [0; PAGE], condition: Condition::Good })
    }
}

/// A write that was submitted to the medium.
pub(super) struct WriteTicket {
    number: u64,
    completed: Completion,
}

/// Why a read of the medium can't return its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadFault {
    Unreadable,
    Short,
}

/// Bytes in a page, the unit of reads and writes.
pub(super) const PAGE_BYTES: u64 = 4096;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Good,
    /// Reads fail.
    Unreadable,
    /// Some bits are not those that were written.
    Rotten,
}

/// Position of a write among all completed writes; none while it is in flight.
type Completion = Rc<Cell<Option<u64>>>;

#[derive(Default)]
struct State {
    stable: Stable,
    /// Unflushed versions of each page, oldest first; never an empty list.
    cache: BTreeMap<u64, Vec<CachedPage>>,
    /// Writes submitted and not yet visible.
    in_flight: BTreeMap<u64, Write>,
    /// Pages that take space.
    allocated: BTreeSet<u64>,
    space_limit_pages: Option<u64>,
    /// Where a truncated file ends.
    end_page: Option<u64>,
    faults: FaultList,
    watched: Option<(Range<u64>, Signal)>,
    stalled_until: Instant,
    gone: bool,
    /// How often it disappeared, so that what was in flight then can be told.
    absences: u64,
    /// Counts crashes, so that a handle of an earlier life is told from a living one.
    generation: u64,
    next_write: u64,
    completions: u64,
}

impl State {
    fn visible(&self, page: u64) -> Option<&Rc<Page>> {
        let cached = self.cache.get(&page).and_then(|versions| versions.last());
        cached.map(|version| &version.page).or_else(|| self.stable.pages.get(&page))
    }

    fn apply(&mut self, number: u64, write: Write) {
        let end = write.first_page + write.pages.len() as u64;
        self.end_page = self.end_page.map(|old| old.max(end));
        for (page_number, page) in (write.first_page..).zip(write.pages) {
            let version = CachedPage { write: number, page, completed: write.completed.clone() };
            self.cache.entry(page_number).or_default().push(version);
        }
    }

    /// Takes from the cache, page by page, the newest version completed up to `mark`, hands it to
    /// `settle`, and forgets the versions that it had overwritten.
    fn drain_covered(&mut self, mark: u64, mut settle: impl FnMut(&mut Stable, u64, Rc<Page>)) {
        let stable = &mut self.stable;
        self.cache.retain(|&number, versions| {
            let covered = |version: &CachedPage| version.completed.get().is_some_and(|at| at <= mark);
            if let Some(newest) = versions.iter().rposition(covered) {
                let page = versions.drain(..=newest).next_back().expect("a range that is not empty").page;
                settle(stable, number, page);
            }
            !versions.is_empty()
        });
    }
}

/// The pages that survive every crash; those never written are zeros.
#[derive(Default)]
struct Stable {
    pages: BTreeMap<u64, Rc<Page>>,
}

impl Stable {
    fn set(&mut self, number: u64, page: Rc<Page>) {
        self.pages.insert(number, page);
    }

    fn spoil(&mut self, number: u64) {
        let page = self.pages.entry(number).or_insert_with(Page::zeros);
        Rc::make_mut(page).condition = Condition::Unreadable;
    }

    fn split_off(&mut self, end: &u64) {
        self.pages.split_off(end);
    }

    /// Overwrites the sectors in `mask` (bit 0 is the first) with those of `source`.
    fn set_sectors(&mut self, number: u64, source: &Rc<Page>, mask: u8) {
        if mask == u8::MAX {
            return self.set(number, source.clone());
        }
        if mask == 0 {
            return;
        }
        let target = Rc::make_mut(self.pages.entry(number).or_insert_with(Page::zeros));
        for sector in (0..PAGE / SECTOR).filter(|sector| mask >> sector & 1 == 1) {
            let bytes = sector * SECTOR..(sector + 1) * SECTOR;
            target.bytes[bytes.clone()].copy_from_slice(&source.bytes[bytes]);
        }
    }
}

struct CachedPage {
    write: u64,
    page: Rc<Page>,
    completed: Completion,
}

struct Write {
    first_page: u64,
    pages: Vec<Rc<Page>>,
    completed: Completion,
}

/// How a crash treats one unflushed write.
#[derive(Clone, Copy)]
enum Fate {
    /// Kept or dropped as a whole.
    Whole(bool),
    /// Each page kept or dropped.
    Pages,
    /// Each sector kept or dropped.
    Sectors,
    /// Each page kept, or unreadable: the power failed while its sectors were written.
    Spoiled,
}

/// The pages that a byte range touches.
fn pages_of(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES)
}
