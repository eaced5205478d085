//! What one node may do with one volume: serve it, acknowledge alone, propose a change.
//!
//! The rules of docs/protocol.md as a pure state machine over the control state's records. Guarantees:
//! an epoch is served only by who proposed it in this life of the process, as its record says, or was handed it by a
//! move that it lived through and that no earlier life can have served (I8); what was proposed counts as undecided until a record of a newer epoch shows the
//! outcome (I1, I2); nobody but a member is proposed (I3).
//!
//! Left to others: leases; when to propose (time-outs, a peer that has caught up); carrying writes; settling
//! blocks where an epoch begins unsettled (I10); that the commands reach Raft.

use std::collections::BTreeSet;

use super::mutant::{self, Mutant};
use super::name::NodeName;
use super::state::volume::{Transition, VolumeRecord};

/// A node's part in a volume, for one life of the process.
#[derive(Debug)]
pub struct Role {
    own: NodeName,
    /// Random number of the process.
    life: u64,
    /// The newest epoch that earlier lives of the node can have served.
    promised_before: u32,
    view: Option<VolumeRecord>,
    serving: Option<u32>,
    undecided: Vec<Proposed>,
}

/// A change that was proposed; its outcome is unknown until the record shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Epoch that the record must have.
    pub expected_epoch: u32,
    /// Kind of change.
    pub transition: Transition,
    /// Primary of the next epoch.
    pub primary: NodeName,
    /// In-sync set of the next epoch.
    pub in_sync: BTreeSet<NodeName>,
}

/// What a new record means for this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing new.
    Stay,
    /// Begin to serve this epoch. If it is not settled, each block is settled before it is read or written.
    Begin {
        /// The epoch.
        epoch: u32,
        /// Nothing is in doubt.
        is_settled: bool,
    },
    /// Go on serving in this epoch: writes in flight are sent again, and older acknowledgements of the peer
    /// do not count.
    Continue {
        /// The epoch.
        epoch: u32,
    },
    /// Do not serve. Whoever did drains its writes, and forgets those that were not acknowledged (I7).
    Follow {
        /// The lowest epoch from which data is still taken: to be promised durably.
        epoch: u32,
    },
}

/// Where a write is on stable media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Here.
    pub is_local: bool,
    /// At the peer, by its acknowledgement in this epoch.
    pub at_peer_in_epoch: Option<u32>,
}

/// What a proposal presupposes, beside the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// No write is in flight, and no block is unsettled.
    pub is_drained: bool,
    /// The joining peer has every block, and all writes since are mirrored.
    pub is_peer_complete: bool,
}

impl Role {
    /// The part of a node that has just started: it knows nothing and serves nothing. `life` is the random number of
    /// this process, under which it proposes, and `promised_before` the newest epoch that it finds promised: earlier
    /// lives have served none beyond that which was handed to them. (The first state that a process knows may be older
    /// than the last one that the process before it knew.)
    #[must_use]
    pub fn new(own: NodeName, life: u64, promised_before: u32) -> Self {
        Self { own, life, promised_before, view: None, serving: None, undecided: Vec::new() }
    }

    /// Takes the record as committed; older ones than the last are passed over.
    pub fn handle_record(&mut self, record: &VolumeRecord) -> Turn {
        let known = self.view.as_ref().map(|view| view.epoch);
        if known.is_some_and(|known| record.epoch <= known) {
            return Turn::Stay;
        }
        let is_of_this_life = record.proposer_life == self.life || mutant::is(Mutant::ForeignEpochTaken);
        let is_own = is_of_this_life && self.undecided.iter().any(|proposed| proposed.is(record));
        let is_handing_over = matches!(record.began_by, Some(Transition::Move | Transition::Yield));
        let is_new = record.epoch > self.promised_before || mutant::is(Mutant::HandedOverTwice);
        let is_handed_over = is_handing_over && known.is_some() && is_new;
        let was_serving = self.serving.is_some();
        self.undecided.clear();
        self.view = Some(record.clone());
        let epoch = record.epoch;
        let is_stopped = record.began_by == Some(Transition::Stop);
        let may_serve = record.primary == self.own && !is_stopped && (is_own || is_handed_over);
        self.serving = may_serve.then_some(epoch);
        match (may_serve, was_serving && is_own) {
            (true, true) => Turn::Continue { epoch },
            (true, false) => Turn::Begin { epoch, is_settled: record.is_settled() },
            (false, _) => Turn::Follow { epoch },
        }
    }

    /// The epoch that this node serves.
    #[must_use]
    pub fn serving(&self) -> Option<u32> {
        self.serving
    }

    /// Whether the outcome of something that was proposed is not known.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        !self.undecided.is_empty()
    }

    /// Serves no more in this epoch, for whatever reason.
    pub fn stop(&mut self) {
        self.serving = None;
    }

    /// Whether commands may be executed, reads included (I5): by a lease, or as the only member of the
    /// committed set while proposing nothing.
    #[must_use]
    pub fn may_serve(&self, has_lease: bool) -> bool {
        self.serving.is_some() && (has_lease || (self.is_alone() && self.undecided.is_empty()))
    }

    /// Whether a write of the served epoch may be acknowledged (I1, I2).
    #[must_use]
    pub fn may_acknowledge(&self, durable: Durable) -> bool {
        let Some(epoch) = self.serving else { return false };
        let is_larger_proposed = self.undecided.iter().any(|proposed| proposed.in_sync.len() > 1);
        let may_be_alone = self.is_alone() && !is_larger_proposed;
        durable.is_local && (durable.at_peer_in_epoch == Some(epoch) || may_be_alone)
    }

    /// Prepares a proposal; none where the rules forbid it. From here on it counts as undecided. Who
    /// proposes to move or to stop no longer serves.
    pub fn propose(
        &mut self,
        transition: Transition,
        peer: &NodeName,
        circumstances: Circumstances,
    ) -> Option<Proposed> {
        let view = self.view.as_ref()?;
        let is_member = view.in_sync.contains(&self.own);
        let (is_primary, is_serving) = (view.primary == self.own, self.serving.is_some());
        let is_both = view.in_sync.len() == 2;
        let Circumstances { is_drained, is_peer_complete } = circumstances;
        let is_allowed = match transition {
            Transition::Yield => is_primary && !is_serving && is_both,
            Transition::Restart => is_primary && (!is_serving || !self.undecided.is_empty()),
            Transition::Shrink => is_primary && is_both,
            Transition::Expand => is_serving && !is_both && is_peer_complete,
            Transition::TakeOver => !is_primary,
            Transition::Move | Transition::Stop => is_serving && is_both && is_drained,
            Transition::Start => !is_serving && view.is_certified(),
            // Also a member's, which has lost what was acknowledged: the control state knows.
            Transition::Force => !is_serving,
        };
        let may_propose = is_member || transition == Transition::Force;
        if !may_propose || !is_allowed || self.undecided.len() == MOST_UNDECIDED {
            return None;
        }
        let alone = BTreeSet::from([self.own.clone()]);
        let in_sync = match transition {
            Transition::Shrink | Transition::TakeOver | Transition::Force => alone,
            Transition::Yield => BTreeSet::from([peer.clone()]),
            Transition::Expand => BTreeSet::from([self.own.clone(), peer.clone()]),
            _ => view.in_sync.clone(),
        };
        let gives_way = matches!(transition, Transition::Move | Transition::Yield);
        let primary = if gives_way { peer } else { &self.own };
        let proposed = Proposed { expected_epoch: view.epoch, transition, primary: primary.clone(), in_sync };
        if matches!(transition, Transition::Move | Transition::Stop) {
            self.serving = None;
        }
        if !self.undecided.contains(&proposed) {
            self.undecided.push(proposed.clone());
        }
        Some(proposed)
    }

    fn is_alone(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.in_sync.len() == 1 && view.in_sync.contains(&self.own))
    }
}

impl Proposed {
    /// Whether the record is what was proposed.
    fn is(&self, record: &VolumeRecord) -> bool {
        record.epoch == self.expected_epoch + 1
            && record.began_by == Some(self.transition)
            && record.primary == self.primary
            && record.in_sync == self.in_sync
    }
}

/// Different proposals that can be open in one epoch: restart or shrink beside expand, move or stop.
const MOST_UNDECIDED: usize = 8;

#[cfg(test)]
mod tests;
