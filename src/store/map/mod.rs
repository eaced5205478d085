//! The map: (volume, address) to the newest settled version of the block, and to those older ones that
//! snapshots show.
//!
//! An entry gives way only to a newer version, or to the same version at a new place (in log order),
//! so statements of the log may be applied again. It stays, as an older one, while the view at some snapshot
//! shows it: that of a version not older than it and older than the block's next entry. Whoever changes the map
//! says which snapshots the volume has. A hole is an entry too: it shadows what is older, in later views, and
//! keeps it from coming back, until replay begins behind it and no snapshot needs what it shadows.
//!
//! [`Map`] is all that the store uses of it, and is made so that a map of bounded memory, with its
//! entries in the same segments, can take the place of the one that is in memory ([`MemoryMap`]):
//! - Lookups are futures, as they may have to read. They borrow nothing, and what they find holds at
//!   the moment they complete: who needs a place to stay pins its segment before waiting again.
//! - Changes never wait and need not read what they replace. The new place counts at once; the one that
//!   is not referenced any more may be reported by a later call, never earlier than is true. So live
//!   blocks may be counted too high for a while, which only delays cleaning.
//! - A checkpoint takes the map's own records in pieces, and gives them back to it when it is loaded.

pub mod lsm;
mod memory;
mod older;
mod pool_map;
pub(super) mod record;

use std::future::Future;

use crate::array::{Geometry, Place, SegmentIndex};
use crate::base::checksum::Crc32;
use crate::base::codec::{CutShort, Reader};
use crate::base::units::{BlockAddress, Version, VolumeId};

use super::interface::{Changes, StoreError};
pub use memory::MemoryMap;
pub(super) use pool_map::{SegmentUses, StoreMap, TreeMap};

/// What the map knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Version of the newest settled write.
    pub version: Version,
    /// What it wrote.
    pub value: MapValue,
}

/// What a version of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapValue {
    /// Zeros that take no space.
    Hole,
    /// Data that nothing can give back: reading it is a medium error.
    Lost,
    /// Data in the log, stored plain and bound to its own identity. Records of the map have room for
    /// other encodings and origins ([`record`]); this release writes none and reads none.
    Data {
        /// Where.
        place: Place,
        /// Checksum bound to the block's identity.
        checksum: Crc32,
    },
}

impl MapValue {
    /// Whether the block counts as allocated.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        !matches!(self, Self::Hole)
    }

    /// Whether a move to `moved` is one of this: of the same data, as far as it is known. History that a block has been
    /// given twice under one version may differ, and a move of the first must not bring it back.
    fn may_move_as(&self, moved: &Self) -> bool {
        match (self, moved) {
            (Self::Data { checksum, .. }, Self::Data { checksum: other, .. }) => checksum == other,
            _ => self.is_mapped(),
        }
    }

    fn place(&self) -> Option<Place> {
        match self {
            Self::Data { place, .. } => Some(*place),
            Self::Hole | Self::Lost => None,
        }
    }
}

/// Who is told of places: counts of live blocks follow them.
pub trait References {
    /// The map refers to this place from now on.
    fn gained(&mut self, place: Place);
    /// The map does not refer to this place any more.
    fn lost(&mut self, place: Place);
}

/// A volume at one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The volume.
    pub volume: VolumeId,
    /// What is newer is not shown.
    pub at: Version,
}

/// A view, and those behind it: a block of which one has no entry is shown by the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    view: View,
    ancestors: Vec<View>,
}

impl Lineage {
    /// A volume as it is, with nothing behind it.
    #[must_use]
    pub fn newest(volume: VolumeId) -> Self {
        Self::new(View { volume, at: Version::GREATEST }, Vec::new())
    }

    /// A view with its ancestors, the nearest first.
    #[must_use]
    pub fn new(view: View, ancestors: Vec<View>) -> Self {
        Self { view, ancestors }
    }

    /// The views, the nearest first.
    pub fn views(&self) -> impl Iterator<Item = View> {
        std::iter::once(self.view).chain(self.ancestors.iter().copied())
    }
}

/// What a hole comes over.
#[derive(Clone, Copy, Debug)]
pub struct Covered<'a> {
    /// The snapshots of the volume, ascending.
    pub snapshots: &'a [Version],
    /// The views behind the volume, the nearest first.
    pub ancestors: &'a [View],
}

/// Where saving the map goes on, after pieces that were saved before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavePosition(VolumeId, u64);

impl SavePosition {
    /// The beginning.
    pub const START: Self = Self(VolumeId(0), 0);
}

/// What the store needs of its map.
pub trait Map {
    /// Calls `found` for each of `count` blocks, in order, with what the lineage shows, and the volume whose entry
    /// it is: the newest settled version that is not newer than the view; none where nothing was written before.
    /// For views other than those of snapshots and of the present ([`Version::GREATEST`]), versions may be
    /// missing.
    fn look_up<F: FnMut(BlockAddress, Option<(VolumeId, MapEntry)>)>(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
        count: u64,
        found: F,
    ) -> impl Future<Output = Result<(), StoreError>> + use<Self, F>;

    /// The entry of a block with exactly this version, if it is kept.
    fn look_up_version(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        version: Version,
    ) -> impl Future<Output = Result<Option<MapEntry>, StoreError>> + use<Self>;

    /// Whether a block is allocated in what the lineage shows, and how many blocks from it on, at least one, are alike; it need not
    /// look further than it likes.
    fn run_from(
        &self,
        lineage: &Lineage,
        address: BlockAddress,
    ) -> impl Future<Output = Result<(u64, bool), StoreError>> + use<Self>;

    /// Whether a write of the block, newer than all else, certainly takes no more space than the block has: its
    /// present data is not kept for a snapshot, of which `newest` is the newest. Asked before each write, so
    /// never a reason to read.
    fn has_space(&self, volume: VolumeId, address: BlockAddress, newest: Option<Version>) -> bool;

    /// Applies a statement of the log about one block of a volume with these snapshots, ascending: it takes
    /// effect when a view shows it.
    fn apply(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        snapshots: &[Version],
        references: &mut impl References,
    );

    /// Applies a move of the cleaner: it takes effect when the block still has that very version, with
    /// that very data.
    fn apply_move(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        entry: MapEntry,
        references: &mut impl References,
    );

    /// Turns `count` blocks into holes of `version`, where another version exists or an ancestor shows data. Works for a bounded
    /// time and returns what is left to be done: first block and count.
    fn apply_hole(
        &mut self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        version: Version,
        covered: Covered<'_>,
        references: &mut impl References,
    ) -> Option<(BlockAddress, u64)>;

    /// Gives up, from block `from` of a volume on and for a bounded time, what was kept for the snapshot
    /// `dropped` alone; `snapshots` are those that are left. Returns where to go on.
    fn drop_snapshot(
        &mut self,
        volume: VolumeId,
        dropped: Version,
        from: BlockAddress,
        snapshots: &[Version],
        references: &mut impl References,
    ) -> Option<BlockAddress>;

    /// Forgets blocks of a volume, for a bounded time. Returns whether there are more.
    fn drop_volume(&mut self, volume: VolumeId, references: &mut impl References) -> bool;

    /// Allocated blocks of a volume, as it is now.
    fn mapped_blocks(&self, volume: VolumeId) -> u64;

    /// Allocated blocks of all volumes, as they are now.
    fn total_mapped_blocks(&self) -> u64;

    /// Blocks of a volume that are kept for snapshots alone.
    fn held_blocks(&self, volume: VolumeId) -> u64;

    /// Blocks of all volumes that are kept for snapshots alone.
    fn total_held_blocks(&self) -> u64;

    /// Every version of a block whose data lies in a segment: for cleaning when the segment's own headers are lost.
    fn entries_in(
        &self,
        segment: SegmentIndex,
    ) -> impl Future<Output = Result<Vec<(VolumeId, BlockAddress, MapEntry)>, StoreError>> + use<Self>;

    /// Runs of blocks, from `from` on, whose version in the view at `at` is not covered by `since`: as
    /// [`ChangeLog::changed_since`](super::interface::ChangeLog::changed_since) says.
    fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> impl Future<Output = Result<Changes, StoreError>> + use<Self>;

    /// Appends the next piece of what a checkpoint has to keep of the map, whole records of bounded
    /// length, and returns where to go on; none at the end. Holes of which `may_forget` says so may be
    /// forgotten: nothing older can come back any more, and nobody has to be told of them.
    fn save(
        &mut self,
        from: SavePosition,
        may_forget: impl Fn(VolumeId, Version) -> bool,
        bytes: &mut Vec<u8>,
    ) -> Option<SavePosition>;

    /// How many bytes all pieces take together, at most.
    fn saved_bytes(&self) -> u64;

    /// Takes a record that [`Self::save`] wrote; `format` is the version of the stream it stands in. Whether
    /// it makes sense in a pool of this geometry.
    ///
    /// # Errors
    /// [`CutShort`] when more has to be read first; nothing has changed then.
    ///
    /// What older versions snapshots show is not asked yet: those that were saved are kept until
    /// [`Self::drop_snapshot`] has looked at them.
    fn load(&mut self, reader: &mut Reader<'_>, format: u32, geometry: &Geometry) -> Result<bool, CutShort>;
}
