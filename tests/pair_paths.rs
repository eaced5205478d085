//! What hosts see of a pair by either path: one logical unit, whichever node serves it, also while the one that serves
//! goes away.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/pair/mod.rs"]
mod pair;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::time::{Duration, Instant};

use bytes::Bytes;
use gemel::iscsi::initiator::{Command, InitiatorError, LoginSettings, Outcome};
use gemel::iscsi::pdu::Isid;
use gemel::iscsi::pdu::login::LoginStatus;
use initiator::{Session, SessionError};
use pair::Pair;
use service::wait_until;

const TARGET: &str = "iqn.2026-11.io.gemel:demo:demo";
const CONFLICT: u8 = 0x18;
const LONGEST_STALL: Duration = Duration::from_secs(8);

fn is_in_sync(pair: &Pair, asked: &str) -> bool {
    pair.ask(asked, &["volume", "show", "demo"])["state"] == "in-sync"
}

fn settings(host: &str, isid: u8) -> LoginSettings {
    let mut settings = LoginSettings::normal(&format!("iqn.2026-11.io.gemel:{host}"), TARGET);
    settings.isid = Isid([0x80, 0, 0, 0, 0, isid]);
    settings
}

fn open(pair: &Pair, node: &str, host: &str) -> Session {
    Session::open(pair.portal_of(node), settings(host, 1)).unwrap()
}

/// Executes a command, again after unit attentions and transitions.
fn settled(session: &mut Session, command: &Command) -> Outcome {
    let began = Instant::now();
    loop {
        let outcome = session.execute(command.clone()).unwrap();
        match outcome.status {
            2 if [2, 6].contains(&outcome.sense[2]) => {}
            _ => return outcome,
        }
        assert!(began.elapsed() < LONGEST_STALL, "{outcome:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn reserve_out(action: u8, kind: u8, key: u64, new_key: u64) -> Command {
    let mut list = vec![0; 24];
    list[0..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&new_key.to_be_bytes());
    Command::new(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]).with_data_out(list.into())
}

fn reserve_in(action: u8) -> Command {
    Command::new(&[0x5e, action, 0, 0, 0, 0, 0, 2, 0, 0]).with_data_in(512)
}

fn write(block: u64, byte: u8) -> Command {
    initiator::write_command(0, block * 8, 8, Bytes::from(vec![byte; 4096]))
}

fn read(block: u64) -> Command {
    initiator::read_command(0, block * 8, 8, 4096)
}

/// The states of portal groups 1 and 2, as a session is told.
fn states(session: &mut Session) -> (u8, u8) {
    let report = Command::new(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]).with_data_in(255);
    let data = settled(session, &report).data;
    (data[4] & 0x0f, data[16] & 0x0f)
}

fn keys(outcome: &Outcome) -> Vec<u64> {
    let mut keys: Vec<u64> =
        outcome.data[8..].chunks_exact(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect();
    let count = u32::from_be_bytes(outcome.data[4..8].try_into().unwrap()) as usize / 8;
    keys.truncate(count);
    keys.sort_unstable();
    keys
}

#[test]
fn both_paths_reach_one_unit_and_its_reservations_outlive_the_node() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    assert_eq!(pair.ask("a", &["volume", "show", "demo"])["primary"], "a");
    let (mut by_a, mut by_b) = (open(&pair, "a", "one"), open(&pair, "b", "one"));
    let mut other = open(&pair, "b", "two");
    wait_until("the other path is usable", || states(&mut by_b) == (0, 1) && states(&mut by_a) == (0, 1));

    assert!(settled(&mut by_b, &write(3, 7)).is_good());
    assert_eq!(settled(&mut by_a, &read(3)).data, [7; 4096]);
    assert!(settled(&mut other, &write(4, 8)).is_good());

    // Registered by both paths, reserved by the one that serves: write exclusive, registrants only.
    assert!(settled(&mut by_a, &reserve_out(6, 0, 0, 0x11)).is_good());
    assert!(settled(&mut by_b, &reserve_out(6, 0, 0, 0x12)).is_good());
    assert!(settled(&mut by_a, &reserve_out(1, 5, 0x11, 0)).is_good());
    assert_eq!(settled(&mut other, &write(4, 9)).status, CONFLICT);
    assert!(settled(&mut by_b, &write(3, 9)).is_good());
    assert_eq!(keys(&settled(&mut other, &reserve_in(0))), [0x11, 0x12]);

    pair.kill("a");
    wait_until("the other node serves", || pair.ask("b", &["volume", "show", "demo"])["primary"] == "b");
    assert_eq!(settled(&mut other, &write(4, 10)).status, CONFLICT, "the reservation holds");
    assert_eq!(keys(&settled(&mut by_b, &reserve_in(0))), [0x11, 0x12]);
    let held = settled(&mut by_b, &reserve_in(1)).data;
    assert_eq!((&held[8..16], held[21]), (&0x11u64.to_be_bytes()[..], 5));
    assert!(settled(&mut by_b, &write(3, 11)).is_good(), "a registrant goes on");
    assert_eq!(settled(&mut other, &read(4)).data, [8; 4096]);

    // The holder's own path is back, through the node that was killed, which forwards now.
    pair.restart("a");
    let mut by_a = open(&pair, "a", "one");
    wait_until("the path is usable again", || states(&mut by_a) == (1, 0));
    assert!(settled(&mut by_a, &write(3, 12)).is_good());
    assert_eq!(settled(&mut by_b, &read(3)).data, [12; 4096]);
    // Preempted through the forwarded path; the victim is told, once, where it is.
    assert!(settled(&mut by_a, &reserve_out(4, 5, 0x11, 0x12)).is_good());
    let told = by_b.execute(Command::new(&[0; 6])).unwrap();
    assert_eq!((told.status, told.sense[2], &told.sense[12..14]), (2, 6, &[0x2a, 0x05][..]));
    assert!(by_b.execute(Command::new(&[0; 6])).unwrap().is_good());
    assert_eq!(by_b.execute(write(3, 13)).unwrap().status, CONFLICT);
    assert!(settled(&mut by_a, &reserve_out(3, 0, 0x11, 0)).is_good());
    assert!(settled(&mut other, &write(4, 14)).is_good());
    pair.demo.interrupt();
}

/// By either path, and back; every session sees the same states, and is told.
#[test]
fn a_host_moves_the_volume_by_set_target_port_groups() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    let (mut by_a, mut by_b) = (open(&pair, "a", "one"), open(&pair, "b", "one"));
    let mut other = open(&pair, "a", "two");
    wait_until("the other path is usable", || states(&mut by_b) == (0, 1) && states(&mut by_a) == (0, 1));
    for (round, to) in [(1, 2u8), (2, 1), (3, 2)] {
        let wanted = |group: u8| if group == to { 0 } else { 1 };
        let list = [0, 0, 0, 0, wanted(1), 0, 0, 1, wanted(2), 0, 0, 2];
        let command = Command::new(&[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0, 0])
            .with_data_out(list.to_vec().into());
        let asked = if round == 2 { &mut by_a } else { &mut by_b };
        let began = Instant::now();
        assert!(settled(asked, &command).is_good());
        println!("moved to group {to} in {:?}", began.elapsed());
        let states_then = if to == 2 { (1, 0) } else { (0, 1) };
        wait_until("both say so", || states(&mut by_a) == states_then && states(&mut by_b) == states_then);
        let node = if to == 2 { "b" } else { "a" };
        assert_eq!(pair.ask("a", &["volume", "show", "demo"])["primary"], node);
        let told = other.execute(Command::new(&[0; 6])).unwrap();
        assert_eq!((told.status, told.sense[2], &told.sense[12..14]), (2, 6, &[0x2a, 0x06][..]), "{told:?}");
        assert!(settled(&mut other, &write(5, round)).is_good());
        assert_eq!(settled(&mut by_b, &read(5)).data, [round; 4096]);
        wait_until("both have everything", || is_in_sync(&pair, node));
    }
    pair.demo.interrupt();
}

/// A host that has the path of one node only, and nodes that come and go behind it.
#[test]
fn a_host_with_the_other_nodes_path_alone_loses_nothing() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "b"));
    let mut host = open(&pair, "b", "one");
    let mut last = [0u8; 16];
    let mut longest = Duration::ZERO;
    let mut work = |host: &mut Session, rounds: u8, from: u8| {
        for round in from..from + rounds {
            for block in 0..16 {
                let began = Instant::now();
                assert!(settled(host, &write(block, round)).is_good());
                longest = longest.max(began.elapsed());
                last[block as usize] = round;
            }
            for block in 0..16 {
                assert_eq!(settled(host, &read(block)).data, [last[block as usize]; 4096]);
            }
        }
    };
    work(&mut host, 4, 1);
    // There and back by plan: the session stays, and sees changed states at most.
    for (number, to) in ["b", "a", "b", "a"].into_iter().enumerate() {
        let asked = if to == "b" { "a" } else { "b" };
        let moved = pair.gemel(asked, &["volume", "move", "demo", "--to", to]);
        assert!(moved.status.success(), "{}", service::errors(&moved));
        work(&mut host, 4, 10 + 4 * number as u8);
        wait_until("both have everything", || is_in_sync(&pair, to));
    }
    // The node that serves is killed; this one takes over.
    pair.kill("a");
    work(&mut host, 4, 40);
    pair.restart("a");
    wait_until("both have everything", || is_in_sync(&pair, "b"));
    work(&mut host, 4, 50);
    println!("longest wait of a command: {longest:?}");
    pair.demo.interrupt();
}

#[test]
fn hosts_without_multipath_are_sent_to_the_node_that_serves() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    let (a, b) = (pair.portal_of("a"), pair.portal_of("b"));
    let redirecting = format!("[iscsi]\nredirecting_portals = [\"{b}\"]\nredirect_to = \"{a}\"");
    pair.reconfigure("b", "[iscsi]", &redirecting);
    let login = || Session::open(b, settings("one", 1));
    wait_until("a login is sent to the other node", || {
        matches!(
            login(),
            Err(SessionError::Initiator(InitiatorError::Refused(LoginStatus::MOVED_TEMPORARILY)))
        )
    });
    // libiscsi follows.
    let mut inquiry = std::process::Command::new("iscsi-inq");
    inquiry.arg(format!("iscsi://{b}/{TARGET}/0"));
    let output = service::finish(inquiry);
    assert!(output.status.success(), "{}", service::errors(&output));
    wait_until("both have everything", || is_in_sync(&pair, "a"));
    // Where nobody else serves, it is let in.
    pair.kill("a");
    let began = Instant::now();
    while login().is_err() {
        assert!(began.elapsed() < LONGEST_STALL, "not let in");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut session = login().unwrap();
    assert!(settled(&mut session, &write(1, 1)).is_good());
    pair.demo.interrupt();
}
