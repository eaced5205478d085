//! A pool in memory, for tests of everything above the store and for measuring the protocol alone.
//! Nothing survives the process. A snapshot is a second table of the same blocks; its space is not counted.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::future::{Future, ready};

use bytes::Bytes;

use super::pool::{Pool, PoolError};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::daemon::engine::{DiskChange, PoolReport};
use crate::store::interface::{
    BlockRun, BlockStore, BlockWrite, ChangeLog, Changes, SnapshotEntry, SnapshotStore, StoreError,
};
use crate::store::space::SpaceRule;

/// Blocks by volume and address.
pub struct MemoryPool {
    volumes: RefCell<HashMap<VolumeId, Blocks>>,
    snapshots: RefCell<HashMap<VolumeId, Snapshots>>,
    capacity_blocks: u64,
    used_blocks: Cell<u64>,
    zeros: Bytes,
}

/// Blocks that hold data, by address.
type Blocks = BTreeMap<u64, Bytes>;
/// Record and blocks of each snapshot.
type Snapshots = BTreeMap<Version, (Bytes, Blocks)>;

impl MemoryPool {
    /// An empty pool of `capacity_bytes`.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        Self {
            volumes: RefCell::default(),
            snapshots: RefCell::default(),
            capacity_blocks: capacity_bytes / BLOCK_SIZE as u64,
            used_blocks: Cell::new(0),
            zeros: crate::base::buffer::AlignedBuf::zeroed(BLOCK_SIZE).freeze(),
        }
    }

    fn write(&self, volume: VolumeId, version: Version, writes: Vec<BlockWrite>) -> Result<(), StoreError> {
        let mut volumes = self.volumes.borrow_mut();
        let blocks = volumes.get_mut(&volume).ok_or(StoreError::NoSuchVolume(volume))?;
        let is_new = |write: &&BlockWrite| match write {
            BlockWrite::Data { address, .. } => !blocks.contains_key(&address.0),
            _ => false,
        };
        let new = writes.iter().filter(is_new).count() as u64;
        if self.used_blocks.get() + new > self.capacity_blocks {
            return Err(StoreError::OutOfSpace);
        }
        let before = blocks.len();
        for write in writes {
            match write {
                // A copy: what arrives is a slice of a larger buffer that must not be kept for it.
                BlockWrite::Data { address, data, .. } => {
                    blocks.insert(address.0, crate::base::buffer::AlignedBuf::copy_of(&data).freeze());
                }
                BlockWrite::Hole { address, count } => {
                    let end = address.0.saturating_add(count);
                    let holes: Vec<_> = blocks.range(address.0..end).map(|(address, _)| *address).collect();
                    holes.iter().for_each(|address| drop(blocks.remove(address)));
                }
                BlockWrite::Snapshot { record } => {
                    let mut snapshots = self.snapshots.borrow_mut();
                    snapshots.entry(volume).or_default().insert(version, (record, blocks.clone()));
                }
                BlockWrite::SnapshotDropped { snapshot } => {
                    self.snapshots.borrow_mut().get_mut(&volume).map(|known| known.remove(&snapshot));
                }
            }
        }
        self.used_blocks.set(self.used_blocks.get() + blocks.len() as u64 - before as u64);
        Ok(())
    }

    fn read_of(&self, blocks: &Blocks, address: BlockAddress, count: u64) -> Vec<Bytes> {
        let block = |address| blocks.get(&address).unwrap_or(&self.zeros).clone();
        (address.0..address.0 + count).map(block).collect()
    }

    /// What `look` makes of the blocks of a snapshot.
    fn with_snapshot<T>(
        &self,
        volume: VolumeId,
        snapshot: Version,
        look: impl FnOnce(&Blocks) -> T,
    ) -> Result<T, StoreError> {
        let snapshots = self.snapshots.borrow();
        let found = snapshots.get(&volume).and_then(|snapshots| snapshots.get(&snapshot));
        found.map(|(_, blocks)| look(blocks)).ok_or(StoreError::NoSuchSnapshot { volume, snapshot })
    }
}

/// Runs of mapped and unmapped blocks.
fn runs_of(blocks: &Blocks, address: BlockAddress, count: u64, limit: usize) -> Vec<BlockRun> {
    let end = address.0 + count;
    let mut runs = Vec::new();
    let mut at = address.0;
    while at < end && runs.len() < limit {
        let next = blocks.range(at..end).next().map_or(end, |(address, _)| *address);
        let (mapped, until) = if next > at {
            (false, next)
        } else {
            let gap = blocks.range(at..end).zip(at..).find(|((address, _), expected)| *address != expected);
            (true, gap.map_or_else(|| at + blocks.range(at..end).count() as u64, |(_, expected)| expected))
        };
        runs.push(BlockRun { address: BlockAddress(at), count: until - at, mapped });
        at = until;
    }
    runs
}

impl BlockStore for MemoryPool {
    fn start_append(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        self.write(volume, version, writes).map(|()| ready(Ok(())))
    }

    async fn prepare(&self, _: VolumeId, _: &[BlockWrite]) {}

    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        let volumes = self.volumes.borrow();
        let blocks = volumes.get(&volume).ok_or(StoreError::NoSuchVolume(volume))?;
        Ok(self.read_of(blocks, address, count))
    }

    async fn allocation(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        let volumes = self.volumes.borrow();
        let blocks = volumes.get(&volume).ok_or(StoreError::NoSuchVolume(volume))?;
        Ok(runs_of(blocks, address, count, limit))
    }

    async fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Keeps no versions: a pool in memory is not mirrored (`start` refuses it in a pair).
impl ChangeLog for MemoryPool {
    async fn changed_since(
        &self,
        volume: VolumeId,
        _: Version,
        _: BlockAddress,
        _: usize,
    ) -> Result<Changes, StoreError> {
        Err(StoreError::NoSuchVolume(volume))
    }
}

impl SnapshotStore for MemoryPool {
    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotEntry>, StoreError> {
        if !self.volumes.borrow().contains_key(&volume) {
            return Err(StoreError::NoSuchVolume(volume));
        }
        let snapshots = self.snapshots.borrow();
        let all = snapshots.get(&volume).into_iter().flatten();
        Ok(all
            .map(|(version, (record, _))| SnapshotEntry { version: *version, record: record.clone() })
            .collect())
    }

    async fn read_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.with_snapshot(volume, at, |blocks| self.read_of(blocks, address, count))
    }

    async fn allocation_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        self.with_snapshot(volume, at, |blocks| runs_of(blocks, address, count, limit))
    }

    async fn changed_between(
        &self,
        volume: VolumeId,
        _: Version,
        _: Version,
        _: BlockAddress,
        _: usize,
    ) -> Result<Changes, StoreError> {
        Err(StoreError::NoSuchVolume(volume))
    }

    fn start_append_at(
        &self,
        volume: VolumeId,
        _: Version,
        _: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        Err::<std::future::Ready<_>, _>(StoreError::NoSuchVolume(volume))
    }
}

impl Pool for MemoryPool {
    fn report(&self) -> PoolReport {
        let block = BLOCK_SIZE as u64;
        PoolReport {
            capacity_bytes: self.capacity_blocks * block,
            used_bytes: self.used_blocks.get() * block,
            ..PoolReport::default()
        }
    }

    fn health(&self) -> StoreHealth {
        StoreHealth::Well
    }

    fn used_bytes(&self, volume: VolumeId) -> u64 {
        self.volumes.borrow().get(&volume).map_or(0, |blocks| blocks.len() as u64 * BLOCK_SIZE as u64)
    }

    fn snapshot_bytes(&self, _volume: VolumeId) -> u64 {
        // Blocks are shared with what was written before; what is kept for snapshots alone is not counted.
        0
    }

    async fn open_volume(
        &self,
        volume: VolumeId,
        _is_new: bool,
        origin: Option<(VolumeId, Version)>,
    ) -> Result<u64, PoolError> {
        // After a restart every volume begins anew: that is what the pool is for.
        let begin = |(origin, snapshot)| self.with_snapshot(origin, snapshot, Blocks::clone).ok();
        let blocks = origin.and_then(begin).unwrap_or_default();
        if let Entry::Vacant(place) = self.volumes.borrow_mut().entry(volume) {
            self.used_blocks.set(self.used_blocks.get() + blocks.len() as u64);
            place.insert(blocks);
        }
        Ok(1)
    }

    fn newest(&self, _: VolumeId) -> Version {
        Version::default()
    }

    async fn create_replica(
        &self,
        _: VolumeId,
        _: &[u8],
        _: Option<(VolumeId, Version)>,
    ) -> Result<(), PoolError> {
        Err(not_mirrored())
    }

    fn volume_record(&self, _: VolumeId) -> Option<Bytes> {
        None
    }

    async fn save_volume_record(&self, _: VolumeId, _: &[u8]) -> Result<(), PoolError> {
        Err(not_mirrored())
    }

    fn keep_holes_after(&self, _: VolumeId, _: Version) {}

    fn set_space_rule(&self, _: VolumeId, _: SpaceRule) {}

    fn bind_space(&self, _: VolumeId, _: bool) {}

    async fn delete_volume(&self, volume: VolumeId) -> Result<(), PoolError> {
        self.snapshots.borrow_mut().remove(&volume);
        let freed = self.volumes.borrow_mut().remove(&volume).map_or(0, |blocks| blocks.len() as u64);
        self.used_blocks.set(self.used_blocks.get() - freed);
        Ok(())
    }

    fn take_damaged(&self) -> Vec<(VolumeId, BlockAddress)> {
        Vec::new()
    }

    async fn change_disks(&self, _: DiskChange) -> Result<(), PoolError> {
        Err(PoolError::Failed("a pool in memory has no disks".to_owned()))
    }

    async fn close(&self) -> Result<(), PoolError> {
        Ok(())
    }
}

fn not_mirrored() -> PoolError {
    PoolError::Failed("a pool in memory is not mirrored".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::buffer::AlignedBuf;
    use crate::base::checksum::Crc32;

    fn data(address: u64, byte: u8) -> BlockWrite {
        let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
        block.fill(byte);
        let data = block.freeze();
        BlockWrite::Data { address: BlockAddress(address), checksum: Crc32::of(&data), data }
    }

    #[tokio::test]
    async fn holds_blocks_within_its_capacity() {
        let pool = MemoryPool::new(3 * BLOCK_SIZE as u64);
        let (volume, version) = (VolumeId(1), Version::default());
        pool.open_volume(volume, true, None).await.unwrap();
        pool.append(volume, version, vec![data(1, 1), data(2, 2), data(5, 5)]).await.unwrap();
        assert_eq!(pool.append(volume, version, vec![data(9, 9)]).await, Err(StoreError::OutOfSpace));
        pool.append(volume, version, vec![data(2, 7)]).await.unwrap();
        let hole = BlockWrite::Hole { address: BlockAddress(5), count: 1 };
        pool.append(volume, version, vec![hole]).await.unwrap();
        let read = pool.read(volume, BlockAddress(0), 6).await.unwrap();
        assert_eq!(read.iter().map(|block| block[0]).collect::<Vec<_>>(), [0, 1, 7, 0, 0, 0]);
        let runs = pool.allocation(volume, BlockAddress(0), 6, 10).await.unwrap();
        let runs: Vec<_> = runs.iter().map(|run| (run.address.0, run.count, run.mapped)).collect();
        assert_eq!(runs, [(0, 1, false), (1, 2, true), (3, 3, false)]);
        assert_eq!(pool.used_bytes(volume), 2 * BLOCK_SIZE as u64);
        let taken = Version { epoch: 1, sequence: 9 };
        let snapshot = BlockWrite::Snapshot { record: Bytes::from_static(b"monday") };
        pool.append(volume, taken, vec![snapshot]).await.unwrap();
        pool.append(volume, version, vec![data(2, 9)]).await.unwrap();
        assert_eq!(pool.read(volume, BlockAddress(2), 1).await.unwrap()[0][0], 9);
        assert_eq!(pool.read_at(volume, taken, BlockAddress(2), 1).await.unwrap()[0][0], 7);
        assert_eq!(pool.snapshots(volume).unwrap()[0].version, taken);
        let dropped = BlockWrite::SnapshotDropped { snapshot: taken };
        pool.append(volume, version, vec![dropped]).await.unwrap();
        let gone = StoreError::NoSuchSnapshot { volume, snapshot: taken };
        assert_eq!(pool.read_at(volume, taken, BlockAddress(2), 1).await, Err(gone));
        pool.delete_volume(volume).await.unwrap();
        assert_eq!(pool.report().used_bytes, 0);
    }
}
