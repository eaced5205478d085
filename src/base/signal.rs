//! A condition that tasks of one thread wait for: like a condition variable without a lock.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// Wakes all who wait for it. Who waits checks its own condition again.
#[derive(Clone, Default)]
pub struct Signal {
    waiters: Rc<RefCell<Waiters>>,
}

#[derive(Default)]
struct Waiters {
    round: u64,
    wakers: Slab<Waker>,
}

impl Signal {
    /// Wakes everyone who waits now.
    pub fn notify(&self) {
        let wakers = {
            let mut waiters = self.waiters.borrow_mut();
            waiters.round += 1;
            std::mem::take(&mut waiters.wakers)
        };
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Completes at the first [`Signal::notify`] after this call (not after its first poll).
    pub fn wait(&self) -> Wait {
        Wait { waiters: self.waiters.clone(), round: self.waiters.borrow().round, key: None }
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

/// Future of [`Signal::wait`]. Costs its waiters' list a place from its first poll until it is dropped.
pub struct Wait {
    waiters: Rc<RefCell<Waiters>>,
    round: u64,
    /// Place in the list of this round.
    key: Option<usize>,
}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut waiters = this.waiters.borrow_mut();
        if waiters.round != this.round {
            return Poll::Ready(());
        }
        match this.key {
            Some(key) => waiters.wakers[key].clone_from(context.waker()),
            None => this.key = Some(waiters.wakers.insert(context.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut waiters = self.waiters.borrow_mut();
        // A later round has a list of its own, in which the place is somebody else's.
        if let Some(key) = self.key.filter(|_| waiters.round == self.round) {
            waiters.wakers.remove(key);
        }
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

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        let signal = Signal::default();
        let mut staying = signal.wait();
        assert!((&mut staying).now_or_never().is_none());
        (0..100).for_each(|_| assert!(signal.wait().now_or_never().is_none()));
        assert_eq!(signal.waiters.borrow().wakers.len(), 1);
        signal.notify();
        assert!(signal.wait().now_or_never().is_none());
        drop(staying);
        assert_eq!(signal.waiters.borrow().wakers.len(), 0);
    }
}
