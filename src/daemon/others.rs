//! The other node's management service: what only it can do is passed on to it.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::peer::dial::dial;
use crate::peer::settings::{PEER_PORT, PeerAddress, PeerSettings, with_port};
use crate::peer::tls::Keys;
use crate::rpc::management::management_client::ManagementClient;

/// How to call the other nodes.
#[derive(Clone)]
pub struct Others {
    keys: Keys,
    nodes: Vec<PeerAddress>,
}

impl Others {
    /// Those of the configuration.
    #[must_use]
    pub fn new(settings: &PeerSettings, keys: Keys) -> Self {
        let nodes = settings.peers.iter().filter(|peer| !peer.witness).cloned().collect();
        Self { keys, nodes }
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.iter().map(|node| &node.name)
    }

    /// A client of a node, at the first of its addresses that answers.
    pub async fn client(&self, name: &NodeName) -> Result<ManagementClient<Channel>, Status> {
        let node = self.nodes.iter().find(|node| node.name == *name);
        let addresses = node.map_or(&[][..], |node| &node.addresses);
        let mut failures = Vec::new();
        for address in addresses {
            match self.connect(name, &with_port(address, PEER_PORT)).await {
                Ok(channel) => return Ok(ManagementClient::new(channel)),
                Err(reason) => failures.push(format!("{address}: {reason}")),
            }
        }
        // Not UNAVAILABLE, which is about the node that was asked.
        Err(Status::failed_precondition(format!(
            "node {name} has to do that, and cannot be reached ({}): `gemel cluster show` tells how it is",
            failures.join(", ")
        )))
    }

    async fn connect(&self, name: &NodeName, address: &str) -> Result<Channel, String> {
        dial(&self.keys, (name, SeatKind::Node), address, |endpoint| endpoint.timeout(LONGEST_CALL)).await
    }
}

/// A request that is passed on, and not once more.
pub fn passed_on<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(PASSED_ON, tonic::metadata::MetadataValue::from_static("1"));
    request
}

/// Whether a request was passed on by the other node.
pub fn is_passed_on<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(PASSED_ON)
}

/// Has a request count as one that nobody passed on.
pub fn not_passed_on<T>(request: &mut Request<T>) {
    request.metadata_mut().remove(PASSED_ON);
}

const PASSED_ON: &str = "gemel-passed-on";
/// Longer than any command waits for the quorum or for a move.
const LONGEST_CALL: Duration = Duration::from_secs(60);
