//! Which versions belong to a volume's present history, so that a replica that was away knows what to
//! give up before it receives what is newer.
//!
//! A version is an epoch and a sequence number. Within an epoch the replicas have the same versions up to
//! where the next epoch begins; beyond that point whoever wrote them was alone and unacknowledged. A
//! forced primary is different: it lacks acknowledged versions of *several* epochs, so the first sequence
//! numbers of epochs do not say which, and each force records what was kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::volume::VolumeRecord;

/// The version through which a forced primary had everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptThrough {
    /// Epoch.
    pub epoch: u32,
    /// Sequence number.
    pub sequence: u64,
}

/// What a returning replica is to do with what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommonPoint {
    /// All that it has belongs to the history: it only lacks what is newer.
    Everything,
    /// It gives up every version after this one.
    Through(KeptThrough),
    /// It was away for longer than epochs are remembered: it is compared, or copied, as a whole.
    Unknown,
}

impl VolumeRecord {
    /// Where a replica whose newest version is `newest` parts from the present history.
    #[must_use]
    pub fn common_point(&self, newest: KeptThrough) -> CommonPoint {
        if self.epoch_starts.keys().next().is_some_and(|first| newest.epoch < *first) && newest.epoch > 0 {
            return CommonPoint::Unknown;
        }
        let mut kept = newest;
        if let Some((_, start)) = self.epoch_starts.range(newest.epoch + 1..).next() {
            kept.sequence = kept.sequence.min(start.saturating_sub(1));
        }
        for at_fork in self.forks_after(newest.epoch) {
            kept = kept.min(*at_fork);
        }
        if kept == newest { CommonPoint::Everything } else { CommonPoint::Through(kept) }
    }

    fn forks_after(&self, epoch: u32) -> impl Iterator<Item = &KeptThrough> {
        let forks: &BTreeMap<u32, KeptThrough> = &self.forks;
        forks.range(epoch.saturating_add(1)..).map(|(_, kept)| kept)
    }
}
