//! The folder of a demo: disks, configuration, and what a later demo needs to continue it.
//!
//! `DIR/demo.json` holds the settings and exists only once everything in the folder has been made; each member
//! has a folder of its own, `DIR/a/` and with two nodes `DIR/b/` and `DIR/w/`: its configuration, pid file and
//! log, `state/`, `tls/`, and `disk-N.img` of a node. A lock on `DIR/demo.lock` keeps two demos apart.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cli::error::CliError;
use crate::cluster::name::{ClusterName, NameError, NodeName};
use crate::cluster::state::ClusterUuid;
use crate::peer::authority::Authority;
use crate::peer::quorum;

/// A member of the demo.
#[derive(Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its name, and that of its folder.
    pub name: &'static str,
    /// Where it listens.
    pub address: &'static str,
    /// Its program.
    pub program: &'static str,
}

/// All that there can be; a single node is the first.
const SEATS: [Seat; 3] = [
    Seat { name: "a", address: "127.0.0.1", program: "gemeld" },
    Seat { name: "b", address: "127.0.0.2", program: "gemeld" },
    Seat { name: "w", address: "127.0.0.3", program: "gemel-witness" },
];
/// Name of the cluster.
const CLUSTER: &str = "demo";

impl Seat {
    /// Whether it holds data.
    pub fn is_node(&self) -> bool {
        self.program == "gemeld"
    }

    /// What it is, in a word.
    pub fn noun(&self) -> &'static str {
        if self.is_node() { "node" } else { "witness" }
    }
}

/// The members of a demo with so many nodes.
pub fn seats(nodes: u32) -> &'static [Seat] {
    if nodes == 1 { &SEATS[..1] } else { &SEATS }
}

/// A demo's folder; locked when it was [prepared](Folder::prepare).
pub struct Folder {
    path: PathBuf,
    _lock: Option<File>,
}

/// The ports of a node: iSCSI, and those after it for management, console, and the other members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    iscsi: u16,
}

/// What is remembered of a demo.
#[derive(Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Ports of the last start.
    pub ports: Ports,
    /// Storage nodes.
    #[serde(default = "one")]
    pub nodes: u32,
    /// Identity of the cluster of two nodes.
    #[serde(default)]
    pub cluster_uuid: Option<ClusterUuid>,
}

fn one() -> u32 {
    1
}

impl Settings {
    /// For a new demo.
    pub fn new(ports: Ports, nodes: u32) -> Result<Self, CliError> {
        let mut uuid = [0; 16];
        getrandom::fill(&mut uuid)
            .map_err(|error| CliError::Local(format!("the system gives no random bytes: {error}")))?;
        Ok(Self { ports, nodes, cluster_uuid: (nodes == 2).then_some(ClusterUuid(uuid)) })
    }
}

impl Folder {
    /// The folder of a demo that exists.
    pub fn open(path: &Path) -> Result<Self, CliError> {
        let folder = Self { path: absolute(path)?, _lock: None };
        folder.settings()?;
        Ok(folder)
    }

    /// Creates or continues the demo at `path`, which no other demo may be using.
    pub fn prepare(path: &Path) -> Result<Self, CliError> {
        let path = absolute(path)?;
        fs::create_dir_all(&path).map_err(|error| local("create the folder", &path, &error))?;
        let lock_path = path.join("demo.lock");
        let lock = File::create(&lock_path).map_err(|error| local("create", &lock_path, &error))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            CliError::Refused(format!(
                "another demo is running in {}; stop it, or give this one another --dir",
                path.display()
            ))
        })?;
        Ok(Self { path, _lock: Some(lock) })
    }

    /// The folder, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of a member.
    pub fn file(&self, seat: &Seat, name: &str) -> PathBuf {
        self.path.join(seat.name).join(name)
    }

    /// The configuration of a member.
    pub fn configuration(&self, seat: &Seat) -> PathBuf {
        self.file(seat, if seat.is_node() { "gemeld.toml" } else { "witness.toml" })
    }

    /// What is remembered; an error when no demo was ever completed here.
    pub fn settings(&self) -> Result<Settings, CliError> {
        let path = self.path.join("demo.json");
        let none = |reason: String| {
            CliError::Usage(format!(
                "{} holds no demo ({reason}); start one with: gemel demo --dir DIR",
                self.path.display()
            ))
        };
        let text = fs::read_to_string(&path).map_err(|error| none(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| none(format!("demo.json: {error}")))
    }

    /// Remembers the settings, whole or not at all.
    pub fn write_settings(&self, settings: &Settings) -> Result<(), CliError> {
        let text = serde_json::to_string(settings)
            .map_err(|error| CliError::Local(format!("cannot write the demo's settings: {error}")))?;
        let (new, path) = (self.path.join("demo.json.new"), self.path.join("demo.json"));
        fs::write(&new, text).map_err(|error| local("write", &new, &error))?;
        fs::rename(&new, &path).map_err(|error| local("write", &path, &error))
    }

    /// Makes the members' folders, the sparse disks of the nodes, and with two nodes keys, certificates and the
    /// first log of the cluster. What an interrupted attempt has left is replaced.
    pub fn create(&self, settings: &Settings, disks: u32, size_bytes: u64) -> Result<(), CliError> {
        for seat in seats(settings.nodes) {
            let (home, state) = (self.path.join(seat.name), self.file(seat, "state"));
            fs::create_dir_all(&home).map_err(|error| local("create the folder", &home, &error))?;
            if state.exists() {
                fs::remove_dir_all(&state).map_err(|error| local("remove", &state, &error))?;
            }
            for number in (1..=disks).filter(|_| seat.is_node()) {
                let path = self.file(seat, &format!("disk-{number}.img"));
                let file = File::create(&path).map_err(|error| local("create the disk", &path, &error))?;
                file.set_len(size_bytes).map_err(|error| local("size the disk", &path, &error))?;
            }
        }
        settings.cluster_uuid.map_or(Ok(()), |uuid| self.found(uuid, seats(settings.nodes)))
    }

    fn found(&self, uuid: ClusterUuid, seats: &[Seat]) -> Result<(), CliError> {
        let failed = |error: &dyn std::error::Error| CliError::Local(error.to_string());
        let bad = |error: NameError| failed(&error);
        let authority = Authority::create(uuid).map_err(|error| failed(&error))?;
        for seat in seats {
            let name: NodeName = seat.name.parse().map_err(bad)?;
            authority.issue(&name, &self.file(seat, "tls")).map_err(|error| failed(&error))?;
        }
        let first = &seats[0];
        let log = self.file(first, "state").join(quorum::NODE_DIRECTORY);
        let (name, cluster): (NodeName, ClusterName) =
            (first.name.parse().map_err(bad)?, CLUSTER.parse().map_err(bad)?);
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let created_unix_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        quorum::found(&log, &name, cluster, uuid, created_unix_ms).map_err(|error| failed(&error))
    }

    /// Whether every node still has its disks.
    pub fn has_disks(&self, nodes: u32) -> bool {
        seats(nodes).iter().filter(|seat| seat.is_node()).all(|seat| !self.disks(seat).is_empty())
    }

    fn disks(&self, seat: &Seat) -> Vec<PathBuf> {
        let disk = |number: u32| self.file(seat, &format!("disk-{number}.img"));
        (1..).map(disk).take_while(|path| path.exists()).collect()
    }

    /// Writes the members' configurations.
    pub fn write_configurations(&self, settings: &Settings) -> Result<(), CliError> {
        for seat in seats(settings.nodes) {
            let own = if seat.is_node() {
                self.node_configuration(seat, settings.ports)
            } else {
                self.witness_head(seat)
            };
            let text = format!("# Written by gemel demo.\n{own}{}", self.pair(seat, settings));
            let path = self.configuration(seat);
            fs::write(&path, text).map_err(|error| local("write", &path, &error))?;
        }
        Ok(())
    }

    fn node_configuration(&self, seat: &Seat, ports: Ports) -> String {
        let disks: Vec<_> = self.disks(seat).iter().map(|disk| quoted(disk)).collect();
        format!(
            "node = \"{name}\"\ncluster = \"{CLUSTER}\"\nstate_dir = {state}\n\n\
             [pool]\ndisks = [\n  {disks},\n]\n\n\
             [iscsi]\nportals = [\"{address}:{iscsi}\"]\n\n\
             [management]\nlisten = [\"{address}:{management}\"]\n\n\
             [console]\nlisten = [\"{address}:{console}\"]\n",
            name = seat.name,
            address = seat.address,
            state = quoted(&self.file(seat, "state")),
            disks = disks.join(",\n  "),
            iscsi = ports.iscsi(),
            management = ports.management(),
            console = ports.console(),
        )
    }

    fn witness_head(&self, seat: &Seat) -> String {
        format!("name = \"{}\"\nstate_dir = {}\n", seat.name, quoted(&self.file(seat, "state")))
    }

    fn pair(&self, seat: &Seat, settings: &Settings) -> String {
        let Some(uuid) = settings.cluster_uuid else { return String::new() };
        let (port, mirror_port) = (settings.ports.peers(), settings.ports.mirrors());
        let others = seats(settings.nodes).iter().filter(|other| *other != seat);
        let peers = others.map(|other| {
            let (name, address) = (other.name, other.address);
            let kind = match other.is_node() {
                true => format!("mirror = [\"{address}:{mirror_port}\"]\n"),
                false => "witness = true\n".to_owned(),
            };
            format!("\n[[pair.peers]]\nname = \"{name}\"\naddresses = [\"{address}:{port}\"]\n{kind}")
        });
        let address = seat.address;
        let mirror = match seat.is_node() {
            true => format!("mirror_listen = [\"{address}:{mirror_port}\"]\n"),
            false => String::new(),
        };
        format!(
            "\n[pair]\nlisten = [\"{address}:{port}\"]\n{mirror}cluster_uuid = \"{uuid}\"\ntls_dir = {tls}\n{peers}",
            tls = quoted(&self.file(seat, "tls")),
            peers = peers.collect::<String>(),
        )
    }

    /// Deletes the folder with everything in it.
    pub fn remove(self) -> Result<(), CliError> {
        fs::remove_dir_all(&self.path).map_err(|error| local("remove", &self.path, &error))
    }
}

impl Ports {
    /// The ports from `iscsi` on, for so many nodes; with 0, free ones in a row.
    pub fn choose(iscsi: u16, nodes: u32) -> Result<Self, CliError> {
        if iscsi != 0 {
            if iscsi > u16::MAX - (IN_A_ROW - 1) {
                return Err(CliError::Usage(format!(
                    "--port {iscsi} leaves no room for the next four ports"
                )));
            }
            return Ok(Self { iscsi });
        }
        // Outside the range that the system takes ports of outgoing connections from, and beginning at
        // another place in each process, so that two demos at a time do not meet.
        let start = std::process::id() % CANDIDATES;
        let candidates =
            (0..CANDIDATES).map(|step| FIRST_CANDIDATE + IN_A_ROW * ((start + step) % CANDIDATES) as u16);
        let is_free =
            |port: u16| seats(nodes).iter().all(|seat| TcpListener::bind((seat.address, port)).is_ok());
        let mut found = candidates.filter(|iscsi| (*iscsi..*iscsi + IN_A_ROW).all(is_free));
        found.next().map(|iscsi| Self { iscsi }).ok_or_else(|| {
            let reason = format!("there are no {IN_A_ROW} free ports in a row; name the first with --port");
            CliError::Local(reason)
        })
    }

    /// iSCSI.
    pub fn iscsi(self) -> u16 {
        self.iscsi
    }

    /// Management.
    pub fn management(self) -> u16 {
        self.iscsi + 1
    }

    /// Console and metrics.
    pub fn console(self) -> u16 {
        self.iscsi + 2
    }

    /// Between the members.
    pub fn peers(self) -> u16 {
        self.iscsi + 3
    }

    /// Between the nodes, for data.
    pub fn mirrors(self) -> u16 {
        self.iscsi + 4
    }
}

/// Ports that a member has.
const IN_A_ROW: u16 = 5;
/// Where ports for `--port 0` begin, and how many rows of them there are.
const FIRST_CANDIDATE: u16 = 20_000;
const CANDIDATES: u32 = 3_000;

/// A path as a TOML string.
fn quoted(path: &Path) -> String {
    toml::Value::from(path.to_string_lossy().into_owned()).to_string()
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| local("find", path, &error))
}

fn local(what: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::Local(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_configurations_are_some_even_in_an_odd_folder() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::prepare(&place.path().join("with \"quotes\" and ünicode")).unwrap();
        for nodes in [1, 2] {
            let settings = Settings::new(Ports { iscsi: 5000 }, nodes).unwrap();
            folder.create(&settings, 3, 4096).unwrap();
            folder.write_configurations(&settings).unwrap();
            let config = crate::daemon::config::Config::load(&folder.configuration(&SEATS[0])).unwrap();
            assert_eq!(config.pool.disks, folder.disks(&SEATS[0]));
            assert_eq!((config.console.listen[0].port(), config.pair.is_some()), (5002, nodes == 2));
        }
        let witness = fs::read_to_string(folder.configuration(&SEATS[2])).unwrap();
        assert!(witness.contains("127.0.0.3:5003") && folder.disks(&SEATS[2]).is_empty(), "{witness}");
    }

    #[test]
    fn a_folder_is_used_by_one_demo_at_a_time_and_remembered() {
        let place = tempfile::tempdir().unwrap();
        let first = Folder::prepare(place.path()).unwrap();
        assert!(matches!(Folder::prepare(place.path()), Err(CliError::Refused(_))));
        assert!(matches!(Folder::open(place.path()), Err(CliError::Usage(_))), "nothing to restart yet");
        first.write_settings(&Settings::new(Ports { iscsi: 5000 }, 1).unwrap()).unwrap();
        drop(first);
        assert_eq!(Folder::open(place.path()).unwrap().settings().unwrap().ports.management(), 5001);
        assert!(Folder::prepare(place.path()).is_ok());
        let old: Settings = serde_json::from_str(r#"{"ports":{"iscsi":5000}}"#).unwrap();
        assert_eq!(old.nodes, 1, "of a demo that an earlier version made");
    }
}
