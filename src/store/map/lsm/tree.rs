//! The tree's state: memtables, runs, volumes; and how statements of the log change it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use super::super::{MapValue, References};
use super::memtable::Memtable;
use super::space::KnownSpace;
use super::statement::{History, Key, Resolved, Row, Statement};
use super::table::{Retired, Table};
use crate::base::mutant::{self, Mutant};
use crate::base::units::{Version, VolumeId};

/// Knobs of a tree.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// Statements after which the memtable is to be written to a table.
    pub memtable_statements: usize,
    /// Most rows of a data block.
    pub block_rows: usize,
    /// Data blocks of a table of a run, about.
    pub table_blocks: u32,
    /// Runs of one level that are merged together.
    pub tier_runs: usize,
    /// Levels above the bottom.
    pub tiers: u8,
    /// Runs of the last of them that are merged into the bottom.
    pub last_tier_runs: usize,
    /// What is above the bottom is merged into it when it is this part of it.
    pub bottom_part: u64,
    /// Bytes of blocks in memory.
    pub cache_bytes: usize,
    /// Bytes of indexes in memory.
    pub index_bytes: usize,
    /// Regions of which it is known in part which blocks have space, a volume.
    pub mixed_regions: usize,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            memtable_statements: 1 << 18,
            block_rows: super::block::MAX_ROWS,
            table_blocks: 1 << 16,
            tier_runs: 8,
            tiers: 3,
            last_tier_runs: 16,
            bottom_part: 8,
            cache_bytes: 32 << 20,
            index_bytes: 384 << 20,
            mixed_regions: 1 << 16,
        }
    }
}

impl TreeOptions {
    /// So much memory for indexes, cached blocks and what is known of space; memtables come on top, some 100 bytes a
    /// statement.
    #[must_use]
    pub fn within(bytes: u64) -> Self {
        let part = |share: u64| usize::try_from(bytes / 16 * share).unwrap_or(usize::MAX);
        let mixed_regions = (part(1) / super::space::REGION_BYTES).max(64);
        Self { index_bytes: part(12), cache_bytes: part(3), mixed_regions, ..Self::default() }
    }
}

/// A sorted run: tables of ascending keys.
pub(super) struct Run {
    pub(super) number: u64,
    /// 0 for what memtables became; [`BOTTOM`] for the oldest.
    pub(super) level: u8,
    /// What is before this key is in the run that it is being merged into.
    pub(super) from: Key,
    pub(super) tables: Rc<Vec<Rc<Table>>>,
}

impl Run {
    /// The table that may have rows of a key.
    pub(super) fn table_of(&self, key: Key) -> Option<&Rc<Table>> {
        let index = self.tables.partition_point(|table| table.meta.last < key);
        self.tables.get(index).filter(|table| table.meta.first <= key && key >= self.from)
    }

    pub(super) fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.meta.rows).sum()
    }
}

/// Runs that are being merged into one, which stands before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) inputs: Vec<u64>,
    pub(super) output: u64,
}

/// What is known of a volume.
#[derive(Default)]
pub(super) struct VolumeState {
    pub(super) history: History,
    /// Statements that count as taking space: in tables, and in memtables.
    pub(super) in_tables: u64,
    pub(super) in_memory: u64,
    /// Of those in tables, older versions as far as it is known.
    pub(super) older: u64,
    pub(super) space: KnownSpace,
}

impl VolumeState {
    pub(super) fn counted(&self) -> u64 {
        self.in_tables + self.in_memory
    }

    /// Takes note of the volume's snapshots, and of a version that came: whether it is late.
    fn observe(&mut self, version: Version, snapshots: Option<&[Version]>) -> bool {
        if let Some(snapshots) = snapshots {
            self.history.observe(snapshots);
        }
        self.space.set_floor(self.history.newest_snapshot());
        let is_late = version < self.history.newest;
        self.history.newest = self.history.newest.max(version);
        is_late
    }
}

/// All of it.
pub(super) struct State {
    pub(super) options: TreeOptions,
    pub(super) volumes: BTreeMap<VolumeId, VolumeState>,
    /// Volumes that are no more, as long as there may be statements about them.
    pub(super) dropped: BTreeSet<VolumeId>,
    pub(super) active: Memtable,
    /// Those that are on their way to tables, the oldest first.
    pub(super) frozen: VecDeque<Rc<Memtable>>,
    /// The oldest first.
    pub(super) runs: Vec<Run>,
    pub(super) jobs: Vec<Job>,
    pub(super) next_table: u64,
    pub(super) next_run: u64,
    /// How often a statement came that was older than its volume's newest.
    pub(super) late_statements: u64,
    /// Tables that the tree does not refer to any more.
    pub(super) retired: Retired,
    /// What a manifest says of the tables.
    pub(super) table_bytes: u64,
    pub(super) found: Resolved,
}

impl State {
    pub(super) fn new(options: TreeOptions) -> Self {
        Self {
            options,
            volumes: BTreeMap::new(),
            dropped: BTreeSet::new(),
            active: Memtable::default(),
            frozen: VecDeque::new(),
            runs: Vec::new(),
            jobs: Vec::new(),
            next_table: 1,
            next_run: 1,
            late_statements: 0,
            retired: Retired::default(),
            table_bytes: 0,
            found: Resolved::default(),
        }
    }

    /// Memtables, the newest first.
    pub(super) fn memtables(&self) -> impl DoubleEndedIterator<Item = &Memtable> {
        std::iter::once(&self.active).chain(self.frozen.iter().rev().map(|memtable| &**memtable))
    }

    pub(super) fn apply(
        &mut self,
        (volume, address): Key,
        mut statement: Statement,
        snapshots: Option<&[Version]>,
        references: &mut impl References,
    ) {
        if self.dropped.contains(&volume) {
            return;
        }
        let limit = self.options.mixed_regions;
        let state = self.volumes.entry(volume).or_default();
        self.late_statements += u64::from(state.observe(statement.version, snapshots));
        statement.era = state.history.era;
        let newest = state.history.newest;
        let is_newest = newest == statement.version;
        let has_data = statement.is_mapped() && !statement.is_move;
        if has_data {
            let newest_snapshot = state.history.newest_snapshot();
            statement.counts = !(is_newest && state.space.has(address, newest_snapshot));
            state.in_memory += u64::from(statement.counts);
            if is_newest {
                state.space.mark(address, statement.version, limit);
            }
        } else if !statement.is_move {
            state.space.clear(address, address + 1, limit);
        }
        statement.place().into_iter().for_each(|place| references.gained(place));
        let row = Row { volume, start: address, end: address + 1, order: 0, statement };
        self.active.insert(row, &state.history, &mut self.found);
        state.in_memory = state.in_memory.saturating_add_signed(self.found.counted);
        self.found.lost.iter().for_each(|place| references.lost(*place));
    }

    pub(super) fn apply_hole(
        &mut self,
        volume: VolumeId,
        (start, end): (u64, u64),
        version: Version,
        snapshots: &[Version],
        references: &mut impl References,
    ) {
        let mut statement =
            Statement { version, value: MapValue::Hole, is_move: false, counts: false, era: 0 };
        if self.dropped.contains(&volume) || start == end {
            return;
        }
        if end == start + 1 {
            self.apply((volume, start), statement, Some(snapshots), references);
            return;
        }
        let limit = self.options.mixed_regions;
        let state = self.volumes.entry(volume).or_default();
        self.late_statements += u64::from(state.observe(version, Some(snapshots)));
        if !mutant::is(Mutant::SpaceKnownUnderHole) {
            state.space.clear(start, end, limit);
        }
        statement.era = state.history.era;
        self.active.insert_range(Row { volume, start, end, order: 0, statement });
    }

    pub(super) fn drop_volume(&mut self, volume: VolumeId) {
        self.volumes.remove(&volume);
        self.dropped.insert(volume);
    }

    /// Gives the memtable's place to a blank one.
    pub(super) fn freeze(&mut self) {
        if self.active.len() > 0 {
            let full = std::mem::take(&mut self.active);
            self.frozen.push_back(Rc::new(full));
        }
    }

    pub(super) fn run(&self, number: u64) -> Option<&Run> {
        self.runs.iter().find(|run| run.number == number)
    }

    pub(super) fn run_mut(&mut self, number: u64) -> Option<&mut Run> {
        self.runs.iter_mut().find(|run| run.number == number)
    }

    /// A table is part of the tree now, or is no more: its older versions count, and its place in the manifest.
    pub(super) fn count_older(&mut self, table: &Table, is_there: bool) {
        let bytes = table.meta.saved_bytes();
        self.table_bytes =
            if is_there { self.table_bytes + bytes } else { self.table_bytes.saturating_sub(bytes) };
        for summary in &table.meta.volumes {
            if let Some(state) = self.volumes.get_mut(&summary.volume) {
                let older = if is_there {
                    state.older + summary.older
                } else {
                    state.older.saturating_sub(summary.older)
                };
                state.older = older;
            }
        }
    }
}

/// The level of the oldest run.
pub(super) const BOTTOM: u8 = u8::MAX;
