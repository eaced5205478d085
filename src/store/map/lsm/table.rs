//! Tables: a part of a sorted run, written once.
//!
//! A table is a sequence of 4 KiB blocks: data blocks ([`super::block`]), and behind them a footer in blocks of its
//! own, each with the same kind of checksum: the format, what the table holds of each volume, and the index. What
//! of it says which blocks it is about is in the manifest too, so that opening the tree reads no table.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::{BLOCK_SIZE, Version, VolumeId};

use super::block::{self, BlockBuilder};
use super::index::Index;
use super::statement::{Key, Row};
use super::storage::TableId;

/// What a table holds of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) volume: VolumeId,
    pub(super) least: Version,
    pub(super) greatest: Version,
    /// Greatest number of any epoch: with the greatest version's epoch it says what covers all.
    pub(super) greatest_sequence: u64,
    /// Rows that count as taking space, and those that are known not to be the newest of their blocks.
    pub(super) counted: u64,
    pub(super) older: u64,
}

impl Summary {
    /// Whether a replica that has everything through `point` has all of this.
    pub(super) fn is_covered_by(&self, point: Version) -> bool {
        let all = Version { epoch: self.greatest.epoch, sequence: self.greatest_sequence };
        all.is_covered_by(point)
    }
}

/// What is known of a table without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableMeta {
    pub(super) id: TableId,
    pub(super) data_blocks: u32,
    pub(super) footer_blocks: u32,
    pub(super) rows: u64,
    pub(super) first: Key,
    /// The last block that it is about.
    pub(super) last: Key,
    /// In the order of the volumes.
    pub(super) volumes: Vec<Summary>,
}

impl TableMeta {
    pub(super) fn summary(&self, volume: VolumeId) -> Option<&Summary> {
        let index = self.volumes.binary_search_by_key(&volume, |summary| summary.volume).ok()?;
        self.volumes.get(index)
    }

    /// How many bytes [`Self::encode`] writes, and the head of a record.
    pub(super) fn saved_bytes(&self) -> u64 {
        64 + self.volumes.len() as u64 * 64
    }

    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u32(FORMAT);
        bytes.put_u64(self.id.0);
        bytes.put_u32(self.data_blocks);
        bytes.put_u32(self.footer_blocks);
        bytes.put_u64(self.rows);
        for (volume, address) in [self.first, self.last] {
            bytes.put_u32(volume.0);
            bytes.put_u64(address);
        }
        bytes.put_u32(self.volumes.len() as u32);
        for summary in &self.volumes {
            bytes.put_u32(summary.volume.0);
            for version in [summary.least, summary.greatest] {
                bytes.put_u32(version.epoch);
                bytes.put_u64(version.sequence);
            }
            bytes.put_u64(summary.greatest_sequence);
            bytes.put_u64(summary.counted);
            bytes.put_u64(summary.older);
        }
    }

    /// Reads what [`Self::encode`] wrote; none when the format is another.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Option<Self>, CutShort> {
        if reader.u32()? != FORMAT {
            return Ok(None);
        }
        let id = TableId(reader.u64()?);
        let (data_blocks, footer_blocks, rows) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let first = (VolumeId(reader.u32()?), reader.u64()?);
        let last = (VolumeId(reader.u32()?), reader.u64()?);
        let count = reader.u32()?;
        let mut volumes = Vec::new();
        for _ in 0..count {
            let volume = VolumeId(reader.u32()?);
            let least = Version { epoch: reader.u32()?, sequence: reader.u64()? };
            let greatest = Version { epoch: reader.u32()?, sequence: reader.u64()? };
            let (greatest_sequence, counted, older) = (reader.u64()?, reader.u64()?, reader.u64()?);
            volumes.push(Summary { volume, least, greatest, greatest_sequence, counted, older });
        }
        Ok(Some(Self { id, data_blocks, footer_blocks, rows, first, last, volumes }))
    }
}

/// Tables to which nothing in memory refers any more: neither the tree, nor a lookup or a merge that began before.
pub(super) type Retired = Rc<RefCell<Vec<TableId>>>;

/// A table, and its index while that is in memory.
pub(super) struct Table {
    pub(super) meta: TableMeta,
    retired: Retired,
    pub(super) index: RefCell<Option<Rc<Index>>>,
    /// When the index was asked last.
    pub(super) used: Cell<u64>,
}

impl Table {
    pub(super) fn new(meta: TableMeta, index: Option<Index>, retired: Retired) -> Self {
        Self { meta, retired, index: RefCell::new(index.map(Rc::new)), used: Cell::new(0) }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.retired.borrow_mut().push(self.meta.id);
    }
}

/// The index in a table's footer blocks, whose checksums were found right; none when it makes no sense.
pub(super) fn read_index(meta: &TableMeta, blocks: &[u8]) -> Option<Index> {
    let bytes: Vec<u8> = blocks.chunks(BLOCK_SIZE).flat_map(|block| &block[FOOTER_HEAD..]).copied().collect();
    let mut reader = Reader::new(&bytes);
    TableMeta::decode(&mut reader).ok()?.filter(|found| found == meta)?;
    Index::decode(&mut reader).ok()?
}

/// A table on its way out.
pub(super) struct TableBuilder {
    id: TableId,
    has_presence: bool,
    block: BlockBuilder,
    /// Holes in the present block that may go on.
    open: Vec<usize>,
    /// Where the block before ends.
    end_before: Key,
    end: Key,
    blocks: u32,
    index: Index,
    /// Blocks that are complete.
    pub(super) ready: Vec<u8>,
    rows: u64,
    first: Option<Key>,
    last: Key,
    volumes: Vec<Summary>,
}

impl TableBuilder {
    pub(super) fn new(id: TableId, has_presence: bool, block_rows: usize) -> Self {
        let none = (VolumeId(0), 0);
        Self {
            id,
            has_presence,
            block: BlockBuilder::new(block_rows),
            open: Vec::new(),
            end_before: none,
            end: none,
            blocks: 0,
            index: Index::default(),
            ready: Vec::new(),
            rows: 0,
            first: None,
            last: none,
            volumes: Vec::new(),
        }
    }

    pub(super) fn id(&self) -> TableId {
        self.id
    }

    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Appends a row. Its key is not less than those before, and no row before reaches beyond its first block.
    pub(super) fn push(&mut self, row: Row, is_older: bool) {
        self.sum_up(&row, is_older);
        self.first.get_or_insert((row.volume, row.start));
        self.last = self.last.max((row.volume, row.end - 1));
        if !row.statement.is_mapped() && self.extend(&row) {
            self.end = self.end.max((row.volume, row.end));
            return;
        }
        self.rows += 1;
        if !self.block.push(row) {
            self.cut();
            let fits = self.block.push(row);
            assert!(fits, "a row fits a blank block");
        }
        if !row.statement.is_mapped() {
            self.open.push(self.block.rows().len() - 1);
        }
        self.end = self.end.max((row.volume, row.end));
    }

    /// Lets a hole go on that ends where this one begins.
    fn extend(&mut self, row: &Row) -> bool {
        let (rows, volume) = (self.block.rows(), row.volume);
        self.open.retain(|index| rows[*index].volume == volume && rows[*index].end >= row.start);
        let same =
            |index: &&usize| rows[**index].end == row.start && rows[**index].statement == row.statement;
        let Some(index) = self.open.iter().find(same).copied() else { return false };
        self.block.extend(index, row.end)
    }

    fn sum_up(&mut self, row: &Row, is_older: bool) {
        let version = row.statement.version;
        if self.volumes.last().is_none_or(|last| last.volume != row.volume) {
            self.volumes.push(Summary {
                volume: row.volume,
                least: version,
                greatest: version,
                greatest_sequence: 0,
                counted: 0,
                older: 0,
            });
        }
        if let Some(summary) = self.volumes.last_mut() {
            summary.least = summary.least.min(version);
            summary.greatest = summary.greatest.max(version);
            summary.greatest_sequence = summary.greatest_sequence.max(version.sequence);
            summary.counted += u64::from(row.statement.counts);
            summary.older += u64::from(is_older);
        }
    }

    /// Ends the present block.
    fn cut(&mut self) {
        let (bytes, rows) = self.block.finish(self.id, self.blocks);
        self.index.push(&rows, self.end_before, self.has_presence);
        self.ready.extend(bytes);
        self.blocks += 1;
        self.end_before = self.end;
        self.open.clear();
    }

    /// Ends the table; its last blocks are in `ready`. None when no row was appended.
    pub(super) fn finish(&mut self) -> Option<(TableMeta, Index)> {
        let first = self.first?;
        if !self.block.rows().is_empty() {
            self.cut();
        }
        let mut meta = TableMeta {
            id: self.id,
            data_blocks: self.blocks,
            footer_blocks: 0,
            rows: self.rows,
            first,
            last: self.last,
            volumes: std::mem::take(&mut self.volumes),
        };
        let index = std::mem::take(&mut self.index);
        let encode = |meta: &TableMeta| {
            let mut footer = Vec::new();
            meta.encode(&mut footer);
            index.encode(&mut footer);
            footer
        };
        meta.footer_blocks = encode(&meta).len().div_ceil(BLOCK_SIZE - FOOTER_HEAD) as u32;
        for (number, piece) in (self.blocks..).zip(encode(&meta).chunks(BLOCK_SIZE - FOOTER_HEAD)) {
            let mut bytes = vec![0; FOOTER_HEAD];
            bytes.extend(piece);
            bytes.resize(BLOCK_SIZE, 0);
            block::sign(self.id, number, &mut bytes);
            self.ready.extend(bytes);
        }
        Some((meta, index))
    }
}

/// Format of tables.
const FORMAT: u32 = 1;
/// The checksum.
const FOOTER_HEAD: usize = 4;
