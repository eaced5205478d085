//! The serving node's end: nexuses of the front attached to the units here, and their commands executed.
//!
//! Guarantees: messages are taken in their order, each at once, so that a management function or the end of a session
//! meets every command sent before it; when a connection ends, all tasks of its nexuses are aborted, and no later
//! connection is welcomed before they have drained (I16); only what names the present term is executed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use super::message::{FromServing, Place, ToServing};
use super::{ForwardedAnswer, ForwardedCommand, Management, Outcome};
use crate::base::runtime::RuntimeHandle;
use crate::base::signal::Signal;
use crate::base::units::VolumeId;
use crate::scsi::identity::{Nexus, NexusId};
use crate::scsi::limits;
use crate::scsi::logical_unit::LogicalUnit;
use crate::scsi::mutant::{self, Mutant};
use crate::scsi::sense::AdditionalSense;
use crate::scsi::task_set::Drain;
use crate::volume::device::BlockDevice;

/// What this node serves to the other one. A handle; clones share it.
pub struct Service<D: BlockDevice + 'static> {
    shared: Rc<Shared<D>>,
}

struct Shared<D: BlockDevice + 'static> {
    runtime: RuntimeHandle,
    served: RefCell<BTreeMap<VolumeId, Served<D>>>,
    next_term: Cell<u64>,
    newest: RefCell<Weak<Connection<D>>>,
    /// Drains that are not over, of whatever connection.
    draining: Cell<usize>,
    drained: Signal,
    /// Called when the other node has connected, or is gone.
    changed: Box<dyn Fn()>,
}

struct Served<D> {
    unit: Rc<LogicalUnit<D>>,
    term: u64,
}

/// A connection of the front. It ends when it is dropped, or when a newer one is there.
pub struct Connection<D: BlockDevice + 'static> {
    shared: Rc<Shared<D>>,
    answer: Rc<dyn Fn(FromServing)>,
    is_welcome: Cell<bool>,
    is_over: Rc<Cell<bool>>,
    nexuses: RefCell<BTreeMap<Place, Attached<D>>>,
}

/// A nexus of the front.
struct Attached<D> {
    unit: Rc<LogicalUnit<D>>,
    id: NexusId,
    /// Its commands that have not ended.
    executing: Rc<Cell<usize>>,
}

/// A front that does what none of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more forwarded nexuses than a node has sessions")]
pub struct TooManyNexuses;

impl<D: BlockDevice + 'static> Clone for Service<D> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<D: BlockDevice + 'static> Service<D> {
    /// Nothing is served yet. `changed` is called when the other node has connected, or is gone.
    #[must_use]
    pub fn new(runtime: RuntimeHandle, changed: impl Fn() + 'static) -> Self {
        Self {
            shared: Rc::new(Shared {
                runtime,
                served: RefCell::default(),
                next_term: Cell::new(1),
                newest: RefCell::default(),
                draining: Cell::new(0),
                drained: Signal::default(),
                changed: Box::new(changed),
            }),
        }
    }

    /// The unit has its device: a new term begins.
    pub fn serve(&self, volume: VolumeId, unit: &Rc<LogicalUnit<D>>) {
        self.stop(volume);
        let term = self.shared.next_term.get();
        self.shared.next_term.set(term + 1);
        let shared = Rc::downgrade(&self.shared);
        unit.watch_reservations(Rc::new(move |reservations| {
            let newest = shared.upgrade().and_then(|shared| shared.newest.borrow().upgrade());
            if let Some(newest) = newest.filter(|newest| newest.is_welcome.get()) {
                newest.say(FromServing::Reservations { volume, term, reservations });
            }
        }));
        self.shared.served.borrow_mut().insert(volume, Served { unit: unit.clone(), term });
        if let Some(newest) = self.shared.newest.borrow().upgrade() {
            newest.announce(volume);
        }
    }

    /// The device is being taken from the unit: no forwarded command begins any more. To be called after the
    /// unit's own [`LogicalUnit::detach_device`].
    pub fn stop(&self, volume: VolumeId) {
        let Some(Served { term, .. }) = self.shared.served.borrow_mut().remove(&volume) else { return };
        let Some(newest) = self.shared.newest.borrow().upgrade() else { return };
        if newest.is_welcome.get() {
            newest.say(FromServing::Stopped { volume, term });
        }
        newest.release(volume);
    }

    /// Whether the other node is connected and may forward.
    #[must_use]
    pub fn has_front(&self) -> bool {
        self.shared.newest.borrow().upgrade().is_some_and(|newest| newest.is_welcome.get())
    }

    /// Takes a connection of the other node, in the place of any earlier one; `answer` sends to it.
    pub fn accept(&self, answer: Rc<dyn Fn(FromServing)>) -> Rc<Connection<D>> {
        let connection = Rc::new(Connection {
            shared: self.shared.clone(),
            answer,
            is_welcome: Cell::new(false),
            is_over: Rc::default(),
            nexuses: RefCell::default(),
        });
        let former = self.shared.newest.replace(Rc::downgrade(&connection));
        if let Some(former) = former.upgrade() {
            former.end();
        }
        let (shared, welcomed) = (self.shared.clone(), Rc::downgrade(&connection));
        self.shared.runtime.spawn(Box::pin(async move {
            if !mutant::is(Mutant::WelcomeUndrained) {
                shared.drained.until(|| shared.draining.get() == 0).await;
            }
            if let Some(connection) = welcomed.upgrade() {
                connection.welcome();
            }
        }));
        connection
    }
}

impl<D: BlockDevice + 'static> Shared<D> {
    /// Waits for a drain, so that nobody is welcomed before it is over.
    fn drain(self: &Rc<Self>, drain: Drain) {
        self.draining.set(self.draining.get() + 1);
        let shared = self.clone();
        self.runtime.spawn(Box::pin(async move {
            drain.wait().await;
            shared.draining.set(shared.draining.get() - 1);
            shared.drained.notify();
        }));
    }
}

impl<D: BlockDevice + 'static> Connection<D> {
    /// Takes a message.
    ///
    /// # Errors
    /// The connection is to be ended.
    pub fn receive(&self, message: ToServing) -> Result<(), TooManyNexuses> {
        match message {
            _ if self.is_over.get() || !self.is_welcome.get() => {}
            ToServing::Attach { place, nexus, pending } => self.attach(place, nexus, &pending)?,
            ToServing::Detach(place) => {
                let ended = self.nexuses.borrow_mut().remove(&place);
                if let Some(ended) = ended {
                    self.shared.drain(ended.unit.detach(ended.id));
                }
            }
            ToServing::Command(place, command) => self.execute(place, command),
            ToServing::Manage { place, number, function } => self.manage(place, number, function),
        }
        Ok(())
    }

    fn say(&self, message: FromServing) {
        if !self.is_over.get() {
            (self.answer)(message);
        }
    }

    /// What came over earlier connections is over.
    fn welcome(&self) {
        if self.is_over.get() {
            return;
        }
        self.is_welcome.set(true);
        (self.shared.changed)();
        self.say(FromServing::Welcome);
        let served: Vec<VolumeId> = self.shared.served.borrow().keys().copied().collect();
        served.into_iter().for_each(|volume| self.announce(volume));
    }

    fn announce(&self, volume: VolumeId) {
        let announcement = self.shared.served.borrow().get(&volume).map(|served| {
            let reservations = served.unit.reservations_in_force();
            FromServing::Serving { volume, term: served.term, reservations }
        });
        if let Some(announcement) = announcement.filter(|_| self.is_welcome.get()) {
            self.say(announcement);
        }
    }

    /// The unit of a place, when its term is the present one.
    fn unit(&self, place: Place) -> Option<Rc<LogicalUnit<D>>> {
        let served = self.shared.served.borrow();
        let served = served.get(&place.volume)?;
        (served.term == place.term).then(|| served.unit.clone())
    }

    fn attach(&self, place: Place, nexus: Nexus, pending: &[AdditionalSense]) -> Result<(), TooManyNexuses> {
        let Some(unit) = self.unit(place) else { return Ok(()) };
        if self.nexuses.borrow().len() >= limits::FORWARDED_NEXUSES
            || self.nexuses.borrow().contains_key(&place)
        {
            return Err(TooManyNexuses);
        }
        let (answer, is_over) = (self.answer.clone(), self.is_over.clone());
        let told = move |pending: Vec<AdditionalSense>| {
            if !is_over.get() {
                answer(FromServing::Attentions(place, pending));
            }
        };
        let id = unit.attach_forwarded(nexus, pending, Rc::new(told));
        let attached = Attached { unit, id, executing: Rc::default() };
        self.nexuses.borrow_mut().insert(place, attached);
        Ok(())
    }

    fn execute(&self, place: Place, command: ForwardedCommand) {
        let tag = command.tag;
        let attached = self.nexuses.borrow();
        let attached = attached.get(&place).filter(|_| self.unit(place).is_some());
        let Some(Attached { unit, id, executing }) = attached.filter(|attached| attached.unit.serves())
        else {
            return self.say(FromServing::Answer(place, ForwardedAnswer { tag, outcome: Outcome::NotBegun }));
        };
        let task = match unit.admit(*id, tag, command.attribute) {
            Ok(task) => task,
            Err(refused) => {
                let outcome = Outcome::Ended(Some(refused));
                return self.say(FromServing::Answer(place, ForwardedAnswer { tag, outcome }));
            }
        };
        executing.set(executing.get() + 1);
        let (unit, executing) = (unit.clone(), executing.clone());
        let (answer, is_over, shared) = (self.answer.clone(), self.is_over.clone(), self.shared.clone());
        self.shared.runtime.spawn(Box::pin(async move {
            let response = unit.execute(task, command.into_command()).await;
            executing.set(executing.get() - 1);
            shared.drained.notify();
            if !is_over.get() {
                let outcome = Outcome::Ended(response);
                answer(FromServing::Answer(place, ForwardedAnswer { tag, outcome }));
            }
        }));
    }

    fn manage(&self, place: Place, number: u64, function: Management) {
        let attached = self.nexuses.borrow();
        let Some(Attached { unit, id, .. }) = attached.get(&place).filter(|_| self.unit(place).is_some())
        else {
            return self.say(FromServing::Managed { number, is_done: false });
        };
        let (done, is_over) = (self.answer.clone(), self.is_over.clone());
        let managed = unit.manage_here(*id, function);
        self.shared.runtime.spawn(Box::pin(async move {
            managed.await;
            if !is_over.get() {
                done(FromServing::Managed { number, is_done: true });
            }
        }));
    }

    /// The volume is not served here any more: its nexuses go when their last commands have been answered.
    fn release(&self, volume: VolumeId) {
        let released: Vec<Attached<D>> = {
            let mut nexuses = self.nexuses.borrow_mut();
            let of_volume: Vec<Place> =
                nexuses.keys().filter(|place| place.volume == volume).copied().collect();
            of_volume.iter().filter_map(|place| nexuses.remove(place)).collect()
        };
        for Attached { unit, id, executing } in released {
            let shared = self.shared.clone();
            // It counts as draining, for the case that the connection is lost meanwhile.
            shared.draining.set(shared.draining.get() + 1);
            self.shared.runtime.spawn(Box::pin(async move {
                shared.drained.until(|| executing.get() == 0).await;
                unit.detach(id).wait().await;
                shared.draining.set(shared.draining.get() - 1);
                shared.drained.notify();
            }));
        }
    }

    /// All that came over it is aborted.
    fn end(&self) {
        if self.is_over.replace(true) {
            return;
        }
        for attached in self.nexuses.take().into_values() {
            let drain = attached.unit.detach(attached.id);
            if !mutant::is(Mutant::LostConnectionNotDrained) {
                self.shared.drain(drain);
            }
        }
        if self.is_welcome.replace(false) {
            (self.shared.changed)();
        }
    }
}

impl<D: BlockDevice + 'static> Drop for Connection<D> {
    fn drop(&mut self) {
        self.end();
    }
}
