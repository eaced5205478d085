//! Ready To Transfer (RFC 7143 section 11.8): the target asks for a part of a write's data.

use super::header::{BasicHeader, FINAL, Opcode};
use super::{InitiatorTaskTag, ResponseSerials, TargetTransferTag};

/// Ready To Transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyToTransfer {
    /// Logical unit of the command.
    pub lun: [u8; 8],
    /// The task's tag.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Tag that the Data-Out PDUs repeat.
    pub target_transfer_tag: TargetTransferTag,
    /// StatSN is the next one to be used: an R2T takes none.
    pub serials: ResponseSerials,
    /// R2TSN: number within the command, from 0.
    pub r2t_sn: u32,
    /// Offset of what is wanted in the whole transfer, in bytes.
    pub buffer_offset: u32,
    /// Bytes wanted, at most MaxBurstLength.
    pub desired_data_transfer_length: u32,
}

impl ReadyToTransfer {
    /// Reads the header.
    #[must_use]
    pub fn parse(header: &BasicHeader) -> Self {
        Self {
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            target_transfer_tag: header.target_transfer_tag(),
            serials: ResponseSerials::parse(header),
            r2t_sn: header.u32_at(36),
            buffer_offset: header.u32_at(40),
            desired_data_transfer_length: header.u32_at(44),
        }
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut header = BasicHeader::new(Opcode::ReadyToTransfer, FINAL);
        header.set_task(&self.lun, self.initiator_task_tag, self.target_transfer_tag);
        self.serials.emit(&mut header);
        header.set_u32(36, self.r2t_sn);
        header.set_u32(40, self.buffer_offset);
        header.set_u32(44, self.desired_data_transfer_length);
        header
    }
}
