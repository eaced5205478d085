//! The logical unit: one volume as its initiators see it.
//!
//! Life of a command: the transport admits a [`Task`] when the command arrives, collects its data-out,
//! and executes it. Execution waits for the task's turn, then checks, in this order: abortion, unit
//! attention, operation code, reservations, the state of the unit; then the command's own code runs.
//!
//! Invariant I16: whatever ends a nexus or its tasks ([`LogicalUnit::detach`], aborts, resets, PREEMPT
//! AND ABORT) gives back a [`Drain`]; when it is over, no effect of these tasks can follow. The
//! transport answers the management function, or takes up the session again, only then.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};

use super::attention::UnitAttentions;
use super::cdb::Cdb;
use super::command::{Command, Failure, Outcome, Reply, Response, Status};
use super::copy::CopyResolver;
use super::copy_results::CopyResults;
use super::identity::{Identity, InitiatorPort, Nexus, NexusId, TargetPort};
use super::limits;
use super::mode_page::ModePages;
use super::operation::{Access, Kind, Operation, Unknown};
use super::reservation::state::{PersistentState, Registrant};
use super::reservation::store::RestoreError;
use super::reservation::{PersistedReservations, ReservationStore, Reservations};
use super::sanitize::Sanitizer;
use super::sense::{AdditionalSense, Sense, SenseKey};
use super::task_set::{Abort, Drain, Refusal, Task, TaskAttribute, TaskSet};
use crate::base::runtime::RuntimeHandle;
use crate::volume::device::BlockDevice;

/// A logical unit over a block device.
pub struct LogicalUnit<D> {
    identity: Identity,
    device: D,
    services: Services<D>,
    nexuses: RefCell<BTreeMap<NexusId, AttachedNexus>>,
    next_nexus: Cell<u64>,
    /// Nexuses that were lost, oldest first.
    lost: RefCell<VecDeque<Nexus>>,
    mode_pages: RefCell<ModePages>,
    tasks: TaskSet,
    reservations: Reservations,
    sanitizer: Sanitizer,
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
}

/// What is known of a nexus while it is attached.
#[derive(Debug)]
struct AttachedNexus {
    nexus: Nexus,
    attentions: UnitAttentions,
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
            nexuses: RefCell::default(),
            next_nexus: Cell::new(0),
            lost: RefCell::default(),
            mode_pages: RefCell::default(),
            tasks: TaskSet::default(),
            reservations: Reservations::new(persistent),
            sanitizer: Sanitizer::default(),
            copy_results: RefCell::default(),
            statistics: Statistics::default(),
            this: this.clone(),
        }))
    }

    /// Attaches a nexus: an initiator has logged in. It is first told of a power on, or of the loss of
    /// the nexus when it has been here before.
    pub fn attach(&self, nexus: Nexus) -> NexusId {
        let id = NexusId(self.next_nexus.get());
        self.next_nexus.set(id.0 + 1);
        let mut lost = self.lost.borrow_mut();
        let returns = lost.iter().position(|known| *known == nexus);
        let code = match returns {
            Some(index) => {
                lost.remove(index);
                AdditionalSense::NEXUS_LOSS_OCCURRED
            }
            None => AdditionalSense::POWER_ON_RESET,
        };
        let mut attentions = UnitAttentions::default();
        attentions.establish(code);
        self.nexuses.borrow_mut().insert(id, AttachedNexus { nexus, attentions });
        id
    }

    /// Ends a nexus: logout, a lost connection, reinstatement. Its tasks are aborted; the session may
    /// be taken up again when the drain is over.
    pub fn detach(&self, nexus: NexusId) -> Drain {
        if let Some(attached) = self.nexuses.borrow_mut().remove(&nexus) {
            let mut lost = self.lost.borrow_mut();
            if lost.len() == limits::LOST_NEXUSES {
                lost.pop_front();
            }
            lost.push_back(attached.nexus);
        }
        self.reservations.nexus_lost(nexus);
        self.copy_results.borrow_mut().nexus_lost(nexus);
        self.tasks.abort_nexus(nexus)
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
        let context = Context { task: &task, wanted: Cell::new(0) };
        let outcome = self.run(&context, command).await;
        match task.abort() {
            Some(Abort::Silent) => None,
            Some(Abort::Reported) => Some(Response::of(Status::TaskAborted)),
            None => {
                let descriptor_format = self.mode_pages.borrow().descriptor_sense();
                Response::from_outcome(outcome, context.wanted.get(), descriptor_format)
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

    /// To be called when the pool's space falls short of the soft threshold.
    pub fn soft_threshold_reached(&self) {
        self.attention_to_all(AdditionalSense::THIN_PROVISIONING_SOFT_THRESHOLD_REACHED);
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

    async fn run(&self, context: &Context<'_>, command: Command) -> Outcome {
        context.check_aborted()?;
        let nexus = context.nexus();
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
        let operation = found.map_err(|unknown| match unknown {
            Unknown::OperationCode => Sense::illegal(AdditionalSense::INVALID_OPERATION_CODE),
            Unknown::ServiceAction => Sense::invalid_cdb_bit(1, 4),
        })?;
        let control = operation.usage.len() - 1;
        if command.cdb.bit(control, 2) {
            return Err(Sense::invalid_cdb_bit(control as u16, 2).into()); // NACA
        }
        let access = effective_access(operation, &command.cdb);
        if !attention_exempt {
            self.sanitizer.check(access)?;
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
            Kind::WriteAndVerify => self.write_and_verify(context, &cdb, data_out).await,
            Kind::Verify => self.verify(context, &cdb, data_out).await,
            Kind::SynchronizeCache => self.synchronize_cache(&cdb).await,
            Kind::Unmap => self.unmap(context, &cdb, data_out).await,
            Kind::WriteSame => self.write_same(context, &cdb, data_out).await,
            Kind::CompareAndWrite => self.compare_and_write(context, &cdb, data_out).await,
            Kind::OrWrite => self.or_write(context, &cdb, data_out).await,
            Kind::GetLbaStatus => self.get_lba_status(&cdb).await,
            // Boxed: rare, and their state would make every command's future larger.
            Kind::Reserve => Box::pin(self.reserve(context, &cdb)).await,
            Kind::PersistentReserveOut => {
                Box::pin(self.persistent_reserve_out(context, &cdb, data_out)).await
            }
            Kind::Sanitize => Box::pin(self.sanitize(context, &cdb, data_out)).await,
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

    /// REQUEST SENSE (SPC-4 section 6.39): a pending unit attention, else nothing to say.
    fn request_sense(&self, nexus: NexusId, cdb: &Cdb) -> Outcome {
        let pending = self.sanitizer.in_progress().or_else(|| self.take_attention(nexus));
        let sense = pending.unwrap_or(Sense::new(SenseKey::NoSense, AdditionalSense::NONE));
        Ok(Reply::parameters(sense.encode(cdb.bit(1, 0)), usize::from(cdb.byte(4))))
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

    pub(super) fn copy_results(&self) -> &RefCell<CopyResults> {
        &self.copy_results
    }

    /// This unit, for work that outlives the command.
    pub(super) fn shared(&self) -> Rc<Self> {
        self.this.upgrade().expect("whoever calls holds a reference")
    }

    /// What `look` finds in an attached nexus.
    pub(super) fn with_nexus<T>(&self, nexus: NexusId, look: impl FnOnce(&Nexus) -> T) -> Option<T> {
        self.nexuses.borrow().get(&nexus).map(|attached| look(&attached.nexus))
    }

    /// The attached nexuses of a registrant: one, or none.
    pub(super) fn nexuses_of(&self, registrant: &Registrant) -> Vec<NexusId> {
        let nexuses = self.nexuses.borrow();
        let matching =
            nexuses.iter().filter(|(_, attached)| Registrant::from(&attached.nexus) == *registrant);
        matching.map(|(id, _)| *id).collect()
    }

    /// The attached ports of the initiator called `name`.
    pub(super) fn initiator_ports(&self, name: &str) -> Vec<InitiatorPort> {
        let nexuses = self.nexuses.borrow();
        let ports = nexuses.values().map(|attached| &attached.nexus.initiator);
        ports.filter(|port| port.name == name).cloned().collect()
    }

    /// Whether reservations let `initiator` do something of the kind `access` through any of its ports.
    pub(super) fn initiator_may(&self, initiator: &InitiatorPort, access: Access) -> bool {
        let same = |other: &InitiatorPort| other.name == initiator.name;
        if let Some(holder) = self.reservations.reserved_by()
            && !self.with_nexus(holder, |nexus| same(&nexus.initiator)).unwrap_or(false)
        {
            return false;
        }
        let state = self.reservations.persistent();
        let stranger = Registrant { initiator: initiator.clone(), relative_target_port: 0 };
        state.permits(&stranger, access)
            || state
                .registrations()
                .any(|(registrant, _)| same(&registrant.initiator) && state.permits(registrant, access))
    }

    /// The port that `nexus` came in through.
    pub(super) fn target_port(&self, nexus: NexusId) -> TargetPort {
        let nexuses = self.nexuses.borrow();
        // A nexus that is detached while its task runs gets no response, so any port will do.
        nexuses.get(&nexus).map_or(TargetPort { relative_id: 1, portal_group: 1 }, |n| n.nexus.target_port)
    }

    /// Establishes a unit attention for one nexus.
    pub(super) fn attention(&self, nexus: NexusId, code: AdditionalSense) {
        if let Some(attached) = self.nexuses.borrow_mut().get_mut(&nexus) {
            attached.attentions.establish(code);
        }
    }

    /// Establishes a unit attention for all nexuses.
    pub(super) fn attention_to_all(&self, code: AdditionalSense) {
        for attached in self.nexuses.borrow_mut().values_mut() {
            attached.attentions.establish(code);
        }
    }

    /// Establishes a unit attention for all nexuses but the one that caused it.
    pub(super) fn attention_to_others(&self, cause: NexusId, code: AdditionalSense) {
        for (id, attached) in self.nexuses.borrow_mut().iter_mut() {
            if *id != cause {
                attached.attentions.establish(code);
            }
        }
    }

    pub(super) fn clear_attention(&self, nexus: NexusId, code: AdditionalSense) {
        if let Some(attached) = self.nexuses.borrow_mut().get_mut(&nexus) {
            attached.attentions.clear(code);
        }
    }

    fn take_attention(&self, nexus: NexusId) -> Option<Sense> {
        self.nexuses.borrow_mut().get_mut(&nexus)?.attentions.take()
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

impl Context<'_> {
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

    /// To be called before each device request: an aborted task starts no more of them.
    pub(super) fn check_aborted(&self) -> Result<(), Failure> {
        if self.task.is_aborted() { Err(Failure::Aborted) } else { Ok(()) }
    }
}

/// Counters of a logical unit since its start.
#[derive(Debug, Default)]
pub struct Statistics {
    /// READ commands that moved data.
    pub reads: Cell<u64>,
    /// Bytes that they read.
    pub read_bytes: Cell<u64>,
    /// WRITE commands that moved data.
    pub writes: Cell<u64>,
    /// Bytes that they wrote.
    pub written_bytes: Cell<u64>,
    /// Ranges released or filled by UNMAP and WRITE SAME.
    pub unmaps: Cell<u64>,
    /// Bytes in these ranges.
    pub unmapped_bytes: Cell<u64>,
}

impl Statistics {
    pub(super) fn count_read(&self, bytes: usize) {
        self.reads.set(self.reads.get() + 1);
        self.read_bytes.set(self.read_bytes.get() + bytes as u64);
    }

    pub(super) fn count_unmap(&self, bytes: u64) {
        self.unmaps.set(self.unmaps.get() + 1);
        self.unmapped_bytes.set(self.unmapped_bytes.get() + bytes);
    }

    pub(super) fn count_write(&self, bytes: usize) {
        self.writes.set(self.writes.get() + 1);
        self.written_bytes.set(self.written_bytes.get() + bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Poll, Waker};

    use bytes::Bytes;

    use super::*;
    use crate::scsi::testing::{Bench, good, nexus, run, sense_of};

    #[test]
    fn a_new_nexus_hears_of_a_power_on_and_a_returning_one_of_its_loss() {
        let bench = Bench::new();
        let id = bench.unit.attach(nexus(7));
        assert_eq!(sense_of(&bench.send_from(id, &[0; 6], &[])), (6, 0x2900));
        assert_eq!(bench.send_from(id, &[0; 6], &[]).status, Status::Good);
        run(bench.unit.detach(id).wait());
        let id = bench.unit.attach(nexus(7));
        // INQUIRY neither reports nor clears it.
        good(&bench.send_from(id, &[0x12, 0, 0, 0, 36, 0], &[]));
        assert_eq!(sense_of(&bench.send_from(id, &[0; 6], &[])), (6, 0x2907));
    }

    #[test]
    fn what_is_written_is_read_back_through_every_cdb_size() {
        let bench = Bench::new();
        let writes: [&[u8]; 4] = [
            &[0x0a, 0, 0, 5, 1, 0],
            &[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0],
            &[0xaa, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0],
            &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0],
        ];
        for (index, write) in writes.iter().enumerate() {
            let data = [index as u8 + 1; 512];
            let response = bench.send_data(write, &data);
            assert_eq!((response.status, response.data_out_length), (Status::Good, 512));
            for write in writes {
                let mut read = write.to_vec();
                read[0] -= 2;
                assert_eq!(good(&bench.send(&read)), data);
            }
        }
        assert_eq!(bench.unit.statistics().written_bytes.get(), 4 * 512);
    }

    #[test]
    fn ranges_outside_the_device_are_refused() {
        let bench = Bench::new();
        let read = |address: u32, count: u16| {
            let mut cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            cdb[2..6].copy_from_slice(&address.to_be_bytes());
            cdb[7..9].copy_from_slice(&count.to_be_bytes());
            bench.send(&cdb)
        };
        assert_eq!(sense_of(&read(16384, 1)), (5, 0x2100));
        assert_eq!(sense_of(&read(16383, 2)), (5, 0x2100));
        assert_eq!(sense_of(&read(16385, 0)), (5, 0x2100));
        assert_eq!(sense_of(&read(u32::MAX, u16::MAX)), (5, 0x2100));
        assert_eq!(read(16384, 0).status, Status::Good);
        assert_eq!(good(&read(16383, 1)).len(), 512);
        let mut cdb = [0xff; 16];
        (cdb[0], cdb[1], cdb[15]) = (0x88, 0, 0);
        assert_eq!(sense_of(&bench.send(&cdb)), (5, 0x2100));
    }

    #[test]
    fn a_write_with_less_data_than_announced_writes_whole_blocks() {
        let bench = Bench::new();
        let response = bench.send_data(&[0x0a, 0, 0, 0, 2, 0], &[1; 512]);
        assert_eq!((response.status, response.data_out_length), (Status::Good, 1024));
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 2, 0]))[511..514], [1, 0, 0]);
        let response = bench.send_data(&[0x0a, 0, 0, 0, 1, 0], &[2; 200]);
        assert_eq!(sense_of(&response), (5, 0x0e03));
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 1, 0])), [1; 512]);
    }

    #[test]
    fn only_what_the_initiator_accepts_is_read() {
        let bench = Bench::new();
        let task = bench.unit.admit(bench.nexus, 1, TaskAttribute::Simple).unwrap();
        let command = Command::new(&[0x28, 0, 0, 0, 0, 0, 0, 0, 4, 0], 700);
        let response = run(bench.unit.execute(task, command)).unwrap();
        assert_eq!(response.data_in_length, 4 * 512);
        assert_eq!(response.data_in.concat().len(), 2 * 512);
    }

    #[test]
    fn an_aborted_write_is_waited_for_and_answered_by_nobody() {
        let bench = Bench::new();
        bench.device.state().held.set(true);
        let task = bench.unit.admit(bench.nexus, 9, TaskAttribute::Simple).unwrap();
        let write = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![Bytes::from_static(&[7; 512])]);
        let mut execution = pin!(bench.unit.execute(task, write));
        let mut context = std::task::Context::from_waker(Waker::noop());
        assert!(execution.as_mut().poll(&mut context).is_pending());
        assert!(bench.unit.abort_task(bench.nexus, 8).is_none());
        let drain = bench.unit.abort_task(bench.nexus, 9).unwrap();
        let mut wait = pin!(drain.wait());
        assert!(wait.as_mut().poll(&mut context).is_pending());
        bench.device.state().held.set(false);
        assert_eq!(execution.as_mut().poll(&mut context), Poll::Ready(None));
        assert!(wait.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn an_aborted_task_that_has_not_started_never_writes() {
        let bench = Bench::new();
        let other = bench.attach(2);
        let task = bench.unit.admit(other, 1, TaskAttribute::Simple).unwrap();
        run(bench.unit.clear_task_set(bench.nexus).wait());
        assert!(task.is_aborted());
        let write = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![Bytes::from_static(&[7; 512])]);
        assert_eq!(run(bench.unit.execute(task, write)).unwrap().status, Status::TaskAborted);
        assert!(bench.device.state().blocks.borrow().is_empty());
        assert_eq!(sense_of(&bench.send_from(other, &[0; 6], &[])), (6, 0x2f00));
    }

    #[test]
    fn ordered_tasks_wait_for_older_ones_and_hold_younger_ones() {
        let bench = Bench::new();
        let admit = |attribute| bench.unit.admit(bench.nexus, 1, attribute).unwrap();
        let (first, ordered, last) =
            (admit(TaskAttribute::Simple), admit(TaskAttribute::Ordered), admit(TaskAttribute::Simple));
        let read = || Command::new(&[0x08, 0, 0, 0, 1, 0], 512);
        let mut context = std::task::Context::from_waker(Waker::noop());
        let mut last = pin!(bench.unit.execute(last, read()));
        let mut ordered = pin!(bench.unit.execute(ordered, read()));
        assert!(last.as_mut().poll(&mut context).is_pending());
        assert!(ordered.as_mut().poll(&mut context).is_pending());
        run(bench.unit.execute(first, read()));
        assert!(last.as_mut().poll(&mut context).is_pending());
        assert!(ordered.as_mut().poll(&mut context).is_ready());
        assert!(last.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_full_or_resetting_task_set_refuses() {
        let bench = Bench::new();
        let held: Vec<_> = (0..limits::TASKS_PER_NEXUS as u64)
            .map(|tag| bench.unit.admit(bench.nexus, tag, TaskAttribute::Simple).unwrap())
            .collect();
        let refused = bench.unit.admit(bench.nexus, 1, TaskAttribute::Simple).unwrap_err();
        assert_eq!(refused.status, Status::TaskSetFull);
        let other = bench.attach(2);
        let drain = bench.unit.reset(Some(other));
        let refused = bench.unit.admit(other, 1, TaskAttribute::Simple).unwrap_err();
        assert_eq!(refused.status, Status::Busy);
        run(drain.wait());
        drop(held);
        assert_eq!(sense_of(&bench.send(&[0; 6])), (6, 0x2903));
    }

    #[test]
    fn device_errors_become_sense_data() {
        use crate::volume::device::DeviceError;
        let bench = Bench::new();
        let cases = [
            (DeviceError::OutOfSpace, (7, 0x2707)),
            (DeviceError::Medium { address: 5 }, (3, 0x1100)),
            (DeviceError::Offline, (2, 0x0401)),
            (DeviceError::Gone, (5, 0x2500)),
        ];
        for (error, sense) in cases {
            *bench.device.state().failure.borrow_mut() = Some(error);
            assert_eq!(sense_of(&bench.send_data(&[0x0a, 0, 0, 1, 1, 0], &[7; 512])), sense);
        }
        *bench.device.state().failure.borrow_mut() = Some(DeviceError::Medium { address: 5 });
        let response = bench.send(&[0x08, 0, 0, 0, 8, 0]);
        assert_eq!(response.sense[3..7], [0, 0, 0, 5]);
    }

    #[test]
    fn a_resize_is_announced_to_all() {
        let bench = Bench::new();
        let other = bench.attach(2);
        bench.unit.capacity_changed();
        assert_eq!(sense_of(&bench.send(&[0; 6])), (6, 0x2a09));
        assert_eq!(sense_of(&bench.send_from(other, &[0; 6], &[])), (6, 0x2a09));
    }
}
