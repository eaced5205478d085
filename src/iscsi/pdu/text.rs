//! Text Request and Text Response (RFC 7143 sections 11.10 and 11.11).

use super::header::{BasicHeader, CONTINUE, FINAL, Opcode, final_bit};
use super::{InitiatorTaskTag, PduError, ResponseSerials, SerialNumber, TargetTransferTag};

/// Text Request. Its data segment is `key=value` text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextRequest {
    /// I bit.
    pub is_immediate: bool,
    /// F bit: the initiator has said all that it wants to.
    pub is_final: bool,
    /// C bit: the text goes on in the next request.
    pub continues: bool,
    /// Logical unit, repeated from the response that it goes on from.
    pub lun: [u8; 8],
    /// Tag of the exchange.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Tag of the response that it goes on from, reserved for a new exchange.
    pub target_transfer_tag: TargetTransferTag,
    /// CmdSN.
    pub command_sn: SerialNumber,
    /// ExpStatSN.
    pub expected_status_sn: SerialNumber,
}

impl TextRequest {
    /// Reads the header.
    ///
    /// # Errors
    /// F and C both set.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        Ok(Self {
            is_immediate: header.is_immediate(),
            is_final: header.is_final(),
            continues: parse_continue(header)?,
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            target_transfer_tag: header.target_transfer_tag(),
            command_sn: SerialNumber(header.u32_at(24)),
            expected_status_sn: SerialNumber(header.u32_at(28)),
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let flags = final_bit(self.is_final) | if self.continues { CONTINUE } else { 0 };
        let mut header = BasicHeader::request(Opcode::TextRequest, self.is_immediate, flags);
        header.set_task(&self.lun, self.initiator_task_tag, self.target_transfer_tag);
        header.set_request_serials(self.command_sn, self.expected_status_sn);
        header
    }
}

/// Text Response. Its data segment is `key=value` text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextResponse {
    /// F bit: the exchange is over.
    pub is_final: bool,
    /// C bit: the text goes on in the next response.
    pub continues: bool,
    /// Logical unit, to be repeated.
    pub lun: [u8; 8],
    /// Tag of the exchange.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Tag to be repeated in the next request, reserved with the F bit.
    pub target_transfer_tag: TargetTransferTag,
    /// StatSN, ExpCmdSN, MaxCmdSN.
    pub serials: ResponseSerials,
}

impl TextResponse {
    /// Reads the header.
    ///
    /// # Errors
    /// F and C both set.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        Ok(Self {
            is_final: header.is_final(),
            continues: parse_continue(header)?,
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            target_transfer_tag: header.target_transfer_tag(),
            serials: ResponseSerials::parse(header),
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let flags = final_bit(self.is_final) | if self.continues { CONTINUE } else { 0 };
        let mut header = BasicHeader::new(Opcode::TextResponse, flags);
        header.set_task(&self.lun, self.initiator_task_tag, self.target_transfer_tag);
        self.serials.emit(&mut header);
        header
    }
}

/// The C bit, which excludes F (T in login).
pub(super) fn parse_continue(header: &BasicHeader) -> Result<bool, PduError> {
    match header.byte(1) & (FINAL | CONTINUE) {
        0xc0 => Err(PduError::Contradiction("the C bit together with F or T")),
        flags => Ok(flags & CONTINUE != 0),
    }
}
