//! Reservations: what is kept of them, and where.

use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

/// Keeps the persistent reservations of one logical unit over restarts (APTPL). PERSISTENT RESERVE
/// OUT is answered only once `save` has completed.
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

/// What is kept of the persistent reservations while APTPL is active; empty while it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistedReservations {
    /// Version of this structure: 1. 0 is the empty default.
    pub version: u32,
    /// PRGENERATION does not survive; registrations and the reservation do.
    pub registrations: Vec<PersistedRegistration>,
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
    /// Type code (SPC-4 table 166) if this registration holds the reservation.
    pub holds: Option<u8>,
}
