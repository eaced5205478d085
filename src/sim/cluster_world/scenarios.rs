//! Failures that the cluster has to survive, one by one, with the numbers that the project's list of failures gives
//! them (the table in docs/simulator.md says where the others are). The volume's home is the first node.

// Longer than others because the scenarios are one list, of which each entry is read by itself.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::hosts::Host;
use super::runs::{compare, heal, look_at_all, run_with, until_level};
use super::{Cluster, VOLUMES, WITNESS, micros, name};
use crate::array::{SegmentIndex, Slot};
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
        cluster.oracle.check()?;
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

#[test]
fn scenario_01_a_primary_dies_with_a_write_in_flight() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        cluster.set_paused(S, true);
        let second = begin_write(&cluster, &one, P, 1);
        pass(&cluster, 2).await;
        assert_eq!(second.get(), None, "the replica has not answered");
        cluster.crash(P);
        cluster.set_paused(S, false);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        for block in [0, 1, 1] {
            assert!(other.read(S, sectors(block)).await.is_some());
        }
        heals(&cluster).await;
    });
}

#[test]
fn scenario_02_the_link_is_cut_and_one_proposal_wins() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        cluster.set_link(P, S, false);
        let during = begin_write(&cluster, &one, P, 0);
        until(&cluster, "one is alone", || cluster.in_sync(VOLUME) == 1).await;
        until(&cluster, "it serves", || cluster.server(VOLUME).is_some()).await;
        until(&cluster, "the write is over", || during.get().is_some()).await;
        heals(&cluster).await;
    });
}

#[test]
fn scenario_03_a_primary_alone_in_the_world_acknowledges_nothing() {
    scenario(|cluster| async move {
        let (attached, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(attached.write(P, sectors(1)).await);
        cluster.set_isolated(P, false, false);
        let during = begin_write(&cluster, &attached, P, 0);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(other.write(S, sectors(1)).await);
        attached.patience.set(Some(Duration::from_millis(60)));
        assert_eq!(attached.read(P, sectors(1)).await, None, "nothing is read without a lease");
        assert_ne!(during.get(), Some(true));
        heals(&cluster).await;
    });
}

#[test]
fn scenario_04_a_shrink_that_commits_late_acknowledges_nothing_before() {
    scenario(|cluster| async move {
        lead(&cluster, WITNESS).await;
        until(&cluster, "all is well", || cluster.serves(P, VOLUME) && cluster.in_sync(VOLUME) == 2).await;
        let one = host(&cluster, 0);
        // The leader gets the proposal, and reaches nobody with it.
        cluster.cut_after_proposal.set(&[(WITNESS, P)]);
        cluster.set_paused(S, true);
        let during = begin_write(&cluster, &one, P, 0);
        until(&cluster, "the shrink is proposed", || cluster.cut_after_proposal.get().is_empty()).await;
        pass(&cluster, 300).await;
        assert_eq!((during.get(), cluster.in_sync(VOLUME)), (None, 2));
        cluster.mend_network();
        until(&cluster, "the set is smaller", || cluster.in_sync(VOLUME) == 1).await;
        until(&cluster, "the write is over", || during.get().is_some()).await;
        heals(&cluster).await;
    });
}

#[test]
fn scenario_05_an_expansion_of_which_the_primary_never_hears() {
    scenario(|cluster| async move {
        lead(&cluster, WITNESS).await;
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        cluster.crash(S);
        until(&cluster, "the first one is alone", || {
            cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
        })
        .await;
        assert!(one.write(P, sectors(0)).await);
        cluster.cut_after_proposal.set(&[(WITNESS, P), (S, P)]);
        cluster.start(S).unwrap();
        until(&cluster, "the expansion is committed", || cluster.in_sync(VOLUME) == 2).await;
        let alone = begin_write(&cluster, &one, P, 1);
        until(&cluster, "the other one takes over", || cluster.serves(S, VOLUME)).await;
        assert_ne!(alone.get(), Some(true), "the first one needs both");
        for block in [0, 1] {
            assert!(other.read(S, sectors(block)).await.is_some());
        }
        assert!(other.write(S, sectors(1)).await);
        heals(&cluster).await;
    });
}

#[test]
fn scenario_06_a_paused_primary_is_replaced_and_its_writes_are_undone() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(3)).await);
        cluster.set_paused(P, true);
        let queued = begin_write(&cluster, &one, P, 0);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(other.write(S, sectors(0)).await);
        pass(&cluster, 600).await;
        cluster.set_paused(P, false);
        one.patience.set(Some(Duration::from_millis(40)));
        assert_eq!(one.read(P, sectors(0)).await, None);
        until(&cluster, "the queued write is over", || queued.get().is_some()).await;
        assert_eq!(queued.get(), Some(false));
        heals(&cluster).await;
    });
}

/// What the old primary has on its way to its disks arrives when the new one has written the same block.
pub(super) async fn a_late_local_write(cluster: Rc<Cluster>) {
    let (one, other) = (host(&cluster, 0), host(&cluster, 1));
    assert!(one.write(P, sectors(0)).await);
    cluster.rooms[P].stall(Instant(cluster.clock.now().0 + 150_000_000));
    let late: Vec<_> = (0..4).map(|block| begin_write(&cluster, &one, P, block)).collect();
    pass(&cluster, 1).await;
    cluster.set_isolated(P, false, false);
    until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
    for block in 0..4 {
        assert!(other.write(S, sectors(block)).await);
    }
    cluster.mend_network();
    until(&cluster, "both are in sync", || cluster.in_sync(VOLUME) == 2).await;
    assert!(late.iter().all(|late| late.get() != Some(true)));
    pass(&cluster, 100).await;
    heals(&cluster).await;
}

#[test]
fn scenario_07_a_deposed_primarys_local_writes_end_before_anything_newer() {
    scenario(a_late_local_write);
}

#[test]
fn scenario_08_both_rooms_lose_power_and_come_back_one_after_the_other() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        let during: Vec<_> = (0..6).map(|block| begin_write(&cluster, &one, P, block)).collect();
        cluster.clock.sleep(micros(150)).await;
        cluster.crash(P);
        cluster.crash(S);
        cluster.start(P).unwrap();
        until(&cluster, "the first one serves", || cluster.serves(P, VOLUME)).await;
        for block in 0..6 {
            assert!(other.read(P, sectors(block)).await.is_some());
        }
        cluster.crash(P);
        cluster.start(S).unwrap();
        pass(&cluster, 300).await;
        assert!(!cluster.serves(S, VOLUME), "the first one alone has what was read");
        drop(during);
        cluster.start(P).unwrap();
        until(&cluster, "the first one serves", || cluster.serves(P, VOLUME)).await;
        for block in 0..6 {
            assert!(other.read(P, sectors(block)).await.is_some());
        }
        heals(&cluster).await;
    });
}

#[test]
fn scenario_09_a_stale_node_does_not_serve() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        cluster.crash(S);
        until(&cluster, "the first one is alone", || {
            cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
        })
        .await;
        assert!(one.write(P, sectors(0)).await);
        cluster.crash(P);
        cluster.start(S).unwrap();
        pass(&cluster, 400).await;
        assert!(!cluster.serves(S, VOLUME), "only the other one has everything");
        cluster.start(P).unwrap();
        until(&cluster, "the first one serves", || cluster.serves(P, VOLUME)).await;
        heals(&cluster).await;
    });
}

#[test]
fn scenario_10_either_node_serves_when_both_were_in_sync() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        cluster.crash(P);
        cluster.crash(S);
        cluster.start(S).unwrap();
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(other.read(S, sectors(0)).await.is_some());
        heals(&cluster).await;
    });
}

#[test]
fn scenario_11_a_witness_without_its_log_makes_no_majority() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        cluster.crash(S);
        until(&cluster, "the first one is alone", || {
            cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
        })
        .await;
        assert!(one.write(P, sectors(0)).await);
        cluster.crash(P);
        cluster.crash(WITNESS);
        cluster.rooms[WITNESS].file.put_back(Vec::new());
        cluster.start(WITNESS).unwrap();
        cluster.start(S).unwrap();
        pass(&cluster, 500).await;
        let view = |member: usize| cluster.life(member).map(|life| life.member.view());
        assert!(!cluster.serves(S, VOLUME));
        assert!(view(WITNESS).is_some_and(|view| !view.is_voter()), "whoever it was, it is a stranger");
        assert!(view(S).is_some_and(|view| !view.has_majority()));
        cluster.start(P).unwrap();
        until(&cluster, "the first one serves", || cluster.serves(P, VOLUME)).await;
        accept_witness(&cluster).await;
        heals(&cluster).await;
        // It counts: with it alone the second node goes on.
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        heals(&cluster).await;
    });
}

/// An operator has the witness in its present life accepted.
async fn accept_witness(cluster: &Rc<Cluster>) {
    let is_seated = || cluster.life(WITNESS).is_some_and(|life| life.member.view().is_voter());
    for _ in 0..20 {
        for life in (0..2).filter_map(|node| cluster.life(node)) {
            life.member.replace_member(WITNESS);
        }
        pass(cluster, 20).await;
        if is_seated() {
            return;
        }
    }
    panic!("the witness is not accepted");
}

/// Detected where it can be: by what the leader knows that this member had acknowledged. What it may have voted before
/// the first heartbeat is not undone, so putting a witness back is unsupported (docs/protocol.md).
#[test]
fn scenario_12_a_witness_that_was_put_back_is_found_out() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        let snapshot = cluster.rooms[WITNESS].file.contents();
        cluster.crash(S);
        until(&cluster, "the first one is alone", || cluster.in_sync(VOLUME) == 1).await;
        cluster.start(S).unwrap();
        until(&cluster, "both are in sync", || cluster.in_sync(VOLUME) == 2).await;
        cluster.kill(WITNESS);
        cluster.rooms[WITNESS].file.put_back(snapshot);
        cluster.start(WITNESS).unwrap();
        let failure = || cluster.life(WITNESS).and_then(|life| life.member.view().failure);
        until(&cluster, "it is found out", || failure().is_some()).await;
        assert!(one.write(cluster.server(VOLUME).unwrap(), sectors(0)).await, "the nodes go on");
        cluster.kill(WITNESS);
        cluster.rooms[WITNESS].file.put_back(Vec::new());
        cluster.start(WITNESS).unwrap();
        pass(&cluster, 50).await;
        accept_witness(&cluster).await;
        heals(&cluster).await;
    });
}

/// The other node has promised the next epoch, and falls over; the first one is there again.
pub(super) async fn a_promise_and_a_crash(cluster: Rc<Cluster>) {
    let one = host(&cluster, 0);
    assert!(one.write(P, sectors(0)).await);
    let epoch = cluster.record(VOLUME).unwrap().epoch;
    cluster.hold_next_proposal[S].set(Some(Duration::from_millis(500)));
    cluster.set_isolated(P, false, false);
    until(&cluster, "the other one promises", || cluster.oracle.promised_by(S, VOLUME) > epoch).await;
    cluster.crash(S);
    cluster.set_isolated(WITNESS, false, false);
    cluster.set_link(P, S, true);
    let during = begin_write(&cluster, &one, P, 1);
    cluster.start(S).unwrap();
    pass(&cluster, 8).await;
    cluster.mend_network();
    until(&cluster, "another epoch", || cluster.record(VOLUME).unwrap().epoch > epoch).await;
    until(&cluster, "the write is over", || during.get().is_some()).await;
    heals(&cluster).await;
}

#[test]
fn scenario_13_a_promise_outlives_a_crash() {
    scenario(a_promise_and_a_crash);
}

#[test]
fn scenario_14_a_restarted_primary_begins_an_epoch() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        let before = cluster.record(VOLUME).unwrap().epoch;
        let in_doubt = begin_write(&cluster, &one, P, 1);
        cluster.clock.sleep(micros(200)).await;
        cluster.crash(P);
        cluster.start(P).unwrap();
        until(&cluster, "somebody serves", || cluster.server(VOLUME).is_some()).await;
        assert!(cluster.record(VOLUME).unwrap().epoch > before);
        assert_ne!(in_doubt.get(), Some(true));
        let server = cluster.server(VOLUME).unwrap();
        assert!(other.read(server, sectors(1)).await.is_some());
        heals(&cluster).await;
    });
}

#[test]
fn scenario_15_what_the_old_primary_alone_has_is_overwritten() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        cluster.set_isolated(P, false, false);
        let lost: Vec<_> = (0..4).map(|block| begin_write(&cluster, &one, P, block)).collect();
        pass(&cluster, 2).await;
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        for block in 0..2 {
            assert!(other.write(S, sectors(block)).await);
        }
        assert!(lost.iter().all(|lost| lost.get() != Some(true)));
        heals(&cluster).await;
    });
}

#[test]
fn scenario_16_the_source_of_a_resync_dies() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        cluster.crash(S);
        until(&cluster, "the first one is alone", || {
            cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
        })
        .await;
        for block in (0..2400).step_by(16) {
            assert!(one.write(P, (block * 8, 128)).await);
        }
        let cursor = || {
            let data = cluster.life(P).and_then(|life| life.data())?;
            data.node.report(VOLUME)?.resync.map(|resync| resync.cursor.0)
        };
        cluster.start(S).unwrap();
        while !cursor().is_some_and(|cursor| (SIZE_BLOCKS / 2..SIZE_BLOCKS * 9 / 10).contains(&cursor)) {
            cluster.clock.sleep(micros(20)).await;
        }
        cluster.crash(P);
        pass(&cluster, 300).await;
        assert!(!cluster.serves(S, VOLUME), "it does not have everything");
        cluster.start(P).unwrap();
        while cursor().unwrap_or(0) == 0 {
            cluster.clock.sleep(micros(20)).await;
        }
        let resumed_at = cursor().unwrap();
        assert!(resumed_at > SIZE_BLOCKS / 4, "not from the beginning: at {resumed_at}");
        heals(&cluster).await;
    });
}

const SIZE_BLOCKS: u64 = super::SIZE_BYTES / 4096;

#[test]
fn scenario_17_a_write_behind_the_cursor_while_the_link_flaps() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        cluster.crash(S);
        until(&cluster, "the first one is alone", || {
            cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
        })
        .await;
        for block in (0..2400).step_by(16) {
            assert!(one.write(P, (block * 8, 128)).await);
        }
        let cursor = || {
            let data = cluster.life(P).and_then(|life| life.data())?;
            data.node.report(VOLUME)?.resync.map(|resync| resync.cursor.0)
        };
        cluster.start(S).unwrap();
        until(&cluster, "half is copied", || cursor().is_some_and(|cursor| cursor * 2 > SIZE_BLOCKS)).await;
        cluster.set_link(P, S, false);
        // Acknowledged by one alone, behind the cursor.
        for block in 0..8 {
            assert!(one.write(P, sectors(block)).await);
        }
        assert_eq!(cluster.in_sync(VOLUME), 1);
        cluster.set_link(P, S, true);
        until(&cluster, "both are in sync", || cluster.in_sync(VOLUME) == 2).await;
        until_level(&cluster, VOLUME).await.unwrap();
        compare(&cluster, VOLUME).await.unwrap();
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        heals(&cluster).await;
    });
}

#[test]
fn scenario_18_a_node_that_is_back_at_once_gets_what_it_missed() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        super::runs::stop_cleanly(&cluster, S).await;
        for block in 0..6 {
            assert!(one.write(P, sectors(block)).await);
        }
        cluster.start(S).unwrap();
        heals(&cluster).await;
    });
}

#[test]
fn scenario_20_blocks_that_two_disks_have_lost_come_from_the_other_node() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        for block in 0..12 {
            assert!(one.write(P, sectors(block)).await);
        }
        // First of the one that serves, then of the other one.
        for node in [P, S] {
            let data = cluster.life(node).and_then(|life| life.data()).unwrap();
            data.store.array().fail(Slot(0), "the disk is dead").await.unwrap();
            let medium = &cluster.rooms[node].media[1];
            medium.rot(1 << 20..medium.size_bytes() - (1 << 20));
            if node == S {
                for segment in 0..data.store.array().geometry().segment_count {
                    data.store.scrub_segment(SegmentIndex(segment)).await.unwrap();
                }
                for (volume, address) in data.store.take_damaged() {
                    data.node.heal(volume, address).await;
                }
            }
            for block in 0..12 {
                assert!(one.read(P, sectors(block)).await.is_some(), "the host sees an error");
            }
            assert!(one.write(P, sectors(20)).await);
        }
        pass(&cluster, 50).await;
        let (came, went) = cluster.life(P).and_then(|life| life.data()).unwrap().node.healed()[&VOLUME];
        assert!(came > 0 && went > 0, "{came} blocks came, {went} went");
        heals(&cluster).await;
    });
}

#[test]
fn scenario_21_rot_at_the_source_of_a_resync_reaches_nobody() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        for block in 0..12 {
            assert!(one.write(P, sectors(block)).await);
        }
        let good = |node: usize| {
            let data = cluster.life(node).and_then(|life| life.data()).unwrap();
            async move { data.store.read(VOLUME, BlockAddress(0), 12).await.map(|pieces| pieces.concat()) }
        };
        let before = good(S).await.unwrap();
        cluster.crash(S);
        until(&cluster, "the first one is alone", || {
            cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
        })
        .await;
        assert!(one.write(P, (1500 * 8, 8)).await);
        // Everything that one disk of the source holds.
        let medium = &cluster.rooms[P].media[1];
        medium.rot(1 << 20..medium.size_bytes() - (1 << 20));
        heals(&cluster).await;
        assert_eq!(good(S).await.unwrap(), before, "what was copied passed its checksum");
    });
}

/// Scenario 24 on one disk is the store's; here all disks of the replica stand still.
#[test]
fn scenario_24_a_replica_whose_disks_stand_still_is_left_behind() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        cluster.rooms[S].stall(Instant(cluster.clock.now().0 + 300_000_000));
        let began = cluster.clock.now();
        assert!(one.write(P, sectors(0)).await);
        let waited = cluster.clock.now().since(began);
        assert!(
            waited < Duration::from_millis(40),
            "a host waited for {waited:?}, of which 10 ms are a second"
        );
        assert_eq!(cluster.in_sync(VOLUME), 1);
        heals(&cluster).await;
    });
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

#[test]
fn scenario_25_the_only_replica_has_lost_what_it_confirmed() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        cluster.crash(S);
        until(&cluster, "the first one is alone", || {
            cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
        })
        .await;
        cluster.rooms[P].set_lying(true);
        assert!(one.write(P, sectors(0)).await);
        record_watermarks(&cluster).await;
        cluster.crash(P);
        cluster.rooms[P].set_lying(false);
        cluster.start(P).unwrap();
        cluster.start(S).unwrap();
        let is_found = || problem(&cluster, P).is_some_and(|why| why.contains("have lost writes"));
        until(&cluster, "it is found out", is_found).await;
        pass(&cluster, 200).await;
        assert_eq!(cluster.server(VOLUME), None, "nobody has what was acknowledged");
        // The operator gives it up.
        force(&cluster, P).await.unwrap();
        until(&cluster, "it serves", || cluster.serves(P, VOLUME)).await;
        assert_eq!(cluster.record(VOLUME).unwrap().began_by, Some(Transition::Force));
    });
}

#[test]
fn a_primary_that_has_lost_what_it_confirmed_gives_way_to_the_other_member() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        cluster.rooms[P].set_lying(true);
        assert!(one.write(P, sectors(0)).await);
        record_watermarks(&cluster).await;
        cluster.crash(P);
        cluster.crash(S);
        cluster.rooms[P].set_lying(false);
        cluster.start(P).unwrap();
        cluster.start(S).unwrap();
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(other.read(S, sectors(0)).await.is_some());
        heals(&cluster).await;
    });
}

#[test]
fn a_stale_node_serves_by_force_alone() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        cluster.crash(S);
        until(&cluster, "the first one is alone", || cluster.in_sync(VOLUME) == 1).await;
        cluster.set_link(P, S, false);
        cluster.start(S).unwrap();
        let is_known = || {
            let data = cluster.life(S).and_then(|life| life.data());
            data.is_some_and(|data| data.node.report(VOLUME).is_some())
        };
        until(&cluster, "it knows the volume", is_known).await;
        cluster.crash(P);
        pass(&cluster, 200).await;
        assert!(!cluster.serves(S, VOLUME), "it may lack what was acknowledged");
        force(&cluster, S).await.unwrap();
        until(&cluster, "it serves", || cluster.serves(S, VOLUME)).await;
        assert!(other.read(S, sectors(0)).await.is_some());
        heals(&cluster).await;
        assert_eq!(force(&cluster, P).await, Err(ForceRefused::PeerThere));
    });
}

#[test]
fn a_node_in_maintenance_is_left_and_a_volume_comes_home() {
    scenario(|cluster| async move {
        let propose = |command: Command| drop(cluster.life(S).unwrap().member.propose(command));
        propose(Command::SetMaintenance { node: name(P), is_on: true });
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        let volume = cluster.record(VOLUME).unwrap().name;
        propose(Command::SetHome { volume, home: Some(name(P)) });
        pass(&cluster, 200).await;
        assert!(cluster.serves(S, VOLUME), "somebody works on its home");
        propose(Command::SetMaintenance { node: name(P), is_on: false });
        until(&cluster, "it is at home", || cluster.serves(P, VOLUME)).await;
        heals(&cluster).await;
    });
}

#[test]
fn scenario_26_a_preemption_outlives_its_primary() {
    scenario(|cluster| async move {
        let (old, new) = (host(&cluster, 0), host(&cluster, 1));
        for host in [&old, &new] {
            host.register(P).await;
        }
        assert!(old.take_reservation(P).await);
        assert!(old.write(P, sectors(0)).await);
        // The control state has it; the answer does not get out.
        let key = old.read_keys(P).await.unwrap()[0];
        let preempted = Rc::new(Cell::new(false));
        let (told, preempting) = (preempted.clone(), new.clone());
        cluster.clock.spawn(Box::pin(async move { told.set(preempting.preempt_key(P, key).await) }));
        let revision = || cluster.record(VOLUME).unwrap().reservations.revision;
        let before = revision();
        let late = begin_write(&cluster, &old, P, 1);
        while revision() == before {
            cluster.clock.sleep(micros(5)).await;
        }
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(!preempted.get(), "nobody has heard of it");
        assert!(!old.write(S, sectors(0)).await, "the old holder is out");
        assert!(new.write(S, sectors(2)).await);
        let seen = new.read(S, sectors(1)).await;
        assert!(seen.is_some());
        pass(&cluster, 50).await;
        assert_eq!(new.read(S, sectors(1)).await, seen);
        drop(late);
        heals(&cluster).await;
    });
}

#[test]
fn scenario_27_a_session_is_reinstated_when_its_writes_are_over() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        cluster.rooms[P].stall(Instant(cluster.clock.now().0 + 5_000_000));
        let in_flight = begin_write(&cluster, &one, P, 0);
        cluster.clock.sleep(micros(300)).await;
        one.leave(P);
        let began = cluster.clock.now();
        let seen = one.read(P, sectors(0)).await;
        assert!(cluster.clock.now().since(began) > Duration::from_millis(3), "the login waits for the drain");
        assert!(seen.is_some() && in_flight.get() != Some(true));
        for _ in 0..5 {
            pass(&cluster, 3).await;
            assert_eq!(other.read(P, sectors(0)).await, seen, "it never changes again");
        }
        heals(&cluster).await;
    });
}

#[test]
fn scenario_29_what_was_unmapped_while_a_node_was_away_stays_so() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        for block in 0..8 {
            assert!(one.write(P, sectors(block)).await);
        }
        cluster.crash(S);
        until(&cluster, "the first one is alone", || {
            cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
        })
        .await;
        assert!(one.unmap(P, (0, 64)).await);
        cluster.crash(P);
        cluster.start(P).unwrap();
        until(&cluster, "the first one serves", || cluster.serves(P, VOLUME)).await;
        heals(&cluster).await;
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        for block in 0..8 {
            assert_eq!(other.read(S, sectors(block)).await, Some(vec![0; 8]));
        }
        heals(&cluster).await;
    });
}

#[test]
fn a_primary_whose_disks_are_gone_is_replaced() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        cluster.rooms[P].set_disks(false);
        let during = begin_write(&cluster, &one, P, 1);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert_ne!(during.get(), Some(true));
        assert!(!cluster.serves(P, VOLUME));
        assert!(other.read(S, sectors(0)).await.is_some());
        heals(&cluster).await;
    });
}

#[test]
fn a_node_with_new_disks_gets_everything_from_its_peer() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        for block in 0..12 {
            assert!(one.write(P, sectors(block)).await);
        }
        cluster.crash(S);
        until(&cluster, "the first one is alone", || cluster.in_sync(VOLUME) == 1).await;
        cluster.rooms[S].replace_disks();
        heals(&cluster).await;
    });
}

#[test]
fn a_disk_that_fails_its_flush_once_costs_nothing() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        let failure = Effect::Fail(DiskErrorKind::Io(libc::EIO));
        cluster.rooms[P].media[0].inject(Fault::once(Operation::Flush, failure));
        for block in 0..8 {
            assert!(one.write(P, sectors(block)).await);
        }
        assert_eq!(cluster.in_sync(VOLUME), 2);
        heals(&cluster).await;
    });
}

#[test]
fn a_move_whose_replica_goes_away_does_not_wait_for_ever() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        cluster.set_paused(S, true);
        let during = begin_write(&cluster, &one, P, 0);
        assert!(cluster.life(P).unwrap().data().unwrap().node.hand_over(VOLUME, "it was asked for"));
        until(&cluster, "it is alone", || cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)).await;
        until(&cluster, "the write is over", || during.get().is_some()).await;
        assert!(one.write(P, sectors(1)).await);
        heals(&cluster).await;
    });
}

/// The last Passed of a resync is saved in its turn, behind the record of Whole: it must not take its place. Which comes first
/// is the scheduler's choice.
#[test]
fn a_replica_that_was_brought_up_to_date_serves_when_it_has_to() {
    for seed in 0..8 {
        let outcome = try_scenario(seed, |cluster| async move {
            let one = host(&cluster, 0);
            cluster.crash(S);
            until(&cluster, "the first one is alone", || {
                cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
            })
            .await;
            for block in (0..2880).step_by(16) {
                assert!(one.write(P, (block * 8, 128)).await);
            }
            cluster.start(S).unwrap();
            until(&cluster, "both are in sync", || cluster.in_sync(VOLUME) == 2).await;
            pass(&cluster, 3).await;
            cluster.crash(P);
            until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
            heals(&cluster).await;
        });
        outcome.unwrap();
    }
}

/// A stream of a newer epoch begins while its replica still hands the volume over.
#[test]
fn a_begin_that_comes_while_a_node_drains_waits_for_the_drain() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        // What P has on its way takes long; it is to hand over, and is cut off in the middle of its drain.
        cluster.rooms[P].stall(Instant(cluster.clock.now().0 + 80_000_000));
        let late: Vec<_> = (0..3).map(|block| begin_write(&cluster, &one, P, block)).collect();
        pass(&cluster, 1).await;
        assert!(cluster.life(P).unwrap().data().unwrap().node.hand_over(VOLUME, "it was asked for"));
        cluster.set_isolated(P, false, false);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        for block in 0..3 {
            assert!(other.write(S, sectors(block)).await);
        }
        let newer = cluster.record(VOLUME).unwrap().epoch;
        cluster.mend_network();
        // The stream begins while the disks still stand.
        until(&cluster, "P takes the newer epoch", || cluster.oracle.promised_by(P, VOLUME) >= newer).await;
        assert!(
            cluster.clock.now() >= cluster.rooms[P].stalled_until(),
            "not before its own writes are over"
        );
        assert!(late.iter().all(|late| late.get() != Some(true)));
        heals(&cluster).await;
    });
}

/// What a primary alone had when it fell over is in doubt: it is not read before it is settled.
pub(super) async fn a_read_of_what_is_in_doubt(cluster: Rc<Cluster>) {
    let (one, other) = (host(&cluster, 0), host(&cluster, 1));
    assert!(one.write(P, sectors(0)).await);
    cluster.set_link(P, S, false);
    let in_doubt = begin_write(&cluster, &one, P, 0);
    pass(&cluster, 1).await;
    cluster.kill(P);
    cluster.start(P).unwrap();
    until(&cluster, "the first one serves", || cluster.serves(P, VOLUME)).await;
    let is_both = cluster.in_sync(VOLUME) == 2;
    assert!(other.read(P, sectors(0)).await.is_some());
    cluster.crash(P);
    assert_ne!(in_doubt.get(), Some(true));
    cluster.mend_network();
    if is_both {
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(other.read(S, sectors(0)).await.is_some());
    }
    heals(&cluster).await;
}

#[test]
fn what_is_in_doubt_is_settled_before_it_is_read() {
    scenario(a_read_of_what_is_in_doubt);
}

/// A volume is to move while the one that serves it has a write on its way, which only the other one gets to its disks.
pub(super) async fn a_move_with_a_write_on_its_way(cluster: Rc<Cluster>) {
    let (one, other) = (host(&cluster, 0), host(&cluster, 1));
    assert!(one.write(P, sectors(0)).await);
    cluster.rooms[P].stall(Instant(cluster.clock.now().0 + 100_000_000));
    let on_its_way = begin_write(&cluster, &one, P, 0);
    pass(&cluster, 1).await;
    assert!(cluster.life(P).unwrap().data().unwrap().node.hand_over(VOLUME, "it was asked for"));
    until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
    assert!(other.read(S, sectors(0)).await.is_some());
    cluster.crash(P);
    cluster.crash(S);
    assert_ne!(on_its_way.get(), Some(true));
    cluster.start(P).unwrap();
    pass(&cluster, 300).await;
    if cluster.serves(P, VOLUME) {
        assert!(other.read(P, sectors(0)).await.is_some());
    }
    heals(&cluster).await;
}

#[test]
fn nothing_is_on_its_way_when_a_volume_moves() {
    scenario(a_move_with_a_write_on_its_way);
}

/// A read hangs at a deposed primary, which learns at one moment that it is deposed and that it has a lease again.
async fn a_lease_that_comes_with_the_deposition(cluster: Rc<Cluster>) {
    let (one, other) = (host(&cluster, 0), host(&cluster, 1));
    assert!(one.write(P, sectors(0)).await);
    // The read is done when the lease is over: then it waits for the right to answer.
    cluster.rooms[P].stall(Instant(cluster.clock.now().0 + 60_000_000));
    let (reader, node_clock) = (host(&cluster, 2), cluster.clock.clone());
    let reading = reader.clone();
    cluster.clock.spawn(Box::pin(async move { drop(reading.read(P, sectors(0)).await) }));
    node_clock.sleep(micros(300)).await;
    cluster.set_isolated(P, false, false);
    until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
    assert!(other.write(S, sectors(0)).await);
    pass(&cluster, 80).await;
    cluster.hold_next_state[P].set(Some(Duration::from_millis(15)));
    cluster.mend_network();
    pass(&cluster, 60).await;
    assert!(cluster.hold_next_state[P].get().is_none(), "it has learned it");
    heals(&cluster).await;
}

/// Some seed lets the read look first, when the lease is new and the driver has not yet heard why.
pub(super) fn a_new_lease_for_an_old_part() -> Result<(), String> {
    (0..12).try_for_each(|seed| try_scenario(seed, a_lease_that_comes_with_the_deposition))
}

#[test]
fn a_lease_counts_only_for_a_part_that_has_turned_to_the_newest_record() {
    a_new_lease_for_an_old_part().unwrap();
}
