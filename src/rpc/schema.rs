//! What the management service's messages are made of: their fields in words, for the REST API, its description and the
//! console's forms. It is made from `proto/management.proto` when the program is built, so it is never out of date.
//!
//! Texts become values here, and nowhere else: [`read`] makes a request's JSON of the fields of a form or an address.

use serde_json::{Map, Value};

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// A message.
#[derive(Debug)]
pub struct Message {
    /// Its name.
    pub name: &'static str,
    /// What the protocol file says of it.
    pub about: &'static str,
    /// What is in it.
    pub fields: &'static [Field],
}

/// A part of a message.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What the protocol file says of it.
    pub about: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether it holds any number of these.
    pub is_list: bool,
    /// Whether there is a difference between absent and empty.
    pub is_optional: bool,
    /// Whether it is taken and never given.
    pub is_hidden: bool,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// True or false.
    YesNo,
    /// A whole number, at most this.
    Number(u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// A message of this name.
    Message(&'static str),
}

/// A call of the service.
#[derive(Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// What the protocol file says of it.
    pub about: &'static str,
    /// What it takes.
    pub request: &'static str,
    /// What it gives.
    pub response: &'static str,
}

/// Why texts are no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No such field.
    #[error("there is no field {0}")]
    Unknown(String),
    /// A text that is no value of its field.
    #[error("{field}: {reason}")]
    Value {
        /// The field.
        field: String,
        /// What is wrong.
        reason: String,
    },
}

/// A message by its name.
#[must_use]
pub fn message(name: &str) -> Option<&'static Message> {
    MESSAGES.iter().find(|message| message.name == name)
}

/// A call by its name.
#[must_use]
pub fn call(name: &str) -> Option<&'static Call> {
    CALLS.iter().find(|call| call.name == name)
}

/// The JSON of the message `name` with these fields. Those of a message within it are written with a dot
/// (`schedule.keep`). Sizes may have units, times be dates; a list is written with commas. What is empty is not there.
///
/// # Errors
/// [`ReadError`].
pub fn read<'a>(
    name: &str,
    fields: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Map<String, Value>, ReadError> {
    let mut object = Map::new();
    for (path, text) in fields {
        let unknown = || ReadError::Unknown(path.to_owned());
        let field = field(name, path).ok_or_else(unknown)?;
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        let (within, last) =
            path.rsplit_once('.').map_or((None, path), |(within, last)| (Some(within), last));
        let mut place = &mut object;
        for part in within.iter().flat_map(|within| within.split('.')) {
            let inner = place.entry(part).or_insert_with(|| Value::Object(Map::new()));
            place = inner.as_object_mut().ok_or_else(unknown)?;
        }
        place.insert(last.to_owned(), value(path, field, text)?);
    }
    Ok(object)
}

/// The field of the message `name` that is meant by a path, and is no message itself.
fn field(name: &str, path: &str) -> Option<&'static Field> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let found = message(name)?.fields.iter().find(|field| field.name == first)?;
    match (found.kind, rest) {
        (Kind::Message(inner), Some(rest)) => field(inner, rest),
        (Kind::Message(_), None) | (_, Some(_)) => None,
        (_, None) => Some(found),
    }
}

fn value(path: &str, field: &Field, text: &str) -> Result<Value, ReadError> {
    let one = |text: &str| {
        let refused = |reason: String| ReadError::Value { field: path.to_owned(), reason };
        Ok(match field.kind {
            Kind::YesNo => match text {
                "true" | "on" | "1" | "yes" => Value::Bool(true),
                "false" | "off" | "0" | "no" => Value::Bool(false),
                _ => return Err(refused(format!("{text:?} is neither true nor false"))),
            },
            Kind::Number(most) => {
                let number = number(field.name, text).map_err(refused)?;
                if number > most {
                    return Err(refused(format!("{number} is more than {most}")));
                }
                number.into()
            }
            Kind::Word(words) if !words.contains(&text) => {
                return Err(refused(format!("{text:?} is none of {}", words.join(", "))));
            }
            Kind::Word(_) | Kind::Text | Kind::Message(_) => text.into(),
        })
    };
    if !field.is_list {
        return one(text);
    }
    let parts = text.split([',', ' ', '\n', '\r']).filter(|part| !part.is_empty());
    Ok(Value::Array(parts.map(one).collect::<Result<_, _>>()?))
}

/// A number, whose field's name says what it counts.
fn number(name: &str, text: &str) -> Result<u64, String> {
    if name.ends_with("_bytes") || name.ends_with("_bytes_per_second") {
        return super::size::parse(text).map_err(|error| error.to_string());
    }
    if name.ends_with("_seconds") && !text.bytes().all(|byte| byte.is_ascii_digit()) {
        let duration = humantime::parse_duration(text)
            .map_err(|_| format!("{text:?} is no length of time, as 1h or 30d"))?;
        return Ok(duration.as_secs());
    }
    if name.ends_with("_ms") && text.contains('-') {
        // A date is meant as its end.
        let text = if text.len() == 10 { format!("{text}T23:59:59Z") } else { text.to_owned() };
        let time = humantime::parse_rfc3339_weak(&text)
            .map_err(|_| format!("{text:?} is no date, as 2030-12-31"))?;
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        return u64::try_from(since.as_millis()).map_err(|error| error.to_string());
    }
    text.parse().map_err(|_| format!("{text:?} is no whole number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(name: &str, fields: &[(&str, &str)]) -> Result<String, String> {
        let read = read(name, fields.iter().copied()).map_err(|error| error.to_string())?;
        Ok(Value::Object(read).to_string())
    }

    #[test]
    fn texts_become_requests() {
        let volume = [("name", " v "), ("size_bytes", "10G"), ("local", "on"), ("primary", "")];
        assert_eq!(
            json("CreateVolumeRequest", &volume).unwrap(),
            r#"{"local":true,"name":"v","size_bytes":10737418240}"#
        );
        let schedule = [("volume", "v"), ("schedule.every_seconds", "1h"), ("schedule.keep", "24")];
        assert_eq!(
            json("SetSnapshotScheduleRequest", &schedule).unwrap(),
            r#"{"schedule":{"every_seconds":3600,"keep":24},"volume":"v"}"#
        );
        // What is left empty is not there, nor is what it would be in.
        let chap = [("incoming.user", "x"), ("outgoing.user", ""), ("outgoing.secret", " ")];
        assert_eq!(json("SetChapRequest", &chap).unwrap(), r#"{"incoming":{"user":"x"}}"#);
        let to = json("SetAlertRequest", &[("alert.mail.to", "a@x, b@x"), ("alert.severity", "error")]);
        assert_eq!(to.unwrap(), r#"{"alert":{"mail":{"to":["a@x","b@x"]},"severity":"error"}}"#);
        let until = json("CreateSnapshotRequest", &[("protected_until_ms", "1970-01-02")]);
        assert_eq!(until.unwrap(), r#"{"protected_until_ms":172799000}"#);
    }

    #[test]
    fn other_texts_do_not() {
        for (name, fields, reason) in [
            ("CreateVolumeRequest", ("size_bytes", "ten"), "not a size"),
            ("CreateVolumeRequest", ("sector_bytes", "4294967296"), "more than 4294967295"),
            ("CreateVolumeRequest", ("colour", "red"), "no field colour"),
            ("SetAlertRequest", ("alert", "x"), "no field alert"),
            ("SetAlertRequest", ("alert.severity", "bad"), "none of info, warning, error"),
            ("ResizeVolumeRequest", ("shrink", "perhaps"), "neither"),
            ("Nothing", ("x", "y"), "no field"),
        ] {
            let error = json(name, &[fields]).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn the_protocol_file_says_what_everything_is() {
        let volume = message("Volume").unwrap();
        let target = volume.fields.iter().find(|field| field.name == "target").unwrap();
        assert!(target.about.contains("the volume is LUN 0"), "{}", target.about);
        let state = volume.fields.iter().find(|field| field.name == "state").unwrap();
        assert_eq!(state.kind, Kind::Word(&["in-sync", "resyncing", "solo", "offline"]));
        for call in CALLS {
            assert!(message(call.request).is_some() && message(call.response).is_some(), "{call:?}");
        }
        let password = message("MailAlert").unwrap().fields.iter().find(|field| field.name == "password");
        assert!(password.unwrap().is_hidden);
    }
}
