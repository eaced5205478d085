//! Guesses of join tokens, counted by where they come from.
//!
//! A secret has 128 random bits, so guessing is hopeless at any rate; this keeps those who try from taking this
//! machine's time and from filling its event log. Who guesses elsewhere does not keep out who knows.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Counts wrong tokens.
#[derive(Debug, Default)]
pub struct Guard {
    /// Wrong ones in the present minute of each address, and when that began.
    wrong: BTreeMap<IpAddr, (u32, u64)>,
}

impl Guard {
    /// Whether an address may try now.
    #[must_use]
    pub fn may_try(&self, from: IpAddr, now_ms: u64) -> bool {
        let counted = self.wrong.get(&from).is_some_and(|(count, since_ms)| {
            *count >= MOST_WRONG && now_ms < since_ms.saturating_add(PERIOD_MS)
        });
        !counted
    }

    /// A wrong one came. True when it is the first that will be the last for a while.
    pub fn handle_wrong(&mut self, from: IpAddr, now_ms: u64) -> bool {
        self.wrong.retain(|_, (_, since_ms)| now_ms < since_ms.saturating_add(PERIOD_MS));
        if self.wrong.len() >= MOST_ADDRESSES && !self.wrong.contains_key(&from) {
            // From so many at once: whoever was first is let go.
            self.wrong.pop_first();
        }
        let (count, _) = self.wrong.entry(from).or_insert((0, now_ms));
        *count += 1;
        *count == MOST_WRONG
    }
}

/// Wrong tokens that an address may send in a period.
pub const MOST_WRONG: u32 = 5;
const PERIOD_MS: u64 = 60_000;
const MOST_ADDRESSES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_guesses_is_kept_out_for_a_minute_and_others_are_not() {
        let mut guard = Guard::default();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let told = (0..MOST_WRONG).map(|n| guard.handle_wrong(one, u64::from(n))).collect::<Vec<_>>();
        assert_eq!(told, [false, false, false, false, true]);
        assert!(!guard.may_try(one, 59_000) && guard.may_try(other, 59_000));
        assert!(guard.may_try(one, 60_001));
        for n in 0..10_000u32 {
            guard.handle_wrong(IpAddr::V4(n.into()), 61_000);
        }
        assert!(guard.wrong.len() <= MOST_ADDRESSES);
    }
}
