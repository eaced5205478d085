//! What `deploy/` gives to other systems is read by the real tools, and asks for metrics that exist.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use service::{Service, errors};

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(deploy(file)).unwrap()
}

/// Prometheus' own checker, as `scripts/prerequisites.sh` unpacks it.
fn promtool() -> Command {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/prometheus/usr/bin/promtool");
    Command::new(if unpacked.exists() { unpacked } else { "promtool".into() })
}

/// Names of metrics in a text, without the endings that belong to histograms.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words =
        text.split(|c| !is_part(c)).filter(|word| word.starts_with("gemel_") || word.starts_with("process_"));
    let base = |word: &str| {
        let ends = ["_bucket", "_sum", "_count"];
        ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
    };
    words.map(base).collect()
}

#[test]
fn rules_and_dashboard_ask_for_metrics_that_a_node_has() {
    let service = Service::serving();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    let (status, page) = service.page("/metrics");
    assert!(status.contains("200"), "{status}");
    let announced: BTreeSet<String> = page
        .lines()
        .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned()))
        .collect();
    let dashboard: serde_json::Value = serde_json::from_str(&read("grafana/gemel.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: String = queries.map(|target| format!("{}\n", target["expr"].as_str().unwrap())).collect();
    for (file, text) in [("rules", read("prometheus/rules.yml")), ("dashboard", queries)] {
        let asked = metrics_in(&text);
        assert!(asked.len() > 5, "{asked:?}");
        let missing: Vec<_> = asked.difference(&announced).collect();
        assert!(missing.is_empty(), "{file}: {missing:?}");
    }
    let file = service.folder.path().join("metrics");
    std::fs::write(&file, page).unwrap();
    let checked = promtool().args(["check", "metrics"]).stdin(std::fs::File::open(&file).unwrap()).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", errors(&checked));
}

#[test]
fn prometheus_reads_its_files() {
    for arguments in [["check", "rules"].as_slice(), &["check", "config", "--syntax-only"]] {
        let file = if arguments[1] == "rules" { "prometheus/rules.yml" } else { "prometheus/scrape.yml" };
        let checked = promtool().args(arguments).arg(deploy(file)).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success() && said.contains("SUCCESS"), "{said} {}", errors(&checked));
    }
}

#[test]
fn multipath_reads_its_configuration() {
    // In a mount namespace of its own, where /etc has nothing but this file.
    let script = "mount -t tmpfs none /etc && mkdir -p /etc/multipath/conf.d && \
                  cp \"$0\" /etc/multipath/conf.d/gemel.conf && multipath -t";
    let shown = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(deploy("hosts/multipath-gemel.conf"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&shown.stdout), errors(&shown));
    if text.contains("unshare failed") || text.contains("mount:") {
        println!("skipped: this machine allows no mount namespaces ({})", text.lines().next().unwrap_or(""));
        return;
    }
    assert!(shown.status.success(), "{text}");
    assert!(!text.contains("invalid keyword"), "{text}");
    let device = text.split("vendor \"GEMEL\"").nth(1).unwrap();
    for line in
        ["product \"VOLUME\"", "prio \"alua\"", "path_grouping_policy \"group_by_prio\"", "no_path_retry 30"]
    {
        assert!(device.contains(line), "{line} in {text}");
    }
    // The guide shows the same file.
    let guide = include_str!("../docs/install.md");
    let own = read("hosts/multipath-gemel.conf");
    let lines = own.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.for_each(|line| assert!(guide.contains(line), "{line}"));
    let own = read("hosts/iscsid-gemel.conf");
    let lines = own.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.for_each(|line| assert!(guide.contains(line), "{line}"));
    assert!(guide.contains(read("hosts/esx-claim-rule.sh").lines().last().unwrap()));
}
