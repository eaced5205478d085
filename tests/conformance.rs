//! Conformance: the whole of libiscsi's `iscsi-test-cu` against a real `gemeld`, over two portals.
//!
//! Fails on every failed test, on a skip that `tests/conformance/skips.txt` does not list with its reason, on a
//! listed skip that no longer happens, and when `docs/conformance-results.md` does not show what happened
//! (`UPDATE_DOCS=1` writes it).

#[path = "support/node/mod.rs"]
mod node;
#[path = "conformance/report.rs"]
mod report;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use node::{Node, NodeSettings};
use report::{Outcome, TestResult, parse, table};

/// The whole suite takes well below a minute; hanging is a failure too.
const TIME_LIMIT_S: &str = "600";
/// Small, because SANITIZE overwrites all of it several times.
const VOLUME_SIZE: &str = "128M";

#[test]
fn every_test_of_libiscsi_passes_or_is_skipped_for_a_known_reason() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let node = Node::start(folder.path(), NodeSettings::default());
    node.create_volume("conformance", VOLUME_SIZE);
    let output = run_suite(&node.url(0, "conformance"), &node.url(1, "conformance"));
    let results = parse(&output).unwrap_or_else(|error| panic!("{error}:\n{output}"));
    println!("{}", table(&results));

    let mut problems = failures(&results);
    problems.extend(skip_differences(&results));
    assert!(problems.is_empty(), "\n{}\n\nthe whole output:\n{output}", problems.join("\n"));
    check_documentation(&table(&results));
}

fn run_suite(first_path: &str, second_path: &str) -> String {
    let output = Command::new("timeout")
        .args(["--kill-after=5", TIME_LIMIT_S, "iscsi-test-cu"])
        .args(["--dataloss", "--allow-sanitize", "-v", "-t", "ALL", first_path, second_path])
        .stdin(Stdio::null())
        .output()
        .expect("timeout (coreutils) can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => text,
        Some(124 | 137) => panic!("iscsi-test-cu hangs:\n{text}"),
        Some(127) => panic!("iscsi-test-cu is missing: Debian package libiscsi-bin; `make test` installs it"),
        _ => panic!(
            "iscsi-test-cu ends with {}:\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

fn failures(results: &[TestResult]) -> Vec<String> {
    let failed = |result: &&TestResult| result.outcome == Outcome::Failed;
    results
        .iter()
        .filter(failed)
        .map(|result| format!("FAILED {}:\n{}", result.name, result.details))
        .collect()
}

/// The checked-in list: `Suite.Test: message` and, indented below, the reason.
fn skip_differences(results: &[TestResult]) -> Vec<String> {
    let listed: BTreeMap<&str, &str> = report::listed_skips(include_str!("conformance/skips.txt"));
    let skipped: BTreeMap<&str, &[String]> =
        results.iter().filter(|result| !result.skips.is_empty()).map(|r| (&*r.name, &*r.skips)).collect();
    let mut problems = vec![];
    for (name, messages) in &skipped {
        if !listed.contains_key(name) {
            problems.push(format!("SKIPPED without a listed reason: {name}: {}", messages.join("; ")));
        }
    }
    let gone = listed.keys().filter(|name| !skipped.contains_key(*name));
    problems.extend(gone.map(|name| format!("LISTED as skipped, but it is not: {name}")));
    problems
}

fn check_documentation(table: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/conformance-results.md");
    let document = format!("{DOCUMENT_HEAD}{table}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &document).expect("the document can be written");
    }
    let current = std::fs::read_to_string(path).unwrap_or_default();
    assert!(current == document, "{path} is out of date: run this test with UPDATE_DOCS=1\n{document}");
}

const DOCUMENT_HEAD: &str = "# Conformance: iscsi-test-cu\n\n\
    What the whole of libiscsi's `iscsi-test-cu` (Debian's libiscsi-bin) with `--dataloss --allow-sanitize` and two\n\
    paths says about `gemeld`. `tests/conformance.rs` runs it and holds this page; reasons of skips are those of\n\
    `tests/conformance/skips.txt`.\n\n";
