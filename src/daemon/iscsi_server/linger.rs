//! The last moments of a socket whose session is over: what was said last must reach the initiator.
//!
//! Closing a socket that holds bytes nobody has read makes the system send a reset, and a reset takes with it what
//! the other side has not read yet: a Logout Response that writes were still coming behind, or the reason of a failed
//! login. So only the sending side is closed, and what still comes is read and thrown away until the initiator
//! closes too. Bounded in time, bytes, and number of sockets that linger at the same time.

use std::cell::Cell;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// How long an initiator gets to close its side.
const TIME: Duration = Duration::from_millis(500);
/// Bytes that are thrown away at most: a full command window of first bursts.
const BYTES: usize = 32 << 20;
/// Sockets that linger at a time; those above it are closed at once.
const SOCKETS: usize = 256;
/// Bytes taken at a time.
const PIECE: usize = 16 << 10;

/// The sockets that linger.
#[derive(Default)]
pub struct Lingering {
    count: Cell<usize>,
    ended: Notify,
}

impl Lingering {
    /// A place for one more socket, if there is one.
    pub fn enter(&self) -> Option<Place<'_>> {
        let count = self.count.get();
        (count < SOCKETS).then(|| {
            self.count.set(count + 1);
            Place { lingering: self }
        })
    }

    /// Waits until no socket lingers.
    pub async fn all_closed(&self) {
        while self.count.get() > 0 {
            self.ended.notified().await;
        }
    }
}

/// A place among the sockets that linger.
pub struct Place<'a> {
    lingering: &'a Lingering,
}

impl Place<'_> {
    /// Closes `stream` so that what was sent on it arrives.
    pub async fn close(self, mut stream: TcpStream) {
        // Whether it ended in time, and how, makes no difference any more.
        let _ = tokio::time::timeout(TIME, discard(&mut stream)).await;
        drop(stream);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.lingering.count.set(self.lingering.count.get() - 1);
        self.lingering.ended.notify_waiters();
    }
}

async fn discard(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.shutdown().await?;
    let mut piece = vec![0; PIECE];
    let mut left = BYTES;
    while left > 0 {
        match stream.read(&mut piece).await? {
            0 => return Ok(()),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}
