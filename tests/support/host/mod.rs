//! A host with a path to each node, as multipath has it, which checks every sector that it reads.
//!
//! Each attempt at a write has a stamp of its own, so a write that was given up and takes effect later is found. A
//! block holds the stamp that was acknowledged last, or one of those that were not acknowledged since; once it was
//! read it stays what it was.

#![allow(dead_code)] // each user of this module takes a part of it

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gemel::iscsi::initiator::{Command, Event, LoginSettings, Outcome};
use gemel::iscsi::pdu::Isid;

use super::initiator::{Session, SessionError, read_command, write_command};

/// Bytes of a block, and sectors in it.
pub const BLOCK_BYTES: usize = 4096;
const SECTORS: u64 = 8;
/// A path that does not answer a command in this time is left, as hosts do whose pings are not answered.
const COMMAND_LIMIT: Duration = Duration::from_millis(2500);
/// The same for a login.
const LOGIN_LIMIT: Duration = Duration::from_millis(1000);
/// The sense key: no failure that these tests make is to show a host that data is lost.
const MEDIUM_ERROR: u8 = 3;
/// After so long without an answer on any path the test has failed.
const HOPELESS: Duration = Duration::from_secs(60);

/// A host that uses some blocks of a volume, one command at a time.
pub struct Host {
    name: String,
    target: String,
    portals: [SocketAddr; 2],
    paths: [Option<Session>; 2],
    active: usize,
    first_block: u64,
    /// What each block may hold.
    blocks: Vec<Vec<u64>>,
    next_stamp: u64,
    /// Longest time that a command took since this was last reset.
    pub longest_stall: Duration,
}

impl Host {
    /// A host called `name` that uses `blocks`, which were never written.
    pub fn new(name: &str, target: &str, portals: [SocketAddr; 2], blocks: Range<u64>) -> Self {
        Self {
            name: format!("iqn.2026-11.io.gemel:{name}"),
            target: target.to_owned(),
            portals,
            paths: [None, None],
            active: 0,
            first_block: blocks.start,
            blocks: vec![vec![0]; (blocks.end - blocks.start) as usize],
            next_stamp: 1,
            longest_stall: Duration::ZERO,
        }
    }

    fn path(&mut self) -> Option<&mut Session> {
        let active = self.active;
        if self.paths[active].is_none() {
            let mut settings = LoginSettings::normal(&self.name, &self.target);
            settings.isid = Isid([0x80, 0, 0, 0, 0, active as u8]);
            self.paths[active] = Session::open_within(self.portals[active], settings, LOGIN_LIMIT).ok();
        }
        self.paths[active].as_mut()
    }

    /// Executes what `command` makes, anew for each attempt, on whichever path takes it.
    fn execute(&mut self, mut command: impl FnMut(&mut Self) -> Command) -> Outcome {
        let began = Instant::now();
        loop {
            let outcome = if self.path().is_some() {
                let command = command(self);
                self.path().map(|session| within_limit(session, command))
            } else {
                None
            };
            let stall = began.elapsed();
            match outcome {
                Some(Ok(outcome)) if outcome.is_good() => {
                    self.longest_stall = self.longest_stall.max(stall);
                    return outcome;
                }
                // A unit attention tells of a change; NOT READY that this path does not serve.
                Some(Ok(outcome)) => {
                    let key = outcome.sense_codes().map(|(key, _, _)| key);
                    assert_ne!(key, Some(MEDIUM_ERROR), "{}: a host met a medium error", self.name);
                }
                Some(Err(_)) | None => self.paths[self.active] = None,
            }
            assert!(stall < HOPELESS, "no path has served for {stall:?}");
            self.active = 1 - self.active;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes `count` blocks from `block` on, until that is acknowledged.
    pub fn write(&mut self, block: usize, count: usize) {
        let address = (self.first_block + block as u64) * SECTORS;
        self.execute(|host| {
            let stamp = host.next_stamp;
            host.next_stamp += 1;
            host.blocks[block..block + count].iter_mut().for_each(|stamps| stamps.push(stamp));
            let data: Vec<u8> =
                (0..count as u64).flat_map(|n| contents(stamp, address / SECTORS + n)).collect();
            write_command(0, address, count as u32 * SECTORS as u32, Bytes::from(data))
        });
        // Everything older is over: nothing that was given up may come back.
        self.blocks[block..block + count]
            .iter_mut()
            .for_each(|stamps| drop(stamps.drain(..stamps.len() - 1)));
    }

    /// Reads a block, and checks it.
    pub fn check(&mut self, block: usize) {
        let address = self.first_block + block as u64;
        let outcome =
            self.execute(|_| read_command(0, address * SECTORS, SECTORS as u32, BLOCK_BYTES as u32));
        let stamp = u64::from_le_bytes(outcome.data[..8].try_into().expect("eight bytes"));
        let possible = &self.blocks[block];
        assert!(possible.contains(&stamp), "{}: block {address} is {stamp}, not of {possible:?}", self.name);
        assert!(outcome.data == contents(stamp, address), "{}: block {address} is torn", self.name);
        self.blocks[block] = vec![stamp];
    }

    /// Whether the present path, or the other one, executes a read now; tries each of them once.
    pub fn is_answered(&mut self) -> bool {
        for _ in 0..2 {
            let command = read_command(0, self.first_block * SECTORS, SECTORS as u32, BLOCK_BYTES as u32);
            let outcome = self.path().map(|session| within_limit(session, command));
            match outcome {
                Some(Ok(outcome)) if outcome.is_good() => return true,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => self.paths[self.active] = None,
            }
            self.active = 1 - self.active;
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub fn check_all(&mut self) {
        (0..self.blocks.len()).for_each(|block| self.check(block));
    }

    /// Writes all blocks, many at a time.
    pub fn fill(&mut self) {
        for first in (0..self.blocks.len()).step_by(64) {
            self.write(first, 64.min(self.blocks.len() - first));
        }
    }

    /// One step of a load of small writes and reads.
    fn step(&mut self, turn: usize) {
        let count = 1 + turn % 4;
        let block = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (self.blocks.len() - count);
        match turn % 4 {
            3 => self.check(block),
            _ => self.write(block, count),
        }
    }
}

/// Every sector says its stamp and its address.
fn contents(stamp: u64, block: u64) -> Vec<u8> {
    let sector = |number: u64| match stamp {
        0 => vec![0; 512],
        _ => [stamp.to_le_bytes(), (block * SECTORS + number).to_le_bytes()].concat().repeat(32),
    };
    (0..SECTORS).flat_map(sector).collect()
}

fn within_limit(session: &mut Session, command: Command) -> Result<Outcome, SessionError> {
    let tag = session.connection.submit(command);
    let deadline = Instant::now() + COMMAND_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match session.next_event_within(left)? {
            Event::Completed { tag: ended, outcome } if ended == tag => return Ok(outcome),
            Event::LoggedOut(_) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            _ => {}
        }
    }
}

/// Hosts at work, each on a thread.
pub struct Load {
    ends: Arc<AtomicBool>,
    operations: Arc<AtomicUsize>,
    stalls: Arc<Mutex<Vec<Duration>>>,
    threads: Vec<JoinHandle<Host>>,
}

impl Load {
    /// Lets the hosts work; `prepare` is called first on each one's thread.
    pub fn start(hosts: Vec<Host>, prepare: impl Fn() + Clone + Send + 'static) -> Self {
        let (ends, operations, stalls) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { ends, operations, stalls, threads: Vec::new() };
        for mut host in hosts {
            let (ends, operations, stalls) =
                (load.ends.clone(), load.operations.clone(), load.stalls.clone());
            let prepare = prepare.clone();
            load.threads.push(std::thread::spawn(move || {
                prepare();
                let mut turn = 0;
                while !ends.load(Ordering::Relaxed) {
                    host.longest_stall = Duration::ZERO;
                    host.step(turn);
                    stalls.lock().expect("nobody fails with it").push(host.longest_stall);
                    operations.fetch_add(1, Ordering::Relaxed);
                    turn += 1;
                }
                host.check_all();
                host
            }));
        }
        load
    }

    /// Operations so far.
    pub fn operations(&self) -> usize {
        self.operations.load(Ordering::Relaxed)
    }

    /// Waits until all hosts work, and forgets how long they waited before.
    pub fn settle(&self) {
        self.wait_for_more();
        self.take_longest();
    }

    /// Waits until there was a good deal more work.
    pub fn wait_for_more(&self) {
        let (before, began) = (self.operations(), Instant::now());
        while self.operations() < before + 20 * self.threads.len() {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a host has failed");
            assert!(began.elapsed() < HOPELESS, "hosts do not work");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The longest that a command took since this was last asked.
    pub fn take_longest(&self) -> Duration {
        let stalls = std::mem::take(&mut *self.stalls.lock().expect("nobody fails with it"));
        stalls.into_iter().max().unwrap_or_default()
    }

    /// Ends the work; every block has been checked then.
    pub fn finish(self) -> Vec<Host> {
        self.ends.store(true, Ordering::Relaxed);
        let join =
            |thread: JoinHandle<Host>| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.threads.into_iter().map(join).collect()
    }
}
