//! The byte stream of a checkpoint: segment table, volumes, then map pages, then an end mark.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::array::{Geometry, MemberSet, Place, SegmentIndex};
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::{BlockAddress, Version, VolumeId};

use super::map::{BlockMap, MapEntry, MapValue, PAGE_BLOCKS, Page, PageKey};
use super::segments::{Segment, SegmentState, SegmentTable};
use super::shared::{Contents, VolumeState};

/// Bytes of a segment in the stream.
pub(super) const SEGMENT_BYTES: usize = 1 + 4 + 8 + 8;
/// Most bytes of a map page in the stream.
pub(super) const MAX_PAGE_BYTES: usize = PAGE_HEAD_BYTES + PAGE_BLOCKS * ENTRY_BYTES;

const PAGE_HEAD_BYTES: usize = 1 + 4 + 8 + 1;
const ENTRY_BYTES: usize = 1 + 1 + 4 + 8 + 4 + 8;
const STREAM_VERSION: u32 = 1;
const TAG_TABLE: u8 = 1;
const TAG_VOLUME: u8 = 2;
const TAG_PAGE: u8 = 3;
const TAG_END: u8 = 4;
const KIND_DATA: u8 = 1;
const KIND_HOLE: u8 = 2;
const KIND_LOST: u8 = 3;

/// The head of the stream: the segments, those in `released` as free, and the volumes.
pub(super) fn encode_table(contents: &Contents, released: &[SegmentIndex]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u8(TAG_TABLE);
    bytes.put_u32(STREAM_VERSION);
    bytes.put_u64(contents.segments.next_generation());
    let segments: Vec<_> = contents.segments.iter().collect();
    bytes.put_u32(segments.len() as u32);
    for (index, segment) in segments {
        let in_use =
            matches!(segment.state, SegmentState::Open | SegmentState::Sealed) && !released.contains(&index);
        bytes.put_u8(u8::from(in_use));
        bytes.put_u32(segment.members.0);
        bytes.put_u64(segment.generation);
        bytes.put_u64(segment.last_batch);
    }
    for (volume, state) in &contents.volumes {
        bytes.put_u8(TAG_VOLUME);
        bytes.put_u32(volume.0);
        put_version(&mut bytes, state.record_version);
        put_version(&mut bytes, state.newest);
        bytes.put_u16(state.record.len() as u16);
        bytes.put(&state.record);
    }
    bytes
}

/// Bytes that all pages of a map take in the stream.
pub(super) fn pages_bytes(map: &BlockMap) -> u64 {
    map.page_count() as u64 * PAGE_HEAD_BYTES as u64 + map.entry_count() * ENTRY_BYTES as u64
}

/// One page of the map.
pub(super) fn encode_page(bytes: &mut Vec<u8>, key: PageKey, page: &Page) {
    bytes.put_u8(TAG_PAGE);
    bytes.put_u32(key.0.0);
    bytes.put_u64(key.1);
    let entries = page.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.unpack()?)));
    bytes.put_u8(entries.clone().count() as u8);
    for (index, entry) in entries {
        let (kind, checksum, place) = match entry.value {
            MapValue::Data { place, checksum } => (KIND_DATA, checksum.0, place.bits()),
            MapValue::Hole => (KIND_HOLE, 0, 0),
            MapValue::Lost => (KIND_LOST, 0, 0),
        };
        bytes.put_u8(index as u8);
        bytes.put_u8(kind);
        put_version(bytes, entry.version);
        bytes.put_u32(checksum);
        bytes.put_u64(place);
    }
}

/// The end of the stream.
pub(super) fn encode_end(bytes: &mut Vec<u8>) {
    bytes.put_u8(TAG_END);
}

fn put_version(bytes: &mut Vec<u8>, version: Version) {
    bytes.put_u32(version.epoch);
    bytes.put_u64(version.sequence);
}

/// The stream contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the checkpoint is not in this release's format")]
pub struct Malformed;

/// Reads the stream, in pieces of any size.
pub(super) struct Decoder {
    geometry: Geometry,
    pending: Vec<u8>,
    segments: Option<SegmentTable>,
    volumes: BTreeMap<VolumeId, VolumeState>,
    map: BlockMap,
    ended: bool,
}

enum Step {
    Done(usize),
    NeedsMore,
}

impl Decoder {
    pub(super) fn new(geometry: Geometry) -> Self {
        let (pending, segments, volumes, map, ended) = Default::default();
        Self { geometry, pending, segments, volumes, map, ended }
    }

    /// Takes the next piece.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<(), Malformed> {
        if self.ended {
            return Ok(()); // padding of the last block
        }
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(piece);
        let mut consumed = 0;
        while !self.ended && consumed < pending.len() {
            match self.step(&pending[consumed..])? {
                Step::Done(length) => consumed += length,
                Step::NeedsMore if pending.len() - consumed > MAX_RECORD_BYTES => return Err(Malformed),
                Step::NeedsMore => break,
            }
        }
        pending.drain(..consumed);
        self.pending = pending;
        Ok(())
    }

    /// The contents, if the stream was whole. Live blocks are not counted yet.
    pub(super) fn finish(self) -> Option<Contents> {
        let segments = self.segments.filter(|_| self.ended)?;
        Some(Contents { map: self.map, segments, volumes: self.volumes })
    }

    /// Reads one record from the front of `bytes`.
    fn step(&mut self, bytes: &[u8]) -> Result<Step, Malformed> {
        let mut reader = Reader::new(bytes);
        let read = match reader.u8() {
            Ok(TAG_TABLE) => self.read_table(&mut reader),
            Ok(TAG_VOLUME) => self.read_volume(&mut reader),
            Ok(TAG_PAGE) => self.read_page(&mut reader),
            Ok(TAG_END) => {
                self.ended = true;
                Ok(true)
            }
            _ => return Err(Malformed),
        };
        match read {
            Ok(true) => Ok(Step::Done(bytes.len() - reader.remaining())),
            Ok(false) => Err(Malformed),
            Err(CutShort) => Ok(Step::NeedsMore),
        }
    }

    fn read_table(&mut self, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
        let (version, next_generation, count) = (reader.u32()?, reader.u64()?, reader.u32()?);
        if version != STREAM_VERSION || count != self.geometry.segment_count {
            return Ok(false);
        }
        if reader.remaining() < count as usize * SEGMENT_BYTES {
            return Err(CutShort);
        }
        let mut segments = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let state = if reader.u8()? == 1 { SegmentState::Sealed } else { SegmentState::Free };
            let members = MemberSet(reader.u32()?).intersection(self.geometry.all_slots());
            let (generation, last_batch) = (reader.u64()?, reader.u64()?);
            segments.push(Segment { state, generation, members, live_blocks: 0, last_batch, readers: 0 });
        }
        self.segments = Some(SegmentTable::restore(segments, next_generation));
        Ok(true)
    }

    fn read_volume(&mut self, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
        let volume = VolumeId(reader.u32()?);
        let (record_version, newest) = (read_version(reader)?, read_version(reader)?);
        let length = usize::from(reader.u16()?);
        let record = Bytes::copy_from_slice(reader.bytes(length)?);
        self.volumes
            .insert(volume, VolumeState { record, record_version, newest, passed: Version::default() });
        Ok(true)
    }

    fn read_page(&mut self, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
        let (volume, page, count) = (VolumeId(reader.u32()?), reader.u64()?, reader.u8()?);
        let Some(base) = page.checked_mul(PAGE_BLOCKS as u64).filter(|base| *base < 1 << 48) else {
            return Ok(false);
        };
        if reader.remaining() < usize::from(count) * ENTRY_BYTES {
            return Err(CutShort);
        }
        for _ in 0..count {
            let (index, kind, version) = (reader.u8()?, reader.u8()?, read_version(reader)?);
            let (checksum, place) = (Crc32(reader.u32()?), Place::from_bits(reader.u64()?));
            let value = match kind {
                KIND_DATA if place.is_within(&self.geometry) => MapValue::Data { place, checksum },
                KIND_HOLE => MapValue::Hole,
                KIND_LOST => MapValue::Lost,
                _ => return Ok(false),
            };
            if usize::from(index) >= PAGE_BLOCKS {
                return Ok(false);
            }
            self.map.apply(volume, BlockAddress(base + u64::from(index)), MapEntry { version, value });
        }
        Ok(true)
    }
}

fn read_version(reader: &mut Reader<'_>) -> Result<Version, CutShort> {
    Ok(Version { epoch: reader.u32()?, sequence: reader.u64()? })
}

/// More than any record takes: the table of the largest number of segments.
const MAX_RECORD_BYTES: usize = 1 << 28;
