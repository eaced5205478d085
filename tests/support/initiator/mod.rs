//! Drives the initiator of `gemel::iscsi::initiator` over TCP: one thread, blocking with a time limit.
//!
//! A [`Session`] batches: everything submitted since the last wait goes out with one vectored send, and one
//! receive takes all that has come. [`Session::wait_any`] serves several sessions from one thread.

#![allow(dead_code)] // each user of this module takes a part of it

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gemel::iscsi::initiator::{
    Command, Connection, Event, InitiatorError, Login, LoginProgress, LoginSettings, Outcome,
};
use gemel::iscsi::pdu::InitiatorTaskTag;

/// A logged-in connection over TCP.
pub struct Session {
    pub stream: TcpStream,
    pub connection: Connection,
}

/// Why a session can't go on.
#[derive(Debug)]
pub enum SessionError {
    /// The socket failed, was closed by the target (`UnexpectedEof`), or the time limit has passed (`TimedOut`).
    Io(io::Error),
    /// The target refused or broke the protocol.
    Initiator(InitiatorError),
}

impl From<io::Error> for SessionError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<InitiatorError> for SessionError {
    fn from(error: InitiatorError) -> Self {
        Self::Initiator(error)
    }
}

impl std::fmt::Display for SessionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Initiator(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SessionError {}

impl Session {
    /// Connects and logs in.
    pub fn open(portal: SocketAddr, settings: LoginSettings) -> Result<Self, SessionError> {
        Self::open_within(portal, settings, TIME_LIMIT)
    }

    /// The same, waiting no longer for any step.
    pub fn open_within(
        portal: SocketAddr,
        settings: LoginSettings,
        limit: Duration,
    ) -> Result<Self, SessionError> {
        let mut stream = TcpStream::connect_timeout(&portal, limit)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        let mut login = Login::new(settings);
        let connection = loop {
            stream.write_all(&login.take_transmit())?;
            let count = receive(&mut stream, login.receive_space())?;
            match login.handle_received(count)? {
                LoginProgress::Negotiating(next) => login = next,
                LoginProgress::Connected(connection) => break connection,
            }
        };
        stream.set_nonblocking(true)?;
        Ok(Self { stream, connection })
    }

    /// Sends everything that is queued.
    pub fn flush(&mut self) -> Result<(), SessionError> {
        let deadline = Instant::now() + TIME_LIMIT;
        while self.connection.has_transmit() {
            let mut slices = Vec::new();
            self.connection.transmit_slices(&mut slices);
            match self.stream.write_vectored(&slices) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(count) => self.connection.handle_transmitted(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // A target that waits for its own answers to be read would block for ever: read too.
                    self.poll(libc::POLLIN | libc::POLLOUT, deadline)?;
                    self.receive_available()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes what has come, without waiting; false when nothing had.
    pub fn receive_available(&mut self) -> Result<bool, SessionError> {
        match receive(&mut self.stream, self.connection.receive_space()) {
            Ok(count) => {
                self.connection.handle_received(count)?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next event, at the latest after the module's time limit.
    pub fn next_event(&mut self) -> Result<Event, SessionError> {
        self.next_event_within(TIME_LIMIT)
    }

    /// The next event, at the latest after `limit`.
    pub fn next_event_within(&mut self, limit: Duration) -> Result<Event, SessionError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(event) = self.connection.poll_event() {
                return Ok(event);
            }
            self.flush()?;
            self.poll(libc::POLLIN, deadline)?;
            self.receive_available()?;
        }
    }

    /// Executes one command; other events meanwhile are an error of the test.
    pub fn execute(&mut self, command: Command) -> Result<Outcome, SessionError> {
        let tag = self.connection.submit(command);
        self.outcome_of(tag)
    }

    /// Waits for the end of a command, passing over asynchronous messages.
    pub fn outcome_of(&mut self, tag: InitiatorTaskTag) -> Result<Outcome, SessionError> {
        loop {
            match self.next_event()? {
                Event::Completed { tag: ended, outcome } if ended == tag => return Ok(outcome),
                Event::Asynchronous(_) => {}
                other => panic!("waiting for a command, the target sent {other:?}"),
            }
        }
    }

    /// Reads blocks of 512 bytes.
    pub fn read(&mut self, lun: u8, address: u64, blocks: u32) -> Result<Outcome, SessionError> {
        self.execute(read_command(lun, address, blocks, blocks * 512))
    }

    /// Writes blocks of 512 bytes.
    pub fn write(&mut self, lun: u8, address: u64, data: Bytes) -> Result<Outcome, SessionError> {
        let blocks = (data.len() / 512) as u32;
        self.execute(write_command(lun, address, blocks, data))
    }

    /// Waits until one of `sessions` has something to receive, and takes it.
    pub fn wait_any(sessions: &mut [Self], deadline: Instant) -> Result<(), SessionError> {
        let mut polled: Vec<libc::pollfd> =
            sessions.iter().map(|session| session.pollfd(libc::POLLIN)).collect();
        poll(&mut polled, deadline)?;
        for (session, polled) in sessions.iter_mut().zip(&polled) {
            if polled.revents != 0 {
                session.receive_available()?;
            }
        }
        Ok(())
    }

    fn pollfd(&self, events: libc::c_short) -> libc::pollfd {
        libc::pollfd { fd: self.stream.as_raw_fd(), events, revents: 0 }
    }

    fn poll(&self, events: libc::c_short, deadline: Instant) -> Result<(), SessionError> {
        Ok(poll(&mut [self.pollfd(events)], deadline)?)
    }
}

/// READ(16) of `blocks` logical blocks that take `length` bytes.
pub fn read_command(lun: u8, address: u64, blocks: u32, length: u32) -> Command {
    Command::new(&cdb16(0x88, address, blocks)).to_lun(lun).with_data_in(length)
}

/// WRITE(16) of `data`, which is `blocks` logical blocks.
pub fn write_command(lun: u8, address: u64, blocks: u32, data: Bytes) -> Command {
    Command::new(&cdb16(0x8a, address, blocks)).to_lun(lun).with_data_out(data)
}

/// A 16-byte CDB with an address and a count in the usual places (SBC-3).
pub fn cdb16(operation: u8, address: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = operation;
    cdb[2..10].copy_from_slice(&address.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// How long a test waits for a target before it fails.
pub const TIME_LIMIT: Duration = Duration::from_secs(20);

fn receive(stream: &mut TcpStream, space: &mut [u8]) -> io::Result<usize> {
    match stream.read(space) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        other => other,
    }
}

fn poll(polled: &mut [libc::pollfd], deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout_ms = libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer and the length are those of one slice that lives through the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout_ms) };
    match ready {
        0 => Err(ErrorKind::TimedOut.into()),
        count if count < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
