//! The data thread: disks, store, volumes and iSCSI sessions, on one thread and one event loop.
//!
//! Nothing of an I/O ever leaves this thread. Invariant: what changes which volumes there are, who may
//! use them or which disks serve happens one change after the other, in the order of the requests;
//! only reports, and what concerns snapshots and the contents of volumes, overtake.

pub mod access;
pub mod disk_book;
pub mod disk_changes;
pub mod disk_pool;
pub mod driver;
mod faces;
pub mod healing;
mod images;
pub mod memory_pool;
pub mod mirrored;
pub mod pool;
pub mod reservations;
pub mod runtime;
pub mod scrubber;
mod snapshots;
pub mod volumes;

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::config::{Config, EngineChoice};
use super::control_requests::ControlHandle;
use super::engine::{AccessRules, EngineError, EngineReport, Reply, Request, VolumeSpec};
use super::event_log::EventReporter;
use super::iscsi_server::IscsiServer;
use crate::base::buffer::BufferPool;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::VolumeId;
use crate::disk::{Engine, EnginePreference};
use crate::pair::ForceRefused;
use crate::peer::mirror_stream::MirrorConnections;
use access::Access;
use disk_pool::DiskPool;
use driver::Kick;
use memory_pool::MemoryPool;
use mirrored::{Mirrored, PairSetup};
use pool::Pool;
use runtime::TokioRuntime;
use volumes::Volumes;

/// Released buffers that are kept for reuse.
const KEPT_BUFFER_BYTES: usize = 64 << 20;

/// What the data thread starts with.
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// A pool in memory of so many bytes, in the place of the configured disks.
    pub memory_pool: Option<u64>,
    /// Volumes to serve.
    pub volumes: Vec<VolumeSpec>,
    /// Deleted volumes whose space is still to be given back.
    pub purge: Vec<VolumeId>,
    /// The portal group of this node.
    pub portal_group_tag: u16,
    /// Who may use them.
    pub access: AccessRules,
    /// Where events go.
    pub events: EventReporter,
    /// Where reservations are made durable.
    pub control: ControlHandle,
    /// What a node of a pair needs besides.
    pub pair: Option<PairSetup>,
    /// Requests from the control thread.
    pub requests: mpsc::Receiver<Request>,
}

/// Why the data thread could not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// Starts the data thread. It tells `started` when initiators can log in, or why they never will.
pub fn spawn(
    setup: Setup,
    started: oneshot::Sender<Result<(), StartError>>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("data".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = started.send(Err(StartError(format!("cannot set up the data thread: {error}"))));
                return;
            }
        };
        LocalSet::new().block_on(&runtime, run(setup, started));
    })
}

async fn run(setup: Setup, started: oneshot::Sender<Result<(), StartError>>) {
    let world =
        World { runtime: TokioRuntime::start().handle(), buffers: BufferPool::new(KEPT_BUFFER_BYTES) };
    match setup.memory_pool {
        Some(capacity_bytes) => {
            let pool = MemoryPool::new(capacity_bytes);
            run_on(setup, world, pool, "memory", started).await;
        }
        None => match open_disks(&setup, &world).await {
            Ok((pool, engine)) => run_on(setup, world, pool, engine, started).await,
            // Nobody waits for it when the control thread has given up.
            Err(error) => drop(started.send(Err(error))),
        },
    }
}

/// What everything on the thread shares.
struct World {
    runtime: RuntimeHandle,
    buffers: BufferPool,
}

async fn open_disks(setup: &Setup, world: &World) -> Result<(DiskPool, &'static str), StartError> {
    let kick = Kick::default();
    let engine = start_engine(&setup.config)?;
    let name = match &engine {
        Engine::Uring(_) => "io_uring",
        Engine::Threads(_) => "threads",
    };
    let spin = Duration::from_micros(setup.config.pool.spin_us.get());
    let driven = driver::drive(engine.clone(), kick.clone(), spin);
    tokio::task::spawn_local(async move {
        if let Err(error) = driven.await {
            // Without completions nothing can go on, and what is acknowledged is safe.
            tracing::error!(%error, "the disk engine cannot be polled");
            std::process::abort();
        }
    });
    let (runtime, buffers) = (world.runtime.clone(), world.buffers.clone());
    let pool = DiskPool::open(&engine, &kick, &setup.config, runtime, buffers, &setup.events).await;
    Ok((pool.map_err(StartError)?, name))
}

async fn run_on<P: Pool>(
    setup: Setup,
    world: World,
    pool: P,
    engine: &'static str,
    started: oneshot::Sender<Result<(), StartError>>,
) {
    match DataThread::start(setup, world, Rc::new(pool), engine).await {
        Ok((thread, requests)) => {
            // Nobody waits for it when the control thread has given up.
            let _ = started.send(Ok(()));
            thread.serve(requests).await;
        }
        Err(error) => drop(started.send(Err(error))),
    }
}

fn start_engine(config: &Config) -> Result<Engine, StartError> {
    let preference = match config.pool.engine {
        EngineChoice::Auto => EnginePreference::Automatic,
        EngineChoice::IoUring => EnginePreference::Uring,
        EngineChoice::Threads => EnginePreference::Threads,
    };
    Engine::start(preference).map_err(|error| {
        StartError(format!("{error}; pool.engine in the configuration chooses how disks are accessed"))
    })
}

/// The data thread in service.
struct DataThread<P: Pool> {
    pool: Rc<P>,
    volumes: Rc<Volumes<P>>,
    access: Rc<Access>,
    server: Rc<IscsiServer<P>>,
    mirrored: Option<Rc<Mirrored<P>>>,
    /// Those between the two nodes' data threads.
    connections: Option<MirrorConnections>,
    engine: &'static str,
    drain_timeout: Duration,
    runtime: RuntimeHandle,
    /// One snapshot after the other is taken or dropped.
    snapshot_turn: tokio::sync::Mutex<()>,
}

impl<P: Pool> DataThread<P> {
    async fn start(
        setup: Setup,
        world: World,
        pool: Rc<P>,
        engine: &'static str,
    ) -> Result<(Rc<Self>, mpsc::Receiver<Request>), StartError> {
        let Setup {
            config,
            volumes: specs,
            purge,
            portal_group_tag,
            access: rules,
            events,
            control,
            pair,
            requests,
            ..
        } = setup;
        let World { runtime, buffers } = world;
        let access = Rc::new(Access::new(config.iscsi.require_chap));
        access.replace(rules);
        let soft_threshold_percent = config.pool.soft_threshold_percent.get();
        let volumes = Volumes::new(
            pool.clone(),
            runtime.clone(),
            buffers.clone(),
            access.clone(),
            control,
            soft_threshold_percent,
        );
        for volume in purge {
            volumes
                .purge(volume)
                .await
                .map_err(|error| StartError(format!("cannot delete a volume: {error}")))?;
        }
        let opened = volumes.open_known(specs, &events).await;
        opened.map_err(|error| StartError(format!("cannot open the volumes: {error}")))?;
        let told = events.clone();
        let mirrored = pair.map(|pair| {
            let (volumes, runtime, buffers) = (volumes.clone(), runtime.clone(), buffers.clone());
            Mirrored::new(pair, portal_group_tag, volumes, runtime, buffers, events.clone())
        });
        let connections = match (&mirrored, &config.pair) {
            (Some(mirrored), Some(settings)) => {
                let connections = mirrored.connect(settings).map_err(StartError)?;
                tokio::task::spawn_local(mirrored.clone().follow());
                tokio::task::spawn_local(healing::heal_from_peer(pool.clone(), mirrored.clone(), told));
                Some(connections)
            }
            _ => None,
        };
        let (volumes_of_server, runtime_of_server) = (volumes.clone(), runtime.clone());
        let server = IscsiServer::new(
            &config,
            portal_group_tag,
            volumes_of_server,
            access.clone(),
            runtime_of_server,
            buffers,
        );
        server.listen().map_err(|error| StartError(error.to_string()))?;
        if let (Some(mirrored), Some(floating)) = (&mirrored, config.floating.clone()) {
            let server = Rc::downgrade(&server);
            let refuse_at = Box::new(move |addresses: &[std::net::IpAddr]| {
                if let Some(server) = server.upgrade() {
                    server.refuse_at(addresses);
                }
            });
            mirrored.hold_floating(floating, refuse_at);
        }
        let drain_timeout = config.drain_timeout();
        Ok((
            Rc::new(Self {
                pool,
                volumes,
                access,
                server,
                mirrored,
                connections,
                engine,
                drain_timeout,
                runtime,
                snapshot_turn: tokio::sync::Mutex::default(),
            }),
            requests,
        ))
    }

    /// Answers requests until it is told to stop, or nobody can ask any more.
    async fn serve(self: Rc<Self>, mut requests: mpsc::Receiver<Request>) {
        let (changes, queue) = mpsc::channel(super::engine::QUEUE);
        let changing = tokio::task::spawn_local(self.clone().change(queue));
        let mut stopped = None;
        while let Some(request) = requests.recv().await {
            match request {
                Request::Report(reply) => answer(reply, Ok(Box::new(self.report()))),
                Request::Stop(reply) => {
                    stopped = Some(reply);
                    break;
                }
                Request::TakeSnapshots(wanted, reply) => {
                    let thread = self.clone();
                    self.beside(reply, async move { thread.take_snapshots(wanted).await });
                }
                Request::DropSnapshot(id, snapshot, now_unix_ms, reply) => {
                    let thread = self.clone();
                    self.beside(reply, async move { thread.drop_snapshot(id, snapshot, now_unix_ms).await });
                }
                Request::RollBack(id, to, before, reply) => {
                    let thread = self.clone();
                    self.beside(reply, async move { thread.roll_back(id, to, before).await });
                }
                Request::ListSnapshots(id, reply) => {
                    let thread = self.clone();
                    self.beside(reply, async move { thread.snapshots(id).await });
                }
                Request::LookAtRanges(wanted, reply) => {
                    let thread = self.clone();
                    self.beside(reply, async move { thread.look_at_ranges(wanted).await });
                }
                Request::ReadSnapshot(id, at, blocks, reply) => {
                    let thread = self.clone();
                    self.beside(reply, async move { thread.read_snapshot(id, at, blocks).await });
                }
                Request::Fill(id, block, filling, reply) => {
                    let thread = self.clone();
                    self.beside(reply, async move { thread.fill(id, block, filling).await });
                }
                // The queue ends only with this function.
                change => drop(changes.send(change).await),
            }
        }
        drop(changes);
        let changed = changing.await.map_err(|_| EngineError::Ended);
        let closed = self.stop().await;
        if let Some(reply) = stopped {
            answer(reply, changed.and(closed));
        }
    }

    /// Does something that nothing waits for but the one who asked for it.
    fn beside<T: 'static>(
        &self,
        reply: Reply<T>,
        work: impl Future<Output = Result<T, EngineError>> + 'static,
    ) {
        tokio::task::spawn_local(async move { answer(reply, work.await) });
    }

    /// Makes changes one after the other.
    async fn change(self: Rc<Self>, mut queue: mpsc::Receiver<Request>) {
        while let Some(request) = queue.recv().await {
            match request {
                Request::OpenVolume(spec, reply) => answer(reply, self.volumes.open(spec).await),
                Request::ResizeVolume(id, size, reply) => answer(reply, self.volumes.resize(id, size).await),
                Request::SetLimits(id, limits, space, reply) => {
                    answer(reply, self.volumes.limit(id, limits, space));
                }
                Request::DeleteVolume(id, reply) => {
                    self.server.end_sessions_of(id).await;
                    self.volumes.close(id).await;
                    answer(reply, self.volumes.delete(id).await);
                }
                Request::SetAccess(rules, reply) => {
                    self.access.replace(rules);
                    self.server.end_sessions_without_access().await;
                    answer(reply, Ok(()));
                }
                Request::HandOver(id, reply) => {
                    let mirrored = self.mirrored.as_ref();
                    let is_moving = mirrored.is_some_and(|mirrored| {
                        mirrored.node().hand_over(id, "an administrator asked for it")
                    });
                    answer(reply, Ok(is_moving));
                }
                Request::ForcePrimary(id, reply) => {
                    let forced = match &self.mirrored {
                        Some(mirrored) => mirrored.node().force(id).await,
                        None => Err(ForceRefused::Unknown),
                    };
                    answer(reply, forced.map_err(|error| EngineError::Failed(error.to_string())));
                }
                Request::StopVolumes(how_long, reply) => {
                    if let Some(mirrored) = &self.mirrored {
                        mirrored.node().stop_on_purpose(how_long);
                    }
                    answer(reply, Ok(()));
                }
                Request::ChangeDisks(change, reply) => {
                    answer(reply, self.pool.change_disks(change).await.map_err(EngineError::from));
                }
                Request::Report(reply) => answer(reply, Ok(Box::new(self.report()))),
                Request::TakeSnapshots(wanted, reply) => answer(reply, self.take_snapshots(wanted).await),
                Request::DropSnapshot(id, snapshot, now_unix_ms, reply) => {
                    answer(reply, self.drop_snapshot(id, snapshot, now_unix_ms).await);
                }
                Request::RollBack(id, to, before, reply) => {
                    answer(reply, self.roll_back(id, to, before).await);
                }
                Request::ListSnapshots(id, reply) => answer(reply, self.snapshots(id).await),
                Request::LookAtRanges(wanted, reply) => answer(reply, self.look_at_ranges(wanted).await),
                Request::ReadSnapshot(id, at, blocks, reply) => {
                    answer(reply, self.read_snapshot(id, at, blocks).await);
                }
                Request::Fill(id, block, filling, reply) => {
                    answer(reply, self.fill(id, block, filling).await);
                }
                Request::Stop(reply) => answer(reply, Err(EngineError::Ended)),
            }
        }
    }

    /// Logs initiators out, waits for what is in progress, and closes the pool.
    async fn stop(&self) -> Result<(), EngineError> {
        if let Some(mirrored) = &self.mirrored {
            mirrored.leave().await;
        }
        if let Some(mirrored) = self.mirrored.clone() {
            // A command that waits for the other node must not keep this one from stopping.
            let patience = self.drain_timeout;
            tokio::task::spawn_local(async move {
                tokio::time::sleep(patience).await;
                mirrored.stop_forwarding();
            });
        }
        self.server.stop(self.drain_timeout).await;
        for volume in self.volumes.all() {
            self.volumes.close(volume.id).await;
        }
        Ok(self.pool.close().await?)
    }

    fn report(&self) -> EngineReport {
        let mut report = EngineReport {
            engine: self.engine,
            volumes: self.volumes.report(),
            pool: self.pool.report(),
            ..EngineReport::default()
        };
        if let Some(mirrored) = &self.mirrored {
            report.volumes.iter_mut().for_each(|volume| volume.part = mirrored.node().report(volume.id));
        }
        report.mirror = self.connections.as_ref().map(|connections| connections.status().to_peer);
        self.server.report(&mut report);
        report
    }
}

/// Nobody waits any more for the answer of a call that was given up.
fn answer<T>(reply: Reply<T>, result: Result<T, EngineError>) {
    let _ = reply.send(result);
}

/// Creates a new pool on the configured disks.
pub fn format(config: &Config, force: bool) -> Result<(), StartError> {
    let engine = start_engine(config)?;
    disk_pool::format(&engine, &config.pool.disks, force).map_err(StartError)?;
    // Disks that came to the old pool do not belong to the new one.
    disk_book::DiskBook::begin_anew(&config.state_dir).map_err(StartError)
}
