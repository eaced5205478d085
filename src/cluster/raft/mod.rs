//! Consensus over the two nodes and the witness: one log of entries, the same on all three.
//!
//! [`Consensus`] is all that the rest of the product knows of it; [`member::Member`] implements it on
//! the `raft` crate. Bytes and ticks in, effects out: no clock, no socket, no thread. What must not be
//! lost goes through [`log::Medium`], synced before any message leaves.
//!
//! Guarantees: committed entries are given out in order, the same on every member, each once since the
//! last start. A member whose log is not provably whole never votes (I13): its identity is a random
//! number kept in the log, so without the log it is a stranger until the others have replaced it.
//!
//! Left to others: what entries mean, compare-and-swap included ([`crate::cluster::state`]); leases;
//! carrying messages, by mutual TLS; random numbers and time.

pub mod log;
pub mod member;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::BTreeMap;

/// A member of the cluster's consensus, in one of its lives: random, never zero, lost with its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// Voters and the seat of each: the name of the node, or of the witness.
pub type Voters = BTreeMap<MemberId, String>;

/// A replicated log.
pub trait Consensus {
    /// Lets one tick pass.
    ///
    /// # Errors
    /// [`ConsensusError::Failed`].
    fn handle_tick(&mut self) -> Result<(), ConsensusError>;

    /// Takes a message of another member.
    ///
    /// # Errors
    /// [`ConsensusError::BadMessage`] when it is none; the link should be closed.
    /// [`ConsensusError::Failed`].
    fn handle_message(&mut self, message: &[u8]) -> Result<(), ConsensusError>;

    /// Proposes an entry; only the leader may. It is committed when [`Effect::Committed`] has the place
    /// that is returned here, and lost when another entry comes at its index or beyond.
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`], [`ConsensusError::Busy`], [`ConsensusError::TooLarge`],
    /// [`ConsensusError::Failed`].
    fn propose(&mut self, entry: Vec<u8>) -> Result<Place, ConsensusError>;

    /// Asks for [`Effect::BarrierReached`]: all that was committed when this was called is applied
    /// by whoever has handled the effects up to then. It may never come: ask again after a while.
    ///
    /// # Errors
    /// [`ConsensusError::Failed`].
    fn read_barrier(&mut self, token: u64) -> Result<(), ConsensusError>;

    /// Adds a voter, removes one, or replaces one in a single change.
    ///
    /// # Errors
    /// As [`Self::propose`]; [`ConsensusError::BadChange`] when it leaves no voter, adds a present one, or
    /// seats two in one place.
    fn change_voters(
        &mut self,
        add: Option<(MemberId, String)>,
        remove: Option<MemberId>,
    ) -> Result<Place, ConsensusError>;

    /// Hands leadership to another voter, as far as that is possible at the moment.
    fn transfer_leadership(&mut self, to: MemberId);

    /// Replaces everything up to `applied_index` by a snapshot of the state machine at that index.
    ///
    /// # Errors
    /// [`ConsensusError::Busy`] while voters change; [`ConsensusError::Failed`].
    fn compact(&mut self, applied_index: u64, snapshot: Vec<u8>) -> Result<(), ConsensusError>;

    /// The next thing to do; none until something happens.
    fn poll_effect(&mut self) -> Option<Effect>;

    /// Who leads, and since which term.
    fn leadership(&self) -> Leadership;
}

/// What a member wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Carry a message; it may be lost.
    Send {
        /// To whom.
        to: MemberId,
        /// What.
        message: Vec<u8>,
    },
    /// Apply an entry.
    Committed {
        /// Where it stands.
        place: Place,
        /// What was proposed.
        entry: Vec<u8>,
    },
    /// Replace the state machine by this snapshot.
    Restored {
        /// Index of the last entry that it contains.
        index: u64,
        /// As it was given to [`Consensus::compact`].
        snapshot: Vec<u8>,
    },
    /// All that was committed before the barrier was asked for has been given out.
    BarrierReached {
        /// As it was asked for.
        token: u64,
    },
    /// Leader, term, or right to decide changed.
    LeadershipChanged(Leadership),
    /// Voters changed.
    VotersChanged(Voters),
}

/// Where an entry stands in the log. Two entries with one index have different terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Index, from one.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
}

/// Who leads, as far as this member knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Present term.
    pub term: u64,
    /// Leader of the term, when it is known.
    pub leader: Option<MemberId>,
    /// This member leads, and nothing of older terms is undecided: it may grant leases.
    pub may_decide: bool,
}

/// Why a call had no effect.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// Another member leads, or none does.
    #[error("this member does not lead")]
    NotLeader {
        /// Who does, when it is known.
        leader: Option<MemberId>,
    },
    /// Too much is undecided, or voters are being changed.
    #[error("the log cannot take more at the moment")]
    Busy,
    /// An entry above the limit.
    #[error("an entry of {size_bytes} bytes is larger than {limit_bytes}")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A change of voters that makes no sense.
    #[error("the voters cannot be changed in that way")]
    BadChange,
    /// Bytes that are no message.
    #[error("a message cannot be read")]
    BadMessage(#[from] wire::WireError),
    /// The log failed, or proved to be incomplete. This member takes part no more; a restart looks again.
    #[error("this member's log has failed")]
    Failed(#[source] log::LogError),
}

/// Largest entry: the largest reservations, in hexadecimal, fit twice.
pub const MOST_ENTRY_BYTES: usize = 4 << 20;
