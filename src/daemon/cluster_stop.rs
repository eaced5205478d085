//! Switches both nodes off, from the one that is asked: every volume is stopped with the certificate that both replicas
//! are equal, then both processes end, so that either room can start everything again with the witness alone.
//!
//! Guarantees: neither process is told to end before every volume that is on both nodes has its certificate. Until then
//! nothing is kept but for some seconds: if this call breaks off, or a node is lost, what was stopped is started again.

use std::time::{Duration, Instant};

use tonic::Status;
use tonic::transport::Channel;

use super::control::{Control, Refusal};
use super::others::{Others, passed_on};
use crate::cluster::name::NodeName;
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{AloneVolume, ShutdownClusterResponse, ShutdownNodeRequest, StopVolumesRequest};

/// The other node, where it can be reached.
struct Other {
    name: NodeName,
    client: ManagementClient<Channel>,
}

impl Other {
    async fn stop_volumes(&mut self, how_long: Duration) -> Result<(), Status> {
        let milliseconds = u64::try_from(how_long.as_millis()).unwrap_or(u64::MAX);
        let request = passed_on(StopVolumesRequest { milliseconds });
        self.client.stop_volumes(request).await.map(drop)
    }
}

/// Switches both nodes off, for want of `power` or because somebody wants it. When it is refused or fails, everything is in service again within some seconds.
pub async fn run(
    control: &Control,
    others: Option<&Others>,
    force: bool,
    power: bool,
) -> Result<ShutdownClusterResponse, Status> {
    control.check_cluster_stop(force).map_err(refused)?;
    let mut other = match (control.reachable_others().into_iter().next(), others) {
        (Some(name), Some(others)) => Some(Other { client: others.client(&name).await?, name }),
        _ => None,
    };
    let stopped = match stop_volumes(control, other.as_mut(), force).await {
        Ok(()) => stop_other(control, other.as_mut(), power).await,
        Err(status) => Err(status),
    };
    if let Err(status) = stopped {
        undo(control, other.as_mut()).await;
        return Err(status);
    }
    let progress = control.stop_progress();
    let alone = |(volume, node): (String, NodeName)| AloneVolume { volume, node: node.to_string() };
    let own = ShutdownNodeRequest { node: String::new(), force: true, cluster: true, power };
    control.shutdown(&own).map_err(refused)?;
    let nodes = other.iter().map(|other| &other.name).chain([control.node()]);
    Ok(ShutdownClusterResponse {
        on_both: progress.on_both,
        alone: progress.alone.into_iter().map(alone).collect(),
        nodes: nodes.map(ToString::to_string).collect(),
        witness_reachable: control.is_witness_reachable(),
    })
}

/// Waits until no volume is in service that is on both nodes.
async fn stop_volumes(control: &Control, mut other: Option<&mut Other>, force: bool) -> Result<(), Status> {
    let since = Instant::now();
    loop {
        control.stop_volumes(KEPT).await.map_err(refused)?;
        if let Some(other) = &mut other {
            let told = other.stop_volumes(KEPT).await;
            told.map_err(|status| gone(&other.name, &status))?;
        }
        let progress = control.stop_progress();
        if !force && !progress.alone.is_empty() {
            return Err(Status::failed_precondition(format!(
                "nothing was switched off: meanwhile {}",
                progress.alone_in_words()
            )));
        }
        if progress.open.is_empty() {
            return Ok(());
        }
        if since.elapsed() > LONGEST_STOP {
            return Err(Status::failed_precondition(format!(
                "nothing was switched off: {} could not be stopped in time; `gemel status` says how it is",
                progress.open_in_words()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Ends the other node's process. From here on nothing is begun again.
async fn stop_other(control: &Control, other: Option<&mut Other>, power: bool) -> Result<(), Status> {
    control.stop_volumes(FOR_GOOD).await.map_err(refused)?;
    let Some(other) = other else { return Ok(()) };
    let failed = |name: &NodeName, status: Status| gone(name, &status);
    other.stop_volumes(FOR_GOOD).await.map_err(|status| failed(&other.name, status))?;
    let request = ShutdownNodeRequest { node: other.name.to_string(), force: true, cluster: true, power };
    let told = other.client.shutdown_node(passed_on(request)).await;
    told.map_err(|status| failed(&other.name, status))?;
    let since = Instant::now();
    // It has its time to log hosts out; who is later than that ends beside this one.
    while control.is_reachable(&other.name) && since.elapsed() < LONGEST_END {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Has everything started again. Who cannot be told does so by itself when its time is over.
async fn undo(control: &Control, other: Option<&mut Other>) {
    let _ = control.stop_volumes(Duration::ZERO).await;
    if let Some(other) = other {
        let _ = other.stop_volumes(Duration::ZERO).await;
    }
}

fn gone(name: &NodeName, status: &Status) -> Status {
    Status::failed_precondition(format!(
        "nothing was switched off: node {name} went away in the middle ({}); this node goes on",
        status.message()
    ))
}

fn refused(refusal: Refusal) -> Status {
    super::management::status(refusal)
}

/// How long a node waits to be asked again before it starts what it has stopped.
const KEPT: Duration = Duration::from_secs(5);
/// Longer than a process takes to end.
const FOR_GOOD: Duration = Duration::from_secs(60);
/// Longest that volumes may take to stop.
const LONGEST_STOP: Duration = Duration::from_secs(15);
/// Longest that the other process may take to end.
const LONGEST_END: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
