//! How full the pools are: thresholds with their events, and the day on which a pool is full, on real processes.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::time::SystemTime;

use cluster::{Cluster, ClusterSettings, NODES};
use host::{BLOCK_BYTES, Host};
use serde_json::Value;

#[test]
fn thresholds_are_told_and_the_day_is_foretold() {
    let cluster = Cluster::start(ClusterSettings::default());
    let target = cluster.create_volume("data", "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", "data");
    let mut host = Host::new("host", &target, NODES.map(|node| cluster.portal(node)), 0..8192);
    host.fill();
    let status = || -> Value { serde_json::from_slice(&cluster.gemel("a", &["status"]).stdout).unwrap() };
    let severity = |node: &str| {
        let status = status();
        let mut items = status["attention"].as_array().unwrap().iter();
        let filling = items.find(|item| item["kind"] == "pool-filling" && item["node"] == node);
        filling.map_or_else(String::new, |item| item["severity"].as_str().unwrap().to_owned())
    };
    assert_eq!(severity("a"), "");
    cluster.administer("b", &["cluster", "set", "--space-warning", "2"]);
    for node in NODES {
        cluster.wait_until("it is a warning", || {
            severity(node) == "warning" && cluster.has_event(node, "pool-filling", "% full")
        });
    }
    cluster.administer("b", &["cluster", "set", "--space-error", "3"]);
    cluster.wait_until("it is an error", || severity("a") == "error");
    cluster.administer("a", &["cluster", "set", "--space-warning", "80", "--space-error", "90"]);
    for node in NODES {
        cluster.wait_until("it is over", || {
            severity(node).is_empty() && cluster.has_event(node, "pool-space-back", "% full")
        });
    }

    // Nobody can tell yet; nor is a day's growth waited for here.
    let pool = |node: &str| cluster.try_ask("a", &["pool", "show", "--node", node]).unwrap();
    assert!(pool("b")["full_ms"].is_null() && pool("b")["growth_bytes_per_day"].is_null());
    let used = pool("b")["used_bytes"].as_u64().unwrap();
    cluster.stop("b");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let now_ms = u64::try_from(now.as_millis()).unwrap();
    let hour_ms = 3600 * 1000;
    let looks: Vec<(u64, u64)> =
        (1..=48).rev().map(|hours| (now_ms - hours * hour_ms, used - used / 48 * hours)).collect();
    let file = cluster.state_directory("b").join("pool-growth.json");
    std::fs::write(&file, serde_json::json!({ "looks": looks }).to_string()).unwrap();
    cluster.spawn("b");
    cluster.wait_in_sync("a", "data");
    let shown =
        || cluster.try_ask("a", &["pool", "show", "--node", "b"]).filter(|pool| !pool["full_ms"].is_null());
    cluster.wait_until("the day is foretold", || shown().is_some());
    let shown = shown().unwrap();
    let growth = shown["growth_bytes_per_day"].as_u64().unwrap();
    assert!((used / 3..used).contains(&growth), "{shown}");
    let free = shown["capacity_bytes"].as_u64().unwrap() - shown["used_bytes"].as_u64().unwrap();
    let days = (shown["full_ms"].as_u64().unwrap() - now_ms) / (24 * hour_ms);
    assert!(days.abs_diff(free / growth) <= 1, "{days}: {shown}");
    let status = status();
    let mut pools = status["pools"].as_array().unwrap().iter();
    assert!(pools.any(|pool| pool["node"] == "b" && !pool["full_ms"].is_null()), "{status}");
}

#[test]
fn a_full_pair_takes_overwrites_although_it_has_to_look_up_what_has_space() {
    let cluster =
        Cluster::start(ClusterSettings { disks: 3, disk_bytes: 128 << 20, ..ClusterSettings::default() });
    let capacity = |node: &str| {
        let pool = cluster.try_ask("a", &["pool", "show", "--node", node]).unwrap();
        (pool["capacity_bytes"].as_u64().unwrap(), pool["used_bytes"].as_u64().unwrap())
    };
    // Node b has its map on its disks, and so less space.
    let blocks = capacity("b").0 / BLOCK_BYTES as u64;
    assert!(capacity("b").0 < capacity("a").0);
    let target = cluster.create_volume("data", "1G", &["--primary", "b"]);
    cluster.wait_in_sync("b", "data");
    let mut host = Host::new("host", &target, NODES.map(|node| cluster.portal(node)), 0..blocks);
    host.fill();
    // What was there before a snapshot does not count as space any more, and it is not known when it does again.
    cluster.administer("a", &["snapshot", "create", "data@short"]);
    cluster.administer("a", &["snapshot", "delete", "data@short"]);
    for primary in ["b", "a"] {
        if primary == "a" {
            cluster.move_volume("data", "a");
        }
        for turn in 0..200 {
            host.write(turn * 7919 % (blocks as usize - 8), 1 + turn % 8);
        }
        let (capacity, used) = capacity("b");
        assert_eq!(used, capacity, "it was full all the time");
        assert_eq!(cluster.volume(primary, "data", "state"), "in-sync");
    }
    assert!(!cluster.has_event("a", "volume-solo", ""), "no node was left behind");
    host.check_all();
}
