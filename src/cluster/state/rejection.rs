//! Why a command was rejected, and what to do instead.

use crate::base::units::VolumeId;
use crate::cluster::name::{HostGroupName, InitiatorName, NodeName, TokenName, UserName, VolumeName};

/// A command that the state does not allow. Nothing was changed by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The log entry was applied before.
    #[error("entry {index} was applied already, up to {applied_index}")]
    AlreadyApplied {
        /// Index of the entry.
        index: u64,
        /// Index of the last entry applied.
        applied_index: u64,
    },
    /// Not every voter is known to understand the command.
    #[error(
        "a member of the cluster runs a release that does not know this yet (the control state has format {present}, and this \
         needs {needed}): bring all members to the new release first; `gemel cluster show` tells their versions"
    )]
    NewerFormat {
        /// Format that it needs.
        needed: u32,
        /// Format that the state has.
        present: u32,
    },
    /// No host group has this name.
    #[error("there is no host group {0}: `gemel access group list` shows those that exist")]
    NoSuchHostGroup(HostGroupName),
    /// An access list names the host group.
    #[error(
        "host group {group} may use volume {volume}: take that back first (`gemel access deny {volume} group:{group}`)"
    )]
    HostGroupInUse {
        /// The group.
        group: HostGroupName,
        /// One of the volumes.
        volume: VolumeName,
    },
    /// There is no cluster yet.
    #[error("there is no cluster yet: create it first")]
    NoCluster,
    /// There is a cluster already.
    #[error("the cluster {name} exists already")]
    ClusterExists {
        /// Its name.
        name: String,
    },
    /// No node has this name.
    #[error("there is no node {0}: `gemel node list` shows those that exist")]
    NoSuchNode(NodeName),
    /// A volume still needs the node.
    #[error("node {node} serves or holds volume {volume}: move or delete the volume first")]
    NodeInUse {
        /// The node.
        node: NodeName,
        /// One of the volumes.
        volume: VolumeName,
    },
    /// A mirrored volume was asked for where there are not two nodes.
    #[error("a mirrored volume needs two nodes, and there is {node_count}: add a node, or make it local")]
    NeedsTwoNodes {
        /// Nodes present.
        node_count: usize,
    },
    /// A volume of that name exists.
    #[error("a volume named {0} exists already: choose another name")]
    VolumeExists(VolumeName),
    /// No volume has this name.
    #[error("there is no volume {0}: `gemel volume list` shows those that exist")]
    NoSuchVolume(VolumeName),
    /// No volume has this number.
    #[error("there is no volume with the number {}", .0.0)]
    NoSuchVolumeId(VolumeId),
    /// The size is not one that a volume can have.
    #[error(
        "a volume has from 1 MiB to 64 TiB, in multiples of 4 KiB; {size_bytes} bytes is not such a size"
    )]
    BadSize {
        /// Size asked for.
        size_bytes: u64,
    },
    /// The volume would become smaller.
    #[error(
        "volume {volume} has {from_bytes} bytes, and shrinking it to {to_bytes} loses what lies beyond: \
         shrink the file system first, then ask for the shrinking"
    )]
    WouldShrink {
        /// The volume.
        volume: VolumeName,
        /// Present size.
        from_bytes: u64,
        /// Size asked for.
        to_bytes: u64,
    },
    /// What is asked needs a mirror, and the volume has none.
    #[error("volume {0} has no mirror: it is on one node alone")]
    NotMirrored(VolumeName),
    /// Hosts have reservations or registrations on the volume.
    #[error(
        "volume {volume} has {registration_count} persistent registrations: a cluster uses it; stop that \
         first, or force the deletion"
    )]
    VolumeReserved {
        /// The volume.
        volume: VolumeName,
        /// Registrations.
        registration_count: u32,
    },
    /// Clones need what the volume has.
    #[error(
        "volume {volume} has clones, which need it: {clone} is one of them; delete those first (`gemel volume list` shows what \
         each is made of)"
    )]
    HasClones {
        /// The volume.
        volume: VolumeName,
        /// A clone of it.
        clone: VolumeName,
    },
    /// Clones of clones go so far and no further.
    #[error(
        "volume {volume} has {limit} volumes behind it, the most that there may be: a clone of it takes a copy (`gemel volume \
         export` and `import`)"
    )]
    LineageTooLong {
        /// The volume.
        volume: VolumeName,
        /// The limit.
        limit: usize,
    },
    /// No snapshot can have this name.
    #[error(
        "a snapshot's name has 1 to 128 letters, digits, '.', '_', '-' or ':', and does not begin with '-'"
    )]
    BadSnapshotName,
    /// The volume is in another epoch than the proposal was made for.
    #[error("volume {volume} is in epoch {current}, not {expected}: look again, then decide anew")]
    StaleEpoch {
        /// The volume.
        volume: VolumeName,
        /// Epoch that the proposal expects.
        expected: u32,
        /// Epoch that it has.
        current: u32,
    },
    /// The reservations have been saved since the proposal was made.
    #[error(
        "the reservations of volume {volume} have been saved {current} times, not {expected}: look again"
    )]
    StaleReservations {
        /// The volume.
        volume: VolumeName,
        /// How often, as the proposal has it.
        expected: u64,
        /// How often in fact.
        current: u64,
    },
    /// A node that does not hold all acknowledged data can't become primary.
    #[error("node {node} is not in sync with volume {volume}, so it cannot serve it")]
    NotInSync {
        /// The volume.
        volume: VolumeName,
        /// The node.
        node: NodeName,
    },
    /// The new set of replicas does not fit the kind of transition.
    #[error("volume {volume}: this set of in-sync nodes cannot follow from the present one in that way")]
    BadTransition {
        /// The volume.
        volume: VolumeName,
    },
    /// Sequence numbers of a new epoch would begin before those of an older one.
    #[error("volume {volume}: sequence numbers only grow, and {first_sequence} is less than {previous}")]
    SequenceWentBack {
        /// The volume.
        volume: VolumeName,
        /// First number proposed for the new epoch.
        first_sequence: u64,
        /// First number of an epoch before.
        previous: u64,
    },
    /// A description of a node that nothing could be done with.
    #[error(
        "a node is described by up to 8 addresses and a room of up to 262 printable characters each, and a \
         certificate's SHA-256"
    )]
    BadDescription,
    /// A key of a machine that was removed or replaced.
    #[error(
        "the key of that machine is void, as it was removed or replaced: delete its node.key, then join again with a new \
         token"
    )]
    VoidKey,
    /// The reservations are larger than any real set of them.
    #[error("the reservations take {size_bytes} bytes, more than {limit_bytes}")]
    ReservationsTooLarge {
        /// Their size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A CHAP secret of a length that is not safe, or that does not fit.
    #[error(
        "a CHAP secret has 12 to 255 bytes, and one of these has {length_bytes} (Microsoft's initiator takes \
         12 to 16)"
    )]
    SecretLength {
        /// Its length.
        length_bytes: usize,
    },
    /// The same secret in both directions allows reflection.
    #[error(
        "the mutual CHAP secret for {initiator} is also a secret by which an initiator authenticates: choose \
         two different secrets"
    )]
    SecretReused {
        /// Whose credentials were to be set.
        initiator: InitiatorName,
    },
    /// A CHAP user name that can't be carried.
    #[error("a CHAP user name has 1 to 255 printable ASCII characters without spaces")]
    BadUserName,
    /// A setting out of its range.
    #[error("{name} must be from {least} to {most}")]
    BadSetting {
        /// The setting.
        name: &'static str,
        /// Smallest value allowed.
        least: u64,
        /// Greatest value allowed.
        most: u64,
    },
    /// A limit with which no host could live.
    #[error(
        "a volume's limits are at least {least_iops} operations and {least_bytes_per_second} bytes a second, as hosts give up \
         what takes too long; 0 stands for none"
    )]
    BadLimit {
        /// Least operations a second.
        least_iops: u64,
        /// Least bytes a second.
        least_bytes_per_second: u64,
    },
    /// More is to be kept for a volume than it may take.
    #[error("a volume's quota is not less than what is reserved for it: change both together")]
    QuotaBelowReservation,
    /// An alert that could never be sent.
    #[error(
        "an alert goes by mail, which takes a server, a sender and 1 to 32 recipients, or to a URL that begins with \
         http:// or https://; none of these may have spaces or more than 1024 characters; a repetition is at most a \
         year"
    )]
    BadAlert,
    /// A user of that name exists.
    #[error("there is a user {0} already: `gemel user list` shows who may sign in")]
    UserExists(UserName),
    /// No user has this name.
    #[error("there is no user {0}: `gemel user list` shows who may sign in")]
    NoSuchUser(UserName),
    /// The user has a token of that name.
    #[error("there is a token {0} of this user already: remove it first, or choose another name")]
    TokenExists(TokenName),
    /// A link that was used, is too old, or was replaced.
    #[error(
        "this link is not good any more: it was used, is too old, or there is a newer one; an administrator makes \
         another one with `gemel user password NAME --link`"
    )]
    BadInvitation,
    /// A hash or digest that is none.
    #[error("a password is kept as an argon2id hash, and a key as a SHA-256 digest, and this is neither")]
    BadUser,
    /// A table is full.
    #[error("there are {limit} {what} already, the most that a cluster can have")]
    LimitReached {
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}
