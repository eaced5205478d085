//! Destroys an acknowledged batch beyond what parity can give back: the pool must say so, and never
//! open as if the batch had not been.

use std::rc::Rc;
use std::time::Duration;

use super::scrub::read_header;
use super::{PoolUnderTest, executor_sleep};
use crate::array::superblock::{COPY_OFFSETS, SUPERBLOCK_BYTES, Superblock};
use crate::array::{Geometry, SegmentIndex};
use crate::base::units::BLOCK_SIZE;
use crate::sim::executor::{Executor, World};
use crate::store::Store;
use crate::store::batch::{BatchHeader, BatchKind};
use crate::store::root::Root;

impl PoolUnderTest {
    /// Waits until nothing is written any more, cuts the power, and destroys one of the newest batches
    /// that say anything: it was acknowledged. Returns whether that could be done.
    pub(super) async fn destroy_a_batch(
        &self,
        executor: &Executor,
        world: &Rc<World>,
        store: &Store,
    ) -> Result<bool, String> {
        self.phase.set("waiting for silence");
        let written = || self.media().iter().map(|medium| medium.counters().writes).sum::<u64>();
        let mut before = None;
        while before.replace(written()) != Some(written()) {
            executor_sleep(executor, Duration::from_millis(100)).await;
        }
        let geometry = store.array().geometry();
        self.die(world, store)?;
        let Some(target) = self.new_batch(&geometry) else { return Ok(false) };
        let offset = geometry.offset(target.place.segment, target.first_row);
        // Without the header and the parity nothing gives the header back. (Without a column of
        // padding, which is zeros, parity still does.)
        let damaged = [Some(target.layout().data_slot(0)), target.layout().parity_slot()];
        for slot in damaged.into_iter().flatten() {
            self.media()[slot.index()].make_unreadable(offset..offset + BLOCK_SIZE as u64);
        }
        self.phase.set("opening the damaged pool");
        let world = executor.world("node");
        let opened = self.open_once(self.disks(&world), &world, u32::MAX).await;
        let outcome = match opened {
            Err(refused) if refused.is_lost_batch() => Ok(true),
            Err(other) => Err(format!("batch {} was destroyed, and the pool said: {other}", target.number)),
            Ok(_) => Err(format!(
                "batch {} of incarnation {} over {:?} was acknowledged, destroyed and silently dropped",
                target.number, target.incarnation, target.members
            )),
        };
        self.cut_power(&world);
        self.note(|report| report.lost_batches_refused += 1);
        outcome
    }

    /// One of the newest batches with statements in them that replay needs.
    fn new_batch(&self, geometry: &Geometry) -> Option<BatchHeader> {
        let root = self.newest_root()?;
        let latest = root.joints.last().or(root.replay.as_ref())?;
        let rows = (0..geometry.segment_count)
            .flat_map(|segment| (0..geometry.rows).map(move |row| (SegmentIndex(segment), row)));
        let headers = rows.flat_map(|(segment, row)| {
            self.media()
                .into_iter()
                .filter_map(move |medium| read_header(&medium, geometry.offset(segment, row)))
        });
        let relevant = headers.filter(|header| {
            header.kind == BatchKind::Log
                && header.incarnation == latest.incarnation
                && !header.entries.is_empty()
        });
        let known = latest.last_number.max(root.replay.as_ref()?.last_number);
        let mut newest: Vec<_> = relevant.filter(|header| header.number > known).collect();
        newest.sort_by_key(|header| std::cmp::Reverse(header.number));
        newest.truncate(4);
        (!newest.is_empty()).then(|| newest.swap_remove(self.endings.index(newest.len())))
    }

    fn newest_root(&self) -> Option<Root> {
        let copies = self.media().into_iter().flat_map(|medium| {
            let copy = move |offset: u64| medium.peek(offset..offset + SUPERBLOCK_BYTES as u64);
            COPY_OFFSETS.into_iter().filter_map(move |offset| Superblock::decode(&copy(offset)).ok())
        });
        Root::decode(&copies.max_by_key(|superblock| superblock.record.generation)?.record.root)
    }
}
