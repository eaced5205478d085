//! A member's log on its medium: votes, entries and the snapshot before them.
//!
//! Format, version 1, all numbers little-endian. A header, written only as part of a whole new file:
//! magic, version, member id, cluster id, sequence numbers of the first record and of the last one written
//! together with the header, CRC-32C of these. Then records: length of the payload, CRC-32C, sequence number, *synced-through*, payload. The CRC covers
//! the member id too, so no record of another life or another member passes. Synced-through is the
//! greatest sequence number that was known to be on stable media when the record was written; a seal,
//! a record that says nothing else, follows the last record after a tick.
//!
//! Invariants: a record that synced-through covers was acknowledged. So a bad record that a later good one
//! covers is damage: the log is not whole, and its member must not vote (I13). A bad record that none
//! covers, and that was not written with the header, is the torn end of what was never synced; it is cut
//! off before anything is appended.
//!
//! Not detected: damage to what was synced last, until the next tick has sealed it; and a medium put
//! back to an older state as a whole; the leader's heartbeats betray the latter (`member`).

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, StorageError};

use super::MemberId;
use super::wire::{self, WireError};
use crate::base::checksum::Crc32c;
use crate::base::codec::{Reader, Writer};
use crate::cluster::mutant::{self, Mutant};

/// One small file, or what simulates it.
pub trait Medium {
    /// All of it; empty when there is none.
    fn read(&mut self) -> Result<Vec<u8>, LogError>;
    /// Adds bytes at the end. They may be lost, in part or as a whole, until [`Self::sync`].
    fn append(&mut self, bytes: &[u8]) -> Result<(), LogError>;
    /// Everything appended is on stable media when this returns.
    fn sync(&mut self) -> Result<(), LogError>;
    /// Puts `bytes` in the place of everything: a crash leaves the old or the new, and after the return the
    /// new.
    fn replace(&mut self, bytes: &[u8]) -> Result<(), LogError>;
}

/// Why a log can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The medium failed. It is not tried again (I21).
    #[error("the medium of the log failed: {0}")]
    Medium(String),
    /// Something that was on stable media is not readable.
    #[error("record {sequence} of the log, at byte {offset}, is damaged although it was synced")]
    Damaged {
        /// Its sequence number.
        sequence: u64,
        /// Where it begins.
        offset: usize,
    },
    /// It is not a log.
    #[error("the file is not a log of this product")]
    NotALog,
    /// A newer program made it.
    #[error("the log has version {0}, newer than this program knows")]
    Newer(u32),
    /// It belongs to another cluster.
    #[error("the log belongs to another cluster")]
    OtherCluster,
    /// Its records do not fit each other.
    #[error("the log contradicts itself at record {0}")]
    Contradiction(u64),
    /// The leader knows that this member had acknowledged more than it has.
    #[error("this log lacks entries that it had acknowledged: {has} of {acknowledged}")]
    LostEntries {
        /// Last index that it has.
        has: u64,
        /// What it had acknowledged.
        acknowledged: u64,
    },
}

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The member in its present life.
    pub member: MemberId,
    /// The cluster.
    pub cluster: [u8; 16],
}

/// What was found on a medium.
pub enum Recovered<M> {
    /// Nothing: whoever this was, it is a stranger now.
    Blank(M),
    /// A whole log.
    Whole(Log<M>, Image),
}

/// Everything in the log, in memory, as the `raft` crate wants to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Whose it is.
    pub identity: Identity,
    pub(super) hard_state: HardState,
    pub(super) snapshot: Snapshot,
    pub(super) entries: Vec<Entry>,
}

/// The log's end, where records are added.
pub struct Log<M> {
    medium: M,
    member: MemberId,
    next_sequence: u64,
    synced_through: u64,
    /// What was synced last is covered by a later record that is synced too.
    is_sealed: bool,
}

/// Reads what is on the medium, and repairs a torn end.
///
/// # Errors
/// [`LogError`] when it is not whole: then its member must not take part.
pub fn recover<M: Medium>(mut medium: M) -> Result<Recovered<M>, LogError> {
    let bytes = medium.read()?;
    if bytes.is_empty() {
        return Ok(Recovered::Blank(medium));
    }
    let (identity, first_sequence, written_whole, records) = take_header(&bytes)?;
    let mut image = Image::empty(identity);
    let mut sequence = first_sequence;
    let mut rest = records;
    while !rest.is_empty() {
        match take_record(identity.member, rest) {
            Some((record, after)) if record.sequence == sequence => {
                image.apply(record.payload).map_err(|_| LogError::Contradiction(sequence))?;
                (sequence, rest) = (sequence + 1, after);
            }
            _ => break,
        }
    }
    let offset = bytes.len() - rest.len();
    let was_synced = sequence <= written_whole || covers(identity.member, rest, sequence);
    if was_synced && !mutant::is(Mutant::CutAtDamage) {
        return Err(LogError::Damaged { sequence, offset });
    }
    if !rest.is_empty() {
        medium.replace(&bytes[..offset])?;
    }
    // What was read may be in a cache only; votes were cast by it.
    medium.sync()?;
    let log = Log {
        medium,
        member: identity.member,
        next_sequence: sequence,
        synced_through: sequence - 1,
        is_sealed: false,
    };
    Ok(Recovered::Whole(log, image))
}

impl<M: Medium> Log<M> {
    /// Begins the log of a new life, of a member that is in no cluster yet, or founds one.
    ///
    /// # Errors
    /// [`LogError::Medium`].
    pub(super) fn create(medium: M, image: &Image) -> Result<Self, LogError> {
        let mut log = Self {
            medium,
            member: image.identity.member,
            next_sequence: 1,
            synced_through: 0,
            is_sealed: true,
        };
        log.rewrite(image)?;
        Ok(log)
    }

    /// Makes entries and votes durable, in one write.
    pub(super) fn append(
        &mut self,
        entries: &[Entry],
        hard_state: Option<&HardState>,
    ) -> Result<(), LogError> {
        let mut bytes = Vec::new();
        for entry in entries {
            self.put_record(&mut bytes, &entry_payload(entry));
        }
        if let Some(hard_state) = hard_state {
            self.put_record(&mut bytes, &hard_state_payload(hard_state));
        }
        self.medium.append(&bytes)
    }

    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        self.medium.sync()?;
        self.synced_through = self.next_sequence - 1;
        self.is_sealed = false;
        Ok(())
    }

    /// Says in the log what has been synced, so that damage to it is told from a torn end.
    pub(super) fn seal(&mut self) -> Result<(), LogError> {
        if self.is_sealed {
            return Ok(());
        }
        let mut bytes = Vec::new();
        self.put_record(&mut bytes, &[SEAL]);
        self.medium.append(&bytes)?;
        self.sync()?;
        self.is_sealed = true;
        Ok(())
    }

    /// Writes the log anew, without what the image no longer holds.
    pub(super) fn rewrite(&mut self, image: &Image) -> Result<(), LogError> {
        let first_sequence = self.next_sequence;
        let last_sequence = first_sequence + image.entries.len() as u64 + 1;
        let mut bytes = header(image.identity, first_sequence, last_sequence);
        self.put_record(&mut bytes, &snapshot_payload(&image.snapshot));
        for entry in &image.entries {
            self.put_record(&mut bytes, &entry_payload(entry));
        }
        self.put_record(&mut bytes, &hard_state_payload(&image.hard_state));
        assert_eq!(self.next_sequence, last_sequence + 1, "the header speaks of other records");
        self.medium.replace(&bytes)?;
        self.synced_through = self.next_sequence - 1;
        self.is_sealed = true;
        Ok(())
    }

    fn put_record(&mut self, bytes: &mut Vec<u8>, payload: &[u8]) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let mut covered = Vec::with_capacity(payload.len() + 28);
        covered.put_u64(self.member.0);
        covered.put_u32(payload.len() as u32);
        covered.put_u64(sequence);
        covered.put_u64(self.synced_through);
        covered.put(payload);
        bytes.put_u32(payload.len() as u32);
        bytes.put_u32(Crc32c::of(&covered).0);
        bytes.put(&covered[12..]);
    }
}

impl Image {
    /// Nothing yet.
    pub(super) fn empty(identity: Identity) -> Self {
        Self {
            identity,
            hard_state: HardState::default(),
            snapshot: Snapshot::default(),
            entries: Vec::new(),
        }
    }

    pub(super) fn first_index(&self) -> u64 {
        self.snapshot.get_metadata().index + 1
    }

    pub(super) fn last_index(&self) -> u64 {
        self.snapshot.get_metadata().index + self.entries.len() as u64
    }

    /// Adds entries; those that it has from their index on are replaced.
    pub(super) fn add(&mut self, entries: &[Entry]) -> Result<(), WireError> {
        for entry in entries {
            let position = entry.index.checked_sub(self.first_index()).ok_or(WireError::Value)? as usize;
            if position > self.entries.len() {
                return Err(WireError::Value);
            }
            if mutant::is(Mutant::KeepConflictingEntries) && position < self.entries.len() {
                self.entries[position] = entry.clone();
                continue;
            }
            self.entries.truncate(position);
            self.entries.push(entry.clone());
        }
        Ok(())
    }

    /// Forgets the entries up to the snapshot's; all of them when it goes beyond the last.
    pub(super) fn start_from(&mut self, snapshot: Snapshot) {
        let index = snapshot.get_metadata().index;
        let follows = raft::Storage::term(self, index) == Ok(snapshot.get_metadata().term);
        let forgotten = (index + 1).saturating_sub(self.first_index()) as usize;
        if follows {
            self.entries.drain(..forgotten.min(self.entries.len()));
        } else {
            self.entries.clear();
        }
        self.snapshot = snapshot;
    }

    fn apply(&mut self, payload: &[u8]) -> Result<(), WireError> {
        let mut reader = Reader::new(payload);
        match reader.u8()? {
            HARD_STATE => {
                self.hard_state.term = reader.u64()?;
                self.hard_state.vote = reader.u64()?;
                self.hard_state.commit = reader.u64()?;
            }
            ENTRY => self.add(&[wire::take_entry(&mut reader)?])?,
            SNAPSHOT => self.snapshot = wire::take_snapshot(&mut reader)?,
            SEAL => {}
            _ => return Err(WireError::Value),
        }
        if reader.remaining() == 0 { Ok(()) } else { Err(WireError::Trailing) }
    }
}

impl raft::Storage for Image {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard_state = self.hard_state.clone();
        // The commit index is written along, but not synced for its own sake.
        hard_state.commit = hard_state.commit.clamp(self.first_index() - 1, self.last_index());
        let members: ConfState = self.snapshot.get_metadata().get_conf_state().clone();
        Ok(RaftState::new(hard_state, members))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first_index() {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last_index() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let range = (low - self.first_index()) as usize..(high - self.first_index()) as usize;
        let (limit, mut size) = (max_size.into().unwrap_or(u64::MAX), 0);
        let fits = |entry: &&Entry| {
            let is_first = size == 0;
            size += (entry.data.len() + entry.context.len()) as u64 + 24;
            is_first || size <= limit
        };
        Ok(self.entries[range].iter().take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.snapshot.get_metadata().index {
            return Ok(self.snapshot.get_metadata().term);
        }
        let position = index.checked_sub(self.first_index()).ok_or(StorageError::Compacted)?;
        let entry = self.entries.get(position as usize).ok_or(StorageError::Unavailable)?;
        Ok(entry.term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(Self::first_index(self))
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(Self::last_index(self))
    }

    fn snapshot(&self, request_index: u64, _: u64) -> raft::Result<Snapshot> {
        if self.snapshot.get_metadata().index < request_index {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        Ok(self.snapshot.clone())
    }
}

struct Record<'a> {
    sequence: u64,
    synced_through: u64,
    payload: &'a [u8],
}

fn take_record(member: MemberId, bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let mut reader = Reader::new(bytes);
    let length = reader.u32().ok()? as usize;
    let checksum = reader.u32().ok()?;
    if length > MOST_PAYLOAD_BYTES || reader.remaining() < length + 16 {
        return None;
    }
    let covered = reader.bytes(length + 16).ok()?;
    let mut head = Vec::with_capacity(12);
    head.put_u64(member.0);
    head.put_u32(length as u32);
    if Crc32c::of(&head).append(covered).0 != checksum && !mutant::is(Mutant::ChecksumIgnored) {
        return None;
    }
    let mut fields = Reader::new(covered);
    let (sequence, synced_through) = (fields.u64().ok()?, fields.u64().ok()?);
    let payload = fields.bytes(length).ok()?;
    Some((Record { sequence, synced_through, payload }, &bytes[24 + length..]))
}

/// Whether any record in `bytes`, at any place, says that `sequence` had been synced.
fn covers(member: MemberId, bytes: &[u8], sequence: u64) -> bool {
    (0..bytes.len()).any(|start| {
        let record = take_record(member, &bytes[start..]);
        record.is_some_and(|(record, _)| record.sequence > sequence && record.synced_through >= sequence)
    })
}

fn header(identity: Identity, first_sequence: u64, last_sequence: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.put_u32(VERSION);
    bytes.put_u64(identity.member.0);
    bytes.put(&identity.cluster);
    bytes.put_u64(first_sequence);
    bytes.put_u64(last_sequence);
    let checksum = Crc32c::of(&bytes).0;
    bytes.put_u32(checksum);
    bytes
}

/// Whose log it is, the sequence number of its first record, that of the last which was written together
/// with the header, and the records.
fn take_header(bytes: &[u8]) -> Result<(Identity, u64, u64, &[u8]), LogError> {
    let (head, records) = bytes.split_at_checked(HEADER_BYTES).ok_or(LogError::NotALog)?;
    let fields = || -> Result<_, crate::base::codec::CutShort> {
        let mut reader = Reader::new(head);
        let magic = reader.bytes(MAGIC.len())?;
        let (version, member) = (reader.u32()?, reader.u64()?);
        let cluster = reader.array::<16>()?;
        Ok((magic, version, member, cluster, reader.u64()?, reader.u64()?, reader.u32()?))
    };
    let (magic, version, member, cluster, first_sequence, last_sequence, checksum) =
        fields().map_err(|_| LogError::NotALog)?;
    if magic != MAGIC {
        return Err(LogError::NotALog);
    }
    if version > VERSION {
        return Err(LogError::Newer(version));
    }
    if Crc32c::of(&head[..HEADER_BYTES - 4]).0 != checksum || member == 0 || first_sequence == 0 {
        return Err(LogError::Damaged { sequence: 0, offset: 0 });
    }
    Ok((Identity { member: MemberId(member), cluster }, first_sequence, last_sequence, records))
}

fn entry_payload(entry: &Entry) -> Vec<u8> {
    let mut payload = vec![ENTRY];
    wire::put_entry(&mut payload, entry);
    payload
}

fn hard_state_payload(hard_state: &HardState) -> Vec<u8> {
    let mut payload = vec![HARD_STATE];
    payload.put_u64(hard_state.term);
    payload.put_u64(hard_state.vote);
    payload.put_u64(hard_state.commit);
    payload
}

fn snapshot_payload(snapshot: &Snapshot) -> Vec<u8> {
    let mut payload = vec![SNAPSHOT];
    wire::put_snapshot(&mut payload, snapshot);
    payload
}

const MAGIC: &[u8; 8] = b"gemelRLG";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 8 + 16 + 8 + 8 + 4;
/// A snapshot of the control state with all its reservations fits.
const MOST_PAYLOAD_BYTES: usize = 1 << 30;

const HARD_STATE: u8 = 1;
const ENTRY: u8 = 2;
const SNAPSHOT: u8 = 3;
const SEAL: u8 = 4;
