//! One suite of what a `Disk` promises, run against io_uring, threads and the simulated disk.
//!
//! With `GEMEL_TEST_BLOCK_DEVICE` set to a block device of 8 MiB whose contents may be destroyed (a
//! loop device), also against that device.
//!
//! What only real disks have (locks, files, engines) is in `disk_files.rs`; what only the simulated
//! disk has (crashes, faults) is tested beside it.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use gemel::base::buffer::AlignedBuf;
use gemel::disk::file::{Allocation, create};
use gemel::disk::{Disk, Engine, EnginePreference, OpenOptions, open};
use gemel::sim::disk::SimulatedDisk;
use gemel::sim::executor::Executor;
use gemel::sim::medium::SimulatedMedium;
use gemel::sim::random::Random;

const SIZE: u64 = 8 << 20;
const BLOCK: u64 = 4096;

/// A disk of `SIZE` bytes and what runs it.
enum Rig {
    Real { engine: Engine, disk: Rc<dyn Disk>, _directory: Option<tempfile::TempDir> },
    Simulated { executor: Executor, disk: Rc<dyn Disk> },
}

impl Rig {
    fn real(preference: EnginePreference, allocation: Allocation) -> Option<Self> {
        let engine = match Engine::start(preference) {
            Ok(engine) => engine,
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let directory = tempfile::tempdir().unwrap();
        let path: PathBuf = directory.path().join("disk");
        create(&path, SIZE, allocation).unwrap();
        let disk = open(&engine, &path, &OpenOptions::default()).unwrap();
        Some(Self::Real { engine, disk, _directory: Some(directory) })
    }

    /// The block device that the environment names, zeroed. Other tests wait for it.
    fn block_device(preference: EnginePreference) -> Option<Self> {
        let path = PathBuf::from(std::env::var_os("GEMEL_TEST_BLOCK_DEVICE")?);
        let engine = Engine::start(preference).ok()?;
        let patience = OpenOptions { lock_patience: Duration::from_secs(60) };
        let disk = open(&engine, &path, &patience).unwrap();
        let zeros = AlignedBuf::zeroed(usize::try_from(SIZE).unwrap()).freeze();
        engine.block_on(disk.write(0, vec![zeros])).unwrap();
        Some(Self::Real { engine, disk, _directory: None })
    }

    fn simulated() -> Self {
        let executor = Executor::new(1);
        let medium = SimulatedMedium::new("simulated", SIZE, 1);
        let disk = SimulatedDisk::open(&medium, executor.world("node"));
        Self::Simulated { executor, disk }
    }

    /// Each kind in turn; one is gone before the next is made.
    fn all() -> impl Iterator<Item = Self> {
        let engines = [EnginePreference::Uring, EnginePreference::Threads].into_iter();
        let real = engines.flat_map(|preference| {
            let files = [Allocation::Sparse, Allocation::Preallocated].into_iter();
            let files = files.filter_map(move |allocation| Self::real(preference, allocation));
            files.chain(std::iter::once_with(move || Self::block_device(preference)).flatten())
        });
        std::iter::once_with(Self::simulated).chain(real)
    }

    fn disk(&self) -> &Rc<dyn Disk> {
        match self {
            Self::Real { disk, .. } | Self::Simulated { disk, .. } => disk,
        }
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Real { engine, .. } => engine.block_on(future),
            Self::Simulated { executor, .. } => executor.block_on(future).unwrap(),
        }
    }

    /// Runs until nothing is in flight, without anybody awaiting it.
    fn settle(&self) {
        match self {
            Self::Real { engine, .. } => {
                engine.submit();
                while engine.in_flight() > 0 {
                    engine.park();
                    engine.reap();
                    engine.submit();
                }
            }
            Self::Simulated { executor, .. } => {
                assert!(executor.run_until_idle(Duration::from_secs(60)).unwrap());
            }
        }
    }
}

fn filled(blocks: u64, stamp: u64) -> Bytes {
    let mut buffer = AlignedBuf::zeroed(usize::try_from(blocks * BLOCK).unwrap());
    for (index, word) in buffer.chunks_mut(8).enumerate() {
        word.copy_from_slice(&(stamp.wrapping_mul(0x9e37) ^ (index as u64 % 512)).to_le_bytes());
    }
    buffer.freeze()
}

#[test]
fn new_disks_read_as_zeros() {
    for rig in Rig::all() {
        assert_eq!(rig.disk().properties().size_bytes, SIZE);
        let buffer = AlignedBuf::copy_of(&[7; 8192]);
        let buffer = rig.run(rig.disk().read(SIZE - 8192, buffer)).unwrap();
        assert!(buffer.len() == 8192 && buffer.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn thousands_of_concurrent_operations_each_see_their_own_data() {
    const OPERATIONS: u64 = 4000;
    const DEPTH: usize = 96;
    for rig in Rig::all() {
        let random = Random::new(42);
        let disk = rig.disk();
        let mut stamps: BTreeMap<u64, u64> = BTreeMap::new();
        let mut busy: BTreeMap<u64, u64> = BTreeMap::new();
        let verified = Cell::new(0);
        let mut running = FuturesUnordered::new();
        rig.run(async {
            for stamp in 1..=OPERATIONS {
                // Operations in flight at the same time don't overlap: their order is free.
                let (first, count) = loop {
                    let (first, count) = (random.below(SIZE / BLOCK - 16), 1 + random.below(16));
                    let free = busy
                        .iter()
                        .all(|(&start, &length)| start + length <= first || first + count <= start);
                    if free {
                        break (first, count);
                    }
                };
                busy.insert(first, count);
                let write = random.below(10) < 6;
                let expected: Vec<_> =
                    (first..first + count).map(|block| stamps.get(&block).copied()).collect();
                if write {
                    stamps.extend((first..first + count).map(|block| (block, stamp)));
                }
                let (disk, verified) = (disk.clone(), &verified);
                running.push(async move {
                    if write {
                        let pieces = (0..count).map(|_| filled(1, stamp)).collect();
                        disk.write(first * BLOCK, pieces).await.unwrap();
                    } else {
                        let length = usize::try_from(count * BLOCK).unwrap();
                        let data = disk.read(first * BLOCK, AlignedBuf::zeroed(length)).await.unwrap();
                        for (block, expected) in data.chunks(4096).zip(&expected) {
                            match expected {
                                Some(stamp) => assert_eq!(block, &filled(1, *stamp)[..]),
                                None => assert!(block.iter().all(|&byte| byte == 0)),
                            }
                            verified.set(verified.get() + 1);
                        }
                    }
                    if stamp % 100 == 0 {
                        disk.flush().await.unwrap();
                    }
                    first
                });
                if running.len() == DEPTH {
                    let first = running.next().await.unwrap();
                    busy.remove(&first);
                }
            }
            while running.next().await.is_some() {}
            let all = disk.read(0, AlignedBuf::zeroed(usize::try_from(SIZE).unwrap())).await.unwrap();
            for (&block, &stamp) in &stamps {
                let at = usize::try_from(block * BLOCK).unwrap();
                assert_eq!(&all[at..at + 4096], &filled(1, stamp)[..], "block {block}");
            }
        });
        assert!(verified.get() > 5000);
    }
}

#[test]
fn pieces_are_written_one_after_the_other() {
    for rig in Rig::all() {
        let memory = filled(64, 1);
        // Adjacent, apart, repeated, and of different lengths.
        let pieces = vec![
            memory.slice(0..4096),
            memory.slice(4096..8192),
            memory.slice(20480..28672),
            memory.slice(0..4096),
            memory.slice(8192..262144),
        ];
        let expected: Vec<u8> = pieces.concat();
        rig.run(rig.disk().write(12288, pieces)).unwrap();
        let read = rig.run(rig.disk().read(12288, AlignedBuf::zeroed(expected.len()))).unwrap();
        assert_eq!(&read[..], &expected[..]);
    }
}

#[test]
fn a_write_may_have_more_pieces_than_a_system_call() {
    for rig in Rig::all() {
        let memory = filled(2, 5);
        let pieces: Vec<_> =
            (0..1500).map(|index| memory.slice(4096 * (index % 2)..).slice(..4096)).rev().collect();
        let expected: Vec<u8> = pieces.concat();
        rig.run(rig.disk().write(0, pieces)).unwrap();
        let read = rig.run(rig.disk().read(0, AlignedBuf::zeroed(expected.len()))).unwrap();
        assert!(read[..] == expected[..]);
    }
}

#[test]
fn a_dropped_future_does_not_take_its_operation_back() {
    for rig in Rig::all() {
        for block in 0..200 {
            drop(rig.disk().write(block * BLOCK, vec![filled(1, block)]));
            drop(rig.disk().read(block * BLOCK, AlignedBuf::zeroed(4096)));
        }
        drop(rig.disk().flush());
        rig.settle();
        let read = rig.run(rig.disk().read(0, AlignedBuf::zeroed(200 * 4096))).unwrap();
        for (block, data) in read.chunks(4096).enumerate() {
            assert_eq!(data, &filled(1, block as u64)[..]);
        }
    }
}

#[test]
fn a_discard_touches_only_its_range() {
    for rig in Rig::all() {
        rig.run(rig.disk().write(0, vec![filled(96, 3)])).unwrap();
        rig.run(rig.disk().discard(32 * BLOCK, 32 * BLOCK)).unwrap();
        let read = rig.run(rig.disk().read(0, AlignedBuf::zeroed(96 * 4096))).unwrap();
        let expected = filled(96, 3);
        let range = 32 * 4096..64 * 4096;
        assert_eq!(read[..range.start], expected[..range.start]);
        assert_eq!(read[range.end..], expected[range.end..]);
        rig.run(rig.disk().write(40 * BLOCK, vec![filled(1, 9)])).unwrap();
        let read = rig.run(rig.disk().read(40 * BLOCK, AlignedBuf::zeroed(4096))).unwrap();
        assert_eq!(&read[..], &filled(1, 9)[..]);
    }
}

#[test]
fn what_is_not_whole_blocks_inside_the_disk_is_the_callers_bug() {
    for rig in Rig::all() {
        let disk = rig.disk();
        let panics = |operation: &dyn Fn()| catch_unwind(AssertUnwindSafe(operation)).is_err();
        assert!(panics(&|| drop(disk.read(512, AlignedBuf::zeroed(4096)))), "offset");
        assert!(panics(&|| drop(disk.read(0, AlignedBuf::zeroed(100)))), "length");
        assert!(panics(&|| drop(disk.write(0, vec![filled(1, 1).slice(512..)]))), "memory");
        assert!(panics(&|| drop(disk.write(0, vec![]))), "nothing");
        assert!(panics(&|| drop(disk.read(SIZE, AlignedBuf::zeroed(4096)))), "end");
        assert!(panics(&|| drop(disk.write(SIZE - BLOCK, vec![filled(2, 1)]))), "end");
        assert!(panics(&|| drop(disk.discard(u64::MAX - 4095, 4096))), "overflow");
    }
}
