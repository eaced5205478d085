//! A condition that tasks of one thread wait for: like a condition variable without a lock.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Wakes all who wait for it. Who waits checks its own condition again.
#[derive(Clone, Default)]
pub struct Signal {
    waiters: Rc<RefCell<Waiters>>,
}

#[derive(Default)]
struct Waiters {
    round: u64,
    wakers: Vec<Waker>,
}

impl Signal {
    /// Wakes everyone who waits now.
    pub fn notify(&self) {
        let wakers = {
            let mut waiters = self.waiters.borrow_mut();
            waiters.round += 1;
            std::mem::take(&mut waiters.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Completes at the first [`Signal::notify`] after this call (not after its first poll).
    pub fn wait(&self) -> Wait {
        Wait { waiters: self.waiters.clone(), round: self.waiters.borrow().round }
    }

    /// Waits until `condition` holds; it is checked now and after every [`Signal::notify`].
    pub async fn until(&self, mut condition: impl FnMut() -> bool) {
        loop {
            let notified = self.wait();
            if condition() {
                return;
            }
            notified.await;
        }
    }
}

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signal({} waiting)", self.waiters.borrow().wakers.len())
    }
}

/// Future of [`Signal::wait`].
pub struct Wait {
    waiters: Rc<RefCell<Waiters>>,
    round: u64,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut waiters = self.waiters.borrow_mut();
        if waiters.round != self.round {
            return Poll::Ready(());
        }
        if !waiters.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            waiters.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_notification_between_wait_and_poll_is_not_lost() {
        let signal = Signal::default();
        let wait = signal.wait();
        assert!(signal.wait().now_or_never().is_none());
        signal.notify();
        assert!(wait.now_or_never().is_some());
        assert!(signal.wait().now_or_never().is_none());
    }
}
