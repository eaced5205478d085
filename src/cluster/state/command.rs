//! What can be asked of the control state, and what it answers.
//!
//! Commands are entries of a log, so their encoding is a format: variants and fields are only added.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::access::{AllowedInitiator, ChapCredentials};
use super::alert::AlertTarget;
use super::history::KeptThrough;
use super::limits::VolumeLimits;
use super::node::{Description, KeyFingerprint};
use super::schedule::SnapshotSchedule;
use super::user::{ApiToken, Invitation, KeyDigest, PasswordHash, Role};
use super::volume::{Redundancy, SectorSize, Transition, Watermark};
use super::{ClusterUuid, Settings};
use crate::base::units::VolumeId;
use crate::cluster::name::{
    AlertName, ClusterName, HostGroupName, InitiatorName, NodeName, TokenName, UserName, VolumeName,
};

/// One change of the control state. Times come from whoever proposes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Creates the cluster: the first command of all.
    CreateCluster {
        /// Its name.
        name: ClusterName,
        /// Its identity, random.
        uuid: ClusterUuid,
        /// When, in milliseconds since 1970.
        created_unix_ms: u64,
    },
    /// Adds a node that holds data. Adding it again changes nothing.
    AddNode {
        /// Its name.
        name: NodeName,
    },
    /// Says where a node is and how it proves who it is, in place of what was said before.
    DescribeNode {
        /// Its name.
        name: NodeName,
        /// All of it.
        description: Description,
    },
    /// Says where the witness is and how it proves who it is, in place of an earlier one.
    SetWitness {
        /// All of it.
        description: Description,
    },
    /// Removes a node that no volume uses.
    RemoveNode {
        /// Its name.
        name: NodeName,
    },
    /// Removes the witness.
    RemoveWitness {},
    /// Says by which key a member is known: another one that it had is void from then on.
    SetKey {
        /// The node; none for the witness.
        node: Option<NodeName>,
        /// The key.
        key: KeyFingerprint,
        /// Only when none is known yet.
        is_first: bool,
    },
    /// Creates an empty volume.
    CreateVolume {
        /// Its name, not used by another volume.
        name: VolumeName,
        /// Its size: 1 MiB to 64 TiB, a multiple of 4 KiB.
        size_bytes: u64,
        /// Its logical block.
        sector: SectorSize,
        /// Whether it lives on one node or on both.
        redundancy: Redundancy,
        /// The node that serves it first.
        primary: NodeName,
        /// When, in milliseconds since 1970.
        created_unix_ms: u64,
    },
    /// Makes a volume that begins as a snapshot of another one shows it, of the same size, on the same nodes.
    CloneVolume {
        /// Its name, not used by another volume.
        name: VolumeName,
        /// The volume that has the snapshot.
        origin: VolumeId,
        /// Epoch that this one has, as its primary knows it.
        expected_epoch: u32,
        /// Epoch and sequence number of the snapshot.
        snapshot: Watermark,
        /// How people call it.
        snapshot_name: String,
        /// When, in milliseconds since 1970.
        created_unix_ms: u64,
    },
    /// Changes a volume's size. The same size again changes nothing.
    ResizeVolume {
        /// Which.
        name: VolumeName,
        /// New size.
        size_bytes: u64,
        /// Whether it may become smaller, which loses data.
        may_shrink: bool,
    },
    /// Deletes a volume.
    DeleteVolume {
        /// Which.
        name: VolumeName,
        /// Even if hosts have registrations on it.
        force: bool,
        /// When, in milliseconds since 1970.
        deleted_unix_ms: u64,
    },
    /// A node has given back the space of a deleted volume.
    VolumePurged {
        /// Which.
        volume: VolumeId,
        /// The node.
        node: NodeName,
    },
    /// Begins a new epoch of a volume, if it still is in `expected_epoch`.
    BeginEpoch {
        /// Which.
        volume: VolumeId,
        /// Epoch that the proposer knows.
        expected_epoch: u32,
        /// What happens.
        transition: Transition,
        /// Who serves it in the new epoch.
        primary: NodeName,
        /// Who holds all of it then.
        in_sync: BTreeSet<NodeName>,
        /// First sequence number of the new epoch.
        first_sequence: u64,
        /// Why, for people; cut off after [`LONGEST_REASON`](super::volume::LONGEST_REASON).
        #[serde(default)]
        reason: String,
    },
    /// Sets the node to which a mirrored volume returns by itself when it is on both again, or that it stays where it
    /// is.
    SetHome {
        /// Which volume.
        volume: VolumeName,
        /// The node, if there is to be one.
        home: Option<NodeName>,
    },
    /// Sets when snapshots of a volume are taken by themselves, or that none are.
    SetSnapshotSchedule {
        /// Which volume.
        volume: VolumeName,
        /// When, and how many are kept.
        schedule: Option<SnapshotSchedule>,
    },
    /// Sets what a volume may take of what all share. Idempotent.
    SetVolumeLimits {
        /// Which.
        volume: VolumeName,
        /// All of it.
        limits: VolumeLimits,
    },
    /// A node is, or is no more, to be free of what it serves. Idempotent.
    SetMaintenance {
        /// The node.
        node: NodeName,
        /// Whether it is.
        is_on: bool,
    },
    /// Lets an initiator, or everyone, see and use a volume. Idempotent.
    AllowInitiator {
        /// Which volume.
        volume: VolumeName,
        /// Whom.
        initiator: AllowedInitiator,
    },
    /// Takes that back. Idempotent.
    DenyInitiator {
        /// Which volume.
        volume: VolumeName,
        /// Whom.
        initiator: AllowedInitiator,
    },
    /// Changes who is in a host group, which is made where there is none of that name. Idempotent.
    ChangeHostGroup {
        /// Its name.
        name: HostGroupName,
        /// Who is to be in it.
        added: BTreeSet<InitiatorName>,
        /// Who is not.
        removed: BTreeSet<InitiatorName>,
    },
    /// Removes a host group that is on no access list. Idempotent.
    RemoveHostGroup {
        /// Its name.
        name: HostGroupName,
    },
    /// Identities of an administrator of this name are void from now on. Idempotent.
    RevokeAdministrator {
        /// His name in them.
        name: NodeName,
    },
    /// An operator makes a node primary that is not in sync, or that has lost what it had acknowledged, giving up what
    /// it lacks (I3's exception). Whoever proposes it has made sure that the present primary is fenced.
    ForcePrimary {
        /// Which volume.
        volume: VolumeId,
        /// Epoch that it has.
        expected_epoch: u32,
        /// The new primary, alone in the set.
        primary: NodeName,
        /// The version through which that node has everything: what came after it is void.
        kept_through: KeptThrough,
        /// When, in milliseconds since 1970.
        forced_unix_ms: u64,
    },
    /// Records what has been acknowledged of volumes. It only grows; what is older than the record, or was given up,
    /// is passed over.
    RecordWatermarks {
        /// Epoch and acknowledged sequence number, by volume.
        watermarks: BTreeMap<VolumeId, Watermark>,
    },
    /// Sets the CHAP credentials of an initiator, in place of earlier ones.
    SetChap {
        /// Whose.
        initiator: InitiatorName,
        /// By which it authenticates to us.
        incoming: ChapCredentials,
        /// By which we authenticate to it, if it asks.
        mutual: Option<ChapCredentials>,
    },
    /// Forgets the CHAP credentials of an initiator. Idempotent.
    ClearChap {
        /// Whose.
        initiator: InitiatorName,
    },
    /// Replaces the persistent reservations of a volume, as its primary in `epoch`.
    SaveReservations {
        /// Which volume.
        volume: VolumeId,
        /// Epoch of the primary that proposes it.
        epoch: u32,
        /// How often they had been saved when that was last looked at: what was saved since then is not replaced by what
        /// was decided before. Entries of older programs do not say.
        #[serde(default)]
        expected_revision: Option<u64>,
        /// Registrations in it: while there are any, deleting the volume needs force.
        registration_count: u32,
        /// Encoded by the logical unit, with its own version.
        #[serde(with = "super::hexadecimal")]
        encoded: Vec<u8>,
    },
    /// Replaces the settings.
    ChangeSettings {
        /// All of them.
        settings: Settings,
    },
    /// Goes over to a newer format of this state and of these commands: every voter knows it. Idempotent.
    RaiseFormat {
        /// Which.
        format: u32,
    },
    /// Somebody is told when something is the matter, in place of who had that name before.
    SetAlert {
        /// Its name.
        name: AlertName,
        /// Who, and how.
        target: AlertTarget,
    },
    /// Takes that back. Idempotent.
    RemoveAlert {
        /// Its name.
        name: AlertName,
    },
    /// Somebody may sign in to the console.
    AddUser {
        /// His name, not that of another user.
        name: UserName,
        /// What he may do.
        role: Role,
        /// How his password is checked.
        password: Option<PasswordHash>,
        /// By which he may set one.
        invitation: Option<Invitation>,
    },
    /// Takes that back, with all tokens. Idempotent.
    RemoveUser {
        /// Whose.
        name: UserName,
    },
    /// Changes what a user may do.
    SetUserRole {
        /// Who.
        name: UserName,
        /// What he may do.
        role: Role,
    },
    /// Sets a user's password. A link that he had is void from then on.
    SetPassword {
        /// Whose.
        name: UserName,
        /// How it is checked.
        password: PasswordHash,
        /// The link by which it is set, which has to be his present one; none when an administrator does it, or he himself.
        by: Option<KeyDigest>,
        /// When, in milliseconds since 1970.
        set_unix_ms: u64,
    },
    /// Gives a user a link by which he sets a password, in place of an earlier one.
    InviteUser {
        /// Whom.
        name: UserName,
        /// The link.
        invitation: Invitation,
    },
    /// Gives a user a token for scripts.
    AddToken {
        /// Whom.
        user: UserName,
        /// What it is for.
        name: TokenName,
        /// The token.
        token: ApiToken,
    },
    /// Takes that back. Idempotent.
    RemoveToken {
        /// Whose.
        user: UserName,
        /// Which.
        name: TokenName,
    },
}

/// What an accepted command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It changed the state.
    Changed,
    /// The state already was as asked.
    Unchanged,
    /// A volume was created.
    VolumeCreated {
        /// Its number.
        id: VolumeId,
    },
    /// A volume was deleted: every node now purges it.
    VolumeDeleted {
        /// Its number.
        id: VolumeId,
    },
    /// An epoch began.
    EpochBegun {
        /// Its number.
        epoch: u32,
    },
    /// Reservations were saved.
    ReservationsSaved {
        /// How often this volume's have been saved.
        revision: u64,
    },
    /// The volume is open to every initiator, which is to be said aloud.
    OpenToEveryone {
        /// Whether it was not before.
        is_new: bool,
    },
}
