//! Limits of a volume: how much it does in a second, and what it takes of the pools.

use serde::{Deserialize, Serialize};

use super::{ControlState, Outcome, Rejection};
use crate::cluster::name::VolumeName;

/// What a volume may take of what all share. Zero stands for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeLimits {
    /// Reads, writes and the like in a second.
    pub iops: u64,
    /// Bytes that they transfer in a second.
    pub bytes_per_second: u64,
    /// Space that it takes with its snapshots, before parity.
    pub quota_bytes: u64,
    /// Space that is kept for it in the pools: zero for none.
    pub reserved_bytes: u64,
}

impl VolumeLimits {
    /// Whether a host would still be served before it gives up.
    pub(super) fn check(&self) -> Result<(), Rejection> {
        let in_range = |limit: u64, least: u64| limit == 0 || limit >= least;
        if self.quota_bytes > 0 && self.reserved_bytes > self.quota_bytes {
            return Err(Rejection::QuotaBelowReservation);
        }
        if in_range(self.iops, LEAST_IOPS) && in_range(self.bytes_per_second, LEAST_BYTES_PER_SECOND) {
            return Ok(());
        }
        Err(Rejection::BadLimit { least_iops: LEAST_IOPS, least_bytes_per_second: LEAST_BYTES_PER_SECOND })
    }
}

impl ControlState {
    pub(super) fn set_volume_limits(
        &mut self,
        name: &VolumeName,
        limits: VolumeLimits,
    ) -> Result<Outcome, Rejection> {
        limits.check()?;
        let record = self.volume_mut(name)?;
        let before = std::mem::replace(&mut record.limits, limits);
        Ok(if before == limits { Outcome::Unchanged } else { Outcome::Changed })
    }
}

/// A host whose queue of 128 is full waits a few seconds then.
const LEAST_IOPS: u64 = 20;
/// Commands of the largest transfer, 8 MiB, take eight seconds then.
const LEAST_BYTES_PER_SECOND: u64 = 1 << 20;
