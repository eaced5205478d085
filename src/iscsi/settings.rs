//! What a target offers, and what a connection has agreed on.

use std::time::Duration;

use super::pdu::Digests;
use super::pdu::header::MAXIMUM_DATA_SEGMENT_LENGTH;

/// Limits and offers of the target side, the same for all its connections.
#[derive(Clone, Debug)]
pub struct TargetSettings {
    /// Our MaxRecvDataSegmentLength in bytes.
    pub receive_data_segment_length: u32,
    /// Largest MaxBurstLength that we agree to, in bytes.
    pub burst_length: u32,
    /// Largest FirstBurstLength that we agree to, in bytes.
    pub first_burst_length: u32,
    /// Largest MaxOutstandingR2T that we agree to.
    pub outstanding_r2t: u16,
    /// Commands of a session in work at a time; the command window follows from it.
    pub queue_depth: u32,
    /// Most data of one command that is received or returned, in bytes. A command that announces more
    /// transfers only so much.
    pub transfer_length: u32,
    /// Whether we agree to header digests.
    pub header_digest: DigestOffer,
    /// Whether we agree to data digests.
    pub data_digest: DigestOffer,
    /// TargetAlias, sent at login unless empty.
    pub alias: String,
    /// Time from connection to full feature phase.
    pub login_timeout: Duration,
    /// Silence after which the initiator is pinged.
    pub ping_interval: Duration,
    /// Silence after the ping, or lack of progress in a transfer, that ends the connection.
    pub ping_timeout: Duration,
    /// Time that initiators get to log out when they are asked to.
    pub logout_timeout: Duration,
}

/// How a digest is agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestOffer {
    /// The initiator's first choice is taken.
    Allow,
    /// CRC32C wherever the initiator can.
    Prefer,
    /// Never.
    Refuse,
}

impl Default for TargetSettings {
    fn default() -> Self {
        Self {
            receive_data_segment_length: 256 << 10,
            burst_length: 1 << 20,
            first_burst_length: 256 << 10,
            outstanding_r2t: 8,
            queue_depth: 128,
            transfer_length: 8 << 20,
            header_digest: DigestOffer::Allow,
            data_digest: DigestOffer::Allow,
            alias: String::new(),
            login_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(15),
            logout_timeout: Duration::from_secs(3),
        }
    }
}

impl TargetSettings {
    /// Checks that the values fit the standard and one another.
    ///
    /// # Errors
    /// Names the value and its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let in_range = |name, value: u32, minimum, maximum| {
            let is_inside = (minimum..=maximum).contains(&value);
            if is_inside { Ok(()) } else { Err(SettingsError { name, value, minimum, maximum }) }
        };
        let segment_maximum = MAXIMUM_DATA_SEGMENT_LENGTH as u32;
        in_range("receive_data_segment_length", self.receive_data_segment_length, 8192, segment_maximum)?;
        in_range("burst_length", self.burst_length, 8192, segment_maximum)?;
        in_range("first_burst_length", self.first_burst_length, 512, self.burst_length)?;
        in_range("first_burst_length", self.first_burst_length, 512, self.transfer_length)?;
        in_range("outstanding_r2t", self.outstanding_r2t.into(), 1, 64)?;
        in_range("queue_depth", self.queue_depth, 1, 1024)?;
        in_range("transfer_length", self.transfer_length, 1 << 20, 1 << 26)?;
        let alias_bytes = u32::try_from(self.alias.len()).unwrap_or(u32::MAX);
        in_range("alias (bytes)", alias_bytes, 0, 255)
    }
}

/// A setting outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}, it must be {minimum} to {maximum}")]
pub struct SettingsError {
    /// Field of [`TargetSettings`].
    pub name: &'static str,
    /// Its value.
    pub value: u32,
    /// Smallest allowed.
    pub minimum: u32,
    /// Largest allowed.
    pub maximum: u32,
}

/// What login has agreed on. Starts with the defaults of RFC 7143 section 13.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Digests in use after login.
    pub digests: Digests,
    /// MaxRecvDataSegmentLength of the initiator: the longest data segment that we may send.
    pub send_data_segment_length: u32,
    /// MaxRecvDataSegmentLength that we have declared: the longest that we accept.
    pub receive_data_segment_length: u32,
    /// MaxBurstLength.
    pub burst_length: u32,
    /// FirstBurstLength, at most [`Self::burst_length`].
    pub first_burst_length: u32,
    /// InitialR2T: no unsolicited Data-Out.
    pub initial_r2t: bool,
    /// ImmediateData: data may come with the command.
    pub immediate_data: bool,
    /// MaxOutstandingR2T.
    pub outstanding_r2t: u16,
    /// DefaultTime2Wait in seconds.
    pub time_to_wait_s: u16,
    /// DefaultTime2Retain in seconds.
    pub time_to_retain_s: u16,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            digests: Digests::default(),
            send_data_segment_length: DEFAULT_DATA_SEGMENT_LENGTH,
            receive_data_segment_length: DEFAULT_DATA_SEGMENT_LENGTH,
            burst_length: 262_144,
            first_burst_length: 65_536,
            initial_r2t: true,
            immediate_data: true,
            outstanding_r2t: 1,
            time_to_wait_s: 2,
            time_to_retain_s: 20,
        }
    }
}

/// MaxRecvDataSegmentLength before anything else is declared, and throughout login.
pub const DEFAULT_DATA_SEGMENT_LENGTH: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_pass_their_own_check() {
        assert_eq!(TargetSettings::default().check(), Ok(()));
        let wrong = TargetSettings { first_burst_length: 2 << 20, ..TargetSettings::default() };
        assert_eq!(wrong.check().unwrap_err().name, "first_burst_length");
    }
}
