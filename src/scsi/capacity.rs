//! READ CAPACITY (10) and (16) (SBC-3 sections 5.15 and 5.16).

use super::cdb::Cdb;
use super::command::{Outcome, Reply};
use super::logical_unit::LogicalUnit;
use super::sense::Sense;
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// READ CAPACITY (10): eight bytes; FFFFFFFFh says that READ CAPACITY (16) knows.
    pub(super) fn read_capacity_10(&self, cdb: &Cdb) -> Outcome {
        if cdb.u32(2) != 0 || cdb.bit(8, 0) {
            return Err(Sense::invalid_cdb_field(2).into()); // PMI, obsolete
        }
        let geometry = self.geometry();
        let last = u32::try_from(last_address(geometry.block_count)).unwrap_or(u32::MAX);
        let mut data = last.to_be_bytes().to_vec();
        data.extend_from_slice(&geometry.logical_block_bytes.to_be_bytes());
        Ok(Reply::parameters(data, 8))
    }

    /// READ CAPACITY (16).
    pub(super) fn read_capacity_16(&self, cdb: &Cdb) -> Outcome {
        let geometry = self.geometry();
        let mut data = vec![0; 32];
        data[0..8].copy_from_slice(&last_address(geometry.block_count).to_be_bytes());
        data[8..12].copy_from_slice(&geometry.logical_block_bytes.to_be_bytes());
        let in_physical = self.identity().physical_block_bytes / geometry.logical_block_bytes;
        data[13] = u8::try_from(in_physical.max(1).trailing_zeros()).expect("0 or 3");
        data[14] = 0xc0; // LBPME, LBPRZ; lowest aligned address 0
        Ok(Reply::parameters(data, usize::try_from(cdb.u32(10)).unwrap_or(usize::MAX)))
    }
}

fn last_address(block_count: u64) -> u64 {
    block_count.saturating_sub(1)
}
