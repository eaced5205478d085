//! The proposer's part: commands from being asked for to being decided.
//!
//! Invariant: a command that is not safe to propose twice is handed to one leader only, and again only when it
//! is certain that nothing came of the first time.

use std::collections::{BTreeMap, VecDeque};

use super::message::{ProposalId, encode_entry};
use super::{Effect, ProposalError};
use crate::cluster::raft::{Leadership, MOST_ENTRY_BYTES, MemberId, Place};
use crate::cluster::state::{Command, Outcome, Rejection};

/// Commands of this process whose fate is open.
pub(super) struct Proposals {
    life: u64,
    last_number: u64,
    open: BTreeMap<u64, Open>,
}

struct Open {
    entry: Vec<u8>,
    is_repeatable: bool,
    deadline_ms: u64,
    not_before_ms: u64,
    phase: Phase,
    /// To how many leaders it was handed of which none has said that it came to nothing.
    handed_out: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// To be handed to the leader.
    Waiting,
    /// With that leader, or on the way there.
    Sent(MemberId),
    /// In the log of this member as the leader.
    Placed(Place),
}

impl Proposals {
    pub(super) fn new(life: u64) -> Self {
        Self { life, last_number: 0, open: BTreeMap::new() }
    }

    pub(super) fn open(&mut self, now_ms: u64, command: &Command, effects: &mut VecDeque<Effect>) -> u64 {
        self.last_number += 1;
        let number = self.last_number;
        let entry = encode_entry(ProposalId { life: self.life, number }, command);
        let mut refuse = |error| effects.push_back(Effect::Decided { number, result: Err(error) });
        if entry.len() > MOST_ENTRY_BYTES {
            refuse(ProposalError::TooLarge);
        } else if self.open.len() >= MOST_OPEN {
            refuse(ProposalError::NotProposed);
        } else {
            let open = Open {
                entry,
                is_repeatable: is_repeatable(command),
                deadline_ms: now_ms + PATIENCE_MS,
                not_before_ms: now_ms,
                phase: Phase::Waiting,
                handed_out: 0,
            };
            self.open.insert(number, open);
        }
        number
    }

    /// A command that the state as it is known here does not allow, and none that is not older than it.
    pub(super) fn reject(&mut self, rejection: Rejection, effects: &mut VecDeque<Effect>) -> u64 {
        self.last_number += 1;
        let (number, result) = (self.last_number, Err(ProposalError::Rejected(rejection)));
        effects.push_back(Effect::Decided { number, result });
        number
    }

    pub(super) fn is_open(&self, number: u64) -> bool {
        self.open.contains_key(&number)
    }

    /// The next entry to hand to this leader.
    pub(super) fn send_next(&mut self, now_ms: u64, leader: MemberId) -> Option<Vec<u8>> {
        let is_due = |open: &&mut Open| open.phase == Phase::Waiting && open.not_before_ms <= now_ms;
        let open = self.open.values_mut().find(is_due)?;
        open.phase = Phase::Sent(leader);
        open.handed_out += 1;
        Some(open.entry.clone())
    }

    /// A leader has not taken it.
    pub(super) fn handle_not_proposed(&mut self, now_ms: u64, proposal: ProposalId, leader: MemberId) {
        let open = self.open.get_mut(&proposal.number).filter(|_| proposal.life == self.life);
        let Some(open) = open.filter(|open| open.phase == Phase::Sent(leader)) else { return };
        open.handed_out -= 1;
        open.phase = Phase::Waiting;
        open.not_before_ms = now_ms + RETRY_MS;
    }

    pub(super) fn handle_placed(&mut self, proposal: ProposalId, place: Place) {
        if let Some(open) = self.open.get_mut(&proposal.number) {
            open.phase = Phase::Placed(place);
        }
    }

    /// An entry has been applied here.
    pub(super) fn handle_applied(
        &mut self,
        proposal: ProposalId,
        place: Place,
        result: Result<Outcome, Rejection>,
        effects: &mut VecDeque<Effect>,
    ) {
        if proposal.life == self.life && self.open.remove(&proposal.number).is_some() {
            let result = result.map_err(ProposalError::Rejected);
            effects.push_back(Effect::Decided { number: proposal.number, result });
        }
        // Where another entry stands, what was to stand there is lost.
        for open in self.open.values_mut() {
            if matches!(open.phase, Phase::Placed(lost) if lost.index <= place.index) {
                open.handed_out -= 1;
                open.phase = Phase::Waiting;
            }
        }
    }

    /// What may be proposed twice is handed to the new leader at once.
    pub(super) fn handle_leadership(&mut self, before: Leadership, now: Leadership) {
        if (before.term, before.leader) == (now.term, now.leader) {
            return;
        }
        for open in self.open.values_mut().filter(|open| open.is_repeatable) {
            open.phase = Phase::Waiting;
        }
    }

    /// Ends what has taken too long, or everything after a failure of the log.
    pub(super) fn expire(&mut self, now_ms: u64, failure: Option<&str>, effects: &mut VecDeque<Effect>) {
        let is_over = |open: &Open| failure.is_some() || now_ms >= open.deadline_ms;
        let over = self.open.iter().filter(|(_, open)| is_over(open)).map(|(number, _)| *number);
        for number in over.collect::<Vec<_>>() {
            let Some(open) = self.open.remove(&number) else { continue };
            let error = match failure {
                _ if open.handed_out > 0 => ProposalError::Unknown,
                Some(reason) => ProposalError::Failed(reason.to_owned()),
                None => ProposalError::NotProposed,
            };
            effects.push_back(Effect::Decided { number, result: Err(error) });
        }
    }
}

/// Whether the command may come twice, the second time late, without doing more than once.
fn is_repeatable(command: &Command) -> bool {
    match command {
        // Compare-and-swap on the epoch.
        Command::BeginEpoch { .. } | Command::ForcePrimary { .. } => true,
        // On how often they have been saved.
        Command::SaveReservations { expected_revision, .. } => expected_revision.is_some(),
        // They only grow, or are about a number that is never given again, or say what is so already.
        Command::RecordWatermarks { .. }
        | Command::VolumePurged { .. }
        | Command::CreateCluster { .. }
        | Command::AddNode { .. }
        | Command::RaiseFormat { .. } => true,
        _ => false,
    }
}

/// How long a proposal may take: an election, a lease, and some more.
const PATIENCE_MS: u64 = 10_000;
/// When a leader that has not taken it is asked again.
const RETRY_MS: u64 = 100;
const MOST_OPEN: usize = 1024;
