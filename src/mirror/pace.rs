//! How fast resyncs may copy: one limit for all that share it, so that many volumes together keep to it as well as one.

use std::cell::Cell;
use std::time::Duration;

use crate::base::runtime::{Instant, RuntimeHandle};

/// A limit, and what has been let out under it. Without one at first: redundancy comes before speed.
#[derive(Default)]
pub struct Pace {
    limit_bytes_per_second: Cell<Option<u64>>,
    /// When the next copy may go out at that limit.
    next_copy: Cell<Instant>,
}

impl Pace {
    /// No faster than this from now on, all together.
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        self.limit_bytes_per_second.set(bytes_per_second.map(|limit| limit.max(1)));
    }

    /// Waits until a copy of so many bytes may go out.
    pub async fn keep(&self, runtime: &RuntimeHandle, bytes: u64) {
        let Some(limit) = self.limit_bytes_per_second.get() else { return };
        let now = runtime.now();
        let at = self.next_copy.get().max(now);
        let takes_ns = u128::from(bytes) * 1_000_000_000 / u128::from(limit);
        self.next_copy.set(Instant(at.0.saturating_add(u64::try_from(takes_ns).unwrap_or(u64::MAX))));
        let wait: Duration = at.since(now);
        if !wait.is_zero() {
            runtime.sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::sim::executor::Executor;

    #[test]
    fn all_who_share_a_limit_keep_to_it_together() {
        let executor = Executor::new(1);
        let world = executor.world("node");
        let pace = Rc::new(Pace::default());
        let copied = Rc::new(Cell::new(0_u64));
        for _ in 0..5 {
            let (pace, runtime, copied): (_, RuntimeHandle, _) =
                (pace.clone(), world.clone(), copied.clone());
            let copying = runtime.clone();
            runtime.spawn(Box::pin(async move {
                for _ in 0..100 {
                    pace.keep(&copying, 1000).await;
                    copied.set(copied.get() + 1000);
                }
            }));
        }
        pace.limit(Some(100_000));
        executor.run_for(Duration::from_secs(1)).unwrap();
        assert!((95_000..=105_000).contains(&copied.get()), "{}", copied.get());
        // Lifted, what waits goes out after what was let out before.
        pace.limit(None);
        executor.run_for(Duration::from_millis(100)).unwrap();
        assert_eq!(copied.get(), 500_000);
    }
}
