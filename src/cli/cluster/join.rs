//! `gemel cluster join`: makes this machine a member, with a token of the first node.

use std::io::BufRead;

use serde::Serialize;

use super::args::JoinArguments;
use super::configuration::{MembersConfiguration, NodeConfiguration, witness_text};
use super::disks;
use super::init::commands;
use super::places::Places;
use crate::cli::error::CliError;
use crate::cluster::quorum::SeatKind;
use crate::peer::authority::{AuthorityError, MemberKeyPair, write_public, write_secret};
use crate::peer::joining::client::{self, JoinError};
use crate::peer::joining::token::JoinToken;
use crate::peer::tls::{CA_KEY_NAME, CA_NAME, CERTIFICATE_NAME, KEY_NAME};

/// What this machine is now, and what is to be done next.
#[derive(Serialize)]
pub struct Became {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of this member.
    pub name: String,
    /// `node` or `witness`.
    pub kind: String,
    /// Its configuration.
    pub configuration: String,
    /// Commands to be given here, one after the other.
    pub next: Vec<String>,
}

/// Joins.
///
/// # Errors
/// [`CliError`]; then there is no configuration, and the same command may be given again, with the same token.
pub async fn run(arguments: &JoinArguments) -> Result<Became, CliError> {
    let token = token(&arguments.token)?;
    let (name, kind) = (token.name.clone(), token.kind);
    let is_witness = kind == SeatKind::Witness;
    if arguments.witness && !is_witness {
        return Err(CliError::Usage(format!(
            "the token is for node {name}, not for the witness: take the other one, or leave --witness out"
        )));
    }
    let local = &arguments.local;
    if is_witness {
        let is_for_nodes = !local.disk.is_empty() || !local.portal.is_empty() || local.console.is_some();
        if is_for_nodes {
            let reason = format!("the token is for witness {name}, which has no disks, portals or console");
            return Err(CliError::Usage(reason));
        }
    } else {
        disks::check(&local.disk)?;
    }
    let places = Places::new(kind, local)?;
    let setting_up = places.begin(true)?;
    // Kept before it is shown: when the answer is lost, the same key asks again.
    let key = MemberKeyPair::load_or_create(&places.tls_dir.join(KEY_NAME)).map_err(failed)?;
    let joined = client::join(&token, &key.public_key()).await?;
    write_public(&places.tls_dir.join(CA_NAME), &joined.authority_certificate).map_err(failed)?;
    write_public(&places.tls_dir.join(CERTIFICATE_NAME), &joined.certificate).map_err(failed)?;
    if let Some(authority_key) = &joined.authority_key {
        write_secret(&places.tls_dir.join(CA_KEY_NAME), authority_key).map_err(failed)?;
    }
    let members = MembersConfiguration { uuid: joined.uuid, own: &joined.own, peers: &joined.peers };
    let configuration = match kind {
        SeatKind::Witness => witness_text(&places, &members),
        SeatKind::Node => NodeConfiguration {
            places: &places,
            name: &name,
            cluster: &joined.cluster,
            disks: &disks::absolute(&local.disk)?,
            portals: &local.portal,
            console: local.console,
            members: Some(members),
        }
        .text(),
    };
    setting_up.finish(&configuration)?;
    let next = match kind {
        SeatKind::Node => vec![places.format_command(), places.start_command()],
        SeatKind::Witness => vec![places.start_command()],
    };
    Ok(Became {
        cluster: joined.cluster.to_string(),
        name: name.to_string(),
        kind: kind.to_string(),
        configuration: places.configuration.display().to_string(),
        next,
    })
}

/// The token, or the first line of standard input.
fn token(argument: &str) -> Result<JoinToken, CliError> {
    let mut text = argument.to_owned();
    if argument == "-" {
        text.clear();
        let read = std::io::stdin().lock().read_line(&mut text);
        read.map_err(|error| CliError::Local(format!("cannot read the token from standard input: {error}")))?;
    }
    text.parse().map_err(|error: crate::peer::joining::token::TokenError| CliError::Usage(error.to_string()))
}

impl Became {
    /// For people.
    pub fn text(&self) -> String {
        let Self { cluster, name, kind, configuration, next } = self;
        format!(
            "this machine is {kind} {name} of cluster {cluster}, configured in {configuration}\n\n\
             Next, on this machine:\n{}",
            commands(next)
        )
    }
}

fn failed(error: AuthorityError) -> CliError {
    CliError::Local(error.to_string())
}

impl From<JoinError> for CliError {
    fn from(error: JoinError) -> Self {
        let text = error.to_string();
        match error {
            JoinError::Unreachable(_) => Self::Unreachable(text),
            JoinError::OtherCluster(_) | JoinError::Refused(_) | JoinError::BadAnswer(_) => {
                Self::Refused(text)
            }
        }
    }
}
