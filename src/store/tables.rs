//! Where the tables of the map lie: each in segments of its own, in stripes like everything else.
//!
//! A table fills its segments from their first row on, in stripes of equal height but the last, block after block down
//! each column. Its blocks have checksums of their own, so nothing of it but its place is kept elsewhere: the
//! checkpoint names the segments. A table counts from the checkpoint on that names it; until then a restart finds
//! its segments free. They come free when a durable checkpoint does not name it any more.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::{Rc, Weak};

use bytes::Bytes;

use crate::array::geometry::{StripeLayout, data_columns};
use crate::array::{Array, Geometry, MemberSet, Place, SegmentIndex};
use crate::base::buffer::AlignedBuf;
use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::mutant::{self, Mutant};
use crate::base::units::BLOCK_SIZE;

use super::batch::{SegmentUse, put_segment_use, read_segment_use};
use super::interface::StoreError;
use super::log::zero_block;
use super::map::lsm::{TableId, TableStorage, is_intact};
use super::segments::{SegmentState, SegmentTable};
use super::shared::{Shared, add};

/// The tables of a pool. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct PoolTables(Rc<Inner>);

struct Inner {
    array: Array,
    /// The pool, once it is open: where segments come from.
    shared: RefCell<Weak<Shared>>,
    whole: RefCell<BTreeMap<TableId, Layout>>,
    begun: RefCell<BTreeMap<TableId, Begun>>,
    /// Tables that the map does not need any more, and that the newest durable checkpoint may name.
    retired: RefCell<Vec<TableId>>,
}

/// Where a table lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Layout {
    blocks: u32,
    parts: Vec<Part>,
}

/// A segment of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    at: SegmentUse,
    members: MemberSet,
}

/// A table that is being written: what is laid out, and blocks that are not yet.
#[derive(Default)]
struct Begun {
    layout: Layout,
    pending: Vec<Bytes>,
}

/// A stripe of a table.
pub(super) struct TableStripe {
    pub(super) first_row: u32,
    pub(super) height: u32,
    pub(super) layout: StripeLayout,
    /// The number in the table of its first block, and how many there are: the last stripe is filled up with zeros.
    pub(super) first_block: u32,
    pub(super) blocks: u32,
}

impl TableStripe {
    /// The number in the table of the block in a column and row of the stripe; none behind the last.
    pub(super) fn block_at(&self, column: u32, row: u32) -> Option<u32> {
        let block = column * self.height + row;
        (block < self.blocks).then_some(self.first_block + block)
    }
}

impl Part {
    fn columns(&self) -> u32 {
        data_columns(self.members) as u32
    }

    /// Rows of its stripes but the last.
    fn stripe_rows(&self, geometry: &Geometry) -> u32 {
        (STRIPE_BLOCKS / self.columns()).clamp(1, geometry.rows)
    }

    fn capacity(&self, geometry: &Geometry) -> u32 {
        self.columns() * geometry.rows
    }

    /// Stripe number `number` of `blocks` blocks, the first of which has the number `first` in the table.
    fn stripe(&self, number: u32, (first, blocks): (u32, u32), geometry: &Geometry) -> TableStripe {
        let (columns, rows) = (self.columns(), self.stripe_rows(geometry));
        let first_row = number * rows;
        let before = first_row * columns;
        let here = (columns * rows.min(geometry.rows - first_row)).min(blocks - before);
        let layout = StripeLayout::new(self.members, u64::from(number));
        TableStripe {
            first_row,
            height: here.div_ceil(columns),
            layout,
            first_block: first + before,
            blocks: here,
        }
    }

    fn stripe_blocks(&self, geometry: &Geometry) -> u32 {
        self.columns() * self.stripe_rows(geometry)
    }
}

impl Layout {
    /// The parts, each with the number of its first block, and of how many it has.
    fn shares(&self, geometry: &Geometry) -> impl Iterator<Item = (Part, u32, u32)> {
        let mut first = 0;
        self.parts.iter().map(move |part| {
            let blocks = part.capacity(geometry).min(self.blocks - first);
            first += blocks;
            (*part, first - blocks, blocks)
        })
    }

    /// Where a block is, and the disks of its stripe.
    fn place_of(&self, block: u32, geometry: &Geometry) -> Option<(Place, MemberSet)> {
        let mut shares = self.shares(geometry);
        let (part, first, blocks) =
            shares.find(|(_, first, blocks)| (*first..first + blocks).contains(&block))?;
        let number = (block - first) / part.stripe_blocks(geometry);
        let stripe = part.stripe(number, (first, blocks), geometry);
        let offset = block - stripe.first_block;
        let slot = stripe.layout.data_slot((offset / stripe.height) as usize);
        let row = stripe.first_row + offset % stripe.height;
        Some((Place::of_row(part.at.segment, slot, row), part.members))
    }
}

impl PoolTables {
    /// No tables.
    pub(super) fn new(array: Array) -> Self {
        let (shared, whole, begun, retired) = Default::default();
        Self(Rc::new(Inner { array, shared, whole, begun, retired }))
    }

    /// From now on tables can be written.
    pub(super) fn attach(&self, shared: &Rc<Shared>) {
        *self.0.shared.borrow_mut() = Rc::downgrade(shared);
    }

    /// Appends what a checkpoint keeps of the tables: of those that the map's records name.
    pub(super) fn save(&self, tables: &[TableId], bytes: &mut Vec<u8>) {
        let whole = self.0.whole.borrow();
        for (table, layout) in tables.iter().filter_map(|table| Some((table, whole.get(table)?))) {
            bytes.put_u8(TAG_TABLE_PLACE);
            bytes.put_u8(FORMAT);
            bytes.put_u64(table.0);
            bytes.put_u32(layout.blocks);
            bytes.put_u32(layout.parts.len() as u32);
            for part in &layout.parts {
                put_segment_use(bytes, Some(part.at));
                bytes.put_u32(part.members.0);
            }
        }
    }

    /// How many bytes [`Self::save`] takes, at most.
    pub(super) fn saved_bytes(&self) -> u64 {
        let whole = self.0.whole.borrow();
        whole.values().map(|layout| 32 + 20 * layout.parts.len() as u64).sum()
    }

    /// Takes a record of a checkpoint behind its tag, and marks the table's segments. Whether it makes sense.
    pub(super) fn load(
        &self,
        reader: &mut Reader<'_>,
        segments: &mut SegmentTable,
        geometry: &Geometry,
    ) -> Result<bool, CutShort> {
        if reader.u8()? != FORMAT {
            return Ok(false);
        }
        let (table, blocks, count) = (TableId(reader.u64()?), reader.u32()?, reader.u32()?);
        let mut parts = Vec::new();
        for _ in 0..count {
            let (at, members) = (read_segment_use(reader)?, MemberSet(reader.u32()?));
            let members = members.intersection(geometry.all_slots());
            let Some(at) = at.filter(|at| at.is_within(geometry) && members != MemberSet::EMPTY) else {
                return Ok(false);
            };
            parts.push(Part { at, members });
        }
        let room: u64 = parts.iter().map(|part| u64::from(part.capacity(geometry))).sum();
        let is_used = |part: &Part| segments.get(part.at.segment).state != SegmentState::Free;
        if u64::from(blocks) > room || parts.iter().any(is_used) {
            return Ok(false);
        }
        for part in &parts {
            segments.observe(part.at, part.members, 0);
            segments.mark_table(part.at.segment);
        }
        self.0.whole.borrow_mut().insert(table, Layout { blocks, parts });
        Ok(true)
    }

    /// Takes note of tables that the map does not need any more. How many there are by now that a checkpoint that
    /// is begun at this moment does not name.
    pub(super) fn retire(&self, tables: Vec<TableId>) -> usize {
        let mut retired = self.0.retired.borrow_mut();
        retired.extend(tables);
        retired.len()
    }

    /// The checkpoint before which [`Self::retire`] said this number is durable: the segments that it sets free.
    pub(super) fn forget_retired(&self, count: usize) -> Vec<SegmentIndex> {
        let mut whole = self.0.whole.borrow_mut();
        let gone =
            self.0.retired.borrow_mut().drain(..count).filter_map(|table| whole.remove(&table)).collect();
        let gone: Vec<Layout> = gone;
        gone.into_iter().flat_map(|layout| layout.parts).map(|part| part.at.segment).collect()
    }

    /// Whether a segment's table is still being written.
    pub(super) fn is_being_written(&self, segment: SegmentIndex) -> bool {
        let begun = self.0.begun.borrow();
        begun.values().flat_map(|begun| &begun.layout.parts).any(|part| part.at.segment == segment)
    }

    /// The stripes of a whole table that lie in a segment, and which table it is.
    pub(super) fn stripes_in(&self, segment: SegmentIndex) -> Option<(TableId, Vec<TableStripe>)> {
        let (whole, geometry) = (self.0.whole.borrow(), self.0.array.geometry());
        whole.iter().find_map(|(table, layout)| {
            let mut shares = layout.shares(&geometry);
            let (part, first, blocks) = shares.find(|(part, ..)| part.at.segment == segment)?;
            let count = blocks.div_ceil(part.stripe_blocks(&geometry));
            let stripe = |number| part.stripe(number, (first, blocks), &geometry);
            Some((*table, (0..count).map(stripe).collect()))
        })
    }

    /// Writes what is pending of a table, as whole stripes; all of it at the end.
    async fn write(&self, table: TableId, is_end: bool) -> Result<(), StoreError> {
        while let Some((stripe, segment, blocks)) = self.next_stripe(table, is_end)? {
            let (columns, height) = (stripe.layout.data_columns(), stripe.height as usize);
            let mut buffer = AlignedBuf::zeroed(blocks.len() * BLOCK_SIZE);
            for (target, block) in buffer.chunks_mut(BLOCK_SIZE).zip(&blocks) {
                target.copy_from_slice(block);
            }
            let bytes = buffer.freeze();
            let block = |n: usize| match n < blocks.len() {
                true => bytes.slice(n * BLOCK_SIZE..(n + 1) * BLOCK_SIZE),
                false => zero_block(),
            };
            let column = |column: usize| (0..height).map(|row| block(column * height + row)).collect();
            let data = (0..columns).map(column).collect();
            if let Some(shared) = self.0.shared.borrow().upgrade() {
                add(&shared.statistics.table_blocks, (columns * height) as u64);
            }
            let writing = self.0.array.write_stripe(segment, stripe.first_row, stripe.layout, data);
            writing.await.map_err(|_| StoreError::Offline)?;
        }
        Ok(())
    }

    /// Lays out the next stripe, if there are blocks for it: the stripe, its segment, its blocks.
    #[allow(clippy::type_complexity)]
    fn next_stripe(
        &self,
        table: TableId,
        is_end: bool,
    ) -> Result<Option<(TableStripe, SegmentIndex, Vec<Bytes>)>, StoreError> {
        let geometry = self.0.array.geometry();
        let mut begun = self.0.begun.borrow_mut();
        let Begun { layout, pending } = begun.entry(table).or_default();
        if pending.is_empty() {
            return Ok(None);
        }
        let capacity = |parts: &[Part]| parts.iter().map(|part| part.capacity(&geometry)).sum::<u32>();
        if capacity(&layout.parts) == layout.blocks {
            layout.parts.push(self.take_segment()?);
        }
        let Some((part, full)) = layout.parts.split_last() else { return Ok(None) };
        let first = capacity(full);
        let in_part = layout.blocks - first;
        let here = part.stripe_blocks(&geometry).min(part.capacity(&geometry) - in_part);
        if (pending.len() as u32) < here && !is_end {
            return Ok(None);
        }
        let taken = here.min(pending.len() as u32);
        let number = in_part / part.stripe_blocks(&geometry);
        let stripe = part.stripe(number, (first, in_part + taken), &geometry);
        let segment = part.at.segment;
        layout.blocks += taken;
        Ok(Some((stripe, segment, pending.drain(..taken as usize).collect())))
    }

    fn take_segment(&self) -> Result<Part, StoreError> {
        let shared = self.0.shared.borrow().upgrade().ok_or(StoreError::Offline)?;
        if shared.array.is_offline() {
            return Err(StoreError::Offline); // there may be no disk left to lay a stripe over
        }
        let members = shared.members_for_writing();
        let taken = shared.contents.borrow_mut().segments.take(SegmentState::Table, members);
        Ok(Part { at: taken.ok_or(StoreError::OutOfSpace)?, members })
    }

    /// Blocks of a whole table as the disks give them, those that are wrong repaired where parity has them.
    async fn read_blocks(&self, table: TableId, blocks: Range<u32>) -> Result<Bytes, StoreError> {
        let (array, geometry) = (&self.0.array, self.0.array.geometry());
        let places: Vec<(Place, MemberSet)> = {
            let whole = self.0.whole.borrow();
            let layout = whole.get(&table).ok_or(StoreError::Offline)?;
            blocks.clone().filter_map(|block| layout.place_of(block, &geometry)).collect()
        };
        let mut data = AlignedBuf::zeroed(blocks.len() * BLOCK_SIZE);
        let mut done = 0;
        while let Some((place, _)) = places.get(done) {
            let (segment, slot, row) = (place.segment(), place.slot(), place.row());
            let follows =
                |(n, (next, _)): &(u32, &(Place, MemberSet))| *next == Place::of_row(segment, slot, row + n);
            let count = (0u32..).zip(&places[done..]).take_while(follows).count();
            let target = &mut data[done * BLOCK_SIZE..(done + count) * BLOCK_SIZE];
            if let Ok(rows) = array.read_rows(segment, slot, row, count as u32).await {
                target.copy_from_slice(&rows);
            }
            for (offset, block) in target.chunks_mut(BLOCK_SIZE).enumerate() {
                let number = blocks.start + (done + offset) as u32;
                let is_good = |block: &[u8]| is_intact(table, number, block);
                if !is_good(block)
                    && let Some(good) = self.repaired(places[done + offset], is_good).await
                {
                    block.copy_from_slice(&good);
                }
            }
            done += count;
        }
        if array.is_offline() { Err(StoreError::Offline) } else { Ok(data.freeze()) }
    }

    /// A block that could not be read or was wrong, as parity gives it, written back; none when that is wrong, too.
    async fn repaired(
        &self,
        (place, members): (Place, MemberSet),
        is_good: impl Fn(&[u8]) -> bool,
    ) -> Option<Bytes> {
        let (array, segment, slot, row) = (&self.0.array, place.segment(), place.slot(), place.row());
        if mutant::is(Mutant::TableNotRepaired) {
            return None;
        }
        let rebuilt = match array.reconstruct_rows(segment, members, slot, row, 1).await {
            Ok(rebuilt) => rebuilt,
            // Another disk may have left after this one's column was rebuilt, both since it was looked at.
            Err(_) => array.read_rows(segment, slot, row, 1).await.ok()?,
        };
        if !is_good(&rebuilt) {
            return None;
        }
        if let Some(shared) = self.0.shared.borrow().upgrade() {
            add(&shared.statistics.rebuilt_blocks, 1);
        }
        array.note_read_error(slot);
        let block = rebuilt.freeze();
        array.repair_rows(segment, slot, row, block.clone()).await;
        Some(block)
    }
}

impl TableStorage for PoolTables {
    fn read(
        &self,
        table: TableId,
        first: u32,
        count: u32,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + 'static {
        let this = self.clone();
        async move { this.read_blocks(table, first..first + count).await }
    }

    fn append(
        &self,
        table: TableId,
        blocks: Bytes,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let this = self.clone();
        {
            let mut begun = this.0.begun.borrow_mut();
            let pieces =
                (0..blocks.len() / BLOCK_SIZE).map(|n| blocks.slice(n * BLOCK_SIZE..(n + 1) * BLOCK_SIZE));
            begun.entry(table).or_default().pending.extend(pieces);
        }
        async move { this.write(table, false).await }
    }

    fn abandon(&self, table: TableId) {
        let Some(begun) = self.0.begun.borrow_mut().remove(&table) else { return };
        let Some(shared) = self.0.shared.borrow().upgrade() else { return };
        let mut contents = shared.contents.borrow_mut();
        begun.layout.parts.iter().for_each(|part| contents.segments.release(part.at.segment));
    }

    fn finish(&self, table: TableId) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let this = self.clone();
        async move {
            this.write(table, true).await?;
            let begun = this.0.begun.borrow_mut().remove(&table).unwrap_or_default();
            this.0.whole.borrow_mut().insert(table, begun.layout);
            Ok(())
        }
    }
}

/// First byte of a record.
pub(super) const TAG_TABLE_PLACE: u8 = 8;
const FORMAT: u8 = 1;
/// Blocks of a stripe, about.
const STRIPE_BLOCKS: u32 = 128;
