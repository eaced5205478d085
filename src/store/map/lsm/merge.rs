//! Flushes and merges: memtables become runs, runs become fewer.
//!
//! Levels above the bottom are tiered: so many runs of one make one of the next. The bottom is one run, and what
//! stands above it is merged into it when that is a certain part of it, or too many runs: docs/map.md has the
//! arithmetic. A merge goes by in turns. Each makes one table of what its inputs have next, and puts it in
//! their place, with the key up to which that is done; so a merge can stop between any two turns, goes on after a
//! restart where the manifest says, needs room for one table only, and gives its inputs' tables back one by one.
//!
//! Invariant: a run is merged only with those right beside it, so that log order is the order of the runs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use super::cache::{Cache, Pins, Unreadable};
use super::memtable::Memtable;
use super::statement::{END_OF_KEYS, History, Key, Resolved, Row, resolve};
use super::storage::{TableId, TableStorage};
use super::sweep::{Group, RunSource, Source, Sweep};
use super::table::{Table, TableBuilder};
use super::tree::{BOTTOM, Job, Run, State};
use crate::array::Place;
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::store::interface::StoreError;
use crate::store::map::MapValue;

/// What a turn did.
#[derive(Debug, Default)]
pub struct Turn {
    /// Places that the map does not refer to any more.
    pub lost: Vec<Place>,
    /// Blocks that were written.
    pub written_blocks: u64,
}

/// A table that was made, or several, of what comes before `until`.
struct Made {
    tables: Vec<Rc<Table>>,
    until: Key,
    lost: Vec<Place>,
    counted: BTreeMap<VolumeId, i64>,
    written_blocks: u64,
    forgot_holes: bool,
}

/// What a merge goes by while it runs.
struct Rules<'a, F> {
    histories: BTreeMap<VolumeId, Option<History>>,
    /// There is nothing older elsewhere.
    is_all: bool,
    has_presence: bool,
    /// The oldest version in what is newer than the inputs.
    oldest_above: BTreeMap<VolumeId, Version>,
    may_forget: &'a F,
    state: &'a RefCell<State>,
}

impl<F: Fn(VolumeId, Version) -> bool> Rules<'_, F> {
    /// The volume's snapshots when the merge began with it; none when it is no more.
    fn history(&mut self, volume: VolumeId) -> Option<&History> {
        let found = self.histories.entry(volume).or_insert_with(|| {
            let state = self.state.borrow();
            let is_dropped = state.dropped.contains(&volume);
            let history = state.volumes.get(&volume).map(|state| state.history.clone());
            (!is_dropped).then(|| history.unwrap_or_default())
        });
        found.as_ref()
    }

    /// Whether nothing can come to light again that is behind a hole.
    fn may_forget(&self, volume: VolumeId, hole: Version) -> bool {
        self.is_all
            && self.oldest_above.get(&volume).is_none_or(|oldest| *oldest > hole)
            && (self.may_forget)(volume, hole)
    }
}

/// Writes the oldest frozen memtable to a run, if there is one.
pub(super) async fn flush<S: TableStorage>(
    storage: &S,
    state: &RefCell<State>,
    cache: &Rc<RefCell<Cache>>,
) -> Result<Option<Turn>, StoreError> {
    let Some(memtable) = state.borrow().frozen.front().cloned() else { return Ok(None) };
    let is_all = state.borrow().runs.is_empty();
    let mut rules = Rules {
        histories: BTreeMap::new(),
        is_all,
        has_presence: true,
        oldest_above: BTreeMap::new(),
        may_forget: &|_: VolumeId, _: Version| false,
        state,
    };
    let (rows, _) = memtable.rows_from((VolumeId(0), 0), usize::MAX);
    let pins = Pins::new(cache.clone(), false);
    let mut sweep = Sweep::new(vec![Source::of_rows(rows)]);
    let made = make(storage, &mut sweep, &pins, &mut rules, u64::MAX).await?;
    let mut state = state.borrow_mut();
    let is_there = state.frozen.front().is_some_and(|front| Rc::ptr_eq(front, &memtable));
    if !is_there || state.runs.is_empty() != is_all {
        return Ok(Some(discard(made))); // another flush was quicker
    }
    state.frozen.pop_front();
    let turn = install_flush(&mut state, &memtable, made);
    note_indexes(&state, cache);
    Ok(Some(turn))
}

fn install_flush(state: &mut State, memtable: &Memtable, made: Made) -> Turn {
    let mut in_tables: BTreeMap<VolumeId, u64> = BTreeMap::new();
    for summary in made.tables.iter().flat_map(|table| &table.meta.volumes) {
        *in_tables.entry(summary.volume).or_default() += summary.counted;
    }
    for volume in memtable.volumes() {
        let Some(state) = state.volumes.get_mut(&volume) else { continue };
        let (counted, change) = (in_tables.get(&volume).copied(), made.counted.get(&volume).copied());
        let counted = counted.unwrap_or(0);
        let was = counted.saturating_add_signed(-change.unwrap_or(0));
        state.in_memory = state.in_memory.saturating_sub(was);
        state.in_tables += counted;
    }
    made.tables.iter().for_each(|table| state.count_older(table, true));
    if !made.tables.is_empty() {
        let number = state.next_run;
        state.next_run += 1;
        let tables = Rc::new(made.tables);
        state.runs.push(Run { number, level: 0, from: (VolumeId(0), 0), tables });
    }
    Turn { lost: made.lost, written_blocks: made.written_blocks }
}

/// What was made is not wanted.
fn discard(made: Made) -> Turn {
    Turn { lost: Vec::new(), written_blocks: made.written_blocks }
}

/// Does the next turn of a merge, if there is anything to merge.
pub(super) async fn merge<S: TableStorage>(
    storage: &S,
    state: &RefCell<State>,
    cache: &Rc<RefCell<Cache>>,
    may_forget: &impl Fn(VolumeId, Version) -> bool,
) -> Result<Option<Turn>, StoreError> {
    begin(&mut state.borrow_mut());
    let (job, from, mut sweep, mut rules, late) = {
        let state_now = state.borrow();
        let Some(job) = next_job(&state_now) else { return Ok(None) };
        let inputs: Vec<&Run> = job.inputs.iter().filter_map(|number| state_now.run(*number)).collect();
        let from = inputs.iter().map(|run| run.from).max().unwrap_or(END_OF_KEYS);
        let sources = inputs.iter().map(|run| Source::Run(RunSource::new(run.tables.clone(), from)));
        let oldest = state_now.runs.iter().find(|run| run.number != job.output);
        let is_all = oldest.is_some_and(|run| Some(&run.number) == job.inputs.first());
        let output = state_now.run(job.output);
        let rules = Rules {
            histories: BTreeMap::new(),
            is_all,
            has_presence: output.is_some_and(|run| run.level != BOTTOM),
            oldest_above: oldest_above(&state_now, &job),
            may_forget,
            state,
        };
        (job.clone(), from, Sweep::new(sources.collect()), rules, state_now.late_statements)
    };
    let limit = u64::from(state.borrow().options.table_blocks);
    let pins = Pins::new(cache.clone(), false);
    let made = make(storage, &mut sweep, &pins, &mut rules, limit).await?;
    let mut state = state.borrow_mut();
    let present = job.inputs.first().and_then(|number| state.run(*number)).map(|run| run.from);
    let is_overtaken = made.forgot_holes && state.late_statements != late;
    if present != Some(from) || !state.jobs.contains(&job) || is_overtaken {
        return Ok(Some(discard(made)));
    }
    let turn = install_merge(&mut state, &job, made);
    note_indexes(&state, cache);
    Ok(Some(turn))
}

/// The oldest versions that are newer in the log than a merge's inputs.
fn oldest_above(state: &State, job: &Job) -> BTreeMap<VolumeId, Version> {
    let mut oldest: BTreeMap<VolumeId, Version> = BTreeMap::new();
    let mut note = |volume: VolumeId, version: Version| {
        let known = oldest.entry(volume).or_insert(version);
        *known = version.min(*known);
    };
    let memtables = state.memtables().filter(|_| !mutant::is(Mutant::HoleForgottenUnderMemtable));
    for memtable in memtables {
        memtable
            .volumes()
            .for_each(|volume| memtable.oldest(volume).into_iter().for_each(|v| note(volume, v)));
    }
    for run in state.runs.iter().filter(|run| run.number != job.output && !job.inputs.contains(&run.number)) {
        let summaries = run.tables.iter().flat_map(|table| &table.meta.volumes);
        summaries.for_each(|summary| note(summary.volume, summary.least));
    }
    oldest
}

fn install_merge(state: &mut State, job: &Job, made: Made) -> Turn {
    made.tables.iter().for_each(|table| state.count_older(table, true));
    for (volume, change) in &made.counted {
        if let Some(volume) = state.volumes.get_mut(volume) {
            volume.in_tables = volume.in_tables.saturating_add_signed(*change);
        }
    }
    if let Some(output) = state.run_mut(job.output) {
        Rc::make_mut(&mut output.tables).extend(made.tables);
    }
    let mut gone = Vec::new();
    for number in &job.inputs {
        let Some(run) = state.run_mut(*number) else { continue };
        run.from = made.until;
        let passed = run.tables.partition_point(|table| table.meta.last < made.until);
        gone.extend(Rc::make_mut(&mut run.tables).drain(..passed));
    }
    for table in gone {
        state.count_older(&table, false);
    }
    if made.until == END_OF_KEYS {
        let is_blank = |run: &Run| run.number == job.output && run.tables.is_empty();
        state.runs.retain(|run| !job.inputs.contains(&run.number) && !is_blank(run));
        state.jobs.retain(|other| other != job);
        forget_dropped(state);
    }
    Turn { lost: made.lost, written_blocks: made.written_blocks }
}

/// Of dropped volumes of which nothing is left nothing has to be known.
fn forget_dropped(state: &mut State) {
    let dropped = std::mem::take(&mut state.dropped);
    let is_left = |volume: &VolumeId| {
        state.memtables().any(|memtable| memtable.oldest(*volume).is_some())
            || state
                .runs
                .iter()
                .flat_map(|run| run.tables.iter())
                .any(|table| table.meta.summary(*volume).is_some())
    };
    let left = dropped.into_iter().filter(is_left).collect();
    state.dropped = left;
}

/// Begins what is due.
pub(super) fn begin(state: &mut State) {
    let free = |state: &State, run: &Run| {
        !state.jobs.iter().any(|job| job.output == run.number || job.inputs.contains(&run.number))
    };
    for level in 0..state.options.tiers {
        let is_last = level + 1 == state.options.tiers;
        let due = if is_last { state.options.last_tier_runs } else { state.options.tier_runs };
        let at_level = |run: &&Run| run.level == level && free(state, run);
        let here: Vec<u64> = state.runs.iter().filter(at_level).map(|run| run.number).collect();
        if here.len() < due.min(state.options.tier_runs) {
            continue;
        }
        // All that is older, down to the bottom, if nothing of it is being merged.
        let newest = here.last().copied().unwrap_or(0);
        let older: Vec<&Run> = {
            let end = state.runs.iter().position(|run| run.number == newest).map_or(0, |index| index + 1);
            state.runs[..end].iter().collect()
        };
        let is_free = older.iter().all(|run| free(state, run));
        let bottom: u64 = older.iter().filter(|run| run.level == BOTTOM).map(|run| run.rows()).sum();
        let above: u64 = older.iter().filter(|run| run.level != BOTTOM).map(|run| run.rows()).sum();
        let (inputs, output_level) =
            if is_free && (above >= bottom / state.options.bottom_part || is_last && here.len() >= due) {
                (older.iter().map(|run| run.number).collect(), BOTTOM)
            } else if !is_last && is_run_of_neighbours(state, &here) {
                (here, level + 1)
            } else {
                continue;
            };
        start(state, inputs, output_level);
    }
}

fn is_run_of_neighbours(state: &State, numbers: &[u64]) -> bool {
    let position = |number: &u64| state.runs.iter().position(|run| run.number == *number);
    let positions: Vec<Option<usize>> = numbers.iter().map(position).collect();
    positions.windows(2).all(|pair| pair[0].map(|index| index + 1) == pair[1])
}

fn start(state: &mut State, inputs: Vec<u64>, level: u8) {
    let first = inputs.first().and_then(|first| state.runs.iter().position(|run| run.number == *first));
    let Some(first) = first else { return };
    let number = state.next_run;
    state.next_run += 1;
    state.runs.insert(first, Run { number, level, from: (VolumeId(0), 0), tables: Rc::default() });
    state.jobs.push(Job { inputs, output: number });
}

/// Merges everything into one run, as far as nothing is being merged: for tests, and to count exactly.
pub(super) fn begin_all(state: &mut State) {
    if state.jobs.is_empty() && !state.runs.is_empty() {
        let all = state.runs.iter().map(|run| run.number).collect();
        start(state, all, BOTTOM);
    }
}

/// The merge at the least level first: it is the shortest.
fn next_job(state: &State) -> Option<Job> {
    let level = |job: &&Job| state.run(job.output).map_or(BOTTOM, |run| run.level);
    state.jobs.iter().min_by_key(level).cloned()
}

fn note_indexes(state: &State, cache: &Rc<RefCell<Cache>>) {
    let mut cache = cache.borrow_mut();
    for table in state.runs.iter().flat_map(|run| run.tables.iter()).filter(|table| table.used.get() == NEW) {
        cache.note_index(table);
    }
}

/// Makes tables of what a sweep gives: one of `limit` blocks, or as many as it takes when there is no limit.
async fn make<S: TableStorage, F: Fn(VolumeId, Version) -> bool>(
    storage: &S,
    sweep: &mut Sweep,
    pins: &Pins,
    rules: &mut Rules<'_, F>,
    limit: u64,
) -> Result<Made, StoreError> {
    let mut made = Made {
        tables: Vec::new(),
        until: END_OF_KEYS,
        lost: Vec::new(),
        counted: BTreeMap::new(),
        written_blocks: 0,
        forgot_holes: false,
    };
    let (whole, block_rows) = {
        let state = rules.state.borrow();
        (u64::from(state.options.table_blocks), state.options.block_rows)
    };
    let (mut group, mut found, mut steps) = (Group::default(), Resolved::default(), 0u64);
    let begin = |rules: &Rules<'_, F>| {
        let builder = TableBuilder::new(new_table(rules.state), rules.has_presence, block_rows);
        let table = Some(builder.id());
        (builder, Unfinished { storage, table })
    };
    let (mut builder, mut unfinished) = begin(rules);
    loop {
        match sweep.step(pins, &mut group) {
            Ok(true) => take(&mut group, &mut found, rules, &mut builder, &mut made),
            Ok(false) => break,
            Err(missing) => {
                pins.bound_rows();
                pins.fetch(storage, &missing).await.map_err(unreadable)?;
                continue;
            }
        }
        steps += 1;
        if builder.ready.len() >= APPEND_BYTES {
            append(storage, &mut builder, &mut made).await?;
        }
        let is_full = u64::from(builder.blocks()) >= whole;
        if is_full && limit == u64::MAX {
            complete(&mut unfinished, &mut builder, &mut made, rules.state).await?;
            (builder, unfinished) = begin(rules);
        } else if is_full || limit != u64::MAX && steps >= limit * STEPS_A_BLOCK {
            made.until = loop {
                match sweep.position(pins) {
                    Ok(until) => break until,
                    Err(missing) => pins.fetch(storage, &missing).await.map_err(unreadable)?,
                }
            };
            break;
        }
    }
    complete(&mut unfinished, &mut builder, &mut made, rules.state).await?;
    Ok(made)
}

/// Takes what is left of what was said of some blocks.
fn take<F: Fn(VolumeId, Version) -> bool>(
    group: &mut Group,
    found: &mut Resolved,
    rules: &mut Rules<'_, F>,
    builder: &mut TableBuilder,
    made: &mut Made,
) {
    let (volume, is_all) = (group.volume, rules.is_all);
    let Some(history) = rules.history(volume) else {
        made.lost.extend(group.statements.iter().filter_map(|statement| statement.place()));
        return;
    };
    resolve(&mut group.statements, history, is_all, found);
    made.lost.append(&mut found.lost);
    if found.counted != 0 {
        *made.counted.entry(volume).or_default() += found.counted;
    }
    let goes = |first: &super::statement::Statement| {
        first.value == MapValue::Hole && !first.is_move && rules.may_forget(volume, first.version)
    };
    let forgotten = found.kept.iter().take_while(|first| goes(first)).count();
    made.forgot_holes |= forgotten > 0;
    let newest = found.kept.iter().rposition(|kept| !kept.is_move);
    for (index, statement) in found.kept.iter().enumerate().skip(forgotten) {
        let is_older =
            !statement.is_move && statement.is_mapped() && newest.is_some_and(|newest| index < newest);
        let row = Row { volume, start: group.start, end: group.end, order: 0, statement: *statement };
        builder.push(row, is_older);
    }
}

fn new_table(state: &RefCell<State>) -> TableId {
    let mut state = state.borrow_mut();
    state.next_table += 1;
    TableId(state.next_table - 1)
}

async fn append<S: TableStorage>(
    storage: &S,
    builder: &mut TableBuilder,
    made: &mut Made,
) -> Result<(), StoreError> {
    let blocks = Bytes::from(std::mem::take(&mut builder.ready));
    made.written_blocks += (blocks.len() / BLOCK_SIZE) as u64;
    storage.append(builder.id(), blocks).await
}

/// A table that is being written: given up when the turn is.
struct Unfinished<'a, S: TableStorage> {
    storage: &'a S,
    table: Option<TableId>,
}

impl<S: TableStorage> Drop for Unfinished<'_, S> {
    fn drop(&mut self) {
        self.table.into_iter().for_each(|table| self.storage.abandon(table));
    }
}

async fn complete<S: TableStorage>(
    unfinished: &mut Unfinished<'_, S>,
    builder: &mut TableBuilder,
    made: &mut Made,
    state: &RefCell<State>,
) -> Result<(), StoreError> {
    let Some((meta, index)) = builder.finish() else { return Ok(()) };
    append(unfinished.storage, builder, made).await?;
    unfinished.storage.finish(meta.id).await?;
    unfinished.table = None;
    let table = Table::new(meta, Some(index), state.borrow().retired.clone());
    table.used.set(NEW);
    made.tables.push(Rc::new(table));
    Ok(())
}

/// A merge can't go on over what can't be read: its inputs stay, and lookups say which blocks are concerned.
fn unreadable(unreadable: Unreadable) -> StoreError {
    match unreadable.error {
        Some(StoreError::Offline) => StoreError::Offline,
        _ => StoreError::Medium { volume: VolumeId(0), address: BlockAddress(0) },
    }
}

/// A table whose index has not been counted yet.
const NEW: u64 = u64::MAX;
/// Bytes that are appended at a time.
const APPEND_BYTES: usize = 64 * BLOCK_SIZE;
/// Blocks of the map that a turn looks at for each block of its table, most of the time in vain.
const STEPS_A_BLOCK: u64 = 4096;
