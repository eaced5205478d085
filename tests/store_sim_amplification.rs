//! How much the store writes for each byte that hosts write: uniformly random 4 KiB overwrites at queue
//! depth 32, by how full the pool is. The table is in docs/benchmarks.md.
//!
//! The bounds hold what cleaning costs; `cargo test --test store_sim_amplification -- --nocapture`
//! prints the figures.

#![allow(clippy::unwrap_used)] // tests

use std::rc::Rc;

use futures::future::join_all;
use gemel::array::superblock::{LogKey, Uuid};
use gemel::array::{Array, FormatOptions};
use gemel::base::buffer::{AlignedBuf, BufferPool};
use gemel::base::checksum::Crc32;
use gemel::base::event::discard;
use gemel::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use gemel::disk::Disk;
use gemel::sim::disk::SimulatedDisk;
use gemel::sim::executor::Executor;
use gemel::sim::medium::SimulatedMedium;
use gemel::sim::random::Random;
use gemel::store::interface::{BlockStore, BlockWrite};
use gemel::store::map::lsm::TreeOptions;
use gemel::store::{Store, StoreOptions};

#[test]
fn random_overwrites_cost_no_more_than_they_should() {
    println!("{:>6} {:>8} {:>8} {:>8}", "full", "written", "moved", "maps");
    for (percent, most) in [(50, 1.6), (70, 2.5), (80, 3.0)] {
        let cost = measure(percent, SEGMENTS, StoreOptions::default());
        println!("{percent:>5}% {:>8.2} {:>8.2} {:>8.2}", cost.written, cost.moved, cost.checkpoints);
        assert!(cost.written <= most, "{percent} % full: {cost:?}");
    }
}

/// The same in a pool that keeps its map on its disks: `cargo test --test store_sim_amplification on_the_disks -- --ignored
/// --nocapture`. The pool is larger, for the segments that are the tables'.
#[test]
#[ignore = "takes a minute"]
fn a_map_on_the_disks_costs_little_more() {
    println!("{:>6} {:>8} {:>8} {:>8}", "full", "written", "moved", "maps");
    for (percent, most) in [(50, 1.8), (70, 2.7)] {
        let tree = TreeOptions { memtable_statements: 4096, ..TreeOptions::within(64 << 20) };
        let options = StoreOptions { map_memory_bytes: 0, tree, ..StoreOptions::default() };
        let cost = measure(percent, 1200, options);
        println!("{percent:>5}% {:>8.2} {:>8.2} {:>8.2}", cost.written, cost.moved, cost.checkpoints);
        assert!(cost.written <= most, "{percent} % full: {cost:?}");
    }
}

/// Blocks written to segments for each block received; of these, moved ones, and checkpoints and tables of the map.
#[derive(Debug)]
struct Cost {
    written: f64,
    moved: f64,
    checkpoints: f64,
}

fn measure(percent: u64, segments: u64, options: StoreOptions) -> Cost {
    let executor = Executor::new(percent);
    let world = executor.world("node");
    let medium = |n| SimulatedMedium::new(&format!("disk{n}"), (1 << 20) + segments * SEGMENT_BYTES, n);
    let open = |n| -> Rc<dyn Disk> { SimulatedDisk::open(&medium(n), world.clone()) };
    let disks: Vec<_> = (0..4).map(open).collect();
    let run = async {
        let format = FormatOptions { segment_bytes: Some(SEGMENT_BYTES), overwrite_foreign: false };
        Array::format(&disks, &format, Uuid([1; 16]), LogKey([2; 16])).await.unwrap();
        let buffers = BufferPool::new(1 << 20);
        let (array, _) = Array::open(disks, world.clone(), buffers, discard()).await.unwrap();
        let (store, _) = Store::open(array, world.clone(), options, discard()).await.unwrap();
        store.put_volume(VOLUME, Version::default(), b"volume").await.unwrap();
        let load = Load { blocks: store.usage().capacity_bytes / BLOCK_SIZE as u64 * percent / 100, store };
        load.fill().await;
        load.overwrite(3 * load.blocks).await; // until cleaning is in its stride
        let before = load.counts();
        load.overwrite(2 * load.blocks).await;
        let after = load.counts();
        let received = after[0] - before[0];
        let share = |index: usize| (after[index] - before[index]) / received;
        Cost { written: share(1) + share(3), moved: share(2), checkpoints: share(3) }
    };
    executor.block_on(run).unwrap()
}

struct Load {
    store: Store,
    blocks: u64,
}

impl Load {
    async fn fill(&self) {
        for first in (0..self.blocks).step_by(64) {
            self.write(0, (first..self.blocks.min(first + 64)).collect()).await;
        }
    }

    /// `count` overwrites, [`DEPTH`] at a time.
    async fn overwrite(&self, count: u64) {
        let host = async |host: u64| {
            let random = Random::new(host);
            for _ in 0..count / DEPTH {
                self.write(host, vec![random.below(self.blocks)]).await;
            }
        };
        join_all((1..=DEPTH).map(host)).await;
    }

    async fn write(&self, stamp: u64, addresses: Vec<u64>) {
        let write = |address: u64| {
            let mut data = AlignedBuf::zeroed(BLOCK_SIZE);
            data[..8].copy_from_slice(&stamp.to_le_bytes());
            data[8..16].copy_from_slice(&address.to_le_bytes());
            let data = data.freeze();
            BlockWrite::Data { address: BlockAddress(address), checksum: Crc32::of(&data), data }
        };
        let sequence = self.store.statistics().written_blocks.get() + 1;
        let version = Version { epoch: 1, sequence };
        self.store.append(VOLUME, version, addresses.into_iter().map(write).collect()).await.unwrap();
    }

    /// Received, written to the log, moved, and written for the map.
    fn counts(&self) -> [f64; 4] {
        let counts = self.store.statistics();
        let maps = counts.checkpoint_blocks.get() + counts.table_blocks.get();
        [counts.written_blocks.get(), counts.log_blocks.get(), counts.moved_blocks.get(), maps]
            .map(|count| count as f64)
    }
}

const VOLUME: VolumeId = VolumeId(1);
const DEPTH: u64 = 32;
const SEGMENTS: u64 = 160;
const SEGMENT_BYTES: u64 = 64 * BLOCK_SIZE as u64;
