//! After a restart: the snapshots that are there, what each shows, what it says of what changed, and what they
//! take.

use super::PoolUnderTest;
use super::oracle::Extent;
use crate::base::units::{BLOCK_SIZE, BlockAddress, Version, VolumeId};
use crate::store::Store;
use crate::store::interface::SnapshotStore;

impl PoolUnderTest {
    /// Checks the snapshots of a volume, whose present blocks have been settled; all of them were read when
    /// `is_whole`.
    pub(super) async fn check_snapshots(
        &self,
        store: &Store,
        volume: u32,
        blocks: u64,
        is_whole: bool,
    ) -> Result<(), String> {
        let found = store.snapshots(VolumeId(volume)).map_err(|error| error.to_string())?;
        let settled = self.site.oracle.borrow_mut().past_mut(volume).settle(&found)?;
        self.note(|report| {
            report.snapshots_survived += settled.survived;
            report.snapshot_drops_undone += settled.drops_undone;
            report.snapshot_takes_lost += settled.takes_lost;
        });
        let mut is_whole = is_whole;
        for entry in &found {
            is_whole &= self.check_blocks(store, entry.version, volume, blocks).await?;
        }
        if !is_whole {
            return Ok(());
        }
        let mut since = Version::default();
        for entry in &found {
            self.check_changes(store, volume, blocks, since, entry.version).await?;
            since = entry.version;
        }
        let (held, used) = (
            self.site.oracle.borrow().held_blocks(volume),
            store.volume_snapshot_bytes(VolumeId(volume)) / BLOCK_SIZE as u64,
        );
        self.note(|report| report.held_blocks += held);
        // A tree counts the two together, and some too many.
        let is_exact = self.plan.tree.is_none();
        if is_exact && held != used && self.site.oracle.borrow().is_followed(volume) {
            Err(format!("{held} blocks are held for snapshots, and {used} are used"))
        } else {
            Ok(())
        }
    }

    /// Whether every block could be read.
    async fn check_blocks(
        &self,
        store: &Store,
        snapshot: Version,
        volume: u32,
        blocks: u64,
    ) -> Result<bool, String> {
        let mut is_whole = true;
        for address in (0..blocks).step_by(CHUNK) {
            let extent = Extent { volume, address, count: (CHUNK as u64).min(blocks - address) };
            let stamps = match self.site.read_snapshot(store, snapshot, extent).await {
                Ok(stamps) => stamps,
                Err(Ok(error)) if self.site.tolerates(&error) => {
                    is_whole = false;
                    continue;
                }
                Err(Ok(error)) => return Err(format!("snapshot {}: {error}", snapshot.sequence)),
                Err(Err(problem)) => return Err(problem),
            };
            let mut oracle = self.site.oracle.borrow_mut();
            for (address, stamp) in (address..).zip(stamps) {
                oracle.past_mut(volume).settle_block(snapshot, address, stamp);
            }
        }
        Ok(is_whole)
    }

    /// What is said to have changed between two snapshots is what did, and what is allocated holds data.
    async fn check_changes(
        &self,
        store: &Store,
        volume: u32,
        blocks: u64,
        since: Version,
        at: Version,
    ) -> Result<(), String> {
        let mut changed = Vec::new();
        let mut next = Some(BlockAddress(0));
        while let Some(from) = next {
            let part = store.changed_between(VolumeId(volume), since, at, from, 7).await;
            let part = part.map_err(|error| error.to_string())?;
            next = part.next;
            changed.extend(part.runs);
        }
        for address in 0..blocks {
            let block = self.site.block_address(address);
            let run = changed.iter().find(|run| run.address <= block && block < run.end());
            let certain = |view| self.site.oracle.borrow().past(volume).certain(view, address);
            let Some(now) = certain(at) else { continue };
            let is_first = since == Version::default();
            let before = if is_first {
                Some(self.site.oracle.borrow().origin(volume, address))
            } else {
                certain(since)
            };
            let is_right = match run {
                Some(run) => {
                    run.is_mapped == (now != 0) && run.version <= at && !run.version.is_covered_by(since)
                }
                None => before.is_none_or(|before| before == now),
            };
            if !is_right {
                return Err(format!(
                    "block {address} was {before:?} at {since:?} and is {now} at {at:?}, and is told as {run:?}"
                ));
            }
            let runs = store.allocation_at(VolumeId(volume), at, block, 1, 1).await;
            let runs = runs.map_err(|error| error.to_string())?;
            if runs.len() != 1 || runs[0].mapped != (now != 0) {
                return Err(format!("block {address} is {now} at {at:?}, and its allocation is {runs:?}"));
            }
        }
        Ok(())
    }
}

/// Blocks that are read together.
const CHUNK: usize = 32;
