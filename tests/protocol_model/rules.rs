//! What may happen: the protocol's rules as the actions that they allow.
//!
//! An action is offered only where the rules allow it; a mutant allows more. Losing a message is never
//! delivering it, a lost proposal never commits.

use super::explorer::Model;
use super::invariants;
use super::mutants::Mutant;
use super::state::{
    BLOCKS, BOTH, Config, Copied, Few, Lease, Message, NODES, Node, Pending, Stage, State, VOTERS, Voter,
    only,
};

/// Ticks for which a lease lasts, by its holder's clock.
const LEASE: u8 = 1;
/// Ticks by which a holder's clock may fall behind during a lease: voters wait so much longer.
const DRIFT: u8 = 1;
pub const WITNESS: usize = 2;

/// How much may happen in a run.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    pub blocks: usize,
    pub epochs: u8,
    pub writes: u8,
    pub crashes: u8,
    pub forces: u8,
    /// Disks that lose what they had confirmed, found out by the watermark.
    pub losses: u8,
    /// Messages of a primary in each epoch.
    pub messages: u8,
    /// Proposals of a node whose outcome is unknown at one time, at most two.
    pub proposals: usize,
    /// Leases by ticking clocks that drift; otherwise they end at any moment, but at once for everybody.
    pub is_clocked: bool,
    /// Planned moves and stops on purpose happen too.
    pub has_plans: bool,
    /// A restarted node may begin with what it knew of Raft before the last that it knew.
    pub has_old_views: bool,
}

/// The protocol within a scope, with at most one rule broken.
pub struct Protocol {
    pub scope: Scope,
    pub mutant: Option<Mutant>,
    /// Check only what harms an initiator: two servers (I5), wrong data (I15).
    pub only_harm: bool,
}

/// One step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Write {
        node: usize,
        block: usize,
    },
    Store {
        node: usize,
        block: usize,
    },
    Send {
        node: usize,
        block: usize,
    },
    Copy {
        node: usize,
        block: usize,
    },
    Acknowledge {
        node: usize,
        block: usize,
    },
    Read {
        node: usize,
        block: usize,
    },
    Deliver(Message),
    Propose {
        node: usize,
        config: Config,
    },
    Commit(Config),
    Learn(usize),
    Guess(usize),
    Ask(usize),
    Confirm {
        node: usize,
        with: usize,
    },
    Receive(usize),
    Tick {
        slow: u8,
    },
    Crash(usize),
    Restart(usize),
    /// With an old view.
    RestartBehind(usize),
    RestartWitness,
    /// The primary puts on record what was acknowledged.
    Record(usize),
    /// The disks of a node that is down lose all writes, though they had confirmed them.
    Lose(usize),
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn first_state(&self) -> State {
        State::first()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for node in 0..NODES {
            if state.nodes[node].is_up {
                self.data_actions(state, node, actions);
                self.proposals(state, node, actions);
                self.lease_actions(state, node, actions);
                if state.nodes[node].view != state.committed {
                    actions.push(Action::Learn(node));
                }
                if state.crashes < self.scope.crashes {
                    actions.push(Action::Crash(node));
                }
                if self.may_record(state, node) {
                    actions.push(Action::Record(node));
                }
            } else {
                actions.push(Action::Restart(node));
                if state.nodes[node].known_before.epoch != 0 {
                    actions.push(Action::RestartBehind(node));
                }
                let has_writes = state.nodes[node].disk != [0; BLOCKS];
                if state.is_marked && has_writes && state.losses < self.scope.losses {
                    actions.push(Action::Lose(node));
                }
            }
        }
        let restarted = self.restarted_voter();
        if state.crashes < self.scope.crashes && state.voters[WITNESS] != restarted {
            actions.push(Action::RestartWitness);
        }
        self.tick_actions(state, actions);
        let may_commit = |config: &&Config| self.may_commit(state, config);
        actions.extend(state.proposals.iter().filter(may_commit).map(|config| Action::Commit(*config)));
        actions.extend(state.network.iter().map(|message| Action::Deliver(*message)));
    }

    fn next(&self, before: &State, action: Action) -> State {
        let mut state = *before;
        match action {
            Action::Write { node, block } => self.write(&mut state, node, block),
            Action::Store { node, block } => self.store(&mut state, node, block),
            Action::Send { node, block } => {
                let own = &state.nodes[node];
                let value = own.pending[block].value;
                let tag = self.tag(own.serving, value);
                state.nodes[node].pending[block].sent = send(&mut state, node, block, (value, tag));
            }
            Action::Copy { node, block } => {
                let own = &state.nodes[node];
                let data = (own.shown[block], own.tag[block]);
                state.nodes[node].peer[block] = Copied::Sent(send(&mut state, node, block, data));
            }
            Action::Acknowledge { node, block } => self.acknowledge(&mut state, node, block),
            Action::Read { node, block } => self.read(&mut state, node, block),
            Action::Deliver(message) => self.deliver(&mut state, message),
            Action::Propose { node, config } => self.propose(&mut state, node, config),
            Action::Commit(config) => {
                state.committed = config;
                state.loss_accepted |= config.is_forced;
                if config.is_forced {
                    // What is given up is not missed any more.
                    let primary = config.primary as usize;
                    state.is_marked &= state.nodes[primary].disk != [0; BLOCKS];
                    state.lost[primary] = false;
                }
            }
            Action::Learn(node) => self.learn(&mut state, node),
            Action::Guess(node) => state.nodes[node].proposed = Few::default(),
            Action::Ask(node) => self.ask(&mut state, node),
            Action::Confirm { node, with } => self.confirm(&mut state, node, with),
            Action::Receive(node) => self.receive(&mut state, node),
            Action::Tick { slow } => self.tick(&mut state, slow),
            Action::Crash(node) => self.crash(&mut state, node),
            Action::Restart(node) => self.restart(&mut state, node),
            Action::RestartBehind(node) => {
                self.restart(&mut state, node);
                state.nodes[node].view = state.nodes[node].known_before;
            }
            Action::RestartWitness => {
                state.crashes += 1;
                state.voters[WITNESS] = self.restarted_voter();
            }
            Action::Record(_) => state.is_marked = true,
            Action::Lose(node) => lose(&mut state, node),
        }
        self.forget_what_cannot_matter(&mut state);
        state
    }

    fn broken(&self, before: &State, action: Action, after: &State) -> Option<&'static str> {
        let broken = invariants::broken(self, before, action, after)?;
        (!self.only_harm || ["I5", "I15"].contains(&broken)).then_some(broken)
    }

    fn landmarks(&self, state: &State) -> u32 {
        invariants::landmarks(self, state)
    }
}

/// What is offered.
impl Protocol {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Whether `node` may answer reads (I5): it holds a lease, or is the sole member and proposes nothing.
    pub fn may_serve(&self, state: &State, node: usize) -> bool {
        let own = &state.nodes[node];
        let is_serving = own.is_up && own.serving != 0;
        is_serving
            && (own.lease.stage == Stage::Held
                || self.is_sole(state, node)
                || self.is(Mutant::ServeWithoutLease))
    }

    fn is_sole(&self, state: &State, node: usize) -> bool {
        let own = &state.nodes[node];
        own.view.in_sync == only(node)
            && (own.proposed.is_empty() || self.is(Mutant::SoleServerWhileProposing))
    }

    /// Whether the block is the same on all replicas in the set, so that it may be read and written.
    pub fn is_settled(&self, state: &State, node: usize, block: usize) -> bool {
        let own = &state.nodes[node];
        own.view.in_sync == only(node) || own.peer[block] == Copied::Yes
    }

    /// A primary in service, for which everything is settled, has something acknowledged to put on record.
    fn may_record(&self, state: &State, node: usize) -> bool {
        let own = &state.nodes[node];
        let is_settled = (0..self.scope.blocks).all(|block| self.is_settled(state, node, block));
        let is_present = own.serving != 0 && own.serving == state.committed.epoch;
        self.scope.losses > 0 && !state.is_marked && is_present && is_settled && own.shown != [0; BLOCKS]
    }

    /// Whether a node falls short of the watermark: it serves nothing, and takes nothing over.
    fn has_lost(&self, state: &State, node: usize) -> bool {
        state.lost[node] && !self.is(Mutant::LostTailServed)
    }

    /// Whether a primary may send to its replica: one that lacks what is not in flight any more is sent nothing before it
    /// has left the in-sync set, as its newest version would pass the watermark by that.
    fn may_feed(&self, state: &State, node: usize) -> bool {
        let is_behind = state.lost[1 - node] && state.nodes[node].view.in_sync == BOTH;
        !is_behind || self.is(Mutant::BehindReplicaFed)
    }

    fn data_actions(&self, state: &State, node: usize, actions: &mut Vec<Action>) {
        let own = &state.nodes[node];
        let is_alone = own.view.in_sync == only(node);
        let has_room = own.sequence < self.scope.messages && !state.network.is_full();
        let may_send = own.serving != 0 && has_room && self.may_feed(state, node);
        for block in 0..self.scope.blocks {
            let pending = own.pending[block];
            if pending.value != 0 && !pending.is_local {
                actions.push(Action::Store { node, block });
            }
            if own.serving == 0 {
                continue;
            }
            let is_settled = self.is_settled(state, node, block);
            if pending.value == 0 && is_settled && state.next_value <= self.scope.writes {
                actions.push(Action::Write { node, block });
            }
            let is_mirrored = !is_alone || own.peer[block] != Copied::No;
            if pending.value != 0 && pending.sent == 0 && may_send && is_mirrored {
                actions.push(Action::Send { node, block });
            }
            // A block is copied under its range lock, never past a write in flight.
            let is_locked = pending.value != 0 && !self.is(Mutant::ResyncPassesWrite);
            if own.peer[block] != Copied::Yes && may_send && !is_locked {
                actions.push(Action::Copy { node, block });
            }
            if self.may_acknowledge(own, node, pending) {
                actions.push(Action::Acknowledge { node, block });
            }
            if is_settled && self.may_serve(state, node) {
                let mut read = *state;
                self.read(&mut read, node, block);
                if read != *state {
                    actions.push(Action::Read { node, block });
                }
            }
        }
    }

    /// I1, I2: durable here, and at the peer or alone by a committed set while no larger one is proposed.
    fn may_acknowledge(&self, own: &Node, node: usize, pending: Pending) -> bool {
        let proposes = |in_sync: u8| own.proposed.iter().any(|config| config.in_sync == in_sync);
        let may_be_alone = own.view.in_sync == only(node)
            && (!proposes(BOTH) || self.is(Mutant::AcknowledgeAloneWhileExpanding));
        let is_enough = pending.is_remote
            || may_be_alone
            || self.is(Mutant::AcknowledgeLocally)
            || (self.is(Mutant::AcknowledgeOnProposal) && proposes(only(node)));
        pending.is_local && is_enough
    }

    fn proposals(&self, state: &State, node: usize, actions: &mut Vec<Action>) {
        let own = &state.nodes[node];
        if self.is(Mutant::GuessOutcome) && !own.proposed.is_empty() {
            actions.push(Action::Guess(node));
        }
        let has_room = own.proposed.iter().count() < self.scope.proposals && !state.proposals.is_full();
        if own.view.epoch == 0 || own.view.epoch >= self.scope.epochs || !has_room {
            return;
        }
        let mut offer = |primary: usize, in_sync: u8, kind: Config| {
            let (epoch, life) = (own.view.epoch + 1, own.life);
            let config = Config { epoch, primary: primary as u8, in_sync, life, ..kind };
            if !own.proposed.contains(&config) {
                actions.push(Action::Propose { node, config });
            }
        };
        let plain = Config::default();
        let settled = Config { is_settled: true, ..plain };
        // The certificate of the present epoch is consumed by the next.
        let is_certified = own.view.is_stopped || (own.view.is_settled && self.is(Mutant::CertificateKept));
        let restarted = Config { is_settled: is_certified, ..plain };
        let (peer, is_both) = (1 - node, own.view.in_sync == BOTH);
        let is_primary = own.view.primary as usize == node;
        if own.serving != 0 {
            let is_copied = (0..self.scope.blocks).all(|block| own.peer[block] == Copied::Yes);
            let is_drained = own.pending.iter().all(|pending| pending.value == 0);
            if !is_both && is_copied {
                offer(node, BOTH, plain);
            }
            if is_both || !own.proposed.is_empty() {
                offer(node, only(node), plain);
            }
            let may_leave = is_copied && (is_drained || self.is(Mutant::MoveUndrained));
            if is_both && may_leave && self.scope.has_plans {
                offer(peer, BOTH, settled);
                offer(node, BOTH, Config { is_stopped: true, ..plain });
            }
        } else if own.view.in_sync & only(node) != 0 && self.has_lost(state, node) {
            // The other member may have it all, and is not asked to take it from here.
            if is_primary && is_both {
                offer(peer, only(peer), Config { is_yielded: true, ..plain });
            }
        } else if own.view.in_sync & only(node) != 0 {
            if is_primary {
                offer(node, own.view.in_sync, restarted);
            } else if own.view.is_stopped {
                offer(node, BOTH, restarted);
            }
            if self.is(Mutant::KeepSetOnTakeOver) && !is_primary {
                offer(node, own.view.in_sync, settled);
            } else if is_both {
                offer(node, only(node), plain);
            }
        } else if self.is(Mutant::PromoteStale) {
            offer(node, only(node), plain);
        } else if state.forces < self.scope.forces
            && (!state.nodes[peer].is_up || self.is(Mutant::ForceWithoutFence))
        {
            offer(node, only(node), Config { is_forced: true, ..plain });
        }
    }

    /// The entry is applied as a compare-and-swap, and not before the lease of a deposed primary is over.
    fn may_commit(&self, state: &State, config: &Config) -> bool {
        // Who yields does not serve, and can't.
        let deposes = config.primary != state.committed.primary && !config.is_yielded;
        let is_free = |voter: &usize| {
            let is_up = *voter == WITNESS || state.nodes[*voter].is_up;
            is_up && state.voters[*voter].left == 0
        };
        let is_waited_out = (0..VOTERS).filter(is_free).count() >= 2;
        let is_next = config.epoch == state.committed.epoch + 1 || self.is(Mutant::NoCompareAndSwap);
        is_next && (!deposes || is_waited_out || self.is(Mutant::NoLeaseWait))
    }

    fn lease_actions(&self, state: &State, node: usize, actions: &mut Vec<Action>) {
        let own = &state.nodes[node];
        match own.lease.stage {
            Stage::None => {
                // Where leases have no clock, asking and getting one is a single step.
                let may_ask = self.scope.is_clocked || self.may_confirm(state, node);
                if may_ask && own.serving != 0 && !self.is_sole(state, node) {
                    actions.push(Action::Ask(node));
                }
            }
            Stage::Asked if self.may_confirm(state, node) => {
                actions.push(Action::Confirm { node, with: WITNESS });
                if state.nodes[1 - node].is_up {
                    actions.push(Action::Confirm { node, with: 1 - node });
                }
            }
            Stage::Confirmed => actions.push(Action::Receive(node)),
            _ => {}
        }
    }

    fn may_confirm(&self, state: &State, node: usize) -> bool {
        let is_primary = state.committed.primary as usize == node;
        is_primary && state.nodes[node].serving == state.committed.epoch
    }

    fn tick_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let has_lease = |node: &Node| node.lease.stage != Stage::None;
        if !state.nodes.iter().any(has_lease) && state.voters.iter().all(|voter| voter.left == 0) {
            return;
        }
        actions.push(Action::Tick { slow: 0 });
        if !self.scope.is_clocked {
            return;
        }
        let may_slip = |node: &usize| {
            let lease = state.nodes[*node].lease;
            lease.stage != Stage::None && (!lease.has_slipped || self.is(Mutant::ClockStopsInSuspend))
        };
        for node in (0..NODES).filter(may_slip) {
            actions.push(Action::Tick { slow: only(node) });
        }
        if (0..NODES).all(|node| may_slip(&node)) {
            actions.push(Action::Tick { slow: BOTH });
        }
    }

    fn restarted_voter(&self) -> Voter {
        let left = if self.is(Mutant::RestartedVoterDoesNotWait) { 0 } else { LEASE + DRIFT };
        Voter { left, epoch: 0 }
    }
}

/// What it does.
impl Protocol {
    fn write(&self, state: &mut State, node: usize, block: usize) {
        let value = state.next_value;
        state.next_value += 1;
        self.observe(state, node, block);
        state.oracles[block].invoked(value);
        state.nodes[node].pending[block] = Pending { value, ..Pending::default() };
    }

    fn store(&self, state: &mut State, node: usize, block: usize) {
        let own = &mut state.nodes[node];
        let value = own.pending[block].value;
        own.disk[block] = value;
        own.tag[block] = self.tag(own.serving, value);
        own.pending[block].is_local = true;
        if own.serving == 0 {
            own.pending[block] = Pending::default();
        }
        state.stored[value as usize] |= only(node);
    }

    fn acknowledge(&self, state: &mut State, node: usize, block: usize) {
        let own = &mut state.nodes[node];
        let pending = std::mem::take(&mut own.pending[block]);
        own.shown[block] = pending.value;
        let is_alone = own.view.in_sync == only(node) && !pending.is_remote;
        if is_alone && !self.is(Mutant::CopyNotInvalidated) {
            own.peer[block] = Copied::No;
        }
        state.oracles[block].acknowledged(pending.value);
    }

    fn read(&self, state: &mut State, node: usize, block: usize) {
        self.observe(state, node, block);
        state.oracles[block].read(self.readable(state, node, block));
    }

    /// What a read of the block returns.
    pub fn readable(&self, state: &State, node: usize, block: usize) -> u8 {
        let own = &state.nodes[node];
        if self.is(Mutant::ReadInFlight) { own.disk[block] } else { own.shown[block] }
    }

    fn observe(&self, state: &mut State, node: usize, block: usize) {
        if state.committed.primary as usize == node {
            let own = state.nodes[node].pending[block].value;
            state.oracles[block].served_by_holder_of(own);
        }
    }

    fn deliver(&self, state: &mut State, message: Message) {
        match message {
            Message::Data { to, epoch, sequence, block, value, tag } => {
                self.deliver_data(state, (to as usize, epoch, sequence), block as usize, (value, tag));
            }
            Message::Ack { to, epoch, sequence } => {
                let own = &mut state.nodes[to as usize];
                let is_present = own.serving == epoch || self.is(Mutant::OldAckCounts);
                if !own.is_up || own.serving == 0 || !is_present {
                    return;
                }
                for block in 0..BLOCKS {
                    if own.pending[block].value != 0 && own.pending[block].sent == sequence {
                        own.pending[block].is_remote = true;
                    }
                    if own.peer[block] == Copied::Sent(sequence) {
                        own.peer[block] = Copied::Yes;
                    }
                }
            }
            Message::GiveBack { epoch } => {
                let is_it = |voter: &&mut Voter| {
                    voter.epoch == epoch || (voter.epoch != 0 && self.is(Mutant::GiveBackOfAnyEpoch))
                };
                state.voters.iter_mut().filter(is_it).for_each(|voter| *voter = Voter::default());
            }
        }
    }

    /// I6, I7, I11, I12: in order, of no older epoch, after own older writes are gone, and as it is.
    fn deliver_data(
        &self,
        state: &mut State,
        (to, epoch, sequence): (usize, u8, u8),
        block: usize,
        (value, tag): (u8, u8),
    ) {
        let own = &mut state.nodes[to];
        if !own.is_up || own.serving >= epoch || !self.takes(own, epoch, sequence) {
            return;
        }
        if epoch >= own.promised {
            own.promised = epoch;
            own.last_received = sequence;
            own.ever_promised = own.ever_promised.max(epoch);
        }
        if own.serving != 0 {
            self.demote(own);
        }
        if self.is(Mutant::BehindReplicaFed) {
            state.lost[to] = false;
        }
        let own = &mut state.nodes[to];
        if !self.is(Mutant::NewestTagWins) || tag > own.tag[block] {
            own.disk[block] = value;
            own.tag[block] = tag;
            state.stored[value as usize] |= only(to);
        }
        state.network.insert(Message::Ack { to: 1 - to as u8, epoch, sequence });
    }

    /// Whether a replica takes data of that epoch and sequence number.
    fn takes(&self, own: &Node, epoch: u8, sequence: u8) -> bool {
        let is_in_order = sequence > own.last_received
            || (self.is(Mutant::AcceptReordered) && sequence != own.last_received);
        epoch > own.promised
            || (epoch == own.promised && is_in_order)
            || (epoch < own.promised && self.is(Mutant::NoFence))
    }

    /// Tags order versions; kept only where a rule is broken by comparing them.
    fn tag(&self, epoch: u8, value: u8) -> u8 {
        if self.is(Mutant::NewestTagWins) { epoch * 8 + value } else { 0 }
    }

    fn demote(&self, own: &mut Node) {
        let pending = own.pending;
        own.stop_serving();
        if self.is(Mutant::NoLocalDrain) {
            own.pending = pending.map(|pending| {
                let is_left = !pending.is_local;
                if is_left {
                    Pending { value: pending.value, ..Pending::default() }
                } else {
                    Pending::default()
                }
            });
        }
    }

    fn propose(&self, state: &mut State, node: usize, config: Config) {
        state.proposals.insert(config);
        if config.in_sync == BOTH && state.nodes[node].view.in_sync == only(node) {
            // The joiner has everything at this moment.
            state.lost[1 - node] = false;
        }
        state.forces += u8::from(config.is_forced);
        let own = &mut state.nodes[node];
        own.proposed.insert(config);
        let leaves = config.primary as usize != node || config.is_stopped;
        if own.serving != 0 && leaves {
            let epoch = own.serving;
            if !self.is(Mutant::ServeAfterGiveBack) {
                own.stop_serving();
            }
            state.network.insert(Message::GiveBack { epoch });
        }
    }

    fn learn(&self, state: &mut State, node: usize) {
        let config = state.committed;
        let (has_lost, is_peer_lost) = (self.has_lost(state, node), state.lost[1 - node]);
        let own = &mut state.nodes[node];
        let (before, was_serving) = (own.view, own.serving);
        own.view = config;
        if self.scope.has_old_views && before.epoch != 0 {
            own.known_before = before;
        }
        if config.epoch > own.promised {
            own.promised = config.epoch;
            own.last_received = 0;
            own.ever_promised = own.ever_promised.max(config.epoch);
        }
        let is_same = |proposed: &Config| {
            let life = if self.is(Mutant::ForeignEpochTaken) { config.life } else { proposed.life };
            Config { life, ..*proposed } == config
        };
        let is_own = own.proposed.iter().any(is_same);
        own.proposed = Few::default();
        // I8: an epoch is served only by who proposed it since its last restart, or was handed it, and no earlier life.
        let was_there = before.epoch != 0 || (config.is_yielded && self.is(Mutant::YieldResumed));
        let is_first = config.epoch > own.promised_before || self.is(Mutant::HandedOverTwice);
        let is_handed_over = (config.is_settled || config.is_yielded) && was_there && is_first;
        let is_new = is_own || is_handed_over || self.is(Mutant::ResumeOldEpoch);
        if config.primary as usize != node || config.is_stopped || !is_new || has_lost {
            self.demote(own);
            return;
        }
        if was_serving != 0 && is_own {
            self.continue_in(own, node, before.in_sync, is_peer_lost);
        } else {
            let is_settled = config.is_settled || self.is(Mutant::RestartUnsettled);
            let lease = own.lease;
            own.stop_serving();
            own.shown = own.disk;
            if config.in_sync == BOTH && is_settled && !is_peer_lost {
                own.peer = [Copied::Yes; BLOCKS];
            }
            own.lease = if was_serving != 0 { lease } else { Lease::default() };
        }
        let own = &mut state.nodes[node];
        own.serving = config.epoch;
        if state.loss_accepted {
            state.loss_accepted = false;
            let left = own.shown;
            (0..BLOCKS).for_each(|block| state.oracles[block].lose_all_but(left[block]));
        }
    }

    /// The primary goes on in its next epoch: what is in flight stays so, and is sent again.
    fn continue_in(&self, own: &mut Node, node: usize, in_sync_before: u8, is_peer_lost: bool) {
        own.sequence = 0;
        let expands = own.view.in_sync == BOTH && in_sync_before != BOTH && !is_peer_lost;
        let is_alone = own.view.in_sync == only(node);
        for block in 0..BLOCKS {
            if is_alone && in_sync_before == BOTH && own.peer[block] != Copied::Yes {
                // In doubt until now; the set of one settles it.
                own.shown[block] = own.disk[block];
            }
            own.peer[block] = if expands { Copied::Yes } else { Copied::No };
            if !self.is(Mutant::OldAckCounts) {
                own.pending[block].sent = 0;
                own.pending[block].is_remote = false;
            }
        }
    }

    fn ask(&self, state: &mut State, node: usize) {
        state.nodes[node].lease = Lease { stage: Stage::Asked, left: LEASE, has_slipped: false };
        if !self.scope.is_clocked {
            self.confirm(state, node, WITNESS);
            self.receive(state, node);
        }
    }

    fn confirm(&self, state: &mut State, node: usize, with: usize) {
        let left = if self.is(Mutant::NoDriftMargin) { LEASE } else { LEASE + DRIFT };
        let epoch = state.committed.epoch;
        for voter in [node, with] {
            state.voters[voter] = Voter { left, epoch };
        }
        state.nodes[node].lease.stage = Stage::Confirmed;
    }

    fn receive(&self, state: &mut State, node: usize) {
        let lease = &mut state.nodes[node].lease;
        lease.stage = Stage::Held;
        if self.is(Mutant::LeaseFromArrival) {
            lease.left = LEASE;
        }
    }

    fn tick(&self, state: &mut State, slow: u8) {
        let ticks = if self.scope.is_clocked { 1 } else { u8::MAX };
        for voter in &mut state.voters {
            voter.left = voter.left.saturating_sub(ticks);
            if voter.left == 0 {
                voter.epoch = 0;
            }
        }
        for node in 0..NODES {
            let lease = &mut state.nodes[node].lease;
            let is_stopped = self.is(Mutant::LeaseFromArrival) && lease.stage != Stage::Held;
            if lease.stage == Stage::None || is_stopped {
                continue;
            }
            if slow & only(node) != 0 {
                lease.has_slipped = true;
                continue;
            }
            lease.left = lease.left.saturating_sub(ticks);
            if lease.left == 0 {
                *lease = Lease::default();
            }
        }
    }

    fn crash(&self, state: &mut State, node: usize) {
        state.crashes += 1;
        state.voters[node] = Voter::default();
        let own = &mut state.nodes[node];
        own.is_up = false;
        own.stop_serving();
        own.view = Config::default();
        own.proposed = Few::default();
        if self.is(Mutant::VolatilePromise) {
            own.promised = 0;
            own.last_received = 0;
        }
    }

    fn restart(&self, state: &mut State, node: usize) {
        state.voters[node] = self.restarted_voter();
        let own = &mut state.nodes[node];
        own.is_up = true;
        if self.scope.has_old_views {
            own.life += 1;
            own.promised_before = own.promised;
        }
    }

    /// Drops what no rule would ever act on, so that states which differ in nothing else are one.
    fn forget_what_cannot_matter(&self, state: &mut State) {
        let state_now = *state;
        if !self.is(Mutant::NoCompareAndSwap) {
            state.proposals.retain(|config| config.epoch == state_now.committed.epoch + 1);
        }
        let keeps_all = [
            Mutant::NoFence,
            Mutant::VolatilePromise,
            Mutant::AcceptReordered,
            Mutant::OldAckCounts,
            Mutant::GiveBackOfAnyEpoch,
        ];
        if keeps_all.iter().any(|mutant| self.is(*mutant)) {
            return;
        }
        state.network.retain(|message| match *message {
            Message::Data { to, epoch, sequence, .. } => {
                self.takes(&state_now.nodes[to as usize], epoch, sequence)
            }
            Message::Ack { to, epoch, sequence } => {
                let own = &state_now.nodes[to as usize];
                own.serving == epoch
                    && (0..BLOCKS).any(|block| {
                        let pending = own.pending[block];
                        let completes = pending.sent == sequence && pending.value != 0 && !pending.is_remote;
                        completes || own.peer[block] == Copied::Sent(sequence)
                    })
            }
            Message::GiveBack { epoch } => state_now.voters.iter().any(|voter| voter.epoch == epoch),
        });
    }
}

/// Nothing of the stream reaches it any more; the next one shows what it lacks.
fn lose(state: &mut State, node: usize) {
    state.losses += 1;
    state.lost[node] = true;
    state.nodes[node].disk = [0; BLOCKS];
    state.nodes[node].tag = [0; BLOCKS];
    state.nodes[1 - node].peer = [Copied::No; BLOCKS];
    let peers = |message: &Message| !matches!(message, Message::Data { to, .. } if *to as usize == node);
    state.network.retain(peers);
}

/// Sends a block to the peer and returns the sequence number.
fn send(state: &mut State, node: usize, block: usize, (value, tag): (u8, u8)) -> u8 {
    let own = &mut state.nodes[node];
    own.sequence += 1;
    let (epoch, sequence) = (own.serving, own.sequence);
    let (to, block) = (1 - node as u8, block as u8);
    state.network.insert(Message::Data { to, epoch, sequence, block, value, tag });
    sequence
}
