//! A mirrored volume on real processes whose disks are damaged, lost and replaced, with hosts that have two paths and
//! check every sector. The simulator has the same scenarios, under the same numbers.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gemel::base::buffer::AlignedBuf;
use gemel::base::units::BLOCK_SIZE;

use cluster::{Cluster, ClusterSettings, NODES, holds_within, other};
use host::{Host, Load};

const VOLUME: &str = "data";
const DISKS: usize = 4;
/// Blocks at each end of a disk that are left alone: its superblocks are there.
const SUPERBLOCKS: u64 = 512;
/// Who must not serve is watched for so long: longer than a lease, an election and the patience of everybody.
const WATCHED: Duration = Duration::from_secs(6);

/// A cluster with a mirrored volume.
struct Site {
    cluster: Cluster,
    target: String,
}

impl Site {
    fn start() -> Self {
        Self::of_size("64M")
    }

    fn of_size(size: &str) -> Self {
        Self::with(ClusterSettings::default(), size)
    }

    fn with(settings: ClusterSettings, size: &str) -> Self {
        let cluster = Cluster::start(ClusterSettings { disks: DISKS, ..settings });
        let target = cluster.create_volume(VOLUME, size, &["--primary", "a"]);
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
        let end = file.metadata().unwrap().len() / BLOCK_SIZE as u64 - SUPERBLOCKS;
        let (mut block, mut flipped) = (AlignedBuf::zeroed(BLOCK_SIZE), 0);
        for number in SUPERBLOCKS..end {
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

impl Site {
    /// Takes a disk of a node out, and flips bits in all blocks of the others that are named.
    fn lose_disk_and_rot(&self, node: &str, lost: &[usize], rotten: &[usize]) -> usize {
        for disk in lost {
            let path = self.cluster.disk_path(node, *disk).display().to_string();
            self.cluster.administer(node, &["disk", "fail", &path, "--node", node]);
        }
        rotten.iter().map(|disk| self.rot(node, *disk)).sum()
    }

    /// Scrubs a node, to the end; what it found.
    fn scrub(&self, node: &str) -> serde_json::Value {
        let ask =
            |action: &str| self.cluster.try_ask(node, &["pool", "scrub", action, "--node", node]).unwrap();
        ask("start");
        self.cluster.wait_until("the scrub has ended", || ask("status")["running"] == false);
        ask("status")
    }

    /// Scrubs a node until it finds nothing any more that parity can't give back: the peer has given it.
    fn scrub_until_whole(&self, node: &str) -> serde_json::Value {
        let first = self.scrub(node);
        let mut last = first.clone();
        for _ in 0..12 {
            if last["unrecoverable"] == 0 {
                return first;
            }
            std::thread::sleep(Duration::from_secs(1));
            last = self.scrub(node);
        }
        panic!("{node} still lacks blocks: {last}");
    }

    fn has_event(&self, node: &str, kind: &str) -> bool {
        let output = self.cluster.gemel(node, &["event", "list"]);
        String::from_utf8_lossy(&output.stdout).contains(kind)
    }
}

#[test]
fn scenario_20_what_two_disks_of_a_node_have_lost_comes_from_the_other_one() {
    let site = Site::start();
    let mut filled = site.host(2, 4096);
    filled.fill();
    let load = site.load(0..2);
    // The one that serves: its host reads on without an error.
    let flipped = site.lose_disk_and_rot("a", &[1], &[2]);
    println!("scenario 20: {flipped} blocks rot beside a dead disk of a");
    filled.check_all();
    load.wait_for_more();
    assert_eq!(site.cluster.volume("a", VOLUME, "primary"), "a", "nobody had to take over");
    site.cluster.wait_until("the event is there", || site.has_event("a", "block-from-peer"));
    // And the other one, which finds out by its scrub.
    site.lose_disk_and_rot("b", &[0], &[3]);
    site.scrub_until_whole("b");
    site.cluster.wait_until("the event is there", || site.has_event("a", "block-to-peer"));
    // New disks, and everything is as it was.
    for (node, disk) in [("a", "1"), ("b", "0")] {
        site.scrub_until_whole(node);
        let path = site.cluster.disk_path(node, disk.parse().unwrap()).display().to_string();
        site.cluster.administer(node, &["disk", "replace", disk, &path, "--node", node]);
        site.cluster.wait_until("it is rebuilt", || {
            site.cluster.try_ask(node, &["pool", "show"]).is_some_and(|pool| pool["state"] == "ok")
        });
    }
    let mut hosts = load.finish();
    hosts.push(filled);
    site.check_on_both(&mut hosts);
    site.kill_both();
    NODES.iter().for_each(|node| site.cluster.spawn(node));
    site.check_on_both(&mut hosts);
}

/// Ten thousand blocks rot on two disks of one node, under load: parity gives none of them back.
#[test]
fn ten_thousand_rotten_blocks_on_two_disks_of_a_node_come_from_the_other_one() {
    let site = Site::of_size("128M");
    let mut filled = site.host(2, 20_000);
    filled.fill();
    let load = site.load(0..2);
    let flipped = site.lose_disk_and_rot("b", &[], &[0, 3]);
    let found = site.scrub_until_whole("b");
    println!("drill: {flipped} blocks flipped on two disks of b; scrub: {found}");
    assert!(flipped >= 10_000, "the disks hold next to nothing: {flipped}");
    assert!(found["unrecoverable"].as_u64().unwrap() > 5000, "{found}");
    load.wait_for_more();
    let mut hosts = load.finish();
    hosts.push(filled);
    // The node whose disks had rotted serves all of it, also after a restart.
    site.check_on_both(&mut hosts);
    site.kill_both();
    NODES.iter().for_each(|node| site.cluster.spawn(node));
    site.check_on_both(&mut hosts);
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

impl Site {
    /// All of a disk but for both ends, block by block, past the page cache; blocks of zeros are left out.
    fn blocks_of(&self, node: &str, disk: usize) -> (File, BTreeMap<u64, AlignedBuf>) {
        let path = self.cluster.disk_path(node, disk);
        let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let end = file.metadata().unwrap().len() / BLOCK_SIZE as u64 - SUPERBLOCKS;
        let read = |number: u64| {
            let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
            file.read_exact_at(&mut block, number * BLOCK_SIZE as u64).unwrap();
            block.iter().any(|byte| *byte != 0).then_some((number, block))
        };
        let blocks = (SUPERBLOCKS..end).filter_map(read).collect();
        (file, blocks)
    }
}

/// A disk that says it has written what it has not, and one that writes to the wrong place: nothing but the checksum, which
/// is bound to the address and the version, can tell.
#[test]
fn scenario_22_phantom_and_misdirected_writes_are_found_and_repaired() {
    let site = Site::start();
    let mut filled = site.host(2, 4096);
    filled.fill();
    for (node, disk) in [("a", 0), ("b", 2)] {
        let (file, before) = site.blocks_of(node, disk);
        // The same again, by other stamps: what is new on the disk since then is taken away, every other block of it.
        filled.fill();
        let (_, after) = site.blocks_of(node, disk);
        let put = |number: u64, block: &AlignedBuf| {
            file.write_all_at(block, number * BLOCK_SIZE as u64).unwrap();
        };
        let zeros = AlignedBuf::zeroed(BLOCK_SIZE);
        let was = |number: &u64| before.get(number).unwrap_or(&zeros);
        let changed = after.iter().filter(|(number, block)| block[..] != was(number)[..]);
        let lost: BTreeSet<u64> = changed.step_by(2).map(|(number, _)| *number).collect();
        lost.iter().for_each(|number| put(*number, was(number)));
        // Of the others some have got what was meant for another one.
        let left: Vec<u64> = after.keys().filter(|number| !lost.contains(number)).copied().collect();
        let pairs = left.chunks_exact(2).step_by(3);
        let misdirected = pairs.map(|pair| put(pair[0], &after[&pair[1]])).count();
        println!(
            "scenario 22: {} phantom and {misdirected} misdirected writes on disk {disk} of {node}",
            lost.len()
        );
        assert!(lost.len() > 500 && misdirected > 100, "the disk holds next to nothing");
        filled.check_all();
        let found = site.scrub_until_whole(node);
        println!("scenario 22: the scrub of {node}: {found}");
        assert!(found["repaired"].as_u64().unwrap() > 100, "{found}");
    }
    let mut hosts = vec![filled];
    site.check_on_both(&mut hosts);
    site.kill_both();
    NODES.iter().for_each(|node| site.cluster.spawn(node));
    site.check_on_both(&mut hosts);
}

/// By a debugger that has one system call of the process fail: no file system here can be made to.
#[test]
fn scenario_23_a_flush_that_fails_once_costs_the_disk_and_nothing_else() {
    if Command::new("strace").arg("--version").output().is_err() {
        println!("scenario 23 is skipped: there is no strace here");
        return;
    }
    let pool = "engine = \"threads\"\n".to_owned();
    let site = Site::with(ClusterSettings { pool, ..ClusterSettings::default() }, "64M");
    let load = site.load(0..2);
    let state = |node: &str, path: &str| {
        let listed = site.cluster.gemel(node, &["disk", "list"]);
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let disks = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut states = disks.filter(|disk| disk["path"] == path).map(|disk| disk["state"].to_string());
        states.next().unwrap_or_default()
    };
    for (node, disk) in [("a", 1), ("b", 3)] {
        let path = site.cluster.disk_path(node, disk).display().to_string();
        let mut failing = Command::new("strace");
        failing.args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-p",
            &site.cluster.pid(node).to_string(),
            "-P",
            &path,
        ]);
        failing.args(["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1"]);
        let mut failing = failing.stderr(Stdio::piped()).spawn().unwrap();
        let has_failed = || state(node, &path).contains("failed");
        let is_over =
            holds_within(Duration::from_secs(20), || has_failed() || failing.try_wait().unwrap().is_some());
        let ended = failing.try_wait().unwrap();
        // It lets go of the process when it is told to end.
        let _ = Command::new("/bin/kill").args(["-INT", &failing.id().to_string()]).status();
        let output = failing.wait_with_output().unwrap();
        if ended.is_some() && !has_failed() {
            println!("scenario 23 is skipped: {}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        assert!(is_over, "the disk is still in use");
        assert!(site.has_event(node, "disk-failed"));
        load.wait_for_more();
        assert_eq!(site.cluster.volume(node, VOLUME, "state"), "in-sync", "the pool goes on without it");
    }
    // It stays out of use, whatever it says now.
    site.kill_both();
    NODES.iter().for_each(|node| site.cluster.spawn(node));
    load.wait_for_more();
    for (node, disk) in [("a", 1), ("b", 3)] {
        let path = site.cluster.disk_path(node, disk).display().to_string();
        assert!(!state(node, &path).contains("ok"), "disk {disk} of {node} is in use again");
    }
    site.check_on_both(&mut load.finish());
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

/// What the status says is what has to be typed.
#[test]
fn a_node_that_loses_two_disks_hands_over_and_is_filled_again() {
    let site = Site::start();
    let mut filled = site.host(2, 2048);
    filled.fill();
    let load = site.load(0..2);
    let disk = |number: usize| site.cluster.disk_path("a", number).display().to_string();
    site.cluster.administer("a", &["disk", "fail", &disk(0), "--node", "a"]);
    let refused = site.cluster.gemel("a", &["disk", "fail", &disk(1), "--node", "a"]);
    assert!(!refused.status.success(), "the pool can do without one disk only");
    site.cluster.administer("a", &["disk", "fail", &disk(1), "--node", "a", "--confirm", &disk(1)]);
    load.settle();
    site.cluster.wait_until("b serves", || site.cluster.volume("b", VOLUME, "primary") == "b");
    let status = site.cluster.gemel("b", &["status"]);
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(said.contains("gemeld format --force"), "{said}");
    site.cluster.kill("a");
    site.cluster.replace_all_disks("a");
    site.cluster.spawn("a");
    site.wait_in_sync("b");
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
