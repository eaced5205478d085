//! The mirror against simulated stores, disks and streams.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod by_hand;
mod healing;
mod mutants;
mod pair;
mod snapshots;
mod world;
