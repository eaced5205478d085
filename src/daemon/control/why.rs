//! Why something is the matter: the decisions and losses that led to it, from the node's event log.

use std::ops::ControlFlow;

use super::Control;
use super::attention::Kind;
use crate::daemon::engine::PoolReport;
use crate::daemon::event_log::{Event as LoggedEvent, EventLog};
use crate::rpc::management::{Attention, Event};

/// Events that explain a matter, at most one of a kind.
const MOST: usize = 3;

impl Control {
    /// Says of each matter why it is so, where nobody has said it yet.
    pub(super) fn explain(&self, matters: &mut [Attention], pool: &PoolReport) {
        for matter in matters.iter_mut().filter(|matter| matter.why.is_empty()) {
            // Events of disks name them by their path.
            let disk = pool.disks.iter().find(|disk| disk.id == matter.about).map_or("", |disk| &disk.path);
            if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == matter.kind) {
                matter.why = self.why(kind, &[&matter.about, disk]);
            }
        }
    }

    /// The newest events that led to a matter of this kind, oldest first. They are about one of `subjects`: names of volumes or
    /// members, identities of disks; about anything when there are none.
    pub(super) fn why(&self, kind: Kind, subjects: &[&str]) -> Vec<Event> {
        let subjects: Vec<&str> = subjects.iter().copied().filter(|subject| !subject.is_empty()).collect();
        causes(&self.log, kind, &subjects)
    }
}

fn causes(log: &EventLog, kind: Kind, subjects: &[&str]) -> Vec<Event> {
    let (causes, ends) = kind.events();
    let mut found: Vec<Event> = Vec::new();
    log.look_back(|event| {
        let is_about = subjects.is_empty() || subjects.iter().any(|subject| names(event, subject));
        if is_about && ends.contains(&event.kind.as_str()) {
            return ControlFlow::Break(());
        }
        let is_new = || found.iter().all(|known| known.kind != event.kind);
        if is_about && causes.contains(&event.kind.as_str()) && is_new() {
            found.push(event.clone().into());
        }
        if found.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found.reverse();
    found
}

/// Whether an event is about something: says so in its evidence, or in words.
fn names(event: &LoggedEvent, subject: &str) -> bool {
    let is_end = |character: char| character.is_whitespace() || ":,;()".contains(character);
    event.evidence.iter().any(|(_, value)| value == subject)
        || event.message.split(is_end).any(|word| word == subject)
}

impl Kind {
    /// Whether events of this kind lead to such a matter.
    pub(super) fn is_led_to_by(self, event: &str) -> bool {
        self.events().0.contains(&event)
    }

    /// Kinds of events that lead to a matter of this kind, and those that end it: what is older has nothing to do with it.
    fn events(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::NotServed | Self::NotRedundant => (
                &[
                    "volume-offline",
                    "volume-stopped",
                    "volume-solo",
                    "volume-taken-over",
                    "volume-yielded",
                    "volume-forced",
                    "member-lost",
                    "member-refused",
                ],
                &["volume-in-sync"],
            ),
            Self::MemberUnreachable | Self::NoMajority => {
                (&["member-lost", "member-refused"], &["member-reached"])
            }
            Self::NoVote | Self::VoteLost => (&["member-reached", "member-replaced"], &[]),
            Self::Maintenance => (&["node-maintenance"], &[]),
            Self::StartedAfterStop => (&["volume-stopped", "volume-started"], &[]),
            Self::DiskOutOfService => (
                &["disk-failed", "disk-missing", "disk-failed-by-administrator", "disk-unused"],
                &["disk-rebuilt"],
            ),
            Self::DiskFailing => (&["disk-failing"], &["disk-well"]),
            Self::PoolOffline => (&["pool-offline", "disk-failed", "disk-missing"], &[]),
            Self::DataUnrecoverable => (&["scrub-finished"], &[]),
            Self::PoolFilling => (&["pool-filling"], &["pool-space-back"]),
            Self::OnBattery => (&["power-lost", "power-low"], &["power-back"]),
            Self::UpsSilent => (&["ups-silent"], &[]),
            Self::HostsMayHoldStill => (&["snapshot-command-failed"], &[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::daemon::event_log::{self, EventReporter};
    use crate::daemon::state_directory::StateDirectory;

    fn log_of(report: impl FnOnce(&EventReporter)) -> EventLog {
        let place = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDirectory::open(place.path()).unwrap());
        let (reporter, log, writer) = event_log::open(state, 100).unwrap();
        report(&reporter);
        drop(reporter);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(writer.run());
        log
    }

    fn kinds(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.kind.as_str()).collect()
    }

    #[test]
    fn the_newest_events_about_it_explain_a_matter() {
        let of = |name: &str| [("volume", name.to_owned())];
        let log = log_of(|events| {
            events.warning("volume-solo", "volume x: long ago".into(), &of("x"));
            events.info("volume-in-sync", "volume x: it is on both nodes again".into(), &of("x"));
            events.warning("member-lost", "node b cannot be reached".into(), &[("member", "b".into())]);
            events.warning("volume-solo", "volume y: of another one".into(), &of("y"));
            events.warning("volume-solo", "volume x: node a goes on alone".into(), &of("x"));
            events.info("sign-in", "anne".into(), &[]);
        });
        let why = causes(&log, Kind::NotRedundant, &["x", "b"]);
        assert_eq!(kinds(&why), ["member-lost", "volume-solo"]);
        assert_eq!(why[1].message, "volume x: node a goes on alone");
        assert_eq!(kinds(&causes(&log, Kind::MemberUnreachable, &["b"])), ["member-lost"]);
        assert!(causes(&log, Kind::MemberUnreachable, &["c"]).is_empty());
    }

    #[test]
    fn an_event_is_about_what_its_words_name() {
        let log = log_of(|events| {
            events.warning("disk-failed", "disk 1 (/dev/sdb) failed: EIO".into(), &[]);
            events.warning("disk-failed", "disk 2 (/dev/sdbb) failed: EIO".into(), &[]);
        });
        let why = causes(&log, Kind::DiskOutOfService, &["/dev/sdb"]);
        assert_eq!(why.len(), 1);
        assert!(why[0].message.starts_with("disk 1 "));
    }

    #[test]
    fn what_ends_a_matter_does_not_lead_to_it() {
        for kind in Kind::ALL {
            let (causes, ends) = kind.events();
            assert!(!causes.is_empty() && causes.iter().all(|cause| !ends.contains(cause)), "{kind:?}");
        }
    }
}
