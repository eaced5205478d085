//! Someone who takes snapshots, reads them, puts history into them late, clones them, and drops them.

use bytes::Bytes;

use super::client::{Client, End};
use super::oracle::{Extent, Oracle, VolumeState};
use super::past::{self, SnapshotState};
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::units::{BLOCK_SIZE, Version, VolumeId};
use crate::store::interface::{BlockStore, BlockWrite, SnapshotStore, StoreError};

impl Client {
    /// Does a random share of this on the lasting volumes.
    pub(super) async fn keep_snapshots(self) {
        for _ in 0..10 + self.random.below(60) {
            let volume = self.random.below(super::VOLUMES) as u32;
            let existing = self.site.oracle.borrow().past(volume).existing();
            let pick = || existing[self.random.index(existing.len())];
            let is_many = self.site.oracle.borrow().past(volume).count() >= MOST_SNAPSHOTS;
            let done = match self.random.below(10) {
                _ if existing.is_empty() && is_many => return,
                0..=2 if !is_many => self.take_snapshot(volume).await,
                _ if existing.is_empty() => self.take_snapshot(volume).await,
                0..=4 => self.drop_snapshot(volume, pick()).await,
                5..=7 => self.read_snapshot(volume, pick(), self.site.blocks).await,
                _ => self.write_late(volume, pick()).await,
            };
            if self.ends(done) {
                return;
            }
        }
    }

    pub(super) async fn take_snapshot(&self, volume: u32) -> Result<(), End> {
        let snapshot = self.site.oracle.borrow_mut().take(volume, self.epoch);
        let record = Bytes::from(past::record(snapshot));
        let taken = self.store.append(VolumeId(volume), snapshot, vec![BlockWrite::Snapshot { record }]);
        self.expect(taken.await, "taking a snapshot")?;
        self.site.oracle.borrow_mut().past_mut(volume).set_state(snapshot, SnapshotState::Exists);
        self.site.snapshots.set(self.site.snapshots.get() + 1);
        Ok(())
    }

    async fn drop_snapshot(&self, volume: u32, snapshot: Version) -> Result<(), End> {
        let clones = self.site.oracle.borrow().clones_from(volume, snapshot);
        let mut own = clones.iter().filter(|(at, _)| *at == snapshot).map(|(_, state)| *state).peekable();
        if own.peek().is_some() {
            let is_certain = own.any(|state| state == VolumeState::Exists);
            return if is_certain { self.fail_to_drop(volume, snapshot).await } else { Ok(()) };
        }
        let version = {
            let mut oracle = self.site.oracle.borrow_mut();
            oracle.past_mut(volume).set_state(snapshot, SnapshotState::Dropping);
            Version { epoch: self.epoch, sequence: oracle.next_sequence() }
        };
        let dropped = vec![BlockWrite::SnapshotDropped { snapshot }];
        self.expect(self.store.append(VolumeId(volume), version, dropped).await, "drop of a snapshot")?;
        self.site.oracle.borrow_mut().past_mut(volume).forget(snapshot);
        self.site.snapshot_drops.set(self.site.snapshot_drops.get() + 1);
        let (volume, address) = (VolumeId(volume), self.site.block_address(0));
        let read = self.store.read_at(volume, snapshot, address, 1).await;
        if read != Err(StoreError::NoSuchSnapshot { volume, snapshot }) && !self.store.is_offline() {
            return Err(End::Problem(format!("{snapshot:?} was dropped and still reads: {read:?}")));
        }
        Ok(())
    }

    /// A snapshot that has a clone can't be dropped.
    async fn fail_to_drop(&self, volume: u32, snapshot: Version) -> Result<(), End> {
        let sequence = self.site.oracle.borrow_mut().next_sequence();
        let version = Version { epoch: self.epoch, sequence };
        let dropped = vec![BlockWrite::SnapshotDropped { snapshot }];
        let done = self.store.append(VolumeId(volume), version, dropped).await;
        match (done, self.store.drop_volume(VolumeId(volume)).await) {
            (Err(StoreError::HasClones { .. }), Err(StoreError::HasClones { .. })) => {
                self.site.drops_refused.set(self.site.drops_refused.get() + 1);
                Ok(())
            }
            _ if self.store.is_offline() => Err(End::Offline),
            other => Err(End::Problem(format!(
                "{snapshot:?} of volume {volume} has a clone, and a drop said {other:?}"
            ))),
        }
    }

    /// Makes a volume of a snapshot of a lasting one, if there is one that may be cloned.
    pub(super) async fn create_clone(&self, clone: u32, blocks: u64) -> Result<bool, End> {
        let volume = self.random.below(super::VOLUMES) as u32;
        let existing = self.site.oracle.borrow().past(volume).existing();
        if existing.is_empty() {
            return Ok(false);
        }
        let snapshot = existing[self.random.index(existing.len())];
        if !self.site.oracle.borrow_mut().create_clone(clone, blocks, (volume, snapshot)) {
            return Ok(false);
        }
        let version = Version { epoch: self.epoch, sequence: 0 };
        let created = self.store.clone_volume(VolumeId(clone), version, b"clone", VolumeId(volume), snapshot);
        self.expect(created.await, "creation of a clone")?;
        self.site.clones.set(self.site.clones.get() + 1);
        Ok(true)
    }

    async fn read_snapshot(&self, volume: u32, snapshot: Version, blocks: u64) -> Result<(), End> {
        let extent = self.extent(volume, blocks);
        let seen = self.site.read_snapshot(&self.store, snapshot, extent).await;
        self.site.snapshot_reads.set(self.site.snapshot_reads.get() + 1);
        match seen {
            Ok(_) => Ok(()),
            Err(Ok(StoreError::NoSuchSnapshot { .. }))
                if !self.site.oracle.borrow().past(volume).exists(snapshot) =>
            {
                Ok(())
            }
            Err(Ok(error @ StoreError::Medium { .. })) if self.site.tolerates(&error) => Ok(()),
            Err(Ok(error)) => self.expect(Err(error), "read of a snapshot"),
            Err(Err(problem)) => Err(End::Problem(problem)),
        }
    }

    /// Puts something into the past of a block that certainly holds newer data: as a replica gets what it
    /// missed.
    async fn write_late(&self, volume: u32, snapshot: Version) -> Result<(), End> {
        let address = self.random.below(self.site.blocks);
        let may_be = self.site.oracle.borrow().may_write_late(volume, address, snapshot);
        if !may_be {
            return Ok(());
        }
        let is_hole = self.random.chance(200_000);
        let stamp = if is_hole { 0 } else { self.site.oracle.borrow_mut().next_sequence() };
        self.site.oracle.borrow_mut().past_mut(volume).begin_late(snapshot, address, stamp);
        let block = self.site.block_address(address);
        let write = if is_hole {
            BlockWrite::Hole { address: block, count: 1 }
        } else {
            let mut data = AlignedBuf::zeroed(BLOCK_SIZE);
            Oracle::stamp(&mut data, volume, address, stamp);
            let data: Bytes = data.freeze();
            BlockWrite::Data { address: block, checksum: Crc32::of(&data), data }
        };
        let pending = &self.site.pending_blocks;
        pending.set(pending.get() + 1);
        let done = match self.store.start_append_at(VolumeId(volume), snapshot, vec![write]) {
            Ok(done) => done.await,
            Err(error) => Err(error),
        };
        pending.set(pending.get() - 1);
        let is_refused = done == Err(StoreError::OutOfSpace);
        if done.is_ok() || is_refused {
            self.site.oracle.borrow_mut().past_mut(volume).end_late(address, stamp, done.is_ok());
        }
        if is_refused {
            return Ok(());
        }
        self.site.late_writes.set(self.site.late_writes.get() + 1);
        self.expect(done, "late write")
    }
}

impl super::client::Site {
    /// Reads blocks of a snapshot and holds them against the oracle: their stamps. Else the store's error, or
    /// what is wrong.
    pub(super) async fn read_snapshot(
        &self,
        store: &crate::store::Store,
        snapshot: Version,
        extent: Extent,
    ) -> Result<Vec<u64>, Result<StoreError, String>> {
        let volume = VolumeId(extent.volume);
        let mut stamps = Vec::new();
        let step = if self.is_dense() { extent.count } else { 1 };
        for first in (extent.address..extent.address + extent.count).step_by(step as usize) {
            let age = |address| self.oracle.borrow().past(extent.volume).age(snapshot, address);
            let ages: Vec<usize> = (first..first + step).map(age).collect();
            let read = store.read_at(volume, snapshot, self.block_address(first), step).await;
            let data = read.map_err(Ok)?.concat();
            for ((address, block), age) in (first..).zip(data.chunks(BLOCK_SIZE)).zip(ages) {
                let oracle = self.oracle.borrow();
                let stamp = oracle.seen(extent.volume, address, block).map_err(Err)?;
                oracle.past(extent.volume).check(snapshot, address, age, stamp).map_err(Err)?;
                stamps.push(stamp);
            }
        }
        Ok(stamps)
    }
}

/// Most snapshots of a volume at a time.
const MOST_SNAPSHOTS: usize = 5;
