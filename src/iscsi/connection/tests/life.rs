//! Pings, text, logout, task management, shutdown, timeouts.

use std::time::Duration;

use super::initiator::*;
use crate::iscsi::connection::{CloseReason, Event};
use crate::iscsi::pdu::login::LoginStatus;
use crate::iscsi::pdu::*;
use crate::iscsi::text::parse_keys;

fn nop(wire: &mut Wire, tag: u32, transfer_tag: u32) -> NopOut {
    NopOut {
        is_immediate: true,
        lun: LUN,
        initiator_task_tag: InitiatorTaskTag(tag),
        target_transfer_tag: TargetTransferTag(transfer_tag),
        command_sn: SerialNumber(wire.command_sn),
        expected_status_sn: SerialNumber(0),
    }
}

#[test]
fn a_ping_is_echoed() {
    let mut wire = Wire::logged_in(Setup::default());
    for (is_immediate, length) in [(true, 0), (false, 1), (true, 1000), (false, 262_144)] {
        let mut ping = nop(&mut wire, 5, u32::MAX);
        ping.is_immediate = is_immediate;
        if !is_immediate {
            ping.command_sn = wire.next_command_sn();
        }
        wire.send(&ping.emit(), &[], &pattern(length));
        let answer = wire.answer();
        let TargetPdu::NopIn(pdu) = answer.pdu else { panic!("{answer:?}") };
        assert_eq!((pdu.initiator_task_tag.0, pdu.target_transfer_tag.0), (5, u32::MAX));
        assert_eq!(answer.data, pattern(length));
        assert_eq!(pdu.serials.expected_command_sn.0, wire.command_sn);
    }
    let silent = nop(&mut wire, u32::MAX, u32::MAX);
    wire.send(&silent.emit(), &[], &[]);
    assert!(wire.answers().is_empty());
}

#[test]
fn silence_is_answered_by_a_ping_and_then_by_the_end() {
    let mut wire = Wire::logged_in(Setup::default());
    let interval = Duration::from_secs(15);
    wire.pass(interval);
    let TargetPdu::NopIn(ping) = wire.answer().pdu else { panic!() };
    assert_eq!(ping.initiator_task_tag, InitiatorTaskTag::RESERVED);
    let answer = nop(&mut wire, u32::MAX, ping.target_transfer_tag.0);
    wire.send(&answer.emit(), &[], &[]);
    wire.pass(interval);
    assert!(matches!(wire.answer().pdu, TargetPdu::NopIn(_)), "silent again for as long");
    assert_eq!(wire.connection.next_timeout(), Some(crate::base::runtime::Instant(45_000_000_000)));
    wire.pass(interval);
    assert_eq!(wire.closed(), CloseReason::PingTimeout);
    assert!(wire.connection.is_flushed() && wire.connection.is_drained());
}

#[test]
fn data_that_never_comes_ends_the_connection() {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::Write(1 << 20));
    wire.send_command(&command, &[]);
    assert!(matches!(wire.answer().pdu, TargetPdu::ReadyToTransfer(_)));
    assert_stalls(wire);
}

/// Pings don't make up for what does not come.
fn assert_stalls(mut wire: Wire) {
    for _ in 0..2 {
        wire.pass(Duration::from_secs(15));
        let ping = nop(&mut wire, 5, u32::MAX);
        wire.send(&ping.emit(), &[], &[]);
        wire.answers();
    }
    wire.pass(Duration::from_secs(15));
    assert_eq!(wire.closed(), CloseReason::Stalled);
}

#[test]
fn a_gap_that_nobody_fills_ends_the_connection() {
    let mut wire = Wire::logged_in(Setup::default());
    wire.next_command_sn();
    let command = wire.command(1, Kind::NoData);
    wire.send_command(&command, &[]);
    assert_stalls(wire);
}

#[test]
fn answers_that_nobody_takes_end_the_connection_and_stop_the_intake() {
    let mut wire = Wire::logged_in(Setup::default());
    let ping = nop(&mut wire, 5, u32::MAX);
    for _ in 0..4 {
        wire.send(&ping.emit(), &[], &pattern(200_000));
    }
    assert!(wire.connection.receive_buffer().is_empty(), "a backlog stops the intake");
    for _ in 0..3 {
        wire.pass(Duration::from_secs(15));
    }
    assert!(matches!(wire.closed(), CloseReason::Stalled | CloseReason::PingTimeout));
    wire.pass(Duration::from_secs(2));
    assert!(wire.connection.is_flushed(), "what nobody takes is thrown away");
}

#[test]
fn a_backlog_that_is_taken_lets_the_rest_in() {
    let mut wire = Wire::logged_in(Setup::default());
    let ping = nop(&mut wire, 5, u32::MAX);
    let mut sent = 0;
    while !wire.connection.receive_buffer().is_empty() {
        wire.send(&ping.emit(), &[], &pattern(10_000));
        sent += 1;
        assert!(sent < 100);
    }
    assert!(wire.answers().len() + 2 >= sent);
    assert!(!wire.connection.receive_buffer().is_empty());
}

fn text(wire: &mut Wire, transfer_tag: u32) -> TextRequest {
    TextRequest {
        is_immediate: true,
        is_final: true,
        continues: false,
        lun: LUN,
        initiator_task_tag: InitiatorTaskTag(77),
        target_transfer_tag: TargetTransferTag(transfer_tag),
        command_sn: SerialNumber(wire.command_sn),
        expected_status_sn: SerialNumber(0),
    }
}

/// Sends a text request and collects the whole response.
fn exchange(wire: &mut Wire, data: &[u8]) -> (usize, Vec<u8>) {
    let request = text(wire, u32::MAX);
    wire.send(&request.emit(), &[], data);
    let (mut parts, mut all) = (0, Vec::new());
    loop {
        let answer = wire.answer();
        let TargetPdu::Text(response) = answer.pdu else { panic!("{answer:?}") };
        parts += 1;
        all.extend_from_slice(&answer.data);
        if response.is_final {
            assert_eq!(response.target_transfer_tag, TargetTransferTag::RESERVED);
            return (parts, all);
        }
        assert!(response.continues);
        let next = text(wire, response.target_transfer_tag.0);
        wire.send(&next.emit(), &[], &[]);
    }
}

#[test]
fn discovery_lists_all_portals_of_the_targets_that_one_may_see() {
    let mut wire = Wire::session(Setup::default(), "Discovery");
    let (_, answer) = exchange(&mut wire, b"SendTargets=All\0");
    let expected =
        format!("TargetName={TARGET}\0TargetAddress=127.0.0.1:3260,1\0TargetAddress=[::1]:3260,2\0");
    assert_eq!(String::from_utf8(answer).unwrap(), expected);
    let (_, one) = exchange(&mut wire, format!("SendTargets={TARGET}\0").as_bytes());
    assert_eq!(String::from_utf8(one).unwrap(), expected);
    let (_, none) = exchange(&mut wire, b"SendTargets=iqn.2026-11.example:other\0");
    assert!(none.is_empty());
    for bad in [&b"SendTargets=\0"[..], b"SendTargets=nonsense\0"] {
        assert_eq!(exchange(&mut wire, bad).1, b"SendTargets=Reject\0");
    }
    let command = wire.command(1, Kind::NoData);
    wire.send_command(&command, &[]);
    assert_eq!(wire.rejected(), RejectReason::ProtocolError, "no commands in a discovery session");
}

#[test]
fn a_long_list_comes_in_parts() {
    let mut setup = Setup { keys: vec![("MaxRecvDataSegmentLength", "512")], ..Setup::default() };
    setup.policy.targets = 300;
    let mut wire = Wire::session(setup, "Discovery");
    let (parts, answer) = exchange(&mut wire, b"SendTargets=All\0");
    assert_eq!(parts, answer.len().div_ceil(512));
    assert_eq!(answer.split(|byte| *byte == 0).filter(|key| key.starts_with(b"TargetName=")).count(), 300);
}

#[test]
fn text_in_a_normal_session() {
    let mut setup = Setup::default();
    setup.policy.targets = 2;
    let mut wire = Wire::logged_in(setup);
    assert!(exchange(&mut wire, b"SendTargets=\0").1.starts_with(b"TargetName="));
    let own = exchange(&mut wire, b"SendTargets=\0").1;
    assert_eq!(exchange(&mut wire, b"SendTargets=All\0").1, own);
    let named = format!("SendTargets={TARGET}-1\0");
    assert!(exchange(&mut wire, named.as_bytes()).1.is_empty(), "another target is none of its business");
    let mixed = exchange(&mut wire, b"X-foo=1\0HeaderDigest=CRC32C\0MaxRecvDataSegmentLength=1024\0").1;
    let keys: Vec<_> = parse_keys(&mixed).unwrap().into_iter().map(|pair| (pair.key, pair.value)).collect();
    assert_eq!(keys, [("X-foo", "NotUnderstood"), ("HeaderDigest", "Reject")]);
    assert_eq!(wire.connection.parameters().unwrap().send_data_segment_length, 1024);
    // A request in parts.
    let mut first = text(&mut wire, u32::MAX);
    first.continues = true;
    first.is_final = false;
    wire.send(&first.emit(), &[], b"SendTa");
    let TargetPdu::Text(more) = wire.answer().pdu else { panic!() };
    assert!(!more.is_final && !more.continues);
    let second = text(&mut wire, more.target_transfer_tag.0);
    wire.send(&second.emit(), &[], b"rgets=\0");
    assert!(wire.answer().data.starts_with(b"TargetName="));
    // Wrong tags and broken text.
    let stray = text(&mut wire, 99);
    wire.send(&stray.emit(), &[], &[]);
    assert_eq!(wire.rejected(), RejectReason::InvalidPduField);
    let broken = text(&mut wire, u32::MAX);
    wire.send(&broken.emit(), &[], b"SendTargets");
    assert_eq!(wire.rejected(), RejectReason::ProtocolError);
    wire.assert_alive();
}

fn logout(wire: &mut Wire, reason: LogoutReason, connection_id: u16) -> LogoutRequest {
    LogoutRequest {
        is_immediate: true,
        reason,
        initiator_task_tag: InitiatorTaskTag(88),
        connection_id,
        command_sn: SerialNumber(wire.command_sn),
        expected_status_sn: SerialNumber(0),
    }
}

#[test]
fn logout_waits_for_the_drain() {
    for (reason, connection_id) in [(LogoutReason::CloseSession, 9), (LogoutReason::CloseConnection, 3)] {
        let mut wire = Wire::logged_in(Setup::default());
        let done = wire.command(1, Kind::NoData);
        wire.send_command(&done, &[]);
        let aborted = wire.command(2, Kind::NoData);
        wire.send_command(&aborted, &[]);
        let (done, aborted) = (wire.handed_up().task, wire.handed_up().task);
        let waiting = wire.command(3, Kind::Write(4096));
        wire.send_command(&waiting, &[]);
        assert!(matches!(wire.answer().pdu, TargetPdu::ReadyToTransfer(_)));
        let request = logout(&mut wire, reason, connection_id);
        wire.send(&request.emit(), &[], &[]);
        assert!(matches!(wire.event(), Some(Event::AbortTasks)));
        assert!(wire.answers().is_empty());
        wire.good(done, 0);
        assert_eq!(wire.response().0, 0);
        wire.connection.abandon_command(aborted, wire.now);
        let TargetPdu::Logout(response) = wire.answer().pdu else { panic!() };
        assert_eq!(response.result, LogoutResult::Closed);
        assert_eq!(wire.closed(), CloseReason::Logout);
        assert!(wire.event().is_none() && wire.connection.is_drained());
    }
}

#[test]
fn logout_of_what_is_not_there_is_refused() {
    let mut wire = Wire::logged_in(Setup::default());
    for (reason, connection_id, expected) in [
        (LogoutReason::CloseConnection, 4, LogoutResult::ConnectionNotFound),
        (LogoutReason::RemoveForRecovery, 3, LogoutResult::RecoveryNotSupported),
    ] {
        let request = logout(&mut wire, reason, connection_id);
        wire.send(&request.emit(), &[], &[]);
        let TargetPdu::Logout(response) = wire.answer().pdu else { panic!() };
        assert_eq!(response.result, expected);
    }
    wire.assert_alive();
}

#[test]
fn shutdown_asks_for_a_logout_and_then_drops() {
    let mut wire = Wire::logged_in(Setup::default());
    wire.connection.begin_async_logout(wire.now);
    wire.connection.begin_async_logout(wire.now);
    let TargetPdu::Asynchronous(message) = wire.answer().pdu else { panic!() };
    assert_eq!(message.event, AsynchronousEvent::LogoutRequested { within_s: 3 });
    wire.assert_alive();
    wire.pass(Duration::from_secs(3));
    assert_eq!(wire.closed(), CloseReason::LogoutTimeout);
    let TargetPdu::Asynchronous(message) = wire.answer().pdu else { panic!() };
    assert!(matches!(message.event, AsynchronousEvent::SessionDropped { .. }));
}

#[test]
fn abort_task_answers_after_the_drain_and_the_task_stays_silent() {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::NoData);
    wire.send_command(&command, &[]);
    let task = wire.handed_up().task;
    let abort = wire.management(TaskManagementFunction::AbortTask, 1);
    wire.send(&abort.emit(), &[], &[]);
    let Some(Event::TaskManagement(management)) = wire.event() else { panic!() };
    assert_eq!((management.function, management.task), (TaskManagementFunction::AbortTask, Some(task)));
    assert!(wire.answers().is_empty());
    wire.connection.abandon_command(task, wire.now);
    wire.connection.complete_task_management(management.id, TaskManagementResult::Complete, wire.now);
    assert_eq!(wire.managed(), TaskManagementResult::Complete);
    wire.connection.complete_task_management(management.id, TaskManagementResult::Complete, wire.now);
    assert!(wire.answers().is_empty(), "one answer");
    wire.assert_alive();
}

#[test]
fn a_task_that_outlives_its_abortion_stays_silent() {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::NoData);
    wire.send_command(&command, &[]);
    let task = wire.handed_up().task;
    let reset = wire.management(TaskManagementFunction::LogicalUnitReset, u32::MAX);
    wire.send(&reset.emit(), &[], &[]);
    let Some(Event::TaskManagement(management)) = wire.event() else { panic!() };
    let younger = wire.command(1 << 8, Kind::NoData);
    wire.send_command(&younger, &[]);
    let younger = wire.handed_up().task;
    wire.connection.complete_task_management(management.id, TaskManagementResult::Complete, wire.now);
    assert_eq!(wire.managed(), TaskManagementResult::Complete);
    wire.good(task, 0);
    assert!(wire.answers().is_empty());
    wire.good(younger, 0);
    assert_eq!(wire.response().0, 0, "it came after the reset");
}

#[test]
fn commands_that_the_driver_never_saw_are_aborted_here() {
    use TaskManagementFunction as Function;
    let functions = [Function::AbortTask, Function::AbortTaskSet, Function::ClearTaskSet];
    for function in functions.into_iter().chain([Function::LogicalUnitReset, Function::TargetWarmReset]) {
        let mut wire = Wire::logged_in(Setup::default());
        let write = wire.command(1, Kind::Write(65536));
        wire.send_command(&write, &[]);
        let TargetPdu::ReadyToTransfer(r2t) = wire.answer().pdu else { panic!() };
        let request = wire.management(function, 1);
        wire.send(&request.emit(), &[], &[]);
        if function != Function::AbortTask {
            let Some(Event::TaskManagement(management)) = wire.event() else { panic!() };
            wire.connection.complete_task_management(management.id, TaskManagementResult::Complete, wire.now);
        }
        assert_eq!(wire.managed(), TaskManagementResult::Complete);
        // Data that was on its way is ignored; a new task may use the tag.
        let late = wire.data_out(1, r2t.target_transfer_tag.0, 0, 0);
        wire.send(&late.emit(), &[], &pattern(65536));
        assert!(wire.event().is_none() && wire.answers().is_empty(), "{function:?}");
        let again = wire.command(1, Kind::Write(4096));
        wire.send_command(&again, &pattern(4096));
        assert_eq!(wire.handed_up().data_out.concat(), pattern(4096));
    }
}

#[test]
fn an_abort_can_fill_a_gap() {
    let mut wire = Wire::logged_in(Setup::default());
    let lost = wire.command(1, Kind::NoData);
    let next = wire.command(2, Kind::NoData);
    wire.send_command(&next, &[]);
    assert!(wire.event().is_none());
    let mut abort = wire.management(TaskManagementFunction::AbortTask, 1);
    abort.referenced_command_sn = lost.command_sn;
    wire.send(&abort.emit(), &[], &[]);
    assert_eq!(wire.managed(), TaskManagementResult::Complete);
    assert_eq!(wire.handed_up().cdb.as_slice()[0], 2);
    wire.send(&abort.emit(), &[], &[]);
    assert_eq!(wire.managed(), TaskManagementResult::TaskDoesNotExist);
    // A command that waits behind a gap, aborted, leaves none itself.
    let gap = wire.command(3, Kind::NoData);
    let early = wire.command(4, Kind::NoData);
    wire.send_command(&early, &[]);
    let abort = wire.management(TaskManagementFunction::AbortTask, 4);
    wire.send(&abort.emit(), &[], &[]);
    assert_eq!(wire.managed(), TaskManagementResult::Complete);
    wire.send_command(&gap, &[]);
    assert_eq!(wire.handed_up().cdb.as_slice()[0], 3);
    wire.assert_alive();
}

#[test]
fn functions_that_make_no_sense_here_are_refused_at_once() {
    let mut wire = Wire::logged_in(Setup::default());
    let mut ask = |function| {
        let request = wire.management(function, 1);
        wire.send(&request.emit(), &[], &[]);
        assert!(wire.event().is_none());
        wire.managed()
    };
    use TaskManagementFunction as Function;
    assert_eq!(ask(Function::TaskReassign), TaskManagementResult::ReassignmentNotSupported);
    assert_eq!(ask(Function::Other(9)), TaskManagementResult::NotSupported);
    assert_eq!(ask(Function::AbortTask), TaskManagementResult::TaskDoesNotExist);
}

#[test]
fn functions_under_way_are_limited_and_a_cold_reset_ends_the_connection() {
    let mut wire = Wire::logged_in(Setup::default());
    let mut ids = Vec::new();
    for _ in 0..16 {
        let request = wire.management(TaskManagementFunction::TargetColdReset, 1);
        wire.send(&request.emit(), &[], &[]);
        let Some(Event::TaskManagement(management)) = wire.event() else { panic!() };
        ids.push(management.id);
    }
    let request = wire.management(TaskManagementFunction::TargetColdReset, 1);
    wire.send(&request.emit(), &[], &[]);
    assert_eq!(wire.managed(), TaskManagementResult::Rejected);
    wire.connection.complete_task_management(ids[0], TaskManagementResult::NotSupported, wire.now);
    assert_eq!(wire.managed(), TaskManagementResult::NotSupported);
    wire.connection.complete_task_management(ids[1], TaskManagementResult::Complete, wire.now);
    assert_eq!(wire.managed(), TaskManagementResult::Complete);
    assert_eq!(wire.closed(), CloseReason::Dropped);
}

#[test]
fn the_end_keeps_what_the_driver_holds_until_it_is_done() {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::Write(4096));
    wire.send_command(&command, &pattern(4096));
    let task = wire.handed_up().task;
    wire.connection.handle_disconnected(wire.now);
    assert_eq!(wire.closed(), CloseReason::Disconnected);
    assert!(!wire.connection.is_drained() && wire.connection.is_flushed());
    wire.good(task, 4096);
    assert!(wire.connection.is_drained() && wire.connection.is_flushed());
    assert!(wire.event().is_none());
}

#[test]
fn a_dropped_connection_says_so() {
    let mut wire = Wire::logged_in(Setup::default());
    wire.connection.drop_connection(CloseReason::Reinstated, wire.now);
    assert!(matches!(wire.answer().pdu, TargetPdu::Asynchronous(_)));
    assert_eq!(wire.closed(), CloseReason::Reinstated);
    assert_eq!(wire.connection.closing(), Some(CloseReason::Reinstated));
}

#[test]
fn a_scsi_event_carries_its_sense() {
    let mut wire = Wire::logged_in(Setup::default());
    wire.connection.send_scsi_event(LUN, &[1, 2, 3], wire.now);
    let answer = wire.answer();
    let TargetPdu::Asynchronous(message) = answer.pdu else { panic!() };
    assert_eq!((message.event, answer.data), (AsynchronousEvent::Scsi, vec![0, 3, 1, 2, 3]));
}

#[test]
fn a_login_that_does_not_end_is_ended() {
    let setup = Setup::default();
    let mut wire = Wire::new(&setup, TestPolicy::default());
    wire.send_bytes(&[0x43; 20]);
    wire.pass(Duration::from_secs(14));
    assert!(wire.event().is_none());
    wire.pass(Duration::from_secs(1));
    assert_eq!(wire.closed(), CloseReason::LoginTimeout);
    assert!(wire.connection.receive_buffer().is_empty());
}

#[test]
fn a_session_that_is_refused_is_told_so() {
    let setup = Setup::default();
    let mut wire = Wire::new(&setup, TestPolicy::default());
    let mut request = wire.login_request(Stage::Operational);
    request.next_stage = Some(Stage::FullFeature);
    let text = format!("InitiatorName={HOST}\0TargetName={TARGET}\0");
    wire.send(&request.emit(), &[], text.as_bytes());
    assert!(matches!(wire.event(), Some(Event::SessionRequested(_))));
    assert!(wire.connection.receive_buffer().is_empty(), "nothing is read while the session waits");
    wire.connection.refuse_session(LoginStatus::OUT_OF_RESOURCES, wire.now);
    let TargetPdu::Login(response) = wire.answer().pdu else { panic!() };
    assert_eq!(response.status, LoginStatus::OUT_OF_RESOURCES);
    assert!(matches!(wire.closed(), CloseReason::LoginFailed(_)));
}
