//! Statements about blocks, and which of those about one block count.
//!
//! All that lookups, merges and the memtable decide is decided here, by [`resolve`]: from statements of one block
//! in log order it finds the entries that the map has, as [`super::super::older`] would have them. So a statement
//! can be taken in without a look at what is there. What it can't decide, because older statements are
//! elsewhere, it keeps: a move waits for the version that it moves.
//!
//! Invariants: what is given up of some neighbouring statements would be given up of all of them; and resolving a
//! part of the statements first, then the rest with what is left of it, ends in what resolving all at once does.

use crate::array::Place;
use crate::base::mutant::{self, Mutant};
use crate::base::units::{Version, VolumeId};

use super::super::{MapEntry, MapValue};

/// What the log said about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) version: Version,
    pub(super) value: MapValue,
    /// It takes effect only on this very version with this very data.
    pub(super) is_move: bool,
    /// The block counts as taking space for it. There are at least as many such statements of a block as there
    /// are entries with data: see account.md.
    pub(super) counts: bool,
    /// The volume's era in which it was applied: see [`History`].
    pub(super) era: u32,
}

impl Statement {
    pub(super) fn entry(&self) -> MapEntry {
        MapEntry { version: self.version, value: self.value }
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.value.place()
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.value.is_mapped()
    }
}

/// A statement and the blocks that it is about: one, or for holes any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) volume: VolumeId,
    pub(super) start: u64,
    /// The block behind the last one.
    pub(super) end: u64,
    /// Which it is of those about one block in one source, where their order does not follow from where they stand.
    pub(super) order: u32,
    pub(super) statement: Statement,
}

/// A block's key.
pub(super) type Key = (VolumeId, u64);

/// Behind every key.
pub(super) const END_OF_KEYS: Key = (VolumeId(u32::MAX), u64::MAX);

/// The snapshots of one volume, and when they came.
///
/// As a rule a snapshot is newer than all that is there; then it keeps what it shows from being given up. One
/// that comes late finds part of what it would show given up already, in the map in memory at least: in the tree
/// it may still be there, as nobody has looked. It must not come back, for what is missing is appended after
/// the snapshot, and may differ. So time is cut into eras: a late snapshot begins one, and keeps an entry only when
/// that has met its successor since. One that is dropped while later late ones are there is remembered, since
/// what it kept until then is theirs to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct History {
    /// Ascending, as the store says them.
    snapshots: Vec<Version>,
    spans: Vec<Span>,
    pub(super) era: u32,
    /// Of anything in the volume.
    pub(super) newest: Version,
}

/// From which era on a snapshot kept entries, and through which, if it was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) snapshot: Version,
    pub(super) born: u32,
    pub(super) died: Option<u32>,
}

impl History {
    /// A history as it was saved.
    pub(super) fn restore(spans: Vec<Span>, era: u32, newest: Version) -> Self {
        let alive = spans.iter().filter(|span| span.died.is_none());
        let mut snapshots: Vec<Version> = alive.map(|span| span.snapshot).collect();
        snapshots.sort_unstable();
        Self { snapshots, spans, era, newest }
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// How many bytes a manifest needs for it, at most.
    pub(super) fn saved_bytes(&self) -> u64 {
        64 + self.spans.len() as u64 * 24
    }

    pub(super) fn newest_snapshot(&self) -> Option<Version> {
        self.snapshots.last().copied()
    }

    /// Whether these are other snapshots than before; then takes note of them.
    pub(super) fn observe(&mut self, snapshots: &[Version]) -> bool {
        if self.snapshots == snapshots {
            return false;
        }
        let gone = |span: &Span| span.died.is_none() && snapshots.binary_search(&span.snapshot).is_err();
        let died = Some(self.era);
        let ends = self.spans.iter().any(gone);
        self.spans.iter_mut().filter(|span| gone(span)).for_each(|span| span.died = died);
        let new = snapshots.iter().filter(|snapshot| self.snapshots.binary_search(snapshot).is_err());
        let new: Vec<Version> = new.copied().collect();
        let is_late = new.iter().any(|snapshot| *snapshot < self.newest);
        if is_late || ends && self.spans.iter().any(|span| span.born > 0) {
            self.era += 1;
        }
        for snapshot in new {
            let born = if snapshot < self.newest { self.era } else { 0 };
            self.spans.push(Span { snapshot, born, died: None });
        }
        // Only a late one can have to take over from one that has gone.
        let is_any_late = self.spans.iter().any(|span| span.died.is_none() && span.born > 0);
        self.spans.retain(|span| span.died.is_none() || is_any_late);
        self.snapshots = snapshots.to_vec();
        true
    }

    /// Whether an entry is kept beside the next one, where the later of the two came in `era`.
    fn keeps(&self, entry: Version, next: Version, era: u32) -> bool {
        if self.era == 0 {
            return super::super::older::is_kept(&self.snapshots, entry, next);
        }
        let shows = |span: &&Span| entry <= span.snapshot && span.snapshot < next;
        let mut at = era;
        loop {
            let holds = |span: &&Span| span.born <= at && span.died.is_none_or(|died| died >= at);
            let mut longest: Option<u32> = None;
            for span in self.spans.iter().filter(shows).filter(holds) {
                match span.died {
                    None => return true,
                    Some(died) => longest = longest.max(Some(died)),
                }
            }
            match longest {
                Some(died) if died > at => at = died,
                _ => return false,
            }
        }
    }
}

/// What [`resolve`] found.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// By version; moves that wait, in log order.
    pub(super) kept: Vec<Statement>,
    /// Places that no statement refers to any more.
    pub(super) lost: Vec<Place>,
    /// By how much the count of the volume's blocks changes.
    pub(super) counted: i64,
    /// Entries with data that have a newer one.
    pub(super) older: u64,
}

/// Decides what is left of statements about one block, the first in the log first. `is_all` says that there are
/// no older ones elsewhere.
pub(super) fn resolve(
    statements: &mut Vec<Statement>,
    history: &History,
    is_all: bool,
    found: &mut Resolved,
) {
    found.kept.clear();
    found.lost.clear();
    found.older = 0;
    let before = statements.iter().filter(|statement| statement.counts).count();
    statements.sort_by_key(|statement| statement.version);
    let mut rest = statements.as_slice();
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|other| other.version == first.version).count();
        fold_version(&rest[..same], is_all, found);
        rest = &rest[same..];
    }
    give_up_unshown(history, found);
    let mapped = found.kept.iter().filter(|kept| !kept.is_move && kept.is_mapped()).count();
    let after = if is_all { mapped } else { before.min(mapped) };
    found.counted = after as i64 - before as i64;
    let mut left = after;
    for kept in &mut found.kept {
        kept.counts = left > 0 && !kept.is_move && kept.is_mapped();
        left -= usize::from(kept.counts);
    }
}

/// Of statements of one version the last counts, and moves of it.
fn fold_version(statements: &[Statement], is_all: bool, found: &mut Resolved) {
    let first = found.kept.len();
    for statement in statements {
        let lose = |found: &mut Resolved, from: usize| {
            let lost = found.kept.drain(from..).filter_map(|kept| kept.place());
            found.lost.extend(lost);
        };
        let last = found.kept[first..].last().copied();
        match last {
            _ if !statement.is_move => {
                lose(found, first);
                found.kept.push(*statement);
            }
            Some(base) if !base.is_move && base.value.may_move_as(&statement.value) => {
                lose(found, first);
                found.kept.push(Statement { value: statement.value, ..base });
            }
            Some(base) if !base.is_move => found.lost.extend(statement.place()),
            _ if is_all || mutant::is(Mutant::WaitingMoveForgotten) => found.lost.extend(statement.place()),
            // What is lost is lost whatever moved before.
            Some(_) if statement.place().is_none() => {
                lose(found, first);
                found.kept.push(*statement);
            }
            // Of moves of the same data the last decides.
            Some(before) if before.place().is_some() && before.value.may_move_as(&statement.value) => {
                lose(found, found.kept.len() - 1);
                found.kept.push(*statement);
            }
            _ => found.kept.push(*statement),
        }
    }
}

/// Gives up what no snapshot shows.
fn give_up_unshown(history: &History, found: &mut Resolved) {
    let mut next: Option<Statement> = None;
    for index in (0..found.kept.len()).rev() {
        let statement = found.kept[index];
        let keeps = next.is_none_or(|next| {
            next.version == statement.version
                || history.keeps(statement.version, next.version, statement.era.max(next.era))
        });
        if keeps {
            if !statement.is_move {
                found.older += u64::from(next.is_some() && statement.is_mapped());
                next = Some(statement);
            }
        } else {
            found.lost.extend(statement.place());
            found.kept.remove(index);
        }
    }
}

/// The entry that a view shows, of what was kept of all statements.
pub(super) fn shown_at(kept: &[Statement], at: Version) -> Option<&Statement> {
    kept.iter().rev().find(|statement| statement.version <= at)
}
