//! Disks for the pool: are they there, and which ones look unused.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::places::failed;
use crate::cli::error::CliError;
use crate::rpc::size::show as show_size;

/// Whether disks are named, each once, and are there. What is on them is looked at when they are formatted.
///
/// # Errors
/// [`CliError::Usage`], with proposals where none is named.
pub fn check(disks: &[PathBuf]) -> Result<(), CliError> {
    if disks.is_empty() {
        let unused = unused_disks();
        let unused: Vec<_> =
            unused.iter().map(|(path, size)| format!("\n    --disk {path}  # {size}")).collect();
        let proposal = match unused.is_empty() {
            true => "; no disk of this machine looks unused".to_owned(),
            false => format!("; these look unused:{}", unused.join("")),
        };
        return Err(CliError::Usage(format!("name the disks of the pool with --disk{proposal}")));
    }
    let mut seen = BTreeSet::new();
    for disk in disks {
        let kind = fs::metadata(disk).map_err(|error| failed("find the disk", disk, &error))?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(CliError::Usage(format!("{} is neither a block device nor a file", disk.display())));
        }
        if !seen.insert(fs::canonicalize(disk).map_err(|error| failed("find the disk", disk, &error))?) {
            return Err(CliError::Usage(format!("the disk {} is named twice", disk.display())));
        }
    }
    Ok(())
}

/// The disks by names that hold from everywhere. Links stay links: their names are the ones that do not change.
///
/// # Errors
/// [`CliError::Local`] when the present directory is not known.
pub fn absolute(disks: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    let absolute = |disk: &PathBuf| std::path::absolute(disk).map_err(|error| failed("find", disk, &error));
    disks.iter().map(absolute).collect()
}

/// Disks that somebody may choose from, and their sizes: those that look unused, and others that were named.
pub fn offered(named: &[PathBuf]) -> Vec<(String, String)> {
    let size =
        |path: &PathBuf| fs::metadata(path).map_or_else(|_| String::new(), |file| show_size(file.len()));
    let named = named.iter().map(|path| (path.display().to_string(), size(path)));
    named.chain(unused_disks()).collect()
}

/// Whole disks without partitions, users and mounts, as sysfs tells, with their sizes.
fn unused_disks() -> Vec<(String, String)> {
    let mounted = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let in_use: BTreeSet<PathBuf> = mounted
        .lines()
        .chain(swaps.lines())
        .filter_map(|line| fs::canonicalize(line.split_whitespace().next()?).ok())
        .collect();
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    let mut found: Vec<_> = devices
        .flatten()
        .filter_map(|device| {
            let name = device.file_name().into_string().ok()?;
            let path = device.path();
            let sectors: u64 = read_number(&path.join("size"))?;
            // Memory, loops and mappings have no device behind them.
            let is_disk = path.join("device").exists() && sectors > 0 && read_number(&path.join("ro"))? == 0;
            let has_users =
                fs::read_dir(path.join("holders")).is_ok_and(|mut holders| holders.next().is_some());
            let has_partitions =
                fs::read_dir(&path).ok()?.flatten().any(|entry| entry.path().join("partition").exists());
            let node = Path::new("/dev").join(&name);
            let is_free = is_disk && !has_users && !has_partitions && !in_use.contains(&node);
            is_free.then(|| (lasting_name(&node).display().to_string(), show_size(sectors * 512)))
        })
        .collect();
    found.sort();
    found
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The name of a device under /dev/disk/by-id, where it has one.
fn lasting_name(node: &Path) -> PathBuf {
    let links = fs::read_dir("/dev/disk/by-id").into_iter().flatten().flatten().map(|link| link.path());
    let mut names: Vec<_> =
        links.filter(|link| fs::canonicalize(link).is_ok_and(|target| target == node)).collect();
    names.sort();
    names.into_iter().next().unwrap_or_else(|| node.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_there_and_named_once() {
        let place = tempfile::tempdir().unwrap();
        let disk = place.path().join("disk");
        fs::write(&disk, "").unwrap();
        check(std::slice::from_ref(&disk)).unwrap();
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let cases = [
            (vec![], "--disk"),
            (vec![disk.clone(), link], "named twice"),
            (vec![place.path().to_owned()], "neither"),
            (vec![place.path().join("none")], "cannot find the disk"),
        ];
        for (disks, what) in cases {
            let error = check(&disks).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
