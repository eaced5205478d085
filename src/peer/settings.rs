//! The part of the configuration that nodes and witness share: who the others are, and how to reach them.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::ClusterUuid;

/// Default port between members.
pub const PEER_PORT: u16 = 3261;

/// Most addresses of a peer: one a link.
const MOST_ADDRESSES: usize = 2;

/// How this member and the others find each other.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    /// Addresses and ports to listen on for the others.
    pub listen: Vec<SocketAddr>,
    /// Identity of the cluster, as the certificates say it.
    pub cluster_uuid: ClusterUuid,
    /// Directory of keys and certificates.
    #[serde(default = "default_tls_dir")]
    pub tls_dir: PathBuf,
    /// The others.
    pub peers: Vec<PeerAddress>,
}

/// Another member.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerAddress {
    /// Its name.
    pub name: NodeName,
    /// HOST or HOST:PORT, the preferred one first; two when there are two links.
    pub addresses: Vec<String>,
    /// Whether it is the witness.
    #[serde(default)]
    pub witness: bool,
}

impl PeerAddress {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> SeatKind {
        if self.witness { SeatKind::Witness } else { SeatKind::Node }
    }
}

impl PeerSettings {
    /// What contradicts what, for a member of this name and kind.
    #[must_use]
    pub fn conflict(&self, own: &NodeName, own_kind: SeatKind) -> Option<String> {
        if self.listen.is_empty() {
            return Some("listen is empty: the other members could not reach this one".to_owned());
        }
        let mut names: Vec<&NodeName> = self.peers.iter().map(|peer| &peer.name).chain([own]).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Some("two members have the same name".to_owned());
        }
        let witnesses = self.peers.iter().filter(|peer| peer.witness).count();
        let nodes = self.peers.len() - witnesses + usize::from(own_kind == SeatKind::Node);
        if witnesses + usize::from(own_kind == SeatKind::Witness) > 1 || nodes > 2 || self.peers.is_empty() {
            return Some("a cluster is two nodes and one witness: name the others as peers".to_owned());
        }
        let bad = self.peers.iter().find(|peer| !(1..=MOST_ADDRESSES).contains(&peer.addresses.len()));
        bad.map(|peer| format!("peer {} needs one address or two", peer.name))
    }

    /// The others' addresses with a port each.
    #[must_use]
    pub fn with_port(address: &str) -> String {
        let after_host = address.rsplit(']').next().unwrap_or(address);
        if address.parse::<std::net::Ipv6Addr>().is_ok() {
            format!("[{address}]:{PEER_PORT}")
        } else if after_host.contains(':') {
            address.to_owned()
        } else {
            format!("{address}:{PEER_PORT}")
        }
    }
}

fn default_tls_dir() -> PathBuf {
    PathBuf::from("/etc/gemel/tls")
}
