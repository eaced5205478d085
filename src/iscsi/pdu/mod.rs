//! Every PDU of RFC 7143 section 11, both directions: from bytes to values that are valid by
//! construction, and back.
//!
//! A PDU is a [`BasicHeader`], for SCSI Command [`AdditionalHeaders`], and a data segment that stays
//! where the receiver put it: values here hold the headers' fields only. [`framing`] knows lengths,
//! padding and digests. Reserved fields are sent as zeros and ignored when received, as section 11
//! asks; values that the standard reserves inside a used field are errors. Nothing here panics on
//! foreign bytes or allocates beyond an extended CDB. What a PDU means in its place in a session is
//! the business of `login` and `connection`.

pub mod additional_header;
pub mod asynchronous_message;
pub mod command;
pub mod data;
pub mod framing;
pub mod header;
pub mod login;
pub mod logout;
pub mod nop;
pub mod ready_to_transfer;
pub mod reject;
pub mod serial;
pub mod snack;
pub mod task_management;
#[cfg(test)]
mod tests;
pub mod text;

pub use additional_header::{AdditionalHeaders, Cdb};
pub use asynchronous_message::{AsynchronousEvent, AsynchronousMessage};
pub use command::{Residual, ScsiCommand, ScsiResponse, ServiceResponse, TaskAttribute};
pub use data::{DataIn, DataInStatus, DataOut};
pub use framing::{Digests, PduLengths, RawPdu};
pub use header::{BasicHeader, Opcode};
pub use login::{Isid, LoginRequest, LoginResponse, LoginStatus, Stage};
pub use logout::{LogoutReason, LogoutRequest, LogoutResponse, LogoutResult};
pub use nop::{NopIn, NopOut};
pub use ready_to_transfer::ReadyToTransfer;
pub use reject::{Reject, RejectReason};
pub use serial::{InitiatorTaskTag, ResponseSerials, SerialNumber, TargetTransferTag};
pub use snack::{SnackRequest, SnackType};
pub use task_management::{
    TaskManagementFunction, TaskManagementRequest, TaskManagementResponse, TaskManagementResult,
};
pub use text::{TextRequest, TextResponse};

/// A PDU that an initiator sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitiatorPdu {
    /// NOP-Out.
    NopOut(NopOut),
    /// SCSI Command.
    ScsiCommand(ScsiCommand),
    /// Task Management Function Request.
    TaskManagement(TaskManagementRequest),
    /// Login Request.
    Login(LoginRequest),
    /// Text Request.
    Text(TextRequest),
    /// SCSI Data-Out.
    DataOut(DataOut),
    /// Logout Request.
    Logout(LogoutRequest),
    /// SNACK Request.
    Snack(SnackRequest),
}

impl InitiatorPdu {
    /// Reads the headers of a PDU from an initiator; `additional` is the AHS part as it was
    /// received, [`BasicHeader::additional_length`] bytes.
    ///
    /// # Errors
    /// An opcode that initiators don't send, a reserved value, or a malformed additional header.
    pub fn parse(header: &BasicHeader, additional: &[u8]) -> Result<Self, PduError> {
        let opcode = Opcode::of_byte(header.opcode_byte()).ok_or(PduError::Opcode(header.opcode_byte()))?;
        if opcode != Opcode::ScsiCommand && !additional.is_empty() {
            return Err(PduError::Additional("additional header on a PDU that has none"));
        }
        Ok(match opcode {
            Opcode::NopOut => Self::NopOut(NopOut::parse(header)),
            Opcode::ScsiCommand => Self::ScsiCommand(ScsiCommand::parse(header, additional)?),
            Opcode::TaskManagementRequest => Self::TaskManagement(TaskManagementRequest::parse(header)),
            Opcode::LoginRequest => Self::Login(LoginRequest::parse(header)?),
            Opcode::TextRequest => Self::Text(TextRequest::parse(header)?),
            Opcode::DataOut => Self::DataOut(DataOut::parse(header)),
            Opcode::LogoutRequest => Self::Logout(LogoutRequest::parse(header)?),
            Opcode::SnackRequest => Self::Snack(SnackRequest::parse(header)?),
            _ => return Err(PduError::Opcode(header.opcode_byte())),
        })
    }
}

/// A PDU that a target sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPdu {
    /// NOP-In.
    NopIn(NopIn),
    /// SCSI Response.
    ScsiResponse(ScsiResponse),
    /// Task Management Function Response.
    TaskManagement(TaskManagementResponse),
    /// Login Response.
    Login(LoginResponse),
    /// Text Response.
    Text(TextResponse),
    /// SCSI Data-In.
    DataIn(DataIn),
    /// Logout Response.
    Logout(LogoutResponse),
    /// Ready To Transfer.
    ReadyToTransfer(ReadyToTransfer),
    /// Asynchronous Message.
    Asynchronous(AsynchronousMessage),
    /// Reject.
    Reject(Reject),
}

impl TargetPdu {
    /// Reads the header of a PDU from a target.
    ///
    /// # Errors
    /// An opcode that targets don't send, or a reserved value.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        let opcode = Opcode::of_byte(header.opcode_byte()).ok_or(PduError::Opcode(header.opcode_byte()))?;
        Ok(match opcode {
            Opcode::NopIn => Self::NopIn(NopIn::parse(header)),
            Opcode::ScsiResponse => Self::ScsiResponse(ScsiResponse::parse(header)?),
            Opcode::TaskManagementResponse => Self::TaskManagement(TaskManagementResponse::parse(header)?),
            Opcode::LoginResponse => Self::Login(LoginResponse::parse(header)?),
            Opcode::TextResponse => Self::Text(TextResponse::parse(header)?),
            Opcode::DataIn => Self::DataIn(DataIn::parse(header)?),
            Opcode::LogoutResponse => Self::Logout(LogoutResponse::parse(header)?),
            Opcode::ReadyToTransfer => Self::ReadyToTransfer(ReadyToTransfer::parse(header)),
            Opcode::AsynchronousMessage => Self::Asynchronous(AsynchronousMessage::parse(header)?),
            Opcode::Reject => Self::Reject(Reject::parse(header)?),
            _ => return Err(PduError::Opcode(header.opcode_byte())),
        })
    }
}

/// Why bytes are not a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// Not an opcode of the sender's direction.
    #[error("opcode {0:#04x} is not one that this side sends")]
    Opcode(u8),
    /// A value that the standard reserves, in a field that is in use.
    #[error("{field} has the reserved value {value}")]
    Reserved {
        /// Name of the field in RFC 7143.
        field: &'static str,
        /// What it held.
        value: u32,
    },
    /// Fields that exclude each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// The additional header segments are malformed.
    #[error("additional header: {0}")]
    Additional(&'static str),
    /// The data segment is longer than its receiver allows.
    #[error("data segment of {length} bytes, at most {limit} allowed")]
    DataLength {
        /// DataSegmentLength of the PDU.
        length: usize,
        /// MaxRecvDataSegmentLength of its receiver.
        limit: usize,
    },
    /// The CRC-32C of the headers does not match.
    #[error("header digest mismatch")]
    HeaderDigest,
    /// The CRC-32C of the data segment does not match.
    #[error("data digest mismatch")]
    DataDigest,
}
