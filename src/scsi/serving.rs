//! The device of a logical unit, which comes and goes: at one node at a time, in its turn.
//!
//! A unit is given its device with [`LogicalUnit::attach_device`] and loses it with
//! [`LogicalUnit::detach_device`]; sessions, nexuses and their unit attentions outlive both. Guarantees:
//! - a command that had its checks under one device has no effect on a later one: reservations may have changed;
//! - a command that the change cuts off is never answered GOOD, but so that the host sends it again. Whether it
//!   had an effect is not known: COMPARE AND WRITE may find its own data, as after a lost response. A planned
//!   move avoids that by letting the device end what it has begun;
//! - what is over when the detaching has completed is over: nothing of this unit reaches the device.
//!
//! Carried over: persistent reservations, by whoever keeps them, unchanged, since no power was lost (SPC-4 section
//! 5.13.5); the names and the size. Not carried over, and told where it can be:
//! - unit attentions that were pending for nexuses of other nodes. Those nexuses are attached there, and hear
//!   what follows from the state itself: ASYMMETRIC ACCESS STATE CHANGED, registrations that have ended, a
//!   reservation that was released, a new capacity;
//! - a reservation by RESERVE ends; its holder hears of a power on;
//! - mode parameters go back to their defaults; the nexuses here hear of it when they were not;
//! - SANITIZE ends where it is, and a host that waits for it is told to send it again. With IMMED nobody waits:
//!   [`LogicalUnit::is_sanitizing`] lets whoever plans a move put it off;
//! - results of copies, and the task set: see above.

use std::rc::Rc;

use futures::future::LocalBoxFuture;

use super::command::Failure;
use super::logical_unit::LogicalUnit;
use super::mode_page::ModePages;
use super::mutant::{self, Mutant};
use super::reservation::PersistedReservations;
use super::reservation::state::PersistentState;
use super::reservation::store::RestoreError;
use super::sense::AdditionalSense;
use crate::volume::device::{BlockDevice, DeviceGeometry};

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// Gives the unit its device: this node serves it from now on, as far as the access states let it. With the
    /// persistent reservations as the cluster has decided them, everything up to this node's turn included (I18).
    ///
    /// # Errors
    /// The reservations can't be used; serving without them would break their promise. The unit stays without a
    /// device.
    ///
    /// # Panics
    /// When the unit has a device.
    pub fn attach_device(&self, device: D, saved: &PersistedReservations) -> Result<(), RestoreError> {
        assert!(!self.has_device(), "a logical unit has one device at a time");
        let saved = PersistentState::try_from(saved)?;
        if !mutant::is(Mutant::ReservationsNotTakenOver) {
            self.succeed_reservations(saved);
        }
        self.set_geometry(device.geometry());
        *self.device_slot().borrow_mut() = Some(Rc::new(device));
        self.asymmetric_access().wake();
        Ok(())
    }

    /// Takes the device from the unit. From the call on no command begins to use it; the future completes when none
    /// uses it any more. Commands that wait for the device keep it waiting: where the device is to give up what it
    /// holds, make it fail that meanwhile. What executions that were dropped have left in the device is the
    /// device's own to drain.
    #[must_use = "the device is in use until the future completes"]
    pub fn detach_device(&self) -> LocalBoxFuture<'static, ()> {
        let geometry = self.geometry();
        if self.device_slot().take().is_none() {
            return Box::pin(async {});
        }
        self.keep_geometry(geometry);
        let drain = self.tasks().withdraw();
        self.sanitizer().cancel();
        if let Some(holder) = self.reservations().reserved_by() {
            self.reservations().reset();
            // What tells a host that reservations of this kind are gone (SPC-2 section 5.5.1).
            self.attention(holder, AdditionalSense::POWER_ON_RESET);
        }
        let pages = self.mode_pages().replace(ModePages::default());
        if pages != ModePages::default() {
            self.attention_to_all(AdditionalSense::MODE_PARAMETERS_CHANGED);
        }
        let unit = self.shared();
        Box::pin(async move {
            drain.wait().await;
            unit.sanitizer().ended().await;
        })
    }

    /// Tells a unit without a device the persistent reservations as the cluster has decided them since, so that
    /// initiators hear of what they have lost by actions at another node. With a device it does nothing: the
    /// unit itself is where they change.
    ///
    /// # Errors
    /// They can't be used; what was known before stays.
    pub fn learn_reservations(&self, saved: &PersistedReservations) -> Result<(), RestoreError> {
        if !self.has_device() && !mutant::is(Mutant::ReservationsNotTakenOver) {
            self.succeed_reservations(PersistentState::try_from(saved)?);
        }
        Ok(())
    }

    /// Tells a unit without a device its size. With a device, [`LogicalUnit::capacity_changed`] is the call.
    pub fn set_geometry(&self, geometry: DeviceGeometry) {
        if self.geometry().block_count != geometry.block_count {
            self.capacity_changed();
        }
        self.keep_geometry(geometry);
    }

    /// Whether the unit has a device.
    pub fn has_device(&self) -> bool {
        self.device_slot().borrow().is_some()
    }

    /// Whether a SANITIZE is under way, which detaching the device would end.
    pub fn is_sanitizing(&self) -> bool {
        self.sanitizer().in_progress().is_some()
    }

    /// The device below, if there is one now.
    pub fn device(&self) -> Option<Rc<D>> {
        self.device_slot().borrow().clone()
    }

    /// The device, for one request of a command.
    pub(super) fn medium(&self) -> Result<Rc<D>, Failure> {
        self.device().ok_or(Failure::NotServing)
    }

    /// Puts reservations in force that another node may have changed.
    fn succeed_reservations(&self, after: PersistentState) {
        let before = self.reservations().replace(after);
        let lost = self.reservations().persistent().lost_since(&before);
        for (registrant, code) in lost {
            for nexus in self.nexuses_of(&registrant) {
                self.attention(nexus, code);
            }
        }
    }
}

#[cfg(test)]
mod tests;
