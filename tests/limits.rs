//! Limits of what a volume does in a second, with libiscsi's load generator: through either node, for as long as they hold.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;

use std::process::Command;

use cluster::{Cluster, ClusterSettings, NODES, other};

/// Reads in a second, on the average of so many seconds.
fn load(cluster: &Cluster, node: &str, target: &str, blocks: u32, seconds: u32) -> u64 {
    let url = format!("iscsi://{}/{target}/0", cluster.portal(node));
    let mut load = Command::new("timeout");
    load.args([
        "60",
        "iscsi-perf",
        "-m",
        "32",
        "-r",
        "-b",
        &blocks.to_string(),
        "-t",
        &seconds.to_string(),
        &url,
    ]);
    let output = load.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let average = text.rsplit("iops average ").next().unwrap();
    let digits: String = average.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no average in {text:?}"))
}

#[test]
fn a_volume_keeps_to_its_limits_whichever_node_is_asked_or_serves() {
    let cluster = Cluster::start(ClusterSettings::default());
    let target = cluster.create_volume("data", "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", "data");
    let free = load(&cluster, "a", &target, 8, 1);
    assert!(free > 1000, "{free} without a limit");

    let refused = cluster.gemel("a", &["volume", "set", "data", "--iops", "3"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("at least 20 operations"), "{refused:?}");
    assert_eq!(cluster.gemel("a", &["volume", "set", "data"]).status.code(), Some(64));
    // Through the node that does not serve it.
    cluster.administer("b", &["volume", "set", "data", "--iops", "200"]);
    let shown = cluster.try_ask("a", &["volume", "show", "data"]).unwrap();
    assert_eq!(shown["iops_limit"], 200, "{shown}");
    for serving in ["a", "b"] {
        if serving == "b" {
            cluster.move_volume("data", "b");
        }
        for node in [serving, other(serving)] {
            // A burst of a second is in it; less comes of a machine that has other things to do.
            let limited = load(&cluster, node, &target, 8, 4);
            assert!((50..=300).contains(&limited), "{limited} with a limit of 200, through {node}");
        }
    }
    // 64 KiB each: 64 a second.
    cluster.administer("a", &["volume", "set", "data", "--iops", "0", "--bandwidth", "4M"]);
    let limited = load(&cluster, "b", &target, 128, 4);
    assert!((16..=96).contains(&limited), "{limited} of 64 KiB with a limit of 4 MiB a second");
    cluster.administer("a", &["volume", "set", "data", "--bandwidth", "0"]);
    for node in NODES {
        let free = load(&cluster, node, &target, 8, 1);
        assert!(free > 500, "{free} without a limit, through {node}");
    }
}
