//! CHAP as the initiator plays it (RFC 1994 and RFC 7143 section 12.1.3): answers the target's challenge and
//! checks the target's own answer.

use md5::Md5;
use sha2::{Digest, Sha256};

/// A name and the secret that proves it. The secret is never shown.
#[derive(Clone)]
pub struct ChapSecret {
    /// CHAP_N.
    pub name: String,
    /// The secret.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for ChapSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChapSecret({})", self.name)
    }
}

/// The algorithms that this initiator offers (CHAP_A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChapAlgorithm {
    /// 5.
    Md5,
    /// 7.
    Sha256,
}

impl ChapAlgorithm {
    /// The algorithm of a CHAP_A value.
    #[must_use]
    pub fn of_number(number: &str) -> Option<Self> {
        match number {
            "5" => Some(Self::Md5),
            "7" => Some(Self::Sha256),
            _ => None,
        }
    }

    /// CHAP_R for a challenge: the digest of identifier, secret and challenge.
    #[must_use]
    pub fn respond(self, identifier: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        let message = [&[identifier], secret, challenge].concat();
        match self {
            Self::Md5 => Md5::digest(message).to_vec(),
            Self::Sha256 => Sha256::digest(message).to_vec(),
        }
    }
}

/// Binary as `0x...`.
pub(super) fn to_hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Binary from `0x...`, the only form that targets in use send.
pub(super) fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.len().is_multiple_of(2).then(|| digits.as_bytes().chunks(2).map(byte).collect())?
}
