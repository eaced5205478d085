//! What a replica has, by address, while it is brought up to date.
//!
//! Invariants of a partial coverage: its steps ascend, the last one reaches to the end of every volume, and
//! each says what is durable, or less. So an old one, or a coarser one, is right too.

use super::mutant::{self, Mutant};
use crate::base::codec::{Reader, Writer};
use crate::base::units::{BlockAddress, Version};

/// What a node's store has of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The newest version.
    pub latest: Version,
    /// The newest one that is there as a whole, with whatever came before.
    pub whole_through: Version,
}

impl Held {
    /// What has been there, or was appended, since the node was started.
    #[must_use]
    pub fn all_through(latest: Version) -> Self {
        Self { latest, whole_through: latest }
    }

    /// What a store that was not closed cleanly has recovered, with nothing appended since: blocks of the
    /// newest append may be lost, as appends of several blocks may lie in several batches of the log.
    #[must_use]
    pub fn recovered(newest: Version) -> Self {
        let is_whole = mutant::is(Mutant::TornAppendWhole);
        Self { latest: newest, whole_through: if is_whole { newest } else { newest.before() } }
    }
}

/// Through which version a replica has everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Through the latest one in its store.
    Whole,
    /// Through another one in each part of the volume.
    Partial(Vec<CoverageStep>),
}

/// The blocks from the step before on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoverageStep {
    /// The block behind the last one.
    pub end: BlockAddress,
    /// Through which version everything is there.
    pub through: Version,
}

impl Coverage {
    /// The same version everywhere.
    #[must_use]
    pub fn through(version: Version) -> Self {
        Self::Partial(vec![CoverageStep { end: END, through: version }])
    }

    /// A partial coverage, if these steps are one.
    #[must_use]
    pub fn of_steps(steps: Vec<CoverageStep>) -> Option<Self> {
        let ascends = steps.is_sorted_by(|one, next| one.end < next.end);
        let reaches_the_end = steps.last().is_some_and(|last| last.end == END);
        let begins = steps.first().is_some_and(|first| first.end.0 > 0);
        (ascends && reaches_the_end && begins && steps.len() <= MOST_STEPS).then_some(Self::Partial(steps))
    }

    /// The steps, where the latest version in the store is `latest`.
    #[must_use]
    pub fn steps(&self, latest: Version) -> Vec<CoverageStep> {
        match self {
            Self::Whole => vec![CoverageStep { end: END, through: latest }],
            Self::Partial(steps) => steps.clone(),
        }
    }

    /// The newest version through which everything is there, wherever: what is left of the history when
    /// this replica has to do.
    #[must_use]
    pub fn least(&self, latest: Version) -> Version {
        self.steps(latest).iter().fold(latest, |least, step| least.common_with(step.through))
    }

    /// This, with everything through `through` in the blocks before `end`.
    #[must_use]
    pub fn raised(&self, end: BlockAddress, through: Version) -> Self {
        let Self::Partial(steps) = self else { return Self::Whole };
        if end.0 == 0 {
            return self.clone();
        }
        let mut raised = vec![CoverageStep { end, through }];
        raised.extend(steps.iter().filter(|step| step.end > end));
        while raised.len() > MOST_STEPS {
            merge_narrowest(&mut raised);
        }
        Self::Partial(raised)
    }
}

impl Coverage {
    /// As bytes, for a replica's record: version 1 of that format.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![RECORD_VERSION];
        if let Self::Partial(steps) = self {
            for step in steps {
                bytes.put_u64(step.end.0);
                bytes.put_u32(step.through.epoch);
                bytes.put_u64(step.through.sequence);
            }
        }
        bytes
    }

    /// What [`Self::encode`] made; none when a newer program did, or nobody.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u8().ok()? != RECORD_VERSION {
            return None;
        }
        let mut steps = Vec::new();
        while reader.remaining() > 0 {
            let end = BlockAddress(reader.u64().ok()?);
            let through = Version { epoch: reader.u32().ok()?, sequence: reader.u64().ok()? };
            steps.push(CoverageStep { end, through });
        }
        if steps.is_empty() { Some(Self::Whole) } else { Self::of_steps(steps) }
    }
}

const RECORD_VERSION: u8 = 1;

/// Gives up the narrowest step but the last one: its blocks count with those behind them.
fn merge_narrowest(steps: &mut Vec<CoverageStep>) {
    let start = |index: usize| index.checked_sub(1).map_or(0, |before| steps[before].end.0);
    let width = |index: &usize| steps[*index].end.0 - start(*index);
    let Some(narrowest) = (0..steps.len() - 1).min_by_key(width) else { return };
    let given_up = steps.remove(narrowest);
    steps[narrowest].through = steps[narrowest].through.common_with(given_up.through);
}

/// Behind the last block of every volume.
pub const END: BlockAddress = BlockAddress(u64::MAX);
/// Most steps: streams that broke in the middle of a resync, about.
pub const MOST_STEPS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn version(sequence: u64) -> Version {
        Version { epoch: 1, sequence }
    }

    #[test]
    fn what_was_passed_counts_up_to_there() {
        let base = Coverage::through(version(5));
        let one = base.raised(BlockAddress(100), version(9));
        let step = |end, sequence| CoverageStep { end: BlockAddress(end), through: version(sequence) };
        assert_eq!(one, Coverage::Partial(vec![step(100, 9), step(u64::MAX, 5)]));
        let two = one.raised(BlockAddress(40), version(12));
        assert_eq!(two, Coverage::Partial(vec![step(40, 12), step(100, 9), step(u64::MAX, 5)]));
        assert_eq!(two.raised(BlockAddress(200), version(20)).steps(version(20)).len(), 2);
        assert_eq!(two.least(version(12)), version(5));
        assert_eq!(two.raised(BlockAddress(0), version(20)), two);
        assert_eq!(two.raised(END, version(20)), Coverage::through(version(20)));
        assert_eq!(Coverage::Whole.raised(BlockAddress(9), version(1)), Coverage::Whole);
    }

    #[test]
    fn steps_are_bounded_and_never_claim_too_much() {
        let mut coverage = Coverage::through(version(1));
        for turn in 0..40 {
            coverage = coverage.raised(BlockAddress(1000 - turn * 10), version(10 + turn));
            let steps = coverage.steps(version(99));
            assert!(steps.len() <= MOST_STEPS);
            assert_eq!(Coverage::of_steps(steps.clone()), Some(coverage.clone()));
            assert_eq!(steps.last().unwrap().through, version(1));
            assert_eq!(Coverage::decode(&coverage.encode()), Some(coverage.clone()));
            assert!(steps.is_sorted_by(|one, next| one.through.sequence >= next.through.sequence));
        }
        assert_eq!(Coverage::of_steps(Vec::new()), None);
    }
}
