//! The logical unit: one volume as its initiators see it.
//!
//! Life of a command: the transport admits a [`Task`] when the command arrives, collects its data-out,
//! and executes it: the task waits for its turn, then the execution module checks and dispatches it.
//!
//! Invariant I16: whatever ends a nexus or its tasks ([`LogicalUnit::detach`], aborts, resets, PREEMPT
//! AND ABORT) gives back a [`Drain`]; when it is over, no effect of these tasks can follow. The
//! transport answers the management function, or takes up the session again, only then.
//!
//! The unit is presented by every node and served by one: its device comes and goes (the `serving` module), and
//! what it answers meanwhile follows from [`super::asymmetric_access`].

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use futures::future::select;

use super::asymmetric_access::{AccessAuthority, AccessState, AsymmetricAccess, GroupAccess};
use super::command::{Command, Failure, Reply, Response, Status, total_length};
use super::copy::CopyResolver;
use super::copy_results::CopyResults;
use super::execution::Context;
use super::forward::ForwardPath;
use super::identity::{Identity, NexusId, TargetPort};
use super::limits;
use super::mode_page::ModePages;
use super::mutant::{self, Mutant};
use super::nexuses::Nexuses;
use super::operation::Operation;
use super::rate_limit::RateLimiter;
use super::reservation::store::RestoreError;
use super::reservation::{PersistedReservations, ReservationStore, Reservations};
use super::sanitize::Sanitizer;
use super::sense::{AdditionalSense, Sense, SenseKey};
use super::space::{PoolSpace, SpaceWatch};
use super::statistics::Statistics;
use super::task_set::{Abort, Drain, Refusal, Task, TaskAttribute, TaskSet};
use crate::base::runtime::RuntimeHandle;
use crate::volume::device::{BlockDevice, DeviceGeometry};

/// A logical unit over a block device.
pub struct LogicalUnit<D> {
    identity: Identity,
    device: RefCell<Option<Rc<D>>>,
    /// The device's size, as it was when there was one last, or as [`LogicalUnit::set_geometry`] has it.
    geometry: Cell<DeviceGeometry>,
    services: Services<D>,
    pub(super) nexuses: Nexuses,
    mode_pages: RefCell<ModePages>,
    tasks: TaskSet,
    reservations: Reservations,
    sanitizer: Sanitizer,
    space_watch: SpaceWatch,
    copy_results: RefCell<CopyResults>,
    asymmetric_access: AsymmetricAccess,
    statistics: Statistics,
    rate_limiter: RateLimiter,
    /// The way to the node that serves, while commands are forwarded.
    forwarding: RefCell<Option<Rc<dyn ForwardPath>>>,
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
    /// Whether this node may serve the unit, and who moves it.
    pub access: Rc<dyn AccessAuthority>,
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// The logical unit of `device`, served here through all its ports, with the persistent reservations that
    /// were saved: as they are after a takeover, or as [`PersistedReservations::after_power_loss`] leaves them.
    ///
    /// # Errors
    /// The saved reservations can't be used; serving without them would break their promise.
    pub fn new(
        identity: Identity,
        device: D,
        services: Services<D>,
        saved: &PersistedReservations,
    ) -> Result<Rc<Self>, RestoreError> {
        let unit = Self::without_device(identity, device.geometry(), services);
        unit.attach_device(device, saved)?;
        let active = |port: &TargetPort| GroupAccess {
            portal_group: port.portal_group,
            state: AccessState::ActiveOptimized,
            preferred: false,
        };
        unit.set_access_states(&unit.identity.target_ports.iter().map(active).collect::<Vec<_>>());
        Ok(unit)
    }

    /// A logical unit that this node presents and does not serve yet: of the size of `geometry`, in transition
    /// until [`LogicalUnit::set_access_states`] has said more.
    #[must_use]
    pub fn without_device(identity: Identity, geometry: DeviceGeometry, services: Services<D>) -> Rc<Self> {
        assert!(!identity.target_ports.is_empty(), "a logical unit without a port");
        let asymmetric_access = AsymmetricAccess::transitioning(&identity.target_ports);
        Rc::new_cyclic(|this| Self {
            identity,
            device: RefCell::default(),
            geometry: Cell::new(geometry),
            services,
            nexuses: Nexuses::default(),
            mode_pages: RefCell::default(),
            tasks: TaskSet::default(),
            reservations: Reservations::default(),
            sanitizer: Sanitizer::default(),
            space_watch: SpaceWatch::default(),
            copy_results: RefCell::default(),
            asymmetric_access,
            statistics: Statistics::default(),
            rate_limiter: RateLimiter::default(),
            forwarding: RefCell::default(),
            this: this.clone(),
        })
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
        let mut is_counted = false;
        for _ in 0..=limits::FORWARD_ATTEMPTS {
            if self.is_held(task.nexus(), &command.cdb) {
                Box::pin(self.hold(&task, &command.cdb)).await; // boxed: rare
            }
            task.start().await;
            let Some(path) = self.way_of(&task, &command) else {
                // Whoever has waited looks again: another node may serve by now.
                if is_counted || !self.rate_limiter.is_on() || Box::pin(self.count(&task, &command)).await {
                    break;
                }
                is_counted = true;
                continue;
            };
            if let Some(response) = Box::pin(self.forward(path, &task, &command)).await {
                return response;
            }
        }
        let context = Context::new(&task);
        let outcome = self.run(&context, command).await.map_err(|failure| match failure {
            // Whatever a withdrawn task failed of: the host is to send it again.
            _ if task.is_withdrawn() => self.refusal(task.nexus()),
            Failure::NotServing => self.refusal(task.nexus()),
            other => other,
        });
        let is_good = mutant::is(Mutant::WithdrawnIsGood) && task.is_withdrawn();
        let outcome = if is_good { Ok(Reply::good()) } else { outcome };
        match task.abort() {
            Some(Abort::Silent) => None,
            Some(Abort::Reported) => Some(Response::of(Status::TaskAborted)),
            None => {
                let descriptor_format = self.mode_pages.borrow().descriptor_sense();
                Response::from_outcome(outcome, context.wanted(), descriptor_format)
            }
        }
    }

    /// Counts a command that reaches for the medium towards the limits of what is done in a second. False when it had to
    /// wait for that.
    async fn count(&self, task: &Task, command: &Command) -> bool {
        let is_medium = Operation::find(&command.cdb).is_ok_and(|operation| operation.kind.moves_blocks());
        let bytes = total_length(&command.data_out).max(command.expected_in) as u64;
        let runtime = &self.services.runtime;
        if !is_medium || task.is_aborted() || self.rate_limiter.try_take(runtime.now(), bytes) {
            return true;
        }
        let waiting = Box::pin(self.rate_limiter.wait(runtime, task.nexus(), bytes));
        drop(select(waiting, Box::pin(task.aborted())).await);
        false
    }

    /// The limits of what is done in a second, for commands that are served here.
    pub fn rate_limiter(&self) -> &RateLimiter {
        &self.rate_limiter
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

    /// To be called when the device has other contents than hosts have put there.
    pub fn contents_changed(&self) {
        self.attention_to_all(AdditionalSense::MEDIUM_MAY_HAVE_CHANGED);
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

    /// What a command gets that the change of the serving node has caught.
    fn refusal(&self, nexus: NexusId) -> Failure {
        self.access_state(self.target_port(nexus).portal_group).refusal().into()
    }

    pub(super) fn block_bytes(&self) -> u32 {
        self.geometry().logical_block_bytes
    }

    /// The size of the unit: the device's, or the latest known.
    pub(super) fn geometry(&self) -> DeviceGeometry {
        self.device.borrow().as_ref().map_or(self.geometry.get(), |device| device.geometry())
    }

    pub(super) fn keep_geometry(&self, geometry: DeviceGeometry) {
        self.geometry.set(geometry);
    }

    pub(super) fn device_slot(&self) -> &RefCell<Option<Rc<D>>> {
        &self.device
    }

    pub(super) fn forwarding_slot(&self) -> &RefCell<Option<Rc<dyn ForwardPath>>> {
        &self.forwarding
    }

    pub(super) fn asymmetric_access(&self) -> &AsymmetricAccess {
        &self.asymmetric_access
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
pub(super) mod tests;
