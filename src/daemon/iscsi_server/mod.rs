//! The iSCSI server: sockets and tasks around the protocol's state machines.
//!
//! One task for each listener and one for each connection, all on the data thread. Limits: sessions,
//! connections that are still logging in and the time they may take, memory for data on its way.

mod commands;
mod connection;
mod linger;
mod mailbox;
mod policy;
mod pulse;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::base::buffer::BufferPool;
use crate::base::runtime::{Instant, RuntimeHandle};
use crate::base::units::VolumeId;
use crate::daemon::config::{Config, Digest, IscsiConfig};
use crate::daemon::data::access::Access;
use crate::daemon::data::pool::Pool;
use crate::daemon::data::volumes::{ServedVolume, Volumes};
use crate::daemon::engine::EngineReport;
use crate::daemon::listen::{ListenError, listen};
use crate::iscsi::DataBudget;
use crate::iscsi::connection::{CloseReason, Connection, ConnectionContext};
use crate::iscsi::login::{LoginRandom, SessionRequest};
use crate::iscsi::names::IscsiName;
use crate::iscsi::pdu::login::LoginStatus;
use crate::iscsi::policy::{LoginPolicy, Portal};
use crate::iscsi::sessions::{Admission, ConnectionId, Sessions};
use crate::iscsi::settings::{DigestOffer, TargetSettings};
use linger::Lingering;
use mailbox::{Mailbox, Message};
use policy::{Policy, Redirection};
use pulse::Pulse;

/// Write data that each connection may always have on its way, whatever the others do.
const GUARANTEE_BYTES: u64 = 64 << 10;
/// How often is looked whether this node has stood still.
const PULSE_PERIOD: Duration = Duration::from_millis(100);
/// Pause of a listener when the system has no more descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server of one node.
pub struct IscsiServer<P: Pool> {
    config: IscsiConfig,
    group_tag: u16,
    settings: Rc<TargetSettings>,
    volumes: Rc<Volumes<P>>,
    access: Rc<Access>,
    runtime: RuntimeHandle,
    buffers: BufferPool,
    budget: DataBudget,
    sessions: RefCell<Sessions>,
    /// With the address at this end.
    connections: RefCell<HashMap<ConnectionId, (Mailbox, IpAddr)>>,
    next_connection: Cell<u64>,
    portals: RefCell<Vec<SocketAddr>>,
    listeners: RefCell<Vec<JoinHandle<()>>>,
    /// Told at the end of each connection.
    connection_ended: Notify,
    /// Sockets of connections that have ended.
    lingering: Lingering,
    is_stopping: Cell<bool>,
    /// Addresses at which no session begins.
    leaving: RefCell<Vec<IpAddr>>,
    /// In a pair, where hosts go on over another path while this node stands still.
    pulse: Option<Pulse>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    logins_in_progress: Cell<u64>,
    logins: Cell<u64>,
    failed_logins: Cell<u64>,
    received_bytes: Cell<u64>,
    sent_bytes: Cell<u64>,
}

impl<P: Pool> IscsiServer<P> {
    /// A server that does not listen yet.
    #[must_use]
    pub fn new(
        config: &Config,
        group_tag: u16,
        volumes: Rc<Volumes<P>>,
        access: Rc<Access>,
        runtime: RuntimeHandle,
        buffers: BufferPool,
    ) -> Rc<Self> {
        let settings = settings(config);
        let max_sessions = usize::try_from(config.iscsi.max_sessions.get()).unwrap_or(usize::MAX);
        // A single command must be able to get its memory.
        let limit_bytes = config.iscsi.memory.0.max(u64::from(settings.transfer_length).next_power_of_two());
        Rc::new(Self {
            config: config.iscsi.clone(),
            group_tag,
            settings: Rc::new(settings),
            volumes,
            access,
            runtime,
            buffers,
            budget: DataBudget::new(limit_bytes, GUARANTEE_BYTES),
            sessions: RefCell::new(Sessions::new(max_sessions)),
            connections: RefCell::default(),
            next_connection: Cell::new(0),
            portals: RefCell::default(),
            listeners: RefCell::default(),
            connection_ended: Notify::new(),
            lingering: Lingering::default(),
            is_stopping: Cell::new(false),
            leaving: RefCell::default(),
            pulse: config.pair.is_some().then(Pulse::new),
            counters: Counters::default(),
        })
    }

    /// Listens on all portals and accepts connections from now on.
    pub fn listen(self: &Rc<Self>) -> Result<(), ListenError> {
        let (what, key) = ("iSCSI", "iscsi.portals");
        let mut sockets = Vec::new();
        for &address in &self.config.portals {
            let failed = |source| ListenError::Other { address, what, key, source };
            let listener = TcpListener::from_std(listen(address, what, key)?).map_err(failed)?;
            sockets.push((listener.local_addr().map_err(failed)?, listener));
        }
        let portals: Vec<_> = sockets.iter().map(|(address, _)| *address).collect();
        self.portals.replace(portals.clone());
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| ListenError::Other {
            address: portals[0],
            what,
            key,
            source: std::io::Error::other(error.to_string()),
        })?;
        let policy: Rc<dyn LoginPolicy> = Rc::new(Policy::new(
            self.volumes.clone(),
            self.access.clone(),
            portals,
            self.group_tag,
            Redirection { portals: self.config.redirecting_portals.clone(), to: self.config.redirect_to },
            random,
        ));
        if self.pulse.is_some() {
            let server = Rc::downgrade(self);
            tokio::task::spawn_local(async move {
                while let Some(server) = server.upgrade() {
                    server.standstills();
                    drop(server);
                    tokio::time::sleep(PULSE_PERIOD).await;
                }
            });
        }
        for (_, listener) in sockets {
            let accepting = self.clone().accept(listener, policy.clone());
            self.listeners.borrow_mut().push(tokio::task::spawn_local(accepting));
        }
        Ok(())
    }

    /// How often this node has stood still, where that matters.
    fn standstills(&self) -> u64 {
        self.pulse.as_ref().map_or(0, Pulse::standstills)
    }

    async fn accept(self: Rc<Self>, listener: TcpListener, policy: Rc<dyn LoginPolicy>) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if self.counters.logins_in_progress.get() >= self.config.max_logins_in_progress.get() {
                        // Closed at once: those that are logging in are bounded in time.
                        continue;
                    }
                    if let Err(error) = self.begin(stream, peer, policy.clone()) {
                        tracing::warn!(%peer, %error, "a connection could not be set up");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "connections cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn begin(
        self: &Rc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        policy: Rc<dyn LoginPolicy>,
    ) -> std::io::Result<()> {
        let local = unmapped(stream.local_addr()?);
        if self.leaving.borrow().contains(&local.ip()) {
            return Ok(());
        }
        stream.set_nodelay(true)?;
        if let Some(algorithm) = &self.config.congestion_control {
            SockRef::from(&stream).set_tcp_congestion(algorithm.as_bytes())?;
        }
        let mut random = [0; LoginRandom::LENGTH];
        getrandom::fill(&mut random).map_err(|error| std::io::Error::other(error.to_string()))?;
        let mailbox = Mailbox::default();
        let wake = mailbox.clone();
        let context = ConnectionContext {
            settings: self.settings.clone(),
            policy,
            pool: self.buffers.clone(),
            budget: self.budget.clone(),
            portal: Portal { address: local.to_string(), group_tag: self.group_tag },
            random: LoginRandom::from_bytes(random),
            wake: Rc::new(move || wake.poke()),
        };
        let machine = Connection::new(context, self.now());
        let id = ConnectionId(self.next_connection.get());
        self.next_connection.set(id.0 + 1);
        self.connections.borrow_mut().insert(id, (mailbox.clone(), local.ip()));
        add(&self.counters.logins_in_progress, 1);
        tokio::task::spawn_local(connection::run(self.clone(), id, stream, peer, machine, mailbox));
        Ok(())
    }

    /// Ends the sessions of a volume that is to be deleted, and waits until they have drained.
    pub async fn end_sessions_of(&self, volume: VolumeId) {
        let Some(volume) = self.volumes.get(volume) else { return };
        let Ok(target) = IscsiName::new(&volume.target) else { return };
        self.drop_until_gone(|sessions| sessions.connections_of_target(&target)).await;
    }

    /// Ends the sessions that the access rules do not allow any more, and waits until they have
    /// drained.
    pub async fn end_sessions_without_access(&self) {
        self.drop_until_gone(|sessions| {
            let denied = sessions.iter().filter(|(identity, _, _)| {
                let volume = self.volumes.of_target(identity.target.as_str());
                !volume.is_some_and(|volume| self.access.may_use(identity.initiator.as_str(), volume.id))
            });
            let denied: Vec<_> = denied.map(|(identity, _, _)| identity.clone()).collect();
            denied.iter().flat_map(|d| sessions.connections_of(&d.initiator, &d.target)).collect()
        })
        .await;
    }

    /// Ends the sessions at addresses that are about to leave this node, and takes none there from now on, until other
    /// addresses are named: once they have left, nothing that is said there arrives, not even that the session is over.
    pub fn refuse_at(&self, addresses: &[IpAddr]) {
        *self.leaving.borrow_mut() = addresses.to_vec();
        self.send_to_those(Message::Drop(CloseReason::Dropped), |local| addresses.contains(&local));
    }

    /// Accepts nothing more, asks initiators to log out, and ends what is left after `timeout`.
    pub async fn stop(&self, timeout: Duration) {
        self.is_stopping.set(true);
        for listener in self.listeners.take() {
            listener.abort();
        }
        self.send_to_all(Message::AskForLogout);
        if tokio::time::timeout(timeout, self.all_ended()).await.is_err() {
            self.send_to_all(Message::Drop(CloseReason::Dropped));
            self.all_ended().await;
        }
        self.lingering.all_closed().await;
    }

    /// Fills in what the server knows.
    pub fn report(&self, report: &mut EngineReport) {
        let counters = &self.counters;
        report.portals = self.portals.borrow().clone();
        report.logins_in_progress = counters.logins_in_progress.get();
        report.logins = counters.logins.get();
        report.failed_logins = counters.failed_logins.get();
        report.network_bytes = (counters.received_bytes.get(), counters.sent_bytes.get());
        report.write_memory_bytes = self.budget.used_bytes();
        for (identity, _, _) in self.sessions.borrow().iter() {
            report.sessions += 1;
            let volume = self.volumes.of_target(identity.target.as_str());
            let mut known = report.volumes.iter_mut();
            let of_session = known.find(|known| volume.as_ref().is_some_and(|volume| volume.id == known.id));
            if let Some(of_session) = of_session {
                of_session.sessions += 1;
            }
        }
    }

    async fn drop_until_gone(&self, which: impl Fn(&Sessions) -> Vec<ConnectionId>) {
        loop {
            let ended = self.connection_ended.notified();
            let connections = which(&self.sessions.borrow());
            if connections.is_empty() {
                return;
            }
            for connection in connections {
                self.send(connection, Message::Drop(CloseReason::Dropped));
            }
            ended.await;
        }
    }

    async fn all_ended(&self) {
        loop {
            let ended = self.connection_ended.notified();
            if self.connections.borrow().is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn send_to_all(&self, message: Message) {
        self.send_to_those(message, |_| true);
    }

    fn send_to_those(&self, message: Message, are_meant: impl Fn(IpAddr) -> bool) {
        let mailboxes: Vec<_> = self.connections.borrow().values().cloned().collect();
        let meant = mailboxes.iter().filter(|(_, local)| are_meant(*local));
        meant.for_each(|(mailbox, _)| mailbox.send(message));
    }
}

/// What connections ask of the server.
impl<P: Pool> IscsiServer<P> {
    fn now(&self) -> Instant {
        self.runtime.now()
    }

    fn group_tag(&self) -> u16 {
        self.group_tag
    }

    /// The volume of `target`, if `initiator` may use it. Asked again when a session begins, because
    /// the login may have waited.
    fn volume_for(&self, target: &IscsiName, initiator: &IscsiName) -> Option<Rc<ServedVolume<P>>> {
        let volume = self.volumes.of_target(target.as_str())?;
        self.access.may_use(initiator.as_str(), volume.id).then_some(volume)
    }

    fn request_session(&self, connection: ConnectionId, request: &SessionRequest) -> Admission {
        if self.is_stopping.get() {
            return Admission::Refused(LoginStatus::SERVICE_UNAVAILABLE);
        }
        self.sessions.borrow_mut().request(connection, request)
    }

    fn send(&self, connection: ConnectionId, message: Message) {
        let mailbox = self.connections.borrow().get(&connection).cloned();
        if let Some((mailbox, _)) = mailbox {
            mailbox.send(message);
        }
    }

    fn drop_sessions_of(&self, volume: VolumeId) {
        let target = self.volumes.get(volume).and_then(|volume| IscsiName::new(&volume.target).ok());
        let Some(target) = target else { return };
        let connections = self.sessions.borrow().connections_of_target(&target);
        connections.into_iter().for_each(|id| self.send(id, Message::Drop(CloseReason::Dropped)));
    }

    fn logged_in(&self) {
        subtract_one(&self.counters.logins_in_progress);
        add(&self.counters.logins, 1);
    }

    /// A connection has ended, and nothing of it is running any more.
    fn ended(&self, connection: ConnectionId, was_logged_in: bool) {
        if !was_logged_in {
            subtract_one(&self.counters.logins_in_progress);
            add(&self.counters.failed_logins, 1);
        }
        self.connections.borrow_mut().remove(&connection);
        let successor = self.sessions.borrow_mut().release(connection);
        if let Some((successor, tsih)) = successor {
            self.send(successor, Message::Admit(tsih));
        }
        self.connection_ended.notify_waiters();
    }

    fn count_received(&self, bytes: usize) {
        add(&self.counters.received_bytes, bytes as u64);
    }

    fn count_sent(&self, bytes: usize) {
        add(&self.counters.sent_bytes, bytes as u64);
    }
}

fn settings(config: &Config) -> TargetSettings {
    let iscsi = &config.iscsi;
    let offer = |digest| match digest {
        Digest::Allow => DigestOffer::Allow,
        Digest::Prefer => DigestOffer::Prefer,
        Digest::Refuse => DigestOffer::Refuse,
    };
    TargetSettings {
        // Bounded by the configuration to 1024.
        queue_depth: iscsi.queue_depth.get() as u32,
        transfer_length: crate::scsi::limits::TRANSFER_BYTES,
        header_digest: offer(iscsi.header_digest),
        data_digest: offer(iscsi.data_digest),
        login_timeout: config.login_timeout(),
        ping_interval: Duration::from_secs(iscsi.keepalive_interval_s.get()),
        ping_timeout: Duration::from_secs(iscsi.keepalive_timeout_s.get()),
        logout_timeout: config.drain_timeout(),
        ..TargetSettings::default()
    }
}

/// An IPv4 address that came in through an IPv6 socket, as IPv4.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

fn subtract_one(counter: &Cell<u64>) {
    counter.set(counter.get() - 1);
}
