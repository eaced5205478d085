//! What the snapshots of a volume must show: of each block exactly one write, or one of two while history is
//! being put there late.
//!
//! A snapshot that is there after a crash has everything before it in the log, so what it shows is known when
//! it is appended: the newest write of each block that was appended before.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::units::Version;
use crate::store::interface::SnapshotEntry;

/// The snapshots of a volume, by sequence number.
#[derive(Default)]
pub(super) struct Past {
    snapshots: BTreeMap<u64, Snapshot>,
}

struct Snapshot {
    version: Version,
    record: Vec<u8>,
    state: SnapshotState,
    view: Vec<Shown>,
}

/// What is known of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SnapshotState {
    /// It was not acknowledged.
    Taking,
    /// It exists.
    Exists,
    /// Its end was asked for and not acknowledged.
    Dropping,
}

/// What a snapshot shows of a block.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    /// Sequence number under which it was written.
    pub(super) version: u64,
    /// Number that is stamped on it; 0 for zeros.
    pub(super) stamp: u64,
    /// Nobody could find out what the block was when the snapshot was taken.
    pub(super) is_doubtful: bool,
    /// What is being put there late: version and stamp.
    pub(super) late: Option<(u64, u64)>,
    /// Stamps that it had before.
    pub(super) replaced: Vec<u64>,
}

/// What became of snapshots over a restart.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settled {
    pub(super) survived: u64,
    /// Those whose end was in doubt and that are there.
    pub(super) drops_undone: u64,
    pub(super) takes_lost: u64,
}

impl Past {
    /// A snapshot is about to be taken.
    pub(super) fn take(&mut self, version: Version, view: Vec<Shown>) {
        self.take_as(version, view, record(version));
    }

    /// The same, with a record of its own.
    pub(super) fn take_as(&mut self, version: Version, view: Vec<Shown>, record: Vec<u8>) {
        let state = SnapshotState::Taking;
        self.snapshots.insert(version.sequence, Snapshot { version, record, state, view });
    }

    pub(super) fn set_state(&mut self, snapshot: Version, state: SnapshotState) {
        if let Some(known) = self.snapshots.get_mut(&snapshot.sequence) {
            known.state = state;
        }
    }

    pub(super) fn forget(&mut self, snapshot: Version) {
        self.snapshots.remove(&snapshot.sequence);
    }

    pub(super) fn exists(&self, snapshot: Version) -> bool {
        self.snapshots.get(&snapshot.sequence).is_some_and(|known| known.state == SnapshotState::Exists)
    }

    /// Those that exist for certain, ascending.
    pub(super) fn existing(&self) -> Vec<Version> {
        let exists = |snapshot: &&Snapshot| snapshot.state == SnapshotState::Exists;
        self.snapshots.values().filter(exists).map(|snapshot| snapshot.version).collect()
    }

    pub(super) fn count(&self) -> usize {
        self.snapshots.len()
    }

    /// The newest that may be there.
    pub(super) fn newest(&self) -> u64 {
        self.snapshots.last_key_value().map_or(0, |(newest, _)| *newest)
    }

    /// Whether something may be put into a block of a snapshot: nothing else is, and no later snapshot shows a
    /// hole that may have been forgotten, so that it would come to light there.
    pub(super) fn may_write_late(&self, snapshot: Version, block: u64) -> bool {
        let is_changing = |(_, known): (&u64, &Snapshot)| known.view[block as usize].late.is_some();
        let is_newer_hole = |(_, known): (&u64, &Snapshot)| {
            let shown = &known.view[block as usize];
            shown.version > snapshot.sequence && shown.stamp == 0
        };
        !self.snapshots.iter().any(is_changing)
            && !self.snapshots.range(snapshot.sequence..).any(is_newer_hole)
    }

    /// Whether something is being put into the past of any block.
    pub(super) fn is_changing(&self) -> bool {
        self.snapshots.values().any(|known| known.view.iter().any(|shown| shown.late.is_some()))
    }

    /// A block is being put into the view of `snapshot`, and so of those behind it that show nothing newer.
    pub(super) fn begin_late(&mut self, snapshot: Version, block: u64, stamp: u64) {
        for (_, later) in self.snapshots.range_mut(snapshot.sequence..) {
            let shown = &mut later.view[block as usize];
            if shown.version <= snapshot.sequence {
                shown.late = Some((snapshot.sequence, stamp));
            }
        }
    }

    /// It is there, or was refused.
    pub(super) fn end_late(&mut self, block: u64, stamp: u64, is_there: bool) {
        for snapshot in self.snapshots.values_mut() {
            let shown = &mut snapshot.view[block as usize];
            if let Some((version, _)) = shown.late.take_if(|(_, late)| *late == stamp)
                && is_there
            {
                shown.replaced.push(shown.stamp);
                (shown.version, shown.stamp) = (version, stamp);
            }
        }
    }

    /// How often a block of a snapshot was changed so far.
    pub(super) fn age(&self, snapshot: Version, block: u64) -> usize {
        self.snapshots.get(&snapshot.sequence).map_or(0, |known| known.view[block as usize].replaced.len())
    }

    /// Whether a block of a snapshot may show what was `seen` by a read that began at this age.
    pub(super) fn check(&self, snapshot: Version, block: u64, age: usize, seen: u64) -> Result<(), String> {
        let Some(known) = self.snapshots.get(&snapshot.sequence) else { return Ok(()) };
        let shown = &known.view[block as usize];
        let is_late = shown.late.is_some_and(|(_, stamp)| stamp == seen);
        let was_it = shown.replaced[age..].contains(&seen);
        if shown.stamp == seen || is_late || was_it || shown.is_doubtful {
            return Ok(());
        }
        Err(format!("snapshot {} shows {seen} for block {block}, which was {shown:?}", snapshot.sequence))
    }

    /// After a restart: compares with the snapshots that are there.
    pub(super) fn settle(&mut self, found: &[SnapshotEntry]) -> Result<Settled, String> {
        let mut settled = Settled::default();
        let there: BTreeSet<u64> = found.iter().map(|entry| entry.version.sequence).collect();
        for entry in found {
            let Some(known) = self.snapshots.get_mut(&entry.version.sequence) else {
                return Err(format!("{entry:?} came back, or was never taken"));
            };
            if known.version != entry.version || entry.record != known.record {
                return Err(format!("{entry:?} is not what was taken as {:?}", known.version));
            }
            settled.survived += 1;
            settled.drops_undone += u64::from(known.state == SnapshotState::Dropping);
            known.state = SnapshotState::Exists;
        }
        for (sequence, known) in &self.snapshots {
            let is_lost = !there.contains(sequence);
            if is_lost && known.state == SnapshotState::Exists {
                return Err(format!("snapshot {sequence} is gone"));
            }
            settled.takes_lost += u64::from(is_lost && known.state == SnapshotState::Taking);
        }
        self.snapshots.retain(|sequence, _| there.contains(sequence));
        Ok(settled)
    }

    /// After a restart, once a block of a snapshot was read: it stays so.
    pub(super) fn settle_block(&mut self, snapshot: Version, block: u64, seen: u64) {
        let Some(known) = self.snapshots.get_mut(&snapshot.sequence) else { return };
        let shown = &mut known.view[block as usize];
        if let Some((version, stamp)) = shown.late.take()
            && stamp == seen
        {
            (shown.version, shown.stamp) = (version, stamp);
        }
    }

    /// What a snapshot shows of a block: the stamp, when that is certain.
    pub(super) fn certain(&self, snapshot: Version, block: u64) -> Option<u64> {
        let shown = &self.snapshots.get(&snapshot.sequence)?.view[block as usize];
        (shown.late.is_none() && !shown.is_doubtful).then_some(shown.stamp)
    }

    /// How many versions of a block hold data that only snapshots show, where `newest` is the present one; what
    /// a clone has from its origin is not among them.
    pub(super) fn held(&self, block: u64, newest: u64) -> u64 {
        let shown = self.snapshots.values().map(|snapshot| &snapshot.view[block as usize]);
        let held = shown.filter(|shown| shown.stamp != 0 && ![0, newest].contains(&shown.version));
        held.map(|shown| shown.version).collect::<BTreeSet<_>>().len() as u64
    }
}

/// What is written down about a snapshot.
pub(super) fn record(snapshot: Version) -> Vec<u8> {
    format!("snapshot {} of life {}", snapshot.sequence, snapshot.epoch).into_bytes()
}

/// The record of a rollback.
pub(super) fn rollback_record(mark: Version, to: Version) -> Vec<u8> {
    crate::store::interface::rollback_record(to, &record(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(sequence: u64) -> Version {
        Version { epoch: 1, sequence }
    }

    fn shown(version: u64) -> Shown {
        Shown { version, stamp: version, ..Shown::default() }
    }

    fn entry(sequence: u64) -> SnapshotEntry {
        SnapshotEntry { version: version(sequence), record: record(version(sequence)).into() }
    }

    #[test]
    fn what_a_snapshot_shows_stays() {
        let mut past = Past::default();
        past.take(version(5), vec![shown(3)]);
        past.set_state(version(5), SnapshotState::Exists);
        past.take(version(8), vec![shown(7)]);
        assert!(past.check(version(5), 0, 0, 3).is_ok());
        assert!(past.check(version(5), 0, 0, 7).is_err());
        past.begin_late(version(5), 0, 9);
        assert!(past.check(version(5), 0, 0, 9).is_ok() && past.check(version(8), 0, 0, 9).is_err());
        past.end_late(0, 9, true);
        assert!(past.check(version(5), 0, 0, 3).is_ok(), "by a read that began before");
        assert!(past.check(version(5), 0, 1, 3).is_err() && past.check(version(5), 0, 1, 9).is_ok());
        assert_eq!((past.held(0, 7), past.held(0, 10)), (1, 2));
        assert!(past.settle(&[]).is_err(), "an acknowledged snapshot is gone");
    }

    #[test]
    fn snapshots_in_doubt_are_settled_for_good() {
        let mut past = Past::default();
        past.take(version(5), vec![shown(3)]);
        past.take(version(6), vec![shown(3)]);
        assert_eq!(past.settle(&[entry(6)]).map(|settled| settled.takes_lost), Ok(1));
        assert!(past.settle(&[entry(5), entry(6)]).is_err(), "it came back");
        past.set_state(version(6), SnapshotState::Dropping);
        assert_eq!(past.settle(&[]).map(|settled| settled.survived), Ok(0));
    }
}
