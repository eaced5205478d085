//! The life of `gemeld`: start in order, serve, stop in order.
//!
//! Start: configuration, state directory, control state, disks, pool, volumes, iSCSI, management and
//! console, ready. Each step that fails ends the process with a message that says what to do, and
//! leaves everything as it was. Stop: initiators are asked to log out, what is in progress ends within
//! a bound, the pool is closed cleanly. A process that is killed instead loses nothing acknowledged.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::config::{self, Config};
use super::control::Control;
use super::control_requests::{ControlHandle, ControlRequest};
use super::data::mirrored::PairSetup;
use super::data::{self, Setup};
use super::engine::EngineHandle;
use super::event_log::{self, EventReporter};
use super::gateway::Late;
use super::listen::listen;
use super::notify;
use super::power;
use super::services::{self, Services};
use super::state_directory::StateDirectory;
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::ControlState;
use crate::cluster::versions::Claim;
use crate::peer::quorum::{self, QuorumHandle, QuorumSetup};

/// Exit code of a daemon that could not start.
const FAILED: u8 = 1;
/// Exit code of wrong usage (EX_USAGE).
const USAGE: u8 = 64;
/// Exit code of a daemon that ended for want of power (EX_TEMPFAIL): it is to be started again, and waits then.
const WITHOUT_POWER: u8 = 75;
/// Time for the last events to be saved and open calls to be answered at the end.
const LAST_MOMENT: Duration = Duration::from_millis(200);

/// The gemel storage service.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Where the configuration is.
    #[arg(long, global = true, value_name = "PATH", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// What to do instead of serving.
    #[command(subcommand)]
    command: Option<Task>,
    /// Serve volumes from memory instead of the disks, to test initiators or to measure the protocol:
    /// nothing survives the process.
    #[arg(long, hide = true, value_name = "SIZE", value_parser = size)]
    volatile_memory_pool: Option<u64>,
    /// For tests of clusters whose members run different releases: say that this one speaks these versions of a protocol
    /// between members, whatever it does speak.
    #[arg(long, hide = true, value_name = "PROTOCOL=OLDEST..NEWEST")]
    claim_protocol: Vec<Claim>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Print the manual page.
    #[command(hide = true)]
    Man,
    /// Create a new, empty pool on the configured disks. Disks that hold anything are refused.
    Format {
        /// Also disks that hold something; it is lost.
        #[arg(long)]
        force: bool,
    },
}

fn size(text: &str) -> Result<u64, String> {
    crate::rpc::size::parse(text).map_err(|error| error.to_string())
}

/// Why the daemon ended early. The text says what to do.
type Failure = Box<dyn std::error::Error>;

/// Runs `gemeld` and gives its exit code.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(message) => {
            let code = if message.use_stderr() { USAGE } else { 0 };
            // Nothing can be done about an output that does not take the help text.
            let _ = message.print();
            return ExitCode::from(code);
        }
    };
    start_log();
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot set up an event loop: {error}")),
    };
    let result = match &arguments.command {
        Some(Task::Man) => clap_mangen::Man::new(Arguments::command().name("gemeld"))
            .section("8")
            .render(&mut std::io::stdout())
            .map(|()| ExitCode::SUCCESS)
            .map_err(Failure::from),
        Some(Task::Format { force }) => format(&arguments.config, *force).map(|()| ExitCode::SUCCESS),
        None => LocalSet::new().block_on(&runtime, serve(&arguments)),
    };
    match result {
        Ok(code) => code,
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(message: &str) -> ExitCode {
    eprintln!("gemeld: {message}");
    ExitCode::from(FAILED)
}

/// Logs to standard error, where the service manager takes it; `GEMEL_LOG` sets the level.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GEMEL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Allows as many descriptors as the system lets: each session has one.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files cannot be raised: fewer sessions are possible");
    }
}

/// Creates a new pool, unless the node's records or the disks speak against it.
fn format(path: &Path, force: bool) -> Result<(), Failure> {
    let config = Config::load(path)?;
    // Held for the time of the formatting: the daemon must not start in the middle of it.
    let state = StateDirectory::open(&config.state_dir)?;
    let saved = state.control()?;
    let known = saved.as_deref().map(ControlState::decode).transpose();
    let volumes = known.ok().flatten().map_or(0, |known| known.volumes().count());
    if volumes > 0 && !force {
        return Err(format!(
            "{} knows {volumes} volumes, which are lost when their disks are formatted; delete them first, or \
             format with --force",
            config.state_dir.display()
        )
        .into());
    }
    data::format(&config, force)?;
    println!("formatted {} disks; gemeld can be started", config.pool.disks.len());
    Ok(())
}

async fn serve(arguments: &Arguments) -> Result<ExitCode, Failure> {
    // From the first moment on a signal is a request to stop in order.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut config = Config::load(&arguments.config)?;
    if let Some(pair) = &mut config.pair {
        pair.speaks = pair.speaks.with(&arguments.claim_protocol);
    }
    let state = Arc::new(StateDirectory::open(&config.state_dir)?);
    tokio::select! {
        () = power::wait_for_power(config.ups.as_ref(), &config.state_dir) => {}
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    }
    let keep = usize::try_from(config.events.keep.get())?;
    let (events, log, writer) = event_log::open(state.clone(), keep)?;
    let saving = tokio::task::spawn_local(writer.run());

    let (engine, requests) = EngineHandle::channel();
    let (control_handle, decisions) = ControlHandle::channel();
    let late = Late::default();
    let quorum = start_quorum(&config, &state, &late)?;
    let control = Control::open(
        &config,
        state.clone(),
        engine.clone(),
        (events.clone(), log.clone()),
        quorum.as_ref().map(|(q, _)| q.clone()),
    );
    let control = Arc::new(control?);
    tokio::task::spawn_local(decide(control.clone(), decisions));
    tokio::select! {
        accepted = control.accepted(&config.cluster) => accepted?,
        _ = terminate.recv() => return stop_quorum(quorum).await.map(|()| ExitCode::SUCCESS),
        _ = interrupt.recv() => return stop_quorum(quorum).await.map(|()| ExitCode::SUCCESS),
    }
    // A node of a pair opens its volumes when there is a majority, which may take a while.
    let is_single = quorum.is_none();
    let setup = Setup {
        volumes: if is_single { control.volume_specs() } else { Vec::new() },
        purge: if is_single { control.volumes_to_purge() } else { Vec::new() },
        portal_group_tag: control.portal_group_tag(),
        access: control.access_rules(),
        memory_pool: arguments.volatile_memory_pool,
        events: events.clone(),
        control: control_handle,
        pair: pair_setup(&config, quorum.as_ref(), &state),
        requests,
        config: config.clone(),
    };
    let (started, starting) = oneshot::channel();
    let data_thread = data::spawn(setup, started)?;
    starting.await.map_err(|_| "the data thread ended while it started")??;

    let following = tokio::task::spawn_local(control.clone().follow());
    let scheduling = tokio::task::spawn_local(control.clone().keep_schedules());
    let services = Services::start(&config, &control, log, &events, &late)?;
    announce(&config, &events);
    notify::notify(notify::READY);

    let ended = engine.closed();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = control.stop_wanted() => {}
        () = ended => return Err("the data thread has ended; the log says why".into()),
    }
    notify::notify(notify::STOPPING);
    following.abort();
    scheduling.abort();
    let stopped = engine.ask(super::engine::Request::Stop).await;
    events.info("node-stopped", format!("node {} stops", config.node.as_str()), &[]);
    let is_for_power = control.is_stop_for_power();
    if is_for_power {
        power::remember_stop(&config.state_dir);
    }
    drop((events, control));
    services.stop();
    // The writer ends when the last reporter is gone; a call still in progress may hold one.
    let _ = tokio::time::timeout(LAST_MOMENT, saving).await;
    stopped?;
    stop_quorum(quorum).await?;
    data_thread.join().map_err(|_| "the data thread panicked; the log says where")?;
    if is_for_power {
        power::after_stop(config.ups.as_ref());
        return Ok(ExitCode::from(WITHOUT_POWER));
    }
    Ok(ExitCode::SUCCESS)
}

/// Decides what the data thread asks for. In a pair that takes a round to the others, so one does not wait for
/// the other.
async fn decide(control: Arc<Control>, mut requests: mpsc::Receiver<ControlRequest>) {
    while let Some(request) = requests.recv().await {
        let control = control.clone();
        tokio::task::spawn_local(async move { control.decide(request).await });
    }
}

type RunningQuorum = (QuorumHandle, std::thread::JoinHandle<()>);

/// Starts this node's part in the quorum; a single node has none.
fn start_quorum(
    config: &Config,
    state: &StateDirectory,
    late: &Late,
) -> Result<Option<RunningQuorum>, Failure> {
    let Some(settings) = config.pair.clone() else { return Ok(None) };
    if state.control()?.is_some() {
        return Err(format!(
            "{} has the records of a single node, which cannot become one of a pair in this version: use another \
             state_dir, or take the section [pair] out of the configuration",
            config.state_dir.display()
        )
        .into());
    }
    let listeners = settings.listen.iter().map(|address| listen(*address, "the pair", "pair.listen"));
    let setup = QuorumSetup {
        name: config.node.clone(),
        kind: SeatKind::Node,
        directory: config.state_dir.join(quorum::NODE_DIRECTORY),
        listeners: listeners.collect::<Result<_, _>>()?,
        settings,
        services: Some(services::beside_the_quorum(late)),
    };
    Ok(Some(quorum::start(setup)?))
}

/// What the data thread of a node of a pair needs besides.
fn pair_setup(
    config: &Config,
    quorum: Option<&RunningQuorum>,
    records: &Arc<StateDirectory>,
) -> Option<PairSetup> {
    let settings = config.pair.as_ref()?;
    let peer = settings.peers.iter().find(|peer| !peer.witness)?.name.clone();
    let (quorum, _) = quorum?;
    let (own, quorum, records) = (config.node.clone(), quorum.clone(), records.clone());
    let spec = super::control::volume_spec;
    Some(PairSetup { own, peer, quorum, records, spec })
}

/// Ends the part in the quorum, after the last volume.
async fn stop_quorum(quorum: Option<RunningQuorum>) -> Result<(), Failure> {
    let Some((quorum, thread)) = quorum else { return Ok(()) };
    quorum.stop().await;
    thread.join().map_err(|_| "the quorum's thread panicked; the log says where".into())
}

fn announce(config: &Config, events: &EventReporter) {
    tracing::info!(socket = %config.management.socket.display(), "management");
    let portals = config.iscsi.portals.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let message = format!("node {} of cluster {} is ready", config.node.as_str(), config.cluster.as_str());
    events.info(
        "node-started",
        message,
        &[("portals", portals), ("version", env!("CARGO_PKG_VERSION").to_owned())],
    );
}
