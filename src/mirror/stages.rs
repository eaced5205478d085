//! What a part of the volume has to become on the replica: at each snapshot that the common point does not cover, and
//! now.
//!
//! Each such view is a *stage*, in ascending order. A block is copied in a stage when what the view shows of it is news,
//! not shown by the view before; or when the replica shows there what the source does not: void entries, or what an
//! earlier resync left. History goes in under the version of the snapshot. What is newer than the beginning of the
//! stream goes over it as a write. But holes that shadow nothing leave no trace in the replica's store, or are
//! forgotten there at any time, and come short once history is put below them: of a block of which history was
//! sent, every later hole is stated again, wherever the replica seems to have it.

use std::cell::Cell;
use std::ops::Range;

use super::mutant::{self, Mutant};
use crate::base::units::Version;
use crate::store::interface::ChangedRun;

/// A view that the replica is to have.
pub(super) struct Stage {
    /// The snapshot; none for what the volume is now.
    pub(super) at: Option<Version>,
    /// What the stage before, or the common point, covers is no news here.
    pub(super) since: Version,
    /// The version of the stage before; none for the first.
    pub(super) before: Option<Version>,
    /// What the replica has there that `since` does not cover.
    pub(super) report: Report,
    /// Before this block there is no news here, in a view that does not change: from where the stage began to where it
    /// was looked at last.
    clear_until: Cell<u64>,
}

/// The stages behind `common`, of a volume with these snapshots, from a block on.
pub(super) fn stages(snapshots: &[Version], common: Version, from: u64) -> Vec<Stage> {
    let newer = snapshots.iter().copied().filter(|snapshot| !snapshot.is_covered_by(common));
    let newer: Vec<Version> = newer.filter(|_| !mutant::is(Mutant::HistoryStageSkipped)).collect();
    let before = std::iter::once(None).chain(newer.iter().copied().map(Some));
    let views = newer.iter().copied().map(Some).chain([None]);
    let report = || Report { runs: Vec::new(), until: from };
    before
        .zip(views)
        .map(|(before, at)| Stage {
            at,
            since: before.unwrap_or(common),
            before,
            report: report(),
            clear_until: Cell::new(from),
        })
        .collect()
}

/// What one side has beyond a point, in some view.
#[derive(Default)]
pub(super) struct Report {
    pub(super) runs: Vec<ChangedRun>,
    /// Behind the last block that it speaks of.
    pub(super) until: u64,
}

impl Report {
    pub(super) fn at(&self, block: u64) -> Option<&ChangedRun> {
        let index = self.runs.partition_point(|run| run.end().0 <= block);
        self.runs.get(index).filter(|run| run.address.0 <= block)
    }

    pub(super) fn next_from(&self, block: u64) -> Option<u64> {
        let index = self.runs.partition_point(|run| run.end().0 <= block);
        self.runs.get(index).map(|run| run.address.0.max(block))
    }
}

impl Stage {
    /// Takes what the replica said, but for what the stage before it has put right.
    pub(super) fn take_report(&mut self, mut runs: Vec<ChangedRun>, until: u64) {
        let before = self.before;
        runs.retain(|run| before.is_none_or(|before| run.version > before));
        if mutant::is(Mutant::ReplicaChangesKept)
            || (self.at.is_some() && mutant::is(Mutant::VoidLeftInHistory))
        {
            runs.clear();
        }
        if mutant::is(Mutant::CommonPointByOrder) {
            runs.retain(|run| run.version > self.since);
        }
        self.report = Report { runs, until };
    }

    /// From which block on, at least `at`, there may be news here.
    pub(super) fn unclear_from(&self, at: u64) -> u64 {
        if self.at.is_some() { self.clear_until.get().max(at) } else { at }
    }

    /// There is no news here from where it was looked from to this block.
    pub(super) fn note_clear_until(&self, block: u64) {
        self.clear_until.set(self.clear_until.get().max(block));
    }

    /// Whether nothing of `chunk` can be wanted.
    pub(super) fn is_clear(&self, chunk: &Range<u64>) -> bool {
        let has_no_news = self.at.is_some() && self.clear_until.get() >= chunk.end;
        has_no_news && self.report.next_from(chunk.start).is_none_or(|there| there >= chunk.end)
    }

    /// The runs of `chunk` whose blocks are to be copied, where the source has `here` beyond `since`. What is newer than
    /// `mirrored_after` goes over the stream. `restated` has the blocks of the chunk of which history was sent.
    pub(super) fn wanted(
        &self,
        chunk: &Range<u64>,
        here: &Report,
        mirrored_after: Version,
        restated: &Restated,
    ) -> Vec<Range<u64>> {
        let mut wanted: Vec<Range<u64>> = Vec::new();
        for block in chunk.clone() {
            let (source, target) = (here.at(block), self.report.at(block));
            let shows_other =
                |source: &ChangedRun| target.is_none_or(|target| target.version != source.version);
            let differs = match source {
                None => target.is_some(),
                // Its store may have kept no trace of it, or have forgotten it since it said what it has.
                Some(source) if !source.is_mapped && restated.has(block) => {
                    !mutant::is(Mutant::HoleNotRestated)
                        || (source.version <= mirrored_after && shows_other(source))
                }
                Some(source) if source.version > mirrored_after => {
                    !source.is_mapped && target.is_some() && shows_other(source)
                }
                Some(source) => shows_other(source),
            };
            match wanted.last_mut() {
                _ if !differs => {}
                Some(last) if last.end == block => last.end += 1,
                _ => wanted.push(block..block + 1),
            }
        }
        wanted
    }
}

/// Blocks of a chunk of which history was sent.
#[derive(Default)]
pub(super) struct Restated(Vec<Range<u64>>);

impl Restated {
    pub(super) fn add(&mut self, blocks: &[Range<u64>]) {
        self.0.extend_from_slice(blocks);
    }

    fn has(&self, block: u64) -> bool {
        self.0.iter().any(|blocks| blocks.contains(&block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::BlockAddress;

    fn version(epoch: u32, sequence: u64) -> Version {
        Version { epoch, sequence }
    }

    fn run(block: u64, version: Version, is_mapped: bool) -> ChangedRun {
        ChangedRun { address: BlockAddress(block), count: 1, version, is_mapped }
    }

    #[test]
    fn each_snapshot_behind_the_common_point_is_a_stage() {
        let snapshots = [version(1, 5), version(1, 9), version(2, 14)];
        let stages = stages(&snapshots, version(1, 8), 7);
        let views: Vec<_> = stages.iter().map(|stage| (stage.at, stage.since, stage.before)).collect();
        assert_eq!(
            views,
            [
                (Some(version(1, 9)), version(1, 8), None),
                (Some(version(2, 14)), version(1, 9), Some(version(1, 9))),
                (None, version(2, 14), Some(version(2, 14))),
            ]
        );
        assert!(stages.iter().all(|stage| stage.report.until == 7));
    }

    #[test]
    fn a_stage_wants_what_is_news_or_wrong() {
        let mut stage = stages(&[version(2, 20)], version(1, 8), 0).remove(0);
        let (void, same) = (version(1, 15), version(2, 12));
        stage.take_report(vec![run(1, void, true), run(2, same, true), run(3, void, true)], 10);
        let here = Report {
            runs: vec![
                run(0, version(2, 13), true),
                run(2, same, true),
                run(3, version(2, 14), false),
                run(4, version(2, 18), true),
                run(5, version(2, 18), false),
                run(6, version(2, 18), false),
            ],
            until: 10,
        };
        let mut restated = Restated::default();
        restated.add(std::slice::from_ref(&(5..6)));
        // 0 is news, 1 void, 2 the same, 3 another version, 4 to 6 came as writes, 5 may have left no trace.
        assert_eq!(stage.wanted(&(0..8), &here, version(2, 16), &restated), [0..2, 3..4, 5..6]);
    }

    #[test]
    fn a_hole_above_history_is_stated_again_whatever_was_said() {
        let mut stage = stages(&[version(2, 20)], version(1, 8), 0).remove(0);
        let hole = run(1, version(2, 12), false);
        stage.take_report(vec![hole], 10);
        let here = Report { runs: vec![hole], until: 10 };
        let mut restated = Restated::default();
        assert!(stage.wanted(&(0..4), &here, version(2, 16), &restated).is_empty());
        restated.add(std::slice::from_ref(&(0..4)));
        assert_eq!(stage.wanted(&(0..4), &here, version(2, 16), &restated).first(), Some(&(1..2)));
    }

    #[test]
    fn what_the_stage_before_has_put_right_is_not_asked_for_again() {
        let mut all = stages(&[version(2, 20)], version(1, 8), 0);
        let head = all.last_mut().unwrap();
        head.take_report(vec![run(1, version(1, 22), true), run(2, version(2, 22), true)], 10);
        let wanted = head.wanted(&(0..4), &Report::default(), version(2, 30), &Restated::default());
        assert_eq!((wanted.len(), wanted.first()), (1, Some(&(2..3))));
    }
}
