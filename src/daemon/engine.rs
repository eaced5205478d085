//! What the control thread asks of the data thread, and the answers.
//!
//! The data thread owns disks, store, volumes and sessions; nothing of it is shared. Requests go
//! through one bounded queue and carry the way back with them. They are never on the path of an I/O.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::data::disk_book::{Priority, ScrubPages};
pub use super::data::disk_changes::DiskChange;
use crate::base::units::{Version, VolumeId};
use crate::pair::PartReport;
use crate::peer::mirror_stream::DirectionStatus;
use crate::scsi::rate_limit::RateLimits;
use crate::store::interface::BlockRun;
use crate::store::space::SpaceRule;
use crate::volume::SnapshotError;
use crate::volume::device::DeviceError;
use crate::volume::snapshot::SnapshotRecord;
use crate::volume::statistics::VolumeStatistics;

/// Requests that may wait for the data thread.
pub const QUEUE: usize = 64;

/// A volume that the data thread serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its number.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// iSCSI name of its target.
    pub target: String,
    /// What makes it different from every volume of every cluster.
    pub uuid: [u8; 16],
    /// Portal group tags of all nodes, ascending.
    pub portal_groups: Vec<u16>,
    /// Bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub sector_bytes: u32,
    /// What hosts are told of the physical block: 512 or 4096.
    pub physical_sector_bytes: u32,
    /// Whether it has never been served.
    pub is_new: bool,
    /// Of a clone: the volume that it was made of, and the version of its snapshot.
    pub origin: Option<(VolumeId, Version)>,
    /// What it does in a second at most.
    pub limits: RateLimits,
    /// What it takes of the pool at most, and what is kept for it.
    pub space: SpaceRule,
    /// Persistent reservations, as they were last saved.
    pub reservations: Option<Vec<u8>>,
}

/// Who may log in to what. The data thread gets it whole after each change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRules {
    /// Volumes and the initiators that may reach them; `*` stands for all.
    pub allowed: Vec<(VolumeId, Vec<String>)>,
    /// CHAP credentials by initiator name.
    pub chap: Vec<ChapRule>,
}

/// CHAP credentials of an initiator.
#[derive(Clone, PartialEq, Eq)]
pub struct ChapRule {
    /// The initiator's iSCSI name.
    pub initiator: String,
    /// User and secret that the initiator proves itself with.
    pub incoming: (String, Vec<u8>),
    /// User and secret that the target proves itself with.
    pub outgoing: Option<(String, Vec<u8>)>,
}

impl std::fmt::Debug for ChapRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChapRule({}, secrets withheld)", self.initiator)
    }
}

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

/// What can be asked of the data thread.
pub enum Request {
    /// Serve a volume, new or known.
    OpenVolume(VolumeSpec, Reply<()>),
    /// Change a volume's size, smaller ones included.
    ResizeVolume(VolumeId, u64, Reply<()>),
    /// From now on these limits hold for a volume.
    SetLimits(VolumeId, RateLimits, SpaceRule, Reply<()>),
    /// End the volume's sessions, stop serving it and free its space.
    DeleteVolume(VolumeId, Reply<()>),
    /// From now on these rules hold; sessions that they do not allow end.
    SetAccess(AccessRules, Reply<()>),
    /// Hand a mirrored volume that this node serves over to the other one. Whether that can be as things are; the
    /// control state shows when it has come about.
    HandOver(VolumeId, Reply<bool>),
    /// Make this node the primary of a volume of which it lacks what was acknowledged; the control state shows when it
    /// has come about.
    ForcePrimary(VolumeId, Reply<()>),
    /// Do something with the disks of the pool.
    ChangeDisks(DiskChange, Reply<()>),
    /// Take a snapshot of each of these volumes, which this node serves, all at one cut. The records are kept as they
    /// are; their names are new in their volumes.
    TakeSnapshots(Vec<(VolumeId, SnapshotRecord)>, Reply<Vec<VolumeSnapshot>>),
    /// Drop a snapshot, named by its version, of a volume that this node serves. The time is what its protection is
    /// compared with.
    DropSnapshot(VolumeId, Version, u64, Reply<()>),
    /// Have a volume that this node serves show what it was at a snapshot, named by its version, and keep what it is before
    /// that as another one with this record.
    RollBack(VolumeId, Version, SnapshotRecord, Reply<VolumeSnapshot>),
    /// The snapshots of a volume that this node serves, oldest first.
    ListSnapshots(VolumeId, Reply<Vec<VolumeSnapshot>>),
    /// Look for runs of blocks in a view of a volume that this node serves.
    LookAtRanges(RangesWanted, Reply<RangesFound>),
    /// Read so many blocks from one on, of a volume that this node serves, as they are at a snapshot.
    ReadSnapshot(VolumeId, Version, Range<u64>, Reply<Vec<Bytes>>),
    /// Write whole blocks to a volume that this node serves, from this one on.
    Fill(VolumeId, u64, Filling, Reply<()>),
    /// Stop the mirrored volumes that this node serves on purpose, and begin none for so long; the control state shows how
    /// far that is. Zero ends it.
    StopVolumes(Duration, Reply<()>),
    /// Say how things are.
    Report(Reply<Box<EngineReport>>),
    /// Stop: log initiators out, drain, leave the pool cleanly closed.
    Stop(Reply<()>),
}

/// Why the data thread could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The data thread has ended.
    #[error("the data thread has ended; see the log of gemeld for the reason")]
    Ended,
    /// There is no such disk.
    #[error("the pool has no disk {0}; `gemel disk list` shows them")]
    NoSuchDisk(String),
    /// The volume is not open.
    #[error("volume {} is not being served", .0.0)]
    NoSuchVolume(VolumeId),
    /// The other node serves the volume, or nobody does at the moment.
    #[error(
        "this node does not serve volume {0}; snapshots are taken and read by the node that does, those of a group only when one \
         node serves all of its volumes (`gemel volume list` shows them, `gemel volume move` moves one)"
    )]
    NotServedHere(String),
    /// Something about a snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Reading or writing a volume failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Volume or pool failed.
    #[error("{0}")]
    Failed(String),
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSnapshot {
    /// Of which volume.
    pub volume: VolumeId,
    /// The version under which it was taken, which names it in the volume.
    pub version: Version,
    /// What is kept about it.
    pub record: SnapshotRecord,
}

/// A question about blocks of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangesWanted {
    /// Which volume.
    pub volume: VolumeId,
    /// The snapshot in whose view; none for what it is now.
    pub at: Option<Version>,
    /// Only what changed after this snapshot.
    pub since: Option<Version>,
    /// Which blocks.
    pub blocks: Range<u64>,
}

/// Runs of blocks, ascending, and where to go on, if there may be more.
pub type RangesFound = (Vec<BlockRun>, Option<u64>);

/// What blocks are filled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filling {
    /// These bytes.
    Data(Bytes),
    /// So many blocks of zeros, which take no space.
    Zeros(u64),
}

/// The control thread's end of the queue.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    queue: mpsc::Sender<Request>,
}

impl EngineHandle {
    /// A handle and the data thread's end.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (queue, requests) = mpsc::channel(QUEUE);
        (Self { queue }, requests)
    }

    /// Sends the request that `make` makes of a way back, and waits for the answer.
    pub async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, EngineError> {
        self.start(make).await?.await.map_err(|_| EngineError::Ended)?
    }

    /// Completes when the data thread has ended.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }

    /// Sends a request, so that its place in the order is taken, and gives the answer to come.
    pub async fn start<T>(
        &self,
        make: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<oneshot::Receiver<Result<T, EngineError>>, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(make(reply)).await.map_err(|_| EngineError::Ended)?;
        Ok(answer)
    }
}

/// How things are on the data thread.
#[derive(Clone, Debug, Default)]
pub struct EngineReport {
    /// How disk I/O is done.
    pub engine: &'static str,
    /// Where initiators can connect.
    pub portals: Vec<SocketAddr>,
    /// Normal sessions.
    pub sessions: u64,
    /// Connections that have not finished their login.
    pub logins_in_progress: u64,
    /// Logins that succeeded, since the start.
    pub logins: u64,
    /// Logins that were refused or broke off, since the start.
    pub failed_logins: u64,
    /// Bytes received from and sent to initiators, since the start.
    pub network_bytes: (u64, u64),
    /// Memory held for data on its way from initiators.
    pub write_memory_bytes: u64,
    /// Volumes by number.
    pub volumes: Vec<VolumeReport>,
    /// The pool.
    pub pool: PoolReport,
    /// The connection that carries this node's mirrors to the other one, in a pair.
    pub mirror: Option<DirectionStatus>,
}

impl EngineReport {
    /// How one volume is; none of those that this node knows nothing of.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeReport> {
        self.volumes.iter().find(|volume| volume.id == id)
    }
}

/// How a volume is.
#[derive(Clone, Debug)]
pub struct VolumeReport {
    /// Which.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Sessions logged in to it.
    pub sessions: u64,
    /// Commands in progress.
    pub commands: u64,
    /// Bytes of mapped blocks, before parity.
    pub used_bytes: u64,
    /// How many snapshots it has here.
    pub snapshots: u64,
    /// Bytes that are kept for these alone, before parity.
    pub snapshot_bytes: u64,
    /// How much of a rollback is done, in blocks of the volume, and how many it has.
    pub rollback: Option<(u64, u64)>,
    /// What this node does with it, if it is mirrored.
    pub part: Option<PartReport>,
    /// What it has done since the start.
    pub statistics: VolumeStatistics,
}

/// How the pool is.
#[derive(Clone, Debug, Default)]
pub struct PoolReport {
    /// Whether it serves at all.
    pub offline: bool,
    /// What volumes can hold in all.
    pub capacity_bytes: u64,
    /// Of it, what is taken.
    pub used_bytes: u64,
    /// Disks that may be lost before data is.
    pub redundancy: u32,
    /// Bytes moved by cleaning since the start.
    pub cleaned_bytes: u64,
    /// Blocks rebuilt from parity since the start.
    pub repaired_blocks: u64,
    /// Members, former members that nothing took the place of, and spares.
    pub disks: Vec<DiskReport>,
    /// How fast to rebuild.
    pub rebuild_priority: Priority,
    /// The scrub, and in how many steps it goes through the pool.
    pub scrub: ScrubPages,
    /// Those steps.
    pub segments: u32,
}

/// How a disk is.
#[derive(Clone, Debug, Default)]
pub struct DiskReport {
    /// Its identity.
    pub id: String,
    /// Where it was opened; empty when it is missing.
    pub path: String,
    /// Its state.
    pub state: DiskState,
    /// Its size.
    pub size_bytes: u64,
    /// Why it is not in service.
    pub reason: String,
    /// Since the start: reads that failed or were wrong, writes that failed, blocks that were rebuilt and written anew.
    pub errors: [u64; 3],
    /// Reads, writes and flushes since the start, and how long they took, added up.
    pub operations: (u64, Duration),
    /// Its place; none for a spare.
    pub slot: Option<u8>,
    /// How far it is rebuilt, while it is.
    pub rebuild: Option<RebuildReport>,
}

/// How far a disk is rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildReport {
    /// What is to be written in this run.
    pub total_bytes: u64,
    /// Of it, what is.
    pub done_bytes: u64,
    /// How fast.
    pub bytes_per_second: u64,
    /// Time that the rest takes; none while nothing can be said.
    pub remaining: Option<Duration>,
}

/// States of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DiskState {
    /// In service.
    #[default]
    Ok,
    /// Out of service.
    Failed,
    /// Not found at start.
    Missing,
    /// In service, and does not have all yet.
    Rebuilding,
    /// Waits for another one to fail.
    Spare,
}
