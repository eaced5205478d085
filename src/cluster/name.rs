//! Names of clusters, nodes, volumes and initiators, checked once when they are parsed.
//!
//! Guarantees: a [`ClusterName`] and a [`VolumeName`] together always make a legal iSCSI name (RFC
//! 7143 section 4.2.7, at most 223 bytes), and no two pairs make the same one, because neither
//! contains a colon. An [`InitiatorName`] is legal and in its normal form, so equal names are equal
//! strings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest iSCSI name, in bytes (RFC 7143 section 4.2.7.2).
pub const LONGEST_ISCSI_NAME_BYTES: usize = 223;

/// What every target name of this product begins with.
pub const TARGET_NAME_PREFIX: &str = "iqn.2026-11.io.gemel:";

/// Why a name was refused; the message says what a good one looks like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or more bytes than allowed.
    #[error("a {kind} name has 1 to {longest_bytes} characters, and this one has {length_bytes}")]
    Length {
        /// What is named.
        kind: &'static str,
        /// Most bytes allowed.
        longest_bytes: usize,
        /// Bytes of the name refused.
        length_bytes: usize,
    },
    /// A character that the name can't hold.
    #[error("a {kind} name holds {allowed}, not {found:?}")]
    Character {
        /// What is named.
        kind: &'static str,
        /// What is allowed, in words.
        allowed: &'static str,
        /// The first character that is not.
        found: char,
    },
    /// It begins or ends with a punctuation mark.
    #[error("a {kind} name begins and ends with a letter or a digit")]
    Edge {
        /// What is named.
        kind: &'static str,
    },
    /// Not one of the three forms of iSCSI names.
    #[error(
        "{name:?} is not an iSCSI name: use iqn.YYYY-MM.REVERSED-DOMAIN[:STRING], eui. with 16 \
         hexadecimal digits, or naa. with 16 or 32"
    )]
    IscsiForm {
        /// The name refused.
        name: String,
    },
}

/// Declares a string type whose values all passed its `check`.
macro_rules! checked_name {
    ($(#[$documentation:meta])* $name:ident, $check:path) => {
        $(#[$documentation])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                $check(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(
    /// Name of a cluster: 1 to 63 lower-case letters, digits, hyphens and dots.
    ClusterName,
    check_cluster
);
checked_name!(
    /// Name of a node: 1 to 63 lower-case letters, digits and hyphens, as in a host name.
    NodeName,
    check_node
);
checked_name!(
    /// Name of a volume: 1 to 128 lower-case letters, digits, hyphens and dots.
    VolumeName,
    check_volume
);
checked_name!(
    /// Name of an alert: 1 to 63 lower-case letters, digits and hyphens.
    AlertName,
    check_alert
);
checked_name!(
    /// Name of a user: 1 to 63 lower-case letters, digits, hyphens and dots.
    UserName,
    check_user
);
checked_name!(
    /// Name of a user's token: 1 to 63 lower-case letters, digits and hyphens.
    TokenName,
    check_token
);
checked_name!(
    /// Name of a host group: 1 to 63 lower-case letters, digits and hyphens.
    HostGroupName,
    check_host_group
);
checked_name!(
    /// Name of an initiator, in lower case: `iqn.`, `eui.` or `naa.` form.
    InitiatorName,
    check_initiator
);

/// The iSCSI target name of a volume.
#[must_use]
pub fn target_name(cluster: &ClusterName, volume: &VolumeName) -> String {
    format!("{TARGET_NAME_PREFIX}{cluster}:{volume}")
}

fn check_cluster(text: &str) -> Result<String, NameError> {
    check_label("cluster", LONGEST_CLUSTER_NAME_BYTES, DOTTED, text)
}

fn check_volume(text: &str) -> Result<String, NameError> {
    check_label("volume", LONGEST_VOLUME_NAME_BYTES, DOTTED, text)
}

fn check_node(text: &str) -> Result<String, NameError> {
    check_label("node", LONGEST_NODE_NAME_BYTES, UNDOTTED, text)
}

fn check_alert(text: &str) -> Result<String, NameError> {
    check_label("alert", LONGEST_NODE_NAME_BYTES, UNDOTTED, text)
}

fn check_user(text: &str) -> Result<String, NameError> {
    check_label("user", LONGEST_NODE_NAME_BYTES, DOTTED, text)
}

fn check_token(text: &str) -> Result<String, NameError> {
    check_label("token", LONGEST_NODE_NAME_BYTES, UNDOTTED, text)
}

fn check_host_group(text: &str) -> Result<String, NameError> {
    check_label("host group", LONGEST_NODE_NAME_BYTES, UNDOTTED, text)
}

/// Punctuation that a name may hold inside, and the whole rule in words.
type Alphabet = (&'static str, &'static str);
const DOTTED: Alphabet = ("-.", "lower-case letters a to z, digits, hyphens and dots");
const UNDOTTED: Alphabet = ("-", "lower-case letters a to z, digits and hyphens");

fn check_label(
    kind: &'static str,
    longest_bytes: usize,
    (punctuation, allowed): Alphabet,
    text: &str,
) -> Result<String, NameError> {
    let length_bytes = text.len();
    if length_bytes == 0 || length_bytes > longest_bytes {
        return Err(NameError::Length { kind, longest_bytes, length_bytes });
    }
    let is_plain = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    if let Some(found) =
        text.chars().find(|character| !is_plain(*character) && !punctuation.contains(*character))
    {
        return Err(NameError::Character { kind, allowed, found });
    }
    if !text.starts_with(is_plain) || !text.ends_with(is_plain) {
        return Err(NameError::Edge { kind });
    }
    Ok(text.to_owned())
}

/// Checks and normalises an initiator's name. Letters fold to lower case, as the stringprep profile
/// of RFC 3722 does; of its alphabet only the ASCII part is taken, and besides the underscore, which
/// initiators use that are named after their host.
fn check_initiator(text: &str) -> Result<String, NameError> {
    let kind = "initiator";
    let length_bytes = text.len();
    if length_bytes == 0 || length_bytes > LONGEST_ISCSI_NAME_BYTES {
        return Err(NameError::Length { kind, longest_bytes: LONGEST_ISCSI_NAME_BYTES, length_bytes });
    }
    let name = text.to_ascii_lowercase();
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || "-.:_".contains(character);
    if let Some(found) = name.chars().find(|character| !is_allowed(*character)) {
        let allowed = "letters a to z, digits, hyphens, dots, colons and underscores";
        return Err(NameError::Character { kind, allowed, found });
    }
    let is_hexadecimal = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let is_legal = match name.split_at_checked(4) {
        Some(("iqn.", rest)) => is_qualified(rest),
        Some(("eui.", digits)) => digits.len() == 16 && is_hexadecimal(digits),
        Some(("naa.", digits)) => matches!(digits.len(), 16 | 32) && is_hexadecimal(digits),
        _ => false,
    };
    if is_legal { Ok(name) } else { Err(NameError::IscsiForm { name }) }
}

/// Whether `rest` is what follows `iqn.`: the month in which the naming authority owned its domain,
/// the domain reversed, and optionally a colon and anything.
fn is_qualified(rest: &str) -> bool {
    let (authority, suffix) = match rest.split_once(':') {
        Some((authority, suffix)) => (authority, Some(suffix)),
        None => (rest, None),
    };
    let Some((month, domain)) = authority.split_once('.') else { return false };
    is_month(month) && domain.split('.').all(|label| !label.is_empty()) && suffix != Some("")
}

fn is_month(text: &str) -> bool {
    let Some((year, month)) = text.split_once('-') else { return false };
    let is_number =
        |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number(year, 4) && is_number(month, 2) && ("01"..="12").contains(&month)
}

const LONGEST_CLUSTER_NAME_BYTES: usize = 63;
const LONGEST_NODE_NAME_BYTES: usize = 63;
const LONGEST_VOLUME_NAME_BYTES: usize = 128;

const _: () = assert!(
    TARGET_NAME_PREFIX.len() + LONGEST_CLUSTER_NAME_BYTES + 1 + LONGEST_VOLUME_NAME_BYTES
        <= LONGEST_ISCSI_NAME_BYTES
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_target_name_can_hold() {
        for good in ["a", "vm-17", "oracle.rac-1", "0", &"x".repeat(128)] {
            assert_eq!(good.parse::<VolumeName>().unwrap().as_str(), good);
        }
        assert!(matches!("".parse::<VolumeName>(), Err(NameError::Length { length_bytes: 0, .. })));
        assert!(matches!("x".repeat(129).parse::<VolumeName>(), Err(NameError::Length { .. })));
        for (bad, found) in [("Vm", 'V'), ("a:b", ':'), ("a b", ' '), ("é", 'é'), ("a/b", '/'), ("a_b", '_')]
        {
            let error = bad.parse::<VolumeName>().unwrap_err();
            assert!(matches!(error, NameError::Character { found: first, .. } if first == found), "{error}");
        }
        for bad in ["-a", "a-", ".", "a."] {
            assert_eq!(bad.parse::<VolumeName>(), Err(NameError::Edge { kind: "volume" }));
        }
        assert!("a.b".parse::<NodeName>().is_err());
    }

    #[test]
    fn the_longest_target_name_is_legal() {
        let cluster = "c".repeat(63).parse().unwrap();
        let volume = "v".repeat(128).parse().unwrap();
        let name = target_name(&cluster, &volume);
        assert!(name.len() <= LONGEST_ISCSI_NAME_BYTES);
        assert!(name.parse::<InitiatorName>().is_ok(), "{name}");
    }

    #[test]
    fn initiator_names_are_normalised() {
        for (given, normal) in [
            ("iqn.1993-08.org.debian:01:a5b4", "iqn.1993-08.org.debian:01:a5b4"),
            ("iqn.1991-05.com.Microsoft:HOST_1.example", "iqn.1991-05.com.microsoft:host_1.example"),
            ("IQN.1998-01.com.vmware:esx1-4F7A", "iqn.1998-01.com.vmware:esx1-4f7a"),
            ("iqn.2013-07.org.example", "iqn.2013-07.org.example"),
            ("eui.02004567A425678D", "eui.02004567a425678d"),
            ("naa.52004567BA64678D", "naa.52004567ba64678d"),
            ("naa.62004567BA64678D0123456789ABCDEF", "naa.62004567ba64678d0123456789abcdef"),
        ] {
            assert_eq!(given.parse::<InitiatorName>().unwrap().as_str(), normal);
        }
        for bad in [
            "",
            "iqn.",
            "iqn.2026",
            "iqn.2026-13.org.example",
            "iqn.2026-00.org.example",
            "iqn.2026-1.org",
            "iqn.20x6-01.org",
            "iqn.2026-01.",
            "iqn.2026-01..org",
            "iqn.2026-01.org.:x",
            "iqn.2026-01.org:",
            "iqn.2026-01",
            "eui.0200",
            "eui.02004567A425678G",
            "naa.123",
            "host",
            "iqn.2026-01.org:a b",
            "iqn.2026-01.org:ü",
            "*",
        ] {
            assert!(bad.parse::<InitiatorName>().is_err(), "{bad}");
        }
        let long = format!("iqn.2026-01.org:{}", "x".repeat(LONGEST_ISCSI_NAME_BYTES - 16));
        assert!(long.parse::<InitiatorName>().is_ok());
        assert!(format!("{long}x").parse::<InitiatorName>().is_err());
    }

    #[test]
    fn names_read_from_outside_are_checked() {
        assert!(serde_json::from_str::<VolumeName>("\"fine\"").is_ok());
        assert!(serde_json::from_str::<VolumeName>("\"not fine\"").is_err());
    }
}
