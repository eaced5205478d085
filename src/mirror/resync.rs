//! Bringing a replica up to date: copying what differs, in the order of addresses, while hosts write.
//!
//! Both have the same through the *common point* of what the replica has and the volume's history. What
//! may differ is what either has beyond it: the source's newer versions, and what the replica alone has,
//! which is void. Of these blocks those are copied whose versions are not the same on both: they become
//! what they are here, holes included. A copy holds its blocks from the reading to the sending, so it
//! passes no write of them (rule 19 of docs/protocol.md). What is newer than the beginning of the stream
//! needs no copy: it goes over the same stream as a write.
//!
//! Guarantees: nothing is counted as copied before the replica has it on stable media; what was passed is
//! on the replica's record, so another [`Resync::run`], over another stream, in another life of either
//! side, goes on from there; memory is bounded by a report, a chunk and the window; hosts wait for no more
//! than the reading of [`CHUNK_BLOCKS`].
//!
//! A block that can't be read here is not copied: what the replica has may be good. The resync goes on, and
//! fails in the end.
//!
//! **What the replica is in the meantime.** Blocks before the cursor are new, those behind it old, so until
//! the end it has no state of any one time, and nobody can go on from it but an operator who forces it.
//! To keep its last consistent state, the target's store would have to keep the versions that are
//! overwritten: a snapshot taken before the first message after `Join`, dropped with the record
//! [`Coverage::Whole`](super::Coverage::Whole). Stores have no snapshots yet, so this is left out.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::coverage::END;
use super::joiner::{Joiner, StreamEnded};
use super::mutant::{self, Mutant};
use super::primary::Mirror;
use crate::base::checksum::Crc32;
use crate::base::runtime::{Instant, RuntimeHandle, yield_now};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version};
use crate::store::interface::{BlockStore, BlockWrite, ChangeLog, ChangedRun, StoreError};
use crate::volume::Volume;

/// The resync of a volume's replica, for as long as this node is the volume's primary.
pub struct Resync<S: BlockStore + 'static, V: BlockStore + 'static = Mirror<S>> {
    local: Rc<S>,
    volume: Volume<V>,
    runtime: RuntimeHandle,
    limit_bytes_per_second: Cell<Option<u64>>,
    /// When the next copy may go out at that limit.
    next_copy: Cell<Instant>,
    progress: Cell<ResyncProgress>,
}

/// How far a resync is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ResyncProgress {
    /// Blocks that were to be copied when the present run began, as far as this node knows.
    pub to_copy_blocks: u64,
    /// Blocks that the replica has got in this run.
    pub copied_blocks: u64,
    /// Blocks that the replica has got in all runs.
    pub copied_in_all_blocks: u64,
    /// Every block before this one is done.
    pub cursor: BlockAddress,
    /// Blocks that can't be read here.
    pub unreadable_blocks: u64,
    /// Speed of the present run so far.
    pub bytes_per_second: u64,
}

/// Why a resync did not reach its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResyncError {
    /// The stream has ended: it goes on over the next one.
    #[error(transparent)]
    StreamEnded(#[from] StreamEnded),
    /// The volume was closed.
    #[error("the volume is closed")]
    Closed,
    /// The local store.
    #[error("the source of the resync: {0}")]
    Store(#[from] StoreError),
    /// Everything else is copied.
    #[error("{count} blocks can't be read at the source, the first is {}", first.0)]
    Unreadable {
        /// The first such block.
        first: BlockAddress,
        /// How many there are.
        count: u64,
    },
}

impl<S: BlockStore + ChangeLog + 'static, V: BlockStore + 'static> Resync<S, V> {
    /// For `volume`, which is open over a mirror that has `local` below it. No limit at first:
    /// redundancy comes before speed.
    pub fn new(local: Rc<S>, volume: Volume<V>, runtime: RuntimeHandle) -> Self {
        Self {
            local,
            volume,
            runtime,
            limit_bytes_per_second: Cell::new(None),
            next_copy: Cell::default(),
            progress: Cell::default(),
        }
    }

    /// Copies no faster than this from now on.
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        self.limit_bytes_per_second.set(bytes_per_second.map(|limit| limit.max(1)));
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> ResyncProgress {
        self.progress.get()
    }

    /// Brings `joiner` up to date. `common_point` says through which version a replica that has everything
    /// through another one has the same as this node; the least version where that is not known. Complete
    /// when the replica has put it on record. Dropping it stops it.
    ///
    /// # Errors
    /// As in [`ResyncError`]; what was copied stays copied.
    pub async fn run(
        &self,
        joiner: &Joiner<S>,
        common_point: impl Fn(Version) -> Version,
    ) -> Result<(), ResyncError> {
        let (mark, durable) = self.volume.append_mark().ok_or(ResyncError::Closed)?;
        drop(durable); // it goes on by itself
        joiner.until_sent(mark).await?;
        let parts = parts(joiner, common_point);
        self.begin_counting(&parts).await?;
        let began = self.runtime.now();
        let mut run = Run {
            resync: self,
            joiner,
            began,
            copies: VecDeque::new(),
            told: BlockAddress(0),
            first_unreadable: None,
        };
        for (blocks, since) in parts {
            run.sweep(blocks, since).await?;
        }
        run.drain(0, END).await?;
        match run.first_unreadable {
            Some(first) => {
                Err(ResyncError::Unreadable { first, count: self.progress.get().unreadable_blocks })
            }
            None => Ok(joiner.finish().await?),
        }
    }

    /// Counts what is to be copied, as far as this node can tell.
    async fn begin_counting(&self, parts: &[(Range<u64>, Version)]) -> Result<(), ResyncError> {
        let mut to_copy_blocks = 0;
        for (blocks, since) in parts {
            let mut from = Some(BlockAddress(blocks.start));
            while let Some(address) = from.filter(|from| from.0 < blocks.end) {
                let changes =
                    self.local.changed_since(self.volume.id(), *since, address, COUNTED_RUNS).await?;
                let within = |run: &&ChangedRun| run.address.0 < blocks.end;
                to_copy_blocks += changes.runs.iter().filter(within).map(|run| run.count).sum::<u64>();
                from = changes.next;
                yield_now().await;
            }
        }
        let copied_in_all_blocks = self.progress.get().copied_in_all_blocks;
        self.progress.set(ResyncProgress { to_copy_blocks, copied_in_all_blocks, ..Default::default() });
        Ok(())
    }

    fn note(&self, change: impl FnOnce(&mut ResyncProgress)) {
        let mut progress = self.progress.get();
        change(&mut progress);
        self.progress.set(progress);
    }

    /// Waits until a copy of so many bytes may go out.
    async fn pace(&self, bytes: u64) {
        let Some(limit) = self.limit_bytes_per_second.get() else { return };
        let now = self.runtime.now();
        let at = self.next_copy.get().max(now);
        let takes_ns = u128::from(bytes) * 1_000_000_000 / u128::from(limit);
        self.next_copy.set(Instant(at.0.saturating_add(u64::try_from(takes_ns).unwrap_or(u64::MAX))));
        let wait: Duration = at.since(now);
        if !wait.is_zero() {
            self.runtime.sleep(wait).await;
        }
    }
}

/// What the replica has, by parts of the volume, as the point through which both have the same.
fn parts<S>(joiner: &Joiner<S>, common_point: impl Fn(Version) -> Version) -> Vec<(Range<u64>, Version)> {
    let mut start = 0;
    let part = |step: &super::CoverageStep| {
        let blocks = start..step.end.0;
        start = step.end.0;
        (blocks, common_point(step.through))
    };
    joiner.steps().iter().map(part).collect()
}

/// One run.
struct Run<'a, S: BlockStore + 'static, V: BlockStore + 'static> {
    resync: &'a Resync<S, V>,
    joiner: &'a Joiner<S>,
    began: Instant,
    /// Copies on their way, in the order of addresses.
    copies: VecDeque<OnItsWay>,
    /// The cursor that the replica was told.
    told: BlockAddress,
    first_unreadable: Option<BlockAddress>,
}

/// A copy: its first block, the number of its blocks, and the replica's answer.
type OnItsWay = (BlockAddress, u64, LocalBoxFuture<'static, Result<(), StreamEnded>>);

/// What the replica has beyond the common point in a part of the volume.
#[derive(Default)]
struct Report {
    runs: Vec<ChangedRun>,
    /// Behind the last block that it speaks of.
    until: u64,
}

impl Report {
    fn at(&self, block: u64) -> Option<&ChangedRun> {
        let index = self.runs.partition_point(|run| run.end().0 <= block);
        self.runs.get(index).filter(|run| run.address.0 <= block)
    }

    fn next_from(&self, block: u64) -> Option<u64> {
        let index = self.runs.partition_point(|run| run.end().0 <= block);
        self.runs.get(index).map(|run| run.address.0.max(block))
    }
}

impl<S: BlockStore + ChangeLog + 'static, V: BlockStore + 'static> Run<'_, S, V> {
    /// Goes through blocks of which both have the same through `since`.
    async fn sweep(&mut self, blocks: Range<u64>, since: Version) -> Result<(), ResyncError> {
        let mut at = blocks.start;
        let mut report = Report { runs: Vec::new(), until: at };
        while at < blocks.end {
            if at >= report.until {
                let changes = self.joiner.report(since, BlockAddress(at)).await?;
                report = Report { runs: changes.runs, until: changes.next.map_or(u64::MAX, |next| next.0) };
                if mutant::is(Mutant::ReplicaChangesKept) {
                    report.runs.clear();
                }
                if mutant::is(Mutant::CommonPointByOrder) {
                    report.runs.retain(|run| run.version > since);
                }
            }
            let end = blocks.end.min(report.until);
            at = match self.next_difference(at, end, since, &report).await? {
                Some(first) => {
                    let chunk = first..end.min(first.saturating_add(CHUNK_BLOCKS));
                    let behind = chunk.end;
                    self.copy(chunk, since, &report).await?;
                    behind
                }
                None => end,
            };
            self.drain(MOST_COPIES, BlockAddress(at)).await?;
        }
        Ok(())
    }

    /// The first block from `at` on that either side has changed.
    async fn next_difference(
        &self,
        at: u64,
        end: u64,
        since: Version,
        report: &Report,
    ) -> Result<Option<u64>, ResyncError> {
        let there = report.next_from(at).filter(|block| *block < end);
        let end = there.unwrap_or(end);
        let mut from = Some(BlockAddress(at));
        while let Some(address) = from.filter(|from| from.0 < end) {
            let volume = self.resync.volume.id();
            let changes = self.resync.local.changed_since(volume, since, address, 1).await?;
            match changes.runs.first() {
                Some(run) if run.address.0 < end => return Ok(Some(run.address.0)),
                Some(_) => break,
                None => from = changes.next,
            }
            yield_now().await;
        }
        Ok(there)
    }

    /// Copies what differs in `chunk`.
    async fn copy(&mut self, chunk: Range<u64>, since: Version, report: &Report) -> Result<(), ResyncError> {
        let resync = self.resync;
        self.joiner.room().await?;
        let is_locked = !mutant::is(Mutant::CopyPassesWrite);
        let held = match is_locked {
            true => Some(resync.volume.hold(chunk.clone()).await.ok_or(ResyncError::Closed)?),
            false => None,
        };
        let wanted = self.differences(chunk, since, report).await?;
        let writes = self.contents(&wanted).await?;
        let blocks: u64 = wanted.iter().map(|run| run.end - run.start).sum();
        let (Some(first), false) = (wanted.first(), writes.is_empty()) else { return Ok(()) };
        let copied = self.joiner.copy(writes)?;
        drop(held);
        self.copies.push_back((BlockAddress(first.start), blocks, copied.boxed_local()));
        resync.pace(blocks * BLOCK_SIZE as u64).await;
        Ok(())
    }

    /// The runs of `chunk` whose blocks are to be copied. They are held.
    async fn differences(
        &self,
        chunk: Range<u64>,
        since: Version,
        report: &Report,
    ) -> Result<Vec<Range<u64>>, ResyncError> {
        let mut here = Report::default();
        let mut from = Some(BlockAddress(chunk.start));
        while let Some(address) = from.filter(|from| from.0 < chunk.end) {
            let volume = self.resync.volume.id();
            let limit = CHUNK_BLOCKS as usize;
            let changes = self.resync.local.changed_since(volume, since, address, limit).await?;
            here.runs.extend(changes.runs);
            from = changes.next;
        }
        let mut mirrored_after = self.joiner.mirrored_after();
        if mutant::is(Mutant::MirroredInOlderStream) {
            mirrored_after = since;
        }
        let mut wanted: Vec<Range<u64>> = Vec::new();
        for block in chunk {
            let (source, target) = (here.at(block), report.at(block));
            let differs = match (source, target) {
                (None, None) => false,
                (None, Some(_)) => true,
                (Some(source), _) if source.version > mirrored_after => false,
                (Some(source), target) => target.is_none_or(|target| target.version != source.version),
            };
            match wanted.last_mut() {
                _ if !differs => {}
                Some(last) if last.end == block => last.end += 1,
                _ => wanted.push(block..block + 1),
            }
        }
        Ok(wanted)
    }

    /// What the blocks are now.
    async fn contents(&mut self, wanted: &[Range<u64>]) -> Result<Vec<BlockWrite>, ResyncError> {
        let (resync, volume) = (self.resync, self.resync.volume.id());
        let mut writes = Vec::new();
        for blocks in wanted {
            let mut at = blocks.start;
            while at < blocks.end {
                let count = blocks.end - at;
                let runs = resync.local.allocation(volume, BlockAddress(at), count, count as usize).await?;
                let Some(last) = runs.last().map(|run| run.address.0 + run.count).filter(|end| *end > at)
                else {
                    return Err(ResyncError::Closed);
                };
                for run in runs {
                    if run.mapped {
                        self.read(run.address, run.count, &mut writes).await?;
                    } else if !mutant::is(Mutant::HolesNotCopied) {
                        writes.push(BlockWrite::Hole { address: run.address, count: run.count });
                    }
                }
                at = last;
            }
        }
        Ok(writes)
    }

    /// Reads mapped blocks; those that can't be read are left out, and counted.
    async fn read(
        &mut self,
        address: BlockAddress,
        count: u64,
        writes: &mut Vec<BlockWrite>,
    ) -> Result<(), ResyncError> {
        let (local, volume) = (&self.resync.local, self.resync.volume.id());
        match local.read(volume, address, count).await {
            Ok(pieces) => push_blocks(address, &pieces, writes),
            Err(StoreError::Medium { .. }) if count > 1 => {
                for block in address.0..address.0 + count {
                    let block = BlockAddress(block);
                    match local.read(volume, block, 1).await {
                        Ok(pieces) => push_blocks(block, &pieces, writes),
                        Err(StoreError::Medium { .. }) => self.note_unreadable(block),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Err(StoreError::Medium { .. }) => self.note_unreadable(address),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn note_unreadable(&mut self, block: BlockAddress) {
        self.first_unreadable.get_or_insert(block);
        self.resync.note(|progress| progress.unreadable_blocks += 1);
    }

    /// Takes the answers that there are, and waits for more while over `most` copies are on their way.
    /// `at` is how far the sweep is.
    async fn drain(&mut self, most: usize, at: BlockAddress) -> Result<(), ResyncError> {
        while let Some((_, _, copied)) = self.copies.front_mut() {
            let answered = copied.as_mut().now_or_never();
            match answered {
                Some(outcome) => outcome?,
                None if self.copies.len() > most => {
                    if let Some((_, _, copied)) = self.copies.front_mut() {
                        copied.await?;
                    }
                }
                None => break,
            }
            let blocks = self.copies.front().map_or(0, |(_, blocks, _)| *blocks);
            self.copies.pop_front();
            self.count(blocks);
        }
        let waiting = self.copies.front().map(|(first, ..)| *first);
        let mut cursor = waiting.map_or(at, |first| first.min(at));
        if mutant::is(Mutant::CursorBeforeCopies) {
            cursor = at;
        }
        // A block that could not be read has not been passed.
        cursor = self.first_unreadable.map_or(cursor, |first| first.min(cursor));
        self.resync.note(|progress| progress.cursor = cursor);
        let is_news = cursor.0.saturating_sub(self.told.0) >= TOLD_EVERY_BLOCKS && cursor < END;
        if is_news {
            self.told = cursor;
            self.joiner.passed(cursor);
            // What a store has for sure after a crash ends before its newest version: so that this is not the one under
            // which blocks were copied. None when the volume was closed, which shows elsewhere.
            drop(self.resync.volume.append_mark());
        }
        Ok(())
    }

    fn count(&self, blocks: u64) {
        let elapsed_ms = self.resync.runtime.now().since(self.began).as_millis().max(1);
        self.resync.note(|progress| {
            progress.copied_blocks += blocks;
            progress.copied_in_all_blocks += blocks;
            let bytes = u128::from(progress.copied_blocks) * BLOCK_SIZE as u128;
            progress.bytes_per_second = u64::try_from(bytes * 1000 / elapsed_ms).unwrap_or(u64::MAX);
        });
    }
}

fn push_blocks(address: BlockAddress, pieces: &[bytes::Bytes], writes: &mut Vec<BlockWrite>) {
    let mut block = address;
    for piece in pieces {
        for offset in (0..piece.len()).step_by(BLOCK_SIZE) {
            let data = piece.slice(offset..offset + BLOCK_SIZE);
            let checksum = Crc32::of(&data);
            writes.push(BlockWrite::Data { address: block, data, checksum });
            block = block.offset(1);
        }
    }
}

/// Blocks that are held and copied together, at most: 256 KiB.
pub const CHUNK_BLOCKS: u64 = 64;
/// Copies on their way, at most; the window bounds their bytes.
const MOST_COPIES: usize = 256;
/// The replica is told how far it is every so many blocks of the volume that were passed. With what the
/// window holds, that is what a stream that breaks costs.
const TOLD_EVERY_BLOCKS: u64 = 256;
const COUNTED_RUNS: usize = 4096;
