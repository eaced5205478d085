//! The leader's part, for one term: taking proposals, granting leases, deposing.
//!
//! Invariants: an entry that deposes a holder is proposed only when a majority of the voters is bound to the
//! holder no more, and from the wish to depose until the entry is applied no lease is granted to it. What is
//! asked on an epoch that is not known here yet is not proposed: its primary would be another one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::message::ProposalId;
use crate::cluster::lease::{Granter, LeaseRequest, LeaseTerms};
use crate::cluster::mutant::{self, Mutant};
use crate::cluster::name::NodeName;
use crate::cluster::raft::MemberId;
use crate::cluster::state::volume::Transition;
use crate::cluster::state::{Command, ControlState};

/// A leader that may decide.
pub(super) struct Leading {
    pub(super) granter: Granter,
    since_ms: u64,
    terms: LeaseTerms,
    /// What this leader has proposed, so that nothing is proposed twice.
    taken: BTreeSet<ProposalId>,
    taken_in_order: VecDeque<ProposalId>,
    depositions: Vec<Deposition>,
    /// When each holder asked last.
    asked_ms: BTreeMap<NodeName, u64>,
    /// The control state when this leader began, and when each holder was deposed.
    began_at_index: u64,
    deposed_at_index: BTreeMap<NodeName, u64>,
}

struct Deposition {
    proposal: ProposalId,
    proposer: MemberId,
    holder: NodeName,
    entry: Vec<u8>,
    since_ms: u64,
    is_proposed: bool,
}

/// What becomes of a proposal.
pub(super) enum Answer {
    /// It is taken already.
    Ignore,
    /// Not now, or not here.
    Refuse,
    /// At once.
    Propose,
    /// When this holder has no lease.
    Depose(NodeName),
}

impl Leading {
    pub(super) fn new(
        term: u64,
        voters: BTreeSet<MemberId>,
        now_ms: u64,
        applied_index: u64,
        terms: LeaseTerms,
    ) -> Self {
        Self {
            granter: Granter::new(term, voters),
            since_ms: now_ms,
            terms,
            taken: BTreeSet::new(),
            taken_in_order: VecDeque::new(),
            depositions: Vec::new(),
            asked_ms: BTreeMap::new(),
            began_at_index: applied_index,
            deposed_at_index: BTreeMap::new(),
        }
    }

    pub(super) fn handle_proposal(
        &self,
        now_ms: u64,
        state: &ControlState,
        proposal: ProposalId,
        command: &Command,
    ) -> Answer {
        if self.taken.contains(&proposal) {
            return Answer::Ignore;
        }
        if is_ahead(state, command) {
            return Answer::Refuse;
        }
        let Some(holder) = deposed_by(state, command) else { return Answer::Propose };
        // Who asks for leases is well: its place is not taken.
        let patience_ms = 2 * self.terms.renewal_ms;
        let is_early = now_ms < self.since_ms + patience_ms;
        let is_well = self.asked_ms.get(&holder).is_some_and(|asked_ms| now_ms < asked_ms + patience_ms);
        let is_released = self.asked_ms.get(&holder) == Some(&0);
        if mutant::is(Mutant::DeposeAtOnce) {
            return Answer::Propose;
        }
        if self.depositions.len() >= MOST_DEPOSITIONS || (!is_released && (is_early || is_well)) {
            Answer::Refuse
        } else {
            Answer::Depose(holder)
        }
    }

    pub(super) fn remember(&mut self, proposal: ProposalId) {
        if self.taken.insert(proposal) {
            self.taken_in_order.push_back(proposal);
        }
        if self.taken_in_order.len() > MOST_TAKEN
            && let Some(oldest) = self.taken_in_order.pop_front()
        {
            self.taken.remove(&oldest);
        }
    }

    pub(super) fn begin_deposition(
        &mut self,
        now_ms: u64,
        proposal: ProposalId,
        proposer: MemberId,
        holder: NodeName,
        entry: Vec<u8>,
    ) {
        self.remember(proposal);
        self.granter.depose(&holder);
        let (since_ms, is_proposed) = (now_ms, false);
        self.depositions.push(Deposition { proposal, proposer, holder, entry, since_ms, is_proposed });
    }

    /// Holders about whom the voters are to be asked, and proposals that have been given up.
    pub(super) fn poll_depositions(
        &mut self,
        now_ms: u64,
    ) -> (BTreeSet<NodeName>, Vec<(MemberId, ProposalId)>) {
        let is_over = |deposition: &mut Deposition| {
            !deposition.is_proposed && now_ms >= deposition.since_ms + PATIENCE_MS
        };
        let given_up: Vec<Deposition> = self.depositions.extract_if(.., is_over).collect();
        for deposition in &given_up {
            self.taken.remove(&deposition.proposal);
            self.end_deposing(&deposition.holder);
        }
        let open = self.depositions.iter().filter(|deposition| !deposition.is_proposed);
        let holders = open.map(|deposition| deposition.holder.clone()).collect();
        (holders, given_up.into_iter().map(|given_up| (given_up.proposer, given_up.proposal)).collect())
    }

    pub(super) fn next_deposition(&self, holder: &NodeName) -> Option<(ProposalId, Vec<u8>)> {
        let next = self.depositions.iter().find(|next| !next.is_proposed && next.holder == *holder)?;
        Some((next.proposal, next.entry.clone()))
    }

    pub(super) fn handle_deposition_proposed(&mut self, proposal: ProposalId) {
        let mut depositions = self.depositions.iter_mut();
        if let Some(proposed) = depositions.find(|deposition| deposition.proposal == proposal) {
            proposed.is_proposed = true;
        }
    }

    /// An entry was applied; `deposed` lost a volume by it.
    pub(super) fn handle_applied(&mut self, proposal: ProposalId, deposed: Option<NodeName>, index: u64) {
        if let Some(holder) = deposed {
            self.deposed_at_index.insert(holder, index);
        }
        let decided: Vec<Deposition> =
            self.depositions.extract_if(.., |deposition| deposition.proposal == proposal).collect();
        decided.iter().for_each(|decided| self.end_deposing(&decided.holder));
    }

    pub(super) fn handle_lease_request(
        &mut self,
        now_ms: u64,
        holder: &NodeName,
        request: LeaseRequest,
    ) -> bool {
        self.asked_ms.insert(holder.clone(), now_ms.max(1));
        self.granter.handle_request(holder, request)
    }

    pub(super) fn handle_given_back(&mut self, holder: &NodeName) {
        self.asked_ms.insert(holder.clone(), 0);
    }

    /// What a holder has to know for a lease to count.
    pub(super) fn grants_from(&self, holder: &NodeName) -> u64 {
        if mutant::is(Mutant::GrantFromAnyIndex) {
            return 0;
        }
        self.deposed_at_index.get(holder).copied().unwrap_or(0).max(self.began_at_index)
    }

    fn end_deposing(&mut self, holder: &NodeName) {
        if self.depositions.iter().all(|deposition| deposition.holder != *holder) {
            self.granter.end_deposing(holder);
        }
    }
}

/// Whose place as a primary the command takes without its help, by this state.
pub(super) fn deposed_by(state: &ControlState, command: &Command) -> Option<NodeName> {
    let (volume, expected_epoch, primary) = match command {
        Command::BeginEpoch { volume, expected_epoch, transition: Transition::TakeOver, primary, .. }
        | Command::ForcePrimary { volume, expected_epoch, primary, .. } => (volume, expected_epoch, primary),
        _ => return None,
    };
    let record = state.volume_by_id(*volume)?;
    (record.epoch == *expected_epoch && record.primary != *primary).then(|| record.primary.clone())
}

/// Whether the command is about an epoch that this state does not have yet.
fn is_ahead(state: &ControlState, command: &Command) -> bool {
    let (Command::BeginEpoch { volume, expected_epoch, .. }
    | Command::ForcePrimary { volume, expected_epoch, .. }) = command
    else {
        return false;
    };
    state.volume_by_id(*volume).is_none_or(|record| *expected_epoch > record.epoch)
}

/// A leader gives up sooner than the proposer does, so that the outcome is known to the latter.
const PATIENCE_MS: u64 = 8_000;
/// As many as there are volumes to be taken over at once.
const MOST_DEPOSITIONS: usize = 4096;
const MOST_TAKEN: usize = 4096;
