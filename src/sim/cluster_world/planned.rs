//! What administrators ask for, at bad moments: moves.

use std::rc::Rc;

use super::scenarios::try_scenario;
use super::{Cluster, VOLUMES, micros, name};
use crate::base::runtime::Runtime;
use crate::base::units::VolumeId;

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
