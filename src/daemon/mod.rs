//! The storage service, `gemeld`: everything that touches sockets, clocks, threads and signals.

pub mod config;
pub mod data;
pub mod engine;
pub mod event_log;
pub mod listen;
pub mod metrics;
pub mod notify;
pub mod state_directory;
