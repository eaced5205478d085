//! What a UPS says, asked of `upsd` of Network UPS Tools by its text protocol (RFC 9271).
//!
//! Nothing is taken for granted of the other end: lines are bounded, and what is not understood is an error.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The port of `upsd` (RFC 9271 section 4).
const PORT: u16 = 3493;
/// How long all of an inquiry may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Most that is read in one inquiry.
const LONGEST: u64 = 16 << 10;

/// A UPS as NUT names it: `NAME@HOST` or `NAME@HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UpsAddress {
    ups: String,
    host: String,
    port: u16,
}

/// What a UPS says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// It has power.
    pub is_on_line: bool,
    /// It gives what its battery has.
    pub is_on_battery: bool,
    /// The battery is nearly empty.
    pub is_low: bool,
    /// It will be switched off, whatever comes.
    pub is_forced: bool,
    /// How full its battery is.
    pub charge_percent: Option<u32>,
    /// How long that lasts.
    pub runtime_seconds: Option<u64>,
}

/// Why nothing is known of a UPS.
#[derive(Debug, thiserror::Error)]
pub enum UpsdError {
    /// The connection.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It took too long.
    #[error("no answer")]
    Silent,
    /// `upsd` answered with an error (RFC 9271 section 4.1): `DATA-STALE` where it has lost the UPS itself.
    #[error("upsd says {0}")]
    Refused(String),
    /// Something that is no answer.
    #[error("upsd sent {0:?}")]
    Nonsense(String),
}

impl Reading {
    /// Asks.
    ///
    /// # Errors
    /// [`UpsdError`].
    pub async fn take(address: &UpsAddress) -> Result<Self, UpsdError> {
        tokio::time::timeout(LIMIT, ask(address)).await.unwrap_or(Err(UpsdError::Silent))
    }

    fn of_status(status: &str) -> Self {
        let has = |word: &str| status.split_whitespace().any(|part| part == word);
        Self {
            is_on_line: has("OL"),
            is_on_battery: has("OB"),
            is_low: has("LB"),
            is_forced: has("FSD"),
            ..Self::default()
        }
    }
}

async fn ask(address: &UpsAddress) -> Result<Reading, UpsdError> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(LONGEST));
    let mut values = Vec::new();
    for variable in ["ups.status", "battery.charge", "battery.runtime"] {
        writer.write_all(format!("GET VAR {} {variable}\n", address.ups).as_bytes()).await?;
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        values.push(value(&line, &address.ups, variable)?);
    }
    // Whoever does not hear it notices the end of the connection.
    let _ = writer.write_all(b"LOGOUT\n").await;
    let status = values[0].clone().ok_or_else(|| UpsdError::Refused("VAR-NOT-SUPPORTED".to_owned()))?;
    let number = |text: &Option<String>| {
        let number = text.as_ref()?.parse::<f64>().ok().filter(|number| (0.0..1e9).contains(number))?;
        Some(number as u64)
    };
    Ok(Reading {
        charge_percent: number(&values[1]).and_then(|percent| u32::try_from(percent).ok()),
        runtime_seconds: number(&values[2]),
        ..Reading::of_status(&status)
    })
}

/// The value of a variable; none where this UPS has no such variable.
fn value(line: &str, ups: &str, variable: &str) -> Result<Option<String>, UpsdError> {
    let line = line.trim_end();
    if let Some(error) = line.strip_prefix("ERR ") {
        return match error {
            "VAR-NOT-SUPPORTED" => Ok(None),
            error => Err(UpsdError::Refused(error.chars().take(64).collect())),
        };
    }
    let quoted =
        line.strip_prefix(&format!("VAR {ups} {variable} \"")).and_then(|rest| rest.strip_suffix('"'));
    match quoted {
        Some(value) => Ok(Some(value.replace("\\\"", "\"").replace("\\\\", "\\"))),
        None => Err(UpsdError::Nonsense(line.chars().take(64).collect())),
    }
}

impl FromStr for UpsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no UPS: write NAME@HOST or NAME@HOST:PORT, as in `upsc -l`");
        let (ups, place) = text.split_once('@').ok_or_else(bad)?;
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, PORT),
            Some((host, port)) => {
                (host, port.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or_else(bad)?)
            }
            None => match place.split_once(':') {
                Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
                None => (place, PORT),
            },
        };
        let is_word =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
        if is_word(ups) && is_word(host) {
            Ok(Self { ups: ups.to_owned(), host: host.to_owned(), port })
        } else {
            Err(bad())
        }
    }
}

impl TryFrom<String> for UpsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for UpsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ups, host, port } = self;
        match (*port == PORT, host.contains(':')) {
            (true, _) => write!(f, "{ups}@{host}"),
            (false, true) => write!(f, "{ups}@[{host}]:{port}"),
            (false, false) => write!(f, "{ups}@{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_others_refused() {
        let read = |line: &str| value(line, "ups", "ups.status").map_err(|error| error.to_string());
        assert_eq!(read("VAR ups ups.status \"OB LB\"\n"), Ok(Some("OB LB".to_owned())));
        assert_eq!(read("ERR VAR-NOT-SUPPORTED\n"), Ok(None));
        assert_eq!(read("ERR DATA-STALE\n"), Err("upsd says DATA-STALE".to_owned()));
        for nonsense in ["", "VAR other ups.status \"OL\"", "VAR ups ups.status \"OL", "OK"] {
            assert!(read(nonsense).unwrap_err().contains("upsd sent"), "{nonsense}");
        }
        assert_eq!(value("VAR ups x \"a\\\"b\"", "ups", "x").unwrap().unwrap(), "a\"b");
    }

    #[test]
    fn a_status_is_words() {
        let low = Reading::of_status("OB DISCHRG LB");
        assert_eq!(
            (low.is_on_line, low.is_on_battery, low.is_low, low.is_forced),
            (false, true, true, false)
        );
        assert!(Reading::of_status("FSD OB LB").is_forced);
        assert_eq!(Reading::of_status("OLB"), Reading::default(), "another word");
    }

    #[test]
    fn a_ups_is_named_as_by_its_own_tools() {
        let shown = |text: &str| text.parse::<UpsAddress>().map(|address| address.to_string());
        for text in ["ups@localhost", "a@192.0.2.1:3494", "a@[2001:db8::1]:9"] {
            assert_eq!(shown(text), Ok(text.to_owned()));
        }
        assert_eq!("a@[::1]".parse::<UpsAddress>().unwrap().port, 3493);
        for wrong in ["", "ups", "@x", "ups@", "ups@x:y", "u s@x", "u\"@x", "ups@[::1"] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }
}
