//! Every bound of the SCSI layer, in one place, so that what the VPD pages promise is what is done.

use std::time::Duration;

/// Largest data transfer of one command, in bytes: one command can hold that much memory.
pub const TRANSFER_BYTES: u32 = 8 << 20;
/// Transfer length that costs no more than necessary, in bytes: many batches' worth of columns.
pub const OPTIMAL_TRANSFER_BYTES: u32 = 1 << 20;
/// Longest range that one WRITE SAME may write, in bytes.
pub const WRITE_SAME_BYTES: u32 = 16 << 20;
/// Most logical blocks in one COMPARE AND WRITE: the field has 8 bits.
pub const COMPARE_AND_WRITE_BLOCKS: u8 = 255;
/// Most logical blocks that one UNMAP may release over all of its descriptors.
pub const UNMAP_BLOCKS: u32 = 1 << 20;
/// Most descriptors in one UNMAP parameter list.
pub const UNMAP_DESCRIPTORS: u32 = 256;
/// Longest parameter list of any command but EXTENDED COPY and UNMAP, in bytes.
pub const PARAMETER_LIST_BYTES: usize = 64 << 10;
/// Runs in one GET LBA STATUS answer.
pub const LBA_STATUS_RUNS: usize = 1024;
/// Tasks that a logical unit holds over all nexuses; above it: TASK SET FULL.
pub const TASKS: usize = 16384;
/// Tasks of one nexus; above it: TASK SET FULL.
pub const TASKS_PER_NEXUS: usize = 1024;
/// Unit attentions queued for one nexus. Every code is queued once at most and there are fewer codes.
pub const ATTENTIONS: usize = 16;
/// Nexuses whose loss is remembered, to tell a returning initiator I_T NEXUS LOSS OCCURRED.
pub const LOST_NEXUSES: usize = 1024;
/// How long a command that needs the device waits for a transition of its target port group to end. Longer than a
/// takeover takes, and short of every host's own time-outs.
pub const TRANSITION_HOLD: Duration = Duration::from_secs(3);
/// Commands that a node has under way at the other one; above it: TASK SET FULL.
pub const FORWARDED_COMMANDS: usize = 4096;
/// Bytes that these may take, sent and to be received.
pub const FORWARDED_BYTES: usize = 64 << 20;
/// Nexuses of the other node: as many sessions as it may have, over all volumes.
pub const FORWARDED_NEXUSES: usize = 65536;
/// How often a command that was not begun where it was sent is tried again, at whichever node serves then.
pub const FORWARD_ATTEMPTS: usize = 4;
/// Persistent reservation registrations.
pub const REGISTRATIONS: usize = 1024;
/// EXTENDED COPY: copy target descriptors.
pub const COPY_TARGETS: u16 = 16;
/// EXTENDED COPY: segment descriptors.
pub const COPY_SEGMENTS: u16 = 64;
/// EXTENDED COPY: bytes that one segment descriptor may copy.
pub const COPY_SEGMENT_BYTES: u32 = 16 << 20;
/// EXTENDED COPY results that are kept for RECEIVE COPY RESULTS.
pub const COPY_RESULTS: usize = 64;
/// Bytes that are read or written at a time by commands that work through a range (VERIFY, copies,
/// sanitizing).
pub const CHUNK_BYTES: u32 = 1 << 20;

const _: () = assert!(TRANSFER_BYTES.is_multiple_of(4096) && CHUNK_BYTES.is_multiple_of(4096));

/// Longest EXTENDED COPY descriptor list: all targets and all segments.
#[must_use]
pub const fn copy_list_bytes() -> u32 {
    COPY_TARGETS as u32 * 32 + COPY_SEGMENTS as u32 * 28
}

/// Longest EXTENDED COPY parameter list.
pub(super) const fn copy_parameter_bytes() -> usize {
    16 + copy_list_bytes() as usize
}
