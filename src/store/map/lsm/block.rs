//! Data blocks of a table: rows of one volume, packed.
//!
//! Each field of a row is a column: the block has the column's least value and how many bits the others are above
//! it, and then the rows, all of one length. So an entry of random overwrites takes some 14 bytes, and a column
//! that says the same in all rows takes none. A block's checksum covers which table it is of and where it stands in
//! it, so that no block passes for another.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | CRC-32 of table, block number and the rest |
//! | 1 | format: 1 |
//! | 1 | 0 |
//! | 2 | rows |
//! | 4 | volume |
//! | for each of 11 columns | bits a row (1 byte), bytes of the base (1), base |
//! | rest | rows, column by column |

use crate::array::Place;
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::{BLOCK_SIZE, Version, VolumeId};

use super::super::MapValue;
use super::bits::{self, BitWriter};
use super::statement::{Row, Statement};
use super::storage::TableId;

/// The checksum of a block's bytes behind the first four.
fn checksum(table: TableId, number: u32, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&table.0.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(rest);
    hasher.finalize()
}

/// Whether these bytes are block `number` of a table, unharmed: data blocks and others alike.
#[must_use]
pub fn is_intact(table: TableId, number: u32, bytes: &[u8]) -> bool {
    let Some((stored, rest)) = bytes.split_first_chunk::<4>() else { return false };
    bytes.len() == BLOCK_SIZE && checksum(table, number, rest) == u32::from_le_bytes(*stored)
}

/// Puts the checksum into a block.
pub(super) fn sign(table: TableId, number: u32, bytes: &mut [u8]) {
    let checksum = Crc32(checksum(table, number, &bytes[4..]));
    bytes[..4].copy_from_slice(&checksum.0.to_le_bytes());
}

type Fields = [u64; COLUMNS];

fn fields_of(row: &Row) -> Fields {
    let statement = &row.statement;
    let (kind, place, checksum) = match statement.value {
        MapValue::Data { place, checksum } => (KIND_DATA, place.bits(), checksum.0),
        MapValue::Hole => (KIND_HOLE, 0, 0),
        MapValue::Lost => (KIND_LOST, 0, 0),
    };
    let flags = u64::from(statement.is_move) << 2 | u64::from(statement.counts) << 3;
    [
        row.start,
        row.end - row.start - 1,
        u64::from(statement.version.epoch),
        statement.version.sequence,
        u64::from(statement.era),
        kind | flags,
        place >> 32,
        place >> 24 & 0xff,
        (place & 0xff_ffff) / SECTORS,
        (place & 0xff_ffff) % SECTORS,
        u64::from(checksum),
    ]
}

fn row_of(volume: VolumeId, fields: &Fields) -> Option<Row> {
    let [start, length, epoch, sequence, era, kind, segment, slot, sectors, sector, checksum] = *fields;
    let place = Place::from_bits(segment << 32 | slot << 24 | (sectors * SECTORS + sector));
    let value = match kind & 3 {
        KIND_DATA => MapValue::Data { place, checksum: Crc32(checksum as u32) },
        KIND_HOLE => MapValue::Hole,
        KIND_LOST => MapValue::Lost,
        _ => return None,
    };
    let statement = Statement {
        version: Version { epoch: epoch as u32, sequence },
        value,
        is_move: kind & 4 != 0,
        counts: kind & 8 != 0,
        era: era as u32,
    };
    Some(Row { volume, start, end: start.checked_add(length)?.checked_add(1)?, order: 0, statement })
}

/// Rows on their way to a block.
pub(super) struct BlockBuilder {
    rows: Vec<Row>,
    /// Most rows of a block.
    limit: usize,
    /// Least and greatest value of each column; of places and checksums only those that are there.
    ranges: [Option<(u64, u64)>; COLUMNS],
}

impl BlockBuilder {
    pub(super) fn new(limit: usize) -> Self {
        Self { rows: Vec::new(), limit: limit.clamp(1, MAX_ROWS), ranges: Default::default() }
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn bits_with(&self, fields: &Fields, has_place: bool) -> (usize, [Option<(u64, u64)>; COLUMNS]) {
        let mut ranges = self.ranges;
        let (mut head, mut row_bits) = (FIXED_BYTES, 0);
        for (column, (range, value)) in ranges.iter_mut().zip(fields).enumerate() {
            if has_place || column < FIRST_OF_PLACE {
                let (least, greatest) = range.unwrap_or((*value, *value));
                *range = Some((least.min(*value), greatest.max(*value)));
            }
            let (least, greatest) = range.unwrap_or((0, 0));
            head += 2 + base_bytes(least);
            row_bits += bits::width_of(greatest - least) as usize;
        }
        (head * 8 + row_bits * (self.rows.len() + 1), ranges)
    }

    /// Takes a row, if there is room for it.
    pub(super) fn push(&mut self, row: Row) -> bool {
        if self.rows.first().is_some_and(|first| first.volume != row.volume) {
            return false;
        }
        let (bits, ranges) = self.bits_with(&fields_of(&row), row.statement.place().is_some());
        if bits > BLOCK_SIZE * 8 || self.rows.len() == self.limit {
            return false;
        }
        self.ranges = ranges;
        self.rows.push(row);
        true
    }

    /// Lets a row that is there already end later, if there is room for that.
    pub(super) fn extend(&mut self, index: usize, end: u64) -> bool {
        let row = Row { end, ..self.rows[index] };
        let (bits, ranges) = self.bits_with(&fields_of(&row), row.statement.place().is_some());
        // One row is counted twice here, which costs a row of room.
        if bits > BLOCK_SIZE * 8 {
            return false;
        }
        self.ranges = ranges;
        self.rows[index] = row;
        true
    }

    /// The block. There are rows.
    pub(super) fn finish(&mut self, table: TableId, number: u32) -> (Vec<u8>, Vec<Row>) {
        let rows = std::mem::take(&mut self.rows);
        let ranges = std::mem::take(&mut self.ranges);
        let mut bytes = vec![0; 4];
        bytes.put_u8(FORMAT);
        bytes.put_u8(0);
        bytes.put_u16(rows.len() as u16);
        bytes.put_u32(rows.first().map_or(0, |row| row.volume.0));
        for (least, greatest) in ranges.map(|range| range.unwrap_or((0, 0))) {
            bytes.put_u8(bits::width_of(greatest - least) as u8);
            let length = base_bytes(least);
            bytes.put_u8(length as u8);
            bytes.put(&least.to_le_bytes()[..length]);
        }
        let mut writer = BitWriter::default();
        let all: Vec<(Fields, bool)> =
            rows.iter().map(|row| (fields_of(row), row.statement.place().is_some())).collect();
        for (column, (least, greatest)) in ranges.map(|range| range.unwrap_or((0, 0))).into_iter().enumerate()
        {
            let width = bits::width_of(greatest - least);
            for (fields, has_place) in &all {
                let is_there = *has_place || column < FIRST_OF_PLACE;
                writer.put(if is_there { fields[column] - least } else { 0 }, width);
            }
        }
        bytes.extend(writer.finish());
        debug_assert!(bytes.len() <= BLOCK_SIZE);
        bytes.resize(BLOCK_SIZE, 0);
        sign(table, number, &mut bytes);
        (bytes, rows)
    }
}

/// Reads a block whose checksum was found right; none when it makes no sense.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Row>> {
    let packed = Packed::new(bytes)?;
    (0..packed.count).map(|index| packed.row(index)).collect()
}

/// The rows of a block that are about an address, in their order, without unpacking the others; none when the block
/// makes no sense.
pub(super) fn rows_about(bytes: &[u8], address: u64) -> Option<Vec<Row>> {
    let packed = Packed::new(bytes)?;
    // Rows stand in the order of their first blocks.
    let (mut low, mut high) = (0, packed.count);
    while low < high {
        let middle = low + (high - low) / 2;
        if packed.field(START, middle)? <= address {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let behind = low;
    let are_single = packed.columns[LENGTH] == (0, 0);
    let mut first = if are_single { behind } else { 0 };
    while are_single && first > 0 && packed.field(START, first - 1)? == address {
        first -= 1;
    }
    let mut rows = Vec::new();
    for index in first..behind {
        if are_single || packed.field(LENGTH, index)? >= address - packed.field(START, index)? {
            rows.push(packed.row(index)?);
        }
    }
    Some(rows)
}

/// A block as it lies there.
struct Packed<'a> {
    volume: VolumeId,
    count: usize,
    /// Width and base.
    columns: [(u32, u64); COLUMNS],
    /// The bit at which each begins.
    begins: [usize; COLUMNS],
    bits: &'a [u8],
}

impl<'a> Packed<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes.get(4..)?);
        let (volume, count, columns) = read_head(&mut reader).ok()??;
        let bits = &bytes[bytes.len() - reader.remaining()..];
        let (mut begins, mut end) = ([0; COLUMNS], 0);
        for (begin, (width, _)) in begins.iter_mut().zip(&columns) {
            *begin = end;
            end += *width as usize * count;
        }
        (end <= bits.len() * 8).then_some(Self { volume, count, columns, begins, bits })
    }

    fn field(&self, column: usize, row: usize) -> Option<u64> {
        let (width, base) = self.columns[column];
        base.checked_add(bits::get(self.bits, self.begins[column] + row * width as usize, width))
    }

    fn row(&self, row: usize) -> Option<Row> {
        let mut fields = [0; COLUMNS];
        for (column, field) in fields.iter_mut().enumerate() {
            *field = self.field(column, row)?;
        }
        row_of(self.volume, &fields)
    }
}

type Head = (VolumeId, usize, [(u32, u64); COLUMNS]);

fn read_head(reader: &mut Reader<'_>) -> Result<Option<Head>, CutShort> {
    if (reader.u8()?, reader.u8()?) != (FORMAT, 0) {
        return Ok(None);
    }
    let (count, volume) = (usize::from(reader.u16()?), VolumeId(reader.u32()?));
    let mut columns = [(0, 0); COLUMNS];
    for column in &mut columns {
        let (width, length) = (u32::from(reader.u8()?), usize::from(reader.u8()?));
        if width > 64 || length > 8 {
            return Ok(None);
        }
        let mut base = [0; 8];
        base[..length].copy_from_slice(reader.bytes(length)?);
        *column = (width, u64::from_le_bytes(base));
    }
    Ok(Some((volume, count, columns)))
}

fn base_bytes(base: u64) -> usize {
    bits::width_of(base).div_ceil(8) as usize
}

const FORMAT: u8 = 1;
const COLUMNS: usize = 11;
const START: usize = 0;
/// Less one.
const LENGTH: usize = 1;
/// The columns from here on are those of places and checksums.
const FIRST_OF_PLACE: usize = 6;
const FIXED_BYTES: usize = 12;
/// Rows that are all alike take no room.
pub(super) const MAX_ROWS: usize = 2048;
const SECTORS: u64 = (BLOCK_SIZE / 512) as u64;
const KIND_DATA: u64 = 1;
const KIND_HOLE: u64 = 2;
const KIND_LOST: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::random::Random;

    fn random_row(random: &Random, start: u64) -> Row {
        let value = match random.below(8) {
            0 => MapValue::Hole,
            1 => MapValue::Lost,
            _ => MapValue::Data {
                place: Place::from_bits(random.next() >> random.below(40)),
                checksum: Crc32(random.next() as u32),
            },
        };
        let end = start + if value == MapValue::Hole { 1 + random.below(1 << 30) } else { 1 };
        let version = Version { epoch: random.below(3) as u32, sequence: random.next() >> random.below(60) };
        let (is_move, counts, era) = (random.coin(), random.coin(), random.below(2) as u32);
        let statement = Statement { version, value, is_move, counts, era };
        Row { volume: VolumeId(7), start, end, order: 0, statement }
    }

    #[test]
    fn rows_come_back_and_blocks_are_full() {
        for seed in 0..200 {
            let random = Random::new(seed);
            let (mut builder, mut expected) = (BlockBuilder::new(MAX_ROWS), Vec::new());
            let mut address = random.next() >> 20;
            loop {
                let row = random_row(&random, address);
                if !builder.push(row) {
                    break;
                }
                expected.push(row);
                address += random.below(1 << random.below(30));
            }
            let (bytes, rows) = builder.finish(TableId(9), 3);
            assert_eq!(rows, expected);
            assert!(is_intact(TableId(9), 3, &bytes), "seed {seed}");
            assert!(!is_intact(TableId(9), 4, &bytes) && !is_intact(TableId(8), 3, &bytes));
            for address in expected.iter().flat_map(|row| [row.start, row.start + 1, row.end]) {
                let about = |row: &&Row| (row.start..row.end).contains(&address);
                let about: Vec<Row> = expected.iter().filter(about).copied().collect();
                assert_eq!(rows_about(&bytes, address), Some(about), "seed {seed}, {address}");
            }
            assert_eq!(decode(&bytes), Some(expected), "seed {seed}");
        }
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let random = Random::new(5);
        for _ in 0..2000 {
            let mut bytes: Vec<u8> = (0..BLOCK_SIZE).map(|_| random.next() as u8).collect();
            bytes[4] = FORMAT;
            bytes[5] = 0;
            bytes.iter_mut().skip(12).take(60).for_each(|byte| *byte %= 70);
            let _ = (decode(&bytes), rows_about(&bytes, random.next()));
        }
    }
}
