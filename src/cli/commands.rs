//! What each command asks of the node and what it prints.

use std::io::{BufRead, Write};
use std::path::Path;

use serde::Serialize;
use tonic::transport::Channel;

use super::args::{
    AccessVerb, AlertVerb, Arguments, ChapVerb, DiskVerb, EventVerb, ForceVerb, GroupVerb, NodeVerb, Noun,
    PoolVerb, RebuildPriority, ScrubAction, SpareVerb, Switch, VolumeVerb,
};
use super::cluster::args::{AdministratorVerb, ClusterVerb};
use super::error::{CliError, REFUSED};
use super::snapshot::CloneVerb;
use super::support::{self, SupportVerb};
use super::{alert, client, cluster, demo, drill, image, manual, setup, show, snapshot, user};
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{
    AllowAccessRequest, ChangeHostGroupRequest, ChangeSettingsRequest, ChangeSpareRequest, ChapCredential,
    ClearChapRequest, ControlScrubRequest, CreateAdministratorRequest, CreateJoinTokenRequest,
    CreateVolumeRequest, DeleteVolumeRequest, DenyAccessRequest, FailDiskRequest, ForcePrimaryRequest,
    GetBackupRequest, GetClusterRequest, GetPoolRequest, GetStatusRequest, GetVolumeRequest, Health,
    ListAccessRequest, ListAlertsRequest, ListDisksRequest, ListHostGroupsRequest, ListVolumesRequest,
    MoveVolumeRequest, RemoveAlertRequest, RemoveHostGroupRequest, RemoveMemberRequest, ReplaceDiskRequest,
    ReplaceMemberRequest, ResizeVolumeRequest, RevokeAdministratorRequest, SetAlertRequest, SetChapRequest,
    SetMaintenanceRequest, SetRebuildPriorityRequest, SetVolumeHomeRequest, SetVolumeRequest,
    ShutdownClusterRequest, ShutdownNodeRequest, StreamEventsRequest, TestAlertsRequest,
};

/// A connected command.
struct Session {
    client: ManagementClient<Channel>,
    output: Output,
}

/// Runs a command; the result is the exit code of one that succeeded.
pub async fn run(arguments: Arguments) -> Result<u8, CliError> {
    let output = Output { json: arguments.json };
    if let Noun::Setup(wanted) = arguments.noun {
        return setup::run(wanted).await.map(|()| 0);
    }
    match &arguments.noun {
        Noun::Demo(demo) => return demo::run(demo).await.map(|()| 0),
        Noun::Completions { shell } => return print(&manual::completions(*shell)).map(|()| 0),
        Noun::Man { directory } => return manual::pages(directory).map(|()| 0),
        Noun::Cluster(ClusterVerb::Init(init)) => {
            return output.one(&cluster::init::run(init)?, cluster::init::Made::text).map(|()| 0);
        }
        Noun::Cluster(ClusterVerb::Join(join)) => {
            return output.one(&cluster::join::run(join).await?, cluster::join::Became::text).map(|()| 0);
        }
        Noun::Cluster(ClusterVerb::Restore(restore)) => {
            return output.one(&cluster::backup::restore(restore)?, cluster::init::Made::text).map(|()| 0);
        }
        _ => {}
    }
    if let Noun::Drill(wanted) = &arguments.noun {
        let drilled = drill::run(wanted, &arguments.cluster, arguments.identity.as_deref()).await;
        let (report, is_passed) = drilled?;
        output.one(&report, drill::text)?;
        return Ok(if is_passed { 0 } else { REFUSED });
    }
    let client = client::connect(&arguments.cluster, arguments.identity.as_deref()).await;
    if let Noun::Support(SupportVerb::Bundle { file }) = arguments.noun {
        return output.one(&support::run(client, file).await?, support::Made::text).map(|()| 0);
    }
    let client = client?;
    let mut session = Session { client, output };
    match arguments.noun {
        Noun::Status => return session.status().await,
        Noun::Cluster(ClusterVerb::Show) => {
            let cluster = session.client.get_cluster(GetClusterRequest {}).await?.into_inner();
            output.one(&cluster, show::cluster)?;
        }
        Noun::Cluster(ClusterVerb::Remove { name }) => {
            let request = RemoveMemberRequest { name };
            let cluster = session.client.remove_member(request).await?.into_inner();
            output.one(&cluster, show::cluster)?;
        }
        Noun::Cluster(ClusterVerb::Shutdown { force }) => {
            let stopped = session.client.shutdown_cluster(ShutdownClusterRequest { force }).await?;
            output.one(&stopped.into_inner(), show::cluster_shutdown)?;
        }
        Noun::Cluster(ClusterVerb::Set { resync_limit, space_warning, space_error }) => {
            let request = ChangeSettingsRequest {
                space_warning_percent: space_warning,
                space_error_percent: space_error,
                resync_limit_bytes_per_second: resync_limit,
            };
            let cluster = session.client.change_settings(request).await?.into_inner();
            output.one(&cluster, show::cluster)?;
        }
        Noun::Cluster(ClusterVerb::Token { name, valid }) => {
            let request =
                CreateJoinTokenRequest { name: name.to_string(), valid_seconds: valid.as_secs().max(1) };
            let token = session.client.create_join_token(request).await?.into_inner();
            output.one(&token, show::join_token)?;
        }
        Noun::Cluster(ClusterVerb::Administrator(AdministratorVerb::Add { name, file })) => {
            let request = CreateAdministratorRequest { name };
            let made = session.client.create_administrator(request).await?.into_inner();
            cluster::backup::keep(&file, &made.identity)?;
            output.done("kept", &file.display().to_string())?;
        }
        Noun::Cluster(ClusterVerb::Administrator(AdministratorVerb::Revoke { name })) => {
            session.client.revoke_administrator(RevokeAdministratorRequest { name: name.clone() }).await?;
            output.done("revoked", &name)?;
        }
        Noun::Cluster(ClusterVerb::Backup { file }) => {
            let backup = session.client.get_backup(GetBackupRequest {}).await?.into_inner();
            cluster::backup::keep(&file, &backup.contents)?;
            output.done("kept", &file.display().to_string())?;
        }
        Noun::Node(NodeVerb::List) => {
            let status = session.client.get_status(GetStatusRequest {}).await?.into_inner();
            output.list(&status.nodes, show::nodes)?;
        }
        Noun::Node(NodeVerb::Replace { name }) => {
            let request = ReplaceMemberRequest { name };
            let cluster = session.client.replace_member(request).await?.into_inner();
            output.one(&cluster, show::cluster)?;
        }
        Noun::Node(NodeVerb::Maintenance { switch, node }) => {
            let request = SetMaintenanceRequest { node: node.unwrap_or_default(), on: switch == Switch::On };
            let node = session.client.set_maintenance(request).await?.into_inner();
            output.one(&node, |node| show::nodes(std::slice::from_ref(node)))?;
        }
        Noun::Node(NodeVerb::Shutdown { node, force }) => {
            let request = ShutdownNodeRequest {
                node: node.clone().unwrap_or_default(),
                force,
                ..ShutdownNodeRequest::default()
            };
            session.client.shutdown_node(request).await?;
            output.done("stops", node.as_deref().unwrap_or("the node"))?;
        }
        Noun::Force(ForceVerb::Primary { volume, on, confirm }) => {
            confirm_by_name(&volume, &on, confirm)?;
            let request = ForcePrimaryRequest { name: volume, node: on };
            let volume = session.client.force_primary(request).await?.into_inner();
            output.one(&volume, show::volume)?;
        }
        Noun::Volume(verb) => session.volume(verb).await?,
        Noun::Snapshot(verb) => snapshot::run(&mut session.client, output, verb).await?,
        Noun::Clone(CloneVerb::Create(arguments)) => session.volume(VolumeVerb::Clone(arguments)).await?,
        Noun::Disk(verb) => session.disk(verb).await?,
        Noun::Pool(verb) => session.pool(verb).await?,
        Noun::Access(verb) => session.access(verb).await?,
        Noun::Event(verb) => session.event(verb).await?,
        Noun::Alert(verb) => return session.alert(verb).await,
        Noun::User(verb) => user::run(&mut session.client, output, verb).await?,
        Noun::Demo(_)
        | Noun::Setup(_)
        | Noun::Support(_)
        | Noun::Drill(_)
        | Noun::Completions { .. }
        | Noun::Man { .. }
        | Noun::Cluster(ClusterVerb::Init(_) | ClusterVerb::Join(_) | ClusterVerb::Restore(_)) => {}
    }
    Ok(0)
}

impl Session {
    async fn status(&mut self) -> Result<u8, CliError> {
        let status = self.client.get_status(GetStatusRequest {}).await?.into_inner();
        self.output.one(&status, show::status)?;
        Ok(match status.health() {
            Health::Ok => 0,
            Health::Degraded => 1,
            Health::Down | Health::Unspecified => 2,
        })
    }

    async fn volume(&mut self, verb: VolumeVerb) -> Result<(), CliError> {
        let volume = match verb {
            VolumeVerb::Create { name, size, sector, local, primary } => {
                let request = CreateVolumeRequest {
                    name,
                    size_bytes: size,
                    sector_bytes: sector.bytes,
                    physical_sector_bytes: sector.physical_bytes,
                    local,
                    primary: primary.unwrap_or_default(),
                };
                self.client.create_volume(request).await?
            }
            VolumeVerb::Clone(arguments) => self.client.clone_volume(arguments.request()).await?,
            VolumeVerb::Move { name, to } => self.client.move_volume(MoveVolumeRequest { name, to }).await?,
            VolumeVerb::Home { name, node } => {
                let home = if node == "none" { String::new() } else { node };
                self.client.set_volume_home(SetVolumeHomeRequest { name, home }).await?
            }
            VolumeVerb::Set { name, iops, bandwidth, quota, reserve } => {
                let request = SetVolumeRequest {
                    name,
                    iops,
                    bandwidth_bytes_per_second: bandwidth,
                    quota_bytes: quota,
                    reserved_bytes: reserve,
                };
                self.client.set_volume(request).await?
            }
            VolumeVerb::Show { name } => self.client.get_volume(GetVolumeRequest { name }).await?,
            VolumeVerb::Resize { name, size, shrink } => {
                let request = ResizeVolumeRequest { name, size_bytes: size, shrink };
                self.client.resize_volume(request).await?
            }
            VolumeVerb::List => {
                let response = self.client.list_volumes(ListVolumesRequest {}).await?.into_inner();
                return self.output.list(&response.volumes, show::volumes);
            }
            VolumeVerb::Export(arguments) => {
                return image::export(&mut self.client, self.output, arguments).await;
            }
            VolumeVerb::Import(arguments) => {
                return image::import(&mut self.client, self.output, arguments).await;
            }
            VolumeVerb::Delete { name, force } => {
                self.client.delete_volume(DeleteVolumeRequest { name: name.clone(), force }).await?;
                return self.output.done("deleted", &name);
            }
        };
        self.output.one(&volume.into_inner(), show::volume)
    }

    async fn disk(&mut self, verb: DiskVerb) -> Result<(), CliError> {
        match verb {
            DiskVerb::List => {
                let response = self.client.list_disks(ListDisksRequest {}).await?.into_inner();
                self.output.list(&response.disks, show::disks)
            }
            DiskVerb::Fail { disk, node, confirm } => {
                if confirm.as_ref().is_some_and(|confirm| *confirm != disk) {
                    return Err(CliError::Usage(format!("--confirm must be {disk}: nothing was done")));
                }
                let (force, node) = (confirm.is_some(), node.unwrap_or_default());
                let disk = self.client.fail_disk(FailDiskRequest { disk, force, node }).await?.into_inner();
                self.output.one(&disk, |disk| show::disks(std::slice::from_ref(disk)))
            }
            DiskVerb::Replace { disk, path, force, node } => self.replace_disk(disk, path, force, node).await,
            DiskVerb::Add { path, force, node } => self.replace_disk(String::new(), path, force, node).await,
            DiskVerb::Spare(SpareVerb::Add { path, node }) => self.spare(path, true, node).await,
            DiskVerb::Spare(SpareVerb::Remove { path, node }) => self.spare(path, false, node).await,
        }
    }

    async fn replace_disk(
        &mut self,
        disk: String,
        path: String,
        force: bool,
        node: Option<String>,
    ) -> Result<(), CliError> {
        let request = ReplaceDiskRequest { disk, path, force, node: node.unwrap_or_default() };
        let disk = self.client.replace_disk(request).await?.into_inner();
        self.output.one(&disk, |disk| show::disks(std::slice::from_ref(disk)))
    }

    async fn spare(&mut self, path: String, keep: bool, node: Option<String>) -> Result<(), CliError> {
        let request = ChangeSpareRequest { path, keep, node: node.unwrap_or_default() };
        let pool = self.client.change_spare(request).await?.into_inner();
        self.output.one(&pool, show::pool)
    }

    async fn pool(&mut self, verb: PoolVerb) -> Result<(), CliError> {
        match verb {
            PoolVerb::Show { node } => {
                let request = GetPoolRequest { node: node.unwrap_or_default() };
                let pool = self.client.get_pool(request).await?.into_inner();
                self.output.one(&pool, show::pool)
            }
            PoolVerb::Scrub { action, node } => {
                let action = match action {
                    ScrubAction::Start => "start",
                    ScrubAction::Stop => "stop",
                    ScrubAction::Status => "status",
                };
                let request =
                    ControlScrubRequest { action: action.to_owned(), node: node.unwrap_or_default() };
                let scrub = self.client.control_scrub(request).await?.into_inner();
                self.output.one(&scrub, show::scrub)
            }
            PoolVerb::RebuildPriority { priority, node } => {
                let priority = match priority {
                    RebuildPriority::Low => "low",
                    RebuildPriority::Normal => "normal",
                    RebuildPriority::High => "high",
                };
                let request = SetRebuildPriorityRequest {
                    priority: priority.to_owned(),
                    node: node.unwrap_or_default(),
                };
                let pool = self.client.set_rebuild_priority(request).await?.into_inner();
                self.output.one(&pool, show::pool)
            }
        }
    }

    async fn access(&mut self, verb: AccessVerb) -> Result<(), CliError> {
        match verb {
            AccessVerb::Allow { volume, initiator } => {
                let shown = format!("{initiator} on {volume}");
                self.client.allow_access(AllowAccessRequest { volume, initiator }).await?;
                self.output.done("allowed", &shown)
            }
            AccessVerb::Deny { volume, initiator } => {
                let shown = format!("{initiator} on {volume}");
                self.client.deny_access(DenyAccessRequest { volume, initiator }).await?;
                self.output.done("denied", &shown)
            }
            AccessVerb::List { volume } => {
                let request = ListAccessRequest { volume: volume.unwrap_or_default() };
                let response = self.client.list_access(request).await?.into_inner();
                self.output.list(&response.entries, show::access)
            }
            AccessVerb::Group(GroupVerb::List) => {
                let listed = self.client.list_host_groups(ListHostGroupsRequest {}).await?.into_inner();
                self.output.list(&listed.groups, show::host_groups)
            }
            AccessVerb::Group(GroupVerb::Change { name, add, remove }) => {
                let request = ChangeHostGroupRequest { name, added: add, removed: remove };
                let group = self.client.change_host_group(request).await?.into_inner();
                self.output.one(&group, |group| show::host_groups(std::slice::from_ref(group)))
            }
            AccessVerb::Group(GroupVerb::Remove { name }) => {
                self.client.remove_host_group(RemoveHostGroupRequest { name: name.clone() }).await?;
                self.output.done("removed", &name)
            }
            AccessVerb::Chap(ChapVerb::Clear { initiator }) => {
                self.client.clear_chap(ClearChapRequest { initiator: initiator.clone() }).await?;
                self.output.done("cleared", &initiator)
            }
            AccessVerb::Chap(ChapVerb::Set {
                initiator,
                user,
                secret_file,
                mutual_user,
                mutual_secret_file,
            }) => {
                let incoming = ChapCredential {
                    user: user.unwrap_or_else(|| initiator.clone()),
                    secret: read_secret(secret_file.as_deref())?,
                };
                let outgoing = match (mutual_user, mutual_secret_file) {
                    (Some(user), Some(file)) => {
                        Some(ChapCredential { user, secret: read_secret(Some(&file))? })
                    }
                    _ => None,
                };
                let request =
                    SetChapRequest { initiator: initiator.clone(), incoming: Some(incoming), outgoing };
                self.client.set_chap(request).await?;
                self.output.done("set", &initiator)
            }
        }
    }

    /// The exit code is that of the tests: 65 when one could not be delivered.
    async fn alert(&mut self, verb: AlertVerb) -> Result<u8, CliError> {
        match verb {
            AlertVerb::Add(channel) => {
                let request = SetAlertRequest { alert: Some(alert::alert(channel)?) };
                let made = self.client.set_alert(request).await?.into_inner();
                self.output.one(&made, |made| {
                    format!(
                        "{}  try it with: gemel alert test {}\n",
                        alert::alerts(std::slice::from_ref(made)),
                        made.name
                    )
                })?;
            }
            AlertVerb::List => {
                let listed = self.client.list_alerts(ListAlertsRequest {}).await?.into_inner();
                self.output.list(&listed.alerts, alert::alerts)?;
            }
            AlertVerb::Remove { name } => {
                self.client.remove_alert(RemoveAlertRequest { name: name.clone() }).await?;
                self.output.done("removed", &name)?;
            }
            AlertVerb::Test { name } => {
                let request = TestAlertsRequest { name: name.unwrap_or_default() };
                let tested = self.client.test_alerts(request).await?.into_inner().tests;
                self.output.list(&tested, alert::tests)?;
                if tested.iter().any(|test| !test.error.is_empty()) {
                    return Ok(REFUSED);
                }
            }
        }
        Ok(0)
    }

    async fn event(&mut self, verb: EventVerb) -> Result<(), CliError> {
        let request = match verb {
            EventVerb::List { limit } => StreamEventsRequest { limit, follow: false },
            EventVerb::Follow { limit } => StreamEventsRequest { limit, follow: true },
        };
        let mut events = self.client.stream_events(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            self.output.one(&event, show::event)?;
        }
        Ok(())
    }
}

/// Refuses unless the volume's name was given once more: what follows loses data.
fn confirm_by_name(volume: &str, node: &str, given: Option<String>) -> Result<(), CliError> {
    let given = match given {
        Some(given) => given,
        None => {
            eprintln!(
                "Node {node} lacks the newest writes of volume {volume}: they are lost for good by this, also when the \
                 node that has them comes back.\nThat node must be switched off now, or hosts may use both.\nType the \
                 volume's name to go on:"
            );
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            read.map_err(|error| CliError::Local(format!("cannot read from standard input: {error}")))?;
            line.trim().to_owned()
        }
    };
    if given == volume {
        return Ok(());
    }
    Err(CliError::Usage(format!("the name does not match: nothing was done; it is {volume}")))
}

/// The first line of `file`, or of standard input.
pub(super) fn read_secret(file: Option<&Path>) -> Result<String, CliError> {
    let mut line = String::new();
    let (source, result) = match file {
        Some(path) => {
            let opened = std::fs::File::open(path);
            let read = opened.and_then(|file| std::io::BufReader::new(file).read_line(&mut line));
            (path.display().to_string(), read)
        }
        None => ("standard input".to_owned(), std::io::stdin().lock().read_line(&mut line)),
    };
    result.map_err(|error| CliError::Local(format!("cannot read the secret from {source}: {error}")))?;
    let secret = line.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(CliError::Usage(format!("the first line of {source} is empty: it must hold the secret")));
    }
    Ok(secret.to_owned())
}

/// Prints results as tables or as JSON, from the same messages.
#[derive(Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn one<T: Serialize>(self, item: &T, table: impl Fn(&T) -> String) -> Result<(), CliError> {
        if self.json { print(&format!("{}\n", to_json(item)?)) } else { print(&table(item)) }
    }

    pub(super) fn list<T: Serialize>(
        self,
        items: &[T],
        table: impl Fn(&[T]) -> String,
    ) -> Result<(), CliError> {
        if !self.json {
            return print(&table(items));
        }
        items.iter().try_for_each(|item| print(&format!("{}\n", to_json(item)?)))
    }

    /// Says that a command without a result has worked.
    pub(super) fn done(self, what: &str, whom: &str) -> Result<(), CliError> {
        if self.json {
            print(&format!("{}\n", to_json(&serde_json::json!({ "result": what, "name": whom }))?))
        } else {
            print(&format!("{what} {whom}\n"))
        }
    }
}

fn to_json<T: Serialize>(item: &T) -> Result<String, CliError> {
    serde_json::to_string(item).map_err(|error| CliError::Local(format!("cannot print the answer: {error}")))
}

fn print(text: &str) -> Result<(), CliError> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(CliError::Output)
}
