//! Loads an iSCSI target from one thread, and what is measured meanwhile.

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gemel::iscsi::initiator::{Event, LoginSettings};
use gemel::iscsi::pdu::Isid;
use hdrhistogram::Histogram;

use crate::case::{Addresses, Case};
use crate::process::Usage;
use crate::session::{Session, read_command, write_command};

/// Where a target is.
pub struct Portal {
    pub address: SocketAddr,
    pub target_name: String,
    pub lun: u8,
    /// Bytes that cases work on.
    pub bytes: u64,
    /// Processes whose use of CPU and disks is counted, together.
    pub processes: Vec<u32>,
}

/// What one round of a case gave.
pub struct Measurement {
    pub operations: u64,
    pub elapsed: Duration,
    pub latency_ns: Histogram<u64>,
    pub usage: Usage,
}

impl Measurement {
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }
}

/// Runs `case` for `duration`, after a fifth of it to warm up.
pub fn run(portal: &Portal, case: &Case, duration: Duration) -> Result<Measurement, Box<dyn Error>> {
    let mut sessions = Vec::new();
    let mut loads = Vec::new();
    for number in 0..case.sessions {
        sessions.push(open(portal, number)?);
        loads.push(SessionLoad::new(portal, case, number));
    }
    for (session, load) in sessions.iter_mut().zip(&mut loads) {
        (0..case.queue_depth).for_each(|_| load.submit(session, portal.lun, Instant::now()));
    }
    drive(portal, &mut sessions, &mut loads, duration / 5, &mut Histogram::new(3)?)?;

    let mut latency_ns = Histogram::new(3)?;
    let (before, start) = (Usage::of(&portal.processes)?, Instant::now());
    let operations = drive(portal, &mut sessions, &mut loads, duration, &mut latency_ns)?;
    let elapsed = start.elapsed();
    let usage = Usage::of(&portal.processes)?.since(&before);

    for session in &mut sessions {
        // A logout with commands in flight would abort them.
        for _ in 0..case.queue_depth {
            while !matches!(session.next_event()?, Event::Completed { .. }) {}
        }
        session.connection.log_out();
        while !matches!(session.next_event()?, Event::LoggedOut(_)) {}
    }
    Ok(Measurement { operations, elapsed, latency_ns, usage })
}

/// Writes all of the volume once, so that reads find data.
pub fn fill(portal: &Portal) -> Result<(), Box<dyn Error>> {
    let case =
        Case { name: "fill", writes: true, random: false, block_bytes: 1 << 20, queue_depth: 8, sessions: 1 };
    let (mut session, mut load) = (open(portal, 0)?, SessionLoad::new(portal, &case, 0));
    let (mut started, mut done) = (0, 0);
    let total = portal.bytes / u64::from(case.block_bytes);
    while done < total {
        while started < total && started - done < case.queue_depth as u64 {
            load.submit(&mut session, portal.lun, Instant::now());
            started += 1;
        }
        match session.next_event()? {
            Event::Completed { outcome, .. } if outcome.is_good() => done += 1,
            other => return Err(format!("filling the volume: {other:?}").into()),
        }
    }
    Ok(())
}

fn open(portal: &Portal, number: usize) -> Result<Session, Box<dyn Error>> {
    let mut settings = LoginSettings::normal("iqn.2026-11.io.gemel:bench", &portal.target_name);
    settings.isid = Isid([0x80, 0, 0, 0, 0, number as u8]);
    let mut session = Session::open(portal.address, settings)?;
    // Takes the unit attentions of a new nexus.
    for _ in 0..5 {
        if session.read(portal.lun, 0, 8)?.is_good() {
            return Ok(session);
        }
    }
    Err("the target refuses to read its first block".into())
}

/// Keeps the sessions busy for `duration`; returns how many operations ended.
fn drive(
    portal: &Portal,
    sessions: &mut [Session],
    loads: &mut [SessionLoad],
    duration: Duration,
    latency_ns: &mut Histogram<u64>,
) -> Result<u64, Box<dyn Error>> {
    let start = Instant::now();
    let mut operations = 0;
    while start.elapsed() < duration {
        for session in sessions.iter_mut() {
            session.flush()?;
        }
        Session::wait_any(sessions, Instant::now() + crate::session::TIME_LIMIT)?;
        let now = Instant::now();
        for (session, load) in sessions.iter_mut().zip(loads.iter_mut()) {
            while let Some(event) = session.connection.poll_event() {
                let Event::Completed { tag, outcome } = event else { continue };
                if !outcome.is_good() {
                    return Err(format!("a command of the load ended in {outcome:?}").into());
                }
                let started = load.started[tag.0 as usize];
                latency_ns.record(now.duration_since(started).as_nanos() as u64)?;
                operations += 1;
                load.submit(session, portal.lun, now);
            }
        }
    }
    Ok(operations)
}

/// What one session does.
struct SessionLoad {
    writes: bool,
    block_bytes: u32,
    addresses: Addresses,
    contents: Contents,
    /// When the command of each tag began.
    started: Vec<Instant>,
}

impl SessionLoad {
    fn new(portal: &Portal, case: &Case, number: usize) -> Self {
        Self {
            writes: case.writes,
            block_bytes: case.block_bytes,
            addresses: case.addresses(
                number,
                portal.bytes / u64::from(case.block_bytes),
                seed() + number as u64,
            ),
            contents: Contents::new(case.block_bytes as usize),
            started: Vec::new(),
        }
    }

    fn submit(&mut self, session: &mut Session, lun: u8, now: Instant) {
        let sectors = self.block_bytes / 512;
        let address = self.addresses.next() * u64::from(sectors);
        let mut command = if self.writes {
            write_command(lun, address, sectors, self.contents.next())
        } else {
            read_command(lun, address, sectors, self.block_bytes)
        };
        command.keeps_data = false;
        let tag = session.connection.submit(command).0 as usize;
        if self.started.len() <= tag {
            self.started.resize(tag + 1, now);
        }
        self.started[tag] = now;
    }
}

/// Data that neither compresses nor repeats within a write, in turn from a pool that stays in the cache.
pub struct Contents {
    pool: Bytes,
    block_bytes: usize,
    next: usize,
}

impl Contents {
    pub fn new(block_bytes: usize) -> Self {
        let mut pool = vec![0; block_bytes.max(1 << 20) * 2];
        let mut addresses =
            Case { name: "", writes: true, random: true, block_bytes: 8, queue_depth: 1, sessions: 1 }
                .addresses(0, 1 << 53, seed());
        pool.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&addresses.next().to_le_bytes()));
        Self { pool: Bytes::from(pool), block_bytes, next: 0 }
    }

    pub fn next(&mut self) -> Bytes {
        // The step is odd in units of 512 bytes, so that a write seldom repeats what its place held.
        self.next = (self.next + self.block_bytes + 512) % (self.pool.len() - self.block_bytes);
        self.pool.slice(self.next..self.next + self.block_bytes)
    }
}

/// Different in every run and session.
fn seed() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |since| since.as_nanos() as u64)
}
