//! Reading, writing, verifying and synchronizing (SBC-3 sections 5.10 to 5.12, 5.22, 5.31 to 5.43):
//! the commands that move blocks, and the checks that all medium commands share.

use bytes::Bytes;

use super::cdb::Cdb;
use super::command::{Failure, Outcome, Reply, Status, joined, slice_pieces, total_length};
use super::execution::Context;
use super::limits;
use super::logical_unit::LogicalUnit;
use super::sense::{AdditionalSense, Sense, SenseKey};
use crate::volume::device::{BlockDevice, CompareOutcome};

/// A range of logical blocks inside the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) address: u64,
    pub(super) count: u64,
}

/// LOGICAL BLOCK ADDRESS and TRANSFER LENGTH (or their like) as they stand in the CDB.
pub(super) fn addressed(cdb: &Cdb) -> Extent {
    match cdb.opcode() >> 5 {
        0 => {
            // Zero means 256 blocks (SBC-3 section 5.10).
            let count = if cdb.byte(4) == 0 { 256 } else { u64::from(cdb.byte(4)) };
            Extent { address: u64::from(cdb.u32(0) & 0x1f_ffff), count }
        }
        1 | 2 => Extent { address: u64::from(cdb.u32(2)), count: u64::from(cdb.u16(7)) },
        5 => Extent { address: u64::from(cdb.u32(2)), count: u64::from(cdb.u32(6)) },
        _ => Extent { address: cdb.u64(2), count: u64::from(cdb.u32(10)) },
    }
}

/// Byte of the CDB that holds the transfer length, for field pointers.
pub(super) fn length_field(cdb: &Cdb) -> u16 {
    match cdb.opcode() >> 5 {
        0 => 4,
        1 | 2 => 7,
        5 => 6,
        _ => 10,
    }
}

/// RDPROTECT, WRPROTECT, VRPROTECT and ORPROTECT: anything but zero asks for protection information,
/// which there is none of.
pub(super) fn check_protect(cdb: &Cdb) -> Result<(), Failure> {
    if cdb.byte(1) & 0xe0 != 0 {
        return Err(Sense::invalid_cdb_bit(1, 7).into());
    }
    Ok(())
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// Checks that `extent` lies inside the device.
    pub(super) fn check_extent(&self, extent: Extent) -> Result<(), Failure> {
        let blocks = self.geometry().block_count;
        if extent.count > blocks || extent.address > blocks - extent.count {
            return Err(Sense::illegal(AdditionalSense::LBA_OUT_OF_RANGE).into());
        }
        Ok(())
    }

    /// Bytes in `count` blocks of a data transfer, when they are within MAXIMUM TRANSFER LENGTH.
    pub(super) fn transfer_bytes(&self, cdb: &Cdb, count: u64) -> Result<usize, Failure> {
        let bytes = count.saturating_mul(u64::from(self.block_bytes()));
        if bytes > u64::from(limits::TRANSFER_BYTES) {
            return Err(Sense::invalid_cdb_field(length_field(cdb)).into());
        }
        Ok(usize::try_from(bytes).expect("at most TRANSFER_BYTES"))
    }

    /// The first `bytes` of what the initiator sent; all of it has to be there.
    pub(super) fn data_out(
        &self,
        context: &Context<'_>,
        data_out: Vec<Bytes>,
        bytes: usize,
    ) -> Result<Vec<Bytes>, Failure> {
        context.wants(bytes as u64);
        let sent = total_length(&data_out);
        if sent < bytes {
            return Err(Sense::illegal(AdditionalSense::INVALID_FIELD_IN_INFORMATION_UNIT).into());
        }
        Ok(if sent == bytes { data_out } else { slice_pieces(&data_out, 0, bytes) })
    }

    /// What a write of `bytes` gets from the initiator. One may announce fewer bytes than its CDB asks to
    /// write; these are written then, and the residual count tells it (RFC 7143 section 11.4.5.1).
    fn data_to_write(&self, context: &Context<'_>, data_out: Vec<Bytes>, bytes: usize) -> Vec<Bytes> {
        context.wants(bytes as u64);
        if total_length(&data_out) <= bytes { data_out } else { slice_pieces(&data_out, 0, bytes) }
    }

    /// Writes `data` at `address`; where it ends inside a block, the rest of that block stays.
    async fn write_data(&self, context: &Context<'_>, address: u64, data: Vec<Bytes>) -> Result<(), Failure> {
        let block_bytes = self.block_bytes() as usize;
        let bytes = total_length(&data);
        let whole = bytes - bytes % block_bytes;
        if whole == bytes {
            // The common case hands the pieces on as they came.
            if bytes > 0 {
                self.medium()?.write(address, data).await?;
            }
        } else {
            if whole > 0 {
                self.medium()?.write(address, slice_pieces(&data, 0, whole)).await?;
            }
            let part = joined(&slice_pieces(&data, whole, bytes), block_bytes);
            self.write_part(context, address + (whole / block_bytes) as u64, &part).await?;
        }
        self.statistics().count_write(bytes);
        Ok(())
    }

    /// Writes `part` to the start of one block, such that no other write to the block is lost.
    async fn write_part(&self, context: &Context<'_>, address: u64, part: &[u8]) -> Result<(), Failure> {
        for _ in 0..PART_ATTEMPTS {
            context.check_aborted()?;
            let stored = joined(&self.medium()?.read(address, 1).await?, self.block_bytes() as usize);
            let merged: Bytes = part.iter().chain(&stored[part.len()..]).copied().collect();
            context.check_aborted()?;
            if self.medium()?.compare_and_write(address, stored, merged).await? == CompareOutcome::Written {
                return Ok(());
            }
        }
        Err(Failure::Status(Status::Busy)) // others keep writing the block
    }

    /// READ (6), (10), (12), (16).
    pub(super) async fn read(&self, cdb: &Cdb, expected_in: usize) -> Outcome {
        if cdb.opcode() != 0x08 {
            check_protect(cdb)?;
        }
        let extent = addressed(cdb);
        self.check_extent(extent)?;
        let bytes = self.transfer_bytes(cdb, extent.count)?;
        // What the initiator does not accept is not read: its memory is not accounted for either.
        let block_bytes = self.block_bytes() as usize;
        let wanted = (expected_in.div_ceil(block_bytes) as u64).min(extent.count);
        let data_in = match wanted {
            0 => Vec::new(),
            count => self.medium()?.read(extent.address, count).await?,
        };
        self.statistics().count_read(total_length(&data_in));
        Ok(Reply { data_in, whole_length: Some(bytes as u64) })
    }

    /// WRITE (6), (10), (12), (16). Every write is through to stable media, so FUA adds nothing.
    pub(super) async fn write(&self, context: &Context<'_>, cdb: &Cdb, data_out: Vec<Bytes>) -> Outcome {
        if cdb.opcode() != 0x0a {
            check_protect(cdb)?;
        }
        let extent = addressed(cdb);
        self.check_extent(extent)?;
        let bytes = self.transfer_bytes(cdb, extent.count)?;
        self.check_writable()?;
        let data = self.data_to_write(context, data_out, bytes);
        self.write_data(context, extent.address, data).await?;
        Ok(Reply::good())
    }

    /// WRITE AND VERIFY (10), (12), (16): written, read back from the device and compared. BYTCHK
    /// makes no difference to that, since both kinds of verification are done.
    pub(super) async fn write_and_verify(
        &self,
        context: &Context<'_>,
        cdb: &Cdb,
        data_out: Vec<Bytes>,
    ) -> Outcome {
        check_protect(cdb)?;
        if byte_check(cdb) > 1 {
            return Err(Sense::invalid_cdb_bit(1, 2).into());
        }
        let extent = addressed(cdb);
        self.check_extent(extent)?;
        let bytes = self.transfer_bytes(cdb, extent.count)?;
        self.check_writable()?;
        let data = self.data_to_write(context, data_out, bytes);
        self.write_data(context, extent.address, data.clone()).await?;
        let count = (total_length(&data) / self.block_bytes() as usize) as u64;
        self.compare(context, Extent { count, ..extent }, &data).await?;
        Ok(Reply::good())
    }

    /// VERIFY (10), (12), (16) (SBC-3 section 5.31).
    pub(super) async fn verify(&self, context: &Context<'_>, cdb: &Cdb, data_out: Vec<Bytes>) -> Outcome {
        check_protect(cdb)?;
        let extent = addressed(cdb);
        self.check_extent(extent)?;
        match byte_check(cdb) {
            // The medium alone: reading it verifies the checksums.
            0 => {
                let mut rest = extent;
                while rest.count > 0 {
                    let count = rest.count.min(self.chunk_blocks());
                    context.check_aborted()?;
                    self.medium()?.read(rest.address, count).await?;
                    rest = Extent { address: rest.address + count, count: rest.count - count };
                }
            }
            1 => {
                let bytes = self.transfer_bytes(cdb, extent.count)?;
                let data = self.data_out(context, data_out, bytes)?;
                self.compare(context, extent, &data).await?;
            }
            // One block is sent and compared with each block.
            3 => {
                let bytes = if extent.count == 0 { 0 } else { self.block_bytes() as usize };
                let block = self.data_out(context, data_out, bytes)?;
                for index in 0..extent.count {
                    context.check_aborted()?;
                    let one = Extent { address: extent.address + index, count: 1 };
                    self.compare_at(context, one, &block, index * u64::from(self.block_bytes())).await?;
                }
            }
            _ => return Err(Sense::invalid_cdb_bit(1, 2).into()),
        }
        Ok(Reply::good())
    }

    /// SYNCHRONIZE CACHE (10), (16). There is no volatile cache; the flush is a barrier all the same.
    pub(super) async fn synchronize_cache(&self, cdb: &Cdb) -> Outcome {
        let extent = addressed(cdb);
        // Zero blocks: from the address to the end.
        self.check_extent(extent)?;
        self.medium()?.flush().await?;
        Ok(Reply::good())
    }

    /// Compares the medium with `data`, a chunk at a time.
    async fn compare(&self, context: &Context<'_>, extent: Extent, data: &[Bytes]) -> Result<(), Failure> {
        self.compare_at(context, extent, data, 0).await
    }

    /// The same, where `extent` starts `base` bytes into what the command compares.
    async fn compare_at(
        &self,
        context: &Context<'_>,
        extent: Extent,
        data: &[Bytes],
        base: u64,
    ) -> Result<(), Failure> {
        let block_bytes = u64::from(self.block_bytes());
        let mut done = 0;
        while done < extent.count {
            context.check_aborted()?;
            let count = (extent.count - done).min(self.chunk_blocks());
            let from = usize::try_from(done * block_bytes).expect("within the data, which is in memory");
            let to = usize::try_from((done + count) * block_bytes).expect("within the data");
            let stored = self.medium()?.read(extent.address + done, count).await?;
            let expected = slice_pieces(data, from, to);
            if let Some(offset) = first_difference(&stored, &expected) {
                let code = AdditionalSense::MISCOMPARE_DURING_VERIFY;
                let offset = base + done * block_bytes + offset as u64;
                return Err(Sense::new(SenseKey::Miscompare, code).with_information(offset).into());
            }
            done += count;
        }
        Ok(())
    }

    /// Blocks that commands which work through a range take at a time.
    pub(super) fn chunk_blocks(&self) -> u64 {
        u64::from(limits::CHUNK_BYTES / self.block_bytes())
    }
}

/// How often writing part of a block starts over because another write came between.
const PART_ATTEMPTS: usize = 32;

/// BYTCHK of VERIFY and WRITE AND VERIFY.
fn byte_check(cdb: &Cdb) -> u8 {
    cdb.byte(1) >> 1 & 3
}

/// Byte offset of the first difference between two equally long sequences of pieces.
fn first_difference(left: &[Bytes], right: &[Bytes]) -> Option<usize> {
    let (mut left, mut right) = (left.iter(), right.iter());
    let (mut a, mut b): (&[u8], &[u8]) = (&[], &[]);
    let mut position = 0;
    loop {
        while a.is_empty() {
            a = left.next()?;
        }
        while b.is_empty() {
            b = right.next()?;
        }
        let length = a.len().min(b.len());
        if a[..length] != b[..length] {
            return a.iter().zip(b).position(|(x, y)| x != y).map(|at| position + at);
        }
        position += length;
        (a, b) = (&a[length..], &b[length..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_across_pieces() {
        let pieces = |parts: &[&'static str]| -> Vec<Bytes> {
            parts.iter().map(|part| Bytes::from_static(part.as_bytes())).collect()
        };
        assert_eq!(first_difference(&pieces(&["ab", "cd"]), &pieces(&["abc", "d"])), None);
        assert_eq!(first_difference(&pieces(&["ab", "cx"]), &pieces(&["abc", "d"])), Some(3));
        assert_eq!(first_difference(&pieces(&["x"]), &pieces(&["a"])), Some(0));
    }

    #[test]
    fn cdb_families_place_address_and_length() {
        let read6 = Cdb::new(&[0x08, 0xff, 0xff, 0xff, 0, 0]);
        assert_eq!(addressed(&read6), Extent { address: 0x1f_ffff, count: 256 });
        let read10 = Cdb::new(&[0x28, 0, 0, 0, 1, 2, 0, 3, 4, 0]);
        assert_eq!(addressed(&read10), Extent { address: 0x102, count: 0x304 });
        let read12 = Cdb::new(&[0xa8, 0, 0, 0, 1, 2, 0, 0, 3, 4, 0, 0]);
        assert_eq!(addressed(&read12), Extent { address: 0x102, count: 0x304 });
        let read16 = Cdb::new(&[0x88, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 3, 4, 0, 0]);
        assert_eq!(addressed(&read16), Extent { address: 0x0100_0000_0000_0002, count: 0x304 });
    }
}
