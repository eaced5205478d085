//! The byte stream of a checkpoint: segment table, places of the map's tables, the map's records, volumes with their snapshots, an end mark.
//!
//! The volumes stand behind the map because no snapshot may be missing that a version in the map's records is
//! kept for: replay would take the version for one that nobody needs.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::array::{Geometry, MemberSet, SegmentIndex};
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::mutant::{self, Mutant};
use crate::base::units::{Version, VolumeId};

use super::batch::COUNTER_END;
use super::interface::MAX_SNAPSHOT_RECORD_BYTES;
use super::map::lsm::{TAG_TREE, TreeOptions};
use super::map::record::TAG_PAGE;
use super::map::{Map, MemoryMap, StoreMap, TreeMap, View};
use super::segments::{Segment, SegmentState, SegmentTable};
use super::shared::{Contents, VolumeState};
use super::tables::{PoolTables, TAG_TABLE_PLACE};

/// Bytes of a segment in the stream, at most.
pub(super) const SEGMENT_BYTES: usize = 1 + 4 + 8 + 8 + 4;

/// Version 1 says of a block neither encoding nor origin; version 2 knows no snapshots, and its volumes stand
/// before the map. Version 3 has a map in memory. Version 4 says where tables of the map lie, and has the tree's records;
/// the live blocks of a segment are counted in it. A map in memory is written as version 3.
const STREAM_VERSION: u32 = 4;
const STREAM_VERSION_IN_MEMORY: u32 = 3;
const TAG_TABLE: u8 = 1;
const TAG_VOLUME: u8 = 2;
const TAG_END: u8 = 4;
const TAG_SNAPSHOT: u8 = 5;
const TAG_PARENT: u8 = 6;

/// The head of the stream: the segments, those in `released` as free.
pub(super) fn encode_table(contents: &Contents, released: &[SegmentIndex]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u8(TAG_TABLE);
    let tree = contents.tree();
    bytes.put_u32(if tree.is_some() { STREAM_VERSION } else { STREAM_VERSION_IN_MEMORY });
    bytes.put_u64(contents.segments.next_generation());
    // Replay finds what is in no table yet.
    let mut in_memory: HashMap<SegmentIndex, u32> = HashMap::new();
    tree.iter().flat_map(|map| map.places_in_memory()).for_each(|place| {
        *in_memory.entry(place.segment()).or_default() += 1;
    });
    let segments: Vec<_> = contents.segments.iter().collect();
    bytes.put_u32(segments.len() as u32);
    for (index, segment) in segments {
        let in_use =
            matches!(segment.state, SegmentState::Open | SegmentState::Sealed) && !released.contains(&index);
        bytes.put_u8(u8::from(in_use));
        bytes.put_u32(segment.members.0);
        bytes.put_u64(segment.generation);
        bytes.put_u64(segment.last_batch);
        if tree.is_some() {
            let replayed = in_memory.get(&index).copied().unwrap_or(0);
            let live_blocks = if in_use { segment.live_blocks.saturating_sub(replayed) } else { 0 };
            bytes.put_u32(live_blocks);
        }
    }
    if mutant::is(Mutant::SnapshotsBeforeMapInCheckpoint) {
        put_volumes(&mut bytes, contents);
    }
    bytes
}

/// The volumes, and the snapshots of each behind it: when the map has been encoded.
pub(super) fn encode_volumes(bytes: &mut Vec<u8>, contents: &Contents) {
    if !mutant::is(Mutant::SnapshotsBeforeMapInCheckpoint) {
        put_volumes(bytes, contents);
    }
}

fn put_volumes(bytes: &mut Vec<u8>, contents: &Contents) {
    for (volume, state) in &contents.volumes {
        bytes.put_u8(TAG_VOLUME);
        bytes.put_u32(volume.0);
        put_version(bytes, state.record_version);
        put_version(bytes, state.newest);
        bytes.put_u16(state.record.len() as u16);
        bytes.put(&state.record);
        if let Some(parent) = state.parent.filter(|_| !mutant::is(Mutant::CloneLostInCheckpoint)) {
            bytes.put_u8(TAG_PARENT);
            bytes.put_u32(volume.0);
            bytes.put_u32(parent.volume.0);
            put_version(bytes, parent.at);
        }
        for snapshot in state.snapshots.entries().filter(|_| !mutant::is(Mutant::SnapshotLostInCheckpoint)) {
            bytes.put_u8(TAG_SNAPSHOT);
            bytes.put_u32(volume.0);
            put_version(bytes, snapshot.version);
            bytes.put_u16(snapshot.record.len() as u16);
            bytes.put(&snapshot.record);
        }
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
    version: u32,
    segments: Option<SegmentTable>,
    volumes: BTreeMap<VolumeId, VolumeState>,
    map: StoreMap,
    /// What a tree is made of, if it turns out to be one.
    tree: Option<(PoolTables, TreeOptions)>,
    ended: bool,
}

enum Step {
    Done(usize),
    NeedsMore,
}

impl Decoder {
    pub(super) fn new(geometry: Geometry, tree: Option<(PoolTables, TreeOptions)>) -> Self {
        let (pending, version, segments, volumes, ended) = Default::default();
        let map = StoreMap::Memory(MemoryMap::default());
        Self { geometry, pending, version, segments, volumes, map, tree, ended }
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
            Ok(TAG_PARENT) => self.read_parent(&mut reader),
            Ok(TAG_SNAPSHOT) => self.read_snapshot(&mut reader),
            Ok(TAG_PAGE) if self.version < STREAM_VERSION => {
                self.map.load(&mut reader, self.version, &self.geometry)
            }
            Ok(TAG_TREE) if self.version >= STREAM_VERSION => {
                self.map.load(&mut reader, self.version, &self.geometry)
            }
            Ok(TAG_TABLE_PLACE) if self.version >= STREAM_VERSION => self.read_table_place(&mut reader),
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
        let is_known = (1..=STREAM_VERSION).contains(&version);
        if !is_known || count != self.geometry.segment_count || next_generation > COUNTER_END {
            return Ok(false);
        }
        let has_tree = version >= STREAM_VERSION;
        let segment_bytes = if has_tree { SEGMENT_BYTES } else { SEGMENT_BYTES - 4 };
        if reader.remaining() < count as usize * segment_bytes {
            return Err(CutShort);
        }
        if has_tree && self.tree.is_none() {
            return Ok(false);
        }
        let mut segments = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let state = if reader.u8()? == 1 { SegmentState::Sealed } else { SegmentState::Free };
            let members = MemberSet(reader.u32()?).intersection(self.geometry.all_slots());
            let (generation, last_batch) = (reader.u64()?, reader.u64()?);
            let live_blocks = if has_tree { reader.u32()? } else { 0 };
            segments.push(Segment { state, generation, members, live_blocks, last_batch, ..Segment::FREE });
        }
        let segments = SegmentTable::restore(segments, next_generation);
        if let Some((tables, options)) = self.tree.take().filter(|_| has_tree) {
            self.map = StoreMap::Tree(TreeMap::new(tables, options, segments.uses()));
        }
        self.version = version;
        self.segments = Some(segments);
        Ok(true)
    }

    fn read_table_place(&mut self, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
        let (Some(segments), Some(map)) = (&mut self.segments, self.map.tree()) else { return Ok(false) };
        map.tables().load(reader, segments, &self.geometry)
    }

    fn read_volume(&mut self, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
        let volume = VolumeId(reader.u32()?);
        let (record_version, newest) = (read_version(reader)?, read_version(reader)?);
        let length = usize::from(reader.u16()?);
        let record = Bytes::copy_from_slice(reader.bytes(length)?);
        let state = VolumeState { record, record_version, newest, ..VolumeState::default() };
        self.volumes.insert(volume, state);
        Ok(true)
    }

    fn read_parent(&mut self, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
        let volume = VolumeId(reader.u32()?);
        let parent = View { volume: VolumeId(reader.u32()?), at: read_version(reader)? };
        let Some(volume) = self.volumes.get_mut(&volume) else { return Ok(false) };
        volume.parent = Some(parent);
        Ok(true)
    }

    fn read_snapshot(&mut self, reader: &mut Reader<'_>) -> Result<bool, CutShort> {
        let (volume, version) = (VolumeId(reader.u32()?), read_version(reader)?);
        let length = usize::from(reader.u16()?);
        let record = Bytes::copy_from_slice(reader.bytes(length)?);
        let volume = self.volumes.get_mut(&volume).filter(|_| length <= MAX_SNAPSHOT_RECORD_BYTES);
        let Some(volume) = volume else { return Ok(false) };
        volume.snapshots.insert(version, record);
        Ok(true)
    }
}

fn read_version(reader: &mut Reader<'_>) -> Result<Version, CutShort> {
    Ok(Version { epoch: reader.u32()?, sequence: reader.u64()? })
}

/// More than any record takes: the table of the largest number of segments.
const MAX_RECORD_BYTES: usize = 1 << 28;
