//! Nodes that fall over at the moment at which an epoch begins, and come back with an older state of the cluster than they
//! had: what consensus has decided is known for certain only once it is decided again.

use super::*;

/// Waits finely, for moments that are over soon.
async fn until_exactly(cluster: &Cluster, what: &str, condition: impl Fn() -> bool) {
    for _ in 0..200_000 {
        if condition() {
            return;
        }
        cluster.clock.sleep(micros(2)).await;
    }
    panic!("in vain until {what}");
}

/// A node comes back without hearing anybody, and has time to propose what it would. Whether it knows less than it did.
async fn come_back_alone(cluster: &Rc<Cluster>, node: usize, epoch: u32) -> bool {
    cluster.set_isolated(node, false, false);
    cluster.start(node).unwrap();
    pass(cluster, 25).await;
    let report = cluster.life(node).and_then(|life| life.data()?.node.report(VOLUME));
    let is_behind = report.is_some_and(|report| report.epoch < epoch);
    if is_behind {
        cluster.meet("lives with an older state");
    }
    cluster.mend_network();
    is_behind
}

/// The epoch was proposed by the former life in the same words in which the present one proposes it.
async fn an_epoch_that_a_former_life_proposed(cluster: Rc<Cluster>) -> bool {
    let one = host(&cluster, 0);
    assert!(one.write(P, sectors(0)).await);
    lose_replica(&cluster).await;
    cluster.kill(P);
    cluster.start(P).unwrap();
    until_exactly(&cluster, "it serves again", || cluster.serves(P, VOLUME)).await;
    let epoch = cluster.record(VOLUME).unwrap().epoch;
    cluster.crash_hard(P);
    let is_behind = come_back_alone(&cluster, P, epoch).await;
    until(&cluster, "it serves", || cluster.serves(P, VOLUME)).await;
    assert!(cluster.record(VOLUME).unwrap().epoch > epoch, "it has begun another one");
    heals(&cluster).await;
    is_behind
}

/// The volume was handed over to the former life.
async fn an_epoch_that_was_handed_to_a_former_life(cluster: Rc<Cluster>) -> bool {
    assert!(host(&cluster, 0).write(P, sectors(0)).await);
    assert!(cluster.life(P).unwrap().data().unwrap().node.hand_over(VOLUME, "it was asked for"));
    until_exactly(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
    let epoch = cluster.record(VOLUME).unwrap().epoch;
    cluster.crash_hard(S);
    cluster.crash(P);
    let is_behind = come_back_alone(&cluster, S, epoch).await;
    until(&cluster, "it serves", || cluster.serves(S, VOLUME)).await;
    assert!(cluster.record(VOLUME).unwrap().epoch > epoch, "it has begun another one");
    heals(&cluster).await;
    is_behind
}

/// Runs it with some seeds: with how many the node knew less than before.
fn try_seeds<F: Future<Output = bool>>(run: impl Fn(Rc<Cluster>) -> F) -> Result<u32, String> {
    let behind = Rc::new(Cell::new(0));
    for seed in 1..13 {
        try_scenario(seed, |cluster| async {
            behind.set(behind.get() + u32::from(run(cluster).await));
        })
        .map_err(|problem| format!("seed {seed}: {problem}"))?;
    }
    Ok(behind.get())
}

pub(in crate::sim::cluster_world) fn epochs_of_former_lives() -> Result<u32, String> {
    try_seeds(an_epoch_that_a_former_life_proposed)
}

pub(in crate::sim::cluster_world) fn epochs_handed_to_former_lives() -> Result<u32, String> {
    try_seeds(an_epoch_that_was_handed_to_a_former_life)
}

#[test]
fn a_life_does_not_take_an_epoch_that_a_former_one_proposed() {
    assert!(epochs_of_former_lives().unwrap() > 0, "the state was never an older one");
}

#[test]
fn a_life_does_not_take_an_epoch_that_was_handed_to_a_former_one() {
    assert!(epochs_handed_to_former_lives().unwrap() > 0, "the state was never an older one");
}

/// A replica in the middle of its resync is forced, and falls over when that is decided, before it has put on record that
/// what it has is what the volume is.
#[test]
fn a_node_that_falls_over_when_it_was_forced_serves_all_the_same() {
    scenario(|cluster| async move {
        let one = host(&cluster, 0);
        assert!(one.write(P, sectors(0)).await);
        lose_replica(&cluster).await;
        for block in (0..1512).rev().step_by(8) {
            assert!(one.write(P, (block / 8 * 64, 64)).await);
        }
        snapshots::limit_resync(&cluster, Some(20_000_000));
        pass(&cluster, 5).await;
        cluster.start(S).unwrap();
        let is_copying = || {
            let report = cluster.life(P).and_then(|life| life.data()?.node.report(VOLUME));
            report.and_then(|report| report.resync).is_some_and(|resync| resync.copied_blocks > 100)
        };
        until(&cluster, "it copies", is_copying).await;
        cluster.crash(P);
        pass(&cluster, 30).await;
        cluster.hold_next_state[S].set(Some(Duration::from_millis(5)));
        force(&cluster, S).await.unwrap();
        let is_forced = || cluster.record(VOLUME).unwrap().began_by == Some(Transition::Force);
        until_exactly(&cluster, "it is decided", is_forced).await;
        assert!(!cluster.serves(S, VOLUME));
        cluster.crash(S);
        cluster.start(S).unwrap();
        until(&cluster, "it serves", || cluster.serves(S, VOLUME)).await;
        // What was forced away is lost, so sectors have no history that fits; but both nodes are equal again.
        heal(&cluster).await.unwrap();
        until_level(&cluster, VOLUME).await.unwrap();
        compare(&cluster, VOLUME).await.unwrap();
    });
}
