//! gemel: two ordinary servers as one iSCSI storage array that survives the loss of either room.
//!
//! Modules are layers; a lower one never names a higher one (`tests/layering.rs` holds that):
//! `daemon`, `witness`, `cli` over `rpc` and `peer` (the edges: sockets, clocks, threads) over `iscsi`, `scsi`,
//! `mirror`, `cluster` (protocols without input or output) over `volume` over `store` over `array`
//! over `disk` over `base`. `sim` is the simulated world that tests run the same code in.

pub mod array;
pub mod base;
pub mod cli;
pub mod cluster;
pub mod daemon;
pub mod disk;
pub mod iscsi;
pub mod mirror;
pub mod pair;
pub mod peer;
pub mod rpc;
pub mod scsi;
pub mod sim;
pub mod store;
pub mod volume;
pub mod witness;
