//! The block store below a volume in service: the local one, or the mirror, behind the right to serve.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use futures::future::Either;

use super::mutant::{self, Mutant};
use crate::base::signal::Signal;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::mirror::Mirror;
use crate::store::interface::{
    BlockRun, BlockStore, BlockWrite, Changes, SnapshotEntry, SnapshotStore, StoreError,
};

/// Where the blocks of a volume in service are.
pub enum ServedStore<S: BlockStore> {
    /// On this node alone.
    Local(Rc<S>),
    /// On both nodes. What was read counts only if this node could serve when the reading was done; a
    /// write needs no such question, as it counts only with the replica's answer in its epoch, or with
    /// the committed configuration.
    Mirrored(Mirror<S>, Rc<Permit>),
}

/// Whether a volume may be served at this moment (I5).
pub struct Permit {
    is_given: Box<dyn Fn() -> bool>,
    may_have_changed: Signal,
    has_ended: Cell<bool>,
}

impl Permit {
    /// Given while `is_given` says so.
    pub(super) fn new(is_given: impl Fn() -> bool + 'static) -> Self {
        Self {
            is_given: Box::new(is_given),
            may_have_changed: Signal::default(),
            has_ended: Cell::new(false),
        }
    }

    /// Whether it is given now.
    #[must_use]
    pub fn is_given(&self) -> bool {
        !self.has_ended.get() && (self.is_given)()
    }

    /// Lets those who wait look again.
    pub(super) fn look_again(&self) {
        self.may_have_changed.notify();
    }

    /// It is never given again.
    pub(super) fn end(&self) {
        self.has_ended.set(true);
        self.look_again();
    }

    /// Gives `found`, which was read, once this node may serve: else it does not count (I5, I9).
    async fn counted<T>(&self, found: T) -> Result<T, StoreError> {
        self.until_given().await?;
        Ok(found)
    }

    /// Waits until it is given; fails when it never will be.
    async fn until_given(&self) -> Result<(), StoreError> {
        if mutant::is(Mutant::ReadWithoutPermit) {
            return Ok(());
        }
        self.may_have_changed.until(|| self.has_ended.get() || (self.is_given)()).await;
        if self.has_ended.get() { Err(StoreError::Offline) } else { Ok(()) }
    }
}

impl<S: BlockStore + 'static> BlockStore for ServedStore<S> {
    fn start_append(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        Ok(match self {
            Self::Local(store) => Either::Left(store.start_append(volume, version, writes)?),
            Self::Mirrored(mirror, _) => Either::Right(mirror.start_append(volume, version, writes)?),
        })
    }

    async fn prepare(&self, volume: VolumeId, writes: &[BlockWrite]) {
        match self {
            Self::Local(store) => store.prepare(volume, writes).await,
            Self::Mirrored(mirror, _) => mirror.prepare(volume, writes).await,
        }
    }

    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        match self {
            Self::Local(store) => store.read(volume, address, count).await,
            Self::Mirrored(mirror, permit) => {
                permit.counted(mirror.read(volume, address, count).await?).await
            }
        }
    }

    async fn allocation(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        match self {
            Self::Local(store) => store.allocation(volume, address, count, limit).await,
            Self::Mirrored(mirror, permit) => {
                permit.counted(mirror.allocation(volume, address, count, limit).await?).await
            }
        }
    }

    async fn flush(&self) -> Result<(), StoreError> {
        match self {
            Self::Local(store) => store.flush().await,
            Self::Mirrored(mirror, _) => mirror.flush().await,
        }
    }
}

impl<S: SnapshotStore + 'static> SnapshotStore for ServedStore<S> {
    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotEntry>, StoreError> {
        match self {
            Self::Local(store) => store.snapshots(volume),
            // As for reads; but who is to wait for the right is told so instead.
            Self::Mirrored(_, permit) if !permit.is_given() => Err(StoreError::Offline),
            Self::Mirrored(mirror, _) => mirror.snapshots(volume),
        }
    }

    async fn read_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        match self {
            Self::Local(store) => store.read_at(volume, at, address, count).await,
            Self::Mirrored(mirror, permit) => {
                permit.counted(mirror.read_at(volume, at, address, count).await?).await
            }
        }
    }

    async fn allocation_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        match self {
            Self::Local(store) => store.allocation_at(volume, at, address, count, limit).await,
            Self::Mirrored(mirror, permit) => {
                permit.counted(mirror.allocation_at(volume, at, address, count, limit).await?).await
            }
        }
    }

    async fn changed_between(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        match self {
            Self::Local(store) => store.changed_between(volume, since, at, from, limit).await,
            Self::Mirrored(mirror, permit) => {
                permit.counted(mirror.changed_between(volume, since, at, from, limit).await?).await
            }
        }
    }

    fn start_append_at(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        Ok(match self {
            Self::Local(store) => Either::Left(store.start_append_at(volume, version, writes)?),
            Self::Mirrored(mirror, _) => Either::Right(mirror.start_append_at(volume, version, writes)?),
        })
    }
}
