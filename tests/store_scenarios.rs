//! Failures by name: those of one node, each played out on simulated disks.

#![allow(clippy::unwrap_used)] // the rig below is part of the tests

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use gemel::array::superblock::{COPY_OFFSETS, LogKey, SUPERBLOCK_BYTES, Uuid};
use gemel::array::{Array, ArrayError, DiskState, FormatOptions, OpenError, SegmentIndex, Slot};
use gemel::base::buffer::{AlignedBuf, BufferPool};
use gemel::base::checksum::Crc32;
use gemel::base::event::Event;
use gemel::base::runtime::{Runtime, yield_now};
use gemel::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use gemel::disk::{Disk, DiskErrorKind, Operation};
use gemel::sim::disk::SimulatedDisk;
use gemel::sim::executor::{Executor, World};
use gemel::sim::fault::{Effect, Fault};
use gemel::sim::medium::SimulatedMedium;
use gemel::store::batch::{BatchHeader, BatchKind};
use gemel::store::interface::{BlockStore, BlockWrite, SnapshotStore, StoreError};
use gemel::store::segments::SegmentState;
use gemel::store::space::SpaceRule;
use gemel::store::{PoolError, Store, StoreOptions};

#[test]
fn scenario_19_a_disk_is_dead_and_the_power_fails_in_mid_batch() {
    for seed in 1..20 {
        let rig = Rig::new(seed, 4);
        let store = rig.open();
        rig.write(&store, 0, 200, 1);
        rig.media[2].inject(Fault::always(Operation::Write, EIO));
        rig.write(&store, 100, 100, 2);
        assert_eq!(store.array().status()[2].state, DiskState::Failed);
        // A third round is on its way when the power fails.
        let in_flight = rig.append(&store, 0, 64, 3);
        rig.wait(Duration::from_micros(100 + seed * 20));
        drop(in_flight);
        let store = rig.restart(store);
        for address in 0..200 {
            let round = rig.read_round(&store, address).unwrap();
            let acknowledged = if address < 100 { 1 } else { 2 };
            assert!(round == acknowledged || (address < 64 && round == 3), "seed {seed}, block {address}");
        }
    }
}

#[test]
fn a_checkpoint_in_fresh_segments_is_rebuilt_onto_a_new_disk_after_a_restart() {
    let mut rig = Rig::new(44, 4);
    let store = rig.open();
    rig.write(&store, 0, 40, 1);
    rig.block_on(store.close());
    let store = rig.restart(store);
    // The segment table in the checkpoint is older than the segments that the checkpoint itself took.
    rig.block_on(store.array().fail(Slot(1), "somebody wanted it")).unwrap();
    rig.replace(&store, 1, SimulatedMedium::new("new", DISK_BYTES, 4499));
    rig.cut_power();
    drop(store);
    let store = rig.open_without(&[0]).expect("any one disk may fail once the new one is rebuilt");
    assert_eq!((0..40).map(|address| rig.read_round(&store, address).unwrap()).max(), Some(1));
}

#[test]
fn a_checkpoint_from_before_a_disk_was_replaced_survives_the_loss_of_another_one() {
    for lost in [0, 2] {
        let mut rig = Rig::new(45, 3);
        let store = rig.open();
        rig.block_on(store.array().fail(Slot(1), "somebody wanted it")).unwrap();
        rig.write(&store, 0, 40, 1);
        rig.block_on(store.renew_checkpoint()).unwrap(); // over the two others
        let medium = SimulatedMedium::new("new", DISK_BYTES, 4599);
        medium.rot(1 << 20..DISK_BYTES); // it was used for something else
        rig.replace(&store, 1, medium);
        rig.cut_power();
        drop(store);
        let store = rig.open_without(&[lost]).expect("any one disk may fail once the new one is rebuilt");
        assert_eq!((0..40).map(|address| rig.read_round(&store, address).unwrap()).max(), Some(1));
    }
}

#[test]
fn a_disk_that_joins_while_another_one_is_rebuilt_in_its_place_gets_everything() {
    for rebuilt in 5..25 {
        let mut rig = Rig::new(48, 4);
        let store = rig.open();
        (0..24).for_each(|part| rig.write(&store, part * 40, 40, 1));
        rig.block_on(store.array().fail(Slot(1), "somebody wanted it")).unwrap();
        rig.join(&store, 1, &SimulatedMedium::new("first", DISK_BYTES, 4898));
        // Rebuilding stands still in a read. What is written meanwhile counts on the first new disk.
        rig.media[0].inject(Fault::always(Operation::Read, Effect::Stall(Duration::from_millis(200))));
        let writes = (24..48).map(|part| rig.append(&store, part * 40, 40, 1));
        rig.block_on(futures::future::try_join_all(writes)).unwrap();
        rig.block_on(store.array().fail(Slot(1), "it fails as well")).unwrap();
        let second = SimulatedMedium::new("second", DISK_BYTES, 4899);
        rig.join(&store, 1, &second);
        rig.media[1] = second;
        rig.media[0].clear_faults();
        // The power fails while the second one has a part of it.
        let begun = store.array().unproven_count();
        while store.array().unproven_count() + rebuilt > begun {
            rig.wait(Duration::from_micros(100));
        }
        let store = rig.restart(store);
        rig.wait_until_rebuilt(&store);
        rig.block_on(store.array().fail(Slot(0), "a third one")).unwrap();
        (0..1920).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(1), "{address}"));
    }
}

#[test]
fn a_retired_disk_is_read_until_the_one_in_its_place_has_all() {
    for (seed, is_readable) in [(46, false), (47, true)] {
        let mut rig = Rig::new(seed, 4);
        let store = rig.open();
        (0..8).for_each(|part| rig.write(&store, part * 40, 40, 1));
        // On each disk but the one that will go a block of a segment that is full can't be read, or is wrong, no two in a
        // row.
        let mut damaged = Vec::new();
        for address in 0..120 {
            let (slot, offset) = rig.find_block(address, 1)[0];
            if slot != 1 && !damaged.iter().any(|(known, at)| *known == slot || *at == offset) {
                let bytes = offset..offset + BLOCK_SIZE as u64;
                let medium = &rig.media[slot];
                if is_readable {
                    medium.rot(bytes)
                } else {
                    medium.make_unreadable(bytes)
                }
                damaged.push((slot, offset));
            }
        }
        assert_eq!(damaged.len(), 3);
        let spare = SimulatedMedium::new("spare", DISK_BYTES, seed * 100 + 99);
        let disk: Rc<dyn Disk> = SimulatedDisk::open(&spare, rig.world.borrow().clone());
        assert!(
            rig.block_on(store.retire_disk(Slot(1), "it is not trusted")).is_err(),
            "nothing takes its place"
        );
        rig.block_on(store.array().add_spare(disk, Uuid([9; 16]))).unwrap();
        rig.block_on(store.retire_disk(Slot(1), "it is not trusted")).unwrap();
        rig.wait_until_rebuilt(&store);
        rig.media[1] = spare;
        assert!(!rig.events.borrow().iter().any(|event| event.kind == "rebuild-damage"));
        (0..320).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(1), "{address}"));
        // A scrub repairs what was wrong: then any one disk may go.
        let segments = store.array().geometry().segment_count;
        for segment in (0..segments).map(SegmentIndex) {
            assert!(rig.block_on(store.scrub_segment(segment)).unwrap().unrecoverable.is_empty());
        }
        let store = rig.restart(store);
        rig.block_on(store.array().fail(Slot(0), "somebody wanted it")).unwrap();
        (0..320).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(1), "{address}"));
    }
}

#[test]
fn scenario_20_a_latent_error_besides_a_dead_disk_harms_one_block_and_no_new_data() {
    let rig = Rig::new(20, 4);
    let store = rig.open();
    rig.write(&store, 0, 40, 1);
    rig.media[0].inject(Fault::always(Operation::Flush, EIO));
    rig.write(&store, 200, 1, 2); // the write that meets the failure
    rig.write(&store, 100, 40, 2);
    assert_eq!(store.array().live().width(), 3);
    // Old data lies over four disks and has no redundancy left: the peer would be asked for it.
    let (slot, offset) = rig.find_block(0, 1).into_iter().find(|(slot, _)| *slot != 0).unwrap();
    rig.media[slot].make_unreadable(offset..offset + BLOCK_SIZE as u64);
    assert_eq!(rig.read_round(&store, 1), Ok(1), "its neighbour is whole");
    let lost = StoreError::Medium { volume: VOLUME, address: BlockAddress(0) };
    assert_eq!(rig.read_round(&store, 0), Err(lost));
    assert!(rig.events.borrow().iter().any(|event| event.kind == "block-lost"));
    // Data written since then lies over three disks, with parity: a second fault is healed.
    let (slot, offset) = rig.find_block(120, 2)[0];
    rig.media[slot].make_unreadable(offset..offset + BLOCK_SIZE as u64);
    assert_eq!(rig.read_round(&store, 120), Ok(2));
    assert_eq!(store.statistics().rebuilt_blocks.get(), 1);
    // Written again, the lost block is a block like any other.
    rig.write(&store, 0, 1, 3);
    assert_eq!(rig.read_round(&store, 0), Ok(3));
}

#[test]
fn scenario_22_misdirected_and_phantom_writes_are_found_and_repaired() {
    for effect in [Effect::Phantom, Effect::Misdirect { to: 3 << 20 }] {
        let rig = Rig::new(22, 4);
        let store = rig.open();
        rig.write(&store, 0, 60, 1);
        rig.media[1].inject(Fault::once(Operation::Write, effect));
        rig.write(&store, 0, 60, 2);
        rig.media[1].clear_faults();
        (0..60).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(2), "{effect:?}"));
        assert!(store.statistics().rebuilt_blocks.get() > 0, "{effect:?}");
        let rebuilt = store.statistics().rebuilt_blocks.get();
        (0..60).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(2)));
        assert_eq!(store.statistics().rebuilt_blocks.get(), rebuilt, "what was repaired stays repaired");
        assert!(store.array().status()[1].repairs > 0);
    }
}

#[test]
fn scenario_23_a_flush_that_fails_once_fails_the_disk() {
    for seed in 1..20 {
        let rig = Rig::new(seed, 3);
        let store = rig.open();
        rig.media[1].inject(Fault::once(Operation::Flush, EIO));
        rig.write(&store, 0, 30, 1);
        let status = &store.array().status()[1];
        assert_eq!(status.state, DiskState::Failed, "seed {seed}");
        let store = rig.restart(store);
        assert!(!store.array().live().contains(Slot(1)), "it stays out after a restart");
        (0..30).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(1)));
    }
}

#[test]
fn scenario_24_a_disk_that_stalls_is_left_behind_within_bounds() {
    let rig = Rig::new(24, 4);
    let store = rig.open();
    rig.write(&store, 0, 30, 1);
    rig.media[3].inject(Fault::always(Operation::Write, Effect::Stall(Duration::from_secs(30))));
    let start = rig.executor.now();
    rig.write(&store, 0, 30, 2);
    assert!(rig.executor.now().since(start) < Duration::from_secs(8), "hosts wait for no single disk");
    assert_eq!(store.array().status()[3].state, DiskState::Failed);
    (0..30).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(2)));
}

#[test]
fn scenario_29_what_was_unmapped_reads_zeros_after_a_crash() {
    for seed in 1..20 {
        let rig = Rig::new(seed, 3);
        let store = rig.open();
        rig.write(&store, 0, 100, 1);
        let hole = BlockWrite::Hole { address: BlockAddress(10), count: 50 };
        let version = rig.version();
        rig.block_on(store.append(VOLUME, version, vec![hole])).unwrap();
        let mut store = rig.restart(store);
        for _ in 0..2 {
            for address in 0..100 {
                let expected = if (10..60).contains(&address) { 0 } else { 1 };
                assert_eq!(rig.read_round(&store, address), Ok(expected), "seed {seed}");
            }
            assert_eq!(store.volume_used_bytes(VOLUME), 50 * BLOCK_SIZE as u64);
            store = rig.restart(store);
        }
    }
}

#[test]
fn disks_may_swap_their_places() {
    let mut rig = Rig::new(7, 5);
    let store = rig.open();
    rig.write(&store, 0, 100, 1);
    for turn in 1..4 {
        rig.cut_power();
        rig.media.rotate_left(turn);
        let store = rig.open();
        assert_eq!(store.array().live().width(), 5);
        (0..100).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(1)));
    }
}

#[test]
fn a_full_pool_refuses_only_what_needs_new_space_and_gives_space_back() {
    let rig = Rig::new(8, 4);
    let store = rig.open();
    let capacity = store.usage().capacity_bytes / BLOCK_SIZE as u64;
    let mut filled = 0;
    while filled + 50 <= capacity {
        rig.write(&store, filled, 50, 1);
        filled += 50;
    }
    let refused = rig.block_on(rig.append(&store, filled, 50, 1));
    assert_eq!(refused, Err(StoreError::OutOfSpace));
    // Overwrites of a full pool go on for ever.
    for round in 2..6 {
        (0..filled / 50).for_each(|n| rig.write(&store, n * 37 % (filled / 50) * 50, 50, round));
    }
    // An append that is refused is refused as a whole.
    assert_eq!(rig.block_on(rig.append(&store, filled - 10, 60, 9)), Err(StoreError::OutOfSpace));
    assert_eq!(rig.read_round(&store, filled - 1), Ok(5));
    let hole = BlockWrite::Hole { address: BlockAddress(0), count: 100 };
    let version = rig.version();
    rig.block_on(store.append(VOLUME, version, vec![hole])).unwrap();
    rig.write(&store, filled, 50, 9);
    assert_eq!(rig.block_on(store.audit()), Ok(()));
    // A dropped volume gives back all that it had.
    rig.block_on(store.drop_volume(VOLUME)).unwrap();
    assert_eq!(store.usage().used_bytes, 0);
    let version = rig.version();
    rig.block_on(store.put_volume(VolumeId(9), version, b"next")).unwrap();
    assert_eq!(rig.block_on(store.audit()), Ok(()));
}

#[test]
fn what_is_written_over_a_hole_that_is_on_its_way_keeps_its_space() {
    let rig = Rig::new(2131, 3);
    let store = rig.open();
    let capacity = store.usage().capacity_bytes / BLOCK_SIZE as u64;
    fill_up_and_reclaim(&rig, &store, capacity);
}

#[test]
fn what_is_written_over_a_hole_that_is_on_its_way_counts_for_the_quota() {
    let rig = Rig::new(2131, 3);
    let store = rig.open();
    let blocks = store.usage().capacity_bytes / BLOCK_SIZE as u64 / 2;
    store.set_space_rule(VOLUME, SpaceRule { quota_bytes: blocks * BLOCK_SIZE as u64, reserved_bytes: 0 });
    store.bind_space(VOLUME, true);
    fill_up_and_reclaim(&rig, &store, blocks);
}

/// Fills a volume up to `capacity` blocks, all that it may take, then unmaps some and writes over them at once.
fn fill_up_and_reclaim(rig: &Rig, store: &Store, capacity: u64) {
    (0..capacity).for_each(|address| rig.write(store, address, 1, 1));
    let used_blocks = || store.usage().used_bytes / BLOCK_SIZE as u64;
    let mut met = 0;
    for round in 2..60 {
        let hole = BlockWrite::Hole { address: BlockAddress(0), count: 10 };
        let unmapped = store.append(VOLUME, rig.version(), vec![hole]);
        rig.wait(Duration::from_micros(10 * round));
        let before = used_blocks();
        let overwritten = rig.append(store, 0, 10, round);
        rig.block_on(unmapped).unwrap();
        if used_blocks() == capacity - 10 {
            met += u64::from(before == capacity);
            let elsewhere = rig.block_on(rig.append(store, capacity, 10, round));
            assert_eq!(elsewhere, Err(StoreError::OutOfSpace), "the space is promised");
        }
        rig.block_on(overwritten).unwrap();
        assert_eq!((used_blocks(), rig.read_round(store, 0)), (capacity, Ok(round)));
    }
    assert!(met > 3, "the hole settled {met} times while the write behind it was on its way");
}

#[test]
fn writes_of_a_full_pool_wait_for_slow_reads_without_an_alarm() {
    let rig = Rig::new(516, 3);
    let store = rig.open();
    let filled = store.usage().capacity_bytes / BLOCK_SIZE as u64 / 50 * 50;
    (0..filled / 50).for_each(|n| rig.write(&store, n * 50, 50, 1));
    // Reads are in half of the segments, and take longer than it does to overwrite everything.
    let stall = Fault::always(Operation::Read, Effect::Stall(Duration::from_millis(400)));
    rig.media.iter().for_each(|medium| medium.inject(stall.clone()));
    let rounds = Rc::new(RefCell::new(Vec::new()));
    for address in (0..filled / 2).step_by(20) {
        let (store, rounds) = (store.clone(), rounds.clone());
        rig.world.borrow().spawn(Box::pin(async move {
            let data = store.read(VOLUME, BlockAddress(address), 1).await.unwrap().concat();
            rounds.borrow_mut().push(u64::from_le_bytes(data[8..16].try_into().unwrap()));
        }));
    }
    rig.wait(Duration::from_micros(50));
    rig.media.iter().for_each(|medium| medium.clear_faults());
    let start = rig.executor.now();
    for round in 2..4 {
        (0..filled / 50).for_each(|n| rig.write(&store, n * 50, 50, round));
    }
    assert!(rig.executor.now().since(start) > Duration::from_millis(350), "the writes waited for the reads");
    assert!(rounds.borrow().len() > 30 && rounds.borrow().iter().all(|round| *round == 1));
    assert!(rig.events.borrow().iter().all(|event| event.kind != "pool-stuck"), "{:?}", rig.events.borrow());
    (0..filled).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(3)));
    assert_eq!(rig.block_on(store.audit()), Ok(()));
}

#[test]
fn a_snapshot_keeps_what_it_shows_until_it_is_dropped() {
    let rig = Rig::new(28, 4);
    let mut store = rig.open();
    rig.write(&store, 0, 100, 1);
    let snapshot = rig.version();
    let taken = BlockWrite::Snapshot { record: b"before the change"[..].into() };
    rig.block_on(store.append(VOLUME, snapshot, vec![taken])).unwrap();
    rig.write(&store, 0, 60, 2);
    let hole = BlockWrite::Hole { address: BlockAddress(50), count: 20 };
    let version = rig.version();
    rig.block_on(store.append(VOLUME, version, vec![hole])).unwrap();
    // What it shows takes space of its own, so that a full pool refuses to overwrite it.
    let capacity = store.usage().capacity_bytes / BLOCK_SIZE as u64;
    let used = store.usage().used_bytes / BLOCK_SIZE as u64;
    assert_eq!((used, store.volume_snapshot_bytes(VOLUME)), (80 + 70, 70 * BLOCK_SIZE as u64));
    (0..capacity - used).step_by(8).for_each(|n| {
        rig.write(&store, 1000 + n, 8.min(capacity - used - n), 3);
    });
    assert_eq!(rig.block_on(rig.append(&store, 90, 1, 4)), Err(StoreError::OutOfSpace));
    rig.write(&store, 0, 50, 5);
    for _ in 0..2 {
        for address in 0..100 {
            let shown = rig.block_on(store.read_at(VOLUME, snapshot, BlockAddress(address), 1)).unwrap();
            assert_eq!(shown[0][..16], [address.to_le_bytes(), 1u64.to_le_bytes()].concat());
        }
        assert_eq!(rig.read_round(&store, 0), Ok(5));
        assert_eq!(rig.read_round(&store, 55), Ok(0));
        assert_eq!(rig.block_on(store.audit()), Ok(()));
        store = rig.restart(store);
    }
    assert_eq!(store.snapshots(VOLUME).unwrap()[0].record[..], b"before the change"[..]);
    let version = rig.version();
    let dropped = BlockWrite::SnapshotDropped { snapshot };
    rig.block_on(store.append(VOLUME, version, vec![dropped])).unwrap();
    assert_eq!((store.usage().snapshot_bytes, rig.block_on(store.audit())), (0, Ok(())));
    let gone = StoreError::NoSuchSnapshot { volume: VOLUME, snapshot };
    assert_eq!(rig.block_on(store.read_at(VOLUME, snapshot, BlockAddress(0), 1)), Err(gone));
    rig.write(&store, 90, 1, 6);
}

#[test]
fn clones_of_clones_show_what_is_behind_them_and_keep_it() {
    let rig = Rig::new(30, 4);
    let mut store = rig.open();
    let take = |store: &Store, volume| {
        let snapshot = rig.version();
        let taken = BlockWrite::Snapshot { record: b""[..].into() };
        rig.block_on(store.append(volume, snapshot, vec![taken])).unwrap();
        snapshot
    };
    let hole = |store: &Store, volume, address, count| {
        let hole = BlockWrite::Hole { address: BlockAddress(address), count };
        rig.block_on(store.append(volume, rig.version(), vec![hole])).unwrap();
    };
    let (child, grandchild) = (VolumeId(2), VolumeId(3));
    rig.write(&store, 0, 30, 1);
    let first = take(&store, VOLUME);
    rig.block_on(store.clone_volume(child, rig.version(), b"child", VOLUME, first)).unwrap();
    hole(&store, child, 10, 5);
    let second = take(&store, child);
    rig.block_on(store.clone_volume(grandchild, rig.version(), b"grandchild", child, second)).unwrap();
    rig.write(&store, 0, 30, 2);
    hole(&store, grandchild, 20, 1 << 30);
    for turn in 0..3 {
        let rounds = |volume| {
            let data = rig.block_on(store.read(volume, BlockAddress(0), 30)).unwrap().concat();
            data.chunks(BLOCK_SIZE).map(|block| block[8]).collect::<Vec<u8>>()
        };
        assert_eq!(rounds(VOLUME), [2; 30]);
        assert_eq!(rounds(child), [vec![1; 10], vec![0; 5], vec![1; 15]].concat());
        assert_eq!(rounds(grandchild), [vec![1; 10], vec![0; 5], vec![1; 5], vec![0; 10]].concat());
        let runs = rig.block_on(store.allocation(grandchild, BlockAddress(0), 1 << 20, 9)).unwrap();
        let runs: Vec<_> = runs.iter().map(|run| (run.count, run.mapped)).collect();
        assert_eq!(runs, [(10, true), (5, false), (5, true), ((1 << 20) - 20, false)]);
        assert_eq!((store.volume_used_bytes(child), rig.block_on(store.audit())), (0, Ok(())));
        assert_eq!(store.origin(grandchild), Some((child, second)));
        if turn == 1 {
            rig.block_on(store.close());
        }
        store = rig.restart(store);
    }
    let refused = |volume, clone| Err(StoreError::HasClones { volume, clone });
    let dropped = |snapshot| vec![BlockWrite::SnapshotDropped { snapshot }];
    assert_eq!(rig.block_on(store.drop_volume(VOLUME)), refused(VOLUME, child));
    assert_eq!(rig.block_on(store.append(child, rig.version(), dropped(second))), refused(child, grandchild));
    let missing = StoreError::NoSuchSnapshot { volume: child, snapshot: first };
    assert_eq!(rig.block_on(store.clone_volume(VolumeId(4), first, b"", child, first)), Err(missing));
    rig.block_on(store.drop_volume(grandchild)).unwrap();
    rig.block_on(store.append(child, rig.version(), dropped(second))).unwrap();
    rig.block_on(store.drop_volume(child)).unwrap();
    rig.block_on(store.append(VOLUME, rig.version(), dropped(first))).unwrap();
    assert_eq!((store.usage().snapshot_bytes, rig.block_on(store.audit())), (0, Ok(())));
}

#[test]
fn a_quota_and_what_is_kept_for_others_bound_new_blocks_alone() {
    let rig = Rig::new(31, 4);
    let store = rig.open();
    let other = VolumeId(2);
    rig.block_on(store.put_volume(other, rig.version(), b"other")).unwrap();
    let rule = |blocks: u64, reserved: u64| SpaceRule {
        quota_bytes: blocks * BLOCK_SIZE as u64,
        reserved_bytes: reserved * BLOCK_SIZE as u64,
    };
    let write = |volume, address: u64, count: u64| {
        let data = |block| {
            let data = AlignedBuf::copy_of(&[7; BLOCK_SIZE]).freeze();
            BlockWrite::Data { address: BlockAddress(block), checksum: Crc32::of(&data), data }
        };
        store.append(volume, rig.version(), (address..address + count).map(data).collect())
    };
    let full = Err(StoreError::OutOfSpace);
    for volume in [VOLUME, other] {
        store.bind_space(volume, true);
    }
    store.set_space_rule(VOLUME, rule(100, 0));
    // What is on its way counts.
    let first = write(VOLUME, 0, 60);
    assert_eq!(rig.block_on(write(VOLUME, 60, 41)), full);
    rig.block_on(first).unwrap();
    rig.block_on(write(VOLUME, 60, 40)).unwrap();
    assert_eq!(rig.block_on(write(VOLUME, 100, 1)), full);
    rig.block_on(write(VOLUME, 0, 100)).unwrap();
    let hole = vec![BlockWrite::Hole { address: BlockAddress(0), count: 10 }];
    rig.block_on(store.append(VOLUME, rig.version(), hole)).unwrap();
    rig.block_on(write(VOLUME, 100, 10)).unwrap();
    // Snapshots are of the volume.
    let taken = vec![BlockWrite::Snapshot { record: b""[..].into() }];
    rig.block_on(store.append(VOLUME, rig.version(), taken)).unwrap();
    assert_eq!(rig.block_on(write(VOLUME, 50, 1)), full);
    // A replica takes what the other node has acknowledged.
    store.bind_space(VOLUME, false);
    rig.block_on(write(VOLUME, 50, 1)).unwrap();
    store.bind_space(VOLUME, true);

    let usage = store.usage();
    let free = (usage.capacity_bytes - usage.used_bytes) / BLOCK_SIZE as u64;
    store.set_space_rule(VOLUME, SpaceRule::default());
    store.set_space_rule(other, rule(0, 200));
    let mut written = 0;
    for chunk in [50, 1] {
        while rig.block_on(write(VOLUME, 1000 + written, chunk)).is_ok() {
            written += chunk;
        }
    }
    assert_eq!(written, free - 200);
    assert_eq!(rig.block_on(write(VOLUME, 0, 1)), full);
    rig.block_on(write(other, 0, 150)).unwrap();
    assert_eq!(rig.block_on(write(VOLUME, 0, 1)), full);
    store.set_space_rule(other, SpaceRule::default());
    rig.block_on(write(VOLUME, 0, 1)).unwrap();
    assert_eq!(rig.block_on(store.audit()), Ok(()));
}

#[test]
fn a_random_write_reads_no_disk() {
    let rig = Rig::new(9, 5);
    let store = rig.open();
    let reads = || rig.media.iter().map(|medium| medium.counters().reads).sum::<u64>();
    let before = reads();
    (0..200).for_each(|n| rig.write(&store, n * 7919 % 1000, 1, n + 1));
    assert_eq!(reads(), before);
}

#[test]
fn all_disks_gone_together_marks_none_and_loses_nothing() {
    for (seed, lose_cache) in (1..30).map(|seed| (seed, seed % 2 == 0)) {
        let rig = Rig::new(seed, 4);
        let store = rig.open();
        rig.write(&store, 0, 50, 1);
        let in_flight = rig.append(&store, 0, 20, 2);
        rig.wait(Duration::from_micros(seed * 20));
        rig.media.iter().for_each(|medium| medium.disappear(lose_cache));
        let outcome = rig.block_on(in_flight);
        rig.wait(Duration::from_secs(10));
        let refused = rig.block_on(rig.append(&store, 0, 1, 3));
        assert_eq!(refused, Err(StoreError::Offline));
        assert!(store.is_offline());
        rig.media.iter().for_each(|medium| medium.reappear());
        let store = rig.restart(store);
        assert_eq!(store.array().live().width(), 4, "seed {seed}: none is marked as failed");
        for address in 0..50 {
            let round = rig.read_round(&store, address).unwrap();
            let expected: &[u64] = match (address < 20, outcome.is_ok()) {
                (true, true) => &[2],
                (true, false) => &[1, 2],
                (false, _) => &[1],
            };
            assert!(expected.contains(&round), "seed {seed}, block {address}: {round}");
        }
    }
}

#[test]
fn all_disks_may_go_while_segments_are_cleaned_and_checkpoints_written() {
    for delay in (0..20_000).step_by(200) {
        let rig = Rig::new(delay + 1, 3);
        let store = rig.open();
        let blocks = store.usage().capacity_bytes / BLOCK_SIZE as u64 / 30 * 30;
        (0..blocks / 30).for_each(|n| rig.write(&store, n * 30, 30, 1));
        let overwrite = |n: u64| rig.append(&store, n * 7919 % blocks, 1, 2);
        let in_flight: Vec<_> = (0..1000).map(overwrite).collect();
        rig.wait(Duration::from_micros(delay));
        rig.media.iter().for_each(|medium| medium.disappear(false));
        rig.wait(Duration::from_secs(1));
        drop(in_flight);
        rig.media.iter().for_each(|medium| medium.reappear());
        let store = rig.restart(store);
        (0..blocks).for_each(|address| assert!(rig.read_round(&store, address).unwrap() > 0, "{delay}"));
    }
}

#[test]
fn a_stale_disk_is_never_used_again() {
    let rig = Rig::new(11, 4);
    let store = rig.open();
    rig.write(&store, 0, 50, 1);
    rig.cut_power();
    let store = rig.open_without(&[2]).unwrap();
    rig.write(&store, 0, 50, 2);
    rig.cut_power();
    let store = rig.open();
    assert!(!store.array().live().contains(Slot(2)));
    (0..50).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(2)));
    rig.cut_power();
    // The stale disk is no substitute for one that is current.
    let refused = rig.open_without(&[0]);
    assert!(matches!(refused, Err(PoolError::Array(OpenError::TooFew { missing: 2, .. }))));
}

#[test]
fn half_a_pool_of_two_opens_only_when_it_is_the_better_half() {
    let rig = Rig::new(12, 2);
    let store = rig.open();
    rig.write(&store, 0, 50, 1);
    rig.cut_power();
    for missing in 0..2 {
        assert!(matches!(rig.open_without(&[missing]), Err(PoolError::Array(OpenError::LoneHalf))));
        rig.cut_power();
    }
    let store = rig.open();
    rig.media[1].inject(Fault::always(Operation::Write, EIO));
    rig.write(&store, 0, 50, 2);
    rig.cut_power();
    rig.media[1].clear_faults();
    assert!(rig.open_without(&[0]).is_err(), "the half that was left behind");
    rig.cut_power();
    let store = rig.open_without(&[1]).unwrap();
    (0..50).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(2)));
}

#[test]
fn a_flush_that_fails_in_a_commit_acknowledges_nothing_by_a_later_one() {
    let rig = Rig::new(2315, 3);
    let (disks, world) = (rig.disks(&[1]), rig.world.borrow().clone());
    let array = rig.block_on(async {
        let sink = Rc::new(|_| {});
        Array::open(disks, world, BufferPool::new(1 << 20), sink).await.unwrap().0
    });
    rig.block_on(array.commit(b"degraded".to_vec())).unwrap();
    // One disk writes its superblock slowly, the flush of the other one fails meanwhile.
    let slow = Fault::once(Operation::Write, Effect::Stall(Duration::from_millis(100)));
    rig.media[0].inject(slow.within(0..1 << 20));
    rig.media[2].inject(Fault::once(Operation::Flush, EIO));
    let (committing, outcome) = (array.clone(), Rc::new(RefCell::new(None)));
    let committed = outcome.clone();
    rig.world.borrow().spawn(Box::pin(async move {
        *committed.borrow_mut() = Some(committing.commit(b"next".to_vec()).await);
    }));
    rig.wait(Duration::from_millis(10));
    assert_eq!((rig.media[2].counters().flush_errors, *outcome.borrow()), (1, None));
    // What it dropped is not made durable by the next flush, though that succeeds.
    assert_eq!(rig.block_on(array.flush()), Err(ArrayError::Offline));
    rig.wait(Duration::from_millis(200));
    assert_eq!(*outcome.borrow(), Some(Err(ArrayError::Offline)));
}

#[test]
fn no_space_under_a_file_is_a_full_pool_and_no_broken_disk() {
    let rig = Rig::new(13, 4);
    let store = rig.open();
    rig.write(&store, 0, 50, 1);
    rig.media[1].limit_space(Some(0));
    let waiting = rig.append(&store, 0, 200, 2);
    rig.wait(Duration::from_secs(60));
    assert!(store.array().is_starved());
    let told = |kind: &str| rig.events.borrow().iter().filter(|event| event.kind == kind).count();
    assert_eq!((told("disk-no-space"), told("disk-space-back")), (1, 0), "said once, with what to do");
    assert_eq!(rig.block_on(rig.append(&store, 500, 1, 3)), Err(StoreError::OutOfSpace));
    assert_eq!(rig.read_round(&store, 30), Ok(1), "reads go on");
    rig.media[1].limit_space(None);
    rig.block_on(waiting).unwrap();
    assert_eq!((told("disk-no-space"), told("disk-space-back")), (1, 1));
    rig.write(&store, 500, 1, 3);
    assert!(store.array().status().iter().all(|disk| disk.state == DiskState::Ok));
}

#[test]
fn an_acknowledged_batch_that_is_destroyed_is_never_dropped_silently() {
    for seed in 1..10 {
        let rig = Rig::new(seed, 4);
        let store = rig.open();
        (0..5).for_each(|n| rig.write(&store, n * 10, 10, 1));
        rig.wait(Duration::from_millis(50));
        rig.cut_power();
        let newest = rig.headers().into_iter().filter(|(header, _, _)| !header.entries.is_empty());
        let (header, slot, offset) = newest.max_by_key(|(header, _, _)| header.number).unwrap();
        let parity = header.layout().parity_slot().unwrap();
        for slot in [slot, usize::from(parity.0)] {
            rig.media[slot].make_unreadable(offset..offset + BLOCK_SIZE as u64);
        }
        let error = rig.open_without(&[]).err().unwrap();
        assert!(error.to_string().contains("was acknowledged"), "seed {seed}: {error}");
    }
}

#[test]
fn data_that_does_not_fit_narrower_stripes_is_served_without_redundancy() {
    let rig = Rig::new(14, 3);
    let store = rig.open();
    let capacity = store.usage().capacity_bytes / BLOCK_SIZE as u64;
    let filled = capacity / 50 * 45;
    (0..filled / 45).for_each(|n| rig.write(&store, n * 45, 45, 1));
    rig.media[2].inject(Fault::always(Operation::Write, EIO));
    for round in 2..5 {
        (0..filled / 45).for_each(|n| rig.write(&store, n * 31 % (filled / 45) * 45, 45, round));
    }
    let all = store.array().geometry().all_slots();
    let open = store.segments().into_iter().filter(|(_, segment)| segment.state == SegmentState::Open);
    assert!(open.into_iter().all(|(_, segment)| segment.members == all), "wide, one column missing");
    let store = rig.restart(store);
    (0..filled / 45 * 45).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(4)));
}

#[test]
fn no_space_for_a_superblock_is_no_broken_disk() {
    let rig = Rig::new(15, 3);
    let store = rig.open();
    rig.write(&store, 0, 50, 1);
    rig.media[0]
        .inject(Fault::always(Operation::Write, Effect::Fail(DiskErrorKind::NoSpace)).within(0..1 << 20));
    let closing = store.clone();
    let (done, mut closed) = futures::channel::oneshot::channel();
    rig.world.borrow().spawn(Box::pin(async move {
        closing.close().await;
        let _ = done.send(());
    }));
    rig.wait(Duration::from_secs(5));
    assert_eq!(closed.try_recv(), Ok(None), "the commit waits");
    assert!(rig.events.borrow().iter().any(|event| event.kind == "disk-no-space"));
    rig.media[0].clear_faults();
    rig.block_on(closed).unwrap();
    let store = rig.restart(store);
    assert_eq!(store.array().live().width(), 3);
}

#[test]
fn random_overwrites_go_on_in_a_pool_that_is_too_full_for_narrower_stripes() {
    let rig = Rig::new(16, 3);
    let store = rig.open();
    let blocks = store.usage().capacity_bytes / BLOCK_SIZE as u64 * 95 / 100;
    (0..blocks).for_each(|address| rig.write(&store, address, 1, 1));
    rig.media[2].inject(Fault::always(Operation::Write, EIO));
    (0..blocks * 3).for_each(|n| rig.write(&store, n * 7919 % blocks, 1, 2 + n / blocks));
    (0..blocks).for_each(|address| assert_eq!(rig.read_round(&store, address), Ok(4)));
    assert_eq!(rig.block_on(store.audit()), Ok(()));
}

#[test]
fn sparse_blocks_fill_the_pool_as_well() {
    let rig = Rig::new(17, 2);
    let store = rig.open();
    let blocks = store.usage().capacity_bytes / BLOCK_SIZE as u64;
    for round in 1..4 {
        (0..blocks).for_each(|n| rig.write(&store, n * 7919 % blocks * 1000, 1, round));
    }
    let refused = rig.block_on(rig.append(&store, 1, 1, 4));
    assert_eq!(refused, Err(StoreError::OutOfSpace));
    let store = rig.restart(store);
    (0..blocks).for_each(|n| assert_eq!(rig.read_round(&store, n * 1000), Ok(3)));
}

#[test]
fn holes_take_no_space_once_checkpoints_have_passed_them() {
    let rig = Rig::new(18, 3);
    let store = rig.open();
    let blocks = store.usage().capacity_bytes / BLOCK_SIZE as u64 / 2;
    // Ever new addresses: the volume is far larger than the pool.
    for turn in 0..20 {
        (0..blocks / 30).for_each(|n| rig.write(&store, turn * blocks + n * 30, 30, 1));
        let hole = BlockWrite::Hole { address: BlockAddress(turn * blocks), count: blocks };
        rig.block_on(store.append(VOLUME, rig.version(), vec![hole])).unwrap();
    }
    assert_eq!(store.usage().used_bytes, 0);
    for _ in 0..2 {
        rig.block_on(store.close());
    }
    let before = store.statistics().checkpoint_blocks.get();
    rig.block_on(store.close());
    let last = store.statistics().checkpoint_blocks.get() - before;
    assert!(last < 10, "a checkpoint of an empty pool takes {last} blocks");
    let store = rig.restart(store);
    (0..20).for_each(|turn| assert_eq!(rig.read_round(&store, turn * blocks + 7), Ok(0)));
}

#[test]
fn a_huge_unmap_or_drop_leaves_other_tasks_their_turn_and_is_whole_after_a_crash() {
    for drops in [false, true] {
        // It takes effect at one instant of virtual time: the first run tells when, the others look.
        let (when, _) = remove_everything(drops, Duration::from_secs(3600), false);
        let (_, seen) = remove_everything(drops, when, false);
        assert!(seen.len() > 3 && seen.is_sorted_by(|a, b| a > b), "in several turns: {seen:?}");
        let (_, seen) = remove_everything(drops, when, true);
        assert!(seen.last() > Some(&0), "the power failed in between: {seen:?}");
    }
}

/// Unmaps or drops a volume with more pages than go in one turn. Returns when it took effect, and
/// how many blocks were mapped at the turns from `look_after` on; at the first turn in between the
/// power fails, if it `cuts`.
fn remove_everything(drops: bool, look_after: Duration, cuts: bool) -> (Duration, Vec<u64>) {
    let rig = Rig::new(19, 3);
    let store = rig.open();
    let blocks = store.usage().capacity_bytes / BLOCK_SIZE as u64 - 100;
    (0..blocks).for_each(|n| rig.write(&store, n * 64, 1, 1));
    let start = rig.executor.now();
    let seen: Rc<RefCell<Vec<u64>>> = Rc::default();
    let (watched, log, world) = (store.clone(), seen.clone(), rig.world.borrow().clone());
    rig.world.borrow().spawn(Box::pin(async move {
        world.sleep(look_after).await;
        loop {
            let used = watched.usage().used_bytes / BLOCK_SIZE as u64;
            if log.borrow().last() != Some(&used) {
                log.borrow_mut().push(used);
            }
            if used == 0 || (cuts && used < blocks) {
                return if cuts {
                    world.crash()
                };
            }
            yield_now().await;
        }
    }));
    let (removing, version, executor) = (store.clone(), rig.version(), rig.world.borrow().clone());
    let hole = BlockWrite::Hole { address: BlockAddress(0), count: blocks * 64 };
    let finished = Rc::new(std::cell::Cell::new(Duration::ZERO));
    let noted = finished.clone();
    rig.world.borrow().spawn(Box::pin(async move {
        let done = match drops {
            true => removing.drop_volume(VOLUME).await,
            false => removing.append(VOLUME, version, vec![hole]).await,
        };
        done.unwrap();
        noted.set(executor.now().since(start));
    }));
    rig.wait(Duration::from_secs(1));
    let store = rig.restart(store);
    assert_eq!(
        (store.usage().used_bytes, rig.block_on(store.audit())),
        (0, Ok(())),
        "the log has it, so it is whole"
    );
    (0..blocks).for_each(|n| assert_eq!(rig.read_round(&store, n * 64), Ok(0)));
    (finished.get(), seen.take())
}

#[test]
fn what_a_host_writes_never_passes_for_a_batch_header() {
    // With the key, such blocks do stop a recovery: the attempt is a real one.
    for (key, opens) in [(LogKey([0; 16]), true), (LOG_KEY, false)] {
        let rig = Rig::new(21, 3);
        let store = rig.open();
        rig.write(&store, 0, 1, 1);
        let newest =
            rig.headers().into_iter().map(|(header, _, _)| header).max_by_key(|header| header.number);
        let newest = newest.unwrap();
        let forge = |address: u64| {
            let forged = BatchHeader {
                key,
                incarnation: newest.incarnation + 1 + address % 2,
                number: newest.number + 1000,
                acknowledged_through: newest.number + 999,
                entries: Vec::new(),
                height: 1,
                ..newest.clone()
            };
            let data = AlignedBuf::copy_of(&forged.encode().0).freeze();
            BlockWrite::Data { address: BlockAddress(address), checksum: Crc32::of(&data), data }
        };
        rig.block_on(store.append(VOLUME, rig.version(), (0..8).map(forge).collect())).unwrap();
        rig.cut_power();
        drop(store);
        let opened = rig.open_without(&[]);
        assert_eq!(opened.is_ok(), opens, "{:?}", opened.err());
    }
}

#[test]
fn power_that_fails_again_while_a_commit_is_being_mended_leaves_a_superblock() {
    for seed in 1..400 {
        assert!(survives_repeated_power_cuts(seed), "seed {seed}");
    }
}

/// One generation reaches some disks, the next opening writes a newer one: a cut in either must leave
/// each disk with a copy that counts.
fn survives_repeated_power_cuts(seed: u64) -> bool {
    let rig = Rig::new(seed, 3);
    for cut in 0..4 {
        let opening = rig.start_opening();
        rig.wait(Duration::from_micros(300 + (seed * 131 + cut * 577) % 3000));
        drop(opening);
        rig.cut_power();
    }
    rig.open_without(&[]).is_ok_and(|store| store.array().live().width() == 3)
}

/// Disks, a world that uses them, and a volume of blocks that tell when they were written.
struct Rig {
    executor: Executor,
    world: RefCell<Rc<World>>,
    media: Vec<Rc<SimulatedMedium>>,
    events: Rc<RefCell<Vec<Event>>>,
    sequence: Cell<u64>,
    joined: Cell<u8>,
}

impl Rig {
    fn new(seed: u64, disks: usize) -> Self {
        let executor = Executor::new(seed);
        let world = RefCell::new(executor.world("node"));
        let medium = |n: u64| SimulatedMedium::new(&format!("disk{n}"), DISK_BYTES, seed * 100 + n);
        let media = (0..disks as u64).map(medium).collect();
        let (events, sequence, joined) = Default::default();
        let rig = Self { executor, world, media, events, sequence, joined };
        let options = FormatOptions { segment_bytes: Some(SEGMENT_BYTES), overwrite_foreign: false };
        rig.block_on(Array::format(&rig.disks(&[]), &options, POOL, LOG_KEY)).unwrap();
        rig
    }

    /// Puts a disk into the place of one that is out of use, and waits until it has everything.
    fn replace(&mut self, store: &Store, slot: u8, medium: Rc<SimulatedMedium>) {
        self.join(store, slot, &medium);
        self.wait_until_rebuilt(store);
        self.media[usize::from(slot)] = medium;
    }

    fn join(&self, store: &Store, slot: u8, medium: &Rc<SimulatedMedium>) {
        let disk: Rc<dyn Disk> = SimulatedDisk::open(medium, self.world.borrow().clone());
        let identity = Uuid([100 + self.joined.replace(self.joined.get() + 1); 16]);
        self.block_on(store.array().replace(Slot(slot), disk, identity, false)).unwrap();
    }

    fn wait_until_rebuilt(&self, store: &Store) {
        while !store.array().is_whole() {
            self.wait(Duration::from_millis(100));
        }
    }

    fn disks(&self, missing: &[usize]) -> Vec<Rc<dyn Disk>> {
        let present = self.media.iter().enumerate().filter(|(n, _)| !missing.contains(n));
        let world = self.world.borrow();
        let open = |(_, medium)| -> Rc<dyn Disk> { SimulatedDisk::open(medium, world.clone()) };
        present.map(open).collect()
    }

    fn open(&self) -> Store {
        self.open_without(&[]).unwrap()
    }

    fn open_without(&self, missing: &[usize]) -> Result<Store, PoolError> {
        let store = self.block_on(self.opening(missing))?;
        if store.volumes().is_empty() {
            self.block_on(store.put_volume(VOLUME, Version { epoch: 1, sequence: 0 }, b"volume")).unwrap();
        }
        Ok(store)
    }

    fn opening(&self, missing: &[usize]) -> impl Future<Output = Result<Store, PoolError>> + 'static {
        let (disks, world, events) = (self.disks(missing), self.world.borrow().clone(), self.events.clone());
        let sink = Rc::new(move |event| events.borrow_mut().push(event));
        async move {
            let (array, _) =
                Array::open(disks, world.clone(), BufferPool::new(1 << 20), sink.clone()).await?;
            Ok(Store::open(array, world, StoreOptions::default(), sink).await?.0)
        }
    }

    /// Begins to open the pool beside the caller.
    fn start_opening(&self) -> futures::channel::oneshot::Receiver<()> {
        let (done, outcome) = futures::channel::oneshot::channel();
        let opening = self.opening(&[]);
        self.world.borrow().spawn(Box::pin(async move {
            let _store = opening.await;
            let _ = done.send(());
        }));
        outcome
    }

    fn cut_power(&self) {
        self.world.borrow().crash();
        self.media.iter().for_each(|medium| medium.crash());
        *self.world.borrow_mut() = self.executor.world("node");
    }

    fn restart(&self, store: Store) -> Store {
        self.cut_power();
        drop(store);
        self.open()
    }

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.executor.block_on(future).unwrap()
    }

    fn wait(&self, duration: Duration) {
        self.executor.run_for(duration).unwrap();
    }

    fn version(&self) -> Version {
        self.sequence.set(self.sequence.get() + 1);
        Version { epoch: 1, sequence: self.sequence.get() }
    }

    fn append(
        &self,
        store: &Store,
        address: u64,
        count: u64,
        round: u64,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let write = |address: u64| {
            let mut data = AlignedBuf::zeroed(BLOCK_SIZE);
            data[..8].copy_from_slice(&address.to_le_bytes());
            data[8..16].copy_from_slice(&round.to_le_bytes());
            let data = data.freeze();
            BlockWrite::Data { address: BlockAddress(address), checksum: Crc32::of(&data), data }
        };
        store.append(VOLUME, self.version(), (address..address + count).map(write).collect())
    }

    fn write(&self, store: &Store, address: u64, count: u64, round: u64) {
        self.block_on(self.append(store, address, count, round)).unwrap();
    }

    /// In which round a block was written; 0 when it is zeros.
    fn read_round(&self, store: &Store, address: u64) -> Result<u64, StoreError> {
        let data = self.block_on(store.read(VOLUME, BlockAddress(address), 1))?.concat();
        let field = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
        let round = field(8);
        assert!(field(0) == if round == 0 { 0 } else { address }, "another block's data");
        Ok(round)
    }

    /// All batch headers on the media, with disk and byte offset.
    fn headers(&self) -> Vec<(BatchHeader, usize, u64)> {
        let mut headers = Vec::new();
        for (slot, medium) in self.media.iter().enumerate() {
            for offset in (1 << 20..medium.size_bytes()).step_by(BLOCK_SIZE) {
                let first = medium.peek(offset..offset + BLOCK_SIZE as u64);
                let Some(blocks) = BatchHeader::peek_blocks(&first) else { continue };
                let bytes = medium.peek(offset..offset + (blocks * BLOCK_SIZE) as u64);
                let header = BatchHeader::decode(&bytes).ok().map(|(header, _)| header);
                headers
                    .extend(header.filter(|header| header.kind == BatchKind::Log).map(|h| (h, slot, offset)));
            }
        }
        headers
    }

    /// Disk and byte offset of every copy of a block that was written in `round`.
    fn find_block(&self, address: u64, round: u64) -> Vec<(usize, u64)> {
        let mut wanted = [0; 16];
        wanted[..8].copy_from_slice(&address.to_le_bytes());
        wanted[8..].copy_from_slice(&round.to_le_bytes());
        let places = self.media.iter().enumerate().flat_map(|(slot, medium)| {
            (1 << 20..medium.size_bytes()).step_by(BLOCK_SIZE).map(move |offset| (slot, offset))
        });
        places.filter(|(slot, at)| self.media[*slot].peek(*at..*at + 16) == wanted).collect()
    }
}

const POOL: Uuid = Uuid([9; 16]);
const LOG_KEY: LogKey = LogKey([0x5e; 16]);
const VOLUME: VolumeId = VolumeId(1);
const SEGMENT_BYTES: u64 = 32 * BLOCK_SIZE as u64;
const DISK_BYTES: u64 = (1 << 20) + 48 * SEGMENT_BYTES;
const EIO: Effect = Effect::Fail(DiskErrorKind::Io(libc::EIO));
const _: () = assert!(COPY_OFFSETS[1] + SUPERBLOCK_BYTES as u64 <= 1 << 20);
