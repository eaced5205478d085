//! What is done unasked: seats and names for newcomers, a seat for who lost its log, and a log that stays short.

use super::{PeerInfo, Quorum, SeatKind};
use crate::cluster::mutant::{self, Mutant};
use crate::cluster::name::NodeName;
use crate::cluster::raft::log::Medium;
use crate::cluster::raft::{Consensus, MemberId};
use crate::cluster::state::Command;
use crate::cluster::state::format::NEWEST_FORMAT;
use crate::cluster::state::node::Description;

impl<M: Medium> Quorum<M> {
    /// What a leader does unasked: seats for those who have none yet, and their names in the control state.
    pub(super) fn keep_house(&mut self) {
        if self.leading.is_none() || self.member.is_changing_voters() {
            return;
        }
        let voters = self.member.voters();
        let vacant = self.peers.iter().find(|(name, peer)| {
            let has_no_seat = voters.values().all(|seat| seat != name.as_str());
            self.knows_format(peer) && !voters.contains_key(&peer.member) && has_no_seat
        });
        let own_is_known = self.is_in_state(&self.setup.name, self.setup.kind);
        if let Some((name, peer)) = vacant.filter(|_| own_is_known) {
            let seat = (peer.member, name.to_string());
            let changed = self.member.change_voters(Some(seat), None).map(drop);
            return self.note(changed);
        }
        if self.housekeeping.is_some_and(|number| self.proposals.is_open(number)) {
            return;
        }
        let own = (&self.setup.name, self.setup.kind);
        let members = std::iter::once(own).chain(self.peers.iter().map(|(name, peer)| (name, peer.kind)));
        let unknown = members.into_iter().find(|(name, kind)| !self.is_in_state(name, *kind));
        let command = match unknown {
            Some((name, SeatKind::Node)) => Some(Command::AddNode { name: name.clone() }),
            Some((_, SeatKind::Witness)) => Some(Command::SetWitness { description: Description::default() }),
            None => self.format_to_raise().map(|format| Command::RaiseFormat { format }),
        };
        if let Some(command) = command {
            self.housekeeping = Some(self.proposals.open(self.now_ms, &command, &mut self.effects));
            self.settle();
        }
    }

    fn knows_format(&self, peer: &PeerInfo) -> bool {
        peer.newest_format >= self.state.format()
    }

    /// The newest format that everybody knows, when it is newer than the present one: all voters are there, and who else is.
    fn format_to_raise(&self) -> Option<u32> {
        let is_there = |(member, _): (&MemberId, &String)| {
            *member == self.own() || self.peers.values().any(|peer| peer.member == *member)
        };
        let others = self.peers.values().map(|peer| peer.newest_format);
        let known = others.chain([self.setup.newest_format, NEWEST_FORMAT]).min()?;
        let all_know = self.member.voters().iter().all(is_there) || mutant::is(Mutant::RaiseByMajority);
        (all_know && known > self.state.format()).then_some(known)
    }

    fn is_in_state(&self, name: &NodeName, kind: SeatKind) -> bool {
        match kind {
            SeatKind::Node => self.state.nodes().any(|(node, _)| node == name),
            SeatKind::Witness => self.state.witness().is_some(),
        }
    }

    /// The identity that has the vote of a seat.
    fn voter_of(&self, seat: &NodeName) -> Option<MemberId> {
        self.member.voters().iter().find(|(_, name)| *name == seat.as_str()).map(|(id, _)| *id)
    }

    /// Puts the present identity of the member in `seat` in the place of the one that is lost.
    pub(super) fn replace(&mut self, seat: &NodeName) {
        let newcomer = self.peers.get(seat).filter(|peer| self.knows_format(peer));
        let Some(present) = newcomer.map(|peer| peer.member) else { return };
        let lost = self.voter_of(seat);
        if self.leading.is_some() && lost.is_some_and(|lost| lost != present) {
            let changed = self.member.change_voters(Some((present, seat.to_string())), lost).map(drop);
            self.note(changed);
        }
    }

    /// Takes the vote of the member in `seat`, while nobody is there who has it.
    pub(super) fn remove(&mut self, seat: &NodeName) {
        let lost = self.voter_of(seat);
        let is_there = self.peers.contains_key(seat) || *seat == self.setup.name;
        if self.leading.is_some() && lost.is_some() && !is_there {
            let changed = self.member.change_voters(None, lost).map(drop);
            self.note(changed);
        }
    }

    /// Cuts a log that has become long, or that a newcomer needs a snapshot of.
    pub(super) fn compact(&mut self) {
        let is_long =
            self.member.log_length() >= MOST_LOG_ENTRIES || self.bytes_since_snapshot >= MOST_LOG_BYTES;
        if self.failure.is_some() || !(is_long || self.is_snapshot_due) {
            return;
        }
        let compacted = self.member.compact(self.member.applied_index(), self.state.encode());
        if compacted.is_ok() {
            (self.bytes_since_snapshot, self.is_snapshot_due) = (0, false);
        }
        self.note(compacted);
    }
}

/// Where the log is cut off by a snapshot.
const MOST_LOG_ENTRIES: usize = 10_000;
const MOST_LOG_BYTES: usize = 8 << 20;
