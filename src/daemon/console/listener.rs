//! The console's connections: TLS, and on the same port plain HTTP, so that who forgets the `s` is shown the way and a
//! Prometheus on the same machine needs no certificates.
//!
//! Guarantees: at most [`MOST`] at a time, and a handshake that does not get on ends by itself. What may be answered
//! without TLS is for the pages to decide; they learn it from [`Peer`].

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Connections at a time.
const MOST: usize = 256;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be accepted, for want of descriptors perhaps.
const PAUSE: Duration = Duration::from_millis(200);
/// First byte of a TLS record that begins a handshake (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Who is at the other end, and how.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// His address.
    pub address: SocketAddr,
    /// Whether the connection is protected.
    pub is_tls: bool,
}

/// Accepts connections.
pub struct ConsoleListener {
    ready: mpsc::Receiver<(Connection, Peer)>,
    address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

/// A connection, protected or not.
pub struct Connection {
    stream: Stream,
    _permit: OwnedSemaphorePermit,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ConsoleListener {
    /// Accepts connections on `listener`; protected ones where there is a way to.
    ///
    /// # Errors
    /// The socket's.
    pub fn start(listener: TcpListener, tls: Option<TlsAcceptor>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(1);
        let accepting = tokio::spawn(accept_all(listener, tls, sender));
        Ok(Self { ready, address, accepting })
    }
}

impl Drop for ConsoleListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept_all(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    sender: mpsc::Sender<(Connection, Peer)>,
) {
    let permits = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "the console cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (tls, sender) = (tls.clone(), sender.clone());
        tokio::spawn(async move {
            let begun = tokio::time::timeout(HANDSHAKE, begin(stream, tls)).await;
            // Who does not get through to the end of the handshake is nobody's concern.
            if let Ok(Ok(stream)) = begun {
                let is_tls = matches!(stream, Stream::Tls(_));
                let _ = sender.send((Connection { stream, _permit: permit }, Peer { address, is_tls })).await;
            }
        });
    }
}

async fn begin(stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match tls.filter(|_| first[0] == HANDSHAKE_RECORD) {
        Some(tls) => Ok(Stream::Tls(Box::new(tls.accept(stream).await?))),
        None => Ok(Stream::Plain(stream)),
    }
}

impl axum::serve::Listener for ConsoleListener {
    type Io = Connection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Connection, Peer) {
        match self.ready.recv().await {
            Some(ready) => ready,
            // The accepting task has ended, as the runtime does.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { address: self.address, is_tls: false })
    }
}

impl Connected<IncomingStream<'_, ConsoleListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, ConsoleListener>) -> Self {
        *stream.remote_addr()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
