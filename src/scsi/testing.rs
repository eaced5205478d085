//! Tests' helpers: an in-memory device, a runtime without threads or clock, and a logical unit on both.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::asymmetric_access::{AccessAuthority, AccessState, ActivationFailed, GroupAccess};
use super::command::{Command, Response};
use super::copy::{CopyResolver, NoOthers};
use super::identity::{Identity, InitiatorPort, Nexus, NexusId, TargetPort};
use super::logical_unit::{LogicalUnit, Services};
use super::reservation::{PersistedReservations, ReservationStore, Volatile};
use super::space::{PoolSpace, Space};
use super::task_set::TaskAttribute;
use crate::base::runtime::{Instant, LocalBoxFuture, Runtime};
use crate::volume::device::{AllocationRun, BlockDevice, CompareOutcome, DeviceError, DeviceGeometry};

/// A sparse device in memory.
#[derive(Clone)]
pub(super) struct MemoryDevice {
    shared: Rc<MemoryState>,
}

pub(super) struct MemoryState {
    pub(super) geometry: Cell<DeviceGeometry>,
    pub(super) blocks: RefCell<BTreeMap<u64, Bytes>>,
    /// Answered to every request while it is set.
    pub(super) failure: RefCell<Option<DeviceError>>,
    /// Requests wait while this is set.
    pub(super) held: Cell<bool>,
}

impl MemoryDevice {
    pub(super) fn new(logical_block_bytes: u32, block_count: u64) -> Self {
        let geometry = Cell::new(DeviceGeometry { logical_block_bytes, block_count });
        let shared = MemoryState {
            geometry,
            blocks: RefCell::default(),
            failure: RefCell::default(),
            held: Cell::new(false),
        };
        Self { shared: Rc::new(shared) }
    }

    pub(super) fn state(&self) -> &MemoryState {
        &self.shared
    }

    async fn enter(&self) -> Result<(), DeviceError> {
        std::future::poll_fn(|_| if self.shared.held.get() { Poll::Pending } else { Poll::Ready(()) }).await;
        self.shared.failure.borrow().clone().map_or(Ok(()), Err)
    }

    fn block(&self, address: u64) -> Bytes {
        let zeros = || Bytes::from(vec![0; self.geometry().logical_block_bytes as usize]);
        self.shared.blocks.borrow().get(&address).cloned().unwrap_or_else(zeros)
    }
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> DeviceGeometry {
        self.shared.geometry.get()
    }

    async fn read(&self, address: u64, count: u64) -> Result<Vec<Bytes>, DeviceError> {
        assert!(count > 0 && address + count <= self.geometry().block_count, "range not checked");
        self.enter().await?;
        Ok((address..address + count).map(|at| self.block(at)).collect())
    }

    async fn write(&self, address: u64, data: Vec<Bytes>) -> Result<(), DeviceError> {
        self.enter().await?;
        let whole: Vec<u8> = data.concat();
        let size = self.geometry().logical_block_bytes as usize;
        assert!(!whole.is_empty() && whole.len().is_multiple_of(size));
        for (index, block) in whole.chunks(size).enumerate() {
            let at = address + index as u64;
            assert!(at < self.geometry().block_count, "range not checked");
            self.shared.blocks.borrow_mut().insert(at, Bytes::copy_from_slice(block));
        }
        Ok(())
    }

    async fn write_same(&self, address: u64, count: u64, pattern: Bytes) -> Result<(), DeviceError> {
        self.enter().await?;
        assert_eq!(pattern.len(), self.geometry().logical_block_bytes as usize);
        assert!(count > 0 && address + count <= self.geometry().block_count, "range not checked");
        for at in address..address + count {
            self.shared.blocks.borrow_mut().insert(at, pattern.clone());
        }
        Ok(())
    }

    async fn compare_and_write(
        &self,
        address: u64,
        compare: Bytes,
        data: Bytes,
    ) -> Result<CompareOutcome, DeviceError> {
        let size = u64::from(self.geometry().logical_block_bytes);
        let stored = self.read(address, compare.len() as u64 / size).await?.concat();
        if let Some(offset) = stored.iter().zip(&compare).position(|(a, b)| a != b) {
            return Ok(CompareOutcome::Miscompare { offset: offset as u64 });
        }
        self.write(address, vec![data]).await?;
        Ok(CompareOutcome::Written)
    }

    async fn unmap(&self, address: u64, count: u64) -> Result<(), DeviceError> {
        self.enter().await?;
        assert!(count > 0 && address + count <= self.geometry().block_count, "range not checked");
        self.shared.blocks.borrow_mut().retain(|at, _| !(address..address + count).contains(at));
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.enter().await
    }

    async fn allocation(
        &self,
        address: u64,
        count: u64,
        limit: usize,
    ) -> Result<Vec<AllocationRun>, DeviceError> {
        self.enter().await?;
        let mut runs: Vec<AllocationRun> = Vec::new();
        for at in address..address + count {
            let mapped = self.shared.blocks.borrow().contains_key(&at);
            let room = runs.len() < limit;
            match runs.last_mut() {
                Some(run) if run.mapped == mapped => run.count += 1,
                _ if !room => break,
                _ => runs.push(AllocationRun { address: at, count: 1, mapped }),
            }
        }
        Ok(runs)
    }
}

/// Runs spawned tasks when it is asked to.
#[derive(Default)]
pub(super) struct TestRuntime {
    spawned: RefCell<Vec<LocalBoxFuture<'static, ()>>>,
    /// No sleep ends while it is set; otherwise each ends at once.
    pub(super) time_stands: Cell<bool>,
}

impl TestRuntime {
    /// Polls all spawned tasks once; gives back how many are unfinished.
    pub(super) fn poll(&self) -> usize {
        let mut tasks = self.spawned.take();
        tasks.retain_mut(|task| task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        self.spawned.borrow_mut().extend(tasks);
        self.spawned.borrow().len()
    }
}

impl Runtime for TestRuntime {
    fn now(&self) -> Instant {
        Instant(0)
    }

    fn sleep(&self, _: Duration) -> LocalBoxFuture<'static, ()> {
        if self.time_stands.get() { Box::pin(std::future::pending()) } else { Box::pin(async {}) }
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        self.spawned.borrow_mut().push(task);
    }

    fn random(&self) -> u64 {
        4
    }
}

/// What a cluster does when it is asked to move the unit to a portal group.
pub(super) type Activation = Box<dyn Fn(u16) -> Result<(), ActivationFailed>>;

/// What a node's cluster says. By default there is no other node.
pub(super) struct Cluster {
    pub(super) is_movable: bool,
    pub(super) may_serve: Cell<bool>,
    /// What it does when it is asked to move the unit.
    pub(super) on_activate: RefCell<Activation>,
}

impl Default for Cluster {
    fn default() -> Self {
        let refuse = |_| Err(ActivationFailed("not prepared".into()));
        Self { is_movable: false, may_serve: Cell::new(true), on_activate: RefCell::new(Box::new(refuse)) }
    }
}

impl AccessAuthority for Cluster {
    fn is_local(&self, portal_group: u16) -> bool {
        portal_group == 1
    }

    fn may_serve(&self) -> bool {
        self.may_serve.get()
    }

    fn is_movable(&self) -> bool {
        self.is_movable
    }

    fn activate(&self, portal_group: u16) -> LocalBoxFuture<'_, Result<(), ActivationFailed>> {
        Box::pin(async move { (self.on_activate.borrow())(portal_group) })
    }
}

/// A pool of one GiB with a threshold at 200 MiB.
pub(super) const AMPLE: Space =
    Space { capacity_bytes: 1 << 30, used_bytes: 0, volume_used_bytes: 0, threshold_bytes: 200 << 20 };

impl PoolSpace for Cell<Space> {
    fn space(&self) -> Space {
        self.get()
    }
}

/// A logical unit with its device, and one attached nexus whose unit attention has been taken.
pub(super) struct Bench {
    pub(super) unit: Rc<LogicalUnit<MemoryDevice>>,
    pub(super) device: MemoryDevice,
    pub(super) runtime: Rc<TestRuntime>,
    pub(super) space: Rc<Cell<Space>>,
    pub(super) cluster: Rc<Cluster>,
    pub(super) nexus: NexusId,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_geometry(512, 16384)
    }

    pub(super) fn with_geometry(logical_block_bytes: u32, block_count: u64) -> Self {
        let device = MemoryDevice::new(logical_block_bytes, block_count);
        Self::build(
            identity(),
            device,
            Rc::new(Volatile),
            Rc::new(NoOthers),
            &PersistedReservations::default(),
        )
    }

    pub(super) fn with_identity(identity: Identity, logical_block_bytes: u32, block_count: u64) -> Self {
        let device = MemoryDevice::new(logical_block_bytes, block_count);
        Self::build(identity, device, Rc::new(Volatile), Rc::new(NoOthers), &PersistedReservations::default())
    }

    pub(super) fn with_reservations(store: Rc<dyn ReservationStore>, saved: &PersistedReservations) -> Self {
        Self::build(identity(), MemoryDevice::new(512, 16384), store, Rc::new(NoOthers), saved)
    }

    pub(super) fn with_copies(logical_block_bytes: u32, copies: Rc<dyn CopyResolver<MemoryDevice>>) -> Self {
        let device = MemoryDevice::new(logical_block_bytes, 4096);
        Self::build(identity(), device, Rc::new(Volatile), copies, &PersistedReservations::default())
    }

    /// A node of two, that of portal group 1, which serves.
    pub(super) fn pair() -> Self {
        Self::pair_with(Rc::new(Volatile), &PersistedReservations::default())
    }

    pub(super) fn pair_with(store: Rc<dyn ReservationStore>, saved: &PersistedReservations) -> Self {
        let cluster = Rc::new(Cluster { is_movable: true, ..Cluster::default() });
        let target_ports = [1, 2].map(|tag| TargetPort { relative_id: tag, portal_group: tag }).to_vec();
        let identity = Identity { target_ports, ..identity() };
        let device = MemoryDevice::new(512, 16384);
        let bench = Self::build_in(cluster, identity, device, store, Rc::new(NoOthers), saved);
        bench.set_states(AccessState::ActiveOptimized, AccessState::Standby);
        bench.clear_attentions(bench.nexus);
        bench
    }

    /// Says the states of portal groups 1, the home of the volume, and 2.
    pub(super) fn set_states(&self, own: AccessState, other: AccessState) {
        self.unit.set_access_states(&[
            GroupAccess { portal_group: 1, state: own, preferred: true },
            GroupAccess { portal_group: 2, state: other, preferred: false },
        ]);
    }

    fn build(
        identity: Identity,
        device: MemoryDevice,
        reservations: Rc<dyn ReservationStore>,
        copies: Rc<dyn CopyResolver<MemoryDevice>>,
        saved: &PersistedReservations,
    ) -> Self {
        Self::build_in(Rc::new(Cluster::default()), identity, device, reservations, copies, saved)
    }

    fn build_in(
        cluster: Rc<Cluster>,
        identity: Identity,
        device: MemoryDevice,
        reservations: Rc<dyn ReservationStore>,
        copies: Rc<dyn CopyResolver<MemoryDevice>>,
        saved: &PersistedReservations,
    ) -> Self {
        let runtime = Rc::new(TestRuntime::default());
        let space = Rc::new(Cell::new(AMPLE));
        let services = Services {
            runtime: runtime.clone(),
            reservations,
            copies,
            space: space.clone(),
            access: cluster.clone(),
        };
        let unit = LogicalUnit::new(identity, device.clone(), services, saved).unwrap();
        let bench = Self { nexus: unit.attach(nexus(1)), unit, device, runtime, space, cluster };
        bench.clear_attentions(bench.nexus);
        bench
    }

    /// Attaches another initiator and takes its unit attention.
    pub(super) fn attach(&self, number: u8) -> NexusId {
        let id = self.unit.attach(nexus(number));
        self.clear_attentions(id);
        id
    }

    pub(super) fn clear_attentions(&self, nexus: NexusId) {
        while self.send_from(nexus, &[0; 6], &[]).status as u8 != 0 {}
    }

    /// Takes the unit attentions of a nexus, whether the unit is ready or not.
    pub(super) fn clear_pending(&self, nexus: NexusId) {
        while self.unit.take_attention(nexus).is_some() {}
    }

    pub(super) fn send(&self, cdb: &[u8]) -> Response {
        self.send_from(self.nexus, cdb, &[])
    }

    pub(super) fn send_data(&self, cdb: &[u8], data: &[u8]) -> Response {
        self.send_from(self.nexus, cdb, data)
    }

    pub(super) fn send_from(&self, nexus: NexusId, cdb: &[u8], data: &[u8]) -> Response {
        let task = self.unit.admit(nexus, 0, TaskAttribute::Simple).unwrap();
        let data_out = if data.is_empty() { Vec::new() } else { vec![Bytes::copy_from_slice(data)] };
        let command = Command { data_out, ..Command::new(cdb, 1 << 30) };
        run(self.unit.execute(task, command)).expect("not aborted")
    }
}

/// What the identity of the tests' logical unit is.
pub(super) fn identity() -> Identity {
    Identity {
        volume: "test".into(),
        uuid: *b"0123456789abcdef",
        target_name: "iqn.2026-11.io.gemel:demo:test".into(),
        target_ports: vec![TargetPort { relative_id: 1, portal_group: 1 }],
        revision: *b"0001",
        physical_block_bytes: 4096,
        non_rotating: true,
    }
}

pub(super) fn nexus(number: u8) -> Nexus {
    Nexus {
        initiator: InitiatorPort {
            name: format!("iqn.2007-10.test:initiator-{number}"),
            isid: [0x80, 0, 0, 0, 0, number],
        },
        target_port: TargetPort { relative_id: 1, portal_group: 1 },
    }
}

/// Polls `future` to its end, which it must reach by itself.
pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..1_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
    panic!("a future never completes");
}

/// Key and code of fixed-format sense data.
pub(super) fn sense_of(response: &Response) -> (u8, u16) {
    assert_eq!(response.status as u8, 2, "no CHECK CONDITION: {response:?}");
    match response.sense[0] & 0x7f {
        0x70 => (response.sense[2], u16::from_be_bytes([response.sense[12], response.sense[13]])),
        0x72 => (response.sense[1], u16::from_be_bytes([response.sense[2], response.sense[3]])),
        other => panic!("sense response code {other:02x}"),
    }
}

/// All data-in of a response that has to be GOOD.
pub(super) fn good(response: &Response) -> Vec<u8> {
    assert_eq!(response.status as u8, 0, "{response:?}");
    response.data_in.concat()
}
