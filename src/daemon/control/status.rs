//! How things are: the control state and the data thread's report as messages.

use super::redundancy::resync;
use super::{Control, Refusal};
use crate::cluster::name::NodeName;
use crate::cluster::state::ControlState;
use crate::cluster::state::volume::{Redundancy, VolumeRecord};
use crate::daemon::engine::{DiskReport, DiskState, EngineReport, PoolReport};
use crate::pair::PartState;
use crate::rpc::management as messages;
use crate::rpc::management::{Health, NodeState, PoolState, Severity, VolumeState};

impl Control {
    /// One page: is it healthy, what must be done, what is there.
    pub async fn status(&self) -> Result<messages::Status, Refusal> {
        let report = self.report().await?;
        let mut items = self.attention_to_members();
        Ok(self.machine.read(|state| messages::Status {
            health: {
                items.extend(self.attention_to_volumes(state, &report));
                items.extend(self.attention_to_maintenance(state));
                items.extend(attention(state, &self.node, &report.pool));
                items.sort_by_key(|item| std::cmp::Reverse(item.severity));
                self.health(state, &report, &items).into()
            },
            cluster: state.cluster().map_or_else(String::new, |cluster| cluster.name.to_string()),
            attention: items,
            summary: self.next_loss(state, &report),
            nodes: {
                let mut nodes = self.other_nodes(state);
                nodes.push(self.node_message(state, &report));
                nodes.sort_by(|one, other| one.name.cmp(&other.name));
                nodes
            },
            volumes: state.volumes().map(|record| self.volume_message(state, record, &report)).collect(),
            pools: vec![self.pool_message(state, &report.pool)],
            witness: self.witness(),
        }))
    }

    /// The node's pool.
    pub async fn pool(&self) -> Result<messages::Pool, Refusal> {
        let report = self.report().await?;
        Ok(self.machine.read(|state| self.pool_message(state, &report.pool)))
    }

    /// A volume as a message.
    pub(super) fn volume_message(
        &self,
        state: &ControlState,
        record: &VolumeRecord,
        report: &EngineReport,
    ) -> messages::Volume {
        let served = report.volume(record.id);
        let part = served.and_then(|served| served.part.as_ref());
        messages::Volume {
            name: record.name.to_string(),
            size_bytes: record.size_bytes,
            used_bytes: served.map_or(0, |served| served.used_bytes),
            state: self.volume_state(record, report).into(),
            primary: record.primary.to_string(),
            epoch: record.epoch,
            id: record.id.0,
            target: state.target_name(&record.name).unwrap_or_default(),
            sector_bytes: record.sector.bytes(),
            physical_sector_bytes: record.sector.physical_bytes(),
            sessions: clamp(served.map_or(0, |served| served.sessions)),
            created_ms: record.created_unix_ms,
            reason: record.reason.clone(),
            resync: part.and_then(|part| part.resync.as_ref()).map(resync),
            home: record.home.as_ref().map_or_else(String::new, ToString::to_string),
            trouble: part.and_then(|part| part.problem.clone()).unwrap_or_default(),
        }
    }

    /// How a volume is, as far as this node knows.
    pub(super) fn volume_state(&self, record: &VolumeRecord, report: &EngineReport) -> VolumeState {
        let served = report.volume(record.id);
        let part = served.and_then(|served| served.part.as_ref());
        let is_served = part.is_none_or(|part| part.state == PartState::Serving);
        let is_online = match record.primary == self.node {
            true => served.is_some() && is_served && !report.pool.offline,
            // Its primary knows better; what is known here is whether it is there.
            false => self.is_reachable(&record.primary),
        };
        let is_resyncing = part.is_some_and(|part| part.resync.is_some());
        volume_state(record, is_online, is_resyncing)
    }

    /// Whether a volume is out of service.
    pub(super) fn is_offline(&self, record: &VolumeRecord, report: &EngineReport) -> bool {
        self.volume_state(record, report) == VolumeState::Offline
    }

    fn health(
        &self,
        state: &ControlState,
        report: &EngineReport,
        attention: &[messages::Attention],
    ) -> Health {
        match health(&report.pool) {
            Health::Down => Health::Down,
            _ if state.volumes().any(|record| self.is_offline(record, report)) => Health::Down,
            Health::Ok if attention.iter().any(|item| item.severity() != Severity::Info) => Health::Degraded,
            health => health,
        }
    }

    fn attention_to_maintenance(&self, state: &ControlState) -> Vec<messages::Attention> {
        let nodes = state.nodes().filter(|(_, node)| node.is_in_maintenance);
        let item = |name: &NodeName| messages::Attention {
            severity: Severity::Info.into(),
            message: format!(
                "node {name} is in maintenance: it serves no mirrored volume and may be switched off"
            ),
            action: format!("when the work is done: gemel node maintenance off {name}"),
            node: String::new(),
        };
        nodes.map(|(name, _)| item(name)).collect()
    }

    fn node_message(&self, state: &ControlState, report: &EngineReport) -> messages::Node {
        let node = state.nodes().find(|(name, _)| **name == self.node).map(|(_, node)| node);
        messages::Node {
            name: self.node.to_string(),
            state: if node.is_some_and(|node| node.is_in_maintenance) {
                NodeState::Maintenance.into()
            } else {
                NodeState::Up.into()
            },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            portals: report.portals.iter().map(ToString::to_string).collect(),
            portal_group_tag: node.map_or(0, |node| node.portal_group_tag.into()),
            uptime_seconds: self.started.elapsed().as_secs(),
            sessions: clamp(report.sessions),
            engine: report.engine.to_owned(),
        }
    }

    fn pool_message(&self, state: &ControlState, pool: &PoolReport) -> messages::Pool {
        messages::Pool {
            node: self.node.to_string(),
            state: pool_state(pool).into(),
            capacity_bytes: pool.capacity_bytes,
            used_bytes: pool.used_bytes,
            disks: pool.disks.iter().map(|disk| disk_message(&self.node, disk)).collect(),
            provisioned_bytes: state.volumes().map(|record| record.size_bytes).sum(),
            cleaned_bytes: pool.cleaned_bytes,
        }
    }
}

fn volume_state(record: &VolumeRecord, is_online: bool, is_resyncing: bool) -> VolumeState {
    match record.redundancy {
        _ if !is_online => VolumeState::Offline,
        // It has all the replicas that it should have.
        Redundancy::Local => VolumeState::InSync,
        Redundancy::Mirrored if record.in_sync.len() == 2 => VolumeState::InSync,
        Redundancy::Mirrored if is_resyncing => VolumeState::Resyncing,
        Redundancy::Mirrored => VolumeState::Solo,
    }
}

/// A disk as a message.
pub(super) fn disk_message(node: &NodeName, disk: &DiskReport) -> messages::Disk {
    let state = match disk.state {
        DiskState::Ok => messages::DiskState::Ok,
        DiskState::Failing => messages::DiskState::Failing,
        DiskState::Failed => messages::DiskState::Failed,
        DiskState::Missing => messages::DiskState::Missing,
    };
    let [read_errors, write_errors, checksum_errors] = disk.errors;
    messages::Disk {
        id: disk.id.clone(),
        path: disk.path.clone(),
        state: state.into(),
        size_bytes: disk.size_bytes,
        node: node.to_string(),
        reason: disk.reason.clone(),
        read_errors,
        write_errors,
        checksum_errors,
    }
}

fn health(pool: &PoolReport) -> Health {
    match pool_state(pool) {
        PoolState::Ok => Health::Ok,
        PoolState::Offline => Health::Down,
        _ => Health::Degraded,
    }
}

fn pool_state(pool: &PoolReport) -> PoolState {
    if pool.offline {
        PoolState::Offline
    } else if pool.disks.iter().any(|disk| disk.state != DiskState::Ok) {
        PoolState::Degraded
    } else {
        PoolState::Ok
    }
}

/// What the administrator should look at, most urgent first.
fn attention(state: &ControlState, node: &NodeName, pool: &PoolReport) -> Vec<messages::Attention> {
    let item = |severity: Severity, message: String, action: &str| messages::Attention {
        severity: severity.into(),
        message,
        action: action.to_owned(),
        node: node.to_string(),
    };
    let mut items = Vec::new();
    if pool.offline {
        let message = format!("the pool of node {node} is offline: it serves no volume");
        let action = "find out why its disks are gone (`gemel disk list`, `gemel event list`), bring them back, \
                      then restart gemeld";
        items.push(item(Severity::Error, message, action));
    }
    for disk in pool.disks.iter().filter(|disk| disk.state != DiskState::Ok) {
        let place = if disk.path.is_empty() { String::new() } else { format!(" ({})", disk.path) };
        let redundancy = match pool.redundancy {
            0 => "the next disk that fails takes the pool offline",
            _ => "new data is redundant",
        };
        let message = format!(
            "disk {}{place} of node {node} is out of service: {}; {redundancy}",
            disk.id, disk.reason
        );
        items.push(item(Severity::Warning, message, "check the disk and its cable"));
    }
    let percent = u64::from(state.settings().space_warning_percent);
    if u128::from(pool.used_bytes) * 100 >= u128::from(pool.capacity_bytes) * u128::from(percent)
        && pool.capacity_bytes > 0
    {
        let message = format!("the pool of node {node} is more than {percent} % full");
        let action = "delete what is not needed, or have hosts unmap free space, before writes that need new space fail";
        items.push(item(Severity::Warning, message, action));
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.severity));
    items
}

fn clamp(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
