//! The initiator's end of a test: sends PDUs, reads PDUs, answers the driver's part by hand.

use std::cell::Cell;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use crate::base::buffer::BufferPool;
use crate::base::runtime::Instant;
use crate::iscsi::budget::DataBudget;
use crate::iscsi::connection::{
    CloseReason, Command, Connection, ConnectionContext, Event, LoginRandom, ScsiResult, TargetSettings,
    TaskId,
};
use crate::iscsi::names::IscsiName;
use crate::iscsi::pdu::framing::append_pdu;
use crate::iscsi::pdu::login::{Isid, LoginRequest, Stage};
use crate::iscsi::pdu::*;
use crate::iscsi::policy::*;
use crate::iscsi::sessions::Tsih;
use crate::iscsi::text::{TextWriter, parse_keys};

pub(in crate::iscsi) const HOST: &str = "iqn.2026-11.example:host";
pub(in crate::iscsi) const TARGET: &str = "iqn.2026-11.io.gemel:test:volume";
pub(in crate::iscsi) const LUN: [u8; 8] = [0; 8];

/// A policy for one host and one target.
#[derive(Debug)]
pub(in crate::iscsi) struct TestPolicy {
    pub authentication: Authentication,
    pub targets: usize,
}

impl Default for TestPolicy {
    fn default() -> Self {
        Self { authentication: Authentication::None, targets: 1 }
    }
}

impl LoginPolicy for TestPolicy {
    fn authentication(&self, _: &IscsiName, _: Option<&IscsiName>) -> Authentication {
        self.authentication.clone()
    }

    fn authorize(&self, initiator: &IscsiName, target: &IscsiName, _: &Portal) -> Authorization {
        match (initiator.as_str(), target.as_str()) {
            (HOST, TARGET) => Authorization::Granted,
            (_, TARGET) => Authorization::Denied,
            _ => Authorization::NotFound,
        }
    }

    fn targets(&self, initiator: &IscsiName, portal: &Portal) -> Vec<DiscoveredTarget> {
        if initiator.as_str() != HOST {
            return Vec::new();
        }
        let portals = vec![portal.clone(), Portal { address: "[::1]:3260".to_owned(), group_tag: 2 }];
        let name = |index: usize| match index {
            0 => IscsiName::new(TARGET).unwrap(),
            _ => IscsiName::new(&format!("{TARGET}-{index}")).unwrap(),
        };
        (0..self.targets)
            .map(|index| DiscoveredTarget { name: name(index), portals: portals.clone() })
            .collect()
    }
}

/// What a test may set up differently.
pub(in crate::iscsi) struct Setup {
    pub settings: TargetSettings,
    pub policy: TestPolicy,
    pub budget: DataBudget,
    pub keys: Vec<(&'static str, &'static str)>,
    pub status_sn: u32,
    pub command_sn: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            settings: TargetSettings::default(),
            policy: TestPolicy::default(),
            budget: DataBudget::new(64 << 20, 64 << 10),
            keys: vec![
                ("FirstBurstLength", "262144"),
                ("InitialR2T", "No"),
                ("ImmediateData", "Yes"),
                ("MaxRecvDataSegmentLength", "262144"),
            ],
            status_sn: u32::MAX - 1,
            command_sn: u32::MAX - 2,
        }
    }
}

/// A PDU from the target.
#[derive(Debug)]
pub(in crate::iscsi) struct Answer {
    pub pdu: TargetPdu,
    pub data: Vec<u8>,
}

/// Both ends of one connection.
pub(in crate::iscsi) struct Wire {
    pub connection: Connection,
    pub digests: Digests,
    pub now: Instant,
    pub command_sn: u32,
    pub woken: Rc<Cell<u32>>,
    received: Vec<u8>,
    /// Most bytes that one read or send moves.
    pub step: usize,
}

impl Wire {
    pub(in crate::iscsi) fn new(setup: &Setup, policy: TestPolicy) -> Self {
        setup.settings.check().unwrap();
        let woken = Rc::new(Cell::new(0));
        let counter = woken.clone();
        let mut random = [0x5a; LoginRandom::LENGTH];
        random[33..].copy_from_slice(&setup.status_sn.to_be_bytes());
        let context = ConnectionContext {
            settings: Rc::new(setup.settings.clone()),
            policy: Rc::new(policy),
            pool: BufferPool::new(16 << 20),
            budget: setup.budget.clone(),
            portal: Portal { address: "127.0.0.1:3260".to_owned(), group_tag: 1 },
            random: LoginRandom::from_bytes(random),
            wake: Rc::new(move || counter.set(counter.get() + 1)),
        };
        Self {
            connection: Connection::new(context, Instant(0)),
            digests: Digests::default(),
            now: Instant(0),
            command_sn: setup.command_sn,
            woken,
            received: Vec::new(),
            step: usize::MAX,
        }
    }

    /// A connection in full feature phase of a normal session.
    pub(in crate::iscsi) fn logged_in(setup: Setup) -> Self {
        Self::session(setup, "Normal")
    }

    pub(in crate::iscsi) fn session(mut setup: Setup, kind: &'static str) -> Self {
        let policy = std::mem::take(&mut setup.policy);
        let mut wire = Self::new(&setup, policy);
        let mut text = TextWriter::default();
        text.push("InitiatorName", HOST);
        text.push("SessionType", kind);
        if kind == "Normal" {
            text.push("TargetName", TARGET);
        }
        setup.keys.iter().for_each(|(key, value)| text.push(key, value));
        let mut request = wire.login_request(Stage::Operational);
        request.next_stage = Some(Stage::FullFeature);
        wire.send(&request.emit(), &[], text.as_bytes());
        let Some(Event::SessionRequested(session)) = wire.event() else { panic!("no session requested") };
        assert_eq!(session.initiator.as_str(), HOST);
        assert!(wire.answers().is_empty(), "nothing is said before the session is admitted");
        wire.connection.admit_session(Tsih(7), wire.now);
        assert!(matches!(wire.event(), Some(Event::LoggedIn(Tsih(7)))));
        let answer = wire.answer();
        let TargetPdu::Login(response) = answer.pdu else { panic!("no login response") };
        assert_eq!((response.next_stage, response.tsih), (Some(Stage::FullFeature), 7));
        assert_eq!(response.serials.status_sn.0, setup.status_sn);
        assert_eq!(response.serials.expected_command_sn.0, setup.command_sn);
        let keys = parse_keys(&answer.data).unwrap();
        let crc = |name| keys.iter().any(|pair| pair.key == name && pair.value == "CRC32C");
        wire.digests = Digests { header: crc("HeaderDigest"), data: crc("DataDigest") };
        wire
    }

    pub(in crate::iscsi) fn login_request(&self, stage: Stage) -> LoginRequest {
        LoginRequest {
            continues: false,
            current_stage: stage,
            next_stage: None,
            version_maximum: 0,
            version_minimum: 0,
            isid: Isid([0x80, 0, 0, 0, 0, 1]),
            tsih: 0,
            initiator_task_tag: InitiatorTaskTag(0),
            connection_id: 3,
            command_sn: SerialNumber(self.command_sn),
            expected_status_sn: SerialNumber(0),
        }
    }

    pub(in crate::iscsi) fn send(&mut self, header: &BasicHeader, additional: &[u8], data: &[u8]) {
        let mut bytes = Vec::new();
        append_pdu(&mut bytes, header.clone(), additional, data, self.digests);
        self.send_bytes(&bytes);
    }

    /// Feeds bytes; what the connection does not take, because it is paused or closing, is lost.
    pub(in crate::iscsi) fn send_bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let buffer = self.connection.receive_buffer();
            let count = buffer.len().min(bytes.len()).min(self.step);
            if count == 0 {
                return;
            }
            buffer[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.connection.handle_received(count, self.now);
        }
    }

    pub(in crate::iscsi) fn event(&mut self) -> Option<Event> {
        self.connection.poll_event()
    }

    /// Everything that the target has sent.
    pub(in crate::iscsi) fn answers(&mut self) -> Vec<Answer> {
        loop {
            let mut slices = [IoSlice::new(&[]); 5];
            let filled = self.connection.transmit_slices(&mut slices);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
            let count = bytes.len().min(self.step);
            self.received.extend_from_slice(&bytes[..count]);
            self.connection.handle_transmitted(count, self.now);
            if self.connection.is_flushed() {
                break;
            }
        }
        let mut answers = Vec::new();
        let mut offset = 0;
        while let Some(raw) = RawPdu::split(&self.received[offset..], self.digests, 1 << 24).unwrap() {
            answers.push(Answer { pdu: raw.from_target().unwrap(), data: raw.data.to_vec() });
            offset += raw.length;
        }
        assert_eq!(offset, self.received.len(), "a cut-off PDU");
        self.received.clear();
        answers
    }

    pub(in crate::iscsi) fn answer(&mut self) -> Answer {
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    pub(in crate::iscsi) fn pass(&mut self, duration: Duration) {
        self.now.0 += duration.as_nanos() as u64;
        self.connection.handle_timeout(self.now);
    }

    pub(in crate::iscsi) fn next_command_sn(&mut self) -> SerialNumber {
        let number = SerialNumber(self.command_sn);
        self.command_sn = self.command_sn.wrapping_add(1);
        number
    }

    /// A SCSI Command with the next CmdSN.
    pub(in crate::iscsi) fn command(&mut self, tag: u32, kind: Kind) -> ScsiCommand {
        let (reads, writes, length) = match kind {
            Kind::Read(length) => (true, false, length),
            Kind::Write(length) => (false, true, length),
            Kind::NoData => (false, false, 0),
        };
        ScsiCommand {
            is_immediate: false,
            is_final: true,
            reads,
            writes,
            attribute: TaskAttribute::Simple,
            lun: LUN,
            initiator_task_tag: InitiatorTaskTag(tag),
            expected_data_transfer_length: length,
            bidirectional_read_length: None,
            command_sn: self.next_command_sn(),
            expected_status_sn: SerialNumber(0),
            cdb: Cdb::new(&[tag as u8; 16]),
        }
    }

    pub(in crate::iscsi) fn send_command(&mut self, command: &ScsiCommand, data: &[u8]) {
        self.send(&command.emit(), &command.additional_headers().emit(), data);
    }

    /// The command that the driver is handed now.
    pub(in crate::iscsi) fn handed_up(&mut self) -> Command {
        match self.event() {
            Some(Event::Command(command)) => command,
            other => panic!("not a command: {other:?}"),
        }
    }

    pub(in crate::iscsi) fn data_out(
        &mut self,
        tag: u32,
        transfer_tag: u32,
        data_sn: u32,
        offset: u32,
    ) -> DataOut {
        DataOut {
            is_final: true,
            lun: LUN,
            initiator_task_tag: InitiatorTaskTag(tag),
            target_transfer_tag: TargetTransferTag(transfer_tag),
            expected_status_sn: SerialNumber(0),
            data_sn,
            buffer_offset: offset,
        }
    }

    pub(in crate::iscsi) fn good(&mut self, task: TaskId, transfer_length: u64) {
        let result = ScsiResult { transfer_length, ..ScsiResult::default() };
        self.connection.complete_command(task, result, self.now);
    }

    /// Expects a Reject and gives its reason.
    pub(in crate::iscsi) fn rejected(&mut self) -> RejectReason {
        match self.answer().pdu {
            TargetPdu::Reject(reject) => reject.reason,
            other => panic!("not a reject: {other:?}"),
        }
    }

    /// Expects a SCSI Response and gives its status, residual and (ASC, ASCQ).
    pub(in crate::iscsi) fn response(&mut self) -> (u8, Residual, (u8, u8)) {
        let answer = self.answer();
        let TargetPdu::ScsiResponse(response) = answer.pdu else { panic!("not a response: {answer:?}") };
        let sense = ScsiResponse::sense_of(&answer.data);
        let code = |index: usize| sense.get(index).copied().unwrap_or(0);
        (response.status, response.residual, (code(12), code(13)))
    }

    pub(in crate::iscsi) fn management(
        &mut self,
        function: TaskManagementFunction,
        tag: u32,
    ) -> TaskManagementRequest {
        TaskManagementRequest {
            is_immediate: true,
            function,
            lun: LUN,
            initiator_task_tag: InitiatorTaskTag(0xff00_0000),
            referenced_task_tag: InitiatorTaskTag(tag),
            command_sn: SerialNumber(self.command_sn),
            expected_status_sn: SerialNumber(0),
            referenced_command_sn: SerialNumber(self.command_sn.wrapping_sub(1)),
            expected_data_sn: 0,
        }
    }

    /// Expects a task management response and gives its result.
    pub(in crate::iscsi) fn managed(&mut self) -> TaskManagementResult {
        match self.answer().pdu {
            TargetPdu::TaskManagement(response) => response.result,
            other => panic!("not a task management response: {other:?}"),
        }
    }

    /// Proves that the connection still works.
    pub(in crate::iscsi) fn assert_alive(&mut self) {
        let command = self.command(0x0a11_7e00, Kind::NoData);
        self.send_command(&command, &[]);
        let command = self.handed_up();
        self.good(command.task, 0);
        assert_eq!(self.response(), (0, Residual::None, (0, 0)));
    }

    /// Expects the end and gives its reason.
    pub(in crate::iscsi) fn closed(&mut self) -> CloseReason {
        match self.event() {
            Some(Event::Close(reason)) => reason,
            other => panic!("not closed: {other:?}"),
        }
    }
}

/// What a command transfers.
#[derive(Clone, Copy)]
pub(in crate::iscsi) enum Kind {
    Read(u32),
    Write(u32),
    NoData,
}

/// Bytes that tell their place.
pub(in crate::iscsi) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index / 7 + index / 4096) as u8).collect()
}
