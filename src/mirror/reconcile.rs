//! The replica's side of bringing snapshots up to date: its list becomes that of the source before anything else of
//! the stream is taken, and history takes its place under older versions.
//!
//! **The kept state.** A replica that was whole takes a snapshot of what it has, at its latest version, before the
//! first write behind the gap: its last consistent state, until the resync is complete. It is not in the source's list
//! and is spared by all reconciling, also of later streams, by its kind. When space is short it goes first.
//!
//! **What the coverage says of snapshots.** "Everything through a version" includes what the views at all snapshots show
//! of it. So when one has to be made here that this replica has had (it dropped it, in an epoch that is void), nothing counts
//! any more: everything is compared, and copied as far as it differs. Who dropped it may have given up any entry that only
//! this snapshot showed; and to compare from an older snapshot on is not enough, as the source may have forgotten holes
//! behind it (docs/protocol.md).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use futures::future::{LocalBoxFuture, try_join_all};

use super::coverage::Coverage;
use super::message::{FromReplica, ReplicaFailure};
use super::mutant::{self, Mutant};
use super::replica::{Chain, MOST_REPORTED_RUNS, Shared};
use crate::base::units::{BlockAddress, Version};
use crate::store::interface::{
    BlockWrite, ChangeLog, Changes, SnapshotEntry, SnapshotStore, StoreError, rollback_of,
};
use crate::volume::snapshot::{SnapshotKind, SnapshotRecord};

/// What a stream has to do with snapshots that are not the source's.
#[derive(Default)]
pub(super) struct Kept {
    /// What the replica had when this stream joined, being whole.
    taken: Cell<Option<Version>>,
    /// All such snapshots that there are.
    all: RefCell<Vec<Version>>,
}

impl<S: SnapshotStore + ChangeLog + 'static> Shared<S> {
    /// Takes the kept state, if this replica has one: its record still says that it is whole.
    pub(super) async fn keep_state(&self, chain: &Chain) {
        let (volume, latest) = (chain.volume, chain.last.get());
        let was_whole = self.records.coverage(volume) == Coverage::Whole;
        if !was_whole || latest == Version::default() {
            return;
        }
        let is_there = |entry: &SnapshotEntry| entry.version == latest;
        let is_rollback = |entry: &SnapshotEntry| rollback_of(&entry.record).is_some();
        let is_taken = match self.store.snapshots(volume) {
            // A view is not what the volume shows then; and the mark goes when the source is done.
            Ok(own) if own.iter().any(is_rollback) && !mutant::is(Mutant::KeptStateInRollback) => false,
            Ok(own) if own.iter().any(is_there) => true,
            Ok(_) => self.append_statement(chain, latest, self.kept_record()).await.is_ok(),
            Err(_) => false,
        };
        // Without it, the resync goes on all the same: redundancy comes first.
        chain.kept.taken.set(is_taken.then_some(latest));
    }

    fn kept_record(&self) -> BlockWrite {
        let record = SnapshotRecord {
            id: self.runtime.random().max(1),
            name: "before-resync".to_owned(),
            taken_unix_ms: self.records.unix_ms(),
            protected_until_unix_ms: None,
            kind: SnapshotKind::BeforeResync,
            group: None,
        };
        BlockWrite::Snapshot { record: record.encode().into() }
    }

    fn append_statement(
        &self,
        chain: &Chain,
        version: Version,
        statement: BlockWrite,
    ) -> LocalBoxFuture<'static, Result<(), StoreError>> {
        match self.store.start_append_at(chain.volume, version, vec![statement]) {
            Ok(durable) => Box::pin(durable),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn append_drop(
        &self,
        chain: &Chain,
        snapshot: Version,
    ) -> LocalBoxFuture<'static, Result<(), StoreError>> {
        self.append_statement(chain, chain.last.get(), BlockWrite::SnapshotDropped { snapshot })
    }

    /// Makes the replica's snapshots behind `after`, through `through`, those of `list`.
    pub(super) async fn reconcile(
        &self,
        chain: &Rc<Chain>,
        after: Option<Version>,
        through: Option<Version>,
        list: Vec<SnapshotEntry>,
    ) {
        if !mutant::is(Mutant::SnapshotNotReconciled)
            && let Err(reason) = self.try_reconcile(chain, after, through, &list).await
        {
            return self.fail(chain, reason);
        }
        if through.is_none() && !chain.has_ended.get() {
            let (volume, stream) = (chain.volume, chain.stream);
            let coverage = Coverage::Partial(self.coverage(volume).steps(chain.last.get()));
            (chain.answer)(FromReplica::Reconciled { volume, stream, coverage });
        }
    }

    async fn try_reconcile(
        &self,
        chain: &Rc<Chain>,
        after: Option<Version>,
        through: Option<Version>,
        list: &[SnapshotEntry],
    ) -> Result<(), ReplicaFailure> {
        let volume = chain.volume;
        let own = self.store.snapshots(volume)?;
        let is_meant = |version: Version| {
            after.is_none_or(|after| version > after) && through.is_none_or(|through| version <= through)
        };
        let listed = |version: Version| list.iter().find(|entry| entry.version == version);
        let missing: Vec<&SnapshotEntry> =
            list.iter().filter(|entry| own.iter().all(|known| known.version != entry.version)).collect();
        // Whoever has come past the version of a snapshot has had it.
        let had = |entry: &&SnapshotEntry| entry.version.is_covered_by(chain.last.get());
        if missing.iter().any(had)
            && !mutant::is(Mutant::VoidDropCounts)
            && !self.save(volume, |_| Some(Coverage::through(Version::default())), Some(chain)).await
        {
            return Err(ReplicaFailure::Records);
        }
        let mut statements = Vec::new();
        for known in own.iter().filter(|known| is_meant(known.version)) {
            let is_taken = chain.kept.taken.get() == Some(known.version);
            let is_kept = SnapshotRecord::is_before_resync(&known.record);
            let has_taken = chain.kept.taken.get().is_some();
            match listed(known.version) {
                Some(entry) if entry.record == known.record => {}
                Some(entry) => statements.push(self.create(chain, entry)),
                None if is_taken && !is_kept => {
                    statements.push(self.append_statement(chain, known.version, self.kept_record()));
                    chain.kept.all.borrow_mut().push(known.version);
                }
                None if is_taken || (is_kept && !has_taken) => {
                    chain.kept.all.borrow_mut().push(known.version);
                }
                None => statements.push(self.append_drop(chain, known.version)),
            }
        }
        statements.extend(missing.iter().map(|entry| self.create(chain, entry)));
        try_join_all(statements).await?;
        if mutant::is(Mutant::KeptStateDroppedEarly) {
            self.drop_kept(chain).await?;
        }
        Ok(())
    }

    fn create(
        &self,
        chain: &Chain,
        entry: &SnapshotEntry,
    ) -> LocalBoxFuture<'static, Result<(), StoreError>> {
        let record: Bytes = entry.record.clone();
        self.append_statement(chain, entry.version, BlockWrite::Snapshot { record })
    }

    /// The kept state is not needed any more.
    pub(super) async fn drop_kept(&self, chain: &Chain) -> Result<(), StoreError> {
        let all = chain.kept.all.take();
        let dropped = all.into_iter().map(|version| self.append_drop(chain, version));
        try_join_all(dropped).await.map(drop)
    }

    /// Gives up the kept state so that the resync finds space. Whether there was one.
    pub(super) fn shed_kept(&self, chain: &Chain) -> bool {
        let all = chain.kept.all.take();
        let is_any = !all.is_empty();
        for version in all {
            // It goes on by itself.
            drop(self.append_drop(chain, version));
        }
        is_any
    }

    /// Takes what blocks were at a snapshot.
    pub(super) fn start_history(
        &self,
        chain: &Rc<Chain>,
        version: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<LocalBoxFuture<'static, Result<(), StoreError>>, ReplicaFailure> {
        if version > chain.last.get() || writes.is_empty() {
            return Err(ReplicaFailure::Protocol);
        }
        let durable = self.store.start_append_at(chain.volume, version, writes)?;
        Ok(Box::pin(durable))
    }

    /// Tells what is here that `since` does not cover, in the view at a snapshot or now.
    pub(super) async fn report(
        &self,
        chain: &Rc<Chain>,
        since: Version,
        at: Option<Version>,
        from: BlockAddress,
    ) {
        let (volume, stream) = (chain.volume, chain.stream);
        let reported = match at {
            None => self.store.changed_since(volume, since, from, MOST_REPORTED_RUNS).await,
            Some(at) => self.report_at(chain, since, at, from).await,
        };
        match reported {
            Ok(_) if chain.has_ended.get() => {}
            Ok(changes) => (chain.answer)(FromReplica::Reported { volume, stream, from, changes }),
            Err(error) => chain.fail(error.into()),
        }
    }

    async fn report_at(
        &self,
        chain: &Chain,
        since: Version,
        at: Version,
        from: BlockAddress,
    ) -> Result<Changes, StoreError> {
        let volume = chain.volume;
        if self.store.snapshots(volume)?.iter().all(|entry| entry.version != at) {
            // Its statement came before this question, and may not have settled.
            self.store.flush().await?;
        }
        match self.store.changed_between(volume, since, at, from, MOST_REPORTED_RUNS).await {
            // Dropped since it was asked for: the source sees that before it uses the answer.
            Err(StoreError::NoSuchSnapshot { .. }) => Ok(Changes::default()),
            reported => reported,
        }
    }
}
