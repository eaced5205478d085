//! What has happened on the node, for the administrator: a bounded log on disk and in memory.
//!
//! Any thread reports through an [`EventReporter`]; one task numbers events, saves them and wakes
//! those who follow. An event is in the process's log at once, and on disk soon after.
//! Every event has a kind, a word that never changes its meaning.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::state_directory::{StateDirectory, StateError};
use crate::rpc::management;

/// Events that may wait to be saved; more than that at once are only logged.
const QUEUE: usize = 1024;

/// How bad an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A change of state to know of.
    Info,
    /// Abnormal; service goes on.
    Warning,
    /// Service or redundancy is lost.
    Error,
}

/// One thing that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Place in the log, from 1 on, without gaps.
    pub sequence: u64,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// How bad it is.
    pub severity: Severity,
    /// Its kind: `disk-failed`.
    pub kind: String,
    /// What happened, for people.
    pub message: String,
    /// Facts behind it, by name.
    pub evidence: Vec<(String, String)>,
}

/// An event that nobody has numbered yet.
#[derive(Debug)]
pub struct Report {
    time: SystemTime,
    severity: Severity,
    kind: &'static str,
    message: String,
    evidence: Vec<(String, String)>,
}

/// Takes reports from any thread without waiting.
#[derive(Clone, Debug)]
pub struct EventReporter {
    queue: mpsc::Sender<Report>,
}

/// The log's memory, shared with those who read it.
#[derive(Clone)]
pub struct EventLog {
    // A lock because the management service runs its calls as tasks that may move between threads;
    // it is held for copies only.
    recent: Arc<Mutex<VecDeque<Event>>>,
    newest: watch::Receiver<u64>,
}

/// Numbers and saves events; to be [run](EventWriter::run) on the control thread.
pub struct EventWriter {
    queue: mpsc::Receiver<Report>,
    recent: Arc<Mutex<VecDeque<Event>>>,
    newest: watch::Sender<u64>,
    state: Arc<StateDirectory>,
    keep: usize,
}

/// Opens the log in the state directory, keeping `keep` events.
pub fn open(
    state: Arc<StateDirectory>,
    keep: usize,
) -> Result<(EventReporter, EventLog, EventWriter), StateError> {
    let mut recent = VecDeque::new();
    for (sequence, bytes) in state.events()? {
        // An event that this version can't read keeps its number and is not shown.
        match serde_json::from_slice::<Event>(&bytes) {
            Ok(event) => recent.push_back(event),
            Err(error) => tracing::warn!(sequence, %error, "unreadable event"),
        }
    }
    let last = recent.back().map_or(0, |event| event.sequence);
    let (newest, newest_receiver) = watch::channel(last);
    let (sender, queue) = mpsc::channel(QUEUE);
    let recent = Arc::new(Mutex::new(recent));
    let log = EventLog { recent: recent.clone(), newest: newest_receiver };
    Ok((EventReporter { queue: sender }, log, EventWriter { queue, recent, newest, state, keep }))
}

impl EventReporter {
    /// Reports something worth knowing.
    pub fn info(&self, kind: &'static str, message: String, evidence: &[(&str, String)]) {
        tracing::info!(kind, ?evidence, "{message}");
        self.report(Severity::Info, kind, message, evidence);
    }

    /// Reports something abnormal.
    pub fn warning(&self, kind: &'static str, message: String, evidence: &[(&str, String)]) {
        tracing::warn!(kind, ?evidence, "{message}");
        self.report(Severity::Warning, kind, message, evidence);
    }

    /// Reports a loss of service or redundancy.
    pub fn error(&self, kind: &'static str, message: String, evidence: &[(&str, String)]) {
        tracing::error!(kind, ?evidence, "{message}");
        self.report(Severity::Error, kind, message, evidence);
    }

    fn report(&self, severity: Severity, kind: &'static str, message: String, evidence: &[(&str, String)]) {
        let evidence = evidence.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let report = Report { time: SystemTime::now(), severity, kind, message, evidence };
        if self.queue.try_send(report).is_err() {
            tracing::warn!(kind, "too many events at once: one is only here, not in the event log");
        }
    }
}

impl EventLog {
    /// The newest `limit` events after the sequence number `after`, oldest first.
    #[must_use]
    pub fn after(&self, after: u64, limit: usize) -> Vec<Event> {
        let recent = lock(&self.recent);
        let from = recent.partition_point(|event| event.sequence <= after);
        recent.range(from.max(recent.len().saturating_sub(limit))..).cloned().collect()
    }

    /// Looks at events, the newest first, until it has seen enough.
    pub fn look_back(&self, mut look: impl FnMut(&Event) -> ControlFlow<()>) {
        let _ = lock(&self.recent).iter().rev().try_for_each(&mut look);
    }

    /// The newest sequence number, and changes of it.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }
}

impl EventWriter {
    /// Saves events until all reporters are gone.
    pub async fn run(mut self) {
        let mut reports = Vec::new();
        while self.queue.recv_many(&mut reports, QUEUE).await > 0 {
            if let Err(error) = self.write(reports.drain(..)) {
                tracing::error!(%error, "events cannot be saved");
            }
        }
    }

    fn write(&mut self, reports: impl Iterator<Item = Report>) -> Result<(), StateError> {
        let mut newest = *self.newest.borrow();
        let mut saved = Vec::new();
        let mut recent = lock(&self.recent);
        for report in reports {
            newest += 1;
            let event = report.numbered(newest);
            // Plain strings and numbers always have a JSON form.
            saved.push((newest, serde_json::to_vec(&event).unwrap_or_default()));
            recent.push_back(event);
        }
        let surplus = recent.len().saturating_sub(self.keep);
        recent.drain(..surplus);
        let oldest_kept = recent.front().map_or(0, |event| event.sequence);
        drop(recent);
        self.newest.send_replace(newest);
        self.state.append_events(&saved, oldest_kept)
    }
}

impl Report {
    fn numbered(self, sequence: u64) -> Event {
        let since_epoch = self.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Event {
            sequence,
            time_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            severity: self.severity,
            kind: self.kind.to_owned(),
            message: self.message,
            evidence: self.evidence,
        }
    }
}

impl From<Event> for management::Event {
    fn from(event: Event) -> Self {
        let severity = match event.severity {
            Severity::Info => management::Severity::Info,
            Severity::Warning => management::Severity::Warning,
            Severity::Error => management::Severity::Error,
        };
        Self {
            sequence: event.sequence,
            time_ms: event.time_ms,
            time: crate::rpc::time::show(event.time_ms),
            severity: severity.into(),
            kind: event.kind,
            message: event.message,
            evidence: event.evidence.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        }
    }
}

fn lock(recent: &Mutex<VecDeque<Event>>) -> std::sync::MutexGuard<'_, VecDeque<Event>> {
    // Consistent between any two statements, so a panic elsewhere spoils nothing.
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on(task: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(task);
    }

    fn run(directory: &std::path::Path, keep: usize, kinds: &[&'static str]) -> Vec<Event> {
        let state = Arc::new(StateDirectory::open(directory).unwrap());
        let (reporter, log, writer) = open(state, keep).unwrap();
        for kind in kinds {
            reporter.warning(kind, "it happened".to_owned(), &[("errno", "5".to_owned())]);
        }
        drop(reporter);
        block_on(writer.run());
        log.after(0, usize::MAX)
    }

    #[test]
    fn events_are_numbered_bounded_and_kept_over_a_restart() {
        let place = tempfile::tempdir().unwrap();
        let first = run(place.path(), 3, &["a", "b"]);
        assert_eq!(first.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 2]);
        let second = run(place.path(), 3, &["c", "d"]);
        let seen: Vec<_> = second.iter().map(|event| (event.sequence, event.kind.as_str())).collect();
        assert_eq!(seen, [(2, "b"), (3, "c"), (4, "d")]);
        assert_eq!(run(place.path(), 3, &[]), second);
    }

    #[test]
    fn readers_go_on_where_they_were() {
        let place = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDirectory::open(place.path()).unwrap());
        let (reporter, log, writer) = open(state, 100).unwrap();
        (0..5).for_each(|_| reporter.info("tick", String::new(), &[]));
        drop(reporter);
        block_on(writer.run());
        let numbers = |events: Vec<Event>| events.iter().map(|event| event.sequence).collect::<Vec<_>>();
        assert_eq!(numbers(log.after(3, 10)), [4, 5]);
        assert_eq!(numbers(log.after(0, 2)), [4, 5]);
        assert!(log.after(5, 10).is_empty());
        assert_eq!(*log.newest().borrow(), 5);
    }
}
