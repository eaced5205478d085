//! A mirrored volume on real processes for as long as one likes (`make soak`): hosts that check every sector, while members
//! are killed, paused, stopped, and given new disks, in a random order. Memory and open files of what lives stay bounded.
//!
//! `SOAK_MINUTES` says how long; without it, a few steps are made.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::time::{Duration, Instant};

use cluster::{Cluster, ClusterSettings, MEMBERS, NODES, other};
use host::{Host, Load};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const VOLUME: &str = "data";
/// Steps without `SOAK_MINUTES`.
const FEW: usize = 4;
/// XenServer's high availability gives up after 30 s; we never come near.
const LONGEST_STALL: Duration = Duration::from_secs(10);
/// A node's buffers and the map of a small volume; the witness has less.
const MOST_MEMORY_BYTES: u64 = 512 << 20;
const MOST_OPEN_FILES: usize = 200;

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    Kill,
    KillAndRestartAtOnce,
    Pause,
    Stop,
    WitnessRestarts,
    NewDisks,
    Move,
    Both,
}

const EVENTS: [Event; 8] = [
    Event::Kill,
    Event::KillAndRestartAtOnce,
    Event::Pause,
    Event::Stop,
    Event::WitnessRestarts,
    Event::NewDisks,
    Event::Move,
    Event::Both,
];

#[test]
fn a_pair_goes_on_whatever_happens() {
    let minutes: Option<u64> = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok());
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let cluster = Cluster::start(ClusterSettings::default());
    let target = cluster.create_volume(VOLUME, "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", VOLUME);
    let portals = NODES.map(|node| cluster.portal(node));
    let host = |number: u64| {
        let first = number * 4096;
        Host::new(&format!("host-{number}"), &target, portals, first..first + 1000)
    };
    let load = Load::start((0..3).map(host).collect(), || {});
    load.settle();
    let (began, mut steps) = (Instant::now(), 0);
    while minutes.map_or(steps < FEW, |minutes| began.elapsed() < Duration::from_secs(60 * minutes)) {
        let (event, node) = (EVENTS[random.random_range(0..EVENTS.len())], NODES[random.random_range(0..2)]);
        let pause = Duration::from_millis(random.random_range(0..3000));
        load.take_longest();
        happen(&cluster, &load, event, node, pause);
        let _ = cluster.try_ask(other(node), &["status"]);
        cluster.wait_in_sync("a", VOLUME);
        cluster.wait_in_sync("b", VOLUME);
        load.wait_for_more();
        let stall = load.take_longest();
        println!("{:>6.0?} {event:?} {node}: {stall:?} without an answer", began.elapsed());
        assert!(stall < LONGEST_STALL, "a host waited for {stall:?}");
        MEMBERS.iter().for_each(|member| assert_bounded(&cluster, member));
        steps += 1;
    }
    // Once more, from each replica.
    let mut hosts = load.finish();
    for _ in 0..2 {
        let serving = cluster.volume("a", VOLUME, "primary");
        move_away(&cluster, &serving);
        hosts.iter_mut().for_each(Host::check_all);
    }
}

/// Lets it happen, and ends when all members run again.
fn happen(cluster: &Cluster, load: &Load, event: Event, node: &str, pause: Duration) {
    match event {
        Event::Kill => {
            cluster.kill(node);
            std::thread::sleep(pause);
            cluster.spawn(node);
        }
        Event::KillAndRestartAtOnce => {
            cluster.kill(node);
            cluster.spawn(node);
        }
        Event::Pause => {
            cluster.pause(node);
            std::thread::sleep(pause);
            cluster.go_on(node);
        }
        Event::Stop => {
            cluster.stop(node);
            std::thread::sleep(pause);
            cluster.spawn(node);
        }
        Event::WitnessRestarts => {
            cluster.kill("w");
            std::thread::sleep(pause);
            cluster.spawn("w");
        }
        Event::NewDisks => {
            cluster.kill(node);
            load.settle();
            cluster.replace_all_disks(node);
            cluster.spawn(node);
        }
        Event::Move => move_away(cluster, &cluster.volume(node, VOLUME, "primary")),
        Event::Both => {
            NODES.iter().for_each(|node| cluster.pause(node));
            NODES.iter().for_each(|node| cluster.kill(node));
            NODES.iter().for_each(|node| cluster.spawn(node));
        }
    }
}

fn move_away(cluster: &Cluster, serving: &str) {
    cluster.move_volume(VOLUME, other(serving));
}

fn assert_bounded(cluster: &Cluster, member: &str) {
    let process = format!("/proc/{}", cluster.pid(member));
    let files = std::fs::read_dir(format!("{process}/fd")).unwrap().count();
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let bytes = resident.unwrap().trim().parse::<u64>().unwrap() << 10;
    assert!(files < MOST_OPEN_FILES, "{member} has {files} open files");
    assert!(bytes < MOST_MEMORY_BYTES, "{member} takes {bytes} bytes");
}
