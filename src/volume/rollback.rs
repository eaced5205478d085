//! Rolling a volume back: from one version on it shows what it was at a snapshot.
//!
//! How:
//! 1. With no write in flight, a snapshot of what there is (so that a rollback can be undone) and behind it the *mark*, a
//!    snapshot whose record names the one to go back to ([`rollback_record`]), go into the volume's chain. From the mark on
//!    the volume shows the older state, on both replicas at one cut: the store sees to that.
//! 2. Meanwhile hosts read and write, what the snapshots differ in is written again, as it shows itself: ordinary writes, each
//!    under the lock of its blocks.
//! 3. When all of that is durable, the mark is dropped.
//!
//! What is to be written is told by the two snapshots, which are the same on both replicas, and not by what has been written
//! since: entries that are newer than the mark may be copies that a resync, or healing, has put there on one side alone. So
//! whoever serves the volume anew begins the writing anew, and the mark goes only when one of them has done all of it
//! ([`Mutant::RestoreTrustsVersions`]).
//!
//! Until the mark is gone no snapshot is taken: its view would not be what the volume shows.
//!
//! [`rollback_record`]: crate::store::interface::rollback_record

use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures::future::join_all;

use super::blocks::{AppendBuilder, BLOCK_BYTES};
use super::history::SnapshotError;
use super::mutant::{self, Mutant};
use super::range_lock::LockMode;
use super::snapshot::{SnapshotKind, SnapshotRecord};
use super::{Shared, Volume};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version};
use crate::store::interface::{BlockWrite, SnapshotEntry, SnapshotStore, StoreError, rollback_of};

/// A rollback that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// The snapshot that the volume shows.
    pub to: Version,
    /// The mark.
    pub mark: Version,
}

impl<S: SnapshotStore + 'static> Volume<S> {
    /// Has the volume show what it was at the snapshot `to`, from some version on, and takes a snapshot of what it is before
    /// that, with this record; that one's version. What follows goes on by itself.
    ///
    /// # Errors
    /// As in [`SnapshotError`]; after an error of the store it may come about all the same, as any write.
    pub async fn roll_back(&self, to: Version, before: &SnapshotRecord) -> Result<Version, SnapshotError> {
        let _operation = self.shared.gate.enter().ok_or(SnapshotError::Closed)?;
        let turn = self.shared.snapshot_turn.acquire(0..1, LockMode::Exclusive).await;
        let target = self.record_of(to)?;
        self.check_new(before)?;
        // A store that keeps no versions can't: it says so.
        let (store, id) = (&self.shared.services.store, self.shared.id);
        store.changed_between(id, Version::default(), to, BlockAddress(0), 1).await?;
        // Nothing is between the two snapshots but what was never acknowledged.
        let blocks = self.shared.locks.acquire(0..u64::MAX, LockMode::Exclusive).await;
        let kept = self.settle(vec![statement(before)], ());
        let version = self.latest_version();
        kept.await?;
        let mark = SnapshotRecord {
            id: before.id,
            name: target.name,
            taken_unix_ms: before.taken_unix_ms,
            protected_until_unix_ms: None,
            kind: SnapshotKind::Rollback { to },
            group: None,
        };
        let marked = self.settle(vec![statement(&mark)], (turn, blocks));
        // Whether or not anybody waits for the mark: it begins when that has its turn.
        self.start_restoring();
        marked.await?;
        Ok(version)
    }

    /// Goes on with a rollback that is under way, if one is, as a task: to be called when the volume's service begins.
    pub fn go_on_with_rollback(&self) {
        if !matches!(self.rollback(), Ok(None)) {
            self.start_restoring();
        }
    }

    fn start_restoring(&self) {
        if self.shared.is_restoring.replace(true) {
            return;
        }
        let (shared, runtime) = (Rc::downgrade(&self.shared), self.shared.services.runtime.clone());
        let clock = runtime.clone();
        runtime.spawn(Box::pin(async move {
            while let Some(pause) = Self::restore_once(&shared).await {
                clock.sleep(pause).await;
            }
        }));
    }

    /// The rollback that is under way, if one is.
    ///
    /// # Errors
    /// When the store does not say.
    pub fn rollback(&self) -> Result<Option<Rollback>, StoreError> {
        let entries = self.shared.services.store.snapshots(self.shared.id)?;
        let found = |entry: &SnapshotEntry| {
            rollback_of(&entry.record).map(|(to, _)| Rollback { to, mark: entry.version })
        };
        Ok(entries.iter().rev().find_map(found))
    }

    /// How much of a rollback is done: blocks of the volume that were looked through, and all of them.
    #[must_use]
    pub fn rollback_progress(&self) -> Option<(u64, u64)> {
        let shared = &self.shared;
        shared.is_restoring.get().then(|| (shared.restored_until.get(), self.size_bytes() / BLOCK_BYTES))
    }

    /// When to try again; none when there is nothing more to do.
    async fn restore_once(shared: &Weak<Shared<S>>) -> Option<Duration> {
        let volume = Self { shared: shared.upgrade()? };
        match volume.restore().await {
            Ok(Restored::All) => Some(Duration::ZERO),
            Ok(Restored::Nothing) | Err(SnapshotError::Closed) => None,
            // A disk may come back, or a host may write what can't be read.
            Err(SnapshotError::Store(StoreError::Medium { .. })) => Some(UNREADABLE_PAUSE),
            Err(_) => Some(PAUSE),
        }
    }

    /// Writes again what the rollback shows, and ends it.
    async fn restore(&self) -> Result<Restored, SnapshotError> {
        let shared = &self.shared;
        let (id, store) = (shared.id, &shared.services.store);
        let rollback = {
            let _operation = shared.gate.enter().ok_or(SnapshotError::Closed)?;
            let _turn = shared.snapshot_turn.acquire(0..1, LockMode::Shared).await;
            let rollback = self.rollback()?;
            // Whoever begins one has the turn alone when he looks at this.
            shared.is_restoring.set(rollback.is_some());
            rollback
        };
        let Some(Rollback { to, mark }) = rollback else { return Ok(Restored::Nothing) };
        let (mut next, mut unreadable) = (Some(BlockAddress(0)), None);
        while let Some(from) = next {
            shared.restored_until.set(from.0);
            let changes = store.changed_between(id, to, mark, from, RUNS_AT_A_TIME).await?;
            next = changes.next;
            let end = self.size_bytes() / BLOCK_BYTES;
            let runs = changes.runs.iter().map(|run| run.address.0..run.end().0.min(end));
            let mut pieces: Vec<Range<u64>> = runs.flat_map(pieces_of).collect();
            if mutant::is(Mutant::MarkDroppedEarly) {
                pieces.truncate(pieces.len() / 2);
            }
            for together in pieces.chunks(PIECES_AT_A_TIME) {
                for put_back in
                    join_all(together.iter().map(|blocks| self.put_back(blocks.clone(), mark))).await
                {
                    match put_back {
                        Err(SnapshotError::Store(error @ StoreError::Medium { .. })) => {
                            unreadable = Some(error)
                        }
                        put_back => put_back?,
                    }
                }
            }
        }
        if let Some(error) = unreadable {
            return Err(error.into());
        }
        let _operation = shared.gate.enter().ok_or(SnapshotError::Closed)?;
        let turn = shared.snapshot_turn.acquire(0..1, LockMode::Shared).await;
        self.settle(vec![BlockWrite::SnapshotDropped { snapshot: mark }], turn).await?;
        Ok(Restored::All)
    }

    /// Writes blocks as they show themselves. All that can be read are, when some can't.
    async fn put_back(&self, blocks: Range<u64>, mark: Version) -> Result<(), SnapshotError> {
        let shared = &self.shared;
        let _operation = shared.gate.enter().ok_or(SnapshotError::Closed)?;
        let mode = if mutant::is(Mutant::RestoreUnlocked) { LockMode::Shared } else { LockMode::Exclusive };
        let alone = shared.locks.acquire(blocks.clone(), mode).await;
        let mut outcome = Ok(());
        let mut builder = AppendBuilder::new((blocks.end - blocks.start) as usize);
        match self.read_blocks_of(blocks.clone()).await {
            Ok(data) => (blocks.start..).zip(data).for_each(|(block, data)| builder.push(block, data)),
            Err(StoreError::Medium { .. }) => {
                for block in blocks {
                    match self.read_blocks_of(block..block + 1).await {
                        Ok(data) => data.into_iter().for_each(|data| builder.push(block, data)),
                        Err(error @ StoreError::Medium { .. }) => outcome = Err(error.into()),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
        let mut writes = builder.finish();
        if mutant::is(Mutant::RestoreTrustsVersions) {
            writes = self.without_newer(writes, mark).await?;
        }
        if !writes.is_empty() {
            self.settle(writes, alone).await?;
        }
        outcome
    }

    async fn read_blocks_of(&self, blocks: Range<u64>) -> Result<Vec<bytes::Bytes>, StoreError> {
        let (first, count) = (BlockAddress(blocks.start), blocks.end - blocks.start);
        let pieces = self.shared.services.store.read(self.shared.id, first, count).await?;
        let block = |piece: bytes::Bytes| {
            let parts = (0..piece.len()).step_by(BLOCK_SIZE);
            parts.map(|at| piece.slice(at..at + BLOCK_SIZE)).collect::<Vec<_>>()
        };
        Ok(pieces.into_iter().flat_map(block).collect())
    }

    /// A mistake: what is newer than the mark is taken for written.
    async fn without_newer(
        &self,
        writes: Vec<BlockWrite>,
        mark: Version,
    ) -> Result<Vec<BlockWrite>, StoreError> {
        let (store, id) = (&self.shared.services.store, self.shared.id);
        let mut left = Vec::new();
        for write in writes {
            let address = match &write {
                BlockWrite::Data { address, .. } | BlockWrite::Hole { address, .. } => *address,
                BlockWrite::Snapshot { .. } | BlockWrite::SnapshotDropped { .. } => continue,
            };
            let newer = store.changed_between(id, mark, Version::GREATEST, address, 1).await?;
            if newer.runs.first().is_none_or(|run| run.address != address) {
                left.push(write);
            }
        }
        Ok(left)
    }
}

/// What became of an attempt to end a rollback.
enum Restored {
    /// It has ended.
    All,
    /// There was none.
    Nothing,
}

fn statement(record: &SnapshotRecord) -> BlockWrite {
    BlockWrite::Snapshot { record: record.encode().into() }
}

fn pieces_of(blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = blocks.end;
    blocks.step_by(PIECE_BLOCKS as usize).map(move |start| start..end.min(start + PIECE_BLOCKS))
}

/// Blocks that are locked and written together.
const PIECE_BLOCKS: u64 = 64;
const PIECES_AT_A_TIME: usize = 8;
const RUNS_AT_A_TIME: usize = 64;
/// Until what failed is tried again: a pool may have space again, or a node its right to serve.
const PAUSE: Duration = Duration::from_secs(1);
const UNREADABLE_PAUSE: Duration = Duration::from_secs(60);
