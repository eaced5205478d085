//! Calls to other members: connected, encrypted, and with the machine that the cluster knows at the other end.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::link::{HANDSHAKE_TIMEOUT, root_cause};
use super::tls::Keys;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;

/// Connects to `member` at HOST:PORT; `set` chooses what the connection is like.
///
/// # Errors
/// Why that can't be, for people.
pub async fn dial(
    keys: &Keys,
    (member, kind): (&NodeName, SeatKind),
    address: &str,
    set: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, String> {
    // Of this address only the name in the requests is used: what is connected is encrypted already.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| root_cause(&error))?;
    let (keys, member, address) = (keys.clone(), member.clone(), address.to_owned());
    let connector = tower::service_fn(move |_| {
        let (keys, member, address) = (keys.clone(), member.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(keys.encrypt(&member, kind, stream).await?))
        }
    });
    let connected = timeout(LONGEST, set(endpoint).connect_with_connector(connector)).await;
    connected.map_err(|_| "no answer".to_owned())?.map_err(|error| root_cause(&error))
}

const LONGEST: Duration = HANDSHAKE_TIMEOUT;
