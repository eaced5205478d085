//! Keeps persistent reservations over restarts, with the control thread's help.

use std::cell::Cell;
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use crate::base::units::VolumeId;
use crate::daemon::control_requests::{ControlHandle, ControlRequest};
use crate::scsi::reservation::{PersistedReservations, ReservationStore, SaveFailed};

/// Saves the reservations of one volume.
pub struct ReservationSaver {
    volume: VolumeId,
    epoch: Rc<Cell<u32>>,
    control: ControlHandle,
}

impl ReservationSaver {
    /// For `volume`, served in `epoch`, which whoever moves on keeps up to date.
    #[must_use]
    pub fn new(volume: VolumeId, epoch: Rc<Cell<u32>>, control: ControlHandle) -> Self {
        Self { volume, epoch, control }
    }
}

impl ReservationStore for ReservationSaver {
    fn save(&self, state: PersistedReservations) -> LocalBoxFuture<'_, Result<(), SaveFailed>> {
        Box::pin(async move {
            let (volume, epoch) = (self.volume, self.epoch.get());
            let registration_count = u32::try_from(state.registrations.len()).unwrap_or(u32::MAX);
            let encoded = serde_json::to_vec(&state).map_err(|error| SaveFailed(Box::new(error)))?;
            let save = |reply| ControlRequest::SaveReservations {
                volume,
                epoch,
                registration_count,
                encoded,
                reply,
            };
            self.control.ask(save).await.map_err(|reason| SaveFailed(reason.into()))
        })
    }
}
