//! RECEIVE COPY RESULTS (SPC-4 section 6.17): operating parameters, copy status and failed segment
//! details of EXTENDED COPY commands that have ended.

use std::collections::VecDeque;

use super::cdb::Cdb;
use super::command::{Outcome, Reply, Status};
use super::identity::NexusId;
use super::limits;
use super::logical_unit::LogicalUnit;
use super::sense::Sense;
use crate::volume::device::BlockDevice;

/// The result of one EXTENDED COPY.
#[derive(Debug)]
pub(super) struct CopyResult {
    nexus: NexusId,
    list_id: u8,
    segments: usize,
    segments_processed: u16,
    bytes: u64,
    failure: Option<Sense>,
}

impl CopyResult {
    pub(super) fn new(nexus: NexusId, list_id: u8, segments: usize) -> Self {
        Self { nexus, list_id, segments, segments_processed: 0, bytes: 0, failure: None }
    }

    pub(super) fn segment_done(&mut self, bytes: u64) {
        self.segments_processed += 1;
        self.bytes += bytes;
    }

    pub(super) fn fail(&mut self, sense: Sense) {
        self.failure = Some(sense);
    }
}

/// The results that are held: until the same nexus uses their identifier again or ends, or newer ones
/// need the room.
#[derive(Debug, Default)]
pub(super) struct CopyResults {
    held: VecDeque<CopyResult>,
}

impl CopyResults {
    pub(super) fn keep(&mut self, result: CopyResult) {
        self.held.retain(|held| (held.nexus, held.list_id) != (result.nexus, result.list_id));
        if self.held.len() == limits::COPY_RESULTS {
            self.held.pop_front();
        }
        self.held.push_back(result);
    }

    pub(super) fn nexus_lost(&mut self, nexus: NexusId) {
        self.held.retain(|held| held.nexus != nexus);
    }

    fn find(&self, nexus: NexusId, list_id: u8) -> Option<&CopyResult> {
        self.held.iter().find(|held| (held.nexus, held.list_id) == (nexus, list_id))
    }
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// RECEIVE COPY RESULTS.
    pub(super) fn receive_copy_results(&self, nexus: NexusId, cdb: &Cdb) -> Outcome {
        let results = self.copy_results().borrow();
        let find = || results.find(nexus, cdb.byte(2)).ok_or(Sense::invalid_cdb_field(2));
        let data = match cdb.service_action() {
            COPY_STATUS => copy_status(find()?),
            OPERATING_PARAMETERS => operating_parameters(),
            FAILED_SEGMENT_DETAILS => {
                let result = find()?;
                failed_segment_details(result.failure.ok_or(Sense::invalid_cdb_field(2))?)
            }
            _ => return Err(Sense::invalid_cdb_bit(1, 4).into()),
        };
        Ok(Reply::parameters(data, usize::try_from(cdb.u32(10)).unwrap_or(usize::MAX)))
    }
}

fn copy_status(result: &CopyResult) -> Vec<u8> {
    let mut data = vec![0, 0, 0, 8];
    data.push(if result.failure.is_some() { 2 } else { 1 }); // completed with or without errors
    let processed = usize::from(result.segments_processed).min(result.segments);
    data.extend_from_slice(&u16::try_from(processed).unwrap_or(u16::MAX).to_be_bytes());
    // Kibibytes, unless that field would be too small: never, with these limits.
    data.push(1);
    data.extend_from_slice(&u32::try_from(result.bytes >> 10).unwrap_or(u32::MAX).to_be_bytes());
    data
}

fn operating_parameters() -> Vec<u8> {
    let mut data = vec![0; 44];
    data[4] = 0x01; // SNLID: list identifier usage without an identifier
    data[8..10].copy_from_slice(&limits::COPY_TARGETS.to_be_bytes());
    data[10..12].copy_from_slice(&limits::COPY_SEGMENTS.to_be_bytes());
    data[12..16].copy_from_slice(&limits::copy_list_bytes().to_be_bytes());
    data[16..20].copy_from_slice(&limits::COPY_SEGMENT_BYTES.to_be_bytes());
    // Total concurrent copies, concurrent copies of a nexus, data segment granularity of 512 bytes.
    data[34..36].copy_from_slice(&16u16.to_be_bytes());
    data[36] = 16;
    data[37] = 9;
    // Implemented descriptor types: block to block, identification descriptor.
    data[43] = 2;
    data.extend_from_slice(&[0x02, 0xe4]);
    let length = u32::try_from(data.len() - 4).expect("short");
    data[0..4].copy_from_slice(&length.to_be_bytes());
    data
}

fn failed_segment_details(failure: Sense) -> Vec<u8> {
    let sense = failure.encode(false);
    let mut data = vec![0; 60];
    data[56] = Status::CheckCondition as u8; // EXTENDED COPY COMMAND STATUS
    data[58..60].copy_from_slice(&u16::try_from(sense.len()).expect("18 bytes").to_be_bytes());
    data.extend_from_slice(&sense);
    let length = u32::try_from(data.len() - 4).expect("short");
    data[0..4].copy_from_slice(&length.to_be_bytes());
    data
}

const COPY_STATUS: u8 = 0x00;
const OPERATING_PARAMETERS: u8 = 0x03;
const FAILED_SEGMENT_DETAILS: u8 = 0x04;
