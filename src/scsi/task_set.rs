//! The task set of a logical unit (SAM-5 sections 5.5 and 8): which tasks there are, in which order
//! they may start, and how they are aborted.
//!
//! A task enters at admission and leaves when its [`Task`] is dropped. Aborting sets a flag, which an
//! executing task looks at before each device request, and which one that has not started never gets
//! past. What an executing task has already handed to the device is waited for: when a [`Drain`] is
//! over, no effect of the aborted tasks can follow.
//!
//! Ordering: SIMPLE tasks start at once unless an older ORDERED task is unfinished; an ORDERED task
//! starts when all older ones have ended; HEAD OF QUEUE starts at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::identity::NexusId;
use super::limits;
use super::mutant::{self, Mutant};

/// Task attribute (SAM-5 section 8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the standard's own names
pub enum TaskAttribute {
    Simple,
    Ordered,
    HeadOfQueue,
    Aca,
}

/// The tasks of a logical unit. A handle; clones share the set.
#[derive(Clone, Debug, Default)]
pub struct TaskSet {
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    tasks: RefCell<BTreeMap<u64, Rc<TaskState>>>,
    /// Tasks in the set by nexus.
    per_nexus: RefCell<BTreeMap<NexusId, usize>>,
    next_sequence: Cell<u64>,
    /// Resets whose drain is not over.
    resets: Cell<usize>,
    ordered_tasks: Cell<usize>,
    /// Tasks that wait for older ones, and drains.
    waiting: RefCell<Vec<Waker>>,
}

impl TaskSet {
    /// Enters a task, unless the set or the nexus's share of it is full, or a reset is draining it.
    pub fn admit(&self, nexus: NexusId, tag: u64, attribute: TaskAttribute) -> Result<Task, Refusal> {
        let mut tasks = self.shared.tasks.borrow_mut();
        if self.shared.resets.get() > 0 {
            return Err(Refusal::Busy);
        }
        let mut counts = self.shared.per_nexus.borrow_mut();
        let of_nexus = counts.entry(nexus).or_insert(0);
        if tasks.len() >= limits::TASKS || *of_nexus >= limits::TASKS_PER_NEXUS {
            return Err(Refusal::Full);
        }
        *of_nexus += 1;
        let sequence = self.shared.next_sequence.get();
        self.shared.next_sequence.set(sequence + 1);
        if attribute == TaskAttribute::Ordered {
            self.shared.ordered_tasks.set(self.shared.ordered_tasks.get() + 1);
        }
        let state = Rc::new(TaskState {
            sequence,
            nexus,
            tag,
            attribute,
            phase: Cell::new(Phase::Admitted),
            aborted: Cell::new(None),
            conflicts: Cell::new(false),
            uses_device: Cell::new(false),
            withdrawn: Cell::new(false),
            abort_waker: RefCell::new(None),
        });
        tasks.insert(sequence, state.clone());
        Ok(Task { state, set: self.shared.clone() })
    }

    /// ABORT TASK. Gives back nothing when there is no such task.
    pub fn abort_task(&self, nexus: NexusId, tag: u64) -> Option<Drain> {
        let found = self.abort_where(Abort::Silent, |task| task.nexus == nexus && task.tag == tag);
        (!found.is_empty()).then_some(found)
    }

    /// ABORT TASK SET, and the loss of a nexus: all of its tasks.
    pub fn abort_nexus(&self, nexus: NexusId) -> Drain {
        self.abort_where(Abort::Silent, |task| task.nexus == nexus)
    }

    /// Whether `nexus` has a task in the set, with this tag if one is given: QUERY TASK (SET).
    #[must_use]
    pub fn query(&self, nexus: NexusId, tag: Option<u64>) -> bool {
        let tasks = self.shared.tasks.borrow();
        tasks.values().any(|task| task.nexus == nexus && tag.is_none_or(|tag| task.tag == tag))
    }

    /// A reset: aborts all tasks, and refuses new ones with BUSY until the drain is over.
    pub fn reset(&self, requester: Option<NexusId>) -> Drain {
        let (mut drain, _) = self.abort_all(requester);
        self.shared.resets.set(self.shared.resets.get() + 1);
        drain.is_reset = true;
        drain
    }

    /// CLEAR TASK SET: all tasks. Those of other nexuses than `requester` end with TASK
    /// ABORTED, as the control mode page's TAS bit says. Also gives back these nexuses.
    pub fn abort_all(&self, requester: Option<NexusId>) -> (Drain, Vec<NexusId>) {
        let drain = self.abort_where(Abort::Reported, |task| Some(task.nexus) != requester);
        let mut others: Vec<_> = drain.tasks.iter().map(|task| task.nexus).collect();
        others.sort_unstable();
        others.dedup();
        let own = self.abort_where(Abort::Silent, |task| Some(task.nexus) == requester);
        (drain.and(own), others)
    }

    /// PREEMPT AND ABORT: all tasks of `nexuses` but `except`, which is the one that asks.
    pub(super) fn abort_preempted(&self, nexuses: &[NexusId], except: &Task) -> Drain {
        let sequence = except.state.sequence;
        self.abort_where(Abort::Reported, |task| task.sequence != sequence && nexuses.contains(&task.nexus))
    }

    /// Waits for the tasks that are touching the medium now, without aborting them; not for `except`,
    /// which is the one that asks.
    pub(super) fn drain_conflicting(&self, except: &Task) -> Drain {
        let sequence = except.state.sequence;
        let tasks = self.shared.tasks.borrow();
        let conflicting = tasks.values().filter(|task| task.conflicts.get() && task.sequence != sequence);
        let tasks = conflicting.cloned().collect();
        Drain { tasks, set: self.shared.clone(), is_reset: false }
    }

    /// The device is detached: tasks that have had their checks for it begin no further request, and fail if they
    /// have not succeeded by then. The drain is over when those that touch the medium have ended.
    pub(super) fn withdraw(&self) -> Drain {
        let tasks = self.shared.tasks.borrow();
        let users = tasks.values().filter(|task| task.uses_device.get());
        let tasks = users.filter(|task| {
            task.withdrawn.set(true);
            task.conflicts.get()
        });
        Drain { tasks: tasks.cloned().collect(), set: self.shared.clone(), is_reset: false }
    }

    /// Number of tasks in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.tasks.borrow().len()
    }

    /// Whether no task is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn abort_where(&self, how: Abort, matches: impl Fn(&TaskState) -> bool) -> Drain {
        let tasks: Vec<_> = {
            let tasks = self.shared.tasks.borrow();
            tasks.values().filter(|task| matches(task)).cloned().collect()
        };
        for task in &tasks {
            // The first abort decides how the task ends.
            task.aborted.set(Some(task.aborted.get().unwrap_or(how)));
            if let Some(waker) = task.abort_waker.borrow_mut().take() {
                waker.wake();
            }
        }
        self.shared.wake();
        Drain { tasks, set: self.shared.clone(), is_reset: false }
    }
}

impl Shared {
    /// Takes a task off its nexus's count.
    fn leave(&self, nexus: NexusId) {
        let mut counts = self.per_nexus.borrow_mut();
        match counts.get_mut(&nexus) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = counts.remove(&nexus),
        }
    }

    fn wake(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    fn wait(&self, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    fn may_start(&self, task: &TaskState) -> bool {
        if task.aborted.get().is_some() {
            return true; // it gets no further than to notice that
        }
        match task.attribute {
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => true,
            TaskAttribute::Ordered => {
                self.tasks.borrow().keys().next().is_none_or(|oldest| *oldest >= task.sequence)
            }
            TaskAttribute::Simple => {
                self.ordered_tasks.get() == 0
                    || !self
                        .tasks
                        .borrow()
                        .range(..task.sequence)
                        .any(|(_, older)| older.attribute == TaskAttribute::Ordered)
            }
        }
    }
}

/// Why a task was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// TASK SET FULL.
    Full,
    /// BUSY: a reset waits for what is still under way.
    Busy,
}

/// One task, in its set until it is dropped.
#[derive(Debug)]
pub struct Task {
    state: Rc<TaskState>,
    set: Rc<Shared>,
}

#[derive(Debug)]
struct TaskState {
    sequence: u64,
    nexus: NexusId,
    tag: u64,
    attribute: TaskAttribute,
    phase: Cell<Phase>,
    aborted: Cell<Option<Abort>>,
    /// Whether it touches the medium, so that a change of reservations waits for it.
    conflicts: Cell<bool>,
    /// Whether it has passed its checks for the device that there is.
    uses_device: Cell<bool>,
    /// Whether that device was detached since.
    withdrawn: Cell<bool>,
    abort_waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// In the set, not executing: data may still be on its way.
    Admitted,
    /// Executing: device requests may be under way.
    Executing,
    /// Gone.
    Ended,
}

/// How an aborted task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    /// Without a response: its own nexus asked for it, or is gone.
    Silent,
    /// With TASK ABORTED status: another nexus caused it, and TAS is one.
    Reported,
}

impl Task {
    /// The nexus that the task came through.
    #[must_use]
    pub fn nexus(&self) -> NexusId {
        self.state.nexus
    }

    /// Its attribute.
    #[must_use]
    pub fn attribute(&self) -> TaskAttribute {
        self.state.attribute
    }

    /// Whether the task has been aborted. A transport that still collects its data drops it then.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.state.aborted.get().is_some()
    }

    /// Completes when the task is aborted, for a transport that waits for its data.
    pub async fn aborted(&self) {
        poll_fn(|context| {
            if self.is_aborted() {
                return Poll::Ready(());
            }
            *self.state.abort_waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Waits for its turn by its attribute, then marks it as executing.
    pub(super) async fn start(&self) {
        if !self.set.may_start(&self.state) {
            poll_fn(|context| {
                if self.set.may_start(&self.state) {
                    return Poll::Ready(());
                }
                self.set.wait(context.waker());
                Poll::Pending
            })
            .await;
        }
        self.state.phase.set(Phase::Executing);
    }

    /// How the task was aborted, if it was.
    pub(super) fn abort(&self) -> Option<Abort> {
        self.state.aborted.get()
    }

    /// Whether the task is to begin nothing more.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_aborted() || self.is_withdrawn()
    }

    /// Whether the device that the task had its checks for was detached.
    pub(super) fn is_withdrawn(&self) -> bool {
        self.state.withdrawn.get()
    }

    /// Declares that the task has passed its checks for the device that there is.
    pub(super) fn set_uses_device(&self) {
        self.state.uses_device.set(true);
    }

    /// Declares that the task touches the medium from here on.
    pub(super) fn set_conflicts(&self) {
        self.state.conflicts.set(true);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.state.phase.set(Phase::Ended);
        self.set.tasks.borrow_mut().remove(&self.state.sequence);
        self.set.leave(self.state.nexus);
        if self.state.attribute == TaskAttribute::Ordered {
            self.set.ordered_tasks.set(self.set.ordered_tasks.get() - 1);
        }
        self.set.wake();
    }
}

/// The end of the tasks that an abort found executing.
#[must_use = "the answer to a management function has to wait for the drain"]
#[derive(Debug)]
pub struct Drain {
    tasks: Vec<Rc<TaskState>>,
    set: Rc<Shared>,
    is_reset: bool,
}

impl Drain {
    /// Completes when none of the tasks can have any further effect.
    pub async fn wait(self) {
        self.ended().await;
    }

    async fn ended(&self) {
        poll_fn(|context| {
            let is_over = self.tasks.iter().all(|task| task.phase.get() != Phase::Executing);
            if is_over || mutant::is(Mutant::DrainNotAwaited) {
                return Poll::Ready(());
            }
            self.set.wait(context.waker());
            Poll::Pending
        })
        .await;
    }

    /// Both drains in one. They are of the same set.
    pub(super) fn and(mut self, other: Self) -> Self {
        debug_assert!(Rc::ptr_eq(&self.set, &other.set));
        self.tasks.extend(std::mem::take(&mut { other }.tasks));
        self
    }

    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        if self.is_reset {
            self.set.resets.set(self.set.resets.get() - 1);
        }
    }
}
