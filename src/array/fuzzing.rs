//! Entry point for fuzzing what the array reads from disks: must not panic, and what decodes encodes to
//! what decodes to the same. `store::fuzzing` goes on with the root inside.

use super::geometry::MemberSet;
use super::superblock::{SUPERBLOCK_BYTES, Superblock, sign};

/// One copy of a superblock, zeros behind `data` up to its size. Gives it a valid checksum if
/// `repair`. Returns what it decodes to.
pub fn superblock(data: &[u8], repair: bool) -> Option<Superblock> {
    let _ = Superblock::decode(data);
    let mut bytes = data[..data.len().min(SUPERBLOCK_BYTES)].to_vec();
    bytes.resize(SUPERBLOCK_BYTES, 0);
    if repair {
        sign(&mut bytes);
    }
    let superblock = Superblock::decode(&bytes).ok()?;
    assert_eq!(Superblock::decode(&superblock.encode()).as_ref(), Ok(&superblock));
    let record = &superblock.record;
    assert!(record.disks.get(superblock.slot.index()).is_some());
    assert_ne!(record.geometry.all_slots(), MemberSet::EMPTY);
    assert!(superblock.needed_bytes() > u64::from(record.geometry.segment_count));
    Some(superblock)
}
