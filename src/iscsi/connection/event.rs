//! What a connection asks of its driver, and what the driver answers.

use bytes::Bytes;

use crate::iscsi::login::{LoginFailure, SessionRequest};
use crate::iscsi::pdu::{Cdb, PduError, TaskAttribute, TaskManagementFunction};
use crate::iscsi::sessions::Tsih;

/// An effect of the state machine.
#[derive(Debug)]
pub enum Event {
    /// A login wants to become a session: answer with `admit_session` or `refuse_session`.
    SessionRequested(Box<SessionRequest>),
    /// Full feature phase begins.
    LoggedIn(Tsih),
    /// Execute a command, then call `complete_command` or `abandon_command`, exactly once, whatever
    /// happens in between.
    Command(Command),
    /// Do a task management function; call `complete_task_management` when every task that it
    /// affects has drained and been completed or abandoned.
    TaskManagement(TaskManagement),
    /// The initiator logs out: abort every command of this connection. The answer goes out when all
    /// are completed or abandoned.
    AbortTasks,
    /// The connection ends, once: abort every command of it, send what is still to be sent, close the
    /// socket.
    Close(CloseReason),
}

/// Names a command towards the driver. Never reused on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// A command whose data is all here.
#[derive(Debug)]
pub struct Command {
    /// To be named when it is completed.
    pub task: TaskId,
    /// Logical unit, SAM's eight bytes.
    pub lun: [u8; 8],
    /// Command descriptor block.
    pub cdb: Cdb,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// The initiator expects to read.
    pub reads: bool,
    /// The initiator expects to write. With `reads`: a bidirectional command.
    pub writes: bool,
    /// Data written, at most the setting `transfer_length`; aligned to blocks for direct I/O.
    pub data_out: Vec<Bytes>,
    /// Bytes that the initiator meant to write.
    pub expected_out: u32,
    /// Bytes that the initiator has room for.
    pub expected_in: u32,
}

/// How a command ended.
#[derive(Clone, Debug, Default)]
pub struct ScsiResult {
    /// SCSI status.
    pub status: u8,
    /// Sense data; empty for none.
    pub sense: Vec<u8>,
    /// Data read. What exceeds the initiator's expectation is not sent.
    pub data_in: Vec<Bytes>,
    /// Bytes that the command transfers by its own parameters, in its direction: what the residual
    /// count is reckoned from. For a read at least the length of `data_in`; 0 for a command that
    /// failed before it transferred.
    pub transfer_length: u64,
}

/// Names a task management function towards the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ManagementId(pub(super) u32);

/// A task management function to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagement {
    /// To be named when it is done.
    pub id: ManagementId,
    /// What to do. Never ABORT TASK without a `task`, nor TASK REASSIGN.
    pub function: TaskManagementFunction,
    /// Logical unit; says nothing for the target resets.
    pub lun: [u8; 8],
    /// For ABORT TASK: the command.
    pub task: Option<TaskId>,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The initiator logged out.
    #[error("logout")]
    Logout,
    /// Login failed.
    #[error("{0}")]
    LoginFailed(LoginFailure),
    /// Login took too long.
    #[error("login took too long")]
    LoginTimeout,
    /// The other side closed, or the socket failed.
    #[error("closed by the other side")]
    Disconnected,
    /// No sign of life in spite of a ping.
    #[error("no answer to a ping")]
    PingTimeout,
    /// Data that was asked for does not come, or what is sent is not taken.
    #[error("a transfer makes no progress")]
    Stalled,
    /// The initiator broke the protocol in a way that error recovery level 0 can't mend.
    #[error("protocol error: {0}")]
    Protocol(ProtocolFault),
    /// The session was reinstated on another connection.
    #[error("the session was reinstated")]
    Reinstated,
    /// The target resets, goes away, or takes the initiator's access.
    #[error("dropped by the target")]
    Dropped,
    /// The initiator did not log out in time when it was asked to.
    #[error("logout was asked for and did not come")]
    LogoutTimeout,
}

/// What of the protocol was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolFault {
    /// A PDU that can't be framed, or a digest error.
    #[error("{0}")]
    Pdu(PduError),
    /// More requests are held back behind a missing CmdSN than are kept.
    #[error("too many requests behind a gap in CmdSN")]
    TooManyEarly,
}
