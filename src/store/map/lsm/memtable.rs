//! The statements of the log that are in no table yet.

use std::collections::BTreeMap;

use crate::array::Place;
use crate::base::units::{Version, VolumeId};

use super::statement::{END_OF_KEYS, History, Key, Resolved, Row, Statement, resolve};

/// Statements by block, and of one block in log order.
#[derive(Default)]
pub(super) struct Memtable {
    points: BTreeMap<MemoryKey, Statement>,
    /// Holes over several blocks, with the block behind the last, in classes of alike lengths, so that those that
    /// reach a block are found in a bounded part of each.
    ranges: [BTreeMap<MemoryKey, (u64, Statement)>; LENGTH_CLASSES],
    range_count: usize,
    next_serial: u32,
    oldest: BTreeMap<VolumeId, Version>,
}

/// Volume, address, and which statement of this table.
type MemoryKey = (VolumeId, u64, u32);

impl Memtable {
    /// Statements in it.
    pub(super) fn len(&self) -> usize {
        self.points.len() + self.range_count
    }

    /// Takes a statement about one block; what is left of those before is in `found`.
    pub(super) fn insert(&mut self, row: Row, history: &History, found: &mut Resolved) {
        self.note(&row);
        let serial = self.next_serial;
        self.next_serial += 1;
        let block = (row.volume, row.start, 0)..=(row.volume, row.start, u32::MAX);
        let before: Vec<(u32, Statement)> =
            self.points.range(block).map(|((.., serial), statement)| (*serial, *statement)).collect();
        if before.is_empty() {
            found.kept.clear();
            found.lost.clear();
            found.counted = 0;
            self.points.insert((row.volume, row.start, serial), row.statement);
            return;
        }
        let mut statements: Vec<Statement> = before.iter().map(|(_, statement)| *statement).collect();
        statements.push(row.statement);
        resolve(&mut statements, history, false, found);
        let mut serials: Vec<(u32, Statement)> = before;
        serials.push((serial, row.statement));
        for (serial, _) in &serials {
            self.points.remove(&(row.volume, row.start, *serial));
        }
        for kept in found.kept.iter().rev() {
            let same = |(_, other): &(u32, Statement)| {
                other.version == kept.version && other.is_move == kept.is_move
            };
            if let Some(index) = serials.iter().rposition(same) {
                let (serial, _) = serials.remove(index);
                self.points.insert((row.volume, row.start, serial), *kept);
            }
        }
    }

    /// Takes a hole over several blocks.
    pub(super) fn insert_range(&mut self, row: Row) {
        self.note(&row);
        let serial = self.next_serial;
        self.next_serial += 1;
        let class = length_class(row.end - row.start);
        self.ranges[class].insert((row.volume, row.start, serial), (row.end, row.statement));
        self.range_count += 1;
    }

    /// Appends all statements about a block, in log order.
    pub(super) fn statements_of(&self, volume: VolumeId, address: u64, statements: &mut Vec<Statement>) {
        let block = (volume, address, 0)..=(volume, address, u32::MAX);
        let points = self.points.range(block).map(|((.., serial), statement)| (*serial, *statement));
        if self.range_count == 0 {
            statements.extend(points.map(|(_, statement)| statement));
            return;
        }
        let mut all: Vec<(u32, Statement)> = points.collect();
        all.extend(self.reaching(volume, address).map(|row| (row.order, row.statement)));
        all.sort_unstable_by_key(|(serial, _)| *serial);
        statements.extend(all.into_iter().map(|(_, statement)| statement));
    }

    /// Holes that begin at or before a block, and reach it.
    fn reaching(&self, volume: VolumeId, address: u64) -> impl Iterator<Item = Row> {
        self.ranges.iter().enumerate().flat_map(move |(class, ranges)| {
            let from = address.saturating_sub(longest_of(class));
            let near = ranges.range((volume, from, 0)..=(volume, address, u32::MAX)).map(hole_row);
            near.filter(move |row| row.end > address)
        })
    }

    /// About `limit` rows from a block on, in the order of their first blocks and of the log, those that reach it
    /// cut there; and the key before which they are all that there are.
    pub(super) fn rows_from(&self, from: Key, limit: usize) -> (Vec<Row>, Key) {
        let (volume, address) = from;
        let behind = (volume, address, 0)..;
        let points = self.points.range(behind.clone()).map(|((volume, start, serial), statement)| {
            let (volume, start, order, statement) = (*volume, *start, *serial, *statement);
            Row { volume, start, end: start + 1, order, statement }
        });
        let (mut rows, mut until) = (Vec::new(), END_OF_KEYS);
        let mut take = |next: &mut dyn Iterator<Item = Row>| {
            rows.extend(next.take(limit));
            if let Some(row) = next.next() {
                until = until.min((row.volume, row.start));
            }
        };
        take(&mut points.into_iter());
        for ranges in &self.ranges {
            take(&mut ranges.range(behind.clone()).map(hole_row));
        }
        let reaching = self.reaching(volume, address).filter(|row| row.start < address);
        rows.extend(reaching.map(|row| Row { start: address, ..row }));
        rows.retain(|row| (row.volume, row.start) < until);
        rows.sort_unstable_by_key(|row| (row.volume, row.start, row.order));
        (rows, until)
    }

    /// The oldest version of a volume that it has.
    pub(super) fn oldest(&self, volume: VolumeId) -> Option<Version> {
        self.oldest.get(&volume).copied()
    }

    /// The volumes that it knows of.
    pub(super) fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        self.oldest.keys().copied()
    }

    fn note(&mut self, row: &Row) {
        let version = row.statement.version;
        let oldest = self.oldest.entry(row.volume).or_insert(version);
        *oldest = version.min(*oldest);
    }

    /// Every place that it refers to.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.points.values().filter_map(Statement::place)
    }
}

fn hole_row(((volume, start, order), (end, statement)): (&MemoryKey, &(u64, Statement))) -> Row {
    Row { volume: *volume, start: *start, end: *end, order: *order, statement: *statement }
}

/// Lengths of one class differ by less than sixteen times.
fn length_class(length: u64) -> usize {
    (super::bits::width_of(length) as usize / 4).min(LENGTH_CLASSES - 1)
}

fn longest_of(class: usize) -> u64 {
    if class + 1 == LENGTH_CLASSES { u64::MAX } else { (1 << (4 * class + 4)) - 1 }
}

const LENGTH_CLASSES: usize = 13;
