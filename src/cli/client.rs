//! The connection to a node's management service.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::error::CliError;
use crate::rpc::MANAGEMENT_PORT;
use crate::rpc::management::management_client::ManagementClient;

/// How long a node gets to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of the first of `endpoints` that accepts a connection.
pub async fn connect(endpoints: &[String]) -> Result<ManagementClient<Channel>, CliError> {
    let mut failures = Vec::new();
    for endpoint in endpoints {
        let address = with_port(endpoint);
        let parsed = Endpoint::from_shared(format!("http://{address}")).map_err(|_| {
            CliError::Usage(format!("{endpoint:?} is not an endpoint; write HOST or HOST:PORT"))
        })?;
        match parsed.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect().await {
            Ok(channel) => return Ok(ManagementClient::new(channel)),
            Err(error) => failures.push(format!("{address} ({})", root_cause(&error))),
        }
    }
    Err(CliError::Unreachable(format!(
        "cannot reach {}; check that gemeld is running there (systemctl status gemeld), or name another \
         endpoint with --cluster HOST:PORT",
        failures.join(", ")
    )))
}

/// `endpoint` with the default port where it has none.
fn with_port(endpoint: &str) -> String {
    let bare_v6 = endpoint.parse::<std::net::Ipv6Addr>();
    if let Ok(address) = bare_v6 {
        return format!("[{address}]:{MANAGEMENT_PORT}");
    }
    let after_host = endpoint.rsplit(']').next().unwrap_or(endpoint);
    if after_host.contains(':') { endpoint.to_owned() } else { format!("{endpoint}:{MANAGEMENT_PORT}") }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_port_gets_the_default_one() {
        let cases = [
            ("store-a", "store-a:3261"),
            ("store-a:9", "store-a:9"),
            ("::1", "[::1]:3261"),
            ("[::1]", "[::1]:3261"),
            ("[::1]:9", "[::1]:9"),
            ("127.0.0.1", "127.0.0.1:3261"),
        ];
        for (given, meant) in cases {
            assert_eq!(with_port(given), meant);
        }
    }
}
