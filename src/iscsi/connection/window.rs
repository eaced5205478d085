//! The command window (RFC 7143 section 4.2.2.1): which CmdSN comes next, and how far the initiator
//! may go.
//!
//! Invariant: MaxCmdSN never goes back, and is never more than the queue depth beyond ExpCmdSN - 1.

use crate::iscsi::pdu::SerialNumber;

/// ExpCmdSN and MaxCmdSN of a session.
#[derive(Debug)]
pub(super) struct Window {
    expected: SerialNumber,
    maximum: SerialNumber,
}

/// Where a CmdSN lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the next.
    Next,
    /// Inside the window, behind a gap.
    Early,
    /// To be ignored silently.
    Outside,
}

impl Window {
    /// A window of `depth` commands from `first` on.
    pub(super) fn new(first: SerialNumber, depth: u32) -> Self {
        Self { expected: first, maximum: first.plus(depth.wrapping_sub(1)) }
    }

    pub(super) fn expected(&self) -> SerialNumber {
        self.expected
    }

    pub(super) fn maximum(&self) -> SerialNumber {
        self.maximum
    }

    pub(super) fn place(&self, number: SerialNumber) -> Place {
        // A closed window has its maximum one before the expected number.
        let size = self.maximum.next().distance_from(self.expected);
        match number.distance_from(self.expected) {
            distance if distance >= size => Place::Outside,
            0 => Place::Next,
            _ => Place::Early,
        }
    }

    /// The expected number has come.
    pub(super) fn advance(&mut self) {
        self.expected = self.expected.next();
    }

    /// Opens the window as far as `depth` commands allow, of which `outstanding` are in work.
    pub(super) fn open(&mut self, outstanding: u32, depth: u32) {
        let room = depth.saturating_sub(outstanding);
        let maximum = self.expected.plus(room.wrapping_sub(1));
        if self.maximum.is_before(maximum) {
            self.maximum = maximum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_placed_also_where_they_wrap() {
        for first in [0, 1, 77, u32::MAX - 5, u32::MAX - 1, u32::MAX, (1 << 31) - 2] {
            let window = Window::new(SerialNumber(first), 8);
            let place = |offset: u32| window.place(SerialNumber(first).plus(offset));
            assert_eq!(place(0), Place::Next);
            (1..8).for_each(|offset| assert_eq!(place(offset), Place::Early, "{first}+{offset}"));
            for outside in [8, 9, 1 << 31, u32::MAX - 1, u32::MAX] {
                assert_eq!(place(outside), Place::Outside, "{first}+{outside}");
            }
        }
    }

    #[test]
    fn the_window_closes_and_opens_but_never_goes_back() {
        let mut window = Window::new(SerialNumber(u32::MAX), 2);
        window.advance();
        window.open(1, 2);
        window.advance();
        window.open(2, 2);
        assert_eq!(window.place(window.expected()), Place::Outside, "closed");
        window.open(1, 2);
        assert_eq!(window.place(window.expected()), Place::Next);
        let maximum = window.maximum();
        window.open(5, 2);
        window.open(2, 1);
        assert_eq!(window.maximum(), maximum);
        window.open(0, 2);
        assert_eq!(window.maximum(), maximum.next());
    }
}
