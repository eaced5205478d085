//! Replicas that were away, or have new disks, and are brought up to date.

use super::*;

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
        lose_replica(&cluster).await;
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

const SIZE_BLOCKS: u64 = crate::sim::cluster_world::SIZE_BYTES / 4096;

#[test]
fn scenario_17_a_write_behind_the_cursor_while_the_link_flaps() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        lose_replica(&cluster).await;
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
        crate::sim::cluster_world::runs::stop_cleanly(&cluster, S).await;
        for block in 0..6 {
            assert!(one.write(P, sectors(block)).await);
        }
        cluster.start(S).unwrap();
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
        lose_replica(&cluster).await;
        assert!(one.write(P, (1500 * 8, 8)).await);
        // Everything that one disk of the source holds.
        let medium = &cluster.rooms[P].media[1];
        medium.rot(1 << 20..medium.size_bytes() - (1 << 20));
        heals(&cluster).await;
        assert_eq!(good(S).await.unwrap(), before, "what was copied passed its checksum");
    });
}

#[test]
fn scenario_29_what_was_unmapped_while_a_node_was_away_stays_so() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        for block in 0..8 {
            assert!(one.write(P, sectors(block)).await);
        }
        lose_replica(&cluster).await;
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

/// The last Passed of a resync is saved in its turn, behind the record of Whole: it must not take its place. Which comes first
/// is the scheduler's choice.
#[test]
fn a_replica_that_was_brought_up_to_date_serves_when_it_has_to() {
    for seed in 0..8 {
        let outcome = try_scenario(seed, |cluster| async move {
            let one = host(&cluster, 0);
            lose_replica(&cluster).await;
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
