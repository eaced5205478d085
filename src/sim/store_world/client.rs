//! Hosts: they write, read and unmap as they like, and hold every answer against the oracle.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;

use super::oracle::{Extent, Oracle, VolumeState};
use super::plan::Theme;
use crate::array::MemberSet;
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::sim::random::Random;
use crate::store::Store;
use crate::store::interface::{BlockStore, BlockWrite, StoreError};

/// What the clients of a run share.
pub(super) struct Site {
    pub(super) theme: Theme,
    /// Blocks of each lasting volume.
    pub(super) blocks: u64,
    /// Distance of the oracle's consecutive blocks in the volume.
    stride: u64,
    pub(super) oracle: RefCell<Oracle>,
    /// The first thing that went wrong.
    pub(super) problem: RefCell<Option<String>>,
    /// Blocks of writes that have no answer yet.
    pub(super) pending_blocks: Cell<u64>,
    /// Whether the file system under the disks is, or was in this life, full.
    pub(super) starved: Cell<bool>,
    /// Members that lack something acknowledged, or that the pool was opened without: they must never
    /// be used again.
    pub(super) expelled: Cell<MemberSet>,
    pub(super) refusals: Cell<u64>,
    pub(super) medium_errors: Cell<u64>,
    pub(super) drops: Cell<u64>,
    pub(super) snapshots: Cell<u64>,
    pub(super) snapshot_drops: Cell<u64>,
    pub(super) snapshot_reads: Cell<u64>,
    pub(super) late_writes: Cell<u64>,
    pub(super) clones: Cell<u64>,
    pub(super) drops_refused: Cell<u64>,
    pub(super) rollbacks: Cell<u64>,
    pub(super) rollbacks_ended: Cell<u64>,
    pub(super) put_backs_refused: Cell<u64>,
}

impl Site {
    pub(super) fn new(theme: Theme, blocks: u64, stride: u64) -> Rc<Self> {
        let (oracle, problem, pending_blocks, starved, refusals, medium_errors, drops) = Default::default();
        let (snapshots, snapshot_drops, snapshot_reads, late_writes, clones, drops_refused) =
            Default::default();
        let (rollbacks, rollbacks_ended, put_backs_refused) = Default::default();
        let expelled = Cell::new(MemberSet::EMPTY);
        let site = Self {
            theme,
            blocks,
            stride,
            oracle,
            problem,
            pending_blocks,
            starved,
            expelled,
            refusals,
            medium_errors,
            drops,
            snapshots,
            snapshot_drops,
            snapshot_reads,
            late_writes,
            clones,
            drops_refused,
            rollbacks,
            rollbacks_ended,
            put_backs_refused,
        };
        Rc::new(site)
    }

    /// Where a block of the oracle lies in its volume.
    pub(super) fn block_address(&self, address: u64) -> BlockAddress {
        BlockAddress(address * self.stride)
    }

    /// Whether the oracle's consecutive blocks are the volume's.
    pub(super) fn is_dense(&self) -> bool {
        self.stride == 1
    }

    /// Whether hosts may meet this error in this run.
    pub(super) fn tolerates(&self, error: &StoreError) -> bool {
        match error {
            StoreError::Offline => {
                matches!(self.theme, Theme::TwoFaults | Theme::AllDisksGone | Theme::Healing)
            }
            StoreError::Medium { .. } => self.theme == Theme::TwoFaults,
            _ => false,
        }
    }
}

/// One host.
pub(super) struct Client {
    pub(super) site: Rc<Site>,
    pub(super) store: Store,
    pub(super) random: Random,
    pub(super) epoch: u32,
    pub(super) keeps_snapshots: bool,
    pub(super) rolls_back: bool,
}

/// Why a client stops early.
pub(super) enum End {
    /// The pool does not serve any more, as it may in this run.
    Offline,
    Problem(String),
}

impl Client {
    /// Does a random share of work on the lasting volumes.
    pub(super) async fn work(self) {
        let share = 20 + self.random.below(if self.site.theme == Theme::FullPool { 800 } else { 400 });
        for _ in 0..share {
            let extent = self.extent(self.random.below(super::VOLUMES) as u32, self.site.blocks);
            let done = match self.random.below(10) {
                _ if self.site.theme == Theme::WritesOnly => self.write(extent).await,
                0 => self.unmap(extent).await,
                1..=3 => self.read(extent).await,
                _ => self.write(extent).await,
            };
            if self.ends(done) {
                return;
            }
        }
    }

    /// Creates volumes, uses them, and drops them.
    pub(super) async fn keep_tenants(self) {
        if self.rolls_back {
            let done = self.go_on_with_rollbacks().await;
            if self.ends(done) {
                return;
            }
        }
        for _ in 0..1 + self.random.below(4) {
            let done = self.keep_one_tenant().await;
            if self.ends(done) {
                return;
            }
        }
    }

    async fn keep_one_tenant(&self) -> Result<(), End> {
        let blocks = (self.site.blocks / 8).max(1);
        let volume = self.site.oracle.borrow().unused_volume();
        if !(self.keeps_snapshots && self.random.coin() && self.create_clone(volume, blocks).await?) {
            self.site.oracle.borrow_mut().create(volume, blocks);
            let version = Version { epoch: self.epoch, sequence: 0 };
            let created = self.store.put_volume(VolumeId(volume), version, b"tenant").await;
            self.expect(created, "creation of a volume")?;
        }
        self.site.oracle.borrow_mut().set_state(volume, VolumeState::Exists);
        for _ in 0..self.random.below(30) {
            let extent = self.extent(volume, blocks);
            match self.random.below(16) {
                0 if self.rolls_back && self.site.oracle.borrow().rollback(volume).is_some() => {}
                0 if self.keeps_snapshots => self.take_snapshot(volume).await?,
                1 if self.rolls_back => self.roll_back(volume, blocks).await?,
                0..=3 => self.read(extent).await?,
                4 | 5 if self.keeps_snapshots => self.unmap(extent).await?,
                _ => self.write(extent).await?,
            }
        }
        if self.random.chance(700_000) {
            self.site.oracle.borrow_mut().set_state(volume, VolumeState::Dropping);
            let dropped = self.store.drop_volume(VolumeId(volume)).await;
            self.expect(dropped, "drop of a volume")?;
            self.site.oracle.borrow_mut().set_state(volume, VolumeState::Dropped);
            self.site.drops.set(self.site.drops.get() + 1);
            let read = self.store.read(VolumeId(volume), BlockAddress(0), 1).await;
            if read != Err(StoreError::NoSuchVolume(VolumeId(volume))) && !self.store.is_offline() {
                return Err(End::Problem(format!("volume {volume} was dropped and still reads: {read:?}")));
            }
        }
        Ok(())
    }

    /// Whether the client is to stop; a problem is noted.
    pub(super) fn ends(&self, done: Result<(), End>) -> bool {
        if let Err(End::Problem(problem)) = &done {
            self.site.problem.borrow_mut().get_or_insert_with(|| problem.clone());
        }
        done.is_err()
    }

    pub(super) fn extent(&self, volume: u32, blocks: u64) -> Extent {
        let address = self.random.below(blocks);
        let longest = if self.random.chance(50_000) { 64 } else { 6 };
        let count = (1 + self.random.below(longest)).min(blocks - address);
        Extent { volume, address, count }
    }

    pub(super) async fn write(&self, extent: Extent) -> Result<(), End> {
        let address = |n| self.site.block_address(extent.address + n);
        let (data, checksum) = (Bytes::new(), Crc32(0));
        let blank = |n| BlockWrite::Data { address: address(n), data: data.clone(), checksum };
        let blanks: Vec<BlockWrite> = (0..extent.count).map(blank).collect();
        self.store.prepare(VolumeId(extent.volume), &blanks).await;
        let takes_no_space = self.site.oracle.borrow_mut().is_mapped(extent);
        let sequence = self.site.oracle.borrow_mut().submit(extent, false);
        let block = |n: u64| {
            let mut data = AlignedBuf::zeroed(BLOCK_SIZE);
            Oracle::stamp(&mut data, extent.volume, extent.address + n, sequence);
            let data: Bytes = data.freeze();
            let address = self.site.block_address(extent.address + n);
            BlockWrite::Data { address, checksum: Crc32::of(&data), data }
        };
        let writes = (0..extent.count).map(block).collect();
        let pending = self.site.pending_blocks.get();
        let done = self.append(extent, sequence, writes).await;
        if done != Err(StoreError::OutOfSpace) {
            return self.expect(done, "write");
        }
        self.site.oracle.borrow_mut().refuse(extent, sequence);
        self.site.refusals.set(self.site.refusals.get() + 1);
        let usage = self.store.usage();
        let used = usage.used_bytes / BLOCK_SIZE as u64 + pending + extent.count;
        let is_full = used > usage.capacity_bytes / BLOCK_SIZE as u64;
        let excuse = is_full || self.site.starved.get();
        // Of blocks whose part of the map can't be read nobody knows.
        let is_unknown = self.site.theme == Theme::TwoFaults && self.store.map_usage().is_some();
        if takes_no_space && !is_unknown || !excuse {
            let problem = format!(
                "write of {extent:?} was refused: mapped already {takes_no_space}, {pending} pending, {usage:?}"
            );
            return Err(End::Problem(problem));
        }
        Ok(())
    }

    pub(super) async fn unmap(&self, extent: Extent) -> Result<(), End> {
        let sequence = self.site.oracle.borrow_mut().submit(extent, true);
        let count = (extent.count - 1) * self.site.stride + 1;
        let hole = BlockWrite::Hole { address: self.site.block_address(extent.address), count };
        let done = self.append(extent, sequence, vec![hole]).await;
        self.expect(done, "unmap")
    }

    pub(super) async fn append(
        &self,
        extent: Extent,
        sequence: u64,
        writes: Vec<BlockWrite>,
    ) -> Result<(), StoreError> {
        let version = Version { epoch: self.epoch, sequence };
        let array = self.store.array();
        let left = array.geometry().all_slots().difference(array.live());
        let pending = &self.site.pending_blocks;
        pending.set(pending.get() + extent.count);
        let done = self.store.append(VolumeId(extent.volume), version, writes).await;
        pending.set(pending.get() - extent.count);
        if done.is_ok() {
            // Those that had left before the write was submitted lack it.
            self.site.expelled.set(left.iter().fold(self.site.expelled.get(), MemberSet::with));
            self.site.oracle.borrow_mut().acknowledge(extent, sequence);
        }
        done
    }

    pub(super) async fn read(&self, extent: Extent) -> Result<(), End> {
        if self.site.stride == 1 {
            return self.read_consecutive(extent).await;
        }
        for address in extent.address..extent.address + extent.count {
            self.read_consecutive(Extent { address, count: 1, ..extent }).await?;
        }
        Ok(())
    }

    async fn read_consecutive(&self, extent: Extent) -> Result<(), End> {
        let floor = |n| self.site.oracle.borrow().floor(extent.volume, extent.address + n);
        let floors: Vec<u64> = (0..extent.count).map(floor).collect();
        let (volume, address) = (VolumeId(extent.volume), self.site.block_address(extent.address));
        let data = match self.store.read(volume, address, extent.count).await {
            Ok(data) => data.concat(),
            Err(error) => {
                if matches!(error, StoreError::Medium { .. }) && self.site.tolerates(&error) {
                    self.site.medium_errors.set(self.site.medium_errors.get() + 1);
                    return Ok(());
                }
                return self.expect(Err(error), "read");
            }
        };
        for ((n, block), floor) in (0..).zip(data.chunks(BLOCK_SIZE)).zip(floors) {
            let checked =
                self.site.oracle.borrow_mut().check(extent.volume, extent.address + n, floor, block);
            checked.map_err(End::Problem)?;
        }
        Ok(())
    }

    pub(super) fn expect(&self, done: Result<(), StoreError>, what: &str) -> Result<(), End> {
        match done {
            Ok(()) => Ok(()),
            Err(error) if self.site.tolerates(&error) => Err(End::Offline),
            Err(error) => Err(End::Problem(format!("{what}: {error}"))),
        }
    }
}
