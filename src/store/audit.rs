//! A check of the store's own books: the map against the segment table, for tests and diagnosis.

use std::collections::{BTreeMap, HashSet};

use crate::array::SegmentIndex;

use super::interface::is_shown;
use super::map::Map;
use super::pool::Store;
use super::segments::{Segment, SegmentState};

impl Store {
    /// Compares what the segment table counts with what the map refers to.
    ///
    /// # Errors
    /// The first contradiction, in words.
    pub fn audit(&self) -> Result<(), String> {
        let contents = self.shared().contents.borrow();
        let mut live: BTreeMap<SegmentIndex, u32> = BTreeMap::new();
        let mut places = HashSet::new();
        for (volume, address, _, place) in contents.map.data_entries() {
            if !places.insert(place) {
                return Err(format!("{place:?} of {volume:?} {address:?} is used twice"));
            }
            if !contents.volumes.contains_key(&volume) {
                return Err(format!("{address:?} belongs to {volume:?}, which does not exist"));
            }
            *live.entry(place.segment()).or_default() += 1;
        }
        for (volume, address, version) in contents.map.older_entries() {
            let snapshots = contents.volumes.get(&volume).map_or(&[][..], |state| state.snapshots.versions());
            let next = contents.map.next_version(volume, address, version);
            if !next.is_some_and(|next| is_shown(snapshots, version, next)) {
                return Err(format!(
                    "{version:?} of {volume:?} {address:?} is kept, next {next:?}, for none of {snapshots:?}"
                ));
            }
        }
        let last_number = self.shared().log.borrow().position().last_number;
        for (index, segment) in contents.segments.iter() {
            if segment.last_batch > last_number {
                return Err(format!("{index:?} holds batch {} of {last_number}", segment.last_batch));
            }
            let referenced = live.get(&index).copied().unwrap_or(0);
            if segment.live_blocks != referenced {
                return Err(format!("{index:?} counts {} blocks, has {referenced}", segment.live_blocks));
            }
            let may_be_live = matches!(segment.state, SegmentState::Open | SegmentState::Sealed);
            if referenced > 0 && !may_be_live {
                return Err(format!("{index:?} is {:?} and holds {referenced} blocks", segment.state));
            }
        }
        let mapped: u64 = contents.volumes.keys().map(|volume| contents.map.mapped_blocks(*volume)).sum();
        let held: u64 = contents.volumes.keys().map(|volume| contents.map.held_blocks(*volume)).sum();
        if held != contents.map.total_held_blocks() {
            return Err(format!(
                "{held} blocks are held by volume, {} in all",
                contents.map.total_held_blocks()
            ));
        }
        if mapped != contents.map.total_mapped_blocks() {
            return Err(format!("{mapped} blocks by volume, {} in all", contents.map.total_mapped_blocks()));
        }
        Ok(())
    }

    /// Every segment as the store knows it now.
    #[must_use]
    pub fn segments(&self) -> Vec<(SegmentIndex, Segment)> {
        let contents = self.shared().contents.borrow();
        contents.segments.iter().map(|(index, segment)| (index, *segment)).collect()
    }
}
