//! A logical unit at both ends: its commands on their way to the serving node, and the nexuses of a front's.

use std::rc::Rc;

use futures::future::LocalBoxFuture;

use super::front::FrontUnit;
use super::{ForwardPath, Forwarded, ForwardedCommand, Management};
use crate::scsi::command::{Command, Failure, Response, Status};
use crate::scsi::identity::{Nexus, NexusId};
use crate::scsi::logical_unit::LogicalUnit;
use crate::scsi::mutant::{self, Mutant};
use crate::scsi::nexuses::AttentionWatch;
use crate::scsi::operation::{Access, Kind, Operation};
use crate::scsi::reservation::state::PersistentState;
use crate::scsi::reservation::{PersistedReservations, ReservationWatch};
use crate::scsi::sense::AdditionalSense;
use crate::scsi::task_set::{Abort, Task};
use crate::volume::device::BlockDevice;

/// The serving node's side.
impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// Attaches the nexus of a session at another node, with the unit attentions that were pending there. There is
    /// nothing else to tell it: what it has logged in to is this logical unit. `watch` is told of each change of
    /// its queue, with what is pending then.
    pub fn attach_forwarded(
        &self,
        nexus: Nexus,
        pending: &[AdditionalSense],
        watch: AttentionWatch,
    ) -> NexusId {
        let id = self.attach_nexus(nexus);
        self.take_attentions(id);
        for code in pending {
            self.attention(id, *code);
        }
        self.watch_attentions(id, watch);
        id
    }

    /// Takes all unit attentions that are pending for a nexus, oldest first, to hand them to the node that has the
    /// nexus from now on.
    pub fn take_attentions(&self, nexus: NexusId) -> Vec<AdditionalSense> {
        std::iter::from_fn(|| self.take_attention(nexus)).map(|sense| sense.code).collect()
    }

    /// The persistent reservations in force.
    pub fn reservations_in_force(&self) -> PersistedReservations {
        PersistedReservations::from(&*self.reservations().persistent())
    }

    /// Has `watch` told of each change of the persistent reservations, once it is in force and nexuses have been
    /// told.
    pub fn watch_reservations(&self, watch: ReservationWatch) {
        self.reservations().watch(watch);
    }

    /// Begins a task management function on the tasks that are here; the future waits for its drain.
    pub fn manage_here(&self, nexus: NexusId, function: Management) -> LocalBoxFuture<'static, ()> {
        let drain = match function {
            // A task that is not known any more has ended.
            Management::AbortTask(tag) => self.abort_task(nexus, tag),
            Management::AbortTaskSet => Some(self.abort_task_set(nexus)),
            Management::ClearTaskSet => Some(self.clear_task_set(nexus)),
            Management::Reset => Some(self.reset(Some(nexus))),
        };
        Box::pin(async move {
            if let Some(drain) = drain {
                drain.wait().await;
            }
        })
    }
}

/// The front's side.
impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// A task management function, here and at the serving node. Begins at once; false when it could not be done
    /// everywhere.
    pub fn manage(&self, nexus: NexusId, function: Management) -> LocalBoxFuture<'static, bool> {
        let Some(path) = self.forwarding() else {
            let managed = self.manage_here(nexus, function);
            return Box::pin(async move {
                managed.await;
                true
            });
        };
        // The serving node tells the nexuses and resets what there is to reset: they would hear of it twice.
        let own = match function {
            Management::AbortTask(tag) => self.tasks().abort_task(nexus, tag),
            Management::AbortTaskSet => Some(self.tasks().abort_nexus(nexus)),
            Management::ClearTaskSet => Some(self.tasks().abort_all(Some(nexus)).0),
            Management::Reset => Some(self.tasks().reset(Some(nexus))),
        };
        let passed_on = path.manage(nexus, function);
        Box::pin(async move {
            let is_done = passed_on.await;
            if let Some(own) = own {
                own.wait().await;
            }
            // Tasks of the asker's own nexus have ended with the connection, if they have not been aborted.
            is_done || matches!(function, Management::AbortTask(_) | Management::AbortTaskSet)
        })
    }

    /// Whether commands are forwarded: another node serves the unit, and can be reached.
    pub fn is_forwarding(&self) -> bool {
        self.forwarding().is_some()
    }

    /// The way to the serving node, while commands are forwarded.
    pub(in crate::scsi) fn forwarding(&self) -> Option<Rc<dyn ForwardPath>> {
        self.forwarding_slot().borrow().clone()
    }

    /// The way of a command that is to be forwarded; none for one that is executed, or refused, here.
    pub(in crate::scsi) fn way_of(&self, task: &Task, command: &Command) -> Option<Rc<dyn ForwardPath>> {
        let path = self.forwarding()?;
        // What has been forwarded once is not forwarded again.
        if self.is_forwarded(task.nexus()) && !mutant::is(Mutant::ForwardedAgain) {
            return None;
        }
        let kind = Operation::find(&command.cdb).ok().map(|operation| operation.kind);
        let is_own = matches!(kind, Some(Kind::Inquiry | Kind::ReportLuns | Kind::ReportTargetPortGroups));
        let is_over = task.is_aborted() || !self.is_attached(task.nexus());
        (!is_own && !is_over && !self.has_attention(task.nexus())).then_some(path)
    }

    /// Has a command executed at the serving node. Gives it back when it may be executed somewhere else.
    pub(in crate::scsi) async fn forward(
        &self,
        path: Rc<dyn ForwardPath>,
        task: &Task,
        command: &Command,
    ) -> Option<Option<Response>> {
        let operation = Operation::find(&command.cdb).ok();
        let is_harmless = command.data_out.is_empty()
            && operation
                .is_some_and(|found| matches!(found.access, Access::Read | Access::Query | Access::Always));
        let forwarded = ForwardedCommand {
            tag: task.tag(),
            attribute: task.attribute(),
            cdb: command.cdb,
            expected_in: u32::try_from(command.expected_in).unwrap_or(u32::MAX),
            data_out: command.data_out.clone(),
        };
        let nexus = task.nexus();
        let ended = path.execute(nexus, forwarded, is_harmless).await;
        let response = match ended {
            Forwarded::Answered(response) => response,
            Forwarded::NotBegun => return None,
            Forwarded::Lost if mutant::is(Mutant::LostIsGood) => Some(Response::of(Status::Good)),
            Forwarded::Lost => {
                let sense = crate::scsi::asymmetric_access::AccessState::Transitioning.refusal();
                Response::from_outcome(Err(Failure::Check(sense)), 0, false)
            }
            Forwarded::Full => Some(Response::of(Status::TaskSetFull)),
            Forwarded::Closed => None,
        };
        let is_move = operation.is_some_and(|found| found.kind == Kind::SetTargetPortGroups);
        if is_move && response.as_ref().is_some_and(|response| response.status == Status::Good) {
            // The one who has asked is not told (SPC-4 section 5.15.2).
            self.clear_attention(nexus, AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED);
        }
        Some(match task.abort() {
            Some(Abort::Silent) => None,
            Some(Abort::Reported) => Some(Response::of(Status::TaskAborted)),
            None => response,
        })
    }
}

impl<D: BlockDevice + 'static> FrontUnit for LogicalUnit<D> {
    fn is_served_here(&self) -> bool {
        self.has_device()
    }

    fn begin_forwarding(&self, path: Rc<dyn ForwardPath>, reservations: &PersistedReservations) {
        assert!(!self.has_device(), "what is served here is not forwarded");
        // Whom they concern was told of what came before this term: by the former service, or by what was learned.
        if let Err(error) = self.learn_reservations(reservations) {
            tracing::error!(volume = self.identity().volume, %error, "reservations of the serving node");
        }
        for (id, nexus) in self.own_nexuses() {
            path.attach(id, nexus, self.take_attentions(id));
        }
        *self.forwarding_slot().borrow_mut() = Some(path);
    }

    fn end_forwarding(&self) {
        self.forwarding_slot().take();
    }

    fn adopt_attentions(&self, nexus: NexusId, pending: &[AdditionalSense]) {
        let own = self.take_attentions(nexus);
        pending.iter().chain(&own).for_each(|code| self.attention(nexus, *code));
    }

    fn follow_reservations(&self, reservations: &PersistedReservations) {
        match PersistentState::try_from(reservations) {
            Ok(state) => drop(self.reservations().replace(state)),
            Err(error) => {
                tracing::error!(volume = self.identity().volume, %error, "reservations of the serving node");
            }
        }
    }
}
