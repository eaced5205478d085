//! The log of consensus as a file: [`Medium`] on a file system.
//!
//! Guarantees: what [`Medium::sync`] covered survives a loss of power, the file's name included; a
//! replacement is there as a whole or not at all; two processes never have the same log open, whatever the
//! paths by which they name it. After an error nothing more is written: a failed write or sync is never
//! retried (I21).
//!
//! Left to others: what the bytes mean, and whether they are whole ([`crate::cluster::raft::log`]).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cluster::raft::log::{LogError, Medium};

/// A log file, locked for as long as this exists.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    /// None until something has been written.
    file: Option<File>,
    failure: Option<LogError>,
    /// The lock is on a file of its own, because a replacement is another file than what it replaces.
    _lock: File,
}

/// Why a log file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// Another process has it.
    #[error("{path} is in use by another process; stop that one first")]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl LogFile {
    /// Opens the log in `directory`, which is created where there is none, and locks it. There may be no
    /// log in it yet.
    ///
    /// # Errors
    /// [`LogFileError`].
    pub fn open(directory: &Path) -> Result<Self, LogFileError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LogFileError::Io { path, source }
        };
        fs::create_dir_all(directory).map_err(failed(directory))?;
        let lock_path = directory.join(LOCK_NAME);
        let lock = File::options().write(true).create(true).truncate(false).open(&lock_path);
        let lock = lock.map_err(failed(&lock_path))?;
        if !is_locked_in_time(&lock) {
            return Err(LogFileError::Locked { path: lock_path });
        }
        let path = directory.join(LOG_NAME);
        let file = match File::options().read(true).append(true).open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(LogFileError::Io { path, source }),
        };
        Ok(Self { path, file, failure: None, _lock: lock })
    }

    /// Puts a log that cannot be used out of the way, under a name that is given back, so that a new life
    /// begins without one.
    ///
    /// # Errors
    /// [`LogFileError::Io`].
    pub fn set_aside(&mut self, suffix: u64) -> Result<PathBuf, LogFileError> {
        let aside = self.path.with_extension(format!("damaged-{suffix}"));
        let moved = fs::rename(&self.path, &aside).and_then(|()| self.sync_directory());
        moved.map_err(|source| LogFileError::Io { path: self.path.clone(), source })?;
        (self.file, self.failure) = (None, None);
        Ok(aside)
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()
    }

    fn whole(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.file.is_some() {
            // An own opening, so that the place where this one appends does not matter.
            File::open(&self.path)?.read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    fn replaced(&mut self, bytes: &[u8]) -> io::Result<()> {
        let new_path = self.path.with_extension("new");
        let mut new = File::options().write(true).create(true).truncate(true).open(&new_path)?;
        new.write_all(bytes)?;
        new.sync_all()?;
        fs::rename(&new_path, &self.path)?;
        self.sync_directory()?;
        self.file = Some(File::options().read(true).append(true).open(&self.path)?);
        Ok(())
    }

    /// Does something unless an earlier attempt has failed, and remembers its failure.
    fn attempt<T>(
        &mut self,
        what: &str,
        act: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> Result<T, LogError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        act(self).map_err(|error| {
            let failure = LogError::Medium(format!("{what} {}: {error}", self.path.display()));
            self.failure = Some(failure.clone());
            failure
        })
    }
}

impl Medium for LogFile {
    fn read(&mut self) -> Result<Vec<u8>, LogError> {
        self.attempt("reading", Self::whole)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        self.attempt("writing", |log| match &mut log.file {
            Some(file) => file.write_all(bytes),
            None => Err(io::Error::other("there is no log to append to")),
        })
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.attempt("syncing", |log| log.file.as_ref().map_or(Ok(()), File::sync_data))
    }

    fn replace(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        self.attempt("replacing", |log| log.replaced(bytes))
    }
}

/// Waits a moment for a holder that was killed: its files stay open until it has ended in the kernel.
fn is_locked_in_time(lock: &File) -> bool {
    let started = Instant::now();
    loop {
        if rustix::fs::flock(lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        if started.elapsed() >= LOCK_PATIENCE {
            return false;
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

/// File of the log in its directory.
pub const LOG_NAME: &str = "consensus.log";
const LOCK_NAME: &str = "consensus.lock";
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::raft::log::{Identity, Recovered, recover};
    use crate::cluster::raft::member::{Member, Timing};
    use crate::cluster::raft::{Consensus, Effect, MemberId};

    const TIMING: Timing = Timing { election_ticks: 4, heartbeat_ticks: 1 };

    fn entries(member: &mut Member<LogFile>) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| member.poll_effect())
            .filter_map(|effect| match effect {
                Effect::Committed { entry, .. } => Some(entry),
                _ => None,
            })
            .collect()
    }

    fn founder(place: &Path) -> Member<LogFile> {
        let identity = Identity { member: MemberId(7), cluster: [3; 16] };
        let mut member =
            Member::found(LogFile::open(place).unwrap(), identity, "a", b"state", TIMING).unwrap();
        (0..12).for_each(|_| member.handle_tick().unwrap());
        member
    }

    fn reopened(place: &Path) -> Member<LogFile> {
        match recover(LogFile::open(place).unwrap()).unwrap() {
            Recovered::Whole(log, image) => Member::open(log, image, TIMING).unwrap(),
            Recovered::Blank(_) => panic!("the log is gone"),
        }
    }

    #[test]
    fn entries_survive_a_torn_end_and_are_lost_by_none() {
        let place = tempfile::tempdir().unwrap();
        let mut member = founder(place.path());
        for number in 0..20u8 {
            member.propose(vec![1, number]).unwrap();
        }
        assert_eq!(entries(&mut member).len(), 20);
        drop(member);
        // A crash in the middle of a record that was never synced.
        let path = place.path().join(LOG_NAME);
        let before = fs::read(&path).unwrap();
        let torn = [before.as_slice(), &[40, 0, 0, 0, 1, 2, 3]].concat();
        fs::write(&path, torn).unwrap();
        let mut member = reopened(place.path());
        assert_eq!(fs::read(&path).unwrap(), before, "the torn end is cut off");
        (0..12).for_each(|_| member.handle_tick().unwrap());
        member.propose(vec![2]).unwrap();
        assert_eq!(entries(&mut member).len(), 21);
        drop(member);
        let mut member = reopened(place.path());
        (0..12).for_each(|_| member.handle_tick().unwrap());
        assert_eq!(entries(&mut member).last(), Some(&vec![2]));
    }

    #[test]
    fn a_replacement_is_appended_to_and_left_overs_do_no_harm() {
        let place = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(place.path()).unwrap();
        assert!(log.append(b"x").is_err() && log.replace(b"one").is_err(), "an error is for good");
        drop(log);
        fs::write(place.path().join("consensus.new"), b"half of a replace").unwrap();
        let mut log = LogFile::open(place.path()).unwrap();
        assert_eq!(log.read().unwrap(), b"");
        log.replace(b"one").unwrap();
        log.append(b" two").unwrap();
        log.sync().unwrap();
        log.replace(b"three").unwrap();
        log.append(b" four").unwrap();
        assert_eq!(log.read().unwrap(), b"three four");
        drop(log);
        let mut log = LogFile::open(place.path()).unwrap();
        assert_eq!(log.read().unwrap(), b"three four");
        let aside = log.set_aside(5).unwrap();
        assert_eq!((log.read().unwrap(), fs::read(aside).unwrap()), (vec![], b"three four".to_vec()));
    }

    #[test]
    fn a_log_has_one_user() {
        let place = tempfile::tempdir().unwrap();
        let first = LogFile::open(place.path()).unwrap();
        let error = LogFile::open(&place.path().join("../").join(place.path())).unwrap_err();
        assert!(matches!(error, LogFileError::Locked { .. }), "{error}");
        drop(first);
        LogFile::open(place.path()).unwrap();
    }
}
