//! A room: disks that outlive the node, what the node promised, and the node's present life.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};

use super::super::{Hosts, Node, NodeServices, Patience, ServedStore, Surroundings};
use super::cluster::{Cluster, NAMES, VOLUMES, micros, name};
use crate::array::superblock::{LogKey, Uuid};
use crate::array::{Array, FormatOptions};
use crate::base::buffer::BufferPool;
use crate::base::runtime::{Instant, LocalBoxFuture, Runtime};
use crate::base::signal::Signal;
use crate::base::units::{Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::cluster::state::Command;
use crate::cluster::state::volume::VolumeRecord;
use crate::disk::{Disk, DiskErrorKind, Operation};
use crate::mirror::{Coverage, FromReplica, Records, ReplicaLink, ToReplica};
use crate::sim::disk::SimulatedDisk;
use crate::sim::executor::{Executor, World};
use crate::sim::fault::{Effect, Fault};
use crate::sim::medium::SimulatedMedium;
use crate::sim::random::Random;
use crate::store::{Store, StoreOptions};
use crate::volume::Volume;

pub(super) struct Site {
    media: Vec<Rc<SimulatedMedium>>,
    pub promised: RefCell<BTreeMap<VolumeId, u32>>,
    life: RefCell<Option<Rc<Life>>>,
}

/// One life of a node.
pub(super) struct Life {
    pub cluster: Rc<Cluster>,
    pub index: usize,
    pub world: Rc<World>,
    pub store: Rc<Store>,
    pub node: Node<Store>,
    pub lease_until: Rc<Cell<Instant>>,
    pub lease_from: Rc<Cell<u64>>,
    pub seen_index: Rc<Cell<u64>>,
    attached: Rc<RefCell<BTreeMap<VolumeId, Volume<ServedStore<Store>>>>>,
    wire: RefCell<Option<Rc<Wire>>>,
    /// The node is no more.
    pub ended: Signal,
}

struct Wire {
    to_replica: UnboundedSender<ToReplica>,
    is_broken: Cell<bool>,
    /// What was under way when it broke is not delivered late.
    drops: Cell<bool>,
}

impl ReplicaLink for Wire {
    fn send(&self, message: ToReplica) {
        if !self.is_broken.get() {
            self.to_replica.unbounded_send(message).unwrap_or_default();
        }
    }
}

impl Site {
    pub(super) fn new(node: usize, random: &Random) -> Self {
        let medium = |disk| SimulatedMedium::new(&format!("{node}{disk}"), 49 << 20, random.next());
        Self { media: (0..2).map(medium).collect(), promised: RefCell::default(), life: RefCell::default() }
    }

    /// One of its disks takes no writes any more.
    pub(super) fn fail_disk(&self) {
        let failure = Effect::Fail(DiskErrorKind::Io(libc::EIO));
        self.media[0].inject(Fault::always(Operation::Write, failure));
    }

    /// Its disks confirm what they do not keep from now on, or keep again what they confirm.
    pub(super) fn set_lying(&self, are_lying: bool) {
        for medium in &self.media {
            medium.clear_faults();
            if are_lying {
                medium.inject(Fault::always(Operation::Write, Effect::Phantom));
            }
        }
    }

    /// All of its disks go away, or come back.
    pub(super) fn set_disks(&self, are_there: bool) {
        for medium in &self.media {
            if are_there { medium.reappear() } else { medium.disappear(false) }
        }
    }

    pub(super) fn life(&self) -> Option<Rc<Life>> {
        self.life.borrow().clone()
    }

    pub(super) fn crash(&self) {
        let Some(life) = self.life.take() else { return };
        life.disconnect(true);
        life.world.crash();
        self.media.iter().for_each(|medium| medium.crash());
        life.attached.borrow_mut().clear();
        life.ended.notify();
    }

    pub(super) fn disconnect(&self, drops: bool) {
        if let Some(life) = self.life() {
            life.disconnect(drops);
        }
    }

    pub(super) async fn start(
        cluster: &Rc<Cluster>,
        executor: &Executor,
        index: usize,
        is_new: bool,
    ) -> Result<(), String> {
        let site = &cluster.sites[index];
        let world = executor.world(NAMES[index]);
        let store = Rc::new(site.open_store(&world, index, is_new).await?);
        let newest = {
            let store = store.clone();
            move |id| {
                store.volumes().into_iter().find(|(found, ..)| *found == id).map(|(_, _, newest)| newest)
            }
        };
        let (lease_until, lease_from): (Rc<Cell<Instant>>, Rc<Cell<u64>>) = Default::default();
        let seen_index = Rc::new(Cell::new(0));
        let attached = Rc::default();
        let around = Around {
            cluster: cluster.clone(),
            index,
            world: world.clone(),
            lease_until: lease_until.clone(),
            lease_from: lease_from.clone(),
            seen_index: seen_index.clone(),
        };
        let node = Node::new(NodeServices {
            own: name(index),
            peer: name(1 - index),
            store: store.clone(),
            records: Rc::new(Kept { store: store.clone(), number: Cell::new(executor.now().0) }),
            newest: Box::new(move |id| newest(id).unwrap_or_default()),
            runtime: world.clone(),
            buffers: BufferPool::new(1 << 20),
            surroundings: Rc::new(around),
            hosts: Rc::new(Doors { attached: Rc::clone(&attached) }),
            patience: PATIENCE,
        });
        let life = Rc::new(Life {
            cluster: cluster.clone(),
            index,
            world,
            store,
            node,
            lease_until,
            lease_from,
            seen_index,
            attached,
            wire: RefCell::default(),
            ended: Signal::default(),
        });
        cluster.tell(|| format!("{index} starts"));
        *site.life.borrow_mut() = Some(life);
        Ok(())
    }

    async fn open_store(&self, world: &Rc<World>, index: usize, is_new: bool) -> Result<Store, String> {
        let disks = || -> Vec<Rc<dyn Disk>> {
            let open = |medium| -> Rc<dyn Disk> { SimulatedDisk::open(medium, world.clone()) };
            self.media.iter().map(open).collect()
        };
        if is_new {
            let options = FormatOptions { segment_bytes: Some(1 << 20), overwrite_foreign: false };
            let uuid = Uuid([index as u8 + 1; 16]);
            let formatted = Array::format(&disks(), &options, uuid, LogKey([7; 16])).await;
            formatted.map_err(|error| format!("format: {error}"))?;
        }
        let sink = Rc::new(|_| {});
        let opened = Array::open(disks(), world.clone(), BufferPool::new(1 << 20), sink.clone()).await;
        let (array, _) = opened.map_err(|error| format!("open: {error}"))?;
        let options = StoreOptions {
            checkpoint_log_bytes: 1 << 18,
            forget_holes_through: Version::default(),
            ..StoreOptions::default()
        };
        let opened = Store::open(array, world.clone(), options, sink).await;
        let (store, _) = opened.map_err(|error| format!("open: {error}"))?;
        if is_new {
            for volume in VOLUMES {
                let created = store.put_volume(volume, Version::default(), &Coverage::Whole.encode()).await;
                created.map_err(|error| error.to_string())?;
            }
        }
        Ok(store)
    }
}

/// A hundredth of what a local network gets.
const PATIENCE: Patience = Patience {
    replica: micros_const(10_000),
    primary: micros_const(15_000),
    home: micros_const(60_000),
    proposal: micros_const(10_000),
    settled: micros_const(10_000),
    tick: micros_const(500),
};

const fn micros_const(count: u64) -> std::time::Duration {
    std::time::Duration::from_micros(count)
}

impl Life {
    pub(super) fn attached(&self, volume: VolumeId) -> Option<Volume<ServedStore<Store>>> {
        self.attached.borrow().get(&volume).cloned()
    }

    fn disconnect(&self, drops: bool) {
        if let Some(wire) = self.wire.take() {
            wire.is_broken.set(true);
            wire.drops.set(drops);
            self.node.disconnected();
        }
    }

    /// Connects this node's mirrors to `peer`.
    pub(super) fn connect_to(self: &Rc<Self>, peer: &Rc<Self>) {
        self.disconnect(false);
        let (to_replica, mut at_replica) = unbounded::<ToReplica>();
        let (to_primary, mut at_primary) = unbounded::<FromReplica>();
        let wire = Rc::new(Wire { to_replica, is_broken: Cell::new(false), drops: Cell::new(false) });
        *self.wire.borrow_mut() = Some(wire.clone());
        let stream = peer.node.accept(move |answer| to_primary.unbounded_send(answer).unwrap_or_default());
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
        let (broken, life) = (wire.clone(), self.clone());
        self.world.spawn(Box::pin(async move {
            while let Some(answer) = at_primary.next().await {
                life.world.sleep(micros(life.world.random() % 120)).await;
                if broken.drops.get() {
                    return;
                }
                life.cluster.tell(|| format!("{} hears {}", life.index, short(&answer)));
                life.node.received(answer);
            }
        }));
        self.node.connected(wire);
    }
}

fn short(answer: &FromReplica) -> String {
    let text = format!("{answer:?}");
    text.chars().take(120).collect()
}

/// The cluster as a node sees it.
struct Around {
    cluster: Rc<Cluster>,
    index: usize,
    world: Rc<World>,
    lease_until: Rc<Cell<Instant>>,
    lease_from: Rc<Cell<u64>>,
    seen_index: Rc<Cell<u64>>,
}

impl Surroundings for Around {
    fn propose(&self, command: Command) {
        self.cluster.tell(|| format!("{} proposes {command:?}", self.index));
        self.cluster.propose(self.index, command);
    }

    fn has_lease(&self) -> bool {
        self.world.now() < self.lease_until.get() && self.seen_index.get() >= self.lease_from.get()
    }

    fn is_peer_alive(&self) -> bool {
        let peer = self.cluster.sites[1 - self.index].life();
        self.cluster.is_link_up.get() && peer.is_some_and(|life| !life.world.is_paused())
    }

    fn stores(&self) -> (StoreHealth, StoreHealth) {
        let health = |index: usize| match self.cluster.sites[index].life() {
            Some(life) if life.store.is_offline() => StoreHealth::Gone,
            _ => StoreHealth::Well,
        };
        let peer = if self.is_peer_alive() { health(1 - self.index) } else { StoreHealth::Well };
        (health(self.index), peer)
    }

    fn peer_trouble(&self) -> String {
        "is away".to_owned()
    }

    fn promised(&self, volume: VolumeId) -> u32 {
        self.cluster.sites[self.index].promised.borrow().get(&volume).copied().unwrap_or(0)
    }

    fn save_promise(&self, volume: VolumeId, epoch: u32) -> LocalBoxFuture<'static, bool> {
        let (cluster, index, world) = (self.cluster.clone(), self.index, self.world.clone());
        Box::pin(async move {
            world.sleep(micros(world.random() % 300)).await;
            let mut promised = cluster.sites[index].promised.borrow_mut();
            let saved = promised.entry(volume).or_insert(0);
            *saved = epoch.max(*saved);
            true
        })
    }

    fn event(&self, _volume: &VolumeRecord, message: String) {
        self.cluster.tell(|| format!("{} says: {message}", self.index));
    }
}

/// What a replica keeps in its store.
struct Kept {
    store: Rc<Store>,
    number: Cell<u64>,
}

impl Records for Kept {
    fn coverage(&self, volume: VolumeId) -> Coverage {
        let volumes = self.store.volumes();
        let record = volumes.iter().find(|(id, ..)| *id == volume).map(|(_, record, _)| record.clone());
        Coverage::decode(&record.unwrap()).unwrap()
    }

    fn save_coverage(&self, volume: VolumeId, coverage: Coverage) -> LocalBoxFuture<'static, bool> {
        self.number.set(self.number.get() + 1);
        let (store, version) = (self.store.clone(), Version { epoch: 0, sequence: self.number.get() });
        Box::pin(async move { store.put_volume(volume, version, &coverage.encode()).await.is_ok() })
    }

    fn settled(&self, volume: VolumeId, version: Version) {
        self.store.keep_holes_after(volume, version);
    }
}

/// Where clients come in.
struct Doors {
    attached: Rc<RefCell<BTreeMap<VolumeId, Volume<ServedStore<Store>>>>>,
}

impl Hosts<Store> for Doors {
    fn attach(
        &self,
        record: &VolumeRecord,
        volume: Volume<ServedStore<Store>>,
    ) -> LocalBoxFuture<'static, Result<(), String>> {
        self.attached.borrow_mut().insert(record.id, volume);
        Box::pin(std::future::ready(Ok(())))
    }

    fn detach(&self, volume: VolumeId) -> LocalBoxFuture<'static, ()> {
        self.attached.borrow_mut().remove(&volume);
        Box::pin(std::future::ready(()))
    }
}
