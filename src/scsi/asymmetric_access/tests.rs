//! Tests of the access states: what is executed in which, who is told, what is held back, I23.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use rand::{RngExt, SeedableRng};

use super::super::command::{Command, Status};
use super::super::operation::Operation;
use super::super::task_set::TaskAttribute;
use super::super::testing::{Bench, good, nexus, run, sense_of};
use super::*;
use crate::scsi::identity::Nexus;
use crate::scsi::reservation::PersistedReservations;

const ALL: [AccessState; 5] = [
    AccessState::ActiveOptimized,
    AccessState::ActiveNonOptimized,
    AccessState::Standby,
    AccessState::Unavailable,
    AccessState::Transitioning,
];

/// Counts how often it is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A node that presents the unit in `state` and does not serve it.
fn without_device(state: AccessState) -> Bench {
    let bench = Bench::pair();
    bench.set_states(state, AccessState::ActiveOptimized);
    run(bench.unit.detach_device());
    bench.clear_pending(bench.nexus);
    bench
}

#[test]
pub(in crate::scsi) fn a_node_that_does_not_serve_never_reports_active_optimized_for_itself() {
    for told in ALL {
        assert_eq!(told.as_reported(true, true), told);
        assert_eq!(told.as_reported(false, false), told, "the other node's state is as it was told");
        assert_ne!(told.as_reported(true, false), AccessState::ActiveOptimized);
    }
    // The same in what hosts read, whatever comes in whatever order.
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(23);
    let bench = Bench::pair();
    let (mut served, mut refused) = (0, 0);
    for _ in 0..3000 {
        match random.random_range(0..4) {
            0 => bench.set_states(ALL[random.random_range(0..5)], ALL[random.random_range(0..5)]),
            1 => bench.cluster.may_serve.set(random.random()),
            2 => run(bench.unit.detach_device()),
            _ if bench.unit.has_device() => {}
            _ => bench.unit.attach_device(bench.device.clone(), &PersistedReservations::default()).unwrap(),
        }
        let serves = bench.unit.has_device() && bench.cluster.may_serve.get();
        bench.clear_pending(bench.nexus);
        let report = good(&bench.send(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]));
        assert!(serves || report[4] & 0x0f != 0, "active/optimized without the right to be");
        let read = bench.send(&[0x08, 0, 0, 0, 1, 0]);
        assert!(serves || read.status != Status::Good);
        *(if read.status == Status::Good { &mut served } else { &mut refused }) += 1;
    }
    assert!(served > 100 && refused > 100);
}

#[test]
fn each_state_refuses_by_its_own_sense() {
    let cases = [
        (AccessState::ActiveOptimized, 0x040a), // which it is not, without a device
        (AccessState::ActiveNonOptimized, 0x040a),
        (AccessState::Standby, 0x040b),
        (AccessState::Unavailable, 0x040c),
        (AccessState::Transitioning, 0x040a),
    ];
    for (state, code) in cases {
        let bench = without_device(state);
        assert_eq!(sense_of(&bench.send(&[0; 6])), (2, code), "TEST UNIT READY, {state:?}");
        assert_eq!(sense_of(&bench.send(&[0x08, 0, 0, 0, 1, 0])), (2, code), "READ, {state:?}");
        assert_eq!(sense_of(&bench.send_data(&[0x0a, 0, 0, 0, 1, 0], &[1; 512])), (2, code));
        let sense = good(&bench.send(&[0x03, 0, 0, 0, 18, 0]));
        assert_eq!((sense[2], u16::from_be_bytes([sense[12], sense[13]])), (2, code), "REQUEST SENSE");
    }
}

#[test]
fn what_each_state_executes() {
    let always = [0x12, 0xa0, 0x03, 0xa3, 0xa4];
    let in_standby = [0x25, 0x9e, 0x1a, 0x5a, 0x4d, 0x1d];
    for state in [AccessState::Standby, AccessState::Unavailable, AccessState::Transitioning] {
        let bench = without_device(state);
        for operation in Operation::all() {
            let mut cdb = vec![0; operation.usage.len()];
            (cdb[0], cdb[1]) = (operation.opcode, operation.service_action.unwrap_or(0) as u8);
            let response = bench.send(&cdb);
            let refused = response.status == Status::CheckCondition && sense_of(&response).1 >> 8 == 0x04;
            let executed = always.contains(&operation.opcode)
                || state == AccessState::Standby
                    && in_standby.contains(&operation.opcode)
                    && operation.service_action != Some(0x12);
            assert_eq!(refused, !executed, "{state:?} {operation:?}: {response:?}");
        }
    }
}

#[test]
fn a_standby_path_shows_the_same_unit_through_its_own_port() {
    let serving = Bench::pair();
    let standby = without_device(AccessState::Standby);
    let through_2 = Nexus { target_port: TargetPort { relative_id: 2, portal_group: 2 }, ..nexus(1) };
    let id = serving.unit.attach(through_2);
    serving.clear_pending(id);
    for cdb in
        [&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0x12, 1, 0x80, 0, 255, 0], &[0x12, 1, 0xb0, 0, 255, 0]]
    {
        assert_eq!(good(&standby.send(cdb)), good(&serving.send(cdb)));
    }
    let designators = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let mut rest = &bytes[4..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = 4 + usize::from(rest[3]);
            found.push(rest[..length].to_vec());
            rest = &rest[length..];
        }
        found
    };
    let page = [0x12, 1, 0x83, 2, 0, 0];
    let (one, two) =
        (designators(&good(&standby.send(&page))), designators(&good(&serving.send_from(id, &page, &[]))));
    // NAA, T10, relative port, port group, port name, target name.
    assert_eq!((&one[..2], &one[5]), (&two[..2], &two[5]));
    assert_eq!(
        (&one[2][..], &two[2][..]),
        (&[0x51, 0x94, 0, 4, 0, 0, 0, 1][..], &[0x51, 0x94, 0, 4, 0, 0, 0, 2][..])
    );
    assert_eq!(
        (&one[3][..], &two[3][..]),
        (&[0x51, 0x95, 0, 4, 0, 0, 0, 1][..], &[0x51, 0x95, 0, 4, 0, 0, 0, 2][..])
    );
    assert!(one[4].windows(8).any(|text| text == b",t,0x000") && one[4] != two[4]);
}

#[test]
fn the_port_that_a_command_came_through_decides() {
    let bench = Bench::pair();
    let through_2 = Nexus { target_port: TargetPort { relative_id: 2, portal_group: 2 }, ..nexus(2) };
    let id = bench.unit.attach(through_2);
    bench.clear_pending(id);
    assert_eq!(sense_of(&bench.send_from(id, &[0; 6], &[])), (2, 0x040b));
    bench.set_states(AccessState::ActiveOptimized, AccessState::ActiveNonOptimized);
    assert_eq!(sense_of(&bench.send_from(id, &[0; 6], &[])), (6, 0x2a06));
    assert_eq!(bench.send_from(id, &[0; 6], &[]).status, Status::Good);
}

#[test]
fn a_change_is_told_to_every_nexus_once_and_a_transition_is_none() {
    let bench = Bench::pair();
    let other = bench.attach(2);
    let attention = |nexus| {
        let response = bench.send_from(nexus, &[0; 6], &[]);
        (response.status == Status::CheckCondition).then(|| sense_of(&response))
    };
    bench.set_states(AccessState::Transitioning, AccessState::Transitioning);
    assert_eq!(attention(bench.nexus), Some((2, 0x040a)));
    bench.set_states(AccessState::ActiveOptimized, AccessState::Standby);
    assert_eq!(attention(bench.nexus), None, "back to what it was");
    bench.set_states(AccessState::Transitioning, AccessState::Transitioning);
    bench.set_states(AccessState::Standby, AccessState::ActiveOptimized);
    bench.set_states(AccessState::Standby, AccessState::ActiveOptimized);
    for nexus in [bench.nexus, other] {
        assert_eq!(attention(nexus), Some((6, 0x2a06)));
        assert_eq!(attention(nexus), Some((2, 0x040b)));
    }
}

#[test]
fn commands_are_held_back_while_a_transition_lasts() {
    let bench = Bench::pair();
    bench.runtime.time_stands.set(true);
    bench.set_states(AccessState::Transitioning, AccessState::Standby);
    let task = bench.unit.admit(bench.nexus, 7, TaskAttribute::Simple).unwrap();
    let write = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![bytes::Bytes::from_static(&[7; 512])]);
    let mut execution = pin!(bench.unit.execute(task, write));
    let mut context = Context::from_waker(Waker::noop());
    assert!(execution.as_mut().poll(&mut context).is_pending());
    assert_eq!(sense_of(&bench.send(&[0; 6])), (2, 0x040a), "TEST UNIT READY is not");
    assert_eq!(good(&bench.send(&[0x12, 0, 0, 0, 36, 0])).len(), 36);
    // Nothing waits for what is held.
    run(bench.unit.detach_device());
    assert!(execution.as_mut().poll(&mut context).is_pending());
    bench.set_states(AccessState::Standby, AccessState::ActiveOptimized);
    bench.clear_pending(bench.nexus);
    let response = run(execution).unwrap();
    assert_eq!(sense_of(&response), (2, 0x040b));
    assert!(bench.device.state().blocks.borrow().is_empty());
}

#[test]
fn a_held_command_is_executed_when_its_node_serves() {
    let bench = without_device(AccessState::Transitioning);
    bench.runtime.time_stands.set(true);
    let task = bench.unit.admit(bench.nexus, 7, TaskAttribute::Simple).unwrap();
    let write = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![bytes::Bytes::from_static(&[7; 512])]);
    let mut execution = pin!(bench.unit.execute(task, write));
    let mut context = Context::from_waker(Waker::noop());
    assert!(execution.as_mut().poll(&mut context).is_pending());
    bench.unit.attach_device(bench.device.clone(), &PersistedReservations::default()).unwrap();
    bench.set_states(AccessState::ActiveOptimized, AccessState::Standby);
    assert_eq!(sense_of(&run(execution.as_mut()).unwrap()), (6, 0x2a06), "first things first");
    let write = [0x0a, 0, 0, 1, 1, 0];
    assert_eq!(bench.send_data(&write, &[7; 512]).status, Status::Good);
}

#[test]
fn a_held_command_is_executed_when_the_right_to_serve_is_back() {
    let bench = Bench::pair();
    bench.runtime.time_stands.set(true);
    bench.cluster.may_serve.set(false);
    let task = bench.unit.admit(bench.nexus, 7, TaskAttribute::Simple).unwrap();
    let write = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![bytes::Bytes::from_static(&[7; 512])]);
    let mut execution = pin!(bench.unit.execute(task, write));
    let wakes = Arc::new(Wakes::default());
    assert!(execution.as_mut().poll(&mut Context::from_waker(&wakes.clone().into())).is_pending());
    bench.cluster.may_serve.set(true);
    bench.unit.look_again();
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "nobody else would wake it");
    assert_eq!(run(execution).unwrap().status, Status::Good);
}

#[test]
fn a_held_command_is_aborted_like_any_other() {
    let bench = without_device(AccessState::Transitioning);
    bench.runtime.time_stands.set(true);
    let read = || Command::new(&[0x08, 0, 0, 0, 1, 0], 512);
    let task = bench.unit.admit(bench.nexus, 7, TaskAttribute::Simple).unwrap();
    let mut execution = pin!(bench.unit.execute(task, read()));
    let mut context = Context::from_waker(Waker::noop());
    assert!(execution.as_mut().poll(&mut context).is_pending());
    run(bench.unit.abort_task(bench.nexus, 7).unwrap().wait());
    assert_eq!(run(execution), None);
    assert!(bench.unit.asymmetric_access().held.borrow().is_empty(), "nothing is left of it");
    // And answered when the time is over.
    bench.runtime.time_stands.set(false);
    assert_eq!(sense_of(&bench.send(&[0x08, 0, 0, 0, 1, 0])), (2, 0x040a));
}
