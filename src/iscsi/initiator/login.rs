//! The login phase of the initiator (RFC 7143 section 6.3): security, then operational negotiation.
//!
//! Each request waits for its response. Text that the target sends in parts is gathered first, up to
//! 64 KiB.

use super::challenge::{ChapAlgorithm, from_hexadecimal, to_hexadecimal};
use super::connection::Serials;
use super::{Connection, InitiatorError, LoginSettings, Parameters, ReceiveBuffer};
use crate::iscsi::pdu::framing::append_pdu;
use crate::iscsi::pdu::{
    Digests, InitiatorTaskTag, LoginRequest, LoginResponse, LoginStatus, SerialNumber, Stage, TargetPdu,
};

/// A login in progress.
#[derive(Debug)]
pub struct Login {
    settings: LoginSettings,
    phase: Phase,
    parameters: Parameters,
    text: Vec<u8>,
    tsih: u16,
    expected_status_sn: SerialNumber,
    receive: ReceiveBuffer,
    transmit: Vec<u8>,
}

/// What the response is awaited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Names and AuthMethod.
    Method,
    /// CHAP_A.
    Algorithm,
    /// CHAP_N and CHAP_R, with the challenge to the target.
    Response { algorithm: ChapAlgorithm },
    /// The operational keys.
    Operational,
}

/// What became of a login.
#[derive(Debug)]
pub enum LoginProgress {
    /// It goes on: more bytes are to be moved.
    Negotiating(Login),
    /// The connection is in full feature phase.
    Connected(Connection),
}

impl Login {
    /// Begins: the first request lies ready to be sent.
    #[must_use]
    pub fn new(settings: LoginSettings) -> Self {
        let parameters = Parameters {
            digests: Digests::default(),
            target_receive_length: DEFAULT_RECEIVE_LENGTH,
            maximum_receive_length: settings.maximum_receive_length,
            maximum_burst_length: settings.maximum_burst_length,
            first_burst_length: settings.first_burst_length,
            immediate_data: settings.immediate_data,
            initial_r2t: settings.initial_r2t,
            tsih: 0,
        };
        let receive = ReceiveBuffer::new((settings.maximum_receive_length + 4096).max(RECEIVE_SIZE));
        let mut login = Self {
            settings,
            phase: Phase::Method,
            parameters,
            text: Vec::new(),
            tsih: 0,
            expected_status_sn: SerialNumber(0),
            receive,
            transmit: Vec::new(),
        };
        login.begin();
        login
    }

    /// Where received bytes go to.
    pub fn receive_space(&mut self) -> &mut [u8] {
        self.receive.space()
    }

    /// The bytes to be sent; empty while a response is awaited.
    pub fn take_transmit(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.transmit)
    }

    /// Takes the first `count` bytes of the receive space.
    ///
    /// # Errors
    /// The login is refused, or the target breaks the protocol.
    pub fn handle_received(mut self, count: usize) -> Result<LoginProgress, InitiatorError> {
        self.receive.fill(count);
        while let Some(raw) = self.receive.front(Digests::default(), DEFAULT_RECEIVE_LENGTH)? {
            let TargetPdu::Login(response) = raw.from_target()? else {
                return Err(InitiatorError::Protocol("not a Login Response during the login"));
            };
            let length = raw.length;
            if response.status != LoginStatus::SUCCESS {
                return Err(InitiatorError::Refused(response.status));
            }
            self.text.extend_from_slice(raw.data);
            self.receive.consume(length);
            if self.text.len() > TEXT_LIMIT {
                return Err(InitiatorError::Protocol("more than 64 KiB of login text"));
            }
            self.tsih = response.tsih;
            self.expected_status_sn = response.serials.status_sn.next();
            if response.continues {
                self.request(false, &[]);
            } else if self.handle_response(&response)? {
                self.parameters.tsih = self.tsih;
                return Ok(LoginProgress::Connected(self.finish(&response)));
            }
        }
        Ok(LoginProgress::Negotiating(self))
    }

    fn finish(self, response: &LoginResponse) -> Connection {
        let serials = Serials {
            // A login request is immediate, so the first command repeats its CmdSN (section 4.2.2.1).
            command_sn: FIRST_COMMAND_SN,
            maximum_command_sn: response.serials.maximum_command_sn,
            expected_status_sn: self.expected_status_sn,
        };
        Connection::new(self.parameters, serials, self.receive)
    }

    fn begin(&mut self) {
        let mut keys = vec![("InitiatorName", self.settings.initiator_name.clone())];
        match &self.settings.target_name {
            Some(target) => {
                keys.push(("SessionType", "Normal".to_owned()));
                keys.push(("TargetName", target.clone()));
            }
            None => keys.push(("SessionType", "Discovery".to_owned())),
        }
        let with_chap = self.settings.chap.is_some();
        keys.push(("AuthMethod", if with_chap { "CHAP" } else { "None" }.to_owned()));
        self.request(!with_chap, &keys);
    }

    /// Takes a whole response; true when the login is over.
    fn handle_response(&mut self, response: &LoginResponse) -> Result<bool, InitiatorError> {
        let text = std::mem::take(&mut self.text);
        let keys = parse_keys(&text)?;
        let value = |key: &str| keys.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        match self.phase {
            Phase::Method if response.next_stage == Some(Stage::Operational) => self.offer(),
            Phase::Method => match value("AuthMethod") {
                Some("CHAP") if self.settings.chap.is_some() => {
                    self.phase = Phase::Algorithm;
                    self.request(false, &[("CHAP_A", "7,5".to_owned())]);
                }
                _ => return Err(InitiatorError::Protocol("no authentication method was agreed on")),
            },
            Phase::Algorithm => {
                let algorithm = value("CHAP_A").and_then(ChapAlgorithm::of_number);
                let identifier = value("CHAP_I").and_then(|text| text.parse().ok());
                let challenge = value("CHAP_C").and_then(from_hexadecimal);
                let (Some(algorithm), Some(identifier), Some(challenge)) = (algorithm, identifier, challenge)
                else {
                    return Err(InitiatorError::Protocol("an incomplete CHAP challenge"));
                };
                self.authenticate(algorithm, identifier, &challenge);
            }
            Phase::Response { algorithm } => {
                if let Some(mutual) = &self.settings.mutual_chap {
                    let expected = algorithm.respond(MUTUAL_IDENTIFIER, &mutual.secret, &MUTUAL_CHALLENGE);
                    let answer = value("CHAP_R").and_then(from_hexadecimal);
                    if answer != Some(expected) || value("CHAP_N") != Some(&mutual.name) {
                        return Err(InitiatorError::Authentication);
                    }
                }
                if response.next_stage != Some(Stage::Operational) {
                    return Err(InitiatorError::Protocol("the security stage does not end"));
                }
                self.offer();
            }
            Phase::Operational => {
                keys.iter().try_for_each(|(key, value)| self.agree(key, value))?;
                if response.next_stage == Some(Stage::FullFeature) {
                    return Ok(true);
                }
                self.request(true, &[]);
            }
        }
        Ok(false)
    }

    fn authenticate(&mut self, algorithm: ChapAlgorithm, identifier: u8, challenge: &[u8]) {
        let Some(chap) = &self.settings.chap else { unreachable!("CHAP is asked for only with a secret") };
        let response = algorithm.respond(identifier, &chap.secret, challenge);
        let mut keys = vec![("CHAP_N", chap.name.clone()), ("CHAP_R", to_hexadecimal(&response))];
        if self.settings.mutual_chap.is_some() {
            keys.push(("CHAP_I", MUTUAL_IDENTIFIER.to_string()));
            keys.push(("CHAP_C", to_hexadecimal(&MUTUAL_CHALLENGE)));
        }
        self.phase = Phase::Response { algorithm };
        self.request(true, &keys);
    }

    /// Sends the operational keys.
    fn offer(&mut self) {
        self.phase = Phase::Operational;
        let settings = &self.settings;
        let yes = |flag: bool| if flag { "Yes" } else { "No" }.to_owned();
        let digest = |flag: bool| if flag { "CRC32C,None" } else { "None" }.to_owned();
        let mut keys = vec![
            ("HeaderDigest", digest(settings.digests.header)),
            ("DataDigest", digest(settings.digests.data)),
            ("MaxRecvDataSegmentLength", settings.maximum_receive_length.to_string()),
            ("DefaultTime2Wait", "2".to_owned()),
            ("DefaultTime2Retain", "0".to_owned()),
            ("ErrorRecoveryLevel", "0".to_owned()),
        ];
        if settings.target_name.is_some() {
            keys.extend([
                ("InitialR2T", yes(settings.initial_r2t)),
                ("ImmediateData", yes(settings.immediate_data)),
                ("MaxBurstLength", settings.maximum_burst_length.to_string()),
                ("FirstBurstLength", settings.first_burst_length.to_string()),
                ("MaxOutstandingR2T", settings.maximum_outstanding_r2t.to_string()),
                ("MaxConnections", "1".to_owned()),
                ("DataPDUInOrder", "Yes".to_owned()),
                ("DataSequenceInOrder", "Yes".to_owned()),
            ]);
        }
        self.request(true, &keys);
    }

    /// Takes one operational key of the target.
    fn agree(&mut self, key: &str, value: &str) -> Result<(), InitiatorError> {
        let wrong = || InitiatorError::Key { key: key.to_owned(), value: value.to_owned() };
        let length =
            || value.parse::<usize>().ok().filter(|length| (512..1 << 24).contains(length)).ok_or_else(wrong);
        let flag = || match value {
            "Yes" => Ok(true),
            "No" => Ok(false),
            _ => Err(wrong()),
        };
        let digest = |asked: bool| match value {
            "CRC32C" if asked => Ok(true),
            "None" => Ok(false),
            _ => Err(wrong()),
        };
        let (settings, parameters) = (&self.settings, &mut self.parameters);
        match key {
            "HeaderDigest" => parameters.digests.header = digest(settings.digests.header)?,
            "DataDigest" => parameters.digests.data = digest(settings.digests.data)?,
            "MaxRecvDataSegmentLength" => parameters.target_receive_length = length()?,
            "MaxBurstLength" => {
                parameters.maximum_burst_length = length()?.min(settings.maximum_burst_length)
            }
            "FirstBurstLength" => parameters.first_burst_length = length()?.min(settings.first_burst_length),
            "InitialR2T" => parameters.initial_r2t = flag()? || settings.initial_r2t,
            "ImmediateData" => parameters.immediate_data = flag()? && settings.immediate_data,
            _ => {}
        }
        Ok(())
    }

    /// Sends a request of the current stage; `transits` asks for the next one.
    fn request(&mut self, transits: bool, keys: &[(&str, String)]) {
        let (current_stage, next) = match self.phase {
            Phase::Operational => (Stage::Operational, Stage::FullFeature),
            _ => (Stage::Security, Stage::Operational),
        };
        let request = LoginRequest {
            continues: false,
            current_stage,
            next_stage: transits.then_some(next),
            version_maximum: 0,
            version_minimum: 0,
            isid: self.settings.isid,
            tsih: self.tsih,
            initiator_task_tag: InitiatorTaskTag(0),
            connection_id: 0,
            command_sn: FIRST_COMMAND_SN,
            expected_status_sn: self.expected_status_sn,
        };
        let text: Vec<u8> =
            keys.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect();
        append_pdu(&mut self.transmit, request.emit(), &[], &text, Digests::default());
    }
}

/// The `key=value` pairs of text.
///
/// # Errors
/// Text that is not UTF-8, or a pair without an equals sign or its final NUL.
pub fn parse_keys(text: &[u8]) -> Result<Vec<(String, String)>, InitiatorError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let malformed = InitiatorError::Protocol("malformed text");
    let text = std::str::from_utf8(text).map_err(|_| malformed.clone())?;
    let pairs = text.strip_suffix('\0').ok_or_else(|| malformed.clone())?;
    let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    pairs.split('\0').filter(|text| !text.is_empty()).map(pair).collect::<Option<_>>().ok_or(malformed)
}

/// MaxRecvDataSegmentLength until the login has declared another (RFC 7143 section 13.12).
const DEFAULT_RECEIVE_LENGTH: usize = 8192;
const FIRST_COMMAND_SN: SerialNumber = SerialNumber(1);
const TEXT_LIMIT: usize = 64 << 10;
const RECEIVE_SIZE: usize = 1 << 20;
/// This initiator tests and loads targets: a fixed challenge serves as well as a random one.
const MUTUAL_CHALLENGE: [u8; 16] = *b"a fixed question";
const MUTUAL_IDENTIFIER: u8 = 77;
