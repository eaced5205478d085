//! What storage code asks of the world besides disks: time, timers, tasks and randomness.
//!
//! Production answers from the daemon's event loop, the simulator from virtual time and a seed; so
//! the layers below the daemon are the same code in both and never see a clock or a thread.

use std::rc::Rc;
use std::time::Duration;

pub use futures::future::LocalBoxFuture;

/// Nanoseconds on a monotonic clock with an arbitrary start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Time from `earlier` to this instant, zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Clock, timers, tasks and randomness of one single-threaded world.
pub trait Runtime {
    /// The present on the monotonic clock.
    fn now(&self) -> Instant;
    /// Completes when `duration` has passed.
    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()>;
    /// Runs `task` to its end beside the caller, on the same thread.
    fn spawn(&self, task: LocalBoxFuture<'static, ()>);
    /// Sixty-four random bits; not for secrets.
    fn random(&self) -> u64;
}

/// The handle that objects keep of their runtime.
pub type RuntimeHandle = Rc<dyn Runtime>;

/// Lets the other tasks of the thread have their turn.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
