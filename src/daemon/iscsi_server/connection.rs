//! One connection's task: moves bytes between the socket and the protocol's state machine, and has
//! its commands executed.
//!
//! A turn takes what the commands have come to, reads, starts what was read, and sends everything
//! with one system call. Nothing is read before there is something to read, and commands run
//! concurrently inside this task. When the connection ends, the task goes on until every command has
//! ended and the nexus has drained; only then is the session given up (I16), and the socket closed in
//! a way that lets the last words arrive.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::IscsiServer;
use super::commands::{Aftermath, Attachment, Done, execute, manage};
use super::mailbox::{Mailbox, Message};
use crate::base::runtime::Instant;
use crate::daemon::data::pool::Pool;
use crate::daemon::data::volumes::target_port;
use crate::iscsi::connection::{CloseReason, Command, Connection, Event, ManagementId};
use crate::iscsi::login::{SessionKind, SessionRequest};
use crate::iscsi::pdu::TaskManagementResult;
use crate::iscsi::pdu::login::LoginStatus;
use crate::iscsi::sessions::{Admission, ConnectionId, Tsih};
use crate::scsi::forward::Management;
use crate::scsi::identity::{InitiatorPort, Nexus};

/// Turns before other tasks get theirs.
const TURNS: usize = 4;
/// Pieces of one vectored send.
const SLICES: usize = 128;

/// Runs a connection to its end, and gives its session up.
pub async fn run<P: Pool>(
    server: Rc<IscsiServer<P>>,
    id: ConnectionId,
    stream: TcpStream,
    peer: SocketAddr,
    machine: Connection,
    mailbox: Mailbox,
) {
    let (now, standstills) = (server.now(), server.standstills());
    let mut task = ConnectionTask {
        timer: Box::pin(tokio::time::sleep(Duration::MAX)),
        timer_at: None,
        attachment: None,
        requested: None,
        managements: FuturesUnordered::new(),
        drain: None,
        is_logged_in: false,
        is_over: false,
        standstills,
        server,
        id,
        stream,
        peer,
        machine,
        mailbox,
        now,
    };
    let mut executions = FuturesUnordered::new();
    std::future::poll_fn(|context| task.poll(context, &mut executions, execute)).await;
    let ConnectionTask { server, stream, machine, is_logged_in, .. } = task;
    let was_cut_off = machine.closing() == Some(CloseReason::Disconnected);
    drop((machine, executions));
    // It lingers before it counts as ended, so that a stop waits for it.
    let place = if was_cut_off { None } else { server.lingering.enter() };
    server.ended(id, is_logged_in);
    if let Some(place) = place {
        place.close(stream).await;
    }
}

struct ConnectionTask<P: Pool> {
    server: Rc<IscsiServer<P>>,
    id: ConnectionId,
    stream: TcpStream,
    peer: SocketAddr,
    machine: Connection,
    mailbox: Mailbox,
    now: Instant,
    timer: Pin<Box<Sleep>>,
    /// What the timer is set to.
    timer_at: Option<Instant>,
    attachment: Option<Attachment<P>>,
    /// The session that a login has asked for, until it is admitted.
    requested: Option<Box<SessionRequest>>,
    managements: FuturesUnordered<LocalBoxFuture<'static, (ManagementId, TaskManagementResult, Aftermath)>>,
    /// The end of the nexus, once the connection ends.
    drain: Option<LocalBoxFuture<'static, ()>>,
    is_logged_in: bool,
    /// The state machine has said that the connection ends.
    is_over: bool,
    /// How often this node had stood still when the connection began.
    standstills: u64,
}

impl<P: Pool> ConnectionTask<P> {
    /// Does what can be done now; ready when the connection is at its end.
    fn poll<F: Future<Output = Done>>(
        &mut self,
        context: &mut Context<'_>,
        executions: &mut FuturesUnordered<F>,
        start: impl Fn(Rc<crate::daemon::data::volumes::Unit<P>>, crate::scsi::identity::NexusId, Command) -> F,
    ) -> Poll<()> {
        for _ in 0..TURNS {
            self.now = self.server.now();
            let mut is_busy = self.drop_after_standstill();
            if self.mailbox.take_poke(context.waker()) {
                self.read_mail();
                is_busy = true;
            }
            is_busy |= self.poll_timer(context);
            is_busy |= self.poll_receive(context);
            loop {
                let has_events = self.handle_events(executions, &start);
                let has_ended = self.poll_executions(context, executions);
                is_busy |= has_events | has_ended;
                if !has_events && !has_ended {
                    break;
                }
            }
            is_busy |= self.poll_transmit(context);
            if self.is_over && executions.is_empty() {
                ready!(self.poll_end(context));
                return Poll::Ready(());
            }
            if !is_busy && self.set_timer(context) {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ends a connection whose host may have gone on elsewhere while this node stood still, before anything of it is
    /// read or executed.
    fn drop_after_standstill(&mut self) -> bool {
        let standstills = self.server.standstills();
        let is_stale = std::mem::replace(&mut self.standstills, standstills) != standstills && !self.is_over;
        if is_stale {
            self.machine.drop_connection(CloseReason::Dropped, self.now);
        }
        is_stale
    }

    fn read_mail(&mut self) {
        for message in self.mailbox.take() {
            match message {
                Message::Admit(tsih) => self.admit(tsih),
                Message::AskForLogout => self.machine.begin_async_logout(self.now),
                Message::Drop(reason) => self.machine.drop_connection(reason, self.now),
            }
        }
        self.machine.handle_wake(self.now);
    }

    /// Tells the state machine when its time has come.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> bool {
        if self.timer_at.is_none() || self.timer.as_mut().poll(context).is_pending() {
            return false;
        }
        self.timer_at = None;
        self.machine.handle_timeout(self.now);
        true
    }

    /// Sets the timer to the state machine's next time, unless it goes off before that anyway. False
    /// when it has gone off already.
    fn set_timer(&mut self, context: &mut Context<'_>) -> bool {
        let Some(next) = self.machine.next_timeout() else { return true };
        if self.timer_at.is_some_and(|at| at <= next) {
            return true;
        }
        self.timer_at = Some(next);
        let deadline = tokio::time::Instant::now() + next.since(self.now);
        self.timer.as_mut().reset(deadline);
        self.timer.as_mut().poll(context).is_pending()
    }

    /// Reads once.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> bool {
        if self.is_over || self.stream.poll_read_ready(context).is_pending() {
            return false;
        }
        let buffer = self.machine.receive_buffer();
        if buffer.is_empty() {
            return false;
        }
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                let count = buffer.filled().len();
                self.server.count_received(count);
                self.machine.handle_received(count, self.now);
            }
            Poll::Ready(_) => self.machine.handle_disconnected(self.now),
            Poll::Pending => {
                self.machine.handle_received(0, self.now);
                return false;
            }
        }
        true
    }

    fn handle_events<F: Future<Output = Done>>(
        &mut self,
        executions: &FuturesUnordered<F>,
        start: &impl Fn(Rc<crate::daemon::data::volumes::Unit<P>>, crate::scsi::identity::NexusId, Command) -> F,
    ) -> bool {
        let mut any = false;
        while let Some(event) = self.machine.poll_event() {
            any = true;
            match event {
                Event::Command(command) => match &self.attachment {
                    Some(attachment) => {
                        executions.push(start(attachment.volume.unit.clone(), attachment.nexus, command));
                    }
                    None => self.machine.abandon_command(command.task, self.now),
                },
                Event::TaskManagement(request) => match &self.attachment {
                    Some(attachment) => self.managements.push(manage(attachment, request)),
                    None => {
                        let result = TaskManagementResult::LunDoesNotExist;
                        self.machine.complete_task_management(request.id, result, self.now);
                    }
                },
                Event::SessionRequested(request) => self.request_session(request),
                Event::LoggedIn(_) => self.logged_in(),
                Event::AbortTasks => {
                    if let Some(attachment) = &self.attachment {
                        // What drains is in `executions`, whose ends the state machine waits for.
                        drop(attachment.volume.unit.manage(attachment.nexus, Management::AbortTaskSet));
                    }
                }
                Event::Close(reason) => self.close(reason),
            }
        }
        any
    }

    fn poll_executions<F: Future<Output = Done>>(
        &mut self,
        context: &mut Context<'_>,
        executions: &mut FuturesUnordered<F>,
    ) -> bool {
        let mut any = false;
        while let Poll::Ready(Some((task, result))) = executions.poll_next_unpin(context) {
            any = true;
            match result {
                Some(result) => self.machine.complete_command(task, result, self.now),
                None => self.machine.abandon_command(task, self.now),
            }
        }
        while let Poll::Ready(Some((id, result, aftermath))) = self.managements.poll_next_unpin(context) {
            any = true;
            self.machine.complete_task_management(id, result, self.now);
            if let (Aftermath::EndSessions, Some(attachment)) = (aftermath, &self.attachment) {
                self.server.drop_sessions_of(attachment.volume.id);
            }
        }
        any
    }

    /// Sends until there is nothing to send or the socket takes no more.
    fn poll_transmit(&mut self, context: &mut Context<'_>) -> bool {
        let mut any = false;
        while !self.machine.is_flushed() {
            let sent = {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = self.machine.transmit_slices(&mut slices);
                self.stream.try_write_vectored(&slices[..count])
            };
            match sent {
                Ok(count) => {
                    self.server.count_sent(count);
                    self.machine.handle_transmitted(count, self.now);
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stream.poll_write_ready(context).is_pending() {
                        break;
                    }
                }
                Err(_) => {
                    self.machine.handle_disconnected(self.now);
                    return true;
                }
            }
        }
        any
    }

    /// What is left when no command is in progress any more: last words, and the drain of the nexus.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(drain) = &mut self.drain {
            ready!(drain.as_mut().poll(context));
            self.drain = None;
        }
        if self.machine.is_flushed() {
            return Poll::Ready(());
        }
        // A false answer means that the time for the last words is over, which the next turn sees.
        if !self.set_timer(context) {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn request_session(&mut self, request: Box<SessionRequest>) {
        let admission = self.server.request_session(self.id, &request);
        self.requested = Some(request);
        match admission {
            Admission::Admitted(tsih) => self.admit(tsih),
            Admission::Wait { drop } => {
                self.server.send(drop, Message::Drop(CloseReason::Reinstated));
            }
            Admission::Refused(status) => self.machine.refuse_session(status, self.now),
        }
    }

    /// The session may begin: the initiator becomes known to the logical unit.
    fn admit(&mut self, tsih: Tsih) {
        let Some(request) = self.requested.take() else { return };
        if self.is_over {
            return;
        }
        if let SessionKind::Normal { target } = &request.kind {
            let Some(volume) = self.server.volume_for(target, &request.initiator) else {
                return self.machine.refuse_session(LoginStatus::NOT_FOUND, self.now);
            };
            let initiator = InitiatorPort { name: request.initiator.to_string(), isid: request.isid.0 };
            let nexus =
                volume.unit.attach(Nexus { initiator, target_port: target_port(self.server.group_tag()) });
            self.attachment = Some(Attachment { volume, nexus });
        }
        self.machine.admit_session(tsih, self.now);
    }

    fn logged_in(&mut self) {
        self.is_logged_in = true;
        self.server.logged_in();
        if let (Some(session), Some(attachment)) = (self.machine.session(), &self.attachment) {
            let (initiator, volume, peer) = (&session.initiator, &attachment.volume.name, self.peer);
            tracing::info!(%initiator, volume, %peer, "session begins");
        }
    }

    fn close(&mut self, reason: CloseReason) {
        self.is_over = true;
        if let Some(attachment) = &self.attachment {
            self.drain = Some(Box::pin(attachment.volume.unit.detach(attachment.nexus).wait()));
            let (volume, peer) = (&attachment.volume.name, self.peer);
            tracing::info!(volume, %peer, %reason, "session ends");
        } else if matches!(reason, CloseReason::LoginFailed(_) | CloseReason::LoginTimeout) {
            tracing::info!(peer = %self.peer, %reason, "login failed");
        }
    }
}
