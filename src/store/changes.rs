//! What has changed since a version, read off the map; and how long holes are remembered for it.
//!
//! A hole that was forgotten can't be told to a replica that was away, so whoever has a peer says through
//! which version that peer has everything ([`Store::keep_holes_after`]); nothing newer is forgotten.

use crate::base::units::{BlockAddress, Version, VolumeId};

use super::Store;
use super::interface::{ChangeLog, Changes, StoreError};
use super::map::{PAGE_BLOCKS, PAGES_A_TURN};
use super::shared::Shared;

impl ChangeLog for Store {
    async fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        if self.is_offline() {
            return Err(StoreError::Offline);
        }
        let contents = self.shared().contents.borrow();
        if !contents.volumes.contains_key(&volume) {
            return Err(StoreError::NoSuchVolume(volume));
        }
        let mut changes = Changes::default();
        let mut number = from.0 / PAGE_BLOCKS as u64;
        for _ in 0..PAGES_A_TURN {
            let found = contents.map.page_from((volume, number)).filter(|((owner, _), _)| *owner == volume);
            let Some(((_, page_number), page)) = found else { return Ok(changes) };
            let base = page_number * PAGE_BLOCKS as u64;
            for (address, slot) in (base..).zip(page.iter()).filter(|(address, _)| *address >= from.0) {
                let Some(entry) = slot.unpack().filter(|entry| !entry.version.is_covered_by(since)) else {
                    continue;
                };
                if !changes.push(BlockAddress(address), entry.version, entry.value.is_mapped(), limit) {
                    return Ok(changes);
                }
            }
            number = page_number + 1;
        }
        changes.next = Some(BlockAddress(number * PAGE_BLOCKS as u64));
        Ok(changes)
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
    /// Through which version holes of a volume may be forgotten when replay begins behind `passed`.
    pub(super) fn forgettable_through(&self, volume: VolumeId, passed: Version) -> Version {
        let told = self.hole_floors.borrow().get(&volume).copied();
        passed.min(told.unwrap_or(self.options.forget_holes_through))
    }
}
