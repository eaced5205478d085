//! `/metrics`: the data thread's report, and how the cluster is, in Prometheus text format.

use std::fmt::Write;

use super::engine::{DiskState, EngineReport};
use crate::base::histogram::Histogram;
use crate::rpc::json::name;
use crate::rpc::management::{Health, NodeState, Severity, Status, VolumeState, WitnessState};
use crate::volume::statistics::OperationKind;

/// Upper bounds of the latency buckets, as powers of two of nanoseconds (16 us to 34 s): there the
/// histogram counts exactly.
const LATENCY_BUCKETS: std::ops::RangeInclusive<u32> = 14..=35;

/// The report and the status as a page of metrics.
#[must_use]
pub fn page(report: &EngineReport, status: &Status) -> String {
    let mut page = Page::default();
    cluster(&mut page, status);
    volumes(&mut page, report);
    pool(&mut page, report);
    page.metric("gemel_iscsi_sessions", "gauge", "iSCSI sessions logged in.", [("", report.sessions)]);
    let logins = [("{result=\"success\"}", report.logins), ("{result=\"failure\"}", report.failed_logins)];
    page.metric("gemel_iscsi_logins_total", "counter", "iSCSI logins by result.", logins);
    let in_progress = [("", report.logins_in_progress)];
    page.metric(
        "gemel_iscsi_logins_in_progress",
        "gauge",
        "iSCSI connections still logging in.",
        in_progress,
    );
    let (received, sent) = report.network_bytes;
    page.metric("gemel_iscsi_received_bytes_total", "counter", "Bytes from initiators.", [("", received)]);
    page.metric("gemel_iscsi_sent_bytes_total", "counter", "Bytes to initiators.", [("", sent)]);
    let memory = [("", report.write_memory_bytes)];
    page.metric("gemel_iscsi_write_memory_bytes", "gauge", "Memory held for incoming data.", memory);
    process(&mut page);
    page.text
}

/// How the cluster is, as `gemel status` tells it.
fn cluster(page: &mut Page, status: &Status) {
    let health = match status.health() {
        Health::Ok => 0,
        Health::Degraded => 1,
        Health::Down | Health::Unspecified => 2,
    };
    page.metric("gemel_health", "gauge", "0 healthy, 1 redundancy reduced, 2 service lost.", [("", health)]);
    let attention = status.attention.iter().map(|item| {
        let severity = name::<Severity>(item.severity);
        let (kind, about, node) = (&item.kind, &item.about, &item.node);
        let labels = format!("{{kind=\"{kind}\",severity=\"{severity}\",about=\"{about}\",node=\"{node}\"}}");
        (labels, 1)
    });
    let help = "What an administrator should look at; docs/runbook.md explains each kind.";
    page.metric("gemel_attention", "gauge", help, attention.collect::<Vec<_>>());
    let label = |member: &str| format!("{{member=\"{member}\"}}");
    let node =
        |node: &crate::rpc::management::Node| (label(&node.name), u64::from(node.state() != NodeState::Down));
    let witness = status.witness.iter();
    let witness = witness.map(|witness| (label("witness"), u64::from(witness.state() == WitnessState::Up)));
    let members = status.nodes.iter().map(node).chain(witness).collect::<Vec<_>>();
    page.metric("gemel_member_reachable", "gauge", "Whether nodes and witness can be reached.", members);
    let volume = |name: &str| format!("{{volume=\"{name}\"}}");
    let volumes = || status.volumes.iter();
    let sizes = volumes().map(|it| (volume(&it.name), it.size_bytes)).collect::<Vec<_>>();
    page.metric("gemel_volume_size_bytes", "gauge", "Size that hosts see.", sizes);
    let served = volumes().map(|it| (volume(&it.name), u64::from(it.state() != VolumeState::Offline)));
    page.metric("gemel_volume_served", "gauge", "Whether a node serves it.", served.collect::<Vec<_>>());
    let in_sync = volumes().map(|it| (volume(&it.name), u64::from(it.state() == VolumeState::InSync)));
    let help = "Whether it is on all the nodes that it should be on.";
    page.metric("gemel_volume_in_sync", "gauge", help, in_sync.collect::<Vec<_>>());
    let left = volumes().filter_map(|it| {
        let resync = it.resync.as_ref()?;
        Some((volume(&it.name), resync.to_copy_bytes.saturating_sub(resync.copied_bytes)))
    });
    let help = "What is still to be copied to the other node.";
    page.metric("gemel_volume_resync_left_bytes", "gauge", help, left.collect::<Vec<_>>());
}

fn volumes(page: &mut Page, report: &EngineReport) {
    let each = |value: fn(&super::engine::VolumeReport) -> u64| {
        let label = |name: &str| format!("{{volume=\"{name}\"}}");
        report.volumes.iter().map(move |volume| (label(&volume.name), value(volume))).collect::<Vec<_>>()
    };
    let used = each(|volume| volume.used_bytes);
    page.metric("gemel_volume_used_bytes", "gauge", "Bytes of mapped blocks, before parity.", used);
    page.metric("gemel_volume_sessions", "gauge", "Sessions of the volume.", each(|volume| volume.sessions));
    page.metric("gemel_volume_commands", "gauge", "Commands in progress.", each(|volume| volume.commands));
    for kind in OperationKind::ALL {
        let name = kind.name();
        let totals: Vec<_> =
            report.volumes.iter().map(|volume| (&volume.name, volume.statistics.of(kind))).collect();
        let labelled = |value: fn(&crate::volume::statistics::OperationStatistics) -> u64| {
            totals
                .iter()
                .map(|(volume, totals)| (format!("{{volume=\"{volume}\"}}"), value(totals)))
                .collect::<Vec<_>>()
        };
        let metric = format!("gemel_volume_{name}_operations_total");
        page.metric(&metric, "counter", "Operations that ended.", labelled(|totals| totals.operations));
        let metric = format!("gemel_volume_{name}_errors_total");
        page.metric(&metric, "counter", "Operations that failed.", labelled(|totals| totals.errors));
        let metric = format!("gemel_volume_{name}_bytes_total");
        page.metric(
            &metric,
            "counter",
            "Bytes of operations that succeeded.",
            labelled(|totals| totals.bytes),
        );
        let metric = format!("gemel_volume_{name}_latency_seconds");
        page.head(&metric, "histogram", "Time from the command to its completion.");
        for (volume, totals) in totals {
            page.histogram(&metric, volume, &totals.latency_ns);
        }
    }
}

fn pool(page: &mut Page, report: &EngineReport) {
    let pool = &report.pool;
    let online = [("", u64::from(!pool.offline))];
    page.metric("gemel_pool_online", "gauge", "Whether the pool serves.", online);
    page.metric("gemel_pool_capacity_bytes", "gauge", "What volumes can hold.", [("", pool.capacity_bytes)]);
    page.metric("gemel_pool_used_bytes", "gauge", "What is taken of it.", [("", pool.used_bytes)]);
    let redundancy = [("", u64::from(pool.redundancy))];
    page.metric(
        "gemel_pool_redundancy_disks",
        "gauge",
        "Disks that may fail before data is lost.",
        redundancy,
    );
    let cleaned = [("", pool.cleaned_bytes)];
    page.metric("gemel_pool_cleaned_bytes_total", "counter", "Bytes moved by cleaning.", cleaned);
    let repaired = [("", pool.repaired_blocks)];
    page.metric("gemel_pool_repaired_blocks_total", "counter", "Blocks rebuilt from parity.", repaired);
    let disks = &pool.disks;
    let is_up = |state| matches!(state, DiskState::Ok | DiskState::Rebuilding | DiskState::Spare);
    let up = disks.iter().map(|disk| (format!("{{disk=\"{}\"}}", disk.id), u64::from(is_up(disk.state))));
    page.metric("gemel_disk_up", "gauge", "Whether the disk is in service.", up.collect::<Vec<_>>());
    let errors = disks.iter().flat_map(|disk| {
        ["read", "write", "checksum"]
            .iter()
            .zip(disk.errors)
            .map(|(kind, count)| (format!("{{disk=\"{}\",kind=\"{kind}\"}}", disk.id), count))
    });
    page.metric(
        "gemel_disk_errors_total",
        "counter",
        "Errors of the disk by kind.",
        errors.collect::<Vec<_>>(),
    );
}

fn process(page: &mut Page) {
    // The second field of statm is the resident set, in pages (proc(5)).
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    if let Some(pages) = pages {
        let bytes = pages * rustix::param::page_size() as u64;
        page.metric("process_resident_memory_bytes", "gauge", "Resident memory of gemeld.", [("", bytes)]);
    }
}

/// Metrics as text. Label values are names and identities, which need no escaping.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn metric<L: AsRef<str>>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) {
        self.head(name, kind, help);
        for (labels, value) in values {
            let _ = writeln!(self.text, "{name}{} {value}", labels.as_ref());
        }
    }

    fn histogram(&mut self, name: &str, volume: &str, latency_ns: &Histogram) {
        for exponent in LATENCY_BUCKETS {
            let bound = 1u64 << exponent;
            let count = latency_ns.count_at_most(bound - 1);
            let seconds = bound as f64 / 1e9;
            let _ = writeln!(self.text, "{name}_bucket{{volume=\"{volume}\",le=\"{seconds}\"}} {count}");
        }
        let (count, sum) = (latency_ns.count(), latency_ns.sum() as f64 / 1e9);
        let _ = writeln!(self.text, "{name}_bucket{{volume=\"{volume}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(self.text, "{name}_sum{{volume=\"{volume}\"}} {sum}");
        let _ = writeln!(self.text, "{name}_count{{volume=\"{volume}\"}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::VolumeId;
    use crate::daemon::engine::VolumeReport;

    #[test]
    fn every_line_is_a_comment_or_a_sample_of_an_announced_metric() {
        let volume = VolumeReport {
            id: VolumeId(1),
            name: "data".to_owned(),
            sessions: 2,
            commands: 0,
            snapshots: 0,
            snapshot_bytes: 0,
            rollback: None,
            part: None,
            used_bytes: 4096,
            statistics: Default::default(),
        };
        let resync =
            crate::rpc::management::Resync { to_copy_bytes: 9, copied_bytes: 2, ..Default::default() };
        let known = crate::rpc::management::Volume {
            name: "data".to_owned(),
            resync: Some(resync),
            ..Default::default()
        };
        let item = crate::rpc::management::Attention {
            severity: 2,
            kind: "not-redundant".to_owned(),
            ..Default::default()
        };
        let status = Status { volumes: vec![known], attention: vec![item], ..Status::default() };
        let text = page(&EngineReport { volumes: vec![volume], ..EngineReport::default() }, &status);
        let mut announced = String::new();
        let mut samples = 0;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                announced = rest.split(' ').next().unwrap().to_owned();
            } else if !line.starts_with("# HELP ") {
                assert!(line.starts_with(&announced), "{line}");
                line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
                samples += 1;
            }
        }
        assert!(samples > 100);
        assert!(text.contains("gemel_volume_resync_left_bytes{volume=\"data\"} 7\n"));
        assert!(text.contains(
            "gemel_attention{kind=\"not-redundant\",severity=\"warning\",about=\"\",node=\"\"} 1\n"
        ));
        assert!(text.contains("gemel_volume_read_bytes_total{volume=\"data\"} 0\n"));
        assert!(text.contains("gemel_volume_write_latency_seconds_bucket{volume=\"data\",le=\"+Inf\"} 0\n"));
    }
}
