//! The mirror: every write of a volume on two nodes before it is acknowledged.
//!
//! - `message`: what the two ends of a stream say.
//! - `primary`: a block store whose appends complete on both replicas ([`Mirror`]).
//! - `replica`: takes them in order, fenced by epochs ([`Replica`]).
//!
//! Which node is primary in which epoch, and who is in sync, is decided in `cluster`; the rules are those of
//! `docs/protocol.md`. How a stream is carried is the daemon's business.

mod chain;
mod message;
mod primary;
mod replica;
#[cfg(test)]
mod tests;

pub use message::{FromReplica, ReplicaFailure, ToReplica};
pub use primary::{ChainStart, Mirror, MirrorEvent, ReplicaLink, Requirement};
pub use replica::{Fence, Replica};
