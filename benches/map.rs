//! The map of a large pool at a part of its full size: what inserts and lookups cost, what it takes in memory and on
//! disk, and how long it is opened.
//!
//! `make bench-map PART=64` fills the map of a volume of 16 TiB / PART (4 KiB blocks), once in sequence and once in random
//! order, overwrites a fourth of it at random, and looks blocks up. Tables are files in a temporary folder (TMPDIR
//! says where), PART = 64 takes some 3 GB there. Nothing is timed but the map: no data is written.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a benchmark

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::future::{Future, ready};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use gemel::array::{Geometry, Place, SegmentIndex, Slot};
use gemel::base::checksum::Crc32;
use gemel::base::codec::Reader;
use gemel::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use gemel::store::interface::StoreError;
use gemel::store::map::lsm::{LsmMap, TableId, TableStorage, TreeOptions};
use gemel::store::map::{Lineage, Map, MapEntry, MapValue, References, SavePosition};

fn main() {
    let arguments: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let part = arguments.first().copied().unwrap_or(512).max(1);
    let memory = arguments.get(1).copied().unwrap_or(512) << 20;
    let blocks = FULL_BLOCKS / part;
    println!("{blocks} blocks: 1/{part} of 16 TiB; map_memory {} MiB", memory >> 20);
    for is_random in [false, true] {
        run(blocks, memory, is_random);
    }
}

fn run(blocks: u64, memory: u64, is_random: bool) {
    let files = Files::new();
    let options = TreeOptions { table_blocks: 10_752, ..TreeOptions::within(memory) };
    let mut tree = LsmMap::new(files.clone(), options.clone());
    let mut sequence = 0;
    println!("-- filled {}", if is_random { "at random" } else { "in sequence" });
    // An odd factor goes through all blocks of a power of two in an order that looks like chance.
    let scatter = |n: u64| if is_random { n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks } else { n };
    fill(&mut tree, &files, ("fill", blocks), &mut sequence, scatter);
    let mut random = 1u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 20) % blocks
    };
    fill(&mut tree, &files, ("random overwrites", blocks / 4), &mut sequence, |_| next());
    look_up(&tree, &mut next);
    let usage = tree.usage();
    println!(
        "memory: indexes {} MiB ({:.2} bits a block), cache {} MiB, known space {} MiB; resident {} MiB, the process at \
         most {} MiB",
        usage.index_bytes >> 20,
        usage.index_bytes as f64 * 8.0 / blocks as f64,
        usage.cache_bytes >> 20,
        usage.space_bytes >> 20,
        status("VmRSS"),
        status("VmHWM"),
    );
    println!(
        "disk: {} runs, {} tables, {:.1} bytes a row, {:.3} rows a block",
        usage.runs,
        usage.tables,
        usage.table_blocks as f64 * BLOCK_SIZE as f64 / usage.rows as f64,
        usage.rows as f64 / blocks as f64
    );
    reopen(tree, &files, &options, &mut sequence, &mut next);
}

/// Writes so many blocks, which `address` says, and lets merges keep up.
fn fill(
    tree: &mut LsmMap<Files>,
    files: &Files,
    (what, count): (&str, u64),
    sequence: &mut u64,
    mut address: impl FnMut(u64) -> u64,
) {
    let (began, before) = (Instant::now(), files.written.get());
    let mut slowest = 0.0f64;
    for number in 0..count {
        insert(tree, sequence, address(number));
        if tree.memtables() > 0 {
            let turn = Instant::now();
            tree.freeze();
            while tree.flush().now_or_never().unwrap().unwrap().is_some() {}
            slowest = slowest.max(turn.elapsed().as_secs_f64());
            while tree.merge(|_, _| true).now_or_never().unwrap().unwrap().is_some() {
                files.forget(tree.take_retired());
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let bytes = (files.written.get() - before) as f64 / count as f64;
    println!(
        "{what}: {:.2} million a second, {bytes:.0} bytes of tables a block ({:.1} % of 4 KiB); the longest flush {slowest:.2} s",
        count as f64 / seconds / 1e6,
        bytes / 40.96,
    );
}

fn insert(tree: &mut LsmMap<Files>, sequence: &mut u64, address: u64) {
    *sequence += 1;
    // Where a log over seven data disks would put it.
    let row = *sequence;
    let place =
        Place::of_row(SegmentIndex((row / 28_672) as u32), Slot((row % 7) as u8), (row / 7 % 4096) as u32);
    let checksum = Crc32((row as u32).wrapping_mul(0x9e37_79b9));
    let version = Version { epoch: 1, sequence: *sequence };
    let entry = MapEntry { version, value: MapValue::Data { place, checksum } };
    tree.apply(VOLUME, BlockAddress(address), entry, &[], &mut Nobody);
}

fn look_up(tree: &LsmMap<Files>, next: &mut impl FnMut() -> u64) {
    let lineage = Lineage::newest(VOLUME);
    let (mut most, began, before) = (0, Instant::now(), tree.usage().block_reads);
    for _ in 0..LOOKUPS {
        let reads = tree.usage().block_reads;
        let found = |_, shown: Option<_>| assert!(shown.is_some());
        tree.look_up(&lineage, BlockAddress(next()), 1, found).now_or_never().unwrap().unwrap();
        most = most.max(tree.usage().block_reads - reads);
    }
    println!(
        "random lookups: {:.1} us each, {:.2} block reads each, at most {most}",
        began.elapsed().as_secs_f64() * 1e6 / LOOKUPS as f64,
        (tree.usage().block_reads - before) as f64 / LOOKUPS as f64
    );
}

/// What a restart does: the manifest, and a memtable's worth of the log.
fn reopen(
    mut tree: LsmMap<Files>,
    files: &Files,
    options: &TreeOptions,
    sequence: &mut u64,
    next: &mut impl FnMut() -> u64,
) {
    tree.freeze();
    while tree.flush().now_or_never().unwrap().unwrap().is_some() {}
    let (mut records, mut from) = (Vec::new(), Some(SavePosition::START));
    while let Some(position) = from {
        from = tree.save(position, |_, _| false, &mut records);
    }
    drop(tree);
    let began = Instant::now();
    let mut tree = LsmMap::new(files.clone(), options.clone());
    let geometry = Geometry { disk_count: 8, rows: 4096, segment_count: 1 << 20 };
    let mut reader = Reader::new(&records);
    while reader.remaining() > 0 {
        reader.u8().unwrap(); // the tag
        assert_eq!(tree.load(&mut reader, 4, &geometry), Ok(true));
    }
    let loaded = began.elapsed();
    let statements = options.memtable_statements;
    (0..statements).for_each(|_| insert(&mut tree, sequence, next()));
    println!(
        "open: manifest of {} KiB in {:.1} ms, {statements} statements of the log in {:.0} ms",
        records.len() >> 10,
        loaded.as_secs_f64() * 1e3,
        (began.elapsed() - loaded).as_secs_f64() * 1e3
    );
    look_up(&tree, next);
}

/// MiB that /proc says of this process.
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

struct Nobody;

impl References for Nobody {
    fn gained(&mut self, _: Place) {}
    fn lost(&mut self, _: Place) {}
}

/// Tables as files.
#[derive(Clone)]
struct Files {
    folder: Rc<tempfile::TempDir>,
    open: Rc<RefCell<HashMap<TableId, Rc<File>>>>,
    written: Rc<Cell<u64>>,
}

impl Files {
    fn new() -> Self {
        let folder = Rc::new(tempfile::tempdir().unwrap());
        Self { folder, open: Rc::default(), written: Rc::default() }
    }

    fn path(&self, table: TableId) -> PathBuf {
        self.folder.path().join(table.0.to_string())
    }

    fn forget(&self, tables: Vec<TableId>) {
        for table in BTreeSet::from_iter(tables) {
            self.open.borrow_mut().remove(&table);
            std::fs::remove_file(self.path(table)).unwrap();
        }
    }
}

impl TableStorage for Files {
    fn read(
        &self,
        table: TableId,
        first: u32,
        count: u32,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + 'static {
        let file = self.open.borrow()[&table].clone();
        let mut bytes = vec![0; count as usize * BLOCK_SIZE];
        file.read_exact_at(&mut bytes, u64::from(first) * BLOCK_SIZE as u64).unwrap();
        ready(Ok(Bytes::from(bytes)))
    }

    fn append(
        &self,
        table: TableId,
        blocks: Bytes,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let mut open = self.open.borrow_mut();
        let create = || {
            let mut options = File::options();
            Rc::new(options.read(true).append(true).create_new(true).open(self.path(table)).unwrap())
        };
        let mut file = &**open.entry(table).or_insert_with(create);
        file.write_all(&blocks).unwrap();
        self.written.set(self.written.get() + blocks.len() as u64);
        ready(Ok(()))
    }

    fn abandon(&self, table: TableId) {
        if self.open.borrow_mut().remove(&table).is_some() {
            std::fs::remove_file(self.path(table)).unwrap();
        }
    }

    fn finish(&self, _: TableId) -> impl Future<Output = Result<(), StoreError>> + 'static {
        ready(Ok(()))
    }
}

const VOLUME: VolumeId = VolumeId(1);
/// 16 TiB of 4 KiB blocks.
const FULL_BLOCKS: u64 = 1 << 32;
const LOOKUPS: u64 = 100_000;
