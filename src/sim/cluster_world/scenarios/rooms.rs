//! Rooms that lose power together, members without their memory, and what an operator can do then.

use super::*;

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
        lose_replica(&cluster).await;
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
        lose_replica(&cluster).await;
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

#[test]
fn scenario_25_the_only_replica_has_lost_what_it_confirmed() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        lose_replica(&cluster).await;
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
