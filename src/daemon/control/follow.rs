//! A node of a pair follows the control state: what the other node was told is done here too.
//!
//! Guarantees: every volume whose primary this node is gets opened as soon as there is a majority to begin its
//! epoch; access rules and deletions take effect. What fails is tried again, and reported once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::decisions::Told;
use super::members::MemberTold;
use super::{Control, machine};
use crate::base::units::VolumeId;
use crate::cluster::name::NodeName;
use crate::daemon::engine::{AccessRules, Request, VolumeSpec};
use crate::peer::quorum::QuorumHandle;

/// When what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What has been done already.
#[derive(Default)]
struct Done {
    rules: Option<AccessRules>,
    /// What is wrong with volumes, as it was reported.
    reported: BTreeMap<VolumeId, String>,
    told: Told,
    members: BTreeMap<NodeName, MemberTold>,
}

impl Control {
    /// Follows until the quorum has ended; a single node has nothing to follow.
    pub async fn follow(self: Arc<Self>) {
        let Some(quorum) = self.machine.quorum().cloned() else { return };
        let mut states = quorum.watch();
        let mut statuses = quorum.watch_status();
        let mut done = Done::default();
        loop {
            self.catch_up(&quorum, &mut done).await;
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                changed = statuses.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn catch_up(&self, quorum: &QuorumHandle, done: &mut Done) {
        self.tell_members(&quorum.status(), &mut done.members);
        self.tell_decisions(&quorum.state(), &mut done.told);
        let mut turn = self.turn().await;
        let rules = self.access_rules();
        if done.rules.as_ref() != Some(&rules) && self.send_access().await.is_ok() {
            done.rules = Some(rules);
        }
        if !quorum.status().view.has_majority() {
            return;
        }
        // What fails is found again the next time.
        let _ = self.purge(&mut turn).await;
        for spec in self.volume_specs() {
            if turn.contains(&spec.id) {
                continue;
            }
            let VolumeSpec { id, name, .. } = spec.clone();
            match self.engine.ask(|reply| Request::OpenVolume(spec, reply)).await {
                Ok(()) => {
                    turn.insert(id);
                    done.reported.remove(&id);
                    tracing::info!(volume = name, "served");
                }
                Err(error) => {
                    let error = error.to_string();
                    if done.reported.insert(id, error.clone()).as_ref() != Some(&error) {
                        let message = format!("volume {name} cannot be served: {error}");
                        self.events.error("volume-offline", message, &[]);
                    }
                }
            }
        }
    }

    /// Waits until this node is one of the cluster's. Refused when it is another cluster's.
    pub async fn accepted(&self, cluster: &crate::cluster::name::ClusterName) -> Result<(), super::Refusal> {
        let Some(quorum) = self.machine.quorum() else { return Ok(()) };
        let is_known =
            |state: &crate::cluster::state::ControlState| state.nodes().any(|(name, _)| *name == self.node);
        let mut states = quorum.watch();
        if !is_known(&states.borrow()) {
            tracing::info!("waiting until the cluster accepts this node");
        }
        match states.wait_for(|state| is_known(state)).await {
            Ok(state) => machine::check_cluster(&state, cluster),
            Err(_) => Err(super::Refusal::Broken("the quorum has ended; the log says why".to_owned())),
        }
    }
}
