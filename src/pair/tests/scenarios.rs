//! Failures that a pair has to survive, one by one, with the numbers that the project's list of failures gives
//! them. The volume's home is the first node.

use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, select};

use super::super::ForceRefused;
use super::clients::{SIZE_BYTES, read, write};
use super::cluster::{Cluster, VOLUMES, micros, name};
use super::runs::{compare, heal, until_level};
use super::site::Life;
use crate::base::runtime::Runtime;
use crate::cluster::state::Command;
use crate::cluster::state::volume::{Transition, Watermark};
use crate::sim::executor::Executor;
use crate::sim::random::Random;

const VOLUME: crate::base::units::VolumeId = VOLUMES[0];
/// The node that serves at first, and the other one.
const P: usize = 0;
const S: usize = 1;

/// Runs a scenario on a cluster that is up, with the volume served and both in sync.
fn scenario<F: Future<Output = ()>>(run: impl FnOnce(Rc<Cluster>, Rc<Executor>) -> F) {
    let executor = Rc::new(Executor::new(1));
    let cluster = Cluster::new(&executor, &Random::new(1), SIZE_BYTES);
    cluster.is_orderly.set(true);
    let clock = cluster.clock.clone();
    let lives = async {
        for node in [P, S] {
            cluster.start(&executor, node, true).await.unwrap();
        }
        until(&cluster, || serves(&cluster, P)).await;
        run(cluster.clone(), executor.clone()).await;
        cluster.check().unwrap();
    };
    let ended = executor.block_on(select(Box::pin(lives), clock.sleep(Duration::from_secs(20)))).unwrap();
    assert!(matches!(ended, Either::Left(_)), "something waits for ever");
    cluster.sites.iter().for_each(|site| site.crash());
    cluster.clock.crash();
}

async fn until(cluster: &Rc<Cluster>, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        cluster.clock.sleep(micros(200)).await;
    }
    panic!("never comes: epoch {:?}", cluster.record(VOLUME));
}

fn life(cluster: &Cluster, node: usize) -> Rc<Life> {
    cluster.sites[node].life().unwrap()
}

fn serves(cluster: &Cluster, node: usize) -> bool {
    cluster.sites[node].life().is_some_and(|life| life.attached(VOLUME).is_some())
}

/// Begins a write beside everything else.
fn spawn_write(cluster: &Rc<Cluster>, node: usize, block: u64) -> Rc<std::cell::Cell<Option<bool>>> {
    let outcome = Rc::new(std::cell::Cell::new(None));
    let (told, cluster, life) = (outcome.clone(), cluster.clone(), life(cluster, node));
    let clock = cluster.clock.clone();
    clock.spawn(Box::pin(async move { told.set(Some(write(&cluster, &life, VOLUME, block).await)) }));
    outcome
}

async fn heals(cluster: &Rc<Cluster>, executor: &Executor) {
    heal(cluster, executor).await.unwrap();
    until_level(cluster, VOLUME).await.unwrap();
    let server = if serves(cluster, P) { P } else { S };
    for block in 0..8 {
        read(cluster, &life(cluster, server), VOLUME, block).await;
    }
    compare(cluster, VOLUME).await.unwrap();
}

fn members(cluster: &Cluster) -> usize {
    cluster.record(VOLUME).in_sync.len()
}

#[test]
fn failure_01_a_primary_dies_with_a_write_in_flight() {
    scenario(|cluster, executor| async move {
        assert!(write(&cluster, &life(&cluster, P), VOLUME, 0).await);
        cluster.set_paused(S, true);
        let second = spawn_write(&cluster, P, 1);
        cluster.clock.sleep(micros(2000)).await;
        assert_eq!(second.get(), None, "the replica has not answered");
        cluster.crash(P).await;
        cluster.set_paused(S, false);
        until(&cluster, || serves(&cluster, S)).await;
        for block in [0, 1, 1] {
            read(&cluster, &life(&cluster, S), VOLUME, block).await;
        }
        heals(&cluster, &executor).await;
    });
}

#[test]
fn failure_02_the_link_is_cut_and_one_proposal_wins() {
    scenario(|cluster, executor| async move {
        cluster.set_link(false);
        let during = spawn_write(&cluster, P, 0);
        until(&cluster, || members(&cluster) == 1).await;
        until(&cluster, || serves(&cluster, P) != serves(&cluster, S)).await;
        until(&cluster, || during.get().is_some()).await;
        heals(&cluster, &executor).await;
    });
}

#[test]
fn failure_03_a_primary_alone_in_the_world_acknowledges_nothing() {
    scenario(|cluster, executor| async move {
        let cut_off = life(&cluster, P);
        cluster.set_link(false);
        cluster.set_control(P, false);
        let during = spawn_write(&cluster, P, 0);
        until(&cluster, || serves(&cluster, S)).await;
        assert!(write(&cluster, &life(&cluster, S), VOLUME, 1).await);
        let before = cluster.totals().reads;
        let (reader, clock) = (read(&cluster, &cut_off, VOLUME, 1), cluster.clock.clone());
        select(Box::pin(reader), clock.sleep(micros(50_000))).await;
        assert_eq!(cluster.totals().reads, before, "nothing is read without a lease");
        assert_ne!(during.get(), Some(true));
        heals(&cluster, &executor).await;
    });
}

#[test]
fn failure_04_a_shrink_that_commits_late_acknowledges_nothing_before() {
    scenario(|cluster, executor| async move {
        cluster.next_commit.set(Some(micros(100_000)));
        cluster.set_paused(S, true);
        let during = spawn_write(&cluster, P, 0);
        // Later proposals get lost.
        until(&cluster, || cluster.next_commit.get().is_none()).await;
        cluster.set_control_ways(P, false, true);
        cluster.clock.sleep(micros(60_000)).await;
        assert_eq!((during.get(), members(&cluster)), (None, 2));
        until(&cluster, || members(&cluster) == 1).await;
        heals(&cluster, &executor).await;
    });
}

#[test]
fn failure_06_a_paused_primary_is_replaced_and_its_writes_are_undone() {
    scenario(|cluster, executor| async move {
        let paused = life(&cluster, P);
        cluster.set_paused(P, true);
        let queued = spawn_write(&cluster, P, 0);
        until(&cluster, || serves(&cluster, S)).await;
        assert!(write(&cluster, &life(&cluster, S), VOLUME, 0).await);
        cluster.set_paused(P, false);
        read(&cluster, &paused, VOLUME, 0).await;
        until(&cluster, || queued.get().is_some()).await;
        assert_eq!(queued.get(), Some(false));
        heals(&cluster, &executor).await;
    });
}

#[test]
fn failure_09_a_stale_node_does_not_serve() {
    scenario(|cluster, executor| async move {
        cluster.crash(S).await;
        until(&cluster, || members(&cluster) == 1 && serves(&cluster, P)).await;
        assert!(write(&cluster, &life(&cluster, P), VOLUME, 0).await);
        cluster.crash(P).await;
        cluster.start(&executor, S, false).await.unwrap();
        cluster.clock.sleep(micros(300_000)).await;
        assert!(!serves(&cluster, S), "only the other one has everything");
        cluster.start(&executor, P, false).await.unwrap();
        until(&cluster, || serves(&cluster, P)).await;
        heals(&cluster, &executor).await;
    });
}

#[test]
fn failure_10_either_node_serves_when_both_were_in_sync() {
    scenario(|cluster, executor| async move {
        assert!(write(&cluster, &life(&cluster, P), VOLUME, 0).await);
        cluster.crash(P).await;
        cluster.crash(S).await;
        cluster.start(&executor, S, false).await.unwrap();
        until(&cluster, || serves(&cluster, S)).await;
        read(&cluster, &life(&cluster, S), VOLUME, 0).await;
        heals(&cluster, &executor).await;
    });
}

#[test]
fn failure_14_a_restarted_primary_begins_an_epoch() {
    scenario(|cluster, executor| async move {
        assert!(write(&cluster, &life(&cluster, P), VOLUME, 0).await);
        let before = cluster.record(VOLUME).epoch;
        cluster.crash(P).await;
        cluster.start(&executor, P, false).await.unwrap();
        until(&cluster, || serves(&cluster, P) || serves(&cluster, S)).await;
        assert!(cluster.record(VOLUME).epoch > before);
        heals(&cluster, &executor).await;
    });
}

#[test]
fn failure_15_what_the_old_primary_alone_has_is_overwritten() {
    scenario(|cluster, executor| async move {
        cluster.set_link(false);
        cluster.set_control(P, false);
        for block in 0..4 {
            let _ = spawn_write(&cluster, P, block);
        }
        cluster.clock.sleep(micros(2000)).await;
        cluster.crash(P).await;
        until(&cluster, || serves(&cluster, S)).await;
        for block in 0..2 {
            assert!(write(&cluster, &life(&cluster, S), VOLUME, block).await);
        }
        heals(&cluster, &executor).await;
    });
}

#[test]
fn failure_18_a_node_that_is_back_at_once_gets_what_it_missed() {
    scenario(|cluster, executor| async move {
        cluster.crash(S).await;
        for block in 0..6 {
            assert!(write(&cluster, &life(&cluster, P), VOLUME, block).await);
        }
        heals(&cluster, &executor).await;
    });
}

/// What has been acknowledged goes on record.
async fn record_watermarks(cluster: &Rc<Cluster>) {
    let watermarks = life(cluster, P).node.watermarks();
    cluster.propose(P, Command::RecordWatermarks { watermarks });
    until(cluster, || cluster.record(VOLUME).watermark != Watermark::default()).await;
}

fn problem(cluster: &Cluster, node: usize) -> Option<String> {
    life(cluster, node).node.report(VOLUME).and_then(|report| report.problem)
}

#[test]
fn failure_25_the_only_replica_has_lost_what_it_confirmed() {
    scenario(|cluster, executor| async move {
        cluster.crash(S).await;
        until(&cluster, || members(&cluster) == 1).await;
        cluster.sites[P].set_lying(true);
        let lost = spawn_write(&cluster, P, 0);
        until(&cluster, || lost.get() == Some(true)).await;
        record_watermarks(&cluster).await;
        cluster.crash(P).await;
        cluster.sites[P].set_lying(false);
        for node in [P, S] {
            cluster.start(&executor, node, false).await.unwrap();
        }
        until(&cluster, || problem(&cluster, P).is_some_and(|why| why.contains("have lost writes"))).await;
        cluster.clock.sleep(Duration::from_millis(200)).await;
        assert!(!serves(&cluster, P) && !serves(&cluster, S), "nobody has what was acknowledged");
        // The operator gives it up.
        life(&cluster, P).node.force(VOLUME).await.unwrap();
        until(&cluster, || serves(&cluster, P)).await;
        assert_eq!(cluster.record(VOLUME).began_by, Some(Transition::Force));
    });
}

#[test]
fn a_primary_that_has_lost_what_it_confirmed_gives_way_to_the_other_member() {
    scenario(|cluster, executor| async move {
        cluster.sites[P].set_lying(true);
        assert!(write(&cluster, &life(&cluster, P), VOLUME, 0).await);
        record_watermarks(&cluster).await;
        // Both rooms lose power.
        cluster.crash(P).await;
        cluster.crash(S).await;
        cluster.sites[P].set_lying(false);
        for node in [P, S] {
            cluster.start(&executor, node, false).await.unwrap();
        }
        until(&cluster, || serves(&cluster, S)).await;
        read(&cluster, &life(&cluster, S), VOLUME, 0).await;
        heals(&cluster, &executor).await;
    });
}

#[test]
fn a_stale_node_serves_by_force_alone() {
    scenario(|cluster, executor| async move {
        assert!(write(&cluster, &life(&cluster, P), VOLUME, 0).await);
        cluster.crash(S).await;
        until(&cluster, || members(&cluster) == 1).await;
        cluster.start(&executor, S, false).await.unwrap();
        until(&cluster, || life(&cluster, S).node.report(VOLUME).is_some()).await;
        assert_eq!(life(&cluster, S).node.force(VOLUME).await, Err(ForceRefused::PeerThere));
        cluster.crash(P).await;
        cluster.clock.sleep(Duration::from_millis(200)).await;
        assert!(!serves(&cluster, S), "it may lack what was acknowledged");
        life(&cluster, S).node.force(VOLUME).await.unwrap();
        until(&cluster, || serves(&cluster, S)).await;
        read(&cluster, &life(&cluster, S), VOLUME, 0).await;
        heals(&cluster, &executor).await;
    });
}

#[test]
fn a_node_in_maintenance_is_left_and_a_volume_comes_home() {
    scenario(|cluster, executor| async move {
        cluster.propose(P, Command::SetMaintenance { node: name(P), is_on: true });
        until(&cluster, || serves(&cluster, S)).await;
        let home = Some(name(P));
        cluster.propose(S, Command::SetHome { volume: cluster.record(VOLUME).name, home });
        cluster.clock.sleep(Duration::from_millis(200)).await;
        assert!(serves(&cluster, S), "somebody works on its home");
        cluster.propose(S, Command::SetMaintenance { node: name(P), is_on: false });
        until(&cluster, || serves(&cluster, P)).await;
        heals(&cluster, &executor).await;
    });
}

#[test]
fn a_primary_whose_disks_are_gone_is_replaced() {
    scenario(|cluster, executor| async move {
        assert!(write(&cluster, &life(&cluster, P), VOLUME, 0).await);
        cluster.sites[P].set_disks(false);
        let during = spawn_write(&cluster, P, 1);
        until(&cluster, || serves(&cluster, S)).await;
        assert_ne!(during.get(), Some(true));
        assert!(!serves(&cluster, P));
        read(&cluster, &life(&cluster, S), VOLUME, 0).await;
        cluster.crash(P).await;
        cluster.sites[P].set_disks(true);
        heals(&cluster, &executor).await;
    });
}

#[test]
fn a_move_whose_replica_goes_away_does_not_wait_for_ever() {
    scenario(|cluster, executor| async move {
        cluster.set_paused(S, true);
        let during = spawn_write(&cluster, P, 0);
        assert!(life(&cluster, P).node.hand_over(VOLUME, "it was asked for"));
        until(&cluster, || members(&cluster) == 1 && serves(&cluster, P)).await;
        until(&cluster, || during.get().is_some()).await;
        assert!(write(&cluster, &life(&cluster, P), VOLUME, 1).await);
        heals(&cluster, &executor).await;
    });
}
