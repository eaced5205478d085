//! Views of volumes: as they are, and as their snapshots show them.

use std::future::Future;

use bytes::Bytes;

use crate::base::units::{BlockAddress, Version, VolumeId};

use super::Store;
use super::interface::{BlockRun, BlockWrite, Changes, SnapshotEntry, SnapshotStore, StoreError};
use super::map::Map;
use super::shared::Contents;

impl SnapshotStore for Store {
    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotEntry>, StoreError> {
        let contents = self.shared().contents.borrow();
        let state = contents.volumes.get(&volume).ok_or(StoreError::NoSuchVolume(volume))?;
        Ok(state.snapshots.entries().collect())
    }

    async fn read_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        super::read::read(self.shared(), volume, Some(at), address, count).await
    }

    async fn allocation_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        self.runs(volume, Some(at), address, count, limit).await
    }

    async fn changed_between(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.changes(volume, since, Some(at), from, limit).await
    }

    fn start_append_at(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        self.start(volume, version, writes)
    }
}

impl Store {
    /// What changed since a version in a view.
    pub(super) async fn changes(
        &self,
        volume: VolumeId,
        since: Version,
        at: Option<Version>,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        if self.is_offline() {
            return Err(StoreError::Offline);
        }
        let changes = {
            let contents = self.shared().contents.borrow();
            let at = contents.view(volume, at)?;
            contents.map.changed_since(volume, since, at, from, limit)
        };
        changes.await
    }

    /// Runs of mapped and unmapped blocks in a view.
    pub(super) async fn runs(
        &self,
        volume: VolumeId,
        at: Option<Version>,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        let mut runs: Vec<BlockRun> = Vec::new();
        let mut offset = 0;
        while offset < count {
            let block = address.offset(offset);
            let run = {
                let contents = self.shared().contents.borrow();
                // Asked again each time: it may be dropped meanwhile.
                let at = at.map_or(Ok(Version::GREATEST), |_| contents.view(volume, at))?;
                contents.map.run_from(volume, at, block)
            };
            let (length, mapped) = run.await?;
            let length = length.min(count - offset);
            let full = runs.len() == limit;
            match runs.last_mut() {
                Some(last) if last.mapped == mapped => last.count += length,
                _ if full => break,
                _ => runs.push(BlockRun { address: block, count: length, mapped }),
            }
            offset += length;
        }
        Ok(runs)
    }
}

impl Contents {
    /// The version at which a view is looked at: that of a snapshot, which has to be there, or the newest.
    pub(super) fn view(&self, volume: VolumeId, at: Option<Version>) -> Result<Version, StoreError> {
        let state = self.volumes.get(&volume).ok_or(StoreError::NoSuchVolume(volume))?;
        match at {
            None => Ok(Version::GREATEST),
            Some(snapshot) if state.snapshots.contains(snapshot) => Ok(snapshot),
            Some(snapshot) => Err(StoreError::NoSuchSnapshot { volume, snapshot }),
        }
    }
}
