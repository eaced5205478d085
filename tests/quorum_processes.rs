//! Two nodes and a witness as real processes: they agree, and go on without any one of them.

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
use service::{errors, wait_until};

#[test]
fn what_one_node_is_told_the_other_knows_and_two_go_on_without_the_third() {
    let pair = Pair::start();
    pair.create("a", "one");
    pair.create("b", "two");
    wait_until("both know all", || pair.volumes("a") == 3 && pair.volumes("b") == 3);
    let two = pair.ask("a", &["volume", "show", "two"]);
    assert_eq!((&two["primary"], &two["epoch"]), (&"b".into(), &1.into()));
    // What the other node has to do is passed on to it.
    assert_eq!(pair.ask("a", &["volume", "resize", "two", "--size", "32M"])["size_bytes"], 32 << 20);
    let status = pair.ask("b", &["status"]);
    assert_eq!((&status["health"], &status["witness"]["state"]), (&"ok".into(), &"up".into()));
    assert_eq!(status["nodes"].as_array().unwrap().len(), 2);

    for round in 0..3 {
        let leader = pair.ask("a", &["cluster", "show"])["leader"].as_str().unwrap().to_owned();
        let asked = if leader == "a" { "b" } else { "a" };
        pair.kill(&leader);
        pair.create(asked, &format!("without-{round}"));
        // Redundancy is reduced; of a node, volumes without a mirror are not served besides. What the member of the
        // last round serves is being opened for a moment yet.
        let expected = if leader == "w" { 1 } else { 2 };
        wait_until(&format!("the status is {expected} without {leader}"), || {
            pair.gemel(asked, &["status"]).status.code() == Some(expected)
        });
        pair.restart(&leader);
        wait_until("it has caught up", || {
            ["a", "b"].iter().all(|node| pair.volumes(node) == 4 + round)
                && pair.members(asked, |member| member["reachable"] == true).len() == 3
        });
    }
    // A deletion takes effect on both, and what it leaves behind is purged on both.
    let output = pair.gemel("a", &["volume", "delete", "two"]);
    assert!(output.status.success(), "{}", errors(&output));
    wait_until("it is gone on the other", || pair.volumes("b") == 5);
    pair.demo.interrupt();
}

#[test]
fn a_witness_without_its_log_has_no_vote_until_it_is_accepted_anew() {
    let pair = Pair::start();
    pair.kill("w");
    pair.create("b", "without-witness");
    std::fs::remove_dir_all(pair.dir.join("w/state")).unwrap();
    pair.restart("w");
    wait_until("it is there", || pair.members("a", |member| member["reachable"] == true).len() == 3);
    assert_eq!(pair.voters("a"), ["a", "b"]);
    let status = pair.ask("a", &["status"]);
    assert!(status["attention"].to_string().contains("gemel node replace w"), "{status}");
    // With it alone a node has no majority, and says so.
    pair.kill("b");
    let refused = pair.gemel("a", &["volume", "create", "alone", "--size", "16M", "--local"]);
    assert!(
        refused.status.code() == Some(65) && errors(&refused).contains("majority"),
        "{}",
        errors(&refused)
    );
    assert_eq!(pair.ask("a", &["cluster", "show"])["has_majority"], false);
    pair.restart("b");
    wait_until("a majority", || pair.ask("a", &["cluster", "show"])["has_majority"] == true);
    let replaced = pair.gemel("b", &["node", "replace", "w"]);
    assert!(replaced.status.success(), "{}", errors(&replaced));
    assert_eq!(pair.voters("b"), ["a", "b", "w"]);
    pair.kill("a");
    pair.create("b", "with-the-new-witness");
    pair.demo.interrupt();
}
