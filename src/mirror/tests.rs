//! Both ends of a mirror over stores in memory, with a stream that delays and breaks.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::future::{join_all, poll_immediate};

use super::*;
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::runtime::{LocalBoxFuture, Runtime};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::sim::executor::{Executor, World};
use crate::sim::memory_store::MemoryStore;
use crate::store::interface::{BlockStore, BlockWrite, StoreError};

const VOLUME: VolumeId = VolumeId(7);
const EPOCH: u32 = 3;

/// A primary and a replica, each with a store, and the stream between them.
struct Pair {
    executor: Executor,
    world: Rc<World>,
    here: Rc<MemoryStore>,
    there: Rc<MemoryStore>,
    fence: Rc<Promises>,
    mirror: Mirror<MemoryStore>,
    events: Rc<RefCell<Vec<MirrorEvent>>>,
    sequence: Cell<u64>,
}

/// Promises in memory, and what the replica's store has got so far.
struct Promises {
    epoch: Cell<u32>,
    latest: Rc<Cell<Version>>,
    works: Cell<bool>,
}

impl Fence for Promises {
    fn promised(&self, _volume: VolumeId) -> u32 {
        self.epoch.get()
    }

    fn promise(&self, _volume: VolumeId, epoch: u32) -> LocalBoxFuture<'static, bool> {
        if self.works.get() {
            self.epoch.set(epoch);
        }
        Box::pin(std::future::ready(self.works.get()))
    }

    fn latest(&self, _volume: VolumeId) -> Version {
        self.latest.get()
    }
}

/// One stream. What is under way when it breaks is lost.
struct Wire {
    to_replica: UnboundedSender<ToReplica>,
    is_broken: Rc<Cell<bool>>,
}

impl ReplicaLink for Wire {
    fn send(&self, message: ToReplica) {
        if !self.is_broken.get() {
            self.to_replica.unbounded_send(message).unwrap();
        }
    }
}

impl Pair {
    fn new(seed: u64, requirement: Requirement) -> Self {
        let executor = Executor::new(seed);
        let world = executor.world("pair");
        let store = || Rc::new(MemoryStore::new(world.clone(), Duration::from_micros(200)));
        let (here, there) = (store(), store());
        let latest = Version { epoch: EPOCH - 1, sequence: 9 };
        let mirror = Mirror::new(here.clone(), world.clone(), VOLUME, EPOCH, latest, requirement);
        let fence = Promises {
            epoch: Cell::new(EPOCH - 1),
            latest: Rc::new(Cell::new(latest)),
            works: Cell::new(true),
        };
        let (fence, events) = (Rc::new(fence), Rc::default());
        Self { executor, world, here, there, fence, mirror, events, sequence: Cell::new(9) }
    }

    /// A new stream; breaks when the returned cell is set.
    fn connect(&self, start: ChainStart) -> Rc<Cell<bool>> {
        let is_broken = Rc::new(Cell::new(false));
        let (to_replica, mut at_replica) = unbounded::<ToReplica>();
        let (to_primary, mut at_primary) = unbounded::<FromReplica>();
        let replica = {
            let answer = move |message| to_primary.unbounded_send(message).unwrap_or_default();
            Replica::new(self.there.clone(), self.fence.clone(), self.world.clone(), answer)
        };
        let (world, broken, latest) = (self.world.clone(), is_broken.clone(), self.fence.latest.clone());
        self.world.spawn(Box::pin(async move {
            while let Some(message) = at_replica.next().await {
                world.sleep(Duration::from_micros(world.random() % 100)).await;
                if broken.get() {
                    return;
                }
                let version = match &message {
                    ToReplica::Write { version, .. } => Some(*version),
                    ToReplica::Begin { .. } => None,
                };
                replica.receive(message).await;
                latest.set(version.map_or(latest.get(), |version| latest.get().max(version)));
            }
        }));
        let (world, broken) = (self.world.clone(), is_broken.clone());
        let (mirror, events) = (self.mirror.clone(), self.events.clone());
        self.world.spawn(Box::pin(async move {
            while let Some(message) = at_primary.next().await {
                world.sleep(Duration::from_micros(world.random() % 100)).await;
                if broken.get() {
                    return;
                }
                events.borrow_mut().extend(mirror.received(message));
            }
        }));
        self.mirror.connected(Rc::new(Wire { to_replica, is_broken: is_broken.clone() }), start);
        is_broken
    }

    fn run<F: Future>(&self, main: F) -> F::Output {
        self.executor.block_on(main).unwrap()
    }

    fn next_version(&self) -> Version {
        self.sequence.set(self.sequence.get() + 1);
        Version { epoch: EPOCH, sequence: self.sequence.get() }
    }

    fn append(&self, address: u64, fill: u8) -> impl Future<Output = Result<(), StoreError>> + 'static {
        self.mirror.append(VOLUME, self.next_version(), vec![block(address, fill)])
    }

    fn blocks(&self, store: &MemoryStore, count: u64) -> Vec<u8> {
        let blocks = self.run(store.read(VOLUME, BlockAddress(0), count)).unwrap();
        blocks.iter().flat_map(|piece| piece.chunks(BLOCK_SIZE).map(|block| block[0])).collect()
    }
}

fn block(address: u64, fill: u8) -> BlockWrite {
    let mut data = AlignedBuf::zeroed(BLOCK_SIZE);
    data.fill(fill);
    let data: Bytes = data.freeze();
    BlockWrite::Data { address: BlockAddress(address), checksum: Crc32::of(&data), data }
}

#[test]
fn an_append_completes_when_both_have_it() {
    for seed in 0..50 {
        let pair = Pair::new(seed, Requirement::Both);
        let waiting = pair.append(0, 1);
        pair.executor.run_for(Duration::from_millis(5)).unwrap();
        let mut waiting = Box::pin(waiting);
        assert!(pair.run(poll_immediate(&mut waiting)).is_none(), "the replica has nothing yet");
        assert!(pair.mirror.silent_since().is_some());
        pair.connect(ChainStart::InSync);
        assert_eq!(pair.run(waiting), Ok(()));
        let writes: Vec<_> = (1..40).map(|n| pair.append(n % 8, n as u8)).collect();
        assert!(pair.run(join_all(writes)).into_iter().all(|outcome| outcome.is_ok()));
        assert_eq!(pair.blocks(&pair.here, 8), pair.blocks(&pair.there, 8));
        assert!(pair.mirror.is_level());
        assert_eq!(pair.mirror.silent_since(), None);
        assert_eq!(*pair.events.borrow(), [MirrorEvent::Streaming]);
    }
}

#[test]
fn a_read_waits_for_what_the_replica_lacks_and_for_nothing_else() {
    let pair = Pair::new(1, Requirement::Both);
    drop(pair.append(3, 1));
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    let mut reading = Box::pin(pair.mirror.read(VOLUME, BlockAddress(2), 2));
    let outcome = pair.run(async {
        pair.world.sleep(Duration::from_millis(5)).await;
        poll_immediate(&mut reading).await
    });
    assert!(outcome.is_none(), "block 3 is not on both nodes");
    let elsewhere = pair.run(pair.mirror.read(VOLUME, BlockAddress(0), 3)).unwrap();
    assert!(elsewhere.iter().all(|piece| piece.iter().all(|byte| *byte == 0)));
    pair.connect(ChainStart::InSync);
    assert_eq!(pair.run(reading).unwrap()[1][0], 1);
}

#[test]
fn a_stream_that_breaks_goes_on_without_a_gap() {
    for seed in 0..100 {
        let pair = Pair::new(seed, Requirement::Both);
        let mut waiting = Vec::new();
        let mut is_broken = pair.connect(ChainStart::InSync);
        for round in 0..6u64 {
            waiting.extend((0..10).map(|n| pair.append((n + round) % 16, (round * 10 + n) as u8)));
            pair.executor.run_for(Duration::from_micros(seed * 7 % 900)).unwrap();
            is_broken.set(true);
            pair.mirror.disconnected();
            is_broken = pair.connect(ChainStart::InSync);
        }
        assert!(pair.run(join_all(waiting)).into_iter().all(|outcome| outcome.is_ok()), "seed {seed}");
        assert_eq!(pair.blocks(&pair.here, 16), pair.blocks(&pair.there, 16), "seed {seed}");
        assert!(pair.events.borrow().iter().all(|event| *event == MirrorEvent::Streaming));
    }
}

#[test]
fn a_replica_that_lost_something_is_found_out() {
    let pair = Pair::new(2, Requirement::Both);
    let is_broken = pair.connect(ChainStart::InSync);
    assert_eq!(pair.run(pair.append(0, 1)), Ok(()));
    is_broken.set(true);
    pair.mirror.disconnected();
    pair.fence.latest.set(Version { epoch: EPOCH - 1, sequence: 9 });
    let mut waiting = Box::pin(pair.append(0, 2));
    pair.connect(ChainStart::InSync);
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(pair.events.borrow().last(), Some(&MirrorEvent::ReplicaLost));
    assert!(pair.run(poll_immediate(&mut waiting)).is_none(), "nothing is acknowledged on a guess");
    pair.mirror.require(Requirement::Local);
    assert_eq!(pair.run(waiting), Ok(()), "a committed set without the replica lets it complete");
}

#[test]
fn alone_it_needs_nobody_and_a_joiner_gets_what_is_new() {
    let pair = Pair::new(3, Requirement::Local);
    assert_eq!(pair.run(pair.append(0, 1)), Ok(()));
    assert_eq!(pair.run(pair.append(1, 2)), Ok(()));
    pair.connect(ChainStart::Joining);
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(*pair.events.borrow(), [MirrorEvent::Streaming]);
    assert_eq!(pair.run(pair.append(1, 3)), Ok(()));
    pair.mirror.copy(pair.next_version(), vec![block(0, 1)]);
    pair.mirror.require(Requirement::Both);
    assert_eq!(pair.run(pair.append(2, 4)), Ok(()));
    assert!(pair.mirror.is_level());
    assert_eq!(pair.blocks(&pair.there, 3), [1, 3, 4]);
    assert_eq!(pair.blocks(&pair.here, 3), [1, 3, 4]);
}

#[test]
fn a_newer_promise_fences_the_old_primary() {
    let pair = Pair::new(4, Requirement::Both);
    pair.connect(ChainStart::InSync);
    assert_eq!(pair.run(pair.append(0, 1)), Ok(()));
    pair.fence.epoch.set(EPOCH + 1);
    let mut waiting = Box::pin(pair.append(0, 2));
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(pair.events.borrow().last(), Some(&MirrorEvent::Fenced { promised: EPOCH + 1 }));
    assert!(pair.run(poll_immediate(&mut waiting)).is_none());
    assert_eq!(pair.blocks(&pair.there, 1), [1], "nothing of the old epoch reaches the store");
    pair.mirror.close();
    assert_eq!(pair.run(waiting), Err(StoreError::Offline));
    assert_eq!(pair.run(pair.mirror.read(VOLUME, BlockAddress(0), 1)).err(), Some(StoreError::Offline));
}

#[test]
fn what_the_local_store_refuses_is_not_sent() {
    let pair = Pair::new(5, Requirement::Both);
    pair.connect(ChainStart::InSync);
    pair.here.limit_space(1);
    assert_eq!(pair.run(pair.append(0, 1)), Ok(()));
    assert_eq!(pair.run(pair.append(1, 1)), Err(StoreError::OutOfSpace));
    pair.here.limit_space(9);
    assert_eq!(pair.run(pair.append(2, 1)), Ok(()));
    assert_eq!(pair.blocks(&pair.there, 3), [1, 0, 1]);
}

#[test]
fn a_replica_without_space_or_promise_says_so() {
    let pair = Pair::new(6, Requirement::Both);
    pair.connect(ChainStart::InSync);
    pair.there.limit_space(0);
    let _waiting = pair.append(0, 1);
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(pair.events.borrow().last(), Some(&MirrorEvent::ReplicaLost));

    let pair = Pair::new(7, Requirement::Both);
    pair.fence.works.set(false);
    pair.connect(ChainStart::InSync);
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(*pair.events.borrow(), [MirrorEvent::ReplicaLost]);
}

#[test]
fn an_append_that_nobody_waits_for_still_settles() {
    let pair = Pair::new(8, Requirement::Both);
    pair.connect(ChainStart::InSync);
    drop(pair.append(0, 1));
    let read = pair.run(async {
        pair.world.sleep(Duration::from_millis(5)).await;
        pair.mirror.read(VOLUME, BlockAddress(0), 1).await
    });
    assert_eq!(read.unwrap()[0][0], 1);
    assert_eq!(pair.blocks(&pair.there, 1), [1]);
}
