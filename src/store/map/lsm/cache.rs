//! Blocks of tables in memory: a cache of bounded size, and what one lookup or merge holds on to.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::{Rc, Weak};

use bytes::Bytes;

use super::block;
use super::index::Index;
use super::statement::Row;
use super::storage::{TableId, TableStorage};
use super::sweep::{Blocks, Missing};
use super::table::{self, Table};
use crate::base::units::BLOCK_SIZE;
use crate::store::interface::StoreError;

type BlockKey = (TableId, u32);

/// Blocks and indexes that were read, up to a size; the one that was not asked for the longest goes first.
pub(super) struct Cache {
    capacity: usize,
    index_capacity: usize,
    blocks: HashMap<BlockKey, (Bytes, u64)>,
    by_use: BTreeMap<u64, BlockKey>,
    clock: u64,
    /// Tables whose indexes are in memory, and how many bytes those take.
    indexed: VecDeque<(Weak<Table>, usize)>,
    index_bytes: usize,
    /// Reads so far, in blocks of data and in indexes.
    pub(super) block_reads: u64,
    pub(super) index_reads: u64,
}

impl Cache {
    pub(super) fn new(capacity: usize, index_capacity: usize) -> Self {
        Self {
            capacity,
            index_capacity,
            blocks: HashMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            indexed: VecDeque::new(),
            index_bytes: 0,
            block_reads: 0,
            index_reads: 0,
        }
    }

    fn get(&mut self, key: BlockKey) -> Option<Bytes> {
        let (bytes, used) = self.blocks.get_mut(&key)?;
        self.by_use.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.by_use.insert(self.clock, key);
        Some(bytes.clone())
    }

    fn put(&mut self, key: BlockKey, bytes: Bytes) {
        if self.capacity < BLOCK_SIZE || self.get(key).is_some() {
            return;
        }
        while (self.blocks.len() + 1) * BLOCK_SIZE > self.capacity {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.blocks.remove(&oldest);
        }
        self.clock += 1;
        self.blocks.insert(key, (bytes, self.clock));
        self.by_use.insert(self.clock, key);
    }

    /// A table has its index in memory now: others give theirs up when that is too much.
    pub(super) fn note_index(&mut self, table: &Rc<Table>) {
        let bytes = table.index.borrow().as_ref().map_or(0, |index| index.memory());
        self.clock += 1;
        table.used.set(self.clock);
        self.indexed.push_back((Rc::downgrade(table), bytes));
        self.index_bytes += bytes;
        let mut spared = self.indexed.len();
        while self.index_bytes > self.index_capacity && self.indexed.len() > 1 {
            let Some((weak, bytes)) = self.indexed.pop_front() else { break };
            let Some(other) = weak.upgrade() else {
                self.index_bytes -= bytes;
                continue;
            };
            // Asked since it stood here last: it gets another turn.
            if other.used.replace(0) > 0 && spared > 0 {
                spared -= 1;
                self.indexed.push_back((weak, bytes));
                continue;
            }
            other.index.take();
            self.index_bytes -= bytes;
        }
    }

    /// Bytes in memory: blocks, indexes.
    pub(super) fn memory(&self) -> (usize, usize) {
        (self.blocks.len() * BLOCK_SIZE, self.index_bytes)
    }
}

/// What one lookup or merge has read.
pub(super) struct Pins {
    cache: Rc<RefCell<Cache>>,
    rows: RefCell<HashMap<BlockKey, Rc<[Row]>>>,
    /// Blocks that were read, of which not all rows may be wanted.
    blocks: RefCell<HashMap<BlockKey, Bytes>>,
    indexes: RefCell<HashMap<TableId, Rc<Index>>>,
    /// Whether what it reads goes to the cache.
    is_cached: bool,
}

impl Pins {
    pub(super) fn new(cache: Rc<RefCell<Cache>>, is_cached: bool) -> Self {
        let (rows, blocks, indexes) = Default::default();
        Self { cache, rows, blocks, indexes, is_cached }
    }

    /// Forgets rows when there are many: whoever uses them holds them.
    pub(super) fn bound_rows(&self) {
        if self.rows.borrow().len() >= MAX_PINNED {
            self.rows.borrow_mut().clear();
        }
    }

    /// Reads what is missing.
    pub(super) async fn fetch<S: TableStorage>(
        &self,
        storage: &S,
        missing: &Missing,
    ) -> Result<(), Unreadable> {
        match missing {
            Missing::Index(table) => {
                let meta = &table.meta;
                let reading = storage.read(meta.id, meta.data_blocks, meta.footer_blocks);
                let bytes = reading.await.map_err(|error| Unreadable { block: None, error: Some(error) })?;
                let numbers = meta.data_blocks..;
                let is_good = numbers
                    .zip(bytes.chunks(BLOCK_SIZE))
                    .all(|(number, block)| block::is_intact(meta.id, number, block));
                let index = table::read_index(meta, &bytes).filter(|_| is_good);
                let index = Rc::new(index.ok_or(Unreadable { block: None, error: None })?);
                self.indexes.borrow_mut().insert(meta.id, index.clone());
                if table.index.replace(Some(index)).is_none() {
                    self.cache.borrow_mut().note_index(table);
                }
                self.cache.borrow_mut().index_reads += 1;
                Ok(())
            }
            Missing::Blocks(table, wanted) => {
                let id = table.meta.id;
                let unreadable = |error| Unreadable { block: Some(wanted.start), error };
                let reading = storage.read(id, wanted.start, wanted.len() as u32);
                let bytes = match reading.await {
                    Ok(bytes) => bytes,
                    // The one that is needed may be readable by itself.
                    Err(_) if wanted.len() > 1 => {
                        storage.read(id, wanted.start, 1).await.map_err(|error| unreadable(Some(error)))?
                    }
                    Err(error) => return Err(unreadable(Some(error))),
                };
                self.cache.borrow_mut().block_reads += 1;
                for (offset, number) in wanted.clone().enumerate() {
                    let block = (offset + 1) * BLOCK_SIZE <= bytes.len();
                    let block = block.then(|| bytes.slice(offset * BLOCK_SIZE..(offset + 1) * BLOCK_SIZE));
                    let block = block.filter(|block| block::is_intact(id, number, block));
                    match block.and_then(|block| Some((block::decode(&block)?, block))) {
                        Some((_, block)) if self.is_cached => {
                            // A copy: the block may be a slice of a long read.
                            self.cache.borrow_mut().put((id, number), Bytes::copy_from_slice(&block));
                            self.blocks.borrow_mut().insert((id, number), block);
                        }
                        Some((rows, _)) => {
                            self.rows.borrow_mut().insert((id, number), rows.into());
                        }
                        None if number == wanted.start => return Err(unreadable(None)),
                        None => break,
                    }
                }
                Ok(())
            }
        }
    }
}

impl Pins {
    fn block(&self, key: BlockKey) -> Option<Bytes> {
        if let Some(bytes) = self.blocks.borrow().get(&key) {
            return Some(bytes.clone());
        }
        let bytes = self.cache.borrow_mut().get(key)?;
        self.blocks.borrow_mut().insert(key, bytes.clone());
        Some(bytes)
    }

    /// The rows of a data block that are about an address; none when the block has to be read first.
    pub(super) fn rows_about(&self, table: &Table, number: u32, address: u64) -> Option<Vec<Row>> {
        block::rows_about(&self.block((table.meta.id, number))?, address)
    }
}

/// Blocks that a merge holds on to beside those that it is at.
const MAX_PINNED: usize = 512;

/// A part of a table can't be read, or is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The data block; none for the footer.
    pub(super) block: Option<u32>,
    /// What the storage said.
    pub(super) error: Option<StoreError>,
}

impl Blocks for Pins {
    fn rows(&self, table: &Rc<Table>, number: u32) -> Option<Rc<[Row]>> {
        let key = (table.meta.id, number);
        if let Some(rows) = self.rows.borrow().get(&key) {
            return Some(rows.clone());
        }
        let rows: Rc<[Row]> = block::decode(&self.block(key)?)?.into();
        self.rows.borrow_mut().insert(key, rows.clone());
        Some(rows)
    }

    fn index(&self, table: &Rc<Table>) -> Option<Rc<Index>> {
        if let Some(index) = self.indexes.borrow().get(&table.meta.id) {
            return Some(index.clone());
        }
        table.used.set(1);
        let index = table.index.borrow().clone()?;
        self.indexes.borrow_mut().insert(table.meta.id, index.clone());
        Some(index)
    }
}
