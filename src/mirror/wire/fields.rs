//! The fields of the mirror's messages as bytes: versions, changes, coverages, lists of snapshots, reasons.

use bytes::Bytes;

use super::WireError;
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::mirror::coverage::{Coverage, CoverageStep, MOST_STEPS};
use crate::mirror::message::ReplicaFailure;
use crate::store::interface::{
    BlockWrite, ChangedRun, Changes, MAX_SNAPSHOT_RECORD_BYTES, SnapshotEntry, StoreError,
};

pub(super) fn put_version(header: &mut Vec<u8>, version: Version) {
    header.put_u32(version.epoch);
    header.put_u64(version.sequence);
}

pub(super) fn read_version(fields: &mut Reader<'_>) -> Result<Version, CutShort> {
    Ok(Version { epoch: fields.u32()?, sequence: fields.u64()? })
}

pub(super) fn put_optional_version(header: &mut Vec<u8>, version: Option<Version>) {
    header.put_u8(u8::from(version.is_some()));
    put_version(header, version.unwrap_or_default());
}

pub(super) fn read_optional_version(fields: &mut Reader<'_>) -> Result<Option<Version>, WireError> {
    let (is_there, version) = (read_flag(fields)?, read_version(fields)?);
    Ok(is_there.then_some(version))
}

pub(super) fn put_snapshots(
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
pub(super) type SnapshotList = (Option<Version>, Option<Version>, Vec<SnapshotEntry>);

pub(super) fn read_snapshots(fields: &mut Reader<'_>) -> Result<SnapshotList, WireError> {
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
pub(super) fn put_writes(header: &mut Vec<u8>, writes: &[BlockWrite]) -> Vec<Bytes> {
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
pub(super) fn read_writes(fields: &mut Reader<'_>, mut data: Bytes) -> Result<Vec<BlockWrite>, WireError> {
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
pub(super) fn read_snapshot(tag: u8, fields: &mut Reader<'_>) -> Result<Option<BlockWrite>, WireError> {
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
pub(super) fn read_block(fields: &mut Reader<'_>) -> Result<Option<Bytes>, WireError> {
    if fields.remaining() == 0 {
        return Ok(None);
    }
    let checksum = Crc32(fields.u32()?);
    let block = Bytes::copy_from_slice(fields.bytes(BLOCK_SIZE)?);
    if Crc32::of(&block) == checksum { Ok(Some(block)) } else { Err(WireError::Malformed) }
}

pub(super) fn put_coverage(header: &mut Vec<u8>, coverage: &Coverage) {
    let steps = match coverage {
        Coverage::Whole => &[][..],
        Coverage::Partial(steps) => steps,
    };
    for step in steps {
        header.put_u64(step.end.0);
        put_version(header, step.through);
    }
}

pub(super) fn read_coverage(fields: &mut Reader<'_>) -> Result<Coverage, WireError> {
    if fields.remaining() == 0 {
        return Ok(Coverage::Whole);
    }
    let mut steps = Vec::new();
    while fields.remaining() > 0 && steps.len() <= MOST_STEPS {
        steps.push(CoverageStep { end: BlockAddress(fields.u64()?), through: read_version(fields)? });
    }
    Coverage::of_steps(steps).ok_or(WireError::Malformed)
}

pub(super) fn put_changes(header: &mut Vec<u8>, changes: &Changes) {
    header.put_u8(u8::from(changes.next.is_some()));
    header.put_u64(changes.next.map_or(0, |next| next.0));
    for run in &changes.runs {
        header.put_u64(run.address.0);
        header.put_u64(run.count);
        put_version(header, run.version);
        header.put_u8(u8::from(run.is_mapped));
    }
}

pub(super) fn read_changes(fields: &mut Reader<'_>) -> Result<Changes, WireError> {
    let (has_next, next) = (read_flag(fields)?, BlockAddress(fields.u64()?));
    let mut changes = Changes { runs: Vec::new(), next: has_next.then_some(next) };
    while fields.remaining() > 0 {
        let (address, count) = (BlockAddress(fields.u64()?), fields.u64()?);
        let (version, is_mapped) = (read_version(fields)?, read_flag(fields)?);
        changes.runs.push(ChangedRun { address, count, version, is_mapped });
    }
    Ok(changes)
}

pub(super) fn read_flag(fields: &mut Reader<'_>) -> Result<bool, WireError> {
    match fields.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::Malformed),
    }
}

pub(super) fn put_failure(header: &mut Vec<u8>, reason: &ReplicaFailure) {
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

pub(super) fn read_failure(fields: &mut Reader<'_>) -> Result<ReplicaFailure, WireError> {
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

const DATA: u8 = 0;
const HOLE: u8 = 1;
const SNAPSHOT: u8 = 2;
const SNAPSHOT_DROPPED: u8 = 3;
const LEAST_CHANGE_BYTES: usize = 1 + 8 + 4;
/// No volume reaches as far.
const MOST_BLOCKS: u64 = 1 << 48;
