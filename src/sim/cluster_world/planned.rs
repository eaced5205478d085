//! What administrators ask for, at bad moments: moves, and switching everything off.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::hosts::Host;
use super::runs::{compare, heal, look_at_all, until_level};
use super::scenarios::try_scenario;
use super::{Cluster, NAMES, VOLUMES, micros, name};
use crate::base::runtime::{Instant, Runtime};
use crate::base::units::VolumeId;
use crate::cluster::state::Command;
use crate::cluster::state::volume::{Transition, VolumeRecord};

const VOLUME: VolumeId = VOLUMES[0];
/// The node that serves at first, and the other one.
const P: usize = 0;
const S: usize = 1;

/// Has `node` hand the volume over; whether it takes that.
fn hand_over(cluster: &Cluster, node: usize) -> bool {
    let data = cluster.life(node).and_then(|life| life.data());
    data.is_some_and(|data| data.node.hand_over(VOLUME, "it was asked for"))
}

/// Waits finely, for moments that are over soon.
async fn until(cluster: &Rc<Cluster>, what: &str, condition: impl Fn() -> bool) {
    for _ in 0..200_000 {
        if condition() {
            return;
        }
        cluster.clock.sleep(micros(5)).await;
    }
    panic!("in vain until {what}");
}

#[test]
fn a_move_is_not_forgotten_while_the_new_primarys_stream_begins() {
    let run = |cluster: Rc<Cluster>| async move {
        assert!(hand_over(&cluster, P));
        until(&cluster, "it is decided", || cluster.record(VOLUME).unwrap().primary == name(S)).await;
        // The former primary answers late: what the new one begins to send it is without an answer for a while.
        cluster.set_paused(P, true);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(hand_over(&cluster, S), "both are in sync by the record");
        cluster.clock.sleep(micros(2000)).await;
        cluster.set_paused(P, false);
        until(&cluster, "it is back", || cluster.serves(P, VOLUME)).await;
        assert_eq!(cluster.in_sync(VOLUME), 2);
    };
    try_scenario(1, run).unwrap_or_else(|problem| panic!("{problem}"));
}

#[test]
fn a_move_that_could_not_be_drained_in_time_is_tried_again() {
    planned(|cluster| async move {
        let one = host(&cluster, 0);
        assert!(one.write(P, (0, 8)).await);
        // What is on its way to the disks takes longer than hosts are to wait for a move.
        cluster.rooms[P].stall(Instant(cluster.clock.now().0 + 25_000_000));
        let writes = one.clone();
        cluster.clock.spawn(Box::pin(async move {
            writes.write(P, (8, 8)).await;
        }));
        cluster.clock.sleep(micros(500)).await;
        let before = cluster.record(VOLUME).unwrap().epoch;
        assert!(hand_over(&cluster, P));
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        let record = cluster.record(VOLUME).unwrap();
        assert_eq!(record.began_by, Some(Transition::Move));
        assert!(record.epoch > before + 1, "the first try was given up, in an epoch of its own");
        heals(&cluster).await;
    });
}

/// An hour of the cluster: longer than any scenario.
const FOR_GOOD: Duration = Duration::from_secs(36);
const BOTH: [usize; 2] = [P, S];

fn stop_on_purpose(cluster: &Cluster, nodes: &[usize], how_long: Duration) {
    for data in nodes.iter().filter_map(|node| cluster.life(*node)?.data()) {
        data.node.stop_on_purpose(how_long);
    }
}

fn all(cluster: &Cluster, is_so: impl Fn(&VolumeRecord) -> bool) -> bool {
    VOLUMES.iter().all(|volume| cluster.record(*volume).is_some_and(|record| is_so(&record)))
}

/// The cluster is switched off, as `gemel cluster shutdown` does it, in the middle of anything. Whoever asks for it may go
/// away before it is done; then the processes end in order, or not at all, or the power fails.
pub(super) async fn switch_off_at_any_moment(cluster: &Rc<Cluster>) {
    let random = &cluster.random;
    let is_well = |node: &usize| cluster.life(*node).is_some_and(|life| !life.world.is_paused());
    cluster.tell(|| "the cluster is switched off".to_owned());
    cluster.meet("stops of the cluster asked for");
    for _ in 0..random.below(80) {
        let there: Vec<usize> = BOTH.into_iter().filter(is_well).collect();
        stop_on_purpose(cluster, &there, Duration::from_millis(50));
        if all(cluster, VolumeRecord::is_certified) {
            break;
        }
        cluster.clock.sleep(micros(1000)).await;
    }
    if !all(cluster, VolumeRecord::is_certified) {
        return;
    }
    cluster.meet("stops of the cluster");
    match random.below(4) {
        0 => BOTH.into_iter().for_each(|node| cluster.crash(node)),
        1 => {}
        _ => {
            let first = random.index(2);
            for node in [first, 1 - first].into_iter().filter(is_well) {
                let Some(data) = cluster.life(node).and_then(|life| life.data()) else { continue };
                data.is_leaving.set(true);
                data.tell_health();
                cluster.clock.sleep(micros(random.below(3000))).await;
                cluster.kill(node);
            }
        }
    }
}

/// A node is to be free of what it serves, or may serve again.
pub(super) fn set_maintenance(cluster: &Cluster, node: usize, is_on: bool) {
    let lives = (0..3).filter_map(|member| cluster.life(member));
    if let Some(life) = lives.into_iter().find(|life| !life.world.is_paused()) {
        cluster.tell(|| format!("{} in maintenance: {is_on}", NAMES[node]));
        drop(life.member.propose(Command::SetMaintenance { node: name(node), is_on }));
    }
}

/// Both processes end, one after the other, when every volume is stopped.
async fn switch_off(cluster: &Rc<Cluster>) {
    stop_on_purpose(cluster, &BOTH, FOR_GOOD);
    until(cluster, "all is stopped", || all(cluster, VolumeRecord::is_certified)).await;
    for node in [S, P] {
        let data = cluster.life(node).and_then(|life| life.data()).unwrap();
        data.is_leaving.set(true);
        data.tell_health();
        cluster.clock.sleep(micros(2000)).await;
        cluster.kill(node);
    }
    assert!(all(cluster, VolumeRecord::is_certified), "and nobody has begun anything since");
}

fn host(cluster: &Rc<Cluster>, index: usize) -> Rc<Host> {
    let host = Host::new(cluster, index, VOLUME);
    host.patience.set(Some(Duration::from_secs(2)));
    host
}

async fn heals(cluster: &Rc<Cluster>) {
    heal(cluster).await.unwrap();
    look_at_all(cluster, &Host::new(cluster, 9, VOLUME)).await.unwrap();
    until_level(cluster, VOLUME).await.unwrap();
    compare(cluster, VOLUME).await.unwrap();
}

fn planned<F: Future<Output = ()>>(run: impl Fn(Rc<Cluster>) -> F) {
    try_all(run).unwrap_or_else(|problem| panic!("{problem}"));
}

/// Runs it with a few seeds.
pub(super) fn try_all<F: Future<Output = ()>>(run: impl Fn(Rc<Cluster>) -> F) -> Result<(), String> {
    (1..4).try_for_each(|seed| try_scenario(seed, &run).map_err(|problem| format!("seed {seed}: {problem}")))
}

#[test]
fn after_a_stop_on_purpose_either_room_starts_with_the_witness_alone() {
    for first in BOTH {
        planned(|cluster| async move {
            let (one, other) = (host(&cluster, 0), host(&cluster, 1));
            assert!(one.write(P, (0, 8)).await);
            switch_off(&cluster).await;
            cluster.start(first).unwrap();
            until(&cluster, "it goes on alone", || {
                cluster.serves(first, VOLUME) && cluster.in_sync(VOLUME) == 1
            })
            .await;
            assert!(other.read(first, (0, 8)).await.is_some());
            assert!(other.write(first, (8, 8)).await);
            // The certificate is consumed: the other room alone does not serve what it has.
            cluster.crash(first);
            cluster.start(1 - first).unwrap();
            cluster.clock.sleep(Duration::from_millis(100)).await;
            assert!(!cluster.serves(1 - first, VOLUME), "it lacks a write");
            cluster.start(first).unwrap();
            until(&cluster, "both are in sync", || all(&cluster, |record| record.in_sync.len() == 2)).await;
            heals(&cluster).await;
        });
    }
}

#[test]
fn after_a_stop_on_purpose_both_go_on_together_without_a_resync() {
    planned(|cluster| async move {
        assert!(host(&cluster, 0).write(P, (0, 8)).await);
        switch_off(&cluster).await;
        cluster.start(S).unwrap();
        cluster.start(P).unwrap();
        let is_started = |record: &VolumeRecord| record.began_by == Some(Transition::Start);
        let is_served = || VOLUMES.iter().all(|volume| cluster.server(*volume).is_some());
        until(&cluster, "all is served", is_served).await;
        until_level(&cluster, VOLUME).await.unwrap();
        assert!(all(&cluster, |record| is_started(record) && record.in_sync.len() == 2));
        heals(&cluster).await;
    });
}

#[test]
fn a_volume_with_one_whole_replica_is_started_by_its_node_only() {
    planned(|cluster| async move {
        let one = host(&cluster, 0);
        cluster.crash(S);
        until(&cluster, "the first one is alone", || cluster.in_sync(VOLUME) == 1).await;
        assert!(one.write(P, (0, 8)).await);
        stop_on_purpose(&cluster, &[P], FOR_GOOD);
        cluster.clock.sleep(Duration::from_millis(20)).await;
        assert_eq!(
            cluster.record(VOLUME).unwrap().began_by,
            Some(Transition::Shrink),
            "no certificate for one"
        );
        cluster.kill(P);
        cluster.start(S).unwrap();
        cluster.clock.sleep(Duration::from_millis(100)).await;
        assert!(!cluster.serves(S, VOLUME));
        cluster.start(P).unwrap();
        until(&cluster, "it serves", || cluster.serves(P, VOLUME)).await;
        heals(&cluster).await;
    });
}

#[test]
fn a_stop_on_purpose_that_is_given_up_ends_by_itself() {
    planned(|cluster| async move {
        let one = host(&cluster, 0);
        assert!(one.write(P, (0, 8)).await);
        // Whoever asked for it goes away: nobody repeats it.
        stop_on_purpose(&cluster, &BOTH, Duration::from_millis(50));
        until(&cluster, "all is stopped", || all(&cluster, VolumeRecord::is_certified)).await;
        assert!(cluster.server(VOLUME).is_none());
        until(&cluster, "it is served again", || cluster.serves(P, VOLUME)).await;
        assert!(one.write(P, (8, 8)).await);
        assert_eq!(cluster.in_sync(VOLUME), 2);
        heals(&cluster).await;
    });
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_stop_costs_nothing() {
    for dies in BOTH {
        for after in [0, 300, 1500] {
            planned(|cluster| async move {
                let one = host(&cluster, 0);
                assert!(one.write(P, (0, 8)).await);
                let writing = one.clone();
                cluster.clock.spawn(Box::pin(async move {
                    let _ = writing.write(P, (8, 8)).await;
                }));
                stop_on_purpose(&cluster, &BOTH, Duration::from_millis(50));
                cluster.clock.sleep(micros(after)).await;
                cluster.crash(dies);
                let other = 1 - dies;
                until(&cluster, "the other one serves", || cluster.serves(other, VOLUME)).await;
                assert!(host(&cluster, 1).read(other, (0, 8)).await.is_some());
                heals(&cluster).await;
            });
        }
    }
}

/// The epoch that begins from a certificate consumes it: what its primary alone had when it fell over is in doubt, and is
/// not read before it is settled.
pub(super) async fn a_certificate_that_was_used(cluster: Rc<Cluster>) {
    let (one, other) = (host(&cluster, 0), host(&cluster, 1));
    assert!(one.write(P, (0, 8)).await);
    switch_off(&cluster).await;
    cluster.start(P).unwrap();
    cluster.start(S).unwrap();
    until(&cluster, "the first one serves", || cluster.serves(P, VOLUME) && cluster.in_sync(VOLUME) == 2)
        .await;
    until_level(&cluster, VOLUME).await.unwrap();
    cluster.set_link(P, S, false);
    let (in_doubt, writing) = (Rc::new(Cell::new(None)), one.clone());
    let told = in_doubt.clone();
    cluster.clock.spawn(Box::pin(async move { told.set(Some(writing.write(P, (0, 8)).await)) }));
    cluster.clock.sleep(micros(1000)).await;
    cluster.kill(P);
    cluster.start(P).unwrap();
    until(&cluster, "the first one serves again", || cluster.serves(P, VOLUME)).await;
    let is_both = cluster.in_sync(VOLUME) == 2;
    assert!(other.read(P, (0, 8)).await.is_some());
    cluster.crash(P);
    assert_ne!(in_doubt.get(), Some(true));
    cluster.mend_network();
    if is_both {
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(other.read(S, (0, 8)).await.is_some());
    }
    heals(&cluster).await;
}

#[test]
fn a_certificate_counts_once() {
    planned(a_certificate_that_was_used);
}
