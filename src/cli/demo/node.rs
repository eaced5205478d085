//! A member's process: started beside this binary, found again by its pid file, stopped by signal.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::folder::{Folder, Seat};
use crate::cli::error::CliError;

/// How long a node may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A node or the witness of a demo, running or not.
pub struct Node<'a> {
    folder: &'a Folder,
    /// Which.
    pub seat: &'static Seat,
    /// The process, when this one started it: a child that ended must be waited for.
    child: RefCell<Option<Child>>,
}

impl<'a> Node<'a> {
    /// A member of the demo in `folder`.
    pub fn new(folder: &'a Folder, seat: &'static Seat) -> Self {
        Self { folder, seat, child: RefCell::new(None) }
    }

    /// The demo's folder.
    pub fn folder_path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes the new disks into use.
    pub async fn format(&self) -> Result<(), CliError> {
        let output = tokio::process::Command::new(self.program()?)
            .arg("--config")
            .arg(self.configuration())
            .args(["format", "--force"])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|error| CliError::Local(format!("cannot run {}: {error}", self.seat.program)))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Err(CliError::Local(format!("cannot format the demo's disks: {}", text.trim())))
    }

    /// Starts the process, its output going to its log, and gives its pid.
    pub fn start(&self) -> Result<u32, CliError> {
        let log_path = self.log_path();
        let log = File::options().create(true).append(true).open(&log_path);
        let log =
            log.map_err(|error| CliError::Local(format!("cannot write {}: {error}", log_path.display())))?;
        let for_errors =
            log.try_clone().map_err(|error| CliError::Local(format!("cannot share the log: {error}")))?;
        let child = Command::new(self.program()?)
            .arg("--config")
            .arg(self.configuration())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(for_errors)
            // A Ctrl-C in the terminal is for the demo, which then stops its node in order.
            .process_group(0)
            .spawn()
            .map_err(|error| CliError::Local(format!("cannot start {}: {error}", self.seat.program)))?;
        let pid = child.id();
        self.child.replace(Some(child));
        let path = self.pid_file();
        fs::write(&path, format!("{pid}\n"))
            .map_err(|error| CliError::Local(format!("cannot write {}: {error}", path.display())))?;
        Ok(pid)
    }

    /// The pid of the running process, whoever started it. A pid that now belongs to something else
    /// does not count.
    pub fn running_pid(&self) -> Option<u32> {
        if let Some(child) = self.child.borrow_mut().as_mut()
            && matches!(child.try_wait(), Ok(None))
        {
            // Known without its command line, which it does not have in its first moment.
            return Some(child.id());
        }
        let pid: u32 = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let configuration = self.configuration();
        let ours = command
            .split(|&byte| byte == 0)
            .any(|argument| argument == configuration.as_os_str().as_encoded_bytes());
        ours.then_some(pid)
    }

    /// Takes notice of the end of a process that this one started.
    pub fn reap(&self) {
        let mut child = self.child.borrow_mut();
        if child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
            *child = None;
        }
    }

    /// Stops the process: asks, waits, and kills it only when it does not listen.
    pub async fn stop(&self) {
        let started = Instant::now();
        let Some(pid) = self.running_pid() else { return };
        self.signal(pid, Signal::TERM);
        while self.running_pid() == Some(pid) && started.elapsed() < STOP_TIMEOUT {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.reap();
        }
        if self.running_pid() == Some(pid) {
            eprintln!("gemel: {} (pid {pid}) does not stop; killing it", self.seat.program);
            self.signal(pid, Signal::KILL);
        }
        // A pid file that is left over does no harm: its pid is checked before it is believed.
        let _ = fs::remove_file(self.pid_file());
    }

    /// The last lines of its log.
    pub fn end_of_log(&self) -> String {
        let path = self.log_path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(8)..].join("\n");
        format!("{end}\n(the whole log: {})", path.display())
    }

    fn signal(&self, pid: u32, signal: Signal) {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
            eprintln!("gemel: cannot signal {}: {error}", self.seat.program);
        }
    }

    fn configuration(&self) -> PathBuf {
        self.folder.configuration(self.seat)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.file(self.seat, &format!("{}.log", self.seat.program))
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.file(self.seat, &format!("{}.pid", self.seat.program))
    }

    /// The program beside this one.
    fn program(&self) -> Result<PathBuf, CliError> {
        let own = std::env::current_exe()
            .map_err(|error| CliError::Local(format!("cannot find out where this program lies: {error}")))?;
        let program = own.with_file_name(self.seat.program);
        if program.is_file() {
            return Ok(program);
        }
        Err(CliError::Local(format!(
            "{} is not there: the demo runs the {} beside this program; build it with: cargo build --bins",
            program.display(),
            self.seat.program
        )))
    }
}
