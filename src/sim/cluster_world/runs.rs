//! Random lives of the cluster: faults, then healing, then the check that nothing was lost and all is equal.
//!
//! `SEEDS=n` says how many, `SEED=n` runs one, `FIRST=n` says with which to begin, `HISTORY=1` prints what happened in
//! a seed that fails.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{Either, select};

use super::hosts::{HOSTS, Host, Hosts, USED};
use super::{Cluster, NAMES, VOLUMES, WITNESS, micros, name, network, planned, snapshots, upgrade};
use crate::base::runtime::{Instant, Runtime};
use crate::base::units::{BlockAddress, VolumeId};
use crate::disk::{DiskErrorKind, Operation};
use crate::sim::fault::{Effect, Fault, Frequency};
use crate::store::interface::BlockStore;

/// No run takes longer.
const LONGEST: Duration = Duration::from_secs(30);

/// What a run met, by name, and its trace.
type Met = BTreeMap<&'static str, u64>;

pub(super) fn run(seed: u64) -> Result<(Met, u64), String> {
    run_with(seed, false, live)
}

/// Runs `lives` on a new cluster.
pub(super) fn run_with<F: Future<Output = Result<(), String>>>(
    seed: u64,
    is_orderly: bool,
    lives: impl FnOnce(Rc<Cluster>) -> F,
) -> Result<(Met, u64), String> {
    let cluster = Cluster::new(seed, is_orderly);
    let (executor, clock) = (cluster.executor.clone(), cluster.clock.clone());
    let lives = Box::pin(lives(cluster.clone()));
    let outcome = catch_unwind(AssertUnwindSafe(|| executor.block_on(select(lives, clock.sleep(LONGEST)))));
    let outcome = outcome.map_err(|panic| format!("assertion: {}", message(&*panic))).and_then(|ended| {
        match ended.map_err(|stuck| stuck.to_string())? {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err("something waits for ever".to_owned()),
        }
    });
    let outcome = cluster.check().and(outcome);
    if outcome.is_err() {
        cluster.history.borrow().iter().for_each(|line| println!("{line}"));
    }
    let met = cluster.met.borrow().clone();
    if catch_unwind(AssertUnwindSafe(|| cluster.end())).is_err() && outcome.is_ok() {
        return Err(format!("seed {seed}: a panic at the end"));
    }
    outcome.map_err(|problem| format!("seed {seed}: {problem}"))?;
    Ok((met, executor.trace_hash()))
}

pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

async fn live(cluster: Rc<Cluster>) -> Result<(), String> {
    cluster.found().await?;
    let hosts = Hosts::start(&cluster);
    hosts.beside(|is_ending, working| snapshots::keep(&cluster, is_ending, working));
    let random = &cluster.random;
    // One disk of one node at most, in a third of the runs; all disks of one node in some others.
    let failing = (random.below(3) == 0).then(|| random.index(2));
    for _ in 0..12 + random.below(10) {
        cluster.clock.sleep(micros(random.below(40_000))).await;
        cluster.check()?;
        damage(&cluster, failing).await?;
        repair_some(&cluster)?;
    }
    cluster.tell(|| "heal".to_owned());
    heal(&cluster).await?;
    cluster.tell(|| "stop".to_owned());
    cluster.until("hosts end", 4000, || hosts.stop()).await?;
    for index in 0..HOSTS {
        for volume in VOLUMES {
            look_at_all(&cluster, &Host::new(&cluster, HOSTS + index, volume)).await?;
        }
    }
    for volume in VOLUMES {
        cluster.look_into_all(volume).await?;
        until_level(&cluster, volume).await?;
        if cluster.setting.rolls_back {
            cluster.until_restored(volume).await?;
            look_at_all(&cluster, &Host::new(&cluster, 2 * HOSTS, volume)).await?;
            until_level(&cluster, volume).await?;
        }
        compare(&cluster, volume).await?;
        cluster.check_clones(volume).await?;
    }
    cluster.oracle.check(&cluster.snapshots)?;
    cluster.check_reservations()
}

/// Something goes wrong.
async fn damage(cluster: &Rc<Cluster>, failing: Option<usize>) -> Result<(), String> {
    let random = &cluster.random;
    let (node, member) = (random.index(2), random.index(3));
    upgrade::ask_for_what_is_new(cluster);
    match random.below(29) {
        0..2 => cluster.set_link(0, 1, false),
        2 => cluster.set_passes(node, 1 - node, false),
        3..5 => cluster.crash(node),
        5 => cluster.kill(node),
        6 => {
            // A node does not hear the others, or is not heard.
            let sends = random.coin();
            cluster.set_isolated(member, sends, !sends);
        }
        7 => cluster.set_isolated(member, false, false),
        8 => {
            // A node is cut off from everything, for longer than a lease and a take-over take.
            cluster.set_isolated(node, false, false);
            cluster.clock.sleep(micros(40_000 + random.below(60_000))).await;
            cluster.check()?;
        }
        9 => {
            cluster.crash(0);
            cluster.crash(1);
        }
        10 if random.below(3) == 0 => (0..3).for_each(|member| cluster.crash(member)),
        10 => cluster.set_link(node, WITNESS, false),
        11 => cluster.crash(WITNESS),
        12..14 => cluster.set_paused(member, true),
        14..17 => hand_over(cluster),
        17 => stop_cleanly(cluster, node).await,
        18 if failing == Some(node) => fail_disk(cluster, node),
        19 if failing.is_none() && random.below(2) == 0 => {
            cluster.tell(|| format!("the disks of {} are gone", NAMES[node]));
            cluster.meet("pools lost for a while");
            cluster.rooms[node].set_disks(false);
        }
        21 => {
            // All disks of a node are slow at once.
            cluster.meet("disks that stand still");
            let millis = [2, 8, 30, 100][random.index(4)];
            cluster.tell(|| format!("the disks of {} stand still", NAMES[node]));
            cluster.rooms[node].stall(Instant(cluster.clock.now().0 + millis * 1_000_000));
            if random.coin() {
                hand_over(cluster);
            }
        }
        22..24 => {
            // A node that falls over again and again, perhaps cut off from its peer.
            if random.coin() {
                cluster.set_link(0, 1, false);
            }
            for _ in 0..2 + random.below(2) {
                cluster.clock.sleep(micros(random.below(4000))).await;
                if random.coin() {
                    cluster.crash(node)
                } else {
                    cluster.kill(node)
                }
                cluster.clock.sleep(micros(random.below(2000))).await;
                cluster.start(node)?;
                cluster.clock.sleep(micros(random.below(40_000))).await;
            }
            if random.coin() {
                // And the other one goes on.
                cluster.crash(node);
                cluster.set_link(0, 1, true);
            }
        }
        24..26 => planned::switch_off_at_any_moment(cluster).await,
        26..28 => {
            cluster.meet("nodes in maintenance");
            planned::set_maintenance(cluster, node, random.below(3) > 0);
        }
        20 => {
            // A link that flaps.
            for _ in 0..3 + random.below(4) {
                cluster.set_link(0, 1, false);
                cluster.clock.sleep(micros(random.below(15_000))).await;
                cluster.set_link(0, 1, true);
                cluster.clock.sleep(micros(random.below(15_000))).await;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Something gets well again.
fn repair_some(cluster: &Rc<Cluster>) -> Result<(), String> {
    let random = &cluster.random;
    let often = || random.below(3) > 0;
    for (one, other) in [(0, 1), (0, WITNESS), (1, WITNESS)] {
        if often() {
            cluster.set_link(one, other, true);
        }
    }
    for member in 0..3 {
        if often() {
            cluster.set_paused(member, false);
        }
        if often() {
            if member != WITNESS && often() {
                bring_disks_back(cluster, member);
            }
            upgrade::upgrade_at_times(cluster, member);
            cluster.start(member)?;
        }
    }
    Ok(())
}

/// All disks of a node are there again, and its process starts anew.
fn bring_disks_back(cluster: &Rc<Cluster>, node: usize) {
    if !cluster.rooms[node].has_disks() {
        cluster.kill(node);
        cluster.rooms[node].set_disks(true);
    }
}

pub(super) fn hand_over(cluster: &Rc<Cluster>) {
    let volume = VOLUMES[cluster.random.index(2)];
    for data in (0..2).filter_map(|node| cluster.life(node)?.data()) {
        if data.node.hand_over(volume, "it was asked for") {
            cluster.meet("moves begun");
        }
    }
}

/// A node is stopped as a service is: it hands over what it serves, gives its lease back, and ends.
pub(super) async fn stop_cleanly(cluster: &Rc<Cluster>, node: usize) {
    let Some(life) = cluster.life(node) else { return };
    let Some(data) = life.data().filter(|_| !life.world.is_paused()) else { return };
    cluster.tell(|| format!("{} stops", NAMES[node]));
    cluster.meet("clean stops");
    let leaving: Vec<VolumeId> =
        VOLUMES.into_iter().filter(|volume| data.node.hand_over(*volume, "it stops")).collect();
    let is_primary =
        |volume: &VolumeId| cluster.record(*volume).is_some_and(|record| record.primary == name(node));
    let _ = cluster.until("handed over", 10, || !leaving.iter().any(is_primary)).await;
    data.is_leaving.set(true);
    if cluster.life(node).is_some_and(|present| present.number == life.number && !life.world.is_paused()) {
        data.tell_health();
    }
    let is_left = |volume: &VolumeId| {
        cluster.record(*volume).is_none_or(|record| record.primary == name(node) || record.in_sync.len() == 1)
    };
    let _ = cluster.until("left", 10, || VOLUMES.iter().all(is_left)).await;
    cluster.kill(node);
}

/// One disk goes wrong, in one of many ways; parity covers it.
fn fail_disk(cluster: &Rc<Cluster>, node: usize) {
    let random = &cluster.random;
    let medium = &cluster.rooms[node].media[0];
    let failure = Effect::Fail(DiskErrorKind::Io(libc::EIO));
    let area = 0..medium.size_bytes();
    cluster.tell(|| format!("a disk of {} goes wrong", NAMES[node]));
    match random.below(7) {
        0 => {
            cluster.meet("disks that take no writes");
            medium.inject(Fault::always(Operation::Write, failure));
        }
        1 => {
            cluster.meet("flushes that fail once");
            medium.inject(Fault::once(Operation::Flush, failure));
        }
        2 => {
            cluster.meet("disks that cannot be read");
            let frequency = Frequency::Chance { per_million: 300_000 };
            medium.inject(Fault { frequency, ..Fault::always(Operation::Read, failure) });
        }
        3 => {
            cluster.meet("stalls");
            medium.inject(Fault::once(Operation::Write, Effect::Stall(micros(300_000))));
        }
        4 => {
            cluster.meet("phantom writes");
            medium.inject(Fault::once(Operation::Write, Effect::Phantom).within(1 << 20..area.end));
        }
        5 => {
            cluster.meet("rot");
            let start = (1 << 20) + random.below(area.end - (4 << 20));
            medium.rot(start / 4096 * 4096..start / 4096 * 4096 + (1 << 20));
        }
        _ => {
            cluster.meet("latent errors");
            let start = (1 << 20) + random.below(area.end - (4 << 20));
            medium.make_unreadable(start / 4096 * 4096..start / 4096 * 4096 + (1 << 20));
        }
    }
}

/// Faults are over: everything is served and in sync again, without anybody's help.
pub(super) async fn heal(cluster: &Rc<Cluster>) -> Result<(), String> {
    cluster.mend_network();
    for member in 0..3 {
        cluster.set_paused(member, false);
        if member != WITNESS {
            bring_disks_back(cluster, member);
        }
        upgrade::upgrade_at_last(cluster, member);
        cluster.start(member)?;
    }
    for node in 0..2 {
        let state = cluster.newest_state.borrow().clone();
        if state.nodes().any(|(known, record)| *known == name(node) && record.is_in_maintenance) {
            planned::set_maintenance(cluster, node, false);
        }
    }
    let is_well = |volume: &VolumeId| cluster.in_sync(*volume) == 2 && cluster.server(*volume).is_some();
    cluster
        .until("everything heals", 3000, || VOLUMES.iter().all(is_well) && network::is_whole(cluster))
        .await?;
    upgrade::until_upgraded(cluster).await
}

/// Reads everything through whoever serves, as a host that was not there before.
pub(super) async fn look_at_all(cluster: &Rc<Cluster>, host: &Rc<Host>) -> Result<(), String> {
    for (first, count) in USED {
        for block in first..first + count {
            let mut tries = 0;
            loop {
                let server = cluster.server(host.volume);
                if let Some(node) = server
                    && host.read(node, (block * 8, 8)).await.is_some()
                {
                    break;
                }
                cluster.clock.sleep(micros(1000)).await;
                cluster.check()?;
                tries += 1;
                if tries > 500 {
                    return Err(format!("nobody serves volume {}", host.volume.0));
                }
            }
        }
    }
    Ok(())
}

pub(super) async fn until_level(cluster: &Rc<Cluster>, volume: VolumeId) -> Result<(), String> {
    let is_level = || {
        let mut nodes = (0..2).filter_map(|node| cluster.life(node)?.data());
        cluster.in_sync(volume) == 2 && nodes.any(|data| data.node.is_level(volume))
    };
    cluster.until("both replicas are level", 2000, is_level).await
}

/// I24.
pub(super) async fn compare(cluster: &Rc<Cluster>, volume: VolumeId) -> Result<(), String> {
    for (first, count) in USED {
        let mut contents = Vec::new();
        for node in 0..2 {
            let data = cluster.life(node).and_then(|life| life.data()).ok_or("a node is not there")?;
            let pieces = data.store.read(volume, BlockAddress(first), count).await;
            let runs = data.store.allocation(volume, BlockAddress(first), count, 1000).await;
            contents.push((
                pieces.map_err(|error| error.to_string())?.concat(),
                runs.map_err(|error| error.to_string())?,
            ));
        }
        if contents[0] != contents[1] {
            return Err(format!("the replicas of volume {} differ behind block {first} (I24)", volume.0));
        }
    }
    cluster.compare_snapshots(volume).await
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// What a full run has to meet.
const SOMETIMES: [&str; 46] = [
    "members upgraded",
    "clones read",
    "writes to clones",
    "rollbacks",
    "snapshots taken",
    "snapshots dropped",
    "snapshots read",
    "snapshots in doubt that are there",
    "snapshots in doubt that are not there",
    "writes",
    "reads",
    "unmaps",
    "exchanges",
    "miscompares",
    "reservation changes",
    "reservation conflicts",
    "preemptions",
    "hosts fenced",
    "sessions lost",
    "sessions left",
    "commands aborted",
    "power failures",
    "kills",
    "clean stops",
    "pauses",
    "cuts",
    "broken connections",
    "late mirror messages",
    "late proposals",
    "proposals of unknown fate",
    "take-overs",
    "shrinks",
    "expansions",
    "moves",
    "restarts",
    "stops of volumes",
    "starts from a certificate",
    "stops of the cluster",
    "nodes in maintenance",
    "reservations seen before they were answered",
    "disks that take no writes",
    "flushes that fail once",
    "pools lost for a while",
    "stalls",
    "disks that stand still",
    "streams fenced",
];

#[test]
fn random_lives_of_the_cluster_lose_nothing() {
    let (first, count) = match number("SEED") {
        Some(seed) => (seed, 1),
        None => (number("FIRST").unwrap_or(1), number("SEEDS").unwrap_or(CI_SEEDS)),
    };
    let (next, all, failed) = (AtomicU64::new(first), Mutex::new(Met::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            if let Some((_, why)) = OPEN.iter().find(|(open, _)| *open == seed && count > 1) {
                println!("seed {seed}: skipped, it fails and is not understood yet: {why}");
                continue;
            }
            match run(seed) {
                Ok((met, _)) => {
                    let mut all = all.lock().unwrap();
                    met.into_iter().for_each(|(what, times)| *all.entry(what).or_insert(0) += times);
                }
                Err(problem) => {
                    println!("{problem}\n  replay: make sim WORLD=cluster SEED={seed}");
                    failed.lock().unwrap().push(seed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let (all, failed) = (all.into_inner().unwrap(), failed.into_inner().unwrap());
    for (what, times) in &all {
        println!("{times:>10} {what}");
    }
    let never: Vec<_> = SOMETIMES.iter().filter(|what| !all.contains_key(*what)).collect();
    let skipped = OPEN.iter().filter(|(seed, _)| count > 1 && (first..first + count).contains(seed)).count();
    println!("cluster: {skipped} of these seeds skipped");
    println!("cluster: {count} seeds, {} failed", failed.len());
    assert!(failed.is_empty(), "failing seeds: {failed:?}");
    assert!(count < 200 || never.is_empty(), "never met: {never:?}");
}

/// Seeds that show a fault which is not mended yet: run alone (`SEED=n`) they fail. None may stay here for long.
const OPEN: [(u64, &str); 0] = [];

/// Seeds of a run without `SEEDS`: what continuous integration has time for.
const CI_SEEDS: u64 = 2000;

#[test]
fn a_life_of_the_cluster_is_the_same_twice() {
    for seed in 1..4 {
        assert_eq!(run(seed).unwrap().1, run(seed).unwrap().1);
    }
}
