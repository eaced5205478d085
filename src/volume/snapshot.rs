//! What is kept about a snapshot, beside its cut: the contents of its statement in the volume's chain.
//!
//! The store and the mirror carry it as bytes that they do not look into; a snapshot is named by the version of its
//! statement. Format 1, little-endian: format, kind, length of the name in bytes (a byte each), id, time of taking,
//! end of protection (0: none), group (0: none) as u64 each, then the name. What a newer format says is not guessed. Format 2 is
//! the mark of a rollback: format, epoch (u32) and sequence number (u64) of the snapshot that is gone back to, then a record of
//! format 1; the store knows it too ([`rollback_of`]).

use crate::base::codec::{CutShort, Reader, Writer};
use crate::base::units::Version;
use crate::store::interface::{rollback_of, rollback_record};

/// A snapshot, for people and for schedules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// A random number, by which it is told from one that had its name before. Never zero.
    pub id: u64,
    /// How people call it: see [`SnapshotRecord::is_name`].
    pub name: String,
    /// When it was taken, by the clock of the node that took it.
    pub taken_unix_ms: u64,
    /// Nobody deletes it before.
    pub protected_until_unix_ms: Option<u64>,
    /// Who took it.
    pub kind: SnapshotKind,
    /// Number that the snapshots of several volumes at one cut have in common. Never zero.
    pub group: Option<u64>,
}

/// Who took a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// An administrator.
    Manual,
    /// A schedule, which also deletes it.
    Schedule,
    /// A replica, of what it had before it was brought up to date. It is no part of the volume's list, unless an
    /// operator makes that replica the volume.
    BeforeResync,
    /// The mark of a rollback: from here on the volume shows an older snapshot, whose name this one has. It is no part of the
    /// volume's list.
    Rollback {
        /// That snapshot.
        to: Version,
    },
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotRecordError {
    /// They end early.
    #[error(transparent)]
    CutShort(#[from] CutShort),
    /// They are of a format that this release does not know.
    #[error("a snapshot's record of format {0}; this release knows format 1")]
    UnknownFormat(u8),
    /// A field has a value that it can't have.
    #[error("a malformed record of a snapshot")]
    Malformed,
}

impl SnapshotRecord {
    /// Whether a snapshot may have this name: 1 to 128 letters, digits, `.`, `_`, `-` or `:`, not beginning with `-`.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        let is_usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':');
        (1..=MOST_NAME_BYTES).contains(&name.len()) && !name.starts_with('-') && name.chars().all(is_usual)
    }

    /// Whether it may be deleted at this time.
    #[must_use]
    pub fn is_protected(&self, now_unix_ms: u64) -> bool {
        self.protected_until_unix_ms.is_some_and(|until| now_unix_ms < until)
    }

    /// As bytes.
    ///
    /// # Panics
    /// When the name is none, or a number that is never zero is zero.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(Self::is_name(&self.name) && self.id > 0 && self.group != Some(0), "{self:?}");
        if let SnapshotKind::Rollback { to } = self.kind {
            return rollback_record(to, &Self { kind: SnapshotKind::Manual, ..self.clone() }.encode());
        }
        let kind = match self.kind {
            SnapshotKind::Manual | SnapshotKind::Rollback { .. } => 0,
            SnapshotKind::Schedule => 1,
            SnapshotKind::BeforeResync => 2,
        };
        let mut bytes = vec![FORMAT, kind, self.name.len() as u8];
        bytes.put_u64(self.id);
        bytes.put_u64(self.taken_unix_ms);
        bytes.put_u64(self.protected_until_unix_ms.unwrap_or(0));
        bytes.put_u64(self.group.unwrap_or(0));
        bytes.put(self.name.as_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] made.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotRecordError> {
        if let Some((to, about)) = rollback_of(bytes) {
            let about = match rollback_of(about) {
                Some(_) => return Err(SnapshotRecordError::Malformed),
                None => Self::decode(about)?,
            };
            return Ok(Self { kind: SnapshotKind::Rollback { to }, ..about });
        }
        let mut reader = Reader::new(bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(SnapshotRecordError::UnknownFormat(format));
        }
        let kind = match reader.u8()? {
            0 => SnapshotKind::Manual,
            1 => SnapshotKind::Schedule,
            2 => SnapshotKind::BeforeResync,
            _ => return Err(SnapshotRecordError::Malformed),
        };
        let name_length = usize::from(reader.u8()?);
        let (id, taken_unix_ms, protected_until, group) =
            (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let name = std::str::from_utf8(reader.bytes(name_length)?).ok().filter(|name| Self::is_name(name));
        match name {
            Some(name) if id > 0 && reader.remaining() == 0 => Ok(Self {
                id,
                name: name.to_owned(),
                taken_unix_ms,
                protected_until_unix_ms: (protected_until > 0).then_some(protected_until),
                kind,
                group: (group > 0).then_some(group),
            }),
            _ => Err(SnapshotRecordError::Malformed),
        }
    }

    /// Whether these bytes are the record of what is for no list: what a replica or a rollback keeps for itself.
    #[must_use]
    pub fn is_hidden(bytes: &[u8]) -> bool {
        let is_hidden =
            |record: Self| matches!(record.kind, SnapshotKind::BeforeResync | SnapshotKind::Rollback { .. });
        Self::decode(bytes).is_ok_and(is_hidden)
    }

    /// Whether these bytes are the record of what a replica had before it was brought up to date.
    #[must_use]
    pub fn is_before_resync(bytes: &[u8]) -> bool {
        Self::decode(bytes).is_ok_and(|record| record.kind == SnapshotKind::BeforeResync)
    }
}

const FORMAT: u8 = 1;
const MOST_NAME_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SnapshotRecord {
        SnapshotRecord {
            id: 0x0102_0304_0506_0708,
            name: "before-update".to_owned(),
            taken_unix_ms: 1_795_000_000_123,
            protected_until_unix_ms: None,
            kind: SnapshotKind::Manual,
            group: None,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_again() {
        let to = Version { epoch: 3, sequence: u64::MAX - 1 };
        let kinds = [
            SnapshotKind::Manual,
            SnapshotKind::Schedule,
            SnapshotKind::BeforeResync,
            SnapshotKind::Rollback { to },
        ];
        for (kind, group) in kinds.into_iter().zip([None, Some(7), Some(u64::MAX), None]) {
            let protected_until_unix_ms = group.map(|group| group / 2);
            let record = SnapshotRecord { kind, group, protected_until_unix_ms, ..record() };
            let bytes = record.encode();
            assert_eq!(SnapshotRecord::decode(&bytes), Ok(record));
            assert_eq!(SnapshotRecord::is_before_resync(&bytes), kind == SnapshotKind::BeforeResync);
            let is_hidden = !matches!(kind, SnapshotKind::Manual | SnapshotKind::Schedule);
            assert_eq!(SnapshotRecord::is_hidden(&bytes), is_hidden);
        }
    }

    /// Format 1 as it is in pools and on the wire.
    #[test]
    fn the_first_format_stays_readable() {
        let mut bytes = vec![1, 1, 3, 8, 7, 6, 5, 4, 3, 2, 1, 0xe8, 3, 0, 0, 0, 0, 0, 0];
        bytes.extend([0; 8]);
        bytes.extend([5, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(b"x:1");
        let expected = SnapshotRecord {
            name: "x:1".to_owned(),
            taken_unix_ms: 1000,
            kind: SnapshotKind::Schedule,
            group: Some(5),
            ..record()
        };
        assert_eq!((SnapshotRecord::decode(&bytes), expected.encode()), (Ok(expected), bytes));
    }

    #[test]
    fn nothing_else_passes_for_a_record() {
        let bytes = record().encode();
        for length in 0..bytes.len() {
            assert_eq!(
                SnapshotRecord::decode(&bytes[..length]),
                Err(SnapshotRecordError::CutShort(CutShort)),
                "{length}"
            );
        }
        let with = |at: usize, value: u8| {
            let mut other = bytes.clone();
            other[at] = value;
            SnapshotRecord::decode(&other)
        };
        assert_eq!(with(0, 3), Err(SnapshotRecordError::UnknownFormat(3)));
        let mark =
            SnapshotRecord { kind: SnapshotKind::Rollback { to: Version::default() }, ..record() }.encode();
        for length in 1..mark.len() {
            assert!(SnapshotRecord::decode(&mark[..length]).is_err(), "{length}");
        }
        let twice = rollback_record(Version::default(), &mark);
        assert_eq!(SnapshotRecord::decode(&twice), Err(SnapshotRecordError::Malformed));
        for (at, value) in [(1, 3), (2, 5), (bytes.len() - 1, 0xff), (bytes.len() - 1, b' ')] {
            assert_eq!(with(at, value), Err(SnapshotRecordError::Malformed), "{at}");
        }
    }

    #[test]
    fn names_are_usable_on_a_command_line() {
        for name in ["a", "2026-11-22T14:03:00", "daily.1", &"x".repeat(128)] {
            assert!(SnapshotRecord::is_name(name), "{name}");
        }
        for name in ["", "-a", "a b", "a/b", "a@b", "é", &"x".repeat(129)] {
            assert!(!SnapshotRecord::is_name(name), "{name}");
        }
    }

    #[test]
    fn protection_ends_at_its_time() {
        let record = SnapshotRecord { protected_until_unix_ms: Some(10), ..record() };
        assert!(record.is_protected(9) && !record.is_protected(10));
    }
}
