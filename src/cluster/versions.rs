//! The protocols between members, and which versions of each a program speaks.
//!
//! Two programs fit when some version is spoken by both; they speak the newest such one. A release that changes what
//! is said raises the newest version, and goes on speaking the one before, so that a cluster can be brought to it
//! member by member. Who does not fit is refused, by both, with the reason: it gets nothing and gives nothing until one
//! of the two is brought up to date.
//!
//! Left to others: saying so to each other ([`crate::peer::hello`]), and writing what the agreed version knows.

use std::fmt;
use std::str::FromStr;

/// A protocol between members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Consensus, leases, and what the log and the control state are made of.
    Control,
    /// The streams of mirrors.
    Mirror,
    /// Forwarded commands.
    Forward,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Control, Self::Mirror, Self::Forward];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Mirror => "mirror",
            Self::Forward => "forward",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A range of versions of a protocol, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    oldest: u32,
    newest: u32,
}

impl Versions {
    /// From `oldest` through `newest`; none when that is no range, or begins with zero.
    #[must_use]
    pub const fn new(oldest: u32, newest: u32) -> Option<Self> {
        if oldest == 0 || oldest > newest { None } else { Some(Self { oldest, newest }) }
    }

    const fn only(version: u32) -> Self {
        Self { oldest: version, newest: version }
    }

    /// The oldest of them.
    #[must_use]
    pub const fn oldest(self) -> u32 {
        self.oldest
    }

    /// The newest of them.
    #[must_use]
    pub const fn newest(self) -> u32 {
        self.newest
    }

    /// The version in which these two speak to each other, if there is one.
    #[must_use]
    pub fn agree(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "version {}", self.newest),
            false => write!(f, "versions {} to {}", self.oldest, self.newest),
        }
    }
}

/// What a program speaks of each protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    control: Versions,
    mirror: Versions,
    forward: Versions,
}

/// Version 2 differs from 1 in the newest format of the control state ([`crate::cluster::state::format`]).
const CONTROL: Versions = Versions { oldest: 1, newest: 2 };

impl Default for Spoken {
    /// What this program speaks.
    fn default() -> Self {
        Self { control: CONTROL, mirror: Versions::only(2), forward: Versions::only(1) }
    }
}

impl Spoken {
    /// Its versions of a protocol.
    #[must_use]
    pub fn of(&self, protocol: Protocol) -> Versions {
        match protocol {
            Protocol::Control => self.control,
            Protocol::Mirror => self.mirror,
            Protocol::Forward => self.forward,
        }
    }

    /// The same, but without the versions of the control protocol that are older than this.
    #[must_use]
    pub fn without_control_before(mut self, version: u32) -> Self {
        self.control.oldest = self.control.oldest.max(version.min(self.control.newest));
        self
    }

    /// The same, but for these.
    #[must_use]
    pub fn with(mut self, claims: &[Claim]) -> Self {
        for Claim { protocol, versions } in claims {
            *match protocol {
                Protocol::Control => &mut self.control,
                Protocol::Mirror => &mut self.mirror,
                Protocol::Forward => &mut self.forward,
            } = *versions;
        }
        self
    }
}

/// What a program is told to say that it speaks, as `PROTOCOL=OLDEST..NEWEST`: `mirror=2..3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    protocol: Protocol,
    versions: Versions,
}

impl FromStr for Claim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let (name, range) = text.split_once('=')?;
            let (oldest, newest) = range.split_once("..")?;
            let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name)?;
            let versions = Versions::new(oldest.parse().ok()?, newest.parse().ok()?)?;
            Some(Self { protocol, versions })
        };
        parts().ok_or_else(|| "it is PROTOCOL=OLDEST..NEWEST, of control, mirror and forward".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_programs_speak_the_newest_version_that_both_know() {
        let versions = |oldest, newest| Versions::new(oldest, newest).unwrap();
        let cases = [
            ((1, 1), (1, 1), Some(1)),
            ((1, 1), (1, 2), Some(1)),
            ((1, 3), (2, 5), Some(3)),
            ((1, 1), (2, 2), None),
            ((4, 9), (1, 3), None),
        ];
        for ((a, b), (c, d), agreed) in cases {
            assert_eq!(versions(a, b).agree(versions(c, d)), agreed);
            assert_eq!(versions(c, d).agree(versions(a, b)), agreed, "both come to the same");
        }
        assert_eq!((Versions::new(0, 1), Versions::new(2, 1)), (None, None));
    }

    #[test]
    fn claims_change_what_they_name() {
        let claims = ["mirror=2..3", "control=9..9"].map(|text| text.parse().unwrap());
        let spoken = Spoken::default().with(&claims);
        assert_eq!(spoken.of(Protocol::Mirror).to_string(), "versions 2 to 3");
        assert_eq!(spoken.of(Protocol::Control).to_string(), "version 9");
        assert_eq!(spoken.of(Protocol::Forward), Spoken::default().of(Protocol::Forward));
        for bad in ["", "mirror", "mirror=1", "mirror=3..2", "mirror=0..1", "tea=1..2"] {
            assert!(bad.parse::<Claim>().is_err(), "{bad}");
        }
    }
}
