//! Who is in the cluster, and how they agree.

use std::collections::BTreeMap;
use std::time::Duration;

use super::attention::Kind;
use super::{Control, Refusal};
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::node::KeyFingerprint;
use crate::cluster::state::volume::VolumeRecord;
use crate::cluster::state::{Command, ControlState};
use crate::peer::quorum::{PeerStatus, QuorumStatus};
use crate::rpc::management as messages;
use crate::rpc::management::{NodeState, Severity, WitnessState};

/// What was reported of another member last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberTold {
    There,
    Gone,
    Refused,
}

/// How long a member that is to be replaced may take to be accepted.
const PATIENCE: Duration = Duration::from_secs(10);

impl Control {
    /// The cluster and its members.
    pub fn cluster(&self) -> messages::Cluster {
        let cluster = self.machine.read(|state| state.cluster().cloned());
        let (space_warning_percent, space_error_percent, resync_limit_bytes_per_second) =
            self.machine.read(|state| {
                let settings = state.settings();
                let limit = settings.resync_limit_bytes_per_second.unwrap_or(0);
                (settings.space_warning_percent.into(), settings.space_thresholds_percent().1.into(), limit)
            });
        let (name, uuid) = cluster
            .map_or_else(Default::default, |cluster| (cluster.name.to_string(), cluster.uuid.to_string()));
        let Some(quorum) = self.machine.quorum() else {
            let has_majority = true;
            return messages::Cluster {
                name,
                uuid,
                has_majority,
                space_warning_percent,
                space_error_percent,
                resync_limit_bytes_per_second,
                ..messages::Cluster::default()
            };
        };
        let QuorumStatus { view, peers } = &*quorum.status();
        let own = messages::Member {
            name: self.node.to_string(),
            kind: SeatKind::Node.to_string(),
            votes: view.is_voter(),
            reachable: true,
            since_ms: 0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            reason: view.failure.clone().unwrap_or_default(),
        };
        let others = peers.iter().map(|peer| messages::Member {
            name: peer.name.to_string(),
            kind: peer.kind.to_string(),
            votes: peer.member.is_some_and(|member| view.voters.contains_key(&member)),
            reachable: peer.is_reachable,
            since_ms: peer.since_unix_ms,
            version: peer.build.clone(),
            reason: peer.reason.clone(),
        });
        let mut members: Vec<_> = std::iter::once(own).chain(others).collect();
        members.sort_by(|one, other| (&one.kind, &one.name).cmp(&(&other.kind, &other.name)));
        messages::Cluster {
            name,
            uuid,
            has_majority: view.has_majority(),
            leader: view.leader().unwrap_or_default().to_owned(),
            term: view.leadership.term,
            applied_index: view.applied_index,
            members,
            space_warning_percent,
            space_error_percent,
            resync_limit_bytes_per_second,
        }
    }

    /// Accepts the present identity of a member in the place of the one that is lost.
    pub async fn replace_member(&self, name: &str) -> Result<messages::Cluster, Refusal> {
        let name: NodeName = name.parse()?;
        let Some(quorum) = self.machine.quorum() else {
            return Err(Refusal::Impossible("a single node has no other members".to_owned()));
        };
        let status = quorum.status();
        let peer = status.peers.iter().find(|peer| peer.name == name).ok_or_else(|| {
            Refusal::NotFound(format!("there is no other member {name}: `gemel cluster show` names them"))
        })?;
        let Some(member) = peer.member.filter(|_| peer.is_reachable) else {
            return Err(Refusal::Impossible(format!(
                "{name} cannot be reached: start it first; {}",
                peer.reason
            )));
        };
        let is_accepted = |status: &QuorumStatus| {
            status.view.voters.contains_key(&member) && !status.view.is_changing_voters
        };
        if !is_accepted(&status) {
            quorum.replace_member(name.clone()).await;
        }
        if !quorum.status_becomes(PATIENCE, is_accepted).await {
            return Err(Refusal::Impossible(format!(
                "{name} has not been accepted: that takes the other two members; `gemel cluster show` tells how they are"
            )));
        }
        let message = format!("{name} was accepted in the place of the one whose log is lost");
        self.events.warning("member-replaced", message, &[]);
        Ok(self.cluster())
    }

    /// Has the cluster know a member by this key: another machine that had its place is refused from then on. Who is not a
    /// member yet becomes one when it is there for the first time.
    pub async fn record_key(
        &self,
        name: NodeName,
        kind: SeatKind,
        key: KeyFingerprint,
    ) -> Result<(), Refusal> {
        let node = (kind == SeatKind::Node).then_some(name);
        if self.machine.read(|state| state.key_of(node.as_ref()).is_none()) {
            return Ok(());
        }
        self.machine.apply(vec![Command::SetKey { node, key, is_first: false }]).await.map(drop)
    }

    /// Removes a node or the witness that is gone for good: it has no vote any more, and its certificate is void.
    pub async fn remove_member(&self, name: &str) -> Result<messages::Cluster, Refusal> {
        let name: NodeName = name.parse()?;
        let Some(quorum) = self.machine.quorum() else {
            return Err(Refusal::Impossible("a single node has no other members".to_owned()));
        };
        if name == self.node {
            return Err(Refusal::Impossible(format!(
                "{name} is the node that is asked: ask the one that stays, with this one switched off"
            )));
        }
        let status = quorum.status();
        let peer = status.peers.iter().find(|peer| peer.name == name).ok_or_else(|| {
            Refusal::NotFound(format!("there is no other member {name}: `gemel cluster show` names them"))
        })?;
        if peer.is_reachable {
            return Err(Refusal::Impossible(format!(
                "{name} is there: only who is gone for good is removed; switch it off first (`gemel node shutdown`)"
            )));
        }
        let is_other_gone = status.peers.iter().any(|other| other.name != name && !other.is_reachable);
        if is_other_gone || !status.view.has_majority() {
            return Err(Refusal::Impossible(format!(
                "removing {name} takes both other members, and one of them cannot be reached: bring that one back first"
            )));
        }
        self.check_removable(&name, peer.kind)?;
        let _turn = self.turn().await;
        let command = match peer.kind {
            SeatKind::Node => Command::RemoveNode { name: name.clone() },
            SeatKind::Witness => Command::RemoveWitness {},
        };
        self.machine.apply(vec![command]).await?;
        let is_gone = |status: &QuorumStatus| {
            status.view.voters.values().all(|seat| seat != name.as_str()) && !status.view.is_changing_voters
        };
        if !is_gone(&quorum.status()) {
            quorum.remove_member(name.clone()).await;
        }
        if !quorum.status_becomes(PATIENCE, is_gone).await {
            return Err(Refusal::Impossible(format!(
                "{name} is refused from now on, but still has its vote: repeat this (`gemel cluster show` tells how the \
                 others are)"
            )));
        }
        let message = format!("{name} was removed: its certificate is void, and it has no vote");
        self.events.warning("member-removed", message, &[]);
        Ok(self.cluster())
    }

    /// Refuses where data would be lost with a node.
    fn check_removable(&self, name: &NodeName, kind: SeatKind) -> Result<(), Refusal> {
        let held: Vec<String> = self.machine.read(|state| {
            let is_held = |record: &&VolumeRecord| record.primary == *name || record.in_sync.contains(name);
            state.volumes().filter(is_held).map(|record| record.name.to_string()).collect()
        });
        if kind == SeatKind::Witness || held.is_empty() {
            return Ok(());
        }
        Err(Refusal::Impossible(format!(
            "node {name} has, or may have, data of {} that no other one has: wait until the other node goes on alone \
             (`gemel status`), or give it up (`gemel force primary`, `gemel volume delete`)",
            super::redundancy::list(&held)
        )))
    }

    /// Whether another machine may take the place of a member. Not while the member is well.
    pub fn may_be_joined(&self, name: &NodeName) -> Result<(), Refusal> {
        let Some(quorum) = self.machine.quorum() else { return Ok(()) };
        let status = quorum.status();
        let is_voter = |peer: &&PeerStatus| {
            peer.is_reachable && peer.member.is_some_and(|member| status.view.voters.contains_key(&member))
        };
        match status.peers.iter().find(|peer| peer.name == *name).filter(is_voter) {
            Some(_) => Err(Refusal::Impossible(format!(
                "{name} is in service: stop it first, if another machine is to take its place"
            ))),
            None => Ok(()),
        }
    }

    /// A token was made.
    pub fn note_token(&self, name: &NodeName) {
        self.events.info("join-token-made", format!("a join token was made for {name}"), &[]);
    }

    /// The other nodes of the cluster.
    pub(super) fn other_nodes(&self, state: &ControlState) -> Vec<messages::Node> {
        let others = state.nodes().filter(|(name, _)| **name != self.node);
        let node = others.map(|(name, node)| {
            let peer = self.peer(name);
            let is_up = peer.as_ref().is_some_and(|peer| peer.is_reachable);
            messages::Node {
                name: name.to_string(),
                state: match is_up {
                    true if node.is_in_maintenance => NodeState::Maintenance,
                    true => NodeState::Up,
                    false => NodeState::Down,
                }
                .into(),
                version: peer.map_or_else(String::new, |peer| peer.build),
                portal_group_tag: node.portal_group_tag.into(),
                ..messages::Node::default()
            }
        });
        node.collect()
    }

    /// The witness, where there is one.
    pub(super) fn witness(&self) -> Option<messages::Witness> {
        let status = self.machine.quorum()?.status();
        let witness = status.peers.iter().find(|peer| peer.kind == SeatKind::Witness)?;
        let state = if witness.is_reachable { WitnessState::Up } else { WitnessState::Down };
        Some(messages::Witness { state: state.into() })
    }

    /// Whether this or another node can be reached.
    pub fn is_reachable(&self, node: &NodeName) -> bool {
        *node == self.node || self.peer(node).is_some_and(|peer| peer.is_reachable)
    }

    /// What is wrong with the cluster, and what the next loss would do.
    pub(super) fn attention_to_members(&self) -> Vec<messages::Attention> {
        let Some(quorum) = self.machine.quorum() else { return Vec::new() };
        let QuorumStatus { view, peers } = &*quorum.status();
        let own = self.node.as_str();
        let mut items = Vec::new();
        if let Some(reason) = &view.failure {
            let message = format!("this node takes no part in the cluster's decisions: {reason}");
            let action = "see the log of gemeld; a restart looks again".to_owned();
            items.push(Kind::NoVote.item(Severity::Error, own, message, action));
        } else if !view.has_majority() {
            let message = "this node is not in contact with a majority: what it shows may be old, and nothing can be changed";
            let action = "bring the others back, or the network to them (`gemel cluster show`)".to_owned();
            items.push(Kind::NoMajority.item(Severity::Error, own, message.to_owned(), action));
        }
        for peer in peers {
            let (kind, name) = (peer.kind, &peer.name);
            if !peer.is_reachable {
                let consequence = match view.has_majority() {
                    true => "while it is gone, the loss of another member stops all changes",
                    false => "it is needed for a majority",
                };
                let (message, action) = match peer.is_refused {
                    true => (
                        format!(
                            "{kind} {name} and this node refuse each other ({}); {consequence}",
                            peer.reason
                        ),
                        format!(
                            "make the two fit as the reason says; {name} then gets by itself what it has missed"
                        ),
                    ),
                    false => (
                        format!("{kind} {name} cannot be reached ({}); {consequence}", peer.reason),
                        format!("start {kind} {name}, or mend the network to it"),
                    ),
                };
                items.push(Kind::MemberUnreachable.item(Severity::Warning, name.as_str(), message, action));
            } else if peer.member.is_some_and(|member| !view.voters.contains_key(&member))
                && view.voters.values().any(|seat| seat == name.as_str())
            {
                let message = format!("{kind} {name} has lost its log and has no vote");
                let action = format!("find out why; then accept it anew with: gemel node replace {name}");
                items.push(Kind::VoteLost.item(Severity::Warning, name.as_str(), message, action));
            }
        }
        items
    }

    /// Reports the members that have come, gone, or are refused since the last call. Who was not there before the first
    /// call is no news, but for a refusal.
    pub(super) fn tell_members(&self, status: &QuorumStatus, told: &mut BTreeMap<NodeName, MemberTold>) {
        for peer in &status.peers {
            let told = told.entry(peer.name.clone()).or_insert(MemberTold::Gone);
            let (kind, name) = (peer.kind, &peer.name);
            let evidence = [("member", name.to_string()), ("version", peer.build.clone())];
            match (peer.is_reachable, *told) {
                (true, MemberTold::Gone | MemberTold::Refused) => {
                    *told = MemberTold::There;
                    self.events.info("member-reached", format!("{kind} {name} is there"), &evidence);
                }
                (false, MemberTold::There) => {
                    *told = MemberTold::Gone;
                    self.events.warning("member-lost", format!("{kind} {name} cannot be reached"), &evidence);
                }
                (false, MemberTold::Gone) if peer.is_refused => {
                    *told = MemberTold::Refused;
                    let message = format!("{kind} {name} and this node refuse each other: {}", peer.reason);
                    self.events.warning("member-refused", message, &evidence);
                }
                _ => {}
            }
        }
    }

    fn peer(&self, name: &NodeName) -> Option<PeerStatus> {
        let status = self.machine.quorum()?.status();
        status.peers.iter().find(|peer| peer.name == *name).cloned()
    }
}
