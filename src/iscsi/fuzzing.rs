//! Entry points for fuzzing, as library functions so that stable tests replay the corpora.
//!
//! Each takes arbitrary bytes, must not panic, and asserts what holds for every input: what is parsed
//! can be sent and parsed again, what a connection sends is well formed, and its memory stays within
//! its budget.

use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::budget::DataBudget;
use super::connection::{Command, Connection, ConnectionContext, Event, ScsiResult, TaskId};
use super::login::LoginRandom;
use super::names::IscsiName;
use super::pdu::framing::append_pdu;
use super::pdu::login::{Isid, LoginRequest, Stage};
use super::pdu::{
    Digests, InitiatorPdu, InitiatorTaskTag, RawPdu, SerialNumber, TargetPdu, TaskManagementResult,
};
use super::policy::{
    Authentication, Authorization, ChapCredential, ChapSecret, DiscoveredTarget, LoginPolicy, Portal,
};
use super::sessions::{Admission, ConnectionId, Sessions};
use super::settings::TargetSettings;
use super::text::{TextWriter, parse_keys};
use crate::base::buffer::BufferPool;
use crate::base::runtime::Instant;

/// PDUs of both directions, one behind the other. The first byte chooses the digests.
pub fn pdu(data: &[u8]) {
    let Some((choice, mut rest)) = data.split_first() else { return };
    let digests = Digests { header: choice & 1 != 0, data: choice & 2 != 0 };
    while let Ok(Some(raw)) = RawPdu::split(rest, digests, 1 << 20) {
        if let Ok(InitiatorPdu::ScsiCommand(command)) = raw.from_initiator() {
            let mut again = Vec::new();
            let additional = command.additional_headers().emit();
            append_pdu(&mut again, command.emit(), &additional, raw.data, digests);
            let second = RawPdu::split(&again, digests, 1 << 20).ok().flatten();
            let second = second.and_then(|raw| raw.from_initiator().ok());
            assert_eq!(second, Some(InitiatorPdu::ScsiCommand(command)));
        }
        if let Ok(TargetPdu::DataIn(data_in)) = raw.from_target() {
            assert_eq!(TargetPdu::parse(&data_in.emit()), Ok(TargetPdu::DataIn(data_in)));
        }
        rest = &rest[raw.length..];
    }
}

/// The text of login: once as keys, once through a whole login. The first byte chooses stage, next
/// stage and authentication; the text is cut into requests at bytes of value 1.
pub fn login_text(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    if let Ok(keys) = parse_keys(text) {
        let mut writer = TextWriter::default();
        keys.iter().for_each(|pair| writer.push(pair.key, pair.value));
        assert_eq!(parse_keys(writer.as_bytes()).as_ref(), Ok(&keys));
    }
    let mut world = World::new(choice & 1 != 0);
    let current = if choice & 2 != 0 { Stage::Operational } else { Stage::Security };
    let next = match choice >> 2 & 3 {
        0 => None,
        1 if current == Stage::Security => Some(Stage::Operational),
        _ => Some(Stage::FullFeature),
    };
    for part in text.split(|byte| *byte == 1) {
        let request =
            LoginRequest { continues: choice & 16 != 0 && next.is_none(), ..world.login(current, next) };
        let mut bytes = Vec::new();
        append_pdu(&mut bytes, request.emit(), &[], &part[..part.len().min(8192)], Digests::default());
        world.feed(&bytes, bytes.len());
    }
    world.finish();
}

/// A byte stream into a connection. The first byte chooses whether it is logged in already and
/// whether with CHAP and digests, the second how the stream is cut into reads.
pub fn connection(data: &[u8]) {
    let Some((&[choice, cut], stream)) = data.split_first_chunk() else { return };
    let mut world = World::new(choice & 1 != 0);
    if choice & 2 != 0 {
        world.log_in(choice & 4 != 0);
    }
    world.completes_late = choice & 8 != 0;
    world.feed(stream, 1 + usize::from(cut) * 16);
    world.finish();
}

/// A connection with a driver that answers everything.
struct World {
    connection: Connection,
    budget: DataBudget,
    sessions: Sessions,
    now: Instant,
    digests: Option<Digests>,
    pending: Vec<(TaskId, u32)>,
    completes_late: bool,
    is_closed: bool,
}

impl World {
    fn new(with_chap: bool) -> Self {
        let budget = DataBudget::new(LIMIT_BYTES, GUARANTEE_BYTES);
        let settings =
            TargetSettings { transfer_length: 1 << 20, queue_depth: 16, ..TargetSettings::default() };
        let context = ConnectionContext {
            settings: Rc::new(settings),
            policy: Rc::new(Policy { with_chap }),
            pool: BufferPool::new(8 << 20),
            budget: budget.clone(),
            portal: Portal { address: "127.0.0.1:3260".to_owned(), group_tag: 1 },
            random: LoginRandom::from_bytes([7; LoginRandom::LENGTH]),
            wake: Rc::new(|| {}),
        };
        Self {
            connection: Connection::new(context, Instant(0)),
            budget,
            sessions: Sessions::new(4),
            now: Instant(0),
            digests: Some(Digests::default()),
            pending: Vec::new(),
            completes_late: false,
            is_closed: false,
        }
    }

    fn login(&self, current: Stage, next: Option<Stage>) -> LoginRequest {
        LoginRequest {
            continues: false,
            current_stage: current,
            next_stage: next,
            version_maximum: 0,
            version_minimum: 0,
            isid: Isid([0x80, 0, 0, 0, 0, 1]),
            tsih: 0,
            initiator_task_tag: InitiatorTaskTag(1),
            connection_id: 0,
            command_sn: SerialNumber(1),
            expected_status_sn: SerialNumber(0),
        }
    }

    /// Logs in where no CHAP is wanted.
    fn log_in(&mut self, with_digests: bool) {
        let mut text = TextWriter::default();
        text.push("InitiatorName", INITIATOR);
        text.push("TargetName", TARGET);
        text.push("InitialR2T", "No");
        if with_digests {
            text.push("DataDigest", "CRC32C");
        }
        let mut bytes = Vec::new();
        let request = self.login(Stage::Operational, Some(Stage::FullFeature));
        append_pdu(&mut bytes, request.emit(), &[], text.as_bytes(), Digests::default());
        self.feed(&bytes, bytes.len());
    }

    fn feed(&mut self, mut stream: &[u8], step: usize) {
        while !stream.is_empty() {
            let buffer = self.connection.receive_buffer();
            let count = buffer.len().min(stream.len()).min(step);
            if count == 0 {
                return;
            }
            let (now, rest) = stream.split_at(count);
            buffer[..count].copy_from_slice(now);
            stream = rest;
            self.connection.handle_received(count, self.now);
            self.drive();
        }
    }

    /// Does a driver's part.
    fn drive(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            self.handle(event);
        }
        self.connection.handle_wake(self.now);
        while self.pending.len() > if self.completes_late { 3 } else { 0 } {
            let (task, expected_in) = self.pending.remove(0);
            self.complete(task, expected_in);
        }
        self.transmit();
        assert!(self.budget.used_bytes() <= LIMIT_BYTES);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::SessionRequested(request) => {
                match self.sessions.request(ConnectionId(1), &request) {
                    Admission::Admitted(tsih) => {
                        // The login response itself goes without digests.
                        self.connection.admit_session(tsih, self.now);
                        self.transmit();
                        self.digests = self.connection.parameters().map(|parameters| parameters.digests);
                    }
                    Admission::Wait { .. } => unreachable!("there is one connection"),
                    Admission::Refused(status) => self.connection.refuse_session(status, self.now),
                }
            }
            Event::Command(Command { task, data_out, expected_out, expected_in, .. }) => {
                let length: usize = data_out.iter().map(Bytes::len).sum();
                assert!(length <= 1 << 20 && length as u64 <= u64::from(expected_out));
                self.pending.push((task, expected_in));
            }
            Event::TaskManagement(management) => {
                self.abandon_all();
                let result = TaskManagementResult::Complete;
                self.connection.complete_task_management(management.id, result, self.now);
            }
            Event::AbortTasks => self.abandon_all(),
            Event::Close(_) => {
                assert!(!self.is_closed, "closed twice");
                self.is_closed = true;
            }
            Event::LoggedIn(_) => {}
        }
    }

    fn abandon_all(&mut self) {
        for (task, _) in std::mem::take(&mut self.pending) {
            self.connection.abandon_command(task, self.now);
        }
    }

    fn complete(&mut self, task: TaskId, expected_in: u32) {
        let length = (expected_in as usize).min(20_000);
        let data_in = vec![Bytes::from(vec![0; length])];
        let result = ScsiResult { data_in, transfer_length: length as u64, ..ScsiResult::default() };
        self.connection.complete_command(task, result, self.now);
    }

    /// Takes what is sent and checks that it is PDUs of a target.
    fn transmit(&mut self) {
        let mut sent = Vec::new();
        while !self.connection.is_flushed() {
            let mut slices = [IoSlice::new(&[]); 16];
            let filled = self.connection.transmit_slices(&mut slices);
            let start = sent.len();
            slices[..filled].iter().for_each(|slice| sent.extend_from_slice(slice));
            self.connection.handle_transmitted(sent.len() - start, self.now);
        }
        let Some(digests) = self.digests else { return };
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let raw = RawPdu::split(rest, digests, 1 << 24);
            let Ok(Some(raw)) = raw else { panic!("malformed PDU sent: {raw:?}") };
            assert!(raw.from_target().is_ok(), "malformed PDU sent");
            rest = &rest[raw.length..];
        }
    }

    /// Ends the connection and checks that nothing is left.
    fn finish(mut self) {
        self.now.0 += Duration::from_secs(40).as_nanos() as u64;
        self.connection.handle_timeout(self.now);
        self.drive();
        self.connection.handle_disconnected(self.now);
        self.drive();
        self.abandon_all();
        assert!(self.is_closed && self.connection.is_drained() && self.connection.is_flushed());
        drop(self.connection);
        assert_eq!(self.budget.used_bytes(), 0);
    }
}

struct Policy {
    with_chap: bool,
}

impl LoginPolicy for Policy {
    fn authentication(&self, _: &IscsiName, _: Option<&IscsiName>) -> Authentication {
        if !self.with_chap {
            return Authentication::None;
        }
        let credential = |name: &str, secret: &str| ChapCredential {
            name: name.to_owned(),
            secret: ChapSecret::new(secret),
        };
        Authentication::Chap {
            incoming: credential("user", "incoming"),
            outgoing: Some(credential("us", "outgoing")),
        }
    }

    fn authorize(&self, _: &IscsiName, _: &IscsiName, _: &Portal) -> Authorization {
        Authorization::Granted
    }

    fn targets(&self, _: &IscsiName, portal: &Portal) -> Vec<DiscoveredTarget> {
        let target = |index: u32| {
            let name = IscsiName::new(&format!("{TARGET}{index}")).ok()?;
            Some(DiscoveredTarget { name, portals: vec![portal.clone()] })
        };
        (0..200).filter_map(target).collect()
    }
}

const INITIATOR: &str = "iqn.2026-11.example:host";
const TARGET: &str = "iqn.2026-11.io.gemel:fuzz:volume";
const LIMIT_BYTES: u64 = 4 << 20;
const GUARANTEE_BYTES: u64 = 64 << 10;
