//! `gemel snapshot`: its grammar, and what it asks of the node.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use tonic::transport::Channel;

use super::commands::Output;
use super::error::CliError;
use super::image::DiffArguments;
use super::{image, show};
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{
    CloneVolumeRequest, CreateSnapshotGroupRequest, CreateSnapshotRequest, DeleteSnapshotRequest,
    ListSnapshotsRequest, RollBackSnapshotRequest, SetSnapshotScheduleRequest, SnapshotSchedule,
};

/// `gemel snapshot`
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Take a snapshot of a volume: its contents as they are now. Or of several volumes, all at the same moment.
    Create {
        /// The volume, and the snapshot's name; without one it is called by the time. Several volumes have to be served by
        /// one node; their snapshots have the name that is given with the last one.
        #[arg(value_name = "VOLUME[@NAME]", required = true)]
        snapshots: Vec<String>,
        /// Nobody can delete it before that day (2027-01-31) or time (2027-01-31T12:00:00Z), in UTC.
        #[arg(long, value_name = "DATE", value_parser = date)]
        protect_until: Option<SystemTime>,
        /// Without the commands before and after snapshots that the node's configuration has: as after a power failure.
        #[arg(long)]
        crash_consistent: bool,
    },
    /// List the snapshots of a volume, or of all.
    List {
        /// The volume.
        volume: Option<String>,
    },
    /// Delete a snapshot.
    Delete {
        /// Which.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: SnapshotName,
    },
    /// Have a volume be what it was at a snapshot, at once. What it is now becomes another snapshot, so that this can be undone.
    Rollback {
        /// Which.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: SnapshotName,
        /// The volume's name once more.
        #[arg(long, value_name = "VOLUME")]
        confirm: String,
        /// Although hosts are logged in to it, which do not expect that.
        #[arg(long)]
        force: bool,
    },
    /// List the ranges in which two snapshots of a volume may differ: offset and length in bytes.
    Diff(DiffArguments),
    /// Have snapshots of a volume taken by themselves, and the oldest of these deleted. Others are left alone.
    Schedule {
        /// The volume.
        volume: String,
        /// How often, such as 15min, 1h or 1day.
        #[arg(long, value_parser = humantime::parse_duration, required_unless_present = "off")]
        every: Option<Duration>,
        /// How many are kept.
        #[arg(long, required_unless_present = "off")]
        keep: Option<u32>,
        /// No more; those that there are stay.
        #[arg(long, conflicts_with_all = ["every", "keep"])]
        off: bool,
    },
}

/// `gemel clone`
#[derive(Debug, Subcommand)]
pub enum CloneVerb {
    /// Make a volume that begins as another one is now, or as a snapshot shows it, at once and without copying.
    Create(CloneArguments),
}

/// What a clone is made of, and called.
#[derive(Debug, Args)]
pub struct CloneArguments {
    /// The snapshot; of a volume alone one is taken, called clone-NAME.
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    source: String,
    /// Name of the new volume.
    name: String,
}

impl CloneArguments {
    /// As a request.
    pub(super) fn request(self) -> CloneVolumeRequest {
        let Self { source, name } = self;
        let (volume, snapshot) = source.split_once('@').unwrap_or((&source, ""));
        CloneVolumeRequest { volume: volume.to_owned(), snapshot: snapshot.to_owned(), name }
    }
}

/// A snapshot, as VOLUME@NAME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotName {
    /// The volume.
    pub volume: String,
    /// The snapshot's name in it.
    pub name: String,
}

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('@') {
            Some((volume, name)) if !volume.is_empty() && !name.is_empty() => {
                Ok(Self { volume: volume.to_owned(), name: name.to_owned() })
            }
            _ => Err("a snapshot is named VOLUME@NAME".to_owned()),
        }
    }
}

/// Asks the node, and prints what it says.
pub(super) async fn run(
    client: &mut ManagementClient<Channel>,
    output: Output,
    verb: SnapshotVerb,
) -> Result<(), CliError> {
    match verb {
        SnapshotVerb::Create { mut snapshots, protect_until, crash_consistent } => {
            let last = snapshots.pop().unwrap_or_default();
            let (volume, name) = last.split_once('@').unwrap_or((&last, ""));
            let since_epoch =
                |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let protected_until_ms =
                protect_until.map(|time| u64::try_from(since_epoch(time).as_millis()).unwrap_or(u64::MAX));
            let (volume, name) = (volume.to_owned(), name.to_owned());
            if snapshots.iter().any(|volume| volume.contains('@')) {
                return Err(CliError::Usage(
                    "the snapshots of several volumes have one name, which is given with the last one: VOLUME VOLUME@NAME"
                        .to_owned(),
                ));
            }
            if !snapshots.is_empty() {
                snapshots.push(volume);
                let volumes = snapshots;
                let request =
                    CreateSnapshotGroupRequest { volumes, name, protected_until_ms, crash_consistent };
                let taken = client.create_snapshot_group(request).await?.into_inner();
                return output.list(&taken.snapshots, show::snapshots);
            }
            let request = CreateSnapshotRequest { volume, name, protected_until_ms, crash_consistent };
            let taken = client.create_snapshot(request).await?.into_inner();
            output.one(&taken, |taken| show::snapshots(std::slice::from_ref(taken)))
        }
        SnapshotVerb::List { volume } => {
            let request = ListSnapshotsRequest { volume: volume.unwrap_or_default() };
            let listed = client.list_snapshots(request).await?.into_inner();
            output.list(&listed.snapshots, show::snapshots)
        }
        SnapshotVerb::Delete { snapshot: SnapshotName { volume, name } } => {
            let shown = format!("{volume}@{name}");
            client.delete_snapshot(DeleteSnapshotRequest { volume, name }).await?;
            output.done("deleted", &shown)
        }
        SnapshotVerb::Rollback { snapshot: SnapshotName { volume, name }, confirm, force } => {
            if confirm != volume {
                return Err(CliError::Usage(format!("--confirm must be {volume}: nothing was done")));
            }
            let request = RollBackSnapshotRequest { volume, name: name.clone(), force };
            let kept = client.roll_back_snapshot(request).await?.into_inner();
            output.one(&kept, |kept| {
                format!(
                    "volume {} is what it was at {name}; what it was before that is {}@{}\n",
                    kept.volume, kept.volume, kept.name
                )
            })
        }
        SnapshotVerb::Diff(arguments) => image::diff(client, output, arguments).await,
        SnapshotVerb::Schedule { volume, every, keep, off: _ } => {
            let schedule = every
                .zip(keep)
                .map(|(every, keep)| SnapshotSchedule { every_seconds: every.as_secs(), keep });
            let request = SetSnapshotScheduleRequest { volume, schedule };
            let volume = client.set_snapshot_schedule(request).await?.into_inner();
            output.one(&volume, show::volume)
        }
    }
}

fn date(text: &str) -> Result<SystemTime, String> {
    let is_day = text.len() == "2027-01-31".len();
    let text = if is_day { format!("{text}T00:00:00Z") } else { text.to_owned() };
    humantime::parse_rfc3339_weak(&text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_its_beginning() {
        assert_eq!(date("2027-01-31"), date("2027-01-31T00:00:00Z"));
        assert!(date("2027-01-31").is_ok() && date("tomorrow").is_err());
    }

    #[test]
    fn a_snapshot_has_a_volume_and_a_name() {
        let expected = SnapshotName { volume: "v".to_owned(), name: "a:b".to_owned() };
        assert_eq!("v@a:b".parse(), Ok(expected));
        assert!(["v", "v@", "@a"].iter().all(|text| text.parse::<SnapshotName>().is_err()));
    }
}
