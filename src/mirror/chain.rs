//! Appends of one volume, from their start until nobody needs them any more.

use std::collections::VecDeque;
use std::task::Waker;

use super::coverage::Held;
use super::message::size_of_writes;
use super::mutant::{self, Mutant};
use super::primary::Requirement;
use crate::base::runtime::Instant;
use crate::base::units::{BlockAddress, Version};
use crate::store::interface::{BlockWrite, rollback_of};

/// What is in flight, oldest first. Epochs and sequence numbers grow, and each side has a version only
/// with all before it.
pub(super) struct Chain {
    entries: VecDeque<Entry>,
    /// Latest version, in flight or not.
    last: Version,
    /// Latest version that was removed.
    let_go: Version,
    /// The version that the chain began behind, if the local store may have it in part only.
    torn: Option<Version>,
    /// Latest version that the local store has on stable media.
    local: Version,
    /// Latest version that the replica has on stable media, as it said in the present epoch.
    confirmed: Version,
    /// Whether the replica has everything before what it confirms.
    is_whole: bool,
    /// How far the present stream is; none where there is no stream that carries the chain.
    sent: Option<Version>,
}

struct Entry {
    version: Version,
    writes: Vec<BlockWrite>,
    since: Instant,
    wakers: Vec<Waker>,
}

/// A link as it is sent.
pub(super) struct Link {
    pub(super) version: Version,
    pub(super) previous: Version,
    pub(super) writes: Vec<BlockWrite>,
    pub(super) bytes: u64,
    pub(super) since: Instant,
}

impl Chain {
    /// A chain that goes on behind what the local store has.
    pub(super) fn new(held: Held) -> Self {
        let latest = held.latest;
        let is_torn = held.whole_through != latest;
        Self {
            torn: is_torn.then_some(latest),
            entries: VecDeque::new(),
            last: latest,
            let_go: latest,
            local: latest,
            confirmed: Version::default(),
            is_whole: false,
            sent: None,
        }
    }

    /// Adds a link.
    pub(super) fn push(&mut self, version: Version, writes: Vec<BlockWrite>, since: Instant) {
        let previous = std::mem::replace(&mut self.last, version);
        let grows = previous.epoch <= version.epoch && previous.sequence < version.sequence;
        assert!(grows, "version {version:?} after {previous:?}");
        self.entries.push_back(Entry { version, writes, since, wakers: Vec::new() });
    }

    pub(super) fn local_has(&mut self, version: Version) {
        self.local = self.local.max(version);
    }

    /// Whether the replica can have that: it was sent.
    pub(super) fn replica_has(&mut self, version: Version) -> bool {
        let was_sent = self.sent.is_some_and(|sent| version <= sent);
        if was_sent {
            self.confirmed = self.confirmed.max(version);
        }
        was_sent
    }

    /// Whether the chain has everything that a replica whose latest version is `durable` may lack.
    pub(super) fn goes_on_from(&self, durable: Version) -> bool {
        if mutant::is(Mutant::GapTaken) {
            return true;
        }
        if self.torn == Some(durable) {
            return false;
        }
        durable == self.let_go || (durable > self.let_go && self.has(durable))
    }

    /// Whether a replica that obeys the protocol can have this as its latest version, where streams are of
    /// `epoch`. One that was primary may be ahead, in an older epoch; then nothing here is that old.
    pub(super) fn is_possible(&self, durable: Version, epoch: u32) -> bool {
        let is_ahead = durable > self.last && durable.epoch < epoch && self.entries.is_empty();
        let next = self.entries.front().map_or(self.last, |entry| entry.version);
        is_ahead || durable < next || durable == self.last || self.has(durable)
    }

    fn has(&self, version: Version) -> bool {
        self.entries.binary_search_by_key(&version, |entry| entry.version).is_ok()
    }

    /// A stream carries the chain from behind `durable` on.
    pub(super) fn begin(&mut self, durable: Version, is_whole: bool) {
        self.sent = Some(durable);
        self.is_whole = is_whole;
        self.confirmed = durable;
    }

    /// Nothing carries the chain any more.
    pub(super) fn end_stream(&mut self) {
        self.sent = None;
    }

    /// What was confirmed does not count any more: the epoch is another one.
    pub(super) fn forget_confirmations(&mut self) {
        if !mutant::is(Mutant::OldConfirmationCounts) {
            self.confirmed = Version::default();
        }
    }

    /// The replica has everything before what it confirms.
    pub(super) fn fill_gap(&mut self) {
        self.is_whole = self.sent.is_some();
    }

    /// The next link to send, which counts as sent.
    pub(super) fn take_unsent(&mut self) -> Option<Link> {
        let previous = self.sent?;
        let index = self.entries.partition_point(|entry| entry.version <= previous);
        let entry = self.entries.get(index)?;
        self.sent = Some(entry.version);
        let (version, writes) = (entry.version, entry.writes.clone());
        Some(Link { version, previous, bytes: size_of_writes(&writes), writes, since: entry.since })
    }

    /// How far the present stream is.
    pub(super) fn sent(&self) -> Option<Version> {
        self.sent
    }

    /// Latest version, in flight or not.
    pub(super) fn last(&self) -> Version {
        self.last
    }

    /// Latest version that was removed: everything newer goes over the present stream, or is at the
    /// replica.
    pub(super) fn let_go(&self) -> Version {
        self.let_go
    }

    /// Removes what is done; who waited for it. With a stream, what needs nobody else is done once it was
    /// sent, so that a slow stream slows hosts down rather than filling memory.
    pub(super) fn settle(&mut self, requirement: Requirement) -> Vec<Waker> {
        let mut woken = Vec::new();
        while let Some(entry) = self.entries.front() {
            let here = entry.version <= self.local || mutant::is(Mutant::LocalNotAwaited);
            let there = self.is_whole && entry.version <= self.confirmed;
            let is_sent = self.sent.is_none_or(|sent| entry.version <= sent);
            if !here || !(there || requirement == Requirement::Local && is_sent) {
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
                // A rollback changes what the volume shows, anywhere.
                BlockWrite::Snapshot { record } => {
                    return rollback_of(record).is_some() && !mutant::is(Mutant::RollbackInFlightShown);
                }
                BlockWrite::SnapshotDropped { .. } => return false,
            };
            first < end && address.0 < first.saturating_add(count)
        };
        let newest = self.entries.iter().rev().find(|entry| entry.writes.iter().any(touches));
        newest.map(|entry| entry.version)
    }

    /// What is in flight about snapshots, oldest first.
    pub(super) fn statements(&self) -> impl Iterator<Item = (Version, &BlockWrite)> {
        // Each is alone in its append.
        self.entries.iter().filter_map(|entry| match entry.writes.first()? {
            statement @ (BlockWrite::Snapshot { .. } | BlockWrite::SnapshotDropped { .. }) => {
                Some((entry.version, statement))
            }
            BlockWrite::Data { .. } | BlockWrite::Hole { .. } => None,
        })
    }

    /// Since when the oldest link waits for the replica's answer.
    pub(super) fn unconfirmed_since(&self) -> Option<Instant> {
        let unconfirmed = |entry: &&Entry| !self.is_whole || entry.version > self.confirmed;
        self.entries.iter().find(unconfirmed).map(|entry| entry.since)
    }

    /// Whether the replica has everything but what is in the chain, over the present stream.
    pub(super) fn is_replica_whole(&self) -> bool {
        self.sent.is_some() && self.is_whole && self.confirmed >= self.let_go
    }

    /// Whether the replica has everything.
    pub(super) fn is_level(&self) -> bool {
        self.is_replica_whole() && self.confirmed >= self.last
    }

    /// The version through which both have everything.
    pub(super) fn both_have(&self) -> Option<Version> {
        self.is_replica_whole().then(|| self.confirmed.min(self.local))
    }
}
