//! The host of a drill: an initiator with a path to each node, that writes and reads all the time and checks what it
//! reads. It goes over to the other path as a multipath driver does, and never gives up.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::iscsi::initiator::{Command, Connection, Event, Login, LoginProgress, LoginSettings, Outcome};
use crate::iscsi::pdu::Isid;

/// What the host calls itself.
pub const INITIATOR: &str = "iqn.2026-11.io.gemel:drill";

/// What the host has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Commands that were executed.
    pub operations: u64,
    /// The longest that one of them took, with all attempts.
    pub longest: Duration,
    /// Reads that gave something else than what was written.
    pub wrong: u64,
}

/// A host at work.
pub struct Host {
    seen: Arc<Mutex<Seen>>,
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Host {
    /// Lets a host work on `target` by these portals.
    ///
    /// # Errors
    /// When there can be no thread for it.
    pub fn start(target: String, portals: Vec<SocketAddr>) -> io::Result<Self> {
        let (seen, ends) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (known, end) = (seen.clone(), ends.clone());
        let work = move || runtime.block_on(Work::new(target, portals, known).run(&end));
        let thread = std::thread::Builder::new().name("drill".to_owned()).spawn(work)?;
        Ok(Self { seen, ends, thread: Some(thread) })
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// The longest command since this was asked last.
    pub fn take_longest(&self) -> Duration {
        std::mem::take(&mut self.lock().longest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // One that has panicked has said so.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

struct Path {
    stream: TcpStream,
    connection: Connection,
}

struct Work {
    target: String,
    portals: Vec<SocketAddr>,
    paths: Vec<Option<Path>>,
    active: usize,
    seen: Arc<Mutex<Seen>>,
    stamps: BTreeMap<u64, u64>,
}

impl Work {
    fn new(target: String, portals: Vec<SocketAddr>, seen: Arc<Mutex<Seen>>) -> Self {
        let paths = portals.iter().map(|_| None).collect();
        Self { target, portals, paths, active: 0, seen, stamps: BTreeMap::new() }
    }

    async fn run(mut self, ends: &AtomicBool) {
        let mut turn = 0u64;
        while !ends.load(Ordering::Relaxed) {
            turn += 1;
            // Every block in turn, in an order of its own.
            let block = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS;
            let began = Instant::now();
            let data = contents(turn, block);
            let write = || Command::new(&cdb(WRITE_16, block)).with_data_out(data.clone());
            if self.execute(write, ends).await.is_none() {
                return;
            }
            self.stamps.insert(block, turn);
            self.note(began);
            let (Some((&block, &stamp)), began) = (
                self.stamps.range(turn % BLOCKS..).next().or_else(|| self.stamps.iter().next()),
                Instant::now(),
            ) else {
                continue;
            };
            let read = || Command::new(&cdb(READ_16, block)).with_data_in(BLOCK_BYTES);
            let Some(outcome) = self.execute(read, ends).await else { return };
            self.note(began);
            if outcome.data != contents(stamp, block) {
                self.lock().wrong += 1;
            }
        }
    }

    fn note(&self, began: Instant) {
        let mut seen = self.lock();
        seen.operations += 1;
        seen.longest = seen.longest.max(began.elapsed());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes a command on whichever path takes it, until it is done or the drill ends.
    async fn execute(&mut self, command: impl Fn() -> Command, ends: &AtomicBool) -> Option<Outcome> {
        while !ends.load(Ordering::Relaxed) {
            let tried = tokio::time::timeout(COMMAND_LIMIT, self.attempt(command())).await;
            match tried {
                Ok(Ok(outcome)) if outcome.is_good() => return Some(outcome),
                // A unit attention, or NOT READY: the path lives, and does not serve now.
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => self.paths[self.active] = None,
            }
            self.active = (self.active + 1) % self.paths.len();
            tokio::time::sleep(BETWEEN_ATTEMPTS).await;
        }
        None
    }

    async fn attempt(&mut self, command: Command) -> Result<Outcome, io::Error> {
        if self.paths[self.active].is_none() {
            let mut settings = LoginSettings::normal(INITIATOR, &self.target);
            settings.isid = Isid([0x80, 0, 0, 0, 1, self.active as u8]);
            let opened =
                tokio::time::timeout(LOGIN_LIMIT, Path::open(self.portals[self.active], settings)).await;
            self.paths[self.active] = Some(opened.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??);
        }
        match &mut self.paths[self.active] {
            Some(path) => path.execute(command).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Path {
    async fn open(portal: SocketAddr, settings: LoginSettings) -> Result<Self, io::Error> {
        let mut stream = TcpStream::connect(portal).await?;
        stream.set_nodelay(true)?;
        let mut login = Login::new(settings);
        loop {
            stream.write_all(&login.take_transmit()).await?;
            let count = stream.read(login.receive_space()).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match login.handle_received(count).map_err(io::Error::other)? {
                LoginProgress::Negotiating(next) => login = next,
                LoginProgress::Connected(connection) => return Ok(Self { stream, connection }),
            }
        }
    }

    async fn execute(&mut self, command: Command) -> Result<Outcome, io::Error> {
        let tag = self.connection.submit(command);
        loop {
            while self.connection.has_transmit() {
                let mut slices = Vec::new();
                self.connection.transmit_slices(&mut slices);
                let count = self.stream.write_vectored(&slices).await?;
                drop(slices);
                self.connection.handle_transmitted(count);
            }
            match self.connection.poll_event() {
                Some(Event::Completed { tag: ended, outcome }) if ended == tag => return Ok(outcome),
                Some(Event::LoggedOut(_)) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Some(_) => {}
                None => {
                    let count = self.stream.read(self.connection.receive_space()).await?;
                    if count == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.connection.handle_received(count).map_err(io::Error::other)?;
                }
            }
        }
    }
}

/// A 16-byte CDB on a block of 4 KiB, in sectors of 512 bytes (SBC-3).
fn cdb(operation: u8, block: u64) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = operation;
    cdb[2..10].copy_from_slice(&(block * SECTORS).to_be_bytes());
    cdb[10..14].copy_from_slice(&(SECTORS as u32).to_be_bytes());
    cdb
}

/// Every eight bytes say what was written, and where.
fn contents(stamp: u64, block: u64) -> Bytes {
    let words = (0..u64::from(BLOCK_BYTES) / 16).flat_map(|_| [stamp.to_le_bytes(), block.to_le_bytes()]);
    words.flatten().collect()
}

const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8a;
const BLOCK_BYTES: u32 = 4096;
const SECTORS: u64 = 8;
/// Blocks that are written.
const BLOCKS: u64 = 2048;
/// How long a command may take on one path before the other one is tried, as open-iscsi with the settings of the guide.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);
const LOGIN_LIMIT: Duration = Duration::from_secs(2);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);
