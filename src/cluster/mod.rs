//! The control plane: what the whole cluster agrees on.
//!
//! [`state`] is a deterministic state machine: cluster, nodes, volumes, who serves them and which
//! replicas are in sync, access lists, CHAP credentials, reservations. [`raft`] brings the same commands in
//! the same order to both nodes and the witness. [`lease`] says who may serve at all, [`role`] what a node may
//! do with one volume. [`quorum`] is all of it but the roles, as one member runs it. [`name`] holds the names
//! that the state is made of, as types that can't be invalid, [`versions`] which programs fit each other. The daemon of a
//! single node applies and persists commands by itself.
//!
//! No clock, no randomness, no input or output: what depends on them comes inside a command.

pub mod lease;
pub mod mutant;
pub mod name;
pub mod quorum;
pub mod raft;
pub mod role;
pub mod state;
pub mod versions;
