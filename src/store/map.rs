//! The map: (volume, address) to the newest settled version of the block, held in memory and saved
//! by checkpoints.
//!
//! An entry gives way only to a newer version, or to the same version at a new place (in log order),
//! so statements of the log may be applied again. A hole is an entry too, and keeps older versions from
//! coming back, until replay begins behind it.

use std::collections::BTreeMap;

use crate::array::Place;
use crate::base::checksum::Crc32;
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BlockAddress, Version, VolumeId};

/// Consecutive blocks that the map holds together.
pub const PAGE_BLOCKS: usize = 64;

/// What the map knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Version of the newest settled write.
    pub version: Version,
    /// What it wrote.
    pub value: MapValue,
}

/// What a version of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapValue {
    /// Zeros that take no space.
    Hole,
    /// Data that nothing can give back: reading it is a medium error.
    Lost,
    /// Data in the log.
    Data {
        /// Where.
        place: Place,
        /// Checksum bound to the block's identity.
        checksum: Crc32,
    },
}

impl MapValue {
    /// Whether the block counts as allocated.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        !matches!(self, Self::Hole)
    }

    fn place(&self) -> Option<Place> {
        match self {
            Self::Data { place, .. } => Some(*place),
            Self::Hole | Self::Lost => None,
        }
    }
}

/// What a change of the map did to places: who counts live blocks follows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Change {
    /// A place that is referenced now.
    pub referenced: Option<Place>,
    /// A place that is not referenced any more.
    pub released: Option<Place>,
}

/// The map of all volumes.
#[derive(Default)]
pub struct BlockMap {
    pages: BTreeMap<PageKey, Box<Page>>,
    entry_count: u64,
    mapped_blocks: BTreeMap<VolumeId, u64>,
    total_mapped_blocks: u64,
}

/// A page's key: volume and address divided by [`PAGE_BLOCKS`].
pub type PageKey = (VolumeId, u64);

/// [`PAGE_BLOCKS`] entries in address order.
pub type Page = [Slot; PAGE_BLOCKS];

/// One packed entry of a page.
#[derive(Clone, Copy)]
pub struct Slot {
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
    #[must_use]
    pub fn unpack(&self) -> Option<MapEntry> {
        let value = match self.place {
            ABSENT => return None,
            HOLE => MapValue::Hole,
            LOST => MapValue::Lost,
            bits => MapValue::Data { place: Place::from_bits(bits), checksum: Crc32(self.checksum) },
        };
        Some(MapEntry { version: Version { epoch: self.epoch, sequence: self.sequence }, value })
    }
}

impl BlockMap {
    /// The newest settled version of a block; `None` when it was never written.
    #[must_use]
    pub fn get(&self, volume: VolumeId, address: BlockAddress) -> Option<MapEntry> {
        let (key, index) = locate(volume, address);
        self.pages.get(&key)?[index].unpack()
    }

    /// Applies a statement of the log about one block: it takes effect unless a newer version is
    /// there already.
    pub fn apply(&mut self, volume: VolumeId, address: BlockAddress, entry: MapEntry) -> Change {
        let (key, index) = locate(volume, address);
        let page = self.pages.entry(key).or_insert_with(|| Box::new([Slot::ABSENT; PAGE_BLOCKS]));
        let old = page[index].unpack();
        let always = mutant::is(Mutant::MoveAppliedAlways);
        if old.is_some_and(|old| old.version > entry.version) && !always {
            return Change::default();
        }
        page[index] = Slot::pack(&entry);
        self.count(volume, old, Some(entry));
        Change { referenced: entry.value.place(), released: old.and_then(|old| old.value.place()) }
    }

    /// Applies a move of the cleaner: it takes effect when the block still has that very version.
    pub fn apply_move(&mut self, volume: VolumeId, address: BlockAddress, entry: MapEntry) -> Change {
        match self.get(volume, address) {
            Some(old)
                if (old.version == entry.version && old.value.is_mapped())
                    || mutant::is(Mutant::MoveAppliedAlways) =>
            {
                self.apply(volume, address, entry)
            }
            _ => Change::default(),
        }
    }

    /// Turns `count` blocks into holes of `version`, where an older version exists; calls `released`
    /// for every place that is not referenced any more. Looks at [`PAGES_A_TURN`] pages and returns
    /// what is left to be done: first block and count.
    pub fn apply_hole(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        version: Version,
        mut released: impl FnMut(Place),
    ) -> Option<(BlockAddress, u64)> {
        if count == 0 {
            return None;
        }
        let end = address.0 + count;
        let hole = Slot::pack(&MapEntry { version, value: MapValue::Hole });
        let first_page = (volume, address.0 / PAGE_BLOCKS as u64);
        let last_page = (volume, (end - 1) / PAGE_BLOCKS as u64);
        let (mut unmapped, mut rest) = (0, None);
        for (turn, (key, page)) in self.pages.range_mut(first_page..=last_page).enumerate() {
            let base = key.1 * PAGE_BLOCKS as u64;
            if turn == PAGES_A_TURN {
                rest = Some((BlockAddress(base), end - base));
                break;
            }
            for (index, slot) in page.iter_mut().enumerate() {
                let within = (address.0..end).contains(&(base + index as u64));
                let Some(old) = slot.unpack() else { continue };
                if within && old.version <= version {
                    unmapped += u64::from(old.value.is_mapped());
                    *slot = hole;
                    old.value.place().into_iter().for_each(&mut released);
                }
            }
        }
        if let Some(mapped) = self.mapped_blocks.get_mut(&volume) {
            *mapped -= unmapped;
            self.total_mapped_blocks -= unmapped;
        }
        rest
    }

    /// Forgets [`PAGES_A_TURN`] pages of a volume; calls `released` for every place that they
    /// referenced. Returns whether there are more.
    pub fn drop_volume(&mut self, volume: VolumeId, mut released: impl FnMut(Place)) -> bool {
        let pages = self.pages.range((volume, 0)..=(volume, u64::MAX));
        let keys: Vec<PageKey> = pages.take(PAGES_A_TURN).map(|(key, _)| *key).collect();
        let is_last = keys.len() < PAGES_A_TURN;
        let mut mapped = 0;
        for page in keys.iter().filter_map(|key| self.pages.remove(key)) {
            for entry in page.iter().filter_map(Slot::unpack) {
                self.entry_count -= 1;
                mapped += u64::from(entry.value.is_mapped());
                entry.value.place().into_iter().for_each(&mut released);
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

    /// Forgets the holes of a page up to `version`: nothing older can come back any more.
    pub fn forget_holes(&mut self, key: PageKey, version: Version) {
        let Some(page) = self.pages.get_mut(&key) else { return };
        let old_hole = |entry: &MapEntry| entry.value == MapValue::Hole && entry.version <= version;
        for slot in page.iter_mut().filter(|slot| slot.unpack().as_ref().is_some_and(old_hole)) {
            *slot = Slot::ABSENT;
            self.entry_count -= 1;
        }
        if page.iter().all(|slot| slot.unpack().is_none()) {
            self.pages.remove(&key);
        }
    }

    /// Whether a block is allocated, and how many blocks from it on are known to be alike without
    /// looking further: one, or all up to the next page that exists.
    #[must_use]
    pub fn run_hint(&self, volume: VolumeId, address: BlockAddress) -> (u64, bool) {
        let (key, index) = locate(volume, address);
        match self.page_from(key) {
            Some((found, page)) if found == key => {
                (1, page[index].unpack().is_some_and(|e| e.value.is_mapped()))
            }
            Some((found, _)) if found.0 == volume => (found.1 * PAGE_BLOCKS as u64 - address.0, false),
            _ => (u64::MAX, false),
        }
    }

    /// The first page at or behind `key`.
    #[must_use]
    pub fn page_from(&self, key: PageKey) -> Option<(PageKey, &Page)> {
        self.pages.range(key..).next().map(|(key, page)| (*key, &**page))
    }

    /// Every entry that holds data, in address order.
    pub fn data_entries(&self) -> impl Iterator<Item = (VolumeId, BlockAddress, MapEntry, Place)> {
        self.pages.iter().flat_map(|((volume, page), slots)| {
            slots.iter().enumerate().filter_map(move |(index, slot)| {
                let entry = slot.unpack()?;
                let place = entry.value.place()?;
                Some((*volume, BlockAddress(page * PAGE_BLOCKS as u64 + index as u64), entry, place))
            })
        })
    }

    /// Allocated blocks of a volume.
    #[must_use]
    pub fn mapped_blocks(&self, volume: VolumeId) -> u64 {
        self.mapped_blocks.get(&volume).copied().unwrap_or(0)
    }

    /// Allocated blocks of all volumes.
    #[must_use]
    pub fn total_mapped_blocks(&self) -> u64 {
        self.total_mapped_blocks
    }

    /// Entries in all pages.
    #[must_use]
    pub fn entry_count(&self) -> u64 {
        self.entry_count
    }

    /// Pages in memory.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    fn count(&mut self, volume: VolumeId, old: Option<MapEntry>, new: Option<MapEntry>) {
        let mapped = |entry: Option<MapEntry>| u64::from(entry.is_some_and(|entry| entry.value.is_mapped()));
        self.entry_count += u64::from(old.is_none());
        let total = self.mapped_blocks.entry(volume).or_default();
        *total = *total + mapped(new) - mapped(old);
        self.total_mapped_blocks = self.total_mapped_blocks + mapped(new) - mapped(old);
    }
}

fn locate(volume: VolumeId, address: BlockAddress) -> (PageKey, usize) {
    ((volume, address.0 / PAGE_BLOCKS as u64), (address.0 % PAGE_BLOCKS as u64) as usize)
}

/// Pages that one call goes through at most, so that other tasks of the thread get their turn.
pub const PAGES_A_TURN: usize = 256;

const ABSENT: u64 = u64::MAX;
const HOLE: u64 = u64::MAX - 1;
const LOST: u64 = u64::MAX - 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::{SegmentIndex, Slot as DiskSlot};

    const VOLUME: VolumeId = VolumeId(3);

    fn entry(sequence: u64, row: u32) -> MapEntry {
        let place = Place::of_row(SegmentIndex(1), DiskSlot(0), row);
        let value = MapValue::Data { place, checksum: Crc32(row) };
        MapEntry { version: Version { epoch: 1, sequence }, value }
    }

    #[test]
    fn the_newest_version_wins_in_any_order() {
        let mut map = BlockMap::default();
        let address = BlockAddress(100);
        map.apply(VOLUME, address, entry(5, 50));
        assert_eq!(map.apply(VOLUME, address, entry(4, 40)), Change::default());
        assert_eq!(map.get(VOLUME, address), Some(entry(5, 50)));
        let change = map.apply(VOLUME, address, entry(6, 60));
        assert_eq!(change.released, Some(Place::of_row(SegmentIndex(1), DiskSlot(0), 50)));
        assert_eq!(map.mapped_blocks(VOLUME), 1);
    }

    #[test]
    fn a_move_takes_effect_only_on_the_version_it_moved() {
        let mut map = BlockMap::default();
        let address = BlockAddress(7);
        map.apply(VOLUME, address, entry(5, 50));
        map.apply_move(VOLUME, address, entry(5, 51));
        assert_eq!(map.get(VOLUME, address), Some(entry(5, 51)));
        let hole = map.apply_hole(VOLUME, address, 1, Version { epoch: 1, sequence: 6 }, |_| {});
        assert_eq!(hole, None);
        assert_eq!(map.apply_move(VOLUME, address, entry(5, 52)), Change::default());
        assert_eq!(map.get(VOLUME, address).unwrap().value, MapValue::Hole);
        assert_eq!(map.mapped_blocks(VOLUME), 0);
    }

    #[test]
    fn holes_spare_newer_versions_and_their_neighbours() {
        let mut map = BlockMap::default();
        (0..200)
            .for_each(|n| assert!(map.apply(VOLUME, BlockAddress(n), entry(n, n as u32)).released.is_none()));
        let mut released = 0;
        let version = Version { epoch: 1, sequence: 99 };
        let rest = map.apply_hole(VOLUME, BlockAddress(10), 150, version, |_| released += 1);
        assert_eq!((rest, released), (None, 90));
        assert_eq!(map.mapped_blocks(VOLUME), 110);
        assert_eq!(map.get(VOLUME, BlockAddress(9)), Some(entry(9, 9)));
        assert_eq!(map.get(VOLUME, BlockAddress(100)), Some(entry(100, 100)));
    }

    #[test]
    fn a_dropped_volume_releases_its_places_only() {
        let mut map = BlockMap::default();
        (0..70)
            .for_each(|n| assert!(map.apply(VOLUME, BlockAddress(n), entry(1, n as u32)).released.is_none()));
        map.apply(VolumeId(4), BlockAddress(0), entry(1, 99));
        let mut released = 0;
        assert!(!map.drop_volume(VOLUME, |_| released += 1));
        assert_eq!((released, map.total_mapped_blocks(), map.entry_count()), (70, 1, 1));
    }

    #[test]
    fn what_is_large_goes_in_turns_of_bounded_length() {
        let filled = || {
            let mut map = BlockMap::default();
            (0..1000).for_each(|page| {
                assert!(map.apply(VOLUME, BlockAddress(page * 64), entry(1, 1)).released.is_none());
            });
            map
        };
        let (mut map, mut released, mut turns) = (filled(), 0, 1);
        let mut rest = Some((BlockAddress(5), 64_000));
        while let Some((address, count)) = rest {
            let version = Version { epoch: 1, sequence: 2 };
            rest = map.apply_hole(VOLUME, address, count, version, |_| released += 1);
            assert!(released <= turns * PAGES_A_TURN);
            turns += 1;
        }
        assert_eq!((released, map.mapped_blocks(VOLUME), map.entry_count()), (999, 1, 1000));
        let (mut map, mut released, mut turns) = (filled(), 0, 1);
        while map.drop_volume(VOLUME, |_| released += 1) {
            assert_eq!(released, turns * PAGES_A_TURN);
            turns += 1;
        }
        assert_eq!((released, map.total_mapped_blocks(), map.page_count()), (1000, 0, 0));
    }

    #[test]
    fn only_old_holes_are_forgotten() {
        let mut map = BlockMap::default();
        (0..3).for_each(|n| assert!(map.apply(VOLUME, BlockAddress(n), entry(n, 1)).released.is_none()));
        let version = |sequence| Version { epoch: 1, sequence };
        assert_eq!(map.apply_hole(VOLUME, BlockAddress(0), 1, version(7), |_| {}), None);
        assert_eq!(map.apply_hole(VOLUME, BlockAddress(1), 1, version(8), |_| {}), None);
        map.forget_holes((VOLUME, 0), version(7));
        assert_eq!((map.get(VOLUME, BlockAddress(0)), map.entry_count()), (None, 2));
        assert_eq!(map.get(VOLUME, BlockAddress(1)).unwrap().value, MapValue::Hole);
        assert_eq!(map.get(VOLUME, BlockAddress(2)), Some(entry(2, 1)));
        assert_eq!(map.apply_hole(VOLUME, BlockAddress(2), 1, version(9), |_| {}), None);
        map.forget_holes((VOLUME, 0), version(9));
        assert_eq!((map.page_count(), map.entry_count()), (0, 0));
    }
}
