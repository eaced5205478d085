//! The superblock: which pool and slot a disk belongs to, who else belongs, and the store's root.
//!
//! Two copies a disk, at byte 0 and byte 512 KiB. A new generation goes over the older copy of that
//! disk, so that a torn write leaves the one before. The highest valid generation among the disks rules: membership and the
//! store's root switch together, in one generation. Layout in docs/on-disk-format.md.

use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader, Writer};

use super::geometry::{Geometry, MAX_DISKS, MAX_ROWS, Slot};

/// Bytes of one copy.
pub const SUPERBLOCK_BYTES: usize = 8192;

/// Version of the superblock and of everything under it. A disk with a newer one is refused.
///
/// Version 1 had no [`LogKey`]; its pools are read, and go on with a key of zeros. Version 2 knew no disk that is
/// being rebuilt; its pools are read, and have none.
pub const FORMAT_VERSION: u32 = 3;

/// Most bytes that the store's root may take.
pub const MAX_ROOT_BYTES: usize = 6144;

/// Byte offset of copy 0 or 1.
#[must_use]
pub fn copy_offset(copy: u64) -> u64 {
    COPY_OFFSETS[(copy % 2) as usize]
}

/// Where the two copies lie on each disk.
pub const COPY_OFFSETS: [u64; 2] = [0, 512 << 10];

/// A universally unique identifier of a pool or of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// A secret that every batch header of the pool carries and that no host ever sees: what a host
/// writes as data can't pass for a header. Drawn at random when the pool is formatted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LogKey(pub [u8; 16]);

impl std::fmt::Debug for LogKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogKey(secret)")
    }
}

/// What all disks of a pool agree on, at one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRecord {
    /// Identity of the pool.
    pub pool: Uuid,
    /// What the pool's batch headers carry.
    pub log_key: LogKey,
    /// Counts every change; the highest rules.
    pub generation: u64,
    /// Sizes, fixed at formatting.
    pub geometry: Geometry,
    /// By slot: identity of the disk and whether it belongs.
    pub disks: Vec<DiskRecord>,
    /// The member that does not have all that it should have yet, if there is one.
    pub rebuild: Option<RebuildRecord>,
    /// What the store keeps here, opaque to the array.
    pub root: Vec<u8>,
}

/// A disk that took the place of one that left, and how far it has got what that one had. There is at most one:
/// while it is incomplete, no other disk may be missing.
///
/// A segment's column on it is *proven* when the segment was opened after the disk had joined (its generation is
/// at least `before_generation`), or when it was rebuilt (its number is less than `cursor`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildRecord {
    /// Its place.
    pub slot: Slot,
    /// Segments of an older generation may lack their column on it; all of them while that is not known.
    pub before_generation: u64,
    /// Segments with a lower number have their column.
    pub cursor: u32,
}

/// One slot of a [`PoolRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// Identity of the disk.
    pub uuid: Uuid,
    /// False from the generation on that excluded it: it lacks data and must not be read.
    pub member: bool,
}

/// A valid superblock as found on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Which slot this disk is.
    pub slot: Slot,
    /// What it says of the pool.
    pub record: PoolRecord,
}

/// Why bytes are not a superblock that we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Nothing there: all zeros.
    #[error("the disk is blank")]
    Blank,
    /// Something else's data.
    #[error("the disk holds something that is not gemel's")]
    Foreign,
    /// Written by a newer release.
    #[error(
        "the disk has format version {found}, this release reads versions up to {FORMAT_VERSION}: \
         upgrade gemeld on this node, or remove the disk"
    )]
    NewerVersion {
        /// Version found.
        found: u32,
    },
    /// Ours, but damaged.
    #[error("the superblock is damaged")]
    Damaged,
}

impl Superblock {
    /// The bytes of one copy.
    #[must_use]
    pub fn encode(&self) -> AlignedBuf {
        let record = &self.record;
        assert!(record.root.len() <= MAX_ROOT_BYTES, "root of {} bytes", record.root.len());
        assert_eq!(record.disks.len(), record.geometry.disk_count);
        let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
        bytes.put(MAGIC);
        bytes.put_u32(FORMAT_VERSION);
        bytes.put_u32(0); // checksum: `sign`
        bytes.put(&record.pool.0);
        bytes.put_u64(record.generation);
        bytes.put_u32(record.geometry.rows);
        bytes.put_u32(record.geometry.segment_count);
        bytes.put_u8(self.slot.0);
        bytes.put_u8(record.disks.len() as u8);
        for disk in &record.disks {
            bytes.put(&disk.uuid.0);
            bytes.put_u8(u8::from(disk.member));
        }
        bytes.put_u32(record.root.len() as u32);
        bytes.put(&record.root);
        bytes.put(&record.log_key.0);
        if let Some(rebuild) = &record.rebuild {
            bytes.put_u8(1);
            bytes.put_u8(rebuild.slot.0);
            bytes.put_u64(rebuild.before_generation);
            bytes.put_u32(rebuild.cursor);
        }
        bytes.resize(SUPERBLOCK_BYTES, 0);
        sign(&mut bytes);
        AlignedBuf::copy_of(&bytes)
    }

    /// Reads one copy of [`SUPERBLOCK_BYTES`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(SuperblockError::Blank);
        }
        if bytes.len() != SUPERBLOCK_BYTES || !bytes.starts_with(MAGIC) {
            return Err(SuperblockError::Foreign);
        }
        let mut unsigned = bytes.to_vec();
        unsigned[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
        let mut reader = Reader::new(&bytes[MAGIC.len()..]);
        let version = reader.u32().map_err(damaged)?;
        let checksum = reader.u32().map_err(damaged)?;
        if Crc32::of(&unsigned).0 != checksum {
            return Err(SuperblockError::Damaged);
        }
        if version > FORMAT_VERSION {
            return Err(SuperblockError::NewerVersion { found: version });
        }
        Self::decode_body(&mut reader, version).map_err(damaged)?.ok_or(SuperblockError::Damaged)
    }

    /// The fields behind the checksum; `None` when they contradict each other.
    fn decode_body(reader: &mut Reader<'_>, version: u32) -> Result<Option<Self>, CutShort> {
        let pool = Uuid(reader.array()?);
        let generation = reader.u64()?;
        let (rows, segment_count) = (reader.u32()?, reader.u32()?);
        let slot = Slot(reader.u8()?);
        let disk_count = usize::from(reader.u8()?);
        if disk_count == 0
            || disk_count > MAX_DISKS
            || slot.index() >= disk_count
            || rows == 0
            || rows >= MAX_ROWS
            || segment_count == 0
        {
            return Ok(None);
        }
        let mut disks = Vec::with_capacity(disk_count);
        for _ in 0..disk_count {
            disks.push(DiskRecord { uuid: Uuid(reader.array()?), member: reader.u8()? == 1 });
        }
        let root_length = reader.u32()? as usize;
        if root_length > MAX_ROOT_BYTES {
            return Ok(None);
        }
        let root = reader.bytes(root_length)?.to_vec();
        let log_key = LogKey(if version == 1 { [0; 16] } else { reader.array()? });
        let rebuild = if version < 3 { None } else { read_rebuild(reader)? };
        if rebuild.is_some_and(|rebuild| disks.get(rebuild.slot.index()).is_none_or(|disk| !disk.member)) {
            return Ok(None);
        }
        let geometry = Geometry { disk_count, rows, segment_count };
        let record = PoolRecord { pool, log_key, generation, geometry, disks, rebuild, root };
        Ok(Some(Self { slot, record }))
    }

    /// Bytes that a disk of this pool must at least have; the most there can be where a damaged record
    /// asks for more than that.
    #[must_use]
    pub fn needed_bytes(&self) -> u64 {
        let geometry = &self.record.geometry;
        let rows = u64::from(geometry.segment_count) * u64::from(geometry.rows);
        rows.saturating_mul(crate::base::units::BLOCK_SIZE as u64).saturating_add(Geometry::RESERVED_BYTES)
    }
}

fn read_rebuild(reader: &mut Reader<'_>) -> Result<Option<RebuildRecord>, CutShort> {
    let is_rebuilding = reader.u8()? == 1;
    let rebuild =
        RebuildRecord { slot: Slot(reader.u8()?), before_generation: reader.u64()?, cursor: reader.u32()? };
    Ok(is_rebuilding.then_some(rebuild))
}

/// Puts the checksum of a whole copy into it.
pub(super) fn sign(bytes: &mut [u8]) {
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
    let checksum = Crc32::of(bytes).0.to_le_bytes();
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum);
}

fn damaged(_: CutShort) -> SuperblockError {
    SuperblockError::Damaged
}

const MAGIC: &[u8; 8] = b"gemelSB\n";
const CHECKSUM_AT: usize = 12;
const _: () = assert!(
    MAGIC.len() + 4 + 4 + 16 + 8 + 4 + 4 + 2 + MAX_DISKS * 17 + 4 + MAX_ROOT_BYTES + 16 + 14
        <= SUPERBLOCK_BYTES
);
const _: () = assert!(COPY_OFFSETS[1] + SUPERBLOCK_BYTES as u64 <= Geometry::RESERVED_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        let disks = (0..4u8).map(|n| DiskRecord { uuid: Uuid([n; 16]), member: n != 2 }).collect();
        let geometry = Geometry { disk_count: 4, rows: 256, segment_count: 63 };
        let (pool, log_key) = (Uuid([9; 16]), LogKey([7; 16]));
        let rebuild = Some(RebuildRecord { slot: Slot(1), before_generation: 1 << 40, cursor: 6 });
        let root = vec![1, 2, 3];
        let record = PoolRecord { pool, log_key, generation: 17, geometry, disks, rebuild, root };
        Superblock { slot: Slot(3), record }
    }

    #[test]
    fn encoding_and_decoding_are_inverse() {
        assert_eq!(Superblock::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn any_flipped_byte_is_noticed() {
        let encoded = sample().encode();
        for index in 0..SUPERBLOCK_BYTES {
            let mut bytes = encoded.to_vec();
            bytes[index] ^= 0x40;
            assert!(Superblock::decode(&bytes).is_err(), "byte {index}");
        }
    }

    #[test]
    fn other_disks_are_told_apart() {
        assert_eq!(Superblock::decode(&[0; SUPERBLOCK_BYTES]), Err(SuperblockError::Blank));
        assert_eq!(Superblock::decode(&[7; SUPERBLOCK_BYTES]), Err(SuperblockError::Foreign));
        let mut newer = sample().encode().to_vec();
        newer[8] = 4;
        sign(&mut newer);
        assert_eq!(Superblock::decode(&newer), Err(SuperblockError::NewerVersion { found: 4 }));
    }

    #[test]
    fn older_versions_are_read() {
        // Version 1 ended with the root, version 2 with the key; zeros behind.
        for version in [1, 2] {
            let mut older = sample().encode().to_vec();
            let key = older.windows(16).rposition(|bytes| bytes == [7; 16]).unwrap();
            let end = key + if version == 1 { 0 } else { 16 };
            older[end..].fill(0);
            older[8] = version;
            sign(&mut older);
            let mut expected = sample();
            expected.record.rebuild = None;
            if version == 1 {
                expected.record.log_key = LogKey([0; 16]);
            }
            assert_eq!(Superblock::decode(&older), Ok(expected));
        }
    }

    #[test]
    fn a_disk_that_is_rebuilt_is_a_member() {
        for slot in [2, 4] {
            let mut superblock = sample();
            let rebuild = RebuildRecord { slot: Slot(slot), before_generation: 0, cursor: 0 };
            superblock.record.rebuild = Some(rebuild);
            assert_eq!(Superblock::decode(&superblock.encode()), Err(SuperblockError::Damaged));
        }
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{:?}", LogKey([7; 16])), "LogKey(secret)");
    }

    #[test]
    fn a_pool_larger_than_any_disk_needs_more_than_any_disk_has() {
        let mut superblock = sample();
        superblock.record.geometry = Geometry { disk_count: 4, rows: (1 << 21) - 1, segment_count: u32::MAX };
        let decoded = Superblock::decode(&superblock.encode()).unwrap();
        assert_eq!(decoded.needed_bytes(), u64::MAX);
    }
}
