//! Keeps persistent reservations over restarts, with the control thread's help.

use futures::future::LocalBoxFuture;
use tokio::sync::oneshot;

use crate::base::units::VolumeId;
use crate::daemon::control_requests::{ControlSender, SaveReservations};
use crate::scsi::reservation::{PersistedReservations, ReservationStore, SaveFailed};

/// Saves the reservations of one volume.
pub struct ReservationSaver {
    volume: VolumeId,
    control: ControlSender,
}

impl ReservationSaver {
    /// For `volume`.
    #[must_use]
    pub fn new(volume: VolumeId, control: ControlSender) -> Self {
        Self { volume, control }
    }

    async fn send(&self, state: Vec<u8>) -> Result<(), String> {
        let ended = || "the control thread has ended".to_owned();
        let (reply, saved) = oneshot::channel();
        let request = SaveReservations { volume: self.volume, state, reply };
        self.control.send(request).await.map_err(|_| ended())?;
        saved.await.map_err(|_| ended())?
    }
}

impl ReservationStore for ReservationSaver {
    fn save(&self, state: PersistedReservations) -> LocalBoxFuture<'_, Result<(), SaveFailed>> {
        Box::pin(async move {
            let state = serde_json::to_vec(&state).map_err(|error| SaveFailed(Box::new(error)))?;
            self.send(state).await.map_err(|reason| SaveFailed(reason.into()))
        })
    }
}
