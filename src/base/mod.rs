//! Vocabulary shared by every layer: units, versions, checksums, buffers, and the runtime trait that
//! keeps clocks, randomness and task scheduling out of the layers above. No input or output here.

pub mod buffer;
pub mod checksum;
pub mod codec;
pub mod event;
pub mod histogram;
pub mod mutant;
pub mod runtime;
pub mod signal;
pub mod units;
