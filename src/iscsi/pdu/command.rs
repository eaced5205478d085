//! SCSI Command and SCSI Response (RFC 7143 sections 11.3 and 11.4).

use super::additional_header::{AdditionalHeaders, Cdb};
use super::header::{BasicHeader, FINAL, Opcode, final_bit};
use super::{InitiatorTaskTag, PduError, ResponseSerials, SerialNumber};

/// SCSI Command. Its data segment is immediate data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// I bit: deliver at once, outside the window.
    pub is_immediate: bool,
    /// F bit: no unsolicited Data-Out follows.
    pub is_final: bool,
    /// R bit: data flows to the initiator.
    pub reads: bool,
    /// W bit: data flows to the target.
    pub writes: bool,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Logical unit, SAM's eight bytes.
    pub lun: [u8; 8],
    /// The task's tag.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Bytes to write for a write or bidirectional command, to read for a read.
    pub expected_data_transfer_length: u32,
    /// Bytes to read for a bidirectional command.
    pub bidirectional_read_length: Option<u32>,
    /// CmdSN.
    pub command_sn: SerialNumber,
    /// ExpStatSN.
    pub expected_status_sn: SerialNumber,
    /// The command descriptor block.
    pub cdb: Cdb,
}

impl ScsiCommand {
    /// Reads the headers.
    ///
    /// # Errors
    /// A reserved task attribute or malformed additional headers.
    pub fn parse(header: &BasicHeader, additional: &[u8]) -> Result<Self, PduError> {
        let flags = header.byte(1);
        let basic: [u8; 16] = header.bytes_at(32);
        let additional = AdditionalHeaders::parse(additional)?;
        let cdb = match additional.extended_cdb {
            None => Cdb::new(&basic),
            Some(extension) => Cdb::new(&[&basic[..], &extension].concat()),
        };
        Ok(Self {
            is_immediate: header.is_immediate(),
            is_final: header.is_final(),
            reads: flags & 0x40 != 0,
            writes: flags & 0x20 != 0,
            attribute: TaskAttribute::parse(flags & 7)?,
            lun: header.bytes_at(8),
            initiator_task_tag: header.initiator_task_tag(),
            expected_data_transfer_length: header.u32_at(20),
            bidirectional_read_length: additional.bidirectional_read_length,
            command_sn: SerialNumber(header.u32_at(24)),
            expected_status_sn: SerialNumber(header.u32_at(28)),
            cdb,
        })
    }

    /// The basic header; [`Self::additional_headers`] go behind it.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let mut flags = final_bit(self.is_final) | self.attribute as u8;
        flags |= if self.reads { 0x40 } else { 0 };
        flags |= if self.writes { 0x20 } else { 0 };
        let mut header = BasicHeader::request(Opcode::ScsiCommand, self.is_immediate, flags);
        header.set_bytes(8, &self.lun);
        header.set_u32(16, self.initiator_task_tag.0);
        header.set_u32(20, self.expected_data_transfer_length);
        header.set_request_serials(self.command_sn, self.expected_status_sn);
        header.set_bytes(32, self.cdb.basic());
        header
    }

    /// What goes behind the basic header.
    #[must_use]
    pub fn additional_headers(&self) -> AdditionalHeaders {
        AdditionalHeaders {
            extended_cdb: self.cdb.as_slice().get(16..).filter(|rest| !rest.is_empty()).map(Into::into),
            bidirectional_read_length: self.bidirectional_read_length,
        }
    }
}

/// ATTR of a SCSI Command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskAttribute {
    /// Untagged: treated as simple.
    Untagged = 0,
    /// Simple.
    Simple = 1,
    /// Ordered.
    Ordered = 2,
    /// Head of queue.
    HeadOfQueue = 3,
    /// ACA.
    Aca = 4,
}

impl TaskAttribute {
    fn parse(bits: u8) -> Result<Self, PduError> {
        Ok(match bits {
            0 => Self::Untagged,
            1 => Self::Simple,
            2 => Self::Ordered,
            3 => Self::HeadOfQueue,
            4 => Self::Aca,
            _ => return Err(PduError::Reserved { field: "ATTR", value: bits.into() }),
        })
    }
}

/// How far what was transferred lies from what the initiator expected, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Residual {
    /// As expected.
    #[default]
    None,
    /// U: so many expected bytes were not transferred.
    Underflow(u32),
    /// O: so many bytes more would have been transferred.
    Overflow(u32),
}

impl Residual {
    /// The residual when `expected` bytes were announced and `actual` are the command's.
    #[must_use]
    pub fn between(expected: u32, actual: u64) -> Self {
        match actual.cmp(&u64::from(expected)) {
            std::cmp::Ordering::Equal => Self::None,
            std::cmp::Ordering::Less => Self::Underflow(expected - actual as u32),
            std::cmp::Ordering::Greater => {
                Self::Overflow(u32::try_from(actual - u64::from(expected)).unwrap_or(u32::MAX))
            }
        }
    }

    /// From flags (overflow, underflow) and count.
    pub(super) fn parse(overflow: bool, underflow: bool, count: u32) -> Result<Self, PduError> {
        match (overflow, underflow) {
            (true, true) => Err(PduError::Contradiction("both residual overflow and underflow")),
            (true, false) => Ok(Self::Overflow(count)),
            (false, true) => Ok(Self::Underflow(count)),
            (false, false) => Ok(Self::None),
        }
    }

    /// The flag among the given two, and the count.
    pub(super) fn emit(self, overflow: u8, underflow: u8) -> (u8, u32) {
        match self {
            Self::None => (0, 0),
            Self::Underflow(count) => (underflow, count),
            Self::Overflow(count) => (overflow, count),
        }
    }
}

/// SCSI Response. Its data segment is two bytes of sense length, the sense data, and response data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScsiResponse {
    /// The task's tag.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Whether the target completed the command at all.
    pub response: ServiceResponse,
    /// SCSI status, meaningful when the command was completed at the target.
    pub status: u8,
    /// Residual of the write, or of the read of a command that only reads.
    pub residual: Residual,
    /// Residual of the read of a bidirectional command.
    pub bidirectional_read_residual: Residual,
    /// ExpDataSN: how many Data-In and R2T PDUs were sent.
    pub expected_data_sn: u32,
    /// StatSN, ExpCmdSN, MaxCmdSN.
    pub serials: ResponseSerials,
}

impl ScsiResponse {
    /// Reads the header.
    ///
    /// # Errors
    /// Residual flags that contradict each other.
    pub fn parse(header: &BasicHeader) -> Result<Self, PduError> {
        let flags = header.byte(1);
        let flag = |bit: u8| flags & bit != 0;
        Ok(Self {
            initiator_task_tag: header.initiator_task_tag(),
            response: ServiceResponse(header.byte(2)),
            status: header.byte(3),
            residual: Residual::parse(flag(0x04), flag(0x02), header.u32_at(44))?,
            bidirectional_read_residual: Residual::parse(flag(0x10), flag(0x08), header.u32_at(40))?,
            expected_data_sn: header.u32_at(36),
            serials: ResponseSerials::parse(header),
        })
    }

    /// The basic header.
    #[must_use]
    pub fn emit(&self) -> BasicHeader {
        let (flag, count) = self.residual.emit(0x04, 0x02);
        let (read_flag, read_count) = self.bidirectional_read_residual.emit(0x10, 0x08);
        let mut header = BasicHeader::new(Opcode::ScsiResponse, FINAL | flag | read_flag);
        header.set_byte(2, self.response.0);
        header.set_byte(3, self.status);
        header.set_u32(16, self.initiator_task_tag.0);
        self.serials.emit(&mut header);
        header.set_u32(36, self.expected_data_sn);
        header.set_u32(40, read_count);
        header.set_u32(44, count);
        header
    }

    /// The sense data in a response's data segment; empty when there is none or it is cut off.
    #[must_use]
    pub fn sense_of(data_segment: &[u8]) -> &[u8] {
        let Some((length, rest)) = data_segment.split_first_chunk() else { return &[] };
        rest.get(..usize::from(u16::from_be_bytes(*length))).unwrap_or(&[])
    }
}

/// iSCSI service response: 0 completed at target, 1 target failure, 0x80 and above vendor's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceResponse(pub u8);

impl ServiceResponse {
    /// Command completed at target: the status says how.
    pub const COMPLETED: Self = Self(0);
    /// Target failure: the status says nothing.
    pub const TARGET_FAILURE: Self = Self(1);
}
