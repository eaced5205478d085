//! What an administrator should look at: the kinds of matters, each with a section of its name in `docs/runbook.md`.

use crate::rpc::management::{Attention, Severity};

/// A kind of matter. Its name never changes its meaning: alerts and rules of other systems rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A volume is not served.
    NotServed,
    /// A mirrored volume is on one node alone.
    NotRedundant,
    /// Another member cannot be reached.
    MemberUnreachable,
    /// This node is not in contact with a majority.
    NoMajority,
    /// This node takes no part in decisions.
    NoVote,
    /// Another member has lost its log.
    VoteLost,
    /// A node is in maintenance.
    Maintenance,
    /// A volume was started after a stop on purpose.
    StartedAfterStop,
    /// A disk is out of service.
    DiskOutOfService,
    /// A disk in service is not to be trusted.
    DiskFailing,
    /// A scrub found blocks that parity can't give back.
    DataUnrecoverable,
    /// The pool is offline.
    PoolOffline,
    /// The pool is filling up.
    PoolFilling,
    /// A node's room has no power but its battery.
    OnBattery,
    /// A UPS says nothing.
    UpsSilent,
    /// The command after a snapshot has failed.
    HostsMayHoldStill,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::NotServed,
        Self::NotRedundant,
        Self::MemberUnreachable,
        Self::NoMajority,
        Self::NoVote,
        Self::VoteLost,
        Self::Maintenance,
        Self::StartedAfterStop,
        Self::DiskOutOfService,
        Self::DiskFailing,
        Self::DataUnrecoverable,
        Self::PoolOffline,
        Self::PoolFilling,
        Self::OnBattery,
        Self::UpsSilent,
        Self::HostsMayHoldStill,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotServed => "not-served",
            Self::NotRedundant => "not-redundant",
            Self::MemberUnreachable => "member-unreachable",
            Self::NoMajority => "no-majority",
            Self::NoVote => "no-vote",
            Self::VoteLost => "vote-lost",
            Self::Maintenance => "maintenance",
            Self::StartedAfterStop => "started-after-stop",
            Self::DiskOutOfService => "disk-out-of-service",
            Self::DiskFailing => "disk-failing",
            Self::DataUnrecoverable => "data-unrecoverable",
            Self::PoolOffline => "pool-offline",
            Self::PoolFilling => "pool-filling",
            Self::OnBattery => "on-battery",
            Self::UpsSilent => "ups-silent",
            Self::HostsMayHoldStill => "hosts-may-hold-still",
        }
    }

    /// A matter of this kind. `about` is the member or disk, where there may be several of the kind; it concerns the
    /// cluster until [`Attention::node`] is set.
    pub(super) fn item(self, severity: Severity, about: &str, message: String, action: String) -> Attention {
        Attention {
            severity: severity.into(),
            message,
            action,
            node: String::new(),
            kind: self.name().to_owned(),
            about: about.to_owned(),
            why: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn the_runbook_has_a_section_for_each_kind() {
        let runbook = include_str!("../../../docs/runbook.md");
        for kind in Kind::ALL {
            let heading = format!("\n## {}\n", kind.name());
            assert!(runbook.contains(&heading), "{heading}");
        }
        let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
