//! The index of a table: the first key of each data block, and, of tables above the bottom, which blocks have rows.
//!
//! Keys are kept as differences, about two bytes a block. Presence is kept exactly, as the gaps between
//! addresses in Golomb-Rice code: where a run has one address in g it takes about 1.5 + log2 g bits an entry, which is
//! less than a Bloom filter of a useful error rate takes, as the addresses of volumes are dense; and it is never
//! wrong. So of all the runs that may have a block only those are read which have it.

use std::ops::Range;

use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::VolumeId;

use super::bits::{self, BitWriter};
use super::statement::{Key, Row};

/// Finds the data blocks of a table that have rows of a block of a volume.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    fences: Vec<u8>,
    restarts: Vec<Restart>,
    count: u32,
    /// For each block where its part of `gaps` begins, and the end; nothing in tables without.
    offsets: Vec<u32>,
    gaps: Vec<u8>,
}

/// The key before every [`RESTART_BLOCKS`]th block, and where the fences go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Restart {
    before: Key,
    first: Key,
    offset: u32,
}

/// The first key of a block, and how far rows of blocks before reach: not to it, to it, or beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fence {
    key: Key,
    reach: u8,
}

impl Index {
    /// Takes the next block. `end` is the key behind all rows of the blocks before.
    pub(super) fn push(&mut self, rows: &[Row], end: Key, has_presence: bool) {
        let Some(first) = rows.first() else { return };
        let key = (first.volume, first.start);
        let before = self.last_key();
        let reach = match end {
            end if end > (key.0, key.1 + 1) => 2,
            end => u8::from(end > key),
        };
        self.put_fence(before, Fence { key, reach });
        if has_presence {
            if self.offsets.is_empty() {
                self.offsets.push(0);
            }
            encode_gaps(rows, &mut self.gaps);
            self.offsets.push(self.gaps.len() as u32);
        }
    }

    fn last_key(&self) -> Key {
        let mut last = NO_KEY;
        let from = self.count.saturating_sub(1) / RESTART_BLOCKS * RESTART_BLOCKS;
        self.walk(from, |_, fence| {
            last = fence.key;
            true
        });
        last
    }

    fn put_fence(&mut self, before: Key, fence: Fence) {
        if self.count.is_multiple_of(RESTART_BLOCKS) {
            let offset = self.fences.len() as u32;
            self.restarts.push(Restart { before, first: fence.key, offset });
        }
        let (volume, address) = fence.key;
        let is_same = volume == before.0 && address >= before.1;
        let flags = u64::from(fence.reach) << 1 | u64::from(!is_same);
        if is_same {
            put_varint(&mut self.fences, u128::from(address - before.1) << 3 | u128::from(flags));
        } else {
            put_varint(&mut self.fences, u128::from(address) << 3 | u128::from(flags));
            self.fences.put_u32(volume.0);
        }
        self.count += 1;
    }

    /// Goes through the fences from a restart's block on, while told to.
    fn walk(&self, from: u32, mut each: impl FnMut(u32, Fence) -> bool) {
        let Some(restart) = self.restarts.get((from / RESTART_BLOCKS) as usize) else { return };
        let (mut before, mut rest) = (restart.before, &self.fences[restart.offset as usize..]);
        for block in from / RESTART_BLOCKS * RESTART_BLOCKS..self.count {
            let Ok((fence, behind)) = read_fence(before, rest) else { return };
            if !each(block, fence) {
                return;
            }
            (before, rest) = (fence.key, behind);
        }
    }

    /// The data blocks with rows about a key, if there were any; blocks behind it are those with greater ones.
    pub(super) fn blocks_of(&self, key: Key) -> Range<u32> {
        let mut restart = self.restarts.partition_point(|restart| restart.first < key).saturating_sub(1);
        loop {
            let (mut start, mut end) = (None, 0);
            self.walk(restart as u32 * RESTART_BLOCKS, |block, fence| {
                if fence.key > key {
                    return false;
                }
                let is_reached = fence.reach == 2 || fence.reach == 1 && fence.key == key;
                start = if is_reached { start } else { Some(block) };
                end = block + 1;
                true
            });
            match start {
                Some(start) => return start..end,
                None if end == 0 || restart == 0 => return 0..end,
                None => restart -= 1,
            }
        }
    }

    /// Whether a block has rows about a key, as far as it is known.
    pub(super) fn may_have(&self, block: u32, (volume, address): Key) -> bool {
        let offsets = (self.offsets.get(block as usize), self.offsets.get(block as usize + 1));
        let (Some(start), Some(end)) = offsets else { return true };
        let fence = self.fence(block);
        fence.0 == volume && gaps_have(&self.gaps[*start as usize..*end as usize], fence.1, address)
    }

    /// The first key of a block.
    fn fence(&self, block: u32) -> Key {
        let mut key = NO_KEY;
        self.walk(block, |at, fence| {
            key = fence.key;
            at < block
        });
        key
    }

    /// Bytes that it takes in memory.
    pub(super) fn memory(&self) -> usize {
        size_of::<Self>()
            + self.fences.len()
            + self.restarts.len() * size_of::<Restart>()
            + self.offsets.len() * size_of::<u32>()
            + self.gaps.len()
    }

    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u32(self.count);
        bytes.put_u32(self.fences.len() as u32);
        bytes.put(&self.fences);
        bytes.put_u32(self.offsets.len() as u32);
        self.offsets.iter().for_each(|offset| bytes.put_u32(*offset));
        bytes.put(&self.gaps);
    }

    /// Reads what [`Self::encode`] wrote; none when it makes no sense.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Option<Self>, CutShort> {
        let (count, length) = (reader.u32()?, reader.u32()? as usize);
        let mut rest = reader.bytes(length)?;
        let mut index = Self::default();
        let mut before = NO_KEY;
        for _ in 0..count {
            let (fence, behind) = read_fence(before, rest)?;
            index.put_fence(before, fence);
            (before, rest) = (fence.key, behind);
        }
        let offsets = reader.u32()?;
        if offsets != 0 && offsets != count + 1 {
            return Ok(None);
        }
        for _ in 0..offsets {
            index.offsets.push(reader.u32()?);
        }
        index.gaps = reader.bytes(index.offsets.last().map_or(0, |end| *end as usize))?.to_vec();
        index.fences.shrink_to_fit();
        index.restarts.shrink_to_fit();
        Ok(index.offsets.is_sorted().then_some(index))
    }
}

fn read_fence(before: Key, bytes: &[u8]) -> Result<(Fence, &[u8]), CutShort> {
    let mut reader = Reader::new(bytes);
    let value = read_varint(&mut reader)?;
    let reach = (value >> 1 & 3) as u8;
    let number = (value >> 3) as u64;
    let key = match value & 1 {
        0 => (before.0, before.1.wrapping_add(number)),
        _ => (VolumeId(reader.u32()?), number),
    };
    Ok((Fence { key, reach }, &bytes[bytes.len() - reader.remaining()..]))
}

/// The parameter, the number of addresses and the gaps between them; of a block with ranges only that it may have
/// anything.
fn encode_gaps(rows: &[Row], bytes: &mut Vec<u8>) {
    if rows.iter().any(|row| row.end != row.start + 1) {
        bytes.put_u8(MAYBE);
        return;
    }
    let mut addresses: Vec<u64> = rows.iter().map(|row| row.start).collect();
    addresses.dedup();
    let span = addresses[addresses.len() - 1] - addresses[0];
    let mean = span / addresses.len() as u64;
    let parameter = bits::width_of(mean).saturating_sub(1).min(56);
    bytes.put_u8(parameter as u8);
    bytes.put_u16(addresses.len() as u16);
    let mut writer = BitWriter::default();
    for pair in addresses.windows(2) {
        let gap = pair[1] - pair[0] - 1;
        writer.put_unary(gap >> parameter);
        writer.put(gap & ((1 << parameter) - 1), parameter);
    }
    bytes.extend(writer.finish());
}

fn gaps_have(bytes: &[u8], first: u64, address: u64) -> bool {
    let [parameter, low, high, gaps @ ..] = bytes else { return true };
    let (parameter, count) = (u32::from(*parameter), u16::from_le_bytes([*low, *high]));
    let (mut present, mut at) = (first, 0);
    for _ in 1..count {
        if present >= address {
            break;
        }
        let Some((high, length)) = bits::get_unary(gaps, at) else { return true };
        at += length;
        present += (high << parameter) + bits::get(gaps, at, parameter) + 1;
        at += parameter as usize;
    }
    present == address
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u128) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read_varint(reader: &mut Reader<'_>) -> Result<u128, CutShort> {
    let (mut value, mut shift) = (0u128, 0);
    loop {
        let byte = reader.u8()?;
        value |= u128::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 || shift > 70 {
            return Ok(value);
        }
    }
}

const RESTART_BLOCKS: u32 = 16;
const MAYBE: u8 = 0xff;
const NO_KEY: Key = (VolumeId(0), 0);

#[cfg(test)]
mod tests {
    use super::super::statement::Statement;
    use super::*;
    use crate::base::units::Version;
    use crate::sim::random::Random;
    use crate::store::map::MapValue;

    fn row(volume: u32, start: u64) -> Row {
        let version = Version::default();
        let statement = Statement { version, value: MapValue::Lost, is_move: false, counts: false, era: 0 };
        Row { volume: VolumeId(volume), start, end: start + 1, order: 0, statement }
    }

    #[test]
    fn blocks_are_found_and_what_is_not_there_is_known() {
        for seed in 0..300 {
            let random = Random::new(seed);
            let (mut index, mut blocks) = (Index::default(), Vec::<Vec<Row>>::new());
            let (mut volume, mut address) = (1 + random.below(3) as u32, random.below(1 << 40));
            for _ in 0..random.below(60) + 1 {
                let mut rows = vec![row(volume, address)];
                for _ in 0..random.below(20) {
                    address += random.below(1 << random.below(12));
                    rows.push(row(volume, address));
                }
                let last = blocks.last().and_then(|rows| rows.last()).copied();
                index.push(&rows, last.map_or(NO_KEY, |last| (last.volume, last.end)), true);
                blocks.push(rows);
                match random.below(10) {
                    0 => (volume, address) = (volume + 1, random.below(1 << 40)),
                    1 => {}
                    _ => address += 1 + random.below(100),
                }
            }
            let mut bytes = Vec::new();
            index.encode(&mut bytes);
            let decoded = Index::decode(&mut Reader::new(&bytes)).unwrap().unwrap();
            assert_eq!(decoded, index, "seed {seed}");
            for (volume, address) in blocks.iter().flatten().flat_map(|row| {
                [
                    (row.volume, row.start),
                    (row.volume, row.start + 1),
                    (row.volume, row.start.saturating_sub(1)),
                ]
            }) {
                let found = index.blocks_of((volume, address));
                for (number, rows) in (0u32..).zip(&blocks) {
                    let has = rows.iter().any(|row| (row.volume, row.start) == (volume, address));
                    assert!(!has || found.contains(&number), "seed {seed}");
                    if rows[0].volume == volume && found.contains(&number) {
                        assert_eq!(index.fence(number), (volume, rows[0].start));
                        assert_eq!(index.may_have(number, (volume, address)), has, "seed {seed}");
                    }
                }
                assert!(found.len() <= 3, "seed {seed}: {found:?}");
            }
        }
    }
}
