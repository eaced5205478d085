//! Login Request and Login Response (RFC 7143 sections 11.12 and 11.13).

use super::header::{BasicHeader, CONTINUE, Opcode, final_bit};
use super::text::parse_continue;
use super::{InitiatorTaskTag, PduError, ResponseSerials, SerialNumber};

/// The initiator's part of a session's identity (section 11.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Isid(pub [u8; 6]);

/// Stage of a login (CSG and NSG).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// SecurityNegotiation.
    Security = 0,
    /// LoginOperationalNegotiation.
    Operational = 1,
    /// FullFeaturePhase.
    FullFeature = 3,
}

impl Stage {
    fn parse(bits: u8, field: &'static str) -> Result<Self, PduError> {
        match bits {
            0 => Ok(Self::Security),
            1 => Ok(Self::Operational),
            3 => Ok(Self::FullFeature),
            _ => Err(PduError::Reserved { field, value: bits.into() }),
        }
    }
}

/// Login Request. Its data segment is `key=value` text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// C bit: the text goes on in the next request.
    pub continues: bool,
    /// CSG.
    pub current_stage: Stage,
    /// NSG when the T bit is set: the stage that the initiator is ready to go to.
    pub next_stage: Option<Stage>,
    /// Version-max.
    pub version_maximum: u8,
    /// Version-min.
    pub version_minimum: u8,
    /// ISID.
    pub isid: Isid,
    /// TSIH: 0 for a new session.
    pub tsih: u16,
    /// Tag, the same in all requests of a login.
    pub initiator_task_tag: InitiatorTaskTag,
    /// CID.
    pub connection_id: u16,
    /// CmdSN: the initial one of the session.
    pub command_sn: SerialNumber,
    /// ExpStatSN.
    pub expected_status_sn: SerialNumber,
}

impl LoginRequest {
    /// Reads the header.
    ///
    /// # Errors
    /// T and C both set, a reserved stage, or a next stage that is not later than the current one.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        let (current_stage, next_stage) = parse_stages(header)?;
        Ok(Self {
            continues: parse_continue(header)?,
            current_stage,
            next_stage,
            version_maximum: header.byte(2),
            version_minimum: header.byte(3),
            isid: Isid(header.bytes_at(8)),
            tsih: header.u16_at(14),
            initiator_task_tag: header.initiator_task_tag(),
            connection_id: header.u16_at(20),
            command_sn: SerialNumber(header.u32_at(24)),
            expected_status_sn: SerialNumber(header.u32_at(28)),
        })
    }

    /// The basic header. Login requests are always immediate.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let flags = emit_stages(self.continues, self.current_stage, self.next_stage);
        let mut header = BasicHeader::request(Opcode::LoginRequest, true, flags);
        header.set_byte(2, self.version_maximum);
        header.set_byte(3, self.version_minimum);
        header.set_bytes(8, &self.isid.0);
        header.set_u16(14, self.tsih);
        header.set_u32(16, self.initiator_task_tag.0);
        header.set_u16(20, self.connection_id);
        header.set_request_serials(self.command_sn, self.expected_status_sn);
        header
    }
}

/// Login Response. Its data segment is `key=value` text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginResponse {
    /// C bit: the text goes on in the next response.
    pub continues: bool,
    /// CSG.
    pub current_stage: Stage,
    /// NSG when the T bit is set: both sides go there.
    pub next_stage: Option<Stage>,
    /// Version-max.
    pub version_maximum: u8,
    /// Version-active.
    pub version_active: u8,
    /// ISID, as in the request.
    pub isid: Isid,
    /// TSIH: the session's, in the last response of a login; before it, as in the request.
    pub tsih: u16,
    /// Tag, as in the request.
    pub initiator_task_tag: InitiatorTaskTag,
    /// StatSN, ExpCmdSN, MaxCmdSN.
    pub serials: ResponseSerials,
    /// Status-Class and Status-Detail.
    pub status: LoginStatus,
}

impl LoginResponse {
    /// The answer that refuses whatever PDU `header` began, which need not be a Login Request.
    #[must_use]
    pub fn refusing(header: &BasicHeader, status: LoginStatus) -> Self {
        Self {
            continues: false,
            current_stage: Stage::Security,
            next_stage: None,
            version_maximum: 0,
            version_active: 0,
            isid: Isid(header.bytes_at(8)),
            tsih: 0,
            initiator_task_tag: header.initiator_task_tag(),
            serials: ResponseSerials::default(),
            status,
        }
    }

    /// Reads the header.
    ///
    /// # Errors
    /// T and C both set, or with status success a reserved stage or one that is not later.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        let status = LoginStatus { class: header.byte(36), detail: header.byte(37) };
        // Without success the stages say nothing (section 11.13.5).
        let (current_stage, next_stage) = match parse_stages(header) {
            Err(_) if status.class != 0 => (Stage::Security, None),
            stages => stages?,
        };
        Ok(Self {
            continues: parse_continue(header)?,
            current_stage,
            next_stage,
            version_maximum: header.byte(2),
            version_active: header.byte(3),
            isid: Isid(header.bytes_at(8)),
            tsih: header.u16_at(14),
            initiator_task_tag: header.initiator_task_tag(),
            serials: ResponseSerials::parse(header),
            status,
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let flags = emit_stages(self.continues, self.current_stage, self.next_stage);
        let mut header = BasicHeader::new(Opcode::LoginResponse, flags);
        header.set_byte(2, self.version_maximum);
        header.set_byte(3, self.version_active);
        header.set_bytes(8, &self.isid.0);
        header.set_u16(14, self.tsih);
        header.set_u32(16, self.initiator_task_tag.0);
        self.serials.emit(&mut header);
        header.set_byte(36, self.status.class);
        header.set_byte(37, self.status.detail);
        header
    }
}

/// Status-Class and Status-Detail of a login (section 11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginStatus {
    /// 0 success, 1 redirection, 2 initiator error, 3 target error.
    pub class: u8,
    /// What in particular.
    pub detail: u8,
}

impl LoginStatus {
    /// Success.
    pub const SUCCESS: Self = Self { class: 0, detail: 0 };
    /// The target has moved for now; the text says where to.
    pub const MOVED_TEMPORARILY: Self = Self { class: 1, detail: 1 };
    /// Some iSCSI error of the initiator.
    pub const INITIATOR_ERROR: Self = Self { class: 2, detail: 0 };
    /// Authentication failed.
    pub const AUTHENTICATION_FAILURE: Self = Self { class: 2, detail: 1 };
    /// The initiator may not use the target.
    pub const AUTHORIZATION_FAILURE: Self = Self { class: 2, detail: 2 };
    /// There is no such target.
    pub const NOT_FOUND: Self = Self { class: 2, detail: 3 };
    /// The target was removed.
    pub const TARGET_REMOVED: Self = Self { class: 2, detail: 4 };
    /// The versions have nothing in common.
    pub const UNSUPPORTED_VERSION: Self = Self { class: 2, detail: 5 };
    /// Too many connections.
    pub const TOO_MANY_CONNECTIONS: Self = Self { class: 2, detail: 6 };
    /// A key that has to be there is not.
    pub const MISSING_PARAMETER: Self = Self { class: 2, detail: 7 };
    /// The session can't span to this connection.
    pub const CANNOT_INCLUDE_IN_SESSION: Self = Self { class: 2, detail: 8 };
    /// A session type that the target does not have.
    pub const SESSION_TYPE_NOT_SUPPORTED: Self = Self { class: 2, detail: 9 };
    /// The session (TSIH) does not exist.
    pub const SESSION_DOES_NOT_EXIST: Self = Self { class: 2, detail: 10 };
    /// Not a request of this point of a login.
    pub const INVALID_DURING_LOGIN: Self = Self { class: 2, detail: 11 };
    /// The target failed.
    pub const TARGET_ERROR: Self = Self { class: 3, detail: 0 };
    /// The target is not there for now.
    pub const SERVICE_UNAVAILABLE: Self = Self { class: 3, detail: 1 };
    /// The target has too little memory or too many sessions.
    pub const OUT_OF_RESOURCES: Self = Self { class: 3, detail: 2 };
}

fn parse_stages(header: &BasicHeader) -> Result<(Stage, Option<Stage>), PduError> {
    let flags = header.byte(1);
    let current = Stage::parse(flags >> 2 & 3, "CSG")?;
    if !header.is_final() {
        return Ok((current, None));
    }
    let next = Stage::parse(flags & 3, "NSG")?;
    if next <= current {
        return Err(PduError::Contradiction("NSG that is not later than CSG"));
    }
    Ok((current, Some(next)))
}

fn emit_stages(continues: bool, current: Stage, next: Option<Stage>) -> u8 {
    let next_bits = next.map_or(0, |stage| stage as u8);
    final_bit(next.is_some()) | if continues { CONTINUE } else { 0 } | (current as u8) << 2 | next_bits
}
