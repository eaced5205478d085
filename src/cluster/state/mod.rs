//! The control state: a deterministic machine that turns a log of [`Command`]s into what the cluster
//! agrees on.
//!
//! Guarantees: equal logs make equal states, byte for byte when encoded; a rejected command changes
//! nothing but [`ControlState::applied_index`]; every change is idempotent, or guarded by a name, or
//! a compare-and-swap on a volume's epoch. What is decoded has passed the same checks as what is
//! typed in.
//!
//! Left to others: the log and its durability (the daemon, later consensus), leases, and doing what
//! the state says (the daemon).

pub mod access;
pub mod administrator;
pub mod alert;
pub mod clone;
mod command;
pub mod format;
mod hexadecimal;
pub mod history;
pub mod host_group;
pub mod limits;
pub mod node;
mod rejection;
pub mod schedule;
mod sector;
#[cfg(test)]
mod tests;
pub mod user;
pub mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use self::access::InitiatorChap;
use self::alert::AlertTarget;
use self::clone::{NewClone, Origin};
use self::format::NEWEST_FORMAT;
use self::node::{Description, KeyFingerprint, Node};
use self::user::User;
use self::volume::{NewVolume, Proposal, Tombstone, VolumeRecord};
use super::name::{
    AlertName, ClusterName, HostGroupName, InitiatorName, NodeName, UserName, VolumeName, target_name,
};
use crate::base::units::VolumeId;

pub use self::command::{Command, Outcome};
pub use self::rejection::Rejection;

/// Everything that the cluster agrees on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlState {
    format: u32,
    applied_index: u64,
    cluster: Option<Cluster>,
    nodes: BTreeMap<NodeName, Node>,
    #[serde(default)]
    witness: Option<Description>,
    /// The greatest number ever given to a volume.
    last_volume_id: u32,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    tombstones: BTreeMap<VolumeId, Tombstone>,
    chap: BTreeMap<InitiatorName, InitiatorChap>,
    settings: Settings,
    #[serde(default)]
    alerts: BTreeMap<AlertName, AlertTarget>,
    #[serde(default)]
    users: BTreeMap<UserName, User>,
    /// Keys of machines that were removed or replaced: their certificates are void.
    #[serde(default)]
    void_keys: BTreeSet<KeyFingerprint>,
    /// Since format 9.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    host_groups: BTreeMap<HostGroupName, BTreeSet<InitiatorName>>,
    /// Since format 9.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    revoked_administrators: BTreeSet<NodeName>,
}

impl ControlState {
    /// The state before the first command.
    #[must_use]
    pub fn new() -> Self {
        Self {
            format: NEWEST_FORMAT,
            applied_index: 0,
            cluster: None,
            nodes: BTreeMap::new(),
            witness: None,
            last_volume_id: 0,
            volumes: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            chap: BTreeMap::new(),
            settings: Settings::default(),
            alerts: BTreeMap::new(),
            users: BTreeMap::new(),
            void_keys: BTreeSet::new(),
            host_groups: BTreeMap::new(),
            revoked_administrators: BTreeSet::new(),
        }
    }

    /// The state of a cluster that begins with these commands, which together count as the first entry.
    ///
    /// # Errors
    /// [`Rejection`] of the first command that does not follow from those before it.
    pub fn founded(commands: impl IntoIterator<Item = Command>) -> Result<Self, Rejection> {
        Self::new().beginning_with(commands)
    }

    /// [`Self::founded`], from a state in which nothing has been done.
    ///
    /// # Errors
    /// [`Rejection`] of the first command that does not follow from those before it.
    pub fn beginning_with(self, commands: impl IntoIterator<Item = Command>) -> Result<Self, Rejection> {
        let mut state = self;
        for command in commands {
            state.apply(state.applied_index + 1, command)?;
        }
        state.applied_index = 1;
        Ok(state)
    }

    /// [`Self::apply_proposed`] of a command of which nobody asks who proposed it.
    ///
    /// # Errors
    /// [`Rejection`] when the state does not allow the command; the entry counts as applied then too.
    pub fn apply(&mut self, index: u64, command: Command) -> Result<Outcome, Rejection> {
        self.apply_proposed(index, 0, command)
    }

    /// Applies the log's entry `index`, the next after [`Self::applied_index`] or a later one, which the process with
    /// the random number `life` has proposed, as the entry says.
    ///
    /// # Errors
    /// [`Rejection`] when the state does not allow the command; the entry counts as applied then too.
    pub fn apply_proposed(&mut self, index: u64, life: u64, command: Command) -> Result<Outcome, Rejection> {
        if index <= self.applied_index {
            return Err(Rejection::AlreadyApplied { index, applied_index: self.applied_index });
        }
        self.applied_index = index;
        if self.cluster.is_none() && !matches!(command, Command::CreateCluster { .. }) {
            return Err(Rejection::NoCluster);
        }
        self.check_format(&command)?;
        self.apply_command(life, command)
    }

    /// Index of the last entry applied.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// The cluster, once it has been created.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The iSCSI target name of a volume; none before the cluster exists.
    #[must_use]
    pub fn target_name(&self, volume: &VolumeName) -> Option<String> {
        self.cluster.as_ref().map(|cluster| target_name(&cluster.name, volume))
    }

    /// The state as bytes, equal for equal states. They hold CHAP secrets.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with text keys and plain values always encode")
    }

    /// The state that [`Self::encode`] made these bytes of.
    ///
    /// # Errors
    /// [`DecodeError`] when a newer version made them, or something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Header { format } = serde_json::from_slice(bytes).map_err(DecodeError::malformed)?;
        if format > NEWEST_FORMAT {
            return Err(DecodeError::Newer { format });
        }
        let mut state: Self = serde_json::from_slice(bytes).map_err(DecodeError::malformed)?;
        state.format = Self::kept_format(format);
        match state.flaw() {
            None => Ok(state),
            Some(flaw) => Err(DecodeError::Inconsistent { flaw }),
        }
    }

    /// Which invariant the state breaks; none when it is sound, as it is after every command.
    fn flaw(&self) -> Option<&'static str> {
        let is_empty = self.nodes.is_empty() && self.volumes.is_empty() && self.tombstones.is_empty();
        let names: BTreeSet<_> = self.volumes.values().map(|record| &record.name).collect();
        let greatest = self.volumes.keys().chain(self.tombstones.keys()).max();
        let dead = |id| self.tombstones.contains_key(id);
        if self.cluster.is_none() && !is_empty {
            Some("there are nodes or volumes but no cluster")
        } else if names.len() < self.volumes.len() {
            Some("two volumes have the same name")
        } else if greatest.is_some_and(|id| id.0 > self.last_volume_id) {
            Some("a volume has a number that was never given")
        } else if self.volumes.iter().any(|(id, record)| *id != record.id || dead(id)) {
            Some("a volume has the number of another one")
        } else if self.lacks_host_group() {
            Some("an access list names a host group that is not there")
        } else if let Some(flaw) = clone::flaw(&self.volumes) {
            Some(flaw)
        } else {
            let descriptions = self.nodes.values().map(|node| &node.description).chain(&self.witness);
            let mut flaws = descriptions.filter_map(Description::flaw);
            flaws.next().or_else(|| self.volumes.values().find_map(|record| record.flaw(&self.nodes)))
        }
    }

    fn apply_command(&mut self, life: u64, command: Command) -> Result<Outcome, Rejection> {
        match command {
            Command::CreateCluster { name, uuid, created_unix_ms } => {
                self.create_cluster(Cluster { name, uuid, created_unix_ms })
            }
            Command::AddNode { name } => self.add_node(name),
            Command::DescribeNode { name, description } => self.describe_node(name, description),
            Command::SetWitness { description } => self.set_witness(description),
            Command::RemoveNode { name } => self.remove_node(&name),
            Command::RemoveWitness {} => Ok(self.remove_witness()),
            Command::SetKey { node, key, is_first } => self.set_key(node, key, is_first),
            Command::CreateVolume { name, size_bytes, sector, redundancy, primary, created_unix_ms } => self
                .create_volume(NewVolume { name, size_bytes, sector, redundancy, primary, created_unix_ms }),
            Command::CloneVolume {
                name,
                origin,
                expected_epoch,
                snapshot,
                snapshot_name,
                created_unix_ms,
            } => {
                let origin = Origin { volume: origin, snapshot, snapshot_name };
                self.clone_volume(NewClone { name, origin, expected_epoch, created_unix_ms })
            }
            Command::ResizeVolume { name, size_bytes, may_shrink } => {
                self.resize_volume(&name, size_bytes, may_shrink)
            }
            Command::DeleteVolume { name, force, deleted_unix_ms } => {
                self.delete_volume(&name, force, deleted_unix_ms)
            }
            Command::VolumePurged { volume, node } => Ok(self.volume_purged(volume, &node)),
            Command::BeginEpoch {
                volume,
                expected_epoch,
                transition,
                primary,
                in_sync,
                first_sequence,
                reason,
            } => self.begin_epoch(Proposal {
                volume,
                expected_epoch,
                transition,
                primary,
                in_sync,
                first_sequence,
                reason,
                life,
            }),
            Command::SetHome { volume, home } => self.set_home(&volume, home),
            Command::SetSnapshotSchedule { volume, schedule } => {
                self.set_snapshot_schedule(&volume, schedule)
            }
            Command::SetVolumeLimits { volume, limits } => self.set_volume_limits(&volume, limits),
            Command::SetMaintenance { node, is_on } => self.set_maintenance(node, is_on),
            Command::ForcePrimary { volume, expected_epoch, primary, kept_through, forced_unix_ms: _ } => {
                self.force_primary(volume, (expected_epoch, life), primary, kept_through)
            }
            Command::RecordWatermarks { watermarks } => Ok(self.record_watermarks(watermarks)),
            Command::AllowInitiator { volume, initiator } => self.allow_initiator(&volume, initiator),
            Command::DenyInitiator { volume, initiator } => self.deny_initiator(&volume, &initiator),
            Command::ChangeHostGroup { name, added, removed } => {
                self.change_host_group(name, added, &removed)
            }
            Command::RevokeAdministrator { name } => self.revoke_administrator(name),
            Command::RemoveHostGroup { name } => self.remove_host_group(&name),
            Command::SetChap { initiator, incoming, mutual } => self.set_chap(initiator, incoming, mutual),
            Command::ClearChap { initiator } => Ok(self.clear_chap(&initiator)),
            Command::SaveReservations { volume, epoch, expected_revision, registration_count, encoded } => {
                self.save_reservations(volume, (epoch, expected_revision), registration_count, encoded)
            }
            Command::ChangeSettings { settings } => self.change_settings(settings),
            Command::RaiseFormat { format } => Ok(self.raise_format(format)),
            Command::SetAlert { name, target } => self.set_alert(name, target),
            Command::RemoveAlert { name } => Ok(self.remove_alert(&name)),
            Command::AddUser { name, role, password, invitation } => {
                self.add_user(name, role, password, invitation)
            }
            Command::RemoveUser { name } => Ok(self.remove_user(&name)),
            Command::SetUserRole { name, role } => self.set_user_role(&name, role),
            Command::SetPassword { name, password, by, set_unix_ms } => {
                self.set_password(&name, password, by.as_ref(), set_unix_ms)
            }
            Command::InviteUser { name, invitation } => self.invite_user(&name, invitation),
            Command::AddToken { user, name, token } => self.add_token(&user, name, token),
            Command::RemoveToken { user, name } => Ok(self.remove_token(&user, &name)),
        }
    }

    fn create_cluster(&mut self, cluster: Cluster) -> Result<Outcome, Rejection> {
        match &self.cluster {
            Some(present) if *present == cluster => Ok(Outcome::Unchanged),
            Some(present) => Err(Rejection::ClusterExists { name: present.name.to_string() }),
            None => {
                self.cluster = Some(cluster);
                Ok(Outcome::Changed)
            }
        }
    }

    fn change_settings(&mut self, settings: Settings) -> Result<Outcome, Rejection> {
        settings.check()?;
        if self.settings == settings {
            return Ok(Outcome::Unchanged);
        }
        self.settings = settings;
        Ok(Outcome::Changed)
    }
}

impl Default for ControlState {
    fn default() -> Self {
        Self::new()
    }
}

/// Identity of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name, part of every target name.
    pub name: ClusterName,
    /// Its identity, part of every logical unit's identity.
    pub uuid: ClusterUuid,
    /// When it was created, in milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// Sixteen random bytes, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterUuid(pub [u8; 16]);

impl fmt::Display for ClusterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for ClusterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterUuid({self})")
    }
}

impl From<ClusterUuid> for String {
    fn from(uuid: ClusterUuid) -> Self {
        uuid.to_string()
    }
}

impl TryFrom<String> for ClusterUuid {
    type Error = BadUuid;
    fn try_from(text: String) -> Result<Self, BadUuid> {
        let is_plain = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| is_plain).ok_or(BadUuid)?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// A text that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cluster's UUID is 32 hexadecimal digits")]
pub struct BadUuid;

/// What an administrator may choose for the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Share of a pool in use from which hosts and administrators are warned, in percent.
    pub space_warning_percent: u8,
    /// Most that bringing a volume's replica up to date copies a second; none without a limit: redundancy comes
    /// first.
    pub resync_limit_bytes_per_second: Option<u64>,
    /// Share of a pool in use from which it is an error, in percent, where another one than the usual was set. Since format 9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space_error_percent: Option<u8>,
}

impl Settings {
    /// Shares of a pool in use from which there is a warning, and an error, which is not the lesser one.
    #[must_use]
    pub fn space_thresholds_percent(&self) -> (u8, u8) {
        let error = self.space_error_percent.unwrap_or(SPACE_ERROR_PERCENT);
        (self.space_warning_percent, error.max(self.space_warning_percent))
    }

    fn check(&self) -> Result<(), Rejection> {
        let is_percent = |percent: u8| (1..=99).contains(&percent);
        if !is_percent(self.space_warning_percent) {
            return Err(Rejection::BadSetting { name: "space_warning_percent", least: 1, most: 99 });
        }
        if !self.space_error_percent.is_none_or(is_percent) {
            return Err(Rejection::BadSetting { name: "space_error_percent", least: 1, most: 99 });
        }
        Ok(())
    }
}

/// Share of a pool in use from which it is an error, unless another one is set.
const SPACE_ERROR_PERCENT: u8 = 90;

impl Default for Settings {
    fn default() -> Self {
        Self { space_warning_percent: 80, resync_limit_bytes_per_second: None, space_error_percent: None }
    }
}

/// Why bytes are not a control state.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A newer version of this program wrote them.
    #[error("the control state has format {format}, newer than this program knows: use the newer program")]
    Newer {
        /// Its format.
        format: u32,
    },
    /// They have the right form and break an invariant.
    #[error("the control state contradicts itself: {flaw}")]
    Inconsistent {
        /// Which.
        flaw: &'static str,
    },
    /// They are damaged, or something else.
    #[error("the control state cannot be read")]
    Malformed {
        /// Where and why.
        source: serde_json::Error,
    },
}

impl DecodeError {
    fn malformed(source: serde_json::Error) -> Self {
        Self::Malformed { source }
    }
}

/// The part of an encoded state that every format has.
#[derive(Deserialize)]
struct Header {
    format: u32,
}
