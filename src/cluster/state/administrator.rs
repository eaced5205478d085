//! Administrators by certificate: which of their identities are void.
//!
//! An identity has a name, and is void with it for good: a new one gets another name. Nobody is locked out by that, as root on a node
//! needs none.

use super::{ControlState, Outcome, Rejection};
use crate::cluster::name::NodeName;

impl ControlState {
    /// Whether identities of this name are void.
    #[must_use]
    pub fn is_revoked(&self, administrator: &str) -> bool {
        self.revoked_administrators.iter().any(|name| name.as_str() == administrator)
    }

    /// Names of the administrators whose identities are void.
    pub fn revoked_administrators(&self) -> impl Iterator<Item = &NodeName> {
        self.revoked_administrators.iter()
    }

    pub(super) fn revoke_administrator(&mut self, name: NodeName) -> Result<Outcome, Rejection> {
        if self.revoked_administrators.contains(&name) {
            return Ok(Outcome::Unchanged);
        }
        if self.revoked_administrators.len() >= MOST_REVOKED {
            return Err(Rejection::LimitReached {
                what: "administrators that are revoked",
                limit: MOST_REVOKED,
            });
        }
        self.revoked_administrators.insert(name);
        Ok(Outcome::Changed)
    }
}

const MOST_REVOKED: usize = 1024;
