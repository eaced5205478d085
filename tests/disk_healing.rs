//! Disks of a real node that die, are replaced and are rebuilt, spares, and rot that the scrub finds; with hosts that
//! check every sector meanwhile.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/node/mod.rs"]
mod node;
#[path = "support/ports/mod.rs"]
mod ports;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gemel::base::buffer::AlignedBuf;
use gemel::base::units::BLOCK_SIZE;
use gemel::disk::file::{Allocation, create};
use serde_json::Value;

use host::{Host, Load};
use node::{Node, NodeSettings};

const VOLUME: &str = "data";
const DISK_BYTES: u64 = 256 << 20;

/// A node with a volume, of which a part is filled.
struct Site {
    folder: tempfile::TempDir,
    node: Node,
    target: String,
}

impl Site {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = NodeSettings {
            disk_bytes: DISK_BYTES,
            allocation: Allocation::Sparse,
            // The map is on the disks, too.
            pool: "map_memory = \"1M\"".to_owned(),
            ..NodeSettings::default()
        };
        let node = Node::start(folder.path(), settings);
        let target = node.create_volume(VOLUME, "256M");
        Self { folder, node, target }
    }

    /// A host for a part of the volume.
    fn host(&self, number: u64, blocks: u64) -> Host {
        let first = number * 1000;
        Host::new(&format!("host-{number}"), &self.target, self.node.portals, first..first + blocks)
    }

    fn load(&self) -> Load {
        let load = Load::start((0..2).map(|number| self.host(number, 200)).collect(), || {});
        load.settle();
        load
    }

    /// A host whose blocks are all written.
    fn filled(&self, blocks: u64) -> Host {
        let mut host = self.host(4, blocks);
        host.fill();
        host
    }

    fn disk(&self, number: usize) -> String {
        self.node.disk_path(number).display().to_string()
    }

    fn new_disk(&self, name: &str, bytes: u64) -> String {
        let path = self.folder.path().join(name);
        create(&path, bytes, Allocation::Sparse).unwrap();
        path.display().to_string()
    }

    fn ask(&self, arguments: &[&str]) -> Value {
        let output = self.node.gemel(&[&["--json"], arguments].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            panic!("gemel {arguments:?}: {}{}", String::from_utf8_lossy(&output.stderr), self.node.log())
        })
    }

    fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.node.gemel(arguments);
        assert!(!output.status.success(), "gemel {arguments:?} was not refused");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn pool(&self) -> Value {
        self.ask(&["pool", "show"])
    }

    /// What is known of a disk; null when it is none of the pool's.
    fn facts_of(&self, path: &str) -> Value {
        let pool = self.pool();
        let mut disks = pool["disks"].as_array().unwrap().iter();
        disks.find(|disk| disk["path"] == path).cloned().unwrap_or_default()
    }

    fn state_of(&self, path: &str) -> String {
        self.facts_of(path)["state"].as_str().unwrap_or("gone").to_owned()
    }

    fn wait_until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < Duration::from_secs(90), "not within 90 s: {what}: {}", self.pool());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_until_whole(&self) {
        self.wait_until("everything is redundant", |site| site.pool()["state"] == "ok");
    }

    fn has_event(&self, kind: &str) -> bool {
        let output = self.node.administer(&["event", "list"]);
        output.lines().any(|line| line.contains(kind))
    }

    fn scrub(&self) -> Value {
        self.node.administer(&["pool", "scrub", "start"]);
        self.wait_until("the scrub has ended", |site| {
            site.ask(&["pool", "scrub", "status"])["running"] == false
        });
        self.ask(&["pool", "scrub", "status"])
    }
}

/// Flips a bit in every block of a disk that holds anything, but for its beginning, where its superblocks are.
fn rot(path: &Path) -> u64 {
    // Past the page cache, which must not get between the node and its disk.
    let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let end = file.metadata().unwrap().len() / BLOCK_SIZE as u64;
    let (mut block, mut flipped) = (AlignedBuf::zeroed(BLOCK_SIZE), 0);
    for number in 256..end {
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

#[test]
fn a_disk_that_died_is_replaced_and_rebuilt_under_load_and_kills() {
    let mut site = Site::start();
    let mut filled = site.filled(12_000);
    let load = site.load();
    site.node.administer(&["disk", "fail", &site.disk(1)]);
    load.wait_for_more();
    assert_eq!(site.pool()["state"], "degraded");
    let again = site.refusal(&["disk", "fail", &site.disk(2)]);
    assert!(again.contains("no redundancy") && again.contains("--confirm"), "{again}");
    // Slowly, so that the node is killed in the middle of it.
    site.node.administer(&["pool", "rebuild-priority", "low"]);
    let new = site.new_disk("new.img", DISK_BYTES);
    let joined = site.ask(&["disk", "replace", &site.disk(1), &new]);
    assert_eq!((joined["state"].as_str(), joined["slot"].as_u64()), (Some("rebuilding"), Some(1)));
    assert_eq!(site.pool()["state"], "rebuilding");
    for _ in 0..2 {
        site.node.kill();
        site.node.restart();
        load.settle();
    }
    site.node.administer(&["pool", "rebuild-priority", "high"]);
    site.wait_until_whole();
    assert!(site.has_event("disk-rebuilt"));
    assert_eq!(site.state_of(&new), "ok");
    load.wait_for_more();
    // All that the new disk got is right: another one may go.
    std::fs::remove_file(site.node.disk_path(1)).unwrap();
    site.node.administer(&["disk", "fail", &site.disk(3)]);
    filled.check_all();
    let mut hosts = load.finish();
    site.node.kill();
    site.node.restart();
    filled.check_all();
    hosts.iter_mut().for_each(Host::check_all);
    // The very disk that was taken out may come back; it gets everything anew.
    site.node.administer(&["disk", "add", &site.disk(3)]);
    site.wait_until_whole();
    site.node.administer(&["disk", "fail", &new]);
    filled.check_all();
    hosts.iter_mut().for_each(Host::check_all);
}

#[test]
fn a_disk_that_does_not_fit_is_refused_with_the_reason() {
    let site = Site::start();
    let mut filled = site.filled(500);
    let new = site.new_disk("new.img", DISK_BYTES);
    let refusals = |path: &str| site.refusal(&["disk", "replace", "1", path]);
    assert!(refusals(&new).contains("in use"), "the place is taken");
    let full = site.refusal(&["disk", "add", &new]);
    assert!(full.contains("spare add"), "{full}");
    site.node.administer(&["disk", "fail", "1"]);
    let small = site.new_disk("small.img", 100 << 20);
    assert!(refusals(&small).contains("too small"));
    assert!(refusals("/nowhere/at/all").contains("no such disk"));
    assert!(refusals("relative.img").contains("begins with /"));
    assert!(refusals(&site.disk(2)).contains("in use"), "it is a member");
    let foreign = site.new_disk("foreign.img", DISK_BYTES);
    File::options().write(true).open(&foreign).unwrap().write_all_at(b"somebody's data", 4096).unwrap();
    let refused = refusals(&foreign);
    assert!(refused.contains("not gemel's") && refused.contains("--force"), "{refused}");
    let other_folder = tempfile::tempdir().unwrap();
    let mut other = Node::start(
        other_folder.path(),
        NodeSettings { disk_bytes: DISK_BYTES, allocation: Allocation::Sparse, ..NodeSettings::default() },
    );
    let theirs = other.disk_path(0).display().to_string();
    assert!(refusals(&theirs).contains("in use"), "another node has it");
    other.stop();
    let refused = refusals(&theirs);
    assert!(refused.contains("belongs to pool") && refused.contains("--force"), "{refused}");
    assert_eq!(site.pool()["state"], "degraded");
    filled.check_all();
    site.node.administer(&["disk", "replace", "1", &foreign, "--force"]);
    site.wait_until_whole();
    filled.check_all();
}

#[test]
fn a_spare_takes_the_place_of_a_disk_that_dies() {
    let mut site = Site::start();
    let mut filled = site.filled(3000);
    let load = site.load();
    let (spare, unused) = (site.new_disk("spare.img", DISK_BYTES), site.new_disk("unused.img", DISK_BYTES));
    site.node.administer(&["disk", "spare", "add", &spare]);
    site.node.administer(&["disk", "spare", "add", &unused]);
    site.node.administer(&["disk", "spare", "remove", &unused]);
    assert_eq!((site.state_of(&spare), site.state_of(&unused)), ("spare".into(), "gone".into()));
    // A spare is still one after a restart.
    site.node.kill();
    site.node.restart();
    load.settle();
    assert_eq!(site.state_of(&spare), "spare");
    assert_eq!(site.pool()["state"], "ok");
    site.node.administer(&["disk", "fail", "0"]);
    site.wait_until("the spare is in use", |site| site.has_event("spare-used"));
    site.wait_until_whole();
    assert_eq!(site.state_of(&spare), "ok");
    let mut hosts = load.finish();
    site.node.kill();
    site.node.restart();
    assert_eq!(site.state_of(&spare), "ok");
    site.node.administer(&["disk", "fail", "2"]);
    filled.check_all();
    hosts.iter_mut().for_each(Host::check_all);
}

#[test]
fn a_disk_that_collects_errors_is_retired_while_a_spare_waits() {
    let mut site = Site::start();
    let mut filled = site.filled(4_000);
    let load = site.load();
    let spare = site.new_disk("spare.img", DISK_BYTES);
    site.node.administer(&["disk", "spare", "add", &spare]);
    let (old, path) = (site.disk(2), site.node.disk_path(2));
    assert!(rot(&path) >= 1_000);
    site.scrub();
    site.wait_until("the disk is retired", |site| site.has_event("disk-retired"));
    site.wait_until_whole();
    assert_eq!((site.state_of(&spare), site.state_of(&old)), ("ok".into(), "gone".into()));
    // The pool does without any other one now.
    site.node.administer(&["disk", "fail", "0"]);
    filled.check_all();
    let mut hosts = load.finish();
    site.node.kill();
    site.node.restart();
    filled.check_all();
    hosts.iter_mut().for_each(Host::check_all);
}

#[test]
fn ten_thousand_rotten_blocks_are_found_and_repaired_under_load() {
    let mut site = Site::start();
    let mut filled = site.filled(44_000);
    let load = site.load();
    let path: PathBuf = site.node.disk_path(2);
    let flipped = rot(&path);
    let report = site.scrub();
    println!("drill: {flipped} blocks flipped on one disk; scrub: {report}");
    assert!(flipped >= 10_000, "the disk holds next to nothing: {flipped}");
    // What was flipped in places that hold nothing any more needs no repair.
    assert!(report["found"].as_u64().unwrap() >= 10_000);
    assert_eq!(report["found"], report["repaired"]);
    assert_eq!(report["unrecoverable"], 0);
    // It is known which disk it was.
    let of = |place: usize| site.facts_of(&site.disk(place))["checksum_errors"].as_u64().unwrap();
    assert!(of(2) >= 10_000 && [0, 1, 3].iter().all(|place| of(*place) == 0), "{} of disk 2", of(2));
    load.wait_for_more();
    let again = site.scrub();
    assert_eq!((&again["found"], &again["unrecoverable"]), (&Value::from(0), &Value::from(0)), "{again}");
    // Nothing rotten is left: what another disk had is rebuilt from this one.
    site.node.administer(&["disk", "fail", "0"]);
    filled.check_all();
    let mut hosts = load.finish();
    site.node.kill();
    site.node.restart();
    filled.check_all();
    hosts.iter_mut().for_each(Host::check_all);
}
