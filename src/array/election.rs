//! Formatting disks into an array, and finding the array again among the disks that are there.

use std::rc::Rc;

use bytes::Bytes;
use futures::future::join_all;

use crate::base::buffer::{AlignedBuf, BufferPool};
use crate::base::event::EventSink;
use crate::base::mutant::{self, Mutant};
use crate::base::runtime::RuntimeHandle;
use crate::disk::{Disk, DiskError};

use super::disks::Array;
use super::geometry::{Geometry, MAX_DISKS, MemberSet, Slot};
use super::membership::OpenDisk;
use super::superblock::{
    COPY_OFFSETS, DiskRecord, LogKey, PoolRecord, SUPERBLOCK_BYTES, Superblock, SuperblockError, Uuid,
    copy_offset,
};

/// How to format.
#[derive(Clone, Debug, Default)]
pub struct FormatOptions {
    /// Bytes of a segment on each disk, a multiple of 4096; chosen by the disks' size when `None`.
    pub segment_bytes: Option<u64>,
    /// Overwrite disks that hold something else, another pool included.
    pub overwrite_foreign: bool,
}

/// What was found when an array was opened.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /// Members that no disk was found for.
    pub missing: Vec<Slot>,
    /// Disks that were given but are not used, and why.
    pub unused: Vec<(String, String)>,
}

/// Why disks could not be formatted or opened as an array. Nothing was written in any of these
/// cases but `Disk`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// A disk can't be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No disks, or more than an array can have.
    #[error("{0} disks given; a pool has 1 to {MAX_DISKS}")]
    DiskCount(usize),
    /// The smallest disk has no room for a pool.
    #[error("disk {path} has {bytes} bytes; with this segment size a disk needs at least {needed}")]
    TooSmall {
        /// The disk.
        path: String,
        /// Its size.
        bytes: u64,
        /// Smallest usable size.
        needed: u64,
    },
    /// A disk holds something that formatting would destroy.
    #[error("disk {path}: {reason}; to destroy what is on it, format with force")]
    NotBlank {
        /// The disk.
        path: String,
        /// What is there.
        reason: String,
    },
    /// None of the disks belongs to a pool.
    #[error("none of the disks belongs to a pool ({}); format them first", describe(.0))]
    NoPool(Vec<(String, String)>),
    /// A disk can't be used, and going on without it could harm it or hide a mistake.
    #[error("disk {path}: {reason}")]
    Refused {
        /// The disk.
        path: String,
        /// Why.
        reason: String,
    },
    /// Disks of two pools were given together.
    #[error(
        "disk {path} belongs to pool {found}, the others to {expected}; remove it from the configuration"
    )]
    OtherPool {
        /// The odd disk.
        path: String,
        /// Its pool.
        found: Uuid,
        /// The pool of the others.
        expected: Uuid,
    },
    /// Too few members are there to serve the pool's data.
    #[error(
        "{missing} disks of the pool are missing and parity covers {tolerated}; not found: {}. Connect them and \
         start again",
        slots.iter().map(|slot| format!("slot {}", slot.0)).collect::<Vec<_>>().join(", ")
    )]
    TooFew {
        /// Members without a disk, those excluded earlier included.
        missing: usize,
        /// How many may be missing.
        tolerated: usize,
        /// Members that were not found.
        slots: Vec<Slot>,
    },
    /// With two disks, one alone cannot know whether the other has gone on without it.
    #[error(
        "only one disk of a pool of two was found, and nothing on it says that the other one was given up: its data \
         may be stale. Connect the other disk and start again"
    )]
    LoneHalf,
}

fn describe(disks: &[(String, String)]) -> String {
    disks.iter().map(|(path, reason)| format!("{path}: {reason}")).collect::<Vec<_>>().join("; ")
}

impl Array {
    /// Makes a pool of blank `disks`, slot by slot in their order, with an empty root. `log_key` is
    /// random and secret.
    pub async fn format(
        disks: &[Rc<dyn Disk>],
        options: &FormatOptions,
        pool: Uuid,
        log_key: LogKey,
    ) -> Result<(), OpenError> {
        if disks.is_empty() || disks.len() > MAX_DISKS {
            return Err(OpenError::DiskCount(disks.len()));
        }
        let Some(smallest) = disks.iter().min_by_key(|disk| disk.properties().size_bytes) else {
            return Err(OpenError::DiskCount(0));
        };
        let bytes = smallest.properties().size_bytes;
        let segment_bytes = options.segment_bytes.unwrap_or(Geometry::default_segment_bytes(bytes));
        let Some(geometry) = Geometry::for_disks(disks.len(), bytes, segment_bytes) else {
            let needed = Geometry::RESERVED_BYTES + u64::from(Geometry::MIN_SEGMENTS) * segment_bytes;
            return Err(OpenError::TooSmall { path: smallest.properties().path.clone(), bytes, needed });
        };
        if !options.overwrite_foreign {
            for disk in disks {
                refuse_unless_blank(disk).await?;
            }
        }
        let record = |slot: u8| {
            let mut uuid = pool.0;
            uuid[0] ^= slot + 1;
            DiskRecord { uuid: Uuid(uuid), member: true }
        };
        let (disks_record, root) = ((0..disks.len() as u8).map(record).collect(), Vec::new());
        let record =
            PoolRecord { pool, log_key, generation: 1, geometry, disks: disks_record, rebuild: None, root };
        for (slot, disk) in (0u8..).map(Slot).zip(disks) {
            let blank = AlignedBuf::zeroed(SUPERBLOCK_BYTES).freeze();
            let superblock: Bytes = Superblock { slot, record: record.clone() }.encode().freeze();
            disk.write(copy_offset(0), vec![blank]).await?;
            disk.write(copy_offset(1), vec![superblock]).await?;
        }
        for result in join_all(disks.iter().map(|disk| disk.flush())).await {
            result?;
        }
        Ok(())
    }

    /// Opens the pool that `disks`, in any order, belong to. One member may be missing; it is
    /// excluded by the first commit. Blank, damaged, unreadable and stale disks are left out and
    /// reported; foreign and newer ones are refused, since they hint at a mistake.
    pub async fn open(
        disks: Vec<Rc<dyn Disk>>,
        runtime: RuntimeHandle,
        buffers: BufferPool,
        events: EventSink,
    ) -> Result<(Self, OpenReport), OpenError> {
        let mut report = OpenReport::default();
        let mut found: Vec<(OpenDisk, Superblock)> = Vec::new();
        for disk in disks {
            let superblock = match read_superblock(&disk).await {
                Ok(superblock) => superblock,
                Err(error) => {
                    report.unused.push((disk.properties().path.clone(), error.to_string()));
                    continue;
                }
            };
            match superblock {
                Ok((superblock, copy)) => {
                    found.push((OpenDisk::new(disk, copy), superblock));
                }
                Err(error @ (SuperblockError::Blank | SuperblockError::Damaged)) => {
                    report.unused.push((disk.properties().path.clone(), error.to_string()));
                }
                Err(error) => {
                    let path = disk.properties().path.clone();
                    return Err(OpenError::Refused { path, reason: error.to_string() });
                }
            }
        }
        // The pool of most of the disks is the one that is meant; within it the newest generation rules.
        let in_pool = |pool: Uuid| found.iter().filter(|(_, other)| other.record.pool == pool).count();
        let rank = |(_, superblock): &&(OpenDisk, Superblock)| {
            let generation = match superblock.record.generation {
                generation if mutant::is(Mutant::ElectLowestGeneration) => u64::MAX - generation,
                generation => generation,
            };
            (in_pool(superblock.record.pool), generation)
        };
        let Some((_, newest)) = found.iter().max_by_key(rank) else {
            return Err(OpenError::NoPool(report.unused));
        };
        let mut record = newest.record.clone();
        if mutant::is(Mutant::UseStaleDisk) {
            record.disks.iter_mut().for_each(|disk| disk.member = true);
        }
        let by_slot = assign_slots(found, &record, &mut report)?;
        check_enough(&record, &by_slot, &mut report)?;
        Ok((Self::new(record, by_slot, runtime, buffers, events), report))
    }
}

/// Puts each disk into the slot that the ruling record gives it.
fn assign_slots(
    found: Vec<(OpenDisk, Superblock)>,
    record: &PoolRecord,
    report: &mut OpenReport,
) -> Result<Vec<Option<OpenDisk>>, OpenError> {
    let mut by_slot: Vec<Option<OpenDisk>> = vec![None; record.disks.len()];
    for (found, superblock) in found {
        let disk = &found.disk;
        let path = disk.properties().path.clone();
        let slot = superblock.slot;
        if superblock.record.pool != record.pool {
            return Err(OpenError::OtherPool { path, found: superblock.record.pool, expected: record.pool });
        }
        let own = superblock.record.disks[slot.index()].uuid;
        match record.disks.get(slot.index()) {
            Some(known) if known.uuid == own && known.member => {
                if let Some(other) = &by_slot[slot.index()] {
                    let reason = format!("it is a copy of {}", other.disk.properties().path);
                    return Err(OpenError::Refused { path, reason });
                }
                if disk.properties().size_bytes < superblock.needed_bytes() {
                    return Err(OpenError::Refused {
                        path,
                        reason: "it is shorter than when it was formatted".into(),
                    });
                }
                by_slot[slot.index()] = Some(found);
            }
            _ => report.unused.push((path, "the pool went on without it, its data is stale".to_owned())),
        }
    }
    Ok(by_slot)
}

/// Refuses to open an array whose data parity could not give back.
fn check_enough(
    record: &PoolRecord,
    by_slot: &[Option<OpenDisk>],
    report: &mut OpenReport,
) -> Result<(), OpenError> {
    let members: MemberSet = record.members();
    // A disk that does not have everything yet stands in for none that is missing.
    let whole = members.difference(record.rebuilding());
    let present = whole.iter().filter(|slot| by_slot[slot.index()].is_some()).count();
    report.missing = members.iter().filter(|slot| by_slot[slot.index()].is_none()).collect();
    let (missing, tolerated) = (by_slot.len() - present, usize::from(by_slot.len() > 1));
    if missing > tolerated {
        return Err(OpenError::TooFew { missing, tolerated, slots: report.missing.clone() });
    }
    if by_slot.len() == 2 && !report.missing.is_empty() {
        return Err(OpenError::LoneHalf);
    }
    Ok(())
}

/// The pool whose superblock a disk carries.
pub async fn pool_of(disk: &Rc<dyn Disk>) -> Option<Uuid> {
    let (superblock, _) = read_superblock(disk).await.ok()?.ok()?;
    Some(superblock.record.pool)
}

/// The newer valid copy on a disk and which one it is; when there is none, what is wrong.
pub(super) async fn read_superblock(
    disk: &Rc<dyn Disk>,
) -> Result<Result<(Superblock, u64), SuperblockError>, DiskError> {
    let mut best: Option<(Superblock, u64)> = None;
    let mut problem = SuperblockError::Blank;
    let mut unreadable = Vec::new();
    for (copy, offset) in (0..).zip(COPY_OFFSETS) {
        let bytes = match disk.read(offset, AlignedBuf::zeroed(SUPERBLOCK_BYTES)).await {
            Ok(bytes) => bytes,
            Err(error) => {
                unreadable.push(error);
                continue;
            }
        };
        match Superblock::decode(&bytes) {
            Ok(found) => {
                let is_newer = |best: &(Superblock, u64)| best.0.record.generation < found.record.generation;
                if best.as_ref().is_none_or(is_newer) {
                    best = Some((found, copy));
                }
            }
            Err(SuperblockError::Blank) => {}
            // A newer release's copy rules out using the other one: it may be long out of date.
            Err(error @ SuperblockError::NewerVersion { .. }) => return Ok(Err(error)),
            Err(error) => problem = error,
        }
    }
    match (best, unreadable.pop()) {
        (Some(best), _) => Ok(Ok(best)),
        (None, Some(error)) => Err(error),
        (None, None) => Ok(Err(problem)),
    }
}

pub(super) async fn refuse_unless_blank(disk: &Rc<dyn Disk>) -> Result<(), OpenError> {
    let path = disk.properties().path.clone();
    let reason = match read_superblock(disk).await? {
        Ok((superblock, _)) => format!("it belongs to pool {}", superblock.record.pool),
        Err(SuperblockError::Blank) => {
            let head = disk.read(0, AlignedBuf::zeroed(BLANK_BYTES)).await?;
            if head.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            SuperblockError::Foreign.to_string()
        }
        Err(error) => error.to_string(),
    };
    Err(OpenError::NotBlank { path, reason })
}

/// Bytes at the start of a disk that must be zero for it to count as blank: partition tables and the
/// signatures of the usual file systems and volume managers lie there.
const BLANK_BYTES: usize = 256 << 10;
const _: () = assert!(BLANK_BYTES as u64 <= Geometry::RESERVED_BYTES);
