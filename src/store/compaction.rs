//! Merges of the map's tables, where it keeps them on disk: turn after turn, paced while they keep up.
//!
//! A merge needs no room but for one table; the tables that it takes the place of come free with the next checkpoint.
//! Left to others: what is merged with what, and when (`map::lsm::merge`); memtables become tables in checkpoints.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::base::event::{Event, Severity};
use crate::base::units::{BlockAddress, Version, VolumeId};

use super::checkpoint;
use super::interface::StoreError;
use super::shared::{Contents, Shared};

/// What is known of the merges.
#[derive(Default)]
pub(super) struct Merges {
    /// All is to be merged, so that what is counted is exact.
    is_full_wanted: Cell<bool>,
    /// The last turn failed: a block of the map can't be read.
    pub(super) has_failed: Cell<bool>,
    was_reported: Cell<bool>,
}

/// Starts the task, if there is anything for it to do.
pub(super) fn start(shared: &Rc<Shared>) {
    if shared.has_tree {
        shared.runtime.spawn(Box::pin(run(shared.clone())));
    }
}

impl Shared {
    /// There seems to be no space: has all of the map merged, unless that would tell nothing new. Whether it will be.
    pub(super) fn want_full_merge(&self, contents: &Contents) -> bool {
        let is_wanted = match contents.tree() {
            Some(map) => !map.tree().is_nearly_exact() && !self.merges.has_failed.get(),
            None => false,
        };
        if is_wanted && !self.merges.is_full_wanted.replace(true) {
            self.progress.notify();
        }
        is_wanted
    }
}

async fn run(shared: Rc<Shared>) {
    loop {
        let progress = shared.progress.wait();
        if shared.stopped.get() {
            return;
        }
        let began = shared.runtime.now();
        let turned = turn(&shared).await;
        shared.merges.has_failed.set(matches!(turned, Err(StoreError::Medium { .. })));
        match turned {
            Ok(true) => {
                shared.work.notify();
                shared.progress.notify();
                let is_urgent =
                    shared.is_map_behind() || shared.stalled.get() || shared.merges.is_full_wanted.get();
                let worked = shared.runtime.now().since(began);
                let pause = if is_urgent { Duration::ZERO } else { worked.min(LONGEST_PAUSE) };
                shared.runtime.sleep(pause).await;
            }
            Ok(false) | Err(StoreError::OutOfSpace) => progress.await,
            Err(error) => {
                report(&shared, &error);
                if shared.is_map_behind() && error != StoreError::Offline {
                    give_up(&shared);
                    return;
                }
                shared.progress.notify();
                shared.runtime.sleep(RETRY).await;
            }
        }
    }
}

fn report(shared: &Shared, error: &StoreError) {
    if *error == StoreError::Offline || shared.merges.was_reported.replace(true) {
        return;
    }
    (shared.events)(Event {
        severity: Severity::Critical,
        kind: "map-damaged",
        message: "a part of the pool's map can't be read from its disk nor rebuilt from the others. Reading or cleaning \
                  what it is about is an error; everything else is served, and nothing wrong is. The map can't be kept in \
                  order over it, so this node's pool should be made anew from its peer; without a peer, copy \
                  the volumes away"
            .to_owned(),
    });
}

/// Writes would wait for merges that can't be: better that somebody else serves.
pub(super) fn give_up(shared: &Shared) {
    (shared.events)(Event {
        severity: Severity::Critical,
        kind: "pool-map-lost",
        message: "the pool serves no longer: a part of its map is damaged, and it has no more room for what comes in addition. Nothing acknowledged is gone from the other node, if there is one: make this node's pool anew, and \
                  it fills from there. Without one, restart this node and copy the volumes away"
            .to_owned(),
    });
    shared.stopped.set(true);
    shared.array.changed().notify();
}

/// Makes one table. False when there is nothing to do, or no room.
async fn turn(shared: &Rc<Shared>) -> Result<bool, StoreError> {
    if !shared.has_room_to_merge() {
        return Ok(false);
    }
    let for_holes = shared.clone();
    let may_forget = move |volume: VolumeId, hole: Version| for_holes.may_forget(volume, hole);
    let merging = {
        let contents = shared.contents.borrow();
        let Some(map) = contents.tree() else { return Ok(false) };
        if shared.merges.is_full_wanted.get() && !map.tree().has_merges() {
            shared.merges.is_full_wanted.set(false);
            map.tree().begin_full_merge();
        }
        map.tree().merge(may_forget)
    };
    let Some(turn) = merging.await? else { return Ok(false) };
    shared.contents.borrow_mut().apply_turn(&turn);
    Ok(true)
}

/// Merges all of the map into one run, and has a checkpoint set free what that replaced: afterwards all is counted
/// exactly.
pub(super) async fn merge_all(shared: &Rc<Shared>) -> Result<(), StoreError> {
    if !shared.has_tree {
        return Ok(());
    }
    checkpoint::write(shared).await?;
    shared.merges.is_full_wanted.set(true);
    shared.progress.notify();
    let is_merging = || {
        shared.merges.is_full_wanted.get()
            || shared.contents.borrow().tree().is_some_and(|map| map.tree().has_merges())
    };
    let ended = || !is_merging() || shared.stopped.get() || shared.merges.has_failed.get();
    shared.progress.until(ended).await;
    if shared.stopped.get() {
        return Err(StoreError::Offline);
    }
    if shared.merges.has_failed.get() {
        return Err(StoreError::Medium { volume: VolumeId(0), address: BlockAddress(0) });
    }
    checkpoint::write(shared).await
}

const LONGEST_PAUSE: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(1);
