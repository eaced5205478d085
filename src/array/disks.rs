//! Stripes, rows and flushes over the disks that belong, whatever happens to one of them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, join_all, select};

use crate::base::buffer::{AlignedBuf, BufferPool};
use crate::base::event::EventSink;
use crate::base::mutant::{self, Mutant};
use crate::base::runtime::{Instant, RuntimeHandle};
use crate::base::signal::Signal;
use crate::base::units::BLOCK_SIZE;
use crate::disk::{DiskError, DiskErrorKind, DiskFuture};

use super::geometry::{Geometry, MemberSet, SegmentIndex, Slot, StripeLayout};
use super::membership::{Membership, OpenDisk};
use super::parity;
use super::replacement::Replacement;
use super::superblock::{LogKey, PoolRecord, Uuid};

/// An open array. Cheap to clone; all clones are one array.
#[derive(Clone)]
pub struct Array {
    shared: Rc<Shared>,
}

struct Shared {
    geometry: Geometry,
    membership: Membership,
    runtime: RuntimeHandle,
    buffers: BufferPool,
    watches: Vec<Watch>,
    counters: Counters,
    replacement: Replacement,
}

/// What is known of a slot's outstanding operations.
#[derive(Default)]
struct Watch {
    outstanding: Cell<u32>,
    /// Last time an operation completed, or the first one began after none was outstanding.
    progress: Cell<Instant>,
    read_errors: Cell<u64>,
    repairs: Cell<u64>,
    operations: Cell<u64>,
    busy: Cell<Duration>,
    left: Signal,
}

/// Operations that the array has asked of its disks.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Disk reads.
    pub reads: Cell<u64>,
    /// Disk writes, superblocks apart.
    pub writes: Cell<u64>,
    /// Flushes of backing devices.
    pub flushes: Cell<u64>,
    /// Bytes written, parity included.
    pub written_bytes: Cell<u64>,
    /// Rows rebuilt from the other members.
    pub reconstructed_rows: Cell<u64>,
}

/// Why an array operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// More disks are gone than parity covers, or the array was closed.
    #[error("the array is offline")]
    Offline,
    /// These rows cannot be read from this disk, for now or for good; parity may give them back.
    #[error("rows are unreadable")]
    Unreadable,
}

/// State of one slot, for people and for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Slot in the array.
    pub slot: Slot,
    /// Identity of the disk.
    pub uuid: Uuid,
    /// Where it was opened; none when it was not found.
    pub path: Option<String>,
    /// Whether it works.
    pub state: DiskState,
    /// Why it left, when it did.
    pub reason: Option<String>,
    /// Reads that failed or had the wrong checksum.
    pub read_errors: u64,
    /// Blocks that were rebuilt and written back.
    pub repairs: u64,
    /// Operations that completed, and how long they took, added up.
    pub operations: (u64, Duration),
    /// Size of the disk; 0 when it was not found.
    pub size_bytes: u64,
}

/// Whether a disk works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// In use.
    Ok,
    /// Failed a write or a flush, stalled, or was failed by an operator; not in use.
    Failed,
    /// Belongs to the pool but was not found.
    Missing,
    /// In use, and does not have yet what was written before it joined.
    Rebuilding,
}

impl Array {
    pub(super) fn new(
        record: PoolRecord,
        disks: Vec<Option<OpenDisk>>,
        runtime: RuntimeHandle,
        buffers: BufferPool,
        events: EventSink,
    ) -> Self {
        let geometry = record.geometry;
        let watches = (0..geometry.disk_count).map(|_| Watch::default()).collect();
        let membership = Membership::new(record, disks, runtime.clone(), events);
        let (counters, replacement) = Default::default();
        let shared = Shared { geometry, membership, runtime, buffers, watches, counters, replacement };
        let array = Self { shared: Rc::new(shared) };
        let watchdog = Rc::downgrade(&array.shared);
        let runtime = array.shared.runtime.clone();
        array.shared.runtime.spawn(Box::pin(async move {
            loop {
                runtime.sleep(WATCHDOG_PERIOD).await;
                let Some(shared) = watchdog.upgrade() else { return };
                Array { shared }.fail_stalled_disks();
            }
        }));
        let keeper = Rc::downgrade(&array.shared);
        let changed = array.changed().clone();
        array.shared.runtime.spawn(Box::pin(async move {
            loop {
                let change = changed.wait();
                let Some(shared) = keeper.upgrade() else { return };
                if !(Array { shared }).use_spare().await {
                    change.await;
                }
            }
        }));
        array
    }

    pub(super) fn runtime(&self) -> &RuntimeHandle {
        &self.shared.runtime
    }

    pub(super) fn membership(&self) -> &Membership {
        &self.shared.membership
    }

    pub(super) fn replacement(&self) -> &Replacement {
        &self.shared.replacement
    }

    /// Errors of the disk that was in this slot before are not those of the one that is there now.
    pub(super) fn reset_counts(&self, slot: Slot) {
        let watch = &self.shared.watches[slot.index()];
        watch.read_errors.set(0);
        watch.repairs.set(0);
        watch.operations.set(0);
        watch.busy.set(Duration::ZERO);
    }

    pub(super) async fn write_rows(&self, slot: Slot, segment: SegmentIndex, row: u32, data: Bytes) {
        self.write_column(slot, self.shared.geometry.offset(segment, row), vec![data]).await;
    }

    /// Sizes.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    /// Whether every disk is there and has all that it should have.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.shared.membership.whole() == self.shared.geometry.all_slots()
    }

    /// Members that can be written now, and read where they have what is asked for.
    #[must_use]
    pub fn live(&self) -> MemberSet {
        self.shared.membership.live()
    }

    /// Whether the array has stopped.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.shared.membership.is_offline()
    }

    /// Whether writes wait because a file system under a disk is full.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.shared.membership.is_starved()
    }

    /// Notified when a disk leaves or the array goes offline.
    #[must_use]
    pub fn changed(&self) -> &Signal {
        self.shared.membership.changed()
    }

    /// The pool's identity.
    #[must_use]
    pub fn pool(&self) -> Uuid {
        self.shared.membership.record().pool
    }

    /// What tells the pool's batch headers from those that a host writes as data.
    #[must_use]
    pub fn log_key(&self) -> LogKey {
        self.shared.membership.record().log_key
    }

    /// What the store last committed.
    #[must_use]
    pub fn root(&self) -> Vec<u8> {
        self.shared.membership.root()
    }

    /// Operations so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Every slot's state.
    #[must_use]
    pub fn status(&self) -> Vec<DiskStatus> {
        let membership = &self.shared.membership;
        let record = membership.record();
        let live = membership.live();
        let describe = |slot: Slot| {
            let disk = membership.any_disk(slot);
            let watch = &self.shared.watches[slot.index()];
            let is_rebuilding = membership.rebuild().is_some_and(|rebuild| rebuild.slot == slot);
            let state = match (live.contains(slot), disk.is_some()) {
                (true, _) if is_rebuilding => DiskState::Rebuilding,
                (true, _) => DiskState::Ok,
                (false, true) => DiskState::Failed,
                (false, false) => DiskState::Missing,
            };
            DiskStatus {
                slot,
                uuid: record.disks[slot.index()].uuid,
                size_bytes: disk.as_ref().map_or(0, |disk| disk.properties().size_bytes),
                path: disk.map(|disk| disk.properties().path.clone()),
                state,
                reason: membership.reason(slot),
                read_errors: watch.read_errors.get(),
                repairs: watch.repairs.get(),
                operations: (watch.operations.get(), watch.busy.get()),
            }
        };
        self.shared.geometry.all_slots().iter().map(describe).collect()
    }

    /// Makes a new superblock generation with `root` durable on every live member.
    pub async fn commit(&self, root: Vec<u8>) -> Result<(), ArrayError> {
        self.shared.membership.commit(Some(root)).await
    }

    /// Stops using a disk, as if it had failed, and returns when that is durable. Refused (`Offline`)
    /// when the array cannot do without it; then nothing has changed.
    pub async fn fail(&self, slot: Slot, reason: &str) -> Result<(), ArrayError> {
        if !self.can_do_without(slot) {
            return Err(ArrayError::Offline);
        }
        self.disk_left(slot, reason);
        self.shared.membership.settled().await
    }

    /// Whether a disk is in use, and all others have all that they should have.
    pub(super) fn can_do_without(&self, slot: Slot) -> bool {
        let others = self.shared.geometry.all_slots().without(slot);
        let are_whole = others.difference(self.shared.membership.whole()) == MemberSet::EMPTY;
        are_whole && self.live().contains(slot) && self.shared.geometry.disk_count >= 2
    }

    /// Stops using a disk although the array may have to stop for that.
    pub async fn fail_regardless(&self, slot: Slot, reason: &str) -> Result<(), ArrayError> {
        self.disk_left(slot, reason);
        self.shared.membership.settled().await
    }

    /// Writes one stripe: `columns[c]` holds the blocks of data column `c`, all columns of equal
    /// height. Completes when every member that is still in use has it and whoever is not is durably
    /// excluded; nothing is said of the medium before [`Array::flush`].
    pub async fn write_stripe(
        &self,
        segment: SegmentIndex,
        first_row: u32,
        layout: StripeLayout,
        columns: Vec<Vec<Bytes>>,
    ) -> Result<(), ArrayError> {
        assert_eq!(columns.len(), layout.data_columns());
        let height = columns[0].len();
        let offset = self.shared.geometry.offset(segment, first_row);
        if mutant::is(Mutant::ReadBeforeWrite) {
            let _ = self.read_rows(segment, layout.data_slot(0), first_row, 1).await;
        }
        let mut writes = Vec::with_capacity(columns.len() + 1);
        if let Some(slot) = layout.parity_slot() {
            let mut buffer = self.shared.buffers.get(height * BLOCK_SIZE);
            parity::of_columns(&mut buffer, &columns);
            writes.push(self.write_column(slot, offset, vec![buffer.freeze()]));
        }
        for (column, pieces) in columns.into_iter().enumerate() {
            writes.push(self.write_column(layout.data_slot(column), offset, pieces));
        }
        join_all(writes).await;
        self.shared.membership.settled().await
    }

    /// Writes to one disk if it is in use; a failure takes it out of use.
    async fn write_column(&self, slot: Slot, offset: u64, pieces: Vec<Bytes>) {
        let mut starving = None;
        loop {
            let Some(disk) = self.shared.membership.disk(slot) else { return };
            let bytes: usize = pieces.iter().map(Bytes::len).sum();
            add(&self.shared.counters.writes, 1);
            add(&self.shared.counters.written_bytes, bytes as u64);
            match self.watched(slot, disk.write(offset, pieces.clone())).await {
                Some(Err(error))
                    if error.kind == DiskErrorKind::NoSpace && !mutant::is(Mutant::NoSpaceFailsDisk) =>
                {
                    // A full file system is no broken disk. The same bytes go to the same rows, which
                    // nobody has been told of, once there is space.
                    starving.get_or_insert_with(|| self.shared.membership.starve(slot));
                    self.shared.runtime.sleep(STARVED_RETRY).await;
                    if self.is_offline() {
                        return;
                    }
                }
                Some(Err(error)) => return self.disk_left(slot, &error.to_string()),
                Some(Ok(())) | None => return,
            }
        }
    }

    /// Puts on stable media all that completed before this call. Completes only when every disk in
    /// use has done so and whoever has not is durably excluded.
    pub async fn flush(&self) -> Result<(), ArrayError> {
        let mut groups: Vec<(Option<u64>, Vec<Slot>)> = Vec::new();
        for slot in self.live().iter() {
            let Some(disk) = self.shared.membership.disk(slot) else { continue };
            let group = disk.properties().flush_group;
            match groups.iter_mut().find(|(known, _)| group.is_some() && *known == group) {
                Some((_, slots)) => slots.push(slot),
                None => groups.push((group, vec![slot])),
            }
        }
        if mutant::is(Mutant::FlushOneDisk) {
            groups.truncate(1);
        }
        join_all(groups.into_iter().map(|(_, slots)| self.flush_device(slots))).await;
        self.shared.membership.settled().await
    }

    /// Flushes the one device behind `slots`; its failure is the failure of all of them.
    async fn flush_device(&self, slots: Vec<Slot>) {
        let Some(disk) = self.shared.membership.disk(slots[0]) else { return };
        add(&self.shared.counters.flushes, 1);
        let mut flushed = self.watched(slots[0], disk.flush()).await;
        if mutant::is(Mutant::RetryFailedFlush) && matches!(flushed, Some(Err(_))) {
            flushed = self.watched(slots[0], disk.flush()).await;
        }
        if let Some(Err(error)) = flushed {
            slots.iter().for_each(|slot| self.disk_left(*slot, &error.to_string()));
        }
    }

    /// Reads `count` rows of one column.
    pub async fn read_rows(
        &self,
        segment: SegmentIndex,
        slot: Slot,
        row: u32,
        count: u32,
    ) -> Result<AlignedBuf, ArrayError> {
        if self.is_offline() {
            return Err(ArrayError::Offline);
        }
        let (length, offset) = (count as usize * BLOCK_SIZE, self.shared.geometry.offset(segment, row));
        let Some(disk) = self.shared.membership.disk(slot).filter(|_| !self.lacks(slot, segment)) else {
            return self.read_predecessor(slot, offset, segment, length).await;
        };
        let buffer = self.shared.buffers.get(length);
        add(&self.shared.counters.reads, 1);
        match self.watched(slot, disk.read(offset, buffer)).await {
            Some(Ok(buffer)) => Ok(buffer),
            Some(Err(error)) => {
                self.note_read_error(slot);
                if matches!(error.kind, DiskErrorKind::Gone | DiskErrorKind::Short) {
                    self.disk_left(slot, &error.to_string());
                }
                Err(ArrayError::Unreadable)
            }
            None => Err(ArrayError::Unreadable),
        }
    }

    /// Rebuilds `count` rows of one column from all other `members`. The caller verifies the result:
    /// parity cannot tell which of its inputs is wrong.
    pub async fn reconstruct_rows(
        &self,
        segment: SegmentIndex,
        members: MemberSet,
        slot: Slot,
        row: u32,
        count: u32,
    ) -> Result<AlignedBuf, ArrayError> {
        let mut others = members.without(slot);
        if let Some(one) = others.iter().next().filter(|_| mutant::is(Mutant::ReconstructWithoutOneMember)) {
            others = others.without(one);
        }
        if !members.contains(slot) || others == MemberSet::EMPTY {
            return Err(ArrayError::Unreadable);
        }
        let columns = join_all(others.iter().map(|other| self.read_rows(segment, other, row, count))).await;
        let mut sum: Option<AlignedBuf> = None;
        for column in columns {
            let column = column?;
            match &mut sum {
                None => sum = Some(column),
                Some(sum) => parity::xor_into(sum, &column),
            }
        }
        add(&self.shared.counters.reconstructed_rows, u64::from(count));
        sum.ok_or(ArrayError::Unreadable)
    }

    /// Writes back rows that were rebuilt and verified. Does nothing when the disk is not in use.
    pub async fn repair_rows(&self, segment: SegmentIndex, slot: Slot, row: u32, data: Bytes) {
        if self.shared.membership.disk(slot).is_some() && !self.lacks(slot, segment) {
            add(&self.shared.watches[slot.index()].repairs, (data.len() / BLOCK_SIZE) as u64);
            self.write_column(slot, self.shared.geometry.offset(segment, row), vec![data]).await;
        }
    }

    /// Counts a read whose contents turned out to be wrong.
    pub fn note_read_error(&self, slot: Slot) {
        add(&self.shared.watches[slot.index()].read_errors, 1);
    }

    /// Tells the disks that a segment's contents are not needed any more.
    pub async fn discard_segment(&self, segment: SegmentIndex) {
        let offset = self.shared.geometry.offset(segment, 0);
        let length = u64::from(self.shared.geometry.rows) * BLOCK_SIZE as u64;
        let discards = self.live().iter().filter_map(|slot| {
            let disk = self.shared.membership.disk(slot)?;
            Some(self.watched(slot, disk.discard(offset, length)))
        });
        // A discard is advice: whether it worked changes nothing.
        join_all(discards).await;
    }

    /// The pool of buffers that reads come from.
    #[must_use]
    pub fn buffers(&self) -> &BufferPool {
        &self.shared.buffers
    }

    fn disk_left(&self, slot: Slot, reason: &str) {
        self.shared.membership.disk_failed(slot, reason);
        self.shared.watches.iter().for_each(|watch| watch.left.notify());
    }

    /// Awaits a disk operation; `None` when the disk left or the array went offline meanwhile.
    async fn watched<T>(&self, slot: Slot, operation: DiskFuture<T>) -> Option<Result<T, DiskError>> {
        let watch = &self.shared.watches[slot.index()];
        let began = self.shared.runtime.now();
        if watch.outstanding.get() == 0 {
            watch.progress.set(began);
        }
        watch.outstanding.set(watch.outstanding.get() + 1);
        let mut operation = operation;
        let result = loop {
            match select(operation, watch.left.wait()).await {
                Either::Left((result, _)) => break Some(result),
                Either::Right((_, pending)) if self.live().contains(slot) && !self.is_offline() => {
                    operation = pending;
                }
                Either::Right(_) => break None,
            }
        };
        let ended = self.shared.runtime.now();
        watch.outstanding.set(watch.outstanding.get() - 1);
        watch.progress.set(ended);
        add(&watch.operations, 1);
        watch.busy.set(watch.busy.get() + ended.since(began));
        result
    }

    /// A disk that has completed nothing for [`STALL_LIMIT`] though asked has failed, whatever it
    /// says later; but only when another disk shows that it can be done better. Disks that stall
    /// together share a cause (a controller, a host under load) that excluding one would not mend.
    fn fail_stalled_disks(&self) {
        let now = self.shared.runtime.now();
        let watch = |slot: Slot| &self.shared.watches[slot.index()];
        for slot in self.live().iter() {
            let since = watch(slot).progress.get();
            if watch(slot).outstanding.get() == 0 || now.since(since) < STALL_LIMIT {
                continue;
            }
            let others = || self.live().without(slot).iter();
            if others().any(|other| now.since(watch(other).progress.get()) < STALL_LIMIT) {
                self.disk_left(slot, &format!("it completed nothing for {} s", STALL_LIMIT.as_secs()));
                return;
            }
            others().filter(|other| watch(*other).outstanding.get() == 0).for_each(|other| self.probe(other));
        }
    }

    /// How long the disk that has waited longest has completed nothing, though asked.
    #[must_use]
    pub fn stalled_for(&self) -> Duration {
        let now = self.shared.runtime.now();
        let watches = self.live().iter().map(|slot| &self.shared.watches[slot.index()]);
        let asked = watches.filter(|watch| watch.outstanding.get() > 0);
        asked.map(|watch| now.since(watch.progress.get())).max().unwrap_or_default()
    }

    /// Reads a block of an idle disk, so that its progress can be compared with a stalled one's.
    fn probe(&self, slot: Slot) {
        let array = self.clone();
        self.shared.runtime.spawn(Box::pin(async move {
            // Only that it completes matters: the watch notes it.
            let _ = array.read_rows(SegmentIndex(0), slot, 0, 1).await;
        }));
    }
}

fn add(counter: &Cell<u64>, amount: u64) {
    counter.set(counter.get() + amount);
}

/// Longest time without any progress before a disk counts as failed.
pub const STALL_LIMIT: Duration = Duration::from_secs(6);
const WATCHDOG_PERIOD: Duration = Duration::from_millis(500);
/// How often is tried whether a file system has space again.
pub(super) const STARVED_RETRY: Duration = Duration::from_millis(500);
