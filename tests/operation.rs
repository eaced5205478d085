//! What an administrator does with a pair: maintenance, a stop, a look at what is at risk, and force, the last resort.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/pair/mod.rs"]
mod pair;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use pair::Pair;
use serde_json::Value;
use service::{errors, wait_until};

fn demo_volume(pair: &Pair, asked: &str) -> Value {
    pair.ask(asked, &["volume", "show", "demo"])
}

fn is_served_by(pair: &Pair, node: &str, asked: &str) -> bool {
    let volume = demo_volume(pair, asked);
    volume["primary"] == node && volume["state"] != "offline"
}

fn is_in_sync(pair: &Pair, asked: &str) -> bool {
    demo_volume(pair, asked)["state"] == "in-sync"
}

/// What the status says is the matter, and its exit code.
fn attention(pair: &Pair, asked: &str) -> (String, Option<i32>) {
    let output = pair.gemel(asked, &["status"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let items = status["attention"].as_array().unwrap().iter();
    let text = items.map(|item| format!("{} -> {}\n", item["message"], item["action"])).collect();
    (text, output.status.code())
}

fn events(pair: &Pair, asked: &str) -> String {
    let output = pair.gemel(asked, &["event", "list"]);
    String::from_utf8(output.stdout).unwrap()
}

fn refused(pair: &Pair, asked: &str, arguments: &[&str]) -> String {
    let output = pair.gemel(asked, arguments);
    assert!(!output.status.success(), "{arguments:?} is not refused");
    errors(&output)
}

fn succeed(pair: &Pair, asked: &str, arguments: &[&str]) {
    let output = pair.gemel(asked, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
}

#[test]
fn a_node_is_freed_for_work_and_taken_back() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a") && is_served_by(&pair, "a", "a"));
    let status = pair.ask("a", &["status"]);
    assert!(status["summary"].as_str().unwrap().contains("stops nothing"), "{status}");
    // From the other node: the state says what is to be done.
    succeed(&pair, "b", &["node", "maintenance", "on", "a"]);
    assert!(is_served_by(&pair, "b", "b"));
    let (text, code) = attention(&pair, "b");
    assert!(text.contains("node a is in maintenance") && code == Some(0), "{text} {code:?}");
    let reason = demo_volume(&pair, "b")["reason"].as_str().unwrap().to_owned();
    assert_eq!(reason, "node a is in maintenance");
    assert!(events(&pair, "b").contains("it was moved to node b: node a is in maintenance"));
    succeed(&pair, "b", &["volume", "create", "new", "--size", "16M"]);
    assert_eq!(pair.ask("b", &["volume", "show", "new"])["primary"], "b");
    succeed(&pair, "a", &["node", "maintenance", "off"]);
    assert_eq!(attention(&pair, "a"), (String::new(), Some(0)));
    succeed(&pair, "a", &["volume", "home", "demo", "a"]);
    assert_eq!(demo_volume(&pair, "a")["home"], "a");
    succeed(&pair, "a", &["volume", "home", "demo", "none"]);
    assert!(refused(&pair, "a", &["volume", "home", "demo", "c"]).contains("there is no node c"));
    succeed(&pair, "a", &["cluster", "set", "--resync-limit", "200M"]);
    let cluster = pair.ask("b", &["cluster", "show"]);
    assert_eq!(cluster["resync_limit_bytes_per_second"], 200 << 20);
    pair.demo.interrupt();
}

#[test]
fn a_volume_whose_only_whole_replica_is_gone_is_had_back_or_forced() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a") && is_served_by(&pair, "a", "a"));
    let stopped = pair.pid("b");
    succeed(&pair, "b", &["node", "shutdown"]);
    wait_until("b has stopped", || !pair::is_running(stopped));
    wait_until("a goes on alone", || demo_volume(&pair, "a")["state"] == "solo");
    let (text, code) = attention(&pair, "a");
    assert!(text.contains("only node a has all data, node b cannot be reached"), "{text}");
    assert!(text.contains("node a must not be switched off") && code == Some(1), "{text} {code:?}");
    assert!(
        events(&pair, "a").contains("node a goes on alone with it: node b has stopped"),
        "{}",
        events(&pair, "a")
    );
    let refusal = refused(&pair, "a", &["node", "shutdown"]);
    assert!(refusal.contains("the only one that has all data of volume demo"), "{refusal}");
    let refusal = refused(&pair, "a", &["node", "maintenance", "on"]);
    assert!(refusal.contains("wait until both nodes are in sync"), "{refusal}");

    // Now a is lost, and b comes back: it may lack what was acknowledged.
    pair.kill("a");
    pair.restart("b");
    wait_until("b says who must come back", || {
        let (text, code) = attention(&pair, "b");
        text.contains("node a, which cannot be reached, is the only one that has all that was acknowledged")
            && text.contains("gemel force primary demo --on b")
            && code == Some(2)
    });
    let refusal = refused(&pair, "b", &["force", "primary", "demo", "--on", "b", "--confirm", "dem"]);
    assert!(refusal.contains("the name does not match"), "{refusal}");
    assert!(!is_served_by(&pair, "b", "b"));
    let matters = pair.ask("b", &["status"])["attention"].clone();
    let is_told_why = |item: &Value| {
        // b was not there when it was decided.
        item["kind"] == "not-served" && item["why"].to_string().contains("node a goes on alone with it")
    };
    assert!(matters.as_array().unwrap().iter().any(is_told_why), "{matters}");
    succeed(&pair, "b", &["force", "primary", "demo", "--on", "b", "--confirm", "demo"]);
    wait_until("b serves", || is_served_by(&pair, "b", "b"));
    assert!(events(&pair, "b").contains("volume-forced"));

    // What a has is brought to what b has, by itself.
    pair.restart("a");
    wait_until("both are in sync again", || is_in_sync(&pair, "b"));
    assert_eq!(attention(&pair, "b").1, Some(0));
    let refusal = refused(&pair, "b", &["force", "primary", "demo", "--on", "b", "--confirm", "demo"]);
    assert!(refusal.contains("has everything that was acknowledged"), "{refusal}");
    pair.demo.interrupt();
}

#[test]
fn the_cluster_is_switched_off_and_either_room_switched_on_again() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a") && is_served_by(&pair, "a", "a"));
    let refusal = {
        // Without b it is refused, and nothing has changed by that.
        let stopped = pair.pid("b");
        succeed(&pair, "b", &["node", "shutdown"]);
        wait_until("b has stopped", || !pair::is_running(stopped));
        wait_until("a goes on alone", || demo_volume(&pair, "a")["state"] == "solo");
        refused(&pair, "a", &["cluster", "shutdown"])
    };
    assert!(refusal.contains("node b cannot be reached: bring it back first"), "{refusal}");
    assert!(is_served_by(&pair, "a", "a"));
    pair.restart("b");
    wait_until("both are in sync again", || is_in_sync(&pair, "a"));

    let nodes = [pair.pid("a"), pair.pid("b")];
    let stopped = pair.ask("b", &["cluster", "shutdown"]);
    assert_eq!(stopped["on_both"][0], "demo", "{stopped}");
    assert_eq!((stopped["nodes"].as_array().unwrap().len(), &stopped["alone"][0]), (2, &Value::Null));
    wait_until("both have stopped", || nodes.iter().all(|pid| !pair::is_running(*pid)));

    // Either room can start it, also the one that did not serve; the other one then needs what it missed.
    pair.restart("b");
    wait_until("b serves", || is_served_by(&pair, "b", "b"));
    wait_until("b is alone", || demo_volume(&pair, "b")["state"] == "solo");
    let (text, _) = attention(&pair, "b");
    assert!(text.contains("volume demo: started by node b after a stop on purpose"), "{text}");
    let told = events(&pair, "b");
    assert!(
        told.contains("node b started it again: node b is there again after a stop on purpose"),
        "{told}"
    );
    pair.restart("a");
    wait_until("both are in sync again", || is_in_sync(&pair, "b"));
    pair.demo.interrupt();
}
