//! The connections that carry mirrors, and forwarded commands, between the two nodes, on the thread that owns the data.
//!
//! Each node calls the other one, at one of its addresses after the other: once for the volumes that it serves itself,
//! and once, over a connection of its own, for commands to those that the other one serves; and takes the other's
//! calls. Everything runs on the `LocalSet` that [`MirrorConnections::start`] is called
//! in: between the transport and whoever sends or receives there is no other thread and, for what arrives, no queue.
//!
//! Guarantees: nothing enters or leaves before both hellos have been checked; messages come in order, the next one of
//! a connection only when [`Incoming::receive`] has completed; a link that is dead is noticed within about a second,
//! and the other address is called. Of two calls of the peer only the newer one is listened to.
//!
//! Memory: what waits to be sent to the replica shares its data with the mirror's chain, and is bounded by its
//! windows. What arrives is not read before the last message has been taken, so it is bounded by the windows of
//! HTTP/2 and one frame. No message is taken while too many answers wait for the peer to read them.
//!
//! Forwarded commands are taken at once, whatever they wait for, and bounded by who sends them. They share nothing with
//! mirrors but the network, so a mirror write never waits for a forward.
//!
//! Left to others: what the messages say ([`crate::mirror`], [`crate::scsi::forward`]), and what to do without a connection
//! ([`crate::pair`]).

mod accept;
mod call;
mod forwards;
mod frame;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;

use forwards::Forwards;
pub use forwards::{ForwardHandler, ForwardIncoming};
pub use frame::MirrorMessage;
use frame::Outbox;

use super::hello::Introduction;
use super::settings::PeerAddress;
use super::tls::Keys;
use crate::base::runtime::LocalBoxFuture;
use crate::cluster::versions::Protocol;
use crate::mirror::{FromReplica, ReplicaLink, ReplicaStream, ToReplica};
use crate::pair::Node;
use crate::store::interface::{ChangeLog, SnapshotStore};

/// Who uses the connections.
pub trait MirrorHandler {
    /// A connection that carries this node's mirrors to the peer is there.
    fn connected(&self, link: Rc<dyn ReplicaLink>);
    /// It is gone.
    fn disconnected(&self);
    /// Takes an answer that came over it.
    fn received(&self, answer: FromReplica);
    /// A connection that carries the peer's mirrors to this node; `answer` queues what is sent back.
    fn accept(&self, answer: Box<dyn Fn(FromReplica)>) -> Rc<dyn Incoming>;
}

/// A connection of the peer.
pub trait Incoming {
    /// Takes a message. Complete when the one after it may come.
    fn receive(&self, message: ToReplica) -> LocalBoxFuture<'_, ()>;
}

impl<S: SnapshotStore + ChangeLog + 'static> MirrorHandler for Node<S> {
    fn connected(&self, link: Rc<dyn ReplicaLink>) {
        Node::connected(self, link);
    }

    fn disconnected(&self) {
        Node::disconnected(self);
    }

    fn received(&self, answer: FromReplica) {
        Node::received(self, answer);
    }

    fn accept(&self, answer: Box<dyn Fn(FromReplica)>) -> Rc<dyn Incoming> {
        Rc::new(Node::accept(self, answer))
    }
}

impl<S: SnapshotStore + ChangeLog + 'static> Incoming for ReplicaStream<S> {
    fn receive(&self, message: ToReplica) -> LocalBoxFuture<'_, ()> {
        Box::pin(ReplicaStream::receive(self, message))
    }
}

/// Who uses connections, in encoded messages.
trait CarryHandler {
    /// A connection to the peer is there.
    fn connected(&self, sender: Sender);
    /// It is gone.
    fn disconnected(&self);
    /// Takes an answer that came over it, or says why it can't be read.
    fn received(&self, answer: Bytes) -> Result<(), String>;
    /// A connection of the peer, with the way back.
    fn accept(&self, sender: Sender) -> Rc<dyn Carried>;
}

/// A connection of the peer, in encoded messages.
trait Carried {
    /// Takes a message, or says why it can't be read. Complete when the one after it may come.
    fn receive(&self, message: Bytes) -> LocalBoxFuture<'_, Result<(), String>>;

    /// Whether messages wait while many answers have not been read: not where the sender bounds both.
    fn waits_for_room(&self) -> bool {
        true
    }
}

/// Sends over a connection, while there is one. Never waits.
#[derive(Clone)]
struct Sender {
    outbox: Rc<Outbox>,
}

impl Sender {
    fn send(&self, message: Vec<Bytes>) {
        self.outbox.send(message);
    }
}

impl ReplicaLink for Sender {
    fn send(&self, message: ToReplica) {
        self.outbox.send(message.encode());
    }
}

/// The user of mirrors, who decodes them.
struct Mirrors(Rc<dyn MirrorHandler>);

impl CarryHandler for Mirrors {
    fn connected(&self, sender: Sender) {
        self.0.connected(Rc::new(sender));
    }

    fn disconnected(&self) {
        self.0.disconnected();
    }

    fn received(&self, answer: Bytes) -> Result<(), String> {
        self.0.received(FromReplica::decode(&answer).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn accept(&self, sender: Sender) -> Rc<dyn Carried> {
        let incoming = self.0.accept(Box::new(move |answer| sender.send(vec![answer.encode()])));
        Rc::new(CarriedMirrors(incoming))
    }
}

struct CarriedMirrors(Rc<dyn Incoming>);

impl Carried for CarriedMirrors {
    fn receive(&self, message: Bytes) -> LocalBoxFuture<'_, Result<(), String>> {
        match ToReplica::decode(&message) {
            Ok(message) => {
                let received = self.0.receive(message);
                Box::pin(async move {
                    received.await;
                    Ok(())
                })
            }
            Err(error) => Box::pin(std::future::ready(Err(error.to_string()))),
        }
    }
}

fn unreadable(what: &str, error: &str) -> String {
    format!("{what} that cannot be read: {error}")
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Mirrors,
    Forwards,
}

impl Service {
    fn protocol(self) -> Protocol {
        match self {
            Self::Mirrors => Protocol::Mirror,
            Self::Forwards => Protocol::Forward,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mirrors => "mirrors",
            Self::Forwards => "forwards",
        }
    }
}

/// Who uses the connections of one service, and how they are.
struct User {
    handler: Rc<dyn CarryHandler>,
    status: Rc<RefCell<MirrorStatus>>,
}

/// Of both services.
struct Users {
    mirrors: User,
    forwards: Option<User>,
}

/// Takes the name of a service, and why it is refused.
pub type TellRefused = Arc<dyn Fn(&'static str, &str) + Send + Sync>;

/// What the connections need.
pub struct MirrorSetup {
    /// Who this node is.
    pub introduction: Introduction,
    /// What it proves that with.
    pub keys: Keys,
    /// The other node.
    pub peer: PeerAddress,
    /// Sockets that listen for it; not blocking.
    pub listeners: Vec<TcpListener>,
    /// Is told when the two nodes refuse each other: once for each reason, until there has been a connection.
    pub tell_refused: TellRefused,
}

/// Why there can be no connections.
#[derive(Debug, thiserror::Error)]
#[error("connections of mirrors cannot be set up: {0}")]
pub struct MirrorSetupError(String);

/// How the connections are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirrorStatus {
    /// The one that carries this node's mirrors.
    pub to_peer: DirectionStatus,
    /// The one that carries the peer's.
    pub from_peer: DirectionStatus,
}

/// How a connection is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectionStatus {
    /// The address at the other end, while there is a connection.
    pub address: Option<String>,
    /// Why the last one ended, or why there was none.
    pub reason: String,
    /// Whether one of the two nodes refuses the other for that reason.
    pub is_refused: bool,
}

/// Both directions, for as long as this is kept.
pub struct MirrorConnections {
    users: Users,
    tasks: Vec<AbortHandle>,
}

impl MirrorConnections {
    /// Listens for the peer and begins to call it, on the `LocalSet` of the caller.
    ///
    /// # Errors
    /// [`MirrorSetupError`]: the sockets, or the keys.
    pub fn start(
        setup: MirrorSetup,
        mirrors: Rc<dyn MirrorHandler>,
        forwards: Option<Rc<dyn ForwardHandler>>,
    ) -> Result<Self, MirrorSetupError> {
        let MirrorSetup { introduction, keys, peer, listeners, tell_refused } = setup;
        let greeting = Arc::new(Greeting { introduction, keys, peer });
        let user = |handler| User { handler, status: Rc::default() };
        let users = Users {
            mirrors: user(Rc::new(Mirrors(mirrors))),
            forwards: forwards.map(|handler| user(Rc::new(Forwards(handler)))),
        };
        let mut tasks = accept::start(&greeting, listeners, &users)?;
        let mut call = |service, user: &User| {
            let (handler, status) = (user.handler.clone(), user.status.clone());
            let (greeting, tell_refused) = (greeting.clone(), tell_refused.clone());
            let calls = call::Caller { service, greeting, handler, status, tell_refused };
            tasks.push(tokio::task::spawn_local(calls.run()).abort_handle());
        };
        call(Service::Mirrors, &users.mirrors);
        if let Some(forwards) = &users.forwards {
            call(Service::Forwards, forwards);
        }
        Ok(Self { users, tasks })
    }

    /// How the connections of mirrors are.
    #[must_use]
    pub fn status(&self) -> MirrorStatus {
        self.users.mirrors.status.borrow().clone()
    }

    /// How those of forwarded commands are.
    #[must_use]
    pub fn forward_status(&self) -> MirrorStatus {
        self.users.forwards.as_ref().map(|user| user.status.borrow().clone()).unwrap_or_default()
    }
}

impl Drop for MirrorConnections {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// What is said and checked at the beginning of every connection.
struct Greeting {
    introduction: Introduction,
    keys: Keys,
    peer: PeerAddress,
}

/// A peer that says nothing is asked after this time whether it is there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(400);
/// How long it has to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(600);
/// Bytes that may be on their way, or wait to be taken, in each direction.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Size of HTTP/2's own frames.
const TRANSPORT_FRAME_BYTES: u32 = 64 << 10;
/// The largest append fits.
const MOST_FRAME_BYTES: usize = 32 << 20;
