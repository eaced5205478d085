//! Takes the peer's calls, and hands on what they carry.

use std::cell::RefCell;
use std::net::TcpListener;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::frame::{Outbox, queue};
use super::{
    CONNECTION_WINDOW_BYTES, Carried, CarryHandler, Greeting, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
    MOST_FRAME_BYTES, MirrorSetupError, MirrorStatus, STREAM_WINDOW_BYTES, Sender, Service,
    TRANSPORT_FRAME_BYTES, Users, unreadable,
};
use crate::peer::link::{HANDSHAKE_TIMEOUT, root_cause};
use crate::peer::messages::MirrorFrame;
use crate::peer::messages::mirror_server::{Mirror, MirrorServer};

/// The service. It greets the caller and hands the streams to the thread that owns the data, once a call.
struct MirrorService {
    greeting: Arc<Greeting>,
    mirrors: mpsc::Sender<Accepted>,
    forwards: Option<mpsc::Sender<Accepted>>,
}

/// A call of the peer, with both hellos said.
struct Accepted {
    address: String,
    incoming: Streaming<MirrorFrame>,
    outbox: Outbox,
}

/// Begins to listen.
pub(super) fn start(
    greeting: &Arc<Greeting>,
    listeners: Vec<TcpListener>,
    users: &Users,
) -> Result<Vec<AbortHandle>, MirrorSetupError> {
    let failed = |error: &dyn std::error::Error| MirrorSetupError(root_cause(error));
    let mut tasks = Vec::new();
    let mut take = |user: &super::User| {
        let (sender, accepted) = mpsc::channel(1);
        let taking = take_calls(accepted, user.handler.clone(), user.status.clone());
        tasks.push(tokio::task::spawn_local(taking).abort_handle());
        sender
    };
    let (mirrors, forwards) = (take(&users.mirrors), users.forwards.as_ref().map(&mut take));
    for listener in listeners {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| failed(&error))?;
        let mut server = Server::builder()
            .tls_config(greeting.keys.server())
            .map_err(|error| failed(&error))?
            .max_concurrent_streams(2)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(TRANSPORT_FRAME_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
        let service = MirrorService {
            greeting: greeting.clone(),
            mirrors: mirrors.clone(),
            forwards: forwards.clone(),
        };
        let service = MirrorServer::new(service).max_decoding_message_size(MOST_FRAME_BYTES);
        // Else answers wait for the acknowledgement of those before them; the server's own setting is for its own listeners.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = server.add_service(service).serve_with_incoming(incoming);
        let task = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the peer's mirrors are not taken any more");
            }
        });
        tasks.push(task.abort_handle());
    }
    Ok(tasks)
}

type Answers = Pin<Box<dyn Stream<Item = Result<MirrorFrame, Status>> + Send>>;

#[tonic::async_trait]
impl Mirror for MirrorService {
    type CarryStream = Answers;
    type ForwardStream = Answers;

    async fn carry(
        &self,
        request: Request<Streaming<MirrorFrame>>,
    ) -> Result<Response<Self::CarryStream>, Status> {
        self.greet(request, Service::Mirrors, &self.mirrors).await
    }

    async fn forward(
        &self,
        request: Request<Streaming<MirrorFrame>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let taken =
            self.forwards.as_ref().ok_or_else(|| Status::unimplemented("nothing is forwarded here"))?;
        self.greet(request, Service::Forwards, taken).await
    }
}

impl MirrorService {
    async fn greet(
        &self,
        request: Request<Streaming<MirrorFrame>>,
        service: Service,
        taken: &mpsc::Sender<Accepted>,
    ) -> Result<Response<Answers>, Status> {
        let Greeting { introduction, keys, peer } = &*self.greeting;
        let certificates = request.peer_certs();
        let address = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
        let mut incoming = request.into_inner();
        let first = timeout(HANDSHAKE_TIMEOUT, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
        let hello = first.and_then(|frame| frame.hello);
        let hello = hello.ok_or_else(|| Status::invalid_argument("the first frame is not a hello"))?;
        let greeted = introduction.check(&hello, service.protocol(), std::slice::from_ref(peer))?;
        let certificates = certificates.as_ref().map(|certificates| certificates.as_slice());
        keys.check_caller(certificates, &greeted.name, greeted.kind)
            .map_err(|error| Status::permission_denied(format!("{error}: {}", greeted.name)))?;
        let (outbox, frames) = queue(introduction.hello(service.protocol()));
        let accepted = Accepted { address, incoming, outbox };
        let handed = taken.send(accepted).await;
        handed.map_err(|_| Status::unavailable("this node is stopping"))?;
        Ok(Response::new(Box::pin(frames)))
    }
}

/// Reads the newest call of the peer; older ones are over.
async fn take_calls(
    mut accepted: mpsc::Receiver<Accepted>,
    handler: Rc<dyn CarryHandler>,
    status: Rc<RefCell<MirrorStatus>>,
) {
    let mut newest = None;
    while let Some(call) = accepted.recv().await {
        let (keep, over) = oneshot::channel();
        // Dropping the older half ends that call.
        newest.replace(keep);
        let address = call.address.clone();
        status.borrow_mut().from_peer.address = Some(address.clone());
        let (handler, status) = (handler.clone(), status.clone());
        tokio::task::spawn_local(async move {
            let reason = call.read(&*handler, over).await;
            tracing::warn!(address, reason, "a call of the peer has ended");
            let from_peer = &mut status.borrow_mut().from_peer;
            from_peer.reason = format!("{address}: {reason}");
            from_peer.address.take_if(|present| *present == address);
        });
    }
}

impl Accepted {
    /// Reads the call to its end; the reason.
    async fn read(self, handler: &dyn CarryHandler, over: oneshot::Receiver<()>) -> String {
        let Self { mut incoming, outbox, .. } = self;
        let outbox = Rc::new(outbox);
        let receiver = handler.accept(Sender { outbox: outbox.clone() });
        let status = read(&mut incoming, &*receiver, &outbox, over).await;
        let reason = status.message().to_owned();
        outbox.end(Some(status));
        reason
    }
}

async fn read(
    incoming: &mut Streaming<MirrorFrame>,
    receiver: &dyn Carried,
    outbox: &Outbox,
    mut over: oneshot::Receiver<()>,
) -> Status {
    loop {
        let frame = tokio::select! {
            biased;
            _ = &mut over => return Status::aborted(REPLACED),
            frame = incoming.message() => frame,
        };
        let frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return Status::ok("the peer has ended it"),
            Err(status) => return status,
        };
        if frame.hello.is_some() {
            return Status::invalid_argument("a second hello");
        }
        for message in frame.messages {
            if receiver.waits_for_room() {
                outbox.room().await;
            }
            if over.try_recv() == Err(oneshot::error::TryRecvError::Closed) {
                return Status::aborted(REPLACED);
            }
            if let Err(error) = receiver.receive(message.into_bytes()).await {
                return Status::invalid_argument(unreadable("a message", &error));
            }
        }
    }
}

const REPLACED: &str = "a newer call has taken its place, or the node is stopping";
