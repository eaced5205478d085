//! Snapshots in the world: taken, dropped and read through whoever serves, and what they may show.
//!
//! What a snapshot shows of a sector counts as a read of that sector between the moment at which the snapshot was asked
//! for and the one at which it was acknowledged; so it takes part in the sector's history ([`super::oracle`]), whenever it
//! was looked at. What was seen once stays. One that was acknowledged is there until somebody wants it dropped, on both
//! nodes at the same cut; one without an acknowledgement is there or not, and that stays so once somebody has looked
//! (I19), unless the node that was asked is still about to do it: one that stands still does so when it goes on.

mod clones;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{Either, select};

use super::hosts::USED;
use super::{Cluster, NAMES, VOLUMES, command, micros};
use crate::base::runtime::Runtime;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::pair::ServedStore;
use crate::sim::linearizability::{Action, Event};
use crate::store::Store;
use crate::store::interface::{ChangeLog, SnapshotStore};
use crate::volume::snapshot::{SnapshotKind, SnapshotRecord};
use crate::volume::{SnapshotError, Volume};

/// All snapshots that anybody wanted.
#[derive(Default)]
pub(super) struct Snapshots {
    known: RefCell<Vec<Rc<Known>>>,
    rollbacks: RefCell<Vec<Rc<RolledBack>>>,
    clone_writes: RefCell<clones::Writes>,
}

/// A rollback that somebody wanted: of each sector, a write of what the snapshot shows.
struct RolledBack {
    volume: VolumeId,
    asked: u64,
    turn: u64,
    acknowledged: Cell<Option<u64>>,
    /// By sector.
    shown: BTreeMap<u64, u64>,
}

/// What is known of a snapshot.
pub(super) struct Known {
    volume: VolumeId,
    name: String,
    asked: u64,
    /// The turn of service in which it was asked for.
    turn: u64,
    acknowledged: Cell<Option<u64>>,
    state: Cell<State>,
    /// A clone of it is there, or may come.
    is_cloned: Cell<bool>,
    /// How many that it be taken or dropped are still to be done by the node that was asked.
    under_way: Cell<u32>,
    /// In which turn of service that was asked last.
    asked_in: Cell<u64>,
    version: Cell<Option<Version>>,
    /// What it shows, by sector.
    seen: RefCell<BTreeMap<u64, u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It may come about.
    InDoubt,
    There,
    DropAsked,
    Gone,
}

/// Something that was asked is still to be done, until this is dropped; with the node it is over.
struct UnderWay(Rc<Known>);

impl UnderWay {
    fn new(known: &Rc<Known>, served: &Served) -> Self {
        known.asked_in.set(served.turn);
        known.under_way.set(known.under_way.get() + 1);
        Self(known.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
    }
}

/// A volume where it is served, and the turn of service.
pub(super) struct Served {
    node: usize,
    turn: u64,
    pub(super) volume: Volume<ServedStore<Store>>,
}

impl Snapshots {
    fn of(&self, volume: VolumeId, state: State) -> Vec<Rc<Known>> {
        let known = self.known.borrow();
        let wanted = known.iter().filter(|known| known.volume == volume && known.state.get() == state);
        wanted.cloned().collect()
    }

    /// What snapshots have shown, for the histories of the sectors.
    pub(super) fn events(&self, end_of_turn: impl Fn(VolumeId, u64) -> u64) -> Vec<(VolumeId, u64, Event)> {
        let mut events = Vec::new();
        for known in &*self.known.borrow() {
            let ended = known.acknowledged.get();
            let ended = ended.unwrap_or_else(|| end_of_turn(known.volume, known.turn).max(known.asked + 1));
            for (sector, value) in &*known.seen.borrow() {
                let event =
                    Event { called: known.asked, ended, action: Action::Read(*value), is_optional: false };
                events.push((known.volume, *sector, event));
            }
        }
        for rollback in &*self.rollbacks.borrow() {
            let RolledBack { volume, asked: called, turn, .. } = **rollback;
            let acknowledged = rollback.acknowledged.get();
            let ended = acknowledged.unwrap_or_else(|| end_of_turn(volume, turn).max(called + 1));
            for (sector, value) in &rollback.shown {
                let (action, is_optional) = (Action::Write(*value), acknowledged.is_none());
                events.push((volume, *sector, Event { called, ended, action, is_optional }));
            }
        }
        events
    }
}

impl Cluster {
    pub(super) fn served(&self, volume: VolumeId) -> Option<Served> {
        let node = self.server(volume)?;
        let data = self.life(node)?.data()?;
        let faces = data.faces.borrow();
        let device = faces.get(&volume)?.unit.device()?;
        Some(Served { node, turn: device.turn(), volume: device.volume().clone() })
    }

    /// Does something with a volume on the node that serves it; none when that takes too long, or the node is gone.
    async fn with_served<T: 'static, F: Future<Output = Result<T, SnapshotError>> + 'static>(
        &self,
        served: &Served,
        work: impl FnOnce(Volume<ServedStore<Store>>) -> F,
    ) -> Option<Result<T, SnapshotError>> {
        let life = self.life(served.node)?;
        let (sender, done) = oneshot::channel();
        let work = work(served.volume.clone());
        let world = life.world.clone();
        life.world.spawn(Box::pin(async move {
            world.sleep(micros(world.random() % 100)).await;
            // Nobody may be waiting any more.
            let _ = sender.send(work.await);
        }));
        match select(done, self.clock.sleep(PATIENCE)).await {
            Either::Left((done, _)) => done.ok(),
            Either::Right(_) => None,
        }
    }

    /// Takes a snapshot; its version, when that was acknowledged.
    pub(super) async fn take_snapshot(&self, volume: VolumeId) -> Option<Version> {
        let served = self.served(volume)?;
        let (known, record) = self.want_snapshot(volume, &served);
        let under_way = UnderWay::new(&known, &served);
        let take = |volume: Volume<_>| async move {
            let _under_way = under_way;
            volume.take_snapshot(&record).await
        };
        let taken = self.with_served(&served, take).await;
        let version = taken?.ok()?;
        self.meet("snapshots taken");
        self.tell(|| format!("snapshot {} of volume {} is taken: {version:?}", known.name, volume.0));
        known.acknowledged.set(Some(self.oracle.tick()));
        known.state.set(State::There);
        known.version.set(Some(version));
        Some(version)
    }

    /// A snapshot of which nobody knows yet whether it comes about, and its record.
    fn want_snapshot(&self, volume: VolumeId, served: &Served) -> (Rc<Known>, SnapshotRecord) {
        let mut all = self.snapshots.known.borrow_mut();
        let known = Rc::new(Known {
            volume,
            name: format!("s{}", all.len()),
            asked: self.oracle.tick(),
            turn: served.turn,
            acknowledged: Cell::default(),
            state: Cell::new(State::InDoubt),
            is_cloned: Cell::default(),
            under_way: Cell::default(),
            asked_in: Cell::default(),
            version: Cell::default(),
            seen: RefCell::default(),
        });
        all.push(known.clone());
        let record = SnapshotRecord {
            id: known.asked,
            name: known.name.clone(),
            taken_unix_ms: self.clock.now().0,
            protected_until_unix_ms: None,
            kind: SnapshotKind::Manual,
            group: None,
        };
        (known, record)
    }

    /// Rolls a volume back to one of its snapshots, once everything of that has been seen. Whether that was acknowledged.
    pub(super) async fn roll_back(&self, volume: VolumeId, to: Version) -> bool {
        let there = self.snapshots.of(volume, State::There);
        let Some(target) = there.into_iter().find(|known| known.version.get() == Some(to)) else {
            return false;
        };
        for blocks in USED {
            if !self.look_into(&target, blocks).await {
                return false;
            }
        }
        let Some(served) = self.served(volume) else { return false };
        let (known, record) = self.want_snapshot(volume, &served);
        let rolled_back = Rc::new(RolledBack {
            volume,
            asked: self.oracle.tick(),
            turn: served.turn,
            acknowledged: Cell::default(),
            shown: target.seen.borrow().clone(),
        });
        self.snapshots.rollbacks.borrow_mut().push(rolled_back.clone());
        self.tell(|| format!("volume {} is to be rolled back to {} {to:?}", volume.0, target.name));
        let under_way = UnderWay::new(&known, &served);
        let roll_back = move |volume: Volume<_>| async move {
            let _under_way = under_way;
            volume.roll_back(to, &record).await
        };
        let outcome = self.with_served(&served, roll_back).await;
        self.tell(|| format!("volume {} is rolled back to {to:?}: {outcome:?}", volume.0));
        let Some(Ok(version)) = outcome else { return false };
        self.meet("rollbacks");
        rolled_back.acknowledged.set(Some(self.oracle.tick()));
        known.acknowledged.set(rolled_back.acknowledged.get());
        known.state.set(State::There);
        known.version.set(Some(version));
        true
    }

    /// Waits until no rollback of a volume is under way any more.
    pub(super) async fn until_restored(&self, volume: VolumeId) -> Result<(), String> {
        let is_restored = || {
            let served = self.served(volume);
            served.is_some_and(|served| matches!(served.volume.rollback(), Ok(None)))
        };
        self.until("the rollback ends", 5000, is_restored).await
    }

    /// Drops one of a volume's snapshots.
    pub(super) async fn drop_snapshot(&self, volume: VolumeId, version: Version) -> bool {
        let Some(served) = self.served(volume) else { return false };
        let there = self.snapshots.of(volume, State::There);
        let known = there.into_iter().find(|known| known.version.get() == Some(version));
        let Some(known) = known else { return false };
        known.state.set(State::DropAsked);
        self.tell(|| format!("snapshot {} of volume {} is to be dropped: {version:?}", known.name, volume.0));
        let under_way = UnderWay::new(&known, &served);
        let drop = move |volume: Volume<_>| async move {
            let _under_way = under_way;
            volume.drop_snapshot(version, 0).await
        };
        let dropped = self.with_served(&served, drop).await;
        if dropped == Some(Ok(())) {
            self.meet("snapshots dropped");
            self.tell(|| format!("snapshot {} of volume {} is dropped", known.name, volume.0));
            known.state.set(State::Gone);
        }
        known.state.get() == State::Gone
    }

    /// Looks which snapshots there are, and whether these are the right ones.
    pub(super) async fn check_list(&self, volume: VolumeId) -> bool {
        let Some(served) = self.served(volume) else { return false };
        let listed = self.with_served(&served, |volume| async move { volume.snapshots().await }).await;
        let Some(Ok(mut listed)) = listed else { return false };
        listed.retain(|(_, record)| !matches!(record.kind, SnapshotKind::Rollback { .. }));
        let all = self.snapshots.known.borrow().clone();
        for known in all.iter().filter(|known| known.volume == volume) {
            let found = listed.iter().find(|(_, record)| record.name == known.name);
            let found = found.map(|(version, _)| *version);
            let name = &known.name;
            match (known.state.get(), found) {
                (State::InDoubt | State::DropAsked, _)
                    if known.under_way.get() > 0 && known.asked_in.get() == served.turn =>
                {
                    self.meet("snapshots looked for before their turn");
                }
                (State::There, None) => {
                    self.fail(format!("snapshot {name} of {volume:?} is not there (I19)"))
                }
                (State::Gone, Some(_)) => {
                    self.fail(format!("snapshot {name} of {volume:?} is there again (I19)"));
                }
                (State::InDoubt | State::DropAsked, Some(version)) => {
                    self.meet("snapshots in doubt that are there");
                    known.version.set(Some(version));
                    known.state.set(State::There);
                }
                (State::InDoubt | State::DropAsked, None) => {
                    self.meet("snapshots in doubt that are not there");
                    known.state.set(State::Gone);
                }
                (State::There, Some(version)) if known.version.get() != Some(version) => {
                    self.fail(format!("snapshot {name} of {volume:?} has another version"));
                }
                _ => {}
            }
        }
        let is_taken = |record: &SnapshotRecord| all.iter().any(|known| known.name == record.name);
        let kept = |record: &SnapshotRecord| record.kind == SnapshotKind::BeforeResync;
        if listed.iter().any(|(_, record)| !is_taken(record) && !kept(record)) {
            self.fail(format!("there are snapshots of {volume:?} that nobody has taken: {listed:?}"));
        }
        true
    }

    /// Reads a part of one snapshot, whichever `choose` takes of those that are there.
    async fn look_into(&self, known: &Known, blocks: (u64, u64)) -> bool {
        let (Some(served), Some(version)) = (self.served(known.volume), known.version.get()) else {
            return false;
        };
        let (first, count) = (blocks.0 * 8, blocks.1 * 8);
        let read = self.with_served(&served, move |volume| async move {
            Ok(volume.read_at(version, first, count).await)
        });
        let Some(Ok(Ok(pieces))) = read.await else { return false };
        self.meet("snapshots read");
        self.note_seen(known, first, &pieces.concat());
        true
    }

    fn note_seen(&self, known: &Known, first: u64, data: &[u8]) {
        let numbers = match command::numbers_in(known.volume, first, data) {
            Ok(numbers) => numbers,
            Err(problem) => {
                return self.fail(format!("snapshot {} of {:?}: {problem}", known.name, known.volume));
            }
        };
        let mut seen = known.seen.borrow_mut();
        for (sector, number) in (first..).zip(numbers) {
            let before = *seen.entry(sector).or_insert(number);
            if before != number {
                self.fail(format!(
                    "snapshot {} of {:?} shows {number} in sector {sector}, and {before} before (I19)",
                    known.name, known.volume
                ));
            }
        }
    }

    /// Everything of every snapshot, through whoever serves.
    pub(super) async fn look_into_all(&self, volume: VolumeId) -> Result<(), String> {
        let mut tries = 0;
        while !self.check_list(volume).await {
            self.clock.sleep(micros(1000)).await;
            tries += 1;
            if tries > 500 {
                return Err(format!("nobody lists the snapshots of {volume:?}"));
            }
        }
        for known in self.snapshots.of(volume, State::There) {
            for blocks in USED {
                let mut tries = 0;
                while !self.look_into(&known, blocks).await {
                    self.clock.sleep(micros(1000)).await;
                    self.check()?;
                    tries += 1;
                    if tries > 500 {
                        return Err(format!("snapshot {} of {volume:?} cannot be read", known.name));
                    }
                }
            }
        }
        Ok(())
    }

    /// I24 for snapshots: both nodes have the same ones, and see the same in each.
    pub(super) async fn compare_snapshots(&self, volume: VolumeId) -> Result<(), String> {
        let stores: Vec<_> = (0..2).filter_map(|node| Some(self.life(node)?.data()?.store.clone())).collect();
        let [one, other] = &stores[..] else { return Err("a node is not there".to_owned()) };
        let failed = |error: crate::store::interface::StoreError| error.to_string();
        let lists = [one.snapshots(volume).map_err(failed)?, other.snapshots(volume).map_err(failed)?];
        if lists[0] != lists[1] {
            let versions = lists.each_ref().map(|list| list.iter().map(|e| e.version).collect::<Vec<_>>());
            return Err(format!("{NAMES:?} have other snapshots of {volume:?}: {versions:?} (I24)"));
        }
        for at in lists[0].iter().map(|entry| entry.version) {
            for (first, count) in USED {
                let view = async |store: &Store| {
                    let read = store.read_at(volume, at, BlockAddress(first), count).await;
                    let runs = store.allocation_at(volume, at, BlockAddress(first), count, 1000).await;
                    Ok::<_, String>((read.map_err(failed)?.concat(), runs.map_err(failed)?))
                };
                let (here, there) = (view(one).await?, view(other).await?);
                if here != there {
                    let blocks = here.0.chunks(4096).zip(there.0.chunks(4096));
                    let block = first + blocks.take_while(|(here, there)| here == there).count() as u64;
                    for store in [one, other] {
                        for at in lists[0].iter().map(|entry| entry.version) {
                            let (zero, block) = (Version::default(), BlockAddress(block));
                            let shown = store.changed_between(volume, zero, at, block, 1).await;
                            self.tell(|| format!("{block:?} at {at:?}: {shown:?}"));
                        }
                        let now =
                            store.changed_since(volume, Version::default(), BlockAddress(block), 1).await;
                        self.tell(|| format!("{block} now: {now:?}"));
                    }
                    return Err(format!("{volume:?} differs at snapshot {at:?} in block {block} (I24)"));
                }
            }
        }
        Ok(())
    }
}

/// Does something with snapshots of each volume now and then, until `is_ending`.
pub(super) fn keep(cluster: &Rc<Cluster>, is_ending: &Rc<Cell<bool>>, working: &Rc<Cell<usize>>) {
    for volume in VOLUMES {
        working.set(working.get() + 1);
        let (cluster, is_ending, working) = (cluster.clone(), is_ending.clone(), working.clone());
        cluster.clock.clone().spawn(Box::pin(async move {
            while !is_ending.get() {
                cluster.clock.sleep(micros(cluster.random.below(20_000))).await;
                do_something(&cluster, volume).await;
            }
            working.set(working.get() - 1);
        }));
    }
}

async fn do_something(cluster: &Cluster, volume: VolumeId) {
    let random = &cluster.random;
    let there = cluster.snapshots.of(volume, State::There);
    let chosen = || there.get(random.index(there.len().max(1)));
    match random.below(10) {
        0..4 if there.len() < MOST_SNAPSHOTS => drop(cluster.take_snapshot(volume).await),
        4 => {
            if let Some(version) =
                chosen().filter(|known| !known.is_cloned.get()).and_then(|known| known.version.get())
            {
                cluster.drop_snapshot(volume, version).await;
            }
        }
        5 => drop(cluster.check_list(volume).await),
        6 if cluster.setting.rolls_back => {
            if let Some(version) = chosen().and_then(|known| known.version.get()) {
                cluster.roll_back(volume, version).await;
            }
        }
        6..9 if cluster.setting.has_clones => cluster.work_on_clones(volume).await,
        _ => {
            if let Some(known) = chosen() {
                let (first, count) = USED[random.index(2)];
                let skipped = random.below(count);
                cluster.look_into(known, (first + skipped, count - skipped)).await;
            }
        }
    }
}

/// Longest that an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(60);

/// Most of a volume at a time.
const MOST_SNAPSHOTS: usize = 6;
