//! Both ends of a mirror over stores in memory, with a stream that delays and breaks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::future::{Either, join_all, poll_immediate, select};

use super::super::*;
use crate::base::buffer::{AlignedBuf, BufferPool};
use crate::base::checksum::Crc32;
use crate::base::runtime::{LocalBoxFuture, Runtime};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::sim::executor::{Executor, World};
use crate::sim::memory_store::MemoryStore;
use crate::store::interface::{BlockStore, BlockWrite, StoreError};
use crate::volume::device::DeviceGeometry;
use crate::volume::{Volume, VolumeParameters, VolumeServices};

pub(super) const VOLUME: VolumeId = VolumeId(7);
pub(super) const EPOCH: u32 = 3;

/// A primary and a replica, each with a store, and the stream between them.
pub(super) struct Pair {
    pub(super) executor: Executor,
    pub(super) world: Rc<World>,
    pub(super) here: Rc<MemoryStore>,
    pub(super) there: Rc<MemoryStore>,
    pub(super) fence: Rc<Promises>,
    pub(super) replicas: Replicas<MemoryStore>,
    pub(super) mirror: Mirror<MemoryStore>,
    pub(super) events: Rc<RefCell<Vec<MirrorEvent>>>,
    pub(super) sequence: Cell<u64>,
}

/// Promises and records in memory.
pub(super) struct Promises {
    pub(super) epoch: Cell<u32>,
    pub(super) latest: Cell<Version>,
    pub(super) works: Cell<bool>,
    pub(super) coverage: RefCell<Coverage>,
    pub(super) settled: Cell<Version>,
}

impl Records for Promises {
    fn coverage(&self, _volume: VolumeId) -> Coverage {
        self.coverage.borrow().clone()
    }

    fn save_coverage(&self, _volume: VolumeId, coverage: Coverage) -> LocalBoxFuture<'static, bool> {
        *self.coverage.borrow_mut() = coverage;
        Box::pin(std::future::ready(true))
    }

    fn settled(&self, _volume: VolumeId, version: Version) {
        self.settled.set(version);
    }

    fn unix_ms(&self) -> u64 {
        1
    }
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

    fn held(&self, _volume: VolumeId) -> Held {
        Held::all_through(self.latest.get())
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
    pub(super) fn new(seed: u64, requirement: Requirement) -> Self {
        let executor = Executor::new(seed);
        let world = executor.world("pair");
        let store = || Rc::new(MemoryStore::new(world.clone(), Duration::from_micros(200)));
        let (here, there) = (store(), store());
        let latest = Version { epoch: EPOCH - 1, sequence: 9 };
        let limits = WindowLimits { append_bytes: 20_000, appends: 6, copy_bytes: 20_000 };
        let at = (VOLUME, EPOCH, Held::all_through(latest));
        let mirror = Mirror::with_limits(here.clone(), world.clone(), at, requirement, limits);
        let fence = Rc::new(Promises {
            epoch: Cell::new(EPOCH - 1),
            latest: Cell::new(latest),
            works: Cell::new(true),
            coverage: RefCell::new(Coverage::Whole),
            settled: Cell::default(),
        });
        let replicas = Replicas::new(there.clone(), fence.clone(), fence.clone(), world.clone());
        let (events, sequence) = (Rc::default(), Cell::new(9));
        Self { executor, world, here, there, fence, replicas, mirror, events, sequence }
    }

    /// A new connection; breaks when the returned cell is set.
    pub(super) fn connect(&self) -> Rc<Cell<bool>> {
        let is_broken = Rc::new(Cell::new(false));
        let (to_replica, mut at_replica) = unbounded::<ToReplica>();
        let (to_primary, mut at_primary) = unbounded::<FromReplica>();
        let replica = self.replicas.connect(move |message| {
            to_primary.unbounded_send(message).unwrap_or_default();
        });
        let (world, broken) = (self.world.clone(), is_broken.clone());
        self.world.spawn(Box::pin(async move {
            while let Some(message) = at_replica.next().await {
                world.sleep(Duration::from_micros(world.random() % 100)).await;
                if broken.get() {
                    return;
                }
                replica.receive(message).await;
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
        self.mirror.connected(Rc::new(Wire { to_replica, is_broken: is_broken.clone() }));
        is_broken
    }

    /// A replica that lost what it got lately.
    pub(super) fn set_back(&self, latest: Version) -> Replicas<MemoryStore> {
        self.fence.latest.set(latest);
        Replicas::new(self.there.clone(), self.fence.clone(), self.fence.clone(), self.world.clone())
    }

    pub(super) fn volume(&self) -> Volume<Mirror<MemoryStore>> {
        let geometry = DeviceGeometry { logical_block_bytes: 4096, block_count: 100_000 };
        Volume::open(
            VolumeParameters { id: VOLUME, epoch: EPOCH, next_sequence: 10, geometry },
            VolumeServices {
                store: Rc::new(self.mirror.clone()),
                runtime: self.world.clone(),
                pool: BufferPool::new(1 << 20),
            },
        )
    }

    pub(super) fn run<F: Future>(&self, main: F) -> F::Output {
        self.executor.block_on(main).unwrap()
    }

    fn next_version(&self) -> Version {
        self.sequence.set(self.sequence.get() + 1);
        Version { epoch: EPOCH, sequence: self.sequence.get() }
    }

    pub(super) fn append(
        &self,
        address: u64,
        fill: u8,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        self.mirror.append(VOLUME, self.next_version(), vec![block(address, fill)])
    }

    pub(super) fn blocks(&self, store: &MemoryStore, count: u64) -> Vec<u8> {
        let blocks = self.run(store.read(VOLUME, BlockAddress(0), count)).unwrap();
        blocks.iter().flat_map(|piece| piece.chunks(BLOCK_SIZE).map(|block| block[0])).collect()
    }
}

pub(super) fn block(address: u64, fill: u8) -> BlockWrite {
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
        pair.connect();
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
    pair.connect();
    assert_eq!(pair.run(reading).unwrap()[1][0], 1);
}

#[test]
fn a_stream_that_breaks_goes_on_without_a_gap() {
    for seed in 0..100 {
        let pair = Pair::new(seed, Requirement::Both);
        let mut waiting = Vec::new();
        let mut is_broken = pair.connect();
        for round in 0..6u64 {
            waiting.extend((0..10).map(|n| pair.append((n + round) % 16, (round * 10 + n) as u8)));
            pair.executor.run_for(Duration::from_micros(seed * 7 % 900)).unwrap();
            is_broken.set(true);
            pair.mirror.disconnected();
            is_broken = pair.connect();
        }
        assert!(pair.run(join_all(waiting)).into_iter().all(|outcome| outcome.is_ok()), "seed {seed}");
        assert_eq!(pair.blocks(&pair.here, 16), pair.blocks(&pair.there, 16), "seed {seed}");
        assert!(pair.events.borrow().iter().all(|event| *event == MirrorEvent::Streaming));
    }
}

#[test]
fn a_replica_that_lost_something_is_found_out() {
    let mut pair = Pair::new(2, Requirement::Both);
    let is_broken = pair.connect();
    assert_eq!(pair.run(pair.append(0, 1)), Ok(()));
    is_broken.set(true);
    pair.mirror.disconnected();
    pair.replicas = pair.set_back(Version { epoch: EPOCH - 1, sequence: 9 });
    let mut waiting = Box::pin(pair.append(0, 2));
    pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(pair.events.borrow().last(), Some(&MirrorEvent::Behind));
    assert!(pair.run(poll_immediate(&mut waiting)).is_none(), "nothing is acknowledged on a guess");
    assert!(pair.mirror.join().is_none(), "it counts as in sync");
    pair.mirror.require(Requirement::Local);
    assert_eq!(pair.run(waiting), Ok(()), "a committed set without the replica lets it complete");
    assert!(pair.mirror.join().is_some());
}

#[test]
fn a_replica_ahead_of_its_primary_in_one_epoch_is_refused() {
    let mut pair = Pair::new(2, Requirement::Both);
    pair.replicas = pair.set_back(Version { epoch: EPOCH, sequence: 99 });
    pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    let lost = MirrorEvent::ReplicaLost { reason: ReplicaFailure::Protocol };
    assert_eq!(*pair.events.borrow(), [lost]);
}

/// What the sequence of a joiner's messages is, with the replica's answers.
#[test]
fn alone_it_needs_nobody_and_a_joiner_gets_what_is_new() {
    let pair = Pair::new(3, Requirement::Local);
    assert_eq!(pair.run(pair.append(0, 1)), Ok(()));
    assert_eq!(pair.run(pair.append(1, 2)), Ok(()));
    pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(*pair.events.borrow(), [MirrorEvent::Behind]);
    let joiner = pair.mirror.join().unwrap();
    assert_eq!(joiner.steps()[0].through, Version { epoch: EPOCH - 1, sequence: 9 });
    assert_eq!(pair.run(pair.append(1, 3)), Ok(()));
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_ne!(*pair.fence.coverage.borrow(), Coverage::Whole, "on record with the first write");
    let copied = joiner.copy(vec![block(0, 1)]).unwrap();
    assert!(!pair.mirror.is_replica_whole());
    assert_eq!(pair.run(copied), Ok(()));
    assert_eq!(pair.run(joiner.finish()), Ok(()));
    assert!(pair.mirror.is_replica_whole());
    assert_eq!(*pair.fence.coverage.borrow(), Coverage::Whole);
    pair.mirror.require(Requirement::Both);
    assert_eq!(pair.run(pair.append(2, 4)), Ok(()));
    assert!(pair.mirror.is_level());
    assert_eq!(pair.blocks(&pair.there, 3), [1, 3, 4]);
    assert_eq!(pair.blocks(&pair.here, 3), [1, 3, 4]);
    assert_eq!(pair.mirror.tell_settled(), Some(Version { epoch: EPOCH, sequence: 13 }));
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(pair.fence.settled.get(), Version { epoch: EPOCH, sequence: 13 });
}

#[test]
fn a_copy_on_a_stream_that_breaks_is_not_done() {
    let pair = Pair::new(12, Requirement::Local);
    assert_eq!(pair.run(pair.append(0, 1)), Ok(()));
    let is_broken = pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    let joiner = pair.mirror.join().unwrap();
    assert_eq!(pair.run(pair.append(1, 1)), Ok(()));
    let copied = joiner.copy(vec![block(0, 1)]).unwrap();
    is_broken.set(true);
    pair.mirror.disconnected();
    assert_eq!(pair.run(copied), Err(StreamEnded));
    pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert!(!pair.mirror.is_level() && !pair.mirror.is_replica_whole());
    assert!(joiner.copy(vec![block(0, 1)]).is_err(), "the joiner is of the old stream");
    assert_eq!(pair.run(joiner.finish()), Err(StreamEnded));
}

#[test]
fn what_is_in_flight_goes_on_in_the_next_epoch_and_old_answers_do_not_count() {
    for seed in 0..100 {
        let pair = Pair::new(seed, Requirement::Both);
        let mut is_broken = pair.connect();
        let waiting: Vec<_> = (0..12).map(|n| pair.append(n, 1)).collect();
        pair.executor.run_for(Duration::from_micros(seed * 11)).unwrap();
        if seed % 3 == 0 {
            is_broken.set(true);
            pair.mirror.disconnected();
        }
        pair.mirror.next_epoch(EPOCH + 1, Requirement::Both);
        if seed % 3 == 0 {
            is_broken = pair.connect();
        }
        let version = Version { epoch: EPOCH + 1, sequence: 99 };
        assert_eq!(pair.run(pair.mirror.append(VOLUME, version, vec![block(3, 2)])), Ok(()), "seed {seed}");
        assert_eq!(pair.run(join_all(waiting)).into_iter().find(Result::is_err), None, "seed {seed}");
        assert_eq!(pair.fence.epoch.get(), EPOCH + 1);
        assert_eq!(pair.blocks(&pair.here, 12), pair.blocks(&pair.there, 12));
        assert!(!is_broken.get());
    }
}

#[test]
pub(super) fn a_confirmation_of_the_epoch_before_does_not_complete_an_append() {
    let pair = Pair::new(14, Requirement::Both);
    let store = Rc::new(MemoryStore::new(pair.world.clone(), Duration::from_millis(500)));
    let held = Held::all_through(Version { epoch: EPOCH - 1, sequence: 9 });
    let mirror = Mirror::new(store, pair.world.clone(), VOLUME, EPOCH, held, Requirement::Both);
    let pair = Pair { mirror, ..pair };
    let is_broken = pair.connect();
    let mut waiting = Box::pin(pair.append(0, 1));
    pair.executor.run_for(Duration::from_millis(10)).unwrap();
    assert_eq!(pair.blocks(&pair.there, 1), [1]);
    is_broken.set(true);
    pair.mirror.disconnected();
    pair.mirror.next_epoch(EPOCH + 1, Requirement::Both);
    let outcome = pair.run(select(&mut waiting, pair.world.sleep(Duration::from_secs(2))));
    assert!(matches!(outcome, Either::Right(_)), "nobody has confirmed it in this epoch");
    drop(outcome);
    pair.connect();
    assert_eq!(pair.run(waiting), Ok(()));
}

#[test]
fn a_full_stream_makes_appends_wait_and_drops_none() {
    let pair = Pair::new(15, Requirement::Local);
    let is_broken = pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(*pair.events.borrow(), [MirrorEvent::Streaming]);
    // The other side takes its time.
    pair.there.set_offline(false);
    let waiting: Vec<_> = (0..40).map(|n| pair.append(n, 1)).collect();
    is_broken.set(true);
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    let mut waiting = Box::pin(join_all(waiting));
    assert!(pair.run(poll_immediate(&mut waiting)).is_none(), "most of them have not been sent");
    assert!(pair.mirror.silent_since().is_some());
    pair.mirror.disconnected();
    assert!(pair.run(waiting).into_iter().all(|outcome| outcome.is_ok()), "nobody else is needed");
    pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(pair.events.borrow().last(), Some(&MirrorEvent::Behind));
}

#[test]
pub(super) fn a_newer_promise_fences_the_old_primary() {
    let pair = Pair::new(4, Requirement::Both);
    pair.connect();
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
    pair.connect();
    pair.here.limit_space(1);
    assert_eq!(pair.run(pair.append(0, 1)), Ok(()));
    assert_eq!(pair.run(pair.append(1, 1)), Err(StoreError::OutOfSpace));
    pair.here.limit_space(9);
    assert_eq!(pair.run(pair.append(2, 1)), Ok(()));
    assert_eq!(pair.blocks(&pair.there, 3), [1, 0, 1]);
}

#[test]
pub(super) fn two_full_nodes_take_overwrites() {
    let pair = Pair::new(8, Requirement::Both);
    pair.connect();
    (0..3).for_each(|address| assert_eq!(pair.run(pair.append(address, 1)), Ok(())));
    pair.here.limit_space(3);
    pair.there.limit_space(3);
    for round in 2..6 {
        let address = u64::from(round % 3);
        pair.run(pair.mirror.prepare(VOLUME, &[block(address, round)]));
        assert_eq!(pair.run(pair.append(address, round)), Ok(()));
    }
    assert_eq!(pair.blocks(&pair.there, 3), [3, 4, 5]);
    pair.run(pair.mirror.prepare(VOLUME, &[block(3, 1)]));
    assert_eq!(pair.run(pair.append(3, 1)), Err(StoreError::OutOfSpace));
    assert!(!pair.events.borrow().iter().any(|event| matches!(event, MirrorEvent::ReplicaLost { .. })));
}

#[test]
fn a_replica_without_space_or_promise_says_so() {
    let pair = Pair::new(6, Requirement::Both);
    pair.connect();
    pair.there.limit_space(0);
    let _waiting = pair.append(0, 1);
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(
        pair.events.borrow().last(),
        Some(&MirrorEvent::ReplicaLost { reason: StoreError::OutOfSpace.into() })
    );

    let pair = Pair::new(7, Requirement::Both);
    pair.fence.works.set(false);
    pair.connect();
    pair.executor.run_for(Duration::from_millis(5)).unwrap();
    assert_eq!(*pair.events.borrow(), [MirrorEvent::ReplicaLost { reason: ReplicaFailure::Records }]);
}

#[test]
fn an_append_that_nobody_waits_for_still_settles() {
    let pair = Pair::new(8, Requirement::Both);
    pair.connect();
    drop(pair.append(0, 1));
    let read = pair.run(async {
        pair.world.sleep(Duration::from_millis(5)).await;
        pair.mirror.read(VOLUME, BlockAddress(0), 1).await
    });
    assert_eq!(read.unwrap()[0][0], 1);
    assert_eq!(pair.blocks(&pair.there, 1), [1]);
}
