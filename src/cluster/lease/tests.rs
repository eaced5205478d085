//! Leases in a world of clocks that drift, and messages that are lost, late, doubled and reordered.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::sim::mutant_search::{self as search, Found};

#[derive(Clone, Copy, Debug)]
enum Message {
    Request(LeaseRequest),
    Confirm(u64, usize, LeaseRequest),
    Confirmed(u64, usize, LeaseRequest),
    Grant(LeaseRequest),
    GiveBack(usize, LeaseRequest),
    Ask(u64, usize),
    Bound(u64, usize, u64),
}

struct World {
    random: ChaCha8Rng,
    /// Real time in microseconds, and each machine's clock rate in parts per thousand: holder, voters.
    now_us: u64,
    rates: [u64; 4],
    holder: Holder,
    voters: [Voter; 3],
    /// The present leader's, and that of its predecessor, which may not know yet.
    granter: Granter,
    former: Option<Granter>,
    network: Vec<Message>,
    /// What Raft has made durable at each voter.
    durable_terms: [u64; 3],
    is_deposed: bool,
    met_grant: bool,
}

const TERMS: LeaseTerms = LeaseTerms { duration_ms: 1000, renewal_ms: 300, drift_parts: 20 };

impl World {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let rates = [(); 4].map(|()| random.random_range(951..1050));
        // Voters that have run for long, so that the start is not a wait.
        let mut voters = [(); 3].map(|()| Voter::new(TERMS, 0, 1));
        voters.iter_mut().for_each(|voter| voter.bound_by_past_ms = 0);
        let members = (0..3).map(MemberId).collect();
        Self {
            holder: Holder::new(TERMS, 1),
            voters,
            granter: Granter::new(1, members),
            former: None,
            network: Vec::new(),
            durable_terms: [1; 3],
            is_deposed: false,
            met_grant: false,
            now_us: 0,
            rates,
            random,
        }
    }

    /// The clock of the holder (0) or of a voter (1 to 3); they show different times.
    fn clock(&self, machine: usize) -> u64 {
        5000 * machine as u64 + self.now_us * self.rates[machine] / 1_000_000
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..1500 {
            self.step();
            if self.is_deposed && self.holder.is_held(self.clock(0)) {
                return Err(format!("deposed, and still serving at {} us", self.now_us));
            }
        }
        Ok(())
    }

    fn step(&mut self) {
        let voter = self.random.random_range(0..3);
        match self.random.random_range(0..1000) {
            0..450 => self.deliver(),
            450..900 => self.now_us += self.random.random_range(0..40_000),
            900..980 => {
                if let Some(request) = self.holder.poll_request(self.clock(0), true) {
                    self.network.push(Message::Request(request));
                }
            }
            980..983 => {
                self.voters[voter] = Voter::new(TERMS, self.clock(voter + 1), self.durable_terms[voter]);
            }
            983..986 => {
                let term = self.granter.term + 1;
                // A majority has elected it.
                for elector in (0..3).filter(|elector| *elector != voter) {
                    self.learn_term(elector, term);
                }
                let granter = Granter::new(term, (0..3).map(MemberId).collect());
                self.former = Some(std::mem::replace(&mut self.granter, granter));
                // What the former one had not committed yet never will be.
                self.is_deposed = false;
            }
            986..990 if self.random.random_ratio(1, 3) => {
                let given_back = self.holder.give_back();
                self.network.extend((0..3).map(|voter| Message::GiveBack(voter, given_back)));
                self.holder.resume();
            }
            990..996 => {
                self.granter.depose(&holder());
                self.ask_all();
            }
            _ => {
                if self.granter.deposing.contains_key(&holder()) {
                    self.ask_all();
                }
            }
        }
    }

    fn learn_term(&mut self, voter: usize, term: u64) {
        let is_forgotten = mutant::is(Mutant::TermForgotten) && term > self.voters[voter].term;
        if term > self.durable_terms[voter] || is_forgotten {
            self.durable_terms[voter] = term;
            self.voters[voter].handle_term(term);
        }
    }

    fn ask_all(&mut self) {
        let term = self.granter.term;
        self.network.extend((0..3).map(|voter| Message::Ask(term, voter)));
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let chosen = self.random.random_range(0..self.network.len());
        let message = match self.random.random_range(0..10) {
            0 => self.network[chosen],
            _ => self.network.swap_remove(chosen),
        };
        match message {
            Message::Request(request) => {
                let asks_former = self.former.is_some() && self.random.random_ratio(1, 3);
                let granter = if asks_former { self.former.as_mut() } else { None };
                let granter = granter.unwrap_or(&mut self.granter);
                if granter.handle_request(&holder(), request) {
                    let term = granter.term;
                    self.network.extend((0..3).map(|voter| Message::Confirm(term, voter, request)));
                }
            }
            Message::Confirm(term, voter, request) => {
                self.learn_term(voter, term);
                let now_ms = self.clock(voter + 1);
                if self.voters[voter].confirm(now_ms, term, &holder(), request) {
                    self.network.push(Message::Confirmed(term, voter, request));
                }
            }
            Message::Confirmed(term, voter, request) => {
                let granters = [Some(&mut self.granter), self.former.as_mut()];
                let own = granters.into_iter().flatten().find(|granter| granter.term == term);
                let voter = MemberId(voter as u64);
                if own.is_some_and(|granter| granter.handle_confirmed(voter, &holder(), request)) {
                    self.network.push(Message::Grant(request));
                    self.met_grant = true;
                }
            }
            Message::Grant(request) => self.holder.handle_grant(self.clock(0), request),
            Message::GiveBack(voter, given_back) => self.voters[voter].release(&holder(), given_back),
            Message::Ask(term, voter) => {
                self.learn_term(voter, term);
                let now_ms = self.clock(voter + 1);
                if let Some(bound_ms) = self.voters[voter].bound_for(now_ms, term, &holder()) {
                    self.network.push(Message::Bound(term, voter, bound_ms));
                }
            }
            Message::Bound(term, voter, bound_ms) => {
                let is_own = term == self.granter.term;
                if is_own && self.granter.handle_bound(MemberId(voter as u64), &holder(), bound_ms) {
                    self.is_deposed = true;
                }
            }
        }
    }
}

fn holder() -> NodeName {
    "a".parse().unwrap()
}

#[test]
fn nobody_serves_once_it_may_be_deposed() {
    let (mut granted, mut deposed) = (0, 0);
    for seed in 0..3000 {
        let mut world = World::new(seed);
        world.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        granted += u32::from(world.met_grant);
        deposed += u32::from(world.is_deposed);
    }
    assert!(granted > 2000 && deposed > 200, "granted in {granted} worlds, deposed at the end of {deposed}");
}

#[test]
fn every_seeded_bug_is_found() {
    let bugs = [
        Mutant::NoDriftMargin,
        Mutant::LeaseFromArrival,
        Mutant::RestartedVoterDoesNotWait,
        Mutant::GiveBackOfAnyRequest,
        Mutant::ConfirmForOldTerms,
        Mutant::TermForgotten,
        Mutant::GrantWhileDeposing,
    ];
    let run = |seed| World::new(seed).run();
    search::all_are_found("lease", &bugs, |bug| {
        Found::by_seed(0..=5000, |seed| mutant::with(bug, || run(seed)), run)
    });
}

#[test]
fn a_stuck_store_does_not_renew_and_a_give_back_is_at_once() {
    let mut node = Holder::new(LeaseTerms::LAN, 7);
    let request = node.poll_request(100, true).unwrap();
    assert_eq!(node.poll_request(399, true), None, "a renewal every 300 ms");
    assert_eq!(node.poll_request(500, false), None, "nor with a stuck store");
    node.handle_grant(900, request);
    assert!(node.is_held(2099) && !node.is_held(2100), "from the moment of asking");
    let given_back = node.give_back();
    node.handle_grant(901, request);
    assert!(!node.is_held(902));
    let mut voter = Voter::new(LeaseTerms::LAN, 0, 3);
    assert_eq!(voter.bound_for(0, 3, &holder()), Some(2042), "a restarted voter is bound");
    assert!(voter.confirm(5000, 3, &holder(), request) && !voter.confirm(5000, 2, &holder(), request));
    voter.release(&holder(), LeaseRequest { life: 6, ..given_back });
    assert_eq!(voter.bound_for(5000, 3, &holder()), Some(2042));
    voter.release(&holder(), given_back);
    assert_eq!((voter.bound_for(5000, 3, &holder()), voter.bound_for(5000, 2, &holder())), (Some(0), None));
}
