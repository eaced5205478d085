//! The mirrored volumes as this node presents them to hosts: their logical units, what these are told of the states of their
//! paths, and both ends of what is forwarded.
//!
//! Guarantees: a unit is told a state once, when it has changed; who is to lose its device is told before. Left to others: which
//! volumes there are, and who serves them (`mirrored`, [`crate::pair`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;

use super::pool::Pool;
use super::volumes::Unit;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::VolumeId;
use crate::cluster::name::NodeName;
use crate::cluster::state::volume::VolumeRecord;
use crate::pair::{Hosts, ServedStore};
use crate::scsi::asymmetric_access::{AccessState, GroupAccess};
use crate::scsi::forward::front::Front;
use crate::scsi::forward::service::Service;
use crate::scsi::reservation::PersistedReservations;
use crate::volume::Volume;

/// The volumes as this node presents them, and both ends of what is forwarded.
pub(super) struct Faces<P: Pool> {
    pub(super) own: NodeName,
    pub(super) known: RefCell<BTreeMap<VolumeId, Face<P>>>,
    pub(super) front: Front,
    pub(super) service: Service<Volume<ServedStore<P>>>,
}

/// A volume as this node presents it.
pub(super) struct Face<P: Pool> {
    pub(super) unit: Rc<Unit<P>>,
    pub(super) saver_epoch: Rc<Cell<u32>>,
    pub(super) record: VolumeRecord,
    pub(super) groups: Vec<(NodeName, u16)>,
    /// What the unit was told of its groups.
    pub(super) told: Vec<GroupAccess>,
    /// Since when commands are not forwarded, where they are not.
    pub(super) unreached: Instant,
}
impl<P: Pool> Faces<P> {
    pub(super) fn new(own: NodeName, runtime: RuntimeHandle) -> Rc<Self> {
        Rc::new_cyclic(|faces: &Weak<Self>| {
            let (of_front, of_service) = (faces.clone(), faces.clone());
            let forwarding_changed = move |volume| {
                if let Some(faces) = of_front.upgrade() {
                    faces.unreached(volume);
                    faces.tell(volume);
                }
            };
            let front_changed = move || {
                if let Some(faces) = of_service.upgrade() {
                    faces.tell_all();
                }
            };
            let service = Service::new(runtime, front_changed);
            let front = Front::new(forwarding_changed);
            Self { own, known: RefCell::default(), front, service }
        })
    }

    pub(super) fn unreached(&self, volume: VolumeId) {
        if let Some(face) = self.known.borrow_mut().get_mut(&volume) {
            face.unreached = Instant::now();
        }
    }

    /// Tells the units the states of their groups, as far as they have changed.
    pub(super) fn tell_all(&self) {
        let volumes: Vec<VolumeId> = self.known.borrow().keys().copied().collect();
        volumes.into_iter().for_each(|volume| self.tell(volume));
    }

    pub(super) fn tell(&self, volume: VolumeId) {
        let has_device = self.known.borrow().get(&volume).is_some_and(|face| face.unit.has_device());
        self.tell_as(volume, has_device);
    }

    /// Tells a unit the states of its groups. `serves`: its node has the device, and keeps it.
    pub(super) fn tell_as(&self, volume: VolumeId, serves: bool) {
        let (unit, states) = {
            let mut known = self.known.borrow_mut();
            let Some(face) = known.get_mut(&volume) else { return };
            let (own, peer) = self.states(volume, face, serves);
            let group = |(name, portal_group): &(NodeName, u16)| GroupAccess {
                portal_group: *portal_group,
                state: if *name == self.own { own } else { peer },
                preferred: *name == face.record.primary,
            };
            let states: Vec<GroupAccess> = face.groups.iter().map(group).collect();
            if states == face.told {
                return;
            }
            face.told.clone_from(&states);
            (face.unit.clone(), states)
        };
        unit.set_access_states(&states);
    }

    /// The states of this node's group and of the other one's.
    fn states(&self, volume: VolumeId, face: &Face<P>, serves: bool) -> (AccessState, AccessState) {
        if serves {
            // What the other node can't forward it refuses.
            let is_reached = self.service.has_front();
            let peer = if is_reached { AccessState::ActiveNonOptimized } else { AccessState::Standby };
            return (AccessState::ActiveOptimized, peer);
        }
        if self.front.is_forwarding(volume) {
            return (AccessState::ActiveNonOptimized, AccessState::ActiveOptimized);
        }
        if face.record.primary == self.own {
            return (AccessState::Transitioning, AccessState::Standby);
        }
        // Soon it will be reached, or this node takes over; else hosts had better use the other path.
        let is_hopeful = face.unreached.elapsed() < LONGEST_TRANSITION;
        let own = if is_hopeful { AccessState::Transitioning } else { AccessState::Standby };
        (own, AccessState::ActiveOptimized)
    }
}

/// Lets hosts use what the node serves.
pub(super) struct Presented<P: Pool> {
    pub(super) faces: Rc<Faces<P>>,
    pub(super) pool: Rc<P>,
}

impl<P: Pool> Presented<P> {
    fn face(&self, volume: VolumeId) -> Option<(Rc<Unit<P>>, VolumeRecord)> {
        let known = self.faces.known.borrow();
        known.get(&volume).map(|face| (face.unit.clone(), face.record.clone()))
    }

    fn let_in(&self, id: VolumeId, volume: Volume<ServedStore<P>>) -> Result<(), String> {
        let (unit, record) = self.face(id).ok_or("it is not presented to hosts yet")?;
        let unreadable =
            |error: &dyn std::fmt::Display| format!("its saved reservations cannot be read: {error}");
        let saved = reservations(&record).map_err(|error| unreadable(&error))?;
        // Deposed, the other node can't change anything any more: what is in limbo ends.
        self.faces.front.serves_itself(id);
        unit.attach_device(volume, &saved).map_err(|error| unreadable(&error))?;
        self.pool.bind_space(id, true);
        self.faces.tell(id);
        self.faces.service.serve(id, &unit);
        Ok(())
    }
}

impl<P: Pool> Hosts<P> for Presented<P> {
    fn attach(
        &self,
        record: &VolumeRecord,
        volume: Volume<ServedStore<P>>,
    ) -> LocalBoxFuture<'static, Result<(), String>> {
        Box::pin(std::future::ready(self.let_in(record.id, volume)))
    }

    fn detach(&self, volume: VolumeId) -> LocalBoxFuture<'static, ()> {
        // What the other node acknowledges from now on has to find its place here.
        self.pool.bind_space(volume, false);
        let Some((unit, _)) = self.face(volume) else { return Box::pin(std::future::ready(())) };
        self.faces.unreached(volume);
        self.faces.tell_as(volume, false);
        let detached = unit.detach_device();
        self.faces.service.stop(volume);
        self.faces.front.serves_no_more(volume);
        detached
    }

    fn permitted(&self, volume: VolumeId) {
        if let Some(face) = self.faces.known.borrow().get(&volume) {
            face.unit.look_again();
        }
    }
}

/// How long a path is said to be in transition when commands can't be forwarded: longer than a take-over takes.
const LONGEST_TRANSITION: Duration = Duration::from_secs(5);

pub(super) fn reservations(record: &VolumeRecord) -> Result<PersistedReservations, serde_json::Error> {
    match record.reservations.encoded.as_slice() {
        [] => Ok(PersistedReservations::default()),
        encoded => serde_json::from_slice(encoded),
    }
}
