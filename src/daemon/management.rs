//! The management service over gRPC: hands each call to [`Control`] and turns refusals into statuses.
//!
//! Any node can be asked for anything: what only the other node can do, as it serves the volume or has the disk, is
//! passed on to it, once. When it turns out that the volume has just moved, it is looked for again.

#[macro_use]
mod passing;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use self::passing::{BETWEEN_TRIES, LONGEST_LOOK, MOST_TRIES, merge};
use super::alerts::Alerts;
use super::cluster_stop;
use super::control::{Control, Refusal};
use super::event_log::EventLog;
use super::images::Answers;
use super::others::{Others, is_passed_on, passed_on};
use crate::cluster::name::{NameError, NodeName};
use crate::peer::backup::Backup;
use crate::peer::joining::book::DEFAULT_VALIDITY;
use crate::peer::joining::desk::{Desk, DeskError};
use crate::rpc::management::management_server::Management;
use crate::rpc::management::{self as messages};

/// Events that a follower may be behind before it has to take some.
const EVENT_BUFFER: usize = 64;
/// Most events that one call may ask for to begin with.
const EVENT_LIMIT: u32 = 100_000;

/// The service.
pub struct ManagementService {
    pub(super) control: Arc<Control>,
    events: EventLog,
    alerts: Arc<Alerts>,
    desk: Option<Arc<Desk>>,
    others: Option<Others>,
    /// Addresses of this node's console.
    consoles: Vec<String>,
}

impl ManagementService {
    /// The service of a node. In a pair it has a desk for those who join, and knows how to call the other node.
    #[must_use]
    pub fn new(
        control: Arc<Control>,
        events: EventLog,
        alerts: Arc<Alerts>,
        desk: Option<Arc<Desk>>,
        others: Option<Others>,
        consoles: Vec<String>,
    ) -> Self {
        Self { control, events, alerts, desk, others, consoles }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Management for ManagementService {
    type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<messages::Event, Status>> + Send>>;
    type ReadVolumeStream = Answers<messages::VolumePiece>;
    type WriteVolumeStream = Answers<messages::WriteVolumeResponse>;

    async fn get_status(&self, request: Request<messages::GetStatusRequest>) -> Answer<messages::Status> {
        let mut status = self.control.status().await.map_err(status)?;
        for node in self.other_nodes(&request) {
            if !self.control.is_reachable(&node) {
                continue; // nothing is known of it but that
            }
            let asked = async {
                let mut other = self.elsewhere(Some(node.clone()), false).await.ok()??;
                other.get_status(passed_on(messages::GetStatusRequest {})).await.ok()
            };
            if let Ok(Some(theirs)) = tokio::time::timeout(LONGEST_LOOK, asked).await {
                merge(&mut status, theirs.into_inner(), node.as_str());
            }
        }
        Ok(Response::new(status))
    }

    async fn get_cluster(&self, _: Request<messages::GetClusterRequest>) -> Answer<messages::Cluster> {
        answer(Ok(self.control.cluster()))
    }

    async fn replace_member(
        &self,
        request: Request<messages::ReplaceMemberRequest>,
    ) -> Answer<messages::Cluster> {
        answer(self.control.replace_member(&request.into_inner().name).await)
    }

    async fn remove_member(
        &self,
        request: Request<messages::RemoveMemberRequest>,
    ) -> Answer<messages::Cluster> {
        answer(self.control.remove_member(&request.into_inner().name).await)
    }

    async fn create_volume(
        &self,
        request: Request<messages::CreateVolumeRequest>,
    ) -> Answer<messages::Volume> {
        where_it_belongs!(
            self,
            request,
            create_volume,
            |message| if message.local { message.primary.parse().ok() } else { None },
            |message| self.control.create_volume(message)
        )
    }

    async fn change_settings(
        &self,
        request: Request<messages::ChangeSettingsRequest>,
    ) -> Answer<messages::Cluster> {
        answer(self.control.change_settings(request.into_inner()).await)
    }

    async fn set_maintenance(
        &self,
        request: Request<messages::SetMaintenanceRequest>,
    ) -> Answer<messages::Node> {
        answer(self.control.set_maintenance(request.into_inner()).await)
    }

    async fn shutdown_node(
        &self,
        request: Request<messages::ShutdownNodeRequest>,
    ) -> Answer<messages::ShutdownNodeResponse> {
        let shutdown = async |message: messages::ShutdownNodeRequest| {
            self.control.shutdown(&message).map(|()| messages::ShutdownNodeResponse {})
        };
        where_it_belongs!(self, request, shutdown_node, |message| message.node.parse().ok(), shutdown)
    }

    async fn shutdown_cluster(
        &self,
        request: Request<messages::ShutdownClusterRequest>,
    ) -> Answer<messages::ShutdownClusterResponse> {
        let force = request.into_inner().force;
        cluster_stop::run(&self.control, self.others.as_ref(), force, false).await.map(Response::new)
    }

    async fn stop_volumes(
        &self,
        request: Request<messages::StopVolumesRequest>,
    ) -> Answer<messages::StopVolumesResponse> {
        let how_long = Duration::from_millis(request.into_inner().milliseconds);
        answer(self.control.stop_volumes(how_long).await.map(|()| messages::StopVolumesResponse {}))
    }

    async fn set_volume_home(
        &self,
        request: Request<messages::SetVolumeHomeRequest>,
    ) -> Answer<messages::Volume> {
        answer(self.control.set_volume_home(request.into_inner()).await)
    }

    async fn set_volume(&self, request: Request<messages::SetVolumeRequest>) -> Answer<messages::Volume> {
        let set = async |message: messages::SetVolumeRequest| {
            let peer = if message.reserved_bytes.is_some() { self.other_pool().await } else { None };
            self.control.set_volume(message, peer).await
        };
        where_it_belongs!(self, request, set_volume, |message| self.control.primary_of(&message.name), set)
    }

    async fn force_primary(
        &self,
        request: Request<messages::ForcePrimaryRequest>,
    ) -> Answer<messages::Volume> {
        where_it_belongs!(self, request, force_primary, |message| message.node.parse().ok(), |message| self
            .control
            .force_primary(message))
    }

    async fn list_volumes(
        &self,
        _: Request<messages::ListVolumesRequest>,
    ) -> Answer<messages::ListVolumesResponse> {
        let volumes = self.control.volumes().await;
        answer(volumes.map(|volumes| messages::ListVolumesResponse { volumes }))
    }

    async fn get_volume(&self, request: Request<messages::GetVolumeRequest>) -> Answer<messages::Volume> {
        // Its primary knows more; without it, what is known here.
        let primary = self.control.primary_of(&request.get_ref().name);
        let primary = primary.filter(|node| !is_passed_on(&request) && self.control.is_reachable(node));
        let message = request.into_inner();
        let asked = async {
            let mut other = self.elsewhere(primary, false).await.ok()??;
            other.get_volume(passed_on(message.clone())).await.ok()
        };
        match tokio::time::timeout(LONGEST_LOOK, asked).await {
            Ok(Some(theirs)) => Ok(theirs),
            _ => answer(self.control.volume(&message.name).await),
        }
    }

    async fn create_snapshot(
        &self,
        request: Request<messages::CreateSnapshotRequest>,
    ) -> Answer<messages::Snapshot> {
        where_it_belongs!(
            self,
            request,
            create_snapshot,
            |message| self.control.primary_of(&message.volume),
            |message| self.control.create_snapshot(message)
        )
    }

    async fn create_snapshot_group(
        &self,
        request: Request<messages::CreateSnapshotGroupRequest>,
    ) -> Answer<messages::ListSnapshotsResponse> {
        let create = async |message: messages::CreateSnapshotGroupRequest| {
            let snapshots = self.control.create_snapshot_group(message).await;
            snapshots.map(|snapshots| messages::ListSnapshotsResponse { snapshots })
        };
        // The first by name, as the node looks at them in that order.
        where_it_belongs!(
            self,
            request,
            create_snapshot_group,
            |message| message.volumes.iter().min().and_then(|volume| self.control.primary_of(volume)),
            create
        )
    }

    async fn list_snapshots(
        &self,
        request: Request<messages::ListSnapshotsRequest>,
    ) -> Answer<messages::ListSnapshotsResponse> {
        if request.get_ref().volume.is_empty() {
            let mut snapshots = self.control.snapshots("").await.map_err(status)?;
            for node in self.other_nodes(&request) {
                // Of volumes whose node is gone nothing is known; `status` says that it is.
                if let Ok(Some(mut other)) = self.elsewhere(Some(node), false).await {
                    let message = messages::ListSnapshotsRequest::default();
                    snapshots.extend(other.list_snapshots(passed_on(message)).await?.into_inner().snapshots);
                }
            }
            snapshots.sort_by(|one, other| (&one.volume, one.taken_ms).cmp(&(&other.volume, other.taken_ms)));
            return Ok(Response::new(messages::ListSnapshotsResponse { snapshots }));
        }
        let list = async |message: messages::ListSnapshotsRequest| {
            let snapshots = self.control.snapshots(&message.volume).await;
            snapshots.map(|snapshots| messages::ListSnapshotsResponse { snapshots })
        };
        where_it_belongs!(
            self,
            request,
            list_snapshots,
            |message| self.control.primary_of(&message.volume),
            list
        )
    }

    async fn delete_snapshot(
        &self,
        request: Request<messages::DeleteSnapshotRequest>,
    ) -> Answer<messages::DeleteSnapshotResponse> {
        let delete = async |message| {
            let deleted = self.control.delete_snapshot(message).await;
            deleted.map(|()| messages::DeleteSnapshotResponse {})
        };
        where_it_belongs!(
            self,
            request,
            delete_snapshot,
            |message| self.control.primary_of(&message.volume),
            delete
        )
    }

    async fn roll_back_snapshot(
        &self,
        request: Request<messages::RollBackSnapshotRequest>,
    ) -> Answer<messages::Snapshot> {
        let sessions = self.sessions_of(&request.get_ref().volume).await?;
        where_it_belongs!(
            self,
            request,
            roll_back_snapshot,
            |message| self.control.primary_of(&message.volume),
            |message| self.control.roll_back(message, sessions)
        )
    }

    async fn clone_volume(&self, request: Request<messages::CloneVolumeRequest>) -> Answer<messages::Volume> {
        where_it_belongs!(
            self,
            request,
            clone_volume,
            |message| self.control.primary_of(&message.volume),
            |message| self.control.clone_volume(message)
        )
    }

    async fn set_snapshot_schedule(
        &self,
        request: Request<messages::SetSnapshotScheduleRequest>,
    ) -> Answer<messages::Volume> {
        answer(self.control.set_snapshot_schedule(request.into_inner()).await)
    }

    async fn read_volume(
        &self,
        request: Request<messages::ReadVolumeRequest>,
    ) -> Answer<Self::ReadVolumeStream> {
        self.read_pieces(request).await
    }

    async fn write_volume(
        &self,
        request: Request<Streaming<messages::WriteVolumeRequest>>,
    ) -> Answer<Self::WriteVolumeStream> {
        self.write_pieces(request).await
    }

    async fn resize_volume(
        &self,
        request: Request<messages::ResizeVolumeRequest>,
    ) -> Answer<messages::Volume> {
        where_it_belongs!(
            self,
            request,
            resize_volume,
            |message| self.control.primary_of(&message.name),
            |message| self.control.resize_volume(message)
        )
    }

    async fn move_volume(&self, request: Request<messages::MoveVolumeRequest>) -> Answer<messages::Volume> {
        where_it_belongs!(
            self,
            request,
            move_volume,
            |message| self.control.primary_of(&message.name),
            |message| self.control.move_volume(message)
        )
    }

    async fn delete_volume(
        &self,
        request: Request<messages::DeleteVolumeRequest>,
    ) -> Answer<messages::DeleteVolumeResponse> {
        let delete = async |message| {
            let deleted = self.control.delete_volume(message).await;
            deleted.map(|()| messages::DeleteVolumeResponse {})
        };
        where_it_belongs!(
            self,
            request,
            delete_volume,
            |message| self.control.primary_of(&message.name),
            delete
        )
    }

    async fn list_disks(
        &self,
        request: Request<messages::ListDisksRequest>,
    ) -> Answer<messages::ListDisksResponse> {
        let mut disks = self.control.pool().await.map_err(status)?.disks;
        for node in self.other_nodes(&request) {
            // Of a node that is gone nothing is known; `status` says that it is.
            if let Ok(Some(mut other)) = self.elsewhere(Some(node), false).await
                && let Ok(listed) = other.list_disks(passed_on(messages::ListDisksRequest {})).await
            {
                disks.extend(listed.into_inner().disks);
            }
        }
        disks.sort_by(|one, other| (&one.node, &one.path).cmp(&(&other.node, &other.path)));
        Ok(Response::new(messages::ListDisksResponse { disks }))
    }

    async fn fail_disk(&self, request: Request<messages::FailDiskRequest>) -> Answer<messages::Disk> {
        if let Some(mut other) = self.named(&request, &request.get_ref().node).await? {
            return other.fail_disk(passed_on(request.into_inner())).await;
        }
        let others = self.other_nodes(&request);
        let message = request.into_inner();
        let failed = self.control.fail_disk(message.clone()).await;
        if let Err(Refusal::NotFound(_)) = &failed {
            for node in others.into_iter().filter(|_| message.node.is_empty()) {
                if let Ok(Some(mut other)) = self.elsewhere(Some(node), false).await {
                    return other.fail_disk(passed_on(message)).await;
                }
            }
        }
        answer(failed)
    }

    async fn replace_disk(&self, request: Request<messages::ReplaceDiskRequest>) -> Answer<messages::Disk> {
        if let Some(mut other) = self.named(&request, &request.get_ref().node).await? {
            return other.replace_disk(passed_on(request.into_inner())).await;
        }
        let others = self.other_nodes(&request);
        let message = request.into_inner();
        let replaced = self.control.replace_disk(message.clone()).await;
        if let Err(Refusal::NotFound(_)) = &replaced {
            for node in others.into_iter().filter(|_| message.node.is_empty()) {
                if let Ok(Some(mut other)) = self.elsewhere(Some(node), false).await {
                    return other.replace_disk(passed_on(message)).await;
                }
            }
        }
        answer(replaced)
    }

    async fn change_spare(&self, request: Request<messages::ChangeSpareRequest>) -> Answer<messages::Pool> {
        match self.named(&request, &request.get_ref().node).await? {
            Some(mut other) => other.change_spare(passed_on(request.into_inner())).await,
            None => answer(self.control.change_spare(request.into_inner()).await),
        }
    }

    async fn set_rebuild_priority(
        &self,
        request: Request<messages::SetRebuildPriorityRequest>,
    ) -> Answer<messages::Pool> {
        match self.named(&request, &request.get_ref().node).await? {
            Some(mut other) => other.set_rebuild_priority(passed_on(request.into_inner())).await,
            None => answer(self.control.set_rebuild_priority(request.into_inner()).await),
        }
    }

    async fn control_scrub(
        &self,
        request: Request<messages::ControlScrubRequest>,
    ) -> Answer<messages::Scrub> {
        match self.named(&request, &request.get_ref().node).await? {
            Some(mut other) => other.control_scrub(passed_on(request.into_inner())).await,
            None => answer(self.control.control_scrub(request.into_inner()).await),
        }
    }

    async fn get_backup(&self, _: Request<messages::GetBackupRequest>) -> Answer<messages::Backup> {
        self.backup().map(Response::new)
    }

    async fn create_administrator(
        &self,
        request: Request<messages::CreateAdministratorRequest>,
    ) -> Answer<messages::Administrator> {
        let name = administrator(&request.into_inner().name)?;
        let Some(desk) = &self.desk else {
            return Err(Status::failed_precondition(NO_ADMINISTRATORS));
        };
        if self.control.look(|state| state.is_revoked(name.as_str())) {
            let text = format!("identities of {name} were revoked, for good: give the new one another name");
            return Err(Status::failed_precondition(text));
        }
        let failed = |error: &dyn std::error::Error| Status::internal(error.to_string());
        let authority = desk.authority().map_err(|error| failed(&error))?;
        let identity = authority.administrator_pem(&name).map_err(|error| failed(&error))?;
        Ok(Response::new(messages::Administrator { name: name.to_string(), identity }))
    }

    async fn revoke_administrator(
        &self,
        request: Request<messages::RevokeAdministratorRequest>,
    ) -> Answer<messages::RevokeAdministratorResponse> {
        let name = administrator(&request.into_inner().name)?;
        if self.desk.is_none() {
            return Err(Status::failed_precondition(NO_ADMINISTRATORS));
        }
        let revoked = self.control.revoke_administrator(name).await;
        answer(revoked.map(|()| messages::RevokeAdministratorResponse {}))
    }

    async fn create_join_token(
        &self,
        request: Request<messages::CreateJoinTokenRequest>,
    ) -> Answer<messages::JoinToken> {
        let messages::CreateJoinTokenRequest { name, valid_seconds } = request.into_inner();
        let name: NodeName =
            name.parse().map_err(|error: NameError| Status::invalid_argument(error.to_string()))?;
        let Some(desk) = &self.desk else {
            return Err(Status::failed_precondition("a single node has no other members"));
        };
        let validity = match valid_seconds {
            0 => DEFAULT_VALIDITY,
            seconds => Duration::from_secs(seconds),
        };
        self.control.may_be_joined(&name).map_err(status)?;
        let token = desk.issue(&name, validity).map_err(|error| match error {
            DeskError::NoSuchSeat { .. } => Status::not_found(error.to_string()),
            DeskError::NoAddress(_) | DeskError::Authority(_) => {
                Status::failed_precondition(error.to_string())
            }
            DeskError::Random(_) | DeskError::Book(_) => Status::internal(error.to_string()),
        })?;
        self.control.note_token(&name);
        Ok(Response::new(messages::JoinToken {
            name: name.to_string(),
            kind: token.kind.to_string(),
            token: token.to_string(),
            valid_seconds: validity.as_secs(),
        }))
    }

    async fn get_pool(&self, request: Request<messages::GetPoolRequest>) -> Answer<messages::Pool> {
        match self.named(&request, &request.get_ref().node).await? {
            Some(mut other) => other.get_pool(passed_on(request.into_inner())).await,
            None => answer(self.control.pool().await),
        }
    }

    async fn allow_access(
        &self,
        request: Request<messages::AllowAccessRequest>,
    ) -> Answer<messages::AllowAccessResponse> {
        let allowed = self.control.allow_access(request.into_inner()).await;
        answer(allowed.map(|()| messages::AllowAccessResponse {}))
    }

    async fn deny_access(
        &self,
        request: Request<messages::DenyAccessRequest>,
    ) -> Answer<messages::DenyAccessResponse> {
        let denied = self.control.deny_access(request.into_inner()).await;
        answer(denied.map(|()| messages::DenyAccessResponse {}))
    }

    async fn list_access(
        &self,
        request: Request<messages::ListAccessRequest>,
    ) -> Answer<messages::ListAccessResponse> {
        let entries = self.control.access(&request.into_inner().volume).await;
        answer(entries.map(|entries| messages::ListAccessResponse { entries }))
    }

    async fn list_host_groups(
        &self,
        _: Request<messages::ListHostGroupsRequest>,
    ) -> Answer<messages::ListHostGroupsResponse> {
        answer(Ok(messages::ListHostGroupsResponse { groups: self.control.host_groups() }))
    }

    async fn change_host_group(
        &self,
        request: Request<messages::ChangeHostGroupRequest>,
    ) -> Answer<messages::HostGroup> {
        answer(self.control.change_host_group(request.into_inner()).await)
    }

    async fn remove_host_group(
        &self,
        request: Request<messages::RemoveHostGroupRequest>,
    ) -> Answer<messages::RemoveHostGroupResponse> {
        let removed = self.control.remove_host_group(&request.into_inner().name).await;
        answer(removed.map(|()| messages::RemoveHostGroupResponse {}))
    }

    async fn set_chap(
        &self,
        request: Request<messages::SetChapRequest>,
    ) -> Answer<messages::SetChapResponse> {
        let set = self.control.set_chap(request.into_inner()).await;
        answer(set.map(|()| messages::SetChapResponse {}))
    }

    async fn clear_chap(
        &self,
        request: Request<messages::ClearChapRequest>,
    ) -> Answer<messages::ClearChapResponse> {
        let cleared = self.control.clear_chap(request.into_inner()).await;
        answer(cleared.map(|()| messages::ClearChapResponse {}))
    }

    async fn set_alert(&self, request: Request<messages::SetAlertRequest>) -> Answer<messages::Alert> {
        answer(self.control.set_alert(request.into_inner()).await)
    }

    async fn remove_alert(
        &self,
        request: Request<messages::RemoveAlertRequest>,
    ) -> Answer<messages::RemoveAlertResponse> {
        let removed = self.control.remove_alert(&request.into_inner().name).await;
        answer(removed.map(|()| messages::RemoveAlertResponse {}))
    }

    async fn list_alerts(
        &self,
        _: Request<messages::ListAlertsRequest>,
    ) -> Answer<messages::ListAlertsResponse> {
        let with_delivery = |mut alert: messages::Alert| {
            let delivery = alert.name.parse().map(|name| self.alerts.delivery(&name)).unwrap_or_default();
            (alert.delivered_ms, alert.trouble) = (delivery.delivered_ms, delivery.trouble);
            alert
        };
        let alerts = self.control.alerts().into_iter().map(with_delivery).collect();
        answer(Ok(messages::ListAlertsResponse { alerts }))
    }

    async fn test_alerts(
        &self,
        request: Request<messages::TestAlertsRequest>,
    ) -> Answer<messages::TestAlertsResponse> {
        let tests = self.alerts.test(&request.into_inner().name).await;
        answer(tests.map(|tests| messages::TestAlertsResponse { tests }))
    }

    async fn list_users(
        &self,
        _: Request<messages::ListUsersRequest>,
    ) -> Answer<messages::ListUsersResponse> {
        answer(Ok(messages::ListUsersResponse { users: self.control.users() }))
    }

    async fn add_user(&self, request: Request<messages::AddUserRequest>) -> Answer<messages::UserAccess> {
        let added = self.control.add_user(request.into_inner()).await;
        answer(added.map(|access| messages::UserAccess { consoles: self.consoles.clone(), ..access }))
    }

    async fn remove_user(
        &self,
        request: Request<messages::RemoveUserRequest>,
    ) -> Answer<messages::RemoveUserResponse> {
        let removed = self.control.remove_user(&request.into_inner().name).await;
        answer(removed.map(|()| messages::RemoveUserResponse {}))
    }

    async fn set_user_role(&self, request: Request<messages::SetUserRoleRequest>) -> Answer<messages::User> {
        answer(self.control.set_user_role(request.into_inner()).await)
    }

    async fn set_password(
        &self,
        request: Request<messages::SetPasswordRequest>,
    ) -> Answer<messages::UserAccess> {
        let set = self.control.set_password(request.into_inner()).await;
        answer(set.map(|access| messages::UserAccess { consoles: self.consoles.clone(), ..access }))
    }

    async fn create_api_token(
        &self,
        request: Request<messages::CreateApiTokenRequest>,
    ) -> Answer<messages::ApiToken> {
        answer(self.control.create_api_token(request.into_inner()).await)
    }

    async fn remove_api_token(
        &self,
        request: Request<messages::RemoveApiTokenRequest>,
    ) -> Answer<messages::RemoveApiTokenResponse> {
        let removed = self.control.remove_api_token(request.into_inner()).await;
        answer(removed.map(|()| messages::RemoveApiTokenResponse {}))
    }

    async fn stream_events(
        &self,
        request: Request<messages::StreamEventsRequest>,
    ) -> Answer<Self::StreamEventsStream> {
        let messages::StreamEventsRequest { limit, follow } = request.into_inner();
        let (sender, receiver) = mpsc::channel(EVENT_BUFFER);
        let limit = usize::try_from(limit.min(EVENT_LIMIT)).unwrap_or(usize::MAX);
        tokio::spawn(send_events(self.events.clone(), limit, follow, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Sends the newest `limit` events, and later ones for as long as the receiver wants them. One who
/// takes them more slowly than they come misses those that the log has dropped in the meantime.
async fn send_events(
    events: EventLog,
    limit: usize,
    follow: bool,
    sender: mpsc::Sender<Result<messages::Event, Status>>,
) {
    let mut newest = events.newest();
    let mut sent = *newest.borrow_and_update();
    let mut batch = events.after(0, limit);
    loop {
        for event in batch {
            sent = sent.max(event.sequence);
            if sender.send(Ok(event.into())).await.is_err() {
                return;
            }
        }
        let changed = async { follow && newest.changed().await.is_ok() };
        tokio::select! {
            changed = changed => if !changed { return },
            () = sender.closed() => return,
        }
        batch = events.after(sent, usize::MAX);
    }
}

impl ManagementService {
    fn backup(&self) -> Result<messages::Backup, Status> {
        let Some(desk) = &self.desk else {
            return Err(Status::failed_precondition(
                "a single node has no authority or members to keep: copy its configuration and state directory",
            ));
        };
        let failed = |error: &dyn std::error::Error| Status::internal(error.to_string());
        let authority = desk.authority().map_err(|error| failed(&error))?;
        let backup = self.control.look(|state| Backup::new(state, desk.members(), &authority));
        let contents = backup.and_then(|backup| backup.encode()).map_err(|error| failed(&error))?;
        Ok(messages::Backup { contents })
    }
}

/// What a single node says of identities.
const NO_ADMINISTRATORS: &str =
    "a single node is managed on the machine itself, by root: there are no identities for other machines";

#[allow(clippy::result_large_err)] // as the service wants it
fn administrator(name: &str) -> Result<NodeName, Status> {
    name.parse().map_err(|error: NameError| Status::invalid_argument(error.to_string()))
}

fn answer<T>(result: Result<T, Refusal>) -> Answer<T> {
    result.map(Response::new).map_err(status)
}

/// A refusal as it is answered.
pub(super) fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Invalid(message) => Status::invalid_argument(message),
        Refusal::NotFound(message) => Status::not_found(message),
        Refusal::Exists(message) => Status::already_exists(message),
        Refusal::Impossible(message) | Refusal::Unknown(message) => Status::failed_precondition(message),
        Refusal::Stale(message) | Refusal::Elsewhere(message) => Status::aborted(message),
        Refusal::Broken(message) => Status::internal(message),
    }
}
