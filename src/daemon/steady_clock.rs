//! A clock for promises that last until a date: it follows the machine's clock, but never goes faster than time passes.
//!
//! Guarantees: whoever sets the machine's clock forward, by hand or through a forged time server, brings no such date nearer. A
//! clock that is put back is followed at once, so that a wrong one can be put right. Time in which the machine is off does
//! not count, as nothing tells how long it was: a promise then lasts longer by that.
//!
//! Left to others: telling of a clock that was set ([`super::control`]).

use std::sync::{Arc, Mutex, PoisonError};

use super::state_directory::{StateDirectory, StateError};

/// What the clock was when it was last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// It, in milliseconds since 1970.
    unix_ms: u64,
    /// Time since the machine was started.
    uptime_ms: u64,
}

impl Reading {
    /// The clock now.
    fn advanced(self, wall_ms: u64, uptime_ms: u64) -> Self {
        let passed_ms = uptime_ms.saturating_sub(self.uptime_ms);
        Self { unix_ms: wall_ms.min(self.unix_ms.saturating_add(passed_ms)), uptime_ms }
    }
}

/// The clock of a node.
pub struct SteadyClock {
    records: Arc<StateDirectory>,
    // A lock because calls may run on several threads; held for the reading only.
    last: Mutex<Reading>,
    boot: u64,
}

impl SteadyClock {
    /// Goes on from what was saved; begins with the machine's clock where nothing was. `boot` names the present start of the
    /// machine, since which `uptime_ms` has passed.
    ///
    /// # Errors
    /// [`StateError`] when the records fail.
    pub fn open(
        records: Arc<StateDirectory>,
        boot: u64,
        wall_ms: u64,
        uptime_ms: u64,
    ) -> Result<Self, StateError> {
        let saved = match (records.number(CLOCK)?, records.number(UPTIME)?, records.number(BOOT)?) {
            (Some(unix_ms), Some(at_ms), Some(of)) if of == boot => Reading { unix_ms, uptime_ms: at_ms },
            (Some(unix_ms), ..) => Reading { unix_ms, uptime_ms },
            _ => Reading { unix_ms: wall_ms, uptime_ms },
        };
        let clock = Self { records, last: Mutex::new(saved), boot };
        clock.read(wall_ms, uptime_ms);
        clock.save()?;
        Ok(clock)
    }

    /// The time in milliseconds since 1970, while the machine's clock says `wall_ms`, `uptime_ms` after its start.
    pub fn read(&self, wall_ms: u64, uptime_ms: u64) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = last.advanced(wall_ms, uptime_ms);
        last.unix_ms
    }

    /// Saves the last reading: what passes after it and before the machine is switched off does not count.
    ///
    /// # Errors
    /// [`StateError`] when the records fail.
    pub fn save(&self) -> Result<(), StateError> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.records.save_numbers(&[(CLOCK, last.unix_ms), (UPTIME, last.uptime_ms), (BOOT, self.boot)])
    }
}

/// Names of what is saved.
const CLOCK: &str = "steady-clock-unix-ms";
const UPTIME: &str = "steady-clock-uptime-ms";
const BOOT: &str = "steady-clock-boot";

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const BEGIN: u64 = 1_800_000_000_000;

    fn open(place: &std::path::Path, boot: u64, wall_ms: u64, uptime_ms: u64) -> SteadyClock {
        let records = Arc::new(StateDirectory::open(place).unwrap());
        SteadyClock::open(records, boot, wall_ms, uptime_ms).unwrap()
    }

    #[test]
    fn a_clock_that_is_set_forward_brings_nothing_nearer() {
        let place = tempfile::tempdir().unwrap();
        let clock = open(place.path(), 1, BEGIN, 0);
        assert_eq!(clock.read(BEGIN + HOUR, HOUR), BEGIN + HOUR);
        let forged = BEGIN + 10 * 365 * 24 * HOUR;
        assert_eq!(clock.read(forged, HOUR + 5), BEGIN + HOUR + 5);
        assert_eq!(clock.read(forged, 3 * HOUR), BEGIN + 3 * HOUR);
        // Nor does a restart of the process, during which time passes, or one of the machine, of which nothing is known.
        clock.save().unwrap();
        drop(clock);
        let clock = open(place.path(), 1, forged, 4 * HOUR);
        assert_eq!(clock.read(forged, 4 * HOUR), BEGIN + 4 * HOUR);
        drop(clock);
        let clock = open(place.path(), 2, forged, 9 * HOUR);
        assert_eq!(clock.read(forged, 10 * HOUR), BEGIN + 5 * HOUR);
        // Put right it is followed, as long as it is not ahead.
        assert_eq!(clock.read(BEGIN + 4 * HOUR, 10 * HOUR), BEGIN + 4 * HOUR);
        assert_eq!(clock.read(BEGIN + 7 * HOUR, 11 * HOUR), BEGIN + 5 * HOUR);
    }

    #[test]
    fn a_clock_that_was_wrong_from_the_start_is_put_right() {
        let place = tempfile::tempdir().unwrap();
        let clock = open(place.path(), 1, BEGIN + 1000 * HOUR, 0);
        assert_eq!(clock.read(BEGIN, 10), BEGIN);
        assert_eq!(clock.read(BEGIN + 1000 * HOUR, 20), BEGIN + 10);
    }
}
