//! A connection in full feature phase: tasks, the command window, data in both directions.
//!
//! Invariants: a command is sent only inside the target's window (up to MaxCmdSN); a task's tag is free again
//! only when the event that ends it was taken; StatSN is followed without a gap (RFC 7143 section 4.2.2.2), and
//! the data of a task arrives in order and inside what was asked for (DataPDUInOrder,
//! DataSequenceInOrder).

use std::collections::VecDeque;
use std::io::IoSlice;

use super::{Command, Event, InitiatorError, Outcome, Parameters, ReceiveBuffer, TransmitQueue};
use crate::base::checksum::Crc32c;
use crate::iscsi::pdu::framing::{append_headers, append_pdu, append_trailer};
use crate::iscsi::pdu::{
    BasicHeader, DataIn, DataOut, InitiatorTaskTag, LogoutReason, LogoutRequest, NopIn, NopOut,
    ReadyToTransfer, Residual, ResponseSerials, ScsiCommand, ScsiResponse, SerialNumber, TargetPdu,
    TargetTransferTag, TaskManagementFunction, TaskManagementRequest, TextRequest, TextResponse,
};

/// A connection in full feature phase.
#[derive(Debug)]
pub struct Connection {
    parameters: Parameters,
    serials: Serials,
    receive: ReceiveBuffer,
    transmit: TransmitQueue,
    /// Requests without an answer yet; the tag is the index.
    requests: Vec<Option<Request>>,
    free_tags: Vec<u32>,
    /// Tags of commands that wait for the window.
    waiting: VecDeque<u32>,
    events: VecDeque<Event>,
}

/// The initiator's side of the sequence numbers.
#[derive(Clone, Copy, Debug)]
pub struct Serials {
    /// CmdSN of the next command.
    pub command_sn: SerialNumber,
    /// MaxCmdSN as the target last said.
    pub maximum_command_sn: SerialNumber,
    /// ExpStatSN.
    pub expected_status_sn: SerialNumber,
}

#[derive(Debug)]
enum Request {
    Command { command: Command, data: Vec<u8>, received: u32, data_sn: u32 },
    TaskManagement,
    Ping,
    Text { text: Vec<u8> },
    Logout,
}

impl Connection {
    pub(super) fn new(parameters: Parameters, serials: Serials, receive: ReceiveBuffer) -> Self {
        Self {
            parameters,
            serials,
            receive,
            transmit: TransmitQueue::default(),
            requests: Vec::new(),
            free_tags: Vec::new(),
            waiting: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// What the login agreed on.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The sequence numbers as they are now, for those who make their own PDUs.
    pub fn serials(&mut self) -> &mut Serials {
        &mut self.serials
    }

    /// Where received bytes go to.
    pub fn receive_space(&mut self) -> &mut [u8] {
        self.receive.space()
    }

    /// Takes the first `count` bytes of the receive space.
    ///
    /// # Errors
    /// The target breaks the protocol; the connection is of no further use.
    pub fn handle_received(&mut self, count: usize) -> Result<(), InitiatorError> {
        self.receive.fill(count);
        // The buffer steps out while its bytes are looked at: they are read in place.
        let mut receive = std::mem::replace(&mut self.receive, ReceiveBuffer::new(0));
        let taken = self.take_pdus(&mut receive);
        self.receive = receive;
        self.send_waiting();
        taken
    }

    /// Whether something is to be sent.
    #[must_use]
    pub fn has_transmit(&self) -> bool {
        !self.transmit.is_empty()
    }

    /// What is to be sent, in order.
    pub fn transmit_slices<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        self.transmit.slices(slices);
    }

    /// Says that the first `count` bytes are sent.
    pub fn handle_transmitted(&mut self, count: usize) {
        self.transmit.advance(count);
    }

    /// The next event. The tag that it names is free from now on.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        match &event {
            Event::Completed { tag, .. }
            | Event::TaskManagement { tag, .. }
            | Event::Pong { tag, .. }
            | Event::Text { tag, .. } => self.free_tags.push(tag.0),
            Event::LoggedOut(_) | Event::Asynchronous(_) | Event::Other { .. } => {}
        }
        Some(event)
    }

    /// Starts a command as soon as the window allows; an event with this tag ends it.
    pub fn submit(&mut self, command: Command) -> InitiatorTaskTag {
        let tag = self.begin(Request::Command { command, data: Vec::new(), received: 0, data_sn: 0 });
        self.waiting.push_back(tag.0);
        self.send_waiting();
        tag
    }

    /// Asks for a task management function, immediately. `referenced` is the task that ABORT TASK means.
    pub fn manage_tasks(
        &mut self,
        function: TaskManagementFunction,
        lun: [u8; 8],
        referenced: Option<InitiatorTaskTag>,
    ) -> InitiatorTaskTag {
        let tag = self.begin(Request::TaskManagement);
        let request = TaskManagementRequest {
            is_immediate: true,
            function,
            lun,
            initiator_task_tag: tag,
            referenced_task_tag: referenced.unwrap_or(InitiatorTaskTag::RESERVED),
            command_sn: self.serials.command_sn,
            expected_status_sn: self.serials.expected_status_sn,
            referenced_command_sn: self.serials.command_sn,
            expected_data_sn: 0,
        };
        self.emit(request.emit(), &[]);
        tag
    }

    /// Sends a ping with `data`, immediately.
    pub fn ping(&mut self, data: &[u8]) -> InitiatorTaskTag {
        let tag = self.begin(Request::Ping);
        self.emit_nop(tag, TargetTransferTag::RESERVED, [0; 8], data);
        tag
    }

    /// Sends text (`SendTargets=All`, say), immediately.
    pub fn send_text(&mut self, keys: &[(&str, &str)]) -> InitiatorTaskTag {
        let tag = self.begin(Request::Text { text: Vec::new() });
        let text: String = keys.iter().map(|(key, value)| format!("{key}={value}\0")).collect();
        self.emit_text(tag, TargetTransferTag::RESERVED, [0; 8], text.as_bytes());
        tag
    }

    /// Asks to close the session.
    pub fn log_out(&mut self) -> InitiatorTaskTag {
        let tag = self.begin(Request::Logout);
        let request = LogoutRequest {
            is_immediate: true,
            reason: LogoutReason::CloseSession,
            initiator_task_tag: tag,
            connection_id: 0,
            command_sn: self.serials.command_sn,
            expected_status_sn: self.serials.expected_status_sn,
        };
        self.emit(request.emit(), &[]);
        tag
    }

    /// Sends `bytes` as they are, after what is queued. Sequence numbers and tags in them are the caller's
    /// business; tags from `0x8000_0000` on are never used by this connection.
    pub fn inject(&mut self, bytes: &[u8]) {
        self.transmit.gather().extend_from_slice(bytes);
    }

    fn take_pdus(&mut self, receive: &mut ReceiveBuffer) -> Result<(), InitiatorError> {
        let Parameters { digests, maximum_receive_length, .. } = self.parameters;
        while let Some(raw) = receive.front(digests, maximum_receive_length)? {
            let length = raw.length;
            let pdu = raw.from_target()?;
            self.handle_pdu(pdu, raw.data)?;
            receive.consume(length);
        }
        Ok(())
    }

    fn handle_pdu(&mut self, pdu: TargetPdu, data: &[u8]) -> Result<(), InitiatorError> {
        let tag = self.known_tag(&pdu);
        match (pdu, tag) {
            (TargetPdu::DataIn(data_in), Some(_)) => self.handle_data_in(&data_in, data),
            (TargetPdu::ScsiResponse(response), Some(_)) => self.handle_response(&response, data),
            (TargetPdu::ReadyToTransfer(r2t), Some(_)) => self.handle_ready_to_transfer(&r2t),
            (TargetPdu::NopIn(nop), _) => self.handle_nop(&nop, data),
            (TargetPdu::TaskManagement(response), Some(tag)) => {
                self.follow(&response.serials)?;
                self.end(tag);
                self.events.push_back(Event::TaskManagement { tag, result: response.result });
                Ok(())
            }
            (TargetPdu::Text(response), Some(tag)) => self.handle_text(tag, &response, data),
            (TargetPdu::Logout(response), Some(tag)) => {
                self.follow(&response.serials)?;
                self.end(tag);
                self.events.push_back(Event::LoggedOut(response.result));
                Ok(())
            }
            (TargetPdu::Asynchronous(message), _) => {
                self.follow(&message.serials)?;
                self.events.push_back(Event::Asynchronous(message.event));
                Ok(())
            }
            (TargetPdu::Login(_), _) => {
                Err(InitiatorError::Protocol("a Login Response in full feature phase"))
            }
            (pdu, _) => self.handle_other(pdu, data),
        }
    }

    /// The tag of a running task of this connection that the PDU belongs to.
    fn known_tag(&self, pdu: &TargetPdu) -> Option<InitiatorTaskTag> {
        let tag = match pdu {
            TargetPdu::ScsiResponse(pdu) => pdu.initiator_task_tag,
            TargetPdu::TaskManagement(pdu) => pdu.initiator_task_tag,
            TargetPdu::Text(pdu) => pdu.initiator_task_tag,
            TargetPdu::DataIn(pdu) => pdu.initiator_task_tag,
            TargetPdu::Logout(pdu) => pdu.initiator_task_tag,
            TargetPdu::ReadyToTransfer(pdu) => pdu.initiator_task_tag,
            TargetPdu::NopIn(pdu) => pdu.initiator_task_tag,
            TargetPdu::Login(_) | TargetPdu::Asynchronous(_) | TargetPdu::Reject(_) => return None,
        };
        self.requests.get(tag.0 as usize).is_some_and(Option::is_some).then_some(tag)
    }

    fn handle_data_in(&mut self, pdu: &DataIn, segment: &[u8]) -> Result<(), InitiatorError> {
        self.widen_window(&pdu.serials);
        let Some(Some(Request::Command { command, data, received, data_sn })) =
            self.requests.get_mut(pdu.initiator_task_tag.0 as usize)
        else {
            return Err(InitiatorError::Protocol("Data-In for a task that is no command"));
        };
        if pdu.data_sn != *data_sn || pdu.buffer_offset != *received {
            return Err(InitiatorError::Protocol("Data-In out of order"));
        }
        if segment.len() > (command.data_in_length - *received) as usize {
            return Err(InitiatorError::Protocol("more Data-In than was asked for"));
        }
        *data_sn += 1;
        *received += segment.len() as u32;
        if command.keeps_data {
            data.extend_from_slice(segment);
        }
        match pdu.status {
            None => Ok(()),
            Some(status) => {
                self.follow(&pdu.serials)?;
                self.complete(pdu.initiator_task_tag, status.status, 0, status.residual, &[])
            }
        }
    }

    fn handle_response(&mut self, pdu: &ScsiResponse, segment: &[u8]) -> Result<(), InitiatorError> {
        self.follow(&pdu.serials)?;
        // Some targets leave ExpDataSN at 0, which can't be told from a response without data.
        if let Some(Some(Request::Command { data_sn, .. })) =
            self.requests.get(pdu.initiator_task_tag.0 as usize)
            && pdu.expected_data_sn != 0
            && pdu.expected_data_sn != *data_sn
        {
            return Err(InitiatorError::Protocol("ExpDataSN is not the number of Data-In or R2T PDUs"));
        }
        let sense = ScsiResponse::sense_of(segment);
        self.complete(pdu.initiator_task_tag, pdu.status, pdu.response.0, pdu.residual, sense)
    }

    fn complete(
        &mut self,
        tag: InitiatorTaskTag,
        status: u8,
        service_response: u8,
        residual: Residual,
        sense: &[u8],
    ) -> Result<(), InitiatorError> {
        let Some(Request::Command { data, received, .. }) = self.end(tag) else {
            return Err(InitiatorError::Protocol("a status for a task that is no command"));
        };
        let outcome = Outcome {
            status,
            service_response,
            sense: sense.to_vec(),
            data,
            data_length: received as usize,
            residual,
        };
        self.events.push_back(Event::Completed { tag, outcome });
        Ok(())
    }

    fn handle_ready_to_transfer(&mut self, pdu: &ReadyToTransfer) -> Result<(), InitiatorError> {
        self.widen_window(&pdu.serials);
        let Some(Some(Request::Command { command, data_sn, .. })) =
            self.requests.get_mut(pdu.initiator_task_tag.0 as usize)
        else {
            return Err(InitiatorError::Protocol("R2T for a task that is no command"));
        };
        if pdu.r2t_sn != *data_sn {
            return Err(InitiatorError::Protocol("a gap in R2TSN"));
        }
        *data_sn += 1;
        let (offset, length) = (pdu.buffer_offset as usize, pdu.desired_data_transfer_length as usize);
        if length == 0 || length > self.parameters.maximum_burst_length {
            return Err(InitiatorError::Protocol("R2T of no length or beyond MaxBurstLength"));
        }
        if offset + length > command.data_out.len() {
            return Err(InitiatorError::Protocol("R2T beyond the data of the command"));
        }
        let (lun, data) = (command.lun, command.data_out.slice(offset..offset + length));
        self.emit_data_out(lun, pdu.initiator_task_tag, pdu.target_transfer_tag, offset, data);
        Ok(())
    }

    fn handle_nop(&mut self, pdu: &NopIn, data: &[u8]) -> Result<(), InitiatorError> {
        if pdu.initiator_task_tag == InitiatorTaskTag::RESERVED {
            self.widen_window(&pdu.serials);
            if pdu.target_transfer_tag != TargetTransferTag::RESERVED {
                self.emit_nop(InitiatorTaskTag::RESERVED, pdu.target_transfer_tag, pdu.lun, data);
            }
            return Ok(());
        }
        let tag = pdu.initiator_task_tag;
        match self.requests.get(tag.0 as usize) {
            Some(Some(Request::Ping)) => {
                self.follow(&pdu.serials)?;
                self.end(tag);
                self.events.push_back(Event::Pong { tag, data: data.to_vec() });
                Ok(())
            }
            _ => self.handle_other(TargetPdu::NopIn(pdu.clone()), data),
        }
    }

    fn handle_text(
        &mut self,
        tag: InitiatorTaskTag,
        pdu: &TextResponse,
        data: &[u8],
    ) -> Result<(), InitiatorError> {
        self.follow(&pdu.serials)?;
        let Some(Some(Request::Text { text })) = self.requests.get_mut(tag.0 as usize) else {
            return Err(InitiatorError::Protocol("a Text Response to no Text Request"));
        };
        text.extend_from_slice(data);
        if text.len() > TEXT_LIMIT {
            return Err(InitiatorError::Protocol("more than 16 MiB of text"));
        }
        if !pdu.is_final {
            self.emit_text(tag, pdu.target_transfer_tag, pdu.lun, &[]);
        } else if let Some(Request::Text { text }) = self.end(tag) {
            self.events.push_back(Event::Text { tag, text });
        }
        Ok(())
    }

    fn handle_other(&mut self, pdu: TargetPdu, data: &[u8]) -> Result<(), InitiatorError> {
        match &pdu {
            TargetPdu::ScsiResponse(pdu) => self.follow(&pdu.serials)?,
            TargetPdu::TaskManagement(pdu) => self.follow(&pdu.serials)?,
            TargetPdu::Text(pdu) => self.follow(&pdu.serials)?,
            TargetPdu::Logout(pdu) => self.follow(&pdu.serials)?,
            TargetPdu::NopIn(pdu) => self.follow(&pdu.serials)?,
            TargetPdu::Reject(pdu) => self.follow(&pdu.serials)?,
            TargetPdu::DataIn(pdu) if pdu.status.is_some() => self.follow(&pdu.serials)?,
            TargetPdu::DataIn(pdu) => self.widen_window(&pdu.serials),
            TargetPdu::ReadyToTransfer(pdu) => self.widen_window(&pdu.serials),
            TargetPdu::Login(_) | TargetPdu::Asynchronous(_) => {}
        }
        self.events.push_back(Event::Other { pdu, data: data.to_vec() });
        Ok(())
    }

    /// Follows StatSN and the window of a response.
    fn follow(&mut self, serials: &ResponseSerials) -> Result<(), InitiatorError> {
        if serials.status_sn != self.serials.expected_status_sn {
            return Err(InitiatorError::Protocol("a gap in StatSN"));
        }
        self.serials.expected_status_sn = serials.status_sn.next();
        self.widen_window(serials);
        Ok(())
    }

    fn widen_window(&mut self, serials: &ResponseSerials) {
        if self.serials.maximum_command_sn.is_before(serials.maximum_command_sn) {
            self.serials.maximum_command_sn = serials.maximum_command_sn;
        }
    }

    fn begin(&mut self, request: Request) -> InitiatorTaskTag {
        let index = self.free_tags.pop().unwrap_or_else(|| {
            self.requests.push(None);
            self.requests.len() as u32 - 1
        });
        self.requests[index as usize] = Some(request);
        InitiatorTaskTag(index)
    }

    fn end(&mut self, tag: InitiatorTaskTag) -> Option<Request> {
        self.requests.get_mut(tag.0 as usize)?.take()
    }

    /// Sends the commands that the window has room for.
    fn send_waiting(&mut self) {
        while !self.serials.maximum_command_sn.is_before(self.serials.command_sn) {
            let Some(index) = self.waiting.pop_front() else { return };
            self.send_command(index);
        }
    }

    fn send_command(&mut self, index: u32) {
        let Some(Some(Request::Command { command, .. })) = self.requests.get(index as usize) else { return };
        let Parameters { digests, immediate_data, first_burst_length, initial_r2t, .. } = self.parameters;
        let (lun, data) = (command.lun, command.data_out.clone());
        let unsolicited = if initial_r2t { 0 } else { data.len().min(first_burst_length) };
        let immediate = if immediate_data {
            data.len().min(first_burst_length).min(self.parameters.target_receive_length)
        } else {
            0
        };
        let tag = InitiatorTaskTag(index);
        let pdu = ScsiCommand {
            is_immediate: false,
            is_final: unsolicited <= immediate,
            reads: command.data_in_length > 0,
            writes: !data.is_empty(),
            attribute: command.attribute,
            lun,
            initiator_task_tag: tag,
            expected_data_transfer_length: if data.is_empty() {
                command.data_in_length
            } else {
                data.len() as u32
            },
            bidirectional_read_length: None,
            command_sn: self.serials.command_sn,
            expected_status_sn: self.serials.expected_status_sn,
            cdb: command.cdb.clone(),
        };
        self.serials.command_sn = self.serials.command_sn.next();
        let additional = pdu.additional_headers().emit();
        append_headers(self.transmit.gather(), pdu.emit(), &additional, immediate, digests);
        self.push_data(data.slice(..immediate));
        if unsolicited > immediate {
            let rest = data.slice(immediate..unsolicited);
            self.emit_data_out(lun, tag, TargetTransferTag::RESERVED, immediate, rest);
        }
    }

    /// Sends a burst from `offset` on, cut to the target's longest data segment.
    fn emit_data_out(
        &mut self,
        lun: [u8; 8],
        initiator_task_tag: InitiatorTaskTag,
        target_transfer_tag: TargetTransferTag,
        offset: usize,
        burst: bytes::Bytes,
    ) {
        let step = self.parameters.target_receive_length;
        for (data_sn, start) in (0..burst.len()).step_by(step).enumerate() {
            let end = (start + step).min(burst.len());
            let pdu = DataOut {
                is_final: end == burst.len(),
                lun,
                initiator_task_tag,
                target_transfer_tag,
                expected_status_sn: self.serials.expected_status_sn,
                data_sn: data_sn as u32,
                buffer_offset: (offset + start) as u32,
            };
            append_headers(self.transmit.gather(), pdu.emit(), &[], end - start, self.parameters.digests);
            self.push_data(burst.slice(start..end));
        }
    }

    /// Appends a data segment, its padding and its digest.
    fn push_data(&mut self, data: bytes::Bytes) {
        let digests = self.parameters.digests;
        let (length, digest) = (data.len(), if digests.data { Crc32c::of(&data) } else { Crc32c(0) });
        if length > 0 {
            self.transmit.push(data);
        }
        if !length.is_multiple_of(4) || (length > 0 && digests.data) {
            append_trailer(self.transmit.gather(), digest, length, digests);
        }
    }

    fn emit(&mut self, header: BasicHeader, data: &[u8]) {
        append_pdu(self.transmit.gather(), header, &[], data, self.parameters.digests);
    }

    fn emit_nop(
        &mut self,
        initiator_task_tag: InitiatorTaskTag,
        target_transfer_tag: TargetTransferTag,
        lun: [u8; 8],
        data: &[u8],
    ) {
        let nop = NopOut {
            is_immediate: true,
            lun,
            initiator_task_tag,
            target_transfer_tag,
            command_sn: self.serials.command_sn,
            expected_status_sn: self.serials.expected_status_sn,
        };
        self.emit(nop.emit(), data);
    }

    fn emit_text(
        &mut self,
        initiator_task_tag: InitiatorTaskTag,
        target_transfer_tag: TargetTransferTag,
        lun: [u8; 8],
        data: &[u8],
    ) {
        let request = TextRequest {
            is_immediate: true,
            is_final: true,
            continues: false,
            lun,
            initiator_task_tag,
            target_transfer_tag,
            command_sn: self.serials.command_sn,
            expected_status_sn: self.serials.expected_status_sn,
        };
        self.emit(request.emit(), data);
    }
}

/// A thousand targets' names take a fraction of it.
const TEXT_LIMIT: usize = 16 << 20;
