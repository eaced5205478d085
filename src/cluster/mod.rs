//! The control plane: what the whole cluster agrees on.
//!
//! [`state`] is a deterministic state machine: cluster, nodes, volumes, who serves them and which
//! replicas are in sync, access lists, CHAP credentials, reservations. [`name`] holds the names that
//! it is made of, as types that can't be invalid. Consensus and leases will stand beside them and
//! feed the same machine; until then the daemon of the only node applies and persists commands.
//!
//! No clock, no randomness, no input or output: what depends on them comes inside a command.

pub mod name;
pub mod state;
