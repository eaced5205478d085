//! The primary's end of a volume's mirror: a block store whose appends are on both replicas.
//!
//! Guarantees, as long as whoever decides the configuration sets the [`Requirement`] as it must:
//! - an append completes when the local store has it on stable media and, with
//!   [`Requirement::Both`], the replica as well (I1);
//! - a read returns nothing of an append that has not completed (I9): one that may have seen such a
//!   block waits for it;
//! - appends go to the local store and to the stream in one order, at the time of the call, and only
//!   when the local store admitted them, so that both replicas hold the same;
//! - what the replica may lack is kept and sent again when the stream comes back in the same epoch.
//!
//! Left to others: when to shrink, expand or stop ([`Mirror::silent_since`] tells how long the replica
//! owes an answer), the bound on appends in flight (`iscsi`'s budget), the stream itself.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::chain::{Chain, Origin};
use super::message::{FromReplica, ToReplica};
use crate::base::runtime::{Instant, RuntimeHandle};
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::store::interface::{BlockRun, BlockStore, BlockWrite, StoreError};

/// Where messages to the replica go. Sending never waits; a message that the stream loses is sent again
/// after the next [`Mirror::connected`].
pub trait ReplicaLink {
    /// Queues a message behind those sent before.
    fn send(&self, message: ToReplica);
}

/// Whom an append needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The local store: the committed in-sync set is this node alone, and no larger one is proposed.
    Local,
    /// Both replicas: the committed or a proposed in-sync set has both.
    Both,
}

/// What a replica may be assumed to have when a stream to it comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainStart {
    /// Everything that was settled in this epoch: it is in the in-sync set. If it lacks any of that it has
    /// lost data, and [`MirrorEvent::ReplicaLost`] says so.
    InSync,
    /// Anything: it joins, gets what is in flight now and what is appended from now on, and
    /// [`Mirror::copy`] brings the rest.
    Joining,
}

/// One volume, mirrored in one epoch. Clones are handles of the same mirror.
pub struct Mirror<S: BlockStore> {
    shared: Rc<Shared<S>>,
}

impl<S: BlockStore + 'static> Mirror<S> {
    /// The mirror of `volume` for `epoch`; `latest` is the newest version in `local`. Nothing is sent
    /// before [`Mirror::connected`].
    #[must_use]
    pub fn new(
        local: Rc<S>,
        runtime: RuntimeHandle,
        volume: VolumeId,
        epoch: u32,
        latest: Version,
        requirement: Requirement,
    ) -> Self {
        let chain = Chain::new(latest);
        Self {
            shared: Rc::new(Shared {
                local,
                runtime,
                volume,
                epoch,
                requirement: Cell::new(requirement),
                stream: RefCell::new(Stream::None),
                chain: RefCell::new(chain),
                is_closed: Cell::new(false),
            }),
        }
    }

    /// Sets whom appends need from now on, those in flight included.
    pub fn require(&self, requirement: Requirement) {
        self.shared.requirement.set(requirement);
        self.shared.settle();
    }

    /// A stream to the replica is there: the chain goes on, or begins, once the replica is
    /// [`FromReplica::Ready`].
    pub fn connected(&self, link: Rc<dyn ReplicaLink>, start: ChainStart) {
        link.send(ToReplica::Begin { volume: self.shared.volume, epoch: self.shared.epoch });
        *self.shared.stream.borrow_mut() = Stream::Beginning(link, start);
    }

    /// The stream is gone. What was sent and not answered is sent again on the next one.
    pub fn disconnected(&self) {
        *self.shared.stream.borrow_mut() = Stream::None;
    }

    /// Takes an answer of the replica to this volume; what it means for the configuration, if anything.
    pub fn received(&self, answer: FromReplica) -> Option<MirrorEvent> {
        let shared = &self.shared;
        match answer {
            FromReplica::Ready { volume, epoch, durable } if shared.is_ours(volume, epoch) => {
                shared.resume(durable)
            }
            // An answer to a write of an older epoch says nothing of those in this one.
            FromReplica::Durable { volume, version } if shared.is_ours(volume, version.epoch) => {
                if shared.is_streaming() {
                    shared.chain.borrow_mut().replica_has(version);
                    shared.settle();
                }
                None
            }
            FromReplica::Fenced { volume, promised }
                if volume == shared.volume && promised > shared.epoch =>
            {
                self.disconnected();
                Some(MirrorEvent::Fenced { promised })
            }
            FromReplica::Failed { volume, epoch, .. } if shared.is_ours(volume, epoch) => {
                self.disconnected();
                Some(MirrorEvent::ReplicaLost)
            }
            _ => None,
        }
    }

    /// Sends blocks that the replica lacks, as they are now, under a version of their own that is newer
    /// than all before. The caller holds their range lock from the read of `writes` to this call, so
    /// that no append of them is passed. Does nothing without a stream.
    pub fn copy(&self, version: Version, writes: Vec<BlockWrite>) {
        let shared = &self.shared;
        let now = shared.runtime.now();
        let previous = shared.chain.borrow_mut().push(version, writes.clone(), Origin::Copy, now);
        shared.send(version, previous, writes);
        shared.settle();
    }

    /// Since when the replica has owed an answer to the oldest append that waits for it.
    #[must_use]
    pub fn silent_since(&self) -> Option<Instant> {
        self.shared.chain.borrow().unanswered_since()
    }

    /// Whether everything that was appended and copied so far is durable on the replica too.
    #[must_use]
    pub fn is_level(&self) -> bool {
        self.shared.is_streaming() && self.shared.chain.borrow().is_level()
    }

    /// Ends the mirror: appends and reads that still wait fail with [`StoreError::Offline`].
    pub fn close(&self) {
        self.shared.is_closed.set(true);
        self.disconnected();
        self.shared.settle();
    }
}

impl<S: BlockStore> Clone for Mirror<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

/// What the replica's answer means for the volume's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorEvent {
    /// The chain goes on in the replica without a gap.
    Streaming,
    /// The replica has promised a newer epoch: this primary is deposed, or will be.
    Fenced {
        /// That epoch.
        promised: u32,
    },
    /// The replica failed or does not have what it acknowledged: it has to leave the in-sync set and to
    /// be brought up to date.
    ReplicaLost,
}

impl<S: BlockStore + 'static> BlockStore for Mirror<S> {
    fn start_append(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        let shared = &self.shared;
        assert!(shared.is_ours(volume, version.epoch), "an append of another volume or epoch");
        if shared.is_closed.get() {
            return Err(StoreError::Offline);
        }
        let local = Box::pin(shared.local.start_append(volume, version, writes.clone())?);
        let now = shared.runtime.now();
        let previous = shared.chain.borrow_mut().push(version, writes.clone(), Origin::Append, now);
        shared.send(version, previous, writes);
        Ok(Append { shared: shared.clone(), version, local: Some(local) })
    }

    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        let data = self.shared.local.read(volume, address, count).await?;
        self.shared.until_settled(address, count).await?;
        Ok(data)
    }

    async fn allocation(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        let runs = self.shared.local.allocation(volume, address, count, limit).await?;
        self.shared.until_settled(address, count).await?;
        Ok(runs)
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.shared.local.flush().await?;
        self.shared.until_settled(BlockAddress(0), u64::MAX).await
    }
}

struct Shared<S> {
    local: Rc<S>,
    runtime: RuntimeHandle,
    volume: VolumeId,
    epoch: u32,
    requirement: Cell<Requirement>,
    stream: RefCell<Stream>,
    chain: RefCell<Chain>,
    is_closed: Cell<bool>,
}

enum Stream {
    None,
    /// The replica has not said yet where the chain goes on.
    Beginning(Rc<dyn ReplicaLink>, ChainStart),
    Streaming(Rc<dyn ReplicaLink>),
}

impl<S> Shared<S> {
    fn is_ours(&self, volume: VolumeId, epoch: u32) -> bool {
        volume == self.volume && epoch == self.epoch
    }

    fn is_streaming(&self) -> bool {
        matches!(*self.stream.borrow(), Stream::Streaming(_))
    }

    fn send(&self, version: Version, previous: Version, writes: Vec<BlockWrite>) {
        if let Stream::Streaming(link) = &*self.stream.borrow() {
            link.send(ToReplica::Write { volume: self.volume, version, previous, writes });
        }
    }

    /// Sends again what the replica lacks, if the chain still has all of it.
    fn resume(&self, durable: Version) -> Option<MirrorEvent> {
        let Stream::Beginning(link, start) = self.stream.replace(Stream::None) else { return None };
        let missing = match start {
            ChainStart::InSync => self.chain.borrow_mut().after(durable),
            ChainStart::Joining => Some(self.chain.borrow_mut().begin_at(durable)),
        };
        let Some(missing) = missing else { return Some(MirrorEvent::ReplicaLost) };
        let mut previous = durable;
        for (version, writes) in missing {
            link.send(ToReplica::Write { volume: self.volume, version, previous, writes });
            previous = version;
        }
        *self.stream.borrow_mut() = Stream::Streaming(link);
        self.settle();
        Some(MirrorEvent::Streaming)
    }

    /// Wakes whoever waits for what has become durable where it must.
    fn settle(&self) {
        let mut woken = self.chain.borrow_mut().settle(self.requirement.get());
        if self.is_closed.get() {
            woken.extend(self.chain.borrow_mut().all_wakers());
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Waits for the appends so far that touch a range.
    async fn until_settled(&self, address: BlockAddress, count: u64) -> Result<(), StoreError> {
        let newest = self.chain.borrow().newest_in(address, count);
        let Some(newest) = newest else { return Ok(()) };
        std::future::poll_fn(|context| self.poll_settled(newest, context)).await
    }

    fn poll_settled(&self, version: Version, context: &mut Context<'_>) -> Poll<Result<(), StoreError>> {
        if self.chain.borrow_mut().is_settled_or_wakes(version, context.waker()) {
            Poll::Ready(Ok(()))
        } else if self.is_closed.get() {
            Poll::Ready(Err(StoreError::Offline))
        } else {
            Poll::Pending
        }
    }

    /// The local store has the append, and all before it; or it has failed for good.
    fn local_completed(&self, version: Version, outcome: Result<(), StoreError>) {
        match outcome {
            Ok(()) => self.chain.borrow_mut().local_has(version),
            // An admitted append fails only with the whole store.
            Err(_) => self.is_closed.set(true),
        }
        self.settle();
    }
}

/// An append on its way. Dropping it takes nothing back: the rest goes on as a task.
struct Append<S: BlockStore + 'static, F: Future<Output = Result<(), StoreError>> + 'static> {
    shared: Rc<Shared<S>>,
    version: Version,
    /// None once the local store has answered.
    local: Option<Pin<Box<F>>>,
}

impl<S: BlockStore, F: Future<Output = Result<(), StoreError>>> Future for Append<S, F> {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(local) = &mut self.local {
            let Poll::Ready(outcome) = local.as_mut().poll(context) else { return Poll::Pending };
            self.local = None;
            self.shared.local_completed(self.version, outcome);
        }
        self.shared.poll_settled(self.version, context)
    }
}

impl<S: BlockStore + 'static, F: Future<Output = Result<(), StoreError>> + 'static> Drop for Append<S, F> {
    fn drop(&mut self) {
        if let Some(local) = self.local.take() {
            let (shared, version) = (self.shared.clone(), self.version);
            self.shared.runtime.spawn(Box::pin(async move {
                let outcome = local.await;
                shared.local_completed(version, outcome);
            }));
        }
    }
}
