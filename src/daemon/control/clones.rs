//! Clones: volumes that begin as another one is, or as a snapshot of it shows it.
//!
//! A snapshot stays while a clone is made of it, is there, or was deleted and some node has not given its space back yet: else
//! a replica would be asked to drop what it still needs.

use std::collections::BTreeMap;

use super::{Control, Refusal, now_ms};
use crate::base::units::{Version, VolumeId};
use crate::cluster::name::VolumeName;
use crate::cluster::state::volume::{Redundancy, VolumeRecord};
use crate::cluster::state::{Command, Rejection};
use crate::daemon::engine::VolumeSnapshot;
use crate::rpc::management as messages;
use crate::volume::snapshot::SnapshotKind;

/// Snapshots of which clones have been asked for and perhaps not been made, with the epoch of their volume: in another one
/// none can be made of them any more.
pub type Cloning = BTreeMap<(VolumeId, Version), u32>;

impl Control {
    /// Makes a clone of a volume that this node serves, or of a snapshot of it.
    pub async fn clone_volume(
        &self,
        request: messages::CloneVolumeRequest,
    ) -> Result<messages::Volume, Refusal> {
        let (volume, name): (VolumeName, VolumeName) = (request.volume.parse()?, request.name.parse()?);
        let mut turn = self.turn().await;
        let (id, _) = self.find(&volume)?;
        if self.machine.read(|state| state.volume(&name).is_some()) {
            return Err(Rejection::VolumeExists(name).into());
        }
        let snapshot = match request.snapshot.as_str() {
            "" => {
                let snapshot = format!("clone-{name}");
                self.take(id, &volume, &snapshot, (SnapshotKind::Manual, None)).await?
            }
            given => self.snapshot_named(id, &volume, given).await?,
        };
        let of = self.record_of(&volume)?;
        let clone = Command::CloneVolume {
            name: name.clone(),
            origin: id,
            expected_epoch: of.epoch,
            snapshot: snapshot.version.into(),
            snapshot_name: snapshot.record.name.clone(),
            created_unix_ms: now_ms(),
        };
        let mut applied = self.machine.check(clone.clone());
        if applied.is_ok() {
            self.note_cloning((id, snapshot.version), Some(of.epoch));
            applied = self.machine.apply(vec![clone]).await.map(drop);
        }
        match applied {
            Err(unknown @ Refusal::Unknown(_)) => return Err(unknown),
            Ok(()) => self.note_cloning((id, snapshot.version), None),
            Err(refused) => {
                self.note_cloning((id, snapshot.version), None);
                drop(turn);
                if request.snapshot.is_empty() {
                    // It was taken for the clone alone; what can't be dropped now is seen in the list, and harms nobody.
                    let _ = self.drop_snapshot(&volume, &snapshot).await;
                }
                return Err(refused);
            }
        }
        let is_mirrored = of.redundancy == Redundancy::Mirrored;
        self.serve_new(&name, is_mirrored, &mut turn).await?;
        let message = format!("volume {name} was cloned from {volume}@{}", snapshot.record.name);
        self.events.info("volume-created", message, &[("volume", name.to_string())]);
        self.volume(name.as_str()).await
    }

    /// Refuses while a clone needs a snapshot, or may come to need it. The turn to change something is held.
    pub(super) fn check_not_cloned(
        &self,
        volume: &VolumeName,
        snapshot: &VolumeSnapshot,
    ) -> Result<(), Refusal> {
        let name = &snapshot.record.name;
        if self.is_cloning(snapshot) {
            return Err(Refusal::Impossible(format!(
                "it is not known yet whether a clone of {volume}@{name} was made: `gemel volume list` will show it"
            )));
        }
        let (id, version) = (snapshot.volume, snapshot.version);
        self.machine.read(|state| match state.clone_of_snapshot(id, version) {
            None => Ok(()),
            Some((clone, false)) => Err(Refusal::Impossible(format!(
                "volume {clone} is a clone of {volume}@{name}, which stays as long as it does: delete that volume first"
            ))),
            Some((clone, true)) => Err(Refusal::Impossible(format!(
                "volume {clone}, a clone of {volume}@{name}, was deleted, and not all nodes have given its space back yet: try \
                 again when they have (`gemel status` says which is missing)"
            ))),
        })
    }

    /// Whether a clone needs a snapshot, or may.
    pub(super) fn is_cloned(&self, snapshot: &VolumeSnapshot) -> bool {
        let is_known =
            self.machine.read(|state| state.clone_of_snapshot(snapshot.volume, snapshot.version).is_some());
        is_known || self.is_cloning(snapshot)
    }

    /// Names of the clones of a snapshot.
    pub(super) fn clones_of(&self, snapshot: &VolumeSnapshot) -> Vec<String> {
        self.machine.read(|state| {
            let is_of = |record: &&VolumeRecord| {
                record.origin.as_ref().is_some_and(|origin| origin.version() == snapshot.version)
            };
            state.clones(snapshot.volume).filter(is_of).map(|record| record.name.to_string()).collect()
        })
    }

    fn is_cloning(&self, snapshot: &VolumeSnapshot) -> bool {
        let epoch = self.cloning().get(&(snapshot.volume, snapshot.version)).copied();
        epoch.is_some_and(|epoch| {
            self.machine
                .read(|state| state.volume_by_id(snapshot.volume).is_some_and(|record| record.epoch == epoch))
        })
    }

    fn note_cloning(&self, snapshot: (VolumeId, Version), epoch: Option<u32>) {
        match epoch {
            Some(epoch) => drop(self.cloning().insert(snapshot, epoch)),
            None => drop(self.cloning().remove(&snapshot)),
        }
    }

    fn cloning(&self) -> std::sync::MutexGuard<'_, Cloning> {
        // Whole at any time, so a panic elsewhere leaves a consistent one.
        self.cloning.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn record_of(&self, name: &VolumeName) -> Result<VolumeRecord, Rejection> {
        let found = self.machine.read(|state| state.volume(name).cloned());
        found.ok_or_else(|| Rejection::NoSuchVolume(name.clone()))
    }
}
