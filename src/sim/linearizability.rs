//! Whether a history of concurrent operations on one register is linearizable: explained by some order
//! of single steps that keeps to real time.
//!
//! A register is one sector. Operations that ended without a known outcome (their caller was dropped,
//! the node crashed) may take effect once or never. The search is exhaustive and remembers where it
//! has been, so it is quick as long as few operations overlap.

use std::collections::HashSet;

/// One operation on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it was called, on a clock that never shows a time twice.
    pub called: u64,
    /// When it ended; for one that has no known outcome, when it can't take effect any more.
    pub ended: u64,
    /// What it did.
    pub action: Action,
    /// Whether it may also never have happened.
    pub is_optional: bool,
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

impl Action {
    /// The value after this action on `value`, or none when it can't have happened then.
    fn apply(self, value: u64) -> Option<u64> {
        match self {
            Self::Write(written) => Some(written),
            Self::Read(seen) => (seen == value).then_some(value),
            Self::Exchange { from, to } => (from == value).then_some(to),
            Self::Differs(other) => (other != value).then_some(value),
        }
    }
}

/// Whether `events`, in any order, are linearizable on a register that holds `initial` at first.
#[must_use]
pub fn is_linearizable(initial: u64, events: &[Event]) -> bool {
    let mut pending = events.to_vec();
    pending.sort_by_key(|event| event.called);
    let mut search = Search { events: pending, visited: HashSet::new() };
    search.explore(State { done: vec![false; events.len()], value: initial })
}

struct Search {
    events: Vec<Event>,
    visited: HashSet<State>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    done: Vec<bool>,
    value: u64,
}

impl Search {
    /// Whether the operations that `state` has not done can follow it. Not recursive: histories are long.
    fn explore(&mut self, state: State) -> bool {
        let mut stack = vec![state];
        while let Some(state) = stack.pop() {
            let undone = || state.done.iter().zip(&self.events).filter(|(done, _)| !**done);
            if undone().all(|(_, event)| event.is_optional) {
                return true;
            }
            // Whatever is next was called before any other undone operation had ended.
            let first_end =
                undone().filter(|(_, event)| !event.is_optional).map(|(_, event)| event.ended).min();
            let first_end = first_end.unwrap_or(u64::MAX);
            for (index, event) in self.events.iter().enumerate() {
                if event.called > first_end {
                    break;
                }
                if state.done[index] {
                    continue;
                }
                // What takes effect late must still be within its time.
                let next = event.action.apply(state.value);
                let Some(value) = next.filter(|_| self.is_in_time(&state, index)) else { continue };
                let mut done = state.done.clone();
                done[index] = true;
                let next = State { done, value };
                if self.visited.insert(next.clone()) {
                    stack.push(next);
                }
            }
        }
        false
    }

    /// Whether no operation that was called after the end of `index` is done already.
    fn is_in_time(&self, state: &State, index: usize) -> bool {
        let ended = self.events[index].ended;
        !state.done.iter().zip(&self.events).any(|(done, event)| *done && event.called > ended)
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
