//! The text of a member's configuration. What it does not say has its default.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::places::Places;
use crate::cluster::name::{ClusterName, NodeName};
use crate::cluster::state::ClusterUuid;
use crate::peer::settings::{MIRROR_PORT, PEER_PORT, PeerAddress, with_port};

/// What a node's configuration says.
pub struct NodeConfiguration<'a> {
    /// Where its files lie.
    pub places: &'a Places,
    /// Its name.
    pub name: &'a NodeName,
    /// The cluster's.
    pub cluster: &'a ClusterName,
    /// Its disks.
    pub disks: &'a [PathBuf],
    /// Its portals; when none, the default.
    pub portals: &'a [SocketAddr],
    /// Its console; when none, the default.
    pub console: Option<SocketAddr>,
    /// The rest of the pair.
    pub members: Option<MembersConfiguration<'a>>,
}

/// What the section `[pair]` says.
#[derive(Clone, Copy)]
pub struct MembersConfiguration<'a> {
    /// The cluster's identity.
    pub uuid: ClusterUuid,
    /// This member.
    pub own: &'a PeerAddress,
    /// The others.
    pub peers: &'a [PeerAddress],
}

impl NodeConfiguration<'_> {
    /// As `gemeld.toml`.
    pub fn text(&self) -> String {
        let Self { places, name, cluster, disks, portals, console, members } = self;
        let disks: Vec<_> = disks.iter().map(|disk| quoted(disk)).collect();
        let mut text = format!(
            "{HEAD}node = \"{name}\"\ncluster = \"{cluster}\"\nstate_dir = {state}\n\n\
             [pool]\ndisks = [\n    {disks},\n]\n",
            state = quoted(&places.state_dir),
            disks = disks.join(",\n    "),
        );
        if !portals.is_empty() {
            let portals: Vec<_> = portals.iter().map(|portal| format!("\"{portal}\"")).collect();
            let _ = write!(text, "\n[iscsi]\nportals = [{}]\n", portals.join(", "));
        }
        let _ = write!(text, "\n[management]\nsocket = {}\n", quoted(&places.socket));
        if let Some(console) = console {
            let _ = write!(text, "\n[console]\nlisten = [\"{console}\"]\n");
        }
        if let Some(members) = members {
            text.push_str(&members.text(places));
        }
        text
    }
}

/// As `witness.toml`.
pub fn witness_text(places: &Places, members: &MembersConfiguration<'_>) -> String {
    let (name, state) = (&members.own.name, quoted(&places.state_dir));
    format!("{HEAD}name = \"{name}\"\nstate_dir = {state}\n{}", members.text(places))
}

impl MembersConfiguration<'_> {
    fn text(&self, places: &Places) -> String {
        let list = |addresses: &[String]| {
            let quoted: Vec<_> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
            format!("[{}]", quoted.join(", "))
        };
        let Self { uuid, own, peers } = self;
        let mut text = format!("\n[pair]\nlisten = {}\n", list(&own.addresses));
        if has_other_mirror(own) {
            let _ = writeln!(text, "mirror_listen = {}", list(&own.mirror));
        }
        let _ = write!(text, "cluster_uuid = \"{uuid}\"\ntls_dir = {}\n", quoted(&places.tls_dir));
        for peer in *peers {
            let addresses: Vec<_> = peer.addresses.iter().map(|address| without_default(address)).collect();
            let _ = write!(
                text,
                "\n[[pair.peers]]\nname = \"{}\"\naddresses = {}\n",
                peer.name,
                list(&addresses)
            );
            if peer.witness {
                text.push_str("witness = true\n");
            } else if has_other_mirror(peer) {
                let _ = writeln!(text, "mirror = {}", list(&peer.mirror));
            }
        }
        text
    }
}

/// A member at these addresses. Mirrors go to the second port after that of the addresses.
pub fn member(name: &NodeName, addresses: &[SocketAddr], witness: bool) -> PeerAddress {
    let mirror = |address: &SocketAddr| {
        let port = address.port().saturating_add(MIRROR_PORT - PEER_PORT);
        SocketAddr::new(address.ip(), port).to_string()
    };
    PeerAddress {
        name: name.clone(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        mirror: if witness { Vec::new() } else { addresses.iter().map(mirror).collect() },
        witness,
    }
}

/// Whether a node takes mirrors elsewhere than by default.
fn has_other_mirror(member: &PeerAddress) -> bool {
    let unsaid = PeerAddress { mirror: Vec::new(), ..member.clone() };
    !member.witness && member.mirror_addresses() != unsaid.mirror_addresses()
}

/// An address, without the port where that is the usual one.
fn without_default(address: &str) -> String {
    let host = address.parse::<SocketAddr>().map(|address| address.ip().to_string());
    host.ok().filter(|host| with_port(host, PEER_PORT) == address).unwrap_or_else(|| address.to_owned())
}

/// A path as a TOML string.
fn quoted(path: &Path) -> String {
    toml::Value::from(path.to_string_lossy().into_owned()).to_string()
}

const HEAD: &str = "# Written by `gemel cluster`. What may stand here besides, and what it means: /usr/share/doc/gemel*/examples/.\n\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster::args::LocalArguments;
    use crate::cluster::quorum::SeatKind;

    #[test]
    fn what_is_written_is_what_the_services_read() {
        let dir = Path::new("/with \"quotes\" and ünicode");
        let local = LocalArguments { dir: Some(dir.to_owned()), ..LocalArguments::default() };
        let places = Places::new(SeatKind::Node, &local).unwrap();
        let (a, b, w) = ("a".parse().unwrap(), "b".parse().unwrap(), "w".parse().unwrap());
        for port in [3261, 5000] {
            let at = |host: &str| SocketAddr::new(host.parse().unwrap(), port);
            let own = member(&a, &[at("192.0.2.1"), at("2001:db8::1")], false);
            let peers = [
                member(&b, &[at("192.0.2.2"), at("2001:db8::2")], false),
                member(&w, &[at("192.0.2.3")], true),
            ];
            let members = MembersConfiguration { uuid: ClusterUuid([7; 16]), own: &own, peers: &peers };
            let text = NodeConfiguration {
                places: &places,
                name: &a,
                cluster: &"main".parse().unwrap(),
                disks: &["/dev/x".into(), "/dev/y".into()],
                portals: &["[::]:3260".parse().unwrap()],
                console: Some("127.0.0.1:9".parse().unwrap()),
                members: Some(members),
            }
            .text();
            let config = crate::daemon::config::Config::parse(dir, &text).unwrap();
            assert_eq!(
                (config.state_dir, config.management.socket),
                (places.state_dir.clone(), places.socket.clone())
            );
            let pair = config.pair.unwrap();
            assert_eq!(pair.tls_dir, places.tls_dir);
            assert_eq!(pair.listen, [at("192.0.2.1"), at("2001:db8::1")]);
            assert_eq!(pair.mirror_listen()[1].port(), port + 2);
            assert_eq!(pair.peers[0].mirror_addresses()[1], format!("[2001:db8::2]:{}", port + 2));
            assert_eq!(
                pair.peers[1].addresses,
                if port == 3261 { ["192.0.2.3"] } else { ["192.0.2.3:5000"] }
            );
            let own = member(&w, &[at("192.0.2.3")], true);
            let members = MembersConfiguration { own: &own, peers: &peers[..1], ..members };
            let text = witness_text(&places, &members);
            assert!(text.contains("name = \"w\"") && text.contains("[[pair.peers]]\nname = \"b\""), "{text}");
            toml::from_str::<toml::Table>(&text).unwrap();
        }
    }
}
