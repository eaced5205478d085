//! The tasks that move the log: batches to the disks, flushes behind them, settling in order.
//!
//! The writer starts a batch when there is something to write and room for it; each batch is one
//! task; the flusher puts what is written on stable media, as many batches as there are with one
//! flush, and only then are they settled and acknowledged, in order.

use std::rc::Rc;

use futures::future::{Either, select};

use crate::base::mutant::{self, Mutant};
use crate::base::runtime::yield_now;

use super::batch::{Content, HEADS};
use super::interface::StoreError;
use super::log::{Batch, CLEANING, FOREGROUND, Supply};
use super::shared::{Shared, add};

/// Starts the tasks.
pub(super) fn start(shared: &Rc<Shared>) {
    shared.runtime.spawn(Box::pin(run_writer(shared.clone())));
    shared.runtime.spawn(Box::pin(run_flusher(shared.clone())));
    shared.runtime.spawn(Box::pin(watch_array(shared.clone())));
}

async fn run_writer(shared: Rc<Shared>) {
    while !shared.stopped.get() {
        let work = shared.work.wait();
        if shared.array.is_offline() {
            return;
        }
        if (0..HEADS).any(|head| start_batch(&shared, head)) {
            continue;
        }
        // Nothing is on its way: there is nothing to write, or no room for it before the cleaner is done.
        if needs_seal(&shared) {
            match select(work, shared.runtime.sleep(shared.options.seal_delay)).await {
                Either::Left(_) => {}
                Either::Right(_) => seal(&shared),
            }
        } else {
            work.await;
        }
    }
}

/// Starts the next batch of `head` if there should be one and there is room for it.
fn start_batch(shared: &Rc<Shared>, head: usize) -> bool {
    if !shared.log.borrow().should_start(head, shared.options.max_in_flight) {
        return false;
    }
    if head == FOREGROUND && shared.is_map_behind() {
        shared.progress.notify(); // merges have to make haste
        return false;
    }
    let started = build(shared, head);
    if head == FOREGROUND {
        shared.stalled.set(!started);
        if !started {
            add(&shared.statistics.stalls, 1);
            shared.progress.notify(); // the cleaner has to make room
        }
    }
    started
}

/// Whether nothing is on its way that would prove that the last batch was acknowledged.
fn needs_seal(shared: &Shared) -> bool {
    let log = shared.log.borrow();
    let quiet = log.in_flight.is_empty() && (log.is_idle() || !mutant::is(Mutant::SealNeedsRoom));
    quiet && log.needs_seal()
}

/// Writes a batch if there is still none on its way, an empty one when nothing waits. While writes
/// wait for the cleaner its own head has room for it.
fn seal(shared: &Rc<Shared>) {
    if needs_seal(shared) && !mutant::is(Mutant::SealOmitted) {
        let heads = if mutant::is(Mutant::SealNeedsRoom) { FOREGROUND..CLEANING } else { 0..HEADS };
        let _sealed = heads.into_iter().any(|head| build(shared, head));
    }
}

fn build(shared: &Rc<Shared>, head: usize) -> bool {
    if shared.array.is_offline() {
        return false;
    }
    let (members, keep_free) = (shared.members_for_writing(), shared.keep_free());
    let batch = {
        let mut contents = shared.contents.borrow_mut();
        let mut supply = Supply {
            segments: &mut contents.segments,
            rows: shared.array.geometry().rows,
            members,
            live: shared.array.live(),
            keep_free,
            is_left: &|segment| shared.array.is_unproven(segment),
        };
        shared.log.borrow_mut().build(head, &mut supply)
    };
    let Some(batch) = batch else { return false };
    shared.runtime.spawn(Box::pin(write_batch(shared.clone(), batch)));
    true
}

async fn write_batch(shared: Rc<Shared>, batch: Batch) {
    let blocks = batch.columns.iter().map(Vec::len).sum::<usize>() as u64;
    add(&shared.statistics.batches, 1);
    add(&shared.statistics.log_blocks, blocks);
    add(&shared.log_bytes, blocks * crate::base::units::BLOCK_SIZE as u64);
    let written =
        shared.array.write_stripe(batch.segment, batch.first_row, batch.layout, batch.columns).await;
    if written.is_ok() {
        let mut log = shared.log.borrow_mut();
        if let Some(in_flight) = log.in_flight.iter_mut().find(|in_flight| in_flight.number == batch.number) {
            in_flight.written = true;
        }
        drop(log);
        shared.written.notify();
        shared.work.notify();
    }
    // Otherwise the array is offline, and `watch_array` fails everything that is on its way.
}

async fn run_flusher(shared: Rc<Shared>) {
    loop {
        let written = shared.written.wait();
        if shared.stopped.get() {
            return;
        }
        let through = shared.log.borrow().written_through();
        if through == shared.log.borrow().durable {
            written.await;
            continue;
        }
        if !mutant::is(Mutant::AcknowledgeBeforeFlush) && shared.array.flush().await.is_err() {
            return;
        }
        settle(&shared, through).await;
    }
}

/// Lets batches up to `through` take effect, and acknowledges them, one after the other. A batch
/// counts as durable only when all of it has taken effect: no checkpoint begins in the middle of it.
async fn settle(shared: &Shared, through: u64) {
    loop {
        let Some(items) = shared.log.borrow_mut().begin_settling(through) else { break };
        for item in &items {
            let mut rest = shared.contents.borrow_mut().apply(&item.entry, item.place, item.payload.as_ref());
            while let Some(entry) = rest {
                yield_now().await;
                rest = shared.contents.borrow_mut().apply(&entry, item.place, None);
            }
            if let Content::Hole { count } = item.entry.content {
                shared.contents.borrow_mut().hole_settled(item.entry.volume, item.entry.address, count);
            }
            if item.is_new_block && !mutant::is(Mutant::ReservationLeaks) {
                shared.promise_settled(item.entry.volume);
            }
        }
        let trackers = shared.log.borrow_mut().finish_settling();
        trackers.iter().for_each(|tracker| tracker.part_settled());
    }
    shared.progress.notify();
    shared.work.notify();
}

/// Fails all that waits when the array goes offline or the store stops.
async fn watch_array(shared: Rc<Shared>) {
    let changed = shared.array.changed().clone();
    changed.until(|| shared.array.is_offline() || shared.stopped.get()).await;
    shared.stopped.set(true);
    shared.log.borrow_mut().fail_everything(&StoreError::Offline);
    for signal in [&shared.work, &shared.written, &shared.progress] {
        signal.notify();
    }
}
