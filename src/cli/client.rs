//! The connection to a node's management service.
//!
//! A node of this machine is asked by its socket file, which the file system guards; any node by its address, with mutual
//! TLS, which takes an administrator's identity. An identity that is named is used, whatever the address.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::error::CliError;
use super::local_socket;
use crate::peer::link::root_cause;
use crate::peer::settings::with_port;
use crate::peer::tls::{AdministratorKeys, is_distrust};
use crate::rpc::MANAGEMENT_PORT;
use crate::rpc::management::GetClusterRequest;
use crate::rpc::management::management_client::ManagementClient;

/// How long a node gets to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of the first of `endpoints` that accepts a connection.
pub async fn connect(
    endpoints: &[String],
    identity: Option<&Path>,
) -> Result<ManagementClient<Channel>, CliError> {
    let (mut failures, mut is_distrusted) = (Vec::new(), false);
    for endpoint in endpoints {
        let file = match endpoint.strip_prefix("unix:") {
            Some(path) => Some(PathBuf::from(path)),
            None if identity.is_some() => None,
            None => local_socket::find(endpoint),
        };
        let connected = match &file {
            Some(path) => connect_locally(path).await,
            None => connect_remotely(endpoint, identity).await?,
        };
        match connected {
            Ok(channel) => return Ok(ManagementClient::new(channel)),
            Err(failure) => {
                is_distrusted |= failure.is_distrust;
                failures.push(failure.text);
            }
        }
    }
    let failures = failures.join(", ");
    if is_distrusted {
        return Err(CliError::Refused(format!(
            "cannot reach {failures}; name the identity of that cluster with --identity"
        )));
    }
    Err(CliError::Unreachable(format!(
        "cannot reach {failures}; check that gemeld is running there (systemctl status gemeld), or name another \
         endpoint with --cluster HOST:PORT"
    )))
}

struct Failure {
    text: String,
    is_distrust: bool,
}

async fn connect_locally(path: &Path) -> Result<Channel, Failure> {
    let failure = |error: &dyn std::error::Error| {
        let cause = root_cause(error);
        Failure { text: format!("{} ({cause})", path.display()), is_distrust: false }
    };
    if rustix::fs::access(path, rustix::fs::Access::WRITE_OK) == Err(rustix::io::Errno::ACCESS) {
        let reason = "it is for root and for whose user gemeld runs as; others use --identity";
        return Err(Failure { text: format!("{} ({reason})", path.display()), is_distrust: false });
    }
    let endpoint =
        Endpoint::from_shared(format!("unix:{}", path.display())).map_err(|error| failure(&error))?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(|error| failure(&error))
}

/// The outer error is one that no other endpoint would mend.
async fn connect_remotely(
    endpoint: &str,
    identity: Option<&Path>,
) -> Result<Result<Channel, Failure>, CliError> {
    let address = with_port(endpoint, MANAGEMENT_PORT);
    let parsed = Endpoint::from_shared(format!("https://{address}"))
        .map_err(|_| CliError::Usage(format!("{endpoint:?} is not an endpoint; write HOST or HOST:PORT")))?;
    let Some(path) = identity.map(Path::to_owned).or_else(usual_identity) else {
        if local_socket::loopback(endpoint).is_some() {
            let text =
                format!("{address} (this user has no node there; that of another one takes --identity)");
            return Ok(Err(Failure { text, is_distrust: false }));
        }
        return Err(CliError::Usage(format!(
            "{address} is asked over the network, which takes an identity: copy admin.pem from the first node \
             (/etc/gemel/admin.pem), and name it with --identity or GEMEL_IDENTITY"
        )));
    };
    let keys = AdministratorKeys::load(&path).map_err(|error| CliError::Usage(error.to_string()))?;
    let tls = parsed.tls_config(keys.client()).map_err(|error| CliError::Local(root_cause(&error)))?;
    let tls = tls.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    let failed = |reason: String, is_distrust| Failure { text: format!("{address} ({reason})"), is_distrust };
    let distrust = || failed(format!("it is not of the cluster of {}", path.display()), true);
    Ok(match tokio::time::timeout(CONNECT_TIMEOUT, tls.connect()).await {
        Ok(Ok(channel)) => match probe(&channel).await {
            Ok(()) => Ok(channel),
            Err(status) if is_distrust(&status) => Err(distrust()),
            Err(status) => Err(failed(status.message().to_owned(), false)),
        },
        Ok(Err(error)) if is_distrust(&error) => Err(distrust()),
        Ok(Err(error)) => Err(failed(root_cause(&error), false)),
        Err(_) => Err(failed("no answer".to_owned(), false)),
    })
}

/// Whether the node takes commands now: it may still be starting, and only an answer shows that it took our certificate
/// (TLS 1.3). What it refuses otherwise is for the command to find out.
async fn probe(channel: &Channel) -> Result<(), tonic::Status> {
    let mut client = ManagementClient::new(channel.clone());
    match tokio::time::timeout(CONNECT_TIMEOUT, client.get_cluster(GetClusterRequest {})).await {
        Err(_) => Err(tonic::Status::deadline_exceeded("no answer")),
        Ok(Err(status)) if status.code() == tonic::Code::Unavailable || is_distrust(&status) => Err(status),
        Ok(_) => Ok(()),
    }
}

/// The identity that is used when none is named.
fn usual_identity() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/gemel/admin.pem"));
    let usual = PathBuf::from("/etc/gemel/admin.pem");
    home.into_iter().chain([usual]).find(|path| std::fs::File::open(path).is_ok())
}
