//! The map that a pool has: in memory where it is small enough for that, else the tree.
//!
//! The tree names places by the *use* of their segment, not by its number: the generation under which it was filled,
//! in the place's field for the segment. So what the tree gives up long after a segment was emptied and taken anew
//! concerns a use that is over, and counts for nothing. Here they are translated, in both directions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, ready};
use std::rc::Rc;

use futures::future::Either;

use super::lsm::{DataEntries, LsmMap, TreeOptions, Turn};
use super::{Covered, Lineage, Map, MapEntry, MapValue, MemoryMap, References, SavePosition};
use crate::array::{Geometry, Place, SegmentIndex};
use crate::base::codec::{CutShort, Reader};
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::store::interface::{Changes, StoreError};
use crate::store::segments::SegmentTable;
use crate::store::tables::PoolTables;

/// The map that the store is built with.
pub(in crate::store) enum StoreMap {
    Memory(MemoryMap),
    Tree(TreeMap),
}

/// The tree of a pool.
pub(in crate::store) struct TreeMap {
    tree: LsmMap<PoolTables>,
    uses: SegmentUses,
}

/// Which use each segment has now.
#[derive(Clone, Default)]
pub(in crate::store) struct SegmentUses(Rc<RefCell<Uses>>);

#[derive(Default)]
struct Uses {
    generations: Vec<u64>,
    segments: HashMap<u32, SegmentIndex>,
}

impl SegmentUses {
    /// From now on a segment has this use, and the one before is over.
    pub(in crate::store) fn set(&self, segment: SegmentIndex, generation: u64) {
        let uses = &mut *self.0.borrow_mut();
        if uses.generations.len() <= segment.index() {
            uses.generations.resize(segment.index() + 1, 0);
        }
        let before = std::mem::replace(&mut uses.generations[segment.index()], generation);
        uses.segments.remove(&short(before));
        uses.segments.insert(short(generation), segment);
    }

    /// The use of a segment is over.
    pub(in crate::store) fn end(&self, segment: SegmentIndex) {
        let uses = &mut *self.0.borrow_mut();
        if let Some(generation) = uses.generations.get(segment.index()) {
            uses.segments.remove(&short(*generation));
        }
    }

    /// A place in a segment as it is used now, as the tree names it.
    fn named(&self, place: Place) -> Place {
        if mutant::is(Mutant::PlacesByNumber) {
            return place;
        }
        let generation = self.0.borrow().generations.get(place.segment().index()).copied().unwrap_or(0);
        place.in_segment(SegmentIndex(short(generation)))
    }

    /// Where a place is that the tree names; none when that use is over.
    fn found(&self, place: Place) -> Option<Place> {
        if mutant::is(Mutant::PlacesByNumber) {
            return Some(place);
        }
        let segment = self.0.borrow().segments.get(&place.segment().0).copied()?;
        Some(place.in_segment(segment))
    }

    fn name_entry(&self, entry: MapEntry) -> MapEntry {
        match entry.value {
            MapValue::Data { place, checksum } => {
                MapEntry { value: MapValue::Data { place: self.named(place), checksum }, ..entry }
            }
            MapValue::Hole | MapValue::Lost => entry,
        }
    }

    /// An entry as the tree has it, with its real place. What the map shows is never in a use that is over; should it
    /// be, the block is lost, which is an error and no silence.
    fn find_entry(&self, entry: MapEntry) -> MapEntry {
        let MapValue::Data { place, checksum } = entry.value else { return entry };
        let value = self.found(place).map_or(MapValue::Lost, |place| MapValue::Data { place, checksum });
        MapEntry { value, ..entry }
    }
}

/// Generations are counted far below this in the life of a pool: one a segment written.
fn short(generation: u64) -> u32 {
    generation as u32
}

/// Tells of places that the tree names; of those of uses that are over nobody has to know.
struct Named<'a, R> {
    references: &'a mut R,
    uses: &'a SegmentUses,
}

impl<R: References> References for Named<'_, R> {
    fn gained(&mut self, place: Place) {
        self.uses.found(place).into_iter().for_each(|place| self.references.gained(place));
    }

    fn lost(&mut self, place: Place) {
        self.uses.found(place).into_iter().for_each(|place| self.references.lost(place));
    }
}

struct Uncounted;

impl References for Uncounted {
    fn gained(&mut self, _: Place) {}
    fn lost(&mut self, _: Place) {}
}

impl TreeMap {
    pub(in crate::store) fn new(tables: PoolTables, options: TreeOptions, uses: SegmentUses) -> Self {
        Self { tree: LsmMap::new(tables, options), uses }
    }

    pub(in crate::store) fn tables(&self) -> &PoolTables {
        self.tree.storage()
    }

    pub(in crate::store) fn tree(&self) -> &LsmMap<PoolTables> {
        &self.tree
    }

    /// Every entry with data from a block on, in a bounded part of the map, and where to go on; those that nothing
    /// can give back included.
    pub(in crate::store) fn data_entries(
        &self,
        from: (VolumeId, u64),
    ) -> impl Future<Output = Result<DataEntries, StoreError>> + use<> {
        self.tree.data_entries(from)
    }

    /// Where an entry lies that the tree has; none when that use of the segment is over, or it is lost.
    pub(in crate::store) fn place_of(&self, entry: &MapEntry) -> Option<Place> {
        self.uses.find_entry(*entry).value.place()
    }

    /// What a flush or merge gave up.
    pub(in crate::store) fn apply_turn(&self, turn: &Turn, segments: &mut SegmentTable) {
        let mut named = Named { references: segments, uses: &self.uses };
        if mutant::is(Mutant::LostPlacesNotTold) {
            return;
        }
        turn.lost.iter().for_each(|place| named.lost(*place));
    }

    /// Places of statements that are in no table yet: a replay finds them again.
    pub(in crate::store) fn places_in_memory(&self) -> impl Iterator<Item = Place> {
        self.tree.places_in_memory().into_iter().filter_map(|place| self.uses.found(place))
    }

    /// Takes an entry of another map, whose places are counted.
    pub(in crate::store) fn take_over(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        snapshots: &[Version],
    ) {
        self.tree.apply(volume, address, self.uses.name_entry(entry), snapshots, &mut Uncounted);
    }
}

impl StoreMap {
    /// The tree, if it is one.
    pub(in crate::store) fn tree(&self) -> Option<&TreeMap> {
        match self {
            Self::Memory(_) => None,
            Self::Tree(tree) => Some(tree),
        }
    }

    /// The map in memory, if it is one.
    pub(in crate::store) fn memory(&self) -> Option<&MemoryMap> {
        match self {
            Self::Memory(map) => Some(map),
            Self::Tree(_) => None,
        }
    }

    /// The version of a block's entry that follows `version`.
    pub(in crate::store) fn next_version(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        version: Version,
    ) -> impl Future<Output = Result<Option<Version>, StoreError>> + use<> {
        match self {
            Self::Memory(map) => Either::Left(ready(Ok(map.next_version(volume, address, version)))),
            Self::Tree(map) => Either::Right(map.tree.next_version(volume, address, version)),
        }
    }
}

impl Map for StoreMap {
    fn look_up<F: FnMut(BlockAddress, Option<(VolumeId, MapEntry)>)>(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
        count: u64,
        mut found: F,
    ) -> impl Future<Output = Result<(), StoreError>> + use<F> {
        match self {
            Self::Memory(map) => Either::Left(map.look_up(lineage, address, count, found)),
            Self::Tree(map) => {
                let uses = map.uses.clone();
                let found = move |block, shown: Option<(VolumeId, MapEntry)>| {
                    found(block, shown.map(|(volume, entry)| (volume, uses.find_entry(entry))));
                };
                Either::Right(map.tree.look_up(lineage, address, count, found))
            }
        }
    }

    fn look_up_version(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        version: Version,
    ) -> impl Future<Output = Result<Option<MapEntry>, StoreError>> + use<> {
        match self {
            Self::Memory(map) => Either::Left(map.look_up_version(volume, address, version)),
            Self::Tree(map) => {
                let (looking, uses) = (map.tree.look_up_version(volume, address, version), map.uses.clone());
                Either::Right(async move { Ok(looking.await?.map(|entry| uses.find_entry(entry))) })
            }
        }
    }

    fn run_from(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
    ) -> impl Future<Output = Result<(u64, bool), StoreError>> + use<> {
        match self {
            Self::Memory(map) => Either::Left(map.run_from(lineage, address)),
            Self::Tree(map) => Either::Right(map.tree.run_from(lineage, address)),
        }
    }

    fn has_space(&self, volume: VolumeId, address: BlockAddress, newest: Option<Version>) -> bool {
        match self {
            Self::Memory(map) => map.has_space(volume, address, newest),
            Self::Tree(map) => map.tree.has_space(volume, address, newest),
        }
    }

    fn apply(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        snapshots: &[Version],
        references: &mut impl References,
    ) {
        match self {
            Self::Memory(map) => map.apply(volume, address, entry, snapshots, references),
            Self::Tree(TreeMap { tree, uses }) => {
                let entry = uses.name_entry(entry);
                tree.apply(volume, address, entry, snapshots, &mut Named { references, uses });
            }
        }
    }

    fn apply_move(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        references: &mut impl References,
    ) {
        match self {
            Self::Memory(map) => map.apply_move(volume, address, entry, references),
            Self::Tree(TreeMap { tree, uses }) => {
                let entry = uses.name_entry(entry);
                tree.apply_move(volume, address, entry, &mut Named { references, uses });
            }
        }
    }

    fn apply_hole(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        version: Version,
        covered: Covered<'_>,
        references: &mut impl References,
    ) -> Option<(BlockAddress, u64)> {
        match self {
            Self::Memory(map) => map.apply_hole(volume, address, count, version, covered, references),
            Self::Tree(TreeMap { tree, uses }) => {
                tree.apply_hole(volume, address, count, version, covered, &mut Named { references, uses })
            }
        }
    }

    fn drop_snapshot(
        &mut self,
        volume: VolumeId,
        dropped: Version,
        from: BlockAddress,
        snapshots: &[Version],
        references: &mut impl References,
    ) -> Option<BlockAddress> {
        match self {
            Self::Memory(map) => map.drop_snapshot(volume, dropped, from, snapshots, references),
            Self::Tree(TreeMap { tree, uses }) => {
                tree.drop_snapshot(volume, dropped, from, snapshots, &mut Named { references, uses })
            }
        }
    }

    fn drop_volume(&mut self, volume: VolumeId, references: &mut impl References) -> bool {
        match self {
            Self::Memory(map) => map.drop_volume(volume, references),
            Self::Tree(TreeMap { tree, uses }) => tree.drop_volume(volume, &mut Named { references, uses }),
        }
    }

    fn mapped_blocks(&self, volume: VolumeId) -> u64 {
        match self {
            Self::Memory(map) => map.mapped_blocks(volume),
            Self::Tree(map) => map.tree.mapped_blocks(volume),
        }
    }

    fn total_mapped_blocks(&self) -> u64 {
        match self {
            Self::Memory(map) => map.total_mapped_blocks(),
            Self::Tree(map) => map.tree.total_mapped_blocks(),
        }
    }

    fn held_blocks(&self, volume: VolumeId) -> u64 {
        match self {
            Self::Memory(map) => map.held_blocks(volume),
            Self::Tree(map) => map.tree.held_blocks(volume),
        }
    }

    fn total_held_blocks(&self) -> u64 {
        match self {
            Self::Memory(map) => map.total_held_blocks(),
            Self::Tree(map) => map.tree.total_held_blocks(),
        }
    }

    fn entries_in(
        &self,
        segment: SegmentIndex,
    ) -> impl Future<Output = Result<Vec<(VolumeId, BlockAddress, MapEntry)>, StoreError>> + use<> {
        match self {
            Self::Memory(map) => Either::Left(map.entries_in(segment)),
            Self::Tree(map) => {
                let uses = map.uses.clone();
                let generation = uses.0.borrow().generations.get(segment.index()).copied().unwrap_or(0);
                let looking = map.tree.entries_in(SegmentIndex(short(generation)));
                Either::Right(async move {
                    let found = looking.await?.into_iter();
                    Ok(found.map(|(volume, block, entry)| (volume, block, uses.find_entry(entry))).collect())
                })
            }
        }
    }

    fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> impl Future<Output = Result<Changes, StoreError>> + use<> {
        match self {
            Self::Memory(map) => Either::Left(map.changed_since(volume, since, at, from, limit)),
            Self::Tree(map) => Either::Right(map.tree.changed_since(volume, since, at, from, limit)),
        }
    }

    fn save(
        &mut self,
        from: SavePosition,
        may_forget: impl Fn(VolumeId, Version) -> bool,
        bytes: &mut Vec<u8>,
    ) -> Option<SavePosition> {
        match self {
            Self::Memory(map) => map.save(from, may_forget, bytes),
            Self::Tree(map) => map.tree.save(from, may_forget, bytes),
        }
    }

    fn saved_bytes(&self) -> u64 {
        match self {
            Self::Memory(map) => map.saved_bytes(),
            Self::Tree(map) => map.tree.saved_bytes(),
        }
    }

    fn load(&mut self, reader: &mut Reader<'_>, format: u32, geometry: &Geometry) -> Result<bool, CutShort> {
        match self {
            Self::Memory(map) => map.load(reader, format, geometry),
            Self::Tree(map) => map.tree.load(reader, format, geometry),
        }
    }
}
