//! A command as the transport hands it over, and the response that it gets back.

use bytes::Bytes;

use super::asymmetric_access::AccessState;
use super::cdb::Cdb;
use super::sense::{AdditionalSense, Sense, SenseKey};
use crate::volume::device::DeviceError;

/// A command whose data-out has arrived completely.
#[derive(Clone, Debug)]
pub struct Command {
    /// The CDB.
    pub cdb: Cdb,
    /// What the initiator sent, in pieces. May be shorter or longer than the CDB asks for.
    pub data_out: Vec<Bytes>,
    /// How many bytes the initiator is prepared to receive: an upper bound for the data-in that is
    /// worth reading.
    pub expected_in: usize,
}

impl Command {
    /// A command without data-out that accepts `expected_in` bytes.
    #[must_use]
    pub fn new(cdb: &[u8], expected_in: usize) -> Self {
        Self { cdb: Cdb::new(cdb), data_out: Vec::new(), expected_in }
    }

    /// A command that sends `data_out`.
    #[must_use]
    pub fn with_data(cdb: &[u8], data_out: Vec<Bytes>) -> Self {
        Self { cdb: Cdb::new(cdb), data_out, expected_in: 0 }
    }
}

/// Status code (SAM-5 section 5.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the standard's own names
pub enum Status {
    Good = 0x00,
    CheckCondition = 0x02,
    Busy = 0x08,
    ReservationConflict = 0x18,
    TaskSetFull = 0x28,
    TaskAborted = 0x40,
}

/// The end of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status.
    pub status: Status,
    /// Encoded sense data; empty unless the status is CHECK CONDITION.
    pub sense: Vec<u8>,
    /// Data for the initiator. Never longer than the CDB's allocation or transfer length; it may be
    /// longer than what the initiator expects, and the transport cuts it off there.
    pub data_in: Vec<Bytes>,
    /// Bytes that the command has for the initiator: at least what `data_in` holds. The transport's
    /// residual is the difference from what the initiator expected.
    pub data_in_length: u64,
    /// Bytes that the command wanted from the initiator.
    pub data_out_length: u64,
}

impl Response {
    /// A response of `status` alone.
    #[must_use]
    pub fn of(status: Status) -> Self {
        Self { status, sense: Vec::new(), data_in: Vec::new(), data_in_length: 0, data_out_length: 0 }
    }

    /// CHECK CONDITION with `sense`.
    #[must_use]
    pub fn check(sense: &Sense, descriptor_format: bool) -> Self {
        Self { sense: sense.encode(descriptor_format), ..Self::of(Status::CheckCondition) }
    }
}

impl Response {
    /// The response to a command that ended with `outcome` and wanted `data_out_length` bytes of data;
    /// none when it was aborted silently.
    pub(super) fn from_outcome(
        outcome: Outcome,
        data_out_length: u64,
        descriptor_format: bool,
    ) -> Option<Self> {
        let response = match outcome {
            Ok(reply) => {
                let data_in_length =
                    reply.whole_length.unwrap_or_else(|| total_length(&reply.data_in) as u64);
                Self { data_in: reply.data_in, data_in_length, ..Self::of(Status::Good) }
            }
            Err(Failure::Check(sense)) => Self::check(&sense, descriptor_format),
            Err(Failure::Status(status)) => Self::of(status),
            Err(Failure::Aborted) => return None,
            Err(Failure::NotServing) => Self::check(&AccessState::Transitioning.refusal(), descriptor_format),
        };
        Some(Self { data_out_length, ..response })
    }
}

/// What a command that succeeds gives back.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) data_in: Vec<Bytes>,
    /// Bytes of the whole data-in, when `data_in` holds only the part that the initiator accepts.
    pub(super) whole_length: Option<u64>,
}

impl Reply {
    /// GOOD without data.
    pub(super) fn good() -> Self {
        Self::default()
    }

    /// GOOD with `data`, cut off at the allocation length of the CDB.
    pub(super) fn parameters(mut data: Vec<u8>, allocation_length: usize) -> Self {
        data.truncate(allocation_length);
        let data_in = if data.is_empty() { Vec::new() } else { vec![Bytes::from(data)] };
        Self { data_in, whole_length: None }
    }
}

/// Why a command ends otherwise than well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// CHECK CONDITION.
    Check(Sense),
    /// A status without sense data.
    Status(Status),
    /// The task was aborted on its way; nobody is told.
    Aborted,
    /// This node does not serve the unit, or does no more: answered by the access state of the task's port.
    NotServing,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self::Check(match error {
            DeviceError::NotServing => return Self::NotServing,
            DeviceError::OutOfSpace => {
                Sense::new(SenseKey::DataProtect, AdditionalSense::SPACE_ALLOCATION_FAILED_WRITE_PROTECT)
            }
            DeviceError::Medium { address } => {
                Sense::new(SenseKey::MediumError, AdditionalSense::UNRECOVERED_READ_ERROR)
                    .with_information(address)
            }
            // BECOMING READY rather than a hardware error: Linux, ESX and Windows retry it on this or
            // another path for as long as their own time-out allows, and none of them fails the
            // file system at once.
            DeviceError::Offline => Sense::new(SenseKey::NotReady, AdditionalSense::BECOMING_READY),
            DeviceError::OutOfRange => Sense::illegal(AdditionalSense::LBA_OUT_OF_RANGE),
            DeviceError::Gone => Sense::illegal(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED),
        })
    }
}

pub(super) type Outcome = Result<Reply, Failure>;

/// Joins `pieces` into one buffer of at most `limit` bytes; no copy when there is one piece.
pub(super) fn joined(pieces: &[Bytes], limit: usize) -> Bytes {
    match pieces {
        [] => Bytes::new(),
        [one] => one.slice(..one.len().min(limit)),
        many => {
            let total: usize = many.iter().map(Bytes::len).sum();
            let mut whole = Vec::with_capacity(total.min(limit));
            for piece in many {
                let room = limit - whole.len();
                whole.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            Bytes::from(whole)
        }
    }
}

/// Total bytes in `pieces`.
pub(super) fn total_length(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}

/// The bytes `from..to` of `pieces`, sharing their memory. The caller has checked that they exist.
pub(super) fn slice_pieces(pieces: &[Bytes], from: usize, to: usize) -> Vec<Bytes> {
    let mut taken = Vec::new();
    let mut position = 0;
    for piece in pieces {
        let start = from.clamp(position, position + piece.len()) - position;
        let end = to.clamp(position, position + piece.len()) - position;
        if start < end {
            taken.push(piece.slice(start..end));
        }
        position += piece.len();
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_joined_and_sliced_across_boundaries() {
        let pieces = [Bytes::from_static(b"abc"), Bytes::new(), Bytes::from_static(b"defg")];
        assert_eq!(&joined(&pieces, 100)[..], b"abcdefg");
        assert_eq!(&joined(&pieces, 5)[..], b"abcde");
        assert_eq!(joined(&slice_pieces(&pieces, 2, 5), 10), &b"cde"[..]);
        assert!(slice_pieces(&pieces, 3, 3).is_empty());
    }
}
