//! Commands, data in both directions, residuals, ordering, memory.

use bytes::Bytes;

use super::initiator::*;
use crate::base::buffer::is_block_aligned;
use crate::iscsi::budget::DataBudget;
use crate::iscsi::connection::{Event, ScsiResult};
use crate::iscsi::pdu::*;
use crate::iscsi::settings::TargetSettings;

#[test]
fn a_command_without_data_goes_up_and_its_status_down() {
    let mut wire = Wire::logged_in(Setup::default());
    let mut command = wire.command(1, Kind::NoData);
    command.cdb = Cdb::new(&[0x7f; 32]);
    wire.send_command(&command, &[]);
    let handed = wire.handed_up();
    assert_eq!((handed.cdb.as_slice(), handed.lun), (&[0x7f; 32][..], LUN));
    assert!(handed.data_out.is_empty() && !wire.connection.is_drained());
    let sense = vec![0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0];
    let result = ScsiResult { status: 2, sense, ..ScsiResult::default() };
    wire.connection.complete_command(handed.task, result, wire.now);
    assert_eq!(wire.response(), (2, Residual::None, (0x24, 0)));
    assert!(wire.connection.is_drained());
    // A second completion of the same command is none.
    wire.good(handed.task, 0);
    assert!(wire.answers().is_empty());
}

#[test]
fn immediate_data_arrives_aligned_in_one_piece() {
    for step in [usize::MAX, 1, 7, 4096] {
        let mut wire = Wire::logged_in(Setup::default());
        wire.step = step;
        for (tag, length) in [(1, 4096), (2, 512), (3, 65536), (4, 262_144)] {
            let data = pattern(length);
            let command = wire.command(tag, Kind::Write(length as u32));
            wire.send_command(&command, &data);
            let handed = wire.handed_up();
            assert_eq!(handed.data_out.concat(), data);
            assert_eq!(handed.data_out.len(), 1);
            assert_eq!(is_block_aligned(&handed.data_out[0]), length % 4096 == 0);
            wire.good(handed.task, length as u64);
            assert_eq!(wire.response(), (0, Residual::None, (0, 0)));
        }
    }
}

#[test]
fn many_pdus_in_one_read_and_many_answers_in_one_send() {
    let mut wire = Wire::logged_in(Setup::default());
    let mut bytes = Vec::new();
    for tag in 0..32 {
        let command = wire.command(tag, Kind::Write(4096));
        framing::append_pdu(&mut bytes, command.emit(), &[], &pattern(4096), wire.digests);
    }
    wire.send_bytes(&bytes);
    let tasks: Vec<_> = (0..32).map(|_| wire.handed_up().task).collect();
    tasks.into_iter().for_each(|task| wire.good(task, 4096));
    let mut slices = [std::io::IoSlice::new(&[]); 8];
    assert_eq!(wire.connection.transmit_slices(&mut slices), 1, "responses share one slice");
    let answers = wire.answers();
    assert_eq!(answers.len(), 32);
    let numbers: Vec<_> = answers
        .iter()
        .map(|answer| match &answer.pdu {
            TargetPdu::ScsiResponse(response) => response.serials.status_sn.0,
            other => panic!("{other:?}"),
        })
        .collect();
    // The login response had u32::MAX - 1.
    let expected: Vec<_> = (0..32).map(|index| u32::MAX.wrapping_add(index)).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn solicited_data_comes_in_bursts_and_lands_at_its_offset() {
    let keys = vec![
        ("InitialR2T", "Yes"),
        ("ImmediateData", "No"),
        ("MaxBurstLength", "65536"),
        ("MaxOutstandingR2T", "2"),
    ];
    let mut wire = Wire::logged_in(Setup { keys, ..Setup::default() });
    let data = pattern(200_000);
    let command = wire.command(9, Kind::Write(200_000));
    wire.send_command(&command, &[]);
    let mut asked = requests(&mut wire);
    assert_eq!(asked.iter().map(|r2t| r2t.r2t_sn).collect::<Vec<_>>(), [0, 1]);
    let mut order = Vec::new();
    while !asked.is_empty() {
        let r2t = asked.remove(0);
        order.push((r2t.buffer_offset, r2t.desired_data_transfer_length));
        let (mut offset, end) = (r2t.buffer_offset, r2t.buffer_offset + r2t.desired_data_transfer_length);
        let mut data_sn = 0;
        while offset < end {
            let length = (end - offset).min(20_000);
            let mut pdu = wire.data_out(9, r2t.target_transfer_tag.0, data_sn, offset);
            pdu.is_final = offset + length == end;
            wire.send(&pdu.emit(), &[], &data[offset as usize..(offset + length) as usize]);
            offset += length;
            data_sn += 1;
        }
        asked.extend(requests(&mut wire));
    }
    assert_eq!(order, [(0, 65536), (65536, 65536), (131_072, 65536), (196_608, 3392)]);
    let handed = wire.handed_up();
    assert_eq!(handed.data_out.concat(), data);
    wire.good(handed.task, 200_000);
    let TargetPdu::ScsiResponse(response) = wire.answer().pdu else { panic!() };
    assert_eq!(response.expected_data_sn, 4, "four R2Ts");
}

fn requests(wire: &mut Wire) -> Vec<ReadyToTransfer> {
    let take = |answer: Answer| match answer.pdu {
        TargetPdu::ReadyToTransfer(r2t) => r2t,
        other => panic!("not an R2T: {other:?}"),
    };
    wire.answers().into_iter().map(take).collect()
}

#[test]
fn immediate_then_unsolicited_then_solicited() {
    for step in [usize::MAX, 13] {
        let keys = vec![("InitialR2T", "No")];
        let mut wire = Wire::logged_in(Setup { keys, ..Setup::default() });
        wire.step = step;
        let data = pattern(1 << 20);
        let mut command = wire.command(5, Kind::Write(1 << 20));
        command.is_final = false;
        wire.send_command(&command, &data[..4096]);
        assert!(wire.answers().is_empty(), "nothing is asked for while unsolicited data comes");
        let mut first = wire.data_out(5, u32::MAX, 0, 4096);
        first.is_final = false;
        // FirstBurstLength was left at its default of 65536.
        wire.send(&first.emit(), &[], &data[4096..30_000]);
        let second = wire.data_out(5, u32::MAX, 1, 30_000);
        wire.send(&second.emit(), &[], &data[30_000..65536]);
        let asked = requests(&mut wire);
        let shape: Vec<_> =
            asked.iter().map(|r2t| (r2t.buffer_offset, r2t.desired_data_transfer_length)).collect();
        assert_eq!(shape, [(65536, 262_144)], "MaxBurstLength was left at its default, one R2T at a time");
        let mut asked = asked;
        while let Some(r2t) = asked.pop() {
            let range =
                r2t.buffer_offset as usize..(r2t.buffer_offset + r2t.desired_data_transfer_length) as usize;
            let pdu = wire.data_out(5, r2t.target_transfer_tag.0, 0, r2t.buffer_offset);
            wire.send(&pdu.emit(), &[], &data[range]);
            asked.extend(requests(&mut wire));
        }
        assert_eq!(wire.handed_up().data_out.concat(), data);
    }
}

#[test]
fn large_payload_bypasses_the_ring() {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::Write(262_144));
    let mut bytes = Vec::new();
    framing::append_pdu(&mut bytes, command.emit(), &[], &pattern(262_144), wire.digests);
    wire.send_bytes(&bytes[..48]);
    assert_eq!(wire.connection.receive_buffer().len(), 262_144, "exactly the payload");
    wire.send_bytes(&bytes[48..200_000]);
    assert_eq!(wire.connection.receive_buffer().len(), 262_144 + 48 - 200_000);
    wire.send_bytes(&bytes[200_000..]);
    assert_eq!(wire.handed_up().data_out.concat(), pattern(262_144));
    assert_eq!(wire.connection.receive_buffer().len(), 1024, "room for the next headers and little more");
    let command = wire.command(2, Kind::Write(4096));
    wire.send_command(&command, &pattern(4096));
    assert_eq!(wire.connection.receive_buffer().len(), 65536, "small data comes in batches again");
}

#[test]
fn reads_are_cut_into_segments_and_bursts_with_status_in_the_last() {
    for digest in ["None", "CRC32C"] {
        let keys = vec![
            ("MaxRecvDataSegmentLength", "8192"),
            ("MaxBurstLength", "20480"),
            ("HeaderDigest", digest),
            ("DataDigest", digest),
        ];
        let mut wire = Wire::logged_in(Setup { keys, ..Setup::default() });
        assert_eq!(wire.digests.data, digest == "CRC32C");
        wire.step = 1000;
        let data = Bytes::from(pattern(50_000));
        let command = wire.command(1, Kind::Read(50_000));
        wire.send_command(&command, &[]);
        let handed = wire.handed_up();
        let data_in = vec![data.slice(..1), data.slice(1..1), data.slice(1..30_001), data.slice(30_001..)];
        let result = ScsiResult { data_in, transfer_length: 50_000, ..ScsiResult::default() };
        wire.connection.complete_command(handed.task, result, wire.now);
        let answers = wire.answers();
        let mut received = Vec::new();
        let mut finals = Vec::new();
        for (index, answer) in answers.iter().enumerate() {
            let TargetPdu::DataIn(pdu) = &answer.pdu else { panic!("{answer:?}") };
            assert_eq!((pdu.data_sn, pdu.buffer_offset as usize), (index as u32, received.len()));
            assert!(answer.data.len() <= 8192);
            received.extend_from_slice(&answer.data);
            finals.extend(pdu.is_final.then_some(received.len()));
            let is_last = index == answers.len() - 1;
            let status = DataInStatus { status: 0, residual: Residual::None };
            assert_eq!(pdu.status, is_last.then_some(status));
        }
        assert_eq!(finals, [20_480, 40_960, 50_000]);
        assert_eq!(received, data);
        wire.assert_alive();
    }
}

#[test]
fn data_in_is_not_copied() {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::Read(65536));
    wire.send_command(&command, &[]);
    let handed = wire.handed_up();
    let data = Bytes::from(pattern(65536));
    let result = ScsiResult { data_in: vec![data.clone()], transfer_length: 65536, ..ScsiResult::default() };
    wire.connection.complete_command(handed.task, result, wire.now);
    let mut slices = [std::io::IoSlice::new(&[]); 8];
    assert_eq!(wire.connection.transmit_slices(&mut slices), 2);
    assert_eq!(slices[1].as_ptr(), data.as_ptr());
}

#[test]
fn residuals_say_how_far_expectation_and_command_differ() {
    let read = |expected: u32, actual: usize, transfer_length: u64| {
        let mut wire = Wire::logged_in(Setup::default());
        let command = wire.command(1, Kind::Read(expected));
        wire.send_command(&command, &[]);
        let handed = wire.handed_up();
        let data_in = vec![Bytes::from(pattern(actual))];
        let result = ScsiResult { data_in, transfer_length, ..ScsiResult::default() };
        wire.connection.complete_command(handed.task, result, wire.now);
        let answer = wire.answer();
        match answer.pdu {
            TargetPdu::DataIn(pdu) => (answer.data.len(), pdu.status.unwrap().residual),
            TargetPdu::ScsiResponse(pdu) => (0, pdu.residual),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(read(1024, 512, 512), (512, Residual::Underflow(512)));
    assert_eq!(read(512, 512, 1024), (512, Residual::Overflow(512)));
    assert_eq!(read(512, 1024, 1024), (512, Residual::Overflow(512)));
    assert_eq!(read(0, 512, 512), (0, Residual::Overflow(512)));
    assert_eq!(read(512, 0, 0), (0, Residual::Underflow(512)));
    let write = |expected: u32, transfer_length: u64| {
        let mut wire = Wire::logged_in(Setup::default());
        let command = wire.command(1, Kind::Write(expected));
        wire.send_command(&command, &pattern(expected as usize));
        let handed = wire.handed_up();
        wire.good(handed.task, transfer_length);
        wire.response().1
    };
    assert_eq!(write(1024, 1024), Residual::None);
    assert_eq!(write(1024, 512), Residual::Underflow(512));
    assert_eq!(write(512, 1024), Residual::Overflow(512));
}

#[test]
fn data_before_an_error_is_followed_by_a_response_with_sense() {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::Read(1024));
    wire.send_command(&command, &[]);
    let handed = wire.handed_up();
    let result = ScsiResult {
        status: 2,
        sense: vec![0x70; 18],
        data_in: vec![Bytes::from(pattern(512))],
        transfer_length: 512,
    };
    wire.connection.complete_command(handed.task, result, wire.now);
    let answers = wire.answers();
    let TargetPdu::DataIn(data) = &answers[0].pdu else { panic!() };
    assert!(data.is_final && data.status.is_none());
    let TargetPdu::ScsiResponse(response) = &answers[1].pdu else { panic!() };
    assert_eq!((response.status, response.residual), (2, Residual::Underflow(512)));
    assert_eq!(response.expected_data_sn, 1);
}

#[test]
fn a_bidirectional_command_passes_with_both_lengths() {
    let mut wire = Wire::logged_in(Setup::default());
    let mut command = wire.command(1, Kind::Write(512));
    command.reads = true;
    command.bidirectional_read_length = Some(1024);
    wire.send_command(&command, &pattern(512));
    let handed = wire.handed_up();
    assert!(handed.reads && handed.writes);
    assert_eq!((handed.expected_out, handed.expected_in), (512, 1024));
    wire.good(handed.task, 0);
    let TargetPdu::ScsiResponse(response) = wire.answer().pdu else { panic!() };
    assert_eq!(response.residual, Residual::Underflow(512));
    assert_eq!(response.bidirectional_read_residual, Residual::Underflow(1024));
}

#[test]
fn an_ordered_command_waits_for_older_data_and_holds_younger_commands() {
    let mut wire = Wire::logged_in(Setup::default());
    let mut write = wire.command(1, Kind::Write(8192));
    write.is_final = false;
    wire.send_command(&write, &pattern(4096));
    let mut ordered = wire.command(2, Kind::NoData);
    ordered.attribute = TaskAttribute::Ordered;
    wire.send_command(&ordered, &[]);
    let younger = wire.command(3, Kind::NoData);
    wire.send_command(&younger, &[]);
    let mut head = wire.command(4, Kind::NoData);
    head.attribute = TaskAttribute::HeadOfQueue;
    wire.send_command(&head, &[]);
    assert_eq!(wire.handed_up().cdb.as_slice()[0], 4, "the head of the queue waits for nobody");
    assert!(wire.event().is_none());
    let data = wire.data_out(1, u32::MAX, 0, 4096);
    wire.send(&data.emit(), &[], &pattern(4096));
    let order: Vec<_> = (0..3).map(|_| wire.handed_up().cdb.as_slice()[0]).collect();
    assert_eq!(order, [1, 2, 3]);
}

#[test]
fn commands_behind_a_gap_wait_and_keep_their_order() {
    let mut wire = Wire::logged_in(Setup::default());
    let commands: Vec<_> = (0..4).map(|tag| wire.command(tag, Kind::Write(512))).collect();
    for index in [3, 1, 2, 1] {
        wire.send_command(&commands[index], &pattern(512));
        assert!(wire.event().is_none());
    }
    assert!(wire.answers().is_empty(), "a repeated CmdSN is ignored");
    wire.send_command(&commands[0], &pattern(512));
    let order: Vec<_> = (0..4).map(|_| wire.handed_up().cdb.as_slice()[0]).collect();
    assert_eq!(order, [0, 1, 2, 3]);
    wire.assert_alive();
}

#[test]
fn the_window_follows_the_queue_depth() {
    let settings = TargetSettings { queue_depth: 4, ..TargetSettings::default() };
    let mut wire = Wire::logged_in(Setup { settings, ..Setup::default() });
    let commands: Vec<_> = (0..6).map(|tag| wire.command(tag, Kind::NoData)).collect();
    commands.iter().for_each(|command| wire.send_command(command, &[]));
    let tasks: Vec<_> = (0..4).map(|_| wire.handed_up().task).collect();
    assert!(wire.event().is_none(), "the fifth is outside the window and silently ignored");
    assert!(wire.answers().is_empty());
    wire.good(tasks[2], 0);
    let TargetPdu::ScsiResponse(response) = wire.answer().pdu else { panic!() };
    assert_eq!(response.serials.expected_command_sn, commands[4].command_sn);
    assert_eq!(response.serials.maximum_command_sn, commands[4].command_sn);
    wire.send_command(&commands[5], &[]);
    assert!(wire.event().is_none());
    wire.send_command(&commands[4], &[]);
    assert_eq!(wire.handed_up().cdb.as_slice()[0], 4);
    // Immediate commands need no place in the window, but have a limit of their own.
    for tag in 10..18 {
        let mut command = wire.command(tag, Kind::NoData);
        command.is_immediate = true;
        wire.send_command(&command, &[]);
        assert_eq!(wire.handed_up().cdb.as_slice()[0], tag as u8);
    }
    let mut command = wire.command(18, Kind::NoData);
    command.is_immediate = true;
    wire.send_command(&command, &[]);
    assert_eq!(wire.rejected(), RejectReason::ImmediateCommandReject);
}

#[test]
fn without_memory_solicited_writes_and_reads_wait() {
    let budget = DataBudget::new(1 << 20, 4096);
    let settings = TargetSettings { transfer_length: 1 << 20, ..TargetSettings::default() };
    let setup = || Setup { budget: budget.clone(), settings: settings.clone(), ..Setup::default() };
    let mut holder = Wire::logged_in(setup());
    let mut wire = Wire::logged_in(setup());
    let command = holder.command(1, Kind::Read(1 << 20));
    holder.send_command(&command, &[]);
    let held = holder.handed_up();
    let write = wire.command(1, Kind::Write(65536));
    wire.send_command(&write, &[]);
    let read = wire.command(2, Kind::Read(65536));
    wire.send_command(&read, &[]);
    assert!(wire.event().is_none() && wire.answers().is_empty());
    // What needs no more than the guarantee goes on.
    let small = wire.command(3, Kind::Write(4096));
    wire.send_command(&small, &pattern(4096));
    let small = wire.handed_up();
    assert_eq!(small.data_out.concat(), pattern(4096));
    // Unsolicited data that comes all the same is not kept.
    let busy = wire.command(4, Kind::Write(8192));
    wire.send_command(&busy, &pattern(8192));
    assert_eq!(wire.response(), (0x28, Residual::Underflow(8192), (0, 0)));
    let woken = wire.woken.get();
    let result = ScsiResult { data_in: vec![], transfer_length: 0, ..ScsiResult::default() };
    holder.connection.complete_command(held.task, result, holder.now);
    assert_eq!(wire.woken.get(), woken + 1);
    wire.connection.handle_wake(wire.now);
    assert_eq!(requests(&mut wire)[0].desired_data_transfer_length, 65536);
    assert_eq!(wire.handed_up().cdb.as_slice()[0], 2);
    drop(holder);
    drop(wire);
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn a_command_beyond_the_transfer_limit_transfers_so_much() {
    let settings = TargetSettings { transfer_length: 1 << 20, ..TargetSettings::default() };
    let mut wire = Wire::logged_in(Setup { settings, ..Setup::default() });
    let command = wire.command(1, Kind::Write(u32::MAX));
    wire.send_command(&command, &[]);
    let mut total = 0;
    while total < 1 << 20 {
        let r2t = requests(&mut wire).remove(0);
        let data = vec![0; r2t.desired_data_transfer_length as usize];
        let pdu = wire.data_out(1, r2t.target_transfer_tag.0, 0, r2t.buffer_offset);
        // Our MaxRecvDataSegmentLength is 256 KiB, as is the burst here.
        wire.send(&pdu.emit(), &[], &data);
        total += data.len();
    }
    let handed = wire.handed_up();
    assert_eq!((handed.data_out.concat().len(), handed.expected_out), (1 << 20, u32::MAX));
    wire.good(handed.task, 0);
    assert_eq!(wire.response().1, Residual::Underflow(u32::MAX));
    let command = wire.command(2, Kind::Read(u32::MAX));
    wire.send_command(&command, &[]);
    assert!(matches!(wire.event(), Some(Event::Command(_))));
}

#[test]
fn a_small_budget_limits_transfers_instead_of_blocking_them() {
    let budget = DataBudget::new(300 << 10, 0);
    let mut wire = Wire::logged_in(Setup { budget, ..Setup::default() });
    let command = wire.command(1, Kind::Write(1 << 20));
    wire.send_command(&command, &[]);
    let r2t = requests(&mut wire).remove(0);
    let pdu = wire.data_out(1, r2t.target_transfer_tag.0, 0, 0);
    wire.send(&pdu.emit(), &[], &pattern(262_144));
    let handed = wire.handed_up();
    assert_eq!((handed.data_out.concat(), handed.expected_out), (pattern(262_144), 1 << 20));
    // Smaller than one immediate piece: refused, not overrun.
    let mut wire = Wire::logged_in(Setup { budget: DataBudget::new(16 << 10, 0), ..Setup::default() });
    let command = wire.command(1, Kind::Write(65536));
    wire.send_command(&command, &pattern(65536));
    assert_eq!(wire.response().0, 0x28);
}

#[test]
fn an_idle_connection_holds_no_buffers() {
    let budget = DataBudget::new(64 << 20, 0);
    let mut wire = Wire::logged_in(Setup { budget: budget.clone(), ..Setup::default() });
    for tag in 0..100 {
        let command = wire.command(tag, Kind::Write(4096));
        wire.send_command(&command, &pattern(4096));
        let handed = wire.handed_up();
        assert!(budget.used_bytes() > 0);
        wire.good(handed.task, 4096);
        wire.answer();
    }
    assert_eq!(budget.used_bytes(), 0);
    let debug = format!("{:?}", wire.connection);
    assert!(debug.contains("ring: None"), "the ring went back to its pool");
}
