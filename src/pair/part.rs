//! A node's part in one mirrored volume.
//!
//! One task a volume takes the newest record of the control state, does what the role says, and looks what is to
//! be proposed (`proposals`). Invariants: `turn` is held from the end of one way of serving to the beginning of the next, so a
//! promise that comes with a stream waits for both; `promised` rises before anything is drained for it, and is
//! saved before anything is taken or served in its epoch.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use futures::future::select;
use futures::lock::Mutex;

use super::mutant::{self, Mutant};
use super::node::Shared;
use super::store::{Permit, ServedStore};
use crate::base::runtime::{Instant, RuntimeHandle};
use crate::base::signal::Signal;
use crate::base::units::{Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::cluster::role::{Role, Turn};
use crate::cluster::state::volume::{Transition, VolumeRecord, Watermark};
use crate::mirror::{
    Coverage, FromReplica, Held, Mirror, MirrorEvent, ReplicaLink, Requirement, Resync, ResyncProgress,
};
use crate::store::interface::{BlockStore, ChangeLog, SnapshotStore};
use crate::volume::device::DeviceGeometry;
use crate::volume::mutant as volume_mutant;
use crate::volume::snapshot::SnapshotRecord;
use crate::volume::{Volume, VolumeParameters, VolumeServices};

/// A node's part in a volume.
pub(super) struct Part<S: BlockStore + 'static> {
    pub(super) id: VolumeId,
    pub(super) node: Weak<Shared<S>>,
    pub(super) runtime: RuntimeHandle,
    pub(super) role: Rc<RefCell<Role>>,
    pub(super) record: Rc<RefCell<VolumeRecord>>,
    pub(super) serving: RefCell<Option<Serving<S>>>,
    pub(super) promised: Cell<u32>,
    pub(super) saved_promise: Cell<u32>,
    /// The newest version in the store when the node was started.
    pub(super) recovered: Version,
    pub(super) turn: Mutex<()>,
    pub(super) changed: Signal,
    pub(super) proposed_at: Cell<Option<Instant>>,
    pub(super) peer_missed_since: Cell<Option<Instant>>,
    /// That the volume is to be handed over, while this node is its primary.
    pub(super) hand_over: RefCell<Option<HandOver>>,
    /// Since when the volume is on both nodes, while it is.
    pub(super) on_both_since: Cell<Option<Instant>>,
    /// Why this node can't serve the volume, for people, when that is so.
    pub(super) problem: RefCell<Option<String>>,
    pub(super) has_ended: Cell<bool>,
    pub(super) told_settled_at: Cell<Instant>,
}

/// While this node is the volume's primary.
pub(super) struct Serving<S: BlockStore + 'static> {
    pub(super) mirror: Mirror<S>,
    pub(super) permit: Rc<Permit>,
    pub(super) volume: Volume<ServedStore<S>>,
    pub(super) resync: Rc<Resync<S, ServedStore<S>>>,
    pub(super) since: Instant,
    pub(super) is_attached: bool,
    /// That the replica cannot go on in this epoch, when it has said so.
    pub(super) refused: Option<Refused>,
    /// When a stream was begun over the present link.
    pub(super) tried_at: Instant,
    /// A resync is under way.
    pub(super) is_resyncing: Rc<Cell<bool>>,
    /// Both may be in doubt about what was in flight when this epoch began.
    pub(super) is_unsettled: bool,
}

/// What a replica has said.
pub(super) struct Refused {
    pub(super) at: Instant,
    /// Why, if that is its last word.
    pub(super) last_word: Option<String>,
}

/// That a volume is to be handed over.
pub(super) struct HandOver {
    /// For people.
    pub(super) reason: String,
    pub(super) asked_at: Instant,
    pub(super) tried_at: Option<Instant>,
}

/// How a volume is on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartReport {
    /// What the node does with it.
    pub state: PartState,
    /// The epoch that the node has last seen.
    pub epoch: u32,
    /// How far the peer is brought up to date, while it is.
    pub resync: Option<ResyncProgress>,
    /// The last consistent state of this node, kept as a snapshot while it is brought up to date: the version of that
    /// state, and the record, which says when the resync began.
    pub kept_state: Option<(Version, SnapshotRecord)>,
    /// Why this node can't serve it, for people, when that is so.
    pub problem: Option<String>,
}

/// Why a node can't be made primary by force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForceRefused {
    /// There is no such mirrored volume.
    #[error("this node has no such mirrored volume")]
    Unknown,
    /// It has what was acknowledged.
    #[error(
        "this node has everything that was acknowledged: it serves the volume by itself as soon as it may"
    )]
    NotNeeded,
    /// The node that serves, or may, is there.
    #[error("the other node can be reached: it has what this one lacks")]
    PeerThere,
    /// The store or the state directory.
    #[error("the pool or the state directory of this node does not take it")]
    Store,
}

/// What a node does with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartState {
    /// Serves it.
    Serving,
    /// Is its primary, and waits for its lease or for the peer before hosts are let in.
    Waiting,
    /// Holds all that was acknowledged, and takes what the primary writes.
    InSync,
    /// Lacks something.
    Behind,
}

impl<S: SnapshotStore + ChangeLog + 'static> Part<S> {
    /// Starts the task of a part.
    pub(super) fn start(node: &Rc<Shared<S>>, record: &VolumeRecord) -> Rc<Self> {
        let services = &node.services;
        let promised = services.surroundings.promised(record.id);
        let part = Rc::new(Self {
            id: record.id,
            node: Rc::downgrade(node),
            runtime: services.runtime.clone(),
            role: Rc::new(RefCell::new(Role::new(services.own.clone(), services.life, promised))),
            record: Rc::new(RefCell::new(record.clone())),
            serving: RefCell::new(None),
            promised: Cell::new(promised),
            saved_promise: Cell::new(promised),
            recovered: (services.newest)(record.id),
            turn: Mutex::default(),
            changed: Signal::default(),
            proposed_at: Cell::new(None),
            peer_missed_since: Cell::new(None),
            hand_over: RefCell::default(),
            on_both_since: Cell::new(None),
            problem: RefCell::default(),
            has_ended: Cell::new(false),
            told_settled_at: Cell::new(services.runtime.now()),
        });
        services.runtime.spawn(Box::pin(part.clone().run()));
        part
    }

    async fn run(self: Rc<Self>) {
        while !self.has_ended.get() {
            let changed = self.changed.wait();
            let Some(node) = self.node.upgrade() else { return };
            let record = self.record.borrow().clone();
            let turn = self.role.borrow_mut().handle_record(&record);
            if turn != Turn::Stay {
                self.proposed_at.set(None);
                self.problem.take();
            }
            match turn {
                Turn::Stay => {}
                Turn::Begin { epoch, is_settled } => self.begin(&node, &record, epoch, is_settled).await,
                Turn::Continue { epoch } => self.go_on(&node, &record, epoch).await,
                Turn::Follow { epoch } => self.follow(epoch).await,
            }
            self.let_hosts_in(&node).await;
            self.tell_settled(&node);
            self.decide(&node).await;
            let tick = node.services.patience.tick;
            drop(node);
            select(changed, self.runtime.sleep(tick)).await;
        }
    }

    // What comes from outside.

    pub(super) fn take_record(&self, record: &VolumeRecord) {
        if *self.record.borrow() != *record {
            if self.record.borrow().primary != record.primary {
                self.hand_over.take(); // done, or overtaken
            }
            *self.record.borrow_mut() = record.clone();
            self.look_again();
        }
    }

    pub(super) fn look_again(&self) {
        let is_permitted = self.serving.borrow().as_ref().is_some_and(|serving| {
            serving.permit.look_again();
            serving.is_attached && serving.permit.is_given()
        });
        if let Some(node) = self.node.upgrade().filter(|_| is_permitted) {
            node.services.hosts.permitted(self.id);
        }
        self.changed.notify();
    }

    pub(super) fn connected(&self, link: Rc<dyn ReplicaLink>) {
        if let Some(serving) = &mut *self.serving.borrow_mut() {
            serving.refused = None;
            serving.tried_at = self.runtime.now();
            serving.mirror.connected(link);
        }
        self.changed.notify();
    }

    pub(super) fn disconnected(&self) {
        if let Some(serving) = &*self.serving.borrow() {
            serving.mirror.disconnected();
        }
        self.changed.notify();
    }

    pub(super) fn received(&self, answer: FromReplica) {
        let mirror = self.serving.borrow().as_ref().map(|serving| serving.mirror.clone());
        let event = mirror.and_then(|mirror| mirror.received(answer));
        let Some(event) = event else { return };
        if let Some(serving) = &mut *self.serving.borrow_mut() {
            serving.refused = match event {
                MirrorEvent::ReplicaLost { reason } => {
                    Some(Refused { at: self.runtime.now(), last_word: Some(reason.to_string()) })
                }
                // This node may be deposed, or learns of its own next epoch later than the replica.
                MirrorEvent::Fenced { .. } => Some(Refused { at: self.runtime.now(), last_word: None }),
                MirrorEvent::Streaming | MirrorEvent::Behind | MirrorEvent::Whole => None,
            };
        }
        self.changed.notify();
    }

    /// Its mirror, while this node serves it.
    pub(super) fn mirror(&self) -> Option<Mirror<S>> {
        self.serving.borrow().as_ref().map(|serving| serving.mirror.clone())
    }

    /// False when the volume can't be handed over as things are.
    pub(super) fn hand_over(&self, reason: &str) -> bool {
        let is_both = self.record.borrow().in_sync.len() == 2;
        let is_attached = self.serving.borrow().as_ref().is_some_and(|serving| serving.is_attached);
        let stores = self.node.upgrade().map(|node| node.services.surroundings.stores());
        let is_possible = is_both && is_attached && stores.is_some_and(|(_, peer)| peer == StoreHealth::Well);
        if is_possible {
            let mut hand_over = self.hand_over.borrow_mut();
            let tried_at = hand_over.as_ref().and_then(|earlier| earlier.tried_at);
            let (reason, asked_at) = (reason.to_owned(), self.runtime.now());
            *hand_over = Some(HandOver { reason, asked_at, tried_at });
            self.changed.notify();
        }
        is_possible
    }

    /// The volume was deleted.
    pub(super) async fn end(&self) {
        let _turn = self.turn.lock().await;
        self.stop_serving().await;
        self.has_ended.set(true);
        self.changed.notify();
    }

    pub(super) fn report(&self) -> PartReport {
        let record = self.record.borrow();
        let serving = self.serving.borrow();
        let own = self.node.upgrade().map(|node| node.services.own.clone());
        let state = match &*serving {
            Some(_) if self.may_serve() => PartState::Serving,
            Some(_) => PartState::Waiting,
            None if own.is_some_and(|own| record.in_sync.contains(&own)) => PartState::InSync,
            None => PartState::Behind,
        };
        let resync = serving.as_ref().filter(|serving| serving.is_resyncing.get());
        PartReport {
            state,
            epoch: record.epoch,
            resync: resync.map(|serving| serving.resync.progress()),
            kept_state: self.node.upgrade().and_then(|node| node.replicas.kept_state(self.id)),
            problem: self.problem.borrow().clone(),
        }
    }

    /// What has been acknowledged, when that is more than is on record.
    pub(super) fn watermark(&self) -> Option<Watermark> {
        let (record, serving) = (self.record.borrow(), self.serving.borrow());
        let acknowledged = serving.as_ref().filter(|serving| serving.is_attached)?.mirror.acknowledged();
        let watermark = Watermark::from(acknowledged);
        (watermark.epoch <= record.epoch && watermark > record.watermark).then_some(watermark)
    }

    /// What this node lacks of what was acknowledged, for people: its disks have lost what they had confirmed.
    pub(super) fn lost_tail(&self, record: &VolumeRecord, held: Held) -> Option<String> {
        let mark = Version::from(record.watermark);
        if held.latest >= mark {
            return None;
        }
        Some(format!(
            "its disks have lost writes that they had confirmed: they have version {}/{} of the volume, and {}/{} \
             had been acknowledged",
            held.latest.epoch, held.latest.sequence, mark.epoch, mark.sequence
        ))
    }

    // The fence.

    pub(super) fn promised(&self) -> u32 {
        self.promised.get()
    }

    /// Nothing older is taken from now on.
    pub(super) fn raise_promise(&self, epoch: u32) {
        self.promised.set(self.promised.get().max(epoch));
    }

    /// Ends what this node does in epochs before `epoch`, and saves the promise.
    pub(super) async fn promise(&self, epoch: u32) -> bool {
        self.raise_promise(epoch);
        let _turn = self.turn.lock().await;
        let serves_older = self.role.borrow().serving().is_none_or(|serving| serving < epoch);
        if serves_older && !mutant::is(Mutant::ServeAfterFollow) {
            self.stop_serving().await;
        }
        self.save_promise().await
    }

    /// What the store has, when nothing of this node's own is on its way to it.
    pub(super) fn held(&self) -> Held {
        let newest = self.node.upgrade().map(|node| (node.services.newest)(self.id));
        // What both had when they were stopped on purpose is there as a whole, if nothing came after it.
        let certified = self.record.borrow().certified_through();
        let is_whole = certified.is_some_and(|through| self.recovered.sequence <= through);
        match newest.filter(|newest| *newest != self.recovered) {
            Some(newest) => Held::all_through(newest),
            None if is_whole => Held::all_through(self.recovered),
            None => Held::recovered(self.recovered),
        }
    }

    pub(super) fn may_serve(&self) -> bool {
        self.serving.borrow().as_ref().is_some_and(|serving| serving.is_attached && serving.permit.is_given())
    }

    pub(super) fn is_level(&self) -> bool {
        self.serving.borrow().as_ref().is_some_and(|serving| serving.is_attached && serving.mirror.is_level())
    }

    async fn save_promise(&self) -> bool {
        let promised = self.promised.get();
        if self.saved_promise.get() >= promised {
            return true;
        }
        let Some(node) = self.node.upgrade() else { return false };
        if mutant::is(Mutant::PromiseNotSaved) {
            return true;
        }
        let is_saved = node.services.surroundings.save_promise(self.id, promised).await;
        if is_saved {
            self.saved_promise.set(self.saved_promise.get().max(promised));
        }
        is_saved
    }

    // What a record asks for.

    /// Opens the volume in a new epoch.
    async fn begin(&self, node: &Rc<Shared<S>>, record: &VolumeRecord, epoch: u32, is_settled: bool) {
        let _turn = self.turn.lock().await;
        self.raise_promise(epoch);
        self.stop_serving().await;
        if self.promised.get() > epoch {
            return; // a newer epoch is on its way here
        }
        let refuse = |why: &str| self.complain(node, record, why);
        if !self.save_promise().await {
            return refuse("the state directory does not take the epoch");
        }
        let Ok(held) = node.replicas.end(self.id).await else { return refuse("the pool is offline") };
        let is_whole = node.services.records.coverage(self.id) == Coverage::Whole;
        let is_forced = record.began_by == Some(Transition::Force);
        if let Some(lost) = self.lost_tail(record, held) {
            return refuse(&lost);
        }
        let may_go_on = is_whole || (is_forced && node.replicas.adopt(self.id).await);
        if !may_go_on {
            return refuse("this node does not have everything of it");
        }
        let services = &node.services;
        let (store, runtime) = (services.store.clone(), services.runtime.clone());
        let is_both = record.in_sync.len() == 2;
        let needs_both = is_both && !mutant::is(Mutant::BeginAlone);
        let requirement = if needs_both { Requirement::Both } else { Requirement::Local };
        let mirror = Mirror::new(store.clone(), runtime.clone(), self.id, epoch, held, requirement);
        let (role, newest) = (self.role.clone(), self.record.clone());
        let surroundings = services.surroundings.clone();
        let permit = Rc::new(Permit::new(move || {
            let has_lease = surroundings.has_lease() || mutant::is(Mutant::LeaseIgnored);
            // A lease may be for the state that deposes this node, and come before this part has turned to it.
            let is_present = role.borrow().serving() == Some(newest.borrow().epoch)
                || mutant::is(Mutant::LeaseForNewerRecord);
            is_present && role.borrow().may_serve(has_lease)
        }));
        let first = record.epoch_starts.get(&epoch).copied().unwrap_or(0);
        let parameters = VolumeParameters {
            id: self.id,
            epoch,
            next_sequence: first.max(held.latest.sequence + 1),
            geometry: DeviceGeometry::of_bytes(record.size_bytes, record.sector.bytes()),
        };
        let served = ServedStore::Mirrored(mirror.clone(), permit.clone());
        let pool = services.buffers.clone();
        let volume = Volume::open(
            parameters,
            VolumeServices { store: Rc::new(served), runtime: runtime.clone(), pool },
        );
        let resync = Resync::new(store, volume.clone(), runtime.clone());
        let resync = Rc::new(resync.paced_by(node.resync_pace.clone()));
        if let Some(link) = node.link() {
            mirror.connected(link);
        }
        *self.serving.borrow_mut() = Some(Serving {
            mirror,
            permit,
            volume,
            resync,
            since: self.runtime.now(),
            is_attached: false,
            refused: None,
            tried_at: self.runtime.now(),
            is_resyncing: Rc::default(),
            is_unsettled: is_both && !is_settled,
        });
        self.changed.notify();
    }

    /// Says once why this node can't serve the volume.
    pub(super) fn complain(&self, node: &Rc<Shared<S>>, record: &VolumeRecord, why: &str) {
        if self.problem.replace(Some(why.to_owned())).as_deref() != Some(why) {
            let message = format!("node {} cannot serve volume {}: {why}", node.services.own, record.name);
            node.services.surroundings.event(record, message);
        }
    }

    /// Goes on serving in a newer epoch.
    async fn go_on(&self, node: &Rc<Shared<S>>, record: &VolumeRecord, epoch: u32) {
        let is_both = record.in_sync.len() == 2;
        let needs_both = is_both && !mutant::is(Mutant::GoOnAlone);
        let requirement = if needs_both { Requirement::Both } else { Requirement::Local };
        self.raise_promise(epoch);
        if let Some(serving) = &mut *self.serving.borrow_mut() {
            serving.mirror.next_epoch(epoch, requirement);
            serving.volume.begin_epoch(epoch);
            serving.is_unsettled &= is_both;
            serving.refused = None;
            if let Some(link) = node.link().filter(|_| !serving.mirror.is_connected()) {
                serving.mirror.connected(link);
            }
            serving.permit.look_again();
        }
        let _turn = self.turn.lock().await;
        if !self.save_promise().await {
            self.stop_serving().await; // the state directory has failed: somebody else has to serve
        }
    }

    /// Does not serve. What this node had in flight is over before anything newer is taken (I7).
    async fn follow(&self, epoch: u32) {
        self.raise_promise(epoch);
        let _turn = self.turn.lock().await;
        if !mutant::is(Mutant::ServeAfterFollow) {
            self.stop_serving().await;
        }
        // Without a saved promise nothing of the epoch is taken: `promise` is asked again by the stream.
        let _ = self.save_promise().await;
    }

    /// Ends service, and waits until nothing of it is on its way to the disks. `turn` is held.
    pub(super) async fn stop_serving(&self) {
        let Some(node) = self.node.upgrade() else { return };
        let ended = self.serving.borrow_mut().take();
        let Some(ended) = ended else { return };
        // No command begins from here on, and none that the end of the mirror cuts off is answered as an error of
        // the medium.
        let detached = ended.is_attached.then(|| node.services.hosts.detach(self.id));
        ended.mirror.close();
        ended.permit.end();
        if let Some(detached) = detached {
            detached.await;
        }
        if !mutant::is(Mutant::NoDrain) {
            ended.volume.close().await;
            // An error means that the store takes nothing any more.
            let _ = node.services.store.flush().await;
        }
    }

    /// Lets hosts in as soon as they may come.
    async fn let_hosts_in(&self, node: &Rc<Shared<S>>) {
        // A promise made meanwhile waits: else it would let out hosts who are not in yet.
        let _turn = self.turn.lock().await;
        let volume = match &*self.serving.borrow() {
            Some(serving)
                if !serving.is_attached
                    && !node.is_stopping(self.runtime.now())
                    && serving.permit.is_given()
                    && (!serving.is_unsettled
                        || serving.mirror.is_level()
                        || mutant::is(Mutant::AttachUnsettled)) =>
            {
                serving.volume.clone()
            }
            _ => return,
        };
        let record = self.record.borrow().clone();
        let is_attached = match node.services.hosts.attach(&record, volume.clone()).await {
            Ok(()) => {
                if !volume_mutant::is(volume_mutant::Mutant::RollbackForgotten) {
                    volume.go_on_with_rollback();
                }
                true
            }
            Err(why) => {
                self.complain(node, &record, &why);
                false
            }
        };
        if is_attached {
            self.problem.take();
        }
        if let Some(serving) = &mut *self.serving.borrow_mut() {
            serving.is_attached = is_attached;
            serving.is_unsettled = false;
        }
    }

    /// Lets both stores forget the holes that both have.
    fn tell_settled(&self, node: &Rc<Shared<S>>) {
        let now = self.runtime.now();
        if now.since(self.told_settled_at.get()) < node.services.patience.settled {
            return;
        }
        self.told_settled_at.set(now);
        let settled = self.serving.borrow().as_ref().and_then(|serving| {
            let latest = serving.volume.latest_version();
            serving.mirror.tell_settled().or(mutant::is(Mutant::SettledTooEarly).then_some(latest))
        });
        if let Some(settled) = settled {
            node.services.records.settled(self.id, settled);
        }
    }
}
