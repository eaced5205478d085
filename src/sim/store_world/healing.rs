//! Disks that die and are replaced, rebuilding, spares and scrubbing, with the power failing in the middle of any
//! of it.
//!
//! Faults keep to what RAID 5 promises: no second disk goes wrong while one is gone or incomplete, but for
//! one that vanishes for a while: then the pool stops, and goes on where it was when all are back. So no host ever sees
//! an error but that, and in the end every row has its parity on every disk, the new ones too (`scrub`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::plan::slot;
use super::{PoolUnderTest, Theme, executor_sleep, tell};
use crate::array::superblock::Uuid;
use crate::array::{DiskState, Geometry, SegmentIndex, Slot};
use crate::disk::{Disk, DiskErrorKind, Operation};
use crate::sim::disk::SimulatedDisk;
use crate::sim::executor::{Executor, World};
use crate::sim::fault::{Effect, Fault};
use crate::sim::medium::SimulatedMedium;
use crate::sim::random::Random;
use crate::store::interface::BlockStore;
use crate::store::{RebuildPriority, ScrubReport, Store};

/// Disks beyond those in the pool's places, and what is known of all of them.
#[derive(Default)]
pub(super) struct Workshop {
    /// Disks that are connected and in no place: spares, and those that were replaced.
    shelf: RefCell<Vec<Rc<SimulatedMedium>>>,
    /// Names of disks that were left behind: they must never be used as if they were whole.
    stale: RefCell<BTreeSet<String>>,
    /// One disk has rotten blocks that no scrub has come by yet: none may be taken out.
    is_rotten: Cell<bool>,
    made: Cell<u64>,
    identities: Cell<u128>,
}

impl Workshop {
    /// One that no disk has had.
    fn identity(&self) -> Uuid {
        self.identities.set(self.identities.get() + 1);
        Uuid((self.identities.get() | 1 << 127).to_be_bytes())
    }
}

impl PoolUnderTest {
    /// All disks that are connected, in no order.
    pub(super) fn connected(&self) -> Vec<Rc<SimulatedMedium>> {
        let mut all = self.media();
        all.extend(self.workshop.shelf.borrow().iter().cloned());
        all
    }

    /// Finds out which disk is in which place, and that none is in two, or in one that it must not be in.
    pub(super) fn find_places(&self, store: &Store) -> Result<(), String> {
        let status = store.array().status();
        let mut seen = BTreeSet::new();
        for (place, status) in status.iter().enumerate() {
            let Some(path) = &status.path else { continue };
            if !seen.insert(path.clone()) {
                return Err(format!("{path} is in two places: {status:?}"));
            }
            let is_used = matches!(status.state, DiskState::Ok | DiskState::Rebuilding);
            if is_used && self.workshop.stale.borrow().contains(path) {
                return Err(format!("{path} is in use and had been left behind"));
            }
            let before = self.media()[place].clone();
            if before.name() != path {
                let mut shelf = self.workshop.shelf.borrow_mut();
                let Some(at) = shelf.iter().position(|medium| medium.name() == path) else {
                    return Err(format!("{path} came to place {place}, where {} was", before.name()));
                };
                let found = shelf.remove(at);
                shelf.push(before.clone());
                self.media.borrow_mut()[place] = found;
                self.workshop.stale.borrow_mut().insert(before.name().to_owned());
            }
        }
        Ok(())
    }

    /// What befalls disks in this life, and what an administrator does about it.
    pub(super) async fn heal(
        &self,
        executor: &Executor,
        random: &Random,
        world: &Rc<World>,
        store: &Store,
        lifetime: Duration,
    ) -> Result<(), String> {
        if self.plan.theme != Theme::Healing {
            return Ok(());
        }
        let priorities = [RebuildPriority::Low, RebuildPriority::Normal, RebuildPriority::High];
        store.set_rebuild_priority(priorities[random.index(3)]);
        if random.below(4) == 0 {
            let spare = self.open_on(&self.new_medium(random), world);
            // It may have been a member by name, or the pool stops meanwhile.
            let _ = store.array().add_spare(spare, self.workshop.identity()).await;
        }
        for _ in 0..random.below(5) {
            let moment = Duration::from_micros(random.below(lifetime.as_micros() as u64 / 3 + 1));
            executor_sleep(executor, moment).await;
            if store.is_offline() {
                return Ok(());
            }
            self.find_places(store)?;
            self.do_something(random, world, store).await?;
        }
        Ok(())
    }

    async fn do_something(&self, random: &Random, world: &Rc<World>, store: &Store) -> Result<(), String> {
        let array = store.array();
        let lost = array.geometry().all_slots().difference(array.live());
        if self.workshop.is_rotten.get() {
            return self.scrub_all(store).await;
        }
        if let Some(place) = lost.iter().next() {
            return self.replace(random, world, store, place).await;
        }
        let victim = slot(random.index(self.plan.disks));
        let medium = self.media()[victim.index()].clone();
        // One that is broken, though nobody has written to it since, is the one fault that there may be.
        let is_broken = self.media().iter().any(|medium| medium.has_faults());
        match array.rebuild() {
            None if random.below(3) == 0 => {
                if is_broken {
                    return Ok(());
                }
                self.workshop.is_rotten.set(true);
                self.rot(&medium, random);
                self.scrub_all(store).await
            }
            None if random.coin() => {
                if self.plan.retires && !array.spares().is_empty() {
                    let retired = store.retire_disk(victim, "it is not trusted").await;
                    self.note(|report| report.retirements += u64::from(retired.is_ok()));
                } else {
                    let _ = array.fail(victim, "somebody wanted it").await;
                }
                Ok(())
            }
            None => {
                medium.inject(Fault::always(Operation::Write, EIO));
                Ok(())
            }
            // The new disk dies too: nothing is worse than before.
            Some(rebuild) if random.below(3) == 0 => {
                self.note(|report| report.new_disks_lost += 1);
                let new = self.media()[rebuild.slot.index()].clone();
                new.inject(Fault::always(Operation::Write, EIO));
                Ok(())
            }
            Some(rebuild) if victim != rebuild.slot && random.below(3) == 0 => {
                self.note(|report| report.losses_while_rebuilding += 1);
                medium.disappear(random.coin());
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    fn rot(&self, medium: &SimulatedMedium, random: &Random) {
        for _ in 0..1 + random.below(40) {
            let span = medium.size_bytes() - Geometry::RESERVED_BYTES;
            let at = Geometry::RESERVED_BYTES + random.below(span / 512) * 512;
            tell(|| format!("byte {at} of {} rots", medium.name()));
            if random.coin() { medium.rot(at..at + 512) } else { medium.make_unreadable(at..at + 512) }
        }
    }

    fn new_medium(&self, random: &Random) -> Rc<SimulatedMedium> {
        let number = self.workshop.made.get() + 1;
        self.workshop.made.set(number);
        let size = self.media()[0].size_bytes() + random.below(2) * 8192;
        let medium = SimulatedMedium::new(&format!("new{number}"), size, random.next());
        self.workshop.shelf.borrow_mut().push(medium.clone());
        medium
    }

    fn open_on(&self, medium: &Rc<SimulatedMedium>, world: &Rc<World>) -> Rc<dyn Disk> {
        SimulatedDisk::open(medium, world.clone())
    }

    /// Puts a new disk, or the very one that left, into a place.
    async fn replace(
        &self,
        random: &Random,
        world: &Rc<World>,
        store: &Store,
        place: Slot,
    ) -> Result<(), String> {
        let old = self.media()[place.index()].clone();
        let medium = if random.below(3) == 0 {
            old.clear_faults();
            self.workshop.stale.borrow_mut().remove(old.name());
            store.array().let_go(place);
            old.clone()
        } else {
            self.new_medium(random)
        };
        self.note(|report| report.replacements += 1);
        let uuid = self.workshop.identity();
        // It is refused when a spare came first, and fails with the pool.
        let _ = store.array().replace(place, self.open_on(&medium, world), uuid, false).await;
        self.find_places(store)
    }

    async fn scrub_all(&self, store: &Store) -> Result<(), String> {
        // What was on its way when something rotted is settled, so that it is looked at.
        if store.flush().await.is_err() {
            return Ok(());
        }
        let Some(report) = scrub_store(store).await else { return Ok(()) };
        if !report.unrecoverable.is_empty() {
            return Err(format!("scrub gave up {:?}, and one disk alone was rotten", report.unrecoverable));
        }
        tell(|| format!("scrubbed: {report:?}"));
        self.note(|totals| totals.scrub_repairs += report.repaired);
        self.workshop.is_rotten.set(false);
        Ok(())
    }

    /// Beyond the promise: what a scrub says it has repaired is right ever after.
    pub(super) async fn scrub_twice(&self, store: &Store) -> Result<(), String> {
        if self.plan.theme != Theme::TwoFaults {
            return Ok(());
        }
        let Some(_) = scrub_store(store).await else { return Ok(()) };
        // A disk that goes on refusing reads now and then has its blocks written again each time.
        self.media().iter().for_each(|medium| medium.clear_faults());
        let Some(second) = scrub_store(store).await else { return Ok(()) };
        match second.repaired {
            0 => Ok(()),
            again => Err(format!("{again} blocks had to be repaired again, right after a scrub")),
        }
    }

    /// Lets everything heal, and holds the pool against what is promised then.
    pub(super) async fn heal_completely(
        &self,
        executor: &Executor,
        random: &Random,
        world: &Rc<World>,
        store: &Store,
    ) -> Result<(), String> {
        if self.plan.theme != Theme::Healing || self.plan.disks < 2 {
            return Ok(());
        }
        self.find_places(store)?;
        if self.workshop.is_rotten.get() {
            self.scrub_all(store).await?;
        }
        for _ in 0..20_000 {
            if store.array().is_whole() {
                self.find_places(store)?;
                self.note(|report| report.rebuilt_segments += store.statistics().rebuilt_segments.get());
                return self.scrub_all(store).await;
            }
            let lost = store.array().geometry().all_slots().difference(store.array().live());
            if let Some(place) = lost.iter().next() {
                self.replace(random, world, store, place).await?;
            }
            executor_sleep(executor, Duration::from_millis(5)).await;
        }
        let left: Vec<_> = (0..store.array().geometry().segment_count)
            .map(SegmentIndex)
            .filter(|segment| store.array().is_unproven(*segment))
            .collect();
        Err(format!("not rebuilt after a long time: {:?}, {left:?}", store.array().status()))
    }
}

async fn scrub_store(store: &Store) -> Option<ScrubReport> {
    let mut report = ScrubReport::default();
    for index in 0..store.array().geometry().segment_count {
        report.add(store.scrub_segment(SegmentIndex(index)).await.ok()?);
    }
    Some(report)
}

const EIO: Effect = Effect::Fail(DiskErrorKind::Io(libc::EIO));
