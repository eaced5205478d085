//! Messages between members, and entries, as bytes: our own encoding of the `raft` crate's types.
//!
//! Guarantees: every byte string is a message or an error; nothing is allocated beyond what the bytes
//! hold. The protocol buffers inside the `raft` crate never see bytes of the network.

use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

use super::MemberId;
use crate::base::codec::{CutShort, Reader, Writer};

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// They end too early.
    #[error("it is cut short")]
    CutShort(#[from] CutShort),
    /// A version that this program does not know.
    #[error("it has version {0}, which this program does not know")]
    Version(u8),
    /// A field has a value that it can't have.
    #[error("a field has an impossible value")]
    Value,
    /// More bytes than the message has.
    #[error("bytes follow its end")]
    Trailing,
}

/// A message as bytes.
#[must_use]
pub fn encode_message(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.put_u8(VERSION);
    bytes.put_u8(KINDS.iter().position(|kind| *kind == message.msg_type).map_or(u8::MAX, truncated));
    for number in numbers_of(message) {
        bytes.put_u64(number);
    }
    bytes.put_u8(u8::from(message.reject));
    put_bytes(&mut bytes, &message.context);
    bytes.put_u32(message.entries.len() as u32);
    for entry in &message.entries {
        put_entry(&mut bytes, entry);
    }
    let snapshot = message.snapshot.as_ref().filter(|snapshot| !snapshot.is_empty());
    bytes.put_u8(u8::from(snapshot.is_some()));
    if let Some(snapshot) = snapshot {
        put_snapshot(&mut bytes, snapshot);
    }
    bytes
}

/// The message that [`encode_message`] made these bytes of.
///
/// # Errors
/// [`WireError`].
pub fn decode_message(bytes: &[u8]) -> Result<Message, WireError> {
    let mut reader = Reader::new(bytes);
    let version = reader.u8()?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let mut message = Message::default();
    let kind = KINDS.get(usize::from(reader.u8()?)).ok_or(WireError::Value)?;
    message.set_msg_type(*kind);
    message.to = reader.u64()?;
    message.from = reader.u64()?;
    message.term = reader.u64()?;
    message.log_term = reader.u64()?;
    message.index = reader.u64()?;
    message.commit = reader.u64()?;
    message.commit_term = reader.u64()?;
    message.request_snapshot = reader.u64()?;
    message.reject_hint = reader.u64()?;
    message.reject = flag(&mut reader)?;
    message.context = take_bytes(&mut reader)?.into();
    let count = reader.u32()?;
    for _ in 0..count {
        message.mut_entries().push(take_entry(&mut reader)?);
    }
    if flag(&mut reader)? {
        message.set_snapshot(take_snapshot(&mut reader)?);
    }
    if reader.remaining() > 0 {
        return Err(WireError::Trailing);
    }
    Ok(message)
}

/// Appends an entry.
pub(super) fn put_entry(bytes: &mut Vec<u8>, entry: &Entry) {
    bytes.put_u8(match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    });
    bytes.put_u64(entry.term);
    bytes.put_u64(entry.index);
    put_bytes(bytes, &entry.data);
    put_bytes(bytes, &entry.context);
}

/// Takes what [`put_entry`] appended.
pub(super) fn take_entry(reader: &mut Reader<'_>) -> Result<Entry, WireError> {
    let mut entry = Entry::default();
    entry.set_entry_type(match reader.u8()? {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(WireError::Value),
    });
    entry.term = reader.u64()?;
    entry.index = reader.u64()?;
    entry.data = take_bytes(reader)?.into();
    entry.context = take_bytes(reader)?.into();
    Ok(entry)
}

/// Appends a snapshot.
pub(super) fn put_snapshot(bytes: &mut Vec<u8>, snapshot: &Snapshot) {
    let metadata = snapshot.get_metadata();
    bytes.put_u64(metadata.index);
    bytes.put_u64(metadata.term);
    let state = metadata.get_conf_state();
    for members in [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next] {
        bytes.put_u32(members.len() as u32);
        members.iter().for_each(|member| bytes.put_u64(*member));
    }
    bytes.put_u8(u8::from(state.auto_leave));
    put_bytes(bytes, &snapshot.data);
}

/// Takes what [`put_snapshot`] appended.
pub(super) fn take_snapshot(reader: &mut Reader<'_>) -> Result<Snapshot, WireError> {
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = reader.u64()?;
    snapshot.mut_metadata().term = reader.u64()?;
    let mut state = ConfState::default();
    for members in
        [&mut state.voters, &mut state.learners, &mut state.voters_outgoing, &mut state.learners_next]
    {
        let count = reader.u32()?;
        for _ in 0..count {
            members.push(reader.u64()?);
        }
    }
    state.auto_leave = flag(reader)?;
    snapshot.mut_metadata().set_conf_state(state);
    snapshot.data = take_bytes(reader)?.into();
    Ok(snapshot)
}

/// To whom a message is, by its numbers alone.
pub(super) fn receiver(message: &Message) -> MemberId {
    MemberId(message.to)
}

pub(super) fn put_bytes(bytes: &mut Vec<u8>, field: &[u8]) {
    bytes.put_u32(field.len() as u32);
    bytes.put(field);
}

pub(super) fn take_bytes(reader: &mut Reader<'_>) -> Result<Vec<u8>, WireError> {
    let length = reader.u32()?;
    Ok(reader.bytes(length as usize)?.to_vec())
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, WireError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::Value),
    }
}

fn numbers_of(message: &Message) -> [u64; 9] {
    [
        message.to,
        message.from,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.request_snapshot,
        message.reject_hint,
    ]
}

fn truncated(position: usize) -> u8 {
    position as u8
}

const VERSION: u8 = 1;

/// Kinds that travel, by their number on the wire. Proposals do not: only a leader proposes.
const KINDS: [MessageType; 12] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];
