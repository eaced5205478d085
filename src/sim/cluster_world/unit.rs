//! A mirrored volume's logical unit on a node, as `daemon::data::mirrored` presents it: it gets its device when the
//! node serves, and loses it when it does no more.
//!
//! The device tells the oracle which command uses it, and in which turn of service.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use bytes::Bytes;

use super::oracle::Operation;
use super::room::{Data, Life};
use super::{Cluster, NAMES, SIZE_BYTES, name};
use crate::base::runtime::LocalBoxFuture;
use crate::base::units::VolumeId;
use crate::cluster::quorum::ProposalError;
use crate::cluster::state::volume::{Redundancy, VolumeRecord};
use crate::cluster::state::{Command, ControlState, Rejection};
use crate::pair::{Hosts, ServedStore};
use crate::scsi::asymmetric_access::{AccessAuthority, AccessState, ActivationFailed, GroupAccess};
use crate::scsi::copy::NoOthers;
use crate::scsi::identity::{Identity, TargetPort};
use crate::scsi::logical_unit::{LogicalUnit, Services};
use crate::scsi::reservation::{PersistedReservations, ReservationStore, SaveFailed};
use crate::scsi::space::{PoolSpace, Space};
use crate::store::Store;
use crate::volume::Volume;
use crate::volume::device::{AllocationRun, BlockDevice, CompareOutcome, DeviceError, DeviceGeometry};

pub(super) type Unit = LogicalUnit<Device>;

/// A volume as a node presents it.
pub(super) struct Face {
    pub unit: Rc<Unit>,
    saver_epoch: Rc<Cell<u32>>,
    record: VolumeRecord,
}

/// The portal group of a node.
pub(super) fn portal_group(node: usize) -> u16 {
    node as u16 + 1
}

pub(super) fn target_port(node: usize) -> TargetPort {
    TargetPort { relative_id: portal_group(node), portal_group: portal_group(node) }
}

impl Data {
    pub(super) async fn take_state(self: &Rc<Self>, state: &ControlState) {
        let own = self.life().index;
        self.is_awaiting.set(false);
        for record in state.volumes().filter(|record| record.redundancy == Redundancy::Mirrored) {
            let is_known = self.faces.borrow().contains_key(&record.id);
            if !is_known {
                if let Err(error) = self.create_replica(state, record).await {
                    self.cluster.tell(|| format!("{} cannot present: {error}", NAMES[own]));
                    self.is_awaiting.set(true);
                    continue;
                }
                let face = self.present(record);
                self.faces.borrow_mut().insert(record.id, face);
            }
            self.update(own, record);
        }
        self.forget_lost(state);
        self.node.handle_state(state);
        self.seen_index.set(state.applied_index());
    }

    fn present(self: &Rc<Self>, record: &VolumeRecord) -> Face {
        let life = self.life();
        let identity = Identity {
            volume: record.name.to_string(),
            uuid: [record.id.0 as u8; 16],
            target_name: format!("iqn.2026-11.io.gemel:demo:{}", record.name),
            target_ports: (0..2).map(target_port).collect(),
            revision: *b"0.1 ",
            physical_block_bytes: 4096,
            non_rotating: true,
        };
        let saver_epoch = Rc::new(Cell::new(record.epoch));
        let saver = Saver { life: Rc::downgrade(&life), volume: record.id, epoch: saver_epoch.clone() };
        let services = Services {
            runtime: life.world.clone(),
            reservations: Rc::new(saver),
            copies: Rc::new(NoOthers),
            space: Rc::new(Ample),
            access: Rc::new(Authority { index: life.index, volume: record.id, data: Rc::downgrade(self) }),
        };
        let geometry = DeviceGeometry::of_bytes(SIZE_BYTES, record.sector.bytes());
        Face {
            unit: LogicalUnit::without_device(identity, geometry, services),
            saver_epoch,
            record: record.clone(),
        }
    }

    fn update(&self, own: usize, record: &VolumeRecord) {
        let mut faces = self.faces.borrow_mut();
        let Some(face) = faces.get_mut(&record.id) else { return };
        face.saver_epoch.set(record.epoch);
        let is_moved = face.record.primary != record.primary;
        face.record = record.clone();
        if !face.unit.has_device() {
            if let Err(error) = face.unit.learn_reservations(&reservations(record)) {
                self.cluster.fail(format!("reservations cannot be read: {error}"));
            }
            if is_moved || record.primary != name(own) {
                face.unit.set_access_states(&face.access(primary_of(record), AccessState::ActiveOptimized));
            }
        }
    }
}

fn primary_of(record: &VolumeRecord) -> usize {
    super::member_named(&record.primary)
}

fn reservations(record: &VolumeRecord) -> PersistedReservations {
    match record.reservations.encoded.as_slice() {
        [] => PersistedReservations::default(),
        encoded => serde_json::from_slice(encoded).unwrap(),
    }
}

impl Face {
    /// The states of both groups, with that of the node that serves.
    fn access(&self, serving: usize, state: AccessState) -> Vec<GroupAccess> {
        let group = |node: usize| GroupAccess {
            portal_group: portal_group(node),
            state: if node == serving { state } else { AccessState::Standby },
            preferred: node == primary_of(&self.record),
        };
        (0..2).map(group).collect()
    }
}

/// Lets hosts use what the node serves.
pub(super) struct Presented {
    pub life: Weak<Life>,
    pub faces: Rc<RefCell<BTreeMap<VolumeId, Face>>>,
}

impl Presented {
    fn let_in(&self, record: &VolumeRecord, volume: Volume<ServedStore<Store>>) -> Result<(), String> {
        let faces = self.faces.borrow();
        let (face, life) = (faces.get(&record.id).ok_or("no face")?, self.life.upgrade().ok_or("no node")?);
        life.cluster.check_epoch(&life, record.id, record.epoch);
        let turn = life.cluster.oracle.begin_service(record.id);
        life.cluster.tell(|| {
            format!("{} serves volume {} in epoch {}", NAMES[life.index], record.id.0, record.epoch)
        });
        let device = Device { volume, turn, cluster: life.cluster.clone() };
        let attached = face.unit.attach_device(device, &reservations(&face.record));
        face.unit.set_access_states(&face.access(life.index, AccessState::ActiveOptimized));
        attached.map_err(|error| error.to_string())
    }
}

impl Hosts<Store> for Presented {
    fn attach(
        &self,
        record: &VolumeRecord,
        volume: Volume<ServedStore<Store>>,
    ) -> LocalBoxFuture<'static, Result<(), String>> {
        Box::pin(std::future::ready(self.let_in(record, volume)))
    }

    fn detach(&self, volume: VolumeId) -> LocalBoxFuture<'static, ()> {
        let faces = self.faces.borrow();
        let (Some(face), Some(life)) = (faces.get(&volume), self.life.upgrade()) else {
            return Box::pin(std::future::ready(()));
        };
        life.cluster.tell(|| format!("{} ends its service of volume {}", NAMES[life.index], volume.0));
        face.unit.set_access_states(&face.access(life.index, AccessState::Transitioning));
        face.unit.detach_device()
    }

    fn permitted(&self, volume: VolumeId) {
        if let Some(face) = self.faces.borrow().get(&volume) {
            face.unit.look_again();
        }
    }
}

struct Authority {
    index: usize,
    volume: VolumeId,
    data: Weak<Data>,
}

impl AccessAuthority for Authority {
    fn is_local(&self, group: u16) -> bool {
        group == portal_group(self.index)
    }

    fn may_serve(&self) -> bool {
        self.data.upgrade().is_some_and(|data| data.node.may_serve(self.volume))
    }

    fn is_movable(&self) -> bool {
        true
    }

    fn activate(&self, _: u16) -> LocalBoxFuture<'_, Result<(), ActivationFailed>> {
        Box::pin(std::future::ready(Err(ActivationFailed("moves are made by the world".to_owned()))))
    }
}

/// Keeps reservations in the control state.
struct Saver {
    life: Weak<Life>,
    volume: VolumeId,
    epoch: Rc<Cell<u32>>,
}

impl ReservationStore for Saver {
    fn save(&self, state: PersistedReservations) -> LocalBoxFuture<'_, Result<(), SaveFailed>> {
        Box::pin(async move {
            let failed = |why: String| SaveFailed(why.into());
            let life = self.life.upgrade().ok_or_else(|| failed("the node is no more".to_owned()))?;
            loop {
                let known = life.member.state();
                let revision = known.volume_by_id(self.volume).map(|record| record.reservations.revision);
                let command = Command::SaveReservations {
                    volume: self.volume,
                    epoch: self.epoch.get(),
                    expected_revision: revision,
                    registration_count: state.registrations.len() as u32,
                    encoded: serde_json::to_vec(&state).unwrap(),
                };
                match life.clone().propose(command).await {
                    Some(Ok(_)) => return Ok(()),
                    Some(Err(ProposalError::Rejected(Rejection::StaleReservations { .. }))) => {
                        life.cluster.meet("saves of reservations that met another one");
                    }
                    other => return Err(failed(format!("{other:?}"))),
                }
            }
        })
    }
}

struct Ample;

impl PoolSpace for Ample {
    fn space(&self) -> Space {
        Space { capacity_bytes: 1 << 30, used_bytes: 0, volume_used_bytes: 0, threshold_bytes: 1 << 20 }
    }
}

/// A volume in one turn of service.
pub(super) struct Device {
    volume: Volume<ServedStore<Store>>,
    turn: u64,
    cluster: Rc<Cluster>,
}

impl Device {
    pub(super) fn volume(&self) -> &Volume<ServedStore<Store>> {
        &self.volume
    }

    pub(super) fn turn(&self) -> u64 {
        self.turn
    }

    /// The command that is being executed begins to use the device.
    fn begin(&self) -> Use {
        let operation = self.cluster.oracle.executing();
        if let Some(operation) = &operation {
            self.cluster.begin_use(operation, self.volume.id(), self.turn);
        }
        Use(operation)
    }
}

/// A use of the device, until it is dropped.
struct Use(Option<Rc<Operation>>);

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(operation) = &self.0 {
            operation.uses.set(operation.uses.get() - 1);
        }
    }
}

impl BlockDevice for Device {
    fn geometry(&self) -> DeviceGeometry {
        self.volume.geometry()
    }

    async fn read(&self, address: u64, count: u64) -> Result<Vec<Bytes>, DeviceError> {
        self.volume.read(address, count).await
    }

    async fn write(&self, address: u64, data: Vec<Bytes>) -> Result<(), DeviceError> {
        let _use = self.begin();
        self.volume.write(address, data).await
    }

    async fn write_same(&self, address: u64, count: u64, pattern: Bytes) -> Result<(), DeviceError> {
        let _use = self.begin();
        self.volume.write_same(address, count, pattern).await
    }

    async fn compare_and_write(
        &self,
        address: u64,
        compare: Bytes,
        data: Bytes,
    ) -> Result<CompareOutcome, DeviceError> {
        let _use = self.begin();
        self.volume.compare_and_write(address, compare, data).await
    }

    async fn unmap(&self, address: u64, count: u64) -> Result<(), DeviceError> {
        let _use = self.begin();
        self.volume.unmap(address, count).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.volume.flush().await
    }

    async fn allocation(
        &self,
        address: u64,
        count: u64,
        limit: usize,
    ) -> Result<Vec<AllocationRun>, DeviceError> {
        self.volume.allocation(address, count, limit).await
    }
}
