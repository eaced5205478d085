//! Snapshots over a pair in memory: the same cut on both, resyncs with history, the kept state.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};

use super::super::*;
use super::pair::{EPOCH, Pair, VOLUME, block};
use crate::base::buffer::AlignedBuf;
use crate::base::runtime::Runtime;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version};
use crate::sim::memory_store::MemoryStore;
use crate::store::interface::{BlockStore, BlockWrite, SnapshotStore};
use crate::volume::device::BlockDevice;
use crate::volume::snapshot::{SnapshotKind, SnapshotRecord};
use crate::volume::{SnapshotError, Volume, take_group_snapshot};

/// Blocks that the tests look at.
const BLOCKS: u64 = 12;

type Served = Volume<Mirror<MemoryStore>>;

fn record(name: &str) -> SnapshotRecord {
    SnapshotRecord {
        id: name.bytes().fold(1, |id, byte| id * 31 + u64::from(byte)),
        name: name.to_owned(),
        taken_unix_ms: 1000,
        protected_until_unix_ms: None,
        kind: SnapshotKind::Manual,
        group: None,
    }
}

fn data(fill: u8, blocks: usize) -> Vec<Bytes> {
    vec![AlignedBuf::copy_of(&vec![fill; blocks * BLOCK_SIZE]).freeze()]
}

impl Pair {
    fn write(&self, volume: &Served, block: u64, fill: u8) {
        self.run(volume.write(block, data(fill, 1))).unwrap();
    }

    fn snapshot(&self, volume: &Served, name: &str) -> Version {
        self.run(volume.take_snapshot(&record(name))).unwrap()
    }

    fn view(&self, store: &MemoryStore, at: Version) -> Vec<u8> {
        let read = self.run(store.read_at(VOLUME, at, BlockAddress(0), BLOCKS)).unwrap();
        read.iter().flat_map(|piece| piece.chunks(BLOCK_SIZE).map(|block| block[0])).collect()
    }

    fn list(&self, store: &MemoryStore) -> Vec<Version> {
        store.snapshots(VOLUME).unwrap().iter().map(|entry| entry.version).collect()
    }

    /// Brings the replica up to date.
    fn resync(&self, volume: &Served, common_point: impl Fn(Version) -> Version) -> ResyncProgress {
        self.connect();
        self.executor.run_for(Duration::from_millis(5)).unwrap();
        let joiner = self.mirror.join().unwrap();
        let resync = Resync::new(self.here.clone(), volume.clone(), self.world.clone());
        self.run(resync.run(&joiner, common_point)).unwrap();
        self.executor.run_for(Duration::from_millis(5)).unwrap();
        resync.progress()
    }

    /// Both have the same snapshots, and see the same in them and now.
    fn assert_equal(&self) {
        let list = self.list(&self.here);
        assert_eq!(list, self.list(&self.there));
        for at in list {
            assert_eq!(self.view(&self.here, at), self.view(&self.there, at), "at {at:?}");
        }
        assert_eq!(self.blocks(&self.here, BLOCKS), self.blocks(&self.there, BLOCKS));
        let runs = |store: &Rc<MemoryStore>| {
            self.run(store.allocation(VOLUME, BlockAddress(0), BLOCKS, 100)).unwrap()
        };
        assert_eq!(runs(&self.here), runs(&self.there));
    }

    /// What the replica alone has, from an older epoch: void.
    fn append_there(&self, sequence: u64, write: BlockWrite) {
        let version = Version { epoch: EPOCH - 1, sequence };
        self.run(self.there.append(VOLUME, version, vec![write])).unwrap();
        self.fence.latest.set(version);
    }

    /// What both have from before.
    fn append_on_both(&self, sequence: u64, writes: &[BlockWrite]) {
        let version = Version { epoch: EPOCH - 1, sequence };
        for store in [&self.here, &self.there] {
            self.run(store.append(VOLUME, version, writes.to_vec())).unwrap();
        }
    }
}

fn kept(version: Version) -> Version {
    version.common_with(Version { epoch: EPOCH - 1, sequence: 9 })
}

fn statement(name: &str) -> BlockWrite {
    BlockWrite::Snapshot { record: record(name).encode().into() }
}

#[test]
fn a_snapshot_is_the_same_cut_on_both() {
    for seed in 0..20 {
        let pair = Pair::new(seed, Requirement::Both);
        pair.connect();
        pair.executor.run_for(Duration::from_millis(5)).unwrap();
        let volume = pair.volume();
        for fill in 1..6 {
            pair.write(&volume, 0, fill);
            let writing = volume.write(1, data(fill, 2));
            let record = record(&format!("s{fill}"));
            let (written, taken) = pair.run(async { futures::join!(writing, volume.take_snapshot(&record)) });
            written.unwrap();
            let view = pair.view(&pair.here, taken.unwrap());
            assert_eq!(view[0], fill);
            assert!([fill - 1, fill].contains(&view[1]) && view[1] == view[2], "one write, in it or not");
        }
        pair.executor.run_for(Duration::from_millis(5)).unwrap();
        pair.assert_equal();
        let names = pair.run(volume.snapshots()).unwrap();
        assert_eq!(
            names.iter().map(|(_, r)| r.name.as_str()).collect::<Vec<_>>(),
            ["s1", "s2", "s3", "s4", "s5"]
        );
        let taken = pair.run(volume.take_snapshot(&record("s2")));
        assert_eq!(taken, Err(SnapshotError::NameTaken("s2".to_owned())));
        let dropped = pair.run(volume.drop_snapshot(names[1].0, 0));
        assert_eq!(dropped, Ok(()));
        assert_eq!(pair.run(volume.drop_snapshot(names[1].0, 0)), Err(SnapshotError::Unknown));
        pair.executor.run_for(Duration::from_millis(5)).unwrap();
        assert_eq!(pair.list(&pair.there).len(), 4);
        pair.assert_equal();
    }
}

#[test]
fn a_protected_snapshot_is_not_dropped() {
    let pair = Pair::new(1, Requirement::Local);
    let volume = pair.volume();
    let record = SnapshotRecord { protected_until_unix_ms: Some(50), ..record("kept") };
    let taken = pair.run(volume.take_snapshot(&record)).unwrap();
    let refused = SnapshotError::Protected { until_unix_ms: 50 };
    assert_eq!(pair.run(volume.drop_snapshot(taken, 49)), Err(refused));
    assert_eq!(pair.run(volume.drop_snapshot(taken, 50)), Ok(()));
}

#[test]
fn a_snapshot_that_one_replica_lacks_is_not_there_yet() {
    let pair = Pair::new(2, Requirement::Both);
    let volume = pair.volume();
    let (record, slow) = (record("x"), pair.world.sleep(Duration::from_millis(5)));
    let taking = pair.run(async {
        matches!(select(Box::pin(volume.take_snapshot(&record)), slow).await, Either::Left(_))
    });
    assert!(!taking, "nobody has confirmed it");
    assert_eq!(pair.list(&pair.here).len(), 1);
    assert_eq!(pair.mirror.snapshots(VOLUME), Ok(Vec::new()), "and nobody is told of it");
    pair.connect();
    assert_eq!(pair.run(volume.snapshots()).unwrap().len(), 1);
    pair.assert_equal();
}

#[test]
pub(super) fn a_replica_that_was_away_gets_the_history() {
    for seed in 0..30 {
        let pair = Pair::new(seed, Requirement::Local);
        pair.append_on_both(5, &[block(0, 10), block(1, 11), block(2, 12), block(3, 13)]);
        pair.append_on_both(6, &[statement("common")]);
        pair.append_on_both(7, &[block(1, 14)]);
        pair.append_on_both(8, &[statement("dropped")]);
        pair.append_on_both(9, &[block(2, 15)]);
        // Void: blocks of all kinds, and a snapshot.
        pair.append_there(10, block(3, 90));
        pair.append_there(11, statement("void"));
        pair.append_there(12, block(4, 91));
        let volume = pair.volume();
        let dropped = Version { epoch: EPOCH - 1, sequence: 8 };
        assert_eq!(pair.run(volume.drop_snapshot(dropped, 0)), Ok(()));
        pair.write(&volume, 5, 20);
        pair.write(&volume, 6, 21);
        let first = pair.snapshot(&volume, "first");
        pair.write(&volume, 0, 22);
        pair.run(volume.unmap(6, 1)).unwrap();
        let second = pair.snapshot(&volume, "second");
        pair.write(&volume, 0, 23);
        pair.write(&volume, 7, 24);
        assert_eq!(pair.view(&pair.here, first)[..8], [10, 14, 15, 13, 0, 20, 21, 0]);
        let progress = pair.resync(&volume, kept);
        pair.assert_equal();
        assert_eq!(pair.view(&pair.there, first)[..8], [10, 14, 15, 13, 0, 20, 21, 0]);
        assert_eq!(pair.view(&pair.there, second)[..8], [22, 14, 15, 13, 0, 20, 0, 0]);
        assert_eq!(pair.list(&pair.there).len(), 3);
        // Twice in history, twice void, twice in the second stage, twice now.
        assert!(progress.copied_blocks <= 8, "{progress:?}");
    }
}

#[test]
fn snapshots_and_writes_during_a_resync_are_the_same_on_both() {
    for seed in 0..40 {
        let pair = Pair::new(seed, Requirement::Local);
        pair.append_on_both(5, &(0..BLOCKS).map(|at| block(at, 1)).collect::<Vec<_>>());
        for (sequence, at) in (10..).zip([0, 3, 6, 9]) {
            pair.append_there(sequence, block(at, 90));
        }
        let volume = pair.volume();
        for at in 0..BLOCKS {
            pair.write(&volume, at * 300, 2);
        }
        pair.snapshot(&volume, "before");
        (0..BLOCKS).for_each(|at| pair.write(&volume, at, 3));
        pair.connect();
        pair.executor.run_for(Duration::from_millis(5)).unwrap();
        let joiner = pair.mirror.join().unwrap();
        let resync = Resync::new(pair.here.clone(), volume.clone(), pair.world.clone());
        let hosts = async {
            let mut taken = Vec::new();
            for turn in 0..12u64 {
                let at = pair.world.random() % BLOCKS;
                match pair.world.random() % 4 {
                    0 => volume.unmap(at, 2).await.unwrap(),
                    1 => volume.unmap(3000 + at, 1).await.unwrap(),
                    _ => volume.write(at, data(10 + turn as u8, 1)).await.unwrap(),
                }
                pair.world.sleep(Duration::from_micros(pair.world.random() % 300)).await;
                match pair.world.random() % 3 {
                    0 => taken.push(volume.take_snapshot(&record(&format!("t{turn}"))).await.unwrap()),
                    1 if !taken.is_empty() => {
                        let dropped = taken.remove(pair.world.random() as usize % taken.len());
                        volume.drop_snapshot(dropped, 0).await.unwrap();
                    }
                    _ => {}
                }
            }
        };
        let (outcome, ()) = pair.run(async { futures::join!(resync.run(&joiner, kept), hosts) });
        assert_eq!(outcome, Ok(()), "seed {seed}");
        pair.executor.run_for(Duration::from_millis(10)).unwrap();
        assert!(pair.mirror.is_level());
        pair.assert_equal();
    }
}

#[test]
pub(super) fn a_hole_over_nothing_hides_history_that_is_put_below_it() {
    let pair = Pair::new(5, Requirement::Local);
    let volume = pair.volume();
    pair.write(&volume, 2, 7);
    let taken = pair.snapshot(&volume, "with");
    pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    let joiner = pair.mirror.join().unwrap();
    // Mirrored before the copying begins, to a replica that has nothing there.
    pair.run(volume.unmap(2, 1)).unwrap();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    let resync = Resync::new(pair.here.clone(), volume.clone(), pair.world.clone());
    pair.run(resync.run(&joiner, kept)).unwrap();
    assert_eq!((pair.view(&pair.there, taken)[2], pair.blocks(&pair.there, 3)[2]), (7, 0));
    pair.assert_equal();
}

#[test]
fn a_snapshot_whose_dropping_is_void_is_filled_again() {
    for seed in 0..10 {
        let pair = Pair::new(seed, Requirement::Local);
        pair.append_on_both(4, &[block(0, 1), block(1, 1), block(2, 1)]);
        pair.append_on_both(5, &[statement("older")]);
        pair.append_on_both(6, &[block(0, 2), block(1, 2)]);
        pair.append_on_both(7, &[statement("wanted")]);
        pair.append_on_both(8, &[block(0, 3)]);
        pair.append_on_both(9, &[BlockWrite::Hole { address: BlockAddress(1), count: 1 }]);
        let wanted = Version { epoch: EPOCH - 1, sequence: 7 };
        pair.append_there(10, BlockWrite::SnapshotDropped { snapshot: wanted });
        let volume = pair.volume();
        pair.write(&volume, 5, 4);
        pair.resync(&volume, kept);
        assert_eq!(pair.view(&pair.there, wanted)[..3], [2, 2, 1]);
        pair.assert_equal();
    }
}

/// The replica is being brought up to date: what it has, it has through a version before the snapshot.
#[test]
pub(super) fn what_only_a_snapshot_showed_comes_back_when_its_dropping_is_void() {
    let pair = Pair::new(13, Requirement::Local);
    let [through, wanted] = [6, 7].map(|sequence| Version { epoch: EPOCH - 1, sequence });
    pair.append_on_both(5, &[block(1, 1), block(2, 1)]);
    pair.append_on_both(7, &[statement("wanted")]);
    pair.append_on_both(8, &[block(1, 2)]);
    pair.append_there(10, BlockWrite::SnapshotDropped { snapshot: wanted });
    *pair.fence.coverage.borrow_mut() = Coverage::through(through);
    let volume = pair.volume();
    pair.write(&volume, 5, 4);
    pair.resync(&volume, kept);
    assert_eq!(pair.view(&pair.there, wanted)[1..3], [1, 1]);
    pair.assert_equal();
}

/// The source has forgotten a hole, which the replica once had; then the snapshot goes that told of it.
#[test]
fn what_the_source_forgot_is_void_in_a_snapshot_that_is_filled_again() {
    let pair = Pair::new(12, Requirement::Local);
    pair.append_on_both(4, &[block(1, 1)]);
    pair.append_on_both(5, &[statement("older")]);
    pair.append_on_both(6, &[BlockWrite::Hole { address: BlockAddress(1), count: 1 }]);
    pair.append_on_both(7, &[statement("wanted")]);
    pair.append_on_both(9, &[block(1, 3)]);
    let [older, wanted] = [5, 7].map(|sequence| Version { epoch: EPOCH - 1, sequence });
    pair.append_there(10, BlockWrite::SnapshotDropped { snapshot: wanted });
    let volume = pair.volume();
    pair.write(&volume, 5, 4);
    let is_broken = pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    let _joiner = pair.mirror.join().unwrap();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(pair.list(&pair.there)[..2], [older, wanted], "the replica has the list, and nothing else");
    is_broken.set(true);
    pair.mirror.disconnected();
    pair.run(volume.drop_snapshot(older, 0)).unwrap();
    pair.here.forget_hole(VOLUME, BlockAddress(1));
    pair.resync(&volume, kept);
    assert_eq!((pair.view(&pair.here, wanted)[1], pair.view(&pair.there, wanted)[1]), (0, 0));
    pair.assert_equal();
}

#[test]
pub(super) fn the_last_consistent_state_is_kept_until_the_end() {
    let pair = Pair::new(7, Requirement::Local);
    pair.append_on_both(8, &(0..BLOCKS).map(|at| block(at, 5)).collect::<Vec<_>>());
    pair.append_on_both(9, &[block(1, 6)]);
    let volume = pair.volume();
    (0..BLOCKS).for_each(|at| pair.write(&volume, at, 40));
    (0..40).for_each(|at| pair.write(&volume, 200 + at * 300, 41));
    let before = pair.blocks(&pair.there, BLOCKS);
    let resync = Resync::new(pair.here.clone(), volume.clone(), pair.world.clone());
    // A stream that breaks in the middle, and another one.
    for turn in 0..2 {
        let is_broken = pair.connect();
        pair.executor.run_for(Duration::from_millis(5)).unwrap();
        let joiner = pair.mirror.join().unwrap();
        resync.limit((turn == 0).then_some(400_000));
        let breaks = pair.world.sleep(Duration::from_millis(if turn == 0 { 150 } else { 60_000 }));
        let ended = pair.run(async {
            matches!(select(Box::pin(resync.run(&joiner, kept)), breaks).await, Either::Left((Ok(()), _)))
        });
        assert_eq!(ended, turn == 1);
        if turn == 0 {
            assert_ne!(pair.blocks(&pair.there, BLOCKS), before, "it is a mixture by now");
            let (version, record) = pair.replicas.kept_state(VOLUME).unwrap();
            assert_eq!(
                (version, record.kind),
                (Version { epoch: EPOCH - 1, sequence: 9 }, SnapshotKind::BeforeResync)
            );
            assert_eq!(pair.view(&pair.there, version), before);
            is_broken.set(true);
            pair.mirror.disconnected();
            pair.executor.run_for(Duration::from_millis(5)).unwrap();
        }
    }
    assert_eq!((pair.replicas.kept_state(VOLUME), pair.list(&pair.there)), (None, vec![]));
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    pair.assert_equal();
}

#[test]
fn the_kept_state_gives_way_when_space_is_short() {
    let pair = Pair::new(8, Requirement::Local);
    pair.append_on_both(9, &(0..BLOCKS).map(|at| block(at, 5)).collect::<Vec<_>>());
    let volume = pair.volume();
    (0..BLOCKS).for_each(|at| pair.write(&volume, at, 40));
    pair.there.limit_space(BLOCKS + 4);
    pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    let joiner = pair.mirror.join().unwrap();
    let resync = Resync::new(pair.here.clone(), volume.clone(), pair.world.clone());
    assert!(pair.run(resync.run(&joiner, kept)).is_err());
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(pair.list(&pair.there), [], "it makes room");
    pair.there.limit_space(2 * BLOCKS);
    pair.resync(&volume, kept);
    pair.assert_equal();
}

#[test]
fn a_group_is_cut_at_one_moment_or_not_at_all() {
    let pair = Pair::new(9, Requirement::Local);
    let volume = pair.volume();
    let members = [(volume.clone(), record("group"))];
    let runtime = pair.world.clone();
    let taken = pair.run(take_group_snapshot(&members, &(runtime as _), Duration::from_secs(1))).unwrap();
    assert_eq!(pair.list(&pair.here), taken);
    pair.run(volume.close());
    let runtime = pair.world.clone();
    let closed = pair.run(take_group_snapshot(
        &[(volume.clone(), record("other"))],
        &(runtime as _),
        Duration::from_secs(1),
    ));
    assert_eq!(closed, Err(SnapshotError::Closed));
    // Nobody confirms: it is taken back.
    let pair = Pair::new(10, Requirement::Both);
    let volume = pair.volume();
    let runtime = pair.world.clone();
    let late = pair.run(take_group_snapshot(
        &[(volume.clone(), record("late"))],
        &(runtime as _),
        Duration::from_millis(20),
    ));
    assert_eq!(late, Err(SnapshotError::TimedOut));
    pair.connect();
    assert_eq!(pair.run(volume.snapshots()), Ok(vec![]));
    pair.executor.run_for(Duration::from_millis(10)).unwrap();
    assert_eq!((pair.list(&pair.here), pair.list(&pair.there)), (vec![], vec![]));
}
