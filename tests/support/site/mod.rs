//! Three machines of a cluster on loopback addresses of their own, set up by `gemel cluster` and run as processes.

#![allow(dead_code)] // each test binary uses a part

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::service::{create_disk, errors, finish, wait_until};

/// A site of machines `a`, `b` and `w`, each with a folder.
pub struct Site {
    pub folder: tempfile::TempDir,
    /// The first two numbers after 127.
    network: (u8, u8),
    running: Vec<(String, Child)>,
}

impl Site {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), network: free_network(), running: Vec::new() }
    }

    /// The address of a machine; each site has others, so that all can use the usual ports.
    pub fn address(&self, machine: &str) -> String {
        let (second, third) = self.network;
        let number = machine.as_bytes()[0];
        format!("127.{second}.{third}.{number}")
    }

    /// Its address on the second link.
    pub fn second_address(&self, machine: &str) -> String {
        let (second, third) = self.network;
        let number = machine.as_bytes()[0] + 100;
        format!("127.{second}.{third}.{number}")
    }

    pub fn dir(&self, machine: &str) -> PathBuf {
        self.folder.path().join(machine)
    }

    pub fn file(&self, machine: &str, name: &str) -> PathBuf {
        self.dir(machine).join(name)
    }

    /// What a node has on its machine, as options.
    pub fn local_options(&self, machine: &str) -> Vec<String> {
        let disks = self.folder.path().join(format!("disks-{machine}"));
        std::fs::create_dir_all(&disks).unwrap();
        let mut options = vec!["--dir".to_owned(), self.dir(machine).display().to_string()];
        for number in 0..3 {
            let disk = disks.join(format!("disk-{number}"));
            if !disk.exists() {
                create_disk(&disk, 256 << 20);
            }
            options.extend(["--disk".to_owned(), disk.display().to_string()]);
        }
        let address = self.address(machine);
        options.extend(["--portal".to_owned(), format!("{address}:3260")]);
        options.extend(["--console".to_owned(), format!("{address}:3262")]);
        options
    }

    /// Makes the cluster on machine a; its answer.
    pub fn init(&self) -> Value {
        let [a, b, w] = ["a", "b", "w"].map(|machine| self.address(machine));
        let fixed = format!("cluster init main --name a --address {a} --peer b={b} --witness w={w} --json");
        let mut arguments: Vec<_> = fixed.split(' ').map(str::to_owned).collect();
        arguments.extend(self.local_options("a"));
        let made = succeed(gemel(&arguments));
        self.format("a");
        serde_json::from_str(&made).unwrap()
    }

    /// Joins with a token, as a machine with the folder of `machine`.
    pub fn join(&self, machine: &str, token: &str, is_witness: bool) -> Output {
        let mut arguments = vec!["cluster".to_owned(), "join".to_owned(), token.to_owned()];
        match is_witness {
            true => arguments.extend(["--dir".to_owned(), self.dir(machine).display().to_string()]),
            false => arguments.extend(self.local_options(machine)),
        }
        gemel(&arguments)
    }

    pub fn format(&self, machine: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemeld"));
        command.arg("--config").arg(self.file(machine, "gemeld.toml")).arg("format");
        succeed(finish(command));
    }

    /// Starts a machine's service.
    pub fn start(&mut self, machine: &str) {
        let (program, configuration) = match machine {
            "w" => (env!("CARGO_BIN_EXE_gemel-witness"), "witness.toml"),
            _ => (env!("CARGO_BIN_EXE_gemeld"), "gemeld.toml"),
        };
        let log = File::options().create(true).append(true).open(self.file(machine, "log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program, "--config"]).arg(self.file(machine, configuration));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.running.push((machine.to_owned(), child));
    }

    /// Waits until a node answers its own administrator.
    pub fn wait_for(&self, machine: &str) {
        wait_until("the node answers", || {
            self.gemel(machine, &["status"]).status.code().is_some_and(|code| code < 64)
        });
    }

    /// Makes the whole cluster and waits until all three vote.
    pub fn whole() -> Self {
        let mut site = Self::new();
        let made = site.init();
        site.start("a");
        site.wait_for("a");
        for machine in ["b", "w"] {
            let token = token_of(&made, machine);
            succeed(site.join(machine, &token, machine == "w"));
        }
        site.format("b");
        site.start("b");
        site.start("w");
        site.wait_until_all_vote();
        site
    }

    pub fn wait_until_all_vote(&self) {
        wait_until("all three vote", || {
            ["a", "b"].iter().all(|node| {
                let output = self.gemel(node, &["cluster", "show", "--json"]);
                let cluster: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                let members = cluster["members"].as_array().cloned().unwrap_or_default();
                members.iter().filter(|member| member["votes"] == true).count() == 3
            })
        });
    }

    /// The command line on a node itself.
    pub fn gemel(&self, machine: &str, arguments: &[&str]) -> Output {
        let socket = format!("unix:{}", self.file(machine, "gemeld.sock").display());
        gemel(&[&["--cluster", &socket], arguments].concat())
    }

    /// The command line on another machine, with the administrator's identity.
    pub fn administer(&self, nodes: &str, arguments: &[&str]) -> Output {
        let nodes: Vec<_> = nodes.split(',').map(|node| self.address(node)).collect();
        let identity = self.file("a", "admin.pem").display().to_string();
        gemel(&[&["--cluster", &nodes.join(","), "--identity", &identity], arguments].concat())
    }

    pub fn kill(&mut self, machine: &str) {
        let position = self.running.iter().position(|(name, _)| name == machine).unwrap();
        let (_, mut child) = self.running.remove(position);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn log(&self, machine: &str) -> String {
        std::fs::read_to_string(self.file(machine, "log")).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for (machine, child) in &mut self.running {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = std::fs::read_to_string(self.folder.path().join(&*machine).join("log"));
                eprintln!("the log of {machine}:\n{}", log.unwrap_or_default());
            }
        }
    }
}

/// Runs the command line of somebody without a home.
pub fn gemel(arguments: &[impl AsRef<str>]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemel"));
    command
        .args(arguments.iter().map(AsRef::as_ref))
        .env("HOME", "/nonexistent")
        .env_remove("GEMEL_IDENTITY");
    finish(command)
}

/// The standard output of what has to succeed.
pub fn succeed(output: Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, errors(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What something that has to be refused says.
pub fn refused(output: &Output, code: i32, what: &str) {
    let text = errors(output);
    assert!(output.status.code() == Some(code) && text.contains(what), "{:?}: {text}", output.status);
}

/// The token for a member in the answer of `init`.
pub fn token_of(made: &Value, name: &str) -> String {
    let mut tokens = made["tokens"].as_array().unwrap().iter();
    let token = tokens.find(|token| token["name"] == name).unwrap();
    token["token"].as_str().unwrap().to_owned()
}

/// Whether a file may be read by its owner alone.
pub fn is_secret(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o077 == 0
}

fn free_network() -> (u8, u8) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let candidate =
            std::process::id().wrapping_mul(31).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let network = ((100 + candidate % 100) as u8, (candidate / 100 % 250) as u8);
        let address = format!("127.{}.{}.97:3261", network.0, network.1);
        if TcpListener::bind(address).is_ok() {
            return network;
        }
    }
}
