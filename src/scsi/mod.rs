//! The SCSI direct-access block device: SAM-5 task management, SPC-4 primary commands and SBC-3 block
//! commands over a [`crate::volume::device::BlockDevice`].
//!
//! A [`logical_unit::LogicalUnit`] is one volume seen by its initiators. It knows nexuses, tasks, unit
//! attentions, mode parameters and reservations, and turns a CDB with its data into device requests.
//! It knows no transport, no socket and no clock: a transport attaches nexuses, admits tasks when their
//! command arrives, executes them when their data is there, and computes its own residuals.
//!
//! Guarantees: no byte of a CDB or a parameter list panics or allocates beyond the limits in
//! [`limits`]; a task that has been aborted, or whose nexus is lost or preempted, has no effect on the
//! medium after the wait for its drain has ended.

pub mod asymmetric_access;
pub mod attention;
pub mod cdb;
pub mod command;
pub mod copy;
pub mod forward;
pub mod fuzzing;
pub mod identity;
pub mod limits;
pub mod logical_unit;
pub mod mutant;
pub mod nexuses;
pub mod operation;
pub mod reservation;
pub mod sense;
pub mod space;
pub mod statistics;
pub mod target;
pub mod task_set;

mod atomic;
mod capacity;
mod copy_parameters;
mod copy_results;
mod execution;
mod inquiry;
mod maintenance;
mod medium;
mod mode;
mod mode_page;
mod provisioning;
pub mod rate_limit;
mod sanitize;
mod serving;
mod target_port_groups;
mod unit_control;
mod vital_product_data;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
