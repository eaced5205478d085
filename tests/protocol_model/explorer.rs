//! Visits every state that a model can reach, breadth first.
//!
//! Guarantees: a violation found is one of the shortest; its trace is replayed from the first state, so
//! it is a real run of the model. States are remembered by a 64-bit fingerprint: with tens of millions
//! of states the chance that a collision hid any one of them is below one in ten thousand.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// What can happen, from where, and what must hold.
pub trait Model {
    type State: Copy + Hash + Eq;
    type Action: Copy + Debug;

    fn first_state(&self) -> Self::State;
    /// Adds everything that may happen next.
    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>);
    /// The state after `action`, one of those that [`Self::actions`] gave.
    fn next(&self, state: &Self::State, action: Self::Action) -> Self::State;
    /// The invariant that this step breaks.
    fn broken(&self, before: &Self::State, action: Self::Action, after: &Self::State)
    -> Option<&'static str>;
    /// Rare situations that `state` is one of, a bit each; a run reports those that it met.
    fn landmarks(&self, state: &Self::State) -> u32;
}

/// What a run found.
pub struct Report<A> {
    /// Different states visited.
    pub states: usize,
    /// Steps taken, those to known states included.
    pub steps: usize,
    /// Longest distance from the first state.
    pub depth: usize,
    /// Bits of all landmarks met.
    pub landmarks: u32,
    pub violation: Option<Violation<A>>,
}

/// A broken invariant and the way there.
pub struct Violation<A> {
    pub invariant: &'static str,
    pub trace: Vec<A>,
}

/// Visits at most `most_states` states; all of them when there is no violation and the report has fewer.
pub fn explore<M: Model>(model: &M, most_states: usize) -> Report<M::Action> {
    let first = model.first_state();
    let mut seen: HashSet<u64, BuildHasherDefault<Fingerprints>> = HashSet::default();
    seen.insert(fingerprint(&first));
    let mut report = Report { states: 1, steps: 0, depth: 0, landmarks: 0, violation: None };
    let (mut layer, mut following, mut actions) = (vec![first], Vec::new(), Vec::new());
    while !layer.is_empty() && report.states < most_states {
        for before in layer.drain(..) {
            actions.clear();
            model.actions(&before, &mut actions);
            for &action in &actions {
                let after = model.next(&before, action);
                report.steps += 1;
                if let Some(invariant) = model.broken(&before, action, &after) {
                    let mut trace = trace_to(model, &before, report.depth);
                    trace.push(action);
                    report.violation = Some(Violation { invariant, trace });
                    report.depth += 1;
                    return report;
                }
                if seen.insert(fingerprint(&after)) {
                    report.states += 1;
                    report.landmarks |= model.landmarks(&after);
                    following.push(after);
                }
            }
        }
        report.depth += 1;
        std::mem::swap(&mut layer, &mut following);
    }
    report
}

/// The actions that lead to `target`, found by a second search that remembers where it came from.
fn trace_to<M: Model>(model: &M, target: &M::State, depth: usize) -> Vec<M::Action> {
    let first = model.first_state();
    let mut came_from: HashMap<u64, Option<(u64, M::Action)>> = HashMap::new();
    came_from.insert(fingerprint(&first), None);
    let mut layer = vec![first];
    for _ in 0..depth {
        let mut following = Vec::new();
        for before in layer {
            let mut actions = Vec::new();
            model.actions(&before, &mut actions);
            for action in actions {
                let after = model.next(&before, action);
                came_from.entry(fingerprint(&after)).or_insert_with(|| {
                    following.push(after);
                    Some((fingerprint(&before), action))
                });
            }
        }
        layer = following;
    }
    let mut trace = Vec::new();
    let mut place = fingerprint(target);
    while let Some((before, action)) = came_from[&place] {
        trace.push(action);
        place = before;
    }
    trace.reverse();
    trace
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut mixer = Mixer(0x9e37_79b9_7f4a_7c15);
    state.hash(&mut mixer);
    mixer.finish()
}

/// Multiply and rotate by field: quick, and good enough for states that are all small numbers.
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value).wrapping_mul(0xa076_1d64_78bd_642f_e703_7ed1_a0b4_28db);
        self.0 = ((product >> 64) as u64 ^ product as u64).rotate_left(23).wrapping_add(value);
    }

    fn finish(&self) -> u64 {
        let mut word = self.0;
        word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        word ^ (word >> 32)
    }
}

/// Fingerprints are mixed already.
#[derive(Default)]
struct Fingerprints(u64);

impl Hasher for Fingerprints {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are remembered");
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
