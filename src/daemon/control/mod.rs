//! The control side of a node: applies commands to the control state, makes them durable, and has
//! the data thread do what they say.
//!
//! Guarantees: a command is durable before its effect is acknowledged; a command that is refused
//! changes nothing; management commands take effect one after the other.

mod access;
mod alerts;
pub mod attention;
mod clones;
mod decisions;
mod disks;
mod follow;
pub mod images;
mod machine;
mod members;
mod operation;
mod protection;
mod redundancy;
mod snapshots;
mod status;
mod stopping;
mod users;
mod volumes;
mod why;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use tokio::sync::{Mutex, MutexGuard};

use super::config::Config;
use super::control_requests::ControlRequest;
use super::disk_health::HealthByPath;
use super::engine::{AccessRules, ChapRule, EngineError, EngineHandle, EngineReport, Request, VolumeSpec};
use super::event_log::{EventLog, EventReporter};
use super::pool_watch::Forecast;
use super::power::PowerReport;
use super::snapshot_commands::SnapshotCommands;
use super::state_directory::StateDirectory;
use super::steady_clock::SteadyClock;
use crate::base::units::VolumeId;
use crate::cluster::name::{NameError, NodeName};
use crate::cluster::state::volume::{Redundancy, Transition, VolumeRecord};
use crate::cluster::state::{Command, ControlState, Outcome, Rejection};
use crate::peer::quorum::QuorumHandle;
use crate::volume::SnapshotError;
use crate::volume::device::DeviceError;
pub use machine::spec as volume_spec;
use machine::{LocalMachine, Machine};

/// The control side, shared by the services that ask it.
pub struct Control {
    node: NodeName,
    machine: Machine,
    engine: EngineHandle,
    events: EventReporter,
    /// Events that explain what is the matter.
    log: EventLog,
    started: Instant,
    // A lock because commands come from several calls at once: each is applied and takes effect as
    // one. The data thread's own requests do not take it, so they can be served while a change waits
    // for the data thread. In it: the volumes that a node of a pair has opened.
    changing: Mutex<BTreeSet<VolumeId>>,
    /// An administrator wants the process to end.
    stop_wanted: tokio::sync::Notify,
    /// The process ends for want of power.
    is_stop_for_power: AtomicBool,
    // A lock because statuses are made by tasks that may move between threads; held for copies only.
    power: std::sync::Mutex<Option<PowerReport>>,
    // A lock for the same reason.
    forecast: std::sync::Mutex<Option<Forecast>>,
    // A lock for the same reason.
    disk_health: std::sync::Mutex<HealthByPath>,
    /// By which protected snapshots are kept.
    clock: SteadyClock,
    snapshot_commands: SnapshotCommands,
    // A lock for the same reason.
    cloning: std::sync::Mutex<clones::Cloning>,
}

/// Why something was not done. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A name, size or secret that can't be.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// There is such a thing already.
    #[error("{0}")]
    Exists(String),
    /// Not as things are.
    #[error("{0}")]
    Impossible(String),
    /// It may have been done, or may be later.
    #[error("{0}")]
    Unknown(String),
    /// Something has changed since it was looked at.
    #[error("{0}")]
    Stale(String),
    /// Another node has to do it.
    #[error("{0}")]
    Elsewhere(String),
    /// The node can't do what it should be able to.
    #[error("{0}")]
    Broken(String),
}

impl Control {
    /// Loads the control state, or creates it in a new state directory. The names in the
    /// configuration have to be those that it was created with.
    pub fn open(
        config: &Config,
        records: Arc<StateDirectory>,
        engine: EngineHandle,
        (events, log): (EventReporter, EventLog),
        quorum: Option<QuorumHandle>,
    ) -> Result<Self, Refusal> {
        let clock = protection::open_clock(records.clone())?;
        let machine = match quorum {
            Some(quorum) => Machine::Pair(quorum),
            None => {
                let local = LocalMachine::open(records, &config.cluster, &config.node, now_ms())?;
                Machine::Local(Box::new(local))
            }
        };
        let (node, changing) = (config.node.clone(), Mutex::default());
        let snapshot_commands =
            SnapshotCommands::new(config.snapshots.clone(), node.to_string(), events.clone());
        let stop_wanted = tokio::sync::Notify::new();
        Ok(Self {
            node,
            machine,
            engine,
            events,
            log,
            started: Instant::now(),
            changing,
            stop_wanted,
            is_stop_for_power: AtomicBool::new(false),
            power: std::sync::Mutex::default(),
            forecast: std::sync::Mutex::default(),
            disk_health: std::sync::Mutex::default(),
            clock,
            snapshot_commands,
            cloning: std::sync::Mutex::default(),
        })
    }

    /// The name of this node.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// The quorum of a pair.
    pub fn quorum(&self) -> Option<&QuorumHandle> {
        self.machine.quorum()
    }

    /// Looks at the control state, as it is known here.
    pub fn look<T>(&self, look: impl FnOnce(&ControlState) -> T) -> T {
        self.machine.read(look)
    }

    /// The volumes that this node serves and no other can.
    pub fn volume_specs(&self) -> Vec<VolumeSpec> {
        self.machine.read(|state| {
            let is_own = |record: &&VolumeRecord| {
                record.primary == self.node && record.redundancy == Redundancy::Local
            };
            let own = state.volumes().filter(is_own);
            own.map(|record| machine::spec(state, record)).collect()
        })
    }

    /// The portal group of this node.
    pub fn portal_group_tag(&self) -> u16 {
        self.machine.read(|state| {
            let own = state.nodes().find(|(name, _)| **name == self.node);
            own.map_or(1, |(_, node)| node.portal_group_tag)
        })
    }

    /// Deleted volumes whose space this node has not given back; clones before what they were made of.
    pub fn volumes_to_purge(&self) -> Vec<VolumeId> {
        self.machine.read(|state| {
            let awaits = state.tombstones().filter(|(_, tombstone)| tombstone.awaiting.contains(&self.node));
            let mut volumes: Vec<VolumeId> = awaits.map(|(id, _)| id).collect();
            // A clone's number is the greater one.
            volumes.reverse();
            volumes
        })
    }

    /// Who may use what.
    pub fn access_rules(&self) -> AccessRules {
        self.machine.read(|state| {
            let allowed = state
                .volumes()
                .map(|record| (record.id, state.let_in(record).into_iter().collect()))
                .collect();
            let pair = |credentials: &crate::cluster::state::access::ChapCredentials| {
                (credentials.user.clone(), credentials.secret.expose().to_vec())
            };
            let chap = state.chap_initiators().map(|(initiator, chap)| ChapRule {
                initiator: initiator.to_string(),
                incoming: pair(&chap.incoming),
                outgoing: chap.mutual.as_ref().map(pair),
            });
            AccessRules { allowed, chap: chap.collect() }
        })
    }

    /// Keeps what is to be expected of the pool.
    pub fn set_forecast(&self, forecast: Option<Forecast>) {
        *self.forecast.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = forecast;
    }

    /// Keeps what the pool's devices say of their health.
    pub fn set_disk_health(&self, health: HealthByPath) {
        *self.disk_health.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = health;
    }

    /// How things are on the data thread.
    pub async fn report(&self) -> Result<Box<EngineReport>, Refusal> {
        Ok(self.engine.ask(Request::Report).await?)
    }

    /// Decides what the data thread asks for.
    pub async fn decide(&self, request: ControlRequest) {
        // Whoever does not wait for the answer any more has been closed.
        match request {
            ControlRequest::BeginEpochs(volumes, reply) => {
                let _ = reply.send(self.begin_epochs(volumes).await.map_err(|refusal| refusal.to_string()));
            }
            ControlRequest::SaveReservations { volume, epoch, registration_count, encoded, reply } => {
                let saved = self.save_reservations(volume, epoch, registration_count, encoded).await;
                let _ = reply.send(saved.map_err(|refusal| refusal.to_string()));
            }
            ControlRequest::VolumePurged(volume, reply) => {
                let command = Command::VolumePurged { volume, node: self.node.clone() };
                let purged = self.machine.apply(vec![command]).await;
                let _ = reply.send(purged.map(drop).map_err(|refusal| refusal.to_string()));
            }
        }
    }

    /// An earlier save whose outcome was not learned does not come after this one. When it has come before, unseen so
    /// far, this one replaces it.
    async fn save_reservations(
        &self,
        volume: VolumeId,
        epoch: u32,
        registration_count: u32,
        encoded: Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut tries = 0;
        loop {
            let revision = |state: &ControlState| {
                state.volume_by_id(volume).map_or(0, |record| record.reservations.revision)
            };
            let save = Command::SaveReservations {
                volume,
                epoch,
                expected_revision: Some(self.machine.read(revision)),
                registration_count,
                encoded: encoded.clone(),
            };
            tries += 1;
            match self.machine.apply(vec![save]).await {
                Err(Refusal::Stale(_)) if tries < MOST_SAVES => {}
                saved => return saved.map(drop),
            }
        }
    }

    /// A restarted primary never resumes its old epoch (I8).
    async fn begin_epochs(&self, volumes: Vec<(VolumeId, u64)>) -> Result<Vec<u32>, Refusal> {
        let commands = self.machine.read(|state| {
            let command = |(id, first_sequence)| {
                let record = state.volume_by_id(id).ok_or(Rejection::NoSuchVolumeId(id))?;
                Ok(Command::BeginEpoch {
                    volume: id,
                    expected_epoch: record.epoch,
                    transition: Transition::Restart,
                    primary: record.primary.clone(),
                    in_sync: record.in_sync.clone(),
                    first_sequence,
                    reason: format!("node {} opens it anew", record.primary),
                })
            };
            volumes.into_iter().map(command).collect::<Result<Vec<_>, Rejection>>()
        })?;
        let outcomes = self.machine.apply(commands).await?.into_iter();
        Ok(outcomes
            .map(|outcome| if let Outcome::EpochBegun { epoch } = outcome { epoch } else { 0 })
            .collect())
    }

    /// The turn to change something.
    async fn turn(&self) -> MutexGuard<'_, BTreeSet<VolumeId>> {
        self.changing.lock().await
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let text = rejection.to_string();
        match rejection {
            Rejection::VolumeExists(_) | Rejection::UserExists(_) | Rejection::TokenExists(_) => {
                Self::Exists(text)
            }
            Rejection::NoSuchVolume(_)
            | Rejection::NoSuchVolumeId(_)
            | Rejection::NoSuchUser(_)
            | Rejection::NoSuchHostGroup(_) => Self::NotFound(text),
            Rejection::StaleReservations { .. } => Self::Stale(text),
            Rejection::BadSize { .. }
            | Rejection::SecretLength { .. }
            | Rejection::SecretReused { .. }
            | Rejection::BadSnapshotName
            | Rejection::BadUserName => Self::Invalid(text),
            _ => Self::Impossible(text),
        }
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        let text = error.to_string();
        match error {
            EngineError::NoSuchDisk(_)
            | EngineError::NoSuchVolume(_)
            | EngineError::Snapshot(SnapshotError::Unknown) => Self::NotFound(text),
            EngineError::NotServedHere(_)
            | EngineError::Device(DeviceError::NotServing | DeviceError::Gone) => Self::Elsewhere(text),
            EngineError::Ended => Self::Broken(text),
            EngineError::Failed(_) | EngineError::Snapshot(_) | EngineError::Device(_) => {
                Self::Impossible(text)
            }
        }
    }
}

/// How often reservations are saved in vain: each time an earlier save has come to light.
const MOST_SAVES: u32 = 4;

/// The time in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
