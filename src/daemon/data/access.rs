//! Who may use which volume, as the data thread knows it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use crate::base::units::VolumeId;
use crate::daemon::engine::{AccessRules, ChapRule};

/// Stands for every initiator in an access list.
pub const EVERYONE: &str = "*";

/// The rules now in force, indexed for logins.
#[derive(Default)]
pub struct Access {
    allowed: RefCell<HashMap<VolumeId, HashSet<String>>>,
    chap: RefCell<HashMap<String, ChapRule>>,
    require_chap: Cell<bool>,
}

impl Access {
    /// Nobody may use anything.
    #[must_use]
    pub fn new(require_chap: bool) -> Self {
        Self { require_chap: Cell::new(require_chap), ..Self::default() }
    }

    /// Replaces the rules.
    pub fn replace(&self, rules: AccessRules) {
        let normal = |name: String| name.to_ascii_lowercase();
        let allowed = rules.allowed.into_iter();
        let allowed = allowed.map(|(volume, names)| (volume, names.into_iter().map(normal).collect()));
        self.allowed.replace(allowed.collect());
        let chap = rules.chap.into_iter().map(|rule| (rule.initiator.to_ascii_lowercase(), rule));
        self.chap.replace(chap.collect());
    }

    /// Whether an initiator, by its name in lower case, may use a volume.
    pub fn may_use(&self, initiator: &str, volume: VolumeId) -> bool {
        let allowed = self.allowed.borrow();
        let names = allowed.get(&volume);
        names.is_some_and(|names| names.contains(initiator) || names.contains(EVERYONE))
    }

    /// The CHAP credentials of an initiator.
    pub fn chap(&self, initiator: &str) -> Option<ChapRule> {
        self.chap.borrow().get(initiator).cloned()
    }

    /// Whether initiators without CHAP credentials are refused.
    pub fn requires_chap(&self) -> bool {
        self.require_chap.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_may_use_a_volume_until_allowed() {
        let access = Access::new(false);
        let (one, two) = (VolumeId(1), VolumeId(2));
        assert!(!access.may_use("iqn.a", one));
        let allowed = vec![(one, vec!["IQN.a".to_owned()]), (two, vec![EVERYONE.to_owned()])];
        access.replace(AccessRules { allowed, chap: Vec::new() });
        assert!(access.may_use("iqn.a", one) && !access.may_use("iqn.b", one));
        assert!(access.may_use("iqn.b", two));
        access.replace(AccessRules::default());
        assert!(!access.may_use("iqn.a", one) && !access.may_use("iqn.b", two));
    }
}
