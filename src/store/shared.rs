//! The store's state, shared by its tasks: writer, flusher, cleaner, checkpoints and reads.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::array::geometry::data_columns;
use crate::array::{Array, MemberSet, Place, SegmentIndex};
use crate::base::event::EventSink;
use crate::base::mutant::{self, Mutant};
use crate::base::runtime::RuntimeHandle;
use crate::base::signal::Signal;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};

use super::batch::{Content, Entry, HEADS};
use super::compaction::Merges;
use super::log::{CLEANING, FOREGROUND, Log};
use super::map::lsm::{TreeOptions, Turn};
use super::map::{Covered, Map, MapEntry, MapValue, MemoryMap, StoreMap, TreeMap, View};
use super::root::Root;
use super::segments::SegmentTable;
use super::snapshots::Snapshots;
use super::tables::PoolTables;

/// Knobs of a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Foreground batches that may be on their way at a time.
    pub max_in_flight: usize,
    /// After this long without writes, a batch proves that the last one was acknowledged.
    pub seal_delay: Duration,
    /// Log bytes after which a checkpoint is written, to bound recovery.
    pub checkpoint_log_bytes: u64,
    /// Tell the disks which segments are free.
    pub discard: bool,
    /// Through which version the holes of a volume may be forgotten of which nobody has told
    /// ([`super::Store::keep_holes_after`]). The greatest where nobody resyncs from here, the least where a
    /// peer may.
    pub forget_holes_through: Version,
    /// A pool whose map would take more memory than this, were the pool full, keeps it on its disks.
    pub map_memory_bytes: u64,
    /// How it does that.
    pub tree: TreeOptions,
}

impl StoreOptions {
    /// Memory for the map: all of it where that is enough, else caches of what is on the disks.
    #[must_use]
    pub fn with_map_memory(self, bytes: u64) -> Self {
        Self { map_memory_bytes: bytes, tree: TreeOptions::within(bytes), ..self }
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 4,
            seal_delay: Duration::from_millis(10),
            checkpoint_log_bytes: 1 << 30,
            discard: false,
            forget_holes_through: Version::GREATEST,
            map_memory_bytes: DEFAULT_MAP_MEMORY_BYTES,
            tree: TreeOptions::within(DEFAULT_MAP_MEMORY_BYTES),
        }
    }
}

/// Everything that the store's tasks share.
pub(super) struct Shared {
    pub(super) array: Array,
    pub(super) runtime: RuntimeHandle,
    pub(super) options: StoreOptions,
    pub(super) events: EventSink,
    pub(super) contents: RefCell<Contents>,
    /// Whether the map keeps its tables on disk.
    pub(super) has_tree: bool,
    /// State of the merges of its tables.
    pub(super) merges: Merges,
    pub(super) log: RefCell<Log>,
    pub(super) root: RefCell<Root>,
    /// Blocks promised to appends that are not settled.
    pub(super) reserved_blocks: Cell<u64>,
    /// Log bytes since the last checkpoint.
    pub(super) log_bytes: Cell<u64>,
    /// Something to write, or room for it.
    pub(super) work: Signal,
    /// A batch was written.
    pub(super) written: Signal,
    /// Batches settled, or segments came free, or the store stopped.
    pub(super) progress: Signal,
    pub(super) stopped: Cell<bool>,
    /// The last attempt to build a foreground batch found no room.
    pub(super) stalled: Cell<bool>,
    /// It was said that writes wait in vain.
    pub(super) reported_stuck: Cell<bool>,
    // One checkpoint at a time: each frees what only the one before it needed.
    pub(super) checkpointing: futures::lock::Mutex<()>,
    /// Of volumes of which somebody has told: the version through which holes may be forgotten.
    pub(super) hole_floors: RefCell<BTreeMap<VolumeId, Version>>,
    pub(super) statistics: Statistics,
    pub(super) healing: super::rebuild::Healing,
    /// What is said of volumes' space.
    pub(super) space: super::space::SpaceRules,
}

/// What the log has said so far: the part of the state that replay rebuilds.
pub(super) struct Contents {
    pub(super) map: StoreMap,
    pub(super) segments: SegmentTable,
    pub(super) volumes: BTreeMap<VolumeId, VolumeState>,
}

/// What the store knows of a volume.
#[derive(Clone, Debug, Default)]
pub(super) struct VolumeState {
    pub(super) record: Bytes,
    /// Version of the record.
    pub(super) record_version: Version,
    /// Newest version of anything in the volume.
    pub(super) newest: Version,
    /// What `newest` was at the last checkpoint since the pool was opened: replay begins behind it.
    pub(super) passed: Version,
    /// The oldest version of history that was appended late: since the last checkpoint began, and while the one
    /// before was the last. Replay may reach it.
    pub(super) late: [Option<Version>; 2],
    pub(super) snapshots: Snapshots,
    /// Of a clone: what it shows where nothing was written to itself.
    pub(super) parent: Option<View>,
    /// Clones that were appended and are not settled, and the snapshots that they are made of.
    pub(super) pending_clones: Vec<(VolumeId, Version)>,
    /// Its end was appended.
    pub(super) is_dropping: bool,
    /// Blocks of holes that were appended and are not settled: what is written there meanwhile needs space anew.
    pub(super) pending_holes: Vec<Range<u64>>,
}

/// Counts since the store was opened.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Blocks that hosts wrote.
    pub written_blocks: Cell<u64>,
    /// Foreground batches.
    pub batches: Cell<u64>,
    /// Rows times data columns of all log batches, headers and padding included, in blocks.
    pub log_blocks: Cell<u64>,
    /// Blocks that the cleaner moved.
    pub moved_blocks: Cell<u64>,
    /// Of these, those that were not the newest of their addresses.
    pub moved_older_blocks: Cell<u64>,
    /// Segments that the cleaner emptied.
    pub cleaned_segments: Cell<u64>,
    /// Checkpoints written.
    pub checkpoints: Cell<u64>,
    /// Blocks of checkpoints.
    pub checkpoint_blocks: Cell<u64>,
    /// Blocks of tables of the map, rows times data columns.
    pub table_blocks: Cell<u64>,
    /// Blocks that reads gave back.
    pub read_blocks: Cell<u64>,
    /// Blocks rebuilt from parity because they could not be read or were wrong.
    pub rebuilt_blocks: Cell<u64>,
    /// Segments rebuilt onto a new disk.
    pub rebuilt_segments: Cell<u64>,
    /// Blocks that scrubbing looked at.
    pub scrubbed_blocks: Cell<u64>,
    /// Blocks that nothing could give back.
    pub lost_blocks: Cell<u64>,
    /// Appends that had to wait for the cleaner, in builds that found no room.
    pub stalls: Cell<u64>,
}

/// Adds to a counter.
pub(super) fn add(counter: &Cell<u64>, amount: u64) {
    counter.set(counter.get() + amount);
}

impl Contents {
    /// Of a pool in which nothing was ever written.
    pub(super) fn blank(segments: SegmentTable) -> Self {
        Self { map: StoreMap::Memory(MemoryMap::default()), segments, volumes: BTreeMap::new() }
    }

    /// The map's tree, when it has one.
    pub(super) fn tree(&self) -> Option<&TreeMap> {
        self.map.tree()
    }

    /// Has a tree take the place of a map in memory, with what that has.
    pub(super) fn grow_tree(&mut self, tables: PoolTables, options: TreeOptions) {
        let StoreMap::Memory(map) = &self.map else { return };
        let most = options.memtable_statements;
        let mut tree = TreeMap::new(tables, options, self.segments.uses());
        // Places are counted already. The older versions of a block first, as the log had them.
        let entries = map.older_entries().chain(map.newest_entries());
        for (count, (volume, address, entry)) in entries.enumerate() {
            let snapshots = self.volumes.get(&volume).map_or(&[][..], |state| state.snapshots.versions());
            tree.take_over(volume, address, entry, snapshots);
            if count % most == most - 1 {
                tree.tree().freeze();
            }
        }
        self.map = StoreMap::Tree(tree);
    }

    /// Takes note of what a flush or merge gave up.
    pub(super) fn apply_turn(&mut self, turn: &Turn) {
        if let StoreMap::Tree(tree) = &self.map {
            tree.apply_turn(turn, &mut self.segments);
        }
    }

    /// Applies one statement of the log. Applying statements again, in log order, changes nothing.
    /// What concerns very many blocks is done in turns: returns the statement of what is left.
    #[must_use]
    pub(super) fn apply(
        &mut self,
        entry: &Entry,
        place: Option<Place>,
        payload: Option<&Bytes>,
    ) -> Option<Entry> {
        let volume = entry.volume;
        match entry.content {
            Content::Volume { length, .. } => {
                self.apply_volume(entry, &payload.cloned().unwrap_or_default(), length);
                None
            }
            Content::VolumeDropped => {
                self.volumes.remove(&volume);
                self.map.drop_volume(volume, &mut self.segments).then(|| entry.clone())
            }
            Content::Clone { length, origin, snapshot, .. } => {
                self.apply_volume(entry, &payload.cloned().unwrap_or_default(), length);
                if let Some(state) = self.volumes.get_mut(&origin) {
                    state.pending_clones.retain(|(clone, _)| *clone != volume);
                }
                if let Some(state) = self.volumes.get_mut(&volume) {
                    state.parent = Some(View { volume: origin, at: snapshot })
                        .filter(|_| !mutant::is(Mutant::CloneForgetsOrigin));
                }
                None
            }
            Content::Snapshot { length, .. } => {
                let state = self.volumes.get_mut(&volume)?;
                state.newest = state.newest.max(entry.version);
                state.snapshots.insert(entry.version, record(payload.unwrap_or(&Bytes::new()), length));
                None
            }
            Content::SnapshotDropped { snapshot } => self.drop_snapshot(entry, snapshot),
            _ => self.apply_block(entry, place),
        }
    }

    /// Statements about a volume were appended: what is admitted behind them knows of their holes.
    pub(super) fn announce_holes<'e>(&mut self, volume: VolumeId, entries: impl Iterator<Item = &'e Entry>) {
        let Some(state) = self.volumes.get_mut(&volume) else { return };
        for entry in entries {
            if let Content::Hole { count } = entry.content {
                state.pending_holes.push(entry.address.0..entry.address.0 + count);
            }
        }
    }

    /// A hole that was appended has settled.
    pub(super) fn hole_settled(&mut self, volume: VolumeId, address: BlockAddress, count: u64) {
        let Some(state) = self.volumes.get_mut(&volume) else { return };
        let is_this = |blocks: &Range<u64>| *blocks == (address.0..address.0 + count);
        if let Some(index) = state.pending_holes.iter().position(is_this) {
            state.pending_holes.swap_remove(index);
        }
    }

    /// Blocks that volumes and their snapshots fill.
    pub(super) fn used_blocks(&self) -> u64 {
        self.map.total_mapped_blocks() + self.map.total_held_blocks()
    }

    /// The snapshot goes at once, what was kept for it in turns: their statements begin at higher addresses.
    fn drop_snapshot(&mut self, entry: &Entry, snapshot: Version) -> Option<Entry> {
        let state = self.volumes.get_mut(&entry.volume)?;
        state.newest = state.newest.max(entry.version);
        let is_first_turn = entry.address == BlockAddress(0);
        if is_first_turn && !state.snapshots.remove(snapshot) || mutant::is(Mutant::DropFreesNothing) {
            return None;
        }
        let (map, left) = (&mut self.map, state.snapshots.versions());
        let address = map.drop_snapshot(entry.volume, snapshot, entry.address, left, &mut self.segments)?;
        Some(Entry { address, ..entry.clone() })
    }

    /// Gives up what no snapshot shows, when all snapshots are known that there are: a checkpoint may have
    /// older versions whose snapshots were dropped while it was written.
    pub(super) fn give_up_unshown(&mut self) {
        for (volume, state) in &self.volumes {
            let mut rest = Some(BlockAddress(0));
            while let Some(from) = rest {
                let left = state.snapshots.versions();
                rest = self.map.drop_snapshot(*volume, Version::default(), from, left, &mut self.segments);
            }
        }
    }

    fn apply_volume(&mut self, entry: &Entry, payload: &Bytes, length: u16) {
        let state = self.volumes.entry(entry.volume).or_default();
        if state.record_version <= entry.version {
            state.record = record(payload, length);
            state.record_version = entry.version;
        }
    }

    fn apply_block(&mut self, entry: &Entry, place: Option<Place>) -> Option<Entry> {
        let (volume, address, version) = (entry.volume, entry.address, entry.version);
        let ancestors = match entry.content {
            Content::Hole { .. } => self.ancestors(volume),
            _ => Vec::new(),
        };
        let state = self.volumes.get_mut(&volume)?;
        let is_new = matches!(entry.content, Content::Data { .. } | Content::Hole { .. });
        if is_new && version < state.newest {
            state.late[0] = Some(state.late[0].map_or(version, |late| late.min(version)));
        }
        state.newest = state.newest.max(version);
        let snapshots = state.snapshots.versions();
        let at = |value| MapEntry { version, value };
        let (map, segments) = (&mut self.map, &mut self.segments);
        match (entry.content, place) {
            (Content::Data { checksum }, Some(place)) => {
                map.apply(volume, address, at(MapValue::Data { place, checksum }), snapshots, segments);
            }
            (Content::Moved { checksum }, Some(place)) => {
                map.apply_move(volume, address, at(MapValue::Data { place, checksum }), segments);
            }
            (Content::Lost, _) => map.apply_move(volume, address, at(MapValue::Lost), segments),
            (Content::Hole { count }, _) => {
                let covered = Covered { snapshots, ancestors: &ancestors };
                let (address, count) = map.apply_hole(volume, address, count, version, covered, segments)?;
                return Some(Entry { address, content: Content::Hole { count }, ..entry.clone() });
            }
            _ => {}
        }
        None
    }
}

/// A record without what fills its block up. A copy: the payload may be a slice of a whole segment.
fn record(payload: &Bytes, length: u16) -> Bytes {
    Bytes::copy_from_slice(&payload[..payload.len().min(usize::from(length))])
}

impl VolumeState {
    /// A checkpoint begins, behind everything so far.
    pub(super) fn begin_checkpoint(&mut self) {
        self.late = [None, self.late[0]];
    }

    /// Whether a hole of this block was appended and is not settled.
    pub(super) fn is_becoming_hole(&self, address: BlockAddress) -> bool {
        self.pending_holes.iter().any(|blocks| blocks.contains(&address.0))
    }

    /// Whether nothing that is behind a hole of this version can come to light again: not by replay, and not what
    /// a clone was made of.
    pub(super) fn is_passed(&self, hole: Version) -> bool {
        let late = self.late.iter().flatten().filter(|_| !mutant::is(Mutant::HoleForgottenUnderLateWrite));
        let may_go = self.parent.is_none() || mutant::is(Mutant::CloneHoleForgotten);
        may_go && hole <= self.passed && late.min().is_none_or(|late| hole < *late)
    }
}

impl Shared {
    /// Segments that each head leaves free: the cleaner's for the foreground, and one checkpoint's
    /// for both.
    pub(super) fn keep_free(&self) -> [usize; HEADS] {
        let checkpoint = self.checkpoint_segments();
        // What tables have not taken of theirs is kept for them.
        let tables = self.table_segments().saturating_sub(self.contents.borrow().segments.table_count());
        let mut keep = [0; HEADS];
        keep[FOREGROUND] = checkpoint + tables + CLEANER_SEGMENTS;
        keep[CLEANING] = checkpoint + tables;
        keep
    }

    /// Segments that are the tables', whether they have taken them or not.
    pub(super) fn table_segments(&self) -> usize {
        match self.has_tree {
            false => 0,
            true => (TREE_SEGMENTS + self.array.geometry().segment_count / TREE_SHARE) as usize,
        }
    }

    /// Whether there is room for a table that a merge makes.
    pub(super) fn has_room_to_merge(&self) -> bool {
        let contents = self.contents.borrow();
        let taken = contents.segments.table_count() + SEGMENTS_A_TURN;
        contents.segments.free_count() >= SEGMENTS_A_TURN && taken <= self.table_segments()
    }

    /// Whether a hole of this version can be forgotten: replay from the newest durable checkpoint reaches nothing
    /// older of these blocks, and every replica has it.
    pub(super) fn may_forget(&self, volume: VolumeId, hole: Version) -> bool {
        let contents = self.contents.borrow();
        let state = contents.volumes.get(&volume);
        state.is_some_and(|state| state.is_passed(hole)) && self.may_forget_hole(volume, hole)
    }

    /// Whether a table of the map is being written to a segment.
    pub(super) fn is_table_begun(&self, segment: SegmentIndex) -> bool {
        self.contents.borrow().tree().is_some_and(|map| map.tables().is_being_written(segment))
    }

    /// Whether writes have to wait until the map has taken in what was written.
    pub(super) fn is_map_behind(&self) -> bool {
        if !self.has_tree {
            return false;
        }
        let contents = self.contents.borrow();
        contents.tree().is_some_and(|map| {
            map.tree().memtables() >= MOST_MEMTABLES || map.tree().merges_behind() >= MOST_BEHIND
        })
    }

    /// Segments that a checkpoint of the present map takes.
    pub(super) fn checkpoint_segments(&self) -> usize {
        let contents = self.contents.borrow();
        let geometry = self.array.geometry();
        let map = contents.map.saved_bytes();
        let table = u64::from(geometry.segment_count) * super::checkpoint::SEGMENT_BYTES as u64;
        let saved = |volume: &VolumeState| volume.record.len() as u64 + 64 + volume.snapshots.saved_bytes();
        let volumes: u64 = contents.volumes.values().map(saved).sum();
        let bytes = map + table + volumes + (1 << 16);
        let columns = data_columns(self.members_for_writing());
        let tables = contents.tree().map_or(0, |map| map.tables().saved_bytes());
        let bytes = bytes + tables;
        // A stripe's header and rounding cost a few percent.
        let usable = u64::from(geometry.rows) * columns as u64 * BLOCK_SIZE as u64 * 9 / 10;
        bytes.div_ceil(usable) as usize + 1
    }

    /// Disks for segments that are opened now: those that work, so that new data is redundant at
    /// once. When its contents would not fit a narrower array, the pool keeps its width and does
    /// without redundancy rather than without space.
    pub(super) fn members_for_writing(&self) -> MemberSet {
        let (live, all) = (self.array.live(), self.array.geometry().all_slots());
        let narrow_fits = self.needed_blocks() <= self.usable_blocks_over(live);
        if live == all || narrow_fits || all.difference(live).width() > 1 { live } else { all }
    }

    fn needed_blocks(&self) -> u64 {
        // Called while contents may be borrowed for reading only.
        self.contents.borrow().used_blocks() + self.reserved_blocks.get()
    }

    /// Blocks that volumes may fill: what the segments hold less the room that cleaning, checkpoints
    /// and the open segments need.
    pub(super) fn usable_blocks(&self) -> u64 {
        self.usable_blocks_over(self.array.geometry().all_slots())
    }

    fn usable_blocks_over(&self, members: MemberSet) -> u64 {
        let geometry = self.array.geometry();
        let raw = geometry.data_blocks(members);
        let (reserved, percent) = match self.has_tree {
            false => (RESERVED_SEGMENTS, USABLE_PERCENT),
            true => (RESERVED_SEGMENTS + TREE_SEGMENTS, USABLE_PERCENT_WITH_TREE),
        };
        let segments = u64::from(geometry.segment_count.saturating_sub(reserved));
        segments * raw * percent / 100
    }
}

/// Memory for the map where nothing else is said.
pub const DEFAULT_MAP_MEMORY_BYTES: u64 = 512 << 20;
/// Free segments that only the cleaner may take.
pub(super) const CLEANER_SEGMENTS: usize = 4;
/// Segments that no volume's data is counted for: heads, the cleaner's, and the least checkpoint's.
const RESERVED_SEGMENTS: u32 = 14;
/// Share of the other segments that volumes may fill. The rest is what makes cleaning affordable,
/// and holds batch headers and checkpoints.
///
/// Cleaning always gains something while writes wait for room. Let S be the segments, C those of a
/// checkpoint. Writes wait when only C + [`CLEANER_SEGMENTS`] are free; 4 are the heads' and C hold
/// the last checkpoint, so S - 2C - 8 are sealed. The cleaner moves what lives in a segment unless
/// that fills more than 93 % of one (`choose_victims`). Were all sealed ones fuller, they would hold
/// more than 0.93 (S - 2C - 8), yet volumes hold at most 0.84 (S - 14). That is a contradiction when
/// 0.09 S > 1.86 C - 4.3; a checkpoint takes about one segment in a hundred, and at most 3 of 24.
const USABLE_PERCENT: u64 = 84;
/// The same where the map is a tree, which counts what was overwritten as live until merges have seen it: up to a
/// sixteenth of what volumes hold; and where a part is the tables'.
const USABLE_PERCENT_WITH_TREE: u64 = 78;
/// Segments for tables that are not full: of the newest runs, and those that wait for a checkpoint to come free.
const TREE_SEGMENTS: u32 = 48;
/// A part of all segments is for full ones: a row of 15 bytes for each block, twice while the oldest run is merged.
const TREE_SHARE: u32 = 64;
/// Most segments that a turn of a merge takes.
const SEGMENTS_A_TURN: usize = 2;
/// Memtables' worths of statements at which writes wait.
const MOST_MEMTABLES: usize = 4;
/// Times the runs that are merged together which no merge has met, at which writes wait.
const MOST_BEHIND: usize = 2;
