//! The power of this node's room, as its UPS tells by Network UPS Tools, and what the node does when it goes.
//!
//! On battery, people are told. With a battery that is nearly empty the node hands over and ends, and the other room
//! serves on. When both rooms are on battery, hosts are warned by a command of the site, then both nodes end, each
//! volume certified equal on both, so that either room may start everything. A node that ended for want of power is started
//! again by the service manager, and waits until there is power.

mod decide;
mod upsd;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use self::decide::{Limits, Other, Step, Supply, decide};
pub use self::upsd::UpsAddress;
use self::upsd::{Reading, UpsdError};
use super::cluster_stop;
use super::config::Bounded;
use super::control::Control;
use super::event_log::EventReporter;
use super::notify;
use super::others::{Others, passed_on};
use crate::rpc::management::{self as messages, GetStatusRequest, ShutdownNodeRequest};
use crate::rpc::time::show_duration;

/// `[ups]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpsConfig {
    /// The UPS of this node's room.
    pub name: UpsAddress,
    /// How often it is asked.
    #[serde(default = "default_poll_s")]
    pub poll_s: Bounded<1, 60>,
    /// At this charge its battery counts as nearly empty; 0 leaves that to the UPS.
    #[serde(default = "default_low_charge_percent")]
    pub low_charge_percent: Bounded<0, 99>,
    /// With this time left too; 0 leaves that to the UPS.
    #[serde(default = "default_low_runtime_s")]
    pub low_runtime_s: Bounded<0, 86_400>,
    /// Command that has hosts stop, before both nodes end.
    #[serde(default)]
    pub warn_hosts: Vec<String>,
    /// How long that may take.
    #[serde(default = "default_warn_hosts_s")]
    pub warn_hosts_s: Bounded<1, 86_400>,
    /// Command that switches the machine off, when the node has ended.
    #[serde(default)]
    pub after_stop: Vec<String>,
    /// How long there has to be power before a node that ended for want of it begins again.
    #[serde(default = "default_resume_after_s")]
    pub resume_after_s: Bounded<0, 86_400>,
}

fn default_poll_s() -> Bounded<1, 60> {
    Bounded::new(5)
}

fn default_low_charge_percent() -> Bounded<0, 99> {
    Bounded::new(30)
}

fn default_low_runtime_s() -> Bounded<0, 86_400> {
    Bounded::new(300)
}

fn default_warn_hosts_s() -> Bounded<1, 86_400> {
    Bounded::new(300)
}

fn default_resume_after_s() -> Bounded<0, 86_400> {
    Bounded::new(60)
}

impl UpsConfig {
    fn limits(&self) -> Limits {
        let charge_percent = u32::try_from(self.low_charge_percent.get()).unwrap_or(0);
        Limits { charge_percent, runtime_seconds: self.low_runtime_s.get() }
    }

    fn poll(&self) -> Duration {
        Duration::from_secs(self.poll_s.get())
    }
}

/// The power of this node's room, as it is known.
#[derive(Clone, Debug)]
pub struct PowerReport {
    ups: String,
    supply: Supply,
    reading: Reading,
    /// Why nothing is known.
    trouble: String,
    is_silent_for_long: bool,
}

impl PowerReport {
    /// As a message.
    #[must_use]
    pub fn message(&self) -> messages::Power {
        messages::Power {
            ups: self.ups.clone(),
            state: self.supply.name().to_owned(),
            charge_percent: self.reading.charge_percent,
            runtime_seconds: self.reading.runtime_seconds,
            trouble: self.trouble.clone(),
        }
    }

    /// What is the matter with the power of `node`: kind by name, how bad, what, and what to do.
    #[must_use]
    pub fn matter(&self, node: &str) -> Option<PowerMatter> {
        let left = self.left();
        match self.supply {
            Supply::OnBattery => Some(PowerMatter {
                is_silence: false,
                is_error: false,
                message: format!("node {node} is on battery{left}"),
                action: "find out why its room has no power; when the battery is nearly empty the node hands over and \
                         ends, and comes back by itself with the power"
                    .to_owned(),
            }),
            Supply::Low => Some(PowerMatter {
                is_silence: false,
                is_error: true,
                message: format!("the battery of node {node} is nearly empty{left}"),
                action: "nothing: the node hands over and ends; it comes back by itself with the power".to_owned(),
            }),
            Supply::Unknown if self.is_silent_for_long => Some(PowerMatter {
                is_silence: true,
                is_error: false,
                message: format!("nothing is known of the power of node {node}: {}", self.trouble),
                action: format!("`upsc {}` on node {node} tells more: look at its NUT, and at the cable to the UPS", self.ups),
            }),
            _ => None,
        }
    }

    fn left(&self) -> String {
        let charge = self.reading.charge_percent.map(|percent| format!("{percent} %"));
        let runtime = self.reading.runtime_seconds.map(|seconds| format!("{} left", show_duration(seconds)));
        let parts: Vec<_> = charge.into_iter().chain(runtime).collect();
        if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
    }
}

/// What is the matter with a room's power.
pub struct PowerMatter {
    /// The UPS does not say anything.
    pub is_silence: bool,
    /// Whether service or redundancy is going.
    pub is_error: bool,
    /// What.
    pub message: String,
    /// What to do.
    pub action: String,
}

/// Watches a UPS, and acts.
pub struct Power {
    config: UpsConfig,
    control: Arc<Control>,
    others: Option<Arc<Others>>,
    events: EventReporter,
    /// What was last said of a stop, so that it is said once.
    said: String,
    /// Hosts have been told, since the battery became low.
    is_warned: bool,
}

impl Power {
    /// Of a node.
    #[must_use]
    pub fn new(
        config: UpsConfig,
        control: Arc<Control>,
        others: Option<Arc<Others>>,
        events: EventReporter,
    ) -> Self {
        Self { config, control, others, events, said: String::new(), is_warned: false }
    }

    /// Watches until the node is told to end.
    pub async fn run(mut self) {
        let mut known: Option<(Supply, Instant)> = None;
        let mut answered = Instant::now();
        loop {
            let taken = Reading::take(&self.config.name).await;
            let now = Instant::now();
            if taken.is_ok() {
                answered = now;
            }
            let report = self.report(taken, now - answered);
            if known.is_none_or(|(supply, _)| supply != report.supply) {
                self.tell(known.map(|(supply, _)| supply), &report);
                known = Some((report.supply, now));
            }
            let since = known.map_or(Duration::ZERO, |(_, since)| now - since);
            let supply = report.supply;
            self.control.set_power(report);
            self.is_warned &= supply == Supply::Low;
            if supply == Supply::Low && self.act(since).await {
                return;
            }
            tokio::time::sleep(self.config.poll()).await;
        }
    }

    fn report(&self, taken: Result<Reading, UpsdError>, silent_for: Duration) -> PowerReport {
        let ups = self.config.name.to_string();
        let is_silent_for_long = silent_for >= SILENT;
        match taken {
            Ok(reading) => {
                let supply = Supply::of(reading, self.config.limits());
                let trouble = if supply == Supply::Unknown {
                    "the UPS tells no state".to_owned()
                } else {
                    String::new()
                };
                PowerReport { ups, supply, reading, trouble, is_silent_for_long: true }
            }
            Err(error) => PowerReport {
                ups,
                supply: Supply::Unknown,
                reading: Reading::default(),
                trouble: error.to_string(),
                is_silent_for_long,
            },
        }
    }

    fn tell(&self, before: Option<Supply>, report: &PowerReport) {
        let (node, left) = (self.control.node(), report.left());
        match report.supply {
            Supply::OnBattery => {
                self.events.warning("power-lost", format!("node {node} is on battery{left}"), &[])
            }
            Supply::Low => {
                self.events.error(
                    "power-low",
                    format!("the battery of node {node} is nearly empty{left}"),
                    &[],
                );
            }
            Supply::Online if before.is_some_and(|before| before != Supply::Unknown) => {
                self.events.info("power-back", format!("node {node} has power again"), &[]);
            }
            Supply::Online => {}
            Supply::Unknown => {
                let message = format!("UPS {} does not answer: {}", report.ups, report.trouble);
                self.events.warning("ups-silent", message, &[]);
            }
        }
    }

    /// Does what there is to do with a battery that is low. Whether the node ends now.
    async fn act(&mut self, since: Duration) -> bool {
        let (other, name) = self.other().await;
        let is_first = name.is_none_or(|other| self.control.node().as_str() < other.as_str());
        let is_late = since >= LATE;
        match decide(Supply::Low, since, other, is_first) {
            Step::Wait => false,
            Step::HandOver => {
                let message = "the other room has power: this node hands over and ends".to_owned();
                self.stop_alone(is_late, message)
            }
            Step::StopAlone => {
                let message = "there is nobody to hand over to: this node ends".to_owned();
                self.warn_hosts().await && self.stop_alone(true, message)
            }
            Step::StopBoth => {
                if !self.warn_hosts().await {
                    return false;
                }
                let message =
                    "both rooms are on battery: both nodes end, every volume the same on both".to_owned();
                self.say(message);
                let stopped = cluster_stop::run(&self.control, self.others.as_deref(), is_late, true).await;
                if let Err(status) = &stopped {
                    self.say(format!(
                        "both nodes cannot end together: {}; it is tried again",
                        status.message()
                    ));
                }
                stopped.is_ok()
            }
        }
    }

    fn stop_alone(&mut self, force: bool, message: String) -> bool {
        let request = ShutdownNodeRequest { force, power: true, ..ShutdownNodeRequest::default() };
        let stopped = self.control.shutdown(&request);
        match &stopped {
            Ok(()) => self.say(message),
            Err(refusal) => {
                self.say(format!("this node cannot end yet: {refusal}; it does so all the same soon"))
            }
        }
        stopped.is_ok()
    }

    fn say(&mut self, message: String) {
        if self.said != message {
            self.events.warning("power-stop", message.clone(), &[]);
            self.said = message;
        }
    }

    /// The other node, and how its room is.
    async fn other(&self) -> (Other, Option<String>) {
        let Some(name) = self.others.as_ref().and_then(|others| others.names().next().cloned()) else {
            return (Other::None, None);
        };
        let asked = async {
            let mut client = self.others.as_ref()?.client(&name).await.ok()?;
            let status = client.get_status(passed_on(GetStatusRequest {})).await.ok()?.into_inner();
            status.nodes.into_iter().find(|node| node.name == name.as_str())
        };
        let answered = if self.control.is_reachable(&name) {
            tokio::time::timeout(ASK, asked).await.ok().flatten()
        } else {
            None
        };
        let says = |node: messages::Node| {
            let state = node.power.map(|power| power.state);
            Other::Says(Supply::named(state.as_deref().unwrap_or_default()))
        };
        (answered.map_or(Other::Unreachable, says), Some(name.to_string()))
    }

    /// Has hosts stop. Whether this node is still to end afterwards: the power may be back.
    async fn warn_hosts(&mut self) -> bool {
        if std::mem::replace(&mut self.is_warned, true) {
            return true;
        }
        let Some((program, arguments)) = self.config.warn_hosts.split_first() else { return true };
        let limit = Duration::from_secs(self.config.warn_hosts_s.get());
        self.events.warning("hosts-warned", format!("hosts are told to stop: {program}"), &[]);
        let left = self.control.power().and_then(|power| power.reading.runtime_seconds).unwrap_or(0);
        let command = tokio::process::Command::new(program)
            .args(arguments)
            .env("GEMEL_NODE", self.control.node().as_str())
            .env("GEMEL_SECONDS", limit.as_secs().to_string())
            .env("GEMEL_BATTERY_SECONDS", left.to_string())
            .kill_on_drop(true)
            .status();
        let how = match tokio::time::timeout(limit, command).await {
            Ok(Ok(status)) if status.success() => "hosts have been told to stop".to_owned(),
            Ok(Ok(status)) => format!("the command that has hosts stop ended with {status}"),
            Ok(Err(error)) => format!("the command that has hosts stop cannot be run: {error}"),
            Err(_) => format!("the command that has hosts stop took longer than {} s", limit.as_secs()),
        };
        self.events.warning("hosts-warned", how, &[]);
        let now =
            Reading::take(&self.config.name).await.map(|reading| Supply::of(reading, self.config.limits()));
        let is_back = matches!(now, Ok(Supply::Online));
        if is_back {
            self.events.info("power-back", "the power is back in time: nothing is stopped".to_owned(), &[]);
        }
        !is_back
    }
}

/// Remembers that the node ended for want of power.
pub fn remember_stop(state_dir: &Path) {
    if let Err(error) = std::fs::write(marker(state_dir), b"") {
        tracing::warn!(%error, "it cannot be remembered that the power was gone: the next start does not wait for it");
    }
}

/// Waits until there is power, where the node ended for want of it.
pub async fn wait_for_power(config: Option<&UpsConfig>, state_dir: &Path) {
    let marker = marker(state_dir);
    if !marker.exists() {
        return;
    }
    if let Some(config) = config {
        tracing::info!(ups = %config.name, "this node ended for want of power: it waits until there is some");
        let needed = Duration::from_secs(config.resume_after_s.get());
        let (mut online_since, mut silent_since) = (None, None);
        loop {
            // Longer than until the next look: the service manager is to wait too.
            notify::notify("EXTEND_TIMEOUT_USEC=180000000\nSTATUS=waiting for power");
            let now = Instant::now();
            match Reading::take(&config.name).await.map(|reading| Supply::of(reading, config.limits())) {
                Ok(Supply::Online) => {
                    if now - *online_since.get_or_insert(now) >= needed {
                        break;
                    }
                    silent_since = None;
                }
                Ok(Supply::OnBattery | Supply::Low) => (online_since, silent_since) = (None, None),
                Ok(Supply::Unknown) | Err(_) => {
                    if now - *silent_since.get_or_insert(now) >= GIVE_UP {
                        tracing::warn!(ups = %config.name, "the UPS does not answer: the node begins without knowing");
                        break;
                    }
                }
            }
            tokio::time::sleep(config.poll().min(needed.max(SHORTEST))).await;
        }
    }
    if let Err(error) = std::fs::remove_file(&marker) {
        tracing::warn!(%error, "the mark that the power was gone cannot be removed");
    }
}

/// Runs what switches the machine off.
pub fn after_stop(config: Option<&UpsConfig>) {
    let Some((program, arguments)) = config.and_then(|config| config.after_stop.split_first()) else {
        return;
    };
    if let Err(error) = std::process::Command::new(program).args(arguments).status() {
        tracing::error!(%error, program, "the machine cannot be switched off");
    }
}

fn marker(state_dir: &Path) -> PathBuf {
    state_dir.join("ended-for-want-of-power")
}

/// A UPS that does not answer for so long is a matter.
const SILENT: Duration = Duration::from_secs(60);
/// With a battery that has been low for so long, nothing is waited for any more.
const LATE: Duration = Duration::from_secs(120);
/// How long the other node may take to say how its room is.
const ASK: Duration = Duration::from_secs(3);
/// At the start, a UPS that does not answer for so long is not waited for.
const GIVE_UP: Duration = Duration::from_secs(120);
/// Least time between two looks.
const SHORTEST: Duration = Duration::from_secs(1);
