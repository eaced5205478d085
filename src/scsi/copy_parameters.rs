//! The EXTENDED COPY (LID1) parameter list (SPC-4 section 6.4.3): checked bytes in, values out.

use super::limits;
use super::sense::{AdditionalSense, Sense};

/// A parsed parameter list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CopyList {
    /// LIST IDENTIFIER.
    pub(super) id: u8,
    /// Whether results are held for RECEIVE COPY RESULTS (LIST ID USAGE).
    pub(super) holds_result: bool,
    /// NAA designators of the copy targets.
    pub(super) targets: Vec<[u8; 16]>,
    pub(super) segments: Vec<Segment>,
}

/// A block to block segment descriptor (SPC-4 section 6.4.6.7). The targets are indexes into the list,
/// not yet checked: a wrong one fails its segment, after those before it have been copied.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) source: u16,
    pub(super) destination: u16,
    /// DC: whether `blocks` counts the destination's blocks.
    pub(super) counts_destination: bool,
    pub(super) blocks: u16,
    pub(super) source_address: u64,
    pub(super) destination_address: u64,
}

impl CopyList {
    pub(super) fn parse(list: &[u8]) -> Result<Self, Sense> {
        let too_short = Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH);
        let Some((header, descriptors)) = list.split_at_checked(HEADER_BYTES) else {
            return Err(too_short);
        };
        let target_bytes = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let segment_bytes = u32_at(header, 8);
        if target_bytes.saturating_add(segment_bytes) > limits::copy_list_bytes() as usize {
            return Err(too_short);
        }
        if u32_at(header, 12) != 0 {
            return Err(Sense::parameter(AdditionalSense::INLINE_DATA_LENGTH_EXCEEDED, 12));
        }
        if descriptors.len() < target_bytes + segment_bytes {
            return Err(too_short);
        }
        let (targets, rest) = descriptors.split_at(target_bytes);
        let holds_result = match header[1] >> 3 & 3 {
            0 | 1 => true,
            2 => false,
            // Neither an identifier nor results.
            _ if header[0] == 0 => false,
            _ => return Err(Sense::invalid_parameter(0)),
        };
        Ok(Self {
            id: header[0],
            holds_result,
            targets: parse_targets(targets)?,
            segments: parse_segments(&rest[..segment_bytes], HEADER_BYTES + target_bytes)?,
        })
    }
}

/// Identification descriptor copy target descriptors (SPC-4 section 6.4.5.2).
fn parse_targets(list: &[u8]) -> Result<Vec<[u8; 16]>, Sense> {
    if list.len() > TARGET_BYTES * usize::from(limits::COPY_TARGETS) {
        return Err(Sense::parameter(AdditionalSense::TOO_MANY_TARGET_DESCRIPTORS, 2));
    }
    let mut targets = Vec::new();
    for (index, descriptor) in list.chunks(TARGET_BYTES).enumerate() {
        let position = HEADER_BYTES + index * TARGET_BYTES;
        if descriptor[0] != IDENTIFICATION_TARGET {
            return Err(Sense::parameter(AdditionalSense::UNSUPPORTED_TARGET_DESCRIPTOR, position));
        }
        let descriptor: &[u8; TARGET_BYTES] =
            descriptor.try_into().map_err(|_| Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH))?;
        // A binary NAA designator of the logical unit; what else could be named is nobody here. An
        // impossible designator stands in for it, so that only segments that use it fail.
        let is_naa = descriptor[4] & 0x0f == 1 && descriptor[5] & 0x3f == 3 && descriptor[7] == 16;
        let naa = <[u8; 16]>::try_from(&descriptor[8..24]).expect("sixteen bytes");
        targets.push(if is_naa { naa } else { [0; 16] });
    }
    Ok(targets)
}

fn parse_segments(list: &[u8], position: usize) -> Result<Vec<Segment>, Sense> {
    if list.len() > SEGMENT_BYTES * usize::from(limits::COPY_SEGMENTS) {
        return Err(Sense::parameter(AdditionalSense::TOO_MANY_SEGMENT_DESCRIPTORS, 8));
    }
    let mut segments = Vec::new();
    for (index, descriptor) in list.chunks(SEGMENT_BYTES).enumerate() {
        let position = position + index * SEGMENT_BYTES;
        if descriptor[0] != BLOCK_TO_BLOCK_SEGMENT {
            return Err(Sense::parameter(AdditionalSense::UNSUPPORTED_SEGMENT_DESCRIPTOR, position));
        }
        if descriptor.len() < SEGMENT_BYTES {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
        }
        let u16_at = |at: usize| u16::from_be_bytes([descriptor[at], descriptor[at + 1]]);
        let u64_at = |at: usize| u64::from_be_bytes(descriptor[at..at + 8].try_into().expect("eight bytes"));
        if usize::from(u16_at(2)) != SEGMENT_BYTES - 4 {
            return Err(Sense::invalid_parameter(position + 2));
        }
        segments.push(Segment {
            source: u16_at(4),
            destination: u16_at(6),
            counts_destination: descriptor[1] & 0x02 != 0,
            blocks: u16_at(10),
            source_address: u64_at(12),
            destination_address: u64_at(20),
        });
    }
    Ok(segments)
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    let value = u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    usize::try_from(value).unwrap_or(usize::MAX)
}

const HEADER_BYTES: usize = 16;
const TARGET_BYTES: usize = 32;
const SEGMENT_BYTES: usize = 28;
/// Identification descriptor copy target descriptor.
const IDENTIFICATION_TARGET: u8 = 0xe4;
/// Block to block segment descriptor.
const BLOCK_TO_BLOCK_SEGMENT: u8 = 0x02;
