//! The grammar of `gemel cluster`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cluster::name::{ClusterName, NodeName};
use crate::peer::settings::PEER_PORT;

/// `gemel cluster`
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Make a new cluster, on its first node: keys, configuration, and a join token for each other machine.
    Init(InitArguments),
    /// Join a cluster, on its other node or its witness, with a token of the first node.
    Join(JoinArguments),
    /// Make a new join token for the other node or the witness: the old one was lost or has expired, or another
    /// machine is to take its place.
    Token {
        /// Its name.
        name: NodeName,
        /// How long the token is good for, such as 30min or 2h.
        #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
        valid: Duration,
    },
    /// Identities by which administrators manage the cluster from other machines.
    #[command(subcommand)]
    Administrator(AdministratorVerb),
    /// Keep the cluster's configuration in a file: members, volumes' definitions, access lists, secrets and keys; no data.
    Backup {
        /// A new file. Keep it as secret as a key.
        file: PathBuf,
    },
    /// Make the cluster of a backup anew, on a new machine, when both of its nodes are gone for good. Volumes begin empty.
    Restore(RestoreArguments),
    /// Remove a node or witness that is gone for good: it has no vote any more, and its certificate is refused. Another
    /// machine may take its place later, with a token.
    Remove {
        /// Its name.
        name: String,
    },
    /// Switch both nodes off, so that either of them can start everything again; the witness stays.
    Shutdown {
        /// Although a volume is not on both nodes, or one of them cannot be reached: then only the node that has all data
        /// can start it.
        #[arg(long)]
        force: bool,
    },
    /// Show who is in it, who leads, and who can be reached.
    Show,
    /// Change settings of the whole cluster; what is not given stays as it is.
    Set {
        /// Most that a node copies in a second to bring replicas up to date, those of all volumes together, such as 200M; 0 for no
        /// limit.
        #[arg(long, value_name = "SIZE", value_parser = crate::cli::args::size)]
        resync_limit: Option<u64>,
        /// Share of a pool in use from which hosts and administrators are warned, in percent.
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=99))]
        space_warning: Option<u32>,
        /// Share of a pool in use from which that is an error, in percent; that of the warning where it is less.
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=99))]
        space_error: Option<u32>,
    },
}

/// `gemel cluster administrator`
#[derive(Debug, Subcommand)]
pub enum AdministratorVerb {
    /// Make an identity, as `admin.pem` is one.
    Add {
        /// The administrator's name: lower-case letters, digits and hyphens.
        name: String,
        /// A new file for it. Keep it as secret as a key.
        file: PathBuf,
    },
    /// Make all identities of that name void, for good: a file was lost or somebody has left. The one of `gemel cluster init` is called
    /// admin.
    Revoke {
        /// The administrator's name.
        name: String,
    },
}

/// `gemel cluster init`
#[derive(Debug, Args)]
pub struct InitArguments {
    /// Name of the cluster, a part of the iSCSI name of every volume.
    // Not `cluster`, which is an option of all commands.
    #[arg(value_name = "CLUSTER")]
    pub cluster_name: ClusterName,
    /// Name of this node.
    #[arg(long)]
    pub name: NodeName,
    /// IP address of this node for the other machines; twice where there are two links.
    #[arg(long, value_name = "IP[:PORT]", required_unless_present = "single")]
    pub address: Vec<MemberAddress>,
    /// The other node and its addresses.
    #[arg(long, value_name = "NAME=IP[:PORT][,IP[:PORT]]", required_unless_present = "single")]
    pub peer: Option<SeatArgument>,
    /// The witness and its addresses.
    #[arg(long, value_name = "NAME=IP[:PORT][,IP[:PORT]]", required_unless_present = "single")]
    pub witness: Option<SeatArgument>,
    /// A node for itself, without a mirror. It cannot become one of two later.
    #[arg(long, conflicts_with_all = ["address", "peer", "witness"])]
    pub single: bool,
    /// What the node has on this machine.
    #[command(flatten)]
    pub local: LocalArguments,
}

/// `gemel cluster join`
#[derive(Debug, Args)]
pub struct JoinArguments {
    /// The token that `gemel cluster init` or `gemel cluster token` printed; `-` reads it from standard input.
    pub token: String,
    /// Refuse a token that is not for the witness.
    #[arg(long)]
    pub witness: bool,
    /// What a node has on this machine.
    #[command(flatten)]
    pub local: LocalArguments,
}

/// `gemel cluster restore`
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// The file that `gemel cluster backup` has made.
    pub file: PathBuf,
    /// Which of the cluster's nodes this machine is to be. It needs that node's addresses.
    #[arg(long)]
    pub name: NodeName,
    /// What the node has on this machine.
    #[command(flatten)]
    pub local: LocalArguments,
}

/// What is this machine's own.
#[derive(Clone, Debug, Default, Args)]
pub struct LocalArguments {
    /// A disk of the pool, by a name that stays the same (/dev/disk/by-id/…); once for each.
    #[arg(long, value_name = "PATH")]
    pub disk: Vec<PathBuf>,
    /// Address and port for initiators; once for each. Default: port 3260 of all addresses.
    #[arg(long, value_name = "IP:PORT")]
    pub portal: Vec<SocketAddr>,
    /// Address and port of the status page. Default: 127.0.0.1:3262.
    #[arg(long, value_name = "IP:PORT")]
    pub console: Option<SocketAddr>,
    /// Put everything into this folder instead of /etc/gemel, /var/lib/gemel and /run/gemel.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Socket file for management on this machine.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// An IP address, with the port between members when none is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberAddress(pub SocketAddr);

impl FromStr for MemberAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, PEER_PORT));
        let address = bare.or_else(|_| text.parse::<SocketAddr>()).map_err(|_| {
            format!("{text:?} is not an IP address: write IP or IP:PORT, as names may not be resolved when it matters")
        })?;
        if address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err(format!("{address} is not an address of one machine"));
        }
        // The port for mirrors is the second one after it.
        if address.port() == 0 || address.port() > u16::MAX - 2 {
            return Err(format!("port {} cannot be used", address.port()));
        }
        Ok(Self(address))
    }
}

/// Another member and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeatArgument {
    /// Its name.
    pub name: NodeName,
    /// One address, or two where there are two links.
    pub addresses: Vec<MemberAddress>,
}

impl FromStr for SeatArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, addresses) = text.split_once('=').ok_or("write NAME=IP, or NAME=IP,IP with two links")?;
        let name = name.parse::<NodeName>().map_err(|error| error.to_string())?;
        let addresses = addresses.split(',').map(str::parse).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { name, addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_and_addresses() {
        let seat: SeatArgument = "b=192.0.2.2,[2001:db8::2]:5000".parse().unwrap();
        assert_eq!(seat.name.as_str(), "b");
        let shown: Vec<_> = seat.addresses.iter().map(|address| address.0.to_string()).collect();
        assert_eq!(shown, ["192.0.2.2:3261", "[2001:db8::2]:5000"]);
        for bad in [
            "b",
            "b=",
            "=192.0.2.1",
            "B=192.0.2.1",
            "b=host",
            "b=0.0.0.0",
            "b=192.0.2.1:0",
            "b=1.2.3.4:65534",
        ] {
            assert!(bad.parse::<SeatArgument>().is_err(), "{bad}");
        }
    }
}
