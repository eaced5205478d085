//! Slows down who tries too often: each key may begin with some attempts, then gets one more every few seconds.
//!
//! Pure: time is an argument. Attempts that succeed are taken back by the caller. Memory is bounded: where there are too
//! many keys, those with the fewest attempts are forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

/// Attempts that a key begins with.
const BURST: u32 = 10;
/// Time until one more.
const INTERVAL: Duration = Duration::from_secs(6);
/// Keys that are remembered.
const MOST_KEYS: usize = 4096;

/// What was tried.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When each key will have all its attempts again.
    free_at: BTreeMap<String, Duration>,
}

impl Throttle {
    /// Counts an attempt against each of `keys`; when one of them has had too many, none is counted, and this is how long
    /// to wait.
    ///
    /// # Errors
    /// How long.
    pub fn admit(&mut self, now: Duration, keys: &[String]) -> Result<(), Duration> {
        let next =
            |throttle: &Self, key| throttle.free_at.get(key).copied().unwrap_or(now).max(now) + INTERVAL;
        let wait = keys.iter().map(|key| next(self, key).saturating_sub(now + INTERVAL * BURST)).max();
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        for key in keys {
            let next = next(self, key);
            self.free_at.insert(key.clone(), next);
        }
        if self.free_at.len() > MOST_KEYS {
            self.free_at.retain(|_, free_at| *free_at > now);
        }
        while self.free_at.len() > MOST_KEYS {
            let least = self.free_at.iter().min_by_key(|(_, free_at)| **free_at).map(|(key, _)| key.clone());
            least.map(|least| self.free_at.remove(&least));
        }
        Ok(())
    }

    /// Takes back the last attempt of each of `keys`.
    pub fn forgive(&mut self, keys: &[String]) {
        for key in keys {
            if let Some(free_at) = self.free_at.get_mut(key) {
                *free_at = free_at.saturating_sub(INTERVAL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn who_fails_too_often_waits_and_others_do_not() {
        let (mut throttle, start) = (Throttle::default(), Duration::from_secs(1000));
        let (mallory, anne) = (keys(&["from m", "user anne"]), keys(&["from a", "user anne"]));
        (0..BURST).for_each(|_| throttle.admit(start, &mallory).unwrap());
        assert_eq!(throttle.admit(start, &mallory), Err(INTERVAL));
        // Also from elsewhere, for the same user; not for another one.
        assert_eq!(throttle.admit(start, &anne), Err(INTERVAL));
        throttle.admit(start, &keys(&["from a", "user bob"])).unwrap();
        throttle.admit(start + INTERVAL, &mallory).unwrap();
        assert!(throttle.admit(start + INTERVAL, &mallory).is_err());
        (0..BURST).for_each(|_| throttle.admit(start + INTERVAL * 100, &mallory).unwrap());
    }

    #[test]
    fn who_succeeds_is_not_counted_and_memory_is_bounded() {
        let (mut throttle, start) = (Throttle::default(), Duration::from_secs(1000));
        for _ in 0..1000 {
            throttle.admit(start, &keys(&["a"])).unwrap();
            throttle.forgive(&keys(&["a"]));
        }
        (0..BURST).for_each(|_| throttle.admit(start, &keys(&["bad"])).unwrap());
        (0..2 * MOST_KEYS).for_each(|number| throttle.admit(start, &[number.to_string()]).unwrap());
        assert_eq!(throttle.free_at.len(), MOST_KEYS);
        assert!(throttle.admit(start, &keys(&["bad"])).is_err(), "the worst are remembered");
    }
}
