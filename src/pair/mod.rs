//! A node's part in its mirrored volumes: serves what it may, mirrors to the peer, takes the peer's writes,
//! brings the peer up to date, and proposes what has to change.
//!
//! One [`Part`](part) a volume follows the control state and does what `cluster::role` says: open the volume in
//! a new epoch, go on into the next one, stop. What it proposes, and when, is here:
//! - a primary without an answer of its replica for [`Patience::replica`] shrinks the in-sync set;
//! - a member whose primary is gone for [`Patience::primary`] promises the next epoch, so that what it has
//!   does not change any more, and takes over;
//! - a primary alone brings a returning replica up to date, and proposes the larger set;
//! - a node whose store is gone proposes nothing and serves nothing: its peer takes over, or goes on without it, at
//!   once; one whose store is stuck waits, and its peer takes over when it has been stuck for [`Patience::primary`];
//! - a node that has less than was acknowledged, as its disks have lost what they had confirmed, serves nothing of it
//!   and gives way to the other member, if there is one;
//! - a volume leaves a node in maintenance, and returns to its home when it was on both for [`Patience::home`];
//! - a node that is told to stop its volumes on purpose drains each and proposes the certificate that both replicas are
//!   equal; after a start either node begins from it, the former primary at once, the other one when it misses that;
//! - a restarted primary begins an epoch before anything else, and serves it when both replicas are level, or
//!   alone;
//! - a proposal whose outcome does not show is followed by a restart of the epoch, whose outcome settles it.
//!
//! Guarantees, with those of `cluster::role`, `mirror` and the leases: hosts are let in only while this node may
//! serve, and what they read was read while it could (I5, I9); a promise is durable before anything of its epoch
//! is taken, and behind the end of all that this node did in older ones (I6, I7).
//!
//! Left to others: consensus and leases, connections, what hosts see ([`Hosts`]). No clock and no socket: the
//! simulator runs the same code (`sim::cluster_world`, which is also its test).

pub mod mutant;
mod node;
mod part;
mod proposals;
mod store;

use std::time::Duration;

pub use node::{Node, NodeServices};
pub use part::{ForceRefused, PartReport, PartState};
pub use store::{Permit, ServedStore};

use crate::base::runtime::LocalBoxFuture;
use crate::base::units::VolumeId;
use crate::cluster::lease::StoreHealth;
use crate::cluster::state::Command;
use crate::cluster::state::volume::VolumeRecord;
use crate::volume::Volume;

/// What a node's parts need of the cluster.
pub trait Surroundings {
    /// Has a command proposed. What came of it is learned from the control state and from nothing else.
    fn propose(&self, command: Command);
    /// Whether this node holds its lease at this moment, having seen the control state that it was given.
    fn has_lease(&self) -> bool;
    /// Whether the peer can be reached, or was until a moment ago.
    fn is_peer_alive(&self) -> bool;
    /// How the store of this node is, and that of the peer, as was last heard of it.
    fn stores(&self) -> (StoreHealth, StoreHealth);
    /// What is the matter with the peer, for people, as the end of a sentence that begins with its name.
    fn peer_trouble(&self) -> String;
    /// The newest epoch that was promised for a volume, as saved.
    fn promised(&self, volume: VolumeId) -> u32;
    /// Saves a promise durably. Whether that worked.
    fn save_promise(&self, volume: VolumeId, epoch: u32) -> LocalBoxFuture<'static, bool>;
    /// Something that an administrator should find in the event log: epochs that begin are there already.
    fn event(&self, volume: &VolumeRecord, message: String);
}

/// Who lets hosts use volumes.
pub trait Hosts<S: crate::store::interface::BlockStore + 'static> {
    /// Hosts may use the volume from now on; or why they can't, for people.
    fn attach(
        &self,
        record: &VolumeRecord,
        volume: Volume<ServedStore<S>>,
    ) -> LocalBoxFuture<'static, Result<(), String>>;
    /// Hosts may not use it any more: no command begins from the call on. Complete when none is in progress; what
    /// they wait for in the volume is failed between the call and the first poll.
    fn detach(&self, volume: VolumeId) -> LocalBoxFuture<'static, ()>;
    /// This node has the right to serve the volume, perhaps again after a lapse: commands that wait for it begin.
    fn permitted(&self, volume: VolumeId);
}

/// How long something is waited for before something else is done.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For an answer of the replica, before the primary goes on without it.
    pub replica: Duration,
    /// For the primary, before a replica takes over. Longer, so that a primary that lives wins.
    pub primary: Duration,
    /// With a volume on both nodes, before it returns to its home.
    pub home: Duration,
    /// For both to have everything, before an asked hand-over is given up.
    pub hand_over: Duration,
    /// For the outcome of a proposal, before another one is made.
    pub proposal: Duration,
    /// Between two times at which both stores are told what both have.
    pub settled: Duration,
    /// Between two looks at all of this.
    pub tick: Duration,
}

impl Patience {
    /// For a local network.
    pub const LAN: Self = Self {
        replica: Duration::from_millis(1000),
        primary: Duration::from_millis(1500),
        home: Duration::from_secs(60),
        hand_over: Duration::from_secs(8),
        proposal: Duration::from_millis(1000),
        settled: Duration::from_millis(1000),
        tick: Duration::from_millis(50),
    };
}
