//! The management service over gRPC: hands each call to [`Control`] and turns refusals into statuses.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::control::{Control, Refusal};
use super::event_log::EventLog;
use crate::rpc::management::management_server::Management;
use crate::rpc::management::{self as messages};

/// Events that a follower may be behind before it has to take some.
const EVENT_BUFFER: usize = 64;
/// Most events that one call may ask for to begin with.
const EVENT_LIMIT: u32 = 100_000;

/// The service.
pub struct ManagementService {
    control: Arc<Control>,
    events: EventLog,
}

impl ManagementService {
    /// The service of a node.
    #[must_use]
    pub fn new(control: Arc<Control>, events: EventLog) -> Self {
        Self { control, events }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Management for ManagementService {
    type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<messages::Event, Status>> + Send>>;

    async fn get_status(&self, _: Request<messages::GetStatusRequest>) -> Answer<messages::Status> {
        answer(self.control.status().await)
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

    async fn create_volume(
        &self,
        request: Request<messages::CreateVolumeRequest>,
    ) -> Answer<messages::Volume> {
        answer(self.control.create_volume(request.into_inner()).await)
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
        answer(self.control.shutdown(&request.into_inner()).map(|()| messages::ShutdownNodeResponse {}))
    }

    async fn set_volume_home(
        &self,
        request: Request<messages::SetVolumeHomeRequest>,
    ) -> Answer<messages::Volume> {
        answer(self.control.set_volume_home(request.into_inner()).await)
    }

    async fn force_primary(
        &self,
        request: Request<messages::ForcePrimaryRequest>,
    ) -> Answer<messages::Volume> {
        answer(self.control.force_primary(request.into_inner()).await)
    }

    async fn list_volumes(
        &self,
        _: Request<messages::ListVolumesRequest>,
    ) -> Answer<messages::ListVolumesResponse> {
        let volumes = self.control.volumes().await;
        answer(volumes.map(|volumes| messages::ListVolumesResponse { volumes }))
    }

    async fn get_volume(&self, request: Request<messages::GetVolumeRequest>) -> Answer<messages::Volume> {
        answer(self.control.volume(&request.into_inner().name).await)
    }

    async fn resize_volume(
        &self,
        request: Request<messages::ResizeVolumeRequest>,
    ) -> Answer<messages::Volume> {
        answer(self.control.resize_volume(request.into_inner()).await)
    }

    async fn move_volume(&self, request: Request<messages::MoveVolumeRequest>) -> Answer<messages::Volume> {
        answer(self.control.move_volume(request.into_inner()).await)
    }

    async fn delete_volume(
        &self,
        request: Request<messages::DeleteVolumeRequest>,
    ) -> Answer<messages::DeleteVolumeResponse> {
        let deleted = self.control.delete_volume(request.into_inner()).await;
        answer(deleted.map(|()| messages::DeleteVolumeResponse {}))
    }

    async fn list_disks(
        &self,
        _: Request<messages::ListDisksRequest>,
    ) -> Answer<messages::ListDisksResponse> {
        let pool = self.control.pool().await;
        answer(pool.map(|pool| messages::ListDisksResponse { disks: pool.disks }))
    }

    async fn fail_disk(&self, request: Request<messages::FailDiskRequest>) -> Answer<messages::Disk> {
        answer(self.control.fail_disk(request.into_inner()).await)
    }

    async fn get_pool(&self, _: Request<messages::GetPoolRequest>) -> Answer<messages::Pool> {
        answer(self.control.pool().await)
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

fn answer<T>(result: Result<T, Refusal>) -> Answer<T> {
    result.map(Response::new).map_err(|refusal| match refusal {
        Refusal::Invalid(message) => Status::invalid_argument(message),
        Refusal::NotFound(message) => Status::not_found(message),
        Refusal::Exists(message) => Status::already_exists(message),
        Refusal::Impossible(message) => Status::failed_precondition(message),
        Refusal::Broken(message) => Status::internal(message),
    })
}

/// A management client must be a program: a web page that a browser on this machine shows is none,
/// and its requests carry an `Origin`.
pub fn refuse_browsers(request: Request<()>) -> Result<Request<()>, Status> {
    if request.metadata().contains_key("origin") {
        return Err(Status::permission_denied("requests from web pages are refused"));
    }
    Ok(request)
}

/// What is said at start about how the service can be reached.
#[must_use]
pub fn reach(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    format!("management on {} (this machine only: no certificates yet)", addresses.join(", "))
}
