//! The way in to the management service, for everybody: the command line, the console's forms and the REST API.
//!
//! Here stands what each call takes: which role, and how it reads in the audit log. Guarantees: no call is done for one
//! who may not have it done; whatever changes something leaves an event `audit` with who asked for it, from where, and
//! how it went, also when it was refused. What one node passes on to the other was judged and noted there already.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use serde_json::Value;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status, Streaming};

use super::event_log::EventReporter;
use super::management::ManagementService;
use crate::cluster::state::user::Role;
use crate::rpc::management::management_server::Management;
use crate::rpc::management::*;
use crate::rpc::size::show as size;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Name of the user, the token, the administrator's identity, or the account on this machine.
    pub name: String,
    /// What he may do.
    pub role: Role,
    /// How he came.
    pub way: Way,
    /// From where.
    pub from: String,
}

/// How somebody came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the command line.
    CommandLine,
    /// By the console.
    Console,
    /// By the REST API.
    Script,
    /// The other node passes on what somebody has asked it for.
    Member,
}

impl Way {
    fn as_str(self) -> &'static str {
        match self {
            Self::CommandLine => "command line",
            Self::Console => "console",
            Self::Script => "REST API",
            Self::Member => "the other node",
        }
    }
}

/// The way in.
pub struct Calls {
    service: Arc<ManagementService>,
    events: EventReporter,
}

impl Calls {
    /// The way in to `service`.
    #[must_use]
    pub fn new(service: Arc<ManagementService>, events: EventReporter) -> Self {
        Self { service, events }
    }

    /// The service, for what everybody may look at who is let in at all.
    #[must_use]
    pub fn look(&self) -> &ManagementService {
        &self.service
    }

    /// Looks at how things are, in the name of nobody.
    ///
    /// # Errors
    /// As the service has it.
    pub async fn status(&self) -> Result<crate::rpc::management::Status, Status> {
        let answer = self.service.get_status(Request::new(GetStatusRequest {})).await?;
        Ok(answer.into_inner())
    }

    /// Notes who had something done, and how that went.
    pub fn note(&self, actor: &Actor, act: &str, refusal: Option<&str>) {
        if actor.way == Way::Member {
            return;
        }
        let Actor { name, role, way, from } = actor;
        let result = refusal.map_or_else(|| "done".to_owned(), |reason| format!("refused: {reason}"));
        let evidence = [
            ("user", name.clone()),
            ("role", role.to_string()),
            ("way", way.as_str().to_owned()),
            ("from", from.clone()),
            ("act", act.to_owned()),
            ("result", result.clone()),
        ];
        let message = format!("{name} ({role}, {}, {from}): {act}: {result}", way.as_str());
        self.events.info("audit", message, &evidence);
    }

    fn note_answer(&self, actor: &Actor, act: Option<String>, refusal: Option<&Status>) {
        if let Some(act) = act {
            self.note(actor, &act, refusal.map(Status::message));
        }
    }

    #[allow(clippy::result_large_err)] // as the service wants it
    fn admit(&self, actor: &Actor, least: Role, act: Option<&str>, call: &str) -> Result<(), Status> {
        if actor.role >= least {
            return Ok(());
        }
        let reason = format!("that takes the role {least}, and {} is {}", actor.name, actor.role);
        self.note(actor, act.unwrap_or(call), Some(&reason));
        Err(Status::permission_denied(reason))
    }
}

/// Who sends a request: put there by who let him in, or known by the socket file that he opened.
#[allow(clippy::result_large_err)] // as the service wants it
fn actor_of<T>(request: &mut Request<T>) -> Result<Actor, Status> {
    let extensions = request.extensions();
    let local = extensions.get::<UdsConnectInfo>().map(|socket| {
        let name = match socket.peer_cred.map(|account| account.uid()) {
            Some(0) => "root".to_owned(),
            Some(number) => format!("user {number}"),
            None => "somebody".to_owned(),
        };
        let from = "this machine".to_owned();
        Actor { name, role: Role::Administrator, way: Way::CommandLine, from }
    });
    let actor = extensions.get::<Actor>().cloned().or(local);
    let actor = actor.ok_or_else(|| Status::unauthenticated("nobody is known to ask for this"))?;
    if actor.way != Way::Member {
        // Only a node passes on.
        super::others::not_passed_on(request);
    }
    Ok(actor)
}

type Answer<T> = Result<Response<T>, Status>;

/// Writes down each call: request, answer, the least role that it takes of this actor, and how it reads in the audit
/// log, as a command of the command line; what is only looked at is not noted.
macro_rules! calls {
    (
        json { $($method:ident($Request:ty) -> $Answer:ty, $least:expr, $act:expr;)* }
        other { $($other_method:ident($OtherRequest:ty) -> $OtherAnswer:ty, $other_least:expr, $other_act:expr;)* }
    ) => {
        #[tonic::async_trait]
        impl Management for Calls {
            type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;
            type ReadVolumeStream = <ManagementService as Management>::ReadVolumeStream;
            type WriteVolumeStream = <ManagementService as Management>::WriteVolumeStream;

            $(async fn $method(&self, mut request: Request<$Request>) -> Answer<$Answer> {
                let actor = actor_of(&mut request)?;
                let (least, act): (fn(&$Request, &Actor) -> Role, fn(&$Request) -> Option<String>) =
                    ($least, $act);
                let (least, act) = (least(request.get_ref(), &actor), act(request.get_ref()));
                self.admit(&actor, least, act.as_deref(), stringify!($method))?;
                let answered = self.service.$method(request).await;
                self.note_answer(&actor, act, answered.as_ref().err());
                answered
            })*

            $(async fn $other_method(&self, mut request: Request<$OtherRequest>) -> Answer<$OtherAnswer> {
                let actor = actor_of(&mut request)?;
                let (least, act): (fn(&$OtherRequest, &Actor) -> Role, fn(&$OtherRequest) -> Option<String>) =
                    ($other_least, $other_act);
                let (least, act) = (least(request.get_ref(), &actor), act(request.get_ref()));
                self.admit(&actor, least, act.as_deref(), stringify!($other_method))?;
                let answered = self.service.$other_method(request).await;
                self.note_answer(&actor, act, answered.as_ref().err());
                answered
            })*

            async fn stream_events(
                &self,
                mut request: Request<StreamEventsRequest>,
            ) -> Answer<Self::StreamEventsStream> {
                actor_of(&mut request)?;
                self.service.stream_events(request).await
            }

            async fn read_volume(
                &self,
                mut request: Request<ReadVolumeRequest>,
            ) -> Answer<Self::ReadVolumeStream> {
                let (actor, message) = (actor_of(&mut request)?, request.get_ref());
                let (least, act) = if message.ranges_only {
                    (Role::Viewer, None)
                } else {
                    (Role::Operator, say(format!("volume export {}@{}", message.volume, message.snapshot)))
                };
                self.admit(&actor, least, act.as_deref(), "read_volume")?;
                let answered = self.service.read_volume(request).await;
                self.note_answer(&actor, act, answered.as_ref().err());
                answered
            }

            async fn write_volume(
                &self,
                mut request: Request<Streaming<WriteVolumeRequest>>,
            ) -> Answer<Self::WriteVolumeStream> {
                let actor = actor_of(&mut request)?;
                // Its name comes with the stream.
                let act = say("volume import".to_owned());
                self.admit(&actor, Role::Administrator, act.as_deref(), "write_volume")?;
                let answered = self.service.write_volume(request).await;
                self.note_answer(&actor, act, answered.as_ref().err());
                answered
            }
        }

        impl Calls {
            /// Calls by name, with a request and an answer in JSON.
            ///
            /// # Errors
            /// As the service has them; a request of another form is an invalid argument.
            pub async fn call(&self, actor: Actor, name: &str, request: Value) -> Result<Value, Status> {
                match name {
                    $(stringify!($method) => {
                        let message: $Request = serde_json::from_value(request)
                            .map_err(|error| Status::invalid_argument(error.to_string()))?;
                        let mut request = Request::new(message);
                        request.extensions_mut().insert(actor);
                        let answer = Management::$method(self, request).await?.into_inner();
                        serde_json::to_value(&answer).map_err(|error| Status::internal(error.to_string()))
                    })*
                    _ => Err(Status::unimplemented(format!("there is no call {name}"))),
                }
            }

            /// Whether a call can be made by name.
            #[must_use]
            pub fn has(name: &str) -> bool {
                [$(stringify!($method)),*].contains(&name)
            }
        }
    };
}

calls! {
    json {
        get_status(GetStatusRequest) -> crate::rpc::management::Status, view, nothing;
        get_cluster(GetClusterRequest) -> Cluster, view, nothing;
        list_volumes(ListVolumesRequest) -> ListVolumesResponse, view, nothing;
        get_volume(GetVolumeRequest) -> Volume, view, nothing;
        list_snapshots(ListSnapshotsRequest) -> ListSnapshotsResponse, view, nothing;
        list_disks(ListDisksRequest) -> ListDisksResponse, view, nothing;
        get_pool(GetPoolRequest) -> Pool, view, nothing;
        list_access(ListAccessRequest) -> ListAccessResponse, view, nothing;
        list_host_groups(ListHostGroupsRequest) -> ListHostGroupsResponse, view, nothing;
        list_alerts(ListAlertsRequest) -> ListAlertsResponse, view, nothing;

        create_volume(CreateVolumeRequest) -> Volume, operate, |m| {
            let local = if m.local { " --local" } else { "" };
            say(format!("volume create {} --size {}{local}", m.name, size(m.size_bytes)))
        };
        resize_volume(ResizeVolumeRequest) -> Volume,
            |m, _| if m.shrink { Role::Administrator } else { Role::Operator }, |m| {
            let shrink = if m.shrink { " --shrink" } else { "" };
            say(format!("volume resize {} --size {}{shrink}", m.name, size(m.size_bytes)))
        };
        move_volume(MoveVolumeRequest) -> Volume, operate, |m| say(format!("volume move {} --to {}", m.name, m.to));
        set_volume_home(SetVolumeHomeRequest) -> Volume, operate,
            |m| say(format!("volume home {} {}", m.name, if m.home.is_empty() { "none" } else { &m.home }));
        set_volume(SetVolumeRequest) -> Volume, operate, |m| {
            let iops = m.iops.map(|limit| format!(" --iops {limit}"));
            let bytes = m.bandwidth_bytes_per_second.map(|limit| format!(" --bandwidth {}", size(limit)));
            let quota = m.quota_bytes.map(|bytes| format!(" --quota {}", size(bytes)));
            let reserved = m.reserved_bytes.map(|bytes| format!(" --reserve {}", size(bytes)));
            let limits = [iops, bytes, quota, reserved].map(Option::unwrap_or_default);
            say(format!("volume set {}{}", m.name, limits.concat()))
        };
        delete_volume(DeleteVolumeRequest) -> DeleteVolumeResponse, administer,
            |m| say(format!("volume delete {}{}", m.name, forced(m.force)));
        force_primary(ForcePrimaryRequest) -> Volume, administer,
            |m| say(format!("force primary {} --on {}", m.name, m.node));

        create_snapshot(CreateSnapshotRequest) -> Snapshot, operate, |m| {
            let name = if m.name.is_empty() { String::new() } else { format!("@{}", m.name) };
            let until = m.protected_until_ms.map(crate::rpc::time::show_seconds);
            let until = until.map_or_else(String::new, |until| format!(" --protect-until {until}"));
            say(format!("snapshot create {}{name}{until}", m.volume))
        };
        create_snapshot_group(CreateSnapshotGroupRequest) -> ListSnapshotsResponse, operate,
            |m| say(format!("snapshot create {}@{}", m.volumes.join(" "), m.name));
        roll_back_snapshot(RollBackSnapshotRequest) -> Snapshot, administer,
            |m| say(format!("snapshot rollback {}@{}{}", m.volume, m.name, forced(m.force)));
        clone_volume(CloneVolumeRequest) -> Volume, operate, |m| {
            let snapshot = if m.snapshot.is_empty() { String::new() } else { format!("@{}", m.snapshot) };
            say(format!("volume clone {}{snapshot} {}", m.volume, m.name))
        };
        delete_snapshot(DeleteSnapshotRequest) -> DeleteSnapshotResponse, administer,
            |m| say(format!("snapshot delete {}@{}", m.volume, m.name));
        set_snapshot_schedule(SetSnapshotScheduleRequest) -> Volume, operate, |m| {
            let when = m.schedule.as_ref().map_or_else(
                || "off".to_owned(),
                |when| format!("--every {}s --keep {}", when.every_seconds, when.keep),
            );
            say(format!("snapshot schedule {} {when}", m.volume))
        };

        allow_access(AllowAccessRequest) -> AllowAccessResponse, operate,
            |m| say(format!("access allow {} {}", m.volume, m.initiator));
        deny_access(DenyAccessRequest) -> DenyAccessResponse, operate,
            |m| say(format!("access deny {} {}", m.volume, m.initiator));
        change_host_group(ChangeHostGroupRequest) -> HostGroup, operate, |m| {
            let part = |what: &str, names: &[String]| match names {
                [] => String::new(),
                names => format!(" {what} {}", names.join(" ")),
            };
            say(format!("access group change {}{}{}", m.name, part("--add", &m.added), part("--remove", &m.removed)))
        };
        remove_host_group(RemoveHostGroupRequest) -> RemoveHostGroupResponse, operate,
            |m| say(format!("access group remove {}", m.name));
        set_chap(SetChapRequest) -> SetChapResponse, operate, |m| say(format!("access chap set {}", m.initiator));
        clear_chap(ClearChapRequest) -> ClearChapResponse, operate,
            |m| say(format!("access chap clear {}", m.initiator));

        fail_disk(FailDiskRequest) -> Disk, administer,
            |m| say(format!("disk fail {}{}{}", m.disk, on(&m.node), forced(m.force)));
        replace_disk(ReplaceDiskRequest) -> Disk,
            |m, _| if m.force { Role::Administrator } else { Role::Operator },
            |m| say(format!("disk replace {} {}{}{}", m.disk, m.path, on(&m.node), forced(m.force)));
        change_spare(ChangeSpareRequest) -> Pool, operate, |m| {
            let verb = if m.keep { "add" } else { "remove" };
            say(format!("disk spare {verb} {}{}", m.path, on(&m.node)))
        };
        set_rebuild_priority(SetRebuildPriorityRequest) -> Pool, operate,
            |m| say(format!("pool rebuild-priority {}{}", m.priority, on(&m.node)));
        control_scrub(ControlScrubRequest) -> Scrub,
            |m, _| if m.action == "status" { Role::Viewer } else { Role::Operator },
            |m| (m.action != "status").then(|| format!("pool scrub {}{}", m.action, on(&m.node)));

        set_maintenance(SetMaintenanceRequest) -> Node, operate,
            |m| say(format!("node maintenance {} {}", if m.on { "on" } else { "off" }, m.node));
        shutdown_node(ShutdownNodeRequest) -> ShutdownNodeResponse, administer,
            |m| say(format!("node shutdown {}{}", m.node, forced(m.force)));
        shutdown_cluster(ShutdownClusterRequest) -> ShutdownClusterResponse, administer,
            |m| say(format!("cluster shutdown{}", forced(m.force)));
        change_settings(ChangeSettingsRequest) -> Cluster, administer, |m| {
            let limit = m.resync_limit_bytes_per_second.map(|limit| format!(" --resync-limit {}", size(limit)));
            let warning = m.space_warning_percent.map(|percent| format!(" --space-warning {percent}"));
            let error = m.space_error_percent.map(|percent| format!(" --space-error {percent}"));
            let settings = [limit, warning, error].map(Option::unwrap_or_default);
            say(format!("cluster set{}", settings.concat()))
        };
        replace_member(ReplaceMemberRequest) -> Cluster, administer, |m| say(format!("node replace {}", m.name));
        remove_member(RemoveMemberRequest) -> Cluster, administer, |m| say(format!("cluster remove {}", m.name));
        revoke_administrator(RevokeAdministratorRequest) -> RevokeAdministratorResponse, administer,
            |m| say(format!("cluster administrator revoke {}", m.name));
        create_join_token(CreateJoinTokenRequest) -> JoinToken, administer,
            |m| say(format!("cluster token {}", m.name));

        set_alert(SetAlertRequest) -> Alert, administer, |m| {
            say(format!("alert add {}", m.alert.as_ref().map_or("", |alert| alert.name.as_str())))
        };
        remove_alert(RemoveAlertRequest) -> RemoveAlertResponse, administer,
            |m| say(format!("alert remove {}", m.name));
        test_alerts(TestAlertsRequest) -> TestAlertsResponse, operate, |m| say(format!("alert test {}", m.name));

        list_users(ListUsersRequest) -> ListUsersResponse, administer, nothing;
        add_user(AddUserRequest) -> UserAccess, administer, |m| say(format!("user add {} --role {}", m.name, m.role));
        remove_user(RemoveUserRequest) -> RemoveUserResponse, administer, |m| say(format!("user remove {}", m.name));
        set_user_role(SetUserRoleRequest) -> User, administer, |m| say(format!("user role {} {}", m.name, m.role));
        set_password(SetPasswordRequest) -> UserAccess, administer, |m| {
            let link = if m.password.is_empty() { " --link" } else { "" };
            say(format!("user password {}{link}", m.name))
        };
        create_api_token(CreateApiTokenRequest) -> ApiToken, |m, actor| own(&m.user, actor),
            |m| say(format!("user token create {} {}", m.user, m.name));
        remove_api_token(RemoveApiTokenRequest) -> RemoveApiTokenResponse, |m, actor| own(&m.user, actor),
            |m| say(format!("user token remove {} {}", m.user, m.name));
    }
    other {
        create_administrator(CreateAdministratorRequest) -> Administrator, administer,
            |m| say(format!("cluster administrator add {}", m.name));
        get_backup(GetBackupRequest) -> Backup, administer, |_| say("cluster backup".to_owned());
        stop_volumes(StopVolumesRequest) -> StopVolumesResponse, administer, |_| say("volumes stopped".to_owned());
    }
}

fn view<T>(_: &T, _: &Actor) -> Role {
    Role::Viewer
}

fn operate<T>(_: &T, _: &Actor) -> Role {
    Role::Operator
}

fn administer<T>(_: &T, _: &Actor) -> Role {
    Role::Administrator
}

fn say(act: String) -> Option<String> {
    Some(act.trim_end().to_owned())
}

fn nothing<T>(_: &T) -> Option<String> {
    None
}

fn forced(force: bool) -> &'static str {
    if force { " --force" } else { "" }
}

fn on(node: &str) -> String {
    if node.is_empty() { String::new() } else { format!(" --node {node}") }
}

/// Everybody has tokens made and removed for himself at his console; with a token nobody makes another one.
fn own(user: &str, actor: &Actor) -> Role {
    if user == actor.name && actor.way == Way::Console { Role::Viewer } else { Role::Administrator }
}
