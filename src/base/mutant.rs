//! Seeded bugs, for proof that the simulator finds such bugs.
//!
//! The code asks [`is`] where a known mistake would be made. Outside the crate's own unit tests the
//! answer is the constant `false`, so nothing of this is in a product. A mutant is switched on for one thread, as one
//! simulated world runs on one.

/// Defines the seeded bugs of a component: an enum `Mutant`, whether one of them is on (`is`), and for tests
/// a way to run with one (`with`).
macro_rules! seeded_bugs {
    ($(#[$about:meta])* pub enum Mutant { $($(#[$what:meta])* $name:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Mutant { $($(#[$what])* $name,)* }

        impl Mutant {
            /// Every mutant.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];
        }

        /// Whether the present thread is to make this mistake.
        #[cfg(test)]
        #[must_use]
        pub fn is(mutant: Mutant) -> bool {
            ACTIVE.get() == Some(mutant)
        }

        /// Whether the present thread is to make this mistake: no.
        #[cfg(not(test))]
        #[inline(always)]
        #[must_use]
        pub const fn is(_: Mutant) -> bool {
            false
        }

        /// Runs `work` on this thread with one mistake switched on.
        #[cfg(test)]
        pub fn with<T>(mutant: Mutant, work: impl FnOnce() -> T) -> T {
            struct Off;
            impl Drop for Off {
                fn drop(&mut self) {
                    ACTIVE.set(None);
                }
            }
            ACTIVE.set(Some(mutant));
            let _off = Off;
            work()
        }

        #[cfg(test)]
        thread_local! {
            static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
        }
    };
}

pub(crate) use seeded_bugs;

seeded_bugs! {
    /// A mistake that a store like this one could make. Each is found by a seed: see docs/simulator.md.
    #[allow(missing_docs)] // the names say what goes wrong
    pub enum Mutant {
        AcknowledgeBeforeFlush,
        FlushOneDisk,
        AcknowledgeBeforeExclusion,
        AcknowledgeOutOfOrder,
        RetryFailedFlush,
        ParityMissesLastRow,
        ReconstructWithoutOneMember,
        ReconstructUnverified,
        ReadUnverified,
        ReadBeforeWrite,
        ElectLowestGeneration,
        UseStaleDisk,
        SuperblockNotFlushed,
        SuperblockByGeneration,
        SuperblockOverNewest,
        NoSpaceFailsDisk,
        ReplayPastBrokenBatch,
        AcceptOldIncarnation,
        KeepIncarnation,
        ForgetJoint,
        TailNotRepaired,
        TailNotFlushed,
        HoleForgottenAtReplay,
        DropForgottenAtReplay,
        DiscardedBatchCounts,
        NextSegmentNotNamed,
        HeaderWithoutKey,
        SealOmitted,
        SealNeedsRoom,
        CheckpointPositionAfterMap,
        ReuseBeforeCheckpoint,
        ReleaseUnderReaders,
        MoveAppliedAlways,
        MoveUnverified,
        CleanForWorkingDisks,
        ReservationLeaks,
        OverwriteNeedsSpace,
        OlderVersionFreed,
        OlderVersionNotReserved,
        SnapshotForgottenAtReplay,
        SnapshotLostInCheckpoint,
        SnapshotsBeforeMapInCheckpoint,
        MoveOfOlderVersionIgnored,
        HoleForgottenOverHistory,
        HoleForgottenUnderLateWrite,
        DropFreesShared,
        DropFreesNothing,
        CloneForgetsOrigin,
        CloneLostInCheckpoint,
        CloneHoleNotRecorded,
        CloneHoleForgotten,
        OriginDropped,
        RollbackNotShown,
        RollbackReturnsLaterWrites,
        RollbackAllocationNotShown,
        RebuildCountedTooEarly,
        RebuildFromUnproven,
        RebuildSkipsOpenSegment,
        RebuildForgetsGeneration,
        RebuildingCountsAsWhole,
        ScrubRepairsFromGarbage,
        ScrubNotFlushed,
        SpareTwice,
        TablesFreedTooEarly,
        SegmentsBeforeTablesInCheckpoint,
        EmptiedBeforeMoved,
        PlacesByNumber,
        WaitingMoveForgotten,
        LostPlacesNotTold,
        SpaceKnownUnderHole,
        MergePositionForgotten,
        HoleForgottenUnderMemtable,
        TableNotRepaired,
        TableNotRebuilt,
        CheckpointOfOtherDisks,
        RebuildOfAnotherDisk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_is_on_only_within_its_run() {
        assert!(!is(Mutant::ForgetJoint));
        with(Mutant::ForgetJoint, || {
            assert!(is(Mutant::ForgetJoint) && !is(Mutant::SealOmitted));
        });
        assert!(!is(Mutant::ForgetJoint));
    }
}
