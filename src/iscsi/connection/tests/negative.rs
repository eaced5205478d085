//! What broken and hostile initiators send: every violation has a defined end.

use super::initiator::*;
use crate::iscsi::connection::{CloseReason, ProtocolFault};
use crate::iscsi::pdu::login::LoginStatus;
use crate::iscsi::pdu::*;

const UNEXPECTED_UNSOLICITED: (u8, u8) = (0x0c, 0x0c);
const INCORRECT_AMOUNT: (u8, u8) = (0x0c, 0x0d);
const SERVICE_CRC: (u8, u8) = (0x47, 0x05);

fn failed(wire: &mut Wire) -> (u8, u8) {
    let (status, residual, code) = wire.response();
    assert_eq!(status, 2);
    assert!(matches!(residual, Residual::Underflow(_)));
    assert!(wire.event().is_none(), "the command is not executed");
    code
}

#[test]
fn immediate_data_beyond_what_was_agreed() {
    let keys = vec![("ImmediateData", "No"), ("InitialR2T", "No")];
    let mut wire = Wire::logged_in(Setup { keys, ..Setup::default() });
    let command = wire.command(1, Kind::Write(512));
    wire.send_command(&command, &pattern(512));
    assert_eq!(failed(&mut wire), UNEXPECTED_UNSOLICITED);
    let keys = vec![("FirstBurstLength", "1024")];
    let mut wire = Wire::logged_in(Setup { keys, ..Setup::default() });
    let command = wire.command(1, Kind::Write(4096));
    wire.send_command(&command, &pattern(2048));
    assert_eq!(failed(&mut wire), INCORRECT_AMOUNT);
    let command = wire.command(1, Kind::Write(512));
    wire.send_command(&command, &pattern(513));
    assert_eq!(failed(&mut wire), INCORRECT_AMOUNT);
    let command = wire.command(1, Kind::Read(512));
    wire.send_command(&command, &pattern(512));
    let (status, _, code) = wire.response();
    assert_eq!((status, code), (2, UNEXPECTED_UNSOLICITED));
    wire.assert_alive();
}

#[test]
fn too_much_immediate_data_with_more_to_come() {
    let keys = vec![("FirstBurstLength", "1024"), ("InitialR2T", "No")];
    let mut wire = Wire::logged_in(Setup { keys, ..Setup::default() });
    let mut command = wire.command(1, Kind::Write(8192));
    command.is_final = false;
    wire.send_command(&command, &pattern(2048));
    let data = wire.data_out(1, u32::MAX, 0, 2048);
    wire.send(&data.emit(), &[], &pattern(512));
    assert_eq!(failed(&mut wire), INCORRECT_AMOUNT);
    wire.assert_alive();
}

#[test]
fn unsolicited_data_that_was_not_agreed_on() {
    let keys = vec![("InitialR2T", "Yes")];
    let mut wire = Wire::logged_in(Setup { keys, ..Setup::default() });
    let mut command = wire.command(1, Kind::Write(8192));
    command.is_final = false;
    wire.send_command(&command, &pattern(4096));
    assert!(wire.answers().is_empty(), "the end of the data is awaited");
    let data = wire.data_out(1, u32::MAX, 0, 4096);
    wire.send(&data.emit(), &[], &pattern(4096));
    assert_eq!(failed(&mut wire), UNEXPECTED_UNSOLICITED);
    // After the R2T: neither asked for nor announced.
    let command = wire.command(2, Kind::Write(8192));
    wire.send_command(&command, &[]);
    let TargetPdu::ReadyToTransfer(r2t) = wire.answer().pdu else { panic!() };
    let data = wire.data_out(2, u32::MAX, 0, 0);
    wire.send(&data.emit(), &[], &pattern(512));
    assert_eq!(wire.rejected(), RejectReason::InvalidPduField);
    let data = wire.data_out(2, r2t.target_transfer_tag.0, 0, 0);
    wire.send(&data.emit(), &[], &pattern(8192));
    assert_eq!(failed(&mut wire), UNEXPECTED_UNSOLICITED);
    wire.assert_alive();
}

/// Sends one altered Data-Out for an R2T of 8192 bytes, then the F bit, and gives the sense.
fn altered(alter: impl FnOnce(&mut DataOut, &mut Vec<u8>)) -> (u8, u8) {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::Write(8192));
    wire.send_command(&command, &[]);
    let TargetPdu::ReadyToTransfer(r2t) = wire.answer().pdu else { panic!() };
    let tag = r2t.target_transfer_tag.0;
    let mut pdu = wire.data_out(1, tag, 0, 0);
    pdu.is_final = false;
    let mut data = pattern(4096);
    alter(&mut pdu, &mut data);
    wire.send(&pdu.emit(), &[], &data);
    if !pdu.is_final {
        assert!(wire.answers().is_empty());
        let rest = wire.data_out(1, tag, 1, 4096);
        wire.send(&rest.emit(), &[], &pattern(4096));
    }
    let code = failed(&mut wire);
    wire.assert_alive();
    code
}

#[test]
fn data_out_of_sequence_or_range_fails_its_command() {
    assert_eq!(altered(|pdu, _| pdu.data_sn = 1), SERVICE_CRC);
    assert_eq!(altered(|pdu, _| pdu.data_sn = u32::MAX), SERVICE_CRC);
    assert_eq!(altered(|pdu, _| pdu.buffer_offset = 4096), INCORRECT_AMOUNT);
    assert_eq!(altered(|pdu, _| pdu.buffer_offset = u32::MAX), INCORRECT_AMOUNT);
    assert_eq!(altered(|_, data| data.truncate(4095)), INCORRECT_AMOUNT);
    assert_eq!(altered(|_, data| data.resize(8193, 0)), INCORRECT_AMOUNT);
    assert_eq!(altered(|pdu, _| pdu.is_final = true), INCORRECT_AMOUNT);
}

#[test]
fn data_out_with_wrong_tags_is_refused() {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::Write(8192));
    wire.send_command(&command, &[]);
    let TargetPdu::ReadyToTransfer(r2t) = wire.answer().pdu else { panic!() };
    let stranger = wire.data_out(2, r2t.target_transfer_tag.0, 0, 0);
    wire.send(&stranger.emit(), &[], &pattern(8192));
    assert_eq!(wire.rejected(), RejectReason::InvalidPduField);
    let reserved = wire.data_out(u32::MAX, r2t.target_transfer_tag.0, 0, 0);
    wire.send(&reserved.emit(), &[], &pattern(8192));
    assert_eq!(wire.rejected(), RejectReason::InvalidPduField);
    let right = wire.data_out(1, r2t.target_transfer_tag.0, 0, 0);
    wire.send(&right.emit(), &[], &pattern(8192));
    let task = wire.handed_up().task;
    // After everything has come there is nothing more to send.
    wire.send(&right.emit(), &[], &pattern(8192));
    assert_eq!(wire.rejected(), RejectReason::InvalidPduField);
    wire.good(task, 8192);
    assert_eq!(wire.response().0, 0);
    wire.assert_alive();
}

#[test]
fn a_tag_in_use_is_refused_and_its_number_can_be_used_again() {
    let mut wire = Wire::logged_in(Setup::default());
    let first = wire.command(1, Kind::NoData);
    wire.send_command(&first, &[]);
    wire.handed_up();
    let mut second = wire.command(1, Kind::Write(512));
    wire.send_command(&second, &pattern(512));
    assert_eq!(wire.rejected(), RejectReason::TaskInProgress);
    second.initiator_task_tag = InitiatorTaskTag(2);
    wire.send_command(&second, &pattern(512));
    assert_eq!(wire.handed_up().data_out.concat(), pattern(512));
    let mut reserved = wire.command(3, Kind::NoData);
    reserved.initiator_task_tag = InitiatorTaskTag::RESERVED;
    wire.send_command(&reserved, &[]);
    assert_eq!(wire.rejected(), RejectReason::InvalidPduField);
}

#[test]
fn what_is_not_supported_is_rejected() {
    let mut wire = Wire::logged_in(Setup::default());
    let snack = SnackRequest {
        kind: SnackType::Status,
        lun: LUN,
        initiator_task_tag: InitiatorTaskTag::RESERVED,
        target_transfer_tag: TargetTransferTag::RESERVED,
        expected_status_sn: SerialNumber(0),
        first_missing: 0,
        run_length: 0,
    };
    wire.send(&snack.emit(), &[], &[]);
    assert_eq!(wire.rejected(), RejectReason::SnackReject);
    let login = wire.login_request(Stage::Operational);
    wire.send(&login.emit(), &[], b"InitiatorName=x\0");
    assert_eq!(wire.rejected(), RejectReason::ProtocolError);
    for opcode in [0x07, 0x0f, 0x11, 0x1c, 0x20, 0x25, 0x31, 0x3f] {
        let mut bytes = [0; 48];
        bytes[0] = opcode;
        wire.send(&BasicHeader::from_bytes(bytes), &[], &pattern(100));
        assert_eq!(wire.rejected(), RejectReason::CommandNotSupported, "{opcode:#x}");
    }
    let command = wire.command(1, Kind::NoData).emit();
    let mut bytes = *command.as_bytes();
    bytes[1] = 0x87;
    wire.send(&BasicHeader::from_bytes(bytes), &[], &[]);
    assert_eq!(wire.rejected(), RejectReason::InvalidPduField, "a reserved task attribute");
    wire.command_sn = wire.command_sn.wrapping_sub(1);
    wire.assert_alive();
}

#[test]
fn commands_outside_the_window_are_ignored_with_their_data() {
    let mut wire = Wire::logged_in(Setup::default());
    for offset in [128, 129, 1 << 31, u32::MAX] {
        let mut command = wire.command(1, Kind::Write(4096));
        wire.command_sn = command.command_sn.0;
        command.command_sn = command.command_sn.plus(offset);
        wire.send_command(&command, &pattern(4096));
        assert!(wire.event().is_none() && wire.answers().is_empty(), "{offset}");
    }
    wire.assert_alive();
}

#[test]
fn too_many_requests_behind_a_gap_end_the_connection() {
    let mut wire = Wire::logged_in(Setup::default());
    wire.next_command_sn();
    for _ in 0..9 {
        let nop = NopOut {
            is_immediate: false,
            lun: LUN,
            initiator_task_tag: InitiatorTaskTag(5),
            target_transfer_tag: TargetTransferTag::RESERVED,
            command_sn: wire.next_command_sn(),
            expected_status_sn: SerialNumber(0),
        };
        wire.send(&nop.emit(), &[], &pattern(1000));
    }
    assert_eq!(wire.closed(), CloseReason::Protocol(ProtocolFault::TooManyEarly));
}

#[test]
fn a_data_segment_beyond_our_limit_ends_the_connection() {
    let mut wire = Wire::logged_in(Setup::default());
    let mut header = wire.command(1, Kind::Write(1 << 20)).emit();
    header.set_lengths(0, 262_145);
    wire.send_bytes(header.as_bytes());
    let error = PduError::DataLength { length: 262_145, limit: 262_144 };
    assert_eq!(wire.closed(), CloseReason::Protocol(ProtocolFault::Pdu(error)));
}

fn with_digests() -> Wire {
    let keys = vec![("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"), ("InitialR2T", "No")];
    Wire::logged_in(Setup { keys, ..Setup::default() })
}

#[test]
fn a_header_digest_error_ends_the_connection() {
    let mut wire = with_digests();
    wire.assert_alive();
    let command = wire.command(1, Kind::NoData);
    let mut bytes = Vec::new();
    framing::append_pdu(&mut bytes, command.emit(), &[], &[], wire.digests);
    bytes[33] ^= 1;
    wire.send_bytes(&bytes);
    assert_eq!(wire.closed(), CloseReason::Protocol(ProtocolFault::Pdu(PduError::HeaderDigest)));
}

#[test]
fn a_data_digest_error_of_a_command_is_rejected_and_ends_the_connection() {
    let mut wire = with_digests();
    let command = wire.command(1, Kind::Write(4096));
    let mut bytes = Vec::new();
    framing::append_pdu(&mut bytes, command.emit(), &[], &pattern(4096), wire.digests);
    bytes[60] ^= 1;
    wire.send_bytes(&bytes);
    assert_eq!(wire.rejected(), RejectReason::DataDigestError);
    assert_eq!(wire.closed(), CloseReason::Protocol(ProtocolFault::Pdu(PduError::DataDigest)));
}

#[test]
fn a_data_digest_error_of_data_fails_its_command_after_the_last_of_it() {
    let mut wire = with_digests();
    let command = wire.command(1, Kind::Write(8192));
    wire.send_command(&command, &[]);
    let TargetPdu::ReadyToTransfer(r2t) = wire.answer().pdu else { panic!() };
    let mut pdu = wire.data_out(1, r2t.target_transfer_tag.0, 0, 0);
    pdu.is_final = false;
    let mut bytes = Vec::new();
    framing::append_pdu(&mut bytes, pdu.emit(), &[], &pattern(4095), wire.digests);
    bytes[100] ^= 1;
    wire.send_bytes(&bytes);
    assert_eq!(wire.rejected(), RejectReason::DataDigestError);
    let rest = wire.data_out(1, r2t.target_transfer_tag.0, 1, 4095);
    wire.send(&rest.emit(), &[], &pattern(4097));
    assert_eq!(failed(&mut wire), SERVICE_CRC);
    wire.assert_alive();
}

#[test]
fn a_first_pdu_that_is_no_login_is_refused() {
    let command = |wire: &mut Wire| wire.command(1, Kind::NoData).emit();
    let unknown = |_: &mut Wire| BasicHeader::from_bytes([0x3e; 48]);
    let makers: [&dyn Fn(&mut Wire) -> BasicHeader; 2] = [&command, &unknown];
    for maker in makers {
        let mut wire = Wire::new(&Setup::default(), TestPolicy::default());
        let mut header = maker(&mut wire);
        header.set_lengths(0, 0);
        wire.send(&header, &[], &[]);
        let TargetPdu::Login(response) = wire.answer().pdu else { panic!() };
        assert_eq!(response.status, LoginStatus::INVALID_DURING_LOGIN);
        assert!(matches!(wire.closed(), CloseReason::LoginFailed(_)));
    }
}

#[test]
fn memory_before_login_is_bounded() {
    // The longest login PDU is 8192 bytes; a longer one is refused from its header.
    let mut wire = Wire::new(&Setup::default(), TestPolicy::default());
    let mut header = wire.login_request(Stage::Security).emit();
    header.set_lengths(0, 8193);
    wire.send_bytes(header.as_bytes());
    assert!(matches!(wire.closed(), CloseReason::LoginFailed(_)));
    // Continued text has its limit: ring, text and one PDU stay below 64 KiB.
    let mut wire = Wire::new(&Setup::default(), TestPolicy::default());
    let mut request = wire.login_request(Stage::Security);
    request.continues = true;
    for round in 0..3 {
        wire.send(&request.emit(), &[], &[b'x'; 8192]);
        let TargetPdu::Login(response) = wire.answer().pdu else { panic!() };
        assert_eq!(response.status == LoginStatus::SUCCESS, round < 2);
    }
    assert!(matches!(wire.closed(), CloseReason::LoginFailed(_)));
    let ring = wire.connection.receive_buffer().len();
    assert_eq!(ring, 0);
    let mut wire = Wire::new(&Setup::default(), TestPolicy::default());
    assert!(wire.connection.receive_buffer().len() <= 16 << 10);
}

#[test]
fn truncated_streams_do_nothing() {
    let mut wire = Wire::logged_in(Setup::default());
    let command = wire.command(1, Kind::Write(600));
    let mut bytes = Vec::new();
    framing::append_pdu(&mut bytes, command.emit(), &[], &pattern(600), wire.digests);
    for cut in 0..bytes.len() {
        let mut wire = Wire::logged_in(Setup::default());
        wire.send_bytes(&bytes[..cut]);
        assert!(wire.event().is_none() && wire.answers().is_empty());
        wire.connection.handle_disconnected(wire.now);
        assert_eq!(wire.closed(), CloseReason::Disconnected);
    }
}
