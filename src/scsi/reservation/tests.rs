//! Persistent reservations end to end: commands on a logical unit, against the standard's tables.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::Bytes;
use futures::future::LocalBoxFuture;

use super::state::ReservationType;
use super::*;
use crate::scsi::command::{Command, Response, Status};
use crate::scsi::task_set::TaskAttribute;
use crate::scsi::testing::{Bench, good, nexus, run, sense_of};

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;

fn out(bench: &Bench, from: NexusId, action: u8, kind: u8, key: u64, action_key: u64) -> Response {
    out_flags(bench, from, action, kind, key, action_key, 0)
}

fn out_flags(
    bench: &Bench,
    from: NexusId,
    action: u8,
    kind: u8,
    key: u64,
    action_key: u64,
    flags: u8,
) -> Response {
    bench.send_from(from, &out_cdb(action, kind, 24), &out_list(key, action_key, flags))
}

fn out_cdb(action: u8, kind: u8, length: u8) -> [u8; 10] {
    [0x5f, action, kind, 0, 0, 0, 0, 0, length, 0]
}

fn out_list(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
    let mut list = key.to_be_bytes().to_vec();
    list.extend_from_slice(&action_key.to_be_bytes());
    list.extend_from_slice(&[0, 0, 0, 0, flags, 0, 0, 0]);
    list
}

/// A logical unit with two nexuses, registered with the keys 1 and 2.
fn two_registrants() -> (Bench, NexusId) {
    let bench = Bench::new();
    let second = bench.attach(2);
    out(&bench, bench.nexus, REGISTER, 0, 0, 1);
    out(&bench, second, REGISTER, 0, 0, 2);
    (bench, second)
}

fn read_in(bench: &Bench, action: u8) -> Vec<u8> {
    good(&bench.send(&[0x5e, action, 0, 0, 0, 0, 0, 255, 255, 0]))
}

fn keys(bench: &Bench) -> Vec<u64> {
    let data = read_in(bench, 0);
    data[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}

fn read(bench: &Bench, from: NexusId) -> Status {
    bench.send_from(from, &[0x08, 0, 0, 0, 1, 0], &[]).status
}

fn write(bench: &Bench, from: NexusId) -> Status {
    bench.send_from(from, &[0x0a, 0, 0, 0, 1, 0], &[1; 512]).status
}

/// What each type allows to (a registrant that is not the holder, a stranger): (reads, writes).
/// SPC-4 table 71, written out.
const ALLOWED: [(u8, [(bool, bool); 2]); 6] = [
    (1, [(true, false), (true, false)]),
    (3, [(false, false), (false, false)]),
    (5, [(true, true), (true, false)]),
    (6, [(true, true), (false, false)]),
    (7, [(true, true), (true, false)]),
    (8, [(true, true), (false, false)]),
];

#[test]
fn every_type_allows_what_the_standard_says() {
    for (kind, [registrant, stranger]) in ALLOWED {
        let bench = Bench::new();
        let (second, third) = (bench.attach(2), bench.attach(3));
        out(&bench, bench.nexus, REGISTER, 0, 0, 1);
        out(&bench, second, REGISTER, 0, 0, 2);
        assert_eq!(out(&bench, bench.nexus, RESERVE, kind, 1, 0).status, Status::Good);
        let status = |allowed| if allowed { Status::Good } else { Status::ReservationConflict };
        for (from, (reads, writes)) in [(bench.nexus, (true, true)), (second, registrant), (third, stranger)]
        {
            assert_eq!(read(&bench, from), status(reads), "type {kind}");
            assert_eq!(write(&bench, from), status(writes), "type {kind}");
            assert_eq!(bench.send_from(from, &[0; 6], &[]).status, Status::Good);
            assert_eq!(bench.send_from(from, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).status, Status::Good);
        }
        let reservation = read_in(&bench, 1);
        assert_eq!(reservation[7], 16);
        assert_eq!(reservation[21], kind);
        assert_eq!(reservation[15], u8::from(kind < 7), "key 1, or zero for all registrants");
    }
}

#[test]
fn keys_are_checked_and_generations_counted() {
    let bench = Bench::new();
    assert_eq!(out(&bench, bench.nexus, REGISTER, 0, 5, 1).status, Status::ReservationConflict);
    assert_eq!(out(&bench, bench.nexus, RESERVE, 1, 0, 0).status, Status::ReservationConflict);
    assert_eq!(out(&bench, bench.nexus, REGISTER, 0, 0, 1).status, Status::Good);
    assert_eq!(out(&bench, bench.nexus, REGISTER, 0, 0, 2).status, Status::ReservationConflict);
    assert_eq!(out(&bench, bench.nexus, REGISTER, 0, 1, 2).status, Status::Good);
    assert_eq!(out(&bench, bench.nexus, REGISTER_AND_IGNORE, 0, 99, 3).status, Status::Good);
    assert_eq!(keys(&bench), [3]);
    assert_eq!(read_in(&bench, 0)[..4], [0, 0, 0, 3]);
    assert_eq!(out(&bench, bench.nexus, RESERVE, 1, 3, 0).status, Status::Good);
    assert_eq!(out(&bench, bench.nexus, RESERVE, 1, 3, 0).status, Status::Good);
    assert_eq!(out(&bench, bench.nexus, RESERVE, 3, 3, 0).status, Status::ReservationConflict);
    assert_eq!(sense_of(&out(&bench, bench.nexus, RELEASE, 3, 3, 0)), (5, 0x2604));
    assert_eq!(out(&bench, bench.nexus, RELEASE, 1, 3, 0).status, Status::Good);
    assert_eq!(read_in(&bench, 0)[..4], [0, 0, 0, 3]);
}

#[test]
fn releasing_and_clearing_tell_the_others() {
    let (bench, second) = two_registrants();
    out(&bench, bench.nexus, RESERVE, 5, 1, 0);
    out(&bench, bench.nexus, RELEASE, 5, 1, 0);
    assert_eq!(sense_of(&bench.send_from(second, &[0; 6], &[])), (6, 0x2a04));
    assert_eq!(out(&bench, bench.nexus, CLEAR, 0, 1, 0).status, Status::Good);
    assert_eq!(sense_of(&bench.send_from(second, &[0; 6], &[])), (6, 0x2a03));
    assert!(keys(&bench).is_empty());
}

#[test]
fn an_all_registrants_reservation_ends_with_the_last_registration() {
    let (bench, second) = two_registrants();
    out(&bench, bench.nexus, RESERVE, 8, 1, 0);
    out(&bench, bench.nexus, REGISTER, 0, 1, 0);
    assert_eq!(read(&bench, bench.nexus), Status::ReservationConflict);
    assert_eq!(read(&bench, second), Status::Good);
    out(&bench, second, REGISTER, 0, 2, 0);
    assert_eq!(read(&bench, bench.nexus), Status::Good);
}

#[test]
fn preempting_takes_over_and_tells_the_victim() {
    let (bench, second) = two_registrants();
    out(&bench, bench.nexus, RESERVE, 1, 1, 0);
    assert_eq!(out(&bench, second, PREEMPT, 3, 2, 7).status, Status::ReservationConflict);
    assert_eq!(sense_of(&out(&bench, second, PREEMPT, 3, 2, 0)), (5, 0x2600));
    assert_eq!(out(&bench, second, PREEMPT, 3, 2, 1).status, Status::Good);
    assert_eq!(sense_of(&bench.send(&[0; 6])), (6, 0x2a05));
    assert_eq!(read(&bench, bench.nexus), Status::ReservationConflict);
    assert_eq!(write(&bench, second), Status::Good);
    assert_eq!(keys(&bench), [2]);
}

#[test]
pub(in crate::scsi) fn preempt_and_abort_waits_for_the_victims_write() {
    let (bench, second) = two_registrants();
    bench.device.state().held.set(true);
    let task = bench.unit.admit(second, 1, TaskAttribute::Simple).unwrap();
    let write = Command::with_data(&[0x0a, 0, 0, 0, 1, 0], vec![Bytes::from_static(&[9; 512])]);
    let mut write = pin!(bench.unit.execute(task, write));
    let mut context = Context::from_waker(Waker::noop());
    assert!(write.as_mut().poll(&mut context).is_pending());
    let task = bench.unit.admit(bench.nexus, 1, TaskAttribute::Simple).unwrap();
    let preempt =
        Command::with_data(&out_cdb(PREEMPT_AND_ABORT, 1, 24), vec![Bytes::from(out_list(1, 2, 0))]);
    let mut preempt = pin!(bench.unit.execute(task, preempt));
    assert!(preempt.as_mut().poll(&mut context).is_pending());
    bench.device.state().held.set(false);
    let std::task::Poll::Ready(Some(aborted)) = write.as_mut().poll(&mut context) else {
        panic!("the write has not ended");
    };
    assert_eq!(aborted.status, Status::TaskAborted);
    let std::task::Poll::Ready(Some(done)) = preempt.as_mut().poll(&mut context) else {
        panic!("PREEMPT AND ABORT has not ended");
    };
    assert_eq!(done.status, Status::Good);
}

#[test]
pub(in crate::scsi) fn a_new_reservation_waits_for_writes_that_it_forbids() {
    let bench = Bench::new();
    let second = bench.attach(2);
    out(&bench, bench.nexus, REGISTER, 0, 0, 1);
    bench.device.state().held.set(true);
    let task = bench.unit.admit(second, 1, TaskAttribute::Simple).unwrap();
    let write = Command::with_data(&[0x0a, 0, 0, 0, 1, 0], vec![Bytes::from_static(&[9; 512])]);
    let mut write = pin!(bench.unit.execute(task, write));
    let mut context = Context::from_waker(Waker::noop());
    assert!(write.as_mut().poll(&mut context).is_pending());
    let task = bench.unit.admit(bench.nexus, 1, TaskAttribute::Simple).unwrap();
    let reserve = Command::with_data(&out_cdb(RESERVE, 3, 24), vec![Bytes::from(out_list(1, 0, 0))]);
    let mut reserve = pin!(bench.unit.execute(task, reserve));
    assert!(reserve.as_mut().poll(&mut context).is_pending());
    // In force already, though not yet answered.
    assert_eq!(self::write(&bench, second), Status::ReservationConflict);
    bench.device.state().held.set(false);
    assert!(write.as_mut().poll(&mut context).is_ready());
    assert!(reserve.as_mut().poll(&mut context).is_ready());
}

#[test]
fn register_and_move_hands_the_reservation_over() {
    let bench = Bench::new();
    let second = bench.attach(2);
    out(&bench, bench.nexus, REGISTER, 0, 0, 1);
    let id = parameters::transport_id(&nexus(2).initiator);
    let mut list = out_list(1, 2, 0);
    list[17] = 0x02; // UNREG
    list[18..20].copy_from_slice(&[0, 1]);
    list[20..24].copy_from_slice(&u32::try_from(id.len()).unwrap().to_be_bytes());
    list.extend_from_slice(&id);
    let cdb = out_cdb(7, 0, u8::try_from(list.len()).unwrap());
    assert_eq!(bench.send_data(&cdb, &list).status, Status::ReservationConflict);
    out(&bench, bench.nexus, RESERVE, 1, 1, 0);
    assert_eq!(bench.send_data(&cdb, &list).status, Status::Good);
    assert_eq!(keys(&bench), [2]);
    assert_eq!(write(&bench, second), Status::Good);
    assert_eq!(write(&bench, bench.nexus), Status::ReservationConflict);
}

#[test]
fn other_initiators_can_be_registered_by_name_and_are_listed_in_full() {
    let bench = Bench::new();
    let id = parameters::transport_id(&nexus(9).initiator);
    let mut list = out_list(0, 4, 0x08);
    list.extend_from_slice(&u32::try_from(id.len()).unwrap().to_be_bytes());
    list.extend_from_slice(&id);
    let cdb = out_cdb(REGISTER, 0, u8::try_from(list.len()).unwrap());
    assert_eq!(bench.send_data(&cdb, &list).status, Status::Good);
    assert_eq!(keys(&bench), [4, 4]);
    let ninth = bench.attach(9);
    assert_eq!(out(&bench, ninth, RESERVE, 1, 4, 0).status, Status::Good);
    let status = read_in(&bench, 3);
    assert_eq!(status[8..16], 4u64.to_be_bytes());
    let first = 8 + 24 + usize::from(status[31]);
    assert_eq!(status[first + 12..first + 14], [1, 1], "the ninth holds it");
    assert!(status[first + 24..].starts_with(&id));
}

#[test]
pub(in crate::scsi) fn reserve_and_release_exclude_everybody_else() {
    let bench = Bench::new();
    let second = bench.attach(2);
    assert_eq!(bench.send(&[0x16, 0, 0, 0, 0, 0]).status, Status::Good);
    assert_eq!(read(&bench, second), Status::ReservationConflict);
    assert_eq!(bench.send_from(second, &[0; 6], &[]).status, Status::ReservationConflict);
    assert_eq!(bench.send_from(second, &[0x16, 0, 0, 0, 0, 0], &[]).status, Status::ReservationConflict);
    assert_eq!(bench.send_from(second, &[0x17, 0, 0, 0, 0, 0], &[]).status, Status::Good);
    assert_eq!(read(&bench, second), Status::ReservationConflict);
    assert_eq!(good(&bench.send_from(second, &[0x12, 0, 0, 0, 36, 0], &[])).len(), 36);
    assert_eq!(out(&bench, second, REGISTER, 0, 0, 1).status, Status::ReservationConflict);
    run(bench.unit.detach(bench.nexus).wait());
    assert_eq!(read(&bench, second), Status::Good);
    out(&bench, second, REGISTER, 0, 0, 1);
    assert_eq!(bench.send_from(second, &[0x16, 0, 0, 0, 0, 0], &[]).status, Status::ReservationConflict);
    out(&bench, second, RESERVE, 1, 1, 0);
    assert_eq!(bench.send_from(second, &[0x16, 0, 0, 0, 0, 0], &[]).status, Status::Good);
}

/// Remembers what was saved, or fails.
#[derive(Default)]
struct Recorder {
    saved: RefCell<Option<PersistedReservations>>,
    fails: Cell<bool>,
}

impl ReservationStore for Recorder {
    fn save(&self, state: PersistedReservations) -> LocalBoxFuture<'_, Result<(), SaveFailed>> {
        Box::pin(async move {
            if self.fails.get() {
                return Err(SaveFailed("no space".into()));
            }
            *self.saved.borrow_mut() = Some(state);
            Ok(())
        })
    }
}

#[test]
fn reservations_persist_through_power_loss_when_asked_to() {
    let recorder = Rc::new(Recorder::default());
    let bench = Bench::with_reservations(recorder.clone(), &PersistedReservations::default());
    let second = bench.attach(2);
    out(&bench, second, REGISTER, 0, 0, 2);
    let saved = recorder.saved.borrow().clone().unwrap();
    assert_eq!(saved.after_power_loss(), PersistedReservations::default());
    out_flags(&bench, bench.nexus, REGISTER, 0, 0, 1, 0x01); // APTPL
    out(&bench, bench.nexus, RESERVE, 1, 1, 0);
    let saved = recorder.saved.borrow().clone().unwrap().after_power_loss();
    let bench = Bench::with_reservations(recorder.clone(), &saved);
    let third = bench.attach(3);
    assert_eq!(write(&bench, third), Status::ReservationConflict);
    assert_eq!(write(&bench, bench.nexus), Status::Good);
    assert_eq!(read_in(&bench, 2)[3], 0x81, "PTPL_A");
    // A change that can't be saved does not happen.
    recorder.fails.set(true);
    assert_eq!(sense_of(&out(&bench, bench.nexus, RELEASE, 1, 1, 0)), (4, 0x4400));
    assert_eq!(write(&bench, third), Status::ReservationConflict);
}

#[test]
fn random_actions_keep_the_state_consistent_and_as_a_plain_model_says() {
    use rand::{RngExt, SeedableRng};
    for seed in 0..40 {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let bench = Bench::new();
        let nexuses = [bench.nexus, bench.attach(2), bench.attach(3)];
        let mut model = Model::default();
        for _ in 0..200 {
            let actor = random.random_range(0..3);
            let action = random.random_range(0..7u8);
            let kind = ReservationType::ALL[random.random_range(0..6)] as u8;
            let (key, action_key) = (random.random_range(0..4), random.random_range(0..4));
            let status = out(&bench, nexuses[actor], action, kind, key, action_key).status;
            let accepted = model.act(actor, action, kind, key, action_key);
            assert_eq!(status == Status::Good, accepted, "seed {seed}, action {action}");
            for nexus in nexuses {
                bench.clear_attentions(nexus);
            }
            for (index, nexus) in nexuses.into_iter().enumerate() {
                let (reads, writes) = model.allows(index);
                assert_eq!(read(&bench, nexus) == Status::Good, reads, "seed {seed}, reading");
                assert_eq!(write(&bench, nexus) == Status::Good, writes, "seed {seed}, writing");
            }
        }
    }
}

/// Persistent reservations of three nexuses, as simply as they can be put.
#[derive(Default)]
struct Model {
    keys: [u64; 3],
    /// Type and holder.
    held: Option<(u8, usize)>,
}

impl Model {
    fn act(&mut self, actor: usize, action: u8, kind: u8, key: u64, action_key: u64) -> bool {
        let registered = self.keys[actor] != 0;
        if action != REGISTER_AND_IGNORE && key != self.keys[actor] {
            return false;
        }
        if !registered && !matches!(action, REGISTER | REGISTER_AND_IGNORE) {
            return false;
        }
        let all = self.held.is_some_and(|(kind, _)| kind >= 7);
        let holds = all || self.held.is_some_and(|(_, holder)| holder == actor);
        match action {
            REGISTER | REGISTER_AND_IGNORE => self.keys[actor] = action_key,
            RESERVE => match self.held {
                None => self.held = Some((kind, actor)),
                Some((held_kind, _)) => return holds && held_kind == kind,
            },
            RELEASE if holds => {
                if self.held.is_some_and(|(held_kind, _)| held_kind != kind) {
                    return false;
                }
                self.held = None;
            }
            RELEASE => {}
            CLEAR => *self = Self::default(),
            _ => {
                let takes = match self.held {
                    Some(_) if all => action_key == 0,
                    Some((_, holder)) => action_key == self.keys[holder],
                    None => false,
                };
                if !takes && (action_key == 0 || !self.keys.contains(&action_key)) {
                    return false;
                }
                for index in 0..3 {
                    let named = action_key == 0 || self.keys[index] == action_key;
                    if named && !(takes && index == actor) {
                        self.keys[index] = 0;
                    }
                }
                if takes {
                    self.held = Some((kind, actor));
                }
            }
        }
        // A reservation ends with its holder's registration, or the last one.
        if let Some((kind, holder)) = self.held {
            let ends = if kind >= 7 { self.keys == [0; 3] } else { self.keys[holder] == 0 };
            if ends {
                self.held = None;
            }
        }
        true
    }

    fn allows(&self, nexus: usize) -> (bool, bool) {
        let Some((kind, holder)) = self.held else { return (true, true) };
        let (_, [registrant, stranger]) = ALLOWED.into_iter().find(|(code, _)| *code == kind).unwrap();
        let is_registered = self.keys[nexus] != 0;
        match nexus {
            _ if kind < 7 && nexus == holder => (true, true),
            _ if is_registered => registrant,
            _ => stranger,
        }
    }
}
