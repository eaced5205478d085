//! Snapshots: taken, listed and deleted by the node that serves their volume, on demand and by schedule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::protection::protected;
use super::{Control, Refusal, now_ms};
use crate::base::units::VolumeId;
use crate::cluster::name::VolumeName;
use crate::cluster::state::Command;
use crate::cluster::state::schedule::SnapshotSchedule;
use crate::cluster::state::volume::VolumeRecord;
use crate::daemon::engine::{EngineError, Request, VolumeSnapshot};
use crate::daemon::snapshot_commands::Occasion;
use crate::rpc::management as messages;
use crate::rpc::time::show_seconds;
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
        let (name, protected_until_unix_ms) = checked(request.name, request.protected_until_ms)?;
        let taking = self.take(id, &volume, &name, (SnapshotKind::Manual, protected_until_unix_ms));
        let taken = match request.crash_consistent {
            true => taking.await?,
            false => self.hold_hosts(&[&volume], &name, false, taking).await?,
        };
        let message = format!("snapshot {volume}@{name} was taken");
        self.events.info("snapshot-created", message, &[("volume", volume.to_string())]);
        Ok(self.message_of(&volume, &taken))
    }

    /// Takes a snapshot of each of several volumes, all of which this node serves, at one cut.
    pub async fn create_snapshot_group(
        &self,
        request: messages::CreateSnapshotGroupRequest,
    ) -> Result<Vec<messages::Snapshot>, Refusal> {
        let (name, protected_until_unix_ms) = checked(request.name, request.protected_until_ms)?;
        let volumes = request.volumes.iter().map(|volume| volume.parse());
        let volumes = volumes.collect::<Result<BTreeSet<VolumeName>, _>>()?;
        if !(1..=MOST_IN_GROUP).contains(&volumes.len()) {
            return Err(Refusal::Invalid(format!("a group has 1 to {MOST_IN_GROUP} volumes")));
        }
        let mut wanted = Vec::new();
        let mut group = None;
        for volume in &volumes {
            let id = match self.find(volume) {
                // The first one is where the request was sent to; looking for it again would not help the others.
                Err(Refusal::Elsewhere(text)) if !wanted.is_empty() => {
                    return Err(Refusal::Impossible(format!(
                        "{text}, and others of the group by node {}: one cut takes one node (`gemel volume move` moves a \
                         volume)",
                        self.node
                    )));
                }
                found => found?.0,
            };
            let record = Self::record(&name, (SnapshotKind::Manual, protected_until_unix_ms))?;
            let group = *group.get_or_insert(record.id);
            wanted.push((id, SnapshotRecord { group: Some(group), ..record }));
        }
        let first = volumes.first().ok_or_else(|| Refusal::Invalid("a group has volumes".to_owned()))?;
        let taking = async {
            let taken = self.engine.ask(|reply| Request::TakeSnapshots(wanted, reply)).await;
            taken.map_err(|error| refusal(first, &name, error))
        };
        let taken = match request.crash_consistent {
            true => taking.await?,
            false => self.hold_hosts(&volumes.iter().collect::<Vec<_>>(), &name, false, taking).await?,
        };
        let names: Vec<String> = volumes.iter().map(|volume| format!("{volume}@{name}")).collect();
        let message = format!("snapshots {} were taken at one cut", names.join(", "));
        self.events.info("snapshot-created", message, &[]);
        Ok(volumes.iter().zip(&taken).map(|(volume, snapshot)| self.message_of(volume, snapshot)).collect())
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
            snapshots.extend(listed.iter().map(|snapshot| self.message_of(&name, snapshot)));
        }
        Ok(snapshots)
    }

    /// Deletes a snapshot of a volume that this node serves.
    pub async fn delete_snapshot(&self, request: messages::DeleteSnapshotRequest) -> Result<(), Refusal> {
        let volume: VolumeName = request.volume.parse()?;
        let (id, _) = self.find(&volume)?;
        let wanted = self.snapshot_named(id, &volume, &request.name).await?;
        self.drop_snapshot(&volume, &wanted).await?;
        let message = format!("snapshot {volume}@{} was deleted", request.name);
        self.events.info("snapshot-deleted", message, &[("volume", volume.to_string())]);
        Ok(())
    }

    /// Has a volume that this node serves show what it was at a snapshot; what is kept of it as it was before. `sessions` are
    /// those of hosts that have it now, on all nodes.
    pub async fn roll_back(
        &self,
        request: messages::RollBackSnapshotRequest,
        sessions: u64,
    ) -> Result<messages::Snapshot, Refusal> {
        let volume: VolumeName = request.volume.parse()?;
        let (id, _) = self.find(&volume)?;
        let wanted = self.snapshot_named(id, &volume, &request.name).await?;
        if sessions > 0 && !request.force {
            return Err(Refusal::Impossible(format!(
                "volume {volume} is in use by {sessions} sessions, whose hosts would find other contents under what they have \
                 in memory: log the initiators out, or do it all the same with --force"
            )));
        }
        let name = format!("before-rollback-{}", show_seconds(now_ms()));
        let before = Self::record(&name, (SnapshotKind::Manual, None))?;
        let (to, name) = (wanted.version, &wanted.record.name);
        let kept = self.engine.ask(|reply| Request::RollBack(id, to, before, reply)).await;
        let kept = kept.map_err(|error| refusal(&volume, name, error))?;
        let message = format!(
            "volume {volume} was rolled back to snapshot {volume}@{name}; what it was before is {volume}@{}",
            kept.record.name
        );
        self.events.warning("volume-rolled-back", message, &[("volume", volume.to_string())]);
        Ok(self.message_of(&volume, &kept))
    }

    /// The snapshot of this name.
    pub(super) async fn snapshot_named(
        &self,
        id: VolumeId,
        volume: &VolumeName,
        name: &str,
    ) -> Result<VolumeSnapshot, Refusal> {
        let listed = self.list(id, volume).await?;
        listed.into_iter().find(|snapshot| snapshot.record.name == name).ok_or_else(|| {
            Refusal::NotFound(format!(
                "volume {volume} has no snapshot {name}: `gemel snapshot list {volume}` shows them"
            ))
        })
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
            let taking = self.take(id, volume, &name, (SnapshotKind::Schedule, None));
            own.push(self.hold_hosts(&[volume], &name, true, taking).await?);
            tracing::info!(%volume, name, "snapshot by schedule");
        }
        let superfluous = superfluous(own, schedule.keep, self.protection_now_ms());
        for snapshot in superfluous.into_iter().filter(|snapshot| !self.is_cloned(snapshot)) {
            self.drop_snapshot(volume, &snapshot).await?;
        }
        Ok(())
    }

    /// Takes snapshots between the commands of the site.
    async fn hold_hosts<T>(
        &self,
        volumes: &[&VolumeName],
        name: &str,
        is_scheduled: bool,
        taking: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let volumes = volumes.iter().map(|volume| volume.as_str()).collect::<Vec<_>>().join(" ");
        let occasion = Occasion { volumes, snapshot: name.to_owned(), is_scheduled };
        match self.snapshot_commands.hold(occasion, taking).await {
            Ok(taken) => taken,
            Err(why) => Err(Refusal::Impossible(format!(
                "no snapshot was taken, as the command before snapshots failed: {why}; put that right, or take one as after a \
                 power failure with --crash-consistent"
            ))),
        }
    }

    pub(super) async fn take(
        &self,
        id: VolumeId,
        volume: &VolumeName,
        name: &str,
        (kind, protected_until_unix_ms): (SnapshotKind, Option<u64>),
    ) -> Result<VolumeSnapshot, Refusal> {
        let wanted = vec![(id, Self::record(name, (kind, protected_until_unix_ms))?)];
        let taken = self.engine.ask(|reply| Request::TakeSnapshots(wanted, reply)).await;
        let taken = taken.map_err(|error| refusal(volume, name, error))?.into_iter().next();
        taken.ok_or_else(|| Refusal::Broken(format!("snapshot {volume}@{name} is not there")))
    }

    fn record(
        name: &str,
        (kind, protected_until_unix_ms): (SnapshotKind, Option<u64>),
    ) -> Result<SnapshotRecord, Refusal> {
        let number = getrandom::u64()
            .map_err(|error| Refusal::Broken(format!("the system gives no random bytes: {error}")))?;
        Ok(SnapshotRecord {
            id: number.max(1),
            name: name.to_owned(),
            taken_unix_ms: now_ms(),
            protected_until_unix_ms,
            kind,
            group: None,
        })
    }

    pub(super) async fn list(
        &self,
        id: VolumeId,
        volume: &VolumeName,
    ) -> Result<Vec<VolumeSnapshot>, Refusal> {
        let listed = self.engine.ask(|reply| Request::ListSnapshots(id, reply)).await;
        let listed = listed.map_err(|error| refusal(volume, "", error))?;
        // What a rollback keeps for itself is no snapshot of the volume. What a replica has kept is one, once an operator has
        // made that replica the volume.
        let is_of_volume =
            |snapshot: &VolumeSnapshot| !matches!(snapshot.record.kind, SnapshotKind::Rollback { .. });
        Ok(listed.into_iter().filter(is_of_volume).collect())
    }

    pub(super) async fn drop_snapshot(
        &self,
        volume: &VolumeName,
        snapshot: &VolumeSnapshot,
    ) -> Result<(), Refusal> {
        // None is cloned meanwhile.
        let _turn = self.turn().await;
        self.check_not_cloned(volume, snapshot)?;
        let VolumeSnapshot { volume: id, version, record } = snapshot;
        let (id, version, now_ms) = (*id, *version, self.protection_now_ms());
        let dropped = self.engine.ask(|reply| Request::DropSnapshot(id, version, now_ms, reply)).await;
        dropped.map_err(|error| match error {
            EngineError::Snapshot(SnapshotError::Protected { .. }) => protected(volume, snapshot),
            error => refusal(volume, &record.name, error),
        })
    }

    fn message_of(&self, volume: &VolumeName, snapshot: &VolumeSnapshot) -> messages::Snapshot {
        let record = &snapshot.record;
        messages::Snapshot {
            volume: volume.to_string(),
            name: record.name.clone(),
            taken_ms: record.taken_unix_ms,
            protected_until_ms: record.protected_until_unix_ms,
            kind: match record.kind {
                SnapshotKind::Schedule => "schedule",
                SnapshotKind::BeforeResync => "resync",
                SnapshotKind::Manual | SnapshotKind::Rollback { .. } => "manual",
            }
            .to_owned(),
            clones: self.clones_of(snapshot),
        }
    }
}

/// A name, the time if there is none, and the end of protection, if they can be.
fn checked(name: String, protected_until_ms: Option<u64>) -> Result<(String, Option<u64>), Refusal> {
    let now_ms = now_ms();
    let name = if name.is_empty() { show_seconds(now_ms) } else { name };
    if !SnapshotRecord::is_name(&name) {
        return Err(Refusal::Invalid(format!(
            "{name:?} is no name of a snapshot: that has 1 to 128 letters, digits, '.', '_', '-' or ':', and does not begin \
             with '-'"
        )));
    }
    if protected_until_ms.is_some_and(|until| until <= now_ms) {
        return Err(Refusal::Invalid("the time of protection is over already".to_owned()));
    }
    Ok((name, protected_until_ms))
}

/// Of those that a schedule made, oldest first, the ones that it does not keep any more.
fn superfluous(own: Vec<VolumeSnapshot>, keep: u32, now_ms: u64) -> Vec<VolumeSnapshot> {
    let too_many = own.len().saturating_sub(keep as usize);
    own.into_iter().take(too_many).filter(|snapshot| !snapshot.record.is_protected(now_ms)).collect()
}

fn refusal(volume: &VolumeName, name: &str, error: EngineError) -> Refusal {
    match error {
        // It is being opened, or closed as it moves away: to be looked for again.
        EngineError::NoSuchVolume(_)
        | EngineError::NotServedHere(_)
        | EngineError::Snapshot(SnapshotError::Closed) => Refusal::Elsewhere(format!(
            "volume {volume} is not served at this moment: `gemel status` says why"
        )),
        EngineError::Snapshot(SnapshotError::RollingBack) => Refusal::Impossible(format!(
            "volume {volume} is being rolled back to a snapshot: `gemel volume show {volume}` tells how far that is; until then \
             none is taken, and the one that it goes back to stays"
        )),
        EngineError::Snapshot(SnapshotError::NameTaken(_)) => {
            Refusal::Exists(format!("volume {volume} has a snapshot {name} already: choose another name"))
        }
        error => error.into(),
    }
}

/// Most volumes of a group.
const MOST_IN_GROUP: usize = 64;
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
