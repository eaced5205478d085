//! The segment table: what each segment is used for, and how much of it still counts.
//!
//! A segment goes free -> open -> sealed -> free. It becomes free only through a checkpoint that
//! refers to nothing in it and begins behind its last batch, and only while no read is in it.

use std::collections::VecDeque;

use crate::array::{Geometry, MemberSet, Place, SegmentIndex};

use super::batch::SegmentUse;
use super::map::References;

/// What a segment is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Nothing; may be taken.
    Free,
    /// Named as a head's next segment, or being filled.
    Open,
    /// Filled; changes only by repair until it is free again.
    Sealed,
    /// Part of a checkpoint.
    Checkpoint,
}

/// One segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Use.
    pub state: SegmentState,
    /// Which use of the segment this is; 0 before the first.
    pub generation: u64,
    /// Disks of its stripes.
    pub members: MemberSet,
    /// Blocks in it that the map refers to.
    pub live_blocks: u32,
    /// Highest batch number in it.
    pub last_batch: u64,
    /// Reads in progress.
    pub readers: u32,
}

impl Segment {
    /// Whether it was filled and nothing in it counts any more: once its last batch is durable and no read is
    /// in it, a checkpoint gives it back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state == SegmentState::Sealed && self.live_blocks == 0
    }
}

/// All segments of the pool.
pub struct SegmentTable {
    segments: Vec<Segment>,
    free: VecDeque<SegmentIndex>,
    next_generation: u64,
    /// Off during replay, when the map may know places of segments that replay has not met yet.
    counting: bool,
}

impl SegmentTable {
    /// A table of free segments.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        let blank = Segment {
            state: SegmentState::Free,
            generation: 0,
            members: MemberSet::EMPTY,
            live_blocks: 0,
            last_batch: 0,
            readers: 0,
        };
        let segments = vec![blank; geometry.segment_count as usize];
        let free = (0..geometry.segment_count).map(SegmentIndex).collect();
        Self { segments, free, next_generation: 1, counting: true }
    }

    /// A table as a checkpoint has it, with the generation to give next. References are not counted
    /// before [`SegmentTable::recount`].
    #[must_use]
    pub fn restore(segments: Vec<Segment>, next_generation: u64) -> Self {
        let mut table = Self { segments, free: VecDeque::new(), next_generation, counting: false };
        table.find_free();
        table
    }

    /// Ends replay: counts all references, finds the free segments, and keeps both from now on.
    /// Returns a place that lies in no segment in use, if there is one: the map is damaged then.
    #[must_use]
    pub fn recount(&mut self, references: impl Iterator<Item = Place>) -> Option<Place> {
        self.counting = true;
        self.segments.iter_mut().for_each(|segment| segment.live_blocks = 0);
        for place in references {
            let info = self.get_mut(place.segment());
            if !matches!(info.state, SegmentState::Open | SegmentState::Sealed) {
                return Some(place);
            }
            info.live_blocks += 1;
        }
        self.find_free();
        None
    }

    /// No segment holds a batch behind this one.
    pub fn end_at(&mut self, last_number: u64) {
        for segment in &mut self.segments {
            segment.last_batch = segment.last_batch.min(last_number);
        }
    }

    fn find_free(&mut self) {
        let free = |(_, segment): &(u32, &Segment)| segment.state == SegmentState::Free;
        self.free = (0u32..).zip(&self.segments).filter(free).map(|(index, _)| SegmentIndex(index)).collect();
    }

    /// Segments that may be taken.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Number of all segments.
    #[must_use]
    pub fn count(&self) -> usize {
        self.segments.len()
    }

    /// All segments.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentIndex, &Segment)> {
        (0u32..).map(SegmentIndex).zip(&self.segments)
    }

    /// One segment.
    #[must_use]
    pub fn get(&self, segment: SegmentIndex) -> &Segment {
        &self.segments[segment.index()]
    }

    /// One segment, to be changed.
    pub fn get_mut(&mut self, segment: SegmentIndex) -> &mut Segment {
        &mut self.segments[segment.index()]
    }

    /// The generation that the next taken segment gets.
    #[must_use]
    pub fn next_generation(&self) -> u64 {
        self.next_generation
    }

    /// Takes a free segment for `state` over `members`.
    pub fn take(&mut self, state: SegmentState, members: MemberSet) -> Option<SegmentUse> {
        let segment = self.free.pop_front()?;
        let generation = self.next_generation;
        self.next_generation += 1;
        let info = self.get_mut(segment);
        assert_eq!((info.state, info.live_blocks, info.readers), (SegmentState::Free, 0, 0));
        *info = Segment { state, generation, members, live_blocks: 0, last_batch: 0, readers: 0 };
        Some(SegmentUse { segment, generation })
    }

    /// Records what replay learns: that `segment` is in use under `generation`.
    pub fn observe(&mut self, segment_use: SegmentUse, members: MemberSet, last_batch: u64) {
        self.next_generation = self.next_generation.max(segment_use.generation + 1);
        let info = self.get_mut(segment_use.segment);
        info.state = SegmentState::Sealed;
        info.generation = segment_use.generation;
        info.members = members;
        info.last_batch = last_batch;
    }

    /// Gives a segment back.
    pub fn release(&mut self, segment: SegmentIndex) {
        let info = self.get_mut(segment);
        assert_eq!((info.live_blocks, info.readers), (0, 0), "segment {segment:?} is still in use");
        assert_ne!(info.state, SegmentState::Free);
        info.state = SegmentState::Free;
        self.free.push_back(segment);
    }
}

impl References for SegmentTable {
    fn gained(&mut self, place: Place) {
        if self.counting {
            self.get_mut(place.segment()).live_blocks += 1;
        }
    }

    fn lost(&mut self, place: Place) {
        if self.counting {
            let info = self.get_mut(place.segment());
            assert!(info.live_blocks > 0, "segment {:?} released more than it holds", place.segment());
            info.live_blocks -= 1;
        }
    }
}
