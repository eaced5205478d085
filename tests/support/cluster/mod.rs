//! Two nodes and a witness as three real processes, started one by one: on addresses of their own in 127.0.0.0/8, or
//! each in a network namespace whose links can be cut ([`Network`]). They die with the thread that started them.

#![allow(dead_code)] // each user of this module takes a part of it

pub mod rooms;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gemel::cluster::state::format::NEWEST_FORMAT;
use gemel::cluster::state::{ClusterUuid, Command as Change, ControlState};
use gemel::disk::file::{Allocation, create};
use gemel::peer::authority::Authority;
use gemel::peer::quorum;
use serde_json::Value;

use rooms::Rooms;

/// The data nodes.
pub const NODES: [&str; 2] = ["a", "b"];
/// All members.
pub const MEMBERS: [&str; 3] = ["a", "b", "w"];

/// How to make a cluster.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    pub disks: usize,
    pub disk_bytes: u64,
    pub allocation: Allocation,
    /// CPUs that members are kept on, by name.
    pub cpus: BTreeMap<&'static str, usize>,
    /// Lines added to the `[pool]` section of the nodes' configurations.
    pub pool: String,
    /// Where the nodes' portals listen, if not at the addresses that hosts are told.
    pub portal: Option<SocketAddr>,
    /// Sections added to the nodes' configurations.
    pub sections: String,
    /// Format of the control state that the cluster begins with.
    pub format: u32,
    /// The release that its members begin with.
    pub release: Release,
}

/// A release of the programs.
#[derive(Clone, Debug, Default)]
pub enum Release {
    /// The present one.
    #[default]
    Present,
    /// The present one, told to say that it speaks these versions of the protocols.
    Claiming(Vec<&'static str>),
    /// The one whose programs are in this folder.
    Programs(PathBuf),
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            disks: 4,
            disk_bytes: 256 << 20,
            allocation: Allocation::Sparse,
            cpus: BTreeMap::new(),
            pool: String::new(),
            portal: None,
            sections: String::new(),
            format: NEWEST_FORMAT,
            release: Release::Present,
        }
    }
}

/// Where the members are.
pub enum Network {
    /// On loopback addresses that nobody else has: this process's part of 127.0.0.0/8, and a number in it.
    Loopback([u8; 3]),
    /// Each in a namespace of its own.
    Rooms(Rooms),
}

impl Network {
    fn loopback() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let process = std::process::id();
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % 60;
        Self::Loopback([64 + (process >> 8) as u8 % 64, process as u8, 4 * number as u8])
    }

    /// Where hosts reach a node.
    fn portal(&self, node: &str) -> SocketAddr {
        let ip = match self {
            Self::Loopback(_) => self.addresses("", node)[0].clone(),
            Self::Rooms(_) => Rooms::portal(node).to_owned(),
        };
        format!("{ip}:3260").parse().expect("an address")
    }

    /// Where a member reaches another one: one address a link.
    fn addresses(&self, from: &str, to: &str) -> Vec<String> {
        match self {
            Self::Loopback([room, process, number]) => {
                let seat = MEMBERS.iter().position(|member| *member == to).expect("a member") as u8;
                vec![format!("127.{room}.{process}.{}", number + 1 + seat)]
            }
            Self::Rooms(_) => Rooms::addresses(from, to),
        }
    }

    /// What a member listens on for the others.
    fn listens_on(&self, member: &str) -> String {
        match self {
            Self::Loopback(_) => self.addresses("", member)[0].clone(),
            Self::Rooms(_) => "0.0.0.0".to_owned(),
        }
    }

    /// `program`, to be run where a member is.
    fn command(&self, member: &str, program: &str) -> Command {
        match self {
            Self::Loopback(_) => Command::new(program),
            Self::Rooms(rooms) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &rooms.name(member), program]);
                command
            }
        }
    }
}

/// A cluster whose members run until they are killed, or it is dropped.
pub struct Cluster {
    settings: ClusterSettings,
    pub network: Network,
    uuid: ClusterUuid,
    /// What each member was last started as.
    releases: RefCell<BTreeMap<String, Release>>,
    processes: RefCell<BTreeMap<String, Child>>,
    folder: PathBuf,
    _place: Option<tempfile::TempDir>,
    /// One cluster at a time: hosts must not wait longer than they can bear, and processors are few.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Cluster {
    /// A cluster in a temporary folder, on loopback addresses.
    pub fn start(settings: ClusterSettings) -> Self {
        Self::start_on(Network::loopback(), settings)
    }

    /// A cluster in a temporary folder.
    pub fn start_on(network: Network, settings: ClusterSettings) -> Self {
        let place = tempfile::tempdir().expect("a temporary folder");
        let mut cluster = Self::start_in(place.path(), network, settings);
        cluster._place = Some(place);
        cluster
    }

    /// A cluster in `folder`, on loopback addresses.
    pub fn start_at(folder: &Path, settings: ClusterSettings) -> Self {
        Self::start_in(folder, Network::loopback(), settings)
    }

    fn start_in(folder: &Path, network: Network, settings: ClusterSettings) -> Self {
        let cluster = Self {
            settings,
            network,
            uuid: ClusterUuid(std::array::from_fn(|n| n as u8 + 1)),
            releases: RefCell::default(),
            processes: RefCell::default(),
            folder: folder.to_owned(),
            _place: None,
            // A test that failed has no effect on the next.
            _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
        };
        MEMBERS.iter().for_each(|member| cluster.install(member, cluster.settings.release.clone()));
        cluster.found();
        MEMBERS.iter().for_each(|member| cluster.spawn(member));
        cluster.wait_until("all three vote", || {
            NODES
                .iter()
                .all(|node| cluster.try_ask(node, &["cluster", "show"]).is_some_and(|seen| votes(&seen) == 3))
        });
        cluster
    }

    /// Makes keys, disks, configurations and the first log.
    fn found(&self) {
        let authority = Authority::create(self.uuid).expect("keys can be made");
        for member in MEMBERS {
            let home = self.folder.join(member);
            authority
                .issue(&member.parse().expect("a name"), &home.join("tls"))
                .expect("keys can be written");
            std::fs::write(self.configuration(member), self.configuration_text(member)).expect("written");
        }
        for node in NODES {
            for number in 0..self.settings.disks {
                self.create_disk(node, number);
            }
            self.format(node);
        }
        let log = self.folder.join("a/state").join(quorum::NODE_DIRECTORY);
        let (name, uuid) = ("a".parse().expect("a name"), self.uuid);
        let create =
            Change::CreateCluster { name: "test".parse().expect("a name"), uuid, created_unix_ms: 1 };
        let state = ControlState::in_format(self.settings.format);
        let state = state.beginning_with([create]).expect("a cluster begins like this");
        quorum::found(&log, &name, uuid, &state).expect("the first log can be made");
    }

    fn create_disk(&self, node: &str, number: usize) {
        let path = self.disk_path(node, number);
        create(&path, self.settings.disk_bytes, self.settings.allocation).expect("a disk can be created");
    }

    fn format(&self, node: &str) {
        let mut command = Command::new(self.program(node));
        command.arg("--config").arg(self.configuration(node)).args(["format", "--force"]);
        let output = command.output().expect("gemeld can be run");
        assert!(output.status.success(), "{}", text_of(&output));
    }

    /// New disks, of a new pool, in the place of all that a node had; it must not run.
    pub fn replace_all_disks(&self, node: &str) {
        for number in 0..self.settings.disks {
            std::fs::remove_file(self.disk_path(node, number)).expect("a disk can be removed");
            self.create_disk(node, number);
        }
        self.format(node);
    }

    fn configuration_text(&self, member: &str) -> String {
        let (home, listen) = (self.folder.join(member), self.network.listens_on(member));
        let (state, tls) = (home.join("state"), home.join("tls"));
        let head = match member {
            "w" => format!("name = \"w\"\nstate_dir = {state:?}\n"),
            _ => {
                let disks: Vec<PathBuf> =
                    (0..self.settings.disks).map(|number| self.disk_path(member, number)).collect();
                // One node has its map in memory, the other one on its disks.
                let map = if member == "b" { "map_memory = \"1M\"" } else { "" };
                format!(
                    "node = \"{member}\"\ncluster = \"test\"\nstate_dir = {state:?}\n[pool]\ndisks = {disks:?}\n{map}\n{}\n\
                     [iscsi]\nportals = [\"{}\"]\n[management]\nsocket = {:?}\n[console]\nlisten = []\n{}",
                    self.settings.pool,
                    self.settings.portal.unwrap_or_else(|| self.network.portal(member)),
                    home.join("gemeld.sock"),
                    self.settings.sections,
                )
            }
        };
        let mirror = match member {
            "w" => String::new(),
            _ => format!("mirror_listen = [\"{listen}:3263\"]\n"),
        };
        let peers = MEMBERS.iter().filter(|other| **other != member).map(|other| {
            let addresses = self.network.addresses(member, other);
            let kind = match *other {
                "w" => "witness = true\n".to_owned(),
                _ => format!("mirror = {addresses:?}\n"),
            };
            format!("[[pair.peers]]\nname = \"{other}\"\naddresses = {addresses:?}\n{kind}")
        });
        format!(
            "{head}[pair]\nlisten = [\"{listen}:3261\"]\n{mirror}cluster_uuid = \"{}\"\ntls_dir = {tls:?}\n{}",
            self.uuid,
            peers.collect::<String>(),
        )
    }

    fn configuration(&self, member: &str) -> PathBuf {
        self.folder.join(member).join(if member == "w" { "witness.toml" } else { "gemeld.toml" })
    }

    /// A file of a node's pool.
    pub fn disk_path(&self, node: &str, number: usize) -> PathBuf {
        self.folder.join(node).join(format!("disk-{number}.img"))
    }

    /// Where a member keeps its own records.
    pub fn state_directory(&self, member: &str) -> PathBuf {
        self.folder.join(member).join("state")
    }

    /// Gives a member that does not run another release.
    pub fn install(&self, member: &str, release: Release) {
        self.releases.borrow_mut().insert(member.to_owned(), release);
    }

    fn program(&self, member: &str) -> PathBuf {
        let (name, present) = match member {
            "w" => ("gemel-witness", env!("CARGO_BIN_EXE_gemel-witness")),
            _ => ("gemeld", env!("CARGO_BIN_EXE_gemeld")),
        };
        match self.releases.borrow().get(member) {
            Some(Release::Programs(folder)) => folder.join(name),
            _ => present.into(),
        }
    }

    /// Starts a member's process.
    pub fn spawn(&self, member: &str) {
        let log = File::options().create(true).append(true).open(self.log_path(member)).expect("a log");
        let claims = match self.releases.borrow().get(member) {
            Some(Release::Claiming(claims)) => claims.clone(),
            _ => Vec::new(),
        };
        let mut command = self.network.command(member, "setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(cpu) = self.settings.cpus.get(member) {
            command.args(["taskset", "-c", &cpu.to_string()]);
        }
        let child = command
            .arg(self.program(member))
            .arg("--config")
            .arg(self.configuration(member))
            .args(claims.iter().flat_map(|claim| ["--claim-protocol", claim]))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor can be duplicated"))
            .stderr(log)
            .spawn()
            .expect("a member can be started");
        let before = self.processes.borrow_mut().insert(member.to_owned(), child);
        assert!(before.is_none(), "{member} was running");
    }

    /// SIGKILL, at any moment.
    pub fn kill(&self, member: &str) {
        let child = self.processes.borrow_mut().remove(member);
        let mut child = child.unwrap_or_else(|| panic!("{member} does not run"));
        child.kill().expect("a child can be killed");
        let status = child.wait().expect("a killed child can be waited for");
        assert_eq!(
            status.signal(),
            Some(libc::SIGKILL),
            "{member} had ended by itself:\n{}",
            self.log(member)
        );
    }

    /// SIGTERM, and how long it took to end.
    pub fn stop(&self, member: &str) -> Duration {
        let (began, pid) = (Instant::now(), self.pid(member));
        signal(pid, libc::SIGTERM);
        let mut child = self.processes.borrow_mut().remove(member).expect("it runs");
        self.wait_until("it ends", || child.try_wait().expect("a child can be waited for").is_some());
        let status = child.wait().expect("it has ended");
        assert!(status.success(), "{member} ended with {status}:\n{}", self.log(member));
        began.elapsed()
    }

    /// Waits until a member ends by itself, and gives what it has written.
    pub fn wait_ended(&self, member: &str) -> String {
        let mut child = self.processes.borrow_mut().remove(member).expect("it runs");
        self.wait_until("it ends", || child.try_wait().expect("a child can be waited for").is_some());
        self.log(member)
    }

    /// SIGSTOP: it does nothing, and its sockets stay open.
    pub fn pause(&self, member: &str) {
        signal(self.pid(member), libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn go_on(&self, member: &str) {
        signal(self.pid(member), libc::SIGCONT);
    }

    pub fn pid(&self, member: &str) -> u32 {
        self.processes.borrow().get(member).unwrap_or_else(|| panic!("{member} does not run")).id()
    }

    /// Runs the command line against a node.
    pub fn gemel(&self, node: &str, arguments: &[&str]) -> Output {
        self.command(node, arguments).output().expect("gemel can be run")
    }

    /// Starts the command line against a node.
    pub fn start_gemel(&self, node: &str, arguments: &[&str]) -> Child {
        let mut command = self.command(node, arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("gemel can be run")
    }

    /// The command line against a node, to be run.
    pub fn command(&self, node: &str, arguments: &[&str]) -> Command {
        let mut command = self.network.command(node, "timeout");
        command.args(["--signal", "KILL", "10", env!("CARGO_BIN_EXE_gemel")]);
        let socket = format!("unix:{}", self.folder.join(node).join("gemeld.sock").display());
        command.args(["--cluster", &socket, "--json"]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs the command line and demands success.
    pub fn administer(&self, node: &str, arguments: &[&str]) {
        let output = self.gemel(node, arguments);
        assert!(output.status.success(), "gemel {arguments:?}: {}", text_of(&output));
    }

    /// What a node says, if it does.
    pub fn try_ask(&self, node: &str, arguments: &[&str]) -> Option<Value> {
        serde_json::from_slice(&self.gemel(node, arguments).stdout).ok()
    }

    /// A property of a volume, as a node sees it.
    pub fn volume(&self, node: &str, volume: &str, property: &str) -> String {
        let shown = self.try_ask(node, &["volume", "show", volume]).unwrap_or_default();
        shown[property].as_str().unwrap_or_default().to_owned()
    }

    /// Creates a volume with this primary that every initiator may use; the name of its target.
    pub fn create_volume(&self, name: &str, size: &str, options: &[&str]) -> String {
        let arguments: Vec<&str> =
            ["volume", "create", name, "--size", size].iter().chain(options).copied().collect();
        self.administer("a", &arguments);
        self.administer("a", &["access", "allow", name, "*"]);
        format!("iqn.2026-11.io.gemel:test:{name}")
    }

    /// Moves a volume to a node, and waits until it is there and in sync. Asked again where it was forgotten, as happens
    /// when the stream to that node has not begun yet.
    pub fn move_volume(&self, volume: &str, to: &str) {
        let from = other(to);
        self.wait_until("it is moved", || {
            self.gemel(from, &["volume", "move", volume, "--to", to]).status.success()
                || self.volume(to, volume, "primary") == to
        });
        self.wait_until("it is there", || self.volume(to, volume, "primary") == to);
        self.wait_in_sync(to, volume);
    }

    /// Whether a node's log has an event of this kind whose message contains `text`.
    pub fn has_event(&self, node: &str, kind: &str, text: &str) -> bool {
        let output = self.gemel(node, &["event", "list"]);
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        let events = listed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut messages =
            events.filter(|event| event["kind"] == kind).map(|event| event["message"].to_string());
        messages.any(|message| message.contains(text))
    }

    /// Waits until a node says that a volume is in sync.
    pub fn wait_in_sync(&self, node: &str, volume: &str) {
        self.wait_until("the volume is in sync", || self.volume(node, volume, "state") == "in-sync");
    }

    pub fn wait_until(&self, what: &str, condition: impl FnMut() -> bool) {
        if !holds_within(Duration::from_secs(40), condition) {
            self.print_logs();
            panic!("waited in vain until {what}");
        }
    }

    pub fn portal(&self, node: &str) -> SocketAddr {
        self.network.portal(node)
    }

    pub fn log(&self, member: &str) -> String {
        std::fs::read_to_string(self.log_path(member)).unwrap_or_default()
    }

    fn log_path(&self, member: &str) -> PathBuf {
        self.folder.join(member).join("log")
    }

    fn print_logs(&self) {
        for member in MEMBERS {
            let log = self.log(member);
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the log of {member} ends:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.processes.get_mut().values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

/// Whether `condition` comes to hold in so much time.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// The other data node.
pub fn other(node: &str) -> &'static str {
    if node == "a" { "b" } else { "a" }
}

fn votes(shown: &Value) -> usize {
    let members = shown["members"].as_array();
    members.map_or(0, |members| members.iter().filter(|member| member["votes"] == true).count())
}

fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    // SAFETY: the call only sends a signal to a process, which is a child that was not waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "process {pid} is gone");
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
