//! Whom a call belongs to: what only another node can do is passed on to it, once, and looked for again when the volume has
//! just moved.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Request, Status};

use super::ManagementService;
use crate::cluster::name::{NameError, NodeName};
use crate::daemon::others::{Others, is_passed_on, passed_on};
use crate::rpc::management as messages;
use crate::rpc::management::management_client::ManagementClient;

impl ManagementService {
    /// Who has to do what is asked for: another node, or this one.
    pub(in crate::daemon) async fn elsewhere(
        &self,
        node: Option<NodeName>,
        is_passed_on: bool,
    ) -> Result<Option<ManagementClient<Channel>>, Status> {
        let node = node.filter(|node| !is_passed_on && *node != *self.control.node());
        match (node, &self.others) {
            (Some(node), Some(others)) => others.client(&node).await.map(Some),
            _ => Ok(None),
        }
    }

    /// The pool of the other node, as far as that can be asked.
    pub(super) async fn other_pool(&self) -> Option<messages::Pool> {
        let other = self.others.iter().flat_map(Others::names).next()?.clone();
        let asked = async {
            let mut client = self.elsewhere(Some(other.clone()), false).await.ok()??;
            let request = messages::GetPoolRequest { node: other.to_string() };
            client.get_pool(passed_on(request)).await.ok()
        };
        let answered = tokio::time::timeout(LONGEST_LOOK, asked).await.ok()??;
        Some(answered.into_inner())
    }

    /// The node that a request names, unless that is this one or it names none.
    pub(super) async fn named<T>(
        &self,
        request: &Request<T>,
        node: &str,
    ) -> Result<Option<ManagementClient<Channel>>, Status> {
        if node.is_empty() {
            return Ok(None);
        }
        let node: NodeName =
            node.parse().map_err(|error: NameError| Status::invalid_argument(error.to_string()))?;
        let is_known = node == *self.control.node()
            || self.others.iter().flat_map(Others::names).any(|other| *other == node);
        if !is_known {
            return Err(Status::not_found(format!("there is no node {node}: `gemel node list` shows them")));
        }
        self.elsewhere(Some(node), is_passed_on(request)).await
    }

    /// The other nodes.
    pub(in crate::daemon) fn names_of_others(&self) -> impl Iterator<Item = NodeName> {
        self.others.iter().flat_map(Others::names).cloned()
    }

    /// The other nodes, unless one of them asks.
    pub(super) fn other_nodes<T>(&self, request: &Request<T>) -> Vec<NodeName> {
        let others = self.others.iter().filter(|_| !is_passed_on(request));
        others.flat_map(Others::names).cloned().collect()
    }
}

/// Has a call done by the node that is named by `$node`, an expression of the request, and looks again when it is
/// not that one any more.
macro_rules! where_it_belongs {
    ($self:ident, $request:ident, $method:ident, |$message:ident| $node:expr, $here:expr) => {{
        let was_passed_on = is_passed_on(&$request);
        let $message = $request.into_inner();
        let mut tries = 0;
        loop {
            let answered = match $self.elsewhere($node, was_passed_on).await? {
                Some(mut other) => other.$method(passed_on($message.clone())).await,
                None => answer($here($message.clone()).await),
            };
            tries += 1;
            match answered {
                Err(status) if status.code() == Code::Aborted && !was_passed_on && tries < MOST_TRIES => {
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                answered => break answered,
            }
        }
    }};
}

/// Puts what another node says of itself into the status of this one.
pub(super) fn merge(status: &mut messages::Status, theirs: messages::Status, node: &str) {
    for volume in theirs.volumes.into_iter().filter(|volume| volume.primary == node) {
        let known = status.volumes.iter_mut().find(|known| known.id == volume.id);
        if let Some(known) = known.filter(|known| known.epoch == volume.epoch) {
            *known = volume;
        }
    }
    let own = theirs.nodes.into_iter().find(|known| known.name == node);
    if let (Some(own), Some(known)) = (own, status.nodes.iter_mut().find(|known| known.name == node)) {
        *known = own;
    }
    status.attention.extend(theirs.attention.into_iter().filter(|item| item.node == node));
    status.attention.sort_by_key(|item| std::cmp::Reverse(item.severity));
    let pools = theirs.pools.into_iter().filter(|pool| pool.node == node);
    status.pools.extend(pools);
    let is_reduced = status.pools.iter().any(|pool| pool.state() != messages::PoolState::Ok);
    if is_reduced && status.health() == messages::Health::Ok {
        status.health = messages::Health::Degraded.into();
    }
}

/// How often the node that has to do something is looked for, and how long in between: a take-over goes by.
pub(super) const MOST_TRIES: u32 = 10;
/// Longest that what another node says of itself is waited for.
pub(super) const LONGEST_LOOK: Duration = Duration::from_secs(2);
pub(super) const BETWEEN_TRIES: Duration = Duration::from_millis(300);
