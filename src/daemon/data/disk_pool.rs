//! The pool on real disks: finding and opening them, formatting, and the store above them as the
//! daemon's [`Pool`].

use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::disk_book::DiskBook;
use super::disk_changes::{DiskChange, new_uuid};
use super::driver::{DrivenDisk, Kick};
use super::pool::{Pool, PoolError};
use super::scrubber::Scrubber;
use crate::array::superblock::{LogKey, Uuid};
use crate::array::{Array, DiskState, DiskStatus, FormatOptions};
use crate::base::buffer::BufferPool;
use crate::base::event::{Event, EventSink, Severity};
use crate::base::runtime::RuntimeHandle;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::cluster::lease::StoreHealth;
use crate::daemon::config::Config;
use crate::daemon::engine::{DiskReport, DiskState as ReportedState, PoolReport, RebuildReport};
use crate::daemon::event_log::EventReporter;
use crate::disk::open::OpenRefusal;
use crate::disk::{Disk, Engine, OpenOptions};
use crate::store::interface::{
    BlockRun, BlockStore, BlockWrite, ChangeLog, Changes, SnapshotEntry, SnapshotStore, StoreError,
};
use crate::store::space::SpaceRule;
use crate::store::{Store, StoreOptions};

/// A store on disks.
pub struct DiskPool {
    pub(super) store: Store,
    pub(super) engine: Engine,
    pub(super) kick: Kick,
    pub(super) events: EventReporter,
    /// Disks of the configuration; others are in the book.
    pub(super) configured: Vec<PathBuf>,
    pub(super) book: Rc<DiskBook>,
    pub(super) scrubber: Rc<Scrubber>,
}

impl DiskPool {
    /// Opens the pool on the disks at `paths` and recovers it. Disks that are not there are reported
    /// and done without, as far as parity allows.
    pub async fn open(
        engine: &Engine,
        kick: &Kick,
        config: &Config,
        runtime: RuntimeHandle,
        buffers: BufferPool,
        events: &EventReporter,
    ) -> Result<Self, String> {
        let (has_peer, state_dir, config) = (config.pair.is_some(), &config.state_dir, &config.pool);
        let book = DiskBook::open(state_dir)?;
        let known = book.pages();
        let mut disks: Vec<Rc<dyn Disk>> = Vec::new();
        let mut spares: Vec<Rc<dyn Disk>> = Vec::new();
        let added = known.disks.iter().filter(|path| !config.disks.contains(path));
        for (path, is_spare) in config
            .disks
            .iter()
            .chain(added)
            .map(|path| (path, false))
            .chain(known.spares.iter().map(|path| (path, true)))
        {
            match crate::disk::open(engine, path, &OpenOptions::default()) {
                Ok(disk) => {
                    let disk: Rc<dyn Disk> = Rc::new(DrivenDisk::new(disk, kick.clone()));
                    if is_spare { spares.push(disk) } else { disks.push(disk) }
                }
                Err(error) if is_spare || is_absent(&error.reason) => {
                    events.warning("disk-missing", format!("disk {error}"), &[]);
                }
                Err(error) => return Err(format!("disk {error}")),
            }
        }
        // A spare that joined is a member like the others, whatever the book says.
        let spares = joined(&mut disks, spares).await;
        let sink = sink(events.clone());
        let (array, found) = Array::open(disks, runtime.clone(), buffers, sink.clone())
            .await
            .map_err(|error| with_hint(&error, has_peer))?;
        for (path, reason) in found.unused {
            events.warning("disk-unused", format!("disk {path} is not used: {reason}"), &[]);
        }
        let mut options = StoreOptions { discard: config.discard, ..StoreOptions::default() }
            .with_map_memory(config.map_memory.0);
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
        store.set_rebuild_priority(known.rebuild_priority.into());
        for spare in spares {
            let path = spare.properties().path.clone();
            let uuid = new_uuid().map_err(|error| error.to_string())?;
            if let Err(error) = store.array().add_spare(spare, uuid).await {
                events.warning("spare-unusable", format!("spare disk {path} cannot be used: {error}"), &[]);
            }
        }
        let book = Rc::new(book);
        let interval = (config.scrub_interval_days.get() > 0)
            .then(|| Duration::from_secs(config.scrub_interval_days.get() * 24 * 3600));
        let scrubber = Scrubber::new(store.clone(), book.clone(), events.clone(), interval);
        tokio::task::spawn_local(scrubber.clone().run());
        let (engine, kick, events) = (engine.clone(), kick.clone(), events.clone());
        Ok(Self { store, engine, kick, events, configured: config.disks.clone(), book, scrubber })
    }
}

/// Puts those of `spares` that belong to the pool of `disks` there, and gives the others.
async fn joined(disks: &mut Vec<Rc<dyn Disk>>, spares: Vec<Rc<dyn Disk>>) -> Vec<Rc<dyn Disk>> {
    let mut pools = Vec::new();
    for disk in disks.iter() {
        pools.extend(crate::array::pool_of(disk).await);
    }
    let mut others = Vec::new();
    for spare in spares {
        match crate::array::pool_of(&spare).await {
            Some(pool) if pools.contains(&pool) => disks.push(spare),
            _ => others.push(spare),
        }
    }
    others
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

fn with_hint(error: &crate::array::OpenError, has_peer: bool) -> String {
    match error {
        crate::array::OpenError::TooFew { .. } if has_peer => format!(
            "{error}. The other node serves meanwhile. If they are lost for good, put new ones in their places, make a new \
             pool with gemeld format --config PATH --force, which destroys what is left on the disks of this node, and \
             start it: it is filled from the other node"
        ),
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

    async fn prepare(&self, volume: VolumeId, writes: &[BlockWrite]) {
        self.store.prepare(volume, writes).await;
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
        let pages = self.book.pages();
        PoolReport {
            offline: self.store.is_offline(),
            capacity_bytes: usage.capacity_bytes,
            used_bytes: usage.used_bytes,
            redundancy: u32::from(array.is_whole() && disk_count > 1),
            cleaned_bytes: statistics.moved_blocks.get() * BLOCK_SIZE as u64,
            repaired_blocks: statistics.rebuilt_blocks.get(),
            disks: self.disks(),
            rebuild_priority: pages.rebuild_priority,
            scrub: pages.scrub,
            segments: array.geometry().segment_count,
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

    fn snapshot_bytes(&self, volume: VolumeId) -> u64 {
        self.store.volume_snapshot_bytes(volume)
    }

    async fn open_volume(
        &self,
        volume: VolumeId,
        is_new: bool,
        origin: Option<(VolumeId, Version)>,
    ) -> Result<u64, PoolError> {
        let known = self.store.volumes().into_iter().find(|(id, _, _)| *id == volume);
        match known {
            Some((_, _, newest)) => Ok(newest.sequence + 1),
            None if is_new => {
                self.create(volume, &[], origin).await?;
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

    async fn create_replica(
        &self,
        volume: VolumeId,
        record: &[u8],
        origin: Option<(VolumeId, Version)>,
    ) -> Result<(), PoolError> {
        if self.store.newest(volume).is_some() {
            return Ok(());
        }
        self.create(volume, record, origin).await
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

    fn set_space_rule(&self, volume: VolumeId, rule: SpaceRule) {
        self.store.set_space_rule(volume, rule);
    }

    fn bind_space(&self, volume: VolumeId, is_bound: bool) {
        self.store.bind_space(volume, is_bound);
    }

    async fn delete_volume(&self, volume: VolumeId) -> Result<(), PoolError> {
        self.store.set_space_rule(volume, SpaceRule::default());
        self.store.bind_space(volume, false);
        match self.store.drop_volume(volume).await {
            Ok(()) | Err(StoreError::NoSuchVolume(_)) => Ok(()),
            Err(error) => Err(PoolError::Failed(error.to_string())),
        }
    }

    fn take_damaged(&self) -> Vec<(VolumeId, BlockAddress)> {
        self.store.take_damaged()
    }

    async fn change_disks(&self, change: DiskChange) -> Result<(), PoolError> {
        self.do_change(change).await
    }

    async fn close(&self) -> Result<(), PoolError> {
        self.store.close().await;
        Ok(())
    }
}

impl DiskPool {
    /// Makes a volume known.
    async fn create(
        &self,
        volume: VolumeId,
        record: &[u8],
        origin: Option<(VolumeId, Version)>,
    ) -> Result<(), PoolError> {
        let version = Version::default();
        let created = match origin {
            None => self.store.put_volume(volume, version, record).await,
            Some((origin, snapshot)) => {
                self.store.clone_volume(volume, version, record, origin, snapshot).await
            }
        };
        created.map_err(|error| PoolError::Failed(error.to_string()))
    }

    fn disks(&self) -> Vec<DiskReport> {
        let members = self.store.array().status();
        let spares = self.store.array().spares().into_iter().map(|(path, size_bytes, _)| DiskReport {
            id: path.clone(),
            path,
            size_bytes,
            state: ReportedState::Spare,
            ..DiskReport::default()
        });
        members.iter().map(|status| self.disk(status)).chain(spares).collect()
    }

    fn disk(&self, status: &DiskStatus) -> DiskReport {
        let segment_bytes = u64::from(self.store.array().geometry().rows) * BLOCK_SIZE as u64;
        let progress = self.store.rebuild_progress().filter(|progress| progress.slot == status.slot);
        DiskReport {
            id: status.uuid.to_string(),
            size_bytes: status.size_bytes,
            path: status.path.clone().unwrap_or_default(),
            slot: Some(status.slot.0),
            state: match status.state {
                DiskState::Ok => ReportedState::Ok,
                DiskState::Failed => ReportedState::Failed,
                DiskState::Missing => ReportedState::Missing,
                DiskState::Rebuilding => ReportedState::Rebuilding,
            },
            reason: status.reason.clone().unwrap_or_default(),
            // A disk leaves with its first write error.
            errors: [status.read_errors, 0, status.repairs],
            operations: status.operations,
            rebuild: progress.map(|progress| RebuildReport {
                total_bytes: progress.segments.0 * segment_bytes,
                done_bytes: progress.segments.1 * segment_bytes,
                bytes_per_second: progress.bytes_per_second,
                remaining: progress.remaining,
            }),
        }
    }
}

/// How long a disk may complete nothing before the other node may serve: renewing a lease takes a store that works.
const LONGEST_SILENCE: Duration = Duration::from_secs(1);
