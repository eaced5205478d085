//! NOP-Out and NOP-In (RFC 7143 sections 11.18 and 11.19): pings in both directions.

use super::header::{BasicHeader, FINAL, Opcode};
use super::{InitiatorTaskTag, ResponseSerials, SerialNumber, TargetTransferTag};

/// NOP-Out. Its data segment is ping data, to be echoed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// I bit.
    pub is_immediate: bool,
    /// Logical unit, repeated from the NOP-In that it answers.
    pub lun: [u8; 8],
    /// Tag of the ping; reserved when no answer is wanted.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Tag of the NOP-In that it answers, otherwise reserved.
    pub target_transfer_tag: TargetTransferTag,
    /// CmdSN.
    pub command_sn: SerialNumber,
    /// ExpStatSN.
    pub expected_status_sn: SerialNumber,
}

impl NopOut {
    /// Reads the header.
    #[must_use]
    pub fn parse(header: &BasicHeader) -> Self {
        Self {
            is_immediate: header.is_immediate(),
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            target_transfer_tag: header.target_transfer_tag(),
            command_sn: SerialNumber(header.u32_at(24)),
            expected_status_sn: SerialNumber(header.u32_at(28)),
        }
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut header = BasicHeader::request(Opcode::NopOut, self.is_immediate, FINAL);
        header.set_task(&self.lun, self.initiator_task_tag, self.target_transfer_tag);
        header.set_request_serials(self.command_sn, self.expected_status_sn);
        header
    }
}

/// NOP-In. Its data segment echoes a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NopIn {
    /// Logical unit, to be repeated in an answer.
    pub lun: [u8; 8],
    /// Tag of the ping that it answers; reserved when the target asks by itself.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Tag to be repeated; reserved when no answer is wanted.
    pub target_transfer_tag: TargetTransferTag,
    /// StatSN is taken only by an answer to a ping.
    pub serials: ResponseSerials,
}

impl NopIn {
    /// Reads the header.
    #[must_use]
    pub fn parse(header: &BasicHeader) -> Self {
        Self {
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            target_transfer_tag: header.target_transfer_tag(),
            serials: ResponseSerials::parse(header),
        }
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut header = BasicHeader::new(Opcode::NopIn, FINAL);
        header.set_task(&self.lun, self.initiator_task_tag, self.target_transfer_tag);
        self.serials.emit(&mut header);
        header
    }
}
