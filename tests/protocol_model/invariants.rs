//! The invariants I1 to I15, as far as the model knows what they speak of, each a check of its own.
//!
//! Not here: I13 (Raft is an atomic register in this model; `src/cluster` tests it on the real one) and
//! what needs reservations, snapshots, checksums or disks (I16 as far as reservations go, I17 to I25).

use super::rules::{Action, Protocol};
use super::state::{BLOCKS, BOTH, Copied, Message, Stage, State, only};

/// A step, as the checks see it.
pub struct Step<'a> {
    pub protocol: &'a Protocol,
    pub before: &'a State,
    pub action: Action,
    pub after: &'a State,
}

type Check = fn(&Step<'_>) -> bool;

/// Each invariant and whether a step keeps it.
pub const CHECKS: &[(&str, Check)] = &[
    ("I1", acknowledged_only_if_durable_on_every_member),
    ("I2", alone_only_by_a_committed_set),
    ("I3", only_members_become_primary),
    ("I4", one_primary_an_epoch_and_epochs_grow),
    ("I5", one_server_at_most),
    ("I6", no_data_of_a_lower_epoch_than_promised),
    ("I7", own_older_writes_never_reach_the_disk),
    ("I8", a_restarted_primary_begins_an_epoch),
    ("I9", reads_return_what_is_durable_everywhere),
    ("I10", settled_blocks_are_equal),
    ("I11", the_stream_overwrites),
    ("I12", a_joiner_is_complete),
    ("I14", who_begins_to_serve_lacks_nothing),
    ("I15", no_world_is_contradicted),
];

pub fn broken(protocol: &Protocol, before: &State, action: Action, after: &State) -> Option<&'static str> {
    let step = Step { protocol, before, action, after };
    CHECKS
        .iter()
        .find(|(name, keeps)| {
            let is_asked = !protocol.only_harm || ["I5", "I15"].contains(name);
            is_asked && !keeps(&step)
        })
        .map(|(name, _)| *name)
}

fn acknowledged_only_if_durable_on_every_member(step: &Step<'_>) -> bool {
    let Action::Acknowledge { node, block } = step.action else { return true };
    let value = step.before.nodes[node].pending[block].value;
    let stored = step.before.stored[value as usize];
    // Alone is the next invariant's.
    let is_alone = stored == only(node) && step.before.nodes[node].view.in_sync == BOTH;
    is_alone || stored & step.before.committed.in_sync == step.before.committed.in_sync
}

fn alone_only_by_a_committed_set(step: &Step<'_>) -> bool {
    let Action::Acknowledge { node, block } = step.action else { return true };
    let value = step.before.nodes[node].pending[block].value;
    let is_alone = step.before.stored[value as usize] == only(node);
    !is_alone || step.before.committed.in_sync == only(node)
}

fn only_members_become_primary(step: &Step<'_>) -> bool {
    let Action::Commit(config) = step.action else { return true };
    config.is_forced || step.before.committed.in_sync & only(config.primary as usize) != 0
}

fn one_primary_an_epoch_and_epochs_grow(step: &Step<'_>) -> bool {
    let [a, b] = &step.after.nodes;
    let is_shared = a.serving != 0 && a.serving == b.serving;
    let grows = match step.action {
        Action::Commit(config) => config.epoch > step.before.committed.epoch,
        _ => true,
    };
    grows && !is_shared
}

/// And it is a member: what a deposed one serves may be old already.
fn one_server_at_most(step: &Step<'_>) -> bool {
    let serves = |node: usize| step.protocol.may_serve(step.after, node);
    let is_member = |node: usize| step.after.committed.in_sync & only(node) != 0;
    !(serves(0) && serves(1)) && (0..2).all(|node| !serves(node) || is_member(node))
}

fn no_data_of_a_lower_epoch_than_promised(step: &Step<'_>) -> bool {
    let Action::Deliver(Message::Data { to, epoch, .. }) = step.action else { return true };
    let to = to as usize;
    let is_stored = step.before.nodes[to].disk != step.after.nodes[to].disk;
    !is_stored || epoch >= step.before.nodes[to].ever_promised
}

fn own_older_writes_never_reach_the_disk(step: &Step<'_>) -> bool {
    let Action::Store { node, .. } = step.action else { return true };
    step.before.nodes[node].serving == step.before.nodes[node].promised
}

fn a_restarted_primary_begins_an_epoch(step: &Step<'_>) -> bool {
    let Action::Learn(node) = step.action else { return true };
    let (before, after) = (&step.before.nodes[node], &step.after.nodes[node]);
    let is_first = after.view.epoch > before.promised_before;
    let is_handed_over =
        (after.view.is_settled || after.view.is_yielded) && before.view.epoch != 0 && is_first;
    after.serving == before.serving
        || after.serving == 0
        || is_handed_over
        || before.proposed.contains(&after.view)
}

fn reads_return_what_is_durable_everywhere(step: &Step<'_>) -> bool {
    let Action::Read { node, block } = step.action else { return true };
    let value = step.protocol.readable(step.before, node, block);
    let members = step.before.committed.in_sync;
    step.before.stored[value as usize] & members == members
}

/// And I24 for the model: in sync and quiet is equal.
fn settled_blocks_are_equal(step: &Step<'_>) -> bool {
    let state = step.after;
    let primary = &state.nodes[state.committed.primary as usize];
    let is_in_force = primary.serving == state.committed.epoch && state.committed.in_sync == BOTH;
    !is_in_force || (0..BLOCKS).all(|block| quiet_block_is_equal(state, block))
        // What a joiner lacks is the next one's.
        || matches!(step.action, Action::Learn(_)) && !joined_whole(step.before)
}

fn the_stream_overwrites(step: &Step<'_>) -> bool {
    let Action::Deliver(Message::Data { to, epoch, sequence, block, value, .. }) = step.action else {
        return true;
    };
    let after = &step.after.nodes[to as usize];
    let before = &step.before.nodes[to as usize];
    let was_taken = (before.promised, before.last_received) != (after.promised, after.last_received)
        && (after.promised, after.last_received) == (epoch, sequence);
    !was_taken || after.disk[block as usize] == value
}

fn a_joiner_is_complete(step: &Step<'_>) -> bool {
    let Action::Commit(config) = step.action else { return true };
    let expands = config.in_sync == BOTH && step.before.committed.in_sync != BOTH;
    !expands || joined_whole(step.after)
}

/// Whether what a serving primary just joined by an expansion has everything that is not in flight.
fn joined_whole(state: &State) -> bool {
    let primary = &state.nodes[state.committed.primary as usize];
    primary.serving + 1 != state.committed.epoch
        || (0..BLOCKS).all(|block| quiet_block_is_equal(state, block))
}

fn quiet_block_is_equal(state: &State, block: usize) -> bool {
    let primary = &state.nodes[state.committed.primary as usize];
    let is_quiet = primary.pending[block].value == 0 && primary.peer[block] == Copied::Yes;
    !is_quiet || state.nodes[0].disk[block] == state.nodes[1].disk[block]
}

fn who_begins_to_serve_lacks_nothing(step: &Step<'_>) -> bool {
    let Action::Learn(node) = step.action else { return true };
    let own = &step.after.nodes[node];
    let begins = own.serving != 0 && step.before.nodes[node].serving == 0;
    !begins
        || (0..BLOCKS).all(|block| {
            let mut oracle = step.after.oracles[block];
            oracle.served_by_holder_of(0);
            oracle.read(own.disk[block]);
            !oracle.is_contradicted()
        })
}

fn no_world_is_contradicted(step: &Step<'_>) -> bool {
    !step.after.oracles.iter().any(|oracle| oracle.is_contradicted())
}

type Landmark = fn(&Protocol, &State) -> bool;

/// Situations that a run worth its name has met.
pub const LANDMARKS: &[(&str, Landmark)] = &[
    ("all writes used", |protocol, state| state.next_value > protocol.scope.writes),
    ("B serves alone", |protocol, state| protocol.may_serve(state, 1) && state.committed.in_sync == 2),
    ("A has rejoined B", |_, state| state.committed.in_sync == BOTH && state.nodes[1].serving >= 3),
    ("B holds a lease", |_, state| state.nodes[1].lease.stage == Stage::Held),
    ("settled after a restart", |_, state| {
        let primary = &state.nodes[state.committed.primary as usize];
        primary.serving > 1
            && state.committed.in_sync == BOTH
            && state.crashes > 0
            && primary.peer.contains(&Copied::Yes)
    }),
    ("both rooms down", |_, state| state.nodes.iter().all(|node| !node.is_up)),
    ("a larger set is in doubt", |_, state| {
        let is_expanding = |in_sync: u8| state.proposals.iter().any(|config| config.in_sync > in_sync);
        state.committed.in_sync != BOTH && is_expanding(BOTH - 1)
    }),
    ("moved", |_, state| state.committed.is_settled && state.nodes[1].serving == 2),
    ("stopped on purpose", |_, state| state.committed.is_stopped),
    ("started by the certificate", |_, state| state.committed.is_settled && state.committed.epoch >= 3),
    ("forced", |_, state| state.committed.is_forced && !state.loss_accepted),
    ("a loss was found out", |_, state| {
        state.lost.contains(&true) && state.nodes.iter().all(|node| node.is_up)
    }),
    ("a life begins with an old view", |_, state| {
        let is_behind = |node: usize| {
            state.nodes[node].is_up && state.nodes[node].life > 0 && {
                let view = state.nodes[node].view.epoch;
                view != 0 && view < state.nodes[node].promised_before
            }
        };
        is_behind(0) || is_behind(1)
    }),
    ("yielded", |protocol, state| {
        let primary = state.committed.primary as usize;
        state.committed.is_yielded && protocol.may_serve(state, primary)
    }),
    ("brought up to date after a loss", |_, state| {
        state.losses > 0 && state.committed.in_sync == BOTH && !state.lost.contains(&true)
    }),
];

pub fn landmarks(protocol: &Protocol, state: &State) -> u32 {
    let bits = LANDMARKS.iter().enumerate();
    bits.map(|(bit, (_, is_met))| u32::from(is_met(protocol, state)) << bit).sum()
}
