//! Full feature phase: sorts PDUs by kind and by CmdSN, and gives each to its part.
//!
//! Requests are dispatched in the order of CmdSN, immediate ones at once. A request that is rejected
//! has not consumed its CmdSN (RFC 7143 section 11.17.1): what follows waits until the gap is filled
//! by a retry or by an ABORT TASK that names it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::control::TextExchange;
use super::event::{CloseReason, ProtocolFault};
use super::management::PendingManagement;
use super::receive::Destination;
use super::task::{Task, TaskStage, Tasks};
use super::window::{Place, Window};
use super::{Basis, Channel, after};
use crate::base::runtime::Instant;
use crate::iscsi::login::{SessionKind, SessionRequest};
use crate::iscsi::pdu::login::LoginRequest;
use crate::iscsi::pdu::{
    BasicHeader, InitiatorPdu, LogoutRequest, NopOut, PduError, Reject, RejectReason, ResponseSerials,
    SerialNumber, TargetTransferTag, TaskManagementRequest, TextRequest,
};
use crate::iscsi::settings::Parameters;
use crate::iscsi::text::MAXIMUM_TEXT_LENGTH;

/// State of a session with its one connection.
#[derive(Debug)]
pub(super) struct FullFeature {
    pub(super) basis: Basis,
    pub(super) session: SessionRequest,
    pub(super) parameters: Parameters,
    pub(super) window: Window,
    pub(super) tasks: Tasks,
    /// Requests behind a gap in CmdSN, in no order.
    pub(super) early: Vec<(SerialNumber, Request)>,
    /// Commands that wait for memory, in order.
    pub(super) memory_line: VecDeque<u32>,
    /// Commands with the ordered attribute that have not been handed up.
    pub(super) undelivered_ordered: u32,
    pub(super) next_arrival: u64,
    /// Commands in the driver's hands, aborted ones included.
    pub(super) delivered: u32,
    /// Commands that came as immediate, in any stage.
    pub(super) immediate_tasks: u32,
    pub(super) management: Vec<PendingManagement>,
    pub(super) next_management: u32,
    pub(super) next_transfer_tag: u32,
    pub(super) text: Option<TextExchange>,
    pub(super) logout: Option<LogoutRequest>,
    /// Set when the initiator was asked to log out.
    pub(super) logout_deadline: Option<Instant>,
    pub(super) ping: Option<Ping>,
    pub(super) next_check: Instant,
    /// Tags of commands that were aborted while data was on the way: that data is ignored.
    pub(super) retired: VecDeque<u32>,
}

/// A ping that is out.
#[derive(Debug)]
pub(super) struct Ping {
    pub(super) tag: TargetTransferTag,
    pub(super) sent: Instant,
    /// [`Channel::receptions`] when it was sent.
    pub(super) receptions: u64,
}

/// What is known of a PDU when its headers are in.
#[derive(Debug)]
pub(super) enum Meaning {
    /// Before full feature phase.
    Login(LoginRequest),
    /// Nothing is done.
    Ignored,
    /// Reject follows.
    Refused(BasicHeader, RejectReason),
    /// A command, not yet in its slot.
    Command(Box<NewCommand>),
    /// Data for the command in a slot.
    DataOut(DataOutPiece),
    /// Any other request.
    Request(BasicHeader, RequestPdu),
}

/// A command on its way in.
#[derive(Debug)]
pub(super) struct NewCommand {
    pub(super) header: BasicHeader,
    pub(super) command_sn: SerialNumber,
    pub(super) task: Task,
    pub(super) data_length: u32,
    pub(super) has_unsolicited: bool,
}

/// A Data-Out that belongs to a command.
#[derive(Debug)]
pub(super) struct DataOutPiece {
    pub(super) header: BasicHeader,
    pub(super) slot: u32,
    pub(super) tag: TargetTransferTag,
    pub(super) is_final: bool,
}

/// Requests whose data, if any, is text.
#[derive(Debug)]
pub(super) enum RequestPdu {
    NopOut(NopOut),
    Text(TextRequest),
    TaskManagement(TaskManagementRequest),
    Logout(LogoutRequest),
}

/// What waits for its CmdSN's turn.
#[derive(Debug)]
pub(super) enum Request {
    Command(u32),
    Other(RequestPdu, Vec<u8>),
    /// Nothing: an ABORT TASK has taken the number's place.
    Plug,
}

impl FullFeature {
    pub(super) fn new(
        basis: Basis,
        session: SessionRequest,
        parameters: Parameters,
        command_sn: SerialNumber,
        now: Instant,
    ) -> Self {
        let window = Window::new(command_sn, basis.settings.queue_depth);
        let next_check = after(now, basis.settings.ping_interval);
        Self {
            basis,
            session,
            parameters,
            window,
            tasks: Tasks::default(),
            early: Vec::new(),
            memory_line: VecDeque::new(),
            undelivered_ordered: 0,
            next_arrival: 0,
            delivered: 0,
            immediate_tasks: 0,
            management: Vec::new(),
            next_management: 0,
            next_transfer_tag: 0,
            text: None,
            logout: None,
            logout_deadline: None,
            ping: None,
            next_check,
            retired: VecDeque::new(),
        }
    }

    pub(super) fn session(&self) -> &SessionRequest {
        &self.session
    }

    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub(super) fn is_drained(&self) -> bool {
        self.delivered == 0
    }

    pub(super) fn is_logging_out(&self) -> bool {
        self.logout.is_some()
    }

    pub(super) fn is_discovery(&self) -> bool {
        self.session.kind == SessionKind::Discovery
    }

    /// Decides, with a PDU's headers, where its data goes and what will become of it.
    pub(super) fn begin(
        &mut self,
        channel: &mut Channel,
        header: BasicHeader,
        data_length: usize,
        pdu: Result<InitiatorPdu, PduError>,
    ) -> (Destination, Meaning) {
        let refused = |header, reason| (Destination::Discard, Meaning::Refused(header, reason));
        let text = || Destination::Text(Vec::with_capacity(data_length));
        let pdu = match pdu {
            Ok(pdu) => pdu,
            Err(PduError::Opcode(_)) => return refused(header, RejectReason::CommandNotSupported),
            Err(_) => return refused(header, RejectReason::InvalidPduField),
        };
        let request = match pdu {
            InitiatorPdu::Login(_) => return refused(header, RejectReason::ProtocolError),
            InitiatorPdu::Snack(_) => return refused(header, RejectReason::SnackReject),
            // In a discovery session only text and logout have a meaning (section 4.3); a ping is
            // let pass.
            InitiatorPdu::ScsiCommand(_) | InitiatorPdu::TaskManagement(_) | InitiatorPdu::DataOut(_)
                if self.is_discovery() =>
            {
                return refused(header, RejectReason::ProtocolError);
            }
            InitiatorPdu::ScsiCommand(command) => {
                return self.begin_command(channel, header, command, data_length as u32);
            }
            InitiatorPdu::DataOut(data) => {
                return self.begin_data_out(channel, header, &data, data_length as u32);
            }
            InitiatorPdu::NopOut(nop) => RequestPdu::NopOut(nop),
            InitiatorPdu::Text(_) if data_length > MAXIMUM_TEXT_LENGTH => {
                return refused(header, RejectReason::ProtocolError);
            }
            InitiatorPdu::Text(request) => RequestPdu::Text(request),
            InitiatorPdu::TaskManagement(request) => RequestPdu::TaskManagement(request),
            InitiatorPdu::Logout(request) => RequestPdu::Logout(request),
        };
        (text(), Meaning::Request(header, request))
    }

    /// Does what a whole PDU asks for.
    pub(super) fn finish(
        &mut self,
        channel: &mut Channel,
        meaning: Meaning,
        destination: Destination,
        is_intact: bool,
    ) {
        match meaning {
            Meaning::Login(_) | Meaning::Ignored => {}
            Meaning::Refused(header, reason) => self.reject(channel, &header, reason),
            Meaning::Command(command) => self.finish_command(channel, *command, destination, is_intact),
            Meaning::DataOut(piece) => self.finish_data_out(channel, &piece, destination, is_intact),
            Meaning::Request(header, _) if !is_intact => {
                self.reject(channel, &header, RejectReason::DataDigestError);
            }
            Meaning::Request(header, request) => {
                let text = match destination {
                    Destination::Text(text) => text,
                    Destination::Discard | Destination::Transfer { .. } => Vec::new(),
                };
                self.place_request(channel, &header, request, text);
            }
        }
    }

    /// Dispatches a request at once, later, or never, as its CmdSN says.
    fn place_request(
        &mut self,
        channel: &mut Channel,
        header: &BasicHeader,
        request: RequestPdu,
        text: Vec<u8>,
    ) {
        if header.is_immediate() {
            return self.dispatch(channel, Request::Other(request, text));
        }
        let command_sn = request.command_sn();
        match self.place(command_sn) {
            Place::Outside => {}
            Place::Next => {
                self.window.advance();
                self.dispatch(channel, Request::Other(request, text));
                self.dispatch_early(channel);
            }
            Place::Early => {
                let others = self.early.iter().filter(|(_, early)| !matches!(early, Request::Command(_)));
                if others.count() >= EARLY_LIMIT {
                    return channel.close(CloseReason::Protocol(ProtocolFault::TooManyEarly));
                }
                self.early.push((command_sn, Request::Other(request, text)));
            }
        }
    }

    /// Where a CmdSN lies; one that is already held back counts as outside.
    pub(super) fn place(&self, command_sn: SerialNumber) -> Place {
        match self.window.place(command_sn) {
            Place::Early if self.early.iter().any(|(number, _)| *number == command_sn) => Place::Outside,
            place => place,
        }
    }

    /// Dispatches what a filled gap has set free.
    pub(super) fn dispatch_early(&mut self, channel: &mut Channel) {
        while !self.early.is_empty() && self.logout.is_none() {
            let next = self.window.expected();
            let Some(index) = self.early.iter().position(|(number, _)| *number == next) else { break };
            let (_, request) = self.early.swap_remove(index);
            self.window.advance();
            self.dispatch(channel, request);
        }
        self.open_window();
    }

    fn dispatch(&mut self, channel: &mut Channel, request: Request) {
        match request {
            Request::Command(slot) => self.start(channel, slot),
            Request::Other(RequestPdu::NopOut(nop), text) => self.handle_nop_out(channel, &nop, text),
            Request::Other(RequestPdu::Text(request), text) => self.handle_text(channel, &request, &text),
            Request::Other(RequestPdu::TaskManagement(request), _) => {
                self.handle_task_management(channel, &request);
            }
            Request::Other(RequestPdu::Logout(request), _) => self.handle_logout(channel, request),
            Request::Plug => {}
        }
    }

    /// Opens the command window as far as queue depth and memory allow.
    pub(super) fn open_window(&mut self) {
        let depth = self.basis.settings.queue_depth;
        let depth = if self.basis.budget.is_short() { depth.min(SHORT_DEPTH) } else { depth };
        let outstanding = self.tasks.len() as u32 - self.immediate_tasks;
        self.window.open(outstanding, depth);
    }

    /// Serial numbers of a PDU that takes no StatSN.
    pub(super) fn serials(&self, channel: &Channel) -> ResponseSerials {
        ResponseSerials {
            status_sn: channel.status_sn,
            expected_command_sn: self.window.expected(),
            maximum_command_sn: self.window.maximum(),
        }
    }

    /// Serial numbers of a response, which takes a StatSN.
    pub(super) fn response_serials(&self, channel: &mut Channel) -> ResponseSerials {
        ResponseSerials { status_sn: channel.take_status_sn(), ..self.serials(channel) }
    }

    /// Sends a Reject with the header that it refuses.
    pub(super) fn reject(&mut self, channel: &mut Channel, header: &BasicHeader, reason: RejectReason) {
        let reject = Reject { reason, serials: self.response_serials(channel), data_sn: 0 };
        channel.transmitter.push_pdu(reject.emit(), header.as_bytes(), self.parameters.digests);
    }

    /// A target transfer tag that is not in use: they are counted, and the few in use at a time are
    /// long gone when the count comes round.
    pub(super) fn new_transfer_tag(&mut self) -> TargetTransferTag {
        let tag = TargetTransferTag(self.next_transfer_tag);
        self.next_transfer_tag = (self.next_transfer_tag + 1) % TargetTransferTag::RESERVED.0;
        tag
    }

    pub(super) fn next_timeout(&self) -> Instant {
        let ping = self.ping.as_ref().map(|ping| after(ping.sent, self.basis.settings.ping_timeout));
        [ping, self.logout_deadline].into_iter().flatten().fold(self.next_check, Instant::min)
    }

    pub(super) fn handle_timeout(&mut self, channel: &mut Channel) {
        let now = channel.now;
        let settings = self.basis.settings.clone();
        if self.logout_deadline.is_some_and(|deadline| now >= deadline) {
            self.announce_drop(channel);
            return channel.close(CloseReason::LogoutTimeout);
        }
        if let Some(ping) = &self.ping {
            // Whatever came since then is a sign of life.
            if channel.receptions > ping.receptions {
                self.ping = None;
            } else if now.since(ping.sent) >= settings.ping_timeout {
                return channel.close(CloseReason::PingTimeout);
            }
        }
        if now < self.next_check {
            return;
        }
        self.next_check = after(now, settings.ping_interval);
        let patience = settings.ping_interval + settings.ping_timeout;
        if self.is_stalled(channel, patience) {
            return channel.close(CloseReason::Stalled);
        }
        if now.since(channel.last_received) >= settings.ping_interval && self.ping.is_none() {
            self.send_ping(channel);
        }
        if self.tasks.len() == 0 {
            self.tasks.shrink();
            channel.transmitter.shrink();
        }
    }

    /// Whether data or a command that must come has not come, or nothing that is to be sent was taken, for
    /// longer than `patience`.
    fn is_stalled(&self, channel: &Channel, patience: Duration) -> bool {
        let has_waited = |since: Instant| channel.now.since(since) > patience;
        let is_starved = |task: &Task| {
            let is_waiting = match task.stage {
                // A gap in CmdSN that nobody fills.
                TaskStage::Early => true,
                TaskStage::Collecting => !task.transfer.sequences.is_empty(),
                _ => false,
            };
            is_waiting && has_waited(task.transfer.touched)
        };
        let is_stuck = !channel.transmitter.is_empty() && has_waited(channel.last_transmitted);
        is_stuck || self.tasks.iter().any(|(_, task)| is_starved(task))
    }

    /// The connection is over: what the driver does not hold is dropped, what it holds is aborted.
    pub(super) fn end(&mut self) {
        for slot in self.tasks.slots_where(|task| task.stage != TaskStage::Aborted) {
            self.abort_or_drop(slot);
        }
        self.early = Vec::new();
        self.management = Vec::new();
        self.text = None;
        self.memory_line = VecDeque::new();
        self.basis.budget.stop_waiting();
    }

    /// A piece of text as a payload of its own.
    pub(super) fn payload(text: Vec<u8>) -> Bytes {
        Bytes::from(text)
    }
}

impl RequestPdu {
    fn command_sn(&self) -> SerialNumber {
        match self {
            Self::NopOut(pdu) => pdu.command_sn,
            Self::Text(pdu) => pdu.command_sn,
            Self::TaskManagement(pdu) => pdu.command_sn,
            Self::Logout(pdu) => pdu.command_sn,
        }
    }
}

/// Requests other than commands that may wait behind a gap.
const EARLY_LIMIT: usize = 8;

/// Queue depth while memory is short.
const SHORT_DEPTH: u32 = 8;
