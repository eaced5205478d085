//! A new disk in the place of one that left: how it joins, which of its columns are proven, and spares that do
//! so by themselves.
//!
//! A disk that joined takes part in everything that is written from then on. What was written before is *unproven*
//! on it, segment by segment, until the store has rebuilt it (`store/rebuild`): such a column is neither read nor
//! used to reconstruct another one. While anything is unproven, no other disk can be done without.
//!
//! A disk that is *retired* while it still works goes on being read where it has all of a segment, until the disk in its
//! place has that too. So what another disk can't give, or has wrong, is not lost while there is no parity for it.
//!
//! Left to others: which segments there are and what they hold, and how fast they are rebuilt (`store`).

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};

use crate::base::buffer::AlignedBuf;
use crate::base::event::{Event, Severity};
use crate::base::mutant::{self, Mutant};
use crate::disk::{Disk, DiskError, DiskErrorKind};

use super::disks::{Array, ArrayError};
use super::election::{OpenError, read_superblock, refuse_unless_blank};
use super::geometry::{SegmentIndex, Slot};
use super::membership::{Membership, OpenDisk};
use super::superblock::{PoolRecord, RebuildRecord, SUPERBLOCK_BYTES, Superblock, Uuid, copy_offset};

/// What is not proven on the disk that is being rebuilt, and the disks that wait to take a place.
#[derive(Default)]
pub(super) struct Replacement {
    /// By segment; empty when everything counts as proven.
    unproven: RefCell<Vec<bool>>,
    spares: RefCell<Vec<Spare>>,
    predecessor: RefCell<Option<Predecessor>>,
}

/// A disk that was retired, and the segments that it has all of.
struct Predecessor {
    slot: Slot,
    disk: Rc<dyn Disk>,
    has: Vec<bool>,
}

/// A disk that takes the place of one that fails.
#[derive(Clone)]
struct Spare {
    disk: Rc<dyn Disk>,
    uuid: Uuid,
}

/// Why a disk can't take a place in the array. Nothing was changed on it, but for `Disk` and `Array`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The place is not free.
    #[error("disk {} is in use; take it out first, with `gemel disk fail`", .0.0)]
    InUse(Slot),
    /// Another disk is being rebuilt.
    #[error("another disk is being rebuilt; wait until that is done")]
    Rebuilding,
    /// Smaller than the others.
    #[error("disk {path} has {bytes} bytes, and the pool's disks hold {needed}: it is too small")]
    TooSmall {
        /// The disk.
        path: String,
        /// Its size.
        bytes: u64,
        /// The least that it must have.
        needed: u64,
    },
    /// There is something on it.
    #[error("{0}")]
    NotBlank(String),
    /// It can't be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The array is offline, or the disk failed while it joined.
    #[error("the pool went offline, or the disk failed while it joined")]
    Array,
}

impl Replacement {
    pub(super) fn is_unproven(&self, segment: SegmentIndex) -> bool {
        self.unproven.borrow().get(segment.index()).copied().unwrap_or(false)
    }

    /// The disk that was in a place and has all of a segment, where the one that is there now has not.
    fn predecessor(&self, slot: Slot, segment: SegmentIndex) -> Option<Rc<dyn Disk>> {
        let known = self.predecessor.borrow();
        let is_it = |known: &&Predecessor| known.slot == slot && known.has[segment.index()];
        known.as_ref().filter(is_it).map(|known| known.disk.clone())
    }

    fn forget_predecessor(&self, slot: Slot) {
        self.predecessor.borrow_mut().take_if(|known| known.slot == slot);
    }
}

impl Array {
    /// Puts a disk into the place of one that left. It is in use when this completes, and lacks what was written
    /// before: the store rebuilds that. `uuid` becomes the disk's identity.
    ///
    /// The disk must be blank or have belonged to this pool before, unless `overwrite_foreign`.
    pub async fn replace(
        &self,
        slot: Slot,
        disk: Rc<dyn Disk>,
        uuid: Uuid,
        overwrite_foreign: bool,
    ) -> Result<(), ReplaceError> {
        let membership = self.membership();
        if !self.geometry().all_slots().contains(slot) || membership.record().members().contains(slot) {
            return Err(ReplaceError::InUse(slot));
        }
        if membership.record().rebuild.is_some() {
            return Err(ReplaceError::Rebuilding);
        }
        self.refuse_unfit(&disk, overwrite_foreign).await?;
        prepare(&disk, slot, uuid, membership.record()).await?;
        let (array, path) = (self.clone(), disk.properties().path.clone());
        let joined = || {
            *array.replacement().unproven.borrow_mut() = vec![true; array.geometry().segment_count as usize];
            array.reset_counts(slot);
        };
        membership.join(slot, OpenDisk::new(disk, 0), uuid, joined).await.map_err(|_| ReplaceError::Array)?;
        membership.tell(
            Severity::Info,
            "disk-joined",
            format!(
                "disk {path} took place {} of the pool. What is written from now on has its full redundancy; what was \
                 written before is being rebuilt onto it",
                slot.0
            ),
        );
        Ok(())
    }

    /// Refuses a disk that is too small, or holds what must not be destroyed.
    async fn refuse_unfit(&self, disk: &Rc<dyn Disk>, overwrite_foreign: bool) -> Result<(), ReplaceError> {
        let (path, bytes) = (disk.properties().path.clone(), disk.properties().size_bytes);
        let record = self.membership().record();
        let needed = Superblock { slot: Slot(0), record: record.clone() }.needed_bytes();
        if bytes < needed {
            return Err(ReplaceError::TooSmall { path, bytes, needed });
        }
        let was_ours =
            matches!(read_superblock(disk).await?, Ok((found, _)) if found.record.pool == record.pool);
        if was_ours || overwrite_foreign {
            return Ok(());
        }
        refuse_unless_blank(disk).await.map_err(|error| match error {
            OpenError::Disk(error) => ReplaceError::Disk(error),
            OpenError::NotBlank { path, reason } => ReplaceError::NotBlank(format!(
                "disk {path}: {reason}; to destroy what is on it, use --force"
            )),
            other => ReplaceError::NotBlank(other.to_string()),
        })
    }

    /// Lets go of a disk that is out of use, so that it can be opened anew.
    pub fn let_go(&self, slot: Slot) {
        self.replacement().forget_predecessor(slot);
        self.membership().let_go(slot);
    }

    /// Stops using a disk that still works, as [`Array::fail`] does, for a spare to take its place. Of the segments that
    /// `has` names it has all that is to be there: these are read from it until they are rebuilt.
    ///
    /// # Errors
    /// As [`Array::fail`]; and when no spare waits. Nothing has changed then.
    pub async fn retire(
        &self,
        slot: Slot,
        reason: &str,
        has: impl Fn(SegmentIndex) -> bool,
    ) -> Result<(), ArrayError> {
        let Some(disk) =
            self.membership().disk(slot).filter(|_| !self.replacement().spares.borrow().is_empty())
        else {
            return Err(ArrayError::Offline);
        };
        if !self.can_do_without(slot) {
            return Err(ArrayError::Offline);
        }
        let has = (0..self.geometry().segment_count).map(|segment| has(SegmentIndex(segment))).collect();
        *self.replacement().predecessor.borrow_mut() = Some(Predecessor { slot, disk, has });
        self.fail(slot, reason).await
    }

    /// Whether a segment that a disk lacks is read from the one that was retired from its place.
    #[must_use]
    pub fn has_predecessor(&self, slot: Slot, segment: SegmentIndex) -> bool {
        self.replacement().predecessor(slot, segment).is_some()
    }

    /// Reads rows from the disk that was in a place before, where the one that is there now lacks them.
    pub(super) async fn read_predecessor(
        &self,
        slot: Slot,
        offset: u64,
        segment: SegmentIndex,
        length: usize,
    ) -> Result<AlignedBuf, ArrayError> {
        let disk = self.replacement().predecessor(slot, segment).ok_or(ArrayError::Unreadable)?;
        let buffer = self.buffers().get(length);
        match select(disk.read(offset, buffer), self.runtime().sleep(PATIENCE)).await {
            Either::Left((Ok(buffer), _)) => Ok(buffer),
            Either::Left((Err(error), _)) if matches!(error.kind, DiskErrorKind::Io(_)) => {
                Err(ArrayError::Unreadable)
            }
            // It is gone, or hangs: nobody should wait for it again.
            _ => {
                self.replacement().forget_predecessor(slot);
                Err(ArrayError::Unreadable)
            }
        }
    }

    /// The disk that is being rebuilt, and how far that has come durably.
    #[must_use]
    pub fn rebuild(&self) -> Option<RebuildRecord> {
        self.membership().rebuild()
    }

    /// Whether a segment's column on the disk that is being rebuilt is not proven.
    #[must_use]
    pub fn is_unproven(&self, segment: SegmentIndex) -> bool {
        self.replacement().is_unproven(segment)
    }

    /// The first segment, from `from` on, that is not proven.
    #[must_use]
    pub fn next_unproven(&self, from: SegmentIndex) -> Option<SegmentIndex> {
        let unproven = self.replacement().unproven.borrow();
        (from.0..)
            .map(SegmentIndex)
            .take(unproven.len().saturating_sub(from.index()))
            .find(|s| unproven[s.index()])
    }

    /// Number of segments that are not proven.
    #[must_use]
    pub fn unproven_count(&self) -> usize {
        self.replacement().unproven.borrow().iter().filter(|unproven| **unproven).count()
    }

    /// From now on just these segments are not proven.
    pub fn set_unproven(&self, is_unproven: impl Fn(SegmentIndex) -> bool) {
        let segments = (0..self.geometry().segment_count).map(SegmentIndex);
        *self.replacement().unproven.borrow_mut() = segments.map(is_unproven).collect();
    }

    /// A segment's column was rebuilt, or the segment holds nothing any more.
    pub fn proven(&self, segment: SegmentIndex) {
        if let Some(predecessor) = self.replacement().predecessor.borrow_mut().as_mut() {
            predecessor.has[segment.index()] = false;
        }
        if let Some(unproven) = self.replacement().unproven.borrow_mut().get_mut(segment.index()) {
            *unproven = false;
        }
    }

    /// The identity of the disk that is being rebuilt. Another one may come to the same place when it fails.
    #[must_use]
    pub fn rebuilding_disk(&self) -> Option<Uuid> {
        let slot = self.rebuild()?.slot;
        if mutant::is(Mutant::RebuildOfAnotherDisk) {
            return Some(Uuid([0; 16])); // one is as good as another
        }
        Some(self.membership().record().disks[slot.index()].uuid)
    }

    /// Writes a part of the column of a segment to the disk that is being rebuilt. Whether that is still there.
    pub async fn write_rebuilt(
        &self,
        (slot, disk): (Slot, Uuid),
        segment: SegmentIndex,
        row: u32,
        data: Bytes,
    ) -> bool {
        self.write_rows(slot, segment, row, data).await;
        self.rebuilding_disk() == Some(disk)
    }

    /// Makes it durable how far the rebuilding of this disk has come. What it says must be on stable media.
    pub async fn commit_rebuild(&self, disk: Uuid, rebuild: RebuildRecord) -> Result<(), ArrayError> {
        self.membership().commit_rebuild((rebuild.slot, disk), Some(rebuild)).await
    }

    /// The disk in `slot`, which is this one, has everything: from now on another one may fail.
    pub async fn finish_rebuild(&self, slot: Slot, disk: Uuid) -> Result<(), ArrayError> {
        self.membership().commit_rebuild((slot, disk), None).await?;
        if self.membership().record().rebuild.is_none() {
            self.replacement().forget_predecessor(slot);
            self.replacement().unproven.borrow_mut().clear();
        }
        Ok(())
    }

    /// Keeps a blank disk ready for the place of one that fails. Nothing is written to it before.
    pub async fn add_spare(&self, disk: Rc<dyn Disk>, uuid: Uuid) -> Result<(), ReplaceError> {
        self.refuse_unfit(&disk, false).await?;
        self.replacement().spares.borrow_mut().push(Spare { disk, uuid });
        self.changed().notify();
        Ok(())
    }

    /// Gives up a spare; whether it was one.
    pub fn remove_spare(&self, path: &str) -> bool {
        let mut spares = self.replacement().spares.borrow_mut();
        let before = spares.len();
        spares.retain(|spare| spare.disk.properties().path != path);
        spares.len() < before
    }

    /// Paths, sizes and identities-to-be of the spares.
    #[must_use]
    pub fn spares(&self) -> Vec<(String, u64, Uuid)> {
        let describe = |spare: &Spare| {
            (spare.disk.properties().path.clone(), spare.disk.properties().size_bytes, spare.uuid)
        };
        self.replacement().spares.borrow().iter().map(describe).collect()
    }

    /// Puts a spare into the place of a disk that left, when there are both. Whether it did.
    pub(super) async fn use_spare(&self) -> bool {
        let record = self.membership().record();
        let empty = self.geometry().all_slots().difference(record.members());
        let Some(slot) = empty.iter().next().filter(|_| record.rebuild.is_none() && !self.is_offline())
        else {
            return false;
        };
        let spare = match mutant::is(Mutant::SpareTwice) {
            true => self.replacement().spares.borrow().first().cloned(),
            false => self.replacement().spares.borrow_mut().pop(),
        };
        let Some(spare) = spare else { return false };
        let path = spare.disk.properties().path.clone();
        match self.replace(slot, spare.disk, spare.uuid, false).await {
            Ok(()) => self.membership().tell(
                Severity::Warning,
                "spare-used",
                format!(
                    "spare disk {path} took the place of disk {}, which had failed. Add another spare",
                    slot.0
                ),
            ),
            Err(error) => self.membership().tell(
                Severity::Warning,
                "spare-unusable",
                format!(
                    "spare disk {path} cannot take the place of disk {}: {error}. Replace the disk",
                    slot.0
                ),
            ),
        }
        true
    }

    /// Whether a column can't be read as its disk is not there, or does not have it yet.
    #[must_use]
    pub fn lacks_column(&self, slot: Slot, segment: SegmentIndex) -> bool {
        let is_missing = !self.live().contains(slot) || self.lacks(slot, segment);
        is_missing && self.replacement().predecessor(slot, segment).is_none()
    }

    /// What of a live disk is not there: reads of it are answered from the others.
    pub(super) fn lacks(&self, slot: Slot, segment: SegmentIndex) -> bool {
        self.replacement().is_unproven(segment)
            && self.membership().rebuild().is_some_and(|rebuild| rebuild.slot == slot)
    }
}

impl Membership {
    pub(super) fn tell(&self, severity: Severity, kind: &'static str, message: String) {
        (self.events())(Event { severity, kind, message });
    }
}

/// How long a disk that was retired may take for a read.
const PATIENCE: Duration = Duration::from_secs(1);

/// Puts a superblock on a disk that is about to join, one of no generation: it tells whose the disk is, and never
/// rules. What was there before is no superblock any more.
async fn prepare(
    disk: &Rc<dyn Disk>,
    slot: Slot,
    uuid: Uuid,
    mut record: PoolRecord,
) -> Result<(), DiskError> {
    record.generation = 0;
    record.disks[slot.index()].uuid = uuid;
    record.disks[slot.index()].member = true;
    record.rebuild = Some(RebuildRecord { slot, before_generation: u64::MAX, cursor: 0 });
    let blank = AlignedBuf::zeroed(SUPERBLOCK_BYTES).freeze();
    disk.write(copy_offset(1), vec![blank]).await?;
    disk.write(copy_offset(0), vec![Superblock { slot, record }.encode().freeze()]).await?;
    disk.flush().await
}
