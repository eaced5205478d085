//! Snapshots of the volumes that this node serves, as an administrator or a schedule wants them.
//!
//! One is taken or dropped after the other, so that names are unique; nothing else waits for them, as they may wait for
//! the other node. All members of a group have to be served here: then they are cut in one turn of this thread.

use std::time::Duration;

use super::DataThread;
use super::pool::Pool;
use crate::base::units::{Version, VolumeId};
use crate::daemon::engine::{EngineError, VolumeSnapshot};
use crate::pair::ServedStore;
use crate::volume::snapshot::SnapshotRecord;
use crate::volume::{SnapshotError, Volume, take_group_snapshot};

impl<P: Pool> DataThread<P> {
    /// Takes a snapshot of each of these volumes, at one cut.
    pub(super) async fn take_snapshots(
        &self,
        wanted: Vec<(VolumeId, SnapshotRecord)>,
    ) -> Result<Vec<VolumeSnapshot>, EngineError> {
        let _turn = self.snapshot_turn.lock().await;
        let member = |(id, record): (VolumeId, SnapshotRecord)| Ok((self.device(id)?, record));
        let members: Vec<_> = wanted.into_iter().map(member).collect::<Result<_, EngineError>>()?;
        let versions = take_group_snapshot(&members, &self.runtime, PATIENCE).await?;
        let taken = members.into_iter().zip(versions);
        Ok(taken
            .map(|((volume, record), version)| VolumeSnapshot { volume: volume.id(), version, record })
            .collect())
    }

    /// Drops a snapshot, unless it is protected.
    pub(super) async fn drop_snapshot(
        &self,
        id: VolumeId,
        snapshot: Version,
        now_unix_ms: u64,
    ) -> Result<(), EngineError> {
        let _turn = self.snapshot_turn.lock().await;
        let volume = self.device(id)?;
        within_patience(volume.drop_snapshot(snapshot, now_unix_ms)).await
    }

    /// Has a volume show what it was at a snapshot, and tells its initiators. What is kept of it as it was before.
    pub(super) async fn roll_back(
        &self,
        id: VolumeId,
        to: Version,
        before: SnapshotRecord,
    ) -> Result<VolumeSnapshot, EngineError> {
        let _turn = self.snapshot_turn.lock().await;
        let volume = self.device(id)?;
        let rolled_back = within_patience(volume.roll_back(to, &before)).await;
        // After an error it may have come about all the same.
        if let Some(served) = self.volumes.get(id) {
            served.unit.contents_changed();
        }
        Ok(VolumeSnapshot { volume: id, version: rolled_back?, record: before })
    }

    /// The snapshots of a volume, ascending.
    pub(super) async fn snapshots(&self, id: VolumeId) -> Result<Vec<VolumeSnapshot>, EngineError> {
        let volume = self.device(id)?;
        let snapshots = within_patience(volume.snapshots()).await?;
        let snapshots = snapshots.into_iter();
        Ok(snapshots.map(|(version, record)| VolumeSnapshot { volume: id, version, record }).collect())
    }

    /// A volume that this node serves.
    pub(super) fn device(&self, id: VolumeId) -> Result<Volume<ServedStore<P>>, EngineError> {
        let served = self.volumes.get(id).ok_or(EngineError::NoSuchVolume(id))?;
        let device = served.unit.device();
        device.map(|device| (*device).clone()).ok_or_else(|| EngineError::NotServedHere(served.name.clone()))
    }
}

async fn within_patience<T>(work: impl Future<Output = Result<T, SnapshotError>>) -> Result<T, EngineError> {
    let outcome = tokio::time::timeout(PATIENCE, work).await;
    Ok(outcome.unwrap_or(Err(SnapshotError::TimedOut))?)
}

/// Longest that both replicas are waited for: a failover takes less.
const PATIENCE: Duration = Duration::from_secs(10);
