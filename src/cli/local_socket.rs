//! Socket files of nodes on this machine.
//!
//! An installed node has one well-known socket. Nodes of demos, of which there may be several at a time, have sockets in a
//! folder of the user's own, named by the address and port that they would be asked at from other machines. So
//! `--cluster 127.0.0.2:3261` means the same node whether it is asked on its own machine, by whom the file system
//! lets, or from elsewhere, with an identity.

use std::fs::{self, DirBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::peer::settings::with_port;
use crate::rpc::{MANAGEMENT_PORT, MANAGEMENT_SOCKET};

/// The socket file of the node that has this endpoint, where that is one of this machine's own addresses.
pub fn find(endpoint: &str) -> Option<PathBuf> {
    let address = loopback(endpoint)?;
    let own = folders().into_iter().filter(|folder| is_safe(folder)).map(|folder| folder.join(name(address)));
    let is_usual = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&address.ip());
    let usual = (is_usual && address.port() == MANAGEMENT_PORT).then(|| PathBuf::from(MANAGEMENT_SOCKET));
    own.chain(usual).find(|path| path.exists())
}

/// Where a node of this user, with this endpoint, is to have its socket file.
///
/// # Errors
/// Why there is no folder for it.
pub fn of_own_node(address: SocketAddr) -> Result<PathBuf, String> {
    let mut reasons = Vec::new();
    for folder in folders() {
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                reasons.push(format!("{}: {error}", folder.display()));
            }
            _ if !is_safe(&folder) => reasons.push(format!("{} is not this user's alone", folder.display())),
            _ => return Ok(folder.join(name(address))),
        }
    }
    Err(reasons.join("; "))
}

/// An endpoint that means this machine.
pub fn loopback(endpoint: &str) -> Option<SocketAddr> {
    let text = with_port(endpoint, MANAGEMENT_PORT);
    let address = match text.strip_prefix("localhost:") {
        Some(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?),
        None => text.parse().ok()?,
    };
    address.ip().is_loopback().then_some(address)
}

fn name(address: SocketAddr) -> String {
    format!("{address}.sock")
}

/// Folders for sockets of this user, the best one first.
fn folders() -> Vec<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let first = if user == 0 { "/run".to_owned() } else { format!("/run/user/{user}") };
    vec![Path::new(&first).join("gemel-demo"), format!("/tmp/gemel-demo-{user}").into()]
}

/// Whether nobody else can put a socket there.
fn is_safe(folder: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let is_own =
        |folder: &fs::Metadata| folder.is_dir() && folder.uid() == user && folder.mode() & 0o022 == 0;
    fs::symlink_metadata(folder).is_ok_and(|folder| is_own(&folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_asked_by_a_file() {
        let cases = [
            ("127.0.0.1", Some("127.0.0.1:3261")),
            ("127.0.0.2:9", Some("127.0.0.2:9")),
            ("localhost", Some("127.0.0.1:3261")),
            ("::1", Some("[::1]:3261")),
            ("192.0.2.1", None),
            ("store-a", None),
        ];
        for (endpoint, expected) in cases {
            assert_eq!(loopback(endpoint).map(|address| address.to_string()).as_deref(), expected);
        }
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        assert!(is_safe(place.path()));
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!is_safe(place.path()));
    }
}
