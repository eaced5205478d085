//! A join token: what an administrator carries from the first node to the machine that is to join.
//!
//! It names the seat that it is for, where to ask, the authority that is to be trusted there, and a secret that works
//! once. A token that was cut off or mistyped is recognised without asking anybody.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::base::checksum::Crc32;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::ClusterUuid;
use crate::peer::authority::AuthorityKey;

/// What a token says.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The cluster.
    pub cluster: ClusterUuid,
    /// Its authority.
    pub authority: AuthorityKey,
    /// The secret.
    pub secret: Secret,
    /// What it is for.
    pub kind: SeatKind,
    /// Whom it is for.
    pub name: NodeName,
    /// Where to ask: HOST:PORT, the preferred one first.
    pub addresses: Vec<String>,
}

/// Sixteen random bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 16]);

impl Secret {
    /// What is kept of it: with 128 random bits behind it, that cannot be turned back.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(withheld)")
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({} of {}, secret withheld)", self.name, self.cluster)
    }
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("that is not a join token: it begins with {PREFIX} and is one word")]
    NoToken,
    /// Of a later version.
    #[error("the join token was made by a newer version of gemel: use the same version on all machines")]
    Newer,
    /// Cut off, or mistyped.
    #[error("the join token is damaged: copy all of it, it is one word")]
    Damaged,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        bytes.extend(self.cluster.0);
        bytes.extend(self.authority.0);
        bytes.extend(self.secret.0);
        bytes.push(match self.kind {
            SeatKind::Node => NODE,
            SeatKind::Witness => WITNESS,
        });
        for text in std::iter::once(self.name.as_str()).chain(self.addresses.iter().map(String::as_str)) {
            // Names have at most 63 bytes, addresses are IP addresses with a port.
            bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            bytes.extend(text.bytes());
        }
        bytes.extend(Crc32::of(&bytes).0.to_le_bytes());
        write!(f, "{PREFIX}{VERSION}-{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(TokenError::NoToken)?;
        let (version, encoded) = rest.split_once('-').ok_or(TokenError::Damaged)?;
        if version != VERSION {
            let is_number = version.parse::<u32>().is_ok();
            return Err(if is_number { TokenError::Newer } else { TokenError::Damaged });
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError::Damaged)?;
        let (bytes, checksum) = bytes.split_last_chunk().ok_or(TokenError::Damaged)?;
        if Crc32::of(bytes).0 != u32::from_le_bytes(*checksum) {
            return Err(TokenError::Damaged);
        }
        parse(bytes).ok_or(TokenError::Damaged)
    }
}

fn parse(bytes: &[u8]) -> Option<JoinToken> {
    let (cluster, rest) = bytes.split_first_chunk()?;
    let (authority, rest) = rest.split_first_chunk()?;
    let (secret, rest) = rest.split_first_chunk()?;
    let (kind, mut rest) = rest.split_first()?;
    let kind = match *kind {
        NODE => SeatKind::Node,
        WITNESS => SeatKind::Witness,
        _ => return None,
    };
    let mut texts = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let (text, after) = after.split_at_checked(usize::from(*length))?;
        texts.push(std::str::from_utf8(text).ok()?.to_owned());
        rest = after;
    }
    let (name, addresses) = texts.split_first()?;
    let is_sound = !addresses.is_empty() && addresses.len() <= MOST_ADDRESSES;
    is_sound.then_some(JoinToken {
        cluster: ClusterUuid(*cluster),
        authority: AuthorityKey(*authority),
        secret: Secret(*secret),
        kind,
        name: name.parse().ok()?,
        addresses: addresses.to_vec(),
    })
}

const PREFIX: &str = "gemel-join-";
const VERSION: &str = "1";
const NODE: u8 = 1;
const WITNESS: u8 = 2;
const MOST_ADDRESSES: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            cluster: ClusterUuid([1; 16]),
            authority: AuthorityKey([2; 32]),
            secret: Secret([3; 16]),
            kind: SeatKind::Witness,
            name: "w".parse().unwrap(),
            addresses: vec!["192.0.2.1:3261".into(), "[2001:db8::1]:3261".into()],
        }
    }

    #[test]
    fn a_token_is_one_word_and_says_what_it_said() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
        assert!(!format!("{:?}", token()).contains(&text[20..40]));
    }

    #[test]
    fn a_damaged_token_is_recognised() {
        let text = token().to_string();
        for end in 0..text.len() {
            assert!(text[..end].parse::<JoinToken>().is_err(), "{end}");
        }
        for position in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
            assert!(String::from_utf8(bytes).unwrap().parse::<JoinToken>().is_err(), "{position}");
        }
        let newer = text.replace("gemel-join-1", "gemel-join-2");
        assert_eq!(newer.parse::<JoinToken>(), Err(TokenError::Newer));
        assert_eq!("hello".parse::<JoinToken>(), Err(TokenError::NoToken));
    }
}
