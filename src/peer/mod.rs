//! The edge between the members of a cluster: both nodes and the witness.
//!
//! Carries what [`crate::cluster`] decides: its log on a file ([`log_file`]). Rules and formats are not here.

pub mod log_file;
