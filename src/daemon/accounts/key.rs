//! Random keys: of sessions, forms, links and tokens. Only their digests are kept.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::cluster::name::{TokenName, UserName};
use crate::cluster::state::user::KeyDigest;

/// 256 random bits, written as 64 hexadecimal digits. Shown by no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// One that was written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let bytes = pairs.iter().map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8));
        let bytes = bytes.collect::<Option<Vec<u8>>>()?;
        bytes.try_into().ok().filter(|_| rest.is_empty()).map(Self)
    }

    /// What is kept of it.
    #[must_use]
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(Sha256::digest(self.0).to_vec())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

/// Whether two digests are the same, in a time that does not tell where they differ.
#[must_use]
pub fn is_same(one: &KeyDigest, other: &KeyDigest) -> bool {
    one.0.ct_eq(&other.0).into()
}

/// Whether two texts are the same, in a time that does not tell where they differ.
#[must_use]
pub fn is_same_text(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

/// A token as a script has it. Names have no underscores.
#[must_use]
pub fn token(user: &UserName, name: &TokenName, key: &Key) -> String {
    format!("{PREFIX}_{user}_{name}_{key}")
}

/// The parts of a token.
#[must_use]
pub fn parse_token(text: &str) -> Option<(UserName, TokenName, Key)> {
    let mut parts = text.split('_');
    let [prefix, user, name, key] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let is_one = prefix == PREFIX && parts.next().is_none();
    let parts = (user.parse().ok()?, name.parse().ok()?, Key::parse(key)?);
    is_one.then_some(parts)
}

const PREFIX: &str = "gemel";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_tokens_come_back() {
        let key = Key::random().unwrap();
        assert_ne!(Key::random().unwrap(), key);
        assert_eq!(Key::parse(&key.to_string()).unwrap(), key);
        let (user, name) = ("anne.martin".parse().unwrap(), "nightly".parse().unwrap());
        let text = token(&user, &name, &key);
        assert_eq!(parse_token(&text), Some((user, name, key.clone())));
        assert!(is_same(&key.digest(), &key.digest()) && !is_same(&key.digest(), &Key([0; 32]).digest()));
        assert!(!format!("{key:?} {:?}", key.digest()).contains(&key.to_string()[..8]));
        for wrong in
            ["", "gemel", &text[1..], &text[..text.len() - 1], &format!("{text}_x"), &format!("{text}g")]
        {
            assert_eq!(parse_token(wrong), None, "{wrong}");
        }
    }
}
