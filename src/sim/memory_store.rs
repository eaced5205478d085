//! A block store in memory: what volumes, logical units and servers are tried on without disks.
//!
//! Guarantees: those of [`BlockStore`], with delays from the runtime's randomness: appends settle in
//! the order in which they were called, their callers learn of it in any order, and a read of several
//! blocks looks at each of them at another moment. It asserts what callers owe the interface:
//! versions that grow, checksums that match, aligned blocks, ascending and disjoint changes, statements about
//! snapshots that are alone in their appends.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;

use crate::base::buffer::{AlignedBuf, is_block_aligned};
use crate::base::checksum::Crc32;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::store::interface::{
    BlockRun, BlockStore, BlockWrite, ChangeLog, Changes, MAX_SNAPSHOT_RECORD_BYTES, MAX_SNAPSHOTS,
    SnapshotEntry, SnapshotStore, StoreError, is_shown,
};

/// A store in memory. Every volume exists in it from the start, empty, until it is removed.
pub struct MemoryStore {
    shared: Rc<Shared>,
}

impl MemoryStore {
    /// An empty store whose operations each take up to `longest_delay`; with none, they complete at
    /// once.
    #[must_use]
    pub fn new(runtime: RuntimeHandle, longest_delay: Duration) -> Self {
        Self {
            shared: Rc::new(Shared {
                runtime,
                longest_delay,
                zeros: AlignedBuf::zeroed(BLOCK_SIZE).freeze(),
                log: RefCell::default(),
                blocks: RefCell::default(),
                data_count: Cell::new(0),
                snapshots: RefCell::default(),
                latest: RefCell::default(),
                removed: RefCell::default(),
                unreadable: RefCell::default(),
                is_offline: Cell::new(false),
                capacity_blocks: Cell::new(u64::MAX),
                learned: RefCell::default(),
                append_count: Cell::new(0),
                read_count: Cell::new(0),
            }),
        }
    }

    /// Limits the blocks that may hold data; appends that would need more fail.
    pub fn limit_space(&self, capacity_blocks: u64) {
        self.shared.capacity_blocks.set(capacity_blocks);
    }

    /// Takes the store offline, or back.
    pub fn set_offline(&self, is_offline: bool) {
        self.shared.is_offline.set(is_offline);
    }

    /// Makes a block unreadable until it is written again.
    pub fn spoil(&self, volume: VolumeId, address: BlockAddress) {
        self.shared.unreadable.borrow_mut().insert((volume, address));
    }

    /// Forgets that a block was a hole in its oldest entry, as a store may of what every replica has.
    ///
    /// # Panics
    /// When it was none.
    pub fn forget_hole(&self, volume: VolumeId, address: BlockAddress) {
        let mut blocks = self.shared.blocks.borrow_mut();
        let oldest = blocks.get_mut(&(volume, address)).and_then(BTreeMap::pop_first);
        assert!(matches!(oldest, Some((_, None))), "no hole is behind {address:?}: {oldest:?}");
    }

    /// Removes a volume with everything in it.
    pub fn remove(&self, volume: VolumeId) {
        self.shared.removed.borrow_mut().insert(volume);
        let gone = |(owner, _): &(VolumeId, BlockAddress), block: &mut Block| {
            let data_count = if *owner == volume { data_count(block) } else { 0 };
            self.shared.data_count.set(self.shared.data_count.get() - data_count);
            *owner != volume
        };
        self.shared.blocks.borrow_mut().retain(gone);
        self.shared.snapshots.borrow_mut().remove(&volume);
    }

    /// Blocks that hold data, in all volumes; what only snapshots show is not counted.
    #[must_use]
    pub fn mapped_block_count(&self) -> u64 {
        let blocks = self.shared.blocks.borrow();
        blocks
            .values()
            .filter(|block| shown_at(block, Version::GREATEST).is_some_and(|(_, data)| data.is_some()))
            .count() as u64
    }

    /// Blocks of data that only snapshots show, in all volumes.
    #[must_use]
    pub fn held_block_count(&self) -> u64 {
        self.shared.data_count.get() - self.mapped_block_count()
    }

    /// Reads so far.
    #[must_use]
    pub fn read_count(&self) -> u64 {
        self.shared.read_count.get()
    }

    /// Appends so far.
    #[must_use]
    pub fn append_count(&self) -> u64 {
        self.shared.append_count.get()
    }
}

impl BlockStore for MemoryStore {
    fn start_append(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        let previous = self.shared.latest.borrow().get(&volume).copied();
        assert!(previous <= Some(version), "version {version:?} appended after {previous:?}");
        self.shared.start_append(volume, version, writes)
    }

    async fn prepare(&self, volume: VolumeId, writes: &[BlockWrite]) {
        let shared = &self.shared;
        if shared.data_count.get() + writes.len() as u64 <= shared.capacity_blocks.get() {
            return;
        }
        shared.delay().await;
        if shared.snapshots.borrow().get(&volume).is_some_and(|snapshots| !snapshots.is_empty()) {
            return; // what is written over may have to stay
        }
        let blocks = shared.blocks.borrow();
        let has_data = |address: &BlockAddress| {
            blocks.get(&(volume, *address)).is_some_and(|block| data_count(block) > 0)
        };
        let data = writes.iter().filter_map(|write| match write {
            BlockWrite::Data { address, .. } if has_data(address) => Some((volume, *address)),
            _ => None,
        });
        shared.learned.borrow_mut().extend(data);
    }

    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.shared.read(volume, None, address, count).await
    }

    async fn allocation(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        self.shared.delay().await;
        self.shared.check(volume)?;
        Ok(self.shared.runs(volume, Version::GREATEST, address, count, limit))
    }

    async fn flush(&self) -> Result<(), StoreError> {
        let last = self.shared.clone().log_append(VolumeId(0), Version::default(), Vec::new());
        // As in `append`.
        let _ = last.await;
        if self.shared.is_offline.get() { Err(StoreError::Offline) } else { Ok(()) }
    }
}

impl ChangeLog for MemoryStore {
    async fn changed_since(
        &self,
        volume: VolumeId,
        since: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.shared.check(volume)?;
        Ok(self.shared.changes(volume, since, Version::GREATEST, from, limit))
    }
}

impl SnapshotStore for MemoryStore {
    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotEntry>, StoreError> {
        self.shared.check(volume)?;
        let snapshots = self.shared.snapshots.borrow();
        let entry = |(version, record): (&Version, &Bytes)| SnapshotEntry {
            version: *version,
            record: record.clone(),
        };
        Ok(snapshots.get(&volume).into_iter().flatten().map(entry).collect())
    }

    async fn read_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.shared.read(volume, Some(at), address, count).await
    }

    async fn allocation_at(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Result<Vec<BlockRun>, StoreError> {
        self.shared.delay().await;
        let at = self.shared.view(volume, Some(at))?;
        Ok(self.shared.runs(volume, at, address, count, limit))
    }

    async fn changed_between(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        let at = self.shared.view(volume, Some(at).filter(|at| *at != Version::GREATEST))?;
        Ok(self.shared.changes(volume, since, at, from, limit))
    }

    fn start_append_at(
        &self,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + 'static, StoreError> {
        self.shared.start_append(volume, version, writes)
    }
}

/// What is kept of a block, by version: data, or that it is a hole. Never empty.
type Block = BTreeMap<Version, Option<Bytes>>;

/// What the view at a version shows of a block.
fn shown_at(block: &Block, at: Version) -> Option<(Version, &Option<Bytes>)> {
    block.range(..=at).next_back().map(|(version, data)| (*version, data))
}

fn data_count(block: &Block) -> u64 {
    block.values().flatten().count() as u64
}

struct Shared {
    runtime: RuntimeHandle,
    longest_delay: Duration,
    zeros: Bytes,
    /// Appends in the order of their calls, until they settle.
    log: RefCell<VecDeque<Entry>>,
    /// Settled blocks that were ever written.
    blocks: RefCell<BTreeMap<(VolumeId, BlockAddress), Block>>,
    /// How much data is in them.
    data_count: Cell<u64>,
    /// Settled snapshots and their records.
    snapshots: RefCell<BTreeMap<VolumeId, BTreeMap<Version, Bytes>>>,
    latest: RefCell<BTreeMap<VolumeId, Version>>,
    removed: RefCell<BTreeSet<VolumeId>>,
    unreadable: RefCell<BTreeSet<(VolumeId, BlockAddress)>>,
    is_offline: Cell<bool>,
    capacity_blocks: Cell<u64>,
    /// Blocks that the next append may write over without new space.
    learned: RefCell<BTreeSet<(VolumeId, BlockAddress)>>,
    append_count: Cell<u64>,
    read_count: Cell<u64>,
}

struct Entry {
    volume: VolumeId,
    version: Version,
    writes: Vec<BlockWrite>,
    is_durable: Rc<Cell<bool>>,
    settled: oneshot::Sender<()>,
}

impl Shared {
    async fn delay(&self) {
        let longest_ns = u64::try_from(self.longest_delay.as_nanos()).unwrap_or(u64::MAX);
        if longest_ns > 0 {
            self.runtime.sleep(Duration::from_nanos(self.runtime.random() % longest_ns)).await;
        }
    }

    fn check(&self, volume: VolumeId) -> Result<(), StoreError> {
        if self.removed.borrow().contains(&volume) {
            return Err(StoreError::NoSuchVolume(volume));
        }
        if self.is_offline.get() { Err(StoreError::Offline) } else { Ok(()) }
    }

    /// The version at which a view is read; a snapshot has to be there.
    fn view(&self, volume: VolumeId, at: Option<Version>) -> Result<Version, StoreError> {
        self.check(volume)?;
        let Some(snapshot) = at else { return Ok(Version::GREATEST) };
        let snapshots = self.snapshots.borrow();
        let is_there = snapshots.get(&volume).is_some_and(|snapshots| snapshots.contains_key(&snapshot));
        if is_there { Ok(snapshot) } else { Err(StoreError::NoSuchSnapshot { volume, snapshot }) }
    }

    async fn read(
        &self,
        volume: VolumeId,
        at: Option<Version>,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.read_count.set(self.read_count.get() + 1);
        let mut pieces = Vec::new();
        for offset in 0..count {
            if offset == 0 || self.runtime.random().is_multiple_of(4) {
                self.delay().await;
            }
            pieces.push(self.look_up(volume, at, address.offset(offset))?);
        }
        self.delay().await;
        Ok(pieces)
    }

    fn start_append(
        self: &Rc<Self>,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<>, StoreError> {
        self.admit(volume, version, &writes)?;
        let settled = self.clone().log_append(volume, version, writes);
        let shared = self.clone();
        Ok(async move {
            // The sender is dropped only with the whole world.
            let _ = settled.await;
            shared.delay().await;
            if shared.is_offline.get() { Err(StoreError::Offline) } else { Ok(()) }
        })
    }

    /// Checks an append for what its caller owes and for what the store can take.
    fn admit(&self, volume: VolumeId, version: Version, writes: &[BlockWrite]) -> Result<(), StoreError> {
        let latest = self.latest.borrow().get(&volume).map_or(version, |latest| version.max(*latest));
        self.latest.borrow_mut().insert(volume, latest);
        assert!(!writes.is_empty(), "an append without changes");
        self.append_count.set(self.append_count.get() + 1);
        let mut end = 0;
        let mut data_count = 0;
        let learned = self.learned.take();
        for write in writes {
            let (address, count) = match write {
                BlockWrite::Data { address, data, checksum } => {
                    assert_eq!(data.len(), BLOCK_SIZE);
                    assert!(is_block_aligned(data), "block {} is not aligned in memory", address.0);
                    assert_eq!(*checksum, Crc32::of(data), "checksum of block {}", address.0);
                    data_count += u64::from(!learned.contains(&(volume, *address)));
                    (address, 1)
                }
                BlockWrite::Hole { address, count } => (address, *count),
                BlockWrite::Snapshot { record } => {
                    assert!(writes.len() == 1 && record.len() <= MAX_SNAPSHOT_RECORD_BYTES);
                    let snapshots = self.snapshots.borrow();
                    if snapshots.get(&volume).is_some_and(|snapshots| snapshots.len() >= MAX_SNAPSHOTS) {
                        return Err(StoreError::TooManySnapshots(volume));
                    }
                    continue;
                }
                BlockWrite::SnapshotDropped { .. } => {
                    assert_eq!(writes.len(), 1);
                    continue;
                }
            };
            assert!(count > 0 && address.0 >= end, "changes are not ascending and disjoint");
            end = address.0 + count;
        }
        self.check(volume)?;
        // Counts overwrites as new blocks unless it was prepared for them, which is only ever too strict.
        let fits = data_count == 0 || self.data_count.get() + data_count <= self.capacity_blocks.get();
        if fits { Ok(()) } else { Err(StoreError::OutOfSpace) }
    }

    /// Puts an append into the log; it becomes durable after a delay whether anyone waits or not.
    fn log_append(
        self: Rc<Self>,
        volume: VolumeId,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> oneshot::Receiver<()> {
        let is_durable = Rc::new(Cell::new(self.longest_delay.is_zero()));
        let (settled, receiver) = oneshot::channel();
        let entry = Entry { volume, version, writes, is_durable: is_durable.clone(), settled };
        self.log.borrow_mut().push_back(entry);
        if is_durable.get() {
            self.settle();
        } else {
            let runtime = self.runtime.clone();
            runtime.spawn(Box::pin(async move {
                self.delay().await;
                is_durable.set(true);
                self.settle();
            }));
        }
        receiver
    }

    /// Applies the durable beginning of the log.
    fn settle(&self) {
        let mut log = self.log.borrow_mut();
        while log.front().is_some_and(|entry| entry.is_durable.get()) {
            let Some(entry) = log.pop_front() else { return };
            if !self.is_offline.get() {
                for write in entry.writes {
                    self.apply(entry.volume, entry.version, write);
                }
            }
            // Nobody may be waiting any more.
            let _ = entry.settled.send(());
        }
    }

    /// As the real store does: entries take their place by version, of equal ones the later append wins, and
    /// what no view shows is not kept.
    fn apply(&self, volume: VolumeId, version: Version, write: BlockWrite) {
        match write {
            BlockWrite::Data { address, data, .. } => {
                let mut blocks = self.blocks.borrow_mut();
                // A copy, so that a buffer reused too early shows.
                let kept = AlignedBuf::copy_of(&data).freeze();
                let block = blocks.entry((volume, address)).or_default();
                if block.last_key_value().is_none_or(|(newest, _)| *newest <= version) {
                    self.unreadable.borrow_mut().remove(&(volume, address));
                }
                self.change(volume, block, |block| drop(block.insert(version, Some(kept))));
            }
            BlockWrite::Hole { address, count } => {
                let range = (volume, address)..(volume, address.offset(count));
                for (place, block) in self.blocks.borrow_mut().range_mut(range) {
                    if block.last_key_value().is_none_or(|(newest, _)| *newest <= version) {
                        self.unreadable.borrow_mut().remove(place);
                    }
                    self.change(volume, block, |block| drop(block.insert(version, None)));
                }
            }
            BlockWrite::Snapshot { record } => {
                self.snapshots.borrow_mut().entry(volume).or_default().insert(version, record);
            }
            BlockWrite::SnapshotDropped { snapshot } => {
                let dropped =
                    self.snapshots.borrow_mut().get_mut(&volume).and_then(|known| known.remove(&snapshot));
                if dropped.is_some() {
                    let all = (volume, BlockAddress(0))..=(volume, BlockAddress(u64::MAX));
                    let mut blocks = self.blocks.borrow_mut();
                    blocks.range_mut(all).for_each(|(_, block)| self.change(volume, block, |_| {}));
                }
            }
        }
    }

    /// Changes a block, and gives up what no view shows any more.
    fn change(&self, volume: VolumeId, block: &mut Block, change: impl FnOnce(&mut Block)) {
        let before = data_count(block);
        change(block);
        let snapshots: Vec<Version> =
            self.snapshots.borrow().get(&volume).into_iter().flatten().map(|(version, _)| *version).collect();
        let versions: Vec<Version> = block.keys().copied().collect();
        for pair in versions.windows(2).filter(|pair| !is_shown(&snapshots, pair[0], pair[1])) {
            block.remove(&pair[0]);
        }
        self.data_count.set(self.data_count.get() + data_count(block) - before);
    }

    fn look_up(
        &self,
        volume: VolumeId,
        at: Option<Version>,
        address: BlockAddress,
    ) -> Result<Bytes, StoreError> {
        let at = self.view(volume, at)?;
        if self.unreadable.borrow().contains(&(volume, address)) {
            return Err(StoreError::Medium { volume, address });
        }
        let blocks = self.blocks.borrow();
        let shown = blocks.get(&(volume, address)).and_then(|block| shown_at(block, at));
        Ok(shown.and_then(|(_, data)| data.clone()).unwrap_or_else(|| self.zeros.clone()))
    }

    fn changes(
        &self,
        volume: VolumeId,
        since: Version,
        at: Version,
        from: BlockAddress,
        limit: usize,
    ) -> Changes {
        let blocks = self.blocks.borrow();
        let mut changes = Changes::default();
        for ((_, address), block) in blocks.range((volume, from)..=(volume, BlockAddress(u64::MAX))) {
            let changed = shown_at(block, at).filter(|(version, _)| !version.is_covered_by(since));
            let Some((version, data)) = changed else { continue };
            if !changes.push(*address, version, data.is_some(), limit) {
                break;
            }
        }
        changes
    }

    fn runs(
        &self,
        volume: VolumeId,
        at: Version,
        address: BlockAddress,
        count: u64,
        limit: usize,
    ) -> Vec<BlockRun> {
        let blocks = self.blocks.borrow();
        let end = address.0.saturating_add(count);
        let range = blocks.range((volume, address)..(volume, BlockAddress(end)));
        let mapped = range.filter(|(_, block)| shown_at(block, at).is_some_and(|(_, data)| data.is_some()));
        let mut mapped = mapped.map(|((_, address), _)| address.0).peekable();
        let mut runs = Vec::new();
        let mut position = address.0;
        while position < end && runs.len() < limit {
            let next = mapped.peek().copied().unwrap_or(end);
            let start = BlockAddress(position);
            let is_mapped = next == position;
            if is_mapped {
                while mapped.next_if_eq(&position).is_some() {
                    position += 1;
                }
            } else {
                position = next;
            }
            runs.push(BlockRun { address: start, count: position - start.0, mapped: is_mapped });
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::executor::Executor;

    const VOLUME: VolumeId = VolumeId(1);

    fn at(sequence: u64) -> Version {
        Version { epoch: 1, sequence }
    }

    fn data(address: u64, fill: u8) -> Vec<BlockWrite> {
        let data = AlignedBuf::copy_of(&[fill; BLOCK_SIZE]).freeze();
        vec![BlockWrite::Data { address: BlockAddress(address), checksum: Crc32::of(&data), data }]
    }

    fn hole(address: u64) -> Vec<BlockWrite> {
        vec![BlockWrite::Hole { address: BlockAddress(address), count: 1 }]
    }

    #[test]
    fn snapshots_show_what_was() {
        let executor = Executor::new(1);
        let store = MemoryStore::new(executor.world("node"), Duration::from_millis(1));
        let byte = async |snapshot: Option<u64>, address| {
            let address = BlockAddress(address);
            let data = match snapshot {
                Some(snapshot) => store.read_at(VOLUME, at(snapshot), address, 1).await,
                None => store.read(VOLUME, address, 1).await,
            };
            data.map(|data| data[0][0])
        };
        let snapshot = |name: &'static [u8]| vec![BlockWrite::Snapshot { record: Bytes::from_static(name) }];
        let done = executor.block_on(async {
            store.append(VOLUME, at(1), data(7, 1)).await.unwrap();
            store.append(VOLUME, at(2), snapshot(b"first")).await.unwrap();
            store.append(VOLUME, at(3), data(7, 3)).await.unwrap();
            store.append(VOLUME, at(4), data(7, 4)).await.unwrap();
            store.append(VOLUME, at(5), snapshot(b"second")).await.unwrap();
            store.append(VOLUME, at(6), hole(7)).await.unwrap();
            let shown = (byte(Some(2), 7).await, byte(Some(5), 7).await, byte(None, 7).await);
            assert_eq!(shown, (Ok(1), Ok(4), Ok(0)));
            assert_eq!((store.mapped_block_count(), store.held_block_count()), (0, 2));
            let between = store.changed_between(VOLUME, at(2), at(5), BlockAddress(0), 9).await.unwrap();
            assert_eq!(between.runs.iter().map(|run| run.version).collect::<Vec<_>>(), [at(4)]);
            // History of another block.
            store.start_append_at(VOLUME, at(5), data(8, 5)).unwrap().await.unwrap();
            store.append(VOLUME, at(7), data(8, 7)).await.unwrap();
            assert_eq!(
                (byte(Some(2), 8).await, byte(Some(5), 8).await, byte(None, 8).await),
                (Ok(0), Ok(5), Ok(7))
            );
            let dropped = vec![BlockWrite::SnapshotDropped { snapshot: at(5) }];
            store.append(VOLUME, at(8), dropped).await.unwrap();
            let gone = StoreError::NoSuchSnapshot { volume: VOLUME, snapshot: at(5) };
            assert_eq!((byte(Some(2), 7).await, byte(Some(5), 7).await), (Ok(1), Err(gone)));
            assert_eq!((store.mapped_block_count(), store.held_block_count()), (1, 1));
            let left = store.snapshots(VOLUME).unwrap();
            assert_eq!(left, [SnapshotEntry { version: at(2), record: Bytes::from_static(b"first") }]);
        });
        done.unwrap();
    }
}
