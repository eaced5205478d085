//! `gemel volume export` and `import`, and `gemel snapshot diff`: the contents of volumes as files and streams.
//!
//! A node sends ranges and their contents, as they are at a snapshot, and takes them; what becomes of them here, in which
//! format, is decided here. Memory is bounded, whatever the size of the volume.

mod changes;
mod export;
mod import;
mod pieces;
mod progress;
pub mod qcow2;

use std::time::SystemTime;

use clap::{Args, ValueEnum};
use tonic::Code;
use tonic::transport::Channel;

use super::error::CliError;
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{CreateSnapshotRequest, DeleteSnapshotRequest};
pub(super) use export::{ExportArguments, diff, export};
pub(super) use import::{ImportArguments, import};

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    /// The bytes of the volume, with holes where it has none.
    Raw,
    /// An image of QEMU, version 3.
    Qcow2,
}

impl ImageFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// `gemel snapshot diff`
#[derive(Debug, Args)]
pub struct DiffArguments {
    /// The older one.
    #[arg(value_name = "VOLUME@OLDER")]
    pub older: super::snapshot::SnapshotName,
    /// The newer one, of the same volume; without it, the volume as it is now.
    #[arg(value_name = "VOLUME@NEWER")]
    pub newer: Option<super::snapshot::SnapshotName>,
}

/// A snapshot for the time that something takes.
struct Temporary {
    volume: String,
    name: String,
}

impl Temporary {
    async fn take(
        client: &mut ManagementClient<Channel>,
        volume: &str,
        what: &str,
    ) -> Result<Self, CliError> {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        let now = crate::rpc::time::show_seconds(now_ms);
        // Two at a time have names of their own.
        let name = format!("{what}-{now}-{}", std::process::id());
        let request = CreateSnapshotRequest {
            volume: volume.to_owned(),
            name: name.clone(),
            protected_until_ms: None,
            // A snapshot that hosts were asked for is exported by its name.
            crash_consistent: true,
        };
        client.create_snapshot(request).await?;
        Ok(Self { volume: volume.to_owned(), name })
    }

    async fn drop(self, client: &mut ManagementClient<Channel>) -> Result<(), CliError> {
        let Self { volume, name } = self;
        match client.delete_snapshot(DeleteSnapshotRequest { volume, name }).await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            deleted => Ok(deleted.map(drop)?),
        }
    }
}

/// Something about a file on this machine.
fn local(what: &str, file: &std::path::Path) -> impl Fn(std::io::Error) -> CliError {
    let text = format!("cannot {what} {}", file.display());
    move |error| CliError::Local(format!("{text}: {error}"))
}
