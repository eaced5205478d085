//! `gemel drill`: a fire drill. Volumes are moved, nodes drained and, on request, stopped and killed, one after the other,
//! while a host works on a volume of its own; how long it had to wait is reported against what real hosts bear.
//!
//! Only what is whole is drilled: nothing begins before everything is in sync, and each step waits until it is so again.
//! Hosts of other volumes notice a drained or stopped node as a short pause. The drill's volume is removed at the end, also
//! when something fails.

mod host;
mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use tonic::transport::Channel;

use self::host::{Host, INITIATOR};
use self::report::{Act, Report};
use super::client;
use super::error::CliError;
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{
    AllowAccessRequest, CreateVolumeRequest, DeleteVolumeRequest, GetStatusRequest, GetVolumeRequest, Health,
    MoveVolumeRequest, SetMaintenanceRequest, Status, Volume, VolumeState,
};

/// `gemel drill`
#[derive(Debug, Args)]
pub struct DrillArguments {
    /// A node's portal, ADDRESS:PORT, once for each node; as the nodes say when not given.
    #[arg(long, value_name = "PORTAL")]
    portal: Vec<SocketAddr>,
    /// How often the drill's volume is moved.
    #[arg(long, default_value_t = 4)]
    moves: u32,
    /// Drain no nodes: the drill's own volume is moved, and nothing else touched.
    #[arg(long)]
    only_moves: bool,
    /// Command that stops a node in order; {node} stands for its name. Each node is stopped, and started again.
    #[arg(long, value_name = "COMMAND", requires = "start")]
    stop: Option<String>,
    /// Command that kills a node, as a power cut does.
    #[arg(long, value_name = "COMMAND", requires = "start")]
    kill: Option<String>,
    /// Command that starts a node again.
    #[arg(long, value_name = "COMMAND")]
    start: Option<String>,
    /// File for the report, in Markdown.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// A drill at work.
struct Drill<'a> {
    arguments: &'a DrillArguments,
    endpoints: &'a [String],
    identity: Option<&'a std::path::Path>,
    volume: String,
    nodes: Vec<String>,
    acts: Vec<Act>,
}

/// Runs a drill. The report also says whether it was passed.
pub async fn run(
    arguments: &DrillArguments,
    endpoints: &[String],
    identity: Option<&std::path::Path>,
) -> Result<(Report, bool), CliError> {
    let volume = format!("drill-{}", std::process::id());
    let (nodes, acts) = (Vec::new(), Vec::new());
    let mut drill = Drill { arguments, endpoints, identity, volume, nodes, acts };
    let status = drill.client().await?.get_status(GetStatusRequest {}).await?.into_inner();
    drill.check(&status)?;
    let portals = drill.portals(&status)?;
    let made = drill.make_volume().await;
    let drilled = match made {
        Ok(target) => drill.drill(target, portals).await,
        Err(error) => Err(error),
    };
    let removed = drill.remove_volume().await;
    let (operations, wrong) = drilled?;
    removed?;
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let report = Report { cluster: status.cluster, time, acts: drill.acts, operations, wrong };
    if let Some(file) = &arguments.report {
        let written = std::fs::write(file, report.text());
        written.map_err(|error| CliError::Local(format!("cannot write {}: {error}", file.display())))?;
    }
    let is_passed = report.is_passed();
    Ok((report, is_passed))
}

/// The report for people.
pub fn text(report: &Report) -> String {
    report.text()
}

impl Drill<'_> {
    /// A client of a node that answers: which one may change in the middle.
    async fn client(&self) -> Result<ManagementClient<Channel>, CliError> {
        client::connect(self.endpoints, self.identity).await
    }

    fn check(&mut self, status: &Status) -> Result<(), CliError> {
        if status.health() != Health::Ok {
            return Err(CliError::Refused(
                "the cluster is not whole: a drill begins when `gemel status` says that it is".to_owned(),
            ));
        }
        self.nodes = status.nodes.iter().map(|node| node.name.clone()).collect();
        if self.nodes.len() < 2 {
            return Err(CliError::Refused("a single node has nobody to hand over to".to_owned()));
        }
        if (self.arguments.stop.is_some() || self.arguments.kill.is_some()) && self.endpoints.len() < 2 {
            return Err(CliError::Usage(
                "name both nodes with --cluster A,B: the one that is asked may be the one that is stopped"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn portals(&self, status: &Status) -> Result<Vec<SocketAddr>, CliError> {
        if !self.arguments.portal.is_empty() {
            return Ok(self.arguments.portal.clone());
        }
        let portals = status.nodes.iter().map(|node| {
            let mut portals = node.portals.iter().filter_map(|portal| portal.parse::<SocketAddr>().ok());
            portals.find(|portal| !portal.ip().is_unspecified())
        });
        portals.collect::<Option<Vec<_>>>().ok_or_else(|| {
            CliError::Usage(
                "the nodes listen on all their addresses: name a portal of each with --portal".to_owned(),
            )
        })
    }

    async fn make_volume(&self) -> Result<String, CliError> {
        let mut client = self.client().await?;
        let name = self.volume.clone();
        let request =
            CreateVolumeRequest { name, size_bytes: VOLUME_BYTES, ..CreateVolumeRequest::default() };
        let made = client.create_volume(request).await?.into_inner();
        let access = AllowAccessRequest { volume: self.volume.clone(), initiator: INITIATOR.to_owned() };
        client.allow_access(access).await?;
        Ok(made.target)
    }

    async fn remove_volume(&self) -> Result<(), CliError> {
        let began = Instant::now();
        loop {
            let request = DeleteVolumeRequest { name: self.volume.clone(), force: true };
            let deleted = match self.client().await {
                Ok(mut client) => client.delete_volume(request).await.map(drop).map_err(CliError::from),
                Err(error) => Err(error),
            };
            match deleted {
                Err(error) if began.elapsed() > LONGEST_HEALING => return Err(error),
                Err(_) => tokio::time::sleep(LOOK).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// All of it; commands that were executed, and wrong reads.
    async fn drill(&mut self, target: String, portals: Vec<SocketAddr>) -> Result<(u64, u64), CliError> {
        self.wait_whole().await?;
        let host = Host::start(target, portals)
            .map_err(|error| CliError::Local(format!("cannot start a host: {error}")))?;
        self.settle(&host).await?;
        for _ in 0..self.arguments.moves {
            let from = self.volume().await?.primary;
            let Some(to) = self.nodes.iter().find(|node| **node != from).cloned() else { break };
            let (name, what) = (self.volume.clone(), format!("volume moved from {from} to {to}"));
            let request = MoveVolumeRequest { name, to };
            let mut client = self.client().await?;
            self.act(&host, what, async || {
                client.move_volume(request).await.map(drop).map_err(CliError::from)
            })
            .await?;
        }
        let nodes = self.nodes.clone();
        for node in nodes.iter().filter(|_| !self.arguments.only_moves) {
            self.bring_to(node).await?;
            let mut client = self.client().await?;
            let set = |on| SetMaintenanceRequest { node: node.clone(), on };
            let (drain, back) = (set(true), set(false));
            self.act(&host, format!("node {node} drained, and taken back"), async || {
                client.set_maintenance(drain).await?;
                client.set_maintenance(back).await?;
                Ok(())
            })
            .await?;
        }
        for (command, verb) in [(&self.arguments.stop, "stopped in order"), (&self.arguments.kill, "killed")]
        {
            let (Some(command), Some(start)) = (command, &self.arguments.start) else { continue };
            for node in &nodes {
                self.bring_to(node).await?;
                let (command, start) = (command.replace("{node}", node), start.replace("{node}", node));
                let settling = &host;
                self.act(&host, format!("node {node} {verb}, and started again"), async || {
                    shell(&command).await?;
                    progress(settling).await?;
                    shell(&start).await
                })
                .await?;
            }
        }
        let seen = host.seen();
        Ok((seen.operations, seen.wrong))
    }

    /// Has a node serve the drill's volume, so that its loss is felt.
    async fn bring_to(&self, node: &str) -> Result<(), CliError> {
        if self.volume().await?.primary != *node {
            let request = MoveVolumeRequest { name: self.volume.clone(), to: node.to_owned() };
            self.client().await?.move_volume(request).await?;
        }
        self.wait_whole().await
    }

    /// Does something, and notes how long the host had to wait and when everything was whole again.
    async fn act(
        &mut self,
        host: &Host,
        what: String,
        act: impl AsyncFnOnce() -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        self.settle(host).await?;
        let began = Instant::now();
        act().await?;
        self.wait_whole().await?;
        let healed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        progress(host).await?;
        let stall_ms = u64::try_from(host.take_longest().as_millis()).unwrap_or(u64::MAX);
        eprintln!("{what}: the host waited {stall_ms} ms at most");
        self.acts.push(Act { what, stall_ms, healed_ms });
        Ok(())
    }

    /// Waits until the host works, and forgets how long it waited before.
    async fn settle(&self, host: &Host) -> Result<(), CliError> {
        progress(host).await?;
        host.take_longest();
        Ok(())
    }

    async fn volume(&self) -> Result<Volume, CliError> {
        let request = GetVolumeRequest { name: self.volume.clone() };
        Ok(self.client().await?.get_volume(request).await?.into_inner())
    }

    /// Waits until every volume is on both nodes.
    async fn wait_whole(&self) -> Result<(), CliError> {
        let began = Instant::now();
        loop {
            let status = async {
                let status = self.client().await?.get_status(GetStatusRequest {}).await?;
                Ok::<_, CliError>(status.into_inner())
            };
            let is_whole = status.await.is_ok_and(|status| {
                let in_sync = |volume: &Volume| volume.state() == VolumeState::InSync;
                status.health() == Health::Ok && status.volumes.iter().all(in_sync)
            });
            if is_whole {
                return Ok(());
            }
            if began.elapsed() > LONGEST_HEALING {
                return Err(CliError::Refused(
                    "the cluster is not whole again in time: the drill ends here; `gemel status` says why"
                        .to_owned(),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Waits until the host has done a good deal more.
async fn progress(host: &Host) -> Result<(), CliError> {
    let (before, began) = (host.seen().operations, Instant::now());
    while host.seen().operations < before + ENOUGH {
        if began.elapsed() > LONGEST_PAUSE {
            return Err(CliError::Refused(
                "the host of the drill is not served: are the portals (--portal) those of this cluster?"
                    .to_owned(),
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn shell(command: &str) -> Result<(), CliError> {
    let ran = tokio::process::Command::new("sh").arg("-c").arg(command).output().await;
    match ran {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(CliError::Local(format!("{command}: {}: {}", output.status, reason.trim())))
        }
        Err(error) => Err(CliError::Local(format!("{command}: {error}"))),
    }
}

/// Of the drill's own.
const VOLUME_BYTES: u64 = 64 << 20;
/// Commands that show that the host works.
const ENOUGH: u64 = 20;
/// Longest that a node may take to come back and be brought up to date.
const LONGEST_HEALING: Duration = Duration::from_secs(600);
/// Longest that the host may be without service before the drill is given up.
const LONGEST_PAUSE: Duration = Duration::from_secs(150);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
