//! INQUIRY and REPORT LUNS (SPC-4 sections 6.6 and 6.33): what there is, before anything else works.

use super::cdb::Cdb;
use super::command::{Outcome, Reply};
use super::identity::{Identity, NexusId, PRODUCT, VENDOR};
use super::logical_unit::LogicalUnit;
use super::sense::{AdditionalSense, Sense};
use super::vital_product_data;
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// INQUIRY.
    pub(super) fn inquiry(&self, nexus: NexusId, cdb: &Cdb) -> Outcome {
        let allocation_length = usize::from(cdb.u16(3));
        let page = cdb.byte(2);
        if cdb.bit(1, 1) {
            return Err(Sense::invalid_cdb_bit(1, 1).into()); // CMDDT, obsolete
        }
        if !cdb.bit(1, 0) {
            if page != 0 {
                return Err(Sense::invalid_cdb_field(2).into());
            }
            return Ok(Reply::parameters(
                standard(self.identity(), self.services().access.is_movable()),
                allocation_length,
            ));
        }
        let port = self.target_port(nexus);
        let data = vital_product_data::page(page, self.identity(), port, self.geometry());
        match data {
            Some(data) => Ok(Reply::parameters(data, allocation_length)),
            None => Err(Sense::invalid_cdb_field(2).into()),
        }
    }

    /// REPORT LUNS: this logical unit, which is LUN 0.
    pub(super) fn report_luns(&self, nexus: NexusId, cdb: &Cdb) -> Outcome {
        let reply = report_luns(cdb)?;
        self.clear_attention(nexus, AdditionalSense::REPORTED_LUNS_DATA_HAS_CHANGED);
        Ok(reply)
    }
}

/// REPORT LUNS for a target whose only logical unit is LUN 0.
pub(super) fn report_luns(cdb: &Cdb) -> Outcome {
    let allocation_length = usize::try_from(cdb.u32(6)).unwrap_or(usize::MAX);
    let luns: &[u64] = match cdb.byte(2) {
        0x00 | 0x02 => &[0],
        0x01 => &[],        // well-known logical units: none
        0x10..=0x12 => &[], // administrative and subsidiary logical units: none
        _ => return Err(Sense::invalid_cdb_field(2).into()),
    };
    let length = u32::try_from(luns.len() * 8).expect("one entry");
    let mut data = Vec::with_capacity(16);
    data.extend_from_slice(&length.to_be_bytes());
    data.extend_from_slice(&[0; 4]);
    for lun in luns {
        data.extend_from_slice(&lun.to_be_bytes());
    }
    Ok(Reply::parameters(data, allocation_length))
}

/// Standard INQUIRY data (SPC-4 section 6.6.2).
pub(super) fn standard(identity: &Identity, is_movable: bool) -> Vec<u8> {
    let mut data = vec![0; STANDARD_BYTES];
    data[2] = 0x06; // SPC-4
    data[3] = 0x12; // HISUP, response data format 2
    data[4] = u8::try_from(STANDARD_BYTES - 5).expect("checked below");
    // TPGS: implicit changes of asymmetric access, and explicit ones; third-party copy (3PC).
    data[5] = if is_movable { 0x38 } else { 0x18 };
    data[6] = 0x10; // MULTIP
    data[7] = 0x02; // CMDQUE
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(&identity.revision);
    for (index, version) in VERSION_DESCRIPTORS.iter().enumerate() {
        let at = 58 + index * 2;
        data[at..at + 2].copy_from_slice(&version.to_be_bytes());
    }
    data
}

/// INQUIRY data of a logical unit that is not there: peripheral qualifier 011b, type 1Fh.
pub(super) fn missing(cdb: &Cdb) -> Outcome {
    if cdb.bit(1, 0) {
        return Err(Sense::invalid_cdb_bit(1, 0).into());
    }
    let mut data = vec![0; 36];
    data[0] = 0x7f;
    data[2] = 0x06;
    data[3] = 0x12;
    data[4] = 31;
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(b"0000");
    Ok(Reply::parameters(data, usize::from(cdb.u16(3))))
}

const STANDARD_BYTES: usize = 96;
const _: () = assert!(STANDARD_BYTES - 5 < 256);

/// SAM-5, iSCSI, SPC-4, SBC-3: no version claimed of each.
const VERSION_DESCRIPTORS: [u16; 4] = [0x00a0, 0x0960, 0x0460, 0x04c0];
