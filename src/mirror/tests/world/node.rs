//! A node of the world: its life between a start and a crash, what a daemon would do for the mirror, and
//! the driver of a primary.

use super::*;

/// One life of a node.
pub(super) struct Life {
    pub(super) cluster: Rc<Cluster>,
    pub(super) node: usize,
    pub(super) world: Rc<World>,
    pub(super) store: Rc<Store>,
    pub(super) replicas: RefCell<Option<Replicas<Store>>>,
    pub(super) promised: Cell<u32>,
    /// The newest version that the store recovered.
    pub(super) recovered: Version,
    pub(super) record_number: Cell<u64>,
    pub(super) primary: RefCell<Option<Rc<Primary>>>,
}

/// One time that a node serves the volume.
pub(super) struct Primary {
    pub(super) life: Rc<Life>,
    /// No other time has this number.
    pub(super) turn: u64,
    pub(super) epoch: Cell<u32>,
    pub(super) mirror: Mirror<Store>,
    pub(super) volume: Volume<Mirror<Store>>,
    pub(super) resync: Rc<Resync<Store>>,
    pub(super) wire: RefCell<Option<Rc<Wire>>>,
    pub(super) is_behind: Cell<bool>,
    pub(super) is_serving: Cell<bool>,
    pub(super) is_stopped: Cell<bool>,
    pub(super) is_moving: Cell<bool>,
}

pub(super) struct Wire {
    pub(super) to_replica: UnboundedSender<ToReplica>,
    pub(super) is_broken: Cell<bool>,
    /// What was under way when it broke is not delivered late.
    pub(super) drops: Cell<bool>,
}

impl ReplicaLink for Wire {
    fn send(&self, message: ToReplica) {
        if !self.is_broken.get() {
            let message = ToReplica::decode(&message.encode().concat().into()).unwrap();
            self.to_replica.unbounded_send(message).unwrap_or_default();
        }
    }
}

impl Life {
    pub(super) fn replicas(&self) -> Option<Replicas<Store>> {
        self.replicas.borrow().clone()
    }

    pub(super) fn coverage_of_replica(&self) -> Coverage {
        self.replicas().unwrap().coverage(VOLUME)
    }

    pub(super) fn held(&self) -> Held {
        let newest = newest_in(&self.store);
        if newest == self.recovered { Held::recovered(newest) } else { Held::all_through(newest) }
    }

    pub(super) fn recorded(&self) -> Coverage {
        Coverage::decode(&self.store.volumes().iter().find(|(volume, ..)| *volume == VOLUME).unwrap().1)
            .unwrap()
    }

    /// What this node has as replica, with everything older than `epoch` fenced off.
    pub(super) async fn end_replica(&self, epoch: u32) -> Result<Held, ()> {
        self.promised.set(self.promised.get().max(epoch));
        let site = &self.cluster.sites[self.node];
        site.promised.set(site.promised.get().max(epoch));
        self.drain().await;
        let replicas = self.replicas().ok_or(())?;
        replicas.end(VOLUME).await.map_err(|_| ())
    }

    /// Ends this node's own writes.
    pub(super) async fn drain(&self) {
        let primary = self.primary.borrow().clone();
        if let Some(primary) = primary {
            primary.stop();
            primary.volume.close().await;
            self.primary.take();
        }
    }
}

/// The daemon's part of a node.
pub(super) struct Node(pub(super) Rc<Life>);

impl Fence for Node {
    fn promised(&self, _volume: VolumeId) -> u32 {
        self.0.promised.get()
    }

    fn promise(&self, _volume: VolumeId, epoch: u32) -> LocalBoxFuture<'static, bool> {
        let life = self.0.clone();
        life.promised.set(life.promised.get().max(epoch));
        Box::pin(async move {
            life.drain().await;
            life.world.sleep(micros(life.world.random() % 300)).await;
            let site = &life.cluster.sites[life.node];
            site.promised.set(site.promised.get().max(epoch));
            true
        })
    }

    fn held(&self, _volume: VolumeId) -> Held {
        self.0.held()
    }
}

impl Records for Node {
    fn coverage(&self, _volume: VolumeId) -> Coverage {
        self.0.recorded()
    }

    fn save_coverage(&self, _volume: VolumeId, coverage: Coverage) -> LocalBoxFuture<'static, bool> {
        let life = self.0.clone();
        life.record_number.set(life.record_number.get() + 1);
        let version = Version { epoch: 0, sequence: life.record_number.get() };
        Box::pin(async move { life.store.put_volume(VOLUME, version, &coverage.encode()).await.is_ok() })
    }

    fn settled(&self, _volume: VolumeId, version: Version) {
        if !mutant::is(Mutant::HolesForgotten) {
            self.0.store.keep_holes_after(VOLUME, version);
        }
    }

    fn unix_ms(&self) -> u64 {
        self.0.world.now().0 / 1000
    }
}

pub(super) fn newest_in(store: &Store) -> Version {
    store.volumes().iter().find(|(volume, ..)| *volume == VOLUME).unwrap().2
}

impl Primary {
    /// The node serves `epoch`, which it has proposed, from `latest` on.
    pub(super) fn begin(life: &Rc<Life>, epoch: u32, held: Held, both: bool) {
        let (store, world) = (life.store.clone(), life.world.clone());
        let requirement = if both { Requirement::Both } else { Requirement::Local };
        let limits = WindowLimits { append_bytes: 60_000, appends: 8, copy_bytes: 300_000 };
        let at = (VOLUME, epoch, held);
        let mirror = Mirror::with_limits(store.clone(), world.clone(), at, requirement, limits);
        let record = life.cluster.record();
        let next_sequence = record.epoch_starts[&epoch].max(held.latest.sequence + 1);
        let geometry = DeviceGeometry { logical_block_bytes: 4096, block_count: CLIENTS * APART };
        let volume = Volume::open(
            VolumeParameters { id: VOLUME, epoch, next_sequence, geometry },
            VolumeServices {
                store: Rc::new(mirror.clone()),
                runtime: world.clone(),
                pool: BufferPool::new(1 << 20),
            },
        );
        let resync = Rc::new(Resync::new(store, volume.clone(), world.clone()));
        let turn = life.cluster.turns.get() + 1;
        life.cluster.turns.set(turn);
        let primary = Rc::new(Self {
            life: life.clone(),
            turn,
            epoch: Cell::new(epoch),
            mirror,
            volume,
            resync,
            wire: RefCell::default(),
            is_behind: Cell::new(false),
            is_serving: Cell::new(false),
            is_stopped: Cell::new(false),
            is_moving: Cell::new(false),
        });
        *life.primary.borrow_mut() = Some(primary.clone());
        world.spawn(Box::pin(primary.drive()));
    }

    /// Nothing is served any more.
    pub(super) fn stop(&self) {
        self.is_stopped.set(true);
        self.life.cluster.end_turn(self.turn);
        self.mirror.close();
        self.break_wire(false);
    }

    pub(super) fn break_wire(&self, drops: bool) {
        if let Some(wire) = self.wire.take() {
            wire.is_broken.set(true);
            wire.drops.set(drops);
        }
        self.mirror.disconnected();
        self.is_behind.set(false);
    }

    /// The driver: connects, shrinks, joins, expands.
    pub(super) async fn drive(self: Rc<Self>) {
        let (cluster, world) = (self.life.cluster.clone(), self.life.world.clone());
        let mut without_stream = 0;
        loop {
            world.sleep(micros(200 + world.random() % 300)).await;
            let record = cluster.record();
            if self.is_stopped.get() {
                return;
            }
            if record.epoch != self.epoch.get() {
                return self.stop(); // deposed
            }
            let silent = self.mirror.silent_since().map(|since| world.now().since(since));
            if silent.is_some_and(|silent| silent > micros(30_000)) {
                self.break_wire(world.random() % 2 == 0);
            }
            if self.wire.borrow().is_none() && !cluster.is_cut.get() {
                self.connect();
            }
            if let Some(version) = self.mirror.tell_settled().filter(|_| !mutant::is(Mutant::HolesForgotten))
            {
                self.life.store.keep_holes_after(VOLUME, version);
            }
            let is_whole = self.mirror.is_replica_whole();
            without_stream = if is_whole { 0 } else { without_stream + 1 };
            if record.in_sync.len() == 2 {
                if is_whole {
                    self.serve();
                }
                if self.is_behind.get() || without_stream > 20 {
                    self.change(Transition::Shrink, false).await;
                } else if is_whole && world.random() % 40 == 0 && !self.is_moving.get() {
                    self.change(Transition::Restart, true).await;
                }
            } else {
                self.serve();
                if self.is_behind.get() {
                    self.join();
                } else if is_whole && world.random() % 4 == 0 {
                    self.change(Transition::Expand, true).await;
                }
            }
        }
    }

    pub(super) async fn change(&self, transition: Transition, both: bool) {
        let (cluster, world) = (&self.life.cluster, &self.life.world);
        if both {
            self.mirror.require(Requirement::Both);
        }
        let first_sequence = self.volume.latest_version().sequence + 1;
        world.sleep(micros(world.random() % 2000)).await;
        if self.is_stopped.get() {
            return;
        }
        let node = self.life.node;
        match cluster.commit(self.epoch.get(), transition, node, both, first_sequence) {
            Some(epoch) => {
                self.life.promised.set(epoch);
                cluster.sites[node].promised.set(epoch);
                self.epoch.set(epoch);
                self.is_behind.set(false);
                self.volume.begin_epoch(epoch);
                let requirement = if both { Requirement::Both } else { Requirement::Local };
                self.mirror.next_epoch(epoch, requirement);
            }
            None => self.stop(),
        }
    }

    pub(super) fn join(self: &Rc<Self>) {
        self.is_behind.set(false);
        let Some(joiner) = self.mirror.join() else { return };
        self.life.cluster.tell(|| format!("join {:?} after {:?}", joiner.steps(), joiner.mirrored_after()));
        let (primary, cluster) = (self.clone(), self.life.cluster.clone());
        let record = cluster.record();
        cluster.note(|totals| totals.resyncs += 1);
        self.life.world.spawn(Box::pin(async move {
            let before = primary.resync.progress().copied_in_all_blocks;
            let common_point = |version: Version| match record.common_point(version.into()) {
                CommonPoint::Everything => version,
                CommonPoint::Through(kept) => kept.into(),
                CommonPoint::Unknown => Version::default(),
            };
            let outcome = primary.resync.run(&joiner, common_point).await;
            let copied = primary.resync.progress().copied_in_all_blocks - before;
            cluster.note(|totals| {
                totals.copied_blocks += copied;
                totals.broken_resyncs += u64::from(outcome.is_err());
            });
            cluster.tell(|| format!("resync {outcome:?} {:?}", primary.resync.progress()));
            match outcome {
                Ok(()) | Err(ResyncError::StreamEnded(_) | ResyncError::Closed) => {}
                Err(error) => cluster.fail(format!("resync: {error}")),
            }
        }));
    }

    pub(super) fn connect(self: &Rc<Self>) {
        let cluster = &self.life.cluster;
        let Some(peer) = cluster.life(1 - self.life.node) else { return };
        let Some(replicas) = peer.replicas() else { return };
        let (to_replica, mut at_replica) = unbounded::<ToReplica>();
        let (to_primary, mut at_primary) = unbounded::<FromReplica>();
        let wire = Rc::new(Wire { to_replica, is_broken: Cell::new(false), drops: Cell::new(false) });
        *self.wire.borrow_mut() = Some(wire.clone());
        let stream = replicas.connect(move |answer: FromReplica| {
            let answer = FromReplica::decode(&answer.encode()).unwrap();
            to_primary.unbounded_send(answer).unwrap_or_default();
        });
        let (broken, world) = (wire.clone(), peer.world.clone());
        peer.world.spawn(Box::pin(async move {
            while let Some(message) = at_replica.next().await {
                world.sleep(micros(world.random() % 120)).await;
                if broken.drops.get() {
                    return;
                }
                stream.receive(message).await;
            }
        }));
        let (broken, primary) = (wire.clone(), self.clone());
        self.life.world.spawn(Box::pin(async move {
            while let Some(answer) = at_primary.next().await {
                primary.life.world.sleep(micros(primary.life.world.random() % 120)).await;
                if broken.drops.get() {
                    return;
                }
                let is_ready = matches!(answer, FromReplica::Ready { .. }).then(|| format!("{answer:?}"));
                let event = primary.mirror.received(answer);
                if event.is_some() || is_ready.is_some() {
                    let node = primary.life.node;
                    primary.life.cluster.tell(|| format!("{node} heard {is_ready:?}: {event:?}"));
                }
                match event {
                    Some(MirrorEvent::Behind) => primary.is_behind.set(true),
                    Some(MirrorEvent::ReplicaLost { .. }) => primary.break_wire(false),
                    Some(MirrorEvent::Fenced { .. }) => primary.stop(),
                    Some(MirrorEvent::Streaming | MirrorEvent::Whole) | None => {}
                }
            }
        }));
        self.mirror.connected(wire);
    }

    pub(super) fn serve(self: &Rc<Self>) {
        if !self.is_serving.replace(true) {
            for client in 0..CLIENTS {
                self.life.world.spawn(Box::pin(self.clone().work(client)));
            }
            self.life.world.spawn(Box::pin(self.clone().observe()));
            self.life.world.spawn(Box::pin(self.clone().keep_snapshots()));
        }
    }
}
