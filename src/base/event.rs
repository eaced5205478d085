//! What an administrator must be able to read later: decisions and state changes, each with its reason.

use std::rc::Rc;

/// How urgent an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A change worth knowing.
    Info,
    /// Redundancy or space is reduced; nothing is lost and service goes on.
    Warning,
    /// Service or data is affected.
    Critical,
}

/// One entry for the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// How urgent.
    pub severity: Severity,
    /// Stable name of the kind of event, such as `disk-failed`.
    pub kind: &'static str,
    /// One sentence: what happened, what is safe, what to do.
    pub message: String,
}

/// Where layers below the daemon put their events.
pub type EventSink = Rc<dyn Fn(Event)>;

/// A sink for tests and tools that have no event log.
#[must_use]
pub fn discard() -> EventSink {
    Rc::new(|_| {})
}
