//! Conformance: the whole of libiscsi's `iscsi-test-cu` against a real `gemeld`, over two paths on volumes with
//! 512-byte sectors (with physical blocks of 512 and of 4096 bytes) and over one path on a volume with 4 KiB sectors.
//!
//! Fails on every failed test; on a test that any of the runs skips, in part or whole, unless
//! `tests/conformance/skips.txt` names it for that run, with its reason; on entries of that list that do not happen;
//! and when `docs/conformance-results.md` does not show what happened (`UPDATE_DOCS=1` writes it).
//!
//! Each test of the Sanitize suite gets sessions of its own, as each suite does: over two paths the tool never
//! releases the reservation that Sanitize.Reservations takes, and it would be in the way of Sanitize.Reset.
//! GetLBAStatus.UnmapSingle is run with one logical block in a physical one: with eight it asks for the status at
//! address *i*+1 and expects a descriptor that begins at *i*+8, and SBC-3 (section 5.6, relationships of the
//! descriptors) demands that the first begins at the address that was asked for.

#[path = "support/node/mod.rs"]
mod node;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "conformance/report.rs"]
mod report;

use std::process::Stdio;

use node::{Node, NodeSettings};
use report::{Results, Run, TestResult, parse};

/// SANITIZE waits whole minutes in the tool; hanging is a failure too.
const TIME_LIMIT_S: &str = "600";

/// A volume to run the suite on.
struct Subject {
    /// As the list of skips has it.
    kind: &'static str,
    title: &'static str,
    /// As `gemel volume create --sector` takes it.
    sector: &'static str,
    paths: usize,
    /// Tests that make no sense on it.
    without: &'static [&'static str],
}

/// The first one runs everything.
const SUBJECTS: [Subject; 3] = [
    Subject { kind: "512n", title: "512-byte sectors, two paths", sector: "512n", paths: 2, without: &[] },
    Subject {
        kind: "512e",
        title: "512-byte sectors in physical blocks of 4 KiB, two paths",
        sector: "512",
        paths: 2,
        without: &["GetLBAStatus.UnmapSingle"],
    },
    Subject { kind: "4096", title: "4 KiB sectors, one path", sector: "4096", paths: 1, without: &[] },
];

/// Suites whose tests leave behind what is in the way of the next one.
const TEST_BY_TEST: [&str; 2] = ["Sanitize", "GetLBAStatus"];

#[test]
fn every_test_of_libiscsi_passes() {
    let runs = std::thread::scope(|scope| {
        let runs = SUBJECTS.map(|subject| scope.spawn(|| run(subject)));
        runs.map(|run| run.join().expect("a run without a panic of its own"))
    });
    let results = Results { runs: runs.into() };
    println!("{}", results.table());
    let problems = results.problems();
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
    check_documentation(&results.table());
}

fn run(subject: Subject) -> Run {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    // The tool sleeps for a minute without answering pings; a session dropped meanwhile would make it wait for ever.
    let iscsi = "keepalive_interval_s = 300".to_owned();
    let node = Node::start(folder.path(), NodeSettings { iscsi, ..NodeSettings::default() });
    // Small, because SANITIZE overwrites all of it several times.
    node.administer(&["volume", "create", "conformance", "--size", "32M", "--sector", subject.sector]);
    node.administer(&["access", "allow", "conformance", "*"]);
    let names = folder.path().join("tests");
    std::fs::write(&names, selection(&subject)).expect("a list can be written");
    let paths: Vec<_> = (0..subject.paths).map(|portal| node.url(portal, "conformance")).collect();
    let output = run_suite(names.to_str().expect("temporary folders have names in UTF-8"), &paths);
    let results: Vec<TestResult> = parse(&output).unwrap_or_else(|error| panic!("{error}:\n{output}"));
    Run { kind: subject.kind, title: subject.title, results }
}

/// The tool's suites, one a line, which gives each sessions of its own; some suites test by test.
fn selection(subject: &Subject) -> String {
    let listing = node::bounded("iscsi-test-cu", "10").arg("-l").output().expect("setpriv can be run");
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    let mut selected = String::new();
    for name in listing.lines().filter_map(|line| line.strip_prefix("ALL.")) {
        let wanted = match name.split_once('.') {
            None => !TEST_BY_TEST.contains(&name),
            Some((suite, _)) => TEST_BY_TEST.contains(&suite) && !subject.without.contains(&name),
        };
        if wanted {
            selected += &format!("ALL.{name}\n");
        }
    }
    assert!(
        !selected.is_empty(),
        "iscsi-test-cu is missing: Debian package libiscsi-bin; `make test` installs it"
    );
    selected
}

fn run_suite(tests: &str, paths: &[String]) -> String {
    let output = node::bounded("iscsi-test-cu", TIME_LIMIT_S)
        .args(["--dataloss", "--allow-sanitize", "-V", "-t", tests])
        .args(paths)
        .stdin(Stdio::null())
        .output()
        .expect("setpriv (util-linux) can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        // 1 says that tests failed; which ones the output says.
        Some(0 | 1) => text,
        Some(124 | 137) => panic!("iscsi-test-cu hangs:\n{text}"),
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
    `gemeld`. `tests/conformance.rs` runs it and holds this page; the reasons for skips are those of\n\
    `tests/conformance/skips.txt`. Each test of the Sanitize suite gets sessions of its own, because the tool does not\n\
    release a reservation that it takes on the second path. GetLBAStatus.UnmapSingle is run on volumes with one logical\n\
    block in a physical one: with eight it asks for the status at *i*+1 and expects a descriptor that begins at *i*+8,\n\
    where SBC-3 demands that the first descriptor begins at the address that was asked for.\n\n";
