//! Goes through sorted sources side by side, and gives what all of them say of each block.
//!
//! Nothing here waits: where a block or an index is not in memory, the sweep says so, has changed nothing, and goes
//! on when it is asked again with what was missing. So merges and lookups of ranges are the same code; a lookup
//! begins anew with what it has read, until one go finds all of it and holds at that moment.

use std::ops::Range;
use std::rc::Rc;

use super::index::Index;
use super::statement::{END_OF_KEYS, Key, Row, Statement};
use super::table::Table;
use crate::base::units::VolumeId;

/// What has to be read first.
#[derive(Clone)]
pub(super) enum Missing {
    Index(Rc<Table>),
    Blocks(Rc<Table>, Range<u32>),
}

/// What is in memory.
pub(super) trait Blocks {
    /// The rows of a data block.
    fn rows(&self, table: &Rc<Table>, number: u32) -> Option<Rc<[Row]>>;
    /// The index of a table.
    fn index(&self, table: &Rc<Table>) -> Option<Rc<Index>>;
}

/// Rows in the order of their first blocks, and of one block in log order.
pub(super) enum Source {
    /// In memory.
    Rows { rows: Vec<Row>, position: usize },
    /// The tables of a run, from a key on.
    Run(RunSource),
}

/// See [`Source`].
pub(super) struct RunSource {
    tables: Rc<Vec<Rc<Table>>>,
    from: Key,
    table: usize,
    /// Which block is next; none before the index was asked.
    block: Option<u32>,
    rows: Rc<[Row]>,
    position: usize,
}

impl RunSource {
    pub(super) fn new(tables: Rc<Vec<Rc<Table>>>, from: Key) -> Self {
        let table = tables.partition_point(|table| table.meta.last < from);
        Self { tables, from, table, block: None, rows: Rc::new([]), position: 0 }
    }

    /// Goes on to the next row.
    fn settle(&mut self, blocks: &impl Blocks) -> Result<(), Missing> {
        loop {
            // What ends before where this begins is passed.
            while let Some(row) = self.rows.get(self.position) {
                if (row.volume, row.end) > self.from {
                    return Ok(());
                }
                self.position += 1;
            }
            let Some(table) = self.tables.get(self.table) else { return Ok(()) };
            let block = match self.block {
                Some(block) => block,
                None if table.meta.first >= self.from => 0,
                None => {
                    let index = blocks.index(table).ok_or_else(|| Missing::Index(table.clone()))?;
                    index.blocks_of(self.from).start
                }
            };
            if block == table.meta.data_blocks {
                (self.table, self.block) = (self.table + 1, Some(0));
                continue;
            }
            let end = table.meta.data_blocks.min(block + READ_AHEAD);
            let missing = || Missing::Blocks(table.clone(), block..end);
            self.rows = blocks.rows(table, block).ok_or_else(missing)?;
            (self.position, self.block) = (0, Some(block + 1));
        }
    }
}

impl Source {
    pub(super) fn of_rows(rows: Vec<Row>) -> Self {
        Self::Rows { rows, position: 0 }
    }

    fn settle(&mut self, blocks: &impl Blocks) -> Result<(), Missing> {
        match self {
            Self::Rows { .. } => Ok(()),
            Self::Run(run) => run.settle(blocks),
        }
    }

    /// The next row, when it is settled.
    fn head(&self) -> Option<Row> {
        match self {
            Self::Rows { rows, position } => rows.get(*position).copied(),
            Self::Run(run) => {
                let row = run.rows.get(run.position)?;
                let start = if row.volume == run.from.0 { row.start.max(run.from.1) } else { row.start };
                Some(Row { start, ..*row })
            }
        }
    }

    fn pass(&mut self) {
        match self {
            Self::Rows { position, .. } => *position += 1,
            Self::Run(run) => run.position += 1,
        }
    }
}

/// Some blocks about which the same was said.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) volume: VolumeId,
    pub(super) start: u64,
    pub(super) end: u64,
    /// In log order.
    pub(super) statements: Vec<Statement>,
}

impl Default for Group {
    fn default() -> Self {
        Self { volume: VolumeId(0), start: 0, end: 0, statements: Vec::new() }
    }
}

/// See the head of this file.
pub(super) struct Sweep {
    /// The oldest first.
    sources: Vec<Source>,
    /// Holes that reach the present block, each with its source.
    active: Vec<(usize, Row)>,
    volume: VolumeId,
    at: u64,
    /// What is said of the present block.
    points: Vec<(usize, Row)>,
    /// While the rows of a block are taken: which.
    taking: bool,
}

impl Sweep {
    pub(super) fn new(sources: Vec<Source>) -> Self {
        let (active, points) = (Vec::new(), Vec::new());
        Self { sources, active, volume: VolumeId(0), at: 0, points, taking: false }
    }

    fn settle(&mut self, blocks: &impl Blocks) -> Result<Key, Missing> {
        let mut next = END_OF_KEYS;
        let mut missing = None;
        for source in &mut self.sources {
            match source.settle(blocks) {
                Ok(()) => {
                    let key = source.head().map_or(END_OF_KEYS, |row| (row.volume, row.start));
                    next = next.min(key);
                }
                Err(needed) => missing = Some(needed),
            }
        }
        missing.map_or(Ok(next), Err)
    }

    /// Where the next group begins, if the sources are settled: nothing is said of the blocks before.
    pub(super) fn position(&mut self, blocks: &impl Blocks) -> Result<Key, Missing> {
        if self.taking {
            return Ok((self.volume, self.at));
        }
        let next = self.settle(blocks)?;
        Ok(if self.active.is_empty() { next } else { next.min((self.volume, self.at)) })
    }

    /// What is said of the next blocks; false at the end.
    pub(super) fn step(&mut self, blocks: &impl Blocks, group: &mut Group) -> Result<bool, Missing> {
        if !self.taking {
            let next = self.settle(blocks)?;
            if !self.active.is_empty() {
                let reach = self.active.iter().map(|(_, row)| row.end).min().unwrap_or(u64::MAX);
                let end = if next.0 == self.volume { reach.min(next.1) } else { reach };
                if end > self.at {
                    self.give_holes(end, group);
                    return Ok(true);
                }
            }
            if next == END_OF_KEYS {
                return Ok(false);
            }
            (self.volume, self.at) = next;
            self.taking = true;
            self.points.clear();
        }
        // Rows of one block may be spread over several blocks of a table.
        loop {
            let next = self.settle(blocks)?;
            if next != (self.volume, self.at) {
                break;
            }
            for (rank, source) in self.sources.iter_mut().enumerate() {
                while let Some(row) = source.head().filter(|row| (row.volume, row.start) == next) {
                    self.points.push((rank, row));
                    source.pass();
                    source.settle(blocks)?;
                }
            }
        }
        self.taking = false;
        self.points.extend(&self.active);
        self.at += 1;
        let at = self.at;
        self.active.clear();
        self.active.extend(self.points.iter().filter(|(_, row)| row.end > at));
        self.give(self.at - 1, group);
        Ok(true)
    }

    fn give_holes(&mut self, end: u64, group: &mut Group) {
        let start = std::mem::replace(&mut self.at, end);
        self.points.clear();
        self.points.extend(&self.active);
        self.give(start, group);
        self.active.retain(|(_, row)| row.end > end);
    }

    fn give(&mut self, start: u64, group: &mut Group) {
        self.points.sort_by_key(|(rank, row)| (*rank, row.order));
        (group.volume, group.start, group.end) = (self.volume, start, self.at);
        group.statements.clear();
        group.statements.extend(self.points.iter().map(|(_, row)| row.statement));
    }
}

/// Blocks that are read at a time.
const READ_AHEAD: u32 = 8;
