//! Blocks that one replica's disks can't give back come from the other one.
//!
//! Of a block at the primary: it asks the replica, gives the host what came, and appends it here again as a copy, with
//! the version of the latest append. Of a block at the replica: that says so, and the primary sends what it has, for
//! the same kind of append there.
//!
//! Invariant: what is asked for, or sent, is what the block is at the latest append of the volume, and nothing else is
//! ever written in its place. So both happen only while the replica has everything but what is in flight, with nothing
//! in flight of that block; an append of it in the meantime voids the answer. The value is verified by its
//! checksum when it is read on one side and when it arrives on the other.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use futures::channel::oneshot;

use super::message::ToReplica;
use super::mutant::{self, Mutant};
use super::primary::{Mirror, Shared};
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::runtime::Instant;
use crate::base::units::{BlockAddress, VolumeId};
use crate::store::interface::{BlockStore, BlockWrite, StoreError, rollback_of};

/// What a primary does for damaged blocks at present.
#[derive(Default)]
pub(super) struct Healing {
    next: Cell<u64>,
    /// Blocks that something is done for, by number.
    watched: RefCell<BTreeMap<u64, Watched>>,
    /// Blocks that came from the replica, since the mirror began.
    fetched: Cell<u64>,
    /// Blocks that were sent to the replica for that.
    mended: Cell<u64>,
}

struct Watched {
    address: BlockAddress,
    /// An append has changed it since.
    is_changed: bool,
    since: Instant,
    answer: Option<oneshot::Sender<Option<Bytes>>>,
}

impl Healing {
    /// Appends of these blocks have begun.
    pub(super) fn changed(&self, writes: &[BlockWrite]) {
        for watched in self.watched.borrow_mut().values_mut() {
            watched.is_changed |= writes.iter().any(|write| touches(write, watched.address));
        }
    }

    /// Whether there is room for another block; what finds none is found again by the next scrub.
    pub(super) fn has_room(&self) -> bool {
        self.watched.borrow().len() < MOST_WATCHED
    }

    /// Since when the replica has owed the answer to a question.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        let watched = self.watched.borrow();
        watched.values().filter(|watched| watched.answer.is_some()).map(|watched| watched.since).min()
    }

    /// The stream has ended: there will be no answers.
    pub(super) fn end_stream(&self) {
        self.watched.borrow_mut().values_mut().for_each(|watched| watched.answer = None);
    }

    /// The replica's answer. False when nothing was asked.
    pub(super) fn fetched(&self, number: u64, block: Option<Bytes>) -> bool {
        let mut watched = self.watched.borrow_mut();
        let Some(answer) = watched.get_mut(&number).and_then(|watched| watched.answer.take()) else {
            return number < self.next.get(); // whoever asked has gone
        };
        let _ = answer.send(block);
        true
    }
}

/// A block under watch, as long as this lives.
struct Watch<'a, S> {
    shared: &'a Shared<S>,
    number: u64,
}

impl<'a, S> Watch<'a, S> {
    fn begin(
        shared: &'a Shared<S>,
        address: BlockAddress,
        answer: Option<oneshot::Sender<Option<Bytes>>>,
    ) -> Self {
        let healing = &shared.healing;
        let number = healing.next.replace(healing.next.get() + 1);
        let since = shared.runtime.now();
        healing.watched.borrow_mut().insert(number, Watched { address, is_changed: false, since, answer });
        Self { shared, number }
    }

    fn is_changed(&self) -> bool {
        let watched = self.shared.healing.watched.borrow();
        watched.get(&self.number).is_none_or(|watched| watched.is_changed) && !mutant::is(Mutant::HealStale)
    }
}

impl<S> Drop for Watch<'_, S> {
    fn drop(&mut self) {
        self.shared.healing.watched.borrow_mut().remove(&self.number);
    }
}

impl<S> Shared<S> {
    /// Whether the replica has what the block is at the latest append.
    fn is_level_at(&self, address: BlockAddress) -> bool {
        let chain = self.chain.borrow();
        chain.is_replica_whole() && chain.newest_in(address, 1).is_none()
    }
}

impl<S: BlockStore + 'static> Mirror<S> {
    /// Blocks that came from the replica, and that were sent to it, as the other one's disks could not give them back.
    #[must_use]
    pub fn healed(&self) -> (u64, u64) {
        (self.shared.healing.fetched.get(), self.shared.healing.mended.get())
    }

    /// Gets a block from the replica that the local store can't give, and writes it again here. What it holds; an error
    /// when the replica does not have it, or can't be asked.
    pub(super) async fn fetch(&self, address: BlockAddress) -> Result<(), StoreError> {
        let shared = &self.shared;
        let lost = StoreError::Medium { volume: shared.volume, address };
        for _ in 0..MOST_TRIES {
            shared.until_settled(address, 1).await?;
            // Somebody may have written it, or brought it back, meanwhile.
            match shared.local.read(shared.volume, address, 1).await {
                Err(StoreError::Medium { .. }) => {}
                read => return read.map(drop),
            }
            if shared.chain.borrow().newest_in(address, 1).is_some() {
                continue;
            }
            if !shared.is_level_at(address) {
                return Err(lost);
            }
            let (sender, answer) = oneshot::channel();
            let watch = Watch::begin(shared, address, Some(sender));
            let (volume, number) = (shared.volume, watch.number);
            shared.send(|stream| ToReplica::Fetch { volume, stream, number, address });
            let Ok(Some(block)) = answer.await else { return Err(lost) };
            let data = AlignedBuf::copy_of(&block).freeze();
            let writes = vec![BlockWrite::Data { address, checksum: Crc32::of(&data), data }];
            shared.local.prepare(volume, &writes).await;
            if watch.is_changed() {
                continue;
            }
            // Nothing was appended to the block since the replica was asked: this is what it is at the latest append.
            let version = shared.chain.borrow().last();
            let appended = shared.local.start_append(volume, version, writes);
            drop(watch);
            match appended {
                Ok(appended) => appended.await?,
                Err(_) => return Err(lost),
            }
            shared.healing.fetched.set(shared.healing.fetched.get() + 1);
        }
        Err(lost)
    }
}

impl<S: BlockStore + 'static> Shared<S> {
    /// The replica's disks can't give a block back: sends what it is here.
    pub(super) async fn mend(self: &Rc<Self>, address: BlockAddress) {
        let volume = self.volume;
        for _ in 0..MOST_TRIES {
            if self.until_settled(address, 1).await.is_err() {
                return;
            }
            if !self.is_level_at(address) {
                return; // it is found again by the next scrub
            }
            let watch = Watch::begin(self, address, None);
            let Ok(blocks) = self.local.read(volume, address, 1).await else { return };
            let Some(data) = blocks.into_iter().next() else { return };
            if watch.is_changed() || !self.is_level_at(address) {
                continue;
            }
            let write = BlockWrite::Data { address, checksum: Crc32::of(&data), data };
            let Some(version) = self.chain.borrow().sent() else { return };
            self.send(|stream| ToReplica::Mend { volume, stream, version, writes: vec![write] });
            self.healing.mended.set(self.healing.mended.get() + 1);
            return;
        }
    }
}

/// The block that a medium error is about, if it is one of `volume`.
pub(super) fn damaged(error: &StoreError, volume: VolumeId) -> Option<BlockAddress> {
    match error {
        StoreError::Medium { volume: of, address } if *of == volume => Some(*address),
        _ => None,
    }
}

fn touches(write: &BlockWrite, block: BlockAddress) -> bool {
    match write {
        BlockWrite::Data { address, .. } => *address == block,
        BlockWrite::Hole { address, count } => *address <= block && block.0 - address.0 < *count,
        // A rollback changes what the volume shows, anywhere.
        BlockWrite::Snapshot { record } => rollback_of(record).is_some(),
        BlockWrite::SnapshotDropped { .. } => false,
    }
}

/// A block that is written over and over needs no healing.
const MOST_TRIES: u32 = 8;
const MOST_WATCHED: usize = 4096;
