//! Seeded bugs of the control plane, for proof that its tests find such bugs. In no product: outside
//! the crate's own tests [`is`] is the constant `false`.

use crate::base::mutant::seeded_bugs;

seeded_bugs! {
    /// A mistake that a control plane like this one could make.
    pub enum Mutant {
        /// A damaged log is cut where the damage begins, as if that were a torn end.
        CutAtDamage,
        /// Messages leave before the log is synced.
        MessagesBeforeSync,
        /// A vote is forgotten in a crash.
        VoteNotStored,
        /// A torn record counts as written.
        ChecksumIgnored,
        /// Entries of a deposed leader stay behind those of the new one.
        KeepConflictingEntries,
        /// A member without its log goes on under its old identity.
        ReuseIdentity,
        /// A barrier is reached before what it stands for is applied.
        BarrierAtOnce,
        /// Voters are bound for the holder's nominal time.
        NoDriftMargin,
        /// A lease counts from the arrival of the grant.
        LeaseFromArrival,
        /// A restarted voter feels free.
        RestartedVoterDoesNotWait,
        /// A give-back releases newer leases too.
        GiveBackOfAnyRequest,
        /// Voters confirm for leaders that have been replaced.
        ConfirmForOldTerms,
        /// A restarted voter does not know its term.
        TermForgotten,
        /// Grants go on while the holder is being deposed.
        GrantWhileDeposing,
        /// A lease counts at a holder that does not know yet that it was deposed before.
        GrantFromAnyIndex,
        /// A deposition is proposed without asking who is bound.
        DeposeAtOnce,
        /// A certificate that both replicas are equal counts again when it has been used.
        CertificateKept,
        /// An epoch counts as this life's own proposal by what it says, not by who proposed it.
        ForeignEpochTaken,
        /// A newer format is gone over to when a majority knows it.
        RaiseByMajority,
        /// An epoch that was handed to an earlier life of a node is begun once more.
        HandedOverTwice,
    }
}
