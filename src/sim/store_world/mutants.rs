//! Proof that the simulator finds bugs: each seeded bug of the store has to be found by some seed.
//!
//! `MUTANT=Name` takes one of them, `SEEDS=n` says how many seeds each may take, `FIRST=n` from which on. Without, only
//! those run that are found quickly: continuous integration has a minute for this. Some need a map that is too
//! large for a simulated pool: for them it is the model of the store's state (`store/tests`) that has to show them, or
//! the histories of a tree (`map/lsm/tests`).

use super::{TREE_SEEDS, Theme, run_theme};
use crate::base::mutant::{Mutant, with};
use crate::sim::mutant_search::{self as search, Found};
use crate::store::map::lsm::tests::histories;
use crate::store::tests::versions;

#[test]
fn every_mutant_is_found() {
    let is_wanted = |mutant: &Mutant| !search::is_quick() || !SLOW.contains(mutant);
    let mutants: Vec<Mutant> = Mutant::ALL.into_iter().filter(is_wanted).collect();
    let seeds = search::seeds().unwrap_or(QUICK_SEEDS);
    search::all_are_found("store", &mutants, |mutant| find(mutant, seeds));
}

fn find(mutant: Mutant, seeds: u64) -> Option<Found> {
    let run = |seed| match mutant {
        Mutant::SnapshotsBeforeMapInCheckpoint | Mutant::HoleForgottenUnderLateWrite => {
            versions::run(seed, &mut versions::Met::default());
            Ok(())
        }
        Mutant::SpaceKnownUnderHole | Mutant::HoleForgottenUnderMemtable => {
            histories::run(seed);
            Ok(())
        }
        // Rare: the search begins near a seed that is known.
        Mutant::CheckpointOfOtherDisks => run_theme(TREE_SEEDS + 20_060 + seed, Theme::Healing).map(drop),
        _ if OF_TREES.contains(&mutant) => run_theme(TREE_SEEDS + seed, theme_for(mutant)).map(drop),
        _ => run_theme(seed, theme_for(mutant)).map(drop),
    };
    let first = search::first();
    Found::by_seed(first..=first + seeds - 1, |seed| with(mutant, || run(seed)), run)
}

/// The search keeps to the theme that meets a mistake soonest.
fn theme_for(mutant: Mutant) -> Theme {
    match mutant {
        Mutant::ReadBeforeWrite => Theme::WritesOnly,
        Mutant::NoSpaceFailsDisk => Theme::NoSpaceUnderDisks,
        Mutant::ReconstructUnverified => Theme::TwoFaults,
        Mutant::SealOmitted
        | Mutant::SealNeedsRoom
        | Mutant::AcceptOldIncarnation
        | Mutant::KeepIncarnation => Theme::LostBatch,
        Mutant::RebuildCountedTooEarly
        | Mutant::RebuildFromUnproven
        | Mutant::RebuildSkipsOpenSegment
        | Mutant::RebuildForgetsGeneration
        | Mutant::RebuildingCountsAsWhole
        | Mutant::ScrubNotFlushed
        | Mutant::SpareTwice
        | Mutant::TableNotRebuilt
        | Mutant::RebuildOfAnotherDisk => Theme::Healing,
        Mutant::ScrubRepairsFromGarbage => Theme::TwoFaults,
        Mutant::ReservationLeaks | Mutant::OverwriteNeedsSpace | Mutant::ReleaseUnderReaders => {
            Theme::FullPool
        }
        Mutant::ElectLowestGeneration
        | Mutant::UseStaleDisk
        | Mutant::RetryFailedFlush
        | Mutant::ReadUnverified
        | Mutant::ReconstructWithoutOneMember
        | Mutant::MoveUnverified
        | Mutant::CleanForWorkingDisks
        | Mutant::TableNotRepaired
        | Mutant::DiscardedBatchCounts
        | Mutant::AcknowledgeBeforeExclusion => Theme::OneFault,
        _ => Theme::NoFault,
    }
}

/// Those of maps that are kept on the disks.
const OF_TREES: [Mutant; 10] = [
    Mutant::RebuildOfAnotherDisk,
    Mutant::TablesFreedTooEarly,
    Mutant::SegmentsBeforeTablesInCheckpoint,
    Mutant::EmptiedBeforeMoved,
    Mutant::PlacesByNumber,
    Mutant::WaitingMoveForgotten,
    Mutant::LostPlacesNotTold,
    Mutant::MergePositionForgotten,
    Mutant::TableNotRepaired,
    Mutant::TableNotRebuilt,
];

/// Those that take more seeds than that.
const SLOW: [Mutant; 9] = [
    Mutant::HoleForgottenUnderMemtable,
    Mutant::ScrubNotFlushed,
    Mutant::RebuildFromUnproven,
    Mutant::AcknowledgeBeforeExclusion,
    Mutant::AcknowledgeOutOfOrder,
    Mutant::SuperblockByGeneration,
    Mutant::AcceptOldIncarnation,
    Mutant::KeepIncarnation,
    Mutant::TailNotFlushed,
];

/// Most seeds for a mutant when time is short.
const QUICK_SEEDS: u64 = 200;
