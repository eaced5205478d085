//! What the log has stated, against a model that keeps every version of every block: random statements, some
//! of them late, checkpoints that are taken while statements go on, crashes, and replay from a checkpoint.
//!
//! After each step every view of every snapshot, and the newest one, shows what the full history says, and no
//! more is kept than is shown; after each replay the same.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::FutureExt;

use crate::array::{Geometry, MemberSet, Place, SegmentIndex, Slot};
use crate::base::checksum::Crc32;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::sim::random::Random;
use crate::store::batch::{Content, Entry, SegmentUse};
use crate::store::checkpoint_codec::{Decoder, encode_end, encode_table, encode_volumes};
use crate::store::interface::is_shown;
use crate::store::map::{Lineage, Map, MapEntry, MapValue, SavePosition, View};
use crate::store::segments::{SegmentState, SegmentTable};
use crate::store::shared::Contents;

const VOLUME: VolumeId = VolumeId(3);
const GEOMETRY: Geometry = Geometry { disk_count: 4, rows: 256, segment_count: 64 };
/// Blocks on both sides of a page's end.
const FIRST: u64 = 61;
const BLOCKS: u64 = 6;

#[test]
fn views_show_what_was_whatever_happens() {
    let mut met = Met::default();
    (0..400).for_each(|seed| run(seed, &mut met));
    assert!(met.held > 1000 && met.late > 1000 && met.replayed > 100 && met.holes_forgotten > 100, "{met:?}");
}

/// One history.
pub(crate) fn run(seed: u64, met: &mut Met) {
    let mut history = History::new(Random::new(seed));
    (0..300).for_each(|_| history.step(met));
    history.crash(met);
}

/// Proof that rare things were met.
#[derive(Debug, Default)]
pub(crate) struct Met {
    held: u64,
    late: u64,
    replayed: u64,
    holes_forgotten: u64,
}

/// A volume's whole history, and what the store makes of it.
struct History {
    random: Random,
    contents: Contents,
    /// Statements since the last checkpoint that is whole, with their places.
    log: Vec<(Entry, Option<Place>)>,
    durable: Vec<u8>,
    checkpoint: Option<Checkpoint>,
    sequence: u64,
    places: u32,
    /// By block and version: data at a place, or a hole.
    written: BTreeMap<(u64, Version), Option<Place>>,
    snapshots: BTreeSet<Version>,
}

/// A checkpoint that is being written.
struct Checkpoint {
    bytes: Vec<u8>,
    next: Option<SavePosition>,
    log_position: usize,
    passed: Version,
}

impl History {
    fn new(random: Random) -> Self {
        let segments = SegmentTable::new(&GEOMETRY);
        let contents = Contents::blank(segments);
        let (log, durable, checkpoint, written, snapshots) = Default::default();
        let mut history = Self {
            random,
            contents: in_use(contents),
            log,
            durable,
            checkpoint,
            sequence: 0,
            places: 0,
            written,
            snapshots,
        };
        history.begin_checkpoint();
        history.end_checkpoint();
        history.state(at(0), Content::Volume { length: 0, checksum: Crc32(0) }, 0, None);
        history
    }

    fn step(&mut self, met: &mut Met) {
        let address = FIRST + self.random.below(BLOCKS);
        match self.random.below(100) {
            0..30 => self.write(address),
            30..38 => {
                let count = 1 + self.random.below(FIRST + BLOCKS - address);
                let version = self.next();
                self.hole(version, address, count);
            }
            38..50 => {
                let version = self.next();
                self.snapshots.insert(version);
                self.state(version, Content::Snapshot { length: 0, checksum: Crc32(0) }, 0, None);
            }
            50..59 => {
                let all: Vec<_> = self.snapshots.iter().copied().collect();
                if !all.is_empty() {
                    self.drop_snapshot(all[self.random.index(all.len())]);
                }
            }
            59..70 => self.write_late(address, met),
            70..78 => self.move_one(),
            78..94 => self.go_on_with_checkpoint(met),
            _ => self.crash(met),
        }
        self.check();
        met.held += self.contents.map.held_blocks(VOLUME);
    }

    fn next(&mut self) -> Version {
        self.sequence += 1;
        at(self.sequence)
    }

    fn new_place(&mut self) -> Place {
        self.places += 1;
        let (segment, rest) = (self.places / 1024 % 64, self.places % 1024);
        Place::of_row(SegmentIndex(segment), Slot((rest / 256) as u8), rest % 256)
    }

    fn write(&mut self, address: u64) {
        let (version, place) = (self.next(), self.new_place());
        self.written.insert((address, version), Some(place));
        self.state(version, Content::Data { checksum: Crc32(1) }, address, Some(place));
    }

    fn hole(&mut self, version: Version, address: u64, count: u64) {
        for block in address..address + count {
            if self.newest(block).is_some() {
                self.written.insert((block, version), None);
            }
        }
        self.state(version, Content::Hole { count }, address, None);
    }

    fn drop_snapshot(&mut self, snapshot: Version) {
        let version = self.next();
        self.snapshots.remove(&snapshot);
        self.state(version, Content::SnapshotDropped { snapshot }, 0, None);
    }

    /// What a snapshot shows is put there late, where no hole that is newer was forgotten.
    fn write_late(&mut self, address: u64, met: &mut Met) {
        let all: Vec<_> = self.snapshots.iter().copied().collect();
        if all.is_empty() {
            return;
        }
        let version = all[self.random.index(all.len())];
        let later = all.iter().copied().filter(|later| *later >= version).chain([Version::GREATEST]);
        let is_forgotten = |view| {
            let entry = self.written.range((address, at(0))..=(address, view)).next_back();
            let is_newer = entry.is_some_and(|((_, newest), _)| *newest > version);
            is_newer && look_up(&self.contents, view, address).is_none()
        };
        if self.newest(address).is_none() || later.into_iter().any(is_forgotten) {
            return;
        }
        met.late += 1;
        if self.random.chance(300_000) {
            self.hole(version, address, 1);
        } else {
            let place = self.new_place();
            self.written.insert((address, version), Some(place));
            self.state(version, Content::Data { checksum: Crc32(1) }, address, Some(place));
        }
        if self.random.chance(300_000) {
            self.drop_snapshot(version);
        }
    }

    /// Cleaning.
    fn move_one(&mut self) {
        let all: Vec<_> = self.contents.map.memory().unwrap().data_entries().collect();
        if all.is_empty() {
            return;
        }
        let (_, address, entry, _) = all[self.random.index(all.len())];
        let place = self.new_place();
        self.written.insert((address.0, entry.version), Some(place));
        self.state(entry.version, Content::Moved { checksum: Crc32(1) }, address.0, Some(place));
    }

    fn state(&mut self, version: Version, content: Content, address: u64, place: Option<Place>) {
        let entry = Entry { volume: VOLUME, address: BlockAddress(address), version, content };
        apply(&mut self.contents, &entry, place);
        self.log.push((entry, place));
    }

    fn begin_checkpoint(&mut self) {
        let bytes = encode_table(&self.contents, &[]);
        let state = self.contents.volumes.get_mut(&VOLUME);
        let passed = state.map_or_else(Version::default, |state| {
            state.begin_checkpoint();
            state.newest
        });
        let next = Some(SavePosition::START);
        self.checkpoint = Some(Checkpoint { bytes, next, log_position: self.log.len(), passed });
    }

    fn go_on_with_checkpoint(&mut self, met: &mut Met) {
        match &mut self.checkpoint {
            None => self.begin_checkpoint(),
            Some(checkpoint) => match checkpoint.next {
                None => self.end_checkpoint(),
                Some(from) => {
                    let Contents { map, volumes, .. } = &mut self.contents;
                    let may_forget = |_, hole| {
                        let is_passed = volumes[&VOLUME].is_passed(hole);
                        met.holes_forgotten += u64::from(is_passed);
                        is_passed
                    };
                    let may_forget = std::cell::RefCell::new(may_forget);
                    let may_forget = |volume, hole| (may_forget.borrow_mut())(volume, hole);
                    checkpoint.next = map.save(from, may_forget, &mut checkpoint.bytes);
                }
            },
        }
    }

    fn end_checkpoint(&mut self) {
        let Some(mut checkpoint) = self.checkpoint.take() else { return };
        encode_volumes(&mut checkpoint.bytes, &self.contents);
        encode_end(&mut checkpoint.bytes);
        self.durable = checkpoint.bytes;
        self.log.drain(..checkpoint.log_position);
        if let Some(state) = self.contents.volumes.get_mut(&VOLUME) {
            state.passed = checkpoint.passed;
        }
    }

    /// Everything comes from the last whole checkpoint and the log behind it.
    fn crash(&mut self, met: &mut Met) {
        self.checkpoint = None;
        let mut decoder = Decoder::new(GEOMETRY, None);
        decoder.feed(&self.durable).unwrap();
        self.contents = decoder.finish().unwrap();
        self.log.iter().for_each(|(entry, place)| apply(&mut self.contents, entry, *place));
        met.replayed += u64::from(!self.log.is_empty());
        self.contents = in_use(std::mem::replace(&mut self.contents, blank()));
        self.check();
    }

    fn newest(&self, address: u64) -> Option<MapEntry> {
        look_up(&self.contents, Version::GREATEST, address)
    }

    /// Everything that can be seen is as the history says, and nothing more is kept.
    fn check(&self) {
        let snapshots: Vec<Version> = self.snapshots.iter().copied().collect();
        let (mut mapped, mut held, mut places) = (0, 0, BTreeSet::new());
        for address in FIRST..FIRST + BLOCKS {
            let all = self.written.range((address, at(0))..=(address, Version::GREATEST));
            let all: Vec<(Version, Option<Place>)> = all.map(|((_, v), place)| (*v, *place)).collect();
            for view in snapshots.iter().copied().chain([Version::GREATEST]) {
                let expected = all.iter().rfind(|(version, _)| *version <= view);
                let expected = expected.and_then(|(version, place)| Some((*version, (*place)?)));
                let found = look_up(&self.contents, view, address).and_then(data_of);
                assert_eq!(
                    found, expected,
                    "block {address} in the view at {view:?}: {all:?}, {snapshots:?}"
                );
            }
            for (index, (version, place)) in all.iter().enumerate() {
                let Some(place) = place else { continue };
                let next = all.get(index + 1).map(|(next, _)| *next);
                mapped += u64::from(next.is_none());
                let is_held = next.is_some_and(|next| is_shown(&snapshots, *version, next));
                held += u64::from(is_held);
                if next.is_none() || is_held {
                    places.insert(place.bits());
                }
            }
        }
        let map = &self.contents.map;
        assert_eq!((map.mapped_blocks(VOLUME), map.held_blocks(VOLUME)), (mapped, held));
        assert_eq!(map.memory().unwrap().places().map(Place::bits).collect::<BTreeSet<_>>(), places);
        let live: u64 = self.contents.segments.iter().map(|(_, info)| u64::from(info.live_blocks)).sum();
        assert_eq!(live, mapped + held);
    }
}

fn at(sequence: u64) -> Version {
    Version { epoch: 1, sequence }
}

fn blank() -> Contents {
    let segments = SegmentTable::new(&GEOMETRY);
    Contents::blank(segments)
}

fn apply(contents: &mut Contents, entry: &Entry, place: Option<Place>) {
    let mut rest = Some(entry.clone());
    while let Some(entry) = rest {
        rest = contents.apply(&entry, place, Some(&Bytes::new()));
    }
}

/// Ends replay, as if the log had been in every segment.
fn in_use(mut contents: Contents) -> Contents {
    for segment in 0..GEOMETRY.segment_count {
        let segment_use = SegmentUse { segment: SegmentIndex(segment), generation: 1 };
        contents.segments.observe(segment_use, MemberSet::first(4), 1);
        assert_eq!(contents.segments.get(SegmentIndex(segment)).state, SegmentState::Sealed);
    }
    contents.give_up_unshown();
    assert_eq!(contents.segments.recount(contents.map.memory().unwrap().places()), None);
    contents
}

fn look_up(contents: &Contents, view: Version, address: u64) -> Option<MapEntry> {
    let mut shown = None;
    let lineage = Lineage::new(View { volume: VOLUME, at: view }, Vec::new());
    let lookup = contents.map.look_up(&lineage, BlockAddress(address), 1, |_, entry| shown = entry);
    lookup.now_or_never().unwrap().unwrap();
    shown.map(|(_, entry)| entry)
}

fn data_of(entry: MapEntry) -> Option<(Version, Place)> {
    match entry.value {
        MapValue::Data { place, .. } => Some((entry.version, place)),
        _ => None,
    }
}
