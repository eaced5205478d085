//! Processes under measurement: where they run, what they use, and their end.

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::TARGET_CPU;

/// A child on the targets' CPU that is killed when it goes out of scope.
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts `program`, its output in `log`, once nothing but `port` of 127.0.0.1 is needed to see that it serves.
    pub fn start(
        program: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        log: &Path,
        port: u16,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let output = std::fs::File::create(log)?;
        // Killed also when the benchmark itself is.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "taskset", "-c", &TARGET_CPU.to_string(), program])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let mut server = Self { child };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.child.try_wait()?.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(log)?;
                return Err(format!("{program} does not serve port {port}:\n{said}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // tgtd does not end at SIGTERM while it has targets; what is measured here is thrown away anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has used so far, all threads together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_ns: u64,
    pub disk_read_bytes: u64,
    pub disk_write_bytes: u64,
}

impl Usage {
    pub fn of(processes: &[u32]) -> io::Result<Self> {
        let mut sum = Self::default();
        for process in processes {
            let usage = Self::of_one(*process)?;
            sum.cpu_ns += usage.cpu_ns;
            sum.disk_read_bytes += usage.disk_read_bytes;
            sum.disk_write_bytes += usage.disk_write_bytes;
        }
        Ok(sum)
    }

    fn of_one(process: u32) -> io::Result<Self> {
        let mut usage = Self::default();
        let statistics = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name of the process, in parentheses, may hold spaces: fields are counted from behind it.
        let fields = statistics.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let ticks =
            |number: usize| fields.split(' ').nth(number - 3).and_then(|field| field.parse::<u64>().ok());
        usage.cpu_ns = (ticks(14).unwrap_or(0) + ticks(15).unwrap_or(0)) * TICK_NS;
        for line in std::fs::read_to_string(format!("/proc/{process}/io"))?.lines() {
            match line.split_once(": ") {
                Some(("read_bytes", value)) => usage.disk_read_bytes = value.parse().unwrap_or(0),
                Some(("write_bytes", value)) => usage.disk_write_bytes = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        Ok(usage)
    }

    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(earlier.cpu_ns),
            disk_read_bytes: self.disk_read_bytes.saturating_sub(earlier.disk_read_bytes),
            disk_write_bytes: self.disk_write_bytes.saturating_sub(earlier.disk_write_bytes),
        }
    }
}

/// Unit of the times in `/proc/PID/stat`: USER_HZ is 100 on every architecture that Linux has kept.
const TICK_NS: u64 = 10_000_000;

/// Keeps this process on one CPU.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    // SAFETY: a zeroed cpu_set_t is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET writes inside the set that it is given, for CPU numbers below CPU_SETSIZE.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the pointer and the size are those of one set that lives through the call.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A TCP port that is free now.
pub fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Writes a file of `size` bytes through, so that its blocks are allocated and no longer "unwritten".
pub fn prewrite(path: &Path, size: u64) -> io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path)?;
    let chunk = vec![0xa5u8; 4 << 20];
    for _ in 0..size / chunk.len() as u64 {
        file.write_all(&chunk)?;
    }
    file.sync_all()
}
