//! The control state of a node and its durable copy: its own where it is the only node, the quorum's in a pair.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Refusal;
use crate::cluster::name::{ClusterName, NodeName};
use crate::cluster::quorum::ProposalError;
use crate::cluster::state::format::NEWEST_FORMAT;
use crate::cluster::state::volume::VolumeRecord;
use crate::cluster::state::{ClusterUuid, Command, ControlState, Outcome};
use crate::daemon::engine::VolumeSpec;
use crate::daemon::state_directory::{StateDirectory, StateError};
use crate::peer::quorum::QuorumHandle;

/// Applies commands and makes them durable.
pub enum Machine {
    /// Of a single node.
    Local(Box<LocalMachine>),
    /// Of a pair: every change goes through the quorum.
    Pair(QuorumHandle),
}

impl Machine {
    /// Looks at the state, as it is known here.
    pub fn read<T>(&self, look: impl FnOnce(&ControlState) -> T) -> T {
        match self {
            Self::Local(local) => local.read(look),
            Self::Pair(quorum) => look(&quorum.state()),
        }
    }

    /// Applies `commands` and makes them durable. A single node applies all or none; a pair one after the other,
    /// up to the first that is refused.
    pub async fn apply(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Refusal> {
        let quorum = match self {
            Self::Local(local) => return local.apply(commands),
            Self::Pair(quorum) => quorum,
        };
        let mut outcomes = Vec::with_capacity(commands.len());
        for command in commands {
            outcomes.push(quorum.apply(command).await?);
        }
        Ok(outcomes)
    }

    /// What `command` would do, without doing it.
    pub fn check(&self, command: Command) -> Result<(), Refusal> {
        self.read(|state| applied(state, vec![command]).map(drop))
    }

    /// The quorum of a pair.
    pub fn quorum(&self) -> Option<&QuorumHandle> {
        match self {
            Self::Local(_) => None,
            Self::Pair(quorum) => Some(quorum),
        }
    }
}

impl From<ProposalError> for Refusal {
    fn from(error: ProposalError) -> Self {
        match error {
            ProposalError::Rejected(rejection) => rejection.into(),
            ProposalError::Unknown => Self::Unknown(error.to_string()),
            other => Self::Impossible(other.to_string()),
        }
    }
}

/// The state of a single node, saved by itself.
pub struct LocalMachine {
    // A lock because calls may run on several threads; it is held for one command and its save, never
    // over a wait for the data thread.
    state: Mutex<ControlState>,
    records: Arc<StateDirectory>,
}

impl LocalMachine {
    /// Loads the state, or creates a cluster of this one node.
    pub fn open(
        records: Arc<StateDirectory>,
        cluster: &ClusterName,
        node: &NodeName,
        now_ms: u64,
    ) -> Result<Self, Refusal> {
        let saved = records.control()?;
        let state = match &saved {
            Some(bytes) => {
                ControlState::decode(bytes).map_err(|error| Refusal::Broken(with_sources(&error)))?
            }
            None => ControlState::new(),
        };
        let machine = Self { state: Mutex::new(state), records };
        if saved.is_some() {
            // No other member could not know it.
            machine.apply(vec![Command::RaiseFormat { format: NEWEST_FORMAT }])?;
        } else {
            let uuid = random_uuid()?;
            machine.apply(vec![
                Command::CreateCluster { name: cluster.clone(), uuid, created_unix_ms: now_ms },
                Command::AddNode { name: node.clone() },
            ])?;
        }
        machine.check_names(cluster, node)?;
        Ok(machine)
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&ControlState) -> T) -> T {
        look(&self.lock())
    }

    /// Applies `commands`, all or none, and makes them durable.
    pub fn apply(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Refusal> {
        let mut state = self.lock();
        let (next, outcomes) = applied(&state, commands)?;
        if outcomes.iter().all(|outcome| *outcome == Outcome::Unchanged) {
            return Ok(outcomes);
        }
        self.records.save_control(&next.encode())?;
        *state = next;
        Ok(outcomes)
    }

    fn check_names(&self, cluster: &ClusterName, node: &NodeName) -> Result<(), Refusal> {
        self.read(|state| {
            check_cluster(state, cluster)?;
            if !state.nodes().any(|(name, _)| name == node) {
                let names: Vec<_> = state.nodes().map(|(name, _)| name.to_string()).collect();
                return Err(Refusal::Impossible(format!(
                    "the state directory knows node {}, but the configuration says {node}; put the name back",
                    names.join(", ")
                )));
            }
            Ok(())
        })
    }

    fn lock(&self) -> MutexGuard<'_, ControlState> {
        // The state is replaced as a whole, so a panic elsewhere leaves a consistent one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of the cluster has to stay.
pub fn check_cluster(state: &ControlState, cluster: &ClusterName) -> Result<(), Refusal> {
    let known = state.cluster().map(|cluster| &cluster.name);
    if known == Some(cluster) {
        return Ok(());
    }
    let known = known.map_or("none", ClusterName::as_str);
    Err(Refusal::Impossible(format!(
        "the state directory belongs to cluster {known}, but the configuration says {cluster}: the name is \
         part of every target's name; put {known} back, or begin anew with another state_dir"
    )))
}

/// What the data thread needs to know of a volume.
pub fn spec(state: &ControlState, record: &VolumeRecord) -> VolumeSpec {
    let uuid = state.cluster().map_or([0; 16], |cluster| volume_uuid(cluster.uuid, record.id.0));
    let mut portal_groups: Vec<_> = state.nodes().map(|(_, node)| node.portal_group_tag).collect();
    portal_groups.sort_unstable();
    let encoded = &record.reservations.encoded;
    VolumeSpec {
        id: record.id,
        name: record.name.to_string(),
        target: state.target_name(&record.name).unwrap_or_default(),
        uuid,
        portal_groups,
        size_bytes: record.size_bytes,
        sector_bytes: record.sector.bytes(),
        physical_sector_bytes: record.sector.physical_bytes(),
        is_new: record.epoch == 0,
        limits: super::volumes::rate_limits(record.limits),
        space: super::volumes::space_rule(record.limits),
        origin: record.origin.as_ref().map(|origin| (origin.volume, origin.version())),
        reservations: if encoded.is_empty() { None } else { Some(encoded.clone()) },
    }
}

/// A volume's UUID: the cluster's, with the volume's number, which is never given again, mixed into
/// the end.
fn volume_uuid(cluster: ClusterUuid, volume: u32) -> [u8; 16] {
    (u128::from_be_bytes(cluster.0) ^ u128::from(volume)).to_be_bytes()
}

fn applied(state: &ControlState, commands: Vec<Command>) -> Result<(ControlState, Vec<Outcome>), Refusal> {
    let mut next = state.clone();
    let outcomes = commands.into_iter().map(|command| next.apply(next.applied_index() + 1, command));
    let outcomes = outcomes.collect::<Result<Vec<_>, _>>()?;
    Ok((next, outcomes))
}

fn random_uuid() -> Result<ClusterUuid, Refusal> {
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid)
        .map_err(|error| Refusal::Broken(format!("the system gives no random bytes: {error}")))?;
    Ok(ClusterUuid(uuid))
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        Self::Broken(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path, cluster: &str, node: &str) -> Result<LocalMachine, Refusal> {
        let records = Arc::new(StateDirectory::open(path).unwrap());
        LocalMachine::open(records, &cluster.parse().unwrap(), &node.parse().unwrap(), 1)
    }

    #[test]
    fn the_state_survives_and_belongs_to_its_names() {
        let place = tempfile::tempdir().unwrap();
        let uuid = |machine: &LocalMachine| machine.read(|state| state.cluster().unwrap().uuid);
        let first = uuid(&open(place.path(), "demo", "a").unwrap());
        assert_eq!(uuid(&open(place.path(), "demo", "a").unwrap()), first);
        let error = open(place.path(), "other", "a").err().unwrap().to_string();
        assert!(error.contains("belongs to cluster demo"), "{error}");
        let error = open(place.path(), "demo", "b").err().unwrap().to_string();
        assert!(error.contains("knows node a"), "{error}");
    }

    #[test]
    fn commands_are_applied_all_or_none() {
        let place = tempfile::tempdir().unwrap();
        let machine = open(place.path(), "demo", "a").unwrap();
        let before = machine.read(ControlState::encode);
        let node = |name: &str| Command::AddNode { name: name.parse().unwrap() };
        let removed = Command::DeleteVolume { name: "v".parse().unwrap(), force: false, deleted_unix_ms: 1 };
        assert!(matches!(machine.apply(vec![node("b"), removed]), Err(Refusal::NotFound(_))));
        assert_eq!(machine.read(ControlState::encode), before);
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let place = tempfile::tempdir().unwrap();
        drop(open(place.path(), "demo", "a").unwrap());
        StateDirectory::open(place.path()).unwrap().save_control(b"{\"format\":99}").unwrap();
        assert!(open(place.path(), "demo", "a").err().unwrap().to_string().contains("newer"));
    }
}
