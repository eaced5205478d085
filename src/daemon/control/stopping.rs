//! What a node does when the whole cluster is switched off: it stops its volumes on purpose, and says how far that is.

use std::time::Duration;

use super::operation::mirrored;
use super::redundancy::list;
use super::{Control, Refusal};
use crate::cluster::name::NodeName;
use crate::cluster::state::volume::VolumeRecord;
use crate::daemon::engine::Request;

/// How far the stop of all mirrored volumes is, by the control state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopProgress {
    /// Stopped, with the certificate that both replicas are equal.
    pub on_both: Vec<String>,
    /// On both nodes, and not stopped yet.
    pub open: Vec<String>,
    /// With all data on one node alone.
    pub alone: Vec<(String, NodeName)>,
}

impl StopProgress {
    fn add(&mut self, record: &VolumeRecord) {
        let name = record.name.to_string();
        if record.in_sync.len() == 1 {
            self.alone.push((name, record.primary.clone()));
        } else if record.is_certified() {
            self.on_both.push(name);
        } else {
            self.open.push(name);
        }
    }

    /// What has all data on one node alone, in a sentence.
    #[must_use]
    pub fn alone_in_words(&self) -> String {
        let names: Vec<String> = self.alone.iter().map(|(volume, _)| volume.clone()).collect();
        let node = self.alone.first().map_or("", |(_, node)| node.as_str());
        format!("all data of {} is on one node alone ({node})", list(&names))
    }

    /// What is not stopped yet, in a sentence.
    #[must_use]
    pub fn open_in_words(&self) -> String {
        list(&self.open)
    }
}

impl Control {
    /// Whether the cluster can be switched off as things are. With `force` also where a volume can be started by one node
    /// only afterwards.
    pub fn check_cluster_stop(&self, force: bool) -> Result<(), Refusal> {
        let Some(quorum) = self.machine.quorum() else {
            return Err(Refusal::Impossible(
                "this is a single node: `gemel node shutdown` stops it".to_owned(),
            ));
        };
        if !quorum.status().view.has_majority() {
            return Err(Refusal::Impossible(
                "this node is not in contact with a majority, which has to decide that volumes are stopped: bring the \
                 others back (`gemel cluster show`), or stop this node alone with `gemel node shutdown`"
                    .to_owned(),
            ));
        }
        if force {
            return Ok(());
        }
        let gone = self
            .machine
            .read(|state| state.nodes().map(|(name, _)| name.clone()).find(|name| !self.is_reachable(name)));
        if let Some(gone) = gone {
            return Err(Refusal::Impossible(format!(
                "node {gone} cannot be reached: bring it back first, so that either node can start everything later; \
                 --force switches off what is there, and then only the node that has all data of a volume can start it"
            )));
        }
        let progress = self.stop_progress();
        if !progress.alone.is_empty() {
            return Err(Refusal::Impossible(format!(
                "{}: wait until both are in sync (`gemel status`), so that either node can start everything later; \
                 --force does not wait, and then only that node can start it",
                progress.alone_in_words()
            )));
        }
        Ok(())
    }

    /// Has this node stop what it serves of mirrored volumes, and begin none for so long; zero ends that.
    pub async fn stop_volumes(&self, how_long: Duration) -> Result<(), Refusal> {
        Ok(self.engine.ask(|reply| Request::StopVolumes(how_long, reply)).await?)
    }

    /// How far the stop is.
    pub fn stop_progress(&self) -> StopProgress {
        self.machine.read(|state| {
            let mut progress = StopProgress::default();
            mirrored(state).for_each(|record| progress.add(record));
            progress
        })
    }

    /// The other nodes that can be reached.
    pub fn reachable_others(&self) -> Vec<NodeName> {
        self.machine.read(|state| {
            let names = state.nodes().map(|(name, _)| name);
            names.filter(|name| **name != self.node && self.is_reachable(name)).cloned().collect()
        })
    }

    /// Whether there is a witness that can be reached.
    pub fn is_witness_reachable(&self) -> bool {
        self.witness().is_some_and(|witness| witness.state() == crate::rpc::management::WitnessState::Up)
    }
}
