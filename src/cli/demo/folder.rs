//! The folder of a demo: disks, configuration, and what a later demo needs to continue it.
//!
//! `DIR/demo.json` holds the settings and exists only once everything in the folder has been made; each member
//! has a folder of its own, `DIR/a/` and with two nodes `DIR/b/` and `DIR/w/`: its configuration, pid file and
//! log, `state/`, `tls/`, and `disk-N.img` of a node. A lock on `DIR/demo.lock` keeps two demos apart, and `DIR/demo.begun`
//! says that the members' folders are a demo's.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::cluster::args::{InitArguments, JoinArguments, LocalArguments, MemberAddress, SeatArgument};
use crate::cli::cluster::configuration::{MembersConfiguration, NodeConfiguration, member, witness_text};
use crate::cli::cluster::places::Places;
use crate::cli::error::CliError;
use crate::cli::local_socket;
use crate::cluster::name::{ClusterName, NameError, NodeName};
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::ClusterUuid;
use crate::peer::settings::PeerAddress;

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

/// The ports of a node: iSCSI, and those after it for management and the other members, console, and mirrors.
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
    /// Of what is in the folder.
    #[serde(default)]
    format: u32,
}

fn one() -> u32 {
    1
}

/// Since this one, members are made by `gemel cluster`.
const FORMAT: u32 = 1;

impl Settings {
    /// For a new demo.
    pub fn new(ports: Ports, nodes: u32, cluster_uuid: Option<ClusterUuid>) -> Self {
        Self { ports, nodes, cluster_uuid, format: FORMAT }
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

    /// What is remembered of an earlier demo, where one was completed here.
    pub fn earlier(&self) -> Result<Option<Settings>, CliError> {
        if self.path.join("demo.json").exists() { self.settings().map(Some) } else { Ok(None) }
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
        let settings: Settings =
            serde_json::from_str(&text).map_err(|error| none(format!("demo.json: {error}")))?;
        if settings.format < FORMAT && settings.nodes > 1 {
            return Err(CliError::Usage(format!(
                "the demo in {} was made by an earlier version of gemel: give this one another --dir",
                self.path.display()
            )));
        }
        Ok(settings)
    }

    /// Remembers the settings, whole or not at all.
    pub fn write_settings(&self, settings: &Settings) -> Result<(), CliError> {
        let text = serde_json::to_string(settings)
            .map_err(|error| CliError::Local(format!("cannot write the demo's settings: {error}")))?;
        let (new, path) = (self.path.join("demo.json.new"), self.path.join("demo.json"));
        fs::write(&new, text).map_err(|error| local("write", &new, &error))?;
        fs::rename(&new, &path).map_err(|error| local("write", &path, &error))
    }

    /// Makes the members' folders, and the sparse disks of the nodes. What an interrupted attempt has left is removed.
    pub fn create(&self, nodes: u32, disks: u32, size_bytes: u64) -> Result<(), CliError> {
        let marker = self.path.join("demo.begun");
        let homes = seats(nodes).iter().map(|seat| self.path.join(seat.name));
        if let Some(home) = homes.into_iter().find(|home| home.exists() && !marker.exists()) {
            let reason = format!("{} exists, and is not of a demo: name another --dir", home.display());
            return Err(CliError::Refused(reason));
        }
        File::create(&marker).map_err(|error| local("create", &marker, &error))?;
        for seat in seats(nodes) {
            let home = self.path.join(seat.name);
            if home.exists() {
                fs::remove_dir_all(&home).map_err(|error| local("remove", &home, &error))?;
            }
            fs::create_dir_all(&home).map_err(|error| local("create the folder", &home, &error))?;
            for number in (1..=disks).filter(|_| seat.is_node()) {
                let path = self.file(seat, &format!("disk-{number}.img"));
                let file = File::create(&path).map_err(|error| local("create the disk", &path, &error))?;
                file.set_len(size_bytes).map_err(|error| local("size the disk", &path, &error))?;
            }
        }
        Ok(())
    }

    /// How the first node makes the cluster.
    pub fn init_arguments(&self, nodes: u32, ports: Ports) -> Result<InitArguments, CliError> {
        let first = &SEATS[0];
        let others = |seat: &Seat| -> Result<SeatArgument, CliError> {
            Ok(SeatArgument {
                name: name(seat)?,
                addresses: vec![MemberAddress(address(seat, ports.members())?)],
            })
        };
        let (mut peer, mut witness) = (None, None);
        if nodes == 2 {
            (peer, witness) = (Some(others(&SEATS[1])?), Some(others(&SEATS[2])?));
        }
        Ok(InitArguments {
            cluster_name: cluster_name()?,
            name: name(first)?,
            address: vec![MemberAddress(address(first, ports.members())?)],
            peer,
            witness,
            single: nodes == 1,
            local: self.local_arguments(first, ports)?,
        })
    }

    /// How another member joins it.
    pub fn join_arguments(&self, seat: &Seat, ports: Ports, token: &str) -> Result<JoinArguments, CliError> {
        let local = match seat.is_node() {
            true => self.local_arguments(seat, ports)?,
            false => LocalArguments { dir: Some(self.path.join(seat.name)), ..LocalArguments::default() },
        };
        Ok(JoinArguments { token: token.to_owned(), witness: !seat.is_node(), local })
    }

    fn local_arguments(&self, seat: &Seat, ports: Ports) -> Result<LocalArguments, CliError> {
        let socket = local_socket::of_own_node(address(seat, ports.members())?)
            .map_err(|reason| CliError::Local(format!("there is no folder for socket files: {reason}")))?;
        Ok(LocalArguments {
            disk: self.disks(seat),
            portal: vec![address(seat, ports.iscsi())?],
            console: Some(address(seat, ports.console())?),
            dir: Some(self.path.join(seat.name)),
            socket: Some(socket),
        })
    }

    /// Whether every node still has its disks.
    pub fn has_disks(&self, nodes: u32) -> bool {
        seats(nodes).iter().filter(|seat| seat.is_node()).all(|seat| !self.disks(seat).is_empty())
    }

    fn disks(&self, seat: &Seat) -> Vec<PathBuf> {
        let disk = |number: u32| self.file(seat, &format!("disk-{number}.img"));
        (1..).map(disk).take_while(|path| path.exists()).collect()
    }

    /// Writes the members' configurations again, for other ports or a folder that was moved.
    pub fn write_configurations(&self, settings: &Settings) -> Result<(), CliError> {
        let Settings { nodes, ports, cluster_uuid, .. } = settings;
        let all = seats(*nodes)
            .iter()
            .map(|seat| Ok(member(&name(seat)?, &[address(seat, ports.members())?], !seat.is_node())));
        let all: Vec<PeerAddress> = all.collect::<Result<_, CliError>>()?;
        for (seat, own) in seats(*nodes).iter().zip(&all) {
            let peers: Vec<_> = all.iter().filter(|other| other.name != own.name).cloned().collect();
            let members = cluster_uuid.map(|uuid| MembersConfiguration { uuid, own, peers: &peers });
            let arguments = self.join_arguments(seat, *ports, "")?.local;
            let kind = if seat.is_node() { SeatKind::Node } else { SeatKind::Witness };
            let places = Places::new(kind, &arguments)?;
            let text = match (&members, kind) {
                (Some(members), SeatKind::Witness) => witness_text(&places, members),
                _ => NodeConfiguration {
                    places: &places,
                    name: &own.name,
                    cluster: &cluster_name()?,
                    disks: &arguments.disk,
                    portals: &arguments.portal,
                    console: arguments.console,
                    members,
                }
                .text(),
            };
            let path = &places.configuration;
            fs::write(path, text).map_err(|error| local("write", path, &error))?;
        }
        Ok(())
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
                    "--port {iscsi} leaves no room for the next three ports"
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

    /// Management, and between the members.
    pub fn members(self) -> u16 {
        self.iscsi + 1
    }

    /// Console and metrics.
    pub fn console(self) -> u16 {
        self.iscsi + 2
    }
}

fn name(seat: &Seat) -> Result<NodeName, CliError> {
    seat.name.parse().map_err(|error: NameError| CliError::Local(error.to_string()))
}

fn cluster_name() -> Result<ClusterName, CliError> {
    CLUSTER.parse().map_err(|error: NameError| CliError::Local(error.to_string()))
}

fn address(seat: &Seat, port: u16) -> Result<SocketAddr, CliError> {
    let address = format!("{}:{port}", seat.address);
    address.parse().map_err(|error| CliError::Local(format!("{address}: {error}")))
}

/// Ports that a member has. The last one, for mirrors, follows from that of the members.
const IN_A_ROW: u16 = 4;
/// Where ports for `--port 0` begin, and how many rows of them there are.
const FIRST_CANDIDATE: u16 = 20_000;
const CANDIDATES: u32 = 3_000;

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
    fn the_written_configurations_are_those_of_init() {
        let place = tempfile::tempdir().unwrap();
        for nodes in [1, 2] {
            let name = format!("with \"quotes\" and ünicode {nodes}");
            let folder = Folder::prepare(&place.path().join(name)).unwrap();
            let ports = Ports { iscsi: 5000 };
            folder.create(nodes, 3, 4096).unwrap();
            let made = crate::cli::cluster::init::run(&folder.init_arguments(nodes, ports).unwrap()).unwrap();
            let configuration = folder.configuration(&SEATS[0]);
            let first = fs::read_to_string(&configuration).unwrap();
            let uuid = made.uuid.map(|uuid| uuid.try_into().unwrap());
            folder.write_configurations(&Settings::new(ports, nodes, uuid)).unwrap();
            assert_eq!(fs::read_to_string(&configuration).unwrap(), first);
            let config = crate::daemon::config::Config::load(&configuration).unwrap();
            assert_eq!(config.pool.disks, folder.disks(&SEATS[0]));
            assert_eq!((config.console.listen[0].port(), config.pair.is_some()), (5002, nodes == 2));
            assert_eq!(made.tokens.len(), if nodes == 2 { 2 } else { 0 });
            if nodes == 2 {
                let witness = fs::read_to_string(folder.configuration(&SEATS[2])).unwrap();
                assert!(
                    witness.contains("127.0.0.3:5001") && folder.disks(&SEATS[2]).is_empty(),
                    "{witness}"
                );
            }
        }
    }

    #[test]
    fn what_no_demo_has_made_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let theirs = place.path().join("a/state/precious");
        fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        fs::write(&theirs, "").unwrap();
        for _ in 0..2 {
            let refused = Folder::prepare(place.path()).unwrap().create(2, 3, 4096);
            assert!(matches!(refused, Err(CliError::Refused(_))) && theirs.exists());
        }
    }

    #[test]
    fn a_folder_is_used_by_one_demo_at_a_time_and_remembered() {
        let place = tempfile::tempdir().unwrap();
        let first = Folder::prepare(place.path()).unwrap();
        assert!(matches!(Folder::prepare(place.path()), Err(CliError::Refused(_))));
        assert!(matches!(Folder::open(place.path()), Err(CliError::Usage(_))), "nothing to restart yet");
        first.write_settings(&Settings::new(Ports { iscsi: 5000 }, 1, None)).unwrap();
        drop(first);
        assert_eq!(Folder::open(place.path()).unwrap().settings().unwrap().ports.members(), 5001);
        assert!(Folder::prepare(place.path()).is_ok());
        let old: Settings = serde_json::from_str(r#"{"ports":{"iscsi":5000}}"#).unwrap();
        assert_eq!(old.nodes, 1, "of a demo that an earlier version made");
    }
}
