//! Snapshots of a mirrored volume on real processes: taken and listed through either node, still there when the node that
//! took them is gone, protected as long as was said, and taken by schedule; and volumes that are rolled back to them, with the
//! contents compared by QEMU over iSCSI.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::path::Path;
use std::process::{Command, Output};

use cluster::{Cluster, ClusterSettings, NODES, other};
use host::Host;
use serde_json::Value;

const VOLUME: &str = "data";

fn start() -> (Cluster, Host) {
    start_with(ClusterSettings::default())
}

fn start_with(settings: ClusterSettings) -> (Cluster, Host) {
    let cluster = Cluster::start(settings);
    let target = cluster.create_volume(VOLUME, "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", VOLUME);
    let portals = NODES.map(|node| cluster.portal(node));
    let host = Host::new("host", &target, portals, 0..64);
    (cluster, host)
}

fn names(cluster: &Cluster, asked: &str, arguments: &[&str]) -> Vec<String> {
    let output = cluster.gemel(asked, &[&["snapshot", "list"], arguments].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let name = |line: &str| {
        let snapshot: Value = serde_json::from_str(line).unwrap();
        assert_eq!(snapshot["volume"], VOLUME);
        snapshot["name"].as_str().unwrap().to_owned()
    };
    text.lines().map(name).collect()
}

fn refused(output: &Output, why: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(65) && text.contains(why), "{:?}: {text}", output.status);
}

#[test]
fn snapshots_are_known_to_both_nodes_and_outlive_the_one_that_took_them() {
    let (cluster, mut host) = start();
    host.write(0, 32);
    cluster.administer("a", &["snapshot", "create", "data@one"]);
    host.write(0, 32);
    // Through the node that does not serve the volume.
    cluster.administer("b", &["snapshot", "create", "data@two", "--protect-until", "2999-01-01"]);
    refused(&cluster.gemel("b", &["snapshot", "create", "data@two"]), "has a snapshot two already");
    refused(&cluster.gemel("a", &["snapshot", "create", "data@a/b"]), "is no name of a snapshot");
    refused(&cluster.gemel("a", &["snapshot", "create", "nothing"]), "no volume nothing");
    host.write(16, 16);
    for node in NODES {
        assert_eq!(names(&cluster, node, &[VOLUME]), ["one", "two"]);
        assert_eq!(names(&cluster, node, &[]), ["one", "two"]);
    }
    let shown = cluster.try_ask("b", &["volume", "show", VOLUME]).unwrap();
    assert_eq!(shown["snapshots"], 2, "{shown}");
    assert!(shown["snapshot_bytes"].as_u64().unwrap() >= 48 << 12, "{shown}");

    cluster.kill("a");
    cluster.wait_until("b serves", || cluster.volume("b", VOLUME, "primary") == "b");
    cluster.wait_until("they are listed", || names(&cluster, "b", &[VOLUME]) == ["one", "two"]);
    cluster.administer("b", &["snapshot", "delete", "data@one"]);
    refused(&cluster.gemel("b", &["snapshot", "delete", "data@one"]), "volume data has no snapshot one");
    refused(
        &cluster.gemel("b", &["snapshot", "delete", "data@two"]),
        "data@two is protected until 2999-01-01",
    );
    refused(&cluster.gemel("b", &["volume", "delete", VOLUME, "--force"]), "is protected until 2999-01-01");
    host.check_all();

    // The other node, too, learns that one of them is gone.
    cluster.spawn("a");
    cluster.wait_in_sync("b", VOLUME);
    cluster.move_volume(VOLUME, "a");
    assert_eq!(names(&cluster, "a", &[VOLUME]), ["two"]);
    host.check_all();
}

/// The node that takes it is killed meanwhile, a little later each time.
#[test]
fn scenario_28_a_snapshot_races_a_failover() {
    let (cluster, mut host) = start();
    let (mut acknowledged, mut there) = (Vec::new(), 0);
    for round in 0..6_u32 {
        host.write(0, 32);
        let serving = cluster.volume("a", VOLUME, "primary");
        let (survivor, name) = (other(&serving), format!("race-{round}"));
        let mut taking = cluster.start_gemel(survivor, &["snapshot", "create", &format!("{VOLUME}@{name}")]);
        std::thread::sleep(std::time::Duration::from_millis(u64::from(8 * round)));
        cluster.kill(&serving);
        if taking.wait().unwrap().success() {
            acknowledged.push(name.clone());
        }
        cluster
            .wait_until("the other one serves", || cluster.volume(survivor, VOLUME, "primary") == survivor);
        host.write(32, 32);
        let after = || names(&cluster, survivor, &[VOLUME]);
        cluster.wait_until("they are listed", || {
            cluster.gemel(survivor, &["snapshot", "list", VOLUME]).status.success()
        });
        let listed = after();
        there += usize::from(listed.contains(&name));
        assert!(
            acknowledged.iter().all(|name| listed.contains(name)),
            "{acknowledged:?}, but only {listed:?}"
        );
        cluster.spawn(&serving);
        cluster.wait_in_sync(survivor, VOLUME);
        assert_eq!(after(), listed, "what is there stays, what is not does not come");
        // The other replica has the same ones, at the same versions.
        let shown = |asked: &str| cluster.gemel(asked, &["snapshot", "list", VOLUME]).stdout;
        let before = shown(survivor);
        cluster.move_volume(VOLUME, &serving);
        assert!(shown(&serving) == before, "the replicas differ");
        host.check_all();
    }
    println!("scenario 28: {} of 6 acknowledged, {there} there", acknowledged.len());
}

/// The host writes when it is told that a snapshot is to be taken, and that is in it.
#[test]
fn hosts_are_asked_to_hold_still_while_a_snapshot_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let script = |name: &str, text: &str| {
        std::fs::write(file(name), text).unwrap();
        format!("[\"sh\", {:?}]", file(name))
    };
    let before = format!(
        "cd {:?}; [ -e broken ] && exit 3; touch asked; until [ -e still ]; do sleep 0.02; done",
        folder.path()
    );
    let after = format!("echo $GEMEL_NODE $GEMEL_VOLUMES $GEMEL_SNAPSHOT $GEMEL_TAKEN >> {:?}", file("told"));
    let sections =
        format!("[snapshots]\nbefore = {}\nafter = {}\n", script("before", &before), script("after", &after));
    let (cluster, mut host) = start_with(ClusterSettings { sections, ..ClusterSettings::default() });
    host.write(0, 32);
    // Through the other node: the one that serves runs them.
    let mut taking = cluster.start_gemel("b", &["snapshot", "create", "data@held"]);
    cluster.wait_until("the host is asked", || file("asked").exists());
    host.write(0, 32);
    std::fs::write(file("still"), "").unwrap();
    assert!(taking.wait().unwrap().success());
    let changed = cluster.gemel("a", &["snapshot", "diff", "data@held"]);
    assert!(changed.status.success() && changed.stdout.is_empty(), "{changed:?}");
    assert_eq!(std::fs::read_to_string(file("told")).unwrap(), "a data held yes\n");

    std::fs::write(file("broken"), "").unwrap();
    refused(&cluster.gemel("a", &["snapshot", "create", "data@broken"]), "ended with exit status: 3");
    assert_eq!(names(&cluster, "a", &[VOLUME]), ["held"]);
    cluster.administer("a", &["snapshot", "create", "data@plain", "--crash-consistent"]);
    let told = std::fs::read_to_string(file("told")).unwrap();
    assert_eq!(told, "a data held yes\na data broken no\n");
    // A schedule goes on without.
    cluster.administer("a", &["snapshot", "schedule", VOLUME, "--every", "1h", "--keep", "1"]);
    cluster.wait_until("one is taken", || names(&cluster, "a", &[VOLUME]).len() == 3);
    cluster.wait_until("it is an event", || {
        cluster.has_event("a", "snapshot-command-failed", "as after a power failure")
    });
    // A command after that fails is told until one ends well.
    std::fs::remove_file(file("broken")).unwrap();
    let holds_still = || {
        let status = cluster.try_ask("b", &["status"]).unwrap_or_default();
        status["attention"].to_string().contains("Hosts may still hold still")
    };
    std::fs::write(file("after"), "exit 4").unwrap();
    cluster.administer("a", &["snapshot", "create", "data@stuck"]);
    cluster.wait_until("it is told", holds_still);
    std::fs::write(file("after"), "true").unwrap();
    cluster.administer("a", &["snapshot", "create", "data@well"]);
    cluster.wait_until("it is over", || !holds_still());
}

#[test]
fn a_schedule_takes_snapshots_by_itself() {
    let (cluster, mut host) = start();
    host.write(0, 8);
    cluster.administer("b", &["snapshot", "create", "data@mine"]);
    refused(
        &cluster.gemel("a", &["snapshot", "schedule", VOLUME, "--every", "1s", "--keep", "3"]),
        "from 60 to",
    );
    cluster.administer("b", &["snapshot", "schedule", VOLUME, "--every", "1h", "--keep", "1"]);
    let taken = || names(&cluster, "a", &[VOLUME]).into_iter().find(|name| name.starts_with("auto-"));
    cluster.wait_until("the first one is taken", || taken().is_some());
    let shown = cluster.try_ask("b", &["volume", "show", VOLUME]).unwrap();
    assert_eq!(shown["snapshot_schedule"]["every_seconds"], 3600, "{shown}");
    // Whoever serves goes on with it, and takes no other one before it is due.
    cluster.move_volume(VOLUME, "b");
    cluster.administer("a", &["snapshot", "schedule", VOLUME, "--off"]);
    assert_eq!(names(&cluster, "a", &[VOLUME]).len(), 2);
    assert!(cluster.try_ask("b", &["volume", "show", VOLUME]).unwrap()["snapshot_schedule"].is_null());
}

#[test]
fn a_group_is_taken_where_all_of_it_is_served() {
    let (cluster, mut host) = start();
    cluster.create_volume("logs", "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", "logs");
    host.write(0, 8);
    let create = |node: &str, last: &str| cluster.gemel(node, &["snapshot", "create", "data", last]);
    let taken = create("b", "logs@before");
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    assert_eq!(String::from_utf8(taken.stdout).unwrap().lines().count(), 2);
    assert_eq!(names(&cluster, "a", &[VOLUME]), ["before"]);
    refused(&create("a", "logs@before"), "has a snapshot before already");
    cluster.move_volume("logs", "b");
    for node in NODES {
        refused(&create(node, "logs@after"), "one cut takes one node");
    }
    assert_eq!(names(&cluster, "a", &[VOLUME]), ["before"]);
    let wrong = cluster.gemel("a", &["snapshot", "create", "data@one", "logs@two"]);
    assert_eq!(wrong.status.code(), Some(64));
}

/// Whether a volume, read over iSCSI through a node, is what a file holds.
fn is_at(cluster: &Cluster, node: &str, target: &str, file: &Path) -> bool {
    let url = format!("iscsi://{}/{target}/0", cluster.portal(node));
    let mut compare = Command::new("timeout");
    compare.args(["60", "qemu-img", "compare", "-f", "raw", "-F", "raw"]).arg(file).arg(&url);
    let compared = compare.output().unwrap();
    assert!(matches!(compared.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&compared.stderr));
    compared.status.success()
}

/// Puts a file on a volume, over iSCSI through a node.
fn put(cluster: &Cluster, node: &str, target: &str, file: &Path) {
    let url = format!("iscsi://{}/{target}/0", cluster.portal(node));
    let mut convert = Command::new("timeout");
    convert.args(["60", "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw"]).arg(file).arg(&url);
    let converted = convert.output().unwrap();
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
}

fn is_restored(cluster: &Cluster, node: &str) -> bool {
    cluster
        .try_ask(node, &["volume", "show", VOLUME])
        .is_some_and(|shown| shown["rollback_percent"].is_null())
}

#[test]
fn a_volume_is_rolled_back_and_forth_over_the_death_of_a_node() {
    let cluster = Cluster::start(ClusterSettings::default());
    let target = cluster.create_volume(VOLUME, "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", VOLUME);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, seed: u64| {
        let data: Vec<u8> = (0..8u64 << 20).map(|n| (n * seed + n / 4096 * 7) as u8 | 1).collect();
        let path = folder.path().join(name);
        let mut whole = data;
        whole.resize(64 << 20, 0);
        std::fs::write(&path, whole).unwrap();
        path
    };
    let (old, new) = (file("old", 3), file("new", 5));
    put(&cluster, "a", &target, &old);
    cluster.administer("a", &["snapshot", "create", "data@one"]);
    put(&cluster, "b", &target, &new);
    assert!(is_at(&cluster, "a", &target, &new) && !is_at(&cluster, "b", &target, &old));

    let rollback = |node: &str, name: &str| {
        cluster.gemel(node, &["snapshot", "rollback", &format!("{VOLUME}@{name}"), "--confirm", VOLUME])
    };
    refused(&rollback("a", "none"), "has no snapshot none");
    let wrong = cluster.gemel("a", &["snapshot", "rollback", "data@one", "--confirm", "date"]);
    assert_eq!(wrong.status.code(), Some(64));
    for node in NODES {
        // A session by either node is one.
        let portals = [cluster.portal(node); 2];
        let mut host = Host::new("other", &target, portals, 4096..4100);
        host.check(0);
        for asked in NODES {
            refused(&rollback(asked, "one"), "is in use by ");
        }
        drop(host);
        cluster.wait_until("the host has gone", || {
            NODES
                .iter()
                .all(|node| cluster.try_ask(node, &["volume", "show", VOLUME]).unwrap()["sessions"] == 0)
        });
    }
    let done = rollback("b", "one");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let kept: Value = serde_json::from_slice(&done.stdout).unwrap();
    let kept = kept["name"].as_str().unwrap().to_owned();
    // It need not have ended for that.
    cluster.kill("a");
    cluster.wait_until("b serves", || cluster.volume("b", VOLUME, "primary") == "b");
    cluster.wait_until("hosts are served", || is_at(&cluster, "b", &target, &old));
    cluster.wait_until("it ends", || is_restored(&cluster, "b"));
    assert!(is_at(&cluster, "b", &target, &old));
    assert_eq!(names(&cluster, "b", &[VOLUME]), ["one", &kept]);
    cluster.spawn("a");
    cluster.wait_in_sync("b", VOLUME);
    cluster.move_volume(VOLUME, "a");
    assert!(is_at(&cluster, "a", &target, &old));

    // Undone, with hosts logged in.
    let mut host = Host::new("other", &target, NODES.map(|node| cluster.portal(node)), 4096..4100);
    host.check(0);
    cluster.administer(
        "b",
        &["snapshot", "rollback", &format!("{VOLUME}@{kept}"), "--confirm", VOLUME, "--force"],
    );
    host.check(0);
    assert!(is_at(&cluster, "a", &target, &new));
    cluster.wait_until("it ends", || is_restored(&cluster, "a"));
    cluster.kill("b");
    cluster.wait_until("a is alone", || cluster.volume("a", VOLUME, "state") == "solo");
    assert!(is_at(&cluster, "a", &target, &new));
    cluster.spawn("b");
    cluster.wait_in_sync("a", VOLUME);
    cluster.kill("a");
    cluster.wait_until("b serves", || cluster.volume("b", VOLUME, "primary") == "b");
    cluster.wait_until("hosts are served", || is_at(&cluster, "b", &target, &new));
}
