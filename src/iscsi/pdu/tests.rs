//! Every PDU there and back, cut off at every byte, and at the edges of its lengths.

use super::framing::{append_pdu, check_headers};
use super::header::MAXIMUM_DATA_SEGMENT_LENGTH;
use super::*;

const ITT: InitiatorTaskTag = InitiatorTaskTag(0x1122_3344);
const TTT: TargetTransferTag = TargetTransferTag(0x5566_7788);
const LUN: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

fn serials() -> ResponseSerials {
    ResponseSerials {
        status_sn: SerialNumber(0xffff_ffff),
        expected_command_sn: SerialNumber(7),
        maximum_command_sn: SerialNumber(8),
    }
}

fn initiator_pdus() -> Vec<InitiatorPdu> {
    let (command_sn, expected_status_sn) = (SerialNumber(0x99aa_bbcc), SerialNumber(0xddee_ff00));
    let command = ScsiCommand {
        is_immediate: true,
        is_final: true,
        reads: false,
        writes: true,
        attribute: TaskAttribute::HeadOfQueue,
        lun: LUN,
        initiator_task_tag: ITT,
        expected_data_transfer_length: 4096,
        bidirectional_read_length: None,
        command_sn,
        expected_status_sn,
        cdb: Cdb::new(&[0x2a; 16]),
    };
    let mut long = command.clone();
    long.cdb = Cdb::new(&[0x7f; 32]);
    long.reads = true;
    long.bidirectional_read_length = Some(512);
    let mut all = vec![
        InitiatorPdu::ScsiCommand(command),
        InitiatorPdu::ScsiCommand(long),
        InitiatorPdu::NopOut(NopOut {
            is_immediate: true,
            lun: LUN,
            initiator_task_tag: ITT,
            target_transfer_tag: TTT,
            command_sn,
            expected_status_sn,
        }),
        InitiatorPdu::Text(TextRequest {
            is_immediate: false,
            is_final: false,
            continues: true,
            lun: LUN,
            initiator_task_tag: ITT,
            target_transfer_tag: TTT,
            command_sn,
            expected_status_sn,
        }),
        InitiatorPdu::Login(LoginRequest {
            continues: false,
            current_stage: Stage::Operational,
            next_stage: Some(Stage::FullFeature),
            version_maximum: 0,
            version_minimum: 0,
            isid: Isid([0x80, 1, 2, 3, 4, 5]),
            tsih: 0x1234,
            initiator_task_tag: ITT,
            connection_id: 0x4321,
            command_sn,
            expected_status_sn,
        }),
        InitiatorPdu::DataOut(DataOut {
            is_final: true,
            lun: LUN,
            initiator_task_tag: ITT,
            target_transfer_tag: TTT,
            expected_status_sn,
            data_sn: 3,
            buffer_offset: 65536,
        }),
    ];
    for function in 0..=0x7f {
        let mut header = BasicHeader::new(Opcode::TaskManagementRequest, 0x80 | function);
        header.set_u32(32, 77);
        all.push(InitiatorPdu::TaskManagement(TaskManagementRequest::parse(&header)));
    }
    for reason in [LogoutReason::CloseSession, LogoutReason::CloseConnection, LogoutReason::RemoveForRecovery]
    {
        all.push(InitiatorPdu::Logout(LogoutRequest {
            is_immediate: false,
            reason,
            initiator_task_tag: ITT,
            connection_id: 9,
            command_sn,
            expected_status_sn,
        }));
    }
    for kind in [SnackType::DataOrR2t, SnackType::Status, SnackType::DataAck, SnackType::ResegmentedData] {
        all.push(InitiatorPdu::Snack(SnackRequest {
            kind,
            lun: LUN,
            initiator_task_tag: ITT,
            target_transfer_tag: TTT,
            expected_status_sn,
            first_missing: 1,
            run_length: 2,
        }));
    }
    all
}

fn emit_initiator(pdu: &InitiatorPdu) -> (BasicHeader, Vec<u8>) {
    match pdu {
        InitiatorPdu::ScsiCommand(pdu) => (pdu.emit(), pdu.additional_headers().emit()),
        InitiatorPdu::NopOut(pdu) => (pdu.emit(), Vec::new()),
        InitiatorPdu::TaskManagement(pdu) => (pdu.emit(), Vec::new()),
        InitiatorPdu::Login(pdu) => (pdu.emit(), Vec::new()),
        InitiatorPdu::Text(pdu) => (pdu.emit(), Vec::new()),
        InitiatorPdu::DataOut(pdu) => (pdu.emit(), Vec::new()),
        InitiatorPdu::Logout(pdu) => (pdu.emit(), Vec::new()),
        InitiatorPdu::Snack(pdu) => (pdu.emit(), Vec::new()),
    }
}

fn target_pdus() -> Vec<TargetPdu> {
    let serials = serials();
    let data_in = DataIn {
        is_final: true,
        acknowledge: false,
        status: Some(DataInStatus { status: 0, residual: Residual::Underflow(512) }),
        lun: LUN,
        initiator_task_tag: ITT,
        target_transfer_tag: TargetTransferTag::RESERVED,
        serials,
        data_sn: 4,
        buffer_offset: 8192,
    };
    let mut middle = data_in.clone();
    middle.status = None;
    middle.is_final = false;
    middle.serials.status_sn = SerialNumber(0);
    let mut all = vec![
        TargetPdu::DataIn(data_in),
        TargetPdu::DataIn(middle),
        TargetPdu::NopIn(NopIn { lun: LUN, initiator_task_tag: ITT, target_transfer_tag: TTT, serials }),
        TargetPdu::Text(TextResponse {
            is_final: true,
            continues: false,
            lun: LUN,
            initiator_task_tag: ITT,
            target_transfer_tag: TTT,
            serials,
        }),
        TargetPdu::Login(LoginResponse {
            continues: true,
            current_stage: Stage::Security,
            next_stage: None,
            version_maximum: 0,
            version_active: 0,
            isid: Isid([1, 2, 3, 4, 5, 6]),
            tsih: 3,
            initiator_task_tag: ITT,
            serials,
            status: LoginStatus::AUTHENTICATION_FAILURE,
        }),
        TargetPdu::ReadyToTransfer(ReadyToTransfer {
            lun: LUN,
            initiator_task_tag: ITT,
            target_transfer_tag: TTT,
            serials,
            r2t_sn: 2,
            buffer_offset: 4096,
            desired_data_transfer_length: 1 << 20,
        }),
        TargetPdu::Reject(Reject { reason: RejectReason::ProtocolError, serials, data_sn: 0 }),
        TargetPdu::Logout(LogoutResponse {
            result: LogoutResult::RecoveryNotSupported,
            initiator_task_tag: ITT,
            serials,
            time_to_wait_s: 2,
            time_to_retain_s: 20,
        }),
    ];
    let residuals = [Residual::None, Residual::Underflow(1), Residual::Overflow(u32::MAX)];
    for residual in residuals {
        for bidirectional_read_residual in residuals {
            all.push(TargetPdu::ScsiResponse(ScsiResponse {
                initiator_task_tag: ITT,
                response: ServiceResponse::COMPLETED,
                status: 2,
                residual,
                bidirectional_read_residual,
                expected_data_sn: 6,
                serials,
            }));
        }
    }
    for byte in (0..=6).chain([255]) {
        let mut header = BasicHeader::new(Opcode::TaskManagementResponse, 0x80);
        header.set_byte(2, byte);
        all.push(TargetPdu::TaskManagement(TaskManagementResponse::parse(&header).unwrap()));
    }
    for event in [
        AsynchronousEvent::Scsi,
        AsynchronousEvent::LogoutRequested { within_s: 3 },
        AsynchronousEvent::ConnectionDropped { connection_id: 1, time_to_wait_s: 2, time_to_retain_s: 3 },
        AsynchronousEvent::SessionDropped { time_to_wait_s: 2, time_to_retain_s: 3 },
        AsynchronousEvent::NegotiationRequested { within_s: 3 },
        AsynchronousEvent::TasksTerminated,
        AsynchronousEvent::Vendor { code: 1 },
    ] {
        all.push(TargetPdu::Asynchronous(AsynchronousMessage { event, lun: LUN, serials }));
    }
    all
}

fn emit_target(pdu: &TargetPdu) -> BasicHeader {
    match pdu {
        TargetPdu::NopIn(pdu) => pdu.emit(),
        TargetPdu::ScsiResponse(pdu) => pdu.emit(),
        TargetPdu::TaskManagement(pdu) => pdu.emit(),
        TargetPdu::Login(pdu) => pdu.emit(),
        TargetPdu::Text(pdu) => pdu.emit(),
        TargetPdu::DataIn(pdu) => pdu.emit(),
        TargetPdu::Logout(pdu) => pdu.emit(),
        TargetPdu::ReadyToTransfer(pdu) => pdu.emit(),
        TargetPdu::Asynchronous(pdu) => pdu.emit(),
        TargetPdu::Reject(pdu) => pdu.emit(),
    }
}

fn all_digests() -> [Digests; 4] {
    [(false, false), (true, false), (false, true), (true, true)]
        .map(|(header, data)| Digests { header, data })
}

#[test]
fn every_pdu_survives_the_wire_and_every_cut_is_incomplete() {
    for digests in all_digests() {
        for data in [&b""[..], b"1", b"12", b"123", b"1234"] {
            for pdu in initiator_pdus() {
                let (header, additional) = emit_initiator(&pdu);
                let mut bytes = Vec::new();
                append_pdu(&mut bytes, header, &additional, data, digests);
                let raw = RawPdu::split(&bytes, digests, 4).unwrap().unwrap();
                assert_eq!((raw.length, raw.data), (bytes.len(), data));
                assert_eq!(raw.from_initiator().unwrap(), pdu);
                for cut in 0..bytes.len() {
                    assert!(RawPdu::split(&bytes[..cut], digests, 4).unwrap().is_none());
                }
            }
            for pdu in target_pdus() {
                let mut bytes = Vec::new();
                append_pdu(&mut bytes, emit_target(&pdu), &[], data, digests);
                let raw = RawPdu::split(&bytes, digests, 4).unwrap().unwrap();
                assert_eq!(raw.from_target().unwrap(), pdu);
                assert!(raw.from_initiator().is_err(), "a target's opcode is none of an initiator");
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_seen_by_the_digests() {
    let digests = Digests { header: true, data: true };
    let (header, additional) = emit_initiator(&initiator_pdus()[1]);
    let mut bytes = Vec::new();
    append_pdu(&mut bytes, header, &additional, b"12345", digests);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // A flipped length can make the PDU incomplete: then more bytes decide, never fewer.
        flipped.resize(flipped.len() + 2048, 0);
        let result = RawPdu::split(&flipped, digests, 5);
        assert!(!matches!(result, Ok(Some(_))), "bit {bit} passed");
    }
}

#[test]
fn digest_bytes_are_those_of_the_standard() {
    // RFC 7143 appendix A.4: the example PDU's CRC is 56 3a 96 d9 on the wire.
    let mut header = [0u8; 52];
    header[0] = 0x01;
    header[1] = 0xc0;
    header[16..20].copy_from_slice(&[0x14, 0, 0, 0]);
    header[22..24].copy_from_slice(&[0x04, 0]);
    header[27] = 0x14;
    header[31] = 0x18;
    header[32] = 0x28;
    header[40] = 0x02;
    header[48..].copy_from_slice(&[0x56, 0x3a, 0x96, 0xd9]);
    assert_eq!(check_headers(&header, Digests { header: true, data: false }), Ok(()));
}

#[test]
fn lengths_at_their_extremes() {
    for length in [0, 1, MAXIMUM_DATA_SEGMENT_LENGTH - 1, MAXIMUM_DATA_SEGMENT_LENGTH] {
        let mut header = BasicHeader::new(Opcode::NopOut, 0x80);
        header.set_lengths(1020, length);
        assert_eq!((header.additional_length(), header.data_segment_length()), (1020, length));
        let lengths = PduLengths::of(&header, Digests { header: true, data: true });
        assert_eq!(lengths.headers(), 48 + 1020 + 4);
        assert!((lengths.data + lengths.padding).is_multiple_of(4));
        assert_eq!(lengths.data_digest, if length == 0 { 0 } else { 4 });
    }
    let mut header = BasicHeader::new(Opcode::NopOut, 0x80);
    header.set_lengths(0, 8193);
    let too_long = RawPdu::split(header.as_bytes(), Digests::default(), 8192);
    assert_eq!(too_long.unwrap_err(), PduError::DataLength { length: 8193, limit: 8192 });
}

#[test]
fn no_header_panics_and_reserved_values_are_errors() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for opcode in 0..=255u8 {
        for _ in 0..200 {
            let mut bytes = [0; 48];
            bytes.iter_mut().for_each(|byte| *byte = random() as u8);
            bytes[0] = opcode;
            let header = BasicHeader::from_bytes(bytes);
            let additional: Vec<u8> = (0..random() % 40).map(|_| random() as u8).collect();
            if let Ok(pdu) = InitiatorPdu::parse(&header, &additional) {
                let (emitted, additional) = emit_initiator(&pdu);
                assert_eq!(InitiatorPdu::parse(&emitted, &additional), Ok(pdu));
            }
            if let Ok(pdu) = TargetPdu::parse(&header) {
                assert_eq!(TargetPdu::parse(&emit_target(&pdu)), Ok(pdu));
            }
        }
    }
    let reserved = |opcode, flags: u8| InitiatorPdu::parse(&BasicHeader::new(opcode, flags), &[]);
    assert!(matches!(reserved(Opcode::ScsiCommand, 0x85), Err(PduError::Reserved { .. })));
    assert!(matches!(reserved(Opcode::LogoutRequest, 0x83), Err(PduError::Reserved { .. })));
    assert!(matches!(reserved(Opcode::LoginRequest, 0x08), Err(PduError::Reserved { .. })));
    assert!(matches!(reserved(Opcode::LoginRequest, 0x82), Err(PduError::Reserved { .. })));
    assert!(matches!(reserved(Opcode::LoginRequest, 0x84), Err(PduError::Contradiction(_))));
    assert!(matches!(reserved(Opcode::LoginRequest, 0xc1), Err(PduError::Contradiction(_))));
    assert!(matches!(reserved(Opcode::TextRequest, 0xc0), Err(PduError::Contradiction(_))));
    assert!(matches!(reserved(Opcode::SnackRequest, 0x84), Err(PduError::Reserved { .. })));
}

#[test]
fn residuals_between_expected_and_actual() {
    assert_eq!(Residual::between(10, 10), Residual::None);
    assert_eq!(Residual::between(10, 4), Residual::Underflow(6));
    assert_eq!(Residual::between(10, 14), Residual::Overflow(4));
    assert_eq!(Residual::between(0, u64::MAX), Residual::Overflow(u32::MAX));
}

#[test]
fn sense_is_cut_off_safely() {
    assert_eq!(ScsiResponse::sense_of(&[0, 2, 9, 8, 7]), &[9, 8]);
    for short in [&[][..], &[0], &[0, 2], &[0, 2, 9], &[255, 255, 1]] {
        assert!(ScsiResponse::sense_of(short).is_empty());
    }
}
