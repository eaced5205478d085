//! What is encoded is decoded again, and damage is noticed.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::base::checksum::Crc32;
use crate::base::units::{BLOCK_SIZE, Version};
use crate::mirror::coverage::{Coverage, END};
use crate::mirror::message::ReplicaFailure;
use crate::store::interface::{
    BlockWrite, ChangedRun, Changes, MAX_SNAPSHOT_RECORD_BYTES, SnapshotEntry, StoreError,
};

fn version(random: &mut ChaCha8Rng) -> Version {
    Version { epoch: random.random(), sequence: random.random() }
}

fn writes(random: &mut ChaCha8Rng) -> Vec<BlockWrite> {
    match random.random_range(0..10) {
        0 => {
            let record = vec![random.random(); random.random_range(0..=MAX_SNAPSHOT_RECORD_BYTES)];
            return vec![BlockWrite::Snapshot { record: record.into() }];
        }
        1 => return vec![BlockWrite::SnapshotDropped { snapshot: version(random) }],
        _ => {}
    }
    let mut address = random.random_range(0..100u64);
    let mut next = |random: &mut ChaCha8Rng| {
        let (first, count) = (BlockAddress(address), random.random_range(1..50u64));
        if random.random() {
            address += 1 + random.random_range(0..3u64);
            let mut data = vec![0; BLOCK_SIZE];
            random.fill_bytes(&mut data);
            let data = Bytes::from(data);
            return BlockWrite::Data { address: first, checksum: Crc32::of(&data), data };
        }
        address += count;
        BlockWrite::Hole { address: first, count }
    };
    (0..random.random_range(1..6)).map(|_| next(random)).collect()
}

fn to_replica(random: &mut ChaCha8Rng) -> ToReplica {
    let volume = VolumeId(random.random());
    let stream = StreamId { epoch: random.random(), number: random.random() };
    let address = BlockAddress(random.random());
    match random.random_range(0..12) {
        8 => {
            let mut sequence = 0;
            let mut entry = |random: &mut ChaCha8Rng| {
                sequence += random.random_range(1..9u64);
                let record = vec![random.random(); random.random_range(0..80usize)];
                SnapshotEntry { version: Version { epoch: 3, sequence }, record: record.into() }
            };
            let list = (0..random.random_range(0..5)).map(|_| entry(random)).collect();
            let after = random.random::<bool>().then_some(Version { epoch: 2, sequence: 90 });
            let through = random.random::<bool>().then_some(Version { epoch: 3, sequence: 90 });
            ToReplica::Snapshots { volume, stream, after, through, list }
        }
        9 => {
            let (number, version) = (random.random(), version(random));
            ToReplica::History { volume, stream, number, version, writes: writes(random) }
        }
        10 => ToReplica::Fetch { volume, stream, number: random.random(), address },
        11 => ToReplica::Mend { volume, stream, version: version(random), writes: writes(random) },
        0 => ToReplica::Begin { volume, stream },
        1 => ToReplica::Join { volume, stream },
        2 => {
            let (version, previous) = (version(random), version(random));
            ToReplica::Write { volume, stream, version, previous, writes: writes(random) }
        }
        3 => {
            let (number, version) = (random.random(), version(random));
            ToReplica::Copy { volume, stream, number, version, writes: writes(random) }
        }
        4 => {
            let (since, at) = (version(random), random.random::<bool>().then(|| version(random)));
            ToReplica::Report { volume, stream, since, at, from: address }
        }
        5 => ToReplica::Passed { volume, stream, cursor: address },
        6 => ToReplica::Finish { volume, stream },
        _ => ToReplica::Settled { volume, stream, version: version(random) },
    }
}

fn from_replica(random: &mut ChaCha8Rng) -> FromReplica {
    let volume = VolumeId(random.random());
    let stream = StreamId { epoch: random.random(), number: random.random() };
    let from = BlockAddress(random.random());
    match random.random_range(0..10) {
        7 => {
            let coverage = Coverage::through(version(random)).raised(from, version(random));
            FromReplica::Reconciled { volume, stream, coverage }
        }
        8 => FromReplica::Damaged { volume, stream, address: from },
        9 => {
            let mut block = vec![0; BLOCK_SIZE];
            random.fill_bytes(&mut block);
            let block = random.random::<bool>().then(|| Bytes::from(block));
            FromReplica::Fetched { volume, stream, number: random.random(), block }
        }
        0 => {
            let partial = Coverage::through(version(random)).raised(from, version(random));
            let coverage = if random.random() { Coverage::Whole } else { partial };
            FromReplica::Ready { volume, stream, durable: version(random), coverage }
        }
        1 => FromReplica::Durable { volume, stream, version: version(random) },
        2 => FromReplica::Copied { volume, stream, number: random.random() },
        3 => {
            let run = |random: &mut ChaCha8Rng| ChangedRun {
                address: BlockAddress(random.random()),
                count: random.random(),
                version: version(random),
                is_mapped: random.random(),
            };
            let runs = (0..random.random_range(0..5)).map(|_| run(random)).collect();
            let changes = Changes { runs, next: random.random::<bool>().then_some(END) };
            FromReplica::Reported { volume, stream, from, changes }
        }
        4 => FromReplica::Whole { volume, stream },
        5 => FromReplica::Fenced { volume, stream, promised: random.random() },
        _ => {
            let reasons = [
                StoreError::OutOfSpace.into(),
                StoreError::Medium { volume, address: from }.into(),
                StoreError::Offline.into(),
                StoreError::NoSuchVolume(volume).into(),
                ReplicaFailure::Gap { expected: version(random), found: version(random) },
                ReplicaFailure::Records,
                ReplicaFailure::Protocol,
                StoreError::NoSuchSnapshot { volume, snapshot: version(random) }.into(),
                StoreError::TooManySnapshots(volume).into(),
                StoreError::HasClones { volume, clone: VolumeId(random.random()) }.into(),
                StoreError::LineageTooLong(volume).into(),
            ];
            let reason = reasons[random.random_range(0..reasons.len())].clone();
            FromReplica::Failed { volume, stream, reason }
        }
    }
}

#[test]
fn what_is_encoded_is_decoded_again() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..3000 {
        let message = to_replica(&mut random);
        let bytes = Bytes::from(message.encode().concat());
        let decoded = ToReplica::decode(&bytes).unwrap();
        assert_eq!(format!("{decoded:?}"), format!("{message:?}"));
        if let ToReplica::Write { writes, .. } = &decoded {
            let within = bytes.as_ptr_range();
            let is_slice = |write: &BlockWrite| match write {
                BlockWrite::Data { data, .. } => within.contains(&data.as_ptr()),
                _ => true,
            };
            assert!(writes.iter().all(is_slice), "no copy");
        }
        let answer = from_replica(&mut random);
        assert_eq!(FromReplica::decode(&answer.encode()), Ok(answer));
    }
}

#[test]
fn nothing_that_is_damaged_panics_or_passes_for_data() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..3000 {
        let mut bytes = to_replica(&mut random).encode().concat();
        let cut = random.random_range(0..bytes.len());
        assert!(ToReplica::decode(&Bytes::copy_from_slice(&bytes[..cut])).is_err());
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        if let Ok(
            ToReplica::Write { writes, .. }
            | ToReplica::Copy { writes, .. }
            | ToReplica::History { writes, .. },
        ) = ToReplica::decode(&Bytes::from(bytes.clone()))
        {
            for write in writes {
                if let BlockWrite::Data { data, checksum, .. } = write {
                    assert_eq!(Crc32::of(&data), checksum);
                }
            }
        }
        bytes.truncate(at);
        let _ = FromReplica::decode(&Bytes::from(bytes));
        let mut answer = from_replica(&mut random).encode().to_vec();
        let at = random.random_range(0..answer.len());
        answer[at] ^= 1 << random.random_range(0..8);
        let _ = FromReplica::decode(&Bytes::from(answer.clone()));
        answer.push(0);
        let _ = FromReplica::decode(&Bytes::from(answer));
    }
    for other in [1, 3] {
        let message = Bytes::copy_from_slice(&[other, 1, 0, 0]);
        assert_eq!(ToReplica::decode(&message).err(), Some(WireError::UnknownFormat(other)));
    }
}
