//! Random runs of the pair: faults, then healing, then the check that nothing was lost and both are equal.
//!
//! `SEEDS=n` says how many, `SEED=n` with which to begin, `HISTORY=1` prints what happened in a seed that fails.

use std::panic::catch_unwind;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{Either, select};

use super::clients::{BLOCKS, SIZE_BYTES, read_all, used};
use super::cluster::{Cluster, Totals, VOLUMES, micros};
use crate::base::runtime::Runtime;
use crate::base::units::{BlockAddress, VolumeId};
use crate::sim::executor::Executor;
use crate::sim::random::Random;
use crate::store::interface::BlockStore;

/// No run takes longer.
const LONGEST: Duration = Duration::from_secs(30);

pub(super) fn run(seed: u64) -> Result<(Totals, u64), String> {
    let executor = Executor::new(seed);
    let random = Random::new(seed ^ 0x9a12);
    let cluster = Cluster::new(&executor, &random, SIZE_BYTES);
    let clock = cluster.clock.clone();
    let lives = Box::pin(live(cluster.clone(), &executor));
    let outcome = executor.block_on(select(lives, clock.sleep(LONGEST)));
    let outcome = outcome.map_err(|stuck| stuck.to_string()).and_then(|outcome| match outcome {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Err("something waits for ever".to_owned()),
    });
    if outcome.is_err() && std::env::var("HISTORY").is_ok() {
        cluster.print_history();
    }
    outcome.map_err(|problem| format!("seed {seed}: {problem}"))?;
    let result = (cluster.totals(), executor.trace_hash());
    // Lives and the cluster hold each other.
    cluster.sites.iter().for_each(|site| site.crash());
    cluster.clock.crash();
    Ok(result)
}

async fn live(cluster: Rc<Cluster>, executor: &Executor) -> Result<(), String> {
    for node in 0..2 {
        cluster.start(executor, node, true).await?;
    }
    let clients = cluster.clients();
    let clock = cluster.clock.clone();
    // One disk of one node at most, in a third of the runs.
    let failing = (cluster.random.below(3) == 0).then(|| cluster.random.index(2));
    for _ in 0..12 + cluster.random.below(10) {
        clock.sleep(micros(cluster.random.below(40_000))).await;
        cluster.check()?;
        let node = cluster.random.index(2);
        match cluster.random.below(16) {
            12..14 => cluster.set_paused(node, true),
            14 => {
                let reaches = cluster.random.coin();
                cluster.set_control_ways(node, reaches, !reaches);
            }
            15 if failing == Some(node) && cluster.totals().failed_disks == 0 => {
                cluster.note(|totals| totals.failed_disks += 1);
                cluster.sites[node].fail_disk();
            }
            0..2 => cluster.set_link(false),
            2..4 => cluster.crash(node).await,
            4..6 => cluster.set_control(node, false),
            6 => {
                // A node is cut off from everything, for longer than a lease and a take-over take.
                cluster.set_link(false);
                cluster.set_control(node, false);
                clock.sleep(micros(40_000 + cluster.random.below(60_000))).await;
                cluster.check()?;
            }
            7 => {
                cluster.crash(0).await;
                cluster.crash(1).await;
            }
            8..10 => hand_over(&cluster),
            _ => {}
        }
        if cluster.random.below(3) > 0 {
            cluster.set_link(true);
        }
        for node in 0..2 {
            if cluster.random.below(3) > 0 {
                cluster.set_control(node, true);
            }
            if cluster.random.below(3) > 0 {
                cluster.set_paused(node, false);
            }
            if cluster.random.below(3) > 0 {
                cluster.start(executor, node, false).await?;
            }
        }
    }
    cluster.tell(|| "heal".to_owned());
    heal(&cluster, executor).await?;
    cluster.tell(|| "stop".to_owned());
    let mut turns = 0;
    while !clients.stop() {
        clock.sleep(micros(2000)).await;
        turns += 1;
        if turns > 2000 {
            return Err("clients do not end".to_owned());
        }
    }
    cluster.check()?;
    for volume in VOLUMES {
        cluster.tell(|| format!("check {volume:?}"));
        let mut turns = 0;
        while !read_all(&cluster, volume).await {
            clock.sleep(micros(2000)).await;
            turns += 1;
            if turns > 1000 {
                return Err(format!("nobody serves {volume:?}"));
            }
        }
        cluster.check()?;
        cluster.tell(|| "level".to_owned());
        until_level(&cluster, volume).await?;
        cluster.tell(|| "compare".to_owned());
        compare(&cluster, volume).await?;
    }
    Ok(())
}

fn hand_over(cluster: &Rc<Cluster>) {
    let volume = VOLUMES[cluster.random.index(2)];
    for life in cluster.sites.iter().filter_map(|site| site.life()) {
        if life.node.hand_over(volume, "it was asked for") {
            cluster.note(|totals| totals.hand_overs += 1);
        }
    }
}

/// Faults are over: everything is served and in sync again, without anybody's help.
pub(super) async fn heal(cluster: &Rc<Cluster>, executor: &Executor) -> Result<(), String> {
    cluster.set_link(true);
    for node in 0..2 {
        cluster.set_control(node, true);
        cluster.set_paused(node, false);
        cluster.start(executor, node, false).await?;
    }
    for _ in 0..1000 {
        cluster.clock.sleep(micros(3000)).await;
        cluster.check()?;
        let is_well = |volume: &VolumeId| {
            cluster.record(*volume).in_sync.len() == 2
                && cluster
                    .sites
                    .iter()
                    .filter_map(|site| site.life())
                    .any(|life| life.attached(*volume).is_some())
        };
        if VOLUMES.iter().all(is_well) {
            return Ok(());
        }
    }
    let show = |volume: &VolumeId| {
        let record = cluster.record(*volume);
        format!("epoch {} of {:?}: {} in {:?}", record.epoch, record.began_by, record.primary, record.in_sync)
    };
    Err(format!("does not heal: {:?}", VOLUMES.each_ref().map(show)))
}

pub(super) async fn until_level(cluster: &Rc<Cluster>, volume: VolumeId) -> Result<(), String> {
    for _ in 0..1000 {
        cluster.clock.sleep(micros(2000)).await;
        let mut lives = cluster.sites.iter().filter_map(|site| site.life());
        if cluster.record(volume).in_sync.len() == 2 && lives.any(|life| life.node.is_level(volume)) {
            return Ok(());
        }
    }
    Err(format!("{volume:?} does not get level"))
}

/// I24.
pub(super) async fn compare(cluster: &Rc<Cluster>, volume: VolumeId) -> Result<(), String> {
    let lives: Vec<_> = cluster.sites.iter().filter_map(|site| site.life()).collect();
    for first in used() {
        let mut contents = Vec::new();
        for life in &lives {
            let pieces = life.store.read(volume, BlockAddress(first), BLOCKS).await;
            let runs = life.store.allocation(volume, BlockAddress(first), BLOCKS, 1000).await;
            contents.push((
                pieces.map_err(|error| error.to_string())?.concat(),
                runs.map_err(|error| error.to_string())?,
            ));
        }
        if contents[0] != contents[1] {
            return Err(format!("the replicas of {volume:?} differ behind block {first}"));
        }
    }
    Ok(())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_lives_of_the_pair_lose_nothing() {
    let (first, count) = (number("SEED", 0), number("SEEDS", 120));
    let (next, all, failed) = (AtomicU64::new(first), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            match catch_unwind(|| run(seed)) {
                Ok(Ok((totals, _))) => all.lock().unwrap().push(totals),
                Ok(Err(problem)) => failed.lock().unwrap().push(problem),
                Err(_) => failed.lock().unwrap().push(format!("seed {seed}: a panic")),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let (all, failed) = (all.into_inner().unwrap(), failed.into_inner().unwrap());
    let sum = |what: fn(&Totals) -> u64| all.iter().map(what).sum::<u64>();
    let sums = [
        ("writes", sum(|t| t.writes)),
        ("unmaps", sum(|t| t.unmaps)),
        ("reads", sum(|t| t.reads)),
        ("observations", sum(|t| t.observations)),
        ("crashes", sum(|t| t.crashes)),
        ("cuts", sum(|t| t.cuts)),
        ("isolations", sum(|t| t.isolations)),
        ("pauses", sum(|t| t.pauses)),
        ("failed disks", sum(|t| t.failed_disks)),
        ("epochs", sum(|t| t.epochs)),
        ("take-overs", sum(|t| t.take_overs)),
        ("shrinks", sum(|t| t.shrinks)),
        ("expansions", sum(|t| t.expansions)),
        ("moves", sum(|t| t.moves)),
        ("late commits", sum(|t| t.late_commits)),
        ("operations away from home", sum(|t| t.served_by_second)),
    ];
    println!("pair: {} seeds, {} failed; {sums:?}", all.len() + failed.len(), failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(count < 100 || sums.iter().all(|(_, count)| *count > 0), "something was never met: {sums:?}");
}

#[test]
fn a_life_of_the_pair_is_the_same_twice() {
    for seed in 0..2 {
        assert_eq!(run(seed).unwrap().1, run(seed).unwrap().1);
    }
}
