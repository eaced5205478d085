//! This node's own lease: asking for it, counting it, and giving it back.
//!
//! Invariant: a grant counts once everything is known here that was decided before it.

use super::{Effect, Message, Quorum, SeatKind, Setup};
use crate::cluster::lease::{Holder, LeaseRequest};
use crate::cluster::raft::log::Medium;

/// The lease of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Until when; zero without one.
    pub held_until_ms: u64,
    /// It is for those who have seen the control state through this index.
    pub from_index: u64,
}

impl Lease {
    /// Whether who has seen the control state through `seen_index` may serve at this moment.
    #[must_use]
    pub fn is_held(&self, now_ms: u64, seen_index: u64) -> bool {
        now_ms < self.held_until_ms && seen_index >= self.from_index
    }
}

/// This node's own lease.
pub(super) struct Holding {
    holder: Holder,
    is_store_healthy: bool,
    /// Granted, but this member does not know yet what it presupposes.
    pub(super) granted: Option<(LeaseRequest, u64)>,
    from_index: u64,
    /// What was given back last, said again for a while.
    given_back: Option<(LeaseRequest, u64)>,
    published: Lease,
}

impl Holding {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            holder: Holder::new(setup.terms, setup.life),
            is_store_healthy: true,
            granted: None,
            from_index: 0,
            given_back: None,
            published: Lease::default(),
        }
    }
}

impl<M: Medium> Quorum<M> {
    /// Whether the node's store is well: while it is not, the lease is not renewed.
    pub fn set_store_health(&mut self, is_healthy: bool) {
        self.holding.is_store_healthy = is_healthy;
    }

    /// Gives the lease back: this node has stopped serving.
    pub fn give_back(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        let given_back = self.holding.holder.give_back();
        self.holding.granted = None;
        self.holding.given_back = Some((given_back, now_ms));
        self.send_to_all(&Message::LeaseGivenBack(given_back));
        self.settle();
    }

    /// Asks for leases again after [`Self::give_back`].
    pub fn resume(&mut self) {
        self.holding.holder.resume();
        self.holding.given_back = None;
    }

    pub(super) fn renew_lease(&mut self) {
        if self.setup.kind == SeatKind::Witness {
            return;
        }
        let now_ms = self.now_ms;
        if let Some((given_back, since_ms)) = self.holding.given_back
            && now_ms < since_ms + self.setup.terms.bound_ms()
        {
            self.send_to_all(&Message::LeaseGivenBack(given_back));
        }
        let Some(leader) = self.leadership.leader else { return };
        let request = self.holding.holder.poll_request(now_ms, self.holding.is_store_healthy);
        if let Some(request) = request {
            self.send(leader, Message::LeaseRequest(request));
        }
    }

    /// Counts a grant once everything is known here that was decided before it.
    pub(super) fn count_grant(&mut self) {
        let holding = &mut self.holding;
        if let Some((request, from_index)) = holding.granted
            && self.state.applied_index() >= from_index
        {
            holding.granted = None;
            holding.from_index = holding.from_index.max(from_index);
            holding.holder.handle_grant(self.now_ms, request);
        }
        let lease = Lease { held_until_ms: holding.holder.held_until_ms(), from_index: holding.from_index };
        if lease != holding.published {
            holding.published = lease;
            self.effects.push_back(Effect::LeaseChanged(lease));
        }
    }
}
