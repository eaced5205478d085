//! Upgrades in the middle of everything: members that begin with an older release, which does not know the newest format of the
//! control state, and get the present one from start to start, while commands of the newest format are asked for.
//!
//! Checked: nobody ever meets what it can't read, and when all have the present release the cluster goes over to its
//! format by itself.

use std::rc::Rc;

use super::Cluster;
use crate::cluster::state::format::NEWEST_FORMAT;
use crate::cluster::state::{Command, Settings};
use crate::cluster::versions::Spoken;

/// A release that speaks the first version of the control protocol, and of the others what the present one does.
pub(super) fn older_release() -> Spoken {
    let claim = "control=1..1".parse().expect("it is PROTOCOL=OLDEST..NEWEST");
    Spoken::default().with(&[claim])
}

/// A command that the older release can't read.
pub(super) fn newest_command(percent: u8) -> Command {
    Command::ChangeSettings {
        settings: Settings { space_error_percent: Some(percent), ..Settings::default() },
    }
}

/// Somebody asks for what only the present release knows, now and then.
pub(super) fn ask_for_what_is_new(cluster: &Rc<Cluster>) {
    check_that_all_can_read(cluster);
    if cluster.setting.is_upgraded
        && cluster.random.below(3) == 0
        && let Some(life) = cluster.life(cluster.random.index(2))
    {
        drop(life.member.propose(newest_command(cluster.random.below(99) as u8 + 1)));
    }
}

fn check_that_all_can_read(cluster: &Rc<Cluster>) {
    for failure in (0..3).filter_map(|member| cluster.life(member)?.member.view().failure) {
        if failure.contains("newer program") {
            cluster.fail(failure);
        }
    }
}

/// A member that does not run may get the present release.
pub(super) fn upgrade_at_times(cluster: &Rc<Cluster>, member: usize) {
    if cluster.setting.is_upgraded && cluster.life(member).is_none() && cluster.random.coin() {
        cluster.meet("members upgraded");
        cluster.network.install(member, Spoken::default());
    }
}

/// A member that does not have it gets it.
pub(super) fn upgrade_at_last(cluster: &Rc<Cluster>, member: usize) {
    if cluster.setting.is_upgraded && cluster.network.newest_format(member) < NEWEST_FORMAT {
        cluster.kill(member);
        cluster.network.install(member, Spoken::default());
    }
}

/// Until all have gone over.
pub(super) async fn until_upgraded(cluster: &Rc<Cluster>) -> Result<(), String> {
    let has_gone_over = |member: usize| {
        cluster.life(member).is_some_and(|life| life.member.state().format() == NEWEST_FORMAT)
    };
    cluster.until("all have gone over to the newest format", 2000, || (0..3).all(has_gone_over)).await
}
