//! Scenario 30 on real processes: members whose releases differ, under hosts that have two paths and check every sector.
//!
//! The members are told to say that they speak other versions of the protocols than they do. What is shown is who lets whom in,
//! what everybody is told, and that nothing is lost; that a newer message is refused by who does not know it is shown beside
//! each format. With the programs of an older release in the folder `PREVIOUS` (`make upgrade`) an upgrade begins with those.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::time::{Duration, Instant};

use cluster::{Cluster, ClusterSettings, NODES, Release, other};
use host::{Host, Load};

const VOLUME: &str = "data";
/// XenServer's high availability gives up after 30 s; we never come near.
const LONGEST_STALL: Duration = Duration::from_secs(8);
/// Who must not serve is watched for so long: longer than a lease, an election and the patience of everybody.
const WATCHED: Duration = Duration::from_secs(6);

/// A release that still speaks what the present one does, and one that does not.
fn newer() -> Release {
    Release::Claiming(vec!["control=1..4", "mirror=2..4", "forward=1..4"])
}

fn foreign() -> Release {
    Release::Claiming(vec!["control=8..9", "mirror=8..9"])
}

struct Site {
    cluster: Cluster,
    target: String,
    load: Load,
}

impl Site {
    fn start() -> Self {
        Self::start_with(ClusterSettings::default())
    }

    fn start_with(settings: ClusterSettings) -> Self {
        let cluster = Cluster::start(settings);
        let target = cluster.create_volume(VOLUME, "64M", &["--primary", "a"]);
        cluster.wait_in_sync("a", VOLUME);
        let load = Load::start((0..2).map(|number| host(&cluster, &target, number, 200)).collect(), || {});
        load.settle();
        Self { cluster, target, load }
    }

    /// Stops a member in order, and starts it as another release.
    fn install(&self, member: &str, release: Release) {
        self.cluster.stop(member);
        self.cluster.install(member, release);
        self.cluster.spawn(member);
    }

    fn wait_until_whole(&self) {
        self.cluster.wait_until("all three are there, and both nodes in sync", || {
            NODES.iter().all(|node| {
                self.cluster.volume(node, VOLUME, "state") == "in-sync"
                    && self.cluster.try_ask(node, &["status"]).is_some_and(|status| status["health"] == "ok")
            })
        });
    }

    fn assert_goes_on(&self, what: &str) {
        self.load.wait_for_more();
        let stall = self.load.take_longest();
        println!("{what}: {stall:?} without an answer");
        assert!(stall < LONGEST_STALL, "{what}: a host waited for {stall:?}");
    }

    /// What a node says has to be looked at.
    fn attention(&self, node: &str) -> String {
        self.cluster.try_ask(node, &["status"]).unwrap_or_default()["attention"].to_string()
    }

    /// Every block, from both replicas.
    fn end(self) {
        self.wait_until_whole();
        let mut hosts = self.load.finish();
        for _ in 0..2 {
            hosts.iter_mut().for_each(Host::check_all);
            let serving = self.cluster.volume("a", VOLUME, "primary");
            self.cluster.move_volume(VOLUME, other(&serving));
        }
    }
}

fn host(cluster: &Cluster, target: &str, number: u64, blocks: u64) -> Host {
    let first = number * 4096;
    let portals = NODES.map(|node| cluster.portal(node));
    Host::new(&format!("host-{number}"), target, portals, first..first + blocks)
}

#[test]
fn scenario_30_a_rolling_upgrade_meets_a_crash_and_is_rolled_back() {
    let site = Site::start();
    for member in ["b", "w"] {
        site.install(member, newer());
        site.wait_until_whole();
        site.assert_goes_on(&format!("{member} is upgraded"));
    }
    // The node of the old release is killed in the middle of it, and comes back as it was.
    assert_eq!(site.cluster.volume("b", VOLUME, "primary"), "a");
    site.cluster.kill("a");
    site.cluster.wait_until("b serves", || site.cluster.volume("b", VOLUME, "primary") == "b");
    site.assert_goes_on("the node of the old release is killed");
    site.cluster.spawn("a");
    site.wait_until_whole();
    // The upgrade is given up: b, which serves, first.
    for member in ["b", "w"] {
        site.install(member, Release::Present);
        site.wait_until_whole();
        site.assert_goes_on(&format!("{member} has the old release again"));
    }
    site.end();
}

#[test]
fn scenario_30_a_node_that_does_not_fit_is_left_out_and_loses_nothing() {
    let site = Site::start();
    site.install("b", foreign());
    site.assert_goes_on("b does not fit");
    site.cluster.wait_until("a is alone", || site.cluster.volume("a", VOLUME, "state") == "solo");
    // Both sides say why.
    for node in NODES {
        site.cluster.wait_until("it is an event", || {
            site.cluster.has_event(node, "member-refused", "versions 8 to 9")
        });
        site.cluster.wait_until("status tells", || {
            let attention = site.attention(node);
            attention.contains("and this node refuse each other") && attention.contains("versions 8 to 9")
        });
    }
    // It has no vote, and what it has is old: it never serves.
    site.load.settle();
    let Site { cluster, target, load } = site;
    let hosts = load.finish();
    cluster.kill("a");
    let (mut watching, began) = (host(&cluster, &target, 3, 1), Instant::now());
    while began.elapsed() < WATCHED {
        assert!(!watching.is_answered(), "b serves what it does not have");
    }
    cluster.spawn("a");
    let load = Load::start(hosts, || {});
    load.settle();
    let site = Site { cluster, target, load };
    // Brought to a release that fits it is let in, and gets what it has missed.
    site.install("b", newer());
    site.wait_until_whole();
    site.assert_goes_on("b fits again");
    for node in NODES {
        assert!(!site.attention(node).contains("refuse"), "{}", site.attention(node));
    }
    site.end();
}

/// It takes part in decisions, so it is not missed; but its replica is.
#[test]
fn scenario_30_a_node_whose_mirrors_do_not_fit_is_said_to_be_behind_and_why() {
    let site = Site::start();
    site.install("b", Release::Claiming(vec!["mirror=8..9"]));
    site.assert_goes_on("b takes no mirrors");
    site.cluster.wait_until("a is alone", || site.cluster.volume("a", VOLUME, "state") == "solo");
    for node in NODES {
        site.cluster.wait_until("it is an event", || {
            site.cluster.has_event(node, "member-refused", "versions 8 to 9")
        });
    }
    site.cluster.wait_until("status tells", || {
        let attention = site.attention("a");
        attention.contains("refuse each other's mirrors") && attention.contains("versions 8 to 9")
    });
    // The witness does not help a replica that is behind.
    site.load.settle();
    let Site { cluster, target, load } = site;
    let hosts = load.finish();
    cluster.kill("a");
    let (mut watching, began) = (host(&cluster, &target, 3, 1), Instant::now());
    while began.elapsed() < WATCHED {
        assert!(!watching.is_answered(), "b serves what it does not have");
    }
    let status = cluster.try_ask("b", &["status"]).unwrap();
    assert!(status["attention"].to_string().contains("bring node a back"), "{status}");
    cluster.spawn("a");
    let load = Load::start(hosts, || {});
    load.settle();
    let site = Site { cluster, target, load };
    site.install("b", Release::Present);
    site.end();
}

/// Every member is brought from an older release to the present one, and one of them back and forth. Until the last has it,
/// nothing that the older release can't read comes into being; then all go over to it by themselves, and who comes with
/// the older one is refused.
fn upgrade_from(older: &Release) {
    let release = older.clone();
    let site = Site::start_with(ClusterSettings { format: 8, release, ..ClusterSettings::default() });
    let set = |node: &str| site.cluster.gemel(node, &["cluster", "set", "--space-error", "95"]);
    let steps = [("w", true), ("b", true), ("b", false), ("b", true), ("a", true)];
    for (number, (member, is_present)) in steps.into_iter().enumerate() {
        if site.cluster.volume("a", VOLUME, "primary") == member {
            site.cluster.move_volume(VOLUME, other(member));
        }
        site.install(member, if is_present { Release::Present } else { older.clone() });
        site.wait_until_whole();
        site.assert_goes_on(&format!(
            "{member} has {} release",
            if is_present { "the present" } else { "the older" }
        ));
        if (member, is_present) == ("b", true) {
            let refused = set("b");
            let text = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(
                !refused.status.success() && text.contains("bring all members to the new release"),
                "{text}"
            );
        }
        let is_raised = NODES.map(|node| site.cluster.has_event(node, "format-raised", "format 9"));
        assert!(number + 1 == steps.len() || is_raised == [false; 2], "too early");
    }
    for node in NODES {
        site.cluster
            .wait_until("all have gone over", || site.cluster.has_event(node, "format-raised", "format 9"));
    }
    assert!(set("b").status.success());
    // The witness alone goes back: it says what to do, and takes no part.
    site.install("w", older.clone());
    assert!(site.cluster.wait_ended("w").contains("use the newer program"));
    site.assert_goes_on("the witness has the older release again");
    site.cluster.install("w", Release::Present);
    site.cluster.spawn("w");
    site.end();
}

#[test]
fn scenario_30_an_upgrade_goes_over_to_the_newer_format_when_the_last_member_has_it() {
    upgrade_from(&Release::Claiming(vec!["control=1..1"]));
}

#[test]
fn scenario_30_an_upgrade_from_the_programs_of_an_older_release() {
    let Some(folder) = std::env::var_os("PREVIOUS") else {
        println!("skipped: PREVIOUS names no folder with the programs of an older release");
        return;
    };
    upgrade_from(&Release::Programs(folder.into()));
}
