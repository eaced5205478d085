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
//! **Snapshots.** Joining has made the replica's list that of the source. For each part of the volume, what the
//! snapshots behind the common point show is copied first, in ascending order, then what the blocks are now (`stages`);
//! so everything before the cursor is right in every view, and the cursor is all that has to be on record. While copies
//! are chosen and sent no snapshot is taken or dropped; a list that has changed since the stages were laid out has them
//! laid out again.
//!
//! **What the replica is in the meantime.** Blocks before the cursor are new, those behind it old, so until
//! the end it has no state of any one time. Its last consistent state is kept as a snapshot (`reconcile`).

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::coverage::END;
use super::joiner::{Joiner, StreamEnded};
use super::mutant::{self, Mutant};
use super::pace::Pace;
use super::primary::Mirror;
use super::stages::{Report, Restated, Stage, stages};
use crate::base::checksum::Crc32;
use crate::base::runtime::{Instant, RuntimeHandle, yield_now};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version};
use crate::store::interface::{
    BlockRun, BlockStore, BlockWrite, ChangeLog, ChangedRun, Changes, SnapshotStore, StoreError,
};
use crate::volume::Volume;

/// The resync of a volume's replica, for as long as this node is the volume's primary.
pub struct Resync<S: BlockStore + 'static, V: BlockStore + 'static = Mirror<S>> {
    local: Rc<S>,
    volume: Volume<V>,
    runtime: RuntimeHandle,
    pace: Rc<Pace>,
    progress: Cell<ResyncProgress>,
}

/// How far a resync is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ResyncProgress {
    /// Blocks that were to be copied when the present run began, as far as this node knows.
    pub to_copy_blocks: u64,
    /// Blocks that the replica has got in this run, those of snapshots included.
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

impl<S: SnapshotStore + ChangeLog + 'static, V: SnapshotStore + 'static> Resync<S, V> {
    /// For `volume`, which is open over a mirror that has `local` below it. No limit at first:
    /// redundancy comes before speed.
    pub fn new(local: Rc<S>, volume: Volume<V>, runtime: RuntimeHandle) -> Self {
        Self { local, volume, runtime, pace: Rc::default(), progress: Cell::default() }
    }

    /// Keeps to the limit of all resyncs that have this pace.
    #[must_use]
    pub fn paced_by(self, pace: Rc<Pace>) -> Self {
        Self { pace, ..self }
    }

    /// Copies no faster than this from now on, with all that have its pace.
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        self.pace.limit(bytes_per_second);
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
        let parts = parts(&joiner.reconciled().await?, common_point);
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
        for (blocks, common) in parts {
            for stage in stages(&self.snapshots()?, *common, blocks.start) {
                to_copy_blocks += match self.count_stage(blocks, &stage).await {
                    // Dropped meanwhile: there is less to do.
                    Err(StoreError::NoSuchSnapshot { .. }) => 0,
                    counted => counted?,
                };
            }
        }
        let copied_in_all_blocks = self.progress.get().copied_in_all_blocks;
        self.progress.set(ResyncProgress { to_copy_blocks, copied_in_all_blocks, ..Default::default() });
        Ok(())
    }

    async fn count_stage(&self, blocks: &Range<u64>, stage: &Stage) -> Result<u64, StoreError> {
        let mut counted = 0;
        let mut from = Some(BlockAddress(blocks.start));
        while let Some(address) = from.filter(|from| from.0 < blocks.end) {
            let changes = self.changed(stage, address, COUNTED_RUNS).await?;
            let within = |run: &&ChangedRun| run.address.0 < blocks.end;
            counted += changes.runs.iter().filter(within).map(|run| run.count).sum::<u64>();
            from = changes.next;
            yield_now().await;
        }
        Ok(counted)
    }

    /// The versions of the volume's snapshots here.
    fn snapshots(&self) -> Result<Vec<Version>, StoreError> {
        let entries = self.local.snapshots(self.volume.id())?;
        Ok(entries.iter().map(|entry| entry.version).collect())
    }

    /// What is news in a stage, here.
    async fn changed(&self, stage: &Stage, from: BlockAddress, limit: usize) -> Result<Changes, StoreError> {
        let volume = self.volume.id();
        match stage.at {
            None => self.local.changed_since(volume, stage.since, from, limit).await,
            Some(at) => self.local.changed_between(volume, stage.since, at, from, limit).await,
        }
    }

    fn note(&self, change: impl FnOnce(&mut ResyncProgress)) {
        let mut progress = self.progress.get();
        change(&mut progress);
        self.progress.set(progress);
    }
}

/// What the replica has, by parts of the volume, as the point through which both have the same.
fn parts(
    steps: &[super::CoverageStep],
    common_point: impl Fn(Version) -> Version,
) -> Vec<(Range<u64>, Version)> {
    let mut start = 0;
    let part = |step: &super::CoverageStep| {
        let blocks = start..step.end.0;
        start = step.end.0;
        (blocks, common_point(step.through))
    };
    steps.iter().map(part).collect()
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

/// A copy: the first block of its chunk, the number of its blocks, and the replica's answer.
type OnItsWay = (BlockAddress, u64, LocalBoxFuture<'static, Result<(), StreamEnded>>);

/// The stages of a part, and the snapshots that they were laid out for.
struct Plan {
    snapshots: Vec<Version>,
    stages: Vec<Stage>,
}

impl<S: SnapshotStore + ChangeLog + 'static, V: SnapshotStore + 'static> Run<'_, S, V> {
    /// Goes through blocks of which both have the same through `common`.
    async fn sweep(&mut self, blocks: Range<u64>, common: Version) -> Result<(), ResyncError> {
        let mut at = blocks.start;
        while at < blocks.end {
            let plan = self.plan(common, at).await?;
            at = match self.sweep_by(plan, at..blocks.end).await {
                // Dropped since the stages were laid out.
                Err((reached, ResyncError::Store(StoreError::NoSuchSnapshot { .. }))) => reached,
                Err((_, error)) => return Err(error),
                Ok(reached) => reached,
            };
        }
        Ok(())
    }

    /// Lays out the stages. Every snapshot that is there has been sent to the replica.
    async fn plan(&self, common: Version, from: u64) -> Result<Plan, ResyncError> {
        let _held = self.resync.volume.hold_snapshots().await.ok_or(ResyncError::Closed)?;
        let snapshots = self.resync.snapshots()?;
        let stages = stages(&snapshots, common, from);
        Ok(Plan { snapshots, stages })
    }

    /// Goes on as long as the plan holds; how far that was.
    async fn sweep_by(&mut self, mut plan: Plan, blocks: Range<u64>) -> Result<u64, (u64, ResyncError)> {
        let mut at = blocks.start;
        while at < blocks.end {
            let mut end = blocks.end;
            for stage in &mut plan.stages {
                if at >= stage.report.until {
                    let reported = self.joiner.report(stage.since, stage.at, BlockAddress(at)).await;
                    let changes = reported.map_err(|error| (at, error.into()))?;
                    stage.take_report(changes.runs, changes.next.map_or(u64::MAX, |next| next.0));
                }
                end = end.min(stage.report.until);
            }
            let difference = self.next_difference(at, end, &plan).await.map_err(|error| (at, error))?;
            at = match difference {
                Some(first) => {
                    let chunk = first..end.min(first.saturating_add(CHUNK_BLOCKS));
                    let behind = chunk.end;
                    if !self.copy(chunk, &plan).await.map_err(|error| (at, error))? {
                        return Ok(at);
                    }
                    behind
                }
                None => end,
            };
            self.drain(MOST_COPIES, BlockAddress(at)).await.map_err(|error| (at, error))?;
        }
        Ok(at)
    }

    /// The first block from `at` on that either side has changed, in some view.
    async fn next_difference(&self, at: u64, end: u64, plan: &Plan) -> Result<Option<u64>, ResyncError> {
        let mut nearest = end;
        for stage in &plan.stages {
            nearest = stage.report.next_from(at).map_or(nearest, |there| there.min(nearest));
            let mut from = stage.unclear_from(at);
            while from < nearest {
                let changes = self.resync.changed(stage, BlockAddress(from), 1).await?;
                let first = changes.runs.first().map(|run| run.address.0);
                // Without a change, and with nothing left to look at, there is none to the end.
                let clear = first.or(changes.next.map(|next| next.0)).unwrap_or(u64::MAX);
                stage.note_clear_until(clear);
                if let Some(first) = first {
                    nearest = nearest.min(first);
                    break;
                }
                from = clear;
                yield_now().await;
            }
        }
        Ok((nearest < end).then_some(nearest))
    }

    /// Copies what differs in `chunk`, stage by stage. False when the plan does not hold any more; then the chunk is to
    /// be begun again.
    async fn copy(&mut self, chunk: Range<u64>, plan: &Plan) -> Result<bool, ResyncError> {
        let resync = self.resync;
        let mut restated = Restated::default();
        for stage in plan.stages.iter().filter(|stage| !stage.is_clear(&chunk)) {
            self.joiner.room().await?;
            let snapshots = resync.volume.hold_snapshots().await.ok_or(ResyncError::Closed)?;
            if resync.snapshots()? != plan.snapshots {
                return Ok(false);
            }
            // What a snapshot shows does not change.
            let is_locked = stage.at.is_none() && !mutant::is(Mutant::CopyPassesWrite);
            let held = match is_locked {
                true => Some(resync.volume.hold(chunk.clone()).await.ok_or(ResyncError::Closed)?),
                false => None,
            };
            let wanted = self.differences(&chunk, stage, &restated).await?;
            let writes = self.contents(&wanted, stage.at).await?;
            if writes.is_empty() {
                continue;
            }
            let copied = match stage.at {
                None => self.joiner.copy(writes)?.boxed_local(),
                Some(at) => self.joiner.copy_history(at, writes)?.boxed_local(),
            };
            drop((held, snapshots));
            let blocks: u64 = wanted.iter().map(|run| run.end - run.start).sum();
            if stage.at.is_some() {
                restated.add(&wanted);
            }
            self.copies.push_back((BlockAddress(chunk.start), blocks, copied));
            resync.pace.keep(&resync.runtime, blocks * BLOCK_SIZE as u64).await;
        }
        Ok(true)
    }

    /// The runs of `chunk` whose blocks are to be copied.
    async fn differences(
        &self,
        chunk: &Range<u64>,
        stage: &Stage,
        restated: &Restated,
    ) -> Result<Vec<Range<u64>>, ResyncError> {
        let mut here = Report::default();
        let mut from = Some(BlockAddress(chunk.start));
        while let Some(address) = from.filter(|from| from.0 < chunk.end) {
            let changes = self.resync.changed(stage, address, CHUNK_BLOCKS as usize).await?;
            here.runs.extend(changes.runs);
            from = changes.next;
        }
        let mut mirrored_after = self.joiner.mirrored_after();
        if mutant::is(Mutant::MirroredInOlderStream) {
            mirrored_after = stage.since;
        }
        Ok(stage.wanted(chunk, &here, mirrored_after, restated))
    }

    /// What the blocks are now, or were at a snapshot.
    async fn contents(
        &mut self,
        wanted: &[Range<u64>],
        snapshot: Option<Version>,
    ) -> Result<Vec<BlockWrite>, ResyncError> {
        let mut writes = Vec::new();
        for blocks in wanted {
            let mut at = blocks.start;
            while at < blocks.end {
                let runs = self.allocation(snapshot, at..blocks.end).await?;
                let Some(last) = runs.last().map(|run| run.address.0 + run.count).filter(|end| *end > at)
                else {
                    return Err(ResyncError::Closed);
                };
                for run in runs {
                    if run.mapped {
                        self.read(snapshot, run.address, run.count, &mut writes).await?;
                    } else if !mutant::is(Mutant::HolesNotCopied) {
                        writes.push(BlockWrite::Hole { address: run.address, count: run.count });
                    }
                }
                at = last;
            }
        }
        Ok(writes)
    }

    async fn allocation(
        &self,
        snapshot: Option<Version>,
        blocks: Range<u64>,
    ) -> Result<Vec<BlockRun>, StoreError> {
        let (local, volume) = (&self.resync.local, self.resync.volume.id());
        let (first, count) = (BlockAddress(blocks.start), blocks.end - blocks.start);
        match snapshot {
            None => local.allocation(volume, first, count, count as usize).await,
            Some(at) => local.allocation_at(volume, at, first, count, count as usize).await,
        }
    }

    /// Reads mapped blocks; those that can't be read are left out, and counted.
    async fn read(
        &mut self,
        snapshot: Option<Version>,
        address: BlockAddress,
        count: u64,
        writes: &mut Vec<BlockWrite>,
    ) -> Result<(), ResyncError> {
        let (local, volume) = (self.resync.local.clone(), self.resync.volume.id());
        let read = async |address: BlockAddress, count: u64| match snapshot {
            None => local.read(volume, address, count).await,
            Some(at) => local.read_at(volume, at, address, count).await,
        };
        match read(address, count).await {
            Ok(pieces) => push_blocks(address, &pieces, writes),
            Err(StoreError::Medium { .. }) if count > 1 => {
                for block in address.0..address.0 + count {
                    let block = BlockAddress(block);
                    match read(block, 1).await {
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
