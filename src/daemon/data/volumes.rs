//! The volumes that the data thread serves: each a logical unit over a thin volume on the pool.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use super::access::Access;
use super::pool::{Pool, PoolError};
use super::reservations::ReservationSaver;
use crate::base::buffer::BufferPool;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::VolumeId;
use crate::daemon::control_requests::{ControlHandle, ControlRequest};
use crate::daemon::engine::{EngineError, VolumeReport, VolumeSpec};
use crate::daemon::event_log::EventReporter;
use crate::pair::ServedStore;
use crate::scsi::asymmetric_access::{AccessAuthority, OnlyNode};
use crate::scsi::copy::CopyResolver;
use crate::scsi::identity::{Identity, InitiatorPort, TargetPort};
use crate::scsi::logical_unit::{LogicalUnit, Services};
use crate::scsi::rate_limit::RateLimits;
use crate::scsi::reservation::{PersistedReservations, ReservationStore, SaveFailed};
use crate::scsi::space::{PoolSpace, Space};
use crate::store::space::SpaceRule;
use crate::volume::device::DeviceGeometry;
use crate::volume::snapshot::SnapshotRecord;
use crate::volume::{Shrinking, Volume, VolumeParameters, VolumeServices};

/// A logical unit as the daemon serves it.
pub type Unit<P> = LogicalUnit<Volume<ServedStore<P>>>;

/// A volume in service.
pub struct ServedVolume<P: Pool> {
    /// Its number.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// iSCSI name of its target.
    pub target: String,
    /// Its logical unit, LUN 0 of the target.
    pub unit: Rc<Unit<P>>,
}

/// All volumes in service, by number.
pub struct Volumes<P: Pool> {
    served: RefCell<BTreeMap<VolumeId, Rc<ServedVolume<P>>>>,
    pool: Rc<P>,
    runtime: RuntimeHandle,
    buffers: BufferPool,
    access: Rc<Access>,
    control: ControlHandle,
    /// How full the pool is when hosts are warned.
    soft_threshold_percent: u64,
}

impl<P: Pool> Volumes<P> {
    /// No volumes yet, on `pool`.
    #[must_use]
    pub fn new(
        pool: Rc<P>,
        runtime: RuntimeHandle,
        buffers: BufferPool,
        access: Rc<Access>,
        control: ControlHandle,
        soft_threshold_percent: u64,
    ) -> Rc<Self> {
        let served = RefCell::default();
        Rc::new(Self { served, pool, runtime, buffers, access, control, soft_threshold_percent })
    }

    /// Opens volumes that were served before. One that can't be opened is reported and stays offline;
    /// the others are served.
    pub async fn open_known(
        self: &Rc<Self>,
        specs: Vec<VolumeSpec>,
        events: &EventReporter,
    ) -> Result<(), EngineError> {
        let mut usable = Vec::new();
        for spec in specs {
            match self.pool.open_volume(spec.id, spec.is_new, spec.origin).await {
                Ok(first_sequence) => usable.push((spec, first_sequence)),
                Err(error) => {
                    let message = format!("volume {} cannot be served: {error}", spec.name);
                    events.error("volume-offline", message, &[]);
                }
            }
        }
        for (spec, epoch, first_sequence) in self.begin_epochs(usable).await? {
            let name = spec.name.clone();
            if let Err(error) = self.serve(spec, epoch, first_sequence).await {
                events.error("volume-offline", format!("volume {name} cannot be served: {error}"), &[]);
            }
        }
        Ok(())
    }

    /// Opens a volume and serves it.
    pub async fn open(self: &Rc<Self>, spec: VolumeSpec) -> Result<(), EngineError> {
        let first_sequence = self.pool.open_volume(spec.id, spec.is_new, spec.origin).await?;
        for (spec, epoch, first_sequence) in self.begin_epochs(vec![(spec, first_sequence)]).await? {
            self.serve(spec, epoch, first_sequence).await?;
        }
        Ok(())
    }

    /// Begins a new epoch of each volume and gives it with the volume.
    async fn begin_epochs(
        &self,
        volumes: Vec<(VolumeSpec, u64)>,
    ) -> Result<Vec<(VolumeSpec, u32, u64)>, EngineError> {
        let first_sequences: Vec<_> = volumes.iter().map(|(spec, first)| (spec.id, *first)).collect();
        let begin = |reply| ControlRequest::BeginEpochs(first_sequences, reply);
        let epochs = self.control.ask(begin).await.map_err(EngineError::Failed)?;
        let volumes = volumes.into_iter().zip(epochs);
        Ok(volumes.map(|((spec, first_sequence), epoch)| (spec, epoch, first_sequence)).collect())
    }

    async fn serve(
        self: &Rc<Self>,
        spec: VolumeSpec,
        epoch: u32,
        next_sequence: u64,
    ) -> Result<(), EngineError> {
        let restored = {
            let saver = ReservationSaver::new(spec.id, Rc::new(Cell::new(epoch)), self.control.clone());
            restored(&spec, &saver).await?
        };
        let parameters = VolumeParameters {
            id: spec.id,
            epoch,
            next_sequence,
            geometry: DeviceGeometry::of_bytes(spec.size_bytes, spec.sector_bytes),
        };
        let services = VolumeServices {
            store: Rc::new(ServedStore::Local(self.pool.clone())),
            runtime: self.runtime.clone(),
            pool: self.buffers.clone(),
        };
        let volume = Volume::open(parameters, services);
        let services = self.services(&spec, Rc::new(Cell::new(epoch)), Rc::new(OnlyNode));
        let unit = LogicalUnit::new(identity(&spec), volume, services, &restored)
            .map_err(|error| unreadable(&spec, &error))?;
        if let Some(volume) = unit.device() {
            volume.go_on_with_rollback();
        }
        self.pool.bind_space(spec.id, true);
        self.add(spec, unit);
        Ok(())
    }

    /// Presents a mirrored volume to initiators, without its device: that comes and goes. Reservations are saved
    /// under the epoch that `epoch` holds at the time.
    pub fn present(
        self: &Rc<Self>,
        spec: VolumeSpec,
        epoch: Rc<Cell<u32>>,
        access: Rc<dyn AccessAuthority>,
    ) -> Rc<Unit<P>> {
        let services = self.services(&spec, epoch, access);
        let unit = LogicalUnit::without_device(
            identity(&spec),
            DeviceGeometry::of_bytes(spec.size_bytes, spec.sector_bytes),
            services,
        );
        self.add(spec, unit.clone());
        unit
    }

    fn services(
        self: &Rc<Self>,
        spec: &VolumeSpec,
        epoch: Rc<Cell<u32>>,
        access: Rc<dyn AccessAuthority>,
    ) -> Services<Volume<ServedStore<P>>> {
        Services {
            runtime: self.runtime.clone(),
            reservations: Rc::new(ReservationSaver::new(spec.id, epoch, self.control.clone())),
            copies: Rc::new(Resolver { volumes: Rc::downgrade(self) }),
            space: Rc::new(SpaceOf {
                pool: self.pool.clone(),
                volume: spec.id,
                soft_threshold_percent: self.soft_threshold_percent,
            }),
            access,
        }
    }

    fn add(&self, spec: VolumeSpec, unit: Rc<Unit<P>>) {
        unit.rate_limiter().set(spec.limits);
        self.pool.set_space_rule(spec.id, spec.space);
        let served = ServedVolume { id: spec.id, name: spec.name, target: spec.target, unit };
        self.served.borrow_mut().insert(served.id, Rc::new(served));
    }

    /// The pool below.
    pub fn pool(&self) -> &Rc<P> {
        &self.pool
    }

    /// Sets what a volume does in a second at most, and what it takes of the pool.
    pub fn limit(&self, id: VolumeId, limits: RateLimits, space: SpaceRule) -> Result<(), EngineError> {
        let served = self.get(id).ok_or(EngineError::NoSuchVolume(id))?;
        served.unit.rate_limiter().set(limits);
        self.pool.set_space_rule(id, space);
        Ok(())
    }

    /// Changes the size of a volume in use and tells its initiators.
    pub async fn resize(&self, id: VolumeId, size_bytes: u64) -> Result<(), EngineError> {
        let served = self.get(id).ok_or(EngineError::NoSuchVolume(id))?;
        let device = served.unit.device().ok_or(EngineError::NoSuchVolume(id))?;
        let result = device.resize(size_bytes, Shrinking::DiscardBeyond).await;
        served.unit.capacity_changed();
        result.map_err(|error| EngineError::Failed(error.to_string()))
    }

    /// Stops serving a volume; what is in progress ends first. Its sessions are the caller's business.
    pub async fn close(&self, id: VolumeId) {
        let served = self.served.borrow_mut().remove(&id);
        if let Some(device) = served.and_then(|served| served.unit.device()) {
            device.close().await;
        }
    }

    /// Frees the space of a volume that is not served any more.
    pub async fn delete(&self, id: VolumeId) -> Result<(), EngineError> {
        Ok(self.pool.delete_volume(id).await?)
    }

    /// Frees the space of a volume that was deleted before the last stop.
    pub async fn purge(&self, id: VolumeId) -> Result<(), EngineError> {
        self.pool.delete_volume(id).await?;
        self.control.ask(|reply| ControlRequest::VolumePurged(id, reply)).await.map_err(EngineError::Failed)
    }

    /// The volume with this number.
    pub fn get(&self, id: VolumeId) -> Option<Rc<ServedVolume<P>>> {
        self.served.borrow().get(&id).cloned()
    }

    /// The volume of a target.
    pub fn of_target(&self, target: &str) -> Option<Rc<ServedVolume<P>>> {
        self.served.borrow().values().find(|served| served.target == target).cloned()
    }

    /// All volumes.
    pub fn all(&self) -> Vec<Rc<ServedVolume<P>>> {
        self.served.borrow().values().cloned().collect()
    }

    /// How each volume is, but for its sessions.
    pub fn report(&self) -> Vec<VolumeReport> {
        let report = |served: &Rc<ServedVolume<P>>| {
            let device = served.unit.device();
            VolumeReport {
                id: served.id,
                name: served.name.clone(),
                sessions: 0,
                commands: device.as_ref().map_or(0, |device| device.in_flight_count() as u64),
                used_bytes: self.pool.used_bytes(served.id),
                snapshots: self.snapshot_count(served.id),
                snapshot_bytes: self.pool.snapshot_bytes(served.id),
                rollback: device.as_ref().and_then(|device| device.rollback_progress()),
                part: None,
                statistics: device.map(|device| device.statistics()).unwrap_or_default(),
            }
        };
        self.served.borrow().values().map(report).collect()
    }

    /// Those that people see: what a replica keeps for itself is none of them.
    fn snapshot_count(&self, volume: VolumeId) -> u64 {
        let listed = self.pool.snapshots(volume).unwrap_or_default();
        listed.iter().filter(|entry| !SnapshotRecord::is_hidden(&entry.record)).count() as u64
    }
}

fn identity(spec: &VolumeSpec) -> Identity {
    Identity {
        volume: spec.name.clone(),
        uuid: spec.uuid,
        target_name: spec.target.clone(),
        target_ports: spec.portal_groups.iter().map(|&tag| target_port(tag)).collect(),
        revision: REVISION,
        physical_block_bytes: spec.physical_sector_bytes,
        non_rotating: true,
    }
}

/// The target port of a portal group; there is one for each node.
pub fn target_port(portal_group: u16) -> TargetPort {
    TargetPort { relative_id: portal_group, portal_group }
}

/// Product revision level: the version of the package, in the four characters that INQUIRY has.
const REVISION: [u8; 4] = *b"0.1 ";

/// The reservations that a volume begins with. What is saved is of an earlier process of the only node, and its
/// end is a loss of power to the volume: without APTPL it takes them with it (SPC-4 section 5.13.5). What is gone
/// must not go on counting as registered either, so what is left is saved.
async fn restored(spec: &VolumeSpec, store: &ReservationSaver) -> Result<PersistedReservations, EngineError> {
    let Some(saved) = &spec.reservations else { return Ok(PersistedReservations::default()) };
    let saved: PersistedReservations =
        serde_json::from_slice(saved).map_err(|error| unreadable(spec, &error))?;
    let left = saved.clone().after_power_loss();
    if left != saved {
        let failed = |error: SaveFailed| EngineError::Failed(format!("{error}: {}", error.0));
        store.save(left.clone()).await.map_err(failed)?;
    }
    Ok(left)
}

/// Serving a volume without its reservations would let hosts in that another one has locked out.
fn unreadable(spec: &VolumeSpec, error: &dyn std::error::Error) -> EngineError {
    EngineError::Failed(format!(
        "the saved reservations of volume {} cannot be read ({error}); use the gemeld that wrote them, or delete the \
         volume",
        spec.name
    ))
}

/// Finds the logical units that a third-party copy names: those that the initiator may log in to.
struct Resolver<P: Pool> {
    volumes: Weak<Volumes<P>>,
}

impl<P: Pool> CopyResolver<Volume<ServedStore<P>>> for Resolver<P> {
    fn resolve(&self, initiator: &InitiatorPort, naa: &[u8; 16]) -> Option<Rc<Unit<P>>> {
        let volumes = self.volumes.upgrade()?;
        let found = volumes.all().into_iter().find(|served| served.unit.identity().naa() == *naa)?;
        volumes.access.may_use(&initiator.name, found.id).then(|| found.unit.clone())
    }
}

/// The space that a volume finds in its pool.
struct SpaceOf<P: Pool> {
    pool: Rc<P>,
    volume: VolumeId,
    soft_threshold_percent: u64,
}

impl<P: Pool> PoolSpace for SpaceOf<P> {
    fn space(&self) -> Space {
        let report = self.pool.report();
        Space {
            capacity_bytes: report.capacity_bytes,
            used_bytes: report.used_bytes,
            volume_used_bytes: self.pool.used_bytes(self.volume),
            threshold_bytes: report.capacity_bytes / 100 * (100 - self.soft_threshold_percent),
        }
    }
}

impl From<PoolError> for EngineError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::NoSuchDisk(disk) => Self::NoSuchDisk(disk),
            PoolError::Failed(reason) => Self::Failed(reason),
        }
    }
}
