//! From byte ranges and memory pieces to the 4 KiB blocks of an append.
//!
//! Guarantees: the checksum of each block is computed here, once, over the memory that is handed on;
//! a block of zeros becomes a hole; memory that is block-aligned goes on as it is, everything else
//! is copied exactly once, into a pooled buffer.

use std::ops::Range;

use bytes::Bytes;

use crate::base::buffer::{BufferPool, is_block_aligned};
use crate::base::checksum::Crc32;
use crate::base::units::{BLOCK_SIZE, BlockAddress};
use crate::store::interface::BlockWrite;

/// [`BLOCK_SIZE`] in the type of byte offsets.
pub(super) const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

/// A range of a volume's bytes, not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The bytes from `start` to before `end`.
    pub(super) fn new(start: u64, end: u64) -> Self {
        assert!(start < end, "empty range");
        Self { start, end }
    }

    /// First byte.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Number of bytes.
    pub(super) fn length(&self) -> u64 {
        self.end - self.start
    }

    /// The blocks that it touches.
    pub(super) fn blocks(&self) -> Range<u64> {
        self.start / BLOCK_BYTES..self.end.div_ceil(BLOCK_BYTES)
    }

    /// Offset of its first byte in the first block.
    pub(super) fn head_offset(&self) -> usize {
        within_block(self.start)
    }

    /// The part of its first block that it covers, when that is not the whole block.
    pub(super) fn partial_head(&self) -> Option<Range<usize>> {
        let blocks = self.blocks();
        let end = if blocks.end - blocks.start == 1 { self.end_in_last_block() } else { BLOCK_SIZE };
        let covered = self.head_offset()..end;
        (covered.len() < BLOCK_SIZE).then_some(covered)
    }

    /// The part of its last block that it covers, when that is not the whole block and is not the
    /// first block too.
    pub(super) fn partial_tail(&self) -> Option<Range<usize>> {
        let blocks = self.blocks();
        let covered = 0..self.end_in_last_block();
        (blocks.end - blocks.start > 1 && covered.len() < BLOCK_SIZE).then_some(covered)
    }

    /// Whether it consists of whole blocks.
    pub(super) fn is_whole(&self) -> bool {
        self.start.is_multiple_of(BLOCK_BYTES) && self.end.is_multiple_of(BLOCK_BYTES)
    }

    fn end_in_last_block(&self) -> usize {
        within_block(self.end - 1) + 1
    }
}

/// A position in a sequence of memory pieces.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    /// The pieces not used up, the current one first.
    pieces: &'a [Bytes],
    /// Offset in the current piece, less than its length.
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// The beginning of `pieces`.
    pub(super) fn new(pieces: &'a [Bytes]) -> Self {
        let mut cursor = Self { pieces, offset: 0 };
        cursor.advance(0);
        cursor
    }

    /// Moves `count` bytes on, at most to the end.
    pub(super) fn skip(&mut self, mut count: usize) {
        while count > 0 && !self.rest().is_empty() {
            let step = count.min(self.rest().len());
            self.advance(step);
            count -= step;
        }
    }

    /// Fills `target` and moves on.
    pub(super) fn copy_to(&mut self, mut target: &mut [u8]) {
        while !target.is_empty() {
            let rest = self.rest();
            assert!(!rest.is_empty(), "the pieces end {} bytes early", target.len());
            let step = target.len().min(rest.len());
            target[..step].copy_from_slice(&rest[..step]);
            self.advance(step);
            target = &mut target[step..];
        }
    }

    /// Offset in `expected` of the first byte that differs from what comes next.
    pub(super) fn first_difference(&mut self, expected: &[u8]) -> Option<usize> {
        let mut compared = 0;
        while compared < expected.len() {
            let rest = self.rest();
            let left = &expected[compared..];
            assert!(!rest.is_empty(), "the pieces end {} bytes early", left.len());
            let step = left.len().min(rest.len());
            if rest[..step] != left[..step] {
                let same = rest.iter().zip(left).take_while(|(one, other)| one == other).count();
                return Some(compared + same);
            }
            self.advance(step);
            compared += step;
        }
        None
    }

    /// The next `length` bytes as slices of the pieces.
    pub(super) fn slices(&mut self, mut length: usize) -> Vec<Bytes> {
        let mut slices = Vec::with_capacity(self.pieces.len());
        while length > 0 {
            let step = length.min(self.rest().len());
            assert!(step > 0, "the pieces end {length} bytes early");
            slices.push(self.pieces[0].slice(self.offset..self.offset + step));
            self.advance(step);
            length -= step;
        }
        slices
    }

    /// The next block, which is direct, as a slice of its piece.
    fn take_block(&mut self) -> Bytes {
        let block = self.pieces[0].slice(self.offset..self.offset + BLOCK_SIZE);
        self.advance(BLOCK_SIZE);
        block
    }

    /// What is left of the current piece; empty only at the end of all.
    fn rest(&self) -> &'a [u8] {
        self.pieces.first().map_or(&[], |piece| &piece[self.offset..])
    }

    fn advance(&mut self, step: usize) {
        self.offset += step;
        while self.pieces.first().is_some_and(|piece| self.offset == piece.len()) {
            self.pieces = &self.pieces[1..];
            self.offset = 0;
        }
    }

    /// Whether the next block can be handed on without a copy.
    fn is_direct(&self) -> bool {
        self.rest().get(..BLOCK_SIZE).is_some_and(is_block_aligned)
    }

    /// How many of the next `limit` blocks have to be copied before one can go on as it is.
    fn indirect_run(&self, limit: usize) -> usize {
        let mut ahead = self.clone();
        let mut run = 0;
        while run < limit && !ahead.is_direct() {
            ahead.skip(BLOCK_SIZE);
            run += 1;
        }
        run
    }
}

/// What a write puts into its range.
pub(super) enum Source<'a> {
    /// These bytes, in order.
    Data(Cursor<'a>),
    /// Zeros.
    Zeros,
    /// One block over and over. It repeats a logical block, so any part of it that starts at a
    /// logical block's boundary is right wherever it goes.
    Pattern(&'a Bytes),
}

impl Source<'_> {
    /// Fills part of a block.
    pub(super) fn copy_to(&mut self, target: &mut [u8]) {
        match self {
            Self::Data(cursor) => cursor.copy_to(target),
            Self::Zeros => target.fill(0),
            Self::Pattern(block) => target.copy_from_slice(&block[..target.len()]),
        }
    }
}

/// Collects the changes of one append, in address order.
pub(super) struct AppendBuilder {
    writes: Vec<BlockWrite>,
}

impl AppendBuilder {
    /// An append that touches about `block_count` blocks.
    pub(super) fn new(block_count: usize) -> Self {
        Self { writes: Vec::with_capacity(block_count) }
    }

    /// Sets the block at `address` to `data`.
    pub(super) fn push(&mut self, address: u64, data: Bytes) {
        assert_eq!(data.len(), BLOCK_SIZE);
        if is_zero(&data) {
            self.push_hole(address, 1);
        } else {
            let checksum = Crc32::of(&data);
            self.writes.push(BlockWrite::Data { address: BlockAddress(address), data, checksum });
        }
    }

    /// Sets `count` whole blocks from `address` on to what `source` yields next.
    pub(super) fn push_blocks(&mut self, address: u64, count: u64, source: &mut Source, pool: &BufferPool) {
        match source {
            Source::Data(cursor) => self.push_data(address, count as usize, cursor, pool),
            Source::Zeros => self.push_hole(address, count),
            Source::Pattern(block) => {
                let checksum = Crc32::of(block);
                self.writes.extend((address..address + count).map(|address| BlockWrite::Data {
                    address: BlockAddress(address),
                    data: Bytes::clone(block),
                    checksum,
                }));
            }
        }
    }

    /// The changes.
    pub(super) fn finish(self) -> Vec<BlockWrite> {
        self.writes
    }

    fn push_data(&mut self, mut address: u64, count: usize, cursor: &mut Cursor, pool: &BufferPool) {
        let mut left = count;
        while left > 0 {
            let run = cursor.indirect_run(left);
            if run > 0 {
                let mut copy = pool.get(run * BLOCK_SIZE);
                cursor.copy_to(&mut copy);
                let copy = copy.freeze();
                for index in 0..run {
                    self.push(address, copy.slice(index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE));
                    address += 1;
                }
            } else {
                self.push(address, cursor.take_block());
                address += 1;
            }
            left -= run.max(1);
        }
    }

    fn push_hole(&mut self, address: u64, count: u64) {
        if count == 0 {
            return;
        }
        if let Some(BlockWrite::Hole { address: start, count: length }) = self.writes.last_mut()
            && start.0 + *length == address
        {
            *length += count;
            return;
        }
        self.writes.push(BlockWrite::Hole { address: BlockAddress(address), count });
    }
}

/// Whether all bytes are zero. Data that is not differs early in nearly all blocks.
pub(super) fn is_zero(data: &[u8]) -> bool {
    let (chunks, rest) = data.as_chunks::<64>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

fn within_block(offset: u64) -> usize {
    (offset % BLOCK_BYTES) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::buffer::AlignedBuf;

    fn pattern(length: usize, salt: usize) -> Vec<u8> {
        (0..length).map(|index| ((index * 31 + salt) % 251) as u8 + 1).collect()
    }

    fn contents(writes: &[BlockWrite]) -> Vec<u8> {
        let mut all = Vec::new();
        for write in writes {
            match write {
                BlockWrite::Data { address, data, checksum } => {
                    assert_eq!(address.0 as usize * BLOCK_SIZE, all.len());
                    assert_eq!(*checksum, Crc32::of(data));
                    assert!(is_block_aligned(data));
                    all.extend_from_slice(data);
                }
                BlockWrite::Hole { address, count } => {
                    assert_eq!(address.0 as usize * BLOCK_SIZE, all.len());
                    all.resize(all.len() + *count as usize * BLOCK_SIZE, 0);
                }
                other => panic!("{other:?}"),
            }
        }
        all
    }

    fn build(pieces: &[Bytes]) -> Vec<BlockWrite> {
        let length: usize = pieces.iter().map(Bytes::len).sum();
        let count = (length / BLOCK_SIZE) as u64;
        let mut builder = AppendBuilder::new(count as usize);
        let mut source = Source::Data(Cursor::new(pieces));
        builder.push_blocks(0, count, &mut source, &BufferPool::new(1 << 20));
        builder.finish()
    }

    #[test]
    fn aligned_memory_is_handed_on_without_a_copy() {
        let data = AlignedBuf::copy_of(&pattern(3 * BLOCK_SIZE, 1)).freeze();
        let writes = build(std::slice::from_ref(&data));
        assert_eq!(contents(&writes), data);
        for (index, write) in writes.iter().enumerate() {
            let BlockWrite::Data { data: block, .. } = write else { panic!("{write:?}") };
            assert_eq!(block.as_ptr(), data[index * BLOCK_SIZE..].as_ptr());
        }
    }

    #[test]
    fn pieces_of_any_shape_make_the_same_blocks() {
        let whole = pattern(8 * BLOCK_SIZE, 5);
        let aligned = AlignedBuf::copy_of(&whole).freeze();
        for cuts in [vec![1], vec![4096], vec![100, 4196, 8192, 8193], vec![0, 0, 12_288, 20_000, 32_768]] {
            let mut pieces = Vec::new();
            let mut start = 0;
            for cut in cuts.iter().copied().chain([whole.len()]) {
                pieces.push(aligned.slice(start..cut));
                start = cut;
            }
            assert_eq!(contents(&build(&pieces)), whole, "{cuts:?}");
        }
    }

    #[test]
    fn zero_blocks_become_one_hole() {
        let mut whole = pattern(6 * BLOCK_SIZE, 9);
        whole[BLOCK_SIZE..4 * BLOCK_SIZE].fill(0);
        whole[5 * BLOCK_SIZE..].fill(0);
        whole[6 * BLOCK_SIZE - 1] = 1;
        let writes = build(&[Bytes::from(whole.clone())]);
        assert_eq!(contents(&writes), whole);
        let holes: Vec<_> = writes.iter().filter(|write| matches!(write, BlockWrite::Hole { .. })).collect();
        assert!(matches!(holes[..], [BlockWrite::Hole { address: BlockAddress(1), count: 3 }]), "{holes:?}");
    }

    #[test]
    fn zeros_are_seen_at_every_position() {
        let mut block = vec![0u8; BLOCK_SIZE];
        assert!(is_zero(&block));
        for position in 0..BLOCK_SIZE {
            block[position] = 0x80;
            assert!(!is_zero(&block));
            block[position] = 0;
        }
    }

    #[test]
    fn ranges_know_their_partial_blocks() {
        let range = |start, end| ByteRange::new(start, end);
        assert!(range(0, 8192).is_whole());
        assert_eq!(range(0, 8192).partial_head(), None);
        assert_eq!(range(0, 8192).partial_tail(), None);
        assert_eq!(range(0, 512).partial_head(), Some(0..512));
        assert_eq!(range(0, 512).partial_tail(), None);
        assert_eq!(range(512, 4096).partial_head(), Some(512..4096));
        assert_eq!(range(4608, 5120).partial_head(), Some(512..1024));
        assert_eq!(range(4608, 5120).blocks(), 1..2);
        assert_eq!(range(3584, 9216).partial_head(), Some(3584..4096));
        assert_eq!(range(3584, 9216).partial_tail(), Some(0..1024));
        assert_eq!(range(3584, 9216).blocks(), 0..3);
        assert_eq!(range(0, 4608).partial_head(), None);
        assert_eq!(range(0, 4608).partial_tail(), Some(0..512));
    }

    #[test]
    fn comparison_finds_the_first_difference() {
        let whole = pattern(10_000, 3);
        let pieces = [Bytes::from(whole[..4097].to_vec()), Bytes::new(), Bytes::from(whole[4097..].to_vec())];
        assert_eq!(Cursor::new(&pieces).first_difference(&whole), None);
        for position in [0, 4096, 4097, 9_999] {
            let mut other = whole.clone();
            other[position] ^= 1;
            assert_eq!(Cursor::new(&pieces).first_difference(&other), Some(position));
        }
    }
}
