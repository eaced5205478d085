//! Each operation by itself: what it changes, what it asks of the store, and how it fails.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, join, join_all, select};
use gemel::base::buffer::AlignedBuf;
use gemel::base::runtime::Runtime;
use gemel::base::units::{BlockAddress, Version};
use gemel::volume::device::{AllocationRun, BlockDevice, CompareOutcome, DeviceError};
use gemel::volume::statistics::OperationKind;

use crate::{Rig, VOLUME};

fn bytes(length: usize, salt: u8) -> Bytes {
    Bytes::from((0..length).map(|index| (index % 249) as u8 ^ salt | 1).collect::<Vec<_>>())
}

async fn read_all(rig: &Rig) -> Vec<u8> {
    let count = rig.volume.geometry().block_count;
    rig.volume.read(0, count).await.unwrap().concat()
}

#[test]
fn a_write_below_a_block_keeps_its_neighbours() {
    let rig = Rig::new(1, 512, 64);
    rig.run(async {
        let mut expected = bytes(64 * 512, 3).to_vec();
        rig.volume.write(0, vec![Bytes::from(expected.clone())]).await.unwrap();
        for (address, count) in [(1u64, 1usize), (7, 2), (8, 8), (15, 18), (63, 1), (0, 9)] {
            let data = bytes(count * 512, address as u8 + 77);
            rig.volume.write(address, vec![data.slice(..100), data.slice(100..)]).await.unwrap();
            let start = address as usize * 512;
            expected[start..start + data.len()].copy_from_slice(&data);
            assert_eq!(read_all(&rig).await, expected, "{count} blocks at {address}");
            let read = rig.volume.read(address, count as u64).await.unwrap();
            assert_eq!(read.concat(), data);
        }
    });
}

#[test]
fn whole_blocks_are_written_without_a_read_under_growing_versions() {
    let rig = Rig::new(2, 512, 1 << 20);
    rig.run(async {
        assert_eq!(rig.volume.latest_version(), Version { epoch: 3, sequence: 16 });
        let aligned = AlignedBuf::copy_of(&bytes(1 << 20, 1)).freeze();
        rig.volume.write(0, vec![aligned.clone()]).await.unwrap();
        rig.volume.write(8, vec![Bytes::from(aligned[..8192].to_vec())]).await.unwrap();
        rig.volume.unmap(16, 1 << 19).await.unwrap();
        assert_eq!((rig.store.read_count(), rig.store.append_count()), (0, 3));
        assert_eq!(rig.volume.latest_version(), Version { epoch: 3, sequence: 19 });
    });
}

#[test]
fn a_read_of_whole_blocks_is_the_stores_own_memory() {
    let rig = Rig::new(3, 512, 64);
    rig.run(async {
        rig.volume.write(0, vec![bytes(4096, 9)]).await.unwrap();
        let whole = rig.volume.read(0, 8).await.unwrap();
        let part = rig.volume.read(3, 2).await.unwrap();
        assert_eq!(part.len(), 1);
        assert_eq!(part[0].as_ptr(), whole[0][3 * 512..].as_ptr());
    });
}

#[test]
fn zeros_take_no_space_however_they_are_written() {
    let rig = Rig::new(4, 512, 80);
    rig.run(async {
        let fill = || rig.volume.write(0, vec![bytes(80 * 512, 5)]);
        let zeros = |count: usize| Bytes::from(vec![0; count * 512]);
        fill().await.unwrap();
        assert_eq!(rig.store.mapped_block_count(), 10);
        rig.volume.write(8, vec![zeros(16)]).await.unwrap();
        assert_eq!(rig.store.mapped_block_count(), 8);
        fill().await.unwrap();
        rig.volume.write_same(0, 80, zeros(1)).await.unwrap();
        assert_eq!(rig.store.mapped_block_count(), 0);
        fill().await.unwrap();
        // The first and the last block keep what lies outside the range.
        rig.volume.unmap(7, 66).await.unwrap();
        assert_eq!(rig.store.mapped_block_count(), 2);
        let mut expected = bytes(80 * 512, 5).to_vec();
        expected[7 * 512..73 * 512].fill(0);
        assert_eq!(read_all(&rig).await, expected);
        // Merging zeros into the rest of a block frees it too.
        rig.volume.unmap(0, 7).await.unwrap();
        rig.volume.write(73, vec![zeros(7)]).await.unwrap();
        assert_eq!(rig.store.mapped_block_count(), 0);
    });
}

#[test]
fn write_same_fills_large_ranges_in_bounded_pieces() {
    let rig = Rig::new(5, 512, 40_000);
    rig.run(async {
        let pattern = bytes(512, 4);
        rig.volume.write(0, vec![bytes(40_000 * 512, 6)]).await.unwrap();
        let before = rig.store.append_count();
        rig.volume.write_same(3, 39_990, pattern.clone()).await.unwrap();
        assert_eq!(rig.store.append_count() - before, 5, "4 MiB each");
        let mut expected = bytes(40_000 * 512, 6).to_vec();
        for block in 3..39_993 {
            expected[block * 512..(block + 1) * 512].copy_from_slice(&pattern);
        }
        assert_eq!(read_all(&rig).await, expected);
    });
}

#[test]
fn compare_and_write_says_where_it_differs() {
    let rig = Rig::new(6, 512, 64);
    rig.run(async {
        let before = bytes(64 * 512, 8);
        rig.volume.write(0, vec![before.clone()]).await.unwrap();
        for (address, count) in [(0usize, 1usize), (5, 1), (6, 12), (8, 16)] {
            let range = address * 512..(address + count) * 512;
            let present = Bytes::from(read_all(&rig).await[range.clone()].to_vec());
            let data = bytes(count * 512, 99);
            for offset in [0, 511, range.len() - 1] {
                let mut other = present.to_vec();
                other[offset] ^= 0x10;
                let outcome = rig.volume.compare_and_write(address as u64, other.into(), data.clone()).await;
                assert_eq!(outcome, Ok(CompareOutcome::Miscompare { offset: offset as u64 }));
            }
            let mut expected = read_all(&rig).await;
            assert_eq!(expected[range.clone()], present, "a miscompare writes nothing");
            let outcome = rig.volume.compare_and_write(address as u64, present, data.clone()).await;
            assert_eq!(outcome, Ok(CompareOutcome::Written));
            expected[range].copy_from_slice(&data);
            assert_eq!(read_all(&rig).await, expected);
        }
    });
}

#[test]
fn increments_by_compare_and_write_are_never_lost() {
    for seed in 0..50 {
        let rig = Rig::new(seed, 512, 8);
        let counter_block = |value: u64| Bytes::from([&value.to_le_bytes()[..], &[1; 504]].concat());
        let successes = Cell::new(0u64);
        rig.run(async {
            rig.volume.write(2, vec![counter_block(0)]).await.unwrap();
            let increment = async || {
                for _ in 0..10 {
                    let present = Bytes::from(rig.volume.read(2, 1).await.unwrap().concat());
                    let value = u64::from_le_bytes(present[..8].try_into().unwrap());
                    let outcome = rig.volume.compare_and_write(2, present, counter_block(value + 1)).await;
                    if outcome == Ok(CompareOutcome::Written) {
                        successes.set(successes.get() + 1);
                    }
                }
            };
            let disturb = async || {
                for round in 0..10 {
                    rig.volume.write(3, vec![bytes(2560, round)]).await.unwrap();
                    rig.volume.write(0, vec![bytes(1024, round)]).await.unwrap();
                }
            };
            join(join_all((0..4).map(|_| increment())), disturb()).await;
            let last = rig.volume.read(2, 1).await.unwrap().concat();
            assert_eq!(last[..], counter_block(successes.get())[..], "seed {seed}");
            assert!(successes.get() >= 10);
        });
    }
}

#[test]
fn allocation_is_told_in_logical_blocks_of_the_range() {
    let rig = Rig::new(7, 512, 800);
    rig.run(async {
        rig.volume.write(80, vec![bytes(4096 * 2, 1)]).await.unwrap();
        rig.volume.write(161, vec![bytes(512, 1)]).await.unwrap();
        let run = |address, count, mapped| AllocationRun { address, count, mapped };
        let runs = rig.volume.allocation(3, 797, 100).await.unwrap();
        let expected = [
            run(3, 77, false),
            run(80, 16, true),
            run(96, 64, false),
            run(160, 8, true),
            run(168, 632, false),
        ];
        assert_eq!(runs, expected);
        assert_eq!(rig.volume.allocation(84, 6, 100).await.unwrap(), [run(84, 6, true)]);
        assert_eq!(rig.volume.allocation(3, 797, 2).await.unwrap(), expected[..2]);
        assert_eq!(rig.volume.allocation(3, 0, 2).await.unwrap(), []);
    });
}

#[test]
fn nothing_happens_for_no_blocks_and_beyond_the_end() {
    let rig = Rig::new(8, 4096, 16);
    rig.run(async {
        assert_eq!(rig.volume.read(16, 0).await, Ok(vec![]));
        assert_eq!(rig.volume.write(16, vec![]).await, Ok(()));
        assert_eq!(rig.volume.unmap(0, 0).await, Ok(()));
        for (address, count) in
            [(16, 1), (15, 2), (17, 0), (u64::MAX, 2), (1, u64::MAX), (u64::MAX / 4096, 1)]
        {
            assert_eq!(rig.volume.read(address, count).await, Err(DeviceError::OutOfRange));
            assert_eq!(rig.volume.unmap(address, count).await, Err(DeviceError::OutOfRange));
            assert_eq!(rig.volume.allocation(address, count, 9).await, Err(DeviceError::OutOfRange));
        }
        assert_eq!((rig.store.read_count(), rig.store.append_count()), (0, 0));
    });
}

#[test]
fn errors_of_the_store_keep_their_meaning() {
    let rig = Rig::new(9, 512, 80);
    rig.run(async {
        rig.volume.write(0, vec![bytes(80 * 512, 5)]).await.unwrap();
        rig.store.spoil(VOLUME, BlockAddress(4));
        assert_eq!(rig.volume.read(0, 80).await, Err(DeviceError::Medium { address: 32 }));
        assert_eq!(rig.volume.read(35, 2).await, Err(DeviceError::Medium { address: 35 }));
        let partial = rig.volume.write(33, vec![bytes(512, 1)]).await;
        assert_eq!(partial, Err(DeviceError::Medium { address: 33 }));
        assert_eq!(rig.volume.write(32, vec![bytes(4096, 1)]).await, Ok(()), "a whole block heals");
        assert!(rig.volume.read(0, 80).await.is_ok());

        assert_eq!(rig.volume.unmap(0, 8).await, Ok(()));
        rig.store.limit_space(9);
        assert_eq!(rig.volume.write(1, vec![bytes(512, 1)]).await, Err(DeviceError::OutOfSpace));
        assert_eq!(rig.volume.write(9, vec![bytes(512, 1)]).await, Ok(()), "it has space");
        assert_eq!(rig.volume.unmap(0, 80).await, Ok(()));

        rig.store.set_offline(true);
        assert_eq!(rig.volume.read(0, 1).await, Err(DeviceError::Offline));
        assert_eq!(rig.volume.write(0, vec![bytes(4096, 1)]).await, Err(DeviceError::Offline));
        assert_eq!(rig.volume.flush().await, Err(DeviceError::Offline));
        rig.store.set_offline(false);
        assert_eq!(rig.volume.flush().await, Ok(()));
        rig.store.remove(VOLUME);
        assert_eq!(rig.volume.read(0, 1).await, Err(DeviceError::Gone));
        // Every lock is free again after all these failures.
        let everything = rig.volume.unmap(1, 78);
        assert_eq!(everything.await, Err(DeviceError::Gone));
    });
}

#[test]
fn an_abandoned_write_keeps_its_lock_and_is_drained() {
    for seed in 0..100 {
        let rig = Rig::new(seed, 512, 8);
        rig.run(async {
            let data = bytes(4096, 1);
            rig.volume.write(0, vec![data.clone()]).await.unwrap();
            let patch = bytes(512, 50);
            let write = Box::pin(rig.volume.write(1, vec![patch.clone()]));
            let pause = rig.world.sleep(Duration::from_micros(seed * 3));
            let outcome = select(write, pause).await;
            let completed = matches!(&outcome, Either::Left(_));
            drop(outcome);
            // A merge of other sectors: it sees the abandoned one whole, or will never.
            rig.volume.write(5, vec![bytes(512, 60)]).await.unwrap();
            let seen = read_all(&rig).await;
            rig.volume.close().await;
            assert_eq!(rig.volume.in_flight_count(), 0);
            let landed = seen[512..1024] == patch[..];
            assert!(landed || !completed);
            assert!(landed || seen[512..1024] == data[512..1024], "seed {seed}");
        });
    }
}

#[test]
fn closing_drains_and_then_everything_is_gone() {
    let rig = Rig::new(10, 512, 800);
    rig.run(async {
        let ended = Rc::new(Cell::new(0));
        for address in 0..20 {
            let (volume, ended) = (rig.volume.clone(), ended.clone());
            rig.world.spawn(Box::pin(async move {
                volume.write(address * 9, vec![bytes(512 * 9, 2)]).await.unwrap();
                ended.set(ended.get() + 1);
            }));
        }
        // Let them all start.
        while rig.volume.in_flight_count() < 20 {
            rig.world.sleep(Duration::from_nanos(1)).await;
        }
        let drained = async {
            rig.volume.close().await;
            ended.get()
        };
        let (in_time, refused) = join(drained, rig.volume.read(0, 1)).await;
        assert_eq!(refused, Err(DeviceError::Gone));
        // Each writer counts in the very poll in which its operation ends.
        assert_eq!(in_time, 20);
        assert_eq!(rig.volume.write(0, vec![bytes(512, 1)]).await, Err(DeviceError::Gone));
        assert_eq!(rig.volume.unmap(0, 1).await, Err(DeviceError::Gone));
        assert_eq!(rig.volume.flush().await, Err(DeviceError::Gone));
        assert_eq!(rig.volume.allocation(0, 1, 1).await, Err(DeviceError::Gone));
    });
}

#[test]
fn a_freeze_holds_every_completion() {
    let rig = Rig::new(11, 512, 80);
    rig.run(async {
        let frozen = rig.volume.freeze();
        let operations = join(rig.volume.write(0, vec![bytes(4096, 2)]), rig.volume.read(0, 8));
        let pause = rig.world.sleep(Duration::from_millis(10));
        let Either::Right((_, held)) = select(Box::pin(operations), pause).await else {
            panic!("completed while frozen")
        };
        assert_eq!(rig.volume.latest_version().sequence, 17, "the write has been appended");
        drop(frozen);
        let (written, read) = held.await;
        assert!(written.is_ok() && read.is_ok());
    });
}

#[test]
fn statistics_count_what_was_done() {
    let rig = Rig::new(12, 512, 80);
    rig.run(async {
        rig.volume.write(0, vec![bytes(4096, 2)]).await.unwrap();
        rig.volume.read(0, 3).await.unwrap();
        rig.volume.read(80, 1).await.unwrap_err();
        let statistics = rig.volume.statistics();
        let read = statistics.of(OperationKind::Read);
        assert_eq!((read.operations, read.errors, read.bytes), (2, 1, 3 * 512));
        let write = statistics.of(OperationKind::Write);
        assert_eq!((write.operations, write.errors, write.bytes), (1, 0, 4096));
        assert!(write.latency_ns.maximum() > 0 && write.latency_ns.maximum() < 1_000_000);
    });
}
