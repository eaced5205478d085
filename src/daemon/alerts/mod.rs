//! Tells people when something is the matter, and when it is over.
//!
//! Each node looks at its own status every few seconds. What concerns its own pool it tells itself; what concerns the
//! whole cluster is told by the first of the nodes, in the order of their names, that can be reached, so it is told
//! once, also when a node is gone; when the nodes cannot see each other, both tell. Who is told is a part of
//! the control state; what he has been told is in memory, so a node that restarts tells again what is still the matter.

mod deliver;
mod message;
mod watch;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use self::message::{Message, Sender};
use self::watch::Watch;
use super::control::{Control, Refusal, now_ms};
use super::event_log::{EventLog, EventReporter};
use crate::cluster::name::AlertName;
use crate::cluster::state::alert::{AlertTarget, Level};
use crate::rpc::management::{AlertTest, Severity, Status};

/// How often the status is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Messages that wait for one who cannot be reached; the oldest make room.
const MOST_WAITING: usize = 32;
/// When a delivery that failed is tried again, at first and at last.
const RETRY: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(600)];
/// Events that are looked through for those that a message ends with.
const EVENTS: usize = 200;
const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// The node's part in telling, shared with the management service.
pub struct Alerts {
    control: Arc<Control>,
    log: EventLog,
    events: EventReporter,
    // A lock because management calls may move between threads; held for copies only.
    deliveries: Mutex<BTreeMap<AlertName, Delivery>>,
}

/// How deliveries to somebody have gone.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    /// When the last one arrived, in milliseconds since 1970; 0 for never.
    pub delivered_ms: u64,
    /// Why there has been none since; empty when there has.
    pub trouble: String,
}

/// One who is told, with what he was told.
struct Told {
    target: AlertTarget,
    watch: Watch,
    waiting: VecDeque<Message>,
    is_being_delivered: bool,
    retry_at: Option<Instant>,
    retry_after: Duration,
}

type Everyone = Rc<RefCell<BTreeMap<AlertName, Told>>>;

impl Alerts {
    /// The alerts of a node.
    #[must_use]
    pub fn new(control: Arc<Control>, log: EventLog, events: EventReporter) -> Arc<Self> {
        Arc::new(Self { control, log, events, deliveries: Mutex::default() })
    }

    /// Watches and tells, for ever.
    pub async fn run(self: Arc<Self>) {
        let everyone = Everyone::default();
        let started = Instant::now();
        let mut looked_ms = now_ms();
        loop {
            tokio::time::sleep(LOOK).await;
            let targets = self
                .control
                .look(|state| state.alerts().map(|(name, target)| (name.clone(), target.clone())).collect());
            self.keep(&everyone, targets);
            let now = now_ms();
            // Without anybody to tell it costs nothing.
            if !everyone.borrow().is_empty()
                && let Ok(status) = self.control.status().await
            {
                self.look(&everyone, started.elapsed(), (looked_ms, now), &status);
            }
            looked_ms = now;
            self.send(&everyone);
        }
    }

    /// Sends a test to one, or to all.
    pub async fn test(&self, name: &str) -> Result<Vec<AlertTest>, Refusal> {
        let only: Option<AlertName> = if name.is_empty() { None } else { Some(name.parse()?) };
        let targets: Vec<_> = self.control.look(|state| {
            let wanted = state.alerts().filter(|(name, _)| only.as_ref().is_none_or(|only| only == *name));
            wanted.map(|(name, target)| (name.clone(), target.channel.clone())).collect()
        });
        if targets.is_empty() {
            return Err(Refusal::NotFound(match only {
                Some(name) => format!("there is no alert {name}: `gemel alert list` shows those that exist"),
                None => "nobody is told yet: `gemel alert add mail` or `gemel alert add webhook`".to_owned(),
            }));
        }
        let mut tests = Vec::new();
        for (name, channel) in targets {
            let tried = deliver::deliver(&channel, &self.sender().test()).await;
            let error = tried.err().map_or_else(String::new, |error| error.to_string());
            tests.push(AlertTest { name: name.to_string(), error });
        }
        Ok(tests)
    }

    /// How deliveries to somebody have gone.
    #[must_use]
    pub fn delivery(&self, name: &AlertName) -> Delivery {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned().unwrap_or_default()
    }

    /// Brings those who are told to what the state says.
    fn keep(&self, everyone: &Everyone, targets: BTreeMap<AlertName, AlertTarget>) {
        let mut everyone = everyone.borrow_mut();
        everyone.retain(|name, told| targets.get(name) == Some(&told.target));
        let mut deliveries = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        deliveries.retain(|name, _| targets.contains_key(name));
        for (name, target) in targets {
            everyone.entry(name).or_insert_with(|| Told {
                target,
                watch: Watch::default(),
                waiting: VecDeque::new(),
                is_being_delivered: false,
                retry_at: None,
                retry_after: RETRY[0],
            });
        }
    }

    /// Puts what is to be told behind what waits. `between` are the times of the last look and of this one.
    fn look(&self, everyone: &Everyone, now: Duration, between: (u64, u64), status: &Status) {
        let speaks_for_all = self.control.is_first_of_the_reachable();
        let own = self.control.node().as_str();
        let is_mine = |item: &crate::rpc::management::Attention| {
            item.node == own || (item.node.is_empty() && speaks_for_all)
        };
        for told in everyone.borrow_mut().values_mut() {
            let target = &told.target;
            let repeat = Some(target.repeat_hours).filter(|hours| *hours > 0);
            let repeat = repeat.map(|hours| Duration::from_secs(3600 * u64::from(hours)));
            let notices = told.watch.look(now, &status.attention, severity(target.least), repeat, is_mine);
            let mut messages = Vec::new();
            if !notices.is_empty() {
                messages.push(self.sender().news(&notices, status, &self.log.after(0, EVENTS)));
            }
            if target.summary_minute.is_some_and(|minute| has_come(minute, between)) {
                messages.push(self.sender().summary(status, &self.log.after(0, EVENTS)));
            }
            for message in messages {
                if told.waiting.len() >= MOST_WAITING {
                    told.waiting.pop_front();
                }
                told.waiting.push_back(message);
                // News are worth a try at once.
                told.retry_at = None;
            }
        }
    }

    /// Begins to deliver what waits, one message at a time to each.
    fn send(self: &Arc<Self>, everyone: &Everyone) {
        let now = Instant::now();
        for (name, told) in everyone.borrow_mut().iter_mut() {
            if told.is_being_delivered || told.retry_at.is_some_and(|at| at > now) {
                continue;
            }
            let Some(message) = told.waiting.front().cloned() else { continue };
            told.is_being_delivered = true;
            let (alerts, everyone, name) = (self.clone(), everyone.clone(), name.clone());
            let channel = told.target.channel.clone();
            tokio::task::spawn_local(async move {
                let tried = deliver::deliver(&channel, &message).await;
                alerts.delivered(&everyone, &name, &message, tried.err().map(|error| error.to_string()));
            });
        }
    }

    fn delivered(&self, everyone: &Everyone, name: &AlertName, message: &Message, error: Option<String>) {
        let mut deliveries = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        let delivery = deliveries.entry(name.clone()).or_default();
        let was_well = delivery.trouble.is_empty();
        match &error {
            None => *delivery = Delivery { delivered_ms: now_ms(), trouble: String::new() },
            Some(error) => delivery.trouble.clone_from(error),
        }
        drop(deliveries);
        match &error {
            Some(error) if was_well => {
                let text = format!("alert {name} cannot be delivered: {error}; it is tried again");
                self.events.warning("alert-not-delivered", text, &[]);
            }
            None if !was_well => {
                self.events.info("alert-delivered", format!("alert {name} is delivered again"), &[]);
            }
            _ => {}
        }
        let mut everyone = everyone.borrow_mut();
        // It may have been replaced meanwhile, and then knows nothing of this.
        let Some(told) = everyone.get_mut(name).filter(|told| told.is_being_delivered) else { return };
        told.is_being_delivered = false;
        if error.is_none() {
            told.retry_after = RETRY[0];
            if told.waiting.front() == Some(message) {
                told.waiting.pop_front();
            }
        } else {
            told.retry_at = Some(Instant::now() + told.retry_after);
            told.retry_after = (told.retry_after * 2).min(RETRY[1]);
        }
    }

    fn sender(&self) -> Sender {
        let cluster = self
            .control
            .look(|state| state.cluster().map_or_else(String::new, |cluster| cluster.name.to_string()));
        Sender { cluster, node: self.control.node().to_string(), now_ms: now_ms() }
    }
}

/// A level as messages have it.
#[must_use]
pub fn severity(level: Level) -> Severity {
    match level {
        Level::Info => Severity::Info,
        Level::Warning => Severity::Warning,
        Level::Error => Severity::Error,
    }
}

/// Whether that minute of the day began after the first of two times and not after the second.
fn has_come(minute: u32, (after, through): (u64, u64)) -> bool {
    let at = through / DAY_MS * DAY_MS + u64::from(minute) * MINUTE_MS;
    let latest = if at <= through { at } else { at.saturating_sub(DAY_MS) };
    after < latest && latest <= through
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_comes_once_a_day() {
        let day = 20_000 * DAY_MS;
        assert!(has_come(7 * 60, (day + 7 * 60 * MINUTE_MS - 1, day + 7 * 60 * MINUTE_MS)));
        assert!(!has_come(7 * 60, (day + 7 * 60 * MINUTE_MS, day + 7 * 60 * MINUTE_MS + 5000)));
        assert!(!has_come(7 * 60, (day, day + 5000)));
        assert!(has_come(0, (day - 1, day + 4000)));
        // A clock that is set back sends nothing, one that is set forward sends one.
        assert!(!has_come(7 * 60, (day + DAY_MS / 2, day)));
        assert!(has_come(7 * 60, (day, day + 3 * DAY_MS)));
    }
}
