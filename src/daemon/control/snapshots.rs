//! Snapshots: taken, listed and deleted by the node that serves their volume, on demand and by schedule.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Control, Refusal, now_ms};
use crate::base::units::VolumeId;
use crate::cluster::name::VolumeName;
use crate::cluster::state::Command;
use crate::cluster::state::schedule::SnapshotSchedule;
use crate::cluster::state::volume::{Redundancy, VolumeRecord};
use crate::daemon::engine::{EngineError, EngineReport, Request, VolumeSnapshot};
use crate::rpc::management as messages;
use crate::rpc::time::{show as show_time, show_seconds};
use crate::volume::SnapshotError;
use crate::volume::snapshot::{SnapshotKind, SnapshotRecord};

impl Control {
    /// Takes a snapshot of a volume that this node serves.
    pub async fn create_snapshot(
        &self,
        request: messages::CreateSnapshotRequest,
    ) -> Result<messages::Snapshot, Refusal> {
        let volume: VolumeName = request.volume.parse()?;
        let (id, _) = self.find(&volume)?;
        let now_ms = now_ms();
        let name = if request.name.is_empty() { show_seconds(now_ms) } else { request.name };
        if !SnapshotRecord::is_name(&name) {
            return Err(Refusal::Invalid(format!(
                "{name:?} is no name of a snapshot: that has 1 to 128 letters, digits, '.', '_', '-' or ':', and does not \
                 begin with '-'"
            )));
        }
        let protected_until_unix_ms = request.protected_until_ms.filter(|until| *until > now_ms);
        if protected_until_unix_ms != request.protected_until_ms {
            return Err(Refusal::Invalid("the time of protection is over already".to_owned()));
        }
        let taken = self.take(id, &volume, &name, (SnapshotKind::Manual, protected_until_unix_ms)).await?;
        let message = format!("snapshot {volume}@{name} was taken");
        self.events.info("snapshot-created", message, &[("volume", volume.to_string())]);
        Ok(message_of(&volume, &taken))
    }

    /// The snapshots of a volume that this node serves, or of all of these; oldest first.
    pub async fn snapshots(&self, volume: &str) -> Result<Vec<messages::Snapshot>, Refusal> {
        let volumes: Vec<(VolumeId, VolumeName)> = if volume.is_empty() {
            self.machine.read(|state| {
                let own = state.volumes().filter(|record| record.primary == self.node);
                own.map(|record| (record.id, record.name.clone())).collect()
            })
        } else {
            let name: VolumeName = volume.parse()?;
            vec![(self.find(&name)?.0, name)]
        };
        let mut snapshots = Vec::new();
        for (id, name) in volumes {
            let listed = self.list(id, &name).await?;
            snapshots.extend(listed.iter().map(|snapshot| message_of(&name, snapshot)));
        }
        Ok(snapshots)
    }

    /// Deletes a snapshot of a volume that this node serves.
    pub async fn delete_snapshot(&self, request: messages::DeleteSnapshotRequest) -> Result<(), Refusal> {
        let volume: VolumeName = request.volume.parse()?;
        let (id, _) = self.find(&volume)?;
        let listed = self.list(id, &volume).await?;
        let wanted = listed.into_iter().find(|snapshot| snapshot.record.name == request.name);
        let wanted = wanted.ok_or_else(|| {
            Refusal::NotFound(format!(
                "volume {volume} has no snapshot {}: `gemel snapshot list {volume}` shows them",
                request.name
            ))
        })?;
        self.drop_snapshot(&volume, &wanted).await?;
        let message = format!("snapshot {volume}@{} was deleted", request.name);
        self.events.info("snapshot-deleted", message, &[("volume", volume.to_string())]);
        Ok(())
    }

    /// Refuses while a volume has a snapshot that nobody may delete yet, also where that cannot be told. A volume of
    /// this node alone that the pool does not have, though it is in order, has none.
    pub(super) async fn check_unprotected(
        &self,
        id: VolumeId,
        volume: &VolumeName,
        report: &EngineReport,
    ) -> Result<(), Refusal> {
        let now_ms = now_ms();
        let is_local = self.machine.read(|state| {
            state.volume_by_id(id).is_some_and(|record| record.redundancy == Redundancy::Local)
        });
        if is_local && !report.pool.offline && report.volume(id).is_none() {
            return Ok(());
        }
        let listed = self.list(id, volume).await?;
        match listed.iter().find(|snapshot| snapshot.record.is_protected(now_ms)) {
            Some(snapshot) => Err(protected(volume, snapshot)),
            None => Ok(()),
        }
    }

    /// Sets when snapshots are taken by themselves.
    pub async fn set_snapshot_schedule(
        &self,
        request: messages::SetSnapshotScheduleRequest,
    ) -> Result<messages::Volume, Refusal> {
        let volume: VolumeName = request.volume.parse()?;
        let schedule = request
            .schedule
            .map(|schedule| SnapshotSchedule { every_seconds: schedule.every_seconds, keep: schedule.keep });
        let _turn = self.turn().await;
        let command = Command::SetSnapshotSchedule { volume: volume.clone(), schedule };
        if super::volumes::changed(&self.machine.apply(vec![command]).await?) {
            let message = match schedule {
                Some(SnapshotSchedule { every_seconds, keep }) => {
                    let every = humantime::format_duration(Duration::from_secs(every_seconds));
                    format!(
                        "a snapshot of volume {volume} is taken every {every}, and {keep} of them are kept"
                    )
                }
                None => format!("snapshots of volume {volume} are not taken by schedule any more"),
            };
            self.events.info("snapshot-schedule", message, &[("volume", volume.to_string())]);
        }
        self.volume(volume.as_str()).await
    }

    /// Takes snapshots by schedule, of the volumes that this node serves, until the task is ended.
    pub async fn keep_schedules(self: Arc<Self>) {
        let mut looks: BTreeMap<VolumeId, (SnapshotSchedule, u64)> = BTreeMap::new();
        let mut failing: BTreeMap<VolumeId, String> = BTreeMap::new();
        loop {
            tokio::time::sleep(SCHEDULE_TICK).await;
            let now_ms = now_ms();
            let scheduled: Vec<(VolumeId, VolumeName, SnapshotSchedule)> = self.machine.read(|state| {
                let own = state.volumes().filter(|record| record.primary == self.node);
                own.filter_map(|record: &VolumeRecord| {
                    Some((record.id, record.name.clone(), record.snapshot_schedule?))
                })
                .collect()
            });
            looks.retain(|id, _| scheduled.iter().any(|(scheduled, ..)| scheduled == id));
            for (id, volume, schedule) in scheduled {
                let is_early =
                    looks.get(&id).is_some_and(|(of, next_ms)| *of == schedule && now_ms < *next_ms);
                if is_early {
                    continue;
                }
                let next_ms = match self.follow_schedule(id, &volume, schedule, now_ms).await {
                    Ok(()) => {
                        failing.remove(&id);
                        schedule.next_unix_ms(now_ms)
                    }
                    Err(refusal) => {
                        let reason = refusal.to_string();
                        if failing.insert(id, reason.clone()).as_ref() != Some(&reason) {
                            let message = format!("no snapshot of volume {volume} by schedule: {reason}");
                            self.events.warning(
                                "snapshot-failed",
                                message,
                                &[("volume", volume.to_string())],
                            );
                        }
                        now_ms + RETRY_MS
                    }
                };
                looks.insert(id, (schedule, next_ms));
            }
        }
    }

    /// Takes a snapshot if one is due, and deletes those that the schedule made and does not keep.
    async fn follow_schedule(
        &self,
        id: VolumeId,
        volume: &VolumeName,
        schedule: SnapshotSchedule,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        let listed = self.list(id, volume).await?;
        let is_scheduled = |snapshot: &VolumeSnapshot| snapshot.record.kind == SnapshotKind::Schedule;
        let mut own: Vec<VolumeSnapshot> = listed.into_iter().filter(is_scheduled).collect();
        let newest = own.iter().map(|snapshot| snapshot.record.taken_unix_ms).max();
        if schedule.is_due(newest, now_ms) {
            let name = format!("auto-{}", show_seconds(now_ms));
            own.push(self.take(id, volume, &name, (SnapshotKind::Schedule, None)).await?);
            tracing::info!(%volume, name, "snapshot by schedule");
        }
        for snapshot in superfluous(own, schedule.keep, now_ms) {
            self.drop_snapshot(volume, &snapshot).await?;
        }
        Ok(())
    }

    async fn take(
        &self,
        id: VolumeId,
        volume: &VolumeName,
        name: &str,
        (kind, protected_until_unix_ms): (SnapshotKind, Option<u64>),
    ) -> Result<VolumeSnapshot, Refusal> {
        let number = getrandom::u64()
            .map_err(|error| Refusal::Broken(format!("the system gives no random bytes: {error}")))?;
        let record = SnapshotRecord {
            id: number.max(1),
            name: name.to_owned(),
            taken_unix_ms: now_ms(),
            protected_until_unix_ms,
            kind,
            group: None,
        };
        let wanted = vec![(id, record)];
        let taken = self.engine.ask(|reply| Request::TakeSnapshots(wanted, reply)).await;
        let taken = taken.map_err(|error| refusal(volume, name, error))?.into_iter().next();
        taken.ok_or_else(|| Refusal::Broken(format!("snapshot {volume}@{name} is not there")))
    }

    async fn list(&self, id: VolumeId, volume: &VolumeName) -> Result<Vec<VolumeSnapshot>, Refusal> {
        let listed = self.engine.ask(|reply| Request::ListSnapshots(id, reply)).await;
        let listed = listed.map_err(|error| refusal(volume, "", error))?;
        // What a replica keeps for itself is no snapshot of the volume.
        let is_of_volume = |snapshot: &VolumeSnapshot| snapshot.record.kind != SnapshotKind::BeforeResync;
        Ok(listed.into_iter().filter(is_of_volume).collect())
    }

    async fn drop_snapshot(&self, volume: &VolumeName, snapshot: &VolumeSnapshot) -> Result<(), Refusal> {
        let VolumeSnapshot { volume: id, version, record } = snapshot;
        let (id, version, now_ms) = (*id, *version, now_ms());
        let dropped = self.engine.ask(|reply| Request::DropSnapshot(id, version, now_ms, reply)).await;
        dropped.map_err(|error| match error {
            EngineError::Snapshot(SnapshotError::Protected { .. }) => protected(volume, snapshot),
            error => refusal(volume, &record.name, error),
        })
    }
}

/// Of those that a schedule made, oldest first, the ones that it does not keep any more.
fn superfluous(own: Vec<VolumeSnapshot>, keep: u32, now_ms: u64) -> Vec<VolumeSnapshot> {
    let too_many = own.len().saturating_sub(keep as usize);
    own.into_iter().take(too_many).filter(|snapshot| !snapshot.record.is_protected(now_ms)).collect()
}

fn protected(volume: &VolumeName, snapshot: &VolumeSnapshot) -> Refusal {
    let SnapshotRecord { name, protected_until_unix_ms, .. } = &snapshot.record;
    let until = show_time(protected_until_unix_ms.unwrap_or_default());
    Refusal::Impossible(format!(
        "snapshot {volume}@{name} is protected until {until}: nobody deletes it before"
    ))
}

fn refusal(volume: &VolumeName, name: &str, error: EngineError) -> Refusal {
    match error {
        // It is being opened, or closed as it moves away: to be looked for again.
        EngineError::NoSuchVolume(_)
        | EngineError::NotServedHere(_)
        | EngineError::Snapshot(SnapshotError::Closed) => Refusal::Elsewhere(format!(
            "volume {volume} is not served at this moment: `gemel status` says why"
        )),
        EngineError::Snapshot(SnapshotError::NameTaken(_)) => {
            Refusal::Exists(format!("volume {volume} has a snapshot {name} already: choose another name"))
        }
        error => error.into(),
    }
}

fn message_of(volume: &VolumeName, snapshot: &VolumeSnapshot) -> messages::Snapshot {
    let record = &snapshot.record;
    messages::Snapshot {
        volume: volume.to_string(),
        name: record.name.clone(),
        taken_ms: record.taken_unix_ms,
        protected_until_ms: record.protected_until_unix_ms,
        kind: if record.kind == SnapshotKind::Schedule { "schedule" } else { "manual" }.to_owned(),
    }
}

/// Between two looks at what is due.
const SCHEDULE_TICK: Duration = Duration::from_secs(1);
/// When what failed is tried again.
const RETRY_MS: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::Version;

    #[test]
    fn a_schedule_keeps_the_newest_and_what_is_protected() {
        let snapshot = |sequence: u64| VolumeSnapshot {
            volume: VolumeId(1),
            version: Version { epoch: 1, sequence },
            record: SnapshotRecord {
                id: sequence,
                name: format!("auto-{sequence}"),
                taken_unix_ms: sequence,
                protected_until_unix_ms: (sequence == 2).then_some(100),
                kind: SnapshotKind::Schedule,
                group: None,
            },
        };
        let own = || (1..=5).map(snapshot).collect::<Vec<_>>();
        let dropped = |keep, now_ms| -> Vec<u64> {
            superfluous(own(), keep, now_ms).iter().map(|snapshot| snapshot.version.sequence).collect()
        };
        assert_eq!(dropped(5, 50), [0; 0]);
        assert_eq!(dropped(2, 50), [1, 3]);
        assert_eq!(dropped(2, 100), [1, 2, 3]);
    }
}
