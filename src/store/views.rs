//! Views of volumes: as they are, as their snapshots show them, and clones, which begin as one of these.

use std::future::Future;

use bytes::Bytes;

use crate::base::units::{BlockAddress, Version, VolumeId};

use super::Store;
use super::batch::Content;
use super::interface::{
    BlockRun, BlockWrite, Changes, MAX_ANCESTORS, SnapshotEntry, SnapshotStore, StoreError,
};
use super::map::{Lineage, Map, View};
use super::shared::{Contents, VolumeState};

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
        let at = Some(at).filter(|at| *at != Version::GREATEST);
        self.changes(volume, since, at, from, limit).await
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
    /// Makes a volume that begins as a snapshot of another one shows it, at once and without copying; with a
    /// record like any volume's. Its number must be one that no volume has had. What it was made of stays as
    /// long as it is there.
    ///
    /// # Errors
    /// When there is no such snapshot, or too many volumes behind it.
    pub async fn clone_volume(
        &self,
        clone: VolumeId,
        version: Version,
        record: &[u8],
        origin: VolumeId,
        snapshot: Version,
    ) -> Result<(), StoreError> {
        {
            let mut contents = self.shared().contents.borrow_mut();
            let depth = contents.ancestors(origin).len() + 1;
            let state = contents.volumes.get_mut(&origin).filter(|state| !state.is_dropping);
            let state = state.ok_or(StoreError::NoSuchVolume(origin))?;
            if !state.snapshots.stays(snapshot) {
                return Err(StoreError::NoSuchSnapshot { volume: origin, snapshot });
            }
            if depth > MAX_ANCESTORS {
                return Err(StoreError::LineageTooLong(origin));
            }
            state.pending_clones.push((clone, snapshot));
        }
        let content = |length, checksum| Content::Clone { length, checksum, origin, snapshot };
        self.put_record(clone, version, record, content).await
    }

    /// The snapshot that a volume is a clone of: its volume and its version.
    #[must_use]
    pub fn origin(&self, volume: VolumeId) -> Option<(VolumeId, Version)> {
        let contents = self.shared().contents.borrow();
        contents.volumes.get(&volume)?.parent.map(|parent| (parent.volume, parent.at))
    }

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
                let lineage = match at {
                    None => Lineage::new(View { volume, at: Version::GREATEST }, contents.ancestors(volume)),
                    Some(_) => contents.lineage(volume, at)?,
                };
                contents.map.run_from(&lineage, block)
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
    /// A view, and those behind it.
    pub(super) fn lineage(&self, volume: VolumeId, at: Option<Version>) -> Result<Lineage, StoreError> {
        let view = View { volume, at: self.view(volume, at)? };
        Ok(Lineage::new(view, self.ancestors(volume)))
    }

    /// The views behind a volume, the nearest first.
    pub(super) fn ancestors(&self, volume: VolumeId) -> Vec<View> {
        let parent = |volume| self.volumes.get(&volume)?.parent;
        let mut ancestors = Vec::new();
        let mut next = parent(volume);
        while let Some(view) = next.filter(|_| ancestors.len() < MAX_ANCESTORS) {
            ancestors.push(view);
            next = parent(view.volume);
        }
        ancestors
    }

    /// A clone of a volume, or of this snapshot of it, if there is or will be one.
    pub(super) fn clone_of(&self, volume: VolumeId, snapshot: Option<Version>) -> Option<VolumeId> {
        let is_of = |at: Version| snapshot.is_none_or(|snapshot| snapshot == at);
        let pending = &self.volumes.get(&volume)?.pending_clones;
        let pending = pending.iter().find(|(_, at)| is_of(*at)).map(|(clone, _)| *clone);
        let is_clone = |state: &VolumeState| {
            state.parent.is_some_and(|parent| parent.volume == volume && is_of(parent.at))
        };
        pending.or_else(|| Some(*self.volumes.iter().find(|(_, state)| is_clone(state))?.0))
    }

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
