//! The simulated disk: the [`Disk`] trait over a [`SimulatedMedium`], in virtual time.
//!
//! Operations start when they are called and complete in any order after random delays, on the
//! world's runtime: when the world crashes they vanish, whether or not somebody awaits them. A write
//! becomes visible at some moment before it completes. A handle from before the medium's crash is
//! dead: its operations fail as gone, those in flight never complete.
//! Left to `sim::medium`: what is stable, cached, damaged. Left to `sim::fault`: what goes wrong.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;

use super::fault::Effect;
use super::medium::{PAGE_BYTES, Page, ReadFault, SimulatedMedium, WriteTicket};
use crate::base::buffer::{AlignedBuf, is_block_aligned};
use crate::base::runtime::RuntimeHandle;
use crate::disk::{Disk, DiskError, DiskErrorKind, DiskFuture, DiskProperties, Operation, assert_transfer};

/// One opening of a [`SimulatedMedium`] by one world.
pub struct SimulatedDisk {
    handle: Handle,
    properties: DiskProperties,
}

impl SimulatedDisk {
    /// Opens `medium` in the world of `runtime`, with the delays of an ordinary SSD.
    #[must_use]
    pub fn open(medium: &Rc<SimulatedMedium>, runtime: RuntimeHandle) -> Rc<Self> {
        Self::open_with(medium, runtime, Latency::default())
    }

    /// Opens `medium` in the world of `runtime`.
    #[must_use]
    pub fn open_with(medium: &Rc<SimulatedMedium>, runtime: RuntimeHandle, latency: Latency) -> Rc<Self> {
        let properties = DiskProperties {
            path: medium.name().to_owned(),
            size_bytes: medium.size_bytes(),
            flush_group: medium.group().number(),
        };
        let generation = medium.generation();
        let handle = Handle { medium: medium.clone(), generation, runtime, latency };
        Rc::new(Self { handle, properties })
    }

    /// The medium under this handle.
    #[must_use]
    pub fn medium(&self) -> &Rc<SimulatedMedium> {
        &self.handle.medium
    }
}

impl Disk for SimulatedDisk {
    fn properties(&self) -> &DiskProperties {
        &self.properties
    }

    fn read(&self, offset: u64, mut buffer: AlignedBuf) -> DiskFuture<AlignedBuf> {
        let length = buffer.len() as u64;
        assert_transfer(&self.properties, offset, length);
        let handle = self.handle.clone();
        handle.medium.count(|counters| {
            counters.reads += 1;
            counters.bytes_read += length;
        });
        let context = handle.context(Operation::Read, offset, length);
        self.handle.start(async move {
            handle.travel(&context, &handle.latency.read).await?;
            let outcome = handle.medium.read(offset, &mut buffer);
            handle.travel_back(&context).await?;
            match outcome {
                Ok(()) => Ok(buffer),
                Err(ReadFault::Short) => {
                    handle.medium.count(|counters| counters.short_reads += 1);
                    Err(handle.error(&context, DiskErrorKind::Short))
                }
                Err(ReadFault::Unreadable) => {
                    handle.medium.count(|counters| counters.latent_errors += 1);
                    Err(handle.error(&context, DiskErrorKind::Io(libc::EIO)))
                }
            }
        })
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> DiskFuture<()> {
        assert!(data.iter().all(|piece| is_block_aligned(piece)), "pieces must be whole, aligned pages");
        let length = data.iter().map(|piece| piece.len() as u64).sum();
        assert_transfer(&self.properties, offset, length);
        let handle = self.handle.clone();
        handle.medium.count(|counters| {
            counters.writes += 1;
            counters.bytes_written += length;
        });
        let context = handle.context(Operation::Write, offset, length);
        let fate = handle.fate_of_write(&context, &data);
        self.handle.start(async move {
            let WriteFate { ticket, stall, error } = fate?;
            handle.delay(&handle.latency.write, stall).await;
            handle.check_present(&context)?;
            if let Some(ticket) = &ticket {
                handle.medium.apply_write(ticket);
            }
            handle.travel_back(&context).await?;
            if let Some(kind) = error {
                return Err(handle.error(&context, kind));
            }
            if let Some(ticket) = &ticket {
                handle.medium.complete_write(ticket);
            }
            Ok(())
        })
    }

    fn flush(&self) -> DiskFuture<()> {
        let handle = self.handle.clone();
        handle.medium.count(|counters| counters.flushes += 1);
        let context = handle.context(Operation::Flush, 0, 0);
        let members = handle.medium.group().members();
        let marks: Vec<_> = members.into_iter().map(|member| (member.completion_mark(), member)).collect();
        self.handle.start(async move {
            let strike = handle.medium.strike(Operation::Flush, &context.range());
            handle.delay(&handle.latency.flush, strike.stall).await;
            handle.check_present(&context)?;
            match strike.effect {
                Some(Effect::Fail(kind)) => {
                    marks.iter().for_each(|(mark, member)| member.flush_in_vain(*mark));
                    return Err(handle.error(&context, kind));
                }
                Some(Effect::Phantom) => handle.medium.count(|counters| counters.phantom_flushes += 1),
                _ => {
                    let present = marks.iter().filter(|(_, member)| !member.is_gone());
                    present.for_each(|(mark, member)| member.flush(*mark));
                }
            }
            handle.travel_back(&context).await
        })
    }

    fn discard(&self, offset: u64, length: u64) -> DiskFuture<()> {
        assert_transfer(&self.properties, offset, length);
        let handle = self.handle.clone();
        handle.medium.count(|counters| counters.discards += 1);
        let context = handle.context(Operation::Discard, offset, length);
        self.handle.start(async move {
            handle.travel(&context, &handle.latency.write).await?;
            handle.medium.discard(&context.range());
            handle.travel_back(&context).await
        })
    }
}

/// How long operations take: evenly between the two, and now and then ten times that.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Of a read.
    pub read: Range<Duration>,
    /// Of a write or a discard.
    pub write: Range<Duration>,
    /// Of a flush.
    pub flush: Range<Duration>,
}

impl Default for Latency {
    fn default() -> Self {
        let micros = |range: Range<u64>| Duration::from_micros(range.start)..Duration::from_micros(range.end);
        Self { read: micros(20..200), write: micros(20..200), flush: micros(50..500) }
    }
}

/// What an operation needs of its disk; it may outlive the [`SimulatedDisk`].
#[derive(Clone)]
struct Handle {
    medium: Rc<SimulatedMedium>,
    generation: u64,
    runtime: RuntimeHandle,
    latency: Latency,
}

impl Handle {
    /// Runs `operation` in the world, so that it completes also when nobody waits for it.
    fn start<T: 'static>(
        &self,
        operation: impl Future<Output = Result<T, DiskError>> + 'static,
    ) -> DiskFuture<T> {
        let (done, outcome) = oneshot::channel();
        let medium = self.medium.clone();
        let generation = medium.generation();
        self.runtime.spawn(Box::pin(async move {
            let result = operation.await;
            if medium.generation() == generation {
                // Nobody may be waiting any more; the operation is done all the same.
                let _ = done.send(result);
            }
        }));
        Box::pin(async move {
            match outcome.await {
                Ok(result) => result,
                // The world or the medium crashed: no answer ever comes.
                Err(oneshot::Canceled) => std::future::pending().await,
            }
        })
    }

    /// The way to the medium: time passes, and faults strike.
    async fn travel(&self, context: &Context, latency: &Range<Duration>) -> Result<(), DiskError> {
        let strike = self.medium.strike(context.operation, &context.range());
        self.delay(latency, strike.stall).await;
        self.check_present(context)?;
        match strike.effect {
            Some(Effect::Fail(kind)) => Err(self.error(context, kind)),
            _ => Ok(()),
        }
    }

    /// The way back: a little more time, so that effects show before they are complete.
    async fn travel_back(&self, context: &Context) -> Result<(), DiskError> {
        self.delay(&RETURN_LATENCY, Duration::ZERO).await;
        self.check_present(context)
    }

    async fn delay(&self, latency: &Range<Duration>, stall: Duration) {
        let random = &self.medium.random;
        let spread = u64::try_from((latency.end - latency.start).as_nanos()).unwrap_or(u64::MAX);
        let mut duration = latency.start + Duration::from_nanos(random.below(spread.max(1)));
        if random.chance(SLOW_PER_MILLION) {
            duration *= 10;
        }
        self.runtime.sleep(duration + stall).await;
        loop {
            let left = self.medium.stalled_until().since(self.runtime.now());
            if left.is_zero() {
                return;
            }
            self.medium.count(|counters| counters.stalls += 1);
            self.runtime.sleep(left).await;
        }
    }

    /// Registers a write with the medium as the faults will have it.
    fn fate_of_write(&self, context: &Context, data: &[Bytes]) -> Result<WriteFate, DiskError> {
        self.check_present(context)?;
        let medium = &self.medium;
        let strike = medium.strike(Operation::Write, &context.range());
        let mut fate = WriteFate { ticket: None, stall: strike.stall, error: None };
        if !medium.allocate(&context.range()) {
            fate.error = Some(DiskErrorKind::NoSpace);
            return Ok(fate);
        }
        let pages = data.iter().flat_map(|piece| piece.chunks(PAGE_BYTES as usize)).map(Page::of).collect();
        match strike.effect {
            Some(Effect::Phantom) => medium.count(|counters| counters.phantom_writes += 1),
            Some(Effect::Misdirect { to }) => {
                let last = medium.size_bytes() - context.length;
                medium.count(|counters| counters.misdirected_writes += 1);
                fate.ticket = Some(medium.submit_write(to.min(last), pages));
            }
            Some(Effect::Fail(kind)) => {
                // Some of it may have reached the medium; which part, a later crash decides.
                fate.ticket = medium.random.coin().then(|| medium.submit_write(context.offset, pages));
                fate.error = Some(kind);
            }
            Some(Effect::Stall(_)) | None => fate.ticket = Some(medium.submit_write(context.offset, pages)),
        }
        Ok(fate)
    }

    fn context(&self, operation: Operation, offset: u64, length: u64) -> Context {
        Context { operation, offset, length, absences: self.medium.absences() }
    }

    /// An operation lives only while its disk does: one that was in flight when the disk disappeared
    /// fails, though the disk may be back by then.
    fn check_present(&self, context: &Context) -> Result<(), DiskError> {
        let stayed = self.medium.absences() == context.absences;
        if !stayed || self.medium.is_gone() || self.generation != self.medium.generation() {
            return Err(self.error(context, DiskErrorKind::Gone));
        }
        Ok(())
    }

    /// The error of an operation, counted.
    fn error(&self, context: &Context, kind: DiskErrorKind) -> DiskError {
        self.medium.count(|counters| {
            match context.operation {
                Operation::Read => counters.read_errors += 1,
                Operation::Write => counters.write_errors += 1,
                Operation::Flush => counters.flush_errors += 1,
                Operation::Discard => counters.discard_errors += 1,
            }
            match kind {
                DiskErrorKind::Gone => counters.gone_errors += 1,
                DiskErrorKind::NoSpace => counters.no_space_errors += 1,
                DiskErrorKind::Io(_) | DiskErrorKind::Short => {}
            }
        });
        DiskError {
            kind,
            operation: context.operation,
            path: self.medium.name().to_owned(),
            offset: context.offset,
            length: context.length,
        }
    }
}

/// Which operation it is, for faults and errors.
struct Context {
    operation: Operation,
    offset: u64,
    length: u64,
    /// How often the disk had disappeared when the operation started.
    absences: u64,
}

impl Context {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.length
    }
}

/// What becomes of a write.
struct WriteFate {
    /// None when nothing reaches the medium.
    ticket: Option<WriteTicket>,
    stall: Duration,
    error: Option<DiskErrorKind>,
}

/// From the effect of an operation to its completion.
const RETURN_LATENCY: Range<Duration> = Duration::from_micros(1)..Duration::from_micros(20);

/// Operations in a million that take ten times as long.
const SLOW_PER_MILLION: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::runtime::{Instant, Runtime};
    use crate::sim::executor::{Executor, World};
    use crate::sim::fault::{Counters, Fault, Frequency};
    use crate::sim::medium::FlushGroup;

    const SIZE: u64 = 1 << 20;

    fn page(stamp: u8) -> Vec<Bytes> {
        vec![AlignedBuf::copy_of(&[stamp; 4096]).freeze()]
    }

    struct Rig {
        executor: Executor,
        world: Rc<World>,
        medium: Rc<SimulatedMedium>,
        disk: Rc<SimulatedDisk>,
    }

    impl Rig {
        fn new(seed: u64) -> Self {
            let executor = Executor::new(seed);
            let world = executor.world("node");
            let medium = SimulatedMedium::new("disk0", SIZE, seed);
            let disk = SimulatedDisk::open(&medium, world.clone());
            Self { executor, world, medium, disk }
        }

        fn run<T>(&self, operation: DiskFuture<T>) -> Result<T, DiskError> {
            self.executor.block_on(operation).unwrap()
        }

        fn write(&self, offset: u64, stamp: u8) {
            self.run(self.disk.write(offset, page(stamp))).unwrap();
        }

        fn read(&self, offset: u64) -> Result<AlignedBuf, DiskErrorKind> {
            self.run(self.disk.read(offset, AlignedBuf::zeroed(4096))).map_err(|error| error.kind)
        }

        fn crash(&mut self) {
            self.world.crash();
            self.medium.crash();
            self.world = self.executor.world("node");
            self.disk = SimulatedDisk::open(&self.medium, self.world.clone());
        }
    }

    #[test]
    fn flushed_writes_survive_and_others_tear_by_sector() {
        let mut met = Counters::default();
        for seed in 0..200 {
            let mut rig = Rig::new(seed);
            rig.write(0, 1);
            rig.write(4096, 1);
            rig.run(rig.disk.flush()).unwrap();
            rig.write(4096, 2);
            let in_flight = rig.disk.write(8192, page(3));
            rig.crash();
            drop(in_flight);
            let bytes = rig.medium.peek(0..12288);
            assert!(bytes[..4096].iter().all(|&byte| byte == 1), "seed {seed}");
            for (index, sector) in bytes.chunks(512).enumerate().skip(8) {
                let allowed = if index < 16 { [1, 2] } else { [0, 3] };
                assert!(allowed.contains(&sector[0]) && sector.iter().all(|&byte| byte == sector[0]));
            }
            let counters = rig.medium.counters();
            met.crash_kept_pages += counters.crash_kept_pages;
            met.crash_dropped_pages += counters.crash_dropped_pages;
            met.crash_torn_pages += counters.crash_torn_pages;
            assert_eq!(counters.crash_in_flight, 1);
        }
        assert!(met.crash_kept_pages > 20 && met.crash_dropped_pages > 20 && met.crash_torn_pages > 20);
    }

    #[test]
    fn a_flush_covers_only_what_completed_before_it_was_asked_for() {
        let mut lost = 0;
        for seed in 0..200 {
            let mut rig = Rig::new(seed);
            let write = rig.disk.write(0, page(7));
            let flush = rig.disk.flush();
            let (write, flush) = rig.executor.block_on(futures::future::join(write, flush)).unwrap();
            write.unwrap();
            flush.unwrap();
            rig.crash();
            lost += u32::from(rig.medium.peek(0..4096).iter().any(|&byte| byte != 7));
        }
        assert!(lost > 50, "a flush must not cover writes in flight: {lost} of 200 lost");
    }

    #[test]
    fn a_crash_never_undoes_a_flushed_write() {
        for seed in 0..200 {
            let mut rig = Rig::new(seed);
            let writes = (1..=4).map(|stamp| rig.disk.write(0, page(stamp)));
            rig.executor.block_on(futures::future::join_all(writes)).unwrap();
            rig.write(0, 9);
            rig.run(rig.disk.flush()).unwrap();
            assert_eq!(rig.medium.unflushed_pages(), 0);
            rig.crash();
            assert!(rig.medium.peek(0..4096).iter().all(|&byte| byte == 9), "seed {seed}");
        }
    }

    #[test]
    fn a_flush_of_one_disk_covers_its_group() {
        let executor = Executor::new(3);
        let world = executor.world("node");
        let group = FlushGroup::shared(42);
        let media: Vec<_> =
            (0..3).map(|index| SimulatedMedium::in_group("disk", SIZE, index, &group)).collect();
        let disks: Vec<_> = media.iter().map(|medium| SimulatedDisk::open(medium, world.clone())).collect();
        assert_eq!(disks[0].properties().flush_group, Some(42));
        let outcome = executor.block_on(async {
            futures::future::try_join_all(disks.iter().map(|disk| disk.write(0, page(5)))).await?;
            disks[1].flush().await
        });
        outcome.unwrap().unwrap();
        for medium in media {
            medium.crash();
            assert!(medium.peek(0..4096).iter().all(|&byte| byte == 5));
        }
    }

    #[test]
    fn failed_operations_say_so_and_strike_as_often_as_told() {
        let rig = Rig::new(1);
        rig.write(0, 1);
        let io = DiskErrorKind::Io(libc::EIO);
        rig.medium.inject(Fault::once(Operation::Read, Effect::Fail(io)).within(4096..8192));
        assert_eq!(rig.read(0).unwrap()[0], 1);
        assert_eq!(rig.read(4096).unwrap_err(), io);
        assert!(rig.read(4096).is_ok());
        rig.medium.inject(Fault::always(Operation::Write, Effect::Fail(io)));
        for _ in 0..3 {
            assert_eq!(rig.run(rig.disk.write(0, page(2))).unwrap_err().kind, io);
        }
        rig.medium.clear_faults();
        rig.medium.inject(Fault::once(Operation::Flush, Effect::Fail(io)));
        assert_eq!(rig.run(rig.disk.flush()).unwrap_err().kind, io);
        rig.run(rig.disk.flush()).unwrap();
        let counters = rig.medium.counters();
        assert_eq!((counters.read_errors, counters.write_errors, counters.flush_errors), (1, 3, 1));
    }

    #[test]
    fn what_a_failed_flush_lost_no_later_flush_brings_back() {
        let lost = (0..100).filter(|&seed| {
            let mut rig = Rig::new(seed);
            rig.write(0, 1);
            let fault = Effect::Fail(DiskErrorKind::Io(libc::EIO));
            rig.medium.inject(Fault::once(Operation::Flush, fault));
            rig.run(rig.disk.flush()).unwrap_err();
            rig.run(rig.disk.flush()).unwrap();
            rig.crash();
            rig.medium.peek(0..4096) != vec![1; 4096]
        });
        assert!((30..70).contains(&lost.count()));
    }

    #[test]
    fn damage_is_met_by_reads_and_healed_by_rewriting() {
        let mut rig = Rig::new(1);
        rig.write(0, 1);
        rig.write(4096, 1);
        rig.run(rig.disk.flush()).unwrap();
        rig.medium.make_unreadable(0..1);
        rig.medium.rot(4096..4097);
        rig.crash();
        assert_eq!(rig.read(0).unwrap_err(), DiskErrorKind::Io(libc::EIO));
        let rotten = rig.read(4096).unwrap();
        assert_eq!(rotten.iter().map(|byte| (byte ^ 1).count_ones()).sum::<u32>(), 1);
        rig.write(0, 2);
        rig.write(4096, 2);
        assert!(rig.read(0).unwrap().iter().all(|&byte| byte == 2));
        assert!(rig.read(4096).unwrap().iter().all(|&byte| byte == 2));
        assert_eq!((rig.medium.counters().latent_errors, rig.medium.counters().rotten_reads), (1, 1));
    }

    #[test]
    fn misdirected_and_phantom_writes_are_acknowledged() {
        let rig = Rig::new(1);
        rig.medium.inject(Fault::once(Operation::Write, Effect::Misdirect { to: 8192 }));
        rig.write(0, 1);
        assert_eq!((rig.read(0).unwrap()[0], rig.read(8192).unwrap()[0]), (0, 1));
        rig.medium.inject(Fault::once(Operation::Write, Effect::Phantom));
        rig.write(0, 2);
        assert_eq!(rig.read(0).unwrap()[0], 0);
        rig.write(0, 3);
        assert_eq!(rig.read(0).unwrap()[0], 3);
        let counters = rig.medium.counters();
        assert_eq!((counters.misdirected_writes, counters.phantom_writes), (1, 1));
    }

    #[test]
    fn a_phantom_flush_keeps_nothing_and_chance_strikes_some() {
        let rig = Rig::new(1);
        let phantom = Fault::once(Operation::Flush, Effect::Phantom);
        rig.medium.inject(Fault { frequency: Frequency::Chance { per_million: 500_000 }, ..phantom });
        let kept = (0..100u64).filter(|&round| {
            rig.write(0, 1 + u8::try_from(round).unwrap());
            rig.run(rig.disk.flush()).unwrap();
            rig.medium.unflushed_pages() == 0
        });
        let kept = kept.count() as u64;
        assert!((30..70).contains(&kept));
        assert_eq!(rig.medium.counters().phantom_flushes, 100 - kept);
        let until = Instant(rig.executor.now().0 + 1_000_000_000);
        rig.medium.stall_until(until);
        rig.write(0, 1);
        assert!(rig.executor.now() >= until);
    }

    #[test]
    fn a_disk_stalls_disappears_fills_up_and_is_truncated() {
        let rig = Rig::new(1);
        rig.write(0, 1);
        let start = rig.executor.now();
        rig.medium.inject(Fault::once(Operation::Read, Effect::Stall(Duration::from_secs(30))));
        rig.read(0).unwrap();
        assert!(rig.executor.now().since(start) >= Duration::from_secs(30));

        let in_flight = rig.disk.read(0, AlignedBuf::zeroed(4096));
        rig.medium.disappear(false);
        assert_eq!(rig.run(rig.disk.flush()).unwrap_err().kind, DiskErrorKind::Gone);
        rig.medium.reappear();
        assert_eq!(rig.run(in_flight).unwrap_err().kind, DiskErrorKind::Gone);
        assert_eq!(rig.read(0).unwrap()[0], 1);

        rig.medium.limit_space(Some(8192));
        rig.write(4096, 2);
        assert_eq!(rig.run(rig.disk.write(8192, page(3))).unwrap_err().kind, DiskErrorKind::NoSpace);
        rig.write(4096, 3);
        rig.run(rig.disk.discard(0, 4096)).unwrap();
        rig.write(8192, 3);

        rig.medium.truncate(4096);
        assert_eq!(rig.read(4096).unwrap_err(), DiskErrorKind::Short);
        assert!(rig.read(0).is_ok());
        let counters = rig.medium.counters();
        assert_eq!((counters.stalls, counters.short_reads, counters.no_space_errors), (1, 1, 1));
        assert_eq!(counters.gone_errors, 2);
    }

    #[test]
    fn operations_complete_in_any_order_and_equal_seeds_in_equal_order() {
        let run = |seed| {
            let rig = Rig::new(seed);
            let order = Rc::new(std::cell::RefCell::new(Vec::new()));
            for index in 0..16u64 {
                let (write, order) = (rig.disk.write(index * 4096, page(1)), order.clone());
                rig.world.spawn(Box::pin(async move {
                    write.await.unwrap();
                    order.borrow_mut().push(index);
                }));
            }
            assert!(rig.executor.run_until_idle(Duration::from_secs(1)).unwrap());
            (order.take(), rig.executor.trace_hash())
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5).0, run(6).0);
        assert_ne!(run(5).0, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn a_handle_from_before_the_crash_is_dead() {
        let mut rig = Rig::new(1);
        let (old, survivor) = (rig.disk.clone(), rig.executor.world("survivor"));
        let shared = SimulatedDisk::open(&rig.medium, survivor);
        let in_flight = shared.flush();
        rig.crash();
        assert!(rig.executor.block_on(in_flight).is_err(), "never completes");
        assert_eq!(rig.run(shared.flush()).unwrap_err().kind, DiskErrorKind::Gone);
        assert!(rig.executor.block_on(old.flush()).is_err(), "its world is gone");
        rig.run(rig.disk.flush()).unwrap();
    }
}
