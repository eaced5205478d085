//! SCSI Data-Out and the R2Ts that ask for it (RFC 7143 sections 11.7 and 11.8).
//!
//! Data must come in order: sequences as they were asked for, PDUs of a sequence by DataSN and
//! without a gap in their offsets (DataPDUInOrder and DataSequenceInOrder are Yes). What does not
//! fit is thrown away and fails its command; the response waits for the F bit of every sequence.

use super::Channel;
use super::full_feature::{DataOutPiece, FullFeature, Meaning};
use super::receive::Destination;
use super::task::{Sequence, Task, TaskFailure, TaskStage};
use crate::iscsi::pdu::{BasicHeader, DataOut, InitiatorTaskTag, ReadyToTransfer, RejectReason};

impl FullFeature {
    /// Looks at a Data-Out's header and finds the place of its data.
    pub(super) fn begin_data_out(
        &mut self,
        channel: &Channel,
        header: BasicHeader,
        data: &DataOut,
        length: u32,
    ) -> (Destination, Meaning) {
        let refused =
            |header| (Destination::Discard, Meaning::Refused(header, RejectReason::InvalidPduField));
        if self.retired.contains(&data.initiator_task_tag.0) {
            return (Destination::Discard, Meaning::Ignored);
        }
        let Some(slot) = self.tasks.find(data.initiator_task_tag) else { return refused(header) };
        let Some(task) = self.tasks.get_mut(slot) else { return refused(header) };
        let tag = data.target_transfer_tag;
        let Some(index) = task.transfer.sequences.iter().position(|sequence| sequence.tag == tag) else {
            if matches!(task.stage, TaskStage::Early | TaskStage::Collecting) {
                task.failure.get_or_insert(TaskFailure::UnexpectedUnsolicitedData);
            }
            return refused(header);
        };
        task.transfer.touched = channel.now;
        let sequence = &mut task.transfer.sequences[index];
        let failure = sequence.check(data, length);
        // Carry on from this PDU, so that one loss is not reported with every PDU after it.
        sequence.next_data_sn = data.data_sn.wrapping_add(1);
        if let Some(failure) = failure {
            task.failure.get_or_insert(failure);
        }
        let meaning = Meaning::DataOut(DataOutPiece { header, slot, tag, is_final: data.is_final });
        if task.failure.is_some() {
            return (Destination::Discard, meaning);
        }
        let offset = sequence.offset;
        sequence.offset += length;
        match task.buffer.take() {
            Some(buffer) => (Destination::Transfer { buffer, offset: offset as usize }, meaning),
            None => (Destination::Discard, meaning),
        }
    }

    /// A Data-Out is in.
    pub(super) fn finish_data_out(
        &mut self,
        channel: &mut Channel,
        piece: &DataOutPiece,
        destination: Destination,
        is_intact: bool,
    ) {
        if !is_intact {
            self.reject(channel, &piece.header, RejectReason::DataDigestError);
        }
        let Some(task) = self.tasks.get_mut(piece.slot) else { return };
        if let Destination::Transfer { buffer, .. } = destination {
            task.buffer = Some(buffer);
        }
        if !is_intact {
            task.failure.get_or_insert(TaskFailure::ProtocolServiceCrc);
        }
        if piece.is_final {
            task.end_sequence(piece);
            self.progress(channel, piece.slot);
        }
    }

    /// Asks for data as far as MaxOutstandingR2T and MaxBurstLength allow.
    pub(super) fn solicit(&mut self, channel: &mut Channel, slot: u32) {
        let limit = usize::from(self.parameters.outstanding_r2t);
        loop {
            let Some(task) = self.tasks.get(slot) else { return };
            let transfer = &task.transfer;
            // While unsolicited data is coming nobody knows how much is left to ask for.
            let is_unsolicited = transfer.sequences.iter().any(Sequence::is_unsolicited);
            if is_unsolicited || transfer.sequences.len() >= limit || transfer.solicited >= transfer.wanted {
                return;
            }
            let offset = transfer.solicited;
            let length = (transfer.wanted - offset).min(self.parameters.burst_length);
            let request = ReadyToTransfer {
                lun: task.lun,
                initiator_task_tag: task.initiator_task_tag,
                target_transfer_tag: self.new_transfer_tag(),
                serials: self.serials(channel),
                r2t_sn: 0,
                buffer_offset: offset,
                desired_data_transfer_length: length,
            };
            self.send_r2t(channel, slot, request);
        }
    }

    /// Remembers a tag whose data is to be ignored from now on.
    pub(super) fn retire(&mut self, tag: InitiatorTaskTag) {
        if self.retired.len() == RETIRED_LIMIT {
            self.retired.pop_front();
        }
        self.retired.push_back(tag.0);
    }

    fn send_r2t(&mut self, channel: &mut Channel, slot: u32, mut request: ReadyToTransfer) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        let transfer = &mut task.transfer;
        request.r2t_sn = transfer.next_r2t_sn;
        transfer.next_r2t_sn += 1;
        let offset = request.buffer_offset;
        let end = offset + request.desired_data_transfer_length;
        transfer.solicited = end;
        transfer.touched = channel.now;
        let tag = request.target_transfer_tag;
        transfer.sequences.push(Sequence { tag, offset, end, next_data_sn: 0 });
        channel.transmitter.push_pdu(request.emit(), &[], self.parameters.digests);
    }
}

impl Task {
    /// The F bit of a sequence has come.
    fn end_sequence(&mut self, piece: &DataOutPiece) {
        let transfer = &mut self.transfer;
        let Some(index) = transfer.sequences.iter().position(|sequence| sequence.tag == piece.tag) else {
            return;
        };
        let sequence = transfer.sequences.remove(index);
        if sequence.is_unsolicited() {
            // The rest is asked for.
            transfer.solicited = sequence.offset;
        } else if sequence.offset < sequence.end {
            self.failure.get_or_insert(TaskFailure::IncorrectAmountOfData);
        }
    }
}

impl Sequence {
    fn is_unsolicited(&self) -> bool {
        self.tag == crate::iscsi::pdu::TargetTransferTag::RESERVED
    }

    /// Whether a PDU with `length` bytes is the next of this sequence.
    fn check(&self, data: &DataOut, length: u32) -> Option<TaskFailure> {
        if data.data_sn != self.next_data_sn {
            return Some(TaskFailure::ProtocolServiceCrc);
        }
        let fits = data.buffer_offset == self.offset && length <= self.end.saturating_sub(self.offset);
        (!fits).then_some(TaskFailure::IncorrectAmountOfData)
    }
}

/// Tags that are remembered after an abort.
const RETIRED_LIMIT: usize = 16;
