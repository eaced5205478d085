//! Whether a history of concurrent operations on one object is linearizable: explained by some order of single
//! steps that keeps to real time.
//!
//! The object is a register (one sector), or whatever implements [`Step`]. Operations that ended without a known
//! outcome (their caller was dropped, the node crashed) may take effect once or never. The history is walked in the
//! order of time with the set of all states that explain it so far, so it may be long as long as few operations
//! overlap.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// One operation on an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<A = Action> {
    /// When it was called, on a clock that never shows a time twice.
    pub called: u64,
    /// When it ended; for one that has no known outcome, when it can't take effect any more.
    pub ended: u64,
    /// What it did.
    pub action: A,
    /// Whether it may also never have happened.
    pub is_optional: bool,
}

/// What an operation, with the outcome that it had, does to an object in one step.
pub trait Step {
    /// What the object is.
    type State: Clone + Eq + Hash;

    /// The state after this operation on `state`, or none when it can't have had its outcome then.
    fn apply(&self, state: &Self::State) -> Option<Self::State>;
}

/// What an operation did to a register, or saw of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set it.
    Write(u64),
    /// Saw this value.
    Read(u64),
    /// Saw `from` and set it to `to` in one step.
    Exchange {
        /// The value before.
        from: u64,
        /// The value after.
        to: u64,
    },
    /// Saw another value than this.
    Differs(u64),
}

impl Step for Action {
    type State = u64;

    fn apply(&self, value: &u64) -> Option<u64> {
        match *self {
            Self::Write(written) => Some(written),
            Self::Read(seen) => (seen == *value).then_some(seen),
            Self::Exchange { from, to } => (from == *value).then_some(to),
            Self::Differs(other) => (other != *value).then_some(*value),
        }
    }
}

/// Whether `events`, in any order, are linearizable on an object that is `initial` at first.
#[must_use]
pub fn is_linearizable<A: Step>(initial: A::State, events: &[Event<A>]) -> bool {
    first_contradiction(initial, events).is_none()
}

/// The index of the event with whose end no order explains the history any more.
///
/// # Panics
/// When more than 64 operations are open at a time.
#[must_use]
pub fn first_contradiction<A: Step>(initial: A::State, events: &[Event<A>]) -> Option<usize> {
    let mut moments = Vec::with_capacity(2 * events.len());
    for (index, event) in events.iter().enumerate() {
        moments.push((event.called, false, index));
        moments.push((event.ended, true, index));
    }
    moments.sort_unstable();
    let mut worlds = Worlds::new(initial);
    for (_, is_end, index) in moments {
        if !is_end {
            worlds.open(index, events[index].is_optional);
        } else if !worlds.close(events, index) {
            return Some(index);
        }
    }
    None
}

/// Everything that may be so at one moment.
struct Worlds<S> {
    /// Of the open operations that must have an effect, those that have had it, by their places in `open`, and the
    /// state: with which of the others that can be so. Of these only the least sets are kept: what has not taken
    /// effect may still do so, or never, so a larger set explains nothing that a part of it does not.
    explained: HashMap<(u64, S), Vec<u64>>,
    /// Operations that have been called and have not ended.
    open: Vec<Option<usize>>,
    /// Places of those that may also never take effect.
    optional: u64,
}

impl<S: Clone + Eq + Hash> Worlds<S> {
    fn new(initial: S) -> Self {
        Self { explained: HashMap::from([((0, initial), vec![0])]), open: Vec::new(), optional: 0 }
    }

    fn open(&mut self, index: usize, is_optional: bool) {
        let free = self.open.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        assert!(place < 64, "more operations at a time than this can follow");
        self.open[place] = Some(index);
        self.optional |= u64::from(is_optional) << place;
    }

    /// Ends an operation; whether something still explains the history.
    fn close<A: Step<State = S>>(&mut self, events: &[Event<A>], index: usize) -> bool {
        self.take_effect(events);
        let place = self.open.iter().position(|open| *open == Some(index)).expect("it was called before");
        self.open[place] = None;
        let (bit, is_optional) = (1 << place, events[index].is_optional);
        self.optional &= !bit;
        for ((done, state), sets) in std::mem::take(&mut self.explained) {
            for others in sets.into_iter().filter(|_| is_optional || done & bit != 0) {
                self.add(done & !bit, &state, others & !bit);
            }
        }
        !self.explained.is_empty()
    }

    /// Adds what is so when open operations take effect now.
    fn take_effect<A: Step<State = S>>(&mut self, events: &[Event<A>]) {
        let known = self.explained.iter();
        let mut fresh: VecDeque<(u64, S, u64)> = known
            .flat_map(|((done, state), others)| others.iter().map(|others| (*done, state.clone(), *others)))
            .collect();
        while let Some((done, state, others)) = fresh.pop_front() {
            for place in 0..self.open.len() {
                let bit = 1 << place;
                let Some(index) = self.open[place].filter(|_| (done | others) & bit == 0) else { continue };
                let Some(after) = events[index].action.apply(&state) else { continue };
                let is_optional = self.optional & bit != 0;
                let (done, others) = if is_optional { (done, others | bit) } else { (done | bit, others) };
                if self.add(done, &after, others) {
                    fresh.push_back((done, after, others));
                }
            }
        }
    }

    /// Whether that was not known, nor anything that explains as much.
    fn add(&mut self, done: u64, state: &S, others: u64) -> bool {
        let least = self.explained.entry((done, state.clone())).or_default();
        if least.iter().any(|known| known & others == *known) {
            return false;
        }
        least.retain(|known| known & others != others);
        least.push(others);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Action::{Differs, Exchange, Read, Write};
    use super::*;

    fn event(called: u64, ended: u64, action: Action) -> Event {
        Event { called, ended, action, is_optional: false }
    }

    fn lost(called: u64, ended: u64, action: Action) -> Event {
        Event { is_optional: true, ..event(called, ended, action) }
    }

    #[test]
    fn overlapping_writes_may_land_in_either_order_but_only_one() {
        let writes = [event(1, 5, Write(10)), event(2, 6, Write(20))];
        for last in [10, 20] {
            assert!(is_linearizable(0, &[writes[0], writes[1], event(7, 8, Read(last))]));
        }
        let flip = [writes[0], writes[1], event(7, 8, Read(10)), event(9, 10, Read(20))];
        assert!(!is_linearizable(0, &flip));
    }

    #[test]
    fn stale_and_premature_reads_are_found() {
        assert!(!is_linearizable(0, &[event(1, 2, Write(5)), event(3, 4, Read(0))]));
        assert!(!is_linearizable(0, &[event(1, 2, Read(5)), event(3, 4, Write(5))]));
        assert!(is_linearizable(0, &[event(1, 4, Write(5)), event(2, 3, Read(0))]));
        // Seen, then unseen again.
        let history = [event(1, 9, Write(5)), event(2, 3, Read(5)), event(4, 5, Read(0))];
        assert!(!is_linearizable(0, &history));
    }

    #[test]
    fn lost_updates_are_found() {
        let exchange = |called, ended, from, to| event(called, ended, Exchange { from, to });
        assert!(!is_linearizable(0, &[exchange(1, 4, 0, 1), exchange(2, 3, 0, 2)]));
        assert!(is_linearizable(0, &[exchange(1, 4, 2, 1), exchange(2, 3, 0, 2)]));
        assert!(!is_linearizable(0, &[event(1, 2, Differs(0))]));
    }

    #[test]
    fn lost_callers_count_once_or_never_and_not_too_late() {
        let write = lost(1, 6, Write(7));
        assert!(is_linearizable(0, &[write, event(8, 9, Read(0))]));
        assert!(is_linearizable(0, &[write, event(2, 3, Read(0)), event(8, 9, Read(7))]));
        assert!(!is_linearizable(0, &[write, event(7, 8, Read(0)), event(9, 10, Read(7))]));
        let twice = [write, event(2, 3, Read(7)), event(4, 5, Write(8)), event(8, 9, Read(7))];
        assert!(!is_linearizable(0, &twice));
    }
}
