//! What `iscsi-test-cu -V` prints, as values. With `-v` it keeps some of its skips to itself.

use std::fmt::Write;

/// One test of the suite.
#[derive(Debug, PartialEq, Eq)]
pub struct TestResult {
    /// `Suite.Test`.
    pub name: String,
    pub outcome: Outcome,
    /// Why parts of it, or all, were skipped.
    pub skips: Vec<String>,
    /// All that it printed.
    pub details: String,
}

impl TestResult {
    /// Whether all of it ran and passed.
    fn is_passed(&self) -> bool {
        self.outcome == Outcome::Passed && !self.is_skipped()
    }

    /// Whether it was skipped, in part or whole, and did not fail.
    fn is_skipped(&self) -> bool {
        self.outcome == Outcome::Passed && !self.skips.is_empty()
    }

    fn suite(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
}

/// Reads the output of a run and checks it against the summary at its end.
pub fn parse(output: &str) -> Result<Vec<TestResult>, String> {
    let mut results: Vec<TestResult> = vec![];
    let (mut suite, mut open) = (String::new(), None::<(String, Vec<&str>)>);
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("Suite: ") {
            close(open.take(), &mut results)?;
            suite = name.trim().to_owned();
        } else if let Some(rest) = line.strip_prefix("  Test: ") {
            close(open.take(), &mut results)?;
            let (name, rest) = rest.split_once(" ...").ok_or_else(|| format!("no test: {line}"))?;
            open = Some((format!("{suite}.{name}"), vec![rest]));
        } else if line.starts_with("Run Summary:") {
            close(open.take(), &mut results)?;
        } else if let Some((_, lines)) = &mut open {
            lines.push(line);
        }
    }
    let summary = output.lines().find_map(|line| line.trim().strip_prefix("tests "));
    let counts: Vec<usize> =
        summary.unwrap_or_default().split_whitespace().filter_map(|count| count.parse().ok()).collect();
    let failed = results.iter().filter(|result| result.outcome == Outcome::Failed).count();
    match counts[..] {
        [_, ran, _, failures, _] if ran == results.len() && failures == failed => Ok(results),
        [..] => Err(format!("the summary {counts:?} does not fit {} tests, {failed} failed", results.len())),
    }
}

fn close(open: Option<(String, Vec<&str>)>, results: &mut Vec<TestResult>) -> Result<(), String> {
    let Some((name, lines)) = open else { return Ok(()) };
    // The result stands at the start of a line; what the tool says of its own cleaning up may follow it.
    let says = |word: &str| lines.iter().any(|line| line.starts_with(word));
    let outcome = match (says("FAILED"), says("passed")) {
        (true, _) => Outcome::Failed,
        (false, true) => Outcome::Passed,
        (false, false) => return Err(format!("{name} has no result: {}", lines.join("\n"))),
    };
    let mut skips: Vec<String> = lines
        .iter()
        .filter_map(|line| line.split_once("[SKIPPED] "))
        .map(|(_, why)| why.trim().to_owned())
        .collect();
    skips.dedup();
    results.push(TestResult { name, outcome, skips, details: lines.join("\n") });
    Ok(())
}

/// A skip that is expected.
#[derive(Debug, PartialEq, Eq)]
struct ListedSkip<'a> {
    /// `Suite.Test`.
    name: &'a str,
    /// The runs that skip it; all of them when empty.
    kinds: Vec<&'a str>,
    reason: &'a str,
}

impl ListedSkip<'_> {
    fn is_for(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }
}

/// The skips in a list: `Suite.Test`, after it the kinds of volume where that is not all, then the reason in an
/// indented line.
fn listed(list: &str) -> Vec<ListedSkip<'_>> {
    let mut listed: Vec<ListedSkip<'_>> = vec![];
    let mut head = None;
    for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let Some(reason) = line.strip_prefix("    ") else {
            assert!(head.replace(line).is_none(), "no reason before: {line}");
            continue;
        };
        let mut words = head.take().unwrap_or_else(|| panic!("a reason of nothing: {reason}")).split(' ');
        let skip = ListedSkip { name: words.next().unwrap_or_default(), kinds: words.collect(), reason };
        let is_again = |other: &ListedSkip<'_>| {
            let overlap = other.kinds.is_empty() || skip.kinds.iter().any(|kind| other.is_for(kind));
            other.name == skip.name && (overlap || skip.kinds.is_empty())
        };
        assert!(!listed.iter().any(is_again), "listed twice: {}", skip.name);
        listed.push(skip);
    }
    assert!(head.is_none(), "no reason for {head:?}");
    listed
}

/// Whether a skip is listed for a kind of volume.
#[allow(dead_code)] // by the test that runs over a pair
pub fn is_listed(name: &str, kind: &str) -> bool {
    listed(SKIPS).iter().any(|skip| skip.name == name && skip.is_for(kind))
}

/// One run of the suite.
pub struct Run {
    /// The kind of volume that it ran on, as the list of skips has it.
    pub kind: &'static str,
    /// What it ran on, in words.
    pub title: &'static str,
    pub results: Vec<TestResult>,
}

impl Run {
    fn result(&self, name: &str) -> Option<&TestResult> {
        self.results.iter().find(|result| result.name == name)
    }

    fn count(&self, is_counted: impl Fn(&TestResult) -> bool) -> usize {
        self.results.iter().filter(|result| is_counted(result)).count()
    }
}

/// The results of all runs. A run may leave tests out; none has tests that the first does not have.
pub struct Results {
    pub runs: Vec<Run>,
}

impl Results {
    /// What is wrong, by the list of skips that is checked in.
    pub fn problems(&self) -> Vec<String> {
        self.problems_by(&listed(SKIPS))
    }

    /// Failures; in each run the skips that the list does not have for it, and listed ones that do not happen.
    fn problems_by(&self, skips: &[ListedSkip<'_>]) -> Vec<String> {
        let mut problems = vec![];
        for run in &self.runs {
            for result in &run.results {
                let (name, kind) = (&result.name, run.kind);
                let is_listed = skips.iter().any(|skip| skip.name == name && skip.is_for(kind));
                if result.outcome == Outcome::Failed {
                    problems.push(format!("failed on {kind}: {name}:\n{}", result.details));
                }
                if result.is_skipped() && !is_listed {
                    problems
                        .push(format!("skipped on {kind}, which is not listed: {name}: {:?}", result.skips));
                }
                if self.runs[0].result(name).is_none() {
                    problems.push(format!("run on {kind}, but not in the first run: {name}"));
                }
            }
            for skip in skips.iter().filter(|skip| skip.is_for(run.kind)) {
                if !run.result(skip.name).is_some_and(TestResult::is_skipped) {
                    problems.push(format!("listed as skipped on {}, but it is not: {}", run.kind, skip.name));
                }
            }
        }
        for skip in skips {
            for kind in skip.kinds.iter().filter(|kind| !self.runs.iter().any(|run| run.kind == **kind)) {
                problems.push(format!("no run is on {kind}: {}", skip.name));
            }
        }
        problems
    }

    /// What came of each run, then in Markdown a table of the suites, and one of the skips with their reasons.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for run in &self.runs {
            let _ = writeln!(
                text,
                "- {}, {}: {} tests run; {} passed, {} skipped in part or whole, {} failed",
                run.kind,
                run.title,
                run.results.len(),
                run.count(TestResult::is_passed),
                run.count(TestResult::is_skipped),
                run.count(|result| result.outcome == Outcome::Failed),
            );
        }
        let heads: Vec<_> =
            self.runs.iter().map(|run| format!("{0}: passed | {0}: skipped", run.kind)).collect();
        let _ = writeln!(text, "\n| suite | {} |", heads.join(" | "));
        let _ = writeln!(text, "|---|{}", "---:|".repeat(2 * heads.len()));
        let mut suites: Vec<&str> = self.runs[0].results.iter().map(TestResult::suite).collect();
        suites.dedup();
        for suite in suites {
            let counts = self.runs.iter().map(|run| {
                let in_suite = |result: &TestResult| result.suite() == suite;
                let passed = run.count(|result| in_suite(result) && result.is_passed());
                let skipped = run.count(|result| in_suite(result) && result.is_skipped());
                format!("{passed} | {skipped}")
            });
            let _ = writeln!(text, "| {suite} | {} |", counts.collect::<Vec<_>>().join(" | "));
        }
        text += "\n| skipped | on | why |\n|---|---|---|\n";
        let mut skips = listed(SKIPS);
        skips.sort_by_key(|skip| skip.name);
        for ListedSkip { name, kinds, reason } in &skips {
            let kinds = if kinds.is_empty() { "all".to_owned() } else { kinds.join(", ") };
            let _ = writeln!(text, "| {name} | {kinds} | {reason} |");
        }
        text
    }
}

const SKIPS: &str = include_str!("skips.txt");

#[test]
fn the_output_of_a_run_is_understood() {
    let output = "Suite: Inquiry\n  Test: Standard ...passed\n  Test: EVPD ...    [FAILED] page 0x83\nFAILED\n    \
        1. test.c:38\nSuite: Unmap\n  Test: VPD ...    [SKIPPED] UNMAP is not there.\npassed    [FAILED] at the end\n\n\
        Run Summary:    Type  Total    Ran Passed Failed Inactive\n              suites     2     2    n/a 0 0\n               \
        tests     3     3      2      1        0\n";
    let results = parse(output).expect("well formed");
    let outcomes: Vec<_> = results.iter().map(|result| (&*result.name, result.outcome)).collect();
    let expected = [
        ("Inquiry.Standard", Outcome::Passed),
        ("Inquiry.EVPD", Outcome::Failed),
        ("Unmap.VPD", Outcome::Passed),
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(results[2].skips, ["UNMAP is not there."]);
    assert!(parse(&output.replace("2      1 ", "3      0 ")).is_err(), "a summary that differs");
    assert!(parse(&output.replace("FAILED\n", "\n")).is_err(), "a test without a result");
    assert!(parse("Suite: Inquiry\n  Test: Standard ...passed\n").is_err(), "cut off");
}

#[test]
fn skips_are_listed_with_the_runs_and_reasons() {
    let skips = listed("# why\n\nA.B\n    no media\nC.D 512n 4096\n    no tape\nC.D 512e\n    no time\n");
    let expected = [
        ListedSkip { name: "A.B", kinds: vec![], reason: "no media" },
        ListedSkip { name: "C.D", kinds: vec!["512n", "4096"], reason: "no tape" },
        ListedSkip { name: "C.D", kinds: vec!["512e"], reason: "no time" },
    ];
    assert_eq!(skips, expected);
}

#[test]
fn skips_and_the_list_must_agree_in_each_run() {
    let test = |name: &str, skips: &[&str], outcome| TestResult {
        name: name.to_owned(),
        outcome,
        skips: skips.iter().map(|skip| (*skip).to_owned()).collect(),
        details: String::new(),
    };
    let passed = Outcome::Passed;
    let first = vec![test("A.B", &["no media"], passed), test("C.D", &[], passed), test("E.F", &[], passed)];
    let second = vec![test("A.B", &["no media"], passed), test("C.D", &["one block"], passed)];
    let results = Results {
        runs: vec![
            Run { kind: "512n", title: "", results: first },
            Run { kind: "4096", title: "", results: second },
        ],
    };
    let problems = |list| results.problems_by(&listed(list));
    assert!(problems("A.B\n    no media\nC.D 4096\n    one block\n").is_empty());
    // Skipped in one run only; listed for too many; not run there; no such test; no such run.
    for (list, problem) in [
        ("A.B\n    no media\n", "skipped on 4096, which is not listed: C.D"),
        ("A.B 4096\n    no media\nC.D 4096\n    one block\n", "skipped on 512n, which is not listed: A.B"),
        ("A.B\n    no media\nC.D\n    one block\n", "listed as skipped on 512n, but it is not: C.D"),
        (
            "A.B\n    no media\nC.D 4096\n    one block\nE.F 4096\n    left out\n",
            "listed as skipped on 4096, but it is not: E.F",
        ),
        (
            "A.B\n    no media\nC.D 4096\n    one block\nG.H 512n\n    gone\n",
            "listed as skipped on 512n, but it is not: G.H",
        ),
        ("A.B\n    no media\nC.D 4096\n    one block\nC.D 520\n    fat\n", "no run is on 520: C.D"),
    ] {
        let problems = problems(list);
        assert!(problems.len() == 1 && problems[0].starts_with(problem), "{problems:?}");
    }
    // What is skipped in part and fails has failed.
    let failed = test("A.B", &["no media"], Outcome::Failed);
    assert!(!failed.is_passed() && !failed.is_skipped());
    assert!(!results.runs[0].results[0].is_passed() && results.runs[0].results[1].is_passed());
}
