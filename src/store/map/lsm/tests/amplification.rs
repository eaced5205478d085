//! What merges write and lookups read, at random fill of a blank volume and random overwrites of a full one.

use std::rc::Rc;

use futures::FutureExt;

use super::super::{LsmMap, TableId, TreeOptions};
use super::MemoryStorage;
use crate::array::{Place, SegmentIndex, Slot};
use crate::base::checksum::Crc32;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::sim::random::Random;
use crate::store::map::{Lineage, Map, MapEntry, MapValue, References};

struct Nobody;

impl References for Nobody {
    fn gained(&mut self, _: Place) {}
    fn lost(&mut self, _: Place) {}
}

/// Writes `count` blocks in an order, and merges as they come. Returns the bytes of tables written a block.
fn write(tree: &mut LsmMap<MemoryStorage>, storage: &MemoryStorage, from: u64, order: &[u64]) -> f64 {
    let before = storage.written_blocks.get();
    for (sequence, address) in (from..).zip(order) {
        let row = sequence % (1 << 34);
        let place = Place::of_row(
            SegmentIndex((row / 28_672) as u32),
            Slot((row % 7) as u8),
            (row / 7 % 4096) as u32,
        );
        let checksum = Crc32((sequence as u32).wrapping_mul(0x9e37_79b9));
        let version = Version { epoch: 1, sequence };
        let entry = MapEntry { version, value: MapValue::Data { place, checksum } };
        tree.apply(VolumeId(1), BlockAddress(*address), entry, &[], &mut Nobody);
        if tree.memtables() > 0 {
            tree.freeze();
            while tree.flush().now_or_never().unwrap().unwrap().is_some() {}
            while tree.merge(|_, _| true).now_or_never().unwrap().unwrap().is_some() {}
            let kept: std::collections::BTreeSet<TableId> = tree.tables().into_iter().collect();
            storage.tables.borrow_mut().retain(|id, _| kept.contains(id));
        }
    }
    (storage.written_blocks.get() - before) as f64 * 4096.0 / order.len() as f64
}

fn measure(blocks: u64, memtable: usize) {
    let storage = MemoryStorage::default();
    let options = TreeOptions { memtable_statements: memtable, table_blocks: 64, ..TreeOptions::default() };
    let mut tree = LsmMap::new(storage.clone(), options);
    let random = Random::new(1);
    let mut order: Vec<u64> = (0..blocks).collect();
    random.shuffle(&mut order);
    let fill = write(&mut tree, &storage, 1, &order);
    let order: Vec<u64> = (0..2 * blocks).map(|_| random.below(blocks)).collect();
    let overwrite = write(&mut tree, &storage, 1 + blocks, &order);
    let usage = tree.usage();
    let lookups = 2000;
    let reads = usage.block_reads;
    let mut most = 0;
    for _ in 0..lookups {
        tree.tree.cache.replace(super::super::cache::Cache::new(0, usize::MAX));
        let before = tree.usage().block_reads;
        let address = BlockAddress(random.below(blocks));
        let looking =
            tree.look_up(&Lineage::newest(VolumeId(1)), address, 1, |_, shown| assert!(shown.is_some()));
        looking.now_or_never().unwrap().unwrap();
        most = most.max(tree.usage().block_reads - before);
    }
    let _ = (reads, Rc::new(()));
    let index: usize = {
        let state = tree.tree.state.borrow();
        let tables = state.runs.iter().flat_map(|run| run.tables.iter());
        tables.map(|table| table.index.borrow().as_ref().map_or(0, |index| index.memory())).sum()
    };
    let bytes = usage.table_blocks as f64 * 4096.0 / usage.rows as f64;
    println!(
        "{blocks} blocks, memtable {memtable}: {bytes:.1} bytes a row on disk, {:.2} rows a block; fill {fill:.0} bytes a \
         block ({:.1} %), overwrite {overwrite:.0} ({:.1} %); index {:.2} bits a block; {} runs; at most {most} block reads a \
         cold lookup",
        usage.rows as f64 / blocks as f64,
        fill / 40.96,
        overwrite / 40.96,
        index as f64 * 8.0 / blocks as f64,
        usage.runs,
    );
    assert!(overwrite < 410.0 && fill < 410.0 && most <= 3);
}

#[test]
fn random_writes_cost_little() {
    measure(50_000, 500);
}

/// `cargo test --release --lib what_random_writes_cost -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes"]
fn what_random_writes_cost() {
    for (blocks, memtable) in [(1 << 20, 1 << 14), (1 << 20, 1 << 11), (1 << 21, 1 << 9)] {
        measure(blocks, memtable);
    }
}
