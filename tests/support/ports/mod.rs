//! Ports of 127.0.0.1 for servers of tests, which run several at a time in processes of their own.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// A port that nobody listens on and that no other test is given while this process lives: servers may be stopped and
/// started on it. It lies outside the range that the system takes ports of outgoing connections from.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let candidate = std::process::id().wrapping_mul(7).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + (candidate % COUNT) as u16;
        let name = SocketAddr::from_abstract_name(format!("gemel-test-port-{port}")).expect("a short name");
        let Ok(claim) = UnixListener::bind_addr(&name) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            // Held to the end of the process.
            std::mem::forget(claim);
            return port;
        }
    }
    panic!("no port from {FIRST} on is free");
}

const FIRST: u16 = 10_000;
const COUNT: u32 = 9_000;
