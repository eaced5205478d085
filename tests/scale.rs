//! A thousand sessions against a real `gemeld`: ten volumes, fifty hosts, two paths, each session with a full queue.
//!
//! The memory of `gemeld` stays below what its configuration says, refusals are TASK SET FULL or BUSY, every command
//! ends, and what was acknowledged is there.

#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/node/mod.rs"]
mod node;
#[path = "support/ports/mod.rs"]
mod ports;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gemel::iscsi::initiator::{Command, Event, LoginSettings};
use gemel::iscsi::pdu::{InitiatorTaskTag, Isid};
use initiator::{Session, read_command, write_command};
use node::{Node, NodeSettings, target_name};

const VOLUMES: usize = 10;
const HOSTS: usize = 50;
const PATHS: usize = 2;
const SESSIONS: usize = VOLUMES * HOSTS * PATHS;
const QUEUE_DEPTH: u64 = 128;
const BLOCK_BYTES: usize = 4096;

/// `iscsi.memory` of the node: data on its way from initiators, beyond the guarantee of each session.
const MEMORY_BYTES: u64 = 32 << 20;
/// Write data that each session may have on its way, whatever the others do.
const GUARANTEE_BYTES: u64 = 64 << 10;
/// A command without its data, with all that refers to it.
const COMMAND_BYTES: u64 = 1 << 10;
/// An idle session: socket, task, state machines.
const SESSION_BYTES: u64 = 24 << 10;
/// The process itself without sessions: its pool, and the map of what is written here.
const PROCESS_BYTES: u64 = 128 << 20;
/// Data on its way, all sessions together.
const DATA_BYTES: u64 = MEMORY_BYTES + SESSIONS as u64 * GUARANTEE_BYTES;
/// Everything: what the configuration of this test allows `gemeld` to have resident. A command that is executed has
/// at least 4 KiB of data, and its execution takes no more than that.
const BOUND_BYTES: u64 =
    PROCESS_BYTES + 2 * DATA_BYTES + SESSIONS as u64 * (SESSION_BYTES + QUEUE_DEPTH * COMMAND_BYTES);

const BUSY: u8 = 0x08;
const TASK_SET_FULL: u8 = 0x28;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_thousand_sessions_with_full_queues_are_served_in_bounded_memory() {
    raise_descriptor_limit();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let settings = NodeSettings {
        disk_bytes: 512 << 20,
        iscsi: format!(
            "memory = \"{}M\"\nqueue_depth = {QUEUE_DEPTH}\nmax_sessions = 1024",
            MEMORY_BYTES >> 20
        ),
        ..NodeSettings::default()
    };
    let node = Node::start(folder.path(), settings);
    (0..VOLUMES).for_each(|volume| drop(node.create_volume(&volume_name(volume), "64M")));
    let mut memory = Memory::new(&node);

    let mut sessions: Vec<_> = (0..SESSIONS).map(|number| open(&node, number, Data::Solicited)).collect();
    let idle_bytes = memory.look("idle sessions").saturating_sub(memory.before) / SESSIONS as u64;
    assert!(idle_bytes < SESSION_BYTES, "an idle session takes {idle_bytes} bytes");

    // All queues full at the same time: the target asks for data that nobody sends yet.
    let before = node.metric("gemel_iscsi_received_bytes_total");
    let mut tags = submit_all(&mut sessions, 1);
    let commands = SESSIONS as u64 * QUEUE_DEPTH;
    wait_until("all commands have arrived", || {
        node.metric("gemel_iscsi_received_bytes_total") >= before + (commands * 48) as f64
    });
    memory.look("full queues");
    // Whoever comes now is served all the same.
    let mut other = open(&node, SESSIONS, Data::Immediate);
    let data = Bytes::from(vec![0x5a; BLOCK_BYTES]);
    assert!(other.execute(write_command(0, last_block(), 8, data)).expect("answered").is_good());
    let refusals = run(&mut sessions, &mut tags, 1);
    assert_eq!(refusals, 0, "a target that asks for data has room for it");
    memory.look("all writes done");
    verify(&mut sessions, 1);
    for mut session in sessions {
        session.connection.log_out();
        assert!(matches!(session.next_event(), Ok(Event::LoggedOut(_))));
    }

    // More unasked data than there is memory for.
    let mut sessions: Vec<_> = (0..SESSIONS / 4).map(|number| open(&node, number, Data::Immediate)).collect();
    let mut tags = submit_all(&mut sessions, 2);
    let refusals = run(&mut sessions, &mut tags, 2);
    assert!(refusals > 0, "more data than memory was taken at once");
    memory.look("overflow");

    verify(&mut sessions, 2);
    let resident = memory.look("verified");
    println!(
        "{refusals} refusals; {idle_bytes} bytes an idle session; at most {} of {BOUND_BYTES} bytes",
        memory.peak
    );
    assert!(resident <= BOUND_BYTES);
}

/// How the data of writes gets to the target.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    /// Only when the target asks for it.
    Solicited,
    /// A first part comes with the command.
    Immediate,
}

/// Looks at the resident memory of a node, and holds it to the bound.
struct Memory<'a> {
    node: &'a Node,
    before: u64,
    peak: u64,
}

impl<'a> Memory<'a> {
    fn new(node: &'a Node) -> Self {
        Self { node, before: node.memory_bytes("VmRSS"), peak: 0 }
    }

    fn look(&mut self, when: &str) -> u64 {
        let resident = self.node.memory_bytes("VmRSS");
        self.peak = self.node.memory_bytes("VmHWM");
        println!("{when}: {} KiB resident, at most {} KiB", resident >> 10, self.peak >> 10);
        assert!(self.peak <= BOUND_BYTES, "{when}: {} of {BOUND_BYTES} bytes", self.peak);
        resident
    }
}

fn volume_name(volume: usize) -> String {
    format!("scale-{volume}")
}

/// Session `number` is one of a hundred of its volume.
fn open(node: &Node, number: usize, data: Data) -> Session {
    let (volume, host, path) = (number / (HOSTS * PATHS) % VOLUMES, number / PATHS % HOSTS, number % PATHS);
    let name = format!("iqn.2026-11.io.gemel:host-{host}");
    let mut settings = LoginSettings::normal(&name, &target_name(&volume_name(volume)));
    settings.isid = Isid([0x80, 0, 0, 0, u8::from(number >= SESSIONS), path as u8]);
    settings.maximum_receive_length = 8 << 10;
    settings.first_burst_length = 512;
    settings.initial_r2t = true;
    settings.immediate_data = data == Data::Immediate;
    let mut session =
        Session::open(node.portals[path], settings).expect("an initiator that is allowed logs in");
    // The unit attention of a new nexus.
    let _ = session.execute(Command::new(&[0; 6])).expect("answered");
    session
}

/// First logical block of a session's write.
fn address_of(number: usize, write: u64) -> u64 {
    ((number % (HOSTS * PATHS)) as u64 * QUEUE_DEPTH + write) * 8
}

/// A block of the volumes that no session writes.
fn last_block() -> u64 {
    (64 << 20) / 512 - 8
}

fn stamp(number: usize, write: u64, round: u64) -> [u8; 8] {
    (round << 48 | (number as u64) << 16 | write).to_le_bytes()
}

fn write_of(number: usize, write: u64, round: u64) -> Command {
    let data = stamp(number, write, round).repeat(BLOCK_BYTES / 8);
    write_command(0, address_of(number, write), 8, Bytes::from(data))
}

/// Which write each outstanding tag of a session is.
type Outstanding = Vec<HashMap<InitiatorTaskTag, u64>>;

/// Fills every session's queue and sends the commands, without receiving anything.
fn submit_all(sessions: &mut [Session], round: u64) -> Outstanding {
    let mut outstanding = vec![];
    for (number, session) in sessions.iter_mut().enumerate() {
        let submit = |write| (session.connection.submit(write_of(number, write, round)), write);
        outstanding.push((0..QUEUE_DEPTH).map(submit).collect());
        session.flush().expect("the commands go out");
    }
    outstanding
}

/// Goes on until every write is GOOD, repeating those that are refused as others end; gives the number of refusals.
fn run(sessions: &mut [Session], outstanding: &mut Outstanding, round: u64) -> u64 {
    let (deadline, mut refusals) = (Instant::now() + LIMIT, 0);
    let mut refused: Vec<Vec<u64>> = vec![vec![]; sessions.len()];
    while outstanding.iter().any(|tags| !tags.is_empty()) {
        Session::wait_any(sessions, deadline).expect("the sessions go on");
        for (number, session) in sessions.iter_mut().enumerate() {
            while let Some(event) = session.connection.poll_event() {
                let Event::Completed { tag, outcome } = event else { panic!("{event:?}") };
                let write = outstanding[number].remove(&tag).expect("a tag of this test, ended once");
                if !outcome.is_good() {
                    assert!(matches!(outcome.status, BUSY | TASK_SET_FULL), "{outcome:?}");
                    refusals += 1;
                    refused[number].push(write);
                }
                if (outcome.is_good() || outstanding[number].is_empty())
                    && let Some(write) = refused[number].pop()
                {
                    let tag = session.connection.submit(write_of(number, write, round));
                    outstanding[number].insert(tag, write);
                }
            }
            session.flush().expect("the sessions go on");
        }
    }
    assert!(refused.iter().all(Vec::is_empty));
    refusals
}

/// Reads back everything that every session has written.
fn verify(sessions: &mut [Session], round: u64) {
    for (number, session) in sessions.iter_mut().enumerate() {
        let blocks = QUEUE_DEPTH as u32;
        let read = read_command(0, address_of(number, 0), blocks * 8, blocks * BLOCK_BYTES as u32);
        let outcome = session.execute(read).expect("answered");
        assert!(outcome.is_good(), "{outcome:?}");
        for (write, block) in outcome.data.chunks(BLOCK_BYTES).enumerate() {
            let expected = stamp(number, write as u64, round);
            assert!(block.chunks(8).all(|part| part == expected), "session {number}, write {write}");
        }
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// This process needs a descriptor for each session too.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("the soft limit may be raised to the hard one");
    let allowed = limit.maximum.unwrap_or(u64::MAX);
    assert!(
        allowed >= 2 * SESSIONS as u64,
        "{allowed} open files are not enough: raise the hard limit (ulimit -Hn)"
    );
}
