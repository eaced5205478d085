//! Sizes as people write them: `512M`, `10G`, `2T` are powers of two.

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a size: write a whole number of bytes, or one with K, M, G, T or P such as 512M or 10G"
)]
pub struct SizeError(String);

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// Bytes that `text` stands for. `K` to `P` are powers of 1024; `B` or `iB` may follow them.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let refuse = || SizeError(text.to_owned());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| refuse())?;
    let unit = text[digits..].to_ascii_uppercase();
    let unit = unit.strip_suffix("IB").filter(|unit| !unit.is_empty()).unwrap_or(&unit);
    let unit = unit.strip_suffix('B').unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        _ => UNITS.iter().find(|(name, _)| unit.chars().eq([*name])).ok_or_else(refuse)?.1,
    };
    number.checked_mul(1 << shift).ok_or_else(refuse)
}

/// `bytes` for people: exact where it is a round number of a unit, else with one decimal.
#[must_use]
pub fn show(bytes: u64) -> String {
    let Some((name, shift)) = UNITS.iter().rev().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes}B");
    };
    let unit = 1u64 << shift;
    if bytes.is_multiple_of(unit) {
        return format!("{}{name}", bytes / unit);
    }
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    format!("{}.{}{name}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("10g", 10 << 30),
            ("2TiB", 2 << 40),
            ("1KB", 1024),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "G", "-1", "1.5G", "10X", "10 G", "iB", "1iB", "99999999999999999999", "20000000T", "1Gé"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shows_what_it_parses() {
        assert_eq!(show(10 << 30), "10G");
        assert_eq!(show(512), "512B");
        assert_eq!(show((1 << 30) + (1 << 29)), "1.5G");
        assert_eq!(show(u64::MAX), "16383.9P");
    }
}
