//! Schedules of snapshots in the control state.

use serde::{Deserialize, Serialize};

use super::{ControlState, Outcome, Rejection};
use crate::cluster::name::VolumeName;

/// When snapshots of a volume are taken by themselves, and how many of these are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSchedule {
    /// Seconds between two, counted from 1970, so that it does not matter who serves the volume.
    pub every_seconds: u64,
    /// How many are kept.
    pub keep: u32,
}

impl SnapshotSchedule {
    /// Whether one is due, where the newest that was taken by schedule is from `newest_unix_ms`.
    #[must_use]
    pub fn is_due(self, newest_unix_ms: Option<u64>, now_unix_ms: u64) -> bool {
        newest_unix_ms.is_none_or(|newest| self.period(newest) < self.period(now_unix_ms))
    }

    /// When the next one is due after one that was taken now, in milliseconds since 1970.
    #[must_use]
    pub fn next_unix_ms(self, now_unix_ms: u64) -> u64 {
        (self.period(now_unix_ms) + 1).saturating_mul(self.every_ms())
    }

    fn period(self, unix_ms: u64) -> u64 {
        unix_ms / self.every_ms()
    }

    fn every_ms(self) -> u64 {
        self.every_seconds.saturating_mul(1000).max(1)
    }

    pub(super) fn check(self) -> Result<(), Rejection> {
        let out_of = |name, least, most| Err(Rejection::BadSetting { name, least, most });
        if !(SHORTEST_SECONDS..=LONGEST_SECONDS).contains(&self.every_seconds) {
            out_of("seconds between two snapshots", SHORTEST_SECONDS, LONGEST_SECONDS)
        } else if !(1..=MOST_KEPT).contains(&self.keep) {
            out_of("snapshots to keep", 1, u64::from(MOST_KEPT))
        } else {
            Ok(())
        }
    }
}

impl ControlState {
    pub(super) fn set_snapshot_schedule(
        &mut self,
        volume: &VolumeName,
        schedule: Option<SnapshotSchedule>,
    ) -> Result<Outcome, Rejection> {
        schedule.map_or(Ok(()), SnapshotSchedule::check)?;
        let record = self.volume_mut(volume)?;
        let before = std::mem::replace(&mut record.snapshot_schedule, schedule);
        Ok(if before == schedule { Outcome::Unchanged } else { Outcome::Changed })
    }
}

/// A minute: each snapshot waits for both replicas.
const SHORTEST_SECONDS: u64 = 60;
/// A year and a day.
const LONGEST_SECONDS: u64 = 366 * 86_400;
/// A quarter of those that a volume may have, so that there is room for those of people.
const MOST_KEPT: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_due_once_a_period_whoever_takes_them() {
        let hourly = SnapshotSchedule { every_seconds: 3600, keep: 24 };
        let hour = 3_600_000;
        assert!(hourly.is_due(None, 0));
        assert!(
            !hourly.is_due(Some(5 * hour + 7), 6 * hour - 1) && hourly.is_due(Some(5 * hour + 7), 6 * hour)
        );
        assert!(!hourly.is_due(Some(6 * hour), 5 * hour), "a clock that was put back takes none twice");
        assert_eq!(hourly.next_unix_ms(5 * hour + 7), 6 * hour);
    }

    #[test]
    fn schedules_have_limits() {
        let check = |every_seconds, keep| SnapshotSchedule { every_seconds, keep }.check().is_ok();
        assert!(check(60, 1) && check(366 * 86_400, 1024));
        assert!(!check(59, 1) && !check(u64::MAX, 1) && !check(60, 0) && !check(60, 1025));
    }
}
