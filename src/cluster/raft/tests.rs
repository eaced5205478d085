//! Three members in one deterministic world: crashes, torn logs, lost logs, and a network that loses,
//! doubles, delays and reorders.
//!
//! Oracle: at every index all members give out the same entry, in order, each once; a snapshot stands for
//! exactly the entries before it; what a proposer saw committed is never lost; a barrier waits for all
//! that was committed before it. A run heals at its end and must then commit again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::log::{Identity, LogError, Medium, Recovered, recover};
use super::member::{Member, Timing};
use super::*;
use crate::cluster::mutant::{self, Mutant};
use crate::sim::mutant_search::{self as search, Found};

/// What a simulated medium holds: durable bytes, and those that a crash may take.
#[derive(Default)]
struct Contents {
    durable: Vec<u8>,
    unsynced: Vec<u8>,
    /// How much of what is durable is proven to have been: all but what came with the last sync.
    proven: usize,
}

#[derive(Clone, Default)]
struct SimulatedMedium(Rc<RefCell<Contents>>);

impl SimulatedMedium {
    /// Power is lost: of what was not synced, sectors may be there or not.
    fn crash(&self, random: &mut ChaCha8Rng) {
        let mut contents = self.0.borrow_mut();
        let mut kept = std::mem::take(&mut contents.unsynced);
        if random.random_ratio(1, 2) {
            kept.truncate(random.random_range(0..=kept.len()));
        }
        for sector in kept.chunks_mut(64) {
            if random.random_ratio(1, 6) {
                sector.fill(0);
            }
        }
        contents.durable.extend(kept);
    }

    fn damage(&self, random: &mut ChaCha8Rng) -> bool {
        let mut contents = self.0.borrow_mut();
        if contents.proven < 100 {
            return false;
        }
        let place = random.random_range(0..contents.proven);
        contents.durable[place] ^= 0x10;
        true
    }
}

impl Medium for SimulatedMedium {
    fn read(&mut self) -> Result<Vec<u8>, LogError> {
        let contents = self.0.borrow();
        Ok([contents.durable.as_slice(), &contents.unsynced].concat())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        self.0.borrow_mut().unsynced.extend(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        let contents = &mut *self.0.borrow_mut();
        if !contents.unsynced.is_empty() {
            contents.proven = contents.durable.len();
        }
        contents.durable.append(&mut contents.unsynced);
        Ok(())
    }

    fn replace(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        *self.0.borrow_mut() =
            Contents { durable: bytes.to_vec(), unsynced: Vec::new(), proven: bytes.len() };
        Ok(())
    }
}

/// A node or the witness, through all its lives.
#[derive(Default)]
struct Seat {
    medium: SimulatedMedium,
    member: Option<Member<SimulatedMedium>>,
    /// None from the loss of a log to the next life.
    id: Option<MemberId>,
    last_id: Option<MemberId>,
    applied_index: u64,
    state: u64,
    /// Proposals of this run whose outcome is open.
    proposed: BTreeSet<Place>,
    /// Barriers asked for, and the greatest index known committed then.
    barriers: BTreeMap<u64, u64>,
}

struct World {
    random: ChaCha8Rng,
    seats: [Seat; 3],
    seat_of: BTreeMap<MemberId, usize>,
    network: Vec<(usize, MemberId, Vec<u8>)>,
    cut: Option<usize>,
    /// What is committed at each index, and the state after it.
    chosen: BTreeMap<u64, (Place, Vec<u8>, u64)>,
    acknowledged: BTreeSet<Place>,
    next_number: u64,
    lost_lives: u32,
    sometimes: BTreeSet<&'static str>,
    trace: DefaultHasher,
}

const CLUSTER: [u8; 16] = [9; 16];
const SEATS: [&str; 3] = ["a", "b", "witness"];

fn timing(seat: usize) -> Timing {
    Timing { election_ticks: 10 + 4 * seat, heartbeat_ticks: 2 }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            seats: Default::default(),
            seat_of: BTreeMap::new(),
            network: Vec::new(),
            cut: None,
            chosen: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            next_number: 1,
            lost_lives: 0,
            sometimes: BTreeSet::new(),
            trace: DefaultHasher::new(),
        };
        let identity = world.begin_life(0);
        world.chosen.insert(1, (Place { index: 1, term: 1 }, Vec::new(), 0));
        let medium = world.seats[0].medium.clone();
        let founder = Member::found(medium, identity, SEATS[0], &0u64.to_le_bytes(), timing(0)).unwrap();
        world.seats[0].member = Some(founder);
        for seat in 1..3 {
            let identity = world.begin_life(seat);
            let medium = world.seats[seat].medium.clone();
            world.seats[seat].member = Some(Member::join(medium, identity, timing(seat)).unwrap());
        }
        world
    }

    fn begin_life(&mut self, seat: usize) -> Identity {
        let member = MemberId(self.random.random_range(1..u64::MAX));
        self.seats[seat].id = Some(member);
        self.seat_of.insert(member, seat);
        Identity { member, cluster: CLUSTER }
    }

    fn run(&mut self, steps: usize) -> Result<(), String> {
        for _ in 0..steps {
            self.step(false, false)?;
        }
        self.heal()
    }

    fn step(&mut self, is_healing: bool, is_quiet: bool) -> Result<(), String> {
        let seat = self.random.random_range(0..3);
        match self.random.random_range(0..100) {
            0..50 => self.deliver(is_healing)?,
            50..80 => self.with_member(seat, |member| member.handle_tick())?,
            80..90 if is_quiet => {}
            80..86 => self.propose(seat)?,
            86..88 => self.ask_barrier(seat)?,
            88..90 => self.compact(seat)?,
            90..95 => self.seat_strangers(seat)?,
            _ if is_healing => {}
            95 => self.crash(seat),
            96..98 => self.restart(seat)?,
            98 if self.random.random_ratio(1, 4) => {
                self.cut = self.random.random_ratio(1, 2).then_some(seat);
            }
            99 => self.lose_log(seat),
            _ => {}
        }
        Ok(())
    }

    /// Everything works again; what was promised must be there, and more must be possible.
    fn heal(&mut self) -> Result<(), String> {
        self.cut = None;
        for seat in 0..3 {
            self.restart(seat)?;
        }
        let before = self.chosen.keys().next_back().copied().unwrap_or(0);
        for round in 0..400 {
            for _ in 0..100 {
                self.step(true, round > 20)?;
            }
            let applied = self.seats.iter().map(|seat| seat.applied_index).min();
            let last = self.chosen.keys().next_back().copied();
            let all_seated = self.seats.iter().all(|seat| {
                let voters = seat.member.as_ref().map(Member::voters);
                voters.is_some_and(|voters| {
                    self.seats.iter().all(|other| other.id.is_some_and(|id| voters.contains_key(&id)))
                        && voters.len() == 3
                })
            });
            if round > 20 && all_seated && last > Some(before) && applied.is_some() && applied == last {
                let states: BTreeSet<u64> = self.seats.iter().map(|seat| seat.state).collect();
                return if states.len() == 1 { Ok(()) } else { Err("states differ".into()) };
            }
        }
        {
            let members = self.seats.iter().map(|seat| {
                let member = seat.member.as_ref();
                (seat.id, seat.applied_index, member.map(|m| (m.leadership(), m.voters().clone())))
            });
            let members: Vec<_> = members.collect();
            Err(format!("the members do not come together again: {members:?}"))
        }
    }

    fn with_member(
        &mut self,
        seat: usize,
        act: impl FnOnce(&mut Member<SimulatedMedium>) -> Result<(), ConsensusError>,
    ) -> Result<(), String> {
        let Some(member) = &mut self.seats[seat].member else { return Ok(()) };
        if let Err(ConsensusError::Failed(error)) = act(member) {
            return Err(format!("{} failed: {error}", SEATS[seat]));
        }
        self.take_effects(seat)
    }

    fn take_effects(&mut self, seat: usize) -> Result<(), String> {
        loop {
            let Some(effect) = self.seats[seat].member.as_mut().and_then(Member::poll_effect) else {
                return Ok(());
            };
            format!("{seat} {effect:?}").hash(&mut self.trace);
            match effect {
                Effect::Send { to, message } => self.network.push((seat, to, message)),
                Effect::Committed { place, entry } => self.committed(seat, place, entry)?,
                Effect::Restored { index, snapshot } => self.restored(seat, index, &snapshot)?,
                Effect::BarrierReached { token } => {
                    let least = self.seats[seat].barriers.remove(&token).unwrap_or(0);
                    if self.seats[seat].applied_index < least {
                        return Err(format!("barrier {token} reached before entry {least}"));
                    }
                    self.sometimes.insert("barrier reached");
                }
                Effect::LeadershipChanged(_) | Effect::VotersChanged(_) => {}
            }
        }
    }

    fn committed(&mut self, seat: usize, place: Place, entry: Vec<u8>) -> Result<(), String> {
        let own = &mut self.seats[seat];
        if place.index <= own.applied_index {
            return Err(format!("entry {} given out twice", place.index));
        }
        let before = own.state;
        let mut hasher = DefaultHasher::new();
        (before, &entry).hash(&mut hasher);
        (own.applied_index, own.state) = (place.index, hasher.finish());
        let state = own.state;
        let known = self.chosen.entry(place.index).or_insert((place, entry.clone(), state));
        if *known != (place, entry, state) {
            return Err(format!("{place:?} differs from what is committed there, {:?}", known.0));
        }
        if own.proposed.remove(&place) {
            self.acknowledged.insert(place);
        }
        Ok(())
    }

    fn restored(&mut self, seat: usize, index: u64, snapshot: &[u8]) -> Result<(), String> {
        let state = u64::from_le_bytes(snapshot.try_into().map_err(|_| "a snapshot has 8 bytes")?);
        let expected = self.chosen.range(..=index).next_back().map(|(_, (_, _, state))| *state);
        if expected != Some(state) {
            return Err(format!("the snapshot at {index} is not of the entries before it"));
        }
        let own = &mut self.seats[seat];
        if index > 1 && own.applied_index > 0 {
            self.sometimes.insert("caught up by a snapshot");
        }
        (own.applied_index, own.state) = (index, state);
        Ok(())
    }

    fn deliver(&mut self, is_healing: bool) -> Result<(), String> {
        if self.network.is_empty() {
            return Ok(());
        }
        let chosen = self.random.random_range(0..self.network.len());
        let (from, to, message) = if self.random.random_ratio(1, 20) {
            self.sometimes.insert("a message is doubled");
            self.network[chosen].clone()
        } else {
            self.network.swap_remove(chosen)
        };
        if self.network.len() > 300 {
            // A link carries so much and no more.
            self.network.drain(..100);
        }
        let Some(&seat) = self.seat_of.get(&to) else { return Ok(()) };
        let is_cut = self.cut.is_some_and(|cut| cut == seat || cut == from);
        let is_lost = !is_healing && self.random.random_ratio(1, 20);
        if is_cut || is_lost || self.seats[seat].member.is_none() {
            return Ok(());
        }
        self.with_member(seat, |member| member.handle_message(&message))
    }

    fn propose(&mut self, seat: usize) -> Result<(), String> {
        let number = self.next_number.to_le_bytes().to_vec();
        let Some(member) = &mut self.seats[seat].member else { return Ok(()) };
        if let Ok(place) = member.propose(number) {
            self.next_number += 1;
            self.seats[seat].proposed.insert(place);
        }
        self.take_effects(seat)
    }

    fn ask_barrier(&mut self, seat: usize) -> Result<(), String> {
        let committed = self.acknowledged.last().map_or(0, |place| place.index);
        let token = self.next_number;
        self.next_number += 1;
        self.seats[seat].barriers.insert(token, committed);
        self.with_member(seat, |member| member.read_barrier(token))
    }

    fn compact(&mut self, seat: usize) -> Result<(), String> {
        let state = self.seats[seat].state.to_le_bytes().to_vec();
        if self.seats[seat].member.as_ref().is_some_and(|member| member.log_length() > 6) {
            self.with_member(seat, |member| match member.compact(member.applied_index(), state) {
                Err(ConsensusError::Failed(error)) => Err(ConsensusError::Failed(error)),
                _ => Ok(()),
            })?;
        }
        Ok(())
    }

    /// A leader gives seats to members that wait, in the place of their earlier lives.
    fn seat_strangers(&mut self, seat: usize) -> Result<(), String> {
        let ids: Vec<_> = self.seats.iter().map(|seat| seat.id).collect();
        self.with_member(seat, |member| {
            for (other, id) in ids.into_iter().enumerate() {
                let Some(id) = id else { continue };
                if !member.voters().contains_key(&id) {
                    let mut voters = member.voters().iter();
                    let earlier = voters.find(|(_, name)| *name == SEATS[other]).map(|(id, _)| *id);
                    let _ = member.change_voters(Some((id, SEATS[other].to_owned())), earlier);
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    fn crash(&mut self, seat: usize) {
        if self.seats[seat].member.take().is_some() {
            self.seats[seat].medium.crash(&mut self.random);
            self.seats[seat].proposed.clear();
            self.seats[seat].barriers.clear();
            self.sometimes.insert("crash");
        }
    }

    /// A member that is down loses its log, or finds it damaged: only while the two others are whole voters.
    fn lose_log(&mut self, seat: usize) {
        let is_settled = self.seats.iter().flat_map(|seat| &seat.member).any(|member| {
            member.leadership().may_decide
                && !member.is_changing_voters()
                && member.voters().len() == 3
                && self.seats.iter().all(|seat| seat.id.is_some_and(|id| member.voters().contains_key(&id)))
        });
        let last = self.chosen.keys().next_back().copied().unwrap_or(0);
        let others_are_whole = (0..3)
            .filter(|other| *other != seat)
            .all(|other| self.seats[other].member.is_some() && self.seats[other].applied_index >= last);
        if !is_settled || !others_are_whole || self.seats[seat].member.is_some() || self.lost_lives > 2 {
            return;
        }
        let medium = self.seats[seat].medium.clone();
        if self.random.random_ratio(1, 2) {
            *medium.0.borrow_mut() = Contents::default();
            self.sometimes.insert("log lost");
        } else if !medium.damage(&mut self.random) {
            return;
        }
        self.lost_lives += 1;
        self.seats[seat].last_id = self.seats[seat].id.take();
    }

    fn restart(&mut self, seat: usize) -> Result<(), String> {
        if self.seats[seat].member.is_some() {
            return Ok(());
        }
        let medium = self.seats[seat].medium.clone();
        (self.seats[seat].applied_index, self.seats[seat].state) = (0, 0);
        let member = match recover(medium.clone()) {
            Ok(Recovered::Whole(log, image)) => {
                self.seats[seat].id = Some(image.identity.member);
                Member::open(log, image, timing(seat))
            }
            Ok(Recovered::Blank(medium)) => self.rejoin(seat, medium),
            Err(LogError::Damaged { .. } | LogError::NotALog | LogError::Newer(_)) => {
                self.sometimes.insert("damage found");
                self.rejoin(seat, medium)
            }
            Err(error) => return Err(format!("{error}")),
        };
        self.seats[seat].member = Some(member.map_err(|error| format!("{error:?}"))?);
        self.take_effects(seat)
    }

    /// Begins a new life: the log is gone.
    fn rejoin(
        &mut self,
        seat: usize,
        medium: SimulatedMedium,
    ) -> Result<Member<SimulatedMedium>, ConsensusError> {
        let old = self.seats[seat].last_id.filter(|_| mutant::is(Mutant::ReuseIdentity));
        let identity = match old {
            Some(member) => {
                self.seats[seat].id = Some(member);
                Identity { member, cluster: CLUSTER }
            }
            None => self.begin_life(seat),
        };
        Member::join(medium, identity, timing(seat))
    }
}

fn run_seed(seed: u64) -> Result<(u64, BTreeSet<&'static str>), String> {
    let mut world = World::new(seed);
    world.run(3000)?;
    Ok((world.trace.finish(), world.sometimes))
}

#[test]
fn random_worlds_keep_every_promise_and_replay_exactly() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(200);
    let mut sometimes = BTreeSet::new();
    for seed in 0..seeds {
        let (trace, met) = run_seed(seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        sometimes.extend(met);
        if seed % 10 == 0 {
            assert_eq!(run_seed(seed).unwrap().0, trace, "seed {seed} took another way");
        }
    }
    let expected = [
        "a message is doubled",
        "barrier reached",
        "caught up by a snapshot",
        "crash",
        "damage found",
        "log lost",
    ];
    assert_eq!(sometimes.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn every_seeded_bug_is_found() {
    let bugs = [
        Mutant::CutAtDamage,
        Mutant::MessagesBeforeSync,
        Mutant::VoteNotStored,
        Mutant::ChecksumIgnored,
        Mutant::KeepConflictingEntries,
        Mutant::ReuseIdentity,
        Mutant::BarrierAtOnce,
    ];
    let run = |seed| run_seed(seed).map(drop);
    search::all_are_found("raft", &bugs, |bug| {
        Found::by_seed(0..=2000, |seed| mutant::with(bug, || run(seed)), run)
    });
}

/// A log of a founder with a few entries, and where each of its records begins.
fn small_log() -> (Vec<u8>, SimulatedMedium) {
    let medium = SimulatedMedium::default();
    let identity = Identity { member: MemberId(7), cluster: CLUSTER };
    let mut member = Member::found(medium.clone(), identity, "a", b"state 00", timing(0)).unwrap();
    for number in 0..30u8 {
        member.handle_tick().unwrap();
        if number > 15 {
            member.propose(vec![number; 20]).unwrap();
        }
    }
    member.handle_tick().unwrap();
    assert!(member.leadership().may_decide);
    let mut reader = medium.clone();
    (reader.read().unwrap(), medium)
}

fn recovered(bytes: &[u8]) -> Result<Recovered<SimulatedMedium>, LogError> {
    let medium = SimulatedMedium::default();
    medium.0.borrow_mut().durable = bytes.to_vec();
    recover(medium)
}

#[test]
fn a_log_cut_anywhere_is_whole_up_to_there_or_refused() {
    let (bytes, _) = small_log();
    let Ok(Recovered::Whole(_, whole)) = recovered(&bytes) else { panic!("the log is whole") };
    let mut accepted = 0;
    for length in 1..bytes.len() {
        match recovered(&bytes[..length]) {
            Ok(Recovered::Whole(_, image)) => {
                assert!(whole.entries.starts_with(&image.entries));
                accepted += 1;
            }
            Ok(Recovered::Blank(_)) => panic!("{length} bytes are not blank"),
            // Header, snapshot and first vote are written as a whole: a part of them is no torn end.
            Err(LogError::NotALog | LogError::Damaged { .. }) => assert_eq!(accepted, 0),
            Err(error) => panic!("{length}: {error}"),
        }
    }
    assert!(accepted > 500);
}

#[test]
fn damage_before_the_last_record_is_never_taken_for_a_torn_end() {
    let (bytes, _) = small_log();
    // The last record is the seal, which covers everything else.
    for place in 0..bytes.len() - 25 {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        let result = recovered(&damaged);
        assert!(result.is_err(), "damage at byte {place} of {} was not noticed", bytes.len());
    }
}

#[test]
fn a_log_of_another_life_or_version_is_refused() {
    let (bytes, _) = small_log();
    let mut newer = bytes.clone();
    newer[8] = 9;
    assert!(matches!(recovered(&newer), Err(LogError::Newer(9))));
    assert!(matches!(
        recovered(b"something else, and long enough to hold a header if it were one"),
        Err(LogError::NotALog)
    ));
    assert!(matches!(recovered(b""), Ok(Recovered::Blank(_))));
    // Records of another member behind this one's are not its own.
    let other = SimulatedMedium::default();
    let identity = Identity { member: MemberId(8), cluster: CLUSTER };
    Member::found(other.clone(), identity, "a", b"state 00", timing(0)).unwrap();
    let foreign = other.clone().read().unwrap();
    let mixed = [bytes.as_slice(), &foreign[56..]].concat();
    let Ok(Recovered::Whole(_, image)) = recovered(&mixed) else { panic!("a torn end") };
    let Ok(Recovered::Whole(_, whole)) = recovered(&bytes) else { panic!("the log is whole") };
    assert_eq!(image, whole);
}

#[test]
fn no_bytes_of_the_network_do_harm() {
    let (_, medium) = small_log();
    let Ok(Recovered::Whole(log, image)) = recover(medium) else { panic!("the log is whole") };
    let mut member = Member::open(log, image, timing(0)).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..20_000 {
        let length = random.random_range(0..200);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        assert!(!matches!(member.handle_message(&bytes), Err(ConsensusError::Failed(_))));
    }
}

#[test]
fn messages_survive_their_encoding_and_are_refused_when_cut() {
    let mut world = World::new(5);
    world.run(500).unwrap();
    let messages: Vec<Vec<u8>> = world.network.into_iter().map(|(_, _, message)| message).collect();
    assert!(!messages.is_empty());
    for bytes in messages {
        let message = wire::decode_message(&bytes).unwrap();
        assert_eq!(wire::encode_message(&message), bytes);
        for length in 0..bytes.len() {
            assert!(wire::decode_message(&bytes[..length]).is_err());
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(wire::decode_message(&longer), Err(wire::WireError::Trailing));
    }
}
