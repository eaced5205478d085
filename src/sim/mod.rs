//! The simulated world: a seeded scheduler with virtual time, and disks that misbehave on purpose.
//!
//! Guarantees: one seed gives one run, decision for decision ([`executor::Executor::trace_hash`]
//! proves it); nothing in a world reads a clock, a socket, a file or the process's entropy.

#[cfg(test)]
mod cluster_world;
pub mod disk;
pub mod executor;
pub mod fault;
pub mod linearizability;
pub mod medium;
pub mod memory_store;
#[cfg(test)]
pub(crate) mod mutant_search;
pub mod random;
pub mod store_world;
