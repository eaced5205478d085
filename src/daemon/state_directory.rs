//! The node's own records, in a directory that one daemon at a time holds: the control state and the
//! event log, in an embedded database.
//!
//! Guarantees: what was saved is on stable media when the call returns; a crash leaves the old record
//! or the new one. Left to others: what the records mean.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

/// The control state, under its one key.
const CONTROL: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("control");
/// Events by sequence number.
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
/// The newest epoch promised, by volume.
const PROMISES: TableDefinition<'_, u32, u32> = TableDefinition::new("promises");
/// Numbers by name.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
/// The greatest number of a volume that there was before this directory.
const OLDER_VOLUMES: &str = "older-volumes";
const CONTROL_KEY: &str = "state";
/// How long a killed predecessor may take to let go of the directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The open, locked state directory.
pub struct StateDirectory {
    path: PathBuf,
    database: Database,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

/// Why the records can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory can't be made or entered.
    #[error("cannot use the state directory {path}: {source}; state_dir in the configuration names it")]
    Directory {
        /// The directory, or the file in it.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Another daemon uses it.
    #[error("the state directory {path} is in use by another gemeld{}; stop that one first", of_pid(.pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Process that holds it, as far as it is known.
        pid: Option<u32>,
    },
    /// The database in it fails.
    #[error("the records in {path} fail: {source}")]
    Records {
        /// The directory.
        path: PathBuf,
        /// Cause.
        source: Box<redb::Error>,
    },
}

impl StateDirectory {
    /// Opens the directory, which is created where there is none, and locks it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let directory_error = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Directory { path, source }
        };
        fs::create_dir_all(path).map_err(directory_error(path))?;
        let lock_path = path.join("gemeld.lock");
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(&lock_path);
        let mut lock = lock.map_err(directory_error(&lock_path))?;
        if !locked_in_time(&lock) {
            return Err(StateError::Locked { path: path.to_owned(), pid: read_pid(&mut lock) });
        }
        write_pid(&mut lock).map_err(directory_error(&lock_path))?;
        let records =
            |source: redb::Error| StateError::Records { path: path.to_owned(), source: Box::new(source) };
        let database = Database::create(path.join("gemel.redb")).map_err(|error| records(error.into()))?;
        let created = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            transaction.open_table(CONTROL)?;
            transaction.open_table(EVENTS)?;
            transaction.commit()?;
            Ok(())
        };
        created().map_err(records)?;
        Ok(Self { path: path.to_owned(), database, _lock: lock })
    }

    /// The saved control state; none in a new directory.
    pub fn control(&self) -> Result<Option<Vec<u8>>, StateError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(CONTROL)?;
            Ok(table.get(CONTROL_KEY)?.map(|value| value.value().to_vec()))
        };
        read().map_err(|error| self.records_error(error))
    }

    /// Replaces the saved control state.
    pub fn save_control(&self, state: &[u8]) -> Result<(), StateError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            transaction.open_table(CONTROL)?.insert(CONTROL_KEY, state)?;
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| self.records_error(error))
    }

    /// The greatest number of the volumes that there were before this directory was: `present` the first time, and the
    /// same ever since.
    pub fn older_volumes(&self, present: u32) -> Result<u32, StateError> {
        let write = || -> Result<u64, redb::Error> {
            let transaction = self.database.begin_write()?;
            let saved = {
                let mut table = transaction.open_table(NUMBERS)?;
                let known = table.get(OLDER_VOLUMES)?.map(|known| known.value());
                match known {
                    Some(known) => known,
                    None => {
                        table.insert(OLDER_VOLUMES, u64::from(present))?;
                        u64::from(present)
                    }
                }
            };
            transaction.commit()?;
            Ok(saved)
        };
        let saved = write().map_err(|error| self.records_error(error))?;
        Ok(u32::try_from(saved).unwrap_or(u32::MAX))
    }

    /// A number that was saved.
    pub fn number(&self, name: &str) -> Result<Option<u64>, StateError> {
        let read = || -> Result<Option<u64>, redb::Error> {
            let table = match self.database.begin_read()?.open_table(NUMBERS) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                table => table?,
            };
            Ok(table.get(name)?.map(|number| number.value()))
        };
        read().map_err(|error| self.records_error(error))
    }

    /// Saves numbers by name, all of them or none.
    pub fn save_numbers(&self, numbers: &[(&str, u64)]) -> Result<(), StateError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(NUMBERS)?;
                for (name, number) in numbers {
                    table.insert(name, number)?;
                }
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| self.records_error(error))
    }

    /// The newest epoch promised for a volume; zero when there was none.
    pub fn promise(&self, volume: u32) -> Result<u32, StateError> {
        let read = || -> Result<u32, redb::Error> {
            let table = match self.database.begin_read()?.open_table(PROMISES) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(0),
                table => table?,
            };
            Ok(table.get(volume)?.map_or(0, |epoch| epoch.value()))
        };
        read().map_err(|error| self.records_error(error))
    }

    /// Saves a promise, unless a newer one was saved.
    pub fn save_promise(&self, volume: u32, epoch: u32) -> Result<(), StateError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(PROMISES)?;
                let known = table.get(volume)?.map_or(0, |known| known.value());
                table.insert(volume, epoch.max(known))?;
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| self.records_error(error))
    }

    /// All saved events, oldest first.
    pub fn events(&self) -> Result<Vec<(u64, Vec<u8>)>, StateError> {
        let read = || -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let table = self.database.begin_read()?.open_table(EVENTS)?;
            let mut events = Vec::new();
            for entry in table.iter()? {
                let (sequence, event) = entry?;
                events.push((sequence.value(), event.value().to_vec()));
            }
            Ok(events)
        };
        read().map_err(|error| self.records_error(error))
    }

    /// Adds events and removes those below the sequence number `oldest_kept`.
    pub fn append_events(&self, events: &[(u64, Vec<u8>)], oldest_kept: u64) -> Result<(), StateError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(EVENTS)?;
                for (sequence, event) in events {
                    table.insert(sequence, event.as_slice())?;
                }
                table.retain_in(..oldest_kept, |_, _| false)?;
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| self.records_error(error))
    }

    fn records_error(&self, source: redb::Error) -> StateError {
        StateError::Records { path: self.path.clone(), source: Box::new(source) }
    }
}

/// Locks the file, waiting a moment for a holder that was killed: what it had in the kernel keeps its
/// files open until it has ended.
fn locked_in_time(lock: &File) -> bool {
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

fn read_pid(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(lock: &mut File) -> std::io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

fn of_pid(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_the_directory_has_one_user() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("new/state");
        let state = StateDirectory::open(&path).unwrap();
        assert_eq!(state.control().unwrap(), None);
        state.save_control(b"one").unwrap();
        state.save_control(b"two").unwrap();
        let error = StateDirectory::open(&path).err().unwrap();
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        drop(state);
        assert_eq!(StateDirectory::open(&path).unwrap().control().unwrap(), Some(b"two".to_vec()));
    }

    #[test]
    fn what_was_there_before_is_remembered() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(place.path()).unwrap();
        assert_eq!((state.older_volumes(3).unwrap(), state.older_volumes(7).unwrap()), (3, 3));
        drop(state);
        assert_eq!(StateDirectory::open(place.path()).unwrap().older_volumes(9).unwrap(), 3);
    }

    #[test]
    fn promises_only_grow() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(place.path()).unwrap();
        assert_eq!(state.promise(1).unwrap(), 0);
        [3, 2].iter().for_each(|epoch| state.save_promise(1, *epoch).unwrap());
        drop(state);
        let state = StateDirectory::open(place.path()).unwrap();
        assert_eq!((state.promise(1).unwrap(), state.promise(2).unwrap()), (3, 0));
    }

    #[test]
    fn old_events_make_room() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(place.path()).unwrap();
        let event = |sequence: u64| (sequence, vec![0]);
        state.append_events(&[event(1), event(2), event(3)], 0).unwrap();
        state.append_events(&[event(4)], 3).unwrap();
        assert_eq!(state.events().unwrap(), vec![event(3), event(4)]);
    }
}
