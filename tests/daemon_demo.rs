//! `gemel demo` as a user runs it: ready, killed, restarted, stopped, continued.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::path::Path;
use std::process::Command;

use demo::{Demo, signal};
use service::{errors, finish, wait_until};

fn node_pid(dir: &Path) -> u32 {
    std::fs::read_to_string(dir.join("a/gemeld.pid")).unwrap().trim().parse().unwrap()
}

fn is_running(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty())
}

fn restart(dir: &Path) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemel"));
    command.args(["demo", "restart", "a", "--dir"]).arg(dir);
    finish(command)
}

#[test]
fn a_demo_in_a_temporary_folder_leaves_nothing_behind() {
    let demo = Demo::start(&[]);
    let dir = demo.fact("folder");
    assert!(Path::new(&dir).join("a/gemeld.log").exists());
    assert!(demo.fact("url").starts_with("iscsi://127.0.0.1:"));
    let pid = node_pid(Path::new(&dir));
    demo.interrupt();
    assert!(!is_running(pid));
    assert!(!Path::new(&dir).exists());
}

#[test]
fn a_killed_node_comes_back_by_restart_only_and_a_killed_demo_is_continued() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("demo");
    let argument = dir.display().to_string();
    let mut demo = Demo::start(&["--dir", &argument]);
    let first = node_pid(&dir);
    let refused = restart(&dir);
    assert!(
        refused.status.code() == Some(65) && errors(&refused).contains("is running"),
        "{}",
        errors(&refused)
    );

    signal("-KILL", first);
    demo.wait_for(&format!("node a has stopped; start it again with: gemel demo restart a --dir {argument}"));
    let restarted = restart(&dir);
    assert!(restarted.status.success(), "{}", errors(&restarted));
    let second = node_pid(&dir);
    assert!(second != first && is_running(second));
    demo.wait_for(&format!("node a is running (pid {second})"));

    // The demo and its node are killed; the next demo continues with what is on the disks.
    demo.process.kill().unwrap();
    demo.process.wait().unwrap();
    signal("-KILL", second);
    wait_until("the node is gone", || !is_running(second));
    let demo = Demo::start(&["--dir", &argument]);
    assert!(demo.fact("volume").contains("64M"));
    let third = node_pid(&dir);
    demo.interrupt();
    assert!(!is_running(third) && dir.join("a/disk-1.img").exists());
}

#[test]
fn two_demos_do_not_share_a_folder() {
    let place = tempfile::tempdir().unwrap();
    let argument = place.path().display().to_string();
    let _first = Demo::start(&["--dir", &argument]);
    let mut second = Command::new(env!("CARGO_BIN_EXE_gemel"));
    second.args(["demo", "--port", "0", "--dir", &argument]);
    let output = finish(second);
    assert!(
        output.status.code() == Some(65) && errors(&output).contains("another demo"),
        "{}",
        errors(&output)
    );
}

#[test]
fn a_folder_without_a_demo_has_nothing_to_restart() {
    let place = tempfile::tempdir().unwrap();
    let output = restart(place.path());
    assert!(
        output.status.code() == Some(64) && errors(&output).contains("holds no demo"),
        "{}",
        errors(&output)
    );
}
