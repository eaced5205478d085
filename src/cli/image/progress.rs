//! How far an export or import is, on standard error: a line that changes on a terminal, else one now and then.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::rpc::size::show as show_size;

/// Tells how far something is.
pub struct Progress {
    what: &'static str,
    total_bytes: u64,
    moved_bytes: u64,
    began: Instant,
    told: Instant,
    is_terminal: bool,
}

impl Progress {
    /// Something that goes through a volume of so many bytes begins.
    pub fn new(what: &'static str, total_bytes: u64) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { what, total_bytes, moved_bytes: 0, began: Instant::now(), told: Instant::now(), is_terminal }
    }

    /// It is at this offset, and so many bytes of data more have been moved.
    pub fn at(&mut self, offset: u64, moved_bytes: u64) {
        self.moved_bytes += moved_bytes;
        let period = if self.is_terminal { ON_TERMINAL } else { ELSEWHERE };
        if self.told.elapsed() >= period {
            self.told = Instant::now();
            let percent = u128::from(offset) * 100 / u128::from(self.total_bytes.max(1));
            self.tell(&format!("{percent} %, {}", self.moved()), false);
        }
    }

    /// It is done. Bytes of data that were moved.
    pub fn done(self) -> u64 {
        if self.is_terminal {
            self.tell(&self.moved(), true);
        }
        self.moved_bytes
    }

    fn moved(&self) -> String {
        let seconds = self.began.elapsed().as_secs().max(1);
        format!("{} of data, {}/s", show_size(self.moved_bytes), show_size(self.moved_bytes / seconds))
    }

    fn tell(&self, text: &str, is_last: bool) {
        let mut output = std::io::stderr().lock();
        let (begin, end) = match (self.is_terminal, is_last) {
            (true, false) => ("\r\x1b[K", ""),
            (true, true) => ("\r\x1b[K", "\n"),
            (false, _) => ("", "\n"),
        };
        // Who does not listen misses nothing that matters.
        let _ = write!(output, "{begin}{} {text}{end}", self.what).and_then(|()| output.flush());
    }
}

const ON_TERMINAL: Duration = Duration::from_millis(500);
const ELSEWHERE: Duration = Duration::from_secs(10);
