//! Reject (RFC 7143 section 11.17): the target refuses a PDU and sends its header back.

use super::header::{BasicHeader, FINAL, Opcode};
use super::{InitiatorTaskTag, PduError, ResponseSerials};

/// Reject. Its data segment is the header of the PDU refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// StatSN, ExpCmdSN, MaxCmdSN.
    pub serials: ResponseSerials,
    /// DataSN or R2TSN: only for a Data-Out reported at error recovery level 1.
    pub data_sn: u32,
}

impl Reject {
    /// Reads the header.
    ///
    /// # Errors
    /// A reserved reason code.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        Ok(Self {
            reason: RejectReason::parse(header.byte(2))?,
            serials: ResponseSerials::parse(header),
            data_sn: header.u32_at(36),
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut header = BasicHeader::new(Opcode::Reject, FINAL);
        header.set_byte(2, self.reason as u8);
        header.set_u32(16, InitiatorTaskTag::RESERVED.0);
        self.serials.emit(&mut header);
        header.set_u32(36, self.data_sn);
        header
    }
}

/// Reason codes of section 11.17.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// Data (payload) digest error.
    DataDigestError = 0x02,
    /// SNACK reject.
    SnackReject = 0x03,
    /// Protocol error.
    ProtocolError = 0x04,
    /// Command not supported.
    CommandNotSupported = 0x05,
    /// Immediate command reject: too many immediate commands.
    ImmediateCommandReject = 0x06,
    /// Task in progress.
    TaskInProgress = 0x07,
    /// Invalid data ack.
    InvalidDataAck = 0x08,
    /// Invalid PDU field.
    InvalidPduField = 0x09,
    /// Long operation reject: out of target transfer tags.
    LongOperationReject = 0x0a,
    /// Deprecated: negotiation reset.
    NegotiationReset = 0x0b,
    /// Waiting for logout.
    WaitingForLogout = 0x0c,
}

impl RejectReason {
    fn parse(byte: u8) -> Result<Self, PduError> {
        Ok(match byte {
            0x02 => Self::DataDigestError,
            0x03 => Self::SnackReject,
            0x04 => Self::ProtocolError,
            0x05 => Self::CommandNotSupported,
            0x06 => Self::ImmediateCommandReject,
            0x07 => Self::TaskInProgress,
            0x08 => Self::InvalidDataAck,
            0x09 => Self::InvalidPduField,
            0x0a => Self::LongOperationReject,
            0x0b => Self::NegotiationReset,
            0x0c => Self::WaitingForLogout,
            _ => return Err(PduError::Reserved { field: "Reason", value: byte.into() }),
        })
    }
}
