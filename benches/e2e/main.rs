//! End to end over iSCSI on loopback: the standard cases against gemeld, a mirrored and a local volume of a pair,
//! Debian's tgtd and the raw disk, in one run on one disk.
//!
//! Rounds alternate between the targets and the medians are printed, one line a case and target. Targets
//! run on CPU 0, the load on CPU 1. Everything lies in one temporary folder (`BENCH_DIR` says where), in
//! files that are written through beforehand, so that the file system allocates nothing while it is
//! measured.
//!
//! Arguments are parts of names: `random-write tgtd` runs the cases with such a name against the
//! targets with such a name. `SECONDS` (2) and `ROUNDS` (3) set the length.

mod case;
#[path = "../../tests/support/cluster/mod.rs"]
mod cluster;
mod gemeld;
mod load;
#[path = "../../tests/support/node/mod.rs"]
mod node;
mod pair;
#[path = "../../tests/support/ports/mod.rs"]
mod ports;
mod process;
mod raw;
mod report;
#[path = "../../tests/support/initiator/mod.rs"]
mod session;
mod stream;
mod tgtd;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use case::{CASES, Case};
use load::Measurement;
use report::Report;

/// Bytes that each case works on, but for the pair's.
const VOLUME_BYTES: u64 = 2 << 30;
/// CPU of the targets, and that of the load.
const TARGET_CPU: usize = 0;
const LOAD_CPU: usize = 1;

/// Something that a case can be run against.
trait Target {
    fn name(&self) -> &str;
    fn measure(&mut self, case: &Case, duration: Duration) -> Result<Measurement, Box<dyn Error>>;
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let duration = Duration::from_secs(setting("SECONDS", 2));
    let rounds = setting("ROUNDS", 3);
    process::pin_to(LOAD_CPU)?;

    let base = std::env::var("BENCH_DIR").unwrap_or_else(|_| "target".to_owned());
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(std::fs::canonicalize(base)?)?;
    let mut targets = start_targets(folder.path(), &arguments)?;
    let cases: Vec<&Case> = CASES
        .iter()
        .filter(|case| selects(&arguments, CASES.iter().map(|case| case.name), case.name))
        .collect();

    let mut report = Report::default();
    for case in cases {
        for _ in 0..rounds {
            for target in &mut targets {
                let measurement = target.measure(case, duration)?;
                report.add(case, target.name(), measurement);
            }
        }
        report.print(case);
    }
    report.print_goals();
    if report.has_mirror() {
        report.print_mirror(stream::round_trip(folder.path())?);
    }
    Ok(())
}

fn start_targets(folder: &Path, arguments: &[String]) -> Result<Vec<Box<dyn Target>>, Box<dyn Error>> {
    let names = [
        "gemeld",
        gemeld::PROTOCOL_ONLY,
        pair::LOCAL,
        pair::MIRRORED,
        "tgtd-cache",
        "tgtd-direct",
        "tgtd-sync",
        "raw",
    ];
    let wanted = |name: &str| selects(arguments, names.into_iter(), name);
    let mut targets: Vec<Box<dyn Target>> = Vec::new();
    for name in ["gemeld", gemeld::PROTOCOL_ONLY] {
        if wanted(name) {
            targets.push(Box::new(gemeld::start(folder, name)?));
        }
    }
    targets.append(&mut pair::start(folder, wanted)?);
    for mode in tgtd::MODES {
        if wanted(mode.name) {
            targets.push(Box::new(tgtd::start(folder, mode)?));
        }
    }
    if wanted("raw") {
        targets.push(Box::new(raw::start(folder)?));
    }
    Ok(targets)
}

/// Whether `name` is meant: some argument is its name or, when it is nobody's, a part of it; or no argument means any.
fn selects<'a>(arguments: &[String], names: impl Iterator<Item = &'a str> + Clone, name: &str) -> bool {
    let exact = |argument: &str| names.clone().any(|name| name == argument);
    let means =
        |argument: &str, name: &str| name == argument || (!exact(argument) && name.contains(argument));
    let meant = |name: &str| arguments.iter().any(|argument| means(argument, name));
    meant(name) || !names.clone().any(meant)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}
