//! A node's store in the simulator: clients that write, read and unmap, crashes, disks that
//! misbehave, restarts; and an oracle that knows what every block may be.
//!
//! One run is a few *lives* of one pool, under one [`Theme`]. Each life ends in a power cut or a
//! clean stop; the next one opens the pool again and checks every block and the store's books. Where
//! faults stay within the promise of RAID 5 (they strike one disk), no client ever sees an error;
//! beyond it, errors are allowed and wrong data never is. docs/simulator.md lists the oracles.

mod client;
mod forger;
mod healing;
mod keeper;
mod lost_batch;
#[cfg(test)]
mod mutants;
mod oracle;
mod past;
mod plan;
mod report;
mod rollback;
mod scrub;
mod snapshot_check;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, FutureExt, LocalBoxFuture, join_all, select};

pub use self::plan::Theme;
pub use self::report::Report;

use self::client::{Client, Site};
use self::healing::Workshop;
use self::oracle::VolumeState;
use self::plan::Plan;
use super::disk::SimulatedDisk;
use super::executor::{Executor, World};
use super::medium::SimulatedMedium;
use super::random::Random;
use crate::array::superblock::{LogKey, Uuid};
use crate::array::{Array, FormatOptions, Geometry, MemberSet, OpenError};
use crate::base::buffer::BufferPool;
use crate::base::event::Event;
use crate::base::runtime::Runtime;
use crate::base::units::{BLOCK_SIZE, Version, VolumeId};
use crate::disk::Disk;
use crate::store::interface::{BlockStore, StoreError};
use crate::store::segments::SegmentState;
use crate::store::{PoolError, RecoveryError, Store, StoreOptions};

/// Runs one seed under the theme that it draws.
///
/// # Errors
/// What went wrong, with the seed.
pub fn run(seed: u64) -> Result<Report, String> {
    run_theme(seed, Theme::of(seed))
}

/// Runs one seed under `theme`.
///
/// # Errors
/// What went wrong, with the seed.
pub fn run_theme(seed: u64, theme: Theme) -> Result<Report, String> {
    let executor = Executor::new(seed);
    let random = Random::new(seed ^ 0x5eed);
    let mut plan = Plan::new(theme, &random);
    plan.rolls_back = plan.snapshots && plan.has_room_for_tenants && seed.is_multiple_of(4);
    plan.tenants |= plan.rolls_back;
    plan.retires = !seed.is_multiple_of(2);
    if seed >= TREE_SEEDS {
        plan::small_tree(&mut plan, &random);
    }
    let pool = PoolUnderTest::new(plan, &random);
    let limit = executor_sleep(&executor, LONGEST_RUN);
    let result = executor.block_on(async {
        match select(Box::pin(pool.live_and_die(&executor, &random)), limit).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err(format!("hangs while {}", pool.phase.get())),
        }
    });
    let mut report = match result {
        Ok(Ok(report)) => report,
        Ok(Err(problem)) => return Err(format!("seed {seed} ({theme:?}): {problem}")),
        Err(stuck) => return Err(format!("seed {seed} ({theme:?}): {stuck} while {}", pool.phase.get())),
    };
    report.trace_hash = executor.trace_hash();
    Ok(report)
}

/// The media of a pool, and the oracle: what survives crashes.
struct PoolUnderTest {
    plan: Plan,
    /// By slot.
    media: RefCell<Vec<Rc<SimulatedMedium>>>,
    workshop: Workshop,
    site: Rc<Site>,
    report: Cell<Report>,
    /// What the run is doing, for the message when it hangs.
    phase: Cell<&'static str>,
    /// Decides how lives end.
    endings: Random,
}

/// A life's end, as far as the next one is concerned.
enum Opened {
    Store(Store, Rc<World>),
    /// The pool can't be opened any more, as may happen in this run.
    Refused,
}

impl PoolUnderTest {
    fn new(plan: Plan, random: &Random) -> Self {
        let bytes = (1 << 20) + plan.segments * SEGMENT_BYTES;
        let medium = |n| SimulatedMedium::new(&format!("disk{n}"), bytes, random.next());
        let media = (0..plan.disks).map(medium).collect();
        let site = Site::new(plan.theme, plan.blocks, plan.stride);
        let (report, phase) = (Cell::default(), Cell::new("formatting"));
        let (media, workshop) = (RefCell::new(media), Workshop::default());
        Self { plan, media, workshop, site, report, phase, endings: random.fork() }
    }

    fn media(&self) -> Vec<Rc<SimulatedMedium>> {
        self.media.borrow().clone()
    }

    async fn live_and_die(&self, executor: &Executor, random: &Random) -> Result<Report, String> {
        self.format(executor, random).await?;
        for life in 1..=self.plan.lives {
            self.phase.set("opening the pool");
            let Opened::Store(store, world) = self.open(executor, random, life).await? else { break };
            self.phase.set("checking every block");
            self.check_everything(&store, life).await?;
            if life < self.plan.lives {
                self.phase.set("serving");
                self.serve(executor, random, &world, &store, life).await?;
            }
            let destroys = self.plan.theme == Theme::LostBatch && random.below(3) == 0;
            if destroys {
                if self.destroy_a_batch(executor, &world, &store).await? {
                    break;
                }
                continue; // nothing to destroy: an ordinary power cut
            }
            self.scrub_twice(&store).await?;
            if life == self.plan.lives {
                self.phase.set("healing completely");
                self.heal_completely(executor, random, &world, &store).await?;
                self.merge_map(&store).await?;
                self.phase.set("closing the pool");
                store.close().await;
                self.scrub(&store)?;
            }
            self.die(&world, &store)?;
        }
        Ok(self.report.get())
    }

    /// Formats the pool, at times with the power failing meanwhile.
    async fn format(&self, executor: &Executor, random: &Random) -> Result<(), String> {
        for attempt in 1u8.. {
            let world = executor.world("format");
            let disks = self.disks(&world);
            let again = FormatOptions { segment_bytes: Some(SEGMENT_BYTES), overwrite_foreign: attempt > 1 };
            let format = Box::pin(Array::format(&disks, &again, Uuid([attempt; 16]), LOG_KEY));
            let interrupts = self.plan.interrupts && attempt < 4;
            let patience = if interrupts { random.below(20_000) } else { 1 << 40 };
            let power_cut = executor_sleep(executor, Duration::from_micros(patience));
            match select(format, power_cut).await {
                Either::Left((result, _)) => return result.map_err(|error| format!("format: {error}")),
                Either::Right(_) => self.note(|report| report.interrupted_formats += 1),
            }
            self.cut_power(&world);
        }
        Ok(())
    }

    /// Opens the pool, at times with the power failing meanwhile, and puts the volumes there.
    async fn open(&self, executor: &Executor, random: &Random, life: u32) -> Result<Opened, String> {
        self.connected().iter().for_each(|medium| medium.clear_faults());
        let withheld = self.choose_withheld(random);
        for attempt in 0.. {
            let world = executor.world("node");
            let mut disks = self.disks(&world);
            if let Some(disk) = withheld {
                disks.remove(disk);
            }
            random.shuffle(&mut disks);
            let interrupts = self.plan.interrupts && attempt < 3 && (self.plan.aims || random.coin());
            let power_cut = match interrupts {
                true if self.plan.aims && random.chance(800_000) => self.after_commits(executor, 1),
                true => executor_sleep(executor, Duration::from_micros(random.below(30_000))),
                false => Box::pin(std::future::pending()),
            };
            let opening = Box::pin(self.open_once(disks, &world, life));
            let ended = outcome(select(opening, power_cut).await);
            match ended {
                Some(Ok(store)) => {
                    let missing =
                        withheld.map_or(MemberSet::EMPTY, |disk| MemberSet::EMPTY.with(plan::slot(disk)));
                    self.check_members(&store, missing)?;
                    return Ok(Opened::Store(store, world));
                }
                Some(Err(refused)) if self.may_refuse(&refused) => {
                    self.note(|report| report.refused_openings += 1);
                    return Ok(Opened::Refused);
                }
                Some(Err(refused)) => return Err(format!("open: {refused}")),
                None => self.note(|report| report.interrupted_openings += 1),
            }
            self.cut_power(&world);
        }
        Ok(Opened::Refused)
    }

    /// At times the disk that faults strike is not there at a start.
    fn choose_withheld(&self, random: &Random) -> Option<usize> {
        let victim = *self.plan.victims.first()?;
        let one_fault = self.plan.theme == Theme::OneFault;
        // Half a pool of two may not go on alone, unless it knows that it is the better half.
        let may_miss = self.plan.disks > 2 || self.site.expelled.get().contains(plan::slot(victim));
        let withheld = (one_fault && may_miss && random.below(8) == 0).then_some(victim);
        self.note(|report| report.disks_withheld += u64::from(withheld.is_some()));
        withheld
    }

    async fn open_once(
        &self,
        disks: Vec<Rc<dyn Disk>>,
        world: &Rc<World>,
        life: u32,
    ) -> Result<Store, Refusal> {
        let (site, clock) = (self.site.clone(), world.clone());
        let sink = Rc::new(move |event: Event| {
            tell(|| format!("{:>9} life {life} {} {}", clock.now().0 / 1000, event.kind, event.message));
            if event.kind == "pool-stuck" {
                site.problem.borrow_mut().get_or_insert(event.message);
            }
        });
        let buffers = BufferPool::new(1 << 20);
        let (array, found) = Array::open(disks, world.clone(), buffers, sink.clone()).await?;
        let discard = self.plan.discards;
        let mut options = StoreOptions { checkpoint_log_bytes: 2 << 20, discard, ..StoreOptions::default() };
        if let Some(tree) = &self.plan.tree {
            (options.map_memory_bytes, options.tree) = (0, tree.clone());
        }
        let (store, recovery) = Store::open(array, world.clone(), options, sink).await?;
        self.note(|report| {
            report.kept_unproven += recovery.kept_unproven;
            report.discarded_batches += recovery.discarded_batches;
            report.stale_disks_refused += found.unused.len() as u64;
        });
        store.audit().await.map_err(|problem| Refusal::Oracle(format!("opened, audit: {problem}")))?;
        self.find_volumes(&store, life).await?;
        Ok(store)
    }

    async fn find_volumes(&self, store: &Store, life: u32) -> Result<(), Refusal> {
        let found: Vec<u32> = store.volumes().iter().map(|(volume, _, _)| volume.0).collect();
        self.site.oracle.borrow_mut().settle_volumes(&found).map_err(Refusal::Oracle)?;
        let forged = self.plan.forges.then_some(forger::VOLUME);
        for volume in (0..VOLUMES as u32).chain(forged) {
            if !found.contains(&volume) {
                self.site.oracle.borrow_mut().create(volume, self.plan.blocks);
            }
            let version = Version { epoch: life, sequence: 0 };
            store.put_volume(VolumeId(volume), version, b"volume").await?;
            self.site.oracle.borrow_mut().set_state(volume, VolumeState::Exists);
        }
        Ok(())
    }

    /// Whether the pool may refuse to open in this run.
    fn may_refuse(&self, refused: &Refusal) -> bool {
        self.plan.theme == Theme::TwoFaults && !matches!(refused, Refusal::Oracle(_))
    }

    /// A disk that the pool went on without is not used again; without faults all disks are used.
    fn check_members(&self, store: &Store, missing: MemberSet) -> Result<(), String> {
        let live = store.array().live();
        let all = store.array().geometry().all_slots();
        if self.plan.theme == Theme::Healing {
            return self.find_places(store);
        }
        if live.intersection(self.site.expelled.get().iter().fold(missing, MemberSet::with))
            != MemberSet::EMPTY
        {
            return Err(format!("{live:?} are in use, {:?} had been left behind", self.site.expelled.get()));
        }
        if !self.plan.theme.has_faults() && live != all {
            return Err(format!("no disk failed, and only {live:?} of {all:?} are in use"));
        }
        let blamed = self.plan.victims.iter().fold(missing, |blamed, disk| blamed.with(plan::slot(*disk)));
        if all.difference(live).difference(blamed) != MemberSet::EMPTY && self.plan.theme != Theme::TwoFaults
        {
            return Err(format!("only {live:?} of {all:?} are in use, and only {blamed:?} had faults"));
        }
        // Opening has committed a generation without those that are not in use.
        self.site.expelled.set(all.difference(live));
        Ok(())
    }

    /// Every block is what the oracle says, and the books are right.
    async fn check_everything(&self, store: &Store, life: u32) -> Result<(), String> {
        let found: Vec<u32> = store.volumes().iter().map(|(volume, _, _)| volume.0).collect();
        let existing = self.site.oracle.borrow_mut().settle_volumes(&found)?;
        let mut is_whole = true;
        for (volume, blocks) in existing {
            for address in 0..blocks {
                let floor = self.site.oracle.borrow().floor(volume, address);
                let block = self.site.block_address(address);
                let data = match store.read(VolumeId(volume), block, 1).await {
                    Ok(data) => data.concat(),
                    Err(error) if self.site.tolerates(&error) => {
                        self.site.oracle.borrow_mut().doubt(volume, address);
                        is_whole = false;
                        continue;
                    }
                    Err(error) => return Err(format!("life {life}, check of {volume}/{address}: {error}")),
                };
                let mut oracle = self.site.oracle.borrow_mut();
                let checked = oracle.check(volume, address, floor, &data);
                checked.map_err(|problem| format!("life {life}: {problem}"))?;
                oracle.settle_for_good(volume, address);
            }
            let (mapped, used) =
                (self.site.oracle.borrow().mapped_blocks(volume), store.volume_used_bytes(VolumeId(volume)));
            let checked = self.check_snapshots(store, volume, blocks, is_whole).await;
            checked.map_err(|problem| format!("life {life}, volume {volume}: {problem}"))?;
            let is_followed = !self.plan.forges || volume != forger::VOLUME;
            let is_followed = is_followed && self.site.oracle.borrow().is_followed(volume);
            let is_off = match self.plan.tree {
                None => mapped * BLOCK_SIZE as u64 != used,
                // What was overwritten may count until it is merged.
                Some(_) => {
                    let all = mapped + self.site.oracle.borrow().held_blocks(volume);
                    all * BLOCK_SIZE as u64 > used + store.volume_snapshot_bytes(VolumeId(volume))
                }
            };
            if is_whole && is_followed && is_off {
                return Err(format!(
                    "life {life}: volume {volume} has {mapped} blocks and uses {used} bytes"
                ));
            }
        }
        let usage = store.usage();
        if usage.used_bytes > usage.capacity_bytes && self.plan.tree.is_none() {
            return Err(format!("life {life}: more is used than there is: {usage:?}"));
        }
        store.audit().await.map_err(|problem| format!("life {life}: audit: {problem}"))
    }

    /// Clients at work for a while, faults included.
    async fn serve(
        &self,
        executor: &Executor,
        random: &Random,
        world: &Rc<World>,
        store: &Store,
        life: u32,
    ) -> Result<(), String> {
        for victim in &self.plan.victims {
            plan::inject_fault(&self.media()[*victim], self.plan.theme == Theme::TwoFaults, random);
        }
        if self.plan.theme == Theme::TwoFaults && random.coin() {
            let media = self.media();
            let victims: Vec<_> = self.plan.victims.iter().map(|victim| &media[*victim]).collect();
            plan::rot_rows(&victims, random);
        }
        if self.plan.slow_reads {
            self.media().iter().for_each(|medium| plan::slow_reads_down(medium, random));
        }
        let reads_before = self.disk_reads();
        let errors_before = self.write_and_flush_errors();
        let clients = self.start_clients(world, store, random, life);
        let lifetime = Duration::from_micros(1000 + random.below(self.plan.lifetime.as_micros() as u64));
        let trouble = self.trouble(executor, random, lifetime);
        let end = match self.plan.aims && random.coin() {
            true => {
                select(self.after_commits(executor, 1 + random.below(4)), executor_sleep(executor, lifetime))
                    .map(|_| ())
                    .boxed_local()
            }
            false => executor_sleep(executor, lifetime),
        };
        let is_short = select(clients, end);
        let healing = self.heal(executor, random, world, store, lifetime);
        let healing =
            select(Box::pin(healing), executor_sleep(executor, lifetime)).map(|healed| match healed {
                Either::Left((healed, _)) => healed,
                Either::Right(_) => Ok(()),
            });
        let (ended, (), healed) = futures::future::join3(is_short, trouble, healing).await;
        healed.map_err(|problem| format!("life {life}: {problem}"))?;
        let is_idle = matches!(ended, Either::Left(_));
        if let Some(problem) = self.site.problem.borrow_mut().take() {
            return Err(format!("life {life}: {problem}"));
        }
        self.check_failures(executor, store, &errors_before).await?;
        let reads_by_itself = self.plan.tree.is_some() || store.statistics().moved_blocks.get() > 0;
        if self.plan.theme == Theme::WritesOnly && !reads_by_itself {
            let reads = self.disk_reads() - reads_before;
            if reads > 0 {
                return Err(format!("life {life}: {reads} disk reads by writes"));
            }
            self.note(|report| report.lives_without_reads += 1);
        }
        if is_idle && random.coin() && !store.is_offline() {
            self.phase.set("closing the pool");
            store.close().await;
            store.audit().await.map_err(|problem| format!("life {life}: audit: {problem}"))?;
            self.note(|report| report.clean_stops += 1);
        }
        Ok(())
    }

    /// Once all of the map is merged, what it counts is exact.
    async fn merge_map(&self, store: &Store) -> Result<(), String> {
        self.phase.set("merging the map");
        match store.merge_map().await {
            Err(error) if self.site.tolerates(&error) => Ok(()),
            Err(error) => Err(format!("merging the map: {error}")),
            Ok(()) if store.is_offline() => Ok(()),
            Ok(()) => store.audit_exactly().await.map_err(|problem| format!("merged map, audit: {problem}")),
        }
    }

    /// A disk that failed a write or a flush is out of use from its first error on.
    async fn check_failures(&self, executor: &Executor, store: &Store, before: &[u64]) -> Result<(), String> {
        if !self.plan.theme.has_faults() {
            return Ok(());
        }
        let now = self.write_and_flush_errors();
        executor_sleep(executor, Duration::from_millis(1)).await;
        for disk in (0..self.plan.disks).filter(|disk| now[*disk] > before[*disk]) {
            if store.array().live().contains(plan::slot(disk)) && !store.is_offline() {
                return Err(format!("disk {disk} failed a write or a flush and is still in use"));
            }
        }
        Ok(())
    }

    fn write_and_flush_errors(&self) -> Vec<u64> {
        let counters = self.media().into_iter().map(|medium| medium.counters());
        counters.map(|counters| counters.write_errors + counters.flush_errors).collect()
    }

    /// What befalls all disks together in this life.
    async fn trouble(&self, executor: &Executor, random: &Random, lifetime: Duration) {
        let moment = |share: u64| lifetime.mul_f64(share as f64 / 100.0);
        match self.plan.theme {
            Theme::AllDisksGone if random.coin() => {
                executor_sleep(executor, moment(random.below(100))).await;
                let lose_cache = random.coin();
                self.media().iter().for_each(|medium| medium.disappear(lose_cache));
                self.note(|report| report.all_disks_gone += 1);
            }
            Theme::NoSpaceUnderDisks => {
                let size = self.media()[0].size_bytes();
                let limit = (1 << 20) + (size - (1 << 20)) * random.below(100) / 100;
                let narrow = random.index(self.media().len() + 1);
                let limited = |n: usize| n == narrow || narrow == self.media().len();
                for (_, medium) in self.media().iter().enumerate().filter(|(n, _)| limited(*n)) {
                    medium.limit_space(Some(limit));
                }
                self.site.starved.set(true);
                executor_sleep(executor, moment(random.below(150))).await;
                self.media().iter().for_each(|medium| medium.limit_space(None));
                // Those who wait look again every half second.
                executor_sleep(executor, Duration::from_secs(2)).await;
            }
            _ => {}
        }
    }

    fn start_clients(
        &self,
        world: &Rc<World>,
        store: &Store,
        random: &Random,
        epoch: u32,
    ) -> LocalBoxFuture<'static, ()> {
        let client = || Client {
            site: self.site.clone(),
            store: store.clone(),
            random: random.fork(),
            epoch,
            keeps_snapshots: self.plan.snapshots,
            rolls_back: self.plan.rolls_back,
        };
        let mut work: Vec<LocalBoxFuture<'static, ()>> = Vec::new();
        for _ in 0..1 + random.index(6) {
            work.push(Box::pin(client().work()));
        }
        if self.plan.forges {
            work.push(Box::pin(forger::forge(self.site.clone(), store.clone(), random.fork(), epoch)));
        }
        if self.plan.tenants {
            work.push(Box::pin(client().keep_tenants()));
        }
        if self.plan.snapshots {
            work.extend(
                (0..2).map(|_| -> LocalBoxFuture<'static, ()> { Box::pin(client().keep_snapshots()) }),
            );
        }
        let start = |work: LocalBoxFuture<'static, ()>| {
            let (sender, receiver) = futures::channel::oneshot::channel::<()>();
            world.spawn(Box::pin(async move {
                work.await;
                let _ = sender.send(());
            }));
            receiver
        };
        let done: Vec<_> = work.into_iter().map(start).collect();
        Box::pin(async move { drop(join_all(done).await) })
    }

    /// The end of a life: the power goes, whatever was going on.
    fn die(&self, world: &Rc<World>, store: &Store) -> Result<(), String> {
        let statistics = store.statistics();
        let (all, live) = (store.array().geometry().all_slots(), store.array().live());
        let is_wide =
            |members: MemberSet| members == all && live != all && store.array().geometry().disk_count > 1;
        let segments = store.segments();
        let wide =
            segments.iter().filter(|(_, s)| s.state == SegmentState::Open && is_wide(s.members)).count();
        self.note(|report| {
            report.rebuilt_blocks += statistics.rebuilt_blocks.get();
            report.moved_blocks += statistics.moved_blocks.get();
            report.checkpoints += statistics.checkpoints.get();
            report.disks_lost += u64::from(live != all);
            report.degraded_wide_segments += wide as u64;
            report.writes += statistics.written_blocks.get();
            report.reads += statistics.read_blocks.get();
            report.crashes += 1;
            report.discards = self.media().iter().map(|medium| medium.counters().discards).sum();
            report.refused_for_space += self.site.refusals.take();
            report.medium_errors += self.site.medium_errors.take();
            report.dropped_volumes += self.site.drops.take();
            report.snapshots += self.site.snapshots.take();
            report.snapshots_dropped += self.site.snapshot_drops.take();
            report.snapshot_reads += self.site.snapshot_reads.take();
            report.late_writes += self.site.late_writes.take();
            report.clones += self.site.clones.take();
            report.drops_refused += self.site.drops_refused.take();
            report.rollbacks += self.site.rollbacks.take();
            report.rollbacks_ended += self.site.rollbacks_ended.take();
            self.site.put_backs_refused.take();
            report.moved_older_blocks += statistics.moved_older_blocks.get();
        });
        self.cut_power(world);
        self.site.problem.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// The power fails, or the process is killed and the disks go on with what their caches hold.
    fn cut_power(&self, world: &Rc<World>) {
        world.crash();
        let ending = self.endings.below(4);
        let media = self.connected();
        let unlucky = self.endings.index(media.len());
        for (disk, medium) in media.iter().enumerate() {
            match ending {
                0 => medium.lose_user(),
                // Parity has to give back what one disk alone lost.
                1 => medium.crash_keeping(if disk == unlucky { 300_000 } else { 1_000_000 }),
                _ => medium.crash(),
            }
            medium.reappear();
            medium.limit_space(None);
        }
        self.note(|report| {
            report.kills += u64::from(ending == 0);
            report.lone_losses += u64::from(ending == 1);
        });
        self.site.starved.set(false);
        self.site.pending_blocks.set(0);
    }

    /// Completes soon after the superblock on some disk was written `commits` times.
    fn after_commits(&self, executor: &Executor, commits: u64) -> LocalBoxFuture<'static, ()> {
        self.note(|report| report.aimed_cuts += 1);
        let medium = &self.media()[self.endings.index(self.media().len())];
        let written = medium.watch(0..Geometry::RESERVED_BYTES);
        let clock = executor.world("clock");
        let delay = Duration::from_micros(self.endings.below(600));
        Box::pin(async move {
            for _ in 0..commits {
                written.wait().await;
            }
            clock.sleep(delay).await;
        })
    }

    fn disks(&self, world: &Rc<World>) -> Vec<Rc<dyn Disk>> {
        let open = |medium| -> Rc<dyn Disk> { SimulatedDisk::open(medium, world.clone()) };
        self.connected().iter().map(open).collect()
    }

    fn disk_reads(&self) -> u64 {
        self.media().iter().map(|medium| medium.counters().reads).sum()
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.report.get();
        change(&mut report);
        self.report.set(report);
    }
}

/// Why a pool did not open.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Array(#[from] OpenError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error("volumes: {0}")]
    Volume(#[from] StoreError),
    #[error("volumes: {0}")]
    Oracle(String),
}

impl Refusal {
    fn is_lost_batch(&self) -> bool {
        let Self::Pool(PoolError::Recovery(error)) = self else { return false };
        matches!(error, RecoveryError::AcknowledgedBatchLost { .. })
    }
}

/// What a future gave, unless the power cut came first.
fn outcome<T, F>(ended: Either<(T, LocalBoxFuture<'static, ()>), ((), F)>) -> Option<T> {
    match ended {
        Either::Left((result, _)) => Some(result),
        Either::Right(_) => None,
    }
}

/// A sleep that belongs to no node, so that it outlives crashes.
fn executor_sleep(executor: &Executor, duration: Duration) -> LocalBoxFuture<'static, ()> {
    executor.world("clock").sleep(duration)
}

/// Seeds from here on are of pools that keep their maps on their disks.
pub const TREE_SEEDS: u64 = 1 << 32;
/// Virtual time after which a run counts as hanging.
const LONGEST_RUN: Duration = Duration::from_secs(900);
const LOG_KEY: LogKey = LogKey([0x5e; 16]);
const SEGMENT_ROWS: u64 = 16;
const SEGMENT_BYTES: u64 = SEGMENT_ROWS * BLOCK_SIZE as u64;
/// Lasting volumes.
const VOLUMES: u64 = 2;

/// Tells whoever looks into a seed what happens, with `LIVE=1`.
fn tell(what: impl FnOnce() -> String) {
    thread_local! {
        static IS_TOLD: bool = std::env::var("LIVE").is_ok();
    }
    if IS_TOLD.with(|is_told| *is_told) {
        println!("{}", what());
    }
}
