//! What a cluster is, without its data: names, members, volumes' definitions, access lists, secrets, and the authority.
//!
//! Restored onto new machines, when both old nodes are gone, it gives hosts the same targets and the same logical units,
//! empty. Volumes keep their numbers, as a logical unit's identity is made of them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::authority::{Authority, AuthorityError};
use super::settings::PeerAddress;
use crate::base::units::VolumeId;
use crate::cluster::name::{ClusterName, NodeName, VolumeName};
use crate::cluster::state::limits::VolumeLimits;
use crate::cluster::state::node::{Description, KeyFingerprint};
use crate::cluster::state::volume::Redundancy;
use crate::cluster::state::{ClusterUuid, Command, ControlState, Rejection};

/// A backup, as JSON in a file that is as secret as a key.
#[derive(Serialize, Deserialize)]
pub struct Backup {
    format: u32,
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// Its identity.
    pub uuid: ClusterUuid,
    authority_certificate: String,
    authority_key: String,
    /// All members.
    pub members: Vec<PeerAddress>,
    commands: Vec<Command>,
}

/// Why a backup can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is something else, or damaged.
    #[error("it is no backup of a cluster, or damaged: {0}")]
    NoBackup(#[from] serde_json::Error),
    /// Of a later version.
    #[error("it was made by a newer version of gemel: use that one")]
    Newer,
    /// Its contents make no cluster.
    #[error("its contents make no cluster: {0}")]
    Contents(#[from] Rejection),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// There is no cluster yet.
    #[error("there is no cluster yet")]
    NoCluster,
}

impl Backup {
    /// Of a cluster as its state says it.
    ///
    /// # Errors
    /// [`BackupError::NoCluster`].
    pub fn new(
        state: &ControlState,
        members: Vec<PeerAddress>,
        authority: &Authority,
    ) -> Result<Self, BackupError> {
        let cluster = state.cluster().ok_or(BackupError::NoCluster)?;
        Ok(Self {
            format: FORMAT,
            cluster: cluster.name.clone(),
            uuid: cluster.uuid,
            authority_certificate: authority.certificate_pem().to_owned(),
            authority_key: authority.key_pem(),
            members,
            commands: commands(state)?,
        })
    }

    /// As a file.
    ///
    /// # Errors
    /// [`BackupError::NoBackup`], never for what [`Self::new`] made.
    pub fn encode(&self) -> Result<String, BackupError> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// From a file.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn decode(text: &str) -> Result<Self, BackupError> {
        let Header { format } = serde_json::from_str(text)?;
        if format > FORMAT {
            return Err(BackupError::Newer);
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The state that a restored cluster begins with.
    ///
    /// # Errors
    /// [`BackupError::Contents`].
    pub fn state(&self) -> Result<ControlState, BackupError> {
        Ok(ControlState::founded(self.commands.clone())?)
    }

    /// The authority.
    ///
    /// # Errors
    /// [`BackupError::Authority`].
    pub fn authority(&self) -> Result<Authority, BackupError> {
        Ok(Authority::from_pem(self.uuid, self.authority_certificate.clone(), &self.authority_key)?)
    }
}

/// What makes such a state out of nothing.
fn commands(state: &ControlState) -> Result<Vec<Command>, BackupError> {
    let cluster = state.cluster().ok_or(BackupError::NoCluster)?;
    let (name, uuid, created_unix_ms) = (cluster.name.clone(), cluster.uuid, cluster.created_unix_ms);
    let mut commands = vec![Command::CreateCluster { name, uuid, created_unix_ms }];
    for (name, node) in state.nodes() {
        commands.push(Command::AddNode { name: name.clone() });
        // Machines come with new keys.
        let description = Description { key: KeyFingerprint::default(), ..node.description.clone() };
        if description != Description::default() {
            let name = name.clone();
            commands.push(Command::DescribeNode { name, description });
        }
    }
    if let Some(witness) = state.witness().cloned() {
        let description = Description { key: KeyFingerprint::default(), ..witness };
        commands.push(Command::SetWitness { description });
    }
    commands.extend(state.host_groups().map(|(name, initiators)| Command::ChangeHostGroup {
        name: name.clone(),
        added: initiators.clone(),
        removed: BTreeSet::new(),
    }));
    let revoke = |name: &NodeName| Command::RevokeAdministrator { name: name.clone() };
    commands.extend(state.revoked_administrators().map(revoke));
    let mut next_id = 1;
    for record in state.volumes() {
        while VolumeId(next_id) < record.id {
            commands.extend(number_passed_over(state, VolumeId(next_id)));
            next_id += 1;
        }
        next_id += 1;
        commands.push(Command::CreateVolume {
            name: record.name.clone(),
            size_bytes: record.size_bytes,
            sector: record.sector,
            redundancy: record.redundancy,
            primary: record.primary.clone(),
            created_unix_ms: record.created_unix_ms,
        });
        let allow = |initiator: &_| Command::AllowInitiator {
            volume: record.name.clone(),
            initiator: Clone::clone(initiator),
        };
        commands.extend(record.access.iter().map(allow));
        let set_home =
            |home: &NodeName| Command::SetHome { volume: record.name.clone(), home: Some(home.clone()) };
        commands.extend(record.home.as_ref().map(set_home));
        if record.limits != VolumeLimits::default() {
            commands.push(Command::SetVolumeLimits { volume: record.name.clone(), limits: record.limits });
        }
    }
    commands.extend(state.chap_initiators().map(|(initiator, chap)| Command::SetChap {
        initiator: initiator.clone(),
        incoming: chap.incoming.clone(),
        mutual: chap.mutual.clone(),
    }));
    commands.extend(
        state.alerts().map(|(name, target)| Command::SetAlert { name: name.clone(), target: target.clone() }),
    );
    for (name, user) in state.users() {
        commands.push(Command::AddUser {
            name: name.clone(),
            role: user.role,
            password: user.password.clone(),
            invitation: user.invitation.clone(),
        });
        commands.extend(user.tokens.iter().map(|(token_name, token)| Command::AddToken {
            user: name.clone(),
            name: token_name.clone(),
            token: token.clone(),
        }));
    }
    commands.push(Command::ChangeSettings { settings: state.settings().clone() });
    Ok(commands)
}

/// Gives a number to a volume that is deleted at once, as it once was.
fn number_passed_over(state: &ControlState, volume: VolumeId) -> Vec<Command> {
    let nodes: Vec<&NodeName> = state.nodes().map(|(name, _)| name).collect();
    let sector = state.volumes().next().map(|record| record.sector);
    let (Some(primary), Some(name), Some(sector)) = (nodes.first(), free_name(state), sector) else {
        return Vec::new();
    };
    let create = Command::CreateVolume {
        name: name.clone(),
        size_bytes: 1 << 20,
        sector,
        redundancy: Redundancy::Local,
        primary: (*primary).clone(),
        created_unix_ms: 0,
    };
    let delete = Command::DeleteVolume { name, force: true, deleted_unix_ms: 0 };
    let purged = nodes.iter().map(|node| Command::VolumePurged { volume, node: (*node).clone() });
    [create, delete].into_iter().chain(purged).collect()
}

/// A name that no volume has.
fn free_name(state: &ControlState) -> Option<VolumeName> {
    let names = (0..).map(|number| format!("passed-over-{number}").parse::<VolumeName>());
    names.flatten().find(|name| state.volume(name).is_none())
}

#[derive(Deserialize)]
struct Header {
    format: u32,
}

/// Format that this program writes; it reads this one and older ones.
const FORMAT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::volume::SectorSize;

    fn state() -> ControlState {
        let create = |name: &str, redundancy| Command::CreateVolume {
            name: name.parse().unwrap(),
            size_bytes: 1 << 30,
            sector: SectorSize::Emulated512,
            redundancy,
            primary: "b".parse().unwrap(),
            created_unix_ms: 2,
        };
        let delete = |name: &str| Command::DeleteVolume {
            name: name.parse().unwrap(),
            force: false,
            deleted_unix_ms: 3,
        };
        let commands = vec![
            Command::CreateCluster {
                name: "main".parse().unwrap(),
                uuid: ClusterUuid([5; 16]),
                created_unix_ms: 1,
            },
            Command::AddNode { name: "a".parse().unwrap() },
            Command::AddNode { name: "b".parse().unwrap() },
            create("one", Redundancy::Mirrored),
            create("two", Redundancy::Local),
            create("passed-over-0", Redundancy::Mirrored),
            delete("one"),
            delete("two"),
            create("four", Redundancy::Mirrored),
            Command::AllowInitiator { volume: "four".parse().unwrap(), initiator: "*".parse().unwrap() },
        ];
        ControlState::founded(commands).unwrap()
    }

    #[test]
    fn what_is_restored_is_what_hosts_knew() {
        let before = state();
        let authority = Authority::create(ClusterUuid([5; 16])).unwrap();
        let backup = Backup::new(&before, Vec::new(), &authority).unwrap().encode().unwrap();
        let backup = Backup::decode(&backup).unwrap();
        assert_eq!(backup.authority().unwrap().public_key().unwrap(), authority.public_key().unwrap());
        let after = backup.state().unwrap();
        let known = |state: &ControlState| -> Vec<_> {
            let facts = state.volumes().map(|record| {
                let target = state.target_name(&record.name);
                (record.id, record.size_bytes, record.access.clone(), record.redundancy, target)
            });
            facts.collect()
        };
        assert_eq!(known(&after), known(&before));
        assert_eq!(known(&after).len(), 2);
        assert_eq!((after.cluster(), after.nodes().count()), (before.cluster(), 2));
        assert_eq!(after.tombstones().count(), 0, "nothing is left to purge");
        assert_eq!(after.applied_index(), 1);
        assert!(ControlState::decode(&after.encode()).is_ok());
    }

    #[test]
    fn what_is_no_backup_is_refused() {
        assert!(matches!(Backup::decode("{\"format\":2}"), Err(BackupError::Newer)));
        for text in ["", "{}", "{\"format\":1}", "x"] {
            assert!(matches!(Backup::decode(text), Err(BackupError::NoBackup(_))), "{text}");
        }
    }
}
