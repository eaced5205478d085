//! A pool in memory, for tests of everything above the store and for measuring the protocol alone.
//! Nothing survives the process.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::{Future, ready};

use bytes::Bytes;

use super::pool::{Pool, PoolError};
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::daemon::engine::{DiskChange, PoolReport};
use crate::store::interface::{BlockRun, BlockStore, BlockWrite, ChangeLog, Changes, StoreError};

/// Blocks by volume and address.
pub struct MemoryPool {
    volumes: RefCell<HashMap<VolumeId, BTreeMap<u64, Bytes>>>,
    capacity_blocks: u64,
    used_blocks: Cell<u64>,
    zeros: Bytes,
}

impl MemoryPool {
    /// An empty pool of `capacity_bytes`.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        Self {
            volumes: RefCell::default(),
            capacity_blocks: capacity_bytes / BLOCK_SIZE as u64,
            used_blocks: Cell::new(0),
            zeros: crate::base::buffer::AlignedBuf::zeroed(BLOCK_SIZE).freeze(),
        }
    }

    fn write(&self, volume: VolumeId, writes: Vec<BlockWrite>) -> Result<(), StoreError> {
        let mut volumes = self.volumes.borrow_mut();
        let blocks = volumes.get_mut(&volume).ok_or(StoreError::NoSuchVolume(volume))?;
        let is_new = |write: &&BlockWrite| match write {
            BlockWrite::Data { address, .. } => !blocks.contains_key(&address.0),
            BlockWrite::Hole { .. } => false,
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
            }
        }
        self.used_blocks.set(self.used_blocks.get() + blocks.len() as u64 - before as u64);
        Ok(())
    }
}

impl BlockStore for MemoryPool {
    fn start_append(
        &self,
        volume: VolumeId,
        _version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        self.write(volume, writes).map(|()| ready(Ok(())))
    }

    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        let volumes = self.volumes.borrow();
        let blocks = volumes.get(&volume).ok_or(StoreError::NoSuchVolume(volume))?;
        let block = |address| blocks.get(&address).unwrap_or(&self.zeros).clone();
        Ok((address.0..address.0 + count).map(block).collect())
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
        let end = address.0 + count;
        let mut runs = Vec::new();
        let mut at = address.0;
        while at < end && runs.len() < limit {
            let next = blocks.range(at..end).next().map_or(end, |(address, _)| *address);
            let (mapped, until) = if next > at {
                (false, next)
            } else {
                let gap =
                    blocks.range(at..end).zip(at..).find(|((address, _), expected)| *address != expected);
                (
                    true,
                    gap.map_or_else(|| at + blocks.range(at..end).count() as u64, |(_, expected)| expected),
                )
            };
            runs.push(BlockRun { address: BlockAddress(at), count: until - at, mapped });
            at = until;
        }
        Ok(runs)
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

    async fn open_volume(&self, volume: VolumeId, _is_new: bool) -> Result<u64, PoolError> {
        // After a restart every volume begins anew: that is what the pool is for.
        self.volumes.borrow_mut().entry(volume).or_default();
        Ok(1)
    }

    fn newest(&self, _: VolumeId) -> Version {
        Version::default()
    }

    async fn create_replica(&self, _: VolumeId, _: &[u8]) -> Result<(), PoolError> {
        Err(not_mirrored())
    }

    fn volume_record(&self, _: VolumeId) -> Option<Bytes> {
        None
    }

    async fn save_volume_record(&self, _: VolumeId, _: &[u8]) -> Result<(), PoolError> {
        Err(not_mirrored())
    }

    fn keep_holes_after(&self, _: VolumeId, _: Version) {}

    async fn delete_volume(&self, volume: VolumeId) -> Result<(), PoolError> {
        let freed = self.volumes.borrow_mut().remove(&volume).map_or(0, |blocks| blocks.len() as u64);
        self.used_blocks.set(self.used_blocks.get() - freed);
        Ok(())
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
        pool.open_volume(volume, true).await.unwrap();
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
        pool.delete_volume(volume).await.unwrap();
        assert_eq!(pool.report().used_bytes, 0);
    }
}
