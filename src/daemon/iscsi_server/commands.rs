//! Joins the transport's commands and the logical units: what iSCSI calls a command becomes SCSI's,
//! and back.

use std::rc::Rc;

use futures::future::LocalBoxFuture;

use crate::daemon::data::pool::Pool;
use crate::daemon::data::volumes::{ServedVolume, Unit};
use crate::iscsi::connection::{
    Command as ReceivedCommand, ManagementId, ScsiResult, TaskId, TaskManagement,
};
use crate::iscsi::pdu::{TaskAttribute as WireAttribute, TaskManagementFunction, TaskManagementResult};
use crate::scsi::cdb::Cdb;
use crate::scsi::command::{Command, Response};
use crate::scsi::forward::Management;
use crate::scsi::identity::NexusId;
use crate::scsi::target::{Route, answer_missing, route};
use crate::scsi::task_set::TaskAttribute;

/// A session's place at its volume.
pub struct Attachment<P: Pool> {
    /// The volume of the target.
    pub volume: Rc<ServedVolume<P>>,
    /// The session there.
    pub nexus: NexusId,
}

/// How a command ended: without a result it was aborted, and no response is due.
pub type Done = (TaskId, Option<ScsiResult>);

/// Admits a command at once and gives its execution, which has to be polled to its end.
pub fn execute<P: Pool>(
    unit: Rc<Unit<P>>,
    nexus: NexusId,
    received: ReceivedCommand,
) -> impl Future<Output = Done> {
    let ReceivedCommand { task: id, lun, cdb, attribute, writes, data_out, expected_in, .. } = received;
    let command = Command { cdb: Cdb::new(cdb.as_slice()), data_out, expected_in: expected_in as usize };
    let admitted = match route(lun) {
        Route::LogicalUnit => unit.admit(nexus, id.number(), attribute_of(attribute)),
        Route::Missing => Err(answer_missing(&command)),
    };
    async move {
        let response = match admitted {
            Ok(task) => unit.execute(task, command).await,
            Err(response) => Some(response),
        };
        (id, response.map(|response| result_of(response, writes)))
    }
}

fn attribute_of(attribute: WireAttribute) -> TaskAttribute {
    match attribute {
        WireAttribute::Untagged | WireAttribute::Simple => TaskAttribute::Simple,
        WireAttribute::Ordered => TaskAttribute::Ordered,
        WireAttribute::HeadOfQueue => TaskAttribute::HeadOfQueue,
        WireAttribute::Aca => TaskAttribute::Aca,
    }
}

fn result_of(response: Response, writes: bool) -> ScsiResult {
    let Response { status, sense, data_in, data_in_length, data_out_length } = response;
    let transfer_length = if writes { data_out_length } else { data_in_length };
    ScsiResult { status: status as u8, sense, data_in, transfer_length }
}

/// What a task management function does beyond the tasks that it aborts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aftermath {
    /// Nothing.
    None,
    /// TARGET COLD RESET ends all sessions of the target.
    EndSessions,
}

/// Begins a task management function. The future ends when everything that it affects has drained.
pub fn manage<P: Pool>(
    attachment: &Attachment<P>,
    request: TaskManagement,
) -> LocalBoxFuture<'static, (ManagementId, TaskManagementResult, Aftermath)> {
    let TaskManagement { id, function, lun, task } = request;
    let begun = begin(attachment, function, lun, task);
    let aftermath = match function {
        TaskManagementFunction::TargetColdReset => Aftermath::EndSessions,
        _ => Aftermath::None,
    };
    Box::pin(async move {
        match begun {
            Ok(managed) => match managed.await {
                true => (id, TaskManagementResult::Complete, aftermath),
                // Not known to have been done at the node that serves: the initiator asks again.
                false => (id, TaskManagementResult::Rejected, Aftermath::None),
            },
            Err(result) => (id, result, Aftermath::None),
        }
    })
}

fn begin<P: Pool>(
    attachment: &Attachment<P>,
    function: TaskManagementFunction,
    lun: [u8; 8],
    task: Option<TaskId>,
) -> Result<LocalBoxFuture<'static, bool>, TaskManagementResult> {
    use TaskManagementFunction as Function;
    let (unit, nexus) = (&attachment.volume.unit, attachment.nexus);
    let is_for_target = matches!(function, Function::TargetWarmReset | Function::TargetColdReset);
    if !is_for_target && route(lun) == Route::Missing {
        return Err(TaskManagementResult::LunDoesNotExist);
    }
    let function = match function {
        Function::AbortTask => match task {
            Some(task) => Management::AbortTask(task.number()),
            // A task that is not known any more has ended.
            None => return Ok(Box::pin(std::future::ready(true))),
        },
        Function::AbortTaskSet => Management::AbortTaskSet,
        Function::ClearTaskSet => Management::ClearTaskSet,
        Function::LogicalUnitReset | Function::TargetWarmReset | Function::TargetColdReset => {
            Management::Reset
        }
        // There is never an ACA condition, because NACA is refused.
        Function::ClearAca | Function::TaskReassign | Function::Other(_) => {
            return Err(TaskManagementResult::NotSupported);
        }
    };
    Ok(unit.manage(nexus, function))
}
