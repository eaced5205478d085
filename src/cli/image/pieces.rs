//! Pieces of a volume as a node sends them, over a move of the volume or the loss of the node that sends them.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::super::error::CliError;
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{ReadVolumeRequest, VolumePiece};

/// A stream of pieces, which goes on behind the last one when it breaks off.
pub struct Pieces {
    client: ManagementClient<Channel>,
    request: ReadVolumeRequest,
    stream: Option<Streaming<VolumePiece>>,
    failures: u32,
}

impl Pieces {
    /// What `request` asks for.
    pub fn new(client: &ManagementClient<Channel>, request: ReadVolumeRequest) -> Self {
        Self { client: client.clone(), request, stream: None, failures: 0 }
    }

    /// The next piece; none at the end.
    pub async fn next(&mut self) -> Result<Option<VolumePiece>, CliError> {
        loop {
            match self.try_next().await {
                Ok(Some(piece)) => {
                    (self.request.from, self.failures) = (piece.offset + piece.length, 0);
                    return Ok(Some(piece));
                }
                Ok(None) => return Ok(None),
                Err(status) => {
                    self.stream = None;
                    self.failures += 1;
                    let may_pass =
                        matches!(status.code(), Code::Aborted | Code::Unavailable | Code::FailedPrecondition);
                    if !may_pass || self.failures > MOST_FAILURES {
                        return Err(status.into());
                    }
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<VolumePiece>, tonic::Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(self.client.read_volume(self.request.clone()).await?.into_inner()),
        };
        stream.message().await
    }
}

/// A take-over is waited for, and not much longer.
const MOST_FAILURES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);
