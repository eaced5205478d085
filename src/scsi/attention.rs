//! Unit attention conditions (SAM-5 section 5.14): per nexus, queued, each reported once.

use std::collections::VecDeque;

use super::limits;
use super::sense::{AdditionalSense, Sense, SenseKey};

/// The unit attention conditions pending for one nexus, oldest first.
#[derive(Debug, Default)]
pub struct UnitAttentions {
    pending: VecDeque<AdditionalSense>,
}

impl UnitAttentions {
    /// Adds a condition unless it is pending already. A reset or nexus loss replaces everything that
    /// came before it (SAM-5 section 5.14: the conditions that it implies).
    pub fn establish(&mut self, code: AdditionalSense) {
        if is_reset(code) {
            self.pending.clear();
        }
        if !self.pending.contains(&code) && self.pending.len() < limits::ATTENTIONS {
            self.pending.push_back(code);
        }
    }

    /// Takes the oldest condition, as the sense data that reports it.
    pub fn take(&mut self) -> Option<Sense> {
        self.pending.pop_front().map(|code| Sense::new(SenseKey::UnitAttention, code))
    }

    /// The conditions, oldest first.
    #[must_use]
    pub fn pending(&self) -> Vec<AdditionalSense> {
        self.pending.iter().copied().collect()
    }

    /// Whether a condition is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Forgets a condition that REPORT LUNS has made known.
    pub fn clear(&mut self, code: AdditionalSense) {
        self.pending.retain(|pending| *pending != code);
    }
}

fn is_reset(code: AdditionalSense) -> bool {
    code.0 >> 8 == 0x29
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_queue_once_each_and_a_reset_replaces_them() {
        let mut attentions = UnitAttentions::default();
        attentions.establish(AdditionalSense::CAPACITY_DATA_HAS_CHANGED);
        attentions.establish(AdditionalSense::MODE_PARAMETERS_CHANGED);
        attentions.establish(AdditionalSense::CAPACITY_DATA_HAS_CHANGED);
        assert_eq!(attentions.take().unwrap().code, AdditionalSense::CAPACITY_DATA_HAS_CHANGED);
        assert_eq!(attentions.take().unwrap().code, AdditionalSense::MODE_PARAMETERS_CHANGED);
        assert_eq!(attentions.take(), None);
        attentions.establish(AdditionalSense::MODE_PARAMETERS_CHANGED);
        attentions.establish(AdditionalSense::BUS_DEVICE_RESET_FUNCTION_OCCURRED);
        assert_eq!(attentions.take().unwrap().code, AdditionalSense::BUS_DEVICE_RESET_FUNCTION_OCCURRED);
        assert!(attentions.is_empty());
    }
}
