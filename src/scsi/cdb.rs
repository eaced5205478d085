//! A command descriptor block: up to 16 bytes, read by field.
//!
//! Longer (variable-length, 7Eh and 7Fh) CDBs are cut off here: no supported command has one, so only
//! the operation code matters, and it is answered with INVALID COMMAND OPERATION CODE.

/// The first 16 bytes of a CDB, shorter ones padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; Cdb::BYTES],
}

impl Cdb {
    /// Bytes kept of a CDB.
    pub const BYTES: usize = 16;

    /// Keeps `bytes`, padded with zeros or cut off.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut kept = [0; Self::BYTES];
        let length = bytes.len().min(Self::BYTES);
        kept[..length].copy_from_slice(&bytes[..length]);
        Self { bytes: kept }
    }

    /// OPERATION CODE.
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.bytes[0]
    }

    /// All 16 bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.bytes
    }

    /// Byte `at`, which the caller knows to be below 16.
    pub(super) const fn byte(&self, at: usize) -> u8 {
        self.bytes[at]
    }

    /// Whether `bit` of byte `at` is set.
    pub(super) const fn bit(&self, at: usize, bit: u8) -> bool {
        self.bytes[at] >> bit & 1 == 1
    }

    /// The SERVICE ACTION field of byte 1.
    pub(super) const fn service_action(&self) -> u8 {
        self.bytes[1] & 0x1f
    }

    /// Big-endian 16 bits at `at`.
    pub(super) const fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// Big-endian 32 bits at `at`.
    pub(super) const fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    /// Big-endian 64 bits at `at`.
    pub(super) const fn u64(&self, at: usize) -> u64 {
        (self.u32(at) as u64) << 32 | self.u32(at + 4) as u64
    }
}

impl std::fmt::Debug for Cdb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cdb(")?;
        for byte in self.bytes {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}
