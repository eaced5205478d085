//! The joining machine's side: asks the node that made the token.

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::Request;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::JOINING_PROTOCOL;
use super::token::JoinToken;
use crate::cluster::name::{ClusterName, NodeName};
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::ClusterUuid;
use crate::peer::authority::MemberKey;
use crate::peer::link::{HANDSHAKE_TIMEOUT, root_cause};
use crate::peer::messages::joining_client::JoiningClient;
use crate::peer::messages::{JoinRequest, JoinResponse, SeatKind as WireKind};
use crate::peer::settings::PeerAddress;
use crate::peer::tls::{any_node_name, is_distrust, server_name};

/// What a machine gets that joins.
pub struct Joined {
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// Its identity.
    pub uuid: ClusterUuid,
    /// Certificate of its authority.
    pub authority_certificate: String,
    /// Certificate of this machine.
    pub certificate: String,
    /// Key of the authority, for a node.
    pub authority_key: Option<String>,
    /// The seat of this machine.
    pub own: PeerAddress,
    /// The others.
    pub peers: Vec<PeerAddress>,
}

/// Why a machine could not join. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The node does not answer.
    #[error(
        "cannot reach {0}; check that gemeld is running there (systemctl status gemeld), and that no firewall is in \
         the way, then repeat this command"
    )]
    Unreachable(String),
    /// Somebody else does.
    #[error(
        "{0} does not belong to the cluster that the join token is for (its certificate is of another authority): \
         nothing was sent to it. Check the address, and that the token is of this cluster"
    )]
    OtherCluster(String),
    /// The node refuses.
    #[error("{0}")]
    Refused(String),
    /// The node's answer makes no sense.
    #[error("the answer of the node cannot be used: {0}; use the same version of gemel on both")]
    BadAnswer(&'static str),
}

/// Shows the token to the node that made it, at the first of its addresses that answers.
///
/// # Errors
/// [`JoinError`].
pub async fn join(token: &JoinToken, key: &MemberKey) -> Result<Joined, JoinError> {
    let mut client = JoiningClient::new(connect(token).await?).max_decoding_message_size(MOST_ANSWER_BYTES);
    let kind = match token.kind {
        SeatKind::Node => WireKind::Node,
        SeatKind::Witness => WireKind::Witness,
    };
    let mut request = Request::new(JoinRequest {
        protocol_version: JOINING_PROTOCOL,
        secret: token.secret.0.to_vec(),
        kind: kind.into(),
        name: token.name.to_string(),
        public_key: key.as_bytes().to_vec(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
    });
    request.set_timeout(PATIENCE);
    let answer = tokio::time::timeout(PATIENCE, client.join(request)).await;
    let answer = answer.map_err(|_| JoinError::Unreachable(format!("{:?}", token.addresses)))?;
    let answer = answer.map_err(|status| match status.code() {
        tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::DeadlineExceeded => {
            let reason = format!("{} ({})", token.addresses.join(" or "), status.message());
            JoinError::Unreachable(reason)
        }
        tonic::Code::Unimplemented => JoinError::Refused(
            "the node does not know joining: use the same version of gemel on all machines".to_owned(),
        ),
        _ => JoinError::Refused(status.message().to_owned()),
    })?;
    read(token, answer.into_inner())
}

async fn connect(token: &JoinToken) -> Result<Channel, JoinError> {
    let anchor = token.authority.trust_anchor(token.cluster);
    let anchor = anchor.map_err(|_| JoinError::BadAnswer("its authority has no usable key"))?;
    let tls = ClientTlsConfig::new()
        .trust_anchor(anchor)
        .domain_name(any_node_name(token.cluster))
        .timeout(HANDSHAKE_TIMEOUT);
    let (mut failures, mut strangers) = (Vec::new(), Vec::new());
    for address in &token.addresses {
        let endpoint = Endpoint::from_shared(format!("https://{address}"))
            .and_then(|endpoint| endpoint.tls_config(tls.clone()))
            .map_err(|error| JoinError::Unreachable(format!("{address} ({})", root_cause(&error))))?;
        match tokio::time::timeout(PATIENCE, endpoint.connect_timeout(HANDSHAKE_TIMEOUT).connect()).await {
            Ok(Ok(channel)) => return Ok(channel),
            Ok(Err(error)) if is_distrust(&error) => strangers.push(address.clone()),
            Ok(Err(error)) => failures.push(format!("{address} ({})", root_cause(&error))),
            Err(_) => failures.push(format!("{address} (no answer)")),
        }
    }
    match strangers.is_empty() {
        true => Err(JoinError::Unreachable(failures.join(" or "))),
        false => Err(JoinError::OtherCluster(strangers.join(" and "))),
    }
}

/// Checks the answer of a node that has proved to be one of the cluster.
fn read(token: &JoinToken, answer: JoinResponse) -> Result<Joined, JoinError> {
    let bad = |what: &'static str| move || JoinError::BadAnswer(what);
    if answer.cluster_uuid != token.cluster.to_string() {
        return Err(JoinError::BadAnswer("it is of another cluster"));
    }
    check_authority(token, &answer.authority_certificate)
        .ok_or_else(bad("the certificate of the authority is not that of the token"))?;
    check_certificate(token, &answer.certificate).ok_or_else(bad("the certificate is for another member"))?;
    let mut seats = Vec::new();
    for seat in &answer.seats {
        let name: NodeName = seat.name.parse().map_err(|_| JoinError::BadAnswer("a member has no name"))?;
        let (addresses, mirror) = (seat.addresses.clone(), seat.mirror.clone());
        let witness = seat.kind() == WireKind::Witness;
        seats.push(PeerAddress { name, addresses, mirror, witness });
    }
    let own = seats.iter().position(|seat| seat.name == token.name && seat.kind() == token.kind);
    let own = seats.remove(own.ok_or_else(bad("this machine is not among the members"))?);
    Ok(Joined {
        cluster: answer.cluster_name.parse().map_err(|_| JoinError::BadAnswer("the cluster has no name"))?,
        uuid: token.cluster,
        authority_certificate: answer.authority_certificate,
        certificate: answer.certificate,
        authority_key: Some(answer.authority_key).filter(|key| !key.is_empty()),
        own,
        peers: seats,
    })
}

fn check_authority(token: &JoinToken, pem: &str) -> Option<()> {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let anchor = webpki::anchor_from_trusted_cert(&certificate).ok()?;
    let expected = token.authority.trust_anchor(token.cluster).ok()?;
    let is_same = (&anchor.subject, &anchor.subject_public_key_info)
        == (&expected.subject, &expected.subject_public_key_info);
    is_same.then_some(())
}

fn check_certificate(token: &JoinToken, pem: &str) -> Option<()> {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let certificate = webpki::EndEntityCert::try_from(&certificate).ok()?;
    let name = server_name(&token.name, token.cluster);
    certificate.valid_dns_names().any(|valid| valid == name).then_some(())
}

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const MOST_ANSWER_BYTES: usize = 1 << 20;
