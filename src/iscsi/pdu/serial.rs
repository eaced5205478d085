//! Sequence numbers and tags of RFC 7143 section 4.2.2 and 11: what a 32-bit number means is its type.

use super::header::BasicHeader;

/// A 32-bit sequence number in the arithmetic of RFC 1982: it wraps, and "later" is decided by the
/// shorter way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SerialNumber(pub u32);

impl SerialNumber {
    /// The number `count` steps on.
    #[must_use]
    pub fn plus(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// The number one step on.
    #[must_use]
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// Steps from `earlier` to this number, going up and wrapping.
    #[must_use]
    pub fn distance_from(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether this number comes before `other`. Two numbers exactly half the circle apart, which
    /// RFC 1982 leaves undefined, are not before one another.
    #[must_use]
    pub fn is_before(self, other: Self) -> bool {
        let distance = other.0.wrapping_sub(self.0);
        distance != 0 && distance < 1 << 31
    }
}

/// Names a task of an initiator. `0xffffffff` is reserved to say "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InitiatorTaskTag(pub u32);

impl InitiatorTaskTag {
    /// "No tag": no answer is wanted, or there is no task.
    pub const RESERVED: Self = Self(u32::MAX);
}

/// Names a transfer or exchange of a target. `0xffffffff` is reserved to say "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetTransferTag(pub u32);

impl TargetTransferTag {
    /// "No tag".
    pub const RESERVED: Self = Self(u32::MAX);
}

/// The three serial numbers that nearly every PDU of a target carries (bytes 24 to 35).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ResponseSerials {
    /// StatSN: number of this response, or of the next where the PDU is none.
    pub status_sn: SerialNumber,
    /// ExpCmdSN: the next command number that the target waits for.
    pub expected_command_sn: SerialNumber,
    /// MaxCmdSN: the last command number that the target accepts.
    pub maximum_command_sn: SerialNumber,
}

impl ResponseSerials {
    pub(super) fn parse(header: &BasicHeader) -> Self {
        Self {
            status_sn: SerialNumber(header.u32_at(24)),
            expected_command_sn: SerialNumber(header.u32_at(28)),
            maximum_command_sn: SerialNumber(header.u32_at(32)),
        }
    }

    pub(super) fn emit(self, header: &mut BasicHeader) {
        header.set_u32(24, self.status_sn.0);
        header.set_u32(28, self.expected_command_sn.0);
        header.set_u32(32, self.maximum_command_sn.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_goes_the_shorter_way_round() {
        let before = |a, b| SerialNumber(a).is_before(SerialNumber(b));
        assert!(before(1, 2));
        assert!(!before(2, 1));
        assert!(!before(2, 2));
        assert!(before(u32::MAX, 0));
        assert!(before(u32::MAX - 5, 5));
        assert!(!before(5, u32::MAX - 5));
        assert!(before(0, (1 << 31) - 1));
        assert!(!before(0, 1 << 31));
        assert!(!before(1 << 31, 0));
        assert_eq!(SerialNumber(3).distance_from(SerialNumber(u32::MAX)), 4);
        assert_eq!(SerialNumber(u32::MAX).next(), SerialNumber(0));
    }
}
