//! A running `gemel demo`, ended with the test.

#![allow(dead_code)] // each test binary uses a part

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use super::service::{LIMIT, wait_until};

/// A running demo and the lines that it prints.
pub struct Demo {
    pub process: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Demo {
    pub fn start(arguments: &[&str]) -> Self {
        let nodes: &[&str] = if arguments.contains(&"--nodes") { &[] } else { &["--nodes", "1"] };
        let mut process = Command::new(env!("CARGO_BIN_EXE_gemel"))
            .args(["demo", "--port", "0", "--size", "64M"])
            .args(if arguments.contains(&"--disk-size") { &[][..] } else { &["--disk-size", "256M"] })
            .args(nodes)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut demo = Self { process, lines, seen: Vec::new() };
        demo.wait_for("ready");
        demo
    }

    /// Waits for a line that is exactly `line`.
    pub fn wait_for(&mut self, line: &str) {
        while self.seen.last().is_none_or(|last| last != line) {
            match self.lines.recv_timeout(LIMIT) {
                Ok(next) => self.seen.push(next),
                Err(_) => panic!("no line {line:?} in {:#?}", self.seen),
            }
        }
    }

    /// The value of a line of the summary.
    pub fn fact(&self, name: &str) -> String {
        let line = self.seen.iter().find_map(|line| line.trim().strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {:#?}", self.seen)).trim().to_owned()
    }

    pub fn interrupt(mut self) {
        signal("-INT", self.process.id());
        let mut status = None;
        wait_until("the demo ends", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(0));
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Asked, not killed: it has a node to stop.
        if let Ok(None) = self.process.try_wait() {
            signal("-INT", self.process.id());
            let _ = self.process.wait();
        }
    }
}

pub fn signal(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}
