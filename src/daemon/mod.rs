//! The storage service, `gemeld`: everything that touches sockets, clocks, threads and signals.

pub mod config;

pub mod event_log;
pub mod state_directory;
