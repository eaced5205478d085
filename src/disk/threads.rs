//! Disk operations on a small fixed pool of threads: the fallback where io_uring is not permitted,
//! and the helper for the few calls that io_uring lacks.
//!
//! Guarantees: an operation's memory is owned by its job until the thread is done with it; dropping
//! the engine finishes all jobs first. Requests and completions cross in two queues under a lock
//! each (they are the border between threads); an eventfd tells the data path of completions.
//! Left to others: what an operation is (`request`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use futures::channel::oneshot;
use slab::Slab;

use super::engine::{Channel, park};
use super::request::{DiscardMethod, Finished, OpenFile, Progress, Work};

/// The thread engine of one data-path thread.
pub struct ThreadEngine {
    pool: Pool,
    waiting: RefCell<Slab<oneshot::Sender<Finished>>>,
}

impl ThreadEngine {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives no threads or no eventfd.
    pub fn start() -> std::io::Result<Rc<Self>> {
        Ok(Rc::new(Self { pool: Pool::start(ENGINE_THREADS)?, waiting: RefCell::default() }))
    }

    /// Completes the operations that the threads have finished; how many.
    pub fn reap(&self) -> usize {
        let finished = self.pool.take_finished();
        let count = finished.len();
        for job in finished {
            let waiting = self.waiting.borrow_mut().remove(job.number);
            // Nobody may be waiting any more; the operation is done all the same.
            let _ = waiting.send(job.work.finish(job.outcome));
        }
        count
    }

    /// Operations that were started and not yet completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.waiting.borrow().len()
    }

    pub(super) fn channel(self: &Rc<Self>, file: Arc<OpenFile>) -> Box<dyn Channel> {
        Box::new(ThreadChannel { engine: self.clone(), file })
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            park(self.as_raw_fd());
            self.reap();
        }
    }
}

impl AsRawFd for ThreadEngine {
    /// Readable when there is something to reap.
    fn as_raw_fd(&self) -> RawFd {
        self.pool.event.as_raw_fd()
    }
}

struct ThreadChannel {
    engine: Rc<ThreadEngine>,
    file: Arc<OpenFile>,
}

impl Channel for ThreadChannel {
    fn start(&self, work: Work) -> oneshot::Receiver<Finished> {
        let (done, finished) = oneshot::channel();
        let number = self.engine.waiting.borrow_mut().insert(done);
        self.engine.pool.push(Job { number, file: self.file.clone(), work, outcome: Ok(()) });
        finished
    }
}

/// Threads that carry out jobs.
pub(super) struct Pool {
    shared: Arc<Shared>,
    event: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn start(threads: usize) -> std::io::Result<Self> {
        // SAFETY: no memory is passed.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        let event = Arc::new(unsafe { OwnedFd::from_raw_fd(raw) });
        let mut pool = Self { shared: Arc::default(), event, threads: Vec::new() };
        for index in 0..threads {
            let (shared, event) = (pool.shared.clone(), pool.event.clone());
            let builder = std::thread::Builder::new().name(format!("disk-{index}"));
            pool.threads.push(builder.spawn(move || shared.work(&event))?);
        }
        Ok(pool)
    }

    pub(super) fn push(&self, job: Job) {
        lock(&self.shared.jobs).waiting.push_back(job);
        self.shared.arrived.notify_one();
    }

    /// The jobs that were finished since the last call.
    pub(super) fn take_finished(&self) -> Vec<Job> {
        // The event is cleared first: a job that finishes in between raises it again.
        let mut count = [0u8; 8];
        // SAFETY: the buffer holds the eight bytes that an eventfd gives.
        unsafe { libc::read(self.event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        std::mem::take(&mut *lock(&self.shared.finished))
    }

    /// Descriptor that is readable when jobs have finished.
    pub(super) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.jobs).closed = true;
        self.shared.arrived.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of the thread has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// An operation for a thread.
pub(super) struct Job {
    /// Number by which the one who pushed it knows it.
    pub(super) number: usize,
    pub(super) file: Arc<OpenFile>,
    pub(super) work: Work,
    /// Set when it is finished.
    pub(super) outcome: Result<(), super::DiskErrorKind>,
}

#[derive(Default)]
struct Shared {
    jobs: Mutex<Jobs>,
    arrived: Condvar,
    finished: Mutex<Vec<Job>>,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// No more jobs will come; threads end when none is left.
    closed: bool,
}

impl Shared {
    fn work(&self, event: &OwnedFd) {
        while let Some(mut job) = self.next_job() {
            job.outcome = carry_out(&job.file, &mut job.work);
            let mut finished = lock(&self.finished);
            let first = finished.is_empty();
            finished.push(job);
            drop(finished);
            if first {
                let one = 1u64.to_ne_bytes();
                // SAFETY: the buffer holds the eight bytes that an eventfd takes. It can't overflow:
                // it is cleared before the list that it announces.
                unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
            }
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            if jobs.closed {
                return None;
            }
            jobs = self.arrived.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn carry_out(file: &OpenFile, work: &mut Work) -> Result<(), super::DiskErrorKind> {
    let mut segments = Vec::new();
    loop {
        let position = work.position();
        let result = match work {
            Work::Read { buffer, done, .. } => file.file.read_at(&mut buffer[*done..], position),
            Work::Write { .. } => {
                work.segments(&mut segments);
                write_vectored(file, &segments, position)
            }
            Work::Flush => file.file.sync_data().map(|()| 0),
            Work::Discard { offset, length } => discard(file, *offset, *length),
        };
        let result = result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        if let Progress::Done(outcome) = work.advance(result) {
            return outcome;
        }
    }
}

fn write_vectored(file: &OpenFile, segments: &[libc::iovec], offset: u64) -> std::io::Result<usize> {
    let count = i32::try_from(segments.len()).expect("the number of segments is limited");
    // SAFETY: the segments point into the job's pieces, which it owns and nobody changes.
    let moved = unsafe { libc::pwritev64(file.descriptor(), segments.as_ptr(), count, signed(offset)?) };
    usize::try_from(moved).map_err(|_| std::io::Error::last_os_error())
}

fn discard(file: &OpenFile, offset: u64, length: u64) -> std::io::Result<usize> {
    let result = match file.discard {
        DiscardMethod::None => 0,
        DiscardMethod::PunchHole => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: no memory is passed.
            unsafe { libc::fallocate64(file.descriptor(), mode, signed(offset)?, signed(length)?) }
        }
        DiscardMethod::BlockDiscard => {
            let range = [offset, length];
            // SAFETY: the ioctl reads two 64-bit numbers, which `range` holds.
            unsafe { libc::ioctl(file.descriptor(), super::device::BLKDISCARD, &range) }
        }
    };
    if result == 0 { Ok(0) } else { Err(std::io::Error::last_os_error()) }
}

fn signed(number: u64) -> std::io::Result<i64> {
    i64::try_from(number).map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The queues are consistent between any two statements, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enough to keep a few disks busy; more threads cost more than they give on a small machine.
const ENGINE_THREADS: usize = 16;
