//! Random histories, applied to the tree and to the map in memory side by side.
//!
//! Statements of all kinds come in random order, with late ones, snapshots and late snapshots, clones, dropped
//! volumes; meanwhile memtables are flushed and runs merged, turns are given up half way, lookups wait for reads that
//! complete in any order, and the tree is thrown away and made again from a manifest and the log behind it. What a
//! lookup finds is compared at the moment it completes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::super::{LsmMap, TableId, TreeOptions};
use super::MemoryStorage;
use crate::array::{Geometry, Place};
use crate::base::checksum::Crc32;
use crate::base::codec::Reader;
use crate::base::runtime::Runtime;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::sim::executor::{Executor, World};
use crate::sim::random::Random;
use crate::store::interface::StoreError;
use crate::store::map::{
    Covered, Lineage, Map, MapEntry, MapValue, MemoryMap, References, SavePosition, View,
};

/// A statement of the log.
#[derive(Clone, Copy, Debug)]
enum Op {
    Apply(VolumeId, u64, MapEntry),
    Move(VolumeId, u64, MapEntry),
    Hole(VolumeId, u64, u64, Version),
    Snapshot(VolumeId, Version),
    DropSnapshot(VolumeId, Version),
    DropVolume(VolumeId),
}

/// How often each place is referred to.
#[derive(Clone, Default)]
struct Counts(BTreeMap<Place, i64>);

impl References for Counts {
    fn gained(&mut self, place: Place) {
        *self.0.entry(place).or_default() += 1;
    }

    fn lost(&mut self, place: Place) {
        let count = self.0.entry(place).or_default();
        *count -= 1;
        assert!(*count >= 0, "{place:?} was lost more often than it was gained");
    }
}

#[derive(Clone, Default)]
struct Volume {
    newest: u64,
    snapshots: Vec<Version>,
    parent: Option<View>,
    /// Holes through this may be forgotten, and nothing older comes late.
    floor: u64,
}

type Volumes = BTreeMap<VolumeId, Volume>;

/// What a checkpoint has kept.
struct Saved {
    records: Vec<u8>,
    log_index: usize,
    counts: Counts,
    volumes: Volumes,
}

struct World_ {
    random: Rc<Random>,
    storage: MemoryStorage,
    options: TreeOptions,
    tree: RefCell<Rc<RefCell<LsmMap<MemoryStorage>>>>,
    model: RefCell<MemoryMap>,
    counts: RefCell<Counts>,
    volumes: RefCell<Volumes>,
    log: RefCell<Vec<Op>>,
    next_place: RefCell<u64>,
    /// Which tree this is: what belongs to an earlier one is of no interest.
    life: RefCell<u32>,
    has_late_snapshots: bool,
    features: u32,
    compared: RefCell<u64>,
}

fn version(sequence: u64) -> Version {
    Version { epoch: 1 + (sequence / 97) as u32, sequence }
}

impl World_ {
    fn tree(&self) -> Rc<RefCell<LsmMap<MemoryStorage>>> {
        self.tree.borrow().clone()
    }

    fn place(&self) -> Place {
        let mut next = self.next_place.borrow_mut();
        *next += 1;
        Place::of_row(
            crate::array::SegmentIndex((*next / 16) as u32),
            crate::array::Slot((*next % 3) as u8),
            *next as u32 % 500,
        )
    }

    fn ancestors(volumes: &Volumes, volume: VolumeId) -> Vec<View> {
        let mut all = Vec::new();
        let mut next = volumes.get(&volume).and_then(|state| state.parent);
        while let Some(view) = next {
            all.push(view);
            next = volumes.get(&view.volume).and_then(|state| state.parent);
        }
        all
    }

    /// Applies to the tree, and to the model when it is new.
    fn apply(&self, op: Op, volumes: &mut Volumes, is_new: bool) {
        let (tree, mut model, mut counts) = (self.tree(), self.model.borrow_mut(), self.counts.borrow_mut());
        let mut tree = tree.borrow_mut();
        let (counts, mut uncounted) = (&mut *counts, Counts::default());
        let snapshots =
            |volumes: &Volumes, volume: &VolumeId| volumes.get(volume).map(|v| v.snapshots.clone());
        uncounted.0.entry(Place::from_bits(0)).or_default();
        let mut ignored = Ignored;
        match op {
            Op::Apply(volume, address, entry) => {
                let Some(snapshots) = snapshots(volumes, &volume) else { return };
                tree.apply(volume, BlockAddress(address), entry, &snapshots, counts);
                if is_new {
                    model.apply(volume, BlockAddress(address), entry, &snapshots, &mut ignored);
                }
            }
            Op::Move(volume, address, entry) => {
                if !volumes.contains_key(&volume) {
                    return;
                }
                tree.apply_move(volume, BlockAddress(address), entry, counts);
                if is_new {
                    model.apply_move(volume, BlockAddress(address), entry, &mut ignored);
                }
            }
            Op::Hole(volume, address, count, version) => {
                let Some(snapshots) = snapshots(volumes, &volume) else { return };
                let ancestors = Self::ancestors(volumes, volume);
                let covered = Covered { snapshots: &snapshots, ancestors: &ancestors };
                assert_eq!(
                    tree.apply_hole(volume, BlockAddress(address), count, version, covered, counts),
                    None
                );
                let mut rest = Some((BlockAddress(address), count)).filter(|_| is_new);
                while let Some((address, count)) = rest {
                    rest = model.apply_hole(volume, address, count, version, covered, &mut ignored);
                }
            }
            Op::Snapshot(volume, version) => {
                let Some(state) = volumes.get_mut(&volume) else { return };
                if let Err(index) = state.snapshots.binary_search(&version) {
                    state.snapshots.insert(index, version);
                }
            }
            Op::DropSnapshot(volume, version) => {
                let Some(state) = volumes.get_mut(&volume) else { return };
                let Ok(index) = state.snapshots.binary_search(&version) else { return };
                state.snapshots.remove(index);
                let left = &state.snapshots;
                assert_eq!(tree.drop_snapshot(volume, version, BlockAddress(0), left, counts), None);
                let mut rest = Some(BlockAddress(0)).filter(|_| is_new);
                while let Some(from) = rest {
                    rest = model.drop_snapshot(volume, version, from, left, &mut ignored);
                }
            }
            Op::DropVolume(volume) => {
                volumes.remove(&volume);
                assert!(!tree.drop_volume(volume, counts));
                while is_new && model.drop_volume(volume, &mut ignored) {}
            }
        }
    }

    fn next_op(&self) -> Option<Op> {
        let (random, volumes) = (&self.random, self.volumes.borrow());
        let ids: Vec<VolumeId> = volumes.keys().copied().collect();
        let volume = ids[random.index(ids.len())];
        let state = &volumes[&volume];
        let has_clones =
            volumes.values().any(|other| other.parent.is_some_and(|parent| parent.volume == volume));
        let address = self.address();
        let is_late =
            self.features & 2 != 0 && !has_clones && state.newest > state.floor + 1 && random.chance(150_000);
        let sequence = match is_late {
            true => state.floor + 1 + random.below(state.newest - state.floor),
            false => state.newest + 1 + random.below(3) / 2,
        };
        let version = version(sequence);
        Some(match random.below(100) {
            0..=54 => {
                let value =
                    MapValue::Data { place: self.place(), checksum: Crc32(random.below(1 << 20) as u32) };
                Op::Apply(volume, address, MapEntry { version, value })
            }
            55..=69 if self.features & 32 != 0 => {
                // Of an entry that is there, or was, or with other data.
                let model = self.model.borrow();
                let all: Vec<_> = model.data_entries().take(400).collect();
                let (volume, address, mut entry, _) = *all.get(random.index(all.len().max(1)))?;
                if let MapValue::Data { checksum, .. } = entry.value {
                    let checksum = if random.chance(100_000) { Crc32(checksum.0 ^ 1) } else { checksum };
                    entry.value = MapValue::Data { place: self.place(), checksum };
                }
                if random.chance(100_000) {
                    entry.version.sequence = entry.version.sequence.saturating_sub(random.below(3));
                }
                if random.chance(50_000) {
                    entry.value = MapValue::Lost;
                }
                Op::Move(volume, address.0, entry)
            }
            70..=84 if self.features & 16 != 0 => {
                let count = 1 + random.below(1 << random.below(8));
                let count = if random.chance(20_000) { 1 << 40 } else { count };
                Op::Hole(volume, address, count, version)
            }
            85..=91 if state.snapshots.len() < 6 => {
                let is_late = self.has_late_snapshots && random.coin() && is_late;
                let at = if is_late { version } else { self::version(state.newest + 1) };
                Op::Snapshot(volume, at)
            }
            92..=97 => {
                let in_use = |at: &Version| {
                    volumes.values().any(|other| other.parent == Some(View { volume, at: *at }))
                };
                let may_go: Vec<Version> = state.snapshots.iter().filter(|at| !in_use(at)).copied().collect();
                Op::DropSnapshot(volume, *may_go.get(random.index(may_go.len().max(1)))?)
            }
            98 if random.chance(200_000) && ids.len() > 1 && !has_clones => Op::DropVolume(volume),
            _ => return None,
        })
    }

    fn address(&self) -> u64 {
        let spread = [60, 400, 1 << 20][self.random.index(3)];
        self.random.below(spread)
    }

    /// A statement is appended and settles.
    fn step(&self) {
        if self.random.chance(4_000) {
            self.begin_clone();
        }
        let Some(op) = self.next_op() else { return };
        let mut volumes = self.volumes.borrow_mut();
        let newest = match op {
            Op::Apply(volume, _, entry) => Some((volume, entry.version)),
            Op::Hole(volume, _, _, version) | Op::Snapshot(volume, version) => Some((volume, version)),
            _ => None,
        };
        if let Op::Apply(volume, address, _) = op {
            let newest = volumes[&volume].snapshots.last().copied();
            let knows = self.tree().borrow().has_space(volume, BlockAddress(address), newest);
            assert!(!knows || self.model.borrow().has_space(volume, BlockAddress(address), newest));
        }
        let newest_of = |volume: VolumeId| volumes.get(&volume).map_or(0, |state| state.newest);
        if self.is_hidden(&op, newest_of) {
            return;
        }
        self.apply(op, &mut volumes, true);
        self.log.borrow_mut().push(op);
        if let Some((volume, version)) = newest
            && let Some(state) = volumes.get_mut(&volume)
        {
            state.newest = state.newest.max(version.sequence);
        }
    }

    /// Whether a statement comes late under a hole that the map in memory has not recorded, as nothing was there:
    /// the tree has, and is right.
    fn is_hidden(&self, op: &Op, newest: impl Fn(VolumeId) -> u64) -> bool {
        let (volume, start, end, version) = match *op {
            Op::Apply(volume, address, entry) => (volume, address, address + 1, entry.version),
            Op::Hole(volume, address, count, version) => (volume, address, address + count, version),
            _ => return false,
        };
        if newest(volume) < version.sequence {
            return false;
        }
        self.log.borrow().iter().any(|other| match *other {
            Op::Hole(of, address, count, newer) => {
                of == volume && newer >= version && address < end && start < address + count
            }
            _ => false,
        })
    }

    fn begin_clone(&self) {
        let mut volumes = self.volumes.borrow_mut();
        let origins: Vec<View> = volumes
            .iter()
            .flat_map(|(volume, state)| state.snapshots.iter().map(|at| View { volume: *volume, at: *at }))
            .collect();
        if self.features & 4 == 0 || origins.is_empty() || volumes.len() > 5 {
            return;
        }
        let parent = Some(origins[self.random.index(origins.len())]);
        let id = VolumeId(100 + self.log.borrow().len() as u32);
        volumes.insert(id, Volume { newest: 1, parent, ..Volume::default() });
    }

    /// Compares what two lookups found of one block.
    fn compare(
        &self,
        what: &str,
        expected: Option<(VolumeId, MapEntry)>,
        found: Option<(VolumeId, MapEntry)>,
    ) {
        *self.compared.borrow_mut() += 1;
        let mapped = |shown: Option<(VolumeId, MapEntry)>| shown.filter(|(_, entry)| entry.value.is_mapped());
        assert_eq!(mapped(expected), mapped(found), "{what}");
        // A hole is known in both, but for those that may be forgotten, and those over nothing.
        if let Some((volume, entry)) = expected
            && entry.value == MapValue::Hole
        {
            let floor = self.volumes.borrow().get(&volume).map_or(u64::MAX, |state| state.floor);
            let is_nearer = found.is_some_and(|(owner, _)| owner != volume);
            assert!(
                found == expected || is_nearer || entry.version.sequence <= floor,
                "{what}: {expected:?}, {found:?}"
            );
        }
    }

    /// A view, the newest or that of a snapshot.
    fn lineage(&self) -> Lineage {
        let volumes = self.volumes.borrow();
        let ids: Vec<VolumeId> = volumes.keys().copied().collect();
        let volume = ids[self.random.index(ids.len())];
        let snapshots = &volumes[&volume].snapshots;
        let at = match snapshots.is_empty() || self.random.coin() {
            true => Version::GREATEST,
            false => snapshots[self.random.index(snapshots.len())],
        };
        Lineage::new(View { volume, at }, Self::ancestors(&volumes, volume))
    }

    /// Whether a view is still one.
    fn is_there(&self, lineage: &Lineage) -> bool {
        let volumes = self.volumes.borrow();
        lineage.views().all(|view| {
            volumes
                .get(&view.volume)
                .is_some_and(|state| view.at == Version::GREATEST || state.snapshots.contains(&view.at))
        })
    }
}

struct Ignored;

impl References for Ignored {
    fn gained(&mut self, _: Place) {}
    fn lost(&mut self, _: Place) {}
}

/// What the model finds; its lookups never wait.
fn of_model(model: &MemoryMap, lineage: &Lineage, address: u64) -> Option<(VolumeId, MapEntry)> {
    let found = Rc::new(RefCell::new(None));
    let into = found.clone();
    let looking =
        model.look_up(lineage, BlockAddress(address), 1, move |_, shown| *into.borrow_mut() = shown);
    futures::FutureExt::now_or_never(looking).unwrap().unwrap();
    found.borrow_mut().take()
}

/// A lookup that is compared when it completes. Says whether it was an error.
async fn look_up(world: Rc<World_>, may_fail: bool) -> bool {
    let (lineage, address, life) = (world.lineage(), world.address(), *world.life.borrow());
    let count = 1 + world.random.below(12);
    let is_current = |world: &World_| *world.life.borrow() == life && world.is_there(&lineage);
    let tree = world.tree();
    match world.random.below(4) {
        0 => {
            let looking = tree.borrow().run_from(&lineage, BlockAddress(address));
            match looking.await {
                Ok((length, mapped)) if is_current(&world) => {
                    for block in address..address + length.min(300) {
                        let shown = of_model(&world.model.borrow(), &lineage, block);
                        let is_mapped = shown.is_some_and(|(_, entry)| entry.value.is_mapped());
                        assert_eq!(is_mapped, mapped, "run of {lineage:?} from {address}, block {block}");
                    }
                }
                Ok(_) => {}
                Err(error) => assert!(may_fail && matches!(error, StoreError::Medium { .. }), "{error:?}"),
            }
            false
        }
        1 => {
            let Some(view) = lineage.views().next() else { return false };
            let version = {
                let shown = of_model(&world.model.borrow(), &Lineage::new(view, Vec::new()), address);
                shown.map_or(version(1), |(_, entry)| entry.version)
            };
            let looking = tree.borrow().look_up_version(view.volume, BlockAddress(address), version);
            let found = looking.await;
            if is_current(&world) && !may_fail {
                let model = world.model.borrow();
                let expected = model.look_up_version(view.volume, BlockAddress(address), version);
                let expected = futures::FutureExt::now_or_never(expected).unwrap().unwrap();
                let owner = |entry: Option<MapEntry>| entry.map(|entry| (view.volume, entry));
                world.compare("one version", owner(expected), owner(found.unwrap()));
            }
            false
        }
        _ => {
            let shown = Rc::new(RefCell::new(0));
            let (told, inner) = (shown.clone(), world.clone());
            let of = lineage.clone();
            let looking =
                tree.borrow().look_up(&lineage, BlockAddress(address), count, move |block, found| {
                    *told.borrow_mut() += 1;
                    if *inner.life.borrow() == life && inner.is_there(&of) {
                        let expected = of_model(&inner.model.borrow(), &of, block.0);
                        inner.compare(&format!("block {block:?} of {of:?}"), expected, found);
                    }
                });
            match looking.await {
                Ok(()) => assert_eq!(*shown.borrow(), count),
                Err(error) => {
                    assert!(may_fail && matches!(error, StoreError::Medium { .. }), "{error:?}");
                    return true;
                }
            }
            false
        }
    }
}

async fn changed_since(world: &Rc<World_>) {
    let volumes = world.volumes.borrow().clone();
    let ids: Vec<VolumeId> = volumes.keys().copied().collect();
    let volume = ids[world.random.index(ids.len())];
    let state = &volumes[&volume];
    let since = version(world.random.below(state.newest + 2));
    let at = match state.snapshots.first() {
        Some(snapshot) if world.random.coin() => *snapshot,
        _ => Version::GREATEST,
    };
    let limit = 1 + world.random.index(50);
    let mut expected = BTreeMap::new();
    let mut next = Some(BlockAddress(0));
    while let Some(from) = next {
        let changes = world.model.borrow().changed_since(volume, since, at, from, limit);
        let changes = futures::FutureExt::now_or_never(changes).unwrap().unwrap();
        for run in &changes.runs {
            (0..run.count).for_each(|n| {
                expected.insert(run.address.0 + n, (run.version, run.is_mapped));
            });
        }
        next = changes.next;
    }
    let (mut next, mut behind, mut runs) = (Some(BlockAddress(0)), 0, Vec::new());
    while let Some(from) = next {
        let asked = world.tree().borrow().changed_since(volume, since, at, from, limit);
        let changes = asked.await.unwrap();
        for run in changes.runs {
            assert!(run.address >= from && run.address.0 >= behind && run.count > 0);
            behind = run.end().0;
            runs.push(run);
        }
        assert!(changes.next.is_none_or(|next| next > from && next.0 >= behind));
        next = changes.next;
    }
    for run in runs {
        let known: Vec<u64> =
            expected.range(run.address.0..run.end().0).map(|(address, _)| *address).collect();
        assert!(!run.is_mapped || known.len() as u64 == run.count, "{run:?} is not in {known:?}");
        for address in known {
            assert_eq!(expected.remove(&address), Some((run.version, run.is_mapped)), "{address}");
        }
    }
    let is_forgotten = |(version, is_mapped): &(Version, bool)| !is_mapped && version.sequence <= state.floor;
    assert!(expected.values().all(is_forgotten), "since {since:?} at {at:?} not found: {expected:?}");
}

fn may_forget(world: &Rc<World_>) -> impl Fn(VolumeId, Version) -> bool + use<> {
    let world = world.clone();
    move |volume, hole| {
        let volumes = world.volumes.borrow();
        volumes.get(&volume).is_some_and(|state| state.parent.is_none() && hole.sequence <= state.floor)
    }
}

/// Flushes and merges until the tree is another one.
async fn keep_up(world: Rc<World_>, machine: Rc<World>) {
    let (tree, life) = (world.tree(), *world.life.borrow());
    while *world.life.borrow() == life {
        let is_full = tree.borrow().memtables() > 0;
        if is_full {
            tree.borrow().freeze();
        }
        let flushing = tree.borrow().flush();
        let merging = tree.borrow().merge(may_forget(&world));
        let turn = match world.random.below(3) {
            0 => flushing.await,
            1 => merging.await,
            // Given up where it happens to be.
            _ => {
                let sleep = machine.sleep(Duration::from_micros(world.random.below(300)));
                match futures::future::select(Box::pin(merging), sleep).await {
                    futures::future::Either::Left((turn, _)) => turn,
                    futures::future::Either::Right(_) => Ok(None),
                }
            }
        };
        if Rc::ptr_eq(&tree, &world.tree())
            && let Some(turn) = turn.unwrap()
        {
            turn.lost.into_iter().for_each(|place| world.counts.borrow_mut().lost(place));
        }
        machine.sleep(Duration::from_micros(10 + world.random.below(200))).await;
    }
}

async fn flush_all(world: &Rc<World_>) {
    let tree = world.tree();
    loop {
        let flushing = tree.borrow().flush();
        let Some(turn) = flushing.await.unwrap() else { break };
        turn.lost.into_iter().for_each(|place| world.counts.borrow_mut().lost(place));
    }
}

async fn checkpoint(world: &Rc<World_>) -> Saved {
    let log_index = world.log.borrow().len();
    let newest: BTreeMap<VolumeId, u64> =
        world.volumes.borrow().iter().map(|(id, state)| (*id, state.newest)).collect();
    world.tree().borrow().freeze();
    (0..world.random.below(20)).for_each(|_| world.step());
    flush_all(world).await;
    let tree = world.tree();
    let (mut records, mut next) = (Vec::new(), Some(SavePosition::START));
    while let Some(from) = next {
        next = tree.borrow_mut().save(from, |_, _| false, &mut records);
    }
    assert!(records.len() as u64 <= tree.borrow().saved_bytes());
    let mut counts = world.counts.borrow().clone();
    tree.borrow().places_in_memory().into_iter().for_each(|place| counts.lost(place));
    let tables = tree.borrow().tables();
    assert!(tree.borrow().take_retired().iter().all(|retired| !tables.contains(retired)));
    let mut volumes = world.volumes.borrow_mut();
    for (id, newest) in newest {
        // Nothing older than this comes from the log any more.
        if let Some(state) = volumes.get_mut(&id).filter(|_| world.random.coin()) {
            state.floor = newest;
        }
    }
    Saved { records, log_index, counts, volumes: volumes.clone() }
}

/// Makes the tree again of what was saved and the log.
fn restart(world: &Rc<World_>, saved: Option<&Saved>) {
    *world.life.borrow_mut() += 1;
    let first = TableId(u64::from(*world.life.borrow()) << 32);
    let mut tree = LsmMap::new(world.storage.clone(), world.options.clone());
    let mut volumes: Volumes = [1, 2, 3].map(|id| (VolumeId(id), Volume::default())).into();
    let mut log_index = 0;
    *world.counts.borrow_mut() = Counts::default();
    if let Some(saved) = saved {
        let geometry = Geometry { disk_count: 4, rows: 1 << 10, segment_count: 1 << 20 };
        let mut reader = Reader::new(&saved.records);
        while reader.remaining() > 0 {
            assert_eq!(reader.u8(), Ok(super::super::manifest::TAG_TREE));
            assert_eq!(tree.load(&mut reader, 1, &geometry), Ok(true));
        }
        *world.counts.borrow_mut() = saved.counts.clone();
        (volumes, log_index) = (saved.volumes.clone(), saved.log_index);
    }
    tree.number_tables_from(first);
    *world.tree.borrow_mut() = Rc::new(RefCell::new(tree));
    // Clones are not in this log.
    for (id, state) in world.volumes.borrow().iter() {
        volumes.entry(*id).or_insert_with(|| Volume { parent: state.parent, ..Volume::default() });
    }
    let log = world.log.borrow().clone();
    for (index, op) in log[log_index..].iter().enumerate() {
        world.apply(*op, &mut volumes, false);
        if index % 64 == 63 {
            world.tree().borrow().freeze();
        }
    }
}

/// What is counted, and in the end that it is exact.
fn check_counts(world: &Rc<World_>, is_exact: bool) {
    let (tree, model, counts) = (world.tree(), world.model.borrow(), world.counts.borrow());
    let tree = tree.borrow();
    for place in model.places() {
        assert!(counts.0.get(&place).is_some_and(|count| *count > 0), "{place:?} was lost early");
    }
    for volume in world.volumes.borrow().keys() {
        let of_tree = (tree.mapped_blocks(*volume), tree.held_blocks(*volume));
        let of_model = (model.mapped_blocks(*volume), model.held_blocks(*volume));
        assert!(
            world.has_late_snapshots || of_tree.0 + of_tree.1 >= of_model.0 + of_model.1,
            "{of_tree:?} {of_model:?}"
        );
        assert!(!is_exact || of_tree == of_model, "{volume:?}: {of_tree:?}, not {of_model:?}");
    }
    if is_exact {
        let left: Vec<Place> =
            counts.0.iter().filter(|(_, count)| **count > 0).map(|(place, _)| *place).collect();
        let mut expected: Vec<Place> = model.places().collect();
        expected.sort_unstable();
        assert_eq!(left, expected);
        assert_eq!(tree.total_mapped_blocks(), model.total_mapped_blocks());
    }
}

pub(crate) fn run(seed: u64) -> u64 {
    run_with(seed, u32::MAX)
}

fn run_with(seed: u64, features: u32) -> u64 {
    let executor = Executor::new(seed);
    let random = Rc::new(Random::new(seed));
    let machine = executor.world("node");
    let storage =
        MemoryStorage { runtime: Some((machine.clone(), random.clone())), ..MemoryStorage::default() };
    let options = TreeOptions {
        memtable_statements: 5 + random.index(60),
        block_rows: 4 + random.index(12),
        table_blocks: 1 + random.below(4) as u32,
        tier_runs: 2 + random.index(2),
        tiers: 1 + random.below(3) as u8,
        last_tier_runs: 2 + random.index(3),
        bottom_part: [1, 2, 8][random.index(3)],
        cache_bytes: random.index(30) * 4096,
        index_bytes: random.index(2000),
        mixed_regions: random.index(4),
    };
    let tree = LsmMap::new(storage.clone(), options.clone());
    let world = Rc::new(World_ {
        has_late_snapshots: seed % 4 == 3 && features & 1 != 0,
        features,
        random: random.clone(),
        storage,
        options,
        tree: RefCell::new(Rc::new(RefCell::new(tree))),
        model: RefCell::default(),
        counts: RefCell::default(),
        volumes: RefCell::new([1, 2, 3].map(|id| (VolumeId(id), Volume::default())).into()),
        log: RefCell::default(),
        next_place: RefCell::new(16),
        life: RefCell::new(0),
        compared: RefCell::new(0),
    });
    let inner = world.clone();
    let main = async move {
        let world = inner;
        machine.spawn(Box::pin(keep_up(world.clone(), machine.clone())));
        let mut saved = None;
        let steps = 150 + random.below(500);
        for _ in 0..steps {
            world.step();
            match random.below(100) {
                0..=14 => machine.spawn({
                    let world = world.clone();
                    Box::pin(async move {
                        look_up(world, false).await;
                    })
                }),
                15..=24 => machine.sleep(Duration::from_micros(random.below(500))).await,
                25 if random.chance(300_000) => changed_since(&world).await,
                26 if random.chance(300_000) => {
                    let (volume, address) = (VolumeId(1), BlockAddress(world.address()));
                    let learning = world.tree().borrow().learn_space(volume, address, 20);
                    learning.await.unwrap();
                }
                27 if random.chance(400_000) => saved = Some(checkpoint(&world).await),
                28 if world.features & 8 != 0 && random.chance(200_000) && !world.has_late_snapshots => {
                    restart(&world, saved.as_ref());
                    machine.spawn(Box::pin(keep_up(world.clone(), machine.clone())));
                }
                29 => check_counts(&world, false),
                _ => {}
            }
        }
        // Quiet: everything is looked at.
        for _ in 0..40 {
            look_up(world.clone(), false).await;
        }
        changed_since(&world).await;
        *world.life.borrow_mut() += 1;
        machine.sleep(Duration::from_millis(10)).await;
        if random.chance(200_000) {
            damage(&world).await;
            return;
        }
        finish(&world).await;
    };
    executor.block_on(main).unwrap_or_else(|stuck| panic!("seed {seed}: {stuck:?}"));
    *world.compared.borrow()
}

/// Some blocks can't be read: lookups say so, or are right.
async fn damage(world: &Rc<World_>) {
    for (table, bytes) in world.storage.tables.borrow().iter() {
        for block in 0..(bytes.len() / 4096) as u32 {
            match world.random.below(8) {
                0 => drop(world.storage.bad.borrow_mut().insert((*table, block))),
                1 => drop(world.storage.wrong.borrow_mut().insert((*table, block))),
                _ => {}
            }
        }
    }
    for _ in 0..100 {
        look_up(world.clone(), true).await;
    }
}

/// All is merged into one run: then all counts are exact.
async fn finish(world: &Rc<World_>) {
    let tree = world.tree();
    tree.borrow().freeze();
    flush_all(world).await;
    for turn in 0..2 {
        loop {
            let merging = tree.borrow().merge(may_forget(world));
            let Some(turn) = merging.await.unwrap() else { break };
            turn.lost.into_iter().for_each(|place| world.counts.borrow_mut().lost(place));
        }
        if turn == 0 {
            tree.borrow().begin_full_merge();
        }
    }
    let usage = tree.borrow().usage();
    assert!(usage.runs <= 1, "{usage:?}");
    check_counts(world, !world.has_late_snapshots);
    for _ in 0..40 {
        look_up(world.clone(), false).await;
    }
    changed_since(world).await;
    let segment = crate::array::SegmentIndex(1 + world.random.below(20) as u32);
    let asked = tree.borrow().entries_in(segment);
    let key =
        |(volume, address, entry): &(VolumeId, BlockAddress, MapEntry)| (*volume, *address, entry.version);
    let mut found = asked.await.unwrap();
    found.sort_unstable_by_key(key);
    let model = world.model.borrow().entries_in(segment);
    let mut expected = futures::FutureExt::now_or_never(model).unwrap().unwrap();
    expected.sort_unstable_by_key(key);
    assert_eq!(found, expected);
}

fn run_many(seeds: std::ops::Range<u64>) {
    let mut compared = 0;
    for seed in seeds.clone() {
        let result = std::panic::catch_unwind(|| run(seed));
        match result {
            Ok(blocks) => compared += blocks,
            Err(panic) => {
                eprintln!("history {seed} failed");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{} histories, {compared} blocks compared", seeds.end - seeds.start);
}

#[test]
fn the_tree_is_the_map_in_memory() {
    run_many(0..200);
}

/// `cargo test --release --lib many_histories -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes"]
fn many_histories() {
    run_many(1_000..21_000);
}
