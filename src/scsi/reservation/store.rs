//! What is kept of persistent reservations, and where: the hook by which they survive restarts and
//! takeovers.

use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

use super::state::{PersistentState, Registrant, ReservationType};
use crate::scsi::identity::InitiatorPort;

/// Keeps the persistent reservations of one logical unit. PERSISTENT RESERVE OUT is answered only once
/// `save` has completed.
pub trait ReservationStore {
    /// Makes `state` durable, in place of what was saved before. When it fails, the command fails and
    /// the earlier state stays in force.
    fn save(&self, state: PersistedReservations) -> LocalBoxFuture<'_, Result<(), SaveFailed>>;
}

/// The state could not be made durable.
#[derive(Debug, thiserror::Error)]
#[error("persistent reservations could not be saved")]
pub struct SaveFailed(#[source] pub Box<dyn std::error::Error>);

/// A [`ReservationStore`] that keeps nothing, for logical units that are gone when their process is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Volatile;

impl ReservationStore for Volatile {
    fn save(&self, _: PersistedReservations) -> LocalBoxFuture<'_, Result<(), SaveFailed>> {
        Box::pin(async { Ok(()) })
    }
}

/// All persistent reservation state of a logical unit, saved after each change. The default is the
/// state of a new logical unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistedReservations {
    /// Version of this structure.
    pub version: u32,
    /// Activate persist through power loss: without it, a power loss forgets everything here.
    pub aptpl: bool,
    /// PRGENERATION, which survives a takeover but not a power loss.
    pub generation: u32,
    /// The registrations.
    pub registrations: Vec<PersistedRegistration>,
    /// Type code of the reservation (SPC-4 table 166).
    pub reservation_type: Option<u8>,
}

/// One registered I_T nexus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistedRegistration {
    /// iSCSI name of the initiator.
    pub initiator_name: String,
    /// Its ISID.
    pub isid: [u8; 6],
    /// Relative identifier of the target port.
    pub relative_target_port: u16,
    /// Reservation key.
    pub key: u64,
    /// Whether this one holds the reservation. For all-registrants types, none says so.
    pub holder: bool,
}

/// Saved reservations that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by a later version of this software.
    #[error("reservations were saved in format {0}, which this version does not know")]
    UnknownVersion(u32),
    /// The contents contradict each other.
    #[error("saved reservations are not consistent")]
    Inconsistent,
}

impl Default for PersistedReservations {
    fn default() -> Self {
        Self {
            version: VERSION,
            aptpl: false,
            generation: 0,
            registrations: Vec::new(),
            reservation_type: None,
        }
    }
}

impl PersistedReservations {
    /// What a power loss, or the restart of the only node, leaves of the state. One of an unknown version stays as
    /// it is, so that it is refused and not forgotten.
    #[must_use]
    pub fn after_power_loss(self) -> Self {
        match self {
            unknown if unknown.version != VERSION => unknown,
            kept if kept.aptpl => Self { generation: 0, ..kept },
            _ => Self::default(),
        }
    }
}

impl From<&PersistentState> for PersistedReservations {
    fn from(state: &PersistentState) -> Self {
        let registrations = state.registrations().map(|(registrant, key)| PersistedRegistration {
            initiator_name: registrant.initiator.name.clone(),
            isid: registrant.initiator.isid,
            relative_target_port: registrant.relative_target_port,
            key,
            holder: state.reservation().is_some_and(|held| held.holder.as_ref() == Some(registrant)),
        });
        Self {
            version: VERSION,
            aptpl: state.aptpl(),
            generation: state.generation(),
            registrations: registrations.collect(),
            reservation_type: state.reservation().map(|held| held.kind as u8),
        }
    }
}

impl TryFrom<&PersistedReservations> for PersistentState {
    type Error = RestoreError;

    fn try_from(saved: &PersistedReservations) -> Result<Self, RestoreError> {
        if saved.version != VERSION {
            return Err(RestoreError::UnknownVersion(saved.version));
        }
        let registrant = |saved: &PersistedRegistration| Registrant {
            initiator: InitiatorPort { name: saved.initiator_name.clone(), isid: saved.isid },
            relative_target_port: saved.relative_target_port,
        };
        let kind = match saved.reservation_type {
            None => None,
            Some(code) => Some(ReservationType::from_code(code).ok_or(RestoreError::Inconsistent)?),
        };
        let mut holders = saved.registrations.iter().filter(|registration| registration.holder);
        let holder = holders.next().map(registrant);
        let registrations = saved.registrations.iter().map(|saved| (registrant(saved), saved.key));
        Self::restore(saved.aptpl, saved.generation, registrations.collect(), kind, holder)
            .filter(|_| holders.next().is_none())
            .ok_or(RestoreError::Inconsistent)
    }
}

/// Version of [`PersistedReservations`] that is written.
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_still_read() {
        let json = r#"{"version":1,"aptpl":true,"generation":7,"registrations":[
            {"initiator_name":"iqn.2007-10.test:a","isid":[128,0,0,0,0,1],"relative_target_port":1,
             "key":17,"holder":true},
            {"initiator_name":"iqn.2007-10.test:b","isid":[128,0,0,0,0,2],"relative_target_port":2,
             "key":18,"holder":false}],"reservation_type":5}"#;
        let saved: PersistedReservations = serde_json::from_str(json).unwrap();
        let state = PersistentState::try_from(&saved).unwrap();
        assert_eq!(PersistedReservations::from(&state), saved);
        assert_eq!(state.reservation().unwrap().kind, ReservationType::WriteExclusiveRegistrantsOnly);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut saved = PersistedReservations { version: 2, ..PersistedReservations::default() };
        assert_eq!(PersistentState::try_from(&saved).unwrap_err(), RestoreError::UnknownVersion(2));
        assert_eq!(saved.clone().after_power_loss(), saved, "left for the version that knows it");
        saved.version = 1;
        saved.reservation_type = Some(3); // without a holder
        assert_eq!(PersistentState::try_from(&saved).unwrap_err(), RestoreError::Inconsistent);
        saved.reservation_type = Some(99);
        assert_eq!(PersistentState::try_from(&saved).unwrap_err(), RestoreError::Inconsistent);
    }
}
