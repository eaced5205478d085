//! How much a logical unit does in a second: a limit of operations and one of bytes, so that one volume leaves the others
//! their share.
//!
//! Each limit is a bucket that holds what it allows in [`BURST`]: a command goes while there is something in every bucket,
//! and takes out what it costs, if need be more than there is; what follows makes up for that. So a command of any size
//! goes, and over any time no more is done than the limit allows in that time and a burst, but for one command.
//!
//! Guarantees: commands of one nexus go in the order in which they came; nexuses that wait take turns, so that one with a deep
//! queue does not keep another one waiting; an aborted command leaves at once, and costs nothing; while there is no limit,
//! nothing waits and nothing is counted. There is one timer for all that wait.
//!
//! Left to others: which commands cost what (`LogicalUnit::execute`).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::select;

use super::identity::NexusId;
use super::limits;
use crate::base::runtime::{Instant, RuntimeHandle};
use crate::base::signal::Signal;

/// What is allowed in a second; zero stands for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Commands that reach for the medium.
    pub operations_per_second: u64,
    /// Bytes that they transfer.
    pub bytes_per_second: u64,
}

/// The limits of a logical unit, and who waits for them. A handle; clones share them.
#[derive(Clone, Default)]
pub struct RateLimiter {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    limits: Cell<RateLimits>,
    operations: Bucket,
    bytes: Bucket,
    waiting: RefCell<BTreeMap<NexusId, VecDeque<Waiting>>>,
    /// Whose turn was last.
    last: Cell<Option<NexusId>>,
    is_timing: Cell<bool>,
    changed: Signal,
}

struct Waiting {
    bytes: u64,
    go: oneshot::Sender<()>,
}

impl RateLimiter {
    /// Sets the limits; who waits goes on by the new ones.
    pub fn set(&self, limits: RateLimits) {
        if self.shared.limits.replace(limits) != limits {
            self.shared.operations.fill();
            self.shared.bytes.fill();
            self.shared.changed.notify();
        }
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> RateLimits {
        self.shared.limits.get()
    }

    /// Whether there is any limit.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.limits() != RateLimits::default()
    }

    /// Takes what a command costs, if that can be at once. False when it has to [`Self::wait`] for its turn.
    pub(super) fn try_take(&self, now: Instant, bytes: u64) -> bool {
        let may_go = self.shared.waiting.borrow().is_empty() && self.shared.next(now) <= now;
        if may_go {
            self.shared.take(now, bytes);
        }
        may_go
    }

    /// Waits until a command may go, and takes what it costs. To be dropped when it is aborted.
    pub(super) async fn wait(&self, runtime: &RuntimeHandle, nexus: NexusId, bytes: u64) {
        let (go, gone) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting.borrow_mut();
            let queue = waiting.entry(nexus).or_default();
            if queue.len() >= limits::TASKS_PER_NEXUS {
                queue.retain(|one| !one.go.is_canceled());
            }
            queue.push_back(Waiting { bytes, go });
        }
        if !self.shared.is_timing.replace(true) {
            runtime.spawn(Box::pin(self.shared.clone().let_go(runtime.clone())));
        }
        // An error would mean that nobody lets anybody go any more.
        let _ = gone.await;
    }
}

impl Shared {
    /// Lets those go who wait, each at its time, until nobody waits.
    async fn let_go(self: Rc<Self>, runtime: RuntimeHandle) {
        loop {
            let changed = self.changed.wait();
            let now = runtime.now();
            let mut next = self.next(now);
            while next <= now {
                let Some(waiting) = self.next_waiting() else {
                    self.is_timing.set(false);
                    return;
                };
                if waiting.go.send(()).is_ok() {
                    self.take(now, waiting.bytes);
                }
                next = self.next(now);
            }
            let pause = next.since(now).max(SHORTEST_PAUSE);
            drop(select(changed, runtime.sleep(pause)).await);
        }
    }

    /// Whoever is next, of those that still want to go.
    fn next_waiting(&self) -> Option<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        loop {
            let behind = self.last.get().and_then(|last| {
                let next = NexusId(last.0.checked_add(1)?);
                waiting.range(next..).next().map(|(nexus, _)| *nexus)
            });
            let nexus = behind.or_else(|| waiting.keys().next().copied())?;
            self.last.set(Some(nexus));
            let queue = waiting.get_mut(&nexus)?;
            let first = queue.pop_front();
            if queue.is_empty() {
                waiting.remove(&nexus);
            }
            if let Some(first) = first.filter(|first| !first.go.is_canceled()) {
                return Some(first);
            }
        }
    }

    /// When the next command may go.
    fn next(&self, now: Instant) -> Instant {
        let limits = self.limits.get();
        let operations = self.operations.ready(limits.operations_per_second);
        operations.max(self.bytes.ready(limits.bytes_per_second)).max(now)
    }

    fn take(&self, now: Instant, bytes: u64) {
        let limits = self.limits.get();
        self.operations.take(now, 1, limits.operations_per_second);
        self.bytes.take(now, bytes, limits.bytes_per_second);
    }
}

/// What is left of a limit, told by the time at which the bucket is full again if nothing is taken out.
#[derive(Default)]
struct Bucket {
    full_at: Cell<Instant>,
}

impl Bucket {
    fn fill(&self) {
        self.full_at.set(Instant::default());
    }

    /// From when on there is something in it.
    fn ready(&self, per_second: u64) -> Instant {
        if per_second == 0 {
            return Instant::default();
        }
        // Behind the time at which it is quite empty.
        Instant((self.full_at.get().0 + 1).saturating_sub(BURST.as_nanos() as u64))
    }

    fn take(&self, now: Instant, amount: u64, per_second: u64) {
        if per_second > 0 {
            let nanoseconds = u128::from(amount) * 1_000_000_000 / u128::from(per_second);
            let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
            self.full_at.set(Instant(self.full_at.get().max(now).0.saturating_add(nanoseconds)));
        }
    }
}

/// What a bucket holds: what its limit allows in this time.
const BURST: Duration = Duration::from_secs(1);
/// The timer does not go more often: several commands go at once instead.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::runtime::Runtime;
    use crate::sim::executor::Executor;

    /// The time at which each of `count` commands of so many bytes went, in milliseconds, all asked for at once by this nexus.
    fn asked(
        executor: &Executor,
        limiter: &RateLimiter,
        nexus: u64,
        count: usize,
        bytes: u64,
    ) -> Rc<RefCell<Vec<u64>>> {
        let went = Rc::new(RefCell::new(Vec::new()));
        let world = executor.world("node");
        for _ in 0..count {
            let (limiter, went, world) = (limiter.clone(), went.clone(), world.clone());
            let runtime: RuntimeHandle = world.clone();
            world.spawn(Box::pin(async move {
                if !limiter.try_take(runtime.now(), bytes) {
                    limiter.wait(&runtime, NexusId(nexus), bytes).await;
                }
                went.borrow_mut().push(runtime.now().0 / 1_000_000);
            }));
        }
        went
    }

    fn limiter(operations_per_second: u64, bytes_per_second: u64) -> RateLimiter {
        let limiter = RateLimiter::default();
        limiter.set(RateLimits { operations_per_second, bytes_per_second });
        limiter
    }

    #[test]
    fn no_more_than_the_limit_and_a_burst_goes() {
        for (limiter, bytes) in
            [(limiter(100, 0), 4096), (limiter(0, 100 << 10), 1024), (limiter(100, 1 << 40), 1)]
        {
            let executor = Executor::new(1);
            let went = asked(&executor, &limiter, 1, 400, bytes);
            executor.run_for(Duration::from_secs(10)).unwrap();
            let went = went.borrow();
            assert_eq!(went.len(), 400);
            // A hundred go at once, a hundred in each second after that.
            for second in 0..3 {
                let gone = went.iter().filter(|at| **at < second * 1000 + 500).count() as u64;
                assert!((145..=155).contains(&(gone - second * 100)), "{gone} in {second}.5 s");
            }
            assert!((2950..=3050).contains(&went[399]), "{}", went[399]);
        }
    }

    #[test]
    fn a_large_command_goes_and_is_made_up_for() {
        let executor = Executor::new(1);
        let limiter = limiter(0, 1 << 20);
        let went = asked(&executor, &limiter, 1, 3, 4 << 20);
        executor.run_for(Duration::from_secs(20)).unwrap();
        let went = went.borrow();
        assert_eq!(went[0], 0);
        assert!((2990..=3010).contains(&went[1]) && (6990..=7010).contains(&went[2]), "{went:?}");
    }

    #[test]
    fn a_deep_queue_keeps_nobody_else_waiting() {
        let executor = Executor::new(1);
        let limiter = limiter(100, 0);
        let deep = asked(&executor, &limiter, 1, 1000, 0);
        executor.run_for(Duration::from_millis(500)).unwrap();
        let other = asked(&executor, &limiter, 2, 20, 0);
        executor.run_for(Duration::from_millis(500)).unwrap();
        let (deep, other) = (deep.borrow().len(), other.borrow().len());
        assert_eq!(other, 20, "they take turns: {deep} went meanwhile");
    }

    #[test]
    fn who_gives_up_costs_nothing_and_lifting_the_limit_lets_all_go() {
        let executor = Executor::new(1);
        let limiter = limiter(10, 0);
        let first = asked(&executor, &limiter, 1, 10, 0);
        executor.run_for(Duration::from_millis(1)).unwrap();
        assert_eq!(first.borrow().len(), 10);
        let runtime: RuntimeHandle = executor.world("node");
        for _ in 0..1000 {
            // Polled once, then dropped.
            let mut waiting = Box::pin(limiter.wait(&runtime, NexusId(1), 0));
            let _ = futures::FutureExt::now_or_never(&mut waiting);
        }
        let kept = limiter.shared.waiting.borrow().values().map(VecDeque::len).sum::<usize>();
        assert!(kept <= limits::TASKS_PER_NEXUS, "{kept}");
        let late = asked(&executor, &limiter, 1, 30, 0);
        executor.run_for(Duration::from_millis(1100)).unwrap();
        assert!((10..=12).contains(&late.borrow().len()), "{}", late.borrow().len());
        limiter.set(RateLimits::default());
        executor.run_for(Duration::from_millis(5)).unwrap();
        assert_eq!(late.borrow().len(), 30);
        assert!(!limiter.is_on() && executor.task_count() == 0);
    }
}
