//! What somebody wants of this machine, as he has filled it in, and what that means.

use std::path::PathBuf;
use std::str::FromStr;

use crate::cli::cluster::args::{InitArguments, JoinArguments, LocalArguments, MemberAddress, SeatArgument};
use crate::cli::cluster::disks;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::daemon::console::visitor::Fields;
use crate::peer::joining::token::JoinToken;

/// What is to be done.
#[derive(Debug)]
pub enum Plan {
    /// A new cluster, with this machine as its first node.
    Make(Box<InitArguments>),
    /// A place in one.
    Join(Box<JoinArguments>, NodeName, SeatKind),
}

impl Plan {
    /// What a form means, or what is wrong with it.
    ///
    /// # Errors
    /// What is wrong, for who has filled it in.
    pub fn of(wish: &Fields, given: &LocalArguments) -> Result<Self, String> {
        if wish.get("kind") == "join" {
            let token: JoinToken = parsed(wish, "token", "Token")?;
            let (name, kind, text) = (token.name.clone(), token.kind, token.to_string());
            let is_witness = kind == SeatKind::Witness;
            let local = if is_witness {
                LocalArguments { dir: given.dir.clone(), ..LocalArguments::default() }
            } else {
                node_on_this_machine(wish, given)?
            };
            let join = JoinArguments { token: text, witness: is_witness, local };
            return Ok(Self::Join(Box::new(join), name, kind));
        }
        let is_single = wish.get("kind") == "single";
        let seat = |which: &str, label: &str| -> Result<Option<SeatArgument>, String> {
            if is_single {
                return Ok(None);
            }
            let name = wish.get(&format!("{which}_name")).trim();
            let addresses = words(wish.get(&format!("{which}_address"))).collect::<Vec<_>>().join(",");
            let seat = format!("{name}={addresses}").parse().map_err(|error| format!("{label}: {error}"))?;
            Ok(Some(seat))
        };
        let addresses = words(wish.get("address")).filter(|_| !is_single);
        let address = addresses
            .map(|text| {
                text.parse::<MemberAddress>().map_err(|error| format!("Addresses of this server: {error}"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let init = InitArguments {
            cluster_name: parsed(wish, "cluster", "Name of the cluster")?,
            name: parsed(wish, "name", "Name of this server")?,
            address,
            peer: seat("peer", "The other server")?,
            witness: seat("witness", "The witness")?,
            single: is_single,
            local: node_on_this_machine(wish, given)?,
        };
        Ok(Self::Make(Box::new(init)))
    }

    /// What this machine will be called.
    pub fn name(&self) -> &NodeName {
        match self {
            Self::Make(init) => &init.name,
            Self::Join(_, name, _) => name,
        }
    }

    /// What it will be.
    pub fn kind(&self) -> SeatKind {
        match self {
            Self::Make(_) => SeatKind::Node,
            Self::Join(_, _, kind) => *kind,
        }
    }

    /// What is its own.
    pub fn local(&self) -> &LocalArguments {
        match self {
            Self::Make(init) => &init.local,
            Self::Join(join, ..) => &join.local,
        }
    }
}

fn node_on_this_machine(wish: &Fields, given: &LocalArguments) -> Result<LocalArguments, String> {
    let disk: Vec<PathBuf> =
        wish.all("disk").chain(words(wish.get("more_disks"))).map(PathBuf::from).collect();
    if disk.is_empty() {
        return Err("Disks: choose those of the pool".to_owned());
    }
    disks::check(&disk).map_err(|error| format!("Disks: {error}"))?;
    let console = given.console.or((!wish.get("console").is_empty()).then_some(CONSOLE));
    Ok(LocalArguments { disk, console, ..given.clone() })
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(wish: &Fields, name: &str, label: &str) -> Result<T, String> {
    wish.get(name).trim().parse().map_err(|error| format!("{label}: {error}"))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| character.is_whitespace() || character == ',')
        .filter(|word| !word.is_empty())
}

/// The console for all who reach this machine: they sign in.
const CONSOLE: std::net::SocketAddr =
    std::net::SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 3262));

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<Plan, String> {
        Plan::of(&Fields::parse(text.as_bytes()), &LocalArguments::default())
    }

    #[test]
    fn a_form_means_what_the_command_means() {
        let place = tempfile::tempdir().unwrap();
        let disk = place.path().join("disk");
        std::fs::write(&disk, "").unwrap();
        let disks = format!("disk={}&console=on", disk.display());
        let pair = "kind=pair&cluster=main&name=a&address=192.0.2.1%20198.51.100.1&peer_name=b&peer_address=192.0.2.2%2C\
                    198.51.100.2&witness_name=w&witness_address=192.0.2.3";
        let Ok(Plan::Make(init)) = plan(&format!("{pair}&{disks}")) else { panic!("it is a plan") };
        assert_eq!((init.address.len(), init.peer.unwrap().addresses.len(), init.single), (2, 2, false));
        assert_eq!(init.witness.unwrap().name.as_str(), "w");
        assert_eq!((init.local.disk, init.local.console), (vec![disk.clone()], Some(CONSOLE)));

        let single = plan(&format!("kind=single&cluster=main&name=a&more_disks={}", disk.display())).unwrap();
        assert_eq!((single.name().as_str(), single.kind()), ("a", SeatKind::Node));
        assert_eq!(single.local().console, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, what) in [
            ("kind=single&cluster=main&name=a", "Disks: choose"),
            ("kind=single&cluster=main&name=a&disk=/none", "Disks: cannot find the disk /none"),
            ("kind=single&cluster=Main&name=a&disk=/none", "Name of the cluster"),
            (
                "kind=pair&cluster=main&name=a&address=host",
                "Addresses of this server: \"host\" is not an IP address",
            ),
            ("kind=pair&cluster=main&name=a&address=192.0.2.1&peer_name=b", "The other server"),
            ("kind=join&token=gemel", "Token"),
            ("", "Name of the cluster"),
        ] {
            let reason = plan(text).unwrap_err();
            assert!(reason.starts_with(what), "{text}: {reason}");
        }
    }
}
