//! Three members in one world: crashes, lost and late messages, changes of leader under forwarded proposals.
//!
//! Oracle: states with the same index are equal; what was decided is in the state; what may come only once came
//! at most once, and a proposal that is said to have come to nothing came to nothing; when a primary has been
//! deposed it holds no lease for any state in which it does not know.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::base::units::VolumeId;
use crate::cluster::mutant::{self, Mutant};
use crate::cluster::raft::log::{Identity, LogError, Recovered, recover};
use crate::cluster::raft::member::Timing;
use crate::cluster::state::format::NEWEST_FORMAT;
use crate::cluster::state::volume::{Redundancy, SectorSize, Transition};
use crate::cluster::state::{ClusterUuid, Settings};
use crate::sim::mutant_search::{self as search, Found};

#[derive(Clone, Default)]
struct MemoryMedium(Rc<RefCell<(Vec<u8>, usize)>>);

impl MemoryMedium {
    fn crash(&self) {
        let (bytes, synced) = &mut *self.0.borrow_mut();
        bytes.truncate(*synced);
    }
}

impl Medium for MemoryMedium {
    fn read(&mut self) -> Result<Vec<u8>, LogError> {
        Ok(self.0.borrow().0.clone())
    }
    fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        self.0.borrow_mut().0.extend(bytes);
        Ok(())
    }
    fn sync(&mut self) -> Result<(), LogError> {
        let (bytes, synced) = &mut *self.0.borrow_mut();
        *synced = bytes.len();
        Ok(())
    }
    fn replace(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        *self.0.borrow_mut() = (bytes.to_vec(), bytes.len());
        Ok(())
    }
}

#[derive(Default)]
struct Seat {
    medium: MemoryMedium,
    quorum: Option<Quorum<MemoryMedium>>,
    lease: Lease,
    decided: BTreeMap<u64, Result<Outcome, ProposalError>>,
}

struct World {
    random: ChaCha8Rng,
    now_ms: u64,
    seats: [Seat; 3],
    network: Vec<(usize, usize, Message)>,
    links: BTreeSet<(usize, usize)>,
    lossy: bool,
    next_life: u64,
    /// The newest format that the program of each knows.
    formats: [u32; 3],
    /// State by index, encoded.
    states: BTreeMap<u64, Vec<u8>>,
}

const NAMES: [&str; 3] = ["a", "b", "w"];
const TICK_MS: u64 = 100;

fn name(seat: usize) -> NodeName {
    NAMES[seat].parse().unwrap()
}

fn timing(seat: usize) -> Timing {
    Timing { election_ticks: 10 + 3 * seat, heartbeat_ticks: 2 }
}

fn founding_state(format: u32) -> ControlState {
    let uuid = ClusterUuid([7; 16]);
    let create = Command::CreateCluster { name: "demo".parse().unwrap(), uuid, created_unix_ms: 1 };
    ControlState::in_format(format).beginning_with([create]).unwrap()
}

/// A command of the newest format.
fn newest_command(percent: u8) -> Command {
    Command::ChangeSettings {
        settings: Settings { space_error_percent: Some(percent), ..Settings::default() },
    }
}

fn create(volume: &str, primary: &str) -> Command {
    Command::CreateVolume {
        name: volume.parse().unwrap(),
        size_bytes: 1 << 30,
        sector: SectorSize::Emulated512,
        redundancy: Redundancy::Mirrored,
        primary: primary.parse().unwrap(),
        created_unix_ms: 2,
    }
}

fn begin(transition: Transition, expected_epoch: u32, primary: &str, in_sync: &[&str]) -> Command {
    Command::BeginEpoch {
        volume: VolumeId(1),
        expected_epoch,
        transition,
        primary: primary.parse().unwrap(),
        in_sync: in_sync.iter().map(|node| node.parse().unwrap()).collect(),
        first_sequence: 1,
        reason: String::new(),
    }
}

impl World {
    /// Founded by a, joined by the others, settled.
    fn new(seed: u64) -> Self {
        Self::of_format(seed, NEWEST_FORMAT)
    }

    /// The same, of programs that know no newer format than this.
    fn of_format(seed: u64, format: u32) -> Self {
        let mut world = Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            now_ms: 1000,
            seats: Default::default(),
            network: Vec::new(),
            links: BTreeSet::new(),
            lossy: false,
            next_life: 1,
            formats: [format; 3],
            states: BTreeMap::new(),
        };
        for seat in 0..3 {
            let identity = Identity { member: MemberId(11 + seat as u64), cluster: [7; 16] };
            let medium = world.seats[seat].medium.clone();
            let member = if seat == 0 {
                Member::found(medium, identity, "a", &founding_state(format).encode(), timing(0))
            } else {
                Member::join(medium, identity, timing(seat))
            };
            world.run_member(seat, member.unwrap());
        }
        world.wait("all are seated", |world| {
            (0..3).all(|seat| world.view(seat).voters.len() == 3 && world.view(seat).is_voter())
                && world.state(0).nodes().count() == 2
                && world.state(0).witness().is_some()
        });
        world
    }

    fn run_member(&mut self, seat: usize, member: Member<MemoryMedium>) {
        let kind = if seat == 2 { SeatKind::Witness } else { SeatKind::Node };
        let (life, newest_format) = (self.next_life, self.formats[seat]);
        let setup = Setup { name: name(seat), kind, life, terms: LeaseTerms::LAN, newest_format };
        self.next_life += 1;
        let own = &mut self.seats[seat];
        (own.lease, own.decided) = (Lease::default(), BTreeMap::new());
        own.quorum = Some(Quorum::new(member, setup, self.now_ms));
        for other in 0..3 {
            if other != seat && self.seats[other].quorum.is_some() {
                self.link(seat, other);
            }
        }
        self.take_effects(seat);
    }

    fn link(&mut self, one: usize, other: usize) {
        self.links.insert((one.min(other), one.max(other)));
        for (near, far) in [(one, other), (other, one)] {
            let kind = if far == 2 { SeatKind::Witness } else { SeatKind::Node };
            let member = self.seats[far].quorum.as_ref().unwrap().own();
            let near = self.seats[near].quorum.as_mut().unwrap();
            let newest_format = self.formats[far];
            near.handle_peer(name(far), Some(PeerInfo { member, kind, newest_format }));
        }
    }

    /// What is on the way is lost with the link.
    fn unlink(&mut self, one: usize, other: usize) {
        self.links.remove(&(one.min(other), one.max(other)));
        self.network.retain(|(from, to, _)| (*from, *to) != (one, other) && (*to, *from) != (one, other));
        for (near, far) in [(one, other), (other, one)] {
            if let Some(near) = self.seats[near].quorum.as_mut() {
                near.handle_peer(name(far), None);
            }
        }
    }

    fn crash(&mut self, seat: usize) {
        for other in 0..3 {
            if other != seat {
                self.unlink(seat, other);
            }
        }
        self.seats[seat].quorum = None;
        self.seats[seat].medium.crash();
    }

    fn restart(&mut self, seat: usize) {
        let Recovered::Whole(log, image) = recover(self.seats[seat].medium.clone()).unwrap() else {
            panic!("the log is gone")
        };
        self.run_member(seat, Member::open(log, image, timing(seat)).unwrap());
    }

    fn restart_blank(&mut self, seat: usize, member: u64) {
        self.seats[seat].medium = MemoryMedium::default();
        let identity = Identity { member: MemberId(member), cluster: [7; 16] };
        let joined = Member::join(self.seats[seat].medium.clone(), identity, timing(seat)).unwrap();
        self.run_member(seat, joined);
    }

    fn view(&self, seat: usize) -> View {
        self.seats[seat].quorum.as_ref().unwrap().view()
    }

    fn state(&self, seat: usize) -> &ControlState {
        self.seats[seat].quorum.as_ref().unwrap().state()
    }

    fn take_effects(&mut self, seat: usize) {
        while let Some(effect) = self.seats[seat].quorum.as_mut().and_then(Quorum::poll_effect) {
            match effect {
                Effect::Send { to, message } => {
                    let to = NAMES.iter().position(|other| *other == to.as_str()).unwrap();
                    self.network.push((seat, to, message));
                }
                Effect::StateChanged(state) => {
                    let encoded = state.encode();
                    let known = self.states.entry(state.applied_index()).or_insert(encoded.clone());
                    assert_eq!(*known, encoded, "{} has another state", NAMES[seat]);
                    self.check_deposed(&state);
                }
                Effect::LeaseChanged(lease) => self.seats[seat].lease = lease,
                Effect::Decided { number, result } => {
                    let shown = self.states.keys().next_back().copied().unwrap_or(0);
                    assert!(shown >= self.state(seat).applied_index(), "decided before the state is shown");
                    assert!(self.seats[seat].decided.insert(number, result).is_none(), "decided twice");
                }
            }
        }
    }

    /// I5: whoever is not the primary in this committed state does not hold a lease for an older one.
    fn check_deposed(&self, state: &ControlState) {
        for record in state.volumes().filter(|record| record.began_by == Some(Transition::TakeOver)) {
            for seat in (0..2).filter(|seat| NAMES[*seat] != record.primary.as_str()) {
                let Some(quorum) = &self.seats[seat].quorum else { continue };
                let known = quorum.state().applied_index();
                let does_not_know =
                    quorum.state().volume_by_id(record.id).is_some_and(|own| own.epoch < record.epoch);
                let lease = self.seats[seat].lease;
                assert!(
                    !(does_not_know && lease.is_held(self.now_ms, known)),
                    "{} was deposed and holds {lease:?} at {} ms",
                    NAMES[seat],
                    self.now_ms
                );
            }
        }
    }

    fn step(&mut self) {
        self.now_ms += TICK_MS / 4;
        if self.now_ms.is_multiple_of(TICK_MS) {
            for seat in 0..3 {
                if let Some(quorum) = &mut self.seats[seat].quorum {
                    quorum.handle_tick(self.now_ms);
                    self.take_effects(seat);
                }
            }
        }
        // Links keep the order of each direction; what is under way between different ones is mixed.
        let mut delayed = Vec::new();
        for _ in 0..200 {
            if self.network.is_empty() {
                break;
            }
            let at = self.random.random_range(0..self.network.len());
            let (from, to, _) = self.network[at];
            let first = self.network.iter().position(|other| (other.0, other.1) == (from, to)).unwrap();
            let (from, to, message) = self.network.remove(first);
            let is_linked = self.links.contains(&(from.min(to), from.max(to)));
            if !is_linked || (self.lossy && self.random.random_ratio(1, 8)) {
                continue;
            }
            if self.lossy && self.random.random_ratio(1, 10) {
                delayed.push((from, to, message));
                continue;
            }
            if let Some(quorum) = &mut self.seats[to].quorum {
                let message = Message::decode(&message.encode()).unwrap();
                quorum.handle_message(self.now_ms, &name(from), message).unwrap();
                self.take_effects(to);
                for state in (0..3).filter_map(|seat| self.seats[seat].quorum.as_ref()) {
                    self.check_deposed(state.state());
                }
            }
        }
        self.network.extend(delayed);
    }

    fn wait(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> u64 {
        let started_ms = self.now_ms;
        while !condition(self) {
            let views = || {
                (0..3).filter(|s| self.seats[*s].quorum.is_some()).map(|s| self.view(s)).collect::<Vec<_>>()
            };
            assert!(self.now_ms < started_ms + 60_000, "waited in vain until {what}: {:#?}", views());
            self.step();
        }
        self.now_ms - started_ms
    }

    fn propose(&mut self, seat: usize, command: &Command) -> u64 {
        let now_ms = self.now_ms;
        let number = self.seats[seat].quorum.as_mut().unwrap().propose(now_ms, command);
        self.take_effects(seat);
        number
    }

    fn decide(&mut self, seat: usize, command: &Command) -> Result<Outcome, ProposalError> {
        let number = self.propose(seat, command);
        self.wait("it is decided", |world| world.seats[seat].decided.contains_key(&number));
        self.seats[seat].decided[&number].clone()
    }

    fn leader(&self) -> Option<usize> {
        (0..3)
            .find(|seat| self.seats[*seat].quorum.as_ref().is_some_and(|quorum| quorum.leadership.may_decide))
    }

    fn holds(&self, seat: usize) -> bool {
        self.seats[seat].lease.is_held(self.now_ms, self.state(seat).applied_index())
    }
}

#[test]
fn commands_of_each_member_are_decided_the_same_everywhere() {
    let mut world = World::new(1);
    let leader = world.leader().unwrap();
    for seat in 0..3 {
        let volume = format!("v{seat}");
        assert!(matches!(world.decide(seat, &create(&volume, "a")), Ok(Outcome::VolumeCreated { .. })));
        let again = world.decide((seat + 1) % 3, &create(&volume, "a"));
        assert!(matches!(again, Err(ProposalError::Rejected(Rejection::VolumeExists(_)))), "{again:?}");
    }
    assert_eq!(world.leader(), Some(leader));
    let tags: Vec<_> = world.state(2).nodes().map(|(_, node)| node.portal_group_tag).collect();
    assert_eq!(tags, [1, 2]);
    world.wait("both hold leases, and the witness none", |world| {
        world.holds(0) && world.holds(1) && !world.holds(2)
    });
}

#[test]
fn a_take_over_waits_for_the_lease_and_not_much_longer() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.decide(0, &create("v", "a")).unwrap();
        assert_eq!(
            world.decide(0, &begin(Transition::Restart, 0, "a", &["a", "b"])),
            Ok(Outcome::EpochBegun { epoch: 1 })
        );
        world.wait("a lease", |world| world.holds(0));
        // While it is renewed nobody takes over.
        let number = world.propose(1, &begin(Transition::TakeOver, 1, "b", &["b"]));
        let until_ms = world.now_ms + 2000;
        world.wait("time passes", |world| world.now_ms >= until_ms);
        assert!(world.holds(0) && !world.seats[1].decided.contains_key(&number));
        world.crash(0);
        let waited_ms = world.wait("taken over", |world| world.seats[1].decided.contains_key(&number));
        assert_eq!(world.seats[1].decided[&number], Ok(Outcome::EpochBegun { epoch: 2 }));
        assert!((1500..2600).contains(&waited_ms), "after {waited_ms} ms");
        world.restart(0);
        world.wait("the old one knows", |world| {
            world.state(0).volume_by_id(VolumeId(1)).is_some_and(|record| record.epoch == 2)
        });
        world.wait("and has a lease again", |world| world.holds(0));
    }
}

#[test]
fn a_lease_given_back_is_not_waited_for() {
    let mut world = World::new(3);
    world.decide(0, &create("v", "a")).unwrap();
    world.decide(0, &begin(Transition::Restart, 0, "a", &["a", "b"])).unwrap();
    let settled_ms = world.now_ms + 4000;
    world.wait("time passes", |world| world.now_ms >= settled_ms && world.holds(0));
    let now_ms = world.now_ms;
    world.seats[0].quorum.as_mut().unwrap().give_back(now_ms);
    world.take_effects(0);
    assert!(!world.holds(0));
    let number = world.propose(1, &begin(Transition::TakeOver, 1, "b", &["b"]));
    let waited_ms = world.wait("taken over", |world| world.seats[1].decided.contains_key(&number));
    assert!(world.seats[1].decided[&number].is_ok() && waited_ms < 600, "after {waited_ms} ms");
    world.seats[0].quorum.as_mut().unwrap().resume();
    world.wait("a lease", |world| world.holds(0));
    // A store that is stuck is not served from.
    world.seats[0].quorum.as_mut().unwrap().set_store_health(false);
    world.wait("the end of the lease", |world| !world.holds(0));
}

/// The leader dies while it has a forwarded proposal. Whether that was done; none when it is not known.
fn leader_dies_under_a_proposal(seed: u64) -> Option<bool> {
    let mut world = World::new(seed);
    world.decide(1, &create("v", "b")).unwrap();
    world.decide(1, &begin(Transition::Restart, 0, "b", &["a", "b"])).unwrap();
    let leader = world.leader().unwrap();
    let proposer = if leader == 1 { 0 } else { 1 };
    let (volume, encoded) = (VolumeId(1), vec![seed as u8]);
    let save = Command::SaveReservations {
        volume,
        epoch: 1,
        expected_revision: None,
        registration_count: 0,
        encoded,
    };
    let once = world.propose(proposer, &save);
    let safe = world.propose(1, &begin(Transition::Shrink, 1, "b", &["b"]));
    for _ in 0..world.random.random_range(0..3) {
        world.step();
    }
    world.crash(leader);
    if leader == 1 {
        world.restart(1);
    }
    let survivor = if leader == 0 { 1 } else { 0 };
    world.wait("decided", |world| {
        let is_decided = |number| world.seats[proposer].decided.contains_key(&number);
        is_decided(once) && (leader == 1 || world.seats[1].decided.contains_key(&safe))
    });
    if leader != 1 {
        assert_eq!(world.seats[1].decided[&safe], Ok(Outcome::EpochBegun { epoch: 2 }));
    }
    let until_ms = world.now_ms + 1000;
    world.wait("time passes", |world| world.now_ms >= until_ms);
    let record = world.state(survivor).volume_by_id(VolumeId(1)).unwrap();
    let times = record.reservations.revision;
    match &world.seats[proposer].decided[&once] {
        Ok(_) => assert_eq!(times, 1),
        Err(ProposalError::NotProposed | ProposalError::Rejected(_)) => assert_eq!(times, 0),
        Err(_) => {
            assert!(times <= 1);
            return None;
        }
    }
    Some(times == 1)
}

#[test]
fn a_forwarded_proposal_survives_its_leader_or_is_not_known_to() {
    let runs: Vec<_> = (0..60).map(leader_dies_under_a_proposal).collect();
    let count = |outcome| runs.iter().filter(|run| **run == outcome).count();
    let (done, unknown) = (count(Some(true)), count(None));
    assert!(done > 5 && unknown > 0, "done {done}, unknown {unknown}");
}

#[test]
fn a_blank_member_has_no_vote_until_it_is_replaced() {
    let mut world = World::new(5);
    world.decide(0, &create("v", "a")).unwrap();
    world.crash(2);
    world.restart_blank(2, 99);
    let until_ms = world.now_ms + 5000;
    world.wait("time passes", |world| world.now_ms >= until_ms);
    assert!(!world.view(2).is_voter() && !world.view(0).voters.contains_key(&MemberId(99)));
    // With the blank one alone there is no majority.
    world.crash(0);
    let number = world.propose(1, &create("alone", "b"));
    world.wait("refused", |world| world.seats[1].decided.contains_key(&number));
    assert!(world.seats[1].decided[&number].is_err());
    assert!(!world.view(1).has_majority() && world.state(1).volumes().count() == 1);
    world.restart(0);
    world.wait("a leader", |world| world.leader().is_some());
    world.seats[1].quorum.as_mut().unwrap().replace_member(name(2));
    world.take_effects(1);
    world.wait("the newcomer votes", |world| world.view(2).is_voter() && !world.view(0).is_changing_voters);
    assert_eq!(world.view(0).voters.len(), 3);
    world.wait("it has the state", |world| world.state(2).volumes().count() == 1);
    world.crash(0);
    assert!(world.decide(1, &create("with-it", "b")).is_ok());
}

#[test]
fn a_long_log_is_cut_off_and_a_laggard_catches_up() {
    let mut world = World::new(6);
    world.decide(0, &create("v", "a")).unwrap();
    world.decide(0, &begin(Transition::Restart, 0, "a", &["a", "b"])).unwrap();
    world.crash(2);
    for round in 0..12u8 {
        let encoded = vec![round; 400 << 10];
        let save = Command::SaveReservations {
            volume: VolumeId(1),
            epoch: 1,
            expected_revision: None,
            registration_count: 0,
            encoded,
        };
        world.decide(0, &save).unwrap();
    }
    world.wait("a snapshot", |world| {
        world.seats[0].medium.0.borrow().0.len() < 6 << 20
            && world.seats[1].medium.0.borrow().0.len() < 6 << 20
    });
    world.restart(2);
    world.wait("caught up", |world| world.state(2).applied_index() == world.state(0).applied_index());
    world.crash(1);
    world.restart(1);
    world.wait("from its snapshot", |world| world.state(1).applied_index() == world.state(0).applied_index());
}

#[test]
fn a_newer_format_waits_for_the_last_voter() {
    let mut world = World::of_format(7, 8);
    let upgrade = |world: &mut World, seat: usize| {
        world.crash(seat);
        world.formats[seat] = 9;
        world.restart(seat);
    };
    let stays = |world: &mut World| {
        let until_ms = world.now_ms + 3000;
        world.wait("time passes", |world| world.now_ms >= until_ms && world.leader().is_some());
        assert_eq!((world.state(1).format(), world.state(2).format()), (8, 8));
        let refused = Err(ProposalError::Rejected(Rejection::NewerFormat { needed: 9, present: 8 }));
        assert_eq!(world.decide(1, &newest_command(91)), refused);
        world.decide(1, &create(&format!("v{until_ms}"), "b")).unwrap();
    };
    upgrade(&mut world, 1);
    stays(&mut world);
    upgrade(&mut world, 2);
    stays(&mut world);
    // Those that know it are a majority, without the one that does not.
    world.crash(0);
    stays(&mut world);
    world.restart(0);
    stays(&mut world);
    upgrade(&mut world, 0);
    world.wait("all have gone over", |world| (0..3).all(|seat| world.state(seat).format() == 9));
    assert_eq!(world.decide(0, &newest_command(92)), Ok(Outcome::Changed));
    // Who goes back takes part no more, and harms nobody.
    world.crash(2);
    world.formats[2] = 8;
    world.restart(2);
    world.wait("it has noticed", |world| world.view(2).failure.is_some());
    assert!(world.view(2).failure.unwrap().contains("use the newer program"));
    let until_ms = world.now_ms + 3000;
    world.wait("the others have a leader", |world| world.now_ms >= until_ms && world.leader().is_some());
    world.decide(0, &create("later", "b")).unwrap();
}

/// Random faults; the oracles of [`World::take_effects`] look on. Gives the last epoch, and how much was decided.
fn run_with_faults(seed: u64) -> (u32, usize) {
    // Every other one begins before a newer format, and is upgraded from start to start.
    let mut world = World::of_format(seed, NEWEST_FORMAT - (seed % 2) as u32);
    world.decide(0, &create("v", "a")).unwrap();
    world.lossy = true;
    for _ in 0..1200 {
        world.step();
        world.inject_fault();
        let mut quorums = world.seats.iter().filter_map(|seat| seat.quorum.as_ref());
        assert!(quorums.all(|quorum| quorum.failure.is_none()), "somebody cannot read the log");
        let seat = world.random.random_range(0..3);
        if world.seats[seat].quorum.is_some() && world.random.random_ratio(1, 10) {
            world.propose_something(seat);
        }
    }
    world.lossy = false;
    (0..3).for_each(|seat| {
        if world.seats[seat].quorum.is_none() {
            world.restart(seat);
        }
    });
    [(0, 1), (0, 2), (1, 2)].into_iter().for_each(|(one, other)| world.link(one, other));
    for seat in (0..3).filter(|seat| world.formats[*seat] < NEWEST_FORMAT).collect::<Vec<_>>() {
        world.crash(seat);
        world.formats[seat] = NEWEST_FORMAT;
        world.restart(seat);
    }
    world.wait("all have the newest format", |world| {
        (0..3).all(|seat| world.state(seat).format() == NEWEST_FORMAT)
    });
    let healed = world.decide(2, &create("healed", "b"));
    assert!(matches!(healed, Ok(_) | Err(ProposalError::NotProposed)), "{healed:?}");
    world.wait("equal states", |world| {
        (1..3).all(|seat| world.state(seat).applied_index() == world.state(0).applied_index())
    });
    let mut saved = BTreeMap::new();
    for bytes in world.states.values() {
        let state = ControlState::decode(bytes).unwrap();
        let Some(record) = state.volume_by_id(VolumeId(1)) else { continue };
        let reservations = &record.reservations;
        let revision = *saved.entry(reservations.encoded.clone()).or_insert(reservations.revision);
        assert_eq!(revision, reservations.revision, "what may come once came twice");
    }
    let record = world.state(0).volume_by_id(VolumeId(1)).unwrap();
    let decided = world.seats.iter().flat_map(|seat| seat.decided.values()).filter(|result| result.is_ok());
    (record.epoch, decided.count())
}

impl World {
    fn inject_fault(&mut self) {
        let seat = self.random.random_range(0..3);
        let other = (seat + self.random.random_range(1..3)) % 3;
        let is_up = |seat: usize| self.seats[seat].quorum.is_some();
        match self.random.random_range(0..240) {
            0 if (0..3).all(is_up) => self.crash(seat),
            1..6 => {
                if let Some(down) = (0..3).find(|seat| !is_up(*seat)) {
                    if self.random.random_ratio(1, 2) {
                        self.formats[down] = NEWEST_FORMAT;
                    }
                    self.restart(down);
                }
            }
            6..8 => self.unlink(seat, other),
            8..14 if is_up(seat) && is_up(other) => self.link(seat, other),
            _ => {}
        }
    }

    /// A change of the epoch, or reservations, of which each may come once.
    fn propose_something(&mut self, seat: usize) {
        let record = self.state(seat).volume_by_id(VolumeId(1)).cloned();
        let Some(record) = record else { return };
        if self.random.random_ratio(1, 3) {
            let (volume, epoch) = (record.id, record.epoch);
            self.next_life += 1;
            let encoded = self.next_life.to_le_bytes().to_vec();
            self.propose(
                seat,
                &Command::SaveReservations {
                    volume,
                    epoch,
                    expected_revision: None,
                    registration_count: 0,
                    encoded,
                },
            );
            return;
        }
        if self.random.random_ratio(1, 4) {
            let percent = self.random.random_range(1..100);
            self.propose(seat, &newest_command(percent));
        }
        if seat == 2 || !record.in_sync.contains(&name(seat)) {
            return;
        }
        let own = NAMES[seat];
        let (transition, in_sync) = if record.primary.as_str() != own {
            (Transition::TakeOver, vec![own])
        } else if record.in_sync.len() == 1 {
            (Transition::Expand, vec!["a", "b"])
        } else {
            (Transition::Restart, vec!["a", "b"])
        };
        self.propose(seat, &begin(transition, record.epoch, own, &in_sync));
    }
}

#[test]
fn nothing_comes_twice_and_no_deposed_node_serves() {
    let runs: Vec<(u32, usize)> = (0..200).map(run_with_faults).collect();
    let taken_over = runs.iter().filter(|(epoch, _)| *epoch > 3).count();
    let decided: usize = runs.iter().map(|(_, decided)| decided).sum();
    assert!(
        taken_over > 20 && decided > 200,
        "{taken_over} worlds went on, {decided} proposals were decided"
    );
}

/// The same at length: `cargo test --release --lib many_worlds -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn many_worlds() {
    for seed in 0..20_000 {
        run_with_faults(seed);
    }
}

#[test]
fn every_seeded_bug_is_found() {
    let run = |seed| {
        run_with_faults(seed);
        Ok::<(), ()>(())
    };
    search::all_are_found(
        "quorum",
        &[Mutant::GrantFromAnyIndex, Mutant::DeposeAtOnce, Mutant::RaiseByMajority],
        |bug| Found::by_seed(0..=400, |seed| mutant::with(bug, || run(seed)), run),
    );
}
