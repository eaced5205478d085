//! The engine that carries disk operations, chosen at start, and the open disk above it.
//!
//! The event loop's contract, the same for both engines: [`Engine::submit`] before it parks,
//! [`Engine::reap`] when the descriptor is readable (or any time, to look without waiting).
//! Invariant: an operation that was started completes, whoever waits for it, before its engine and
//! its disk are gone.

use std::fmt;
use std::future::Future;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::channel::oneshot;

use super::request::{DiscardMethod, Finished, OpenFile, Work};
use super::threads::ThreadEngine;
use super::uring::UringEngine;
use super::{Disk, DiskError, DiskErrorKind, DiskFuture, DiskProperties, Operation, assert_transfer};
use crate::base::buffer::{AlignedBuf, is_block_aligned};

/// The engine of one data-path thread; all its disks share it.
#[derive(Clone)]
pub enum Engine {
    /// io_uring.
    Uring(Rc<UringEngine>),
    /// Threads.
    Threads(Rc<ThreadEngine>),
}

impl Engine {
    /// Starts an engine for the calling thread. With [`EnginePreference::Automatic`] that is
    /// io_uring, or threads where the kernel does not permit it, which is logged as a warning.
    ///
    /// # Errors
    /// When the engine asked for can't be had.
    pub fn start(preference: EnginePreference) -> Result<Self, EngineError> {
        let threads = || ThreadEngine::start().map(Self::Threads).map_err(EngineError::Threads);
        match (preference, UringEngine::start) {
            (EnginePreference::Threads, _) => threads(),
            (EnginePreference::Uring, uring) => uring().map(Self::Uring).map_err(EngineError::Uring),
            (EnginePreference::Automatic, uring) => match uring() {
                Ok(engine) => Ok(Self::Uring(engine)),
                Err(error) => {
                    tracing::warn!(%error, "io_uring is not available: disks are served by threads, slower");
                    threads()
                }
            },
        }
    }

    /// Hands queued operations to the kernel.
    pub fn submit(&self) {
        match self {
            Self::Uring(engine) => engine.submit(),
            // Threads take operations as they come.
            Self::Threads(_) => {}
        }
    }

    /// Completes what has finished, waking those who wait; how many.
    pub fn reap(&self) -> usize {
        match self {
            Self::Uring(engine) => engine.reap(),
            Self::Threads(engine) => engine.reap(),
        }
    }

    /// Operations that were started and not yet completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Uring(engine) => engine.in_flight(),
            Self::Threads(engine) => engine.in_flight(),
        }
    }

    /// Whether another thread, one of the kernel's or of ours, works on an operation in flight. A
    /// caller that waits without sleeping may keep that very thread from the processor.
    #[must_use]
    pub fn needs_other_threads(&self) -> bool {
        match self {
            Self::Uring(engine) => engine.has_blocking_work(),
            Self::Threads(engine) => engine.in_flight() > 0,
        }
    }

    /// Runs `future`, and the engine beneath it, until it is complete: for tools and tests that have
    /// no event loop. The future must wait for nothing but disks of this engine.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            self.submit();
            if self.reap() == 0 {
                self.park();
                self.reap();
            }
        }
    }

    /// Blocks until there is something to reap.
    pub fn park(&self) {
        park(self.as_raw_fd());
    }

    pub(super) fn channel(&self, file: OpenFile) -> Box<dyn Channel> {
        let file = Arc::new(file);
        match self {
            Self::Uring(engine) => engine.channel(file),
            Self::Threads(engine) => engine.channel(file),
        }
    }
}

impl AsRawFd for Engine {
    /// Readable when there is something to reap.
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Uring(engine) => engine.as_raw_fd(),
            Self::Threads(engine) => engine.as_raw_fd(),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring(_) => "io_uring",
            Self::Threads(_) => "threads",
        })
    }
}

/// Which engine to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EnginePreference {
    /// io_uring where it is permitted, else threads.
    #[default]
    Automatic,
    /// io_uring or nothing.
    Uring,
    /// Threads.
    Threads,
}

/// Why no engine could be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The kernel refuses io_uring.
    #[error("io_uring can't be used (sysctl kernel.io_uring_disabled, seccomp or an old kernel?)")]
    Uring(#[source] std::io::Error),
    /// The system gives no threads.
    #[error("the threads for disk operations can't be started")]
    Threads(#[source] std::io::Error),
}

/// Blocks until `descriptor` is readable.
pub(super) fn park(descriptor: RawFd) {
    let mut watched = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
    // SAFETY: `watched` is one pollfd. An interruption only ends the wait early.
    unsafe { libc::poll(&raw mut watched, 1, -1) };
}

/// How an open disk hands operations to its engine.
pub(super) trait Channel {
    /// Starts `work`; the receiver gets its end.
    fn start(&self, work: Work) -> oneshot::Receiver<Finished>;
}

/// A block device or file, open and locked.
pub(super) struct OpenDisk {
    channel: Box<dyn Channel>,
    properties: Rc<DiskProperties>,
    discard: DiscardMethod,
}

impl OpenDisk {
    pub(super) fn new(engine: &Engine, file: OpenFile, properties: DiskProperties) -> Self {
        let discard = file.discard;
        Self { channel: engine.channel(file), properties: Rc::new(properties), discard }
    }

    fn start(
        &self,
        operation: Operation,
        offset: u64,
        length: u64,
        work: Work,
    ) -> impl Future<Output = Result<Finished, DiskError>> + use<> {
        let finished = self.channel.start(work);
        let properties = self.properties.clone();
        async move {
            // The engine answers before it ends; without an answer it ended in a panic.
            let finished = finished.await;
            let kind = match finished {
                Ok(Finished { outcome: Err(kind), .. }) => kind,
                Ok(finished) => return Ok(finished),
                Err(oneshot::Canceled) => DiskErrorKind::Gone,
            };
            Err(DiskError { kind, operation, path: properties.path.clone(), offset, length })
        }
    }
}

impl Disk for OpenDisk {
    fn properties(&self) -> &DiskProperties {
        &self.properties
    }

    fn read(&self, offset: u64, buffer: AlignedBuf) -> DiskFuture<AlignedBuf> {
        let length = buffer.len() as u64;
        assert_transfer(&self.properties, offset, length);
        let finished = self.start(Operation::Read, offset, length, Work::read(offset, buffer));
        Box::pin(async move {
            let finished = finished.await?;
            Ok(finished.buffer.expect("the end of a read gives its buffer back"))
        })
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> DiskFuture<()> {
        assert!(data.iter().all(|piece| is_block_aligned(piece)), "pieces must be whole, aligned blocks");
        let length = data.iter().map(|piece| piece.len() as u64).sum();
        assert_transfer(&self.properties, offset, length);
        let finished = self.start(Operation::Write, offset, length, Work::write(offset, data));
        Box::pin(async move { finished.await.map(drop) })
    }

    fn flush(&self) -> DiskFuture<()> {
        let finished = self.start(Operation::Flush, 0, 0, Work::Flush);
        Box::pin(async move { finished.await.map(drop) })
    }

    fn discard(&self, offset: u64, length: u64) -> DiskFuture<()> {
        assert_transfer(&self.properties, offset, length);
        if self.discard == DiscardMethod::None {
            return Box::pin(std::future::ready(Ok(())));
        }
        let work = Work::Discard { offset, length };
        let finished = self.start(Operation::Discard, offset, length, work);
        Box::pin(async move { finished.await.map(drop) })
    }
}
