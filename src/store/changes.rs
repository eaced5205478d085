//! What has changed since a version, read off the map; and how long holes are remembered for it.
//!
//! A hole that was forgotten can't be told to a replica that was away, so whoever has a peer says through
//! which version that peer has everything ([`Store::keep_holes_after`]); nothing newer is forgotten.

use crate::base::units::{BlockAddress, Version, VolumeId};

use super::Store;
use super::interface::{ChangeLog, Changes, StoreError};
use super::shared::Shared;

impl ChangeLog for Store {
    async fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.changes(volume, since, None, from, limit).await
    }
}

impl Store {
    /// Holes of the volume that `through` does not cover are kept from now on, until this is called again:
    /// `through` is what every replica of the volume has. Not kept over a restart; see
    /// [`super::StoreOptions::forget_holes_through`].
    pub fn keep_holes_after(&self, volume: VolumeId, through: Version) {
        self.shared().hole_floors.borrow_mut().insert(volume, through);
    }
}

impl Shared {
    /// Whether every replica of the volume has a hole of this version.
    pub(super) fn may_forget_hole(&self, volume: VolumeId, hole: Version) -> bool {
        let told = self.hole_floors.borrow().get(&volume).copied();
        hole.is_covered_by(told.unwrap_or(self.options.forget_holes_through))
    }
}
