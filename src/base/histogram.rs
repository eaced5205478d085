//! Histogram of fixed size for latencies and sizes: logarithmic octaves of linear buckets.
//!
//! Guarantees: recording touches one counter and allocates nothing; a value falls into a bucket whose
//! width is at most a sixteenth of its lower bound; merging loses nothing. Values of [`LIMIT`] and
//! more are counted in the last bucket, while sum and maximum stay exact.

/// Values from here on share the last bucket: about 73 minutes, in nanoseconds.
pub const LIMIT: u64 = 1 << (TOP_OCTAVE + 1);

/// Counts of values by magnitude.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    count: u64,
    sum: u64,
    maximum: u64,
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub const fn new() -> Self {
        Self { buckets: [0; BUCKETS], count: 0, sum: 0, maximum: 0 }
    }

    /// Counts `value` once.
    pub fn record(&mut self, value: u64) {
        self.buckets[bucket_of(value)] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.maximum = self.maximum.max(value);
    }

    /// Adds everything that `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.maximum = self.maximum.max(other.maximum);
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Largest value, zero when there is none.
    #[must_use]
    pub fn maximum(&self) -> u64 {
        self.maximum
    }

    /// The value that a share of `quantile` (from 0 to 1) of all values does not exceed, rounded up
    /// to the end of its bucket; zero when there is none.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> u64 {
        // Counts are far below 2^52, where a float is still exact.
        let rank = ((self.count as f64 * quantile.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                // The last bucket has no end of its own.
                return if index == BUCKETS - 1 { self.maximum } else { last_of(index).min(self.maximum) };
            }
        }
        self.maximum
    }

    /// How many values are certainly not greater than `bound`: those in buckets that end at or below
    /// it. Exact for bounds of the form `2^n - 1`, and otherwise low by less than a bucket.
    #[must_use]
    pub fn count_at_most(&self, bound: u64) -> u64 {
        if bound >= self.maximum {
            return self.count;
        }
        let index = bucket_of(bound);
        let whole = if index < BUCKETS - 1 && last_of(index) <= bound { index + 1 } else { index };
        self.buckets[..whole].iter().sum()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (p50, p99) = (self.quantile(0.5), self.quantile(0.99));
        write!(f, "Histogram({} values, p50 {p50}, p99 {p99}, max {})", self.count, self.maximum)
    }
}

/// Bucket of a value. The first octave is exact: one bucket for each of 0 to 15.
fn bucket_of(value: u64) -> usize {
    if value < LINEAR {
        return value as usize;
    }
    let octave = value.ilog2();
    if octave > TOP_OCTAVE {
        return BUCKETS - 1;
    }
    let step = (value >> (octave - LINEAR_BITS)) & (LINEAR - 1);
    ((octave - LINEAR_BITS + 1) as usize) * (LINEAR as usize) + step as usize
}

/// Largest value of a bucket.
fn last_of(index: usize) -> u64 {
    let (octave, step) = (index as u64 / LINEAR, index as u64 % LINEAR);
    if octave == 0 { step } else { ((LINEAR + step + 1) << (octave - 1)) - 1 }
}

/// Linear buckets in an octave: 2^4.
const LINEAR_BITS: u32 = 4;
const LINEAR: u64 = 1 << LINEAR_BITS;
/// The last octave told apart: values of 2^41 to 2^42 - 1.
const TOP_OCTAVE: u32 = 41;
const BUCKETS: usize = (TOP_OCTAVE - LINEAR_BITS + 2) as usize * LINEAR as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_are_narrow() {
        let mut previous_end = None;
        for index in 0..BUCKETS {
            let end = last_of(index);
            let start = previous_end.map_or(0, |end| end + 1);
            assert_eq!(bucket_of(start), index);
            assert_eq!(bucket_of(end), index);
            assert!(start < LINEAR || end - start < start / LINEAR + 1, "{start}..={end}");
            previous_end = Some(end);
        }
        assert_eq!(previous_end, Some(LIMIT - 1));
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), 0);
        (1..=10_000u64).for_each(|value| histogram.record(value * 1000));
        for (quantile, exact) in [(0.5, 5_000_000), (0.9, 9_000_000), (0.99, 9_900_000)] {
            let found = histogram.quantile(quantile);
            assert!(found >= exact && found - exact <= exact / 16, "{quantile}: {found}");
        }
        assert_eq!(histogram.quantile(1.0), 10_000_000);
        assert_eq!(histogram.quantile(0.0), histogram.quantile(0.0001));
        assert_eq!(histogram.sum(), 50_005_000_000);
    }

    #[test]
    fn counts_up_to_a_bound_are_exact_at_powers_of_two() {
        let mut histogram = Histogram::new();
        (0..100_000u64).for_each(|value| histogram.record(value));
        for exponent in 0..17 {
            assert_eq!(histogram.count_at_most((1 << exponent) - 1), (1 << exponent).min(100_000));
        }
        assert_eq!(histogram.count_at_most(u64::MAX), 100_000);
    }

    #[test]
    fn merging_equals_recording_together() {
        let (mut left, mut right, mut both) = (Histogram::new(), Histogram::new(), Histogram::new());
        for value in [0, 1, 15, 16, 17, 1 << 20, LIMIT, u64::MAX] {
            left.record(value);
            both.record(value);
            right.record(value / 3);
            both.record(value / 3);
        }
        left.merge(&right);
        assert_eq!(left, both);
        assert_eq!(left.quantile(1.0), u64::MAX);
    }
}
