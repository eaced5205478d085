//! Where things are: slots, segments, rows, and the places that the map points at.

use crate::base::units::BLOCK_SIZE;

/// Most disks in an array.
pub const MAX_DISKS: usize = 24;

/// Segments have fewer rows than this: the sector within a column takes 24 bits of a [`Place`].
pub const MAX_ROWS: u32 = 1 << 21;

/// Position of a disk in its array: a column of every segment. Independent of paths and their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u8);

impl Slot {
    /// As an index into tables by slot.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Number of a segment: the same offset on every disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentIndex(pub u32);

impl SegmentIndex {
    /// As an index into the segment table.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The disks over which a segment's stripes run, a bit a slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberSet(pub u32);

impl MemberSet {
    /// No disk.
    pub const EMPTY: Self = Self(0);

    /// The first `count` slots.
    #[must_use]
    pub fn first(count: usize) -> Self {
        assert!(count <= MAX_DISKS);
        Self((1u32 << count) - 1)
    }

    /// Whether `slot` is in the set.
    #[must_use]
    pub fn contains(self, slot: Slot) -> bool {
        self.0 & (1 << slot.0) != 0
    }

    /// The set and `slot`.
    #[must_use]
    pub fn with(self, slot: Slot) -> Self {
        Self(self.0 | (1 << slot.0))
    }

    /// The set without `slot`.
    #[must_use]
    pub fn without(self, slot: Slot) -> Self {
        Self(self.0 & !(1 << slot.0))
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Number of disks in the set.
    #[must_use]
    pub fn width(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The slots in ascending order.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        (0..MAX_DISKS as u8).map(Slot).filter(move |slot| self.contains(*slot))
    }

    /// The member at position `index` in ascending order.
    fn nth(self, index: usize) -> Slot {
        match self.iter().nth(index) {
            Some(slot) => slot,
            None => panic!("member {index} of {self:?}"),
        }
    }
}

impl std::fmt::Debug for MemberSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter().map(|slot| slot.0)).finish()
    }
}

/// How a stripe's columns lie on the members: data columns in order behind the parity column, which
/// rotates with `rotation` (the batch number).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeLayout {
    members: MemberSet,
    parity_position: usize,
}

impl StripeLayout {
    /// The layout of stripe number `rotation` over `members`.
    #[must_use]
    pub fn new(members: MemberSet, rotation: u64) -> Self {
        let width = members.width();
        assert!(width >= 1, "a stripe needs a member");
        Self { members, parity_position: (rotation % width as u64) as usize }
    }

    /// The members.
    #[must_use]
    pub fn members(&self) -> MemberSet {
        self.members
    }

    /// Number of data columns: one less than members, or the one member itself.
    #[must_use]
    pub fn data_columns(&self) -> usize {
        data_columns(self.members)
    }

    /// The slot that holds parity; none when there is but one member.
    #[must_use]
    pub fn parity_slot(&self) -> Option<Slot> {
        (self.members.width() > 1).then(|| self.members.nth(self.parity_position))
    }

    /// The slot of data column `column`.
    #[must_use]
    pub fn data_slot(&self, column: usize) -> Slot {
        assert!(column < self.data_columns());
        let width = self.members.width();
        self.members.nth((self.parity_position + 1 + column) % width)
    }
}

/// Data columns of a stripe over `members`.
#[must_use]
pub fn data_columns(members: MemberSet) -> usize {
    members.width().saturating_sub(1).max(1)
}

/// Sizes that are fixed when the pool is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Disks in the array, those that left included.
    pub disk_count: usize,
    /// 4 KiB rows in a segment: its height on each disk.
    pub rows: u32,
    /// Segments on each disk.
    pub segment_count: u32,
}

impl Geometry {
    /// Bytes at the start of each disk that no segment uses: superblocks.
    pub const RESERVED_BYTES: u64 = 1 << 20;

    /// The geometry of `disk_count` disks of at least `disk_bytes` each, with segments of
    /// `segment_bytes` on each disk. `None` when fewer than [`Geometry::MIN_SEGMENTS`] fit.
    #[must_use]
    pub fn for_disks(disk_count: usize, disk_bytes: u64, segment_bytes: u64) -> Option<Self> {
        let rows = u32::try_from(segment_bytes / BLOCK_SIZE as u64).ok().filter(|rows| *rows > 0)?;
        let usable = disk_bytes.checked_sub(Self::RESERVED_BYTES)?;
        let segment_count = u32::try_from(usable / segment_bytes).unwrap_or(u32::MAX);
        (segment_count >= Self::MIN_SEGMENTS).then_some(Self { disk_count, rows, segment_count })
    }

    /// Fewest segments that leave the cleaner and the checkpoints room to work.
    pub const MIN_SEGMENTS: u32 = 24;

    /// A segment size that suits disks of `disk_bytes`: at least 64 segments, 1 to 16 MiB.
    #[must_use]
    pub fn default_segment_bytes(disk_bytes: u64) -> u64 {
        (disk_bytes / 128).next_power_of_two().clamp(1 << 20, 16 << 20)
    }

    /// Byte offset on its disk of a row of a segment.
    #[must_use]
    pub fn offset(&self, segment: SegmentIndex, row: u32) -> u64 {
        debug_assert!(segment.0 < self.segment_count && row <= self.rows);
        let row = u64::from(segment.0) * u64::from(self.rows) + u64::from(row);
        Self::RESERVED_BYTES + row * BLOCK_SIZE as u64
    }

    /// All members.
    #[must_use]
    pub fn all_slots(&self) -> MemberSet {
        MemberSet::first(self.disk_count)
    }

    /// Data blocks that a segment over `members` holds, headers included.
    #[must_use]
    pub fn data_blocks(&self, members: MemberSet) -> u64 {
        u64::from(self.rows) * data_columns(members) as u64
    }
}

/// Where a block's stored bytes begin: segment, column, and 512-byte sector within the column.
/// Packed into 64 bits for the map: 32 bits of segment, 8 of slot, 24 of sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(u64);

impl Place {
    /// The place of a whole row.
    #[must_use]
    pub fn of_row(segment: SegmentIndex, slot: Slot, row: u32) -> Self {
        debug_assert!(row < MAX_ROWS);
        Self(u64::from(segment.0) << 32 | u64::from(slot.0) << 24 | u64::from(row * SECTORS_PER_ROW))
    }

    /// From its packed form.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The packed form.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The same place in another segment.
    #[must_use]
    pub fn in_segment(self, segment: SegmentIndex) -> Self {
        Self(u64::from(segment.0) << 32 | self.0 & u64::from(u32::MAX))
    }

    /// Segment of the place.
    #[must_use]
    pub fn segment(self) -> SegmentIndex {
        SegmentIndex((self.0 >> 32) as u32)
    }

    /// Disk of the place.
    #[must_use]
    pub fn slot(self) -> Slot {
        Slot((self.0 >> 24) as u8)
    }

    /// Row of the place.
    #[must_use]
    pub fn row(self) -> u32 {
        (self.0 as u32 & 0xff_ffff) / SECTORS_PER_ROW
    }

    /// Whether the place is a whole row of a segment of this geometry.
    #[must_use]
    pub fn is_within(self, geometry: &Geometry) -> bool {
        self.segment().0 < geometry.segment_count
            && self.slot().index() < geometry.disk_count
            && self.row() < geometry.rows
            && (self.0 as u32 & 0xff_ffff).is_multiple_of(SECTORS_PER_ROW)
    }
}

const SECTORS_PER_ROW: u32 = (BLOCK_SIZE / 512) as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_pack_and_unpack() {
        let place = Place::of_row(SegmentIndex(7_000_000), Slot(23), 4095);
        assert_eq!((place.segment(), place.slot(), place.row()), (SegmentIndex(7_000_000), Slot(23), 4095));
        assert_eq!(Place::from_bits(place.bits()), place);
    }

    #[test]
    fn every_member_holds_each_role_once_a_turn() {
        let members = MemberSet::first(5).without(Slot(2));
        let mut parity = MemberSet::EMPTY;
        for rotation in 0..4 {
            let layout = StripeLayout::new(members, rotation);
            let parity_slot = layout.parity_slot().unwrap();
            let data = (0..layout.data_columns()).fold(MemberSet::EMPTY, |s, c| s.with(layout.data_slot(c)));
            assert_eq!(data.with(parity_slot), members);
            assert!(!data.contains(parity_slot));
            parity = parity.with(parity_slot);
        }
        assert_eq!(parity, members);
    }

    #[test]
    fn one_disk_has_data_and_no_parity() {
        let layout = StripeLayout::new(MemberSet::first(1), 9);
        assert_eq!((layout.data_columns(), layout.parity_slot(), layout.data_slot(0)), (1, None, Slot(0)));
    }

    #[test]
    fn a_disk_that_is_too_small_has_no_geometry() {
        assert_eq!(Geometry::for_disks(4, 8 << 20, 1 << 20), None);
        let geometry = Geometry::for_disks(4, 64 << 20, 1 << 20).unwrap();
        assert_eq!((geometry.segment_count, geometry.rows), (63, 256));
    }
}
