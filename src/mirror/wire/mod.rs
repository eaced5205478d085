//! The mirror's messages as bytes: what travels in the `bytes` fields of a stream.
//!
//! A message is a header, then the data of its blocks, 4096 bytes each. The header is: version of the
//! format (1), kind, length of the header in bytes (u32), volume (u32), epoch (u32) and number (u64) of the
//! stream, and the kind's own fields, all little-endian. Data is neither copied on the way out nor on the
//! way in. Each block's checksum is the one that the volume computed over the host's data; decoding checks
//! it, so what came is what the host wrote.
//!
//! Decoding never panics, allocates no more than a small multiple of what it was given, and accepts
//! nothing that the mirror could not be told: changes ascend and are disjoint, coverages are sound.

mod fields;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use self::fields::*;
use super::message::{FromReplica, StreamId, ToReplica};
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::{BlockAddress, VolumeId};

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// They end early.
    #[error(transparent)]
    CutShort(#[from] CutShort),
    /// They are of a version of the format that this release does not know.
    #[error("mirror messages of format {0}; this release knows format 2")]
    UnknownFormat(u8),
    /// A field has a value that it can't have.
    #[error("a malformed mirror message")]
    Malformed,
    /// A block is not what its checksum says.
    #[error("block {} arrived damaged", .0.0)]
    Damaged(BlockAddress),
}

impl ToReplica {
    /// The message in pieces: its header, then the data of its blocks.
    #[must_use]
    pub fn encode(&self) -> Vec<Bytes> {
        let (volume, stream) = self.belongs_to();
        let kind = match self {
            Self::Begin { .. } => 1,
            Self::Join { .. } => 2,
            Self::Write { .. } => 3,
            Self::Copy { .. } => 4,
            Self::Report { .. } => 5,
            Self::Passed { .. } => 6,
            Self::Finish { .. } => 7,
            Self::Settled { .. } => 8,
            Self::Snapshots { .. } => 9,
            Self::History { .. } => 10,
            Self::Fetch { .. } => 11,
            Self::Mend { .. } => 12,
        };
        let mut header = begin(kind, volume, stream);
        let mut data = Vec::new();
        match self {
            Self::Begin { .. } | Self::Join { .. } | Self::Finish { .. } => {}
            Self::Write { version, previous, writes, .. } => {
                put_version(&mut header, *version);
                put_version(&mut header, *previous);
                data = put_writes(&mut header, writes);
            }
            Self::Copy { number, version, writes, .. } => {
                header.put_u64(*number);
                put_version(&mut header, *version);
                data = put_writes(&mut header, writes);
            }
            Self::Snapshots { after, through, list, .. } => {
                put_snapshots(&mut header, *after, *through, list)
            }
            Self::History { number, version, writes, .. } => {
                header.put_u64(*number);
                put_version(&mut header, *version);
                data = put_writes(&mut header, writes);
            }
            Self::Report { since, at, from, .. } => {
                put_version(&mut header, *since);
                put_optional_version(&mut header, *at);
                header.put_u64(from.0);
            }
            Self::Passed { cursor, .. } => header.put_u64(cursor.0),
            Self::Settled { version, .. } => put_version(&mut header, *version),
            Self::Fetch { number, address, .. } => {
                header.put_u64(*number);
                header.put_u64(address.0);
            }
            Self::Mend { version, writes, .. } => {
                put_version(&mut header, *version);
                data = put_writes(&mut header, writes);
            }
        }
        let mut pieces = vec![finish(header)];
        pieces.append(&mut data);
        pieces
    }

    /// Reads a message.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &Bytes) -> Result<Self, WireError> {
        let Opened { kind, volume, stream, mut fields, data } = open(bytes)?;
        let fields = &mut fields;
        let message = match kind {
            1 => Self::Begin { volume, stream },
            2 => Self::Join { volume, stream },
            3 => {
                let (version, previous) = (read_version(fields)?, read_version(fields)?);
                let writes = read_writes(fields, data.clone())?;
                Self::Write { volume, stream, version, previous, writes }
            }
            4 => {
                let (number, version) = (fields.u64()?, read_version(fields)?);
                let writes = read_writes(fields, data.clone())?;
                Self::Copy { volume, stream, number, version, writes }
            }
            5 => {
                let (since, at) = (read_version(fields)?, read_optional_version(fields)?);
                Self::Report { volume, stream, since, at, from: BlockAddress(fields.u64()?) }
            }
            6 => Self::Passed { volume, stream, cursor: BlockAddress(fields.u64()?) },
            7 => Self::Finish { volume, stream },
            8 => Self::Settled { volume, stream, version: read_version(fields)? },
            9 => {
                let (after, through, list) = read_snapshots(fields)?;
                Self::Snapshots { volume, stream, after, through, list }
            }
            10 => {
                let (number, version) = (fields.u64()?, read_version(fields)?);
                Self::History { volume, stream, number, version, writes: read_writes(fields, data.clone())? }
            }
            11 => Self::Fetch { volume, stream, number: fields.u64()?, address: BlockAddress(fields.u64()?) },
            12 => {
                let version = read_version(fields)?;
                let writes = read_writes(fields, data.clone())?;
                Self::Mend { volume, stream, version, writes }
            }
            _ => return Err(WireError::Malformed),
        };
        let has_data = matches!(kind, 3 | 4 | 10 | 12);
        close(fields, has_data || data.is_empty(), message)
    }
}

impl FromReplica {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (volume, stream) = self.belongs_to();
        let kind = match self {
            Self::Ready { .. } => 1,
            Self::Durable { .. } => 2,
            Self::Copied { .. } => 3,
            Self::Reported { .. } => 4,
            Self::Whole { .. } => 5,
            Self::Fenced { .. } => 6,
            Self::Failed { .. } => 7,
            Self::Reconciled { .. } => 8,
            Self::Fetched { .. } => 9,
            Self::Damaged { .. } => 10,
        };
        let mut header = begin(kind, volume, stream);
        match self {
            Self::Ready { durable, coverage, .. } => {
                put_version(&mut header, *durable);
                put_coverage(&mut header, coverage);
            }
            Self::Durable { version, .. } => put_version(&mut header, *version),
            Self::Copied { number, .. } => header.put_u64(*number),
            Self::Reported { from, changes, .. } => {
                header.put_u64(from.0);
                put_changes(&mut header, changes);
            }
            Self::Reconciled { coverage, .. } => put_coverage(&mut header, coverage),
            Self::Whole { .. } => {}
            Self::Fenced { promised, .. } => header.put_u32(*promised),
            Self::Failed { reason, .. } => put_failure(&mut header, reason),
            Self::Fetched { number, block, .. } => {
                header.put_u64(*number);
                if let Some(block) = block {
                    header.put_u32(Crc32::of(block).0);
                    header.put(block);
                }
            }
            Self::Damaged { address, .. } => header.put_u64(address.0),
        }
        finish(header)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &Bytes) -> Result<Self, WireError> {
        let Opened { kind, volume, stream, mut fields, data } = open(bytes)?;
        let fields = &mut fields;
        let message = match kind {
            1 => {
                let (durable, coverage) = (read_version(fields)?, read_coverage(fields)?);
                Self::Ready { volume, stream, durable, coverage }
            }
            2 => Self::Durable { volume, stream, version: read_version(fields)? },
            3 => Self::Copied { volume, stream, number: fields.u64()? },
            4 => {
                let (from, changes) = (BlockAddress(fields.u64()?), read_changes(fields)?);
                Self::Reported { volume, stream, from, changes }
            }
            5 => Self::Whole { volume, stream },
            6 => Self::Fenced { volume, stream, promised: fields.u32()? },
            7 => Self::Failed { volume, stream, reason: read_failure(fields)? },
            8 => Self::Reconciled { volume, stream, coverage: read_coverage(fields)? },
            9 => Self::Fetched { volume, stream, number: fields.u64()?, block: read_block(fields)? },
            10 => Self::Damaged { volume, stream, address: BlockAddress(fields.u64()?) },
            _ => return Err(WireError::Malformed),
        };
        close(fields, data.is_empty(), message)
    }
}

/// A message with the common part of its header read.
struct Opened<'a> {
    kind: u8,
    volume: VolumeId,
    stream: StreamId,
    fields: Reader<'a>,
    data: Bytes,
}

fn begin(kind: u8, volume: VolumeId, stream: StreamId) -> Vec<u8> {
    let mut header = vec![FORMAT, kind];
    header.put_u32(0); // the length, once it is known
    header.put_u32(volume.0);
    header.put_u32(stream.epoch);
    header.put_u64(stream.number);
    header
}

fn finish(mut header: Vec<u8>) -> Bytes {
    let length = header.len() as u32;
    header[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_le_bytes());
    header.into()
}

fn open(bytes: &Bytes) -> Result<Opened<'_>, WireError> {
    let mut start = Reader::new(bytes);
    let (format, kind) = (start.u8()?, start.u8()?);
    if format != FORMAT {
        return Err(WireError::UnknownFormat(format));
    }
    let length = start.u32()? as usize;
    let fields_length = length.checked_sub(LENGTH_AT + 4).ok_or(WireError::Malformed)?;
    let mut fields = Reader::new(start.bytes(fields_length)?);
    let volume = VolumeId(fields.u32()?);
    let stream = StreamId { epoch: fields.u32()?, number: fields.u64()? };
    Ok(Opened { kind, volume, stream, fields, data: bytes.slice(length..) })
}

/// The message, if nothing is left over.
fn close<T>(fields: &Reader<'_>, is_data_used: bool, message: T) -> Result<T, WireError> {
    if fields.remaining() == 0 && is_data_used { Ok(message) } else { Err(WireError::Malformed) }
}

const FORMAT: u8 = 2;
const LENGTH_AT: usize = 2;
