//! A check of the store's own books: the map against the segment table, for tests and diagnosis.

use std::collections::{BTreeMap, HashSet};

use crate::array::SegmentIndex;
use crate::base::units::VolumeId;

use super::interface::{StoreError, is_shown};
use super::map::{Map, MapValue, MemoryMap};
use super::pool::Store;
use super::segments::{Segment, SegmentState};
use super::shared::Contents;

impl Store {
    /// Compares what the segment table counts with what the map refers to.
    ///
    /// # Errors
    /// The first contradiction, in words.
    pub async fn audit(&self) -> Result<(), String> {
        let is_tree = {
            let contents = self.shared().contents.borrow();
            if let Some(map) = contents.map.memory() {
                audit_map(&contents, map)?;
            }
            audit_sums(&contents)?;
            contents.tree().is_some()
        };
        let last_number = self.shared().log.borrow().position().last_number;
        for (index, segment) in self.shared().contents.borrow().segments.iter() {
            if segment.last_batch > last_number {
                return Err(format!("{index:?} holds batch {} of {last_number}", segment.last_batch));
            }
        }
        if is_tree { self.audit_tree(false).await } else { Ok(()) }
    }

    /// [`Store::audit`], where the map keeps its tables on disk and has just merged all of them: then what it counts
    /// is exact.
    ///
    /// # Errors
    /// As [`Store::audit`].
    pub async fn audit_exactly(&self) -> Result<(), String> {
        self.audit().await?;
        if self.shared().has_tree { self.audit_tree(true).await } else { Ok(()) }
    }

    /// What the tree shows lies in segments in use, each place once, and no segment counts less than lies in it. Nobody may
    /// write meanwhile; the cleaner may move.
    async fn audit_tree(&self, is_exact: bool) -> Result<(), String> {
        // Blocks count as moved before they are, segments as cleaned after: so what was on its way at the start is seen too.
        let statistics = &self.shared().statistics;
        let moved = || (statistics.moved_blocks.get(), statistics.cleaned_segments.get());
        let moved_before = moved();
        let (mut live, mut places, mut lost) = (BTreeMap::new(), HashSet::new(), 0);
        let mut next = Some((VolumeId(0), 0));
        while let Some(from) = next {
            let part = match self.shared().contents.borrow().tree() {
                Some(map) => map.data_entries(from),
                None => return Ok(()),
            };
            let (entries, rest) = match part.await {
                Ok(part) => part,
                // What can't be read can't be audited.
                Err(StoreError::Offline | StoreError::Medium { .. }) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            };
            let contents = self.shared().contents.borrow();
            let Some(map) = contents.tree() else { return Ok(()) };
            for (volume, address, entry) in entries {
                if !contents.volumes.contains_key(&volume) {
                    return Err(format!("{address:?} belongs to {volume:?}, which does not exist"));
                }
                if entry.value == MapValue::Lost {
                    lost += 1;
                    continue;
                }
                let Some(place) = map.place_of(&entry) else {
                    return Err(format!("{volume:?} {address:?} lies in a use that is over"));
                };
                if !places.insert(place) && moved() == moved_before {
                    return Err(format!("{place:?} of {volume:?} {address:?} is used twice"));
                }
                let segment = contents.segments.get(place.segment());
                let may_be_live = matches!(segment.state, SegmentState::Open | SegmentState::Sealed);
                if !may_be_live || segment.is_emptied {
                    return Err(format!("{volume:?} {address:?} lies in {:?}, {segment:?}", place.segment()));
                }
                *live.entry(place.segment()).or_default() += 1;
            }
            next = rest;
        }
        if moved() != moved_before {
            return Ok(());
        }
        let contents = self.shared().contents.borrow();
        let is_exact = is_exact && contents.tree().is_some_and(|map| map.tree().is_one_run());
        for (index, segment) in contents.segments.iter().filter(|(_, segment)| !segment.is_emptied) {
            let referenced: u32 = live.get(&index).copied().unwrap_or(0);
            if segment.live_blocks < referenced || is_exact && segment.live_blocks > referenced {
                return Err(format!("{index:?} counts {} blocks, has {referenced}", segment.live_blocks));
            }
        }
        let used = contents.used_blocks();
        let shown = places.len() as u64 + lost;
        if used < shown || is_exact && used > shown {
            return Err(format!("{used} blocks are counted, {shown} are there"));
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

fn audit_map(contents: &Contents, map: &MemoryMap) -> Result<(), String> {
    let mut live: BTreeMap<SegmentIndex, u32> = BTreeMap::new();
    let mut places = HashSet::new();
    for (volume, address, _, place) in map.data_entries() {
        if !places.insert(place) {
            return Err(format!("{place:?} of {volume:?} {address:?} is used twice"));
        }
        if !contents.volumes.contains_key(&volume) {
            return Err(format!("{address:?} belongs to {volume:?}, which does not exist"));
        }
        *live.entry(place.segment()).or_default() += 1;
    }
    for (volume, address, entry) in map.older_entries() {
        let version = entry.version;
        let snapshots = contents.volumes.get(&volume).map_or(&[][..], |state| state.snapshots.versions());
        let next = map.next_version(volume, address, version);
        if !next.is_some_and(|next| is_shown(snapshots, version, next)) {
            return Err(format!(
                "{version:?} of {volume:?} {address:?} is kept, next {next:?}, for none of {snapshots:?}"
            ));
        }
    }
    for (index, segment) in contents.segments.iter() {
        let referenced = live.get(&index).copied().unwrap_or(0);
        if segment.live_blocks != referenced {
            return Err(format!("{index:?} counts {} blocks, has {referenced}", segment.live_blocks));
        }
        let may_be_live = matches!(segment.state, SegmentState::Open | SegmentState::Sealed);
        if referenced > 0 && !may_be_live {
            return Err(format!("{index:?} is {:?} and holds {referenced} blocks", segment.state));
        }
    }
    Ok(())
}

/// What is counted by volume is what is counted in all.
fn audit_sums(contents: &Contents) -> Result<(), String> {
    let mapped: u64 = contents.volumes.keys().map(|volume| contents.map.mapped_blocks(*volume)).sum();
    let held: u64 = contents.volumes.keys().map(|volume| contents.map.held_blocks(*volume)).sum();
    if held != contents.map.total_held_blocks() {
        return Err(format!("{held} blocks are held by volume, {} in all", contents.map.total_held_blocks()));
    }
    if mapped != contents.map.total_mapped_blocks() {
        return Err(format!("{mapped} blocks by volume, {} in all", contents.map.total_mapped_blocks()));
    }
    Ok(())
}
