//! How commands end: Data-In, status, sense, residual counts (RFC 7143 sections 11.4 and 11.7).

use bytes::Bytes;

use super::Channel;
use super::event::{ScsiResult, TaskId};
use super::full_feature::FullFeature;
use super::task::{Task, TaskFailure, TaskStage};
use crate::iscsi::pdu::{
    DataIn, DataInStatus, Residual, ResponseSerials, ScsiResponse, ServiceResponse, TargetTransferTag,
};

impl FullFeature {
    /// The driver has done with a command. Without a result there is no response.
    pub(super) fn complete_command(&mut self, channel: &mut Channel, id: TaskId, result: Option<ScsiResult>) {
        let Some(slot) = self.tasks.slot_of(id) else { return };
        let stage = self.tasks.get(slot).map(|task| task.stage);
        if !matches!(stage, Some(TaskStage::Delivered | TaskStage::Aborted)) {
            return;
        }
        let Some(task) = self.remove_task(slot) else { return };
        self.open_window();
        if let (Some(TaskStage::Delivered), Some(result)) = (stage, result) {
            self.respond(channel, task, result);
        }
        self.finish_logout_when_drained(channel);
    }

    /// Ends a command that is not executed.
    pub(super) fn fail(&mut self, channel: &mut Channel, slot: u32, failure: TaskFailure) {
        let Some(task) = self.remove_task(slot) else { return };
        self.open_window();
        let (status, sense) = failure.status_and_sense();
        self.respond(channel, task, ScsiResult { status, sense, ..ScsiResult::default() });
        self.release_held(channel);
    }

    fn respond(&mut self, channel: &mut Channel, mut task: Task, result: ScsiResult) {
        let available = result.data_in.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let sent = available.min(task.expected_in.into()) as u32;
        let is_bidirectional = task.reads && task.writes;
        let residual = match (task.reads, task.writes) {
            (true, false) => Residual::between(task.expected_in, result.transfer_length.max(available)),
            (_, true) => Residual::between(task.expected_out, result.transfer_length),
            (false, false) => Residual::between(0, result.transfer_length),
        };
        // Status comes with the last data where no sense data can belong to it (section 11.7.3).
        let is_plain = matches!(result.status, GOOD | CONDITION_MET) && result.sense.is_empty();
        let status = DataInStatus { status: result.status, residual };
        let status = (is_plain && sent > 0 && !is_bidirectional).then_some(status);
        let data_sn = self.send_data_in(channel, &task, &result.data_in, sent, status);
        if status.is_none() {
            let read_residual = if is_bidirectional {
                Residual::between(task.expected_in, available)
            } else {
                Residual::None
            };
            let response = ScsiResponse {
                initiator_task_tag: task.initiator_task_tag,
                response: ServiceResponse::COMPLETED,
                status: result.status,
                residual,
                bidirectional_read_residual: read_residual,
                expected_data_sn: data_sn + task.transfer.next_r2t_sn,
                serials: self.response_serials(channel),
            };
            let sense = self.sense_segment(&result);
            channel.transmitter.push_pdu(response.emit(), &sense, self.parameters.digests);
        }
        if let Some(charge) = task.charge.take().filter(|_| sent > 0) {
            channel.transmitter.push_release(charge);
        }
    }

    /// Sends `length` bytes of `data` and gives the number of PDUs that it took.
    fn send_data_in(
        &mut self,
        channel: &mut Channel,
        task: &Task,
        data: &[Bytes],
        length: u32,
        status: Option<DataInStatus>,
    ) -> u32 {
        let segment_limit = self.parameters.send_data_segment_length;
        let burst_length = self.parameters.burst_length;
        let mut pieces = Pieces { data, offset: 0 };
        let (mut offset, mut data_sn) = (0, 0);
        while offset < length {
            let burst_rest = burst_length - offset % burst_length;
            let segment = segment_limit.min(burst_rest).min(length - offset);
            let is_last = offset + segment == length;
            let status = status.filter(|_| is_last);
            let serials = match status {
                Some(_) => self.response_serials(channel),
                None => ResponseSerials { ..self.serials(channel) },
            };
            let header = DataIn {
                is_final: is_last || segment == burst_rest,
                acknowledge: false,
                status,
                lun: [0; 8],
                initiator_task_tag: task.initiator_task_tag,
                target_transfer_tag: TargetTransferTag::RESERVED,
                serials,
                data_sn,
                buffer_offset: offset,
            };
            let pieces = pieces.take(segment as usize);
            let digests = self.parameters.digests;
            channel.transmitter.push_data(header.emit(), pieces, segment as usize, digests);
            offset += segment;
            data_sn += 1;
        }
        data_sn
    }

    /// SenseLength and sense data (section 11.4.7), cut to what the initiator takes.
    fn sense_segment(&self, result: &ScsiResult) -> Vec<u8> {
        if result.sense.is_empty() {
            return Vec::new();
        }
        let limit = self.parameters.send_data_segment_length as usize - 2;
        let sense = &result.sense[..result.sense.len().min(limit).min(MAXIMUM_SENSE_LENGTH)];
        let length = sense.len() as u16;
        [&length.to_be_bytes()[..], sense].concat()
    }
}

/// Cuts a row of buffers into segments without copying.
struct Pieces<'a> {
    data: &'a [Bytes],
    /// Bytes of the first buffer that are used up.
    offset: usize,
}

impl<'a> Pieces<'a> {
    /// The next `length` bytes, which must be there.
    fn take(&mut self, length: usize) -> impl Iterator<Item = Bytes> + use<'a, '_> {
        let mut left = length;
        std::iter::from_fn(move || {
            while left > 0 {
                let (first, rest) = self.data.split_first()?;
                let count = left.min(first.len() - self.offset);
                let piece = first.slice(self.offset..self.offset + count);
                self.offset += count;
                left -= count;
                if self.offset == first.len() {
                    self.data = rest;
                    self.offset = 0;
                }
                if count > 0 {
                    return Some(piece);
                }
            }
            None
        })
    }
}

const GOOD: u8 = 0x00;
const CONDITION_MET: u8 = 0x04;

/// SPC-4 section 4.5: sense data has at most 252 bytes.
const MAXIMUM_SENSE_LENGTH: usize = 252;
