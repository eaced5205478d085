//! The contents of the volumes that this node serves, for the management service: read as they are at snapshots, and
//! written, in pieces of bounded size.

use std::ops::Range;

use bytes::Bytes;

use super::DataThread;
use super::pool::Pool;
use crate::base::units::{BLOCK_SIZE, Version, VolumeId};
use crate::daemon::engine::{EngineError, Filling, RangesFound, RangesWanted};
use crate::volume::device::BlockDevice;

impl<P: Pool> DataThread<P> {
    /// Runs of blocks in a view of a volume.
    pub(super) async fn look_at_ranges(&self, wanted: RangesWanted) -> Result<RangesFound, EngineError> {
        let volume = self.device(wanted.volume)?;
        Ok(volume.ranges(wanted.at, wanted.since, wanted.blocks).await?)
    }

    /// Blocks as they are at a snapshot.
    pub(super) async fn read_snapshot(
        &self,
        id: VolumeId,
        at: Version,
        blocks: Range<u64>,
    ) -> Result<Vec<Bytes>, EngineError> {
        let volume = self.device(id)?;
        let per_block = BLOCK_SIZE as u64 / u64::from(volume.geometry().logical_block_bytes);
        Ok(volume.read_at(at, blocks.start * per_block, (blocks.end - blocks.start) * per_block).await?)
    }

    /// Writes blocks as a host does.
    pub(super) async fn fill(&self, id: VolumeId, block: u64, filling: Filling) -> Result<(), EngineError> {
        let volume = self.device(id)?;
        let per_block = BLOCK_SIZE as u64 / u64::from(volume.geometry().logical_block_bytes);
        let address = block * per_block;
        match filling {
            Filling::Data(data) => volume.write(address, vec![data]).await?,
            Filling::Zeros(count) => volume.unmap(address, count * per_block).await?,
        }
        Ok(())
    }
}
