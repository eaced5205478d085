//! Tests of the tree: storage in memory whose reads complete in random order, and what is measured.

mod amplification;
pub(crate) mod histories;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::{TableId, TableStorage};
use crate::base::runtime::RuntimeHandle;
use crate::base::units::BLOCK_SIZE;
use crate::sim::random::Random;
use crate::store::interface::StoreError;

/// Tables in memory.
#[derive(Clone, Default)]
pub(super) struct MemoryStorage {
    tables: Rc<RefCell<BTreeMap<TableId, Vec<u8>>>>,
    /// Blocks that give an error, and blocks that give something else.
    bad: Rc<RefCell<BTreeSet<(TableId, u32)>>>,
    wrong: Rc<RefCell<BTreeSet<(TableId, u32)>>>,
    written_blocks: Rc<Cell<u64>>,
    /// Where reads wait.
    runtime: Option<(RuntimeHandle, Rc<Random>)>,
}

impl MemoryStorage {
    fn wait(&self) -> impl Future<Output = ()> + 'static {
        let sleep = self
            .runtime
            .as_ref()
            .filter(|(_, random)| random.coin())
            .map(|(runtime, random)| runtime.sleep(Duration::from_micros(random.below(200))));
        async move {
            if let Some(sleep) = sleep {
                sleep.await;
            }
        }
    }
}

impl TableStorage for MemoryStorage {
    fn read(
        &self,
        table: TableId,
        first: u32,
        count: u32,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + 'static {
        let (this, wait) = (self.clone(), self.wait());
        async move {
            wait.await;
            let blocks = first..first + count;
            if blocks.clone().any(|block| this.bad.borrow().contains(&(table, block))) {
                return Err(StoreError::OutOfSpace); // no error that a lookup may give
            }
            let tables = this.tables.borrow();
            let bytes = &tables[&table][first as usize * BLOCK_SIZE..(first + count) as usize * BLOCK_SIZE];
            let mut bytes = bytes.to_vec();
            for (index, block) in blocks.enumerate() {
                if this.wrong.borrow().contains(&(table, block)) {
                    bytes[index * BLOCK_SIZE + 99] ^= 4;
                }
            }
            Ok(Bytes::from(bytes))
        }
    }

    fn append(
        &self,
        table: TableId,
        blocks: Bytes,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let (this, wait) = (self.clone(), self.wait());
        this.written_blocks.set(this.written_blocks.get() + (blocks.len() / BLOCK_SIZE) as u64);
        this.tables.borrow_mut().entry(table).or_default().extend_from_slice(&blocks);
        async move {
            wait.await;
            Ok(())
        }
    }

    fn abandon(&self, table: TableId) {
        self.tables.borrow_mut().remove(&table);
    }

    fn finish(&self, _: TableId) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let wait = self.wait();
        async move {
            wait.await;
            Ok(())
        }
    }
}
