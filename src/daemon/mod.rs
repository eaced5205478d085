//! The storage service, `gemeld`: everything that touches sockets, clocks, threads and signals.

pub mod config;
