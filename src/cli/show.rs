//! Tables and pages for people, from the messages that `--json` prints.

use std::fmt::Write;

use crate::rpc::json::name;
use crate::rpc::management::{
    AccessEntry, AloneVolume, Cluster, Disk, DiskState, Event, Health, HostGroup, JoinToken, Node, NodeState,
    Pool, PoolState, Rebuild, Scrub, Severity, ShutdownClusterResponse, Snapshot, Status, Volume,
    VolumeState, WitnessState,
};
use crate::rpc::size::show as size;
use crate::rpc::time::show_duration;

/// One page: is it healthy, what must I do, what is there.
pub fn status(status: &Status) -> String {
    let health = match status.health() {
        Health::Ok => "ok",
        Health::Degraded => "degraded: data is served, redundancy is reduced",
        Health::Down | Health::Unspecified => "down: data is not served",
    };
    let mut page = format!("Cluster {}: {health}\n", status.cluster);
    for attention in &status.attention {
        let severity = name::<Severity>(attention.severity);
        let _ = writeln!(page, "  {severity}: {}", attention.message);
        for event in &attention.why {
            let _ = writeln!(page, "    why: {}", event.line());
        }
        let _ = writeln!(page, "    -> {}", attention.action);
    }
    if !status.summary.is_empty() {
        let _ = writeln!(page, "\n{}", status.summary);
    }
    page.push_str("\nNodes\n");
    page.push_str(&nodes(&status.nodes));
    if let Some(witness) = &status.witness {
        let _ = writeln!(page, "\nWitness: {}", name::<WitnessState>(witness.state));
    }
    page.push_str("\nPools\n");
    page.push_str(&pools(&status.pools));
    page.push_str("\nVolumes\n");
    page.push_str(&volumes(&status.volumes));
    page
}

/// A table of nodes.
pub fn nodes(nodes: &[Node]) -> String {
    let rows = nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            name::<NodeState>(node.state),
            node.version.clone(),
            show_duration(node.uptime_seconds),
            node.sessions.to_string(),
            node.engine.clone(),
            node.portals.join(" "),
        ]
    });
    table(&["NAME", "STATE", "VERSION", "UP", "SESSIONS", "DISK I/O", "PORTALS"], rows)
}

/// A join token.
pub fn join_token(token: &JoinToken) -> String {
    let disks = if token.kind == "node" { " --disk /dev/disk/by-id/… (once for each disk)" } else { "" };
    format!(
        "On {} {}, within {}, once:\n    gemel cluster join {}{disks}\n",
        token.kind,
        token.name,
        humantime::format_duration(std::time::Duration::from_secs(token.valid_seconds)),
        token.token
    )
}

/// A table of snapshots.
pub fn snapshots(snapshots: &[Snapshot]) -> String {
    let rows = snapshots.iter().map(|snapshot| {
        vec![
            format!("{}@{}", snapshot.volume, snapshot.name),
            crate::rpc::time::show_seconds(snapshot.taken_ms),
            snapshot.kind.clone(),
            snapshot.protected_until_ms.map_or_else(String::new, crate::rpc::time::show_seconds),
            snapshot.clones.join(" "),
        ]
    });
    table(&["SNAPSHOT", "TAKEN", "BY", "PROTECTED UNTIL", "CLONES"], rows)
}

/// A size, if it is any.
fn some_size(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { size(bytes) }
}

/// What a volume does in a second at most.
fn limits_of(volume: &Volume) -> String {
    let operations = (volume.iops_limit > 0).then(|| format!("{} operations", volume.iops_limit));
    let bytes = (volume.bytes_per_second_limit > 0).then(|| size(volume.bytes_per_second_limit));
    let limits: Vec<String> = operations.into_iter().chain(bytes).collect();
    if limits.is_empty() { String::new() } else { format!("{} a second", limits.join(" and ")) }
}

/// What a volume's snapshots take, and when they are taken by themselves.
fn snapshots_of(volume: &Volume) -> String {
    let count = match volume.snapshots {
        0 => String::new(),
        count => format!("{count}, which keep {}", size(volume.snapshot_bytes)),
    };
    let schedule = volume.snapshot_schedule.as_ref().map(|schedule| {
        let every = humantime::format_duration(std::time::Duration::from_secs(schedule.every_seconds));
        format!("one every {every}, {} kept", schedule.keep)
    });
    let rollback = volume.rollback_percent.map(|percent| format!("a rollback is {percent} % done"));
    [count, schedule.unwrap_or_default(), rollback.unwrap_or_default()]
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// What becomes of a cluster that is switched off.
pub fn cluster_shutdown(stopped: &ShutdownClusterResponse) -> String {
    let mut text = format!("Stopped: {}\n", stopped.nodes.join(", "));
    if !stopped.on_both.is_empty() {
        let volumes = stopped.on_both.join(", ");
        let _ = writeln!(text, "The same on both nodes, so that either can start them: {volumes}");
    }
    for AloneVolume { volume, node } in &stopped.alone {
        let _ = writeln!(text, "Only node {node} has all data of {volume}: start it first");
    }
    if !stopped.witness_reachable {
        text.push_str("The witness cannot be reached: without it both nodes have to be started\n");
    }
    text
}

/// A cluster and its members.
pub fn cluster(cluster: &Cluster) -> String {
    let leader = if cluster.leader.is_empty() { "nobody" } else { &cluster.leader };
    let majority = match (cluster.members.is_empty(), cluster.has_majority) {
        (true, _) => "a single node",
        (false, true) => "in contact with a majority",
        (false, false) => "NOT in contact with a majority: what is shown may be old",
    };
    let rows = cluster.members.iter().map(|member| {
        let since = match member.since_ms {
            0 => String::new(),
            since_ms => crate::rpc::time::show(since_ms),
        };
        let link = if member.reachable { "up" } else { "down" };
        let votes = if member.votes { "yes" } else { "no" };
        let (name, kind) = (member.name.clone(), member.kind.clone());
        vec![
            name,
            kind,
            votes.to_owned(),
            link.to_owned(),
            since,
            member.version.clone(),
            member.reason.clone(),
        ]
    });
    let limit = match cluster.resync_limit_bytes_per_second {
        0 => "no limit".to_owned(),
        limit => format!("{}/s", size(limit)),
    };
    format!(
        "Cluster {} ({}): {majority}\nLeader {leader}, term {}, applied through {}\nResync {limit}, space warning at \
         {} %, error at {} %\n\nMembers\n{}",
        cluster.name,
        cluster.uuid,
        cluster.term,
        cluster.applied_index,
        cluster.space_warning_percent,
        cluster.space_error_percent,
        table(&["NAME", "KIND", "VOTES", "LINK", "SINCE", "VERSION", "REASON"], rows)
    )
}

fn pools(pools: &[Pool]) -> String {
    let rows = pools.iter().map(|pool| {
        let working = pool.disks.iter().filter(|disk| disk.state() == DiskState::Ok).count();
        vec![
            pool.node.clone(),
            name::<PoolState>(pool.state),
            size(pool.capacity_bytes),
            format!("{} ({}%)", size(pool.used_bytes), percent(pool.used_bytes, pool.capacity_bytes)),
            size(pool.provisioned_bytes),
            pool.full_ms.map_or_else(|| "-".to_owned(), day),
            format!(
                "{working} of {}",
                pool.disks.iter().filter(|disk| disk.state() != DiskState::Spare).count()
            ),
        ]
    });
    table(&["NODE", "STATE", "CAPACITY", "USED", "PROVISIONED", "FULL ON", "DISKS"], rows)
}

/// A pool and its disks.
pub fn pool(pool: &Pool) -> String {
    let scrubbed = pool.scrub.as_ref().map_or_else(String::new, scrub);
    let rebuild = &pool.rebuild_priority;
    format!(
        "{}\n{}\nDisks\n{}\nrebuild priority {rebuild}\n{scrubbed}",
        pools(std::slice::from_ref(pool)),
        forecast(pool),
        disks(&pool.disks)
    )
}

/// What is to be expected of a pool.
fn forecast(pool: &Pool) -> String {
    let full = pool.full_ms.map(day);
    match (pool.growth_bytes_per_day, full) {
        (None, _) => "growth: not known yet\n".to_owned(),
        (Some(0), _) => "growth: none lately\n".to_owned(),
        (Some(growth), Some(full)) => {
            format!("growth: {} a day; at that rate it is full on {full}\n", size(growth))
        }
        (Some(growth), None) => {
            format!("growth: {} a day; that fills it in no foreseeable time\n", size(growth))
        }
    }
}

/// The day of a time.
fn day(unix_ms: u64) -> String {
    crate::rpc::time::show(unix_ms).chars().take("2027-01-31".len()).collect()
}

/// How the scrub of a pool is, and what it found.
pub fn scrub(scrub: &Scrub) -> String {
    let state = match (scrub.running, scrub.started_ms) {
        (_, 0) => return format!("scrub on {}: never so far\n", scrub.node),
        (true, at) => format!("running since {}, {} %", crate::rpc::time::show(at), scrub.percent),
        (false, at) if scrub.finished_ms >= at => {
            format!("ended at {}", crate::rpc::time::show(scrub.finished_ms))
        }
        (false, at) => format!("begun at {}, and stopped", crate::rpc::time::show(at)),
    };
    let mut text = format!(
        "scrub on {}: {state}; {} blocks looked at, {} damaged, {} repaired, {} beyond what parity gives back\n",
        scrub.node, scrub.checked_blocks, scrub.found, scrub.repaired, scrub.unrecoverable
    );
    for block in &scrub.first_unrecoverable {
        text.push_str(&format!("  damaged: volume/block {block}\n"));
    }
    text
}

/// A table of volumes.
pub fn volumes(volumes: &[Volume]) -> String {
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            name::<VolumeState>(volume.state),
            size(volume.size_bytes),
            size(volume.used_bytes),
            sector(volume),
            volume.primary.clone(),
            volume.sessions.to_string(),
            volume.target.clone(),
        ]
    });
    table(&["NAME", "STATE", "SIZE", "USED", "SECTOR", "PRIMARY", "SESSIONS", "TARGET"], rows)
}

/// The sector size, as `volume create` takes it.
fn sector(volume: &Volume) -> String {
    let is_native = volume.sector_bytes == 512 && volume.physical_sector_bytes == 512;
    if is_native { "512n".to_owned() } else { volume.sector_bytes.to_string() }
}

/// One volume with everything about it.
pub fn volume(volume: &Volume) -> String {
    let facts = [
        ("name", volume.name.clone()),
        ("state", name::<VolumeState>(volume.state)),
        ("size", format!("{} ({} bytes)", size(volume.size_bytes), volume.size_bytes)),
        ("used", format!("{} ({} bytes)", size(volume.used_bytes), volume.used_bytes)),
        ("snapshots", snapshots_of(volume)),
        ("clone of", volume.origin.clone()),
        ("limits", limits_of(volume)),
        ("quota", some_size(volume.quota_bytes)),
        ("reserved", some_size(volume.reserved_bytes)),
        ("sector", sector(volume)),
        ("target", format!("{} LUN 0", volume.target)),
        ("primary", volume.primary.clone()),
        ("epoch", volume.epoch.to_string()),
        ("id", volume.id.to_string()),
        ("sessions", volume.sessions.to_string()),
        ("created", crate::rpc::time::show(volume.created_ms)),
        ("since", volume.reason.clone()),
        ("home", volume.home.clone()),
        ("trouble", volume.trouble.clone()),
    ];
    facts
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .fold(String::new(), |text, (name, value)| format!("{text}{name:<10}{value}\n"))
}

/// A table of disks.
pub fn disks(disks: &[Disk]) -> String {
    let rows = disks.iter().map(|disk| {
        vec![
            disk.id.clone(),
            disk.node.clone(),
            name::<DiskState>(disk.state),
            size(disk.size_bytes),
            format!("{}/{}/{}", disk.read_errors, disk.write_errors, disk.checksum_errors),
            disk.health.clone(),
            disk.path.clone(),
            disk_remark(disk),
        ]
    });
    table(&["ID", "NODE", "STATE", "SIZE", "ERRORS (READ/WRITE/CHECKSUM)", "HEALTH", "PATH", "REMARK"], rows)
}

/// What there is to say of a disk: how far it is rebuilt, why it is out of service, or what it says of itself.
fn disk_remark(disk: &Disk) -> String {
    match &disk.rebuild {
        Some(progress) => rebuild(progress),
        None if disk.reason.is_empty() => disk.health_detail.clone(),
        None => disk.reason.clone(),
    }
}

fn rebuild(rebuild: &Rebuild) -> String {
    let left = rebuild.remaining_seconds.map(|seconds| {
        format!(", {}/s, about {} left", size(rebuild.bytes_per_second), show_duration(seconds))
    });
    let done = percent(rebuild.done_bytes, rebuild.total_bytes);
    format!("{done} % of {} rebuilt{}", size(rebuild.total_bytes), left.unwrap_or_default())
}

/// A table of access entries.
pub fn access(entries: &[AccessEntry]) -> String {
    let rows = entries.iter().map(|entry| {
        let chap = match (entry.chap, entry.mutual_chap) {
            (_, true) => "mutual",
            (true, false) => "one-way",
            (false, false) => "no",
        };
        vec![entry.volume.clone(), entry.initiator.clone(), chap.to_owned()]
    });
    table(&["VOLUME", "INITIATOR", "CHAP"], rows)
}

/// Host groups.
pub fn host_groups(groups: &[HostGroup]) -> String {
    let rows = groups
        .iter()
        .map(|group| vec![group.name.clone(), group.initiators.join(" "), group.volumes.join(" ")]);
    table(&["GROUP", "INITIATORS", "VOLUMES"], rows)
}

/// One line for an event.
pub fn event(event: &Event) -> String {
    let severity = name::<Severity>(event.severity);
    let evidence =
        if event.evidence.is_empty() { String::new() } else { format!(" ({})", event.evidence.join(", ")) };
    format!("{} {severity:<7} {}: {}{evidence}\n", event.time, event.kind, event.message)
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(super) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = vec![head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    if lines.len() == 1 {
        return "  (none)\n".to_owned();
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let padded = line.iter().zip(&widths).fold(String::from(" "), |mut text, (cell, width)| {
            let _ = write!(text, " {cell:<width$}");
            text
        });
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["long name".to_owned(), "1".to_owned()], vec!["x".to_owned(), "22".to_owned()]];
        let text = table(&["NAME", "N"], rows.into_iter());
        assert_eq!(text, "  NAME      N\n  long name 1\n  x         22\n");
        assert_eq!(table(&["NAME"], std::iter::empty()), "  (none)\n");
    }

    #[test]
    fn an_event_is_one_line() {
        let shown = event(&Event {
            time: "2026-01-01T00:00:00Z".into(),
            severity: Severity::Warning.into(),
            kind: "disk-failed".into(),
            message: "disk 2 failed".into(),
            evidence: vec!["errno=5".into()],
            ..Event::default()
        });
        assert_eq!(shown, "2026-01-01T00:00:00Z warning disk-failed: disk 2 failed (errno=5)\n");
    }
}
