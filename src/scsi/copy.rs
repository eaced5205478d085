//! Third-party copy (SPC-4 sections 6.4 and 6.17): EXTENDED COPY (LID1) from block device to block
//! device, and RECEIVE COPY RESULTS.
//!
//! A copy reaches only logical units that its initiator may reach, which a [`CopyResolver`] decides;
//! reservations and write protection there count as if the initiator had written itself. At the
//! destination each copy is a task of that unit's own set, so that whoever changes reservations or
//! resets the unit there waits for it (I16, I17).

use std::rc::Rc;

use bytes::Bytes;

use super::cdb::Cdb;
use super::command::{Failure, Outcome, Reply, joined, total_length};
use super::copy_parameters::{CopyList, Segment};
use super::copy_results::CopyResult;
use super::execution::Context;
use super::identity::{InitiatorPort, NexusId};
use super::limits;
use super::logical_unit::LogicalUnit;
use super::medium::Extent;
use super::operation::Access;
use super::sense::{AdditionalSense, Sense, SenseKey};
use super::task_set::{Task, TaskAttribute};
use crate::volume::device::BlockDevice;

/// Finds the logical units that a copy may name.
pub trait CopyResolver<D> {
    /// The logical unit whose NAA designator is `naa`, if `initiator` may reach it.
    fn resolve(&self, initiator: &InitiatorPort, naa: &[u8; 16]) -> Option<Rc<LogicalUnit<D>>>;
}

/// A resolver for copies inside a single logical unit only.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOthers;

impl<D> CopyResolver<D> for NoOthers {
    fn resolve(&self, _: &InitiatorPort, _: &[u8; 16]) -> Option<Rc<LogicalUnit<D>>> {
        None
    }
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// EXTENDED COPY (LID1).
    pub(super) async fn extended_copy(
        &self,
        context: &Context<'_>,
        cdb: &Cdb,
        data_out: Vec<Bytes>,
    ) -> Outcome {
        let length = usize::try_from(cdb.u32(10)).unwrap_or(usize::MAX);
        context.wants(length as u64);
        if length == 0 {
            return Ok(Reply::good());
        }
        if length > limits::copy_parameter_bytes() || total_length(&data_out) < length {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH).into());
        }
        let list = CopyList::parse(&joined(&data_out, length))?;
        let Some(initiator) = self.with_nexus(context.nexus(), |nexus| nexus.initiator.clone()) else {
            return Err(Failure::Aborted);
        };
        let mut result = CopyResult::new(context.nexus(), list.id, list.segments.len());
        let outcome = self.copy_segments(context, &initiator, &list, &mut result).await;
        if let Err(Failure::Check(sense)) = &outcome {
            result.fail(*sense);
        }
        if list.holds_result {
            self.copy_results().borrow_mut().keep(result);
        }
        outcome.map(|()| Reply::good())
    }

    async fn copy_segments(
        &self,
        context: &Context<'_>,
        initiator: &InitiatorPort,
        list: &CopyList,
        result: &mut CopyResult,
    ) -> Result<(), Failure> {
        for segment in &list.segments {
            let end = |index: u16| -> Result<Rc<Self>, Failure> {
                let naa = list.targets.get(usize::from(index)).ok_or_else(unreachable_target)?;
                self.copy_target(initiator, naa).ok_or_else(unreachable_target)
            };
            let (source, destination) = (end(segment.source)?, end(segment.destination)?);
            let bytes = copy_segment(context, initiator, segment, &source, &destination).await;
            result.segment_done(*bytes.as_ref().unwrap_or(&0));
            bytes.map_err(as_copy_failure)?;
        }
        Ok(())
    }

    fn copy_target(&self, initiator: &InitiatorPort, naa: &[u8; 16]) -> Option<Rc<Self>> {
        if *naa == self.identity().naa() {
            return Some(self.shared());
        }
        self.services().copies.resolve(initiator, naa)
    }

    /// Whether a copy of `initiator` may read or write here: reservations as if it had come through
    /// any of its nexuses, write protection, and a sanitize operation.
    fn check_copy(&self, initiator: &InitiatorPort, access: Access) -> Result<(), Failure> {
        self.sanitizer().check(access)?;
        if access == Access::Write {
            self.check_writable()?;
        }
        if !self.initiator_may(initiator, access) {
            let code = AdditionalSense::COPY_TARGET_NOT_REACHABLE;
            return Err(Sense::new(SenseKey::CopyAborted, code).into());
        }
        Ok(())
    }

    /// The device, when this node serves the unit.
    fn copy_medium(&self) -> Result<Rc<D>, Failure> {
        self.device().filter(|_| self.services().access.may_serve()).ok_or_else(unreachable_target)
    }

    /// Enters a copy into this unit's task set.
    fn admit_copy(&self) -> Result<Task, Failure> {
        let admitted = self.tasks().admit(COPY_MANAGER, 0, TaskAttribute::HeadOfQueue);
        admitted.map_err(|_| Sense::new(SenseKey::CopyAborted, AdditionalSense::NONE).into())
    }
}

/// Copies one segment; gives back the bytes that were copied.
async fn copy_segment<D: BlockDevice + 'static>(
    context: &Context<'_>,
    initiator: &InitiatorPort,
    segment: &Segment,
    source: &LogicalUnit<D>,
    destination: &LogicalUnit<D>,
) -> Result<u64, Failure> {
    let unit_bytes = if segment.counts_destination { destination } else { source }.block_bytes();
    let bytes = u64::from(segment.blocks) * u64::from(unit_bytes);
    if bytes > u64::from(limits::COPY_SEGMENT_BYTES) {
        return Err(Sense::illegal(AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST).into());
    }
    let (from_bytes, to_bytes) = (u64::from(source.block_bytes()), u64::from(destination.block_bytes()));
    if !bytes.is_multiple_of(from_bytes) || !bytes.is_multiple_of(to_bytes) {
        let code = AdditionalSense::UNEXPECTED_INEXACT_SEGMENT;
        return Err(Sense::new(SenseKey::CopyAborted, code).into());
    }
    let from = Extent { address: segment.source_address, count: bytes / from_bytes };
    let to = Extent { address: segment.destination_address, count: bytes / to_bytes };
    source.check_extent(from)?;
    destination.check_extent(to)?;
    let reader = source.admit_copy()?;
    let writer = destination.admit_copy()?;
    reader.start().await;
    writer.start().await;
    for task in [&reader, &writer] {
        task.set_uses_device();
        task.set_conflicts();
    }
    let mut done = 0;
    while done < bytes {
        context.check_aborted()?;
        if reader.is_stopped() || writer.is_stopped() {
            return Err(unreachable_target());
        }
        let step = u64::from(limits::CHUNK_BYTES).min(bytes - done);
        source.check_copy(initiator, Access::Read)?;
        let data = source.copy_medium()?.read(from.address + done / from_bytes, step / from_bytes).await?;
        destination.check_copy(initiator, Access::Write)?;
        if context.task().is_stopped() || writer.is_stopped() {
            continue; // noticed above
        }
        destination.copy_medium()?.write(to.address + done / to_bytes, data).await?;
        done += step;
    }
    source.statistics().count_read(usize::try_from(bytes).unwrap_or(usize::MAX));
    destination.statistics().count_write(usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(bytes)
}

/// A segment that fails aborts the copy (SPC-4 section 6.4.5): its sense key says so, except where the
/// parameter list itself is wrong.
fn as_copy_failure(failure: Failure) -> Failure {
    let Failure::Check(sense) = failure else { return failure };
    let code = match (sense.key, sense.code) {
        (SenseKey::IllegalRequest, AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST) => return failure,
        (SenseKey::IllegalRequest, AdditionalSense::LBA_OUT_OF_RANGE) => AdditionalSense::NONE,
        // Running out of space pauses a machine and loses nothing; hosts know that code only so.
        (SenseKey::DataProtect, _) => return failure,
        (SenseKey::CopyAborted, code) => code,
        _ => AdditionalSense::THIRD_PARTY_DEVICE_FAILURE,
    };
    Sense::new(SenseKey::CopyAborted, code).into()
}

fn unreachable_target() -> Failure {
    Sense::new(SenseKey::CopyAborted, AdditionalSense::COPY_TARGET_NOT_REACHABLE).into()
}

/// The nexus that copies have as tasks: no initiator's.
const COPY_MANAGER: NexusId = NexusId(u64::MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::command::{Response, Status};
    use crate::scsi::testing::{Bench, MemoryDevice, good, run, sense_of};

    /// Lets initiators reach one other unit.
    struct Reach(Rc<LogicalUnit<MemoryDevice>>, [u8; 16]);

    impl CopyResolver<MemoryDevice> for Reach {
        fn resolve(&self, _: &InitiatorPort, naa: &[u8; 16]) -> Option<Rc<LogicalUnit<MemoryDevice>>> {
            (*naa == self.1).then(|| self.0.clone())
        }
    }

    const OTHER: [u8; 16] = [0x60; 16];

    fn copy(bench: &Bench, id: u8, targets: &[[u8; 16]], segments: &[(u16, u16, u16, u64, u64)]) -> Response {
        let mut list = vec![0; 16];
        list[0] = id;
        for naa in targets {
            list.extend_from_slice(&[0xe4, 0, 0, 0, 1, 3, 0, 16]);
            list.extend_from_slice(naa);
            list.extend_from_slice(&[0; 8]);
        }
        let target_bytes = u16::try_from(list.len() - 16).unwrap();
        for (source, destination, blocks, from, to) in segments {
            list.extend_from_slice(&[0x02, 0, 0, 0x18]);
            list.extend_from_slice(&source.to_be_bytes());
            list.extend_from_slice(&destination.to_be_bytes());
            list.extend_from_slice(&[0, 0]);
            list.extend_from_slice(&blocks.to_be_bytes());
            list.extend_from_slice(&from.to_be_bytes());
            list.extend_from_slice(&to.to_be_bytes());
        }
        list[2..4].copy_from_slice(&target_bytes.to_be_bytes());
        let segment_bytes = u32::try_from(segments.len() * 28).unwrap();
        list[8..12].copy_from_slice(&segment_bytes.to_be_bytes());
        send(bench, &list)
    }

    fn send(bench: &Bench, list: &[u8]) -> Response {
        let mut cdb = [0; 16];
        cdb[0] = 0x83;
        cdb[10..14].copy_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
        bench.send_data(&cdb, list)
    }

    fn own(bench: &Bench) -> [u8; 16] {
        bench.unit.identity().naa()
    }

    #[test]
    fn segments_are_copied_and_reported() {
        let bench = Bench::new();
        bench.send_data(&[0x0a, 0, 0, 0, 8, 0], &[3; 8 * 512]);
        let done = copy(&bench, 7, &[own(&bench)], &[(0, 0, 4, 0, 100), (0, 0, 2, 0, 200)]);
        assert_eq!(done.status, Status::Good);
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 100, 5, 0])), [[3; 2048].as_slice(), &[0; 512]].concat());
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 200, 2, 0])), [3; 1024]);
        let status = good(&bench.send(&[0x84, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]));
        assert_eq!(status, [0, 0, 0, 8, 1, 0, 2, 1, 0, 0, 0, 3]);
        let unknown = bench.send(&[0x84, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]);
        assert_eq!(sense_of(&unknown), (5, 0x2400));
    }

    #[test]
    fn failures_abort_the_copy_with_details() {
        let bench = Bench::new();
        let naa = own(&bench);
        assert_eq!(sense_of(&copy(&bench, 1, &[naa], &[(0, 1, 1, 0, 1)])), (0xa, 0x0d02));
        assert_eq!(sense_of(&copy(&bench, 1, &[OTHER], &[(0, 0, 1, 0, 1)])), (0xa, 0x0d02));
        let response = copy(&bench, 1, &[naa], &[(0, 0, 1, 0, 1), (0, 0, 2, 0, 16383)]);
        assert_eq!(sense_of(&response), (0xa, 0x0000));
        let details = good(&bench.send(&[0x84, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]));
        assert_eq!((details[56], details[59], details[62]), (2, 18, 0xa));
        assert_eq!(sense_of(&copy(&bench, 1, &[naa; 17], &[])), (5, 0x2606));
        assert_eq!(sense_of(&copy(&bench, 1, &[naa], &[(0, 0, 0, 0, 0); 65])), (5, 0x2608));
        assert_eq!(sense_of(&send(&bench, &[0; 15])), (5, 0x1a00));
    }

    #[test]
    fn copies_between_units_need_reach_and_honour_reservations_there() {
        let other = Bench::with_geometry(4096, 4096);
        let bench = Bench::with_copies(512, Rc::new(Reach(other.unit.clone(), OTHER)));
        bench.send_data(&[0x0a, 0, 0, 0, 16, 0], &[3; 16 * 512]);
        let targets = [own(&bench), OTHER];
        assert_eq!(copy(&bench, 1, &targets, &[(0, 1, 16, 0, 5)]).status, Status::Good);
        assert_eq!(good(&other.send(&[0x08, 0, 0, 5, 2, 0])), [3; 8192]);
        // Not a whole number of the destination's blocks.
        assert_eq!(sense_of(&copy(&bench, 1, &targets, &[(0, 1, 4, 0, 5)])), (0xa, 0x260a));
        // Another initiator has reserved the destination.
        let stranger = other.attach(2);
        other.send_from(stranger, &[0x16, 0, 0, 0, 0, 0], &[]);
        assert_eq!(sense_of(&copy(&bench, 1, &targets, &[(0, 1, 16, 0, 5)])), (0xa, 0x0d02));
        run(other.unit.reset(None).wait());
        assert_eq!(copy(&bench, 1, &targets, &[(0, 1, 16, 0, 5)]).status, Status::Good);
    }
}
