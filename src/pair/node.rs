//! All parts of a node: who gets the control state, the streams and the answers.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::part::{ForceRefused, Part, PartReport};
use super::{Hosts, Patience, Surroundings};
use crate::base::buffer::BufferPool;
use crate::base::runtime::{Instant, LocalBoxFuture, RuntimeHandle};
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::cluster::name::NodeName;
use crate::cluster::state::ControlState;
use crate::cluster::state::volume::{Redundancy, VolumeRecord, Watermark};
use crate::mirror::{Fence, FromReplica, Held, Pace, Records, ReplicaLink, ReplicaStream, Replicas};
use crate::store::interface::{BlockStore, ChangeLog, SnapshotStore};

/// What the parts of a node share.
pub struct NodeServices<S: BlockStore + 'static> {
    /// Name of the node.
    pub own: NodeName,
    /// Name of the other one.
    pub peer: NodeName,
    /// Random number of this process, by which its proposals are known.
    pub life: u64,
    /// The local store.
    pub store: Rc<S>,
    /// What replicas keep in it.
    pub records: Rc<dyn Records>,
    /// The newest version of a volume in it.
    pub newest: Box<dyn Fn(VolumeId) -> Version>,
    /// Clock and tasks.
    pub runtime: RuntimeHandle,
    /// Memory of volumes.
    pub buffers: BufferPool,
    /// The cluster.
    pub surroundings: Rc<dyn Surroundings>,
    /// Who lets hosts in.
    pub hosts: Rc<dyn Hosts<S>>,
    /// How long it waits for what.
    pub patience: Patience,
}

/// A node's parts in all mirrored volumes. Clones are handles of the same.
pub struct Node<S: BlockStore + 'static> {
    shared: Rc<Shared<S>>,
}

pub(super) struct Shared<S: BlockStore + 'static> {
    pub(super) services: NodeServices<S>,
    parts: RefCell<BTreeMap<VolumeId, Rc<Part<S>>>>,
    pub(super) replicas: Replicas<S>,
    /// The connection that carries this node's mirrors, and since when there is none.
    link: RefCell<Option<Rc<dyn ReplicaLink>>>,
    unlinked_since: Cell<Instant>,
    /// Whether this node, and the peer, are to be free of what they serve.
    pub(super) in_maintenance: Cell<(bool, bool)>,
    /// Until when volumes are stopped on purpose, and none begins.
    stopping_until: Cell<Instant>,
    /// How fast resyncs copy, those of all volumes together.
    pub(super) resync_pace: Rc<Pace>,
}

impl<S: BlockStore + 'static> Clone for Node<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<S: SnapshotStore + ChangeLog + 'static> Node<S> {
    /// A node that has just started: it knows nothing and serves nothing.
    #[must_use]
    pub fn new(services: NodeServices<S>) -> Self {
        let shared = Rc::new_cyclic(|shared: &Weak<Shared<S>>| {
            let fence = Rc::new(Promises { shared: shared.clone() });
            let (store, records) = (services.store.clone(), services.records.clone());
            let replicas = Replicas::new(store, fence, records, services.runtime.clone());
            let unlinked_since = Cell::new(services.runtime.now());
            Shared {
                services,
                parts: RefCell::default(),
                replicas,
                link: RefCell::default(),
                unlinked_since,
                in_maintenance: Cell::default(),
                stopping_until: Cell::default(),
                resync_pace: Rc::default(),
            }
        });
        Self { shared }
    }

    /// Takes the control state as committed.
    pub fn handle_state(&self, state: &ControlState) {
        let services = &self.shared.services;
        let is_in_maintenance =
            |own: &NodeName| state.nodes().any(|(name, node)| name == own && node.is_in_maintenance);
        self.shared.in_maintenance.set((is_in_maintenance(&services.own), is_in_maintenance(&services.peer)));
        self.shared.resync_pace.limit(state.settings().resync_limit_bytes_per_second);
        for record in state.volumes().filter(|record| record.redundancy == Redundancy::Mirrored) {
            self.shared.part(record).take_record(record);
        }
        let known: Vec<VolumeId> = self.shared.parts.borrow().keys().copied().collect();
        for id in known.into_iter().filter(|id| state.volume_by_id(*id).is_none()) {
            let Some(part) = self.shared.parts.borrow_mut().remove(&id) else { continue };
            let services = &self.shared.services;
            services.runtime.spawn(Box::pin(async move { part.end().await }));
        }
    }

    /// A connection that carries this node's mirrors to the peer is there.
    pub fn connected(&self, link: Rc<dyn ReplicaLink>) {
        *self.shared.link.borrow_mut() = Some(link.clone());
        self.shared.all_parts().iter().for_each(|part| part.connected(link.clone()));
    }

    /// It is gone.
    pub fn disconnected(&self) {
        if self.shared.link.borrow_mut().take().is_some() {
            self.shared.unlinked_since.set(self.shared.services.runtime.now());
        }
        self.shared.all_parts().iter().for_each(|part| part.disconnected());
    }

    /// Takes an answer that came over it.
    pub fn received(&self, answer: FromReplica) {
        let (volume, _) = answer.belongs_to();
        let part = self.shared.parts.borrow().get(&volume).cloned();
        if let Some(part) = part {
            part.received(answer);
        }
    }

    /// A connection that carries the peer's mirrors to this node; `answer` queues what is sent back.
    pub fn accept(&self, answer: impl Fn(FromReplica) + 'static) -> ReplicaStream<S> {
        self.shared.replicas.connect(answer)
    }

    /// Lets everybody look again: the lease, or the reachability of the peer, has changed.
    pub fn look_again(&self) {
        self.shared.all_parts().iter().for_each(|part| part.look_again());
    }

    /// Moves a volume that this node serves to the peer, for this reason. The control state shows whether it came
    /// about. False when it can't be moved as things are.
    #[must_use]
    pub fn hand_over(&self, volume: VolumeId, reason: &str) -> bool {
        self.shared.parts.borrow().get(&volume).is_some_and(|part| part.hand_over(reason))
    }

    /// Stops the volumes that this node serves and that are on both nodes, each with the certificate that the replicas
    /// are equal, and begins none for so long from now on. The control state shows how far that is. Asked again it counts
    /// from then on; zero ends it, and what was stopped is started.
    pub fn stop_on_purpose(&self, how_long: Duration) {
        let nanos = u64::try_from(how_long.as_nanos()).unwrap_or(u64::MAX);
        let now = self.shared.services.runtime.now();
        self.shared.stopping_until.set(Instant(now.0.saturating_add(nanos)));
        self.look_again();
    }

    /// Makes this node the primary of a volume of which it lacks what was acknowledged, as an operator wants. The
    /// present primary must be fenced. The control state shows what came of it.
    ///
    /// # Errors
    /// Why that can't be as things are.
    pub async fn force(&self, volume: VolumeId) -> Result<(), ForceRefused> {
        let part = self.shared.parts.borrow().get(&volume).cloned();
        part.ok_or(ForceRefused::Unknown)?.force(&self.shared).await
    }

    /// What has been acknowledged of the volumes that this node serves, where it is more than is on record.
    #[must_use]
    pub fn watermarks(&self) -> BTreeMap<VolumeId, Watermark> {
        let parts = self.shared.all_parts();
        parts.iter().filter_map(|part| Some((part.id, part.watermark()?))).collect()
    }

    /// Whether hosts may use a volume here at this moment.
    #[must_use]
    pub fn may_serve(&self, volume: VolumeId) -> bool {
        self.shared.parts.borrow().get(&volume).is_some_and(|part| part.may_serve())
    }

    /// Whether this node serves a volume, and the peer has everything of it.
    #[must_use]
    pub fn is_level(&self, volume: VolumeId) -> bool {
        self.shared.parts.borrow().get(&volume).is_some_and(|part| part.is_level())
    }

    /// Has a block that the disks here can't give back brought from the peer, if it has it; or, where the peer serves
    /// the volume, tells it.
    pub async fn heal(&self, volume: VolumeId, address: BlockAddress) {
        let part = self.shared.parts.borrow().get(&volume).cloned();
        match part.and_then(|part| part.mirror()) {
            // The answer does not matter: what came is written here by the way.
            Some(mirror) => drop(mirror.read(volume, address, 1).await),
            None => drop(self.shared.replicas.damaged(volume, address)),
        }
    }

    /// Blocks that came from the peer, and that went to it, as the other one's disks could not give them back: of each
    /// volume since this node has served it.
    #[must_use]
    pub fn healed(&self) -> BTreeMap<VolumeId, (u64, u64)> {
        let parts = self.shared.all_parts();
        parts.iter().filter_map(|part| Some((part.id, part.mirror()?.healed()))).collect()
    }

    /// How a volume is here.
    #[must_use]
    pub fn report(&self, volume: VolumeId) -> Option<PartReport> {
        self.shared.parts.borrow().get(&volume).map(|part| part.report())
    }
}

impl<S: SnapshotStore + ChangeLog + 'static> Shared<S> {
    fn part(self: &Rc<Self>, record: &VolumeRecord) -> Rc<Part<S>> {
        let known = self.parts.borrow().get(&record.id).cloned();
        known.unwrap_or_else(|| {
            let part = Part::start(self, record);
            self.parts.borrow_mut().insert(record.id, part.clone());
            part
        })
    }

    fn all_parts(&self) -> Vec<Rc<Part<S>>> {
        self.parts.borrow().values().cloned().collect()
    }
}

impl<S: BlockStore + 'static> Shared<S> {
    pub(super) fn link(&self) -> Option<Rc<dyn ReplicaLink>> {
        self.link.borrow().clone()
    }

    /// The part of a volume. A new volume may be known to its primary a moment earlier than here.
    async fn until_known(shared: &Weak<Self>, volume: VolumeId) -> Option<Rc<Part<S>>> {
        for _ in 0..LOOKS {
            let strong = shared.upgrade()?;
            let known = strong.parts.borrow().get(&volume).cloned();
            if known.is_some() {
                return known;
            }
            let look = strong.services.runtime.sleep(strong.services.patience.tick);
            drop(strong);
            look.await;
        }
        None
    }

    /// Whether the volumes are being stopped on purpose.
    pub(super) fn is_stopping(&self, now: Instant) -> bool {
        now < self.stopping_until.get()
    }

    /// Since when there is no connection; none while there is one.
    pub(super) fn unlinked_since(&self) -> Option<Instant> {
        self.link.borrow().is_none().then(|| self.unlinked_since.get())
    }
}

/// How often it is looked for a volume that the peer knows.
const LOOKS: usize = 20;

/// The fence of a node's replicas: its parts.
struct Promises<S: BlockStore + 'static> {
    shared: Weak<Shared<S>>,
}

impl<S: BlockStore + 'static> Promises<S> {
    fn part(&self, volume: VolumeId) -> Option<Rc<Part<S>>> {
        self.shared.upgrade()?.parts.borrow().get(&volume).cloned()
    }
}

impl<S: SnapshotStore + ChangeLog + 'static> Fence for Promises<S> {
    fn promised(&self, volume: VolumeId) -> u32 {
        self.part(volume).map_or(0, |part| part.promised())
    }

    fn promise(&self, volume: VolumeId, epoch: u32) -> LocalBoxFuture<'static, bool> {
        if let Some(part) = self.part(volume) {
            part.raise_promise(epoch);
        }
        let shared = self.shared.clone();
        Box::pin(async move {
            let Some(part) = Shared::until_known(&shared, volume).await else { return false };
            part.promise(epoch).await
        })
    }

    fn held(&self, volume: VolumeId) -> Held {
        self.part(volume).map_or_else(|| Held::all_through(Version::default()), |part| part.held())
    }
}
