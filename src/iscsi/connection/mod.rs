//! One TCP connection of the target, from its first byte to its end: login, then full feature phase.
//!
//! # For the driver
//! - While [`Connection::receive_buffer`] gives a buffer that is not empty, read into it and report
//!   the number of bytes with [`Connection::handle_received`]. An empty one means: not now.
//! - After every call, take all of [`Connection::poll_event`], then send what
//!   [`Connection::transmit_slices`] shows and report with [`Connection::handle_transmitted`].
//! - Call [`Connection::handle_timeout`] at [`Connection::next_timeout`], and
//!   [`Connection::handle_wake`] after the context's `wake` was called.
//! - Complete or abandon every command that was handed up, also after the end. After
//!   [`Event::Close`], close the socket once [`Connection::is_flushed`]; release the session
//!   (`Sessions::release`) once [`Connection::is_drained`] too.
//!
//! # What it guarantees
//! Commands are handed up once, in the order of CmdSN as far as task attributes ask for it, with
//! all of their data. Every protocol violation ends in a Reject, a CHECK CONDITION, or the end of the
//! connection. Memory: login keeps below 64 KiB; afterwards data is bounded by the `DataBudget`,
//! tasks by the queue depth, and what waits to be sent by a backlog above which nothing is read.
//!
//! Error recovery level 0, one connection a session.

mod command;
mod control;
mod data_out;
mod discovery;
mod event;
mod full_feature;
mod management;
mod receive;
mod response;
mod task;
#[cfg(test)]
mod tests;
mod transmit;
mod window;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

pub use self::event::{
    CloseReason, Command, Event, ManagementId, ProtocolFault, ScsiResult, TaskId, TaskManagement,
};
use self::full_feature::{FullFeature, Meaning};
use self::receive::{Destination, Received, Receiver};
use self::transmit::Transmitter;
use super::budget::{DataBudget, MemberBudget, Wake};
use super::login::{
    CompletedLogin, Login, LoginContext, LoginFailure, LoginFault, LoginRandom, LoginReply, LoginStep,
    SessionRequest,
};
use super::pdu::login::{LoginResponse, LoginStatus};
use super::pdu::{
    BasicHeader, Digests, InitiatorPdu, PduError, PduLengths, ResponseSerials, SerialNumber,
    TaskManagementResult,
};
use super::policy::{LoginPolicy, Portal};
use super::sessions::Tsih;
use super::settings::{DEFAULT_DATA_SEGMENT_LENGTH, Parameters, TargetSettings};
use crate::base::buffer::BufferPool;
use crate::base::runtime::Instant;

/// What a connection is given at its beginning.
#[derive(Clone)]
pub struct ConnectionContext {
    /// Limits and offers; checked ([`TargetSettings::check`]).
    pub settings: Rc<TargetSettings>,
    /// Who may log in to what.
    pub policy: Rc<dyn LoginPolicy>,
    /// Where buffers come from.
    pub pool: BufferPool,
    /// Memory for data, shared by all connections.
    pub budget: DataBudget,
    /// Where the initiator has connected to.
    pub portal: Portal,
    /// Fresh random bytes.
    pub random: LoginRandom,
    /// Called when memory that the connection waited for may be there: call `handle_wake` soon.
    pub wake: Wake,
}

impl std::fmt::Debug for ConnectionContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionContext").field("portal", &self.portal).finish_non_exhaustive()
    }
}

/// The state machine of one connection.
#[derive(Debug)]
pub struct Connection {
    channel: Channel,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Login(Box<LoginPhase>),
    /// Login is complete and waits for its session to be admitted.
    Admission(Box<AdmissionPhase>),
    FullFeature(Box<FullFeature>),
    /// Ended before there was a session.
    Ended,
}

#[derive(Debug)]
struct LoginPhase {
    login: Login,
    deadline: Instant,
    basis: Basis,
}

#[derive(Debug)]
struct AdmissionPhase {
    completed: CompletedLogin,
    basis: Basis,
}

/// What full feature phase inherits.
struct Basis {
    settings: Rc<TargetSettings>,
    policy: Rc<dyn LoginPolicy>,
    portal: Portal,
    pool: BufferPool,
    budget: MemberBudget,
    /// The setting of that name, or what the budget can grant at all if that is less.
    transfer_length: u32,
}

impl std::fmt::Debug for Basis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Basis").field("budget", &self.budget).finish_non_exhaustive()
    }
}

/// What all phases share: bytes in, bytes out, effects.
#[derive(Debug)]
struct Channel {
    receiver: Receiver<Meaning>,
    transmitter: Transmitter,
    events: VecDeque<Event>,
    /// StatSN of the next response.
    status_sn: SerialNumber,
    /// Set once: why the connection ends.
    closing: Option<CloseReason>,
    /// When it began to end.
    closing_since: Instant,
    now: Instant,
    last_received: Instant,
    /// How often something was received.
    receptions: u64,
    last_transmitted: Instant,
}

impl Connection {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(context: ConnectionContext, now: Instant) -> Self {
        let ConnectionContext { settings, policy, pool, budget, portal, random, wake } = context;
        let transfer_length = settings.transfer_length.min(largest_transfer(&budget));
        let channel = Channel {
            receiver: Receiver::new(pool.clone(), LOGIN_RING_LENGTH),
            transmitter: Transmitter::default(),
            events: VecDeque::new(),
            status_sn: SerialNumber(random.status_sn),
            closing: None,
            closing_since: now,
            now,
            last_received: now,
            receptions: 0,
            last_transmitted: now,
        };
        let deadline = after(now, settings.login_timeout);
        let login = Login::new(LoginContext {
            settings: settings.clone(),
            policy: policy.clone(),
            portal: portal.clone(),
            random,
        });
        let budget = budget.member(wake);
        let basis = Basis { settings, policy, portal, pool, budget, transfer_length };
        Self { channel, phase: Phase::Login(Box::new(LoginPhase { login, deadline, basis })) }
    }

    /// Where to read to. Empty when nothing should be read now; that ends with one of the other calls.
    pub fn receive_buffer(&mut self) -> &mut [u8] {
        if self.is_paused() { &mut [] } else { self.channel.receiver.buffer() }
    }

    /// `count` bytes were read to the start of the last [`Self::receive_buffer`]. Zero says that there
    /// was nothing to read (and not that the stream has ended), and gives memory back.
    ///
    /// # Panics
    /// When that buffer was shorter.
    pub fn handle_received(&mut self, count: usize, now: Instant) {
        self.channel.now = now;
        if count > 0 {
            self.channel.last_received = now;
            self.channel.receptions += 1;
            self.channel.receiver.filled(count);
        }
        self.advance();
    }

    /// The stream has ended or failed.
    pub fn handle_disconnected(&mut self, now: Instant) {
        self.channel.now = now;
        self.close(CloseReason::Disconnected);
        self.channel.transmitter.clear();
    }

    /// The next effect.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.channel.events.pop_front()
    }

    /// Fills `slices` with what is to be sent next and gives their number.
    pub fn transmit_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.channel.transmitter.slices(slices)
    }

    /// The first `count` bytes of what [`Self::transmit_slices`] showed were sent.
    ///
    /// # Panics
    /// When it had shown less.
    pub fn handle_transmitted(&mut self, count: usize, now: Instant) {
        self.channel.now = now;
        if count > 0 {
            self.channel.last_transmitted = now;
        }
        self.channel.transmitter.advance(count);
        self.advance();
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.channel.transmitter.is_empty()
    }

    /// Whether no command is in the driver's hands.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        match &self.phase {
            Phase::FullFeature(full) => full.is_drained(),
            _ => true,
        }
    }

    /// Why the connection ends, once it does.
    #[must_use]
    pub fn closing(&self) -> Option<CloseReason> {
        self.channel.closing
    }

    /// The session, from full feature phase on.
    #[must_use]
    pub fn session(&self) -> Option<&SessionRequest> {
        match &self.phase {
            Phase::FullFeature(full) => Some(full.session()),
            _ => None,
        }
    }

    /// What was agreed on, from full feature phase on.
    #[must_use]
    pub fn parameters(&self) -> Option<&Parameters> {
        match &self.phase {
            Phase::FullFeature(full) => Some(full.parameters()),
            _ => None,
        }
    }

    /// The session that was asked for ([`Event::SessionRequested`]) begins. Nothing happens when the
    /// connection has ended in the meantime.
    pub fn admit_session(&mut self, tsih: Tsih, now: Instant) {
        self.channel.now = now;
        let admission = match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Admission(admission) => admission,
            other => {
                self.phase = other;
                return;
            }
        };
        let AdmissionPhase {
            completed: CompletedLogin { mut reply, request, parameters, command_sn },
            basis,
        } = *admission;
        reply.response.tsih = tsih.0;
        let depth = basis.settings.queue_depth;
        self.channel.send_login_reply(reply, command_sn, depth);
        self.channel.receiver.set_ring_length(RING_LENGTH);
        self.phase =
            Phase::FullFeature(Box::new(FullFeature::new(basis, request, parameters, command_sn, now)));
        self.channel.events.push_back(Event::LoggedIn(tsih));
        self.advance();
    }

    /// The session that was asked for may not begin.
    pub fn refuse_session(&mut self, status: LoginStatus, now: Instant) {
        self.channel.now = now;
        let Phase::Admission(admission) = &self.phase else { return };
        let CompletedLogin { reply, command_sn, .. } = &admission.completed;
        let mut response = reply.response.clone();
        response.status = status;
        response.next_stage = None;
        let command_sn = *command_sn;
        self.channel.send_login_reply(LoginReply { response, text: Vec::new() }, command_sn, 1);
        self.close(CloseReason::LoginFailed(LoginFailure { status, fault: LoginFault::NotAdmitted }));
    }

    /// A command has ended: its response is sent, unless the connection is over or the command was
    /// aborted.
    pub fn complete_command(&mut self, task: TaskId, result: ScsiResult, now: Instant) {
        self.channel.now = now;
        if let Phase::FullFeature(full) = &mut self.phase {
            full.complete_command(&mut self.channel, task, Some(result));
        }
        self.advance();
    }

    /// A command was aborted, and runs no more: no response is sent.
    pub fn abandon_command(&mut self, task: TaskId, now: Instant) {
        self.channel.now = now;
        if let Phase::FullFeature(full) = &mut self.phase {
            full.complete_command(&mut self.channel, task, None);
        }
        self.advance();
    }

    /// A task management function is done, and all that it affects has drained.
    pub fn complete_task_management(&mut self, id: ManagementId, result: TaskManagementResult, now: Instant) {
        self.channel.now = now;
        if let Phase::FullFeature(full) = &mut self.phase {
            full.complete_task_management(&mut self.channel, id, result);
        }
        self.advance();
    }

    /// Asks the initiator to log out, as at a shutdown; who does not in time is dropped.
    pub fn begin_async_logout(&mut self, now: Instant) {
        self.channel.now = now;
        match &mut self.phase {
            Phase::FullFeature(full) => full.begin_async_logout(&mut self.channel),
            _ => self.close(CloseReason::Dropped),
        }
    }

    /// Sends a SCSI asynchronous event with its sense data (section 11.9).
    pub fn send_scsi_event(&mut self, lun: [u8; 8], sense: &[u8], now: Instant) {
        self.channel.now = now;
        if let Phase::FullFeature(full) = &mut self.phase {
            full.send_scsi_event(&mut self.channel, lun, sense);
        }
    }

    /// Ends the connection from this side, telling the initiator where it can be told.
    pub fn drop_connection(&mut self, reason: CloseReason, now: Instant) {
        self.channel.now = now;
        if let Phase::FullFeature(full) = &mut self.phase {
            full.announce_drop(&mut self.channel);
        }
        self.close(reason);
    }

    /// Memory that was waited for may be there.
    pub fn handle_wake(&mut self, now: Instant) {
        self.channel.now = now;
        if let Phase::FullFeature(full) = &mut self.phase {
            full.handle_memory(&mut self.channel);
        }
        self.advance();
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.channel.closing.is_some() {
            let is_flushed = self.channel.transmitter.is_empty();
            return (!is_flushed).then(|| after(self.channel.closing_since, FLUSH_TIME));
        }
        match &self.phase {
            Phase::Login(login) => Some(login.deadline),
            Phase::FullFeature(full) => Some(full.next_timeout()),
            Phase::Admission(_) | Phase::Ended => None,
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.channel.now = now;
        if self.channel.closing.is_some() {
            if now >= after(self.channel.closing_since, FLUSH_TIME) {
                self.channel.transmitter.clear();
            }
            return;
        }
        match &mut self.phase {
            Phase::Login(login) if now >= login.deadline => self.close(CloseReason::LoginTimeout),
            Phase::FullFeature(full) => full.handle_timeout(&mut self.channel),
            _ => {}
        }
        self.advance();
    }

    /// Whether received bytes must wait.
    fn is_paused(&self) -> bool {
        let is_waiting = match &self.phase {
            Phase::Login(_) => false,
            Phase::FullFeature(full) => full.is_logging_out(),
            Phase::Admission(_) | Phase::Ended => true,
        };
        is_waiting || self.channel.closing.is_some() || self.channel.transmitter.is_backlogged()
    }

    /// Does what the bytes that are there ask for.
    fn advance(&mut self) {
        while !self.is_paused() {
            let (digests, limit) = self.limits();
            match self.channel.receiver.poll(digests, limit) {
                Ok(None) => break,
                Ok(Some(Received::Headers { header, lengths, pdu })) => {
                    self.handle_headers(header, lengths, pdu);
                }
                Ok(Some(Received::Whole { memory, destination, is_intact })) => {
                    self.handle_whole(memory, destination, is_intact);
                }
                Err(error) => self.handle_framing_error(error),
            }
        }
        if self.channel.closing.is_some() {
            self.end_phase();
        } else {
            self.channel.receiver.rest();
        }
    }

    fn limits(&self) -> (Digests, usize) {
        match &self.phase {
            Phase::FullFeature(full) => {
                let parameters = full.parameters();
                (parameters.digests, parameters.receive_data_segment_length as usize)
            }
            _ => (Digests::default(), DEFAULT_DATA_SEGMENT_LENGTH as usize),
        }
    }

    fn handle_headers(
        &mut self,
        header: BasicHeader,
        lengths: PduLengths,
        pdu: Result<InitiatorPdu, PduError>,
    ) {
        let (destination, meaning) = match &mut self.phase {
            Phase::FullFeature(full) => full.begin(&mut self.channel, header, lengths.data, pdu),
            _ => match pdu {
                Ok(InitiatorPdu::Login(request)) => {
                    (Destination::Text(Vec::with_capacity(lengths.data)), Meaning::Login(request))
                }
                Ok(_) | Err(PduError::Opcode(_)) => return self.refuse_login(&header, LoginFault::NotALogin),
                Err(_) => return self.refuse_login(&header, LoginFault::Malformed),
            },
        };
        self.channel.receiver.begin(lengths, destination, meaning);
    }

    fn handle_whole(&mut self, meaning: Meaning, destination: Destination, is_intact: bool) {
        match &mut self.phase {
            Phase::FullFeature(full) => full.finish(&mut self.channel, meaning, destination, is_intact),
            Phase::Login(login) => {
                if let (Meaning::Login(request), Destination::Text(text)) = (meaning, destination) {
                    let step = login.login.handle_request(&request, &text);
                    self.take_login_step(step, request.command_sn);
                }
            }
            Phase::Admission(_) | Phase::Ended => {}
        }
    }

    fn take_login_step(&mut self, step: LoginStep, command_sn: SerialNumber) {
        match step {
            LoginStep::Reply(reply) => self.channel.send_login_reply(reply, command_sn, 1),
            LoginStep::Refuse(reply, failure) => {
                self.channel.send_login_reply(reply, command_sn, 1);
                self.close(CloseReason::LoginFailed(failure));
            }
            LoginStep::Complete(completed) => {
                let Phase::Login(login) = std::mem::replace(&mut self.phase, Phase::Ended) else { return };
                let request = Box::new(completed.request.clone());
                self.channel.events.push_back(Event::SessionRequested(request));
                let basis = login.basis;
                self.phase = Phase::Admission(Box::new(AdmissionPhase { completed: *completed, basis }));
            }
        }
    }

    fn handle_framing_error(&mut self, error: PduError) {
        match &self.phase {
            Phase::FullFeature(_) => self.close(CloseReason::Protocol(ProtocolFault::Pdu(error))),
            _ => {
                let failure = LoginFailure::from(LoginFault::Malformed);
                self.close(CloseReason::LoginFailed(failure));
            }
        }
    }

    fn refuse_login(&mut self, header: &BasicHeader, fault: LoginFault) {
        let failure = LoginFailure::from(fault);
        let response = LoginResponse::refusing(header, failure.status);
        let reply = LoginReply { response, text: Vec::new() };
        self.channel.send_login_reply(reply, SerialNumber(0), 1);
        self.close(CloseReason::LoginFailed(failure));
    }

    fn close(&mut self, reason: CloseReason) {
        self.channel.close(reason);
        self.end_phase();
    }

    /// Lets go of what only a living connection needs.
    fn end_phase(&mut self) {
        self.channel.receiver.stop();
        match &mut self.phase {
            Phase::FullFeature(full) => full.end(),
            phase => *phase = Phase::Ended,
        }
    }
}

impl Channel {
    /// Begins the end, once.
    fn close(&mut self, reason: CloseReason) {
        if self.closing.is_none() {
            self.closing = Some(reason);
            self.closing_since = self.now;
            self.events.push_back(Event::Close(reason));
        }
    }

    /// The StatSN of a response that is sent now.
    fn take_status_sn(&mut self) -> SerialNumber {
        let number = self.status_sn;
        self.status_sn = number.next();
        number
    }

    fn send_login_reply(&mut self, reply: LoginReply, command_sn: SerialNumber, depth: u32) {
        let LoginReply { mut response, text } = reply;
        response.serials = ResponseSerials {
            status_sn: self.take_status_sn(),
            expected_command_sn: command_sn,
            maximum_command_sn: command_sn.plus(depth - 1),
        };
        self.transmitter.push_pdu(response.emit(), &text, Digests::default());
    }
}

/// Longest transfer whose buffer, a power of two, `budget` can ever grant.
fn largest_transfer(budget: &DataBudget) -> u32 {
    let power = budget.largest_charge().checked_ilog2().unwrap_or(0);
    1u32.checked_shl(power).unwrap_or(u32::MAX)
}

/// The instant `duration` after `start`.
fn after(start: Instant, duration: std::time::Duration) -> Instant {
    Instant(start.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
}

/// Ring before there is a session: a login PDU of the longest kind fits.
const LOGIN_RING_LENGTH: usize = 16 << 10;

/// Ring in full feature phase: some fifteen writes of 4 KiB with one read of the socket.
const RING_LENGTH: usize = 64 << 10;

/// Time that the last words of a connection get to leave.
const FLUSH_TIME: std::time::Duration = std::time::Duration::from_secs(2);
