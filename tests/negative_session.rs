//! What broken initiators send once they are logged in, against a real `gemeld`: wrong data, wrong digests, wrong
//! numbers. Nothing wrong reaches the volume, and the node goes on serving others.

#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/node/mod.rs"]
mod node;
#[path = "support/ports/mod.rs"]
mod ports;

use std::time::Duration;

use bytes::Bytes;
use gemel::iscsi::initiator::{Command, Event, LoginSettings};
use gemel::iscsi::pdu::framing::append_pdu;
use gemel::iscsi::pdu::{
    BasicHeader, Cdb, DataOut, Digests, InitiatorTaskTag, Isid, ReadyToTransfer, ScsiCommand, SerialNumber,
    TargetPdu, TargetTransferTag, TaskAttribute,
};
use initiator::{Session, SessionError, cdb16, read_command, write_command};
use node::{Node, NodeSettings, target_name};

/// Tag of the tasks that the tests make by themselves: the initiator leaves it alone.
const TAG: InitiatorTaskTag = InitiatorTaskTag(0x8000_0001);
/// Where the tests write to, in sectors, and how much.
const ADDRESS: u64 = 128;
const LENGTH: usize = 64 << 10;

#[test]
fn data_outside_of_what_was_asked_for_is_never_written() {
    let (_folder, mut node) = start();
    type Change = fn(&mut DataOut);
    let changes: [(&str, Change); 7] = [
        ("offset before the burst", |pdu| pdu.buffer_offset = pdu.buffer_offset.wrapping_sub(512)),
        ("offset behind the burst", |pdu| pdu.buffer_offset += LENGTH as u32),
        ("offset at the end of 32 bits", |pdu| pdu.buffer_offset = u32::MAX - 511),
        ("a gap in DataSN", |pdu| pdu.data_sn = 1),
        ("a wrong target transfer tag", |pdu| pdu.target_transfer_tag = TargetTransferTag(0x7654_3210)),
        ("unsolicited data behind an R2T", |pdu| pdu.target_transfer_tag = TargetTransferTag::RESERVED),
        ("a task that is not there", |pdu| pdu.initiator_task_tag = InitiatorTaskTag(0x8000_0099)),
    ];
    for (what, change) in changes {
        let mut session = open(&node, |_| {});
        let r2t = begin_write(&mut session);
        let mut pdu = answer_to(&r2t);
        change(&mut pdu);
        inject(&mut session, pdu.emit(), &vec![0xbb; r2t.desired_data_transfer_length as usize]);
        assert_not_written(&node, &mut session, what);
    }
    assert_serves(&mut node);
}

#[test]
fn a_burst_of_a_wrong_length_is_never_written() {
    let (_folder, mut node) = start();
    let mut session = open(&node, |_| {});
    let r2t = begin_write(&mut session);
    inject(
        &mut session,
        answer_to(&r2t).emit(),
        &vec![0xbb; r2t.desired_data_transfer_length as usize + 512],
    );
    assert_not_written(&node, &mut session, "longer than asked for");

    let mut session = open(&node, |_| {});
    let r2t = begin_write(&mut session);
    inject(
        &mut session,
        answer_to(&r2t).emit(),
        &vec![0xbb; r2t.desired_data_transfer_length as usize - 512],
    );
    assert_not_written(&node, &mut session, "final, but shorter than asked for");
    assert_serves(&mut node);
}

#[test]
fn a_wrong_header_digest_ends_the_connection() {
    let (_folder, mut node) = start();
    let digests = Digests { header: true, data: false };
    let mut session = open(&node, |settings| settings.digests = digests);
    assert_eq!(session.connection.parameters().digests, digests);
    let mut bytes = write_pdu(&mut session, digests);
    // A bit of the CDB's address.
    bytes[40] ^= 1;
    session.connection.inject(&bytes);
    assert_not_written(&node, &mut session, "a wrong header digest");
    assert_serves(&mut node);
}

#[test]
fn data_with_a_wrong_digest_is_never_written() {
    let (_folder, mut node) = start();
    let digests = Digests { header: false, data: true };
    let mut session = open(&node, |settings| settings.digests = digests);
    assert_eq!(session.connection.parameters().digests, digests);
    let mut bytes = write_pdu(&mut session, digests);
    bytes[48 + 100] ^= 1;
    session.connection.inject(&bytes);
    assert_not_written(&node, &mut session, "a wrong data digest");
    assert_serves(&mut node);
}

#[test]
fn digests_that_are_right_carry_data() {
    let (_folder, mut node) = start();
    let mut session = open(&node, |settings| settings.digests = Digests { header: true, data: true });
    let data = Bytes::from((0..300 * 512).map(|i| (i * 7) as u8).collect::<Vec<_>>());
    assert!(session.write(0, ADDRESS, data.clone()).expect("answered").is_good());
    assert_eq!(session.read(0, ADDRESS, 300).expect("answered").data, data);
    assert_serves(&mut node);
}

#[test]
fn commands_outside_the_window_are_ignored() {
    let (_folder, mut node) = start();
    let mut session = open(&node, |_| {});
    let serials = *session.connection.serials();
    for command_sn in
        [serials.maximum_command_sn.next(), serials.command_sn.plus(u32::MAX), SerialNumber(0x8000_0000)]
    {
        let mut pdu = write_command_pdu(&mut session, 512);
        pdu.command_sn = command_sn;
        inject(&mut session, pdu.emit(), &[0xbb; 512]);
    }
    session.connection.ping(b"still there?");
    match session.next_event() {
        Ok(Event::Pong { data, .. }) => assert_eq!(data, b"still there?"),
        other => panic!("{other:?}"),
    }
    assert_not_written(&node, &mut session, "a command outside the window");
    assert_serves(&mut node);
}

#[test]
fn two_tasks_with_one_tag_do_not_confuse_the_node() {
    let (_folder, mut node) = start();
    let mut session = open(&node, |_| {});
    let _ = begin_write(&mut session);
    let pdu = write_command_pdu(&mut session, LENGTH as u32);
    inject(&mut session, pdu.emit(), &[]);
    assert_not_written(&node, &mut session, "a tag that is in use");
    assert_serves(&mut node);
}

#[test]
fn a_logical_unit_that_is_not_there_says_so() {
    let (_folder, mut node) = start();
    let mut session = open(&node, |_| {});
    for lun in [1, 7, 255] {
        let inquiry = Command::new(&[0x12, 0, 0, 0, 96, 0]).to_lun(lun).with_data_in(96);
        let outcome = session.execute(inquiry).expect("INQUIRY is answered for every LUN");
        assert_eq!(outcome.data.first(), Some(&0x7f), "qualifier 3, no device type");
        let outcome = session.execute(read_command(lun, 0, 1, 512)).expect("a refusal");
        assert_eq!(outcome.sense_codes(), Some((0x05, 0x25, 0x00)));
        let write = write_command(lun, 0, 1, Bytes::from_static(&[0xbb; 512]));
        assert_eq!(session.execute(write).expect("a refusal").sense_codes(), Some((0x05, 0x25, 0x00)));
    }
    assert_serves(&mut node);
}

#[test]
fn requests_that_no_initiator_may_send_harm_nobody() {
    let (_folder, mut node) = start();
    for opcode in 0..64u8 {
        let mut session = open(&node, |_| {});
        let mut bytes = vec![0u8; 48];
        bytes[0] = opcode | 0x40;
        bytes[1] = 0xff;
        bytes[16..20].copy_from_slice(&TAG.0.to_be_bytes());
        session.connection.inject(&bytes);
        let _ = session.next_event_within(Duration::from_millis(50));
    }
    assert_serves(&mut node);
}

#[test]
fn every_operation_is_answered_whatever_its_fields() {
    let (_folder, mut node) = start();
    let mut session = open(&node, |_| {});
    let mut execute = |cdb: &[u8; 16], data_out: usize, data_in: u32| {
        let command = Command::new(cdb).with_data_out(Bytes::from(vec![cdb[15]; data_out]));
        let outcome = session.execute(command.with_data_in(data_in)).expect("every command is answered");
        assert!(outcome.data.len() <= data_in as usize, "{cdb:02x?}");
    };
    for opcode in 0..=255u8 {
        for fill in [0x00, 0x01, 0xff] {
            let mut cdb = [fill; 16];
            cdb[0] = opcode;
            // SANITIZE with a valid service action would refuse all others for a while.
            if opcode == 0x48 && fill == 1 {
                continue;
            }
            for (data_out, data_in) in [(0, 0), (0, 512), (512, 0), (24, 0), (70_000, 0)] {
                execute(&cdb, data_out, data_in);
            }
        }
    }
    // Every service action, with allocation and parameter list lengths at their extremes.
    for opcode in [0x5e, 0x5f, 0x83, 0x84, 0x9e, 0xa3, 0xa4] {
        for action in 0..32 {
            for length in [0, 1, 16, 255, u32::MAX] {
                let mut cdb = [0; 16];
                (cdb[0], cdb[1]) = (opcode, action);
                cdb[6..10].copy_from_slice(&length.to_be_bytes());
                cdb[10..14].copy_from_slice(&length.to_be_bytes());
                execute(&cdb, 0, 255);
                execute(&cdb, 64, 0);
            }
        }
    }
    drop(session);
    assert_serves(&mut node);
}

#[test]
fn who_is_in_a_host_group_is_let_in_until_he_is_not() {
    let (_folder, mut node) = start();
    node.administer(&["volume", "create", "shared", "--size", "16M"]);
    let host = "iqn.2026-11.io.gemel:member";
    let log_in = || Session::open(node.portals[0], LoginSettings::normal(host, &target_name("shared")));
    node.administer(&["access", "group", "change", "hosts", "--add", "iqn.2026-11.io.gemel:other"]);
    node.administer(&["access", "allow", "shared", "group:hosts"]);
    assert!(log_in().is_err(), "he is not in it yet");
    node.administer(&["access", "group", "change", "hosts", "--add", host]);
    let mut session = log_in().expect("he is in it");
    assert!(session.execute(Command::new(&[0; 6])).is_ok());
    node.administer(&["access", "group", "change", "hosts", "--remove", host]);
    let ended = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        session.execute(Command::new(&[0; 6])).is_err()
    });
    assert!(ended, "his session ends");
    assert!(log_in().is_err());
    assert_serves(&mut node);
}

#[test]
fn a_copy_reaches_only_what_its_initiator_may_use() {
    let (_folder, mut node) = start();
    node.administer(&["volume", "create", "secret", "--size", "16M"]);
    node.administer(&["access", "allow", "secret", "iqn.2026-11.io.gemel:friend"]);
    let naa = |initiator: &str, volume: &str| {
        let settings = LoginSettings::normal(initiator, &target_name(volume));
        let mut session = Session::open(node.portals[0], settings).expect("who is allowed logs in");
        let inquiry = || Command::new(&[0x12, 1, 0x83, 0, 255, 0]).with_data_in(255);
        let page = session.execute(inquiry()).expect("INQUIRY is always answered").data;
        assert_eq!(page[4..8], [1, 3, 0, 16], "the first designator is the NAA");
        page[8..24].to_vec()
    };
    let own = naa("iqn.2026-11.io.gemel:negative", "v");
    let secret = naa("iqn.2026-11.io.gemel:friend", "secret");
    let mut session = open(&node, |_| {});
    for (source, destination) in [(&secret, &own), (&own, &secret)] {
        let list = copy_list(source, destination);
        let mut cdb = [0; 16];
        cdb[0] = 0x83;
        cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
        let outcome = session.execute(Command::new(&cdb).with_data_out(list)).expect("answered");
        // COPY ABORTED, COPY TARGET DEVICE NOT REACHABLE: as if the other volume were not there.
        assert_eq!(outcome.sense_codes(), Some((0x0a, 0x0d, 0x02)));
    }
    let list = copy_list(&own, &own);
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
    assert!(session.execute(Command::new(&cdb).with_data_out(list)).expect("answered").is_good());
    assert_serves(&mut node);
}

/// An EXTENDED COPY parameter list that copies one block (SPC-4 section 6.4.3).
fn copy_list(source: &[u8], destination: &[u8]) -> Bytes {
    let mut list = vec![0; 16];
    (list[3], list[11]) = (64, 28);
    for naa in [source, destination] {
        list.extend_from_slice(&[0xe4, 0, 0, 0, 1, 3, 0, 16]);
        list.extend_from_slice(naa);
        list.extend_from_slice(&[0; 8]);
    }
    list.extend_from_slice(&[0x02, 0, 0, 0x18, 0, 0, 0, 1, 0, 0, 0, 1]);
    list.extend_from_slice(&[0; 15]);
    list.push(64);
    Bytes::from(list)
}

fn start() -> (tempfile::TempDir, Node) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let settings = NodeSettings { memory_pool: Some(256 << 20), ..NodeSettings::default() };
    let node = Node::start(folder.path(), settings);
    node.create_volume("v", "64M");
    let mut session = open(&node, |_| {});
    assert!(session.write(0, ADDRESS, Bytes::from(vec![0xaa; LENGTH])).expect("answered").is_good());
    (folder, node)
}

/// A session whose writes wait for an R2T, unless `change` says otherwise.
fn open(node: &Node, change: impl FnOnce(&mut LoginSettings)) -> Session {
    let mut settings = LoginSettings::normal("iqn.2026-11.io.gemel:negative", &target_name("v"));
    settings.isid = Isid([0x80, 0, 0, 0, 1, std::process::id() as u8]);
    settings.initial_r2t = true;
    change(&mut settings);
    let mut session = Session::open(node.portals[0], settings).expect("an initiator that is allowed logs in");
    let _ = session.execute(Command::new(&[0; 6])).expect("TEST UNIT READY is answered");
    session
}

fn write_command_pdu(session: &mut Session, length: u32) -> ScsiCommand {
    let serials = session.connection.serials();
    let command_sn = serials.command_sn;
    serials.command_sn = command_sn.next();
    ScsiCommand {
        is_immediate: false,
        is_final: true,
        reads: false,
        writes: true,
        attribute: TaskAttribute::Simple,
        lun: [0; 8],
        initiator_task_tag: TAG,
        expected_data_transfer_length: length,
        bidirectional_read_length: None,
        command_sn,
        expected_status_sn: serials.expected_status_sn,
        cdb: Cdb::new(&cdb16(0x8a, ADDRESS, length / 512)),
    }
}

/// A write of one sector with its data, as bytes.
fn write_pdu(session: &mut Session, digests: Digests) -> Vec<u8> {
    let (pdu, mut bytes) = (write_command_pdu(session, 512), Vec::new());
    append_pdu(&mut bytes, pdu.emit(), &[], &[0xbb; 512], digests);
    bytes
}

/// Begins a write without data; gives what the node asks for.
fn begin_write(session: &mut Session) -> ReadyToTransfer {
    let pdu = write_command_pdu(session, LENGTH as u32);
    inject(session, pdu.emit(), &[]);
    match session.next_event() {
        Ok(Event::Other { pdu: TargetPdu::ReadyToTransfer(r2t), .. }) => r2t,
        other => panic!("instead of an R2T: {other:?}"),
    }
}

/// The Data-Out that an R2T asks for, in one PDU.
fn answer_to(r2t: &ReadyToTransfer) -> DataOut {
    DataOut {
        is_final: true,
        lun: [0; 8],
        initiator_task_tag: TAG,
        target_transfer_tag: r2t.target_transfer_tag,
        expected_status_sn: r2t.serials.status_sn,
        data_sn: 0,
        buffer_offset: r2t.buffer_offset,
    }
}

fn inject(session: &mut Session, header: BasicHeader, data: &[u8]) {
    let (mut bytes, digests) = (Vec::new(), session.connection.parameters().digests);
    append_pdu(&mut bytes, header, &[], data, digests);
    session.connection.inject(&bytes);
}

/// The node never says GOOD to the tests' own task, and what lies on the volume is what was there before.
fn assert_not_written(node: &Node, session: &mut Session, what: &str) {
    for _ in 0..10 {
        match session.next_event_within(Duration::from_millis(300)) {
            Ok(Event::Other { pdu: TargetPdu::ScsiResponse(response), .. }) => {
                assert!(response.status != 0 || response.response.0 != 0, "GOOD after {what}");
            }
            Ok(_) => {}
            Err(SessionError::Io(_)) => break,
            Err(SessionError::Initiator(error)) => panic!("{what}: {error}"),
        }
    }
    let mut reader = open(node, |settings| settings.isid = Isid([0x80, 0, 0, 0, 2, 2]));
    let outcome = reader.read(0, ADDRESS, (LENGTH / 512) as u32).expect("another session reads");
    assert!(outcome.is_good() && outcome.data.iter().all(|byte| *byte == 0xaa), "written after {what}");
}

/// The node is alive, and a new initiator writes and reads.
fn assert_serves(node: &mut Node) {
    assert!(node.is_running(), "the node is gone: {}", node.log());
    assert!(!node.log().contains("panicked"), "{}", node.log());
    let mut session = open(node, |settings| settings.isid = Isid([0x80, 0, 0, 0, 3, 3]));
    let data = Bytes::from(vec![0x5a; 4096]);
    assert!(session.write(0, 4096, data.clone()).expect("an honest write is answered").is_good());
    assert_eq!(session.read(0, 4096, 8).expect("an honest read is answered").data, data);
}
