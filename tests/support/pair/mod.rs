//! A pair and its witness as three real processes, by `gemel demo --nodes 2`.

#![allow(dead_code)] // each test binary uses a part

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::demo::{Demo, signal};
use super::service::{errors, finish, wait_until};

/// A running pair.
pub struct Pair {
    pub demo: Demo,
    pub dir: PathBuf,
    /// First portal of node a; that of b differs in the address alone.
    pub portal: SocketAddr,
    management: u16,
    _place: tempfile::TempDir,
}

impl Pair {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments of `gemel demo`.
    pub fn start_with(more: &[&str]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("demo");
        let folder = dir.display().to_string();
        let demo = Demo::start(&[&["--nodes", "2", "--dir", &folder], more].concat());
        let portal: SocketAddr = demo.fact("portal").parse().unwrap();
        let pair = Self { demo, dir, portal, management: portal.port() + 1, _place: place };
        wait_until("all three vote", || ["a", "b"].iter().all(|node| pair.voters(node) == ["a", "b", "w"]));
        pair
    }

    pub fn gemel(&self, node: &str, arguments: &[&str]) -> Output {
        let host = if node == "a" { "127.0.0.1" } else { "127.0.0.2" };
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemel"));
        command.args(["--cluster", &format!("{host}:{}", self.management), "--json"]).args(arguments);
        finish(command)
    }

    pub fn ask(&self, node: &str, arguments: &[&str]) -> Value {
        let output = self.gemel(node, arguments);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{arguments:?}: {}", errors(&output)))
    }

    pub fn create(&self, node: &str, volume: &str) {
        loop {
            let output = self.gemel(node, &["volume", "create", volume, "--size", "16M", "--local"]);
            if output.status.success() {
                return;
            }
            // The leader that was asked is gone: as the message says, look before trying again.
            assert!(errors(&output).contains("not known whether"), "{}", errors(&output));
            if self.gemel(node, &["volume", "show", volume]).status.success() {
                return;
            }
        }
    }

    pub fn volumes(&self, node: &str) -> usize {
        String::from_utf8(self.gemel(node, &["volume", "list"]).stdout).unwrap().lines().count()
    }

    pub fn members(&self, node: &str, is_one: impl Fn(&Value) -> bool) -> Vec<String> {
        let cluster = self.ask(node, &["cluster", "show"]);
        let members = cluster["members"].as_array().unwrap().iter().filter(|member| is_one(member));
        members.map(|member| member["name"].as_str().unwrap().to_owned()).collect()
    }

    pub fn voters(&self, node: &str) -> Vec<String> {
        self.members(node, |member| member["votes"] == true)
    }

    pub fn pid(&self, member: &str) -> u32 {
        let program = if member == "w" { "gemel-witness" } else { "gemeld" };
        let path = self.dir.join(member).join(format!("{program}.pid"));
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    pub fn kill(&self, member: &str) {
        self.end(member, "-KILL");
    }

    pub fn end(&self, member: &str, with: &str) {
        let pid = self.pid(member);
        signal(with, pid);
        wait_until("it is gone", || !is_running(pid));
    }

    /// Restarts a node with another configuration: a section's line, and what comes in its place.
    pub fn reconfigure(&self, node: &str, line: &str, instead: &str) {
        self.kill(node);
        let path = self.dir.join(node).join("gemeld.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(line), "{text}");
        std::fs::write(&path, text.replacen(line, instead, 1)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemel"));
        command.args(["demo", "restart", node, "--dir"]).arg(&self.dir);
        let output = finish(command);
        // The command may have asked what was left of the node's former process: then the node is up all the same.
        let is_answered = || self.gemel(node, &["status"]).status.code().is_some_and(|code| code < 64);
        wait_until(&format!("it answers: {}", errors(&output)), is_answered);
    }

    /// The portal of a node.
    pub fn portal_of(&self, node: &str) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, if node == "a" { 1 } else { 2 }], self.portal.port()))
    }

    pub fn restart(&self, member: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemel"));
        command.args(["demo", "restart", member, "--dir"]).arg(&self.dir);
        let output = finish(command);
        assert!(output.status.success(), "{}", errors(&output));
    }
}

pub fn is_running(pid: u32) -> bool {
    // A killed child of the demo that it has not waited for yet has no command line.
    std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).is_ok_and(|line| !line.is_empty())
}
