//! SNACK Request (RFC 7143 section 11.16): asks for a retransmission, at error recovery level 1.

use super::header::{BasicHeader, FINAL, Opcode};
use super::{InitiatorTaskTag, PduError, SerialNumber, TargetTransferTag};

/// SNACK Request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnackRequest {
    /// What is missing.
    pub kind: SnackType,
    /// Logical unit.
    pub lun: [u8; 8],
    /// The task's tag.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Target transfer tag or SNACK tag.
    pub target_transfer_tag: TargetTransferTag,
    /// ExpStatSN.
    pub expected_status_sn: SerialNumber,
    /// BegRun: the first that is missing.
    pub first_missing: u32,
    /// RunLength: how many are missing; 0 for all.
    pub run_length: u32,
}

impl SnackRequest {
    /// Reads the header.
    ///
    /// # Errors
    /// A reserved type.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        Ok(Self {
            kind: SnackType::parse(header.byte(1) & 0x0f)?,
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            target_transfer_tag: header.target_transfer_tag(),
            expected_status_sn: SerialNumber(header.u32_at(28)),
            first_missing: header.u32_at(40),
            run_length: header.u32_at(44),
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut header = BasicHeader::new(Opcode::SnackRequest, FINAL | self.kind as u8);
        header.set_task(&self.lun, self.initiator_task_tag, self.target_transfer_tag);
        header.set_u32(28, self.expected_status_sn.0);
        header.set_u32(40, self.first_missing);
        header.set_u32(44, self.run_length);
        header
    }
}

/// Types of section 11.16.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SnackType {
    /// Data-In or R2T PDUs.
    DataOrR2t = 0,
    /// Status PDUs.
    Status = 1,
    /// Not a request: acknowledges data.
    DataAck = 2,
    /// Data-In again, perhaps in other pieces.
    ResegmentedData = 3,
}

impl SnackType {
    fn parse(bits: u8) -> Result<Self, PduError> {
        match bits {
            0 => Ok(Self::DataOrR2t),
            1 => Ok(Self::Status),
            2 => Ok(Self::DataAck),
            3 => Ok(Self::ResegmentedData),
            _ => Err(PduError::Reserved { field: "Type", value: bits.into() }),
        }
    }
}
