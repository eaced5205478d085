//! Seeded bugs of the mirror, for proof that its tests find such bugs. In no product: outside the crate's
//! own tests [`is`] is the constant `false`.

use crate::base::mutant::seeded_bugs;

seeded_bugs! {
    /// A mistake that a mirror like this one could make.
    pub enum Mutant {
        /// A chain goes on though the replica lacks what was let go.
        GapTaken,
        /// What was confirmed in an older epoch counts in the next one.
        OldConfirmationCounts,
        /// An append completes before the local store has it.
        LocalNotAwaited,
        /// A read does not wait for what it may have seen.
        ReadInFlight,
        /// Answers of an older stream count.
        OldStreamAnswers,
        /// Writes of an older stream are taken.
        OldStreamWrites,
        /// Appends are answered before they are durable.
        AnswerBeforeDurable,
        /// The promise is not checked.
        NoFence,
        /// Blocks are copied without their lock.
        CopyPassesWrite,
        /// Blocks that only the replica has changed are not copied.
        ReplicaChangesKept,
        /// Versions beyond the common point are told by their epoch first.
        CommonPointByOrder,
        /// The cursor counts copies that have not been answered.
        CursorBeforeCopies,
        /// A replica with a gap says that it has everything.
        JoinNotRecorded,
        /// Blocks without data are not copied.
        HolesNotCopied,
        /// What was mirrored since another stream began counts as mirrored in this one.
        MirroredInOlderStream,
        /// Stores forget holes as if there were no peer.
        HolesForgotten,
        /// The newest append that a store recovered counts as whole.
        TornAppendWhole,
        /// A joining replica keeps the snapshots that it has, and no others.
        SnapshotNotReconciled,
        /// What snapshots show is not copied.
        HistoryStageSkipped,
        /// What only the replica has stays in its snapshots.
        VoidLeftInHistory,
        /// A hole over a block of which history was put below is not stated again.
        HoleNotRestated,
        /// A replica that dropped a snapshot, in an epoch that is void, counts as having what it showed.
        VoidDropCounts,
        /// The last consistent state of a replica is dropped before it has another one.
        KeptStateDroppedEarly,
        /// A rollback is shown before both replicas have it.
        RollbackInFlightShown,
        /// A replica that goes away in the middle of a rollback keeps what it has as its last consistent state.
        KeptStateInRollback,
        /// A replica that is full refuses what it would only have to look up.
        ReplicaUnprepared,
        /// A block that came from the replica is written though an append has changed it meanwhile.
        HealStale,
    }
}
