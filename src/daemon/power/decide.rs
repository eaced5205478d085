//! What a node does when the power goes: a rule of its own UPS and of the other room's. Pure.

use std::time::Duration;

use super::upsd::Reading;

/// How the power of a room is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// There is power.
    Online,
    /// The UPS gives what its battery has.
    OnBattery,
    /// It will not for much longer.
    Low,
    /// The UPS does not say.
    Unknown,
}

/// When a battery counts as nearly empty, though the UPS does not say so yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At this charge.
    pub charge_percent: u32,
    /// With this time left.
    pub runtime_seconds: u64,
}

/// The other room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// There is none.
    None,
    /// Its node cannot be reached.
    Unreachable,
    /// Its node says so.
    Says(Supply),
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// The other room serves on; this node ends.
    HandOver,
    /// Hosts are warned, then both nodes end, so that either can start everything.
    StopBoth,
    /// Hosts are warned, then this node ends: there is nobody to hand over to.
    StopAlone,
}

impl Supply {
    /// What a reading says.
    #[must_use]
    pub fn of(reading: Reading, limits: Limits) -> Self {
        let is_at_most =
            |value: Option<u64>, limit: u64| limit > 0 && value.is_some_and(|value| value <= limit);
        let is_empty = is_at_most(reading.charge_percent.map(u64::from), limits.charge_percent.into())
            || is_at_most(reading.runtime_seconds, limits.runtime_seconds);
        match reading {
            Reading { is_forced: true, .. } => Self::Low,
            Reading { is_on_battery: true, is_low, .. } if is_low || is_empty => Self::Low,
            Reading { is_on_battery: true, .. } => Self::OnBattery,
            Reading { is_on_line: true, .. } => Self::Online,
            _ => Self::Unknown,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::OnBattery => "on-battery",
            Self::Low => "low",
            Self::Unknown => "unknown",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let all = [Self::Online, Self::OnBattery, Self::Low];
        all.into_iter().find(|supply| supply.name() == name).unwrap_or(Self::Unknown)
    }
}

/// What to do when this room has been `own` for `since`, and the other one is `other`. When both batteries are low, the
/// first of both nodes stops both; the other one does so when that one does not.
#[must_use]
pub fn decide(own: Supply, since: Duration, other: Other, is_first: bool) -> Step {
    if own != Supply::Low || since < SURE {
        return Step::Wait;
    }
    match other {
        Other::None | Other::Unreachable => Step::StopAlone,
        Other::Says(Supply::Low) if !is_first && since < PATIENCE => Step::Wait,
        Other::Says(Supply::Low | Supply::OnBattery) => Step::StopBoth,
        // Of whose power nothing is known, nothing bad is known.
        Other::Says(Supply::Online | Supply::Unknown) => Step::HandOver,
    }
}

/// A battery is low when it is so for a second look too.
const SURE: Duration = Duration::from_secs(1);
/// How long the second node waits for the first one.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { charge_percent: 20, runtime_seconds: 0 };

    #[test]
    fn a_battery_is_low_when_the_ups_or_a_limit_says_so() {
        let on_battery = Reading { is_on_battery: true, charge_percent: Some(80), ..Reading::default() };
        assert_eq!(Supply::of(on_battery, LIMITS), Supply::OnBattery);
        assert_eq!(Supply::of(Reading { charge_percent: Some(20), ..on_battery }, LIMITS), Supply::Low);
        assert_eq!(Supply::of(Reading { is_low: true, ..on_battery }, LIMITS), Supply::Low);
        let runtime = Limits { charge_percent: 0, runtime_seconds: 300 };
        assert_eq!(Supply::of(Reading { runtime_seconds: Some(299), ..on_battery }, runtime), Supply::Low);
        assert_eq!(Supply::of(Reading { charge_percent: Some(0), ..on_battery }, runtime), Supply::OnBattery);
        // Charging again after it was empty is no reason to stop.
        let charging =
            Reading { is_on_line: true, is_low: true, charge_percent: Some(3), ..Reading::default() };
        assert_eq!(Supply::of(charging, LIMITS), Supply::Online);
        assert_eq!(Supply::of(Reading { is_forced: true, ..charging }, LIMITS), Supply::Low);
        assert_eq!(Supply::of(Reading::default(), LIMITS), Supply::Unknown);
        for supply in [Supply::Online, Supply::OnBattery, Supply::Low, Supply::Unknown] {
            assert_eq!(Supply::named(supply.name()), supply);
        }
    }

    #[test]
    fn one_room_hands_over_and_both_stop_together() {
        let long = Duration::from_secs(10);
        let step = |own, other| decide(own, long, other, true);
        for own in [Supply::Online, Supply::OnBattery, Supply::Unknown] {
            for other in [Other::None, Other::Unreachable, Other::Says(Supply::Low)] {
                assert_eq!(step(own, other), Step::Wait);
            }
        }
        assert_eq!(step(Supply::Low, Other::Says(Supply::Online)), Step::HandOver);
        assert_eq!(step(Supply::Low, Other::Says(Supply::Unknown)), Step::HandOver);
        assert_eq!(step(Supply::Low, Other::Says(Supply::OnBattery)), Step::StopBoth);
        assert_eq!(step(Supply::Low, Other::Unreachable), Step::StopAlone);
        assert_eq!(step(Supply::Low, Other::None), Step::StopAlone);
        assert_eq!(decide(Supply::Low, Duration::ZERO, Other::None, true), Step::Wait, "seen once only");
        // Both low: one of the two does it, the other one when that one does not.
        let both = Other::Says(Supply::Low);
        assert_eq!(decide(Supply::Low, long, both, true), Step::StopBoth);
        assert_eq!(decide(Supply::Low, long, both, false), Step::Wait);
        assert_eq!(decide(Supply::Low, PATIENCE, both, false), Step::StopBoth);
    }
}
