//! The `key=value` text of login and text negotiation (RFC 7143 section 6.1), within limits.

use base64::Engine;

/// Longest key name in bytes (section 6.1).
pub const MAXIMUM_KEY_LENGTH: usize = 63;
/// Longest value in bytes: the largest that the standard asks for (section 6.1, binary values).
pub const MAXIMUM_VALUE_LENGTH: usize = 8192;
/// Most keys of one request. The standard knows some thirty.
pub const MAXIMUM_KEYS: usize = 64;
/// Most text of one request over all its continuations.
pub const MAXIMUM_TEXT_LENGTH: usize = 16 * 1024;

/// One key with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyValue<'a> {
    /// Key name, of letters, digits and `.-+@_#`.
    pub key: &'a str,
    /// Value as sent, perhaps empty.
    pub value: &'a str,
}

/// Cuts a whole text into its keys, in their order.
///
/// # Errors
/// Text that breaks the form or the limits, or names a key twice.
pub fn parse_keys(bytes: &[u8]) -> Result<Vec<KeyValue<'_>>, TextError> {
    let mut keys: Vec<KeyValue<'_>> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == 0).ok_or(TextError::Unterminated)?;
        let (pair, next) = (&rest[..end], &rest[end + 1..]);
        rest = next;
        if pair.is_empty() {
            // Some initiators end their text with more than one NUL.
            continue;
        }
        let pair = std::str::from_utf8(pair).map_err(|_| TextError::NotUtf8)?;
        let (key, value) = pair.split_once('=').ok_or(TextError::NoValue)?;
        if key.is_empty() || key.len() > MAXIMUM_KEY_LENGTH || !key.bytes().all(is_key_byte) {
            return Err(TextError::KeyName);
        }
        if value.len() > MAXIMUM_VALUE_LENGTH {
            return Err(TextError::ValueTooLong);
        }
        if keys.len() == MAXIMUM_KEYS {
            return Err(TextError::TooManyKeys);
        }
        if keys.iter().any(|earlier| earlier.key == key) {
            return Err(TextError::Repeated);
        }
        keys.push(KeyValue { key, value });
    }
    Ok(keys)
}

/// Why a text can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The last value lacks its NUL.
    #[error("text does not end with a NUL")]
    Unterminated,
    /// Not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A key without `=`.
    #[error("a key has no value")]
    NoValue,
    /// A key name of a wrong form or length.
    #[error("a key name is malformed")]
    KeyName,
    /// A value above [`MAXIMUM_VALUE_LENGTH`].
    #[error("a value is too long")]
    ValueTooLong,
    /// More than [`MAXIMUM_KEYS`].
    #[error("too many keys")]
    TooManyKeys,
    /// More than [`MAXIMUM_TEXT_LENGTH`].
    #[error("too much text")]
    TooLong,
    /// The same key twice.
    #[error("a key appears twice")]
    Repeated,
}

/// Collects the text of a request that is continued over several PDUs (the C bit).
#[derive(Debug, Default)]
pub struct TextAssembler(Vec<u8>);

impl TextAssembler {
    /// Adds the data segment of one PDU.
    ///
    /// # Errors
    /// [`TextError::TooLong`].
    pub fn append(&mut self, data: &[u8]) -> Result<(), TextError> {
        if self.0.len() + data.len() > MAXIMUM_TEXT_LENGTH {
            return Err(TextError::TooLong);
        }
        self.0.extend_from_slice(data);
        Ok(())
    }

    /// The whole text; the assembler is empty afterwards.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Text to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextWriter(Vec<u8>);

impl TextWriter {
    /// Adds `key=value` and its NUL. A NUL inside the value, which could only come from a
    /// configuration, is left out.
    pub fn push(&mut self, key: &str, value: &str) {
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        self.0.extend(value.bytes().filter(|byte| *byte != 0));
        self.0.push(0);
    }

    /// The text so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Ends writing.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// `Yes` or `No`.
#[must_use]
pub fn parse_boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// A boolean as it is sent.
#[must_use]
pub fn boolean_text(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

/// A decimal or hexadecimal number of at most 32 bits; all numbers of the standard are smaller.
#[must_use]
pub fn parse_number(value: &str) -> Option<u32> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    // A sign would pass the library's parser.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// A binary value in hexadecimal (`0x`) or base64 (`0b`) of 1 to `maximum` bytes; an odd number of
/// hexadecimal digits is refused.
#[must_use]
pub fn parse_binary(value: &str, maximum: usize) -> Option<Vec<u8>> {
    let (encoding, digits) = value.split_at_checked(2)?;
    // Base64 is the denser encoding: four digits for three bytes.
    if digits.is_empty() || digits.len() > maximum.saturating_mul(2).saturating_add(4) {
        return None;
    }
    let bytes = match encoding {
        "0x" | "0X" => parse_hexadecimal(digits)?,
        "0b" | "0B" => base64::engine::general_purpose::STANDARD.decode(digits).ok()?,
        _ => return None,
    };
    (!bytes.is_empty() && bytes.len() <= maximum).then_some(bytes)
}

/// A binary value in hexadecimal, as it is sent.
#[must_use]
pub fn binary_text(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn parse_hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?)).collect()
}

fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-+@_#".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_into_keys() {
        let keys = parse_keys(b"A=1\0B=\0C=x=y\0").unwrap();
        let pairs: Vec<_> = keys.iter().map(|pair| (pair.key, pair.value)).collect();
        assert_eq!(pairs, [("A", "1"), ("B", ""), ("C", "x=y")]);
        assert_eq!(parse_keys(b""), Ok(vec![]));
        assert_eq!(parse_keys(b"A=1\0\0").unwrap().len(), 1);
    }

    #[test]
    fn broken_text_is_an_error() {
        assert_eq!(parse_keys(b"A=1"), Err(TextError::Unterminated));
        assert_eq!(parse_keys(b"A=1\0B=2"), Err(TextError::Unterminated));
        assert_eq!(parse_keys(b"A\0"), Err(TextError::NoValue));
        assert_eq!(parse_keys(b"=1\0"), Err(TextError::KeyName));
        assert_eq!(parse_keys(b"A b=1\0"), Err(TextError::KeyName));
        assert_eq!(parse_keys(b"A=\xff\0"), Err(TextError::NotUtf8));
        assert_eq!(parse_keys(b"A=1\0A=1\0"), Err(TextError::Repeated));
        let key = |length: usize| format!("{}=1\0", "k".repeat(length)).into_bytes();
        assert!(parse_keys(&key(63)).is_ok());
        assert_eq!(parse_keys(&key(64)), Err(TextError::KeyName));
        let value = |length: usize| format!("K={}\0", "v".repeat(length)).into_bytes();
        assert!(parse_keys(&value(8192)).is_ok());
        assert_eq!(parse_keys(&value(8193)), Err(TextError::ValueTooLong));
        let many =
            |count: usize| (0..count).flat_map(|i| format!("K{i}=\0").into_bytes()).collect::<Vec<_>>();
        assert_eq!(parse_keys(&many(64)).unwrap().len(), 64);
        assert_eq!(parse_keys(&many(65)), Err(TextError::TooManyKeys));
        assert_eq!(parse_keys(&many(10_000)), Err(TextError::TooManyKeys));
    }

    #[test]
    fn assembled_text_has_a_limit() {
        let mut assembler = TextAssembler::default();
        assembler.append(&[b'x'; 8192]).unwrap();
        assembler.append(&[b'x'; 8192]).unwrap();
        assert_eq!(assembler.append(b"x"), Err(TextError::TooLong));
        assert_eq!(assembler.take().len(), MAXIMUM_TEXT_LENGTH);
        assert!(assembler.take().is_empty());
    }

    #[test]
    fn numbers_and_binary_values() {
        assert_eq!(parse_number("4294967295"), Some(u32::MAX));
        assert_eq!(parse_number("0x10"), Some(16));
        for bad in ["", "0x", "-1", "+1", "4294967296", "1a", " 1", "0b1", "99999999999999999999"] {
            assert_eq!(parse_number(bad), None, "{bad}");
        }
        assert_eq!(parse_binary("0x00fF", 2), Some(vec![0, 255]));
        assert_eq!(parse_binary("0bAP8=", 2), Some(vec![0, 255]));
        for bad in ["", "0", "0x", "0b", "0x0", "0x123", "0xzz", "0b====", "0bA", "255", "0x010203", "0bAAAA"]
        {
            assert_eq!(parse_binary(bad, 2), None, "{bad}");
        }
        assert_eq!(parse_binary(&binary_text(&[1, 171]), 2), Some(vec![1, 171]));
        assert_eq!(parse_binary("\u{20ac}x00", 4), None);
    }
}
