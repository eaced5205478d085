//! A member of the quorum at work: its thread, its clock, its log file, its links.
//!
//! One thread with an event loop of its own owns everything, so neither consensus nor leases ever wait for data.
//! Guarantees: what [`QuorumHandle::apply`] gives is what the state machine said when the entry was applied
//! on this machine, or that it is not known; the lease is published only after the state that it presupposes.
//!
//! Left to others: what to propose, and serving only while [`LeaseView::is_held`] says so.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tonic::service::Routes;

use super::hello::Introduction;
use super::incoming::{Census, Incoming};
use super::link::{Heard, Link, LinkEvent, Links, Trouble};
use super::log_file::{LogFile, LogFileError};
use super::settings::{PeerAddress, PeerSettings};
use super::tls::{Keys, KeysError};
use crate::cluster::lease::{LeaseTerms, StoreHealth};
use crate::cluster::name::NodeName;
use crate::cluster::quorum::{Effect, PeerInfo, ProposalError, Quorum, SeatKind, Setup, View};
use crate::cluster::raft::log::{Identity, LogError, Recovered, recover};
use crate::cluster::raft::member::{Member, Timing};
use crate::cluster::raft::{ConsensusError, MemberId};
use crate::cluster::state::node::KeyFingerprint;
use crate::cluster::state::{ClusterUuid, Command, ControlState, Outcome, format};
use crate::cluster::versions::Protocol;

/// Where a node keeps the log of consensus, within its state directory.
pub const NODE_DIRECTORY: &str = "quorum";

/// What a member is started with.
pub struct QuorumSetup {
    /// Its name.
    pub name: NodeName,
    /// What it is.
    pub kind: SeatKind,
    /// Directory of its log.
    pub directory: std::path::PathBuf,
    /// How it and the others find each other.
    pub settings: PeerSettings,
    /// Sockets that listen for the others.
    pub listeners: Vec<TcpListener>,
    /// What else is served there, also to callers without a certificate: each service looks for itself.
    pub services: Option<Routes>,
}

/// Why a member can't take part. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum QuorumError {
    /// The log's file.
    #[error(transparent)]
    File(#[from] LogFileError),
    /// The log itself.
    #[error("the log of consensus in {directory} cannot be used: {source}")]
    Log {
        /// Its directory.
        directory: std::path::PathBuf,
        /// Cause.
        source: LogError,
    },
    /// Consensus.
    #[error("consensus cannot start: {0}")]
    Consensus(#[from] ConsensusError),
    /// Keys and certificates.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// There is a log already.
    #[error("there is a cluster in {0} already")]
    Founded(std::path::PathBuf),
    /// The system.
    #[error("the quorum cannot be started: {0}")]
    System(String),
}

/// Speaks to the thread that owns the quorum. Clones speak to the same.
#[derive(Clone)]
pub struct QuorumHandle {
    inputs: mpsc::Sender<Input>,
    state: watch::Receiver<Arc<ControlState>>,
    status: watch::Receiver<Arc<QuorumStatus>>,
    lease: LeaseView,
    life: u64,
}

/// How things are with the quorum, as this member knows.
#[derive(Clone, Debug)]
pub struct QuorumStatus {
    /// Consensus.
    pub view: View,
    /// The others.
    pub peers: Vec<PeerStatus>,
}

/// How things are with another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its name.
    pub name: NodeName,
    /// What it is.
    pub kind: SeatKind,
    /// Whether there is a link to it.
    pub is_reachable: bool,
    /// Since when that is so, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Who it was when it was last there.
    pub member: Option<MemberId>,
    /// Version of its program.
    pub build: String,
    /// Why it cannot be reached, as far as is known.
    pub reason: String,
    /// Whether it is there, and one of the two refuses the other for that reason.
    pub is_refused: bool,
    /// How its store was when it was last heard of.
    pub store: StoreHealth,
}

/// The lease of this node, to be looked at by any thread without waiting.
#[derive(Clone, Debug, Default)]
pub struct LeaseView {
    shared: Arc<SharedLease>,
}

#[derive(Debug, Default)]
struct SharedLease {
    held_until_ms: AtomicU64,
    from_index: AtomicU64,
    /// In what way the store is not well; zero when it is.
    store: AtomicU8,
}

impl LeaseView {
    /// Until when the lease lasts, on [`clock_ms`]'s clock; zero without one.
    #[must_use]
    pub fn held_until_ms(&self) -> u64 {
        self.shared.held_until_ms.load(Ordering::Acquire)
    }

    /// Whether who has seen the control state through `seen_index`
    /// ([`ControlState::applied_index`]) may serve at this moment.
    #[must_use]
    pub fn is_held(&self, now_ms: u64, seen_index: u64) -> bool {
        // In this order: a lease that is seen here was written after what it presupposes.
        now_ms < self.held_until_ms() && seen_index >= self.shared.from_index.load(Ordering::Acquire)
    }

    /// Says how the store is; while it is not well, the lease is not renewed. The others are told.
    pub fn set_store_health(&self, health: StoreHealth) {
        let ailment = match health {
            StoreHealth::Well => 0,
            StoreHealth::Stuck => STUCK,
            StoreHealth::Gone => GONE,
        };
        self.shared.store.store(ailment, Ordering::Release);
    }

    fn store_health(&self) -> StoreHealth {
        match self.shared.store.load(Ordering::Acquire) {
            STUCK => StoreHealth::Stuck,
            GONE => StoreHealth::Gone,
            _ => StoreHealth::Well,
        }
    }

    fn publish(&self, lease: crate::cluster::quorum::Lease) {
        self.shared.from_index.store(lease.from_index, Ordering::Release);
        self.shared.held_until_ms.store(lease.held_until_ms, Ordering::Release);
    }
}

impl QuorumHandle {
    /// The random number of this process, under which its proposals stand in the log.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Proposes a command and waits until it has been committed, and applied here. Bounded in time.
    ///
    /// # Errors
    /// [`ProposalError`]; after [`ProposalError::Unknown`] only the control state tells what came of it.
    pub async fn apply(&self, command: Command) -> Result<Outcome, ProposalError> {
        let (reply, decided) = oneshot::channel();
        if self.inputs.send(Input::Propose(Box::new(command), reply)).await.is_err() {
            return Err(ProposalError::NotProposed);
        }
        match tokio::time::timeout(LONGEST_PROPOSAL, decided).await {
            Ok(Ok(result)) => result,
            _ => Err(ProposalError::Unknown),
        }
    }

    /// The control state, as applied here.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<ControlState>> {
        self.state.clone()
    }

    /// The control state at this moment.
    #[must_use]
    pub fn state(&self) -> Arc<ControlState> {
        self.state.borrow().clone()
    }

    /// How things are.
    #[must_use]
    pub fn status(&self) -> Arc<QuorumStatus> {
        self.status.borrow().clone()
    }

    /// How things are, to be waited on.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Arc<QuorumStatus>> {
        self.status.clone()
    }

    /// Waits so long for the control state to be what is wanted; whether it came to that.
    pub async fn state_becomes(&self, patience: Duration, is_wanted: impl Fn(&ControlState) -> bool) -> bool {
        becomes(self.watch(), patience, |state| is_wanted(state)).await
    }

    /// Waits so long for things to be as is wanted; whether they came to that.
    pub async fn status_becomes(
        &self,
        patience: Duration,
        is_wanted: impl Fn(&QuorumStatus) -> bool,
    ) -> bool {
        becomes(self.watch_status(), patience, |status| is_wanted(status)).await
    }

    /// The lease of this node.
    #[must_use]
    pub fn lease(&self) -> LeaseView {
        self.lease.clone()
    }

    /// Gives the lease back: this node has stopped serving, for all of its volumes.
    pub async fn give_back(&self) {
        let _ = self.inputs.send(Input::GiveBack).await;
    }

    /// Asks for leases again after that.
    pub async fn resume(&self) {
        let _ = self.inputs.send(Input::Resume).await;
    }

    /// Puts the present identity of a member that lost its log in the place of the one that is gone.
    pub async fn replace_member(&self, seat: NodeName) {
        let _ = self.inputs.send(Input::Replace(seat)).await;
    }

    /// Takes the vote of a member that is gone for good.
    pub async fn remove_member(&self, seat: NodeName) {
        let _ = self.inputs.send(Input::Remove(seat)).await;
    }

    /// Ends the thread, the lease given back. Whoever used it must have stopped serving.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        let _ = self.inputs.send(Input::Stop(reply)).await;
        let _ = stopped.await;
    }
}

/// What is waited for is let go of here. Who held it and looked at the same thing again while the quorum's thread wants to
/// change it would wait for ever, and that thread with him.
async fn becomes<T>(
    mut watched: watch::Receiver<T>,
    patience: Duration,
    is_wanted: impl Fn(&T) -> bool,
) -> bool {
    matches!(tokio::time::timeout(patience, watched.wait_for(is_wanted)).await, Ok(Ok(_)))
}

/// Founds a cluster that begins with this state: makes the log of its first member, which is no other than the one
/// whose directory it is. The only way in which a member ever decides without having been accepted by others.
///
/// # Errors
/// [`QuorumError::Founded`] when there is a log, and others.
pub fn found(
    directory: &Path,
    member: &NodeName,
    uuid: ClusterUuid,
    state: &ControlState,
) -> Result<(), QuorumError> {
    let Recovered::Blank(medium) = recover(LogFile::open(directory)?)
        .map_err(|source| QuorumError::Log { directory: directory.to_owned(), source })?
    else {
        return Err(QuorumError::Founded(directory.to_owned()));
    };
    let identity = Identity { member: MemberId(random()?), cluster: uuid.0 };
    let timing = Timing { election_ticks: ELECTION_TICKS, heartbeat_ticks: HEARTBEAT_TICKS };
    Member::found(medium, identity, member.as_str(), &state.encode(), timing)?;
    Ok(())
}

/// Starts a member on a thread of its own.
///
/// # Errors
/// [`QuorumError`].
pub fn start(setup: QuorumSetup) -> Result<(QuorumHandle, std::thread::JoinHandle<()>), QuorumError> {
    let (inputs, received) = mpsc::channel(QUEUE);
    let (started, starting) = std::sync::mpsc::channel();
    let own_inputs = inputs.clone();
    let thread = std::thread::Builder::new().name("quorum".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(QuorumError::System(error.to_string())))),
        };
        runtime.block_on(async {
            match Worker::start(setup, own_inputs) {
                Ok((worker, handle)) => {
                    let _ = started.send(Ok(handle));
                    worker.run(received).await;
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
    });
    let thread = thread.map_err(|error| QuorumError::System(error.to_string()))?;
    let handle = starting.recv().map_err(|_| QuorumError::System("its thread has ended".to_owned()))??;
    Ok((handle, thread))
}

/// The time by which leases are counted: of a clock that runs through suspend, in milliseconds.
#[must_use]
pub fn clock_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let milliseconds = time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000);
    u64::try_from(milliseconds).unwrap_or(0)
}

/// Values of [`SharedLease::store`].
const STUCK: u8 = 1;
const GONE: u8 = 2;

enum Input {
    Link(LinkEvent),
    Propose(Box<Command>, oneshot::Sender<Result<Outcome, ProposalError>>),
    GiveBack,
    Resume,
    Replace(NodeName),
    Remove(NodeName),
    Stop(oneshot::Sender<()>),
}

/// Everything that the thread owns.
struct Worker {
    quorum: Quorum<LogFile>,
    /// By which links come about.
    entrance: Arc<Links>,
    links: BTreeMap<NodeName, Vec<(Link, Instant)>>,
    peers: BTreeMap<NodeName, PeerStatus>,
    waiting: BTreeMap<u64, oneshot::Sender<Result<Outcome, ProposalError>>>,
    state: watch::Sender<Arc<ControlState>>,
    status: watch::Sender<Arc<QuorumStatus>>,
    lease: LeaseView,
    next_ping: u32,
    /// What the others have been told of the store.
    told_store: StoreHealth,
    own_key: (NodeName, SeatKind, KeyFingerprint),
    /// When a key was proposed for the control state.
    key_proposed_at: Option<Instant>,
}

impl Worker {
    fn start(setup: QuorumSetup, inputs: mpsc::Sender<Input>) -> Result<(Self, QuorumHandle), QuorumError> {
        let QuorumSetup { name, kind, directory, settings, listeners, services } = setup;
        let keys = Keys::load(&settings.tls_dir, settings.cluster_uuid)?;
        let member = open(&directory, settings.cluster_uuid, timing(&name, kind, &settings.peers))?;
        let introduction = Introduction {
            cluster: settings.cluster_uuid,
            name: name.clone(),
            kind,
            member: member.identity().member,
            speaks: settings.speaks,
        };
        let life = random()?;
        let newest_format = format::of_version(settings.speaks.of(Protocol::Control).newest());
        let setup = Setup { name: name.clone(), kind, life, terms: LeaseTerms::LAN, newest_format };
        let quorum = Quorum::new(member, setup, clock_ms());
        let now_unix_ms = unix_ms();
        let peers = settings.peers.iter().map(|peer| {
            let status = PeerStatus {
                name: peer.name.clone(),
                kind: peer.kind(),
                is_reachable: false,
                since_unix_ms: now_unix_ms,
                member: None,
                build: String::new(),
                reason: String::new(),
                is_refused: false,
                store: StoreHealth::Well,
            };
            (peer.name.clone(), status)
        });
        let peers: BTreeMap<_, _> = peers.collect();
        let status = QuorumStatus { view: quorum.view(), peers: peers.values().cloned().collect() };
        let (state, watched_state) = watch::channel(quorum.state().clone());
        let (status, watched_status) = watch::channel(Arc::new(status));
        let lease = LeaseView::default();
        let handle = QuorumHandle {
            inputs: inputs.clone(),
            state: watched_state,
            status: watched_status,
            lease: lease.clone(),
            life,
        };
        let own_key = (name, kind, keys.own_key().clone());
        let keys = keys.knowing(handle.watch());
        let entrance = begin_links(introduction, keys, settings.peers, (listeners, services), inputs)?;
        let (links, waiting) = (BTreeMap::new(), BTreeMap::new());
        let (next_ping, told_store) = (0, StoreHealth::Well);
        let worker = Self {
            quorum,
            entrance,
            links,
            peers,
            waiting,
            state,
            status,
            lease,
            next_ping,
            told_store,
            own_key,
            key_proposed_at: None,
        };
        Ok((worker, handle))
    }

    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.take_effects();
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tick(),
                input = inputs.recv() => match input {
                    Some(Input::Stop(reply)) => {
                        self.quorum.give_back(clock_ms());
                        self.take_effects();
                        // The links send by themselves; what is not sent in time is waited for by the others.
                        tokio::time::sleep(LAST_MOMENT).await;
                        let _ = reply.send(());
                        return;
                    }
                    Some(input) => self.take(input),
                    None => return,
                },
            }
            self.take_effects();
            self.publish_status();
        }
    }

    fn tick(&mut self) {
        let store = self.lease.store_health();
        self.quorum.set_store_health(store == StoreHealth::Well);
        self.quorum.handle_tick(clock_ms());
        self.next_ping = (self.next_ping + 1) % PING_TICKS;
        if self.next_ping == 0 || store != self.told_store {
            self.told_store = store;
            self.links.values().flatten().for_each(|(link, _)| link.ping(store));
            self.record_a_key();
        }
    }

    /// Has the cluster know each member by its key from the first time on that it is there.
    fn record_a_key(&mut self) {
        let was_just_tried = self.key_proposed_at.is_some_and(|at| at.elapsed() < KEY_PERIOD);
        if was_just_tried || !self.quorum.view().leadership.may_decide {
            return;
        }
        let state = self.quorum.state();
        let others = self.links.values().flatten().filter_map(|(link, _)| {
            let greeted = &link.greeted;
            Some((&greeted.name, greeted.kind, greeted.key.as_ref()?))
        });
        let (name, kind, key) = &self.own_key;
        let unknown = std::iter::once((name, *kind, key)).chain(others).find_map(|(name, kind, key)| {
            let node = (kind == SeatKind::Node).then_some(name);
            let is_unknown = state.key_of(node).is_some_and(|known| !known.is_known());
            is_unknown.then(|| (node.cloned(), key.clone()))
        });
        if let Some((node, key)) = unknown {
            self.key_proposed_at = Some(Instant::now());
            self.quorum.propose(clock_ms(), &Command::SetKey { node, key, is_first: true });
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Link(event) => self.take_event(event),
            Input::Propose(command, reply) => {
                let number = self.quorum.propose(clock_ms(), &command);
                self.waiting.insert(number, reply);
            }
            Input::GiveBack => self.quorum.give_back(clock_ms()),
            Input::Resume => self.quorum.resume(),
            Input::Replace(seat) => self.quorum.replace_member(seat),
            Input::Remove(seat) => self.quorum.remove_member(seat),
            Input::Stop(_) => {}
        }
    }

    fn take_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(link) => self.add(link),
            LinkEvent::Heard { name, link, heard } => {
                let links = self.links.entry(name.clone()).or_default();
                let Some(known) = links.iter_mut().find(|(known, _)| known.number == link) else { return };
                known.1 = Instant::now();
                let message = match heard {
                    Heard::Message(message) => message,
                    Heard::Ping(store) => {
                        if let Some(peer) = self.peers.get_mut(&name) {
                            peer.store = store;
                        }
                        return;
                    }
                };
                if let Err(error) = self.quorum.handle_message(clock_ms(), &name, message) {
                    tracing::warn!(peer = %name, %error, "a message of consensus cannot be read");
                    self.remove(&name, link);
                }
            }
            LinkEvent::Down { name, link } => self.remove(&name, link),
            LinkEvent::Failed { name, trouble } => self.note_trouble(&name, trouble),
        }
    }

    fn note_trouble(&mut self, name: &NodeName, Trouble { reason, is_refusal }: Trouble) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        if peer.reason != reason {
            tracing::warn!(peer = %name, reason, "no link");
        }
        // Both call each other, and one link is enough.
        if !peer.is_reachable {
            (peer.reason, peer.is_refused) = (reason, is_refusal);
        }
    }

    fn add(&mut self, link: Link) {
        let greeted = link.greeted.clone();
        let links = self.links.entry(greeted.name.clone()).or_default();
        // A peer that has begun a new life has no links of the old one any more.
        links.retain(|(known, _)| known.greeted.member == greeted.member);
        links.push((link, Instant::now()));
        if let Some(peer) = self.peers.get_mut(&greeted.name) {
            if !peer.is_reachable {
                tracing::info!(peer = %greeted.name, "linked");
                (peer.is_reachable, peer.since_unix_ms) = (true, unix_ms());
            }
            (peer.member, peer.build) = (Some(greeted.member), greeted.build);
            (peer.reason, peer.is_refused) = (String::new(), false);
        }
        let newest_format = format::of_version(greeted.speaks.newest());
        let info = PeerInfo { member: greeted.member, kind: greeted.kind, newest_format };
        self.quorum.handle_peer(greeted.name, Some(info));
    }

    fn remove(&mut self, name: &NodeName, number: u64) {
        let Some(links) = self.links.get_mut(name) else { return };
        let before = links.len();
        links.retain(|(link, _)| link.number != number);
        if before > 0 && links.is_empty() {
            tracing::warn!(peer = %name, "the link is gone");
            if let Some(peer) = self.peers.get_mut(name) {
                (peer.is_reachable, peer.since_unix_ms) = (false, unix_ms());
                // It may be in another life when it is heard of again.
                peer.store = StoreHealth::Well;
            }
            self.quorum.handle_peer(name.clone(), None);
        }
    }

    fn take_effects(&mut self) {
        while let Some(effect) = self.quorum.poll_effect() {
            match effect {
                Effect::Send { to, message } => {
                    let links = self.links.get(&to).into_iter().flatten();
                    if let Some((link, _)) = links.max_by_key(|(_, heard)| *heard) {
                        link.send(&message);
                    }
                }
                Effect::StateChanged(state) => {
                    self.entrance.refuse_before(format::version_of(state.format()));
                    drop(self.state.send_replace(state));
                }
                Effect::LeaseChanged(lease) => self.lease.publish(lease),
                Effect::Decided { number, result } => {
                    if let Some(reply) = self.waiting.remove(&number) {
                        // Nobody waits any more for what was given up.
                        let _ = reply.send(result);
                    }
                }
            }
        }
    }

    fn publish_status(&self) {
        let view = self.quorum.view();
        self.status.send_if_modified(|status| {
            let peers = self.peers.values();
            if status.view == view && status.peers.iter().eq(peers.clone()) {
                return false;
            }
            if status.view.failure != view.failure
                && let Some(reason) = &view.failure
            {
                tracing::error!(reason, "this member takes no part any more");
            }
            if status.view.leadership.leader != view.leadership.leader {
                let leader = view.leader().unwrap_or("nobody");
                tracing::info!(leader, term = view.leadership.term, "leadership");
            }
            *status = Arc::new(QuorumStatus { view, peers: peers.cloned().collect() });
            true
        });
    }
}

/// Takes calls and makes them, on the present event loop.
fn begin_links(
    introduction: Introduction,
    keys: Keys,
    peers: Vec<PeerAddress>,
    (listeners, services): (Vec<TcpListener>, Option<Routes>),
    inputs: mpsc::Sender<Input>,
) -> Result<Arc<Links>, QuorumError> {
    let system = |error: &dyn std::error::Error| QuorumError::System(error.to_string());
    let (events, mut arriving) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        while let Some(event) = arriving.recv().await {
            if inputs.send(Input::Link(event)).await.is_err() {
                return;
            }
        }
    });
    let tls = if services.is_some() { keys.server_with_guests() } else { keys.server() };
    let links = Links::new(introduction, keys, peers.clone(), events);
    let services = services.unwrap_or_default().add_service(links.service());
    let census = Census::default();
    for listener in listeners {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| system(&error))?;
        let mut server = tonic::transport::Server::builder()
            .tls_config(tls.clone())
            .map_err(|error| system(&error))?
            .max_concurrent_streams(MOST_STREAMS)
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)));
        let incoming = Incoming::new(listener, census.clone());
        let serving = server.add_routes(services.clone()).serve_with_incoming(incoming);
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "calls of the others are not taken any more");
            }
        });
    }
    for peer in peers {
        tokio::spawn(links.clone().call(peer));
    }
    Ok(links)
}

/// Opens the member whose log is in `directory`. Without a log, or with one that is not whole, it begins a new
/// life in which it has no vote until the others accept it (I13).
fn open(directory: &Path, cluster: ClusterUuid, timing: Timing) -> Result<Member<LogFile>, QuorumError> {
    let failed = |source| QuorumError::Log { directory: directory.to_owned(), source };
    let blank = match recover(LogFile::open(directory)?) {
        Ok(Recovered::Whole(_, image)) if image.identity.cluster != cluster.0 => {
            return Err(failed(LogError::OtherCluster));
        }
        Ok(Recovered::Whole(log, image)) => return Ok(Member::open(log, image, timing)?),
        Ok(Recovered::Blank(medium)) => medium,
        Err(error @ (LogError::Damaged { .. } | LogError::NotALog | LogError::Contradiction(_))) => {
            let mut medium = LogFile::open(directory)?;
            let aside = medium.set_aside(unix_ms())?;
            tracing::error!(%error, aside = %aside.display(), "the log is not whole: this member begins anew");
            medium
        }
        Err(error) => return Err(failed(error)),
    };
    let identity = Identity { member: MemberId(random()?), cluster: cluster.0 };
    tracing::info!(member = identity.member.0, "a new life begins: the other members have to accept it");
    Ok(Member::join(blank, identity, timing)?)
}

/// Time-outs are distinct by seat, so that two members seldom stand for election at once; the witness comes last.
fn timing(own: &NodeName, kind: SeatKind, peers: &[PeerAddress]) -> Timing {
    let before = peers.iter().filter(|peer| peer.kind() == SeatKind::Node && peer.name < *own).count();
    let seat = if kind == SeatKind::Witness { 2 } else { before };
    Timing { election_ticks: ELECTION_TICKS + STAGGER_TICKS * seat, heartbeat_ticks: HEARTBEAT_TICKS }
}

/// A random number that is not zero.
fn random() -> Result<u64, QuorumError> {
    let number = getrandom::u64()
        .map_err(|error| QuorumError::System(format!("the system gives no random bytes: {error}")))?;
    Ok(number.max(1))
}

/// The wall clock, in milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

const TICK: Duration = Duration::from_millis(100);
const ELECTION_TICKS: usize = 10;
const STAGGER_TICKS: usize = 3;
const HEARTBEAT_TICKS: usize = 2;
const PING_TICKS: u32 = 3;
/// Between two proposals of keys.
const KEY_PERIOD: Duration = Duration::from_secs(1);
const QUEUE: usize = 1024;
/// Calls at a time on one connection.
const MOST_STREAMS: u32 = 4;
/// Longer than the quorum itself lets a proposal take.
const LONGEST_PROPOSAL: Duration = Duration::from_secs(12);
const LAST_MOMENT: Duration = Duration::from_millis(50);
