//! Writable clones of a mirrored volume on real processes: made at once through either node, written to without a trace in what
//! they are made of, there on both nodes, after a failover, and on a node whose disks were new; and what they need stays.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cluster::{Cluster, ClusterSettings, NODES};
use host::Host;
use serde_json::Value;

fn refused(output: &Output, why: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(65) && text.contains(why), "{:?}: {text}", output.status);
}

fn url(cluster: &Cluster, node: &str, volume: &str) -> String {
    let shown = cluster.try_ask(node, &["volume", "show", volume]).unwrap();
    format!("iscsi://{}/{}/0", cluster.portal(node), shown["target"].as_str().unwrap())
}

/// Whether a volume, read over iSCSI through a node, is what a file holds.
fn is_at(cluster: &Cluster, node: &str, volume: &str, file: &Path) -> bool {
    let url = url(cluster, node, volume);
    let mut compare = Command::new("timeout");
    compare.args(["60", "qemu-img", "compare", "-f", "raw", "-F", "raw"]).arg(file).arg(&url);
    let compared = compare.output().unwrap();
    assert!(matches!(compared.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&compared.stderr));
    compared.status.success()
}

/// Puts a file on a volume, over iSCSI through a node.
fn put(cluster: &Cluster, node: &str, volume: &str, file: &Path) {
    let url = url(cluster, node, volume);
    let mut convert = Command::new("timeout");
    convert.args(["60", "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw"]).arg(file).arg(&url);
    let converted = convert.output().unwrap();
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
}

/// A file of 64 MiB of which so many are full.
fn file(folder: &Path, name: &str, seed: u64, full: u64) -> PathBuf {
    let mut data: Vec<u8> = (0..full << 20).map(|n| (n * seed + n / 4096 * 7) as u8 | 1).collect();
    data.resize(64 << 20, 0);
    let path = folder.join(name);
    std::fs::write(&path, data).unwrap();
    path
}

fn clone(cluster: &Cluster, node: &str, source: &str, name: &str) -> Value {
    let made = cluster.gemel(node, &["volume", "clone", source, name]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    cluster.administer(node, &["access", "allow", name, "*"]);
    serde_json::from_slice(&made.stdout).unwrap()
}

#[test]
fn clones_begin_as_a_snapshot_on_both_nodes_and_go_their_own_way() {
    let cluster = Cluster::start(ClusterSettings::default());
    cluster.create_volume("data", "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", "data");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, seed, full| file(folder.path(), name, seed, full);
    let (old, new, own) = (file("old", 3, 8), file("new", 5, 6), file("own", 11, 2));
    put(&cluster, "a", "data", &old);
    cluster.administer("a", &["snapshot", "create", "data@one"]);
    put(&cluster, "a", "data", &new);

    // Through the node that does not serve the volume.
    let made = clone(&cluster, "b", "data@one", "test");
    assert_eq!((&made["origin"], &made["used_bytes"]), (&"data@one".into(), &0.into()), "{made}");
    let made = clone(&cluster, "a", "data", "now");
    assert_eq!(made["origin"], "data@clone-now", "{made}");
    refused(&cluster.gemel("a", &["volume", "clone", "data", "test"]), "a volume named test exists already");
    refused(&cluster.gemel("a", &["clone", "create", "data@none", "x"]), "has no snapshot none");
    for node in NODES {
        assert!(is_at(&cluster, node, "test", &old) && is_at(&cluster, node, "now", &new));
        let listed = cluster.gemel(node, &["snapshot", "list", "data"]).stdout;
        let listed: Value =
            serde_json::from_str(String::from_utf8(listed).unwrap().lines().next().unwrap()).unwrap();
        assert_eq!((&listed["name"], &listed["clones"][0]), (&"one".into(), &"test".into()), "{listed}");
    }

    // Each goes its own way, also on the other node.
    put(&cluster, "b", "test", &own);
    assert!(is_at(&cluster, "a", "test", &own) && is_at(&cluster, "a", "data", &new));
    cluster.move_volume("test", "b");
    assert!(is_at(&cluster, "a", "test", &own));
    // A clone of the clone, and one of what is now.
    cluster.administer("b", &["snapshot", "create", "test@mine"]);
    put(&cluster, "b", "test", &old);
    clone(&cluster, "a", "test@mine", "deep");

    // What they need stays.
    refused(&cluster.gemel("a", &["snapshot", "delete", "data@one"]), "volume test is a clone of data@one");
    refused(&cluster.gemel("b", &["volume", "delete", "data", "--force"]), "has clones, which need it");
    refused(&cluster.gemel("b", &["volume", "delete", "test", "--force"]), "deep is one of them");

    // A failover.
    cluster.kill("a");
    cluster.wait_until("b serves", || cluster.volume("b", "data", "primary") == "b");
    for (volume, contents) in [("data", &new), ("test", &old), ("now", &new), ("deep", &own)] {
        cluster.wait_until("hosts are served", || {
            cluster.volume("b", volume, "primary") == "b" && cluster.volume("b", volume, "state") == "solo"
        });
        assert!(is_at(&cluster, "b", volume, contents), "{volume}");
    }
    // Made while one node is away, of what it never heard of.
    cluster.administer("b", &["snapshot", "create", "data@two"]);
    let made = cluster.gemel("b", &["volume", "clone", "data@two", "alone"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    cluster.administer("b", &["access", "allow", "alone", "*"]);
    cluster.spawn("a");
    for volume in ["data", "test", "now", "deep", "alone"] {
        cluster.wait_in_sync("b", volume);
    }
    put(&cluster, "b", "alone", &own);
    cluster.kill("b");
    for (volume, contents) in [("data", &new), ("test", &old), ("now", &new), ("deep", &own), ("alone", &own)]
    {
        cluster.wait_until("a serves", || {
            cluster.volume("a", volume, "primary") == "a" && cluster.volume("a", volume, "state") == "solo"
        });
        assert!(is_at(&cluster, "a", volume, contents), "{volume}");
    }

    // What was deleted while a node is away keeps its snapshot until that node has heard of it.
    cluster.administer("a", &["volume", "delete", "deep"]);
    refused(
        &cluster.gemel("a", &["snapshot", "delete", "test@mine"]),
        "not all nodes have given its space back",
    );
    cluster.administer("a", &["volume", "delete", "test"]);
    cluster.spawn("b");
    cluster.wait_in_sync("a", "data");
    cluster.wait_until("it can be deleted", || {
        cluster.gemel("a", &["snapshot", "delete", "data@one"]).status.success()
    });
    assert!(is_at(&cluster, "b", "data", &new) && is_at(&cluster, "b", "now", &new));
}

#[test]
fn a_node_with_new_disks_gets_clones_after_what_they_are_made_of() {
    let cluster = Cluster::start(ClusterSettings::default());
    let of = cluster.create_volume("data", "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", "data");
    let mut host = Host::new("host", &of, NODES.map(|node| cluster.portal(node)), 0..64);
    host.write(0, 48);
    clone(&cluster, "a", "data", "test");
    cluster.wait_in_sync("a", "test");
    let folder = tempfile::tempdir().unwrap();
    let before = folder.path().join("before");
    let read = Command::new("timeout")
        .args(["60", "qemu-img", "convert", "-f", "raw", "-O", "raw", &url(&cluster, "a", "test")])
        .arg(&before)
        .output()
        .unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    host.write(16, 48);

    cluster.kill("b");
    for volume in ["data", "test"] {
        cluster.wait_until("a is alone", || cluster.volume("a", volume, "state") == "solo");
    }
    cluster.replace_all_disks("b");
    cluster.spawn("b");
    for volume in ["data", "test"] {
        cluster.wait_in_sync("a", volume);
    }
    cluster.kill("a");
    for volume in ["data", "test"] {
        cluster.wait_until("b serves", || {
            cluster.volume("b", volume, "primary") == "b" && cluster.volume("b", volume, "state") == "solo"
        });
    }
    assert!(is_at(&cluster, "b", "test", &before));
    host.check_all();
}
