//! What the data thread needs of a pool besides blocks: volumes, disks, space, and a clean end.

use bytes::Bytes;

use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::daemon::engine::{DiskChange, PoolReport};
use crate::store::interface::{ChangeLog, SnapshotStore};
use crate::store::space::SpaceRule;

/// A store of blocks as the daemon runs it.
#[allow(async_fn_in_trait)] // single-threaded by design: no Send bound is wanted
pub trait Pool: SnapshotStore + ChangeLog + 'static {
    /// How it is.
    fn report(&self) -> PoolReport;
    /// How it is, for the lease and for the other node.
    fn health(&self) -> StoreHealth;
    /// Bytes of a volume's mapped blocks, before parity.
    fn used_bytes(&self, volume: VolumeId) -> u64;
    /// Bytes that are kept for a volume's snapshots alone, before parity.
    fn snapshot_bytes(&self, volume: VolumeId) -> u64;
    /// Gives the first sequence number for a volume's writes. A new volume is made known, as a clone of the
    /// snapshot `origin` if there is one; one that is not new and not known has lost its data, which is an error.
    async fn open_volume(
        &self,
        volume: VolumeId,
        is_new: bool,
        origin: Option<(VolumeId, Version)>,
    ) -> Result<u64, PoolError>;
    /// The newest version of anything in a volume.
    fn newest(&self, volume: VolumeId) -> Version;
    /// Makes a mirrored volume known, with this record if it is new; as a clone of the snapshot `origin` if there is
    /// one, which has to be whole here.
    async fn create_replica(
        &self,
        volume: VolumeId,
        record: &[u8],
        origin: Option<(VolumeId, Version)>,
    ) -> Result<(), PoolError>;
    /// The record of a volume.
    fn volume_record(&self, volume: VolumeId) -> Option<Bytes>;
    /// Replaces it durably.
    async fn save_volume_record(&self, volume: VolumeId, record: &[u8]) -> Result<(), PoolError>;
    /// Every replica of the volume has everything through this version.
    fn keep_holes_after(&self, volume: VolumeId, through: Version);
    /// What a volume takes at most, and what is kept for it.
    fn set_space_rule(&self, volume: VolumeId, rule: SpaceRule);
    /// Whether such rules bind a volume, as it is served here.
    fn bind_space(&self, volume: VolumeId, is_bound: bool);
    /// Frees everything of a volume that nothing uses any more. One that is not known has nothing.
    async fn delete_volume(&self, volume: VolumeId) -> Result<(), PoolError>;
    /// Blocks that were found damaged beyond parity since this was asked last.
    fn take_damaged(&self) -> Vec<(VolumeId, BlockAddress)>;
    /// Does something with the disks.
    async fn change_disks(&self, change: DiskChange) -> Result<(), PoolError>;
    /// Ends service so that the next start has nothing to recover.
    async fn close(&self) -> Result<(), PoolError>;
}

/// Why a pool could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// No disk has this identity or path.
    #[error("the pool has no disk {0}; `gemel disk list` shows them")]
    NoSuchDisk(String),
    /// The pool is offline or failed.
    #[error("{0}")]
    Failed(String),
}
