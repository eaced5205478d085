//! The storage service, `gemeld`: everything that touches sockets, clocks, threads and signals.
//!
//! Two threads, each with an event loop of its own. The *data thread* ([`data`]) owns disks, store,
//! volumes and iSCSI sessions. The *control thread* ([`start`]) owns the node's records and answers
//! management, console and metrics; the two speak through [`engine`] and [`control_requests`] only.

pub mod accounts;
pub mod alerts;
pub mod calls;
pub mod cluster_stop;
pub mod config;
pub mod console;
pub mod control;
pub mod control_requests;
pub mod data;
pub mod disk_health;
pub mod engine;
pub mod event_log;
pub mod floating;
pub mod gateway;
pub mod history;
mod images;
pub mod iscsi_server;
pub mod listen;
pub mod management;
pub mod metrics;
pub mod notify;
pub mod others;
pub mod pool_watch;
pub mod power;
pub mod services;
pub mod snapshot_commands;
pub mod start;
pub mod state_directory;
pub mod steady_clock;
pub mod syslog;

pub use start::run;
