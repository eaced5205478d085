//! The other end of a volume's mirror: takes the primary's writes in order, fenced by epochs.
//!
//! Guarantees: nothing of an epoch below the one that was promised reaches the store (I6); before anything
//! of a newer epoch does, this node's own older writes have ended and the promise is durable (I7); writes
//! are taken in the order of their chain, duplicates once, and a gap ends the chain; what is answered as
//! durable is so, with all before it.
//!
//! Left to others: reading from here (nobody does, the primary answers reads), what a failure means for the
//! configuration, keeping the messages of one stream in their order.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::message::{FromReplica, ReplicaFailure, ToReplica};
use crate::base::runtime::{LocalBoxFuture, RuntimeHandle};
use crate::base::units::{Version, VolumeId};
use crate::store::interface::{BlockStore, BlockWrite, StoreError};

/// What a node owes the epochs that it has promised.
pub trait Fence {
    /// The newest epoch promised for a volume.
    fn promised(&self, volume: VolumeId) -> u32;
    /// Ends what this node itself does for the volume in epochs before `epoch`, waits until none of it is
    /// in flight, and records the promise durably. Whether that worked.
    fn promise(&self, volume: VolumeId, epoch: u32) -> LocalBoxFuture<'static, bool>;
    /// The newest version of the volume in the store, durable or on its way there.
    fn latest(&self, volume: VolumeId) -> Version;
}

/// The replica's end of one stream.
pub struct Replica<S: BlockStore> {
    shared: Rc<Shared<S>>,
}

struct Shared<S> {
    store: Rc<S>,
    fence: Rc<dyn Fence>,
    runtime: RuntimeHandle,
    answer: Box<dyn Fn(FromReplica)>,
    volumes: RefCell<BTreeMap<VolumeId, Rc<Chain>>>,
}

/// What came of one volume on this stream, in one epoch.
struct Chain {
    epoch: u32,
    /// Version of the last write that was taken.
    last: Cell<Version>,
    durable: Cell<Version>,
    has_ended: Cell<bool>,
}

impl<S: BlockStore + 'static> Replica<S> {
    /// A stream has come up; `answer` queues what is sent back on it.
    pub fn new(
        store: Rc<S>,
        fence: Rc<dyn Fence>,
        runtime: RuntimeHandle,
        answer: impl Fn(FromReplica) + 'static,
    ) -> Self {
        let shared = Shared { store, fence, runtime, answer: Box::new(answer), volumes: RefCell::default() };
        Self { shared: Rc::new(shared) }
    }

    /// Takes the next message of the stream. Completes when the one after it may come: at once for
    /// writes, which are on their way then, and after the promise for a new epoch.
    pub async fn receive(&self, message: ToReplica) {
        match message {
            ToReplica::Begin { volume, epoch } => self.begin(volume, epoch).await,
            ToReplica::Write { volume, version, previous, writes } => {
                self.write(volume, version, previous, writes);
            }
        }
    }

    async fn begin(&self, volume: VolumeId, epoch: u32) {
        let shared = &self.shared;
        let promised = shared.fence.promised(volume);
        if epoch < promised {
            return (shared.answer)(FromReplica::Fenced { volume, promised });
        }
        if epoch > promised && !shared.fence.promise(volume, epoch).await {
            return shared.fail(volume, epoch, ReplicaFailure::Promise);
        }
        // What an earlier stream brought is on its way to the store still: the chain goes on behind it.
        if let Err(error) = shared.store.flush().await {
            return shared.fail(volume, epoch, error.into());
        }
        let durable = shared.fence.latest(volume);
        let chain = Chain {
            epoch,
            last: Cell::new(durable),
            durable: Cell::new(durable),
            has_ended: Cell::new(false),
        };
        shared.volumes.borrow_mut().insert(volume, Rc::new(chain));
        (shared.answer)(FromReplica::Ready { volume, epoch, durable });
    }

    fn write(&self, volume: VolumeId, version: Version, previous: Version, writes: Vec<BlockWrite>) {
        let shared = &self.shared;
        let chain = shared.volumes.borrow().get(&volume).cloned();
        let Some(chain) = chain.filter(|chain| chain.epoch == version.epoch && !chain.has_ended.get()) else {
            return;
        };
        let promised = shared.fence.promised(volume);
        if promised > chain.epoch {
            return (shared.answer)(FromReplica::Fenced { volume, promised });
        }
        let last = chain.last.get();
        if version <= last {
            return;
        }
        if previous != last {
            chain.has_ended.set(true);
            let reason = ReplicaFailure::Gap { expected: previous, found: last };
            return shared.fail(volume, chain.epoch, reason);
        }
        chain.last.set(version);
        match shared.store.start_append(volume, version, writes) {
            Ok(durable) => {
                let shared = shared.clone();
                shared.clone().runtime.spawn(Box::pin(async move {
                    let outcome = durable.await;
                    shared.completed(volume, &chain, version, outcome);
                }));
            }
            Err(error) => {
                chain.has_ended.set(true);
                shared.fail(volume, chain.epoch, error.into());
            }
        }
    }
}

impl<S> Shared<S> {
    fn completed(&self, volume: VolumeId, chain: &Chain, version: Version, outcome: Result<(), StoreError>) {
        match outcome {
            // A later one has been answered already, and with it this one.
            Ok(()) if version <= chain.durable.get() => {}
            Ok(()) => {
                chain.durable.set(version);
                (self.answer)(FromReplica::Durable { volume, version });
            }
            Err(error) if !chain.has_ended.replace(true) => self.fail(volume, chain.epoch, error.into()),
            Err(_) => {}
        }
    }

    fn fail(&self, volume: VolumeId, epoch: u32, reason: ReplicaFailure) {
        (self.answer)(FromReplica::Failed { volume, epoch, reason });
    }
}
