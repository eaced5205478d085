//! The scrub of a node's pool: segment by segment through the whole pool, on a schedule or when asked, slowly enough
//! that hosts do not notice, resumed after a restart.
//!
//! Left to the store: what scrubbing a segment is (`store::scrub`). Left to the pair: blocks that parity can't give
//! back.

use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use super::disk_book::{DiskBook, ScrubPages};
use crate::array::SegmentIndex;
use crate::daemon::event_log::EventReporter;
use crate::store::{ScrubReport, Store};

/// Scrubs a pool.
pub struct Scrubber {
    store: Store,
    book: Rc<DiskBook>,
    events: EventReporter,
    /// How often by itself; never without it.
    interval: Option<Duration>,
    wake: Notify,
}

impl Scrubber {
    /// A scrubber that goes on where the book says.
    pub fn new(
        store: Store,
        book: Rc<DiskBook>,
        events: EventReporter,
        interval: Option<Duration>,
    ) -> Rc<Self> {
        Rc::new(Self { store, book, events, interval, wake: Notify::new() })
    }

    /// Begins a scrub, unless one is under way.
    pub async fn start(&self) -> Result<(), String> {
        let begin = |scrub: &mut ScrubPages| {
            if !scrub.is_running {
                let ScrubPages { finished_unix_ms, first_seen_unix_ms, .. } = *scrub;
                *scrub = ScrubPages {
                    is_running: true,
                    started_unix_ms: Some(now_ms()),
                    finished_unix_ms,
                    first_seen_unix_ms,
                    ..ScrubPages::default()
                };
            }
        };
        self.book.change(|pages| begin(&mut pages.scrub)).await?;
        self.wake.notify_one();
        Ok(())
    }

    /// Ends the one that is under way; what it has found stands.
    pub async fn stop(&self) -> Result<(), String> {
        self.book.change(|pages| pages.scrub.is_running = false).await
    }

    /// Scrubs whenever it is due, for as long as the pool serves.
    pub async fn run(self: Rc<Self>) {
        while !self.store.is_offline() {
            let worked = if self.book.pages().scrub.is_running {
                self.scrub_some().await
            } else {
                self.wait_until_due().await
            };
            if let Err(error) = worked {
                // It is tried again: what it says is seen in the status, and nothing depends on it.
                tracing::warn!(error, "the scrub cannot go on for now");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn wait_until_due(&self) -> Result<(), String> {
        let scrub = self.book.pages().scrub;
        let Some(interval) = self.interval else {
            self.wake.notified().await;
            return Ok(());
        };
        let Some(since) = scrub.started_unix_ms.or(scrub.first_seen_unix_ms) else {
            return self.book.change(|pages| pages.scrub.first_seen_unix_ms = Some(now_ms())).await;
        };
        let passed = Duration::from_millis(now_ms().saturating_sub(since));
        if passed >= interval {
            return self.start().await;
        }
        // Looked at now and then, as clocks are set.
        let wait = (interval - passed).min(LONGEST_WAIT);
        let _ = tokio::time::timeout(wait, self.wake.notified()).await;
        Ok(())
    }

    /// Scrubs until it is time to write down how far it is.
    async fn scrub_some(&self) -> Result<(), String> {
        let mut next = self.book.pages().scrub.next_segment;
        let count = self.store.array().geometry().segment_count;
        let (mut report, began) = (ScrubReport::default(), tokio::time::Instant::now());
        while next < count && began.elapsed() < SAVE_AFTER && self.book.pages().scrub.is_running {
            let work = tokio::time::Instant::now();
            let found = self.store.scrub_segment(SegmentIndex(next)).await;
            report.add(found.map_err(|error| error.to_string())?);
            next += 1;
            if next == count && (report.needs_checkpoint || self.book.pages().scrub.needs_checkpoint) {
                // A restart must not need what nobody can read any more.
                self.store.renew_checkpoint().await.map_err(|error| error.to_string())?;
            }
            tokio::time::sleep((work.elapsed() * PAUSES).min(LONGEST_PAUSE)).await;
        }
        self.book
            .change(|pages| {
                let scrub = &mut pages.scrub;
                scrub.next_segment = next;
                scrub.checked_blocks += report.checked_blocks;
                scrub.found += report.found;
                scrub.repaired += report.repaired;
                scrub.unrecoverable += report.unrecoverable.len() as u64;
                scrub.needs_checkpoint |= report.needs_checkpoint;
                for (volume, address) in &report.unrecoverable {
                    if scrub.first_unrecoverable.len() < MOST_NAMED {
                        scrub.first_unrecoverable.push((volume.0, address.0));
                    }
                }
                if next >= count {
                    scrub.is_running = false;
                    scrub.finished_unix_ms = Some(now_ms());
                }
            })
            .await?;
        if next >= count {
            self.tell_the_end();
        }
        Ok(())
    }

    fn tell_the_end(&self) {
        let scrub = self.book.pages().scrub;
        let message = format!(
            "the scrub of the pool has ended: {} blocks looked at, {} damaged, {} repaired, {} beyond what parity gives back",
            scrub.checked_blocks, scrub.found, scrub.repaired, scrub.unrecoverable
        );
        match scrub.found {
            0 => self.events.info("scrub-finished", message, &[]),
            _ => self.events.warning("scrub-finished", message, &[]),
        }
    }
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Time that passes idly for each of work.
const PAUSES: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often it is written down how far the scrub is.
const SAVE_AFTER: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Most blocks that are named.
const MOST_NAMED: usize = 32;
