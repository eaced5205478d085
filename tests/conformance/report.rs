//! What `iscsi-test-cu -v` prints, as values.

use std::collections::BTreeMap;
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

/// The names in a list, each with its reason: `Suite.Test`, then the reason in an indented line.
fn listed(list: &str) -> BTreeMap<&str, &str> {
    let mut listed = BTreeMap::new();
    let mut name = "";
    for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix("    ") {
            None => name = line.trim(),
            Some(reason) => assert!(listed.insert(name, reason).is_none(), "listed twice: {name}"),
        }
    }
    listed
}

/// One run of the suite.
pub struct Run {
    /// What it ran on, for the head of a column.
    pub title: &'static str,
    pub results: Vec<TestResult>,
}

/// The results of all runs. A run may leave tests out; none has tests that the first does not have.
pub struct Results {
    pub runs: Vec<Run>,
}

impl Results {
    /// Failures, skips without a listed reason, and listed skips that no longer happen.
    pub fn problems(&self) -> Vec<String> {
        let skips = listed(SKIPS);
        let mut problems = vec![];
        for (name, results) in self.tests() {
            for result in results.iter().flatten().filter(|result| result.outcome == Outcome::Failed) {
                problems.push(format!("failed: {name}:\n{}", result.details));
            }
            match (is_skipped(&results), skips.contains_key(name)) {
                (true, false) => {
                    let why = results.iter().flatten().flat_map(|result| &*result.skips).next();
                    problems.push(format!("skipped without a listed reason: {name}: {why:?}"));
                }
                (false, true) => problems.push(format!("listed as skipped, but it is not: {name}")),
                _ => {}
            }
        }
        let known: Vec<_> = self.tests().iter().map(|(name, _)| *name).collect();
        for result in self.runs.iter().flat_map(|run| &run.results) {
            if !known.contains(&&*result.name) {
                problems.push(format!("not in the first run: {}", result.name));
            }
        }
        problems
    }

    /// A table in Markdown: suites with their counts, then the skips with their reasons.
    pub fn table(&self) -> String {
        let mut suites: Vec<(&str, Counts)> = vec![];
        for (name, results) in self.tests() {
            let suite = name.split('.').next().unwrap_or_default();
            if suites.last().is_none_or(|(last, _)| *last != suite) {
                suites.push((suite, Counts { passed: vec![0; self.runs.len()], skipped: 0 }));
            }
            let counts = &mut suites.last_mut().expect("one was just made sure of").1;
            for (passed, result) in counts.passed.iter_mut().zip(&results) {
                *passed += usize::from(result.is_some_and(|result| result.outcome == Outcome::Passed));
            }
            counts.skipped += usize::from(is_skipped(&results));
        }
        let mut text = String::new();
        for run in &self.runs {
            let failed = run.results.iter().filter(|result| result.outcome == Outcome::Failed).count();
            let _ = writeln!(text, "- {}: {} tests run, {failed} failed", run.title, run.results.len());
        }
        let skipped: usize = suites.iter().map(|(_, counts)| counts.skipped).sum();
        let _ = writeln!(text, "- skipped in part or whole in every run: {skipped}\n");
        let titles: Vec<_> = self.runs.iter().map(|run| format!("passed: {}", run.title)).collect();
        let _ = writeln!(text, "| suite | {} | skipped |", titles.join(" | "));
        let _ = writeln!(text, "|---|{}---:|", "---:|".repeat(titles.len()));
        for (suite, Counts { passed, skipped }) in &suites {
            let passed: Vec<_> = passed.iter().map(usize::to_string).collect();
            let _ = writeln!(text, "| {suite} | {} | {skipped} |", passed.join(" | "));
        }
        text += "\n| skipped | why |\n|---|---|\n";
        text.extend(listed(SKIPS).iter().map(|(name, why)| format!("| {name} | {why} |\n")));
        text
    }

    /// Each test of the first run with what came of it in every run.
    fn tests(&self) -> Vec<(&str, Vec<Option<&TestResult>>)> {
        let in_run = |run: &'_ Run, name: &str| run.results.iter().position(|result| result.name == name);
        let tests = self.runs[0].results.iter().map(|first| {
            let of_run = |run| in_run(run, &first.name).map(|index| &run.results[index]);
            (&*first.name, self.runs.iter().map(of_run).collect())
        });
        tests.collect()
    }
}

struct Counts {
    passed: Vec<usize>,
    skipped: usize,
}

/// Whether a test was skipped, in part or whole, wherever it was run.
fn is_skipped(results: &[Option<&TestResult>]) -> bool {
    results.iter().flatten().all(|result| !result.skips.is_empty())
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
fn skips_are_listed_with_reasons() {
    let skips = listed("# why\n\nA.B\n    no media\nC.D\n    no tape\n");
    assert_eq!(skips.into_iter().collect::<Vec<_>>(), [("A.B", "no media"), ("C.D", "no tape")]);
}
