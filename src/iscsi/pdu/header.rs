//! The basic header segment: 48 bytes at the start of every PDU (RFC 7143 section 11.2.1).

/// Length of a basic header segment in bytes.
pub const BASIC_HEADER_LENGTH: usize = 48;

/// Largest DataSegmentLength that its 24 bits can say.
pub const MAXIMUM_DATA_SEGMENT_LENGTH: usize = (1 << 24) - 1;

/// A basic header segment as it is on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct BasicHeader([u8; BASIC_HEADER_LENGTH]);

impl BasicHeader {
    /// Takes over received bytes; any 48 bytes are a header, what they mean is found by parsing.
    #[must_use]
    pub fn from_bytes(bytes: [u8; BASIC_HEADER_LENGTH]) -> Self {
        Self(bytes)
    }

    /// Copies the header at the start of `bytes`, or says that there are fewer than 48.
    #[must_use]
    pub fn from_prefix(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(|chunk| Self(*chunk))
    }

    /// The bytes as they go to the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; BASIC_HEADER_LENGTH] {
        &self.0
    }

    /// The six bits of the opcode.
    #[must_use]
    pub fn opcode_byte(&self) -> u8 {
        self.0[0] & 0x3f
    }

    /// The I bit: a request outside the command window.
    #[must_use]
    pub fn is_immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// The F bit (T in login).
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.0[1] & 0x80 != 0
    }

    /// Bytes of additional header segments that follow: 0 to 1020.
    #[must_use]
    pub fn additional_length(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Bytes of the data segment, without padding.
    #[must_use]
    pub fn data_segment_length(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }

    /// The Initiator Task Tag, at the same place in every PDU.
    #[must_use]
    pub fn initiator_task_tag(&self) -> super::InitiatorTaskTag {
        super::InitiatorTaskTag(self.u32_at(16))
    }

    /// The Target Transfer Tag of the PDUs that have one.
    pub(super) fn target_transfer_tag(&self) -> super::TargetTransferTag {
        super::TargetTransferTag(self.u32_at(20))
    }

    /// Sets what a PDU of a task with a target transfer tag begins with: LUN and tags.
    pub(super) fn set_task(
        &mut self,
        lun: &[u8; 8],
        initiator_task_tag: super::InitiatorTaskTag,
        target_transfer_tag: super::TargetTransferTag,
    ) {
        self.set_bytes(8, lun);
        self.set_u32(16, initiator_task_tag.0);
        self.set_u32(20, target_transfer_tag.0);
    }

    /// Sets the serial numbers of a request that has a CmdSN.
    pub(super) fn set_request_serials(
        &mut self,
        command_sn: super::SerialNumber,
        expected_status_sn: super::SerialNumber,
    ) {
        self.set_u32(24, command_sn.0);
        self.set_u32(28, expected_status_sn.0);
    }

    /// Sets TotalAHSLength and DataSegmentLength.
    ///
    /// # Panics
    /// When the lengths don't fit their fields: the sender's own limits keep them far below.
    pub fn set_lengths(&mut self, additional_length: usize, data_segment_length: usize) {
        assert!(additional_length.is_multiple_of(4) && additional_length <= 255 * 4);
        assert!(data_segment_length <= MAXIMUM_DATA_SEGMENT_LENGTH);
        let [_, high, middle, low] = (data_segment_length as u32).to_be_bytes();
        self.0[4] = (additional_length / 4) as u8;
        self.0[5..8].copy_from_slice(&[high, middle, low]);
    }

    pub(super) fn new(opcode: Opcode, flags: u8) -> Self {
        let mut bytes = [0; BASIC_HEADER_LENGTH];
        bytes[0] = opcode as u8;
        bytes[1] = flags;
        Self(bytes)
    }

    pub(super) fn request(opcode: Opcode, is_immediate: bool, flags: u8) -> Self {
        let mut header = Self::new(opcode, flags);
        header.0[0] |= if is_immediate { 0x40 } else { 0 };
        header
    }

    pub(super) fn byte(&self, offset: usize) -> u8 {
        self.0[offset]
    }

    pub(super) fn set_byte(&mut self, offset: usize, value: u8) {
        self.0[offset] = value;
    }

    pub(super) fn u16_at(&self, offset: usize) -> u16 {
        u16::from_be_bytes(self.bytes_at(offset))
    }

    pub(super) fn set_u16(&mut self, offset: usize, value: u16) {
        self.set_bytes(offset, &value.to_be_bytes());
    }

    pub(super) fn u32_at(&self, offset: usize) -> u32 {
        u32::from_be_bytes(self.bytes_at(offset))
    }

    pub(super) fn set_u32(&mut self, offset: usize, value: u32) {
        self.set_bytes(offset, &value.to_be_bytes());
    }

    /// The `N` bytes from `offset` on; both are constants of the format, below 48 together.
    pub(super) fn bytes_at<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[offset..offset + N]);
        bytes
    }

    pub(super) fn set_bytes(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

impl std::fmt::Debug for BasicHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let data = self.data_segment_length();
        write!(f, "BasicHeader(opcode {:#04x}, {data} bytes of data)", self.opcode_byte())
    }
}

/// The opcodes of RFC 7143 section 11.2.1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// NOP-Out.
    NopOut = 0x00,
    /// SCSI Command.
    ScsiCommand = 0x01,
    /// Task Management Function Request.
    TaskManagementRequest = 0x02,
    /// Login Request.
    LoginRequest = 0x03,
    /// Text Request.
    TextRequest = 0x04,
    /// SCSI Data-Out.
    DataOut = 0x05,
    /// Logout Request.
    LogoutRequest = 0x06,
    /// SNACK Request.
    SnackRequest = 0x10,
    /// NOP-In.
    NopIn = 0x20,
    /// SCSI Response.
    ScsiResponse = 0x21,
    /// Task Management Function Response.
    TaskManagementResponse = 0x22,
    /// Login Response.
    LoginResponse = 0x23,
    /// Text Response.
    TextResponse = 0x24,
    /// SCSI Data-In.
    DataIn = 0x25,
    /// Logout Response.
    LogoutResponse = 0x26,
    /// Ready To Transfer.
    ReadyToTransfer = 0x31,
    /// Asynchronous Message.
    AsynchronousMessage = 0x32,
    /// Reject.
    Reject = 0x3f,
}

impl Opcode {
    /// The opcode of a header's six bits, `None` for those that nobody sends.
    #[must_use]
    pub fn of_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x00 => Self::NopOut,
            0x01 => Self::ScsiCommand,
            0x02 => Self::TaskManagementRequest,
            0x03 => Self::LoginRequest,
            0x04 => Self::TextRequest,
            0x05 => Self::DataOut,
            0x06 => Self::LogoutRequest,
            0x10 => Self::SnackRequest,
            0x20 => Self::NopIn,
            0x21 => Self::ScsiResponse,
            0x22 => Self::TaskManagementResponse,
            0x23 => Self::LoginResponse,
            0x24 => Self::TextResponse,
            0x25 => Self::DataIn,
            0x26 => Self::LogoutResponse,
            0x31 => Self::ReadyToTransfer,
            0x32 => Self::AsynchronousMessage,
            0x3f => Self::Reject,
            _ => return None,
        })
    }
}

pub(super) const FINAL: u8 = 0x80;
pub(super) const CONTINUE: u8 = 0x40;

/// `FINAL` or nothing, as the flag says.
pub(super) fn final_bit(is_final: bool) -> u8 {
    if is_final { FINAL } else { 0 }
}
