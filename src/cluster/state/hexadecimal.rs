//! Opaque bytes as hexadecimal text, which is a fraction of what a list of numbers takes.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    let text: String = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
    serializer.serialize_str(&text)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let value = |digit: &u8| char::from(*digit).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let decoded: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| Some((value(high)? << 4 | value(low)?) as u8)).collect();
    decoded.filter(|_| rest.is_empty()).ok_or_else(|| D::Error::custom("not pairs of hexadecimal digits"))
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(transparent)]
    struct Opaque(#[serde(with = "super")] Vec<u8>);

    #[test]
    fn bytes_come_back_and_other_text_is_refused() {
        let all = Opaque((0..=255).collect());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(text.len(), 514);
        assert_eq!(serde_json::from_str::<Opaque>(&text).unwrap(), all);
        for bad in ["\"0\"", "\"0g\"", "\"+1\"", "\"é\"", "[1]"] {
            assert!(serde_json::from_str::<Opaque>(bad).is_err(), "{bad}");
        }
    }
}
