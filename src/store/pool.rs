//! The open store: a pool of blocks on an array, as volumes and the daemon see it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use futures::future::join_all;

use crate::array::{Array, OpenError};
use crate::base::buffer::{AlignedBuf, is_block_aligned};
use crate::base::checksum::Crc32;
use crate::base::event::EventSink;
use crate::base::mutant::{self, Mutant};
use crate::base::runtime::RuntimeHandle;
use crate::base::units::{BLOCK_SIZE, BlockAddress, BlockIdentity, Version, VolumeId};

use super::batch::{Content, Entry};
use super::compaction::Merges;
use super::interface::{BlockRun, BlockStore, BlockWrite, MAX_SNAPSHOT_RECORD_BYTES, StoreError};
use super::log::{FOREGROUND, Item, Log, Pending, Tracker};
use super::map::Map;
use super::map::lsm::TreeUsage;
use super::recovery::{self, RecoveryError, RecoveryReport};
use super::root::MAX_JOINTS;
use super::shared::{Shared, Statistics, StoreOptions, add};
use super::{checkpoint, cleaner, compaction, rebuild, writer};

/// An open pool. Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct Store {
    shared: Rc<Shared>,
}

/// Why a pool can't be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PoolError {
    /// The disks.
    #[error(transparent)]
    Array(#[from] OpenError),
    /// What is on them.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
}

/// Space in the pool, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// What volumes may fill.
    pub capacity_bytes: u64,
    /// What they and their snapshots fill.
    pub used_bytes: u64,
    /// What of this is kept for snapshots alone.
    pub snapshot_bytes: u64,
    /// Free segments, and segments in all.
    pub free_segments: u64,
    /// All segments.
    pub segments: u64,
}

impl Store {
    /// Recovers the pool on an open array and starts its tasks.
    pub async fn open(
        array: Array,
        runtime: RuntimeHandle,
        options: StoreOptions,
        events: EventSink,
    ) -> Result<(Self, RecoveryReport), PoolError> {
        let recovered = recovery::recover(&array, &options).await?;
        let (report, mut root) = (recovered.report, recovered.root);
        let log =
            Log::new((array.pool(), array.log_key()), &recovered.position, &recovered.contents.segments);
        let must_checkpoint = root.joints.len() >= MAX_JOINTS;
        if root.replay.is_none() {
            root.replay = Some(recovered.position);
        } else if !must_checkpoint && !mutant::is(Mutant::ForgetJoint) {
            root.joints.push(recovered.position);
        }
        let shared = Rc::new(Shared {
            array,
            runtime,
            options,
            events,
            merges: Merges::default(),
            has_tree: recovered.contents.tree().is_some(),
            contents: RefCell::new(recovered.contents),
            log: RefCell::new(log),
            root: RefCell::new(root.clone()),
            reserved_blocks: Cell::new(0),
            log_bytes: Cell::new(0),
            work: Default::default(),
            written: Default::default(),
            progress: Default::default(),
            stopped: Cell::new(false),
            stalled: Cell::new(false),
            reported_stuck: Cell::new(false),
            checkpointing: Default::default(),
            hole_floors: Default::default(),
            statistics: Statistics::default(),
            healing: Default::default(),
            space: Default::default(),
        });
        if let Some(map) = shared.contents.borrow().tree() {
            map.tables().attach(&shared);
        }
        rebuild::resume(&shared);
        if must_checkpoint {
            // The new checkpoint begins at the new incarnation, so it replaces all joints.
            checkpoint::write(&shared).await.map_err(|_| RecoveryError::Offline)?;
        } else {
            shared.array.commit(root.encode()).await.map_err(|_| RecoveryError::Offline)?;
        }
        writer::start(&shared);
        cleaner::start(&shared);
        compaction::start(&shared);
        rebuild::start(&shared);
        Ok((Self { shared }, report))
    }

    /// Stops cleanly: waits for what is on its way, writes a checkpoint, so that the next opening has
    /// nothing to replay, and ends the tasks. Nothing may be appended meanwhile.
    pub async fn close(&self) {
        // An error means that the array went offline: nothing more can be done, and nothing is lost.
        let _ = self.flush().await;
        let idle = || self.shared.log.borrow().is_idle() || self.shared.stopped.get();
        self.shared.progress.until(idle).await;
        self.shared.stopped.set(true);
        for signal in [&self.shared.work, &self.shared.written, &self.shared.progress] {
            signal.notify();
        }
        self.shared.array.changed().notify();
        if !self.shared.array.is_offline() {
            let _ = checkpoint::write(&self.shared).await;
        }
    }

    /// The volumes in the pool: their records, and the newest version of anything in each.
    #[must_use]
    pub fn volumes(&self) -> Vec<(VolumeId, Bytes, Version)> {
        let contents = self.shared.contents.borrow();
        contents.volumes.iter().map(|(id, state)| (*id, state.record.clone(), state.newest)).collect()
    }

    /// The newest version of anything in a volume; none when there is no such volume.
    #[must_use]
    pub fn newest(&self, volume: VolumeId) -> Option<Version> {
        self.shared.contents.borrow().volumes.get(&volume).map(|state| state.newest)
    }

    /// The record of a volume, and its version.
    #[must_use]
    pub fn volume_record(&self, volume: VolumeId) -> Option<(Bytes, Version)> {
        let contents = self.shared.contents.borrow();
        contents.volumes.get(&volume).map(|state| (state.record.clone(), state.record_version))
    }

    /// Creates a volume, or replaces its record (at most 4096 bytes, opaque to the store).
    pub async fn put_volume(
        &self,
        volume: VolumeId,
        version: Version,
        record: &[u8],
    ) -> Result<(), StoreError> {
        assert!(record.len() <= BLOCK_SIZE, "a volume's record fits a block");
        let content = |length, checksum| Content::Volume { length, checksum };
        self.put_record(volume, version, record, content).await
    }

    /// Appends a statement with a record.
    pub(super) async fn put_record(
        &self,
        volume: VolumeId,
        version: Version,
        record: &[u8],
        content: impl FnOnce(u16, Crc32) -> Content,
    ) -> Result<(), StoreError> {
        let block = record_block(record);
        let content = content(record.len() as u16, Crc32::of(&block));
        let entry = Entry { volume, address: BlockAddress(0), version, content };
        self.submit(vec![Item { entry, payload: Some(block), is_new_block: false }]).await
    }

    /// Drops a volume with all its blocks and snapshots. Its number is not to be used again.
    ///
    /// # Errors
    /// When it has clones.
    pub async fn drop_volume(&self, volume: VolumeId) -> Result<(), StoreError> {
        {
            let mut contents = self.shared.contents.borrow_mut();
            let clone = contents.clone_of(volume, None).filter(|_| !mutant::is(Mutant::OriginDropped));
            let state = contents.volumes.get_mut(&volume).ok_or(StoreError::NoSuchVolume(volume))?;
            if let Some(clone) = clone {
                return Err(StoreError::HasClones { volume, clone });
            }
            state.is_dropping = true;
        }
        let entry = Entry {
            volume,
            address: BlockAddress(0),
            version: Version::default(),
            content: Content::VolumeDropped,
        };
        self.submit(vec![Item { entry, payload: None, is_new_block: false }]).await
    }

    /// Allocated bytes of a volume as it is now; of a clone, what was written to itself.
    #[must_use]
    pub fn volume_used_bytes(&self, volume: VolumeId) -> u64 {
        self.shared.contents.borrow().map.mapped_blocks(volume) * BLOCK_SIZE as u64
    }

    /// Bytes that are kept for a volume's snapshots alone.
    #[must_use]
    pub fn volume_snapshot_bytes(&self, volume: VolumeId) -> u64 {
        self.shared.contents.borrow().map.held_blocks(volume) * BLOCK_SIZE as u64
    }

    /// Space in the pool.
    #[must_use]
    pub fn usage(&self) -> PoolUsage {
        let contents = self.shared.contents.borrow();
        PoolUsage {
            capacity_bytes: self.shared.usable_blocks() * BLOCK_SIZE as u64,
            used_bytes: contents.used_blocks() * BLOCK_SIZE as u64,
            snapshot_bytes: contents.map.total_held_blocks() * BLOCK_SIZE as u64,
            free_segments: contents.segments.free_count() as u64,
            segments: contents.segments.count() as u64,
        }
    }

    /// Where the map keeps its tables on disk: merges all of them into one run, after which all that is counted is
    /// exact. Costs the reading and writing of the whole map.
    ///
    /// # Errors
    /// When the pool is offline, or has no room for it.
    pub async fn merge_map(&self) -> Result<(), StoreError> {
        compaction::merge_all(&self.shared).await
    }

    /// What the map takes in memory and on disk, where it keeps its tables on disk.
    #[must_use]
    pub fn map_usage(&self) -> Option<TreeUsage> {
        self.shared.contents.borrow().tree().map(|map| map.tree().usage())
    }

    /// Counts since the pool was opened.
    #[must_use]
    pub fn statistics(&self) -> &Statistics {
        &self.shared.statistics
    }

    /// The disks below.
    #[must_use]
    pub fn array(&self) -> &Array {
        &self.shared.array
    }

    /// Whether the pool has stopped serving.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.shared.array.is_offline() || self.shared.stopped.get()
    }

    pub(super) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    pub(super) fn shared_handle(&self) -> &Rc<Shared> {
        &self.shared
    }

    fn submit(&self, items: Vec<Item>) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let (tracker, done) = Tracker::new();
        if self.is_offline() {
            tracker.complete(Err(StoreError::Offline));
        } else {
            self.shared.log.borrow_mut().enqueue(FOREGROUND, Pending { items: items.into(), tracker });
            self.shared.work.notify();
        }
        async move { done.await.unwrap_or(Err(StoreError::Offline)) }
    }

    /// Takes an append.
    pub(super) fn start(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<>, StoreError> {
        Ok(self.submit(self.admit(volume, version, writes)?))
    }

    /// Has the map find out which blocks have space, if that may decide whether there is enough.
    async fn learn_space(&self, volume: VolumeId, writes: &[BlockWrite]) {
        // While one part is learned another one may be forgotten.
        for _ in 0..LEARNED_AT_MOST {
            let unknown = self.unknown_space(volume, writes);
            if unknown.is_empty() {
                return;
            }
            let learn = |blocks: Range<u64>| {
                let contents = self.shared.contents.borrow();
                let map = contents.tree()?.tree();
                Some(map.learn_space(volume, BlockAddress(blocks.start), blocks.end - blocks.start))
            };
            // What can't be found out counts as new.
            let _ = join_all(unknown.into_iter().filter_map(learn)).await;
        }
    }

    /// The blocks that may need space, if there is not enough for all of them.
    fn unknown_space(&self, volume: VolumeId, writes: &[BlockWrite]) -> Vec<Range<u64>> {
        let mut unknown: Vec<Range<u64>> = Vec::new();
        let contents = self.shared.contents.borrow();
        let all = writes.iter().filter(|write| matches!(write, BlockWrite::Data { .. })).count() as u64;
        if all == 0 || self.shared.takes(&contents, volume, all) {
            return unknown;
        }
        let Some(state) = contents.volumes.get(&volume) else { return unknown };
        let newest = state.snapshots.newest();
        for write in writes {
            let BlockWrite::Data { address, .. } = write else { continue };
            match unknown.last_mut() {
                _ if contents.map.has_space(volume, *address, newest) => {}
                Some(last) if last.end == address.0 => last.end += 1,
                _ => unknown.push(address.0..address.0 + 1),
            }
        }
        let blocks: u64 = unknown.iter().map(|blocks| blocks.end - blocks.start).sum();
        if blocks == 0 || self.shared.takes(&contents, volume, blocks) { Vec::new() } else { unknown }
    }

    /// Turns writes into statements, and reserves space for blocks that have none yet.
    fn admit(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<Vec<Item>, StoreError> {
        let mut contents = self.shared.contents.borrow_mut();
        let contents = &mut *contents;
        if let [BlockWrite::SnapshotDropped { snapshot }] = writes[..]
            && let Some(clone) = contents.clone_of(volume, Some(snapshot))
            && !mutant::is(Mutant::OriginDropped)
        {
            return Err(StoreError::HasClones { volume, clone });
        }
        let state = contents.volumes.get_mut(&volume).ok_or(StoreError::NoSuchVolume(volume))?;
        let newest = state.snapshots.newest();
        // History counts as new: what is there stays.
        let is_history = newest.is_some_and(|newest| version <= newest);
        let mut items = Vec::with_capacity(writes.len());
        let (mut new_blocks, mut promised) = (0, 0);
        for write in writes {
            let mut entry = Entry { volume, address: BlockAddress(0), version, content: Content::Lost };
            let (mut payload, mut is_new_block) = (None, false);
            match write {
                BlockWrite::Data { address, data, checksum } => {
                    let needs_space = mutant::is(Mutant::OverwriteNeedsSpace)
                        || is_history
                        || !contents.map.has_space(volume, address, newest);
                    // Until the hole settles the block's space counts as used; then it is to be this write's.
                    is_new_block = needs_space || state.is_becoming_hole(address);
                    new_blocks += u64::from(needs_space);
                    promised += u64::from(is_new_block);
                    let identity = BlockIdentity { volume, address, version };
                    (entry.address, entry.content) =
                        (address, Content::Data { checksum: checksum.bind(&identity) });
                    payload = Some(aligned(&self.shared, data));
                }
                BlockWrite::Hole { address, count } => {
                    (entry.address, entry.content) = (address, Content::Hole { count });
                }
                BlockWrite::Snapshot { record } => {
                    if !state.snapshots.has_room() {
                        return Err(StoreError::TooManySnapshots(volume));
                    }
                    assert!(record.len() <= MAX_SNAPSHOT_RECORD_BYTES, "a snapshot's record fits a block");
                    state.snapshots.announce(version);
                    let block = record_block(&record);
                    entry.content =
                        Content::Snapshot { length: record.len() as u16, checksum: Crc32::of(&block) };
                    payload = Some(block);
                }
                BlockWrite::SnapshotDropped { snapshot } => {
                    state.snapshots.announce_drop(snapshot);
                    entry.content = Content::SnapshotDropped { snapshot };
                }
            }
            items.push(Item { entry, payload, is_new_block });
        }
        if new_blocks > 0 && !self.shared.takes(contents, volume, new_blocks) {
            // What was overwritten may count still.
            self.shared.want_full_merge(contents);
            return Err(StoreError::OutOfSpace);
        }
        self.shared.promise(volume, promised);
        contents.announce_holes(volume, items.iter().map(|item| &item.entry));
        add(&self.shared.statistics.written_blocks, items.len() as u64);
        Ok(items)
    }
}

impl BlockStore for Store {
    fn start_append(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        self.start(volume, version, writes)
    }

    async fn prepare(&self, volume: VolumeId, writes: &[BlockWrite]) {
        if self.shared.has_tree {
            self.learn_space(volume, writes).await;
        }
    }

    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        super::rollback::read_now(&self.shared, volume, address, count).await
    }

    async fn allocation(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        super::rollback::runs_now(self, volume, address, count, limit).await
    }

    async fn flush(&self) -> Result<(), StoreError> {
        if self.shared.log.borrow().is_idle() {
            return if self.is_offline() { Err(StoreError::Offline) } else { Ok(()) };
        }
        self.submit(Vec::new()).await
    }
}

/// A block that begins with a record.
fn record_block(record: &[u8]) -> Bytes {
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
    block[..record.len()].copy_from_slice(record);
    block.freeze()
}

/// The block as direct output needs it: a copy when it lies across pages.
fn aligned(shared: &Shared, data: Bytes) -> Bytes {
    assert_eq!(data.len(), BLOCK_SIZE, "blocks are written whole");
    if is_block_aligned(&data) { data } else { shared.array.buffers().copy_of(&data).freeze() }
}

/// How often the map is asked at most which blocks of an append have space.
const LEARNED_AT_MOST: usize = 3;
