//! What the primary sends to a replica that joins, beside the chain: copies, with credits of their own,
//! questions, and how far the copying is.
//!
//! Invariant: a copy counts as done only when the replica has answered it on the stream that it was sent
//! on; a stream that ends fails everything that waits, and all that a [`Joiner`] does afterwards.

use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

use futures::channel::oneshot;

use super::coverage::{Coverage, CoverageStep};
use super::message::{StreamId, ToReplica, size_of_writes};
use super::primary::Shared;
use crate::base::runtime::Instant;
use crate::base::units::{BlockAddress, Version};
use crate::store::interface::{BlockWrite, Changes};

/// A replica that takes part and lacks something. Ends with its stream.
pub struct Joiner<S> {
    shared: Rc<Shared<S>>,
    stream: StreamId,
    steps: Vec<CoverageStep>,
    mirrored_after: Version,
}

/// The stream is not there any more: what was asked for may have happened or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream to the replica has ended")]
pub struct StreamEnded;

impl<S> Joiner<S> {
    pub(super) fn begin(
        shared: &Rc<Shared<S>>,
        stream: StreamId,
        steps: Vec<CoverageStep>,
        mirrored_after: Version,
    ) -> Self {
        let joined_at = shared.runtime.now();
        *shared.joining.borrow_mut() = Some(Joining::new(joined_at));
        Self { shared: shared.clone(), stream, steps, mirrored_after }
    }

    /// What the replica had when it joined.
    #[must_use]
    pub fn steps(&self) -> &[CoverageStep] {
        &self.steps
    }

    /// Waits until the replica's snapshots are the source's; what it has then, which is less where it had to make one
    /// that it is known to have had.
    ///
    /// # Errors
    /// When the stream ends first.
    pub async fn reconciled(&self) -> Result<Vec<CoverageStep>, StreamEnded> {
        let steps = || self.shared.joining.borrow().as_ref().and_then(|joining| joining.reconciled.clone());
        self.until(|| steps().is_some()).await?;
        steps().ok_or(StreamEnded)
    }

    /// What is newer than this went or goes to the replica as a write.
    #[must_use]
    pub fn mirrored_after(&self) -> Version {
        self.mirrored_after
    }

    /// Waits until the append of `version` was sent.
    ///
    /// # Errors
    /// When the stream ends first.
    pub async fn until_sent(&self, version: Version) -> Result<(), StreamEnded> {
        let sent = || self.shared.chain.borrow().sent().is_some_and(|sent| sent >= version);
        self.until(sent).await
    }

    /// Waits until there is room for a copy.
    ///
    /// # Errors
    /// When the stream ends first.
    pub async fn room(&self) -> Result<(), StreamEnded> {
        let limit = self.shared.window.borrow().limits().copy_bytes;
        let has_room = || self.shared.joining.borrow().as_ref().is_some_and(|joining| joining.bytes < limit);
        self.until(has_room).await
    }

    /// Sends blocks as they are now. The caller holds them from their reading to this call, so that no
    /// append of them is passed, and an append of this epoch has been sent. The future completes when the
    /// replica has them on stable media.
    ///
    /// # Errors
    /// At once or in the end, when the stream has ended.
    pub fn copy(
        &self,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StreamEnded>> + 'static, StreamEnded> {
        self.check()?;
        let version = self.shared.chain.borrow().sent().ok_or(StreamEnded)?;
        assert_eq!(version.epoch, self.stream.epoch, "a copy before the mark of the epoch");
        let (number, done) = self.add_copy(size_of_writes(&writes))?;
        let volume = self.shared.volume;
        self.shared.send(|stream| ToReplica::Copy { volume, stream, number, version, writes });
        Ok(done)
    }

    /// Sends blocks as they are in the view at a snapshot that the replica has, as the list of the source was sent to
    /// it. Otherwise as [`Joiner::copy`].
    ///
    /// # Errors
    /// At once or in the end, when the stream has ended.
    pub fn copy_history(
        &self,
        snapshot: Version,
        writes: Vec<BlockWrite>,
    ) -> Result<impl Future<Output = Result<(), StreamEnded>> + 'static, StreamEnded> {
        self.check()?;
        let (number, done) = self.add_copy(size_of_writes(&writes))?;
        let volume = self.shared.volume;
        self.shared.send(|stream| ToReplica::History { volume, stream, number, version: snapshot, writes });
        Ok(done)
    }

    fn add_copy(
        &self,
        bytes: u64,
    ) -> Result<(u64, impl Future<Output = Result<(), StreamEnded>> + 'static), StreamEnded> {
        let now = self.shared.runtime.now();
        let added = self.shared.joining.borrow_mut().as_mut().map(|joining| joining.add_copy(bytes, now));
        let (number, done) = added.ok_or(StreamEnded)?;
        Ok((number, async move { done.await.map_err(|_| StreamEnded) }))
    }

    /// What the replica has, from `from` on, that `since` does not cover: in the view at a snapshot, or now.
    ///
    /// # Errors
    /// When the stream ends first.
    pub async fn report(
        &self,
        since: Version,
        at: Option<Version>,
        from: BlockAddress,
    ) -> Result<Changes, StreamEnded> {
        self.check()?;
        let (sender, answer) = oneshot::channel();
        let now = self.shared.runtime.now();
        if let Some(joining) = self.shared.joining.borrow_mut().as_mut() {
            joining.report = Some((from, now, sender));
        }
        let volume = self.shared.volume;
        self.shared.send(|stream| ToReplica::Report { volume, stream, since, at, from });
        answer.await.map_err(|_| StreamEnded)
    }

    /// Tells the replica that all copies of the blocks before `cursor` have been answered.
    pub fn passed(&self, cursor: BlockAddress) {
        if self.check().is_ok() {
            let volume = self.shared.volume;
            self.shared.send(|stream| ToReplica::Passed { volume, stream, cursor });
        }
    }

    /// All copies have been answered: waits until the replica has put that on record.
    ///
    /// # Errors
    /// When the stream ends first.
    pub async fn finish(&self) -> Result<(), StreamEnded> {
        self.check()?;
        if let Some(joining) = self.shared.joining.borrow_mut().as_mut() {
            joining.finishing_since = Some(self.shared.runtime.now());
        }
        let volume = self.shared.volume;
        self.shared.send(|stream| ToReplica::Finish { volume, stream });
        let is_whole = || self.shared.joining.borrow().is_none() && self.is_present();
        self.until(is_whole).await
    }

    fn is_present(&self) -> bool {
        self.shared.stream.borrow().carrying().is_some_and(|(_, stream)| stream == self.stream)
    }

    fn check(&self) -> Result<(), StreamEnded> {
        if self.is_present() { Ok(()) } else { Err(StreamEnded) }
    }

    async fn until(&self, condition: impl Fn() -> bool) -> Result<(), StreamEnded> {
        self.shared.progress.until(|| condition() || !self.is_present()).await;
        self.check()
    }
}

/// What a joiner waits for.
pub(super) struct Joining {
    joined_at: Instant,
    reconciled: Option<Vec<CoverageStep>>,
    copies: BTreeMap<u64, Copying>,
    bytes: u64,
    last_number: u64,
    report: Option<(BlockAddress, Instant, oneshot::Sender<Changes>)>,
    finishing_since: Option<Instant>,
}

struct Copying {
    bytes: u64,
    since: Instant,
    done: oneshot::Sender<()>,
}

impl Joining {
    fn new(joined_at: Instant) -> Self {
        Self {
            joined_at,
            reconciled: None,
            copies: BTreeMap::new(),
            bytes: 0,
            last_number: 0,
            report: None,
            finishing_since: None,
        }
    }

    /// Whether that was expected.
    pub(super) fn reconciled(&mut self, coverage: Coverage) -> bool {
        let is_first = self.reconciled.is_none();
        let Coverage::Partial(steps) = coverage else { return false };
        self.reconciled = Some(steps);
        is_first
    }

    fn add_copy(&mut self, bytes: u64, since: Instant) -> (u64, oneshot::Receiver<()>) {
        let (done, receiver) = oneshot::channel();
        self.last_number += 1;
        self.bytes += bytes;
        self.copies.insert(self.last_number, Copying { bytes, since, done });
        (self.last_number, receiver)
    }

    /// Whether there was such a copy.
    pub(super) fn copied(&mut self, number: u64) -> bool {
        let Some(copy) = self.copies.remove(&number) else { return false };
        self.bytes -= copy.bytes;
        // Nobody may be waiting any more.
        let _ = copy.done.send(());
        true
    }

    /// Whether that was asked.
    pub(super) fn reported(&mut self, from: BlockAddress, changes: Changes) -> bool {
        let is_sound = is_ascending_from(from, &changes);
        let Some((_, _, asked)) = self.report.take_if(|(asked, ..)| is_sound && *asked == from) else {
            return false;
        };
        // Nobody may be waiting any more.
        let _ = asked.send(changes);
        true
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing_since.is_some() && self.copies.is_empty()
    }

    pub(super) fn waits_since(&self) -> Option<Instant> {
        let copy = self.copies.values().next().map(|copy| copy.since);
        let report = self.report.as_ref().map(|(_, since, _)| *since);
        let joined = self.reconciled.is_none().then_some(self.joined_at);
        [joined, copy, report, self.finishing_since].into_iter().flatten().min()
    }
}

/// Whether a report leads on, in order and without end.
fn is_ascending_from(from: BlockAddress, changes: &Changes) -> bool {
    let mut end = from;
    for run in &changes.runs {
        let Some(behind) = run.address.0.checked_add(run.count) else { return false };
        if run.address < end || run.count == 0 {
            return false;
        }
        end = BlockAddress(behind);
    }
    changes.next.is_none_or(|next| next >= end && next > from)
}
