//! Older versions of blocks, beside the newest ones: what views at snapshots show.
//!
//! Invariant: with the entries of a block in the order of their versions, one that is not the newest is here
//! exactly while a snapshot is not older than it and older than the next one. So an overwritten block costs an
//! entry here when a snapshot shows it, and nothing else does. An entry takes 48 bytes, with its share of the
//! tree about 70.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};

use crate::array::Place;
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BlockAddress, Version, VolumeId};

use super::{MapEntry, MapValue, References};
use crate::store::interface::is_shown;

/// The older entries of all volumes.
#[derive(Default)]
pub(super) struct OlderEntries {
    entries: BTreeMap<Key, MapValue>,
    /// Blocks of data among them.
    held_blocks: BTreeMap<VolumeId, u64>,
    total_held_blocks: u64,
}

type Key = (VolumeId, BlockAddress, Version);

const _: () = assert!(size_of::<(Key, MapValue)>() == 48);

/// Whether the entry of version `entry`, followed by one of version `next`, is kept for these snapshots.
pub(super) fn is_kept(snapshots: &[Version], entry: Version, next: Version) -> bool {
    if mutant::is(Mutant::OlderVersionFreed) {
        return snapshots.iter().any(|snapshot| entry < *snapshot && *snapshot < next);
    }
    is_shown(snapshots, entry, next)
}

impl OlderEntries {
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn held_blocks(&self, volume: VolumeId) -> u64 {
        self.held_blocks.get(&volume).copied().unwrap_or(0)
    }

    pub(super) fn total_held_blocks(&self) -> u64 {
        self.total_held_blocks
    }

    /// What the view at `at` shows of a block of which nothing newer is to be seen.
    pub(super) fn shown_at(&self, volume: VolumeId, address: BlockAddress, at: Version) -> Option<MapEntry> {
        let all = self.entries.range((volume, address, Version::default())..=(volume, address, at));
        all.last().map(|((.., version), value)| MapEntry { version: *version, value: *value })
    }

    pub(super) fn get(&self, volume: VolumeId, address: BlockAddress, version: Version) -> Option<MapEntry> {
        let value = *self.entries.get(&(volume, address, version))?;
        Some(MapEntry { version, value })
    }

    /// Every entry with its block.
    pub(super) fn iter(&self) -> impl Iterator<Item = (VolumeId, BlockAddress, MapEntry)> {
        let entry = |((volume, address, version), value): (&Key, &MapValue)| {
            (*volume, *address, MapEntry { version: *version, value: *value })
        };
        self.entries.iter().map(entry)
    }

    /// The entries of consecutive blocks.
    pub(super) fn range(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> impl Iterator<Item = (BlockAddress, MapEntry)> + Clone {
        let end = (volume, address.offset(count), Version::default());
        let entries = self.entries.range((volume, address, Version::default())..end);
        entries
            .map(|((_, address, version), value)| (*address, MapEntry { version: *version, value: *value }))
    }

    /// Takes an entry that is the newest no more, whatever snapshots there are.
    pub(super) fn keep(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
    ) -> Option<MapValue> {
        let replaced = self.entries.insert((volume, address, entry.version), entry.value);
        let mapped = |value: &MapValue| u64::from(value.is_mapped());
        self.count(volume, mapped(&entry.value), replaced.as_ref().map_or(0, mapped));
        replaced
    }

    /// Applies a statement about a block whose newest entry, of version `newest`, is newer.
    pub(super) fn apply(
        &mut self,
        (volume, address): (VolumeId, BlockAddress),
        entry: MapEntry,
        newest: Version,
        snapshots: &[Version],
        references: &mut impl References,
    ) {
        if self.entries.is_empty() && snapshots.is_empty() {
            return;
        }
        let key = (volume, address, entry.version);
        let is_there = self.entries.contains_key(&key);
        let behind = (Excluded(key), Included((volume, address, Version::GREATEST)));
        let next = self.entries.range(behind).next().map_or(newest, |((.., version), _)| *version);
        if !is_there && !is_kept(snapshots, entry.version, next) {
            return;
        }
        entry.value.place().into_iter().for_each(|place| references.gained(place));
        let replaced = self.keep(volume, address, entry);
        replaced.and_then(|old| old.place()).into_iter().for_each(|place| references.lost(place));
        // What was shown up to the next entry is now shown up to this one.
        let before = self.entries.range((volume, address, Version::default())..key).next_back();
        let before = before.map(|(key, _)| *key);
        if let Some(before) = before.filter(|(.., version)| !is_kept(snapshots, *version, entry.version)) {
            self.remove(before, references);
        }
    }

    /// Applies a move: it takes effect when that very version is here, with that very data.
    pub(super) fn apply_move(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        references: &mut impl References,
    ) {
        let old = self.get(volume, address, entry.version).filter(|old| old.value.may_move_as(&entry.value));
        let Some(old) = old else { return };
        entry.value.place().into_iter().for_each(|place| references.gained(place));
        old.value.place().into_iter().for_each(|place| references.lost(place));
        if !mutant::is(Mutant::MoveOfOlderVersionIgnored) {
            self.keep(volume, address, entry);
        }
    }

    /// Gives up, among about `limit` entries from a block of a volume on, what no snapshot shows; `newest` tells
    /// the newest version of a block. Returns where to go on. `dropped` is the snapshot for which this is done.
    pub(super) fn sweep(
        &mut self,
        (volume, from): (VolumeId, BlockAddress),
        (snapshots, dropped): (&[Version], Version),
        limit: usize,
        newest: impl Fn(BlockAddress) -> Option<Version>,
        references: &mut impl References,
    ) -> Option<BlockAddress> {
        let all = (volume, from, Version::default())..=(volume, BlockAddress(u64::MAX), Version::GREATEST);
        let mut entries = self.entries.range(all).map(|(key, _)| *key).peekable();
        let (mut gone, mut rest, mut looked_at) = (Vec::new(), None, 0);
        let mut present = None;
        while let Some(key @ (_, address, version)) = entries.next() {
            if looked_at >= limit && present != Some(address) {
                rest = Some(address);
                break;
            }
            looked_at += 1;
            present = Some(address);
            let next = entries.peek().filter(|(_, other, _)| *other == address).map(|(.., next)| *next);
            let next = next.or_else(|| newest(address)).unwrap_or(Version::GREATEST);
            let shared = mutant::is(Mutant::DropFreesShared) && version <= dropped && dropped < next;
            if shared || !is_kept(snapshots, version, next) {
                gone.push(key);
            }
        }
        drop(entries);
        gone.into_iter().for_each(|key| self.remove(key, references));
        rest
    }

    /// Forgets holes that shadow nothing any more, of `count` blocks, where `may_forget` says so. Returns the
    /// blocks that still have older entries, a bit each.
    pub(super) fn forget_holes(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        may_forget: impl Fn(VolumeId, Version) -> bool,
    ) -> u64 {
        let (mut left, mut forgotten) = (0u64, Vec::new());
        for (block, entry) in self.range(volume, address, count) {
            let bit = 1 << (block.0 - address.0);
            if left & bit == 0 && entry.value == MapValue::Hole && may_forget(volume, entry.version) {
                forgotten.push((volume, block, entry.version));
            } else {
                left |= bit;
            }
        }
        for key in &forgotten {
            self.entries.remove(key);
        }
        left
    }

    /// Forgets up to `limit` entries of a volume. Returns whether there are more.
    pub(super) fn drop_volume(
        &mut self,
        volume: VolumeId,
        limit: usize,
        references: &mut impl References,
    ) -> bool {
        let all = (volume, BlockAddress(0), Version::default())
            ..=(volume, BlockAddress(u64::MAX), Version::GREATEST);
        let mut keys: Vec<Key> = self.entries.range(all).take(limit + 1).map(|(key, _)| *key).collect();
        let has_more = keys.len() > limit;
        keys.truncate(limit);
        keys.into_iter().for_each(|key| self.remove(key, references));
        if !has_more {
            self.held_blocks.remove(&volume);
        }
        has_more
    }

    fn remove(&mut self, key: Key, references: &mut impl References) {
        let Some(value) = self.entries.remove(&key) else { return };
        self.count(key.0, 0, u64::from(value.is_mapped()));
        value.place().into_iter().for_each(|place: Place| references.lost(place));
    }

    fn count(&mut self, volume: VolumeId, more: u64, less: u64) {
        if more != less {
            let held = self.held_blocks.entry(volume).or_default();
            *held = *held + more - less;
            self.total_held_blocks = self.total_held_blocks + more - less;
        }
    }
}
