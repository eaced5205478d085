//! Faults of simulated disks, as plain data, and the count of those that were really met.
//!
//! A fault is injected into a medium and stays until it has struck (`Once`) or is cleared; it
//! survives the crash of the world that uses the medium, as a broken disk does.

use std::ops::Range;
use std::time::Duration;

use super::random::Random;
use crate::disk::{DiskErrorKind, Operation};

/// Something that goes wrong with the operations of one kind.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operations it strikes.
    pub operation: Operation,
    /// Byte range that an operation must touch to be struck; none strikes all. Flushes have no range.
    pub range: Option<Range<u64>>,
    /// How often.
    pub frequency: Frequency,
    /// What it does.
    pub effect: Effect,
}

impl Fault {
    /// A fault that strikes the next operation of this kind, anywhere.
    #[must_use]
    pub fn once(operation: Operation, effect: Effect) -> Self {
        Self { operation, range: None, frequency: Frequency::Once, effect }
    }

    /// A fault that strikes every operation of this kind, anywhere.
    #[must_use]
    pub fn always(operation: Operation, effect: Effect) -> Self {
        Self { operation, range: None, frequency: Frequency::Always, effect }
    }

    /// The fault, limited to operations that touch `range`.
    #[must_use]
    pub fn within(self, range: Range<u64>) -> Self {
        Self { range: Some(range), ..self }
    }

    fn strikes(&self, operation: Operation, range: &Range<u64>, random: &Random) -> bool {
        let touched = |own: &Range<u64>| own.start < range.end && range.start < own.end;
        self.operation == operation
            && self.range.as_ref().is_none_or(touched)
            && match self.frequency {
                Frequency::Once | Frequency::Always => true,
                Frequency::Chance { per_million } => random.chance(per_million),
            }
    }
}

/// How often a fault strikes the operations that it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frequency {
    /// The first one; then the fault is gone.
    Once,
    /// Each of them.
    Always,
    /// Each of them with this probability.
    Chance {
        /// Strikes in a million operations.
        per_million: u32,
    },
}

/// What a fault does to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this error. Of a failed write, any sectors may have reached the disk. Of the
    /// writes that a failed flush would have covered, any may be lost, at once and for good, though
    /// later flushes succeed.
    Fail(DiskErrorKind),
    /// A write is acknowledged and its data lands at this byte offset instead.
    Misdirect {
        /// Where the data lands; a multiple of 4096.
        to: u64,
    },
    /// A write is acknowledged and lost; a flush is acknowledged and does nothing.
    Phantom,
    /// It takes this much longer.
    Stall(Duration),
}

/// The faults that wait on one medium.
#[derive(Default)]
pub(super) struct FaultList {
    faults: Vec<Fault>,
}

impl FaultList {
    pub(super) fn inject(&mut self, fault: Fault) {
        let fits = match fault.effect {
            Effect::Fail(_) | Effect::Stall(_) => true,
            Effect::Misdirect { to } => fault.operation == Operation::Write && to.is_multiple_of(4096),
            Effect::Phantom => matches!(fault.operation, Operation::Write | Operation::Flush),
        };
        assert!(fits, "no such fault of a disk: {fault:?}");
        self.faults.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// What happens to an operation, all faults taken together: the delays add up, and the first
    /// other effect decides.
    pub(super) fn strike(&mut self, operation: Operation, range: &Range<u64>, random: &Random) -> Strike {
        let mut strike = Strike::default();
        self.faults.retain(|fault| {
            let blocked = strike.effect.is_some() && !matches!(fault.effect, Effect::Stall(_));
            if blocked || !fault.strikes(operation, range, random) {
                return true;
            }
            match fault.effect {
                Effect::Stall(duration) => strike.stall += duration,
                effect => strike.effect = Some(effect),
            }
            fault.frequency != Frequency::Once
        });
        strike
    }
}

/// What the faults do to one operation.
#[derive(Default)]
pub(super) struct Strike {
    pub(super) stall: Duration,
    pub(super) effect: Option<Effect>,
}

/// How often operations were asked for and faults were met on one medium: a simulation asserts on
/// these that it has really been where it claims to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub struct Counters {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub read_errors: u64,
    pub write_errors: u64,
    pub flush_errors: u64,
    pub discard_errors: u64,
    /// Reads that failed because of an unreadable page.
    pub latent_errors: u64,
    /// Reads that returned a page whose bits have rotted.
    pub rotten_reads: u64,
    pub misdirected_writes: u64,
    pub phantom_writes: u64,
    pub phantom_flushes: u64,
    pub stalls: u64,
    /// Operations that failed because the disk had disappeared.
    pub gone_errors: u64,
    pub no_space_errors: u64,
    /// Reads that met the end of a truncated file.
    pub short_reads: u64,
    pub crashes: u64,
    /// Unflushed page writes that a crash kept whole, dropped whole, or tore between sectors.
    pub crash_kept_pages: u64,
    pub crash_dropped_pages: u64,
    pub crash_torn_pages: u64,
    /// Unflushed page writes that a crash left unreadable.
    pub crash_spoiled_pages: u64,
    /// Operations that were in flight at a crash.
    pub crash_in_flight: u64,
}
