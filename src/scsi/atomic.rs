//! COMPARE AND WRITE and ORWRITE (16) (SBC-3 sections 5.2 and 5.9): reading, deciding and writing as
//! one step that no other write comes between.

use bytes::Bytes;

use super::cdb::Cdb;
use super::command::{Failure, Outcome, Reply, Status, joined, slice_pieces, total_length};
use super::execution::Context;
use super::logical_unit::LogicalUnit;
use super::medium::{Extent, addressed, check_protect};
use super::mutant::{self, Mutant};
use super::sense::{AdditionalSense, Sense, SenseKey};
use crate::volume::device::{BlockDevice, CompareOutcome};

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// COMPARE AND WRITE of up to 255 blocks.
    pub(super) async fn compare_and_write(
        &self,
        context: &Context<'_>,
        cdb: &Cdb,
        data_out: Vec<Bytes>,
    ) -> Outcome {
        check_protect(cdb)?;
        let extent = Extent { address: cdb.u64(2), count: u64::from(cdb.byte(13)) };
        self.check_extent(extent)?;
        self.check_writable()?;
        let half = usize::from(cdb.byte(13)) * self.block_bytes() as usize;
        context.wants(2 * half as u64);
        // Another amount than two instances of the blocks means another command.
        if total_length(&data_out) != 2 * half {
            return Err(Sense::invalid_cdb_field(13).into());
        }
        if half == 0 {
            return Ok(Reply::good());
        }
        let compare = joined(&slice_pieces(&data_out, 0, half), half);
        let data = joined(&slice_pieces(&data_out, half, 2 * half), half);
        if mutant::is(Mutant::CompareThenWrite) {
            let stored = self.medium()?.read(extent.address, extent.count).await?;
            if joined(&stored, half) == compare {
                self.medium()?.write(extent.address, vec![data]).await?;
                return Ok(Reply::good());
            }
        }
        match self.medium()?.compare_and_write(extent.address, compare, data).await? {
            CompareOutcome::Written => {
                self.statistics().count_write(half);
                Ok(Reply::good())
            }
            CompareOutcome::Miscompare { offset } => {
                let code = AdditionalSense::MISCOMPARE_DURING_VERIFY;
                Err(Sense::new(SenseKey::Miscompare, code).with_information(offset).into())
            }
        }
    }

    /// ORWRITE (16): the set operation, without a generation.
    pub(super) async fn or_write(&self, context: &Context<'_>, cdb: &Cdb, data_out: Vec<Bytes>) -> Outcome {
        check_protect(cdb)?;
        let extent = addressed(cdb);
        self.check_extent(extent)?;
        let bytes = self.transfer_bytes(cdb, extent.count)?;
        self.check_writable()?;
        let data = joined(&self.data_out(context, data_out, bytes)?, bytes);
        if bytes == 0 {
            return Ok(Reply::good());
        }
        for _ in 0..OR_WRITE_ATTEMPTS {
            context.check_aborted()?;
            let stored = self.medium()?.read(extent.address, extent.count).await?;
            let stored = joined(&stored, bytes);
            let united: Bytes = stored.iter().zip(&data).map(|(old, new)| old | new).collect();
            context.check_aborted()?;
            if self.medium()?.compare_and_write(extent.address, stored, united).await?
                == CompareOutcome::Written
            {
                self.statistics().count_write(bytes);
                return Ok(Reply::good());
            }
        }
        // Others keep writing the same blocks: the initiator tries again later.
        Err(Failure::Status(Status::Busy))
    }
}

/// How often ORWRITE starts over because another write came between its read and its write.
const OR_WRITE_ATTEMPTS: usize = 32;

#[cfg(test)]
mod tests {
    use crate::scsi::command::Status;
    use crate::scsi::testing::{Bench, good, sense_of};

    fn compare_and_write(bench: &Bench, count: u8, data: &[u8]) -> crate::scsi::command::Response {
        bench.send_data(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, count, 0, 0], data)
    }

    #[test]
    fn several_blocks_are_compared_and_written_at_once() {
        let bench = Bench::new();
        let mut data = vec![0; 1024];
        data.extend_from_slice(&[6; 1024]);
        assert_eq!(compare_and_write(&bench, 2, &data).status, Status::Good);
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 2, 2, 0])), [6; 1024]);
        data[..1024].fill(6);
        data[1000] = 5;
        data[1024..].fill(1);
        let response = compare_and_write(&bench, 2, &data);
        assert_eq!(sense_of(&response), (0xe, 0x1d00));
        assert_eq!(response.sense[3..7], 1000u32.to_be_bytes());
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 2, 2, 0])), [6; 1024]);
        assert_eq!(sense_of(&compare_and_write(&bench, 2, &[0; 1024])), (5, 0x2400));
        assert_eq!(sense_of(&compare_and_write(&bench, 0, &[0; 1024])), (5, 0x2400));
        assert_eq!(compare_and_write(&bench, 0, &[]).status, Status::Good);
    }

    #[test]
    fn orwrite_adds_bits() {
        let bench = Bench::new();
        let or_write =
            |data: &[u8]| bench.send_data(&[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0], data);
        assert_eq!(or_write(&[0xa5; 512]).status, Status::Good);
        assert_eq!(or_write(&[0x5a; 512]).status, Status::Good);
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 2, 1, 0])), [0xff; 512]);
    }
}
