//! The parts that every I/O passes through, each alone: PDU codec, checksums, parity, map, batch headers.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gemel::array::superblock::{LogKey, Uuid};
use gemel::array::{MemberSet, Place, SegmentIndex, parity};
use gemel::base::checksum::{Crc32, Crc32c};
use gemel::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use gemel::iscsi::pdu::framing::append_pdu;
use gemel::iscsi::pdu::{Cdb, Digests, InitiatorTaskTag, RawPdu, ScsiCommand, SerialNumber, TaskAttribute};
use gemel::store::batch::{BatchHeader, BatchKind, Content, Entry, SegmentUse};
use gemel::store::map::{Lineage, Map, MapEntry, MapValue, MemoryMap, References};

fn checksums(criterion: &mut Criterion) {
    let block = vec![0x5au8; BLOCK_SIZE];
    let mut group = criterion.benchmark_group("checksum of 4 KiB");
    group.throughput(Throughput::Bytes(BLOCK_SIZE as u64));
    group.bench_function("CRC-32", |bencher| bencher.iter(|| Crc32::of(black_box(&block))));
    group.bench_function("CRC-32C", |bencher| bencher.iter(|| Crc32c::of(black_box(&block))));
}

fn xor(criterion: &mut Criterion) {
    let (source, mut target) = (vec![1u8; 64 << 10], vec![2u8; 64 << 10]);
    let mut group = criterion.benchmark_group("parity");
    group.throughput(Throughput::Bytes(source.len() as u64));
    group.bench_function("xor of 64 KiB", |bencher| {
        bencher.iter(|| parity::xor_into(black_box(&mut target), black_box(&source)));
    });
}

fn codec(criterion: &mut Criterion) {
    let command = ScsiCommand {
        is_immediate: false,
        is_final: true,
        reads: false,
        writes: true,
        attribute: TaskAttribute::Simple,
        lun: [0; 8],
        initiator_task_tag: InitiatorTaskTag(7),
        expected_data_transfer_length: 4096,
        bidirectional_read_length: None,
        command_sn: SerialNumber(9),
        expected_status_sn: SerialNumber(10),
        cdb: Cdb::new(&[0x8a; 16]),
    };
    let data = vec![0x5au8; 4096];
    for (name, digests) in [("", Digests::default()), (" with digests", Digests { header: true, data: true })]
    {
        let mut wire = Vec::new();
        append_pdu(&mut wire, command.emit(), &[], &data, digests);
        let mut group = criterion.benchmark_group(format!("4 KiB write command{name}"));
        group.bench_function("emit", |bencher| {
            let mut out = Vec::with_capacity(wire.len());
            bencher.iter(|| {
                out.clear();
                append_pdu(&mut out, black_box(&command).emit(), &[], &data, digests);
            });
        });
        group.bench_function("parse", |bencher| {
            bencher.iter(|| match RawPdu::split(black_box(&wire), digests, 8192) {
                Ok(Some(raw)) => raw.from_initiator(),
                other => panic!("{other:?}"),
            });
        });
    }
}

/// Counts no references.
struct Nobody;

impl References for Nobody {
    fn gained(&mut self, _: Place) {}
    fn lost(&mut self, _: Place) {}
}

/// Blocks of a volume of 4 GiB.
const MAP_BLOCKS: u64 = 1 << 20;

fn map(criterion: &mut Criterion) {
    let volume = VolumeId(1);
    let entry = |sequence: u64| MapEntry {
        version: Version { epoch: 1, sequence },
        value: MapValue::Data { place: Place::from_bits(sequence), checksum: Crc32(sequence as u32) },
    };
    let mut map = MemoryMap::default();
    for address in 0..MAP_BLOCKS {
        map.apply(volume, BlockAddress(address), entry(address), &[], &mut Nobody);
    }
    let (mut state, mut sequence) = (1u64, MAP_BLOCKS);
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        BlockAddress((state >> 33) % MAP_BLOCKS)
    };
    let mut group = criterion.benchmark_group("map of 1 Mi blocks");
    group.bench_function("random lookup", |bencher| {
        let lineage = Lineage::newest(volume);
        bencher.iter(|| drop(map.look_up(&lineage, random(), 1, |_, found| _ = black_box(found))));
    });
    group.bench_function("random overwrite", |bencher| {
        bencher.iter(|| {
            sequence += 1;
            map.apply(volume, random(), entry(sequence), &[], &mut Nobody);
        });
    });
    let snapshot = [entry(sequence).version];
    group.bench_function("random overwrite under a snapshot", |bencher| {
        bencher.iter(|| {
            sequence += 1;
            map.apply(volume, random(), entry(sequence), &snapshot, &mut Nobody);
        });
    });
}

fn batches(criterion: &mut Criterion) {
    for blocks in [1u64, 32, 256] {
        let header = batch_of(blocks);
        let bytes = header.encode().0;
        let mut group = criterion.benchmark_group(format!("header of a batch of {blocks}"));
        group.bench_function("encode", |bencher| {
            bencher.iter_batched_ref(|| (), |()| black_box(&header).encode(), BatchSize::SmallInput);
        });
        group.bench_function("decode", |bencher| bencher.iter(|| BatchHeader::decode(black_box(&bytes))));
    }
}

fn batch_of(blocks: u64) -> BatchHeader {
    let entry = |number| Entry {
        volume: VolumeId(1),
        address: BlockAddress(number * 97),
        version: Version { epoch: 1, sequence: number },
        content: Content::Data { checksum: Crc32(number as u32) },
    };
    BatchHeader {
        kind: BatchKind::Log,
        pool: Uuid([1; 16]),
        key: LogKey([2; 16]),
        incarnation: 1,
        number: 1,
        place: SegmentUse { segment: SegmentIndex(1), generation: 1 },
        first_row: 0,
        height: blocks as u32,
        members: MemberSet::first(4),
        previous: Crc32(1),
        acknowledged_through: 0,
        heads: Default::default(),
        entries: (0..blocks).map(entry).collect(),
    }
}

criterion_group!(parts, checksums, xor, codec, map, batches);
criterion_main!(parts);
