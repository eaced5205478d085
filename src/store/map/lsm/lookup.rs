//! Lookups: each is tried with what is in memory, reads what it misses, and is tried again.
//!
//! A try does not wait, so the one that finds everything says what holds at the moment it completes, whatever
//! was applied, flushed or merged while others read. Only the runs that have a block are read, and none that is
//! older than what was found, where the newest version is asked for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use futures::future::join_all;

use super::super::{Lineage, MapEntry, View};
use super::DataEntries;
use super::cache::{Cache, Pins, Unreadable};
use super::statement::{Key, Resolved, Statement, resolve, shown_at};
use super::storage::{TableId, TableStorage};
use super::sweep::{Blocks, Group, Missing, RunSource, Source, Sweep};
use super::table::Table;
use super::tree::State;
use crate::array::SegmentIndex;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::store::interface::{Changes, StoreError};

/// The parts of a tree that a lookup needs; it borrows nothing.
pub(super) struct Tree<S> {
    pub(super) storage: S,
    pub(super) state: RefCell<State>,
    pub(super) cache: Rc<RefCell<Cache>>,
}

/// Versions of blocks that may be in a segment, and where to go on.
type Candidates = (Vec<(VolumeId, u64, Version)>, Option<Key>);

/// What keeps a try from being the last one.
enum Stop {
    Missing(Vec<Missing>),
    Failed(StoreError),
}

/// One lookup: what it has read, and what it could not read.
struct Attempt<'t, S> {
    tree: &'t Tree<S>,
    pins: Pins,
    bad: HashMap<(TableId, Option<u32>), Option<StoreError>>,
}

impl<S: TableStorage> Tree<S> {
    /// Tries until all is there.
    async fn attempt<T>(
        &self,
        mut attempt: impl FnMut(&State, &Attempt<'_, S>) -> Result<T, Stop>,
    ) -> Result<T, StoreError> {
        let pins = Pins::new(self.cache.clone(), true);
        let mut this = Attempt { tree: self, pins, bad: HashMap::new() };
        loop {
            let tried = attempt(&self.state.borrow(), &this);
            match tried {
                Ok(found) => return Ok(found),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Missing(missing)) => this.fetch(missing).await,
            }
        }
    }

    /// As [`Map::look_up`](super::super::Map::look_up) says.
    pub(super) async fn look_up(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
        count: u64,
        mut found: impl FnMut(BlockAddress, Option<(VolumeId, MapEntry)>),
    ) -> Result<(), StoreError> {
        let shown = |state: &State, attempt: &Attempt<'_, S>| {
            let (mut all, mut missing) = (Vec::with_capacity(count as usize), Vec::new());
            for offset in 0..count {
                match attempt.shown(state, lineage, address.offset(offset)) {
                    Ok(shown) => all.push(shown),
                    Err(Stop::Missing(more)) => missing.extend(more),
                    // What comes before is told, if it is there.
                    Err(Stop::Failed(error)) if missing.is_empty() => return Ok((all, Some(error))),
                    Err(Stop::Failed(_)) => break,
                }
            }
            if missing.is_empty() { Ok((all, None)) } else { Err(Stop::Missing(missing)) }
        };
        let (all, error) = self.attempt(shown).await?;
        for (offset, shown) in (0..).zip(all) {
            found(address.offset(offset), shown);
        }
        error.map_or(Ok(()), Err)
    }

    /// As [`Map::look_up_version`](super::super::Map::look_up_version) says.
    pub(super) async fn look_up_version(
        &self,
        (volume, address): Key,
        version: Version,
    ) -> Result<Option<MapEntry>, StoreError> {
        self.attempt(|state, attempt| {
            let kept = attempt.entries(state, (volume, address), None)?;
            Ok(kept.iter().find(|kept| kept.version == version).map(Statement::entry))
        })
        .await
    }

    /// The entry that follows the one of a version.
    pub(super) async fn next_version(
        &self,
        key: Key,
        version: Version,
    ) -> Result<Option<Version>, StoreError> {
        self.attempt(|state, attempt| {
            let kept = attempt.entries(state, key, None)?;
            Ok(kept.iter().map(|kept| kept.version).find(|next| *next > version))
        })
        .await
    }

    /// As [`Map::run_from`](super::super::Map::run_from) says.
    pub(super) async fn run_from(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
    ) -> Result<(u64, bool), StoreError> {
        self.attempt(|state, attempt| {
            let mut length = u64::MAX - address.0;
            for view in lineage.views() {
                let (alike, entry) = attempt.alike(state, view, address.0)?;
                length = length.min(alike);
                if let Some(entry) = entry {
                    return Ok((length, entry.value.is_mapped()));
                }
            }
            Ok((length, false))
        })
        .await
    }

    /// As [`Map::changed_since`](super::super::Map::changed_since) says. Tables that have nothing but what is
    /// covered are read only where others have more.
    pub(super) async fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.attempt(|state, attempt| attempt.changed_since(state, (volume, from.0), (since, at), limit))
            .await
    }

    /// As [`Map::entries_in`](super::super::Map::entries_in) says: reads the whole map.
    pub(super) async fn entries_in(
        &self,
        segment: SegmentIndex,
    ) -> Result<Vec<(VolumeId, BlockAddress, MapEntry)>, StoreError> {
        let mut from = Some((VolumeId(0), 0));
        let mut candidates = Vec::new();
        while let Some(key) = from {
            let part = |state: &State, attempt: &Attempt<'_, S>| attempt.candidates_in(state, key, segment);
            let (found, next) = self.attempt(part).await?;
            candidates.extend(found);
            from = next;
        }
        let mut inside = Vec::new();
        for (volume, address, version) in candidates {
            let entry = self.look_up_version((volume, address), version).await?;
            let is_inside =
                |entry: &MapEntry| entry.value.place().is_some_and(|place| place.segment() == segment);
            inside.extend(entry.filter(is_inside).map(|entry| (volume, BlockAddress(address), entry)));
        }
        Ok(inside)
    }

    /// Every entry with data from a block on, in a bounded part of the map, and where to go on: for audits.
    pub(super) async fn data_entries(&self, from: Key) -> Result<DataEntries, StoreError> {
        self.attempt(|state, attempt| attempt.data_entries(state, from)).await
    }

    /// Finds out of blocks which of them have space.
    pub(super) async fn learn_space(&self, (volume, address): Key, count: u64) -> Result<(), StoreError> {
        let lineage = Lineage::newest(volume);
        let limit = self.state.borrow().options.mixed_regions;
        let mark = |block: BlockAddress, shown: Option<(VolumeId, MapEntry)>| {
            let entry = shown.map(|(_, entry)| entry).filter(|entry| entry.value.is_mapped());
            if let (Some(entry), Some(volume)) = (entry, self.state.borrow_mut().volumes.get_mut(&volume)) {
                volume.space.mark(block.0, entry.version, limit);
            }
        };
        self.look_up(&lineage, BlockAddress(address), count, mark).await
    }
}

impl<S: TableStorage> Attempt<'_, S> {
    async fn fetch(&mut self, missing: Vec<Missing>) {
        let mut wanted: Vec<Missing> = Vec::new();
        for missing in missing {
            if !wanted.iter().any(|other| key_of(other) == key_of(&missing)) {
                wanted.push(missing);
            }
        }
        let reads = wanted.iter().map(|missing| self.pins.fetch(&self.tree.storage, missing));
        let results: Vec<Result<(), Unreadable>> = join_all(reads).await;
        for (missing, result) in wanted.iter().zip(results) {
            if let Err(unreadable) = result {
                self.bad.insert((key_of(missing).0, unreadable.block), unreadable.error);
            }
        }
    }

    /// Whether what is missing was tried in vain: then these blocks can't be looked up.
    fn stop(&self, missing: Missing, (volume, address): Key) -> Stop {
        match self.bad.get(&key_of(&missing)) {
            None => Stop::Missing(vec![missing]),
            Some(Some(StoreError::Offline)) => Stop::Failed(StoreError::Offline),
            Some(_) => Stop::Failed(StoreError::Medium { volume, address: BlockAddress(address) }),
        }
    }

    /// What the first view shows that knows a block.
    fn shown(
        &self,
        state: &State,
        lineage: &Lineage,
        block: BlockAddress,
    ) -> Result<Option<(VolumeId, MapEntry)>, Stop> {
        for view in lineage.views() {
            let kept = self.entries(state, (view.volume, block.0), Some(view.at))?;
            if let Some(entry) = shown_at(&kept, view.at) {
                return Ok(Some((view.volume, entry.entry())));
            }
        }
        Ok(None)
    }

    /// The entries of a block; only those that decide it when one view alone is asked for.
    fn entries(&self, state: &State, key: Key, view: Option<Version>) -> Result<Vec<Statement>, Stop> {
        let (volume, address) = key;
        let Some(volume_state) = state.volumes.get(&volume) else { return Ok(Vec::new()) };
        // The newest first, each in log order.
        let mut parts: Vec<Vec<Statement>> = Vec::new();
        for memtable in state.memtables() {
            let mut part = Vec::new();
            memtable.statements_of(volume, address, &mut part);
            parts.push(part);
        }
        let mut missing = Vec::new();
        for run in state.runs.iter().rev() {
            let Some(table) = run.table_of(key) else { continue };
            let newest =
                parts.iter().flatten().filter(|statement| !statement.is_move).map(|s| s.version).max();
            let summary = table.meta.summary(volume);
            let is_older = |newest: Version| summary.is_none_or(|summary| summary.greatest < newest);
            if summary.is_none() || view == Some(Version::GREATEST) && newest.is_some_and(is_older) {
                continue;
            }
            match self.statements_in(table, key) {
                Ok(part) => parts.push(part),
                Err(needed) => match self.stop(needed, key) {
                    Stop::Missing(needed) => missing.extend(needed),
                    failed @ Stop::Failed(_) => return Err(failed),
                },
            }
            if view == Some(Version::GREATEST) && !missing.is_empty() {
                break; // as a rule what is newest decides, and nothing else has to be read
            }
        }
        if !missing.is_empty() {
            return Err(Stop::Missing(missing));
        }
        let mut statements: Vec<Statement> = parts.into_iter().rev().flatten().collect();
        let mut found = Resolved::default();
        resolve(&mut statements, &volume_state.history, true, &mut found);
        Ok(found.kept)
    }

    /// What a table says of a block.
    fn statements_in(&self, table: &Rc<Table>, key: Key) -> Result<Vec<Statement>, Missing> {
        let (volume, address) = key;
        let index = self.pins.index(table).ok_or_else(|| Missing::Index(table.clone()))?;
        let mut statements = Vec::new();
        for block in index.blocks_of(key) {
            if !index.may_have(block, key) {
                continue;
            }
            let missing = || Missing::Blocks(table.clone(), block..block + 1);
            let rows = self.pins.rows_about(table, block, address).ok_or_else(missing)?;
            statements.extend(rows.iter().filter(|row| row.volume == volume).map(|row| row.statement));
        }
        Ok(statements)
    }

    /// A sweep over all that is said from a key on, and the key before which that is all.
    fn sweep(&self, state: &State, from: Key, is_wanted: impl Fn(&Table) -> bool) -> (Sweep, Key) {
        let mut until = (VolumeId(from.0.0.saturating_add(1)), 0);
        let mut sources = Vec::new();
        for run in &state.runs {
            let start = run.from.max(from);
            let passed = run.tables.partition_point(|table| table.meta.last < start);
            let here: Vec<Rc<Table>> = run.tables[passed..]
                .iter()
                .take_while(|table| table.meta.first < until)
                .filter(|table| is_wanted(table))
                .take(TABLES_A_RUN + 1)
                .cloned()
                .collect();
            if let Some(behind) = here.get(TABLES_A_RUN) {
                until = until.min(behind.meta.first);
            }
            sources.push(Source::Run(RunSource::new(Rc::new(here), start)));
        }
        for memtable in state.memtables().rev() {
            let (rows, end) = memtable.rows_from(from, ROWS_A_MEMTABLE);
            until = until.min(end);
            sources.push(Source::of_rows(rows));
        }
        (Sweep::new(sources), until)
    }

    /// How many blocks from one on are alike in a view of one volume, and what it shows.
    fn alike(&self, state: &State, view: View, address: u64) -> Result<(u64, Option<MapEntry>), Stop> {
        let from = (view.volume, address);
        let Some(volume_state) = state.volumes.get(&view.volume) else {
            return Ok((u64::MAX - address, None));
        };
        let (mut sweep, until) = self.sweep(state, from, |_| true);
        let position = sweep.position(&self.pins).map_err(|missing| self.stop(missing, from))?;
        if position > from {
            let end = position.min(until);
            let length = if end.0 == view.volume { end.1 - address } else { u64::MAX - address };
            return Ok((length, None));
        }
        let mut group = Group::default();
        sweep.step(&self.pins, &mut group).map_err(|missing| self.stop(missing, from))?;
        let end = if until.0 == view.volume { group.end.min(until.1) } else { group.end };
        let mut found = Resolved::default();
        resolve(&mut group.statements, &volume_state.history, true, &mut found);
        Ok((end - address, shown_at(&found.kept, view.at).map(Statement::entry)))
    }

    fn changed_since(
        &self,
        state: &State,
        from: Key,
        (since, at): (Version, Version),
        limit: usize,
    ) -> Result<Changes, Stop> {
        let (volume, mut address) = from;
        let mut changes = Changes::default();
        let Some(volume_state) = state.volumes.get(&volume) else { return Ok(changes) };
        let is_new =
            |table: &Table| table.meta.summary(volume).is_some_and(|summary| !summary.is_covered_by(since));
        let (mut group, mut found) = (Group::default(), Resolved::default());
        let (mut candidates, until) = self.sweep(state, from, is_new);
        let (mut looked_at, mut statements) = (0, 0);
        loop {
            let stop = |missing| self.stop(missing, (volume, address));
            let has_more = candidates.step(&self.pins, &mut group).map_err(stop)?;
            if !has_more || group.volume != volume || (volume, group.start) >= until {
                if until.0 == volume {
                    changes.next = Some(BlockAddress(until.1.max(address)));
                }
                return Ok(changes);
            }
            if group.end <= address || group.statements.iter().all(|one| one.version.is_covered_by(since)) {
                continue;
            }
            let end = group.end;
            address = group.start.max(address);
            let (mut all, all_until) = self.sweep(state, (volume, address), |_| true);
            while address < end {
                let stop = |missing| self.stop(missing, (volume, address));
                if (volume, address) >= all_until || looked_at >= ROWS_A_CALL || statements > 4 * ROWS_A_CALL
                {
                    changes.next = Some(BlockAddress(address));
                    return Ok(changes);
                }
                if !all.step(&self.pins, &mut group).map_err(stop)? || group.volume != volume {
                    break;
                }
                looked_at += 1;
                statements += group.statements.len();
                let (first, last) =
                    (group.start.max(address), group.end.min(end).min(behind(all_until, volume)));
                resolve(&mut group.statements, &volume_state.history, true, &mut found);
                let shown = shown_at(&found.kept, at).filter(|entry| !entry.version.is_covered_by(since));
                if let Some(entry) = shown.filter(|_| first < last)
                    && !push_run(&mut changes, (first, last), entry, limit)
                {
                    return Ok(changes);
                }
                address = last.max(address);
            }
        }
    }

    fn data_entries(&self, state: &State, from: Key) -> Result<DataEntries, Stop> {
        let (mut sweep, until) = self.sweep(state, from, |_| true);
        let (mut group, mut found, mut entries) = (Group::default(), Resolved::default(), Vec::new());
        loop {
            let stop = |missing| self.stop(missing, from);
            let position = sweep.position(&self.pins).map_err(stop)?;
            if position >= until || entries.len() >= ROWS_A_CALL {
                let next = position.min(until);
                let is_end = next.0.0 == u32::MAX || state.volumes.range(next.0..).next().is_none();
                return Ok((entries, (!is_end).then_some(next)));
            }
            sweep.step(&self.pins, &mut group).map_err(stop)?;
            let Some(volume_state) = state.volumes.get(&group.volume) else { continue };
            resolve(&mut group.statements, &volume_state.history, true, &mut found);
            let data = found.kept.iter().filter(|kept| kept.is_mapped() && !kept.is_move);
            entries.extend(data.map(|kept| (group.volume, BlockAddress(group.start), kept.entry())));
        }
    }

    fn candidates_in(&self, state: &State, from: Key, segment: SegmentIndex) -> Result<Candidates, Stop> {
        let (mut sweep, until) = self.sweep(state, from, |_| true);
        let (mut group, mut found) = (Group::default(), Vec::new());
        let mut rows = 0;
        loop {
            let stop = |missing| self.stop(missing, from);
            let position = sweep.position(&self.pins).map_err(stop)?;
            if position >= until || rows >= ROWS_A_CALL {
                let next = position.min(until);
                let is_end = next.0.0 == u32::MAX || state.volumes.range(next.0..).next().is_none();
                return Ok((found, (!is_end).then_some(next)));
            }
            sweep.step(&self.pins, &mut group).map_err(stop)?;
            rows += 1;
            for statement in &group.statements {
                if statement.place().is_some_and(|place| place.segment() == segment) {
                    found.push((group.volume, group.start, statement.version));
                }
            }
            found.dedup();
        }
    }
}

fn behind(until: Key, volume: VolumeId) -> u64 {
    if until.0 == volume { until.1 } else { u64::MAX }
}

/// Adds blocks of one version, joined with those before where they go on. Whether there was room.
fn push_run(changes: &mut Changes, (first, last): (u64, u64), entry: &Statement, limit: usize) -> bool {
    let is_mapped = entry.is_mapped();
    if !changes.push(BlockAddress(first), entry.version, is_mapped, limit) {
        return false;
    }
    if let Some(run) = changes.runs.last_mut() {
        run.count += last - first - 1;
    }
    true
}

fn key_of(missing: &Missing) -> (TableId, Option<u32>) {
    match missing {
        Missing::Index(table) => (table.meta.id, None),
        Missing::Blocks(table, blocks) => (table.meta.id, Some(blocks.start)),
    }
}

/// Tables of a run that one call goes through.
const TABLES_A_RUN: usize = 64;
const ROWS_A_MEMTABLE: usize = 1024;
const ROWS_A_CALL: usize = 2048;
