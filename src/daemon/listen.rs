//! Listening sockets, and who has a port when it is taken.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 256;

/// Why a port can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error(
        "cannot listen on {address} ({what}): the port is in use{holder}; stop that process, or change {key} in the configuration"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
        /// What for.
        what: &'static str,
        /// The configuration key that names it.
        key: &'static str,
        /// Who, as far as it can be found out.
        holder: Holder,
    },
    /// Another reason.
    #[error("cannot listen on {address} ({what}): {source}; {key} in the configuration names the address")]
    Other {
        /// The address.
        address: SocketAddr,
        /// What for.
        what: &'static str,
        /// The configuration key that names it.
        key: &'static str,
        /// Cause.
        source: io::Error,
    },
}

/// A socket file, removed in the end.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // One that is left over does no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Why a socket file can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum LocalListenError {
    /// Somebody else does.
    #[error("another daemon listens on {0}: stop it, or change management.socket in the configuration")]
    InUse(PathBuf),
    /// Another reason.
    #[error("cannot listen on {path}: {source}; management.socket in the configuration names it")]
    Other {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Listens on a socket file that its owner alone, and root, can connect to. One that a killed daemon has left is
/// replaced. The socket does not block.
pub fn listen_locally(path: &Path) -> Result<(LocalSocket, UnixListener), LocalListenError> {
    if UnixStream::connect(path).is_ok() {
        return Err(LocalListenError::InUse(path.to_owned()));
    }
    let listening = || -> io::Result<UnixListener> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // The file gets the mode that the socket has when it is bound (unix(7)), so there is no moment without it.
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    let listener = listening().map_err(|source| LocalListenError::Other { path: path.to_owned(), source })?;
    Ok((LocalSocket { path: path.to_owned() }, listener))
}

/// The process that holds a port, if it is known.
#[derive(Debug)]
pub struct Holder(Option<(u32, String)>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some((pid, name)) => write!(f, " by {name} (pid {pid})"),
            None => Ok(()),
        }
    }
}

/// Listens on `address`, for `what`, which the configuration calls `key`. The socket does not block.
pub fn listen(
    address: SocketAddr,
    what: &'static str,
    key: &'static str,
) -> Result<TcpListener, ListenError> {
    bind(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = Holder(holder_of(address.port()));
            ListenError::InUse { address, what, key, holder }
        }
        _ => ListenError::Other { address, what, key, source },
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted daemon must not wait for the connections of its predecessor to be forgotten.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // [::] takes IPv4 as well, whatever the system's default is.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Pid and name of the process that listens on `port`, from proc(5): the socket's inode by its port,
/// then the process that has this inode open. Processes of other users stay unknown.
fn holder_of(port: u16) -> Option<(u32, String)> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| listening_inode(table, port))?;
    let wanted = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let files = std::fs::read_dir(process.path().join("fd")).ok()?;
        let mut links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        links.any(|link| link.as_os_str() == wanted.as_str()).then_some(())?;
        let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some((pid, name.trim().to_owned()))
    })
}

fn listening_inode(table: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let text = std::fs::read_to_string(table).ok()?;
    text.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let local_port = fields.get(1)?.rsplit(':').next()?;
        let matches = u16::from_str_radix(local_port, 16).ok()? == port && *fields.get(3)? == LISTEN;
        if matches { fields.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_its_holder() {
        let first = listen("127.0.0.1:0".parse().unwrap(), "iSCSI", "iscsi.portals").unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address, "iSCSI", "iscsi.portals").unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains(&address.to_string()) && error.contains("iscsi.portals"), "{error}");
    }

    #[test]
    fn a_socket_file_is_for_its_owner_and_outlives_a_kill() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run/gemeld.sock");
        let (socket, listener) = listen_locally(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(listen_locally(&path), Err(LocalListenError::InUse(_))));
        drop(listener); // as if killed: the file is still there
        std::mem::forget(socket);
        let (socket, _listener) = listen_locally(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
        let long = place.path().join("x".repeat(120));
        assert!(listen_locally(&long).unwrap_err().to_string().contains("management.socket"));
    }
}
