//! `gemel cluster`: making a cluster and joining it, on the machines themselves.
//!
//! `init` and `join` write files of this machine; only `join` speaks to another one, the node that made the token. Both
//! may be interrupted anywhere and given again. Everything else about the cluster asks a running node.

pub mod args;
pub mod backup;
pub mod configuration;
pub mod disks;
pub mod init;
pub mod join;
pub mod places;
