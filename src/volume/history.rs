//! Snapshots of an open volume: taking, dropping, listing and reading them, and of several volumes at one cut.
//!
//! A snapshot is a statement in the volume's chain of writes, under the version that it is named by. So it shows every
//! write that was acknowledged before it was asked for, and none that began after it was acknowledged; of those in
//! between it shows the ones with smaller versions.
//!
//! `turn` is shared by those who take or drop snapshots, from before the append until it is durable where it must be.
//! Who holds it alone finds that the list of the store is the list of the volume: nothing of it is in flight, and
//! nothing changes it.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, LocalBoxFuture, join_all, select};

use super::Volume;
use super::blocks::{BLOCK_BYTES, ByteRange, Cursor};
use super::device::DeviceError;
use super::gate::Operation;
use super::mutant::{self, Mutant};
use super::range_lock::{LockMode, RangeGuard};
use super::rollback::Rollback;
use super::snapshot::SnapshotRecord;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::{BlockAddress, Version};
use crate::store::interface::{BlockRun, BlockWrite, ChangedRun, SnapshotEntry, SnapshotStore, StoreError};

/// Why something could not be done with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The volume has a snapshot of this name.
    #[error("there is a snapshot {0} already")]
    NameTaken(String),
    /// It has none of this version.
    #[error("there is no such snapshot")]
    Unknown,
    /// A rollback is under way: none is taken, and the one that it goes back to stays.
    #[error("the volume is being rolled back to a snapshot: wait until that is done")]
    RollingBack,
    /// Nobody may delete it yet.
    #[error("the snapshot is protected until {until_unix_ms} ms after 1970 (UTC)")]
    Protected {
        /// When it may be deleted.
        until_unix_ms: u64,
    },
    /// The volume was closed: it is served elsewhere, or no more.
    #[error("the volume is not served here any more")]
    Closed,
    /// It took longer than it may. What was asked for may still come about.
    #[error("no answer of both replicas in time")]
    TimedOut,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The list of snapshots, held still.
#[derive(Debug)]
#[must_use = "dropping it lets snapshots be taken again"]
pub struct HeldSnapshots {
    _alone: RangeGuard,
    _operation: Operation,
}

/// A snapshot that is on its way: its version, and its durability.
type Taken = (Version, LocalBoxFuture<'static, Result<(), StoreError>>);

impl<S: SnapshotStore + 'static> Volume<S> {
    /// Takes a snapshot; the version that names it. Durable wherever a write would be when this completes; when this is
    /// dropped before, it goes on by itself.
    ///
    /// # Errors
    /// As in [`SnapshotError`]; after an error of the store it may come about all the same, as any write.
    pub async fn take_snapshot(&self, record: &SnapshotRecord) -> Result<Version, SnapshotError> {
        self.check_new(record)?;
        let _operation = self.shared.gate.enter().ok_or(SnapshotError::Closed)?;
        let guard = self.shared.snapshot_turn.acquire(0..1, LockMode::Shared).await;
        self.check_new(record)?;
        let (version, durable) = self.start_snapshot(record, guard);
        durable.await?;
        Ok(version)
    }

    /// Drops a snapshot. `now_unix_ms` is what its protection is compared with.
    ///
    /// # Errors
    /// As in [`SnapshotError`].
    pub async fn drop_snapshot(&self, snapshot: Version, now_unix_ms: u64) -> Result<(), SnapshotError> {
        let _operation = self.shared.gate.enter().ok_or(SnapshotError::Closed)?;
        let guard = self.shared.snapshot_turn.acquire(0..1, LockMode::Shared).await;
        let record = self.record_of(snapshot)?;
        if let Some(until_unix_ms) =
            record.protected_until_unix_ms.filter(|_| record.is_protected(now_unix_ms))
        {
            return Err(SnapshotError::Protected { until_unix_ms });
        }
        let is_needed = |rollback: Rollback| snapshot == rollback.to || snapshot == rollback.mark;
        if self.rollback()?.is_some_and(is_needed) {
            return Err(SnapshotError::RollingBack);
        }
        Ok(self.settle(vec![BlockWrite::SnapshotDropped { snapshot }], guard).await?)
    }

    /// The volume's snapshots, ascending by version: those that are durable wherever a write would be. Waits for those
    /// that are being taken or dropped. A record that this release can't read is left out.
    ///
    /// # Errors
    /// When the volume was closed, or the store is offline.
    pub async fn snapshots(&self) -> Result<Vec<(Version, SnapshotRecord)>, SnapshotError> {
        let _held = self.hold_snapshots().await.ok_or(SnapshotError::Closed)?;
        let entries = self.shared.services.store.snapshots(self.shared.id)?;
        self.shared.gate.thawed().await;
        let decoded =
            |entry: SnapshotEntry| Some((entry.version, SnapshotRecord::decode(&entry.record).ok()?));
        Ok(entries.into_iter().filter_map(decoded).collect())
    }

    /// Reads `count` logical blocks from `address` on, as they were at a snapshot.
    ///
    /// # Errors
    /// [`DeviceError::Gone`] when there is no such snapshot; otherwise as for other reads.
    pub async fn read_at(&self, at: Version, address: u64, count: u64) -> Result<Vec<Bytes>, DeviceError> {
        let _operation = self.shared.gate.enter().ok_or(DeviceError::Gone)?;
        let Some(range) = self.range(address, count)? else { return Ok(Vec::new()) };
        let blocks = range.blocks();
        let (first, block_count) = (BlockAddress(blocks.start), blocks.end - blocks.start);
        let read = self.shared.services.store.read_at(self.shared.id, at, first, block_count).await;
        let pieces = read.map_err(|error| self.device_error(error, range.start()))?;
        self.shared.gate.thawed().await;
        Ok(part_of(&pieces, range))
    }

    /// Runs of blocks of `range`, as they are at the snapshot `at`, or now: those that were written or unmapped after
    /// the snapshot `since`, or all of them without it. A part of them, and where to go on: at the end of what they are
    /// about, if that is not the end of the range.
    ///
    /// # Errors
    /// As in [`SnapshotError`].
    pub async fn ranges(
        &self,
        at: Option<Version>,
        since: Option<Version>,
        range: Range<u64>,
    ) -> Result<(Vec<BlockRun>, Option<u64>), SnapshotError> {
        let _operation = self.shared.gate.enter().ok_or(SnapshotError::Closed)?;
        let end = range.end.min(self.size_bytes() / BLOCK_BYTES);
        if range.start >= end {
            return Ok((Vec::new(), None));
        }
        let (store, id, from) = (&self.shared.services.store, self.shared.id, BlockAddress(range.start));
        let (mut runs, next) = match since {
            Some(since) => {
                let at = at.unwrap_or(Version::GREATEST);
                let changes = store.changed_between(id, since, at, from, RUNS_AT_A_TIME).await?;
                let run = |run: ChangedRun| BlockRun {
                    address: run.address,
                    count: run.count,
                    mapped: run.is_mapped,
                };
                (changes.runs.into_iter().map(run).collect(), changes.next.map(|next| next.0))
            }
            None => {
                let count = end - range.start;
                let runs = match at {
                    Some(at) => store.allocation_at(id, at, from, count, RUNS_AT_A_TIME).await?,
                    None => store.allocation(id, from, count, RUNS_AT_A_TIME).await?,
                };
                let next = runs.last().map(|last| last.address.0 + last.count);
                (runs, next)
            }
        };
        self.shared.gate.thawed().await;
        runs.retain(|run| run.address.0 < end);
        runs.iter_mut().for_each(|run| run.count = run.count.min(end - run.address.0));
        Ok((runs, next.filter(|next| *next < end)))
    }

    /// Waits until no snapshot is being taken or dropped, and lets none be. None when the volume was closed.
    pub async fn hold_snapshots(&self) -> Option<HeldSnapshots> {
        let operation = self.shared.gate.enter()?;
        let alone = self.shared.snapshot_turn.acquire(0..1, LockMode::Exclusive).await;
        Some(HeldSnapshots { _alone: alone, _operation: operation })
    }

    /// Appends the statement, at once.
    fn start_snapshot(&self, record: &SnapshotRecord, guard: RangeGuard) -> Taken {
        let statement = BlockWrite::Snapshot { record: record.encode().into() };
        let durable = self.settle(vec![statement], guard);
        (self.latest_version(), Box::pin(durable))
    }

    /// Drops a snapshot that belongs to a group which is not whole.
    async fn take_back(&self, snapshot: Version) {
        let Some(_operation) = self.shared.gate.enter() else { return };
        let guard = self.shared.snapshot_turn.acquire(0..1, LockMode::Shared).await;
        // An error ends the volume's service.
        let _ = self.settle(vec![BlockWrite::SnapshotDropped { snapshot }], guard).await;
    }

    /// Whether a snapshot with this record can be taken.
    pub(super) fn check_new(&self, record: &SnapshotRecord) -> Result<(), SnapshotError> {
        if self.rollback()?.is_some() && !mutant::is(Mutant::SnapshotDuringRollback) {
            return Err(SnapshotError::RollingBack);
        }
        let known = self.shared.services.store.snapshots(self.shared.id)?;
        let has_name = |entry: &SnapshotEntry| {
            SnapshotRecord::decode(&entry.record).is_ok_and(|known| known.name == record.name)
        };
        match known.iter().any(has_name) {
            true => Err(SnapshotError::NameTaken(record.name.clone())),
            false => Ok(()),
        }
    }

    pub(super) fn record_of(&self, snapshot: Version) -> Result<SnapshotRecord, SnapshotError> {
        let known = self.shared.services.store.snapshots(self.shared.id)?;
        let entry = known.iter().find(|entry| entry.version == snapshot).ok_or(SnapshotError::Unknown)?;
        // What can't be read may be protected.
        SnapshotRecord::decode(&entry.record)
            .map_err(|_| SnapshotError::Protected { until_unix_ms: u64::MAX })
    }
}

/// Takes a snapshot of each volume, all at one cut: with a write in one of them, whatever was acknowledged before that
/// write began is in the others. All statements are appended in one turn of the thread, between which no host's command
/// comes; so nothing has to be held up. Their versions, in order. When one of them fails, or not all are durable within
/// `patience`, those that were taken are dropped again.
///
/// # Errors
/// As in [`SnapshotError`], of the first that failed.
pub async fn take_group_snapshot<S: SnapshotStore + 'static>(
    members: &[(Volume<S>, SnapshotRecord)],
    runtime: &RuntimeHandle,
    patience: Duration,
) -> Result<Vec<Version>, SnapshotError> {
    let mut in_order: Vec<usize> = (0..members.len()).collect();
    // Everybody in one order, so that two groups do not wait for each other.
    in_order.sort_by_key(|index| members[*index].0.id());
    let mut turns = Vec::new();
    for (volume, record) in in_order.iter().map(|index| &members[*index]) {
        volume.check_new(record)?;
        let operation = volume.shared.gate.enter().ok_or(SnapshotError::Closed)?;
        turns.push((operation, volume.shared.snapshot_turn.acquire(0..1, LockMode::Shared).await));
    }
    for (volume, record) in members {
        volume.check_new(record)?;
    }
    let mut versions = vec![Version::default(); members.len()];
    let mut durable = Vec::new();
    for (index, (operation, guard)) in in_order.into_iter().zip(turns) {
        let (volume, record) = &members[index];
        let (version, taken) = volume.start_snapshot(record, guard);
        versions[index] = version;
        durable.push(async move {
            let _operation = operation;
            taken.await
        });
    }
    let outcome = match select(Box::pin(join_all(durable)), runtime.sleep(patience)).await {
        Either::Left((outcomes, _)) => {
            outcomes.into_iter().collect::<Result<Vec<()>, _>>().map_err(SnapshotError::from)
        }
        Either::Right(_) => Err(SnapshotError::TimedOut),
    };
    if let Err(error) = outcome {
        for ((volume, _), snapshot) in members.iter().zip(versions) {
            let volume = volume.clone();
            runtime.spawn(Box::pin(async move { volume.take_back(snapshot).await }));
        }
        return Err(error);
    }
    Ok(versions)
}

/// The bytes of `range` of its blocks.
fn part_of(pieces: &[Bytes], range: ByteRange) -> Vec<Bytes> {
    if range.is_whole() {
        return pieces.to_vec();
    }
    let mut cursor = Cursor::new(pieces);
    cursor.skip(range.head_offset());
    cursor.slices(range.length() as usize)
}

/// Runs of a volume that are looked for together.
const RUNS_AT_A_TIME: usize = 256;
