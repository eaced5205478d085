//! A node's store in the simulator: clients that write, read and unmap, crashes, a disk that
//! misbehaves, restarts; and an oracle that knows what every block may be.
//!
//! One run is a few *lives* of one pool. Each ends in a power cut or a clean stop; the next one opens
//! the pool again and checks every block. All faults of a run strike one disk, so within the promise
//! of RAID 5 no client ever sees an error.

mod oracle;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, join_all, select};

use self::oracle::Oracle;
use super::disk::SimulatedDisk;
use super::executor::{Executor, World};
use super::fault::{Effect, Fault, Frequency};
use super::medium::SimulatedMedium;
use super::random::Random;
use crate::array::superblock::Uuid;
use crate::array::{Array, FormatOptions};
use crate::base::buffer::{AlignedBuf, BufferPool};
use crate::base::checksum::Crc32;
use crate::base::event::Event;
use crate::base::runtime::Runtime;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::disk::{Disk, DiskErrorKind, Operation};
use crate::store::interface::{BlockStore, BlockWrite};
use crate::store::{Store, StoreOptions};

/// What a run did, for totals and for proof that rare paths were met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub struct Report {
    pub writes: u64,
    pub reads: u64,
    pub crashes: u64,
    pub clean_stops: u64,
    pub disks_lost: u64,
    pub rebuilt_blocks: u64,
    pub moved_blocks: u64,
    pub checkpoints: u64,
    pub kept_unproven: u64,
    pub discarded_batches: u64,
    pub trace_hash: u64,
}

/// Runs one seed.
///
/// # Errors
/// What went wrong, with the seed.
pub fn run(seed: u64) -> Result<Report, String> {
    let executor = Executor::new(seed);
    let random = Random::new(seed ^ 0x5eed);
    let pool = PoolUnderTest::new(&random);
    let limit = executor_sleep(&executor, LONGEST_RUN);
    let result = executor.block_on(async {
        match select(Box::pin(pool.live_and_die(&executor, &random)), limit).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err(format!("hangs while {}", pool.phase.get())),
        }
    });
    let mut report = match result {
        Ok(Ok(report)) => report,
        Ok(Err(problem)) => return Err(format!("seed {seed}: {problem}")),
        Err(stuck) => return Err(format!("seed {seed}: {stuck}")),
    };
    report.trace_hash = executor.trace_hash();
    Ok(report)
}

/// The media of a pool, and the oracle: what survives crashes.
struct PoolUnderTest {
    media: Vec<Rc<SimulatedMedium>>,
    /// The one disk that faults strike.
    victim: usize,
    blocks: u64,
    oracle: Rc<RefCell<Oracle>>,
    report: Cell<Report>,
    errors: Rc<RefCell<Option<String>>>,
    /// What the run is doing, for the message when it hangs.
    phase: Cell<&'static str>,
}

impl PoolUnderTest {
    fn new(random: &Random) -> Self {
        let disks = 3 + random.index(3);
        let segments = 40 + random.below(24);
        let bytes = (1 << 20) + segments * SEGMENT_BYTES;
        let media =
            (0..disks).map(|n| SimulatedMedium::new(&format!("disk{n}"), bytes, random.next())).collect();
        // Eight tenths of what the pool offers, over two volumes.
        let offered = (segments - 14) * SEGMENT_ROWS * (disks as u64 - 1) * 84 / 100;
        let blocks = offered * (1 + random.below(8)) / 10 / VOLUMES;
        Self {
            media,
            victim: random.index(disks),
            blocks,
            oracle: Rc::new(RefCell::new(Oracle::new(VOLUMES, blocks))),
            report: Cell::new(Report::default()),
            errors: Rc::default(),
            phase: Cell::new("formatting"),
        }
    }

    async fn live_and_die(&self, executor: &Executor, random: &Random) -> Result<Report, String> {
        let world = executor.world("format");
        let disks = self.disks(&world);
        let options = FormatOptions { segment_bytes: Some(SEGMENT_BYTES), overwrite_foreign: false };
        Array::format(&disks, &options, Uuid([7; 16])).await.map_err(|error| error.to_string())?;
        let lives = 2 + random.below(5);
        for life in 1..=lives {
            let world = executor.world("node");
            self.phase.set("opening the pool");
            let store = self.open(&world, life as u32).await?;
            self.phase.set("checking every block");
            self.check_everything(&store).await?;
            if life == lives {
                break;
            }
            self.phase.set("serving");
            self.inject_faults(random);
            let clients = self.start_clients(&world, &store, random, life as u32);
            let lifetime = Duration::from_micros(1000 + random.below(400_000));
            match select(clients, executor_sleep(executor, lifetime)).await {
                Either::Left(_) if random.coin() => {
                    self.phase.set("closing the pool");
                    store.close().await;
                    self.note(|report| report.clean_stops += 1);
                }
                _ => self.note(|report| report.crashes += 1),
            }
            self.take_statistics(&store);
            world.crash();
            self.media.iter().for_each(|medium| medium.crash());
            if let Some(error) = self.errors.borrow_mut().take() {
                return Err(error);
            }
        }
        Ok(self.report.get())
    }

    fn disks(&self, world: &Rc<World>) -> Vec<Rc<dyn Disk>> {
        let open = |medium| -> Rc<dyn Disk> { SimulatedDisk::open(medium, world.clone()) };
        self.media.iter().map(open).collect()
    }

    async fn open(&self, world: &Rc<World>, epoch: u32) -> Result<Store, String> {
        let events: Rc<RefCell<Vec<Event>>> = Rc::default();
        let sink = {
            let events = events.clone();
            Rc::new(move |event| events.borrow_mut().push(event))
        };
        let buffers = BufferPool::new(1 << 20);
        let opened = Array::open(self.disks(world), world.clone(), buffers, sink.clone()).await;
        let (array, _) = opened.map_err(|error| format!("open: {error}"))?;
        let options = StoreOptions { checkpoint_log_bytes: 2 << 20, ..StoreOptions::default() };
        let (store, recovery) = Store::open(array, world.clone(), options, sink)
            .await
            .map_err(|error| format!("recover: {error}; events {:?}", events.borrow()))?;
        self.note(|report| {
            report.kept_unproven += recovery.kept_unproven;
            report.discarded_batches += recovery.discarded_batches;
        });
        for volume in 0..VOLUMES as u32 {
            let version = Version { epoch, sequence: 0 };
            let put = store.put_volume(VolumeId(volume), version, b"volume").await;
            put.map_err(|error| format!("volume: {error}"))?;
        }
        Ok(store)
    }

    /// Faults of the one disk, for the life that begins.
    fn inject_faults(&self, random: &Random) {
        let medium = &self.media[self.victim];
        medium.clear_faults();
        let chance = Frequency::Chance { per_million: 3000 };
        let fail = |operation, effect| Fault { operation, range: None, frequency: chance, effect };
        let anywhere = random.below(medium.size_bytes() / 4096) * 4096;
        match random.below(9) {
            0 => medium.inject(fail(Operation::Write, Effect::Fail(DiskErrorKind::Io(5)))),
            1 => medium.inject(fail(Operation::Flush, Effect::Fail(DiskErrorKind::Io(5)))),
            2 => medium.inject(fail(Operation::Read, Effect::Fail(DiskErrorKind::Io(5)))),
            3 => medium.inject(fail(Operation::Write, Effect::Phantom)),
            4 => medium.inject(fail(Operation::Flush, Effect::Phantom)),
            5 => medium.inject(fail(Operation::Write, Effect::Misdirect { to: anywhere })),
            6 => medium.inject(fail(Operation::Write, Effect::Stall(Duration::from_secs(30)))),
            7 => (0..4).for_each(|_| {
                let at = random.below(medium.size_bytes() / 512) * 512;
                if random.coin() { medium.rot(at..at + 512) } else { medium.make_unreadable(at..at + 512) }
            }),
            _ => {}
        }
    }

    async fn check_everything(&self, store: &Store) -> Result<(), String> {
        for volume in 0..VOLUMES {
            for address in 0..self.blocks {
                let floor = self.oracle.borrow().floor(volume, address);
                let data = store.read(VolumeId(volume as u32), BlockAddress(address), 1).await;
                let data = data.map_err(|error| format!("check of {volume}/{address}: {error}"))?;
                self.oracle.borrow_mut().check(volume, address, floor, &data.concat())?;
                self.oracle.borrow_mut().settle_for_good(volume, address);
            }
        }
        Ok(())
    }

    /// Clients that work until each has done its share; the first error ends the run.
    fn start_clients(
        &self,
        world: &Rc<World>,
        store: &Store,
        random: &Random,
        epoch: u32,
    ) -> futures::future::LocalBoxFuture<'static, ()> {
        let clients = (0..1 + random.index(6)).map(|_| Client {
            store: store.clone(),
            oracle: self.oracle.clone(),
            random: random.fork(),
            blocks: self.blocks,
            epoch,
            errors: self.errors.clone(),
        });
        let done: Vec<_> = clients
            .map(|client| {
                let (sender, receiver) = futures::channel::oneshot::channel::<()>();
                world.spawn(Box::pin(async move {
                    if let Err(error) = client.work().await {
                        client.errors.borrow_mut().get_or_insert(error);
                    }
                    let _ = sender.send(());
                }));
                receiver
            })
            .collect();
        Box::pin(async move { drop(join_all(done).await) })
    }

    fn take_statistics(&self, store: &Store) {
        let statistics = store.statistics();
        let lost = store.array().geometry().disk_count - store.array().live().width();
        self.note(|report| {
            report.rebuilt_blocks += statistics.rebuilt_blocks.get();
            report.moved_blocks += statistics.moved_blocks.get();
            report.checkpoints += statistics.checkpoints.get();
            report.disks_lost += u64::from(lost > 0);
            report.writes += statistics.written_blocks.get();
            report.reads += statistics.read_blocks.get();
        });
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.report.get();
        change(&mut report);
        self.report.set(report);
    }
}

struct Client {
    store: Store,
    oracle: Rc<RefCell<Oracle>>,
    random: Random,
    blocks: u64,
    epoch: u32,
    errors: Rc<RefCell<Option<String>>>,
}

impl Client {
    async fn work(&self) -> Result<(), String> {
        for _ in 0..20 + self.random.below(400) {
            let volume = self.random.below(VOLUMES);
            let address = self.random.below(self.blocks);
            let count = (1 + self.random.below(if self.random.chance(50_000) { 64 } else { 6 }))
                .min(self.blocks - address);
            match self.random.below(10) {
                0 => self.unmap(volume, address, count).await?,
                1..=3 => self.read(volume, address, count).await?,
                _ => self.write(volume, address, count).await?,
            }
        }
        Ok(())
    }

    async fn write(&self, volume: u64, address: u64, count: u64) -> Result<(), String> {
        let sequence = self.oracle.borrow_mut().submit(volume, address, count, false);
        let block = |n: u64| {
            let mut data = AlignedBuf::zeroed(BLOCK_SIZE);
            Oracle::stamp(&mut data, volume, address + n, sequence);
            let data: Bytes = data.freeze();
            BlockWrite::Data { address: BlockAddress(address + n), checksum: Crc32::of(&data), data }
        };
        self.append(volume, address, count, sequence, (0..count).map(block).collect()).await
    }

    async fn unmap(&self, volume: u64, address: u64, count: u64) -> Result<(), String> {
        let sequence = self.oracle.borrow_mut().submit(volume, address, count, true);
        let hole = BlockWrite::Hole { address: BlockAddress(address), count };
        self.append(volume, address, count, sequence, vec![hole]).await
    }

    async fn append(
        &self,
        volume: u64,
        address: u64,
        count: u64,
        sequence: u64,
        writes: Vec<BlockWrite>,
    ) -> Result<(), String> {
        let version = Version { epoch: self.epoch, sequence };
        let done = self.store.append(VolumeId(volume as u32), version, writes).await;
        done.map_err(|error| format!("write of {volume}/{address}: {error}"))?;
        self.oracle.borrow_mut().acknowledge(volume, address, count, sequence);
        Ok(())
    }

    async fn read(&self, volume: u64, address: u64, count: u64) -> Result<(), String> {
        let floors: Vec<u64> = (0..count).map(|n| self.oracle.borrow().floor(volume, address + n)).collect();
        let data = self.store.read(VolumeId(volume as u32), BlockAddress(address), count).await;
        let data = data.map_err(|error| format!("read of {volume}/{address}: {error}"))?.concat();
        for ((n, block), floor) in (0..).zip(data.chunks(BLOCK_SIZE)).zip(floors) {
            self.oracle.borrow_mut().check(volume, address + n, floor, block)?;
        }
        Ok(())
    }
}

/// A sleep that belongs to no node, so that it outlives crashes.
fn executor_sleep(executor: &Executor, duration: Duration) -> futures::future::LocalBoxFuture<'static, ()> {
    executor.world("clock").sleep(duration)
}

/// Virtual time after which a run counts as hanging.
const LONGEST_RUN: Duration = Duration::from_secs(600);
const SEGMENT_ROWS: u64 = 16;
const SEGMENT_BYTES: u64 = SEGMENT_ROWS * BLOCK_SIZE as u64;
const VOLUMES: u64 = 2;
