//! What initiators have lost between two states of which a node saw only the outcome: the actions in between were
//! another node's.

use super::state::{PersistentState, Registrant};
use crate::scsi::sense::AdditionalSense;

impl PersistentState {
    /// The unit attentions that the actions since `before` would have established, as far as the outcome tells:
    /// - a registration that is gone was preempted, or cleared when none is left. One that its initiator has
    ///   ended by itself, through a port of the other node (ALL_TG_PT), is told the same;
    /// - a reservation that others relied on, and that is gone or of another type, was released.
    #[must_use]
    pub(in crate::scsi) fn lost_since(&self, before: &Self) -> Vec<(Registrant, AdditionalSense)> {
        let is_cleared = self.registrations().next().is_none();
        let gone = before.registrations().filter(|(registrant, _)| !self.is_registered(registrant));
        let code = if is_cleared {
            AdditionalSense::RESERVATIONS_PREEMPTED
        } else {
            AdditionalSense::REGISTRATIONS_PREEMPTED
        };
        let mut lost: Vec<_> = gone.map(|(registrant, _)| (registrant.clone(), code)).collect();
        let held = before.reservation().filter(|held| held.kind.allows_registrants());
        if held.is_some_and(|held| self.reservation().is_none_or(|now| now.kind != held.kind)) {
            let stayed = before.registrations().filter(|(registrant, _)| self.is_registered(registrant));
            let released = AdditionalSense::RESERVATIONS_RELEASED;
            lost.extend(stayed.map(|(registrant, _)| (registrant.clone(), released)));
        }
        lost
    }
}
