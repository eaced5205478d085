//! Random concurrent operations under seeded schedules: the history of every sector is linearizable,
//! whatever is abandoned, frozen, resized or full in between.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, join_all, select};
use gemel::base::buffer::AlignedBuf;
use gemel::base::runtime::Runtime;
use gemel::sim::linearizability::{Action, Event, is_linearizable};
use gemel::sim::random::Random;
use gemel::volume::Shrinking;
use gemel::volume::device::{BlockDevice, CompareOutcome, DeviceError};

use crate::Rig;

#[test]
fn every_sector_is_linearizable_512e() {
    (0..1000).for_each(|seed| Model::new(seed, 512).check());
}

#[test]
fn every_sector_is_linearizable_4kn() {
    (0..500).for_each(|seed| Model::new(seed, 4096).check());
}

#[test]
fn one_seed_is_one_run() {
    let run = || {
        let model = Model::new(77, 512);
        model.check();
        (model.rig.executor.trace_hash(), model.operations.get())
    };
    let (first, second) = (run(), run());
    assert_eq!(first, second);
    assert!(first.1 > 30, "{} operations", first.1);
}

/// Clients on one small volume, and what they have done to each of its sectors.
struct Model {
    rig: Rig,
    random: Random,
    sector_bytes: usize,
    /// A time that is never shown twice.
    clock: Cell<u64>,
    next_stamp: Cell<u64>,
    frozen: Cell<usize>,
    operations: Cell<u64>,
    /// By sector, for all that ever existed.
    events: RefCell<Vec<Vec<Event>>>,
    initial: RefCell<Vec<u64>>,
}

impl Model {
    fn new(seed: u64, sector_bytes: u32) -> Self {
        let sectors = MOST_BLOCKS * 4096 / u64::from(sector_bytes);
        let rig = Rig::new(seed, sector_bytes, sectors);
        Self {
            rig,
            random: Random::new(seed),
            sector_bytes: sector_bytes as usize,
            clock: Cell::new(0),
            next_stamp: Cell::new(1),
            frozen: Cell::new(0),
            operations: Cell::new(0),
            events: RefCell::new(vec![Vec::new(); sectors as usize]),
            initial: RefCell::new(vec![0; sectors as usize]),
        }
    }

    /// Several rounds of concurrent operations, with a look at everything after each.
    fn check(&self) {
        self.rig.run(async {
            for _ in 0..4 {
                let clients = 1 + self.random.below(5);
                join_all((0..clients).map(|_| self.client())).await;
                self.settle().await;
            }
        });
    }

    async fn client(&self) {
        for _ in 0..1 + self.random.below(8) {
            match self.random.below(20) {
                0 => self.resize().await,
                1 => self.freeze().await,
                2 => self.allocation().await,
                3..=7 => self.read().await,
                8..=11 => self.compare_and_write().await,
                12 => self.write_same().await,
                13 | 14 => self.unmap().await,
                _ => self.write().await,
            }
            self.operations.set(self.operations.get() + 1);
            if self.random.coin() {
                self.rig.world.sleep(Duration::from_micros(self.random.below(100))).await;
            }
        }
    }

    /// Waits for what was abandoned, reads everything and checks the history of each sector.
    async fn settle(&self) {
        while self.rig.volume.in_flight_count() > 0 {
            self.rig.world.sleep(Duration::from_micros(10)).await;
        }
        let end = self.tick();
        let present = self.values(&self.rig.volume.read(0, self.sector_count()).await.unwrap());
        let mut events = self.events.borrow_mut();
        for (sector, events) in events.iter_mut().enumerate() {
            for event in events.iter_mut() {
                event.ended = event.ended.min(end);
            }
            let value = present.get(sector).copied();
            if let Some(value) = value {
                let action = Action::Read(value);
                events.push(Event { called: self.tick(), ended: self.tick(), action, is_optional: false });
            }
            let initial = self.initial.borrow()[sector];
            let seed = self.rig.executor.seed();
            assert!(
                is_linearizable(initial, events),
                "seed {seed} sector {sector}: {initial} then {events:#?}"
            );
            events.clear();
            // What lies beyond the end was cut off, or never existed.
            self.initial.borrow_mut()[sector] = value.unwrap_or(0);
        }
    }

    async fn read(&self) {
        let (start, count) = self.any_range();
        let read = self.rig.volume.read(start, count);
        let Some((called, result)) = self.perform(read, |_| Vec::new()).await else { return };
        if let Some(pieces) = result {
            let values = self.values(&pieces);
            self.record(called, start, values.into_iter().map(Action::Read));
        }
    }

    async fn write(&self) {
        let (start, count) = self.any_range();
        let values: Vec<u64> = (0..count).map(|_| self.any_value()).collect();
        let actions: Vec<_> = values.iter().copied().map(Action::Write).collect();
        let write = self.rig.volume.write(start, self.pieces(&self.contents(&values)));
        self.perform_change(write, start, actions).await;
    }

    async fn write_same(&self) {
        let (start, count) = self.any_range();
        let value = self.any_value();
        let pattern = Bytes::from(self.contents(&[value]));
        let actions = vec![Action::Write(value); count as usize];
        self.perform_change(self.rig.volume.write_same(start, count, pattern), start, actions).await;
    }

    async fn unmap(&self) {
        let (start, count) = self.any_range();
        let actions = vec![Action::Write(0); count as usize];
        self.perform_change(self.rig.volume.unmap(start, count), start, actions).await;
    }

    /// Reads, then exchanges what was read, or sometimes something else, for new values.
    async fn compare_and_write(&self) {
        let (start, count) = self.any_range();
        let Ok(before) = self.rig.volume.read(start, count).await else { return };
        let mut expected = self.values(&before);
        if self.random.below(4) == 0 {
            let index = self.random.index(expected.len());
            expected[index] = self.any_value();
        }
        let values: Vec<u64> = (0..count).map(|_| self.any_value()).collect();
        let exchange = |(from, to): (&u64, &u64)| Action::Exchange { from: *from, to: *to };
        let exchanges: Vec<_> = expected.iter().zip(&values).map(exchange).collect();
        let compare = Bytes::from(self.contents(&expected));
        let data = Bytes::from(self.contents(&values));
        let operation = self.rig.volume.compare_and_write(start, compare, data);
        let lost = |_| exchanges.iter().copied().enumerate().map(|(i, x)| (start + i as u64, x)).collect();
        let Some((called, result)) = self.perform(operation, lost).await else { return };
        match result {
            Some(CompareOutcome::Written) => self.record(called, start, exchanges.into_iter()),
            Some(CompareOutcome::Miscompare { offset }) => {
                let different = offset as usize / self.sector_bytes;
                let equal = expected[..different].iter().copied().map(Action::Read);
                self.record(called, start, equal.chain([Action::Differs(expected[different])]));
            }
            None => {}
        }
    }

    async fn resize(&self) {
        let size_bytes = (1 + self.random.below(MOST_BLOCKS)) * 4096;
        let called = self.tick();
        self.rig.volume.resize(size_bytes, Shrinking::DiscardBeyond).await.unwrap();
        let first = size_bytes / self.sector_bytes as u64;
        let beyond = self.events.borrow().len() as u64 - first;
        self.record(called, first, (0..beyond).map(|_| Action::Write(0)));
    }

    async fn freeze(&self) {
        let freeze = self.rig.volume.freeze();
        self.frozen.set(self.frozen.get() + 1);
        self.rig.world.sleep(Duration::from_micros(self.random.below(200))).await;
        self.frozen.set(self.frozen.get() - 1);
        drop(freeze);
    }

    async fn allocation(&self) {
        let (start, count) = self.any_range();
        let Ok(runs) = self.rig.volume.allocation(start, count, 100).await else { return };
        let mut position = start;
        for run in &runs {
            assert_eq!(run.address, position);
            position += run.count;
        }
        assert_eq!(position, start + count);
    }

    async fn perform_change(
        &self,
        change: impl Future<Output = Result<(), DeviceError>>,
        start: u64,
        actions: Vec<Action>,
    ) {
        let lost = |_| actions.iter().copied().enumerate().map(|(i, x)| (start + i as u64, x)).collect();
        if let Some((called, Some(()))) = self.perform(change, lost).await {
            self.record(called, start, actions.into_iter());
        }
    }

    /// Runs an operation, or abandons it on the way: then nothing is returned, and what it may still
    /// do goes into the history as optional. A range that has just been cut off gives no result.
    async fn perform<T>(
        &self,
        operation: impl Future<Output = Result<T, DeviceError>>,
        lost: impl FnOnce(()) -> Vec<(u64, Action)>,
    ) -> Option<(u64, Option<T>)> {
        let called = self.tick();
        let patience = if self.random.below(8) == 0 { self.random.below(150) } else { 1_000_000 };
        let pause = self.rig.world.sleep(Duration::from_micros(patience));
        let outcome = select(Box::pin(operation), pause).await;
        match outcome {
            Either::Left((result, _)) => {
                assert_eq!(self.frozen.get(), 0, "completed while frozen");
                match result {
                    Ok(value) => Some((called, Some(value))),
                    Err(DeviceError::OutOfRange) => Some((called, None)),
                    Err(error) => panic!("{error}"),
                }
            }
            Either::Right((_, abandoned)) => {
                drop(abandoned);
                let mut events = self.events.borrow_mut();
                for (sector, action) in lost(()) {
                    events[sector as usize].push(Event {
                        called,
                        ended: u64::MAX,
                        action,
                        is_optional: true,
                    });
                }
                None
            }
        }
    }

    /// Adds what an operation that was called at `called` and has just ended did from `start` on.
    fn record(&self, called: u64, start: u64, actions: impl Iterator<Item = Action>) {
        let ended = self.tick();
        let mut events = self.events.borrow_mut();
        for (events, action) in events[start as usize..].iter_mut().zip(actions) {
            events.push(Event { called, ended, action, is_optional: false });
        }
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn sector_count(&self) -> u64 {
        self.rig.volume.geometry().block_count
    }

    /// A range inside the volume as it is now, mostly short, often at block boundaries.
    fn any_range(&self) -> (u64, u64) {
        let sectors = self.sector_count();
        let per_block = 4096 / self.sector_bytes as u64;
        let start = self.random.below(sectors);
        let start = if self.random.coin() { start / per_block * per_block } else { start };
        let longest = (sectors - start).min(if self.random.coin() { 3 } else { 3 * per_block });
        let count = 1 + self.random.below(longest);
        let count = if self.random.coin() { count.next_multiple_of(per_block) } else { count };
        (start, count.min(sectors - start))
    }

    /// A value never used before, or zero.
    fn any_value(&self) -> u64 {
        if self.random.below(6) == 0 {
            return 0;
        }
        self.next_stamp.set(self.next_stamp.get() + 1);
        self.next_stamp.get()
    }

    /// Sectors full of these values.
    fn contents(&self, values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes().repeat(self.sector_bytes / 8)).collect()
    }

    /// The values of whole sectors; a sector that mixes two is torn.
    fn values(&self, pieces: &[Bytes]) -> Vec<u64> {
        let whole = pieces.concat();
        let value = |sector: &[u8]| {
            let first = u64::from_le_bytes(sector[..8].try_into().unwrap());
            assert!(sector.chunks(8).all(|word| word == first.to_le_bytes()), "torn sector");
            first
        };
        whole.chunks(self.sector_bytes).map(value).collect()
    }

    /// `data` in one aligned piece, or in several of any shape.
    fn pieces(&self, data: &[u8]) -> Vec<Bytes> {
        if self.random.coin() {
            return vec![AlignedBuf::copy_of(data).freeze()];
        }
        let shift = self.random.index(64);
        let mut shifted = vec![0; shift];
        shifted.extend_from_slice(data);
        let mut rest = Bytes::from(shifted).slice(shift..);
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let length = (1 + self.random.index(6000)).min(rest.len());
            pieces.push(rest.split_to(length));
        }
        pieces
    }
}

/// Few, so that operations meet.
const MOST_BLOCKS: u64 = 5;
