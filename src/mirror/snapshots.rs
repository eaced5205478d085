//! The snapshots of a mirrored volume: those of the local store, as far as they are settled on both replicas, and the
//! list that a joining replica is sent.

use std::future::Future;

use bytes::Bytes;

use super::message::{StreamId, ToReplica};
use super::primary::{Mirror, ReplicaLink, Shared};
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::store::interface::{BlockRun, BlockWrite, Changes, SnapshotEntry, SnapshotStore, StoreError};

impl<S: SnapshotStore + 'static> SnapshotStore for Mirror<S> {
    /// One that is being dropped may be missing already: who must know waits for the append.
    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotEntry>, StoreError> {
        self.shared.check_open()?;
        let mut entries = self.shared.local.snapshots(volume)?;
        let let_go = self.shared.chain.borrow().let_go();
        entries.retain(|entry| entry.version <= let_go);
        Ok(entries)
    }

    async fn read_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.shared.check_open()?;
        let data = self.shared.local.read_at(volume, at, address, count).await?;
        self.shared.until_settled_through(at).await?;
        Ok(data)
    }

    async fn allocation_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        self.shared.check_open()?;
        let runs = self.shared.local.allocation_at(volume, at, address, count, limit).await?;
        self.shared.until_settled_through(at).await?;
        Ok(runs)
    }

    async fn changed_between(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.shared.check_open()?;
        let changes = self.shared.local.changed_between(volume, since, at, from, limit).await?;
        match at {
            Version::GREATEST => self.shared.until_settled(BlockAddress(0), u64::MAX).await?,
            at => self.shared.until_settled_through(at).await?,
        }
        Ok(changes)
    }

    /// History is no part of the chain: only a resync appends it, on the replica.
    fn start_append_at(
        &self,
        _: VolumeId,
        _: Version,
        _: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        Err::<std::future::Ready<_>, _>(StoreError::Offline)
    }
}

impl<S: SnapshotStore + 'static> Shared<S> {
    /// The snapshots that a replica which joins behind `durable` has to have before the chain goes on: those that are
    /// settled, and those in flight that it has got, as they are behind where the chain goes on.
    pub(super) fn snapshots_behind(&self, durable: Version) -> Result<Vec<SnapshotEntry>, StoreError> {
        let chain = self.chain.borrow();
        let let_go = chain.let_go();
        let mut entries = self.local.snapshots(self.volume)?;
        entries.retain(|entry| entry.version <= let_go);
        for (version, statement) in chain.statements().filter(|(version, _)| *version <= durable) {
            match statement {
                BlockWrite::Snapshot { record } => {
                    entries.push(SnapshotEntry { version, record: record.clone() });
                }
                BlockWrite::SnapshotDropped { snapshot } => {
                    entries.retain(|entry| entry.version != *snapshot);
                }
                BlockWrite::Data { .. } | BlockWrite::Hole { .. } => {}
            }
        }
        Ok(entries)
    }

    /// Sends the list to a replica that joins.
    pub(super) fn send_snapshots(
        &self,
        link: &dyn ReplicaLink,
        stream: StreamId,
        entries: Vec<SnapshotEntry>,
    ) {
        let (volume, mut after, mut list, mut bytes) = (self.volume, None, Vec::new(), 0);
        for entry in entries {
            if bytes >= MOST_LIST_BYTES {
                let through = list.last().map(|last: &SnapshotEntry| last.version);
                let list = std::mem::take(&mut list);
                link.send(ToReplica::Snapshots { volume, stream, after, through, list });
                (after, bytes) = (through, 0);
            }
            bytes += entry.record.len() + PER_SNAPSHOT_BYTES;
            list.push(entry);
        }
        link.send(ToReplica::Snapshots { volume, stream, after, through: None, list });
    }
}

/// When a list is continued in another message.
const MOST_LIST_BYTES: usize = 128 << 10;
const PER_SNAPSHOT_BYTES: usize = 14;
