//! What members say to each other, and what stands in an entry of the log, as bytes.
//!
//! Guarantees: every byte string is a message or an error; nothing is allocated beyond what the bytes hold.
//! Both encodings have a version of their own.

use crate::base::codec::{CutShort, Reader, Writer};
use crate::cluster::lease::LeaseRequest;
use crate::cluster::name::NodeName;
use crate::cluster::state::Command;

/// One message between two members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Of [`crate::cluster::raft`].
    Raft(Vec<u8>),
    /// To the leader: propose an entry, as [`encode_entry`] makes it.
    Propose {
        /// The entry.
        entry: Vec<u8>,
    },
    /// Of the leader: an entry of this number was not proposed, so nothing came of it.
    NotProposed {
        /// Which of the receiver's proposals.
        proposal: ProposalId,
    },
    /// To the leader: put the present identity of a member in the place of the one that is lost.
    Replace {
        /// Its seat.
        seat: NodeName,
    },
    /// To the leader: take the vote of a member that is gone for good.
    Remove {
        /// Its seat.
        seat: NodeName,
    },
    /// To the leader: the sender asks for a lease.
    LeaseRequest(LeaseRequest),
    /// Of the leader, to a voter: confirm a lease.
    LeaseConfirm {
        /// The leader's term.
        term: u64,
        /// Who asks.
        holder: NodeName,
        /// What was asked.
        request: LeaseRequest,
    },
    /// The answer to that.
    LeaseConfirmed {
        /// The leader's term.
        term: u64,
        /// Who asks.
        holder: NodeName,
        /// What was asked.
        request: LeaseRequest,
    },
    /// Of the leader: the lease is granted.
    LeaseGrant {
        /// What was asked.
        request: LeaseRequest,
        /// Counts from the moment on at which the holder has applied the log through here.
        from_index: u64,
    },
    /// To all: the sender has stopped serving by what it asked for up to here.
    LeaseGivenBack(LeaseRequest),
    /// Of the leader, to a voter: how long is it bound to this holder?
    LeaseAsk {
        /// The leader's term.
        term: u64,
        /// Who is to be deposed.
        holder: NodeName,
    },
    /// The answer to that.
    LeaseBound {
        /// The leader's term.
        term: u64,
        /// Who is to be deposed.
        holder: NodeName,
        /// For so long, in milliseconds.
        bound_ms: u64,
    },
}

/// Names a proposal for all time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId {
    /// Random number of the proposer's process.
    pub life: u64,
    /// Grows with each proposal of that life.
    pub number: u64,
}

/// Why bytes are not a message, or not an entry.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// They end too early.
    #[error("it is cut short")]
    CutShort(#[from] CutShort),
    /// A version or kind that this program does not know.
    #[error("it is of a kind that this program does not know: {0}")]
    Unknown(u8),
    /// A name that can't be one.
    #[error("it names nobody")]
    Name,
    /// More bytes than the message has.
    #[error("bytes follow its end")]
    Trailing,
    /// A command that this program does not know.
    #[error("its command cannot be read")]
    Command(#[source] serde_json::Error),
}

impl Message {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![MESSAGE_VERSION];
        match self {
            Self::Raft(message) => {
                bytes.put_u8(0);
                bytes.put(message);
            }
            Self::Propose { entry } => {
                bytes.put_u8(1);
                bytes.put(entry);
            }
            Self::NotProposed { proposal } => {
                bytes.put_u8(2);
                bytes.put_u64(proposal.life);
                bytes.put_u64(proposal.number);
            }
            Self::Replace { seat } => {
                bytes.put_u8(3);
                put_name(&mut bytes, seat);
            }
            Self::LeaseRequest(request) => {
                bytes.put_u8(4);
                put_request(&mut bytes, *request);
            }
            Self::LeaseConfirm { term, holder, request } => {
                bytes.put_u8(5);
                put_lease(&mut bytes, *term, holder, *request);
            }
            Self::LeaseConfirmed { term, holder, request } => {
                bytes.put_u8(6);
                put_lease(&mut bytes, *term, holder, *request);
            }
            Self::LeaseGrant { request, from_index } => {
                bytes.put_u8(7);
                put_request(&mut bytes, *request);
                bytes.put_u64(*from_index);
            }
            Self::LeaseGivenBack(request) => {
                bytes.put_u8(8);
                put_request(&mut bytes, *request);
            }
            Self::LeaseAsk { term, holder } => {
                bytes.put_u8(9);
                bytes.put_u64(*term);
                put_name(&mut bytes, holder);
            }
            Self::LeaseBound { term, holder, bound_ms } => {
                bytes.put_u8(10);
                bytes.put_u64(*term);
                put_name(&mut bytes, holder);
                bytes.put_u64(*bound_ms);
            }
            Self::Remove { seat } => {
                bytes.put_u8(11);
                put_name(&mut bytes, seat);
            }
        }
        bytes
    }

    /// The message that [`Self::encode`] made these bytes of.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        if version != MESSAGE_VERSION {
            return Err(MessageError::Unknown(version));
        }
        let message = match reader.u8()? {
            0 => Self::Raft(rest(&mut reader)?),
            1 => Self::Propose { entry: rest(&mut reader)? },
            2 => Self::NotProposed { proposal: ProposalId { life: reader.u64()?, number: reader.u64()? } },
            3 => Self::Replace { seat: take_name(&mut reader)? },
            4 => Self::LeaseRequest(take_request(&mut reader)?),
            5 => {
                let (term, holder, request) = take_lease(&mut reader)?;
                Self::LeaseConfirm { term, holder, request }
            }
            6 => {
                let (term, holder, request) = take_lease(&mut reader)?;
                Self::LeaseConfirmed { term, holder, request }
            }
            7 => Self::LeaseGrant { request: take_request(&mut reader)?, from_index: reader.u64()? },
            8 => Self::LeaseGivenBack(take_request(&mut reader)?),
            9 => Self::LeaseAsk { term: reader.u64()?, holder: take_name(&mut reader)? },
            10 => {
                let (term, holder) = (reader.u64()?, take_name(&mut reader)?);
                Self::LeaseBound { term, holder, bound_ms: reader.u64()? }
            }
            11 => Self::Remove { seat: take_name(&mut reader)? },
            kind => return Err(MessageError::Unknown(kind)),
        };
        if reader.remaining() > 0 {
            return Err(MessageError::Trailing);
        }
        Ok(message)
    }
}

/// An entry of the log: who proposed what.
///
/// # Panics
/// Never: commands always encode.
#[must_use]
pub fn encode_entry(proposal: ProposalId, command: &Command) -> Vec<u8> {
    let mut bytes = vec![ENTRY_VERSION];
    bytes.put_u64(proposal.life);
    bytes.put_u64(proposal.number);
    bytes.put(&serde_json::to_vec(command).expect("maps with text keys and plain values always encode"));
    bytes
}

/// What [`encode_entry`] made these bytes of.
///
/// # Errors
/// [`MessageError`], also when a newer program made them.
pub fn decode_entry(bytes: &[u8]) -> Result<(ProposalId, Command), MessageError> {
    let mut reader = Reader::new(bytes);
    let version = reader.u8()?;
    if version != ENTRY_VERSION {
        return Err(MessageError::Unknown(version));
    }
    let proposal = ProposalId { life: reader.u64()?, number: reader.u64()? };
    let count = reader.remaining();
    let command = serde_json::from_slice(reader.bytes(count)?).map_err(MessageError::Command)?;
    Ok((proposal, command))
}

fn rest(reader: &mut Reader<'_>) -> Result<Vec<u8>, CutShort> {
    let count = reader.remaining();
    Ok(reader.bytes(count)?.to_vec())
}

fn put_name(bytes: &mut Vec<u8>, name: &NodeName) {
    bytes.put_u16(name.as_str().len() as u16);
    bytes.put(name.as_str().as_bytes());
}

fn take_name(reader: &mut Reader<'_>) -> Result<NodeName, MessageError> {
    let length = reader.u16()?;
    let text = std::str::from_utf8(reader.bytes(length.into())?).map_err(|_| MessageError::Name)?;
    text.parse().map_err(|_| MessageError::Name)
}

fn put_request(bytes: &mut Vec<u8>, request: LeaseRequest) {
    bytes.put_u64(request.life);
    bytes.put_u64(request.number);
}

fn take_request(reader: &mut Reader<'_>) -> Result<LeaseRequest, CutShort> {
    Ok(LeaseRequest { life: reader.u64()?, number: reader.u64()? })
}

fn put_lease(bytes: &mut Vec<u8>, term: u64, holder: &NodeName, request: LeaseRequest) {
    bytes.put_u64(term);
    put_name(bytes, holder);
    put_request(bytes, request);
}

fn take_lease(reader: &mut Reader<'_>) -> Result<(u64, NodeName, LeaseRequest), MessageError> {
    Ok((reader.u64()?, take_name(reader)?, take_request(reader)?))
}

const MESSAGE_VERSION: u8 = 1;
const ENTRY_VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Message> {
        let (holder, request): (NodeName, _) = ("a".parse().unwrap(), LeaseRequest { life: 3, number: 4 });
        vec![
            Message::Raft(vec![1, 2, 3]),
            Message::Propose { entry: vec![4] },
            Message::NotProposed { proposal: ProposalId { life: 5, number: 6 } },
            Message::Replace { seat: holder.clone() },
            Message::Remove { seat: holder.clone() },
            Message::LeaseRequest(request),
            Message::LeaseConfirm { term: 7, holder: holder.clone(), request },
            Message::LeaseConfirmed { term: 7, holder: holder.clone(), request },
            Message::LeaseGrant { request, from_index: 9 },
            Message::LeaseGivenBack(request),
            Message::LeaseAsk { term: 8, holder: holder.clone() },
            Message::LeaseBound { term: 8, holder, bound_ms: 11 },
        ]
    }

    #[test]
    fn messages_survive_and_no_bytes_panic() {
        for message in all() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes).unwrap(), message);
            for cut in 0..bytes.len() {
                let _ = Message::decode(&bytes[..cut]);
            }
            for place in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[place] ^= 0xff;
                let _ = Message::decode(&damaged);
            }
        }
        assert!(matches!(Message::decode(&[2, 0]), Err(MessageError::Unknown(2))));
        assert!(matches!(Message::decode(&[1, 99]), Err(MessageError::Unknown(99))));
    }

    #[test]
    fn an_entry_is_the_same_for_ever() {
        let command = Command::AddNode { name: "a".parse().unwrap() };
        let bytes = encode_entry(ProposalId { life: 1, number: 2 }, &command);
        let expected =
            [&[1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], &br#"{"add_node":{"name":"a"}}"#[..]];
        assert_eq!(bytes, expected.concat());
        assert_eq!(decode_entry(&bytes).unwrap(), (ProposalId { life: 1, number: 2 }, command));
        assert!(matches!(decode_entry(&bytes[..20]), Err(MessageError::Command(_))));
        assert!(matches!(decode_entry(&[7]), Err(MessageError::Unknown(7))));
    }
}
