//! Asynchronous Message (RFC 7143 section 11.9): the target speaks unasked.

use super::header::{BasicHeader, FINAL, Opcode};
use super::{InitiatorTaskTag, PduError, ResponseSerials};

/// Asynchronous Message. With a SCSI event its data segment is sense data, as in a SCSI Response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsynchronousMessage {
    /// What happens.
    pub event: AsynchronousEvent,
    /// Logical unit of a SCSI event.
    pub lun: [u8; 8],
    /// StatSN, ExpCmdSN, MaxCmdSN.
    pub serials: ResponseSerials,
}

/// Events of section 11.9.1, with their parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsynchronousEvent {
    /// A SCSI asynchronous event, in the data segment.
    Scsi,
    /// The target wants a logout, within so many seconds.
    LogoutRequested {
        /// Parameter3.
        within_s: u16,
    },
    /// The target is about to drop, or has dropped, a connection.
    ConnectionDropped {
        /// Parameter1: its CID.
        connection_id: u16,
        /// Parameter2.
        time_to_wait_s: u16,
        /// Parameter3.
        time_to_retain_s: u16,
    },
    /// The target is about to drop all connections of the session.
    SessionDropped {
        /// Parameter2.
        time_to_wait_s: u16,
        /// Parameter3.
        time_to_retain_s: u16,
    },
    /// The target wants to negotiate parameters again, within so many seconds.
    NegotiationRequested {
        /// Parameter3.
        within_s: u16,
    },
    /// All tasks of this session's nexus at the logical unit are being terminated (fast abort).
    TasksTerminated,
    /// A vendor's own.
    Vendor {
        /// AsyncVCode.
        code: u8,
    },
}

impl AsynchronousMessage {
    /// Reads the header.
    ///
    /// # Errors
    /// A reserved event.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        let parameter = |number: usize| header.u16_at(36 + 2 * number);
        let event = match header.byte(36) {
            0 => AsynchronousEvent::Scsi,
            1 => AsynchronousEvent::LogoutRequested { within_s: parameter(3) },
            2 => AsynchronousEvent::ConnectionDropped {
                connection_id: parameter(1),
                time_to_wait_s: parameter(2),
                time_to_retain_s: parameter(3),
            },
            3 => AsynchronousEvent::SessionDropped {
                time_to_wait_s: parameter(2),
                time_to_retain_s: parameter(3),
            },
            4 => AsynchronousEvent::NegotiationRequested { within_s: parameter(3) },
            5 => AsynchronousEvent::TasksTerminated,
            255 => AsynchronousEvent::Vendor { code: header.byte(37) },
            other => return Err(PduError::Reserved { field: "AsyncEvent", value: other.into() }),
        };
        Ok(Self { event, lun: header.bytes_at(8), serials: ResponseSerials::parse(header) })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut header = BasicHeader::new(Opcode::AsynchronousMessage, FINAL);
        header.set_bytes(8, &self.lun);
        header.set_u32(16, InitiatorTaskTag::RESERVED.0);
        self.serials.emit(&mut header);
        let (code, vendor, parameters) = match self.event {
            AsynchronousEvent::Scsi => (0, 0, [0; 3]),
            AsynchronousEvent::LogoutRequested { within_s } => (1, 0, [0, 0, within_s]),
            AsynchronousEvent::ConnectionDropped { connection_id, time_to_wait_s, time_to_retain_s } => {
                (2, 0, [connection_id, time_to_wait_s, time_to_retain_s])
            }
            AsynchronousEvent::SessionDropped { time_to_wait_s, time_to_retain_s } => {
                (3, 0, [0, time_to_wait_s, time_to_retain_s])
            }
            AsynchronousEvent::NegotiationRequested { within_s } => (4, 0, [0, 0, within_s]),
            AsynchronousEvent::TasksTerminated => (5, 0, [0; 3]),
            AsynchronousEvent::Vendor { code } => (255, code, [0; 3]),
        };
        header.set_byte(36, code);
        header.set_byte(37, vendor);
        for (index, parameter) in parameters.into_iter().enumerate() {
            header.set_u16(38 + 2 * index, parameter);
        }
        header
    }
}
