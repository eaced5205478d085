//! Entry points for fuzzing what the store reads from disks, as library functions so that stable
//! tests replay the corpora.
//!
//! Each takes arbitrary bytes, must not panic, and asserts that what decodes encodes to what decodes to
//! the same, and that what recovery then does with it stays within the pool. Checksums would keep a
//! fuzzer out, so the first byte chooses whether they are put right before decoding.

use bytes::Bytes;

use super::batch::{BatchHeader, HeaderError, sign};
use super::checkpoint_codec::{Decoder, encode_end, encode_table, encode_volumes};
use super::map::{Map, MemoryMap, SavePosition, StoreMap};
use super::root::Root;
use super::segments::SegmentTable;
use super::shared::Contents;
use crate::array::{Geometry, Place};
use crate::base::checksum::Crc32;
use crate::base::units::BLOCK_SIZE;

/// A superblock and the root in it. The first byte chooses whether its checksum is put right, and
/// whether the rest is the root alone.
pub fn superblock(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    if choice & ROOT_ALONE != 0 {
        root(rest, &GEOMETRY);
    } else if let Some(superblock) = crate::array::fuzzing::superblock(rest, choice & REPAIR != 0) {
        root(&superblock.record.root, &superblock.record.geometry);
    }
}

/// The header of a batch, zeros behind it up to whole blocks; what it says is replayed twice. The first
/// byte chooses whether its checksum is put right.
pub fn batch_header(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let Some((header, _)) = header(rest, choice & REPAIR != 0) else { return };
    let places = header.entries_with_places().filter_map(|(_, place)| place).collect::<Vec<_>>();
    assert!(places.is_sorted_by(|one, next| position(&header, *one) < position(&header, *next)));
    if !header.is_within(&GEOMETRY) {
        return;
    }
    assert!(places.iter().all(|place| place.is_within(&GEOMETRY)));
    let segments = SegmentTable::new(&GEOMETRY).iter().map(|(_, segment)| *segment).collect();
    let mut contents = Contents::blank(SegmentTable::restore(segments, 1));
    contents.segments.observe(header.place, header.members, header.number);
    for next in header.heads.iter().filter_map(|head| head.next) {
        contents.segments.observe(next, header.members, 0);
    }
    replay(&mut contents, &header);
    assert_eq!(contents.segments.recount(references(&contents.map).into_iter()), None);
    replay(&mut contents, &header);
    assert_counts(&contents);
}

/// The byte stream of a checkpoint, read in pieces whose size the first byte chooses.
pub fn checkpoint(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return };
    let mut in_pieces = contents(stream, 1 + usize::from(*choice) * 16);
    let mut at_once = contents(stream, stream.len().max(1));
    let encoded = at_once.as_mut().map(encode);
    assert_eq!(in_pieces.as_mut().map(encode), encoded);
    let (Some(mut found), Some(encoded)) = (at_once, encoded) else { return };
    let again = contents(&encoded, BLOCK_SIZE);
    assert!(again.is_some_and(|mut again| encode(&mut again) == encoded));
    assert!(references(&found.map).iter().all(|place| place.is_within(&GEOMETRY)));
    found.give_up_unshown();
    if found.segments.recount(references(&found.map).into_iter()).is_none() {
        assert_counts(&found);
    }
}

fn root(bytes: &[u8], geometry: &Geometry) -> Option<Root> {
    let root = Root::decode(bytes)?;
    assert_eq!(Root::decode(&root.encode()).as_ref(), Some(&root));
    // What recovery looks up first.
    if root.is_within(geometry) {
        let positions = root.replay.iter().chain(&root.joints);
        for head in positions.flat_map(|position| &position.heads) {
            assert!(head.current.is_none_or(|current| current.segment.0 < geometry.segment_count));
            assert!(head.next.is_none_or(|next| next.segment.0 < geometry.segment_count));
        }
    }
    Some(root)
}

fn header(data: &[u8], repair: bool) -> Option<(BatchHeader, Crc32)> {
    let blocks = BatchHeader::peek_blocks(data);
    let mut bytes = data.to_vec();
    bytes.resize(blocks.unwrap_or(1) * BLOCK_SIZE, 0);
    if repair {
        sign(&mut bytes);
    }
    let decoded = BatchHeader::decode(&bytes);
    assert!(blocks.is_some() || decoded == Err(HeaderError::NotAHeader));
    let (header, checksum) = decoded.ok()?;
    assert_eq!(Some(header.header_blocks()), blocks);
    let (encoded, encoded_checksum) = header.encode();
    let again = BatchHeader::decode(&encoded);
    assert!(again.is_ok_and(|again| again == (header.clone(), encoded_checksum)));
    Some((header, checksum))
}

/// Where in its stripe a place lies: column, then row.
fn position(header: &BatchHeader, place: Place) -> (usize, u32) {
    let layout = header.layout();
    let column = (0..layout.data_columns()).find(|column| layout.data_slot(*column) == place.slot());
    assert!((header.first_row..header.first_row + header.height).contains(&place.row()));
    (column.expect("payload lies in a data column"), place.row())
}

fn replay(contents: &mut Contents, header: &BatchHeader) {
    let payload = Bytes::from_static(&[0; BLOCK_SIZE]);
    for (entry, place) in header.entries_with_places() {
        let mut rest = Some(entry.clone());
        while let Some(entry) = rest {
            rest = contents.apply(&entry, place, Some(&payload));
        }
    }
}

fn contents(stream: &[u8], piece_bytes: usize) -> Option<Contents> {
    let mut decoder = Decoder::new(GEOMETRY, None);
    for piece in stream.chunks(piece_bytes) {
        decoder.feed(piece).ok()?;
    }
    decoder.finish()
}

fn encode(contents: &mut Contents) -> Vec<u8> {
    let mut bytes = encode_table(contents, &[]);
    let table_bytes = bytes.len();
    let mut next = Some(SavePosition::START);
    while let Some(from) = next {
        next = contents.map.save(from, |_, _| false, &mut bytes);
    }
    assert!((bytes.len() - table_bytes) as u64 <= contents.map.saved_bytes());
    encode_volumes(&mut bytes, contents);
    encode_end(&mut bytes);
    bytes
}

fn references(map: &StoreMap) -> Vec<Place> {
    map.memory().into_iter().flat_map(MemoryMap::places).collect()
}

/// What is counted beside the map is what the map holds.
fn assert_counts(contents: &Contents) {
    let live: u64 = contents.segments.iter().map(|(_, segment)| u64::from(segment.live_blocks)).sum();
    assert_eq!(live, references(&contents.map).len() as u64);
    assert!(live <= contents.used_blocks());
}

const REPAIR: u8 = 1;
const ROOT_ALONE: u8 = 2;
const GEOMETRY: Geometry = Geometry { disk_count: 4, rows: 256, segment_count: Geometry::MIN_SEGMENTS };

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpus files that begin with `valid`, without their first byte.
    fn valid(target: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap());
        let valid = files.filter(|file| file.file_name().to_string_lossy().starts_with("valid"));
        let inputs: Vec<_> = valid.map(|file| std::fs::read(file.path()).unwrap()[1..].to_vec()).collect();
        assert!(!inputs.is_empty());
        inputs
    }

    #[test]
    fn seeds_of_superblocks_decode_as_they_are() {
        for input in valid("superblock") {
            let found = crate::array::fuzzing::superblock(&input, false).unwrap();
            let root = root(&found.record.root, &found.record.geometry).unwrap();
            assert!(root.is_within(&found.record.geometry));
        }
    }

    #[test]
    fn seeds_of_headers_decode_as_they_are() {
        for input in valid("batch_header") {
            let (header, _) = header(&input, false).unwrap();
            assert!(header.is_within(&GEOMETRY));
        }
    }

    #[test]
    fn seeds_of_checkpoints_decode() {
        valid("checkpoint").iter().for_each(|input| assert!(contents(input, 100).is_some()));
    }
}
