//! PERSISTENT RESERVE OUT (SPC-4 section 6.16): one at a time, saved, put in force, and what it forbids
//! drained, before GOOD.

use bytes::Bytes;

use super::parameters::{self, Surroundings};
use super::state::{Change, Refusal, Registrant};
use super::store::PersistedReservations;
use crate::scsi::cdb::Cdb;
use crate::scsi::command::{Failure, Outcome, Reply, Status};
use crate::scsi::execution::Context;
use crate::scsi::identity::NexusId;
use crate::scsi::logical_unit::LogicalUnit;
use crate::scsi::mutant::{self, Mutant};
use crate::scsi::sense::{AdditionalSense, Sense, SenseKey};
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// PERSISTENT RESERVE OUT.
    pub(in crate::scsi) async fn persistent_reserve_out(
        &self,
        context: &Context<'_>,
        cdb: &Cdb,
        data_out: Vec<Bytes>,
    ) -> Outcome {
        let length = usize::try_from(cdb.u32(5)).unwrap_or(usize::MAX);
        let list = self.parameter_list(context, &data_out, length)?;
        let Some(nexus) = self.with_nexus(context.nexus(), Clone::clone) else {
            return Err(Failure::Aborted); // the nexus is gone, and its tasks with it
        };
        let actor = Registrant::from(&nexus);
        let all_ports: Vec<_> = self.identity().target_ports.iter().map(|port| port.relative_id).collect();
        let request = parameters::parse(
            cdb,
            &list,
            &Surroundings {
                relative_target_port: actor.relative_target_port,
                all_ports: &all_ports,
                ports_of: &|name| self.initiator_ports(name),
            },
        )?;

        let changing = self.reservations().changing.lock().await;
        context.check_aborted()?;
        if self.reservations().reserved_by().is_some() {
            return Err(super::reserve::conflict());
        }
        let before = self.reservations().persistent().clone();
        let change = before.apply(&actor, &request.action).map_err(refusal)?;
        if change.state != before && !mutant::is(Mutant::ReservationNotSaved) {
            self.save(PersistedReservations::from(&change.state)).await?;
        }
        if context.task().is_withdrawn() {
            // What is saved is for the node that serves now. It has taken it up, or not: the host finds out.
            return Err(Failure::NotServing);
        }
        let preempted = self.put_in_force(change);
        drop(changing);

        if mutant::is(Mutant::PreemptedNotAwaited) {
            return Ok(Reply::good());
        }
        if request.aborts && !mutant::is(Mutant::PreemptedNotAborted) {
            self.tasks().abort_preempted(&preempted, context.task()).wait().await;
        }
        // From here on new commands meet the new reservation; those that are under way under the old
        // one end before the initiator may rely on it (I17).
        if !mutant::is(Mutant::ReservationNotDrained) {
            self.tasks().drain_conflicting(context.task()).wait().await;
        }
        Ok(Reply::good())
    }

    async fn save(&self, state: PersistedReservations) -> Result<(), Failure> {
        self.services().reservations.save(state).await.map_err(|error| {
            tracing::error!(volume = self.identity().volume, %error, "reservations not saved");
            Sense::new(SenseKey::HardwareError, AdditionalSense::INTERNAL_TARGET_FAILURE).into()
        })
    }

    /// Puts the new state in force; gives back the attached nexuses that were preempted.
    fn put_in_force(&self, change: Change) -> Vec<NexusId> {
        *self.reservations().persistent.borrow_mut() = change.state;
        for (registrant, code) in &change.attentions {
            for nexus in self.nexuses_of(registrant) {
                self.attention(nexus, *code);
            }
        }
        self.reservations().tell();
        change.preempted.iter().flat_map(|registrant| self.nexuses_of(registrant)).collect()
    }
}

fn refusal(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Conflict => Failure::Status(Status::ReservationConflict),
        Refusal::InvalidRelease => {
            Sense::illegal(AdditionalSense::INVALID_RELEASE_OF_PERSISTENT_RESERVATION).into()
        }
        Refusal::InvalidParameter(byte) => Sense::invalid_parameter(byte).into(),
        Refusal::TooManyRegistrations => {
            Sense::illegal(AdditionalSense::INSUFFICIENT_REGISTRATION_RESOURCES).into()
        }
    }
}
