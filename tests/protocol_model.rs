//! The mirror and quorum protocol, checked in every state that it can reach.
//!
//! The model (`protocol_model/`) has two nodes, a witness, two blocks, leases by clocks that drift,
//! crashes, and messages and proposals that are lost, late, doubled and reordered. Its rules are those of
//! docs/protocol.md. Here they hold in scopes that fit a test run, and each broken rule is caught;
//! `make model` runs the large scopes.

#[path = "protocol_model/explorer.rs"]
mod explorer;
#[path = "protocol_model/invariants.rs"]
mod invariants;
#[path = "protocol_model/mutants.rs"]
mod mutants;
#[path = "protocol_model/oracle.rs"]
mod oracle;
#[path = "protocol_model/rules.rs"]
mod rules;
#[path = "protocol_model/state.rs"]
mod state;

use std::time::Instant;

use explorer::{Report, explore};
use mutants::{BEHIND, LOSING, Mutant, SMALL};
use rules::{Action, Protocol, Scope};

#[test]
fn the_rules_hold_with_one_block_and_everything_that_people_do() {
    holds("one block, plans, force", Scope { has_plans: true, forces: 1, ..SMALL }, &["moved", "forced"]);
}

#[test]
fn the_rules_hold_with_two_blocks() {
    let scope = Scope { blocks: 2, ..SMALL };
    holds("two blocks, one write", Scope { writes: 1, ..scope }, &["settled after a restart"]);
    holds("two blocks, no crash", Scope { crashes: 0, ..scope }, &["A has rejoined B"]);
}

#[test]
fn the_rules_hold_with_clocks_that_drift() {
    let scope = Scope { is_clocked: true, writes: 1, ..SMALL };
    holds("clocks", scope, &["B holds a lease"]);
    holds("clocks, plans", Scope { has_plans: true, proposals: 2, crashes: 0, ..scope }, &["moved"]);
}

#[test]
fn the_rules_hold_when_both_rooms_die() {
    let scope = Scope { crashes: 2, epochs: 4, writes: 1, ..SMALL };
    holds("two crashes", scope, &["both rooms down", "settled after a restart"]);
}

#[test]
fn the_rules_hold_when_disks_lose_what_they_confirmed() {
    let met = ["a loss was found out", "yielded", "brought up to date after a loss"];
    holds("losses", Scope { epochs: 4, writes: 1, ..LOSING }, &met);
    holds("losses, two crashes", Scope { crashes: 2, writes: 1, ..LOSING }, &met[..2]);
    holds("losses, two blocks", Scope { blocks: 2, writes: 1, ..LOSING }, &met[..2]);
}

#[test]
fn the_rules_hold_when_a_life_knows_less_than_the_one_before() {
    let met = ["a life begins with an old view"];
    holds("old views", BEHIND, &met);
    holds("old views, plans", Scope { has_plans: true, proposals: 2, writes: 1, ..BEHIND }, &met);
}

#[test]
fn every_broken_rule_is_caught() {
    for (mutant, expected, scope) in mutants::ALL {
        let report = run(&format!("{mutant:?}"), *scope, Some(*mutant), false, MOST_STATES);
        let found = report.violation.map(|violation| violation.invariant);
        assert_eq!(found, Some(*expected), "{mutant:?}");
    }
}

/// `make model`. Some ten minutes, and 4 GiB.
#[test]
#[ignore = "takes ten minutes; make model runs it"]
fn the_rules_hold_in_large_scopes() {
    let large = Scope { epochs: 4, proposals: 2, has_plans: true, forces: 1, ..SMALL };
    let met = ["A has rejoined B", "moved", "forced", "started by the certificate"];
    holds("large: one block", Scope { messages: 3, ..large }, &met);
    holds(
        "large: two crashes",
        Scope { crashes: 2, epochs: 5, has_plans: false, proposals: 1, ..large },
        &["both rooms down"],
    );
    holds(
        "large: two blocks",
        Scope { blocks: 2, proposals: 1, has_plans: false, forces: 0, ..large },
        &["A has rejoined B"],
    );
    holds("large: clocks", Scope { is_clocked: true, epochs: 3, ..large }, &["B holds a lease", "forced"]);
}

/// No rule is superfluous: each broken one makes two servers or wrong data, with the checks of single
/// rules left out.
#[test]
#[ignore = "takes minutes; make model runs it"]
fn every_broken_rule_does_harm() {
    for (mutant, _, scope) in mutants::ALL {
        // Losses have so many states that one more write is too much.
        let writes = if scope.losses > 0 { scope.writes } else { scope.writes.max(2) };
        let wider = Scope { epochs: scope.epochs.max(4), writes, ..*scope };
        let report = run(&format!("harm of {mutant:?}"), wider, Some(*mutant), true, 4_000_000);
        print_trace(&report);
        assert!(report.violation.is_some(), "{mutant:?} does no harm");
    }
}

fn holds(name: &str, scope: Scope, landmarks: &[&str]) {
    let report = run(name, scope, None, false, MOST_STATES);
    print_trace(&report);
    assert!(report.violation.is_none(), "{name}: the protocol has a hole, see the trace above");
    assert!(report.states < MOST_STATES, "{name}: the scope is too large for this machine");
    let met = met(&report);
    for landmark in landmarks {
        assert!(met.contains(landmark), "{name}: never met: {landmark}");
    }
}

fn run(name: &str, scope: Scope, mutant: Option<Mutant>, only_harm: bool, most: usize) -> Report<Action> {
    let begun = Instant::now();
    let report = explore(&Protocol { scope, mutant, only_harm }, most);
    let outcome = match &report.violation {
        Some(violation) => format!("{} broken", violation.invariant),
        None if report.states >= most => "not finished".to_owned(),
        None => "holds".to_owned(),
    };
    println!(
        "{name}: {outcome}, {} states, {} steps, depth {}, {:.1?}; met: {}",
        report.states,
        report.steps,
        report.depth,
        begun.elapsed(),
        met(&report).join(", "),
    );
    report
}

fn met(report: &Report<Action>) -> Vec<&'static str> {
    let is_met = |(bit, _): &(usize, _)| report.landmarks & (1 << bit) != 0;
    invariants::LANDMARKS.iter().enumerate().filter(is_met).map(|(_, (name, _))| *name).collect()
}

fn print_trace(report: &Report<Action>) {
    for (number, action) in report.violation.iter().flat_map(|violation| &violation.trace).enumerate() {
        println!("    {:2} {action:?}", number + 1);
    }
}

/// Where a run gives up: what fits into 16 GiB.
const MOST_STATES: usize = 150_000_000;
