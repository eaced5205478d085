//! Calls the peer, and carries this node's mirrors, or what it forwards, over the call.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

use super::frame::{Outbox, queue};
use super::unreadable;
use super::{
    CONNECTION_WINDOW_BYTES, CarryHandler, Greeting, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MOST_FRAME_BYTES,
    MirrorStatus, STREAM_WINDOW_BYTES, Sender, Service, TRANSPORT_FRAME_BYTES, TellRefused,
};
use crate::peer::dial::dial;
use crate::peer::link::{HANDSHAKE_TIMEOUT, LONGEST_WAIT, SHORTEST_WAIT, Trouble};
use crate::peer::messages::MirrorFrame;
use crate::peer::messages::mirror_client::MirrorClient;

/// Calls the peer again and again.
pub(super) struct Caller {
    pub(super) greeting: Arc<Greeting>,
    pub(super) service: Service,
    pub(super) handler: Rc<dyn CarryHandler>,
    pub(super) status: Rc<RefCell<MirrorStatus>>,
    pub(super) tell_refused: TellRefused,
}

/// A call that is answered. Its end is told, however it ends.
struct Connected<'a> {
    caller: &'a Caller,
    outbox: Rc<Outbox>,
}

impl Caller {
    pub(super) async fn run(self) {
        let addresses = self.greeting.peer.mirror_addresses();
        let mut wait = SHORTEST_WAIT;
        // What is wrong is said once, until there has been a connection.
        let mut said = BTreeSet::new();
        for address in addresses.iter().cycle() {
            let began = Instant::now();
            let Err(trouble) = self.call(address).await;
            let Trouble { reason, is_refusal } = trouble.at(address);
            let was_connected = {
                let to_peer = &mut self.status.borrow_mut().to_peer;
                to_peer.reason.clone_from(&reason);
                to_peer.is_refused = is_refusal;
                to_peer.address.take().is_some()
            };
            if was_connected {
                said.clear();
            }
            if said.insert(reason.clone()) {
                let (peer, service) = (&self.greeting.peer.name, self.service.name());
                tracing::warn!(%peer, service, reason, "no call");
                if is_refusal {
                    (self.tell_refused)(service, &reason);
                }
            }
            if was_connected && began.elapsed() > LONGEST_WAIT {
                wait = SHORTEST_WAIT; // to the other address, without delay
            } else {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }

    /// One call, to its end; the reason.
    async fn call(&self, address: &str) -> Result<Infallible, Trouble> {
        let Greeting { introduction, peer, .. } = &*self.greeting;
        let channel = self.connect(address).await.map_err(Trouble::unreachable)?;
        let mut client = MirrorClient::new(channel).max_decoding_message_size(MOST_FRAME_BYTES);
        let (outbox, frames) = queue(introduction.hello(self.service.protocol()));
        // A refusal comes as an error of the call; an error of our own never goes into the stream.
        let frames = frames.filter_map(|frame| std::future::ready(frame.ok()));
        let frames = Request::new(frames);
        let called = match self.service {
            Service::Mirrors => timeout(HANDSHAKE_TIMEOUT, client.carry(frames)).await,
            Service::Forwards => timeout(HANDSHAKE_TIMEOUT, client.forward(frames)).await,
        };
        let mut incoming = called.map_err(|_| Trouble::unreachable("no answer to the call"))??.into_inner();
        let first = timeout(HANDSHAKE_TIMEOUT, incoming.message()).await;
        let first = first.map_err(|_| Trouble::unreachable("no hello"))??;
        let hello = first.and_then(|frame| frame.hello);
        let hello = hello.ok_or_else(|| Trouble::refused("the first frame is not a hello"))?;
        let greeted = introduction.check(&hello, self.service.protocol(), std::slice::from_ref(peer));
        greeted.map_err(|status| Trouble::refused(status.message()))?;
        {
            let to_peer = &mut self.status.borrow_mut().to_peer;
            (to_peer.address, to_peer.is_refused) = (Some(address.to_owned()), false);
        }
        let connected = Connected::begin(self, outbox);
        connected.read(incoming).await
    }

    async fn connect(&self, address: &str) -> Result<Channel, String> {
        let Greeting { keys, peer, .. } = &*self.greeting;
        let set = |endpoint: Endpoint| {
            endpoint
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_frame_size(TRANSPORT_FRAME_BYTES)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
        };
        dial(keys, (&peer.name, peer.kind()), address, set).await
    }
}

impl<'a> Connected<'a> {
    fn begin(caller: &'a Caller, outbox: Outbox) -> Self {
        let outbox = Rc::new(outbox);
        caller.handler.connected(Sender { outbox: outbox.clone() });
        Self { caller, outbox }
    }

    async fn read(&self, mut incoming: Streaming<MirrorFrame>) -> Result<Infallible, Trouble> {
        loop {
            let frame = incoming.message().await?;
            let frame = frame.ok_or_else(|| Trouble::unreachable("the peer has ended it"))?;
            if frame.hello.is_some() {
                return Err(Trouble::refused("a second hello"));
            }
            for message in frame.messages {
                let answer: Bytes = message.into_bytes();
                let received = self.caller.handler.received(answer);
                received.map_err(|error| Trouble::refused(unreadable("an answer", &error)))?;
            }
        }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        // Whoever still has the link sends into nothing.
        self.outbox.end(None);
        self.caller.handler.disconnected();
    }
}
