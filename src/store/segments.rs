//! The segment table: what each segment is used for, and how much of it still counts.
//!
//! A segment goes free -> open -> sealed -> free. It becomes free only through a checkpoint that
//! refers to nothing in it and begins behind its last batch, and only while no read is in it.

use std::collections::VecDeque;

use crate::array::{Geometry, MemberSet, Place, SegmentIndex};

use super::batch::SegmentUse;
use super::map::{References, SegmentUses};

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
    /// A part of a table of the map.
    Table,
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
    /// Blocks in it that the map refers to: never too few; a map that gives places up late has them here meanwhile.
    pub live_blocks: u32,
    /// The cleaner has found that nothing in it is live, whatever is counted.
    pub is_emptied: bool,
    /// The cleaner could not find out what is live in it.
    pub is_unknown: bool,
    /// Highest batch number in it.
    pub last_batch: u64,
    /// Reads in progress.
    pub readers: u32,
}

impl Segment {
    /// One that was never used.
    pub const FREE: Self = Self {
        state: SegmentState::Free,
        generation: 0,
        members: MemberSet::EMPTY,
        live_blocks: 0,
        is_emptied: false,
        is_unknown: false,
        last_batch: 0,
        readers: 0,
    };

    /// Whether it was filled and nothing in it counts any more: once its last batch is durable and no read is
    /// in it, a checkpoint gives it back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state == SegmentState::Sealed && (self.live_blocks == 0 || self.is_emptied)
    }
}

/// All segments of the pool.
pub struct SegmentTable {
    segments: Vec<Segment>,
    free: VecDeque<SegmentIndex>,
    next_generation: u64,
    /// Off during replay, when the map may know places of segments that replay has not met yet.
    counting: bool,
    uses: SegmentUses,
    /// Segments of tables.
    tables: usize,
}

impl SegmentTable {
    /// A table of free segments.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        let segments = vec![Segment::FREE; geometry.segment_count as usize];
        let free = (0..geometry.segment_count).map(SegmentIndex).collect();
        let uses = SegmentUses::default();
        Self { segments, free, next_generation: 1, counting: true, uses, tables: 0 }
    }

    /// A table as a checkpoint has it, with the generation to give next. References are not counted
    /// before [`SegmentTable::recount`].
    #[must_use]
    pub fn restore(segments: Vec<Segment>, next_generation: u64) -> Self {
        let uses = SegmentUses::default();
        let in_use = |(_, segment): &(u32, &Segment)| segment.state != SegmentState::Free;
        for (index, segment) in (0u32..).zip(&segments).filter(in_use) {
            uses.set(SegmentIndex(index), segment.generation);
        }
        let (free, counting, tables) = Default::default();
        let mut table = Self { segments, free, next_generation, counting, uses, tables };
        table.find_free();
        table
    }

    /// Which use each segment has, at any time.
    #[must_use]
    pub(super) fn uses(&self) -> SegmentUses {
        self.uses.clone()
    }

    /// What the checkpoint counted holds: from now on references are counted as they come and go.
    pub fn go_on_counting(&mut self) {
        self.counting = true;
    }

    /// Ends a replay in which references were counted.
    pub fn end_replay(&mut self) {
        self.find_free();
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
        *info = Segment { state, generation, members, ..Segment::FREE };
        self.uses.set(segment, generation);
        self.tables += usize::from(state == SegmentState::Table);
        Some(SegmentUse { segment, generation })
    }

    /// Records what replay learns: that `segment` is in use under `generation`.
    pub fn observe(&mut self, segment_use: SegmentUse, members: MemberSet, last_batch: u64) {
        self.next_generation = self.next_generation.max(segment_use.generation + 1);
        let info = self.get_mut(segment_use.segment);
        if info.generation != segment_use.generation {
            (info.live_blocks, info.is_emptied) = (0, false);
        }
        info.state = SegmentState::Sealed;
        info.generation = segment_use.generation;
        info.members = members;
        info.last_batch = last_batch;
        self.uses.set(segment_use.segment, segment_use.generation);
    }

    /// Records that a segment in use holds a table.
    pub fn mark_table(&mut self, segment: SegmentIndex) {
        self.get_mut(segment).state = SegmentState::Table;
        self.tables += 1;
    }

    /// Segments of tables of the map.
    #[must_use]
    pub fn table_count(&self) -> usize {
        self.tables
    }

    /// Gives a segment back.
    pub fn release(&mut self, segment: SegmentIndex) {
        let info = self.get_mut(segment);
        let is_unused = (info.live_blocks == 0 || info.is_emptied) && info.readers == 0;
        assert!(is_unused, "segment {segment:?} is still in use");
        assert_ne!(info.state, SegmentState::Free);
        let was_table = info.state == SegmentState::Table;
        (info.state, info.live_blocks, info.is_emptied) = (SegmentState::Free, 0, false);
        self.tables -= usize::from(was_table);
        self.uses.end(segment);
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
