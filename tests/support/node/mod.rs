//! A real `gemeld` in a temporary folder, for tests and measurements: formatted, started, given volumes,
//! killed, started again. It listens on free ports of 127.0.0.1 and dies with whoever started it.

#![allow(dead_code)] // each user of this module takes a part of it

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gemel::disk::file::{Allocation, create};

/// How to make a node.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    pub disks: usize,
    pub disk_bytes: u64,
    pub allocation: Allocation,
    /// Bytes of a pool in memory instead of disks.
    pub memory_pool: Option<u64>,
    /// CPU that it is kept on.
    pub cpu: Option<usize>,
    /// Lines added to the `[pool]` section of the configuration.
    pub pool: String,
    /// Lines added to the `[iscsi]` section of the configuration.
    pub iscsi: String,
    /// The second portal is on `[::1]`.
    pub with_ipv6: bool,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            disks: 4,
            disk_bytes: 256 << 20,
            // A flush of a sparse file waits for the file system's journal, and so for everybody else's writes.
            allocation: Allocation::Preallocated,
            memory_pool: None,
            cpu: None,
            pool: String::new(),
            iscsi: String::new(),
            with_ipv6: false,
        }
    }
}

/// A node, running until it is dropped or killed.
pub struct Node {
    settings: NodeSettings,
    folder: PathBuf,
    /// Two portals, so that initiators have two paths.
    pub portals: [SocketAddr; 2],
    console: SocketAddr,
    child: Option<Child>,
}

impl Node {
    /// Formats and starts a node whose files lie in `folder`.
    pub fn start(folder: &Path, settings: NodeSettings) -> Self {
        let [first, mut second, console] = [(); 3].map(|()| free_address());
        if settings.with_ipv6 {
            second.set_ip(Ipv6Addr::LOCALHOST.into());
        }
        let node_folder = folder.join("a");
        std::fs::create_dir_all(&node_folder).expect("the node's folder can be created");
        let disks: Vec<PathBuf> =
            (0..settings.disks).map(|n| node_folder.join(format!("disk-{n}.img"))).collect();
        let paths: Vec<String> =
            disks.iter().map(|disk| format!("{:?}", disk.display().to_string())).collect();
        let configuration = format!(
            "node = \"a\"\ncluster = \"test\"\nstate_dir = {:?}\n[pool]\ndisks = [{}]\n{}\n[iscsi]\n\
             portals = [\"{first}\", \"{second}\"]\n{}\n[management]\nsocket = {:?}\n\
             [console]\nlisten = [\"{console}\"]\n",
            node_folder.join("state").display().to_string(),
            paths.join(", "),
            settings.pool,
            settings.iscsi,
            node_folder.join("gemeld.sock").display().to_string(),
        );
        std::fs::write(node_folder.join("gemeld.toml"), configuration)
            .expect("the configuration can be written");
        let mut node = Self { settings, folder: node_folder, portals: [first, second], console, child: None };
        if node.settings.memory_pool.is_none() {
            for disk in &disks {
                create(disk, node.settings.disk_bytes, node.settings.allocation)
                    .expect("a disk can be created");
            }
            let output = node.gemeld().args(["format", "--force"]).output().expect("gemeld can be run");
            assert!(output.status.success(), "gemeld format: {}", text_of(&output));
        }
        node.restart();
        node
    }

    /// Starts the process again after it was killed or stopped, and waits until it serves.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the node is still running");
        let log =
            File::options().create(true).append(true).open(self.log_path()).expect("the log can be written");
        let mut command = self.gemeld();
        if let Some(bytes) = self.settings.memory_pool {
            command.arg("--volatile-memory-pool").arg(format!("{}M", bytes >> 20));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file descriptor can be duplicated"))
            .stderr(log)
            .spawn()
            .expect("gemeld can be started");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.gemel(&["status"]).status.code().is_none_or(|code| code >= 64)
            || TcpStream::connect(self.portals[0]).is_err()
        {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok()).flatten();
            assert!(ended.is_none() && Instant::now() < deadline, "gemeld does not serve: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL, at any moment.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a running child can be killed");
            child.wait().expect("a killed child can be waited for");
        }
    }

    /// SIGTERM; gives the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("the node runs");
        let asked = Command::new("kill").arg(child.id().to_string()).status().expect("kill can be run");
        assert!(asked.success());
        let ended = wait_within(&mut child, Duration::from_secs(20));
        child.kill().expect("a child that was not waited for can be killed");
        let status = child.wait().expect("a killed child can be waited for");
        assert!(ended, "gemeld did not stop: {}", self.log());
        status.code()
    }

    /// Runs the command line against this node.
    pub fn gemel(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gemel"))
            .args(["--cluster", &format!("unix:{}", self.folder.join("gemeld.sock").display())])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("gemel can be run")
    }

    /// Runs the command line and demands success.
    pub fn administer(&self, arguments: &[&str]) -> String {
        let output = self.gemel(arguments);
        assert!(output.status.success(), "gemel {arguments:?}: {}\n{}", text_of(&output), self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Creates a volume that every initiator may use; gives the name of its target.
    pub fn create_volume(&self, name: &str, size: &str) -> String {
        self.administer(&["volume", "create", name, "--size", size]);
        self.administer(&["access", "allow", name, "*"]);
        target_name(name)
    }

    /// The URL by which libiscsi and qemu name a volume.
    pub fn url(&self, portal: usize, volume: &str) -> String {
        format!("iscsi://{}/{}/0", self.portals[portal], target_name(volume))
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.console).expect("the console listens");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .expect("a request can be sent");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("the page is text");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    /// Memory of its process as the kernel counts it: `VmRSS` now, `VmHWM` at most.
    pub fn memory_bytes(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process_id())).expect("it runs");
        let value = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        let kibibytes: Option<u64> = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok());
        kibibytes.expect("the kernel counts it") << 10
    }

    /// Its process.
    pub fn process_id(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// Whether the process is still there: a remote party must not be able to end it.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Files of its disks.
    pub fn disk_path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("disk-{number}.img"))
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("gemeld.log")
    }

    fn gemeld(&self) -> Command {
        // Dies with the thread that started it, also when that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(cpu) = self.settings.cpu {
            command.args(["taskset", "-c", &cpu.to_string()]);
        }
        command.arg(env!("CARGO_BIN_EXE_gemeld")).arg("--config").arg(self.folder.join("gemeld.toml"));
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the node's log:\n{}", self.log());
        }
    }
}

/// A command that runs `program` for at most `limit_s` seconds, and not beyond the end of who started it.
pub fn bounded(program: &str, limit_s: &str) -> Command {
    let die_with_parent = ["--pdeathsig", "KILL"];
    let mut command = Command::new("setpriv");
    command.args(die_with_parent).args(["timeout", "--kill-after=5", limit_s]);
    command.arg("setpriv").args(die_with_parent).arg(program);
    command
}

/// The iSCSI name of a volume's target.
pub fn target_name(volume: &str) -> String {
    format!("iqn.2026-11.io.gemel:test:{volume}")
}

fn wait_within(child: &mut Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if child.try_wait().expect("a child can be waited for").is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], super::ports::free_port()))
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
