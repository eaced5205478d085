//! Which of the pool's disks are not to be trusted: by what devices say of themselves ([`smart`]), and by how they
//! conduct themselves in the pool ([`conduct`]). What is found is told in an event and in the status.
//!
//! Such a disk is retired before it fails, when that puts nothing at risk: a spare waits, and all other disks are well and
//! have all that they should have. Else it goes on being used, and it is up to the administrator.
//!
//! Left to others: disks that fail a write or hang, which the pool gives up by itself.

mod conduct;
mod smart;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::conduct::Conduct;
use super::control::Control;
use super::engine::{DiskReport, DiskState, PoolReport};
use super::event_log::EventReporter;

/// What a device says of its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is a file, which has none of its own.
    File,
    /// Nothing is known, for this reason.
    Unknown(String),
    /// It is well; what else it says.
    Good(String),
    /// It is about to fail, or has begun to.
    Failing(String),
}

impl Health {
    /// A word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Unknown(_) => "unknown",
            Self::Good(_) => "good",
            Self::Failing(_) => "failing",
        }
    }

    /// What the device says, or why nothing is known.
    #[must_use]
    pub fn detail(&self) -> &str {
        match self {
            Self::File => "",
            Self::Unknown(detail) | Self::Good(detail) | Self::Failing(detail) => detail,
        }
    }
}

/// By a disk's path.
pub type HealthByPath = BTreeMap<String, Health>;

/// Looks for ever; retires what is not to be trusted, if that is wanted.
pub async fn run(control: Arc<Control>, events: EventReporter, retires: bool) {
    let (mut devices, mut known, mut conduct) =
        (HealthByPath::new(), HealthByPath::new(), Conduct::default());
    let (mut asked, mut refused) = (None::<Instant>, BTreeSet::new());
    loop {
        if let Ok(report) = control.report().await {
            let disks: Vec<&DiskReport> = report.pool.disks.iter().filter(is_there).collect();
            if asked.is_none_or(|asked| asked.elapsed() >= BETWEEN_QUESTIONS) {
                asked = Some(Instant::now());
                devices.clear();
                for disk in &disks {
                    devices.insert(disk.path.clone(), smart::look(Path::new(&disk.path)).await);
                }
            }
            let mut now = devices.clone();
            let failing = conduct.observe(Instant::now(), &report.pool.disks);
            now.extend(failing.into_iter().map(|(path, reason)| (path, Health::Failing(reason))));
            for disk in disks {
                if let Some(health) = now.get(&disk.path) {
                    tell(&events, control.node().as_str(), disk, known.get(&disk.path), health);
                }
            }
            known.clone_from(&now);
            control.set_disk_health(now);
            let wanted = to_be_retired(&report.pool, &known).filter(|_| retires);
            // One that was refused once is told of, and left to the administrator.
            if let Some((disk, reason)) = wanted.filter(|(disk, _)| !refused.contains(&disk.id))
                && !control.retire_disk(disk, reason, !conduct.is_slow(disk)).await
            {
                refused.insert(disk.id.clone());
            }
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

fn is_there(disk: &&DiskReport) -> bool {
    !disk.path.is_empty() && !matches!(disk.state, DiskState::Failed | DiskState::Missing)
}

/// The disk that is not to be trusted, and why, when there is one alone and nothing is put at risk without it.
fn to_be_retired<'a>(pool: &'a PoolReport, known: &'a HealthByPath) -> Option<(&'a DiskReport, &'a str)> {
    let failing = |disk: &'a DiskReport| match known.get(&disk.path) {
        Some(Health::Failing(reason)) => Some((disk, reason.as_str())),
        _ => None,
    };
    let (spares, members): (Vec<_>, Vec<_>) =
        pool.disks.iter().partition(|disk| disk.state == DiskState::Spare);
    let is_whole = members.iter().all(|disk| disk.state == DiskState::Ok) && !pool.offline;
    // Which one of several takes its place is not for this to say.
    let has_spare = !spares.is_empty() && spares.into_iter().all(|spare| failing(spare).is_none());
    let failing: Vec<_> = members.into_iter().filter_map(failing).collect();
    match failing.as_slice() {
        [one] if is_whole && has_spare => Some(*one),
        _ => None,
    }
}

fn tell(events: &EventReporter, node: &str, disk: &DiskReport, before: Option<&Health>, now: &Health) {
    let evidence =
        [("disk", disk.id.clone()), ("path", disk.path.clone()), ("detail", now.detail().to_owned())];
    let was_failing = matches!(before, Some(Health::Failing(_)));
    match now {
        Health::Failing(detail) if !was_failing => {
            let message =
                format!("disk {} ({}) of node {node} is not to be trusted: {detail}", disk.id, disk.path);
            events.warning("disk-failing", message, &evidence);
        }
        Health::Good(_) if was_failing => {
            let message = format!("disk {} ({}) of node {node} is well again", disk.id, disk.path);
            events.info("disk-well", message, &evidence);
        }
        _ => {}
    }
}

/// How often the pool's own figures are looked at.
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);
/// How often devices are asked, about.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_retired_only_when_nothing_is_put_at_risk() {
        let disk = |path: &str, state| DiskReport { path: path.to_owned(), state, ..DiskReport::default() };
        let pool = |states: &[DiskState]| {
            let disks = ["a", "b", "c", "spare"].into_iter().zip(states);
            PoolReport {
                disks: disks.map(|(path, state)| disk(path, *state)).collect(),
                ..PoolReport::default()
            }
        };
        let known = |failing: &[&str]| -> HealthByPath {
            failing.iter().map(|path| ((*path).to_owned(), Health::Failing("why".to_owned()))).collect()
        };
        let (ok, spare) = (DiskState::Ok, DiskState::Spare);
        let whole = pool(&[ok, ok, ok, spare]);
        let found = |pool: &PoolReport, failing: &[&str]| {
            to_be_retired(pool, &known(failing)).map(|(disk, reason)| (disk.path.clone(), reason.to_owned()))
        };
        assert_eq!(found(&whole, &["b"]), Some(("b".to_owned(), "why".to_owned())));
        assert_eq!(found(&whole, &[]), None);
        assert_eq!(found(&whole, &["a", "b"]), None, "two: the cause may be elsewhere");
        assert_eq!(found(&whole, &["b", "spare"]), None);
        assert_eq!(found(&pool(&[ok, ok, ok]), &["b"]), None, "nothing takes its place");
        for other in [DiskState::Rebuilding, DiskState::Failed, DiskState::Missing] {
            assert_eq!(found(&pool(&[ok, ok, other, spare]), &["b"]), None);
        }
    }
}
