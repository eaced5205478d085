//! What a resync needs of an open volume: blocks held still while they are copied, a mark at the beginning
//! of an epoch, and the epoch itself.

use std::future::Future;
use std::ops::Range;

use super::Volume;
use super::gate::Operation;
use super::range_lock::{LockMode, RangeGuard};
use crate::base::units::{BlockAddress, Version};
use crate::store::interface::{BlockStore, BlockWrite, StoreError};

/// Blocks on which nothing is in flight, and nothing begins before this is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets writes in again"]
pub struct HeldBlocks {
    _alone: RangeGuard,
    _operation: Operation,
}

impl<S: BlockStore + 'static> Volume<S> {
    /// Appends carry `epoch` from now on; those that have begun keep theirs. Sequence numbers go on.
    ///
    /// # Panics
    /// When the epoch is not a newer one.
    pub fn begin_epoch(&self, epoch: u32) {
        let before = self.shared.epoch.replace(epoch);
        assert!(before < epoch, "epoch {epoch} after {before}");
    }

    /// Waits until no write of `blocks`, which is not empty, is in flight, and lets none begin. None when
    /// the volume was closed.
    pub async fn hold(&self, blocks: Range<u64>) -> Option<HeldBlocks> {
        let operation = self.shared.gate.enter()?;
        let alone = self.shared.locks.acquire(blocks, LockMode::Exclusive).await;
        Some(HeldBlocks { _alone: alone, _operation: operation })
    }

    /// Appends a version that changes nothing: a hole far behind the end of every volume, of which stores
    /// keep only that there was such a version. Its version, and the future of its durability; the append
    /// goes on when that is dropped. None when the volume was closed.
    pub fn append_mark(&self) -> Option<(Version, impl Future<Output = Result<(), StoreError>> + 'static)> {
        let operation = self.shared.gate.enter()?;
        let mark = BlockWrite::Hole { address: MARK, count: 1 };
        let durable = self.settle(vec![mark], operation);
        Some((self.latest_version(), durable))
    }
}

/// Where no volume has a block: 2^47 blocks are 512 PiB.
const MARK: BlockAddress = BlockAddress(1 << 47);
