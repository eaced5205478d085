//! Tests of attaching and detaching the device: commands in flight, reservations of another node, attentions.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::super::asymmetric_access::AccessState;
use super::super::command::{Command, Response, Status};
use super::super::identity::NexusId;
use super::super::reservation::{ReservationStore, SaveFailed, Volatile};
use super::super::task_set::TaskAttribute;
use super::super::testing::{Bench, MemoryDevice, good, run, sense_of};
use super::*;

type Execution<'a> = Pin<Box<dyn Future<Output = Option<Response>> + 'a>>;

fn poll<F: Future + Unpin>(mut future: F) -> Poll<F::Output> {
    Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop()))
}

fn begin<'a>(bench: &'a Bench, tag: u64, cdb: &[u8], data: &[u8]) -> Execution<'a> {
    let task = bench.unit.admit(bench.nexus, tag, TaskAttribute::Simple).unwrap();
    let command =
        Command { expected_in: 1 << 20, ..Command::with_data(cdb, vec![Bytes::copy_from_slice(data)]) };
    Box::pin(bench.unit.execute(task, command))
}

fn reattach(bench: &Bench, saved: &PersistedReservations) {
    bench.unit.attach_device(bench.device.clone(), saved).unwrap();
    bench.set_states(AccessState::ActiveOptimized, AccessState::Standby);
}

fn leave(bench: &Bench) {
    bench.set_states(AccessState::Standby, AccessState::ActiveOptimized);
    run(bench.unit.detach_device());
}

const NOTHING: [u16; 0] = [];

fn attentions(bench: &Bench, nexus: NexusId) -> Vec<u16> {
    std::iter::from_fn(|| bench.unit.take_attention(nexus)).map(|sense| sense.code.0).collect()
}

#[test]
fn what_the_device_has_begun_ends_as_it_ends_and_is_waited_for() {
    let bench = Bench::pair();
    bench.device.state().held.set(true);
    let mut write = begin(&bench, 1, &[0x0a, 0, 0, 1, 1, 0], &[7; 512]);
    assert!(poll(&mut write).is_pending());
    let mut detached = bench.unit.detach_device();
    assert!(poll(&mut detached).is_pending());
    assert!(bench.unit.device().is_none());
    bench.device.state().held.set(false);
    // Durable before the change: the host need not do it again.
    assert_eq!(run(&mut write).unwrap().status, Status::Good);
    assert!(poll(&mut detached).is_ready());
    assert!(bench.device.state().blocks.borrow().contains_key(&1));
}

#[test]
fn what_the_device_gives_up_is_to_be_sent_again() {
    use crate::volume::device::DeviceError;
    for error in [DeviceError::Gone, DeviceError::Offline, DeviceError::NotServing, DeviceError::OutOfRange] {
        let bench = Bench::pair();
        bench.device.state().held.set(true);
        let commands: [(&[u8], usize); 4] = [
            (&[0x08, 0, 0, 1, 1, 0], 0),
            (&[0x0a, 0, 0, 1, 1, 0], 512),
            (&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0], 1024),
            (&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0),
        ];
        let mut executions: Vec<_> =
            commands.iter().map(|(cdb, length)| begin(&bench, 1, cdb, &vec![7; *length])).collect();
        assert!(executions.iter_mut().all(|execution| poll(execution).is_pending()));
        let mut detached = bench.unit.detach_device();
        *bench.device.state().failure.borrow_mut() = Some(error);
        bench.device.state().held.set(false);
        for execution in &mut executions {
            assert_eq!(sense_of(&run(execution).unwrap()), (2, 0x040a));
        }
        assert!(poll(&mut detached).is_ready());
    }
}

#[test]
fn a_device_that_may_not_serve_any_more_says_so_before_it_is_detached() {
    use crate::volume::device::DeviceError;
    let bench = Bench::pair();
    *bench.device.state().failure.borrow_mut() = Some(DeviceError::NotServing);
    assert_eq!(sense_of(&bench.send(&[0x08, 0, 0, 0, 1, 0])), (2, 0x040a));
}

#[test]
pub(in crate::scsi) fn a_command_of_many_requests_begins_no_more_of_them_even_on_the_next_device() {
    let bench = Bench::pair();
    let descriptors =
        [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0]];
    let list = [&[0, 38, 0, 32, 0, 0, 0, 0][..], &descriptors.concat()].concat();
    bench.send_data(&[0x0a, 0, 0, 9, 1, 0], &[7; 512]);
    bench.device.state().held.set(true);
    let mut unmap = begin(&bench, 1, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &list);
    assert!(poll(&mut unmap).is_pending());
    drop(bench.unit.detach_device());
    let next = MemoryDevice::new(512, 16384);
    bench.unit.attach_device(next.clone(), &PersistedReservations::default()).unwrap();
    bench.device.state().held.set(false);
    assert_eq!(sense_of(&run(unmap).unwrap()), (2, 0x040a));
    assert!(bench.device.state().blocks.borrow().contains_key(&9), "the second request was never made");
}

#[test]
fn task_management_acts_while_the_device_is_gone() {
    let bench = Bench::pair();
    bench.device.state().held.set(true);
    let mut write = begin(&bench, 5, &[0x0a, 0, 0, 1, 1, 0], &[7; 512]);
    assert!(poll(&mut write).is_pending());
    let detached = bench.unit.detach_device();
    assert!(bench.unit.query_task(bench.nexus, Some(5)));
    let drain = bench.unit.abort_task(bench.nexus, 5).unwrap();
    let mut drained = Box::pin(drain.wait());
    assert!(poll(&mut drained).is_pending(), "its effect may still come");
    bench.device.state().held.set(false);
    assert_eq!(run(write), None);
    assert!(poll(&mut drained).is_ready());
    run(detached);
    run(bench.unit.reset(Some(bench.nexus)).wait());
    assert_eq!(sense_of(&bench.send(&[0; 6])), (6, 0x2903));
    run(bench.unit.clear_task_set(bench.nexus).wait());
    run(bench.unit.detach(bench.nexus).wait());
}

#[test]
fn sessions_outlive_the_change_and_find_their_data_again() {
    let bench = Bench::pair();
    bench.send_data(&[0x0a, 0, 0, 1, 1, 0], &[7; 512]);
    leave(&bench);
    assert_eq!(attentions(&bench, bench.nexus), [0x2a06]);
    assert_eq!(sense_of(&bench.send(&[0x08, 0, 0, 1, 1, 0])), (2, 0x040b));
    run(bench.unit.detach_device()); // again, to no effect
    reattach(&bench, &PersistedReservations::default());
    assert_eq!(attentions(&bench, bench.nexus), [0x2a06]);
    assert_eq!(good(&bench.send(&[0x08, 0, 0, 1, 1, 0])), [7; 512]);
}

#[test]
fn a_new_size_is_told_wherever_it_is_learnt() {
    let bench = Bench::pair();
    leave(&bench);
    attentions(&bench, bench.nexus);
    let geometry = |block_count| DeviceGeometry { logical_block_bytes: 512, block_count };
    bench.unit.set_geometry(geometry(16384));
    assert_eq!(attentions(&bench, bench.nexus), NOTHING);
    bench.unit.set_geometry(geometry(20000));
    assert_eq!(attentions(&bench, bench.nexus), [0x2a09]);
    assert_eq!(good(&bench.send(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]))[..4], 19999u32.to_be_bytes());
    bench.device.state().geometry.set(geometry(30000));
    reattach(&bench, &PersistedReservations::default());
    assert_eq!(attentions(&bench, bench.nexus), [0x2a09, 0x2a06]);
}

#[test]
fn what_is_of_the_node_alone_ends_and_is_told() {
    let bench = Bench::pair();
    let other = bench.attach(2);
    assert_eq!(bench.send(&[0x16, 0, 0, 0, 0, 0]).status, Status::Good);
    let mut list = good(&bench.send(&[0x1a, 0x08, 0x0a, 0, 255, 0]));
    (list[0], list[2]) = (0, 0);
    list[4 + 4] |= 0x08; // SWP
    assert_eq!(bench.send_data(&[0x15, 0x10, 0, 0, list.len() as u8, 0], &list).status, Status::Good);
    attentions(&bench, other);
    leave(&bench);
    assert_eq!(attentions(&bench, bench.nexus), [0x2900, 0x2a01], "the reservation, the mode parameters");
    assert_eq!(attentions(&bench, other), [0x2a06, 0x2a01]);
    reattach(&bench, &PersistedReservations::default());
    attentions(&bench, other);
    assert_eq!(bench.send_from(other, &[0x0a, 0, 0, 1, 1, 0], &[7; 512]).status, Status::Good);
}

#[test]
fn a_sanitize_operation_ends_with_the_device_and_its_host_is_told() {
    let bench = Bench::pair();
    bench.device.state().held.set(true);
    let mut sanitize = begin(&bench, 1, &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert!(poll(&mut sanitize).is_pending());
    bench.runtime.poll();
    assert!(bench.unit.is_sanitizing());
    let mut detached = bench.unit.detach_device();
    assert!(poll(&mut detached).is_pending());
    bench.device.state().held.set(false);
    assert_eq!(bench.runtime.poll(), 0);
    assert!(poll(&mut detached).is_ready());
    assert!(!bench.unit.is_sanitizing());
    assert_eq!(sense_of(&run(sanitize).unwrap()), (2, 0x040a));
}

#[test]
fn a_copy_to_a_unit_that_is_served_elsewhere_goes_nowhere() {
    let bench = Bench::pair();
    leave(&bench);
    attentions(&bench, bench.nexus);
    assert_eq!(sense_of(&bench.send(&[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])), (2, 0x040b));
}

/// Registers `nexus` under `key`; then reserves, if a type is given.
fn register(bench: &Bench, nexus: NexusId, key: u8, reserve: Option<u8>) {
    let mut list = [0; 24];
    list[15] = key;
    assert_eq!(bench.send_from(nexus, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list).status, Status::Good);
    if let Some(kind) = reserve {
        list[7] = key;
        let cdb = [0x5f, 1, kind, 0, 0, 0, 0, 0, 24, 0];
        assert_eq!(bench.send_from(nexus, &cdb, &list).status, Status::Good);
    }
}

/// Keeps what is saved; waits while it is told to.
#[derive(Default)]
struct Kept {
    saved: RefCell<PersistedReservations>,
    held: Cell<bool>,
}

impl ReservationStore for Kept {
    fn save(&self, state: PersistedReservations) -> LocalBoxFuture<'_, Result<(), SaveFailed>> {
        Box::pin(async move {
            std::future::poll_fn(|_| if self.held.get() { Poll::Pending } else { Poll::Ready(()) }).await;
            *self.saved.borrow_mut() = state;
            Ok(())
        })
    }
}

#[test]
pub(in crate::scsi) fn registrations_survive_without_aptpl_and_bind_at_the_next_node() {
    let store = Rc::new(Kept::default());
    let (first, second) = (Bench::pair_with(store.clone(), &PersistedReservations::default()), Bench::pair());
    register(&first, first.nexus, 1, Some(1)); // write exclusive
    let saved = store.saved.borrow().clone();
    assert!(!saved.aptpl);
    leave(&second);
    leave(&first);
    reattach(&second, &saved);
    // The same initiator port through the same target port, and another one.
    let other = second.attach(2);
    second.clear_pending(second.nexus);
    let write = [0x0a, 0, 0, 1, 1, 0];
    assert_eq!(second.send_data(&write, &[7; 512]).status, Status::Good);
    assert_eq!(second.send_from(other, &write, &[7; 512]).status, Status::ReservationConflict);
    let keys = good(&second.send(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0]));
    assert_eq!(keys, [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1], "PRGENERATION goes on too");
}

#[test]
pub(in crate::scsi) fn what_vanished_meanwhile_is_told_to_those_who_had_it() {
    let store = Rc::new(Kept::default());
    let bench = Bench::pair_with(store.clone(), &PersistedReservations::default());
    let (two, three) = (bench.attach(2), bench.attach(3));
    register(&bench, two, 2, None);
    register(&bench, three, 3, None);
    register(&bench, bench.nexus, 1, Some(5)); // write exclusive, registrants only
    let before = store.saved.borrow().clone();
    leave(&bench);
    [bench.nexus, two, three].iter().for_each(|nexus| bench.clear_pending(*nexus));
    // One was preempted and the reservation is gone.
    let mut after = before.clone();
    after.generation += 1;
    after.registrations.retain(|registration| registration.key != 2);
    after.registrations.iter_mut().for_each(|registration| registration.holder = false);
    after.reservation_type = None;
    bench.unit.learn_reservations(&after).unwrap();
    assert_eq!(attentions(&bench, two), [0x2a05]);
    assert_eq!(attentions(&bench, three), [0x2a04]);
    // What was learnt is not told again; then everything is cleared.
    reattach(&bench, &after);
    assert_eq!(attentions(&bench, two), [0x2a06]);
    leave(&bench);
    [bench.nexus, two, three].iter().for_each(|nexus| bench.clear_pending(*nexus));
    reattach(&bench, &PersistedReservations { generation: 9, ..PersistedReservations::default() });
    assert_eq!(attentions(&bench, two), [0x2a06]);
    assert_eq!(attentions(&bench, three), [0x2a03, 0x2a06]);
    // With a device, its own state is the truth.
    bench.unit.learn_reservations(&before).unwrap();
    assert_eq!(attentions(&bench, three), NOTHING);
    bench.clear_pending(bench.nexus);
    assert_eq!(good(&bench.send(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0]))[..8], [0, 0, 0, 9, 0, 0, 0, 0]);
}

#[test]
fn reservations_that_cannot_be_read_leave_the_unit_without_a_device() {
    let bench = Bench::pair();
    leave(&bench);
    let unknown = PersistedReservations { version: 99, ..PersistedReservations::default() };
    assert_eq!(
        bench.unit.attach_device(bench.device.clone(), &unknown),
        Err(RestoreError::UnknownVersion(99))
    );
    assert!(!bench.unit.has_device());
    assert_eq!(bench.unit.learn_reservations(&unknown), Err(RestoreError::UnknownVersion(99)));
}

#[test]
fn a_reservation_command_that_is_caught_is_not_good_and_changes_nothing_here() {
    let store = Rc::new(Kept::default());
    let bench = Bench::pair_with(store.clone(), &PersistedReservations::default());
    store.held.set(true);
    let mut list = [0; 24];
    list[15] = 1;
    let mut caught = begin(&bench, 1, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list);
    assert!(poll(&mut caught).is_pending());
    run(bench.unit.detach_device()); // does not wait for what may never be saved
    reattach(&bench, &PersistedReservations::default());
    bench.clear_pending(bench.nexus);
    store.held.set(false);
    assert_eq!(sense_of(&run(caught).unwrap()), (2, 0x040a));
    assert_eq!(good(&bench.send(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0])), [0; 8]);
}

#[test]
fn a_reserve_that_waits_for_others_is_not_good_without_its_reservation() {
    let bench = Bench::pair_with(Rc::new(Volatile), &PersistedReservations::default());
    bench.device.state().held.set(true);
    let mut read = begin(&bench, 1, &[0x08, 0, 0, 0, 1, 0], &[]);
    assert!(poll(&mut read).is_pending());
    let mut reserve = begin(&bench, 2, &[0x16, 0, 0, 0, 0, 0], &[]);
    assert!(poll(&mut reserve).is_pending());
    let detached = bench.unit.detach_device();
    bench.device.state().held.set(false);
    assert_eq!(run(read).unwrap().status, Status::Good);
    assert_eq!(sense_of(&run(reserve).unwrap()), (2, 0x040a));
    run(detached);
}
