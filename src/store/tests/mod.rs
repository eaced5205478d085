//! Tests of the store's state without disks.

pub(crate) mod versions;
