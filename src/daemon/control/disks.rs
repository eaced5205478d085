//! What administrators do with disks and with the scrub of the pool.

use std::path::PathBuf;

use super::status::{disk_message, scrub_message};
use super::{Control, Refusal};
use crate::daemon::data::disk_book::Priority;
use crate::daemon::engine::{DiskChange, DiskReport, DiskState, EngineReport, Request};
use crate::rpc::management as messages;

impl Control {
    /// Takes a disk out of service.
    pub async fn fail_disk(&self, request: messages::FailDiskRequest) -> Result<messages::Disk, Refusal> {
        let _turn = self.turn().await;
        let before = self.report().await?;
        let id = find(&before, &request.disk)?.id.clone();
        let change = DiskChange::Fail { disk: id.clone(), force: request.force };
        self.engine.ask(|reply| Request::ChangeDisks(change, reply)).await?;
        self.events.warning(
            "disk-failed-by-administrator",
            format!("disk {id} was taken out of service"),
            &[],
        );
        let report = self.report().await?;
        Ok(disk_message(&self.node, find(&report, &id)?))
    }

    /// Puts a disk into the place of one that is out of service.
    pub async fn replace_disk(
        &self,
        request: messages::ReplaceDiskRequest,
    ) -> Result<messages::Disk, Refusal> {
        let _turn = self.turn().await;
        let path = absolute(&request.path)?;
        let mut old = None;
        if !request.disk.is_empty() {
            let before = self.report().await?;
            old = Some(find(&before, &request.disk)?.id.clone());
        }
        let change = DiskChange::Replace { disk: old, path: path.clone(), force: request.force };
        self.engine.ask(|reply| Request::ChangeDisks(change, reply)).await?;
        let report = self.report().await?;
        Ok(disk_message(&self.node, find(&report, &request.path)?))
    }

    /// Keeps a spare, or does not any more.
    pub async fn change_spare(
        &self,
        request: messages::ChangeSpareRequest,
    ) -> Result<messages::Pool, Refusal> {
        let path = absolute(&request.path)?;
        let change = if request.keep { DiskChange::AddSpare(path) } else { DiskChange::RemoveSpare(path) };
        self.engine.ask(|reply| Request::ChangeDisks(change, reply)).await?;
        self.pool().await
    }

    /// Sets how fast to rebuild.
    pub async fn set_rebuild_priority(
        &self,
        request: messages::SetRebuildPriorityRequest,
    ) -> Result<messages::Pool, Refusal> {
        let priority = match request.priority.as_str() {
            "low" => Priority::Low,
            "normal" => Priority::Normal,
            "high" => Priority::High,
            other => {
                let text = format!("{other} is no priority: there are low, normal and high");
                return Err(Refusal::Invalid(text));
            }
        };
        self.engine.ask(|reply| Request::ChangeDisks(DiskChange::SetPriority(priority), reply)).await?;
        self.pool().await
    }

    /// Begins or ends a scrub, and tells how it is.
    pub async fn control_scrub(
        &self,
        request: messages::ControlScrubRequest,
    ) -> Result<messages::Scrub, Refusal> {
        let change = match request.action.as_str() {
            "start" => Some(DiskChange::StartScrub),
            "stop" => Some(DiskChange::StopScrub),
            "status" => None,
            other => {
                let text = format!("{other} is not done with a scrub: there are start, stop and status");
                return Err(Refusal::Invalid(text));
            }
        };
        if let Some(change) = change {
            self.engine.ask(|reply| Request::ChangeDisks(change, reply)).await?;
        }
        Ok(scrub_message(&self.node, &self.report().await?.pool))
    }
}

fn find<'a>(report: &'a EngineReport, disk: &str) -> Result<&'a DiskReport, Refusal> {
    let is_it = |known: &&DiskReport| {
        let is_place = known.slot.is_some_and(|slot| slot.to_string() == disk);
        known.state != DiskState::Spare && (known.id == disk || known.path == disk || is_place)
    };
    report.pool.disks.iter().find(is_it).ok_or_else(|| {
        Refusal::NotFound(format!("the pool has no disk {disk}: `gemel disk list` shows them"))
    })
}

fn absolute(path: &str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Refusal::Invalid(format!("{} is not a whole path, which begins with /", path.display())))
}
