//! The search for seeded bugs, as every world does it: which are wanted, by what each is found, and a line for each.
//!
//! `MUTANT=Name` takes one mutant, `SEEDS=n` says how many seeds each may take, `FIRST=n` (the store's) from which on. `make
//! mutants` runs all searches.

use std::any::Any;
use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Longest verdict that is printed, in characters.
const VERDICT_LENGTH: usize = 160;

/// What found a mutant.
#[derive(Debug)]
pub(crate) struct Found {
    /// None: a scenario that was made for it.
    seed: Option<u64>,
    verdict: String,
}

impl Found {
    /// The first of `seeds` whose run goes wrong with the mistake (it says so, or panics), and not without it: a seed
    /// that fails by itself proves nothing.
    pub(crate) fn by_seed<E: Debug>(
        mut seeds: RangeInclusive<u64>,
        mistaken: impl Fn(u64) -> Result<(), E>,
        right: impl Fn(u64) -> Result<(), E>,
    ) -> Option<Self> {
        seeds.find_map(|seed| {
            let verdict = problem_of(|| mistaken(seed))?;
            if let Some(problem) = problem_of(|| right(seed)) {
                println!("seed {seed} fails without any mistake: {problem}");
                return None;
            }
            Some(Self { seed: Some(seed), verdict })
        })
    }

    /// Whether `scenario` goes wrong.
    pub(crate) fn by_scenario<E: Debug>(scenario: impl FnOnce() -> Result<(), E>) -> Option<Self> {
        Some(Self { seed: None, verdict: problem_of(scenario)? })
    }

    /// Whether a test fails.
    pub(crate) fn by_test(test: fn()) -> Option<Self> {
        Self::by_scenario(|| {
            test();
            Ok::<(), ()>(())
        })
    }
}

fn problem_of<E: Debug>(run: impl FnOnce() -> Result<(), E>) -> Option<String> {
    let problem = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return None,
        Ok(Err(problem)) => format!("{problem:?}"),
        Err(panic) => format!("assertion: {}", message(panic)),
    };
    Some(problem.replace('\n', " ").chars().take(VERDICT_LENGTH).collect())
}

fn message(panic: Box<dyn Any + Send>) -> String {
    let message = panic.downcast_ref::<String>().cloned();
    message.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// How many seeds each may take, if the environment says so.
pub(crate) fn seeds() -> Option<u64> {
    std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok())
}

/// Before which seed the search does not look, if the environment says so.
pub(crate) fn first() -> u64 {
    std::env::var("FIRST").ok().and_then(|first| first.parse().ok()).unwrap_or(1)
}

/// The one mutant that is wanted, if the environment names one.
fn only() -> Option<String> {
    std::env::var("MUTANT").ok()
}

/// Whether to leave out what takes long: the environment asks for nothing.
pub(crate) fn is_quick() -> bool {
    seeds().is_none() && only().is_none()
}

/// Looks for each of `mutants` of `world` that is wanted, two at a time, prints what found it, and fails when nothing did.
pub(crate) fn all_are_found<M: Copy + Debug + Send + Sync>(
    world: &str,
    mutants: &[M],
    find: impl Fn(M) -> Option<Found> + Sync,
) {
    let only = only();
    let is_wanted = |mutant: &M| {
        only.as_deref().is_none_or(|only| format!("{mutant:?}").rsplit(' ').next() == Some(only))
    };
    let mutants: Vec<M> = mutants.iter().copied().filter(is_wanted).collect();
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    // A mutant's own assertions panic: that is a way of being found, and no news.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let work = || {
        while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
            match find(*mutant) {
                Some(Found { seed: Some(seed), verdict }) => {
                    println!("mutant {world} {mutant:?}: found by seed {seed} ({verdict})");
                }
                Some(Found { seed: None, verdict }) => {
                    println!("mutant {world} {mutant:?}: found by its scenario ({verdict})");
                }
                None => {
                    println!("mutant {world} {mutant:?}: NOT FOUND");
                    missed.lock().unwrap().push(*mutant);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    set_hook(hook);
    let missed = missed.into_inner().unwrap();
    println!("mutants of {world}: {} run, {} not found", mutants.len(), missed.len());
    assert!(missed.is_empty(), "not found: {missed:?}");
}
