//! Host groups: initiators that are let in together, under one name on access lists.
//!
//! Invariant: a group that is on an access list is there.

use std::collections::BTreeSet;

use super::access::AllowedInitiator;
use super::volume::VolumeRecord;
use super::{ControlState, Outcome, Rejection};
use crate::cluster::name::{HostGroupName, InitiatorName, VolumeName};

impl ControlState {
    /// All groups, by name.
    pub fn host_groups(&self) -> impl Iterator<Item = (&HostGroupName, &BTreeSet<InitiatorName>)> {
        self.host_groups.iter()
    }

    /// The initiators of a group.
    #[must_use]
    pub fn host_group(&self, name: &HostGroupName) -> Option<&BTreeSet<InitiatorName>> {
        self.host_groups.get(name)
    }

    /// Names of the volumes on whose access lists a group is.
    pub fn volumes_of_group(&self, name: &HostGroupName) -> impl Iterator<Item = &VolumeName> {
        let entry = AllowedInitiator::Group(name.clone());
        self.volumes().filter(move |record| record.access.contains(&entry)).map(|record| &record.name)
    }

    /// Whom a volume's access list lets in, groups taken apart: names of initiators, and `*` for everyone.
    #[must_use]
    pub fn let_in(&self, record: &VolumeRecord) -> BTreeSet<String> {
        let names = |entry: &AllowedInitiator| match entry {
            AllowedInitiator::Everyone | AllowedInitiator::Named(_) => vec![entry.to_string()],
            AllowedInitiator::Group(group) => {
                self.host_group(group).into_iter().flatten().map(ToString::to_string).collect()
            }
        };
        record.access.iter().flat_map(names).collect()
    }

    pub(super) fn change_host_group(
        &mut self,
        name: HostGroupName,
        added: BTreeSet<InitiatorName>,
        removed: &BTreeSet<InitiatorName>,
    ) -> Result<Outcome, Rejection> {
        let before = self.host_groups.get(&name);
        if before.is_none() && self.host_groups.len() >= MOST_GROUPS {
            return Err(Rejection::LimitReached { what: "host groups", limit: MOST_GROUPS });
        }
        let mut initiators: BTreeSet<_> = before.into_iter().flatten().cloned().chain(added).collect();
        initiators.retain(|initiator| !removed.contains(initiator));
        if initiators.len() > MOST_INITIATORS {
            let what = "initiators in this host group";
            return Err(Rejection::LimitReached { what, limit: MOST_INITIATORS });
        }
        if before == Some(&initiators) {
            return Ok(Outcome::Unchanged);
        }
        self.host_groups.insert(name, initiators);
        Ok(Outcome::Changed)
    }

    pub(super) fn remove_host_group(&mut self, name: &HostGroupName) -> Result<Outcome, Rejection> {
        if let Some(volume) = self.volumes_of_group(name).next() {
            return Err(Rejection::HostGroupInUse { group: name.clone(), volume: volume.clone() });
        }
        Ok(if self.host_groups.remove(name).is_some() { Outcome::Changed } else { Outcome::Unchanged })
    }

    /// Whether an access list names a group that is not there.
    pub(super) fn lacks_host_group(&self) -> bool {
        let is_unknown = |entry: &AllowedInitiator| match entry {
            AllowedInitiator::Group(group) => !self.host_groups.contains_key(group),
            _ => false,
        };
        self.volumes().any(|record| record.access.iter().any(is_unknown))
    }
}

const MOST_GROUPS: usize = 256;
const MOST_INITIATORS: usize = 1024;
