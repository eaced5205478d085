//! Runs the disk engine inside the data thread's event loop.
//!
//! A disk operation wakes the driver task. It runs after the tasks that were ready before it, so what
//! they all have queued goes to the kernel in one call. While there is work about it looks for
//! completions, and lets the event loop look for network traffic, without sleeping: the wake-up of
//! an idle processor costs more than a short disk operation. It stops looking when nothing has come
//! for the configured time, and does not even start when work comes too rarely for that to pay, so
//! an idle node costs nothing. Nor does it look while another thread works for an operation (a flush)
//! or when it finds that others want its processor: whoever never sleeps runs last.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::base::buffer::AlignedBuf;
use crate::disk::{Disk, DiskFuture, DiskProperties, Engine};

/// Tells the driver that there is work.
#[derive(Clone, Default)]
pub struct Kick {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    waker: RefCell<Option<Waker>>,
    kicked: Cell<bool>,
}

impl Kick {
    /// There is something to submit, or to look out for.
    pub fn kick(&self) {
        if !self.shared.kicked.replace(true)
            && let Some(waker) = self.shared.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    fn take(&self) -> bool {
        self.shared.kicked.replace(false)
    }

    async fn kicked(&self) {
        poll_fn(|context| {
            if self.shared.kicked.get() {
                return Poll::Ready(());
            }
            *self.shared.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Drives `engine` until the task is dropped.
pub async fn drive(engine: Engine, kick: Kick, spin: Duration) -> std::io::Result<()> {
    // SAFETY: the descriptor is the engine's, which `Descriptor` holds a handle of: it stays open, and
    // the same, until the `AsyncFd` is dropped.
    let descriptor =
        unsafe { AsyncFd::register_with_interest(Descriptor(engine.clone()), Interest::READABLE)? };
    let mut pace = Pace::new(spin);
    loop {
        engine.submit();
        let reaped = engine.reap();
        if kick.take() || reaped > 0 {
            pace.work(Instant::now());
        }
        if !engine.needs_other_threads() && pace.is_worth_waiting_for(Instant::now()) {
            // The event loop looks at sockets and timers, without sleeping, and comes back.
            tokio::task::yield_now().await;
            continue;
        }
        pace.sleep();
        tokio::select! {
            biased;
            () = kick.kicked() => {}
            ready = descriptor.readable() => {
                let mut ready = ready?;
                // Cleared first: a completion that comes after this makes it ready again.
                ready.clear_ready();
            }
        }
    }
}

/// How often work comes, and whether the next is worth waiting for.
struct Pace {
    spin: Duration,
    last: Option<Instant>,
    /// Moving average of the time between two pieces of work.
    gap: Duration,
    /// The last look without a result, since the last sleep.
    looked: Option<Instant>,
    /// Others wanted the processor: no waiting before this.
    yielded_until: Option<Instant>,
}

impl Pace {
    fn new(spin: Duration) -> Self {
        Self { spin, last: None, gap: Duration::MAX, looked: None, yielded_until: None }
    }

    fn work(&mut self, now: Instant) {
        if self.spin.is_zero() {
            return;
        }
        if let Some(last) = self.last.replace(now) {
            // Bounded, so that a long pause is forgotten after a few quick pieces of work.
            let gap = now.duration_since(last).min(self.spin * 16);
            self.gap = (self.gap.min(self.spin * 16) * 7 + gap) / 8;
        }
    }

    /// Whether to look again instead of sleeping; asked after each look.
    fn is_worth_waiting_for(&mut self, now: Instant) -> bool {
        if self.looked.take().is_some_and(|looked| now.duration_since(looked) > PREEMPTED) {
            self.yielded_until = Some(now + YIELD);
        }
        let Some(last) = self.last else { return false };
        let worth = self.gap <= self.spin * 2
            && now.duration_since(last) < self.spin
            && self.yielded_until.is_none_or(|until| until <= now);
        self.looked = worth.then_some(now);
        worth
    }

    /// The time until the next look is slept away, not lost to others.
    fn sleep(&mut self) {
        self.looked = None;
    }
}

/// A turn that took longer had lost the processor to somebody, or had much to do: either way
/// looking is not what the time is needed for.
const PREEMPTED: Duration = Duration::from_millis(1);

/// How long nothing is waited for after that.
const YIELD: Duration = Duration::from_millis(50);

/// The engine as something to be polled.
struct Descriptor(Engine);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A disk whose operations wake the driver.
pub struct DrivenDisk {
    disk: Rc<dyn Disk>,
    kick: Kick,
}

impl DrivenDisk {
    /// `disk`, with the driver behind `kick`.
    #[must_use]
    pub fn new(disk: Rc<dyn Disk>, kick: Kick) -> Self {
        Self { disk, kick }
    }
}

impl Disk for DrivenDisk {
    fn properties(&self) -> &DiskProperties {
        self.disk.properties()
    }

    fn read(&self, offset: u64, buffer: AlignedBuf) -> DiskFuture<AlignedBuf> {
        self.kick.kick();
        self.disk.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> DiskFuture<()> {
        self.kick.kick();
        self.disk.write(offset, data)
    }

    fn flush(&self) -> DiskFuture<()> {
        self.kick.kick();
        self.disk.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> DiskFuture<()> {
        self.kick.kick();
        self.disk.discard(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN: Duration = Duration::from_micros(50);

    fn paced(gap: Duration, count: u32) -> (Pace, Instant) {
        let mut pace = Pace::new(SPIN);
        let start = Instant::now();
        let mut now = start;
        for _ in 0..count {
            now += gap;
            pace.work(now);
        }
        (pace, now)
    }

    #[test]
    fn waits_for_frequent_work_only_and_not_for_long() {
        let (mut pace, now) = paced(Duration::from_micros(20), 50);
        assert!(pace.is_worth_waiting_for(now + Duration::from_micros(30)));
        assert!(!pace.is_worth_waiting_for(now + Duration::from_micros(60)));
        let (mut pace, now) = paced(Duration::from_millis(1), 50);
        assert!(!pace.is_worth_waiting_for(now));
        assert!(!Pace::new(SPIN).is_worth_waiting_for(now));
    }

    #[test]
    fn frequent_work_is_recognised_soon_after_a_pause() {
        let (mut pace, mut now) = paced(Duration::from_micros(20), 50);
        now += Duration::from_secs(10);
        pace.work(now);
        assert!(!pace.is_worth_waiting_for(now));
        (0..10).for_each(|_| {
            now += Duration::from_micros(20);
            pace.work(now);
        });
        assert!(pace.is_worth_waiting_for(now));
    }

    #[test]
    fn leaves_the_processor_to_others_for_a_while() {
        let (mut pace, mut now) = paced(Duration::from_micros(20), 50);
        assert!(pace.is_worth_waiting_for(now));
        now += PREEMPTED * 2;
        pace.work(now);
        assert!(!pace.is_worth_waiting_for(now));
        now += YIELD;
        (0..20).for_each(|_| {
            now += Duration::from_micros(20);
            pace.work(now);
        });
        assert!(pace.is_worth_waiting_for(now));
    }

    #[test]
    fn a_sleep_is_not_taken_for_a_lost_processor() {
        let (mut pace, mut now) = paced(Duration::from_micros(20), 50);
        assert!(pace.is_worth_waiting_for(now));
        pace.sleep();
        now += PREEMPTED * 2;
        (0..20).for_each(|_| {
            now += Duration::from_micros(20);
            pace.work(now);
        });
        assert!(pace.is_worth_waiting_for(now));
    }

    #[test]
    fn a_spin_of_zero_never_waits() {
        let mut pace = Pace::new(Duration::ZERO);
        let now = Instant::now();
        pace.work(now);
        pace.work(now);
        assert!(!pace.is_worth_waiting_for(now));
    }
}
