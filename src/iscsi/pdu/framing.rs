//! Where a PDU begins and ends: segments, padding, digests (RFC 7143 sections 11.2 and 13.1).
//!
//! On the wire: basic header, additional headers, header digest, data segment, padding to four
//! bytes, data digest (over data and padding). A data segment of no length has neither padding nor
//! digest.

use super::header::{BASIC_HEADER_LENGTH, BasicHeader};
use super::{InitiatorPdu, PduError, TargetPdu};
use crate::base::checksum::Crc32c;

/// Which digests a connection uses, as negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Digests {
    /// HeaderDigest=CRC32C.
    pub header: bool,
    /// DataDigest=CRC32C.
    pub data: bool,
}

/// Lengths of the parts of one PDU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PduLengths {
    /// Additional headers.
    pub additional: usize,
    /// Header digest: 0 or 4.
    pub header_digest: usize,
    /// Data segment without padding.
    pub data: usize,
    /// Padding: 0 to 3.
    pub padding: usize,
    /// Data digest: 0 or 4.
    pub data_digest: usize,
}

impl PduLengths {
    /// The lengths that a header announces.
    #[must_use]
    pub fn of(header: &BasicHeader, digests: Digests) -> Self {
        let data = header.data_segment_length();
        Self {
            additional: header.additional_length(),
            header_digest: if digests.header { DIGEST_LENGTH } else { 0 },
            data,
            padding: data.next_multiple_of(4) - data,
            data_digest: if digests.data && data > 0 { DIGEST_LENGTH } else { 0 },
        }
    }

    /// Basic header, additional headers and header digest: where the data segment begins.
    #[must_use]
    pub fn headers(&self) -> usize {
        BASIC_HEADER_LENGTH + self.additional + self.header_digest
    }

    /// Padding and data digest: what follows the data segment.
    #[must_use]
    pub fn trailer(&self) -> usize {
        self.padding + self.data_digest
    }

    /// The whole PDU.
    #[must_use]
    pub fn total(&self) -> usize {
        self.headers() + self.data + self.trailer()
    }
}

/// One whole PDU at the front of received bytes.
#[derive(Clone, Debug)]
pub struct RawPdu<'a> {
    /// Basic header.
    pub header: BasicHeader,
    /// Additional headers.
    pub additional: &'a [u8],
    /// Data segment without padding.
    pub data: &'a [u8],
    /// Bytes of the whole PDU: the next one begins there.
    pub length: usize,
}

impl<'a> RawPdu<'a> {
    /// The PDU at the front of `bytes`, its digests checked; `None` while it is not all there.
    ///
    /// # Errors
    /// A digest that does not match, or a data segment above `maximum_data_length`: both as soon as
    /// they can be seen.
    pub fn split(
        bytes: &'a [u8],
        digests: Digests,
        maximum_data_length: usize,
    ) -> Result<Option<Self>, PduError> {
        let Some(header) = BasicHeader::from_prefix(bytes) else { return Ok(None) };
        let lengths = PduLengths::of(&header, digests);
        let Some(headers) = bytes.get(..lengths.headers()) else { return Ok(None) };
        check_headers(headers, digests)?;
        if lengths.data > maximum_data_length {
            return Err(PduError::DataLength { length: lengths.data, limit: maximum_data_length });
        }
        let Some(rest) = bytes.get(lengths.headers()..lengths.total()) else { return Ok(None) };
        let (data, trailer) = rest.split_at(lengths.data);
        check_data(Crc32c::of(data), trailer, &lengths)?;
        let additional = &headers[BASIC_HEADER_LENGTH..BASIC_HEADER_LENGTH + lengths.additional];
        Ok(Some(Self { header, additional, data, length: lengths.total() }))
    }

    /// Reads it as an initiator's.
    ///
    /// # Errors
    /// As [`InitiatorPdu::parse`].
    pub fn from_initiator(&self) -> Result<InitiatorPdu, PduError> {
        InitiatorPdu::parse(&self.header, self.additional)
    }

    /// Reads it as a target's.
    ///
    /// # Errors
    /// As [`TargetPdu::parse`].
    pub fn from_target(&self) -> Result<TargetPdu, PduError> {
        TargetPdu::parse(&self.header)
    }
}

/// Checks the header digest, where there is one, at the end of `headers` (all of
/// [`PduLengths::headers`] bytes).
///
/// # Errors
/// [`PduError::HeaderDigest`].
pub fn check_headers(headers: &[u8], digests: Digests) -> Result<(), PduError> {
    if !digests.header {
        return Ok(());
    }
    match headers.split_last_chunk() {
        Some((covered, digest)) if wire_digest(Crc32c::of(covered)) == *digest => Ok(()),
        _ => Err(PduError::HeaderDigest),
    }
}

/// Checks the data digest, where there is one. `data` is the digest of the data segment without its
/// padding, `trailer` what followed it: [`PduLengths::trailer`] bytes.
///
/// # Errors
/// [`PduError::DataDigest`].
pub fn check_data(data: Crc32c, trailer: &[u8], lengths: &PduLengths) -> Result<(), PduError> {
    if lengths.data_digest == 0 {
        return Ok(());
    }
    match trailer.split_last_chunk() {
        Some((padding, digest)) if wire_digest(data.append(padding)) == *digest => Ok(()),
        _ => Err(PduError::DataDigest),
    }
}

/// Appends headers to `out`, with the lengths set in them and the header digest behind them.
pub fn append_headers(
    out: &mut Vec<u8>,
    mut header: BasicHeader,
    additional: &[u8],
    data_length: usize,
    digests: Digests,
) {
    header.set_lengths(additional.len(), data_length);
    let start = out.len();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(additional);
    if digests.header {
        let digest = Crc32c::of(&out[start..]);
        out.extend_from_slice(&wire_digest(digest));
    }
}

/// Appends to `out` what follows a data segment of `data_length` bytes whose own digest is `data`:
/// padding and data digest. `data` is looked at only when data digests are in use.
pub fn append_trailer(out: &mut Vec<u8>, data: Crc32c, data_length: usize, digests: Digests) {
    if data_length == 0 {
        return;
    }
    let padding = &[0; 3][..data_length.next_multiple_of(4) - data_length];
    out.extend_from_slice(padding);
    if digests.data {
        out.extend_from_slice(&wire_digest(data.append(padding)));
    }
}

/// Appends a whole PDU to `out`.
pub fn append_pdu(out: &mut Vec<u8>, header: BasicHeader, additional: &[u8], data: &[u8], digests: Digests) {
    append_headers(out, header, additional, data.len(), digests);
    out.extend_from_slice(data);
    let digest = if digests.data { Crc32c::of(data) } else { Crc32c(0) };
    append_trailer(out, digest, data.len(), digests);
}

/// Length of a digest on the wire.
pub const DIGEST_LENGTH: usize = 4;

/// A digest in the order of the wire: RFC 7143 section 13.1 sends bit 0 of the polynomial's
/// reflected remainder first, which makes it little-endian.
fn wire_digest(digest: Crc32c) -> [u8; DIGEST_LENGTH] {
    digest.0.to_le_bytes()
}
