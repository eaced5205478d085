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

use bytes::Bytes;

use super::coverage::{Coverage, CoverageStep, MOST_STEPS};
use super::message::{FromReplica, ReplicaFailure, StreamId, ToReplica};
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::store::interface::{
    BlockWrite, ChangedRun, Changes, MAX_SNAPSHOT_RECORD_BYTES, SnapshotEntry, StoreError,
};

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

fn put_version(header: &mut Vec<u8>, version: Version) {
    header.put_u32(version.epoch);
    header.put_u64(version.sequence);
}

fn read_version(fields: &mut Reader<'_>) -> Result<Version, CutShort> {
    Ok(Version { epoch: fields.u32()?, sequence: fields.u64()? })
}

fn put_optional_version(header: &mut Vec<u8>, version: Option<Version>) {
    header.put_u8(u8::from(version.is_some()));
    put_version(header, version.unwrap_or_default());
}

fn read_optional_version(fields: &mut Reader<'_>) -> Result<Option<Version>, WireError> {
    let (is_there, version) = (read_flag(fields)?, read_version(fields)?);
    Ok(is_there.then_some(version))
}

fn put_snapshots(
    header: &mut Vec<u8>,
    after: Option<Version>,
    through: Option<Version>,
    list: &[SnapshotEntry],
) {
    put_optional_version(header, after);
    put_optional_version(header, through);
    for entry in list {
        put_version(header, entry.version);
        header.put_u16(entry.record.len() as u16);
        header.put(&entry.record);
    }
}

/// Which snapshots a list is about, and the list, which is the rest of the header.
type SnapshotList = (Option<Version>, Option<Version>, Vec<SnapshotEntry>);

fn read_snapshots(fields: &mut Reader<'_>) -> Result<SnapshotList, WireError> {
    let (after, through) = (read_optional_version(fields)?, read_optional_version(fields)?);
    let (mut list, mut newest) = (Vec::new(), after);
    while fields.remaining() > 0 {
        let (version, length) = (read_version(fields)?, usize::from(fields.u16()?));
        let ascends = newest.is_none_or(|newest| version > newest);
        let is_within = through.is_none_or(|through| version <= through);
        if !ascends || !is_within || length > MAX_SNAPSHOT_RECORD_BYTES {
            return Err(WireError::Malformed);
        }
        list.push(SnapshotEntry { version, record: Bytes::copy_from_slice(fields.bytes(length)?) });
        newest = Some(version);
    }
    Ok((after, through, list))
}

/// Appends the changes; their data.
fn put_writes(header: &mut Vec<u8>, writes: &[BlockWrite]) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(writes.len());
    for write in writes {
        match write {
            BlockWrite::Data { address, data, checksum } => {
                header.put_u8(DATA);
                header.put_u64(address.0);
                header.put_u32(checksum.0);
                pieces.push(data.clone());
            }
            BlockWrite::Hole { address, count } => {
                header.put_u8(HOLE);
                header.put_u64(address.0);
                header.put_u64(*count);
            }
            BlockWrite::Snapshot { record } => {
                header.put_u8(SNAPSHOT);
                header.put_u16(record.len() as u16);
                header.put(record);
            }
            BlockWrite::SnapshotDropped { snapshot } => {
                header.put_u8(SNAPSHOT_DROPPED);
                put_version(header, *snapshot);
            }
        }
    }
    pieces
}

/// The changes are the rest of the header, and use up the data.
fn read_writes(fields: &mut Reader<'_>, mut data: Bytes) -> Result<Vec<BlockWrite>, WireError> {
    let mut writes = Vec::with_capacity(fields.remaining() / LEAST_CHANGE_BYTES);
    let mut end = 0;
    while fields.remaining() > 0 {
        let tag = fields.u8()?;
        if let Some(write) = read_snapshot(tag, fields)? {
            writes.push(write);
            continue;
        }
        let address = fields.u64()?;
        if address < end {
            return Err(WireError::Malformed);
        }
        let (write, count) = match tag {
            DATA => {
                let checksum = Crc32(fields.u32()?);
                if data.len() < BLOCK_SIZE {
                    return Err(CutShort.into());
                }
                let block = data.split_to(BLOCK_SIZE);
                let address = BlockAddress(address);
                if Crc32::of(&block) != checksum {
                    return Err(WireError::Damaged(address));
                }
                (BlockWrite::Data { address, data: block, checksum }, 1)
            }
            HOLE => {
                let count = fields.u64()?;
                (BlockWrite::Hole { address: BlockAddress(address), count }, count)
            }
            _ => return Err(WireError::Malformed),
        };
        let behind = address.checked_add(count).filter(|behind| *behind > address && *behind <= MOST_BLOCKS);
        end = behind.ok_or(WireError::Malformed)?;
        writes.push(write);
    }
    if writes.is_empty() || !data.is_empty() {
        return Err(WireError::Malformed);
    }
    Ok(writes)
}

/// The taking or dropping of a snapshot, if that is what the tag says.
fn read_snapshot(tag: u8, fields: &mut Reader<'_>) -> Result<Option<BlockWrite>, WireError> {
    Ok(match tag {
        SNAPSHOT => {
            let length = usize::from(fields.u16()?);
            if length > MAX_SNAPSHOT_RECORD_BYTES {
                return Err(WireError::Malformed);
            }
            Some(BlockWrite::Snapshot { record: Bytes::copy_from_slice(fields.bytes(length)?) })
        }
        SNAPSHOT_DROPPED => Some(BlockWrite::SnapshotDropped { snapshot: read_version(fields)? }),
        _ => None,
    })
}

/// A block with its checksum, or nothing.
fn read_block(fields: &mut Reader<'_>) -> Result<Option<Bytes>, WireError> {
    if fields.remaining() == 0 {
        return Ok(None);
    }
    let checksum = Crc32(fields.u32()?);
    let block = Bytes::copy_from_slice(fields.bytes(BLOCK_SIZE)?);
    if Crc32::of(&block) == checksum { Ok(Some(block)) } else { Err(WireError::Malformed) }
}

fn put_coverage(header: &mut Vec<u8>, coverage: &Coverage) {
    let steps = match coverage {
        Coverage::Whole => &[][..],
        Coverage::Partial(steps) => steps,
    };
    for step in steps {
        header.put_u64(step.end.0);
        put_version(header, step.through);
    }
}

fn read_coverage(fields: &mut Reader<'_>) -> Result<Coverage, WireError> {
    if fields.remaining() == 0 {
        return Ok(Coverage::Whole);
    }
    let mut steps = Vec::new();
    while fields.remaining() > 0 && steps.len() <= MOST_STEPS {
        steps.push(CoverageStep { end: BlockAddress(fields.u64()?), through: read_version(fields)? });
    }
    Coverage::of_steps(steps).ok_or(WireError::Malformed)
}

fn put_changes(header: &mut Vec<u8>, changes: &Changes) {
    header.put_u8(u8::from(changes.next.is_some()));
    header.put_u64(changes.next.map_or(0, |next| next.0));
    for run in &changes.runs {
        header.put_u64(run.address.0);
        header.put_u64(run.count);
        put_version(header, run.version);
        header.put_u8(u8::from(run.is_mapped));
    }
}

fn read_changes(fields: &mut Reader<'_>) -> Result<Changes, WireError> {
    let (has_next, next) = (read_flag(fields)?, BlockAddress(fields.u64()?));
    let mut changes = Changes { runs: Vec::new(), next: has_next.then_some(next) };
    while fields.remaining() > 0 {
        let (address, count) = (BlockAddress(fields.u64()?), fields.u64()?);
        let (version, is_mapped) = (read_version(fields)?, read_flag(fields)?);
        changes.runs.push(ChangedRun { address, count, version, is_mapped });
    }
    Ok(changes)
}

fn read_flag(fields: &mut Reader<'_>) -> Result<bool, WireError> {
    match fields.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::Malformed),
    }
}

fn put_failure(header: &mut Vec<u8>, reason: &ReplicaFailure) {
    match reason {
        ReplicaFailure::Store(StoreError::OutOfSpace) => header.put_u8(1),
        ReplicaFailure::Store(StoreError::Medium { volume, address }) => {
            header.put_u8(2);
            header.put_u32(volume.0);
            header.put_u64(address.0);
        }
        ReplicaFailure::Store(StoreError::Offline) => header.put_u8(3),
        ReplicaFailure::Store(StoreError::NoSuchVolume(volume)) => {
            header.put_u8(4);
            header.put_u32(volume.0);
        }
        ReplicaFailure::Gap { expected, found } => {
            header.put_u8(5);
            put_version(header, *expected);
            put_version(header, *found);
        }
        ReplicaFailure::Records => header.put_u8(6),
        ReplicaFailure::Protocol => header.put_u8(7),
        ReplicaFailure::Store(StoreError::NoSuchSnapshot { volume, snapshot }) => {
            header.put_u8(8);
            header.put_u32(volume.0);
            put_version(header, *snapshot);
        }
        ReplicaFailure::Store(StoreError::TooManySnapshots(volume)) => {
            header.put_u8(9);
            header.put_u32(volume.0);
        }
        ReplicaFailure::Store(StoreError::HasClones { volume, clone }) => {
            header.put_u8(10);
            header.put_u32(volume.0);
            header.put_u32(clone.0);
        }
        ReplicaFailure::Store(StoreError::LineageTooLong(volume)) => {
            header.put_u8(11);
            header.put_u32(volume.0);
        }
    }
}

fn read_failure(fields: &mut Reader<'_>) -> Result<ReplicaFailure, WireError> {
    Ok(match fields.u8()? {
        1 => StoreError::OutOfSpace.into(),
        2 => {
            let (volume, address) = (VolumeId(fields.u32()?), BlockAddress(fields.u64()?));
            StoreError::Medium { volume, address }.into()
        }
        3 => StoreError::Offline.into(),
        4 => StoreError::NoSuchVolume(VolumeId(fields.u32()?)).into(),
        5 => ReplicaFailure::Gap { expected: read_version(fields)?, found: read_version(fields)? },
        6 => ReplicaFailure::Records,
        7 => ReplicaFailure::Protocol,
        8 => {
            let (volume, snapshot) = (VolumeId(fields.u32()?), read_version(fields)?);
            StoreError::NoSuchSnapshot { volume, snapshot }.into()
        }
        9 => StoreError::TooManySnapshots(VolumeId(fields.u32()?)).into(),
        10 => {
            let (volume, clone) = (VolumeId(fields.u32()?), VolumeId(fields.u32()?));
            StoreError::HasClones { volume, clone }.into()
        }
        11 => StoreError::LineageTooLong(VolumeId(fields.u32()?)).into(),
        _ => return Err(WireError::Malformed),
    })
}

const FORMAT: u8 = 2;
const LENGTH_AT: usize = 2;
const DATA: u8 = 0;
const HOLE: u8 = 1;
const SNAPSHOT: u8 = 2;
const SNAPSHOT_DROPPED: u8 = 3;
const LEAST_CHANGE_BYTES: usize = 1 + 8 + 4;
/// No volume reaches as far.
const MOST_BLOCKS: u64 = 1 << 48;

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::END;
    use super::*;

    fn version(random: &mut ChaCha8Rng) -> Version {
        Version { epoch: random.random(), sequence: random.random() }
    }

    fn writes(random: &mut ChaCha8Rng) -> Vec<BlockWrite> {
        match random.random_range(0..10) {
            0 => {
                let record = vec![random.random(); random.random_range(0..=MAX_SNAPSHOT_RECORD_BYTES)];
                return vec![BlockWrite::Snapshot { record: record.into() }];
            }
            1 => return vec![BlockWrite::SnapshotDropped { snapshot: version(random) }],
            _ => {}
        }
        let mut address = random.random_range(0..100u64);
        let mut next = |random: &mut ChaCha8Rng| {
            let (first, count) = (BlockAddress(address), random.random_range(1..50u64));
            if random.random() {
                address += 1 + random.random_range(0..3u64);
                let mut data = vec![0; BLOCK_SIZE];
                random.fill_bytes(&mut data);
                let data = Bytes::from(data);
                return BlockWrite::Data { address: first, checksum: Crc32::of(&data), data };
            }
            address += count;
            BlockWrite::Hole { address: first, count }
        };
        (0..random.random_range(1..6)).map(|_| next(random)).collect()
    }

    fn to_replica(random: &mut ChaCha8Rng) -> ToReplica {
        let volume = VolumeId(random.random());
        let stream = StreamId { epoch: random.random(), number: random.random() };
        let address = BlockAddress(random.random());
        match random.random_range(0..12) {
            8 => {
                let mut sequence = 0;
                let mut entry = |random: &mut ChaCha8Rng| {
                    sequence += random.random_range(1..9u64);
                    let record = vec![random.random(); random.random_range(0..80usize)];
                    SnapshotEntry { version: Version { epoch: 3, sequence }, record: record.into() }
                };
                let list = (0..random.random_range(0..5)).map(|_| entry(random)).collect();
                let after = random.random::<bool>().then_some(Version { epoch: 2, sequence: 90 });
                let through = random.random::<bool>().then_some(Version { epoch: 3, sequence: 90 });
                ToReplica::Snapshots { volume, stream, after, through, list }
            }
            9 => {
                let (number, version) = (random.random(), version(random));
                ToReplica::History { volume, stream, number, version, writes: writes(random) }
            }
            10 => ToReplica::Fetch { volume, stream, number: random.random(), address },
            11 => ToReplica::Mend { volume, stream, version: version(random), writes: writes(random) },
            0 => ToReplica::Begin { volume, stream },
            1 => ToReplica::Join { volume, stream },
            2 => {
                let (version, previous) = (version(random), version(random));
                ToReplica::Write { volume, stream, version, previous, writes: writes(random) }
            }
            3 => {
                let (number, version) = (random.random(), version(random));
                ToReplica::Copy { volume, stream, number, version, writes: writes(random) }
            }
            4 => {
                let (since, at) = (version(random), random.random::<bool>().then(|| version(random)));
                ToReplica::Report { volume, stream, since, at, from: address }
            }
            5 => ToReplica::Passed { volume, stream, cursor: address },
            6 => ToReplica::Finish { volume, stream },
            _ => ToReplica::Settled { volume, stream, version: version(random) },
        }
    }

    fn from_replica(random: &mut ChaCha8Rng) -> FromReplica {
        let volume = VolumeId(random.random());
        let stream = StreamId { epoch: random.random(), number: random.random() };
        let from = BlockAddress(random.random());
        match random.random_range(0..10) {
            7 => {
                let coverage = Coverage::through(version(random)).raised(from, version(random));
                FromReplica::Reconciled { volume, stream, coverage }
            }
            8 => FromReplica::Damaged { volume, stream, address: from },
            9 => {
                let mut block = vec![0; BLOCK_SIZE];
                random.fill_bytes(&mut block);
                let block = random.random::<bool>().then(|| Bytes::from(block));
                FromReplica::Fetched { volume, stream, number: random.random(), block }
            }
            0 => {
                let partial = Coverage::through(version(random)).raised(from, version(random));
                let coverage = if random.random() { Coverage::Whole } else { partial };
                FromReplica::Ready { volume, stream, durable: version(random), coverage }
            }
            1 => FromReplica::Durable { volume, stream, version: version(random) },
            2 => FromReplica::Copied { volume, stream, number: random.random() },
            3 => {
                let run = |random: &mut ChaCha8Rng| ChangedRun {
                    address: BlockAddress(random.random()),
                    count: random.random(),
                    version: version(random),
                    is_mapped: random.random(),
                };
                let runs = (0..random.random_range(0..5)).map(|_| run(random)).collect();
                let changes = Changes { runs, next: random.random::<bool>().then_some(END) };
                FromReplica::Reported { volume, stream, from, changes }
            }
            4 => FromReplica::Whole { volume, stream },
            5 => FromReplica::Fenced { volume, stream, promised: random.random() },
            _ => {
                let reasons = [
                    StoreError::OutOfSpace.into(),
                    StoreError::Medium { volume, address: from }.into(),
                    StoreError::Offline.into(),
                    StoreError::NoSuchVolume(volume).into(),
                    ReplicaFailure::Gap { expected: version(random), found: version(random) },
                    ReplicaFailure::Records,
                    ReplicaFailure::Protocol,
                    StoreError::NoSuchSnapshot { volume, snapshot: version(random) }.into(),
                    StoreError::TooManySnapshots(volume).into(),
                    StoreError::HasClones { volume, clone: VolumeId(random.random()) }.into(),
                    StoreError::LineageTooLong(volume).into(),
                ];
                let reason = reasons[random.random_range(0..reasons.len())].clone();
                FromReplica::Failed { volume, stream, reason }
            }
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_again() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..3000 {
            let message = to_replica(&mut random);
            let bytes = Bytes::from(message.encode().concat());
            let decoded = ToReplica::decode(&bytes).unwrap();
            assert_eq!(format!("{decoded:?}"), format!("{message:?}"));
            if let ToReplica::Write { writes, .. } = &decoded {
                let within = bytes.as_ptr_range();
                let is_slice = |write: &BlockWrite| match write {
                    BlockWrite::Data { data, .. } => within.contains(&data.as_ptr()),
                    _ => true,
                };
                assert!(writes.iter().all(is_slice), "no copy");
            }
            let answer = from_replica(&mut random);
            assert_eq!(FromReplica::decode(&answer.encode()), Ok(answer));
        }
    }

    #[test]
    fn nothing_that_is_damaged_panics_or_passes_for_data() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..3000 {
            let mut bytes = to_replica(&mut random).encode().concat();
            let cut = random.random_range(0..bytes.len());
            assert!(ToReplica::decode(&Bytes::copy_from_slice(&bytes[..cut])).is_err());
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
            if let Ok(
                ToReplica::Write { writes, .. }
                | ToReplica::Copy { writes, .. }
                | ToReplica::History { writes, .. },
            ) = ToReplica::decode(&Bytes::from(bytes.clone()))
            {
                for write in writes {
                    if let BlockWrite::Data { data, checksum, .. } = write {
                        assert_eq!(Crc32::of(&data), checksum);
                    }
                }
            }
            bytes.truncate(at);
            let _ = FromReplica::decode(&Bytes::from(bytes));
            let mut answer = from_replica(&mut random).encode().to_vec();
            let at = random.random_range(0..answer.len());
            answer[at] ^= 1 << random.random_range(0..8);
            let _ = FromReplica::decode(&Bytes::from(answer.clone()));
            answer.push(0);
            let _ = FromReplica::decode(&Bytes::from(answer));
        }
        for other in [1, 3] {
            let message = Bytes::copy_from_slice(&[other, 1, 0, 0]);
            assert_eq!(ToReplica::decode(&message).err(), Some(WireError::UnknownFormat(other)));
        }
    }
}
