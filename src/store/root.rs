//! The store's root in the superblock: which checkpoint to load, where replay of the log begins, and
//! how recoveries have joined one incarnation of the log to the next.

use crate::array::Geometry;
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader, Writer};

use super::batch::{COUNTER_END, HEADS, SegmentUse, put_segment_use, read_segment_use};

/// The root. An empty byte string is the root of a pool that was just formatted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Root {
    /// The newest complete checkpoint.
    pub checkpoint: Option<CheckpointReference>,
    /// Where replay begins; `None` before the pool was first opened.
    pub replay: Option<LogPosition>,
    /// Recoveries since the checkpoint, oldest first.
    pub joints: Vec<Joint>,
}

/// Where a checkpoint begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointReference {
    /// Its identity, in the incarnation field of its batches.
    pub identity: u64,
    /// First segment; each names the next.
    pub first: SegmentUse,
    /// Number of batches.
    pub batches: u64,
}

/// A position in the chain of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// Incarnation that writes on from here.
    pub incarnation: u64,
    /// Number of the batch before.
    pub last_number: u64,
    /// Checksum of that batch's header.
    pub last_checksum: Crc32,
    /// The heads here.
    pub heads: [HeadPosition; HEADS],
}

impl LogPosition {
    fn is_within(&self, geometry: &Geometry) -> bool {
        let named = self.heads.iter().flat_map(|head| [head.current, head.next]).flatten();
        self.incarnation.max(self.last_number) < COUNTER_END
            && self.heads.iter().all(|head| head.row <= geometry.rows)
            && named.into_iter().all(|named| named.is_within(geometry))
    }
}

/// Where a head stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HeadPosition {
    /// Segment being filled.
    pub current: Option<SegmentUse>,
    /// First free row in it.
    pub row: u32,
    /// Segment to follow.
    pub next: Option<SegmentUse>,
}

/// A recovery: the chain went on behind a certain batch in new segments. Whatever the earlier
/// incarnation wrote behind that batch was discarded and never comes back.
pub type Joint = LogPosition;

/// Most joints before a recovery must write a checkpoint.
pub const MAX_JOINTS: usize = 16;

impl Root {
    /// The root's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_u32(VERSION);
        bytes.put_u8(u8::from(self.checkpoint.is_some()));
        if let Some(checkpoint) = &self.checkpoint {
            bytes.put_u64(checkpoint.identity);
            put_segment_use(&mut bytes, Some(checkpoint.first));
            bytes.put_u64(checkpoint.batches);
        }
        bytes.put_u8(u8::from(self.replay.is_some()));
        self.replay.iter().for_each(|position| put_position(&mut bytes, position));
        bytes.put_u16(self.joints.len() as u16);
        self.joints.iter().for_each(|joint| put_position(&mut bytes, joint));
        bytes
    }

    /// Reads a root; `None` when it is not one of this format.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let mut reader = Reader::new(bytes);
        (reader.u32().ok()? == VERSION).then_some(())?;
        Self::decode_fields(&mut reader).ok()?
    }

    /// Whether all that it names exists in a pool of this geometry.
    #[must_use]
    pub fn is_within(&self, geometry: &Geometry) -> bool {
        self.checkpoint.is_none_or(|checkpoint| checkpoint.first.is_within(geometry))
            && self.replay.iter().chain(&self.joints).all(|position| position.is_within(geometry))
    }

    fn decode_fields(reader: &mut Reader<'_>) -> Result<Option<Self>, CutShort> {
        let mut root = Self::default();
        if reader.u8()? == 1 {
            let identity = reader.u64()?;
            let Some(first) = read_segment_use(reader)? else { return Ok(None) };
            root.checkpoint = Some(CheckpointReference { identity, first, batches: reader.u64()? });
        }
        if reader.u8()? == 1 {
            root.replay = Some(read_position(reader)?);
        }
        let joints = usize::from(reader.u16()?);
        if joints > MAX_JOINTS {
            return Ok(None);
        }
        for _ in 0..joints {
            root.joints.push(read_position(reader)?);
        }
        Ok(Some(root))
    }
}

fn put_position(bytes: &mut Vec<u8>, position: &LogPosition) {
    bytes.put_u64(position.incarnation);
    bytes.put_u64(position.last_number);
    bytes.put_u32(position.last_checksum.0);
    for head in &position.heads {
        put_segment_use(bytes, head.current);
        bytes.put_u32(head.row);
        put_segment_use(bytes, head.next);
    }
}

fn read_position(reader: &mut Reader<'_>) -> Result<LogPosition, CutShort> {
    let (incarnation, last_number) = (reader.u64()?, reader.u64()?);
    let last_checksum = Crc32(reader.u32()?);
    let mut heads = [HeadPosition::default(); HEADS];
    for head in &mut heads {
        let current = read_segment_use(reader)?;
        let row = reader.u32()?;
        *head = HeadPosition { current, row, next: read_segment_use(reader)? };
    }
    Ok(LogPosition { incarnation, last_number, last_checksum, heads })
}

const VERSION: u32 = 1;
const POSITION_BYTES: usize = 8 + 8 + 4 + HEADS * 28;
const _: () = assert!(
    4 + 1 + 28 + 1 + POSITION_BYTES * (MAX_JOINTS + 1) + 2 <= crate::array::superblock::MAX_ROOT_BYTES
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::SegmentIndex;

    #[test]
    fn encoding_and_decoding_are_inverse() {
        let at = |segment, generation| Some(SegmentUse { segment: SegmentIndex(segment), generation });
        let heads = [HeadPosition { current: at(1, 5), row: 7, next: at(2, 6) }, HeadPosition::default()];
        let position = LogPosition { incarnation: 3, last_number: 99, last_checksum: Crc32(1), heads };
        let checkpoint = CheckpointReference { identity: 4, first: at(9, 8).unwrap(), batches: 12 };
        let root =
            Root { checkpoint: Some(checkpoint), replay: Some(position), joints: vec![position; MAX_JOINTS] };
        assert_eq!(Root::decode(&root.encode()), Some(root.clone()));
        assert_eq!(Root::decode(&[]), Some(Root::default()));
        assert_eq!(Root::decode(&root.encode()[..40]), None);
    }
}
