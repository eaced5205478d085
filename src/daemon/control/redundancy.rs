//! What protects the volumes, in plain words: what is at risk, what heals by itself and when, and what a person must
//! do.

use std::collections::BTreeMap;

use super::Control;
use super::attention::Kind;
use super::decisions::last_decision;
use crate::base::units::BLOCK_SIZE;
use crate::cluster::name::NodeName;
use crate::cluster::state::ControlState;
use crate::cluster::state::volume::{Redundancy, VolumeRecord};
use crate::daemon::engine::{EngineReport, VolumeReport};
use crate::mirror::ResyncProgress;
use crate::rpc::management::{Attention, Resync, Severity, VolumeState, WitnessState};
use crate::rpc::size::show as show_size;
use crate::rpc::time::show_duration;

/// What is the matter with a volume. Volumes of which the same is true are named together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Condition {
    severity: Severity,
    kind: Kind,
    /// The node that is missing or behind.
    about: String,
    /// With `{}` for the volumes.
    message: String,
    action: String,
}

impl Control {
    /// What is the matter with volumes, and what to do.
    pub(super) fn attention_to_volumes(&self, state: &ControlState, report: &EngineReport) -> Vec<Attention> {
        let mut conditions: BTreeMap<Condition, Vec<&VolumeRecord>> = BTreeMap::new();
        for record in state.volumes() {
            for condition in self.condition(state, record, report).into_iter().chain(self.was_stopped(record))
            {
                conditions.entry(condition).or_default().push(record);
            }
        }
        let item = |(condition, records): (Condition, Vec<&VolumeRecord>)| {
            let names: Vec<String> = records.iter().map(|record| record.name.to_string()).collect();
            let volumes = list(&names);
            let first = names.first().map_or("", String::as_str);
            let message = condition.message.replace("{}", &volumes);
            let action = condition.action.replace("{}", &volumes).replace("{first}", first);
            let subjects: Vec<&str> =
                names.iter().map(String::as_str).chain([condition.about.as_str()]).collect();
            let mut why = self.why(condition.kind, &subjects);
            // A node that was away knows from the control state alone what was decided meanwhile.
            if let Some(decision) = records.first().and_then(|record| last_decision(record))
                && condition.kind.is_led_to_by(&decision.kind)
                && !why.iter().any(|event| event.kind == decision.kind)
            {
                why.push(decision);
            }
            Attention { why, ..condition.kind.item(condition.severity, &condition.about, message, action) }
        };
        conditions.into_iter().map(item).collect()
    }

    /// That a volume was started after a stop on purpose, for a while.
    fn was_stopped(&self, record: &VolumeRecord) -> Option<Condition> {
        // The epoch after it is that in which a node went on alone, or both are in sync again.
        let is_recent = record.started_in > 0 && record.epoch <= record.started_in + 2;
        (is_recent && self.started.elapsed() < STOP_IS_NEWS).then(|| Condition {
            severity: Severity::Info,
            kind: Kind::StartedAfterStop,
            about: String::new(),
            message: format!(
                "{{}}: started by node {} after a stop on purpose, both replicas the same",
                record.primary
            ),
            action: "nothing".to_owned(),
        })
    }

    fn condition(
        &self,
        state: &ControlState,
        record: &VolumeRecord,
        report: &EngineReport,
    ) -> Option<Condition> {
        let (served, volume_state) = (report.volume(record.id), self.volume_state(record, report));
        let primary = &record.primary;
        let other = state.nodes().map(|(name, _)| name).find(|name| *name != primary);
        let condition = |severity: Severity, kind, message: String, action: String| {
            let about = other.map_or_else(String::new, ToString::to_string);
            Some(Condition { severity, kind, about, message, action })
        };
        match (volume_state, record.redundancy) {
            (VolumeState::Offline, _) => {
                let (message, action) = self.why_offline(record, served, other);
                condition(Severity::Error, Kind::NotServed, format!("{{}}: not served; {message}"), action)
            }
            (_, Redundancy::Local) => None,
            _ if record.in_sync.len() == 2 => None,
            _ => {
                let other = other?;
                let keep = format!("until then node {primary} must not be switched off");
                let progress = served.and_then(|served| served.part.as_ref()?.resync.as_ref()).map(resync);
                let refused = refused_mirror(report, primary, &self.node);
                let (message, action) = match (progress, refused) {
                    (Some(progress), _) => (
                        format!("{{}}: node {other} is being brought up to date, {}", show(&progress)),
                        format!("nothing: it heals by itself; {keep}"),
                    ),
                    (None, Some(reason)) if self.is_reachable(other) => (
                        format!(
                            "{{}}: only node {primary} has all data, as node {other} and it refuse each other's mirrors \
                             ({reason})"
                        ),
                        format!(
                            "make the two fit as the reason says: node {other} is brought up to date by itself then; {keep}"
                        ),
                    ),
                    (None, _) if self.is_reachable(other) => (
                        format!("{{}}: only node {primary} has all data"),
                        format!("nothing: node {other} is brought up to date by itself; {keep}"),
                    ),
                    (None, _) => (
                        format!("{{}}: only node {primary} has all data, node {other} cannot be reached"),
                        format!(
                            "start node {other}, or mend the network to it: it is brought up to date by itself; {keep}"
                        ),
                    ),
                };
                condition(Severity::Warning, Kind::NotRedundant, message, action)
            }
        }
    }

    /// Why a volume is not served, and what to do.
    fn why_offline(
        &self,
        record: &VolumeRecord,
        served: Option<&VolumeReport>,
        other: Option<&NodeName>,
    ) -> (String, String) {
        let primary = &record.primary;
        let force = |lacking: &NodeName| {
            format!(
                "only if that cannot be had back for good: gemel force primary {{first}} --on {lacking}, which gives up \
                 the writes that node {lacking} lacks"
            )
        };
        if record.is_certified() {
            return (
                "it was stopped on purpose, the same on both nodes".to_owned(),
                "start a node, or wait until the one that is there starts it".to_owned(),
            );
        }
        let has_majority = self.machine.quorum().is_none_or(|quorum| quorum.status().view.has_majority());
        if let Some(problem) = served.and_then(|served| served.part.as_ref()?.problem.clone()) {
            let action = format!("see `gemel event list`; {}", force(&self.node));
            return (format!("node {} cannot serve it: {problem}", self.node), action);
        }
        if record.redundancy == Redundancy::Local && *primary != self.node {
            let message = format!("it is on node {primary} alone, which cannot be reached");
            return (message, format!("bring node {primary} back"));
        }
        if !has_majority {
            return (
                "this node cannot reach the others, and two of three are needed to decide who serves"
                    .to_owned(),
                "bring the other node or the witness back, or the network to them: service goes on by itself"
                    .to_owned(),
            );
        }
        if record.in_sync.len() == 1 && !self.is_reachable(primary) {
            let message = format!(
                "node {primary}, which cannot be reached, is the only one that has all that was acknowledged"
            );
            let lacking = other.unwrap_or(&self.node);
            let action = format!("bring node {primary} back: it then serves by itself; {}", force(lacking));
            return (message, action);
        }
        (
            "a node is about to serve it".to_owned(),
            "wait some seconds; if this stays, see `gemel event list`".to_owned(),
        )
    }

    /// What the next loss would do.
    pub(super) fn next_loss(&self, state: &ControlState, report: &EngineReport) -> String {
        let Some(witness) = self.witness() else { return String::new() };
        let others: Vec<&NodeName> =
            state.nodes().map(|(name, _)| name).filter(|name| **name != self.node).collect();
        let [other] = others.as_slice() else { return String::new() };
        let mirrored = || state.volumes().filter(|record| record.redundancy == Redundancy::Mirrored);
        if mirrored().any(|record| self.is_offline(record, report)) {
            return "Service is lost in part: see above what to do.".to_owned();
        }
        let is_on_both = mirrored().all(|record| record.in_sync.len() == 2);
        let has_witness = witness.state() == WitnessState::Up;
        match (self.is_reachable(other), is_on_both, has_witness) {
            (true, true, true) => {
                "Every mirrored volume is on both nodes: the loss of a node, or of the witness, stops nothing."
                    .to_owned()
            }
            (true, true, false) => {
                "Every mirrored volume is on both nodes, but without the witness the loss of a node stops service until \
                 the witness or that node is back."
                    .to_owned()
            }
            (true, false, _) => "Some volumes have all data on one node alone: its loss stops them until it is \
                                 back. The loss of the other node or of the witness stops nothing."
                .to_owned(),
            (false, _, true) => format!(
                "Node {} is alone: its loss stops everything until it is back. The loss of the witness stops nothing.",
                self.node
            ),
            (false, _, false) => format!(
                "Node {} is alone and cannot restart service by itself if it stops: node {other} or the witness has to \
                 be back before.",
                self.node
            ),
        }
    }
}

/// Why this node's mirrors are refused, when it is the one that serves.
fn refused_mirror<'a>(report: &'a EngineReport, primary: &NodeName, own: &NodeName) -> Option<&'a str> {
    let mirror = report.mirror.as_ref().filter(|mirror| mirror.is_refused && primary == own)?;
    Some(&mirror.reason)
}

/// A resync as a message.
pub(super) fn resync(progress: &ResyncProgress) -> Resync {
    let bytes = |blocks: u64| blocks * BLOCK_SIZE as u64;
    let (to_copy_bytes, copied_bytes) = (bytes(progress.to_copy_blocks), bytes(progress.copied_blocks));
    let remaining = to_copy_bytes.saturating_sub(copied_bytes);
    Resync {
        to_copy_bytes,
        copied_bytes,
        bytes_per_second: progress.bytes_per_second,
        remaining_seconds: remaining.checked_div(progress.bytes_per_second),
    }
}

/// A resync in words.
fn show(progress: &Resync) -> String {
    let percent = (copied_of(progress.copied_bytes, progress.to_copy_bytes) * 100.0) as u64;
    let of = format!("{percent} % of {}", show_size(progress.to_copy_bytes));
    match progress.remaining_seconds {
        Some(seconds) => {
            format!(
                "{of} at {}/s, about {} left",
                show_size(progress.bytes_per_second),
                show_duration(seconds)
            )
        }
        None => of,
    }
}

fn copied_of(copied: u64, all: u64) -> f64 {
    if all == 0 { 1.0 } else { (copied as f64 / all as f64).min(1.0) }
}

/// Names of volumes in a sentence.
pub(super) fn list(names: &[String]) -> String {
    match names {
        [one] => format!("volume {one}"),
        few if few.len() <= MOST_NAMED => format!("volumes {}", few.join(", ")),
        many => {
            let (named, more) = (&many[..MOST_NAMED], many.len() - MOST_NAMED);
            format!("volumes {} and {more} more", named.join(", "))
        }
    }
}

/// How long after its start a node says that it followed a stop on purpose.
const STOP_IS_NEWS: std::time::Duration = std::time::Duration::from_secs(3600);

/// Volumes that a message names.
const MOST_NAMED: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_named_together() {
        let names = |count: usize| (1..=count).map(|number| format!("v{number}")).collect::<Vec<_>>();
        assert_eq!(list(&names(1)), "volume v1");
        assert_eq!(list(&names(2)), "volumes v1, v2");
        assert_eq!(list(&names(7)), "volumes v1, v2, v3, v4, v5 and 2 more");
    }

    #[test]
    fn a_resync_is_shown_with_its_end() {
        let progress = |copied_blocks, bytes_per_second| ResyncProgress {
            to_copy_blocks: 262_144,
            copied_blocks,
            bytes_per_second,
            ..ResyncProgress::default()
        };
        assert_eq!(show(&resync(&progress(0, 0))), "0 % of 1G");
        let shown = show(&resync(&progress(131_072, 8 << 20)));
        assert_eq!(shown, "50 % of 1G at 8M/s, about 1m left");
    }
}
