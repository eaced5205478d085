//! The contents of volumes, as streams: what a snapshot holds, what changed after one, and what is to be written.
//!
//! Guarantees: what is under way at a time is bounded (some pieces of 1 MiB), however large the volume; pieces come in
//! ascending order and do not overlap. A stream ends with a refusal when the volume moves away or the snapshot goes;
//! whoever reads may go on from where that was, at the node that serves the volume then.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, FuturesOrdered, StreamExt};
use futures::{Stream, future};
use tokio::sync::mpsc;
use tonic::Status;

use super::{Control, Refusal};
use crate::base::units::{BLOCK_SIZE, Version, VolumeId};
use crate::cluster::name::VolumeName;
use crate::daemon::engine::{EngineError, EngineHandle, Filling, RangesFound, RangesWanted, Request};
use crate::daemon::management::status;
use crate::rpc::management as messages;
use crate::rpc::management::{ReadVolumeRequest, VolumePiece, WriteVolumeRequest, WriteVolumeResponse};
use crate::volume::SnapshotError;

/// What goes to whoever asked.
pub type Sending<T> = mpsc::Receiver<Result<T, Status>>;

impl Control {
    /// Begins to tell what is in a volume that this node serves.
    pub async fn read_volume(&self, request: ReadVolumeRequest) -> Result<Sending<VolumePiece>, Refusal> {
        let name: VolumeName = request.volume.parse()?;
        let (id, size_bytes) = self.find(&name)?;
        let at = self.snapshot_version(id, &name, &request.snapshot).await?;
        let since = self.snapshot_version(id, &name, &request.since).await?;
        let invalid = |text: &str| Err(Refusal::Invalid(text.to_owned()));
        if at.is_none() && !request.ranges_only {
            return invalid("the contents of a volume are read as they are at a snapshot: name one");
        }
        if at.zip(since).is_some_and(|(at, since)| since >= at) {
            return Err(Refusal::Invalid(format!(
                "snapshot {name}@{} is not older than {name}@{}",
                request.since, request.snapshot
            )));
        }
        let granularity = if request.granularity == 0 { BLOCK_BYTES } else { u64::from(request.granularity) };
        if !granularity.is_power_of_two() || !(BLOCK_BYTES..=PIECE_BYTES).contains(&granularity) {
            return invalid("the granularity is a power of two from 4096 to 1048576");
        }
        let end = if request.end == 0 { size_bytes } else { request.end.min(size_bytes) };
        if !request.from.is_multiple_of(granularity)
            || !(end.is_multiple_of(granularity) || end == size_bytes)
        {
            return invalid("a range to read begins and ends at multiples of the granularity");
        }
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let reading = Reading {
            engine: self.engine.clone(),
            volume: id,
            at,
            since,
            grain: granularity / BLOCK_BYTES,
            end: end / BLOCK_BYTES,
            ranges_only: request.ranges_only,
            sender,
        };
        tokio::spawn(async move {
            if let Err(Stopped::Refused(refusal)) = reading.run(request.from / BLOCK_BYTES).await {
                let _ = reading.sender.send(Err(status(refusal))).await;
            }
        });
        Ok(receiver)
    }

    /// Begins to write to a volume that this node serves, as `first` says, what `pieces` bring. Nobody may be logged in
    /// to it.
    pub async fn write_volume(
        self: &Arc<Self>,
        first: WriteVolumeRequest,
        pieces: impl Stream<Item = Result<WriteVolumeRequest, Status>> + Send + Unpin + 'static,
    ) -> Result<Sending<WriteVolumeResponse>, Refusal> {
        let name: VolumeName = first.volume.parse()?;
        let (id, size_bytes) = self.find(&name)?;
        let sessions = self.report().await?.volume(id).map_or(0, |volume| volume.sessions);
        refuse_in_use(&name, sessions)?;
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let writing = Writing { control: self.clone(), volume: id, size_bytes, sender };
        let what = if first.clear { "replaced" } else { "changed" };
        self.events.info(
            "volume-import",
            format!("the contents of volume {name} are being {what} by an import"),
            &[("volume", name.to_string())],
        );
        tokio::spawn(async move {
            let sender = writing.sender.clone();
            if let Err(Stopped::Refused(refusal)) = writing.run(first.clear, pieces).await {
                let _ = sender.send(Err(status(refusal))).await;
            }
        });
        Ok(receiver)
    }

    /// The version of a snapshot; none without a name.
    async fn snapshot_version(
        &self,
        id: VolumeId,
        volume: &VolumeName,
        name: &str,
    ) -> Result<Option<Version>, Refusal> {
        if name.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.snapshot_named(id, volume, name).await?.version))
    }
}

/// Refuses while hosts are logged in to a volume that is about to become another one under them.
pub fn refuse_in_use(name: &VolumeName, sessions: u64) -> Result<(), Refusal> {
    match sessions {
        0 => Ok(()),
        _ => Err(Refusal::Impossible(format!(
            "volume {name} is in use by {sessions} sessions: log the initiators out first"
        ))),
    }
}

/// A volume that is not served at the moment is to be looked for again.
fn refusal(error: EngineError) -> Refusal {
    match error {
        EngineError::NoSuchVolume(_) | EngineError::Snapshot(SnapshotError::Closed) => {
            Refusal::Elsewhere("the volume is not served at this moment: `gemel status` says why".to_owned())
        }
        error => error.into(),
    }
}

/// Why a stream ended early.
enum Stopped {
    /// Nobody takes any more.
    Unwanted,
    /// It can't go on.
    Refused(Refusal),
}

impl<T: Into<Refusal>> From<T> for Stopped {
    fn from(refusal: T) -> Self {
        Self::Refused(refusal.into())
    }
}

/// One stream of pieces.
struct Reading {
    engine: EngineHandle,
    volume: VolumeId,
    at: Option<Version>,
    since: Option<Version>,
    /// Blocks of the granularity.
    grain: u64,
    end: u64,
    ranges_only: bool,
    sender: mpsc::Sender<Result<VolumePiece, Status>>,
}

impl Reading {
    async fn run(&self, from: u64) -> Result<(), Stopped> {
        let Some(since) = self.since else { return self.tell(from..self.end).await };
        let (mut next, mut changed) = (Some(from), None::<Range<u64>>);
        while let Some(from) = next {
            let (runs, rest) = self.look(Some(since), from..self.end).await?;
            next = rest;
            for run in runs {
                let wide = self.widened(run.address.0..run.address.0 + run.count);
                match &mut changed {
                    Some(changed) if wide.start <= changed.end => changed.end = changed.end.max(wide.end),
                    _ => {
                        if let Some(changed) = changed.replace(wide) {
                            self.tell(changed).await?;
                        }
                    }
                }
            }
        }
        match changed {
            Some(changed) => self.tell(changed).await,
            None => Ok(()),
        }
    }

    /// Tells what is allocated in a range and, where that is of interest, what is not.
    async fn tell(&self, range: Range<u64>) -> Result<(), Stopped> {
        let (mut told, mut mapped) = (range.start, None::<Range<u64>>);
        let mut from = range.start;
        while from < range.end {
            let window = range.end.min(from + BLOCKS_AT_A_TIME);
            let (runs, next) = self.look(None, from..window).await?;
            from = next.unwrap_or(window);
            for run in runs.into_iter().filter(|run| run.mapped) {
                let wide = self.widened(run.address.0..run.address.0 + run.count);
                match &mut mapped {
                    Some(mapped) if wide.start <= mapped.end => mapped.end = mapped.end.max(wide.end),
                    _ => {
                        if let Some(mapped) = mapped.replace(wide) {
                            told = self.tell_mapped(told, mapped).await?;
                        }
                    }
                }
            }
            // Data is sent as it is found; ranges in one piece, if they can be.
            if let Some(mapped) = mapped.take_if(|mapped| !self.ranges_only && mapped.end <= from) {
                told = self.tell_mapped(told, mapped).await?;
            }
        }
        if let Some(mapped) = mapped {
            told = self.tell_mapped(told, mapped).await?;
        }
        self.tell_unmapped(told..range.end).await
    }

    /// Tells of an allocated range, behind what was told so far. Through where it is told then.
    async fn tell_mapped(&self, told: u64, mapped: Range<u64>) -> Result<u64, Stopped> {
        self.tell_unmapped(told..mapped.start).await?;
        let (offset, length) = (mapped.start * BLOCK_BYTES, (mapped.end - mapped.start) * BLOCK_BYTES);
        let Some(at) = self.at.filter(|_| !self.ranges_only) else {
            self.send(VolumePiece { offset, length, mapped: true, data: Vec::new() }).await?;
            return Ok(mapped.end);
        };
        let pieces = mapped.clone().step_by(PIECE_BLOCKS as usize);
        let end = mapped.end;
        let reads = pieces.map(|first| {
            let (engine, volume) = (self.engine.clone(), self.volume);
            async move {
                let blocks = first..end.min(first + PIECE_BLOCKS);
                let read = engine.ask(|reply| Request::ReadSnapshot(volume, at, blocks, reply)).await;
                read.map(|data: Vec<Bytes>| (first, data.concat())).map_err(refusal)
            }
        });
        let mut reads = stream::iter(reads).buffered(READS_AHEAD);
        while let Some(read) = reads.next().await {
            let (first, data) = read?;
            let (offset, length) = (first * BLOCK_BYTES, data.len() as u64);
            self.send(VolumePiece { offset, length, mapped: true, data }).await?;
        }
        Ok(mapped.end)
    }

    async fn tell_unmapped(&self, range: Range<u64>) -> Result<(), Stopped> {
        if range.is_empty() || self.since.is_none() {
            return Ok(());
        }
        let (offset, length) = (range.start * BLOCK_BYTES, (range.end - range.start) * BLOCK_BYTES);
        self.send(VolumePiece { offset, length, mapped: false, data: Vec::new() }).await
    }

    async fn send(&self, piece: VolumePiece) -> Result<(), Stopped> {
        self.sender.send(Ok(piece)).await.map_err(|_| Stopped::Unwanted)
    }

    async fn look(&self, since: Option<Version>, blocks: Range<u64>) -> Result<RangesFound, Refusal> {
        let wanted = RangesWanted { volume: self.volume, at: self.at, since, blocks };
        self.engine.ask(|reply| Request::LookAtRanges(wanted, reply)).await.map_err(refusal)
    }

    /// In whole granules, as far as there are any.
    fn widened(&self, run: Range<u64>) -> Range<u64> {
        let start = run.start / self.grain * self.grain;
        start..run.end.next_multiple_of(self.grain).min(self.end)
    }
}

/// One stream that is written.
struct Writing {
    control: Arc<Control>,
    volume: VolumeId,
    size_bytes: u64,
    sender: mpsc::Sender<Result<WriteVolumeResponse, Status>>,
}

impl Writing {
    async fn run(
        &self,
        clear: bool,
        mut pieces: impl Stream<Item = Result<WriteVolumeRequest, Status>> + Unpin,
    ) -> Result<(), Stopped> {
        if clear {
            let mut block = 0;
            while block < self.size_bytes / BLOCK_BYTES {
                let count = CLEARED_AT_A_TIME.min(self.size_bytes / BLOCK_BYTES - block);
                self.fill(block, Filling::Zeros(count)).await?;
                block += count;
            }
        }
        let mut writing = FuturesOrdered::new();
        let mut through = 0;
        loop {
            let piece = match pieces.next().await {
                None => break,
                // Whoever sends has gone; what came before stands.
                Some(Err(_)) => return Err(Stopped::Unwanted),
                Some(Ok(piece)) => piece,
            };
            let (block, filling, end) = self.checked(piece, through)?;
            through = end;
            writing.push_back(future::Either::Left(
                async move { self.fill(block, filling).await.map(|()| end) },
            ));
            while writing.len() >= WRITES_AHEAD {
                self.wait_for_one(&mut writing).await?;
            }
        }
        while !writing.is_empty() {
            self.wait_for_one(&mut writing).await?;
        }
        writing.push_back(future::Either::Right(future::ready(Ok(self.size_bytes))));
        self.wait_for_one(&mut writing).await
    }

    async fn wait_for_one(
        &self,
        writing: &mut FuturesOrdered<impl Future<Output = Result<u64, Refusal>>>,
    ) -> Result<(), Stopped> {
        let Some(through) = writing.next().await else { return Ok(()) };
        let through = through?;
        self.sender.send(Ok(WriteVolumeResponse { through })).await.map_err(|_| Stopped::Unwanted)
    }

    /// The first block of a piece, what it is to be, and where it ends, in bytes.
    fn checked(&self, piece: WriteVolumeRequest, through: u64) -> Result<(u64, Filling, u64), Refusal> {
        let messages::WriteVolumeRequest { offset, zeros, data, .. } = piece;
        let length = if data.is_empty() { zeros } else { data.len() as u64 };
        let end = offset.checked_add(length).filter(|end| *end <= self.size_bytes);
        let is_whole = offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES);
        let is_wanted = offset >= through && is_whole && data.len() as u64 <= PIECE_BYTES;
        let Some(end) = end.filter(|_| is_wanted) else {
            return Err(Refusal::Invalid(format!(
                "no piece of a volume of {} bytes: {length} bytes at {offset}, behind {through}",
                self.size_bytes
            )));
        };
        let filling = match data.is_empty() {
            true => Filling::Zeros(zeros / BLOCK_BYTES),
            false => Filling::Data(data.into()),
        };
        Ok((offset / BLOCK_BYTES, filling, end))
    }

    /// A volume that was just made, or that begins anew, is waited for. Nobody else writes to it, so it may be done twice.
    async fn fill(&self, block: u64, filling: Filling) -> Result<(), Refusal> {
        let mut tries = 0;
        loop {
            let (volume, filling) = (self.volume, filling.clone());
            let filled = self.control.engine.ask(|reply| Request::Fill(volume, block, filling, reply)).await;
            tries += 1;
            match filled.map_err(refusal) {
                Err(Refusal::Elsewhere(_)) if tries < MOST_TRIES => tokio::time::sleep(BETWEEN_TRIES).await,
                filled => return filled,
            }
        }
    }
}

const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;
/// Most data of a piece.
const PIECE_BYTES: u64 = 1 << 20;
const PIECE_BLOCKS: u64 = PIECE_BYTES / BLOCK_BYTES;
/// Pieces that wait for whoever takes them.
const PIECES_AHEAD: usize = 4;
const READS_AHEAD: usize = 4;
const WRITES_AHEAD: usize = 8;
/// Blocks whose allocation is looked at together: 256 MiB.
const BLOCKS_AT_A_TIME: u64 = 1 << 16;
/// How often a volume that is not served at the moment is tried: a take-over goes by.
const MOST_TRIES: u32 = 30;
const BETWEEN_TRIES: Duration = Duration::from_millis(300);
/// Blocks that are given up together: 1 GiB.
const CLEARED_AT_A_TIME: u64 = 1 << 18;
