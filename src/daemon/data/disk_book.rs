//! What a node remembers of its disks besides their superblocks: disks that came after the configuration was
//! written, spares, how fast to rebuild, and how far the scrub is.
//!
//! A file in the state directory. A write leaves the old contents or the new ones. Which disk belongs, and where,
//! only the superblocks say: a path in here is a place to look at, nothing more.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use futures::lock::Mutex;
use serde::{Deserialize, Serialize};

use crate::peer::authority::write_secret;
use crate::store::RebuildPriority;

/// The book of a node.
pub struct DiskBook {
    path: PathBuf,
    pages: RefCell<Pages>,
    // One writer at a time, so that the newest contents are written last.
    writing: Mutex<()>,
}

/// Its contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pages {
    /// Disks beside those of the configuration.
    pub disks: Vec<PathBuf>,
    /// Disks that wait for another one to fail.
    pub spares: Vec<PathBuf>,
    /// How fast to rebuild.
    pub rebuild_priority: Priority,
    /// The scrub.
    pub scrub: ScrubPages,
}

/// [`RebuildPriority`] as it is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Hosts first.
    Low,
    /// Redundancy first, with hosts served well enough.
    #[default]
    Normal,
    /// All that the disks give.
    High,
}

/// How far the scrub is, and what it found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubPages {
    /// Whether one is under way.
    pub is_running: bool,
    /// Where it goes on.
    pub next_segment: u32,
    /// When it began, or the last one did; none before the first. Milliseconds since the Unix epoch, as all times here.
    pub started_unix_ms: Option<u64>,
    /// When the last whole one ended.
    pub finished_unix_ms: Option<u64>,
    /// From when on the first one is due after the interval.
    pub first_seen_unix_ms: Option<u64>,
    /// Blocks looked at, in the present or the last one.
    pub checked_blocks: u64,
    /// Of them, wrong or unreadable.
    pub found: u64,
    /// Of those, written again.
    pub repaired: u64,
    /// Of those, beyond what parity gives back.
    pub unrecoverable: u64,
    /// Whether a new checkpoint is to be written in the end.
    pub needs_checkpoint: bool,
    /// The first of those, as volume and block.
    pub first_unrecoverable: Vec<(u32, u64)>,
}

impl DiskBook {
    /// The book in a state directory; an empty one where there is none.
    pub fn open(state_dir: &Path) -> Result<Self, String> {
        let path = state_dir.join(NAME);
        let pages = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| format!("{} is not readable: {error}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Pages::default(),
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        Ok(Self { path, pages: RefCell::new(pages), writing: Mutex::new(()) })
    }

    /// Forgets all that was written in the book of a state directory.
    pub fn begin_anew(state_dir: &Path) -> Result<(), String> {
        let path = state_dir.join(NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("cannot remove {}: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// What is in it.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.pages.borrow().clone()
    }

    /// Changes it durably.
    pub async fn change(&self, change: impl FnOnce(&mut Pages)) -> Result<(), String> {
        let _one_at_a_time = self.writing.lock().await;
        let before = self.pages();
        change(&mut self.pages.borrow_mut());
        let pages = self.pages();
        if pages == before {
            return Ok(());
        }
        let path = self.path.clone();
        let write = move || {
            let text = serde_json::to_string_pretty(&pages).map_err(|error| error.to_string())?;
            write_secret(&path, &text).map_err(|error| error.to_string())
        };
        tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string())?
    }
}

impl From<Priority> for RebuildPriority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Low => Self::Low,
            Priority::Normal => Self::Normal,
            Priority::High => Self::High,
        }
    }
}

/// Name of the file.
const NAME: &str = "disks.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_there_the_next_time() {
        let place = tempfile::tempdir().unwrap();
        let book = DiskBook::open(place.path()).unwrap();
        assert_eq!(book.pages(), Pages::default());
        book.change(|pages| pages.spares.push("/dev/spare".into())).await.unwrap();
        book.change(|pages| pages.rebuild_priority = Priority::High).await.unwrap();
        let again = DiskBook::open(place.path()).unwrap();
        assert_eq!(again.pages(), book.pages());
        std::fs::write(place.path().join(NAME), "{").unwrap();
        assert!(DiskBook::open(place.path()).is_err());
    }
}
