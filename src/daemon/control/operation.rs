//! What an administrator does with nodes and with who serves what: maintenance, a stop, a home, force.

use std::time::Duration;

use super::attention::Kind;
use super::{Control, Refusal};
use crate::cluster::name::{NodeName, VolumeName};
use crate::cluster::state::volume::{Redundancy, Transition, VolumeRecord};
use crate::cluster::state::{Command, ControlState, Rejection};
use crate::daemon::engine::Request;
use crate::daemon::power::PowerReport;
use crate::rpc::management as messages;

impl Control {
    /// Completes when an administrator wants the process to end.
    pub async fn stop_wanted(&self) {
        self.stop_wanted.notified().await;
    }

    /// Changes what an administrator may choose for the whole cluster.
    pub async fn change_settings(
        &self,
        request: messages::ChangeSettingsRequest,
    ) -> Result<messages::Cluster, Refusal> {
        let _turn = self.turn().await;
        let mut settings = self.machine.read(|state| state.settings().clone());
        if let Some(percent) = request.space_warning_percent {
            settings.space_warning_percent = u8::try_from(percent).unwrap_or(u8::MAX);
        }
        if let Some(percent) = request.space_error_percent {
            settings.space_error_percent = Some(u8::try_from(percent).unwrap_or(u8::MAX));
        }
        if let Some(limit) = request.resync_limit_bytes_per_second {
            settings.resync_limit_bytes_per_second = (limit > 0).then_some(limit);
        }
        self.machine.apply(vec![Command::ChangeSettings { settings }]).await?;
        Ok(self.cluster())
    }

    /// Frees a node of what it serves and keeps it so, or ends that.
    pub async fn set_maintenance(
        &self,
        request: messages::SetMaintenanceRequest,
    ) -> Result<messages::Node, Refusal> {
        let node = self.node_or_own(&request.node)?;
        let Some(quorum) = self.machine.quorum() else {
            return Err(Refusal::Impossible(
                "a single node has nobody to hand over to: `gemel node shutdown` stops it".to_owned(),
            ));
        };
        if request.on {
            self.check_dispensable(&node, "it cannot be freed of them")?;
        }
        let _turn = self.turn().await;
        let command = Command::SetMaintenance { node: node.clone(), is_on: request.on };
        self.machine.apply(vec![command]).await?;
        if request.on {
            let is_free = |state: &ControlState| !mirrored(state).any(|record| record.primary == node);
            if !quorum.state_becomes(LONGEST_EVACUATION, is_free).await {
                return Err(Refusal::Impossible(format!(
                    "node {node} is in maintenance, but has not handed over everything yet: `gemel status` says what is \
                     left and why; it goes on trying"
                )));
            }
        }
        let what =
            if request.on { "is in maintenance and serves no mirrored volume" } else { "is back in service" };
        self.events.info("node-maintenance", format!("node {node} {what}"), &[]);
        let status = self.status().await?;
        let shown = status.nodes.into_iter().find(|shown| shown.name == node.as_str());
        shown.ok_or_else(|| Rejection::NoSuchNode(node).into())
    }

    /// Ends this process, after what it serves was handed over.
    pub fn shutdown(&self, request: &messages::ShutdownNodeRequest) -> Result<(), Refusal> {
        let node = self.node_or_own(&request.node)?;
        if node != self.node {
            return Err(Refusal::Elsewhere(format!("only node {node} itself can end its process")));
        }
        if !request.force && !request.cluster {
            self.check_dispensable(
                &node,
                "they go out of service when it stops; --force stops it all the same",
            )?;
        }
        let why = match (request.power, request.cluster) {
            (true, _) => {
                self.stop_is_for_power();
                "as the power is gone"
            }
            (false, true) => "as an administrator switched the cluster off",
            (false, false) => "as an administrator asked for it",
        };
        let message = format!("node {node} stops, {why}");
        self.events.info("node-shutdown", message, &[]);
        self.stop_wanted.notify_one();
        Ok(())
    }

    /// Remembers that the process ends for want of power.
    pub fn stop_is_for_power(&self) {
        self.is_stop_for_power.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether the process ends for want of power.
    #[must_use]
    pub fn is_stop_for_power(&self) -> bool {
        self.is_stop_for_power.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Says how the power of this node's room is.
    pub fn set_power(&self, report: PowerReport) {
        *self.power.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(report);
    }

    /// How the power of this node's room is, where it has a UPS.
    #[must_use]
    pub fn power(&self) -> Option<PowerReport> {
        self.power.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// What is the matter with it.
    pub(super) fn attention_to_power(&self) -> Option<messages::Attention> {
        let node = self.node.to_string();
        let matter = self.power()?.matter(&node)?;
        let kind = if matter.is_silence { Kind::UpsSilent } else { Kind::OnBattery };
        let severity = if matter.is_error { messages::Severity::Error } else { messages::Severity::Warning };
        let item = kind.item(severity, &node, matter.message, matter.action);
        Some(messages::Attention { node, ..item })
    }

    /// Sets the node to which a volume returns by itself.
    pub async fn set_volume_home(
        &self,
        request: messages::SetVolumeHomeRequest,
    ) -> Result<messages::Volume, Refusal> {
        let volume: VolumeName = request.name.parse()?;
        let home = match request.home.as_str() {
            "" => None,
            home => Some(home.parse()?),
        };
        let _turn = self.turn().await;
        self.machine.apply(vec![Command::SetHome { volume, home }]).await?;
        self.volume(&request.name).await
    }

    /// Makes this node the primary of a volume of which it lacks what was acknowledged.
    pub async fn force_primary(
        &self,
        request: messages::ForcePrimaryRequest,
    ) -> Result<messages::Volume, Refusal> {
        let name: VolumeName = request.name.parse()?;
        let node = self.node_or_own(&request.node)?;
        if node != self.node {
            return Err(Refusal::Elsewhere(format!("only node {node} itself can take the volume by force")));
        }
        let record = self.machine.read(|state| state.volume(&name).cloned());
        let record = record.ok_or_else(|| Rejection::NoSuchVolume(name.clone()))?;
        if record.redundancy == Redundancy::Local {
            return Err(Rejection::NotMirrored(name).into());
        }
        self.engine.ask(|reply| Request::ForcePrimary(record.id, reply)).await?;
        let is_forced = |now: &VolumeRecord| {
            now.epoch > record.epoch && now.began_by == Some(Transition::Force) && now.primary == node
        };
        if !self.volume_becomes(&name, is_forced).await {
            return Err(Refusal::Impossible(format!(
                "it was not decided that node {node} serves volume {name}: that takes the witness, and that node {} is \
                 off or cut off for some seconds; `gemel cluster show` tells who can be reached",
                record.primary
            )));
        }
        self.volume(name.as_str()).await
    }

    fn node_or_own(&self, name: &str) -> Result<NodeName, Refusal> {
        let node = if name.is_empty() { self.node.clone() } else { name.parse()? };
        let is_known = self.machine.read(|state| state.nodes().any(|(known, _)| *known == node));
        if is_known { Ok(node) } else { Err(Rejection::NoSuchNode(node).into()) }
    }

    /// Refuses when a mirrored volume has all its data on this node alone.
    fn check_dispensable(&self, node: &NodeName, consequence: &str) -> Result<(), Refusal> {
        let needed: Vec<String> = self.machine.read(|state| {
            let is_needed =
                |record: &&VolumeRecord| record.in_sync.len() == 1 && record.in_sync.contains(node);
            mirrored(state).filter(is_needed).map(|record| record.name.to_string()).collect()
        });
        if needed.is_empty() {
            return Ok(());
        }
        Err(Refusal::Impossible(format!(
            "node {node} is the only one that has all data of {}, so {consequence}: wait until both nodes are in sync \
             (`gemel status`)",
            super::redundancy::list(&needed)
        )))
    }
}

/// The mirrored volumes.
pub(super) fn mirrored(state: &ControlState) -> impl Iterator<Item = &VolumeRecord> {
    state.volumes().filter(|record| record.redundancy == Redundancy::Mirrored)
}

/// Longest that a node may take to hand over what it serves.
const LONGEST_EVACUATION: Duration = Duration::from_secs(15);
