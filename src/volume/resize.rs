//! Growing and shrinking a volume in use.
//!
//! Guarantees: what growth adds reads as zeros, also when an earlier shrink, or this one's own
//! predecessor before a crash, has left data there; a shrink lets nothing new in beyond the new end,
//! waits for what is in flight there and gives the space back.

use std::rc::Rc;

use super::Volume;
use super::blocks::BLOCK_BYTES;
use super::device::DeviceError;
use super::range_lock::{LockMode, RangeGuard};
use crate::base::units::BlockAddress;
use crate::store::interface::{BlockStore, BlockWrite};

/// Whether a resize may throw data away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrinking {
    /// A size below the present one is an error.
    Refuse,
    /// What lies beyond a smaller size is lost.
    DiscardBeyond,
}

/// Why a volume was not resized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// The size is zero or not a multiple of 4096.
    #[error("a volume's size is a multiple of 4096 bytes, which {size_bytes} is not")]
    NotWholeBlocks {
        /// Size asked for.
        size_bytes: u64,
    },
    /// It would shrink, and that was not allowed.
    #[error(
        "{to_bytes} bytes is less than the present {from_bytes}: shrinking loses data and must be asked for"
    )]
    WouldShrink {
        /// Present size.
        from_bytes: u64,
        /// Size asked for.
        to_bytes: u64,
    },
    /// A rollback is under way.
    #[error("the volume is being rolled back to a snapshot: wait until that is done")]
    RollingBack,
    /// The store failed. A shrink has taken effect for hosts; calling again goes on giving back space.
    #[error("the resize was not completed: {0}")]
    Device(#[from] DeviceError),
}

impl<S: BlockStore + 'static> Volume<S> {
    /// Changes the size to `size_bytes`. Concurrent resizes take effect one after the other.
    ///
    /// # Errors
    /// As in [`ResizeError`]; a volume that could not grow has its old size.
    pub async fn resize(&self, size_bytes: u64, shrinking: Shrinking) -> Result<(), ResizeError> {
        let shared = &self.shared;
        let _operation = shared.gate.enter().ok_or(DeviceError::Gone)?;
        if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(ResizeError::NotWholeBlocks { size_bytes });
        }
        let _turn = shared.resizing.acquire(0..1, LockMode::Exclusive).await;
        // What lies beyond the end would be put back.
        if shared.is_restoring.get() {
            return Err(ResizeError::RollingBack);
        }
        let from_bytes = shared.size_bytes.get();
        if size_bytes < from_bytes {
            if shrinking == Shrinking::Refuse {
                return Err(ResizeError::WouldShrink { from_bytes, to_bytes: size_bytes });
            }
            // From here on nothing new starts beyond the end; the lock below waits for the rest.
            shared.size_bytes.set(size_bytes);
        }
        let kept_blocks = size_bytes.min(from_bytes) / BLOCK_BYTES;
        let end_block = shared.stale_end_block.get().max(size_bytes / BLOCK_BYTES);
        shared.stale_end_block.set(end_block);
        if kept_blocks < end_block {
            let alone = shared.locks.acquire(kept_blocks..end_block, LockMode::Exclusive).await;
            self.discard_mapped(kept_blocks, end_block, Rc::new(alone)).await?;
        }
        shared.stale_end_block.set(size_bytes / BLOCK_BYTES);
        shared.size_bytes.set(size_bytes);
        Ok(())
    }

    /// Makes holes of the mapped runs of blocks from `start` to before `end`. `alone` is the lock on
    /// them, so what is mapped does not change but by this.
    async fn discard_mapped(&self, start: u64, end: u64, alone: Rc<RangeGuard>) -> Result<(), DeviceError> {
        let shared = &self.shared;
        let store = &shared.services.store;
        let failed = |error| self.device_error(error, start * BLOCK_BYTES);
        let mut position = start;
        while position < end {
            let address = BlockAddress(position);
            let runs = store.allocation(shared.id, address, end - position, RUNS_AT_A_TIME).await;
            let runs = runs.map_err(failed)?;
            let Some(last) = runs.last() else { break };
            position = last.address.0 + last.count;
            let mapped = runs.into_iter().filter(|run| run.mapped);
            let holes: Vec<_> =
                mapped.map(|run| BlockWrite::Hole { address: run.address, count: run.count }).collect();
            if !holes.is_empty() {
                self.settle(holes, alone.clone()).await.map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Runs of a volume looked at together.
const RUNS_AT_A_TIME: usize = 256;
