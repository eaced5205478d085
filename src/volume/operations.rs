//! The life of each operation: range check, lock, merge, append, acknowledgement.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{LocalBoxFuture, try_join};

use super::Volume;
use super::blocks::{AppendBuilder, BLOCK_BYTES, ByteRange, Cursor, Source, is_zero};
use super::device::{AllocationRun, BlockDevice, CompareOutcome, DeviceError, DeviceGeometry};
use super::range_lock::{LockMode, RangeGuard};
use super::statistics::OperationKind;
use crate::base::buffer::AlignedBuf;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version};
use crate::store::interface::{BlockRun, BlockStore, BlockWrite, StoreError};

impl<S: BlockStore + 'static> BlockDevice for Volume<S> {
    fn geometry(&self) -> DeviceGeometry {
        let block_count = self.shared.size_bytes.get() / self.shared.logical_block_bytes;
        DeviceGeometry { logical_block_bytes: self.shared.logical_block_bytes as u32, block_count }
    }

    async fn read(&self, address: u64, count: u64) -> Result<Vec<Bytes>, DeviceError> {
        self.run(OperationKind::Read, address, count, async |range| self.read_range(range).await).await
    }

    async fn write(&self, address: u64, data: Vec<Bytes>) -> Result<(), DeviceError> {
        let length: u64 = data.iter().map(|piece| piece.len() as u64).sum();
        let count = self.whole_logical_blocks(length);
        self.run(OperationKind::Write, address, count, async |range| {
            self.put(range, Source::Data(Cursor::new(&data))).await
        })
        .await
    }

    async fn write_same(&self, address: u64, count: u64, pattern: Bytes) -> Result<(), DeviceError> {
        assert_eq!(self.whole_logical_blocks(pattern.len() as u64), 1, "the pattern is one logical block");
        self.run(OperationKind::WriteSame, address, count, async |range| {
            if is_zero(&pattern) {
                return self.put(range, Source::Zeros).await;
            }
            let block = AlignedBuf::copy_of(&pattern.repeat(BLOCK_SIZE / pattern.len())).freeze();
            for piece in pieces_of(range, WRITE_SAME_PIECE_BLOCKS) {
                self.put(piece, Source::Pattern(&block)).await?;
            }
            Ok(())
        })
        .await
    }

    async fn compare_and_write(
        &self,
        address: u64,
        compare: Bytes,
        data: Bytes,
    ) -> Result<CompareOutcome, DeviceError> {
        assert_eq!(compare.len(), data.len(), "as much to compare as to write");
        let count = self.whole_logical_blocks(compare.len() as u64);
        let outcome = self
            .run(OperationKind::CompareAndWrite, address, count, async |range| {
                self.compare_and_put(range, &compare, &data).await.map(Some)
            })
            .await?;
        // Nothing to compare is equal.
        Ok(outcome.unwrap_or(CompareOutcome::Written))
    }

    async fn unmap(&self, address: u64, count: u64) -> Result<(), DeviceError> {
        self.run(OperationKind::Unmap, address, count, async |range| self.put(range, Source::Zeros).await)
            .await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.account(OperationKind::Flush, 0, async || {
            self.shared.services.store.flush().await.map_err(|error| self.device_error(error, 0))
        })
        .await
    }

    async fn allocation(
        &self,
        address: u64,
        count: u64,
        limit: usize,
    ) -> Result<Vec<AllocationRun>, DeviceError> {
        // Not counted in the statistics: it moves no data.
        let _operation = self.shared.gate.enter().ok_or(DeviceError::Gone)?;
        let Some(range) = self.range(address, count)? else { return Ok(Vec::new()) };
        let blocks = range.blocks();
        let (first, block_count) = (BlockAddress(blocks.start), blocks.end - blocks.start);
        let runs = self.shared.services.store.allocation(self.shared.id, first, block_count, limit).await;
        let runs = runs.map_err(|error| self.device_error(error, range.start()))?;
        self.shared.gate.thawed().await;
        let logical = runs.into_iter().filter_map(|run| self.logical_run(run, address, count));
        Ok(logical.take(limit).collect())
    }
}

impl<S: BlockStore + 'static> Volume<S> {
    /// Runs `work` on the bytes of `count` logical blocks; does nothing when there are none.
    async fn run<T: Default>(
        &self,
        kind: OperationKind,
        address: u64,
        count: u64,
        work: impl AsyncFnOnce(ByteRange) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        // The product matters only for ranges that exist.
        let bytes = count.saturating_mul(self.shared.logical_block_bytes);
        self.account(kind, bytes, async || match self.range(address, count)? {
            Some(range) => work(range).await,
            None => Ok(T::default()),
        })
        .await
    }

    /// Counts `work` as an operation in flight and in the statistics, and holds its result while the
    /// volume is frozen.
    async fn account<T>(
        &self,
        kind: OperationKind,
        bytes: u64,
        work: impl AsyncFnOnce() -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let shared = &self.shared;
        let _operation = shared.gate.enter().ok_or(DeviceError::Gone)?;
        let started = shared.services.runtime.now();
        let result = work().await;
        shared.gate.thawed().await;
        let latency = shared.services.runtime.now().since(started);
        shared.statistics.borrow_mut().record(kind, bytes, latency, result.is_err());
        result
    }

    async fn read_range(&self, range: ByteRange) -> Result<Vec<Bytes>, DeviceError> {
        let pieces = self.read_blocks(range).await?;
        if range.is_whole() {
            return Ok(pieces);
        }
        let mut cursor = Cursor::new(&pieces);
        cursor.skip(range.head_offset());
        Ok(cursor.slices(range.length() as usize))
    }

    /// Puts what `source` yields into `range`. Whole blocks are appended beside other writes of the
    /// same blocks; partial ones are merged with what is there, alone.
    async fn put(&self, range: ByteRange, source: Source<'_>) -> Result<(), DeviceError> {
        let mode = if range.is_whole() { LockMode::Shared } else { LockMode::Exclusive };
        let guard = self.shared.locks.acquire(range.blocks(), mode).await;
        // What a read keeps is large, and most writes cover whole blocks: it is not part of every write.
        let edges = if range.is_whole() { Edges::NONE } else { Box::pin(self.read_edges(range)).await? };
        self.append(range, edges, source, guard).await
    }

    async fn compare_and_put(
        &self,
        range: ByteRange,
        compare: &Bytes,
        data: &Bytes,
    ) -> Result<CompareOutcome, DeviceError> {
        let guard = self.shared.locks.acquire(range.blocks(), LockMode::Exclusive).await;
        let present = self.read_blocks(range).await?;
        let mut cursor = Cursor::new(&present);
        cursor.skip(range.head_offset());
        if let Some(offset) = cursor.first_difference(compare) {
            return Ok(CompareOutcome::Miscompare { offset: offset as u64 });
        }
        let blocks = range.blocks();
        let edge = |block: u64| {
            let mut cursor = Cursor::new(&present);
            cursor.skip((block - blocks.start) as usize * BLOCK_SIZE);
            let mut edge = self.shared.services.pool.get(BLOCK_SIZE);
            cursor.copy_to(&mut edge);
            edge
        };
        let head = range.partial_head().map(|_| edge(blocks.start));
        let tail = range.partial_tail().map(|_| edge(blocks.end - 1));
        let source = Source::Data(Cursor::new(std::slice::from_ref(data)));
        self.append(range, Edges { head, tail }, source, guard).await?;
        Ok(CompareOutcome::Written)
    }

    /// Appends the blocks of `range` and waits until they are durable. `guard` is held until then.
    async fn append(
        &self,
        range: ByteRange,
        edges: Edges,
        mut source: Source<'_>,
        guard: RangeGuard,
    ) -> Result<(), DeviceError> {
        let writes = self.block_writes(range, edges, &mut source);
        self.shared.services.store.prepare(self.shared.id, &writes).await;
        self.settle(writes, guard).await.map_err(|error| self.device_error(error, range.start()))
    }

    /// Appends `writes` under the next version, at once, and gives the future of their durability.
    /// It keeps `guard` to its end, and goes on by itself when it is dropped before.
    pub(super) fn settle(
        &self,
        writes: Vec<BlockWrite>,
        guard: impl Sized + 'static,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let shared = &self.shared;
        let version = Version { epoch: shared.epoch.get(), sequence: shared.next_sequence.get() };
        shared.next_sequence.set(version.sequence + 1);
        let append = shared.services.store.append(shared.id, version, writes);
        let operation = shared.gate.extend();
        Settling {
            work: Some(Box::pin(async move {
                let result = append.await;
                drop((guard, operation));
                result
            })),
            runtime: shared.services.runtime.clone(),
        }
    }

    fn block_writes(&self, range: ByteRange, edges: Edges, source: &mut Source<'_>) -> Vec<BlockWrite> {
        let mut whole = range.blocks();
        // A hole is one change however long it is, and a writer of data has it all in memory.
        let expected = match source {
            Source::Zeros => 3,
            Source::Data(_) | Source::Pattern(_) => (whole.end - whole.start) as usize,
        };
        let mut builder = AppendBuilder::new(expected);
        if let (Some(mut head), Some(covered)) = (edges.head, range.partial_head()) {
            source.copy_to(&mut head[covered]);
            builder.push(whole.start, head.freeze());
            whole.start += 1;
        }
        whole.end -= u64::from(edges.tail.is_some());
        builder.push_blocks(whole.start, whole.end - whole.start, source, &self.shared.services.pool);
        if let (Some(mut tail), Some(covered)) = (edges.tail, range.partial_tail()) {
            source.copy_to(&mut tail[covered]);
            builder.push(whole.end, tail.freeze());
        }
        builder.finish()
    }

    /// All blocks that `range` touches.
    async fn read_blocks(&self, range: ByteRange) -> Result<Vec<Bytes>, DeviceError> {
        let blocks = range.blocks();
        let (first, count) = (BlockAddress(blocks.start), blocks.end - blocks.start);
        let read = self.shared.services.store.read(self.shared.id, first, count).await;
        read.map_err(|error| self.device_error(error, range.start()))
    }

    /// The blocks at the edges of `range` that it covers in part.
    async fn read_edges(&self, range: ByteRange) -> Result<Edges, DeviceError> {
        let blocks = range.blocks();
        let edge = async |covered: Option<_>, block| match covered {
            Some(_) => self.read_edge(range, block).await.map(Some),
            None => Ok(None),
        };
        let head = edge(range.partial_head(), blocks.start);
        let tail = edge(range.partial_tail(), blocks.end - 1);
        let (head, tail) = try_join(head, tail).await?;
        Ok(Edges { head, tail })
    }

    /// A writable copy of one block at an edge of `range`.
    async fn read_edge(&self, range: ByteRange, block: u64) -> Result<AlignedBuf, DeviceError> {
        let services = &self.shared.services;
        let read = services.store.read(self.shared.id, BlockAddress(block), 1).await;
        let pieces = read.map_err(|error| self.device_error(error, range.start()))?;
        let mut edge = services.pool.get(BLOCK_SIZE);
        Cursor::new(&pieces).copy_to(&mut edge);
        Ok(edge)
    }

    /// The bytes of `count` logical blocks from `address` on; none when `count` is zero.
    pub(super) fn range(&self, address: u64, count: u64) -> Result<Option<ByteRange>, DeviceError> {
        let logical = self.shared.logical_block_bytes;
        let end = address.checked_add(count).and_then(|end| end.checked_mul(logical));
        let end = end.filter(|end| *end <= self.shared.size_bytes.get()).ok_or(DeviceError::OutOfRange)?;
        Ok((count > 0).then(|| ByteRange::new(address * logical, end)))
    }

    fn whole_logical_blocks(&self, length_bytes: u64) -> u64 {
        let logical = self.shared.logical_block_bytes;
        assert!(length_bytes.is_multiple_of(logical), "{length_bytes} bytes are not whole logical blocks");
        length_bytes / logical
    }

    /// The part of `run` that lies in the `count` logical blocks from `address` on.
    fn logical_run(&self, run: BlockRun, address: u64, count: u64) -> Option<AllocationRun> {
        let per_block = BLOCK_BYTES / self.shared.logical_block_bytes;
        let start = (run.address.0 * per_block).max(address);
        let end = ((run.address.0 + run.count) * per_block).min(address + count);
        (start < end).then(|| AllocationRun { address: start, count: end - start, mapped: run.mapped })
    }

    /// An error of the store in the terms of the device, for an operation that starts at byte `start`.
    pub(super) fn device_error(&self, error: StoreError, start: u64) -> DeviceError {
        let logical = self.shared.logical_block_bytes;
        match error {
            StoreError::OutOfSpace => DeviceError::OutOfSpace,
            StoreError::Medium { address, .. } => {
                // The bad block may begin before the range that was asked for.
                DeviceError::Medium { address: (address.0 * BLOCK_BYTES).max(start) / logical }
            }
            StoreError::Offline => DeviceError::Offline,
            // A device may show a snapshot, which can be dropped; it takes none itself.
            StoreError::NoSuchVolume(_)
            | StoreError::NoSuchSnapshot { .. }
            | StoreError::TooManySnapshots(_)
            | StoreError::HasClones { .. }
            | StoreError::LineageTooLong(_) => DeviceError::Gone,
        }
    }
}

/// Present contents of the blocks that a write covers in part.
struct Edges {
    head: Option<AlignedBuf>,
    tail: Option<AlignedBuf>,
}

impl Edges {
    /// Of a range of whole blocks.
    const NONE: Self = Self { head: None, tail: None };
}

/// An append on its way, with the locks that it needs. When the caller drops it, it goes on as a
/// task of its own: the locks must not be released before the append has settled.
struct Settling {
    work: Option<LocalBoxFuture<'static, Result<(), StoreError>>>,
    runtime: RuntimeHandle,
}

impl Future for Settling {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else { panic!("polled after completion") };
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            // Nobody waits for the result any more; the store has noted an error by itself.
            self.runtime.spawn(Box::pin(async move {
                let _ = work.await;
            }));
        }
    }
}

/// `range` in pieces that end at multiples of `piece_blocks` blocks.
fn pieces_of(range: ByteRange, piece_blocks: u64) -> impl Iterator<Item = ByteRange> {
    let piece_bytes = piece_blocks * BLOCK_BYTES;
    let end = range.start() + range.length();
    let mut start = range.start();
    std::iter::from_fn(move || {
        let piece_end = ((start / piece_bytes + 1) * piece_bytes).min(end);
        let piece = (start < piece_end).then(|| ByteRange::new(start, piece_end));
        start = piece_end;
        piece
    })
}

/// Blocks of one append of WRITE SAME: 4 MiB, which bounds what it occupies in the store at a time.
const WRITE_SAME_PIECE_BLOCKS: u64 = 1024;
