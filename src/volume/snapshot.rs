//! What is kept about a snapshot, beside its cut: the contents of its statement in the volume's chain.
//!
//! The store and the mirror carry it as bytes that they do not look into; a snapshot is named by the version of its
//! statement. Format 1, little-endian: format, kind, length of the name in bytes (a byte each), id, time of taking,
//! end of protection (0: none), group (0: none) as u64 each, then the name. What a newer format says is not guessed.

use crate::base::codec::{CutShort, Reader, Writer};

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
        let kind = match self.kind {
            SnapshotKind::Manual => 0,
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
        let kinds = [SnapshotKind::Manual, SnapshotKind::Schedule, SnapshotKind::BeforeResync];
        for (kind, group) in kinds.into_iter().zip([None, Some(7), Some(u64::MAX)]) {
            let protected_until_unix_ms = group.map(|group| group / 2);
            let record = SnapshotRecord { kind, group, protected_until_unix_ms, ..record() };
            let bytes = record.encode();
            assert_eq!(SnapshotRecord::decode(&bytes), Ok(record));
            assert_eq!(SnapshotRecord::is_before_resync(&bytes), kind == SnapshotKind::BeforeResync);
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
        assert_eq!(with(0, 2), Err(SnapshotRecordError::UnknownFormat(2)));
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
