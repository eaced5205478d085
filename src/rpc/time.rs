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

/// Milliseconds since the Unix epoch in RFC 3339, UTC, to the second.
#[must_use]
pub fn show_seconds(unix_ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_MS));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A length of time for people, in its two largest units.
#[must_use]
pub fn show_duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_number_can_be_shown() {
        assert_eq!(super::show(1_500), "1970-01-01T00:00:01.500Z");
        assert_eq!(super::show_seconds(1_500), "1970-01-01T00:00:01Z");
        assert_eq!(super::show(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn durations_keep_two_units() {
        assert_eq!(super::show_duration(59), "59s");
        assert_eq!(super::show_duration(3_700), "1h01m");
        assert_eq!(super::show_duration(90_000), "1d01h");
    }
}
