//! The data thread: disks, store, volumes and iSCSI sessions, on one thread and one event loop.

pub mod driver;
pub mod memory_pool;
pub mod pool;
pub mod runtime;
