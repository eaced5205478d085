//! Leases: a node may serve while it holds one, and who replaces it waits until it can't any more (I5).
//!
//! Three roles, each a pure state machine. A [`Holder`] asks the leader; the leader's [`Granter`] has a
//! majority of [`Voter`]s confirm, then grants. To depose the holder, the granter asks a majority
//! whether they are bound. Two majorities share a voter, so no lease is left when all of one are free.
//!
//! Guarantees: a lease counts from the moment of asking; voters are bound for longer by what two clocks
//! may drift apart. A restarted voter is bound for one lease, as it may have confirmed one. A voter
//! answers only the leader of its own present term, which is durable: else one that has told a new leader
//! that it is free, and restarts, confirms what the old leader asked. A give-back releases what its holder
//! asked for before it, and nothing newer: it may arrive late.
//!
//! Left to others: messages; a new leader makes a granter only once nothing of earlier terms is
//! undecided ([`super::raft::Leadership::may_decide`]) and proposes a deposition in the same term. Times are
//! milliseconds of a clock that runs through suspend (`CLOCK_BOOTTIME`), each machine its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::mutant::{self, Mutant};
use super::name::NodeName;
use super::raft::MemberId;

/// How long leases last.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTerms {
    /// From asking to the end, by the holder's clock.
    pub duration_ms: u64,
    /// Time between two renewals.
    pub renewal_ms: u64,
    /// Any clock here gains or loses less than one part in so many.
    pub drift_parts: u64,
}

impl LeaseTerms {
    /// Two seconds, renewed every 0.3 s; clocks off by less than one percent.
    pub const LAN: Self = Self { duration_ms: 2000, renewal_ms: 300, drift_parts: 100 };

    /// How long a voter is bound, by its own clock: the holder's may be slow and the voter's fast.
    #[must_use]
    pub fn bound_ms(&self) -> u64 {
        let margin = if mutant::is(Mutant::NoDriftMargin) {
            0
        } else {
            (2 * self.duration_ms).div_ceil(self.drift_parts - 1) + 1
        };
        self.duration_ms + margin
    }
}

/// How the store of a node is, for itself and for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreHealth {
    /// It serves.
    #[default]
    Well,
    /// It has completed nothing for a while, though asked: no lease is asked for, and somebody else may serve.
    Stuck,
    /// It serves no more in this life of the node, which has failed or is about to stop.
    Gone,
}

/// A request for a lease, or its renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseRequest {
    /// Random number of the holder's process.
    pub life: u64,
    /// Grows with each request of that life.
    pub number: u64,
}

/// The node that serves.
#[derive(Debug)]
pub struct Holder {
    terms: LeaseTerms,
    life: u64,
    last_number: u64,
    /// Requests that may still be granted, and when they were made.
    asked: VecDeque<(u64, u64)>,
    held_until_ms: u64,
    next_request_ms: u64,
    has_stopped: bool,
}

impl Holder {
    /// A holder without a lease, in a life that no holder had before.
    #[must_use]
    pub fn new(terms: LeaseTerms, life: u64) -> Self {
        Self {
            terms,
            life,
            last_number: 0,
            asked: VecDeque::new(),
            held_until_ms: 0,
            next_request_ms: 0,
            has_stopped: false,
        }
    }

    /// A request to send to the leader, when one is due. A node whose store is stuck asks for nothing.
    pub fn poll_request(&mut self, now_ms: u64, is_store_healthy: bool) -> Option<LeaseRequest> {
        if self.has_stopped || !is_store_healthy || now_ms < self.next_request_ms {
            return None;
        }
        self.next_request_ms = now_ms + self.terms.renewal_ms;
        self.last_number += 1;
        if self.asked.len() == MOST_ASKED {
            self.asked.pop_front();
        }
        self.asked.push_back((self.last_number, now_ms));
        Some(LeaseRequest { life: self.life, number: self.last_number })
    }

    /// Takes a grant, however late it comes.
    pub fn handle_grant(&mut self, now_ms: u64, grant: LeaseRequest) {
        let asked = self.asked.iter().find(|(number, _)| *number == grant.number);
        let Some((_, asked_ms)) = asked.filter(|_| grant.life == self.life && !self.has_stopped) else {
            return;
        };
        let from_ms = if mutant::is(Mutant::LeaseFromArrival) { now_ms } else { *asked_ms };
        self.held_until_ms = self.held_until_ms.max(from_ms + self.terms.duration_ms);
    }

    /// Whether it may serve at this moment.
    #[must_use]
    pub fn is_held(&self, now_ms: u64) -> bool {
        !self.has_stopped && now_ms < self.held_until_ms
    }

    /// Until when it is held, as far as has been granted; zero when it is not.
    #[must_use]
    pub fn held_until_ms(&self) -> u64 {
        if self.has_stopped { 0 } else { self.held_until_ms }
    }

    /// Stops serving until [`Self::resume`]. The value releases the voters at once.
    pub fn give_back(&mut self) -> LeaseRequest {
        self.has_stopped = true;
        self.held_until_ms = 0;
        self.asked.clear();
        LeaseRequest { life: self.life, number: self.last_number }
    }

    /// Asks again after a give-back; nothing granted before counts.
    pub fn resume(&mut self) {
        self.has_stopped = false;
    }
}

/// One of the three that confirm leases.
#[derive(Debug)]
pub struct Voter {
    terms: LeaseTerms,
    term: u64,
    /// Until when leases of an earlier life of this voter may last.
    bound_by_past_ms: u64,
    bindings: BTreeMap<NodeName, Binding>,
}

#[derive(Debug)]
struct Binding {
    request: LeaseRequest,
    until_ms: u64,
}

impl Voter {
    /// A voter that has just started, with the term that its Raft log has.
    #[must_use]
    pub fn new(terms: LeaseTerms, now_ms: u64, term: u64) -> Self {
        let term = if mutant::is(Mutant::TermForgotten) { 0 } else { term };
        let wait_ms = if mutant::is(Mutant::RestartedVoterDoesNotWait) { 0 } else { terms.bound_ms() };
        let bound_by_past_ms = now_ms + wait_ms;
        Self { terms, term, bound_by_past_ms, bindings: BTreeMap::new() }
    }

    /// Raft has made a new term durable here.
    pub fn handle_term(&mut self, term: u64) {
        self.term = self.term.max(term);
    }

    /// The voters changed here. A majority of the new ones need not have a voter in common with one of the
    /// old ones that confirmed a lease, so this voter counts as bound once more, for one lease.
    pub fn handle_voters_changed(&mut self, now_ms: u64) {
        self.bound_by_past_ms = self.bound_by_past_ms.max(now_ms + self.terms.bound_ms());
    }

    /// Confirms a lease for the leader of `term`; false when this voter is in another term.
    pub fn confirm(&mut self, now_ms: u64, term: u64, holder: &NodeName, request: LeaseRequest) -> bool {
        let is_old = term < self.term && mutant::is(Mutant::ConfirmForOldTerms);
        if term != self.term && !is_old {
            return false;
        }
        let until_ms = now_ms + self.terms.bound_ms();
        let binding = self.bindings.entry(holder.clone()).or_insert(Binding { request, until_ms });
        // A late request of the same life must not hide a newer one from a give-back.
        let is_older = binding.request.life == request.life && binding.request.number > request.number;
        if !is_older {
            binding.request = request;
        }
        binding.until_ms = binding.until_ms.max(until_ms);
        true
    }

    /// For how long this voter is bound to `holder`, for the leader of `term`; none when it is in another
    /// term.
    #[must_use]
    pub fn bound_for(&self, now_ms: u64, term: u64, holder: &NodeName) -> Option<u64> {
        if term != self.term {
            return None;
        }
        let until_ms = self.bindings.get(holder).map_or(0, |binding| binding.until_ms);
        Some(until_ms.max(self.bound_by_past_ms).saturating_sub(now_ms))
    }

    /// The holder has stopped serving by everything up to `given_back`.
    pub fn release(&mut self, holder: &NodeName, given_back: LeaseRequest) {
        let is_covered = |binding: &Binding| {
            binding.request.life == given_back.life && binding.request.number <= given_back.number
        };
        let is_any = mutant::is(Mutant::GiveBackOfAnyRequest);
        if self.bindings.get(holder).is_some_and(|binding| is_any || is_covered(binding)) {
            self.bindings.remove(holder);
        }
    }
}

/// The leader's part, for one term.
#[derive(Debug)]
pub struct Granter {
    term: u64,
    voters: BTreeSet<MemberId>,
    confirming: BTreeMap<NodeName, VecDeque<(LeaseRequest, BTreeSet<MemberId>)>>,
    deposing: BTreeMap<NodeName, BTreeSet<MemberId>>,
}

impl Granter {
    /// For the leader of `term`, with nothing of earlier terms undecided.
    #[must_use]
    pub fn new(term: u64, voters: BTreeSet<MemberId>) -> Self {
        Self { term, voters, confirming: BTreeMap::new(), deposing: BTreeMap::new() }
    }

    /// Goes on with other voters. What the former ones said no longer counts.
    pub fn handle_voters_changed(&mut self, voters: BTreeSet<MemberId>) {
        self.voters = voters;
        self.confirming.clear();
        self.deposing.values_mut().for_each(BTreeSet::clear);
    }

    /// The term in which voters are to be asked.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Takes a request; true when the voters are to be asked to confirm it. A holder that is being deposed
    /// gets nothing.
    pub fn handle_request(&mut self, holder: &NodeName, request: LeaseRequest) -> bool {
        if self.deposing.contains_key(holder) {
            return false;
        }
        let requests = self.confirming.entry(holder.clone()).or_default();
        if requests.len() == MOST_ASKED {
            requests.pop_front();
        }
        requests.push_back((request, BTreeSet::new()));
        true
    }

    /// Takes a voter's confirmation; true when the lease is to be granted now.
    pub fn handle_confirmed(&mut self, voter: MemberId, holder: &NodeName, request: LeaseRequest) -> bool {
        let (majority, is_voter) = (self.majority(), self.voters.contains(&voter));
        let Some(requests) = self.confirming.get_mut(holder) else { return false };
        let Some(at) = requests.iter().position(|(asked, _)| *asked == request) else { return false };
        if is_voter {
            requests[at].1.insert(voter);
        }
        let is_granted = requests[at].1.len() >= majority;
        if is_granted {
            requests.remove(at);
        }
        is_granted
    }

    /// Begins to depose a holder: the voters are to be asked how long they are bound.
    pub fn depose(&mut self, holder: &NodeName) {
        if !mutant::is(Mutant::GrantWhileDeposing) {
            self.confirming.remove(holder);
        }
        self.deposing.entry(holder.clone()).or_default();
    }

    /// Takes a voter's answer; true when the deposition is to be proposed now, in this term. A voter that
    /// is bound is to be asked again when the time it named is over.
    pub fn handle_bound(&mut self, voter: MemberId, holder: &NodeName, bound_ms: u64) -> bool {
        let (majority, is_voter) = (self.majority(), self.voters.contains(&voter));
        let Some(free) = self.deposing.get_mut(holder) else { return false };
        if is_voter && bound_ms == 0 {
            free.insert(voter);
        }
        free.len() >= majority
    }

    /// The deposition is decided, one way or the other, or given up before it was proposed.
    pub fn end_deposing(&mut self, holder: &NodeName) {
        self.deposing.remove(holder);
    }

    fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }
}

/// Requests that may be under way at a time.
const MOST_ASKED: usize = 16;

#[cfg(test)]
mod tests;
