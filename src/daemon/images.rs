//! Streams of the contents of volumes over gRPC, from and to the node that serves the volume: passed on as they come.

use std::pin::Pin;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::control::{Refusal, images};
use super::management::{ManagementService, status};
use super::others::{is_passed_on, passed_on};
use crate::cluster::name::{NodeName, VolumeName};
use crate::rpc::management::{
    GetVolumeRequest, ReadVolumeRequest, VolumePiece, WriteVolumeRequest, WriteVolumeResponse,
};

/// What a call of this kind answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ManagementService {
    /// What a volume holds.
    pub(super) async fn read_pieces(
        &self,
        request: Request<ReadVolumeRequest>,
    ) -> Result<Response<Answers<VolumePiece>>, Status> {
        let was_passed_on = is_passed_on(&request);
        let message = request.into_inner();
        let primary = self.control.primary_of(&message.volume);
        if let Some(mut other) = self.elsewhere(primary, was_passed_on).await? {
            let pieces = other.read_volume(passed_on(message)).await?.into_inner();
            return Ok(Response::new(Box::pin(pieces)));
        }
        let pieces = self.control.read_volume(message).await.map_err(status)?;
        Ok(Response::new(Box::pin(ReceiverStream::new(pieces))))
    }

    /// Writes to a volume.
    pub(super) async fn write_pieces(
        &self,
        request: Request<Streaming<WriteVolumeRequest>>,
    ) -> Result<Response<Answers<WriteVolumeResponse>>, Status> {
        let was_passed_on = is_passed_on(&request);
        let mut pieces = request.into_inner();
        let first = pieces.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("nothing says which volume to write"))?;
        let primary = self.control.primary_of(&first.volume);
        if !was_passed_on {
            self.check_unused(&first.volume).await?;
        }
        if let Some(mut other) = self.elsewhere(primary, was_passed_on).await? {
            // What comes is passed on until it ends; an error ends it there as well.
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move {
                let _ = sender.send(first).await;
                while let Ok(Some(piece)) = pieces.message().await {
                    if sender.send(piece).await.is_err() {
                        return;
                    }
                }
            });
            let answers = other.write_volume(passed_on(ReceiverStream::new(receiver))).await?.into_inner();
            return Ok(Response::new(Box::pin(answers)));
        }
        let answers = self.control.write_volume(first, Box::pin(pieces)).await.map_err(status)?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    /// Refuses when hosts are logged in to a volume, through whichever node can be asked.
    pub(super) async fn check_unused(&self, volume: &str) -> Result<(), Status> {
        let name: VolumeName = volume.parse().map_err(|error| status(Refusal::from(error)))?;
        let sessions = self.sessions_of(volume).await?;
        images::refuse_in_use(&name, sessions).map_err(status)
    }

    /// Sessions of hosts with a volume, on all nodes that can be asked.
    pub(super) async fn sessions_of(&self, volume: &str) -> Result<u64, Status> {
        let own = self.control.volume(volume).await.map_err(status)?;
        let mut sessions = u64::from(own.sessions);
        let others: Vec<NodeName> = self.names_of_others().collect();
        for node in others.into_iter().filter(|node| self.control.is_reachable(node)) {
            let request = GetVolumeRequest { name: volume.to_owned() };
            if let Some(mut other) = self.elsewhere(Some(node), false).await? {
                sessions += u64::from(other.get_volume(passed_on(request)).await?.into_inner().sessions);
            }
        }
        Ok(sessions)
    }
}
