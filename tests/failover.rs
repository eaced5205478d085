//! A mirrored volume in use by a host with two paths while nodes are killed, stopped and moved away from: nothing
//! acknowledged is lost, nothing stale is read, and the host goes on within seconds.
//!
//! `FAILOVERS=n` says how many nodes are killed (`make failovers`); the distribution of the stall is printed.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/pair/mod.rs"]
mod pair;
#[path = "support/service/mod.rs"]
mod service;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gemel::iscsi::initiator::{LoginSettings, Outcome};
use gemel::iscsi::pdu::Isid;
use initiator::Session;
use pair::Pair;
use service::wait_until;

const TARGET: &str = "iqn.2026-11.io.gemel:demo:demo";
const BLOCKS: u64 = 64;
const BLOCK_BYTES: usize = 4096;
/// XenServer's high availability gives up after 30 s; we never come near.
const LONGEST_STALL: Duration = Duration::from_secs(8);

/// A host with a session to each node, one command at a time.
struct Host {
    name: String,
    portals: [SocketAddr; 2],
    paths: [Option<Session>; 2],
    active: usize,
    /// What each block holds, and what it may hold besides: a write whose answer was lost.
    blocks: Vec<(u64, Option<u64>)>,
    next_stamp: u64,
    longest_stall: Duration,
}

impl Host {
    fn new(pair: &Pair, name: &str) -> Self {
        let portal = |node: u8| SocketAddr::from(([127, 0, 0, node], pair.portal.port()));
        Self {
            name: format!("iqn.2026-11.io.gemel:{name}"),
            portals: [portal(1), portal(2)],
            paths: [None, None],
            active: 0,
            blocks: vec![(0, None); BLOCKS as usize],
            next_stamp: 1,
            longest_stall: Duration::ZERO,
        }
    }

    fn path(&mut self) -> Option<&mut Session> {
        let active = self.active;
        if self.paths[active].is_none() {
            let mut settings = LoginSettings::normal(&self.name, TARGET);
            settings.isid = Isid([0x80, 0, 0, 0, 0, active as u8]);
            self.paths[active] = Session::open(self.portals[active], settings).ok();
        }
        self.paths[active].as_mut()
    }

    /// Executes a command on whichever path takes it, as multipath does; gives up far beyond any limit.
    fn execute(
        &mut self,
        make: impl Fn(&mut Session) -> Result<Outcome, initiator::SessionError>,
    ) -> Outcome {
        let began = Instant::now();
        loop {
            let outcome = self.path().map(&make);
            let stall = began.elapsed();
            match outcome {
                Some(Ok(outcome)) if outcome.is_good() => {
                    self.longest_stall = self.longest_stall.max(stall);
                    return outcome;
                }
                // A unit attention tells of a change; NOT READY that this path does not serve.
                Some(Ok(_)) => {}
                Some(Err(_)) | None => self.paths[self.active] = None,
            }
            assert!(stall < Duration::from_secs(40), "no path has served for {stall:?}");
            self.active = 1 - self.active;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn write(&mut self, block: u64) {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.blocks[block as usize].1 = Some(stamp);
        self.execute(|session| session.write(0, block * 8, data_of(stamp)));
        self.blocks[block as usize] = (stamp, None);
    }

    fn check(&mut self, block: u64) {
        let outcome = self.execute(|session| session.read(0, block * 8, 8));
        let data = outcome.data;
        let stamp = u64::from_le_bytes(data[..8].try_into().unwrap());
        let (last, maybe) = self.blocks[block as usize];
        assert!(stamp == last || Some(stamp) == maybe, "block {block} reads {stamp}: {last} or {maybe:?}");
        assert!(data == data_of(stamp), "block {block} is torn");
        self.blocks[block as usize] = (stamp, None);
    }

    fn check_all(&mut self) {
        (0..BLOCKS).for_each(|block| self.check(block));
    }
}

fn data_of(stamp: u64) -> Bytes {
    stamp.to_le_bytes().repeat(BLOCK_BYTES / 8).into()
}

/// A host at work until it is told to end; gives it back.
fn at_work(mut host: Host) -> (Arc<AtomicBool>, std::thread::JoinHandle<Host>, Arc<Mutex<Vec<Duration>>>) {
    let (ends, stalls) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let (is_ending, noted) = (ends.clone(), stalls.clone());
    let working = std::thread::spawn(move || {
        let mut turn = 0u64;
        while !is_ending.load(Ordering::Relaxed) {
            let block = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS;
            host.longest_stall = Duration::ZERO;
            if turn % 4 == 3 {
                host.check(block)
            } else {
                host.write(block)
            }
            noted.lock().unwrap().push(host.longest_stall);
            turn += 1;
        }
        host
    });
    (ends, working, stalls)
}

fn primary(pair: &Pair, asked: &str) -> String {
    pair.ask(asked, &["volume", "show", "demo"])["primary"].as_str().unwrap().to_owned()
}

fn is_in_sync(pair: &Pair, asked: &str) -> bool {
    pair.ask(asked, &["volume", "show", "demo"])["state"] == "in-sync"
}

fn other(node: &str) -> &'static str {
    if node == "a" { "b" } else { "a" }
}

/// The longest stall since the last call.
fn longest(stalls: &Mutex<Vec<Duration>>) -> Duration {
    std::mem::take(&mut *stalls.lock().unwrap()).into_iter().max().unwrap_or_default()
}

#[test]
fn killing_either_node_under_load_loses_nothing() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    let (ends, working, stalls) = at_work(Host::new(&pair, "host"));
    let failovers: usize = std::env::var("FAILOVERS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let mut serving = primary(&pair, "a");
    let mut distribution = Vec::new();
    for round in 0..failovers {
        std::thread::sleep(Duration::from_millis(300));
        let survivor = other(&serving);
        longest(&stalls);
        pair.kill(&serving);
        wait_until("the other node serves", || primary(&pair, survivor) == survivor);
        let before = stalls.lock().unwrap().len();
        wait_until("hosts go on", || stalls.lock().unwrap().len() > before + 10);
        let stall = longest(&stalls);
        println!("failover {round}: {serving} was killed, {stall:?} without an answer");
        assert!(stall < LONGEST_STALL, "a host waited for {stall:?}");
        distribution.push(stall);
        pair.restart(&serving);
        wait_until("both have everything again", || is_in_sync(&pair, survivor));
        serving = primary(&pair, survivor);
    }
    ends.store(true, Ordering::Relaxed);
    let mut host = working.join().unwrap();
    host.check_all();
    distribution.sort_unstable();
    let at = |percent: usize| distribution[(distribution.len() - 1) * percent / 100];
    println!("failovers: {failovers}, stall median {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
    pair.demo.interrupt();
}

#[test]
fn a_planned_move_is_hardly_noticed() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    let (ends, working, stalls) = at_work(Host::new(&pair, "host"));
    for _ in 0..4 {
        let serving = primary(&pair, "a");
        let to = other(&serving);
        longest(&stalls);
        let moved = pair.gemel(&serving, &["volume", "move", "demo", "--to", to]);
        assert!(moved.status.success(), "{}", service::errors(&moved));
        std::thread::sleep(Duration::from_millis(500));
        println!("moved from {serving} to {to}: {:?} without an answer", longest(&stalls));
        wait_until("both have everything", || is_in_sync(&pair, to));
        assert_eq!(primary(&pair, to), to);
    }
    ends.store(true, Ordering::Relaxed);
    working.join().unwrap().check_all();
    pair.demo.interrupt();
}

#[test]
fn a_node_that_stops_in_order_is_hardly_noticed() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    let (ends, working, stalls) = at_work(Host::new(&pair, "host"));
    // The one that serves hands over first; the other one is not waited for.
    for is_serving in [true, false] {
        let serving = primary(&pair, "a");
        let (stopped, goes_on) = if is_serving {
            (serving.as_str(), other(&serving))
        } else {
            (other(&serving), serving.as_str())
        };
        longest(&stalls);
        pair.end(stopped, "-TERM");
        wait_until("the other node serves alone", || {
            primary(&pair, goes_on) == goes_on && !is_in_sync(&pair, goes_on)
        });
        std::thread::sleep(Duration::from_secs(1));
        println!("{stopped} was stopped in order: {:?} without an answer", longest(&stalls));
        pair.restart(stopped);
        wait_until("both have everything again", || is_in_sync(&pair, goes_on));
    }
    ends.store(true, Ordering::Relaxed);
    working.join().unwrap().check_all();
    pair.demo.interrupt();
}
