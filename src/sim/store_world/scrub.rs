//! The media of a pool that was closed cleanly, held against the format: in every written row the
//! XOR over the stripe's members is zero, and every block passes the checksum of its header.

use super::PoolUnderTest;
use crate::array::{MemberSet, SegmentIndex, Slot, parity};
use crate::base::checksum::Crc32;
use crate::base::units::BLOCK_SIZE;
use crate::sim::medium::SimulatedMedium;
use crate::store::Store;
use crate::store::batch::BatchHeader;
use crate::store::segments::{Segment, SegmentState};

impl PoolUnderTest {
    /// Scrubs all segments that hold live blocks. Only where no disk went wrong does every row have
    /// to be right; elsewhere one member of it may be anything.
    pub(super) fn scrub(&self, store: &Store) -> Result<(), String> {
        if self.plan.theme.has_faults() {
            return Ok(());
        }
        for (index, segment) in store.segments() {
            let holds_data = matches!(segment.state, SegmentState::Open | SegmentState::Sealed);
            if holds_data && segment.live_blocks > 0 {
                let rows = self.scrub_segment(store, index, &segment)?;
                self.note(|report| report.scrubbed_rows += u64::from(rows));
            }
        }
        Ok(())
    }

    /// Returns how many rows were written.
    fn scrub_segment(&self, store: &Store, index: SegmentIndex, segment: &Segment) -> Result<u32, String> {
        let offset = |row: u32| store.array().geometry().offset(index, row);
        let block = |slot: Slot, row: u32| block_at(&self.media()[slot.index()], offset(row));
        let (mut row, mut blocks) = (0, 0);
        while row < store.array().geometry().rows {
            let here = |header: &BatchHeader| {
                header.place.segment == index
                    && header.place.generation == segment.generation
                    && header.first_row == row
                    // Behind the last batch may lie one that a recovery discarded.
                    && header.number <= segment.last_batch
            };
            let found = segment
                .members
                .iter()
                .find_map(|slot| read_header(&self.media()[slot.index()], offset(row)).filter(here));
            let Some(header) = found else { break };
            for row in row..row + header.height {
                check_row(header.members, |slot| block(slot, row))
                    .map_err(|problem| format!("scrub of {index:?} row {row}: {problem}"))?;
            }
            for (entry, place) in header.entries_with_places() {
                let (Some(place), Some(checksum)) = (place, entry.payload_checksum()) else { continue };
                if Crc32::of(&block(place.slot(), place.row())) != checksum {
                    return Err(format!("scrub of {index:?}: {entry:?} does not match its checksum"));
                }
                blocks += 1;
            }
            row += header.height;
            if header.number == segment.last_batch {
                break; // what follows was discarded by a recovery, whatever its number
            }
        }
        if blocks < segment.live_blocks {
            return Err(format!("scrub of {index:?}: {blocks} blocks, {} live", segment.live_blocks));
        }
        Ok(row)
    }
}

fn check_row(members: MemberSet, block: impl Fn(Slot) -> Vec<u8>) -> Result<(), String> {
    if members.width() == 1 {
        return Ok(());
    }
    let mut sum = vec![0; BLOCK_SIZE];
    members.iter().for_each(|slot| parity::xor_into(&mut sum, &block(slot)));
    if sum.iter().any(|byte| *byte != 0) {
        return Err(format!("the XOR over {members:?} is not zero"));
    }
    Ok(())
}

/// The batch header at a byte offset of a medium.
pub(super) fn read_header(medium: &SimulatedMedium, offset: u64) -> Option<BatchHeader> {
    let first = block_at(medium, offset);
    let blocks = BatchHeader::peek_blocks(&first)? as u64;
    let end = offset + blocks * BLOCK_SIZE as u64;
    if end > medium.size_bytes() {
        return None;
    }
    BatchHeader::decode(&medium.peek(offset..end)).ok().map(|(header, _)| header)
}

fn block_at(medium: &SimulatedMedium, offset: u64) -> Vec<u8> {
    medium.peek(offset..offset + BLOCK_SIZE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_whose_parity_is_wrong_is_told() {
        let block = |slot: Slot| vec![[3, 5, 6][slot.index()]; BLOCK_SIZE];
        assert!(check_row(MemberSet::first(3), block).is_ok());
        assert!(check_row(MemberSet::first(2), block).is_err());
    }
}
