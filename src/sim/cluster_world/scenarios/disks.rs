//! Disks that stand still, fail or are gone.

use super::*;
use crate::array::{SegmentIndex, Slot};

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
