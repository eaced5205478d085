//! Bounds the memory that the data of commands takes, over all connections of a node.
//!
//! Each connection may always hold its guarantee; what is beyond comes out of one shared limit. So
//! data never takes more than `limit + connections x guarantee`, and a connection that asks for little
//! is never stopped by those that ask for much. Who finds the limit exhausted waits in line and is
//! woken in turn. A charge is given back when it is dropped.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Called when a waiting connection may try again; it must only note that fact, and not call back.
pub type Wake = Rc<dyn Fn()>;

/// Memory for the data of commands, of all connections together.
#[derive(Clone)]
pub struct DataBudget(Rc<Shared>);

struct Shared {
    limit_bytes: u64,
    guarantee_bytes: u64,
    /// Taken out of the limit: what connections hold beyond their guarantees.
    used_bytes: Cell<u64>,
    /// Who waits, in order, each at most once.
    waiting: RefCell<VecDeque<(u64, Wake)>>,
    next_member: Cell<u64>,
}

impl DataBudget {
    /// A budget of `limit_bytes` to share, and `guarantee_bytes` for each connection.
    #[must_use]
    pub fn new(limit_bytes: u64, guarantee_bytes: u64) -> Self {
        Self(Rc::new(Shared {
            limit_bytes,
            guarantee_bytes,
            used_bytes: Cell::new(0),
            waiting: RefCell::default(),
            next_member: Cell::new(0),
        }))
    }

    /// Bytes taken out of the shared limit.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.get()
    }

    /// Largest charge that can ever be granted.
    #[must_use]
    pub fn largest_charge(&self) -> u64 {
        self.0.limit_bytes.saturating_add(self.0.guarantee_bytes)
    }

    /// The part of one connection. `wake` tells it to try again after a refusal.
    #[must_use]
    pub(super) fn member(&self, wake: Wake) -> MemberBudget {
        let number = self.0.next_member.get();
        self.0.next_member.set(number + 1);
        MemberBudget(Rc::new(Member { shared: self.0.clone(), number, held_bytes: Cell::new(0), wake }))
    }
}

impl std::fmt::Debug for DataBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataBudget({} of {} bytes used)", self.used_bytes(), self.0.limit_bytes)
    }
}

/// One connection's part of a [`DataBudget`].
#[derive(Debug)]
pub(super) struct MemberBudget(Rc<Member>);

struct Member {
    shared: Rc<Shared>,
    number: u64,
    held_bytes: Cell<u64>,
    wake: Wake,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Member({} bytes held)", self.held_bytes.get())
    }
}

impl MemberBudget {
    /// Takes `bytes`, or says that they are not there now. After a refusal the caller either waits
    /// in line ([`Self::wait`]) or does without.
    pub(super) fn try_charge(&self, bytes: u64) -> Option<Charge> {
        let member = &self.0;
        let shared = &member.shared;
        let growth = member.share_after(bytes) - member.share_after(0);
        if growth > 0 {
            let is_others_turn =
                shared.waiting.borrow().front().is_some_and(|(number, _)| *number != member.number);
            if is_others_turn || shared.used_bytes.get() + growth > shared.limit_bytes {
                return None;
            }
            shared.used_bytes.set(shared.used_bytes.get() + growth);
        }
        member.held_bytes.set(member.held_bytes.get() + bytes);
        Some(Charge { member: self.0.clone(), bytes })
    }

    /// Gets in line.
    pub(super) fn wait(&self) {
        let mut waiting = self.0.shared.waiting.borrow_mut();
        if waiting.iter().all(|(number, _)| *number != self.0.number) {
            waiting.push_back((self.0.number, self.0.wake.clone()));
        }
    }

    /// Leaves the line, so that the next one gets its turn.
    pub(super) fn stop_waiting(&self) {
        let shared = &self.0.shared;
        let was_first = shared.waiting.borrow().front().is_some_and(|(number, _)| *number == self.0.number);
        shared.waiting.borrow_mut().retain(|(number, _)| *number != self.0.number);
        if was_first {
            shared.wake_first();
        }
    }

    /// Whether memory is so short that the connection should take on less.
    pub(super) fn is_short(&self) -> bool {
        let shared = &self.0.shared;
        !shared.waiting.borrow().is_empty() || shared.used_bytes.get() > shared.limit_bytes / 4 * 3
    }
}

impl Drop for MemberBudget {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl Member {
    /// What this connection takes out of the shared limit when it holds `more` bytes in addition.
    fn share_after(&self, more: u64) -> u64 {
        (self.held_bytes.get() + more).saturating_sub(self.shared.guarantee_bytes)
    }
}

impl Shared {
    fn wake_first(&self) {
        let first = self.waiting.borrow().front().map(|(_, wake)| wake.clone());
        if let Some(wake) = first {
            wake();
        }
    }
}

/// Bytes taken from a budget, until dropped.
#[derive(Debug)]
pub(super) struct Charge {
    member: Rc<Member>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let member = &self.member;
        let before = member.share_after(0);
        member.held_bytes.set(member.held_bytes.get() - self.bytes);
        let freed = before - member.share_after(0);
        member.shared.used_bytes.set(member.shared.used_bytes.get() - freed);
        // Also without anything freed for others: the first in line may be this very connection,
        // back within its guarantee.
        member.shared.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> (Rc<Cell<u32>>, Wake) {
        let count = Rc::new(Cell::new(0));
        let counted = count.clone();
        (count, Rc::new(move || counted.set(counted.get() + 1)))
    }

    #[test]
    fn the_guarantee_is_always_there_and_the_limit_never_exceeded() {
        let budget = DataBudget::new(100, 10);
        let (greedy, modest) = (budget.member(counter().1), budget.member(counter().1));
        let held = greedy.try_charge(110).unwrap();
        assert_eq!(budget.used_bytes(), 100);
        assert!(greedy.try_charge(1).is_none());
        assert!(modest.try_charge(11).is_none());
        let small = modest.try_charge(10).unwrap();
        assert!(modest.try_charge(1).is_none());
        drop(held);
        assert_eq!(budget.used_bytes(), 0);
        assert!(modest.try_charge(100).is_some());
        drop(small);
        assert_eq!(budget.used_bytes(), 0);
        assert!(budget.member(counter().1).try_charge(111).is_none());
    }

    #[test]
    fn those_in_line_are_served_in_turn() {
        let budget = DataBudget::new(100, 0);
        let (first_woken, wake) = counter();
        let first = budget.member(wake);
        let (second_woken, wake) = counter();
        let second = budget.member(wake);
        let held = first.try_charge(60).unwrap();
        assert!(second.try_charge(80).is_none());
        second.wait();
        second.wait();
        assert!(first.try_charge(10).is_none(), "the second is first in line");
        first.wait();
        drop(held);
        assert_eq!((first_woken.get(), second_woken.get()), (0, 1));
        let _held = second.try_charge(80).unwrap();
        second.stop_waiting();
        assert_eq!(first_woken.get(), 1);
        assert!(first.try_charge(10).is_some());
    }

    #[test]
    fn a_connection_that_ends_leaves_the_line() {
        let budget = DataBudget::new(10, 0);
        let (gone, (woken, wake)) = (budget.member(counter().1), counter());
        let waiting = budget.member(wake);
        let held = waiting.try_charge(10).unwrap();
        gone.wait();
        waiting.wait();
        drop(gone);
        assert_eq!(woken.get(), 1);
        drop(held);
        assert!(waiting.try_charge(10).is_some());
    }
}
