//! Which versions belong to a volume's present history, so that a replica that was away knows what to
//! give up before it receives what is newer.
//!
//! A version is an epoch and a sequence number. Within an epoch the replicas have the same versions up to
//! where the next epoch begins; beyond that point whoever wrote them was alone and unacknowledged. A
//! forced primary is different: it lacks acknowledged versions of *several* epochs, so the first sequence
//! numbers of epochs do not say which, and each force records what was kept. So does a take-over by a
//! node, or a restart of one, that lacks what was in flight already when the epoch before began (epochs of
//! one primary begin with writes in flight).
//!
//! Sequence numbers grow along the history, over all epochs. So "through (e, n)" is said of both parts: a
//! version of an older epoch with a number above n is not of the history that this point lies in. A
//! primary that goes on into a new epoch has such versions in flight: (1, 15), then (2, 16), and a take-over
//! from a replica at (1, 14) gives up both, though (1, 15) compares as less than (2, 14).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::volume::VolumeRecord;
use crate::base::units::Version;

/// The version through which a primary had everything: all whose epoch is at most this one's, and whose
/// sequence number is at most this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptThrough {
    /// Epoch.
    pub epoch: u32,
    /// Sequence number.
    pub sequence: u64,
}

impl From<Version> for KeptThrough {
    fn from(Version { epoch, sequence }: Version) -> Self {
        Self { epoch, sequence }
    }
}

impl From<KeptThrough> for Version {
    fn from(KeptThrough { epoch, sequence }: KeptThrough) -> Self {
        Self { epoch, sequence }
    }
}

/// What a returning replica is to do with what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommonPoint {
    /// All that it has belongs to the history: it only lacks what is newer.
    Everything,
    /// It gives up every version whose epoch or whose sequence number is beyond this one's.
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
            kept.epoch = kept.epoch.min(at_fork.epoch);
            kept.sequence = kept.sequence.min(at_fork.sequence);
        }
        if kept == newest { CommonPoint::Everything } else { CommonPoint::Through(kept) }
    }

    pub(super) fn forks_after(&self, epoch: u32) -> impl Iterator<Item = &KeptThrough> {
        let forks: &BTreeMap<u32, KeptThrough> = &self.forks;
        forks.range(epoch.saturating_add(1)..).map(|(_, kept)| kept)
    }
}
