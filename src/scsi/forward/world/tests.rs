//! Random lives of the pair, what was met in them, and the seeded bugs that they find.

use std::cell::RefCell;
use std::rc::Rc;

use futures::future::LocalBoxFuture;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::hosts::Host;
use super::site::{Decided, Site};
use super::{Common, HOSTS, VOLUME, data_of, poll};
use crate::scsi::command::{Command, Response, Status};
use crate::scsi::identity::{InitiatorPort, Nexus, NexusId, TargetPort};
use crate::scsi::limits;
use crate::scsi::mutant::{self, Mutant};
use crate::scsi::sense::AdditionalSense;
use crate::scsi::task_set::TaskAttribute;
use crate::scsi::testing::sense_of;
use crate::sim::mutant_search::{self as search, Found};

const STEPS: u64 = 3000;

/// What a life has met.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    cuts: u64,
    moves: u64,
    depositions: u64,
    good: u64,
    other: u64,
    forwarded_steps: u64,
}

struct World {
    common: Rc<Common>,
    decided: Rc<Decided>,
    sites: [Site; 2],
    hosts: Vec<Host>,
    /// A planned move under way: to whom, and the end of the former service.
    moving: Option<(usize, LocalBoxFuture<'static, ()>)>,
    /// What deposed nodes still drain.
    leaving: Vec<LocalBoxFuture<'static, ()>>,
    met: Met,
}

impl World {
    fn new(seed: u64) -> Self {
        let common = Rc::new(Common {
            random: RefCell::new(ChaCha8Rng::seed_from_u64(seed)),
            now: Default::default(),
            spawned: Default::default(),
            medium: Default::default(),
            reserving: Default::default(),
        });
        let decided = Rc::new(Decided::default());
        let sites = [0, 1].map(|index| Site::new(index, &common, &decided));
        sites[0].take_device();
        let hosts = (0..HOSTS).map(|number| Host::new(&common, number as u8, number % 2)).collect();
        Self { common, decided, sites, hosts, moving: None, leaving: Vec::new(), met: Met::default() }
    }

    fn step(&mut self, is_quiet: bool) {
        let common = self.common.clone();
        common.now.set(common.now.get() + 1);
        for index in 0..2 {
            let (site, other) = (&self.sites[index], &self.sites[1 - index]);
            for _ in 0..2 {
                if !common.chance(3) {
                    other.serve_one();
                }
                if !common.chance(3) {
                    site.hear_one();
                }
            }
            let call = site.call.borrow().clone();
            match call {
                None if common.chance(20) => {
                    site.connect(other);
                }
                Some(wire) if wire.is_cut.get() && common.chance(10) => site.notice_as_front(),
                Some(wire) if !wire.is_cut.get() && !is_quiet && common.chance(150) => {
                    // What has arrived is read still; what is on its way is lost, or some of it.
                    wire.is_cut.set(true);
                    let kept = common.below(wire.to_serving.borrow().len() + 1);
                    wire.to_serving.borrow_mut().truncate(kept);
                    let kept = common.below(wire.from_serving.borrow().len() + 1);
                    wire.from_serving.borrow_mut().truncate(kept);
                    self.met.cuts += 1;
                }
                _ => {}
            }
            if common.chance(10) {
                other.notice_as_server();
            }
            if common.chance(5) {
                self.sites[index].learn();
            }
            self.sites[index].tell();
            self.met.forwarded_steps += u64::from(self.sites[index].front.is_forwarding(VOLUME));
        }
        self.change_roles(is_quiet);
        common.poll_tasks();
        self.leaving.retain_mut(|leaving| poll(leaving.as_mut()).is_none());
        let units = [self.sites[0].unit.clone(), self.sites[1].unit.clone()];
        for host in &mut self.hosts {
            if !is_quiet && common.chance(3) {
                host.act(&units);
            }
            host.poll(&units);
        }
    }

    fn change_roles(&mut self, is_quiet: bool) {
        let common = self.common.clone();
        if let Some((to, drained)) = &mut self.moving {
            let to = *to;
            if poll(drained.as_mut()).is_some() {
                self.moving = None;
                self.sites[to].take_device();
            }
            return;
        }
        let primary = self.decided.primary.get();
        let (serving, other) = (&self.sites[primary], &self.sites[1 - primary]);
        // A deposed node gives its device up before long, and in any case before it may serve again.
        if other.has_device() {
            if common.chance(20) {
                self.leaving.push(other.leave_device());
            }
        } else if is_quiet || !serving.has_device() || !self.leaving.is_empty() {
        } else if common.chance(300) {
            self.moving = Some((1 - primary, serving.leave_device()));
            self.met.moves += 1;
        } else if common.chance(300) {
            other.take_device();
            self.met.depositions += 1;
        }
    }

    fn is_idle(&self) -> bool {
        self.hosts.iter().all(Host::is_idle) && self.moving.is_none() && self.leaving.is_empty()
    }
}

fn live(seed: u64) -> Met {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step(false);
    }
    for _ in 0..3000 {
        world.step(true);
    }
    assert!(world.is_idle(), "something never ends");
    for site in &world.sites {
        assert_eq!(site.front.load(), (0, 0), "something counts as under way for ever");
        assert!(site.unit.tasks().is_empty());
    }
    assert_eq!(world.common.task_count(), 0, "a task never ends");
    let forwards = world.sites.iter().filter(|site| site.front.is_forwarding(VOLUME)).count();
    assert_eq!(forwards, 1, "the other node's path is usable again");
    let (good, other) = world.hosts.iter().fold((0, 0), |sum, host| (sum.0 + host.good, sum.1 + host.other));
    Met { good, other, ..world.met }
}

#[test]
fn random_lives_keep_their_promises() {
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    let first: u64 = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut met = Met::default();
    for seed in first..first + seeds {
        println!("seed {seed}");
        let life = live(seed);
        met.cuts += life.cuts;
        met.moves += life.moves;
        met.depositions += life.depositions;
        met.good += life.good;
        met.other += life.other;
        met.forwarded_steps += life.forwarded_steps;
    }
    println!("{met:?}");
    if seeds >= 100 {
        assert!(met.cuts > 10 * seeds && met.moves > seeds && met.depositions > seeds, "{met:?}");
        assert!(met.good > 100 * seeds && met.other > 10 * seeds, "{met:?}");
        assert!(met.forwarded_steps > STEPS * seeds / 2, "{met:?}");
    }
}

/// A world in which the other node forwards, and a session of its own.
fn forwarding_world() -> (World, NexusId) {
    let mut world = World::new(11);
    let initiator = InitiatorPort { name: "iqn.2007-10.test:own".into(), isid: [0x80, 0, 0, 0, 0, 9] };
    let target_port = TargetPort { relative_id: 2, portal_group: 2 };
    let session = world.sites[1].unit.attach(Nexus { initiator, target_port });
    rest(&mut world);
    assert!(world.sites[1].front.is_forwarding(VOLUME));
    while !execute(&mut world, session, Command::new(&[0; 6], 0)).sense.is_empty() {}
    (world, session)
}

fn rest(world: &mut World) {
    (0..300).for_each(|_| world.step(true));
}

/// Executes a command of the session at the other node.
fn execute(world: &mut World, session: NexusId, command: Command) -> Response {
    let unit = world.sites[1].unit.clone();
    let task = unit.admit(session, 1, TaskAttribute::Simple).unwrap();
    let mut execution: LocalBoxFuture<'static, _> =
        Box::pin(async move { unit.execute(task, command).await });
    for _ in 0..3000 {
        if let Some(response) = poll(execution.as_mut()) {
            return response.expect("not aborted");
        }
        world.step(true);
    }
    panic!("a command never ends");
}

fn cut(world: &World) {
    let wire = world.sites[1].call.borrow().clone().unwrap();
    wire.is_cut.set(true);
    wire.from_serving.borrow_mut().clear();
}

#[test]
pub(in crate::scsi) fn what_is_pending_comes_back_when_forwarding_ends() {
    let (mut world, session) = forwarding_world();
    world.sites[0].unit.capacity_changed();
    rest(&mut world);
    cut(&world);
    world.sites[1].notice_as_front();
    assert_eq!(world.sites[1].unit.take_attentions(session), [AdditionalSense::CAPACITY_DATA_HAS_CHANGED]);
}

#[test]
fn a_unit_attention_is_reported_once_wherever_it_was_established() {
    let (mut world, session) = forwarding_world();
    world.sites[0].unit.capacity_changed();
    rest(&mut world);
    let ready = || Command::new(&[0; 6], 0);
    assert_eq!(sense_of(&execute(&mut world, session, ready())), (6, 0x2a09));
    assert_eq!(execute(&mut world, session, ready()).status, Status::Good);
    // Told already when the connection is lost, it does not come again; the volume moves, and that is told.
    cut(&world);
    world.sites[1].notice_as_front();
    assert!(world.sites[1].unit.take_attentions(session).is_empty());
    world.sites[1].take_device();
    rest(&mut world);
    assert_eq!(sense_of(&execute(&mut world, session, ready())), (6, 0x2a06));
    assert_eq!(execute(&mut world, session, ready()).status, Status::Good);
}

#[test]
fn a_write_in_limbo_is_to_be_sent_again_when_it_can_have_no_effect_any_more() {
    let (world, session) = forwarding_world();
    let unit = world.sites[1].unit.clone();
    let task = unit.admit(session, 5, TaskAttribute::Simple).unwrap();
    let command = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![data_of(77)]);
    let mut execution: LocalBoxFuture<'static, _> =
        Box::pin(async move { unit.execute(task, command).await });
    assert!(poll(execution.as_mut()).is_none());
    cut(&world);
    world.sites[1].notice_as_front();
    // As long as the other node is silent there is no answer, also when the session has ended.
    let drain = world.sites[1].unit.detach(session);
    let mut drain: LocalBoxFuture<'static, ()> = Box::pin(drain.wait());
    for _ in 0..100 {
        assert!(poll(execution.as_mut()).is_none() && poll(drain.as_mut()).is_none());
    }
    world.sites[1].take_device();
    assert_eq!(poll(execution.as_mut()), Some(None));
    assert!(poll(drain.as_mut()).is_some());
}

#[test]
fn too_much_under_way_is_task_set_full() {
    let (mut world, session) = forwarding_world();
    let unit = world.sites[1].unit.clone();
    let largest = limits::TRANSFER_BYTES as usize;
    let mut executions: Vec<LocalBoxFuture<'static, Option<Response>>> = Vec::new();
    for tag in 0..=(limits::FORWARDED_BYTES / largest) as u64 {
        let (unit, task) = (unit.clone(), unit.admit(session, tag, TaskAttribute::Simple).unwrap());
        let command = Command::new(&[0x08, 0, 0, 1, 1, 0], largest);
        executions.push(Box::pin(async move { unit.execute(task, command).await }));
    }
    let answered: Vec<_> =
        executions.iter_mut().filter_map(|execution| poll(execution.as_mut())).flatten().collect();
    assert_eq!(answered, [Response::of(Status::TaskSetFull)]);
    rest(&mut world);
    let ended = executions.iter_mut().take(8).filter_map(|execution| poll(execution.as_mut())).flatten();
    assert_eq!(ended.filter(|response| response.status == Status::Good).count(), 8);
    assert_eq!(world.sites[1].front.load(), (0, 0));
}

#[test]
fn every_mutant_is_found_in_random_lives() {
    let run = |seed| {
        live(seed);
        Ok::<(), ()>(())
    };
    search::all_are_found("forwarding", &FOUND_IN_RANDOM_LIVES, |mutant| {
        Found::by_seed(1..=5000, |seed| mutant::with(mutant, || run(seed)), run)
    });
}

pub(in crate::scsi) const FOUND_IN_RANDOM_LIVES: [Mutant; 7] = [
    Mutant::LimboAnswered,
    Mutant::LimboRepeated,
    Mutant::LostIsGood,
    Mutant::LostConnectionNotDrained,
    Mutant::WelcomeUndrained,
    Mutant::ManagementStaysLocal,
    Mutant::ForwardedAgain,
];
