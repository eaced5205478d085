//! The node's side of joining: makes tokens, and certificates for those who bring them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status};

use super::JOINING_PROTOCOL;
use super::book::{BookError, Seat, TokenBook};
use super::guard::Guard;
use super::token::{JoinToken, Secret};
use crate::cluster::name::{ClusterName, NodeName};
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::node::KeyFingerprint;
use crate::peer::authority::{Authority, AuthorityError, MemberKey, Subject};
use crate::peer::messages::joining_server::Joining;
use crate::peer::messages::{JoinRequest, JoinResponse, Seat as WireSeat, SeatKind as WireKind};
use crate::peer::settings::{PEER_PORT, PeerAddress, PeerSettings, with_port};
use crate::peer::tls::fingerprint;

/// Makes tokens and takes them.
pub struct Desk {
    setup: DeskSetup,
    book: TokenBook,
    started: Instant,
    // A lock because calls come at once and the book is a file: each reads and writes it as one.
    guard: Mutex<Guard>,
}

/// What a desk has to know.
pub struct DeskSetup {
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// The node whose desk it is.
    pub own: NodeName,
    /// As its configuration says it.
    pub settings: PeerSettings,
    /// Where its records are.
    pub state_dir: PathBuf,
    /// Told what has happened.
    pub report: Box<dyn Fn(DeskEvent) + Send + Sync>,
}

/// What happens at a desk, for the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeskEvent {
    /// A certificate was given.
    Joined {
        /// For this seat.
        name: NodeName,
        /// To a machine at this address.
        from: IpAddr,
    },
    /// A token was refused.
    Refused {
        /// Of a machine at this address.
        from: IpAddr,
        /// Why.
        reason: String,
    },
}

/// Why no token could be made, or none was taken. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// There is no such seat.
    #[error("the configuration of {own} names no other member {name}: [[pair.peers]] says who they are")]
    NoSuchSeat {
        /// The node that was asked.
        own: NodeName,
        /// Whom it does not know.
        name: NodeName,
    },
    /// The other machine could not call.
    #[error(
        "pair.listen in the configuration of {0} names no address that another machine could call: name the node's own \
         addresses there instead of 0.0.0.0 or [::]"
    )]
    NoAddress(NodeName),
    /// The system.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The authority.
    #[error("{0}; the authority's key is on both nodes, so ask the other one")]
    Authority(#[from] AuthorityError),
    /// The book.
    #[error(transparent)]
    Book(#[from] BookError),
}

impl Desk {
    /// The desk of a node.
    #[must_use]
    pub fn new(setup: DeskSetup) -> Self {
        let book = TokenBook::of(&setup.state_dir);
        Self { setup, book, started: Instant::now(), guard: Mutex::default() }
    }

    /// Makes a token for a member of the configuration. An older one for it is void from now on.
    ///
    /// # Errors
    /// [`DeskError`].
    pub fn issue(&self, name: &NodeName, validity: Duration) -> Result<JoinToken, DeskError> {
        let DeskSetup { own, settings, .. } = &self.setup;
        let peer = settings.peers.iter().find(|peer| peer.name == *name);
        let peer = peer.ok_or_else(|| DeskError::NoSuchSeat { own: own.clone(), name: name.clone() })?;
        let addresses = settings.listen.iter().filter(|address| !address.ip().is_unspecified());
        let addresses: Vec<_> = addresses.map(ToString::to_string).take(2).collect();
        if addresses.is_empty() {
            return Err(DeskError::NoAddress(own.clone()));
        }
        let authority = self.authority()?.public_key()?;
        let mut secret = Secret([0; 16]);
        getrandom::fill(&mut secret.0).map_err(DeskError::Random)?;
        let seat = Seat { name: name.clone(), kind: peer.kind() };
        let _turn = self.turn();
        self.book.enter(&seat, &secret, unix_ms(), validity)?;
        let (cluster, kind) = (settings.cluster_uuid, peer.kind());
        Ok(JoinToken { cluster, authority, secret, kind, name: name.clone(), addresses })
    }

    fn join(&self, request: &JoinRequest, from: IpAddr) -> Result<JoinResponse, Status> {
        let DeskSetup { cluster, settings, report, .. } = &self.setup;
        if request.protocol_version != JOINING_PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "{} speaks version {} of joining and this machine version {}: use the same version of gemel on both",
                self.setup.own, JOINING_PROTOCOL, request.protocol_version
            )));
        }
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut guard = self.turn();
        if !guard.may_try(from, now_ms) {
            return Err(Status::resource_exhausted(
                "there were too many wrong join tokens from this address: wait a minute",
            ));
        }
        let name: NodeName = request.name.parse().map_err(|error| invalid(&error))?;
        let kind = match request.kind() {
            WireKind::Node => SeatKind::Node,
            WireKind::Witness => SeatKind::Witness,
            WireKind::Unspecified => return Err(Status::invalid_argument("it is neither node nor witness")),
        };
        let key = MemberKey::from_bytes(&request.public_key).map_err(|error| invalid(&error))?;
        let seat = Seat { name: name.clone(), kind };
        if let Err(error) = self.book.redeem(&request.secret, &seat, &key, unix_ms()) {
            let is_guess = error == BookError::Unknown;
            if !is_guess || guard.handle_wrong(from, now_ms) {
                report(DeskEvent::Refused { from, reason: error.to_string() });
            }
            return Err(match error {
                BookError::File { .. } => Status::internal(error.to_string()),
                _ => Status::permission_denied(error.to_string()),
            });
        }
        let failed = |error: AuthorityError| Status::internal(error.to_string());
        let authority = self.authority().map_err(|error| Status::internal(error.to_string()))?;
        let subject = match kind {
            SeatKind::Node => Subject::Node(name.clone()),
            SeatKind::Witness => Subject::Witness(name.clone()),
        };
        let certificate = authority.certify(&subject, &key).map_err(failed)?;
        report(DeskEvent::Joined { name, from });
        Ok(JoinResponse {
            cluster_name: cluster.to_string(),
            cluster_uuid: settings.cluster_uuid.to_string(),
            authority_certificate: authority.certificate_pem().to_owned(),
            certificate,
            authority_key: if kind == SeatKind::Node { authority.key_pem() } else { String::new() },
            seats: self.seats(),
        })
    }

    /// The authority.
    ///
    /// # Errors
    /// [`DeskError::Authority`].
    pub fn authority(&self) -> Result<Authority, DeskError> {
        let settings = &self.setup.settings;
        Ok(Authority::load(&settings.tls_dir, settings.cluster_uuid)?)
    }

    /// All members, this node first.
    #[must_use]
    pub fn members(&self) -> Vec<PeerAddress> {
        let DeskSetup { own, settings, .. } = &self.setup;
        let text = |addresses: &[std::net::SocketAddr]| addresses.iter().map(ToString::to_string).collect();
        let first = PeerAddress {
            name: own.clone(),
            addresses: text(&settings.listen),
            mirror: text(&settings.mirror_listen()),
            witness: false,
        };
        let others = settings.peers.iter().map(|peer| PeerAddress {
            addresses: peer.addresses.iter().map(|address| with_port(address, PEER_PORT)).collect(),
            mirror: if peer.witness { Vec::new() } else { peer.mirror_addresses() },
            ..peer.clone()
        });
        std::iter::once(first).chain(others).collect()
    }

    fn seats(&self) -> Vec<WireSeat> {
        let seat = |member: PeerAddress| {
            let kind = if member.witness { WireKind::Witness } else { WireKind::Node };
            let PeerAddress { name, addresses, mirror, .. } = member;
            WireSeat { name: name.to_string(), kind: kind.into(), addresses, mirror }
        };
        self.members().into_iter().map(seat).collect()
    }

    fn turn(&self) -> MutexGuard<'_, Guard> {
        // Counts of guesses are whole at any time.
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The service for those who have no certificate yet.
pub struct JoiningService {
    /// Who decides.
    pub desk: Arc<Desk>,
    /// Has the cluster know the machine by its key, before it gets its certificate.
    pub record: RecordKey,
}

/// Records the key of a member. An error is for people.
pub type RecordKey = Arc<dyn Fn(NodeName, SeatKind, KeyFingerprint) -> Recorded + Send + Sync>;

/// What comes of that.
pub type Recorded = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

#[tonic::async_trait]
impl Joining for JoiningService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let from = request
            .extensions()
            .get::<TlsConnectInfo<TcpConnectInfo>>()
            .and_then(|info| info.get_ref().remote_addr())
            .ok_or_else(|| Status::internal("a connection without an address"))?;
        let answer = self.desk.join(request.get_ref(), from.ip().to_canonical())?;
        let request = request.get_ref();
        let name: NodeName = request.name.parse().map_err(|error| invalid(&error))?;
        let kind = if request.kind() == WireKind::Witness { SeatKind::Witness } else { SeatKind::Node };
        let certificate = CertificateDer::from_pem_slice(answer.certificate.as_bytes()).ok();
        let key = certificate.as_ref().and_then(fingerprint);
        let key = key.ok_or_else(|| Status::internal("the new certificate cannot be read"))?;
        (self.record)(name, kind, key).await.map_err(Status::unavailable)?;
        Ok(Response::new(answer))
    }
}

fn invalid(error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
