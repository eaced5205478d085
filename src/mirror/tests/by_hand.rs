//! One side of a mirror against messages by hand, and resyncs over a pair in memory.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, poll_immediate, select};

use super::super::*;
use super::pair::{EPOCH, Pair, VOLUME, block};
use crate::base::buffer::AlignedBuf;
use crate::base::runtime::Runtime;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version};
use crate::sim::memory_store::MemoryStore;
use crate::store::interface::{BlockStore, Changes};
use crate::volume::device::BlockDevice;

/// Plays the replica by hand: what was sent.
struct Recorder(RefCell<Vec<ToReplica>>);

impl ReplicaLink for Recorder {
    fn send(&self, message: ToReplica) {
        self.0.borrow_mut().push(message);
    }
}

impl Recorder {
    fn connect(pair: &Pair) -> (Rc<Self>, StreamId) {
        let recorder = Rc::new(Self(RefCell::default()));
        pair.mirror.connected(recorder.clone());
        let (_, stream) = recorder.0.borrow()[0].belongs_to();
        (recorder, stream)
    }
}

fn ready(stream: StreamId, sequence: u64) -> FromReplica {
    let epoch = if sequence > 9 { EPOCH } else { EPOCH - 1 };
    let durable = Version { epoch, sequence };
    FromReplica::Ready { volume: VOLUME, stream, durable, coverage: Coverage::Whole }
}

#[test]
pub(super) fn answers_of_an_older_stream_do_not_count() {
    let pair = Pair::new(16, Requirement::Both);
    let (_, old) = Recorder::connect(&pair);
    assert_eq!(pair.mirror.received(ready(old, 9)), Some(MirrorEvent::Streaming));
    let mut waiting = Box::pin(pair.append(0, 1));
    let (_, new) = Recorder::connect(&pair);
    assert_eq!(pair.mirror.received(ready(old, 9)), None);
    assert_eq!(pair.mirror.received(ready(new, 9)), Some(MirrorEvent::Streaming));
    let durable = |stream, sequence| {
        let version = Version { epoch: EPOCH, sequence };
        pair.mirror.received(FromReplica::Durable { volume: VOLUME, stream, version })
    };
    assert_eq!(durable(old, 10), None);
    let outcome = pair.run(select(&mut waiting, pair.world.sleep(Duration::from_millis(5))));
    assert!(matches!(outcome, Either::Right(_)), "it was said of another stream");
    drop(outcome);
    let lost = MirrorEvent::ReplicaLost { reason: ReplicaFailure::Protocol };
    assert_eq!(durable(new, 10), None);
    assert_eq!(pair.run(waiting), Ok(()));
    assert_eq!(durable(new, 11), Some(lost), "nothing like that was sent");
}

#[test]
pub(super) fn writes_of_an_older_stream_are_not_taken() {
    let pair = Pair::new(17, Requirement::Both);
    let (old_link, new_link) = (pair.replicas.connect(|_| {}), pair.replicas.connect(|_| {}));
    let stream = |number| StreamId { epoch: EPOCH, number };
    let begin = |number| ToReplica::Begin { volume: VOLUME, stream: stream(number) };
    let write = |number, sequence: u64, fill| ToReplica::Write {
        volume: VOLUME,
        stream: stream(number),
        version: Version { epoch: EPOCH, sequence },
        previous: Version { epoch: EPOCH - u32::from(sequence == 10), sequence: sequence - 1 },
        writes: vec![block(0, fill)],
    };
    pair.run(async {
        old_link.receive(begin(1)).await;
        old_link.receive(write(1, 10, 1)).await;
        new_link.receive(begin(2)).await;
        // Still in the queue of the old connection.
        old_link.receive(write(1, 11, 2)).await;
        old_link.receive(begin(1)).await;
        old_link.receive(write(1, 11, 2)).await;
        new_link.receive(write(2, 11, 3)).await;
        pair.world.sleep(Duration::from_millis(5)).await;
    });
    assert_eq!(pair.blocks(&pair.there, 1), [3]);
    assert_eq!(pair.there.append_count(), 2);
}

#[test]
pub(super) fn the_cursor_does_not_pass_a_copy_without_an_answer() {
    let pair = Pair::new(18, Requirement::Local);
    let volume = pair.volume();
    let write = |address| volume.write(address, vec![AlignedBuf::copy_of(&[7; BLOCK_SIZE]).freeze()]);
    for address in [5, 20_000, 40_000, 80_000] {
        pair.run(write(address)).unwrap();
    }
    let (recorder, stream) = Recorder::connect(&pair);
    assert_eq!(pair.mirror.received(ready(stream, 9)), Some(MirrorEvent::Behind));
    let joiner = pair.mirror.join().unwrap();
    let coverage = Coverage::through(Version { epoch: EPOCH - 1, sequence: 9 });
    pair.mirror.received(FromReplica::Reconciled { volume: VOLUME, stream, coverage });
    let resync = Resync::new(pair.here.clone(), volume, pair.world.clone());
    let mut running = Box::pin(resync.run(&joiner, |version| version));
    let mut turn = async || {
        poll_immediate(&mut running).await;
        pair.world.sleep(Duration::from_millis(5)).await;
        poll_immediate(&mut running).await;
    };
    pair.run(async { turn().await });
    let empty = Changes::default();
    let from = BlockAddress(0);
    pair.mirror.received(FromReplica::Reported { volume: VOLUME, stream, from, changes: empty });
    (0..40).for_each(|_| pair.run(async { turn().await }));
    let passed = || {
        let cursor = |message: &ToReplica| match message {
            ToReplica::Passed { cursor, .. } => Some(cursor.0),
            _ => None,
        };
        recorder.0.borrow().iter().filter_map(cursor).collect::<Vec<_>>()
    };
    let copies = recorder.0.borrow().iter().filter(|m| matches!(m, ToReplica::Copy { .. })).count();
    assert_eq!((copies, passed()), (4, vec![]), "nothing has been answered");
    for number in 1..=2 {
        pair.mirror.received(FromReplica::Copied { volume: VOLUME, stream, number });
    }
    (0..3).for_each(|_| pair.run(async { turn().await }));
    assert!(passed().iter().all(|cursor| *cursor <= 40_000), "{:?}", passed());
    drop(running);
    assert_eq!(resync.progress().to_copy_blocks, 4);
}

fn common(version: Version) -> Version {
    version
}

#[test]
fn a_resync_that_breaks_goes_on_where_it_was_and_keeps_to_its_limit() {
    const CHANGED: u64 = 8000;
    let mut pair = Pair::new(19, Requirement::Local);
    let volume = pair.volume();
    for first in (0..CHANGED).step_by(100) {
        let data = AlignedBuf::copy_of(&[7; 100 * BLOCK_SIZE]).freeze();
        pair.run(volume.write(first * 2, vec![data])).unwrap();
    }
    pair.run(volume.unmap(0, 10)).unwrap();
    let resync = Rc::new(Resync::new(pair.here.clone(), volume.clone(), pair.world.clone()));
    for turn in 0..3 {
        let is_broken = pair.connect();
        pair.executor.run_for(Duration::from_millis(5)).unwrap();
        let joiner = pair.mirror.join().unwrap();
        let began = pair.executor.now();
        let outcome = pair.run(async {
            let breaks = pair.world.sleep(Duration::from_millis(if turn < 2 { 120 } else { 100_000 }));
            match select(Box::pin(resync.run(&joiner, common)), breaks).await {
                Either::Left((outcome, _)) => Some(outcome),
                Either::Right(_) => None,
            }
        });
        let progress = resync.progress();
        let elapsed = pair.executor.now().since(began);
        if turn == 2 {
            assert_eq!(outcome, Some(Ok(())));
            let least = Duration::from_millis(progress.copied_blocks * 4096 / 40_000);
            assert!(elapsed > least.mul_f64(0.95), "{elapsed:?} for {progress:?}");
            assert!(progress.bytes_per_second <= 42_000_000);
            break;
        }
        assert_eq!(outcome, None, "it takes longer: {progress:?}");
        assert!(progress.cursor.0 > 0 && progress.to_copy_blocks > progress.copied_blocks);
        is_broken.set(true);
        pair.mirror.disconnected();
        pair.executor.run_for(Duration::from_millis(5)).unwrap();
        if turn == 1 {
            // The replica starts anew, with what is on its record.
            pair.replicas = pair.set_back(volume.latest_version());
            resync.limit(Some(40_000_000));
        }
    }
    let copied = resync.progress().copied_in_all_blocks;
    assert!((CHANGED..=CHANGED * 11 / 10).contains(&(copied + 10)), "{copied} blocks for {CHANGED}");
    assert!(pair.mirror.is_replica_whole());
    for first in (0..2 * CHANGED).step_by(100) {
        let read = |store: &Rc<MemoryStore>| pair.run(store.read(VOLUME, BlockAddress(first), 100)).unwrap();
        assert_eq!(read(&pair.here).concat(), read(&pair.there).concat());
    }
}

#[test]
fn what_cannot_be_read_is_left_alone_and_said() {
    let pair = Pair::new(20, Requirement::Local);
    let volume = pair.volume();
    let data = |fill: u8| vec![AlignedBuf::copy_of(&[fill; 4 * BLOCK_SIZE]).freeze()];
    pair.run(volume.write(0, data(1))).unwrap();
    pair.here.spoil(VOLUME, BlockAddress(2));
    pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    let joiner = pair.mirror.join().unwrap();
    let resync = Resync::new(pair.here.clone(), volume.clone(), pair.world.clone());
    let unreadable = ResyncError::Unreadable { first: BlockAddress(2), count: 1 };
    assert_eq!(pair.run(resync.run(&joiner, common)), Err(unreadable));
    assert_eq!(pair.blocks(&pair.there, 4), [1, 1, 0, 1]);
    assert!(!pair.mirror.is_replica_whole());
}
