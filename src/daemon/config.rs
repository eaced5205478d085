//! The configuration of `gemeld`: `/etc/gemel/gemeld.toml`.
//!
//! Every value is checked while it is read, so an error names the line, and a [`Config`] that exists
//! is one that the daemon can start from. `deploy/gemeld.toml` documents each key; a test parses it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::cluster::name::{ClusterName, NodeName};
use crate::cluster::quorum::SeatKind;
use crate::daemon::accounts::directory::LdapConfig;
use crate::daemon::floating::FloatingConfig;
use crate::daemon::power::UpsConfig;
use crate::daemon::snapshot_commands::SnapshotsConfig;
use crate::daemon::syslog::Receiver;
use crate::peer::settings::PeerSettings;

/// Where the configuration is looked for when no other place is given.
pub const DEFAULT_PATH: &str = "/etc/gemel/gemeld.toml";

/// The whole configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this node.
    pub node: NodeName,
    /// Name of the cluster, a part of every target's iSCSI name.
    pub cluster: ClusterName,
    /// Directory of the node's own records: volumes, access, reservations, events. Never in the pool.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Disks and memory of the pool.
    pub pool: PoolConfig,
    /// The other node and the witness; a single node has none.
    #[serde(default)]
    pub pair: Option<PeerSettings>,
    /// The iSCSI target.
    #[serde(default)]
    pub iscsi: IscsiConfig,
    /// The management service.
    #[serde(default)]
    pub management: ManagementConfig,
    /// Console and metrics.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// The event log.
    #[serde(default)]
    pub events: EventsConfig,
    /// Stopping.
    #[serde(default)]
    pub shutdown: ShutdownConfig,
    /// Addresses that the node which serves holds, for hosts that know one path only.
    #[serde(default)]
    pub floating: Option<FloatingConfig>,
    /// Commands before and after snapshots.
    #[serde(default)]
    pub snapshots: SnapshotsConfig,
    /// The UPS of this node's room.
    #[serde(default)]
    pub ups: Option<UpsConfig>,
    /// The site's directory, whose users may sign in to the console.
    #[serde(default)]
    pub ldap: Option<LdapConfig>,
}

/// `[pool]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// Block devices or files.
    pub disks: Vec<PathBuf>,
    /// How disk I/O is done.
    #[serde(default)]
    pub engine: EngineChoice,
    /// How long the data thread keeps looking for completions before it sleeps while I/O is in
    /// flight, in microseconds; 0 never spins.
    #[serde(default = "default_spin_us")]
    pub spin_us: Bounded<0, 1000>,
    /// How full the pool is when hosts are warned, in percent of its capacity.
    #[serde(default = "default_soft_threshold_percent")]
    pub soft_threshold_percent: Bounded<1, 99>,
    /// Tells the disks which segments are free.
    #[serde(default)]
    pub discard: bool,
    /// How often all of the pool is read and verified, in days; 0 only when asked.
    #[serde(default = "default_scrub_interval_days")]
    pub scrub_interval_days: Bounded<0, 365>,
    /// Takes disks that are not to be trusted out of service while a spare waits and all others are well.
    #[serde(default = "default_retire_failing_disks")]
    pub retire_failing_disks: bool,
    /// Memory for the map of what lies where.
    #[serde(default = "default_map_memory")]
    pub map_memory: ByteSize,
}

/// How disk I/O is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// io_uring where the kernel permits it, else threads.
    #[default]
    Auto,
    /// io_uring, or refuse to start.
    IoUring,
    /// A small pool of threads.
    Threads,
}

/// `[iscsi]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IscsiConfig {
    /// Addresses and ports to listen on.
    pub portals: Vec<SocketAddr>,
    /// Commands that a session may have outstanding.
    pub queue_depth: Bounded<1, 1024>,
    /// Header digests.
    pub header_digest: Digest,
    /// Data digests.
    pub data_digest: Digest,
    /// Refuses initiators for which no CHAP secret is set.
    pub require_chap: bool,
    /// Sessions in all.
    pub max_sessions: Bounded<1, 65536>,
    /// Connections that have not finished their login yet.
    pub max_logins_in_progress: Bounded<1, 65536>,
    /// How long a login may take.
    pub login_timeout_s: Bounded<1, 600>,
    /// Quiet time after which an initiator is pinged.
    pub keepalive_interval_s: Bounded<1, 3600>,
    /// How long it may take to answer.
    pub keepalive_timeout_s: Bounded<1, 3600>,
    /// Memory for data that initiators write, all sessions together.
    pub memory: ByteSize,
    /// Portals at which a login is sent to the other node when that serves the volume: for hosts without multipath.
    pub redirecting_portals: Vec<SocketAddr>,
    /// The portal of the other node that it is sent to.
    pub redirect_to: Option<SocketAddr>,
    /// TCP congestion control of the connections; the system's default when absent.
    pub congestion_control: Option<String>,
}

/// How CRC-32C digests (RFC 7143 section 13.1) are agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Digest {
    /// As the initiator likes best.
    Allow,
    /// Wherever the initiator can.
    Prefer,
    /// Never.
    Refuse,
}

/// `[management]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManagementConfig {
    /// Socket file of the gRPC service for the machine's own administrator.
    pub socket: PathBuf,
}

/// `[console]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// Addresses and ports of the console, the REST API and `/metrics`; none switches them off.
    pub listen: Vec<SocketAddr>,
    /// Whether it is protected by TLS.
    pub tls: bool,
    /// The site's certificate with those that it needs besides, as PEM; the node makes its own when absent.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Who may read `/metrics` and `/health` without signing in.
    pub open_metrics: OpenMetrics,
}

/// Who may read `/metrics` and `/health` without signing in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenMetrics {
    /// Whoever is on this machine.
    Local,
    /// Whoever reaches the port.
    Everyone,
    /// Nobody.
    Nobody,
}

/// `[events]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// How many of the newest events are kept.
    pub keep: Bounded<100, 1_000_000>,
    /// Where they are sent besides.
    pub syslog: Vec<Receiver>,
}

/// `[shutdown]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownConfig {
    /// How long initiators get to log out and commands to end before connections are closed.
    pub drain_timeout_ms: Bounded<0, 60_000>,
}

impl Default for IscsiConfig {
    fn default() -> Self {
        Self {
            portals: vec![SocketAddr::from(([0u16; 8], 3260))],
            queue_depth: Bounded(128),
            header_digest: Digest::Allow,
            data_digest: Digest::Allow,
            require_chap: false,
            max_sessions: Bounded(1024),
            max_logins_in_progress: Bounded(64),
            login_timeout_s: Bounded(15),
            keepalive_interval_s: Bounded(15),
            keepalive_timeout_s: Bounded(15),
            memory: ByteSize(256 << 20),
            redirecting_portals: Vec::new(),
            redirect_to: None,
            congestion_control: None,
        }
    }
}

impl Default for ManagementConfig {
    fn default() -> Self {
        Self { socket: PathBuf::from(crate::rpc::MANAGEMENT_SOCKET) }
    }
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 3262))],
            tls: true,
            certificate: None,
            key: None,
            open_metrics: OpenMetrics::Local,
        }
    }
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self { keep: Bounded(10_000), syslog: Vec::new() }
    }
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { drain_timeout_ms: Bounded(700) }
    }
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/gemel")
}

fn default_scrub_interval_days() -> Bounded<0, 365> {
    Bounded(7)
}

fn default_retire_failing_disks() -> bool {
    true
}

fn default_map_memory() -> ByteSize {
    ByteSize(crate::store::DEFAULT_MAP_MEMORY_BYTES)
}

fn default_soft_threshold_percent() -> Bounded<1, 99> {
    Bounded(80)
}

fn default_spin_us() -> Bounded<0, 1000> {
    Bounded(50)
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {path}: {source}; name another place with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is not a configuration; the source names line and key.
    #[error("in the configuration {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, key and cause.
        source: Box<toml::de::Error>,
    },
    /// Each value is possible, but not all of them together.
    #[error("in the configuration {path}: {reason}")]
    Conflict {
        /// The file.
        path: PathBuf,
        /// What contradicts what.
        reason: String,
    },
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of the file at `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        match config.conflict() {
            Some(reason) => Err(ConfigError::Conflict { path: path.to_owned(), reason }),
            None => Ok(config),
        }
    }

    fn conflict(&self) -> Option<String> {
        if self.pool.disks.is_empty() {
            return Some("pool.disks is empty: name the disks of the pool".to_owned());
        }
        if self.iscsi.portals.is_empty() {
            return Some("iscsi.portals is empty: name at least one ADDRESS:PORT".to_owned());
        }
        if self.iscsi.redirecting_portals.is_empty() != self.iscsi.redirect_to.is_none() {
            return Some(
                "iscsi.redirecting_portals and iscsi.redirect_to belong together: which portals send logins on, and \
                 where to"
                    .to_owned(),
            );
        }
        let console = &self.console;
        if console.certificate.is_some() != console.key.is_some() {
            return Some("console.certificate and console.key belong together".to_owned());
        }
        if console.certificate.is_some() && !console.tls {
            return Some("console.certificate is of no use with console.tls = false".to_owned());
        }
        if self.floating.is_some() && self.pair.is_none() {
            return Some("floating: a single node has nobody to hand its addresses to".to_owned());
        }
        if !self.management.socket.is_absolute() {
            return Some("management.socket is not an absolute path".to_owned());
        }
        let disks = &self.pool.disks;
        if let Some(twice) = first_repeated(disks.iter()) {
            return Some(format!("pool.disks names {} twice", twice.display()));
        }
        let conflict = self.pair.as_ref().and_then(|pair| pair.conflict(&self.node, SeatKind::Node));
        if let Some(reason) = conflict {
            return Some(format!("pair: {reason}"));
        }
        let portals = self.iscsi.portals.iter();
        let mirror = self.pair.as_ref().map_or_else(Vec::new, PeerSettings::mirror_listen);
        let members = self.pair.iter().flat_map(|pair| &pair.listen);
        let others = self.console.listen.iter().chain(members).chain(&mirror);
        first_repeated(portals.chain(others).filter(|address| address.port() != 0))
            .map(|address| format!("{address} is to be listened on twice"))
    }

    /// How long a login may take.
    #[must_use]
    pub fn login_timeout(&self) -> Duration {
        Duration::from_secs(self.iscsi.login_timeout_s.get())
    }

    /// How long a stop waits for initiators and commands.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.shutdown.drain_timeout_ms.get())
    }
}

fn first_repeated<'a, T: Ord>(items: impl Iterator<Item = &'a T>) -> Option<&'a T> {
    let mut seen = std::collections::BTreeSet::new();
    items.into_iter().find(|item| !seen.insert(*item))
}

/// A number of bytes, written like `512M`, `10G` or `2T` (powers of two), or as a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct ByteSize(pub u64);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a size like \"512M\" or a number of bytes")]
enum SizeText {
    Number(u64),
    Text(String),
}

impl TryFrom<SizeText> for ByteSize {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Self, String> {
        match text {
            SizeText::Number(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => {
                crate::rpc::size::parse(&text).map(Self).map_err(|error| error.to_string())
            }
        }
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Bounded<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Bounded<MIN, MAX> {
    /// A number within the bounds, as a default is.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        assert!(MIN <= number && number <= MAX);
        Self(number)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> TryFrom<i64> for Bounded<MIN, MAX> {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match u64::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(format!("{number} is not between {MIN} and {MAX}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "node = \"a\"\ncluster = \"demo\"\n[pool]\ndisks = [\"/dev/x\", \"/dev/y\"]\n";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("gemeld.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_documented_example_is_a_configuration_and_shows_the_defaults() {
        let shown = parse(include_str!("../../deploy/gemeld.toml")).unwrap();
        let smallest = parse(SMALLEST).unwrap();
        assert_eq!(shown.state_dir, smallest.state_dir);
        assert_eq!(shown.pool.spin_us, smallest.pool.spin_us);
        assert_eq!(shown.pool.soft_threshold_percent, smallest.pool.soft_threshold_percent);
        assert_eq!(shown.pool.scrub_interval_days, smallest.pool.scrub_interval_days);
        assert_eq!(shown.pool.engine, smallest.pool.engine);
        assert_eq!(shown.pool.discard, smallest.pool.discard);
        let text = |config: &Config| {
            let Config { iscsi, management, console, events, snapshots, .. } = config;
            format!("{iscsi:?}{management:?}{console:?}{events:?}{snapshots:?}")
        };
        assert_eq!(text(&shown), text(&smallest));
        assert_eq!(shown.shutdown.drain_timeout_ms, smallest.shutdown.drain_timeout_ms);
    }

    #[test]
    fn the_documented_directory_is_one() {
        let example = include_str!("../../deploy/gemeld.toml");
        let (single, rest) = example.split_once("# [ldap]\n").unwrap();
        let section = rest.lines().map_while(|line| line.strip_prefix('#')).map(str::trim_start);
        let lines = section.filter(|line| line.contains(" = ")).collect::<Vec<_>>();
        assert!(lines.len() >= 7, "{lines:?}");
        assert!(parse(&format!("{single}[ldap]\n{}\n", lines.join("\n"))).unwrap().ldap.is_some());
    }

    #[test]
    fn the_documented_pair_is_one() {
        let example = include_str!("../../deploy/gemeld.toml");
        let (single, pair) = example.split_once("# [pair]\n").unwrap();
        let pair = pair.lines().map(|line| line.strip_prefix("# ").unwrap_or(line.trim_start_matches('#')));
        let text = format!("{single}[pair]\n{}\n", pair.collect::<Vec<_>>().join("\n"));
        let config = parse(&text).unwrap().pair.unwrap();
        assert_eq!((config.peers.len(), config.listen.len()), (2, 1));
        let unsaid = PeerSettings { mirror_listen: Vec::new(), ..config.clone() };
        assert_eq!(config.mirror_listen, unsaid.mirror_listen(), "the default is shown");
        let unsaid = crate::peer::settings::PeerAddress { mirror: Vec::new(), ..config.peers[0].clone() };
        assert_eq!(config.peers[0].mirror_addresses(), unsaid.mirror_addresses(), "the default is shown");
        let error = parse(&text.replace("192.0.2.1:3263", "192.0.2.1:3261")).unwrap_err();
        assert!(error.contains("192.0.2.1:3261 is to be listened on twice"), "{error}");
        let error = parse(&text.replace("name = \"b\"", "name = \"a\"")).unwrap_err();
        assert!(error.contains("pair: two members have the same name"), "{error}");
    }

    #[test]
    fn the_documented_ups_is_one_and_shows_the_defaults() {
        let example = include_str!("../../deploy/gemeld.toml");
        let (_, ups) = example.split_once("# [ups]\n").unwrap();
        let lines = ups.lines().map_while(|line| line.strip_prefix('#')).map(str::trim_start);
        let ups = format!("[ups]\n{}\n", lines.collect::<Vec<_>>().join("\n"));
        let shown = parse(&format!("{SMALLEST}{ups}")).unwrap().ups.unwrap();
        let unsaid = format!("{SMALLEST}[ups]\nname = \"ups@localhost\"\n");
        let mut unsaid = parse(&unsaid).unwrap().ups.unwrap();
        unsaid.warn_hosts.clone_from(&shown.warn_hosts);
        assert_eq!(format!("{shown:?}"), format!("{unsaid:?}"));
        let error = parse(&format!("{SMALLEST}[ups]\nname = \"ups\"\n")).unwrap_err();
        assert!(error.contains("NAME@HOST"), "{error}");
    }

    #[test]
    fn an_error_names_the_line_and_what_is_wrong() {
        let cases = [
            (format!("{SMALLEST}colour = 1\n"), "line 5", "unknown field `colour`"),
            (SMALLEST.replace("\"a\"", "\"A b\""), "line 1", "node"),
            (SMALLEST.replace("cluster", "#"), "", "missing field `cluster`"),
            (format!("{SMALLEST}[iscsi]\nmemory = \"12Q\"\n"), "line 6", "12Q"),
            (format!("{SMALLEST}spin_us = 5000\n"), "line 5", "between 0 and 1000"),
            (format!("{SMALLEST}engine = \"fast\"\n"), "line 5", "`auto`, `io_uring`, `threads`"),
            (format!("{SMALLEST}[iscsi]\nportals = [\"here\"]\n"), "line 6", "socket address"),
            (
                format!("{SMALLEST}[management]\nlisten = [\"0.0.0.0:1\"]\n"),
                "line 6",
                "unknown field `listen`",
            ),
            (SMALLEST.replace("= \"a\"", "= "), "line 1", "line 1"),
        ];
        for (text, line, what) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(line) && error.contains(what), "{text}\n-> {error}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let cases = [
            (SMALLEST.replace("/dev/y", "/dev/x"), "twice"),
            (SMALLEST.replace("\"/dev/x\", \"/dev/y\"", ""), "empty"),
            (format!("{SMALLEST}[console]\nlisten = [\"[::]:3260\"]\n"), "listened on twice"),
            (format!("{SMALLEST}[management]\nsocket = \"gemeld.sock\"\n"), "absolute"),
            (format!("{SMALLEST}[console]\ncertificate = \"/x\"\n"), "belong together"),
            (format!("{SMALLEST}[console]\ntls = false\ncertificate = \"/x\"\nkey = \"/y\"\n"), "of no use"),
            (format!("{SMALLEST}[iscsi]\nportals = []\n"), "iscsi.portals"),
        ];
        for (text, what) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(what), "{text}\n-> {error}");
        }
    }
}
