//! What administrators and hosts do while commands are running: logout, reset, reinstatement, resize, deletion,
//! a stop. Against a real `gemeld`; nothing hangs, and nothing is acknowledged that is not there.

#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/node/mod.rs"]
mod node;
#[path = "support/ports/mod.rs"]
mod ports;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gemel::iscsi::initiator::{Command, Event, LoginSettings, Outcome};
use gemel::iscsi::pdu::{
    AsynchronousEvent, InitiatorTaskTag, Isid, TaskManagementFunction, TaskManagementResult,
};
use initiator::{Session, SessionError, read_command, write_command};
use node::{Node, NodeSettings, target_name};

const BLOCKS: u64 = 512;

#[test]
fn a_logout_under_load_is_answered_and_loses_nothing() {
    let (_folder, mut node) = start();
    let mut session = open(&node, 1);
    let tags = submit_writes(&mut session, 1);
    session.connection.log_out();
    let (good, end) = drain(&mut session, &tags);
    assert!(matches!(end, End::LoggedOut), "{end:?}");
    assert_written(&node, &good, 1);
    assert_serves(&mut node);
}

#[test]
fn a_logout_is_answered_although_more_comes_behind_it() {
    let (_folder, mut node) = start();
    for round in 0..5 {
        let mut session = open(&node, 1);
        submit_writes(&mut session, 7);
        // The answer is behind data that the initiator has not taken yet.
        submit_reads(&mut session);
        session.connection.log_out();
        session.flush().expect("the logout goes out");
        send_more(&mut session);
        // By now the target has answered and closed. A reset would take with it what is still on the way.
        std::thread::sleep(Duration::from_millis(100));
        let end = end_of(&mut session);
        assert!(matches!(end, End::LoggedOut), "round {round}: {end:?}");
    }
    assert_serves(&mut node);
}

#[test]
fn a_refused_login_is_told_why_although_more_comes_behind_it() {
    let (_folder, mut node) = start();
    let target = target_name("nobody");
    let keys = format!("InitiatorName=iqn.2026-11.io.gemel:life\0TargetName={target}\0SessionType=Normal\0");
    let mut login = vec![0x43, 0x87, 0, 0, 0];
    login.extend_from_slice(&(keys.len() as u32).to_be_bytes()[1..]);
    login.resize(48, 0);
    login.extend_from_slice(keys.as_bytes());
    login.resize(login.len().next_multiple_of(4), 0);
    login.resize(login.len() + 8192, 0x55);
    let mut stream = TcpStream::connect(node.portals[0]).expect("the portal listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit can be set");
    stream.write_all(&login).expect("the login goes out");
    std::thread::sleep(Duration::from_millis(100));
    let mut answer = vec![];
    stream.read_to_end(&mut answer).expect("no reset before the answer");
    // Login Response: initiator error, target not found (RFC 7143 section 11.13.5).
    assert_eq!((answer[0], &answer[36..38]), (0x23, &[2, 3][..]), "{answer:02x?}");
    assert_serves(&mut node);
}

#[test]
fn a_host_that_logs_out_when_it_is_asked_to_gets_its_answer() {
    let (_folder, mut node) = start();
    let mut session = open(&node, 1);
    submit_writes(&mut session, 8);
    session.flush().expect("the writes go out");
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| node.stop());
        let end = loop {
            match session.next_event_within(Duration::from_secs(5)) {
                Ok(Event::Asynchronous(AsynchronousEvent::LogoutRequested { .. })) => {
                    submit_writes(&mut session, 9);
                    submit_reads(&mut session);
                    session.connection.log_out();
                    session.flush().expect("the logout goes out");
                    send_more(&mut session);
                    std::thread::sleep(Duration::from_millis(100));
                    break end_of(&mut session);
                }
                Ok(Event::Completed { .. }) => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(matches!(end, End::LoggedOut), "{end:?}");
        assert_eq!(stop.join().expect("a stop without a panic"), Some(0));
    });
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

#[test]
fn a_reset_of_the_logical_unit_ends_what_runs() {
    let (_folder, mut node) = start();
    let (mut session, mut other) = (open(&node, 1), open(&node, 2));
    let tags = submit_writes(&mut session, 2);
    let reset = other.connection.manage_tasks(TaskManagementFunction::LogicalUnitReset, [0; 8], None);
    match other.next_event().expect("the reset is answered") {
        Event::TaskManagement { tag, result } => {
            assert_eq!((tag, result), (reset, TaskManagementResult::Complete))
        }
        other => panic!("{other:?}"),
    }
    // What was acknowledged is there; what was aborted is answered or not, by TAS; the session goes on.
    let mut good = vec![];
    while let Ok(event) = session.next_event_within(Duration::from_millis(500)) {
        if let Event::Completed { tag, outcome } = event
            && outcome.is_good()
        {
            good.push(position(&tags, tag));
        }
    }
    assert_written(&node, &good, 2);
    let first = session.execute(Command::new(&[0; 6])).expect("the session goes on");
    assert!(
        first.is_good() || first.sense_codes().is_some_and(|(key, code, _)| (key, code) == (6, 0x29)),
        "{first:?}"
    );
    assert_serves(&mut node);
}

#[test]
fn a_session_that_comes_again_replaces_the_old_one() {
    let (_folder, mut node) = start();
    let mut old = open(&node, 1);
    let tags = submit_writes(&mut old, 3);
    old.flush().expect("the writes go out");
    let mut new = open(&node, 1);
    // The old session's writes are over by now: whatever the new one writes stays.
    for block in 0..BLOCKS / 8 {
        assert!(write_block(&mut new, block, 0x77).is_good());
    }
    let (_, end) = drain(&mut old, &tags);
    assert!(matches!(end, End::Closed), "{end:?}");
    for block in 0..BLOCKS / 8 {
        assert_eq!(
            read_block(&mut new, block),
            vec![0x77; 4096],
            "block {block} was overwritten by the old session"
        );
    }
    assert_serves(&mut node);
}

#[test]
fn a_resize_is_seen_by_who_is_logged_in() {
    let (_folder, mut node) = start();
    let mut session = open(&node, 1);
    let tags = submit_writes(&mut session, 4);
    session.flush().expect("the writes go out");
    node.administer(&["volume", "resize", "v", "--size", "128M"]);
    let outcomes: Vec<Outcome> = tags.iter().map(|tag| session.outcome_of(*tag).expect("answered")).collect();
    let capacity_changed = |outcome: &Outcome| outcome.sense_codes() == Some((6, 0x2a, 0x09));
    let mut attention = outcomes.iter().any(capacity_changed);
    assert!(outcomes.iter().all(|outcome| outcome.is_good() || capacity_changed(outcome)), "{outcomes:?}");
    let mut read_capacity = || {
        let cdb = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
        session.execute(Command::new(&cdb).with_data_in(32)).expect("answered")
    };
    let mut outcome = read_capacity();
    if capacity_changed(&outcome) {
        attention = true;
        outcome = read_capacity();
    }
    assert!(attention, "CAPACITY DATA HAS CHANGED was never reported");
    let last = u64::from_be_bytes(outcome.data[..8].try_into().expect("eight bytes"));
    assert_eq!(last + 1, (128 << 20) / 512);
    assert_serves(&mut node);
}

#[test]
fn a_deletion_ends_its_sessions_and_leaves_others_alone() {
    let (_folder, mut node) = start();
    node.create_volume("doomed", "64M");
    let mut doomed = open_volume(&node, "doomed", 1);
    let tags = submit_writes(&mut doomed, 5);
    doomed.flush().expect("the writes go out");
    node.administer(&["volume", "delete", "doomed", "--force"]);
    let (_, end) = drain(&mut doomed, &tags);
    assert!(!matches!(end, End::Silence), "a session with a deleted volume hangs");
    let settings = LoginSettings::normal("iqn.2026-11.io.gemel:life", &target_name("doomed"));
    assert!(Session::open(node.portals[0], settings).is_err(), "a deleted volume takes logins");
    assert_serves(&mut node);
}

#[test]
fn a_stop_under_load_is_quick_and_clean() {
    let (_folder, mut node) = start();
    let mut session = open(&node, 1);
    submit_writes(&mut session, 6);
    session.flush().expect("the writes go out");
    let started = Instant::now();
    assert_eq!(node.stop(), Some(0), "{}", node.log());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// How a session ended.
#[derive(Debug)]
enum End {
    LoggedOut,
    Closed,
    Silence,
}

fn start() -> (tempfile::TempDir, Node) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let settings = NodeSettings { memory_pool: Some(256 << 20), ..NodeSettings::default() };
    let node = Node::start(folder.path(), settings);
    node.create_volume("v", "64M");
    (folder, node)
}

fn open(node: &Node, isid: u8) -> Session {
    open_volume(node, "v", isid)
}

fn open_volume(node: &Node, volume: &str, isid: u8) -> Session {
    let mut settings = LoginSettings::normal("iqn.2026-11.io.gemel:life", &target_name(volume));
    settings.isid = Isid([0x80, 0, 0, 0, 0, isid]);
    let mut session = Session::open(node.portals[0], settings).expect("an initiator that is allowed logs in");
    let _ = session.execute(Command::new(&[0; 6])).expect("TEST UNIT READY is answered");
    session
}

/// Starts a write of each eighth block.
fn submit_writes(session: &mut Session, value: u8) -> Vec<InitiatorTaskTag> {
    let data = Bytes::from(vec![value; 4096]);
    (0..BLOCKS / 8)
        .map(|block| session.connection.submit(write_command(0, block * 8, 8, data.clone())))
        .collect()
}

/// Asks for half a MiB and lets the target send as much of it as the sockets hold.
fn submit_reads(session: &mut Session) {
    for _ in 0..8 {
        session.connection.submit(read_command(0, 0, 128, 64 << 10));
    }
    session.flush().expect("the reads go out");
    std::thread::sleep(Duration::from_millis(100));
}

/// Takes what comes until the session ends.
fn end_of(session: &mut Session) -> End {
    loop {
        match session.next_event_within(Duration::from_secs(5)) {
            Ok(Event::LoggedOut(_)) => return End::LoggedOut,
            Ok(_) => {}
            Err(SessionError::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                return End::Silence;
            }
            Err(SessionError::Io(_)) => return End::Closed,
            Err(SessionError::Initiator(error)) => panic!("{error}"),
        }
    }
}

/// Takes what comes until the session ends; gives the numbers of the writes that were acknowledged.
fn drain(session: &mut Session, tags: &[InitiatorTaskTag]) -> (Vec<u64>, End) {
    let mut good = vec![];
    loop {
        match session.next_event_within(Duration::from_secs(5)) {
            Ok(Event::Completed { tag, outcome }) if outcome.is_good() => good.push(position(tags, tag)),
            Ok(Event::LoggedOut(_)) => return (good, End::LoggedOut),
            Ok(_) => {}
            Err(SessionError::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                return (good, End::Silence);
            }
            Err(SessionError::Io(_)) => return (good, End::Closed),
            Err(SessionError::Initiator(error)) => panic!("{error}"),
        }
    }
}

fn position(tags: &[InitiatorTaskTag], tag: InitiatorTaskTag) -> u64 {
    tags.iter().position(|known| *known == tag).expect("a tag of this test") as u64
}

/// Goes on sending what the target has no reason to read any more, as far as the socket takes it at once.
fn send_more(session: &mut Session) {
    for _ in 0..64 {
        // A target that has closed already, or takes no more, ends it too.
        if session.stream.write(&[0x55; 16 << 10]).is_err() {
            break;
        }
    }
}

fn write_block(session: &mut Session, block: u64, value: u8) -> Outcome {
    session.execute(write_command(0, block * 8, 8, Bytes::from(vec![value; 4096]))).expect("answered")
}

fn read_block(session: &mut Session, block: u64) -> Vec<u8> {
    session.execute(read_command(0, block * 8, 8, 4096)).expect("answered").data
}

fn assert_written(node: &Node, blocks: &[u64], value: u8) {
    let mut session = open(node, 99);
    for block in blocks {
        assert_eq!(read_block(&mut session, *block), vec![value; 4096], "block {block} was acknowledged");
    }
}

fn assert_serves(node: &mut Node) {
    assert!(node.is_running(), "the node is gone: {}", node.log());
    assert!(!node.log().contains("panicked"), "{}", node.log());
    let mut session = open(node, 100);
    assert!(write_block(&mut session, 1000, 0x5a).is_good());
    assert_eq!(read_block(&mut session, 1000), vec![0x5a; 4096]);
}
