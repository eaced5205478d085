//! `gemel cluster init`: makes a cluster, on its first node.

use std::net::SocketAddr;
use std::time::SystemTime;

use serde::Serialize;

use super::args::{InitArguments, LocalArguments};
use super::configuration::{MembersConfiguration, NodeConfiguration, member};
use super::disks;
use super::places::Places;
use crate::cli::error::CliError;
use crate::cluster::name::{ClusterName, NodeName};
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::{ClusterUuid, Command, ControlState};
use crate::cluster::versions::Spoken;
use crate::peer::authority::{Authority, write_secret};
use crate::peer::joining::book::DEFAULT_VALIDITY;
use crate::peer::joining::desk::{Desk, DeskSetup};
use crate::peer::quorum::{self, NODE_DIRECTORY};
use crate::peer::settings::{PeerAddress, PeerSettings};

/// What was made, and what is to be done next.
#[derive(Serialize)]
pub struct Made {
    /// Name of the cluster.
    pub cluster: String,
    /// Its identity; a single node has none before it is started.
    pub uuid: Option<String>,
    /// Name of this node.
    pub node: String,
    /// Its configuration.
    pub configuration: String,
    /// The administrator's identity.
    pub identity: Option<String>,
    /// For the other machines.
    pub tokens: Vec<Token>,
    /// Commands to be given here, one after the other.
    pub next: Vec<String>,
    #[serde(skip)]
    endpoints: Vec<String>,
}

/// A join token.
#[derive(Clone, Debug, Serialize)]
pub struct Token {
    /// Whom it is for.
    pub name: String,
    /// `node` or `witness`.
    pub kind: String,
    /// What is to be given to `gemel cluster join`.
    pub token: String,
}

/// Makes the cluster.
///
/// # Errors
/// [`CliError`]; then there is no configuration, and the same command may be given again.
pub fn run(arguments: &InitArguments) -> Result<Made, CliError> {
    disks::check(&arguments.local.disk)?;
    let places = Places::new(SeatKind::Node, &arguments.local)?;
    let (cluster, name) = (&arguments.cluster_name, &arguments.name);
    let Some((own, peers)) = check_peers(arguments)? else {
        let setting_up = places.begin(false)?;
        let made = Made::new(&places, cluster, name);
        setting_up.finish(&configuration(&places, &arguments.local, (name, cluster), None)?)?;
        return Ok(made);
    };
    let uuid = ClusterUuid(random()?);
    let authority = Authority::create(uuid).map_err(|error| local(&error))?;
    let create = Command::CreateCluster { name: cluster.clone(), uuid, created_unix_ms: unix_ms() };
    let state = ControlState::founded([create]).map_err(|error| local(&error))?;
    found(&places, &arguments.local, Found { cluster, uuid, authority, state, own, peers })
}

/// What a cluster begins with.
pub struct Found<'a> {
    /// Its name.
    pub cluster: &'a ClusterName,
    /// Its identity.
    pub uuid: ClusterUuid,
    /// Its authority.
    pub authority: Authority,
    /// Its state.
    pub state: ControlState,
    /// The node that is set up here.
    pub own: PeerAddress,
    /// The others.
    pub peers: Vec<PeerAddress>,
}

/// Makes keys, identity, first log, tokens and configuration of the first node.
///
/// # Errors
/// [`CliError`]; then there is no configuration, and the same may be done again.
pub fn found(places: &Places, local_arguments: &LocalArguments, found: Found<'_>) -> Result<Made, CliError> {
    let Found { cluster, uuid, authority, state, own, peers } = found;
    let setting_up = places.begin(false)?;
    let mut made = Made::new(places, cluster, &own.name);
    authority.save(&places.tls_dir).map_err(|error| local(&error))?;
    authority.issue(&own.name, &places.tls_dir).map_err(|error| local(&error))?;
    let administrator: NodeName = ADMINISTRATOR.parse().map_err(|error| local(&error))?;
    let identity = authority.administrator_pem(&administrator).map_err(|error| local(&error))?;
    write_secret(&places.identity, &identity).map_err(|error| local(&error))?;
    let log = places.state_dir.join(NODE_DIRECTORY);
    quorum::found(&log, &own.name, uuid, &state).map_err(|error| local(&error))?;
    made.tokens = tokens(cluster, places, uuid, &own, &peers)?;
    let nodes = std::iter::once(&own).chain(peers.iter().filter(|peer| !peer.witness));
    made.endpoints = nodes.filter_map(|node| node.addresses.first().cloned()).collect();
    (made.uuid, made.identity) = (Some(uuid.to_string()), Some(places.identity.display().to_string()));
    let members = MembersConfiguration { uuid, own: &own, peers: &peers };
    setting_up.finish(&configuration(places, local_arguments, (&own.name, cluster), Some(members))?)?;
    Ok(made)
}

fn configuration(
    places: &Places,
    arguments: &LocalArguments,
    (name, cluster): (&NodeName, &ClusterName),
    members: Option<MembersConfiguration<'_>>,
) -> Result<String, CliError> {
    let disks = &disks::absolute(&arguments.disk)?;
    let (portals, console) = (&arguments.portal, arguments.console);
    Ok(NodeConfiguration { places, name, cluster, disks, portals, console, members }.text())
}

/// This node and the others; none for a single node.
fn check_peers(arguments: &InitArguments) -> Result<Option<(PeerAddress, Vec<PeerAddress>)>, CliError> {
    let (Some(peer), Some(witness)) = (&arguments.peer, &arguments.witness) else { return Ok(None) };
    let plain = |addresses: &[super::args::MemberAddress]| -> Vec<SocketAddr> {
        addresses.iter().map(|address| address.0).collect()
    };
    let own = member(&arguments.name, &plain(&arguments.address), false);
    let peers = vec![
        member(&peer.name, &plain(&peer.addresses), false),
        member(&witness.name, &plain(&witness.addresses), true),
    ];
    let settings =
        settings(&Places::new(SeatKind::Node, &arguments.local)?, ClusterUuid([0; 16]), &own, &peers)?;
    let mut used: Vec<_> = std::iter::once(&own).chain(&peers).flat_map(|member| &member.addresses).collect();
    used.sort_unstable();
    let twice = used.windows(2).find(|pair| pair[0] == pair[1]);
    let conflict = match twice {
        _ if !(1..=2).contains(&arguments.address.len()) => Some("a node has one address or two".to_owned()),
        Some(twice) => Some(format!("{} is the address of two machines", twice[0])),
        None => settings.conflict(&arguments.name, SeatKind::Node),
    };
    conflict.map_or(Ok(Some((own, peers))), |reason| Err(CliError::Usage(reason)))
}

fn settings(
    places: &Places,
    cluster_uuid: ClusterUuid,
    own: &PeerAddress,
    peers: &[PeerAddress],
) -> Result<PeerSettings, CliError> {
    let parse = |addresses: &[String]| {
        addresses
            .iter()
            .map(|address| address.parse::<SocketAddr>().map_err(|error| local(&error)))
            .collect::<Result<Vec<_>, CliError>>()
    };
    Ok(PeerSettings {
        listen: parse(&own.addresses)?,
        mirror_listen: parse(&own.mirror)?,
        cluster_uuid,
        tls_dir: places.tls_dir.clone(),
        peers: peers.to_vec(),
        speaks: Spoken::default(),
    })
}

fn tokens(
    cluster: &ClusterName,
    places: &Places,
    uuid: ClusterUuid,
    own: &PeerAddress,
    peers: &[PeerAddress],
) -> Result<Vec<Token>, CliError> {
    let desk = Desk::new(DeskSetup {
        cluster: cluster.clone(),
        own: own.name.clone(),
        settings: settings(places, uuid, own, peers)?,
        state_dir: places.state_dir.clone(),
        report: Box::new(|_| {}),
    });
    let token = |peer: &PeerAddress| {
        let token = desk.issue(&peer.name, DEFAULT_VALIDITY).map_err(|error| local(&error))?;
        Ok(Token { name: peer.name.to_string(), kind: token.kind.to_string(), token: token.to_string() })
    };
    peers.iter().map(token).collect()
}

impl Made {
    fn new(places: &Places, cluster: &ClusterName, name: &NodeName) -> Self {
        Self {
            cluster: cluster.to_string(),
            uuid: None,
            node: name.to_string(),
            configuration: places.configuration.display().to_string(),
            identity: None,
            tokens: Vec::new(),
            next: vec![places.format_command(), places.start_command()],
            endpoints: Vec::new(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let Self { cluster, node, configuration, next, .. } = self;
        let mut text = format!(
            "cluster {cluster} was made; node {node} is configured in {configuration}\n\n\
             Next, on this machine:\n{}",
            commands(next)
        );
        for Token { name, kind, token } in &self.tokens {
            let disks = if kind == "node" { " --disk /dev/disk/by-id/… (once for each disk)" } else { "" };
            text += &format!(
                "Then on {kind} {name}, within 24 hours, once:\n    gemel cluster join {token}{disks}\n"
            );
        }
        if let Some(identity) = &self.identity {
            text += &format!(
                "\nTo manage the cluster from another machine, take {identity} there (who has it may do \
                 everything):\n    gemel --cluster {} --identity admin.pem status\n",
                self.endpoints.join(",")
            );
        }
        text
    }
}

/// Commands, one a line.
pub fn commands(commands: &[String]) -> String {
    commands.iter().map(|command| format!("    {command}\n")).collect()
}

fn local(error: &dyn std::error::Error) -> CliError {
    CliError::Local(error.to_string())
}

fn random() -> Result<[u8; 16], CliError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| CliError::Local(format!("the system gives no random bytes: {error}")))?;
    Ok(bytes)
}

fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Name of the first administrator.
const ADMINISTRATOR: &str = "admin";
