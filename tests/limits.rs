//! Limits of what a volume does in a second, with libiscsi's load generator: through either node, for as long as they hold. And
//! of what it takes of the pools, told to a host as 07/27/07.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::process::Command;

use bytes::Bytes;
use cluster::{Cluster, ClusterSettings, NODES, other};
use gemel::iscsi::initiator::{Command as ScsiCommand, LoginSettings};
use initiator::Session;

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

/// Writes a mebibyte somewhere. The sense codes when that fails; what tells of other things first is passed over.
fn write(session: &mut Session, mebibyte: u64, value: u8) -> Option<(u8, u8, u8)> {
    loop {
        let data = Bytes::from(vec![value; 1 << 20]);
        let outcome = session.write(0, mebibyte * 2048, data).unwrap();
        match outcome.sense_codes() {
            Some((6, ..)) => {}
            codes => {
                assert_eq!(codes.is_none(), outcome.is_good(), "{outcome:?}");
                return codes;
            }
        }
    }
}

#[test]
fn a_quota_is_told_to_the_host_and_everything_goes_on_when_there_is_space() {
    let cluster = Cluster::start(ClusterSettings::default());
    let target = cluster.create_volume("data", "64M", &["--primary", "a"]);
    cluster.create_volume("critical", "64M", &["--primary", "b"]);
    cluster.wait_in_sync("a", "data");
    let open = |node: &str| {
        let settings = LoginSettings::normal("iqn.2026-11.io.gemel:host", &target);
        let mut session = Session::open(cluster.portal(node), settings).unwrap();
        let _ = session.execute(ScsiCommand::new(&[0; 6])).unwrap();
        session
    };
    let full = Some((7, 0x27, 7));
    cluster.administer("b", &["volume", "set", "data", "--quota", "16M"]);
    let shown = cluster.try_ask("a", &["volume", "show", "data"]).unwrap();
    assert_eq!(shown["quota_bytes"], 16 << 20, "{shown}");
    let mut session = open("b");
    for mebibyte in 0..16 {
        assert_eq!(write(&mut session, mebibyte, 1), None);
    }
    assert_eq!(write(&mut session, 16, 1), full);
    assert_eq!(write(&mut session, 3, 2), None, "what has space is overwritten");
    // Whoever serves it next keeps to it.
    cluster.move_volume("data", "b");
    let mut session = open("b");
    assert_eq!(write(&mut session, 16, 1), full);
    assert_eq!(write(&mut session, 4, 2), None);
    cluster.administer("a", &["volume", "set", "data", "--quota", "20M"]);
    cluster.wait_until("there is space", || write(&mut session, 16, 1).is_none());
    assert_eq!(cluster.volume("a", "data", "state"), "in-sync");

    // What is kept for one is not there for others.
    let refused = |arguments: &[&str], why: &str| {
        let output = cluster.gemel("a", &[&["volume", "set"], arguments].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(65) && text.contains(why), "{text}");
    };
    refused(&["data", "--reserve", "32M"], "not less than what is reserved");
    refused(&["critical", "--reserve", "1T"], "would have to be kept");
    cluster.administer("a", &["volume", "set", "data", "--quota", "0"]);
    let pool = cluster.try_ask("b", &["pool", "show"]).unwrap();
    let free = pool["capacity_bytes"].as_u64().unwrap() - pool["used_bytes"].as_u64().unwrap();
    let kept = (free - (8 << 20)) & !0xfffff;
    cluster.administer("a", &["volume", "set", "critical", "--reserve", &kept.to_string()]);
    let mut taken = 0;
    cluster.wait_until("the rest is kept", || {
        let outcome = write(&mut session, 17 + taken, 1);
        taken += u64::from(outcome.is_none());
        outcome == full
    });
    assert!((7..=9).contains(&taken), "{taken}");
    cluster.administer("b", &["volume", "set", "critical", "--reserve", "0"]);
    cluster.wait_until("there is space", || write(&mut session, 17 + taken, 1).is_none());
}
