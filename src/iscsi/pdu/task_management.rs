//! Task Management Function Request and Response (RFC 7143 sections 11.5 and 11.6).

use super::header::{BasicHeader, FINAL, Opcode};
use super::{InitiatorTaskTag, PduError, ResponseSerials, SerialNumber};

/// Task Management Function Request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// I bit.
    pub is_immediate: bool,
    /// What is to be done.
    pub function: TaskManagementFunction,
    /// Logical unit, for the functions that act on one.
    pub lun: [u8; 8],
    /// Tag of this request.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Tag of the task to abort or reassign.
    pub referenced_task_tag: InitiatorTaskTag,
    /// CmdSN.
    pub command_sn: SerialNumber,
    /// ExpStatSN.
    pub expected_status_sn: SerialNumber,
    /// RefCmdSN: CmdSN of the task to abort.
    pub referenced_command_sn: SerialNumber,
    /// ExpDataSN, for TASK REASSIGN.
    pub expected_data_sn: u32,
}

impl TaskManagementRequest {
    /// Reads the header.
    #[must_use]
    pub fn parse(header: &BasicHeader) -> Self {
        Self {
            is_immediate: header.is_immediate(),
            function: TaskManagementFunction::of_bits(header.byte(1) & 0x7f),
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            referenced_task_tag: InitiatorTaskTag(header.u32_at(20)),
            command_sn: SerialNumber(header.u32_at(24)),
            expected_status_sn: SerialNumber(header.u32_at(28)),
            referenced_command_sn: SerialNumber(header.u32_at(32)),
            expected_data_sn: header.u32_at(36),
        }
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let flags = FINAL | self.function.bits();
        let mut header = BasicHeader::request(Opcode::TaskManagementRequest, self.is_immediate, flags);
        header.set_bytes(8, &self.lun);
        header.set_u32(16, self.initiator_task_tag.0);
        header.set_u32(20, self.referenced_task_tag.0);
        header.set_request_serials(self.command_sn, self.expected_status_sn);
        header.set_u32(32, self.referenced_command_sn.0);
        header.set_u32(36, self.expected_data_sn);
        header
    }
}

/// The functions of section 11.5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskManagementFunction {
    /// ABORT TASK.
    AbortTask,
    /// ABORT TASK SET.
    AbortTaskSet,
    /// CLEAR ACA.
    ClearAca,
    /// CLEAR TASK SET.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// TARGET WARM RESET.
    TargetWarmReset,
    /// TARGET COLD RESET.
    TargetColdReset,
    /// TASK REASSIGN.
    TaskReassign,
    /// One that the standard does not define, to be answered as not supported.
    Other(u8),
}

impl TaskManagementFunction {
    fn of_bits(bits: u8) -> Self {
        match bits {
            1 => Self::AbortTask,
            2 => Self::AbortTaskSet,
            3 => Self::ClearAca,
            4 => Self::ClearTaskSet,
            5 => Self::LogicalUnitReset,
            6 => Self::TargetWarmReset,
            7 => Self::TargetColdReset,
            8 => Self::TaskReassign,
            other => Self::Other(other),
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::AbortTask => 1,
            Self::AbortTaskSet => 2,
            Self::ClearAca => 3,
            Self::ClearTaskSet => 4,
            Self::LogicalUnitReset => 5,
            Self::TargetWarmReset => 6,
            Self::TargetColdReset => 7,
            Self::TaskReassign => 8,
            Self::Other(bits) => bits & 0x7f,
        }
    }
}

/// Task Management Function Response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskManagementResponse {
    /// How it went.
    pub result: TaskManagementResult,
    /// Tag of the request.
    pub initiator_task_tag: InitiatorTaskTag,
    /// StatSN, ExpCmdSN, MaxCmdSN.
    pub serials: ResponseSerials,
}

impl TaskManagementResponse {
    /// Reads the header.
    ///
    /// # Errors
    /// A reserved response code.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        Ok(Self {
            result: TaskManagementResult::parse(header.byte(2))?,
            initiator_task_tag: header.initiator_task_tag(),
            serials: ResponseSerials::parse(header),
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut header = BasicHeader::new(Opcode::TaskManagementResponse, FINAL);
        header.set_byte(2, self.result as u8);
        header.set_u32(16, self.initiator_task_tag.0);
        self.serials.emit(&mut header);
        header
    }
}

/// Response codes of section 11.6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskManagementResult {
    /// Function complete.
    Complete = 0,
    /// Task does not exist.
    TaskDoesNotExist = 1,
    /// LUN does not exist.
    LunDoesNotExist = 2,
    /// Task still allegiant.
    TaskStillAllegiant = 3,
    /// Task allegiance reassignment not supported.
    ReassignmentNotSupported = 4,
    /// Task management function not supported.
    NotSupported = 5,
    /// Function authorization failed.
    AuthorizationFailed = 6,
    /// Function rejected.
    Rejected = 255,
}

impl TaskManagementResult {
    fn parse(byte: u8) -> Result<Self, PduError> {
        Ok(match byte {
            0 => Self::Complete,
            1 => Self::TaskDoesNotExist,
            2 => Self::LunDoesNotExist,
            3 => Self::TaskStillAllegiant,
            4 => Self::ReassignmentNotSupported,
            5 => Self::NotSupported,
            6 => Self::AuthorizationFailed,
            255 => Self::Rejected,
            _ => return Err(PduError::Reserved { field: "Response", value: byte.into() }),
        })
    }
}
