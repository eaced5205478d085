//! Disk operations on one io_uring: the engine of the data path.
//!
//! Operations are queued and handed to the kernel in one system call for each turn of the event
//! loop ([`UringEngine::submit`], or earlier when a ring's worth has gathered); completions are read
//! from shared memory ([`UringEngine::reap`]). Guarantees: the memory of an operation is owned by
//! its slot until the kernel is done with it, whatever becomes of the future; dropping the engine
//! waits for the kernel; never more is in flight than the completion queue holds, so it can't
//! overflow. Works from Linux 5.15 on; newer set-up flags are used where the kernel has them.
//! Left to others: what an operation is (`request`), opening (`open`).
//!
//! Measured (Linux 6.18, virtual disk, 2 busy cores; `benches/disk.rs` and fio, medians of three):
//! - Cooperative task running against the plain set-up: no difference above the noise of 25 %
//!   (4 us of CPU for a 4 KiB operation at depth 32, 18 to 23 at depth 1). Kept, since it saves
//!   interrupts of a thread that computes.
//! - Deferred task running: a thread that slept in poll(2) on the ring was not woken. Not used.
//! - Registered files: 0 to 4 % of the CPU of a 4 KiB read. Used, as they cost nothing.
//! - Registered buffers: 1 to 14 % of the same. Not used yet: they want the buffer pool to allocate
//!   from registered memory, which is the larger change.
//! - A flush runs on a kernel worker, as every fsync in a ring does: about 15 us of CPU.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures::channel::oneshot;
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use super::engine::Channel;
use super::request::{DiscardMethod, Finished, OpenFile, Progress, Work};
use super::threads::{Job, Pool};

/// The io_uring of one data-path thread.
pub struct UringEngine {
    inner: RefCell<Inner>,
    descriptor: RawFd,
}

impl UringEngine {
    /// Sets up the ring, for use by the calling thread.
    ///
    /// # Errors
    /// When the kernel has no io_uring or does not permit it (`ENOSYS`, `EPERM`), or lacks memory.
    pub fn start() -> std::io::Result<Rc<Self>> {
        let ring = build_ring()?;
        // A table of empty places: without it (it needs locked memory) plain descriptors do.
        let has_table = ring.submitter().register_files(&[-1; FILE_PLACES as usize]).is_ok();
        let free_places = if has_table { (0..FILE_PLACES).rev().collect() } else { Vec::new() };
        // Each flush blocks a worker, and by default there are four a processor; a slow disk must not
        // hold up the others'. Where this fails the default does.
        let _ = ring.submitter().register_iowq_max_workers(&mut [FLUSH_WORKERS, 0]);
        let descriptor = ring.as_raw_fd();
        let inner = Inner {
            most_in_kernel: ring.params().cq_entries() as usize,
            ring,
            slots: Slab::new(),
            backlog: VecDeque::new(),
            in_kernel: 0,
            blocking: 0,
            free_places,
            helper: None,
            completions: Vec::new(),
        };
        Ok(Rc::new(Self { inner: RefCell::new(inner), descriptor }))
    }

    /// Hands everything queued to the kernel. To be called before the event loop parks.
    pub fn submit(&self) {
        self.inner.borrow_mut().submit();
    }

    /// Completes the operations that the kernel has finished; how many. Costs a system call only
    /// when the kernel says that it has work to do first.
    pub fn reap(&self) -> usize {
        let mut completions = self.inner.borrow_mut().take_completions();
        let count = completions.len();
        for (number, result) in completions.drain(..) {
            if number == HELPER {
                self.reap_helper();
                continue;
            }
            let over = self.inner.borrow_mut().handle_completion(number, result);
            // Without the borrow: dropping the slot may close its file.
            if let Some((slot, outcome)) = over {
                slot.complete(outcome);
            }
        }
        self.inner.borrow_mut().completions = completions;
        count
    }

    /// Operations that were started and not yet completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.borrow().slots.len()
    }

    /// Whether a worker is at something that blocks: a flush, or a discard.
    pub(super) fn has_blocking_work(&self) -> bool {
        self.inner.borrow().blocking > 0
    }

    pub(super) fn channel(self: &Rc<Self>, file: Arc<OpenFile>) -> Box<dyn Channel> {
        let inner = &mut *self.inner.borrow_mut();
        let place = inner.free_places.pop().filter(|&place| {
            let registered = inner.ring.submitter().register_files_update(place, &[file.descriptor()]);
            registered.is_ok_and(|count| count == 1)
        });
        let file = Rc::new(RegisteredFile { file, place, engine: Rc::downgrade(self) });
        Box::new(UringChannel { engine: self.clone(), file })
    }

    fn reap_helper(&self) {
        let finished = {
            let inner = &mut *self.inner.borrow_mut();
            let Some(helper) = &mut inner.helper else { return };
            let finished = helper.pool.take_finished();
            helper.outstanding -= finished.len();
            if helper.outstanding > 0 {
                inner.backlog.push_back(HELPER);
            } else {
                helper.watched = false;
            }
            finished
        };
        for job in finished {
            let mut slot = self.inner.borrow_mut().slots.remove(job.number);
            slot.work = Some(job.work);
            self.inner.borrow_mut().blocking -= usize::from(slot.blocks());
            slot.complete(job.outcome);
        }
    }
}

impl AsRawFd for UringEngine {
    /// The ring: readable when there is something to reap.
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // The kernel reads and writes the slots' memory until it says that it is done.
        while self.in_flight() > 0 {
            self.inner.borrow_mut().wait();
            self.reap();
        }
    }
}

struct UringChannel {
    engine: Rc<UringEngine>,
    file: Rc<RegisteredFile>,
}

impl Channel for UringChannel {
    fn start(&self, work: Work) -> oneshot::Receiver<Finished> {
        let (done, finished) = oneshot::channel();
        let slot = Slot { work: Some(work), file: self.file.clone(), segments: Vec::new(), done };
        self.engine.inner.borrow_mut().start(slot);
        finished
    }
}

/// A file in the ring's table of files.
struct RegisteredFile {
    file: Arc<OpenFile>,
    /// Its place in the table; none when the table is full or missing.
    place: Option<u32>,
    engine: Weak<UringEngine>,
}

impl Drop for RegisteredFile {
    fn drop(&mut self) {
        // When the engine is being dropped, the table goes with it.
        let (Some(place), Some(engine)) = (self.place, self.engine.upgrade()) else { return };
        let inner = &mut *engine.inner.borrow_mut();
        // A place that can't be cleared is not used again.
        if inner.ring.submitter().register_files_update(place, &[-1]).is_ok() {
            inner.free_places.push(place);
        }
    }
}

/// An operation, from its start to its completion.
struct Slot {
    /// None while the helper has it.
    work: Option<Work>,
    file: Rc<RegisteredFile>,
    /// Points into `work`; the kernel may read it until the operation completes.
    segments: Vec<libc::iovec>,
    done: oneshot::Sender<Finished>,
}

impl Slot {
    /// The entry that does the rest of the operation.
    fn entry(&mut self) -> squeue::Entry {
        let file = &self.file;
        let (descriptor, flags) = match file.place {
            Some(place) => (types::Fd(place.cast_signed()), squeue::Flags::FIXED_FILE),
            None => (types::Fd(file.file.descriptor()), squeue::Flags::empty()),
        };
        let work = self.work.as_mut().expect("an operation on its way to the ring is not elsewhere");
        let position = work.position();
        work.segments(&mut self.segments);
        let count = u32::try_from(self.segments.len()).expect("the number of segments is limited");
        let entry = match (&*work, self.segments.as_slice()) {
            (Work::Read { .. }, [one, ..]) => {
                opcode::Read::new(descriptor, one.iov_base.cast(), length_of(one)).offset(position).build()
            }
            (Work::Write { .. }, [one]) => {
                opcode::Write::new(descriptor, one.iov_base.cast(), length_of(one)).offset(position).build()
            }
            (Work::Write { .. }, many) => {
                opcode::Writev::new(descriptor, many.as_ptr(), count).offset(position).build()
            }
            (Work::Discard { length, .. }, _) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(descriptor, *length).offset(position).mode(mode).build()
            }
            (Work::Flush, _) => opcode::Fsync::new(descriptor).flags(types::FsyncFlags::DATASYNC).build(),
            (Work::Read { .. }, []) => unreachable!("a read always has memory"),
        };
        entry.flags(flags)
    }

    /// Whether the kernel has a worker thread do it.
    fn blocks(&self) -> bool {
        matches!(self.work, Some(Work::Flush | Work::Discard { .. }))
    }

    fn complete(self, outcome: Result<(), super::DiskErrorKind>) {
        let work = self.work.expect("a completed operation is with nobody else");
        // The lock on a closed disk must be free by the time that its last operation completes.
        drop(self.file);
        // Nobody may be waiting any more; the operation is done all the same.
        let _ = self.done.send(work.finish(outcome));
    }
}

struct Inner {
    ring: IoUring,
    slots: Slab<Slot>,
    /// Slots to be handed to the kernel, in order.
    backlog: VecDeque<usize>,
    /// Entries that the kernel has or that lie in the submission queue.
    in_kernel: usize,
    most_in_kernel: usize,
    /// Operations started that a worker thread carries out.
    blocking: usize,
    free_places: Vec<u32>,
    /// Started when it is first needed.
    helper: Option<Helper>,
    /// Scratch of `reap`, kept for its memory.
    completions: Vec<(usize, i32)>,
}

/// A thread for the calls that io_uring lacks (the discard ioctl); the ring watches its event.
struct Helper {
    pool: Pool,
    outstanding: usize,
    /// Whether a poll of the event is in the ring or on its way there.
    watched: bool,
}

impl Inner {
    fn start(&mut self, slot: Slot) {
        let blocking = slot.file.file.discard == DiscardMethod::BlockDiscard;
        let discard = matches!(slot.work, Some(Work::Discard { .. }));
        self.blocking += usize::from(slot.blocks());
        let number = self.slots.insert(slot);
        if discard && blocking {
            self.start_on_helper(number);
            return;
        }
        self.backlog.push_back(number);
        if self.backlog.len() >= SUBMISSION_ENTRIES as usize {
            self.submit();
        }
    }

    fn start_on_helper(&mut self, number: usize) {
        if self.helper.is_none() {
            self.helper = Pool::start(1).ok().map(|pool| Helper { pool, outstanding: 0, watched: false });
        }
        let Some(helper) = &mut self.helper else {
            // No thread is to be had: a discard may be left undone.
            self.blocking -= 1;
            self.slots.remove(number).complete(Ok(()));
            return;
        };
        let slot = &mut self.slots[number];
        let work = slot.work.take().expect("a new operation is with nobody else");
        let file = slot.file.file.clone();
        helper.pool.push(Job { number, file, work, outcome: Ok(()) });
        helper.outstanding += 1;
        if !helper.watched {
            helper.watched = true;
            self.backlog.push_back(HELPER);
        }
    }

    fn submit(&mut self) {
        loop {
            self.fill();
            if self.ring.submission().is_empty() {
                return;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The kernel is short of memory or has completions to deliver first. Operations
                    // in flight will wake the event loop, which submits again.
                    Some(libc::EAGAIN | libc::EBUSY) if self.in_kernel > self.ring.submission().len() => {
                        return;
                    }
                    Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => panic!("the ring refuses to work: {error}"),
                },
            }
        }
    }

    /// Moves operations from the backlog to the submission queue as far as there is room.
    fn fill(&mut self) {
        while self.in_kernel < self.most_in_kernel && !self.ring.submission().is_full() {
            let Some(number) = self.backlog.pop_front() else { return };
            let entry = match &self.helper {
                Some(helper) if number == HELPER => {
                    opcode::PollAdd::new(types::Fd(helper.pool.event()), libc::POLLIN as u32).build()
                }
                _ => self.slots[number].entry(),
            };
            let entry = entry.user_data(number as u64);
            // SAFETY: the entry points into the slot's work and segments, which stay where they are
            // on the heap and alive until the entry's completion has been taken from the ring; the
            // descriptor stays open as long, by the slot's file.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            assert!(pushed.is_ok(), "the submission queue was not full");
            self.in_kernel += 1;
        }
    }

    /// Blocks until the kernel has finished something.
    fn wait(&mut self) {
        self.submit();
        if let Err(error) = self.ring.submit_and_wait(1) {
            let errno = error.raw_os_error();
            assert!(
                matches!(errno, Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)),
                "the ring refuses to wait: {error}"
            );
        }
    }

    fn take_completions(&mut self) -> Vec<(usize, i32)> {
        if self.ring.submission().taskrun() {
            // The kernel keeps finished work until this thread enters it. An error means that
            // nothing was done; the next turn comes here again.
            let _ = self.ring.submit();
        }
        let mut completions = std::mem::take(&mut self.completions);
        for entry in self.ring.completion() {
            let number = usize::try_from(entry.user_data()).expect("it was a usize");
            completions.push((number, entry.result()));
        }
        self.in_kernel -= completions.len();
        completions
    }

    /// Takes the result of one entry; the slot and its outcome if the operation is over.
    fn handle_completion(
        &mut self,
        number: usize,
        result: i32,
    ) -> Option<(Slot, Result<(), super::DiskErrorKind>)> {
        let work = self.slots[number].work.as_mut().expect("an operation in the ring is not elsewhere");
        let result = usize::try_from(result).map_err(|_| -result);
        match work.advance(result) {
            Progress::Again => {
                self.backlog.push_back(number);
                None
            }
            Progress::Done(outcome) => {
                let slot = self.slots.remove(number);
                self.blocking -= usize::from(slot.blocks());
                Some((slot, outcome))
            }
        }
    }
}

fn length_of(segment: &libc::iovec) -> u32 {
    u32::try_from(segment.iov_len).expect("the length of a transfer is limited")
}

/// The newest set-up that this kernel accepts.
fn build_ring() -> std::io::Result<IoUring> {
    let mut refusal = None;
    for setup in [Setup::Cooperative, Setup::Plain] {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(COMPLETION_ENTRIES);
        if setup == Setup::Cooperative {
            builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
        }
        match builder.build(SUBMISSION_ENTRIES) {
            Ok(ring) => return Ok(ring),
            // An unknown flag; anything else is not the flags' fault.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refusal.unwrap_or_else(|| std::io::Error::from_raw_os_error(libc::EINVAL)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// One thread submits, and completions wait until it enters the kernel anyway (Linux 6.0).
    Cooperative,
    /// What Linux 5.15 has.
    Plain,
}

/// Entries handed over in one system call.
const SUBMISSION_ENTRIES: u32 = 256;

/// Operations in the kernel at a time; the rest wait in the backlog.
const COMPLETION_ENTRIES: u32 = 4096;

/// Disks whose descriptors the ring keeps.
const FILE_PLACES: u32 = 64;

/// Threads that the kernel may start for what blocks: more than a node has disks.
const FLUSH_WORKERS: u32 = 32;

/// The entry that watches the helper's event, among the numbers of slots.
const HELPER: usize = usize::MAX;
