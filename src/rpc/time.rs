//! Times as people and logs read them.

use std::time::{Duration, SystemTime};

/// The last millisecond that RFC 3339 can write: the end of the year 9999.
const LAST_MS: u64 = 253_402_300_799_999;

/// Milliseconds since the Unix epoch in RFC 3339, UTC.
#[must_use]
pub fn show(unix_ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_number_can_be_shown() {
        assert_eq!(super::show(1_500), "1970-01-01T00:00:01.500Z");
        assert_eq!(super::show(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
