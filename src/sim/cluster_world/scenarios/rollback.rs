//! Rollbacks that race writes and failovers, that a replica misses, and that are undone.

use super::snapshots::{count, heals_with_snapshots, limit_resync};
use super::*;
use crate::base::units::Version;
use crate::store::interface::SnapshotStore;
use crate::volume::snapshot::SnapshotKind;

/// Writes so much, all over the used blocks and between them.
async fn fill(host: &Rc<Host>, node: usize, step: usize) {
    for block in (0..1512).step_by(step) {
        assert!(host.write(node, (block * 8, 64.min((1512 - block) * 8))).await);
    }
}

/// Whether a rollback is under way where the volume is served.
fn is_rolling_back(cluster: &Cluster) -> bool {
    cluster.served(VOLUME).is_some_and(|served| matches!(served.volume.rollback(), Ok(Some(_))))
}

/// Begins a rollback beside everything else.
fn begin_rollback(cluster: &Rc<Cluster>, to: Version) -> Rc<Cell<Option<bool>>> {
    let outcome = Rc::new(Cell::new(None));
    let (told, whoever) = (outcome.clone(), cluster.clone());
    cluster.clock.spawn(Box::pin(async move { told.set(Some(whoever.roll_back(VOLUME, to).await)) }));
    outcome
}

/// Everything is well, during the rollback and when it has ended.
async fn heals_rolled_back(cluster: &Rc<Cluster>) {
    // Both are not compared before that: it may end at any moment.
    heal(cluster).await.unwrap();
    look_at_all(cluster, &Host::new(cluster, 8, VOLUME)).await.unwrap();
    cluster.look_into_all(VOLUME).await.unwrap();
    cluster.until_restored(VOLUME).await.unwrap();
    heals_with_snapshots(cluster).await;
}

#[test]
fn a_volume_is_what_it_was_and_what_it_was_before_that_again() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        fill(&one, P, 8).await;
        assert!(one.unmap(P, (16, 24)).await);
        let first = cluster.take_snapshot(VOLUME).await.unwrap();
        for block in 0..8 {
            assert!(one.write(P, sectors(block)).await);
        }
        assert!(one.unmap(P, (64, 24)).await);
        assert!(cluster.roll_back(VOLUME, first).await);
        // Hosts go on at once.
        assert!(one.write(P, sectors(5)).await);
        assert!(one.write(P, (6 * 8 + 3, 2)).await);
        heals_rolled_back(&cluster).await;
        let served = cluster.served(VOLUME).unwrap();
        let listed = served.volume.snapshots().await.unwrap();
        let before = listed.last().unwrap().0;
        assert_eq!(listed.len(), 2, "{listed:?}");
        // And back.
        assert!(cluster.roll_back(VOLUME, before).await);
        heals_rolled_back(&cluster).await;
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        heals_rolled_back(&cluster).await;
    });
}

/// At each of several moments: the volume is what it was at the snapshot, on both nodes, or none of it.
#[test]
fn a_rollback_races_a_failover() {
    let (done, undone, resumed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for moment in 0..32 {
        let (done, undone, resumed) = (done.clone(), undone.clone(), resumed.clone());
        let outcome = try_scenario(moment, |cluster| async move {
            let (one, other) = (host(&cluster, 0), host(&cluster, 1));
            fill(&one, P, 16).await;
            let first = cluster.take_snapshot(VOLUME).await.unwrap();
            fill(&one, P, 8).await;
            let rolling = begin_rollback(&cluster, first);
            cluster.clock.sleep(micros(moment * 150)).await;
            let during = begin_write(&cluster, &one, P, moment % 12);
            match moment % 3 {
                0 => cluster.crash(P),
                1 => cluster.set_isolated(P, false, false),
                _ => cluster.set_paused(P, true),
            }
            until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
            resumed.set(resumed.get() + u32::from(is_rolling_back(&cluster)));
            assert!(other.write(S, sectors(3)).await);
            let is_done = rolling.get() == Some(true);
            done.set(done.get() + u32::from(is_done));
            undone.set(undone.get() + u32::from(!is_done));
            heals_rolled_back(&cluster).await;
            drop(during);
        });
        outcome.unwrap_or_else(|problem| panic!("moment {moment}: {problem}"));
    }
    assert!(done.get() > 2 && undone.get() > 2, "{} before the failover, {} not", done.get(), undone.get());
    assert!(resumed.get() > 2, "{} gone on with by the other node", resumed.get());
}

/// A replica that was away is brought up to date in the middle of a rollback, takes over, and its former primary returns.
/// What one of them has got as a copy the other one has from the rollback.
pub(in super::super) async fn a_rollback_over_a_resync(cluster: Rc<Cluster>) {
    let (one, other) = (host(&cluster, 0), host(&cluster, 1));
    fill(&one, P, 8).await;
    let first = cluster.take_snapshot(VOLUME).await.unwrap();
    for block in 0..12 {
        assert!(one.write(P, sectors(block)).await);
    }
    // The replica alone has taken these when it becomes primary; they are void at the other one.
    cluster.set_isolated(P, false, false);
    let late: Vec<_> = (2..8).map(|block| begin_write(&cluster, &one, P, block)).collect();
    until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
    fill_beyond(&other, S).await;
    let rolling = begin_rollback(&cluster, first);
    until(&cluster, "it is under way", || is_rolling_back(&cluster)).await;
    cluster.mend_network();
    until(&cluster, "both are in sync", || cluster.in_sync(VOLUME) == 2).await;
    cluster.crash(S);
    until(&cluster, "the first one serves", || cluster.serves(P, VOLUME)).await;
    heals_rolled_back(&cluster).await;
    cluster.crash(P);
    until(&cluster, "the other one serves again", || cluster.serves(S, VOLUME)).await;
    heals_rolled_back(&cluster).await;
    drop((late, rolling));
}

/// So that there is much to put back.
async fn fill_beyond(host: &Rc<Host>, node: usize) {
    for block in (40..1400).step_by(8) {
        assert!(host.write(node, (block * 8, 64)).await);
    }
}

#[test]
fn a_resync_in_the_middle_of_a_rollback_leaves_both_the_same() {
    for seed in 1..5 {
        try_scenario(seed, a_rollback_over_a_resync)
            .unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
    }
}

/// The replica is away while the volume is rolled back and that ends; it is brought up to date without the mark.
#[test]
fn a_replica_that_has_missed_a_rollback_has_its_outcome() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        fill(&one, P, 16).await;
        let first = cluster.take_snapshot(VOLUME).await.unwrap();
        fill(&one, P, 8).await;
        lose_replica(&cluster).await;
        assert!(one.write(P, sectors(1)).await);
        assert!(cluster.roll_back(VOLUME, first).await);
        cluster.until_restored(VOLUME).await.unwrap();
        assert!(one.write(P, sectors(2)).await);
        heals_rolled_back(&cluster).await;
        assert_eq!((count(&cluster, P), count(&cluster, S)), (2, 2));
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        heals_rolled_back(&cluster).await;
    });
}

/// The replica goes away in the middle of a rollback: what it has is no state that anybody would want, since only the mark
/// says what it shows, and that goes.
pub(in super::super) async fn a_kept_state_in_a_rollback(cluster: Rc<Cluster>) {
    let one = host(&cluster, 0);
    fill(&one, P, 8).await;
    let first = cluster.take_snapshot(VOLUME).await.unwrap();
    fill(&one, P, 8).await;
    let rolling = begin_rollback(&cluster, first);
    until(&cluster, "it is under way", || is_rolling_back(&cluster)).await;
    lose_replica(&cluster).await;
    let has_mark = |node: usize| {
        let data = cluster.life(node).and_then(|life| life.data());
        let listed = data.and_then(|data| data.store.snapshots(VOLUME).ok()).unwrap_or_default();
        listed.iter().any(|entry| crate::store::interface::rollback_of(&entry.record).is_some())
    };
    cluster.until_restored(VOLUME).await.unwrap();
    fill(&one, P, 8).await;
    limit_resync(&cluster, Some(20_000_000));
    pass(&cluster, 5).await;
    cluster.start(S).unwrap();
    let resync = || {
        let report = cluster.life(P).and_then(|life| life.data()?.node.report(VOLUME));
        report.and_then(|report| report.resync).map_or(0, |resync| resync.copied_blocks)
    };
    until(&cluster, "it copies", || resync() > 100).await;
    assert!(!has_mark(S), "the source has none");
    let listed = cluster.life(S).unwrap().data().unwrap().store.snapshots(VOLUME).unwrap();
    let is_kept = |record: &bytes::Bytes| {
        crate::volume::snapshot::SnapshotRecord::decode(record)
            .is_ok_and(|record| record.kind == SnapshotKind::BeforeResync)
    };
    if listed.iter().any(|entry| is_kept(&entry.record)) {
        cluster.fail("what is neither the one nor the other is kept as a state".to_owned());
    }
    limit_resync(&cluster, None);
    heals_rolled_back(&cluster).await;
    drop(rolling);
}

#[test]
fn no_state_is_kept_in_the_middle_of_a_rollback() {
    scenario(a_kept_state_in_a_rollback);
}
