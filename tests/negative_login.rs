//! What attackers and broken initiators send before they are logged in, against a real `gemeld`: it always goes on
//! serving others, in bounded memory.

#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/node/mod.rs"]
mod node;
#[path = "support/ports/mod.rs"]
mod ports;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gemel::iscsi::initiator::{
    ChapSecret, Command, Event, InitiatorError, Login, LoginProgress, LoginSettings,
};
use gemel::iscsi::pdu::framing::append_pdu;
use gemel::iscsi::pdu::{
    Cdb, Digests, InitiatorTaskTag, Isid, LoginRequest, LoginStatus, ScsiCommand, SerialNumber, Stage,
    TaskAttribute,
};
use initiator::{Session, SessionError};
use node::{Node, NodeSettings, target_name};

const NAME: &str = "iqn.2026-11.io.gemel:negative";

#[test]
fn a_login_cut_off_at_every_byte_harms_nobody() {
    let (_folder, mut node) = start("");
    let whole = login_pdu(&keys(&target_name("v")), true);
    for length in 0..whole.len() {
        let mut stream = connect(&node);
        stream.write_all(&whole[..length]).expect("a fresh connection takes a few bytes");
    }
    assert_serves(&mut node);
}

#[test]
fn lengths_at_their_extremes_harm_nobody() {
    let (_folder, mut node) = start("");
    for data_segment_length in [0u32, 1, 8191, 8192, 8193, 65_535, 65_536, 65_537, (1 << 24) - 1] {
        for additional_words in [0u8, 1, 254, 255] {
            let mut pdu = login_pdu("", true);
            pdu[4] = additional_words;
            pdu[5..8].copy_from_slice(&data_segment_length.to_be_bytes()[1..]);
            pdu.resize(48 + 4096, b'x');
            let mut stream = connect(&node);
            // The node may have closed it in the middle.
            let _ = stream.write_all(&pdu);
        }
    }
    assert_serves(&mut node);
}

#[test]
fn text_that_is_not_keys_and_values_ends_the_login() {
    let (_folder, mut node) = start("");
    let many_keys: String = (0..10_000).map(|number| format!("X-{number}=1\0")).collect();
    let texts = [
        "InitiatorName\0".to_owned(),
        "=\0".to_owned(),
        "InitiatorName=x".to_owned(),
        "\0\0\0\0".to_owned(),
        format!("InitiatorName={}\0SessionType=Discovery\0AuthMethod=None\0", "i".repeat(224)),
        format!("{}SessionType=Discovery\0", keys("iqn.x:y")),
        many_keys[..8000].to_owned(),
        "InitiatorName=\u{fffd}\u{fffd}\0".to_owned(),
    ];
    for text in texts {
        let mut stream = connect(&node);
        let _ = stream.write_all(&login_pdu(&text, true));
        assert!(!answered_with_success(&mut stream), "{text:?} logs in");
    }
    assert_serves(&mut node);
}

#[test]
fn text_continued_without_end_is_cut_off_in_bounded_memory() {
    let (_folder, mut node) = start("");
    let before = node_memory(&node);
    let mut streams: Vec<TcpStream> = (0..32).map(|_| connect(&node)).collect();
    let mut request = login_request(false);
    request.continues = true;
    let mut pdu = Vec::new();
    append_pdu(&mut pdu, request.emit(), &[], &[b'a'; 8000], Digests::default());
    let mut refused = 0;
    for stream in &mut streams {
        // Far more than 64 KiB; each part waits for its answer, as the standard asks.
        for _ in 0..40 {
            if stream.write_all(&pdu).is_err() || !answered_with_success(stream) {
                refused += 1;
                break;
            }
        }
    }
    assert_eq!(refused, streams.len(), "320 KB of login text were taken");
    let grown = node_memory(&node).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes for 32 connections");
    assert_serves(&mut node);
}

#[test]
fn commands_before_the_login_are_refused() {
    let (_folder, mut node) = start("");
    let command = ScsiCommand {
        is_immediate: false,
        is_final: true,
        reads: true,
        writes: false,
        attribute: TaskAttribute::Simple,
        lun: [0; 8],
        initiator_task_tag: InitiatorTaskTag(1),
        expected_data_transfer_length: 512,
        bidirectional_read_length: None,
        command_sn: SerialNumber(1),
        expected_status_sn: SerialNumber(1),
        cdb: Cdb::new(&initiator::cdb16(0x88, 0, 1)),
    };
    let mut pdu = Vec::new();
    append_pdu(&mut pdu, command.emit(), &[], &[], Digests::default());
    let mut stream = connect(&node);
    stream.write_all(&pdu).expect("a fresh connection takes a PDU");
    assert!(!answered_with_success(&mut stream));

    // Also in the middle of a login.
    let mut stream = connect(&node);
    stream.write_all(&login_pdu(&keys(&target_name("v")), false)).expect("a fresh connection takes a PDU");
    assert!(answered_with_success(&mut stream));
    stream.write_all(&pdu).expect("the login is not over");
    assert!(!answered_with_success(&mut stream));
    assert_serves(&mut node);
}

#[test]
fn connections_that_do_not_log_in_are_bounded_in_number_and_time() {
    let (_folder, mut node) = start("max_logins_in_progress = 8\nlogin_timeout_s = 2");
    let mut established = open(&node, NAME, "v").expect("nobody is there yet");
    let mut idle: Vec<TcpStream> = (0..100).map(|_| connect(&node)).collect();
    assert!(established.read(0, 0, 8).expect("a session goes on").is_good());
    // A byte from time to time does not extend the time.
    let slow = login_pdu(&keys(&target_name("v")), true);
    let started = Instant::now();
    for byte in slow.chunks(1).take(30) {
        for stream in &mut idle {
            let _ = stream.write_all(byte);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(started.elapsed() > Duration::from_secs(2));
    let open_still = idle.iter_mut().map(is_closed).filter(|closed| !closed).count();
    assert_eq!(open_still, 0, "connections that do not log in stay open");
    assert!(established.read(0, 0, 8).expect("a session goes on").is_good());
    assert_serves(&mut node);
}

#[test]
fn a_recorded_chap_login_cannot_be_replayed() {
    let (folder, mut node) = start("");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "open-sesame-0123").expect("a file can be written");
    let secret_file = secret.to_str().expect("temporary folders have names in UTF-8");
    node.administer(&["access", "chap", "set", NAME, "--user", "host", "--secret-file", secret_file]);
    let mut settings = LoginSettings::normal(NAME, &target_name("v"));
    settings.chap = Some(ChapSecret { name: "host".to_owned(), secret: b"open-sesame-0123".to_vec() });

    let (mut stream, mut login, mut recording) = (connect(&node), Login::new(settings), vec![]);
    loop {
        recording.push(login.take_transmit());
        stream.write_all(recording.last().expect("just pushed")).expect("the login goes out");
        let count = stream.read(login.receive_space()).expect("the login is answered");
        match login.handle_received(count).expect("the right secret") {
            LoginProgress::Negotiating(next) => login = next,
            LoginProgress::Connected(_) => break,
        }
    }
    assert!(recording.len() > 3, "names, algorithm, response, operational keys");
    drop(stream);

    let mut stream = connect(&node);
    let accepted = recording
        .iter()
        .take_while(|request| stream.write_all(request).is_ok() && answered_with_success(&mut stream));
    assert_eq!(accepted.count(), 2, "the recorded response was accepted, or its challenge never came");
    assert!(!node.log().contains("open-sesame"), "a secret in the log");
    node.administer(&["access", "chap", "clear", NAME]);
    assert_serves(&mut node);
}

#[test]
fn an_initiator_sees_and_reaches_only_its_own_targets() {
    let (_folder, mut node) = start("");
    node.administer(&["volume", "create", "secret", "--size", "16M"]);
    node.administer(&["access", "allow", "secret", "iqn.2026-11.io.gemel:friend"]);

    let refused = |result: Result<Session, SessionError>| match result {
        Err(SessionError::Initiator(InitiatorError::Refused(status))) => status,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("logged in"),
    };
    let status = refused(open(&node, NAME, "secret"));
    assert!([LoginStatus::NOT_FOUND, LoginStatus::AUTHORIZATION_FAILURE].contains(&status), "{status:?}");
    let missing = refused(open(&node, NAME, "no-such-volume"));
    assert_eq!(missing, status, "the answer tells apart what exists");
    open(&node, "iqn.2026-11.io.gemel:friend", "secret").expect("the friend may");

    let listed = |name: &str| {
        let settings = LoginSettings::discovery(name);
        let mut session = Session::open(node.portals[0], settings).expect("discovery is open to all");
        session.connection.send_text(&[("SendTargets", "All")]);
        match session.next_event() {
            Ok(Event::Text { text, .. }) => String::from_utf8_lossy(&text).into_owned(),
            other => panic!("instead of targets: {other:?}"),
        }
    };
    assert!(listed(NAME).contains(&target_name("v")) && !listed(NAME).contains("secret"));
    assert!(listed("iqn.2026-11.io.gemel:friend").contains("secret"));
    assert_serves(&mut node);
}

fn start(iscsi: &str) -> (tempfile::TempDir, Node) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let settings =
        NodeSettings { memory_pool: Some(256 << 20), iscsi: iscsi.to_owned(), ..NodeSettings::default() };
    let node = Node::start(folder.path(), settings);
    node.create_volume("v", "64M");
    (folder, node)
}

fn connect(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(node.portals[0]).expect("the node listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit can be set");
    stream.set_write_timeout(Some(Duration::from_secs(10))).expect("a time limit can be set");
    stream
}

fn open(node: &Node, initiator_name: &str, volume: &str) -> Result<Session, SessionError> {
    let mut session =
        Session::open(node.portals[0], LoginSettings::normal(initiator_name, &target_name(volume)))?;
    // The unit attention of a new nexus, if there is one.
    let _ = session.execute(Command::new(&[0; 6]))?;
    Ok(session)
}

fn keys(target: &str) -> String {
    format!("InitiatorName={NAME}\0SessionType=Normal\0TargetName={target}\0AuthMethod=None\0")
}

fn login_request(transits: bool) -> LoginRequest {
    LoginRequest {
        continues: false,
        current_stage: Stage::Security,
        next_stage: transits.then_some(Stage::Operational),
        version_maximum: 0,
        version_minimum: 0,
        isid: Isid([0x80, 0, 0, 0, 0, 9]),
        tsih: 0,
        initiator_task_tag: InitiatorTaskTag(0),
        connection_id: 0,
        command_sn: SerialNumber(1),
        expected_status_sn: SerialNumber(0),
    }
}

fn login_pdu(text: &str, transits: bool) -> Vec<u8> {
    let mut pdu = Vec::new();
    append_pdu(&mut pdu, login_request(transits).emit(), &[], text.as_bytes(), Digests::default());
    pdu
}

/// Reads one answer: true when it is a Login Response with status class 0, false when it is another or the
/// connection was closed.
fn answered_with_success(stream: &mut TcpStream) -> bool {
    let mut header = [0; 48];
    if let Err(error) = stream.read_exact(&mut header) {
        let timed_out = [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind());
        assert!(!timed_out, "the node neither answers nor closes");
        return false;
    }
    let length = usize::from(header[6]) << 8 | usize::from(header[7]);
    let mut data = vec![0; length.next_multiple_of(4)];
    stream.read_exact(&mut data).expect("a whole PDU comes");
    header[0] & 0x3f == 0x23 && header[36] == 0
}

fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a time limit can be set");
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return ![ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()),
        }
    }
}

/// The node is alive, and a new initiator writes and reads.
fn assert_serves(node: &mut Node) {
    assert!(node.is_running(), "the node is gone: {}", node.log());
    assert!(!node.log().contains("panicked"), "{}", node.log());
    // Connections that were just dropped may still count as logins in progress for a moment.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut session = loop {
        match open(node, "iqn.2026-11.io.gemel:honest", "v") {
            Ok(session) => break session,
            Err(error) => assert!(Instant::now() < deadline, "an honest initiator can't log in: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let data = bytes::Bytes::from(vec![0x5a; 4096]);
    assert!(session.write(0, 64, data.clone()).expect("an honest write is answered").is_good());
    assert_eq!(session.read(0, 64, 8).expect("an honest read is answered").data, data);
}

/// Resident memory of the node in bytes.
fn node_memory(node: &Node) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process_id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS is there");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}
