//! Primaries that die, are cut off, stand still or hand over: who goes on, and with what.

use super::*;
use crate::volume::device::BlockDevice;

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
        lose_replica(&cluster).await;
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

/// A primary that stood still has a write in its queue, and finds that it was replaced: it ends its service.
pub(in crate::sim::cluster_world) async fn a_paused_primary(cluster: Rc<Cluster>) {
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
}

#[test]
fn scenario_06_a_paused_primary_is_replaced_and_its_writes_are_undone() {
    scenario(a_paused_primary);
}

/// What the old primary has on its way to its disks arrives when the new one has written the same block.
async fn a_late_local_write(cluster: Rc<Cluster>) {
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

/// The other node has promised the next epoch, and falls over; the first one is there again.
pub(in crate::sim::cluster_world) async fn a_promise_and_a_crash(cluster: Rc<Cluster>) {
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
pub(in crate::sim::cluster_world) async fn a_read_of_what_is_in_doubt(cluster: Rc<Cluster>) {
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
pub(in crate::sim::cluster_world) async fn a_move_with_a_write_on_its_way(cluster: Rc<Cluster>) {
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

/// A primary that goes on into an epoch, and takes long over it, is deposed meanwhile. It learns that at the moment at which
/// it has a lease again.
pub(in crate::sim::cluster_world) async fn a_lease_that_comes_with_the_deposition(cluster: Rc<Cluster>) {
    let (one, other) = (host(&cluster, 0), host(&cluster, 1));
    lose_replica(&cluster).await;
    // The state directory hangs when the promise of the larger set's epoch is to be saved.
    cluster.hold_next_promise[P].set(Some(Duration::from_millis(400)));
    cluster.start(S).unwrap();
    until(&cluster, "both are in sync", || cluster.in_sync(VOLUME) == 2).await;
    assert!(one.write(P, sectors(0)).await, "it serves the epoch");
    assert!(cluster.hold_next_promise[P].take().is_none());
    cluster.set_isolated(P, false, false);
    until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
    assert!(other.write(S, sectors(0)).await);
    cluster.mend_network();
    one.patience.set(Some(Duration::from_millis(2)));
    let epoch = cluster.record(VOLUME).unwrap().epoch;
    let knows =
        || cluster.life(P).and_then(|life| life.data()?.node.report(VOLUME)).map(|report| report.epoch);
    until(&cluster, "it has heard of it", || knows() == Some(epoch)).await;
    for _ in 0..20 {
        // What it gave out now would be old.
        assert_eq!(one.read(P, sectors(0)).await, None);
    }
    heals(&cluster).await;
}

#[test]
fn a_lease_counts_only_for_a_part_that_has_turned_to_the_newest_record() {
    scenario(a_lease_that_comes_with_the_deposition);
}

#[test]
fn what_came_during_a_lapse_of_the_lease_goes_on_when_it_is_back() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        assert!(one.write(P, sectors(1)).await);
        // Too short for the other one to take over: it has no majority either.
        cluster.set_isolated(P, false, false);
        cluster.set_isolated(S, false, false);
        until(&cluster, "the lease is over", || !cluster.serves(P, VOLUME)).await;
        let held = begin_write(&cluster, &one, P, 0);
        pass(&cluster, 20).await;
        assert_eq!(held.get(), None);
        cluster.mend_network();
        until(&cluster, "the lease is back", || cluster.serves(P, VOLUME)).await;
        pass(&cluster, 200).await;
        assert_eq!(held.get(), Some(true), "it is not left waiting");
        heals(&cluster).await;
    });
}

/// Something reads a volume past its logical unit, as whoever exports it does, at a primary that has been replaced and does
/// not know.
pub(in crate::sim::cluster_world) async fn a_read_past_the_unit(cluster: Rc<Cluster>) {
    let (one, other) = (host(&cluster, 0), host(&cluster, 1));
    assert!(one.write(P, sectors(0)).await);
    let served = cluster.served(VOLUME).unwrap();
    cluster.set_isolated(P, false, false);
    until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
    assert!(other.write(S, sectors(0)).await);
    let outcome = Rc::new(Cell::new(None));
    let told = outcome.clone();
    let world = cluster.life(P).unwrap().world.clone();
    world.spawn(Box::pin(async move { told.set(Some(served.volume.read(0, 8).await.is_ok())) }));
    pass(&cluster, 20).await;
    assert_ne!(outcome.get(), Some(true), "what it read is old");
    cluster.mend_network();
    until(&cluster, "the read is over", || outcome.get().is_some()).await;
    assert_eq!(outcome.get(), Some(false));
    heals(&cluster).await;
}

#[test]
fn what_is_read_counts_only_while_its_node_may_serve() {
    scenario(a_read_past_the_unit);
}

/// What a deposed primary alone has on its way to its disks when the new one's stream begins: a snapshot, as commands of hosts
/// are waited for by their unit already. If the node said what it has before that arrives, the next write would hide that it
/// has more.
pub(in crate::sim::cluster_world) async fn a_late_local_snapshot(cluster: Rc<Cluster>) {
    let (one, other) = (host(&cluster, 0), host(&cluster, 1));
    assert!(one.write(P, sectors(0)).await);
    pass(&cluster, 5).await;
    let arrives_at = Instant(cluster.clock.now().0 + 100_000_000);
    cluster.rooms[P].stall(arrives_at);
    cluster.set_isolated(P, false, false);
    let taking = snapshots::begin_take(&cluster);
    until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
    assert!(other.read(S, sectors(0)).await.is_some());
    // The first stream is to begin before the disks go on, and no second one.
    let left = arrives_at.since(cluster.clock.now());
    cluster.clock.sleep(left - Duration::from_millis(5)).await;
    cluster.hold_next_of_first[S].set(Some(Duration::from_millis(10)));
    cluster.mend_network();
    let is_level =
        || cluster.life(S).and_then(|life| life.data()).is_some_and(|data| data.node.is_level(VOLUME));
    until(&cluster, "both have the same", is_level).await;
    assert!(other.write(S, sectors(5)).await);
    until(&cluster, "both are in sync", || cluster.in_sync(VOLUME) == 2).await;
    assert_eq!(taking.get(), Some(None), "nobody was told that there is one");
    heals(&cluster).await;
    assert_eq!([P, S].map(|node| snapshots::count(&cluster, node)), [0, 0]);
}

#[test]
fn a_late_local_snapshot_is_over_before_a_node_says_what_it_has() {
    scenario(a_late_local_snapshot);
}
