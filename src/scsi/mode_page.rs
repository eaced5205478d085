//! The mode pages of a logical unit (SPC-4 section 7.5, SBC-3 section 6.4): current, default and
//! changeable values. Nothing can be saved; a restart brings the defaults back.

use super::sense::{AdditionalSense, Sense};
use super::space::AVAILABLE_RESOURCE;

/// All mode pages and their current values.
#[derive(Clone, Debug)]
pub(super) struct ModePages {
    pages: Vec<ModePage>,
}

impl PartialEq for ModePages {
    fn eq(&self, other: &Self) -> bool {
        self.pages.iter().map(|page| &page.current).eq(other.pages.iter().map(|page| &page.current))
    }
}

/// One page, header included.
#[derive(Clone, Debug)]
struct ModePage {
    layout: &'static Layout,
    current: Vec<u8>,
}

/// Defaults and changeable bits of a page, header included.
#[derive(Debug)]
struct Layout {
    default: &'static [u8],
    /// Same length, a one for every changeable bit; the header's bytes are repeated by MODE SENSE.
    changeable: &'static [u8],
}

/// PAGE CONTROL of MODE SENSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageControl {
    Current,
    Changeable,
    Default,
}

impl Default for ModePages {
    fn default() -> Self {
        let pages = LAYOUTS.iter().map(|layout| ModePage { layout, current: layout.default.to_vec() });
        Self { pages: pages.collect() }
    }
}

impl ModePages {
    /// D_SENSE: sense data in descriptor format.
    pub(super) fn descriptor_sense(&self) -> bool {
        self.control()[2] & 0x04 != 0
    }

    /// SWP: software write protect.
    pub(super) fn write_protected(&self) -> bool {
        self.control()[4] & 0x08 != 0
    }

    /// LBPERE: hosts are warned of provisioning thresholds.
    pub(super) fn warns_of_thresholds(&self) -> bool {
        self.page(READ_WRITE_ERROR_RECOVERY)[7] & 0x80 != 0
    }

    /// The pages that `code` and `subpage` ask for, one after the other; nothing when there are none. `threshold` is
    /// the count of the one threshold of the Logical Block Provisioning page.
    pub(super) fn sense(
        &self,
        code: u8,
        subpage: u8,
        control: PageControl,
        threshold: u32,
    ) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        for page in &self.pages {
            let (page_code, page_subpage) = page.layout.identity();
            let code_matches = code == ALL_PAGES || code == page_code;
            if !code_matches || !(subpage == ALL_SUBPAGES || subpage == page_subpage) {
                continue;
            }
            match control {
                PageControl::Current => {
                    data.extend_from_slice(&with_threshold(page.layout, &page.current, threshold));
                }
                PageControl::Default => {
                    data.extend_from_slice(&with_threshold(page.layout, page.layout.default, threshold));
                }
                PageControl::Changeable => {
                    let header = page.layout.header_bytes();
                    data.extend_from_slice(&page.layout.default[..header]);
                    data.extend_from_slice(&page.layout.changeable[header..]);
                }
            }
        }
        (!data.is_empty()).then_some(data)
    }

    /// Applies the pages of a MODE SELECT list, all or none. `base` is where they start in the
    /// parameter list, for field pointers. Gives back whether anything changed.
    pub(super) fn select(&mut self, mut list: &[u8], base: usize, threshold: u32) -> Result<bool, Sense> {
        let mut chosen = self.clone();
        let mut position = base;
        while !list.is_empty() {
            let (code, subpage, header) = match *list {
                [first, subpage, _, _, ..] if first & 0x40 != 0 => (first & 0x3f, subpage, 4),
                [first, _, ..] if first & 0x40 == 0 => (first & 0x3f, 0, 2),
                _ => return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH)),
            };
            let length = header
                + if header == 4 {
                    usize::from(u16::from_be_bytes([list[2], list[3]]))
                } else {
                    usize::from(list[1])
                };
            let Some(page) = chosen.pages.iter_mut().find(|page| page.layout.identity() == (code, subpage))
            else {
                return Err(Sense::invalid_parameter(position));
            };
            if length != page.current.len() {
                return Err(Sense::invalid_parameter(position + header - 1));
            }
            let Some(values) = list.get(..length) else {
                return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
            };
            page.select(values, header, position, threshold)?;
            list = &list[length..];
            position += length;
        }
        let changed = chosen.pages.iter().zip(&self.pages).any(|(new, old)| new.current != old.current);
        *self = chosen;
        Ok(changed)
    }

    fn control(&self) -> &[u8] {
        self.page(CONTROL)
    }

    fn page(&self, code: u8) -> &[u8] {
        let page = self.pages.iter().find(|page| page.layout.identity() == (code, 0));
        &page.expect("asked for by code only where there is a layout").current
    }
}

impl ModePage {
    fn select(&mut self, values: &[u8], header: usize, position: usize, threshold: u32) -> Result<(), Sense> {
        let shown = with_threshold(self.layout, &self.current, threshold);
        for (at, value) in values.iter().enumerate().skip(header) {
            let changeable = self.layout.changeable[at];
            if (value ^ shown[at]) & !changeable != 0 {
                return Err(Sense::invalid_parameter(position + at));
            }
            self.current[at] ^= (value ^ shown[at]) & changeable;
        }
        Ok(())
    }
}

/// The values of a page with the count that only the pool knows.
fn with_threshold(layout: &Layout, values: &[u8], threshold: u32) -> Vec<u8> {
    let mut values = values.to_vec();
    if layout.identity() == LOGICAL_BLOCK_PROVISIONING {
        values[20..24].copy_from_slice(&threshold.to_be_bytes());
    }
    values
}

impl Layout {
    /// Page and subpage code.
    fn identity(&self) -> (u8, u8) {
        let subpage = if self.default[0] & 0x40 != 0 { self.default[1] } else { 0 };
        (self.default[0] & 0x3f, subpage)
    }

    fn header_bytes(&self) -> usize {
        if self.default[0] & 0x40 != 0 { 4 } else { 2 }
    }
}

const ALL_PAGES: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;
const READ_WRITE_ERROR_RECOVERY: u8 = 0x01;
const CONTROL: u8 = 0x0a;
/// Page and subpage.
const LOGICAL_BLOCK_PROVISIONING: (u8, u8) = (0x1c, 0x02);

static LAYOUTS: [Layout; 7] = [
    // Read-write error recovery: AWRE and ARRE, as the array reallocates by itself. LBPERE can be cleared.
    Layout {
        default: &[0x01, 0x0a, 0xc0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0],
        changeable: &[0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0],
    },
    // Disconnect-reconnect: no limit of the transport's is set here.
    Layout { default: &[0x02, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], changeable: &[0; 16] },
    // Caching: WCE is zero, every write is durable when it is answered. RCD is zero.
    Layout {
        default: &[0x08, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        changeable: &[0; 20],
    },
    // Control: one task set for all nexuses, unrestricted reordering, TAS; D_SENSE and SWP can be set.
    Layout {
        default: &[0x0a, 0x0a, 0x00, 0x10, 0x00, 0x40, 0, 0, 0xff, 0xff, 0, 0],
        changeable: &[0, 0, 0x04, 0, 0x08, 0, 0, 0, 0, 0, 0, 0],
    },
    // Control extension: no time stamp, priority or sense length of their own.
    Layout {
        default: &[
            0x4a, 0x01, 0, 0x1c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0,
        ],
        changeable: &[0; 32],
    },
    // Informational exceptions: disabled (DEXCPT); the array reports its health by other means.
    Layout { default: &[0x1c, 0x0a, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0], changeable: &[0; 12] },
    // Logical block provisioning: one threshold, enabled, soft, armed decreasing, of the available space. Every
    // nexus is told (SITUA is zero). The count is filled in.
    Layout {
        default: &[
            0x5c,
            0x02,
            0,
            0x14,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0x80,
            AVAILABLE_RESOURCE,
            0,
            0,
            0,
            0,
            0,
            0,
        ],
        changeable: &[0; 24],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_consistent_and_sorted() {
        for layout in &LAYOUTS {
            assert_eq!(layout.default.len(), layout.changeable.len());
            let length = match layout.header_bytes() {
                4 => usize::from(u16::from_be_bytes([layout.default[2], layout.default[3]])),
                _ => usize::from(layout.default[1]),
            };
            assert_eq!(length + layout.header_bytes(), layout.default.len());
        }
        assert!(LAYOUTS.windows(2).all(|pair| pair[0].identity() < pair[1].identity()));
    }

    #[test]
    fn select_is_all_or_nothing() {
        let mut pages = ModePages::default();
        let mut control = pages.sense(CONTROL, 0, PageControl::Current, 0).unwrap();
        control[2] |= 0x04;
        let mut list = control.clone();
        list.extend_from_slice(&[0x08, 0x12]); // truncated caching page
        list.resize(list.len() + 18, 0xff);
        assert!(pages.select(&list, 4, 0).is_err());
        assert!(!pages.descriptor_sense());
        assert_eq!(pages.select(&control, 4, 0), Ok(true));
        assert!(pages.descriptor_sense());
        assert_eq!(pages.select(&control, 4, 0), Ok(false));
        control[3] ^= 0x10; // not changeable
        assert_eq!(pages.select(&control, 4, 0), Err(Sense::invalid_parameter(7)));
    }
}
