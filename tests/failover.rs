//! A mirrored volume in use by a host with two paths while nodes are killed, stopped and moved away from: nothing
//! acknowledged is lost, nothing stale is read, and the host goes on within seconds.
//!
//! `FAILOVERS=n` says how many nodes are killed (`make failovers`); the distribution of the stall is printed.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/pair/mod.rs"]
mod pair;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::net::SocketAddr;
use std::time::Duration;

use host::{Host, Load};
use pair::Pair;
use service::wait_until;

const TARGET: &str = "iqn.2026-11.io.gemel:demo:demo";
/// XenServer's high availability gives up after 30 s; we never come near.
const LONGEST_STALL: Duration = Duration::from_secs(8);
/// What an administrator has asked for is hardly noticed: never longer than this, though others want the processors.
const LONGEST_MOVE: Duration = Duration::from_secs(1);
/// And usually not longer than this.
const USUAL_MOVE: Duration = Duration::from_millis(300);
/// Of many failovers, all but one in a hundred.
const USUAL_STALL: Duration = Duration::from_secs(3);
/// So many are needed to speak of one in a hundred.
const MANY: usize = 100;

fn load(pair: &Pair) -> Load {
    let portals = [1, 2].map(|node| SocketAddr::from(([127, 0, 0, node], pair.portal.port())));
    let host = |number: u64| {
        let first = number * 4096;
        Host::new(&format!("host-{number}"), TARGET, portals, first..first + 100)
    };
    let load = Load::start((0..2).map(host).collect(), || {});
    load.settle();
    load
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

#[test]
fn killing_either_node_under_load_loses_nothing() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    let load = load(&pair);
    let failovers: usize = std::env::var("FAILOVERS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let mut serving = primary(&pair, "a");
    let mut distribution = Vec::new();
    for round in 0..failovers {
        std::thread::sleep(Duration::from_millis(300));
        let survivor = other(&serving);
        load.take_longest();
        pair.kill(&serving);
        wait_until("the other node serves", || primary(&pair, survivor) == survivor);
        load.wait_for_more();
        let stall = load.take_longest();
        println!("failover {round}: {serving} was killed, {stall:?} without an answer");
        assert!(stall < LONGEST_STALL, "a host waited for {stall:?}");
        distribution.push(stall);
        pair.restart(&serving);
        wait_until("both have everything again", || is_in_sync(&pair, survivor));
        serving = primary(&pair, survivor);
    }
    load.finish();
    distribution.sort_unstable();
    let at = |percent: usize| distribution[(distribution.len() - 1) * percent / 100];
    println!("failovers: {failovers}, stall median {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
    assert!(failovers < MANY || at(99) <= USUAL_STALL, "one in a hundred takes longer than {USUAL_STALL:?}");
    pair.demo.interrupt();
}

#[test]
fn a_planned_move_is_hardly_noticed() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    let load = load(&pair);
    let mut stalls = Vec::new();
    for _ in 0..9 {
        let serving = primary(&pair, "a");
        let to = other(&serving);
        load.take_longest();
        let moved = pair.gemel(&serving, &["volume", "move", "demo", "--to", to]);
        assert!(moved.status.success(), "{}", service::errors(&moved));
        std::thread::sleep(Duration::from_millis(500));
        let stall = load.take_longest();
        println!("moved from {serving} to {to}: {stall:?} without an answer");
        assert!(stall < LONGEST_MOVE, "a host waited for {stall:?}");
        stalls.push(stall);
        wait_until("both have everything", || is_in_sync(&pair, to));
        assert_eq!(primary(&pair, to), to);
    }
    stalls.sort_unstable();
    println!(
        "planned moves: {}, median {:?}, longest {:?}",
        stalls.len(),
        stalls[stalls.len() / 2],
        stalls[8]
    );
    assert!(stalls[stalls.len() / 2] <= USUAL_MOVE, "moves take {stalls:?}");
    load.finish();
    pair.demo.interrupt();
}

#[test]
fn a_node_that_stops_in_order_is_hardly_noticed() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    let load = load(&pair);
    // The one that serves hands over first; the other one is not waited for.
    for is_serving in [true, false] {
        let serving = primary(&pair, "a");
        let (stopped, goes_on) = if is_serving {
            (serving.as_str(), other(&serving))
        } else {
            (other(&serving), serving.as_str())
        };
        load.take_longest();
        pair.end(stopped, "-TERM");
        wait_until("the other node serves alone", || {
            primary(&pair, goes_on) == goes_on && !is_in_sync(&pair, goes_on)
        });
        std::thread::sleep(Duration::from_secs(1));
        let stall = load.take_longest();
        println!("{stopped} was stopped in order: {stall:?} without an answer");
        assert!(stall < LONGEST_MOVE, "a host waited for {stall:?}");
        pair.restart(stopped);
        wait_until("both have everything again", || is_in_sync(&pair, goes_on));
    }
    load.finish();
    pair.demo.interrupt();
}
