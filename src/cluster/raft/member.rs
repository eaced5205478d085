//! A member of the consensus: the `raft` crate's state machine, its log, and nothing else.
//!
//! Guarantees: votes and entries are on stable media before a message that promises them is given out.
//! Elections have fixed time-outs, distinct by seat, so that equal inputs give equal runs. A member whose
//! log fails, or turns out to lack what it had acknowledged, stops at once and for good.

use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message,
    MessageType, Snapshot,
};
use raft::{Config, RawNode, SnapshotStatus, SoftState, StateRole};

use super::log::{Identity, Image, Log, LogError, Medium};
use super::wire::{self, WireError};
use super::{Consensus, ConsensusError, Effect, Leadership, MOST_ENTRY_BYTES, MemberId, Place, Voters};
use crate::base::codec::{Reader, Writer};
use crate::cluster::mutant::{self, Mutant};

/// How long things take, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Ticks without a leader after which this member asks for votes. Distinct for each seat.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
}

/// A voter, or one that waits to become one.
pub struct Member<M: Medium> {
    identity: Identity,
    log: Log<M>,
    node: RawNode<Image>,
    /// Voters by the entries applied so far.
    voters: Voters,
    members: ConfState,
    applied: Place,
    leadership: Leadership,
    /// Index that has to be given out before each barrier.
    barriers: Vec<(u64, u64)>,
    /// Ticks since a snapshot was sent to a member; nothing else is sent to it until it has it.
    snapshots_sent: BTreeMap<u64, usize>,
    patience_ticks: usize,
    effects: VecDeque<Effect>,
    failure: Option<LogError>,
}

impl<M: Medium> Member<M> {
    /// Founds a cluster whose only voter this is, with a first snapshot of the state machine.
    ///
    /// # Errors
    /// [`ConsensusError::Failed`].
    pub fn found(
        medium: M,
        identity: Identity,
        seat: &str,
        state: &[u8],
        timing: Timing,
    ) -> Result<Self, ConsensusError> {
        let mut image = Image::empty(identity);
        let voters = Voters::from([(identity.member, seat.to_owned())]);
        let metadata = image.snapshot.mut_metadata();
        (metadata.index, metadata.term) = (1, 1);
        metadata.mut_conf_state().set_voters(vec![identity.member.0]);
        image.snapshot.data = encode_state(&voters, state).into();
        (image.hard_state.term, image.hard_state.commit) = (1, 1);
        let log = Log::create(medium, &image).map_err(ConsensusError::Failed)?;
        Self::open(log, image, timing)
    }

    /// Begins a life in which the others still have to accept this member as a voter.
    ///
    /// # Errors
    /// [`ConsensusError::Failed`].
    pub fn join(medium: M, identity: Identity, timing: Timing) -> Result<Self, ConsensusError> {
        let image = Image::empty(identity);
        let log = Log::create(medium, &image).map_err(ConsensusError::Failed)?;
        Self::open(log, image, timing)
    }

    /// Goes on with a whole log, as [`super::log::recover`] gave it.
    ///
    /// # Errors
    /// [`ConsensusError::Failed`].
    pub fn open(log: Log<M>, image: Image, timing: Timing) -> Result<Self, ConsensusError> {
        let identity = image.identity;
        let (snapshot, term) = (image.snapshot.clone(), image.hard_state.term);
        let metadata = snapshot.get_metadata();
        let config = Config {
            id: identity.member.0,
            election_tick: timing.election_ticks,
            heartbeat_tick: timing.heartbeat_ticks,
            min_election_tick: timing.election_ticks,
            max_election_tick: timing.election_ticks + 1,
            applied: metadata.index,
            max_size_per_msg: 64 << 10,
            max_inflight_msgs: 64,
            max_uncommitted_size: 2 * MOST_ENTRY_BYTES as u64,
            max_committed_size_per_ready: MOST_ENTRY_BYTES as u64,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let broken = |_| ConsensusError::Failed(LogError::Contradiction(0));
        let node = RawNode::new(&config, image, &logger).map_err(broken)?;
        let mut member = Self {
            identity,
            log,
            node,
            voters: Voters::new(),
            members: metadata.get_conf_state().clone(),
            applied: Place { index: metadata.index, term: metadata.term },
            leadership: Leadership { term, leader: None, may_decide: false },
            barriers: Vec::new(),
            snapshots_sent: BTreeMap::new(),
            patience_ticks: 2 * timing.election_ticks,
            effects: VecDeque::new(),
            failure: None,
        };
        if metadata.index > 0 {
            member.restore(&snapshot)?;
        }
        member.pump()?;
        Ok(member)
    }

    /// Who this is in its present life.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The voters, by what has been applied.
    #[must_use]
    pub fn voters(&self) -> &Voters {
        &self.voters
    }

    /// Whether a change of voters has begun and not ended: losing another log now may lose the majority.
    #[must_use]
    pub fn is_changing_voters(&self) -> bool {
        self.node.raft.has_pending_conf() || !self.members.voters_outgoing.is_empty()
    }

    /// Index of the last entry given out.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.applied.index
    }

    /// Entries that a snapshot would make superfluous.
    #[must_use]
    pub fn log_length(&self) -> usize {
        self.node.store().entries.len()
    }

    /// Persists, then gives out, all that the `raft` crate has ready.
    fn pump(&mut self) -> Result<(), ConsensusError> {
        match self.try_pump() {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    fn try_pump(&mut self) -> Result<(), LogError> {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            self.persist(ready.snapshot(), ready.entries(), ready.hs(), ready.must_sync())?;
            let mut messages = ready.take_messages();
            messages.extend(ready.take_persisted_messages());
            self.send(messages);
            if !ready.snapshot().is_empty() {
                let snapshot = ready.snapshot().clone();
                self.restore(&snapshot).map_err(|_| LogError::Contradiction(0))?;
            }
            for read in ready.take_read_states() {
                if let Ok(token) = read.request_ctx.as_slice().try_into().map(u64::from_le_bytes) {
                    self.barriers.push((read.index, token));
                }
            }
            if mutant::is(Mutant::BarrierAtOnce) {
                self.reach_barriers();
            }
            self.apply(ready.take_committed_entries())?;
            let mut light = self.node.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.node.mut_store().hard_state.commit = commit;
            }
            self.send(light.take_messages());
            self.apply(light.take_committed_entries())?;
            self.node.advance_apply();
            self.reach_barriers();
        }
        self.notice_leadership();
        Ok(())
    }

    fn persist(
        &mut self,
        snapshot: &Snapshot,
        entries: &[Entry],
        hard_state: Option<&HardState>,
        must_sync: bool,
    ) -> Result<(), LogError> {
        let image = self.node.mut_store();
        if let Some(hard_state) = hard_state {
            image.hard_state = hard_state.clone();
        }
        let contradiction = |_| LogError::Contradiction(0);
        if !snapshot.is_empty() {
            image.start_from(snapshot.clone());
            image.add(entries).map_err(contradiction)?;
            return self.log.rewrite(image);
        }
        image.add(entries).map_err(contradiction)?;
        let hard_state = hard_state.filter(|_| !mutant::is(Mutant::VoteNotStored));
        if entries.is_empty() && hard_state.is_none() {
            return Ok(());
        }
        self.log.append(entries, hard_state)?;
        if must_sync && !mutant::is(Mutant::MessagesBeforeSync) { self.log.sync() } else { Ok(()) }
    }

    fn send(&mut self, messages: Vec<Message>) {
        let snapshots = messages.iter().filter(|message| message.get_msg_type() == MessageType::MsgSnapshot);
        self.snapshots_sent.extend(snapshots.map(|message| (message.to, 0)));
        let sends = messages.into_iter().map(|message| Effect::Send {
            to: wire::receiver(&message),
            message: wire::encode_message(&message),
        });
        self.effects.extend(sends);
    }

    /// A snapshot that is not answered in time was lost, as any message may be: it is sent again.
    fn give_up_snapshots(&mut self) {
        self.snapshots_sent.values_mut().for_each(|ticks| *ticks += 1);
        let patience = self.patience_ticks;
        let node = &mut self.node;
        self.snapshots_sent.retain(|member, ticks| {
            let is_lost = *ticks > patience;
            if is_lost {
                node.report_snapshot(*member, SnapshotStatus::Failure);
            }
            !is_lost
        });
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), LogError> {
        for entry in entries {
            self.applied = Place { index: entry.index, term: entry.term };
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {}
                EntryType::EntryNormal => {
                    let effect = Effect::Committed { place: self.applied, entry: entry.data.to_vec() };
                    self.effects.push_back(effect);
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => self.apply_change(&entry)?,
            }
        }
        Ok(())
    }

    fn apply_change(&mut self, entry: &Entry) -> Result<(), LogError> {
        let damaged = LogError::Contradiction(entry.index);
        let change = Change::decode(&entry.context).map_err(|_| damaged.clone())?;
        self.members = self.node.apply_conf_change(&change.as_raft()).map_err(|_| damaged)?;
        if let Some(removed) = change.remove {
            self.voters.remove(&removed);
        }
        self.voters.extend(change.add);
        self.effects.push_back(Effect::VotersChanged(self.voters.clone()));
        Ok(())
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), ConsensusError> {
        let metadata = snapshot.get_metadata();
        let (voters, state) = decode_state(&snapshot.data)?;
        self.voters = voters;
        self.members = metadata.get_conf_state().clone();
        self.applied = Place { index: metadata.index, term: metadata.term };
        self.effects.push_back(Effect::Restored { index: metadata.index, snapshot: state });
        self.effects.push_back(Effect::VotersChanged(self.voters.clone()));
        Ok(())
    }

    /// Gives out the barriers whose entries have all been given out.
    fn reach_barriers(&mut self) {
        let applied = self.applied.index;
        let is_reached = |index: u64| index <= applied || mutant::is(Mutant::BarrierAtOnce);
        let reached = self.barriers.extract_if(.., |(index, _)| is_reached(*index));
        self.effects.extend(reached.map(|(_, token)| Effect::BarrierReached { token }));
    }

    fn notice_leadership(&mut self) {
        let SoftState { leader_id, raft_state } = self.node.raft.soft_state();
        let term = self.node.raft.term;
        let leadership = Leadership {
            term,
            leader: (leader_id != 0).then_some(MemberId(leader_id)),
            may_decide: raft_state == StateRole::Leader && self.applied.term == term,
        };
        if leadership != self.leadership {
            self.leadership = leadership;
            self.effects.push_back(Effect::LeadershipChanged(leadership));
        }
    }

    /// Whether the leader's message shows that this log lacks what it had acknowledged.
    fn lost_entries(&self, message: &Message) -> Option<LogError> {
        if message.term < self.node.raft.term {
            return None;
        }
        let log = &self.node.raft.raft_log;
        let has = log.last_index();
        let acknowledged = match message.get_msg_type() {
            // A leader says in a heartbeat only what this member has told it to have.
            MessageType::MsgHeartbeat if message.commit > has => message.commit,
            // Committed entries are the same everywhere; ours were never chosen by a majority.
            MessageType::MsgAppend => {
                let differs = |entry: &&Entry| {
                    let is_here = (log.first_index()..=log.committed).contains(&entry.index);
                    is_here && log.term(entry.index).is_ok_and(|term| term != entry.term)
                };
                message.entries.iter().find(differs)?.index
            }
            _ => return None,
        };
        Some(LogError::LostEntries { has, acknowledged })
    }

    fn check_leader(&self) -> Result<(), ConsensusError> {
        if self.node.raft.state == StateRole::Leader {
            return Ok(());
        }
        let leader = self.node.raft.leader_id;
        Err(ConsensusError::NotLeader { leader: (leader != 0).then_some(MemberId(leader)) })
    }

    fn check_alive(&self) -> Result<(), ConsensusError> {
        self.failure.clone().map_or(Ok(()), |failure| Err(ConsensusError::Failed(failure)))
    }

    fn fail(&mut self, error: LogError) -> ConsensusError {
        self.effects.clear();
        self.failure = Some(error.clone());
        ConsensusError::Failed(error)
    }

    fn last_place(&self) -> Place {
        Place { index: self.node.raft.raft_log.last_index(), term: self.node.raft.term }
    }
}

impl<M: Medium> Consensus for Member<M> {
    fn handle_tick(&mut self) -> Result<(), ConsensusError> {
        self.check_alive()?;
        if let Err(error) = self.log.seal() {
            return Err(self.fail(error));
        }
        self.node.tick();
        self.give_up_snapshots();
        self.pump()
    }

    fn handle_message(&mut self, message: &[u8]) -> Result<(), ConsensusError> {
        self.check_alive()?;
        let message = wire::decode_message(message)?;
        // For another life of this member: its log, and its promises, are not ours.
        if message.to != self.identity.member.0 {
            return Ok(());
        }
        if let Some(error) = self.lost_entries(&message) {
            return Err(self.fail(error));
        }
        // An error here is a message that came too late to matter.
        let _ = self.node.step(message);
        self.pump()
    }

    fn propose(&mut self, entry: Vec<u8>) -> Result<Place, ConsensusError> {
        self.check_alive()?;
        self.check_leader()?;
        if entry.len() > MOST_ENTRY_BYTES || entry.is_empty() {
            let (size_bytes, limit_bytes) = (entry.len(), MOST_ENTRY_BYTES);
            return Err(ConsensusError::TooLarge { size_bytes, limit_bytes });
        }
        self.node.propose(Vec::new(), entry).map_err(|_| ConsensusError::Busy)?;
        let place = self.last_place();
        self.pump()?;
        Ok(place)
    }

    fn read_barrier(&mut self, token: u64) -> Result<(), ConsensusError> {
        self.check_alive()?;
        self.node.read_index(token.to_le_bytes().to_vec());
        self.pump()
    }

    fn change_voters(
        &mut self,
        add: Option<(MemberId, String)>,
        remove: Option<MemberId>,
    ) -> Result<Place, ConsensusError> {
        self.check_alive()?;
        self.check_leader()?;
        let mut after = self.voters.clone();
        let removed = remove.map(|id| after.remove(&id));
        let is_added = add.as_ref().is_none_or(|(id, seat)| {
            !after.contains_key(id) && Some(*id) != remove && after.values().all(|other| other != seat)
        });
        after.extend(add.clone());
        let is_change = add.is_some() || remove.is_some();
        if removed == Some(None) || !is_added || after.is_empty() || !is_change {
            return Err(ConsensusError::BadChange);
        }
        if self.is_changing_voters() {
            return Err(ConsensusError::Busy);
        }
        let change = Change { add, remove };
        let proposed = self.node.propose_conf_change(change.encode(), change.as_raft());
        proposed.map_err(|_| ConsensusError::Busy)?;
        let place = self.last_place();
        self.pump()?;
        Ok(place)
    }

    fn transfer_leadership(&mut self, to: MemberId) {
        if self.failure.is_none() && self.check_leader().is_ok() {
            self.node.transfer_leader(to.0);
        }
    }

    fn compact(&mut self, applied_index: u64, snapshot: Vec<u8>) -> Result<(), ConsensusError> {
        self.check_alive()?;
        // Voters and members below are those of everything applied, so the snapshot has to be so too.
        if applied_index != self.applied.index || !self.members.voters_outgoing.is_empty() {
            return Err(ConsensusError::Busy);
        }
        if applied_index < self.node.store().first_index() {
            return Ok(());
        }
        let mut whole = Snapshot::default();
        let metadata = whole.mut_metadata();
        (metadata.index, metadata.term) = (self.applied.index, self.applied.term);
        metadata.set_conf_state(self.members.clone());
        whole.data = encode_state(&self.voters, &snapshot).into();
        let image = self.node.mut_store();
        image.start_from(whole);
        let written = self.log.rewrite(image);
        written.map_err(|error| self.fail(error))
    }

    fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn leadership(&self) -> Leadership {
        self.leadership
    }
}

/// A change of voters as it stands in an entry's context.
struct Change {
    add: Option<(MemberId, String)>,
    remove: Option<MemberId>,
}

impl Change {
    fn as_raft(&self) -> ConfChangeV2 {
        let single = |member: MemberId, kind| {
            let mut single = ConfChangeSingle { node_id: member.0, ..ConfChangeSingle::default() };
            single.set_change_type(kind);
            single
        };
        let added = self.add.iter().map(|(member, _)| single(*member, ConfChangeType::AddNode));
        let removed = self.remove.iter().map(|member| single(*member, ConfChangeType::RemoveNode));
        let mut change = ConfChangeV2::default();
        change.set_changes(added.chain(removed).collect::<Vec<_>>().into());
        change
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_u64(self.remove.map_or(0, |member| member.0));
        let (member, seat) = self.add.as_ref().map_or((0, ""), |(member, seat)| (member.0, seat));
        bytes.put_u64(member);
        wire::put_bytes(&mut bytes, seat.as_bytes());
        bytes
    }

    /// An empty context ends a joint configuration.
    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.is_empty() {
            return Ok(Self { add: None, remove: None });
        }
        let mut reader = Reader::new(bytes);
        let member = |number: u64| (number != 0).then_some(MemberId(number));
        let (remove, add) = (member(reader.u64()?), member(reader.u64()?));
        let seat = take_text(&mut reader)?;
        Ok(Self { add: add.map(|member| (member, seat)), remove })
    }
}

fn encode_state(voters: &Voters, state: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(state.len() + 64);
    bytes.put_u32(voters.len() as u32);
    for (member, seat) in voters {
        bytes.put_u64(member.0);
        wire::put_bytes(&mut bytes, seat.as_bytes());
    }
    bytes.put(state);
    bytes
}

fn decode_state(bytes: &[u8]) -> Result<(Voters, Vec<u8>), WireError> {
    let mut reader = Reader::new(bytes);
    let mut voters = Voters::new();
    let count = reader.u32()?;
    for _ in 0..count {
        voters.insert(MemberId(reader.u64()?), take_text(&mut reader)?);
    }
    let rest = reader.remaining();
    Ok((voters, reader.bytes(rest)?.to_vec()))
}

fn take_text(reader: &mut Reader<'_>) -> Result<String, WireError> {
    String::from_utf8(wire::take_bytes(reader)?).map_err(|_| WireError::Value)
}
