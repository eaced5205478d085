//! The messages between a front node and the serving one, as bytes: one format, of which every field is bounded.
//!
//! A message is an envelope (format, kind, the lengths of header and data, a checksum of each), the header, and the
//! data of the command, which is passed along without a copy. Numbers are big-endian. What is not exactly as
//! [`ToServing::encode`] and [`FromServing::encode`] write it is refused.

use bytes::Bytes;

use super::{ForwardedAnswer, ForwardedCommand, Management, Outcome};
use crate::base::checksum::Crc32;
use crate::base::units::VolumeId;
use crate::scsi::cdb::Cdb;
use crate::scsi::command::{Response, Status, total_length};
use crate::scsi::identity::{InitiatorPort, Nexus, TargetPort};
use crate::scsi::limits;
use crate::scsi::reservation::PersistedReservations;
use crate::scsi::sense::AdditionalSense;
use crate::scsi::task_set::TaskAttribute;

/// A nexus of a front's, by the number that its unit there has for it, under one term of the volume's service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The volume.
    pub volume: VolumeId,
    /// The term: one time that the serving node has the device.
    pub term: u64,
    /// The nexus.
    pub nexus: u64,
}

/// From the front to the serving node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToServing {
    /// A session at the front begins, or had begun before.
    Attach {
        /// Where.
        place: Place,
        /// The real initiator port, and the front's target port.
        nexus: Nexus,
        /// Unit attentions that are pending, oldest first.
        pending: Vec<AdditionalSense>,
    },
    /// A session has ended: its tasks are aborted.
    Detach(Place),
    /// A command that has its turn.
    Command(Place, ForwardedCommand),
    /// A task management function.
    Manage {
        /// Who asks.
        place: Place,
        /// What tells it from others.
        number: u64,
        /// What is asked for.
        function: Management,
    },
}

/// From the serving node to the front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromServing {
    /// Nothing that came over earlier connections has any further effect.
    Welcome,
    /// The volume is served under a new term, with these persistent reservations in force.
    Serving {
        /// The volume.
        volume: VolumeId,
        /// The term.
        term: u64,
        /// The reservations.
        reservations: PersistedReservations,
    },
    /// No command begins in this term any more; those that have begun are answered.
    Stopped {
        /// The volume.
        volume: VolumeId,
        /// The term.
        term: u64,
    },
    /// What is pending for a nexus now.
    Attentions(Place, Vec<AdditionalSense>),
    /// The reservations that are in force now. Whom that concerns has been told, or is in the message before.
    Reservations {
        /// The volume.
        volume: VolumeId,
        /// The term.
        term: u64,
        /// The reservations.
        reservations: PersistedReservations,
    },
    /// A command has ended.
    Answer(Place, ForwardedAnswer),
    /// A task management function has been done, and what it affects has drained; or there is nothing that it
    /// could be done to.
    Managed {
        /// Its number.
        number: u64,
        /// Whether it was done.
        is_done: bool,
    },
}

/// A message that is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Of a later version of this software.
    #[error("forwarded messages of format {0}, which this version does not know")]
    UnknownVersion(u8),
    /// The header ends too early, goes on too long, or holds a value that is none.
    #[error("a forwarded message is malformed")]
    Malformed,
    /// The data is not what the header says, or more than a command may have.
    #[error("a forwarded message has {0} bytes of data that do not belong to it")]
    Data(usize),
    /// A checksum is wrong.
    #[error("a forwarded message arrived damaged")]
    Damaged,
}

impl ToServing {
    /// The message, in pieces.
    ///
    /// # Panics
    /// When a name or the data is longer than logins and commands can make them.
    #[must_use]
    pub fn encode(&self) -> Vec<Bytes> {
        let mut header = Header::default();
        let (kind, data) = match self {
            Self::Attach { place, nexus: Nexus { initiator, target_port }, pending } => {
                header.place(*place);
                header.put(&target_port.relative_id.to_be_bytes());
                header.put(&target_port.portal_group.to_be_bytes());
                header.put(&initiator.isid);
                header.codes(pending);
                header.put(initiator.name.as_bytes());
                assert!((1..=NAME_BYTES).contains(&initiator.name.len()), "no name of a login");
                (1, &[][..])
            }
            Self::Detach(place) => {
                header.place(*place);
                (2, &[][..])
            }
            Self::Command(place, command) => {
                header.place(*place);
                header.put(&command.tag.to_be_bytes());
                header.put(&[attribute_code(command.attribute)]);
                header.put(command.cdb.bytes());
                header.put(&command.expected_in.to_be_bytes());
                (3, &command.data_out[..])
            }
            Self::Manage { place, number, function } => {
                header.place(*place);
                header.put(&number.to_be_bytes());
                let (code, tag) = match function {
                    Management::AbortTask(tag) => (1, *tag),
                    Management::AbortTaskSet => (2, 0),
                    Management::ClearTaskSet => (3, 0),
                    Management::Reset => (4, 0),
                };
                header.put(&[code]);
                header.put(&tag.to_be_bytes());
                (4, &[][..])
            }
        };
        header.into_message(kind, data)
    }

    /// The message of these bytes.
    ///
    /// # Errors
    /// They are not one that [`ToServing::encode`] has written.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let Opened { kind, header, data } = open(bytes)?;
        let mut fields = Fields(&header);
        let place = fields.place()?;
        if kind != 3 && !data.is_empty() {
            return Err(DecodeError::Data(total_length(&data)));
        }
        Ok(match kind {
            1 => {
                let target_port = TargetPort { relative_id: fields.u16()?, portal_group: fields.u16()? };
                let isid = fields.take()?;
                let pending = fields.codes()?;
                let name = std::str::from_utf8(fields.0).map_err(|_| DecodeError::Malformed)?;
                if !(1..=NAME_BYTES).contains(&name.len()) {
                    return Err(DecodeError::Malformed);
                }
                let initiator = InitiatorPort { name: name.to_owned(), isid };
                return Ok(Self::Attach { place, nexus: Nexus { initiator, target_port }, pending });
            }
            2 => fields.end(Self::Detach(place))?,
            3 => {
                let tag = fields.u64()?;
                let [attribute] = fields.take()?;
                let attribute = attribute_of(attribute).ok_or(DecodeError::Malformed)?;
                let cdb = Cdb::new(&fields.take::<{ Cdb::BYTES }>()?);
                let expected_in = fields.u32()?;
                let command = ForwardedCommand { tag, attribute, cdb, expected_in, data_out: data };
                fields.end(Self::Command(place, command))?
            }
            4 => {
                let number = fields.u64()?;
                let [code] = fields.take()?;
                let function = match (code, fields.u64()?) {
                    (1, tag) => Management::AbortTask(tag),
                    (2, 0) => Management::AbortTaskSet,
                    (3, 0) => Management::ClearTaskSet,
                    (4, 0) => Management::Reset,
                    _ => return Err(DecodeError::Malformed),
                };
                fields.end(Self::Manage { place, number, function })?
            }
            _ => return Err(DecodeError::Malformed),
        })
    }
}

impl FromServing {
    /// The message, in pieces.
    ///
    /// # Panics
    /// When sense data or the data is longer than this layer makes them.
    #[must_use]
    pub fn encode(&self) -> Vec<Bytes> {
        let mut header = Header::default();
        let (kind, data) = match self {
            Self::Welcome => (64, &[][..]),
            Self::Serving { volume, term, reservations } => {
                header.term(*volume, *term);
                header.reservations(reservations);
                (65, &[][..])
            }
            Self::Stopped { volume, term } => {
                header.term(*volume, *term);
                (66, &[][..])
            }
            Self::Attentions(place, pending) => {
                header.place(*place);
                header.codes(pending);
                (67, &[][..])
            }
            Self::Reservations { volume, term, reservations } => {
                header.term(*volume, *term);
                header.reservations(reservations);
                (68, &[][..])
            }
            Self::Answer(place, ForwardedAnswer { tag, outcome }) => {
                header.place(*place);
                header.put(&tag.to_be_bytes());
                let data = match outcome {
                    Outcome::NotBegun => {
                        header.put(&[0]);
                        &[][..]
                    }
                    Outcome::Ended(None) => {
                        header.put(&[1]);
                        &[][..]
                    }
                    Outcome::Ended(Some(response)) => {
                        header.put(&[2, response.status as u8]);
                        header.put(&response.data_in_length.to_be_bytes());
                        header.put(&response.data_out_length.to_be_bytes());
                        assert!(response.sense.len() <= SENSE_BYTES, "sense data has 252 bytes at most");
                        header.put(&response.sense);
                        &response.data_in[..]
                    }
                };
                (69, data)
            }
            Self::Managed { number, is_done } => {
                header.put(&number.to_be_bytes());
                header.put(&[u8::from(*is_done)]);
                (70, &[][..])
            }
        };
        header.into_message(kind, data)
    }

    /// The message of these bytes.
    ///
    /// # Errors
    /// They are not one that [`FromServing::encode`] has written.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let Opened { kind, header, data } = open(bytes)?;
        let mut fields = Fields(&header);
        if kind != 69 && !data.is_empty() {
            return Err(DecodeError::Data(total_length(&data)));
        }
        match kind {
            64 => fields.end(Self::Welcome),
            65 => {
                let (volume, term) = fields.term()?;
                Ok(Self::Serving { volume, term, reservations: fields.reservations()? })
            }
            66 => {
                let (volume, term) = fields.term()?;
                fields.end(Self::Stopped { volume, term })
            }
            67 => {
                let (place, pending) = (fields.place()?, fields.codes()?);
                fields.end(Self::Attentions(place, pending))
            }
            68 => {
                let (volume, term) = fields.term()?;
                Ok(Self::Reservations { volume, term, reservations: fields.reservations()? })
            }
            69 => {
                let (place, tag) = (fields.place()?, fields.u64()?);
                let outcome = match fields.take()? {
                    [0] => fields.end(Outcome::NotBegun)?,
                    [1] => fields.end(Outcome::Ended(None))?,
                    [2] => return fields.response(place, tag, data),
                    _ => return Err(DecodeError::Malformed),
                };
                match data.is_empty() {
                    true => Ok(Self::Answer(place, ForwardedAnswer { tag, outcome })),
                    false => Err(DecodeError::Data(total_length(&data))),
                }
            }
            70 => {
                let number = fields.u64()?;
                let is_done = match fields.take()? {
                    [0] => false,
                    [1] => true,
                    _ => return Err(DecodeError::Malformed),
                };
                fields.end(Self::Managed { number, is_done })
            }
            _ => Err(DecodeError::Malformed),
        }
    }
}

/// A header being written.
#[derive(Default)]
struct Header(Vec<u8>);

impl Header {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn term(&mut self, volume: VolumeId, term: u64) {
        self.put(&volume.0.to_be_bytes());
        self.put(&term.to_be_bytes());
    }

    fn place(&mut self, place: Place) {
        self.term(place.volume, place.term);
        self.put(&place.nexus.to_be_bytes());
    }

    fn codes(&mut self, codes: &[AdditionalSense]) {
        assert!(codes.len() <= limits::ATTENTIONS, "unit attentions are bounded");
        self.put(&[u8::try_from(codes.len()).expect("a handful")]);
        codes.iter().for_each(|code| self.put(&code.0.to_be_bytes()));
    }

    fn reservations(&mut self, reservations: &PersistedReservations) {
        let encoded = serde_json::to_vec(reservations).expect("a structure of numbers and names");
        self.put(&encoded);
    }

    fn into_message(self, kind: u8, data: &[Bytes]) -> Vec<Bytes> {
        let Self(header) = self;
        let data_bytes = data_length(data).expect("a command's data is within the transfer limit");
        let header_bytes = u32::try_from(header.len()).expect("headers are small");
        assert!(header_bytes <= HEADER_BYTES, "headers are bounded");
        let mut message = Vec::with_capacity(ENVELOPE_BYTES + header.len());
        message.extend_from_slice(&[FORMAT, kind]);
        message.extend_from_slice(&header_bytes.to_be_bytes());
        message.extend_from_slice(&data_bytes.to_be_bytes());
        message.extend_from_slice(&Crc32::of_pieces(data).0.to_be_bytes());
        let checksum = Crc32::of_pieces(&[&message[..], &header[..]]);
        message.extend_from_slice(&checksum.0.to_be_bytes());
        message.extend_from_slice(&header);
        let mut pieces = vec![Bytes::from(message)];
        pieces.extend(data.iter().filter(|piece| !piece.is_empty()).cloned());
        pieces
    }
}

/// An envelope that has been opened.
struct Opened {
    kind: u8,
    header: Bytes,
    data: Vec<Bytes>,
}

fn open(bytes: &Bytes) -> Result<Opened, DecodeError> {
    let mut fields = Fields(bytes);
    match fields.take()? {
        [FORMAT] => {}
        [format] => return Err(DecodeError::UnknownVersion(format)),
    }
    let [kind] = fields.take()?;
    let (header_bytes, data_bytes) = (fields.u32()?, fields.u32()?);
    let (data_checksum, checksum) = (fields.u32()?, fields.u32()?);
    let has_header = usize::try_from(header_bytes).is_ok_and(|length| length <= fields.0.len());
    if header_bytes > HEADER_BYTES || !has_header {
        return Err(DecodeError::Malformed);
    }
    let data_at = ENVELOPE_BYTES + header_bytes as usize;
    let (header, data) = (bytes.slice(ENVELOPE_BYTES..data_at), bytes.slice(data_at..));
    if Crc32::of_pieces(&[&bytes[..ENVELOPE_BYTES - 4], &header[..]]).0 != checksum {
        return Err(DecodeError::Damaged);
    }
    if data_bytes > limits::TRANSFER_BYTES || data.len() != data_bytes as usize {
        return Err(DecodeError::Data(data.len()));
    }
    if Crc32::of(&data).0 != data_checksum {
        return Err(DecodeError::Damaged);
    }
    Ok(Opened { kind, header, data: if data.is_empty() { Vec::new() } else { vec![data] } })
}

/// Fields of a header, in order.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(DecodeError::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_be_bytes)
    }

    fn term(&mut self) -> Result<(VolumeId, u64), DecodeError> {
        Ok((VolumeId(self.u32()?), self.u64()?))
    }

    fn place(&mut self) -> Result<Place, DecodeError> {
        let (volume, term) = self.term()?;
        Ok(Place { volume, term, nexus: self.u64()? })
    }

    fn codes(&mut self) -> Result<Vec<AdditionalSense>, DecodeError> {
        let [count] = self.take()?;
        if usize::from(count) > limits::ATTENTIONS {
            return Err(DecodeError::Malformed);
        }
        (0..count).map(|_| self.u16().map(AdditionalSense)).collect()
    }

    fn reservations(&self) -> Result<PersistedReservations, DecodeError> {
        serde_json::from_slice(self.0).map_err(|_| DecodeError::Malformed)
    }

    fn response(mut self, place: Place, tag: u64, data_in: Vec<Bytes>) -> Result<FromServing, DecodeError> {
        let [status] = self.take()?;
        let status = status_of(status).ok_or(DecodeError::Malformed)?;
        let (data_in_length, data_out_length) = (self.u64()?, self.u64()?);
        let sense = self.0.to_vec();
        let is_plausible = (status == Status::CheckCondition) != sense.is_empty()
            && sense.len() <= SENSE_BYTES
            && data_in_length >= total_length(&data_in) as u64;
        if !is_plausible {
            return Err(DecodeError::Malformed);
        }
        let response = Response { status, sense, data_in, data_in_length, data_out_length };
        Ok(FromServing::Answer(place, ForwardedAnswer { tag, outcome: Outcome::Ended(Some(response)) }))
    }

    /// `value`, when there are no more fields.
    fn end<T>(&self, value: T) -> Result<T, DecodeError> {
        if self.0.is_empty() { Ok(value) } else { Err(DecodeError::Malformed) }
    }
}

/// Bytes in `pieces`, when they are within what a command may transfer.
fn data_length(pieces: &[Bytes]) -> Option<u32> {
    u32::try_from(total_length(pieces)).ok().filter(|length| *length <= limits::TRANSFER_BYTES)
}

/// The code of a task attribute: the one that iSCSI has for it.
fn attribute_code(attribute: TaskAttribute) -> u8 {
    match attribute {
        TaskAttribute::Simple => 1,
        TaskAttribute::Ordered => 2,
        TaskAttribute::HeadOfQueue => 3,
        TaskAttribute::Aca => 4,
    }
}

fn attribute_of(code: u8) -> Option<TaskAttribute> {
    let all = [TaskAttribute::Simple, TaskAttribute::Ordered, TaskAttribute::HeadOfQueue, TaskAttribute::Aca];
    all.into_iter().find(|attribute| attribute_code(*attribute) == code)
}

fn status_of(code: u8) -> Option<Status> {
    let all = [
        Status::Good,
        Status::CheckCondition,
        Status::Busy,
        Status::ReservationConflict,
        Status::TaskSetFull,
        Status::TaskAborted,
    ];
    all.into_iter().find(|status| *status as u8 == code)
}

/// Format of the messages that are written.
const FORMAT: u8 = 1;
/// Format, kind, two lengths and two checksums.
const ENVELOPE_BYTES: usize = 1 + 1 + 4 + 4 + 4 + 4;
/// Longest header: all registrations that there may be, as text with every character escaped.
const HEADER_BYTES: u32 = 2 << 20;
/// Longest iSCSI name (RFC 7143 section 4.2.7).
const NAME_BYTES: usize = 223;
/// Longest sense data (SPC-4 section 4.5.1).
const SENSE_BYTES: usize = 252;
const _: () = assert!(HEADER_BYTES as usize >= limits::REGISTRATIONS * (NAME_BYTES * 6 + 150));

#[cfg(test)]
mod tests;
