//! A deterministic single-threaded executor: virtual time, and a seed that decides which of the
//! ready tasks runs next.
//!
//! Invariants: time moves only when no task is ready, and then to the next timer; every decision
//! goes into a trace hash, so two runs of one seed can be compared; a task belongs to one [`World`]
//! (a node of the cluster) and dies with it when it crashes.
//! Left to others: what a crash does to disks (`sim::medium`) and to networks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::random::{Random, mix};
use crate::base::runtime::{Instant, LocalBoxFuture, Runtime};

/// Owner of all tasks, timers and worlds of one simulation.
pub struct Executor {
    shared: Rc<Shared>,
}

impl Executor {
    /// An empty simulation at time zero whose decisions follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let random = Random::new(seed);
        let state = State {
            tasks: BTreeMap::new(),
            timers: BTreeMap::new(),
            worlds: Vec::new(),
            next_task: MAIN_TASK + 1,
            next_timer: 0,
        };
        Self {
            shared: Rc::new(Shared {
                seed,
                now: Cell::new(Instant::default()),
                trace: Cell::new(mix(seed)),
                scheduling: random.fork(),
                worlds_random: random,
                running: Cell::new(false),
                ready: Arc::new(ReadyList::default()),
                state: RefCell::new(state),
            }),
        }
    }

    /// A new world, alive and without tasks. `name` appears in messages.
    #[must_use]
    pub fn world(&self, name: &str) -> Rc<World> {
        let mut state = self.shared.state.borrow_mut();
        let id = state.worlds.len();
        state.worlds.push(WorldState { name: name.to_owned(), alive: true, held: None });
        let random = self.shared.worlds_random.fork();
        Rc::new(World { id, random, shared: self.shared.clone() })
    }

    /// Runs all worlds until `main` is complete. It belongs to no world, so no crash drops it.
    ///
    /// # Errors
    /// [`Stuck`] when `main` can never complete.
    pub fn block_on<F: Future>(&self, main: F) -> Result<F::Output, Stuck> {
        let _running = self.shared.enter();
        let mut main = pin!(main);
        let waker = self.shared.waker(MAIN_TASK);
        waker.wake_by_ref();
        let mut stuck = StuckDetector::default();
        loop {
            match self.shared.pick() {
                Some((MAIN_TASK, queued)) => {
                    queued.store(false, Ordering::Relaxed);
                    if let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Ok(output);
                    }
                }
                Some((task, queued)) => self.shared.run(task, &queued),
                None if self.shared.advance(None) => {}
                None => return Err(self.shared.deadlock()),
            }
            stuck.check(&self.shared)?;
        }
    }

    /// Runs all worlds until nothing is ready and no timer is set, or until `limit` of virtual time
    /// has passed; true when it became idle.
    ///
    /// # Errors
    /// [`Stuck::Livelock`] when tasks go on without time passing.
    pub fn run_until_idle(&self, limit: Duration) -> Result<bool, Stuck> {
        let end = after(self.now(), limit);
        self.run_until(end)?;
        Ok(self.shared.state.borrow().timers.is_empty())
    }

    /// Runs all worlds for `duration` of virtual time.
    ///
    /// # Errors
    /// [`Stuck::Livelock`] when tasks go on without time passing.
    pub fn run_for(&self, duration: Duration) -> Result<(), Stuck> {
        let end = after(self.now(), duration);
        self.run_until(end)?;
        self.shared.now.set(end);
        Ok(())
    }

    /// The present, in virtual time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.shared.now.get()
    }

    /// The seed that decides this run.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// Tasks alive in all worlds.
    #[must_use]
    pub fn task_count(&self) -> usize {
        self.shared.state.borrow().tasks.len()
    }

    /// Adds `value` to the trace: what a caller wants equal in two runs of one seed.
    pub fn trace(&self, value: u64) {
        self.shared.trace(value);
    }

    /// Hash of every decision and every traced value so far.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.shared.trace.get()
    }

    fn run_until(&self, end: Instant) -> Result<(), Stuck> {
        let _running = self.shared.enter();
        let mut stuck = StuckDetector::default();
        loop {
            match self.shared.pick() {
                Some((task, queued)) => self.shared.run(task, &queued),
                None if self.shared.advance(Some(end)) => {}
                None => return Ok(()),
            }
            stuck.check(&self.shared)?;
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Tasks hold their world and so the executor's state: without this they would keep each
        // other alive.
        let worlds = self.shared.state.borrow().worlds.len();
        for world in 0..worlds {
            self.shared.crash(world);
        }
    }
}

/// One node's view of the simulation: its tasks live and die together.
pub struct World {
    id: usize,
    random: Random,
    shared: Rc<Shared>,
}

impl World {
    /// Drops every task of this world at once, as a power cut does. What is spawned in it
    /// afterwards is dropped unrun, and its sleeps never end; a restart is a new world.
    pub fn crash(&self) {
        self.shared.crash(self.id);
    }

    /// Lets its tasks stand still, as SIGSTOP does, until [`World::resume`]: time goes on, and what they are
    /// woken for waits.
    pub fn pause(&self) {
        self.shared.state.borrow_mut().worlds[self.id].held.get_or_insert_default();
    }

    /// Lets its tasks go on.
    pub fn resume(&self) {
        let held = self.shared.state.borrow_mut().worlds[self.id].held.take();
        self.shared.ready.lock().extend(held.into_iter().flatten());
    }

    /// Whether it stands still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.shared.state.borrow().worlds[self.id].held.is_some()
    }

    /// Whether the world has not crashed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.shared.state.borrow().worlds[self.id].alive
    }

    /// Adds `value` to the executor's trace.
    pub fn trace(&self, value: u64) {
        self.shared.trace(value);
    }
}

impl Runtime for World {
    fn now(&self) -> Instant {
        self.shared.now.get()
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        let deadline = after(self.shared.now.get(), duration);
        Box::pin(Sleep { shared: self.shared.clone(), world: self.id, deadline, timer: None })
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        self.shared.spawn(self.id, task);
    }

    fn random(&self) -> u64 {
        self.random.next()
    }
}

/// Why a simulation can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Stuck {
    /// Nothing is ready, no timer is set, and the main future is not complete.
    #[error("deadlock at {} ns: nothing is ready, no timer is set; waiting tasks: {tasks} (seed {seed})", at.0)]
    Deadlock {
        /// Seed of the run.
        seed: u64,
        /// Virtual time.
        at: Instant,
        /// Number of waiting tasks of each living world.
        tasks: String,
    },
    /// Tasks keep waking each other while no time passes.
    #[error("livelock at {} ns: {LIVELOCK_STEPS} steps without time passing (seed {seed})", at.0)]
    Livelock {
        /// Seed of the run.
        seed: u64,
        /// Virtual time.
        at: Instant,
    },
}

/// Everything that tasks, wakers and sleeps share.
struct Shared {
    seed: u64,
    now: Cell<Instant>,
    trace: Cell<u64>,
    scheduling: Random,
    worlds_random: Random,
    running: Cell<bool>,
    ready: Arc<ReadyList>,
    state: RefCell<State>,
}

struct State {
    /// By number, which is never used twice, so that a late wake-up finds nobody else.
    tasks: BTreeMap<TaskNumber, Task>,
    /// By deadline, then in order of creation.
    timers: BTreeMap<TimerKey, Timer>,
    worlds: Vec<WorldState>,
    next_task: TaskNumber,
    next_timer: u64,
}

struct WorldState {
    name: String,
    alive: bool,
    /// While it is paused: tasks that would be ready.
    held: Option<Vec<(TaskNumber, Arc<AtomicBool>)>>,
}

struct Task {
    world: usize,
    /// None while the task is being polled.
    future: Option<LocalBoxFuture<'static, ()>>,
    waker: Waker,
}

struct Timer {
    world: usize,
    waker: Waker,
}

type TaskNumber = u64;
type TimerKey = (Instant, u64);

impl Shared {
    fn trace(&self, value: u64) {
        self.trace.set(mix(self.trace.get() ^ value.wrapping_mul(0x2545_f491_4f6c_dd1d)));
    }

    fn enter(&self) -> Running<'_> {
        assert!(!self.running.replace(true), "the executor is already running: a task must not run it");
        Running(&self.running)
    }

    fn waker(&self, task: TaskNumber) -> Waker {
        let queued = Arc::new(AtomicBool::new(false));
        Waker::from(Arc::new(TaskWaker { task, queued, ready: self.ready.clone() }))
    }

    fn spawn(&self, world: usize, future: LocalBoxFuture<'static, ()>) {
        let mut state = self.state.borrow_mut();
        if !state.worlds[world].alive {
            // Dropped without the borrow: its destructor may come back here.
            drop(state);
            return;
        }
        let number = state.next_task;
        state.next_task += 1;
        let waker = self.waker(number);
        waker.wake_by_ref();
        state.tasks.insert(number, Task { world, future: Some(future), waker });
    }

    /// Takes one of the ready tasks at random.
    fn pick(&self) -> Option<(TaskNumber, Arc<AtomicBool>)> {
        let mut ready = self.ready.lock();
        if ready.is_empty() {
            return None;
        }
        let chosen = self.scheduling.index(ready.len());
        let (task, queued) = ready.swap_remove(chosen);
        self.trace(task);
        Some((task, queued))
    }

    /// Whether the task's world stands still; it is run later then.
    fn hold(&self, number: TaskNumber, queued: &Arc<AtomicBool>) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(world) = state.tasks.get(&number).map(|task| task.world) else { return false };
        let Some(held) = &mut state.worlds[world].held else { return false };
        held.push((number, queued.clone()));
        true
    }

    /// Polls one task once, if it still exists.
    fn run(&self, number: TaskNumber, queued: &Arc<AtomicBool>) {
        if self.hold(number, queued) {
            return;
        }
        queued.store(false, Ordering::Relaxed);
        let taken = self.state.borrow_mut().tasks.get_mut(&number).and_then(|task| {
            let future = task.future.take()?;
            Some((future, task.waker.clone()))
        });
        let Some((mut future, waker)) = taken else { return };
        let outcome = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut state = self.state.borrow_mut();
        let finished = match state.tasks.get_mut(&number) {
            Some(task) if outcome.is_pending() => {
                task.future = Some(future);
                return;
            }
            // Complete, or its world crashed while it ran.
            _ => (state.tasks.remove(&number), future),
        };
        drop(state);
        drop(finished);
    }

    /// Moves time to the next timer that is not after `end` and wakes all timers due; false when
    /// there is none.
    fn advance(&self, end: Option<Instant>) -> bool {
        let mut state = self.state.borrow_mut();
        let Some((&(deadline, _), _)) = state.timers.first_key_value() else { return false };
        if end.is_some_and(|end| deadline > end) {
            return false;
        }
        self.now.set(deadline.max(self.now.get()));
        self.trace(self.now.get().0);
        let later = state.timers.split_off(&(Instant(self.now.get().0 + 1), 0));
        let due = std::mem::replace(&mut state.timers, later);
        drop(state);
        for timer in due.into_values() {
            timer.waker.wake();
        }
        true
    }

    fn crash(&self, world: usize) {
        let mut state = self.state.borrow_mut();
        state.worlds[world].alive = false;
        let tasks = std::mem::take(&mut state.tasks).into_iter();
        let (dead_tasks, tasks): (Vec<_>, Vec<_>) = tasks.partition(|(_, task)| task.world == world);
        state.tasks = tasks.into_iter().collect();
        state.timers.retain(|_, timer| timer.world != world);
        drop(state);
        self.trace(world as u64);
        // Without the borrow: destructors may wake, spawn and cancel sleeps.
        drop(dead_tasks);
    }

    fn deadlock(&self) -> Stuck {
        let state = self.state.borrow();
        let count = |world| state.tasks.values().filter(|task| task.world == world).count();
        let living = state.worlds.iter().enumerate().filter(|(_, world)| world.alive);
        let tasks: Vec<_> = living.map(|(id, world)| format!("{} {}", world.name, count(id))).collect();
        Stuck::Deadlock { seed: self.seed, at: self.now.get(), tasks: tasks.join(", ") }
    }
}

/// Marks the executor as running for as long as it lives.
struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Counts steps between two advances of time.
#[derive(Default)]
struct StuckDetector {
    at: Instant,
    steps: u64,
}

impl StuckDetector {
    fn check(&mut self, shared: &Shared) -> Result<(), Stuck> {
        let now = shared.now.get();
        if now > self.at {
            *self = Self { at: now, steps: 0 };
        }
        self.steps += 1;
        if self.steps > LIVELOCK_STEPS {
            return Err(Stuck::Livelock { seed: shared.seed, at: now });
        }
        Ok(())
    }
}

/// Tasks that were woken and not yet polled.
#[derive(Default)]
struct ReadyList {
    // A lock only because the standard's wakers must be usable from any thread; the simulation has
    // one thread, so the order of entries is deterministic.
    tasks: Mutex<Vec<(TaskNumber, Arc<AtomicBool>)>>,
}

impl ReadyList {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(TaskNumber, Arc<AtomicBool>)>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct TaskWaker {
    task: TaskNumber,
    /// Whether the task is in the ready list, so that it is there at most once.
    queued: Arc<AtomicBool>,
    ready: Arc<ReadyList>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().push((self.task, self.queued.clone()));
        }
    }
}

/// A timer of one world. It is pending at least once, so a loop of empty sleeps lets time pass.
struct Sleep {
    shared: Rc<Shared>,
    world: usize,
    deadline: Instant,
    timer: Option<TimerKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let shared = self.shared.clone();
        let mut state = shared.state.borrow_mut();
        let alive = state.worlds[self.world].alive;
        let timer = Timer { world: self.world, waker: context.waker().clone() };
        match self.timer {
            Some(key) if state.timers.contains_key(&key) => {
                state.timers.insert(key, timer);
            }
            // Fired; or its world crashed, and then it does not end for whoever still waits.
            Some(_) if alive => return Poll::Ready(()),
            None if alive => {
                let key = (self.deadline, state.next_timer);
                state.next_timer += 1;
                state.timers.insert(key, timer);
                self.timer = Some(key);
            }
            _ => {}
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let Some(key) = self.timer else { return };
        let removed = self.shared.state.borrow_mut().timers.remove(&key);
        drop(removed);
    }
}

fn after(now: Instant, duration: Duration) -> Instant {
    let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    // The end of time is kept apart so that one instant after any deadline exists.
    Instant(now.0.saturating_add(nanoseconds).min(u64::MAX - 1))
}

/// Number under which the main future is woken.
const MAIN_TASK: TaskNumber = 0;

/// Steps at one instant after which a simulation is taken for endless.
const LIVELOCK_STEPS: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::oneshot;

    fn order_of(seed: u64) -> (Vec<u32>, u64) {
        let executor = Executor::new(seed);
        let world = executor.world("a");
        let order = Rc::new(RefCell::new(Vec::new()));
        for task in 0..20 {
            let (order, runtime) = (order.clone(), world.clone());
            world.spawn(Box::pin(async move {
                runtime.sleep(Duration::from_micros(runtime.random() % 3)).await;
                order.borrow_mut().push(task);
            }));
        }
        assert!(executor.run_until_idle(Duration::from_secs(1)).unwrap());
        (Rc::try_unwrap(order).unwrap().into_inner(), executor.trace_hash())
    }

    #[test]
    fn a_seed_decides_the_order_and_the_trace() {
        assert_eq!(order_of(1), order_of(1));
        assert_ne!(order_of(1), order_of(2));
    }

    #[test]
    fn time_is_virtual_and_stops_between_timers() {
        let executor = Executor::new(1);
        let world = executor.world("a");
        let slept = executor.block_on(async {
            let start = world.now();
            world.sleep(Duration::from_secs(3600)).await;
            world.now().since(start)
        });
        assert_eq!(slept.unwrap(), Duration::from_secs(3600));
        executor.run_for(Duration::from_secs(5)).unwrap();
        assert_eq!(executor.now(), Instant(3605 * 1_000_000_000));
    }

    #[test]
    fn a_future_that_nobody_can_complete_is_a_deadlock() {
        let executor = Executor::new(9);
        let world = executor.world("a");
        world.spawn(Box::pin(futures::future::pending()));
        let stuck = executor.block_on(futures::future::pending::<()>()).unwrap_err();
        assert!(matches!(stuck, Stuck::Deadlock { seed: 9, .. }));
        assert!(stuck.to_string().contains("a 1"), "{stuck}");
    }

    #[test]
    fn a_paused_world_stands_still_while_time_goes_on() {
        let executor = Executor::new(1);
        let world = executor.world("a");
        let (own, woke_at) = (world.clone(), Rc::new(Cell::new(None)));
        let seen = woke_at.clone();
        world.spawn(Box::pin(async move {
            own.sleep(Duration::from_secs(1)).await;
            seen.set(Some(own.now()));
        }));
        world.pause();
        executor.run_for(Duration::from_secs(5)).unwrap();
        assert!(world.is_paused() && woke_at.get().is_none());
        world.resume();
        executor.run_for(Duration::from_secs(5)).unwrap();
        assert_eq!(woke_at.get(), Some(Instant(6 * 1_000_000_000)));
    }

    #[test]
    fn a_crash_drops_one_world_and_leaves_the_others() {
        let executor = Executor::new(1);
        let (victim, survivor) = (executor.world("victim"), executor.world("survivor"));
        let (dropped, was_dropped) = oneshot::channel::<()>();
        let runtime = victim.clone();
        victim.spawn(Box::pin(async move {
            let _held = dropped;
            runtime.sleep(Duration::from_secs(1000)).await;
        }));
        let runtime = survivor.clone();
        let survived = Rc::new(Cell::new(false));
        let seen = survived.clone();
        survivor.spawn(Box::pin(async move {
            runtime.sleep(Duration::from_secs(2)).await;
            seen.set(true);
        }));
        executor.run_for(Duration::from_secs(1)).unwrap();
        victim.crash();
        assert!(executor.block_on(was_dropped).unwrap().is_err());
        victim.spawn(Box::pin(async { panic!("the world is gone") }));
        assert!(executor.run_until_idle(Duration::from_secs(10)).unwrap());
        assert!(survived.get() && survivor.is_alive() && !victim.is_alive());
        let sleep = victim.sleep(Duration::from_secs(1));
        assert!(executor.block_on(sleep).is_err(), "a sleep in a crashed world never ends");
    }

    #[test]
    fn a_task_may_crash_its_own_world() {
        let executor = Executor::new(1);
        let world = executor.world("a");
        let own = world.clone();
        world.spawn(Box::pin(async move {
            own.crash();
            own.sleep(Duration::from_secs(1)).await;
            panic!("ran on after its world's crash");
        }));
        assert!(executor.run_until_idle(Duration::from_secs(10)).unwrap());
        assert_eq!(executor.task_count(), 0);
    }
}
