//! What the data thread asks of the control thread: decisions that must be durable before it goes on.

use tokio::sync::{mpsc, oneshot};

use crate::base::units::VolumeId;

/// Requests that may wait for the control thread; as many volumes may change reservations at once.
const QUEUE: usize = 256;

/// The answer to come; an error is for people.
pub type Decision<T> = oneshot::Sender<Result<T, String>>;

/// What can be asked.
pub enum ControlRequest {
    /// Begins a new epoch of each volume: number and first sequence number of its writes. Gives the
    /// epochs in the same order.
    BeginEpochs(Vec<(VolumeId, u64)>, Decision<Vec<u32>>),
    /// Replaces a volume's persistent reservations.
    SaveReservations {
        /// Whose.
        volume: VolumeId,
        /// Epoch under which the volume is served.
        epoch: u32,
        /// Registrations in the state.
        registration_count: u32,
        /// The whole state.
        encoded: Vec<u8>,
        /// Told when it is durable.
        reply: Decision<()>,
    },
    /// The space of a deleted volume has been given back.
    VolumePurged(VolumeId, Decision<()>),
}

/// The data thread's end.
#[derive(Clone)]
pub struct ControlHandle {
    queue: mpsc::Sender<ControlRequest>,
}

impl ControlHandle {
    /// Both ends.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<ControlRequest>) {
        let (queue, requests) = mpsc::channel(QUEUE);
        (Self { queue }, requests)
    }

    /// Sends the request that `make` makes of a way back, and waits for the decision.
    pub async fn ask<T>(&self, make: impl FnOnce(Decision<T>) -> ControlRequest) -> Result<T, String> {
        let ended = || "the control thread has ended".to_owned();
        let (reply, decided) = oneshot::channel();
        self.queue.send(make(reply)).await.map_err(|_| ended())?;
        decided.await.map_err(|_| ended())?
    }
}
