//! The work of a set-up, a step after the other. A step that fails says why, and may be tried again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};

use super::Setup;
use super::plan::Plan;
use crate::cli::client;
use crate::cli::cluster::init::{self, Token};
use crate::cli::cluster::join;
use crate::cli::cluster::places::Places;
use crate::cli::error::CliError;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::rpc::management::{AddUserRequest, GetClusterRequest, Member};

/// Something that is to be done.
pub struct Order {
    /// What.
    pub wanted: Wanted,
    /// Is dropped when the pages show what has become of it.
    pub seen: oneshot::Sender<()>,
}

/// What somebody wants done now.
pub enum Wanted {
    /// All of it.
    Go(Box<Plan>),
    /// The step that failed, once more; disks are taken although they hold something.
    Again { with_force: bool },
    /// A first user of the console, who reaches this machine as `host`.
    AddUser { name: String, host: String },
}

/// What is done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Keys and configuration.
    Configure,
    /// Disks are taken into use.
    Format,
    /// The service is started.
    Start,
    /// All members are there, with a vote each.
    Gather,
    /// Somebody may sign in.
    AddUser,
    /// There is nothing left.
    Over,
}

/// How far it is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// What this machine is called.
    pub name: NodeName,
    /// What it is.
    pub kind: SeatKind,
    /// The cluster; not known before the first step of one that joins.
    pub cluster: String,
    /// What is being done, or has failed.
    pub step: Step,
    /// Why it failed.
    pub failure: Option<String>,
    /// For the other machines.
    pub tokens: Vec<Token>,
    /// Who is there.
    pub members: Vec<Member>,
    /// Why the members are not known.
    pub silence: String,
    /// Whether this machine began the cluster.
    pub is_first: bool,
    /// Where the first user sets a password.
    pub link: Option<String>,
}

impl Progress {
    fn new(plan: &Plan) -> Self {
        Self {
            name: plan.name().clone(),
            kind: plan.kind(),
            cluster: match plan {
                Plan::Make(init) => init.cluster_name.to_string(),
                Plan::Join(..) => String::new(),
            },
            step: Step::Configure,
            failure: None,
            tokens: Vec::new(),
            members: Vec::new(),
            silence: String::new(),
            is_first: matches!(plan, Plan::Make(_)),
            link: None,
        }
    }

    /// Whether nothing is left to be done here.
    pub fn is_over(&self) -> bool {
        self.step == Step::Over && self.failure.is_none()
    }

    /// Whether something goes on by itself.
    pub fn is_working(&self) -> bool {
        self.failure.is_none() && self.step < Step::AddUser
    }
}

/// Does what is ordered, for ever.
pub async fn work(setup: &Setup, mut orders: mpsc::Receiver<Order>, start: Option<&str>) {
    let mut current: Option<(Box<Plan>, Progress)> = None;
    while let Some(Order { wanted, seen }) = orders.recv().await {
        let mut with_force = false;
        match (wanted, &mut current) {
            // What has begun is not begun again.
            (Wanted::Go(plan), None) => {
                let progress = Progress::new(&plan);
                current = Some((plan, progress));
            }
            (Wanted::Again { with_force: force }, Some(_)) => with_force = force,
            (Wanted::AddUser { name, host }, Some((plan, progress))) if progress.step == Step::AddUser => {
                match add_user(plan, name, &host).await {
                    Ok(link) => {
                        progress.link = Some(link);
                        progress.failure = None;
                        progress.step = Step::Over;
                    }
                    Err(error) => progress.failure = Some(error.to_string()),
                }
                setup.set_progress(progress);
                continue;
            }
            _ => continue,
        }
        let Some((plan, progress)) = &mut current else { continue };
        progress.failure = None;
        setup.set_progress(progress);
        drop(seen);
        if let Err(error) = go_on(setup, plan, progress, (start, with_force)).await {
            progress.failure = Some(error.to_string());
            // What was never made can be wished for anew.
            if progress.step == Step::Configure {
                let progress = progress.clone();
                current = None;
                setup.set_progress(&progress);
                continue;
            }
        }
        setup.set_progress(progress);
    }
}

async fn go_on(
    setup: &Setup,
    plan: &Plan,
    progress: &mut Progress,
    (start, with_force): (Option<&str>, bool),
) -> Result<(), CliError> {
    let places = Places::new(plan.kind(), plan.local())?;
    loop {
        setup.set_progress(progress);
        progress.step = match progress.step {
            Step::Configure => {
                configure(plan, progress).await?;
                if plan.kind() == SeatKind::Node { Step::Format } else { Step::Start }
            }
            Step::Format => {
                let configuration = places.configuration.as_path();
                let mut format = Command::new(program("gemeld"));
                format.arg("--config").arg(configuration).arg("format").args(with_force.then_some("--force"));
                succeed(format, "gemeld format").await?;
                Step::Start
            }
            Step::Start => {
                let command = start.map_or_else(|| places.start_command(), str::to_owned);
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(&command);
                succeed(shell, &command).await?;
                if plan.kind() == SeatKind::Node { Step::Gather } else { Step::Over }
            }
            Step::Gather => {
                gather(setup, &places.socket, progress).await;
                if progress.is_first { Step::AddUser } else { Step::Over }
            }
            Step::AddUser | Step::Over => return Ok(()),
        };
    }
}

async fn configure(plan: &Plan, progress: &mut Progress) -> Result<(), CliError> {
    match plan {
        Plan::Make(arguments) => {
            progress.tokens = init::run(arguments)?.tokens;
        }
        Plan::Join(arguments, ..) => progress.cluster = join::run(arguments).await?.cluster,
    }
    Ok(())
}

/// Waits until the service answers and every member is there with its vote.
async fn gather(setup: &Setup, socket: &Path, progress: &mut Progress) {
    let endpoint = [format!("unix:{}", socket.display())];
    loop {
        let asked = async {
            let mut client = client::connect(&endpoint, None).await?;
            Ok::<_, CliError>(client.get_cluster(GetClusterRequest {}).await?.into_inner())
        };
        match asked.await {
            Ok(cluster) => {
                (progress.members, progress.silence) = (cluster.members, String::new());
                if cluster.has_majority
                    && progress.members.iter().all(|member| member.votes && member.reachable)
                {
                    return;
                }
            }
            Err(error) => progress.silence = error.to_string(),
        }
        setup.set_progress(progress);
        tokio::time::sleep(LOOK).await;
    }
}

/// The page at which the user sets a password.
async fn add_user(plan: &Plan, name: String, host: &str) -> Result<String, CliError> {
    let places = Places::new(plan.kind(), plan.local())?;
    let mut client = client::connect(&[format!("unix:{}", places.socket.display())], None).await?;
    let request = AddUserRequest { name, role: "administrator".to_owned(), password: String::new() };
    let access = client.add_user(request).await?.into_inner();
    // By the address that has led here, as names may not be known where the browser is.
    let site = match plan.local().console {
        Some(console) if console.ip().is_unspecified() => format!("https://{host}:{}", console.port()),
        Some(console) => format!("https://{console}"),
        None => access.consoles.first().cloned().unwrap_or_default(),
    };
    Ok(format!("{site}{}", access.link))
}

async fn succeed(mut command: Command, what: &str) -> Result<(), CliError> {
    let ran = command.stdin(std::process::Stdio::null()).output().await;
    match ran {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let reason = if said.is_empty() { output.status.to_string() } else { said };
            Err(CliError::Local(format!("{what}: {reason}")))
        }
        Err(error) => Err(CliError::Local(format!("{what}: {error}"))),
    }
}

/// The program beside this one, as they are installed together; else by its name.
fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(name));
    beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(name))
}

/// Time between two looks at who is there.
const LOOK: Duration = Duration::from_secs(1);
