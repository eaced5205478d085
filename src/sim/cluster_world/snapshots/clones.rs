//! Clones in the world: made of snapshots while everything goes wrong, read and written through whoever serves them.
//!
//! What nobody has written to a clone is what its snapshot shows, so looking at it is looking into that one. What was written
//! and acknowledged stays, in the clone alone; what was not acknowledged is there or not.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::super::runs::{compare, until_level};
use super::super::{Cluster, micros};
use super::{Known, State, USED};
use crate::base::runtime::Runtime;
use crate::base::units::VolumeId;
use crate::cluster::state::Command;
use crate::cluster::state::volume::VolumeRecord;
use crate::sim::cluster_world::command;
use crate::volume::device::BlockDevice;

/// What has been written to a sector of a clone.
#[derive(Default)]
struct Written {
    /// What was acknowledged last.
    last: Option<u64>,
    /// What was not.
    in_doubt: BTreeSet<u64>,
}

/// What has been written to clones, by volume and sector.
#[derive(Default)]
pub(super) struct Writes(BTreeMap<(VolumeId, u64), Written>);

/// Most of a volume.
const MOST_CLONES: usize = 2;

impl Cluster {
    /// The clones of a volume that are known, each with the snapshot that it is of.
    fn clones_of(&self, volume: VolumeId) -> Vec<(VolumeRecord, Rc<Known>)> {
        let state = self.newest_state.borrow();
        let all = self.snapshots.known.borrow();
        let of = |record: &VolumeRecord| {
            let origin = record.origin.as_ref()?;
            let mut known = all.iter().filter(|known| known.volume == volume);
            known.find(|known| known.version.get() == Some(origin.version())).cloned()
        };
        state.clones(volume).filter_map(|record| Some((record.clone(), of(record)?))).collect()
    }

    /// Does something with the clones of a volume, or makes one more.
    pub(super) async fn work_on_clones(&self, volume: VolumeId) {
        let clones = self.clones_of(volume);
        let there = self.snapshots.of(volume, State::There);
        if clones.len() < MOST_CLONES && !there.is_empty() && self.random.below(3) == 0 {
            return self.make_clone(&there[self.random.index(there.len())]).await;
        }
        if clones.is_empty() {
            return;
        }
        let (record, known) = &clones[self.random.index(clones.len())];
        let (first, count) = USED[self.random.index(2)];
        let skipped = self.random.below(count);
        let blocks = (first + skipped, count - skipped);
        if self.random.coin() {
            self.look_into_clone(record.id, known, blocks).await;
        } else {
            self.write_to_clone(record.id, known.volume, blocks.0 * 8 + self.random.below(8)).await;
        }
    }

    /// The node that serves a volume makes a clone of one of its snapshots, which stays from now on, also when nobody hears what
    /// came of it.
    async fn make_clone(&self, known: &Known) {
        let (Some(served), Some(record)) = (self.served(known.volume), self.record(known.volume)) else {
            return;
        };
        let (Some(life), Some(version)) = (self.life(served.node), known.version.get()) else { return };
        known.is_cloned.set(true);
        let clone = Command::CloneVolume {
            name: format!("{}-of-{}", known.name, known.volume.0).parse().expect("a name"),
            origin: known.volume,
            expected_epoch: record.epoch,
            snapshot: version.into(),
            snapshot_name: known.name.clone(),
            created_unix_ms: 1,
        };
        self.tell(|| format!("a clone of snapshot {} of volume {} is asked for", known.name, known.volume.0));
        life.world.clone().spawn(Box::pin(async move { drop(life.propose(clone).await) }));
        self.clock.sleep(micros(2000)).await;
    }

    async fn look_into_clone(&self, clone: VolumeId, known: &Known, blocks: (u64, u64)) -> bool {
        let Some(served) = self.served(clone) else { return false };
        let (first, count) = (blocks.0 * 8, blocks.1 * 8);
        let read =
            self.with_served(&served, move |volume| async move { Ok(volume.read(first, count).await) });
        let Some(Ok(Ok(pieces))) = read.await else { return false };
        let data = pieces.concat();
        let numbers = match command::numbers_in(known.volume, first, &data) {
            Ok(numbers) => numbers,
            Err(problem) => {
                self.fail(format!("clone {clone:?} of {:?}: {problem}", known.volume));
                return false;
            }
        };
        self.meet("clones read");
        for ((sector, number), data) in (first..).zip(numbers).zip(data.chunks(command::SECTOR)) {
            let is_written = {
                let writes = self.snapshots.clone_writes.borrow();
                let written = writes.0.get(&(clone, sector));
                let is_known = written.is_some_and(|written| {
                    written.last == Some(number) || written.in_doubt.contains(&number)
                });
                if !is_known && written.is_some_and(|written| written.last.is_some()) {
                    self.fail(format!(
                        "clone {clone:?} shows {number} in sector {sector}, and not what was written there"
                    ));
                }
                is_known
            };
            if !is_written {
                self.note_seen(known, sector, data);
            }
        }
        true
    }

    async fn write_to_clone(&self, clone: VolumeId, origin: VolumeId, sector: u64) {
        let Some(served) = self.served(clone) else { return };
        let number = self.oracle.tick();
        let written = |change: &dyn Fn(&mut Written)| {
            change(self.snapshots.clone_writes.borrow_mut().0.entry((clone, sector)).or_default());
        };
        written(&|written| {
            written.in_doubt.insert(number);
        });
        let data = command::sectors(origin, sector, &[number]);
        let write = self
            .with_served(&served, move |volume| async move { Ok(volume.write(sector, vec![data]).await) });
        if let Some(Ok(Ok(()))) = write.await {
            self.meet("writes to clones");
            written(&|written| {
                written.last = Some(number);
                written.in_doubt.remove(&number);
            });
        }
    }

    /// When all faults are over: every clone is served, whole, and the same on both nodes.
    pub(in super::super) async fn check_clones(self: &Rc<Self>, volume: VolumeId) -> Result<(), String> {
        for (record, known) in self.clones_of(volume) {
            let clone = record.id;
            let is_well = || self.in_sync(clone) == 2 && self.server(clone).is_some();
            self.until("a clone is served and in sync", 3000, is_well).await?;
            for blocks in USED {
                let mut tries = 0;
                while !self.look_into_clone(clone, &known, blocks).await {
                    self.clock.sleep(micros(1000)).await;
                    self.check()?;
                    tries += 1;
                    if tries > 500 {
                        return Err(format!("clone {clone:?} of {volume:?} cannot be read"));
                    }
                }
            }
            until_level(self, clone).await?;
            compare(self, clone).await?;
        }
        Ok(())
    }
}
