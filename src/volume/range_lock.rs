//! Shared and exclusive locks on ranges of blocks, fair and without starvation.
//!
//! Guarantees: a claim is granted as soon as no *earlier* claim conflicts with it (overlapping ranges
//! of which at least one is exclusive), so claims on the same blocks are granted in the order of
//! [`RangeLock::acquire`] and nobody overtakes a waiter that it would delay. An operation holds at
//! most one claim, so there is no deadlock. A dropped [`Acquire`] or [`RangeGuard`] takes its claim
//! back. While no exclusive claim exists, acquiring costs a slot of the slab and no search.
//!
//! Left to others: what the ranges mean; and that claims are bounded in number, because a search
//! looks at all of them (the target's queue depths bound them).

use std::cell::RefCell;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Locks of one volume.
#[derive(Debug, Default)]
pub struct RangeLock {
    claims: RefCell<Claims>,
}

/// How a range is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Beside other shared claims.
    Shared,
    /// Alone.
    Exclusive,
}

impl RangeLock {
    /// Claims `blocks`, which is not empty. The claim's place in the order is taken by this call; it
    /// is held once the future completes.
    pub fn acquire(self: &Rc<Self>, blocks: Range<u64>, mode: LockMode) -> Acquire {
        assert!(blocks.start < blocks.end, "an empty range cannot be locked");
        let slot = self.claims.borrow_mut().insert(blocks, mode);
        Acquire { claim: Some(RangeGuard { lock: self.clone(), slot }) }
    }

    /// Number of claims, held and waiting.
    #[must_use]
    pub fn claim_count(&self) -> usize {
        self.claims.borrow().count
    }

    fn release(&self, slot: usize) {
        // Wakers run outside the borrow, because a waker may call back into this lock.
        let granted = self.claims.borrow_mut().remove(slot);
        granted.into_iter().for_each(Waker::wake);
    }
}

/// Future of a claim.
#[derive(Debug)]
pub struct Acquire {
    /// Released when this future is dropped before its completion.
    claim: Option<RangeGuard>,
}

impl Future for Acquire {
    type Output = RangeGuard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<RangeGuard> {
        let Some(claim) = self.claim.take() else { panic!("polled after completion") };
        let held = claim.lock.claims.borrow_mut().poll(claim.slot, context);
        if held {
            return Poll::Ready(claim);
        }
        self.claim = Some(claim);
        Poll::Pending
    }
}

/// A held range, released when dropped.
#[derive(Debug)]
pub struct RangeGuard {
    lock: Rc<RangeLock>,
    slot: usize,
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        self.lock.release(self.slot);
    }
}

/// All claims, in a slab.
#[derive(Debug, Default)]
struct Claims {
    slots: Vec<Option<Claim>>,
    vacant: Vec<usize>,
    count: usize,
    exclusive_count: usize,
    waiting_count: usize,
    next_ticket: u64,
}

#[derive(Debug)]
struct Claim {
    blocks: Range<u64>,
    mode: LockMode,
    /// Order of arrival.
    ticket: u64,
    held: bool,
    waker: Option<Waker>,
}

impl Claim {
    fn conflicts_with(&self, other: &Self) -> bool {
        (self.mode == LockMode::Exclusive || other.mode == LockMode::Exclusive)
            && self.blocks.start < other.blocks.end
            && other.blocks.start < self.blocks.end
    }
}

impl Claims {
    fn insert(&mut self, blocks: Range<u64>, mode: LockMode) -> usize {
        let mut claim = Claim { blocks, mode, ticket: self.next_ticket, held: false, waker: None };
        self.next_ticket += 1;
        claim.held = self.is_grantable(&claim);
        self.count += 1;
        self.exclusive_count += usize::from(mode == LockMode::Exclusive);
        self.waiting_count += usize::from(!claim.held);
        if let Some(slot) = self.vacant.pop() {
            self.slots[slot] = Some(claim);
            slot
        } else {
            self.slots.push(Some(claim));
            self.slots.len() - 1
        }
    }

    /// Whether no earlier claim stands in the way of `claim`.
    fn is_grantable(&self, claim: &Claim) -> bool {
        if claim.mode == LockMode::Shared && self.exclusive_count == 0 {
            return true;
        }
        let mut others = self.slots.iter().flatten();
        !others.any(|other| other.ticket < claim.ticket && other.conflicts_with(claim))
    }

    /// Whether the claim is held; keeps the waker of one that is not.
    fn poll(&mut self, slot: usize, context: &mut Context<'_>) -> bool {
        let Some(claim) = &mut self.slots[slot] else { panic!("claim {slot} does not exist") };
        if !claim.held {
            match &mut claim.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
        }
        claim.held
    }

    /// Takes a claim out and grants those that waited for it; returns whom to wake.
    fn remove(&mut self, slot: usize) -> Vec<Waker> {
        let Some(removed) = self.slots[slot].take() else { panic!("claim {slot} does not exist") };
        self.vacant.push(slot);
        self.count -= 1;
        self.exclusive_count -= usize::from(removed.mode == LockMode::Exclusive);
        self.waiting_count -= usize::from(!removed.held);
        let mut granted = Vec::new();
        if self.waiting_count == 0 {
            return granted;
        }
        for index in 0..self.slots.len() {
            let freed = self.slots[index].as_ref().is_some_and(|claim| {
                !claim.held && claim.conflicts_with(&removed) && self.is_grantable(claim)
            });
            if !freed {
                continue;
            }
            // Granting changes nobody's right: a conflict counts from arrival on, held or not.
            if let Some(claim) = &mut self.slots[index] {
                claim.held = true;
                self.waiting_count -= 1;
                granted.extend(claim.waker.take());
            }
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;

    use super::LockMode::{Exclusive, Shared};
    use super::*;

    fn poll(acquire: &mut Acquire) -> Option<RangeGuard> {
        match Pin::new(acquire).poll(&mut Context::from_waker(noop_waker_ref())) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn shared_claims_overlap_and_exclusive_ones_do_not() {
        let lock = Rc::new(RangeLock::default());
        let first = poll(&mut lock.acquire(0..8, Shared)).unwrap();
        let second = poll(&mut lock.acquire(4..12, Shared)).unwrap();
        let mut third = lock.acquire(7..8, Exclusive);
        assert!(poll(&mut third).is_none());
        assert!(poll(&mut lock.acquire(12..13, Exclusive)).is_some(), "touches no other claim");
        drop(first);
        assert!(poll(&mut third).is_none());
        drop(second);
        assert!(poll(&mut third).is_some());
        drop(third);
        assert_eq!(lock.claim_count(), 0);
    }

    #[test]
    fn nobody_overtakes_a_waiter_that_it_would_delay() {
        let lock = Rc::new(RangeLock::default());
        let reader = poll(&mut lock.acquire(0..4, Shared)).unwrap();
        let mut merge = lock.acquire(3..5, Exclusive);
        let mut late = lock.acquire(4..6, Shared);
        assert!(poll(&mut merge).is_none());
        assert!(poll(&mut late).is_none(), "would starve the exclusive claim");
        assert!(poll(&mut lock.acquire(5..6, Shared)).is_some(), "delays nobody");
        drop(reader);
        assert!(poll(&mut late).is_none());
        let merge = poll(&mut merge).unwrap();
        drop(merge);
        assert!(poll(&mut late).is_some());
    }

    #[test]
    fn a_dropped_waiter_lets_the_next_one_in() {
        let lock = Rc::new(RangeLock::default());
        let held = poll(&mut lock.acquire(0..4, Shared)).unwrap();
        let abandoned = lock.acquire(0..4, Exclusive);
        let mut next = lock.acquire(0..4, Shared);
        assert!(poll(&mut next).is_none());
        drop(abandoned);
        assert!(poll(&mut next).is_some());
        // Granted but never polled again: the claim goes back all the same.
        let mut granted = lock.acquire(0..4, Exclusive);
        assert!(poll(&mut granted).is_none());
        drop((held, next));
        drop(granted);
        assert_eq!(lock.claim_count(), 0);
        assert_eq!(lock.claims.borrow().waiting_count, 0);
        assert_eq!(lock.claims.borrow().exclusive_count, 0);
    }

    #[test]
    fn slots_are_reused() {
        let lock = Rc::new(RangeLock::default());
        for block in 0..1000 {
            drop(poll(&mut lock.acquire(block..block + 1, Exclusive)).unwrap());
        }
        assert_eq!(lock.claims.borrow().slots.len(), 1);
    }

    /// Against a model that grants by definition: every claim whose earlier conflicts are all gone.
    #[test]
    fn grants_are_exactly_those_of_the_definition() {
        use rand::{RngExt, SeedableRng};
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let lock = Rc::new(RangeLock::default());
        let mut live: Vec<(Range<u64>, LockMode, Acquire, Option<RangeGuard>)> = Vec::new();
        for _ in 0..20_000 {
            if live.len() < 12 && random.random_bool(0.55) {
                let start = random.random_range(0..10u64);
                let blocks = start..start + random.random_range(1..5u64);
                let mode = if random.random_bool(0.4) { Exclusive } else { Shared };
                live.push((blocks.clone(), mode, lock.acquire(blocks, mode), None));
            } else if !live.is_empty() {
                live.remove(random.random_range(0..live.len()));
            }
            for index in 0..live.len() {
                let (earlier, rest) = live.split_at_mut(index);
                let (blocks, mode, acquire, guard) = &mut rest[0];
                let blocked = earlier.iter().any(|(other, other_mode, ..)| {
                    (*mode == Exclusive || *other_mode == Exclusive)
                        && blocks.start < other.end
                        && other.start < blocks.end
                });
                if guard.is_none() {
                    *guard = poll(acquire);
                }
                assert_eq!(guard.is_some(), !blocked);
            }
        }
    }
}
