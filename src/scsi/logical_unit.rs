//! The logical unit: one volume as its initiators see it.
//!
//! Life of a command: the transport admits a [`Task`] when the command arrives, collects its data-out,
//! and executes it: the task waits for its turn, then the execution module checks and dispatches it.
//!
//! Invariant I16: whatever ends a nexus or its tasks ([`LogicalUnit::detach`], aborts, resets, PREEMPT
//! AND ABORT) gives back a [`Drain`]; when it is over, no effect of these tasks can follow. The
//! transport answers the management function, or takes up the session again, only then.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};

use super::attention::UnitAttentions;
use super::command::{Command, Failure, Response, Status};
use super::copy::CopyResolver;
use super::copy_results::CopyResults;
use super::execution::Context;
use super::identity::{Identity, InitiatorPort, Nexus, NexusId, TargetPort};
use super::limits;
use super::mode_page::ModePages;
use super::operation::Access;
use super::reservation::state::{PersistentState, Registrant};
use super::reservation::store::RestoreError;
use super::reservation::{PersistedReservations, ReservationStore, Reservations};
use super::sanitize::Sanitizer;
use super::sense::{AdditionalSense, Sense, SenseKey};
use super::statistics::Statistics;
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

    pub(super) fn is_attached(&self, nexus: NexusId) -> bool {
        self.nexuses.borrow().contains_key(&nexus)
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

    pub(super) fn take_attention(&self, nexus: NexusId) -> Option<Sense> {
        self.nexuses.borrow_mut().get_mut(&nexus)?.attentions.take()
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
    fn a_write_with_less_data_than_announced_writes_what_came() {
        let bench = Bench::new();
        let response = bench.send_data(&[0x0a, 0, 0, 0, 2, 0], &[1; 512]);
        assert_eq!((response.status, response.data_out_length), (Status::Good, 1024));
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 2, 0]))[511..514], [1, 0, 0]);
        let response = bench.send_data(&[0x2e, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[2; 700]);
        assert_eq!((response.status, response.data_out_length), (Status::Good, 1024));
        let expected = [[2; 700].as_slice(), &[0; 324]].concat();
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 2, 0])), expected);
        assert_eq!(bench.send(&[0x0a, 0, 0, 0, 1, 0]).status, Status::Good);
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 2, 0])), expected);
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
    fn a_nexus_that_is_gone_has_no_effect_any_more() {
        let bench = Bench::new();
        run(bench.unit.detach(bench.nexus).wait());
        let task = bench.unit.admit(bench.nexus, 1, TaskAttribute::Simple).unwrap();
        let write = Command::with_data(&[0x0a, 0, 0, 1, 1, 0], vec![Bytes::from_static(&[7; 512])]);
        assert_eq!(run(bench.unit.execute(task, write)), None);
        assert!(bench.device.state().blocks.borrow().is_empty());
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
