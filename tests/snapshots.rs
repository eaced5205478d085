//! Snapshots of a mirrored volume on real processes: taken and listed through either node, still there when the node that
//! took them is gone, protected as long as was said, and taken by schedule.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::process::Output;

use cluster::{Cluster, ClusterSettings, NODES, other};
use host::Host;
use serde_json::Value;

const VOLUME: &str = "data";

fn start() -> (Cluster, Host) {
    let cluster = Cluster::start(ClusterSettings::default());
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
