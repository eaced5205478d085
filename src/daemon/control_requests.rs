//! What the data thread asks of the control thread: to make things durable that hosts wait for.

use tokio::sync::{mpsc, oneshot};

use crate::base::units::VolumeId;

/// Requests that may wait for the control thread; as many volumes may change reservations at once.
const QUEUE: usize = 256;

/// Makes a volume's persistent reservations durable.
pub struct SaveReservations {
    /// Whose.
    pub volume: VolumeId,
    /// The whole state; what was saved before is replaced.
    pub state: Vec<u8>,
    /// Told when it is durable, or why it is not.
    pub reply: oneshot::Sender<Result<(), String>>,
}

/// The data thread's end.
pub type ControlSender = mpsc::Sender<SaveReservations>;
/// The control thread's end.
pub type ControlReceiver = mpsc::Receiver<SaveReservations>;

/// Both ends.
#[must_use]
pub fn channel() -> (ControlSender, ControlReceiver) {
    mpsc::channel(QUEUE)
}
