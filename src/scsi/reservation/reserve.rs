//! RESERVE and RELEASE, (6) and (10) (SPC-2 sections 7.21 to 7.24), and how they get on with persistent
//! reservations (SPC-4 section 5.13.3: CRH is one).

use super::state::Registrant;
use crate::scsi::cdb::Cdb;
use crate::scsi::command::{Failure, Outcome, Reply, Status};
use crate::scsi::execution::Context;
use crate::scsi::logical_unit::LogicalUnit;
use crate::scsi::mutant::{self, Mutant};
use crate::scsi::operation::Access;
use crate::scsi::sense::Sense;
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// RESERVE (6) and (10): the whole logical unit, for this nexus.
    pub(in crate::scsi) async fn reserve(&self, context: &Context<'_>, cdb: &Cdb) -> Outcome {
        check_fields(cdb)?;
        if self.has_registrations() {
            return self.legacy_with_registrations(context);
        }
        let reservations = self.reservations();
        match reservations.reserved.get() {
            Some(holder) if holder != context.nexus() => Err(conflict()),
            Some(_) => Ok(Reply::good()),
            None => {
                reservations.reserved.set(Some(context.nexus()));
                self.tasks().drain_conflicting(context.task()).wait().await;
                context.check_aborted()?; // the reservation has gone with the device
                Ok(Reply::good())
            }
        }
    }

    /// RELEASE (6) and (10). Releasing what another holds has no effect and is no error.
    pub(in crate::scsi) fn release(&self, context: &Context<'_>, cdb: &Cdb) -> Outcome {
        check_fields(cdb)?;
        if self.has_registrations() {
            return self.legacy_with_registrations(context);
        }
        self.reservations().nexus_lost(context.nexus());
        Ok(Reply::good())
    }

    /// Whether reservations of others let `context`'s nexus do something of the kind `access`.
    pub(in crate::scsi) fn check_reservations(
        &self,
        context: &Context<'_>,
        access: Access,
    ) -> Result<(), Failure> {
        let is_exempt = matches!(access, Access::Always | Access::Special);
        if is_exempt || mutant::is(Mutant::ReservationsIgnored) {
            return Ok(());
        }
        let reservations = self.reservations();
        if reservations.reserved.get().is_some_and(|holder| holder != context.nexus()) {
            return Err(conflict());
        }
        let state = reservations.persistent();
        if state.reservation().is_none() || access == Access::Query {
            return Ok(());
        }
        let permitted = self
            .with_nexus(context.nexus(), |nexus| state.permits(&Registrant::from(nexus), access))
            .unwrap_or(false);
        if permitted { Ok(()) } else { Err(conflict()) }
    }

    fn legacy_with_registrations(&self, context: &Context<'_>) -> Outcome {
        let state = self.reservations().persistent();
        let accepted =
            self.with_nexus(context.nexus(), |nexus| state.accepts_legacy(&Registrant::from(nexus)));
        if accepted.unwrap_or(false) { Ok(Reply::good()) } else { Err(conflict()) }
    }

    fn has_registrations(&self) -> bool {
        self.reservations().persistent().registrations().next().is_some()
    }
}

/// Third-party and extent reservations are obsolete.
fn check_fields(cdb: &Cdb) -> Result<(), Failure> {
    if cdb.byte(1) & 0x1f != 0 {
        return Err(Sense::invalid_cdb_bit(1, 4).into());
    }
    Ok(())
}

pub(super) fn conflict() -> Failure {
    Failure::Status(Status::ReservationConflict)
}
