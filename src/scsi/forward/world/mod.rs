//! Two units over one volume, with everything between them in a seeded world: messages that arrive late or, when the
//! connection is cut, never; the device at one node or the other, by plan or because a node is deposed; sessions that
//! end, begin again, abort, preempt.
//!
//! Checked: a write takes effect once at most, and never after its command has ended otherwise than in good order, its
//! abort, the end of its session or the preemption of its nexus has been acknowledged (I16, I17); a write that was
//! answered GOOD has taken effect; in the end everything is answered, and nothing is counted as under way.

mod hosts;
mod site;
pub(in crate::scsi) mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::base::runtime::{Instant, LocalBoxFuture, Runtime};
use crate::base::units::VolumeId;
use crate::volume::device::{AllocationRun, BlockDevice, CompareOutcome, DeviceError, DeviceGeometry};

pub(super) const VOLUME: VolumeId = VolumeId(1);
pub(super) const BLOCKS: u64 = 8;
pub(super) const HOSTS: usize = 4;

/// What all of a world share.
pub(super) struct Common {
    pub(super) random: RefCell<ChaCha8Rng>,
    /// Steps since the start.
    pub(super) now: Cell<u64>,
    spawned: RefCell<Vec<LocalBoxFuture<'static, ()>>>,
    pub(super) medium: RefCell<Medium>,
    /// PERSISTENT RESERVE OUT commands that have not ended.
    pub(super) reserving: Cell<usize>,
}

/// The blocks, and what has ever been done to them.
#[derive(Default)]
pub(super) struct Medium {
    pub(super) blocks: BTreeMap<u64, u64>,
    pub(super) applied: BTreeSet<u64>,
    /// Writes that must not take effect any more, and why.
    pub(super) dead: BTreeMap<u64, &'static str>,
    /// Hosts that a reservation shuts out for certain.
    pub(super) forbidden: BTreeSet<u8>,
    /// Devices of lower epochs write nothing any more.
    pub(super) fence: u64,
}

impl Common {
    pub(super) fn chance(&self, one_in: u32) -> bool {
        self.random.borrow_mut().random_range(0..one_in) == 0
    }

    pub(super) fn below(&self, limit: usize) -> usize {
        self.random.borrow_mut().random_range(0..limit)
    }

    /// Polls all tasks once.
    pub(super) fn poll_tasks(&self) {
        let mut tasks = self.spawned.take();
        tasks.retain_mut(|task| poll(task.as_mut()).is_none());
        self.spawned.borrow_mut().extend(tasks);
    }

    pub(super) fn task_count(&self) -> usize {
        self.spawned.borrow().len()
    }

    /// Some steps go by.
    async fn delay(self: &Rc<Self>, most: usize) {
        let until = self.now.get() + self.below(most) as u64;
        std::future::poll_fn(|_| if self.now.get() >= until { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

pub(super) fn poll<T>(future: std::pin::Pin<&mut (dyn Future<Output = T> + 'static)>) -> Option<T> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// The common world as a runtime: a step is ten milliseconds.
pub(super) struct Steps(pub(super) Rc<Common>);

impl Runtime for Steps {
    fn now(&self) -> Instant {
        Instant(self.0.now.get() * 10_000_000)
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        let (common, steps) = (self.0.clone(), duration.as_millis() as u64 / 10);
        let until = self.0.now.get() + steps;
        Box::pin(std::future::poll_fn(move |_| {
            if common.now.get() >= until { Poll::Ready(()) } else { Poll::Pending }
        }))
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        self.0.spawned.borrow_mut().push(task);
    }

    fn random(&self) -> u64 {
        self.0.random.borrow_mut().random()
    }
}

/// The volume as one node has it in one epoch. Each request takes a while.
pub(super) struct SlowDevice {
    pub(super) common: Rc<Common>,
    pub(super) epoch: u64,
}

impl SlowDevice {
    async fn enter(&self) -> Result<(), DeviceError> {
        self.common.delay(40).await;
        if self.epoch < self.common.medium.borrow().fence { Err(DeviceError::NotServing) } else { Ok(()) }
    }
}

impl BlockDevice for SlowDevice {
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry { logical_block_bytes: 512, block_count: BLOCKS }
    }

    async fn read(&self, address: u64, count: u64) -> Result<Vec<Bytes>, DeviceError> {
        self.enter().await?;
        let medium = self.common.medium.borrow();
        let stamp = |block| medium.blocks.get(&block).copied().unwrap_or(0);
        Ok((address..address + count).map(|block| data_of(stamp(block))).collect())
    }

    async fn write(&self, address: u64, data: Vec<Bytes>) -> Result<(), DeviceError> {
        self.enter().await?;
        let stamp = stamp_of(&data.concat());
        let mut medium = self.common.medium.borrow_mut();
        assert!(medium.applied.insert(stamp), "write {stamp} takes effect twice");
        if let Some(why) = medium.dead.get(&stamp) {
            panic!("write {stamp} takes effect after {why}");
        }
        let host = (stamp >> 32) as u8;
        assert!(!medium.forbidden.contains(&host), "write {stamp} takes effect in spite of a reservation");
        medium.blocks.insert(address, stamp);
        Ok(())
    }

    async fn write_same(&self, _: u64, _: u64, _: Bytes) -> Result<(), DeviceError> {
        unreachable!("no host does that here")
    }

    async fn compare_and_write(&self, _: u64, _: Bytes, _: Bytes) -> Result<CompareOutcome, DeviceError> {
        unreachable!("no host does that here")
    }

    async fn unmap(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        unreachable!("no host does that here")
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.enter().await
    }

    async fn allocation(&self, _: u64, _: u64, _: usize) -> Result<Vec<AllocationRun>, DeviceError> {
        unreachable!("no host does that here")
    }
}

pub(super) fn data_of(stamp: u64) -> Bytes {
    stamp.to_be_bytes().repeat(64).into()
}

pub(super) fn stamp_of(data: &[u8]) -> u64 {
    u64::from_be_bytes(data[..8].try_into().expect("a block"))
}

/// A connection from one node to the other: messages on their way, in both directions.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) to_serving: RefCell<VecDeque<Bytes>>,
    pub(super) from_serving: RefCell<VecDeque<Bytes>>,
    pub(super) is_cut: Cell<bool>,
}
