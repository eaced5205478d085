//! Task management (RFC 7143 sections 4.2.3, 11.5 and 11.6).
//!
//! A command that is still in the hands of the connection is dropped here and now; commands in the
//! driver's hands are the driver's to abort. The response leaves only after the driver has said that
//! everything affected has drained, and no response of an affected command leaves after it.

use super::Channel;
use super::event::{CloseReason, Event, ManagementId, TaskManagement};
use super::full_feature::{FullFeature, Request};
use super::task::{Task, TaskStage};
use super::window::Place;
use crate::iscsi::pdu::{
    InitiatorTaskTag, TaskManagementFunction, TaskManagementRequest, TaskManagementResponse,
    TaskManagementResult,
};

/// A function in the driver's hands.
#[derive(Debug)]
pub(super) struct PendingManagement {
    management: TaskManagement,
    initiator_task_tag: InitiatorTaskTag,
    /// Commands that arrived before this are affected.
    boundary: u64,
}

impl FullFeature {
    pub(super) fn handle_task_management(&mut self, channel: &mut Channel, request: &TaskManagementRequest) {
        use TaskManagementFunction as Function;
        let immediate_answer = match request.function {
            Function::AbortTask => return self.abort_task(channel, request),
            Function::TaskReassign => Some(TaskManagementResult::ReassignmentNotSupported),
            Function::Other(_) => Some(TaskManagementResult::NotSupported),
            Function::ClearAca
            | Function::AbortTaskSet
            | Function::ClearTaskSet
            | Function::LogicalUnitReset
            | Function::TargetWarmReset
            | Function::TargetColdReset => None,
        };
        match immediate_answer {
            Some(result) => self.respond_to_management(channel, request.initiator_task_tag, result),
            None => {
                let scope = Scope { function: request.function, lun: request.lun };
                for slot in self.tasks.slots_where(|task| scope.covers(task) && !task.is_with_driver()) {
                    self.drop_task(slot);
                }
                self.release_held(channel);
                self.open_window();
                self.hand_up_management(channel, request, None);
            }
        }
    }

    /// The driver has done a function, and everything it affects has drained.
    pub(super) fn complete_task_management(
        &mut self,
        channel: &mut Channel,
        id: ManagementId,
        result: TaskManagementResult,
    ) {
        let Some(index) = self.management.iter().position(|pending| pending.management.id == id) else {
            return;
        };
        let PendingManagement { management, initiator_task_tag, boundary } = self.management.remove(index);
        if result == TaskManagementResult::Complete {
            self.silence_affected(&management, boundary);
        }
        self.respond_to_management(channel, initiator_task_tag, result);
        if management.function == TaskManagementFunction::TargetColdReset
            && result == TaskManagementResult::Complete
        {
            // Section 11.5.1: a cold reset ends all connections.
            channel.close(CloseReason::Dropped);
        }
    }

    /// Commands that were affected and have not responded yet stay silent.
    fn silence_affected(&mut self, management: &TaskManagement, boundary: u64) {
        let scope = Scope { function: management.function, lun: management.lun };
        let affected = match (management.function, management.task) {
            (TaskManagementFunction::AbortTask, Some(id)) => self.tasks.slot_of(id).into_iter().collect(),
            _ => self.tasks.slots_where(|task| scope.covers(task) && task.arrival < boundary),
        };
        for slot in affected {
            if self.tasks.get(slot).is_some_and(|task| task.stage == TaskStage::Delivered) {
                self.tasks.abort(slot);
            }
        }
    }

    fn abort_task(&mut self, channel: &mut Channel, request: &TaskManagementRequest) {
        let Some(slot) = self.tasks.find(request.referenced_task_tag) else {
            let result = self.abort_missing(channel, request);
            return self.respond_to_management(channel, request.initiator_task_tag, result);
        };
        if self.tasks.get(slot).is_some_and(Task::is_with_driver) {
            return self.hand_up_management(channel, request, Some(slot));
        }
        self.drop_task(slot);
        self.release_held(channel);
        self.open_window();
        self.respond_to_management(channel, request.initiator_task_tag, TaskManagementResult::Complete);
    }

    /// Section 11.5.5 and 11.6.1: a command that never came, but whose CmdSN is inside the window, is
    /// aborted by taking its number as received.
    fn abort_missing(
        &mut self,
        channel: &mut Channel,
        request: &TaskManagementRequest,
    ) -> TaskManagementResult {
        let missing = request.referenced_command_sn;
        // An immediate request carries the number that the next command will have.
        if !missing.is_before(request.command_sn) {
            return TaskManagementResult::TaskDoesNotExist;
        }
        match self.place(missing) {
            Place::Outside => return TaskManagementResult::TaskDoesNotExist,
            Place::Next => {
                self.window.advance();
                self.dispatch_early(channel);
            }
            Place::Early => self.early.push((missing, Request::Plug)),
        }
        TaskManagementResult::Complete
    }

    fn hand_up_management(
        &mut self,
        channel: &mut Channel,
        request: &TaskManagementRequest,
        slot: Option<u32>,
    ) {
        if self.management.len() >= MANAGEMENT_LIMIT {
            let result = TaskManagementResult::Rejected;
            return self.respond_to_management(channel, request.initiator_task_tag, result);
        }
        let id = ManagementId(self.next_management);
        self.next_management = self.next_management.wrapping_add(1);
        let task = slot.map(|slot| self.tasks.id_of(slot));
        let management = TaskManagement { id, function: request.function, lun: request.lun, task };
        self.management.push(PendingManagement {
            management,
            initiator_task_tag: request.initiator_task_tag,
            boundary: self.next_arrival,
        });
        channel.events.push_back(Event::TaskManagement(management));
    }

    fn respond_to_management(
        &mut self,
        channel: &mut Channel,
        initiator_task_tag: InitiatorTaskTag,
        result: TaskManagementResult,
    ) {
        let serials = self.response_serials(channel);
        let response = TaskManagementResponse { result, initiator_task_tag, serials };
        channel.transmitter.push_pdu(response.emit(), &[], self.parameters.digests);
    }
}

/// Which commands of this session a function affects.
struct Scope {
    function: TaskManagementFunction,
    lun: [u8; 8],
}

impl Scope {
    fn covers(&self, task: &Task) -> bool {
        match self.function {
            TaskManagementFunction::AbortTaskSet
            | TaskManagementFunction::ClearTaskSet
            | TaskManagementFunction::LogicalUnitReset => task.lun == self.lun,
            TaskManagementFunction::TargetWarmReset | TaskManagementFunction::TargetColdReset => true,
            _ => false,
        }
    }
}

/// Functions in the driver's hands at a time.
const MANAGEMENT_LIMIT: usize = 16;
