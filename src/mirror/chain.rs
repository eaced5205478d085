//! Appends and copies of one volume, from their start until nobody needs them any more.

use std::collections::VecDeque;
use std::task::Waker;

use super::primary::Requirement;
use crate::base::runtime::Instant;
use crate::base::units::{BlockAddress, Version};
use crate::store::interface::BlockWrite;

/// What is in flight, oldest first. Versions grow, and each side has a version only with all before it.
pub(super) struct Chain {
    entries: VecDeque<Entry>,
    /// Latest version, in flight or not.
    last: Version,
    /// Latest version that was removed.
    let_go: Version,
    /// Latest version that the local store has on stable media.
    local: Version,
    /// Latest version that the replica has on stable media.
    replica: Version,
}

struct Entry {
    version: Version,
    origin: Origin,
    writes: Vec<BlockWrite>,
    since: Instant,
    wakers: Vec<Waker>,
}

/// Where a link of the chain comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A host's write: both stores take it.
    Append,
    /// Blocks that the local store has already.
    Copy,
}

/// A link as it is sent.
pub(super) type Link = (Version, Vec<BlockWrite>);

impl Chain {
    /// A chain that goes on after `latest`.
    pub(super) fn new(latest: Version) -> Self {
        Self { entries: VecDeque::new(), last: latest, let_go: latest, local: latest, replica: latest }
    }

    /// Adds a link; the version of the one before it.
    pub(super) fn push(
        &mut self,
        version: Version,
        writes: Vec<BlockWrite>,
        origin: Origin,
        since: Instant,
    ) -> Version {
        let previous = std::mem::replace(&mut self.last, version);
        assert!(previous < version, "version {version:?} after {previous:?}");
        self.entries.push_back(Entry { version, origin, writes, since, wakers: Vec::new() });
        previous
    }

    pub(super) fn local_has(&mut self, version: Version) {
        self.local = self.local.max(version);
    }

    pub(super) fn replica_has(&mut self, version: Version) {
        self.replica = self.replica.max(version);
    }

    /// Removes what is done; who waited for it.
    pub(super) fn settle(&mut self, requirement: Requirement) -> Vec<Waker> {
        let mut woken = Vec::new();
        while let Some(entry) = self.entries.front() {
            let here = entry.origin == Origin::Copy || entry.version <= self.local;
            let there = requirement == Requirement::Local || entry.version <= self.replica;
            if !here || !there {
                break;
            }
            self.let_go = entry.version;
            woken.extend(self.entries.pop_front().into_iter().flat_map(|entry| entry.wakers));
        }
        woken
    }

    /// Everyone who waits.
    pub(super) fn all_wakers(&mut self) -> Vec<Waker> {
        self.entries.iter_mut().flat_map(|entry| std::mem::take(&mut entry.wakers)).collect()
    }

    /// Whether nothing up to `version` is in flight; else `waker` is woken when that may have changed.
    pub(super) fn is_settled_or_wakes(&mut self, version: Version, waker: &Waker) -> bool {
        let after = self.entries.partition_point(|entry| entry.version <= version);
        let Some(last) = after.checked_sub(1) else { return true };
        let wakers = &mut self.entries[last].wakers;
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        false
    }

    /// The newest append in flight that changes a block of the range.
    pub(super) fn newest_in(&self, address: BlockAddress, count: u64) -> Option<Version> {
        let end = address.0.saturating_add(count);
        let touches = |write: &BlockWrite| {
            let (first, count) = match write {
                BlockWrite::Data { address, .. } => (address.0, 1),
                BlockWrite::Hole { address, count } => (address.0, *count),
            };
            first < end && address.0 < first.saturating_add(count)
        };
        let newest = self
            .entries
            .iter()
            .rev()
            .find(|entry| entry.origin == Origin::Append && entry.writes.iter().any(touches));
        newest.map(|entry| entry.version)
    }

    /// The links after `version`, if nothing between `version` and the first of them has been let go.
    pub(super) fn after(&mut self, version: Version) -> Option<Vec<Link>> {
        let start = self.entries.partition_point(|entry| entry.version <= version);
        // What was let go was on the replica, if the replica counted. A place before that, or one that
        // never was, means that the replica does not have what it should.
        let is_known = match start.checked_sub(1) {
            Some(index) => self.entries[index].version == version,
            None => version == self.let_go,
        };
        is_known.then(|| {
            self.replica_has(version);
            self.links(start)
        })
    }

    /// Lets the chain begin at a replica that has `version` and whatever came before that; all links.
    pub(super) fn begin_at(&mut self, version: Version) -> Vec<Link> {
        (self.replica, self.let_go) = (version, version);
        self.last = self.entries.back().map_or(version, |entry| entry.version);
        self.links(0)
    }

    fn links(&self, start: usize) -> Vec<Link> {
        self.entries.iter().skip(start).map(|entry| (entry.version, entry.writes.clone())).collect()
    }

    /// When the oldest link without an answer was sent.
    pub(super) fn unanswered_since(&self) -> Option<Instant> {
        self.entries.iter().find(|entry| entry.version > self.replica).map(|entry| entry.since)
    }

    /// Whether the replica has everything.
    pub(super) fn is_level(&self) -> bool {
        self.replica >= self.last
    }
}
