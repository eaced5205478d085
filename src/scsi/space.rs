//! How much space a thin logical unit still finds in its pool, and the warning when it becomes short (SBC-3
//! section 4.7.3.9): the Logical Block Provisioning log page (0Ch) and mode page (1Ch/02h), the unit attention THIN
//! PROVISIONING SOFT THRESHOLD REACHED.
//!
//! Counts are in threshold sets of one MiB. There is one threshold, the pool's: available space, armed decreasing.
//! Every host is told when it is crossed, once, and again when it is crossed after there was clearly more.

use std::cell::Cell;

use super::logical_unit::LogicalUnit;
use super::sense::AdditionalSense;
use crate::volume::device::BlockDevice;

/// Tells how much space there is.
pub trait PoolSpace {
    /// As it is now. Asked now and then as commands come.
    fn space(&self) -> Space;
}

/// Space of a pool, before parity, and of one volume in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What the pool holds at most, in bytes.
    pub capacity_bytes: u64,
    /// What all volumes hold, in bytes.
    pub used_bytes: u64,
    /// What the logical unit's own volume holds, in bytes.
    pub volume_used_bytes: u64,
    /// Hosts are warned when no more than this is available, in bytes.
    pub threshold_bytes: u64,
}

impl Space {
    fn available_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.used_bytes)
    }

    fn is_short(&self) -> bool {
        self.available_bytes() <= self.threshold_bytes
    }

    /// So much more than the threshold that crossing it again is news.
    fn is_ample(&self) -> bool {
        self.available_bytes() > self.threshold_bytes.saturating_add(self.capacity_bytes / 64)
    }
}

/// When a logical unit looks at its space, and what it saw last.
#[derive(Debug, Default)]
pub(super) struct SpaceWatch {
    commands: Cell<u32>,
    is_short: Cell<bool>,
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// Looks at the space now and then, and tells all hosts when it has become short.
    pub(super) fn watch_space(&self) {
        let watch = self.space_watch();
        let number = watch.commands.get();
        watch.commands.set(number.wrapping_add(1));
        if !number.is_multiple_of(LOOK_EVERY) || !self.mode_pages().borrow().warns_of_thresholds() {
            return;
        }
        let space = self.services().space.space();
        if space.is_short() && !watch.is_short.replace(true) {
            self.attention_to_all(AdditionalSense::THIN_PROVISIONING_SOFT_THRESHOLD_REACHED);
        } else if space.is_ample() {
            watch.is_short.set(false);
        }
    }

    /// The threshold as the mode page has it.
    pub(super) fn threshold_count(&self) -> u32 {
        threshold_sets(self.services().space.space().threshold_bytes)
    }

    /// The Logical Block Provisioning log page (SBC-3 section 6.3.4).
    pub(super) fn provisioning_log_page(&self) -> Vec<u8> {
        let space = self.services().space.space();
        let mut page = vec![0x0c, 0, 0, 24];
        for (code, bytes, scope) in [
            (AVAILABLE_RESOURCE, space.available_bytes(), SHARED),
            (USED_RESOURCE, space.volume_used_bytes, DEDICATED),
        ] {
            // FORMAT AND LINKING: a list in binary; eight bytes follow.
            page.extend_from_slice(&[0, code, 0x03, 8]);
            page.extend_from_slice(&threshold_sets(bytes).to_be_bytes());
            page.extend_from_slice(&[scope, 0, 0, 0]);
        }
        page
    }
}

/// THRESHOLD EXPONENT of the Logical Block Provisioning VPD page: logical blocks in a threshold set, as a power of two.
pub(super) fn threshold_exponent(logical_block_bytes: u32) -> u8 {
    u8::try_from((THRESHOLD_SET_BYTES / logical_block_bytes).trailing_zeros()).expect("a few bits")
}

fn threshold_sets(bytes: u64) -> u32 {
    u32::try_from(bytes / u64::from(THRESHOLD_SET_BYTES)).unwrap_or(u32::MAX)
}

/// Available LBA Mapping Resource Count, as a log parameter and as a threshold resource.
pub(super) const AVAILABLE_RESOURCE: u8 = 1;
const USED_RESOURCE: u8 = 2;
/// SCOPE: the count is this logical unit's alone, or others draw on it too.
const DEDICATED: u8 = 1;
const SHARED: u8 = 2;
const THRESHOLD_SET_BYTES: u32 = 1 << 20;
/// Commands from one look at the space to the next.
const LOOK_EVERY: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::testing::{Bench, good, sense_of};

    const LOG_SENSE: [u8; 10] = [0x4d, 0, 0x4c, 0, 0, 0, 0, 0, 255, 0];

    fn set(bench: &Bench, available_mib: u64) {
        let space = bench.space.get();
        bench.space.set(Space { used_bytes: space.capacity_bytes - (available_mib << 20), ..space });
    }

    /// Sends until the unit has looked again; counts the warnings that `nexus` gets.
    fn warnings(bench: &Bench, nexus: crate::scsi::identity::NexusId) -> usize {
        let sent = (0..=LOOK_EVERY).map(|_| bench.send_from(nexus, &[0; 6], &[]));
        let warned = sent.filter(|response| response.status as u8 != 0);
        warned.map(|response| assert_eq!(sense_of(&response), (6, 0x3807))).count()
    }

    #[test]
    fn counts_agree_in_log_mode_and_vital_product_data() {
        let bench = Bench::new();
        bench.space.set(Space { volume_used_bytes: 3 << 20, ..bench.space.get() });
        set(&bench, 700);
        let page = good(&bench.send(&LOG_SENSE));
        assert_eq!(page[..16], [0x0c, 0, 0, 24, 0, 1, 3, 8, 0, 0, 2, 188, 2, 0, 0, 0]);
        assert_eq!(page[16..], [0, 2, 3, 8, 0, 0, 0, 3, 1, 0, 0, 0]);
        assert_eq!(good(&bench.send(&[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 255, 0])), [0, 0, 0, 2, 0, 0x0c]);
        let provisioning = good(&bench.send(&[0x12, 1, 0xb2, 0, 255, 0]));
        assert_eq!(provisioning[4], 11, "2^11 blocks of 512 bytes are one MiB");
        // Enabled, soft, armed decreasing, on the available resource; 200 MiB.
        let mode = good(&bench.send(&[0x1a, 0x08, 0x1c, 2, 255, 0]));
        assert_eq!(mode[4..8], [0x5c, 2, 0, 20]);
        assert_eq!(mode[20..], [0x80, 1, 0, 0, 0, 0, 0, 200]);
    }

    #[test]
    fn all_hosts_are_warned_once_each_time_space_becomes_short() {
        let bench = Bench::new();
        let other = bench.attach(2);
        assert_eq!(warnings(&bench, bench.nexus), 0);
        set(&bench, 200);
        assert_eq!((warnings(&bench, bench.nexus), warnings(&bench, other)), (1, 1));
        set(&bench, 201);
        assert_eq!(warnings(&bench, bench.nexus), 0);
        set(&bench, 199);
        assert_eq!(warnings(&bench, bench.nexus), 0, "hovering about the threshold is no news");
        set(&bench, 500);
        assert_eq!(warnings(&bench, bench.nexus), 0);
        set(&bench, 100);
        assert_eq!((warnings(&bench, bench.nexus), warnings(&bench, other)), (1, 1));
    }

    #[test]
    fn a_host_can_switch_the_warning_off() {
        let bench = Bench::new();
        let mut list = good(&bench.send(&[0x1a, 0x08, 0x01, 0, 255, 0]));
        assert_eq!(list[4 + 7], 0x80, "LBPERE");
        (list[0], list[2], list[4 + 7]) = (0, 0, 0);
        assert_eq!(bench.send_data(&[0x15, 0x10, 0, 0, list.len() as u8, 0], &list).status as u8, 0);
        set(&bench, 1);
        assert_eq!(warnings(&bench, bench.nexus), 0);
    }
}
