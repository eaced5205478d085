//! One member of the cluster's quorum: consensus, the control state, and leases, as one state machine.
//!
//! Events in (`handle_*`), effects out ([`Quorum::poll_effect`]); no clock, no socket, no thread. Times are
//! milliseconds of a clock that runs through suspend, and each call has the present one.
//!
//! Guarantees: a proposal of this process is decided once, by what the state machine said when its entry was
//! applied *here*; one whose fate is unknown is never called undone. A proposal that takes the place of a
//! primary is committed only when no lease of that primary can be left (docs/protocol.md, rule 10). A lease
//! counts at its holder only once the holder knows of every deposition that was decided before it.
//!
//! Left to others: carrying messages, authenticating the sender included; when to propose what
//! ([`super::role`]); serving only while [`Lease::is_held`] says so for the state that the server has seen.

mod holding;
mod housekeeping;
mod leading;
pub mod message;
mod proposals;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use self::holding::Holding;
pub use self::holding::Lease;
use self::leading::{Answer, Leading};
use self::message::Message;
use self::proposals::Proposals;
use super::lease::{LeaseTerms, Voter};
use super::name::NodeName;
use super::raft::log::Medium;
use super::raft::member::Member;
use super::raft::{self, Consensus, ConsensusError, Leadership, MemberId, Voters};
use super::state::{Command, ControlState, DecodeError, Outcome, Rejection};

/// A member of the quorum.
pub struct Quorum<M: Medium> {
    member: Member<M>,
    setup: Setup,
    state: Arc<ControlState>,
    /// The others, while there is a link to them.
    peers: BTreeMap<NodeName, PeerInfo>,
    leadership: Leadership,
    proposals: Proposals,
    voter: Voter,
    holding: Holding,
    /// The leader's part, while this member may decide.
    leading: Option<Leading>,
    /// Messages to itself.
    inbox: VecDeque<Message>,
    effects: VecDeque<Effect>,
    now_ms: u64,
    bytes_since_snapshot: usize,
    /// Voters have changed: `raft` gives a newcomer only a snapshot that names it.
    is_snapshot_due: bool,
    housekeeping: Option<u64>,
    failure: Option<String>,
}

/// Who a member is.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its name, also that of its seat.
    pub name: NodeName,
    /// What it is.
    pub kind: SeatKind,
    /// Random number of this process.
    pub life: u64,
    /// How long leases last.
    pub terms: LeaseTerms,
    /// The newest format of the control state that its program knows.
    pub newest_format: u32,
}

/// What sits in a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeatKind {
    /// A node: it holds data, and asks for leases.
    Node,
    /// The witness.
    Witness,
}

impl std::fmt::Display for SeatKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Witness => "witness",
        })
    }
}

/// Another member as its link knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its identity in its present life.
    pub member: MemberId,
    /// What it is.
    pub kind: SeatKind,
    /// The newest format of the control state that its program knows.
    pub newest_format: u32,
}

/// What a member wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Carry a message; it may be lost, but not be doubled.
    Send {
        /// To whom.
        to: NodeName,
        /// What.
        message: Message,
    },
    /// The control state is another one.
    StateChanged(Arc<ControlState>),
    /// The lease of this node is another one.
    LeaseChanged(Lease),
    /// A proposal is decided; also for some that this member has made by itself.
    Decided {
        /// As [`Quorum::propose`] named it.
        number: u64,
        /// What came of it.
        result: Result<Outcome, ProposalError>,
    },
}

/// Why a proposal had no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    /// The control state does not allow it; nothing was changed.
    #[error(transparent)]
    Rejected(Rejection),
    /// Nothing was changed, and nothing will be.
    #[error("no majority of the cluster could be asked in time: nothing was changed")]
    NotProposed,
    /// It may be decided later, or never: the control state will show it.
    #[error(
        "the majority of the cluster was lost while it was asked, so it is not known whether the change was made: \
         look before trying again"
    )]
    Unknown,
    /// It is larger than any entry may be; nothing was changed.
    #[error("the command is larger than the log takes: nothing was changed")]
    TooLarge,
    /// This member's log has failed; nothing was changed.
    #[error("this machine takes no part in the cluster: {0}")]
    Failed(String),
}

/// What there is to see of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Who this is in its present life.
    pub member: MemberId,
    /// Who leads. Without a leader there is no majority, as far as this member knows.
    pub leadership: Leadership,
    /// Voters and their seats.
    pub voters: Voters,
    /// Whether voters are being changed.
    pub is_changing_voters: bool,
    /// Index of the last entry applied.
    pub applied_index: u64,
    /// Why this member takes part no more.
    pub failure: Option<String>,
}

impl View {
    /// Whether this member has a vote, in its present life.
    #[must_use]
    pub fn is_voter(&self) -> bool {
        self.voters.contains_key(&self.member)
    }

    /// Whether there is a majority, as far as this member knows.
    #[must_use]
    pub fn has_majority(&self) -> bool {
        self.leadership.leader.is_some() && self.failure.is_none()
    }

    /// The name of who leads.
    #[must_use]
    pub fn leader(&self) -> Option<&str> {
        self.leadership.leader.and_then(|leader| self.voters.get(&leader)).map(String::as_str)
    }
}

impl<M: Medium> Quorum<M> {
    /// Goes on with a member that was just opened, joined or founded.
    pub fn new(member: Member<M>, setup: Setup, now_ms: u64) -> Self {
        let leadership = member.leadership();
        let holding = Holding::new(&setup);
        let mut quorum = Self {
            voter: Voter::new(setup.terms, now_ms, leadership.term),
            proposals: Proposals::new(setup.life),
            member,
            setup,
            state: Arc::new(ControlState::new()),
            peers: BTreeMap::new(),
            leadership,
            holding,
            leading: None,
            inbox: VecDeque::new(),
            effects: VecDeque::new(),
            now_ms,
            bytes_since_snapshot: 0,
            is_snapshot_due: false,
            housekeeping: None,
            failure: None,
        };
        quorum.settle();
        quorum
    }

    /// Lets a tick of consensus pass, a tenth of a second.
    pub fn handle_tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        if self.failure.is_none() {
            let ticked = self.member.handle_tick();
            self.note(ticked);
            self.settle();
            self.renew_lease();
            self.ask_bound_voters();
            self.keep_house();
        }
        self.proposals.expire(now_ms, self.failure.as_deref(), &mut self.effects);
        self.settle();
    }

    /// A link to another member is there, or it is gone.
    pub fn handle_peer(&mut self, name: NodeName, info: Option<PeerInfo>) {
        match info {
            Some(info) => self.peers.insert(name, info),
            None => self.peers.remove(&name),
        };
        self.settle();
    }

    /// Takes a message of another member, which its link has authenticated.
    ///
    /// # Errors
    /// When it is none of this protocol: the link should be closed.
    pub fn handle_message(
        &mut self,
        now_ms: u64,
        from: &NodeName,
        message: Message,
    ) -> Result<(), raft::wire::WireError> {
        self.now_ms = now_ms;
        let Some(peer) = self.peers.get(from).copied().filter(|_| self.failure.is_none()) else {
            return Ok(());
        };
        let taken = self.take(from.clone(), peer.member, message);
        self.settle();
        taken
    }

    /// Proposes a command and gives the number under which [`Effect::Decided`] will speak of it.
    ///
    /// What is safe to propose twice is sent again when the leader changes: every change of an epoch is a
    /// compare-and-swap. Anything else is sent once.
    pub fn propose(&mut self, now_ms: u64, command: &Command) -> u64 {
        self.now_ms = now_ms;
        let number = match self.state.check_format(command) {
            Ok(()) => self.proposals.open(now_ms, command, &mut self.effects),
            // Nothing that some voter can't read comes into the log.
            Err(rejection) => self.proposals.reject(rejection, &mut self.effects),
        };
        self.settle();
        number
    }

    /// Puts the present identity of the member in `seat` in the place of the one that is lost. It may come to
    /// nothing; the voters show it.
    pub fn replace_member(&mut self, seat: NodeName) {
        if let Some(leader) = self.leadership.leader {
            self.send(leader, Message::Replace { seat });
        }
        self.settle();
    }

    /// Takes the vote of a member that is gone for good.
    pub fn remove_member(&mut self, seat: NodeName) {
        if let Some(leader) = self.leadership.leader {
            self.send(leader, Message::Remove { seat });
        }
        self.settle();
    }

    /// The next thing to do; none until something happens.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The control state as applied here.
    #[must_use]
    pub fn state(&self) -> &Arc<ControlState> {
        &self.state
    }

    /// What there is to see.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            member: self.member.identity().member,
            leadership: self.leadership,
            voters: self.member.voters().clone(),
            is_changing_voters: self.member.is_changing_voters(),
            applied_index: self.member.applied_index(),
            failure: self.failure.clone(),
        }
    }

    fn own(&self) -> MemberId {
        self.member.identity().member
    }

    /// Does everything that follows from what has just happened.
    fn settle(&mut self) {
        let (before, begin) = (self.state.clone(), self.effects.len());
        loop {
            if self.failure.is_some() {
                self.leading = None;
                self.inbox.clear();
                break;
            }
            if let Some(effect) = self.member.poll_effect() {
                self.handle_effect(effect);
            } else if let Some(message) = self.inbox.pop_front() {
                // A member has no bad messages for itself.
                let _ = self.take(self.setup.name.clone(), self.own(), message);
            } else if !self.send_proposal() {
                break;
            }
        }
        if !Arc::ptr_eq(&before, &self.state) {
            // Before what was decided by it is told.
            self.effects.insert(begin, Effect::StateChanged(self.state.clone()));
        }
        self.count_grant();
        self.compact();
    }

    fn handle_effect(&mut self, effect: raft::Effect) {
        match effect {
            raft::Effect::Send { to, message } => self.send(to, Message::Raft(message)),
            raft::Effect::Committed { place, entry } => self.apply(place, &entry),
            raft::Effect::Restored { snapshot, .. } => match ControlState::decode(&snapshot) {
                Ok(state) if state.format() > self.setup.newest_format => {
                    self.failure = Some(DecodeError::Newer { format: state.format() }.to_string());
                }
                Ok(state) => self.state = Arc::new(state),
                Err(error) => self.failure = Some(error.to_string()),
            },
            raft::Effect::BarrierReached { .. } => {}
            raft::Effect::LeadershipChanged(leadership) => self.handle_leadership(leadership),
            raft::Effect::VotersChanged(voters) => {
                self.is_snapshot_due = true;
                self.voter.handle_voters_changed(self.now_ms);
                if let Some(leading) = &mut self.leading {
                    leading.granter.handle_voters_changed(voters.into_keys().collect());
                }
            }
        }
    }

    fn apply(&mut self, place: raft::Place, entry: &[u8]) {
        self.bytes_since_snapshot += entry.len();
        let known = message::decode_entry(entry).map_err(|error| error.to_string());
        let known = known.and_then(|(proposal, command)| match command.format() {
            needed if needed <= self.setup.newest_format => Ok((proposal, command)),
            needed => Err(format!("it is of format {needed}")),
        });
        let (proposal, command) = match known {
            Ok(decoded) => decoded,
            Err(error) => {
                // Passing it over would make this state another one than that of the others.
                self.failure =
                    Some(format!("an entry of the log cannot be read, use the newer program: {error}"));
                return;
            }
        };
        let deposed = leading::deposed_by(&self.state, &command);
        let result = Arc::make_mut(&mut self.state).apply_proposed(place.index, proposal.life, command);
        if let Some(leading) = &mut self.leading {
            leading.handle_applied(proposal, deposed.filter(|_| result.is_ok()), place.index);
        }
        self.proposals.handle_applied(proposal, place, result, &mut self.effects);
    }

    fn handle_leadership(&mut self, leadership: Leadership) {
        self.voter.handle_term(leadership.term);
        self.proposals.handle_leadership(self.leadership, leadership);
        self.leadership = leadership;
        let is_known = self.leading.as_ref().is_some_and(|leading| leading.granter.term() == leadership.term);
        if !leadership.may_decide {
            self.leading = None;
        } else if !is_known {
            let voters = self.member.voters().keys().copied().collect();
            let index = self.state.applied_index();
            self.leading = Some(Leading::new(leadership.term, voters, self.now_ms, index, self.setup.terms));
        }
    }

    /// Takes a message of a member, this one included.
    fn take(
        &mut self,
        from: NodeName,
        member: MemberId,
        message: Message,
    ) -> Result<(), raft::wire::WireError> {
        let now_ms = self.now_ms;
        match message {
            Message::Raft(bytes) => match self.member.handle_message(&bytes) {
                Err(ConsensusError::BadMessage(error)) => return Err(error),
                handled => self.note(handled),
            },
            Message::Propose { entry } => self.take_proposal(member, entry),
            Message::NotProposed { proposal } => self.proposals.handle_not_proposed(now_ms, proposal, member),
            Message::Replace { seat } => self.replace(&seat),
            Message::Remove { seat } => self.remove(&seat),
            Message::LeaseRequest(request) => {
                let asked = self
                    .leading
                    .as_mut()
                    .is_some_and(|leading| leading.handle_lease_request(now_ms, &from, request));
                if asked {
                    let term = self.leadership.term;
                    self.send_to_voters(&Message::LeaseConfirm { term, holder: from, request });
                }
            }
            Message::LeaseConfirm { term, holder, request } => {
                if self.voter.confirm(now_ms, term, &holder, request) {
                    self.send(member, Message::LeaseConfirmed { term, holder, request });
                }
            }
            Message::LeaseConfirmed { term, holder, request } => {
                let leading = self.leading.as_mut().filter(|leading| leading.granter.term() == term);
                if let Some(leading) = leading
                    && leading.granter.handle_confirmed(member, &holder, request)
                {
                    let from_index = leading.grants_from(&holder);
                    self.send_to(&holder, Message::LeaseGrant { request, from_index });
                }
            }
            Message::LeaseGrant { request, from_index } => {
                self.holding.granted = Some((request, from_index));
                self.count_grant();
            }
            Message::LeaseGivenBack(given_back) => {
                self.voter.release(&from, given_back);
                if let Some(leading) = &mut self.leading {
                    leading.handle_given_back(&from);
                }
            }
            Message::LeaseAsk { term, holder } => {
                if let Some(bound_ms) = self.voter.bound_for(now_ms, term, &holder) {
                    self.send(member, Message::LeaseBound { term, holder, bound_ms });
                }
            }
            Message::LeaseBound { term, holder, bound_ms } => {
                let leading = self.leading.as_mut().filter(|leading| leading.granter.term() == term);
                if leading.is_some_and(|leading| leading.granter.handle_bound(member, &holder, bound_ms)) {
                    self.propose_depositions(&holder);
                }
            }
        }
        Ok(())
    }

    /// A proposal for the leader, which this member may be or not.
    fn take_proposal(&mut self, member: MemberId, entry: Vec<u8>) {
        let Ok((proposal, command)) = message::decode_entry(&entry) else { return };
        let answer = match &mut self.leading {
            Some(leading) => leading.handle_proposal(self.now_ms, &self.state, proposal, &command),
            None => Answer::Refuse,
        };
        match answer {
            Answer::Ignore => {}
            Answer::Refuse => self.send(member, Message::NotProposed { proposal }),
            Answer::Depose(holder) => {
                if let Some(leading) = &mut self.leading {
                    leading.begin_deposition(self.now_ms, proposal, member, holder, entry);
                }
                self.ask_bound_voters();
            }
            Answer::Propose => match self.member.propose(entry) {
                Ok(place) => {
                    if let Some(leading) = &mut self.leading {
                        leading.remember(proposal);
                    }
                    if member == self.own() {
                        self.proposals.handle_placed(proposal, place);
                    }
                }
                Err(error) => {
                    self.note(Err(error));
                    self.send(member, Message::NotProposed { proposal });
                }
            },
        }
    }

    /// No voter of a majority is bound to `holder` any more.
    fn propose_depositions(&mut self, holder: &NodeName) {
        loop {
            let next = self.leading.as_ref().and_then(|leading| leading.next_deposition(holder));
            let Some((proposal, entry)) = next else { return };
            match self.member.propose(entry) {
                Ok(_) => {
                    if let Some(leading) = &mut self.leading {
                        leading.handle_deposition_proposed(proposal);
                    }
                }
                // When it was only busy, the next tick asks again.
                Err(error) => return self.note(Err(error)),
            }
        }
    }

    fn ask_bound_voters(&mut self) {
        let Some(leading) = &mut self.leading else { return };
        let (holders, given_up) = leading.poll_depositions(self.now_ms);
        let term = leading.granter.term();
        for holder in holders {
            self.send_to_voters(&Message::LeaseAsk { term, holder });
        }
        for (member, proposal) in given_up {
            self.send(member, Message::NotProposed { proposal });
        }
    }

    /// Hands out the next proposal that waits for a leader; false when there is nothing to hand out.
    fn send_proposal(&mut self) -> bool {
        let Some(leader) = self.leadership.leader else { return false };
        let may_take =
            if leader == self.own() { self.leading.is_some() } else { self.name_of(leader).is_some() };
        let next = if may_take { self.proposals.send_next(self.now_ms, leader) } else { None };
        let Some(entry) = next else { return false };
        self.send(leader, Message::Propose { entry });
        true
    }

    fn send(&mut self, to: MemberId, message: Message) {
        if to == self.own() {
            self.inbox.push_back(message);
        } else if let Some(to) = self.name_of(to).cloned() {
            self.effects.push_back(Effect::Send { to, message });
        }
    }

    fn send_to(&mut self, to: &NodeName, message: Message) {
        if *to == self.setup.name {
            self.inbox.push_back(message);
        } else if self.peers.contains_key(to) {
            self.effects.push_back(Effect::Send { to: to.clone(), message });
        }
    }

    fn send_to_voters(&mut self, message: &Message) {
        let voters: Vec<MemberId> = self.member.voters().keys().copied().collect();
        voters.into_iter().for_each(|voter| self.send(voter, message.clone()));
    }

    fn send_to_all(&mut self, message: &Message) {
        let all: Vec<MemberId> = self.peers.values().map(|peer| peer.member).chain([self.own()]).collect();
        all.into_iter().for_each(|member| self.send(member, message.clone()));
    }

    fn name_of(&self, member: MemberId) -> Option<&NodeName> {
        self.peers.iter().find(|(_, peer)| peer.member == member).map(|(name, _)| name)
    }

    /// Notes a failure of the log, which is for good; what else consensus refuses is tried again later.
    fn note(&mut self, result: Result<(), ConsensusError>) {
        if let Err(ConsensusError::Failed(error)) = result {
            self.failure = Some(error.to_string());
        }
    }
}
