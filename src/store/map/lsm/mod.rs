//! The map as a log-structured merge tree of bounded memory.
//!
//! Statements of the log go to a memtable unseen what they replace ([`statement`] says how that is made good), full
//! memtables become sorted runs of tables ([`table`]), and runs are merged ([`merge`]). Lookups read what they need
//! ([`lookup`]). docs/map.md has the design, what it costs and what is not there yet; the pool does not use it yet.
//!
//! What differs from the map in memory, as [`super::Map`] allows:
//! - Places that are not referenced any more are told by flushes and merges, not when they are replaced.
//! - Blocks of a volume are counted too high until merges have seen that what was written was there before
//!   (account.md).
//! - A hole is known where nothing was before, too.
//!
//! # What counts as space
#![doc = include_str!("account.md")]

mod bits;
mod block;
mod cache;
mod index;
mod lookup;
mod manifest;
mod memtable;
mod merge;
mod space;
mod statement;
mod storage;
mod sweep;
mod table;
mod tree;

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use super::{Covered, Lineage, Map, MapEntry, References, SavePosition};
use crate::array::{Geometry, Place, SegmentIndex};
use crate::base::codec::{CutShort, Reader};
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::store::interface::{Changes, StoreError};
pub use block::is_intact;
use cache::Cache;
use lookup::Tree;
pub(in crate::store) use manifest::TAG_TREE;
pub use merge::Turn;
use statement::Statement;
pub use storage::{TableId, TableStorage};
use tree::State;
pub use tree::TreeOptions;

/// The map of all volumes, in tables.
pub struct LsmMap<S> {
    tree: Rc<Tree<S>>,
    /// The records of the save that is under way.
    saving: Vec<Vec<u8>>,
}

/// Entries with data, and where to go on.
pub type DataEntries = (Vec<(VolumeId, BlockAddress, MapEntry)>, Option<(VolumeId, u64)>);

/// Bytes of memory, by what they are for; and what is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeUsage {
    /// Statements in memtables.
    pub memory_statements: usize,
    /// Cached blocks.
    pub cache_bytes: usize,
    /// Indexes.
    pub index_bytes: usize,
    /// What is known of blocks that have space.
    pub space_bytes: usize,
    /// Runs and tables.
    pub runs: usize,
    /// See above.
    pub tables: usize,
    /// Blocks of all tables, and rows in them.
    pub table_blocks: u64,
    /// See above.
    pub rows: u64,
    /// Reads of data blocks so far.
    pub block_reads: u64,
    /// Reads of indexes so far.
    pub index_reads: u64,
}

impl<S: TableStorage> LsmMap<S> {
    /// A blank map; [`Map::load`] gives it what was saved. Before tables are written, [`Self::number_tables_from`] has
    /// to say from which number on none was ever given.
    #[must_use]
    pub fn new(storage: S, options: TreeOptions) -> Self {
        let cache = Rc::new(RefCell::new(Cache::new(options.cache_bytes, options.index_bytes)));
        let state = State::new(options);
        Self { tree: Rc::new(Tree { storage, state: RefCell::new(state), cache }), saving: Vec::new() }
    }

    /// Statements in memory, in memtables' worths: at one and more it is time to flush.
    #[must_use]
    pub fn memtables(&self) -> usize {
        let state = self.tree.state.borrow();
        let statements: usize = state.memtables().map(memtable::Memtable::len).sum();
        statements / state.options.memtable_statements
    }

    /// Runs that no merge has met, in the number of them that is merged together: at some of it merges are behind.
    #[must_use]
    pub fn merges_behind(&self) -> usize {
        let state = self.tree.state.borrow();
        state.runs.iter().filter(|run| run.level == 0).count() / state.options.tier_runs
    }

    /// Whether a merge is under way or due.
    #[must_use]
    pub fn has_merges(&self) -> bool {
        merge::begin(&mut self.tree.state.borrow_mut());
        !self.tree.state.borrow().jobs.is_empty()
    }

    /// Numbers of tables are from now on at least this.
    pub fn number_tables_from(&self, first: TableId) {
        let mut state = self.tree.state.borrow_mut();
        state.next_table = state.next_table.max(first.0);
    }

    /// What keeps the tables.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.tree.storage
    }

    /// Every entry with data from a block on, in a bounded part of the map, and where to go on: for audits.
    ///
    /// # Errors
    /// Those of lookups.
    pub fn data_entries(
        &self,
        from: (VolumeId, u64),
    ) -> impl Future<Output = Result<DataEntries, StoreError>> + use<S> {
        let tree = self.tree.clone();
        async move { tree.data_entries(from).await }
    }

    /// The memtable takes nothing more. Once [`Self::flush`] has said that there is nothing to flush, all statements
    /// so far are in tables.
    pub fn freeze(&self) {
        self.tree.state.borrow_mut().freeze();
    }

    /// Writes the oldest memtable that takes nothing more to a run. None when there is none.
    ///
    /// # Errors
    /// What the storage says; nothing has changed then.
    pub fn flush(&self) -> impl Future<Output = Result<Option<Turn>, StoreError>> + use<S> {
        let tree = self.tree.clone();
        async move { merge::flush(&tree.storage, &tree.state, &tree.cache).await }
    }

    /// Does a turn of a merge; dropping the future gives that turn up and no other. None when nothing is to be
    /// merged. `may_forget` is as [`Map::save`] has it. One call at a time.
    ///
    /// # Errors
    /// What the storage says, and [`StoreError::Offline`] when a block of an input is not what it should be; nothing
    /// has changed then.
    pub fn merge<F: Fn(VolumeId, Version) -> bool>(
        &self,
        may_forget: F,
    ) -> impl Future<Output = Result<Option<Turn>, StoreError>> + use<S, F> {
        let tree = self.tree.clone();
        async move { merge::merge(&tree.storage, &tree.state, &tree.cache, &may_forget).await }
    }

    /// Has all runs merged into one by the next turns, if nothing is being merged.
    pub fn begin_full_merge(&self) {
        merge::begin_all(&mut self.tree.state.borrow_mut());
    }

    /// Finds out of `count` blocks which of them have space: then [`Map::has_space`] knows.
    ///
    /// # Errors
    /// Those of lookups.
    pub fn learn_space(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> impl Future<Output = Result<(), StoreError>> + use<S> {
        let tree = self.tree.clone();
        async move { tree.learn_space((volume, address.0), count).await }
    }

    /// The version of the block's entry that follows `version`.
    ///
    /// # Errors
    /// Those of lookups.
    pub fn next_version(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        version: Version,
    ) -> impl Future<Output = Result<Option<Version>, StoreError>> + use<S> {
        let tree = self.tree.clone();
        async move { tree.next_version((volume, address.0), version).await }
    }

    /// Tables to which neither the tree nor any lookup refers any more: they may go when no durable manifest does
    /// either.
    #[must_use]
    pub fn take_retired(&self) -> Vec<TableId> {
        self.tree.state.borrow().retired.take()
    }

    /// Whether merges have met all that there is: then all that is counted is exact.
    #[must_use]
    pub fn is_one_run(&self) -> bool {
        let state = self.tree.state.borrow();
        state.runs.len() <= 1 && state.memtables().all(|memtable| memtable.len() == 0)
    }

    /// Whether so little is outside of the oldest run that merging all would tell hardly anything new of space.
    #[must_use]
    pub fn is_nearly_exact(&self) -> bool {
        let state = self.tree.state.borrow();
        let bottom = state.runs.first().map_or(0, tree::Run::rows);
        let above: u64 = state.runs.iter().skip(1).map(tree::Run::rows).sum();
        let in_memory: usize = state.memtables().map(memtable::Memtable::len).sum();
        (above + in_memory as u64) * NEARLY <= bottom
    }

    /// How many tables [`Self::take_retired`] would give.
    #[must_use]
    pub fn retired_tables(&self) -> usize {
        self.tree.state.borrow().retired.borrow().len()
    }

    /// The tables that the tree refers to.
    #[must_use]
    pub fn tables(&self) -> Vec<TableId> {
        let state = self.tree.state.borrow();
        state.runs.iter().flat_map(|run| run.tables.iter()).map(|table| table.meta.id).collect()
    }

    /// Places to which statements refer that are in no table: replay finds them again.
    #[must_use]
    pub fn places_in_memory(&self) -> Vec<Place> {
        let state = self.tree.state.borrow();
        state.memtables().flat_map(memtable::Memtable::places).collect()
    }

    /// What it takes.
    #[must_use]
    pub fn usage(&self) -> TreeUsage {
        let (state, cache) = (self.tree.state.borrow(), self.tree.cache.borrow());
        let (cache_bytes, index_bytes) = cache.memory();
        let tables = || state.runs.iter().flat_map(|run| run.tables.iter());
        TreeUsage {
            memory_statements: state.memtables().map(memtable::Memtable::len).sum(),
            cache_bytes,
            index_bytes,
            space_bytes: state.volumes.values().map(|volume| volume.space.memory()).sum(),
            runs: state.runs.len(),
            tables: tables().count(),
            table_blocks: tables().map(|t| u64::from(t.meta.data_blocks + t.meta.footer_blocks)).sum(),
            rows: tables().map(|table| table.meta.rows).sum(),
            block_reads: cache.block_reads,
            index_reads: cache.index_reads,
        }
    }

    fn statement(entry: MapEntry, is_move: bool) -> Statement {
        Statement { version: entry.version, value: entry.value, is_move, counts: false, era: 0 }
    }
}

impl<S: TableStorage> Map for LsmMap<S> {
    fn look_up<F: FnMut(BlockAddress, Option<(VolumeId, MapEntry)>)>(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
        count: u64,
        found: F,
    ) -> impl Future<Output = Result<(), StoreError>> + use<S, F> {
        let (tree, lineage) = (self.tree.clone(), lineage.clone());
        async move { tree.look_up(&lineage, address, count, found).await }
    }

    fn look_up_version(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        version: Version,
    ) -> impl Future<Output = Result<Option<MapEntry>, StoreError>> + use<S> {
        let tree = self.tree.clone();
        async move { tree.look_up_version((volume, address.0), version).await }
    }

    fn run_from(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
    ) -> impl Future<Output = Result<(u64, bool), StoreError>> + use<S> {
        let (tree, lineage) = (self.tree.clone(), lineage.clone());
        async move { tree.run_from(&lineage, address).await }
    }

    fn has_space(&self, volume: VolumeId, address: BlockAddress, newest: Option<Version>) -> bool {
        let state = self.tree.state.borrow();
        state.volumes.get(&volume).is_some_and(|known| known.space.has(address.0, newest))
    }

    fn apply(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        snapshots: &[Version],
        references: &mut impl References,
    ) {
        let mut state = self.tree.state.borrow_mut();
        state.apply((volume, address.0), Self::statement(entry, false), Some(snapshots), references);
    }

    fn apply_move(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        references: &mut impl References,
    ) {
        let mut state = self.tree.state.borrow_mut();
        state.apply((volume, address.0), Self::statement(entry, true), None, references);
    }

    /// One statement, however many blocks; there is never anything left to be done.
    fn apply_hole(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        version: Version,
        covered: Covered<'_>,
        references: &mut impl References,
    ) -> Option<(BlockAddress, u64)> {
        let blocks = (address.0, address.0 + count);
        self.tree.state.borrow_mut().apply_hole(volume, blocks, version, covered.snapshots, references);
        None
    }

    /// Merges give up what was kept for it.
    fn drop_snapshot(
        &mut self,
        volume: VolumeId,
        _: Version,
        _: BlockAddress,
        snapshots: &[Version],
        _: &mut impl References,
    ) -> Option<BlockAddress> {
        if let Some(known) = self.tree.state.borrow_mut().volumes.get_mut(&volume) {
            known.history.observe(snapshots);
            known.space.set_floor(known.history.newest_snapshot());
        }
        None
    }

    /// Merges give up what it had.
    fn drop_volume(&mut self, volume: VolumeId, _: &mut impl References) -> bool {
        self.tree.state.borrow_mut().drop_volume(volume);
        false
    }

    /// With [`Map::held_blocks`] never less than is true; the split is what merges know.
    fn mapped_blocks(&self, volume: VolumeId) -> u64 {
        let state = self.tree.state.borrow();
        state.volumes.get(&volume).map_or(0, |known| known.counted().saturating_sub(known.older))
    }

    fn total_mapped_blocks(&self) -> u64 {
        let state = self.tree.state.borrow();
        state.volumes.values().map(|known| known.counted().saturating_sub(known.older)).sum()
    }

    fn held_blocks(&self, volume: VolumeId) -> u64 {
        let state = self.tree.state.borrow();
        state.volumes.get(&volume).map_or(0, |known| known.older.min(known.counted()))
    }

    fn total_held_blocks(&self) -> u64 {
        let state = self.tree.state.borrow();
        state.volumes.values().map(|known| known.older.min(known.counted())).sum()
    }

    fn entries_in(
        &self,
        segment: SegmentIndex,
    ) -> impl Future<Output = Result<Vec<(VolumeId, BlockAddress, MapEntry)>, StoreError>> + use<S> {
        let tree = self.tree.clone();
        async move { tree.entries_in(segment).await }
    }

    fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> impl Future<Output = Result<Changes, StoreError>> + use<S> {
        let tree = self.tree.clone();
        async move { tree.changed_since(volume, since, at, from, limit).await }
    }

    /// The manifest, as it was when the first piece was asked for. Holes are forgotten by merges.
    fn save(
        &mut self,
        from: SavePosition,
        _: impl Fn(VolumeId, Version) -> bool,
        bytes: &mut Vec<u8>,
    ) -> Option<SavePosition> {
        if from == SavePosition::START {
            self.saving = manifest::encode(&self.tree.state.borrow());
        }
        let record = self.saving.get(from.1 as usize)?;
        bytes.extend_from_slice(record);
        Some(SavePosition(VolumeId(0), from.1 + 1))
    }

    fn saved_bytes(&self) -> u64 {
        let state = self.tree.state.borrow();
        let of_volumes =
            state.volumes.values().map(|known| known.history.saved_bytes() + known.space.saved_bytes());
        let jobs = state.jobs.iter().map(|job| 16 + 8 * job.inputs.len() as u64);
        let heads = 64 + 4 * state.dropped.len() as u64 + 32 * state.runs.len() as u64;
        heads + of_volumes.sum::<u64>() + jobs.sum::<u64>() + state.table_bytes
    }

    fn load(&mut self, reader: &mut Reader<'_>, _: u32, _: &Geometry) -> Result<bool, CutShort> {
        manifest::load(&mut self.tree.state.borrow_mut(), reader)
    }
}

/// What is this part of the oldest run is little.
const NEARLY: u64 = 64;

#[cfg(test)]
pub(crate) mod tests;
