//! The simulator's random numbers: SplitMix64 (Steele, Lea and Flood, 2014).
//!
//! Own code, and not a crate, so that a recorded seed replays the same run whatever the crates'
//! versions. Not for secrets, and not used outside simulation and tests.

use std::cell::Cell;

/// A stream of random numbers given by its seed.
#[derive(Debug)]
pub struct Random {
    state: Cell<u64>,
}

impl Random {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: Cell::new(seed) }
    }

    /// The next 64 bits.
    pub fn next(&self) -> u64 {
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        mix(state)
    }

    /// An evenly distributed number below `bound`, which is not zero.
    pub fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no random number");
        // Multiplication keeps the bias below bound / 2^64, which no simulation can notice.
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("the upper half of 128 bits is 64 bits")
    }

    /// An evenly distributed index of a list of `length` entries, which is not empty.
    pub fn index(&self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("below a usize")
    }

    /// True `per_million` times in a million.
    pub fn chance(&self, per_million: u32) -> bool {
        self.below(1_000_000) < u64::from(per_million)
    }

    /// True half of the time.
    pub fn coin(&self) -> bool {
        self.next() & 1 == 1
    }

    /// Puts `list` in random order.
    pub fn shuffle<T>(&self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.index(last + 1));
        }
    }

    /// An independent stream, for a part whose use must not shift the others' numbers.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::new(self.next())
    }
}

/// Spreads every bit of `value` over the whole result.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_stream_with_even_bounds() {
        let (first, second) = (Random::new(7), Random::new(7));
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            let number = first.below(10);
            assert_eq!(number, second.below(10));
            seen[usize::try_from(number).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&count| (850..1150).contains(&count)), "{seen:?}");
        assert_ne!(Random::new(7).next(), Random::new(8).next());
    }
}
