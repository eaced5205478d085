//! Snapshots that nobody may delete before a date, and the clock that says when it has come.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::attention::Kind;
use super::{Control, Refusal, now_ms};
use crate::base::units::VolumeId;
use crate::cluster::name::VolumeName;
use crate::cluster::state::volume::Redundancy;
use crate::daemon::engine::{EngineReport, VolumeSnapshot};
use crate::daemon::state_directory::StateDirectory;
use crate::daemon::steady_clock::SteadyClock;
use crate::peer::quorum::clock_ms;
use crate::rpc::management::{self as messages, Severity};
use crate::rpc::time::show as show_time;
use crate::volume::snapshot::SnapshotRecord;

/// The clock of this node, as it was saved.
pub(super) fn open_clock(records: Arc<StateDirectory>) -> Result<SteadyClock, Refusal> {
    // Another text after each start of the machine. Where there is none, no time between two processes counts.
    let boot =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| now_ms().to_string());
    let mut hasher = DefaultHasher::new();
    boot.hash(&mut hasher);
    Ok(SteadyClock::open(records, hasher.finish(), now_ms(), clock_ms())?)
}

impl Control {
    /// The time that counts for protected snapshots, in milliseconds since 1970.
    pub(super) fn protection_now_ms(&self) -> u64 {
        self.clock.read(now_ms(), clock_ms())
    }

    /// Keeps the clock of protected snapshots, and tells when the machine's runs away from it.
    pub async fn keep_clock(self: Arc<Self>) {
        let mut told_behind_ms = 0;
        loop {
            let behind_ms = now_ms().saturating_sub(self.protection_now_ms());
            if behind_ms > told_behind_ms + TOLD_FROM_MS {
                let hours = behind_ms / 3_600_000;
                let message = format!(
                    "the clock of node {} is {hours} h ahead of the time that has passed here since it was first right: it was \
                     set forward, or the machine was off. Protected snapshots stay so much longer than their dates say",
                    self.node
                );
                self.events.warning("clock-ahead", message, &[("behind_ms", behind_ms.to_string())]);
                told_behind_ms = behind_ms;
            } else if behind_ms < TOLD_FROM_MS {
                told_behind_ms = 0;
            }
            let control = self.clone();
            match tokio::task::spawn_blocking(move || control.clock.save()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the clock of protected snapshots is not kept"),
                Err(_) => return,
            }
            tokio::time::sleep(SAVED_EVERY).await;
        }
    }

    /// Hosts that may hold still after a snapshot.
    pub(super) fn attention_to_hosts(&self) -> Option<messages::Attention> {
        let trouble = self.snapshot_commands.trouble()?;
        let action = "have them go on, then mend the command; the next one that ends well clears this";
        let item = Kind::HostsMayHoldStill.item(Severity::Error, "", trouble, action.to_owned());
        Some(messages::Attention { node: self.node.to_string(), ..item })
    }

    /// Refuses while a volume has a snapshot that nobody may delete yet, also where that cannot be told. A volume of
    /// this node alone that the pool does not have, though it is in order, has none.
    pub(super) async fn check_unprotected(
        &self,
        id: VolumeId,
        volume: &VolumeName,
        report: &EngineReport,
    ) -> Result<(), Refusal> {
        let now_ms = self.protection_now_ms();
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
}

pub(super) fn protected(volume: &VolumeName, snapshot: &VolumeSnapshot) -> Refusal {
    let SnapshotRecord { name, protected_until_unix_ms, .. } = &snapshot.record;
    let until = show_time(protected_until_unix_ms.unwrap_or_default());
    Refusal::Impossible(format!(
        "snapshot {volume}@{name} is protected until {until}: nobody deletes it before, whatever the machine's clock says"
    ))
}

/// How often the clock is saved: that much may be lost of it when the machine is switched off.
const SAVED_EVERY: Duration = Duration::from_secs(60);
/// From which difference on it is told, and each time that it has grown by as much.
const TOLD_FROM_MS: u64 = 3_600_000;
