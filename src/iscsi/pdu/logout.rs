//! Logout Request and Logout Response (RFC 7143 sections 11.14 and 11.15).

use super::header::{BasicHeader, FINAL, Opcode};
use super::{InitiatorTaskTag, PduError, ResponseSerials, SerialNumber};

/// Logout Request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    /// I bit.
    pub is_immediate: bool,
    /// What is to be closed.
    pub reason: LogoutReason,
    /// Tag of the request.
    pub initiator_task_tag: InitiatorTaskTag,
    /// CID of the connection to close, for the reasons that name one.
    pub connection_id: u16,
    /// CmdSN.
    pub command_sn: SerialNumber,
    /// ExpStatSN.
    pub expected_status_sn: SerialNumber,
}

impl LogoutRequest {
    /// Reads the header.
    ///
    /// # Errors
    /// A reserved reason code.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        Ok(Self {
            is_immediate: header.is_immediate(),
            reason: LogoutReason::parse(header.byte(1) & 0x7f)?,
            initiator_task_tag: header.initiator_task_tag(),
            connection_id: header.u16_at(20),
            command_sn: SerialNumber(header.u32_at(24)),
            expected_status_sn: SerialNumber(header.u32_at(28)),
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let flags = FINAL | self.reason as u8;
        let mut header = BasicHeader::request(Opcode::LogoutRequest, self.is_immediate, flags);
        header.set_u32(16, self.initiator_task_tag.0);
        header.set_u16(20, self.connection_id);
        header.set_request_serials(self.command_sn, self.expected_status_sn);
        header
    }
}

/// Reason codes of section 11.14.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LogoutReason {
    /// Close the session.
    CloseSession = 0,
    /// Close the connection.
    CloseConnection = 1,
    /// Remove the connection for recovery (error recovery level 2).
    RemoveForRecovery = 2,
}

impl LogoutReason {
    fn parse(bits: u8) -> Result<Self, PduError> {
        match bits {
            0 => Ok(Self::CloseSession),
            1 => Ok(Self::CloseConnection),
            2 => Ok(Self::RemoveForRecovery),
            _ => Err(PduError::Reserved { field: "Reason Code", value: bits.into() }),
        }
    }
}

/// Logout Response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutResponse {
    /// How it went.
    pub result: LogoutResult,
    /// Tag of the request.
    pub initiator_task_tag: InitiatorTaskTag,
    /// StatSN, ExpCmdSN, MaxCmdSN.
    pub serials: ResponseSerials,
    /// Seconds to wait before reconnecting or recovering.
    pub time_to_wait_s: u16,
    /// Seconds after that for which tasks are kept.
    pub time_to_retain_s: u16,
}

impl LogoutResponse {
    /// Reads the header.
    ///
    /// # Errors
    /// A reserved response code.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        Ok(Self {
            result: LogoutResult::parse(header.byte(2))?,
            initiator_task_tag: header.initiator_task_tag(),
            serials: ResponseSerials::parse(header),
            time_to_wait_s: header.u16_at(40),
            time_to_retain_s: header.u16_at(42),
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut header = BasicHeader::new(Opcode::LogoutResponse, FINAL);
        header.set_byte(2, self.result as u8);
        header.set_u32(16, self.initiator_task_tag.0);
        self.serials.emit(&mut header);
        header.set_u16(40, self.time_to_wait_s);
        header.set_u16(42, self.time_to_retain_s);
        header
    }
}

/// Response codes of section 11.15.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LogoutResult {
    /// Connection or session closed.
    Closed = 0,
    /// The CID was not found.
    ConnectionNotFound = 1,
    /// Connection recovery is not supported.
    RecoveryNotSupported = 2,
    /// Cleanup failed.
    CleanupFailed = 3,
}

impl LogoutResult {
    fn parse(byte: u8) -> Result<Self, PduError> {
        match byte {
            0 => Ok(Self::Closed),
            1 => Ok(Self::ConnectionNotFound),
            2 => Ok(Self::RecoveryNotSupported),
            3 => Ok(Self::CleanupFailed),
            _ => Err(PduError::Reserved { field: "Response", value: byte.into() }),
        }
    }
}
