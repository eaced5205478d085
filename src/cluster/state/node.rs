//! Nodes and the witness in the control state: where they are and how they prove who they are.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{ControlState, Outcome, Rejection};
use crate::base::units::VolumeId;
use crate::cluster::name::NodeName;

/// A node that holds data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Portal group of its iSCSI portals.
    pub portal_group_tag: u16,
    /// Where it is; empty until it was said.
    #[serde(default)]
    pub description: Description,
    /// Whether it is to be free of what it serves, as somebody works on it.
    #[serde(default)]
    pub is_in_maintenance: bool,
}

/// Where a node or the witness is, and how it proves who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Description {
    /// Addresses (host and port) for the others, the preferred one first; two when there are two links.
    pub addresses: Vec<String>,
    /// The room, for messages to people.
    pub room: String,
    /// The key of its certificate; empty until it was seen. Nobody else is taken for it.
    #[serde(alias = "certificate_sha256")]
    pub key: KeyFingerprint,
}

/// SHA-256 of the public key in a member's certificate (its SubjectPublicKeyInfo, RFC 5280): it stays when a certificate is
/// made once more for the same key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyFingerprint(#[serde(with = "super::hexadecimal")] pub Vec<u8>);

impl KeyFingerprint {
    /// Whether it is known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.0.is_empty()
    }

    fn is_sound(&self) -> bool {
        [0, 32].contains(&self.0.len())
    }
}

/// Why a machine is not taken for a member, though its certificate says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// Another machine has its place, or it was removed.
    #[error(
        "its certificate is void: it was removed from the cluster, or another machine has taken its place"
    )]
    Void,
    /// The cluster knows another key of it.
    #[error("its certificate is not that of the machine which the cluster knows by this name")]
    Other,
}

impl Description {
    fn check(&self) -> Result<(), Rejection> {
        let fits = |text: &String| text.len() <= LONGEST_TEXT_BYTES && !text.chars().any(char::is_control);
        let is_sound = self.addresses.len() <= MOST_ADDRESSES
            && self.addresses.iter().all(|address| fits(address) && !address.is_empty())
            && fits(&self.room)
            && self.key.is_sound();
        if is_sound { Ok(()) } else { Err(Rejection::BadDescription) }
    }

    pub(super) fn flaw(&self) -> Option<&'static str> {
        self.check().err().map(|_| "a node is described in an impossible way")
    }
}

impl ControlState {
    /// The nodes that hold data.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeName, &Node)> {
        self.nodes.iter()
    }

    /// The witness, once there is one.
    #[must_use]
    pub fn witness(&self) -> Option<&Description> {
        self.witness.as_ref()
    }

    pub(super) fn add_node(&mut self, name: NodeName) -> Result<Outcome, Rejection> {
        if self.nodes.contains_key(&name) {
            return Ok(Outcome::Unchanged);
        }
        let used: BTreeSet<u16> = self.nodes.values().map(|node| node.portal_group_tag).collect();
        // The lowest tag that is free: a node that replaces another one gets its tag.
        let free = (1..=MOST_NODES as u16).find(|tag| !used.contains(tag));
        let Some(portal_group_tag) = free else {
            return Err(Rejection::LimitReached { what: "nodes", limit: MOST_NODES });
        };
        let node = Node { portal_group_tag, description: Description::default(), is_in_maintenance: false };
        self.nodes.insert(name, node);
        Ok(Outcome::Changed)
    }

    pub(super) fn describe_node(
        &mut self,
        name: NodeName,
        description: Description,
    ) -> Result<Outcome, Rejection> {
        description.check()?;
        let node = self.nodes.get_mut(&name).ok_or(Rejection::NoSuchNode(name))?;
        if node.description == description {
            return Ok(Outcome::Unchanged);
        }
        node.description = description;
        Ok(Outcome::Changed)
    }

    pub(super) fn set_maintenance(&mut self, name: NodeName, is_on: bool) -> Result<Outcome, Rejection> {
        let node = self.nodes.get_mut(&name).ok_or(Rejection::NoSuchNode(name))?;
        let before = std::mem::replace(&mut node.is_in_maintenance, is_on);
        Ok(if before == is_on { Outcome::Unchanged } else { Outcome::Changed })
    }

    pub(super) fn set_witness(&mut self, description: Description) -> Result<Outcome, Rejection> {
        description.check()?;
        let before = self.witness.replace(description);
        Ok(if before == self.witness { Outcome::Unchanged } else { Outcome::Changed })
    }

    /// Whether the machine with this key may act as this node, or as the witness.
    ///
    /// # Errors
    /// [`KeyRefused`].
    pub fn check_key(&self, node: Option<&NodeName>, key: &KeyFingerprint) -> Result<(), KeyRefused> {
        if self.void_keys.contains(key) {
            return Err(KeyRefused::Void);
        }
        match self.key_of(node) {
            Some(known) if known.is_known() && known != key => Err(KeyRefused::Other),
            _ => Ok(()),
        }
    }

    /// The key of a node, or of the witness; empty while it is not known, none while there is no such member.
    #[must_use]
    pub fn key_of(&self, node: Option<&NodeName>) -> Option<&KeyFingerprint> {
        let description = match node {
            Some(name) => self.nodes.get(name).map(|node| &node.description),
            None => self.witness.as_ref(),
        };
        description.map(|description| &description.key)
    }

    pub(super) fn set_key(
        &mut self,
        node: Option<NodeName>,
        key: KeyFingerprint,
        is_first: bool,
    ) -> Result<Outcome, Rejection> {
        if !key.is_known() || !key.is_sound() {
            return Err(Rejection::BadDescription);
        }
        if self.void_keys.contains(&key) {
            return Err(Rejection::VoidKey);
        }
        let description = match node {
            Some(name) => match self.nodes.get_mut(&name) {
                Some(node) => &mut node.description,
                None => return Err(Rejection::NoSuchNode(name)),
            },
            None => match &mut self.witness {
                Some(witness) => witness,
                None => return Ok(Outcome::Unchanged),
            },
        };
        if description.key == key || (is_first && description.key.is_known()) {
            return Ok(Outcome::Unchanged);
        }
        let before = std::mem::replace(&mut description.key, key);
        self.make_void(before);
        Ok(Outcome::Changed)
    }

    pub(super) fn remove_witness(&mut self) -> Outcome {
        let Some(witness) = self.witness.take() else { return Outcome::Unchanged };
        self.make_void(witness.key);
        Outcome::Changed
    }

    fn make_void(&mut self, key: KeyFingerprint) {
        if key.is_known() {
            self.void_keys.insert(key);
        }
    }

    pub(super) fn remove_node(&mut self, name: &NodeName) -> Result<Outcome, Rejection> {
        if !self.nodes.contains_key(name) {
            return Ok(Outcome::Unchanged);
        }
        let user =
            self.volumes.values().find(|record| record.primary == *name || record.in_sync.contains(name));
        if let Some(record) = user {
            return Err(Rejection::NodeInUse { node: name.clone(), volume: record.name.clone() });
        }
        if let Some(removed) = self.nodes.remove(name) {
            self.make_void(removed.description.key);
        }
        for record in self.volumes.values_mut() {
            record.home = record.home.take().filter(|home| home != name);
        }
        // What it held is gone with it.
        let deleted: Vec<VolumeId> = self.tombstones.keys().copied().collect();
        for volume in deleted {
            self.volume_purged(volume, name);
        }
        Ok(Outcome::Changed)
    }
}

/// The pair. The witness holds no data and is not counted.
const MOST_NODES: usize = 2;
/// Two links, each by a name and an address of either family.
const MOST_ADDRESSES: usize = 8;
/// Longest host name with a port.
const LONGEST_TEXT_BYTES: usize = 262;
