//! Two nodes and a witness as real processes: they agree, and go on without any one of them.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/service/mod.rs"]
mod service;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use demo::{Demo, signal};
use serde_json::Value;
use service::{errors, finish, wait_until};

struct Pair {
    demo: Demo,
    dir: PathBuf,
    management: u16,
    _place: tempfile::TempDir,
}

impl Pair {
    fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("demo");
        let demo = Demo::start(&["--nodes", "2", "--dir", &dir.display().to_string()]);
        let portal: std::net::SocketAddr = demo.fact("portal").parse().unwrap();
        let pair = Self { demo, dir, management: portal.port() + 1, _place: place };
        wait_until("all three vote", || ["a", "b"].iter().all(|node| pair.voters(node) == ["a", "b", "w"]));
        pair
    }

    fn gemel(&self, node: &str, arguments: &[&str]) -> Output {
        let host = if node == "a" { "127.0.0.1" } else { "127.0.0.2" };
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemel"));
        command.args(["--cluster", &format!("{host}:{}", self.management), "--json"]).args(arguments);
        finish(command)
    }

    fn ask(&self, node: &str, arguments: &[&str]) -> Value {
        let output = self.gemel(node, arguments);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{arguments:?}: {}", errors(&output)))
    }

    fn create(&self, node: &str, volume: &str) {
        let output = self.gemel(node, &["volume", "create", volume, "--size", "16M"]);
        assert!(output.status.success(), "{}", errors(&output));
    }

    fn volumes(&self, node: &str) -> usize {
        String::from_utf8(self.gemel(node, &["volume", "list"]).stdout).unwrap().lines().count()
    }

    fn members(&self, node: &str, is_one: impl Fn(&Value) -> bool) -> Vec<String> {
        let cluster = self.ask(node, &["cluster", "show"]);
        let members = cluster["members"].as_array().unwrap().iter().filter(|member| is_one(member));
        members.map(|member| member["name"].as_str().unwrap().to_owned()).collect()
    }

    fn voters(&self, node: &str) -> Vec<String> {
        self.members(node, |member| member["votes"] == true)
    }

    fn pid(&self, member: &str) -> u32 {
        let program = if member == "w" { "gemel-witness" } else { "gemeld" };
        let path = self.dir.join(member).join(format!("{program}.pid"));
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    fn kill(&self, member: &str) {
        let pid = self.pid(member);
        signal("-KILL", pid);
        wait_until("it is gone", || !is_running(pid));
    }

    fn restart(&self, member: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemel"));
        command.args(["demo", "restart", member, "--dir"]).arg(&self.dir);
        let output = finish(command);
        assert!(output.status.success(), "{}", errors(&output));
    }
}

fn is_running(pid: u32) -> bool {
    // A killed child of the demo that it has not waited for yet has no command line.
    std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).is_ok_and(|line| !line.is_empty())
}

#[test]
fn what_one_node_is_told_the_other_knows_and_two_go_on_without_the_third() {
    let pair = Pair::start();
    pair.create("a", "one");
    pair.create("b", "two");
    wait_until("both know all", || pair.volumes("a") == 3 && pair.volumes("b") == 3);
    let two = pair.ask("a", &["volume", "show", "two"]);
    assert_eq!((&two["primary"], &two["epoch"]), (&"b".into(), &1.into()));
    let refused = pair.gemel("a", &["volume", "delete", "two"]);
    assert!(
        refused.status.code() == Some(65) && errors(&refused).contains("served by node b"),
        "{}",
        errors(&refused)
    );
    let status = pair.ask("b", &["status"]);
    assert_eq!((&status["health"], &status["witness"]["state"]), (&"ok".into(), &"up".into()));
    assert_eq!(status["nodes"].as_array().unwrap().len(), 2);

    for round in 0..3 {
        let leader = pair.ask("a", &["cluster", "show"])["leader"].as_str().unwrap().to_owned();
        let asked = if leader == "a" { "b" } else { "a" };
        pair.kill(&leader);
        pair.create(asked, &format!("without-{round}"));
        let status = pair.gemel(asked, &["status"]);
        assert_eq!(status.status.code(), Some(1), "redundancy is reduced");
        pair.restart(&leader);
        wait_until("it has caught up", || {
            ["a", "b"].iter().all(|node| pair.volumes(node) == 4 + round)
                && pair.members(asked, |member| member["reachable"] == true).len() == 3
        });
    }
    // A deletion takes effect on both, and what it leaves behind is purged on both.
    let output = pair.gemel("b", &["volume", "delete", "two"]);
    assert!(output.status.success(), "{}", errors(&output));
    wait_until("it is gone on the other", || pair.volumes("a") == 5);
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
    let refused = pair.gemel("a", &["volume", "create", "alone", "--size", "16M"]);
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
