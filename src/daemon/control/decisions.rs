//! Why each volume is served by whom: every epoch that begins becomes an event, with the reason that was given for it; so does
//! the end of an upgrade, when all go over to a newer format.

use std::collections::BTreeMap;

use super::Control;
use crate::base::units::VolumeId;
use crate::cluster::state::ControlState;
use crate::cluster::state::volume::{Transition, VolumeRecord};
use crate::rpc::management as messages;

/// Epochs that have been told of.
#[derive(Default)]
pub(super) struct Told {
    epochs: BTreeMap<VolumeId, u32>,
    format: u32,
    has_begun: bool,
}

impl Control {
    /// Reports the epochs that have begun since the last call. What was so before the first call is not news.
    pub(super) fn tell_decisions(&self, state: &ControlState, told: &mut Told) {
        let format = state.format();
        if told.has_begun && told.format < format {
            let message = format!(
                "all members know format {format} of the control state, and have gone over to it: older releases are refused \
                 from now on"
            );
            self.events.info("format-raised", message, &[("format", format.to_string())]);
        }
        told.format = format;
        for record in state.volumes() {
            let before = told.epochs.insert(record.id, record.epoch);
            let is_news = match before {
                Some(before) => before < record.epoch,
                None => told.has_begun,
            };
            if is_news && record.epoch > 0 {
                self.tell(record, before.unwrap_or(0));
            }
        }
        told.epochs.retain(|id, _| state.volume_by_id(*id).is_some());
        told.has_begun = true;
    }

    fn tell(&self, record: &VolumeRecord, before: u32) {
        let Some(decision) = Decision::of(record) else { return };
        let message = decision.message(record);
        let in_sync: Vec<&str> = record.in_sync.iter().map(|node| node.as_str()).collect();
        let mut evidence = vec![
            ("volume", record.name.to_string()),
            ("epoch", record.epoch.to_string()),
            ("primary", record.primary.to_string()),
            ("in_sync", in_sync.join(" ")),
        ];
        if record.epoch > before + 1 {
            evidence.push(("epoch_seen_before", before.to_string()));
        }
        match decision.is_abnormal {
            true => self.events.warning(decision.kind, message, &evidence),
            false => self.events.info(decision.kind, message, &evidence),
        }
    }
}

/// What was decided last for a volume, as an event that this node may have missed: without time and number.
pub(super) fn last_decision(record: &VolumeRecord) -> Option<messages::Event> {
    let decision = Decision::of(record)?;
    let message = decision.message(record);
    let severity = if decision.is_abnormal { messages::Severity::Warning } else { messages::Severity::Info };
    let evidence = vec![format!("volume={}", record.name), format!("epoch={}", record.epoch)];
    let (kind, severity) = (decision.kind.to_owned(), severity.into());
    Some(messages::Event { kind, severity, message, evidence, ..messages::Event::default() })
}

/// An epoch in words.
struct Decision {
    kind: &'static str,
    is_abnormal: bool,
    what: String,
}

impl Decision {
    fn message(&self, record: &VolumeRecord) -> String {
        let message = format!("volume {}: {}", record.name, self.what);
        if record.reason.is_empty() { message } else { format!("{message}: {}", record.reason) }
    }

    fn of(record: &VolumeRecord) -> Option<Self> {
        let primary = &record.primary;
        let (kind, is_abnormal, what) = match record.began_by? {
            Transition::Restart => ("volume-opened", false, format!("node {primary} serves it")),
            Transition::Shrink => ("volume-solo", true, format!("node {primary} goes on alone with it")),
            Transition::Expand => ("volume-in-sync", false, "it is on both nodes again".to_owned()),
            Transition::TakeOver => ("volume-taken-over", true, format!("node {primary} took it over")),
            Transition::Move => ("volume-moved", false, format!("it was moved to node {primary}")),
            Transition::Yield => ("volume-yielded", true, format!("it was left to node {primary}")),
            Transition::Stop => {
                ("volume-stopped", false, "it was stopped, the same on both nodes".to_owned())
            }
            Transition::Start => ("volume-started", false, format!("node {primary} started it again")),
            Transition::Force => ("volume-forced", true, format!("node {primary} serves it")),
        };
        Some(Self { kind, is_abnormal, what })
    }
}
