//! MODE SENSE and MODE SELECT, (6) and (10) (SPC-4 sections 6.11 to 6.14).

use super::cdb::Cdb;
use super::command::{Outcome, Reply, joined, total_length};
use super::execution::Context;
use super::limits;
use super::logical_unit::LogicalUnit;
use super::mode_page::PageControl;
use super::sense::{AdditionalSense, Sense};
use crate::volume::device::{BlockDevice, DeviceGeometry};
use bytes::Bytes;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// MODE SENSE (6).
    pub(super) fn mode_sense_6(&self, cdb: &Cdb) -> Outcome {
        let descriptor = if cdb.bit(1, 3) { Vec::new() } else { short_descriptor(self.geometry()) };
        let pages = self.mode_pages_for(cdb)?;
        let mut data = vec![0, 0, self.device_specific(), 0];
        data[3] = u8::try_from(descriptor.len()).expect("0 or 8");
        data.extend_from_slice(&descriptor);
        data.extend_from_slice(&pages);
        // A list that is longer than the field can say is cut off (SPC-4 section 6.11.1).
        data[0] = u8::try_from(data.len() - 1).unwrap_or(u8::MAX);
        Ok(Reply::parameters(data, usize::from(cdb.byte(4))))
    }

    /// MODE SENSE (10).
    pub(super) fn mode_sense_10(&self, cdb: &Cdb) -> Outcome {
        let long = cdb.bit(1, 4); // LLBAA
        let descriptor = match (cdb.bit(1, 3), long) {
            (true, _) => Vec::new(),
            (false, false) => short_descriptor(self.geometry()),
            (false, true) => long_descriptor(self.geometry()),
        };
        let pages = self.mode_pages_for(cdb)?;
        let mut data =
            vec![0, 0, 0, self.device_specific(), u8::from(long && !descriptor.is_empty()), 0, 0, 0];
        data[7] = u8::try_from(descriptor.len()).expect("0, 8 or 16");
        data.extend_from_slice(&descriptor);
        data.extend_from_slice(&pages);
        let length = u16::try_from(data.len() - 2).expect("all pages are a few hundred bytes");
        data[0..2].copy_from_slice(&length.to_be_bytes());
        Ok(Reply::parameters(data, usize::from(cdb.u16(7))))
    }

    /// MODE SELECT (6).
    pub(super) fn mode_select_6(&self, context: &Context<'_>, cdb: &Cdb, data_out: &[Bytes]) -> Outcome {
        self.mode_select(context, cdb, data_out, usize::from(cdb.byte(4)), 4)
    }

    /// MODE SELECT (10).
    pub(super) fn mode_select_10(&self, context: &Context<'_>, cdb: &Cdb, data_out: &[Bytes]) -> Outcome {
        self.mode_select(context, cdb, data_out, usize::from(cdb.u16(7)), 8)
    }

    fn mode_select(
        &self,
        context: &Context<'_>,
        cdb: &Cdb,
        data_out: &[Bytes],
        list_length: usize,
        header_bytes: usize,
    ) -> Outcome {
        if !cdb.bit(1, 4) {
            return Err(Sense::invalid_cdb_bit(1, 4).into()); // PF: no vendor-specific pages
        }
        if cdb.bit(1, 0) {
            return Err(Sense::invalid_cdb_bit(1, 0).into()); // SP: nothing can be saved
        }
        let list = self.parameter_list(context, data_out, list_length)?;
        if list.is_empty() {
            return Ok(Reply::good());
        }
        if list.len() < header_bytes {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH).into());
        }
        let (descriptor_bytes, long) = match header_bytes {
            4 => (usize::from(list[3]), false),
            _ => (usize::from(u16::from_be_bytes([list[6], list[7]])), list[4] & 1 == 1),
        };
        let pages_at = header_bytes + descriptor_bytes;
        if list.len() < pages_at {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH).into());
        }
        check_descriptor(&list[header_bytes..pages_at], long, self.geometry(), header_bytes)?;
        let threshold = self.threshold_count();
        let changed = self.mode_pages().borrow_mut().select(&list[pages_at..], pages_at, threshold)?;
        if changed {
            self.attention_to_others(context.nexus(), AdditionalSense::MODE_PARAMETERS_CHANGED);
        }
        Ok(Reply::good())
    }

    /// A parameter list of `length` bytes, all of which the initiator has to have sent.
    pub(super) fn parameter_list(
        &self,
        context: &Context<'_>,
        data_out: &[Bytes],
        length: usize,
    ) -> Result<Bytes, super::command::Failure> {
        context.wants(length as u64);
        if length > limits::PARAMETER_LIST_BYTES || total_length(data_out) < length {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH).into());
        }
        Ok(joined(data_out, length))
    }

    fn mode_pages_for(&self, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
        let control = match cdb.byte(2) >> 6 {
            0 => PageControl::Current,
            1 => PageControl::Changeable,
            2 => PageControl::Default,
            _ => return Err(Sense::illegal(AdditionalSense::SAVING_PARAMETERS_NOT_SUPPORTED)),
        };
        let (code, subpage) = (cdb.byte(2) & 0x3f, cdb.byte(3));
        let threshold = self.threshold_count();
        let pages = self.mode_pages().borrow().sense(code, subpage, control, threshold);
        pages.ok_or(Sense::invalid_cdb_field(if subpage == 0 { 2 } else { 3 }))
    }

    /// DEVICE-SPECIFIC PARAMETER: WP as the software write protect says, DPOFUA.
    fn device_specific(&self) -> u8 {
        0x10 | u8::from(self.mode_pages().borrow().write_protected()) << 7
    }
}

/// SBC-3 section 6.4.2.2.
fn short_descriptor(geometry: DeviceGeometry) -> Vec<u8> {
    let mut descriptor = u32::try_from(geometry.block_count).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    descriptor.extend_from_slice(&geometry.logical_block_bytes.to_be_bytes());
    descriptor
}

/// SBC-3 section 6.4.2.3.
fn long_descriptor(geometry: DeviceGeometry) -> Vec<u8> {
    let mut descriptor = geometry.block_count.to_be_bytes().to_vec();
    descriptor.extend_from_slice(&[0; 4]);
    descriptor.extend_from_slice(&geometry.logical_block_bytes.to_be_bytes());
    descriptor
}

/// A block descriptor in MODE SELECT may only repeat what is: neither size can be changed this way.
/// Zero blocks mean "unchanged".
fn check_descriptor(
    descriptor: &[u8],
    long: bool,
    geometry: DeviceGeometry,
    position: usize,
) -> Result<(), Sense> {
    let current = match (descriptor.len(), long) {
        (0, _) => return Ok(()),
        (8, false) => short_descriptor(geometry),
        (16, true) => long_descriptor(geometry),
        _ => return Err(Sense::invalid_parameter(position - 1)),
    };
    let count_bytes = descriptor.len() / 2;
    let count_unchanged = descriptor[..count_bytes] == current[..count_bytes]
        || descriptor[..count_bytes].iter().all(|byte| *byte == 0);
    if !count_unchanged {
        return Err(Sense::invalid_parameter(position));
    }
    if descriptor[count_bytes..] != current[count_bytes..] {
        return Err(Sense::invalid_parameter(position + count_bytes));
    }
    Ok(())
}
