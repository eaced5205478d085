//! The part of the configuration that nodes and witness share: who the others are, and how to reach them.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::ClusterUuid;
use crate::cluster::versions::Spoken;

/// Default port between members.
pub const PEER_PORT: u16 = 3261;

/// Default port for mirrors.
pub const MIRROR_PORT: u16 = 3263;

/// Most addresses of a peer: one a link.
const MOST_ADDRESSES: usize = 2;

/// How this member and the others find each other.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    /// Addresses and ports to listen on for the others.
    pub listen: Vec<SocketAddr>,
    /// Addresses and ports to listen on for the peer's mirrors; when none, those of `listen` with [`MIRROR_PORT`].
    #[serde(default)]
    pub mirror_listen: Vec<SocketAddr>,
    /// Identity of the cluster, as the certificates say it.
    pub cluster_uuid: ClusterUuid,
    /// Directory of keys and certificates.
    #[serde(default = "default_tls_dir")]
    pub tls_dir: PathBuf,
    /// The others.
    pub peers: Vec<PeerAddress>,
    /// What this program speaks; no part of a configuration.
    #[serde(skip)]
    pub speaks: Spoken,
}

/// Another member.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerAddress {
    /// Its name.
    pub name: NodeName,
    /// HOST or HOST:PORT, the preferred one first; two when there are two links.
    pub addresses: Vec<String>,
    /// Where it takes mirrors, in the same way; when none, the hosts of `addresses` with [`MIRROR_PORT`].
    #[serde(default)]
    pub mirror: Vec<String>,
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

    /// Where it takes mirrors, with a port each.
    #[must_use]
    pub fn mirror_addresses(&self) -> Vec<String> {
        if self.mirror.is_empty() {
            self.addresses.iter().map(|address| with_port(host(address), MIRROR_PORT)).collect()
        } else {
            self.mirror.iter().map(|address| with_port(address, MIRROR_PORT)).collect()
        }
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
        if let Some(peer) = bad {
            return Some(format!("peer {} needs one address or two", peer.name));
        }
        let bad =
            self.peers.iter().find(|peer| peer.mirror.len() > if peer.witness { 0 } else { MOST_ADDRESSES });
        bad.map(|peer| {
            format!("peer {}: a node takes mirrors at two addresses at most, a witness at none", peer.name)
        })
    }

    /// Where this member listens for the peer's mirrors.
    #[must_use]
    pub fn mirror_listen(&self) -> Vec<SocketAddr> {
        if self.mirror_listen.is_empty() {
            self.listen.iter().map(|address| SocketAddr::new(address.ip(), MIRROR_PORT)).collect()
        } else {
            self.mirror_listen.clone()
        }
    }
}

/// An address with a port: its own, or else this one.
#[must_use]
pub fn with_port(address: &str, port: u16) -> String {
    if address.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{address}]:{port}")
    } else if host(address).len() < address.len() {
        address.to_owned()
    } else {
        format!("{address}:{port}")
    }
}

/// An address without its port.
fn host(address: &str) -> &str {
    let is_ipv6 = address.parse::<std::net::Ipv6Addr>().is_ok();
    match address.rsplit_once(':') {
        Some((host, port)) if !is_ipv6 && !port.ends_with(']') => host,
        _ => address,
    }
}

fn default_tls_dir() -> PathBuf {
    PathBuf::from("/etc/gemel/tls")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_a_port_when_they_have_none() {
        let cases = [
            ("b", "b:3263"),
            ("b:1", "b:1"),
            ("192.0.2.2", "192.0.2.2:3263"),
            ("2001:db8::2", "[2001:db8::2]:3263"),
            ("[2001:db8::2]", "[2001:db8::2]:3263"),
            ("[2001:db8::2]:1", "[2001:db8::2]:1"),
        ];
        for (address, expected) in cases {
            assert_eq!(with_port(address, MIRROR_PORT), expected);
        }
    }

    #[test]
    fn mirrors_have_the_hosts_of_the_other_service_unless_said_otherwise() {
        let text = "name = \"b\"\naddresses = [\"192.0.2.2:1\", \"[2001:db8::2]:1\"]\n";
        let peer: PeerAddress = toml::from_str(text).unwrap();
        assert_eq!(peer.mirror_addresses(), ["192.0.2.2:3263", "[2001:db8::2]:3263"]);
        let peer: PeerAddress = toml::from_str(&format!("{text}mirror = [\"c\", \"d:2\"]")).unwrap();
        assert_eq!(peer.mirror_addresses(), ["c:3263", "d:2"]);
    }
}
