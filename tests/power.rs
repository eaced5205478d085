//! The power goes, in one room and in both, as the real `upsd` with NUT's dummy driver tells two real nodes.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/pair/mod.rs"]
mod pair;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pair::Pair;
use serde_json::Value;
use service::{errors, wait_until};

/// `upsd` with a UPS for each node.
struct Nut {
    folder: PathBuf,
    port: u16,
    processes: Vec<Child>,
}

impl Nut {
    fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        // It refuses a folder that others may read.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        let port = ports::free_port();
        let mut nut = Self { folder: folder.to_owned(), port, processes: Vec::new() };
        let ups = |node: &str| {
            let file = folder.join(format!("{node}.dev"));
            format!("[{node}]\ndriver = dummy-ups\nport = {}\n", file.display())
        };
        std::fs::write(folder.join("ups.conf"), format!("{}{}", ups("a"), ups("b"))).unwrap();
        std::fs::write(folder.join("upsd.conf"), format!("LISTEN 127.0.0.1 {port}\nMAXAGE 60\n")).unwrap();
        std::fs::write(folder.join("upsd.users"), "").unwrap();
        std::fs::write(folder.join("nut.conf"), "MODE=none\n").unwrap();
        for node in ["a", "b"] {
            nut.set(node, "OL", 100);
            nut.spawn("dummy-ups", &["-a", node]);
        }
        wait_until("the drivers are there", || {
            ["a", "b"].iter().all(|node| folder.join(format!("dummy-ups-{node}")).exists())
        });
        nut.spawn("upsd", &[]);
        wait_until("upsd listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        nut
    }

    /// Debian's own are wrapped so that they do nothing before they are configured for the machine.
    fn spawn(&mut self, program: &str, arguments: &[&str]) {
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", &format!("/lib/nut/{program}")]).args(arguments);
        command.args(["-u", user.trim(), "-F"]).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        for variable in ["NUT_CONFPATH", "NUT_STATEPATH", "NUT_ALTPIDPATH", "NUT_PIDPATH"] {
            command.env(variable, &self.folder);
        }
        let child = command.spawn();
        self.processes
            .push(child.unwrap_or_else(|error| panic!("{program}: {error}: scripts/prerequisites.sh test")));
    }

    /// What the UPS of a node says from now on.
    fn set(&self, node: &str, status: &str, charge: u32) {
        let text = format!("ups.status: {status}\nbattery.charge: {charge}\nbattery.runtime: 3600\n");
        let (new, file) = (self.folder.join("new"), self.folder.join(format!("{node}.dev")));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Nut {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("NUT says:\n{}", self.log());
        }
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn demo_volume(pair: &Pair, asked: &str) -> Value {
    pair.ask(asked, &["volume", "show", "demo"])
}

fn power(pair: &Pair, asked: &str, node: &str) -> String {
    let status = pair.ask(asked, &["status"]);
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let node = nodes.into_iter().find(|known| known["name"] == node).unwrap_or_default();
    node["power"]["state"].as_str().unwrap_or_default().to_owned()
}

fn attention(pair: &Pair, asked: &str) -> String {
    pair.ask(asked, &["status"])["attention"].to_string()
}

fn events(pair: &Pair, asked: &str) -> String {
    String::from_utf8(pair.gemel(asked, &["event", "list", "--limit", "300"]).stdout).unwrap()
}

fn is_in_sync(pair: &Pair, asked: &str) -> bool {
    demo_volume(pair, asked)["state"] == "in-sync"
}

/// Starts a node as its service manager does: it may have to wait for power.
fn start_again(pair: &Pair, node: &str) -> std::thread::JoinHandle<()> {
    let (dir, node) = (pair.dir.clone(), node.to_owned());
    std::thread::spawn(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemel"));
        let output = service::finish({
            command.args(["demo", "restart", &node, "--dir"]).arg(&dir);
            command
        });
        assert!(output.status.success(), "{}", errors(&output));
    })
}

#[test]
fn one_room_hands_over_both_stop_together_and_all_comes_back() {
    let pair = Pair::start();
    let nut = Nut::start(&pair.dir.join("nut"));
    let (hook, told) = (pair.dir.join("stop-hosts"), pair.dir.join("told"));
    std::fs::write(&hook, format!("#!/bin/sh\necho \"$GEMEL_NODE $GEMEL_SECONDS\" >>{}\n", told.display()))
        .unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    wait_until("the volume is in sync", || is_in_sync(&pair, "a"));
    for node in ["b", "a"] {
        let section = format!(
            "[ups]\nname = \"{node}@127.0.0.1:{}\"\npoll_s = 1\nresume_after_s = 1\nwarn_hosts = [{:?}]\nwarn_hosts_s = 60\n\n\
             [management]",
            nut.port,
            hook.display().to_string()
        );
        pair.reconfigure(node, "[management]", &section);
        wait_until("it is in sync again", || is_in_sync(&pair, node));
    }
    wait_until("both rooms have power", || ["a", "b"].iter().all(|node| power(&pair, "a", node) == "online"));
    pair.gemel("a", &["volume", "move", "demo", "--to", "a"]);
    wait_until("a serves", || demo_volume(&pair, "a")["primary"] == "a" && is_in_sync(&pair, "a"));

    // On battery: it is told, nothing else. Low: the other room serves.
    nut.set("a", "OB DISCHRG", 80);
    wait_until("it is told", || attention(&pair, "b").contains("node a is on battery (80 %, 1h00m left)"));
    assert_eq!(demo_volume(&pair, "a")["primary"], "a");
    let pid = pair.pid("a");
    nut.set("a", "OB DISCHRG LB", 10);
    wait_until("a has ended", || !pair::is_running(pid));
    wait_until("b serves", || {
        demo_volume(&pair, "b")["primary"] == "b" && demo_volume(&pair, "b")["state"] == "solo"
    });
    assert!(!told.exists(), "hosts need not stop");

    // Started again at once, it waits for power.
    let starting = start_again(&pair, "a");
    let log = || std::fs::read_to_string(pair.dir.join("a/gemeld.log")).unwrap();
    wait_until("it waits", || log().contains("it waits until there is some"));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!pair.gemel("a", &["status"]).status.success(), "it has begun without power");
    nut.set("a", "OL CHRG", 20);
    starting.join().unwrap();
    wait_until("both are in sync again", || is_in_sync(&pair, "b"));
    assert!(events(&pair, "a").contains("as the power is gone"), "{}", events(&pair, "a"));

    // Both rooms: hosts are warned, once, and both end so that either can start everything.
    let pids = [pair.pid("a"), pair.pid("b")];
    nut.set("a", "OB DISCHRG", 90);
    wait_until("a is on battery", || power(&pair, "b", "a") == "on-battery");
    nut.set("b", "OB DISCHRG LB", 10);
    wait_until("both have ended", || pids.iter().all(|pid| !pair::is_running(*pid)));
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "b 60\n");
    nut.set("a", "OL CHRG", 50);
    start_again(&pair, "a").join().unwrap();
    wait_until("a serves alone", || demo_volume(&pair, "a")["state"] == "solo");
    assert!(attention(&pair, "a").contains("started-after-stop"), "{}", attention(&pair, "a"));
    nut.set("b", "OL CHRG", 20);
    start_again(&pair, "b").join().unwrap();
    wait_until("both are in sync again", || is_in_sync(&pair, "a"));

    // A UPS that says nothing is told at once as an event.
    nut.set("b", "BYPASS", 50);
    wait_until("it is told", || events(&pair, "b").contains("ups-silent"));
    pair.demo.interrupt();
}
