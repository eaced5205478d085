//! The words of an alert: what happened, what is safe, what to do.

use std::fmt::Write;

use serde::Serialize;

use super::watch::{News, Notice};
use crate::daemon::event_log::{Event, Severity as EventSeverity};
use crate::rpc::json::name;
use crate::rpc::management::{self, Attention, Health, Severity, Status};
use crate::rpc::size::show as show_size;
use crate::rpc::time::{show as show_time, show_duration};

/// Longest subject of a mail, in characters; what is longer is cut.
const LONGEST_SUBJECT: usize = 160;
/// Events that a message ends with.
const EVENTS: usize = 10;

/// A message to somebody who is told, as a mail or as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// The cluster's name.
    pub cluster: String,
    /// The node that sends it.
    pub node: String,
    /// When, in RFC 3339.
    pub time: String,
    /// The worst of it: `info`, `warning` or `error`.
    pub severity: String,
    /// One line.
    pub subject: String,
    /// All of it, for people.
    pub text: String,
    /// All of it, for programs.
    pub items: Vec<Item>,
}

/// One matter of a message.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// `begun`, `still` or `over`.
    pub news: &'static str,
    /// How bad: `info`, `warning` or `error`.
    pub severity: String,
    /// What kind of matter.
    pub kind: String,
    /// Which member or disk.
    pub about: String,
    /// The node whose it is.
    pub of_node: String,
    /// What is the matter.
    pub message: String,
    /// Why it is so: the events that led to it, oldest first.
    pub why: Vec<String>,
    /// What to do.
    pub action: String,
    /// For how long it has been so.
    pub lasted_seconds: u64,
}

/// Who speaks, and when.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: String,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

impl Sender {
    /// News. At least one is there.
    pub fn news(&self, notices: &[Notice], status: &Status, events: &[Event]) -> Message {
        let mut text = String::new();
        for notice in notices {
            let Notice { news, matter, lasted } = notice;
            let lasted = show_duration(lasted.as_secs());
            // Writing to a string does not fail.
            let _ = match news {
                News::Begun => writeln!(text, "{}: {}.", heading(matter), matter.message),
                News::Still => writeln!(text, "STILL, for {lasted}: {}.", matter.message),
                News::Over => writeln!(text, "OVER after {lasted}: {}.", matter.message),
            };
            if *news != News::Over {
                write_why(&mut text, matter);
                let _ = writeln!(text, "  What to do: {}.", matter.action);
            }
            text.push('\n');
        }
        let others = status.attention.iter().filter(|item| {
            item.severity() >= Severity::Warning
                && !notices.iter().any(|notice| is_same(&notice.matter, item))
        });
        for item in others {
            let _ = writeln!(text, "Also: {}.", item.message);
            write_why(&mut text, item);
            let _ = writeln!(text, "  What to do: {}.\n", item.action);
        }
        self.close(&mut text, status, events);
        let first = notices.first();
        let subject = first.map_or_else(String::new, |notice| match notice.news {
            News::Begun => format!("{}: {}", heading(&notice.matter), notice.matter.message),
            News::Still => format!("still: {}", notice.matter.message),
            News::Over => format!("over: {}", notice.matter.message),
        });
        let more =
            if notices.len() > 1 { format!(" (and {} more)", notices.len() - 1) } else { String::new() };
        let bad = notices.iter().filter(|notice| notice.news != News::Over);
        let severity = bad.map(|notice| notice.matter.severity()).max().unwrap_or(Severity::Info);
        let items = notices.iter().map(item).collect();
        self.message(severity, format!("{}{more}", cut(&subject)), text, items)
    }

    /// What is sent each day, whatever there is to say.
    pub fn summary(&self, status: &Status, events: &[Event]) -> Message {
        let health = name::<Health>(status.health);
        let mut text = format!("Health: {health}.\n\n");
        for matter in &status.attention {
            let _ = writeln!(text, "{}: {}.", heading(matter), matter.message);
            write_why(&mut text, matter);
            let _ = writeln!(text, "  What to do: {}.\n", matter.action);
        }
        for pool in &status.pools {
            let used = pool.used_bytes as f64 * 100.0 / pool.capacity_bytes.max(1) as f64;
            let _ = writeln!(
                text,
                "Pool of node {}: {used:.0} % of {} used.",
                pool.node,
                show_size(pool.capacity_bytes)
            );
        }
        let _ = writeln!(text, "Volumes: {}.\n", status.volumes.len());
        self.close(&mut text, status, events);
        let worst = status.attention.iter().map(Attention::severity).max().unwrap_or(Severity::Info);
        self.message(worst, format!("daily summary: {health}"), text, Vec::new())
    }

    /// What `gemel alert test` sends.
    pub fn test(&self) -> Message {
        let text = format!(
            "This is a test, sent by node {} of cluster {}. Alerts arrive here.\n",
            self.node, self.cluster
        );
        self.message(Severity::Info, "test: alerts arrive here".to_owned(), text, Vec::new())
    }

    fn close(&self, text: &mut String, status: &Status, events: &[Event]) {
        if !status.summary.is_empty() {
            let _ = writeln!(text, "What is safe: {}\n", status.summary);
        }
        let bad: Vec<&Event> = events.iter().filter(|event| event.severity != EventSeverity::Info).collect();
        if !bad.is_empty() {
            let _ = writeln!(text, "The newest warnings of node {}:", self.node);
            for event in &bad[bad.len().saturating_sub(EVENTS)..] {
                let _ = writeln!(text, "  {}  {}", show_time(event.time_ms), event.message);
            }
            text.push('\n');
        }
        let _ = writeln!(text, "To see more: gemel status; gemel event list");
    }

    fn message(&self, severity: Severity, subject: String, text: String, items: Vec<Item>) -> Message {
        Message {
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            time: show_time(self.now_ms),
            severity: name::<Severity>(severity.into()),
            subject: format!("[gemel {}] {subject}", self.cluster),
            text,
            items,
        }
    }
}

/// The events that led to it.
fn write_why(text: &mut String, matter: &Attention) {
    for event in &matter.why {
        let _ = writeln!(text, "  Why: {}.", event.line().trim_end_matches('.'));
    }
}

fn item(notice: &Notice) -> Item {
    let matter = &notice.matter;
    Item {
        news: match notice.news {
            News::Begun => "begun",
            News::Still => "still",
            News::Over => "over",
        },
        severity: name::<Severity>(matter.severity),
        kind: matter.kind.clone(),
        about: matter.about.clone(),
        of_node: matter.node.clone(),
        message: matter.message.clone(),
        why: matter.why.iter().map(management::Event::line).collect(),
        action: matter.action.clone(),
        lasted_seconds: notice.lasted.as_secs(),
    }
}

fn heading(matter: &Attention) -> &'static str {
    match matter.severity() {
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
        Severity::Info | Severity::Unspecified => "NOTE",
    }
}

fn is_same(one: &Attention, other: &Attention) -> bool {
    (&one.kind, &one.about, &one.node) == (&other.kind, &other.about, &other.node)
}

/// At most [`LONGEST_SUBJECT`] characters, on one line.
fn cut(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(LONGEST_SUBJECT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rpc::management;

    fn notice(news: News, severity: Severity, message: &str) -> Notice {
        let action = "start node b".to_owned();
        let (kind, message) = (message.to_owned(), message.to_owned());
        let event = management::Event {
            time: "03:12".into(),
            message: "node b is gone".into(),
            ..Default::default()
        };
        let why = vec![event];
        let matter =
            Attention { severity: severity.into(), kind, message, action, why, ..Attention::default() };
        Notice { news, matter, lasted: Duration::from_secs(90) }
    }

    fn sender() -> Sender {
        Sender { cluster: "main".into(), node: "a".into(), now_ms: 1_500 }
    }

    #[test]
    fn an_alert_says_what_happened_what_is_safe_and_what_to_do() {
        let summary = "Node a is alone: its loss stops everything.".to_owned();
        let other = Attention {
            severity: 2,
            kind: "k".into(),
            message: "a disk is gone".into(),
            ..Attention::default()
        };
        let status = Status { summary, attention: vec![other], ..Status::default() };
        let notices = [
            notice(News::Begun, Severity::Warning, "volume x: only node a has all data"),
            notice(News::Over, Severity::Error, "volume y: not served"),
        ];
        let message = sender().news(&notices, &status, &[]);
        assert_eq!(message.subject, "[gemel main] WARNING: volume x: only node a has all data (and 1 more)");
        assert_eq!(message.severity, "warning");
        for part in [
            "WARNING: volume x: only node a has all data.\n  Why: 03:12 node b is gone.\n  What to do: start node b.",
            "OVER after 1m: volume y: not served.",
            "Also: a disk is gone.",
            "What is safe: Node a is alone",
        ] {
            assert!(message.text.contains(part), "{part} in {}", message.text);
        }
        assert_eq!(message.items.iter().map(|item| item.news).collect::<Vec<_>>(), ["begun", "over"]);
    }

    #[test]
    fn a_subject_is_one_line_of_bounded_length() {
        let long = format!("é\r\nBcc: x{}", "é".repeat(500));
        let message = sender().news(&[notice(News::Still, Severity::Error, &long)], &Status::default(), &[]);
        assert!(!message.subject.contains(['\r', '\n']));
        assert!(message.subject.chars().count() < LONGEST_SUBJECT + 40);
    }
}
