//! Someone who rolls a volume back that nobody else uses, uses it meanwhile, and puts back what the rollback shows; and who
//! goes on with that in the next life.

use bytes::Bytes;

use super::client::{Client, End};
use super::oracle::Extent;
use super::past::{self, SnapshotState};
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::units::{BLOCK_SIZE, Version, VolumeId};
use crate::store::interface::{BlockStore, BlockWrite, SnapshotStore, StoreError};

impl Client {
    /// Rolls a volume back to one of its snapshots, and goes on with that for a while, or to its end.
    pub(super) async fn roll_back(&self, volume: u32, blocks: u64) -> Result<(), End> {
        let existing = self.site.oracle.borrow().past(volume).existing();
        if existing.is_empty() || self.site.oracle.borrow().rollback(volume).is_some() {
            return Ok(());
        }
        let to = existing[self.random.index(existing.len())];
        let is_certain = |address| self.site.oracle.borrow().past(volume).certain(to, address).is_some();
        if !(0..blocks).all(is_certain) {
            return Ok(());
        }
        let mark = self.site.oracle.borrow_mut().roll_back(volume, self.epoch, to);
        let record = Bytes::from(past::rollback_record(mark, to));
        let begun = self.store.append(VolumeId(volume), mark, vec![BlockWrite::Snapshot { record }]);
        self.expect(begun.await, "a rollback")?;
        {
            let mut oracle = self.site.oracle.borrow_mut();
            oracle.past_mut(volume).set_state(mark, SnapshotState::Exists);
            oracle.rolled_back(volume, mark);
        }
        self.site.rollbacks.set(self.site.rollbacks.get() + 1);
        self.use_rolled_back(volume, blocks).await?;
        if self.random.chance(600_000) { self.end_rollback(volume, blocks).await } else { Ok(()) }
    }

    /// Ends rollbacks that an earlier life has begun.
    pub(super) async fn go_on_with_rollbacks(&self) -> Result<(), End> {
        let rollbacks = self.site.oracle.borrow().rollbacks();
        for (volume, blocks) in rollbacks {
            self.use_rolled_back(volume, blocks).await?;
            if self.random.coin() {
                self.end_rollback(volume, blocks).await?;
            }
        }
        Ok(())
    }

    async fn use_rolled_back(&self, volume: u32, blocks: u64) -> Result<(), End> {
        for _ in 0..self.random.below(12) {
            let extent = self.extent(volume, blocks);
            match self.random.below(8) {
                0 | 1 => self.write(extent).await?,
                2 => self.unmap(extent).await?,
                3 => self.put_back(volume, self.random.below(blocks)).await?,
                4 => self.look_at_allocation(volume, blocks).await?,
                _ => self.read(extent).await?,
            }
        }
        Ok(())
    }

    /// Puts back what the two views differ in, and drops the mark.
    async fn end_rollback(&self, volume: u32, blocks: u64) -> Result<(), End> {
        let Some((mark, to)) = self.site.oracle.borrow().rollback(volume) else { return Ok(()) };
        for address in 0..blocks {
            let block = self.site.block_address(address);
            let changes = self.store.changed_between(VolumeId(volume), to, mark, block, 1).await;
            let changes = match changes {
                Ok(changes) => changes,
                Err(error) => return self.expect(Err(error), "what a rollback has to put back"),
            };
            if changes.runs.first().is_some_and(|run| run.address == block) {
                self.put_back(volume, address).await?;
            }
            // In the end that is so of all of them.
            let is_there = self.site.oracle.borrow().past(volume).exists(mark);
            if !is_there {
                return Err(End::Problem(format!("the mark {mark:?} of volume {volume} has gone")));
            }
        }
        if self.site.put_backs_refused.get() > 0 {
            return Ok(()); // the pool is full: it stays
        }
        let version = {
            let mut oracle = self.site.oracle.borrow_mut();
            oracle.past_mut(volume).set_state(mark, SnapshotState::Dropping);
            Version { epoch: self.epoch, sequence: oracle.next_sequence() }
        };
        let dropped = vec![BlockWrite::SnapshotDropped { snapshot: mark }];
        self.expect(self.store.append(VolumeId(volume), version, dropped).await, "the end of a rollback")?;
        self.site.oracle.borrow_mut().past_mut(volume).forget(mark);
        self.site.rollbacks_ended.set(self.site.rollbacks_ended.get() + 1);
        for address in 0..blocks {
            self.read(Extent { volume, address, count: 1 }).await?;
        }
        self.look_at_allocation(volume, blocks).await
    }

    /// Writes a block as it shows itself.
    async fn put_back(&self, volume: u32, address: u64) -> Result<(), End> {
        let (id, block) = (VolumeId(volume), self.site.block_address(address));
        let data = match self.store.read(id, block, 1).await {
            Ok(data) => data.concat(),
            Err(StoreError::Medium { .. }) if self.site.theme == super::plan::Theme::TwoFaults => {
                self.site.put_backs_refused.set(self.site.put_backs_refused.get() + 1);
                return Ok(());
            }
            Err(error) => return self.expect(Err(error), "a read of what is put back"),
        };
        let extent = Extent { volume, address, count: 1 };
        let stamp = self.site.oracle.borrow().seen(volume, address, &data).map_err(End::Problem)?;
        let sequence = self.site.oracle.borrow_mut().put_back(extent, stamp);
        let write = match stamp {
            0 => BlockWrite::Hole { address: block, count: 1 },
            _ => {
                let mut copy = AlignedBuf::zeroed(BLOCK_SIZE);
                copy.copy_from_slice(&data);
                let data: Bytes = copy.freeze();
                BlockWrite::Data { address: block, checksum: Crc32::of(&data), data }
            }
        };
        let done = self.append(extent, sequence, vec![write]).await;
        if done == Err(StoreError::OutOfSpace) {
            self.site.oracle.borrow_mut().refuse(extent, sequence);
            self.site.put_backs_refused.set(self.site.put_backs_refused.get() + 1);
            return Ok(());
        }
        self.expect(done, "what is put back")
    }

    /// What is allocated is what holds data.
    async fn look_at_allocation(&self, volume: u32, blocks: u64) -> Result<(), End> {
        for address in 0..blocks {
            let (id, block) = (VolumeId(volume), self.site.block_address(address));
            let runs = match self.store.allocation(id, block, 1, 1).await {
                Ok(runs) => runs,
                Err(error) => return self.expect(Err(error), "allocation"),
            };
            let data = match self.store.read(id, block, 1).await {
                Ok(data) => data.concat(),
                Err(error @ StoreError::Medium { .. }) if self.site.tolerates(&error) => continue,
                Err(error) => return self.expect(Err(error), "read"),
            };
            let is_data = data.iter().any(|byte| *byte != 0);
            if runs.len() != 1 || runs[0].mapped != is_data {
                return Err(End::Problem(format!(
                    "block {volume}/{address} holds data: {is_data}, and its allocation is {runs:?}"
                )));
            }
        }
        Ok(())
    }
}
