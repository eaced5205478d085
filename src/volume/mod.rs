//! Volumes: what a logical unit reads and writes.

pub mod device;
