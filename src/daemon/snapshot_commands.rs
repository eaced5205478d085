//! Commands of the site before and after snapshots: what hosts have in memory gets into the snapshot, as a command has their
//! databases or file systems write it out and hold still for the moment.
//!
//! Guarantees: the command after is run whenever the one before was begun, whatever came of it, and also when who asked has gone
//! meanwhile; only the end of the process is stronger. No two snapshots run theirs at a time. None takes longer than its limit.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinHandle;

use super::config::Bounded;
use super::event_log::EventReporter;

/// `[snapshots]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotsConfig {
    /// Command before snapshots.
    pub before: Vec<String>,
    /// Command after them.
    pub after: Vec<String>,
    /// How long each may take.
    pub limit_s: Bounded<1, 600>,
}

impl Default for SnapshotsConfig {
    fn default() -> Self {
        Self { before: Vec::new(), after: Vec::new(), limit_s: Bounded::new(30) }
    }
}

/// What is to be taken.
#[derive(Clone, Debug)]
pub struct Occasion {
    /// Names of the volumes, with blanks between them.
    pub volumes: String,
    /// Name of the snapshot.
    pub snapshot: String,
    /// Whether nobody has asked for it.
    pub is_scheduled: bool,
}

/// The commands of a node.
pub struct SnapshotCommands {
    site: Arc<Site>,
    turn: Arc<Mutex<()>>,
}

struct Site {
    config: SnapshotsConfig,
    node: String,
    events: EventReporter,
    /// What went wrong when the second command was run last. A lock because statuses are made by tasks that move between threads.
    trouble: std::sync::Mutex<Option<String>>,
}

/// The command after, which has to be run once the one before was begun: also when nobody waits for the snapshot any more.
struct Owed {
    site: Arc<Site>,
    occasion: Occasion,
    is_taken: bool,
    /// None when it is being run.
    turn: Option<OwnedMutexGuard<()>>,
}

impl SnapshotCommands {
    /// Those of this configuration. What goes wrong with them is told to `events`.
    #[must_use]
    pub fn new(config: SnapshotsConfig, node: String, events: EventReporter) -> Self {
        Self {
            site: Arc::new(Site { config, node, events, trouble: std::sync::Mutex::default() }),
            turn: Arc::default(),
        }
    }

    /// What went wrong when hosts were to go on after the last snapshot.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.site.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Does `work` between the two commands.
    ///
    /// # Errors
    /// Why the first one failed; then nothing is done, unless a schedule wants it.
    pub async fn hold<T, E>(
        &self,
        occasion: Occasion,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Result<T, E>, String> {
        let config = &self.site.config;
        if config.before.is_empty() && config.after.is_empty() {
            return Ok(work.await);
        }
        let turn = Some(self.turn.clone().lock_owned().await);
        let mut owed = Owed { site: self.site.clone(), occasion, is_taken: false, turn };
        let done = match self.site.run(&config.before, &owed.occasion, None).await {
            Err(why) if !owed.occasion.is_scheduled => Err(why),
            before => {
                if let Err(why) = before {
                    self.site.tell_before(&owed.occasion, &why);
                }
                Ok(work.await)
            }
        };
        owed.is_taken = matches!(done, Ok(Ok(_)));
        owed.pay().await;
        done
    }
}

impl Owed {
    /// Runs the command, in a task of its own: it is not for who waits to end it.
    async fn pay(mut self) {
        if let Some(paying) = self.begin() {
            let _ = paying.await;
        }
    }

    fn begin(&mut self) -> Option<JoinHandle<()>> {
        let turn = self.turn.take()?;
        let (site, occasion, is_taken) = (self.site.clone(), self.occasion.clone(), self.is_taken);
        Some(tokio::spawn(async move {
            let trouble = match site.run(&site.config.after, &occasion, Some(is_taken)).await {
                Ok(()) => None,
                Err(why) => Some(site.tell_after(&occasion, &why)),
            };
            *site.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
            drop(turn);
        }))
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        drop(self.begin());
    }
}

impl Site {
    async fn run(&self, command: &[String], occasion: &Occasion, taken: Option<bool>) -> Result<(), String> {
        let Some((program, arguments)) = command.split_first() else { return Ok(()) };
        let limit = Duration::from_secs(self.config.limit_s.get());
        let mut child = tokio::process::Command::new(program);
        // A group of its own, so that what it has started ends with it.
        child.args(arguments).kill_on_drop(true).process_group(0);
        child.env("GEMEL_NODE", &self.node).env("GEMEL_VOLUMES", &occasion.volumes);
        child.env("GEMEL_SNAPSHOT", &occasion.snapshot);
        child.env("GEMEL_REASON", if occasion.is_scheduled { "schedule" } else { "command" });
        if let Some(is_taken) = taken {
            child.env("GEMEL_TAKEN", if is_taken { "yes" } else { "no" });
        }
        let mut child = child.spawn().map_err(|error| format!("{program} cannot be run: {error}"))?;
        let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        match tokio::time::timeout(limit, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("{program} ended with {status}")),
            Ok(Err(error)) => Err(format!("{program} cannot be waited for: {error}")),
            Err(_) => {
                // It has not been waited for, so the number is still its own.
                if let Some(group) = group {
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                Err(format!("{program} took longer than {} s and was killed", limit.as_secs()))
            }
        }
    }

    fn tell_before(&self, Occasion { volumes, snapshot, .. }: &Occasion, why: &str) {
        let message = format!(
            "snapshot {snapshot} of {volumes} is as after a power failure, not as its hosts wanted it: the command before \
             snapshots failed: {why}"
        );
        let evidence = [("volumes", volumes.clone()), ("snapshot", snapshot.clone())];
        self.events.warning("snapshot-command-failed", message, &evidence);
    }

    fn tell_after(&self, Occasion { volumes, snapshot, .. }: &Occasion, why: &str) -> String {
        let message = format!(
            "the command after snapshot {snapshot} of {volumes} failed: {why}. Hosts may still hold still: see to it that they \
             go on"
        );
        let evidence = [("volumes", volumes.clone()), ("snapshot", snapshot.clone())];
        self.events.error("snapshot-command-failed", message.clone(), &evidence);
        message
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::daemon::event_log::{self, EventLog};
    use crate::daemon::state_directory::StateDirectory;

    /// Commands that write to `log`, and the events that they bring about.
    fn commands(place: &Path, before: &str, after: &str) -> (SnapshotCommands, EventLog) {
        let shell = |text: &str| ["sh", "-c", text].map(str::to_owned).to_vec();
        let config = SnapshotsConfig { before: shell(before), after: shell(after), limit_s: Bounded::new(1) };
        let state = Arc::new(StateDirectory::open(&place.join("state")).unwrap());
        let (events, log, writer) = event_log::open(state, 100).unwrap();
        tokio::spawn(writer.run());
        (SnapshotCommands::new(config, "a".to_owned(), events), log)
    }

    fn occasion(is_scheduled: bool) -> Occasion {
        Occasion { volumes: "db logs".to_owned(), snapshot: "monday".to_owned(), is_scheduled }
    }

    fn say(text: &str, log: &Path) -> String {
        format!(
            "echo \"{text} $GEMEL_NODE $GEMEL_VOLUMES $GEMEL_SNAPSHOT $GEMEL_REASON $GEMEL_TAKEN\" >> {log:?}"
        )
    }

    async fn told(log: &EventLog, count: usize) -> Vec<String> {
        while log.after(0, 100).len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        log.after(0, 100).into_iter().map(|event| event.message).collect()
    }

    #[tokio::test]
    async fn hosts_hold_still_while_it_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join("log");
        let (commands, events) = commands(place.path(), &say("before", &log), &say("after", &log));
        let work = async {
            std::fs::write(&log, std::fs::read_to_string(&log).unwrap() + "taken\n").unwrap();
            Ok::<_, ()>(5)
        };
        assert_eq!(commands.hold(occasion(false), work).await, Ok(Ok(5)));
        let text = std::fs::read_to_string(&log).unwrap();
        assert_eq!(text, "before a db logs monday command \ntaken\nafter a db logs monday command yes\n");
        let refused = commands.hold(occasion(true), async { Err::<(), _>("no") }).await;
        assert_eq!(refused, Ok(Err("no")));
        assert!(std::fs::read_to_string(&log).unwrap().ends_with("after a db logs monday schedule no\n"));
        assert!(events.after(0, 100).is_empty());
    }

    #[tokio::test]
    async fn a_failure_keeps_a_snapshot_from_being_taken_unless_a_schedule_wants_it() {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join("log");
        let after = format!("echo $GEMEL_TAKEN >> {log:?}; sleep 9");
        let (commands, events) = commands(place.path(), "exit 3", &after);
        let never = async { panic!("it is not to be taken") };
        let refused: Result<Result<(), ()>, String> = commands.hold(occasion(false), never).await;
        assert!(refused.unwrap_err().contains("exit status: 3"));
        assert_eq!(commands.hold(occasion(true), async { Ok::<_, ()>(1) }).await, Ok(Ok(1)));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "no\nyes\n");
        let told = told(&events, 3).await;
        assert!(told[0].contains("longer than 1 s") && told[1].contains("exit status: 3"), "{told:?}");
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_a_failure() {
        let place = tempfile::tempdir().unwrap();
        let (mut commands, _) = commands(place.path(), "", "");
        let site = Arc::get_mut(&mut commands.site).unwrap();
        site.config.before = vec!["/nowhere/at-all".to_owned()];
        let refused = commands.hold(occasion(false), async { Ok::<_, ()>(()) }).await;
        assert!(refused.unwrap_err().contains("cannot be run"));
    }

    /// Who asked has gone: hosts must not be left holding still.
    #[tokio::test]
    async fn hosts_go_on_when_nobody_waits_any_more() {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join("log");
        let (commands, _) = commands(place.path(), "true", &say("after", &log));
        let endless = commands.hold(occasion(false), std::future::pending::<Result<(), ()>>());
        assert!(tokio::time::timeout(Duration::from_millis(200), endless).await.is_err());
        // The next one has its turn behind the command that was owed.
        assert_eq!(commands.hold(occasion(false), async { Ok::<_, ()>(()) }).await, Ok(Ok(())));
        let text = std::fs::read_to_string(&log).unwrap();
        assert_eq!(text, "after a db logs monday command no\nafter a db logs monday command yes\n");
    }
}
