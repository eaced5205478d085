//! Two nodes and the cluster around them, in one deterministic process.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod clients;
mod cluster;
mod mutants;
mod runs;
mod scenarios;
mod site;
