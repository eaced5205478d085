//! Reservations of a mirrored volume on real processes, while the node that serves it dies.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::{Cluster, ClusterSettings, NODES, holds_within, other};
use gemel::iscsi::initiator::{Command, LoginSettings, Outcome};
use initiator::{Session, read_command, write_command};

const VOLUME: &str = "data";
const CONFLICT: u8 = 0x18;
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const CLEAR: u8 = 3;
const PREEMPT_AND_ABORT: u8 = 5;
const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
const OLD_KEY: u64 = 0x0a;
const NEW_KEY: u64 = 0x0b;

fn open(cluster: &Cluster, target: &str, host: &str, node: &str) -> Session {
    let settings = LoginSettings::normal(&format!("iqn.2026-11.io.gemel:{host}"), target);
    let mut session = None;
    let is_open = || {
        session = Session::open(cluster.portal(node), settings.clone()).ok();
        session.is_some()
    };
    assert!(holds_within(Duration::from_secs(10), is_open), "{host} does not get in at {node}");
    session.unwrap()
}

/// Repeats a command past unit attentions, and for as long as the unit is not ready.
fn settled(session: &mut Session, command: &Command) -> Outcome {
    let began = Instant::now();
    loop {
        let outcome = session.execute(command.clone()).unwrap();
        let is_passing = matches!(outcome.sense_codes(), Some((2 | 6, ..)));
        if !is_passing || began.elapsed() > Duration::from_secs(10) {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn reserve_out(action: u8, key: u64, action_key: u64) -> Command {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&action_key.to_be_bytes());
    let kind = if action == REGISTER { 0 } else { WRITE_EXCLUSIVE_REGISTRANTS_ONLY };
    Command::new(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]).with_data_out(list.to_vec().into())
}

/// What PERSISTENT RESERVE IN says: the keys, or the reservation.
fn reserve_in(session: &mut Session, action: u8) -> Vec<u8> {
    let command = Command::new(&[0x5e, action, 0, 0, 0, 0, 0, 1, 0, 0]).with_data_in(256);
    let data = settled(session, &command).data;
    let length = u32::from_be_bytes(data[4..8].try_into().unwrap()) as usize;
    data[8..8 + length].to_vec()
}

fn write(block: u64, stamp: u8) -> Command {
    write_command(0, block * 8, 8, Bytes::from(vec![stamp; 4096]))
}

fn read(session: &mut Session, block: u64) -> Vec<u8> {
    let read = settled(session, &read_command(0, block * 8, 8, 4096));
    assert!(read.is_good(), "{read:?}");
    read.data
}

fn is_served_by(cluster: &Cluster, node: &str) -> bool {
    cluster.volume(node, VOLUME, "primary") == node
}

/// The command is committed by the node that serves and the witness; its GOOD waits for a write of the old holder, which waits
/// for the other node, which stands still. Then the one that serves is killed.
#[test]
fn scenario_26_preempt_and_abort_commits_and_the_primary_dies_before_good() {
    let cluster = Cluster::start(ClusterSettings::default());
    let target = cluster.create_volume(VOLUME, "16M", &["--primary", "a"]);
    cluster.wait_in_sync("a", VOLUME);
    let mut was_met = 0;
    for round in 0..3_u8 {
        // Whoever leads is not the one that stands still.
        let shown = cluster.try_ask("a", &["cluster", "show"]).unwrap();
        let serving = if shown["leader"] == "b" { "b" } else { "a" };
        let survivor = other(serving);
        cluster.move_volume(VOLUME, serving);
        // Each registers by both of its paths.
        for (host, key) in [("old", OLD_KEY), ("new", NEW_KEY)] {
            for node in NODES {
                let mut path = open(&cluster, &target, host, node);
                assert!(settled(&mut path, &reserve_out(REGISTER, 0, key)).is_good());
            }
        }
        let (mut old, mut new) =
            (open(&cluster, &target, "old", serving), open(&cluster, &target, "new", serving));
        assert!(settled(&mut new, &write(0, 1)).is_good());
        assert!(settled(&mut old, &reserve_out(RESERVE, OLD_KEY, 0)).is_good());
        let (before, late) = (10 * round + 1, 10 * round + 2);
        assert!(settled(&mut old, &write(1, before)).is_good());

        cluster.pause(survivor);
        old.connection.submit(write(1, late));
        old.flush().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        new.connection.submit(reserve_out(PREEMPT_AND_ABORT, NEW_KEY, OLD_KEY));
        new.flush().unwrap();
        let answer = new.next_event_within(Duration::from_millis(400));
        assert!(answer.is_err(), "GOOD came before the old holder's write was settled: {answer:?}");
        cluster.kill(serving);
        cluster.go_on(survivor);
        cluster.wait_until("the other one serves", || is_served_by(&cluster, survivor));

        let (mut old, mut new) =
            (open(&cluster, &target, "old", survivor), open(&cluster, &target, "new", survivor));
        let keys = reserve_in(&mut new, 0);
        let is_in_force = !keys.chunks_exact(8).any(|key| key == OLD_KEY.to_be_bytes());
        was_met += u32::from(is_in_force);
        if !is_in_force {
            // It was not committed: the host sends it again.
            assert!(settled(&mut new, &reserve_out(PREEMPT_AND_ABORT, NEW_KEY, OLD_KEY)).is_good());
        }
        let held = reserve_in(&mut new, 1);
        assert_eq!(
            (&held[..8], held[13] & 0x0f),
            (&NEW_KEY.to_be_bytes()[..], WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
        );
        let refused = settled(&mut old, &write(1, 99));
        assert_eq!(refused.status, CONFLICT, "the old holder writes on");
        // What it had under way is there or not, and does not come any more.
        let seen = read(&mut new, 1);
        assert!([before, late].contains(&seen[0]) && seen.iter().all(|byte| *byte == seen[0]), "{seen:?}");
        println!(
            "scenario 26, round {round}: in force {is_in_force}, the late write is there: {}",
            seen[0] == late
        );
        assert!(settled(&mut new, &write(2, late)).is_good());
        cluster.spawn(serving);
        cluster.wait_in_sync(survivor, VOLUME);
        assert!(read(&mut new, 1) == seen, "a write of the old holder has landed");
        cluster.move_volume(VOLUME, serving);
        let mut by_other = open(&cluster, &target, "new", serving);
        assert!(read(&mut by_other, 1) == seen, "a write of the old holder has landed");
        let mut old = open(&cluster, &target, "old", serving);
        assert_eq!(settled(&mut old, &write(1, 99)).status, CONFLICT);
        // Begin anew: CLEAR.
        assert!(settled(&mut by_other, &reserve_out(CLEAR, NEW_KEY, 0)).is_good());
    }
    assert!(was_met > 0, "the command was never committed before the node died");
}
