//! The initiator against scripted targets: what it sends, and that it notices every broken rule.

use bytes::Bytes;

use super::*;
use crate::iscsi::pdu::framing::append_pdu;
use crate::iscsi::pdu::{
    BasicHeader, DataIn, DataInStatus, InitiatorPdu, LoginResponse, NopIn, RawPdu, ReadyToTransfer,
    ResponseSerials, ScsiResponse, SerialNumber, ServiceResponse, Stage, TargetTransferTag,
};

#[test]
fn a_login_negotiates_downwards() {
    let mut target = Target::new();
    let settings = LoginSettings::normal("iqn.i", "iqn.t");
    let (requests, connection) = target.log_in(settings, "FirstBurstLength=65536\0ImmediateData=No\0");
    assert!(
        requests[0].contains("InitiatorName=iqn.i\0SessionType=Normal\0TargetName=iqn.t\0AuthMethod=None\0")
    );
    assert!(requests[1].contains("MaxRecvDataSegmentLength=262144\0"));
    let parameters = connection.parameters();
    assert_eq!(parameters.first_burst_length, 65_536);
    assert_eq!(parameters.maximum_burst_length, 1 << 20, "what the target does not answer stays as offered");
    assert_eq!(parameters.target_receive_length, 8192, "the default of the standard");
    assert!(!parameters.immediate_data);
}

#[test]
fn a_refused_login_is_an_error() {
    let target = Target::new();
    let mut login = Login::new(LoginSettings::normal("iqn.i", "iqn.t"));
    assert!(!login.take_transmit().is_empty());
    let response = target.login_response(Stage::Security, None, LoginStatus::NOT_FOUND, "");
    let count = put(login.receive_space(), &response);
    assert_eq!(login.handle_received(count).err(), Some(InitiatorError::Refused(LoginStatus::NOT_FOUND)));
}

#[test]
fn a_read_gathers_its_data_in_order() {
    let mut target = Target::new();
    let mut connection = target.log_in(LoginSettings::normal("iqn.i", "iqn.t"), "").1;
    let tag = connection.submit(Command::new(&[0x28]).with_data_in(8));
    let [InitiatorPdu::ScsiCommand(command)] = &sent(&mut connection)[..] else { panic!("one command") };
    assert!(command.reads && command.is_final && command.expected_data_transfer_length == 8);
    let first = target.data_in(tag, 0, 0, None);
    let last = target.data_in(tag, 1, 4, Some(0));
    feed(&mut connection, &[pdu(first.emit(), b"abcd"), pdu(last.emit(), b"efgh")].concat())
        .expect("in order");
    let Some(Event::Completed { outcome, .. }) = connection.poll_event() else { panic!("completed") };
    assert!(outcome.is_good());
    assert_eq!(outcome.data, b"abcdefgh");
}

#[test]
fn broken_rules_are_noticed() {
    let serials = |status_sn| ResponseSerials { status_sn: SerialNumber(status_sn), ..Target::new().serials };
    let response = |tag, status_sn| ScsiResponse {
        initiator_task_tag: tag,
        response: ServiceResponse::COMPLETED,
        status: 0,
        residual: Residual::None,
        bidirectional_read_residual: Residual::None,
        expected_data_sn: 0,
        serials: serials(status_sn),
    };
    let broken: [fn(InitiatorTaskTag) -> DataIn; 3] = [
        |tag| Target::new().data_in(tag, 1, 0, None),
        |tag| Target::new().data_in(tag, 0, 4, None),
        |tag| DataIn { data_sn: 0, ..Target::new().data_in(tag, 0, 9, None) },
    ];
    for make in broken {
        let mut connection = Target::new().log_in(LoginSettings::normal("iqn.i", "iqn.t"), "").1;
        let tag = connection.submit(Command::new(&[0x28]).with_data_in(8));
        let error = feed(&mut connection, &pdu(make(tag).emit(), b"abcd"));
        assert!(matches!(error, Err(InitiatorError::Protocol(_))));
    }
    let mut connection = Target::new().log_in(LoginSettings::normal("iqn.i", "iqn.t"), "").1;
    let tag = connection.submit(Command::new(&[0x28]).with_data_in(8));
    let too_long = Target::new().data_in(tag, 0, 0, None);
    assert!(feed(&mut connection, &pdu(too_long.emit(), b"123456789")).is_err());

    let mut connection = Target::new().log_in(LoginSettings::normal("iqn.i", "iqn.t"), "").1;
    let tag = connection.submit(Command::new(&[0]));
    assert!(feed(&mut connection, &pdu(response(tag, 3).emit(), b"")).is_err(), "a gap in StatSN");

    let mut connection = Target::new().log_in(LoginSettings::normal("iqn.i", "iqn.t"), "").1;
    let tag = connection.submit(Command::new(&[0x2a]).with_data_out(Bytes::from_static(&[1; 512])));
    let beyond = Target::new().ready_to_transfer(tag, 256, 512);
    assert!(feed(&mut connection, &pdu(beyond.emit(), b"")).is_err(), "R2T beyond the data");
}

#[test]
fn a_write_sends_immediate_unsolicited_and_solicited_data() {
    let mut target = Target::new();
    let keys = "FirstBurstLength=16384\0MaxRecvDataSegmentLength=8192\0";
    let mut connection = target.log_in(LoginSettings::normal("iqn.i", "iqn.t"), keys).1;
    let data: Vec<u8> = (0..40_000u32).map(|i| i as u8).collect();
    let tag = connection.submit(Command::new(&[0x2a]).with_data_out(Bytes::from(data.clone())));
    let mut bytes = transmitted(&mut connection);
    let mut received = take_data(&mut bytes, 2);
    assert_eq!(received, data[..16_384]);
    let r2t = target.ready_to_transfer(tag, 16_384, 40_000 - 16_384);
    feed(&mut connection, &pdu(r2t.emit(), b"")).expect("an R2T for the rest");
    received.extend(take_data(&mut transmitted(&mut connection), 3));
    assert_eq!(received, data);
}

#[test]
fn commands_wait_for_the_window() {
    let mut target = Target::new();
    target.serials.maximum_command_sn = SerialNumber(2);
    let mut connection = target.log_in(LoginSettings::normal("iqn.i", "iqn.t"), "").1;
    for _ in 0..5 {
        connection.submit(Command::new(&[0]));
    }
    assert_eq!(sent(&mut connection).len(), 2, "CmdSN 1 and 2");
    target.serials.maximum_command_sn = SerialNumber(4);
    let nop = NopIn {
        lun: [0; 8],
        initiator_task_tag: InitiatorTaskTag::RESERVED,
        target_transfer_tag: TargetTransferTag(7),
        serials: target.serials,
    };
    feed(&mut connection, &pdu(nop.emit(), b"")).expect("a ping");
    let sent = sent(&mut connection);
    assert!(matches!(&sent[0], InitiatorPdu::NopOut(nop) if nop.target_transfer_tag == TargetTransferTag(7)));
    assert_eq!(sent.len(), 3, "the answer to the ping, CmdSN 3 and 4");
}

#[test]
fn a_tag_is_not_used_again_before_its_end_was_taken() {
    let mut target = Target::new();
    let mut connection = target.log_in(LoginSettings::normal("iqn.i", "iqn.t"), "").1;
    let first = connection.submit(Command::new(&[0x28]).with_data_in(4));
    feed(&mut connection, &pdu(target.data_in(first, 0, 0, Some(0)).emit(), b"abcd")).expect("in order");
    assert_ne!(connection.submit(Command::new(&[0])), first);
    assert!(connection.poll_event().is_some());
    assert_eq!(connection.submit(Command::new(&[0])), first);
}

#[test]
fn a_small_buffer_takes_any_cut_of_the_stream() {
    let mut buffer = ReceiveBuffer::new(200);
    let stream: Vec<u8> = (0..50u8)
        .flat_map(|n| pdu(Target::new().data_in(InitiatorTaskTag(n.into()), 0, 0, None).emit(), &[n; 50]))
        .collect();
    let (mut offset, mut seen) = (0, 0u8);
    while offset < stream.len() {
        let space = buffer.space();
        let count = space.len().min(37).min(stream.len() - offset);
        assert!(count > 0);
        space[..count].copy_from_slice(&stream[offset..offset + count]);
        buffer.fill(count);
        offset += count;
        while let Some(raw) = buffer.front(Digests::default(), 1000).expect("well formed") {
            assert_eq!(raw.data, [seen; 50]);
            seen += 1;
            let length = raw.length;
            buffer.consume(length);
        }
    }
    assert_eq!(seen, 50);
}

/// A target that says what its test wants.
struct Target {
    serials: ResponseSerials,
}

impl Target {
    fn new() -> Self {
        let serials = ResponseSerials {
            status_sn: SerialNumber(0),
            expected_command_sn: SerialNumber(1),
            maximum_command_sn: SerialNumber(32),
        };
        Self { serials }
    }

    /// Takes a login to its end; gives the text of the requests.
    fn log_in(&mut self, settings: LoginSettings, keys: &str) -> (Vec<String>, Connection) {
        let mut login = Login::new(settings);
        let mut requests = vec![text_of(&login.take_transmit())];
        let security = self.login_response(
            Stage::Security,
            Some(Stage::Operational),
            LoginStatus::SUCCESS,
            "AuthMethod=None\0",
        );
        let count = put(login.receive_space(), &security);
        let Ok(LoginProgress::Negotiating(mut login)) = login.handle_received(count) else {
            panic!("goes on")
        };
        requests.push(text_of(&login.take_transmit()));
        let operational =
            self.login_response(Stage::Operational, Some(Stage::FullFeature), LoginStatus::SUCCESS, keys);
        let count = put(login.receive_space(), &operational);
        self.serials.status_sn = SerialNumber(1);
        let Ok(LoginProgress::Connected(connection)) = login.handle_received(count) else {
            panic!("logged in")
        };
        (requests, connection)
    }

    fn login_response(&self, stage: Stage, next: Option<Stage>, status: LoginStatus, keys: &str) -> Vec<u8> {
        let response = LoginResponse {
            continues: false,
            current_stage: stage,
            next_stage: next,
            version_maximum: 0,
            version_active: 0,
            isid: Isid([0x80, 0, 0, 0, 0, 1]),
            tsih: 1,
            initiator_task_tag: InitiatorTaskTag(0),
            serials: self.serials,
            status,
        };
        pdu(response.emit(), keys.as_bytes())
    }

    fn data_in(&self, tag: InitiatorTaskTag, data_sn: u32, buffer_offset: u32, status: Option<u8>) -> DataIn {
        // The login response took StatSN 0.
        let serials = ResponseSerials { status_sn: SerialNumber(1), ..self.serials };
        DataIn {
            is_final: status.is_some(),
            acknowledge: false,
            status: status.map(|status| DataInStatus { status, residual: Residual::None }),
            lun: [0; 8],
            initiator_task_tag: tag,
            target_transfer_tag: TargetTransferTag::RESERVED,
            serials,
            data_sn,
            buffer_offset,
        }
    }

    fn ready_to_transfer(&self, tag: InitiatorTaskTag, buffer_offset: u32, length: u32) -> ReadyToTransfer {
        ReadyToTransfer {
            lun: [0; 8],
            initiator_task_tag: tag,
            target_transfer_tag: TargetTransferTag(5),
            serials: self.serials,
            r2t_sn: 0,
            buffer_offset,
            desired_data_transfer_length: length,
        }
    }
}

fn pdu(header: BasicHeader, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_pdu(&mut bytes, header, &[], data, Digests::default());
    bytes
}

fn put(space: &mut [u8], bytes: &[u8]) -> usize {
    space[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

fn feed(connection: &mut Connection, bytes: &[u8]) -> Result<(), InitiatorError> {
    let count = put(connection.receive_space(), bytes);
    connection.handle_received(count)
}

fn text_of(request: &[u8]) -> String {
    String::from_utf8_lossy(&request[48..]).into_owned()
}

fn transmitted(connection: &mut Connection) -> Vec<u8> {
    let mut slices = Vec::new();
    connection.transmit_slices(&mut slices);
    let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
    // In two steps, the first in the middle of a part.
    let half = bytes.len() / 2;
    connection.handle_transmitted(half);
    connection.handle_transmitted(bytes.len() - half);
    assert!(!connection.has_transmit());
    bytes
}

fn sent(connection: &mut Connection) -> Vec<InitiatorPdu> {
    let (bytes, mut pdus, mut offset) = (transmitted(connection), vec![], 0);
    while let Some(raw) = RawPdu::split(&bytes[offset..], Digests::default(), 1 << 20).unwrap() {
        pdus.push(raw.from_initiator().unwrap());
        offset += raw.length;
    }
    pdus
}

/// The data segments of `count` PDUs, the last of which is final, and nothing behind them.
fn take_data(bytes: &mut Vec<u8>, count: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for number in 1..=count {
        let raw = RawPdu::split(bytes, Digests::default(), 8192).unwrap().unwrap();
        assert_eq!(raw.header.is_final(), number == count);
        data.extend_from_slice(raw.data);
        let length = raw.length;
        bytes.drain(..length);
    }
    assert!(bytes.is_empty());
    data
}
