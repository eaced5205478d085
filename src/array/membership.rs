//! Who belongs to the array now, and the commit of superblock generations.
//!
//! A disk that failed is first *failing*: no more I/O goes to it, and nothing that it missed may be
//! acknowledged. When a generation that excludes it is durable on all other members it is *excluded*.
//! When more disks fail than parity covers, before or after, the array goes offline and marks none of
//! them: a controller that comes back brings its disks back as they were.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use futures::future::join_all;

use crate::base::event::{Event, EventSink, Severity};
use crate::base::mutant::{self, Mutant};
use crate::base::runtime::RuntimeHandle;
use crate::base::signal::Signal;
use crate::disk::{Disk, DiskError, DiskErrorKind};

use super::disks::{ArrayError, STARVED_RETRY};
use super::geometry::{MemberSet, Slot};
use super::superblock::{DiskRecord, PoolRecord, RebuildRecord, Superblock, Uuid, copy_offset};

/// The state of membership; shared by the array's operations.
pub(super) struct Membership {
    disks: RefCell<Vec<Option<OpenDisk>>>,
    state: RefCell<State>,
    // One commit at a time: a generation is written to every disk before the next is formed.
    committing: futures::lock::Mutex<()>,
    offline: Cell<bool>,
    /// Notified at every change of state.
    changed: Signal,
    runtime: RuntimeHandle,
    events: EventSink,
    /// By slot: writes that wait for space in the file system under the disk.
    starving: Vec<Cell<u32>>,
}

/// A disk that was found, and where its superblock is.
#[derive(Clone)]
pub(super) struct OpenDisk {
    pub(super) disk: Rc<dyn Disk>,
    /// Which of the two copies is the newest valid one: 0 or 1.
    pub(super) newest_copy: Rc<Cell<u64>>,
}

impl OpenDisk {
    pub(super) fn new(disk: Rc<dyn Disk>, newest_copy: u64) -> Self {
        Self { disk, newest_copy: Rc::new(Cell::new(newest_copy)) }
    }
}

struct State {
    record: PoolRecord,
    /// Highest generation ever tried; a failed attempt's number is not used again.
    attempted: u64,
    failing: MemberSet,
    reasons: Vec<Option<String>>,
}

impl Membership {
    /// `disks` by slot; members of `record` without a disk count as failing from the start, so that
    /// the first commit excludes them.
    pub(super) fn new(
        record: PoolRecord,
        disks: Vec<Option<OpenDisk>>,
        runtime: RuntimeHandle,
        events: EventSink,
    ) -> Self {
        let slots = record.disks.len();
        let mut failing = MemberSet::EMPTY;
        let mut reasons = vec![None; slots];
        for slot in record.geometry.all_slots().iter() {
            if record.disks[slot.index()].member && disks[slot.index()].is_none() {
                failing = failing.with(slot);
                reasons[slot.index()] = Some("it was missing when the pool was opened".to_owned());
            }
        }
        // A disk that is not there may have a generation of which the others never heard. Its number must not be
        // given to another one.
        let attempted = record.generation + if failing == MemberSet::EMPTY { 0 } else { GENERATIONS_UNHEARD };
        let state = RefCell::new(State { record, attempted, failing, reasons });
        let (committing, offline, changed) = Default::default();
        let starving = vec![Cell::new(0); slots];
        Self { disks: RefCell::new(disks), state, committing, offline, changed, runtime, events, starving }
    }

    /// Members that can be read and written now.
    pub(super) fn live(&self) -> MemberSet {
        let state = self.state.borrow();
        state.members().difference(state.failing)
    }

    /// Members that can be used now and have all that they should have.
    pub(super) fn whole(&self) -> MemberSet {
        self.live().difference(self.state.borrow().record.rebuilding())
    }

    /// The member that is being rebuilt, if it can be used now.
    pub(super) fn rebuild(&self) -> Option<RebuildRecord> {
        let rebuild = self.state.borrow().record.rebuild?;
        self.live().contains(rebuild.slot).then_some(rebuild)
    }

    /// Members whose exclusion is not durable yet.
    pub(super) fn failing(&self) -> MemberSet {
        self.state.borrow().failing
    }

    pub(super) fn is_offline(&self) -> bool {
        self.offline.get()
    }

    pub(super) fn changed(&self) -> &Signal {
        &self.changed
    }

    pub(super) fn root(&self) -> Vec<u8> {
        self.state.borrow().record.root.clone()
    }

    pub(super) fn record(&self) -> PoolRecord {
        self.state.borrow().record.clone()
    }

    /// Why the disk in `slot` left, if it did in this run.
    pub(super) fn reason(&self, slot: Slot) -> Option<String> {
        self.state.borrow().reasons[slot.index()].clone()
    }

    /// The disk in `slot` while it may be used.
    pub(super) fn disk(&self, slot: Slot) -> Option<Rc<dyn Disk>> {
        if !self.live().contains(slot) {
            return None;
        }
        self.any_disk(slot)
    }

    /// The disk in `slot`, whether it may be used or not.
    pub(super) fn any_disk(&self, slot: Slot) -> Option<Rc<dyn Disk>> {
        self.open_disk(slot).map(|member| member.disk)
    }

    fn open_disk(&self, slot: Slot) -> Option<OpenDisk> {
        self.disks.borrow()[slot.index()].clone()
    }

    /// Lets go of a disk that is out of use, so that somebody else may open it.
    pub(super) fn let_go(&self, slot: Slot) {
        if !self.state.borrow().members().contains(slot) {
            self.disks.borrow_mut()[slot.index()] = None;
        }
    }

    /// Puts a disk that carries `uuid` into an empty slot: a generation that says so is made durable on all members,
    /// then the disk is in use, as one of which no older segment is proven. `joined` is called at that moment.
    ///
    /// The members come first, so that the new disk never has a generation that the others do not: then it would
    /// outvote them if it was taken away and brought back.
    pub(super) async fn join(
        &self,
        slot: Slot,
        disk: OpenDisk,
        uuid: Uuid,
        joined: impl FnOnce(),
    ) -> Result<(), ArrayError> {
        self.settled().await?;
        {
            let _one_at_a_time = self.committing.lock().await;
            let (mut record, excluded) = self.next_record(None);
            let is_empty = !record.members().contains(slot) && record.rebuild.is_none();
            if !is_empty || excluded != MemberSet::EMPTY || self.is_offline() {
                return Err(ArrayError::Offline);
            }
            record.disks[slot.index()] = DiskRecord { uuid, member: true };
            record.rebuild = Some(RebuildRecord { slot, before_generation: u64::MAX, cursor: 0 });
            self.write_superblocks(self.live(), &record).await;
            if self.is_offline() {
                return Err(ArrayError::Offline);
            }
            self.disks.borrow_mut()[slot.index()] = Some(disk);
            {
                let mut state = self.state.borrow_mut();
                state.record = record.clone();
                state.reasons[slot.index()] = None;
            }
            joined();
            if let Err(error) = self.write_superblock(slot, &record).await {
                self.disk_failed(slot, &error.to_string());
            }
        }
        self.changed.notify();
        self.settled().await?;
        if self.live().contains(slot) { Ok(()) } else { Err(ArrayError::Unreadable) }
    }

    /// Makes it durable how far the rebuilding of a disk has come; `None`: it is complete. Changes nothing when another
    /// disk has come to its place.
    pub(super) async fn commit_rebuild(
        &self,
        (slot, disk): (Slot, Uuid),
        rebuild: Option<RebuildRecord>,
    ) -> Result<(), ArrayError> {
        self.commit_change(|record| {
            let is_it = record.disks[slot.index()].uuid == disk || mutant::is(Mutant::RebuildOfAnotherDisk);
            if is_it && record.rebuild.is_some_and(|known| known.slot == slot) {
                record.rebuild = rebuild;
            }
        })
        .await
    }

    /// Stops using the disk in `slot`. Beyond what parity covers, the array goes offline instead.
    pub(super) fn disk_failed(&self, slot: Slot, reason: &str) {
        let lost = {
            let mut state = self.state.borrow_mut();
            if !state.members().contains(slot) || state.failing.contains(slot) {
                return;
            }
            state.failing = state.failing.with(slot);
            state.reasons[slot.index()] = Some(reason.to_owned());
            let mut whole = state.members().difference(state.failing);
            if !mutant::is(Mutant::RebuildingCountsAsWhole) {
                whole = whole.difference(state.record.rebuilding());
            }
            state.record.geometry.disk_count - whole.width()
        };
        let path = self.path(slot);
        let tolerated = self.disks.borrow().len() > 1 && lost <= 1;
        if tolerated {
            (self.events)(Event {
                severity: Severity::Warning,
                kind: "disk-failed",
                message: format!(
                    "disk {} ({path}) failed: {reason}. All data is intact and served; another disk's failure \
                     would stop this pool. Replace the disk.",
                    slot.0
                ),
            });
        } else {
            self.go_offline(&format!("disk {} ({path}) failed too: {reason}", slot.0));
        }
        self.changed.notify();
    }

    /// Stops all I/O until the pool is opened again. No disk is marked as failed by this.
    pub(super) fn go_offline(&self, reason: &str) {
        if !self.offline.replace(true) {
            (self.events)(Event {
                severity: Severity::Critical,
                kind: "pool-offline",
                message: format!(
                    "the pool went offline: {reason}. Nothing acknowledged is lost. Bring the disks back, then \
                     restart this node."
                ),
            });
            self.changed.notify();
        }
    }

    /// Whether writes wait because a file system under a disk is full.
    pub(super) fn is_starved(&self) -> bool {
        self.starving.iter().any(|waiting| waiting.get() > 0)
    }

    /// Notes that a write to the disk in `slot` waits for space, as long as the result lives.
    pub(super) fn starve(&self, slot: Slot) -> Starving<'_> {
        let waiting = &self.starving[slot.index()];
        waiting.set(waiting.get() + 1);
        if waiting.get() == 1 {
            (self.events)(Event {
                severity: Severity::Critical,
                kind: "disk-no-space",
                message: format!(
                    "the file system under disk {} ({}) is full. Nothing is lost and reads go on; writes wait, and \
                     those that need new space are refused. Make room in that file system: everything goes on by \
                     itself",
                    slot.0,
                    self.path(slot)
                ),
            });
        }
        Starving { membership: self, slot }
    }

    pub(super) fn events(&self) -> &EventSink {
        &self.events
    }

    pub(super) fn path(&self, slot: Slot) -> String {
        self.any_disk(slot).map_or_else(|| "?".to_owned(), |disk| disk.properties().path.clone())
    }

    /// Returns when no member is failing: every exclusion is durable. What a failing disk missed may
    /// be acknowledged only after this.
    pub(super) async fn settled(&self) -> Result<(), ArrayError> {
        while !mutant::is(Mutant::AcknowledgeBeforeExclusion)
            && !self.failing().difference(MemberSet::EMPTY).eq(&MemberSet::EMPTY)
        {
            self.commit(None).await?;
        }
        if self.is_offline() { Err(ArrayError::Offline) } else { Ok(()) }
    }

    /// Makes a new generation durable on every live member, with the store's new `root` if there is
    /// one and without the members that are failing by then.
    pub(super) async fn commit(&self, root: Option<Vec<u8>>) -> Result<(), ArrayError> {
        self.commit_change(|record| {
            if let Some(root) = &root {
                record.root.clone_from(root);
            }
        })
        .await
    }

    /// Makes a new generation durable on every live member, changed as `change` says and without the members that
    /// are failing by then.
    async fn commit_change(&self, change: impl Fn(&mut PoolRecord)) -> Result<(), ArrayError> {
        let _one_at_a_time = self.committing.lock().await;
        loop {
            if self.is_offline() {
                return Err(ArrayError::Offline);
            }
            let (record, excluded) = self.next_record(Some(&change));
            let complete = self.write_superblocks(record.members(), &record).await;
            if complete && !self.is_offline() {
                let mut state = self.state.borrow_mut();
                state.record = record;
                state.failing = state.failing.difference(excluded);
                drop(state);
                self.changed.notify();
                return Ok(());
            }
        }
    }

    /// The record after the present one, with a change, and whom it newly excludes.
    fn next_record(&self, change: Option<&dyn Fn(&mut PoolRecord)>) -> (PoolRecord, MemberSet) {
        let mut state = self.state.borrow_mut();
        state.attempted += 1;
        let excluded = state.failing;
        let mut record = state.record.clone();
        record.generation = state.attempted;
        for slot in excluded.iter() {
            record.disks[slot.index()].member = false;
            record.rebuild = record.rebuild.filter(|rebuild| rebuild.slot != slot);
        }
        if let Some(change) = change {
            change(&mut record);
        }
        (record, excluded)
    }

    /// Makes `record` durable on these disks; those that fail in it have left. Whether none did.
    async fn write_superblocks(&self, targets: MemberSet, record: &PoolRecord) -> bool {
        let write = async |slot| {
            let written = self.write_superblock(slot, record).await;
            // At once, not when the other disks are done: a flush that fails may have dropped what the log has written,
            // and the log's own next one succeeds.
            written.map_err(|error| self.disk_failed(slot, &error.to_string())).is_ok()
        };
        join_all(targets.iter().map(write)).await.into_iter().all(|is_written| is_written)
    }

    /// Writes over the older copy on the disk, whatever the generation: the newest that it holds
    /// stays until this one is whole.
    async fn write_superblock(&self, slot: Slot, record: &PoolRecord) -> Result<(), DiskError> {
        let Some(member) = self.open_disk(slot) else { return Ok(()) };
        let bytes: Bytes = Superblock { slot, record: record.clone() }.encode().freeze();
        let copy = match member.newest_copy.get() {
            _ if mutant::is(Mutant::SuperblockByGeneration) => record.generation % 2,
            newest if mutant::is(Mutant::SuperblockOverNewest) => newest,
            newest => 1 - newest,
        };
        let mut starving = None;
        loop {
            match member.disk.write(copy_offset(copy), vec![bytes.clone()]).await {
                Err(error) if error.kind == DiskErrorKind::NoSpace && !self.is_offline() => {
                    starving.get_or_insert_with(|| self.starve(slot));
                    self.runtime.sleep(STARVED_RETRY).await;
                }
                written => break written?,
            }
        }
        if !mutant::is(Mutant::SuperblockNotFlushed) {
            member.disk.flush().await?;
        }
        member.newest_copy.set(copy);
        Ok(())
    }
}

/// A write that waits for space in a file system.
pub(super) struct Starving<'a> {
    membership: &'a Membership,
    slot: Slot,
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        let waiting = &self.membership.starving[self.slot.index()];
        waiting.set(waiting.get() - 1);
        if waiting.get() == 0 {
            (self.membership.events)(Event {
                severity: Severity::Info,
                kind: "disk-space-back",
                message: format!(
                    "no write waits for space under disk {} ({}) any more",
                    self.slot.0,
                    self.membership.path(self.slot)
                ),
            });
        }
    }
}

impl State {
    fn members(&self) -> MemberSet {
        self.record.members()
    }
}

impl PoolRecord {
    /// The slots whose disks belong.
    #[must_use]
    pub fn members(&self) -> MemberSet {
        let slots = self.geometry.all_slots().iter();
        slots.filter(|slot| self.disks[slot.index()].member).fold(MemberSet::EMPTY, MemberSet::with)
    }

    /// The member that does not have everything yet.
    pub(super) fn rebuilding(&self) -> MemberSet {
        self.rebuild.iter().fold(MemberSet::EMPTY, |set, rebuild| set.with(rebuild.slot))
    }
}

/// More than a commit ever tries: each attempt costs a disk.
const GENERATIONS_UNHEARD: u64 = 64;
