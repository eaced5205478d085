//! What an administrator does with disks while the pool serves: take one out, put another one in its place, keep
//! spares, scrub, and say how fast to rebuild.
//!
//! A path is written in the node's book before the disk at it joins, so that it is looked at after a restart. A disk
//! that is refused is left as it was.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::disk_book::Priority;
use super::disk_pool::DiskPool;
use super::driver::DrivenDisk;
use super::pool::PoolError;
use crate::array::superblock::Uuid;
use crate::array::{DiskState, DiskStatus, ReplaceError, Slot};
use crate::disk::{Disk, OpenOptions};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskChange {
    /// Take a disk, named by identity, path or place, out of service.
    Fail {
        /// Which.
        disk: String,
        /// Although the pool goes out of service by that.
        force: bool,
    },
    /// Take a disk that still works out of service for a spare to take its place.
    Retire {
        /// Its identity.
        disk: String,
        /// Why.
        reason: String,
        /// It is read meanwhile where it has what the spare has not.
        is_read: bool,
    },
    /// Put the disk at a path into the place of one that is out of service.
    Replace {
        /// That one; without it, the one that is.
        disk: Option<String>,
        /// The new one.
        path: PathBuf,
        /// Although there is something on it.
        force: bool,
    },
    /// Keep a disk for the next one that fails.
    AddSpare(PathBuf),
    /// Do not keep it any more.
    RemoveSpare(PathBuf),
    /// How fast to rebuild.
    SetPriority(Priority),
    /// Begin a scrub.
    StartScrub,
    /// End it.
    StopScrub,
}

impl DiskPool {
    pub(super) async fn do_change(&self, change: DiskChange) -> Result<(), PoolError> {
        match change {
            DiskChange::Fail { disk, force } => self.fail(&disk, force).await,
            DiskChange::Retire { disk, reason, is_read } => self.retire(&disk, &reason, is_read).await,
            DiskChange::Replace { disk, path, force } => self.replace(disk.as_deref(), path, force).await,
            DiskChange::AddSpare(path) => self.add_spare(path).await,
            DiskChange::RemoveSpare(path) => self.remove_spare(&path).await,
            DiskChange::SetPriority(priority) => {
                self.store.set_rebuild_priority(priority.into());
                self.book.change(|pages| pages.rebuild_priority = priority).await.map_err(PoolError::Failed)
            }
            DiskChange::StartScrub => self.scrubber.start().await.map_err(PoolError::Failed),
            DiskChange::StopScrub => self.scrubber.stop().await.map_err(PoolError::Failed),
        }
    }

    fn find(&self, disk: &str) -> Result<DiskStatus, PoolError> {
        let is_it = |status: &DiskStatus| {
            status.uuid.to_string() == disk
                || status.slot.0.to_string() == disk
                || status.path.as_ref().is_some_and(|path| Path::new(path) == Path::new(disk))
        };
        let found = self.store.array().status().into_iter().find(is_it);
        found.ok_or_else(|| PoolError::NoSuchDisk(disk.to_owned()))
    }

    async fn fail(&self, disk: &str, force: bool) -> Result<(), PoolError> {
        let status = self.find(disk)?;
        let array = self.store.array();
        let reason = "it was failed by the administrator";
        let failed = if force {
            array.fail_regardless(status.slot, reason).await
        } else {
            array.fail(status.slot, reason).await
        };
        failed.or_else(|_| {
            if force {
                return Ok(()); // the pool is offline, as was wanted
            }
            Err(PoolError::Failed(format!(
                "the pool cannot do without disk {disk}: it has no redundancy left, and would go out of service. To do \
                 it all the same, give --confirm {disk}"
            )))
        })
    }

    async fn retire(&self, disk: &str, reason: &str, is_read: bool) -> Result<(), PoolError> {
        let slot = self.find(disk)?.slot;
        let retired = match is_read {
            true => self.store.retire_disk(slot, reason).await,
            false => self.store.array().fail(slot, reason).await,
        };
        retired
            .map_err(|_| PoolError::Failed(format!("the pool cannot do without disk {disk} at the moment")))
    }

    async fn replace(&self, disk: Option<&str>, path: PathBuf, force: bool) -> Result<(), PoolError> {
        let array = self.store.array();
        let slot = match disk {
            Some(disk) => self.find(disk)?.slot,
            None => self.empty_place()?,
        };
        if array.live().contains(slot) {
            return Err(failed(&ReplaceError::InUse(slot)));
        }
        let before = array.status()[slot.index()].path.clone().map(PathBuf::from);
        // The disk that left may come back at its path, or another one be there now.
        array.let_go(slot);
        let opened = self.open_disk(&path)?;
        let is_configured = self.configured.contains(&path);
        self.book
            .change(|pages| {
                pages.spares.retain(|spare| *spare != path);
                if !is_configured && !pages.disks.contains(&path) {
                    pages.disks.push(path.clone());
                }
            })
            .await
            .map_err(PoolError::Failed)?;
        array.replace(slot, opened, new_uuid()?, force).await.map_err(|error| failed(&error))?;
        if let Some(before) = before.filter(|before| *before != path) {
            let forgotten = self.book.change(|pages| pages.disks.retain(|known| *known != before)).await;
            forgotten.map_err(PoolError::Failed)?;
            if self.configured.contains(&before) {
                self.events.info(
                    "disk-configuration",
                    format!(
                        "disk {} was replaced by {}: take it out of pool.disks in the configuration of this node when it \
                         is gone for good",
                        before.display(),
                        path.display()
                    ),
                    &[],
                );
            }
        }
        Ok(())
    }

    fn empty_place(&self) -> Result<Slot, PoolError> {
        let status = self.store.array().status();
        let is_empty = |status: &&DiskStatus| matches!(status.state, DiskState::Failed | DiskState::Missing);
        status.iter().find(is_empty).map(|status| status.slot).ok_or_else(|| {
            PoolError::Failed(
                "all places of the pool are taken; `gemel disk spare add` keeps a disk for the next one that fails"
                    .to_owned(),
            )
        })
    }

    async fn add_spare(&self, path: PathBuf) -> Result<(), PoolError> {
        let disk = self.open_disk(&path)?;
        // Written down first: from the moment that it is a spare it may join.
        self.book.change(|pages| pages.spares.push(path.clone())).await.map_err(PoolError::Failed)?;
        let added = self.store.array().add_spare(disk, new_uuid()?).await;
        if added.is_err() {
            let forgotten = self.book.change(|pages| pages.spares.retain(|spare| *spare != path)).await;
            forgotten.map_err(PoolError::Failed)?;
        }
        added.map_err(|error| failed(&error))
    }

    async fn remove_spare(&self, path: &Path) -> Result<(), PoolError> {
        let was_kept = self.store.array().remove_spare(&path.display().to_string());
        let was_known = self.book.pages().spares.iter().any(|spare| spare == path);
        if !was_kept && !was_known {
            return Err(PoolError::NoSuchDisk(path.display().to_string()));
        }
        self.book.change(|pages| pages.spares.retain(|spare| spare != path)).await.map_err(PoolError::Failed)
    }

    fn open_disk(&self, path: &Path) -> Result<Rc<dyn Disk>, PoolError> {
        let opened = crate::disk::open(&self.engine, path, &OpenOptions::default());
        let disk = opened.map_err(|error| PoolError::Failed(format!("disk {error}")))?;
        Ok(Rc::new(DrivenDisk::new(disk, self.kick.clone())))
    }
}

fn failed(error: &ReplaceError) -> PoolError {
    PoolError::Failed(error.to_string())
}

pub(super) fn new_uuid() -> Result<Uuid, PoolError> {
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid)
        .map_err(|error| PoolError::Failed(format!("the system gives no random bytes: {error}")))?;
    Ok(Uuid(uuid))
}
