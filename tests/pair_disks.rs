//! A mirrored volume on real processes whose disks are damaged, lost and replaced, with hosts that have two paths and
//! check every sector. The simulator has the same scenarios, under the same numbers.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use gemel::base::buffer::AlignedBuf;
use gemel::base::units::BLOCK_SIZE;

use cluster::{Cluster, ClusterSettings, NODES, other};
use host::{Host, Load};

const VOLUME: &str = "data";
const DISKS: usize = 4;
/// Who must not serve is watched for so long: longer than a lease, an election and the patience of everybody.
const WATCHED: Duration = Duration::from_secs(6);

/// A cluster with a mirrored volume.
struct Site {
    cluster: Cluster,
    target: String,
}

impl Site {
    fn start() -> Self {
        let cluster = Cluster::start(ClusterSettings { disks: DISKS, ..ClusterSettings::default() });
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

    fn load(&self, numbers: std::ops::Range<u64>) -> Load {
        let load = Load::start(numbers.map(|number| self.host(number, 200)).collect(), || {});
        load.settle();
        load
    }

    fn wait_in_sync(&self, asked: &str) {
        self.cluster.wait_in_sync(asked, VOLUME);
    }

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

    fn assert_not_served(&self, node: &str) {
        let mut host = self.host(3, 1);
        let began = Instant::now();
        while began.elapsed() < WATCHED {
            assert!(!host.is_answered(), "{node} serves without what the other one has");
        }
    }

    /// Flips a bit in every block of a disk that holds anything, but for both ends, where its superblocks are.
    fn rot(&self, node: &str, disk: usize) -> usize {
        // Past the page cache, which must not get between the node and its disk.
        let path = self.cluster.disk_path(node, disk);
        let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let end = file.metadata().unwrap().len() / BLOCK_SIZE as u64 - 512;
        let (mut block, mut flipped) = (AlignedBuf::zeroed(BLOCK_SIZE), 0);
        for number in 512..end {
            let offset = number * BLOCK_SIZE as u64;
            file.read_exact_at(&mut block, offset).unwrap();
            if block.iter().any(|byte| *byte != 0) {
                block[number as usize * 7 % BLOCK_SIZE] ^= 0x10;
                file.write_all_at(&block, offset).unwrap();
                flipped += 1;
            }
        }
        flipped
    }
}

#[test]
fn scenario_19_a_disk_is_dead_and_power_is_lost_in_mid_batch() {
    let site = Site::start();
    let load = site.load(0..3);
    for node in NODES {
        let disk = site.cluster.disk_path(node, 1).display().to_string();
        site.cluster.administer(node, &["disk", "fail", &disk]);
        load.settle();
    }
    site.kill_both();
    NODES.iter().for_each(|node| std::fs::remove_file(site.cluster.disk_path(node, 1)).unwrap());
    NODES.iter().for_each(|node| site.cluster.spawn(node));
    load.settle();
    site.check_on_both(&mut load.finish());
}

#[test]
fn scenario_22_rot_on_a_disk_of_each_node_is_repaired() {
    let site = Site::start();
    let mut filled = site.host(2, 8192);
    filled.fill();
    let load = site.load(0..2);
    for (node, disk) in [("a", 0), ("b", 2)] {
        let flipped = site.rot(node, disk);
        println!("scenario 22: {flipped} blocks of disk {disk} of {node}");
        assert!(flipped > 2000, "the disk holds next to nothing");
        load.wait_for_more();
        filled.check_all();
    }
    let mut hosts = load.finish();
    hosts.push(filled);
    site.check_on_both(&mut hosts);
    // What was repaired stays repaired, after a restart as well.
    site.kill_both();
    NODES.iter().for_each(|node| site.cluster.spawn(node));
    site.check_on_both(&mut hosts);
}

#[test]
fn a_node_whose_disks_are_all_new_is_filled_from_its_peer() {
    let site = Site::start();
    let mut filled = site.host(2, 4096);
    filled.fill();
    let load = site.load(0..2);
    for node in ["b", "a"] {
        site.cluster.kill(node);
        load.settle();
        site.cluster.replace_all_disks(node);
        site.cluster.spawn(node);
        site.wait_in_sync(other(node));
    }
    let mut hosts = load.finish();
    hosts.push(filled);
    site.check_on_both(&mut hosts);
}

/// Whoever lost his disks was in sync, by the record, with an epoch that has never changed.
#[test]
fn a_node_with_new_disks_never_serves_what_only_its_peer_has() {
    for lost in ["b", "a"] {
        let site = Site::start();
        let mut hosts = site.load(0..2).finish();
        assert_eq!(site.cluster.try_ask("a", &["volume", "show", VOLUME]).unwrap()["epoch"], 1);
        site.kill_both();
        site.cluster.replace_all_disks(lost);
        site.cluster.spawn(lost);
        site.assert_not_served(lost);
        site.cluster.spawn(other(lost));
        hosts.iter_mut().for_each(Host::check_all);
        site.check_on_both(&mut hosts);
    }
}
