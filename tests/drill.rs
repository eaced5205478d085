//! A fire drill on a real pair: it moves, drains and kills, and reports what a host noticed.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/pair/mod.rs"]
mod pair;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::process::{Command, Stdio};

use pair::Pair;
use service::{errors, wait_until};

fn drill(pair: &Pair, arguments: &[&str]) -> std::process::Output {
    let port = pair.portal.port() + 1;
    let mut command = Command::new("timeout");
    command.args(["--signal", "KILL", "240", env!("CARGO_BIN_EXE_gemel")]);
    command
        .args(["--cluster", &format!("127.0.0.1:{port},127.0.0.2:{port}"), "--json", "drill"])
        .args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_drill_moves_drains_and_kills_and_says_what_a_host_noticed() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || pair.ask("a", &["volume", "show", "demo"])["state"] == "in-sync");
    let (dir, report) = (pair.dir.display().to_string(), pair.dir.join("drill.md"));
    let kill = format!("kill -9 $(cat {dir}/{{node}}/gemeld.pid)");
    let start = format!("{} demo restart {{node}} --dir {dir}", env!("CARGO_BIN_EXE_gemel"));
    let report_file = report.display().to_string();
    // As systemctl does, it returns when the process has ended.
    let stop = format!(
        "pid=$(cat {dir}/{{node}}/gemeld.pid); kill $pid; \
         while grep -q '^State:.[RSD]' /proc/$pid/status 2>/dev/null; do sleep 0.05; done"
    );
    let commands = ["--stop", &stop, "--kill", &kill, "--start", &start];
    let output = drill(&pair, &[&["--moves", "2", "--report", &report_file][..], &commands].concat());
    assert!(output.status.success(), "{}", errors(&output));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let acts = made["acts"].as_array().unwrap();
    assert_eq!(acts.len(), 8, "{made}");
    for what in ["node a stopped in order, and started again", "node b killed, and started again"] {
        assert!(acts.iter().any(|act| act["what"] == what), "{what}: {made}");
    }
    assert!(made["wrong"] == 0 && made["operations"].as_u64() > Some(200), "{made}");
    let text = std::fs::read_to_string(&report).unwrap();
    assert!(text.contains("**Passed.**") && text.contains("VMware ESX"), "{text}");
    let left = pair.gemel("a", &["volume", "list"]).stdout;
    assert!(!String::from_utf8(left).unwrap().contains("drill-"), "its volume is gone");

    // Nothing begins where something is missing.
    pair.kill("w");
    wait_until("the witness is missed", || pair.gemel("a", &["status"]).status.code() == Some(1));
    let refused = drill(&pair, &["--only-moves"]);
    assert!(!refused.status.success() && errors(&refused).contains("not whole"), "{}", errors(&refused));
    pair.demo.interrupt();
}
