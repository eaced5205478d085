//! Reservations: persistent ones (SPC-4 section 5.13) and those of RESERVE and RELEASE (SPC-2 section
//! 5.5).
//!
//! [`state::PersistentState`] is the standard's rules as a value: each service action takes a state to
//! the next one and says who is told. `Reservations` holds the state in force. PERSISTENT RESERVE OUT
//! works on one command at a time: the next state is saved, put in force, and the tasks that it forbids
//! have ended before GOOD is answered (I17).

mod parameters;
mod persistent_in;
mod persistent_out;
mod reserve;
pub mod state;
pub mod store;
mod succession;
#[cfg(test)]
pub(super) mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures::lock::Mutex;

use self::state::PersistentState;
use super::identity::NexusId;
use super::mutant::{self, Mutant};

pub use self::store::{PersistedReservations, ReservationStore, SaveFailed, Volatile};

/// Is told of persistent reservations when they have been put in force.
pub type ReservationWatch = Rc<dyn Fn(PersistedReservations)>;

/// The reservations of a logical unit.
#[derive(Default)]
pub(super) struct Reservations {
    persistent: RefCell<PersistentState>,
    /// Held while a PERSISTENT RESERVE OUT command is under way.
    changing: Mutex<()>,
    /// Holder of the reservation by RESERVE (6) or (10).
    reserved: Cell<Option<NexusId>>,
    /// Is told of what was put in force here.
    watch: RefCell<Option<ReservationWatch>>,
}

impl Reservations {
    /// Puts another persistent state in force and gives back the one before.
    pub(super) fn replace(&self, persistent: PersistentState) -> PersistentState {
        self.persistent.replace(persistent)
    }

    /// Has `watch` told of what is put in force here from now on.
    pub(super) fn watch(&self, watch: ReservationWatch) {
        *self.watch.borrow_mut() = Some(watch);
    }

    fn tell(&self) {
        let watch = self.watch.borrow().clone();
        if let Some(watch) = watch {
            watch(PersistedReservations::from(&*self.persistent()));
        }
    }

    /// Ends a reservation by RESERVE that `nexus` holds, as the loss of the nexus does.
    pub(super) fn nexus_lost(&self, nexus: NexusId) {
        if self.reserved.get() == Some(nexus) && !mutant::is(Mutant::ReserveOutlivesNexus) {
            self.reserved.set(None);
        }
    }

    /// Ends every reservation by RESERVE, as a reset does; persistent ones stay.
    pub(super) fn reset(&self) {
        self.reserved.set(None);
    }

    /// Holder of the reservation by RESERVE.
    pub(super) fn reserved_by(&self) -> Option<NexusId> {
        self.reserved.get()
    }

    /// The persistent state in force; without a device, the latest that was known.
    pub(super) fn persistent(&self) -> std::cell::Ref<'_, PersistentState> {
        self.persistent.borrow()
    }
}
