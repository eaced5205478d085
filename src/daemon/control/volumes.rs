//! Commands on volumes and disks.

use super::status::disk_message;
use super::{Control, Refusal, now_ms};
use crate::base::units::VolumeId;
use crate::cluster::name::VolumeName;
use crate::cluster::state::volume::{Redundancy, SectorSize};
use crate::cluster::state::{Command, Outcome, Rejection};
use crate::daemon::engine::Request;
use crate::rpc::management as messages;
use crate::rpc::size::show as show_size;

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
        let mut turn = self.turn().await;
        let create = Command::CreateVolume {
            name: name.clone(),
            size_bytes: request.size_bytes,
            sector,
            redundancy: Redundancy::Local,
            primary: self.node.clone(),
            created_unix_ms: now_ms(),
        };
        self.machine.apply(vec![create]).await?;
        let spec =
            self.machine.read(|state| state.volume(&name).map(|record| super::machine::spec(state, record)));
        let spec = spec.ok_or_else(|| Rejection::NoSuchVolume(name.clone()))?;
        if let Err(error) = self.engine.ask(|reply| Request::OpenVolume(spec, reply)).await {
            // What cannot be served must not look as if it could.
            let deleted_unix_ms = now_ms();
            let delete = Command::DeleteVolume { name, force: true, deleted_unix_ms };
            self.machine.apply(vec![delete]).await?;
            return Err(error.into());
        }
        turn.extend(self.machine.read(|state| state.volume(&name).map(|record| record.id)));
        let message = format!("volume {name} of {} was created", show_size(request.size_bytes));
        self.events.info("volume-created", message, &[]);
        self.volume(name.as_str()).await
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
        let effect = |reply| Request::ResizeVolume(id, size_bytes, reply);
        if size_bytes < before_bytes {
            // Recorded first: what lies beyond the end may be half gone after a crash.
            self.machine.apply(vec![resize]).await?;
            self.engine.ask(effect).await?;
        } else {
            // Effective first: it clears what an earlier shrink may have left beyond the old end.
            self.engine.ask(effect).await?;
            self.machine.apply(vec![resize]).await?;
        }
        let (from, to) = (show_size(before_bytes), show_size(size_bytes));
        self.events.info("volume-resized", format!("volume {name} was resized from {from} to {to}"), &[]);
        self.volume(name.as_str()).await
    }

    /// Deletes a volume and gives its space back.
    pub async fn delete_volume(&self, request: messages::DeleteVolumeRequest) -> Result<(), Refusal> {
        let name: VolumeName = request.name.parse()?;
        let mut turn = self.turn().await;
        let (id, size_bytes) = self.find(&name)?;
        let report = self.report().await?;
        let sessions =
            report.volumes.iter().find(|volume| volume.id == id).map_or(0, |volume| volume.sessions);
        if sessions > 0 && !request.force {
            return Err(Refusal::Impossible(format!(
                "volume {name} is in use by {sessions} sessions: log the initiators out, or delete it with --force"
            )));
        }
        let delete =
            Command::DeleteVolume { name: name.clone(), force: request.force, deleted_unix_ms: now_ms() };
        self.machine.apply(vec![delete]).await?;
        self.send_access().await?;
        self.engine.ask(|reply| Request::DeleteVolume(id, reply)).await?;
        let purged = Command::VolumePurged { volume: id, node: self.node.clone() };
        self.machine.apply(vec![purged]).await?;
        turn.remove(&id);
        self.events.info(
            "volume-deleted",
            format!("volume {name} of {} was deleted", show_size(size_bytes)),
            &[],
        );
        Ok(())
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

    /// Takes a disk out of service.
    pub async fn fail_disk(&self, request: messages::FailDiskRequest) -> Result<messages::Disk, Refusal> {
        let _turn = self.turn().await;
        let report = self.report().await?;
        let mut disks = report.pool.disks.iter();
        let disk =
            disks.find(|disk| disk.id == request.disk || disk.path == request.disk).ok_or_else(|| {
                Refusal::NotFound(format!(
                    "the pool has no disk {}: `gemel disk list` shows them",
                    request.disk
                ))
            })?;
        let id = disk.id.clone();
        self.engine.ask(|reply| Request::FailDisk(id.clone(), reply)).await?;
        self.events.warning(
            "disk-failed-by-administrator",
            format!("disk {id} was taken out of service"),
            &[],
        );
        let report = self.report().await?;
        let disk = report.pool.disks.iter().find(|disk| disk.id == id);
        let disk = disk.ok_or_else(|| Refusal::Broken(format!("disk {id} has disappeared")))?;
        Ok(disk_message(&self.node, disk))
    }

    fn find(&self, name: &VolumeName) -> Result<(VolumeId, u64), Refusal> {
        self.machine.read(|state| {
            let record = state.volume(name).ok_or_else(|| Rejection::NoSuchVolume(name.clone()))?;
            if record.primary != self.node {
                return Err(Refusal::Impossible(format!(
                    "volume {name} is served by node {0}: ask that node, with --cluster and an endpoint of {0}",
                    record.primary
                )));
            }
            Ok((record.id, record.size_bytes))
        })
    }
}

/// Whether a command changed something, for those that may be repeated.
pub(super) fn changed(outcomes: &[Outcome]) -> bool {
    outcomes
        .iter()
        .any(|outcome| !matches!(outcome, Outcome::Unchanged | Outcome::OpenToEveryone { is_new: false }))
}
