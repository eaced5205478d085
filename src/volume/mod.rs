//! Volumes: what a logical unit reads and writes.
//!
//! A [`Volume`] turns the logical blocks of a [`device::BlockDevice`] into versioned 4 KiB blocks of
//! a [`BlockStore`]. It guarantees:
//! - each write has one version, taken at the moment of its append, so versions grow in log order;
//! - what is written in part of a 4 KiB block, and COMPARE AND WRITE, is merged under an exclusive
//!   lock on its blocks from the read until it is durable, even when the caller has gone; plain
//!   writes share their blocks with each other but never with a merge, so no update is lost;
//! - checksums are computed here, once, over the memory that the store gets;
//! - blocks of zeros take no space;
//! - after [`Volume::close`] nothing is in flight, and every operation says [`DeviceError::Gone`].
//!
//! Left to others: durability and the meaning of versions (`store`), who may open a volume and under
//! which epoch (`cluster`), limits on the number and size of operations (`iscsi`, `scsi`).
//!
//! [`DeviceError::Gone`]: device::DeviceError::Gone

mod blocks;
mod copying;
pub mod device;
mod gate;
mod history;
pub mod mutant;
mod operations;
pub mod range_lock;
mod resize;
mod rollback;
pub mod snapshot;
pub mod statistics;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

pub use self::copying::HeldBlocks;
pub use self::gate::Freeze;
pub use self::history::{HeldSnapshots, SnapshotError, take_group_snapshot};
pub use self::resize::{ResizeError, Shrinking};
pub use self::rollback::Rollback;

use self::blocks::BLOCK_BYTES;
use self::device::DeviceGeometry;
use self::gate::Gate;
use self::range_lock::RangeLock;
use self::statistics::VolumeStatistics;
use crate::base::buffer::BufferPool;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::{Version, VolumeId};
use crate::store::interface::BlockStore;

/// A thin volume on a store. Clones are handles of the same volume; a volume must be opened once
/// only, because the handles share its locks and its sequence.
pub struct Volume<S: BlockStore> {
    shared: Rc<Shared<S>>,
}

impl<S: BlockStore + 'static> Volume<S> {
    /// Opens a volume of `store`.
    ///
    /// # Panics
    /// When the logical block is neither 512 nor 4096 bytes, or the size is not whole 4 KiB blocks.
    #[must_use]
    pub fn open(parameters: VolumeParameters, services: VolumeServices<S>) -> Self {
        let VolumeParameters { id, epoch, next_sequence, geometry } = parameters;
        let logical_block_bytes = u64::from(geometry.logical_block_bytes);
        assert!(matches!(logical_block_bytes, 512 | BLOCK_BYTES), "logical block of {logical_block_bytes}");
        let size_bytes = geometry.block_count.checked_mul(logical_block_bytes);
        let Some(size_bytes) = size_bytes.filter(|size| size.is_multiple_of(BLOCK_BYTES)) else {
            panic!("{} blocks of {logical_block_bytes} are not whole blocks", geometry.block_count)
        };
        Self {
            shared: Rc::new(Shared {
                id,
                logical_block_bytes,
                epoch: Cell::new(epoch),
                services,
                size_bytes: Cell::new(size_bytes),
                stale_end_block: Cell::new(size_bytes / BLOCK_BYTES),
                next_sequence: Cell::new(next_sequence),
                locks: Rc::default(),
                resizing: Rc::default(),
                snapshot_turn: Rc::default(),
                is_restoring: Cell::new(false),
                restored_until: Cell::new(0),
                gate: Rc::default(),
                statistics: RefCell::default(),
            }),
        }
    }

    /// Which volume this is.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.shared.id
    }

    /// Size now, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes.get()
    }

    /// The version of the latest append, durable or not.
    #[must_use]
    pub fn latest_version(&self) -> Version {
        Version {
            epoch: self.shared.epoch.get(),
            sequence: self.shared.next_sequence.get().saturating_sub(1),
        }
    }

    /// Lets no operation in any more and waits until none is in flight; then the volume may be
    /// deleted, moved or opened again. A [`Freeze`] delays it.
    pub async fn close(&self) {
        self.shared.gate.close().await;
    }

    /// Holds the completions of all operations, reads included, until the returned value is dropped:
    /// while it lives, nobody learns of anything that [`Volume::latest_version`] does not cover.
    pub fn freeze(&self) -> Freeze {
        self.shared.gate.freeze()
    }

    /// Operations in flight.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        self.shared.gate.in_flight()
    }

    /// Totals since the volume was opened.
    #[must_use]
    pub fn statistics(&self) -> VolumeStatistics {
        self.shared.statistics.borrow().clone()
    }
}

impl<S: BlockStore> Clone for Volume<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<S: BlockStore> fmt::Debug for Volume<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Volume({}, {} bytes)", self.shared.id.0, self.shared.size_bytes.get())
    }
}

/// What distinguishes a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeParameters {
    /// Its number in the cluster and in the store.
    pub id: VolumeId,
    /// Epoch under which it is served.
    pub epoch: u32,
    /// First sequence number to give: one more than the greatest that the store has recovered.
    pub next_sequence: u64,
    /// Size and sector size. The size in bytes is a multiple of 4096.
    pub geometry: DeviceGeometry,
}

/// What a volume works with.
pub struct VolumeServices<S> {
    /// Where its blocks live.
    pub store: Rc<S>,
    /// Clock, and tasks for what callers abandon.
    pub runtime: RuntimeHandle,
    /// Memory for merged and unaligned blocks.
    pub pool: BufferPool,
}

impl<S> fmt::Debug for VolumeServices<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeServices").finish_non_exhaustive()
    }
}

/// State of an open volume.
struct Shared<S> {
    id: VolumeId,
    logical_block_bytes: u64,
    epoch: Cell<u32>,
    services: VolumeServices<S>,
    size_bytes: Cell<u64>,
    /// Blocks from the end of the volume to before this one may still hold what a shrink has cut off.
    stale_end_block: Cell<u64>,
    next_sequence: Cell<u64>,
    locks: Rc<RangeLock>,
    /// One claim for whoever resizes.
    resizing: Rc<RangeLock>,
    /// One claim for all who take or drop snapshots together, or for who needs the list alone.
    snapshot_turn: Rc<RangeLock>,
    /// A task goes on with a rollback.
    is_restoring: Cell<bool>,
    /// The block that it has come to.
    restored_until: Cell<u64>,
    gate: Rc<Gate>,
    statistics: RefCell<VolumeStatistics>,
}
