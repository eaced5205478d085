//! Login: from the first PDU of a connection to an agreed session (RFC 7143 section 6.3).
//!
//! `Login` takes whole Login Requests and gives what to answer. Its phases are types: an opening
//! that knows nothing, the security stage, the operational stage; each consumes itself
//! and gives the next. It guarantees that the last step is reached only by an initiator that the
//! policy knows, allows, and has seen prove itself, and that a login keeps a bounded amount of
//! memory and of rounds. Left to others: the serial numbers of the answers, time limits, and whether
//! the session may begin at once (`sessions`).

mod chap;
pub(in crate::iscsi) mod negotiation;
mod security;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use self::negotiation::Negotiation;
use self::security::SecurityStage;
use super::names::IscsiName;
use super::pdu::login::{Isid, LoginRequest, LoginResponse, LoginStatus, Stage};
use super::pdu::{InitiatorTaskTag, ResponseSerials, SerialNumber};
use super::policy::{Authentication, Authorization, LoginPolicy, Portal};
use super::settings::{Parameters, TargetSettings};
use super::text::{KeyValue, TextAssembler, TextError, TextWriter, parse_keys};

/// Random bytes that one login may need, from the system's generator.
#[derive(Clone)]
pub struct LoginRandom {
    /// CHAP challenge; a shorter one takes its first bytes.
    pub challenge: [u8; 32],
    /// CHAP identifier.
    pub identifier: u8,
    /// First StatSN of the connection.
    pub status_sn: u32,
}

impl LoginRandom {
    /// Bytes that [`Self::from_bytes`] takes.
    pub const LENGTH: usize = 37;

    /// Cuts random bytes up.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let [challenge @ .., identifier, a, b, c, d] = bytes;
        Self { challenge, identifier, status_sn: u32::from_be_bytes([a, b, c, d]) }
    }
}

impl std::fmt::Debug for LoginRandom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginRandom")
    }
}

/// What kind of session is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// SessionType=Discovery.
    Discovery,
    /// SessionType=Normal, with this target.
    Normal {
        /// TargetName.
        target: IscsiName,
    },
}

/// An authenticated, authorized login that waits to become a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRequest {
    /// InitiatorName.
    pub initiator: IscsiName,
    /// InitiatorAlias, empty when not given.
    pub initiator_alias: String,
    /// ISID.
    pub isid: Isid,
    /// TSIH of the request: 0 for a new session.
    pub tsih: u16,
    /// CID.
    pub connection_id: u16,
    /// Discovery, or normal with a target.
    pub kind: SessionKind,
    /// Target portal group in which it takes place.
    pub group_tag: u16,
}

/// What a Login Request leads to.
#[derive(Debug)]
pub(super) enum LoginStep {
    /// Answer and wait for the next request.
    Reply(LoginReply),
    /// Answer and close the connection.
    Refuse(LoginReply, LoginFailure),
    /// Ask whether the session may begin; if so, answer.
    Complete(Box<CompletedLogin>),
}

/// A login that has said all it has to.
#[derive(Debug)]
pub(super) struct CompletedLogin {
    pub(super) reply: LoginReply,
    pub(super) request: SessionRequest,
    pub(super) parameters: Parameters,
    pub(super) command_sn: SerialNumber,
}

/// A Login Response without its serial numbers, and its text.
#[derive(Debug)]
pub(super) struct LoginReply {
    pub(super) response: LoginResponse,
    pub(super) text: Vec<u8>,
}

/// The login of one connection.
#[derive(Debug)]
pub(super) struct Login {
    context: LoginContext,
    /// Fields that every request of the login repeats, from the first.
    fixed: Option<FixedFields>,
    text: TextAssembler,
    rounds: u32,
    phase: Phase,
    has_declared_group_tag: bool,
    has_declared_receive_length: bool,
    /// Where the initiator is sent, when the login is refused for that.
    moved_to: Option<String>,
}

/// What a login needs to know of its surroundings.
pub(super) struct LoginContext {
    pub(super) settings: Rc<TargetSettings>,
    pub(super) policy: Rc<dyn LoginPolicy>,
    pub(super) portal: Portal,
    pub(super) random: LoginRandom,
}

impl std::fmt::Debug for LoginContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginContext").field("portal", &self.portal).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FixedFields {
    initiator_task_tag: InitiatorTaskTag,
    connection_id: u16,
    isid: Isid,
    tsih: u16,
    command_sn: SerialNumber,
}

#[derive(Debug)]
enum Phase {
    Opening,
    Security(Identity, SecurityStage),
    Operational(Identity),
    /// A step failed: the connection is on its way down.
    Failed,
}

/// Who wants what, as the first request says.
#[derive(Debug)]
struct Identity {
    initiator: IscsiName,
    initiator_alias: String,
    kind: SessionKind,
    negotiation: Negotiation,
}

impl Login {
    pub(super) fn new(context: LoginContext) -> Self {
        Self {
            context,
            fixed: None,
            text: TextAssembler::default(),
            rounds: 0,
            phase: Phase::Opening,
            has_declared_group_tag: false,
            has_declared_receive_length: false,
            moved_to: None,
        }
    }

    /// Takes one Login Request with its data segment.
    pub(super) fn handle_request(&mut self, request: &LoginRequest, data: &[u8]) -> LoginStep {
        match self.step(request, data) {
            Ok(step) => step,
            Err(failure) => {
                self.phase = Phase::Failed;
                let mut reply = refusal(request, failure.status);
                if let Some(address) = self.moved_to.take() {
                    let mut text = TextWriter::default();
                    // Without a portal group tag (section 13.8).
                    text.push("TargetAddress", &address);
                    reply.text = text.into_bytes();
                }
                LoginStep::Refuse(reply, failure)
            }
        }
    }

    fn step(&mut self, request: &LoginRequest, data: &[u8]) -> Result<LoginStep, LoginFailure> {
        self.check_fixed_fields(request)?;
        self.rounds += 1;
        if self.rounds > MAXIMUM_ROUNDS {
            return Err(LoginFault::TooManyRounds.into());
        }
        self.check_stage(request.current_stage)?;
        self.text.append(data)?;
        if request.continues {
            // An empty answer asks for the rest (section 6.2).
            return Ok(LoginStep::Reply(reply_to(request, None, TextWriter::default())));
        }
        let text = self.text.take();
        let mut keys = parse_keys(&text)?;
        if matches!(self.phase, Phase::Opening) {
            self.phase = self.open(request, &mut keys)?;
        }
        let mut reply = TextWriter::default();
        self.declare_group_tag(&mut reply);
        self.handle_keys(&keys, &mut reply)?;
        self.advance(request, reply)
    }

    /// Section 11.12: these fields stay the same throughout a login.
    fn check_fixed_fields(&mut self, request: &LoginRequest) -> Result<(), LoginFailure> {
        if request.version_minimum > VERSION {
            return Err(LoginFailure {
                status: LoginStatus::UNSUPPORTED_VERSION,
                fault: LoginFault::Version,
            });
        }
        let fields = FixedFields {
            initiator_task_tag: request.initiator_task_tag,
            connection_id: request.connection_id,
            isid: request.isid,
            tsih: request.tsih,
            command_sn: request.command_sn,
        };
        match self.fixed.get_or_insert(fields) {
            first if *first == fields => Ok(()),
            _ => Err(LoginFault::FieldsChanged.into()),
        }
    }

    fn check_stage(&self, stage: Stage) -> Result<(), LoginFailure> {
        let is_right = match self.phase {
            Phase::Opening => stage != Stage::FullFeature,
            Phase::Security(..) => stage == Stage::Security,
            Phase::Operational(_) => stage == Stage::Operational,
            Phase::Failed => false,
        };
        if is_right {
            Ok(())
        } else {
            Err(LoginFailure { status: LoginStatus::INVALID_DURING_LOGIN, fault: LoginFault::WrongStage })
        }
    }

    /// Takes the keys of the first request that say who wants what, and finds the stage to begin in.
    fn open(&mut self, request: &LoginRequest, keys: &mut Vec<KeyValue<'_>>) -> Result<Phase, LoginFailure> {
        let mut take = |name: &str| {
            let index = keys.iter().position(|pair| pair.key == name)?;
            Some(keys.remove(index).value)
        };
        let initiator = take("InitiatorName").ok_or(LoginFault::NameMissing)?;
        let initiator = IscsiName::new(initiator).map_err(|_| LoginFault::NameInvalid)?;
        let initiator_alias = take("InitiatorAlias").unwrap_or_default();
        let initiator_alias = bounded(initiator_alias)?.to_owned();
        let target =
            take("TargetName").map(IscsiName::new).transpose().map_err(|_| LoginFault::NameInvalid)?;
        let kind = match (take("SessionType").unwrap_or("Normal"), target) {
            // A TargetName in discovery is allowed and says nothing (section 13.4).
            ("Discovery", _) => SessionKind::Discovery,
            ("Normal", Some(target)) => SessionKind::Normal { target },
            ("Normal", None) => return Err(LoginFault::NameMissing.into()),
            _ => return Err(LoginFault::SessionType.into()),
        };
        let target = match &kind {
            SessionKind::Discovery => None,
            SessionKind::Normal { target } => Some(target),
        };
        let authentication = self.context.policy.authentication(&initiator, target);
        let negotiation = Negotiation::new(kind == SessionKind::Discovery);
        let identity = Identity { initiator, initiator_alias, kind, negotiation };
        match (request.current_stage, authentication) {
            (Stage::Security, authentication) => {
                Ok(Phase::Security(identity, SecurityStage::new(authentication)))
            }
            (_, Authentication::None) => {
                self.authorize(&identity)?;
                Ok(Phase::Operational(identity))
            }
            (_, Authentication::Chap { .. }) => Err(LoginFault::StageSkipped.into()),
        }
    }

    fn handle_keys(&mut self, keys: &[KeyValue<'_>], reply: &mut TextWriter) -> Result<(), LoginFailure> {
        let is_identity = |pair: &KeyValue<'_>| {
            matches!(
                pair.key,
                "InitiatorName" | "TargetName" | "SessionType" | "TargetAddress" | "TargetAlias"
            )
        };
        if keys.iter().any(is_identity) {
            return Err(LoginFault::KeyRepeated.into());
        }
        let settings = &self.context.settings;
        match std::mem::replace(&mut self.phase, Phase::Failed) {
            Phase::Security(mut identity, stage) => {
                for pair in keys.iter().filter(|pair| pair.key == "MaxRecvDataSegmentLength") {
                    identity.negotiation.answer(*pair, settings)?;
                }
                let stage = stage.handle_keys(keys, &self.context.random, reply)?;
                self.phase = Phase::Security(identity, stage);
            }
            Phase::Operational(mut identity) => {
                for pair in keys {
                    if let Some(answer) = identity.negotiation.answer(*pair, settings)? {
                        reply.push(pair.key, &answer);
                    }
                }
                if !self.has_declared_receive_length {
                    self.has_declared_receive_length = true;
                    let length = settings.receive_data_segment_length;
                    identity.negotiation.declare_receive_length(length);
                    reply.push("MaxRecvDataSegmentLength", &length.to_string());
                    if !settings.alias.is_empty() && identity.kind != SessionKind::Discovery {
                        reply.push("TargetAlias", &settings.alias);
                    }
                }
                self.phase = Phase::Operational(identity);
            }
            Phase::Opening | Phase::Failed => {
                unreachable!("the opening was left, a failure is not continued")
            }
        }
        Ok(())
    }

    /// Section 13.9: the first answer of a normal session names the portal group.
    fn declare_group_tag(&mut self, reply: &mut TextWriter) {
        let (Phase::Security(identity, _) | Phase::Operational(identity)) = &self.phase else { return };
        if identity.kind != SessionKind::Discovery && !self.has_declared_group_tag {
            self.has_declared_group_tag = true;
            reply.push("TargetPortalGroupTag", &self.context.portal.group_tag.to_string());
        }
    }

    /// Goes to the next stage if the initiator wants to and may.
    fn advance(&mut self, request: &LoginRequest, reply: TextWriter) -> Result<LoginStep, LoginFailure> {
        let stay = |reply| Ok(LoginStep::Reply(reply_to(request, None, reply)));
        let Some(next) = request.next_stage else { return stay(reply) };
        let identity = match std::mem::replace(&mut self.phase, Phase::Failed) {
            Phase::Security(identity, stage) if stage.may_leave() => {
                self.authorize(&identity)?;
                identity
            }
            Phase::Operational(identity) => identity,
            phase => {
                self.phase = phase;
                return stay(reply);
            }
        };
        let reply = reply_to(request, Some(next), reply);
        if next != Stage::FullFeature {
            self.phase = Phase::Operational(identity);
            return Ok(LoginStep::Reply(reply));
        }
        Ok(LoginStep::Complete(Box::new(CompletedLogin {
            reply,
            command_sn: request.command_sn,
            parameters: identity.negotiation.finish(),
            request: SessionRequest {
                initiator: identity.initiator,
                initiator_alias: identity.initiator_alias,
                isid: request.isid,
                tsih: request.tsih,
                connection_id: request.connection_id,
                kind: identity.kind,
                group_tag: self.context.portal.group_tag,
            },
        })))
    }

    fn authorize(&mut self, identity: &Identity) -> Result<(), LoginFailure> {
        let SessionKind::Normal { target } = &identity.kind else { return Ok(()) };
        let LoginContext { policy, portal, .. } = &self.context;
        let status = match policy.authorize(&identity.initiator, target, portal) {
            Authorization::Granted => return Ok(()),
            Authorization::Denied => LoginStatus::AUTHORIZATION_FAILURE,
            Authorization::NotFound => LoginStatus::NOT_FOUND,
            Authorization::Removed => LoginStatus::TARGET_REMOVED,
            Authorization::Unavailable => LoginStatus::SERVICE_UNAVAILABLE,
            Authorization::Moved(address) => {
                self.moved_to = Some(address);
                return Err(LoginFailure {
                    status: LoginStatus::MOVED_TEMPORARILY,
                    fault: LoginFault::Moved,
                });
            }
        };
        Err(LoginFailure { status, fault: LoginFault::NotAuthorized })
    }
}

/// A login that ended without a session: what the initiator is told, and what the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("login refused with status {:02x}{:02x}: {fault}", status.class, status.detail)]
pub struct LoginFailure {
    /// Sent to the initiator.
    pub status: LoginStatus,
    /// What was wrong.
    pub fault: LoginFault,
}

/// What was wrong with a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginFault {
    /// No version in common.
    #[error("no protocol version in common")]
    Version,
    /// A PDU other than a Login Request.
    #[error("a PDU that is no login request")]
    NotALogin,
    /// A malformed PDU.
    #[error("malformed PDU")]
    Malformed,
    /// ITT, CID, ISID, TSIH or CmdSN changed from request to request.
    #[error("a field changed that must stay the same throughout a login")]
    FieldsChanged,
    /// CSG is not where the login is.
    #[error("request of a stage that the login is not in")]
    WrongStage,
    /// The initiator went past the security stage although it has to prove itself.
    #[error("the security stage was skipped")]
    StageSkipped,
    /// Malformed text.
    #[error("{0}")]
    Text(#[from] TextError),
    /// InitiatorName or TargetName missing.
    #[error("InitiatorName or TargetName is missing")]
    NameMissing,
    /// InitiatorName or TargetName is not an iSCSI name.
    #[error("InitiatorName or TargetName is not an iSCSI name")]
    NameInvalid,
    /// Unknown SessionType.
    #[error("unknown SessionType")]
    SessionType,
    /// A key that was negotiated already.
    #[error("a key came twice or out of place")]
    KeyRepeated,
    /// A value outside its form or range.
    #[error("a value is malformed or out of range")]
    ValueInvalid,
    /// The initiator offers no authentication method or algorithm that is wanted here.
    #[error("no authentication method in common")]
    NoCommonMethod,
    /// Authentication keys that don't belong to this step.
    #[error("authentication keys out of their order")]
    OutOfOrder,
    /// Wrong CHAP name or response.
    #[error("wrong CHAP name or response")]
    WrongResponse,
    /// The initiator wants mutual CHAP, and no secret is set for it.
    #[error("mutual CHAP was asked for but has no secret set")]
    NoMutualSecret,
    /// Our own challenge or secret was turned against us.
    #[error("CHAP challenge reflected, or one secret for both directions")]
    Reflection,
    /// The policy does not let this initiator use this target.
    #[error("the initiator may not use the target")]
    NotAuthorized,
    /// None: it is sent to another portal.
    #[error("the target has moved to another portal for now")]
    Moved,
    /// No end in sight.
    #[error("too many login requests")]
    TooManyRounds,
    /// The session could not begin.
    #[error("the session could not begin")]
    NotAdmitted,
}

impl From<LoginFault> for LoginFailure {
    fn from(fault: LoginFault) -> Self {
        let status = match fault {
            LoginFault::NoCommonMethod
            | LoginFault::OutOfOrder
            | LoginFault::WrongResponse
            | LoginFault::NoMutualSecret
            | LoginFault::Reflection
            | LoginFault::StageSkipped => LoginStatus::AUTHENTICATION_FAILURE,
            LoginFault::NameMissing => LoginStatus::MISSING_PARAMETER,
            LoginFault::SessionType => LoginStatus::SESSION_TYPE_NOT_SUPPORTED,
            LoginFault::NotALogin | LoginFault::WrongStage => LoginStatus::INVALID_DURING_LOGIN,
            _ => LoginStatus::INITIATOR_ERROR,
        };
        Self { status, fault }
    }
}

impl From<TextError> for LoginFailure {
    fn from(error: TextError) -> Self {
        LoginFault::Text(error).into()
    }
}

/// The answer that refuses `request`.
pub(super) fn refusal(request: &LoginRequest, status: LoginStatus) -> LoginReply {
    let mut reply = reply_to(request, None, TextWriter::default());
    reply.response.status = status;
    reply
}

fn reply_to(request: &LoginRequest, next_stage: Option<Stage>, text: TextWriter) -> LoginReply {
    let response = LoginResponse {
        continues: false,
        current_stage: request.current_stage,
        next_stage,
        version_maximum: VERSION,
        version_active: VERSION,
        isid: request.isid,
        tsih: request.tsih,
        initiator_task_tag: request.initiator_task_tag,
        serials: ResponseSerials::default(),
        status: LoginStatus::SUCCESS,
    };
    LoginReply { response, text: text.into_bytes() }
}

/// Aliases are text of at most 255 bytes.
fn bounded(alias: &str) -> Result<&str, LoginFailure> {
    if alias.len() <= 255 { Ok(alias) } else { Err(LoginFault::ValueInvalid.into()) }
}

/// The only version of the protocol (RFC 7143 section 11.12.4).
const VERSION: u8 = 0;

/// Login Requests of one login, continuations included. Ten are many.
const MAXIMUM_ROUNDS: u32 = 32;
