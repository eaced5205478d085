//! The batch: one full stripe of the log, described by its header.
//!
//! A header says what each block of the batch is, and carries the chain: incarnation, batch number,
//! the checksum of the header before, the segment's generation, and *acknowledged-through*, the only
//! proof that a batch was acknowledged. It names the segments that each head of the log fills now and
//! next, so that replay always knows where a following batch can be.
//!
//! A header counts only when it carries the pool's secret key: hosts choose what their blocks hold, and
//! a block may come to lie where a header is looked for.
//!
//! On disk the header fills whole blocks at the top of the stripe's first data column, payload blocks
//! follow, column by column. Layout in docs/on-disk-format.md.

use crate::array::geometry::{MAX_ROWS, StripeLayout};
use crate::array::superblock::{LogKey, Uuid};
use crate::array::{Geometry, MemberSet, Place, SegmentIndex};
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::{BLOCK_SIZE, BlockAddress, BlockIdentity, Version, VolumeId};

/// Heads of the log: open segments that are filled side by side.
pub const HEADS: usize = 2;

/// Most entries of one batch.
pub const MAX_ENTRIES: usize = 4096;

/// A segment in one of its uses: reuse gives it a new generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentUse {
    /// Which segment.
    pub segment: SegmentIndex,
    /// Which use of it.
    pub generation: u64,
}

impl SegmentUse {
    /// Whether a pool of this geometry has the segment, and can count on from the generation.
    #[must_use]
    pub fn is_within(&self, geometry: &Geometry) -> bool {
        self.segment.0 < geometry.segment_count && self.generation < COUNTER_END
    }
}

/// Where a head of the log writes now and will write next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HeadRecord {
    /// Segment being filled.
    pub current: Option<SegmentUse>,
    /// Segment to follow.
    pub next: Option<SegmentUse>,
}

/// What a batch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// The log of changes.
    Log,
    /// A checkpoint; the incarnation field holds the checkpoint's identity.
    Checkpoint,
}

/// The header of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Log or checkpoint.
    pub kind: BatchKind,
    /// The pool.
    pub pool: Uuid,
    /// The pool's secret, which shows that the store wrote this, and not a host as data.
    pub key: LogKey,
    /// Which run of the log wrote it: every recovery begins a new one.
    pub incarnation: u64,
    /// Position in the chain; also rotates the parity column.
    pub number: u64,
    /// Where it lies, so that a misdirected header is noticed.
    pub place: SegmentUse,
    /// First row in the segment.
    pub first_row: u32,
    /// Rows of the stripe.
    pub height: u32,
    /// Disks of the stripe.
    pub members: MemberSet,
    /// Checksum of the header before.
    pub previous: Crc32,
    /// All batches up to this number had been acknowledged when this one was written.
    pub acknowledged_through: u64,
    /// The log's heads after this batch.
    pub heads: [HeadRecord; HEADS],
    /// What the batch says, in order. Entries with a payload take one block each.
    pub entries: Vec<Entry>,
}

/// One statement of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Volume concerned.
    pub volume: VolumeId,
    /// First block concerned.
    pub address: BlockAddress,
    /// Version of the statement.
    pub version: Version,
    /// What is stated.
    pub content: Content,
}

/// What an [`Entry`] states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// New contents of a block.
    Data {
        /// Checksum of the uncompressed block, bound to its identity.
        checksum: Crc32,
    },
    /// The same version of a block at a new place, moved by cleaning.
    Moved {
        /// As in `Data`.
        checksum: Crc32,
    },
    /// `count` blocks read as zeros from this version on.
    Hole {
        /// Number of blocks.
        count: u64,
    },
    /// The block of this version can't be read any more; found by cleaning.
    Lost,
    /// The volume's record: `length` bytes in a block of its own.
    Volume {
        /// Bytes of the record.
        length: u16,
        /// Checksum of the whole block.
        checksum: Crc32,
    },
    /// The volume and all its blocks are gone.
    VolumeDropped,
    /// From this version on the volume's blocks, as this version shows them, are kept; with a record of
    /// `length` bytes in a block of its own.
    Snapshot {
        /// Bytes of the record.
        length: u16,
        /// Checksum of the whole block.
        checksum: Crc32,
    },
    /// The volume begins as a snapshot of another one shows it; with a record of `length` bytes in a block of its
    /// own.
    Clone {
        /// Bytes of the record.
        length: u16,
        /// Checksum of the whole block.
        checksum: Crc32,
        /// The other volume.
        origin: VolumeId,
        /// Its snapshot.
        snapshot: Version,
    },
    /// The snapshot of that version is needed no more.
    SnapshotDropped {
        /// Which.
        snapshot: Version,
    },
    /// A block of a checkpoint.
    Page {
        /// Checksum of the whole block.
        checksum: Crc32,
    },
}

impl Entry {
    /// The identity that a block's checksum is bound to.
    #[must_use]
    pub fn identity(&self) -> BlockIdentity {
        BlockIdentity { volume: self.volume, address: self.address, version: self.version }
    }

    /// Whether its payload is a record, which replay has to read.
    #[must_use]
    pub fn has_record(&self) -> bool {
        matches!(self.content, Content::Volume { .. } | Content::Snapshot { .. } | Content::Clone { .. })
    }

    /// Whether a block of payload belongs to it.
    #[must_use]
    pub fn has_payload(&self) -> bool {
        self.stored_checksum().is_some()
    }

    /// What `Crc32::of` the payload must be.
    #[must_use]
    pub fn payload_checksum(&self) -> Option<Crc32> {
        let stored = self.stored_checksum()?;
        match self.content {
            Content::Data { .. } | Content::Moved { .. } => Some(stored.bind(&self.identity())),
            _ => Some(stored),
        }
    }

    fn stored_checksum(&self) -> Option<Crc32> {
        match self.content {
            Content::Data { checksum }
            | Content::Moved { checksum }
            | Content::Volume { checksum, .. }
            | Content::Snapshot { checksum, .. }
            | Content::Clone { checksum, .. }
            | Content::Page { checksum } => Some(checksum),
            Content::Hole { .. }
            | Content::Lost
            | Content::VolumeDropped
            | Content::SnapshotDropped { .. } => None,
        }
    }
}

/// Why bytes are not a usable header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a header at all, or a damaged one.
    #[error("not a batch header")]
    NotAHeader,
    /// A header that says something this release can't know.
    #[error("the batch uses a feature that this release does not have")]
    UnknownFeature,
}

/// Blocks that the header of a batch of `entries` entries takes.
#[must_use]
pub fn header_blocks(entries: usize) -> usize {
    (FIXED_BYTES + entries * ENTRY_BYTES).div_ceil(BLOCK_SIZE)
}

/// Rows of a batch with so many entries and payload blocks over `data_columns` columns: the header
/// stays within the first column.
#[must_use]
pub fn height(entries: usize, payload: usize, data_columns: usize) -> usize {
    let header = header_blocks(entries);
    (header + payload).div_ceil(data_columns).max(header)
}

impl BatchHeader {
    /// The header's bytes, whole blocks, and its checksum for the chain.
    #[must_use]
    pub fn encode(&self) -> (Vec<u8>, Crc32) {
        assert!(self.entries.len() <= MAX_ENTRIES);
        let mut bytes = Vec::with_capacity(header_blocks(self.entries.len()) * BLOCK_SIZE);
        bytes.put(match self.kind {
            BatchKind::Log => LOG_MAGIC,
            BatchKind::Checkpoint => CHECKPOINT_MAGIC,
        });
        bytes.put_u32(0); // checksum: `sign`
        bytes.put_u32(self.entries.len() as u32);
        bytes.put(&self.pool.0);
        bytes.put_u64(self.incarnation);
        bytes.put_u64(self.number);
        put_segment_use(&mut bytes, Some(self.place));
        bytes.put_u32(self.first_row);
        bytes.put_u32(self.height);
        bytes.put_u32(self.members.0);
        bytes.put_u32(self.previous.0);
        bytes.put_u64(self.acknowledged_through);
        for head in &self.heads {
            put_segment_use(&mut bytes, head.current);
            put_segment_use(&mut bytes, head.next);
        }
        bytes.put(&self.key.0);
        bytes.resize(FIXED_BYTES, 0);
        self.entries.iter().for_each(|entry| put_entry(&mut bytes, entry));
        bytes.resize(header_blocks(self.entries.len()) * BLOCK_SIZE, 0);
        let checksum = sign(&mut bytes);
        (bytes, checksum)
    }

    /// How many blocks the header that begins with `first_block` takes, if it is one.
    #[must_use]
    pub fn peek_blocks(first_block: &[u8]) -> Option<usize> {
        let mut reader = Reader::new(first_block);
        let magic = reader.array().ok()?;
        reader.u32().ok()?;
        let entries = reader.u32().ok()? as usize;
        (kind_of(&magic).is_some() && entries <= MAX_ENTRIES).then(|| header_blocks(entries))
    }

    /// Reads a header from its whole blocks.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Crc32), HeaderError> {
        let blocks = Self::peek_blocks(bytes).ok_or(HeaderError::NotAHeader)?;
        if bytes.len() != blocks * BLOCK_SIZE {
            return Err(HeaderError::NotAHeader);
        }
        let stored: [u8; 4] =
            bytes[CHECKSUM_AT..CHECKSUM_AT + 4].try_into().map_err(|_| HeaderError::NotAHeader)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..CHECKSUM_AT]);
        hasher.update(&[0; 4]);
        hasher.update(&bytes[CHECKSUM_AT + 4..]);
        let checksum = Crc32(hasher.finalize());
        if checksum.0 != u32::from_le_bytes(stored) {
            return Err(HeaderError::NotAHeader);
        }
        let header = Self::decode_fields(bytes).map_err(|_| HeaderError::NotAHeader)?;
        header.map(|header| (header, checksum))
    }

    fn decode_fields(bytes: &[u8]) -> Result<Result<Self, HeaderError>, CutShort> {
        let mut reader = Reader::new(bytes);
        let magic = reader.array()?;
        let Some(kind) = kind_of(&magic) else { return Ok(Err(HeaderError::NotAHeader)) };
        reader.u32()?;
        let entry_count = reader.u32()? as usize;
        let pool = Uuid(reader.array()?);
        let (incarnation, number) = (reader.u64()?, reader.u64()?);
        let Some(place) = read_segment_use(&mut reader)? else { return Ok(Err(HeaderError::NotAHeader)) };
        let (first_row, height) = (reader.u32()?, reader.u32()?);
        let members = MemberSet(reader.u32()?);
        let previous = Crc32(reader.u32()?);
        let acknowledged_through = reader.u64()?;
        let mut heads = [HeadRecord::default(); HEADS];
        for head in &mut heads {
            *head =
                HeadRecord { current: read_segment_use(&mut reader)?, next: read_segment_use(&mut reader)? };
        }
        let key = LogKey(reader.array()?);
        let mut entries = Vec::with_capacity(entry_count);
        let mut reader = Reader::new(&bytes[FIXED_BYTES..]);
        for _ in 0..entry_count {
            match read_entry(&mut reader)? {
                Ok(entry) => entries.push(entry),
                Err(error) => return Ok(Err(error)),
            }
        }
        let header = Self {
            kind,
            pool,
            key,
            incarnation,
            number,
            place,
            first_row,
            height,
            members,
            previous,
            acknowledged_through,
            heads,
            entries,
        };
        Ok(if header.is_consistent() { Ok(header) } else { Err(HeaderError::NotAHeader) })
    }

    /// The stripe's layout.
    #[must_use]
    pub fn layout(&self) -> StripeLayout {
        StripeLayout::new(self.members, self.number)
    }

    /// Number of blocks that the header takes.
    #[must_use]
    pub fn header_blocks(&self) -> usize {
        header_blocks(self.entries.len())
    }

    /// Where the block with position `index` of the stripe (header blocks first) lies.
    #[must_use]
    pub fn block_place(&self, index: usize) -> Place {
        block_place(self.layout(), self.place.segment, self.first_row, self.height, index)
    }

    /// Every entry with its payload's place, if it has one.
    pub fn entries_with_places(&self) -> impl Iterator<Item = (&Entry, Option<Place>)> {
        let mut position = self.header_blocks();
        self.entries.iter().map(move |entry| {
            let place = entry.has_payload().then(|| self.block_place(position));
            position += usize::from(entry.has_payload());
            (entry, place)
        })
    }

    /// Whether all that it names exists in a pool of this geometry.
    #[must_use]
    pub fn is_within(&self, geometry: &Geometry) -> bool {
        let named = self.heads.iter().flat_map(|head| [head.current, head.next]).flatten();
        self.members.difference(geometry.all_slots()) == MemberSet::EMPTY
            && self.first_row + self.height <= geometry.rows
            && named.chain([self.place]).all(|named| named.is_within(geometry))
    }

    fn is_consistent(&self) -> bool {
        let payload = self.entries.iter().filter(|entry| entry.has_payload()).count();
        let columns = crate::array::geometry::data_columns(self.members);
        self.members.width() > 0
            && self.members.intersection(MemberSet::first(crate::array::geometry::MAX_DISKS)) == self.members
            && self.height as usize == height(self.entries.len(), payload, columns)
            && self.first_row.checked_add(self.height).is_some_and(|end| end < MAX_ROWS)
    }
}

/// Where block `index` of a stripe lies: column by column, `height` rows each.
#[must_use]
pub fn block_place(
    layout: StripeLayout,
    segment: SegmentIndex,
    first_row: u32,
    height: u32,
    index: usize,
) -> Place {
    let slot = layout.data_slot(index / height as usize);
    Place::of_row(segment, slot, first_row + (index % height as usize) as u32)
}

/// Puts the checksum of all header blocks into them.
pub(super) fn sign(bytes: &mut [u8]) -> Crc32 {
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
    let checksum = Crc32::of(bytes);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.0.to_le_bytes());
    checksum
}

fn kind_of(magic: &[u8; 8]) -> Option<BatchKind> {
    match magic {
        m if m == LOG_MAGIC => Some(BatchKind::Log),
        m if m == CHECKPOINT_MAGIC => Some(BatchKind::Checkpoint),
        _ => None,
    }
}

/// Appends a segment's use; generation 0 stands for none.
pub(super) fn put_segment_use(bytes: &mut Vec<u8>, value: Option<SegmentUse>) {
    bytes.put_u32(value.map_or(0, |value| value.segment.0));
    bytes.put_u64(value.map_or(0, |value| value.generation));
}

/// Reads what [`put_segment_use`] wrote.
pub(super) fn read_segment_use(reader: &mut Reader<'_>) -> Result<Option<SegmentUse>, CutShort> {
    let (segment, generation) = (SegmentIndex(reader.u32()?), reader.u64()?);
    Ok((generation != 0).then_some(SegmentUse { segment, generation }))
}

fn put_entry(bytes: &mut Vec<u8>, entry: &Entry) {
    let (tag, count, checksum) = match entry.content {
        Content::Data { checksum } => (TAG_DATA, 1, checksum),
        Content::Moved { checksum } => (TAG_MOVED, 1, checksum),
        Content::Hole { count } => (TAG_HOLE, count, Crc32(0)),
        Content::Lost => (TAG_LOST, 1, Crc32(0)),
        Content::Volume { length, checksum } => (TAG_VOLUME, u64::from(length), checksum),
        Content::VolumeDropped => (TAG_VOLUME_DROPPED, 0, Crc32(0)),
        Content::Snapshot { length, checksum } => (TAG_SNAPSHOT, u64::from(length), checksum),
        Content::SnapshotDropped { .. } => (TAG_SNAPSHOT_DROPPED, 0, Crc32(0)),
        Content::Clone { length, checksum, .. } => (TAG_CLONE, u64::from(length), checksum),
        Content::Page { checksum } => (TAG_PAGE, 1, checksum),
    };
    let start = bytes.len();
    bytes.put_u8(tag);
    bytes.put_u8(ENCODING_PLAIN);
    bytes.put_u16((BLOCK_SIZE / 512) as u16); // stored sectors
    bytes.put_u32(checksum.0);
    bytes.put_u32(entry.volume.0);
    bytes.put_u32(entry.version.epoch);
    bytes.put_u64(entry.version.sequence);
    bytes.put_u64(entry.address.0);
    bytes.put_u64(count);
    // The origin identity that the checksum is bound to: the block's own, until blocks are shared; of a
    // snapshot that is dropped or cloned, its own version, and the cloned volume.
    let (origin, version) = match entry.content {
        Content::SnapshotDropped { snapshot } => (entry.volume, snapshot),
        Content::Clone { origin, snapshot, .. } => (origin, snapshot),
        _ => (entry.volume, entry.version),
    };
    bytes.put_u32(origin.0);
    bytes.put_u32(version.epoch);
    bytes.put_u64(version.sequence);
    bytes.put_u64(entry.address.0);
    debug_assert_eq!(bytes.len() - start, ENTRY_BYTES);
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Result<Entry, HeaderError>, CutShort> {
    let (tag, encoding, sectors) = (reader.u8()?, reader.u8()?, reader.u16()?);
    let checksum = Crc32(reader.u32()?);
    let volume = VolumeId(reader.u32()?);
    let version = Version { epoch: reader.u32()?, sequence: reader.u64()? };
    let address = BlockAddress(reader.u64()?);
    let count = reader.u64()?;
    let origin_volume = VolumeId(reader.u32()?);
    let origin_version = Version { epoch: reader.u32()?, sequence: reader.u64()? };
    let origin_address = BlockAddress(reader.u64()?);
    let is_version_own = origin_version == version || matches!(tag, TAG_SNAPSHOT_DROPPED | TAG_CLONE);
    let is_volume_own = origin_volume == volume || tag == TAG_CLONE;
    let own = is_volume_own && is_version_own && origin_address == address;
    if encoding != ENCODING_PLAIN || usize::from(sectors) * 512 != BLOCK_SIZE || !own {
        return Ok(Err(HeaderError::UnknownFeature));
    }
    let content = match tag {
        TAG_DATA => Content::Data { checksum },
        TAG_MOVED => Content::Moved { checksum },
        TAG_HOLE => Content::Hole { count },
        TAG_LOST => Content::Lost,
        TAG_VOLUME if count <= BLOCK_SIZE as u64 => Content::Volume { length: count as u16, checksum },
        TAG_VOLUME_DROPPED => Content::VolumeDropped,
        TAG_SNAPSHOT if count <= BLOCK_SIZE as u64 => Content::Snapshot { length: count as u16, checksum },
        TAG_SNAPSHOT_DROPPED => Content::SnapshotDropped { snapshot: origin_version },
        TAG_CLONE if count <= BLOCK_SIZE as u64 => {
            let (length, origin, snapshot) = (count as u16, origin_volume, origin_version);
            Content::Clone { length, checksum, origin, snapshot }
        }
        TAG_PAGE => Content::Page { checksum },
        _ => return Ok(Err(HeaderError::UnknownFeature)),
    };
    // What concerns one block says 1, but nothing here depends on that.
    if address.0.checked_add(count.max(1)).is_none_or(|end| end > MAX_ADDRESS) {
        return Ok(Err(HeaderError::NotAHeader));
    }
    Ok(Ok(Entry { volume, address, version, content }))
}

/// Numbers of batches, incarnations and generations stay below, so that counting on never overflows.
pub(super) const COUNTER_END: u64 = 1 << 63;

/// Highest block address: volumes of 2^60 bytes are far away.
pub(super) const MAX_ADDRESS: u64 = 1 << 48;

const LOG_MAGIC: &[u8; 8] = b"gemelLG1";
const CHECKPOINT_MAGIC: &[u8; 8] = b"gemelCP1";
const CHECKSUM_AT: usize = 8;
const FIXED_BYTES: usize = 192;
const ENTRY_BYTES: usize = 64;
/// The block as hosts wrote it.
pub(super) const ENCODING_PLAIN: u8 = 0;
const TAG_DATA: u8 = 1;
const TAG_MOVED: u8 = 2;
const TAG_HOLE: u8 = 3;
const TAG_LOST: u8 = 4;
const TAG_VOLUME: u8 = 5;
const TAG_VOLUME_DROPPED: u8 = 6;
const TAG_PAGE: u8 = 7;
const TAG_SNAPSHOT: u8 = 8;
const TAG_SNAPSHOT_DROPPED: u8 = 9;
const TAG_CLONE: u8 = 10;
const _: () = assert!(8 + 4 + 4 + 16 + 8 + 8 + 12 + 4 * 4 + 8 + HEADS * 24 + 16 <= FIXED_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    fn header(entries: Vec<Entry>) -> BatchHeader {
        let payload = entries.iter().filter(|entry| entry.has_payload()).count();
        let head = HeadRecord {
            current: Some(SegmentUse { segment: SegmentIndex(3), generation: 8 }),
            next: Some(SegmentUse { segment: SegmentIndex(5), generation: 9 }),
        };
        BatchHeader {
            kind: BatchKind::Log,
            pool: Uuid([4; 16]),
            key: LogKey([5; 16]),
            incarnation: 2,
            number: 77,
            place: SegmentUse { segment: SegmentIndex(3), generation: 8 },
            first_row: 12,
            height: height(entries.len(), payload, 3) as u32,
            members: MemberSet::first(4),
            previous: Crc32(0xdead_beef),
            acknowledged_through: 75,
            heads: [head, HeadRecord::default()],
            entries,
        }
    }

    fn data(address: u64) -> Entry {
        Entry {
            volume: VolumeId(1),
            address: BlockAddress(address),
            version: Version { epoch: 1, sequence: address },
            content: Content::Data { checksum: Crc32(address as u32) },
        }
    }

    #[test]
    fn encoding_and_decoding_are_inverse() {
        let mut entries: Vec<Entry> = (0..200).map(data).collect();
        entries.push(Entry { content: Content::Hole { count: 1 << 30 }, ..data(9) });
        entries.push(Entry { content: Content::Lost, ..data(10) });
        entries.push(Entry { content: Content::VolumeDropped, ..data(0) });
        entries.push(Entry { content: Content::Volume { length: 4096, checksum: Crc32(5) }, ..data(0) });
        entries.push(Entry { content: Content::Snapshot { length: 7, checksum: Crc32(6) }, ..data(0) });
        let snapshot = Version { epoch: 3, sequence: 1 << 40 };
        entries.push(Entry { content: Content::SnapshotDropped { snapshot }, ..data(0) });
        let (origin, checksum) = (VolumeId(17), Crc32(9));
        let clone = Content::Clone { length: 9, checksum, origin, snapshot };
        entries.push(Entry { content: clone, ..data(0) });
        let header = header(entries);
        let (bytes, checksum) = header.encode();
        assert_eq!(BatchHeader::peek_blocks(&bytes[..BLOCK_SIZE]), Some(bytes.len() / BLOCK_SIZE));
        assert_eq!(BatchHeader::decode(&bytes), Ok((header, checksum)));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let (bytes, _) = header(vec![data(1), data(2)]).encode();
        for index in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[index] ^= 1;
            assert!(BatchHeader::decode(&bytes).is_err(), "byte {index}");
        }
    }

    #[test]
    fn payload_blocks_lie_behind_the_header_column_by_column() {
        let header = header(vec![data(1), Entry { content: Content::Lost, ..data(2) }, data(3)]);
        assert_eq!(header.height, 1);
        let layout = header.layout();
        let places: Vec<_> = header.entries_with_places().map(|(_, place)| place).collect();
        let place = |column| Place::of_row(SegmentIndex(3), layout.data_slot(column), 12);
        assert_eq!(places, [Some(place(1)), None, Some(place(2))]);
    }

    #[test]
    fn a_header_never_leaves_the_first_column() {
        let holes = (0..MAX_ENTRIES as u64).map(|n| Entry { content: Content::Hole { count: 1 }, ..data(n) });
        let header = header(holes.collect());
        assert_eq!(header.height as usize, header.header_blocks());
        assert!(BatchHeader::decode(&header.encode().0).is_ok());
    }
}
