//! Commands on volumes and disks.

use std::collections::BTreeSet;

use super::{Control, Refusal, now_ms};
use crate::base::units::VolumeId;
use crate::cluster::name::{NodeName, VolumeName};
use crate::cluster::state::limits::VolumeLimits;
use crate::cluster::state::volume::{Redundancy, SectorSize, VolumeRecord};
use crate::cluster::state::{Command, ControlState, Outcome, Rejection};
use crate::daemon::engine::{EngineError, Request};
use crate::rpc::management as messages;
use crate::rpc::size::show as show_size;
use crate::scsi::rate_limit::RateLimits;
use crate::store::space::SpaceRule;

impl Control {
    /// Creates a volume and serves it.
    pub async fn create_volume(
        &self,
        request: messages::CreateVolumeRequest,
    ) -> Result<messages::Volume, Refusal> {
        let name: VolumeName = request.name.parse()?;
        let sector_bytes = if request.sector_bytes == 0 { 512 } else { request.sector_bytes };
        let physical_bytes =
            if request.physical_sector_bytes == 0 { 4096 } else { request.physical_sector_bytes };
        let sector = SectorSize::new(sector_bytes, physical_bytes)
            .map_err(|error| Refusal::Invalid(error.to_string()))?;
        let is_mirrored = self.machine.quorum().is_some() && !request.local;
        let primary = match request.primary.as_str() {
            "" if is_mirrored => self.machine.read(|state| self.less_busy_node(state)),
            "" => self.node.clone(),
            given => given.parse()?,
        };
        if !is_mirrored && primary != self.node {
            return Err(Refusal::Elsewhere(format!(
                "node {primary} has to create what is to be on it alone"
            )));
        }
        let mut turn = self.turn().await;
        let size_bytes = request.size_bytes;
        let create = Command::CreateVolume {
            name: name.clone(),
            size_bytes,
            sector,
            redundancy: if is_mirrored { Redundancy::Mirrored } else { Redundancy::Local },
            primary,
            created_unix_ms: now_ms(),
        };
        self.machine.apply(vec![create]).await?;
        self.serve_new(&name, is_mirrored, &mut turn).await?;
        let mirrored = if is_mirrored { "mirrored " } else { "" };
        let message = format!("{mirrored}volume {name} of {} was created", show_size(size_bytes));
        self.events.info("volume-created", message, &[]);
        self.volume(name.as_str()).await
    }

    /// Has a volume that was just created served.
    pub(super) async fn serve_new(
        &self,
        name: &VolumeName,
        is_mirrored: bool,
        opened: &mut BTreeSet<VolumeId>,
    ) -> Result<(), Refusal> {
        if is_mirrored {
            // Its primary begins to serve it as soon as it hears of it.
            let begun = |record: &VolumeRecord| record.epoch > 0;
            if !self.volume_becomes(name, begun).await {
                tracing::warn!(%name, "is not served yet");
            }
            return Ok(());
        }
        let spec =
            self.machine.read(|state| state.volume(name).map(|record| super::machine::spec(state, record)));
        let spec = spec.ok_or_else(|| Rejection::NoSuchVolume(name.clone()))?;
        if let Err(error) = self.engine.ask(|reply| Request::OpenVolume(spec, reply)).await {
            // What cannot be served must not look as if it could.
            let deleted_unix_ms = now_ms();
            let delete = Command::DeleteVolume { name: name.clone(), force: true, deleted_unix_ms };
            self.machine.apply(vec![delete]).await?;
            return Err(error.into());
        }
        opened.extend(self.machine.read(|state| state.volume(name).map(|record| record.id)));
        Ok(())
    }

    /// Moves a mirrored volume to the other node, while hosts use it.
    pub async fn move_volume(
        &self,
        request: messages::MoveVolumeRequest,
    ) -> Result<messages::Volume, Refusal> {
        let name: VolumeName = request.name.parse()?;
        let to: NodeName = request.to.parse()?;
        let (record, is_known) = self.machine.read(|state| {
            let record = state.volume(&name).ok_or_else(|| Rejection::NoSuchVolume(name.clone()))?;
            Ok::<_, Rejection>((record.clone(), state.nodes().any(|(node, _)| *node == to)))
        })?;
        let (id, primary) = (record.id, record.primary);
        if !is_known {
            return Err(Refusal::NotFound(format!("there is no node {to}; `gemel node list` shows them")));
        }
        if primary == to {
            return self.volume(name.as_str()).await;
        }
        if record.redundancy == Redundancy::Local {
            return Err(Refusal::Impossible(format!(
                "volume {name} has no mirror: it is on node {primary} alone, and cannot be served by another"
            )));
        }
        if primary != self.node {
            return Err(Refusal::Elsewhere(format!("volume {name} is served by node {primary}")));
        }
        if record.home.as_ref().is_some_and(|home| *home != to) {
            // It would return by itself in a minute.
            let command = Command::SetHome { volume: name.clone(), home: Some(to.clone()) };
            self.machine.apply(vec![command]).await?;
        }
        if !self.engine.ask(|reply| Request::HandOver(id, reply)).await? {
            return Err(Refusal::Impossible(format!(
                "volume {name} is not in sync on both nodes, so {to} cannot take it: `gemel status` says how far it is"
            )));
        }
        if !self.volume_becomes(&name, |record| record.primary == to).await {
            return Err(Refusal::Impossible(format!(
                "volume {name} was not taken by {to} in time; `gemel status` says who serves it"
            )));
        }
        self.volume(name.as_str()).await
    }

    /// The node that is primary of fewer volumes.
    fn less_busy_node(&self, state: &ControlState) -> NodeName {
        let load = |node: &NodeName| state.volumes().filter(|record| record.primary == *node).count();
        let nodes = state.nodes().filter(|(_, node)| !node.is_in_maintenance).map(|(name, _)| name);
        nodes.min_by_key(|name| load(name)).cloned().unwrap_or_else(|| self.node.clone())
    }

    /// Waits a while until a volume of a pair is what is wanted.
    pub(super) async fn volume_becomes(
        &self,
        name: &VolumeName,
        is_wanted: impl Fn(&VolumeRecord) -> bool,
    ) -> bool {
        let Some(quorum) = self.machine.quorum() else { return false };
        quorum.state_becomes(LONGEST_CHANGE, |state| state.volume(name).is_some_and(&is_wanted)).await
    }

    /// Changes a volume's size.
    pub async fn resize_volume(
        &self,
        request: messages::ResizeVolumeRequest,
    ) -> Result<messages::Volume, Refusal> {
        let name: VolumeName = request.name.parse()?;
        let _turn = self.turn().await;
        let (id, before_bytes) = self.find(&name)?;
        let (size_bytes, may_shrink) = (request.size_bytes, request.shrink);
        let resize = Command::ResizeVolume { name: name.clone(), size_bytes, may_shrink };
        self.machine.check(resize.clone())?;
        let effect = async || {
            let resized = self.engine.ask(|reply| Request::ResizeVolume(id, size_bytes, reply)).await;
            resized.map_err(|error| match error {
                // It is being opened, or closed as it moves away: to be looked for again.
                EngineError::NoSuchVolume(_) => {
                    Refusal::Elsewhere(format!("volume {name} is not served at this moment"))
                }
                error => error.into(),
            })
        };
        if size_bytes < before_bytes {
            // Recorded first: what lies beyond the end may be half gone after a crash.
            self.machine.apply(vec![resize]).await?;
            effect().await?;
        } else {
            // Effective first: it clears what an earlier shrink may have left beyond the old end.
            effect().await?;
            self.machine.apply(vec![resize]).await?;
        }
        let (from, to) = (show_size(before_bytes), show_size(size_bytes));
        self.events.info("volume-resized", format!("volume {name} was resized from {from} to {to}"), &[]);
        self.volume(name.as_str()).await
    }

    /// Sets what a volume that this node serves may take of what all share.
    ///
    /// `peer` is the pool of the other node, if there is one and it can be reached.
    pub async fn set_volume(
        &self,
        request: messages::SetVolumeRequest,
        peer: Option<messages::Pool>,
    ) -> Result<messages::Volume, Refusal> {
        let name: VolumeName = request.name.parse()?;
        let _turn = self.turn().await;
        let (id, _) = self.find(&name)?;
        let record = self.machine.read(|state| state.volume_by_id(id).cloned());
        let mut limits = record.ok_or_else(|| Rejection::NoSuchVolume(name.clone()))?.limits;
        limits.iops = request.iops.unwrap_or(limits.iops);
        limits.bytes_per_second = request.bandwidth_bytes_per_second.unwrap_or(limits.bytes_per_second);
        limits.quota_bytes = request.quota_bytes.unwrap_or(limits.quota_bytes);
        limits.reserved_bytes = request.reserved_bytes.unwrap_or(limits.reserved_bytes);
        if request.reserved_bytes.is_some() {
            self.check_reservation(id, limits.reserved_bytes, peer).await?;
        }
        let set = Command::SetVolumeLimits { volume: name.clone(), limits };
        if changed(&self.machine.apply(vec![set]).await?) {
            // Of a mirrored volume the data thread hears by the state, on whichever node serves it.
            let told = self
                .engine
                .ask(|reply| Request::SetLimits(id, rate_limits(limits), space_rule(limits), reply))
                .await;
            if !matches!(told, Ok(()) | Err(EngineError::NoSuchVolume(_))) {
                told?;
            }
            let show = |limit: u64, shown: String| if limit == 0 { "no limit".to_owned() } else { shown };
            let message = format!(
                "limits of volume {name} are: operations in a second {}, bytes in a second {}, space {}; reserved for it: {}",
                show(limits.iops, limits.iops.to_string()),
                show(limits.bytes_per_second, show_size(limits.bytes_per_second)),
                show(limits.quota_bytes, show_size(limits.quota_bytes)),
                show_size(limits.reserved_bytes)
            );
            self.events.info("volume-limits", message, &[("volume", name.to_string())]);
        }
        self.volume(name.as_str()).await
    }

    /// Refuses what the pools could not keep for a volume beside what they keep for others.
    async fn check_reservation(
        &self,
        id: VolumeId,
        reserved_bytes: u64,
        peer: Option<messages::Pool>,
    ) -> Result<(), Refusal> {
        let report = self.report().await?;
        let taken = |id| report.volume(id).map_or(0, |volume| volume.used_bytes + volume.snapshot_bytes);
        let (missing, is_mirrored) = self.machine.read(|state| {
            // What is kept and not filled yet, of the volumes that are on the pool of this node.
            let missing = |record: &VolumeRecord| {
                let reserved = if record.id == id { reserved_bytes } else { record.limits.reserved_bytes };
                let is_here = record.redundancy == Redundancy::Mirrored || record.primary == self.node;
                if is_here { reserved.saturating_sub(taken(record.id)) } else { 0 }
            };
            let sum: u64 = state.volumes().map(missing).sum();
            let record = state.volume_by_id(id);
            (sum, record.is_some_and(|record| record.redundancy == Redundancy::Mirrored))
        });
        let too_much = |node: &str, free: u64| {
            Refusal::Impossible(format!(
                "the pool of node {node} has {} free, and {} would have to be kept for volumes: less can be reserved, or \
                 space is to be made first",
                show_size(free),
                show_size(missing)
            ))
        };
        let own = &report.pool;
        let free = own.capacity_bytes.saturating_sub(own.used_bytes);
        if reserved_bytes > 0 && missing > free {
            return Err(too_much(self.node.as_str(), free));
        }
        match peer {
            Some(pool) if is_mirrored && reserved_bytes > 0 => {
                let free = pool.capacity_bytes.saturating_sub(pool.used_bytes);
                if missing > free { Err(too_much(&pool.node, free)) } else { Ok(()) }
            }
            None if is_mirrored && reserved_bytes > 0 => Err(Refusal::Impossible(
                "the other node cannot be asked whether its pool has the space: try again when it is there"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Deletes a volume and gives its space back.
    pub async fn delete_volume(&self, request: messages::DeleteVolumeRequest) -> Result<(), Refusal> {
        let name: VolumeName = request.name.parse()?;
        let mut turn = self.turn().await;
        let (id, size_bytes) = self.find(&name)?;
        let report = self.report().await?;
        let sessions = report.volume(id).map_or(0, |volume| volume.sessions);
        if sessions > 0 && !request.force {
            return Err(Refusal::Impossible(format!(
                "volume {name} is in use by {sessions} sessions: log the initiators out, or delete it with --force"
            )));
        }
        self.check_unprotected(id, &name, &report).await?;
        let delete =
            Command::DeleteVolume { name: name.clone(), force: request.force, deleted_unix_ms: now_ms() };
        self.machine.apply(vec![delete]).await?;
        self.send_access().await?;
        self.purge(&mut turn).await?;
        self.events.info(
            "volume-deleted",
            format!("volume {name} of {} was deleted", show_size(size_bytes)),
            &[],
        );
        Ok(())
    }

    /// Gives the space of deleted volumes back, as far as that can be; says what failed.
    pub(super) async fn purge(&self, opened: &mut BTreeSet<VolumeId>) -> Result<(), Refusal> {
        let mut outcome = Ok(());
        for id in self.volumes_to_purge() {
            match self.engine.ask(|reply| Request::DeleteVolume(id, reply)).await {
                Ok(()) => {
                    opened.remove(&id);
                    let purged = Command::VolumePurged { volume: id, node: self.node.clone() };
                    outcome = self.machine.apply(vec![purged]).await.map(drop).and(outcome);
                }
                Err(error) => outcome = Err(error.into()),
            }
        }
        outcome
    }

    /// The node that serves a volume.
    pub fn primary_of(&self, name: &str) -> Option<NodeName> {
        let name: VolumeName = name.parse().ok()?;
        self.machine.read(|state| state.volume(&name).map(|record| record.primary.clone()))
    }

    /// One volume.
    pub async fn volume(&self, name: &str) -> Result<messages::Volume, Refusal> {
        let name: VolumeName = name.parse()?;
        let report = self.report().await?;
        self.machine.read(|state| {
            let record = state.volume(&name).ok_or_else(|| Rejection::NoSuchVolume(name.clone()))?;
            Ok(self.volume_message(state, record, &report))
        })
    }

    /// All volumes.
    pub async fn volumes(&self) -> Result<Vec<messages::Volume>, Refusal> {
        let report = self.report().await?;
        Ok(self.machine.read(|state| {
            state.volumes().map(|record| self.volume_message(state, record, &report)).collect()
        }))
    }

    /// Number and size of a volume that this node serves.
    pub(super) fn find(&self, name: &VolumeName) -> Result<(VolumeId, u64), Refusal> {
        self.machine.read(|state| {
            let record = state.volume(name).ok_or_else(|| Rejection::NoSuchVolume(name.clone()))?;
            if record.primary != self.node {
                return Err(Refusal::Elsewhere(format!(
                    "volume {name} is served by node {}",
                    record.primary
                )));
            }
            Ok((record.id, record.size_bytes))
        })
    }
}

/// Longest that a change of who serves a volume is waited for.
const LONGEST_CHANGE: std::time::Duration = std::time::Duration::from_secs(10);

/// What a volume may take of the pool, as the data thread takes it.
pub fn space_rule(limits: VolumeLimits) -> SpaceRule {
    SpaceRule { quota_bytes: limits.quota_bytes, reserved_bytes: limits.reserved_bytes }
}

/// Limits as the data thread takes them.
pub fn rate_limits(limits: VolumeLimits) -> RateLimits {
    RateLimits { operations_per_second: limits.iops, bytes_per_second: limits.bytes_per_second }
}

/// Whether a command changed something, for those that may be repeated.
pub(super) fn changed(outcomes: &[Outcome]) -> bool {
    outcomes
        .iter()
        .any(|outcome| !matches!(outcome, Outcome::Unchanged | Outcome::OpenToEveryone { is_new: false }))
}
