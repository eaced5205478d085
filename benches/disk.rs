//! What the disk engines cost and reach on the file system under `GEMEL_BENCH_DIR` (default: the
//! temporary directory): `cargo bench --bench disk`.
//!
//! Random 4 KiB reads and writes at depths 1 and 32 by engine, and what a shared flush saves over a
//! flush for each of four files. Not criterion: each figure is a run of fixed time, and the CPU time
//! matters as much as the wall clock.
#![allow(clippy::unwrap_used)] // a measurement has nothing to do after a failure but to stop

use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use gemel::base::buffer::{AlignedBuf, BufferPool};
use gemel::disk::file::{Allocation, create};
use gemel::disk::{Disk, Engine, EnginePreference, OpenOptions, open};
use gemel::sim::random::Random;

const SIZE: u64 = 512 << 20;
const DISKS: usize = 4;
const TIME: Duration = Duration::from_millis(700);
const ROUNDS: usize = 3;
const FLUSH_ROUNDS: usize = 4000;

fn main() {
    // `cargo test --benches` runs this too, and wants no measurement.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let parent = std::env::var_os("GEMEL_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(parent).unwrap();
    let paths: Vec<_> = (0..DISKS).map(|index| directory.path().join(format!("disk{index}"))).collect();
    paths.iter().for_each(|path| create(path, SIZE, Allocation::Preallocated).unwrap());
    for preference in [EnginePreference::Uring, EnginePreference::Threads] {
        match Engine::start(preference) {
            Ok(engine) => measure(&engine, &paths),
            Err(error) => println!("skipped: {error}"),
        }
    }
}

fn measure(engine: &Engine, paths: &[PathBuf]) {
    let open = |path: &PathBuf| open(engine, Path::new(path), &OpenOptions::default()).unwrap();
    let disks: Vec<_> = paths.iter().map(open).collect();
    println!(
        "{engine}: flush groups {:?}",
        disks.iter().map(|disk| disk.properties().flush_group).collect::<Vec<_>>()
    );
    let pool = BufferPool::new(1 << 20);
    let data = AlignedBuf::copy_of(&[0xa5; 4096]).freeze();
    for depth in [1, 32] {
        let disk = &disks[0];
        report(engine, &format!("4 KiB random read, depth {depth}"), depth, || {
            let read = disk.read(random_offset(), pool.get(4096));
            async move { drop(read.await.unwrap()) }
        });
        report(engine, &format!("4 KiB random write, depth {depth}"), depth, || {
            let write = disk.write(random_offset(), vec![data.clone()]);
            async move { write.await.unwrap() }
        });
    }
    compare_flushes(engine, &disks, &data);
}

/// The same round with no, one and four flushes in turn, so that the machine's other work falls on
/// all three alike; prints the medians.
fn compare_flushes(engine: &Engine, disks: &[Rc<dyn Disk>], data: &Bytes) {
    let kinds = [0, 1, DISKS];
    let mut times = [const { Vec::new() }; 3];
    let mut cpu = [0.0; 3];
    for _ in 0..FLUSH_ROUNDS {
        for (kind, &flushes) in kinds.iter().enumerate() {
            let (start, cpu_start) = (Instant::now(), cpu_seconds());
            engine.block_on(round(disks, data, flushes));
            times[kind].push(start.elapsed());
            cpu[kind] += (cpu_seconds() - cpu_start) * 1e6 / FLUSH_ROUNDS as f64;
        }
    }
    for (kind, flushes) in kinds.iter().enumerate() {
        times[kind].sort();
        let median = times[kind][FLUSH_ROUNDS / 2].as_secs_f64() * 1e6;
        println!(
            "  4 KiB to each of four files in parallel, then {flushes} flushes: {median:>6.0} us, {:>5.0} us CPU",
            cpu[kind]
        );
    }
}

/// Writes to all disks at once, then flushes the first `flushes` of them at once.
fn round(disks: &[Rc<dyn Disk>], data: &Bytes, flushes: usize) -> impl Future<Output = ()> + use<> {
    let (disks, data) = (disks.to_vec(), data.clone());
    async move {
        try_join_all(disks.iter().map(|disk| disk.write(random_offset(), vec![data.clone()]))).await.unwrap();
        for outcome in join_all(disks[..flushes].iter().map(|disk| disk.flush())).await {
            outcome.unwrap();
        }
    }
}

/// Runs `operation` again and again, `depth` at a time, and prints the median of the rounds.
fn report<F: Future<Output = ()>>(engine: &Engine, title: &str, depth: usize, operation: impl Fn() -> F) {
    let mut rounds: Vec<_> = (0..ROUNDS).map(|_| run(engine, depth, &operation)).collect();
    rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (rate, cpu) = rounds[ROUNDS / 2];
    println!(
        "  {title:<54} {rate:>9.0}/s {:>8.1} us each at depth {depth}, {cpu:>5.1} us CPU",
        depth as f64 * 1e6 / rate
    );
}

fn run<F: Future<Output = ()>>(engine: &Engine, depth: usize, operation: impl Fn() -> F) -> (f64, f64) {
    let (start, cpu_start) = (Instant::now(), cpu_seconds());
    let mut count = 0u32;
    engine.block_on(async {
        let mut running: FuturesUnordered<_> = (0..depth).map(|_| operation()).collect();
        while running.next().await.is_some() {
            count += 1;
            if start.elapsed() < TIME {
                running.push(operation());
            }
        }
    });
    let count = f64::from(count);
    (count / start.elapsed().as_secs_f64(), (cpu_seconds() - cpu_start) * 1e6 / count)
}

fn random_offset() -> u64 {
    thread_local!(static RANDOM: Random = Random::new(1));
    RANDOM.with(|random| random.below(SIZE / 4096)) * 4096
}

/// User and system time of this process, the kernel's workers for it included.
fn cpu_seconds() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the call fills one rusage, for which there is room.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) }, 0);
    // SAFETY: the call succeeded and has filled it.
    let usage = unsafe { usage.assume_init() };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
