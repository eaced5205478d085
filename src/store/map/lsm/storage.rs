//! What the tree asks of whoever keeps its tables.
//!
//! A table is written once, from its first block to its last, and never changed; it has a number that no other
//! table ever has. The pool will put each into segments. The tree knows no runtime: what it waits for are the
//! futures of this trait.

use std::future::Future;

use bytes::Bytes;

use crate::store::interface::StoreError;

/// Number of a table, which is never given twice in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TableId(pub u64);

/// Keeps tables: sequences of 4 KiB blocks.
pub trait TableStorage: 'static {
    /// Reads `count` blocks from block `first` on. Each has its own checksum (see [`super::is_intact`]); whoever
    /// can repair what fails it does so here.
    fn read(
        &self,
        table: TableId,
        first: u32,
        count: u32,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + 'static;

    /// Appends whole blocks to a table that is being written, which begins with the first of them.
    fn append(&self, table: TableId, blocks: Bytes)
    -> impl Future<Output = Result<(), StoreError>> + 'static;

    /// A table that was begun, and may not have been, is not wanted.
    fn abandon(&self, table: TableId);

    /// The table is whole: completes when it can be read. It has to be on stable media only when a manifest that
    /// names it is to be.
    fn finish(&self, table: TableId) -> impl Future<Output = Result<(), StoreError>> + 'static;
}
