//! A mirrored volume on real processes for as long as one likes (`make soak`): hosts that check every sector, while members
//! are killed, paused, stopped, and given new disks, disks fail and are replaced, and snapshots come and go, in a random
//! order. In between are calm times in which nothing is restarted: memory and open files of all processes have to be flat.
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
/// A node's buffers and the map of a small volume.
const MOST_MEMORY_BYTES: u64 = 512 << 20;
/// The witness is for the smallest machine.
const MOST_OF_THE_WITNESS_BYTES: u64 = 64 << 20;
const MOST_OPEN_FILES: usize = 200;
/// What may come on top in a calm time, after the warm-up: caches that fill, and a session more or less.
const MOST_GROWTH_BYTES: u64 = 24 << 20;
const MOST_MORE_FILES: usize = 12;
/// A calm time, and the part of it before the first look, when nothing else is said.
const SHORT_CALM: Duration = Duration::from_secs(20);
/// Stormy and calm times take turns, each so long.
const LONGEST_SPELL: Duration = Duration::from_secs(600);

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    Kill,
    KillAndRestartAtOnce,
    Pause,
    Stop,
    WitnessRestarts,
    NewDisks,
    DiskFails,
    Snapshots,
    Move,
    Both,
}

const EVENTS: [Event; 10] = [
    Event::Kill,
    Event::KillAndRestartAtOnce,
    Event::Pause,
    Event::Stop,
    Event::WitnessRestarts,
    Event::NewDisks,
    Event::DiskFails,
    Event::Snapshots,
    Event::Move,
    Event::Both,
];

/// What can happen without that a process ends.
const CALM_EVENTS: [Event; 3] = [Event::Pause, Event::Snapshots, Event::Move];

#[test]
fn a_pair_goes_on_whatever_happens() {
    let minutes: Option<u64> = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok());
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    println!("seed {seed}");
    let random = ChaCha8Rng::seed_from_u64(seed);
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
    let mut soak = Soak { cluster: &cluster, load: &load, random, began: Instant::now(), snapshots: 0 };
    match minutes.map(|minutes| Duration::from_secs(60 * minutes)) {
        None => {
            (0..FEW).for_each(|_| soak.step(&EVENTS));
            soak.be_calm(SHORT_CALM);
        }
        Some(length) => {
            let spell = (length / 4).min(LONGEST_SPELL);
            while soak.began.elapsed() < length {
                let storm = Instant::now();
                while storm.elapsed() < spell {
                    soak.step(&EVENTS);
                }
                soak.be_calm(spell);
            }
        }
    }
    // Once more, from each replica.
    let mut hosts = load.finish();
    for _ in 0..2 {
        let serving = cluster.volume("a", VOLUME, "primary");
        move_away(&cluster, &serving);
        hosts.iter_mut().for_each(Host::check_all);
    }
}

/// A run.
struct Soak<'a> {
    cluster: &'a Cluster,
    load: &'a Load,
    random: ChaCha8Rng,
    began: Instant,
    snapshots: u32,
}

impl Soak<'_> {
    /// Lets one of `events` happen, and waits until everything is well again.
    fn step(&mut self, events: &[Event]) {
        let event = events[self.random.random_range(0..events.len())];
        let node = NODES[self.random.random_range(0..2)];
        let pause = Duration::from_millis(self.random.random_range(0..3000));
        self.load.take_longest();
        match event {
            Event::Snapshots => self.take_and_drop_snapshots(node),
            _ => happen(self.cluster, self.load, event, node, pause),
        }
        let _ = self.cluster.try_ask(other(node), &["status"]);
        NODES.iter().for_each(|node| self.cluster.wait_in_sync(node, VOLUME));
        self.load.wait_for_more();
        let stall = self.load.take_longest();
        println!("{:>6.0?} {event:?} {node}: {stall:?} without an answer", self.began.elapsed());
        assert!(stall < LONGEST_STALL, "a host waited for {stall:?}");
        MEMBERS.iter().for_each(|member| Usage::of(self.cluster, member).assert_bounded(member));
    }

    fn take_and_drop_snapshots(&mut self, node: &str) {
        let first = self.snapshots;
        self.snapshots += 3;
        let name = |number: u32| format!("{VOLUME}@soak-{number}");
        for number in first..self.snapshots {
            self.cluster.administer(node, &["snapshot", "create", &name(number)]);
            self.load.wait_for_more();
        }
        (first..self.snapshots).for_each(|number| {
            self.cluster.administer(other(node), &["snapshot", "delete", &name(number)]);
        });
    }

    /// Nothing is restarted for so long; what the processes take after the first third is what they take in the end.
    fn be_calm(&mut self, length: Duration) {
        let until = |part: Duration, soak: &mut Self, began: Instant| {
            while began.elapsed() < part {
                soak.step(&CALM_EVENTS);
                std::thread::sleep(Duration::from_secs(1));
            }
        };
        let began = Instant::now();
        until(length / 3, self, began);
        let before = MEMBERS.map(|member| Usage::of(self.cluster, member));
        until(length, self, began);
        for (member, before) in MEMBERS.into_iter().zip(before) {
            let after = Usage::of(self.cluster, member);
            println!("{:>6.0?} calm {member}: {before} before, {after} after", self.began.elapsed());
            assert!(before.pid == after.pid, "{member} was restarted");
            assert!(
                after.bytes <= before.bytes + MOST_GROWTH_BYTES,
                "{member} grows: {before}, then {after}"
            );
            assert!(after.files <= before.files + MOST_MORE_FILES, "{member}: {before}, then {after}");
        }
    }
}

/// Lets it happen, and ends when all members run again.
fn happen(cluster: &Cluster, load: &Load, event: Event, node: &str, pause: Duration) {
    match event {
        Event::DiskFails => {
            let number = pause.as_millis() as usize % 4;
            let path = cluster.disk_path(node, number).display().to_string();
            cluster.administer(node, &["disk", "fail", &path, "--node", node]);
            load.wait_for_more();
            cluster.administer(node, &["disk", "replace", &number.to_string(), &path, "--node", node]);
            cluster.wait_until("it is rebuilt", || {
                cluster.try_ask(node, &["pool", "show"]).is_some_and(|pool| pool["state"] == "ok")
            });
        }
        Event::Snapshots => unreachable!("it needs their names"),
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

/// What a process takes.
struct Usage {
    pid: u32,
    bytes: u64,
    files: usize,
}

impl Usage {
    fn of(cluster: &Cluster, member: &str) -> Self {
        let pid = cluster.pid(member);
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Self { pid, bytes: resident.unwrap().trim().parse::<u64>().unwrap() << 10, files }
    }

    fn assert_bounded(&self, member: &str) {
        assert!(self.files < MOST_OPEN_FILES, "{member} has {self}");
        let most = if member == "w" { MOST_OF_THE_WITNESS_BYTES } else { MOST_MEMORY_BYTES };
        assert!(self.bytes < most, "{member} takes {self}");
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} MiB and {} open files", self.bytes as f64 / f64::from(1 << 20), self.files)
    }
}
