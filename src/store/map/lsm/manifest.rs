//! The manifest: what a checkpoint keeps of the tree, in records.
//!
//! It has the volumes with their snapshots' eras and what is known of their space, the runs with their tables, and
//! the merges that are under way, up to where. What memtables have is not in it: replay begins behind the statements of the tables, at the place in the
//! log where the oldest memtable began that was not in a table yet. Statements that are in tables may come again:
//! that changes nothing.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::statement::{History, Key, Span};
use super::table::{Table, TableMeta};
use super::tree::{Job, Run, State};
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::mutant::{self, Mutant};
use crate::base::units::{Version, VolumeId};

/// All records, each with its tag.
pub(super) fn encode(state: &State) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut head = vec![TAG_TREE, HEAD];
    head.put_u32(FORMAT);
    head.put_u64(state.next_table);
    head.put_u64(state.next_run);
    head.put_u32(state.dropped.len() as u32);
    state.dropped.iter().for_each(|volume| head.put_u32(volume.0));
    head.put_u32(state.jobs.len() as u32);
    for job in &state.jobs {
        head.put_u64(job.output);
        head.put_u32(job.inputs.len() as u32);
        job.inputs.iter().for_each(|input| head.put_u64(*input));
    }
    records.push(head);
    for (volume, known) in &state.volumes {
        let mut bytes = vec![TAG_TREE, VOLUME];
        bytes.put_u32(volume.0);
        put_version(&mut bytes, known.history.newest);
        bytes.put_u32(known.history.era);
        bytes.put_u64(known.in_tables);
        bytes.put_u32(known.history.spans().len() as u32);
        for span in known.history.spans() {
            put_version(&mut bytes, span.snapshot);
            bytes.put_u32(span.born);
            bytes.put_u32(span.died.map_or(ALIVE, |died| died));
        }
        records.push(bytes);
        let (floor, full) = known.space.full_regions();
        for part in full.chunks(REGIONS_A_RECORD) {
            let mut bytes = vec![TAG_TREE, SPACE];
            bytes.put_u32(volume.0);
            bytes.put_u8(u8::from(floor.is_some()));
            put_version(&mut bytes, floor.unwrap_or_default());
            bytes.put_u32(part.len() as u32);
            for (first, count) in part {
                bytes.put_u64(*first);
                bytes.put_u64(*count);
            }
            records.push(bytes);
        }
    }
    for run in &state.runs {
        let mut bytes = vec![TAG_TREE, RUN, run.level];
        bytes.put_u64(run.number);
        bytes.put_u32(run.from.0.0);
        bytes.put_u64(run.from.1);
        records.push(bytes);
        for table in run.tables.iter() {
            let mut bytes = vec![TAG_TREE, TABLE];
            table.meta.encode(&mut bytes);
            records.push(bytes);
        }
    }
    records
}

/// Takes a record behind its tag. Whether it makes sense.
pub(super) fn load(state: &mut State, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
    match reader.u8()? {
        HEAD => load_head(state, reader),
        VOLUME => load_volume(state, reader),
        SPACE => load_space(state, reader),
        RUN => {
            let (level, number) = (reader.u8()?, reader.u64()?);
            let from: Key = (VolumeId(reader.u32()?), reader.u64()?);
            let from = if mutant::is(Mutant::MergePositionForgotten) { (VolumeId(0), 0) } else { from };
            state.runs.push(Run { number, level, from, tables: Rc::default() });
            Ok(true)
        }
        TABLE => {
            let Some(meta) = TableMeta::decode(reader)? else { return Ok(false) };
            let table = Rc::new(Table::new(meta, None, state.retired.clone()));
            state.count_older(&table, true);
            let Some(run) = state.runs.last_mut() else { return Ok(false) };
            let is_behind = run.tables.last().is_none_or(|last| last.meta.last < table.meta.first);
            Rc::make_mut(&mut run.tables).push(table);
            Ok(is_behind)
        }
        _ => Ok(false),
    }
}

fn load_head(state: &mut State, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
    if reader.u32()? != FORMAT {
        return Ok(false);
    }
    let (next_table, next_run) = (reader.u64()?, reader.u64()?);
    let mut dropped = BTreeSet::new();
    for _ in 0..reader.u32()? {
        dropped.insert(VolumeId(reader.u32()?));
    }
    let mut jobs = Vec::new();
    for _ in 0..reader.u32()? {
        let (output, count) = (reader.u64()?, reader.u32()?);
        let mut inputs = Vec::new();
        for _ in 0..count {
            inputs.push(reader.u64()?);
        }
        jobs.push(Job { inputs, output });
    }
    state.next_table = state.next_table.max(next_table);
    state.next_run = next_run;
    (state.dropped, state.jobs) = (dropped, jobs);
    Ok(true)
}

fn load_volume(state: &mut State, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
    let volume = VolumeId(reader.u32()?);
    let (newest, era, in_tables) = (read_version(reader)?, reader.u32()?, reader.u64()?);
    let mut spans = Vec::new();
    for _ in 0..reader.u32()? {
        let (snapshot, born, died) = (read_version(reader)?, reader.u32()?, reader.u32()?);
        spans.push(Span { snapshot, born, died: (died != ALIVE).then_some(died) });
    }
    let known = state.volumes.entry(volume).or_default();
    known.in_tables = in_tables;
    known.history = History::restore(spans, era, newest);
    Ok(true)
}

fn load_space(state: &mut State, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
    let volume = VolumeId(reader.u32()?);
    let (has_floor, floor) = (reader.u8()? == 1, read_version(reader)?);
    let mut runs = Vec::new();
    for _ in 0..reader.u32()? {
        runs.push((reader.u64()?, reader.u64()?));
    }
    let is_sound = |(first, count): &(u64, u64)| {
        *count <= MOST_REGIONS && first.checked_add(*count).is_some_and(|end| end <= MOST_REGIONS)
    };
    let Some(known) = state.volumes.get_mut(&volume).filter(|_| runs.iter().all(is_sound)) else {
        return Ok(false);
    };
    known.space.restore(has_floor.then_some(floor), runs);
    Ok(true)
}

fn put_version(bytes: &mut Vec<u8>, version: Version) {
    bytes.put_u32(version.epoch);
    bytes.put_u64(version.sequence);
}

fn read_version(reader: &mut Reader<'_>) -> Result<Version, CutShort> {
    Ok(Version { epoch: reader.u32()?, sequence: reader.u64()? })
}

/// First byte of a record.
pub(in crate::store) const TAG_TREE: u8 = 7;
const FORMAT: u32 = 1;
const HEAD: u8 = 1;
const VOLUME: u8 = 2;
const RUN: u8 = 3;
const TABLE: u8 = 4;
const SPACE: u8 = 5;
const ALIVE: u32 = u32::MAX;
const REGIONS_A_RECORD: usize = 1024;
/// Of the largest volume.
const MOST_REGIONS: u64 = 1 << 36;
