//! Time, timers, tasks and randomness of the data thread, from tokio.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::base::runtime::{Instant, LocalBoxFuture, Runtime, RuntimeHandle};

/// The world of the data thread. Tasks run on the `LocalSet` that the caller is in.
pub struct TokioRuntime {
    start: std::time::Instant,
    random: Cell<u64>,
}

impl TokioRuntime {
    /// A world whose clock starts now.
    #[must_use]
    pub fn start() -> Rc<Self> {
        let start = std::time::Instant::now();
        // Without the system's randomness the clock has to do: this is not for secrets.
        let seed = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()) << 32 | 1);
        Rc::new(Self { start, random: Cell::new(seed | 1) })
    }

    /// The same as a handle for the layers below.
    #[must_use]
    pub fn handle(self: &Rc<Self>) -> RuntimeHandle {
        self.clone()
    }
}

impl Runtime for TokioRuntime {
    fn now(&self) -> Instant {
        // 2^64 ns are 584 years.
        Instant(self.start.elapsed().as_nanos() as u64)
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        tokio::task::spawn_local(task);
    }

    fn random(&self) -> u64 {
        // xorshift64* (Marsaglia 2003; Vigna 2016).
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
