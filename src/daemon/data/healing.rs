//! Blocks that the disks of one node can't give back come from the other node: what the scrub and rebuilding have found
//! is asked for, and what came and went is told as events.
//!
//! Left to `mirror`: how that is done so that nothing old or unsettled is ever shown or written. What hosts read
//! is brought by itself, there.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::mirrored::Mirrored;
use super::pool::Pool;
use crate::base::units::VolumeId;
use crate::daemon::event_log::EventReporter;

/// Goes on for as long as the pool serves.
pub async fn heal_from_peer<P: Pool>(pool: Rc<P>, mirrored: Rc<Mirrored<P>>, events: EventReporter) {
    let mut known: BTreeMap<VolumeId, (u64, u64)> = BTreeMap::new();
    while !pool.report().offline {
        for (done, (volume, address)) in (1..).zip(pool.take_damaged()) {
            mirrored.node().heal(volume, address).await;
            if done % TURN == 0 {
                // What hosts ask for comes first.
                tokio::time::sleep(BETWEEN_TURNS).await;
            }
        }
        tokio::time::sleep(PERIOD).await;
        let healed = mirrored.node().healed();
        for (volume, (came, went)) in &healed {
            // A mirror that begins counts from zero.
            let before = known.get(volume).copied().unwrap_or_default();
            let before = if before.0 <= *came && before.1 <= *went { before } else { (0, 0) };
            tell(&events, *volume, came - before.0, went - before.1);
        }
        known = healed;
    }
}

fn tell(events: &EventReporter, volume: VolumeId, came: u64, went: u64) {
    if came > 0 {
        events.warning(
            "block-from-peer",
            format!(
                "{came} blocks of volume {} that the disks here could not give back came from the other node, verified, \
                 and were written here again. Nothing is lost; look at this node's disks",
                volume.0
            ),
            &[],
        );
    }
    if went > 0 {
        events.info(
            "block-to-peer",
            format!(
                "{went} blocks of volume {} went to the other node, whose disks could not give them back",
                volume.0
            ),
            &[],
        );
    }
}

const PERIOD: Duration = Duration::from_secs(1);
/// Blocks that are healed without a rest.
const TURN: u32 = 64;
const BETWEEN_TURNS: Duration = Duration::from_millis(20);
