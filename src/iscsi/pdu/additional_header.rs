//! Additional header segments (RFC 7143 section 11.2.2): the rest of a long CDB, and the read length
//! of a bidirectional command. At most one of each; unknown types are errors.

use super::PduError;

/// A CDB as the SCSI Command carries it: 16 bytes in the basic header, the rest in an AHS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cdb {
    basic: [u8; 16],
    /// All of the CDB, for those beyond 16 bytes.
    extended: Option<Box<[u8]>>,
}

/// Longest CDB: its operation code, control and length leave 260 bytes (SPC-4, variable length).
pub const MAXIMUM_CDB_LENGTH: usize = 260;

impl Cdb {
    /// A CDB of at most 16 bytes, padded with zeros as the header asks.
    ///
    /// # Panics
    /// When `bytes` are longer than [`MAXIMUM_CDB_LENGTH`].
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        assert!(bytes.len() <= MAXIMUM_CDB_LENGTH);
        let mut basic = [0; 16];
        let head = bytes.len().min(16);
        basic[..head].copy_from_slice(&bytes[..head]);
        Self { basic, extended: (bytes.len() > 16).then(|| bytes.into()) }
    }

    /// All bytes: 16, or as many as the extension brings it to. What is beyond the length that the
    /// operation code implies is padding.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.extended.as_deref().unwrap_or(&self.basic)
    }

    pub(super) fn basic(&self) -> &[u8; 16] {
        &self.basic
    }
}

/// What the additional headers of a SCSI Command say.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AdditionalHeaders {
    /// The CDB's bytes from the seventeenth on.
    pub extended_cdb: Option<Box<[u8]>>,
    /// Expected Bidirectional Read Data Length in bytes.
    pub bidirectional_read_length: Option<u32>,
}

impl AdditionalHeaders {
    /// Reads the segments of `bytes`, which are all of TotalAHSLength.
    ///
    /// # Errors
    /// A segment that is cut off, of unknown type or length, or there twice.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, PduError> {
        let mut headers = Self::default();
        while let Some((&[length_high, length_low, kind], rest)) = bytes.split_first_chunk() {
            let length = usize::from(u16::from_be_bytes([length_high, length_low]));
            // AHSLength counts from the byte after AHSType, the reserved or first specific one.
            let padded = (length + 3).next_multiple_of(4) - 3;
            let (Some(specific), Some(next)) = (rest.get(..length), rest.get(padded..)) else {
                return Err(PduError::Additional("segment longer than TotalAHSLength"));
            };
            match kind {
                EXTENDED_CDB => headers.take_extended_cdb(specific)?,
                BIDIRECTIONAL_READ_LENGTH => headers.take_bidirectional(specific)?,
                _ => return Err(PduError::Additional("unknown type")),
            }
            bytes = next;
        }
        match bytes {
            [] => Ok(headers),
            _ => Err(PduError::Additional("cut off")),
        }
    }

    /// The segments as they go to the wire, a multiple of four bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(extension) = &self.extended_cdb {
            // At most 244 bytes of CDB and the reserved one.
            bytes.extend_from_slice(&((extension.len() + 1) as u16).to_be_bytes());
            bytes.extend_from_slice(&[EXTENDED_CDB, 0]);
            bytes.extend_from_slice(extension);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        if let Some(length) = self.bidirectional_read_length {
            bytes.extend_from_slice(&[0, 5, BIDIRECTIONAL_READ_LENGTH, 0]);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
        bytes
    }

    fn take_extended_cdb(&mut self, specific: &[u8]) -> Result<(), PduError> {
        let Some((_reserved, extension)) = specific.split_first() else {
            return Err(PduError::Additional("extended CDB of no length"));
        };
        if extension.is_empty() || extension.len() > MAXIMUM_CDB_LENGTH - 16 {
            return Err(PduError::Additional("extended CDB of a wrong length"));
        }
        match self.extended_cdb.replace(extension.into()) {
            None => Ok(()),
            Some(_) => Err(PduError::Additional("two extended CDBs")),
        }
    }

    fn take_bidirectional(&mut self, specific: &[u8]) -> Result<(), PduError> {
        let &[_reserved, a, b, c, d] = specific else {
            return Err(PduError::Additional("bidirectional read length of a wrong length"));
        };
        match self.bidirectional_read_length.replace(u32::from_be_bytes([a, b, c, d])) {
            None => Ok(()),
            Some(_) => Err(PduError::Additional("two bidirectional read lengths")),
        }
    }
}

const EXTENDED_CDB: u8 = 1;
const BIDIRECTIONAL_READ_LENGTH: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_wire() {
        for length in [1usize, 2, 3, 4, 16, 243, 244] {
            let headers = AdditionalHeaders {
                extended_cdb: Some((0..length).map(|i| i as u8).collect()),
                bidirectional_read_length: Some(0x0102_0304),
            };
            let bytes = headers.emit();
            assert!(bytes.len().is_multiple_of(4));
            assert_eq!(AdditionalHeaders::parse(&bytes), Ok(headers));
            for cut in 1..bytes.len() {
                // A cut may fall between the two segments, but no cut may give both.
                assert_ne!(AdditionalHeaders::parse(&bytes[..cut]), AdditionalHeaders::parse(&bytes));
            }
        }
    }

    #[test]
    fn malformed_segments_are_errors() {
        let bad: [&[u8]; 8] = [
            &[0, 0, 1, 0],                                     // extended CDB without a byte
            &[0, 1, 1, 0],                                     // only the reserved byte
            &[0, 5, 3, 0, 0, 0, 0, 0],                         // unknown type
            &[0, 4, 2, 0, 0, 0, 0, 0],                         // read length of three bytes
            &[0xff, 0xff, 1, 0],                               // far beyond the end
            &[0, 5, 2, 0, 0, 0, 0, 1, 0, 5, 2, 0, 0, 0, 0, 1], // twice
            &[0, 2, 1, 0, 9, 0, 0, 0, 0, 2, 1, 0, 9, 0, 0, 0], // twice
            &[0],                                              // less than a header
        ];
        for bytes in bad {
            assert!(matches!(AdditionalHeaders::parse(bytes), Err(PduError::Additional(_))), "{bytes:?}");
        }
        let mut long = vec![0, 246, 1, 0];
        long.resize(4 + 248, 7);
        assert!(AdditionalHeaders::parse(&long).is_err(), "a CDB of 261 bytes");
    }
}
