//! Clones in the control state: volumes that begin as a snapshot of another one shows it.
//!
//! Invariants: what a clone is made of has a smaller number and is not deleted before it; a clone is on the nodes on which
//! that volume is when it is made, and in sync where that one is: these have the snapshot. A command that comes late, when
//! the volume has another epoch, makes none: its snapshot may be gone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::volume::{NewVolume, VolumeRecord, Watermark};
use super::{ControlState, Outcome, Rejection};
use crate::base::units::{Version, VolumeId};
use crate::cluster::name::VolumeName;
use crate::store::interface::MAX_ANCESTORS;
use crate::volume::snapshot::SnapshotRecord;

/// What a clone was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The volume.
    pub volume: VolumeId,
    /// Epoch and sequence number of the snapshot, which name it in the volume.
    pub snapshot: Watermark,
    /// How people call the snapshot.
    pub snapshot_name: String,
}

impl Origin {
    /// The snapshot's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.snapshot.into()
    }
}

/// What the making of a clone asks for.
pub(super) struct NewClone {
    pub name: VolumeName,
    pub origin: Origin,
    pub expected_epoch: u32,
    pub created_unix_ms: u64,
}

impl ControlState {
    /// Volumes that are clones of this one, by number.
    pub fn clones(&self, volume: VolumeId) -> impl Iterator<Item = &VolumeRecord> {
        let is_clone = move |record: &&VolumeRecord| {
            record.origin.as_ref().is_some_and(|origin| origin.volume == volume)
        };
        self.volumes().filter(is_clone)
    }

    /// What keeps a snapshot: the name of a clone of it, and whether that one has been deleted and some node has not given
    /// its space back yet.
    #[must_use]
    pub fn clone_of_snapshot(&self, volume: VolumeId, snapshot: Version) -> Option<(&VolumeName, bool)> {
        let is_of = |origin: &Option<Origin>| {
            origin.as_ref().is_some_and(|origin| (origin.volume, origin.version()) == (volume, snapshot))
        };
        let present = self.volumes().find(|record| is_of(&record.origin)).map(|record| (&record.name, false));
        let deleted = || self.tombstones().find(|(_, tombstone)| is_of(&tombstone.origin));
        present.or_else(|| deleted().map(|(_, tombstone)| (&tombstone.name, true)))
    }

    pub(super) fn clone_volume(&mut self, new: NewClone) -> Result<Outcome, Rejection> {
        let NewClone { name, origin, expected_epoch, created_unix_ms } = new;
        let of = self.volume_by_id(origin.volume).ok_or(Rejection::NoSuchVolumeId(origin.volume))?.clone();
        of.check_epoch(expected_epoch)?;
        if !SnapshotRecord::is_name(&origin.snapshot_name) {
            return Err(Rejection::BadSnapshotName);
        }
        if depth(&self.volumes, &of) >= MAX_ANCESTORS {
            return Err(Rejection::LineageTooLong { volume: of.name, limit: MAX_ANCESTORS });
        }
        let outcome = self.create_volume(NewVolume {
            name,
            size_bytes: of.size_bytes,
            sector: of.sector,
            redundancy: of.redundancy,
            primary: of.primary.clone(),
            created_unix_ms,
        })?;
        if let Outcome::VolumeCreated { id } = outcome
            && let Some(record) = self.volumes.get_mut(&id)
        {
            record.in_sync = of.in_sync;
            record.origin = Some(origin);
        }
        Ok(outcome)
    }
}

/// What is wrong with what clones were made of; none when all is sound.
pub(super) fn flaw(volumes: &BTreeMap<VolumeId, VolumeRecord>) -> Option<&'static str> {
    volumes.values().find_map(|record| {
        let origin = record.origin.as_ref()?;
        if origin.volume >= record.id || !volumes.contains_key(&origin.volume) {
            Some("a volume is a clone of one that is not there")
        } else if depth(volumes, record) > MAX_ANCESTORS {
            Some("a clone has too many volumes behind it")
        } else if !SnapshotRecord::is_name(&origin.snapshot_name) {
            Some("a clone is of a snapshot with an impossible name")
        } else {
            None
        }
    })
}

/// How many volumes are behind one.
fn depth(volumes: &BTreeMap<VolumeId, VolumeRecord>, record: &VolumeRecord) -> usize {
    let parent = |record: &VolumeRecord| {
        let origin = record.origin.as_ref()?;
        // Numbers get smaller, so this comes to an end.
        volumes.get(&origin.volume).filter(|parent| parent.id < record.id)
    };
    std::iter::successors(parent(record), |record| parent(record)).count()
}
