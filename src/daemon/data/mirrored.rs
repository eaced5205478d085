//! The mirrored volumes of a node: their logical units, which every node of the pair presents, and the node's part
//! in them ([`crate::pair`]), which gives the one that serves its device.
//!
//! Guarantees: a state of the control plane is taken in order, and counts for the lease only when the parts have
//! it; a unit gets its device with the reservations of the newest state. Left to others: what the parts do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures::future::LocalBoxFuture;

use super::pool::Pool;
use super::volumes::{Unit, Volumes};
use crate::base::buffer::BufferPool;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::{Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::volume::{Redundancy, VolumeRecord};
use crate::cluster::state::{Command, ControlState};
use crate::daemon::engine::VolumeSpec;
use crate::daemon::event_log::EventReporter;
use crate::daemon::listen::listen;
use crate::daemon::state_directory::StateDirectory;
use crate::mirror::{Coverage, Records};
use crate::pair::{Hosts, Node, NodeServices, Patience, ServedStore, Surroundings};
use crate::peer::hello::Introduction;
use crate::peer::mirror_stream::{MirrorConnections, MirrorSetup};
use crate::peer::quorum::{QuorumHandle, clock_ms, unix_ms};
use crate::peer::settings::PeerSettings;
use crate::peer::tls::Keys;
use crate::scsi::asymmetric_access::{AccessAuthority, AccessState, ActivationFailed, GroupAccess};
use crate::scsi::reservation::PersistedReservations;
use crate::volume::Volume;
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
    own_group: u16,
    node: Node<P>,
    volumes: Rc<Volumes<P>>,
    pool: Rc<P>,
    quorum: QuorumHandle,
    spec: fn(&ControlState, &VolumeRecord) -> VolumeSpec,
    /// Through which index of the control state the parts know it.
    seen_index: Rc<Cell<u64>>,
    /// How the store was when it was last looked at.
    health: Rc<Cell<StoreHealth>>,
    /// The node is about to stop: its store counts as gone.
    is_leaving: Cell<bool>,
    faces: Rc<RefCell<BTreeMap<VolumeId, Face<P>>>>,
}

/// A volume as this node presents it.
struct Face<P: Pool> {
    unit: Rc<Unit<P>>,
    saver_epoch: Rc<Cell<u32>>,
    record: VolumeRecord,
    groups: Vec<(NodeName, u16)>,
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
        let faces: Rc<RefCell<BTreeMap<VolumeId, Face<P>>>> = Rc::default();
        let around = Around {
            own: own.clone(),
            peer: peer.clone(),
            quorum: quorum.clone(),
            records,
            seen_index: seen_index.clone(),
            health: health.clone(),
            events,
        };
        let newest = {
            let pool = pool.clone();
            move |id| pool.newest(id)
        };
        let node = Node::new(NodeServices {
            own: own.clone(),
            peer,
            store: pool.clone(),
            records: Rc::new(Kept { pool: pool.clone() }),
            newest: Box::new(newest),
            runtime,
            buffers,
            surroundings: Rc::new(around),
            hosts: Rc::new(Presented { own_group, faces: Rc::clone(&faces) }),
            patience: Patience::LAN,
        });
        let is_leaving = Cell::new(false);
        Rc::new(Self {
            own,
            own_group,
            node,
            volumes,
            pool,
            quorum,
            spec,
            seen_index,
            health,
            is_leaving,
            faces,
        })
    }

    /// Connects the two nodes' data threads, for as long as the result is kept.
    ///
    /// # Errors
    /// Why that can't be; the text says what to do.
    pub fn connect(&self, settings: &PeerSettings) -> Result<MirrorConnections, String> {
        let keys = Keys::load(&settings.tls_dir, settings.cluster_uuid).map_err(|error| error.to_string())?;
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
            },
            keys,
            peer: peer.cloned().ok_or("pair.peers names no other node")?,
            listeners: listeners.collect::<Result<_, _>>()?,
        };
        MirrorConnections::start(setup, Rc::new(self.node.clone())).map_err(|error| error.to_string())
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
            if state.applied_index() > self.seen_index.get() {
                self.take_state(&state).await;
            }
            self.tell_health().await;
            self.node.look_again();
            if told_at.elapsed() >= WATERMARK_PERIOD {
                told_at = tokio::time::Instant::now();
                self.record_watermarks();
            }
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

    /// Tells everybody how the store is. When it is gone the lease is given back, so that nobody has to wait for its
    /// end.
    async fn tell_health(&self) {
        let health = if self.is_leaving.get() { StoreHealth::Gone } else { self.pool.health() };
        let before = self.health.replace(health);
        if health != before {
            tracing::warn!(?before, now = ?health, "the store");
            self.quorum.lease().set_store_health(health);
        }
        if health == StoreHealth::Gone && before != StoreHealth::Gone {
            self.quorum.give_back().await;
        }
    }

    async fn take_state(self: &Rc<Self>, state: &ControlState) {
        let records = state.volumes().filter(|record| record.redundancy == Redundancy::Mirrored);
        for record in records {
            let is_known = self.faces.borrow().contains_key(&record.id);
            if !is_known && let Err(error) = self.present(state, record).await {
                tracing::error!(volume = %record.name, error, "cannot be presented");
                continue;
            }
            self.update(state, record);
        }
        let gone: Vec<VolumeId> = {
            let faces = self.faces.borrow();
            faces.keys().copied().filter(|id| state.volume_by_id(*id).is_none()).collect()
        };
        gone.iter().for_each(|id| drop(self.faces.borrow_mut().remove(id)));
        self.node.handle_state(state);
        self.seen_index.set(state.applied_index());
    }

    /// Makes a volume known to the pool, and its logical unit to initiators.
    async fn present(self: &Rc<Self>, state: &ControlState, record: &VolumeRecord) -> Result<(), String> {
        // What is new to a pool that joins an older volume lacks everything.
        let coverage = match record.epoch {
            0 | 1 => Coverage::Whole,
            _ => Coverage::through(Version::default()),
        };
        let created = self.pool.create_replica(record.id, &coverage.encode()).await;
        created.map_err(|error| error.to_string())?;
        let saver_epoch = Rc::new(Cell::new(record.epoch));
        let authority =
            Authority { own_group: self.own_group, volume: record.id, mirrored: Rc::downgrade(self) };
        let spec = (self.spec)(state, record);
        let unit = self.volumes.present(spec, saver_epoch.clone(), Rc::new(authority));
        let face = Face { unit, saver_epoch, record: record.clone(), groups: Vec::new() };
        self.faces.borrow_mut().insert(record.id, face);
        Ok(())
    }

    /// Tells a unit what has changed.
    fn update(&self, state: &ControlState, record: &VolumeRecord) {
        let mut faces = self.faces.borrow_mut();
        let Some(face) = faces.get_mut(&record.id) else { return };
        face.groups = state.nodes().map(|(name, node)| (name.clone(), node.portal_group_tag)).collect();
        face.saver_epoch.set(record.epoch);
        let is_moved = face.record.primary != record.primary;
        face.record = record.clone();
        if !face.unit.has_device() {
            face.unit.set_geometry(DeviceGeometry::of_bytes(record.size_bytes, record.sector.bytes()));
            if let Ok(saved) = reservations(record)
                && let Err(error) = face.unit.learn_reservations(&saved)
            {
                tracing::error!(volume = %record.name, %error, "reservations cannot be read");
            }
            if is_moved || record.primary != self.own {
                face.unit.set_access_states(&face.access(&record.primary, AccessState::ActiveOptimized));
            }
        }
    }

    /// Hands what this node serves over to the other one, as far as that has everything of it, and lets that go on
    /// alone with all the rest, so that hosts need not wait for the end of a lease or for an answer of this node;
    /// bounded in time.
    pub async fn leave(&self) {
        let volumes: Vec<VolumeId> = self.faces.borrow().keys().copied().collect();
        let reason = format!("node {} stops", self.own);
        let leaving: Vec<VolumeId> =
            volumes.iter().copied().filter(|id| self.node.hand_over(*id, &reason)).collect();
        self.until_none(&leaving, |record| record.primary == self.own).await;
        self.is_leaving.set(true);
        self.tell_health().await;
        self.until_none(&volumes, |record| record.primary != self.own && record.in_sync.contains(&self.own))
            .await;
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

impl<P: Pool> Face<P> {
    /// The states of all groups, with that of the node that serves.
    fn access(&self, serving: &NodeName, state: AccessState) -> Vec<GroupAccess> {
        let group = |(name, portal_group): &(NodeName, u16)| GroupAccess {
            portal_group: *portal_group,
            state: if name == serving { state } else { AccessState::Standby },
            preferred: *name == self.record.primary,
        };
        self.groups.iter().map(group).collect()
    }
}

/// Lets hosts use what the node serves.
struct Presented<P: Pool> {
    own_group: u16,
    faces: Rc<RefCell<BTreeMap<VolumeId, Face<P>>>>,
}

impl<P: Pool> Presented<P> {
    fn let_in(&self, id: VolumeId, volume: Volume<ServedStore<P>>) -> Result<(), String> {
        let faces = self.faces.borrow();
        let face = faces.get(&id).ok_or("it is not presented to hosts yet")?;
        let unreadable =
            |error: &dyn std::fmt::Display| format!("its saved reservations cannot be read: {error}");
        let saved = reservations(&face.record).map_err(|error| unreadable(&error))?;
        face.unit.attach_device(volume, &saved).map_err(|error| unreadable(&error))?;
        let own = face.groups.iter().find(|(_, group)| *group == self.own_group);
        if let Some((own, _)) = own {
            face.unit.set_access_states(&face.access(own, AccessState::ActiveOptimized));
        }
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
        let faces = self.faces.borrow();
        let Some(face) = faces.get(&volume) else { return Box::pin(std::future::ready(())) };
        let own = face.groups.iter().find(|(_, group)| *group == self.own_group);
        if let Some((own, _)) = own {
            face.unit.set_access_states(&face.access(own, AccessState::Transitioning));
        }
        face.unit.detach_device()
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
            let moved = |state: &Arc<ControlState>| {
                let record = state.volume_by_id(self.volume);
                record.is_none_or(|record| record.primary != mirrored.own)
            };
            let mut states = mirrored.quorum.watch();
            match tokio::time::timeout(LONGEST_MOVE, states.wait_for(moved)).await {
                Ok(Ok(_)) => Ok(()),
                _ => failed("the other node did not take it in time"),
            }
        })
    }
}

/// How often what was acknowledged is put on record.
const WATERMARK_PERIOD: std::time::Duration = std::time::Duration::from_secs(1);

/// How often is looked whether a step of a stop is done, and how many times: a second at most.
const LEAVE_TICK: std::time::Duration = std::time::Duration::from_millis(10);
const LONGEST_LEAVE_TICKS: u32 = 100;

/// Longest that a host waits for a move that it has asked for.
const LONGEST_MOVE: std::time::Duration = std::time::Duration::from_secs(10);

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
}

fn reservations(record: &VolumeRecord) -> Result<PersistedReservations, serde_json::Error> {
    match record.reservations.encoded.as_slice() {
        [] => Ok(PersistedReservations::default()),
        encoded => serde_json::from_slice(encoded),
    }
}
