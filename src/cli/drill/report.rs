//! What a drill has shown, as Markdown.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

/// What hosts can bear, by what gives up first.
const LIMITS: [(&str, u64); 3] = [
    ("XenServer / XCP-ng HA", 30),
    ("open-iscsi, without queueing", 120),
    ("VMware ESX (all paths down)", 140),
];

/// What was shown.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The cluster.
    pub cluster: String,
    /// When, in RFC 3339.
    pub time: String,
    /// What was done, in this order.
    pub acts: Vec<Act>,
    /// Commands that the host executed.
    pub operations: u64,
    /// Reads that gave something else than what was written.
    pub wrong: u64,
}

/// One thing that was done.
#[derive(Debug, Serialize)]
pub struct Act {
    /// What.
    pub what: String,
    /// The longest that a command of the host took meanwhile.
    pub stall_ms: u64,
    /// After how long everything was as before.
    pub healed_ms: u64,
}

impl Report {
    /// Whether hosts would have noticed nothing worse than a pause.
    pub fn is_passed(&self) -> bool {
        self.wrong == 0 && self.worst() < Duration::from_secs(LIMITS[0].1)
    }

    /// As Markdown.
    pub fn text(&self) -> String {
        let mut text = format!(
            "# Drill of cluster {}, {}\n\n{}\n\n| what was done | longest pause of the host | whole again after |\n|---|---|---|\n",
            self.cluster,
            self.time,
            self.verdict(),
        );
        // Writing to a string does not fail.
        for act in &self.acts {
            let (stall, healed) = (seconds(act.stall_ms), seconds(act.healed_ms));
            let _ = writeln!(text, "| {} | {stall} s | {healed} s |", act.what);
        }
        let mut stalls: Vec<u64> = self.acts.iter().map(|act| act.stall_ms).collect();
        stalls.sort_unstable();
        let at =
            |percent: usize| stalls.get((stalls.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        let at = |percent| seconds(at(percent).unwrap_or(0));
        let _ = write!(
            text,
            "\nPauses: half of them at most {} s, nine of ten at most {} s, all at most {} s.\n\n| who | gives up after | \
             left of that |\n|---|---|---|\n",
            at(50),
            at(90),
            at(100)
        );
        for (who, limit) in LIMITS {
            let left =
                (limit * 1000).saturating_sub(u64::try_from(self.worst().as_millis()).unwrap_or(u64::MAX));
            let _ = writeln!(text, "| {who} | {limit} s | {} s |", seconds(left));
        }
        let _ = write!(
            text,
            "\nThe host executed {} commands on a volume of its own, by a path to each node, and read {} wrong blocks.\n",
            self.operations, self.wrong
        );
        text
    }

    fn verdict(&self) -> &'static str {
        match (self.wrong, self.is_passed()) {
            (0, true) => "**Passed.** A host would have noticed a pause, and nothing else.",
            (0, false) => "**Not passed.** A pause was longer than a host bears.",
            _ => {
                "**Not passed. Wrong data was read:** keep this report, make a support bundle of both nodes, and ask for help."
            }
        }
    }

    fn worst(&self) -> Duration {
        Duration::from_millis(self.acts.iter().map(|act| act.stall_ms).max().unwrap_or(0))
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02}", ms / 1000, ms % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_how_it_went() {
        let act = |what: &str, stall_ms| Act { what: what.to_owned(), stall_ms, healed_ms: 4000 };
        let mut report = Report {
            cluster: "main".to_owned(),
            time: "2026-11-22T12:00:00Z".to_owned(),
            acts: vec![act("moved to b", 30), act("node a killed", 2510)],
            operations: 1000,
            wrong: 0,
        };
        let text = report.text();
        for part in
            ["**Passed.**", "| node a killed | 2.51 s | 4.00 s |", "all at most 2.51 s", "| 30 s | 27.49 s |"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        report.acts.push(act("node b killed", 31_000));
        assert!(!report.is_passed() && report.text().contains("longer than a host bears"));
        report.wrong = 1;
        assert!(report.text().contains("Wrong data was read"));
    }
}
