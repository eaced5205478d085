//! Where a member's files lie, and how they come to be there: all of them or, after an interruption, again.
//!
//! A marker file tells a set-up that was interrupted from one that is complete or somebody else's. The configuration is
//! written last, so a service that finds one finds everything. What exists without the marker is never
//! overwritten.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::args::LocalArguments;
use crate::cli::error::CliError;
use crate::cluster::quorum::SeatKind;
use crate::peer::joining::book::BOOK_NAME;
use crate::peer::log_file::LOG_NAME;
use crate::peer::quorum::NODE_DIRECTORY;
use crate::peer::tls::{CA_KEY_NAME, CA_NAME, CERTIFICATE_NAME, KEY_NAME};
use crate::rpc::MANAGEMENT_SOCKET;

/// Files of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Its configuration.
    pub configuration: PathBuf,
    /// Keys and certificates.
    pub tls_dir: PathBuf,
    /// Its records.
    pub state_dir: PathBuf,
    /// Socket for management on this machine; a witness has none.
    pub socket: PathBuf,
    /// Identity of the administrator.
    pub identity: PathBuf,
    kind: SeatKind,
    is_standard: bool,
}

/// A set-up at work. While it lives no other one can begin in the same place.
pub struct SettingUp<'a> {
    places: &'a Places,
    marker: PathBuf,
    _lock: File,
}

impl Places {
    /// The usual places, or all in one folder.
    ///
    /// # Errors
    /// [`CliError::Local`] when the present directory is not known.
    pub fn new(kind: SeatKind, local: &LocalArguments) -> Result<Self, CliError> {
        let configuration = if kind == SeatKind::Witness { "witness.toml" } else { "gemeld.toml" };
        let absolute = |path: &Path| std::path::absolute(path).map_err(|error| failed("find", path, &error));
        let mut places = match &local.dir {
            Some(dir) => {
                let dir = absolute(dir)?;
                Self {
                    configuration: dir.join(configuration),
                    tls_dir: dir.join("tls"),
                    state_dir: dir.join("state"),
                    socket: dir.join("gemeld.sock"),
                    identity: dir.join("admin.pem"),
                    kind,
                    is_standard: false,
                }
            }
            None => Self {
                configuration: Path::new("/etc/gemel").join(configuration),
                tls_dir: "/etc/gemel/tls".into(),
                state_dir: match kind {
                    SeatKind::Node => "/var/lib/gemel".into(),
                    SeatKind::Witness => "/var/lib/gemel-witness".into(),
                },
                socket: MANAGEMENT_SOCKET.into(),
                identity: "/etc/gemel/admin.pem".into(),
                kind,
                is_standard: true,
            },
        };
        if let Some(socket) = &local.socket {
            places.socket = absolute(socket)?;
        }
        Ok(places)
    }

    /// The command that starts the service.
    pub fn start_command(&self) -> String {
        let program = if self.kind == SeatKind::Witness { "gemel-witness" } else { "gemeld" };
        match self.is_standard {
            true => format!("systemctl enable --now {program}"),
            false => format!("{program} --config {}", self.configuration.display()),
        }
    }

    /// The command that takes the disks into use.
    pub fn format_command(&self) -> String {
        match self.is_standard {
            true => "gemeld format".to_owned(),
            false => format!("gemeld --config {} format", self.configuration.display()),
        }
    }

    /// Begins, or begins again what was interrupted. What an interrupted attempt has left is removed, but for the
    /// key of a machine that joins, `keep_key`: the token may have been used with it.
    ///
    /// # Errors
    /// [`CliError::Refused`] when there is something already; [`CliError::Local`].
    pub fn begin(&self, keep_key: bool) -> Result<SettingUp<'_>, CliError> {
        let directory = self.configuration.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(|error| failed("create", directory, &error))?;
        let marker = directory.join(MARKER);
        let was_interrupted = marker.exists();
        let lock = File::options().create(true).append(true).open(&marker);
        let lock = lock.map_err(|error| failed("create", &marker, &error))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            CliError::Refused(format!("another `gemel cluster` is setting up {}", directory.display()))
        })?;
        let setting_up = SettingUp { places: self, marker, _lock: lock };
        if self.configuration.exists() {
            let (path, hint) = (self.configuration.display(), "`gemel cluster token NAME` makes join tokens");
            setting_up.remove_marker();
            return Err(CliError::Refused(format!(
                "{path} exists: this machine is a member already, and nothing is overwritten; {hint}"
            )));
        }
        if was_interrupted {
            self.clear(keep_key)?;
        } else if let Some(path) = self.made().into_iter().find(|path| path.exists()) {
            setting_up.remove_marker();
            return Err(CliError::Refused(format!(
                "{} exists, of an earlier cluster perhaps, and nothing is overwritten: move it away if it is not \
                 needed any more",
                path.display()
            )));
        }
        for directory in [&self.tls_dir, &self.state_dir] {
            // Records hold CHAP secrets.
            let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            created.map_err(|error| failed("create", directory, &error))?;
        }
        Ok(setting_up)
    }

    /// Everything that is made but the configuration.
    fn made(&self) -> Vec<PathBuf> {
        let tls = [CA_NAME, CA_KEY_NAME, CERTIFICATE_NAME, KEY_NAME].map(|name| self.tls_dir.join(name));
        let log = match self.kind {
            SeatKind::Node => self.state_dir.join(NODE_DIRECTORY),
            SeatKind::Witness => self.state_dir.join(LOG_NAME),
        };
        let records =
            [log, self.state_dir.join(RECORDS), self.state_dir.join(BOOK_NAME), self.identity.clone()];
        tls.into_iter().chain(records).collect()
    }

    fn clear(&self, keep_key: bool) -> Result<(), CliError> {
        let key = self.tls_dir.join(KEY_NAME);
        for path in self.made().iter().filter(|path| !keep_key || **path != key) {
            let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", path, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl SettingUp<'_> {
    /// Writes the configuration: from now on this machine is set up.
    ///
    /// # Errors
    /// [`CliError::Local`].
    pub fn finish(self, configuration: &str) -> Result<(), CliError> {
        crate::peer::authority::write_public(&self.places.configuration, configuration)
            .map_err(|error| CliError::Local(error.to_string()))?;
        self.remove_marker();
        Ok(())
    }

    fn remove_marker(&self) {
        // With a configuration the marker says nothing any more.
        let _ = fs::remove_file(&self.marker);
    }
}

/// A file system call that failed.
pub fn failed(what: &str, path: &Path, error: &io::Error) -> CliError {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "; run this as root, or name a folder of your own with --dir",
        _ => "",
    };
    CliError::Local(format!("cannot {what} {}: {error}{hint}", path.display()))
}

const MARKER: &str = ".gemel-cluster-setup";
/// The node's database.
const RECORDS: &str = "gemel.redb";

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dir: &Path) -> Places {
        let local = LocalArguments { dir: Some(dir.to_owned()), ..LocalArguments::default() };
        Places::new(SeatKind::Node, &local).unwrap()
    }

    #[test]
    fn what_is_there_is_never_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let places = places(place.path());
        for path in places.made().iter().chain([&places.configuration]) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "precious").unwrap();
            let error = places.begin(false).err().unwrap();
            assert!(
                matches!(&error, CliError::Refused(text) if text.contains(&path.display().to_string())),
                "{error}"
            );
            assert!(matches!(places.begin(true), Err(CliError::Refused(_))), "also the second time");
            assert_eq!(fs::read_to_string(path).unwrap(), "precious");
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn what_was_interrupted_is_begun_again() {
        let place = tempfile::tempdir().unwrap();
        let places = places(place.path());
        let key = places.tls_dir.join(KEY_NAME);
        for keep_key in [true, false] {
            let first = places.begin(keep_key).unwrap();
            assert!(matches!(places.begin(keep_key), Err(CliError::Refused(_))), "one at a time");
            fs::write(&key, "key").unwrap();
            fs::create_dir(places.state_dir.join(NODE_DIRECTORY)).unwrap();
            drop(first); // as if killed
            let second = places.begin(keep_key).unwrap();
            assert_eq!(key.exists(), keep_key);
            assert!(!places.state_dir.join(NODE_DIRECTORY).exists());
            drop(second);
        }
        places.begin(false).unwrap().finish("done").unwrap();
        assert!(matches!(places.begin(false), Err(CliError::Refused(_))));
        assert_eq!(fs::read_to_string(&places.configuration).unwrap(), "done");
    }

    #[test]
    fn the_usual_places_are_those_of_the_services() {
        let usual = |kind| Places::new(kind, &LocalArguments::default()).unwrap();
        let (node, witness) = (usual(SeatKind::Node), usual(SeatKind::Witness));
        assert_eq!(node.configuration, Path::new(crate::daemon::config::DEFAULT_PATH));
        assert_eq!(witness.configuration.file_name().unwrap(), "witness.toml");
        assert_eq!(node.start_command(), "systemctl enable --now gemeld");
        assert_eq!(witness.start_command(), "systemctl enable --now gemel-witness");
    }
}
