//! SCSI Data-Out and SCSI Data-In (RFC 7143 section 11.7).

use super::command::Residual;
use super::header::{BasicHeader, Opcode, final_bit};
use super::{InitiatorTaskTag, PduError, ResponseSerials, SerialNumber, TargetTransferTag};

/// SCSI Data-Out: a piece of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// F bit: the last of its sequence.
    pub is_final: bool,
    /// Logical unit; meaningful with a target transfer tag.
    pub lun: [u8; 8],
    /// The task's tag.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Tag of the R2T it answers, reserved for unsolicited data.
    pub target_transfer_tag: TargetTransferTag,
    /// ExpStatSN.
    pub expected_status_sn: SerialNumber,
    /// DataSN: number within the sequence, from 0.
    pub data_sn: u32,
    /// Offset of the data in the whole transfer, in bytes.
    pub buffer_offset: u32,
}

impl DataOut {
    /// Reads the header.
    #[must_use]
    pub fn parse(header: &BasicHeader) -> Self {
        Self {
            is_final: header.is_final(),
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            target_transfer_tag: header.target_transfer_tag(),
            expected_status_sn: SerialNumber(header.u32_at(28)),
            data_sn: header.u32_at(36),
            buffer_offset: header.u32_at(40),
        }
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut header = BasicHeader::new(Opcode::DataOut, final_bit(self.is_final));
        header.set_task(&self.lun, self.initiator_task_tag, self.target_transfer_tag);
        header.set_u32(28, self.expected_status_sn.0);
        header.set_u32(36, self.data_sn);
        header.set_u32(40, self.buffer_offset);
        header
    }
}

/// SCSI Data-In: a piece of a read, and with the last one perhaps the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataIn {
    /// F bit: the last of its sequence.
    pub is_final: bool,
    /// A bit: the target asks for a Data Ack (only at error recovery level 1 and above).
    pub acknowledge: bool,
    /// S bit: the command ends here, with this status; no SCSI Response follows.
    pub status: Option<DataInStatus>,
    /// Logical unit; meaningful with a target transfer tag.
    pub lun: [u8; 8],
    /// The task's tag.
    pub initiator_task_tag: InitiatorTaskTag,
    /// For the A bit, otherwise reserved.
    pub target_transfer_tag: TargetTransferTag,
    /// StatSN (reserved, zero here, without a status), ExpCmdSN, MaxCmdSN.
    pub serials: ResponseSerials,
    /// DataSN: number within the command, from 0.
    pub data_sn: u32,
    /// Offset of the data in the whole transfer, in bytes.
    pub buffer_offset: u32,
}

/// The status that ends a read in its last Data-In.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataInStatus {
    /// SCSI status; never one that comes with sense data.
    pub status: u8,
    /// Residual of the read.
    pub residual: Residual,
}

impl DataIn {
    /// Reads the header.
    ///
    /// # Errors
    /// A status without the F bit, or contradicting residual flags.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        let flags = header.byte(1);
        let status = match (flags & 0x01 != 0, header.is_final()) {
            (false, _) => None,
            (true, false) => return Err(PduError::Contradiction("status in a Data-In that is not final")),
            (true, true) => Some(DataInStatus {
                status: header.byte(3),
                residual: Residual::parse(flags & 0x04 != 0, flags & 0x02 != 0, header.u32_at(44))?,
            }),
        };
        let mut serials = ResponseSerials::parse(header);
        if status.is_none() {
            serials.status_sn = SerialNumber(0);
        }
        Ok(Self {
            is_final: header.is_final(),
            acknowledge: flags & 0x40 != 0,
            status,
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            target_transfer_tag: header.target_transfer_tag(),
            serials,
            data_sn: header.u32_at(36),
            buffer_offset: header.u32_at(40),
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let flags = final_bit(self.is_final) | if self.acknowledge { 0x40 } else { 0 };
        let mut header = BasicHeader::new(Opcode::DataIn, flags);
        header.set_task(&self.lun, self.initiator_task_tag, self.target_transfer_tag);
        self.serials.emit(&mut header);
        if let Some(DataInStatus { status, residual }) = self.status {
            let (flag, count) = residual.emit(0x04, 0x02);
            header.set_byte(1, flags | flag | 0x01);
            header.set_byte(3, status);
            header.set_u32(44, count);
        } else {
            // StatSN is reserved without the S bit (section 11.7.4).
            header.set_u32(24, 0);
        }
        header.set_u32(36, self.data_sn);
        header.set_u32(40, self.buffer_offset);
        header
    }
}
