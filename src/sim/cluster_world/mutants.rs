//! Proof that the random lives find bugs: each seeded one, of the driver of the pair, of the SCSI layer, of the mirror
//! and of the control plane, by some seed.
//!
//! Without `MUTANT` and `SEEDS` only those run that are found quickly: continuous integration has a minute for this.

use std::fmt::{self, Debug, Formatter};

use super::runs::run;
use super::{planned, scenarios};
use crate::cluster::mutant as cluster;
use crate::mirror::mutant as mirror;
use crate::pair::mutant as pair;
use crate::scsi::mutant as scsi;
use crate::sim::mutant_search::{self as search, Found};
use crate::volume::mutant as volume;

#[derive(Clone, Copy)]
enum Mutant {
    Pair(pair::Mutant),
    Scsi(scsi::Mutant),
    Mirror(mirror::Mutant),
    Cluster(cluster::Mutant),
    Volume(volume::Mutant),
}

impl Mutant {
    /// Those that this world has to find. Of the mirror and the control plane, those that show in what hosts see. All of
    /// these two are found in worlds of their own; here a vote that is forgotten, for one, shows too rarely.
    fn all() -> Vec<Self> {
        let pair = pair::Mutant::ALL.into_iter().map(Self::Pair);
        let scsi = scsi::FOUND_IN_CLUSTER_WORLD.into_iter().map(Self::Scsi);
        let volume = volume::Mutant::ALL.into_iter().map(Self::Volume);
        let (mirror, cluster) = (MIRROR.map(Self::Mirror), CLUSTER.map(Self::Cluster));
        pair.chain(scsi).chain(mirror).chain(cluster).chain(volume).collect()
    }

    fn name(self) -> String {
        match self {
            Self::Pair(mutant) => format!("pair {mutant:?}"),
            Self::Scsi(mutant) => format!("scsi {mutant:?}"),
            Self::Mirror(mutant) => format!("mirror {mutant:?}"),
            Self::Cluster(mutant) => format!("cluster {mutant:?}"),
            Self::Volume(mutant) => format!("volume {mutant:?}"),
        }
    }

    fn with<T>(self, work: impl FnOnce() -> T) -> T {
        match self {
            Self::Pair(mutant) => pair::with(mutant, work),
            Self::Scsi(mutant) => scsi::with(mutant, work),
            Self::Mirror(mutant) => mirror::with(mutant, work),
            Self::Cluster(mutant) => cluster::with(mutant, work),
            Self::Volume(mutant) => volume::with(mutant, work),
        }
    }

    /// What finds it.
    fn find(self, seeds: u64) -> Option<Found> {
        let directed: Option<fn() -> Result<(), String>> = match self {
            Self::Pair(pair::Mutant::LeaseForNewerRecord) => {
                Some(|| scenarios::try_scenario(1, scenarios::a_lease_that_comes_with_the_deposition))
            }
            Self::Pair(pair::Mutant::PromiseNotSaved) => {
                Some(|| scenarios::try_scenario(1, scenarios::a_promise_and_a_crash))
            }
            Self::Pair(pair::Mutant::AttachUnsettled) => {
                Some(|| scenarios::try_scenario(1, scenarios::a_read_of_what_is_in_doubt))
            }
            Self::Pair(pair::Mutant::HandOverUndrained) => {
                Some(|| scenarios::try_scenario(1, scenarios::a_move_with_a_write_on_its_way))
            }
            Self::Pair(pair::Mutant::NoDrain) => {
                Some(|| scenarios::try_scenario(1, scenarios::a_late_local_snapshot))
            }
            Self::Pair(pair::Mutant::ServeAfterFollow) => {
                Some(|| scenarios::try_scenario(1, scenarios::a_paused_primary))
            }
            Self::Pair(pair::Mutant::ReadWithoutPermit) => {
                Some(|| scenarios::try_scenario(1, scenarios::a_read_past_the_unit))
            }
            Self::Cluster(cluster::Mutant::ForeignEpochTaken) => {
                Some(|| scenarios::epochs_of_former_lives().map(drop))
            }
            Self::Cluster(cluster::Mutant::HandedOverTwice) => {
                Some(|| scenarios::epochs_handed_to_former_lives().map(drop))
            }
            Self::Volume(volume::Mutant::RestoreTrustsVersions) => {
                Some(|| scenarios::try_scenario(1, scenarios::a_rollback_over_a_resync))
            }
            Self::Mirror(mirror::Mutant::KeptStateInRollback) => {
                Some(|| scenarios::try_scenario(1, scenarios::a_kept_state_in_a_rollback))
            }
            Self::Cluster(cluster::Mutant::CertificateKept) => {
                Some(|| planned::try_all(planned::a_certificate_that_was_used))
            }
            _ => None,
        };
        let live = |seed| run(seed).map(drop);
        let found = directed.and_then(|scenario| self.with(|| Found::by_scenario(scenario)));
        found.or_else(|| Found::by_seed(1..=seeds, |seed| self.with(|| live(seed)), live))
    }
}

impl Debug for Mutant {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

const MIRROR: [mirror::Mutant; 7] = [
    mirror::Mutant::RollbackInFlightShown,
    mirror::Mutant::KeptStateInRollback,
    mirror::Mutant::GapTaken,
    mirror::Mutant::LocalNotAwaited,
    mirror::Mutant::ReplicaChangesKept,
    mirror::Mutant::HolesNotCopied,
    mirror::Mutant::JoinNotRecorded,
];

const CLUSTER: [cluster::Mutant; 4] = [
    cluster::Mutant::DeposeAtOnce,
    cluster::Mutant::CertificateKept,
    cluster::Mutant::ForeignEpochTaken,
    cluster::Mutant::HandedOverTwice,
];

#[test]
fn every_mutant_is_found() {
    let is_wanted = |mutant: &Mutant| !search::is_quick() || QUICK.contains(&mutant.name().as_str());
    let mutants: Vec<Mutant> = Mutant::all().into_iter().filter(is_wanted).collect();
    let seeds = search::seeds().unwrap_or(QUICK_SEEDS);
    search::all_are_found("cluster", &mutants, |mutant| mutant.find(seeds));
}

/// Those that a scenario or a few seeds find.
const QUICK: [&str; 17] = [
    "pair TakeOverWithoutPromise",
    "pair BeginAlone",
    "pair GoOnAlone",
    "pair ShrinkOnProposal",
    "scsi WithdrawnIsGood",
    "scsi UnmapLeavesLast",
    "mirror GapTaken",
    "cluster CertificateKept",
    "cluster ForeignEpochTaken",
    "cluster HandedOverTwice",
    "pair AttachUnsettled",
    "pair HandOverUndrained",
    "pair LeaseForNewerRecord",
    "pair NoDrain",
    "pair PromiseNotSaved",
    "pair ReadWithoutPermit",
    "pair ServeAfterFollow",
];

/// Most seeds for a mutant when time is short.
const QUICK_SEEDS: u64 = 60;
