//! Joins the transport's commands and the logical units: what iSCSI calls a command becomes SCSI's,
//! and back.

use std::rc::Rc;

use futures::future::LocalBoxFuture;

use crate::daemon::data::pool::Pool;
use crate::daemon::data::volumes::{ServedVolume, Unit};
use crate::iscsi::connection::{ManagementId, ScsiCommand, ScsiResult, TaskId, TaskManagement};
use crate::iscsi::pdu::{TaskAttribute as WireAttribute, TaskManagementFunction, TaskManagementResult};
use crate::scsi::cdb::Cdb;
use crate::scsi::command::{Command, Response};
use crate::scsi::identity::NexusId;
use crate::scsi::target::{Route, answer_missing, route};
use crate::scsi::task_set::{Drain, TaskAttribute};

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
    received: ScsiCommand,
) -> impl Future<Output = Done> {
    let ScsiCommand { task: id, lun, cdb, attribute, writes, data_out, expected_in, .. } = received;
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
            Ok(drain) => {
                if let Some(drain) = drain {
                    drain.wait().await;
                }
                (id, TaskManagementResult::Complete, aftermath)
            }
            Err(result) => (id, result, Aftermath::None),
        }
    })
}

fn begin<P: Pool>(
    attachment: &Attachment<P>,
    function: TaskManagementFunction,
    lun: [u8; 8],
    task: Option<TaskId>,
) -> Result<Option<Drain>, TaskManagementResult> {
    use TaskManagementFunction as Function;
    let (unit, nexus) = (&attachment.volume.unit, attachment.nexus);
    let is_for_target = matches!(function, Function::TargetWarmReset | Function::TargetColdReset);
    if !is_for_target && route(lun) == Route::Missing {
        return Err(TaskManagementResult::LunDoesNotExist);
    }
    match function {
        // A task that the logical unit does not know any more has ended.
        Function::AbortTask => Ok(task.and_then(|task| unit.abort_task(nexus, task.number()))),
        Function::AbortTaskSet => Ok(Some(unit.abort_task_set(nexus))),
        Function::ClearTaskSet => Ok(Some(unit.clear_task_set(nexus))),
        Function::LogicalUnitReset | Function::TargetWarmReset | Function::TargetColdReset => {
            Ok(Some(unit.reset(Some(nexus))))
        }
        // There is never an ACA condition, because NACA is refused.
        Function::ClearAca | Function::TaskReassign | Function::Other(_) => {
            Err(TaskManagementResult::NotSupported)
        }
    }
}
