//! An iSCSI initiator (RFC 7143) as pure state machines: bytes in, effects out; no socket, no clock.
//!
//! [`Login`] consumes itself and becomes a [`Connection`] in full feature phase, which is a session of one
//! connection at error recovery level 0. It holds the target to the standard: an answer that breaks
//! the rules of sequence numbers, offsets or negotiated lengths is an error, not a shrug. Many
//! commands run at a time, as far as the target's command window allows; many PDUs are sent and
//! received at a time, so that it can load a target without being the bottleneck. Raw bytes can be
//! injected between PDUs, and answers to what it does not know are handed up as they are: with that,
//! it says what well-behaved initiators cannot.
//!
//! The driver moves the bytes: it fills [`Connection::receive_space`], sends what
//! [`Connection::transmit_slices`] gives, and takes events.

mod challenge;
mod connection;
mod login;
mod stream;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use challenge::{ChapAlgorithm, ChapSecret};
pub use connection::Connection;
pub use login::{Login, LoginProgress, parse_keys};
use stream::{ReceiveBuffer, TransmitQueue};

use super::pdu::{
    AsynchronousEvent, Cdb, Digests, InitiatorTaskTag, Isid, LoginStatus, LogoutResult, PduError, Residual,
    TargetPdu, TaskAttribute, TaskManagementResult,
};

/// How to log in, and what to offer in the negotiation.
#[derive(Clone, Debug)]
pub struct LoginSettings {
    /// InitiatorName.
    pub initiator_name: String,
    /// TargetName; none makes a discovery session.
    pub target_name: Option<String>,
    /// Which session of this initiator it is.
    pub isid: Isid,
    /// Secret of the initiator, when the target wants CHAP.
    pub chap: Option<ChapSecret>,
    /// Secret that the target has to prove (mutual CHAP).
    pub mutual_chap: Option<ChapSecret>,
    /// Digests to ask for; the target may refuse them.
    pub digests: Digests,
    /// MaxRecvDataSegmentLength that is declared, in bytes.
    pub maximum_receive_length: usize,
    /// MaxBurstLength to offer, in bytes.
    pub maximum_burst_length: usize,
    /// FirstBurstLength to offer, in bytes.
    pub first_burst_length: usize,
    /// Whether immediate data is offered.
    pub immediate_data: bool,
    /// Whether R2T is asked for before any data.
    pub initial_r2t: bool,
    /// MaxOutstandingR2T to offer.
    pub maximum_outstanding_r2t: usize,
}

impl LoginSettings {
    /// A normal session with `target_name`, with large bursts and no digests.
    #[must_use]
    pub fn normal(initiator_name: &str, target_name: &str) -> Self {
        Self {
            initiator_name: initiator_name.to_owned(),
            target_name: Some(target_name.to_owned()),
            isid: Isid([0x80, 0, 0, 0, 0, 1]),
            chap: None,
            mutual_chap: None,
            digests: Digests::default(),
            maximum_receive_length: 256 << 10,
            maximum_burst_length: 1 << 20,
            first_burst_length: 256 << 10,
            immediate_data: true,
            initial_r2t: false,
            maximum_outstanding_r2t: 8,
        }
    }

    /// A discovery session.
    #[must_use]
    pub fn discovery(initiator_name: &str) -> Self {
        Self { target_name: None, ..Self::normal(initiator_name, "") }
    }
}

/// What the login has agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Digests in use.
    pub digests: Digests,
    /// Longest data segment that the target takes.
    pub target_receive_length: usize,
    /// Longest data segment that this side has declared to take.
    pub maximum_receive_length: usize,
    /// Longest solicited burst.
    pub maximum_burst_length: usize,
    /// Longest unsolicited burst, immediate data included.
    pub first_burst_length: usize,
    /// Whether commands may carry data.
    pub immediate_data: bool,
    /// Whether unsolicited Data-Out PDUs are forbidden.
    pub initial_r2t: bool,
    /// TSIH of the session.
    pub tsih: u16,
}

/// A command to be executed.
#[derive(Clone, Debug)]
pub struct Command {
    /// Logical unit.
    pub lun: [u8; 8],
    /// What to do.
    pub cdb: Cdb,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Data for the target; empty for none.
    pub data_out: Bytes,
    /// Longest data wanted from the target, in bytes.
    pub data_in_length: u32,
    /// Whether data from the target is kept, not just checked and counted.
    pub keeps_data: bool,
}

impl Command {
    /// A command of `cdb` to LUN 0 without data.
    #[must_use]
    pub fn new(cdb: &[u8]) -> Self {
        Self {
            lun: [0; 8],
            cdb: Cdb::new(cdb),
            attribute: TaskAttribute::Simple,
            data_out: Bytes::new(),
            data_in_length: 0,
            keeps_data: true,
        }
    }

    /// The same with `data` for the target.
    #[must_use]
    pub fn with_data_out(mut self, data: Bytes) -> Self {
        self.data_out = data;
        self
    }

    /// The same, wanting at most `length` bytes.
    #[must_use]
    pub fn with_data_in(mut self, length: u32) -> Self {
        self.data_in_length = length;
        self
    }

    /// The same to a logical unit below 256 (peripheral device addressing, SAM-5 section 4.7.7).
    #[must_use]
    pub fn to_lun(mut self, lun: u8) -> Self {
        self.lun = [0, lun, 0, 0, 0, 0, 0, 0];
        self
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Outcome {
    /// SCSI status; meaningful when `service_response` is 0.
    pub status: u8,
    /// iSCSI service response: 0 when the command was completed at the target.
    pub service_response: u8,
    /// Sense data, if any.
    pub sense: Vec<u8>,
    /// Data from the target, when the command keeps it.
    pub data: Vec<u8>,
    /// Bytes of data from the target.
    pub data_length: usize,
    /// Residual count.
    pub residual: Residual,
}

impl Outcome {
    /// Whether the command was completed with status GOOD.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.service_response == 0 && self.status == 0
    }

    /// Sense key, additional sense code and its qualifier, of fixed or descriptor format.
    #[must_use]
    pub fn sense_codes(&self) -> Option<(u8, u8, u8)> {
        let byte = |index: usize| self.sense.get(index).copied();
        match byte(0)? & 0x7f {
            0x70 | 0x71 => Some((byte(2)? & 0x0f, byte(12)?, byte(13)?)),
            0x72 | 0x73 => Some((byte(1)? & 0x0f, byte(2)?, byte(3)?)),
            _ => None,
        }
    }
}

/// What happened on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A command has ended.
    Completed {
        /// Tag that its submission gave.
        tag: InitiatorTaskTag,
        /// How.
        outcome: Outcome,
    },
    /// A task management function has ended.
    TaskManagement {
        /// Tag that its submission gave.
        tag: InitiatorTaskTag,
        /// How.
        result: TaskManagementResult,
    },
    /// A ping was answered.
    Pong {
        /// Tag that its submission gave.
        tag: InitiatorTaskTag,
        /// The data that came back.
        data: Vec<u8>,
    },
    /// A text exchange is over.
    Text {
        /// Tag that its submission gave.
        tag: InitiatorTaskTag,
        /// All text.
        text: Vec<u8>,
    },
    /// The logout was answered; the target closes the connection.
    LoggedOut(LogoutResult),
    /// The target said something unasked.
    Asynchronous(AsynchronousEvent),
    /// A PDU that belongs to nothing which was submitted here: an answer to injected bytes, or a Reject.
    Other {
        /// The header.
        pdu: TargetPdu,
        /// Its data segment.
        data: Vec<u8>,
    },
}

/// What a target did that the standard does not allow, or its refusal of a login.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitiatorError {
    /// Not a PDU.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// The login was refused.
    #[error("login refused: class {}, detail {}", .0.class, .0.detail)]
    Refused(LoginStatus),
    /// The target could not prove that it knows the secret of mutual CHAP.
    #[error("the target failed to authenticate itself")]
    Authentication,
    /// An answer that breaks the protocol.
    #[error("the target broke the protocol: {0}")]
    Protocol(&'static str),
    /// A negotiated value that cannot be.
    #[error("the target answered {key}={value}")]
    Key {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
}
