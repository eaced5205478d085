//! Whether this thread has stood still: stopped, starved, or in a machine that was.
//!
//! A host whose commands wait in a socket of ours meanwhile goes on over its path to the other node. When this thread
//! goes on, what waits here is older than what the host has written there, and must not be executed, here or by
//! forwarding (I16). So a connection belongs to the time between two standstills, and is dropped after the
//! second: no host gives up a path as soon as [`LONGEST_STANDSTILL_MS`]. (Where this node served the volume itself, its
//! lease is over then too.)

use std::cell::Cell;

use crate::cluster::lease::LeaseTerms;
use crate::peer::quorum::clock_ms;

/// Notices standstills. To be looked at more often than the longest that is none.
pub struct Pulse {
    last_ms: Cell<u64>,
    standstills: Cell<u64>,
}

impl Pulse {
    /// Begins now.
    pub fn new() -> Self {
        Self { last_ms: Cell::new(clock_ms()), standstills: Cell::new(0) }
    }

    /// How many standstills there have been, one that has just ended included.
    pub fn standstills(&self) -> u64 {
        self.look(clock_ms())
    }

    fn look(&self, now_ms: u64) -> u64 {
        let still_ms = now_ms.saturating_sub(self.last_ms.replace(now_ms));
        if still_ms > LONGEST_STANDSTILL_MS {
            self.standstills.set(self.standstills.get() + 1);
            tracing::warn!(still_ms, "this process stood still: sessions from before are dropped");
        }
        self.standstills.get()
    }
}

/// Shortest time that counts: that of a lease.
const LONGEST_STANDSTILL_MS: u64 = LeaseTerms::LAN.duration_ms;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_standstills_count() {
        let pulse = Pulse { last_ms: Cell::new(0), standstills: Cell::new(0) };
        let seen: Vec<u64> =
            [100, 2100, 4101, 4200, 60_000].into_iter().map(|now_ms| pulse.look(now_ms)).collect();
        assert_eq!(seen, [0, 0, 1, 1, 2]);
    }
}
