//! The mirror: every write of a volume on two nodes before it is acknowledged.
//!
//! - `message`: what the two ends of a stream say.
//! - `primary`: a block store whose appends complete on both replicas ([`Mirror`]); `chain` has what is in
//!   flight, `window` the credits, `stream` the beginning and the end of streams.
//! - `replica`: takes them in order, fenced by epochs ([`Replicas`]); `reconcile` is what it does about snapshots.
//! - `wire`: the messages as bytes.
//! - `resync`: brings a replica up to date ([`Resync`]); `joiner` is what it sends with, `stages` what has to become
//!   of each part, `coverage` what a replica has in the meantime. `snapshots` are those of the primary.
//!
//! Which node is primary in which epoch, and who is in sync, is decided in `cluster`; the rules are those of
//! `docs/protocol.md`. How a stream is carried is the daemon's business.

mod chain;
mod coverage;
mod healing;
mod joiner;
mod message;
pub mod mutant;
mod pace;
mod primary;
mod reconcile;
mod replica;
mod resync;
mod snapshots;
mod stages;
mod stream;
#[cfg(test)]
mod tests;
mod window;
mod wire;

pub use coverage::{Coverage, CoverageStep, END, Held, MOST_STEPS};
pub use joiner::{Joiner, StreamEnded};
pub use message::{FromReplica, ReplicaFailure, StreamId, ToReplica, size_of_writes};
pub use pace::Pace;
pub use primary::{Mirror, MirrorEvent, ReplicaLink, Requirement};
pub use replica::{Fence, Records, ReplicaStream, Replicas};
pub use resync::{Resync, ResyncError, ResyncProgress};
pub use window::WindowLimits;
pub use wire::WireError;
