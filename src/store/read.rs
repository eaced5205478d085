//! Reads: lookup, few disk reads for many blocks, verification, and repair of what is wrong.

use std::rc::Rc;

use bytes::Bytes;
use futures::future::join_all;

use crate::array::{Array, MemberSet, Place};
use crate::base::checksum::Crc32;
use crate::base::event::{Event, Severity};
use crate::base::mutant::{self, Mutant};
use crate::base::units::{BLOCK_SIZE, BlockAddress, BlockIdentity, Version, VolumeId};

use super::interface::StoreError;
use super::log::zero_block;
use super::map::{Map, MapEntry, MapValue};
use super::shared::{Shared, add};

/// Consecutive blocks that one operation gives.
struct Run {
    first: BlockAddress,
    count: u32,
    source: Source,
}

enum Source {
    Zeros,
    Lost,
    /// Consecutive rows of one column, and the blocks' own checksums.
    Rows {
        place: Place,
        checksums: Vec<Crc32>,
    },
}

/// Reads `count` blocks of a volume, as it is or in the view at a snapshot.
pub(super) async fn read(
    shared: &Rc<Shared>,
    volume: VolumeId,
    at: Option<Version>,
    address: BlockAddress,
    count: u64,
) -> Result<Vec<Bytes>, StoreError> {
    if shared.array.is_offline() {
        return Err(StoreError::Offline);
    }
    let runs = plan(shared, volume, at, address, count).await?;
    // The segments are held from the lookup on, without a gap: none is reused under the read.
    let held: Vec<Held> = runs.iter().filter_map(|run| Held::of(shared, run)).collect();
    add(&shared.statistics.read_blocks, count);
    let pieces = match runs.as_slice() {
        [run] => vec![read_run(shared, volume, run).await],
        runs => join_all(runs.iter().map(|run| read_run(shared, volume, run))).await,
    };
    drop(held);
    let mut data = Vec::with_capacity(pieces.len());
    for piece in pieces {
        data.extend(piece?);
    }
    Ok(data)
}

/// Looks the blocks up and joins neighbours.
async fn plan(
    shared: &Shared,
    volume: VolumeId,
    at: Option<Version>,
    address: BlockAddress,
    count: u64,
) -> Result<Vec<Run>, StoreError> {
    let mut runs: Vec<Run> = Vec::new();
    let found = |block: BlockAddress, shown: Option<(VolumeId, MapEntry)>| {
        let source = match shown.map(|(owner, entry)| (owner, entry.version, entry.value)) {
            None | Some((.., MapValue::Hole)) => Source::Zeros,
            Some((.., MapValue::Lost)) => Source::Lost,
            Some((owner, version, MapValue::Data { place, checksum })) => {
                let identity = BlockIdentity { volume: owner, address: block, version };
                Source::Rows { place, checksums: vec![checksum.bind(&identity)] }
            }
        };
        extend(&mut runs, block, source);
    };
    let lookup = {
        let contents = shared.contents.borrow();
        let lineage = contents.lineage(volume, at)?;
        contents.map.look_up(&lineage, address, count, found)
    };
    lookup.await?;
    Ok(runs)
}

/// Adds a block to the last run where it continues it, else begins a new one.
fn extend(runs: &mut Vec<Run>, block: BlockAddress, source: Source) {
    if let Some(last) = runs.last_mut() {
        let joined = match (&mut last.source, &source) {
            (Source::Zeros, Source::Zeros) => true,
            (Source::Rows { place, checksums }, Source::Rows { place: next, checksums: one }) => {
                let expected = Place::of_row(place.segment(), place.slot(), place.row() + last.count);
                let joins = *next == expected && (last.count as usize) < MAX_RUN_BLOCKS;
                if joins {
                    checksums.extend(one);
                }
                joins
            }
            _ => false,
        };
        if joined {
            last.count += 1;
            return;
        }
    }
    runs.push(Run { first: block, count: 1, source });
}

async fn read_run(shared: &Rc<Shared>, volume: VolumeId, run: &Run) -> Result<Vec<Bytes>, StoreError> {
    let (place, checksums) = match &run.source {
        Source::Zeros => return Ok(vec![zero_block(); run.count as usize]),
        Source::Lost => return Err(StoreError::Medium { volume, address: run.first }),
        Source::Rows { place, checksums } => (*place, checksums),
    };
    let array = &shared.array;
    if let Ok(buffer) = array.read_rows(place.segment(), place.slot(), place.row(), run.count).await {
        let good = |(block, checksum): (&[u8], &Crc32)| {
            Crc32::of(block) == *checksum || mutant::is(Mutant::ReadUnverified)
        };
        if buffer.chunks(BLOCK_SIZE).zip(checksums).all(good) {
            return Ok(vec![buffer.freeze()]);
        }
    }
    // Something is wrong with some of the blocks: take them one by one.
    let mut blocks = Vec::with_capacity(checksums.len());
    for (offset, checksum) in (0u32..).zip(checksums) {
        let place = Place::of_row(place.segment(), place.slot(), place.row() + offset);
        let members = shared.contents.borrow().segments.get(place.segment()).members;
        let address = run.first.offset(u64::from(offset));
        match read_verified(array, members, place, *checksum).await {
            Some(block) => blocks.push(block),
            None if array.is_offline() => return Err(StoreError::Offline),
            None => return Err(report_lost(shared, volume, address, place)),
        }
        add(&shared.statistics.rebuilt_blocks, 1);
    }
    Ok(blocks)
}

fn report_lost(shared: &Shared, volume: VolumeId, address: BlockAddress, place: Place) -> StoreError {
    add(&shared.statistics.lost_blocks, 1);
    let lost = shared.statistics.lost_blocks.get();
    if lost > LOST_TOLD_SINGLY && !lost.is_power_of_two() {
        return StoreError::Medium { volume, address };
    }
    (shared.events)(Event {
        severity: Severity::Critical,
        kind: "block-lost",
        message: format!(
            "block {} of volume {} can't be read from disk {} nor rebuilt from the others. Only this block is \
             affected. The other node of a pair is asked for it; where there is none that has it, reading it is an error \
             until it is written again: restore it from a backup",
            address.0,
            volume.0,
            place.slot().0
        ),
    });
    StoreError::Medium { volume, address }
}

/// One block that has the given checksum of its plain data: as the disk gives it, else rebuilt from
/// the row and written back.
pub(super) async fn read_verified(
    array: &Array,
    members: MemberSet,
    place: Place,
    checksum: Crc32,
) -> Option<Bytes> {
    let (segment, slot, row) = (place.segment(), place.slot(), place.row());
    if let Ok(block) = array.read_rows(segment, slot, row, 1).await {
        if Crc32::of(&block) == checksum {
            return Some(block.freeze());
        }
        array.note_read_error(slot);
    }
    let rebuilt = match array.reconstruct_rows(segment, members, slot, row, 1).await {
        Ok(rebuilt) => rebuilt,
        // Another disk may have left after this one's column was rebuilt, both since it was looked at.
        Err(_) => {
            let block = array.read_rows(segment, slot, row, 1).await.ok()?;
            return (Crc32::of(&block) == checksum).then(|| block.freeze());
        }
    };
    if Crc32::of(&rebuilt) != checksum && !mutant::is(Mutant::ReconstructUnverified) {
        return None;
    }
    let block = rebuilt.freeze();
    array.repair_rows(segment, slot, row, block.clone()).await;
    Some(block)
}

/// Keeps a segment from being reused while it is read.
struct Held {
    shared: Rc<Shared>,
    place: Place,
}

impl Held {
    fn of(shared: &Rc<Shared>, run: &Run) -> Option<Self> {
        let Source::Rows { place, .. } = run.source else { return None };
        if mutant::is(Mutant::ReleaseUnderReaders) {
            return None;
        }
        shared.contents.borrow_mut().segments.get_mut(place.segment()).readers += 1;
        Some(Self { shared: shared.clone(), place })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut contents = self.shared.contents.borrow_mut();
        let info = contents.segments.get_mut(self.place.segment());
        info.readers -= 1;
        if info.readers == 0 && info.live_blocks == 0 {
            self.shared.progress.notify(); // a checkpoint can free it now
        }
    }
}

/// So many lost blocks are told one by one; then each time that there are twice as many.
const LOST_TOLD_SINGLY: u64 = 16;
/// Most blocks that one disk read gives: 1 MiB.
const MAX_RUN_BLOCKS: usize = 256;
