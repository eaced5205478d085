//! Conformance over a mirrored volume: libiscsi's `iscsi-test-cu` against the path of the node that serves, against the
//! other node's, whose commands are forwarded, and over both at once, in both orders. Then the reservation family once
//! more, when the node that served has been killed, and again when it is back and forwards.
//!
//! Fails on every failed test, and on every test that is skipped where `tests/conformance/skips.txt` does not say so for
//! volumes with 512-byte sectors in physical blocks of 4 KiB, which these are; but for the tests that want two paths,
//! where there is one. Left out is GetLBAStatus.UnmapSingle, as in `tests/conformance.rs`; the Sanitize suite runs test by
//! test, as there.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/node/mod.rs"]
mod node;
#[path = "support/pair/mod.rs"]
mod pair;
#[path = "support/ports/mod.rs"]
mod ports;
#[allow(dead_code)] // tables are for the other test
#[path = "conformance/report.rs"]
mod report;
#[path = "support/service/mod.rs"]
mod service;

use std::process::Stdio;

use pair::Pair;
use report::{Outcome, TestResult, parse};
use service::{errors, wait_until};

/// By volume: the nodes that the tool is given paths to.
const RUNS: [(&str, &[&str]); 4] =
    [("serving", &["a"]), ("forwarded", &["b"]), ("both", &["a", "b"]), ("reverse", &["b", "a"])];

/// Hanging is a failure too.
const TIME_LIMIT_S: &str = "1100";

/// Suites whose tests leave behind what is in the way of the next one.
const TEST_BY_TEST: [&str; 2] = ["Sanitize", "GetLBAStatus"];
/// What the reservation family's suites begin with.
const RESERVATIONS: [&str; 4] = ["Prin", "Prout", "Reserve", "MultipathIO"];

#[test]
fn every_test_passes_on_either_path_and_over_both() {
    // SANITIZE fills all volumes at the same time: no host is to be warned of a pool that fills. Nor is the machine's
    // disk to be full, which is under all eight of the nodes' disks: then writes wait until the tool's time is over.
    let pair = Pair::start_with(&["--disk-size", "128M"]);
    for node in ["a", "b"] {
        // The tool sleeps for a minute without answering pings.
        pair.reconfigure(node, "[iscsi]", "[iscsi]\nkeepalive_interval_s = 300");
        wait_until("it is back", || ["a", "b"].iter().all(|node| pair.voters(node).len() == 3));
    }
    for (volume, _) in RUNS {
        let created = pair.gemel("a", &["volume", "create", volume, "--size", "32M", "--primary", "a"]);
        assert!(created.status.success(), "{}", errors(&created));
        let allowed = pair.gemel("a", &["access", "allow", volume, "*"]);
        assert!(allowed.status.success(), "{}", errors(&allowed));
        wait_until("it is in sync", || pair.ask("b", &["volume", "show", volume])["state"] == "in-sync");
        assert_eq!(pair.ask("b", &["volume", "show", volume])["primary"], "a");
    }
    let names = pair.dir.join("tests");
    std::fs::write(&names, selection(|_| true)).unwrap();
    let family = pair.dir.join("reservations");
    std::fs::write(&family, selection(|suite| RESERVATIONS.iter().any(|name| suite.starts_with(name))))
        .unwrap();
    let (names, family) = (names.to_str().unwrap(), family.to_str().unwrap());
    let problems = std::thread::scope(|scope| {
        let runs = RUNS.map(|(volume, nodes)| {
            let urls: Vec<String> = nodes.iter().map(|node| url(&pair, node, volume)).collect();
            scope.spawn(move || run(volume, names, &urls))
        });
        runs.map(|run| run.join().unwrap())
    });
    let mut problems: Vec<String> = problems.into_iter().flatten().collect();
    // Across a failover.
    pair.kill("a");
    let is_on_b = |volume: &str| pair.ask("b", &["volume", "show", volume])["primary"] == "b";
    wait_until("b serves", || RUNS.iter().all(|(volume, _)| is_on_b(volume)));
    problems.extend(run("both, a is dead", family, &[url(&pair, "b", "both")]));
    pair.restart("a");
    for (volume, _) in RUNS {
        wait_until("it is in sync", || pair.ask("b", &["volume", "show", volume])["state"] == "in-sync");
    }
    // MultipathIO.CompareAndWrite clears 256 blocks and uses 257, so it runs once on a volume.
    for (volume, nodes) in [("both", &["a"][..]), ("serving", &["b", "a"]), ("forwarded", &["a", "b"])] {
        let urls: Vec<String> = nodes.iter().map(|node| url(&pair, node, volume)).collect();
        problems.extend(run(&format!("{volume}, served by b, over {nodes:?}"), family, &urls));
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
    pair.demo.interrupt();
}

fn url(pair: &Pair, node: &str, volume: &str) -> String {
    format!("iscsi://{}/iqn.2026-11.io.gemel:demo:{volume}/0", pair.portal_of(node))
}

/// The tool's suites that are `wanted`, one a line, which gives each sessions of its own; some test by test.
fn selection(wanted: impl Fn(&str) -> bool) -> String {
    let listing = node::bounded("iscsi-test-cu", "10").arg("-l").output().unwrap();
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    let mut selected = String::new();
    for name in listing.lines().filter_map(|line| line.strip_prefix("ALL.")) {
        let is_meant = match name.split_once('.') {
            None => !TEST_BY_TEST.contains(&name) && wanted(name),
            Some((suite, test)) => TEST_BY_TEST.contains(&suite) && test != "UnmapSingle" && wanted(suite),
        };
        if is_meant {
            selected += &format!("ALL.{name}\n");
        }
    }
    assert!(!selected.is_empty(), "iscsi-test-cu is missing: Debian package libiscsi-bin");
    selected
}

fn run(volume: &str, tests: &str, urls: &[String]) -> Vec<String> {
    let output = node::bounded("iscsi-test-cu", TIME_LIMIT_S)
        .args(["--dataloss", "--allow-sanitize", "-V", "-t", tests])
        .args(urls)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let results: Vec<TestResult> = parse(&text).unwrap_or_else(|error| {
        panic!(
            "on {volume}: {error}: {}:\n{}",
            output.status,
            text.lines().rev().take(50).collect::<Vec<_>>().join("\n")
        )
    });
    let failed = |result: &TestResult| result.outcome == Outcome::Failed;
    let is_expected = |result: &TestResult| {
        let wants_two_paths = result.name.starts_with("MultipathIO.") && urls.len() == 1;
        result.skips.is_empty() || wants_two_paths || report::is_listed(&result.name, "512e")
    };
    let skipped = results.iter().filter(|result| !result.skips.is_empty()).count();
    let failures = results.iter().filter(|result| failed(result)).count();
    println!("{volume}: {} tests, {skipped} skipped in part or whole, {failures} failed", results.len());
    let problems = results.iter().filter_map(|result| match (failed(result), is_expected(result)) {
        (true, _) => Some(format!("failed on {volume}: {}:\n{}", result.name, result.details)),
        (false, false) => Some(format!("skipped on {volume}: {}: {:?}", result.name, result.skips)),
        (false, true) => None,
    });
    problems.collect()
}
