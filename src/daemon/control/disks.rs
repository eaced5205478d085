//! What administrators do with disks and with the scrub of the pool.

use std::path::PathBuf;

use super::attention::Kind;
use super::status::scrub_message;
use super::{Control, Refusal};
use crate::daemon::data::disk_book::Priority;
use crate::daemon::disk_health::Health;
use crate::daemon::engine::{DiskChange, DiskReport, DiskState, EngineReport, PoolReport, Request};
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
        Ok(self.disk_message(find(&report, &id)?))
    }

    /// Takes a disk that is not to be trusted out of service, for a spare to take its place; where that one has not
    /// everything yet, the disk is read if `is_read`. Whether it was done.
    pub async fn retire_disk(&self, disk: &DiskReport, reason: &str, is_read: bool) -> bool {
        let _turn = self.turn().await;
        let DiskReport { id, path, .. } = disk;
        let why = format!("it was retired before it fails: {reason}");
        let change = DiskChange::Retire { disk: id.clone(), reason: why, is_read };
        let evidence = [("disk", id.clone()), ("path", path.clone()), ("detail", reason.to_owned())];
        let retired = self.engine.ask(|reply| Request::ChangeDisks(change, reply)).await;
        match &retired {
            Ok(()) => self.events.warning(
                "disk-retired",
                format!(
                    "disk {id} ({path}) of node {} is not to be trusted and was retired: {reason}. The spare takes its place;                      nothing was at risk. Take the disk out, and add another spare",
                    self.node
                ),
                &evidence,
            ),
            Err(error) => self.events.warning(
                "disk-not-retired",
                format!(
                    "disk {id} ({path}) of node {} is not to be trusted ({reason}), and could not be retired: {error}. It goes                      on being used",
                    self.node
                ),
                &evidence,
            ),
        }
        retired.is_ok()
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
        Ok(self.disk_message(find(&report, &request.path)?))
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

    /// A disk as a message.
    pub(super) fn disk_message(&self, disk: &DiskReport) -> messages::Disk {
        let health = self.health_of(disk);
        let is_failing = matches!(health, Some(Health::Failing(_)));
        let state = match disk.state {
            DiskState::Ok if is_failing => messages::DiskState::Failing,
            DiskState::Ok => messages::DiskState::Ok,
            DiskState::Failed => messages::DiskState::Failed,
            DiskState::Missing => messages::DiskState::Missing,
            DiskState::Rebuilding => messages::DiskState::Rebuilding,
            DiskState::Spare => messages::DiskState::Spare,
        };
        let [read_errors, write_errors, checksum_errors] = disk.errors;
        messages::Disk {
            id: disk.id.clone(),
            path: disk.path.clone(),
            state: state.into(),
            size_bytes: disk.size_bytes,
            node: self.node.to_string(),
            reason: disk.reason.clone(),
            read_errors,
            write_errors,
            checksum_errors,
            slot: disk.slot.map(u32::from),
            rebuild: disk.rebuild.map(|rebuild| messages::Rebuild {
                total_bytes: rebuild.total_bytes,
                done_bytes: rebuild.done_bytes,
                bytes_per_second: rebuild.bytes_per_second,
                remaining_seconds: rebuild.remaining.map(|remaining| remaining.as_secs()),
            }),
            health: health.as_ref().map_or_else(String::new, |health| health.name().to_owned()),
            health_detail: health.as_ref().map_or_else(String::new, |health| health.detail().to_owned()),
        }
    }

    /// Disks in use that say that they fail.
    pub(super) fn attention_to_failing_disks(&self, pool: &PoolReport) -> Vec<messages::Attention> {
        let has_spare = pool.disks.iter().any(|disk| disk.state == DiskState::Spare);
        let next = if has_spare { "the spare takes its place" } else { "then: gemel disk replace {id} PATH" };
        let failing = pool.disks.iter().filter_map(|disk| match self.health_of(disk)? {
            Health::Failing(detail) => Some((disk, detail)),
            _ => None,
        });
        let matter = |(disk, detail): (&DiskReport, String)| {
            let DiskReport { id, path, .. } = disk;
            let message = format!("disk {id} ({path}) of node {} is not to be trusted: {detail}", self.node);
            let action = match disk.state {
                DiskState::Spare => format!("put another one in its place: gemel disk spare remove {path}"),
                _ => format!("while all others are well: gemel disk fail {id}; {}", next.replace("{id}", id)),
            };
            let item = Kind::DiskFailing.item(messages::Severity::Warning, id, message, action);
            messages::Attention { node: self.node.to_string(), ..item }
        };
        failing.map(matter).collect()
    }

    /// What a disk that is in use, or is to be, has said of its health.
    fn health_of(&self, disk: &DiskReport) -> Option<Health> {
        let known = self.disk_health.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_out = matches!(disk.state, DiskState::Failed | DiskState::Missing);
        known.get(&disk.path).filter(|_| !is_out).cloned()
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
