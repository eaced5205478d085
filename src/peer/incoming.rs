//! Connections that come to a member's port, bounded by where they come from.
//!
//! Who has no certificate may connect too, to join or to be told why it may not, so connections are counted before they say
//! anything: more than [`MOST_OF_ONE_ADDRESS`] at a time from one address are closed at once. Other addresses do not notice.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Connections that one address may have at a time: two links of each other member, and some command lines.
pub const MOST_OF_ONE_ADDRESS: u32 = 64;

/// How many there are of each address. A lock because connections end on any task; it is held for a count.
#[derive(Clone, Debug, Default)]
pub struct Census(Arc<Mutex<BTreeMap<IpAddr, u32>>>);

impl Census {
    fn enter(&self, address: IpAddr) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= MOST_OF_ONE_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Place { census: self.clone(), address })
    }
}

/// A counted connection.
#[derive(Debug)]
struct Place {
    census: Census,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.census.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// The connections of a listener.
pub struct Incoming {
    listener: TcpListener,
    census: Census,
}

impl Incoming {
    /// Those of `listener`, counted with all others of the same census.
    #[must_use]
    pub fn new(listener: TcpListener, census: Census) -> Self {
        Self { listener, census }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Counted>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let (stream, from) = match self.listener.poll_accept(context) {
                Poll::Ready(Ok(accepted)) => accepted,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => return Poll::Pending,
            };
            if let Some(place) = self.census.enter(from.ip().to_canonical()) {
                // Small messages are not held back; a socket that can't be told so is as good as closed.
                return Poll::Ready(Some(
                    stream.set_nodelay(true).map(|()| Counted { stream, _place: place }),
                ));
            }
        }
    }
}

/// A connection that counts until it ends.
#[derive(Debug)]
pub struct Counted {
    stream: TcpStream,
    _place: Place,
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use tokio::io::AsyncReadExt;

    #[test]
    fn one_address_has_a_bounded_number_of_connections() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut incoming = Incoming::new(listener, Census::default());
            let (mut callers, mut taken) = (Vec::new(), Vec::new());
            for _ in 0..MOST_OF_ONE_ADDRESS {
                callers.push(TcpStream::connect(address).await.unwrap());
                taken.push(incoming.next().await.unwrap().unwrap());
            }
            let mut refused = TcpStream::connect(address).await.unwrap();
            let waiting = tokio::time::timeout(std::time::Duration::from_millis(200), incoming.next()).await;
            assert!(waiting.is_err(), "it is not let in");
            assert!(matches!(refused.read(&mut [0]).await, Ok(0) | Err(_)), "and closed");
            taken.pop();
            callers.push(TcpStream::connect(address).await.unwrap());
            taken.push(incoming.next().await.unwrap().unwrap());
        });
    }
}
