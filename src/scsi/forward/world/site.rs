//! A node of the world: its unit, and both ends of what is forwarded.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use futures::future::LocalBoxFuture;

use super::{Common, SlowDevice, Steps, VOLUME, Wire};
use crate::scsi::asymmetric_access::{AccessAuthority, AccessState, ActivationFailed, GroupAccess};
use crate::scsi::copy::NoOthers;
use crate::scsi::forward::front::{ForwardLink, Front, FrontUnit};
use crate::scsi::forward::message::{FromServing, ToServing};
use crate::scsi::forward::service::{Connection, Service};
use crate::scsi::identity::{Identity, TargetPort};
use crate::scsi::logical_unit::{LogicalUnit, Services};
use crate::scsi::reservation::{PersistedReservations, ReservationStore, SaveFailed};
use crate::scsi::testing::{AMPLE, identity};
use crate::volume::device::DeviceGeometry;

/// What the cluster has decided.
#[derive(Default)]
pub(super) struct Decided {
    pub(super) reservations: RefCell<PersistedReservations>,
    /// The node that may serve.
    pub(super) primary: Cell<usize>,
}

pub(super) struct Site {
    pub(super) index: usize,
    common: Rc<Common>,
    decided: Rc<Decided>,
    pub(super) unit: Rc<LogicalUnit<SlowDevice>>,
    pub(super) front: Front,
    service: Service<SlowDevice>,
    /// Its call to the other node.
    pub(super) call: RefCell<Option<Rc<Wire>>>,
    /// The other node's call, as this one has taken it.
    taken: RefCell<Option<Taken>>,
}

/// A call, and the end of it that takes its messages.
type Taken = (Rc<Wire>, Rc<Connection<SlowDevice>>);

struct Authority {
    index: usize,
    decided: Rc<Decided>,
}

impl AccessAuthority for Authority {
    fn is_local(&self, portal_group: u16) -> bool {
        usize::from(portal_group) == self.index + 1
    }

    fn may_serve(&self) -> bool {
        self.decided.primary.get() == self.index
    }

    fn is_movable(&self) -> bool {
        true
    }

    fn activate(&self, _: u16) -> LocalBoxFuture<'_, Result<(), ActivationFailed>> {
        Box::pin(async { Err(ActivationFailed("not here".into())) })
    }
}

struct Saver {
    index: usize,
    common: Rc<Common>,
    decided: Rc<Decided>,
}

impl ReservationStore for Saver {
    fn save(&self, state: PersistedReservations) -> LocalBoxFuture<'_, Result<(), SaveFailed>> {
        Box::pin(async move {
            self.common.delay(20).await;
            if self.decided.primary.get() != self.index {
                return Err(SaveFailed("deposed".into()));
            }
            self.decided.reservations.replace(state);
            Ok(())
        })
    }
}

impl ForwardLink for Wire {
    fn send(&self, message: Vec<Bytes>) {
        if !self.is_cut.get() {
            self.to_serving.borrow_mut().push_back(message.concat().into());
        }
    }
}

impl Site {
    pub(super) fn new(index: usize, common: &Rc<Common>, decided: &Rc<Decided>) -> Self {
        let target_ports = [1, 2].map(|tag| TargetPort { relative_id: tag, portal_group: tag }).to_vec();
        let services = Services {
            runtime: Rc::new(Steps(common.clone())),
            reservations: Rc::new(Saver { index, common: common.clone(), decided: decided.clone() }),
            copies: Rc::new(NoOthers),
            space: Rc::new(Cell::new(AMPLE)),
            access: Rc::new(Authority { index, decided: decided.clone() }),
        };
        let unit = LogicalUnit::without_device(
            Identity { target_ports, ..identity() },
            DeviceGeometry { logical_block_bytes: 512, block_count: super::BLOCKS },
            services,
        );
        let front = Front::new(|_| {});
        let forwarding: Rc<dyn FrontUnit> = unit.clone();
        front.add(VOLUME, Rc::downgrade(&forwarding));
        Self {
            index,
            common: common.clone(),
            decided: decided.clone(),
            unit,
            front,
            service: Service::new(Rc::new(Steps(common.clone())), || {}),
            call: RefCell::default(),
            taken: RefCell::default(),
        }
    }

    /// Takes the device, fencing whoever had it.
    pub(super) fn take_device(&self) {
        let epoch = {
            let mut medium = self.common.medium.borrow_mut();
            medium.fence += 1;
            medium.fence
        };
        self.decided.primary.set(self.index);
        self.front.serves_itself(VOLUME);
        let device = SlowDevice { common: self.common.clone(), epoch };
        let saved = self.decided.reservations.borrow().clone();
        self.unit.attach_device(device, &saved).expect("reservations that were saved");
        self.tell();
        self.service.serve(VOLUME, &self.unit);
    }

    /// Gives the device up.
    pub(super) fn leave_device(&self) -> LocalBoxFuture<'static, ()> {
        self.tell_as(AccessState::Transitioning);
        let detached = self.unit.detach_device();
        self.service.stop(VOLUME);
        self.front.serves_no_more(VOLUME);
        detached
    }

    pub(super) fn has_device(&self) -> bool {
        self.unit.has_device()
    }

    /// Tells the unit the states of both groups.
    pub(super) fn tell(&self) {
        self.tell_as(match (self.has_device(), self.front.is_forwarding(VOLUME)) {
            (true, _) => AccessState::ActiveOptimized,
            (false, true) => AccessState::ActiveNonOptimized,
            (false, false) => AccessState::Transitioning,
        });
    }

    fn tell_as(&self, own: AccessState) {
        let other = match own {
            AccessState::ActiveNonOptimized => AccessState::ActiveOptimized,
            _ => AccessState::ActiveNonOptimized,
        };
        let group = |index: usize| GroupAccess {
            portal_group: index as u16 + 1,
            state: if index == self.index { own } else { other },
            preferred: false,
        };
        self.unit.set_access_states(&[group(0), group(1)]);
    }

    /// Hears of the reservations that the cluster has decided.
    pub(super) fn learn(&self) {
        let saved = self.decided.reservations.borrow().clone();
        self.unit.learn_reservations(&saved).expect("reservations that were saved");
    }

    /// Calls `other`, which takes the call at once.
    pub(super) fn connect(&self, other: &Self) {
        let wire = Rc::new(Wire::default());
        let back = wire.clone();
        let answer = move |message: FromServing| {
            if !back.is_cut.get() {
                back.from_serving.borrow_mut().push_back(message.encode().concat().into());
            }
        };
        self.front.connected(wire.clone());
        *self.call.borrow_mut() = Some(wire.clone());
        let connection = other.service.accept(Rc::new(answer));
        *other.taken.borrow_mut() = Some((wire, connection));
    }

    /// Notices at the front's end that its call is cut.
    pub(super) fn notice_as_front(&self) {
        let is_cut = self.call.borrow().as_ref().is_some_and(|wire| wire.is_cut.get());
        if is_cut {
            self.call.take();
            self.front.disconnected();
        }
    }

    /// Notices at the serving end, when all that had arrived has been read.
    pub(super) fn notice_as_server(&self) {
        let is_over = |wire: &Wire| wire.is_cut.get() && wire.to_serving.borrow().is_empty();
        if self.taken.borrow().as_ref().is_some_and(|(wire, _)| is_over(wire)) {
            self.taken.take();
        }
    }

    /// Takes one message of the other node's call.
    pub(super) fn serve_one(&self) -> bool {
        let taken = self.taken.borrow().clone();
        let message = taken.as_ref().and_then(|(wire, _)| wire.to_serving.borrow_mut().pop_front());
        let (Some(message), Some((_, connection))) = (message, taken) else { return false };
        connection.receive(ToServing::decode(&message).expect("ours")).expect("a front of ours");
        true
    }

    /// Takes one answer to its own call.
    pub(super) fn hear_one(&self) -> bool {
        let wire = self.call.borrow().clone();
        let message = wire.and_then(|wire| wire.from_serving.borrow_mut().pop_front());
        let Some(message) = message else { return false };
        self.front.received(FromServing::decode(&message).expect("ours"));
        true
    }
}
