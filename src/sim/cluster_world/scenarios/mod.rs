//! Failures that the cluster has to survive, one by one, with the numbers that the project's list of failures gives
//! them (the table in docs/simulator.md says where the others are). The volume's home is the first node. Here is what they have
//! in common.

mod disks;
mod failover;
mod hosts;
mod lives;
mod resync;
mod rollback;
mod rooms;
mod snapshots;
mod versions;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

pub(super) use self::failover::{
    a_late_local_snapshot, a_lease_that_comes_with_the_deposition, a_move_with_a_write_on_its_way,
    a_paused_primary, a_promise_and_a_crash, a_read_of_what_is_in_doubt, a_read_past_the_unit,
};
pub(super) use self::lives::{epochs_handed_to_former_lives, epochs_of_former_lives};
pub(super) use self::rollback::{a_kept_state_in_a_rollback, a_rollback_over_a_resync};
use super::hosts::Host;
use super::runs::{compare, heal, look_at_all, run_with, until_level};
use super::{Cluster, VOLUMES, WITNESS, micros, name};
use crate::base::runtime::{Instant, Runtime};
use crate::base::units::{BlockAddress, VolumeId};
use crate::cluster::state::Command;
use crate::cluster::state::volume::{Transition, Watermark};
use crate::disk::{DiskErrorKind, Operation};
use crate::pair::ForceRefused;
use crate::sim::fault::{Effect, Fault};
use crate::store::interface::BlockStore;

const VOLUME: VolumeId = VOLUMES[0];
/// The node that serves at first, and the other one.
const P: usize = 0;
const S: usize = 1;

/// Runs a scenario on a cluster that is up, with the volume served and both in sync.
fn scenario<F: Future<Output = ()>>(run: impl FnOnce(Rc<Cluster>) -> F) {
    try_scenario(1, run).unwrap_or_else(|problem| panic!("{problem}"));
}

pub(super) fn try_scenario<F: Future<Output = ()>>(
    seed: u64,
    run: impl FnOnce(Rc<Cluster>) -> F,
) -> Result<(), String> {
    let outcome = run_with(seed, true, |cluster| async move {
        cluster.found().await?;
        cluster
            .until("the first node serves", 200, || cluster.serves(P, VOLUME) && cluster.in_sync(VOLUME) == 2)
            .await?;
        run(cluster.clone()).await;
        cluster.oracle.check(&cluster.snapshots)?;
        cluster.check_reservations()
    });
    outcome.map(drop)
}

async fn until(cluster: &Rc<Cluster>, what: &str, condition: impl Fn() -> bool) {
    cluster.until(what, 1000, condition).await.unwrap();
}

async fn pass(cluster: &Cluster, millis: u64) {
    cluster.clock.sleep(Duration::from_millis(millis)).await;
}

/// A host that waits for long.
fn host(cluster: &Rc<Cluster>, index: usize) -> Rc<Host> {
    let host = Host::new(cluster, index, VOLUME);
    host.patience.set(Some(Duration::from_secs(2)));
    host
}

fn sectors(block: u64) -> (u64, u64) {
    (block * 8, 8)
}

/// Begins a write beside everything else.
fn begin_write(cluster: &Cluster, host: &Rc<Host>, node: usize, block: u64) -> Rc<Cell<Option<bool>>> {
    let outcome = Rc::new(Cell::new(None));
    let (told, host) = (outcome.clone(), host.clone());
    cluster.clock.spawn(Box::pin(async move { told.set(Some(host.write(node, sectors(block)).await)) }));
    outcome
}

async fn heals(cluster: &Rc<Cluster>) {
    heal(cluster).await.unwrap();
    look_at_all(cluster, &Host::new(cluster, 9, VOLUME)).await.unwrap();
    until_level(cluster, VOLUME).await.unwrap();
    compare(cluster, VOLUME).await.unwrap();
}

/// Makes `member` lead.
async fn lead(cluster: &Rc<Cluster>, member: usize) {
    let leads =
        |member: usize| cluster.life(member).is_some_and(|life| life.member.view().leadership.may_decide);
    for _ in 0..40 {
        if leads(member) {
            // And everybody has heard of it.
            return pass(cluster, 30).await;
        }
        for other in (0..3).filter(|other| *other != member && leads(*other)) {
            cluster.set_isolated(other, false, false);
            pass(cluster, 25).await;
        }
        cluster.mend_network();
        pass(cluster, 30).await;
    }
    panic!("the wanted member never leads");
}

/// The other node loses its power, and the first one goes on alone.
async fn lose_replica(cluster: &Rc<Cluster>) {
    cluster.crash(S);
    until(cluster, "the first one is alone", || cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME))
        .await;
}

/// What has been acknowledged goes on record within a second.
async fn record_watermarks(cluster: &Rc<Cluster>) {
    pass(cluster, 40).await;
    assert_ne!(cluster.record(VOLUME).unwrap().watermark, Watermark::default());
}

fn problem(cluster: &Cluster, node: usize) -> Option<String> {
    cluster.life(node)?.data()?.node.report(VOLUME)?.problem
}

async fn force(cluster: &Cluster, node: usize) -> Result<(), ForceRefused> {
    cluster.life(node).unwrap().data().unwrap().node.force(VOLUME).await
}
