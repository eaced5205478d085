//! `gemel support bundle`: everything that a helper needs to see what is the matter, in one file, and no secrets.
//!
//! What the nodes say comes without secrets already. What this machine says besides (its configuration, its log) is looked
//! through: whatever has the form of a token, a password's hash, a link's key or a private key is taken out. What cannot be
//! had is noted in its place, so a bundle can be made of a cluster in any state.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use serde::Serialize;
use tokio::process::Command;
use tonic::transport::Channel;

use super::error::CliError;
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{
    GetClusterRequest, GetPoolRequest, GetStatusRequest, ListAccessRequest, ListAlertsRequest,
    ListDisksRequest, ListSnapshotsRequest, ListUsersRequest, StreamEventsRequest,
};

/// `gemel support`
#[derive(Debug, Subcommand)]
pub enum SupportVerb {
    /// Collect what a helper needs, without secrets: how things are, events, and of this machine configuration and log.
    /// Best run on both nodes.
    Bundle {
        /// The file, a compressed tar archive; gemel-support-TIME.tar.gz when not given.
        file: Option<PathBuf>,
    },
}

/// What was made.
#[derive(Debug, Serialize)]
pub struct Made {
    file: PathBuf,
    parts: Vec<String>,
    /// Of which there is nothing but the reason why.
    missing: Vec<String>,
}

impl Made {
    /// For people.
    pub fn text(&self) -> String {
        let missing = match self.missing.as_slice() {
            [] => String::new(),
            missing => format!("not to be had, as noted in it: {}\n", missing.join(", ")),
        };
        format!("{} has {} parts, without secrets\n{missing}", self.file.display(), self.parts.len())
    }
}

/// A bundle while it is put together.
struct Bundle {
    folder: PathBuf,
    parts: Vec<String>,
    missing: Vec<String>,
}

/// Makes a bundle. The node may be out of reach: then it says why, and has what this machine knows.
pub async fn run(
    connected: Result<ManagementClient<Channel>, CliError>,
    file: Option<PathBuf>,
) -> Result<Made, CliError> {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "");
    let name = format!("gemel-support-{time}");
    let file = file.unwrap_or_else(|| format!("{name}.tar.gz").into());
    let place = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    let folder = place.join(&name);
    let failed =
        |what: &str, error: &dyn std::error::Error| CliError::Local(format!("cannot {what}: {error}"));
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(&folder).map_err(|error| failed("make a folder", &error))?;
    let mut bundle = Bundle { folder, parts: Vec::new(), missing: Vec::new() };
    let gathered = bundle.gather(connected).await;
    let packed = match gathered {
        Ok(()) => pack(&place, &name, &file).await,
        Err(error) => Err(error),
    };
    // What is left in the folder for temporary files is nobody else's to read.
    let _ = fs::remove_dir_all(&place);
    packed?;
    Ok(Made { file, parts: bundle.parts, missing: bundle.missing })
}

impl Bundle {
    async fn gather(
        &mut self,
        connected: Result<ManagementClient<Channel>, CliError>,
    ) -> Result<(), CliError> {
        self.add("version.txt", &format!("gemel {}\n", env!("CARGO_PKG_VERSION")))?;
        match connected {
            Ok(mut client) => self.add_cluster(&mut client).await?,
            Err(error) => self.add_missing("cluster", &error.to_string())?,
        }
        for path in ["/etc/gemel/gemeld.toml", "/etc/gemel/witness.toml"] {
            // A machine has one of them, or none.
            if let Ok(text) = fs::read_to_string(path) {
                let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.add(&name, &text)?;
            }
        }
        for (name, words) in COMMANDS {
            match output(words).await {
                Ok(text) => self.add(name, &text)?,
                Err(reason) => self.add_missing(name, &reason)?,
            }
        }
        Ok(())
    }

    async fn add_cluster(&mut self, client: &mut ManagementClient<Channel>) -> Result<(), CliError> {
        let status = client.get_status(GetStatusRequest {}).await.map(tonic::Response::into_inner);
        let nodes: Vec<String> =
            status.iter().flat_map(|status| &status.nodes).map(|node| node.name.clone()).collect();
        self.add_answer("status.json", status)?;
        let cluster = client.get_cluster(GetClusterRequest {}).await;
        self.add_answer("cluster.json", cluster.map(tonic::Response::into_inner))?;
        let disks = client.list_disks(ListDisksRequest {}).await;
        self.add_answer("disks.json", disks.map(tonic::Response::into_inner))?;
        for node in nodes {
            let pool = client.get_pool(GetPoolRequest { node: node.clone() }).await;
            self.add_answer(&format!("pool-{node}.json"), pool.map(tonic::Response::into_inner))?;
        }
        let snapshots = client.list_snapshots(ListSnapshotsRequest::default()).await;
        self.add_answer("snapshots.json", snapshots.map(tonic::Response::into_inner))?;
        let access = client.list_access(ListAccessRequest::default()).await;
        self.add_answer("access.json", access.map(tonic::Response::into_inner))?;
        let alerts = client.list_alerts(ListAlertsRequest {}).await;
        self.add_answer("alerts.json", alerts.map(tonic::Response::into_inner))?;
        let users = client.list_users(ListUsersRequest {}).await;
        self.add_answer("users.json", users.map(tonic::Response::into_inner))?;
        let events = events(client).await;
        match events {
            Ok(events) => self.add("events.txt", &events),
            Err(status) => self.add_missing("events.txt", status.message()),
        }
    }

    fn add_answer<T: Serialize>(
        &mut self,
        name: &str,
        answer: Result<T, tonic::Status>,
    ) -> Result<(), CliError> {
        match answer {
            Ok(answer) => {
                let text = serde_json::to_string_pretty(&answer).unwrap_or_else(|error| error.to_string());
                self.add(name, &text)
            }
            Err(status) => self.add_missing(name, status.message()),
        }
    }

    fn add_missing(&mut self, name: &str, reason: &str) -> Result<(), CliError> {
        self.missing.push(name.to_owned());
        self.add(&format!("{name}.missing"), reason)
    }

    fn add(&mut self, name: &str, text: &str) -> Result<(), CliError> {
        let path = self.folder.join(name);
        fs::write(&path, without_secrets(text))
            .map_err(|error| CliError::Local(format!("cannot write {}: {error}", path.display())))?;
        self.parts.push(name.to_owned());
        Ok(())
    }
}

async fn events(client: &mut ManagementClient<Channel>) -> Result<String, tonic::Status> {
    let request = StreamEventsRequest { limit: EVENTS, follow: false };
    let mut events = client.stream_events(request).await?.into_inner();
    let mut text = String::new();
    while let Some(event) = events.message().await? {
        text += &format!("{} {} {} {}\n", event.time, event.kind, event.message, event.evidence.join(" "));
    }
    Ok(text)
}

/// What a command of this machine says.
async fn output(words: &[&str]) -> Result<String, String> {
    let [program, arguments @ ..] = words else { return Err("no command".to_owned()) };
    let running = Command::new(program).args(arguments).kill_on_drop(true).output();
    match tokio::time::timeout(LONGEST_COMMAND, running).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it took too long".to_owned()),
    }
}

async fn pack(place: &Path, name: &str, file: &Path) -> Result<(), CliError> {
    let archive = std::path::absolute(file).map_err(|error| CliError::Local(error.to_string()))?;
    let packed = Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(place).arg(name).output().await;
    match packed {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(CliError::Local(format!("cannot write {}: {}", file.display(), reason.trim())))
        }
        Err(error) => Err(CliError::Local(format!("cannot run tar: {error}"))),
    }
}

/// The text without what has the form of a secret.
fn without_secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut is_in_key = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
            is_in_key = true;
        }
        match is_in_key {
            true => clean.push_str(if line.contains("-----BEGIN") { WITHHELD_LINE } else { "" }),
            false => clean.push_str(&line_without_secrets(line)),
        }
        if line.contains("-----END") {
            is_in_key = false;
        }
    }
    clean
}

fn line_without_secrets(line: &str) -> String {
    let is_setting = line.split_once('=').is_some_and(|(name, _)| {
        let name = name.trim().to_ascii_lowercase();
        ["password", "secret", "token"].iter().any(|word| name.ends_with(word))
    });
    if is_setting && !line.trim_start().starts_with('#') {
        return format!("{}= {WITHHELD_LINE}", line.split('=').next().unwrap_or_default());
    }
    let is_end = |letter: char| letter.is_whitespace() || "\"'`;<>()&".contains(letter);
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((at, length)) = next_word(rest, is_end) {
        let word = &rest[at..at + length];
        clean.push_str(&rest[..at]);
        clean.push_str(if is_secret(word) { WITHHELD } else { word });
        rest = &rest[at + length..];
    }
    clean + rest
}

/// Place and length of the first word.
fn next_word(text: &str, is_end: impl Fn(char) -> bool) -> Option<(usize, usize)> {
    let at = text.find(|letter| !is_end(letter))?;
    let length = text[at..].find(&is_end).unwrap_or(text.len() - at);
    Some((at, length))
}

fn is_secret(word: &str) -> bool {
    let is_token = word.contains("gemel-join-") || word.contains("$argon2");
    // Keys of links and tokens are 64 hexadecimal digits; so are digests, which nobody misses.
    let digits = word.split(|letter: char| !letter.is_ascii_hexdigit()).map(str::len).max().unwrap_or(0);
    is_token || digits >= 64 && (word.starts_with("gemel_") || word.starts_with("key="))
}

const WITHHELD: &str = "(withheld)";
const WITHHELD_LINE: &str = "(withheld)\n";
/// Events that are asked for.
const EVENTS: u32 = 10_000;
/// How long a command of this machine may take.
const LONGEST_COMMAND: Duration = Duration::from_secs(30);
/// What is asked of this machine.
const COMMANDS: &[(&str, &[&str])] = &[
    (
        "log.txt",
        &[
            "journalctl",
            "-u",
            "gemeld",
            "-u",
            "gemel-witness",
            "-n",
            "20000",
            "--no-pager",
            "-o",
            "short-iso",
        ],
    ),
    ("services.txt", &["systemctl", "status", "gemeld", "gemel-witness", "--no-pager", "--lines=0"]),
    ("packages.txt", &["dpkg", "-l", "gemel*"]),
    ("system.txt", &["uname", "-a"]),
    ("disks.txt", &["lsblk", "-o", "NAME,SIZE,TYPE,MODEL,SERIAL,ROTA,MOUNTPOINT"]),
    ("file-systems.txt", &["df", "-h"]),
    ("memory.txt", &["cat", "/proc/meminfo"]),
    ("network.txt", &["ip", "-s", "address"]),
    ("kernel-log.txt", &["dmesg", "--ctime"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_taken_out_and_the_rest_stays() {
        let key = "0123456789abcdef".repeat(4);
        let text = format!(
            "joined with gemel-join-1-abcdef.\nhash $argon2id$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA end\n\
             https://a:3262/welcome?user=anne&key={key}\ntoken \"gemel_anne_x_{key}\"\n\
             -----BEGIN PRIVATE KEY-----\nMIIprecious\n-----END PRIVATE KEY-----\n\
             password = \"hunter22222\"\n# password = not one\ndata {key} is a digest\n\
             -----BEGIN CERTIFICATE-----\nMIIpublic\n-----END CERTIFICATE-----\nlast line"
        );
        let clean = without_secrets(&text);
        for secret in
            ["abcdef.", "aGFzaA", "MIIprecious", "hunter2", &format!("key={key}"), &format!("x_{key}")]
        {
            assert!(!clean.contains(secret), "{secret} in {clean}");
        }
        for kept in [
            "joined with",
            " end\n",
            "user=anne",
            "# password = not one",
            "is a digest",
            "MIIpublic",
            "last line",
        ] {
            assert!(clean.contains(kept), "{kept} in {clean}");
        }
    }
}
