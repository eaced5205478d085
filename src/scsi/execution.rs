//! The execution of a command: the checks that come before every command, in their order, and the
//! dispatch to the code of its family.
//!
//! Order: abortion, unit attention, operation code, the access state of the port, a sanitize operation
//! under way, reservations; then the command's own checks.

use std::cell::Cell;

use super::asymmetric_access::AccessState;
use super::cdb::Cdb;
use super::command::{Command, Failure, Outcome, Reply};
use super::identity::NexusId;
use super::logical_unit::LogicalUnit;
use super::mutant::{self, Mutant};
use super::operation::{Access, Kind, Operation, Unknown};
use super::sense::{AdditionalSense, Sense, SenseKey};
use super::task_set::{Task, TaskAttribute};
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// Executes a command whose task has its turn.
    pub(super) async fn run(&self, context: &Context<'_>, command: Command) -> Outcome {
        context.check_aborted()?;
        let nexus = context.nexus();
        if !self.is_attached(nexus) && !mutant::is(Mutant::LostNexusIsServed) {
            return Err(Failure::Aborted); // the nexus was lost; whatever it sent goes with it
        }
        self.watch_space();
        let found = Operation::find(&command.cdb);
        let attention_exempt = matches!(
            found,
            Ok(Operation { kind: Kind::Inquiry | Kind::ReportLuns | Kind::RequestSense, .. })
        );
        if !attention_exempt && let Some(sense) = self.take_attention(nexus) {
            return Err(sense.into());
        }
        if context.task.attribute() == TaskAttribute::Aca {
            return Err(Sense::new(SenseKey::AbortedCommand, AdditionalSense::INVALID_MESSAGE).into());
        }
        let operation =
            found.and_then(|operation| self.supported(operation)).map_err(|unknown| match unknown {
                Unknown::OperationCode => Sense::illegal(AdditionalSense::INVALID_OPERATION_CODE),
                // A unit that has no action of an operation code has not the code either.
                Unknown::ServiceAction
                    if !self.operations().any(|one| one.opcode == command.cdb.opcode()) =>
                {
                    Sense::illegal(AdditionalSense::INVALID_OPERATION_CODE)
                }
                Unknown::ServiceAction => Sense::invalid_cdb_bit(1, 4),
            })?;
        let control = operation.usage.len() - 1;
        if command.cdb.bit(control, 2) {
            return Err(Sense::invalid_cdb_bit(control as u16, 2).into()); // NACA
        }
        self.check_access(nexus, operation.kind)?;
        if !AccessState::Standby.allows(operation.kind) {
            context.task.set_uses_device();
        }
        let access = effective_access(operation, &command.cdb);
        if !attention_exempt {
            self.sanitizer().check(access)?;
        }
        self.check_reservations(context, access)?;
        // No await between the check and this, so that whoever changes reservations either stops
        // this command or waits for it.
        if matches!(access, Access::Read | Access::Write) {
            context.task.set_conflicts();
        }
        self.dispatch(context, operation.kind, command).await
    }

    async fn dispatch(&self, context: &Context<'_>, kind: Kind, command: Command) -> Outcome {
        let Command { cdb, data_out, expected_in } = command;
        match kind {
            Kind::Read => self.read(&cdb, expected_in).await,
            Kind::Write => self.write(context, &cdb, data_out).await,
            Kind::SynchronizeCache => self.synchronize_cache(&cdb).await,
            // Boxed: rarer, and their state would make every command's future larger.
            Kind::WriteAndVerify => Box::pin(self.write_and_verify(context, &cdb, data_out)).await,
            Kind::Verify => Box::pin(self.verify(context, &cdb, data_out)).await,
            Kind::Unmap => Box::pin(self.unmap(context, &cdb, data_out)).await,
            Kind::WriteSame => Box::pin(self.write_same(context, &cdb, data_out)).await,
            Kind::CompareAndWrite => Box::pin(self.compare_and_write(context, &cdb, data_out)).await,
            Kind::OrWrite => Box::pin(self.or_write(context, &cdb, data_out)).await,
            Kind::GetLbaStatus => Box::pin(self.get_lba_status(&cdb)).await,
            Kind::Reserve => Box::pin(self.reserve(context, &cdb)).await,
            Kind::PersistentReserveOut => {
                Box::pin(self.persistent_reserve_out(context, &cdb, data_out)).await
            }
            Kind::Sanitize => Box::pin(self.sanitize(context, &cdb, data_out)).await,
            Kind::SetTargetPortGroups => Box::pin(self.set_target_port_groups(context, &cdb, data_out)).await,
            Kind::ExtendedCopy => Box::pin(self.extended_copy(context, &cdb, data_out)).await,
            other => self.dispatch_immediate(context, other, &cdb, &data_out),
        }
    }

    /// The commands that wait for nothing.
    fn dispatch_immediate(
        &self,
        context: &Context<'_>,
        kind: Kind,
        cdb: &Cdb,
        data_out: &[bytes::Bytes],
    ) -> Outcome {
        let nexus = context.nexus();
        match kind {
            Kind::TestUnitReady => Ok(Reply::good()),
            Kind::RequestSense => self.request_sense(nexus, cdb),
            Kind::Inquiry => self.inquiry(nexus, cdb),
            Kind::ReportLuns => self.report_luns(nexus, cdb),
            Kind::ReadCapacity10 => self.read_capacity_10(cdb),
            Kind::ReadCapacity16 => self.read_capacity_16(cdb),
            Kind::ModeSelect6 => self.mode_select_6(context, cdb, data_out),
            Kind::ModeSense6 => self.mode_sense_6(cdb),
            Kind::ModeSelect10 => self.mode_select_10(context, cdb, data_out),
            Kind::ModeSense10 => self.mode_sense_10(cdb),
            Kind::LogSense => self.log_sense(cdb),
            Kind::Release => self.release(context, cdb),
            Kind::PersistentReserveIn => self.persistent_reserve_in(cdb),
            Kind::ReceiveCopyResults => self.receive_copy_results(nexus, cdb),
            Kind::StartStopUnit => self.start_stop_unit(cdb),
            Kind::PreventAllow => self.prevent_allow(cdb),
            Kind::PreFetch => self.pre_fetch(cdb),
            Kind::ReadDefectData => self.read_defect_data(cdb),
            Kind::SendDiagnostic => self.send_diagnostic(cdb),
            Kind::ReportTargetPortGroups => self.report_target_port_groups(cdb),
            Kind::ReportSupportedOperationCodes => self.report_supported_operation_codes(cdb),
            Kind::ReportSupportedTaskManagement => self.report_supported_task_management(cdb),
            other => unreachable!("{other:?} is executed by dispatch"),
        }
    }

    /// REQUEST SENSE (SPC-4 section 6.39): a pending unit attention, else what keeps the unit from being ready,
    /// else nothing to say.
    fn request_sense(&self, nexus: NexusId, cdb: &Cdb) -> Outcome {
        let pending = self.sanitizer().in_progress().or_else(|| self.take_attention(nexus));
        let pending = pending.or_else(|| self.access_sense(nexus));
        let sense = pending.unwrap_or(Sense::new(SenseKey::NoSense, AdditionalSense::NONE));
        Ok(Reply::parameters(sense.encode(cdb.bit(1, 0)), usize::from(cdb.byte(4))))
    }
}

/// How reservations restrict a command, where that depends on more than its operation code.
fn effective_access(operation: &Operation, cdb: &Cdb) -> Access {
    match operation.kind {
        // START alone is allowed under every reservation (SBC-3 table 13).
        Kind::StartStopUnit if cdb.bit(4, 0) && cdb.byte(4) >> 4 == 0 => Access::Query,
        Kind::StartStopUnit => Access::Write,
        Kind::PreventAllow if cdb.byte(4) & 3 == 0 => Access::Always,
        Kind::PreventAllow => Access::Write,
        _ => operation.access,
    }
}

/// What a command's code knows of its task.
pub(super) struct Context<'a> {
    task: &'a Task,
    /// Bytes of data-out that the command asked for.
    wanted: Cell<u64>,
}

impl<'a> Context<'a> {
    pub(super) fn new(task: &'a Task) -> Self {
        Self { task, wanted: Cell::new(0) }
    }

    /// Bytes of data-out that the command asked for.
    pub(super) fn wanted(&self) -> u64 {
        self.wanted.get()
    }

    pub(super) fn task(&self) -> &Task {
        self.task
    }

    pub(super) fn nexus(&self) -> NexusId {
        self.task.nexus()
    }

    /// Declares how many bytes of data-out the command asks for.
    pub(super) fn wants(&self, bytes: u64) {
        self.wanted.set(bytes);
    }

    /// To be called before each device request: a task that was aborted, or whose device was detached, starts no
    /// more of them.
    pub(super) fn check_aborted(&self) -> Result<(), Failure> {
        match (self.task.is_aborted(), self.task.is_withdrawn()) {
            (true, _) if mutant::is(Mutant::AbortedTaskBegins) => Ok(()),
            (true, _) => Err(Failure::Aborted),
            (false, true) => Err(Failure::NotServing),
            (false, false) => Ok(()),
        }
    }
}
