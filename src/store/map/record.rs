//! Entries of the map as a checkpoint keeps them: 64 neighbours in a record.
//!
//! From stream version 2 on an entry says how its block is stored and which identity its checksum is bound
//! to, as the log's entries do, so that compressed and shared blocks need no new format. This release
//! knows plain blocks that are their own origin, and refuses others rather than misread them. From version 3
//! on a record has room for any number of versions of its blocks.

use crate::array::{Geometry, Place};
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};

use super::{MapEntry, MapValue};
use crate::store::batch::{ENCODING_PLAIN, MAX_ADDRESS};

/// Consecutive blocks that share a record.
pub const PAGE_BLOCKS: usize = 64;
/// First byte of a record.
pub const TAG_PAGE: u8 = 3;
/// Bytes of a record before its entries.
pub const HEAD_BYTES: usize = 1 + 4 + 8 + 4;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 1 + 1 + FORM_BYTES + 4 + 8 + 4 + 8;

/// Encoding, stored sectors and origin, which version 1 did not have.
const FORM_BYTES: usize = 3;
const KIND_DATA: u8 = 1;
const KIND_HOLE: u8 = 2;
const KIND_LOST: u8 = 3;
const WHOLE_BLOCK: u8 = (BLOCK_SIZE / 512) as u8;
/// The checksum is bound to the entry's own identity.
const ORIGIN_OWN: u8 = 0;

/// Appends a record of `entries`, each with its position in the page; of several entries of a block the last is
/// the newest.
pub fn encode(
    bytes: &mut Vec<u8>,
    volume: VolumeId,
    page: u64,
    entries: impl Iterator<Item = (usize, MapEntry)> + Clone,
) {
    bytes.put_u8(TAG_PAGE);
    bytes.put_u32(volume.0);
    bytes.put_u64(page);
    bytes.put_u32(entries.clone().count() as u32);
    for (index, entry) in entries {
        let (kind, sectors, checksum, place) = match entry.value {
            MapValue::Data { place, checksum } => (KIND_DATA, WHOLE_BLOCK, checksum.0, place.bits()),
            MapValue::Hole => (KIND_HOLE, 0, 0, 0),
            MapValue::Lost => (KIND_LOST, 0, 0, 0),
        };
        bytes.put_u8(index as u8);
        bytes.put_u8(kind);
        bytes.put_u8(ENCODING_PLAIN);
        bytes.put_u8(sectors);
        bytes.put_u8(ORIGIN_OWN);
        bytes.put_u32(entry.version.epoch);
        bytes.put_u64(entry.version.sequence);
        bytes.put_u32(checksum);
        bytes.put_u64(place);
    }
}

/// What a record says.
pub type Page = (VolumeId, Vec<(BlockAddress, MapEntry)>);

/// Reads a record behind its tag; none when it makes no sense in a pool of this geometry.
///
/// # Errors
/// [`CutShort`] when the record is not all there.
pub fn decode(reader: &mut Reader<'_>, format: u32, geometry: &Geometry) -> Result<Option<Page>, CutShort> {
    let (volume, page) = (VolumeId(reader.u32()?), reader.u64()?);
    let count = if format < 3 { u32::from(reader.u8()?) } else { reader.u32()? };
    let base = page.checked_mul(PAGE_BLOCKS as u64).filter(|base| *base < MAX_ADDRESS);
    let Some(base) = base else { return Ok(None) };
    let entry_bytes = if format == 1 { ENTRY_BYTES - FORM_BYTES } else { ENTRY_BYTES };
    if reader.remaining() < count as usize * entry_bytes {
        return Err(CutShort);
    }
    let mut entries = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let Some((index, entry)) = decode_entry(reader, format, geometry)? else { return Ok(None) };
        entries.push((BlockAddress(base + u64::from(index)), entry));
    }
    Ok(Some((volume, entries)))
}

fn decode_entry(
    reader: &mut Reader<'_>,
    format: u32,
    geometry: &Geometry,
) -> Result<Option<(u8, MapEntry)>, CutShort> {
    let (index, kind) = (reader.u8()?, reader.u8()?);
    let stored = if kind == KIND_DATA { WHOLE_BLOCK } else { 0 };
    let plain = [ENCODING_PLAIN, stored, ORIGIN_OWN];
    let form = if format == 1 { plain } else { reader.array()? };
    let version = Version { epoch: reader.u32()?, sequence: reader.u64()? };
    let (checksum, place) = (Crc32(reader.u32()?), Place::from_bits(reader.u64()?));
    let value = match kind {
        KIND_DATA if place.is_within(geometry) => MapValue::Data { place, checksum },
        KIND_HOLE => MapValue::Hole,
        KIND_LOST => MapValue::Lost,
        _ => return Ok(None),
    };
    let is_known = usize::from(index) < PAGE_BLOCKS && form == plain;
    Ok(is_known.then_some((index, MapEntry { version, value })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::{SegmentIndex, Slot};

    const GEOMETRY: Geometry = Geometry { disk_count: 4, rows: 256, segment_count: 32 };

    fn entries() -> Vec<(usize, MapEntry)> {
        let place = Place::of_row(SegmentIndex(3), Slot(1), 7);
        let version = Version { epoch: 2, sequence: 9 };
        let values =
            [MapValue::Data { place, checksum: Crc32(5) }, MapValue::Hole, MapValue::Lost].into_iter();
        [0, 5, 63].into_iter().zip(values.map(|value| MapEntry { version, value })).collect()
    }

    fn encoded() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes, VolumeId(4), 2, entries().into_iter());
        bytes
    }

    fn decoded(bytes: &[u8], format: u32) -> Result<Option<Page>, CutShort> {
        decode(&mut Reader::new(&bytes[1..]), format, &GEOMETRY)
    }

    fn page() -> Page {
        let at = |(index, entry)| (BlockAddress(2 * PAGE_BLOCKS as u64 + index as u64), entry);
        (VolumeId(4), entries().into_iter().map(at).collect())
    }

    #[test]
    fn records_come_back() {
        let bytes = encoded();
        assert_eq!(bytes.len(), HEAD_BYTES + 3 * ENTRY_BYTES);
        assert_eq!(decoded(&bytes, 3), Ok(Some(page())));
        (1..bytes.len()).for_each(|end| assert_eq!(decoded(&bytes[..end], 3), Err(CutShort)));
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let head = HEAD_BYTES - 3; // a count of one byte
        let second = [&encoded()[..head], &encoded()[HEAD_BYTES..]].concat();
        assert_eq!(decoded(&second, 2), Ok(Some(page())));
        let mut first = encoded()[..head].to_vec();
        for entry in encoded()[HEAD_BYTES..].chunks(ENTRY_BYTES) {
            first.put(&entry[..2]);
            first.put(&entry[2 + FORM_BYTES..]);
        }
        assert_eq!(decoded(&first, 1), Ok(Some(page())));
    }

    #[test]
    fn other_encodings_and_origins_are_not_misread() {
        for offset in 2..2 + FORM_BYTES {
            let mut bytes = encoded();
            bytes[HEAD_BYTES + offset] ^= 1;
            assert_eq!(decoded(&bytes, 3), Ok(None), "byte {offset} of an entry");
        }
    }
}
