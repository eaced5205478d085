//! Members that run different releases, in the middle of an upgrade or for too long.

use super::*;
use crate::cluster::versions::Spoken;

/// A release that speaks `versions` of both the control protocol and the mirror's.
fn release(versions: &str) -> Spoken {
    let claim = |protocol: &str| format!("{protocol}={versions}").parse().unwrap();
    Spoken::default().with(&["control", "mirror"].map(claim))
}

/// Restarts a member with another release.
fn install(cluster: &Rc<Cluster>, member: usize, speaks: Spoken) {
    cluster.kill(member);
    cluster.network.install(member, speaks);
    cluster.start(member).unwrap();
}

fn primary(cluster: &Cluster) -> Option<usize> {
    [P, S].into_iter().find(|node| cluster.serves(*node, VOLUME))
}

/// Writes and reads by whichever node serves.
async fn work(cluster: &Rc<Cluster>, host: &Rc<Host>, block: u64) {
    until(cluster, "somebody serves", || primary(cluster).is_some()).await;
    let node = primary(cluster).unwrap();
    assert!(host.write(node, sectors(block)).await);
    assert!(host.read(node, sectors(block)).await.is_some());
}

#[test]
fn scenario_30_a_rolling_upgrade_meets_a_crash_and_is_rolled_back() {
    scenario(|cluster| async move {
        let host = host(&cluster, 0);
        let newer = release("1..4");
        work(&cluster, &host, 0).await;
        // The replica and the witness are upgraded; they still speak what the primary does.
        for (number, member) in [S, WITNESS].into_iter().enumerate() {
            install(&cluster, member, newer);
            until(&cluster, "both are in sync again", || cluster.in_sync(VOLUME) == 2).await;
            work(&cluster, &host, 1 + number as u64).await;
        }
        // The primary of the old release loses its power with a write on its way, and comes back as it was.
        let in_flight = begin_write(&cluster, &host, P, 3);
        cluster.clock.sleep(micros(30)).await;
        cluster.crash(P);
        until(&cluster, "the upgraded one serves", || cluster.serves(S, VOLUME)).await;
        work(&cluster, &host, 4).await;
        cluster.start(P).unwrap();
        until(&cluster, "both are in sync again", || cluster.in_sync(VOLUME) == 2).await;
        drop(in_flight);
        // The upgrade is given up: the node that serves, too, gets the old release again.
        for (number, member) in [S, WITNESS].into_iter().enumerate() {
            install(&cluster, member, Spoken::default());
            work(&cluster, &host, 5 + number as u64).await;
            until(&cluster, "both are in sync again", || cluster.in_sync(VOLUME) == 2).await;
        }
        heals(&cluster).await;
    });
}

#[test]
fn scenario_30_a_release_that_does_not_fit_is_left_out_and_loses_nothing() {
    scenario(|cluster| async move {
        let host = host(&cluster, 0);
        work(&cluster, &host, 0).await;
        install(&cluster, S, release("8..9"));
        until(&cluster, "the first one is alone", || {
            cluster.in_sync(VOLUME) == 1 && cluster.serves(P, VOLUME)
        })
        .await;
        work(&cluster, &host, 1).await;
        // Nobody but the first one has that, whatever the other one speaks.
        cluster.crash(P);
        for _ in 0..60 {
            pass(&cluster, 5).await;
            assert_eq!(primary(&cluster), None, "it serves what it does not have");
        }
        cluster.start(P).unwrap();
        work(&cluster, &host, 2).await;
        assert_eq!(cluster.in_sync(VOLUME), 1);
        assert!(cluster.met.borrow().contains_key("refused releases"));
        // Now everybody gets what it speaks; the last one is the one that serves.
        for member in [WITNESS, P] {
            install(&cluster, member, release("2..8"));
        }
        work(&cluster, &host, 3).await;
        until(&cluster, "both are in sync again", || cluster.in_sync(VOLUME) == 2).await;
        heals(&cluster).await;
    });
}
