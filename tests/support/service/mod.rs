//! Real `gemeld` and `gemel` processes for the daemon's tests: on free ports of 127.0.0.1, in a
//! temporary folder, ended with the test.

#![allow(dead_code)] // each test binary uses a part

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The folder, configuration and, while it runs, the process of a node.
pub struct Service {
    pub folder: tempfile::TempDir,
    pub iscsi: u16,
    pub console: u16,
    /// Lines at the end of the configuration.
    pub extra: String,
    pub disks: Vec<PathBuf>,
    /// What the daemon is started with in its environment.
    pub environment: Vec<(String, String)>,
    process: Option<Child>,
}

impl Service {
    /// A node with `count` sparse disks of 256 MiB, neither formatted nor started.
    pub fn new(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [iscsi, console] = [(); 2].map(|()| super::ports::free_port());
        let disks: Vec<_> = (0..count).map(|n| folder.path().join(format!("disk-{n}"))).collect();
        disks.iter().for_each(|disk| create_disk(disk, 256 << 20));
        let service = Self {
            folder,
            iscsi,
            console,
            extra: String::new(),
            disks,
            environment: Vec::new(),
            process: None,
        };
        service.configure();
        service
    }

    /// A node that serves.
    pub fn serving() -> Self {
        let mut service = Self::new(4);
        service.format();
        service.start();
        service
    }

    /// Writes the configuration from the fields.
    pub fn configure(&self) {
        let disks: Vec<_> =
            self.disks.iter().map(|disk| format!("{:?}", disk.display().to_string())).collect();
        let text = format!(
            "node = \"a\"\ncluster = \"test\"\nstate_dir = {:?}\n[pool]\ndisks = [{}]\n[iscsi]\n\
             portals = [\"127.0.0.1:{}\"]\n[management]\nsocket = {:?}\n\
             [console]\nlisten = [\"127.0.0.1:{}\"]\n{}",
            self.state_dir().display().to_string(),
            disks.join(", "),
            self.iscsi,
            self.socket().display().to_string(),
            self.console,
            self.extra,
        );
        std::fs::write(self.configuration(), text).unwrap();
    }

    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("gemeld.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("gemeld.sock")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Runs `gemeld` with these arguments to its end.
    pub fn gemeld(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemeld"));
        command.arg("--config").arg(self.configuration()).args(arguments);
        finish(command)
    }

    pub fn format(&self) {
        let output = self.gemeld(&["format"]);
        assert!(output.status.success(), "{}", errors(&output));
    }

    /// Starts the daemon and waits until it serves.
    pub fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gemeld"))
            .arg("--config")
            .arg(self.configuration())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
        wait_until("the daemon serves", || {
            let child = self.process.as_mut().unwrap();
            assert!(child.try_wait().unwrap().is_none(), "the daemon ended:\n{}", self.log());
            self.gemel(&["status"]).status.code().is_some_and(|code| code < 64)
        });
    }

    /// Ends the daemon with a signal; its exit code, if it ended by itself.
    pub fn end(&mut self, signal: &str) -> Option<i32> {
        let mut child = self.process.take().unwrap();
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let mut status = None;
        wait_until("the daemon ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("gemeld.log")
    }

    pub fn gemel_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemel"));
        command.args(["--cluster", &format!("unix:{}", self.socket().display())]).args(arguments);
        command
    }

    /// Runs the command line.
    pub fn gemel(&self, arguments: &[&str]) -> Output {
        finish(self.gemel_command(arguments))
    }

    /// Runs a command that has to succeed; its standard output.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.gemel(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command with `--json` that has to succeed; each line as a value.
    pub fn json(&self, arguments: &[&str]) -> Vec<serde_json::Value> {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--json"]).collect();
        self.succeed(&arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Runs a command that has to fail; its exit code and what it says.
    pub fn refuse(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.gemel(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        assert!(output.stdout.is_empty(), "errors belong on standard error");
        (output.status.code().unwrap(), errors(&output))
    }

    /// A page of the console: status line and body.
    pub fn page(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.console)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                eprintln!("the daemon's log:\n{}", self.log());
            }
        }
    }
}

pub fn create_disk(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

/// What a process wrote to standard error.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until `condition` holds, within [`LIMIT`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command to its end, within [`LIMIT`].
pub fn finish(mut command: Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (done, ended) = std::sync::mpsc::channel();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(LIMIT).is_err() {
            Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        }
    });
    let output = child.wait_with_output().unwrap();
    // The watchdog may be gone already, when it had to act.
    let _ = done.send(());
    watchdog.join().unwrap();
    output
}
