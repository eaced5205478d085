//! The primary's end of a volume's mirror: a block store whose appends are on both replicas.
//!
//! Guarantees, as long as whoever decides the configuration sets the [`Requirement`] as it must:
//! - an append completes when the local store has it on stable media and, with
//!   [`Requirement::Both`], the replica as well, by an answer of the present epoch (I1);
//! - a read returns nothing of an append that has not completed (I9): one that may have seen such a
//!   block waits for it;
//! - appends go to the local store and to the stream in one order, at the time of the call, and only
//!   when the local store admitted them, so that both replicas hold the same;
//! - what the replica may lack is kept and sent again: when a stream comes back, and when the epoch
//!   changes ([`Mirror::next_epoch`]), in which case it keeps the version that it has;
//! - what is on its way to the replica is bounded ([`WindowLimits`]): what does not fit stays in the
//!   chain, and nothing is dropped; an append that needs nobody else completes only when it was sent.
//!
//! **Where both have the same.** Only appends have versions, and the local store takes each of them: a copy
//! carries the version of the append before it. So the latest version of a replica is one that this node
//! has given, and two replicas that say that they are whole at one version are equal, also after either has
//! been restarted. (With versions of their own, copies would leave a replica at a version that its source
//! never had; to log these here would cost a batch and a flush a copy.) So that there is such an append in
//! each epoch, a resync begins with a mark, an append that changes nothing.
//!
//! Left to others: when to shrink, expand or stop ([`Mirror::silent_since`] tells how long the replica
//! owes an answer), the bound on appends in flight (`iscsi`'s budget), the stream itself.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::chain::Chain;
use super::coverage::Held;
use super::healing::{Healing, damaged};
use super::joiner::Joining;
use super::message::{FromReplica, ReplicaFailure, StreamId, ToReplica};
use super::mutant::{self, Mutant};
use super::stream::Stream;
use super::window::{Window, WindowLimits};
use crate::base::runtime::{Instant, RuntimeHandle};
use crate::base::signal::Signal;
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

/// One volume, mirrored, as long as this node goes on being its primary. Clones are handles of the same
/// mirror.
pub struct Mirror<S: BlockStore> {
    pub(super) shared: Rc<Shared<S>>,
}

impl<S: BlockStore + 'static> Mirror<S> {
    /// The mirror of `volume` from `epoch` on; `held` is what `local` has. Nothing is sent before
    /// [`Mirror::connected`].
    #[must_use]
    pub fn new(
        local: Rc<S>,
        runtime: RuntimeHandle,
        volume: VolumeId,
        epoch: u32,
        held: Held,
        requirement: Requirement,
    ) -> Self {
        Self::with_limits(local, runtime, (volume, epoch, held), requirement, WindowLimits::default())
    }

    /// [`Mirror::new`] with another window.
    #[must_use]
    pub fn with_limits(
        local: Rc<S>,
        runtime: RuntimeHandle,
        (volume, epoch, held): (VolumeId, u32, Held),
        requirement: Requirement,
        limits: WindowLimits,
    ) -> Self {
        Self {
            shared: Rc::new(Shared {
                local,
                runtime,
                volume,
                epoch: Cell::new(epoch),
                requirement: Cell::new(requirement),
                stream: RefCell::new(Stream::None),
                streams: Cell::new(0),
                chain: RefCell::new(Chain::new(held)),
                window: RefCell::new(Window::new(limits)),
                joining: RefCell::default(),
                healing: Healing::default(),
                progress: Signal::default(),
                is_closed: Cell::new(false),
            }),
        }
    }

    /// Sets whom appends need from now on, those in flight included.
    pub fn require(&self, requirement: Requirement) {
        self.shared.requirement.set(requirement);
        self.shared.settle();
    }

    /// A newer epoch has begun in which this node goes on as primary. Appends carry it from now on. Those
    /// in flight keep their versions and count only as far as the replica says so in this epoch; they are
    /// sent again, over the same link if there is one. A resync under way ends, and goes on after the next
    /// [`Mirror::join`].
    ///
    /// # Panics
    /// When the epoch is not a newer one.
    pub fn next_epoch(&self, epoch: u32, requirement: Requirement) {
        let shared = &self.shared;
        let before = shared.epoch.replace(epoch);
        assert!(before < epoch, "epoch {epoch} after {before}");
        shared.requirement.set(requirement);
        shared.chain.borrow_mut().forget_confirmations();
        match shared.end_stream() {
            Some(link) => shared.begin(link),
            None => shared.settle(),
        }
    }

    /// A connection to the replica is there: the chain goes on once the replica is
    /// [`FromReplica::Ready`].
    pub fn connected(&self, link: Rc<dyn ReplicaLink>) {
        self.disconnected();
        self.shared.begin(link);
    }

    /// The connection is gone. What was sent and not answered is sent again on the next one.
    pub fn disconnected(&self) {
        self.shared.end_stream();
        self.shared.settle();
    }

    /// Takes an answer of the replica; what it means for the configuration, if anything.
    pub fn received(&self, answer: FromReplica) -> Option<MirrorEvent> {
        if let FromReplica::Damaged { volume, stream, address } = answer {
            if self.shared.is_present(volume, stream) && self.shared.healing.has_room() {
                let shared = self.shared.clone();
                self.shared.runtime.spawn(Box::pin(async move { shared.mend(address).await }));
            }
            return None;
        }
        self.shared.received(answer)
    }

    /// Since when the replica has owed an answer: to the beginning of a stream, or to the oldest append.
    #[must_use]
    pub fn silent_since(&self) -> Option<Instant> {
        let shared = &self.shared;
        let begun = shared.stream.borrow().beginning_since();
        let sent = shared.window.borrow().unanswered_since();
        let waiting = shared.chain.borrow().unconfirmed_since();
        let copying = shared.joining.borrow().as_ref().and_then(Joining::waits_since);
        let healing = shared.healing.waits_since();
        [begun, sent, waiting, copying, healing].into_iter().flatten().min()
    }

    /// Whether the replica has everything but what is in flight, over the stream that there is now. If so,
    /// the in-sync set may be enlarged, with [`Requirement::Both`] set in the same turn.
    #[must_use]
    pub fn is_replica_whole(&self) -> bool {
        self.shared.chain.borrow().is_replica_whole()
    }

    /// Whether everything that was appended so far is durable on the replica too.
    #[must_use]
    pub fn is_level(&self) -> bool {
        self.shared.chain.borrow().is_level()
    }

    /// The version through which both replicas have everything for good, which the replica is told too:
    /// nothing that it covers is needed for a resync any more.
    pub fn tell_settled(&self) -> Option<Version> {
        let shared = &self.shared;
        let version = shared.chain.borrow().both_have()?;
        let volume = shared.volume;
        shared.send(|stream| ToReplica::Settled { volume, stream, version });
        Some(version)
    }

    /// The version through which everything was acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> Version {
        self.shared.chain.borrow().let_go()
    }

    /// Whether it has ended: by [`Mirror::close`], or with the local store.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed.get()
    }

    /// Ends the mirror: appends and reads that still wait fail with [`StoreError::Offline`], and so does
    /// everything from now on.
    pub fn close(&self) {
        self.shared.is_closed.set(true);
        self.disconnected();
    }
}

impl<S: BlockStore> Clone for Mirror<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

/// What the replica's answer means for the volume's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorEvent {
    /// The replica has everything but what is in flight, and gets that.
    Streaming,
    /// The replica lacks what is not in flight any more, or has more than this node: nothing is sent to it
    /// before [`Mirror::join`], which wants it outside the in-sync set.
    Behind,
    /// The resync is complete, and on the replica's record: it may return to the in-sync set once
    /// [`Mirror::is_replica_whole`].
    Whole,
    /// The replica has promised a newer epoch: this primary is deposed, or will be.
    Fenced {
        /// That epoch.
        promised: u32,
    },
    /// The replica cannot go on: it has to leave the in-sync set, and to be connected again.
    ReplicaLost {
        /// Why.
        reason: ReplicaFailure,
    },
}

impl<S: BlockStore + 'static> BlockStore for Mirror<S> {
    fn start_append(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        let shared = &self.shared;
        if shared.is_closed.get() {
            return Err(StoreError::Offline);
        }
        let is_ours = volume == shared.volume && version.epoch == shared.epoch.get();
        assert!(is_ours, "an append of another volume or epoch");
        let local = Box::pin(shared.local.start_append(volume, version, writes.clone())?);
        shared.healing.changed(&writes);
        shared.chain.borrow_mut().push(version, writes, shared.runtime.now());
        shared.pump();
        Ok(Append { shared: shared.clone(), version, local: Some(local) })
    }

    async fn prepare(&self, volume: VolumeId, writes: &[BlockWrite]) {
        self.shared.local.prepare(volume, writes).await;
    }

    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.shared.check_open()?;
        let mut read = self.shared.local.read(volume, address, count).await;
        // A block that the disks here can't give back comes from the replica, each of them once.
        let mut fetched = 0;
        while let Err(error) = &read {
            let Some(damaged) = damaged(error, volume).filter(|_| fetched < count) else { break };
            fetched += 1;
            self.fetch(damaged).await?;
            read = self.shared.local.read(volume, address, count).await;
        }
        let data = read?;
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
        self.shared.check_open()?;
        let runs = self.shared.local.allocation(volume, address, count, limit).await?;
        self.shared.until_settled(address, count).await?;
        Ok(runs)
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.shared.check_open()?;
        self.shared.local.flush().await?;
        self.shared.until_settled(BlockAddress(0), u64::MAX).await
    }
}

pub(super) struct Shared<S> {
    pub(super) local: Rc<S>,
    pub(super) runtime: RuntimeHandle,
    pub(super) volume: VolumeId,
    pub(super) epoch: Cell<u32>,
    requirement: Cell<Requirement>,
    pub(super) stream: RefCell<Stream>,
    /// Streams so far: the number of the latest one.
    pub(super) streams: Cell<u64>,
    pub(super) chain: RefCell<Chain>,
    pub(super) window: RefCell<Window>,
    /// What a resync over the present stream waits for.
    pub(super) joining: RefCell<Option<Joining>>,
    pub(super) healing: Healing,
    /// Something was sent or answered, or the stream ended.
    pub(super) progress: Signal,
    is_closed: Cell<bool>,
}

impl<S> Shared<S> {
    pub(super) fn requirement(&self) -> Requirement {
        self.requirement.get()
    }

    /// Sends over the present stream, if it carries the chain.
    pub(super) fn send(&self, message: impl FnOnce(StreamId) -> ToReplica) {
        let carrying = self.stream.borrow().carrying();
        if let Some((link, stream)) = carrying {
            link.send(message(stream));
        }
    }

    /// Sends what the window has room for.
    pub(super) fn pump(&self) {
        let Some((link, stream)) = self.stream.borrow().carrying() else { return };
        let mut has_sent = false;
        while self.window.borrow().has_room() {
            let Some(sent) = self.chain.borrow_mut().take_unsent() else { break };
            self.window.borrow_mut().sent(sent.version, sent.bytes, sent.since);
            let (version, previous, writes) = (sent.version, sent.previous, sent.writes);
            link.send(ToReplica::Write { volume: self.volume, stream, version, previous, writes });
            has_sent = true;
        }
        if has_sent {
            self.progress.notify();
        }
    }

    /// Wakes whoever waits for what has become durable where it must.
    pub(super) fn settle(&self) {
        let mut woken = self.chain.borrow_mut().settle(self.requirement.get());
        if self.is_closed.get() {
            woken.extend(self.chain.borrow_mut().all_wakers());
        }
        woken.into_iter().for_each(Waker::wake);
    }

    pub(super) fn check_open(&self) -> Result<(), StoreError> {
        if self.is_closed.get() { Err(StoreError::Offline) } else { Ok(()) }
    }

    /// Waits for the appends so far that touch a range.
    pub(super) async fn until_settled(&self, address: BlockAddress, count: u64) -> Result<(), StoreError> {
        self.check_open()?;
        let newest = self.chain.borrow().newest_in(address, count);
        let newest = newest.filter(|_| !mutant::is(Mutant::ReadInFlight));
        let Some(newest) = newest else { return Ok(()) };
        self.until_settled_through(newest).await
    }

    /// Waits for the appends through a version.
    pub(super) async fn until_settled_through(&self, version: Version) -> Result<(), StoreError> {
        std::future::poll_fn(|context| self.poll_settled(version, context)).await
    }

    fn poll_settled(&self, version: Version, context: &mut Context<'_>) -> Poll<Result<(), StoreError>> {
        // First: from the end on nothing is acknowledged, whatever is durable.
        if self.is_closed.get() {
            Poll::Ready(Err(StoreError::Offline))
        } else if self.chain.borrow_mut().is_settled_or_wakes(version, context.waker()) {
            Poll::Ready(Ok(()))
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
            let Poll::Ready(outcome) = local.as_mut().poll(context) else {
                return if mutant::is(Mutant::LocalNotAwaited) {
                    self.shared.settle();
                    self.shared.poll_settled(self.version, context)
                } else {
                    Poll::Pending
                };
            };
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
