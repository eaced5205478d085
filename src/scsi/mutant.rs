//! Seeded bugs of this layer, for proof that its tests find such bugs. In no product: outside the crate's own tests
//! [`is`] is the constant `false`. Some are found by random lives of one unit on two nodes (`forward/world`), some by
//! those of the whole cluster (`sim/cluster_world`), the others by the tests that are named below.

use crate::base::mutant::seeded_bugs;

seeded_bugs! {
    /// A mistake that a logical unit like this one could make.
    pub enum Mutant {
        /// What is in limbo is answered before it is known to be over.
        LimboAnswered,
        /// What is in limbo is executed again elsewhere.
        LimboRepeated,
        /// A write of which nothing is known is answered GOOD.
        LostIsGood,
        /// Tasks of a lost connection are aborted but not waited for.
        LostConnectionNotDrained,
        /// A new connection is welcomed before the former one's tasks have drained.
        WelcomeUndrained,
        /// Task management is not passed on to the serving node.
        ManagementStaysLocal,
        /// Unit attentions that were pending at the serving node are lost with the connection.
        AttentionsForgotten,
        /// What was forwarded to a node is forwarded again when that serves no more.
        ForwardedAgain,
        /// PERSISTENT RESERVE OUT does not wait for the writes that it forbids.
        ReservationNotDrained,
        /// PREEMPT AND ABORT aborts nothing.
        PreemptedNotAborted,
        /// An abort is answered before its tasks have ended.
        AbortNotAwaited,
        /// An aborted task that has its turn begins all the same.
        AbortedTaskBegins,
        /// A node says active/optimized without the right to serve.
        OptimizedWithoutRight,
        /// Tasks go on when their device is taken from the unit.
        DeviceNotWithdrawn,
        /// The next node serves without the reservations.
        ReservationsForgotten,
        /// Nobody hears of what was lost by actions at another node.
        LossNotTold,
        /// ORDERED tasks start as SIMPLE ones do.
        OrderedAsSimple,
        /// A reservation by RESERVE outlives its nexus.
        ReserveOutlivesNexus,
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

/// Those that random lives of the whole cluster find; what is not among them is found here or in `forward/world`.
#[cfg(test)]
pub const FOUND_IN_CLUSTER_WORLD: [Mutant; 14] = [
    Mutant::AbortNotAwaited,
    Mutant::AbortedTaskBegins,
    Mutant::ReservationsForgotten,
    Mutant::NexusLossAbortsNothing,
    Mutant::LostNexusIsServed,
    Mutant::WithdrawnIsGood,
    Mutant::ReservationsIgnored,
    Mutant::ReservationNotSaved,
    Mutant::PreemptedNotAwaited,
    Mutant::PreemptedStayRegistered,
    Mutant::RegisteredOnOnePort,
    Mutant::ReleaseByAnyone,
    Mutant::CompareThenWrite,
    Mutant::UnmapLeavesLast,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::{asymmetric_access, forward, logical_unit, reservation, serving};
    use crate::sim::mutant_search::{self as search, Found};

    /// Each mutant with the test that finds it.
    const FOUND_BY: [(Mutant, fn()); 11] = [
        (Mutant::AttentionsForgotten, forward::world::tests::what_is_pending_comes_back_when_forwarding_ends),
        (
            Mutant::ReservationNotDrained,
            reservation::tests::a_new_reservation_waits_for_writes_that_it_forbids,
        ),
        (Mutant::PreemptedNotAborted, reservation::tests::preempt_and_abort_waits_for_the_victims_write),
        (Mutant::AbortNotAwaited, logical_unit::tests::an_aborted_write_is_waited_for_and_answered_by_nobody),
        (Mutant::AbortedTaskBegins, logical_unit::tests::an_aborted_task_that_has_not_started_never_writes),
        (
            Mutant::OptimizedWithoutRight,
            asymmetric_access::tests::a_node_that_does_not_serve_never_reports_active_optimized_for_itself,
        ),
        (
            Mutant::DeviceNotWithdrawn,
            serving::tests::a_command_of_many_requests_begins_no_more_of_them_even_on_the_next_device,
        ),
        (
            Mutant::ReservationsForgotten,
            serving::tests::registrations_survive_without_aptpl_and_bind_at_the_next_node,
        ),
        (Mutant::LossNotTold, serving::tests::what_vanished_meanwhile_is_told_to_those_who_had_it),
        (
            Mutant::OrderedAsSimple,
            logical_unit::tests::ordered_tasks_wait_for_older_ones_and_hold_younger_ones,
        ),
        (Mutant::ReserveOutlivesNexus, reservation::tests::reserve_and_release_exclude_everybody_else),
    ];

    #[test]
    fn every_mutant_is_found_by_its_test() {
        search::all_are_found("scsi", &FOUND_BY.map(|(mutant, _)| mutant), |mutant| {
            let (_, test) = FOUND_BY.into_iter().find(|(found, _)| *found == mutant)?;
            with(mutant, || Found::by_test(test))
        });
        let in_random_lives = forward::world::tests::FOUND_IN_RANDOM_LIVES;
        for mutant in Mutant::ALL {
            let is_named = FOUND_BY.iter().any(|(found, _)| *found == mutant);
            let is_found = is_named || in_random_lives.contains(&mutant);
            assert!(is_found || FOUND_IN_CLUSTER_WORLD.contains(&mutant), "nobody looks for {mutant:?}");
        }
    }
}
