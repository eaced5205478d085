//! iSCSI names (RFC 7143 section 4.2.7): checked once, then compared byte by byte.

use std::rc::Rc;

/// Longest iSCSI name in bytes.
pub const MAXIMUM_NAME_LENGTH: usize = 223;

/// A valid iSCSI name in the normal form that comparison needs (lower case). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IscsiName(Rc<str>);

impl IscsiName {
    /// Checks and normalises a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.len() > MAXIMUM_NAME_LENGTH {
            return Err(NameError::TooLong);
        }
        let normal = name.to_ascii_lowercase();
        let (kind, rest) = normal.split_at_checked(4).ok_or(NameError::Format)?;
        if !normal.chars().all(is_permitted) {
            return Err(NameError::Character);
        }
        let is_hexadecimal = || rest.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_valid = match kind {
            "iqn." => is_dated_authority(rest),
            "eui." => rest.len() == 16 && is_hexadecimal(),
            "naa." => matches!(rest.len(), 16 | 32) && is_hexadecimal(),
            _ => false,
        };
        if is_valid { Ok(Self(normal.into())) } else { Err(NameError::Format) }
    }

    /// The name as it goes to the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for IscsiName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Debug for IscsiName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not an iSCSI name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// More than 223 bytes.
    #[error("an iSCSI name has at most {MAXIMUM_NAME_LENGTH} bytes")]
    TooLong,
    /// A character that the stringprep profile of RFC 3722 prohibits.
    #[error("an iSCSI name has letters, digits, '-', '.' and ':' only")]
    Character,
    /// Neither iqn., eui. nor naa. in their forms.
    #[error("an iSCSI name has the form iqn.YYYY-MM.REVERSED.DOMAIN:NAME, eui.16HEX or naa.16HEX")]
    Format,
}

/// `yyyy-mm.` and something behind it, up to a colon at least one byte long.
fn is_dated_authority(rest: &str) -> bool {
    let bytes = rest.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
    };
    let is_dated = digits(0..4) && bytes.get(4) == Some(&b'-') && digits(5..7) && bytes.get(7) == Some(&b'.');
    is_dated && bytes.get(8).is_some_and(|first| *first != b':')
}

/// ASCII as RFC 3722 leaves it, and the underscore, which initiators made from host names use in
/// spite of it. Beyond ASCII everything but control characters and spaces passes: such a name is
/// compared as it is.
fn is_permitted(character: char) -> bool {
    match character {
        'a'..='z' | '0'..='9' | '-' | '.' | ':' | '_' => true,
        other => !other.is_ascii() && !other.is_control() && !other.is_whitespace(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_normalised() {
        let name = |text: &str| IscsiName::new(text);
        assert_eq!(name("IQN.1998-01.com.VMware:Esx").unwrap().as_str(), "iqn.1998-01.com.vmware:esx");
        assert!(name("eui.02004567a425678d").is_ok());
        assert!(name("naa.52004567ba64678d").is_ok());
        assert!(name("naa.62004567ba64678d0123456789abcdef").is_ok());
        for bad in ["", "iqn", "iqn.", "iqn.2001", "iqn.2001-4.x", "iqn.2001-04.", "iqn.2001-04.:x", "eui.12"]
        {
            assert_eq!(name(bad), Err(NameError::Format), "{bad}");
        }
        assert_eq!(name("iqn.2001-04.com x"), Err(NameError::Character));
        assert_eq!(name("iqn.2001-04.com/x"), Err(NameError::Character));
        let long = format!("iqn.2001-04.com:{}", "x".repeat(MAXIMUM_NAME_LENGTH - 16));
        assert_eq!(long.len(), 223);
        assert!(name(&long).is_ok());
        assert_eq!(name(&format!("{long}y")), Err(NameError::TooLong));
    }
}
