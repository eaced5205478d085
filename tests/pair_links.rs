//! A mirrored volume on real processes in network namespaces whose links are cut, with hosts that have two paths and
//! check every sector. Skipped, with the reason printed, where namespaces cannot be made.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::time::{Duration, Instant};

use cluster::rooms::{LAN, Rooms};
use cluster::{Cluster, ClusterSettings, NODES, Network, other};
use host::{Host, Load};

const VOLUME: &str = "data";
/// XenServer's high availability gives up after 30 s; we never come near.
const LONGEST_STALL: Duration = Duration::from_secs(8);

/// A cluster in namespaces, with a mirrored volume and hosts at work on it.
struct Site {
    cluster: Cluster,
    load: Load,
    target: String,
}

impl Site {
    fn start(name: &str) -> Option<Self> {
        let rooms = match Rooms::build() {
            Ok(rooms) => rooms,
            Err(reason) => {
                println!("{name} is skipped: no network namespaces here: {reason}");
                return None;
            }
        };
        let enter = rooms.host_entrance();
        let cluster = Cluster::start_on(Network::Rooms(rooms), ClusterSettings::default());
        let target = cluster.create_volume(VOLUME, "64M", &["--primary", "a"]);
        cluster.wait_in_sync("a", VOLUME);
        let hosts = (0..3).map(|number| host(&cluster, &target, number)).collect();
        let load = Load::start(hosts, enter);
        load.settle();
        Some(Self { cluster, load, target })
    }

    fn rooms(&self) -> &Rooms {
        match &self.cluster.network {
            Network::Rooms(rooms) => rooms,
            Network::Loopback(_) => unreachable!("it was started in rooms"),
        }
    }

    fn serving(&self) -> String {
        self.cluster.volume("b", VOLUME, "primary")
    }

    /// The hosts go on within the limit.
    fn assert_goes_on(&self, what: &str) {
        self.load.wait_for_more();
        // What is wrong may show later than the first answers.
        std::thread::sleep(Duration::from_secs(4));
        self.load.wait_for_more();
        let stall = self.load.take_longest();
        println!("{what}: {stall:?} without an answer");
        assert!(stall < LONGEST_STALL, "{what}: a host waited for {stall:?}");
    }

    /// With all links mended everything heals; every block is right on both replicas.
    fn end(self) {
        for (one, other) in [("a", "b"), ("a", "w"), ("b", "w"), ("a", "h"), ("b", "h")] {
            self.rooms().mend(one, other);
        }
        let Self { cluster, load, .. } = self;
        NODES.iter().for_each(|node| cluster.wait_in_sync(node, VOLUME));
        load.wait_for_more();
        // The hosts check everything on the one replica, then on the other.
        let Network::Rooms(rooms) = &cluster.network else { unreachable!("it was started in rooms") };
        let enter = rooms.host_entrance();
        let hosts = load.finish();
        let serving = cluster.volume("a", VOLUME, "primary");
        cluster.move_volume(VOLUME, other(&serving));
        Load::start(hosts, enter).finish();
    }
}

fn host(cluster: &Cluster, target: &str, number: u64) -> Host {
    let portals = NODES.map(|node| cluster.portal(node));
    let first = number * 4096;
    Host::new(&format!("host-{number}"), target, portals, first..first + 200)
}

#[test]
fn scenario_02_the_rooms_lose_sight_of_each_other() {
    let Some(site) = Site::start("scenario 2") else { return };
    for round in 0..2 {
        site.rooms().cut("a", "b");
        site.assert_goes_on(&format!("scenario 2, round {round}"));
        site.rooms().mend("a", "b");
        site.cluster.wait_in_sync("a", VOLUME);
    }
    site.end();
}

#[test]
fn scenario_03_a_primary_that_only_its_hosts_can_reach() {
    let Some(site) = Site::start("scenario 3") else { return };
    assert_eq!(site.serving(), "a");
    site.rooms().cut("a", "b");
    site.rooms().cut("a", "w");
    // Nothing is read from it any more once its lease is over, though its host still reaches it.
    let enter = site.rooms().host_entrance();
    let portals = [site.cluster.portal("a"); 2];
    let mut alone = Host::new("alone", &site.target, portals, 16_000..16_001);
    std::thread::sleep(Duration::from_secs(3));
    let watching = std::thread::spawn(move || {
        enter();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(4) {
            assert!(!alone.is_answered(), "a node without a lease serves");
        }
    });
    site.assert_goes_on("scenario 3");
    watching.join().unwrap();
    assert_eq!(site.serving(), "b");
    site.end();
}

#[test]
fn a_node_that_hears_but_is_not_heard() {
    let Some(site) = Site::start("one-way cut") else { return };
    for (from, to) in [("a", "b"), ("b", "a")] {
        site.rooms().cut_from_to(from, to);
        site.assert_goes_on(&format!("{from} is not heard by {to}"));
        site.rooms().mend(from, to);
        site.cluster.wait_in_sync("a", VOLUME);
    }
    // Nobody hears the primary but its hosts.
    let serving = site.serving();
    [other(&serving), "w"].iter().for_each(|member| site.rooms().cut_from_to(&serving, member));
    site.assert_goes_on(&format!("nobody hears {serving}"));
    site.end();
}

#[test]
fn one_of_two_links_between_the_rooms_is_enough() {
    let Some(site) = Site::start("two links") else { return };
    for link in [1, 2, 1] {
        site.rooms().cut_link(link);
        site.assert_goes_on(&format!("link {link} is cut"));
        site.cluster.wait_in_sync("a", VOLUME);
        site.rooms().mend("a", "b");
        site.load.settle();
    }
    site.end();
}

#[test]
fn a_host_that_loses_one_of_its_paths() {
    let Some(site) = Site::start("paths") else { return };
    for node in NODES {
        site.rooms().cut(node, "h");
        // It has the other path; where that is not the one that serves, the volume is moved to it.
        if site.serving() == node {
            site.cluster.move_volume(VOLUME, other(node));
        }
        site.assert_goes_on(&format!("the path to {node} is cut"));
        site.rooms().mend(node, "h");
        site.cluster.wait_in_sync("a", VOLUME);
    }
    site.end();
}

/// A host without multipath, which knows one address: that is where the volume is served.
#[test]
fn a_floating_address_follows_the_volume() {
    let rooms = match Rooms::build().and_then(|rooms| rooms.build_lan().map(|()| rooms)) {
        Ok(rooms) => rooms,
        Err(reason) => return println!("floating is skipped: no network namespaces here: {reason}"),
    };
    let enter = rooms.host_entrance();
    let settings = ClusterSettings {
        portal: Some(([0, 0, 0, 0], 3260).into()),
        sections: format!("[floating]\ninterface = \"{LAN}\"\naddresses = [\"10.77.9.100/24\"]\n"),
        ..ClusterSettings::default()
    };
    let cluster = Cluster::start_on(Network::Rooms(rooms), settings);
    let target = cluster.create_volume(VOLUME, "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", VOLUME);
    let floating = [([10, 77, 9, 100], 3260).into(); 2];
    let single = |number: u64| {
        let first = number * 4096;
        Host::new(&format!("single-{number}"), &target, floating, first..first + 200)
    };
    let load = Load::start((0..2).map(single).collect(), enter);
    load.settle();
    let mut moves = Vec::new();
    for round in 0..3 {
        let serving = cluster.volume("a", VOLUME, "primary");
        let to = other(&serving);
        cluster.kill(&serving);
        load.wait_for_more();
        let stall = load.take_longest();
        println!("floating, round {round}: {serving} was killed, {stall:?} without an answer");
        assert!(stall < LONGEST_STALL, "a host waited for {stall:?}");
        assert_eq!(cluster.volume(to, VOLUME, "primary"), to);
        cluster.spawn(&serving);
        cluster.wait_in_sync(to, VOLUME);
        // And by plan.
        cluster.move_volume(VOLUME, &serving);
        load.wait_for_more();
        let stall = load.take_longest();
        println!("floating, round {round}: moved to {serving}, {stall:?} without an answer");
        assert!(stall < LONGEST_STALL, "a host waited for {stall:?}");
        moves.push(stall);
    }
    // The host is told that the address goes, and does not lose its patience first; now and then the network takes a
    // second to believe in the new place.
    assert!(moves.iter().min().is_some_and(|stall| *stall < Duration::from_secs(2)), "{moves:?}");
    load.finish();
}

#[test]
fn a_flapping_link_between_the_rooms() {
    let Some(site) = Site::start("flapping") else { return };
    for round in 0..12 {
        site.rooms().cut("a", "b");
        std::thread::sleep(Duration::from_millis(200 + 170 * round));
        site.rooms().mend("a", "b");
        std::thread::sleep(Duration::from_millis(900 - 60 * round));
    }
    site.assert_goes_on("a flapping link");
    site.end();
}
