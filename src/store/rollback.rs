//! A volume that is being rolled back, as it shows itself: see [`super::interface`].
//!
//! Which blocks are shown as they were is asked of the map in a lookup of its own, before they are read in that view. A block
//! that is written in between is newer than the rollback; what it was shows for that read still, which began before. When
//! the rollback itself has begun or ended in between, all is done again.

use std::rc::Rc;

use bytes::Bytes;

use super::interface::{BlockRun, StoreError};
use super::map::Map;
use super::shared::Shared;
use super::snapshots::Rollback;
use super::{Store, read};
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BlockAddress, VolumeId};

impl Shared {
    fn rollback(&self, volume: VolumeId) -> Option<Rollback> {
        self.contents.borrow().volumes.get(&volume)?.snapshots.rollback()
    }

    /// Runs of `count` blocks that are alike, and whether they are shown as they were.
    async fn returned(
        &self,
        volume: VolumeId,
        rollback: Rollback,
        address: BlockAddress,
        count: u64,
    ) -> Result<Vec<(u64, bool)>, StoreError> {
        let looking = {
            let contents = self.contents.borrow();
            let lineage = contents.lineage(volume, None)?;
            let runs: Rc<std::cell::RefCell<Vec<(u64, bool)>>> = Rc::default();
            let found = runs.clone();
            let looking = contents.map.look_up(&lineage, address, count, move |_, shown| {
                // What a clone has from its origin was never written in it.
                let is_returned =
                    shown.is_some_and(|(owner, entry)| owner == volume && rollback.returns(entry.version));
                let mut runs = found.borrow_mut();
                match runs.last_mut() {
                    Some((length, alike)) if *alike == is_returned => *length += 1,
                    _ => runs.push((1, is_returned)),
                }
            });
            (looking, runs)
        };
        looking.0.await?;
        Ok(looking.1.take())
    }
}

/// Reads blocks of a volume as it is now.
pub(super) async fn read_now(
    shared: &Rc<Shared>,
    volume: VolumeId,
    address: BlockAddress,
    count: u64,
) -> Result<Vec<Bytes>, StoreError> {
    loop {
        let Some(rollback) = shared.rollback(volume) else {
            return read::read(shared, volume, None, address, count).await;
        };
        let mut data = Vec::with_capacity(count as usize);
        let mut outcome = Ok(());
        let mut at = address;
        for (length, is_returned) in shared.returned(volume, rollback, address, count).await? {
            let view = is_returned.then_some(rollback.to);
            match read::read(shared, volume, view, at, length).await {
                Ok(blocks) => data.extend(blocks),
                Err(error) => outcome = outcome.and(Err(error)),
            }
            at = at.offset(length);
        }
        if shared.rollback(volume) == Some(rollback) {
            return outcome.map(|()| data);
        }
    }
}

/// Runs of mapped and unmapped blocks of a volume as it is now.
pub(super) async fn runs_now(
    store: &Store,
    volume: VolumeId,
    address: BlockAddress,
    count: u64,
    limit: usize,
) -> Result<Vec<BlockRun>, StoreError> {
    let shared = store.shared();
    'again: loop {
        let rollback = shared.rollback(volume).filter(|_| !mutant::is(Mutant::RollbackAllocationNotShown));
        let Some(rollback) = rollback else {
            return store.runs(volume, None, address, count, limit).await;
        };
        let mut runs: Vec<BlockRun> = Vec::new();
        let mut done = 0;
        while done < count {
            let window = WINDOW_BLOCKS.min(count - done);
            let mut at = address.offset(done);
            for (length, is_returned) in shared.returned(volume, rollback, at, window).await? {
                let view = is_returned.then_some(rollback.to);
                let found = store.runs(volume, view, at, length, usize::MAX).await;
                if shared.rollback(volume) != Some(rollback) {
                    continue 'again;
                }
                for run in found? {
                    let is_full = runs.len() == limit;
                    match runs.last_mut() {
                        Some(last) if last.mapped == run.mapped => last.count += run.count,
                        _ if is_full => return Ok(runs),
                        _ => runs.push(run),
                    }
                }
                at = at.offset(length);
            }
            done += window;
        }
        return Ok(runs);
    }
}

/// Blocks that are looked up together.
const WINDOW_BLOCKS: u64 = 1024;
