//! The network between the members: connections of the quorum, and those that carry mirrors.
//!
//! A connection keeps its order and loses nothing while it lives; what a cut holds up arrives when the cut ends in
//! time, and is lost with the connection otherwise. Each end learns of the end of a connection by itself, and there may
//! be two between the same members for a while; so messages of different connections overtake each other.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};

use super::member::Frame;
use super::room::{Data, Life};
use super::{Cluster, NAMES, VOLUMES, micros};
use crate::base::runtime::{Instant, Runtime};
use crate::base::signal::Signal;
use crate::cluster::state::format;
use crate::cluster::versions::{Protocol, Spoken};
use crate::mirror::{FromReplica, ReplicaLink, ToReplica};

/// Who hears whom, and the connections.
#[derive(Default)]
pub(super) struct Network {
    is_cut: [[Cell<bool>; 3]; 3],
    channels: RefCell<Vec<Rc<Channel>>>,
    wires: RefCell<Vec<Rc<Wire>>>,
    /// What the program of each member speaks.
    speaks: [Cell<Spoken>; 3],
}

impl Network {
    /// Gives back what was so before.
    pub(super) fn set_passes(&self, from: usize, to: usize, passes: bool) -> bool {
        !self.is_cut[from][to].replace(!passes)
    }

    /// Connections and machines hold each other.
    pub(super) fn clear(&self) {
        self.channels.take();
        self.wires.take();
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        !self.is_cut[from][to].get()
    }

    /// Gives a member, which does not run, another release.
    pub(super) fn install(&self, member: usize, speaks: Spoken) {
        self.speaks[member].set(speaks);
    }

    /// The newest format of the control state that a member's program knows.
    pub(super) fn newest_format(&self, member: usize) -> u32 {
        format::of_version(self.speaks[member].get().of(Protocol::Control).newest())
    }

    /// Whether two members have a version of a protocol in common that each still speaks.
    fn fit(&self, one: &Life, other: &Life, protocol: Protocol) -> bool {
        let of = |life: &Life| {
            let oldest = format::version_of(life.member.state().format());
            self.speaks[life.index].get().without_control_before(oldest).of(protocol)
        };
        of(one).agree(of(other)).is_some()
    }

    fn passes_both_ways(&self, one: usize, other: usize) -> bool {
        self.passes(one, other) && self.passes(other, one)
    }

    /// Sends something of the quorum over the newest connection, or now and then over an older one.
    pub(super) fn send(&self, life: &Life, to: usize, frame: Frame) {
        let channels = self.channels.borrow();
        let mut usable = channels.iter().filter_map(|channel| channel.end_of(life, to)).rev();
        let newest = usable.next();
        let older = usable.next().filter(|_| life.cluster.random.below(3) == 0);
        if let Some((channel, end)) = older.or(newest) {
            let at = channel.lanes[1 - end].arrival(life);
            // An end that is no more takes nothing.
            let _ = channel.lanes[1 - end].sender.unbounded_send((at, frame));
        }
    }
}

/// One direction of a connection: what arrives keeps its order.
struct Lane<T> {
    sender: UnboundedSender<(Instant, T)>,
    last: Cell<Instant>,
}

impl<T> Lane<T> {
    fn new() -> (Self, UnboundedReceiver<(Instant, T)>) {
        let (sender, receiver) = unbounded();
        (Self { sender, last: Cell::default() }, receiver)
    }

    fn arrival(&self, sender: &Life) -> Instant {
        let cluster = &sender.cluster;
        let delay = 10_000 + cluster.random.below(cluster.setting.latency * 1000);
        let at = Instant(cluster.clock.now().0 + delay).max(self.last.get());
        self.last.set(at);
        at
    }
}

/// A connection of the quorum between two machines.
struct Channel {
    ends: [Rc<Life>; 2],
    /// Whether each end has it.
    is_open: [Cell<bool>; 2],
    /// Towards each end.
    lanes: [Lane<Frame>; 2],
    held_up_since: Cell<Option<Instant>>,
    /// Its end has begun.
    is_ending: Cell<bool>,
}

impl Channel {
    /// This connection and the number of `life`'s end, if it leads from there to `to` and is open.
    fn end_of(&self, life: &Life, to: usize) -> Option<(&Self, usize)> {
        let end = self.ends.iter().position(|end| end.number == life.number)?;
        (self.is_open[end].get() && self.ends[1 - end].index == to).then_some((self, end))
    }

    fn open(cluster: &Rc<Cluster>, ends: [Rc<Life>; 2]) {
        let (one, at_first) = Lane::new();
        let (other, at_second) = Lane::new();
        let channel = Rc::new(Self {
            ends,
            is_open: Default::default(),
            lanes: [one, other],
            held_up_since: Cell::default(),
            is_ending: Cell::default(),
        });
        cluster.network.channels.borrow_mut().push(channel.clone());
        for (end, arriving) in [at_first, at_second].into_iter().enumerate() {
            let (channel, life) = (channel.clone(), channel.ends[end].clone());
            let delay = micros(50 + cluster.random.below(cluster.setting.latency));
            let world = life.world.clone();
            world.spawn(Box::pin(async move {
                life.world.sleep(delay).await;
                channel.is_open[end].set(true);
                let peer = &channel.ends[1 - end];
                life.member.set_peer(peer.index, Some(peer.member.info()));
                channel.carry(end, arriving).await;
            }));
        }
    }

    /// Hands over what arrives at one end.
    async fn carry(&self, end: usize, mut arriving: UnboundedReceiver<(Instant, Frame)>) {
        let (life, from) = (&self.ends[end], self.ends[1 - end].index);
        while let Some((at, frame)) = arriving.next().await {
            until_arrived(life, from, at, &self.is_open[end]).await;
            if !self.is_open[end].get() {
                return;
            }
            life.member.handle_frame(from, frame);
        }
    }

    /// Lets both ends find out, each in its own time.
    fn end(self: &Rc<Self>, cluster: &Cluster) {
        if self.is_ending.replace(true) {
            return;
        }
        cluster.meet("broken connections");
        for end in 0..2 {
            let (channel, life) = (self.clone(), self.ends[end].clone());
            let delay = micros(cluster.random.below(3000));
            life.world.clone().spawn(Box::pin(async move {
                life.world.sleep(delay).await;
                channel.is_open[end].set(false);
                let peer = channel.ends[1 - end].index;
                let channels = life.cluster.network.channels.borrow();
                let is_last = !channels.iter().any(|other| other.end_of(&life, peer).is_some());
                drop(channels);
                if is_last {
                    life.member.set_peer(peer, None);
                }
            }));
        }
    }
}

/// Waits until what was sent has arrived at `life`; what is cut off in between waits for the end of the cut.
async fn until_arrived(life: &Life, from: usize, at: Instant, is_open: &Cell<bool>) {
    let now = life.world.now();
    if at > now {
        life.world.sleep(at.since(now)).await;
    }
    while !life.cluster.network.passes(from, life.index) && is_open.get() {
        life.world.sleep(micros(500)).await;
    }
}

/// A connection that carries mirrors from one node to the other.
pub(super) struct Wire {
    ends: [Rc<Life>; 2],
    to_replica: Lane<ToReplica>,
    /// Nothing more is sent.
    is_broken: Cell<bool>,
    /// It is open at the receiving ends; what was under way when it broke may still arrive until it is not.
    is_open: Cell<bool>,
    broken: Signal,
    held_up_since: Cell<Option<Instant>>,
}

impl ReplicaLink for Wire {
    fn send(&self, message: ToReplica) {
        if let ToReplica::Begin { volume, stream } = message {
            self.ends[0].cluster.check_epoch(&self.ends[0], volume, stream.epoch);
        }
        if !self.is_broken.get() {
            let at = self.to_replica.arrival(&self.ends[0]);
            let _ = self.to_replica.sender.unbounded_send((at, message));
        }
    }
}

impl Wire {
    fn end(&self, cluster: &Cluster) {
        if !self.is_broken.replace(true) {
            // What is under way arrives late, or not at all.
            self.is_open.set(cluster.random.coin());
            self.broken.notify();
        }
    }
}

/// Calls the other node whenever there is no connection for this node's mirrors.
pub(super) async fn call(data: Rc<Data>) {
    let (life, cluster) = (data.life(), data.cluster.clone());
    let other = 1 - life.index;
    loop {
        life.world.sleep(micros(100 + cluster.random.below(2000))).await;
        let peer = cluster.life(other).filter(|peer| !peer.world.is_paused());
        let Some(peer) = peer.filter(|_| cluster.network.passes_both_ways(life.index, other)) else {
            continue;
        };
        if !cluster.network.fit(&life, &peer, Protocol::Mirror) {
            cluster.meet("refused releases");
            continue;
        }
        let Some(peer_data) = peer.data() else { continue };
        let wire = connect(&data, &life, &peer_data, &peer);
        wire.broken.until(|| wire.is_broken.get()).await;
        life.world.sleep(micros(cluster.random.below(1000))).await;
        data.node.disconnected();
        cluster.network.wires.borrow_mut().retain(|other| !Rc::ptr_eq(other, &wire));
    }
}

fn connect(data: &Rc<Data>, life: &Rc<Life>, peer_data: &Rc<Data>, peer: &Rc<Life>) -> Rc<Wire> {
    let (to_replica, mut at_replica) = Lane::<ToReplica>::new();
    let (to_primary, mut at_primary) = Lane::<FromReplica>::new();
    let wire = Rc::new(Wire {
        ends: [life.clone(), peer.clone()],
        to_replica,
        is_broken: Cell::new(false),
        is_open: Cell::new(true),
        broken: Signal::default(),
        held_up_since: Cell::default(),
    });
    let cluster = &life.cluster;
    cluster.network.wires.borrow_mut().push(wire.clone());
    cluster.tell(|| format!("{} mirrors to {}", NAMES[life.index], NAMES[peer.index]));
    let (answering, broken) = (peer.clone(), wire.clone());
    let stream = peer_data.node.accept(move |answer| {
        answering.cluster.check_promise(answering.index, &answer);
        if !broken.is_broken.get() {
            let _ = to_primary.sender.unbounded_send((to_primary.arrival(&answering), answer));
        }
    });
    let (carried, at) = (wire.clone(), peer.clone());
    peer.world.spawn(Box::pin(async move {
        while let Some((arrival, message)) = at_replica.next().await {
            until_arrived(&at, carried.ends[0].index, arrival, &carried.is_open).await;
            if !carried.is_open.get() {
                return;
            }
            if carried.is_broken.get() {
                at.cluster.meet("late mirror messages");
            }
            stream.receive(message).await;
        }
    }));
    let (carried, at, data) = (wire.clone(), life.clone(), data.clone());
    let node = data.node.clone();
    node.connected(wire.clone());
    life.world.spawn(Box::pin(async move {
        while let Some((arrival, answer)) = at_primary.next().await {
            until_arrived(&at, carried.ends[1].index, arrival, &carried.is_open).await;
            if !carried.is_open.get() {
                return;
            }
            at.cluster.tell(|| format!("{} hears {}", NAMES[at.index], short(&answer)));
            data.node.received(answer);
        }
    }));
    wire
}

fn short(answer: &FromReplica) -> String {
    format!("{answer:?}").chars().take(120).collect()
}

/// Opens connections between machines that live, and ends those whose ends do not hear each other.
pub(super) async fn keep(cluster: Rc<Cluster>) {
    loop {
        cluster.clock.sleep(micros(700 + cluster.random.below(600))).await;
        let channels = cluster.network.channels.borrow().clone();
        for channel in &channels {
            if is_over(&cluster, &channel.ends, &channel.held_up_since) {
                channel.end(&cluster);
            }
        }
        let is_left = |channel: &Rc<Channel>| {
            !channel.is_ending.get()
                || channel.is_open.iter().any(Cell::get) && both_live(&cluster, &channel.ends)
        };
        cluster.network.channels.borrow_mut().retain(is_left);
        let wires = cluster.network.wires.borrow().clone();
        wires
            .iter()
            .filter(|wire| is_over(&cluster, &wire.ends, &wire.held_up_since))
            .for_each(|wire| wire.end(&cluster));
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            let (Some(near), Some(far)) = (cluster.life(one), cluster.life(other)) else { continue };
            let between = |channel: &&Rc<Channel>| {
                !channel.is_ending.get()
                    && channel.ends[0].number == near.number
                    && channel.ends[1].number == far.number
            };
            let count = channels.iter().filter(between).count();
            let is_wanted =
                count == 0 || (count == 1 && !cluster.setting.is_orderly && cluster.random.below(400) == 0);
            let can_connect = !near.world.is_paused() && !far.world.is_paused();
            let fit = cluster.network.fit(&near, &far, Protocol::Control);
            if is_wanted && can_connect && fit && cluster.network.passes_both_ways(one, other) {
                Channel::open(&cluster, [near, far]);
            } else if count > 1 && cluster.random.below(30) == 0 {
                // The elder of two goes.
                if let Some(elder) = channels.iter().find(between) {
                    elder.end(&cluster);
                }
            }
        }
    }
}

fn both_live(cluster: &Cluster, ends: &[Rc<Life>; 2]) -> bool {
    ends.iter().all(|end| cluster.life(end.index).is_some_and(|life| life.number == end.number))
}

/// Whether a connection is at its end: a machine is gone, or nothing has passed for too long.
fn is_over(cluster: &Cluster, ends: &[Rc<Life>; 2], held_up_since: &Cell<Option<Instant>>) -> bool {
    if !both_live(cluster, ends) {
        return true;
    }
    let is_held_up = !cluster.network.passes_both_ways(ends[0].index, ends[1].index)
        || ends.iter().any(|end| end.world.is_paused());
    let now = cluster.clock.now();
    let since = held_up_since.get().unwrap_or(now);
    held_up_since.set(is_held_up.then_some(since));
    // Keep-alives are missed for a second or so.
    is_held_up && now.since(since) > micros(6000 + cluster.random.below(6000))
}

/// Whether the mirrors of all volumes have a connection in both directions.
pub(super) fn is_whole(cluster: &Cluster) -> bool {
    debug_assert!(VOLUMES.len() == 2);
    cluster.network.wires.borrow().iter().filter(|wire| !wire.is_broken.get()).count() >= 2
}
