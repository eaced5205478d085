//! Seeded bugs of the SCSI layer, for proof that the simulator finds such bugs. In no product: outside the
//! crate's own tests [`is`] is the constant `false`.

use crate::base::mutant::seeded_bugs;

seeded_bugs! {
    /// A mistake that a logical unit like this one could make.
    pub enum Mutant {
        /// An abort is answered before what was aborted has ended.
        DrainNotAwaited,
        /// A task that was aborted before it started is executed.
        AbortedTaskRuns,
        /// The loss of a nexus aborts nothing.
        NexusLossAbortsNothing,
        /// A command of a nexus that was lost is executed when it comes late.
        LostNexusIsServed,
        /// A command that the loss of the device has cut off is answered GOOD.
        WithdrawnIsGood,
        /// Reservations are not looked at.
        ReservationsIgnored,
        /// PERSISTENT RESERVE OUT is answered before it is saved.
        ReservationNotSaved,
        /// A node that begins to serve keeps the reservations that it knew before.
        ReservationsNotTakenOver,
        /// PREEMPT AND ABORT waits for nobody.
        PreemptedNotAwaited,
        /// The preempted stay registered.
        PreemptedStayRegistered,
        /// ALL_TG_PT registers the nexus's own port only.
        RegisteredOnOnePort,
        /// Whoever is registered releases what another one holds.
        ReleaseByAnyone,
        /// COMPARE AND WRITE compares, then writes.
        CompareThenWrite,
        /// UNMAP leaves out the last block.
        UnmapLeavesLast,
    }
}
