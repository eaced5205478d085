//! Who may log in to what: asked by login and discovery, answered by the daemon.

use super::names::IscsiName;

/// The administrator's decisions. Asked synchronously, so it answers from memory.
pub trait LoginPolicy {
    /// How `initiator` has to prove itself, for a normal session with `target` or (without one) for
    /// discovery. Asked before anything is known to be true about the initiator: for a pair that is
    /// not allowed it should answer as it does for others, so that nothing can be guessed from it.
    fn authentication(&self, initiator: &IscsiName, target: Option<&IscsiName>) -> Authentication;

    /// Whether the authenticated `initiator` may use `target` at `portal`.
    fn authorize(&self, initiator: &IscsiName, target: &IscsiName, portal: &Portal) -> Authorization;

    /// The targets that `initiator` may see, each with all its portals. `portal` is where the
    /// initiator is connected: the address to name for listeners on all interfaces.
    fn targets(&self, initiator: &IscsiName, portal: &Portal) -> Vec<DiscoveredTarget>;
}

/// What an initiator has to do before it is believed.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// AuthMethod=None.
    None,
    /// CHAP; and mutual CHAP where the initiator asks for it and `outgoing` is there.
    Chap {
        /// What the initiator proves that it knows.
        incoming: ChapCredential,
        /// What we prove that we know.
        outgoing: Option<ChapCredential>,
    },
}

/// A CHAP name and secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapCredential {
    /// CHAP_N.
    pub name: String,
    /// What both sides know.
    pub secret: ChapSecret,
}

/// A CHAP secret. Shows itself to nobody but the hash.
#[derive(Clone, PartialEq, Eq)]
pub struct ChapSecret(Vec<u8>);

impl ChapSecret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(secret: impl Into<Vec<u8>>) -> Self {
        Self(secret.into())
    }

    /// The bytes, for the hash.
    pub(super) fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for ChapSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChapSecret(hidden)")
    }
}

/// Answer to "may this initiator use this target?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorization {
    /// Yes.
    Granted,
    /// The initiator is not on the target's access list.
    Denied,
    /// There is no such target here, or none that this initiator should know of.
    NotFound,
    /// The target was deleted.
    Removed,
    /// The target exists but can't serve now.
    Unavailable,
    /// Yes, but for now at this `ADDRESS:PORT`.
    Moved(String),
}

/// A place where targets can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Portal {
    /// `ADDRESS:PORT`, with an IPv6 address in brackets.
    pub address: String,
    /// Target portal group tag.
    pub group_tag: u16,
}

/// A target as discovery shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// Its name.
    pub name: IscsiName,
    /// All places where it can be reached.
    pub portals: Vec<Portal>,
}
