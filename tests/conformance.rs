//! Conformance: the whole of libiscsi's `iscsi-test-cu` against a real `gemeld`, once over two paths on a volume with
//! 512-byte sectors and once over one path on a volume with 4 KiB sectors.
//!
//! Fails on every failed test, unless `tests/conformance/tool_faults.txt` names it, with the reason, and it passes in
//! the other run; on a test that both runs skip, in part or whole, unless `tests/conformance/skips.txt` names it with
//! its reason; on entries of these lists that no longer happen; and when `docs/conformance-results.md` does not
//! show what happened (`UPDATE_DOCS=1` writes it).

#[path = "support/node/mod.rs"]
mod node;
#[path = "conformance/report.rs"]
mod report;

use std::process::Stdio;

use node::{Node, NodeSettings};
use report::{Results, parse};

/// SANITIZE waits whole minutes in the tool; hanging is a failure too.
const TIME_LIMIT_S: &str = "600";

#[test]
fn every_test_of_libiscsi_passes_or_is_excused_for_a_known_reason() {
    let runs = std::thread::scope(|scope| {
        let two_paths = scope.spawn(|| run("512", true));
        let four_kilobytes = scope.spawn(|| run("4096", false));
        [two_paths, four_kilobytes].map(|run| run.join().expect("a run without a panic of its own"))
    });
    let results = Results { runs };
    println!("{}", results.table());
    let problems = results.problems();
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
    check_documentation(&results.table());
}

fn run(sector: &str, with_two_paths: bool) -> Vec<report::TestResult> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    // The tool sleeps for a minute without answering pings; a session dropped meanwhile would make it wait for ever.
    let iscsi = "keepalive_interval_s = 300".to_owned();
    let node = Node::start(folder.path(), NodeSettings { iscsi, ..NodeSettings::default() });
    // Small, because SANITIZE overwrites all of it several times.
    node.administer(&["volume", "create", "conformance", "--size", "128M", "--sector", sector]);
    node.administer(&["access", "allow", "conformance", "*"]);
    let mut paths = vec![node.url(0, "conformance")];
    paths.extend(with_two_paths.then(|| node.url(1, "conformance")));
    let output = run_suite(&paths);
    parse(&output).unwrap_or_else(|error| panic!("{error}:\n{output}"))
}

fn run_suite(paths: &[String]) -> String {
    let output = node::bounded("iscsi-test-cu", TIME_LIMIT_S)
        .args(["--dataloss", "--allow-sanitize", "-v", "-t", "ALL"])
        .args(paths)
        .stdin(Stdio::null())
        .output()
        .expect("setpriv (util-linux) can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        // 1 says that tests failed; which ones the output says.
        Some(0 | 1) => text,
        Some(124 | 137) => panic!("iscsi-test-cu hangs:\n{text}"),
        Some(127) => panic!("iscsi-test-cu is missing: Debian package libiscsi-bin; `make test` installs it"),
        _ => panic!(
            "iscsi-test-cu ends with {}:\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ),
    }
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
    What the whole of libiscsi's `iscsi-test-cu` (Debian's libiscsi-bin) with `--dataloss --allow-sanitize` says about\n\
    `gemeld`: once over two paths with 512-byte sectors, once over one path with 4 KiB sectors. `tests/conformance.rs`\n\
    runs it and holds this page; the reasons are those of the lists in `tests/conformance/`.\n\n";
