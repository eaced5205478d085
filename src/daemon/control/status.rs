//! How things are: the control state and the data thread's report as messages.

use super::attention::Kind;
use super::redundancy::resync;
use super::{Control, Refusal};
use crate::cluster::name::NodeName;
use crate::cluster::state::ControlState;
use crate::cluster::state::volume::{Redundancy, VolumeRecord};
use crate::daemon::data::disk_book::Priority;
use crate::daemon::engine::{DiskReport, DiskState, EngineReport, PoolReport};
use crate::pair::PartState;
use crate::rpc::management as messages;
use crate::rpc::management::{Health, NodeState, PoolState, Severity, VolumeState};
use crate::rpc::time::show_duration;

impl Control {
    /// One page: is it healthy, what must be done, what is there.
    pub async fn status(&self) -> Result<messages::Status, Refusal> {
        Ok(self.status_by(&*self.report().await?))
    }

    /// [`Self::status`], where the data thread has said already how things are there.
    pub fn status_by(&self, report: &EngineReport) -> messages::Status {
        let mut items = self.attention_to_members();
        self.machine.read(|state| messages::Status {
            health: {
                items.extend(self.attention_to_volumes(state, report));
                items.extend(self.attention_to_maintenance(state));
                items.extend(self.attention_to_power());
                items.extend(attention(state, &self.node, &report.pool));
                items.extend(self.attention_to_failing_disks(&report.pool));
                items.extend(self.attention_to_hosts());
                self.explain(&mut items, &report.pool);
                items.sort_by_key(|item| std::cmp::Reverse(item.severity));
                self.health(state, report, &items).into()
            },
            cluster: state.cluster().map_or_else(String::new, |cluster| cluster.name.to_string()),
            attention: items,
            summary: self.next_loss(state, report),
            nodes: {
                let mut nodes = self.other_nodes(state);
                nodes.push(self.node_message(state, report));
                nodes.sort_by(|one, other| one.name.cmp(&other.name));
                nodes
            },
            volumes: state.volumes().map(|record| self.volume_message(state, record, report)).collect(),
            pools: vec![self.pool_message(state, &report.pool)],
            witness: self.witness(),
        })
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
            snapshots: clamp(served.map_or(0, |served| served.snapshots)),
            snapshot_bytes: served.map_or(0, |served| served.snapshot_bytes),
            snapshot_schedule: record.snapshot_schedule.map(|schedule| messages::SnapshotSchedule {
                every_seconds: schedule.every_seconds,
                keep: schedule.keep,
            }),
            rollback_percent: served.and_then(|served| served.rollback).map(|(done, all)| {
                clamp(u64::try_from(u128::from(done) * 100 / u128::from(all.max(1))).unwrap_or(100))
            }),
            trouble: part.and_then(|part| part.problem.clone()).unwrap_or_default(),
            origin: origin(state, record),
            iops_limit: record.limits.iops,
            bytes_per_second_limit: record.limits.bytes_per_second,
            quota_bytes: record.limits.quota_bytes,
            reserved_bytes: record.limits.reserved_bytes,
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
        let item = |name: &NodeName| {
            let message = format!(
                "node {name} is in maintenance: it serves no mirrored volume and may be switched off"
            );
            let action = format!("when the work is done: gemel node maintenance off {name}");
            Kind::Maintenance.item(Severity::Info, name.as_str(), message, action)
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
            power: self.power().map(|power| power.message()),
        }
    }

    fn pool_message(&self, state: &ControlState, pool: &PoolReport) -> messages::Pool {
        let forecast = *self.forecast.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        messages::Pool {
            node: self.node.to_string(),
            state: pool_state(pool).into(),
            capacity_bytes: pool.capacity_bytes,
            used_bytes: pool.used_bytes,
            disks: pool.disks.iter().map(|disk| self.disk_message(disk)).collect(),
            provisioned_bytes: state.volumes().map(|record| record.size_bytes).sum(),
            cleaned_bytes: pool.cleaned_bytes,
            rebuild_priority: match pool.rebuild_priority {
                Priority::Low => "low",
                Priority::Normal => "normal",
                Priority::High => "high",
            }
            .to_owned(),
            scrub: Some(scrub_message(&self.node, pool)),
            growth_bytes_per_day: forecast.map(|forecast| forecast.bytes_per_day.max(0.0) as u64),
            full_ms: forecast.and_then(|forecast| forecast.full_unix_ms),
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

/// The scrub of a pool as a message.
pub(super) fn scrub_message(node: &NodeName, pool: &PoolReport) -> messages::Scrub {
    let scrub = &pool.scrub;
    let done = u64::from(scrub.next_segment) * 100 / u64::from(pool.segments.max(1));
    let name = |(volume, block): &(u32, u64)| format!("{volume}/{block}");
    messages::Scrub {
        node: node.to_string(),
        running: scrub.is_running,
        percent: if scrub.is_running { clamp(done) } else { 100 },
        started_ms: scrub.started_unix_ms.unwrap_or_default(),
        finished_ms: scrub.finished_unix_ms.unwrap_or_default(),
        checked_blocks: scrub.checked_blocks,
        found: scrub.found,
        repaired: scrub.repaired,
        unrecoverable: scrub.unrecoverable,
        first_unrecoverable: scrub.first_unrecoverable.iter().map(name).collect(),
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
    let is_any = |state: DiskState| pool.disks.iter().any(|disk| disk.state == state);
    if pool.offline {
        PoolState::Offline
    } else if is_any(DiskState::Failed) || is_any(DiskState::Missing) {
        PoolState::Degraded
    } else if is_any(DiskState::Rebuilding) {
        PoolState::Rebuilding
    } else {
        PoolState::Ok
    }
}

/// What the administrator should look at, most urgent first.
fn attention(state: &ControlState, node: &NodeName, pool: &PoolReport) -> Vec<messages::Attention> {
    let item =
        |kind: Kind, severity: Severity, about: &str, message: String, action: &str| messages::Attention {
            node: node.to_string(),
            ..kind.item(severity, about, message, action.to_owned())
        };
    let mut items = Vec::new();
    if pool.offline {
        let message = format!("the pool of node {node} is offline: it serves no volume");
        let has_peer = state.nodes().count() > 1;
        let lost = if has_peer {
            "; if they are lost for good, put new ones in their places, stop gemeld there, gemeld format --force, start \
             it: it is filled from the other node"
        } else {
            ""
        };
        let action = format!(
            "find out why its disks are gone (`gemel disk list`, `gemel event list`), bring them back, then restart \
             gemeld{lost}"
        );
        items.push(item(Kind::PoolOffline, Severity::Error, "", message, &action));
    }
    items.extend(pool.disks.iter().filter_map(|disk| {
        let (severity, message, action) = attention_to_disk(node, disk, pool)?;
        Some(item(Kind::DiskOutOfService, severity, &disk.id, message, &action))
    }));
    if pool.scrub.unrecoverable > 0 {
        let message = format!(
            "the last scrub of node {node} found {} blocks that parity can't give back",
            pool.scrub.unrecoverable
        );
        let action = format!(
            "gemel pool scrub status --node {node} names the first ones; those of a mirrored volume come from the other \
             node, others are to be written again or restored; then: gemel pool scrub start --node {node}"
        );
        items.push(item(Kind::DataUnrecoverable, Severity::Warning, "", message, &action));
    }
    let (warning, error) = state.settings().space_thresholds_percent();
    let thresholds = [(error, Severity::Error), (warning, Severity::Warning)];
    let is_passed = |(percent, _): &(u8, Severity)| {
        u128::from(pool.used_bytes) * 100 >= u128::from(pool.capacity_bytes) * u128::from(*percent)
    };
    if let Some((percent, severity)) =
        thresholds.into_iter().find(is_passed).filter(|_| pool.capacity_bytes > 0)
    {
        let message = format!("the pool of node {node} is more than {percent} % full");
        let action = "delete what is not needed, or have hosts unmap free space, before writes that need new space fail";
        items.push(item(Kind::PoolFilling, severity, "", message, action));
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.severity));
    items
}

/// What is the matter with a disk, and what to do.
fn attention_to_disk(
    node: &NodeName,
    disk: &DiskReport,
    pool: &PoolReport,
) -> Option<(Severity, String, String)> {
    let place = if disk.path.is_empty() { String::new() } else { format!(" ({})", disk.path) };
    match disk.state {
        DiskState::Ok | DiskState::Spare => None,
        DiskState::Rebuilding => {
            let how_far = disk.rebuild.map_or_else(String::new, |rebuild| {
                let percent = rebuild.done_bytes * 100 / rebuild.total_bytes.max(1);
                let rest =
                    rebuild.remaining.map(|rest| format!(", about {} left", show_duration(rest.as_secs())));
                format!(": {percent} % done{}", rest.unwrap_or_default())
            });
            let message = format!(
                "disk {}{place} of node {node} is being rebuilt{how_far}; until then the next disk that fails takes the \
                 pool offline",
                disk.id
            );
            Some((Severity::Warning, message, "nothing: it heals by itself".to_owned()))
        }
        DiskState::Failed | DiskState::Missing => {
            let redundancy = match pool.redundancy {
                0 => "the next disk that fails takes the pool offline",
                _ => "new data is redundant",
            };
            let message = format!(
                "disk {}{place} of node {node} is out of service: {}; {redundancy}",
                disk.id, disk.reason
            );
            let action = format!(
                "check the disk and its cable, or put a new one in; then: gemel disk replace {} PATH",
                disk.id
            );
            Some((Severity::Warning, message, action))
        }
    }
}

/// The snapshot that a clone was made of, for people.
fn origin(state: &ControlState, record: &VolumeRecord) -> String {
    let of = record.origin.as_ref().and_then(|origin| Some((origin, state.volume_by_id(origin.volume)?)));
    of.map_or_else(String::new, |(origin, of)| format!("{}@{}", of.name, origin.snapshot_name))
}

fn clamp(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
