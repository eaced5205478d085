//! Counts a volume's operations in flight, so that closing can drain them and a freeze can hold their
//! completions.
//!
//! Guarantees: after [`Gate::close`] has completed, nothing that entered is in flight and nothing
//! enters any more. While a [`Freeze`] lives, no operation gets past [`Gate::thawed`], so nothing is
//! acknowledged; new operations still start.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures::channel::oneshot;

/// Entrance and exit of one volume's operations.
#[derive(Debug, Default)]
pub(super) struct Gate {
    in_flight: Cell<usize>,
    is_closed: Cell<bool>,
    freezes: Cell<usize>,
    /// Woken when nothing is in flight any more.
    draining: RefCell<Vec<oneshot::Sender<()>>>,
    /// Woken when the last freeze ends.
    held: RefCell<Vec<oneshot::Sender<()>>>,
}

impl Gate {
    /// Lets an operation in, unless the gate is closed.
    pub(super) fn enter(self: &Rc<Self>) -> Option<Operation> {
        (!self.is_closed.get()).then(|| self.extend())
    }

    /// Counts a further part of an operation that is in flight, and may outlive it.
    pub(super) fn extend(self: &Rc<Self>) -> Operation {
        self.in_flight.set(self.in_flight.get() + 1);
        Operation { gate: self.clone() }
    }

    /// Number of operations in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Lets nothing in any more and waits until nothing is in flight. A freeze delays it.
    pub(super) async fn close(&self) {
        self.is_closed.set(true);
        while self.in_flight.get() > 0 {
            wait_in(&self.draining).await;
        }
    }

    /// Holds completions until the returned value is dropped.
    pub(super) fn freeze(self: &Rc<Self>) -> Freeze {
        self.freezes.set(self.freezes.get() + 1);
        Freeze { gate: self.clone() }
    }

    /// Waits until there is no freeze.
    pub(super) async fn thawed(&self) {
        while self.freezes.get() > 0 {
            wait_in(&self.held).await;
        }
    }
}

/// One operation in flight, until dropped.
#[derive(Debug)]
pub(super) struct Operation {
    gate: Rc<Gate>,
}

impl Drop for Operation {
    fn drop(&mut self) {
        let left = self.gate.in_flight.get() - 1;
        self.gate.in_flight.set(left);
        if left == 0 {
            wake_all(&self.gate.draining);
        }
    }
}

/// Holds the completions of a volume's operations while it lives: what is not acknowledged yet stays
/// so. Several may exist; the last one dropped thaws.
#[derive(Debug)]
#[must_use = "dropping it thaws"]
pub struct Freeze {
    gate: Rc<Gate>,
}

impl Drop for Freeze {
    fn drop(&mut self) {
        let left = self.gate.freezes.get() - 1;
        self.gate.freezes.set(left);
        if left == 0 {
            wake_all(&self.gate.held);
        }
    }
}

async fn wait_in(waiters: &RefCell<Vec<oneshot::Sender<()>>>) {
    let (sender, receiver) = oneshot::channel();
    waiters.borrow_mut().push(sender);
    // The sender is only dropped by being used; either way the caller looks again.
    let _ = receiver.await;
}

fn wake_all(waiters: &RefCell<Vec<oneshot::Sender<()>>>) {
    let waiting = waiters.take();
    for waiter in waiting {
        // The one who waited may have been dropped.
        let _ = waiter.send(());
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn closing_waits_for_every_part_of_an_operation() {
        let gate = Rc::new(Gate::default());
        let operation = gate.enter().unwrap();
        let part = gate.extend();
        let mut closing = Box::pin(gate.close());
        assert!(closing.as_mut().now_or_never().is_none());
        assert!(gate.enter().is_none());
        drop(operation);
        assert!(closing.as_mut().now_or_never().is_none());
        drop(part);
        assert!(closing.as_mut().now_or_never().is_some());
        assert!(gate.close().now_or_never().is_some(), "closing twice is harmless");
    }

    #[test]
    fn the_last_freeze_thaws() {
        let gate = Rc::new(Gate::default());
        let (first, second) = (gate.freeze(), gate.freeze());
        let mut held = Box::pin(gate.thawed());
        assert!(held.as_mut().now_or_never().is_none());
        drop(first);
        assert!(held.as_mut().now_or_never().is_none());
        drop(second);
        assert!(held.as_mut().now_or_never().is_some());
    }
}
