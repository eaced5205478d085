//! Who may use a volume, and how initiators prove who they are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ControlState, Outcome, Rejection};
use crate::cluster::name::{HostGroupName, InitiatorName, NameError, VolumeName};

/// An entry of a volume's access list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AllowedInitiator {
    /// Every initiator that reaches the portal: written `*`.
    Everyone,
    /// This one.
    Named(InitiatorName),
    /// Those of a host group: written `group:NAME`. Since format 9.
    Group(HostGroupName),
}

impl FromStr for AllowedInitiator {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix(GROUP) {
            Some(group) => group.parse().map(Self::Group),
            None if text == EVERYONE => Ok(Self::Everyone),
            None => text.parse().map(Self::Named),
        }
    }
}

impl TryFrom<String> for AllowedInitiator {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<AllowedInitiator> for String {
    fn from(allowed: AllowedInitiator) -> Self {
        allowed.to_string()
    }
}

impl fmt::Display for AllowedInitiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everyone => f.write_str(EVERYONE),
            Self::Named(name) => name.fmt(f),
            Self::Group(name) => write!(f, "{GROUP}{name}"),
        }
    }
}

/// A user name and a secret of CHAP (RFC 1994, RFC 7143 section 12.1.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChapCredentials {
    /// User name.
    pub user: String,
    /// Secret.
    pub secret: ChapSecret,
}

/// A secret of CHAP. It is shown by no `Debug`, so it reaches no log and no error. It is part of the
/// encoded state, which only the service's own account may read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChapSecret(String);

impl ChapSecret {
    /// A secret; its length is checked by the command that sets it.
    #[must_use]
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The secret itself, for computing a response.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for ChapSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChapSecret(hidden)")
    }
}

/// CHAP of one initiator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitiatorChap {
    /// By which it authenticates to us.
    pub incoming: ChapCredentials,
    /// By which we authenticate to it.
    pub mutual: Option<ChapCredentials>,
}

impl ControlState {
    /// Whether `initiator` may see and use the volume.
    #[must_use]
    pub fn may_access(&self, volume: &VolumeName, initiator: &InitiatorName) -> bool {
        self.volume(volume).is_some_and(|record| {
            let names = self.let_in(record);
            names.contains(EVERYONE) || names.contains(initiator.as_str())
        })
    }

    /// The CHAP credentials of `initiator`.
    #[must_use]
    pub fn chap(&self, initiator: &InitiatorName) -> Option<&InitiatorChap> {
        self.chap.get(initiator)
    }

    /// Initiators that have CHAP credentials.
    pub fn chap_initiators(&self) -> impl Iterator<Item = (&InitiatorName, &InitiatorChap)> {
        self.chap.iter()
    }

    pub(super) fn allow_initiator(
        &mut self,
        volume: &VolumeName,
        initiator: AllowedInitiator,
    ) -> Result<Outcome, Rejection> {
        if let AllowedInitiator::Group(group) = &initiator
            && self.host_group(group).is_none()
        {
            return Err(Rejection::NoSuchHostGroup(group.clone()));
        }
        let record = self.volume_mut(volume)?;
        if record.access.len() >= MOST_ACCESS_ENTRIES && !record.access.contains(&initiator) {
            return Err(Rejection::LimitReached {
                what: "initiators on this volume's access list",
                limit: MOST_ACCESS_ENTRIES,
            });
        }
        let is_everyone = initiator == AllowedInitiator::Everyone;
        let is_new = record.access.insert(initiator);
        Ok(match (is_everyone, is_new) {
            (true, is_new) => Outcome::OpenToEveryone { is_new },
            (false, true) => Outcome::Changed,
            (false, false) => Outcome::Unchanged,
        })
    }

    pub(super) fn deny_initiator(
        &mut self,
        volume: &VolumeName,
        initiator: &AllowedInitiator,
    ) -> Result<Outcome, Rejection> {
        let removed = self.volume_mut(volume)?.access.remove(initiator);
        Ok(if removed { Outcome::Changed } else { Outcome::Unchanged })
    }

    pub(super) fn set_chap(
        &mut self,
        initiator: InitiatorName,
        incoming: ChapCredentials,
        mutual: Option<ChapCredentials>,
    ) -> Result<Outcome, Rejection> {
        for credentials in [&incoming].into_iter().chain(&mutual) {
            credentials.check()?;
        }
        // RFC 7143 section 9.2.1: a secret must not serve in both directions, or a challenge of ours
        // could be answered with an answer of ours. Initiators may share theirs with each other.
        let others = || self.chap.iter().filter(|(name, _)| **name != initiator).map(|(_, chap)| chap);
        let is_ours = |secret: &ChapSecret| mutual.as_ref().is_some_and(|mutual| mutual.secret == *secret);
        let reused = is_ours(&incoming.secret)
            || others().any(|chap| is_ours(&chap.incoming.secret))
            || others()
                .any(|chap| chap.mutual.as_ref().is_some_and(|mutual| mutual.secret == incoming.secret));
        if reused {
            return Err(Rejection::SecretReused { initiator });
        }
        let chap = InitiatorChap { incoming, mutual };
        if self.chap.get(&initiator) == Some(&chap) {
            return Ok(Outcome::Unchanged);
        }
        if self.chap.len() >= MOST_CHAP_INITIATORS && !self.chap.contains_key(&initiator) {
            let what = "initiators with CHAP credentials";
            return Err(Rejection::LimitReached { what, limit: MOST_CHAP_INITIATORS });
        }
        self.chap.insert(initiator, chap);
        Ok(Outcome::Changed)
    }

    pub(super) fn clear_chap(&mut self, initiator: &InitiatorName) -> Outcome {
        if self.chap.remove(initiator).is_some() { Outcome::Changed } else { Outcome::Unchanged }
    }
}

impl ChapCredentials {
    fn check(&self) -> Result<(), Rejection> {
        let is_printable = self.user.bytes().all(|byte| byte.is_ascii_graphic());
        if self.user.is_empty() || self.user.len() > LONGEST_USER_NAME_BYTES || !is_printable {
            return Err(Rejection::BadUserName);
        }
        let length_bytes = self.secret.0.len();
        if (SHORTEST_SECRET_BYTES..=LONGEST_SECRET_BYTES).contains(&length_bytes) {
            Ok(())
        } else {
            Err(Rejection::SecretLength { length_bytes })
        }
    }
}

const EVERYONE: &str = "*";
const GROUP: &str = "group:";
/// 96 bits, which RFC 7143 section 9.2.1 wants at least.
const SHORTEST_SECRET_BYTES: usize = 12;
const LONGEST_SECRET_BYTES: usize = 255;
/// Longest value of a key that has no other limit (RFC 7143 section 6.1).
const LONGEST_USER_NAME_BYTES: usize = 255;
const MOST_ACCESS_ENTRIES: usize = 1024;
const MOST_CHAP_INITIATORS: usize = 4096;
