//! Sense data (SPC-4 section 4.5): what went wrong, in fixed or in descriptor format.
//!
//! A [`Sense`] is format-free; the D_SENSE bit of the control mode page (or DESC in REQUEST SENSE)
//! decides at the end how it is encoded.

/// Sense key (SPC-4 table 48).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the standard's own names
pub enum SenseKey {
    NoSense = 0x0,
    RecoveredError = 0x1,
    NotReady = 0x2,
    MediumError = 0x3,
    HardwareError = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    CopyAborted = 0xa,
    AbortedCommand = 0xb,
    Miscompare = 0xe,
}

/// Additional sense code and its qualifier: `0x2904` is 29h/04h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AdditionalSense(pub u16);

/// The additional sense codes in use, by the standard's names (SPC-4 annex F.2).
#[allow(missing_docs)]
impl AdditionalSense {
    pub const NONE: Self = Self(0x0000);
    pub const BECOMING_READY: Self = Self(0x0401);
    pub const INITIALIZING_COMMAND_REQUIRED: Self = Self(0x0402);
    pub const NOT_READY: Self = Self(0x0400);
    pub const ASYMMETRIC_ACCESS_STATE_TRANSITION: Self = Self(0x040a);
    pub const TARGET_PORT_IN_STANDBY_STATE: Self = Self(0x040b);
    pub const TARGET_PORT_IN_UNAVAILABLE_STATE: Self = Self(0x040c);
    pub const SANITIZE_IN_PROGRESS: Self = Self(0x041b);
    pub const UNREACHABLE_COPY_TARGET: Self = Self(0x0804);
    pub const THIRD_PARTY_DEVICE_FAILURE: Self = Self(0x0d01);
    pub const COPY_TARGET_NOT_REACHABLE: Self = Self(0x0d02);
    pub const INVALID_FIELD_IN_INFORMATION_UNIT: Self = Self(0x0e03);
    pub const UNRECOVERED_READ_ERROR: Self = Self(0x1100);
    pub const PARAMETER_LIST_LENGTH: Self = Self(0x1a00);
    pub const MISCOMPARE_DURING_VERIFY: Self = Self(0x1d00);
    pub const INVALID_OPERATION_CODE: Self = Self(0x2000);
    pub const LBA_OUT_OF_RANGE: Self = Self(0x2100);
    pub const INVALID_FIELD_IN_CDB: Self = Self(0x2400);
    pub const LOGICAL_UNIT_NOT_SUPPORTED: Self = Self(0x2500);
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Self = Self(0x2600);
    pub const PARAMETER_NOT_SUPPORTED: Self = Self(0x2601);
    pub const PARAMETER_VALUE_INVALID: Self = Self(0x2602);
    pub const INVALID_RELEASE_OF_PERSISTENT_RESERVATION: Self = Self(0x2604);
    pub const TOO_MANY_TARGET_DESCRIPTORS: Self = Self(0x2606);
    pub const UNSUPPORTED_TARGET_DESCRIPTOR: Self = Self(0x2607);
    pub const TOO_MANY_SEGMENT_DESCRIPTORS: Self = Self(0x2608);
    pub const UNSUPPORTED_SEGMENT_DESCRIPTOR: Self = Self(0x2609);
    pub const UNEXPECTED_INEXACT_SEGMENT: Self = Self(0x260a);
    pub const INLINE_DATA_LENGTH_EXCEEDED: Self = Self(0x260b);
    pub const SOFTWARE_WRITE_PROTECTED: Self = Self(0x2702);
    pub const SPACE_ALLOCATION_FAILED_WRITE_PROTECT: Self = Self(0x2707);
    pub const POWER_ON_RESET: Self = Self(0x2900);
    pub const BUS_DEVICE_RESET_FUNCTION_OCCURRED: Self = Self(0x2903);
    pub const NEXUS_LOSS_OCCURRED: Self = Self(0x2907);
    pub const MODE_PARAMETERS_CHANGED: Self = Self(0x2a01);
    pub const MEDIUM_MAY_HAVE_CHANGED: Self = Self(0x2800);
    pub const RESERVATIONS_PREEMPTED: Self = Self(0x2a03);
    pub const RESERVATIONS_RELEASED: Self = Self(0x2a04);
    pub const REGISTRATIONS_PREEMPTED: Self = Self(0x2a05);
    pub const ASYMMETRIC_ACCESS_STATE_CHANGED: Self = Self(0x2a06);
    pub const CAPACITY_DATA_HAS_CHANGED: Self = Self(0x2a09);
    pub const COMMAND_SEQUENCE_ERROR: Self = Self(0x2c00);
    pub const COMMANDS_CLEARED_BY_ANOTHER_INITIATOR: Self = Self(0x2f00);
    pub const SANITIZE_COMMAND_FAILED: Self = Self(0x3103);
    pub const THIN_PROVISIONING_SOFT_THRESHOLD_REACHED: Self = Self(0x3807);
    pub const SAVING_PARAMETERS_NOT_SUPPORTED: Self = Self(0x3900);
    pub const MEDIUM_NOT_PRESENT_TRAY_OPEN: Self = Self(0x3a02);
    pub const INQUIRY_DATA_HAS_CHANGED: Self = Self(0x3f03);
    pub const REPORTED_LUNS_DATA_HAS_CHANGED: Self = Self(0x3f0e);
    pub const INTERNAL_TARGET_FAILURE: Self = Self(0x4400);
    pub const INVALID_MESSAGE: Self = Self(0x4900);
    pub const MEDIUM_REMOVAL_PREVENTED: Self = Self(0x5302);
    pub const INSUFFICIENT_REGISTRATION_RESOURCES: Self = Self(0x5504);
    pub const SET_TARGET_PORT_GROUPS_COMMAND_FAILED: Self = Self(0x670a);
}

/// Sense data, independent of its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: SenseKey,
    /// Additional sense code and qualifier.
    pub code: AdditionalSense,
    /// INFORMATION field: a logical block address or a byte offset, by what the command defines.
    pub information: Option<u64>,
    /// Sense-key specific bytes, SKSV included.
    specific: Option<[u8; 3]>,
}

impl Sense {
    /// Sense data of `key` and `code` alone.
    #[must_use]
    pub const fn new(key: SenseKey, code: AdditionalSense) -> Self {
        Self { key, code, information: None, specific: None }
    }

    /// ILLEGAL REQUEST with `code` alone.
    #[must_use]
    pub const fn illegal(code: AdditionalSense) -> Self {
        Self::new(SenseKey::IllegalRequest, code)
    }

    /// INVALID FIELD IN CDB, pointing at CDB byte `byte`.
    #[must_use]
    pub const fn invalid_cdb_field(byte: u16) -> Self {
        let mut sense = Self::illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        sense.specific = Some([0xc0, (byte >> 8) as u8, byte as u8]);
        sense
    }

    /// INVALID FIELD IN CDB, pointing at `bit` of CDB byte `byte`: the most significant bit of the field.
    #[must_use]
    pub const fn invalid_cdb_bit(byte: u16, bit: u8) -> Self {
        let mut sense = Self::illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        sense.specific = Some([0xc8 | (bit & 7), (byte >> 8) as u8, byte as u8]);
        sense
    }

    /// INVALID FIELD IN PARAMETER LIST, pointing at byte `byte` of the list.
    #[must_use]
    pub fn invalid_parameter(byte: usize) -> Self {
        Self::parameter(AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST, byte)
    }

    /// ILLEGAL REQUEST with `code`, pointing at byte `byte` of the parameter list.
    #[must_use]
    pub fn parameter(code: AdditionalSense, byte: usize) -> Self {
        let pointer = u16::try_from(byte).unwrap_or(u16::MAX).to_be_bytes();
        let mut sense = Self::illegal(code);
        sense.specific = Some([0x80, pointer[0], pointer[1]]);
        sense
    }

    /// The same with an INFORMATION field.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// The same with a progress indication, in 65536ths.
    #[must_use]
    pub const fn with_progress(mut self, progress: u16) -> Self {
        self.specific = Some([0x80, (progress >> 8) as u8, progress as u8]);
        self
    }

    /// The bytes, in descriptor format (72h) or fixed format (70h).
    #[must_use]
    pub fn encode(&self, descriptor_format: bool) -> Vec<u8> {
        if descriptor_format { self.encode_descriptors() } else { self.encode_fixed() }
    }

    fn encode_fixed(&self) -> Vec<u8> {
        let mut bytes = vec![0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.key as u8;
        // A value that does not fit leaves VALID zero (SPC-4 section 4.5.3).
        if let Some(information) = self.information.and_then(|value| u32::try_from(value).ok()) {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        bytes[7] = 10;
        bytes[12..14].copy_from_slice(&self.code.0.to_be_bytes());
        if let Some(specific) = self.specific {
            bytes[15..18].copy_from_slice(&specific);
        }
        bytes
    }

    fn encode_descriptors(&self) -> Vec<u8> {
        let [code, qualifier] = self.code.0.to_be_bytes();
        let mut bytes = vec![0x72, self.key as u8, code, qualifier, 0, 0, 0, 0];
        if let Some(information) = self.information {
            bytes.extend_from_slice(&[0x00, 0x0a, 0x80, 0]);
            bytes.extend_from_slice(&information.to_be_bytes());
        }
        if let Some(specific) = self.specific {
            bytes.extend_from_slice(&[0x02, 0x06, 0, 0]);
            bytes.extend_from_slice(&specific);
            bytes.push(0);
        }
        let descriptors = bytes.len() - 8;
        bytes[7] = u8::try_from(descriptors).expect("two descriptors are 20 bytes at most");
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_carries_information_and_field_pointer() {
        let sense = Sense::new(SenseKey::MediumError, AdditionalSense::UNRECOVERED_READ_ERROR);
        let bytes = sense.with_information(0x1234_5678).encode(false);
        assert_eq!(bytes.len(), 18);
        assert_eq!(bytes[0], 0xf0);
        assert_eq!((bytes[2], bytes[12], bytes[13]), (3, 0x11, 0));
        assert_eq!(bytes[3..7], [0x12, 0x34, 0x56, 0x78]);
        let bytes = Sense::invalid_cdb_bit(1, 7).encode(false);
        assert_eq!(bytes[15..18], [0xcf, 0, 1]);
    }

    #[test]
    fn information_beyond_32_bits_is_valid_in_descriptor_format_only() {
        let sense = Sense::new(SenseKey::Miscompare, AdditionalSense::MISCOMPARE_DURING_VERIFY)
            .with_information(1 << 40);
        assert_eq!(sense.encode(false)[0], 0x70);
        let bytes = sense.encode(true);
        assert_eq!(bytes[..4], [0x72, 0x0e, 0x1d, 0x00]);
        assert_eq!(bytes[7], 12);
        assert_eq!(bytes[12..20], (1u64 << 40).to_be_bytes());
    }
}
