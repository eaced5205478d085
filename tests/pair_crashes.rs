//! A mirrored volume on real processes that are killed, stopped and paused, with hosts that have two paths and check
//! every sector. The simulator has the same scenarios, under
//! the same numbers.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, ClusterSettings, NODES, holds_within, other};
use gemel::iscsi::initiator::{Event, LoginSettings};
use host::{Host, Load};
use initiator::{Session, write_command};

const VOLUME: &str = "data";
/// XenServer's high availability gives up after 30 s; we never come near.
const LONGEST_STALL: Duration = Duration::from_secs(8);
/// Who must not serve is watched for so long: longer than a lease, an election and the patience of everybody.
const WATCHED: Duration = Duration::from_secs(6);

/// A cluster with a mirrored volume on which hosts work.
struct Site {
    cluster: Cluster,
    target: String,
}

impl Site {
    fn start() -> Self {
        let cluster = Cluster::start(ClusterSettings::default());
        let target = cluster.create_volume(VOLUME, "64M", &["--primary", "a"]);
        cluster.wait_in_sync("a", VOLUME);
        Self { cluster, target }
    }

    /// A host for a part of the volume.
    fn host(&self, number: u64, blocks: u64) -> Host {
        let portals = NODES.map(|node| self.cluster.portal(node));
        let first = number * 4096;
        Host::new(&format!("host-{number}"), &self.target, portals, first..first + blocks)
    }

    fn load(&self) -> Load {
        Self::work((0..3).map(|number| self.host(number, 200)).collect())
    }

    fn work(hosts: Vec<Host>) -> Load {
        let load = Load::start(hosts, || {});
        load.settle();
        load
    }

    fn is_served_by(&self, node: &str) -> bool {
        self.cluster.volume(node, VOLUME, "primary") == node
    }

    fn wait_served_by(&self, node: &str) {
        self.cluster.wait_until("the other node serves", || self.is_served_by(node));
    }

    fn wait_in_sync(&self, asked: &str) {
        self.cluster.wait_in_sync(asked, VOLUME);
    }

    /// A session of a host called `name` over one path.
    fn path(&self, name: &str, node: &str) -> Session {
        let settings = LoginSettings::normal(&format!("iqn.2026-11.io.gemel:{name}"), &self.target);
        Session::open(self.cluster.portal(node), settings).unwrap()
    }

    /// Kills every process, at about the same time.
    fn kill_both(&self) {
        NODES.iter().for_each(|node| self.cluster.pause(node));
        NODES.iter().for_each(|node| self.cluster.kill(node));
    }

    /// Every block, from both replicas.
    fn check_on_both(&self, hosts: &mut [Host]) {
        self.wait_in_sync("a");
        for _ in 0..2 {
            hosts.iter_mut().for_each(Host::check_all);
            let serving = self.cluster.volume("a", VOLUME, "primary");
            self.cluster.move_volume(VOLUME, other(&serving));
        }
    }

    /// Nobody serves, for as long as something would have to happen otherwise.
    fn assert_not_served(&self, node: &str) {
        let mut host = self.host(3, 1);
        let began = std::time::Instant::now();
        while began.elapsed() < WATCHED {
            assert!(!host.is_answered(), "{node} serves without what the other one has");
        }
    }
}

/// A block that is full of a stamp.
fn stamped(stamp: u8) -> Bytes {
    Bytes::from(vec![stamp; 4096])
}

/// Unit attentions come first.
fn write_block(path: &mut Session, block: u64, stamp: u8) {
    let is_written = || path.write(0, block * 8, stamped(stamp)).unwrap().is_good();
    assert!(holds_within(Duration::from_secs(10), is_written), "block {block} is not written");
}

fn read_block(path: &mut Session, block: u64) -> Bytes {
    let mut data = None;
    let is_read = || {
        let read = path.read(0, block * 8, 8).unwrap();
        let is_good = read.is_good();
        data = Some(read.data).filter(|_| is_good);
        is_good
    };
    assert!(holds_within(Duration::from_secs(10), is_read), "block {block} is not read");
    data.map(Bytes::from).unwrap()
}

#[test]
fn scenario_01_a_primary_dies_before_the_other_node_has_a_second_write() {
    let site = Site::start();
    for round in 0..4_u8 {
        let serving = site.cluster.volume("a", VOLUME, "primary");
        let survivor = other(&serving);
        let (old, new) = (10 * round + 1, 10 * round + 2);
        let mut path = site.path("one", &serving);
        (0..2).for_each(|block| write_block(&mut path, block, old));
        // The second write of a block finds the other node standing still.
        site.cluster.pause(survivor);
        path.connection.submit(write_command(0, 8, 8, stamped(new)));
        path.flush().unwrap();
        let answer = path.next_event_within(Duration::from_millis(300));
        assert!(answer.is_err(), "it was acknowledged with one copy: {answer:?}");
        site.cluster.kill(&serving);
        site.cluster.go_on(survivor);
        site.wait_served_by(survivor);
        let mut path = site.path("one", survivor);
        assert!(read_block(&mut path, 0) == stamped(old), "what was acknowledged is lost");
        let seen = read_block(&mut path, 1);
        println!(
            "scenario 1, round {round}: the second write is {}",
            if seen == stamped(old) { "not there" } else { "there" }
        );
        assert!([old, new].map(stamped).contains(&seen), "neither the old nor the new");
        // And never changes again, also when the one that has the other version is back, and serves.
        site.cluster.spawn(&serving);
        site.wait_in_sync(survivor);
        assert!(read_block(&mut path, 1) == seen, "it has changed");
        site.cluster.move_volume(VOLUME, &serving);
        let mut path = site.path("one", &serving);
        assert!(
            read_block(&mut path, 1) == seen && read_block(&mut path, 0) == stamped(old),
            "it has changed"
        );
    }
}

#[test]
fn scenario_06_a_primary_that_is_paused_comes_back_with_writes_that_nobody_gets() {
    let site = Site::start();
    let load = site.load();
    site.cluster.pause("a");
    site.wait_served_by("b");
    load.wait_for_more();
    std::thread::sleep(Duration::from_secs(4));
    site.cluster.go_on("a");
    let stall = load.take_longest();
    println!("scenario 6: {stall:?} without an answer");
    assert!(stall < LONGEST_STALL, "a host waited for {stall:?}");
    site.wait_in_sync("b");
    load.wait_for_more();
    site.check_on_both(&mut load.finish());
}

#[test]
fn a_node_that_stood_still_passes_on_nothing_that_waited_in_its_sockets() {
    let site = Site::start();
    let open = |node: &str| {
        let settings = LoginSettings::normal("iqn.2026-11.io.gemel:still", &site.target);
        Session::open(site.cluster.portal(node), settings).unwrap()
    };
    let block = |stamp: u8| Bytes::from(vec![stamp; 512]);
    let write = |path: &mut Session, stamp: u8| {
        // Unit attentions come first.
        assert!(holds_within(Duration::from_secs(10), || path.write(0, 0, block(stamp)).unwrap().is_good()));
    };
    let (mut over_a, mut over_b) = (open("a"), open("b"));
    write(&mut over_b, 1);
    site.cluster.pause("b");
    over_b.connection.submit(write_command(0, 0, 1, block(2)));
    over_b.flush().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    // The host has given that path up, and goes on over the other one.
    write(&mut over_a, 3);
    site.cluster.go_on("b");
    site.wait_in_sync("a");
    let end = loop {
        match over_b.next_event_within(Duration::from_secs(10)) {
            Ok(Event::Asynchronous(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "the session from before is dropped, not answered: {end:?}");
    let read = (0..10).map(|_| over_a.read(0, 0, 1).unwrap()).find(|read| read.is_good()).unwrap();
    assert!(read.data == block(3), "what was sent before the pause has come through");
}

#[test]
fn scenario_08_both_rooms_die_and_come_back_one_after_the_other() {
    let site = Site::start();
    let load = site.load();
    // Hosts stop waiting only when they are answered: the rooms die under load, and A comes back for them.
    site.kill_both();
    site.cluster.spawn("a");
    load.settle();
    let mut hosts = load.finish();
    site.cluster.kill("a");
    site.cluster.spawn("b");
    site.assert_not_served("b");
    site.cluster.spawn("a");
    hosts.iter_mut().for_each(Host::check_all);
    site.check_on_both(&mut hosts);
}

#[test]
fn scenario_09_only_the_stale_node_comes_back() {
    let site = Site::start();
    let load = site.load();
    site.cluster.kill("b");
    load.settle();
    let mut hosts = load.finish();
    site.cluster.kill("a");
    site.cluster.spawn("b");
    site.assert_not_served("b");
    let status = site.cluster.try_ask("b", &["status"]).unwrap();
    let attention = status["attention"].to_string();
    println!("scenario 9: {status}");
    assert!(attention.contains("node a"), "it names who has to come back: {status}");
    site.cluster.spawn("a");
    hosts.iter_mut().for_each(Host::check_all);
    site.check_on_both(&mut hosts);
}

#[test]
fn scenario_10_both_die_in_sync_and_one_comes_back_with_the_witness() {
    let site = Site::start();
    let mut hosts = site.load().finish();
    for survivor in ["b", "a"] {
        let load = Site::work(hosts);
        site.kill_both();
        site.cluster.spawn(survivor);
        load.settle();
        hosts = load.finish();
        site.cluster.spawn(other(survivor));
        site.wait_in_sync(survivor);
        site.check_on_both(&mut hosts);
    }
}

#[test]
fn scenario_11_a_witness_without_its_log_makes_no_majority_with_a_stale_node() {
    let site = Site::start();
    let load = site.load();
    site.cluster.kill("b");
    load.settle();
    let mut hosts = load.finish();
    site.cluster.kill("a");
    site.cluster.kill("w");
    std::fs::remove_dir_all(site.cluster.state_directory("w")).unwrap();
    site.cluster.spawn("w");
    site.cluster.spawn("b");
    site.assert_not_served("b");
    let status = site.cluster.try_ask("b", &["status"]).unwrap();
    println!("scenario 11: {status}");
    assert!(status["attention"].to_string().contains("majority"), "{status}");
    // Nor can the stale node accept it.
    let accepted = site.cluster.gemel("b", &["node", "replace", "w"]);
    assert!(!accepted.status.success(), "the two of them have no majority");
    assert!(!site.host(3, 1).is_answered());
    site.cluster.spawn("a");
    hosts.iter_mut().for_each(Host::check_all);
    site.wait_in_sync("a");
    site.cluster.administer("a", &["node", "replace", "w"]);
    site.check_on_both(&mut hosts);
    // It counts again.
    let load = Site::work(hosts);
    let serving = site.cluster.volume("b", VOLUME, "primary");
    site.cluster.kill(&serving);
    load.wait_for_more();
    site.cluster.spawn(&serving);
    site.check_on_both(&mut load.finish());
}

#[test]
fn scenario_14_a_primary_that_comes_back_within_its_lease() {
    let site = Site::start();
    let load = site.load();
    for round in 0..4 {
        let serving = site.cluster.volume("b", VOLUME, "primary");
        site.cluster.kill(&serving);
        site.cluster.spawn(&serving);
        load.wait_for_more();
        let stall = load.take_longest();
        println!("scenario 14, round {round}: {stall:?} without an answer");
        assert!(stall < LONGEST_STALL, "a host waited for {stall:?}");
        site.wait_in_sync("b");
    }
    site.check_on_both(&mut load.finish());
}

#[test]
fn scenario_16_the_source_of_a_resync_dies() {
    let site = Site::start();
    site.cluster.kill("b");
    let mut host = site.host(0, 8192);
    host.fill();
    site.cluster.spawn("b");
    let is_resyncing = || site.cluster.volume("a", VOLUME, "state") == "resyncing";
    let was_met = holds_within(Duration::from_secs(20), is_resyncing);
    site.cluster.kill("a");
    println!("scenario 16: the resync was met: {was_met}");
    site.assert_not_served("b");
    site.cluster.spawn("a");
    host.check_all();
    site.check_on_both(&mut [host]);
}

#[test]
fn scenario_18_a_replica_that_stops_in_order_and_is_back_within_seconds() {
    let site = Site::start();
    let load = site.load();
    for round in 0..4 {
        let took = site.cluster.stop("b");
        load.wait_for_more();
        site.cluster.spawn("b");
        site.wait_in_sync("a");
        let stall = load.take_longest();
        println!("scenario 18, round {round}: stopped in {took:?}, {stall:?} without an answer");
        assert!(stall < LONGEST_STALL, "a host waited for {stall:?}");
    }
    site.check_on_both(&mut load.finish());
}

#[test]
fn the_loss_of_the_witness_stops_nothing_before_or_after_the_peer() {
    let site = Site::start();
    let load = site.load();
    site.cluster.kill("w");
    std::thread::sleep(Duration::from_secs(4));
    let stall = load.take_longest();
    println!("without the witness: {stall:?} without an answer");
    assert!(stall < Duration::from_secs(1), "a host waited for {stall:?}");
    site.cluster.spawn("w");
    site.cluster.wait_until("the witness is back", || {
        site.cluster.try_ask("a", &["status"]).is_some_and(|status| status["witness"]["state"] == "up")
    });
    site.cluster.kill("b");
    load.settle();
    site.cluster.wait_until("a is alone", || site.cluster.volume("a", VOLUME, "state") == "solo");
    site.cluster.kill("w");
    load.settle();
    std::thread::sleep(Duration::from_secs(5));
    load.wait_for_more();
    let stall = load.take_longest();
    println!("the peer, then the witness: {stall:?} without an answer");
    assert!(stall < Duration::from_secs(2), "a host waited for {stall:?}");
    site.cluster.spawn("w");
    site.cluster.spawn("b");
    site.wait_in_sync("a");
    site.check_on_both(&mut load.finish());
}
