//! The folder of a demo: disks, configuration, and what a later demo needs to continue it.
//!
//! `DIR/demo.json` holds the settings and exists only once the disks are formatted; `DIR/a/` is the
//! node's: `gemeld.toml`, `gemeld.pid`, `gemeld.log`, `state/` and `disk-N.img`. A lock on `DIR/demo.lock`
//! keeps two demos apart.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::error::CliError;

/// The one node.
pub const NODE: &str = "a";
/// Where it listens.
pub const ADDRESS: &str = "127.0.0.1";

/// A demo's folder; locked when it was [prepared](Folder::prepare).
pub struct Folder {
    path: PathBuf,
    _lock: Option<File>,
}

/// The ports of a node: iSCSI, and the two after it for management and console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    iscsi: u16,
}

/// What is remembered of a demo.
#[derive(Serialize, Deserialize)]
pub struct Settings {
    /// Ports of the last start.
    pub ports: Ports,
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
        let node = path.join(NODE);
        fs::create_dir_all(&node).map_err(|error| local("create the folder", &node, &error))?;
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

    /// A file of the node.
    pub fn node_file(&self, name: &str) -> PathBuf {
        self.path.join(NODE).join(name)
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
    pub fn write_settings(&self, ports: Ports) -> Result<(), CliError> {
        let text = serde_json::to_string(&Settings { ports })
            .map_err(|error| CliError::Local(format!("cannot write the demo's settings: {error}")))?;
        let (new, path) = (self.path.join("demo.json.new"), self.path.join("demo.json"));
        fs::write(&new, text).map_err(|error| local("write", &new, &error))?;
        fs::rename(&new, &path).map_err(|error| local("write", &path, &error))
    }

    /// Creates the sparse disks that are not there and gives their number. An earlier demo's number
    /// and sizes stay.
    pub fn create_disks(&self, count: u32, size_bytes: u64) -> Result<u32, CliError> {
        let continued = self.settings().is_ok();
        if continued && !self.disks().is_empty() {
            return Ok(0);
        }
        for number in 1..=count {
            let path = self.node_file(&format!("disk-{number}.img"));
            let file = File::create(&path).map_err(|error| local("create the disk", &path, &error))?;
            file.set_len(size_bytes).map_err(|error| local("size the disk", &path, &error))?;
        }
        Ok(count)
    }

    fn disks(&self) -> Vec<PathBuf> {
        let disk = |number: u32| self.node_file(&format!("disk-{number}.img"));
        (1..).map(disk).take_while(|path| path.exists()).collect()
    }

    /// Writes the node's configuration.
    pub fn write_configuration(&self, ports: Ports) -> Result<(), CliError> {
        let state = self.node_file("state");
        let disks: Vec<_> = self.disks().iter().map(|disk| quoted(disk)).collect();
        let text = format!(
            "# Written by gemel demo.\n\
             node = \"{NODE}\"\ncluster = \"demo\"\nstate_dir = {state}\n\n\
             [pool]\ndisks = [\n  {disks},\n]\n\n\
             [iscsi]\nportals = [\"{ADDRESS}:{iscsi}\"]\n\n\
             [management]\nlisten = [\"{ADDRESS}:{management}\"]\n\n\
             [console]\nlisten = [\"{ADDRESS}:{console}\"]\n",
            state = quoted(&state),
            disks = disks.join(",\n  "),
            iscsi = ports.iscsi(),
            management = ports.management(),
            console = ports.console(),
        );
        let path = self.node_file("gemeld.toml");
        fs::write(&path, text).map_err(|error| local("write", &path, &error))
    }

    /// Deletes the folder with everything in it.
    pub fn remove(self) -> Result<(), CliError> {
        fs::remove_dir_all(&self.path).map_err(|error| local("remove", &self.path, &error))
    }
}

impl Ports {
    /// The ports from `iscsi` on; with 0, three free ones in a row.
    pub fn choose(iscsi: u16) -> Result<Self, CliError> {
        if iscsi != 0 {
            if iscsi > u16::MAX - 2 {
                return Err(CliError::Usage(format!("--port {iscsi} leaves no room for the next two ports")));
            }
            return Ok(Self { iscsi });
        }
        // Outside the range that the system takes ports of outgoing connections from, and beginning at
        // another place in each process, so that two demos at a time do not meet.
        let start = std::process::id() % CANDIDATES;
        let candidates =
            (0..CANDIDATES).map(|step| FIRST_CANDIDATE + 3 * ((start + step) % CANDIDATES) as u16);
        let is_free = |port: u16| TcpListener::bind((ADDRESS, port)).is_ok();
        let found = candidates
            .map(|iscsi| Self { iscsi })
            .find(|ports| is_free(ports.iscsi()) && is_free(ports.management()) && is_free(ports.console()));
        found.ok_or_else(|| {
            let reason = format!("there are no three free ports in a row on {ADDRESS}; name one with --port");
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
}

/// Where ports for `--port 0` begin, and how many threes of them there are.
const FIRST_CANDIDATE: u16 = 20_000;
const CANDIDATES: u32 = 4_000;

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
    fn the_written_configuration_is_one_even_in_an_odd_folder() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::prepare(&place.path().join("with \"quotes\" and ünicode")).unwrap();
        assert_eq!(folder.create_disks(3, 4096).unwrap(), 3);
        folder.write_configuration(Ports { iscsi: 5000 }).unwrap();
        let config = crate::daemon::config::Config::load(&folder.node_file("gemeld.toml")).unwrap();
        assert_eq!(config.pool.disks, folder.disks());
        assert_eq!(config.console.listen[0].port(), 5002);
    }

    #[test]
    fn a_folder_is_used_by_one_demo_at_a_time_and_remembered() {
        let place = tempfile::tempdir().unwrap();
        let first = Folder::prepare(place.path()).unwrap();
        assert!(matches!(Folder::prepare(place.path()), Err(CliError::Refused(_))));
        assert!(matches!(Folder::open(place.path()), Err(CliError::Usage(_))), "nothing to restart yet");
        first.write_settings(Ports { iscsi: 5000 }).unwrap();
        drop(first);
        assert_eq!(Folder::open(place.path()).unwrap().settings().unwrap().ports.management(), 5001);
        assert!(Folder::prepare(place.path()).is_ok());
    }
}
