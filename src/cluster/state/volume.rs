//! Volumes in the control state: their properties, epochs and replicas, and how these may change.
//!
//! Invariants: a volume's number is never given twice; its primary is in sync; epochs and the first
//! sequence numbers of epochs only grow; only a node that is in sync becomes primary (I3), and a
//! take-over leaves it alone in the set (I10). An operator's force is the one exception to I3, and is
//! remembered as a fork of the volume's history.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::access::AllowedInitiator;
use super::clone::Origin;
use super::history::KeptThrough;
use super::limits::VolumeLimits;
use super::node::Node;
use super::schedule::SnapshotSchedule;
pub use super::sector::{BadSectorSize, SectorSize};
use super::{ControlState, Outcome, Rejection};
use crate::base::units::{BLOCK_SIZE, Version, VolumeId};
use crate::cluster::mutant::{self, Mutant};
use crate::cluster::name::{NodeName, VolumeName};

/// Smallest volume: 1 MiB.
pub const SMALLEST_VOLUME_BYTES: u64 = 1 << 20;
/// Largest volume: 64 TiB, the largest that every hypervisor we serve can use.
pub const LARGEST_VOLUME_BYTES: u64 = 64 << 40;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its number.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its size.
    pub size_bytes: u64,
    /// Its logical block.
    pub sector: SectorSize,
    /// Whether it lives on one node or on both.
    pub redundancy: Redundancy,
    /// When it was created, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The present epoch; zero until it is served for the first time.
    pub epoch: u32,
    /// Who serves it in the present epoch.
    pub primary: NodeName,
    /// Who holds all that was acknowledged.
    pub in_sync: BTreeSet<NodeName>,
    /// First sequence number of each epoch, of the latest 1024.
    pub epoch_starts: BTreeMap<u32, u64>,
    /// Who may use it; nobody at first.
    pub access: BTreeSet<AllowedInitiator>,
    /// Persistent reservations that outlive a restart.
    pub reservations: SavedReservations,
    /// Why the present epoch began; unknown in states of format 1, and before the first.
    #[serde(default)]
    pub began_by: Option<Transition>,
    /// What its proposer said of that, for people.
    #[serde(default)]
    pub reason: String,
    /// The node to which it returns by itself when it is on both again.
    #[serde(default)]
    pub home: Option<NodeName>,
    /// What is known to have been acknowledged, at least.
    #[serde(default)]
    pub watermark: Watermark,
    /// Epochs before which versions of several epochs were given up: that an operator forced, or that a
    /// take-over or a restart began from less than the epoch before it had begun with. And what was kept
    /// then.
    #[serde(default)]
    pub forks: BTreeMap<u32, KeptThrough>,
    /// The epoch in which it was last started after a stop on purpose; zero when it never was.
    #[serde(default)]
    pub started_in: u32,
    /// When snapshots of it are taken by themselves.
    #[serde(default)]
    pub snapshot_schedule: Option<SnapshotSchedule>,
    /// The process that proposed the present epoch, by its random number: no other one takes it for its own (I8). Zero
    /// where that is not known, as in states of format 5 and older ones.
    #[serde(default)]
    pub proposer_life: u64,
    /// What it was made of, if it is a clone.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// What it may take of what all volumes share.
    #[serde(default)]
    pub limits: VolumeLimits,
}

/// A version of which it is known that it, and all before it, was acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watermark {
    /// Epoch.
    pub epoch: u32,
    /// Sequence number.
    pub sequence: u64,
}

impl From<Version> for Watermark {
    fn from(Version { epoch, sequence }: Version) -> Self {
        Self { epoch, sequence }
    }
}

impl From<Watermark> for Version {
    fn from(Watermark { epoch, sequence }: Watermark) -> Self {
        Self { epoch, sequence }
    }
}

/// Where a volume lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redundancy {
    /// On its primary alone.
    Local,
    /// On both nodes, synchronously.
    Mirrored,
}

/// Why an epoch begins; each kind allows other changes of primary and in-sync set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transition {
    /// The primary starts to serve, again or for the first time: same primary, same set (I8).
    Restart,
    /// The primary goes on without a replica: same primary, a smaller set.
    Shrink,
    /// A replica has caught up: same primary, a larger set.
    Expand,
    /// An in-sync node replaces the primary without its help, alone.
    TakeOver,
    /// The primary hands over to an in-sync node with nothing in flight: the set stays.
    Move,
    /// The primary, which does not serve, gives way to the other node, alone: it has lost what was acknowledged.
    Yield,
    /// The primary stops on purpose with nothing in flight: the certificate that both are equal.
    Stop,
    /// Either node starts from the certificate, which is consumed by this.
    Start,
    /// An operator's decision: only by its own command.
    Force,
}

/// Persistent reservations, opaque here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedReservations {
    /// How often they have been saved.
    pub revision: u64,
    /// Registrations in them.
    pub registration_count: u32,
    /// As the logical unit encoded them; empty before the first time.
    #[serde(with = "super::hexadecimal")]
    pub encoded: Vec<u8>,
}

/// A deleted volume that some node has not purged yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The name it had, for messages.
    pub name: VolumeName,
    /// When it was deleted, in milliseconds since 1970.
    pub deleted_unix_ms: u64,
    /// Nodes that may still hold blocks of it.
    pub awaiting: BTreeSet<NodeName>,
    /// What it was made of, if it was a clone: that stays until it is gone everywhere.
    #[serde(default)]
    pub origin: Option<Origin>,
}

/// What the creation of a volume asks for.
pub(super) struct NewVolume {
    pub name: VolumeName,
    pub size_bytes: u64,
    pub sector: SectorSize,
    pub redundancy: Redundancy,
    pub primary: NodeName,
    pub created_unix_ms: u64,
}

/// A proposed epoch.
pub(super) struct Proposal {
    pub volume: VolumeId,
    pub expected_epoch: u32,
    pub transition: Transition,
    pub primary: NodeName,
    pub in_sync: BTreeSet<NodeName>,
    pub first_sequence: u64,
    pub reason: String,
    pub life: u64,
}

impl ControlState {
    /// The volume of that name.
    #[must_use]
    pub fn volume(&self, name: &VolumeName) -> Option<&VolumeRecord> {
        self.volumes.values().find(|record| record.name == *name)
    }

    /// The volume of that number.
    #[must_use]
    pub fn volume_by_id(&self, id: VolumeId) -> Option<&VolumeRecord> {
        self.volumes.get(&id)
    }

    /// All volumes, by number.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values()
    }

    /// Deleted volumes that some node has not purged yet.
    pub fn tombstones(&self) -> impl Iterator<Item = (VolumeId, &Tombstone)> {
        self.tombstones.iter().map(|(id, tombstone)| (*id, tombstone))
    }

    pub(super) fn create_volume(&mut self, new: NewVolume) -> Result<Outcome, Rejection> {
        let NewVolume { name, size_bytes, sector, redundancy, primary, created_unix_ms } = new;
        check_size(size_bytes)?;
        if !self.nodes.contains_key(&primary) {
            return Err(Rejection::NoSuchNode(primary));
        }
        if self.volume(&name).is_some() {
            return Err(Rejection::VolumeExists(name));
        }
        if self.volumes.len() >= MOST_VOLUMES {
            return Err(Rejection::LimitReached { what: "volumes", limit: MOST_VOLUMES });
        }
        let in_sync = match redundancy {
            Redundancy::Local => BTreeSet::from([primary.clone()]),
            Redundancy::Mirrored if self.nodes.len() == 2 => self.nodes.keys().cloned().collect(),
            Redundancy::Mirrored => return Err(Rejection::NeedsTwoNodes { node_count: self.nodes.len() }),
        };
        let id = VolumeId(self.last_volume_id.checked_add(1).ok_or(Rejection::LimitReached {
            what: "volumes created and deleted",
            limit: u32::MAX as usize,
        })?);
        self.last_volume_id = id.0;
        let record = VolumeRecord {
            id,
            name,
            size_bytes,
            sector,
            redundancy,
            created_unix_ms,
            epoch: 0,
            primary,
            in_sync,
            epoch_starts: BTreeMap::new(),
            access: BTreeSet::new(),
            reservations: SavedReservations::default(),
            began_by: None,
            reason: String::new(),
            home: None,
            watermark: Watermark::default(),
            forks: BTreeMap::new(),
            started_in: 0,
            snapshot_schedule: None,
            proposer_life: 0,
            origin: None,
            limits: VolumeLimits::default(),
        };
        self.volumes.insert(id, record);
        Ok(Outcome::VolumeCreated { id })
    }

    pub(super) fn resize_volume(
        &mut self,
        name: &VolumeName,
        size_bytes: u64,
        may_shrink: bool,
    ) -> Result<Outcome, Rejection> {
        let record = self.volume_mut(name)?;
        check_size(size_bytes)?;
        if size_bytes == record.size_bytes {
            return Ok(Outcome::Unchanged);
        }
        if size_bytes < record.size_bytes && !may_shrink {
            return Err(Rejection::WouldShrink {
                volume: name.clone(),
                from_bytes: record.size_bytes,
                to_bytes: size_bytes,
            });
        }
        record.size_bytes = size_bytes;
        Ok(Outcome::Changed)
    }

    pub(super) fn delete_volume(
        &mut self,
        name: &VolumeName,
        force: bool,
        deleted_unix_ms: u64,
    ) -> Result<Outcome, Rejection> {
        let record = self.volume(name).ok_or_else(|| Rejection::NoSuchVolume(name.clone()))?;
        let (id, registration_count) = (record.id, record.reservations.registration_count);
        if registration_count > 0 && !force {
            return Err(Rejection::VolumeReserved { volume: name.clone(), registration_count });
        }
        if let Some(clone) = self.clones(id).next() {
            return Err(Rejection::HasClones { volume: name.clone(), clone: clone.name.clone() });
        }
        let origin = self.volumes.remove(&id).and_then(|record| record.origin);
        let awaiting = self.nodes.keys().cloned().collect();
        self.tombstones.insert(id, Tombstone { name: name.clone(), deleted_unix_ms, awaiting, origin });
        Ok(Outcome::VolumeDeleted { id })
    }

    pub(super) fn volume_purged(&mut self, id: VolumeId, node: &NodeName) -> Outcome {
        let Some(tombstone) = self.tombstones.get_mut(&id) else { return Outcome::Unchanged };
        let removed = tombstone.awaiting.remove(node);
        if tombstone.awaiting.is_empty() {
            self.tombstones.remove(&id);
        }
        if removed { Outcome::Changed } else { Outcome::Unchanged }
    }

    pub(super) fn begin_epoch(&mut self, proposal: Proposal) -> Result<Outcome, Rejection> {
        let Proposal {
            volume: id,
            expected_epoch,
            transition,
            primary,
            in_sync,
            first_sequence,
            reason,
            life,
        } = proposal;
        if let Some(unknown) = in_sync.iter().find(|node| !self.nodes.contains_key(*node)) {
            return Err(Rejection::NoSuchNode(unknown.clone()));
        }
        let record = self.volumes.get_mut(&id).ok_or(Rejection::NoSuchVolumeId(id))?;
        let volume = record.name.clone();
        record.check_epoch(expected_epoch)?;
        if !record.in_sync.contains(&primary) {
            return Err(Rejection::NotInSync { volume, node: primary });
        }
        if !record.allows(transition, &primary, &in_sync) {
            return Err(Rejection::BadTransition { volume });
        }
        let epoch = record.begin(transition, primary, in_sync, first_sequence)?;
        record.reason = reason.chars().take(LONGEST_REASON).collect();
        record.proposer_life = life;
        Ok(Outcome::EpochBegun { epoch })
    }

    pub(super) fn set_home(
        &mut self,
        name: &VolumeName,
        home: Option<NodeName>,
    ) -> Result<Outcome, Rejection> {
        if let Some(unknown) = home.as_ref().filter(|node| !self.nodes.contains_key(*node)) {
            return Err(Rejection::NoSuchNode(unknown.clone()));
        }
        let record = self.volume_mut(name)?;
        if home.is_some() && record.redundancy == Redundancy::Local {
            return Err(Rejection::NotMirrored(name.clone()));
        }
        let before = std::mem::replace(&mut record.home, home);
        Ok(if before == record.home { Outcome::Unchanged } else { Outcome::Changed })
    }

    pub(super) fn force_primary(
        &mut self,
        id: VolumeId,
        (expected_epoch, life): (u32, u64),
        primary: NodeName,
        kept_through: KeptThrough,
    ) -> Result<Outcome, Rejection> {
        if !self.nodes.contains_key(&primary) {
            return Err(Rejection::NoSuchNode(primary));
        }
        let record = self.volumes.get_mut(&id).ok_or(Rejection::NoSuchVolumeId(id))?;
        let volume = record.name.clone();
        record.check_epoch(expected_epoch)?;
        // A member needs no force, unless it has lost what was acknowledged, and a local volume has nothing anywhere
        // else.
        let kept = Watermark::from(Version::from(kept_through));
        let is_member = record.in_sync.contains(&primary) && kept >= record.watermark;
        if is_member || record.redundancy == Redundancy::Local || kept_through.epoch > record.epoch {
            return Err(Rejection::BadTransition { volume });
        }
        let first_sequence = record.latest_start().max(kept_through.sequence.saturating_add(1));
        let in_sync = BTreeSet::from([primary.clone()]);
        let epoch = record.begin(Transition::Force, primary, in_sync, first_sequence)?;
        record.fork(epoch, kept_through);
        // What is given up is not missed any more.
        record.watermark = record.watermark.min(kept);
        record.proposer_life = life;
        record.reason = "an administrator forced it, giving up what this node lacks".to_owned();
        Ok(Outcome::EpochBegun { epoch })
    }

    pub(super) fn record_watermarks(&mut self, watermarks: BTreeMap<VolumeId, Watermark>) -> Outcome {
        let mut outcome = Outcome::Unchanged;
        for (id, watermark) in watermarks {
            let Some(record) = self.volumes.get_mut(&id) else { continue };
            // A primary may go on into an epoch with writes of the one before in flight.
            let is_kept = watermark.epoch <= record.epoch
                && record
                    .forks_after(watermark.epoch)
                    .all(|kept| kept.epoch >= watermark.epoch && kept.sequence >= watermark.sequence);
            if is_kept && watermark > record.watermark {
                record.watermark = watermark;
                outcome = Outcome::Changed;
            }
        }
        outcome
    }

    pub(super) fn save_reservations(
        &mut self,
        id: VolumeId,
        (epoch, expected_revision): (u32, Option<u64>),
        registration_count: u32,
        encoded: Vec<u8>,
    ) -> Result<Outcome, Rejection> {
        let record = self.volumes.get_mut(&id).ok_or(Rejection::NoSuchVolumeId(id))?;
        record.check_epoch(epoch)?;
        let current = record.reservations.revision;
        if let Some(expected) = expected_revision.filter(|expected| *expected != current) {
            return Err(Rejection::StaleReservations { volume: record.name.clone(), expected, current });
        }
        if encoded.len() > MOST_RESERVATION_BYTES {
            let (size_bytes, limit_bytes) = (encoded.len(), MOST_RESERVATION_BYTES);
            return Err(Rejection::ReservationsTooLarge { size_bytes, limit_bytes });
        }
        let revision = current + 1;
        record.reservations = SavedReservations { revision, registration_count, encoded };
        Ok(Outcome::ReservationsSaved { revision })
    }

    pub(super) fn volume_mut(&mut self, name: &VolumeName) -> Result<&mut VolumeRecord, Rejection> {
        let found = self.volumes.values_mut().find(|record| record.name == *name);
        found.ok_or_else(|| Rejection::NoSuchVolume(name.clone()))
    }
}

impl VolumeRecord {
    /// What is wrong with the record, given the nodes that exist; none when it is sound.
    pub(super) fn flaw(&self, nodes: &BTreeMap<NodeName, Node>) -> Option<&'static str> {
        let last_epoch = self.epoch_starts.keys().next_back().copied().unwrap_or(0);
        if check_size(self.size_bytes).is_err() {
            Some("a volume has an impossible size")
        } else if self.limits.check().is_err() {
            Some("a volume has limits that no host could live with")
        } else if !self.in_sync.contains(&self.primary) {
            Some("a volume's primary is not in sync")
        } else if !self.in_sync.iter().all(|node| nodes.contains_key(node)) {
            Some("a volume is on a node that does not exist")
        } else if self.redundancy == Redundancy::Local && self.in_sync.len() != 1 {
            Some("a local volume is on several nodes")
        } else if last_epoch != self.epoch || !self.epoch_starts.values().is_sorted() {
            Some("a volume's epochs are not in order")
        } else if self.watermark.epoch > self.epoch || self.forks.keys().any(|epoch| *epoch > self.epoch) {
            Some("a volume remembers an epoch that has not been")
        } else {
            None
        }
    }

    /// Whether the primary of the present epoch may serve at once: nothing was in flight when it began, or
    /// it is alone. Otherwise it settles each block with the other replica first (I10).
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.in_sync.len() == 1 || matches!(self.began_by, Some(Transition::Move | Transition::Start))
    }

    /// Whether the volume was stopped on purpose with both replicas equal, and not served since.
    #[must_use]
    pub fn is_certified(&self) -> bool {
        let is_kept = || mutant::is(Mutant::CertificateKept) && self.began_by == Some(Transition::Start);
        self.began_by == Some(Transition::Stop) || is_kept()
    }

    /// Through which sequence number both nodes have everything as a whole: by the certificate, in its own epoch and in
    /// the one that begins from it.
    #[must_use]
    pub fn certified_through(&self) -> Option<u64> {
        let epoch = match self.began_by? {
            Transition::Stop => self.epoch,
            Transition::Start => self.epoch.saturating_sub(1),
            _ => return None,
        };
        self.epoch_starts.get(&epoch).map(|first| first.saturating_sub(1))
    }

    /// First sequence number of the present epoch; zero before the first one.
    #[must_use]
    pub fn latest_start(&self) -> u64 {
        self.epoch_starts.values().next_back().copied().unwrap_or(0)
    }

    fn begin(
        &mut self,
        transition: Transition,
        primary: NodeName,
        in_sync: BTreeSet<NodeName>,
        first_sequence: u64,
    ) -> Result<u32, Rejection> {
        let previous = self.latest_start();
        let goes_back = first_sequence < previous;
        let may_go_back = match transition {
            Transition::TakeOver => true,
            // A volume's only node has what it had when the epoch began.
            Transition::Restart => self.redundancy == Redundancy::Mirrored,
            _ => false,
        };
        if goes_back && !may_go_back {
            return Err(Rejection::SequenceWentBack { volume: self.name.clone(), first_sequence, previous });
        }
        let epoch = self.epoch.checked_add(1);
        let epoch = epoch.ok_or(Rejection::LimitReached { what: "epochs", limit: u32::MAX as usize })?;
        if goes_back {
            // What was in flight when the present epoch began was still so when its primary went away:
            // the node that goes on has less.
            let kept = KeptThrough { epoch: self.epoch, sequence: first_sequence.saturating_sub(1) };
            self.fork(epoch, kept);
        }
        let first_sequence = first_sequence.max(previous);
        self.epoch = epoch;
        self.primary = primary;
        self.in_sync = in_sync;
        self.began_by = Some(transition);
        if transition == Transition::Start {
            self.started_in = epoch;
        }
        self.epoch_starts.insert(epoch, first_sequence);
        if self.epoch_starts.len() > MOST_EPOCH_STARTS {
            self.epoch_starts.pop_first();
        }
        Ok(epoch)
    }

    fn fork(&mut self, epoch: u32, kept_through: KeptThrough) {
        self.forks.insert(epoch, kept_through);
        if self.forks.len() > MOST_FORKS {
            self.forks.pop_first();
        }
    }

    pub(super) fn check_epoch(&self, expected: u32) -> Result<(), Rejection> {
        if expected == self.epoch {
            return Ok(());
        }
        Err(Rejection::StaleEpoch { volume: self.name.clone(), expected, current: self.epoch })
    }

    /// Whether `transition` may lead to this primary, who is in sync now, and this set.
    fn allows(&self, transition: Transition, primary: &NodeName, in_sync: &BTreeSet<NodeName>) -> bool {
        let is_same_primary = *primary == self.primary;
        let is_served = in_sync.contains(primary);
        is_served
            && match transition {
                Transition::Restart => is_same_primary && *in_sync == self.in_sync,
                Transition::Shrink => {
                    is_same_primary && in_sync.is_subset(&self.in_sync) && *in_sync != self.in_sync
                }
                Transition::Expand => {
                    let is_larger = in_sync.is_superset(&self.in_sync) && *in_sync != self.in_sync;
                    is_same_primary && is_larger && self.redundancy == Redundancy::Mirrored
                }
                Transition::TakeOver | Transition::Yield => !is_same_primary && in_sync.len() == 1,
                Transition::Move => !is_same_primary && *in_sync == self.in_sync,
                Transition::Stop => is_same_primary && *in_sync == self.in_sync && in_sync.len() == 2,
                Transition::Start => self.is_certified() && *in_sync == self.in_sync,
                Transition::Force => false,
            }
    }
}

/// Characters of the reason of an epoch that are kept.
pub const LONGEST_REASON: usize = 400;

fn check_size(size_bytes: u64) -> Result<(), Rejection> {
    let is_in_range = (SMALLEST_VOLUME_BYTES..=LARGEST_VOLUME_BYTES).contains(&size_bytes);
    if is_in_range && size_bytes.is_multiple_of(BLOCK_SIZE as u64) {
        Ok(())
    } else {
        Err(Rejection::BadSize { size_bytes })
    }
}

/// More than the LUNs that any hypervisor's host takes (1024).
const MOST_VOLUMES: usize = 4096;
/// A replica that was away for more epochs than this is compared as a whole.
const MOST_EPOCH_STARTS: usize = 1024;
/// An operator who forces more often has other worries than comparing a replica as a whole.
const MOST_FORKS: usize = 64;
/// A thousand registrations of the largest transport identifiers fit.
const MOST_RESERVATION_BYTES: usize = 1 << 20;
