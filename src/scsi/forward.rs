//! Commands that arrive at a node that does not serve, carried to the one that does: the messages, and the rules by
//! which both together are one logical unit. The transport is elsewhere.
//!
//! The *front* node has the session; the *serving* node has the device. A message is a header, encoded here in a
//! versioned form, and the data, which is passed along beside it without a copy. Every field is bounded, and a
//! header that is not exactly one that [`ForwardedCommand::encode`] writes is refused.
//!
//! # Nexus
//!
//! A forwarded command acts under the nexus of the real initiator port through the real target port, the front's.
//! The serving node attaches that nexus to its unit as if the session were there
//! ([`LogicalUnit::attach_forwarded`]) and detaches it when the front says that the session has ended, or when the
//! connection to the front is lost. So reservations, INQUIRY pages and PREEMPT AND ABORT need no rule of their own:
//! the registrant is the initiator with the front's relative target port.
//!
//! # Order and task management
//!
//! The front admits each command to its own unit's task set, as always, collects the data and waits for the
//! command's turn there; only then it is forwarded, so SIMPLE, ORDERED and HEAD OF QUEUE hold over both sets, and
//! the limits of the front's set bound what is under way. A management function goes to both: the front ends what
//! it has not forwarded and passes the function on; it answers when its own drain and the serving node's are over.
//! ABORT TASK names the task by nexus and tag, which are the same at both.
//!
//! # When the connection is lost
//!
//! The front does not know whether a forwarded write will still take effect, so it must not answer it in a way that
//! has the host write again, while the first write may yet land (I16). It keeps the command until the serving node
//! has confirmed that the nexus is drained, or was deposed and cannot write any more; the answer is that of a
//! transition (NOT READY, 04/0A) then, or silence when the session is over. The serving node aborts all tasks of
//! the front's nexuses when it loses the connection.
//!
//! # Unit attentions
//!
//! The serving node has the one queue of each nexus. When a nexus is attached there the front hands over what was
//! pending ([`LogicalUnit::take_attentions`]) in the place of a power on; when the unit moves, or the connection
//! ends in order, the queue comes back the same way. What a lost connection takes with it is established again from
//! the state (see the `serving` module). While it forwards, the front does not learn reservations
//! ([`LogicalUnit::learn_reservations`]): its nexuses would hear of their own actions.
//!
//! # Access states
//!
//! Everything is forwarded, REPORT TARGET PORT GROUPS too, so that hosts see one truth; the front's group is
//! active/non-optimized. Where there is nobody to forward to, the front answers by itself as a node without a
//! device does, and is standby or transitioning (I23).
//!
//! # No circular waits
//!
//! A forwarded command may wait for mirror writes, which the serving node sends to the front: these must never wait
//! for a forwarded command, so both have credits of their own. A command is forwarded once: a node that does not
//! serve refuses what was forwarded to it by [`AccessState::refusal`](super::asymmetric_access::AccessState)
//! instead of passing it on.

use bytes::Bytes;

use super::cdb::Cdb;
use super::command::{Command, Response, Status, total_length};
use super::identity::{InitiatorPort, Nexus, NexusId, TargetPort};
use super::limits;
use super::logical_unit::LogicalUnit;
use super::sense::AdditionalSense;
use super::task_set::TaskAttribute;
use crate::volume::device::BlockDevice;

/// A command on its way to the serving node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedCommand {
    /// The real initiator port, and the front's target port.
    pub nexus: Nexus,
    /// What tells the nexus's tasks apart.
    pub tag: u64,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// The CDB.
    pub cdb: Cdb,
    /// Bytes that the initiator is prepared to receive.
    pub expected_in: u32,
    /// What the initiator has sent, complete.
    pub data_out: Vec<Bytes>,
}

/// The end of a forwarded command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedAnswer {
    /// The command's tag.
    pub tag: u64,
    /// Its response; none when it was aborted without one being due.
    pub response: Option<Response>,
}

/// A message that is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Of a later version of this software.
    #[error("a forwarded message has version {0}, which this version does not know")]
    UnknownVersion(u8),
    /// The header ends too early, goes on too long, or holds a value that is none.
    #[error("a forwarded message is malformed")]
    Malformed,
    /// The data is not what the header says, or more than a command may have.
    #[error("a forwarded message has {0} bytes of data that do not belong to it")]
    Data(usize),
}

impl ForwardedCommand {
    /// The header. The data travels beside it.
    ///
    /// # Panics
    /// When the initiator's name or the data is longer than logins and commands can make them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Nexus { initiator, target_port } = &self.nexus;
        let length = data_length(&self.data_out).expect("a command's data is within the transfer limit");
        let name = initiator.name.as_bytes();
        let mut header = Vec::with_capacity(COMMAND_BYTES + name.len());
        header.push(VERSION);
        header.extend_from_slice(&self.tag.to_be_bytes());
        header.push(attribute_code(self.attribute));
        header.extend_from_slice(self.cdb.bytes());
        header.extend_from_slice(&self.expected_in.to_be_bytes());
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&target_port.relative_id.to_be_bytes());
        header.extend_from_slice(&target_port.portal_group.to_be_bytes());
        header.extend_from_slice(&initiator.isid);
        header.push(u8::try_from(name.len()).expect("iSCSI names have 223 bytes at most"));
        header.extend_from_slice(name);
        header
    }

    /// The command of `header` with the data that came beside it.
    ///
    /// # Errors
    /// The message is not one that [`ForwardedCommand::encode`] has written.
    pub fn decode(header: &[u8], data_out: Vec<Bytes>) -> Result<Self, DecodeError> {
        let mut fields = Fields::of(header)?;
        let tag = u64::from_be_bytes(fields.take()?);
        let [attribute] = fields.take()?;
        let attribute = attribute_of(attribute).ok_or(DecodeError::Malformed)?;
        let cdb = Cdb::new(&fields.take::<{ Cdb::BYTES }>()?);
        let expected_in = u32::from_be_bytes(fields.take()?);
        check_data(&data_out, u32::from_be_bytes(fields.take()?))?;
        let relative_id = u16::from_be_bytes(fields.take()?);
        let portal_group = u16::from_be_bytes(fields.take()?);
        let isid = fields.take()?;
        let [name_length] = fields.take()?;
        let name = fields.rest(name_length)?;
        let name = std::str::from_utf8(name).map_err(|_| DecodeError::Malformed)?;
        if name.is_empty() || name.len() > NAME_BYTES {
            return Err(DecodeError::Malformed);
        }
        let initiator = InitiatorPort { name: name.to_owned(), isid };
        let nexus = Nexus { initiator, target_port: TargetPort { relative_id, portal_group } };
        Ok(Self { nexus, tag, attribute, cdb, expected_in, data_out })
    }

    /// The command as the serving unit executes it.
    #[must_use]
    pub fn into_command(self) -> Command {
        // A transfer is bounded by its own limit, whatever the initiator would take.
        let expected_in = self.expected_in as usize;
        Command { cdb: self.cdb, data_out: self.data_out, expected_in }
    }
}

impl ForwardedAnswer {
    /// The header. The data-in travels beside it.
    ///
    /// # Panics
    /// When the sense data or the data is longer than this layer makes them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let silent = Response::of(Status::Good);
        let response = self.response.as_ref().unwrap_or(&silent);
        let length = data_length(&response.data_in).expect("a response's data is within the transfer limit");
        let mut header = Vec::with_capacity(ANSWER_BYTES + response.sense.len());
        header.push(VERSION);
        header.extend_from_slice(&self.tag.to_be_bytes());
        header.push(u8::from(self.response.is_some()));
        header.push(response.status as u8);
        header.extend_from_slice(&response.data_in_length.to_be_bytes());
        header.extend_from_slice(&response.data_out_length.to_be_bytes());
        header.extend_from_slice(&length.to_be_bytes());
        header.push(u8::try_from(response.sense.len()).expect("sense data has 252 bytes at most"));
        header.extend_from_slice(&response.sense);
        header
    }

    /// The answer of `header` with the data that came beside it.
    ///
    /// # Errors
    /// The message is not one that [`ForwardedAnswer::encode`] has written.
    pub fn decode(header: &[u8], data_in: Vec<Bytes>) -> Result<Self, DecodeError> {
        let mut fields = Fields::of(header)?;
        let tag = u64::from_be_bytes(fields.take()?);
        let [has_response] = fields.take()?;
        let [status] = fields.take()?;
        let status = status_of(status).ok_or(DecodeError::Malformed)?;
        let data_in_length = u64::from_be_bytes(fields.take()?);
        let data_out_length = u64::from_be_bytes(fields.take()?);
        check_data(&data_in, u32::from_be_bytes(fields.take()?))?;
        let [sense_length] = fields.take()?;
        let sense = fields.rest(sense_length)?.to_vec();
        let response = Response { status, sense, data_in, data_in_length, data_out_length };
        let is_plausible = (response.status == Status::CheckCondition) != response.sense.is_empty()
            && response.data_in_length >= total_length(&response.data_in) as u64;
        match has_response {
            1 if is_plausible => Ok(Self { tag, response: Some(response) }),
            0 if response == Response::of(Status::Good) => Ok(Self { tag, response: None }),
            _ => Err(DecodeError::Malformed),
        }
    }
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// Attaches the nexus of a session at another node, with the unit attentions that were pending there. There is
    /// nothing else to tell it: what it has logged in to is this logical unit.
    pub fn attach_forwarded(&self, nexus: Nexus, pending: &[AdditionalSense]) -> NexusId {
        let id = self.attach(nexus);
        self.take_attentions(id);
        for code in pending {
            self.attention(id, *code);
        }
        id
    }

    /// Takes all unit attentions that are pending for a nexus, oldest first, to hand them to the node that has the
    /// nexus from now on.
    pub fn take_attentions(&self, nexus: NexusId) -> Vec<AdditionalSense> {
        std::iter::from_fn(|| self.take_attention(nexus)).map(|sense| sense.code).collect()
    }
}

/// Fields of a header, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Those after the version.
    fn of(header: &'a [u8]) -> Result<Self, DecodeError> {
        match header {
            [VERSION, rest @ ..] => Ok(Self(rest)),
            [version, ..] => Err(DecodeError::UnknownVersion(*version)),
            [] => Err(DecodeError::Malformed),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(DecodeError::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    /// What is left, which has to be `length` bytes.
    fn rest(self, length: u8) -> Result<&'a [u8], DecodeError> {
        if self.0.len() == usize::from(length) { Ok(self.0) } else { Err(DecodeError::Malformed) }
    }
}

/// Bytes in `pieces`, when they are within what a command may transfer.
fn data_length(pieces: &[Bytes]) -> Option<u32> {
    u32::try_from(total_length(pieces)).ok().filter(|length| *length <= limits::TRANSFER_BYTES)
}

fn check_data(pieces: &[Bytes], said: u32) -> Result<(), DecodeError> {
    if data_length(pieces) == Some(said) { Ok(()) } else { Err(DecodeError::Data(total_length(pieces))) }
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

/// Version of the messages that are written.
const VERSION: u8 = 1;
/// Longest iSCSI name (RFC 7143 section 4.2.7).
const NAME_BYTES: usize = 223;
/// Header bytes before the initiator's name.
const COMMAND_BYTES: usize = 1 + 8 + 1 + Cdb::BYTES + 4 + 4 + 2 + 2 + 6 + 1;
/// Header bytes before the sense data.
const ANSWER_BYTES: usize = 1 + 8 + 1 + 1 + 8 + 8 + 4 + 1;

#[cfg(test)]
mod tests;
