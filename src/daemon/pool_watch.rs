//! Watches how full the pool of the node is: says so in an event when a threshold is passed, in either direction, and tells from
//! the growth so far on which day it will be full.
//!
//! The growth is the slope of a line through regular looks, of thirty days at most, by least squares. Looks are kept in a file of the
//! state directory; one that is lost, or damaged, is begun anew: what it says is no more than a forecast.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::control::{Control, now_ms};
use super::event_log::EventReporter;
use crate::peer::authority::write_secret;
use crate::rpc::size::show as show_size;

/// What is to be expected of a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Bytes that are used more each day; less when negative.
    pub bytes_per_day: f64,
    /// When the pool is full if that goes on, in milliseconds since 1970; none when it does not grow, or so slowly that nobody can
    /// tell.
    pub full_unix_ms: Option<u64>,
}

/// The growth of a pool.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Growth {
    /// Time in milliseconds since 1970, and bytes in use; oldest first.
    looks: VecDeque<(u64, u64)>,
}

/// A share of the pool of which is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    #[default]
    Well,
    Warning,
    Error,
}

/// Watches for ever.
pub async fn run(control: Arc<Control>, state_dir: PathBuf, events: EventReporter) {
    let path = state_dir.join(NAME);
    let mut growth = Growth::load(&path);
    let mut level = Level::default();
    loop {
        if let Ok(report) = control.report().await
            && report.pool.capacity_bytes > 0
        {
            let (now_ms, pool) = (now_ms(), &report.pool);
            let (used, capacity) = (pool.used_bytes, pool.capacity_bytes);
            if growth.look(now_ms, used)
                && let Err(error) = growth.save(path.clone()).await
            {
                tracing::warn!(error, "the growth of the pool is not kept");
            }
            control.set_forecast(growth.forecast(now_ms, used, capacity));
            let thresholds = control.look(|state| state.settings().space_thresholds_percent());
            let next = level.after(used, capacity, thresholds);
            tell(&events, control.node().as_str(), (level, next), (used, capacity));
            level = next;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn tell(events: &EventReporter, node: &str, (before, now): (Level, Level), (used, capacity): (u64, u64)) {
    let percent = percent(used, capacity);
    let message = format!(
        "the pool of node {node} is {percent} % full: {} of {}",
        show_size(used),
        show_size(capacity)
    );
    let evidence = [
        ("node", node.to_owned()),
        ("used_bytes", used.to_string()),
        ("capacity_bytes", capacity.to_string()),
    ];
    match now {
        _ if now == before => {}
        Level::Well => events.info("pool-space-back", message, &evidence),
        Level::Warning if before == Level::Error => events.info("pool-space-back", message, &evidence),
        Level::Warning => events.warning("pool-filling", message, &evidence),
        Level::Error => events.error("pool-filling", message, &evidence),
    }
}

impl Level {
    /// The level at this use. It falls only when the use is well below the threshold, so that one that goes to and fro is told
    /// once.
    fn after(self, used: u64, capacity: u64, (warning, error): (u8, u8)) -> Self {
        let percent = percent(used, capacity);
        let level = |margin: u64| {
            let is_above = |threshold: u8| percent + margin >= u64::from(threshold);
            if is_above(error) {
                Self::Error
            } else if is_above(warning) {
                Self::Warning
            } else {
                Self::Well
            }
        };
        level(0).max(self.min(level(MARGIN_PERCENT)))
    }
}

fn percent(used: u64, capacity: u64) -> u64 {
    u64::try_from(u128::from(used) * 100 / u128::from(capacity.max(1))).unwrap_or(100)
}

impl Growth {
    fn load(path: &Path) -> Self {
        let read = std::fs::read(path).ok();
        read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    async fn save(&self, path: PathBuf) -> Result<(), String> {
        let text = serde_json::to_string(self).map_err(|error| error.to_string())?;
        let write = move || write_secret(&path, &text).map_err(|error| error.to_string());
        tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string())?
    }

    /// Adds a look when it is time for one.
    fn look(&mut self, now_ms: u64, used_bytes: u64) -> bool {
        // A clock that was put back makes later looks worthless.
        while self.looks.back().is_some_and(|(at, _)| *at > now_ms) {
            self.looks.pop_back();
        }
        let is_early = self.looks.back().is_some_and(|(at, _)| now_ms - at < millis(BETWEEN_LOOKS));
        if is_early {
            return false;
        }
        self.looks.push_back((now_ms, used_bytes));
        while self.looks.front().is_some_and(|(at, _)| now_ms - at > millis(KEPT)) {
            self.looks.pop_front();
        }
        true
    }

    /// None while too little is known.
    fn forecast(&self, now_ms: u64, used_bytes: u64, capacity_bytes: u64) -> Option<Forecast> {
        let (first_ms, _) = *self.looks.front()?;
        let (last_ms, _) = *self.looks.back()?;
        if last_ms - first_ms < millis(LEAST_SPAN) {
            return None;
        }
        let point = |(at, used): &(u64, u64)| ((at - first_ms) as f64 / DAY_MS, *used as f64);
        let count = self.looks.len() as f64;
        let sum = |value: &dyn Fn(f64, f64) -> f64| {
            self.looks.iter().map(point).map(|(x, y)| value(x, y)).sum::<f64>() / count
        };
        let (mean_x, mean_y) = (sum(&|x, _| x), sum(&|_, y| y));
        let spread = sum(&|x, _| (x - mean_x).powi(2));
        let bytes_per_day = sum(&|x, y| (x - mean_x) * (y - mean_y)) / spread;
        let free = capacity_bytes.saturating_sub(used_bytes) as f64;
        let days = free / bytes_per_day;
        let is_in_sight = bytes_per_day > 0.0 && days < MOST_DAYS;
        let full_unix_ms = is_in_sight.then(|| now_ms.saturating_add((days * DAY_MS) as u64));
        Some(Forecast { bytes_per_day, full_unix_ms })
    }
}

const fn millis(duration: Duration) -> u64 {
    duration.as_secs() * 1000
}

/// Name of the file.
const NAME: &str = "pool-growth.json";
/// Time between two looks at the thresholds.
const LOOK: Duration = Duration::from_secs(2);
/// Time between two looks that are kept.
const BETWEEN_LOOKS: Duration = Duration::from_secs(15 * 60);
/// How long they are kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// A shorter time says nothing.
const LEAST_SPAN: Duration = Duration::from_secs(6 * 3600);
const DAY_MS: f64 = 24.0 * 3600.0 * 1000.0;
/// Ten years: whoever fills the pool more slowly needs no date.
const MOST_DAYS: f64 = 3653.0;
/// How far below a threshold the use has to be before it counts as having fallen.
const MARGIN_PERCENT: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3600 * 1000;
    const START_MS: u64 = 1_795_000_000_000;

    #[test]
    fn a_level_is_told_once_and_falls_with_a_margin() {
        let thresholds = (80, 90);
        let mut level = Level::default();
        let mut told = Vec::new();
        for used in [79, 80, 79, 81, 90, 89, 88, 87, 85, 79, 78, 77, 95, 10] {
            let next = level.after(used, 100, thresholds);
            if next != level {
                told.push((used, next));
            }
            level = next;
        }
        assert_eq!(
            told,
            [
                (80, Level::Warning),
                (90, Level::Error),
                (87, Level::Warning),
                (77, Level::Well),
                (95, Level::Error),
                (10, Level::Well)
            ]
        );
    }

    #[test]
    fn steady_growth_tells_the_day() {
        let mut growth = Growth::default();
        for hour in 0..5 {
            assert!(growth.look(START_MS + hour * HOUR_MS, 1000 + hour));
            assert!(!growth.look(START_MS + hour * HOUR_MS + 1000, 1));
        }
        assert_eq!(growth.forecast(START_MS, 1004, 10_000), None, "too little is known");
        // 24 GiB a day, with a snapshot that comes and goes each day; a tenth is left.
        let gib = |count: u64| count << 30;
        let mut growth = Growth::default();
        for hour in 0..240 {
            growth.look(START_MS + hour * HOUR_MS, gib(1000 + hour + hour % 24 / 12 * 5));
        }
        let now_ms = START_MS + 239 * HOUR_MS;
        let forecast = growth.forecast(now_ms, gib(1239), gib(1479)).unwrap();
        let a_day = forecast.bytes_per_day / gib(1) as f64;
        assert!((23.0..25.5).contains(&a_day), "{a_day}");
        let days = (forecast.full_unix_ms.unwrap() - now_ms) as f64 / DAY_MS;
        assert!((9.4..10.5).contains(&days), "{days}");
        // Nothing is foretold of a pool that gets emptier, or hardly grows.
        for falls in [true, false] {
            let mut growth = Growth::default();
            for hour in 0..100 {
                let used = if falls { gib(1000) - hour } else { gib(1000) + hour };
                growth.look(START_MS + hour * HOUR_MS, used);
            }
            let forecast = growth.forecast(START_MS + 100 * HOUR_MS, gib(1000), gib(2000)).unwrap();
            assert_eq!((forecast.full_unix_ms, forecast.bytes_per_day < 0.0), (None, falls));
        }
    }

    #[test]
    fn looks_are_kept_for_a_month_and_a_clock_may_go_back() {
        let mut growth = Growth::default();
        for hour in 0..1000 {
            growth.look(START_MS + hour * HOUR_MS, hour);
        }
        assert_eq!(growth.looks.len(), 721);
        growth.look(START_MS + 990 * HOUR_MS, 7);
        assert_eq!(growth.looks.back(), Some(&(START_MS + 990 * HOUR_MS, 990)));
        growth.look(START_MS + 991 * HOUR_MS, 8);
        assert_eq!(growth.looks.back(), Some(&(START_MS + 991 * HOUR_MS, 8)));
    }

    #[tokio::test]
    async fn what_was_kept_is_read_and_what_is_damaged_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        assert!(Growth::load(&path).looks.is_empty());
        let mut growth = Growth::default();
        growth.look(5, 6);
        growth.save(path.clone()).await.unwrap();
        assert_eq!(Growth::load(&path).looks, [(5, 6)]);
        std::fs::write(&path, "{").unwrap();
        assert!(Growth::load(&path).looks.is_empty());
    }
}
