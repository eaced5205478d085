//! Links between members: who calls whom, the two hellos, and frames both ways.
//!
//! Each member calls each other one, at one of its addresses after the other, and takes calls. So there are
//! usually two links between two members, and either is enough. Guarantees: nothing but a ping leaves or
//! enters before both hellos have been checked; a link on which nothing was heard for [`SILENCE`] is closed;
//! what is sent to a full or broken link is lost, never waited for.
//!
//! Left to others: what the messages say, and on which of several links to send ([`super::quorum`]).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::dial::dial;
use super::hello::{Greeted, Introduction};
use super::messages::control_frame::Content;
use super::messages::peer_client::PeerClient;
use super::messages::peer_server::{Peer, PeerServer};
use super::messages::{self, ControlFrame, Hello, Ping};
use super::settings::{PEER_PORT, PeerAddress, with_port};
use super::tls::Keys;
use crate::cluster::lease::StoreHealth;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::message::Message;
use crate::cluster::versions::Protocol;

/// What a link tells the thread that owns the quorum.
pub enum LinkEvent {
    /// It is there.
    Up(Link),
    /// A message or a ping came.
    Heard {
        /// From whom.
        name: NodeName,
        /// By which link.
        link: u64,
        /// What.
        heard: Heard,
    },
    /// It is gone.
    Down {
        /// To whom.
        name: NodeName,
        /// Which.
        link: u64,
    },
    /// No link could be made, for this reason.
    Failed {
        /// To whom.
        name: NodeName,
        /// Why.
        trouble: Trouble,
    },
}

/// Why there is no connection to another member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// In words.
    pub reason: String,
    /// Whether it is there, and one of the two refuses the other.
    pub is_refusal: bool,
}

impl Trouble {
    /// It can't be reached.
    pub(super) fn unreachable(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_refusal: false }
    }

    /// It is there, and this is what is wrong with it.
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_refusal: true }
    }

    /// The same, at this address.
    pub(super) fn at(self, address: &str) -> Self {
        Self { reason: format!("{address}: {}", self.reason), ..self }
    }
}

impl From<Status> for Trouble {
    /// What a caller is told.
    fn from(status: Status) -> Self {
        match status.code() {
            Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unauthenticated
            | Code::InvalidArgument => Self::refused(format!("refused: {}", status.message())),
            _ => Self::unreachable(status.message()),
        }
    }
}

/// What comes over a link.
pub enum Heard {
    /// A message.
    Message(Message),
    /// The other end is there, and its store is like this.
    Ping(StoreHealth),
}

/// A link, for sending.
pub struct Link {
    /// Distinguishes the links of this process.
    pub number: u64,
    /// Who is at the other end.
    pub greeted: Greeted,
    frames: mpsc::Sender<Result<ControlFrame, Status>>,
}

impl Link {
    /// Sends a message, or loses it when the link is full or broken.
    pub fn send(&self, message: &Message) {
        let _ = self.frames.try_send(Ok(frame(Content::Message(message.encode()))));
    }

    /// Says that this end is there, and how its store is.
    pub fn ping(&self, store: StoreHealth) {
        let store = match store {
            StoreHealth::Well => messages::StoreHealth::Well,
            StoreHealth::Stuck => messages::StoreHealth::Stuck,
            StoreHealth::Gone => messages::StoreHealth::Gone,
        };
        let _ = self.frames.try_send(Ok(frame(Content::Ping(Ping { store: store.into() }))));
    }
}

/// What all links of a member have in common.
pub struct Links {
    introduction: Introduction,
    /// The oldest version of the protocol that is still spoken.
    oldest_version: AtomicU32,
    keys: Keys,
    peers: Vec<PeerAddress>,
    events: mpsc::Sender<LinkEvent>,
    last_number: AtomicU64,
}

impl Links {
    /// For the member that introduces itself in this way.
    #[must_use]
    pub fn new(
        introduction: Introduction,
        keys: Keys,
        peers: Vec<PeerAddress>,
        events: mpsc::Sender<LinkEvent>,
    ) -> Arc<Self> {
        let (oldest_version, last_number) = Default::default();
        Arc::new(Self { introduction, oldest_version, keys, peers, events, last_number })
    }

    /// From now on who speaks only older versions than this is refused.
    pub fn refuse_before(&self, version: u32) {
        self.oldest_version.store(version, Ordering::Relaxed);
    }

    fn introduction(&self) -> Introduction {
        let own = self.introduction.clone();
        let oldest = self.oldest_version.load(Ordering::Relaxed);
        Introduction { speaks: own.speaks.without_control_before(oldest), ..own }
    }

    /// The service that takes calls.
    #[must_use]
    pub fn service(self: &Arc<Self>) -> PeerServer<ControlService> {
        PeerServer::new(ControlService { links: self.clone() })
            .max_decoding_message_size(MOST_FRAME_BYTES)
            .max_encoding_message_size(MOST_FRAME_BYTES)
    }

    /// Calls a peer, again and again, for as long as this is polled.
    pub async fn call(self: Arc<Self>, peer: PeerAddress) {
        let mut wait = SHORTEST_WAIT;
        // What is wrong is said once for each address, until there has been a link.
        let mut said = BTreeMap::new();
        for address in peer.addresses.iter().cycle() {
            match self.call_at(&peer, address).await {
                Ok(()) => {
                    wait = SHORTEST_WAIT;
                    said.clear();
                }
                Err(trouble) => {
                    let trouble = trouble.at(address);
                    if said.insert(address, trouble.clone()).as_ref() != Some(&trouble) {
                        let name = peer.name.clone();
                        if self.events.send(LinkEvent::Failed { name, trouble }).await.is_err() {
                            return;
                        }
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    /// One call, to its end; an error when it came to no link.
    async fn call_at(&self, peer: &PeerAddress, address: &str) -> Result<(), Trouble> {
        let address = with_port(address, PEER_PORT);
        let channel = dial(&self.keys, (&peer.name, peer.kind()), &address, |endpoint| endpoint).await;
        let channel = channel.map_err(Trouble::unreachable)?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(MOST_FRAME_BYTES)
            .max_encoding_message_size(MOST_FRAME_BYTES);
        let (frames, outgoing) = mpsc::channel(QUEUE);
        let hello = frame(Content::Hello(self.introduction().hello(Protocol::Control)));
        frames.try_send(Ok(hello)).map_err(|_| Trouble::unreachable("the queue is full"))?;
        // A refusal comes as an error of the call; an error of our own never goes into the stream.
        let outgoing = ReceiverStream::new(outgoing).filter_map(|frame| async { frame.ok() });
        let called = timeout(HANDSHAKE_TIMEOUT, client.control(Request::new(outgoing))).await;
        let called = called.map_err(|_| Trouble::unreachable("no answer to the call"))?;
        let mut incoming = called?.into_inner();
        let hello = next_hello(&mut incoming).await?;
        let greeted = self
            .introduction()
            .check(&hello, Protocol::Control, &self.peers)
            .map_err(|status| Trouble::refused(status.message()))?;
        if greeted.name != peer.name {
            return Err(Trouble::refused(format!("{} answers in the place of {}", greeted.name, peer.name)));
        }
        self.read(greeted, frames, incoming).await;
        Ok(())
    }

    /// Tells that a caller is refused, when it is surely the member that it says.
    async fn tell_refused(
        &self,
        hello: &Hello,
        certificates: Option<&[CertificateDer<'static>]>,
        status: &Status,
    ) {
        let Some(peer) = self.peers.iter().find(|peer| peer.name.as_str() == hello.name) else { return };
        if self.keys.check_caller(certificates, &peer.name, peer.kind()).is_ok() {
            let trouble = Trouble::refused(status.message());
            let _ = self.events.send(LinkEvent::Failed { name: peer.name.clone(), trouble }).await;
        }
    }

    /// Reads a link to its end.
    async fn read(
        &self,
        greeted: Greeted,
        frames: mpsc::Sender<Result<ControlFrame, Status>>,
        mut incoming: Streaming<ControlFrame>,
    ) {
        let link = self.last_number.fetch_add(1, Ordering::Relaxed);
        let name = greeted.name.clone();
        let up = LinkEvent::Up(Link { number: link, greeted, frames: frames.clone() });
        if self.events.send(up).await.is_err() {
            return;
        }
        // Ends also when the owner has dropped the sending half: `closed` is about the transport's.
        loop {
            let received = tokio::select! {
                received = timeout(SILENCE, incoming.message()) => received,
                () = frames.closed() => break,
            };
            let Ok(Ok(Some(frame))) = received else { break };
            let heard = match frame.content {
                Some(Content::Ping(ping)) => Heard::Ping(store_of(&ping)),
                Some(Content::Message(bytes)) => match Message::decode(&bytes) {
                    Ok(message) => Heard::Message(message),
                    Err(error) => {
                        tracing::warn!(peer = %name, %error, "a message cannot be read");
                        break;
                    }
                },
                Some(Content::Hello(_)) | None => break,
            };
            let heard = LinkEvent::Heard { name: name.clone(), link, heard };
            if self.events.send(heard).await.is_err() {
                break;
            }
        }
        let _ = self.events.send(LinkEvent::Down { name, link }).await;
    }
}

/// Takes calls.
pub struct ControlService {
    links: Arc<Links>,
}

#[tonic::async_trait]
impl Peer for ControlService {
    type ControlStream = Pin<Box<dyn Stream<Item = Result<ControlFrame, Status>> + Send>>;

    async fn control(
        &self,
        request: Request<Streaming<ControlFrame>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let certificates = request.peer_certs();
        let mut incoming = request.into_inner();
        let links = self.links.clone();
        let certificates = certificates.as_ref().map(|certificates| certificates.as_slice());
        // Nothing is told to strangers, nor waited for.
        links.keys.caller(certificates).map_err(|error| Status::unauthenticated(error.to_string()))?;
        let hello = next_hello(&mut incoming).await?;
        let checked = links.introduction().check(&hello, Protocol::Control, &links.peers);
        if let Err(status) = &checked {
            links.tell_refused(&hello, certificates, status).await;
        }
        let greeted = checked?;
        let key = links
            .keys
            .check_caller(certificates, &greeted.name, greeted.kind)
            .map_err(|error| Status::permission_denied(format!("{error}: {}", greeted.name)))?;
        let (frames, outgoing) = mpsc::channel(QUEUE);
        let hello = frame(Content::Hello(links.introduction().hello(Protocol::Control)));
        frames.try_send(Ok(hello)).map_err(|_| Status::resource_exhausted("the queue is full"))?;
        let greeted = Greeted { key: Some(key), ..greeted };
        tokio::spawn(async move { links.read(greeted, frames, incoming).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

async fn next_hello(incoming: &mut Streaming<ControlFrame>) -> Result<Hello, Status> {
    let first = timeout(HANDSHAKE_TIMEOUT, incoming.message()).await;
    match first.map_err(|_| Status::deadline_exceeded("no hello came"))?? {
        Some(ControlFrame { content: Some(Content::Hello(hello)) }) => Ok(hello),
        _ => Err(Status::invalid_argument("the first frame is not a hello")),
    }
}

/// Of a kind that is not known here, it serves: whoever said so expects to be asked.
fn store_of(ping: &Ping) -> StoreHealth {
    match ping.store() {
        messages::StoreHealth::Well => StoreHealth::Well,
        messages::StoreHealth::Stuck => StoreHealth::Stuck,
        messages::StoreHealth::Gone => StoreHealth::Gone,
    }
}

fn frame(content: Content) -> ControlFrame {
    ControlFrame { content: Some(content) }
}

/// Where an error comes from.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// How long connecting, the handshake and each hello may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a link may be silent; the other end pings much more often.
pub const SILENCE: Duration = Duration::from_secs(2);
/// How long nobody is called after a call that failed, at first and at most.
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(50);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Frames that may wait to be sent on a link.
const QUEUE: usize = 256;
/// A snapshot of the control state fits.
const MOST_FRAME_BYTES: usize = 256 << 20;
