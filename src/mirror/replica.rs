//! The other end of the mirrors of a node: takes the primaries' writes in order, fenced by epochs.
//!
//! Guarantees: nothing of an epoch below the one that was promised reaches the store (I6); before anything
//! of a newer epoch does, this node's own older writes have ended and the promise is durable (I7); of each
//! volume only the newest stream is heard, whatever connection older ones came on, and it goes on behind
//! what these brought; writes are taken in the order of their chain, duplicates once, and a gap ends the
//! stream; what is answered as durable is so, with all before it.
//!
//! While a resync is under way the record says of which blocks what is here ([`Coverage`]); it is made
//! before the first write that follows a gap, and made good only when the source has seen every copy
//! answered. It is kept with the data, since it speaks of it. What becomes of snapshots is in `reconcile`.
//!
//! Left to others: reading from here (nobody does, the primary answers reads), what a failure means for the
//! configuration, keeping the messages of one connection in their order.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

use futures::lock::Mutex;

use super::coverage::{Coverage, Held};
use super::message::{FromReplica, ReplicaFailure, StreamId, ToReplica, size_of_writes};
use super::mutant::{self, Mutant};
use super::reconcile::Kept;
use crate::base::runtime::{LocalBoxFuture, RuntimeHandle};
use crate::base::signal::Signal;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::store::interface::{BlockWrite, ChangeLog, SnapshotEntry, SnapshotStore, StoreError};
use crate::volume::snapshot::SnapshotRecord;

/// What a node owes the epochs that it has promised.
pub trait Fence {
    /// The newest epoch promised for a volume: it rises before [`Fence::promise`] begins to drain, so that
    /// nothing older is let in behind the drain.
    fn promised(&self, volume: VolumeId) -> u32;
    /// Ends what this node itself does for the volume in epochs before `epoch`, waits until none of it is
    /// in flight, and records the promise durably. Whether that worked.
    fn promise(&self, volume: VolumeId, epoch: u32) -> LocalBoxFuture<'static, bool>;
    /// What the store has of the volume or was given, durable or on its way there, by this node as primary
    /// and by what it took as replica.
    fn held(&self, volume: VolumeId) -> Held;
}

/// What a replica keeps about volumes, in its store, so that it is lost with the data if that is lost.
pub trait Records {
    /// What was saved last; [`Coverage::Whole`] of a volume that was never saved, and
    /// [`Coverage::through`] the least version of one that is new here.
    fn coverage(&self, volume: VolumeId) -> Coverage;
    /// Saves it durably. Whether that worked.
    fn save_coverage(&self, volume: VolumeId, coverage: Coverage) -> LocalBoxFuture<'static, bool>;
    /// Both replicas have everything through `version`: nothing that it covers is needed for a resync.
    fn settled(&self, volume: VolumeId, version: Version);
    /// What time it is, for people who look at what was kept.
    fn unix_ms(&self) -> u64;
}

/// The replicas on a node, of all volumes. Clones are handles of the same.
pub struct Replicas<S> {
    shared: Rc<Shared<S>>,
}

/// A connection from a primary.
pub struct ReplicaStream<S> {
    shared: Rc<Shared<S>>,
    answer: Answer,
    /// Bytes that were taken and are not durable yet.
    in_flight: Rc<InFlight>,
}

pub(super) struct Shared<S> {
    pub(super) store: Rc<S>,
    fence: Rc<dyn Fence>,
    pub(super) records: Rc<dyn Records>,
    pub(super) runtime: RuntimeHandle,
    volumes: RefCell<BTreeMap<VolumeId, Replica>>,
}

type Answer = Rc<dyn Fn(FromReplica)>;

/// One volume.
struct Replica {
    /// The newest stream that has begun.
    newest: StreamId,
    /// Newest version that was given to the store here.
    taken: Version,
    coverage: Coverage,
    /// Whether the record says the same as `coverage`, or less.
    is_recorded: bool,
    /// One saving at a time, so that the last one is the one that counts.
    saving: Rc<Mutex<()>>,
    chain: Option<Rc<Chain>>,
}

/// What came of one volume on one stream.
pub(super) struct Chain {
    pub(super) volume: VolumeId,
    pub(super) stream: StreamId,
    /// Version of the last write that was taken.
    pub(super) last: Cell<Version>,
    durable: Cell<Version>,
    /// Blocks before this one are what they are at the primary.
    passed: Cell<BlockAddress>,
    is_saving: Cell<bool>,
    pub(super) has_ended: Cell<bool>,
    pub(super) answer: Answer,
    pub(super) kept: Kept,
}

#[derive(Default)]
struct InFlight {
    bytes: Cell<u64>,
    less: Signal,
}

impl<S> Clone for Replicas<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<S: SnapshotStore + ChangeLog + 'static> Replicas<S> {
    /// A node's replicas, of whatever primaries will connect.
    pub fn new(store: Rc<S>, fence: Rc<dyn Fence>, records: Rc<dyn Records>, runtime: RuntimeHandle) -> Self {
        let shared = Shared { store, fence, records, runtime, volumes: RefCell::default() };
        Self { shared: Rc::new(shared) }
    }

    /// A primary has connected; `answer` queues what is sent back to it.
    pub fn connect(&self, answer: impl Fn(FromReplica) + 'static) -> ReplicaStream<S> {
        ReplicaStream { shared: self.shared.clone(), answer: Rc::new(answer), in_flight: Rc::default() }
    }

    /// Takes nothing of the volume's present stream any more, and waits for what was taken; what the node
    /// has then. Before this node becomes primary, with the newer epoch promised. The epoch's first
    /// sequence number is then the one behind [`Held::whole_through`], and the volume's next one is the one
    /// behind [`Held::latest`], if it is greater.
    ///
    /// # Errors
    /// When the store is offline.
    pub async fn end(&self, volume: VolumeId) -> Result<Held, StoreError> {
        let shared = &self.shared;
        shared.end_chain(volume);
        let saving = shared.saving(volume);
        let _turn = saving.lock().await;
        let held = shared.held(volume);
        shared.store.flush().await?;
        shared.volumes.borrow_mut().remove(&volume);
        Ok(held)
    }

    /// Of which blocks everything through a version is here.
    #[must_use]
    pub fn coverage(&self, volume: VolumeId) -> Coverage {
        self.shared.coverage(volume)
    }

    /// What is kept of a volume until its resync is complete: the version of that state, and what is noted of it.
    #[must_use]
    pub fn kept_state(&self, volume: VolumeId) -> Option<(Version, SnapshotRecord)> {
        if self.coverage(volume) == Coverage::Whole {
            return None;
        }
        let own = self.shared.store.snapshots(volume).ok()?;
        let is_kept = |entry: &SnapshotEntry| SnapshotRecord::is_before_resync(&entry.record);
        let kept = own.iter().rev().find(|entry| is_kept(entry))?;
        Some((kept.version, SnapshotRecord::decode(&kept.record).ok()?))
    }

    /// Epoch of the present stream of a volume, zero without one.
    #[must_use]
    pub fn stream_epoch(&self, volume: VolumeId) -> u32 {
        self.shared.volumes.borrow().get(&volume).map_or(0, |replica| replica.newest.epoch)
    }

    /// The disks here can't give a block back: its primary is asked for it, if it is there. Whether it was.
    pub fn damaged(&self, volume: VolumeId, address: BlockAddress) -> bool {
        let chain = self.shared.volumes.borrow().get(&volume).and_then(|replica| replica.chain.clone());
        let Some(chain) = chain.filter(|chain| !chain.has_ended.get()) else { return false };
        (chain.answer)(FromReplica::Damaged { volume, stream: chain.stream, address });
        true
    }

    /// What this node has is what the volume is from now on, an operator says: on record when this
    /// completes. Whether that worked. What was there through [`Coverage::least`] is what was kept.
    pub async fn adopt(&self, volume: VolumeId) -> bool {
        self.shared.end_chain(volume);
        self.shared.save(volume, |_| Some(Coverage::Whole), None).await
    }
}

impl<S: SnapshotStore + ChangeLog + 'static> ReplicaStream<S> {
    /// Takes the next message of the connection. Completes when the one after it may come: for writes once
    /// they are on their way and there is room for more, after the promise for a new epoch.
    pub async fn receive(&self, message: ToReplica) {
        if let ToReplica::Begin { volume, stream } = message {
            return self.begin(volume, stream).await;
        }
        let (volume, stream) = message.belongs_to();
        if !mutant::is(Mutant::ReplicaUnprepared) {
            self.shared.store.prepare(volume, message.newest_writes()).await;
        }
        // Only now: that may have taken time, and another stream may have begun.
        let Some(chain) = self.shared.chain(volume, stream) else { return };
        match message {
            ToReplica::Begin { .. } => {}
            ToReplica::Join { .. } => self.shared.join(&chain).await,
            ToReplica::Write { version, previous, writes, .. } => {
                self.write(&chain, version, previous, writes);
                self.room().await;
            }
            ToReplica::Copy { number, version, writes, .. } => {
                self.copy(&chain, number, version, writes);
                self.room().await;
            }
            ToReplica::Fetch { number, address, .. } => self.fetch(&chain, number, address),
            ToReplica::Mend { version, writes, .. } => {
                self.mend(&chain, version, writes);
                self.room().await;
            }
            ToReplica::Snapshots { after, through, list, .. } => {
                self.shared.reconcile(&chain, after, through, list).await;
            }
            ToReplica::History { number, version, writes, .. } => {
                self.history(&chain, number, version, writes);
                self.room().await;
            }
            ToReplica::Report { since, at, from, .. } => self.shared.report(&chain, since, at, from).await,
            ToReplica::Passed { cursor, .. } => self.shared.passed(&chain, cursor),
            ToReplica::Finish { .. } => self.shared.finish(&chain).await,
            ToReplica::Settled { version, .. } => {
                if self.shared.coverage(volume) == Coverage::Whole && version <= chain.last.get() {
                    self.shared.records.settled(volume, version);
                }
            }
        }
    }

    async fn begin(&self, volume: VolumeId, stream: StreamId) {
        let shared = &self.shared;
        let fenced = |promised| (self.answer)(FromReplica::Fenced { volume, stream, promised });
        let promised = shared.fence.promised(volume);
        if stream.epoch < promised {
            return fenced(promised);
        }
        if !shared.begin(volume, stream) {
            return; // a newer one has begun
        }
        let failed = |reason| (self.answer)(FromReplica::Failed { volume, stream, reason });
        // Also when it was promised before: the drain for it, or its saving, may still be under way.
        if !shared.fence.promise(volume, stream.epoch).await {
            return failed(ReplicaFailure::Records);
        }
        // What older streams brought is on its way to the store still: the chain goes on behind it. What
        // comes later than this is not covered by the flush.
        let durable = shared.held(volume).latest;
        if let Err(error) = shared.store.flush().await {
            return failed(error.into());
        }
        // What an older stream was putting on record is there, and it begins nothing more.
        drop(shared.saving(volume).lock().await);
        let promised = shared.fence.promised(volume);
        if promised > stream.epoch {
            return fenced(promised);
        }
        let chain = Chain {
            volume,
            stream,
            last: Cell::new(durable),
            durable: Cell::new(durable),
            passed: Cell::new(BlockAddress(0)),
            is_saving: Cell::new(false),
            has_ended: Cell::new(false),
            answer: self.answer.clone(),
            kept: Kept::default(),
        };
        let Some(coverage) = shared.go_on(Rc::new(chain)) else { return };
        (self.answer)(FromReplica::Ready { volume, stream, durable, coverage });
    }

    fn write(&self, chain: &Rc<Chain>, version: Version, previous: Version, writes: Vec<BlockWrite>) {
        let last = chain.last.get();
        if version <= last && version.sequence <= last.sequence {
            return; // a duplicate
        }
        let is_next = version > last && version.sequence > previous.sequence;
        if previous != last || !is_next || version.epoch > chain.stream.epoch || writes.is_empty() {
            return chain.fail(ReplicaFailure::Gap { expected: previous, found: last });
        }
        chain.last.set(version);
        let on_durable = move |chain: &Chain| chain.answer_durable(version);
        self.append(chain, version, writes, on_durable);
    }

    /// A copy has the version of the latest write, which the store has taken before.
    fn copy(&self, chain: &Rc<Chain>, number: u64, version: Version, writes: Vec<BlockWrite>) {
        if version != chain.last.get() || version.epoch != chain.stream.epoch || writes.is_empty() {
            return chain.fail(ReplicaFailure::Protocol);
        }
        self.append(chain, version, writes, move |chain: &Chain| chain.answer_copied(number));
    }

    /// A copy of what blocks were at a snapshot.
    fn history(&self, chain: &Rc<Chain>, number: u64, version: Version, writes: Vec<BlockWrite>) {
        let bytes = size_of_writes(&writes);
        match self.shared.start_history(chain, version, writes) {
            Ok(durable) => {
                self.answer_when_durable(chain, bytes, durable, move |chain| chain.answer_copied(number));
            }
            Err(reason) => self.shared.fail(chain, reason),
        }
    }

    /// What the block is here; the primary knows that nothing of it is in flight.
    fn fetch(&self, chain: &Rc<Chain>, number: u64, address: BlockAddress) {
        let (shared, chain) = (self.shared.clone(), chain.clone());
        self.shared.runtime.spawn(Box::pin(async move {
            let (volume, stream) = (chain.volume, chain.stream);
            // What was taken is settled first: a rollback may be among it.
            let read = match shared.store.flush().await {
                Ok(()) => shared.store.read(volume, address, 1).await,
                Err(error) => Err(error),
            };
            let block = read.ok().and_then(|blocks| blocks.into_iter().next());
            if !chain.has_ended.get() {
                (chain.answer)(FromReplica::Fetched { volume, stream, number, block });
            }
        }));
    }

    /// A copy of a block that was said to be damaged; it has the version of the latest write.
    fn mend(&self, chain: &Rc<Chain>, version: Version, writes: Vec<BlockWrite>) {
        if version != chain.last.get() || writes.is_empty() {
            return chain.fail(ReplicaFailure::Protocol);
        }
        self.append(chain, version, writes, |_| {});
    }

    fn append(
        &self,
        chain: &Rc<Chain>,
        version: Version,
        writes: Vec<BlockWrite>,
        on_durable: impl Fn(&Chain) + 'static,
    ) {
        let shared = &self.shared;
        shared.note_taken(chain.volume, version);
        let bytes = size_of_writes(&writes);
        let durable = match shared.store.start_append(chain.volume, version, writes) {
            Ok(durable) => durable,
            Err(error) => return shared.fail(chain, error.into()),
        };
        if mutant::is(Mutant::AnswerBeforeDurable) {
            on_durable(chain);
        }
        self.answer_when_durable(chain, bytes, durable, on_durable);
    }

    fn answer_when_durable(
        &self,
        chain: &Rc<Chain>,
        bytes: u64,
        durable: impl Future<Output = Result<(), StoreError>> + 'static,
        on_durable: impl Fn(&Chain) + 'static,
    ) {
        let (chain, in_flight) = (chain.clone(), self.in_flight.clone());
        in_flight.bytes.set(in_flight.bytes.get() + bytes);
        self.shared.runtime.spawn(Box::pin(async move {
            match durable.await {
                Ok(()) => on_durable(&chain),
                Err(error) => chain.fail(error.into()),
            }
            in_flight.bytes.set(in_flight.bytes.get() - bytes);
            in_flight.less.notify();
        }));
    }

    /// Waits until what came on this connection takes a bounded amount of memory, whatever the other
    /// side's window is.
    async fn room(&self) {
        self.in_flight.less.until(|| self.in_flight.bytes.get() <= MOST_IN_FLIGHT_BYTES).await;
    }
}

impl<S: SnapshotStore + ChangeLog + 'static> Shared<S> {
    /// The chain of a stream, if it is the present one and its epoch is not fenced off.
    fn chain(&self, volume: VolumeId, stream: StreamId) -> Option<Rc<Chain>> {
        let chain = self.volumes.borrow().get(&volume).and_then(|replica| replica.chain.clone())?;
        let is_heard = chain.stream == stream || mutant::is(Mutant::OldStreamWrites);
        if !is_heard || chain.has_ended.get() {
            return None;
        }
        let promised = self.fence.promised(volume);
        if promised > stream.epoch && !mutant::is(Mutant::NoFence) {
            chain.has_ended.set(true);
            (chain.answer)(FromReplica::Fenced { volume, stream, promised });
            return None;
        }
        Some(chain)
    }

    /// A stream begins: older ones have ended. False when it is an older one itself.
    fn begin(&self, volume: VolumeId, stream: StreamId) -> bool {
        {
            let mut volumes = self.volumes.borrow_mut();
            let replica = volumes.entry(volume).or_insert_with(|| self.new_replica(volume));
            if stream <= replica.newest {
                return false;
            }
            replica.newest = stream;
        }
        self.end_chain(volume);
        true
    }

    fn new_replica(&self, volume: VolumeId) -> Replica {
        let newest = StreamId { epoch: 0, number: 0 };
        let (coverage, is_recorded) = self.recorded(volume);
        let (saving, taken) = (Rc::default(), Version::default());
        Replica { newest, taken, coverage, is_recorded, saving, chain: None }
    }

    /// Ends the present chain: nothing of it is taken any more. What it brought counts.
    fn end_chain(&self, volume: VolumeId) {
        let mut volumes = self.volumes.borrow_mut();
        let Some(replica) = volumes.get_mut(&volume) else { return };
        if let Some(ended) = replica.chain.take() {
            ended.has_ended.set(true);
            replica.coverage = replica.coverage.raised(ended.passed.get(), ended.last.get());
        }
    }

    /// The new stream's chain is the present one, unless a newer stream has begun meanwhile.
    fn go_on(&self, chain: Rc<Chain>) -> Option<Coverage> {
        let mut volumes = self.volumes.borrow_mut();
        let replica = volumes.get_mut(&chain.volume).filter(|replica| replica.newest == chain.stream)?;
        replica.chain = Some(chain);
        Some(replica.coverage.clone())
    }

    fn held(&self, volume: VolumeId) -> Held {
        let taken = self.volumes.borrow().get(&volume).map(|replica| replica.taken);
        let held = self.fence.held(volume);
        taken.filter(|taken| *taken > held.latest).map_or(held, Held::all_through)
    }

    /// What is here, by the record and by what may have been lost since.
    fn recorded(&self, volume: VolumeId) -> (Coverage, bool) {
        let (recorded, held) = (self.records.coverage(volume), self.fence.held(volume));
        let may_lack = held.whole_through != held.latest;
        if recorded == Coverage::Whole && may_lack {
            return (Coverage::through(held.whole_through), false);
        }
        (recorded, true)
    }

    fn note_taken(&self, volume: VolumeId, version: Version) {
        if let Some(replica) = self.volumes.borrow_mut().get_mut(&volume) {
            replica.taken = replica.taken.max(version);
        }
    }

    pub(super) fn coverage(&self, volume: VolumeId) -> Coverage {
        let known = self.volumes.borrow().get(&volume).map(|replica| replica.coverage.clone());
        known.unwrap_or_else(|| self.recorded(volume).0)
    }

    /// Puts on record what follows from the coverage so far, if anything does; it counts here once it is there. False
    /// when that failed, or when the chain that it comes of has ended before.
    pub(super) async fn save(
        &self,
        volume: VolumeId,
        next: impl FnOnce(&Coverage) -> Option<Coverage>,
        of: Option<&Chain>,
    ) -> bool {
        let saving = self.saving(volume);
        let _turn = saving.lock().await;
        if of.is_some_and(|chain| chain.has_ended.get()) {
            return false;
        }
        // Only now: what was saved before in its turn may have said more.
        let Some(coverage) = next(&self.coverage(volume)) else { return true };
        let is_saved = self.records.save_coverage(volume, coverage.clone()).await;
        if let Some(replica) = self.volumes.borrow_mut().get_mut(&volume) {
            replica.is_recorded = is_saved;
            if is_saved {
                replica.coverage = coverage;
            }
        }
        is_saved
    }

    fn saving(&self, volume: VolumeId) -> Rc<Mutex<()>> {
        let mut volumes = self.volumes.borrow_mut();
        volumes.entry(volume).or_insert_with(|| self.new_replica(volume)).saving.clone()
    }

    /// Ends the stream for a reason that the store gave. Where that is a lack of space, the kept state goes first: the
    /// source tries again.
    pub(super) fn fail(&self, chain: &Chain, reason: ReplicaFailure) {
        if reason == ReplicaFailure::Store(StoreError::OutOfSpace) {
            self.shed_kept(chain);
        }
        chain.fail(reason);
    }

    async fn join(&self, chain: &Rc<Chain>) {
        let known = self.volumes.borrow().get(&chain.volume).map(|r| (r.coverage.clone(), r.is_recorded));
        let Some((coverage, is_recorded)) = known else { return };
        if (coverage != Coverage::Whole && is_recorded) || mutant::is(Mutant::JoinNotRecorded) {
            return;
        }
        self.keep_state(chain).await;
        let has = Coverage::Partial(coverage.steps(chain.last.get()));
        if !self.save(chain.volume, |_| Some(has), Some(chain)).await {
            chain.fail(ReplicaFailure::Records);
        }
    }

    /// Puts the cursor on record, one saving at a time. What is lost of it is copied again, no more.
    fn passed(self: &Rc<Self>, chain: &Rc<Chain>, cursor: BlockAddress) {
        chain.passed.set(chain.passed.get().max(cursor));
        if chain.is_saving.replace(true) {
            return;
        }
        let (shared, chain) = (self.clone(), chain.clone());
        self.runtime.spawn(Box::pin(async move {
            let raised = |coverage: &Coverage| {
                // Every write through `durable` that concerns blocks before the cursor is on stable media.
                let (cursor, durable) = (chain.passed.get(), chain.durable.get());
                let raised = coverage.raised(cursor, durable);
                (raised != Coverage::Whole).then_some(raised)
            };
            shared.save(chain.volume, raised, Some(&chain)).await;
            chain.is_saving.set(false);
        }));
    }

    async fn finish(&self, chain: &Rc<Chain>) {
        let (volume, stream) = (chain.volume, chain.stream);
        // Before the record: a whole replica has the snapshots of its source and no other one.
        if let Err(error) = self.drop_kept(chain).await {
            return chain.fail(error.into());
        }
        if !self.save(volume, |_| Some(Coverage::Whole), Some(chain)).await {
            return chain.fail(ReplicaFailure::Records);
        }
        if !chain.has_ended.get() {
            (chain.answer)(FromReplica::Whole { volume, stream });
        }
    }
}

impl Chain {
    fn answer_durable(&self, version: Version) {
        // A later one has been answered already, and with it this one.
        if version > self.durable.get() && !self.has_ended.get() {
            self.durable.set(version);
            (self.answer)(FromReplica::Durable { volume: self.volume, stream: self.stream, version });
        }
    }

    fn answer_copied(&self, number: u64) {
        if !self.has_ended.get() {
            let (volume, stream) = (self.volume, self.stream);
            (self.answer)(FromReplica::Copied { volume, stream, number });
        }
    }

    pub(super) fn fail(&self, reason: ReplicaFailure) {
        if !self.has_ended.replace(true) {
            let (volume, stream) = (self.volume, self.stream);
            (self.answer)(FromReplica::Failed { volume, stream, reason });
        }
    }
}

/// Most bytes of a connection that are on their way to the store.
const MOST_IN_FLIGHT_BYTES: u64 = 32 << 20;
/// Runs of a report: some 20 KiB.
pub(super) const MOST_REPORTED_RUNS: usize = 512;
