//! The logical unit: one volume as its initiators see it.
//!
//! Life of a command: the transport admits a [`Task`] when the command arrives, collects its data-out,
//! and executes it: the task waits for its turn, then the execution module checks and dispatches it.
//!
//! Invariant I16: whatever ends a nexus or its tasks ([`LogicalUnit::detach`], aborts, resets, PREEMPT
//! AND ABORT) gives back a [`Drain`]; when it is over, no effect of these tasks can follow. The
//! transport answers the management function, or takes up the session again, only then.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use super::command::{Command, Failure, Response, Status};
use super::copy::CopyResolver;
use super::copy_results::CopyResults;
use super::execution::Context;
use super::identity::{Identity, NexusId};
use super::mode_page::ModePages;
use super::nexuses::Nexuses;
use super::reservation::state::PersistentState;
use super::reservation::store::RestoreError;
use super::reservation::{PersistedReservations, ReservationStore, Reservations};
use super::sanitize::Sanitizer;
use super::sense::{AdditionalSense, Sense, SenseKey};
use super::space::{PoolSpace, SpaceWatch};
use super::statistics::Statistics;
use super::task_set::{Abort, Drain, Refusal, Task, TaskAttribute, TaskSet};
use crate::base::runtime::RuntimeHandle;
use crate::volume::device::BlockDevice;

/// A logical unit over a block device.
pub struct LogicalUnit<D> {
    identity: Identity,
    device: D,
    services: Services<D>,
    pub(super) nexuses: Nexuses,
    mode_pages: RefCell<ModePages>,
    tasks: TaskSet,
    reservations: Reservations,
    sanitizer: Sanitizer,
    space_watch: SpaceWatch,
    copy_results: RefCell<CopyResults>,
    statistics: Statistics,
    this: Weak<Self>,
}

/// What a logical unit needs of the world besides its device.
pub struct Services<D> {
    /// Timers and background tasks.
    pub runtime: RuntimeHandle,
    /// Where persistent reservations are kept.
    pub reservations: Rc<dyn ReservationStore>,
    /// Other logical units that copies may reach.
    pub copies: Rc<dyn CopyResolver<D>>,
    /// How much space there is.
    pub space: Rc<dyn PoolSpace>,
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// The logical unit of `device`, with the persistent reservations that were saved: as they are
    /// after a takeover, or as [`PersistedReservations::after_power_loss`] leaves them.
    ///
    /// # Errors
    /// The saved reservations can't be used; serving without them would break their promise.
    pub fn new(
        identity: Identity,
        device: D,
        services: Services<D>,
        saved: &PersistedReservations,
    ) -> Result<Rc<Self>, RestoreError> {
        assert!(!identity.target_ports.is_empty(), "a logical unit without a port");
        let persistent = PersistentState::try_from(saved)?;
        Ok(Rc::new_cyclic(|this| Self {
            identity,
            device,
            services,
            nexuses: Nexuses::default(),
            mode_pages: RefCell::default(),
            tasks: TaskSet::default(),
            reservations: Reservations::new(persistent),
            sanitizer: Sanitizer::default(),
            space_watch: SpaceWatch::default(),
            copy_results: RefCell::default(),
            statistics: Statistics::default(),
            this: this.clone(),
        }))
    }

    /// Admits a task when its command arrives. `tag` tells the nexus's tasks apart for ABORT TASK.
    ///
    /// # Errors
    /// The response to give when the task set is full or being reset.
    pub fn admit(&self, nexus: NexusId, tag: u64, attribute: TaskAttribute) -> Result<Task, Response> {
        self.tasks.admit(nexus, tag, attribute).map_err(|refusal| {
            Response::of(match refusal {
                Refusal::Full => Status::TaskSetFull,
                Refusal::Busy => Status::Busy,
            })
        })
    }

    /// Executes a task whose data-out is complete. Gives back nothing when the task was aborted
    /// without a response being due. Has to be polled to its end: what a dropped execution leaves
    /// behind in the device is waited for by nobody.
    pub async fn execute(&self, task: Task, command: Command) -> Option<Response> {
        task.start().await;
        let context = Context::new(&task);
        let outcome = self.run(&context, command).await;
        match task.abort() {
            Some(Abort::Silent) => None,
            Some(Abort::Reported) => Some(Response::of(Status::TaskAborted)),
            None => {
                let descriptor_format = self.mode_pages.borrow().descriptor_sense();
                Response::from_outcome(outcome, context.wanted(), descriptor_format)
            }
        }
    }

    /// ABORT TASK. Nothing when the nexus has no such task.
    pub fn abort_task(&self, nexus: NexusId, tag: u64) -> Option<Drain> {
        self.tasks.abort_task(nexus, tag)
    }

    /// ABORT TASK SET: all tasks of the nexus.
    pub fn abort_task_set(&self, nexus: NexusId) -> Drain {
        self.tasks.abort_nexus(nexus)
    }

    /// CLEAR TASK SET: all tasks of all nexuses; the others that lost some are told.
    pub fn clear_task_set(&self, nexus: NexusId) -> Drain {
        let (drain, others) = self.tasks.abort_all(Some(nexus));
        for other in others {
            self.attention(other, AdditionalSense::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR);
        }
        drain
    }

    /// LOGICAL UNIT RESET, and what a target reset does to each logical unit. Persistent reservations
    /// stay; mode parameters go back to their defaults.
    pub fn reset(&self, requester: Option<NexusId>) -> Drain {
        *self.mode_pages.borrow_mut() = ModePages::default();
        self.reservations.reset();
        self.attention_to_all(AdditionalSense::BUS_DEVICE_RESET_FUNCTION_OCCURRED);
        self.tasks.reset(requester)
    }

    /// QUERY TASK (with a tag) and QUERY TASK SET.
    #[must_use]
    pub fn query_task(&self, nexus: NexusId, tag: Option<u64>) -> bool {
        self.tasks.query(nexus, tag)
    }

    /// To be called when the device has a new size.
    pub fn capacity_changed(&self) {
        self.attention_to_all(AdditionalSense::CAPACITY_DATA_HAS_CHANGED);
    }

    /// The device below.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The names of the logical unit.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Counters since start.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Refuses writing while SWP is set.
    pub(super) fn check_writable(&self) -> Result<(), Failure> {
        if self.mode_pages.borrow().write_protected() {
            let code = AdditionalSense::SOFTWARE_WRITE_PROTECTED;
            return Err(Sense::new(SenseKey::DataProtect, code).into());
        }
        Ok(())
    }

    pub(super) fn block_bytes(&self) -> u32 {
        self.device.geometry().logical_block_bytes
    }

    pub(super) fn mode_pages(&self) -> &RefCell<ModePages> {
        &self.mode_pages
    }

    pub(super) fn services(&self) -> &Services<D> {
        &self.services
    }

    pub(super) fn tasks(&self) -> &TaskSet {
        &self.tasks
    }

    pub(super) fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    pub(super) fn sanitizer(&self) -> &Sanitizer {
        &self.sanitizer
    }

    pub(super) fn space_watch(&self) -> &SpaceWatch {
        &self.space_watch
    }

    pub(super) fn copy_results(&self) -> &RefCell<CopyResults> {
        &self.copy_results
    }

    /// This unit, for work that outlives the command.
    pub(super) fn shared(&self) -> Rc<Self> {
        self.this.upgrade().expect("whoever calls holds a reference")
    }
}

#[cfg(test)]
mod tests;
