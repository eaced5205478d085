//! A block store in memory: what volumes, logical units and servers are tried on without disks.
//!
//! Guarantees: those of [`BlockStore`], with delays from the runtime's randomness: appends settle in
//! the order in which they were called, their callers learn of it in any order, and a read of several
//! blocks looks at each of them at another moment. It asserts what callers owe the interface:
//! versions that grow, checksums that match, aligned blocks, ascending and disjoint changes.

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
use crate::store::interface::{BlockRun, BlockStore, BlockWrite, ChangeLog, Changes, StoreError};

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
                versions: RefCell::default(),
                latest: RefCell::default(),
                removed: RefCell::default(),
                unreadable: RefCell::default(),
                is_offline: Cell::new(false),
                capacity_blocks: Cell::new(u64::MAX),
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

    /// Removes a volume with everything in it.
    pub fn remove(&self, volume: VolumeId) {
        self.shared.removed.borrow_mut().insert(volume);
        self.shared.blocks.borrow_mut().retain(|(owner, _), _| *owner != volume);
        self.shared.versions.borrow_mut().retain(|(owner, _), _| *owner != volume);
    }

    /// Blocks that hold data, in all volumes.
    #[must_use]
    pub fn mapped_block_count(&self) -> u64 {
        self.shared.blocks.borrow().len() as u64
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
        self.shared.admit(volume, version, &writes)?;
        let settled = self.shared.clone().log_append(volume, version, writes);
        let shared = self.shared.clone();
        Ok(async move {
            // The sender is dropped only with the whole world.
            let _ = settled.await;
            shared.delay().await;
            if shared.is_offline.get() { Err(StoreError::Offline) } else { Ok(()) }
        })
    }

    async fn read(
        &self,
        volume: VolumeId,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.shared.read_count.set(self.shared.read_count.get() + 1);
        let mut pieces = Vec::new();
        for offset in 0..count {
            if offset == 0 || self.shared.runtime.random().is_multiple_of(4) {
                self.shared.delay().await;
            }
            pieces.push(self.shared.look_up(volume, address.offset(offset))?);
        }
        self.shared.delay().await;
        Ok(pieces)
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
        Ok(self.shared.runs(volume, address, count, limit))
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
        let versions = self.shared.versions.borrow();
        let mut changes = Changes::default();
        let all = versions.range((volume, from)..=(volume, BlockAddress(u64::MAX)));
        for ((_, address), (version, is_mapped)) in all.filter(|(_, (v, _))| !v.is_covered_by(since)) {
            if !changes.push(*address, *version, *is_mapped, limit) {
                break;
            }
        }
        Ok(changes)
    }
}

struct Shared {
    runtime: RuntimeHandle,
    longest_delay: Duration,
    zeros: Bytes,
    /// Appends in the order of their calls, until they settle.
    log: RefCell<VecDeque<Entry>>,
    /// Settled blocks that hold data.
    blocks: RefCell<BTreeMap<(VolumeId, BlockAddress), Bytes>>,
    /// Settled blocks that were ever written, with whether they hold data now.
    versions: RefCell<BTreeMap<(VolumeId, BlockAddress), (Version, bool)>>,
    latest: RefCell<BTreeMap<VolumeId, Version>>,
    removed: RefCell<BTreeSet<VolumeId>>,
    unreadable: RefCell<BTreeSet<(VolumeId, BlockAddress)>>,
    is_offline: Cell<bool>,
    capacity_blocks: Cell<u64>,
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

    /// Checks an append for what its caller owes and for what the store can take.
    fn admit(&self, volume: VolumeId, version: Version, writes: &[BlockWrite]) -> Result<(), StoreError> {
        let previous = self.latest.borrow_mut().insert(volume, version);
        assert!(previous <= Some(version), "version {version:?} appended after {previous:?}");
        assert!(!writes.is_empty(), "an append without changes");
        self.append_count.set(self.append_count.get() + 1);
        let mut end = 0;
        let mut data_count = 0;
        for write in writes {
            let (address, count) = match write {
                BlockWrite::Data { address, data, checksum } => {
                    assert_eq!(data.len(), BLOCK_SIZE);
                    assert!(is_block_aligned(data), "block {} is not aligned in memory", address.0);
                    assert_eq!(*checksum, Crc32::of(data), "checksum of block {}", address.0);
                    data_count += 1;
                    (address, 1)
                }
                BlockWrite::Hole { address, count } => (address, *count),
            };
            assert!(count > 0 && address.0 >= end, "changes are not ascending and disjoint");
            end = address.0 + count;
        }
        self.check(volume)?;
        // Counts overwrites as new blocks, which is only ever too strict.
        let mapped_count = self.blocks.borrow().len() as u64;
        let fits = data_count == 0 || mapped_count + data_count <= self.capacity_blocks.get();
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

    /// As the real store does: a block's newest version wins, and of equal ones the later append.
    fn apply(&self, volume: VolumeId, version: Version, write: BlockWrite) {
        let (mut blocks, mut versions) = (self.blocks.borrow_mut(), self.versions.borrow_mut());
        match write {
            BlockWrite::Data { address, data, .. } => {
                let place = (volume, address);
                if versions.get(&place).is_some_and(|(newest, _)| *newest > version) {
                    return;
                }
                // A copy, so that a buffer reused too early shows.
                let kept = AlignedBuf::copy_of(&data).freeze();
                self.unreadable.borrow_mut().remove(&place);
                blocks.insert(place, kept);
                versions.insert(place, (version, true));
            }
            BlockWrite::Hole { address, count } => {
                let range = (volume, address)..(volume, address.offset(count));
                for (place, known) in versions.range_mut(range).filter(|(_, known)| known.0 <= version) {
                    *known = (version, false);
                    blocks.remove(place);
                    self.unreadable.borrow_mut().remove(place);
                }
            }
        }
    }

    fn look_up(&self, volume: VolumeId, address: BlockAddress) -> Result<Bytes, StoreError> {
        self.check(volume)?;
        if self.unreadable.borrow().contains(&(volume, address)) {
            return Err(StoreError::Medium { volume, address });
        }
        let blocks = self.blocks.borrow();
        Ok(blocks.get(&(volume, address)).unwrap_or(&self.zeros).clone())
    }

    fn runs(&self, volume: VolumeId, address: BlockAddress, count: u64, limit: usize) -> Vec<BlockRun> {
        let blocks = self.blocks.borrow();
        let end = address.0.saturating_add(count);
        let range = (volume, address)..(volume, BlockAddress(end));
        let mut mapped = blocks.range(range).map(|((_, address), _)| address.0).peekable();
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
