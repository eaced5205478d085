//! Which blocks certainly have space already: asked before each write, so all of it is in memory.
//!
//! A region of 4096 blocks costs nothing while nothing is known of it, a few bytes when all of it is known to have
//! space, and 512 bytes in between. The regions in between are bounded; beyond that some are forgotten, and of
//! their blocks it is not known any more. What is not known counts as new space until a merge finds that it was not
//! (see account.md); who must know asks for it to be learned.
//!
//! Invariant: a block that is marked has data, newer than `floor`, as its newest entry.

use std::collections::BTreeMap;

use crate::base::units::Version;

/// Blocks of a volume that certainly have space.
#[derive(Default)]
pub(super) struct KnownSpace {
    /// No snapshot that is newer than this was there when the marks were made.
    floor: Option<Version>,
    regions: BTreeMap<u64, Region>,
    mixed: usize,
    /// The first region that may be forgotten next.
    forget_next: u64,
}

enum Region {
    Full,
    Mixed(Box<[u64; WORDS]>),
}

impl KnownSpace {
    /// The volume's newest snapshot is this: what is older does not count as space any more. What is known under an
    /// older one of a volume whose newest snapshot was dropped holds all the same.
    pub(super) fn set_floor(&mut self, newest: Option<Version>) {
        if newest > self.floor {
            *self = Self::default();
        }
        self.floor = newest;
    }

    /// Whether a block certainly has space, where `newest` is the newest snapshot.
    pub(super) fn has(&self, address: u64, newest: Option<Version>) -> bool {
        if newest > self.floor {
            return false;
        }
        match self.regions.get(&(address / REGION_BLOCKS)) {
            None => false,
            Some(Region::Full) => true,
            Some(Region::Mixed(bits)) => bits[word(address)] & bit(address) != 0,
        }
    }

    /// Marks a block whose newest entry has data, of this version. Forgets others when more than `limit` regions
    /// are known in part.
    pub(super) fn mark(&mut self, address: u64, version: Version, limit: usize) {
        if self.floor.is_some_and(|floor| version <= floor) {
            return;
        }
        let number = address / REGION_BLOCKS;
        let region = self.regions.entry(number).or_insert_with(|| {
            self.mixed += 1;
            Region::Mixed(Box::new([0; WORDS]))
        });
        if let Region::Mixed(bits) = region {
            bits[word(address)] |= bit(address);
            if bits.iter().all(|word| *word == u64::MAX) {
                *region = Region::Full;
                self.mixed -= 1;
            }
        }
        if self.mixed > limit {
            self.forget_one(number);
        }
    }

    /// Nothing is known of these blocks any more.
    pub(super) fn clear(&mut self, start: u64, end: u64, limit: usize) {
        let (first, last) = (start / REGION_BLOCKS, (end - 1) / REGION_BLOCKS);
        let touched: Vec<u64> = self.regions.range(first..=last).map(|(number, _)| *number).collect();
        for number in touched {
            let base = number * REGION_BLOCKS;
            let (from, to) = (start.max(base), end.min(base + REGION_BLOCKS));
            let whole = to - from == REGION_BLOCKS;
            match self.regions.get_mut(&number) {
                Some(Region::Mixed(bits)) if !whole => {
                    (from..to).for_each(|address| bits[word(address)] &= !bit(address));
                }
                Some(region @ Region::Full) if !whole => {
                    let mut bits = Box::new([u64::MAX; WORDS]);
                    (from..to).for_each(|address| bits[word(address)] &= !bit(address));
                    *region = Region::Mixed(bits);
                    self.mixed += 1;
                }
                _ => {
                    let removed = self.regions.remove(&number);
                    self.mixed -= usize::from(matches!(removed, Some(Region::Mixed(_))));
                }
            }
            if self.mixed > limit {
                self.forget_one(number);
            }
        }
    }

    fn forget_one(&mut self, but: u64) {
        // Each in its turn, so that what was just learned stays for a while.
        let mixed = |(number, region): (&u64, &Region)| {
            (*number != but && matches!(region, Region::Mixed(_))).then_some(*number)
        };
        let behind = self.regions.range(self.forget_next..).find_map(mixed);
        if let Some(number) = behind.or_else(|| self.regions.iter().find_map(mixed)) {
            self.regions.remove(&number);
            self.mixed -= 1;
            self.forget_next = number + 1;
        }
    }

    /// What a manifest keeps of it: the floor, and runs of regions that are full, each its first and how many.
    pub(super) fn full_regions(&self) -> (Option<Version>, Vec<(u64, u64)>) {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for number in self
            .regions
            .iter()
            .filter(|(_, region)| matches!(region, Region::Full))
            .map(|(number, _)| *number)
        {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == number => *count += 1,
                _ => runs.push((number, 1)),
            }
        }
        (self.floor, runs)
    }

    /// How many bytes a manifest needs for it, at most.
    pub(super) fn saved_bytes(&self) -> u64 {
        // Each region may be a run of its own, and begin a record.
        (self.regions.len() - self.mixed) as u64 * 40
    }

    /// Takes what [`Self::full_regions`] gave.
    pub(super) fn restore(&mut self, floor: Option<Version>, runs: impl IntoIterator<Item = (u64, u64)>) {
        self.set_floor(floor);
        for (first, count) in runs {
            self.regions.extend((first..first + count).map(|number| (number, Region::Full)));
        }
    }

    /// Bytes that it takes, about.
    pub(super) fn memory(&self) -> usize {
        self.regions.len() * 40 + self.mixed * REGION_BYTES
    }
}

fn word(address: u64) -> usize {
    (address % REGION_BLOCKS / 64) as usize
}

fn bit(address: u64) -> u64 {
    1 << (address % 64)
}

const REGION_BLOCKS: u64 = 4096;
const WORDS: usize = REGION_BLOCKS as usize / 64;
/// Memory of a region that is known in part.
pub(super) const REGION_BYTES: usize = WORDS * 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_is_known_until_something_comes_over_it() {
        let version = |sequence| Version { epoch: 1, sequence };
        let mut space = KnownSpace::default();
        (0..3 * REGION_BLOCKS).for_each(|address| space.mark(address, version(5), 4));
        assert_eq!((space.mixed, space.regions.len()), (0, 3));
        let mut restored = KnownSpace::default();
        let (floor, full) = space.full_regions();
        restored.restore(floor, full);
        assert!(restored.has(0, None) && restored.has(3 * REGION_BLOCKS - 1, None));
        assert!(!restored.has(3 * REGION_BLOCKS, None));
        space.clear(100, REGION_BLOCKS + 1, 4);
        assert!(space.has(99, None) && !space.has(100, None) && !space.has(REGION_BLOCKS, None));
        assert!(space.has(REGION_BLOCKS + 1, None) && !space.has(0, Some(version(1))));
        assert_eq!((space.mixed, space.regions.len()), (2, 3));
        (0..9).for_each(|number| space.mark((10 + number) * REGION_BLOCKS, version(5), 4));
        assert!(space.mixed <= 5);
        space.set_floor(Some(version(9)));
        assert!(!space.has(0, None));
        space.mark(0, version(9), 4);
        assert!(!space.has(0, Some(version(9))));
        space.mark(0, version(10), 4);
        assert!(space.has(0, Some(version(9))) && space.has(0, None));
    }
}
