//! Snapshots that race failovers, are taken and dropped while a replica is away, are void, and what a replica keeps of
//! itself while it is brought up to date.

use super::*;
use crate::base::units::Version;
use crate::store::interface::SnapshotStore;
use crate::volume::snapshot::{SnapshotKind, SnapshotRecord};
use crate::volume::take_group_snapshot;

/// Begins to take a snapshot beside everything else.
pub(super) fn begin_take(cluster: &Rc<Cluster>) -> Rc<Cell<Option<Option<Version>>>> {
    let outcome = Rc::new(Cell::new(None));
    let (told, taker) = (outcome.clone(), cluster.clone());
    cluster.clock.spawn(Box::pin(async move { told.set(Some(taker.take_snapshot(VOLUME).await)) }));
    outcome
}

/// Everything is well again, and every snapshot is what it was, on both nodes.
pub(super) async fn heals_with_snapshots(cluster: &Rc<Cluster>) {
    heals(cluster).await;
    cluster.look_into_all(VOLUME).await.unwrap();
}

/// How many snapshots a node has.
pub(super) fn count(cluster: &Cluster, node: usize) -> usize {
    let data = cluster.life(node).and_then(|life| life.data()).unwrap();
    data.store.snapshots(VOLUME).unwrap().len()
}

pub(super) fn limit_resync(cluster: &Cluster, bytes_per_second: Option<u64>) {
    let mut settings = cluster.newest_state.borrow().settings().clone();
    settings.resync_limit_bytes_per_second = bytes_per_second;
    drop(cluster.life(P).unwrap().member.propose(Command::ChangeSettings { settings }));
}

/// At each of several moments: the snapshot is there on both nodes, with the same cut, or on none.
#[test]
fn scenario_28_a_snapshot_races_a_failover() {
    let (taken, there) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for moment in 0..24 {
        let (taken, there) = (taken.clone(), there.clone());
        let outcome = try_scenario(moment, |cluster| async move {
            let (one, other) = (host(&cluster, 0), host(&cluster, 1));
            assert!(one.write(P, sectors(0)).await);
            let during: Vec<_> = (0..3).map(|block| begin_write(&cluster, &one, P, block)).collect();
            let taking = begin_take(&cluster);
            cluster.clock.sleep(micros(moment * 60)).await;
            let late = begin_write(&cluster, &other, P, 4);
            match moment % 3 {
                0 => cluster.crash(P),
                1 => cluster.set_isolated(P, false, false),
                _ => cluster.set_paused(P, true),
            }
            until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
            assert!(other.write(S, sectors(0)).await);
            assert!(cluster.check_list(VOLUME).await);
            taken.set(taken.get() + u32::from(matches!(taking.get(), Some(Some(_)))));
            there.set(there.get() + count(&cluster, S));
            heals_with_snapshots(&cluster).await;
            drop((during, late));
        });
        outcome.unwrap_or_else(|problem| panic!("moment {moment}: {problem}"));
    }
    assert!((1..24).contains(&taken.get()), "{} were acknowledged before the failover", taken.get());
    assert!((1..24).contains(&there.get()), "{} were there behind it", there.get());
}

/// Only the replica has heard of it, when its primary dies.
#[test]
fn a_snapshot_without_an_acknowledgement_may_be_there_and_then_stays() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        cluster.set_passes(S, P, false);
        let taking = begin_take(&cluster);
        pass(&cluster, 2).await;
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert_ne!(taking.get().flatten(), Some(Version::default()));
        assert_eq!(count(&cluster, S), 1, "the replica has it");
        assert!(cluster.check_list(VOLUME).await);
        assert!(other.write(S, sectors(0)).await);
        heals_with_snapshots(&cluster).await;
        cluster.crash(S);
        until(&cluster, "the first one serves", || cluster.serves(P, VOLUME)).await;
        heals_with_snapshots(&cluster).await;
    });
}

#[test]
fn a_void_snapshot_of_a_deposed_primary_is_gone_when_that_returns() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        cluster.set_isolated(P, false, false);
        let taking = begin_take(&cluster);
        let late = begin_write(&cluster, &one, P, 0);
        until(&cluster, "it has it, alone", || count(&cluster, P) == 1).await;
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(cluster.check_list(VOLUME).await);
        assert!(cluster.take_snapshot(VOLUME).await.is_some());
        assert!(other.write(S, sectors(0)).await);
        cluster.mend_network();
        heals_with_snapshots(&cluster).await;
        assert_ne!(late.get(), Some(true));
        assert_eq!(taking.get(), Some(None));
        assert_eq!((count(&cluster, P), count(&cluster, S)), (1, 1), "another one");
    });
}

#[test]
fn snapshots_taken_and_dropped_while_a_replica_is_away_are_the_same_on_both() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        for block in 0..8 {
            assert!(one.write(P, sectors(block)).await);
        }
        let mut taken = Vec::new();
        for _ in 0..2 {
            taken.push(cluster.take_snapshot(VOLUME).await.unwrap());
            assert!(one.write(P, sectors(2)).await);
        }
        lose_replica(&cluster).await;
        for block in 0..6 {
            assert!(one.write(P, sectors(block)).await);
            taken.push(cluster.take_snapshot(VOLUME).await.unwrap());
            assert!(one.unmap(P, (block * 8 + 8, 16)).await);
        }
        for dropped in [taken[0], taken[3]] {
            assert!(cluster.drop_snapshot(VOLUME, dropped).await);
        }
        heals_with_snapshots(&cluster).await;
        assert_eq!((count(&cluster, P), count(&cluster, S)), (6, 6));
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        heals_with_snapshots(&cluster).await;
    });
}

/// The replica, or the source, or the link between them is gone in the middle of the copying of what snapshots show.
#[test]
fn a_resync_that_is_interrupted_in_its_history_goes_on() {
    for seed in 0..9u64 {
        let outcome = try_scenario(seed, |cluster| async move {
            let one = host(&cluster, 0);
            assert!(one.write(P, sectors(0)).await);
            lose_replica(&cluster).await;
            for turn in 0..3 {
                for block in (0..1500 + turn).step_by(150) {
                    assert!(one.write(P, (block * 8, 64)).await);
                }
                cluster.take_snapshot(VOLUME).await.unwrap();
            }
            limit_resync(&cluster, Some(60_000_000));
            pass(&cluster, 5).await;
            cluster.start(S).unwrap();
            let is_copying = || {
                let report = cluster.life(P).and_then(|life| life.data()?.node.report(VOLUME));
                report.and_then(|report| report.resync).is_some_and(|resync| resync.copied_blocks > seed * 12)
            };
            until(&cluster, "it copies", is_copying).await;
            match seed % 3 {
                0 => cluster.crash(S),
                1 => cluster.crash(P),
                _ => cluster.set_link(P, S, false),
            }
            pass(&cluster, 20).await;
            cluster.start(P).unwrap();
            until(&cluster, "the first one serves", || cluster.serves(P, VOLUME)).await;
            assert!(one.write(P, sectors(1)).await);
            assert!(cluster.take_snapshot(VOLUME).await.is_some());
            limit_resync(&cluster, None);
            heals_with_snapshots(&cluster).await;
        });
        outcome.unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
    }
}

/// A replica in the middle of its resync has its last consistent state still; an operator who forces it finds that
/// among its snapshots.
#[test]
fn a_replica_keeps_its_last_consistent_state_until_it_has_another_one() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        for block in 0..12 {
            assert!(one.write(P, sectors(block)).await);
        }
        lose_replica(&cluster).await;
        for block in (0..1512).rev().step_by(8) {
            assert!(one.write(P, (block / 8 * 64, 64)).await);
        }
        limit_resync(&cluster, Some(20_000_000));
        pass(&cluster, 5).await;
        cluster.start(S).unwrap();
        let report = |node: usize| cluster.life(node).and_then(|life| life.data()?.node.report(VOLUME));
        let is_copying = || {
            let resync = report(P).and_then(|report| report.resync);
            resync.is_some_and(|resync| resync.copied_blocks > 100)
        };
        until(&cluster, "it copies", is_copying).await;
        let (version, record) = report(S).unwrap().kept_state.unwrap();
        assert_eq!(record.kind, SnapshotKind::BeforeResync);
        assert_eq!(cluster.in_sync(VOLUME), 1, "and is not done");
        cluster.crash(P);
        pass(&cluster, 30).await;
        force(&cluster, S).await.unwrap();
        until(&cluster, "it serves", || cluster.serves(S, VOLUME)).await;
        let served = cluster.served(VOLUME).unwrap();
        let listed = served.volume.snapshots().await.unwrap();
        assert_eq!(listed, [(version, record)], "it is one of the volume's now");
        let view = served.volume.read_at(version, 0, 96).await.unwrap().concat();
        let numbers = crate::sim::cluster_world::command::numbers_in(VOLUME, 0, &view).unwrap();
        let expected: Vec<u64> = (1..=12).flat_map(|number| [number; 8]).collect();
        assert_eq!(numbers, expected, "as it was when the replica went away");
        drop((one, other));
        // What was forced away is lost, so sectors have no history that fits; but both nodes are equal again.
        heal(&cluster).await.unwrap();
        until_level(&cluster, VOLUME).await.unwrap();
        compare(&cluster, VOLUME).await.unwrap();
        assert_eq!((count(&cluster, P), count(&cluster, S)), (1, 1));
    });
}

/// A host writes to one volume, and then, when that is acknowledged, to the other one; again and again.
#[test]
fn a_group_of_snapshots_is_one_cut_through_both_volumes() {
    scenario(|cluster| async move {
        let second = VOLUMES[1];
        until(&cluster, "the other one is well", || {
            cluster.serves(S, second) && cluster.in_sync(second) == 2
        })
        .await;
        pass(&cluster, 20).await;
        assert!(cluster.life(S).unwrap().data().unwrap().node.hand_over(second, "it was asked for"));
        until(&cluster, "one node serves both", || cluster.serves(P, VOLUME) && cluster.serves(P, second))
            .await;
        let hosts = [host(&cluster, 0), Host::new(&cluster, 0, second)];
        let writing = async {
            for block in (0..12).cycle().take(120) {
                for host in &hosts {
                    assert!(host.write(P, sectors(block)).await);
                }
            }
        };
        let taking = async {
            let mut taken = Vec::new();
            for turn in 0..8u64 {
                cluster.clock.sleep(micros(3000)).await;
                let member = |volume: VolumeId| {
                    let record = SnapshotRecord {
                        id: turn + 1,
                        name: format!("g{turn}"),
                        taken_unix_ms: 1,
                        protected_until_unix_ms: None,
                        kind: SnapshotKind::Manual,
                        group: Some(turn + 1),
                    };
                    (cluster.served(volume).unwrap().volume, record)
                };
                let (members, runtime) = (VOLUMES.map(member), cluster.clock.clone());
                let patience = Duration::from_secs(1);
                taken.push(take_group_snapshot(&members, &(runtime as _), patience).await.unwrap());
            }
            taken
        };
        let ((), taken) = futures::join!(writing, taking);
        let mut cuts = 0;
        for versions in taken {
            let mut shown = Vec::new();
            for (volume, at) in VOLUMES.into_iter().zip(versions) {
                let served = cluster.served(volume).unwrap();
                let view = served.volume.read_at(at, 0, 96).await.unwrap().concat();
                let numbers = crate::sim::cluster_world::command::numbers_in(volume, 0, &view).unwrap();
                shown.push(numbers.into_iter().max().unwrap());
            }
            // Numbers of commands: the second volume's latest was sent when the first one's before it was acknowledged.
            assert!(shown[0] + 1 == shown[1] || shown[0] > shown[1], "{shown:?} is not one cut");
            assert!(shown[0] <= shown[1] + 1, "{shown:?} is not one cut");
            cuts += u32::from(shown[0] > shown[1]);
        }
        println!("{cuts} of 8 cuts are between the two writes");
        heals(&cluster).await;
        cluster.compare_snapshots(second).await.unwrap();
    });
}
