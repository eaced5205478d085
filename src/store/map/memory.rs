//! The map in memory: 24 bytes a block and its page, about 70 an older version that a snapshot shows; saved
//! whole by each checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, ready};
use std::ops::Range;

use crate::array::{Geometry, Place, SegmentIndex};
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader};
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BlockAddress, Version, VolumeId};

use super::older::{OlderEntries, is_kept};
use super::record::{self, PAGE_BLOCKS};
use super::{Covered, Lineage, Map, MapEntry, MapValue, References, SavePosition, View};
use crate::store::interface::{Changes, StoreError};

/// The map of all volumes, in memory.
#[derive(Default)]
pub struct MemoryMap {
    /// The newest entries. A block with older ones is among them.
    pages: BTreeMap<PageKey, Box<Page>>,
    older: OlderEntries,
    /// Of the newest entries.
    entry_count: u64,
    mapped_blocks: BTreeMap<VolumeId, u64>,
    total_mapped_blocks: u64,
}

/// A page's key: volume and address divided by [`PAGE_BLOCKS`].
type PageKey = (VolumeId, u64);

/// [`PAGE_BLOCKS`] entries in address order.
type Page = [Slot; PAGE_BLOCKS];

/// One packed entry of a page.
#[derive(Clone, Copy)]
struct Slot {
    place: u64,
    sequence: u64,
    epoch: u32,
    checksum: u32,
}

const _: () = assert!(size_of::<Slot>() == 24);

impl Slot {
    const ABSENT: Self = Self { place: ABSENT, sequence: 0, epoch: 0, checksum: 0 };

    fn pack(entry: &MapEntry) -> Self {
        let (place, checksum) = match entry.value {
            MapValue::Hole => (HOLE, 0),
            MapValue::Lost => (LOST, 0),
            MapValue::Data { place, checksum } => (place.bits(), checksum.0),
        };
        Self { place, checksum, epoch: entry.version.epoch, sequence: entry.version.sequence }
    }

    /// The entry, if there is one.
    fn unpack(&self) -> Option<MapEntry> {
        let value = match self.place {
            ABSENT => return None,
            HOLE => MapValue::Hole,
            LOST => MapValue::Lost,
            bits => MapValue::Data { place: Place::from_bits(bits), checksum: Crc32(self.checksum) },
        };
        Some(MapEntry { version: Version { epoch: self.epoch, sequence: self.sequence }, value })
    }
}

impl MemoryMap {
    /// Memory that a block takes, older versions apart.
    pub const BLOCK_BYTES: u64 = size_of::<Slot>() as u64;

    fn get(&self, volume: VolumeId, address: BlockAddress) -> Option<MapEntry> {
        let (key, index) = locate(volume, address);
        self.pages.get(&key)?[index].unpack()
    }

    /// What the view at `at` shows.
    fn get_at(&self, volume: VolumeId, at: Version, address: BlockAddress) -> Option<MapEntry> {
        let newest = self.get(volume, address)?;
        if newest.version <= at { Some(newest) } else { self.older.shown_at(volume, address, at) }
    }

    /// What the first of these views that knows a block shows, and which volume's it is.
    fn shown(
        &self,
        mut views: impl Iterator<Item = View>,
        address: BlockAddress,
    ) -> Option<(VolumeId, MapEntry)> {
        views.find_map(|view| Some((view.volume, self.get_at(view.volume, view.at, address)?)))
    }

    /// Records a hole for each block of which the volume has no entry and an ancestor shows data, up to `end` or
    /// for a bounded time. Returns up to where.
    fn shadow(&mut self, volume: VolumeId, blocks: Range<u64>, hole: MapEntry, ancestors: &[View]) -> u64 {
        let pages = |volume| {
            let (first, last) = (blocks.start / PAGE_BLOCKS as u64, (blocks.end - 1) / PAGE_BLOCKS as u64);
            let pages = self.pages.range((volume, first)..=(volume, last)).map(|((_, number), _)| *number);
            pages.take(PAGES_A_TURN + 1)
        };
        let behind = ancestors.iter().flat_map(|view| pages(view.volume));
        let all: BTreeSet<u64> = pages(volume).chain(behind).collect();
        let stop = all.iter().nth(PAGES_A_TURN).map_or(blocks.end, |page| page * PAGE_BLOCKS as u64);
        for page in all.into_iter().take(PAGES_A_TURN) {
            let base = page * PAGE_BLOCKS as u64;
            for address in base.max(blocks.start)..(base + PAGE_BLOCKS as u64).min(blocks.end) {
                let block = BlockAddress(address);
                let shown = self.shown(ancestors.iter().copied(), block);
                let is_mapped = shown.is_some_and(|(_, entry)| entry.value.is_mapped());
                if is_mapped && self.get(volume, block).is_none() {
                    self.apply(volume, block, hole, &[], &mut Uncounted);
                }
            }
        }
        stop
    }

    fn page_from(&self, key: PageKey) -> Option<(PageKey, &Page)> {
        self.pages.range(key..).next().map(|(key, page)| (*key, &**page))
    }

    /// Every entry that holds data: the newest in address order, then the older ones.
    pub(in crate::store) fn data_entries(
        &self,
    ) -> impl Iterator<Item = (VolumeId, BlockAddress, MapEntry, Place)> {
        let all = self.newest_entries().chain(self.older.iter());
        all.filter_map(|(volume, address, entry)| Some((volume, address, entry, entry.value.place()?)))
    }

    /// The newest entry of each block, in address order.
    pub(in crate::store) fn newest_entries(
        &self,
    ) -> impl Iterator<Item = (VolumeId, BlockAddress, MapEntry)> {
        self.pages.iter().flat_map(|((volume, page), slots)| {
            slots.iter().enumerate().filter_map(move |(index, slot)| {
                Some((*volume, BlockAddress(page * PAGE_BLOCKS as u64 + index as u64), slot.unpack()?))
            })
        })
    }

    /// Every place that the map refers to, each once.
    pub(in crate::store) fn places(&self) -> impl Iterator<Item = Place> {
        self.data_entries().map(|(_, _, _, place)| place)
    }

    /// Every entry that is not its block's newest.
    pub(in crate::store) fn older_entries(&self) -> impl Iterator<Item = (VolumeId, BlockAddress, MapEntry)> {
        self.older.iter()
    }

    /// The version of the block's entry that follows `version`.
    pub(in crate::store) fn next_version(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        version: Version,
    ) -> Option<Version> {
        let mut older = self.older.range(volume, address, 1).map(|(_, entry)| entry.version);
        let newest =
            self.get(volume, address).map(|newest| newest.version).filter(|newest| *newest > version);
        older.find(|next| *next > version).or(newest)
    }

    /// Forgets the holes of a page of which `may_forget` says so, and that shadow nothing.
    fn forget_holes(&mut self, key: PageKey, may_forget: impl Fn(VolumeId, Version) -> bool) {
        let first = BlockAddress(key.1 * PAGE_BLOCKS as u64);
        let mut shadowed = self.older.forget_holes(key.0, first, PAGE_BLOCKS as u64, &may_forget);
        if mutant::is(Mutant::HoleForgottenOverHistory) {
            shadowed = 0;
        }
        let Some(page) = self.pages.get_mut(&key) else { return };
        let goes = |entry: &MapEntry| entry.value == MapValue::Hole && may_forget(key.0, entry.version);
        for (index, slot) in page.iter_mut().enumerate() {
            if shadowed & (1 << index) == 0 && slot.unpack().as_ref().is_some_and(goes) {
                *slot = Slot::ABSENT;
                self.entry_count -= 1;
            }
        }
        if page.iter().all(|slot| slot.unpack().is_none()) {
            self.pages.remove(&key);
        }
    }

    /// Takes an entry as it was saved.
    fn keep(&mut self, volume: VolumeId, address: BlockAddress, entry: MapEntry) {
        match self.get(volume, address) {
            Some(newest) if newest.version > entry.version => {
                self.older.keep(volume, address, entry);
            }
            newest => {
                self.apply(volume, address, entry, &[], &mut Uncounted);
                let older = newest.filter(|newest| newest.version < entry.version);
                older.map(|older| self.older.keep(volume, address, older));
            }
        }
    }

    fn count(&mut self, volume: VolumeId, old: Option<MapEntry>, new: Option<MapEntry>) {
        let mapped = |entry: Option<MapEntry>| u64::from(entry.is_some_and(|entry| entry.value.is_mapped()));
        self.entry_count += u64::from(old.is_none());
        let total = self.mapped_blocks.entry(volume).or_default();
        *total = *total + mapped(new) - mapped(old);
        self.total_mapped_blocks = self.total_mapped_blocks + mapped(new) - mapped(old);
    }
}

impl Map for MemoryMap {
    fn look_up<F: FnMut(BlockAddress, Option<(VolumeId, MapEntry)>)>(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
        count: u64,
        mut found: F,
    ) -> impl Future<Output = Result<(), StoreError>> + use<F> {
        for offset in 0..count {
            let block = address.offset(offset);
            found(block, self.shown(lineage.views(), block));
        }
        ready(Ok(()))
    }

    fn look_up_version(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        version: Version,
    ) -> impl Future<Output = Result<Option<MapEntry>, StoreError>> + use<> {
        let newest = self.get(volume, address).filter(|newest| newest.version == version);
        ready(Ok(newest.or_else(|| self.older.get(volume, address, version))))
    }

    fn run_from(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
    ) -> impl Future<Output = Result<(u64, bool), StoreError>> + use<> {
        // How far there is no page.
        let blank = lineage.views().map(|view| {
            let (key, _) = locate(view.volume, address);
            match self.page_from(key) {
                Some((found, _)) if found == key => 0,
                Some((found, _)) if found.0 == view.volume => found.1 * PAGE_BLOCKS as u64 - address.0,
                _ => u64::MAX,
            }
        });
        ready(Ok(match blank.min().unwrap_or(u64::MAX) {
            0 => {
                let shown = self.shown(lineage.views(), address);
                (1, shown.is_some_and(|(_, entry)| entry.value.is_mapped()))
            }
            blank => (blank, false),
        }))
    }

    fn has_space(&self, volume: VolumeId, address: BlockAddress, newest: Option<Version>) -> bool {
        let is_kept = |entry: &MapEntry| newest.is_some_and(|newest| entry.version <= newest);
        let is_kept = |entry: &MapEntry| is_kept(entry) && !mutant::is(Mutant::OlderVersionNotReserved);
        self.get(volume, address).is_some_and(|entry| entry.value.is_mapped() && !is_kept(&entry))
    }

    fn apply(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        snapshots: &[Version],
        references: &mut impl References,
    ) {
        let (key, index) = locate(volume, address);
        let page = self.pages.entry(key).or_insert_with(|| Box::new([Slot::ABSENT; PAGE_BLOCKS]));
        let old = page[index].unpack();
        let always = mutant::is(Mutant::MoveAppliedAlways);
        if let Some(newest) = old.filter(|old| old.version > entry.version && !always) {
            self.older.apply((volume, address), entry, newest.version, snapshots, references);
            return;
        }
        page[index] = Slot::pack(&entry);
        self.count(volume, old, Some(entry));
        entry.value.place().into_iter().for_each(|place| references.gained(place));
        let Some(old) = old else { return };
        if old.version < entry.version && is_kept(snapshots, old.version, entry.version) {
            self.older.keep(volume, address, old);
        } else {
            old.value.place().into_iter().for_each(|place| references.lost(place));
        }
    }

    fn apply_move(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        references: &mut impl References,
    ) {
        let newest = self.get(volume, address);
        let is_there =
            newest.is_some_and(|old| old.version == entry.version && old.value.may_move_as(&entry.value));
        if is_there || mutant::is(Mutant::MoveAppliedAlways) {
            self.apply(volume, address, entry, &[], references);
        } else {
            self.older.apply_move(volume, address, entry, references);
        }
    }

    /// Looks at [`PAGES_A_TURN`] pages.
    fn apply_hole(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        version: Version,
        covered: Covered<'_>,
        references: &mut impl References,
    ) -> Option<(BlockAddress, u64)> {
        if count == 0 {
            return None;
        }
        let (snapshots, all) = (covered.snapshots, address.0 + count);
        let hole = MapEntry { version, value: MapValue::Hole };
        let end = match covered.ancestors {
            [] => all,
            _ if mutant::is(Mutant::CloneHoleNotRecorded) => all,
            ancestors => self.shadow(volume, address.0..all, hole, ancestors),
        };
        let first_page = (volume, address.0 / PAGE_BLOCKS as u64);
        let last_page = (volume, (end - 1) / PAGE_BLOCKS as u64);
        let (mut unmapped, mut rest) = (0, None);
        for (turn, (key, page)) in self.pages.range_mut(first_page..=last_page).enumerate() {
            let base = key.1 * PAGE_BLOCKS as u64;
            if turn == PAGES_A_TURN {
                rest = Some((BlockAddress(base), all - base));
                break;
            }
            for (index, slot) in page.iter_mut().enumerate() {
                let within = (address.0..end).contains(&(base + index as u64));
                let Some(old) = slot.unpack().filter(|_| within) else { continue };
                let block = BlockAddress(base + index as u64);
                if old.version > version {
                    self.older.apply((volume, block), hole, old.version, snapshots, references);
                    continue;
                }
                unmapped += u64::from(old.value.is_mapped());
                *slot = Slot::pack(&hole);
                if old.version < version && is_kept(snapshots, old.version, version) {
                    self.older.keep(volume, block, old);
                } else {
                    old.value.place().into_iter().for_each(|place| references.lost(place));
                }
            }
        }
        if let Some(mapped) = self.mapped_blocks.get_mut(&volume) {
            *mapped -= unmapped;
            self.total_mapped_blocks -= unmapped;
        }
        rest.or((end < all).then(|| (BlockAddress(end), all - end)))
    }

    /// Looks at [`OLDER_A_TURN`] entries.
    fn drop_snapshot(
        &mut self,
        volume: VolumeId,
        dropped: Version,
        from: BlockAddress,
        snapshots: &[Version],
        references: &mut impl References,
    ) -> Option<BlockAddress> {
        let newest = |address| {
            let (key, index) = locate(volume, address);
            Some(self.pages.get(&key)?[index].unpack()?.version)
        };
        self.older.sweep((volume, from), (snapshots, dropped), OLDER_A_TURN, newest, references)
    }

    /// Forgets [`OLDER_A_TURN`] older entries, or [`PAGES_A_TURN`] pages.
    fn drop_volume(&mut self, volume: VolumeId, references: &mut impl References) -> bool {
        if self.older.drop_volume(volume, OLDER_A_TURN, references) {
            return true;
        }
        let pages = self.pages.range((volume, 0)..=(volume, u64::MAX));
        let keys: Vec<PageKey> = pages.take(PAGES_A_TURN).map(|(key, _)| *key).collect();
        let is_last = keys.len() < PAGES_A_TURN;
        let mut mapped = 0;
        for page in keys.iter().filter_map(|key| self.pages.remove(key)) {
            for entry in page.iter().filter_map(Slot::unpack) {
                self.entry_count -= 1;
                mapped += u64::from(entry.value.is_mapped());
                entry.value.place().into_iter().for_each(|place| references.lost(place));
            }
        }
        self.total_mapped_blocks -= mapped;
        if let Some(left) = self.mapped_blocks.get_mut(&volume) {
            *left -= mapped;
        }
        if is_last {
            self.mapped_blocks.remove(&volume);
        }
        !is_last
    }

    fn mapped_blocks(&self, volume: VolumeId) -> u64 {
        self.mapped_blocks.get(&volume).copied().unwrap_or(0)
    }

    fn total_mapped_blocks(&self) -> u64 {
        self.total_mapped_blocks
    }

    fn held_blocks(&self, volume: VolumeId) -> u64 {
        self.older.held_blocks(volume)
    }

    fn total_held_blocks(&self) -> u64 {
        self.older.total_held_blocks()
    }

    fn entries_in(
        &self,
        segment: SegmentIndex,
    ) -> impl Future<Output = Result<Vec<(VolumeId, BlockAddress, MapEntry)>, StoreError>> + use<> {
        let inside = self.data_entries().filter(|(_, _, _, place)| place.segment() == segment);
        ready(Ok(inside.map(|(volume, address, entry, _)| (volume, address, entry)).collect()))
    }

    /// Looks at [`PAGES_A_TURN`] pages.
    fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> impl Future<Output = Result<Changes, StoreError>> + use<> {
        let mut changes = Changes::default();
        let (first, _) = locate(volume, from);
        let mut pages = self.pages.range(first..=(volume, u64::MAX));
        for ((_, number), page) in pages.by_ref().take(PAGES_A_TURN) {
            let base = number * PAGE_BLOCKS as u64;
            for (address, slot) in (base..).zip(page.iter()).filter(|(address, _)| *address >= from.0) {
                let Some(newest) = slot.unpack() else { continue };
                let shown = match newest.version <= at {
                    true => Some(newest),
                    false => self.older.shown_at(volume, BlockAddress(address), at),
                };
                let changed = shown.filter(|entry| !entry.version.is_covered_by(since));
                let Some(entry) = changed else { continue };
                if !changes.push(BlockAddress(address), entry.version, entry.value.is_mapped(), limit) {
                    return ready(Ok(changes));
                }
            }
        }
        changes.next = pages.next().map(|((_, number), _)| BlockAddress(number * PAGE_BLOCKS as u64));
        ready(Ok(changes))
    }

    /// A piece is a page.
    fn save(
        &mut self,
        from: SavePosition,
        may_forget: impl Fn(VolumeId, Version) -> bool,
        bytes: &mut Vec<u8>,
    ) -> Option<SavePosition> {
        let (key, _) = self.page_from((from.0, from.1))?;
        self.forget_holes(key, may_forget);
        if let Some(page) = self.pages.get(&key) {
            let first = BlockAddress(key.1 * PAGE_BLOCKS as u64);
            let older = self.older.range(key.0, first, PAGE_BLOCKS as u64);
            let older = older.map(|(block, entry)| ((block.0 - first.0) as usize, entry));
            let newest = page.iter().enumerate();
            let newest = newest.filter_map(|(index, slot)| Some((index, slot.unpack()?)));
            record::encode(bytes, key.0, key.1, older.chain(newest));
        }
        Some(SavePosition(key.0, key.1 + 1))
    }

    fn saved_bytes(&self) -> u64 {
        let entries = self.entry_count + self.older.len();
        self.pages.len() as u64 * record::HEAD_BYTES as u64 + entries * record::ENTRY_BYTES as u64
    }

    fn load(&mut self, reader: &mut Reader<'_>, format: u32, geometry: &Geometry) -> Result<bool, CutShort> {
        let Some((volume, entries)) = record::decode(reader, format, geometry)? else { return Ok(false) };
        for (address, entry) in entries {
            self.keep(volume, address, entry);
        }
        Ok(true)
    }
}

/// While a map is loaded nobody counts: that is done once at the end.
struct Uncounted;

impl References for Uncounted {
    fn gained(&mut self, _: Place) {}
    fn lost(&mut self, _: Place) {}
}

fn locate(volume: VolumeId, address: BlockAddress) -> (PageKey, usize) {
    ((volume, address.0 / PAGE_BLOCKS as u64), (address.0 % PAGE_BLOCKS as u64) as usize)
}

/// Pages that one call goes through at most, so that other tasks of the thread get their turn.
const PAGES_A_TURN: usize = 256;
/// Older entries that one call looks at, and those of the last block.
const OLDER_A_TURN: usize = PAGES_A_TURN * PAGE_BLOCKS;

const ABSENT: u64 = u64::MAX;
const HOLE: u64 = u64::MAX - 1;
const LOST: u64 = u64::MAX - 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Slot as DiskSlot;

    const VOLUME: VolumeId = VolumeId(3);
    const NOTHING: Covered<'_> = Covered { snapshots: &[], ancestors: &[] };

    /// What the map said of places.
    #[derive(Default)]
    struct Told {
        gained: Vec<Place>,
        lost: Vec<Place>,
    }

    impl References for Told {
        fn gained(&mut self, place: Place) {
            self.gained.push(place);
        }
        fn lost(&mut self, place: Place) {
            self.lost.push(place);
        }
    }

    fn place(row: u32) -> Place {
        Place::of_row(SegmentIndex(1), DiskSlot(0), row)
    }

    fn entry(sequence: u64, row: u32) -> MapEntry {
        let value = MapValue::Data { place: place(row), checksum: Crc32(row) };
        MapEntry { version: Version { epoch: 1, sequence }, value }
    }

    fn version(sequence: u64) -> Version {
        Version { epoch: 1, sequence }
    }

    /// Blocks 0 to `count` with versions and rows like their addresses.
    fn filled(count: u64, step: u64) -> MemoryMap {
        let mut map = MemoryMap::default();
        (0..count).for_each(|n| {
            map.apply(VOLUME, BlockAddress(n * step), entry(n, n as u32), &[], &mut Uncounted);
        });
        map
    }

    fn hole(map: &mut MemoryMap, address: u64, count: u64, sequence: u64) -> Told {
        let mut told = Told::default();
        let rest =
            map.apply_hole(VOLUME, BlockAddress(address), count, version(sequence), NOTHING, &mut told);
        assert_eq!(rest, None);
        told
    }

    #[test]
    fn the_newest_version_wins_in_any_order() {
        let (mut map, mut told) = (MemoryMap::default(), Told::default());
        let address = BlockAddress(100);
        map.apply(VOLUME, address, entry(5, 50), &[], &mut told);
        map.apply(VOLUME, address, entry(4, 40), &[], &mut told);
        assert_eq!(map.get(VOLUME, address), Some(entry(5, 50)));
        map.apply(VOLUME, address, entry(6, 60), &[], &mut told);
        assert_eq!((told.gained, told.lost), (vec![place(50), place(60)], vec![place(50)]));
        assert_eq!(map.mapped_blocks(VOLUME), 1);
    }

    #[test]
    fn a_move_takes_effect_only_on_the_version_it_moved() {
        let (mut map, mut told) = (MemoryMap::default(), Told::default());
        let address = BlockAddress(7);
        let moved = |at| {
            let value = MapValue::Data { place: place(at), checksum: Crc32(50) };
            MapEntry { value, ..entry(5, 50) }
        };
        map.apply(VOLUME, address, entry(5, 50), &[], &mut told);
        map.apply_move(VOLUME, address, moved(51), &mut told);
        assert_eq!(map.get(VOLUME, address), Some(moved(51)));
        assert_eq!(hole(&mut map, 7, 1, 6).lost, vec![place(51)]);
        map.apply_move(VOLUME, address, moved(52), &mut told);
        assert_eq!((told.gained, told.lost), (vec![place(50), place(51)], vec![place(50)]));
        assert_eq!(map.get(VOLUME, address).unwrap().value, MapValue::Hole);
        assert_eq!(map.mapped_blocks(VOLUME), 0);
    }

    #[test]
    fn a_move_brings_no_data_back_that_was_replaced_under_its_version() {
        let (mut map, mut told) = (MemoryMap::default(), Told::default());
        let (address, snapshots) = (BlockAddress(7), [version(6)]);
        let other = |at| MapValue::Data { place: place(at), checksum: Crc32(99) };
        for newer in [None, Some(entry(8, 80))] {
            map.apply(VOLUME, address, entry(5, 50), &snapshots, &mut told);
            newer.into_iter().for_each(|newer| map.apply(VOLUME, address, newer, &snapshots, &mut told));
            map.apply(VOLUME, address, MapEntry { value: other(51), ..entry(5, 0) }, &snapshots, &mut told);
            map.apply_move(VOLUME, address, entry(5, 52), &mut told);
            assert_eq!(map.get_at(VOLUME, version(6), address).unwrap().value, other(51));
            map.apply_move(VOLUME, address, MapEntry { value: other(53), ..entry(5, 0) }, &mut told);
            assert_eq!(map.get_at(VOLUME, version(6), address).unwrap().value, other(53));
        }
    }

    #[test]
    fn holes_spare_newer_versions_and_their_neighbours() {
        let mut map = filled(200, 1);
        assert_eq!(hole(&mut map, 10, 150, 99).lost.len(), 90);
        assert_eq!(map.mapped_blocks(VOLUME), 110);
        assert_eq!(map.get(VOLUME, BlockAddress(9)), Some(entry(9, 9)));
        assert_eq!(map.get(VOLUME, BlockAddress(100)), Some(entry(100, 100)));
    }

    #[test]
    fn a_dropped_volume_releases_its_places_only() {
        let (mut map, mut told) = (filled(70, 1), Told::default());
        map.apply(VolumeId(4), BlockAddress(0), entry(1, 99), &[], &mut Uncounted);
        assert!(!map.drop_volume(VOLUME, &mut told));
        assert_eq!((told.lost.len(), map.total_mapped_blocks(), map.entry_count), (70, 1, 1));
    }

    #[test]
    fn what_is_large_goes_in_turns_of_bounded_length() {
        let (mut map, mut told, mut turns) = (filled(1000, 64), Told::default(), 1);
        let mut rest = Some((BlockAddress(5), 64_000));
        while let Some((address, count)) = rest {
            rest = map.apply_hole(VOLUME, address, count, version(1000), NOTHING, &mut told);
            assert!(told.lost.len() <= turns * PAGES_A_TURN);
            turns += 1;
        }
        assert_eq!((told.lost.len(), map.mapped_blocks(VOLUME), map.entry_count), (999, 1, 1000));
        let (mut map, mut told, mut turns) = (filled(1000, 64), Told::default(), 1);
        while map.drop_volume(VOLUME, &mut told) {
            assert_eq!(told.lost.len(), turns * PAGES_A_TURN);
            turns += 1;
        }
        assert_eq!((told.lost.len(), map.total_mapped_blocks(), map.pages.len()), (1000, 0, 0));
    }

    #[test]
    fn a_dropped_snapshot_gives_up_in_turns_what_no_other_shows() {
        const BLOCKS: u64 = 20_000;
        let (mut map, mut told) = (filled(BLOCKS, 1), Told::default());
        let snapshots = [version(BLOCKS), version(BLOCKS + 1)];
        (0..BLOCKS).for_each(|n| {
            let newer = entry(BLOCKS + 2 + n, (BLOCKS + n) as u32);
            map.apply(VOLUME, BlockAddress(n), newer, &snapshots, &mut Uncounted);
        });
        assert_eq!((map.mapped_blocks(VOLUME), map.held_blocks(VOLUME)), (BLOCKS, BLOCKS));
        let left = &snapshots[..1];
        let mut turns = 0;
        for left in [left, &[]] {
            let mut rest = Some(BlockAddress(0));
            while let Some(from) = rest {
                rest = map.drop_snapshot(VOLUME, version(BLOCKS), from, left, &mut told);
                turns += 1;
            }
            let kept = if left.is_empty() { 0 } else { BLOCKS };
            assert_eq!((map.held_blocks(VOLUME), told.lost.len() as u64), (kept, BLOCKS - kept));
        }
        assert_eq!((turns, map.older.len(), map.mapped_blocks(VOLUME)), (4, 0, BLOCKS));
    }

    #[test]
    fn a_hole_of_a_clone_shadows_what_is_behind_it_in_turns() {
        let (mut map, clone) = (filled(1000, 64), VolumeId(9));
        let behind = [View { volume: VOLUME, at: version(600) }];
        let covered = Covered { snapshots: &[], ancestors: &behind };
        let (mut rest, mut turns) = (Some((BlockAddress(64), 64_000)), 0);
        while let Some((address, count)) = rest {
            rest = map.apply_hole(clone, address, count, version(9), covered, &mut Uncounted);
            turns += 1;
        }
        let view = View { volume: clone, at: Version::GREATEST };
        let lineage = Lineage::new(view, behind.to_vec());
        let owner =
            |map: &MemoryMap, block| map.shown(lineage.views(), BlockAddress(block)).map(|(owner, _)| owner);
        assert_eq!(
            (owner(&map, 0), owner(&map, 64), owner(&map, 600 * 64)),
            (Some(VOLUME), Some(clone), Some(clone))
        );
        assert_eq!((owner(&map, 601 * 64), owner(&map, 65)), (None, None));
        assert_eq!((turns, map.entry_count, map.mapped_blocks(clone)), (4, 1600, 0));
    }

    #[test]
    fn only_old_holes_are_forgotten_and_the_rest_is_saved() {
        let mut map = filled(3, 1);
        hole(&mut map, 0, 1, 7);
        hole(&mut map, 1, 1, 8);
        let mut bytes = Vec::new();
        let next = map.save(SavePosition::START, |_, hole| hole <= version(7), &mut bytes).unwrap();
        assert_eq!((map.get(VOLUME, BlockAddress(0)), map.entry_count), (None, 2));
        assert_eq!(map.get(VOLUME, BlockAddress(1)).unwrap().value, MapValue::Hole);
        assert_eq!(map.get(VOLUME, BlockAddress(2)), Some(entry(2, 2)));
        assert_eq!(bytes.len() as u64, map.saved_bytes());
        assert_eq!(map.save(next, |_, hole| hole <= version(7), &mut bytes), None);
        hole(&mut map, 2, 1, 9);
        bytes.clear();
        assert_eq!(map.save(SavePosition::START, |_, hole| hole <= version(9), &mut bytes), Some(next));
        assert_eq!((bytes.len(), map.pages.len(), map.entry_count), (0, 0, 0));
    }
}
