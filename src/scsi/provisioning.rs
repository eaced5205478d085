//! Thin provisioning commands: UNMAP, WRITE SAME (10) and (16), GET LBA STATUS (SBC-3 sections 5.30,
//! 5.44, 5.45 and 5.6). Unmapped blocks read as zeros, so zeros written over a range become a hole.

use bytes::Bytes;

use super::cdb::Cdb;
use super::command::{Failure, Outcome, Reply, joined, total_length};
use super::execution::Context;
use super::limits;
use super::logical_unit::LogicalUnit;
use super::medium::{Extent, addressed, check_protect, length_field};
use super::mutant::{self, Mutant};
use super::sense::{AdditionalSense, Sense};
use crate::volume::device::{AllocationRun, BlockDevice};

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// UNMAP. All descriptors are checked before the first one takes effect.
    pub(super) async fn unmap(&self, context: &Context<'_>, cdb: &Cdb, data_out: Vec<Bytes>) -> Outcome {
        if cdb.bit(1, 0) {
            return Err(Sense::invalid_cdb_bit(1, 0).into()); // ANCHOR
        }
        self.check_writable()?;
        let list = self.parameter_list(context, &data_out, usize::from(cdb.u16(7)))?;
        if list.is_empty() {
            return Ok(Reply::good());
        }
        if list.len() < UNMAP_HEADER_BYTES {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH).into());
        }
        let extents = self.unmap_extents(&list)?;
        for extent in extents {
            context.check_aborted()?;
            let is_short = mutant::is(Mutant::UnmapLeavesLast) && extent.count > 1;
            self.medium()?.unmap(extent.address, extent.count - u64::from(is_short)).await?;
            self.statistics().count_unmap(extent.count * u64::from(self.block_bytes()));
        }
        Ok(Reply::good())
    }

    /// The descriptors of an UNMAP parameter list that name any blocks.
    fn unmap_extents(&self, list: &[u8]) -> Result<Vec<Extent>, Failure> {
        let named = usize::from(u16::from_be_bytes([list[2], list[3]]));
        // A descriptor that is cut off is ignored (SBC-3 section 5.30.2).
        let available = (list.len() - UNMAP_HEADER_BYTES).min(named);
        let descriptors = list[UNMAP_HEADER_BYTES..][..available].chunks_exact(16);
        if descriptors.len() > limits::UNMAP_DESCRIPTORS as usize {
            return Err(Sense::invalid_parameter(2).into());
        }
        let mut extents = Vec::new();
        let mut total = 0;
        for (index, descriptor) in descriptors.enumerate() {
            let address = u64::from_be_bytes(descriptor[0..8].try_into().expect("eight bytes"));
            let count = u64::from(u32::from_be_bytes(descriptor[8..12].try_into().expect("four bytes")));
            let extent = Extent { address, count };
            self.check_extent(extent)?;
            total += count;
            if total > u64::from(limits::UNMAP_BLOCKS) {
                return Err(Sense::invalid_parameter(UNMAP_HEADER_BYTES + index * 16 + 8).into());
            }
            if count > 0 {
                append_extent(&mut extents, extent);
            }
        }
        Ok(extents)
    }

    /// WRITE SAME (10) and (16).
    pub(super) async fn write_same(&self, context: &Context<'_>, cdb: &Cdb, data_out: Vec<Bytes>) -> Outcome {
        check_protect(cdb)?;
        if cdb.bit(1, 4) {
            return Err(Sense::invalid_cdb_bit(1, 4).into()); // ANCHOR
        }
        if cdb.byte(1) & 0x06 != 0 {
            return Err(Sense::invalid_cdb_bit(1, 2).into()); // PBDATA and LBDATA, obsolete
        }
        let extent = addressed(cdb);
        self.check_extent(extent)?;
        let most = u64::from(limits::WRITE_SAME_BYTES / self.block_bytes());
        if extent.count == 0 || extent.count > most {
            return Err(Sense::invalid_cdb_field(length_field(cdb)).into());
        }
        self.check_writable()?;
        let no_data_out = cdb.opcode() == WRITE_SAME_16 && cdb.bit(1, 0);
        let pattern = if no_data_out { None } else { Some(self.pattern_block(context, &data_out)?) };
        match pattern.filter(|pattern| pattern.iter().any(|byte| *byte != 0)) {
            // Zeros are what unmapped blocks hold; so this is right with and without UNMAP.
            None => self.medium()?.unmap(extent.address, extent.count).await?,
            Some(pattern) => self.fill(context, extent, &pattern).await?,
        }
        self.statistics().count_unmap(extent.count * u64::from(self.block_bytes()));
        Ok(Reply::good())
    }

    /// The one block of data-out that WRITE SAME wants: no more and no less, since an initiator that
    /// sends another amount means another command.
    fn pattern_block(&self, context: &Context<'_>, data_out: &[Bytes]) -> Result<Bytes, Failure> {
        let block_bytes = self.block_bytes() as usize;
        context.wants(block_bytes as u64);
        if total_length(data_out) != block_bytes {
            return Err(Sense::illegal(AdditionalSense::INVALID_FIELD_IN_INFORMATION_UNIT).into());
        }
        Ok(joined(data_out, block_bytes))
    }

    /// Writes `pattern` to every block of `extent`, a bounded number at a time.
    pub(super) async fn fill(
        &self,
        context: &Context<'_>,
        extent: Extent,
        pattern: &Bytes,
    ) -> Result<(), Failure> {
        let step = u64::from(limits::TRANSFER_BYTES / self.block_bytes());
        let mut done = 0;
        while done < extent.count {
            context.check_aborted()?;
            let count = step.min(extent.count - done);
            self.medium()?.write_same(extent.address + done, count, pattern.clone()).await?;
            done += count;
        }
        Ok(())
    }

    /// GET LBA STATUS (16).
    pub(super) async fn get_lba_status(&self, cdb: &Cdb) -> Outcome {
        let address = cdb.u64(2);
        let allocation_length = usize::try_from(cdb.u32(10)).unwrap_or(usize::MAX);
        if address >= self.geometry().block_count {
            return Err(Sense::illegal(AdditionalSense::LBA_OUT_OF_RANGE).into());
        }
        let room = allocation_length.saturating_sub(LBA_STATUS_HEADER_BYTES).div_ceil(LBA_STATUS_BYTES);
        let runs = self.allocation_runs(address, room.clamp(1, limits::LBA_STATUS_RUNS)).await?;
        let mut data = vec![0; LBA_STATUS_HEADER_BYTES];
        for run in runs {
            data.extend_from_slice(&run.address.to_be_bytes());
            data.extend_from_slice(&u32::try_from(run.count).unwrap_or(u32::MAX).to_be_bytes());
            data.extend_from_slice(&[u8::from(!run.mapped), 0, 0, 0]);
        }
        let length = u32::try_from(data.len() - 4).expect("bounded by LBA_STATUS_RUNS");
        data[0..4].copy_from_slice(&length.to_be_bytes());
        Ok(Reply::parameters(data, allocation_length))
    }

    /// Up to `limit` runs from `address` on. Looking at mapped blocks costs time, so that the answer
    /// ends once enough of them have been seen.
    async fn allocation_runs(&self, address: u64, limit: usize) -> Result<Vec<AllocationRun>, Failure> {
        let end = self.geometry().block_count;
        let window = u64::from(LBA_STATUS_WINDOW_BYTES / self.block_bytes());
        let mut mapped_left = LBA_STATUS_WINDOWS * window;
        let mut runs: Vec<AllocationRun> = Vec::new();
        let mut at = address;
        while at < end && mapped_left > 0 {
            // One more than fits, so that the last one that does is complete.
            let found = self.medium()?.allocation(at, window.min(end - at), limit + 1).await?;
            let Some(last) = found.last() else { break };
            at = last.address + last.count;
            for run in found {
                if run.mapped {
                    mapped_left = mapped_left.saturating_sub(run.count);
                }
                match runs.last_mut() {
                    Some(before)
                        if before.mapped == run.mapped && before.count + run.count <= u64::from(u32::MAX) =>
                    {
                        before.count += run.count;
                    }
                    _ => runs.push(run),
                }
            }
            if runs.len() > limit {
                break;
            }
        }
        runs.truncate(limit);
        Ok(runs)
    }
}

const UNMAP_HEADER_BYTES: usize = 8;
const WRITE_SAME_16: u8 = 0x93;
const LBA_STATUS_HEADER_BYTES: usize = 8;
const LBA_STATUS_BYTES: usize = 16;
/// Range that the device is asked about at a time.
const LBA_STATUS_WINDOW_BYTES: u32 = 256 << 20;
/// Windows' worth of mapped blocks after which an answer ends.
const LBA_STATUS_WINDOWS: u64 = 8;

/// Adds `extent`, to the one before where it goes on from there: a list of single blocks is one change of the
/// volume, not as many.
fn append_extent(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.address + last.count == extent.address => last.count += extent.count,
        _ => extents.push(extent),
    }
}

#[cfg(test)]
mod tests {
    use super::{Extent, append_extent};
    use crate::scsi::command::Status;
    use crate::scsi::testing::{Bench, good, sense_of};

    fn unmap(bench: &Bench, descriptors: &[(u64, u32)]) -> crate::scsi::command::Response {
        let mut list = vec![0; 8];
        let bytes = u16::try_from(descriptors.len() * 16).unwrap();
        list[0..2].copy_from_slice(&(bytes + 6).to_be_bytes());
        list[2..4].copy_from_slice(&bytes.to_be_bytes());
        for (address, count) in descriptors {
            list.extend_from_slice(&address.to_be_bytes());
            list.extend_from_slice(&count.to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        let [high, low] = u16::try_from(list.len()).unwrap().to_be_bytes();
        bench.send_data(&[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], &list)
    }

    fn lba_status(bench: &Bench, address: u8, allocation_length: u8) -> Vec<u8> {
        good(&bench.send(&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, address, 0, 0, 0, allocation_length, 0, 0]))
    }

    #[test]
    fn unmapped_blocks_are_deallocated_and_read_as_zeros() {
        let bench = Bench::new();
        bench.send_data(&[0x0a, 0, 0, 0, 32, 0], &[7; 32 * 512]);
        assert_eq!(unmap(&bench, &[(8, 8), (24, 0)]).status, Status::Good);
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 8, 8, 0])), [0; 8 * 512]);
        let status = lba_status(&bench, 0, 255);
        assert_eq!(status[..4], [0, 0, 0, 4 + 4 * 16]);
        assert_eq!(status[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0]);
        assert_eq!(status[24..40], [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 1, 0, 0, 0]);
        // One descriptor's room: one descriptor, from the address that was asked for.
        assert_eq!(
            lba_status(&bench, 9, 24)[4..24],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 7, 1, 0, 0, 0]
        );
    }

    #[test]
    fn extents_that_go_on_from_each_other_are_one() {
        let mut extents = Vec::new();
        for (address, count) in [(0, 1), (1, 1), (2, 6), (9, 1), (8, 1)] {
            append_extent(&mut extents, Extent { address, count });
        }
        let extents: Vec<_> = extents.iter().map(|extent| (extent.address, extent.count)).collect();
        assert_eq!(extents, [(0, 8), (9, 1), (8, 1)]);
    }

    #[test]
    fn unmap_checks_everything_first() {
        let bench = Bench::new();
        bench.send_data(&[0x0a, 0, 0, 0, 8, 0], &[7; 8 * 512]);
        assert_eq!(sense_of(&unmap(&bench, &[(0, 8), (16384, 1)])), (5, 0x2100));
        assert_eq!(sense_of(&unmap(&bench, &[(u64::MAX, u32::MAX)])), (5, 0x2100));
        assert_eq!(sense_of(&unmap(&bench, &[(0, 1); 257])), (5, 0x2600));
        assert_eq!(sense_of(&unmap(&bench, &[(0, 16384); 65])), (5, 0x2600));
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 8, 0])), [7; 8 * 512]);
        assert_eq!(sense_of(&bench.send_data(&[0x42, 0, 0, 0, 0, 0, 0, 0, 4, 0], &[0; 4])), (5, 0x1a00));
        assert_eq!(bench.send(&[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0]).status, Status::Good);
        assert_eq!(sense_of(&bench.send(&[0x42, 1, 0, 0, 0, 0, 0, 0, 0, 0])), (5, 0x2400));
    }

    #[test]
    fn write_same_writes_patterns_and_punches_zeros() {
        let bench = Bench::new();
        let write_same = |flags, count, data: &[u8]| {
            bench.send_data(&[0x93, flags, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, count, 0, 0], data)
        };
        assert_eq!(write_same(0, 3, &[9; 512]).status, Status::Good);
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 4, 3, 0])), [9; 3 * 512]);
        // A pattern with UNMAP is written, since unmapped blocks would not hold it.
        assert_eq!(write_same(0x08, 1, &[5; 512]).status, Status::Good);
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 4, 1, 0])), [5; 512]);
        assert_eq!(write_same(0, 2, &[0; 512]).status, Status::Good);
        assert_eq!(write_same(0x01, 1, &[]).status, Status::Good);
        assert_eq!(bench.device.state().blocks.borrow().len(), 1);
        assert_eq!(sense_of(&write_same(0, 0, &[0; 512])), (5, 0x2400));
        assert_eq!(sense_of(&write_same(0x10, 1, &[0; 512])), (5, 0x2400));
        assert_eq!(sense_of(&write_same(0, 1, &[0; 1024])), (5, 0x0e03));
        assert_eq!(sense_of(&write_same(0, 1, &[0; 100])), (5, 0x0e03));
    }
}
