//! The front's end: which volumes are served at the other node, what is under way there, and what is in limbo.
//!
//! Guarantees: a command ends once; one whose effect is not known ends only when it can have none any more (see the
//! parent module); nothing is sent before the serving node has said that it serves the volume.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::LocalBoxFuture;

use super::message::{FromServing, Place, ToServing};
use super::{ForwardPath, Forwarded, ForwardedCommand, Management, Outcome};
use crate::base::units::VolumeId;
use crate::scsi::command::total_length;
use crate::scsi::identity::{Nexus, NexusId};
use crate::scsi::limits;
use crate::scsi::mutant::{self, Mutant};
use crate::scsi::reservation::PersistedReservations;
use crate::scsi::sense::AdditionalSense;

/// What the front needs of a unit.
pub trait FrontUnit {
    /// Whether it has its device here.
    fn is_served_here(&self) -> bool;
    /// Its commands go this way from now on; its nexuses are attached there.
    fn begin_forwarding(&self, path: Rc<dyn ForwardPath>, reservations: &PersistedReservations);
    /// They do no more.
    fn end_forwarding(&self);
    /// What was pending for a nexus at the serving node, when forwarding ended.
    fn adopt_attentions(&self, nexus: NexusId, pending: &[AdditionalSense]);
    /// These reservations were put in force at the serving node, and the nexuses here were told.
    fn follow_reservations(&self, reservations: &PersistedReservations);
}

/// A connection to the other node.
pub trait ForwardLink {
    /// Sends a message, given in pieces. Never waits; one that is sent into a dead connection is lost.
    fn send(&self, message: Vec<Bytes>);
}

/// What this node forwards. A handle; clones share it.
#[derive(Clone)]
pub struct Front {
    shared: Rc<Shared>,
}

struct Shared {
    link: RefCell<Option<Rc<dyn ForwardLink>>>,
    is_welcome: Cell<bool>,
    is_closed: Cell<bool>,
    channels: RefCell<BTreeMap<VolumeId, Rc<Channel>>>,
    managements: RefCell<BTreeMap<u64, oneshot::Sender<bool>>>,
    next_management: Cell<u64>,
    /// What is under way at the other node, and in limbo.
    commands: Cell<usize>,
    bytes: Cell<usize>,
    /// Called when forwarding of a volume has begun or ended.
    changed: Box<dyn Fn(VolumeId)>,
}

/// One volume.
struct Channel {
    unit: Weak<dyn FrontUnit>,
    /// What the other node has said that it serves: its term, and the reservations in force.
    announced: RefCell<Option<(u64, PersistedReservations)>>,
    /// The term in which commands are forwarded, while they are.
    term: Cell<Option<u64>>,
    under_way: RefCell<BTreeMap<Place, BTreeMap<u64, UnderWay>>>,
    limbo: RefCell<Vec<UnderWay>>,
    /// What is pending for the nexuses at the serving node.
    attentions: RefCell<BTreeMap<u64, Vec<AdditionalSense>>>,
}

/// A command at the serving node.
struct UnderWay {
    end: oneshot::Sender<Forwarded>,
    is_harmless: bool,
}

impl Front {
    /// Without a connection. `changed` is called when forwarding of a volume has begun or ended.
    #[must_use]
    pub fn new(changed: impl Fn(VolumeId) + 'static) -> Self {
        Self {
            shared: Rc::new(Shared {
                link: RefCell::default(),
                is_welcome: Cell::new(false),
                is_closed: Cell::new(false),
                channels: RefCell::default(),
                managements: RefCell::default(),
                next_management: Cell::new(0),
                commands: Cell::new(0),
                bytes: Cell::new(0),
                changed: Box::new(changed),
            }),
        }
    }

    /// Makes a unit known whose commands may be forwarded.
    pub fn add(&self, volume: VolumeId, unit: Weak<dyn FrontUnit>) {
        let channel = Channel {
            unit,
            announced: RefCell::default(),
            term: Cell::new(None),
            under_way: RefCell::default(),
            limbo: RefCell::default(),
            attentions: RefCell::default(),
        };
        self.shared.channels.borrow_mut().insert(volume, Rc::new(channel));
    }

    /// The volume is gone: nobody is answered any more.
    pub fn remove(&self, volume: VolumeId) {
        let channel = self.shared.channels.borrow_mut().remove(&volume);
        if let Some(channel) = channel {
            channel.end_term();
            channel.end_all(&Forwarded::Closed);
        }
    }

    /// The node is stopping: nothing is forwarded any more, and nothing waited for.
    pub fn close(&self) {
        self.shared.is_closed.set(true);
        self.disconnected();
        self.shared.each(|_, channel| channel.end_all(&Forwarded::Closed));
    }

    /// Whether commands to a volume are forwarded now.
    #[must_use]
    pub fn is_forwarding(&self, volume: VolumeId) -> bool {
        self.shared.channel(volume).is_some_and(|channel| channel.term.get().is_some())
    }

    /// Commands at the other node or in limbo, and the bytes that they may take.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.shared.commands.get(), self.shared.bytes.get())
    }

    /// This node has the device itself: what was begun elsewhere has no effect any more.
    pub fn serves_itself(&self, volume: VolumeId) {
        if let Some(channel) = self.shared.channel(volume) {
            channel.end_term();
            channel.end_all(&Forwarded::Lost);
        }
    }

    /// This node has the device no more.
    pub fn serves_no_more(&self, volume: VolumeId) {
        self.begin(volume);
    }

    /// There is a connection to the other node.
    pub fn connected(&self, link: Rc<dyn ForwardLink>) {
        self.disconnected();
        if !self.shared.is_closed.get() {
            *self.shared.link.borrow_mut() = Some(link);
        }
    }

    /// There is none any more.
    pub fn disconnected(&self) {
        self.shared.link.take();
        self.shared.is_welcome.set(false);
        self.shared.each(|volume, channel| {
            channel.announced.take();
            let was_forwarding = channel.end_term();
            channel.enter_limbo();
            if was_forwarding {
                (self.shared.changed)(volume);
            }
        });
        // Dropped, they say that they were not done.
        self.shared.managements.take();
    }

    /// Takes a message of the other node.
    pub fn received(&self, message: FromServing) {
        match message {
            FromServing::Welcome => {
                self.shared.is_welcome.set(true);
                self.shared.each(|_, channel| channel.end_limbo(&Forwarded::Lost));
            }
            FromServing::Serving { volume, term, reservations } => {
                if let Some(channel) = self.shared.channel(volume) {
                    *channel.announced.borrow_mut() = Some((term, reservations));
                }
                self.begin(volume);
            }
            FromServing::Stopped { volume, term } => {
                if let Some(channel) = self.shared.channel(volume) {
                    channel.announced.borrow_mut().take_if(|(announced, _)| *announced == term);
                }
                let ended = self.of_term(volume, term).is_some_and(|channel| channel.end_term());
                if ended {
                    (self.shared.changed)(volume);
                }
            }
            FromServing::Attentions(place, pending) => {
                if let Some(channel) = self.of_term(place.volume, place.term) {
                    channel.attentions.borrow_mut().insert(place.nexus, pending);
                }
            }
            FromServing::Reservations { volume, term, reservations } => {
                let unit = self.of_term(volume, term).and_then(|channel| channel.unit.upgrade());
                if let Some(unit) = unit {
                    unit.follow_reservations(&reservations);
                }
                if let Some(channel) = self.shared.channel(volume) {
                    let mut announced = channel.announced.borrow_mut();
                    if let Some(known) = announced.as_mut().filter(|(announced, _)| *announced == term) {
                        known.1 = reservations;
                    }
                }
            }
            FromServing::Answer(place, answer) => {
                let Some(channel) = self.shared.channel(place.volume) else { return };
                let forwarded = match answer.outcome {
                    Outcome::NotBegun => Forwarded::NotBegun,
                    Outcome::Ended(response) => Forwarded::Answered(response),
                };
                channel.end_one(place, answer.tag, forwarded);
            }
            FromServing::Managed { number, is_done } => {
                if let Some(waiting) = self.shared.managements.borrow_mut().remove(&number) {
                    let _ = waiting.send(is_done); // nobody waits when the session has ended
                }
            }
        }
    }

    /// Forwards what the other node serves, unless this one has the device: then one of them is deposed, and the
    /// other says so before long.
    fn begin(&self, volume: VolumeId) {
        let channel = self.shared.channel(volume).filter(|_| self.shared.is_welcome.get());
        let Some(channel) = channel else { return };
        let announced = channel.announced.borrow().clone();
        let Some((term, reservations)) = announced else { return };
        let Some(unit) = channel.unit.upgrade().filter(|unit| !unit.is_served_here()) else { return };
        channel.end_term();
        channel.term.set(Some(term));
        let path = Path { shared: self.shared.clone(), channel, volume, term };
        unit.begin_forwarding(Rc::new(path), &reservations);
        (self.shared.changed)(volume);
    }

    fn of_term(&self, volume: VolumeId, term: u64) -> Option<Rc<Channel>> {
        self.shared.channel(volume).filter(|channel| channel.term.get() == Some(term))
    }
}

impl Shared {
    fn channel(&self, volume: VolumeId) -> Option<Rc<Channel>> {
        self.channels.borrow().get(&volume).cloned()
    }

    fn each(&self, mut act: impl FnMut(VolumeId, &Channel)) {
        let channels: Vec<_> = self.channels.borrow().iter().map(|(id, one)| (*id, one.clone())).collect();
        channels.iter().for_each(|(volume, channel)| act(*volume, channel));
    }

    fn send(&self, message: &ToServing) {
        if let Some(link) = &*self.link.borrow() {
            link.send(message.encode());
        }
    }
}

impl Channel {
    /// Ends the term: the unit forwards nothing more, and has the unit attentions back. False when there was none.
    fn end_term(&self) -> bool {
        let had_one = self.term.take().is_some();
        let attentions = self.attentions.take();
        if let Some(unit) = self.unit.upgrade().filter(|_| had_one) {
            unit.end_forwarding();
            for (nexus, pending) in attentions {
                if !mutant::is(Mutant::AttentionsForgotten) {
                    unit.adopt_attentions(NexusId(nexus), &pending);
                }
            }
        }
        had_one
    }

    /// What changes nothing may be executed elsewhere; the rest waits until it can have no effect.
    fn enter_limbo(&self) {
        let under_way = self.under_way.take().into_values().flatten().map(|(_, one)| one);
        let (harmless, unknown): (Vec<_>, Vec<_>) = under_way.partition(|one| one.is_harmless);
        harmless.into_iter().for_each(|one| one.end(Forwarded::NotBegun));
        if mutant::is(Mutant::LimboAnswered) {
            unknown.into_iter().for_each(|one| one.end(Forwarded::Lost));
        } else if mutant::is(Mutant::LimboRepeated) {
            unknown.into_iter().for_each(|one| one.end(Forwarded::NotBegun));
        } else {
            self.limbo.borrow_mut().extend(unknown);
        }
    }

    fn end_limbo(&self, how: &Forwarded) {
        self.limbo.take().into_iter().for_each(|one| one.end(how.clone()));
    }

    fn end_all(&self, how: &Forwarded) {
        self.enter_limbo();
        self.end_limbo(how);
    }

    fn end_one(&self, place: Place, tag: u64, how: Forwarded) {
        let ended = {
            let mut under_way = self.under_way.borrow_mut();
            let ended = under_way.get_mut(&place).and_then(|of_nexus| of_nexus.remove(&tag));
            under_way.retain(|_, of_nexus| !of_nexus.is_empty());
            ended
        };
        if let Some(ended) = ended {
            ended.end(how);
        }
    }
}

impl UnderWay {
    fn end(self, how: Forwarded) {
        let _ = self.end.send(how); // nobody waits when the whole node goes down
    }
}

/// The way of one unit in one term.
struct Path {
    shared: Rc<Shared>,
    channel: Rc<Channel>,
    volume: VolumeId,
    term: u64,
}

impl Path {
    fn place(&self, nexus: NexusId) -> Place {
        Place { volume: self.volume, term: self.term, nexus: nexus.0 }
    }
}

/// What a command under way counts for, until it ends.
struct Load {
    shared: Rc<Shared>,
    bytes: usize,
}

impl Load {
    /// None when too much is under way.
    fn take(shared: &Rc<Shared>, bytes: usize) -> Option<Self> {
        let (commands, all) = (shared.commands.get(), shared.bytes.get() + bytes);
        // A single command always gets through.
        if commands > 0 && (commands >= limits::FORWARDED_COMMANDS || all > limits::FORWARDED_BYTES) {
            return None;
        }
        shared.commands.set(commands + 1);
        shared.bytes.set(all);
        Some(Self { shared: shared.clone(), bytes })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.commands.set(self.shared.commands.get() - 1);
        self.shared.bytes.set(self.shared.bytes.get() - self.bytes);
    }
}

impl ForwardPath for Path {
    fn attach(&self, id: NexusId, nexus: Nexus, pending: Vec<AdditionalSense>) {
        self.channel.attentions.borrow_mut().insert(id.0, pending.clone());
        self.shared.send(&ToServing::Attach { place: self.place(id), nexus, pending });
    }

    fn detach(&self, id: NexusId) {
        self.channel.attentions.borrow_mut().remove(&id.0);
        self.shared.send(&ToServing::Detach(self.place(id)));
    }

    fn execute(
        &self,
        nexus: NexusId,
        command: ForwardedCommand,
        is_harmless: bool,
    ) -> LocalBoxFuture<'static, Forwarded> {
        if self.channel.term.get() != Some(self.term) {
            return Box::pin(std::future::ready(Forwarded::NotBegun));
        }
        let limit = limits::TRANSFER_BYTES as usize;
        let data_in = (command.expected_in as usize).min(limit);
        let data_out = total_length(&command.data_out);
        let load = (data_out <= limit).then(|| Load::take(&self.shared, data_in + data_out)).flatten();
        let Some(load) = load else { return Box::pin(std::future::ready(Forwarded::Full)) };
        let (end, ended) = oneshot::channel();
        let place = self.place(nexus);
        {
            let mut under_way = self.channel.under_way.borrow_mut();
            let of_nexus = under_way.entry(place).or_default();
            let former = of_nexus.insert(command.tag, UnderWay { end, is_harmless });
            assert!(former.is_none(), "two tasks of a nexus have one tag");
        }
        self.shared.send(&ToServing::Command(place, command));
        Box::pin(async move {
            let _load = load;
            ended.await.unwrap_or(Forwarded::Closed)
        })
    }

    fn manage(&self, nexus: NexusId, function: Management) -> LocalBoxFuture<'static, bool> {
        let number = self.shared.next_management.get();
        self.shared.next_management.set(number + 1);
        let (done, waiting) = oneshot::channel();
        self.shared.managements.borrow_mut().insert(number, done);
        if !mutant::is(Mutant::ManagementStaysLocal) {
            self.shared.send(&ToServing::Manage { place: self.place(nexus), number, function });
        } else {
            self.shared.managements.borrow_mut().remove(&number).map(|done| done.send(true));
        }
        if self.shared.link.borrow().is_none() {
            self.shared.managements.borrow_mut().remove(&number);
        }
        Box::pin(async move { waiting.await.unwrap_or(false) })
    }
}
