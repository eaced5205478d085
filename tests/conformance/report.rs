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

/// The results of the two runs of the suite, which have the same tests in the same order.
pub struct Results {
    pub runs: [Vec<TestResult>; 2],
}

impl Results {
    /// What nothing excuses, and excuses that are not needed.
    pub fn problems(&self) -> Vec<String> {
        let names: Vec<_> = self.runs[0].iter().map(|result| &result.name).collect();
        if !self.runs[1].iter().map(|result| &result.name).eq(names) {
            return vec!["the runs have different tests".to_owned()];
        }
        let (skips, faults) = (listed(SKIPS), listed(TOOL_FAULTS));
        let mut problems = vec![];
        for results in self.pairs() {
            let name = &*results[0].name;
            let failed = results.iter().filter(|result| result.outcome == Outcome::Failed).count();
            if failed == 2 || (failed == 1 && !faults.contains_key(name)) {
                problems.extend(
                    results.iter().map(|result| format!("{:?} {name}:\n{}", result.outcome, result.details)),
                );
            } else if failed == 0 && faults.contains_key(name) {
                problems.push(format!("listed as a fault of the tool, but it passes: {name}"));
            }
            let is_skipped = results.iter().all(|result| !result.skips.is_empty());
            match (is_skipped, skips.contains_key(name)) {
                (true, false) => {
                    problems.push(format!(
                        "skipped without a listed reason: {name}: {}",
                        results[0].skips.join("; ")
                    ));
                }
                (false, true) => problems.push(format!("listed as skipped, but it is not: {name}")),
                _ => {}
            }
        }
        problems
    }

    /// A table in Markdown: suites with their counts, then the excuses with their reasons.
    pub fn table(&self) -> String {
        let mut suites: Vec<(&str, [usize; 4])> = vec![];
        for results in self.pairs() {
            let suite = results[0].name.split('.').next().unwrap_or_default();
            if suites.last().is_none_or(|(last, _)| *last != suite) {
                suites.push((suite, [0; 4]));
            }
            let counts = &mut suites.last_mut().expect("one was just made sure of").1;
            counts[0] += 1;
            for (count, result) in counts[1..].iter_mut().zip(results) {
                *count += usize::from(result.outcome == Outcome::Failed);
            }
            counts[3] += usize::from(results.iter().all(|result| !result.skips.is_empty()));
        }
        let sum = |index: usize| suites.iter().map(|(_, counts)| counts[index]).sum::<usize>();
        let mut text = format!(
            "{} tests; {} failed with 512-byte sectors and two paths, {} with 4 KiB sectors and one path; {} skipped in \
             part or whole in both.\n\n",
            sum(0),
            sum(1),
            sum(2),
            sum(3)
        );
        text += "| suite | tests | failed (512, two paths) | failed (4096, one path) | skipped |\n";
        text += "|---|---:|---:|---:|---:|\n";
        for (suite, [tests, failed, failed_4096, skipped]) in &suites {
            let _ = writeln!(text, "| {suite} | {tests} | {failed} | {failed_4096} | {skipped} |");
        }
        text += "\n| fails in one run, for the tool's own reason | why |\n|---|---|\n";
        text.extend(listed(TOOL_FAULTS).iter().map(|(name, why)| format!("| {name} | {why} |\n")));
        text += "\n| skipped | why |\n|---|---|\n";
        text.extend(listed(SKIPS).iter().map(|(name, why)| format!("| {name} | {why} |\n")));
        text
    }

    fn pairs(&self) -> impl Iterator<Item = [&TestResult; 2]> {
        self.runs[0].iter().zip(&self.runs[1]).map(|(first, second)| [first, second])
    }
}

const SKIPS: &str = include_str!("skips.txt");
const TOOL_FAULTS: &str = include_str!("tool_faults.txt");

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
