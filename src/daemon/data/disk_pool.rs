//! The pool on real disks: finding and opening them, formatting, and the store above them as the
//! daemon's [`Pool`].

use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::driver::{DrivenDisk, Kick};
use super::pool::{Pool, PoolError};
use crate::array::superblock::{LogKey, Uuid};
use crate::array::{Array, DiskState, DiskStatus, FormatOptions};
use crate::base::buffer::BufferPool;
use crate::base::event::{Event, EventSink, Severity};
use crate::base::runtime::RuntimeHandle;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::daemon::config::PoolConfig;
use crate::daemon::engine::{DiskReport, DiskState as ReportedState, PoolReport};
use crate::daemon::event_log::EventReporter;
use crate::disk::open::OpenRefusal;
use crate::disk::{Disk, Engine, OpenOptions};
use crate::store::interface::{
    BlockRun, BlockStore, BlockWrite, ChangeLog, Changes, SnapshotEntry, SnapshotStore, StoreError,
};
use crate::store::{Store, StoreOptions};

/// A store on disks.
pub struct DiskPool {
    store: Store,
    /// Sizes of the disks by path.
    sizes: Vec<(String, u64)>,
}

impl DiskPool {
    /// Opens the pool on the disks at `paths` and recovers it. Disks that are not there are reported
    /// and done without, as far as parity allows.
    pub async fn open(
        engine: &Engine,
        kick: &Kick,
        config: &PoolConfig,
        has_peer: bool,
        runtime: RuntimeHandle,
        buffers: BufferPool,
        events: &EventReporter,
    ) -> Result<Self, String> {
        let paths = &config.disks;
        let mut disks: Vec<Rc<dyn Disk>> = Vec::new();
        for path in paths {
            match crate::disk::open(engine, path, &OpenOptions::default()) {
                Ok(disk) => disks.push(Rc::new(DrivenDisk::new(disk, kick.clone()))),
                Err(error) if is_absent(&error.reason) => {
                    events.warning("disk-missing", format!("disk {error}"), &[]);
                }
                Err(error) => return Err(format!("disk {error}")),
            }
        }
        let sizes = disks.iter().map(|disk| (disk.properties().path.clone(), disk.properties().size_bytes));
        let sizes = sizes.collect();
        let sink = sink(events.clone());
        let (array, found) = Array::open(disks, runtime.clone(), buffers, sink.clone())
            .await
            .map_err(|error| with_hint(&error))?;
        for (path, reason) in found.unused {
            events.warning("disk-unused", format!("disk {path} is not used: {reason}"), &[]);
        }
        let mut options = StoreOptions { discard: config.discard, ..StoreOptions::default() };
        if has_peer {
            // Until somebody says through which version the peer has everything.
            options.forget_holes_through = Version::default();
        }
        let (store, report) = Store::open(array, runtime, options, sink)
            .await
            .map_err(|error| format!("the pool cannot be opened: {error}"))?;
        tracing::info!(
            replayed_batches = report.replayed_batches,
            discarded_batches = report.discarded_batches,
            "the pool is open"
        );
        Ok(Self { store, sizes })
    }
}

/// Makes a new, empty pool of the disks at `paths`, which must be blank unless forced.
pub fn format(engine: &Engine, paths: &[PathBuf], force: bool) -> Result<(), String> {
    let open = |path: &PathBuf| crate::disk::open(engine, path, &OpenOptions::default());
    let disks =
        paths.iter().map(open).collect::<Result<Vec<_>, _>>().map_err(|error| format!("disk {error}"))?;
    let (mut pool, mut log_key) = ([0; 16], [0; 16]);
    for secret in [&mut pool, &mut log_key] {
        getrandom::fill(secret).map_err(|error| format!("the system gives no random bytes: {error}"))?;
    }
    let options = FormatOptions { overwrite_foreign: force, ..FormatOptions::default() };
    let format = Array::format(&disks, &options, Uuid(pool), LogKey(log_key));
    engine.block_on(format).map_err(|error| error.to_string())
}

/// Whether a pool can go on without a disk that could not be opened for this reason.
fn is_absent(reason: &OpenRefusal) -> bool {
    matches!(reason, OpenRefusal::NotFound | OpenRefusal::System { .. })
}

fn with_hint(error: &crate::array::OpenError) -> String {
    match error {
        crate::array::OpenError::NoPool(_) => {
            format!("{error}, with: gemeld format --config PATH")
        }
        _ => error.to_string(),
    }
}

/// Events of the layers below as events of the node.
fn sink(events: EventReporter) -> EventSink {
    Rc::new(move |event: Event| match event.severity {
        Severity::Info => events.info(event.kind, event.message, &[]),
        Severity::Warning => events.warning(event.kind, event.message, &[]),
        Severity::Critical => events.error(event.kind, event.message, &[]),
    })
}

impl BlockStore for DiskPool {
    fn start_append(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        self.store.start_append(volume, version, writes)
    }

    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.store.read(volume, address, count).await
    }

    async fn allocation(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        self.store.allocation(volume, address, count, limit).await
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.store.flush().await
    }
}

impl ChangeLog for DiskPool {
    async fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.store.changed_since(volume, since, from, limit).await
    }
}

impl SnapshotStore for DiskPool {
    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotEntry>, StoreError> {
        self.store.snapshots(volume)
    }

    async fn read_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.store.read_at(volume, at, address, count).await
    }

    async fn allocation_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        self.store.allocation_at(volume, at, address, count, limit).await
    }

    async fn changed_between(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.store.changed_between(volume, since, at, from, limit).await
    }

    fn start_append_at(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        self.store.start_append_at(volume, version, writes)
    }
}

impl Pool for DiskPool {
    fn report(&self) -> PoolReport {
        let (usage, statistics) = (self.store.usage(), self.store.statistics());
        let array = self.store.array();
        let disk_count = array.geometry().disk_count;
        let is_whole = array.live().width() == disk_count;
        PoolReport {
            offline: self.store.is_offline(),
            capacity_bytes: usage.capacity_bytes,
            used_bytes: usage.used_bytes,
            redundancy: u32::from(is_whole && disk_count > 1),
            cleaned_bytes: statistics.moved_blocks.get() * BLOCK_SIZE as u64,
            repaired_blocks: statistics.rebuilt_blocks.get(),
            disks: array.status().iter().map(|status| self.disk(status)).collect(),
        }
    }

    fn health(&self) -> StoreHealth {
        if self.store.is_offline() {
            StoreHealth::Gone
        } else if self.store.array().stalled_for() >= LONGEST_SILENCE {
            StoreHealth::Stuck
        } else {
            StoreHealth::Well
        }
    }

    fn used_bytes(&self, volume: VolumeId) -> u64 {
        self.store.volume_used_bytes(volume)
    }

    async fn open_volume(&self, volume: VolumeId, is_new: bool) -> Result<u64, PoolError> {
        let known = self.store.volumes().into_iter().find(|(id, _, _)| *id == volume);
        match known {
            Some((_, _, newest)) => Ok(newest.sequence + 1),
            None if is_new => {
                let created = self.store.put_volume(volume, Version::default(), &[]).await;
                created.map_err(|error| PoolError::Failed(error.to_string()))?;
                Ok(1)
            }
            None => Err(PoolError::Failed(
                "its data is not in the pool; if the pool was formatted anew, delete the volume".to_owned(),
            )),
        }
    }

    fn newest(&self, volume: VolumeId) -> Version {
        self.store.newest(volume).unwrap_or_default()
    }

    async fn create_replica(&self, volume: VolumeId, record: &[u8]) -> Result<(), PoolError> {
        if self.store.newest(volume).is_some() {
            return Ok(());
        }
        let created = self.store.put_volume(volume, Version::default(), record).await;
        created.map_err(|error| PoolError::Failed(error.to_string()))
    }

    fn volume_record(&self, volume: VolumeId) -> Option<Bytes> {
        self.store.volume_record(volume).map(|(record, _)| record)
    }

    async fn save_volume_record(&self, volume: VolumeId, record: &[u8]) -> Result<(), PoolError> {
        let failed = |error: StoreError| PoolError::Failed(error.to_string());
        let (_, before) =
            self.store.volume_record(volume).ok_or_else(|| failed(StoreError::NoSuchVolume(volume)))?;
        let version = Version { sequence: before.sequence + 1, ..before };
        self.store.put_volume(volume, version, record).await.map_err(failed)
    }

    fn keep_holes_after(&self, volume: VolumeId, through: Version) {
        self.store.keep_holes_after(volume, through);
    }

    async fn delete_volume(&self, volume: VolumeId) -> Result<(), PoolError> {
        match self.store.drop_volume(volume).await {
            Ok(()) | Err(StoreError::NoSuchVolume(_)) => Ok(()),
            Err(error) => Err(PoolError::Failed(error.to_string())),
        }
    }

    async fn fail_disk(&self, disk: &str) -> Result<(), PoolError> {
        let found = self.store.array().status().into_iter().find(|status| {
            status.uuid.to_string() == disk || status.path.as_ref().is_some_and(|path| same_path(path, disk))
        });
        let status = found.ok_or_else(|| PoolError::NoSuchDisk(disk.to_owned()))?;
        let failed = self.store.array().fail(status.slot, "it was failed by the administrator").await;
        failed.map_err(|_| {
            PoolError::Failed(format!("the pool cannot do without disk {disk}: it has no redundancy left"))
        })
    }

    async fn close(&self) -> Result<(), PoolError> {
        self.store.close().await;
        Ok(())
    }
}

impl DiskPool {
    fn disk(&self, status: &DiskStatus) -> DiskReport {
        let path = status.path.clone().unwrap_or_default();
        let size = self.sizes.iter().find(|(known, _)| *known == path);
        DiskReport {
            id: status.uuid.to_string(),
            size_bytes: size.map_or(0, |(_, bytes)| *bytes),
            path,
            state: match status.state {
                DiskState::Ok => ReportedState::Ok,
                DiskState::Failed => ReportedState::Failed,
                DiskState::Missing => ReportedState::Missing,
            },
            reason: status.reason.clone().unwrap_or_default(),
            errors: [status.read_errors, 0, 0],
        }
    }
}

/// How long a disk may complete nothing before the other node may serve: renewing a lease takes a store that works.
const LONGEST_SILENCE: Duration = Duration::from_secs(1);

fn same_path(known: &str, given: &str) -> bool {
    Path::new(known) == Path::new(given)
}
