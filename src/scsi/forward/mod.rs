//! Commands that arrive at a node that does not serve, carried to the one that does: the rules by which both together
//! are one logical unit. [`message`] is what they say to each other, [`front`] and [`service`] are the two ends; the
//! transport is elsewhere.
//!
//! The *front* node has the session; the *serving* node has the device. The front calls; the serving node answers, and
//! says which volumes it serves. One time that it has a volume's device is a *term*: what names another term than the
//! present one is not executed.
//!
//! # Nexus
//!
//! A forwarded command acts under the nexus of the real initiator port through the real target port, the front's.
//! The serving node attaches that nexus to its unit as if the session were there
//! ([`attach_forwarded`](crate::scsi::logical_unit::LogicalUnit::attach_forwarded)) and detaches it when the front says that the session has ended, or when the
//! connection to the front is lost. So reservations, INQUIRY pages and PREEMPT AND ABORT need no rule of their own:
//! the registrant is the initiator with the front's relative target port.
//!
//! # What is forwarded
//!
//! Everything but INQUIRY, REPORT LUNS and REPORT TARGET PORT GROUPS, which each node answers by itself: a host must be
//! able to find out about its path when nothing else works. Unit attentions that the front itself has established
//! (access states have changed) come first; the command that reports one goes no further.
//!
//! # Order and task management
//!
//! The front admits each command to its own unit's task set, as always, collects the data and waits for the
//! command's turn there; only then it is forwarded, so SIMPLE, ORDERED and HEAD OF QUEUE hold over both sets, and
//! the limits of the front's set bound what is under way. A management function goes to both, in one stream with the
//! commands: the front ends what it has not forwarded and passes the function on; it answers when its own drain and the
//! serving node's are over. ABORT TASK names the task by nexus and tag, which are the same at both. A task counts as
//! executing at the front until its answer is there, whatever has aborted it.
//!
//! # When the connection is lost
//!
//! The front does not know whether a forwarded write will still take effect, so it must not answer it in a way that
//! has the host write again, while the first write may yet land (I16). It keeps the command *in limbo* until one of:
//! - the serving node, over a new connection, has said Welcome: it aborts all tasks of the front's nexuses when it
//!   loses a connection, and says Welcome when they have drained, or if it is a new process;
//! - this node has the device itself: the former serving node was deposed, and whatever it wrote is settled.
//!
//! Then the command ends with NOT READY, 04/0A, and the host sends it again; or in silence when the session is over.
//! What changes nothing (reads) need not wait for that, and is executed where the volume is served next. The argument
//! is in docs/protocol.md.
//!
//! # Unit attentions
//!
//! The serving node has the one queue of each nexus; it checks it before each command, so nothing is reported late.
//! The front keeps a copy, which every change of the queue brings up to date, before the answer that it has to do with:
//! when forwarding ends, however it does, the copy is the nexus's queue at the front. In the same way the front has
//! the reservations that were in force, and whose consequences its nexuses have been told; so whoever serves next finds
//! exactly what they have not heard of yet (see the `serving` module).
//!
//! # No circular waits
//!
//! A forwarded command may wait for mirror writes, which the serving node sends to the front: these must never wait
//! for a forwarded command, so both have connections and credits of their own. The serving node takes every message
//! at once; what the front may have under way is bounded ([`FORWARDED_COMMANDS`](crate::scsi::limits::FORWARDED_COMMANDS),
//! [`FORWARDED_BYTES`](crate::scsi::limits::FORWARDED_BYTES)), and what is beyond gets TASK SET FULL (I25). A command is forwarded once: a node that
//! does not serve refuses what was forwarded to it.

pub mod front;
pub mod message;
pub mod service;
mod unit;
#[cfg(test)]
pub(super) mod world;

use bytes::Bytes;
use futures::future::LocalBoxFuture;

use super::cdb::Cdb;
use super::command::{Command, Response};
use super::identity::{Nexus, NexusId};
use super::sense::AdditionalSense;
use super::task_set::TaskAttribute;

/// A command on its way to the serving node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedCommand {
    /// What tells the nexus's tasks apart.
    pub tag: u64,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// The CDB.
    pub cdb: Cdb,
    /// Bytes that the initiator is prepared to receive.
    pub expected_in: u32,
    /// What the initiator has sent, complete.
    pub data_out: Vec<Bytes>,
}

impl ForwardedCommand {
    /// The command as the serving unit executes it.
    #[must_use]
    pub fn into_command(self) -> Command {
        // A transfer is bounded by its own limit, whatever the initiator would take.
        let expected_in = self.expected_in as usize;
        Command { cdb: self.cdb, data_out: self.data_out, expected_in }
    }
}

/// The end of a forwarded command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedAnswer {
    /// The command's tag.
    pub tag: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a forwarded command at the node that it was sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing, and nothing will: that node does not serve the volume.
    NotBegun,
    /// Its response; none when it was aborted without one being due.
    Ended(Option<Response>),
}

/// What became of a command that was to be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// It was executed; its response, or none when it was aborted without one being due.
    Answered(Option<Response>),
    /// It was not executed, or changed nothing: it may be executed somewhere else.
    NotBegun,
    /// Whether it was executed is not known; it will have no effect from now on.
    Lost,
    /// Too much is under way.
    Full,
    /// The node is stopping, or the volume is gone.
    Closed,
}

/// A task management function, as far as it affects tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Management {
    /// ABORT TASK, by its tag.
    AbortTask(u64),
    /// ABORT TASK SET.
    AbortTaskSet,
    /// CLEAR TASK SET.
    ClearTaskSet,
    /// LOGICAL UNIT RESET, and what a target reset does to each logical unit.
    Reset,
}

/// The way from a unit to the serving node, during one term.
pub trait ForwardPath {
    /// A nexus is there, with what is pending for it.
    fn attach(&self, id: NexusId, nexus: Nexus, pending: Vec<AdditionalSense>);
    /// A nexus has ended: its tasks there are aborted.
    fn detach(&self, id: NexusId);
    /// Forwards a command at once; the future waits for its end. `is_harmless`: it changes nothing.
    fn execute(
        &self,
        nexus: NexusId,
        command: ForwardedCommand,
        is_harmless: bool,
    ) -> LocalBoxFuture<'static, Forwarded>;
    /// Passes a management function on at once; the future waits for its drain. Whether it was done.
    fn manage(&self, nexus: NexusId, function: Management) -> LocalBoxFuture<'static, bool>;
}
