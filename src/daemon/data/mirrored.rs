//! The mirrored volumes of a node: their logical units, which every node of the pair presents, and the node's part
//! in them ([`crate::pair`]), which gives the one that serves its device.
//!
//! Guarantees: a state of the control plane is taken in order, and counts for the lease only when the parts have
//! it; a unit gets its device with the reservations of the newest state. Left to others: what the parts do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;

use super::faces::{Face, Faces, Presented, reservations};
use super::pool::{Pool, PoolError};
use super::volumes::Volumes;
use crate::base::buffer::BufferPool;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::{Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::volume::{Redundancy, Transition, VolumeRecord};
use crate::cluster::state::{Command, ControlState};
use crate::daemon::engine::VolumeSpec;
use crate::daemon::event_log::EventReporter;
use crate::daemon::floating::{FloatingAddresses, FloatingConfig, is_chosen};
use crate::daemon::listen::listen;
use crate::daemon::state_directory::StateDirectory;
use crate::mirror::{Coverage, Records};
use crate::pair::{Node, NodeServices, Patience, Surroundings};
use crate::peer::hello::Introduction;
use crate::peer::mirror_stream::{MirrorConnections, MirrorSetup};
use crate::peer::quorum::{QuorumHandle, clock_ms, unix_ms};
use crate::peer::settings::PeerSettings;
use crate::peer::tls::Keys;
use crate::scsi::asymmetric_access::{AccessAuthority, ActivationFailed};
use crate::scsi::forward::front::FrontUnit;
use crate::volume::device::DeviceGeometry;

/// What a node of a pair is started with.
pub struct PairSetup {
    /// Name of the node.
    pub own: NodeName,
    /// Name of the other one.
    pub peer: NodeName,
    /// The quorum.
    pub quorum: QuorumHandle,
    /// Where promises are kept.
    pub records: Arc<StateDirectory>,
    /// What the data thread needs to know of a volume.
    pub spec: fn(&ControlState, &VolumeRecord) -> VolumeSpec,
}

/// The mirrored volumes of a node.
pub struct Mirrored<P: Pool> {
    own: NodeName,
    peer: NodeName,
    events: EventReporter,
    own_group: u16,
    node: Node<P>,
    volumes: Rc<Volumes<P>>,
    pool: Rc<P>,
    records: Arc<StateDirectory>,
    quorum: QuorumHandle,
    spec: fn(&ControlState, &VolumeRecord) -> VolumeSpec,
    /// Through which index of the control state the parts know it.
    seen_index: Rc<Cell<u64>>,
    /// How the store was when it was last looked at.
    health: Rc<Cell<StoreHealth>>,
    /// The node is about to stop: its store counts as gone.
    is_leaving: Cell<bool>,
    has_given_back: Cell<bool>,
    /// The greatest number of a volume that was there before this node's records were, once it is known.
    older_volumes: Cell<Option<u32>>,
    /// Volumes that this node was in sync with, by the control state, and whose data was gone when it was started.
    lost: RefCell<BTreeSet<VolumeId>>,
    /// Volumes that could not be presented yet, clones that wait for what they are made of among them.
    awaited: RefCell<BTreeSet<VolumeId>>,
    faces: Rc<Faces<P>>,
    floating: RefCell<Option<Floating>>,
}

/// Ends the sessions at these addresses, and lets none begin there.
pub type RefuseAt = Box<dyn Fn(&[IpAddr])>;

/// Addresses that float.
struct Floating {
    addresses: FloatingAddresses,
    refuse_at: RefuseAt,
    /// Since when it is done, before the addresses are given up.
    refusing_since: Option<Instant>,
}

impl<P: Pool> Mirrored<P> {
    /// Starts with nothing known and nothing served.
    pub fn new(
        setup: PairSetup,
        own_group: u16,
        volumes: Rc<Volumes<P>>,
        runtime: RuntimeHandle,
        buffers: BufferPool,
        events: EventReporter,
    ) -> Rc<Self> {
        let PairSetup { own, peer, quorum, records, spec } = setup;
        let pool = volumes.pool().clone();
        let seen_index = Rc::new(Cell::new(0));
        let health = Rc::new(Cell::new(StoreHealth::Well));
        let faces = Faces::new(own.clone(), runtime.clone());
        let around = Around {
            own: own.clone(),
            peer: peer.clone(),
            quorum: quorum.clone(),
            records: records.clone(),
            seen_index: seen_index.clone(),
            health: health.clone(),
            events: events.clone(),
        };
        let other = peer.clone();
        let newest = {
            let pool = pool.clone();
            move |id| pool.newest(id)
        };
        let node = Node::new(NodeServices {
            own: own.clone(),
            peer,
            life: quorum.life(),
            store: pool.clone(),
            records: Rc::new(Kept { pool: pool.clone() }),
            newest: Box::new(newest),
            runtime,
            buffers,
            surroundings: Rc::new(around),
            hosts: Rc::new(Presented { faces: faces.clone(), pool: pool.clone() }),
            patience: Patience::LAN,
        });
        let is_leaving = Cell::new(false);
        Rc::new(Self {
            own,
            peer: other,
            events,
            own_group,
            node,
            volumes,
            pool,
            records,
            quorum,
            spec,
            seen_index,
            health,
            is_leaving,
            has_given_back: Cell::new(false),
            older_volumes: Cell::new(None),
            lost: RefCell::default(),
            awaited: RefCell::default(),
            faces,
            floating: RefCell::default(),
        })
    }

    /// Connects the two nodes' data threads, for as long as the result is kept.
    ///
    /// # Errors
    /// Why that can't be; the text says what to do.
    pub fn connect(&self, settings: &PeerSettings) -> Result<MirrorConnections, String> {
        let keys = Keys::load(&settings.tls_dir, settings.cluster_uuid).map_err(|error| error.to_string())?;
        let keys = keys.knowing(self.quorum.watch());
        let (events, other) = (self.events.clone(), self.peer.clone());
        let tell_refused = Arc::new(move |service: &'static str, reason: &str| {
            let message = format!("node {other} and this node refuse each other's {service}: {reason}");
            events.warning("member-refused", message, &[("member", other.to_string())]);
        });
        let peer = settings.peers.iter().find(|peer| !peer.witness);
        let listeners = settings.mirror_listen().into_iter().map(|address| {
            listen(address, "mirrors of the other node", "pair.mirror_listen")
                .map_err(|error| error.to_string())
        });
        let setup = MirrorSetup {
            introduction: Introduction {
                cluster: settings.cluster_uuid,
                name: self.own.clone(),
                kind: SeatKind::Node,
                member: self.quorum.status().view.member,
                speaks: settings.speaks,
            },
            keys,
            peer: peer.cloned().ok_or("pair.peers names no other node")?,
            listeners: listeners.collect::<Result<_, _>>()?,
            tell_refused,
        };
        let forwards = Rc::new((self.faces.front.clone(), self.faces.service.clone()));
        MirrorConnections::start(setup, Rc::new(self.node.clone()), Some(forwards))
            .map_err(|error| error.to_string())
    }

    /// The node is stopping: no command waits for the other node any more.
    pub fn stop_forwarding(&self) {
        self.floating.take();
        self.faces.front.close();
    }

    /// The node's part in the volumes.
    #[must_use]
    pub fn node(&self) -> &Node<P> {
        &self.node
    }

    /// Follows the control state, the lease and the reachability of the peer until the quorum has ended.
    pub async fn follow(self: Rc<Self>) {
        let mut told_at = tokio::time::Instant::now();
        let (mut states, mut statuses) = (self.quorum.watch(), self.quorum.watch_status());
        loop {
            let state = states.borrow_and_update().clone();
            if state.applied_index() > self.seen_index.get() || !self.awaited.borrow().is_empty() {
                self.take_state(&state).await;
            }
            self.tell_health().await;
            self.node.look_again();
            if told_at.elapsed() >= WATERMARK_PERIOD {
                told_at = tokio::time::Instant::now();
                self.record_watermarks();
            }
            self.faces.tell_all();
            self.tick_floating(&state);
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                changed = statuses.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Patience::LAN.tick) => {}
            }
        }
    }

    /// Puts on record what was acknowledged, so that a node whose disks lose it is found out.
    fn record_watermarks(&self) {
        let watermarks = self.node.watermarks();
        if !watermarks.is_empty() {
            let quorum = self.quorum.clone();
            // One that comes to nothing is followed by a newer one.
            tokio::task::spawn_local(
                async move { quorum.apply(Command::RecordWatermarks { watermarks }).await },
            );
        }
    }

    /// Has this node hold floating addresses from now on, whenever it is the one to do so.
    pub fn hold_floating(&self, config: FloatingConfig, refuse_at: RefuseAt) {
        let addresses = FloatingAddresses::new(config);
        *self.floating.borrow_mut() = Some(Floating { addresses, refuse_at, refusing_since: None });
    }

    fn tick_floating(&self, state: &ControlState) {
        if let Some(floating) = &mut *self.floating.borrow_mut() {
            let serves = || self.faces.known.borrow().keys().any(|volume| self.node.may_serve(*volume));
            // Whoever may not serve knows the state late, perhaps: the other node may be the one by now.
            let has_right = self.quorum.lease().is_held(clock_ms(), self.seen_index.get()) || serves();
            let may_hold = has_right && !self.is_leaving.get() && is_chosen(state, &self.own);
            if !may_hold && floating.addresses.are_held() {
                // Sessions' end is said while the address is there.
                let refusing_since = *floating.refusing_since.get_or_insert_with(|| {
                    (floating.refuse_at)(&floating.addresses.addresses());
                    Instant::now()
                });
                if refusing_since.elapsed() < FAREWELL {
                    return;
                }
            }
            if may_hold && floating.refusing_since.take().is_some() {
                (floating.refuse_at)(&[]);
            }
            floating.addresses.tick(may_hold, Instant::now());
        }
    }

    /// Tells everybody how the store is. When it is gone the lease is given back, so that nobody has to wait for its
    /// end.
    async fn tell_health(&self) {
        let of_pool = self.pool.health();
        let is_ending = self.is_leaving.get() || of_pool == StoreHealth::Gone;
        // Whose data was lost is nobody to wait for either: once the peer goes on alone, it is brought up to date.
        let has_lost = !self.lost.borrow().is_empty();
        let health = if is_ending || has_lost { StoreHealth::Gone } else { of_pool };
        let before = self.health.replace(health);
        if health != before {
            tracing::warn!(?before, now = ?health, "the store");
            self.quorum.lease().set_store_health(health);
        }
        // Given back for good, in this life of the node.
        if is_ending && !self.has_given_back.replace(true) {
            self.quorum.give_back().await;
        }
    }

    async fn take_state(self: &Rc<Self>, state: &ControlState) {
        if self.older_volumes.get().is_none() {
            let present = state.volumes().map(|record| record.id.0).max().unwrap_or(0);
            match self.records.older_volumes(present) {
                Ok(older) => self.older_volumes.set(Some(older)),
                Err(error) => tracing::error!(%error, "volumes count as older than the state directory"),
            }
        }
        let records = state.volumes().filter(|record| record.redundancy == Redundancy::Mirrored);
        for record in records {
            let is_known = self.faces.known.borrow().contains_key(&record.id);
            if !is_known && let Err(error) = self.present(state, record).await {
                if self.awaited.borrow_mut().insert(record.id) {
                    tracing::error!(volume = %record.name, error, "cannot be presented");
                }
                continue;
            }
            self.awaited.borrow_mut().remove(&record.id);
            self.update(state, record);
        }
        let gone: Vec<VolumeId> = {
            let faces = self.faces.known.borrow();
            faces.keys().copied().filter(|id| state.volume_by_id(*id).is_none()).collect()
        };
        for id in gone {
            self.faces.front.remove(id);
            self.faces.service.stop(id);
            self.faces.known.borrow_mut().remove(&id);
        }
        self.awaited.borrow_mut().retain(|id| state.volume_by_id(*id).is_some());
        self.lost
            .borrow_mut()
            .retain(|id| state.volume_by_id(*id).is_some_and(|record| record.in_sync.contains(&self.own)));
        self.node.handle_state(state);
        self.seen_index.set(state.applied_index());
    }

    /// Makes a volume known to the pool, and its logical unit to initiators.
    async fn present(self: &Rc<Self>, state: &ControlState, record: &VolumeRecord) -> Result<(), String> {
        // What was never served lacks nothing. What is new to a pool that joins an older volume lacks everything. So does
        // what is new to the pool of a node that has promised an epoch of the volume before: its disks are others
        // than those that it had then. And so does what was served before the node's records were there: the machine
        // has taken another one's place. (A newcomer's first state is a snapshot that names it, never an old entry.)
        let is_older = self.older_volumes.get().is_none_or(|older| record.id.0 <= older);
        let is_promised = self.records.promise(record.id.0).map_or(true, |promised| promised > 0);
        // A clone that was made while this node lacked something of what it is made of is behind from the beginning.
        let is_member = record.in_sync.contains(&self.own);
        let is_new = !is_promised && is_member && (record.epoch == 0 || (record.epoch == 1 && !is_older));
        let coverage = if is_new { Coverage::Whole } else { Coverage::through(Version::default()) };
        // What an operator has made the volume, though this node lacked something of it, is all of it; only that may not be on
        // record here yet.
        let is_decreed =
            self.pool.volume_record(record.id).is_some() && record.began_by == Some(Transition::Force);
        let created = match self.origin(state, record) {
            Ok(origin) => self.pool.create_replica(record.id, &coverage.encode(), origin).await,
            Err(why) => Err(PoolError::Failed(why)),
        };
        let is_whole = Kept { pool: self.pool.clone() }.coverage(record.id) == Coverage::Whole;
        if !is_whole && is_member && !is_decreed && self.lost.borrow_mut().insert(record.id) {
            tracing::warn!(volume = %record.name, "the pool does not have what this node was in sync with");
        }
        created.map_err(|error| error.to_string())?;
        let saver_epoch = Rc::new(Cell::new(record.epoch));
        let authority =
            Authority { own_group: self.own_group, volume: record.id, mirrored: Rc::downgrade(self) };
        let spec = (self.spec)(state, record);
        let unit = self.volumes.present(spec, saver_epoch.clone(), Rc::new(authority));
        let forwarding: Rc<dyn FrontUnit> = unit.clone();
        self.faces.front.add(record.id, Rc::downgrade(&forwarding));
        let face = Face {
            unit,
            saver_epoch,
            record: record.clone(),
            groups: Vec::new(),
            told: Vec::new(),
            unreached: Instant::now(),
        };
        self.faces.known.borrow_mut().insert(record.id, face);
        Ok(())
    }

    /// What a clone that is new to the pool is made of. That has to be whole here before: from then on what its snapshot
    /// shows does not change any more, but to what the other node has.
    fn origin(
        &self,
        state: &ControlState,
        record: &VolumeRecord,
    ) -> Result<Option<(VolumeId, Version)>, String> {
        let Some(origin) = &record.origin else { return Ok(None) };
        let is_known = self.pool.volume_record(record.id).is_some();
        let kept = Kept { pool: self.pool.clone() };
        let is_whole = state.volume_by_id(origin.volume).is_some_and(|of| of.in_sync.contains(&self.own))
            && kept.coverage(origin.volume) == Coverage::Whole;
        if !is_known && !is_whole {
            return Err("what it is a clone of is not up to date on this node".to_owned());
        }
        Ok(Some((origin.volume, origin.version())))
    }

    /// Tells a unit what has changed.
    fn update(&self, state: &ControlState, record: &VolumeRecord) {
        {
            let mut faces = self.faces.known.borrow_mut();
            let Some(face) = faces.get_mut(&record.id) else { return };
            face.groups = state.nodes().map(|(name, node)| (name.clone(), node.portal_group_tag)).collect();
            face.saver_epoch.set(record.epoch);
            if face.record.primary != record.primary {
                face.unreached = Instant::now();
            }
            face.record = record.clone();
            let spec = (self.spec)(state, record);
            face.unit.rate_limiter().set(spec.limits);
            self.pool.set_space_rule(record.id, spec.space);
            if !face.unit.has_device() {
                face.unit.set_geometry(DeviceGeometry::of_bytes(record.size_bytes, record.sector.bytes()));
                if let Ok(saved) = reservations(record)
                    && let Err(error) = face.unit.learn_reservations(&saved)
                {
                    tracing::error!(volume = %record.name, %error, "reservations cannot be read");
                }
            }
        }
        self.faces.tell(record.id);
    }

    /// Hands what this node serves over to the other one, as far as that has everything of it, and lets that go on
    /// alone with all the rest, so that hosts need not wait for the end of a lease or for an answer of this node;
    /// bounded in time.
    pub async fn leave(&self) {
        let volumes: Vec<VolumeId> = self.faces.known.borrow().keys().copied().collect();
        let reason = format!("node {} stops", self.own);
        let leaving: Vec<VolumeId> =
            volumes.iter().copied().filter(|id| self.node.hand_over(*id, &reason)).collect();
        self.until_none(&leaving, |record| record.primary == self.own).await;
        self.is_leaving.set(true);
        self.tell_health().await;
        let awaits_peer = |record: &VolumeRecord| {
            !record.is_certified() && record.primary != self.own && record.in_sync.contains(&self.own)
        };
        self.until_none(&volumes, awaits_peer).await;
    }

    async fn until_none(&self, volumes: &[VolumeId], is_so: impl Fn(&VolumeRecord) -> bool) {
        let is_peer_there =
            || self.quorum.status().peers.iter().any(|peer| peer.kind == SeatKind::Node && peer.is_reachable);
        for _ in 0..LONGEST_LEAVE_TICKS {
            let state = self.quorum.state();
            let mut records = volumes.iter().filter_map(|id| state.volume_by_id(*id));
            if !is_peer_there() || !records.any(&is_so) {
                return;
            }
            tokio::time::sleep(LEAVE_TICK).await;
        }
    }
}

/// Who decides about access to a mirrored volume's logical unit.
struct Authority<P: Pool> {
    own_group: u16,
    volume: VolumeId,
    mirrored: Weak<Mirrored<P>>,
}

impl<P: Pool> AccessAuthority for Authority<P> {
    fn is_local(&self, portal_group: u16) -> bool {
        portal_group == self.own_group
    }

    fn may_serve(&self) -> bool {
        self.mirrored.upgrade().is_some_and(|mirrored| mirrored.node.may_serve(self.volume))
    }

    fn is_movable(&self) -> bool {
        true
    }

    fn activate(&self, portal_group: u16) -> LocalBoxFuture<'_, Result<(), ActivationFailed>> {
        let failed = |why: &str| Err(ActivationFailed(why.to_owned()));
        Box::pin(async move {
            let Some(mirrored) = self.mirrored.upgrade() else { return failed("this node is stopping") };
            if portal_group == self.own_group {
                return match self.may_serve() {
                    true => Ok(()),
                    false => failed("only the node that serves it can move it: ask through its ports"),
                };
            }
            if !mirrored.node.hand_over(self.volume, "a host asked for it") {
                return failed("the volume is not in sync on both nodes");
            }
            let moved = |state: &ControlState| {
                let record = state.volume_by_id(self.volume);
                record.is_none_or(|record| record.primary != mirrored.own)
            };
            match mirrored.quorum.state_becomes(LONGEST_MOVE, moved).await {
                true => Ok(()),
                false => failed("the other node did not take it in time"),
            }
        })
    }
}

/// How often what was acknowledged is put on record.
const WATERMARK_PERIOD: Duration = Duration::from_secs(1);

/// How often is looked whether a step of a stop is done, and how many times: a second at most.
const LEAVE_TICK: Duration = Duration::from_millis(10);
const LONGEST_LEAVE_TICKS: u32 = 100;

/// How long floating addresses stay for what is said to hosts last.
const FAREWELL: Duration = Duration::from_millis(20);

/// Longest that a host waits for a move that it has asked for.
const LONGEST_MOVE: Duration = Duration::from_secs(10);

/// The cluster, for the parts.
struct Around {
    own: NodeName,
    peer: NodeName,
    quorum: QuorumHandle,
    records: Arc<StateDirectory>,
    seen_index: Rc<Cell<u64>>,
    health: Rc<Cell<StoreHealth>>,
    events: EventReporter,
}

impl Surroundings for Around {
    fn propose(&self, mut command: Command) {
        let (quorum, own) = (self.quorum.clone(), self.own.clone());
        if let Command::ForcePrimary { forced_unix_ms, .. } = &mut command {
            *forced_unix_ms = unix_ms();
        }
        tokio::task::spawn_local(async move {
            let text = format!("{command:?}");
            match quorum.apply(command).await {
                Ok(outcome) => tracing::info!(node = %own, proposed = text, ?outcome),
                Err(error) => tracing::info!(node = %own, proposed = text, %error),
            }
        });
    }

    fn has_lease(&self) -> bool {
        self.health.get() != StoreHealth::Gone
            && self.quorum.lease().is_held(clock_ms(), self.seen_index.get())
    }

    fn is_peer_alive(&self) -> bool {
        let status = self.quorum.status();
        status.peers.iter().any(|peer| peer.name == self.peer && peer.is_reachable)
    }

    fn stores(&self) -> (StoreHealth, StoreHealth) {
        let status = self.quorum.status();
        let peer = status.peers.iter().find(|peer| peer.name == self.peer);
        (self.health.get(), peer.map_or(StoreHealth::Well, |peer| peer.store))
    }

    fn peer_trouble(&self) -> String {
        let status = self.quorum.status();
        let Some(peer) = status.peers.iter().find(|peer| peer.name == self.peer) else {
            return "is not configured".to_owned();
        };
        match (peer.is_reachable, peer.store) {
            (true, StoreHealth::Gone) => "has stopped, or its pool is offline".to_owned(),
            (true, StoreHealth::Stuck) => "has disks that complete nothing".to_owned(),
            (true, StoreHealth::Well) => "gives no answer over the connection for mirrors".to_owned(),
            (false, _) if peer.reason.is_empty() => "cannot be reached".to_owned(),
            (false, _) => format!("cannot be reached ({})", peer.reason),
        }
    }

    fn promised(&self, volume: VolumeId) -> u32 {
        // A directory that can't be read has no promise to break: saving the next one fails too.
        self.records.promise(volume.0).unwrap_or(u32::MAX)
    }

    fn save_promise(&self, volume: VolumeId, epoch: u32) -> LocalBoxFuture<'static, bool> {
        let records = self.records.clone();
        let saved = tokio::task::spawn_blocking(move || records.save_promise(volume.0, epoch));
        Box::pin(async move { matches!(saved.await, Ok(Ok(()))) })
    }

    fn event(&self, volume: &VolumeRecord, message: String) {
        self.events.warning("volume-mirror", message, &[("volume", volume.name.to_string())]);
    }
}

/// What a replica keeps in its pool.
struct Kept<P: Pool> {
    pool: Rc<P>,
}

impl<P: Pool> Records for Kept<P> {
    fn coverage(&self, volume: VolumeId) -> Coverage {
        let record = self.pool.volume_record(volume);
        let coverage = record.and_then(|record| Coverage::decode(&record));
        // What can't be read proves nothing.
        coverage.unwrap_or_else(|| Coverage::through(Version::default()))
    }

    fn save_coverage(&self, volume: VolumeId, coverage: Coverage) -> LocalBoxFuture<'static, bool> {
        let pool = self.pool.clone();
        Box::pin(async move { pool.save_volume_record(volume, &coverage.encode()).await.is_ok() })
    }

    fn settled(&self, volume: VolumeId, version: Version) {
        self.pool.keep_holes_after(volume, version);
    }

    fn unix_ms(&self) -> u64 {
        unix_ms()
    }
}
