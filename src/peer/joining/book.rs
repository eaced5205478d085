//! The tokens that a node has given out: one file, beside its other records.
//!
//! Guarantees: a token opens its seat to one key. Who asks again with the same key, because the answer was lost, gets
//! an answer again; another one is told that the token was used. What is told has been recorded before. A new token for
//! a seat ends the older ones. Secrets are not kept, only their digests, which are compared in constant time.
//!
//! Expiry is counted by this node's clock alone, so it does not matter what the clock of the other machine says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::token::Secret;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::peer::authority::{MemberKey, write_secret};

/// File of the book in a node's state directory.
pub const BOOK_NAME: &str = "join-tokens.json";
/// How long a token is good for unless said otherwise.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// The book, by its file.
#[derive(Clone, Debug)]
pub struct TokenBook {
    path: PathBuf,
}

/// The seat that a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its name.
    pub name: NodeName,
    /// What it is.
    pub kind: SeatKind,
}

/// Why a token does not open a seat. The text says what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// No such secret.
    #[error(
        "the join token is not known here: a newer one for the same machine ends it, and it is known only to the node that made it"
    )]
    Unknown,
    /// Too old.
    #[error("the join token for {name} has expired: make another one with `gemel cluster token {name}`")]
    Expired {
        /// Whom it was for.
        name: NodeName,
    },
    /// Another key came before.
    #[error(
        "the join token for {name} was used already, by another machine or before this one was set up anew: make \
         another one with `gemel cluster token {name}`"
    )]
    Used {
        /// Whom it was for.
        name: NodeName,
    },
    /// It is for another seat.
    #[error("the join token is for {}: it does not fit {}", seat(.is), seat(.asked))]
    OtherSeat {
        /// What it is for.
        is: Seat,
        /// What was asked for.
        asked: Seat,
    },
    /// The file.
    #[error("the record of join tokens {path} cannot be used: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

fn seat(seat: &Seat) -> String {
    format!("{} {}", seat.kind, seat.name)
}

#[derive(Serialize, Deserialize, Default)]
struct Pages {
    tokens: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: NodeName,
    witness: bool,
    /// SHA-256 of the secret.
    secret: [u8; 32],
    expires_unix_ms: u64,
    /// SHA-256 of the key that it was used with.
    used_by: Option<[u8; 32]>,
}

impl TokenBook {
    /// The book of the node with this state directory.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { path: state_dir.join(BOOK_NAME) }
    }

    /// Enters a new token, in place of others for the same seat. Only one process at a time does so.
    ///
    /// # Errors
    /// [`BookError::File`].
    pub fn enter(
        &self,
        seat: &Seat,
        secret: &Secret,
        now_unix_ms: u64,
        validity: Duration,
    ) -> Result<(), BookError> {
        let mut pages = self.read()?;
        pages.tokens.retain(|entry| entry.name != seat.name);
        // What has long expired need not be explained any more.
        pages.tokens.retain(|entry| entry.expires_unix_ms.saturating_add(REMEMBERED_MS) > now_unix_ms);
        let validity_ms = u64::try_from(validity.as_millis()).unwrap_or(u64::MAX);
        pages.tokens.push(Entry {
            name: seat.name.clone(),
            witness: seat.kind == SeatKind::Witness,
            secret: secret.digest(),
            expires_unix_ms: now_unix_ms.saturating_add(validity_ms),
            used_by: None,
        });
        self.write(&pages)
    }

    /// Uses a token for a seat, with a key.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn redeem(
        &self,
        secret: &[u8],
        asked: &Seat,
        key: &MemberKey,
        now_unix_ms: u64,
    ) -> Result<(), BookError> {
        let mut pages = self.read()?;
        let digest: [u8; 32] = Sha256::digest(secret).into();
        // All are compared, so that the time tells nothing.
        let is_it = |entry: &Entry| bool::from(entry.secret.ct_eq(&digest));
        let found = pages.tokens.iter().map(is_it).collect::<Vec<_>>().iter().position(|is| *is);
        let entry = found.and_then(|index| pages.tokens.get_mut(index)).ok_or(BookError::Unknown)?;
        let kind = if entry.witness { SeatKind::Witness } else { SeatKind::Node };
        let is = Seat { name: entry.name.clone(), kind };
        let used_by: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        if is != *asked {
            return Err(BookError::OtherSeat { is, asked: asked.clone() });
        } else if entry.used_by.is_some_and(|before| before != used_by) {
            return Err(BookError::Used { name: is.name });
        } else if now_unix_ms >= entry.expires_unix_ms {
            return Err(BookError::Expired { name: is.name });
        } else if entry.used_by.is_some() {
            return Ok(());
        }
        entry.used_by = Some(used_by);
        self.write(&pages)
    }

    fn read(&self) -> Result<Pages, BookError> {
        match std::fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| self.failed(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Pages::default()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn write(&self, pages: &Pages) -> Result<(), BookError> {
        let text = serde_json::to_string(pages).map_err(|error| self.failed(&error))?;
        write_secret(&self.path, &text).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &dyn std::error::Error) -> BookError {
        BookError::File { path: self.path.clone(), reason: error.to_string() }
    }
}

/// How long a token that has expired is still known.
const REMEMBERED_MS: u64 = 30 * 24 * 3600 * 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::authority::MemberKeyPair;

    fn seat(name: &str, kind: SeatKind) -> Seat {
        Seat { name: name.parse().unwrap(), kind }
    }

    #[test]
    fn a_token_opens_its_seat_to_one_key_until_it_expires() {
        let place = tempfile::tempdir().unwrap();
        let book = TokenBook::of(place.path());
        let (b, w) = (seat("b", SeatKind::Node), seat("w", SeatKind::Witness));
        let (for_b, for_w) = (Secret([1; 16]), Secret([2; 16]));
        let [first, second] = [(), ()].map(|()| MemberKeyPair::create().unwrap().public_key());
        let name = b.name.clone();
        assert_eq!(book.redeem(&for_b.0, &b, &first, 0), Err(BookError::Unknown));
        book.enter(&b, &for_b, 1000, Duration::from_secs(60)).unwrap();
        book.enter(&w, &for_w, 1000, Duration::from_secs(60)).unwrap();

        let other_role = book.redeem(&for_w.0, &b, &first, 2000);
        assert!(other_role.unwrap_err().to_string().contains("for witness w: it does not fit node b"));
        let other_role = book.redeem(&for_b.0, &seat("b", SeatKind::Witness), &first, 2000);
        assert!(matches!(other_role, Err(BookError::OtherSeat { .. })));
        assert_eq!(book.redeem(&[1; 15], &b, &first, 2000), Err(BookError::Unknown));
        assert_eq!(book.redeem(&for_b.0, &b, &first, 61_000), Err(BookError::Expired { name: name.clone() }));
        assert_eq!(book.redeem(&for_b.0, &b, &first, 2000), Ok(()));
        assert_eq!(book.redeem(&for_b.0, &b, &first, 3000), Ok(()), "the answer may have been lost");
        assert_eq!(book.redeem(&for_b.0, &b, &second, 3000), Err(BookError::Used { name: name.clone() }));
        assert_eq!(book.redeem(&for_b.0, &b, &first, 61_000), Err(BookError::Expired { name }));

        book.enter(&b, &Secret([4; 16]), 2000, Duration::from_secs(60)).unwrap();
        assert_eq!(book.redeem(&for_b.0, &b, &first, 3000), Err(BookError::Unknown), "a newer one ends it");
        assert_eq!(book.redeem(&for_w.0, &w, &second, 3000), Ok(()), "another seat's goes on");
        let text = std::fs::read_to_string(place.path().join(BOOK_NAME)).unwrap();
        let secret = serde_json::to_string(&[4u8; 16]).unwrap();
        assert!(!text.contains(secret.trim_matches(['[', ']'])), "secrets are not kept");
    }
}
