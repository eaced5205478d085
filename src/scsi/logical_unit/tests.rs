//! Tests of the logical unit: nexuses, transfers, aborts, order, device errors.

use std::future::Future;
use std::pin::pin;
use std::task::{Poll, Waker};

use bytes::Bytes;

use super::*;
use crate::scsi::limits;
use crate::scsi::rate_limit::RateLimits;
use crate::scsi::testing::{Bench, good, nexus, run, sense_of};

#[test]
fn a_new_nexus_hears_of_a_power_on_and_a_returning_one_of_its_loss() {
    let bench = Bench::new();
    let id = bench.unit.attach(nexus(7));
    assert_eq!(sense_of(&bench.send_from(id, &[0; 6], &[])), (6, 0x2900));
    assert_eq!(bench.send_from(id, &[0; 6], &[]).status, Status::Good);
    run(bench.unit.detach(id).wait());
    let id = bench.unit.attach(nexus(7));
    // INQUIRY neither reports nor clears it.
    good(&bench.send_from(id, &[0x12, 0, 0, 0, 36, 0], &[]));
    assert_eq!(sense_of(&bench.send_from(id, &[0; 6], &[])), (6, 0x2907));
}

#[test]
fn what_is_written_is_read_back_through_every_cdb_size() {
    let bench = Bench::new();
    let writes: [&[u8]; 4] = [
        &[0x0a, 0, 0, 5, 1, 0],
        &[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0],
        &[0xaa, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0],
        &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0],
    ];
    for (index, write) in writes.iter().enumerate() {
        let data = [index as u8 + 1; 512];
        let response = bench.send_data(write, &data);
        assert_eq!((response.status, response.data_out_length), (Status::Good, 512));
        for write in writes {
            let mut read = write.to_vec();
            read[0] -= 2;
            assert_eq!(good(&bench.send(&read)), data);
        }
    }
    assert_eq!(bench.unit.statistics().written_bytes.get(), 4 * 512);
}

#[test]
fn ranges_outside_the_device_are_refused() {
    let bench = Bench::new();
    let read = |address: u32, count: u16| {
        let mut cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        cdb[2..6].copy_from_slice(&address.to_be_bytes());
        cdb[7..9].copy_from_slice(&count.to_be_bytes());
        bench.send(&cdb)
    };
    assert_eq!(sense_of(&read(16384, 1)), (5, 0x2100));
    assert_eq!(sense_of(&read(16383, 2)), (5, 0x2100));
    assert_eq!(sense_of(&read(16385, 0)), (5, 0x2100));
    assert_eq!(sense_of(&read(u32::MAX, u16::MAX)), (5, 0x2100));
    assert_eq!(read(16384, 0).status, Status::Good);
    assert_eq!(good(&read(16383, 1)).len(), 512);
    let mut cdb = [0xff; 16];
    (cdb[0], cdb[1], cdb[15]) = (0x88, 0, 0);
    assert_eq!(sense_of(&bench.send(&cdb)), (5, 0x2100));
}

#[test]
fn a_write_with_less_data_than_announced_writes_what_came() {
    let bench = Bench::new();
    let response = bench.send_data(&[0x0a, 0, 0, 0, 2, 0], &[1; 512]);
    assert_eq!((response.status, response.data_out_length), (Status::Good, 1024));
    assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 2, 0]))[511..514], [1, 0, 0]);
    let response = bench.send_data(&[0x2e, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[2; 700]);
    assert_eq!((response.status, response.data_out_length), (Status::Good, 1024));
    let expected = [[2; 700].as_slice(), &[0; 324]].concat();
    assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 2, 0])), expected);
    assert_eq!(bench.send(&[0x0a, 0, 0, 0, 1, 0]).status, Status::Good);
    assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 2, 0])), expected);
}

#[test]
fn only_what_the_initiator_accepts_is_read() {
    let bench = Bench::new();
    let task = bench.unit.admit(bench.nexus, 1, TaskAttribute::Simple).unwrap();
    let command = Command::new(&[0x28, 0, 0, 0, 0, 0, 0, 0, 4, 0], 700);
    let response = run(bench.unit.execute(task, command)).unwrap();
    assert_eq!(response.data_in_length, 4 * 512);
    assert_eq!(response.data_in.concat().len(), 2 * 512);
}

#[test]
pub(in crate::scsi) fn an_aborted_write_is_waited_for_and_answered_by_nobody() {
    let bench = Bench::new();
    bench.device.state().held.set(true);
    let task = bench.unit.admit(bench.nexus, 9, TaskAttribute::Simple).unwrap();
    let write = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![Bytes::from_static(&[7; 512])]);
    let mut execution = pin!(bench.unit.execute(task, write));
    let mut context = std::task::Context::from_waker(Waker::noop());
    assert!(execution.as_mut().poll(&mut context).is_pending());
    assert!(bench.unit.abort_task(bench.nexus, 8).is_none());
    let drain = bench.unit.abort_task(bench.nexus, 9).unwrap();
    let mut wait = pin!(drain.wait());
    assert!(wait.as_mut().poll(&mut context).is_pending());
    bench.device.state().held.set(false);
    assert_eq!(execution.as_mut().poll(&mut context), Poll::Ready(None));
    assert!(wait.as_mut().poll(&mut context).is_ready());
}

#[test]
pub(in crate::scsi) fn an_aborted_task_that_has_not_started_never_writes() {
    let bench = Bench::new();
    let other = bench.attach(2);
    let task = bench.unit.admit(other, 1, TaskAttribute::Simple).unwrap();
    run(bench.unit.clear_task_set(bench.nexus).wait());
    assert!(task.is_aborted());
    let write = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![Bytes::from_static(&[7; 512])]);
    assert_eq!(run(bench.unit.execute(task, write)).unwrap().status, Status::TaskAborted);
    assert!(bench.device.state().blocks.borrow().is_empty());
    assert_eq!(sense_of(&bench.send_from(other, &[0; 6], &[])), (6, 0x2f00));
}

#[test]
fn a_nexus_that_is_gone_has_no_effect_any_more() {
    let bench = Bench::new();
    run(bench.unit.detach(bench.nexus).wait());
    let task = bench.unit.admit(bench.nexus, 1, TaskAttribute::Simple).unwrap();
    let write = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![Bytes::from_static(&[7; 512])]);
    assert_eq!(run(bench.unit.execute(task, write)), None);
    assert!(bench.device.state().blocks.borrow().is_empty());
}

#[test]
pub(in crate::scsi) fn ordered_tasks_wait_for_older_ones_and_hold_younger_ones() {
    let bench = Bench::new();
    let admit = |attribute| bench.unit.admit(bench.nexus, 1, attribute).unwrap();
    let (first, ordered, last) =
        (admit(TaskAttribute::Simple), admit(TaskAttribute::Ordered), admit(TaskAttribute::Simple));
    let read = || Command::new(&[0x08, 0, 0, 0, 1, 0], 512);
    let mut context = std::task::Context::from_waker(Waker::noop());
    let mut last = pin!(bench.unit.execute(last, read()));
    let mut ordered = pin!(bench.unit.execute(ordered, read()));
    assert!(last.as_mut().poll(&mut context).is_pending());
    assert!(ordered.as_mut().poll(&mut context).is_pending());
    run(bench.unit.execute(first, read()));
    assert!(last.as_mut().poll(&mut context).is_pending());
    assert!(ordered.as_mut().poll(&mut context).is_ready());
    assert!(last.as_mut().poll(&mut context).is_ready());
}

#[test]
fn what_waits_for_its_share_can_be_aborted_and_goes_when_the_limit_does() {
    let bench = Bench::new();
    bench.runtime.time_stands.set(true);
    bench.unit.rate_limiter().set(RateLimits { operations_per_second: 20, bytes_per_second: 0 });
    let write = || Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![Bytes::from_static(&[7; 512])]);
    for _ in 0..20 {
        assert_eq!(bench.send_data(&[0x0a, 0, 0, 0, 1, 0], &[1; 512]).status, Status::Good);
    }
    let execute = |tag| {
        let task = bench.unit.admit(bench.nexus, tag, TaskAttribute::Simple).unwrap();
        bench.unit.execute(task, write())
    };
    let (mut aborted, mut waiting) = (pin!(execute(1)), pin!(execute(2)));
    let mut context = std::task::Context::from_waker(Waker::noop());
    assert!(aborted.as_mut().poll(&mut context).is_pending());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    // Nothing that reaches for the medium: it waits for nothing.
    assert_eq!(bench.send(&[0; 6]).status, Status::Good);
    let drain = bench.unit.abort_task(bench.nexus, 1).unwrap();
    assert_eq!(aborted.as_mut().poll(&mut context), Poll::Ready(None));
    run(drain.wait());
    bench.runtime.poll();
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    assert!(!bench.device.state().blocks.borrow().contains_key(&1));
    bench.unit.rate_limiter().set(RateLimits::default());
    bench.runtime.poll();
    let Poll::Ready(Some(response)) = waiting.as_mut().poll(&mut context) else { panic!("it waits") };
    assert_eq!(response.status, Status::Good);
    assert!(bench.device.state().blocks.borrow().contains_key(&1));
}

#[test]
fn a_full_or_resetting_task_set_refuses() {
    let bench = Bench::new();
    let held: Vec<_> = (0..limits::TASKS_PER_NEXUS as u64)
        .map(|tag| bench.unit.admit(bench.nexus, tag, TaskAttribute::Simple).unwrap())
        .collect();
    let refused = bench.unit.admit(bench.nexus, 1, TaskAttribute::Simple).unwrap_err();
    assert_eq!(refused.status, Status::TaskSetFull);
    let other = bench.attach(2);
    let drain = bench.unit.reset(Some(other));
    let refused = bench.unit.admit(other, 1, TaskAttribute::Simple).unwrap_err();
    assert_eq!(refused.status, Status::Busy);
    run(drain.wait());
    drop(held);
    assert_eq!(sense_of(&bench.send(&[0; 6])), (6, 0x2903));
}

#[test]
fn device_errors_become_sense_data() {
    use crate::volume::device::DeviceError;
    let bench = Bench::new();
    let cases = [
        (DeviceError::OutOfSpace, (7, 0x2707)),
        (DeviceError::Medium { address: 5 }, (3, 0x1100)),
        (DeviceError::Offline, (2, 0x0401)),
        (DeviceError::Gone, (5, 0x2500)),
    ];
    for (error, sense) in cases {
        *bench.device.state().failure.borrow_mut() = Some(error);
        assert_eq!(sense_of(&bench.send_data(&[0x0a, 0, 0, 1, 1, 0], &[7; 512])), sense);
    }
    *bench.device.state().failure.borrow_mut() = Some(DeviceError::Medium { address: 5 });
    let response = bench.send(&[0x08, 0, 0, 0, 8, 0]);
    assert_eq!(response.sense[3..7], [0, 0, 0, 5]);
}

#[test]
fn a_resize_is_announced_to_all() {
    let bench = Bench::new();
    let other = bench.attach(2);
    bench.unit.capacity_changed();
    assert_eq!(sense_of(&bench.send(&[0; 6])), (6, 0x2a09));
    assert_eq!(sense_of(&bench.send_from(other, &[0; 6], &[])), (6, 0x2a09));
}
