//! `gemel cluster backup` and `restore`: the cluster without its data.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::args::RestoreArguments;
use super::disks;
use super::init::{self, Found, Made};
use super::places::{Places, failed};
use crate::cli::error::CliError;
use crate::cluster::quorum::SeatKind;
use crate::peer::backup::Backup;

/// Keeps a backup in a new file that its owner alone may read.
///
/// # Errors
/// [`CliError::Local`], also when there is a file already.
pub fn keep(path: &Path, backup: &str) -> Result<(), CliError> {
    let write = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(backup.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| failed("write", path, &error))
}

/// Makes the cluster of a backup anew, on the first of its new nodes.
///
/// # Errors
/// [`CliError`]; then there is no configuration, and the same command may be given again.
pub fn restore(arguments: &RestoreArguments) -> Result<Made, CliError> {
    let RestoreArguments { file, name, local } = arguments;
    let text = std::fs::read_to_string(file).map_err(|error| failed("read", file, &error))?;
    let unusable = |error: &dyn std::error::Error| CliError::Usage(format!("{}: {error}", file.display()));
    let backup = Backup::decode(&text).map_err(|error| unusable(&error))?;
    disks::check(&local.disk)?;
    let (own, peers): (Vec<_>, Vec<_>) =
        backup.members.iter().cloned().partition(|member| member.name == *name && !member.witness);
    let Some(own) = own.into_iter().next() else {
        let nodes = backup.members.iter().filter(|member| !member.witness);
        let nodes: Vec<_> = nodes.map(|member| member.name.to_string()).collect();
        let reason = format!("the backup has no node {name}: --name is one of {}", nodes.join(", "));
        return Err(CliError::Usage(reason));
    };
    let places = Places::new(SeatKind::Node, local)?;
    let state = backup.state().map_err(|error| unusable(&error))?;
    let authority = backup.authority().map_err(|error| unusable(&error))?;
    let found = Found { cluster: &backup.cluster, uuid: backup.uuid, authority, state, own, peers };
    init::found(&places, local, found)
}
