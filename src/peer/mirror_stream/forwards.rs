//! Forwarded commands on the connections: decoded on their way in, encoded on their way out.

use std::rc::Rc;

use bytes::Bytes;

use super::{Carried, CarryHandler, Sender};
use crate::base::runtime::LocalBoxFuture;
use crate::scsi::forward::front::{ForwardLink, Front};
use crate::scsi::forward::message::{FromServing, ToServing};
use crate::scsi::forward::service::{Connection, Service};
use crate::volume::device::BlockDevice;

/// Who forwards commands and executes those of the peer.
pub trait ForwardHandler {
    /// A connection to the peer is there.
    fn connected(&self, link: Rc<dyn ForwardLink>);
    /// It is gone.
    fn disconnected(&self);
    /// Takes an answer that came over it.
    fn received(&self, answer: FromServing);
    /// A connection of the peer; `answer` queues what is sent back.
    fn accept(&self, answer: Rc<dyn Fn(FromServing)>) -> Rc<dyn ForwardIncoming>;
}

/// A connection of the peer.
pub trait ForwardIncoming {
    /// Takes a message, at once; or says why the connection has to end.
    ///
    /// # Errors
    /// What no front does.
    fn receive(&self, message: ToServing) -> Result<(), String>;
}

/// Both ends of a node: what it forwards, and what it serves.
impl<D: BlockDevice + 'static> ForwardHandler for (Front, Service<D>) {
    fn connected(&self, link: Rc<dyn ForwardLink>) {
        self.0.connected(link);
    }

    fn disconnected(&self) {
        self.0.disconnected();
    }

    fn received(&self, answer: FromServing) {
        self.0.received(answer);
    }

    fn accept(&self, answer: Rc<dyn Fn(FromServing)>) -> Rc<dyn ForwardIncoming> {
        self.1.accept(answer)
    }
}

impl<D: BlockDevice + 'static> ForwardIncoming for Connection<D> {
    fn receive(&self, message: ToServing) -> Result<(), String> {
        Connection::receive(self, message).map_err(|error| error.to_string())
    }
}

/// The handler, behind the encoding.
pub(super) struct Forwards(pub(super) Rc<dyn ForwardHandler>);

impl CarryHandler for Forwards {
    fn connected(&self, sender: Sender) {
        self.0.connected(Rc::new(sender));
    }

    fn disconnected(&self) {
        self.0.disconnected();
    }

    fn received(&self, answer: Bytes) -> Result<(), String> {
        self.0.received(FromServing::decode(&answer).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn accept(&self, sender: Sender) -> Rc<dyn Carried> {
        Rc::new(CarriedForwards(self.0.accept(Rc::new(move |answer| sender.send(answer.encode())))))
    }
}

impl ForwardLink for Sender {
    fn send(&self, message: Vec<Bytes>) {
        Sender::send(self, message);
    }
}

struct CarriedForwards(Rc<dyn ForwardIncoming>);

impl Carried for CarriedForwards {
    fn receive(&self, message: Bytes) -> LocalBoxFuture<'_, Result<(), String>> {
        let message = ToServing::decode(&message).map_err(|error| error.to_string());
        Box::pin(std::future::ready(message.and_then(|message| self.0.receive(message))))
    }

    fn waits_for_room(&self) -> bool {
        false
    }
}
